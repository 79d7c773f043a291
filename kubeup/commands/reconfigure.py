"""The command reconfigure endpoint: the current and the wanted state of this node and its cluster, and the phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup import releases
from kubeup.addresses import join_host_port, split_host_port
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import membership, objects
    from kubeup.config import choose, load_join, types, validate_fields
    from kubeup.engine import run
    from kubeup.network import load_balancer
    from kubeup.node import certificates, images, kubeconfig
    from kubeup.phases import endpoint as reconfigure

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.api import Api
    from kubeup.engine.run import Who
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost

WORKFLOW = "reconfigure-endpoint"
BEFORE = f"{WORKFLOW}/preflight"
"""The entry of state.json whose outputs hold the previous values."""


def endpoint(call: Invocation) -> int:
    """Convert, continue a conversion, or undo one; with --list only print the phases."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    wanted = _parse_endpoint(call)
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()) as node_state:
        _run(launch, node_state, wanted=wanted)
    return 0


def _parse_endpoint(call: Invocation) -> str:
    """`name:port` from the argument, or "" for none. Raises UsageError (bad-endpoint, usage)."""
    if len(call.words) > 1 or (call.words and call.flags.get("undo")):
        raise UsageError(
            f"kb reconfigure endpoint {' '.join(call.words)}",
            cause="it takes one word, the endpoint's NAME:PORT, and none with --undo",
            remedy="kb reconfigure endpoint NAME:PORT",
            code="usage",
        )
    if not call.words:
        return ""
    parts = split_host_port(call.words[0])
    is_name = parts is not None and (
        validate_fields.is_subdomain(parts[0]) or choose.parse_address(parts[0]) is not None
    )
    if parts is None or not is_name or not parts[1] or not 1 <= parts[1] <= 65535:
        raise UsageError(
            f"the endpoint {call.words[0]!r}",
            cause="it is not a DNS name or an address with a port",
            remedy="write NAME:PORT, such as api.example.com:6443",
            code="bad-endpoint",
        )
    return join_host_port(parts[0], parts[1])


def _run(launch: Launch, node_state: State, *, wanted: str) -> None:
    call, local, target = launch.call, launch.local, launch.target
    is_undo = bool(call.flags.get("undo"))
    own = _read_own_endpoint(local, Paths())
    config, before = _make_config(call, local, node_state=node_state, wanted=wanted, own=own)
    paths = Paths(pki=Path(config.cluster.certificates_dir))
    launcher.require_same_node(node_state, config, paths=paths)
    phases = tuple(phase for phase in call.command.phases if config.is_control_plane or not phase.on)

    def make_api(_: Who) -> Api:
        return _make_api(target, paths, own=own, wanted=wanted)

    ctx = reconfigure.EndpointRun(
        host=target,
        paths=paths,
        config=config,
        release=releases.find_release(config.cluster.kubernetes_version),
        report=call.report,
        caller=run.Caller(make_api),
        change=reconfigure.Change(before, is_undo=is_undo),
    )
    result = launch.work(ctx, node_state, phases=phases)
    if is_undo:
        node_state.phases[BEFORE].outputs = {}
        node_state.save()
    _print(launch, result, config=config)


def _print(launch: Launch, result: RunResult, *, config: types.NodeConfig) -> None:
    call = launch.call
    result.results.server = config.joined.server
    launch.print_result(result)
    remaining = list(result.results.remaining or ())
    if call.output != "text" or launch.is_dry:
        return
    if remaining:
        call.tell("\n".join(["still to be done:", *(f"  {step}" for step in remaining)]))
    else:
        call.print(
            f"this node's clients call {config.joined.server}; kubeconfigs that were copied from admin.conf are yours to change"
        )


# ---- current and wanted state


def _make_config(
    call: Invocation, local: LocalHost, *, node_state: State, wanted: str, own: Optional[types.LocalAPIEndpoint]
) -> tuple[types.NodeConfig, reconfigure.Before]:
    """The configuration that the phases work towards, and the previous values."""
    paths = Paths()
    kubelet_conf = paths.kubernetes / "kubelet.conf"
    member = membership.find_member_access(local, kubelet_conf)
    if member is None:
        raise reconfigure.refuse_without_cluster(kubelet_conf)
    api = _make_api(local, paths, own=own, wanted=wanted)
    text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
    warnings: list[str] = []
    cluster = load_join.parse_stored_cluster(local, text, warnings=warnings)
    stored = objects.read_load_balancer(api)
    is_control_plane = own is not None and local.exists(paths.admin_conf)
    now = _read_server(api) if is_control_plane else member.server
    before = _read_before(node_state) or reconfigure.Before(
        cluster.control_plane_endpoint, now, _read_mode(local, paths)
    )
    if call.flags.get("undo"):
        goal, server, mode = _plan_undo(node_state, before, stored=cluster.control_plane_endpoint)
    else:
        goal, mode = _plan_goal(
            call, cluster.control_plane_endpoint, wanted=wanted, stored=stored, is_control_plane=is_control_plane
        )
        server = f"https://{goal}"
        if _read_before(node_state) is None:
            before = replace(before, is_begun_here=goal != before.endpoint or stored.mode != mode)
    image = stored.image or images.load_balancer_image(types.KbConfiguration())
    balancer = replace(stored, mode=mode, image=image if mode == "local" else stored.image)
    here = [join_host_port(own.advertise_address, own.bind_port)] if own and is_control_plane else []
    config = types.NodeConfig(
        replace(cluster, control_plane_endpoint=goal),
        _read_registration(member, node_state),
        own or load_join.find_own_endpoint(local, cluster, wanted=None, notes=[]),
        kb=types.KbConfiguration(objects.read_pod_network(api), load_balancer=balancer),
        warnings=tuple(warnings),
        join=types.Join(
            server,
            member.ca_pem,
            control_plane=types.JoinControlPlane() if is_control_plane else None,
            api_servers=tuple(sorted({*objects.read_api_servers(api), *here})),
        ),
    )
    return config, before


