"""kb doctor: what is wrong with this node, now, without changing anything.

Owns the table LOOKS: the checks that preflight has too, the chain that is walked while kb waits, and what only a node
that has been at work can show (certificates as served, clock, disk, DNS, images, a kubelet that runs with other flags
than the files say). It knows the node from its files alone, so that it works when the API server does not. Must not
change anything: it is given a host that plans changes instead of making them. kubeadm has no like of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup import releases
from kubeup.addresses import join_host_port
from kubeup.cluster import api as kubeapi
from kubeup.cluster import etcd, membership, probes, signing_request
from kubeup.config import choose
from kubeup.config.types import (
    ClusterConfiguration,
    ExternalEtcd,
    KbConfiguration,
    LocalAPIEndpoint,
    LocalEtcd,
    Networking,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
)
from kubeup.diagnosis import chain, container_trouble, kubelet_trouble, signs
from kubeup.diagnosis.checks import facts, table
from kubeup.diagnosis.checks.facts import ERROR, WARNING
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Unreachable
from kubeup.network import load_balancer, node_routes, pod_network, pod_view, route_keeper, route_plan, step_aside
from kubeup.node import cert_specs, certificates, crictl, image_pulls, kubeconfig, kubelet, pki, runtime
from kubeup.paths import Paths
from kubeup.releases import Release
from kubeup.shapes import fit_what_does
from kubeup.yaml_files import YAMLError, load_yaml

OK = "ok"
EXPIRES_SOON = datetime.timedelta(days=30)
CLOCK_WARNING_S, CLOCK_ERROR_S = 30, 300
SLOW_FSYNC_S = 0.01
"""etcd's own advice: 99 of 100 writes to its log are on disk within 10 ms."""

PROBES_S = 30
"""After this long a pod that runs well has been probed, and is Ready."""

_COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@frozen
class Note:
    """What one look found: level ok | warning | error."""

    look: str
    level: str
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@frozen
class Patient:
    """The node as its files describe it, and with whose identity the API server may be asked."""

    host: Host
    paths: Paths
    config: NodeConfig
    release: Release
    kubeconfig: Path
    is_control_plane: bool
    is_member: bool
    """A kubelet was configured here: the node belongs to a cluster."""

    @property
    def components(self) -> tuple[str, ...]:
        """The static pods of this node, in the order in which one needs the other."""
        return tuple(name for name in _COMPONENTS if self.host.exists(self.paths.manifest(name)))


# ---- the node from its files


def read_patient(host: Host, paths: Paths, *, kubeconfig_file: Optional[Path] = None) -> Patient:
    """The node as its manifests and the kubelet's files describe it."""
    paths = find_paths(host, paths)
    apiserver, manager = read_flags(host, paths, "kube-apiserver"), read_flags(host, paths, "kube-controller-manager")
    config = _read_mapping(host, paths.kubelet_config)
    flags = _read_kubelet_flags(host, paths)
    version = _find_version(host, paths)
    is_control_plane = host.exists(paths.manifest("kube-apiserver"))
    cluster = ClusterConfiguration(
        version,
        networking=Networking(
            service_subnet=apiserver.get("service-cluster-ip-range", Networking.service_subnet),
            pod_subnet=manager.get("cluster-cidr", ""),
            dns_domain=str(config.get("clusterDomain") or Networking.dns_domain),
        ),
        **_read_etcd(host, paths, apiserver),
    )
    own = NodeConfig(
        cluster,
        NodeRegistration(
            read_cert_node_name(host, paths) or _read_called_name(host, flags),
            cri_socket=_find_socket(host, paths, config, flags),
        ),
        LocalAPIEndpoint(
            apiserver.get("advertise-address") or choose.choose_advertise_address(host, "", prefer=4).value,
            int(apiserver.get("secure-port") or 6443),
        ),
        kubelet=config,
        kb=KbConfiguration(PodNetwork("bridge" if pod_network.is_kept(host, paths) else "none")),
    )
    default = paths.admin_conf if host.exists(paths.admin_conf) else paths.kubeconfig("kubelet.conf")
    is_member = host.exists(paths.kubelet_config)
    release = releases.find_release(version)
    return Patient(host, paths, own, release, kubeconfig_file or default, is_control_plane, is_member)


def _read_kubelet_flags(host: Host, paths: Paths) -> dict[str, str]:
    text = facts.read_or_empty(host, str(paths.kubelet_flags_env))
    return {arg.name: arg.value for arg in kubelet.parse_flags_env(text)}


def _read_called_name(host: Host, flags: Mapping[str, str]) -> str:
    """The name with which the kubelet would register now."""
    return flags.get("hostname-override") or choose.read_node_name(host)


