"""The phases of `kb reconfigure endpoint`: give a cluster a stable name for its API servers, or change it.

The name is first added to the certificate of every API server; only then are clients pointed at it. So nodes that were not
converted yet keep working, and an interrupted run leaves no client without a server. The output `remaining` lists what is
left to do on other nodes. With kubeadm, all of this is done by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of, port_of
from kubeup.engine.cluster_items import ClusterInfo, Object, PatchedFields, RestartedPods
from kubeup.engine.items import File, Gone
from kubeup.engine.plan import Ground, Group, Later, Part, Plan, Waiting
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen, frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Tls, Unreachable
from kubeup.machine.waiting import becomes_so
from kubeup.phases import certs, kubelet_start, load_balancer, served_cert, stored_cluster
from kubeup.trust import Anchors

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api, objects
    from kubeup.config import choose
    from kubeup.network import load_balancer as balancer
    from kubeup.node import certificates, containers, image_pulls, images, kubeconfig

SYSTEM = "kube-system"
COMMAND = "kb reconfigure endpoint"
END_S = 45.0
"""The grace period of a pod is 30 s, and the kubelet reads its manifests every 20 s."""
END_POLL_S = 0.5
ADMIN_CONFS = ("admin.conf", "super-admin.conf")


@frozen
class Before:
    """The endpoint before the first conversion that was not undone: its name ("" for none), the server in the kubeconfigs, and
    the load balancer in front of the API servers."""

    endpoint: str
    server: str
    balancer: str
    is_begun_here: bool = True
    """Whether the conversion began on this node. On the other nodes `endpoint` is already the new one."""


@frozen
class Change:
    """What a run needs to know about the change of the endpoint in addition to its configuration."""

    before: Before
    is_undo: bool = False

    @property
    def drops_balancer(self) -> bool:
        return self.is_undo and self.before.balancer == "none"


@frozen_by_name
class EndpointRun(Run):
    change: Change


def _endpoint(ctx: EndpointRun) -> str:
    """`name:port`; "" if a conversion is undone and the cluster had no endpoint before."""
    return ctx.config.cluster.control_plane_endpoint


def _server(ctx: EndpointRun) -> str:
    """The server URL that the kubeconfigs are to have: the endpoint, or the former server when a conversion is undone."""
    return ctx.config.joined.server


def _name(ctx: EndpointRun) -> str:
    return host_of(_server(ctx).partition("://")[2])


def _tls(ctx: EndpointRun) -> Tls:
    return Tls(Anchors.given(ctx.config.joined.ca_pem))


# ---- preflight


def check_endpoint(ctx: EndpointRun) -> Outputs:
    """Check that the endpoint leads to this cluster before anything is changed. A local load balancer does not exist yet:
    only its settings are checked, and its image is pulled.

    Raises UsageError (bad-endpoint), ClusterError: endpoint-unknown-name, endpoint-unreachable, endpoint-of-another-cluster.
    """
    if load_balancer.is_wanted(ctx):
        _check_own_balancer(ctx)
    elif _endpoint(ctx):
        check_leads_here(ctx, _endpoint(ctx))
    # stored in the state from here on, so that an interrupted run can be undone
    before = ctx.change.before
    return Results(
        before_endpoint=before.endpoint,
        before_server=before.server,
        before_balancer=before.balancer,
        before_is_begun_here=before.is_begun_here,
    )


def _check_own_balancer(ctx: EndpointRun) -> None:
    name, port = host_of(_endpoint(ctx)), port_of(_endpoint(ctx))
    bind_port = ctx.config.local_api_endpoint.bind_port
    if port == bind_port or choose.parse_address(name) is not None:
        raise UsageError(
            f"the endpoint {_endpoint(ctx)}",
            cause=f"port {port} is the API server's own, and the load balancer listens on the same node"
            if port == bind_port
            else f"{name} is an address, and a load balancer on every node needs a name that leads to 127.0.0.1",
            remedy=f"{COMMAND} kb-api.{ctx.config.cluster.networking.dns_domain}:7443 --load-balancer local",
            code="bad-endpoint",
        )
    # an interrupted run may have left a load balancer without its settings: no client uses it yet
    is_in_use = ctx.host.exists(balancer.settings_path(ctx.paths))
    in_use = balancer.read_settings(ctx.host, ctx.paths).port if is_in_use else port
    if in_use != port:
        raise UsageError(
            f"the endpoint {_endpoint(ctx)}",
            cause=f"this node's load balancer listens on port {in_use}, and clients of all nodes call it there until they "
            "use another one",
            remedy=f"keep the port: {COMMAND} {name}:{in_use}",
            code="bad-endpoint",
        )
    balancer.plan_hosts(balancer.read_hosts(ctx.host), name)
    if ctx.host.is_live:
        _pull_image(ctx)


def _pull_image(ctx: EndpointRun) -> None:
    """Pull the load balancer's image before anything refers to the load balancer. Raises ImagePullError."""
    socket, image = ctx.config.node.cri_socket, images.load_balancer_image(ctx.config.kb)
    for failure in image_pulls.ensure_images(ctx.host, socket, names=[image], tell=ctx.report.waiting).failed:
        raise failure


