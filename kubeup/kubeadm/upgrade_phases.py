"""The phases of `upgrade apply` and `upgrade node` under the name kubeadm, with kubeadm's lines.

What replaces the static pods is kb's swap, so success means that the new pods work. Everything else has kubeadm's limits: nothing is
drained, the kubelet's program stays, what is replaced is kept below /etc/kubernetes/tmp, and hand edits of manifests are dropped.
Mirrors cmd/kubeadm/app/cmd/phases/upgrade/** and cmd/kubeadm/app/phases/upgrade/*.go.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kubeup import releases
from kubeup.cluster.objects import CONTROL_PLANE_LABELS
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.step import Phase
from kubeup.errors import ClusterError, PreflightError, UsageError
from kubeup.frozen_values import frozen_by_name
from kubeup.kubeadm.lines import KubeadmReport, Speech, speaking
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap, upgrade_addons, upgrade_control_plane, upgrade_rights
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.yaml_files import format_duration

with lazily:
    from kubeup.cluster import api, health, probes
    from kubeup.diagnosis.checks import facts, table
    from kubeup.diagnosis.checks import machine as machine_checks
    from kubeup.engine import compare
    from kubeup.node import image_pulls, images, kubelet
    from kubeup.phases import addons, kubelet_start
    from kubeup.swap import store
    from kubeup.upgrade import corefile, policy, survey

MANIFESTS_S = 300
"""kubeadm's default of timeouts.upgradeManifests, which its lines name."""
COMPONENT_CERTS = {
    "etcd": ("etcd-server", "etcd-peer", "etcd-healthcheck-client"),
    "kube-apiserver": ("apiserver", "apiserver-kubelet-client", "front-proxy-client", "apiserver-etcd-client"),
    "kube-controller-manager": ("controller-manager.conf",),
    "kube-scheduler": ("scheduler.conf",),
}
_UNWANTED_FLAG = "pod-infra-container-image"


@frozen_by_name
class KubeadmUpgrade(UpgradeRun):
    """kubeadm_version: what `kubeadm version` answers. stamp: in the names of backups, `2026-11-30-03-09-00`. asks: whether to ask for
    consent before anything is changed. cluster_version: as this node's API server says; "" on a worker."""

    kubeadm_version: str
    cluster_version: str
    stamp: str
    asks: bool
    ignored: tuple[str, ...] = ()
    allows_experimental: bool = False
    allows_candidates: bool = False
    pull_policy: str = "IfNotPresent"
    pulls_serially: bool = True


def _say(ctx: UpgradeRun, text: str) -> None:
    assert isinstance(ctx.report, KubeadmReport)
    ctx.report.say(text)


def _is_dry(ctx: UpgradeRun) -> bool:
    return ctx.host.mode == "dry-run"


def _version(ctx: UpgradeRun) -> str:
    return ctx.config.cluster.kubernetes_version


# ---- preflight


def check_apply(ctx: KubeadmUpgrade) -> Outputs:
    """Raises PreflightError (preflight-upgrade), UsageError (upgrade-refused, not-confirmed), ImagePullError, and those of check_swap."""
    _say(ctx, "[upgrade/preflight] Running preflight checks")
    _judge(ctx, machine_checks.find_ordinary_user(ctx.host))
    _judge(ctx, _find_dns_trouble(ctx))
    _say(ctx, "[upgrade] Running cluster health checks")
    _judge(ctx, _find_ill_health(ctx))
    _say(ctx, f'[upgrade/preflight] You have chosen to upgrade the cluster version to "{_version(ctx)}"')
    _say(ctx, f"[upgrade/versions] Cluster version: {ctx.cluster_version}")
    _say(ctx, f"[upgrade/versions] kubeadm version: {ctx.kubeadm_version}")
    _judge_versions(ctx)
    if ctx.asks and not _is_dry(ctx):
        _confirm()
    _pull(ctx, "preflight")
    return None if _is_dry(ctx) else static_pods_swap.check_swap(ctx)