def find_paths(host: Host, paths: Paths) -> Paths:
    """Where this node's files lie, as its static pods say: certificatesDir and etcd's dataDir may be anywhere, and a default
    would find a healthy node broken. Without static pods (a worker) `paths` as they are."""
    flags = read_flags(host, paths, "kube-apiserver")
    told = [Path(flags.get(flag, "")) for flag in ("tls-cert-file", "client-ca-file")]
    folder = next((path.parent for path in told if path.is_absolute() and host.exists(path)), paths.pki)
    data = read_flags(host, paths, "etcd").get("data-dir", "")
    return dataclasses.replace(paths, pki=folder, etcd_data=Path(data) if data.startswith("/") else paths.etcd_data)


def find_own_server(host: Host, paths: Paths) -> str:
    """`https://10.0.0.11:8443`, this node's API server as its static pod says; "" where there is none."""
    flags = read_flags(host, paths, "kube-apiserver")
    address, port = flags.get("advertise-address", ""), flags.get("secure-port") or "6443"
    return f"https://{join_host_port(address, port)}" if address else ""


def read_flags(host: Host, paths: Paths, component: str) -> dict[str, str]:
    """The flags in a component's manifest, by name without dashes; {} where there is none. The last one counts."""
    pod = _read_mapping(host, paths.manifest(component))
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    words = [str(word) for word in (*(containers[0].get("command") or ()), *(containers[0].get("args") or ()))]
    return {name[2:]: value for name, _, value in (word.partition("=") for word in words) if name.startswith("--")}


