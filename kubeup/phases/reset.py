"""The phases of reset: stop what runs, unmount, and take back what the journal says kb made.

Mirrors cmd/kubeadm/app/cmd/phases/reset/cleanupnode.go in order; unlike it, kb removes what it made and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup import yaml_files
from kubeup.engine.run import BareRun, Outputs
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services

with lazily:
    from kubeup.airgap import distro_packages
    from kubeup.cluster import etcd, probes
    from kubeup.engine import state, undo
    from kubeup.network import pod_network
    from kubeup.node import containers, kubelet, runtime
    from kubeup.phases import install_programs, kernel, load_balancer, serve_mirror


_DEAD = ("no-socket", "refused", "timeout")
"""What a runtime that does not run shows: nothing that is asked of it gets an answer."""
BOOT_LINKS = (
    Path("/etc/systemd/system/multi-user.target.wants/kubelet.service"),
    Path("/etc/runlevels/default/kubelet"),
)
"""What enabling the kubelet makes, by service manager."""
KUBELET_ENTRIES = (
    "actuated_pods_state",
    "allocated_pods_state",
    "checkpoints",
    "cpu_manager_state",
    "device-plugins",
    "dra_manager_state",
    "image_manager",
    "memory_manager_state",
    "pki",
    "plugin-containers",
    "plugins",
    "plugins_registry",
    "pod-resources",
    "pod_status_manager_state",
    "pods",
)
"""What the kubelets of all minors write into their folder themselves. What else lies there is an admin's."""


@frozen_by_name
class ResetRun(BareRun):
    """A run that takes back a node: of the node itself it knows how its runtime is reached."""

    cri_socket: str


def read_etcd_pod(ctx: ResetRun) -> Optional[dict[str, Any]]:
    """This node's static pod of etcd; None where there is none, or nothing in its file."""
    path = ctx.paths.manifest("etcd")
    if not ctx.host.exists(path):
        return None
    try:
        return _load_pod(ctx, path) or None
    except HostError as error:  # what is damaged goes with the rest
        ctx.report.warn_once(f"{error.what}: {error.cause}")
        return None


def _load_pod(ctx: ResetRun, manifest: Path) -> dict[str, Any]:
    """Raises HostError (not-a-yaml-mapping)."""
    return yaml_files.load_mapping(ctx.host.read_text(manifest), str(manifest))


def find_etcd_data(ctx: ResetRun, pod: Optional[dict[str, Any]]) -> Path:
    """Where etcd has its data: its static pod says so."""
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # a file that somebody changed has any shape
        for volume in (pod or {}).get("spec", {}).get("volumes") or ():
            if volume.get("name") == "etcd-data":
                return Path(volume["hostPath"]["path"])
    return ctx.paths.etcd_data


def find_kubelet_roots(ctx: ResetRun) -> tuple[Path, ...]:
    """Where this node's kubelet keeps its pods: its --root-dir, if it was told one, and its default."""
    path = ctx.paths.kubelet_flags_env
    text = ctx.host.read_text(path) if ctx.host.exists(path) else ""
    told = [
        Path(arg.value) for arg in kubelet.parse_flags_env(text) if arg.name == "root-dir" and arg.value.startswith("/")
    ]
    return tuple(dict.fromkeys((*told, ctx.paths.kubelet)))


def _is_kubelet_of_kb(ctx: ResetRun) -> bool:
    """Whether kb gave the kubelet its work. Else it, its pods and their mounts belong to somebody else's cluster."""
    made = state.load_state(ctx.host, ctx.paths).created_paths()
    work = (ctx.paths.kubelet_config, *(ctx.paths.manifest(name) for name in ("etcd", *probes.COMPONENTS)))
    is_of_kb = any(str(path) in made for path in work)
    if not is_of_kb:
        ctx.report.note("kb did not set up this node's kubelet: it and its pods stay as they are")
    return is_of_kb


def remove_etcd_member(ctx: ResetRun) -> Outputs:
    """The other members must not count on one that is gone. Where etcd does not let go of it, that is said, with what
    to do, and reset goes on: the node is wanted back.

    Raises ClusterError (etcd-would-stop) where the cluster lives and would die of it.
    """
    manifest, node_state = ctx.paths.manifest("etcd"), state.load_state(ctx.host, ctx.paths)
    if str(manifest) not in node_state.created_paths() or not ctx.host.exists(manifest):
        for promised in node_state.compensations(etcd.MEMBERSHIP):
            _strike_out(ctx, promised)
        return None
    try:
        leave_etcd(ctx, manifest)
    except KbError as error:
        if _others_need_it(ctx, manifest):
            raise ClusterError(
                "without this node etcd would have no quorum, and the cluster would stop",
                cause=f"its member could not be taken out of the list: {error}",
                remedy="start the machines of the members that are away, or remove those that are lost (kb etcd members, kb "
                "etcd remove); to give the whole cluster up: kb reset --skip-phases remove-etcd-member",
                code="etcd-would-stop",
            ) from error
        ctx.report.warn(
            f"this node's etcd member stays in the list: {error}. On another control plane: kb etcd members"
        )
    return None


