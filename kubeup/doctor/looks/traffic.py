"""Checks of network paths: the load balancer, the pod network, the cluster's DNS, the tunnel to other nodes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from kubeup.addresses import join_host_port
from kubeup.cluster import api as kubeapi
from kubeup.cluster import dns_service, objects, probes, system_rights
from kubeup.diagnosis import container_trouble, kubelet_trouble, signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.looks import dns_zone, pod_wiring
from kubeup.doctor.node_files import Patient, open_api
from kubeup.errors import KbError
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, AnyTls, Tls, Unreachable
from kubeup.network import (
    drain,
    drain_marks,
    forwarding,
    load_balancer,
    node_routes,
    pod_network,
    pod_view,
    pod_walks,
    route_keeper,
    route_plan,
    step_aside,
)
from kubeup.node import crictl
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble
from kubeup.upgrade.corefile import EDIT


def look_at_load_balancer(patient: Patient) -> Findings:
    """haproxy on this node, if kb installed one: the endpoint's name resolves to it, it runs with its current file, it
    is kept up to date."""
    host, paths, name = patient.host, patient.paths, "load-balancer"
    if not load_balancer.is_installed(host, paths):
        return
    settings = load_balancer.read_settings(host, paths)
    anew = f"kb {'init' if 'kube-apiserver' in patient.components else 'join'} phase load-balancer"
    hosts = load_balancer.read_hosts(host)
    if load_balancer.plan_hosts(hosts, settings.name) != hosts:
        text = f"{settings.name} does not lead to this node's load balancer: kb's line in {load_balancer.HOSTS} was changed"
        yield Finding(name, ERROR, text, anew)
    path = load_balancer.config_path(paths)
    servers, wanted = load_balancer.parse_config(host.read_text(path) if host.exists(path) else "")
    running = load_balancer.read_running_digest(host, settings.health_port)
    if not servers:
        yield Finding(name, ERROR, f"{path} names no API server", anew)
    elif not host.exists(paths.manifest(load_balancer.NAME)):
        text = f"{paths.manifest(load_balancer.NAME)} is not there, so no load balancer runs here"
        yield Finding(name, ERROR, text, anew)
    elif not running:
        denial = kubelet_trouble.read_denial(host, load_balancer.NAME)
        text = f"no load balancer answers on 127.0.0.1:{settings.health_port}"
        if denial:
            again = signs.say_restart(host, "kubelet")
            yield Finding(name, ERROR, f"{text}: the kubelet refused its static pod: {denial}", again)
            return
        yield Finding(name, ERROR, text, f"crictl logs $(crictl ps -aq --name {load_balancer.NAME} | head -1)")
    elif running != wanted:
        text = f"the load balancer runs with other servers than {path} names ({', '.join(servers)})"
        yield Finding(name, WARNING, text, f"systemctl restart {load_balancer.UNIT}, which makes it read its file")
    else:
        yield from _judge_way_to(patient, servers)
    if host.query(["systemctl", "is-active", load_balancer.UNIT]).stdout.strip() != "active":
        text = f"{load_balancer.UNIT} does not run: API servers that come or go are not followed"
        yield Finding(
            name,
            WARNING,
            text,
            f"systemctl start {load_balancer.UNIT}; why it ended: journalctl -u {load_balancer.UNIT} -n 20",
        )
    yield from _look_at_marks(patient)


def _judge_way_to(patient: Patient, servers: Sequence[str]) -> Findings:
    """Whether this machine reaches an API server at its own address: behind a load balancer, a firewall between looks like a broken handshake. And on
    a worker, whether each of those that it reaches proves itself: the load balancer leads to all of them."""
    tls = _read_trust(patient)
    with ThreadPoolExecutor(len(servers)) as pool:
        seen = dict(zip(servers, pool.map(functools.partial(_ask_server, patient.host, tls), servers)))
    reached = [server for server, error in seen.items() if error is None or error.reason == "tls"]
    doubtful = {server: error.cause for server, error in seen.items() if error is not None and error.reason == "tls"}
    if reached and len(doubtful) < len(reached) and not patient.is_control_plane:
        for server, cause in doubtful.items():
            text = f"API server {server}, to which this node's load balancer leads, presents a certificate that this node does not accept: {cause}"
            yield Finding("load-balancer", ERROR, text, "on that machine: kb doctor")
    if reached:
        return
    named = "; ".join(f"{server}: {error.cause}" for server, error in seen.items() if error)
    if any(error and error.reason == "timeout" for error in seen.values()):
        drops = forwarding.describe_output_drops(patient.host)
        named += f"; of this machine, {drops}" if drops else ""
        remedy = "let TCP pass from here to there (a firewall or security group drops it; of this machine's own: iptables -S; nft list ruleset)"
    else:
        remedy = "see what is wrong there, on a control plane: kb doctor"
    yield Finding("load-balancer", ERROR, f"no API server answers this node ({named})", remedy)


def _read_trust(patient: Patient) -> AnyTls:
    try:
        tls = kubeapi.read_identity(patient.host, patient.paths.kubeconfig("kubelet.conf")).tls
    except KbError:
        return UNPROVEN  # the check of its files reports why
    return Tls(tls.ca)


def _ask_server(host: Host, tls: AnyTls, server: str) -> Optional[Unreachable]:  # noqa: PLR0917
    try:
        host.http_get(f"https://{server}/livez", tls=tls, timeout_s=3)
    except Unreachable as error:
        return error
    return None


def _look_at_marks(patient: Patient) -> Findings:
    """API servers that are marked as out of the load balancers. A control plane may read all of the cluster's marks."""
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    marks = dict[str, str]()
    with contextlib.suppress(Unreachable, kubeapi.ApiRefused):  # the check of this node reports why
        marks = drain.read_marks(open_api(patient))
    for server, serial in sorted(marks.items()):
        age_s = drain.age_of(serial, now=patient.host.now())
        if age_s < drain_marks.LAPSE_S:
            text = f"the load balancers send no new connections to API server {server} since {age_s:.0f} s"
            remedy = f"let the command end that is restarting it; if none is, put it back: {drain.say_removal(server)}"
        else:
            text = f"API server {server} is still marked as out of the load balancers ({serial}), which ignore so old a mark"
            remedy = f"the command that set the mark was interrupted; remove it: {drain.say_removal(server)}"
        yield Finding("load-balancer", WARNING, text, remedy)


