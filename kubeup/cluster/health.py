"""The health of the whole cluster: its nodes, API servers, etcd members, controllers and admission.

Each API server is probed at its own address, because a load balancer in front of them hides the one that is down. This module
changes nothing, and waits only for the renewal of leases. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Optional

from kubeup import releases
from kubeup.cluster import clock, etcd, lease, objects, probes
from kubeup.cluster.api import Api, ApiRefused, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import becomes_so
from kubeup.shapes import Shape, fit_what_does
from kubeup.trouble import Trouble

LEADERS = ("kube-controller-manager", "kube-scheduler")
LEASE_MOVES_S = 6
"""How long a leader may take to renew its lease. By default it does so every 2 s (--leader-elect-retry-period)."""
NODE_LEASES = path_of("Lease", "", namespace="kube-node-lease")
"""The leases of all kubelets. Source: KEP-589"""
NODE_LEASE_MOVES_S = 13
"""How long a kubelet may take to renew its lease. By default it does so every 10 s: a quarter of nodeLeaseDurationSeconds."""
RECENT_S = 11
"""A lease that was renewed within so many seconds is one that its kubelet renews."""
MANY = 100
"""With more leases than this, they are not listed every second."""
SERVER_S = 5
"""The timeout of a request to one API server at its own address."""
QUORUM_READ = path_of("Namespace", objects.SYSTEM)
"""An API server answers a GET of one object without resourceVersion from etcd, by a quorum, and not from its watch cache."""
MAX_BEHIND = 5000
"""How many entries a member of etcd may be behind: with more, etcd itself rejects requests
(server/etcdserver/v3_server.go: maxGapBetweenApplyAndCommitIndex)."""
SLOW_ADMISSION_S = 3
"""How long a pod's admission may take. Without webhooks it takes hundredths of a second."""
TRIAL = "kb-admission-trial"
"""The name of the pod with which admission is tested. It is never created."""


@frozen
class Part:
    """One part of the cluster, and what is wrong with it.

    kind: node | api-server | etcd | leader | admission. unproven: why its health cannot be determined, in words. node: the node
    concerned, if known; for a leader, the hostname of the lease's holder. version: the one that it reports: of a node's kubelet, of an
    API server, of a member of etcd; "" if unknown. addresses: a node's, as the API has them.
    """

    kind: str
    name: str
    trouble: Optional[Trouble] = None
    unproven: str = ""
    node: str = ""
    version: str = ""
    addresses: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        return self.trouble is None and not self.unproven


def gate(
    api: Api,
    etcd_client: Optional[etcd.Etcd] = None,
    *,
    renewed: Optional[Mapping[str, tuple[str, float]]] = None,
    led: Optional[Mapping[str, tuple[str, str]]] = None,
    counts_recent: bool = False,
    unwatched: Collection[str] = (),
) -> list[Part]:
    """All parts of the cluster: whether the next node may be changed. Without `etcd_client`, etcd is left out. renewed, led: results of
    read_node_renewals and read_leader_renewals of some seconds ago, which save the wait for who has renewed a lease since. counts_recent: a
    kubelet that renewed its lease a moment before counts as one that renews it: enough where nothing has been changed yet.
    unwatched: nodes for whose silence nobody waits.

    Raises Unreachable if the API server of `api` does not serve, ApiRefused if it rejects the identity.
    """
    before = led or read_leader_renewals(api)
    leases = api.list(NODE_LEASES) if counts_recent or not renewed else []
    listed_at = api.host.monotonic()
    renewed = renewed or _parse_renewals(leases)
    recent = {*unwatched, *(find_recent(api, leases) if counts_recent else ())}
    servers = probe_api_servers(api)
    members = probe_etcd(etcd_client) if etcd_client is not None else []
    leaders, admission = probe_leaders(api, before), probe_admission(api)
    watched_s = api.host.monotonic() - listed_at if counts_recent else 0.0
    nodes = probe_node_leases(api, probe_nodes(api), before=renewed, recent=recent, watched_s=watched_s)
    return [*nodes, *servers, *members, *admission, *leaders]


def glance(api: Api, etcd_client: Optional[etcd.Etcd] = None) -> list[Part]:
    """The parts whose trouble shows at once: a gate that waits for no lease. Raises Unreachable, ApiRefused."""
    members = probe_etcd(etcd_client) if etcd_client is not None else []
    return [*probe_nodes(api), *probe_api_servers(api), *members, *probe_admission(api)]


def find_blockers(parts: Sequence[Part]) -> list[Part]:
    """The parts in trouble: until they are well, no other node may be changed. What is unproven is only told."""
    return [part for part in parts if part.trouble is not None]