def _strike_out(ctx: ResetRun, promised: Mapping[str, str]) -> None:
    """A member that was announced and never started: the join was cut off before its static pod was written."""
    try:
        client = etcd.Etcd(
            ctx.host, promised.get("endpoints", "").split(","), etcd.read_client_tls(ctx.host, ctx.paths)
        )
        own = etcd.find_by_peer_url(client.list_members(), promised.get("peer_url", ""))
        if own is not None and not own.has_started:
            client.remove(own)
            ctx.report.note(f"{own.describe()} was announced and never started: it was taken out of etcd's list")
    except KbError as error:
        ctx.report.warn(
            f"this node's etcd member may stay in the list: {error}. On another control plane: kb etcd members"
        )


def _others_need_it(ctx: ResetRun, manifest: Path) -> bool:
    """Whether etcd serves with this node's member, and would not without it."""
    try:
        own_url, *others = _client_urls(ctx, manifest)
        client = etcd.Etcd(ctx.host, (own_url, *others), etcd.read_client_tls(ctx.host, ctx.paths))
        members = client.list_members()
        own = next(member for member in members if own_url in member.client_urls)
        return etcd.stops_without(members, own, etcd.probe_members(client, members))
    except (KbError, StopIteration):
        return False  # it does not serve now, or without this node already


def _client_urls(ctx: ResetRun, manifest: Path) -> tuple[str, ...]:
    """Its own first. Raises HostError (not-a-yaml-mapping, no-local-etcd)."""
    urls = etcd.client_urls_of_manifest(_load_pod(ctx, manifest))
    if not urls:
        raise HostError(
            f"{manifest} runs no etcd",
            cause="its first container has no flag --advertise-client-urls",
            remedy=f"correct {manifest}, or skip its member: kb reset --skip-phases remove-etcd-member",
            code="no-local-etcd",
        )
    return urls


def leave_etcd(ctx: ResetRun, manifest: Path) -> None:
    """Take the member that runs by this manifest out of the list, unless it is the last. Raises KbError."""
    own_url, *others = _client_urls(ctx, manifest)
    tls = etcd.read_client_tls(ctx.host, ctx.paths)
    members = etcd.Etcd(ctx.host, (own_url, *others), tls).list_members()
    own = next((member for member in members if own_url in member.client_urls), None)
    if own is None or len([member for member in members if not member.is_learner]) < 2:
        return  # gone already; or the last one, which goes with its data
    rest = [member for member in members if member is not own]
    # the others are asked: a member that takes itself out cannot say whether it was done
    client = etcd.Etcd(ctx.host, [url for member in rest for url in member.client_urls], tls)
    etcd.check_removal(members, own, etcd.probe_members(client, rest))
    client.remove(own)
    left = "1 member is" if len(rest) == 1 else f"{len(rest)} members are"
    ctx.report.note(f"{own.describe()} was taken out of etcd's list: {left} left")


def stop_kubelet(ctx: ResetRun) -> Outputs:
    """First of all: it would start every static pod again. At boot it has nothing to do here either."""
    if not _is_kubelet_of_kb(ctx):
        return None
    if services.find(ctx.host) is not None:
        services.run(ctx.host, "stop", "kubelet")
    # at boot it starts again only if it did so before kb
    for link in BOOT_LINKS:
        if str(link) in state.load_state(ctx.host, ctx.paths).created_paths():
            ctx.host.remove(link)
    return None


def remove_pods(ctx: ResetRun) -> Outputs:
    """Every pod of this node, by the runtime's own tool."""
    if not _is_kubelet_of_kb(ctx):
        return None
    status = runtime.probe_runtime(ctx.host, ctx.cri_socket)
    if status.problem in _DEAD:
        raise HostError(
            f"the container runtime does not answer at {ctx.cri_socket}",
            cause=f"{status.cause}; whether pods run, and with what mounted, cannot be told without it",
            remedy=f"{status.remedy}; then run the command again. Where it never comes back, reboot and: kb reset --skip-phases "
            "cleanup-node/remove-pods",
            code="runtime-not-ready",
        )
    failures = containers.remove_pods(ctx.host, ctx.cri_socket)
    if failures:
        raise HostError(
            f"{len(failures)} pods could not be removed",
            cause=failures[0],
            remedy=f"see what it meets: {services.say_log(ctx.host, 'containerd')}; then run the command again",
            code="pods-not-removed",
        )
    return None


