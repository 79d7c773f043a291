"""Health probes of the kubelet, the control plane, the node and the cluster's DNS.

This module knows the health endpoints, and what counts as healthy. It never waits: the phases do.
Source: cmd/kubeadm/app/util/apiclient/wait.go
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from kubeup.addresses import join_host_port, split_host_port
from kubeup.cluster import dns_query
from kubeup.cluster.api import Api, Object, path_of
from kubeup.config.types import NodeConfig
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Tls, Unreachable
from kubeup.paths import Paths
from kubeup.shapes import Shape, fit
from kubeup.yaml_files import commands_of_pod, flags_of, load_mapping

with lazily:
    import ipaddress

# component -> (flag of the address, flag of the port, default port, path)
_ENDPOINTS: Mapping[str, tuple[str, str, str, str]] = {
    "kube-apiserver": ("advertise-address", "secure-port", "6443", "/livez"),
    "kube-controller-manager": ("bind-address", "secure-port", "10257", "/healthz"),
    "kube-scheduler": ("bind-address", "secure-port", "10259", "/livez"),
}
COMPONENTS = tuple(_ENDPOINTS)

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_PROBE: Shape = {"httpGet": {"host": str, "path": str, "scheme": str, "httpHeaders": [{}]}}
_PROBED_POD: Shape = {
    "spec!": {
        "containers!": [{"ports": [{"name": str, "containerPort!": int}], **dict.fromkeys(_PROBES, _PROBE)}],
    }
}

_LATE_HOOKS = ("rbac/bootstrap-roles", "scheduling/bootstrap-system-priority-classes")
"""What a new cluster's API server does once it serves, retrying every second: it writes the roles and priority classes. A member
of system:masters needs neither (pkg/registry/{rbac,scheduling}/rest/storage_*.go)."""


@frozen
class Health:
    """The result of a probe: is_healthy, and what was seen, in words ("refused", "HTTP 500: etcd failed")."""

    is_healthy: bool
    seen: str


def kubelet_healthz_url(config: NodeConfig) -> str:
    """The URL of the kubelet's health endpoint; "" if its health port is turned off."""
    address = str(config.kubelet.get("healthzBindAddress") or "127.0.0.1")
    port = config.kubelet.get("healthzPort", 10248)
    if port == 0:
        return ""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://{join_host_port(address, port)}/healthz"


def component_url(host: Host, paths: Paths, *, component: str) -> str:
    """The URL of a control-plane component's health endpoint, read from the manifest on disk, which includes patches."""
    address_flag, port_flag, default_port, path = _ENDPOINTS[component]
    flags = flags_of(_read_command(host, paths, component=component))
    address = flags.get(address_flag) or "127.0.0.1"
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"https://{join_host_port(address, flags.get(port_flag) or default_port)}{path}"


def _read_command(host: Host, paths: Paths, *, component: str) -> list[str]:
    manifest = paths.manifest(component)
    if not host.exists(manifest):
        return []
    for command in commands_of_pod(load_mapping(host.read_text(manifest), str(manifest))):
        if command and command[0].rpartition("/")[2] == component:
            return command
    return []


def find_probed_urls(host: Host, paths: Paths, *, component: str) -> tuple[str, ...]:
    """list_probed_urls of the manifest on disk; () if there is none."""
    manifest = paths.manifest(component)
    return list_probed_urls(load_mapping(host.read_text(manifest), str(manifest))) if host.exists(manifest) else ()