def _read_mode(local: Host, paths: Paths) -> str:
    """Whether this node already runs its own load balancer."""
    return "local" if load_balancer.is_installed(local, paths) else "none"


def _plan_goal(
    call: Invocation, current: str, *, wanted: str, stored: types.LoadBalancer, is_control_plane: bool
) -> tuple[str, str]:
    """(endpoint, load balancer mode). Nodes after the first take both from the cluster."""
    mode = str(call.flags.get("load-balancer") or stored.mode)
    if stored.is_local and mode == "none":
        raise UsageError(
            "--load-balancer none",
            cause="the nodes of this cluster have a load balancer of their own, and kubelets call it",
            remedy="leave the flag out; to go back to the previous endpoint: kb reconfigure endpoint --undo",
            code="load-balancer-stays",
        )
    if wanted and not is_control_plane and wanted != current:
        raise ClusterError(
            f"the cluster's endpoint is {current or 'none'}, not {wanted}",
            cause="a worker follows what the control planes have stored",
            remedy=f"on a control plane first: kb reconfigure endpoint {wanted}",
            code="endpoint-not-stored",
        )
    goal = wanted or current
    if not goal:
        raise UsageError(
            "no endpoint was named",
            cause="the cluster has none stored either (controlPlaneEndpoint in ConfigMap kube-system/kubeadm-config)",
            remedy="kb reconfigure endpoint NAME:PORT",
            code="no-endpoint-stored",
        )
    return goal, mode


def _plan_undo(node_state: State, before: reconfigure.Before, *, stored: str) -> tuple[str, str, str]:
    """The previous (endpoint, server, load balancer mode). The node where the conversion began also undoes the
    cluster's part; the other nodes follow it."""
    if _read_before(node_state) is None:
        raise HostError(
            "there is no reconfiguration of the endpoint to undo on this node",
            cause="kb's state records none that was started and not undone",
            remedy="to change to another endpoint: kb reconfigure endpoint NAME:PORT",
            code="nothing-to-undo",
        )
    if before.is_begun_here:
        return before.endpoint, before.server, before.balancer
    if stored == before.endpoint:
        raise ClusterError(
            f"the cluster's endpoint is still {stored}",
            cause="this node only followed the reconfiguration, which was started on another node",
            remedy="run it there first: kb reconfigure endpoint --undo",
            code="undo-elsewhere-first",
        )
    return stored, before.server, before.balancer


def _read_before(node_state: State) -> Optional[reconfigure.Before]:
    entry = node_state.phases.get(BEFORE)
    found = run.read_stored(entry.outputs if entry else {})
    values = (found.before_endpoint, found.before_server, found.before_balancer, found.before_is_begun_here)
    endpoint, server, mode, is_begun_here = values
    if endpoint is None or server is None or mode is None or is_begun_here is None:
        return None
    return reconfigure.Before(endpoint, server, mode, is_begun_here)


def _read_server(api: Api) -> str:
    """The server that joining nodes are currently told to call."""
    found = api.get(kubeapi.path_of("ConfigMap", "cluster-info", namespace="kube-public")) or {}
    text = str((found.get("data") or {}).get("kubeconfig", ""))
    return str(kubeconfig.parse_kubeconfig(text, source="in ConfigMap cluster-info").server) if text else api.server


def _read_registration(member: membership.Access, node_state: State) -> types.NodeRegistration:
    cert = certificates.parse_certs(member.client_cert_pem)[0]
    name = node_state.node or certificates.subject_of(cert).common_name.rpartition(":")[2]
    registration = types.NodeRegistration(name)
    return replace(registration, cri_socket=node_state.cri_socket) if node_state.cri_socket else registration


def _read_own_endpoint(local: Host, paths: Paths) -> Optional[types.LocalAPIEndpoint]:
    """Where this node's API server listens, from its static pod. None on a worker."""
    manifest = paths.manifest("kube-apiserver")
    if not local.exists(manifest):
        return None
    words, *_ = [*yaml_files.commands_of_pod(yaml_files.load_mapping(local.read_text(manifest), str(manifest))), []]
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return types.LocalAPIEndpoint(flags.get("advertise-address", "127.0.0.1"), int(flags.get("secure-port", "6443")))


def _make_api(target: Host, paths: Paths, *, own: Optional[types.LocalAPIEndpoint], wanted: str) -> Api:
    """A control plane calls its own API server as the admin. A worker authenticates as its kubelet and calls the server
    of its kubelet.conf or, if that no longer answers, the new name."""
    retry_s = types.Timeouts().kubernetes_api_call_s
    if own is not None and target.exists(paths.admin_conf):
        server = f"https://{join_host_port(own.advertise_address, own.bind_port)}"
        return kubeapi.Api(target, kubeapi.read_identity(target, paths.admin_conf, server=server), retry_s=retry_s)
    path = paths.kubernetes / "kubelet.conf"
    api = kubeapi.Api(target, kubeapi.read_identity(target, path), retry_s=0)
    try:
        api.probe_health("/version")
    except HostError:
        if not wanted:
            raise
        api = api.with_server(f"https://{wanted}")
    api.retry_s = retry_s
    return api
