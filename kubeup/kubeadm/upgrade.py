"""`kubeadm upgrade apply`, `node`, `plan` and `diff`, and their phases, under the name kubeadm.

Owns what they take, print and answer. The work is done by the phases in upgrade_phases.py. Mirrors
cmd/kubeadm/app/cmd/upgrade/{apply,node,plan,diff}.go.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from kubeup import releases
from kubeup.errors import UsageError
from kubeup.json_text import parse_json
from kubeup.kubeadm import upgrade_phases
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import objects, probes
    from kubeup.commands import launcher
    from kubeup.commands import upgrade as commands_upgrade
    from kubeup.config import choose, load_upgrade
    from kubeup.kubeadm import stands_for
    from kubeup.node import images
    from kubeup.phases import addons, static_pods_swap
    from kubeup.swap import proof, store

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.commands.launcher import Launch
    from kubeup.config import types
    from kubeup.phases.upgrade_run import UpgradeRun

_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


def apply(call: Invocation) -> int:
    """`upgrade apply [VERSION]`."""
    if len(call.words) > 1:
        raise UsageError(
            "kubeadm upgrade apply", cause=f"accepts at most 1 arg(s), received {len(call.words)}",
            remedy="name one version", code="usage",
        )  # fmt: skip
    return _apply(call, words=call.words)


def apply_phase(call: Invocation) -> int:
    """`upgrade apply phase NAME...`, with the version behind it or in the configuration."""
    words = [word for word in call.words if releases.parse_version(word) is None]
    return _apply(call, words=[word for word in call.words if word not in words], only="/".join(words))


def _apply(call: Invocation, *, words: Sequence[str], only: str = "") -> int:
    launch = launcher.Launch(call)
    wishes = load_upgrade.load_upgrade_config(
        launch.local, config_file=launch.config_file, flags=_flags(call), section="apply"
    )
    wanted = words[0] if words else wishes.apply.kubernetes_version
    if not wanted and only:  # a single phase works with the version that the cluster has by now
        wanted = stands_for.find_version(launch.local, called=call.program.file)
    if not wanted:
        raise UsageError(
            "missing one or more required arguments. Required arguments: [version]",
            cause="neither the command line nor the configuration names the version to upgrade to",
            remedy="name it: kubeadm upgrade apply v1.36.3",
            code="usage",
        )
    chosen = choose.choose_version(launch.local, wanted)
    if not chosen.value:
        raise UsageError(f"version {wanted!r}", cause=chosen.message, remedy=chosen.remedy, code="unsupported-version")
    ctx = _run(call, wishes.apply, version=chosen.value, only=only)
    if only:
        return 0
    if wishes.apply.dry_run:
        call.print("[upgrade/successful] Finished dryrunning successfully!")
        return 0
    version = ctx.config.cluster.kubernetes_version
    call.print("")
    call.print(f'[upgrade] SUCCESS! A control plane node of your cluster was upgraded to "{version}".\n')
    call.print("[upgrade] Now please proceed with upgrading the rest of the nodes by following the right order.")
    return 0


def node(call: Invocation) -> int:
    return _node(call)


def node_phase(call: Invocation) -> int:
    return _node(call, only="/".join(call.words))


def _node(call: Invocation, *, only: str = "") -> int:
    launch = launcher.Launch(call)
    wishes = load_upgrade.load_upgrade_config(
        launch.local, config_file=launch.config_file, flags=_flags(call), section="node"
    )
    _run(call, wishes.node, version="", only=only)
    if wishes.node.dry_run and not only:
        call.print("[upgrade/successful] Finished dryrunning successfully!")
    return 0


def _flags(call: Invocation) -> dict[str, Any]:
    return {name: value for name, value in call.flags.items() if name not in ("config", "kubeconfig", "output", "yes")}


def _run(call: Invocation, wishes: types.UpgradeNode, *, version: str, only: str) -> UpgradeRun:
    """Run the phases of `upgrade apply` (with a version) or `upgrade node`, or one of them."""
    given: dict[str, Any] = {
        "hand-edits": "drop",
        "yes": True,
        "certificate-renewal": str(wishes.certificate_renewal).lower(),
        "etcd-upgrade": str(wishes.etcd_upgrade).lower(),
        **({"patches": wishes.patches_directory} if wishes.patches_directory else {}),
        **({"dry-run": True} if wishes.dry_run else {}),
        **({"force": True} if getattr(wishes, "force_upgrade", False) else {}),
    }
    launch = launcher.Launch(replace(call, flags=given, words=[version] if version else []))
    skip = [name.replace("uploadconfig", "upload-config") for name in wishes.skip_phases]
    with launch.locked(Paths()) as node_state:
        _tell_reading(call, "upgrade")
        _continue_swap(launch, version=version)
        base = commands_upgrade.make_run(launch, node_state, version=version)
        asks = not (call.flags.get("yes") or given.get("force") or given.get("dry-run"))
        ctx = _as_kubeadm(call, launch, base=base, wishes=wishes, asks=asks)
        launch.work(ctx, node_state, only=only, skip=skip, keeps_journal=False)
    return ctx


def _continue_swap(launch: Launch, *, version: str) -> None:
    """End the swap of an upgrade under this name that was cut off: until then this node's API server may be out. Raises HostError
    (swap-cut-off) if another command began it, and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return
    images = [
        proof.image_of(yaml_files.load_mapping(pod.wanted, pod.name)) for pod in cut_off.pods if pod.name != "etcd"
    ]
    versions = {found.text for image in images if (found := releases.version_of_image(image)) is not None}
    is_own = (
        launch.local.exists(upgrade_phases.folder_mark(Paths())) and len(versions) == 1 and version in ("", *versions)
    )
    if not is_own or launch.is_dry:
        raise launcher.swap_cut_off(cut_off)
    static_pods_swap.swap_pods(commands_upgrade.make_cut_off_run(launch, cut_off, version=versions.pop()))