def list_probed_urls(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The URLs that the kubelet asks of a static pod; () if there are none, or if it asks in another way: with headers, over a plain
    connection, or by running a program."""
    try:
        pod = fit(dict(manifest), _PROBED_POD, what="")
    except ValueError:
        return ()
    found = []
    for container in pod["spec"]["containers"]:
        ports = {port.get("name"): port["containerPort"] for port in container.get("ports") or ()}
        for probe in filter(None, map(container.get, _PROBES)):
            asked = probe.get("httpGet") or {}
            if not asked.get("host") or asked.get("httpHeaders"):
                return ()
            place = join_host_port(asked["host"], ports.get(asked.get("port"), asked.get("port")))
            found.append(f"{str(asked.get('scheme') or 'HTTP').lower()}://{place}{asked.get('path') or '/'}")
    return tuple(dict.fromkeys(found))


def describe_missed_probes(manifest: Mapping[str, Any]) -> str:
    """Where a static pod would listen, if the kubelet's probes ask elsewhere: it would be restarted again and again, and an API server
    that listens on 127.0.0.1 alone serves nobody. "" if they are heard, or that cannot be told from its flags."""
    return _describe_missed(manifest, list_probed_urls(manifest), by="the kubelet's probes ask")


def describe_missed_etcd(manifest: Mapping[str, Any], server: Mapping[str, Any]) -> str:
    """The same of an etcd that the API server of its own node would not find. server: the API server's manifest."""
    urls = _flags_of(server).get("etcd-servers", "").split(",")
    local = [url for url in urls if (_place_of(url) or ("", 0))[0] in ("127.0.0.1", "::1")]
    return _describe_missed(manifest, local, by="the API server asks")


def _describe_missed(manifest: Mapping[str, Any], urls: Iterable[str], *, by: str) -> str:
    heard = _list_listeners(str((manifest.get("metadata") or {}).get("name")), _flags_of(manifest))
    for asked in map(_place_of, urls if heard else ()):
        if asked is not None and not any(_is_heard(asked, at=place) for place in heard):
            listeners = " and ".join(join_host_port(*place) for place in heard)
            return f"it would listen on {listeners}, and {by} {join_host_port(*asked)}"
    return ""


def _flags_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    return flags_of(next(iter(commands_of_pod(manifest)), []))


_Place = tuple[str, int]
"""An address or a name, and a port."""


def _list_listeners(component: str, flags: Mapping[str, str]) -> list[_Place]:
    if component in _ENDPOINTS:
        _, flag, default, _ = _ENDPOINTS[component]
        port = flags.get(flag) or default
        return [(flags.get("bind-address") or "0.0.0.0", int(port))] if port.isdecimal() else []
    defaults = {"listen-metrics-urls": "", "listen-client-urls": "http://localhost:2379"} if component == "etcd" else {}
    urls = ",".join(flags.get(name) or default for name, default in defaults.items())
    places = [_place_of(url) for url in urls.split(",") if url]
    return [place for place in places if place is not None] if None not in places else []


def _place_of(url: str) -> Optional[_Place]:
    """None for one without a port."""
    host, port = split_host_port(url.partition("://")[2].partition("/")[0]) or ("", None)
    return (host, port) if host and port else None


def _is_heard(asked: _Place, *, at: _Place) -> bool:
    """An unspecified address stands for all of the machine's, of both families (net.Listen of Go), and a name for any."""
    if asked[1] != at[1]:
        return False
    try:
        one, other = (ipaddress.ip_address(host) for host, _ in (asked, at))
    except ValueError:
        return True
    return other.is_unspecified or one == other


def probe_url(host: Host, url: str, *, tls: Optional[Tls] = None) -> Health:
    """GET a health endpoint once. By default TLS is not verified: on loopback, control-plane components have self-signed
    certificates."""
    try:
        answer = host.http_get(url, tls=tls or UNPROVEN, timeout_s=5)
    except Unreachable as error:
        return Health(False, error.cause if error.reason == "other" else error.reason)
    lines = answer.body[:4000].decode(errors="replace").strip().splitlines()
    body = "; ".join([line for line in lines if line.startswith("[-]")] or lines)[:400]
    return Health(answer.status == 200, "healthy" if answer.status == 200 else f"HTTP {answer.status}: {body}")


def probe_apiserver(api: Api, *, for_masters: bool = False) -> Health:
    """GET /livez of the API server with the client's identity and verified TLS. for_masters: whether it serves a member of
    system:masters, who need not wait for the initial roles."""
    excluded = "".join(f"&exclude=poststarthook/{hook}" for hook in _LATE_HOOKS) if for_masters else ""
    try:
        answer = api.probe_health(f"/livez?{excluded[1:]}" if excluded else "/livez", timeout_s=5)
    except Unreachable as error:
        return Health(False, error.cause if error.reason in ("tls", "other") else error.reason)
    return Health(answer.status == 200, "healthy" if answer.status == 200 else f"HTTP {answer.status}")


def node_condition(node: Optional[Object], condition: str = "Ready") -> tuple[str, str]:
    """(status, message) of a node's condition: ("True", ""), ("False", "container runtime network not ready")."""
    for entry in ((node or {}).get("status") or {}).get("conditions") or []:
        if entry.get("type") == condition:
            return str(entry.get("status")), str(entry.get("message", ""))
    return "Unknown", "the kubelet has not reported yet" if node else "the node is not registered"


def kubelet_version(node: Optional[Object]) -> str:
    """`v1.35.6`, the version that a Node's kubelet reports; "" if it reports none."""
    return str((((node or {}).get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion") or "")


@frozen
class StaticPod:
    """A mirror pod's container as the kubelet reports it."""

    component: str
    container_id: str
    restarts: int
    running_since: Optional[datetime.datetime]
    is_ready: bool
    state: str
    """In words: "running", "waiting: CrashLoopBackOff", "exited 1"."""


def read_static_pods(api: Api, node_name: str) -> list[StaticPod]:
    """The control plane's static pods on one node, read from their mirror pods."""
    pods = api.list(
        path_of("Pod", namespace="kube-system"), label="tier=control-plane", field=f"spec.nodeName={node_name}"
    )
    return [_static_pod(pod) for pod in pods]


def read_dns_pods(api: Api) -> list[tuple[str, str]]:
    """(address, node) of each Ready pod of the cluster's DNS."""
    pods = api.list(path_of("Pod", namespace="kube-system"), label="k8s-app=kube-dns")
    return [
        (pod["status"]["podIP"], str((pod.get("spec") or {}).get("nodeName")))
        for pod in pods
        if node_condition(pod)[0] == "True" and pod["status"].get("podIP")
    ]


def read_probe_failure(api: Api, pod: str) -> str:
    """Why the kubelet considers a pod in kube-system not ready: the message of its newest Unhealthy event, such as "Startup probe
    failed: HTTP probe failed with statuscode: 401"; "" if there is none."""
    return _newest_message(
        api.list(path_of("Event", namespace="kube-system"), field=f"involvedObject.name={pod},reason=Unhealthy")
    )


def read_start_failure(api: Api, pod: str) -> str:
    """Why the kubelet does not start a pod in kube-system, by its newest event of that kind; "" if it tells nothing."""
    events = api.list(path_of("Event", namespace="kube-system"), field=f"involvedObject.name={pod},type=Warning")
    return _newest_message(
        event for event in events if event.get("reason") in ("FailedMount", "FailedCreatePodSandBox")
    )


def _newest_message(events: Iterable[Object]) -> str:
    newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
    return str(newest.get("message", ""))


def describe_closed_probes(flags: Iterable[tuple[str, str]]) -> str:
    """What --anonymous-auth=false does to an API server with these flags (name, value); "" if it does not apply.

    The kubelet's probes carry no credentials. --authentication-config can restrict anonymous requests to the health endpoints
    (anonymous.conditions, KEP-4633).
    """
    told = dict(flags)
    if told.get("anonymous-auth", "").lower() not in ("false", "f", "0") or "authentication-config" in told:
        return ""
    return (
        "--anonymous-auth=false has the API server answer the kubelet's probes with 401, so the kubelet restarts it every few "
        "minutes; nodes that join by a token cannot read cluster-info either"
    )


CLOSED_PROBES_REMEDY = (
    "leave anonymous-auth out; to close all else to anonymous requests, give --authentication-config a file with an "
    "AuthenticationConfiguration whose anonymous.conditions name /livez, /readyz and /healthz"
)


def describe_astray_probes(component: str, told: str, *, flags: Mapping[str, str]) -> str:
    """Why the kubelet's probes of a static pod are refused, in its words `told`: they ask at a port at which its flags do not have it listen; "" if that is not so."""
    found = re.search(r'Get "https?://[^/"]*:(\d+)/[^"]*": .*connection refused', told)
    flag, default = ("listen-metrics-urls", "") if component == "etcd" else ("secure-port", _PORTS.get(component, ""))
    value = flags.get(flag, default)
    if found is None or re.search(rf"\b{found.group(1)}\b", value):
        return ""
    return f"its probes ask at port {found.group(1)}, and --{flag} is {value or 'not there'}"


_PORTS = {"kube-apiserver": "6443", "kube-controller-manager": "10257", "kube-scheduler": "10259"}


def _static_pod(pod: Object) -> StaticPod:
    component = str(pod["metadata"].get("labels", {}).get("component", pod["metadata"]["name"]))
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    status: Mapping[str, Any] = statuses[0]
    state: Mapping[str, Any] = status.get("state") or {}
    started = (state.get("running") or {}).get("startedAt")
    return StaticPod(
        component=component,
        container_id=str(status.get("containerID", "")),
        restarts=int(status.get("restartCount", 0)),
        running_since=parse_time(started) if started else None,
        is_ready=bool(status.get("ready")),
        state=_state_words(state),
    )


def _state_words(state: Mapping[str, Any]) -> str:
    if "running" in state:
        return "running"
    if "terminated" in state:
        return f"exited {state['terminated'].get('exitCode')}"
    return f"waiting: {(state.get('waiting') or {}).get('reason', 'not reported yet')}"


def parse_time(text: str) -> datetime.datetime:
    """Parse an RFC 3339 time in UTC, with or without fractions: `2026-01-01T00:00:00Z`."""
    return datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)


def lookup_in_cluster(host: Host, server: str, *, name: str) -> Optional[list[str]]:
    """Ask the DNS server at `server` for the addresses of `name`; None if there is no valid answer."""
    query_id = _new_query_id(host)
    query = dns_query.render_query(name, query_id=query_id, record_type=_type_for(server))
    return dns_query.parse_answer(host.udp_exchange(server, 53, payload=query, timeout_s=2), query_id=query_id)


def ask_dns(host: Host, server: str, *, name: str, timeout_s: float = 2) -> Optional[str]:
    """How the DNS server at `server` fails to say where `name` is, or for `.` who is responsible: `SERVFAIL`; "" if it does not fail; None if
    nothing comes."""
    query_id = _new_query_id(host)
    kind = dns_query.TYPE_NS if name == "." else _type_for(server)
    query = dns_query.render_query(name, query_id=query_id, record_type=kind)
    return dns_query.read_failure(host.udp_exchange(server, 53, payload=query, timeout_s=timeout_s), query_id=query_id)


def _new_query_id(host: Host) -> int:
    return int(host.monotonic() * 1000) & 0xFFFF


def _type_for(server: str) -> int:
    """A cluster whose DNS is at an IPv6 address has Services at such ones."""
    return dns_query.TYPE_AAAA if ":" in server else dns_query.TYPE_A