# ---- nodes


def probe_nodes(api: Api) -> list[Part]:
    """Check that every node is Ready, has an address of its own, and a kubelet version that the API servers support.

    Only a working controller-manager marks a lost node as not Ready, so trust this only if a leader is found (probe_leaders).
    """
    nodes = api.list(path_of("Node"))
    owners: dict[str, list[str]] = {}
    for node in nodes:
        for place in (*_internal_ips(node), *_pod_cidrs(node)):
            owners.setdefault(place, []).append(node["metadata"]["name"])
    server = releases.parse_version(_read_version(api))
    servers = [node["metadata"]["name"] for node in nodes if _is_control_plane(node)]
    return [_judge_node(node, owners, server=server, others=_others(node, servers)) for node in nodes]


def _is_control_plane(node: Object) -> bool:
    return objects.CONTROL_PLANE_TAINT.key in (node["metadata"].get("labels") or {})


def _others(node: Object, servers: Sequence[str]) -> str:
    """The control planes from which this node could be removed, in words; "" if there is none."""
    if not _is_control_plane(node):
        return "a control plane"
    return "another control plane" if len(servers) > 1 else ""


def _internal_ips(node: Object) -> list[str]:
    addresses = (node.get("status") or {}).get("addresses") or ()
    return [entry["address"] for entry in addresses if entry.get("type") == "InternalIP"]


def _pod_cidrs(node: Object) -> list[str]:
    return [str(cidr) for cidr in (node.get("spec") or {}).get("podCIDRs") or ()]


def _judge_node(
    node: Object, owners: Mapping[str, Sequence[str]], *, server: Optional[releases.Version], others: str
) -> Part:
    """others: from where it could be removed, in words; "" from nowhere."""
    name = str(node["metadata"]["name"])
    status, message = probes.node_condition(node)
    trouble = None
    if status != "True":
        why = message or "its kubelet says nothing"
        removal = f"; if it is gone for good, on {others}: kb node remove {name}" if others else ""
        trouble = Trouble(f"node {name} is not Ready", why, "on that machine: kb doctor" + removal)
    twice = [(address, owners[address]) for address in _internal_ips(node) if len(owners[address]) > 1]
    if trouble is None and twice:
        address, names = twice[0]
        trouble = Trouble(
            f"nodes {', '.join(names)} have the same address",
            f"each of them reports {address} as its InternalIP",
            "give each machine its own address, and restart its kubelet",
        )
    same = [(cidr, owners[cidr]) for cidr in _pod_cidrs(node) if len(owners[cidr]) > 1]
    if trouble is None and same:
        cidr, names = same[0]
        what = f"nodes {', '.join(names)} have the same pod network, so two pods may have one address"
        remedy = (
            "have the younger one registered anew, with a network of its own: kubectl delete node NAME; on that machine: "
            "systemctl restart kubelet; kb doctor"
        )
        trouble = Trouble(what, f"each of them has the podCIDR {cidr}", remedy)
    found = trouble or _judge_kubelet(node, server)
    return Part(
        "node", name, found, node=name, version=probes.kubelet_version(node), addresses=tuple(_internal_ips(node))
    )


def _judge_kubelet(node: Object, server: Optional[releases.Version]) -> Optional[Trouble]:
    """Apply Kubernetes' version skew policy: a kubelet is never newer than an API server, and at most three minors older."""
    name, told = node["metadata"]["name"], probes.kubelet_version(node)
    kubelet = releases.parse_version(told)
    if kubelet is None or server is None:
        return None
    if kubelet.minor > server.minor:
        remedy = "upgrade the control plane first"
    elif kubelet.minor < server.minor - releases.KUBELET_SKEW:
        remedy = f"upgrade the kubelet of {name} before the control plane goes further"
    else:
        return None
    return Trouble(
        f"node {name} has kubelet {told}",
        f"an API server of {server.text} supports kubelets of 1.{server.minor - releases.KUBELET_SKEW} to 1.{server.minor}",
        remedy,
    )


def read_node_renewals(api: Api) -> dict[str, tuple[str, float]]:
    """Node -> (renewTime, leaseDurationSeconds) of its kubelet's lease."""
    return _parse_renewals(api.list(NODE_LEASES))


def _parse_renewals(leases: Sequence[Object]) -> dict[str, tuple[str, float]]:
    found = {}
    for item in leases:
        told, duration = (
            str(item["spec"].get("renewTime") or ""),
            float(item["spec"].get("leaseDurationSeconds") or 40),
        )
        found[str(item["metadata"]["name"])] = (told, duration)
    return found