def _as_kubeadm(
    call: Invocation, launch: Launch, *, base: UpgradeRun, wishes: types.UpgradeNode, asks: bool
) -> upgrade_phases.KubeadmUpgrade:
    kb = replace(base.config.kb, only_kubeadm=True)
    kubeadm_version = stands_for.find_version(launch.local, called=call.program.file, wanted=_version_of(base))
    return upgrade_phases.KubeadmUpgrade(
        **replace(base, config=replace(base.config, kb=kb)).values(),
        kubeadm_version=kubeadm_version,
        cluster_version=_read_cluster_version(base) if base.config.is_control_plane else "",
        stamp=f"{launch.local.now():%Y-%m-%d-%H-%M-%S}",
        asks=asks,
        ignored=wishes.ignore_preflight_errors,
        allows_experimental=getattr(wishes, "allow_experimental_upgrades", False),
        allows_candidates=getattr(wishes, "allow_rc_upgrades", False),
        pull_policy=wishes.image_pull_policy,
        pulls_serially=wishes.image_pull_serial,
    )


def _version_of(base: UpgradeRun) -> str:
    return base.config.cluster.kubernetes_version


def _read_cluster_version(base: UpgradeRun) -> str:
    answer = base.api.probe_health("/version")
    try:
        found = parse_json(answer.body, "the version")
    except ValueError:
        return base.former
    return str(found.get("gitVersion") or base.former) if isinstance(found, dict) else base.former


# ---- diff


