"""The phases of reset: stop what runs, unmount, and take back what the journal says kb made.

Mirrors cmd/kubeadm/app/cmd/phases/reset/cleanupnode.go in order; unlike it, kb removes what it made and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup import yaml_files
from kubeup.engine.items import Gone, Unit
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import BareRun, Outputs
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths

with lazily:
    from kubeup.airgap import distro_packages
    from kubeup.cluster import etcd, probes
    from kubeup.engine import state, undo
    from kubeup.network import pod_network
    from kubeup.node import containers, kubelet, runtime
    from kubeup.phases import kernel


_CONTAINERD_UNIT = Paths.systemd / "containerd.service"
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
        ctx.report.warn_once(str(error))
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
    return any(str(path) in made for path in work)


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
            ctx.host, promised.get("endpoints", "").split(","), tls=etcd.read_client_tls(ctx.host, ctx.paths)
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
        client = etcd.Etcd(ctx.host, (own_url, *others), tls=etcd.read_client_tls(ctx.host, ctx.paths))
        members = client.list_members()
        own = next(member for member in members if own_url in member.client_urls)
        return etcd.stops_without(members, own, trouble=etcd.probe_members(client, members))
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
    members = etcd.Etcd(ctx.host, (own_url, *others), tls=tls).list_members()
    own = next((member for member in members if own_url in member.client_urls), None)
    if own is None or len([member for member in members if not member.is_learner]) < 2:
        return  # gone already; or the last one, which goes with its data
    rest = [member for member in members if member is not own]
    # the others are asked: a member that takes itself out cannot say whether it was done
    client = etcd.Etcd(ctx.host, [url for member in rest for url in member.client_urls], tls=tls)
    etcd.check_removal(members, own, trouble=etcd.probe_members(client, rest))
    client.remove(own)
    left = "1 member is" if len(rest) == 1 else f"{len(rest)} members are"
    ctx.report.note(f"{own.describe()} was taken out of etcd's list: {left} left")


def plan_stopped_kubelet(run: ResetRun) -> Plan:
    """First of all: it would start every pod again. At boot it has nothing to do here either; it starts then only if it did so before
    kb."""
    if not _is_kubelet_of_kb(run):
        return Plan(notes=["kb did not set up this node's kubelet: it and its pods stay as they are"])
    made = state.load_state(run.host, run.paths).created_paths()
    links = [link for link in BOOT_LINKS if str(link) in made]

    def find(ground: Ground) -> list[str]:
        is_managed = services.find(ground.host) is not None
        service = ["its service"] if is_managed and not services.is_stopped(ground.host, "kubelet") else []
        return service + [str(link) for link in links if ground.host.exists(link)]

    def take_away(ground: Ground) -> None:
        if services.find(ground.host) is not None:
            services.run(ground.host, "stop", unit="kubelet")
        for link in links:
            ground.host.remove(link)

    return Plan(Gone("the running kubelet", find, take_away))


def plan_no_pods(run: ResetRun) -> Plan:
    """No pod runs on this node, by the runtime's own word. Raises when it is looked at: HostError (runtime-not-ready, pods-not-removed)."""
    if not _is_kubelet_of_kb(run):
        return Plan()
    find = lambda ground: _find_pods(run, ground.host)  # noqa: E731
    return Plan(Gone("this node's pods", find, lambda ground: _remove_pods(run, ground.host)))


def _find_pods(ctx: ResetRun, host: Host) -> list[str]:
    status = runtime.probe_runtime(host, ctx.cri_socket)
    if status.problem in _DEAD:
        raise HostError(
            f"the container runtime does not answer at {ctx.cri_socket}",
            cause=f"{status.cause}; whether pods run, and with what mounted, cannot be told without it",
            remedy=f"{status.remedy}; then run the command again. Where it never comes back, reboot and: kb reset --skip-phases "
            "cleanup-node/remove-pods",
            code="runtime-not-ready",
        )
    return [
        "what the runtime still runs"
    ]  # a sandbox may appear after a first look: who removes them looks until none is left


def _remove_pods(ctx: ResetRun, host: Host) -> None:
    failures = containers.remove_pods(host, ctx.cri_socket)
    if failures:
        raise HostError(
            f"{len(failures)} pods could not be removed",
            cause=failures[0],
            remedy=f"see what it meets: {services.say_log(host, 'containerd')}; then run the command again",
            code="pods-not-removed",
        )