def check_leads_here(ctx: EndpointRun, endpoint: str) -> None:
    """Check that the endpoint serves a certificate signed by this cluster's CA. Whether it contains the name is checked later.

    Raises ClusterError: endpoint-unknown-name, endpoint-unreachable, endpoint-of-another-cluster.
    """
    name, port = host_of(endpoint), port_of(endpoint)
    addresses = [name] if choose.parse_address(name) is not None else ctx.host.resolve(name)
    if not addresses:
        raise ClusterError(
            f"the name {name} does not resolve",
            cause="neither the resolver nor /etc/hosts of this node knows it",
            remedy=f"give it an address that leads to the API servers, on every node: getent hosts {name}; or let kb "
            f"see to it: {COMMAND} {name}:7443 --load-balancer local",
            code="endpoint-unknown-name",
        )
    pem = ctx.host.served_cert(name, port)
    if pem is None:
        raise ClusterError(
            f"no TLS server answers at {endpoint}",
            cause=f"{name} is {', '.join(addresses)}, and port {port} there is closed or silent",
            remedy=f"have a load balancer or an API server listen there: curl -vk https://{endpoint}/version",
            code="endpoint-unreachable",
        )
    shown, authorities = certificates.parse_shown(pem), certificates.parse_shown(ctx.config.joined.ca_pem)
    if not shown or not any(certificates.is_signed_by(shown, authority) for authority in authorities):
        raise ClusterError(
            f"the server at {endpoint} does not belong to this cluster",
            cause="its certificate is not signed by the cluster's CA: another cluster, or a load balancer that terminates TLS",
            remedy="make it forward TCP unchanged to this cluster's API servers: openssl s_client -connect "
            f"{endpoint} -showcerts",
            code="endpoint-of-another-cluster",
        )


# ---- certs/apiserver


def plan_apiserver_cert(run: EndpointRun) -> Plan:
    """Add the name to the serving certificate of this node's API server, keep its key, and wait until it is served.

    Raises when applied: HostError (certificate-lacks-san, with an external CA), ClusterError
    (apiserver-keeps-certificate).
    """
    cert = certs.issued_cert(run, "apiserver")

    def judge(ground: Ground) -> str:
        return cert.judge(ground) or (
            "" if _shows_name(run, served_cert.own_server(run)) else "the API server does not show it"
        )

    def issue(ground: Ground) -> None:
        cert.issue(ground)
        if run.host.is_live:
            _wait_until_shown(run)

    return Plan(dataclasses.replace(cert, judge=judge, issue=issue))


def _shows_name(ctx: EndpointRun, server: str) -> Optional[bool]:
    """Whether the serving certificate of the API server at `host:port` contains the name. None if no server answers."""
    found = served_cert.read_served_names(ctx, server)
    return None if found is None else found.covers(_name(ctx))


def _wait_until_shown(ctx: EndpointRun) -> None:
    def is_shown() -> bool:
        return bool(_shows_name(ctx, served_cert.own_server(ctx)))

    served_cert.wait_until_served(ctx, is_shown, names=f"with {_name(ctx)}", command=COMMAND)