def find_recent(api: Api, leases: Sequence[Object]) -> frozenset[str]:
    """The nodes whose kubelets have renewed these leases of theirs within RECENT_S. The API server notes the time of each write, and says
    what time it is: its own clock is compared with itself, or with that of another API server."""
    written = {str(one["metadata"]["name"]): lease.read_written(one, manager="kubelet") for one in leases}
    skew_s = _measure_skew(api)
    if skew_s is None:
        return frozenset()
    now = api.host.now()
    ages = {name: (now - moment).total_seconds() + skew_s for name, moment in written.items() if moment is not None}
    return frozenset(name for name, age_s in ages.items() if -1 <= age_s <= RECENT_S)


def find_lease_age(api: Api, found: Object) -> Optional[float]:
    """How many seconds ago the kubelet renewed this Lease of its, by the API server's clock; None if that cannot be told."""
    written = lease.read_written(found, manager="kubelet")
    skew_s = _measure_skew(api)
    return None if written is None or skew_s is None else (api.host.now() - written).total_seconds() + skew_s


def _measure_skew(api: Api) -> Optional[float]:
    """How far the API server's clock is ahead of this one, in seconds; None if it does not say."""
    try:
        answer = api.probe_health("/version", timeout_s=SERVER_S)
    except Unreachable:
        return None
    return clock.measure_skew(answer, api.host.now()) if "date" in answer.headers else None


def probe_node_leases(
    api: Api,
    parts: Sequence[Part],
    *,
    before: Optional[Mapping[str, tuple[str, float]]] = None,
    recent: Collection[str] = (),
    watched_s: float = 0.0,
) -> list[Part]:
    """`parts`, in which nodes that are well so far are in trouble if their kubelet does not renew its lease while kb watches: a node
    stays Ready for 40 s after its machine is gone. before: an earlier result of read_node_renewals, which saves most of the wait. recent: the
    nodes that need not be watched for that. watched_s: how long ago `before` was read."""
    earlier = dict(before if before is not None else read_node_renewals(api))
    watched = [part.name for part in parts if part.kind == "node" and part.is_well and part.name in earlier]
    ready = [name for name in watched if name not in recent]
    latest = dict(earlier)

    def have_all_moved() -> bool:
        if not ready:
            return True
        latest.update(read_node_renewals(api))
        return all(latest[name] != earlier[name] for name in ready)

    pause = 1 if len(earlier) <= MANY else NODE_LEASE_MOVES_S
    becomes_so(api.host, have_all_moved, timeout_s=max(0.0, NODE_LEASE_MOVES_S - watched_s), poll_s=pause)
    still = {name for name in ready if latest[name] == earlier[name]}
    return [_judge_lease(part, earlier, is_still=part.name in still) for part in parts]


def _judge_lease(part: Part, earlier: Mapping[str, tuple[str, float]], *, is_still: bool) -> Part:
    if part.kind != "node" or not part.is_well:
        return part
    if part.name not in earlier:
        return replace(part, unproven=f"node {part.name} has no Lease in kube-node-lease")
    if not is_still:
        return part
    _, duration = earlier[part.name]
    if duration / 4 > NODE_LEASE_MOVES_S:
        return replace(part, unproven=f"the kubelet of {part.name} renews its Lease only every {duration / 4:.0f} s")
    trouble = Trouble(
        f"the kubelet of node {part.name} is silent",
        f"it has not renewed its Lease for {NODE_LEASE_MOVES_S} s; the node is still called Ready",
        "on that machine: kb doctor",
    )
    return replace(part, trouble=trouble)


# ---- API servers


def probe_api_servers(api: Api) -> list[Part]:
    """Probe every API server in the EndpointSlice that they maintain, at its own address: that it is ready, that it reads from etcd by
    a quorum, and its version."""
    return [_ask_server(api.with_server(f"https://{server}"), server) for server in objects.read_api_servers(api)]


def _ask_server(own: Api, server: str) -> Part:
    part = _ask_ready(own, server)
    if not part.is_well:
        return part
    return replace(_ask_etcd_through(own, part), version=_read_version(own))