def look_at_pod_network(patient: Patient) -> Findings:
    """Pods that were started in kb's network, if the runtime uses another one now; else what kb's network needs of this machine."""
    first = node_routes.find_first_cni_config(patient.host, patient.paths)
    lost = list(pod_wiring.find_lost_plugins(patient))
    if lost:
        yield from lost
        return
    yield from pod_wiring.find_taken_addresses(patient)
    if not pod_network.is_kept(patient.host, patient.paths):
        return
    if first in ("", node_routes.CNI_FILE):
        yield from _look_at_own_network(patient, has_config=bool(first))
        yield from pod_wiring.find_odd_routes(patient)
        return
    bridge = step_aside.read_bridge(patient.host)
    if bridge is None or not bridge.ports:
        return
    pods = _find_pods(patient, step_aside.read_sandboxes(patient.host))
    text = f"the network is {patient.paths.cni_conf / first}'s now: {step_aside.describe_left(bridge)}"
    named = "; ".join(f"kubectl -n {namespace} delete pod {name}" for namespace, name in pods)
    yield Finding("pod-network", WARNING, text, named or f"find them: bridge link show master {step_aside.BRIDGE}")


_BRIDGE_NF = "/proc/sys/net/bridge/bridge-nf-call-iptables"


def _look_at_own_network(patient: Patient, *, has_config: bool) -> Findings:
    if facts.read_or_empty(patient.host, _BRIDGE_NF).strip() == "0":
        text = "kube-proxy's rules do not see packets between pods of this node (net.bridge.bridge-nf-call-iptables is 0), which reach no Service whose pod is here"
        yield Finding(
            "pod-network",
            ERROR,
            text,
            "sysctl -w net.bridge.bridge-nf-call-iptables=1; and in /etc/sysctl.d, see what sets it: grep -r bridge-nf /etc/sysctl*",
        )
    if not has_config:
        text = f"there is no CNI configuration in {patient.paths.cni_conf}: the runtime can start no pod"
        again = f"kb {'init' if patient.is_control_plane else 'join'} phase pod-network"
        yield Finding("pod-network", ERROR, text, f"have it written again: {again}")
    missing = forwarding.find_missing_rules(patient.host)
    if missing:
        yield Finding("pod-network", ERROR, missing, f"systemctl restart {pod_network.UNIT}, which writes them")


def _find_pods(patient: Patient, sandboxes: set[str]) -> list[tuple[str, str]]:
    """(namespace, name) of the pods that have these sandboxes, as far as the runtime knows."""
    words = crictl.crictl_argv(patient.config.node.cri_socket, "pods", "--state", "ready", "-o", "json")
    answer = patient.host.query(words, timeout_s=15) if patient.host.which("crictl") else None
    listed = as_table(answer.stdout).get("items") if answer and answer.ok else []
    pods = fit_what_does(listed, [{"id!": str, "metadata!": {"namespace!": str, "name!": str}}])
    described = [pod["metadata"] for pod in pods if pod["id"] in sandboxes]
    return sorted((found["namespace"], found["name"]) for found in described)