def find_lagging(ctx: EndpointRun) -> list[str]:
    """`host:port` of the other API servers that do not answer, or whose certificate does not contain the name yet."""
    if ctx.change.is_undo:
        return []  # the former address belongs to one server only
    own = served_cert.own_server(ctx)
    return [server for server in objects.read_api_servers(ctx.api) if server != own and not _shows_name(ctx, server)]


# ---- upload-config


def plan_stored(run: EndpointRun) -> Plan:
    """The endpoint in ConfigMap kubeadm-config, where joining nodes and this command on other nodes read it."""
    return stored_cluster.plan_stored(run, functools.partial(_with_endpoint, run))


def _with_endpoint(ctx: EndpointRun, document: Mapping[str, Any]) -> dict[str, Any]:
    """A ClusterConfiguration with the endpoint, or without the field if there is no endpoint any more."""
    if str(document.get("controlPlaneEndpoint") or "") == _endpoint(ctx):
        return dict(document)
    wanted = {**document, "controlPlaneEndpoint": _endpoint(ctx)}
    if not _endpoint(ctx):
        del wanted["controlPlaneEndpoint"]
    return wanted


# ---- load-balancer


def plan_keeper(run: EndpointRun) -> Plan:
    return load_balancer.plan_shared_keeper(run) if run.config.is_control_plane else load_balancer.plan_keeper(run)


def find_without_balancer(ctx: EndpointRun) -> list[str]:
    """Names of the nodes that do not run their load balancer yet, so that the endpoint leads nowhere there."""
    if not load_balancer.is_wanted(ctx):
        return []
    pods = ctx.api.list(api.path_of("Pod", "", namespace=SYSTEM), label=f"component={balancer.NAME}")
    having = {str((pod.get("spec") or {}).get("nodeName")) for pod in pods} | {ctx.config.node.name}
    names = [str(found["metadata"]["name"]) for found in ctx.api.list(api.path_of("Node"))]
    return sorted(set(names) - having)


# ---- the clients


def _lagging_once(ctx: EndpointRun) -> list[str]:
    """find_lagging, once per run: it does a TLS handshake with every other API server."""
    if ctx.found.lagging is None:
        ctx.found.lagging = find_lagging(ctx)
    return list(ctx.found.lagging)


def plan_kubeconfigs(run: EndpointRun) -> Plan:
    """admin.conf, super-admin.conf and kubelet.conf. A kubelet.conf that uses the API server of its own node stays."""
    lagging = _lagging_once(run) if run.config.is_control_plane else []
    if lagging:
        why = f"the kubeconfigs stay as they are until all API servers have the name in their certificates: {', '.join(lagging)}"
        return Plan(Waiting("kubeconfigs", why))

    def check(_: Ground) -> bool:
        if _changed_kubeconfigs(run) and _endpoint(run) and run.host.is_live:
            check_serves(run)
        return True

    parts = _plan_files(run)
    return Plan(Later("the endpoint serves", read=lambda _: True, wait=check, then=lambda _: parts))


def _plan_files(run: EndpointRun) -> list[Part]:
    texts = _render_kubeconfigs(run)
    kubelet = texts.pop(run.paths.kubernetes / "kubelet.conf", None)
    parts: list[Part] = [_plan_file(path, text) for path, text in texts.items()]
    if kubelet is not None:
        conf = _plan_file(run.paths.kubernetes / "kubelet.conf", kubelet)
        parts.append(Group((conf,), guard=kubelet_start.Kubelet()))
    return parts


def _plan_file(path: Path, text: str) -> File:
    return File(path, text, mode=0o600, is_secret=True, keeps_rights=True)


def kubeconfigs_are_written(ctx: EndpointRun) -> bool:
    return not _changed_kubeconfigs(ctx)


def _changed_kubeconfigs(ctx: EndpointRun) -> list[Path]:
    """The kubeconfigs whose server is not the wanted one."""
    return [path for path, text in _render_kubeconfigs(ctx).items() if ctx.host.read_text(path) != text]


def _render_kubeconfigs(ctx: EndpointRun) -> dict[Path, str]:
    """The existing kubeconfigs that are to use the endpoint: path -> wanted text."""
    paths = [ctx.paths.kubeconfigs / name for name in ADMIN_CONFS] if ctx.config.is_control_plane else []
    kubelet_conf = ctx.paths.kubernetes / "kubelet.conf"
    if ctx.host.exists(kubelet_conf) and not _calls_own_server(ctx, kubelet_conf):
        paths.append(kubelet_conf)
    there = [path for path in paths if ctx.host.exists(path)]
    return {path: kubeconfig.with_server(ctx.host.read_text(path), _server(ctx), source=str(path)) for path in there}