def check_node(ctx: KubeadmUpgrade) -> Outputs:
    """Raises PreflightError (preflight-upgrade), ImagePullError, and those of check_swap."""
    _say(ctx, "[upgrade/preflight] Running pre-flight checks")
    _judge(ctx, machine_checks.find_ordinary_user(ctx.host))
    if not ctx.config.is_control_plane:
        _say(ctx, "[upgrade/preflight] Skipping prepull. Not a control plane node.")
        return None
    _pull(ctx, "upgrade/preflight")
    return None if _is_dry(ctx) else static_pods_swap.check_swap(ctx)


def _judge(ctx: KubeadmUpgrade, findings: Iterable[facts.Finding]) -> None:
    errors, warnings = table.judge_findings(findings, table.parse_ignored(ctx.ignored))
    for warning in warnings:
        ctx.report.warn(str(warning))
    if errors:
        raise PreflightError(
            "this node cannot be upgraded",
            cause="checks before the upgrade failed; nothing was changed",
            remedy=errors[0].remedy,
            code="preflight-upgrade",
            details=[str(error) for error in errors],
        )


def _find_dns_trouble(ctx: KubeadmUpgrade) -> Iterator[facts.Finding]:
    """Why CoreDNS' Corefile cannot be carried over."""
    if ctx.config.cluster.dns.disabled:
        return
    running = addons.read_running_dns(ctx)
    if not running.tag:
        return
    wanted = images.image_of("coredns", ctx.config.cluster, release=ctx.release).tag
    try:
        corefile.migrate(running.corefile, former=running.tag, wanted=wanted)
    except ClusterError as error:
        is_plugin = error.code == "corefile-plugin-unknown"
        name = "CoreDNSUnsupportedPlugins" if is_plugin else "CoreDNSMigration"
        yield facts.Finding(name, facts.ERROR, str(error), error.remedy)


def _find_ill_health(ctx: KubeadmUpgrade) -> Iterator[facts.Finding]:
    """kubeadm runs a Job; a dry run of a pod asks admission the same, and leaves nothing behind."""
    for part in health.probe_admission(ctx.api):
        if part.trouble is not None:
            yield facts.Finding("CreateJob", facts.ERROR, str(part.trouble), part.trouble.remedy)
    (label, *_) = CONTROL_PLANE_LABELS
    nodes = ctx.api.list(api.path_of("Node"), label=label)
    lost = sorted(str(node["metadata"]["name"]) for node in nodes if probes.node_condition(node)[0] != "True")
    if lost:
        told = f"there are NotReady control-planes in the cluster: [{' '.join(lost)}]"
        yield facts.Finding("ControlPlaneNodesReady", facts.ERROR, told, f"see why: kubectl describe node {lost[0]}")
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        path = ctx.paths.manifest(name)
        if not ctx.host.exists(path):
            told = f"missing static pod manifest {path}"
            yield facts.Finding(
                "StaticPodManifest", facts.ERROR, told, f"write it: kubeadm init phase control-plane {name}"
            )


def _judge_versions(ctx: KubeadmUpgrade) -> None:
    """kubeadm's rules in kubeadm's words. Raises UsageError (upgrade-version-refused)."""
    target, cluster, kubeadm = map(releases.parse_version, (_version(ctx), ctx.cluster_version, ctx.kubeadm_version))
    if target is None or cluster is None or kubeadm is None:
        raise UsageError(
            "the version argument is invalid",
            cause=f"of {_version(ctx)!r}, {ctx.cluster_version!r} and {ctx.kubeadm_version!r} not all are versions",
            remedy="name a version: kubeadm upgrade apply v1.36.3",
            code="upgrade-version-refused",
        )
    seen = [survey.Seen(survey.KUBELET, probes.kubelet_version(node)) for node in ctx.api.list(api.path_of("Node"))]
    wish = policy.Wish(target, ctx.release, "", ctx.allows_experimental, ctx.allows_candidates)
    verdict = policy.judge_as_kubeadm(survey.Versions(tuple(seen)), wish, kubeadm=kubeadm, cluster=cluster)
    if verdict.mandatory:
        raise _refused(
            "fatal errors", verdict.mandatory, "Please fix the misalignments highlighted above and try upgrading again"
        )
    if verdict.skippable and not ctx.force:
        raise _refused("errors", verdict.skippable, "Can be bypassed if you pass the --force flag")
    if verdict.skippable:
        told = "".join(f"\t- {text}\n" for text in verdict.skippable)
        _say(
            ctx,
            f"[upgrade/preflight] Found {len(verdict.skippable)} potential version compatibility errors but skipping since "
            f"the --force flag is set: \n\n{told}",
        )