def look_at_dns(patient: Patient) -> Findings:
    """The cluster's DNS through its Service, queried from this node and then from one of its pods, whose packets take
    another path."""
    servers = patient.config.kubelet.get("clusterDNS") or []
    if not patient.is_member or not servers:
        return
    name = f"kubernetes.default.svc.{patient.config.cluster.networking.dns_domain}"
    if any(probes.lookup_in_cluster(patient.host, str(server), name=name) for server in servers):
        yield from _look_from_pods(patient, str(servers[0]), name=name)
        yield from _look_outside(patient, str(servers[0]))
        return
    if _is_left_out(patient, [str(server) for server in servers]):
        return
    failure = next(filter(None, (probes.ask_dns(patient.host, str(server), name=name) for server in servers)), "")
    if failure:
        yield _describe_failure(patient, f"the cluster's DNS at {servers[0]} answers {failure} for {name}")
        return
    lost = container_trouble.find_lost_rules(patient.host, patient.config.node.cri_socket)
    what = f"the cluster's DNS at {servers[0]} does not answer for {name}"
    if lost:
        yield Finding("dns", ERROR, f"{what}: {lost}", lost.remedy)
        return
    silence = _explain_silence(patient, [str(server) for server in servers])
    if silence:
        yield Finding("dns", ERROR, f"{what}: {silence}", silence.remedy)
        return
    line = container_trouble.container_error(patient.host, patient.config.node.cri_socket, name="kube-proxy")
    where = "" if patient.is_control_plane else ", on a control plane"
    yield Finding(
        "dns",
        ERROR,
        what + (f" (kube-proxy: {line})" if line else ""),
        f"see whether CoreDNS and kube-proxy run{where}: kubectl -n kube-system get pods -o wide",
    )


def _describe_failure(patient: Patient, what: str) -> Finding:
    """Packets come and go, and what answers does not know the cluster's Services."""
    # a worker's identity may read CoreDNS' ConfigMap only if a pod of it runs there; the cluster's configuration, any node may read
    for explain in (dns_zone.explain_zone, dns_zone.explain_domain):
        with contextlib.suppress(KbError):
            zone = explain(open_api(patient), patient.config.cluster.networking.dns_domain)
            if zone is not None:
                return Finding("dns", ERROR, f"{what}: {zone}", zone.remedy)
    silence = _explain_silence(patient, [str(server) for server in patient.config.kubelet.get("clusterDNS") or ()])
    if silence:
        return Finding("dns", ERROR, f"{what}: {silence}", silence.remedy)
    where = "" if patient.is_control_plane else ", on a control plane"
    see = "kubectl -n kube-system logs -l k8s-app=kube-dns; its Corefile: kubectl -n kube-system get configmap coredns -o yaml"
    return Finding("dns", ERROR, what, f"see what CoreDNS says{where}: {see}")


def _look_outside(patient: Patient, server: str) -> Findings:
    """Names that are not the cluster's: only if this machine's own name servers know any can pods expect to. CoreDNS tries for 5 s."""
    own = next((one for one in _read_name_servers(patient) if not _fails_outside(patient, one, timeout_s=1)), "")
    if not own:
        yield from _judge_forwards(patient, server)
        return
    if own == server or not all(_fails_outside(patient, server, timeout_s=7) for _ in range(2)):
        return
    targets = list[str]()
    with contextlib.suppress(KbError):
        targets = dns_zone.read_forwards(open_api(patient))
    text = (
        f"the cluster's DNS at {server} finds no names outside the cluster, and this machine's name server {own} does"
    )
    if targets:
        text += f": CoreDNS asks {' and '.join(dict.fromkeys(targets))} for them (forward in its Corefile)"
    remedy = f"see whether those answer the machines where CoreDNS runs, or have it ask these machines' own (forward . /etc/resolv.conf): {EDIT}"
    yield Finding("dns", ERROR, text, remedy)


def _judge_forwards(patient: Patient, server: str) -> Findings:
    """Where this machine finds no names outside either: name servers that somebody wrote into the Corefile are there to answer."""
    named = list[str]()
    with contextlib.suppress(KbError):
        named = dns_zone.read_forwards(open_api(patient))
    hosts = [one[: -len(":53")] if one.endswith(":53") else one for one in named]
    if not hosts or not all(facts.address_or_none(one) for one in hosts):
        return  # the machine's own, or what answers in another way than by UDP
    if all(probes.ask_dns(patient.host, one, name=".", timeout_s=1) is None for one in hosts):
        text = f"no name server answers to which CoreDNS forwards ({' and '.join(dict.fromkeys(named))}): pods find no names outside the cluster"
        remedy = f"correct forward in the Corefile, or leave it out if there is nothing outside: {EDIT}"
        if _fails_outside(patient, server, timeout_s=7):
            yield Finding("dns", WARNING, text, remedy)