def _read_mapping(host: Host, path: Path) -> dict[str, Any]:
    try:
        found = load_yaml(facts.read_or_empty(host, str(path)) or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _find_version(host: Host, paths: Paths) -> str:
    """Of the API server's image, else of the kubelet, else the newest that kb knows."""
    text = facts.read_or_empty(host, str(paths.manifest("kube-apiserver")))
    match = re.search(r"image: \S+/kube-apiserver[^:\s]*:(v[\d.]+\S*)", text)
    told = (
        match.group(1) if match else host.query(["kubelet", "--version"], timeout_s=15).stdout.replace("Kubernetes", "")
    )
    found = releases.parse_version(told.strip())
    return found.text if found and found.minor in releases.RELEASES else releases.NEWEST_PROVEN


def _read_etcd(host: Host, paths: Paths, apiserver: Mapping[str, str]) -> dict[str, Any]:
    if host.exists(paths.manifest("etcd")):
        data_dir = read_flags(host, paths, "etcd").get("data-dir", "/var/lib/etcd")
        return {"local_etcd": LocalEtcd(data_dir=data_dir)}
    return {"local_etcd": None, "external_etcd": find_external_etcd(apiserver)}


def find_external_etcd(apiserver: Mapping[str, str]) -> Optional[ExternalEtcd]:
    """What an API server with these flags knows of etcd, on a node that runs none; None where it was told nothing."""
    urls = tuple(filter(None, apiserver.get("etcd-servers", "").split(",")))
    if not urls:
        return None
    ca, cert, key = (apiserver.get(f"etcd-{name}", "") for name in ("cafile", "certfile", "keyfile"))
    return ExternalEtcd(urls, ca_file=ca, cert_file=cert, key_file=key)


def _find_socket(host: Host, paths: Paths, config: Mapping[str, Any], flags: Mapping[str, str]) -> str:
    instance = _read_mapping(host, paths.kubelet_instance_config)
    told = instance.get("containerRuntimeEndpoint") or config.get("containerRuntimeEndpoint")
    return str(told or flags.get("container-runtime-endpoint") or choose.choose_cri_socket(host).value)


# ---- the looks

Notes = Iterable[Note]


def look_at_checks(patient: Patient) -> Notes:
    """What preflight looks at, as far as it concerns a node at work."""
    node = facts.Node(
        patient.host, patient.config, patient.release, patient.paths, workflow=facts.DOCTOR,
        owned=frozenset({str(patient.paths.manifest(name)) for name in patient.components}),
    )  # fmt: skip
    only_control_plane = ("NumCPU", "Mem")
    for batch in (facts.ROOT, facts.NODE):
        for finding in table.run_batch(node, batch):
            if patient.is_control_plane or finding.name not in only_control_plane:
                yield Note(finding.name, finding.level, finding.text, finding.remedy)


def look_at_chain(patient: Patient) -> Notes:
    """Kubelet, runtime, sandboxes, containers, probes: the first broken link."""
    if not patient.is_member:
        return
    unhealthy = {name: seen for name, seen in probe_components(patient).items() if seen}
    components = (*patient.components, "kube-proxy", "coredns") if patient.is_control_plane else ("kube-proxy",)
    link = chain.find_broken_link(
        patient.host, patient.config.node.cri_socket, components=components, unhealthy=unhealthy
    )
    if link:
        yield Note(f"chain/{link.link}", ERROR, f"{link.what}: {link.cause}", link.remedy)
        return
    for name, seen in unhealthy.items():
        yield Note("chain/probe", ERROR, f"{name} is not healthy: {seen}", f"crictl logs $(crictl ps -q --name {name})")


def probe_components(patient: Patient) -> dict[str, str]:
    """What the health endpoint of each static pod says; "" for healthy."""
    found = {}
    for name in patient.components:
        if name == "etcd":
            url = read_flags(patient.host, patient.paths, "etcd").get("listen-metrics-urls", "").partition(",")[0]
            seen = (
                probes.probe_url(patient.host, f"{url}/health?serializable=false") if url else probes.Health(True, "")
            )
        else:
            seen = probes.probe_url(patient.host, probes.component_url(patient.host, patient.paths, name))
        is_closed = name == "kube-apiserver" and seen.seen.startswith(("HTTP 401", "HTTP 403"))
        found[name] = "" if seen.is_healthy or is_closed else seen.seen
    return found


def look_at_static_pods(patient: Patient) -> Notes:
    """Static pods that run while the kubelet holds them for not ready: it is about to restart them."""
    if not patient.is_control_plane:
        return
    try:
        api = kubeapi.Api(patient.host, kubeapi.read_identity(patient.host, patient.kubeconfig), retry_s=0)
        pods = probes.read_static_pods(api, patient.config.node.name)
        failing = [pod.component for pod in pods if pod.running_since and not pod.is_ready]
        told = {name: probes.read_probe_failure(api, f"{name}-{patient.config.node.name}") for name in failing}
    except KbError:
        return  # an API server that does not answer is another look's matter
    young = {
        pod.component for pod in pods if pod.running_since and _seconds_since(patient, pod.running_since) < PROBES_S
    }
    for name, text in told.items():
        if not text and name in young:
            continue  # it has not been probed yet
        flags = read_flags(patient.host, patient.paths, name)
        closed = probes.describe_closed_probes(flags.items()) if name == "kube-apiserver" else ""
        remedy = probes.CLOSED_PROBES_REMEDY if closed else f"crictl logs $(crictl ps -q --name {name})"
        cause = "; ".join(filter(None, (text or "the kubelet has said nothing of its probes", closed)))
        yield Note("static-pods", ERROR, f"{name} runs, and is not Ready: {cause}", remedy)


def _seconds_since(patient: Patient, moment: datetime.datetime) -> float:
    return (patient.host.now() - moment).total_seconds()


def look_at_certs(patient: Patient) -> Notes:
    """Certificates on disk: valid now and for a while yet, and with the key that belongs to them."""
    host, paths = patient.host, patient.paths
    if patient.is_control_plane:
        problems = [*pki.find_problems(host, paths, _as_found(patient)), *kubeconfig.find_problems(host, paths)]
        for problem in problems:
            yield Note("certificates", ERROR, str(problem), problem.remedy)
        bundle = _describe_bundle(patient)
        if bundle:
            yield Note("certificates", WARNING, bundle, "then: kb init phase control-plane controller-manager")
    for path, cert in _find_certs(patient):
        left = cert.not_valid_after_utc - host.now()
        if left < datetime.timedelta(0):
            text = f"{path} expired {_days(-left)} ago ({cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC)"
            yield Note("certificates", ERROR, text, _renewal(host, path))
        elif left < EXPIRES_SOON and not _renews_itself(path):
            yield Note("certificates", WARNING, f"{path} expires in {_days(left)}", _renewal(host, path))


def _describe_bundle(patient: Patient) -> str:
    """What is told when certificates are issued; the signer's own flag says which file it takes."""
    host, paths = patient.host, patient.paths
    path = cert_specs.CERTS["ca"].cert_path(paths)
    try:
        flags = read_flags(host, paths, "kube-controller-manager")
        text = pki.describe_bundle(host, pki.read_ca(host, paths))
    except KbError:
        return ""  # a problem, told elsewhere
    return text if flags.get("cluster-signing-cert-file") == str(path) else ""


def _as_found(patient: Patient) -> NodeConfig:
    """Names beyond those that kb would ask for are not known from the files: ask for none but the address."""
    return patient.config


def _find_certs(patient: Patient) -> Iterator[tuple[Path, Any]]:
    host, paths = patient.host, patient.paths
    for folder in (paths.pki, paths.pki / "etcd"):
        for name in host.list_dir(folder):
            if name.endswith(".crt"):
                yield from _parsed(folder / name, facts.read_or_empty(host, str(folder / name)))
    for pem in (paths.kubelet_client_pem, Path("/var/lib/kubelet/pki/kubelet.crt")):
        if host.exists(pem):
            yield from _parsed(pem, facts.read_or_empty(host, str(pem)))
    for name in ("admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf", "kubelet.conf"):
        path = paths.kubeconfig(name)
        if host.exists(path):
            try:
                found = kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)
            except KbError:
                continue
            yield from _parsed(path, found.client_cert_pem or "")


