"""The parts of reset that belong to no single phase: leave etcd, stop kb's units, and undo the journal.

If a phase leaves anything else besides files, a plan in that phase's module removes it (docs/adr/0015-undo.md), so this module imports
no phase. The order mirrors cmd/kubeadm/app/cmd/phases/reset/cleanupnode.go. Unlike kubeadm, kb removes only what it created.
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
from kubeup.lazy_modules import lazily
from kubeup.machine import services

with lazily:
    from kubeup.cluster import api, etcd
    from kubeup.engine import state, undo
    from kubeup.network import load_balancer
    from kubeup.node import etcd_data, runtime


_LABEL = "node-role.kubernetes.io/control-plane"
OTHER_S = 3.0
"""How long another control plane may take to say who there is."""


def read_etcd_pod(ctx: BareRun) -> Optional[dict[str, Any]]:
    """This node's static pod of etcd; None if its manifest is missing, empty or damaged."""
    path = ctx.paths.manifest("etcd")
    if not ctx.host.exists(path):
        return None
    try:
        return _load_pod(ctx, path) or None
    except HostError as error:  # a damaged manifest is removed with the rest
        ctx.report.warn_once(str(error))
        return None


def _load_pod(ctx: BareRun, manifest: Path) -> dict[str, Any]:
    """Raises HostError (not-a-yaml-mapping)."""
    return yaml_files.load_mapping(ctx.host.read_text(manifest), str(manifest))


def find_etcd_data(ctx: BareRun, pod: Optional[dict[str, Any]]) -> Path:
    """etcd's data folder: the one in its static pod, or the default."""
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # an edited manifest may have any shape
        for volume in (pod or {}).get("spec", {}).get("volumes") or ():
            if volume.get("name") == "etcd-data":
                return Path(volume["hostPath"]["path"])
    return ctx.paths.etcd_data


def remove_etcd_member(ctx: BareRun) -> Outputs:
    """Remove this node's member from etcd, so that it does not count towards the quorum any more.

    If that fails, the report warns and says what to do, and reset continues.

    Raises ClusterError (etcd-would-stop) if etcd serves now, and would lose its quorum without this node.
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
            f"this node's etcd member may still be in the list: {error}. On another control plane: kb etcd members"
        )
    return None


def is_last_control_plane(ctx: BareRun, node: str) -> bool:
    """Whether the cluster ends with this node: it runs the only voting member of etcd, or with an external etcd the only API server.

    If etcd does not answer, what it was started with decides, unless the API knows another control plane: the members that joined the
    first one's are not in its manifest, and its etcd ends when it was taken out of their list. An API that does not answer leaves no doubt worth a
    warning.
    """
    made, manifest = state.load_state(ctx.host, ctx.paths).created_paths(), ctx.paths.manifest("etcd")
    if str(ctx.paths.manifest("kube-apiserver")) not in made:
        return False
    with contextlib.suppress(KbError):
        if not ctx.host.exists(manifest):
            return _list_control_planes(_admin_api(ctx)) == [node]
        urls = _client_urls(ctx, manifest)
        with contextlib.suppress(KbError):
            members = etcd.Etcd(ctx.host, urls, tls=etcd.read_client_tls(ctx.host, ctx.paths)).list_members()
            return len([member for member in members if not member.is_learner]) < 2
        return len(urls) < 2 and not _knows_others(ctx, node)
    return False


def _list_control_planes(client: api.Api) -> list[str]:
    """Raises ApiRefused, Unreachable."""
    return [str(row["metadata"].get("name")) for row in client.list(api.path_of("Node"), label=_LABEL)]


def _admin_api(ctx: BareRun) -> api.Api:
    """Raises HostError."""
    return api.Api(ctx.host, api.read_identity(ctx.host, ctx.paths.admin_conf), retry_s=0)


def _knows_others(ctx: BareRun, node: str) -> bool:
    """Whether an API server knows another control plane. Those of this node's load balancer are asked without it: after a boot it may not run
    yet."""
    with contextlib.suppress(KbError):
        client = _admin_api(ctx)
        others = [f"https://{server}" for server in load_balancer.read_servers(ctx.host, ctx.paths)]
        for one in (client, *(client.with_server(server, timeout_s=OTHER_S) for server in others)):
            with contextlib.suppress(KbError):
                if any(name != node for name in _list_control_planes(one)):
                    return True
    return False


def _strike_out(ctx: BareRun, promised: Mapping[str, str]) -> None:
    """Remove a member that was added and never started: the join was interrupted before it wrote the static pod."""
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


def _others_need_it(ctx: BareRun, manifest: Path) -> bool:
    """Whether etcd serves now, but would not without this node's member."""
    try:
        own_url, *others = _client_urls(ctx, manifest)
        client = etcd.Etcd(ctx.host, (own_url, *others), tls=etcd.read_client_tls(ctx.host, ctx.paths))
        members = client.list_members()
        own = next(member for member in members if own_url in member.client_urls)
        return etcd.stops_without(members, own, trouble=etcd.probe_members(client, members))
    except (KbError, StopIteration):
        return False  # it does not serve now, or this node is not in the list


