"""The phases of `kb readdress`: the address of a control plane has changed, and everything that names it follows.

On the machine itself: certificates for the same keys, kubeconfigs, static pods, the kubelet's flags, etcd's member; then what the cluster
stores. On the other nodes: whoever called the former address calls the new one. Names and data stay. What is replaced is kept, and every
step looks first, so that the same command goes on after a kill. kubeadm has no counterpart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubeup.addresses import host_of, join_host_port, replace_address
from kubeup.engine.cluster_items import PatchedFields, RestartedPods
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import wait_for
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap, stored_cluster

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api, etcd, objects, probes
    from kubeup.network import load_balancer
    from kubeup.node import cert_specs, certificates, kubeconfig, pki
    from kubeup.swap import manifests, proof, store

COMMAND = "kb readdress"
SERVING = ("apiserver", "etcd-server", "etcd-peer")
"""The certificates that have this machine's address in them."""
SERVE_S = 240.0
"""How long etcd and the API server may take: a kubelet that was started without an API server looks at static pods only after a minute."""
READY_S = 180.0
_KUBELET_FILES = ("/etc/default/kubelet", "/etc/sysconfig/kubelet")


@frozen_by_name
class ReaddressRun(Run):
    """old, new: the addresses. is_own: this machine's own address has changed; else this node only follows. peers: the client URLs of
    etcd's other members, as far as they are known. folder: where the former files are kept."""

    old: str
    new: str
    is_own: bool
    peers: tuple[str, ...] = ()
    folder: Path

    @property
    def real(self) -> Host:
        return self.machine or self.host

    @property
    def has_etcd(self) -> bool:
        return self.is_own and bool(self.config.is_control_plane and self.config.cluster.local_etcd)

    def say_again(self) -> str:
        return f"{COMMAND} {self.old} {self.new}"


# ---- the files


def list_files(host: Host, paths: Paths, *, is_own: bool) -> list[Path]:
    """The text files that may have the address in them. Whose address has not changed keeps his static pods: what they say of others is
    who was a member when they began."""
    folders = [paths.kubernetes] if paths.kubeconfigs == paths.kubernetes else [paths.kubernetes, paths.kubeconfigs]
    found = [place / name for place in folders for name in _names(host, place) if name.endswith(".conf")]
    found += [paths.kubelet_flags_env, paths.kubelet_config, paths.kubelet_instance_config, *map(Path, _KUBELET_FILES)]
    if is_own:
        found += [paths.manifests / name for name in _names(host, paths.manifests) if name.endswith(".yaml")]
        found += [manifests.former_of(paths, name) for name in store.COMPONENTS]
    return [path for path in dict.fromkeys(found) if host.exists(path)]


def _names(host: Host, place: Path) -> list[str]:
    return sorted(name for name in host.list_dir(place) if not name.startswith(".")) if host.is_dir(place) else []


def find_texts(host: Host, paths: Paths, *, old: str, new: str, is_own: bool) -> dict[Path, str]:
    """path -> its text with the new address, of the files that have the old one."""
    found = {}
    for path in list_files(host, paths, is_own=is_own):
        text = host.read_text(path)
        moved = replace_address(text, old, new=new)
        if moved != text:
            found[path] = moved
    balancer = _render_balancer(host, paths, old=old, new=new)
    return {**found, load_balancer.config_path(paths): balancer} if balancer else found


def _render_balancer(host: Host, paths: Paths, *, old: str, new: str) -> str:
    """The list of API servers of this node's load balancer with the new address; "" if it has none, or not the old one."""
    servers = load_balancer.read_servers(host, paths)
    moved = sorted({replace_address(one, old, new=new) for one in servers})
    if moved == sorted(servers):
        return ""
    return load_balancer.render_config(load_balancer.read_settings(host, paths), moved)


def find_certs(run: ReaddressRun) -> list[str]:
    """The certificates that lack the new address, or still have the old one."""
    found = []
    for name in SERVING if run.is_own else ():
        path = cert_specs.CERTS[name].cert_path(run.paths)
        if not run.host.exists(path):
            continue
        sans = certificates.sans_of(pki.read_certs(run.host, path)[0])
        if run.new not in sans.ips or run.old in sans.ips:
            found.append(name)
    return found


# ---- preflight


def check(ctx: ReaddressRun) -> Outputs:
    """What can be known before anything stops. Raises HostError (external-ca-signs); ClusterError: readdress-without-quorum,
    server-unreachable."""
    for name in find_certs(ctx):
        ca = pki.read_ca(ctx.host, ctx.paths, name=cert_specs.CERTS[name].signer)
        if ca.key is None:
            raise HostError(
                f"the certificate {name} cannot be issued for {ctx.new} on this node",
                cause=f"its CA {ca.path} signs elsewhere (there is no key beside it); nothing was changed",
                remedy=f"have your CA sign it with {ctx.new} in its names, put it in place, then: {ctx.say_again()}",
                code="external-ca-signs",
            )
    if not ctx.is_own:
        _check_server(ctx)
    elif ctx.has_etcd and ctx.peers:
        _find_living(ctx)
    for line in _read_hosts(ctx):
        ctx.report.warn(f"/etc/hosts has the former address, and is yours to change: {line}")
    return None


