"""The commands join and join phase: find the cluster, then run the phases with its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from kubeup import releases
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.trust import Anchors

with lazily:
    from kubeup.airgap import air_gap_fence
    from kubeup.cluster import amid_rotation, api, find_cluster, join_documents, membership
    from kubeup.config import load_join
    from kubeup.engine import run, step
    from kubeup.machine import fence
    from kubeup.node import kubeconfig

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.membership import Access
    from kubeup.config.types import NodeConfig
    from kubeup.engine.run import Run, Who
    from kubeup.engine.state import State
    from kubeup.engine.step import Phase
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost
    from kubeup.report import Report


def join(call: Invocation) -> int:
    """Run the whole workflow; with --list only print the names of its phases."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    if len(call.words) > 1:
        raise UsageError(
            f"kb join {' '.join(call.words)}",
            cause="it takes one word, the API server's HOST:PORT",
            remedy="kb join HOST:PORT --token TOKEN --discovery-token-ca-cert-hash HASH",
            code="usage",
        )
    return _run_join(call, only="", endpoint=call.words[0] if call.words else "")


def join_phase(call: Invocation) -> int:
    """Run one phase. As in kubeadm, the API server's HOST:PORT may follow its name."""
    words = list(call.words)
    endpoint = words.pop() if len(words) > 1 and ":" in words[-1] else ""
    if not words:
        raise UsageError(
            "no phase was named",
            cause="kb join phase runs the phase that you name",
            remedy="kb join --list shows their names; for example: kb join phase preflight HOST:PORT --token TOKEN ...",
            code="no-phase",
        )
    return _run_join(call, only="/".join(word.strip("/") for word in words), endpoint=endpoint)


def _run_join(call: Invocation, *, only: str, endpoint: str) -> int:
    launch = Launch(call)
    local = launch.local
    if only:
        step.select_phases(call.command.phases, only)
    admin = membership.find_member_access(local, Paths().admin_conf)
    kubelet = membership.find_member_access(local, Paths().kubeconfigs / "kubelet.conf")
    wishes = _load_wishes(launch, endpoint, is_member=bool(admin or kubelet))
    is_control_plane = wishes.join.control_plane is not None
    # a control plane authenticates as its admin; an admin.conf on a worker is just some user's kubeconfig
    member = admin if is_control_plane else kubelet
    phases = _phases_for(call, is_control_plane=is_control_plane, only=only)
    if wishes.kb.air_gapped:
        local.fence = _plan_fence(local, wishes, member=member)
    launch.is_dry = wishes.join.dry_run
    launch.require_root(wishes.join.node.ignore_preflight_errors)
    with launch.locked(Paths()) as node_state:
        _require_same_kind(local, node_state, is_control_plane=is_control_plane)
        config = _find_cluster(local, wishes, member=member, node_state=node_state, report=call.report)
        if wishes.kb.air_gapped:
            local.fence = air_gap_fence.plan_fence(config)
        launch.tell(config)
        paths = Paths(pki=Path(config.cluster.certificates_dir))
        launcher.require_same_node(node_state, config, paths=paths)
        if not only and call.program.keeps_state:
            launcher.require_no_step_back(local, config, paths=paths, command="kb join")
        ctx = _make_run(launch.target, config, paths=paths, report=call.report)
        result = launch.work(ctx, node_state, phases=phases, only=only, skip=config.skip_phases)
    result.results.server = config.joined.server
    result.results.join_text = CLOSING_CONTROL_PLANE if is_control_plane else CLOSING
    launch.print_result(result)
    if call.program.show_result:
        return 0
    if result.changes and not only and call.output == "text" and launch.target.mode == "live":
        call.print(result.results.join_text)
        _tell_rotation(call, ctx)
    return 0


def _tell_rotation(call: Invocation, ctx: Run) -> None:
    """That a rotation of a shared key waits for this node from now on, if it does."""
    (one,) = ctx.found.rotation or (None,)
    if one is not None and (ctx.config.is_control_plane or one.certs):
        call.print(amid_rotation.say_next(one, ctx.config.node.name))


def _phases_for(call: Invocation, *, is_control_plane: bool, only: str) -> tuple[Phase, ...]:
    """The phases of a worker or of a control plane. Raises UsageError (not-a-worker-phase)."""
    phases = phases_on(call.command.phases, is_control_plane=is_control_plane)
    if only and not any(phase in phases for phase in step.select_phases(call.command.phases, only)):
        raise UsageError(
            f"kb join phase {only}",
            cause="only a node that becomes a control plane has this phase",
            remedy="add --control-plane",
            code="not-a-worker-phase",
        )
    return phases


