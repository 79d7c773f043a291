"""The commands upgrade apply and upgrade node: this node's configuration for the new version, and the phases.

Mirrors cmd/kubeadm/app/cmd/upgrade/{apply,node}.go.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup import releases
from kubeup.commands import launcher, upgrade_config, upgrade_outlook
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import say_round, watch
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import eviction, membership
    from kubeup.commands import closing_look
    from kubeup.config import load_init, types
    from kubeup.doctor import foreign_node, node_files
    from kubeup.engine import run
    from kubeup.machine import dry_run
    from kubeup.node import images
    from kubeup.phases import upgrade_run
    from kubeup.swap import store
    from kubeup.upgrade import kept, node_config, target

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.machine.host import Host

APPLY, NODE = "upgrade-apply", "upgrade-node"
CONTROL_PLANE = "control-plane"
"""The phase that swaps the static pods."""
SERVER_S = 90.0
"""How long this node's API server may stay away before an upgrade begins or goes on."""
_READY_TIMEOUT_S = 5.0


@frozen
class Here:
    """This node as it is."""

    patient: Patient
    stored: node_config.Stored
    join: Optional[types.Join]

    @property
    def version(self) -> str:
        """What it runs: its API server's version, or a worker's kubelet's."""
        return self.patient.config.cluster.kubernetes_version


def apply(call: Invocation) -> int:
    """Upgrade this control plane and the cluster's objects, or continue."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    call = upgrade_config.with_config(call, "apply")
    launch = Launch(call)
    launch.require_root()
    version = _canonical(call.words[0]) if len(call.words) == 1 else ""
    plan = Path(call.words[0]).absolute() if len(call.words) == 1 and not version else None
    if plan is not None and launch.local.exists(plan):
        version, _ = upgrade_outlook.read_plan(launch.local, plan)
    if not version:
        raise _refuse_words(call.words)
    return _upgrade(launch, version=version, plan=plan)


def _refuse_words(words: Sequence[str]) -> UsageError:
    """For what is neither a version in full nor the file of a plan. A label is none: it may stand for another version by the time that it
    is given again to go on."""
    cause = "it takes one word: the version to upgrade to, or the file of a plan; --config may name the version too"
    remedy = "name it: kb upgrade apply v1.36.3"
    word = words[0] if len(words) == 1 else ""
    minor = re.fullmatch(r"v?(1\.\d+)", word)
    if minor or re.fullmatch(r"(stable|latest)(-\d+(\.\d+)?)?", word):
        cause = f"{word} names no patch; it takes the version to upgrade to in full, or the file of a plan"
        remedy = f"see which one it is: kb upgrade plan {f'stable-{minor.group(1)}' if minor else word}"
    elif word:
        cause = f"{word[:60]!r} is no version, and no such file is here; it takes the version to upgrade to, or the file of a plan"
    return UsageError(f"kb upgrade apply {' '.join(words)[:200]}".rstrip(), cause=cause, remedy=remedy, code="usage")


def node(call: Invocation) -> int:
    """Upgrade this node to the version that the cluster stores, or continue."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(upgrade_config.with_config(call, "node"))
    launch.require_root()
    return _upgrade(launch, version="")


def _canonical(text: str) -> str:
    """`v1.36.3` of `1.36.3`; "" if it is no version."""
    found = releases.parse_version(text)
    return found.text if found is not None else ""


def _check_plan(launch: Launch, node_state: State, *, plan: Path, version: str) -> None:
    """Raises PreflightError (plan-elsewhere, plan-outdated) if the cluster is not as it was when the plan was made. An upgrade that goes on has changed
    it itself."""
    if any(name.startswith(f"{APPLY}@{version}/") for name in node_state.phases):
        launch.call.report.note(f"the upgrade to {version} was begun before: continuing it")
        return
    wanted = upgrade_outlook.parse_target(launch.local, version)
    outlook = upgrade_outlook.look(upgrade_outlook.find_ground(launch.call, launch.local), wanted)
    upgrade_outlook.check_plan(launch.local, plan, outlook=outlook)


def _upgrade(launch: Launch, *, version: str, plan: Optional[Path] = None) -> int:
    call, paths = launch.call, Paths()
    with launch.locked(paths) as node_state:
        goes_on = _continue_swap(launch, node_state, version=version)
        if plan is not None:
            _check_plan(launch, node_state, plan=plan, version=version)
        ctx = dataclasses.replace(make_run(launch, node_state, version=version), goes_on=goes_on)
        result = _work(launch, ctx, node_state=node_state)
    if not launch.is_dry:
        closing_look.warn_of_pods(launch.local, call.report)
    launch.print_result(result)
    if call.output == "text" and not launch.is_dry:
        left = list(result.results.remaining or ())
        call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]) if left else _say_end(ctx))
    return 0


def _work(launch: Launch, ctx: upgrade_run.UpgradeRun, *, node_state: State) -> RunResult:
    phases = tuple(phase for phase in launch.call.command.phases if ctx.config.is_control_plane or not phase.on)
    key = _key(launch.call, ctx.config.cluster.kubernetes_version)
    skip = tuple(launch.call.flags.get("skip-phases", ()))
    return launch.work(ctx, node_state, phases=phases, skip=skip, workflow=key)