def _parsed(path: Path, pem: str) -> Iterator[tuple[Path, Any]]:
    try:
        certs = certificates.parse_certs(pem) if pem else ()
    except ValueError:
        return
    yield from ((path, cert) for cert in certs[:1])


def _renews_itself(path: Path) -> bool:
    return path.parent == Path("/var/lib/kubelet/pki")


def _renewal(host: Host, path: Path) -> str:
    if path.name == "ca.crt" or path.name.endswith("-ca.crt"):
        return f"renew {path} with the same key, then restart the control plane"
    if _renews_itself(path) or path.name == "kubelet.conf":
        return f"{signs.say_new_identity(host)}, then: {services.spoken_of(host).say('restart', 'kubelet')}"
    return "kb certs renew all, then restart the control plane"


def _days(span: datetime.timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span.seconds // 3600} h {span.seconds % 3600 // 60:02d} min"


def look_at_served_certs(patient: Patient) -> Notes:
    """Certificates as servers show them: a server keeps the one it was started with."""
    host, paths = patient.host, patient.paths
    advertised, port = patient.config.local_api_endpoint.advertise_address, patient.config.local_api_endpoint.bind_port
    servers: list[tuple[str, str, int, Path]] = [
        ("kubelet", "127.0.0.1", 10250, Path("/var/lib/kubelet/pki/kubelet.crt"))
    ]
    if patient.is_control_plane:
        servers.append(("kube-apiserver", advertised, port, paths.pki / "apiserver.crt"))
    if "etcd" in patient.components:
        servers.append(("etcd", "127.0.0.1", 2379, paths.pki / "etcd/server.crt"))
    for name, address, number, path in servers:
        served = host.served_cert(address, number)
        if served is None:
            continue
        shown = certificates.parse_shown(served)
        if not shown:
            text = f"{name} shows a certificate that Kubernetes (Go) cannot read"
            yield Note("served-certificates", ERROR, text, f"{_renewal(host, path)}; {_restart(host, name)}")
            continue
        cert = shown[0]
        if certificates.is_expired(cert, host.now()):
            text = f"{name} shows a certificate that expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            yield Note("served-certificates", ERROR, text, f"{_renewal(host, path)}; {_restart(host, name)}")
        elif certificates.is_in_future(cert, host.now()):
            text = f"{name} shows a certificate that is valid from {cert.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on"
            yield Note("served-certificates", ERROR, text, "set this machine's clock: timedatectl")
        on_disk = [found for _, found in _parsed(path, facts.read_or_empty(host, str(path)))]
        if on_disk and on_disk[0] != cert:
            text = f"{name} still shows another certificate than {path}: it was started before that was written"
            yield Note("served-certificates", WARNING, text, _restart(host, name))


def _restart(host: Host, name: str) -> str:
    own = name == "kubelet"
    return services.spoken_of(host).say("restart", name) if own else f"crictl stop $(crictl ps -q --name {name})"


def look_at_clock(patient: Patient) -> Notes:
    """This clock against the API server's Date: tokens and certificates are judged by both."""
    server = _server_of(patient)
    if not server:
        return
    try:
        before = patient.host.now()
        answer = patient.host.http_get(f"{server}/version", tls=UNPROVEN, timeout_s=5)
    except Unreachable:
        return
    skew = read_skew_s(answer.headers.get("date", ""), before)
    if skew is not None and abs(skew) >= CLOCK_WARNING_S:
        yield Note(
            "clock",
            ERROR if abs(skew) >= CLOCK_ERROR_S else WARNING,
            describe_skew(skew, server),
            "set the time on whichever is wrong (timedatectl set-ntp true, or chronyc makestep), then try again",
        )


def read_skew_s(date: str, now: datetime.datetime) -> Optional[float]:
    """How many seconds the server that sent this Date is ahead; None where it sent none."""
    try:
        told = email.utils.parsedate_to_datetime(date)
        told = told if told.tzinfo else told.replace(tzinfo=datetime.timezone.utc)
        return (told - now).total_seconds()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def describe_skew(skew_s: float, server: str) -> str:
    """`this clock is 2 h 07 min behind https://10.0.0.11:6443`"""
    minutes = round(abs(skew_s)) // 60
    span = (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {round(abs(skew_s)) % 60} s"
    )
    return f"this clock is {span} {'behind' if skew_s > 0 else 'ahead of'} {server}"


def _server_of(patient: Patient) -> str:
    try:
        return kubeapi.read_identity(patient.host, patient.kubeconfig).server
    except KbError:
        return ""


def read_cert_node_name(host: Host, paths: Paths) -> str:
    """The node's name in the kubelet's own certificate: the cluster knows the node by it. "" where there is none."""
    access = membership.find_member_access(host, paths.kubernetes / "kubelet.conf")
    certs = [cert for _, cert in _parsed(paths.kubelet_client_pem, access.client_cert_pem)] if access else []
    prefix, _, name = (certificates.subject_of(certs[0]).common_name if certs else "").partition("system:node:")
    return name if not prefix else ""


def look_at_node(patient: Patient) -> Notes:
    """The node as its cluster sees it, asked with the kubelet's own identity: a kubelet can be well and no node Ready."""
    host, paths = patient.host, patient.paths
    name = read_cert_node_name(host, paths)
    if not patient.is_member or not name:
        return
    called = _read_called_name(host, _read_kubelet_flags(host, paths))
    if called != name:
        yield Note(
            "node",
            ERROR,
            f"this machine is called {called} now, and its node is {name}: the kubelet cannot register, since its certificate "
            f"is system:node:{name}'s",
            f"hostnamectl set-hostname {name} (or add --hostname-override={name} to KUBELET_KUBEADM_ARGS in "
            f"{paths.kubelet_flags_env}), then: {_restart(host, 'kubelet')}",
        )
    try:
        api = kubeapi.Api(host, kubeapi.read_identity(host, paths.kubernetes / "kubelet.conf"), retry_s=0)
        node = api.get(kubeapi.path_of("Node", name))
        requests = api.list(
            kubeapi.path_of("CertificateSigningRequest"), field=f"spec.signerName={signing_request.SERVING_SIGNER}"
        )
    except KbError as error:
        yield Note("node", ERROR, f"the cluster does not say how node {name} is: {error}", error.remedy)
        return
    yield from _judge_node(host, name, node)
    yield from _judge_serving_requests(name, requests)


def _judge_node(host: Host, name: str, node: Optional[Mapping[str, Any]]) -> Notes:
    if node is None:
        text = f"the cluster has no node {name}: it was deleted, and a kubelet registers only when it starts"
        yield Note("node", ERROR, text, _restart(host, "kubelet"))
        return
    conditions = {str(item.get("type")): item for item in (node.get("status") or {}).get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    if ready.get("status") != "True":
        why = ready.get("message") or ready.get("reason") or "it has said nothing yet"
        yield Note("node", ERROR, f"node {name} is NotReady: {why}", services.say_log(host, "kubelet"))


def _judge_serving_requests(name: str, requests: Iterable[Mapping[str, Any]]) -> Notes:
    found = signing_request.explain_serving_request(name, requests)
    if found:
        yield Note("node", WARNING, *found)


def look_at_disk(patient: Patient) -> Notes:
    """How long etcd's writes take, by etcd's own count: nothing is written to find out."""
    url = read_flags(patient.host, patient.paths, "etcd").get("listen-metrics-urls", "").partition(",")[0]
    if not url:
        return
    try:
        text = patient.host.http_get(f"{url}/metrics", timeout_s=5).body.decode(errors="replace")
    except Unreachable:
        return
    slow = read_fsync_p99_s(text)
    if slow is not None and slow > SLOW_FSYNC_S:
        folder = patient.config.cluster.local_etcd.data_dir if patient.config.cluster.local_etcd else "/var/lib/etcd"
        yield Note(
            "disk",
            WARNING,
            f"the disk of {folder} is slow: one of 100 writes takes longer than {slow * 1000:.0f} ms (etcd wants 10 ms)",
            f"put {folder} on an SSD, away from other writers",
        )


def read_fsync_p99_s(metrics: str) -> Optional[float]:
    """The upper bound that 99 % of etcd's syncs of its log stay below; None with fewer than 100 of them."""
    name = "etcd_disk_wal_fsync_duration_seconds"
    rows = [
        (float(edge), float(count)) for edge, count in re.findall(rf'{name}_bucket{{le="([\d.e+-]+)"}} (\S+)', metrics)
    ]
    total = re.search(rf"^{name}_count (\S+)", metrics, re.MULTILINE)
    if not rows or not total or float(total.group(1)) < 100:
        return None
    wanted = 0.99 * float(total.group(1))
    return next((edge for edge, count in sorted(rows) if count >= wanted), rows[-1][0])


def look_at_etcd(patient: Patient) -> Notes:
    """The members of the cluster's etcd, as this one knows them: who is away, and whether the rest is enough."""
    external = patient.config.cluster.external_etcd
    if external:
        yield from _look_at_external_etcd(patient.host, external)
    if "etcd" not in patient.components:
        return
    urls = etcd.client_urls_of_manifest(_read_mapping(patient.host, patient.paths.manifest("etcd")))
    client = etcd.Etcd(patient.host, urls, etcd.read_client_tls(patient.host, patient.paths))
    try:
        members = client.list_members(is_sure=False)
    except Unreachable as error:
        yield Note("etcd", ERROR, f"no etcd member answers: {error}", "see its log: crictl logs of the container etcd")
        return
    trouble = etcd.probe_members(client, members)
    verdict = etcd.judge_members(members, trouble)
    if verdict:
        yield Note("etcd", ERROR, str(verdict), verdict.remedy)
    for member in members:
        if member.is_learner:
            text = f"{member.describe()} has no vote yet: it joins right now, or its join was cut off"
            yield Note("etcd", WARNING, text, f"if nobody joins: kb etcd remove {member.hex_id}")


def _look_at_external_etcd(host: Host, external: ExternalEtcd) -> Notes:
    """Its members and where they run are its operator's: what counts is what this node's API server meets."""
    trouble = {url: text for url, text in etcd.probe_external(host, external).items() if text}
    is_enough = len(trouble) < len(external.http_endpoints or external.endpoints)
    for url, text in trouble.items():
        remedy = f"see whether that etcd runs, and whether a firewall is between: curl -vk {url}/health"
        yield Note("etcd", WARNING if is_enough else ERROR, f"the external etcd at {url}: {text}", remedy)


def look_at_load_balancer(patient: Patient) -> Notes:
    """haproxy on this node, where kb put one: the endpoint's name leads to it, it runs by its file, it is kept current."""
    host, paths, name = patient.host, patient.paths, "load-balancer"
    if not load_balancer.is_installed(host, paths):
        return
    settings = load_balancer.read_settings(host, paths)
    anew = f"kb {'init' if 'kube-apiserver' in patient.components else 'join'} phase load-balancer"
    hosts = load_balancer.read_hosts(host)
    if load_balancer.plan_hosts(hosts, settings.name) != hosts:
        text = f"{settings.name} does not lead to this node's load balancer: kb's line in {load_balancer.HOSTS} is not as it was"
        yield Note(name, ERROR, text, anew)
    path = load_balancer.config_path(paths)
    servers, wanted = load_balancer.parse_config(host.read_text(path) if host.exists(path) else "")
    running = load_balancer.read_running_digest(host, settings.health_port)
    if not servers:
        yield Note(name, ERROR, f"{path} names no API server", anew)
    elif not running:
        text = f"no load balancer answers on 127.0.0.1:{settings.health_port}"
        yield Note(name, ERROR, text, f"crictl logs $(crictl ps -aq --name {load_balancer.NAME} | head -1)")
    elif running != wanted:
        text = f"the load balancer runs with other servers than {path} names ({', '.join(servers)})"
        yield Note(name, WARNING, text, f"systemctl restart {load_balancer.UNIT}, which has it read its file")
    if host.query(["systemctl", "is-active", load_balancer.UNIT]).stdout.strip() != "active":
        text = f"{load_balancer.UNIT} does not run: API servers that come or go are not followed"
        yield Note(
            name,
            WARNING,
            text,
            f"systemctl start {load_balancer.UNIT}; why it ended: journalctl -u {load_balancer.UNIT} -n 20",
        )


def look_at_pod_network(patient: Patient) -> Notes:
    """Pods that kb's network started, where the runtime uses another one by now."""
    first = node_routes.find_first_cni_config(patient.host, patient.paths)
    if first in ("", node_routes.CNI_FILE) or not pod_network.is_kept(patient.host, patient.paths):
        return
    bridge = step_aside.read_bridge(patient.host)
    if bridge is None or not bridge.ports:
        return
    pods = _find_pods(patient, step_aside.read_sandboxes(patient.host))
    text = f"the network is {patient.paths.cni_conf / first}'s by now: {step_aside.describe_left(bridge)}"
    named = "; ".join(f"kubectl -n {namespace} delete pod {name}" for namespace, name in pods)
    yield Note("pod-network", WARNING, text, named or f"find them: bridge link show master {step_aside.BRIDGE}")


def _find_pods(patient: Patient, sandboxes: set[str]) -> list[tuple[str, str]]:
    """(namespace, name) of the pods that have these sandboxes, as far as the runtime tells."""
    words = crictl.crictl_argv(patient.config.node.cri_socket, "pods", "--state", "ready", "-o", "json")
    answer = patient.host.query(words, timeout_s=15) if patient.host.which("crictl") else None
    listed = as_table(answer.stdout).get("items") if answer and answer.ok else []
    pods = fit_what_does(listed, [{"id!": str, "metadata!": {"namespace!": str, "name!": str}}])
    described = [pod["metadata"] for pod in pods if pod["id"] in sandboxes]
    return sorted((found["namespace"], found["name"]) for found in described)


def look_at_dns(patient: Patient) -> Notes:
    """The cluster's DNS through its Service, asked by this node; then by a pod of it, whose packets take another way."""
    servers = patient.config.kubelet.get("clusterDNS") or []
    if not patient.is_member or not servers:
        return
    name = f"kubernetes.default.svc.{patient.config.cluster.networking.dns_domain}"
    if any(probes.lookup_in_cluster(patient.host, str(server), name) for server in servers):
        yield from _look_from_pods(patient, str(servers[0]), name)
        return
    lost = container_trouble.find_lost_rules(patient.host, patient.config.node.cri_socket)
    what = f"the cluster's DNS at {servers[0]} does not answer for {name}"
    if lost:
        yield Note("dns", ERROR, f"{what}: {lost.what}: {lost.cause}", lost.remedy)
        return
    line = container_trouble.container_error(patient.host, patient.config.node.cri_socket, "kube-proxy")
    where = "" if patient.is_control_plane else ", on a control plane"
    yield Note(
        "dns",
        ERROR,
        what + (f" (kube-proxy: {line})" if line else ""),
        f"see whether CoreDNS and kube-proxy run{where}: kubectl -n kube-system get pods -o wide",
    )


def _look_from_pods(patient: Patient, dns_address: str, name: str) -> Notes:
    """What every pod needs, asked from the namespaces of pods that run here: doctor makes none."""
    host = patient.host
    is_own_network = node_routes.is_own_network(host, patient.paths)
    places = pod_view.find_namespaces(host, patient.config.node.cri_socket, but_dns=not is_own_network)
    ways = _read_ways(patient, dns_address, name) if places else None
    for place in places:
        # a lost datagram is no cut: what is not reached is asked for again
        cut = ways and pod_view.find_cut(host, place, ways) and pod_view.find_cut(host, place, ways)
        if cut:
            yield Note("dns", ERROR, f"{cut.what}: {cut.cause}", cut.remedy)
            return


def _read_ways(patient: Patient, dns_address: str, name: str) -> pod_view.Ways:
    """The Services, and what stands behind them as far as this node's identity may read it."""
    api_address, pods, server = "", [], ""
    with contextlib.suppress(KbError):
        api = kubeapi.Api(patient.host, kubeapi.read_identity(patient.host, patient.kubeconfig), retry_s=0)
        server = api.server
        service = api.get(kubeapi.path_of("Service", "kubernetes", "default")) or {}
        api_address = str((service.get("spec") or {}).get("clusterIP") or "")
        pods = probes.read_dns_pods(api) if patient.is_control_plane else []
    behind = (*pod_view.dns_pod_ways(pods, patient.config.node.name), *pod_view.server_ways(server))
    return pod_view.Ways(name, pod_view.service_ways(dns_address, api_address), behind)


def look_at_tunnel(patient: Patient) -> Notes:
    """The other ends of kb's VXLAN: a firewall between two networks often lets everything pass but that."""
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
            yield Note(
                name,
                ERROR,
                f"the node {remote} answers, and through the tunnel it does not: pods here and there do not reach each other",
                f"let UDP port {route_plan.VXLAN_PORT} pass between {own} and {remote}, both ways (firewall, security group); "
                f"if it does, see the keeper on that node: journalctl -u {pod_network.UNIT} -n 20",
            )
        else:
            text = f"the node {remote} does not answer: no pod on it can be reached"
            yield Note(name, WARNING, text, "see whether it is Ready: kubectl get nodes -o wide")


def _answers(host: Host, address: str) -> bool:
    """Whether anything comes back from an address: the kubelet's port is asked, and a refusal is an answer."""
    try:
        host.http_get(f"https://{join_host_port(address, 10250)}/healthz", tls=UNPROVEN, timeout_s=3)
    except Unreachable as error:
        return error.reason in ("refused", "reset", "tls")
    return True


def look_at_images(patient: Patient) -> Notes:
    """Images of the static pods and of sandboxes: the runtime may have thrown them away to make space."""
    texts = [facts.read_or_empty(patient.host, str(patient.paths.manifest(name))) for name in patient.components]
    wanted = [
        image for text in texts for image in re.findall(r"^\s+(?:- )?image: [\"']?([^\s\"']+)", text, re.MULTILINE)
    ]
    status = runtime.probe_runtime(patient.host, patient.config.node.cri_socket)
    if not status.is_ready:
        return
    if status.sandbox_image:
        wanted.append(status.sandbox_image)
    have = image_pulls.list_images(patient.host, patient.config.node.cri_socket)
    for image in dict.fromkeys(wanted):
        if image_pulls.full_image_name(image) not in have:
            text = f"the image {image} is not in the runtime: what needs it cannot be started again"
            yield Note("images", ERROR, text, f"crictl pull {image}")


def look_at_kubelet_drift(patient: Patient) -> Notes:
    """Whether the kubelet runs with the flags and the configuration that its files hold."""
    unit = kubelet_trouble.read_kubelet_unit(patient.host)
    if unit is None or unit.active != "active" or not unit.pid:
        return
    command = facts.read_or_empty(patient.host, f"/proc/{unit.pid}/cmdline").split("\0")
    text = facts.read_or_empty(patient.host, str(patient.paths.kubelet_flags_env))
    wanted = [f"--{arg.name}={arg.value}" for arg in kubelet.parse_flags_env(text)]
    lost = [flag for flag in wanted if flag not in command]
    if command != [""] and lost:
        text = f"the kubelet runs without {' '.join(lost)}, which {patient.paths.kubelet_flags_env} holds"
        yield Note("kubelet-drift", WARNING, text, _restart(patient.host, "kubelet"))
    started = patient.host.now().timestamp() - (patient.host.monotonic() - unit.active_since_s)
    for path in (patient.paths.kubelet_config, patient.paths.kubelet_instance_config):
        found = patient.host.stat(path)
        if found and found.mtime > started + 1:
            text = f"{path} was changed after the kubelet was started: it runs with the old one"
            yield Note("kubelet-drift", WARNING, text, _restart(patient.host, "kubelet"))


@frozen
class Look:
    name: str
    does: str
    look: Callable[[Patient], Notes]


LOOKS: tuple[Look, ...] = (
    Look("checks", "this machine is fit for Kubernetes", look_at_checks),
    Look("chain", "kubelet, runtime, sandboxes, containers and probes", look_at_chain),
    Look("static-pods", "the kubelet's probes of this node's own pods succeed", look_at_static_pods),
    Look("node", "the cluster has this node, and it is Ready", look_at_node),
    Look("certificates", "certificates on disk are valid and have their keys", look_at_certs),
    Look("served-certificates", "servers show the certificates that are on disk", look_at_served_certs),
    Look("clock", "this clock and the API server's agree", look_at_clock),
    Look("etcd", "every member of etcd serves", look_at_etcd),
    Look("load-balancer", "this node's load balancer leads to the API servers, if it has one", look_at_load_balancer),
    Look("disk", "etcd's disk is fast enough", look_at_disk),
    Look("pod-network", "no pod hangs on a network of before", look_at_pod_network),
    Look("dns", "node and pods reach the cluster's DNS and API through their Services", look_at_dns),
    Look("tunnel", "the pod network's tunnel leads to the nodes beyond a router, if there are such", look_at_tunnel),
    Look("images", "the images of this node's own pods are in the runtime", look_at_images),
    Look("kubelet-drift", "the kubelet runs with the flags that its files hold", look_at_kubelet_drift),
)


def examine(patient: Patient) -> list[Note]:
    """All notes of all looks; a look that finds nothing wrong says so. A look that fails is a note too."""
    notes: list[Note] = []
    for look in LOOKS:
        try:
            found = list(look.look(patient))
        except (HostError, KbError) as error:
            found = [Note(look.name, ERROR, str(error), error.remedy)]
        notes.extend(found or [Note(look.name, OK, look.does)])
    return [dataclasses.replace(note, remedy=_for_a_doctor(note.remedy)) for note in notes]


def _for_a_doctor(remedy: str) -> str:
    """What is to be run again, for those who wait for a node, is their own command; here it is the one of before."""
    return remedy.replace(signs.AGAIN, f"{signs.AGAIN} that made this node")


def describe_patient(patient: Patient) -> str:
    """`node cp1, control plane, Kubernetes v1.35.6, containerd socket ...`"""
    if not patient.is_member:
        return f"node {patient.config.node.name}: no kubelet was configured here, it belongs to no cluster"
    role = "control plane" if patient.is_control_plane else "worker"
    return f"node {patient.config.node.name}, {role}, Kubernetes {patient.config.cluster.kubernetes_version}"
