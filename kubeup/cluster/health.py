"""The health of the whole cluster: its nodes, API servers, etcd members, controllers and admission.

Each API server is probed at its own address, because a load balancer in front of them hides the one that is down. This module
changes nothing, and waits only for the renewal of leases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

from kubeup import releases
from kubeup.cluster import etcd, objects, probes
from kubeup.cluster.api import Api, ApiRefused, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import becomes_so
from kubeup.trouble import Trouble

LEADERS = ("kube-controller-manager", "kube-scheduler")
LEASE_MOVES_S = 6
"""How long a leader may take to renew its lease. By default it does so every 2 s (--leader-elect-retry-period)."""
MAX_BEHIND = 5000
"""How many entries a member of etcd may be behind: with more, etcd itself rejects requests
(server/etcdserver/v3_server.go: maxGapBetweenApplyAndCommitIndex)."""
TRIAL = "kb-admission-trial"
"""The name of the pod with which admission is tested. It is never created."""


@frozen
class Part:
    """One part of the cluster, and what is wrong with it.

    kind: node | api-server | etcd | leader | admission. unproven: why its health cannot be determined, in words. node: the node
    concerned, if known; for a leader, the hostname of the lease's holder.
    """

    kind: str
    name: str
    trouble: Optional[Trouble] = None
    unproven: str = ""
    node: str = ""

    @property
    def is_well(self) -> bool:
        return self.trouble is None and not self.unproven


def probe_cluster(api: Api) -> list[Part]:
    """All parts of the cluster except etcd, which needs a client of its own (judge_members).

    Raises Unreachable if the API server of `api` does not serve, ApiRefused if it rejects the identity.
    """
    before = _read_renewals(api)
    servers = probe_api_servers(api)
    return [*probe_nodes(api), *servers, *probe_admission(api), *probe_leaders(api, before)]


# ---- nodes


def probe_nodes(api: Api) -> list[Part]:
    """Check that every node is Ready, has an address of its own, and a kubelet version that the API servers support.

    Only a working controller-manager marks a lost node as not Ready, so trust this only if a leader is found (probe_leaders).
    """
    nodes = api.list(path_of("Node"))
    owners: dict[str, list[str]] = {}
    for node in nodes:
        for address in _internal_ips(node):
            owners.setdefault(address, []).append(node["metadata"]["name"])
    server = releases.parse_version(_read_version(api))
    return [_judge_node(node, owners, server=server) for node in nodes]


def _internal_ips(node: Object) -> list[str]:
    addresses = (node.get("status") or {}).get("addresses") or ()
    return [entry["address"] for entry in addresses if entry.get("type") == "InternalIP"]


def _judge_node(node: Object, owners: Mapping[str, Sequence[str]], *, server: Optional[releases.Version]) -> Part:
    name = str(node["metadata"]["name"])
    status, message = probes.node_condition(node)
    trouble = None
    if status != "True":
        why = message or "its kubelet says nothing"
        trouble = Trouble(
            f"node {name} is not Ready",
            why,
            f"on that machine: kb doctor; if it is gone for good: kubectl delete node {name}",
        )
    twice = [(address, owners[address]) for address in _internal_ips(node) if len(owners[address]) > 1]
    if trouble is None and twice:
        address, names = twice[0]
        trouble = Trouble(
            f"nodes {', '.join(names)} have the same address",
            f"each of them reports {address} as its InternalIP",
            "give each machine its own address, and restart its kubelet",
        )
    return Part("node", name, trouble or _judge_kubelet(node, server), node=name)


def _judge_kubelet(node: Object, server: Optional[releases.Version]) -> Optional[Trouble]:
    """Apply Kubernetes' version skew policy: a kubelet is never newer than an API server, and at most three minors older."""
    name, told = node["metadata"]["name"], ((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", "")
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


# ---- API servers


def probe_api_servers(api: Api) -> list[Part]:
    """Probe every API server in the EndpointSlice that they maintain, at its own address."""
    return [_ask_ready(api, server) for server in objects.read_api_servers(api)]


def _ask_ready(api: Api, server: str) -> Part:
    try:
        answer = api.with_server(f"https://{server}").probe_health("/readyz", timeout_s=5)
    except Unreachable as error:
        if error.reason == "tls":
            return Part(
                "api-server", server, unproven=f"API server {server} does not present a certificate for that address"
            )
        remedy = f"on that machine: kb doctor; from here: curl -vk https://{server}/readyz"
        return Part("api-server", server, Trouble(f"API server {server} does not answer", error.cause, remedy))
    if answer.status == 200:
        return Part("api-server", server)
    told = [line[3:] for line in answer.body.decode(errors="replace").splitlines() if line.startswith("[-]")]
    cause = "; ".join(told) or f"/readyz answers HTTP {answer.status}"
    return Part("api-server", server, Trouble(f"API server {server} is not ready", cause, "on that machine: kb doctor"))


def _read_version(api: Api) -> str:
    try:
        found = parse_json(api.probe_health("/version", timeout_s=5).body, "the answer")
    except (Unreachable, ValueError):
        return ""
    return str(found.get("gitVersion", "")) if isinstance(found, dict) else ""


# ---- etcd


def judge_members(members: Sequence[etcd.Member], statuses: Mapping[str, etcd.Status]) -> list[Part]:
    """Judge every member by its status (alarms included), its vote, and how far it is behind the others.

    statuses: member ID -> status, of every member.
    """
    newest = max((status.applied for status in statuses.values()), default=0)
    return [Part("etcd", one.name or one.hex_id, _judge_member(one, statuses, newest=newest)) for one in members]


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


def _read_renewals(api: Api) -> dict[str, tuple[str, str]]:
    """Component -> (holderIdentity, renewTime); components without a lease are left out."""
    found = {}
    for name in LEADERS:
        lease = api.get(path_of("Lease", name, namespace=objects.SYSTEM))
        if lease is not None:
            found[name] = (str(lease["spec"].get("holderIdentity") or ""), str(lease["spec"].get("renewTime") or ""))
    return found


def probe_leaders(api: Api, before: Optional[Mapping[str, tuple[str, str]]] = None) -> list[Part]:
    """Check that the controller-managers and the schedulers have a leader: one that renews its lease while kb watches.

    Clocks are not compared. before: an earlier result of _read_renewals, which saves most of the wait.
    """
    earlier = dict(before if before is not None else _read_renewals(api))
    latest = dict(earlier)

    def have_all_moved() -> bool:
        latest.update(_read_renewals(api))
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
    cause = f"{holder} has not renewed its lease for {LEASE_MOVES_S} s" if holder else "its lease has no holder"
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
    try:
        api.try_create(pod)
    except Unreachable as error:
        return Part("admission", "pods", _blocked(error.cause))
    except ApiRefused as error:
        told = error.cause
        if "does not support dry run" in told:
            return Part("admission", "pods", unproven=f"a webhook with side effects rejects every dry run: {told}")
        if "failed calling webhook" in told or error.http_status >= 500:
            return Part("admission", "pods", _blocked(told))
        if error.http_status == 401 or "cannot create resource" in told:  # RBAC's words; a policy has others
            return Part("admission", "pods", unproven=f"this identity may not create pods: {told}")
    return Part("admission", "pods")


def _blocked(cause: str) -> Trouble:
    return Trouble(
        "no pod can be created",
        cause,
        "see which webhooks there are, and whether their pods run: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations",
    )