def _calls_own_server(ctx: EndpointRun, path: Path) -> bool:
    if not ctx.config.is_control_plane:
        return False
    found = kubeconfig.parse_kubeconfig(ctx.host.read_text(path), source=str(path))
    return bool(found.server == kubeconfig.local_url(ctx.config))


def check_serves(ctx: EndpointRun) -> None:
    """Check that the API servers answer at the new name. It asks several times, since there may be several servers behind it.

    Raises ClusterError: endpoint-not-in-certificate, endpoint-unreachable.
    """
    for _ in range(6):
        try:
            ctx.host.http_get(f"{_server(ctx)}/version", tls=_tls(ctx), headers={"Connection": "close"}, timeout_s=10)
        except Unreachable as error:
            if error.reason == "tls":
                raise ClusterError(
                    f"an API server behind {_endpoint(ctx)} does not have that name in its certificate",
                    cause=error.cause,
                    remedy=f"run this on every control plane first: {COMMAND}",
                    code="endpoint-not-in-certificate",
                ) from error
            raise ClusterError(
                f"the API servers do not answer at {_endpoint(ctx)}",
                cause=error.cause,
                remedy=f"see what is there: curl -vk {_server(ctx)}/version",
                code="endpoint-unreachable",
            ) from error


def plan_cluster_info(run: EndpointRun) -> Plan:
    """The ConfigMap cluster-info, which joining nodes read. The controller-manager signs it again."""
    lagging = _lagging_once(run)
    if lagging:
        return Plan(
            Waiting("cluster-info", f"until all API servers have the name in their certificates: {', '.join(lagging)}")
        )
    return Plan(ClusterInfo(_cluster_info(run)))


def cluster_info_is_written(ctx: EndpointRun) -> bool:
    return objects.has_objects(ctx.api, [_cluster_info(ctx)])


def _cluster_info(ctx: EndpointRun) -> api.Object:
    return objects.render_cluster_info(_server(ctx), ctx.config.joined.ca_pem)


def plan_kube_proxy(run: EndpointRun) -> Plan:
    """Point kube-proxy of every node at the endpoint, and restart its pods one node after the other."""
    wanted = _kube_proxy(run)
    restarted = RestartedPods("pods of kube-proxy", api.path_of("DaemonSet", "kube-proxy", namespace=SYSTEM))
    if wanted is None:
        return Plan(restarted) if "kube-proxy" in run.selection.cut_off else Plan()
    lagging = _lagging_once(run)
    if lagging:
        return Plan(
            Waiting("kube-proxy", f"until all API servers have the name in their certificates: {', '.join(lagging)}")
        )
    missing = find_without_balancer(run)
    if missing:
        return Plan(Waiting("kube-proxy", f"until these nodes have their load balancer: {', '.join(missing)}"))
    patch = {"data": {"kubeconfig.conf": wanted}}
    path = api.path_of("ConfigMap", "kube-proxy", namespace=SYSTEM)
    title = "the server in ConfigMap kube-system/kube-proxy"
    plan = lambda found: None if yaml_files.covers(found, patch) else patch  # noqa: E731
    return Plan(PatchedFields(title, path, {"server": _server(run)}, plan, wait=lambda: None), restarted)


def kube_proxy_is_written(ctx: EndpointRun) -> bool:
    return _kube_proxy(ctx) is None


def _kube_proxy(ctx: EndpointRun) -> Optional[str]:
    """The kubeconfig of ConfigMap kube-proxy with the server; None if it is up to date or there is no kube-proxy."""
    found = ctx.api.get(api.path_of("ConfigMap", "kube-proxy", namespace=SYSTEM)) or {}
    text = str((found.get("data") or {}).get("kubeconfig.conf", ""))
    if not text:
        return None
    wanted = str(kubeconfig.with_server(text, _server(ctx), source="in ConfigMap kube-proxy")).rstrip("\n")
    return None if wanted == text.rstrip("\n") else wanted