def phases_on(phases: Sequence[Phase], *, is_control_plane: bool) -> tuple[Phase, ...]:
    """The join phases that apply to a worker or to a control plane."""
    return tuple(phase for phase in phases if is_control_plane or not phase.on)


CLOSING_CONTROL_PLANE = """
This node has joined the cluster and a new control plane instance was created:
* it has the cluster's authorities, and certificates of its own;
* its etcd is a member with a vote (where etcd is the cluster's own);
* its API server, controller-manager and scheduler run, and its kubelet talks to that API server;
* it bears the label and the taint of a control plane.

To use the cluster as an ordinary user:

  mkdir -p $HOME/.kube
  sudo cp -i /etc/kubernetes/admin.conf $HOME/.kube/config
  sudo chown $(id -u):$(id -g) $HOME/.kube/config

See it: kubectl get nodes
"""

CLOSING = """
This node has joined the cluster:
* its kubelet asked for a certificate, and the cluster signed it;
* its kubelet talks to the API server with it, and renews it by itself.

See it on a control plane: kubectl get nodes
"""


def _load_wishes(launch: Launch, endpoint: str, *, is_member: bool) -> load_join.JoinWishes:
    call = launch.call
    flags = {**call.flags, **call.program.wishes}
    config_file = launch.config_file
    if config_file is None and not endpoint and is_member:
        config_file = launch.adopted_config()
    return load_join.load_join_config(
        launch.local, config_file=config_file, flags=flags, endpoint=endpoint, is_member=is_member
    )


def _require_same_kind(local: LocalHost, node_state: State, *, is_control_plane: bool) -> None:
    """Require that a node that joined as one kind continues as that kind. Raises HostError: node-is-control-plane,
    node-is-worker."""
    manifest = Paths().manifest("kube-apiserver")
    prepared = node_state.phases.get("join/control-plane-prepare/certs")
    was_control_plane = prepared is not None and bool(prepared.created or prepared.adopted)
    if is_control_plane and node_state.has_run("join") and not was_control_plane and _was_started(node_state):
        raise HostError(
            f"this node, {node_state.node}, has joined cluster {node_state.cluster} as a worker",
            cause="a worker is not made a control plane in place: its kubelet and its taints are a worker's",
            remedy="remove it and let it join again: kb reset, then kb join ... --control-plane",
            code="node-is-worker",
        )
    if was_control_plane and not is_control_plane:
        raise HostError(
            f"this node, {node_state.node}, is a control plane of cluster {node_state.cluster}",
            cause="kb join --control-plane has made it one, and this join would make it a worker",
            remedy="to go on with that one: kb join --control-plane; to leave the cluster: kb reset",
            code="node-is-control-plane",
        )
    if (node_state.has_run("init") and not was_control_plane) or (local.exists(manifest) and not was_control_plane):
        seen = f"{manifest} is there" if local.exists(manifest) else "kb init has worked on it"
        raise HostError(
            "this node is a control plane",
            cause=f"{seen}: it cannot join another cluster as a worker",
            remedy="if nothing of its cluster is wanted: kb reset (kubeadm reset, if kubeadm made it)",
            code="node-is-control-plane",
        )


def _was_started(node_state: State) -> bool:
    started = node_state.phases.get("join/kubelet-start")
    return started is not None and bool(started.created or started.adopted)


def _find_cluster(
    local: LocalHost, wishes: load_join.JoinWishes, *, member: Optional[Access], node_state: State, report: Report
) -> NodeConfig:
    """Find the cluster. A member authenticates with its own identity, because the token of a repeated join may have
    expired."""
    wanted = wishes.join
    # as in kubeadm, an existing admin.conf is used if --control-plane is given
    is_admin = wanted.control_plane is not None and member is not None
    is_ours = is_admin or (member is not None and node_state.has_run("join"))
    access = member if is_ours else None
    if access is not None:
        membership.check_same_cluster(access, wanted.discovery)
        access = membership.find_way_of_member(local, access, wanted=wanted.discovery)
        if not membership.is_accepted(local, access):
            report.note(f"the cluster no longer accepts this node's certificate: joining {access.server} again")
            access = None
    if access is None:
        _require_discovery(wishes)
        report.waiting("discovery: looking for the cluster")
        access = find_cluster.discover_cluster(
            local, wanted.discovery, timeouts=wanted.timeouts, tell=report.waiting, note=report.note
        )
    for note in access.notes:
        report.note(note)
    config = _read_config(local, wishes, access=access)
    if access.is_member:
        return config
    if wanted.control_plane is not None:
        # if its kubelet has to bootstrap, it does so through this node's own API server, which kubelet.conf must name
        access = replace(access, server=kubeconfig.local_url(config))
    text = access.render_bootstrap_kubeconfig(config.cluster.cluster_name)
    return replace(config, join=replace(config.joined, bootstrap_kubeconfig=text, clock_skew_s=access.skew_s))