def _fails_outside(patient: Patient, server: str, *, timeout_s: float) -> bool:
    """Whether a name server gets no answer from others: one that refuses to tell of the root has one of its own."""
    return probes.ask_dns(patient.host, server, name=".", timeout_s=timeout_s) in (None, "SERVFAIL")


def _read_name_servers(patient: Patient) -> list[str]:
    """The name servers that the kubelet gives to CoreDNS."""
    text = facts.read_or_empty(patient.host, str(patient.config.kubelet.get("resolvConf") or "/etc/resolv.conf"))
    words = [line.split() for line in text.splitlines()]
    return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and facts.address_or_none(line[1])]


def _is_left_out(patient: Patient, servers: list[str]) -> bool:
    """Whether nobody wants a DNS in this cluster, as far as that can be read."""
    with contextlib.suppress(KbError):
        return dns_service.is_left_out(open_api(patient), servers)
    return False


def _explain_silence(patient: Patient, servers: list[str]) -> Optional[Trouble]:
    """What of the DNS' Service and pods is not as it should be, as far as this node's identity may read it."""
    with contextlib.suppress(KbError):
        api = open_api(patient)
        silence = dns_service.explain_silence(api, servers, reads_pods=patient.is_control_plane)
        return silence or system_rights.find_proxy_astray(api)
    return None


def _look_from_pods(patient: Patient, dns_address: str, *, name: str) -> Findings:
    """What every pod needs, queried from the network namespaces of pods that run here; doctor creates none."""
    host = patient.host
    is_own_network = node_routes.is_own_network(host, patient.paths)
    places = pod_view.find_namespaces(host, patient.config.node.cri_socket, is_own_network=is_own_network)
    ways = _read_ways(patient, dns_address, name=name) if places else None
    for place in places:
        # a lost datagram is not a broken path, so try again
        cut = ways and _find_cut(patient, place, ways=ways) and _find_cut(patient, place, ways=ways)
        if cut:
            yield Finding("dns", ERROR, str(cut), cut.remedy)
            return


def _find_cut(patient: Patient, place: Path, *, ways: pod_view.Ways) -> Optional[Trouble]:
    host, socket = patient.host, patient.config.node.cri_socket
    rules = functools.partial(container_trouble.find_lost_rules, host, socket)
    return pod_walks.find_cut(host, place, ways=ways, find_lost_rules=rules)


def _read_ways(patient: Patient, dns_address: str, *, name: str) -> pod_view.Ways:
    """The Services, and their endpoints as far as this node's identity may read them."""
    api_address, pods, servers = "", [], list[str]()
    with contextlib.suppress(KbError):
        api = open_api(patient)
        servers = [api.server]
        service = api.get(kubeapi.path_of("Service", "kubernetes", namespace="default")) or {}
        api_address = str((service.get("spec") or {}).get("clusterIP") or "")
        pods = probes.read_dns_pods(api) if patient.is_control_plane else []
        servers += [f"https://{one}" for one in objects.read_api_servers(api)]
    reached = (way for url in dict.fromkeys(servers) for way in pod_view.server_ways(url))
    behind = (*pod_view.dns_pod_ways(pods, patient.config.node.name), *reached)
    return pod_view.Ways(name, pod_view.service_ways(dns_address, api_address), behind)


def look_at_tunnel(patient: Patient) -> Findings:
    """The other ends of kb's VXLAN: a firewall between two networks often blocks only this traffic."""
    host, name = patient.host, "tunnel"
    network = (
        node_routes.read_network(host)
        if host.exists(route_keeper.settings_path(patient.paths))
        else route_plan.Network()
    )
    remotes = dict(network.forwards)
    for gateway, mac in sorted(network.neighbours):
        remote = remotes.get(mac, "")
        if not remote or _answers(host, gateway):
            continue
        if _answers(host, remote):
            own = network.vxlan.local if network.vxlan else "this node"
            yield Finding(
                name,
                ERROR,
                f"the node {remote} answers, and through the tunnel it does not: pods here and there do not reach each other",
                f"let UDP port {route_plan.VXLAN_PORT} pass between {own} and {remote}, both ways (firewall, security group); "
                f"if it does, see the keeper on that node: journalctl -u {pod_network.UNIT} -n 20",
            )
        else:
            text = f"the node {remote} does not answer: no pod on it can be reached"
            yield Finding(name, WARNING, text, "see whether it is Ready: kubectl get nodes -o wide")


def _answers(host: Host, address: str) -> bool:
    """Whether anything comes back from an address: the kubelet's port is tried, and a refusal is an answer."""
    try:
        host.http_get(f"https://{join_host_port(address, 10250)}/healthz", tls=UNPROVEN, timeout_s=3)
    except Unreachable as error:
        return error.reason in ("refused", "reset", "tls")
    return True