# ---- removal and verification


def plan_removal(run: EndpointRun) -> Plan:
    """Remove the load balancer when the conversion that added it is undone and no kubeconfig of this node uses it any more."""
    if not run.change.drops_balancer or find_clients_left(run):
        return Plan()
    stored = (
        [Object(objects.render_kb_config(objects.read_pod_network(run.api)))] if run.config.is_control_plane else []
    )

    def find(ground: Ground) -> list[str]:
        pod = ["its pod"] if run.host.is_live and _balancer_runs(run) else []
        return [*balancer.find_node_files(ground.host, run.paths), *pod]

    def take_away(ground: Ground) -> None:
        balancer.remove_node_files(ground.host, run.paths)
        if run.host.is_live:
            end_balancer(dataclasses.replace(run, host=ground.host))

    made_by = ("load-balancer/local", "load-balancer/keeper")
    return Plan(*stored, Gone("the load balancer", find, take_away, made_by))


def _balancer_runs(ctx: EndpointRun) -> bool:
    found = containers.list_containers(ctx.host, ctx.config.node.cri_socket, name=balancer.NAME)
    return any(container.state == "running" for container in found)


def end_balancer(ctx: EndpointRun) -> None:
    """Wait until haproxy has stopped. If it does not stop, restart the kubelet once, then warn.

    A kubelet that was started just before the manifest was removed has read it already. It ignores the removal while its
    sources are not ready, and keeps the pod running until it is restarted."""

    def has_ended() -> bool:
        runs = _balancer_runs(ctx)
        if runs:
            ctx.report.waiting("waiting for the load balancer to end")
        return not runs

    for is_last in (False, True):
        if becomes_so(ctx.host, has_ended, timeout_s=END_S, poll_s=END_POLL_S):
            return
        if not is_last:
            kubelet_start.restart_kubelet(ctx)
    ctx.report.warn(f"the load balancer still runs, though its manifest is gone: crictl ps --name {balancer.NAME}")


def find_clients_left(ctx: EndpointRun) -> bool:
    return bool(_changed_kubeconfigs(ctx))


def verify_endpoint(ctx: EndpointRun) -> Outputs:
    """Check the new name as a client would, and list what is left to do on other nodes.

    Raises ClusterError: endpoint-not-in-certificate, endpoint-unreachable.
    """
    lagging = find_lagging(ctx) if ctx.config.is_control_plane else []
    if not lagging:
        check_serves(ctx)
    return Results(remaining=list_remaining(ctx, lagging))


def list_remaining(ctx: EndpointRun, lagging: list[str]) -> list[str]:
    """What is left to do after this run, one step per node, in the order to run them; [] if this node sees nothing left."""
    if not ctx.config.is_control_plane:
        return []
    undo = " --undo" if ctx.change.is_undo else ""
    steps = [f"on the control plane at {server}: {COMMAND}{undo}" for server in lagging]
    steps += [f"on node {name}: {COMMAND}{undo}" for name in find_without_balancer(ctx)]
    if not load_balancer.is_wanted(ctx):
        steps += [f"on worker {name}: {COMMAND}{undo}" for name in _workers(ctx)]
    is_open = not (kubeconfigs_are_written(ctx) and cluster_info_is_written(ctx) and kube_proxy_is_written(ctx))
    if is_open and steps:
        steps.append(f"then here again, for what waits for them: {COMMAND}{undo}")
    return steps


def _workers(ctx: EndpointRun) -> list[str]:
    """Names of all workers: this node cannot see which of their kubelet.conf files are done."""
    label = "node-role.kubernetes.io/control-plane"
    found = ctx.api.list(api.path_of("Node"))
    return sorted(str(one["metadata"]["name"]) for one in found if label not in (one["metadata"].get("labels") or {}))


def refuse_without_cluster(path: Path) -> HostError:
    return HostError(
        "this node is not a member of a cluster",
        cause=f"there is no usable {path}",
        remedy="run it on the cluster's nodes, the control planes first",
        code="not-a-member",
    )


CHECKS = Act(do=check_endpoint, live="node", always=True)
HANDSHAKE = Act(do=verify_endpoint, live="cluster", always=True)