def _refused(what: str, texts: Sequence[str], end: str) -> UsageError:  # noqa: PLR0917
    return UsageError(
        f"the version argument is invalid due to these {what}",
        cause="\n\n" + "".join(f"\t- {text}\n" for text in texts),
        remedy=end,
        code="upgrade-version-refused",
    )


def _confirm() -> None:
    with contextlib.suppress(OSError):
        sys.stdout.write("[upgrade] Are you sure you want to proceed? [y/N]: ")
        sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(
            "won't proceed",
            cause="the question was not answered with y; the user didn't answer (Y|y) in order to continue",
            remedy="kubeadm upgrade apply --yes, with the version",
            code="not-confirmed",
        )


def _pull(ctx: KubeadmUpgrade, dry: str) -> None:
    if _is_dry(ctx):
        head = "[dryrun]" if dry == "preflight" else "[upgrade/preflight]"
        _say(ctx, f"{head} Would pull the required images (like 'kubeadm config images pull')")
        return
    _say(ctx, "[upgrade/preflight] Pulling images required for setting up a Kubernetes cluster")
    _say(ctx, "[upgrade/preflight] This might take a minute or two, depending on the speed of your internet connection")
    _say(ctx, "[upgrade/preflight] You can also perform this action beforehand using 'kubeadm config images pull'")
    names = [image.ref for image in images.list_images(ctx.config.cluster, ctx.release)]
    pulled = image_pulls.ensure_images(
        ctx.host,
        ctx.config.node.cri_socket,
        names=names,
        policy=ctx.pull_policy,
        is_serial=ctx.pulls_serially,
        tell=ctx.report.waiting,
    )
    for failure in pulled.failed:
        raise failure


# ---- control-plane


def swap_control_plane(ctx: KubeadmUpgrade) -> Outputs:
    """Keep the former manifests in kubeadm's folder, then swap the pods that differ. Raises KbError after the way back."""
    if not ctx.config.is_control_plane:
        _say(ctx, "[upgrade/control-plane] Skipping phase. Not a control plane node.")
        return None
    limit = f" (timeout: {format_duration(MANIFESTS_S)})" if ctx.is_first else ""
    instance = "" if ctx.is_first else " instance"
    head = f'Upgrading your Static Pod-hosted control plane{instance} to version "{_version(ctx)}"{limit}...'
    _say(ctx, f"[upgrade/control-plane] {head.replace('Static', 'static', 1) if ctx.is_first else head}")
    swap = static_pods_swap.plan_swap(ctx)
    temporary = ctx.paths.kubernetes / "tmp" / f"kubeadm-upgraded-manifests{random.randrange(10**9)}"  # noqa: S311
    _say(ctx, f'[upgrade/staticpods] Writing new Static Pod manifests to "{temporary}"')
    kept = ctx.paths.kubernetes / "tmp" / f"kubeadm-backup-manifests-{ctx.stamp}"
    changed = set(swap.names)
    _keep_manifests(ctx, swap, kept)
    compare.make_so(upgrade_rights.plan_bindings(ctx), ctx)
    _mark_folder(ctx)
    upgrade_control_plane.swap_control_plane(ctx)
    for name in [name for name in COMPONENT_CERTS if ctx.host.exists(ctx.paths.manifest(name))]:
        if name != "etcd" or ctx.upgrades_etcd:
            _tell_component(ctx, name, changed=changed, kept=kept)
    _forget_swap(ctx)
    _say(ctx, "[upgrade/control-plane] The control plane instance for this node was successfully upgraded!")
    return None