def diff(call: Invocation) -> int:
    """The manifests on disk, and as they would be written for the new version, as unified diffs."""
    launch = launcher.Launch(call)
    wishes = load_upgrade.load_upgrade_config(
        launch.local, config_file=launch.config_file, flags=_flags(call), section="diff"
    )
    base = _look(call, wanted=call.words[0] if call.words else wishes.diff.kubernetes_version)
    _tell_reading(call, "upgrade/diff")
    for one in base.targets:
        if one.name in _COMPONENTS and one.is_changed:
            path = base.paths.manifest(one.name)
            shown = difflib.unified_diff(
                one.former.splitlines(keepends=True), one.wanted.splitlines(keepends=True),
                fromfile=str(path), tofile="new manifest", n=wishes.diff.context_lines,
            )  # fmt: skip
            call.print("".join(shown))
    return 0


def _tell_reading(call: Invocation, prefix: str) -> None:
    call.print(f'[{prefix}] Reading configuration from the "kubeadm-config" ConfigMap in namespace "kube-system"...')
    call.print(f"[{prefix}] Use 'kubeadm init phase upload-config kubeadm --config your-config-file' to re-upload it.")


def _look(call: Invocation, *, wanted: str) -> UpgradeRun:
    """The run of an upgrade to this version ("": the one that kubeadm stands for), with which nothing is run."""
    local = launcher.open_host(call)
    named = wanted or stands_for.find_version(local, called=call.program.file)
    chosen = choose.choose_version(local, named)
    if not chosen.value:
        raise UsageError(f"version {named!r}", cause=chosen.message, remedy=chosen.remedy, code="unsupported-version")
    command = replace(call.command, workflow="upgrade-apply")
    flags = {"hand-edits": "drop", "yes": True, "dry-run": True}
    launch = launcher.Launch(replace(call, command=command, flags=flags, words=[chosen.value]))
    return commands_upgrade.make_run(launch, launch.open_state(Paths()), version=chosen.value)


# ---- plan

_LINE = "_" * 69
_HEAD = ("COMPONENT", "NODE", "CURRENT", "TARGET")


def plan(call: Invocation) -> int:
    """What runs, and what would after an upgrade: as kubeadm's tables, or as an UpgradePlan (-o json, yaml)."""
    launch = launcher.Launch(call)
    wishes = load_upgrade.load_upgrade_config(
        launch.local, config_file=launch.config_file, flags=_flags(call), section="plan"
    )
    told = call.words[0] if call.words else wishes.plan.kubernetes_version
    base = _look(call, wanted=told)
    own, cluster = stands_for.find_version(launch.local, called=call.program.file), _read_cluster_version(base)
    is_text = call.output == "text"
    if is_text:
        call.print("[preflight] Running pre-flight checks.")
        _tell_reading(call, "upgrade/config")
        call.print("[upgrade] Running cluster health checks")
        call.print("[upgrade] Fetching available versions to upgrade to")
        call.print(f"[upgrade/versions] Cluster version: {cluster.removeprefix('v')}")
        call.print(f"[upgrade/versions] kubeadm version: {own}")
        call.print(f"[upgrade/versions] Target version: {_version_of(base)}")
    components = _read_components(base, own, wants_etcd=wishes.plan.etcd_upgrade)
    found, wanted = releases.parse_version(cluster), releases.parse_version(_version_of(base))
    has_upgrade = found is None or wanted is None or wanted.key > found.key
    value = {
        "kind": "UpgradePlan",
        "apiVersion": "output.kubeadm.k8s.io/v1alpha3",
        "availableUpgrades": [{"description": _describe(found, wanted), "components": components}]
        if has_upgrade
        else [],
        "configVersions": _CONFIGS,
    }
    if not is_text:
        call.print(yaml_files.dump_yaml(value) if call.output == "yaml" else json.dumps(value, indent=4))
    elif has_upgrade:
        _print_plan(call, components, version=_version_of(base), description=_describe(found, wanted))
    return 0


_VERSIONS = (("kubeproxy.config.k8s.io", "v1alpha1"), ("kubelet.config.k8s.io", "v1beta1"))
_CONFIGS = [
    {"group": group, "currentVersion": version, "preferredVersion": version, "manualUpgradeRequired": False}
    for group, version in _VERSIONS
]