def _ask_etcd_through(own: Api, part: Part) -> Part:
    """A quorum read through this API server and the etcd that it uses."""
    what = f"API server {part.name} cannot read from etcd"
    remedy = "on that machine: kb doctor; the members of etcd: kb etcd members"
    try:
        answer = own.probe_health(QUORUM_READ, timeout_s=SERVER_S)
    except Unreachable as error:
        return replace(part, trouble=Trouble(what, error.cause, remedy))
    if answer.status in (401, 403):
        return replace(part, unproven=f"this identity may not read Namespace {objects.SYSTEM} at {part.name}")
    if answer.status != 200:
        told = answer.body[:200].decode(errors="replace").strip()
        return replace(part, trouble=Trouble(what, told or f"it answers HTTP {answer.status}", remedy))
    return part


def _ask_ready(own: Api, server: str) -> Part:
    try:
        answer = own.probe_health("/readyz", timeout_s=SERVER_S)
    except Unreachable as error:
        if error.reason == "tls" and "not valid for" in error.cause:
            return Part(
                "api-server", server, unproven=f"API server {server} does not present a certificate for that address"
            )
        if error.reason == "tls":
            what = f"API server {server} presents a certificate that its clients do not accept"
            return Part("api-server", server, Trouble(what, error.cause, "on that machine: kb doctor"))
        remedy = f"on that machine: kb doctor; from here: curl -vk https://{server}/readyz"
        return Part("api-server", server, Trouble(f"API server {server} does not answer", error.cause, remedy))
    if answer.status == 200:
        return Part("api-server", server)
    told = [line[3:] for line in answer.body.decode(errors="replace").splitlines() if line.startswith("[-]")]
    cause = "; ".join(told) or f"/readyz answers HTTP {answer.status}"
    return Part("api-server", server, Trouble(f"API server {server} is not ready", cause, "on that machine: kb doctor"))


def _read_version(api: Api) -> str:
    try:
        found = parse_json(api.probe_health("/version", timeout_s=SERVER_S).body, "the answer")
    except (Unreachable, ValueError):
        return ""
    return str(found.get("gitVersion", "")) if isinstance(found, dict) else ""


# ---- etcd


def probe_etcd(client: etcd.Etcd) -> list[Part]:
    """Every member of etcd, asked at its own address."""
    try:
        members = client.list_members(is_sure=False)
    except (Unreachable, etcd.EtcdRefused) as error:
        remedy = "on the control planes: kb doctor, and crictl logs of the container etcd"
        return [Part("etcd", "etcd", Trouble("no member of etcd answers", error.cause, remedy))]
    return judge_members(members, etcd.read_statuses(client, members))


def judge_members(members: Sequence[etcd.Member], statuses: Mapping[str, etcd.Status]) -> list[Part]:
    """Judge every member by its status (alarms included), its vote, and how far it is behind the others.

    statuses: member ID -> status, of every member.
    """
    newest = max((status.applied for status in statuses.values()), default=0)
    return [
        Part(
            "etcd",
            one.name or one.hex_id,
            _judge_member(one, statuses, newest=newest),
            version=statuses[one.member_id].version,
        )
        for one in members
    ]


def _judge_member(member: etcd.Member, statuses: Mapping[str, etcd.Status], *, newest: int) -> Optional[Trouble]:
    what, status = f"etcd member {member.describe()}", statuses[member.member_id]
    if member.is_learner:
        return Trouble(
            f"{what} is not a voting member yet",
            "it is joining right now, or its join was cut off",
            f"if no node is joining: kb etcd remove {member.hex_id}",
        )
    if not member.client_urls:
        return Trouble(
            f"{what} has never started",
            "it has no client URL",
            f"if no node is joining: kb etcd remove {member.hex_id}",
        )
    if status.trouble:
        remedy = f"on its machine: kb doctor; if it is gone for good: kb etcd remove {member.name or member.hex_id}"
        return Trouble(f"{what} does not serve", status.trouble, remedy)
    if newest - status.applied > MAX_BEHIND:
        return Trouble(
            f"{what} is {newest - status.applied} entries behind",
            "its disk or its network is slow",
            "on its machine: kb doctor",
        )
    return None


# ---- controllers


def read_leader_renewals(api: Api) -> dict[str, tuple[str, str]]:
    """Component -> (holderIdentity, renewTime); components without a lease are left out."""
    found = {}
    for name in LEADERS:
        item = api.get(path_of("Lease", name, namespace=objects.SYSTEM))
        if item is not None:
            found[name] = (str(item["spec"].get("holderIdentity") or ""), str(item["spec"].get("renewTime") or ""))
    return found