def foretell_control_plane(ctx: KubeadmUpgrade) -> Outputs:
    if not ctx.config.is_control_plane:
        return swap_control_plane(ctx)
    _say(ctx, f'[dryrun] Would upgrade your static Pod-hosted control plane to version "{_version(ctx)}"')
    return static_pods_swap.foretell_swap(ctx)


def _make_private(ctx: KubeadmUpgrade, folder: Path) -> None:
    """A folder below kubeadm's own, both for root alone if they are new."""
    for one in (folder.parent, folder):
        ctx.host.make_dir(one, mode=0o700)


def _keep_manifests(ctx: KubeadmUpgrade, swap: store.Swap, kept: Path) -> None:  # noqa: PLR0917
    _make_private(ctx, kept)
    for pod in swap.pods:
        ctx.host.write_file(kept / ctx.paths.manifest(pod.name).name, pod.former, mode=0o600)


def _tell_component(ctx: KubeadmUpgrade, name: str, *, changed: Iterable[str], kept: Path) -> None:
    _say(ctx, f'[upgrade/staticpods] Preparing for "{name}" upgrade')
    if name not in changed:
        _say(ctx, f"[upgrade/staticpods] Current and new manifests of {name} are equal, skipping upgrade")
        return
    for cert in COMPONENT_CERTS[name] if ctx.renews else ():
        if ctx.config.cluster.external_etcd is None or cert != "apiserver-etcd-client":
            _say(ctx, f"[upgrade/staticpods] Renewing {cert} certificate")
    path = ctx.paths.manifest(name)
    _say(
        ctx,
        f'[upgrade/staticpods] Moving new manifest to "{path}" and backing up old manifest to "{kept / path.name}"',
    )
    _say(ctx, "[upgrade/staticpods] Waiting for the kubelet to restart the component")
    _say(ctx, f"[upgrade/staticpods] This can take up to {format_duration(MANIFESTS_S)}")
    _say(ctx, f"[apiclient] Found 1 Pods for label selector component={name}")
    _say(ctx, f'[upgrade/staticpods] Component "{name}" upgraded successfully!')
    if name == "etcd":
        _say(ctx, "[upgrade/etcd] Waiting for etcd to become available")


def _mark_folder(ctx: KubeadmUpgrade) -> None:
    """Note that kb's folder is there for this swap alone, where there is none yet: a run that is cut off leaves it to the next."""
    if not ctx.host.is_dir(ctx.paths.state_dir) and not _is_dry(ctx):
        ctx.host.make_dir(ctx.paths.state_dir, mode=0o700)
        ctx.host.write_file(folder_mark(ctx.paths), "", mode=0o600)


def folder_mark(paths: Paths) -> Path:
    """The file that says so."""
    return paths.state_dir / "of-kubeadm-upgrade"


def _forget_swap(ctx: KubeadmUpgrade) -> None:
    """Under this name nothing of kb's stays on the node (docs/adr/0007). kb's own folder stays where there was one."""
    if ctx.host.exists(folder_mark(ctx.paths)):
        ctx.host.remove_tree(ctx.paths.state_dir)


# ---- kubelet


def write_kubelet_config(ctx: KubeadmUpgrade) -> Outputs:
    """The kubelet's configuration for the new version. The kubelet itself goes on with the former one until it is restarted."""
    kept = ctx.paths.kubernetes / "tmp" / f"kubeadm-kubelet-config-{ctx.stamp}" / ctx.paths.kubelet_config.name
    if _is_dry(ctx):
        _say(ctx, f"[dryrun] Would back up kubelet config file to {kept}")
    else:
        _say(ctx, f"[upgrade] Backing up kubelet config file to {kept}")
    _keep_file(ctx, ctx.paths.kubelet_config, kept)
    files = kubelet_start.render_kubelet_files(ctx, kubelet_start.shared_kubelet_config(ctx))
    instance = ctx.paths.kubelet_instance_config
    if instance in files and not ctx.host.exists(instance):
        _move_socket(ctx, files[instance])
    _say(ctx, f'[kubelet-start] Writing kubelet configuration to file "{ctx.paths.kubelet_config}"')
    ctx.host.write_file(ctx.paths.kubelet_config, files[ctx.paths.kubelet_config], keeps=True)
    _say(ctx, "[upgrade/kubelet-config] The kubelet configuration for this node was successfully upgraded!")
    return None


