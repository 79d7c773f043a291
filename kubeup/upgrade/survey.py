"""What runs where in a cluster: the versions that an upgrade starts from.

Each API server and each member of etcd is asked itself, at its own address; the rest is read from the cluster's objects. Changes
nothing, and judges nothing: that is policy.py's. Mirrors cmd/kubeadm/app/phases/upgrade/versiongetter.go, which reads image tags alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Optional

from kubeup import releases
from kubeup.cluster import etcd, objects, probes, upgrade_turn
from kubeup.cluster.api import Api, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.http import Unreachable
from kubeup.releases import Version
from kubeup.yaml_files import YAMLError, load_yaml

API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
ETCD = "etcd"
KUBELET = "kubelet"
RUNTIME = "container-runtime"
KUBE_PROXY = "kube-proxy"
COREDNS = "coredns"


@frozen
class Seen:
    """One thing that runs, and its version.

    version: as it says itself (`v1.35.6`, `3.6.6`, `2.1.4`), or its image's tag; "" if it did not answer. node: "" for what belongs to
    the cluster (kube-proxy, coredns), and where it is not known. place: an API server's or etcd member's address, a runtime's name, else
    an image. unknown: why there is no version, in words. tag: of the image of etcd's static pod, which may differ from what it says of
    itself; "" if unknown.
    """

    component: str
    version: str
    node: str = ""
    place: str = ""
    unknown: str = ""
    tag: str = ""

    @property
    def parsed(self) -> Optional[Version]:
        """The version, or None if it has none that is understood. What a distribution appends (`1.6.20~ds1`) is left out."""
        return releases.parse_version(self.version) or releases.parse_version(self.version.partition("~")[0])


@frozen
class NodeSeen:
    """A node. is_cordoned: whether it was marked as unschedulable before the upgrade."""

    name: str
    is_control_plane: bool
    is_ready: bool
    is_cordoned: bool = False
    turn: str = ""
    """Since when its kubelet is being replaced, as the node itself says; "" if it is not."""


@frozen
class Versions:
    """What was seen of the versions. etcd_is_external: then its members have no node. etcd_tag: the image tag that the cluster's
    configuration pins for etcd; "" if it pins none. stored: the version in the cluster's configuration; "" if unknown."""

    seen: tuple[Seen, ...]
    etcd_is_external: bool = False
    etcd_tag: str = ""
    stored: str = ""
    nodes: tuple[NodeSeen, ...] = ()

    def of(self, *components: str) -> tuple[Seen, ...]:
        return tuple(one for one in self.seen if one.component in components)

    def newest(self, component: str) -> Optional[Version]:
        return max(_parsed(self.of(component)), key=lambda found: found.key, default=None)

    def oldest(self, component: str) -> Optional[Version]:
        return min(_parsed(self.of(component)), key=lambda found: found.key, default=None)


def _parsed(seen: Iterable[Seen]) -> list[Version]:
    return [found for one in seen if (found := one.parsed) is not None]


# ---- reading it

AT_ONCE = 8
"""How many API servers are asked at the same time."""
ASK_S = 5.0
CONTROL_PLANE = "tier=control-plane"
"""The label of the mirror pods of kubeadm's static pods."""


@frozen
class Asked:
    """What an API server says at its own address. api: to ask it more."""

    api: Api
    address: str
    seen: Seen


def read_versions(
    api: Api, *, members: Optional[etcd.Etcd], is_external: bool = False, servers: Sequence[Asked] = ()
) -> Versions:
    """Ask everything in the cluster for its version. members: a client of etcd; None: etcd is left out. servers: as ask_servers found
    them, if they were asked already. Raises Unreachable, ApiRefused if the API server of `api` does not answer."""
    nodes = api.list(path_of("Node"))
    pods = api.list(path_of("Pod", namespace=objects.SYSTEM), label=CONTROL_PLANE)
    asked = servers or ask_servers(api)
    stored = _read_stored(api)
    seen = [
        *_name_nodes([one.seen for one in asked], nodes),
        *_of_pods(pods),
        *_with_tags(_of_members(members, is_external=is_external), pods),
        *_of_nodes(nodes),
        *_of_addons(api),
    ]
    local = (stored.get("etcd") or {}).get("local") if isinstance(stored.get("etcd"), dict) else None
    tag = str(local.get("imageTag") or "") if isinstance(local, dict) else ""
    servers_of = {one.node for one in seen if one.component == API_SERVER}
    return Versions(
        tuple(seen),
        etcd_is_external=is_external,
        etcd_tag=tag,
        stored=str(stored.get("kubernetesVersion") or ""),
        nodes=tuple(_look_at_node(node, servers_of) for node in nodes),
    )


def _look_at_node(node: Object, control_planes: Collection[str]) -> NodeSeen:
    name, labels = str(node["metadata"]["name"]), node["metadata"].get("labels") or {}
    return NodeSeen(
        name,
        is_control_plane=name in control_planes or objects.CONTROL_PLANE_TAINT.key in labels,
        is_ready=probes.node_condition(node)[0] == "True",
        is_cordoned=bool((node.get("spec") or {}).get("unschedulable")),
        turn=upgrade_turn.read(node),
    )