def _check_server(ctx: ReaddressRun) -> None:
    """Raises ClusterError (server-unreachable): this node would call nobody from now on."""
    kubelet_conf = ctx.paths.kubernetes / "kubelet.conf"
    server = host_of(_server_in(ctx.host, kubelet_conf))
    if server != ctx.old:
        return
    port = _port_in(ctx.host, kubelet_conf)
    pem = ctx.host.served_cert(ctx.new, port)
    authorities = certificates.parse_shown(ctx.config.joined.ca_pem) if ctx.config.join else []
    shown = certificates.parse_shown(pem) if pem else []
    if shown and (not authorities or any(certificates.is_signed_by(shown, one) for one in authorities)):
        return
    raise ClusterError(
        f"no API server of this cluster answers at {join_host_port(ctx.new, port)}",
        cause="its certificate is not signed by the cluster's CA"
        if shown
        else "the port is closed or silent; nothing was changed",
        remedy=f"on that control plane first: {ctx.say_again()}; then here",
        code="server-unreachable",
    )


def _server_in(host: Host, path: Path) -> str:
    """`host:port` that a kubeconfig calls; "" if there is none."""
    if not host.exists(path):
        return ""
    found = kubeconfig.parse_kubeconfig(host.read_text(path), source=str(path)).server or ""
    return str(found).partition("://")[2].partition("/")[0]


def _port_in(host: Host, path: Path) -> int:
    return int(_server_in(host, path).rpartition(":")[2] or 6443)


def _read_hosts(ctx: ReaddressRun) -> list[str]:
    path = Path("/etc/hosts")
    lines = ctx.host.read_text(path).splitlines() if ctx.host.exists(path) else []
    return [line for line in lines if replace_address(line, ctx.old, new=ctx.new) != line]


# ---- etcd's member


def _find_living(ctx: ReaddressRun) -> tuple[etcd.Etcd, tuple[etcd.Member, ...]]:
    """A client of etcd's other members, and their list. Raises ClusterError (readdress-without-quorum)."""
    client = etcd.Etcd(ctx.host, ctx.peers, tls=etcd.read_client_tls(ctx.host, ctx.paths))
    try:
        return client, client.list_members()
    except (Unreachable, KbError) as error:
        raise ClusterError(
            "etcd's other members do not agree on who is one of them",
            cause=f"{error}; a member's address is changed by the others, while they have a quorum; nothing was changed",
            remedy="start the machines of the other control planes, and see to it that this one reaches their port 2379; if they are "
            "lost: kb etcd recover",
            code="readdress-without-quorum",
        ) from error


def tell_members(ctx: ReaddressRun, client: etcd.Etcd, *, members: Sequence[etcd.Member]) -> None:
    """Have etcd's list name this member by its new address. Raises ClusterError (etcd-member-unknown)."""
    wanted = f"https://{join_host_port(ctx.new, 2380)}"
    own = next((one for one in members if one.name == ctx.config.node.name), None)
    own = own or next((one for one in members if ctx.old in {_host(url) for url in one.peer_urls}), None)
    if own is None:
        raise ClusterError(
            "etcd does not list this node's member",
            cause=f"none is called {ctx.config.node.name}, or has the address {ctx.old}: "
            + "; ".join(one.describe() for one in members),
            remedy="make this node a member anew: kb reset --force, then the words of: kb token create --print-join-command",
            code="etcd-member-unknown",
        )
    urls = tuple(replace_address(url, ctx.old, new=ctx.new) for url in own.peer_urls) or (wanted,)
    if urls != own.peer_urls:
        client.update(own, peer_urls=urls)
        ctx.report.note(f"etcd's member {own.name} has the address {', '.join(urls)} now")


def _host(url: str) -> str:
    return host_of(url.partition("://")[2])


# ---- the change on this machine