def probe_leaders(api: Api, before: Optional[Mapping[str, tuple[str, str]]] = None) -> list[Part]:
    """Check that the controller-managers and the schedulers have a leader: one that renews its lease while kb watches.

    Clocks are not compared. before: an earlier result of read_leader_renewals, which saves most of the wait.
    """
    earlier = dict(before if before is not None else read_leader_renewals(api))
    latest = dict(earlier)

    def have_all_moved() -> bool:
        latest.update(read_leader_renewals(api))
        return all(latest[name] != earlier[name] for name in earlier)

    becomes_so(api.host, have_all_moved, timeout_s=LEASE_MOVES_S, poll_s=0.5)
    return [_judge_leader(name, earlier.get(name), latest.get(name)) for name in LEADERS]


def _judge_leader(name: str, before: Optional[tuple[str, str]], after: Optional[tuple[str, str]]) -> Part:  # noqa: PLR0917
    if before is None or after is None:
        return Part(
            "leader", name, unproven=f"there is no Lease {objects.SYSTEM}/{name}: its leader election may be turned off"
        )
    holder = after[0].partition("_")[0]
    if before != after and holder:
        return Part("leader", name, node=holder)
    cause = f"{holder} has not renewed its lease in the last {LEASE_MOVES_S} s" if holder else "its lease has no holder"
    remedy = f"on {holder or 'the control planes'}: crictl logs $(crictl ps -a -q --name {name} | head -1)"
    return Part("leader", name, Trouble(f"no {name} leads", cause, remedy), node=holder)


# ---- admission


def probe_admission(api: Api) -> list[Part]:
    """Check by a dry run whether a pod could be created: a webhook that does not answer may block all pods.

    The API server rejects every dry run that matches a webhook with side effects, so the result is unproven then. A policy that
    rejects this pod is fine: admission works. Source: KEP-576 (dry run)
    """
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": TRIAL, "namespace": "default"},
        "spec": {"containers": [{"name": "trial", "image": "registry.k8s.io/pause"}]},
    }
    return [_judge_admission(api, pod)]


def _judge_admission(api: Api, pod: Object) -> Part:
    began = api.host.monotonic()
    try:
        api.try_create(pod)
    except Unreachable as error:
        return Part("admission", "pods", _blocked(error.cause))
    except ApiRefused as error:
        told = error.cause
        if "does not support dry run" in told:
            return Part("admission", "pods", unproven=f"a webhook with side effects rejects every dry run: {told}")
        if "failed calling webhook" in told or error.http_status >= 500:
            return Part("admission", "pods", _blocked(told, _find_configuration(api, told)))
        if error.http_status == 401 or "cannot create resource" in told:  # RBAC's words; a policy has others
            return Part("admission", "pods", unproven=f"this identity may not create pods: {told}")
    took_s = api.host.monotonic() - began
    return Part("admission", "pods", _explain_delay(api, took_s) if took_s > SLOW_ADMISSION_S else None)


def _find_configuration(api: Api, told: str) -> str:
    """`validatingwebhookconfiguration NAME`, which has the webhook that the API server could not call; "" if none has."""
    found = re.search(r'failed calling webhook "([^"]+)"', told)
    with contextlib.suppress(Unreachable, ApiRefused):
        for kind in _WEBHOOKS if found else ():
            for item in api.list(path_of(kind)):
                row = fit_what_does(item, _CONFIGURATION)
                if found and any(hook["name"] == found.group(1) for hook in row["webhooks"]):
                    return f"{kind.lower()} {row['metadata']['name']}"
    return ""


_CONFIGURATION: Shape = {"metadata!": {"name!": str}, "webhooks!": [{"name!": str}]}
_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


def _explain_delay(api: Api, took_s: float) -> Trouble:
    """Webhooks of which no error tells, since what they fail to answer is ignored. The API server says nowhere which it waited for."""
    rows = [
        fit_what_does(hook, _HOOK)
        for kind in _WEBHOOKS
        for item in api.list(path_of(kind))
        for hook in item.get("webhooks") or ()
    ]
    hooks = [row["name"] for row in rows if any({"pods", "*", "*/*"} & set(rule["resources"]) for rule in row["rules"])]
    cause = (
        f"it waits in admission; webhooks for pods are {', '.join(hooks)}"
        if hooks
        else "it waits in admission, and not for a webhook"
    )
    remedy = "see whether what they call answers: kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations -o yaml"
    return Trouble(f"creating a pod takes {took_s:.0f} s", cause, remedy)


_HOOK: Shape = {"name!": str, "rules!": [{"resources!": [str]}]}


def _blocked(cause: str, configuration: str = "") -> Trouble:
    return Trouble(
        "no pod can be created",
        cause,
        f"see why what it calls does not answer; if that is gone for good: kubectl delete {configuration}"
        if configuration
        else "see which webhooks there are, and whether their pods run: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations",
    )
