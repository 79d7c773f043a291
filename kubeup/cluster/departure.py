"""A node that is to leave the cluster: what is known of it, whether the rest can do without it, and what of it is removed.

This module looks, judges, and deletes what the cluster holds of one node. It moves no pods (eviction.py), removes no member of etcd
(etcd.py), and stops nothing on a machine. A node counts as dead only if the cluster has lost its kubelet *and* the kubelet's port is
silent here: the pods of a dead node are given up, and two pods that write to one volume destroy it. kubeadm has no counterpart.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Optional

from kubeup.addresses import host_of
from kubeup.cluster import etcd, objects, probes
from kubeup.cluster.api import Api, Object, path_of
from kubeup.cluster.etcd import Etcd, Member
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.machine.waiting import wait_for

LIVING, DEAD, SILENT, GONE = "living", "dead", "silent", "gone"
KUBELET_PORT = 10250
SILENT_S = 75.0
"""How long the cluster may take to notice that a kubelet is silent: it calls a node Ready for 40 to 50 s after the last sign of it."""
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
"""With this taint the cluster gives up the node's pods and detaches its volumes at once. Source: KEP-2268"""
NODE_LEASES = "kube-node-lease"
_ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"
_LABEL = "node-role.kubernetes.io/control-plane"
_SERVER_LEASES = "apiserver.kubernetes.io/identity=kube-apiserver,kubernetes.io/hostname="


@frozen
class Departing:
    """The node that is to leave. state: living | dead | silent (it counts as Ready, and its kubelet does not answer here) | gone (the
    cluster has no Node of this name). member: its member of etcd, None if it has none; trouble: member_id -> what is wrong, of all
    members that do not serve. servers: `host:port` of all API servers of the cluster."""

    name: str
    node: Optional[Object] = None
    state: str = GONE
    members: tuple[Member, ...] = ()
    member: Optional[Member] = None
    trouble: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those of its Node, and of its member of etcd."""
        urls = self.member.peer_urls if self.member else ()
        hosts = [urllib.parse.urlsplit(url).hostname or "" for url in urls]
        return tuple(dict.fromkeys(one for one in (*addresses_of(self.node), *hosts) if one))

    @property
    def server(self) -> str:
        """`10.0.0.13:6443` of its API server; "" if the cluster lists none of it."""
        return next((one for one in self.servers if host_of(one) in self.addresses), "")

    @property
    def is_control_plane(self) -> bool:
        labels = self.node["metadata"].get("labels") or {} if self.node else {}
        return self.member is not None or _LABEL in labels or bool(self.server)

    @property
    def is_nowhere(self) -> bool:
        """Whether neither the cluster nor etcd knows it."""
        return self.node is None and self.member is None


# ---- looks


def look(api: Api, name: str, *, client: Optional[Etcd]) -> Departing:
    """client: of the cluster's own etcd, None if it is external. Raises ClusterError (etcd-no-quorum), ApiRefused, Unreachable."""
    members = client.list_members(is_sure=False) if client else ()
    trouble = etcd.probe_members(client, members) if client else {}
    lost = etcd.judge_members(members, trouble)
    if lost is not None and lost.code == "etcd-no-quorum":
        raise lost  # without a quorum nothing can be removed, and no API server answers
    node = api.get(path_of("Node", name))
    found = Departing(name, node, _probe_state(api, node), tuple(members), None, trouble, objects.read_api_servers(api))
    # a worker may have taken the address of a control plane whose member is still listed
    addresses = found.addresses if found.is_control_plane else ()
    return replace(found, member=_find_member(members, name, addresses=addresses))


def _find_member(members: Sequence[Member], name: str, *, addresses: Sequence[str]) -> Optional[Member]:
    """The member of this name, as kubeadm and kb call it, or with the node's address."""
    by_name = next((one for one in members if one.name == name), None)
    return by_name or next(
        (one for one in members if {urllib.parse.urlsplit(url).hostname for url in one.peer_urls} & set(addresses)),
        None,
    )


def addresses_of(node: Optional[Object]) -> list[str]:
    rows = ((node or {}).get("status") or {}).get("addresses") or ()
    return [str(row.get("address")) for row in rows if row.get("type") == "InternalIP"]


def _probe_state(api: Api, node: Optional[Object]) -> str:
    if node is None:
        return GONE
    if _answers(api, node):
        return LIVING
    # "False" is what the kubelet itself said last, "Unknown" what the cluster says once it has heard nothing for long
    return DEAD if probes.node_condition(node)[0] == "Unknown" else SILENT


def _answers(api: Api, node: Object) -> bool:
    endpoints: Mapping[str, Any] = ((node.get("status") or {}).get("daemonEndpoints") or {}).get(
        "kubeletEndpoint"
    ) or {}
    told = endpoints.get("Port")
    port = told if isinstance(told, int) and 0 < told < 65536 else KUBELET_PORT
    return any(api.host.served_cert(address, port) is not None for address in addresses_of(node))


def settle(api: Api, one: Departing, *, tell: Callable[[str], None]) -> Departing:
    """Find out what has become of a node that is silent: its kubelet may have died a moment ago, or be reached by the API servers alone.
    Raises ClusterError (node-silent), ApiRefused, Unreachable."""
    if one.state != SILENT:
        return one
    first, state = read_renewal(api, one.name), SILENT

    def look() -> str:
        nonlocal state
        node = api.get(path_of("Node", one.name))
        if read_renewal(api, one.name) != first:
            state = LIVING
        elif node is None or probes.node_condition(node)[0] == "Unknown":
            state = DEAD if node else GONE
        return "" if state != SILENT else "its kubelet does not answer, and the cluster still calls it Ready"

    def failure(missing: str, elapsed: float) -> ClusterError:
        return ClusterError(
            f"it is not known whether node {one.name} lives",
            cause=f"{missing}, for {elapsed:.0f} s; its pods may write to their volumes",
            remedy=f"on that machine: kb doctor; or switch it off, and see that it becomes NotReady: kubectl get node {one.name}",
            code="node-silent",
        )

    goal = f"what has become of node {one.name}"
    wait_for(api.host, look, goal=goal, timeout_s=SILENT_S, tell=tell, failure=failure, poll_s=1.0)
    return replace(one, state=state)