def unmount_kubelet_folders(ctx: ResetRun) -> Outputs:
    """What the kubelet mounted for pods; a mount that does not let go stops reset before anything is deleted. What
    else is mounted below its folder is somebody's own, and stays."""
    if not _is_kubelet_of_kb(ctx):
        return None
    folders = (root / name for root in find_kubelet_roots(ctx) for name in KUBELET_ENTRIES)
    for mount in [mount for folder in folders for mount in ctx.host.mounts_below(folder)]:
        done = ctx.host.run(["umount", str(mount)])
        if not done.ok:
            raise HostError(
                f"{mount} cannot be unmounted",
                cause=done.stderr.strip() or f"umount ended with code {done.code}",
                remedy=f"see who uses it (fuser -vm {mount}), then run the command again",
                code="mount-in-the-way",
            )
    return None


def remove_pod_network(ctx: ResetRun) -> Outputs:
    """The route keeper, its routes, link and rule, and the bridge on which no pod hangs any more."""
    pod_network.remove_node_network(ctx.host, ctx.paths, ctx.cri_socket)
    return None


def stop_services(ctx: ResetRun) -> Outputs:
    """The mirror and containerd, where kb brought their units; and what that containerd kept, its images included.
    Packages that kb had a package manager install stay, and are held at their version no more."""
    made = state.load_state(ctx.host, ctx.paths).created_paths()
    if str(distro_packages.APT_LIST) in made:
        distro_packages.release(ctx.host)
    for unit in (serve_mirror.MIRROR_UNIT, "containerd.service"):
        if str(ctx.paths.systemd / unit) in made:
            ctx.host.run(["systemctl", "disable", "--now", unit], timeout_s=120)
    kernel.remove_service_route(ctx)
    if str(install_programs.CONTAINERD_UNIT) in made:
        for folder in (Path("/var/lib/containerd"), Path("/run/containerd")):
            for mount in ctx.host.mounts_below(folder):
                ctx.host.run(["umount", str(mount)])
            ctx.host.remove_tree(folder)
    return None


def _restart_runtime(ctx: ResetRun, node_state: state.State) -> None:
    """A containerd that stays, and whose configuration was put back, has to read it again."""
    touched = {
        *node_state.created_paths(),
        *(entry["path"] for phase in node_state.phases.values() for entry in phase.backups),
    }
    has_to_read = str(install_programs.CONTAINERD_UNIT) not in touched and str(runtime.CONTAINERD_CONFIG) in touched
    if has_to_read and services.is_active(ctx.host, "containerd"):
        services.run(ctx.host, "restart", "containerd", timeout_s=60)


def take_back_files(ctx: ResetRun) -> Outputs:
    """What the kubelet and etcd wrote on kb's behalf; then the journal backwards."""
    node_state = state.load_state(ctx.host, ctx.paths)
    made = node_state.created_paths()
    plan = undo.plan_undo(node_state, apart=load_balancer.find_changed_hosts(ctx, node_state))
    if str(ctx.paths.manifest("etcd")) in made:
        ctx.host.remove_tree(find_etcd_data(ctx, read_etcd_pod(ctx)) / "member")
    if str(ctx.paths.kubelet_config) in made:
        for place in [root / name for root in find_kubelet_roots(ctx) for name in KUBELET_ENTRIES]:
            if ctx.host.read_link(place) is not None and str(place) not in made:
                ctx.report.note(f"{place} is a link that somebody made: it stays, with what it leads to")
            elif not ctx.host.remove_tree(place):
                ctx.host.remove(place)
    own_conf = ctx.paths.kubernetes / "kubelet.conf"
    if node_state.has_run("join") and str(own_conf) not in node_state.adopted:
        # written by the kubelet itself, perhaps after kb looked for the last time
        for path in (own_conf, ctx.paths.kubernetes / "bootstrap-kubelet.conf"):
            ctx.host.remove(path)
    for text in undo.restore_and_remove(ctx.host, plan):
        ctx.report.note(text)
    manager = services.find(ctx.host)
    if manager is not None:
        if manager.reload:
            ctx.host.run(manager.reload)
        _restart_runtime(ctx, node_state)
    return None


ETCD_MEMBER = Act(do=remove_etcd_member, live="node")
KUBELET = Act(do=stop_kubelet, live="node")
PODS = Act(do=remove_pods, live="node")
MOUNTS = Act(do=unmount_kubelet_folders, live="node")
POD_NETWORK = Act(do=remove_pod_network, live="node")
SERVICES = Act(do=stop_services, live="node")
FILES = Act(do=take_back_files)
