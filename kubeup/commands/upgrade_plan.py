"""The commands upgrade plan and upgrade diff: what an upgrade would do to each node, what stands in its way, and the lines to run.

Change nothing, but for the file of --out. Mirrors cmd/kubeadm/app/cmd/upgrade/{plan,diff}.go, and shows what kubeadm leaves to its admin.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.commands import certs, upgrade_config, upgrade_outlook
from kubeup.commands.launcher import Launch
from kubeup.errors import PreflightError, UsageError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.upgrade import objection

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.commands.upgrade_outlook import Ground, Outlook
    from kubeup.engine.plan import Difference
    from kubeup.releases import Version
    from kubeup.upgrade.available import Found
    from kubeup.upgrade.objection import Objection
    from kubeup.upgrade.target import Target

BLOCKED = PreflightError.status


def plan(call: Invocation) -> int:
    """Print the plan. Returns 0 if nothing blocks the upgrade, else 3."""
    call = upgrade_config.with_config(call, "plan")
    launch = Launch(call)
    launch.require_root()
    ground = upgrade_outlook.find_ground(call, launch.local)
    target, found = choose_target(call, ground)
    outlook = upgrade_outlook.look(
        ground,
        target,
        allows_experimental=bool(call.flags.get("allow-experimental-upgrades")),
        allows_candidates=bool(call.flags.get("allow-release-candidate-upgrades")),
    )
    value = upgrade_outlook.describe(outlook, found)
    if "out" in call.flags:
        path = Path(call.flags["out"]).absolute()
        launch.local.write_file(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode=0o600)
        call.report.note(
            f"written to {path}; to apply it while nothing has moved: kb upgrade apply {call.flags['out']}"
        )
    if call.output != "text":
        call.print_value(value)
    else:
        call.tell(render(outlook, found))
    return BLOCKED if outlook.blocks else 0


def choose_target(call: Invocation, ground: Ground) -> tuple[Version, tuple[Found, ...]]:
    """The version that was named, else the newest that was found: a patch of the present minor before the next minor. With what else was
    found. Raises UsageError: no-version-found, no-such-version."""
    if call.words:
        return upgrade_outlook.parse_target(ground.local, call.words[0]), ()
    found = upgrade_outlook.find_available(ground, call)
    if not found:
        now = ground.patient.config.cluster.kubernetes_version
        raise UsageError(
            f"no version newer than {now} was found",
            cause="neither the images of this node nor the place that was asked has one; dl.k8s.io may not be reachable from here",
            remedy="name it: kb upgrade plan v1.36.3; or where it is: kb upgrade plan --bundle FILE, or --mirror URL",
            code="no-version-found",
        )
    return found[0].version, found


# ---- the manifests


def diff(call: Invocation) -> int:
    """Print how this node's static pods would differ, and what of them others changed; by default for the stored version."""
    call = upgrade_config.with_config(call, "diff")
    launch = Launch(call)
    launch.require_root()
    ground = upgrade_outlook.find_ground(call, launch.local)
    version = upgrade_outlook.parse_target(ground.local, call.words[0] if call.words else _read_stored_version(ground))
    pods = upgrade_outlook.read_targets(ground, version)
    lines = call.flags.get("context-lines", 3)
    rows = [(pod, _render_diff(pod, ground.paths.manifest(pod.name), lines=lines)) for pod in pods]
    if call.output != "text":
        call.print_value([_describe_pod(pod, text) for pod, text in rows])
        return 0
    call.print("".join(text for _, text in rows) or f"no static pod of {ground.node} differs at {version}")
    for pod in pods:
        for edit in pod.edits:
            call.report.note(f"not of the stored configuration: {edit}")
        for edit in pod.conflicts:
            call.report.warn(f"{pod.name}: {edit.field} is {edit.found!r}, Kubernetes {version} has {edit.wanted!r}")
    return 0


def _read_stored_version(ground: Ground) -> str:
    text = upgrade_outlook.read_stored_version(ground)
    if not text:
        raise UsageError(
            "no version was given",
            cause="the cluster's configuration names none either",
            remedy="name it: kb upgrade diff v1.36.3",
            code="no-such-version",
        )
    return text


def _render_diff(pod: Target, path: Path, *, lines: int) -> str:
    """As kubeadm shows it: the file on disk against the new manifest. "" if they are equal."""
    if not pod.is_changed:
        return ""
    rows = difflib.unified_diff(
        pod.former.splitlines(keepends=True),
        pod.wanted.splitlines(keepends=True),
        fromfile=str(path),
        tofile="new manifest",
        n=lines,
    )
    return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)


def _describe_pod(pod: Target, text: str) -> dict[str, Any]:
    def rows(edits: Sequence[Difference]) -> list[dict[str, str]]:
        return [{"field": one.field, "wanted": one.wanted, "found": one.found} for one in edits]

    return {"manifest": pod.name, "diff": text, "edits": rows(pod.edits), "conflicts": rows(pod.conflicts)}


# ---- text


def render(outlook: Outlook, found: Sequence[Found] = ()) -> str:
    return "\n\n".join(part for part in _render(outlook, found) if part)


def _render(outlook: Outlook, found: Sequence[Found]) -> Iterator[str]:
    if len(found) > 1:
        rows = [(one.version.text, one.source) for one in found]
        yield certs.render_table([("AVAILABLE", "FOUND AT"), *rows])
    yield f"Kubernetes {outlook.former} -> {outlook.target}"
    rows4 = [
        (one.component, one.node or "(cluster)", one.current or "(no answer)", one.target) for one in outlook.changes
    ]
    yield certs.render_table([("COMPONENT", "NODE", "CURRENT", "TARGET"), *rows4])
    if outlook.gaps:
        rows3 = [(one.node, f"about {one.seconds} s" if one.seconds else "none", one.why) for one in outlook.gaps]
        yield certs.render_table([("NODE", "API GAP", "WHY"), *rows3])
    yield from _render_apis(outlook)
    yield _list("Blocks the upgrade:", [one for one in outlook.objections if one.weighs != objection.SAID])
    yield _list("To know:", [one for one in outlook.objections if one.weighs == objection.SAID])
    if not outlook.lines:
        yield f"Everything is {outlook.target} already."
        return
    if outlook.blocks:
        yield "Run, once nothing blocks it, in this order:"
    else:
        yield "Nothing blocks it. Run, in this order:"
    yield certs.render_table(
        [("NODE", "COMMAND"), *((one.node, upgrade_outlook.say_line(one)) for one in outlook.lines)]
    )
    if any(one.component == "kubelet" and one.restarts for one in outlook.changes) and not outlook.lines[0].sources:
        yield "A kubelet waits until its new version is installed, unless --packages, --bundle or --mirror says where that comes from."
    yield "What each node keeps for its way back goes after seven days, or when you say so there: kb upgrade finish"


def _render_apis(outlook: Outlook) -> Iterator[str]:
    used = outlook.usage.removed_apis
    if used:
        rows = [
            (one.name, one.removed, str(one.requests), f"{one.since:%Y-%m-%d %H:%M} UTC" if one.since else "unknown")
            for one in used
        ]
        yield certs.render_table([("DEPRECATED API IN USE", "GONE FROM", "REQUESTS", "SINCE"), *rows])


def _list(title: str, objections: Sequence[Objection]) -> str:
    if not objections:
        return ""
    lines = [title]
    for one in objections:
        where = f"[{one.node}] " if one.node else ""
        forced = "" if one.weighs != objection.SKIPPABLE else " (or --force)"
        lines += [f"  {where}{one.trouble}", f"    Remedy: {one.trouble.remedy}{forced}"]
    return "\n".join(lines)