def _move_socket(ctx: KubeadmUpgrade, instance: str) -> None:
    """The runtime's socket from a flag into the file of its own (NodeLocalCRISocket)."""
    path = ctx.paths.kubelet_flags_env
    flags = kubelet.parse_flags_env(ctx.host.read_text(path) if ctx.host.exists(path) else "")
    left = [flag for flag in flags if flag.name != "container-runtime-endpoint"]
    if len(left) < len(flags):
        _say(ctx, f'[kubelet-start] Writing kubelet environment file with flags to file "{path}"')
        ctx.host.write_file(path, kubelet.render_flags_env(left), keeps=True)
    _say(ctx, f'[kubelet-start] Writing kubelet configuration to file "{ctx.paths.kubelet_instance_config}"')
    ctx.host.write_file(ctx.paths.kubelet_instance_config, instance)


def remove_unwanted_flags(ctx: KubeadmUpgrade) -> Outputs:
    """Take a flag out of kubeadm-flags.env that the new kubelet does not start with."""
    path = ctx.paths.kubelet_flags_env
    flags = kubelet.parse_flags_env(ctx.host.read_text(path) if ctx.host.exists(path) else "")
    left = [flag for flag in flags if flag.name != _UNWANTED_FLAG]
    if ctx.release.pod_infra_container_image_flag or len(left) == len(flags):
        return None
    if _is_dry(ctx):
        _say(ctx, f"[dryrun] Would remove unwanted kubelet flags [{_UNWANTED_FLAG}] from {path.name}")
        return None
    kept = ctx.paths.kubernetes / "tmp" / f"kubeadm-kubelet-env{random.randrange(10**9)}" / path.name  # noqa: S311
    _say(ctx, f"[upgrade] Backing up kubelet env file to {kept}")
    _keep_file(ctx, path, kept)
    _say(ctx, f'[kubelet-start] Writing kubelet environment file with flags to file "{path}"')
    ctx.host.write_file(path, kubelet.render_flags_env(left), keeps=True)
    return None


def _keep_file(ctx: KubeadmUpgrade, path: Path, kept: Path) -> None:  # noqa: PLR0917
    _make_private(ctx, kept.parent)
    found = ctx.host.stat(ctx.host.real_path(path))
    ctx.host.write_file(kept, ctx.host.read_bytes(path), mode=found.mode & 0o777 if found else 0o600)


# ---- the tables


def _upload_kubelet(ctx: Run) -> list[str]:
    return [
        '[kubelet] Creating a ConfigMap "kubelet-config" in namespace kube-system with the configuration for the kubelets '
        "in the cluster"
    ]


def _addon(name: str, addon: str) -> Speech:
    def skips(ctx: Run) -> str:
        cluster = ctx.config.cluster
        is_off = cluster.dns.disabled if addon == "coredns" else cluster.proxy.disabled
        prefix = f"[upgrade/addon] Skipping the addon/{addon} phase."
        if not ctx.config.is_control_plane:
            return f"{prefix} Not a control plane node."
        return f"{prefix} The addon is disabled." if is_off else ""

    def after(ctx: Run, handed: Results, took: float) -> list[str]:  # noqa: PLR0917
        told = skips(ctx)
        if told:
            return [told]
        assert isinstance(ctx, UpgradeRun)
        left = [text.partition(" ")[0] for text in upgrade_addons.find_lagging(ctx)]
        if left:
            return [
                f"[upgrade/addon] Skipping upgrade of addons because control plane instances [{' '.join(left)}] have not "
                "been upgraded"
            ]
        return [f"[addons] Applied essential addon: {name}"]

    return Speech(after=after)