def _client_urls(ctx: BareRun, manifest: Path) -> tuple[str, ...]:
    """The client URLs in the manifest, this node's own first. Raises HostError (not-a-yaml-mapping, no-local-etcd)."""
    urls = etcd.client_urls_of_manifest(_load_pod(ctx, manifest))
    if not urls:
        raise HostError(
            f"{manifest} runs no etcd",
            cause="its first container has no flag --advertise-client-urls",
            remedy=f"correct {manifest}, or skip its member: kb reset --skip-phases remove-etcd-member",
            code="no-local-etcd",
        )
    return urls


def leave_etcd(ctx: BareRun, manifest: Path) -> None:
    """Remove the member that runs from this manifest, unless it is the last voting one. Raises KbError."""
    own_url, *others = _client_urls(ctx, manifest)
    tls = etcd.read_client_tls(ctx.host, ctx.paths)
    members = etcd.Etcd(ctx.host, (own_url, *others), tls=tls).list_members()
    own = next((member for member in members if own_url in member.client_urls), None)
    if own is None or len([member for member in members if not member.is_learner]) < 2:
        return  # removed already; or the last one, which is deleted with its data
    rest = [member for member in members if member is not own]
    # ask the others: a member that removes itself cannot confirm it
    client = etcd.Etcd(ctx.host, [url for member in rest for url in member.client_urls], tls=tls)
    etcd.check_removal(members, own, trouble=etcd.probe_members(client, rest))
    client.remove(own)
    left = "1 member is" if len(rest) == 1 else f"{len(rest)} members are"
    ctx.report.note(f"{own.describe()} was taken out of etcd's list: {left} left")


def plan_no_services(run: BareRun) -> Plan:
    """Stop all units of kb's. Earlier steps have already removed those of the networks and the load balancer."""
    units = _find_units(run, state.load_state(run.host, run.paths).created_paths())

    def take_away(ground: Ground) -> None:
        for unit in units:
            unit.take_back(ground.host)

    return Plan(Gone("installed services", lambda _: [unit.name for unit in units], take_away))


def _find_units(ctx: BareRun, made: frozenset[str]) -> list[Unit]:
    """The units whose files are in the journal and still exist. The kubelet is not among them: it was stopped first, and the link
    that starts it at boot may belong to somebody else."""
    paths = [
        path
        for path in sorted(map(Path, made))
        if path.parent == ctx.paths.systemd and path.suffix in (".service", ".timer")
    ]
    return [Unit(path.name) for path in paths if path.name != "kubelet.service" and ctx.host.exists(path)]


def plan_no_etcd_data(run: BareRun) -> Plan:
    """Remove the data of an etcd that kb set up, and copies of it. Other files in its folder stay."""
    if str(run.paths.manifest("etcd")) not in state.load_state(run.host, run.paths).created_paths():
        return Plan()
    folder = find_etcd_data(run, read_etcd_pod(run))
    member = folder / "member"

    def find(ground: Ground) -> list[str]:
        copies = [*etcd_data.find_copies(ground.host, folder), *etcd_data.find_kept(ground.host, folder)]
        return [str(path) for path in ([member] if ground.host.exists(member) else []) + copies]

    def take_away(ground: Ground) -> None:
        ground.host.remove_tree(member)
        etcd_data.remove_copy(ground.host, folder)
        for path in etcd_data.find_kept(ground.host, folder):
            ground.host.remove_tree(path)

    return Plan(Gone("etcd's data", find, take_away))


def _restart_runtime(ctx: BareRun, node_state: state.State) -> None:
    """Restart a containerd that stays, if its configuration was restored."""
    touched = {
        *node_state.created_paths(),
        *(entry["path"] for phase in node_state.phases.values() for entry in phase.backups),
    }
    has_to_read = str(runtime.CONTAINERD_UNIT) not in touched and str(runtime.CONTAINERD_CONFIG) in touched
    if has_to_read and services.is_active(ctx.host, "containerd"):
        services.run(ctx.host, "restart", unit="containerd", timeout_s=60)


def take_back_files(ctx: BareRun) -> Outputs:
    """Undo the journal. Raises HostError (undo-incomplete) once everything that can be undone is undone."""
    node_state = state.load_state(ctx.host, ctx.paths)
    for text in undo.restore_and_remove(ctx.host, undo.plan_undo(node_state)):
        ctx.report.note(text)
    manager = services.find(ctx.host)
    if manager is not None:
        if manager.reload:
            ctx.host.run(manager.reload)
        if (
            manager is services.SYSTEMD
        ):  # a daemon that a signal ended counts as failed, and is listed as long as it does
            ctx.host.run(["systemctl", "reset-failed", "kb-*"])
        _restart_runtime(ctx, node_state)
    return None


ETCD_MEMBER = Act(do=remove_etcd_member, live="node")
FILES = Act(do=take_back_files)