def _describe(found: Optional[releases.Version], wanted: Optional[releases.Version]) -> str:
    if found is None or wanted is None:
        return "stable version"
    return f"version in the v1.{found.minor} series" if found.minor == wanted.minor else "stable version"


def _read_components(base: UpgradeRun, own: str, *, wants_etcd: bool) -> list[dict[str, str]]:
    version = _version_of(base)
    rows = [("kubelet", probes.kubelet_version(one), version, one) for one in base.api.list(kubeapi.path_of("Node"))]
    found = [_row(name, now, new, str(one["metadata"]["name"])) for name, now, new, one in rows]
    etcd = images.image_of("etcd", base.config.cluster, release=base.release).tag
    for name in _COMPONENTS:
        found += _pods_of(base, name, new=version)
    dns = images.image_of("coredns", base.config.cluster, release=base.release).tag
    found += [
        _row("kube-proxy", base.former, version, ""),
        _row("CoreDNS", addons.read_running_dns(base).tag, dns, ""),
        _row("kubeadm", own, version, ""),
    ]
    return found + (_pods_of(base, "etcd", new=etcd) if wants_etcd and base.config.cluster.local_etcd else [])


def _row(name: str, now: str, new: str, node_name: str) -> dict[str, str]:  # noqa: PLR0917
    return {"name": name, "currentVersion": now, "newVersion": new, "nodeName": node_name}


def _pods_of(base: UpgradeRun, name: str, *, new: str) -> list[dict[str, str]]:
    pods = base.api.list(kubeapi.path_of("Pod", namespace=objects.SYSTEM), label=f"component={name}")
    found = []
    for pod in pods:
        image = proof.image_of({**pod, "metadata": {"name": name}})  # a mirror pod's own name has the node's behind it
        found.append(_row(name, image.rpartition(":")[2], new, str(pod["spec"].get("nodeName", ""))))
    return sorted(found, key=lambda row: (row["currentVersion"], row["nodeName"]))


def _print_plan(call: Invocation, components: Sequence[dict[str, str]], *, version: str, description: str) -> None:
    call.print("")
    call.print(
        "Components that must be upgraded manually after you have upgraded the control plane with 'kubeadm upgrade apply':"
    )
    _print_table(call, [row for row in components if row["name"] == "kubelet"])
    call.print(f"\nUpgrade to the latest {description}:\n\n")
    _print_table(call, [row for row in components if row["name"] not in ("kubelet", "kubeadm")])
    call.print("\nYou can now apply the upgrade by executing the following command:\n\n")
    call.print(f"\tkubeadm upgrade apply {version}\n\n")
    (own,) = [row["currentVersion"] for row in components if row["name"] == "kubeadm"]
    if own != version:
        call.print(f"Note: Before you can perform this upgrade, you have to update kubeadm to {version}.\n")
    call.print(_LINE + "\n\n")
    call.print(
        "The configurations of the kubelet and of kube-proxy, and whether somebody has to convert them by hand first:\n"
    )
    head = ("API GROUP", "CURRENT VERSION", "PREFERRED VERSION", "MANUAL UPGRADE REQUIRED")
    rows = [(one[0], one[1], one[1], "no") for one in _VERSIONS]
    _print_rows(call, [head, *rows])
    call.print(_LINE + "\n")


def _print_table(call: Invocation, components: Sequence[dict[str, str]]) -> None:
    rows = [(row["name"], row["nodeName"], row["currentVersion"], row["newVersion"]) for row in components]
    _print_rows(call, [_HEAD, *rows])


def _print_rows(call: Invocation, rows: Sequence[Sequence[str]]) -> None:
    """Columns as Go's tabwriter has them: at least 10 wide, with 3 spaces between."""
    widths = [max(10, *(len(row[index]) + 3 for row in rows)) for index in range(len(rows[0]) - 1)]
    for row in rows:
        call.print("".join(text.ljust(width) for text, width in zip(row, widths)) + row[-1])