def ask_servers(api: Api) -> list[Asked]:
    """Every API server of the cluster, and its version; the one of `api` alone if its list may not be read."""
    addresses = objects.read_api_servers(api) or (api.server.partition("://")[2],)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda address: _ask(api, address), addresses))


def _ask(api: Api, address: str) -> Asked:
    own = api.with_server(f"https://{address}")
    own.retry_s = 0
    unknown, version = "", ""
    try:
        answer = own.probe_health("/version", timeout_s=ASK_S)
        found = parse_json(answer.body, "the answer")
        version = str(found.get("gitVersion") or "") if answer.status == 200 and isinstance(found, dict) else ""
        unknown = "" if version else f"API server {address} answers HTTP {answer.status} and no version"
    except Unreachable as error:
        unknown = f"API server {address} does not answer: {error.cause}"
    except ValueError as error:
        unknown = f"the answer of API server {address} is not understood: {error}"
    return Asked(own, address, Seen(API_SERVER, version, place=address, unknown=unknown))


def _name_nodes(seen: Iterable[Seen], nodes: Iterable[Object]) -> Iterator[Seen]:
    """`seen` with the nodes that have these addresses."""
    names = {
        str(row.get("address")): str(node["metadata"]["name"])
        for node in nodes
        for row in (node.get("status") or {}).get("addresses") or ()
    }
    for one in seen:
        host = one.place.rpartition(":")[0].strip("[]")
        yield replace(one, node=names.get(host, ""))


def _of_pods(pods: Iterable[Object]) -> Iterator[Seen]:
    """Controller-managers and schedulers, by the images of their static pods."""
    for pod in pods:
        name = str((pod["metadata"].get("labels") or {}).get("component", ""))
        if name in (CONTROLLER_MANAGER, SCHEDULER):
            image = image_in(pod.get("spec"), name)
            node = str((pod.get("spec") or {}).get("nodeName") or "")
            yield Seen(name, tag_of(image), node, image, unknown="" if image else "its pod names no image")


def _with_tags(members: Iterable[Seen], pods: Iterable[Object]) -> Iterator[Seen]:
    """Members of etcd with the image tags of the static pods of their nodes."""
    tags = {
        str((pod.get("spec") or {}).get("nodeName") or ""): tag_of(image)
        for pod in pods
        if (image := image_in(pod.get("spec"), ETCD))
    }
    for one in members:
        yield replace(one, tag=tags.get(one.node, "") if one.node else "")


def _of_nodes(nodes: Iterable[Object]) -> Iterator[Seen]:
    for node in nodes:
        name, info = str(node["metadata"]["name"]), (node.get("status") or {}).get("nodeInfo") or {}
        yield Seen(KUBELET, probes.kubelet_version(node), name, str(info.get("osImage") or ""))
        kind, _, version = str(info.get("containerRuntimeVersion") or "").partition("://")
        yield Seen(RUNTIME, version, name, kind)


def _of_members(client: Optional[etcd.Etcd], *, is_external: bool) -> Iterator[Seen]:
    """The members of etcd, each by what it says of itself. A member of the cluster's own etcd has its node's name."""
    if client is None:
        return
    try:
        members = client.list_members(is_sure=False)
    except (Unreachable, etcd.EtcdRefused) as error:
        yield Seen(ETCD, "", unknown=f"no member of etcd answers: {error.cause}")
        return
    statuses = etcd.read_statuses(client, members)
    for member in members:
        status = statuses[member.member_id]
        place = (member.client_urls or member.peer_urls or ("",))[0]
        yield Seen(ETCD, status.version, "" if is_external else member.name, place, unknown=status.away)


def _of_addons(api: Api) -> Iterator[Seen]:
    for kind, name in (("DaemonSet", KUBE_PROXY), ("Deployment", COREDNS)):
        found = api.get(path_of(kind, name, namespace=objects.SYSTEM))
        image = image_in(found["spec"]["template"]["spec"], name) if found else ""
        if image:
            yield Seen(name, tag_of(image), place=image)


def image_in(spec: Any, container: str) -> str:
    """The image of a container in the spec of a pod; "" if there is none of that name."""
    rows = spec.get("containers") if isinstance(spec, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("name") == container:
            return str(row.get("image") or "")
    return ""


def tag_of(image: str) -> str:
    """`registry.k8s.io/kube-proxy:v1.35.6@sha256:...` -> `v1.35.6`. A tag's `_` stands for a version's `+`."""
    match = re.search(r":([^:/@]+)(?:@.*)?$", image)
    return match.group(1).replace("_", "+") if match else ""


def _read_stored(api: Api) -> Mapping[str, Any]:
    """The cluster's ClusterConfiguration, as far as it is one."""
    try:
        found = load_yaml(objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration") or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