def move(ctx: ReaddressRun) -> Outputs:
    """Have this machine's files name the new address, and start what reads them. Raises KbError."""
    texts = find_texts(ctx.real, ctx.paths, old=ctx.old, new=ctx.new, is_own=ctx.is_own)
    names = find_certs(ctx)
    _end_way_back(ctx)
    _keep(ctx, [*texts, *(path for name in names for path in _files_of(ctx, name))])
    if ctx.has_etcd and ctx.peers:
        client, members = _find_living(ctx)
        tell_members(ctx, client, members=members)
    for name in names:
        pki.reissue_cert(ctx.real, ctx.paths, config=ctx.config, name=name, drops=(ctx.old,))
        ctx.report.note(f"certificate {name}: issued again, with {ctx.new}, for the same key")
    if ctx.is_own and ctx.config.is_control_plane and (names or texts or _left_out(ctx)):
        _move_pods(ctx, texts)
    elif texts:
        _write(ctx, texts)
        services.run(ctx.real, "restart", unit="kubelet", timeout_s=120)
        _follow_balancer(ctx)
    if ctx.is_own and ctx.config.is_control_plane:
        _wait_until_served(ctx)
    static_pods_swap.record_files(ctx, [path for path in texts if ctx.real.exists(path)])
    ctx.promises.tell_changed([*texts, *(cert_specs.CERTS[name].cert_path(ctx.paths) for name in names)])
    return None


def _files_of(ctx: ReaddressRun, name: str) -> tuple[Path, Path]:
    spec = cert_specs.CERTS[name]
    return spec.cert_path(ctx.paths), spec.key_path(ctx.paths)


def _end_way_back(ctx: ReaddressRun) -> None:
    """What was kept of a change in the other direction is of before this one: should the address go back once more, that begins anew."""
    former = ctx.folder.with_name(f"{ctx.new}-{ctx.old}")
    if ctx.real.exists(former):
        ctx.real.move_file(former, former.with_name(f"{former.name}.{ctx.real.now():%Y%m%dT%H%M%SZ}"))


def _keep(ctx: ReaddressRun, files: Sequence[Path]) -> None:
    """Copy the former files, those that an earlier run of this has not copied: it may have changed them."""
    host = ctx.real
    for path in files:
        copy = ctx.folder / path.relative_to("/")
        if host.exists(copy):
            continue
        for parent in reversed([one for one in copy.parents if not host.exists(one)]):
            host.make_dir(parent, mode=0o700)
        host.write_file(copy, host.read_bytes(path), mode=0o600)