def plan_no_mounts(run: ResetRun) -> Plan:
    """Nothing is mounted where the kubelet mounted it for pods; a mount that does not let go stops reset before anything is deleted.
    What else is mounted below its folder is somebody's own, and stays. Raises when it is applied: HostError (mount-in-the-way)."""
    if not _is_kubelet_of_kb(run):
        return Plan()
    folders = [root / name for root in find_kubelet_roots(run) for name in KUBELET_ENTRIES]

    def find(ground: Ground) -> list[str]:
        return [str(mount) for folder in folders for mount in ground.host.mounts_below(folder)]

    def take_away(ground: Ground) -> None:
        for mount in find(ground):
            _unmount(ground.host, mount)

    return Plan(Gone("what the kubelet mounted", find, take_away))


def _unmount(host: Host, mount: str) -> None:
    done = host.run(["umount", mount])
    if not done.ok:
        raise HostError(
            f"{mount} cannot be unmounted",
            cause=done.stderr.strip() or f"umount ended with code {done.code}",
            remedy=f"see who uses it (fuser -vm {mount}), then run the command again",
            code="mount-in-the-way",
        )


def plan_no_pod_network(run: ResetRun) -> Plan:
    """The route keeper, its routes, link and rule, and the bridge on which no pod hangs any more. What of the kernel's routes is kb's
    shows when it is withdrawn."""
    take_away = lambda ground: pod_network.remove_node_network(ground.host, run.paths, socket=run.cri_socket)  # noqa: E731
    return Plan(Gone("kb's pod network", lambda _: ["its unit, files, routes and links"], take_away))


def plan_no_services(run: ResetRun) -> Plan:
    """Whatever runs by a unit of kb's; and what a containerd of kb's kept, its images included. Packages that kb had a package manager
    install stay, and are held at their version no more."""
    made = state.load_state(run.host, run.paths).created_paths()
    units = _find_units(run, made)
    has_route, has_hold = kernel.has_service_route(run.host, run.paths), str(distro_packages.APT_LIST) in made

    def find(_: Ground) -> list[str]:
        return [
            *(unit.name for unit in units),
            *([kernel.ROUTE_UNIT] if has_route else []),
            *(["held packages"] if has_hold else []),
        ]

    def take_away(ground: Ground) -> None:
        if has_hold:
            distro_packages.release(ground.host)
        for unit in units:
            unit.take_back(ground.host)
        kernel.remove_service_route(ground)
        if str(_CONTAINERD_UNIT) in made:
            _empty_containerd(ground.host)

    return Plan(Gone("installed services", find, take_away))


def _find_units(ctx: ResetRun, made: frozenset[str]) -> list[Unit]:
    """The units whose files kb made and that are there, by the journal; how the kubelet and the route to Services are taken back is said
    elsewhere."""
    apart = ("kubelet.service", kernel.ROUTE_UNIT)
    paths = [path for path in sorted(map(Path, made)) if path.parent == ctx.paths.systemd and path.suffix == ".service"]
    return [Unit(path.name) for path in paths if path.name not in apart and ctx.host.exists(path)]


def _empty_containerd(host: Host) -> None:
    for folder in (Path("/var/lib/containerd"), Path("/run/containerd")):
        for mount in host.mounts_below(folder):
            host.run(["umount", str(mount)])
        host.remove_tree(folder)


def _restart_runtime(ctx: ResetRun, node_state: state.State) -> None:
    """A containerd that stays, and whose configuration was put back, has to read it again."""
    touched = {
        *node_state.created_paths(),
        *(entry["path"] for phase in node_state.phases.values() for entry in phase.backups),
    }
    has_to_read = str(_CONTAINERD_UNIT) not in touched and str(runtime.CONTAINERD_CONFIG) in touched
    if has_to_read and services.is_active(ctx.host, "containerd"):
        services.run(ctx.host, "restart", unit="containerd", timeout_s=60)


def take_back_files(ctx: ResetRun) -> Outputs:
    """What the kubelet and etcd wrote on kb's behalf; then the journal backwards."""
    node_state = state.load_state(ctx.host, ctx.paths)
    made = node_state.created_paths()
    plan = undo.plan_undo(node_state)
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
FILES = Act(do=take_back_files)