_RIGHTS = (
    "Configured RBAC rules to allow Node Bootstrap tokens to get nodes",
    "Configured RBAC rules to allow Node Bootstrap tokens to post CSRs in order for nodes to get long term certificate credentials",
    "Configured RBAC rules to allow the csrapprover controller automatically approve CSRs from a Node Bootstrap Token",
    "Configured RBAC rules to allow certificate rotation for all node client certificates in the cluster",
    "Configured RBAC rules to allow the API server kubelet client certificate to access the kubelet API",
)
_LINES = {
    "upload-config/kubeadm": Speech(
        lambda ctx: [
            '[upload-config] Storing the configuration used in ConfigMap "kubeadm-config" in the "kube-system" Namespace'
        ]
    ),
    "upload-config/kubelet": Speech(_upload_kubelet),
    "kubeconfig": Speech(
        after=lambda ctx, handed, took: (
            ["[upgrade/kubeconfig] The kubeconfig files for this node were successfully upgraded!"]
            if ctx.config.is_control_plane
            else ["[upgrade/kubeconfig] Skipping phase. Not a control plane node."]
        )
    ),
    "bootstrap-token": Speech(
        lambda ctx: ["[upgrade/bootstrap-token] Configuring bootstrap token and cluster-info RBAC rules"],
        lambda ctx, handed, took: [f"[bootstrap-token] {text}" for text in _RIGHTS],
    ),
    "addon/coredns": _addon("CoreDNS", "coredns"),
    "addon/kube-proxy": _addon("kube-proxy", "kube-proxy"),
}


def _on_control_planes(plan: Callable[[UpgradeRun], Plan]) -> Callable[[UpgradeRun], Plan]:
    return lambda run: plan(run) if run.config.is_control_plane else Plan()


_KUBELET = Phase(
    "kubelet-config", "Upgrade the kubelet configuration for this node", act=write_kubelet_config, live="node"
)
_ADDONS = (
    Phase("addon/coredns", "Upgrade the CoreDNS addon", plan=_on_control_planes(upgrade_addons.plan_coredns)),
    Phase("addon/kube-proxy", "Upgrade the kube-proxy addon", plan=_on_control_planes(upgrade_addons.plan_kube_proxy)),
)
_KUBECONFIG = Phase(
    "kubeconfig",
    "Upgrade kubeconfig files for this node",
    plan=_on_control_planes(upgrade_control_plane.plan_kubelet_server),
    hidden=True,
)
_POST = Phase("post-upgrade", "Run post upgrade tasks", act=remove_unwanted_flags, live="node")
_SWAP = Phase(
    "control-plane",
    "Upgrade the control plane",
    act=swap_control_plane,
    foretell=foretell_control_plane,
    live="node",
)


def _speaking(*phases: Phase) -> tuple[Phase, ...]:
    return tuple(speaking(phase, _LINES) for phase in phases)


APPLY = _speaking(
    Phase("preflight", "Run preflight checks before upgrade", act=check_apply, live="node"),
    _SWAP,
    Phase("upload-config/kubeadm", "Upload the kubeadm ClusterConfiguration to a ConfigMap", plan=upgrade_control_plane.plan_stored_version),
    Phase("upload-config/kubelet", "Upload the kubelet configuration to a ConfigMap", plan=upgrade_control_plane.plan_kubelet_config),
    _KUBECONFIG,
    _KUBELET,
    Phase("bootstrap-token", "Configures bootstrap token and cluster-info RBAC rules", plan=upgrade_rights.plan_bootstrap_rights),
    *_ADDONS,
    _POST,
)  # fmt: skip
NODE = _speaking(
    Phase("preflight", "Run upgrade node pre-flight checks", act=check_node, live="node"),
    replace(_SWAP, does="Upgrade the control plane instance deployed on this node, if any"),
    _KUBECONFIG,
    _KUBELET,
    *_ADDONS,
    _POST,
)