def _read_config(host: Host, wishes: load_join.JoinWishes, *, access: Access) -> NodeConfig:
    """The node's own settings, and everything that the cluster stores for its nodes."""
    found = join_documents.read_documents(host, access, timeouts=wishes.join.timeouts)
    return load_join.build_join_config(host, wishes, stored=found, server=access.server, ca_pem=access.ca_pem)


def make_member_run(target: Host, config_file: Path, *, report: Report) -> Run:
    """The run that `kb join` with this file would have on a node that is already a member.

    Raises HostError (kubeconfig-unreadable), ClusterError.
    """
    paths = Paths()
    wishes = load_join.load_join_config(
        target, config_file=config_file, flags={"allow-unknown-fields": True}, is_member=True
    )
    own = paths.admin_conf if wishes.join.control_plane else paths.kubernetes / "kubelet.conf"
    member = membership.find_member_access(target, own)
    if member is None:
        raise HostError(
            f"{own} cannot be used",
            cause="it is not there, or holds no certificate that can be read",
            remedy="put the node's own kubeconfig there, then run the command again",
            code="kubeconfig-unreadable",
        )
    config = _read_config(target, wishes, access=member)
    return _make_run(target, config, paths=Paths(pki=Path(config.cluster.certificates_dir)), report=report)


def _plan_fence(local: Host, wishes: load_join.JoinWishes, *, member: Optional[Access]) -> fence.Fence:
    """The fence until the cluster is found: allows only the servers that the configuration names for discovery."""
    discovery_, names = wishes.join.discovery, set()
    if discovery_.bootstrap_token:
        names.add(urlsplit(f"https://{discovery_.bootstrap_token.api_server_endpoint}").hostname or "")
    for url in (discovery_.file, wishes.kb.mirror.endpoint, member.server if member else ""):
        names.add(urlsplit(url).hostname or "")
    if discovery_.file.startswith("/"):
        # the kubeconfig names the server
        found = kubeconfig.parse_kubeconfig(local.read_text(Path(discovery_.file)), source=discovery_.file)
        names.update(urlsplit(url).hostname or "" for url in (found.server, found.proxy_url))
    return fence.Fence(frozenset(names))


def _require_discovery(wishes: load_join.JoinWishes) -> None:
    if not wishes.join.discovery.bootstrap_token and not wishes.join.discovery.file:
        raise load_join.no_endpoint("nothing")


def _make_run(target: Host, config: NodeConfig, *, paths: Paths, report: Report) -> Run:
    """The run; it calls the API with the bootstrap identity until the node has its own."""
    join = config.joined

    def make_api(who: Who) -> api.Api:
        if who == "admin":
            # the stable endpoint in admin.conf may not be reachable from this node yet
            identity = api.read_identity(target, paths.admin_conf, server=join.reached_server or join.server)
        elif who == "bootstrap":
            found = kubeconfig.parse_kubeconfig(join.bootstrap_kubeconfig.reveal(), source="bootstrap-kubelet.conf")
            identity = membership.Access(
                join.reached_server or join.server,
                Anchors.given(found.ca_pem) if found.ca_pem else None,
                found.token,
                client_cert_pem=found.client_cert_pem,
                client_key_pem=found.client_key_pem,
                tls_server_name=found.tls_server_name,
                proxy_url=found.proxy_url,
            ).identity
        else:
            identity = api.read_identity(target, paths.kubernetes / "kubelet.conf")
        return api.Api(target, identity, retry_s=config.timeouts.kubernetes_api_call_s)

    first: Who = "bootstrap" if join.bootstrap_kubeconfig else "kubelet"
    if config.is_control_plane and target.exists(paths.admin_conf):
        first = "admin"
    release = releases.find_release(config.cluster.kubernetes_version)
    caller = run.Caller(make_api, first)
    return run.Run(host=target, paths=paths, config=config, release=release, report=report, caller=caller)