def _key(call: Invocation, version: str) -> str:
    """The name of this upgrade in the node's state: `upgrade-apply@v1.36.3`."""
    return f"{call.command.workflow}@{version}"


def _say_end(ctx: upgrade_run.UpgradeRun) -> str:
    name, version = ctx.config.node.name, ctx.config.cluster.kubernetes_version
    if ctx.is_first:
        return f"node {name} and the cluster's objects are at {version}; on every other node, the control planes first: kb upgrade node"
    return f"node {name} is at {version}"


# ---- a swap that was cut off


def _continue_swap(launch: Launch, node_state: State, *, version: str) -> bool:
    """Whether there was one. End the swap of an upgrade that was cut off, with what lies on the disk: until then this node's API server may be out.

    Raises HostError (swap-cut-off) if another command began the swap, and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return False
    key = next((one for one in _begun(node_state) if _is_of(cut_off, launch.call, key=one)), "")
    if not key or (version and key != f"{APPLY}@{version}"):
        raise launcher.swap_cut_off(cut_off)
    if launch.is_dry:
        raise HostError(
            f"a swap of {', '.join(cut_off.names)} was cut off on this node",
            cause="its manifests may be out of their places, so what would follow cannot be said",
            remedy=f"let it end first: {' '.join(('kb', launch.call.command.name, *launch.call.words))}",
            code="swap-cut-off",
        )
    ctx = make_cut_off_run(launch, cut_off, version=key.partition("@")[2])
    phases = tuple(phase for phase in launch.call.command.phases if phase.name == CONTROL_PLANE)
    launch.work(ctx, node_state, phases=phases, workflow=key)
    return True


def make_cut_off_run(launch: Launch, cut_off: store.Swap, *, version: str) -> upgrade_run.UpgradeRun:
    """What the phase of the swap works with, from what lies on the disk. version: to which the swap goes."""
    patient = node_files.read_patient(store.with_missing(launch.local, Paths(), texts=cut_off.formers), Paths())
    texts = tuple((pod.name, pod.wanted) for pod in cut_off.pods if pod.is_changed)
    cluster = dataclasses.replace(patient.config.cluster, kubernetes_version=version)
    config = dataclasses.replace(patient.config, cluster=cluster)
    base = launcher.make_run(launch.target, config, paths=patient.paths, report=launch.call.report)
    return _as_upgrade(launch.call, base, former=patient.config.cluster.kubernetes_version, texts=texts)


def _is_of(cut_off: store.Swap, call: Invocation, *, key: str) -> bool:
    """Whether an upgrade of this command began the swap: its pods are of that version."""
    workflow, _, version = key.partition("@")
    tag = re.compile(rf":{re.escape(images.render_tag(version))}(?![\w.-])")
    return workflow == call.command.workflow and any(tag.search(pod.wanted) for pod in cut_off.pods)


def _begun(node_state: State) -> list[str]:
    """The upgrades whose swap was begun and has not ended, by their names in the state."""
    return [
        name.partition("/")[0]
        for name, entry in node_state.phases.items()
        if name.startswith((APPLY, NODE)) and name.endswith(f"/{CONTROL_PLANE}") and entry.status != "done"
    ]


# ---- this node


def make_run(launch: Launch, node_state: State, *, version: str) -> upgrade_run.UpgradeRun:
    """Everything that the phases work with. Raises HostError: not-a-control-plane, kubeconfig-unreadable; ClusterError; UsageError."""
    call = launch.call
    here = look(launch, is_first=bool(version))
    patches = str(Path(call.flags["patches"]).absolute()) if "patches" in call.flags else ""
    former, config = (
        node_config.make_node_config(
            launch.local,
            here.patient.paths,
            own=here.patient.config,
            stored=here.stored,
            join=here.join,
            version=one,
            patches=patches,
        )
        for one in (here.version, version)
    )
    config = dataclasses.replace(config, kb=with_sources(call, config.kb))
    launch.tell(config)
    paths = here.patient.paths
    launcher.require_same_node(node_state, config, paths=paths)
    releases.find_release(config.cluster.kubernetes_version)
    base = launcher.make_run(launch.target, config, paths=paths, report=call.report)
    # the cluster's health shows itself only while one waits, in a dry run too
    caller = dry_run.DryRunHost(launch.local, waits=True) if launch.is_dry else launch.target
    if config.is_control_plane:
        asking = launcher.make_run(caller, config, paths=paths, report=call.report).caller
    else:
        asking = launcher.kubelet_caller(caller, paths)
    base = dataclasses.replace(base, caller=asking)
    keeps = upgrade_outlook.read_keeps(call)
    targets = target.plan_targets(launch.local, paths, former=former, config=config, keep_edits=keeps is not False)
    upgrades_etcd = call.flags.get("etcd-upgrade") != "false"
    chosen = tuple(one for one in targets if upgrades_etcd or one.name != "etcd")
    texts = tuple((one.name, one.wanted) for one in chosen)
    return _as_upgrade(
        call,
        base,
        former=_find_former(launch.local, here, version=config.cluster.kubernetes_version),
        texts=texts,
        targets=chosen,
        keeps=keeps,
    )


def _find_former(local: Host, here: Here, *, version: str) -> str:
    """What this node ran before its upgrade to `version` began, if that was cut off."""
    found = kept.load(local, Paths())
    return found.former if found is not None and found.wanted == version else here.version


def _as_upgrade(
    call: Invocation,
    base: run.Run,
    *,
    former: str,
    texts: tuple[tuple[str, str], ...],
    targets: tuple[target.Target, ...] = (),
    keeps: Optional[bool] = None,
) -> upgrade_run.UpgradeRun:
    is_first = call.command.workflow == APPLY
    words = " ".join(("kb", call.command.name, *call.words))
    return upgrade_run.UpgradeRun(
        **base.values(),
        texts=texts,
        **launcher.of_a_swap(call),
        command=words,
        former=former,
        is_first=is_first,
        targets=targets,
        drains=not call.flags.get("no-drain"),
        drain_s=read_drain_timeout(call),
        keep_edits=keeps,
        renews=call.flags.get("certificate-renewal") != "false",
        upgrades_etcd=call.flags.get("etcd-upgrade") != "false",
        force=bool(call.flags.get("force")),
    )


def with_sources(call: Invocation, kb: types.KbConfiguration) -> types.KbConfiguration:
    """Where new programs and images come from, by the flags."""
    given = {
        name: str(call.flags.get(name) or "") for name in ("bundle", "verify-key", "mirror", "mirror-ca-hash", "preset")
    }
    return dataclasses.replace(
        kb,
        bundle=str(Path(given["bundle"]).absolute()) if given["bundle"] else "",
        verify_key=given["verify-key"],
        mirror=types.Mirror(given["mirror"], given["mirror-ca-hash"]),
        packages=types.Packages(str(call.flags.get("packages") or "auto"), given["preset"]),
    )


def read_drain_timeout(call: Invocation) -> float:
    """--drain-timeout in seconds. Raises UsageError (invalid-duration)."""
    told = call.flags.get("drain-timeout")
    return float(load_init.parse_duration(str(told), "--drain-timeout")) if told else eviction.REFUSED_S


def look(launch: Launch, *, is_first: bool) -> Here:
    """This node, by its own files, and what its cluster stores. is_first: a worker is refused. Raises HostError: not-a-control-plane,
    kubeconfig-unreadable."""
    local = launch.local
    patient = node_files.read_patient(local, Paths())
    paths = patient.paths
    if is_first and not patient.is_control_plane:
        raise HostError(
            "this node is not a control plane",
            cause=f"there is no {paths.manifest('kube-apiserver')}",
            remedy="on a control plane: kb upgrade apply VERSION; then here: kb upgrade node",
            code="not-a-control-plane",
        )
    member = membership.find_member_access(local, paths.kubernetes / "kubelet.conf")
    if member is None:
        raise HostError(
            f"{paths.kubernetes / 'kubelet.conf'} cannot be used",
            cause="it is not there, or holds no certificate that can be read: this machine is no node of a cluster",
            remedy="make it one: kb init, or kb join",
            code="kubeconfig-unreadable",
        )
    join = patient.config.join
    if not patient.is_control_plane:
        api = launcher.kubelet_api(local, paths)
    else:
        server = node_files.find_own_server(local, paths)
        api = kubeapi.Api(local, kubeapi.read_identity(local, paths.admin_conf, server=server), retry_s=20)
        api = _await_server(launch, api, manifest=paths.manifest("kube-apiserver"))
        if foreign_node.has_joined(local, paths):
            join = types.Join(member.server, member.ca_pem, control_plane=types.JoinControlPlane())
    stored = node_config.read_stored(api, is_control_plane=patient.is_control_plane)
    return Here(patient, stored, join)


def _await_server(launch: Launch, api: kubeapi.Api, *, manifest: Path) -> kubeapi.Api:
    """An upgrade that ended half way, another tool's too, may have left this node's etcd or API server on its way up: kubeadm replaces etcd
    under a serving API server, which then answers nothing for about a minute. Returns what asks it: with patience where it answers, since
    the former etcd may still be about to end. If it stays away, the request that follows says why."""

    def look() -> str:
        try:
            answer = api.probe_health("/readyz", timeout_s=_READY_TIMEOUT_S)
        except Unreachable as error:
            return str(error)
        return "" if answer.status < 500 else f"/readyz answers HTTP {answer.status}"

    def tell(missing: str, elapsed: float) -> bool:
        launch.call.report.waiting(say_round("this node's API server", missing, elapsed=elapsed, timeout_s=SERVER_S))
        return not api.host.exists(manifest)

    missing, _ = watch(api.host, look, timeout_s=SERVER_S, is_over=tell)
    return api if missing else kubeapi.Api(api.host, api.identity, retry_s=SERVER_S)