def read_renewal(api: Api, name: str) -> str:
    found = api.get(path_of("Lease", name, namespace=NODE_LEASES))
    return str(((found or {}).get("spec") or {}).get("renewTime") or "")


def list_pods(api: Api, node: str) -> list[Object]:
    return api.list(path_of("Pod"), field=f"spec.nodeName={node}")


def find_attached(api: Api, node: str) -> list[str]:
    """The names of the volumes that are attached to the node."""
    found = [one for one in api.list(_ATTACHMENTS) if (one.get("spec") or {}).get("nodeName") == node]
    return sorted(
        str(((one["spec"].get("source")) or {}).get("persistentVolumeName") or one["metadata"]["name"]) for one in found
    )


# ---- may it leave?


def check(one: Departing, *, own: str, endpoint: str) -> None:
    """Refuse what would stop the cluster. own: the node that asks; endpoint: the cluster's controlPlaneEndpoint, "" if it has none.

    Raises ClusterError: node-is-this-one, etcd-last-member, etcd-removal-unsafe, last-control-plane, endpoint-is-on-node.
    """
    if one.name == own:
        raise ClusterError(
            f"{one.name} is the node that the command runs on",
            cause="it would take away its own API server and its own etcd in the middle",
            remedy=f"on another control plane: kb node remove {one.name}; or to take this machine away here: kb reset",
            code="node-is-this-one",
        )
    if one.member is not None:
        etcd.check_removal(one.members, one.member, trouble=one.trouble)
    if one.is_control_plane and one.server and set(one.servers) == {one.server}:
        raise ClusterError(
            f"{one.name} has the cluster's only API server",
            cause=f"the API servers are: {', '.join(one.servers)}",
            remedy="join another control plane first: kb token create --print-join-command --control-plane",
            code="last-control-plane",
        )
    if one.node is not None and host_of(endpoint) in one.addresses:
        raise ClusterError(
            f"all nodes call the cluster at {endpoint}, and that is {one.name}",
            cause="without that machine they would reach no API server",
            remedy="give the API servers a name that stays, on each node: kb reconfigure endpoint NAME:PORT --load-balancer local",
            code="endpoint-is-on-node",
        )


def say_members(one: Departing) -> str:
    """What becomes of etcd without its member; "" if it has none."""
    if one.member is None:
        return ""
    others = [member for member in one.members if member is not one.member and not member.is_learner]
    serving = [member for member in others if member.member_id not in one.trouble]
    bears = len(serving) - etcd.quorum_of(len(others))
    told = f"etcd's member {one.member.describe()} is removed; {len(serving)} of the {len(others)} others serve"
    return f"{told}, and {f'{bears} of them may fail' if bears else 'none of them may fail then'}"


# ---- changes


def give_up(api: Api, node: str) -> int:
    """Give up the pods of a dead node: tell the cluster that it is out of service, so that its volumes are detached at once, and delete
    the pods without waiting for its kubelet. Returns how many. Raises ApiRefused, Unreachable."""
    objects.patch_fields(api, path_of("Node", node), plan=_plan_taint)
    return _delete_pods(api, node)


def _plan_taint(node: Object) -> Optional[Object]:
    """The list of taints is replaced as a whole, so the patch is for this version of it."""
    taints = list((node.get("spec") or {}).get("taints") or [])
    if any(taint.get("key") == OUT_OF_SERVICE["key"] and taint.get("effect") == "NoExecute" for taint in taints):
        return None
    version = node["metadata"].get("resourceVersion")
    return {"metadata": {"resourceVersion": version}, "spec": {"taints": [*taints, OUT_OF_SERVICE]}}


def _delete_pods(api: Api, node: str) -> int:
    paths = [
        path_of("Pod", str(pod["metadata"]["name"]), namespace=str(pod["metadata"].get("namespace") or "default"))
        for pod in list_pods(api, node)
    ]
    return sum(api.delete(f"{path}?gracePeriodSeconds=0") for path in paths)


def strike_out(api: Api, node: str) -> tuple[bool, int]:
    """Delete what the cluster holds of a node: Node, leases, CSINode, pods. As long as it does, the pods count as running, and no machine
    can join with that name. Returns whether there was anything beside pods, and how many pods. Raises ApiRefused, Unreachable."""
    found = [path for path in _list_objects(api, node) if api.delete(path)]
    return bool(found), _delete_pods(api, node)


def _list_objects(api: Api, node: str) -> Iterator[str]:
    paths = (
        path_of("Node", node),
        path_of("Lease", node, namespace=NODE_LEASES),
        f"/apis/storage.k8s.io/v1/csinodes/{urllib.parse.quote(node, safe='')}",
    )
    yield from [path for path in paths if api.get(path) is not None]
    for lease in api.list(path_of("Lease", namespace=objects.SYSTEM), label=f"{_SERVER_LEASES}{node}"):
        yield path_of("Lease", str(lease["metadata"]["name"]), namespace=objects.SYSTEM)