def _write(ctx: ReaddressRun, texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        ctx.real.write_file(path, text, keeps=True)


def _left_out(ctx: ReaddressRun) -> list[str]:
    """The static pods whose manifest an earlier run has taken out."""
    return [name for name in store.COMPONENTS if ctx.real.exists(manifests.former_of(ctx.paths, name))]


def _move_pods(ctx: ReaddressRun, texts: Mapping[Path, str]) -> None:
    """Stop the kubelet and the static pods, which listen at an address that is gone; write what they read; start them."""
    host, paths = ctx.real, ctx.paths
    names = [name for name in store.COMPONENTS if host.exists(paths.manifest(name)) or name in _left_out(ctx)]
    run = dataclasses.replace(ctx, host=ctx.real)
    ctx.report.waiting("the kubelet and the static pods of this node stop")
    manifests.take_out_stopped(run, names)
    _write(ctx, {path: text for path, text in texts.items() if path.parent != paths.manifests})
    for path in [paths.manifests / name for name in _names(host, paths.manifests) if name.endswith(".yaml")]:
        if path in texts:  # those of others, and kb's load balancer
            host.write_file(path, texts[path], keeps=True)
    for name in names:
        former, live = manifests.former_of(paths, name), paths.manifest(name)
        if host.exists(former):
            host.write_file(former, replace_address(host.read_text(former), ctx.old, new=ctx.new), keeps=True)
            host.move_file(former, live)
    services.run(host, "start", unit="kubelet", timeout_s=120)
    _follow_balancer(ctx)


def _follow_balancer(ctx: ReaddressRun) -> None:
    """haproxy reads its new file, if this node runs one."""
    if not load_balancer.is_installed(ctx.real, ctx.paths):
        return
    told = load_balancer.reload(ctx.real, load_balancer.read_settings(ctx.real, ctx.paths))
    if told:
        ctx.report.note(f"the load balancer of this node: {told}")


def _wait_until_served(ctx: ReaddressRun) -> None:
    """etcd, whose single member learns its new address now, and the API server. Raises ClusterError (not-serving)."""
    run = dataclasses.replace(ctx, host=ctx.real)
    if ctx.has_etcd:
        _wait(ctx, functools.partial(proof.ask_etcd, run), goal="etcd")
        client = proof.own_etcd(run)
        tell_members(ctx, client, members=client.list_members())
    _wait(ctx, functools.partial(proof.ask_apiserver, run), goal="the API server")


def _wait(ctx: ReaddressRun, look: Any, *, goal: str) -> None:
    def ask() -> str:
        try:
            return str(look())
        except KbError as error:
            return error.cause or error.what

    def failure(missing: str, elapsed: float) -> ClusterError:
        return ClusterError(
            f"{goal} of this node does not serve at {ctx.new}",
            cause=f"{missing}; the former files are in {ctx.folder}",
            remedy=f"see why: kb doctor; then: {ctx.say_again()}",
            code="not-serving",
        )

    wait_for(ctx.real, ask, goal=goal, timeout_s=SERVE_S, tell=ctx.report.waiting, failure=failure, poll_s=1.0)


def foretell(ctx: ReaddressRun) -> Outputs:
    for path, text in find_texts(ctx.host, ctx.paths, old=ctx.old, new=ctx.new, is_own=ctx.is_own).items():
        ctx.host.write_file(path, text, keeps=True)
    for name in find_certs(ctx):
        ctx.report.note(f"would issue the certificate {name} again, with {ctx.new}, for the same key")
    return None


# ---- what the cluster stores


def _moved(ctx: ReaddressRun, text: str) -> str:
    return replace_address(text, ctx.old, new=ctx.new)


def plan_stored(run: ReaddressRun) -> Plan:
    """The endpoint and the names in ConfigMap kubeadm-config."""

    def change(document: Mapping[str, Any]) -> dict[str, Any]:
        found = yaml_files.load_mapping(_moved(run, yaml_files.dump_yaml(dict(document))), "ClusterConfiguration")
        return dict(found)

    return stored_cluster.plan_stored(run, change) if run.is_own else Plan()


def plan_cluster_info(run: ReaddressRun) -> Plan:
    """The server that joining nodes are told to call."""
    found = run.api.get(api.path_of("ConfigMap", "cluster-info", namespace=objects.PUBLIC))
    text = objects.value_of(found, "kubeconfig")
    if not run.is_own or _moved(run, text) == text:
        return Plan()
    return Plan(_patched("cluster-info", objects.PUBLIC, {"kubeconfig": _moved(run, text)}))


def plan_kube_proxy(run: ReaddressRun) -> Plan:
    """The server that kube-proxy of every node calls; its pods start again."""
    text = objects.read_config_key(run.api, "kube-proxy", key="kubeconfig.conf")
    restarted = RestartedPods("pods of kube-proxy", api.path_of("DaemonSet", "kube-proxy", namespace=objects.SYSTEM))
    if not run.is_own or not text:
        return Plan()
    if _moved(run, text) == text:
        return Plan(restarted) if "kube-proxy" in run.selection.cut_off else Plan()
    return Plan(_patched("kube-proxy", objects.SYSTEM, {"kubeconfig.conf": _moved(run, text)}), restarted)


def _patched(name: str, namespace: str, data: Mapping[str, str]) -> PatchedFields:  # noqa: PLR0917
    patch = {"data": dict(data)}
    path = api.path_of("ConfigMap", name, namespace=namespace)
    title = f"the server in ConfigMap {namespace}/{name}"
    plan = lambda found: None if yaml_files.covers(found, patch) else patch  # noqa: E731
    return PatchedFields(title, path, {"data": str(data)}, plan, wait=lambda: None)


# ---- the end


def wait_ready(ctx: ReaddressRun) -> Outputs:
    """Wait until the cluster sees this node Ready, at its new address, and list what is left to do elsewhere. Raises ClusterError
    (not-serving)."""
    if ctx.config.is_control_plane and not ctx.is_own:
        return None
    name = ctx.config.node.name

    def look() -> str:
        node = ctx.api.get(api.path_of("Node", name))
        status, message = probes.node_condition(node)
        rows = ((node or {}).get("status") or {}).get("addresses") or ()
        addresses = [str(row.get("address")) for row in rows if row.get("type") == "InternalIP"]
        if ctx.is_own and ctx.old in addresses:
            return f"node {name} still has the address {ctx.old}"
        return "" if status == "True" else f"node {name} is not Ready: {message}"

    _wait(ctx, look, goal=f"node {name}")
    return Results(remaining=tuple(_list_remaining(ctx))) if ctx.is_own and ctx.config.is_control_plane else None


def _list_remaining(ctx: ReaddressRun) -> Iterator[str]:
    """What the other nodes have to be told: those that call this API server by its address, or have a list of API servers of their own."""
    cluster = objects.read_config_key(ctx.api, "kubeadm-config", key="ClusterConfiguration")
    endpoint = str(yaml_files.load_mapping(cluster or "{}", "ClusterConfiguration").get("controlPlaneEndpoint") or "")
    has_lists = objects.read_load_balancer(ctx.api).is_local
    if endpoint and host_of(endpoint) != ctx.new and not has_lists:
        return
    for node in ctx.api.list(api.path_of("Node")):
        other = str(node["metadata"]["name"])
        if other != ctx.config.node.name:
            yield f"on {other}: {ctx.say_again()}"


CHECKS = Act(do=check, live="node", always=True)
MOVE = Act(do=move, foretell=foretell, live="node", always=True)
READY = Act(do=wait_ready, live="cluster", always=True)
