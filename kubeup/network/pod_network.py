"""The pod network: a bridge on every node with routes between them, an applied manifest, or none.

This module renders the CNI configuration file and the route keeper's unit, and prepares a manifest for applying. Routes are set by
kubeup/network/route_keeper.py. Another network's CNI file is never touched. kubeadm leaves all of this to manual steps.

kb's CNI file sorts last. So a network that is installed later wins by its file name, and the route keeper steps aside.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster.api import Api, Object, path_of
from kubeup.config.types import ClusterConfiguration, NodeConfig, PodNetwork
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.redirects import get_page
from kubeup.network import pod_view, step_aside
from kubeup.network.node_routes import CNI_FILE, find_first_cni_config, read_interfaces, withdraw
from kubeup.network.route_keeper import RouteSettings, render_settings, settings_path
from kubeup.network.route_plan import VXLAN_OVERHEAD, find_underlay, parse_peers
from kubeup.network.step_aside import BRIDGE, list_leases
from kubeup.node.images import rewrite_image
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, dump_yaml, fill_template, load_all_yaml
from kubeup.yaml_text import MANIFEST

CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
"""The CNI plugins that kb's network needs. The runtime itself uses loopback, for lo in every sandbox."""
KNOWN_CNI_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
UNIT = "kb-routes.service"
RENAMED_CNI_FILE = f"{CNI_FILE}.cilium_bak"
"""Cilium renames kb's file to this when it is installed (its option cni.exclusive), and nobody removes it."""
ENDING_CNI_FILE = "-kb-ending.conflist"
"""Sorts before the files of all networks. It is there only while reset ends pods that the first of them does not let end."""
_LOOPBACK = json.dumps({"cniVersion": "0.4.0", "name": "kb-ending", "plugins": [{"type": "loopback"}]}) + "\n"
_POD_LISTS = ("containers", "initContainers", "ephemeralContainers")
_ORDER = {"Namespace": 0, "CustomResourceDefinition": 1}


# ---- plugin: bridge


@frozen
class NodeFiles:
    """The contents of the files that the bridge network writes on a node."""

    conflist: str
    settings: str
    unit: str


def plan_mtu(network: PodNetwork, *, link_mtu: int, node_address: str) -> int:
    """The MTU of pods: the configured one; else the link's, minus the VXLAN overhead if nodes may be reached by VXLAN."""
    if network.mtu:
        return network.mtu
    overhead = 0 if network.backend == "route" else VXLAN_OVERHEAD[6 if ":" in node_address else 4]
    return link_mtu - overhead


def render_conflist(pod_cidrs: Sequence[str], mtu: int) -> str:
    """The CNI configuration of a node whose pods get addresses from `pod_cidrs`.

    The bridge plugin does not masquerade (ipMasq is off), because it would masquerade traffic between nodes too. The route
    keeper's rule masquerades only what leaves the cluster.
    """
    conflist = json.loads(fill_template(f"cni/{CNI_FILE}", {"mtu": mtu}))
    conflist["plugins"][0]["ipam"]["ranges"] = [[{"subnet": cidr}] for cidr in pod_cidrs]
    return json.dumps(conflist, indent=2) + "\n"


def render_unit(command: str) -> str:
    return fill_template(f"systemd/{UNIT}", {"command": command})


def check_pod_cidr_source(cluster: ClusterConfiguration) -> None:
    """Raise UsageError (no-pod-subnet) if nothing will assign podCIDRs to nodes, instead of waiting for them in vain."""
    allocate = cluster.controller_manager.last_arg("allocate-node-cidrs")
    if not cluster.networking.pod_subnet:
        cause, remedy = "networking.podSubnet is empty", "set networking.podSubnet (--pod-network-cidr 10.244.0.0/16)"
    elif allocate is not None and allocate.lower() in ("false", "f", "0"):
        cause = f"controllerManager.extraArgs has allocate-node-cidrs={allocate}"
        remedy = "remove allocate-node-cidrs from controllerManager.extraArgs"
    else:
        return
    raise UsageError(
        "podNetwork.plugin is bridge, and the nodes get no podCIDR",
        cause=f"{cause}, so the controller-manager gives no node a range of pod addresses",
        remedy=f"{remedy}, or choose another network: podNetwork: {{plugin: manifest}} or {{plugin: none}}",
        code="no-pod-subnet",
    )


def missing_pod_cidr(api: Api, name: str, *, waited_s: float) -> ClusterError:
    """The error that explains why node `name` has no podCIDR, as far as its events tell."""
    field = f"involvedObject.name={name},reason=CIDRNotAvailable"
    events = api.list("/api/v1/namespaces/default/events", field=field)
    if events:
        cause = f"the range is used up: {events[-1].get('message') or 'CIDRNotAvailable'}"
        remedy = "give networking.podSubnet a larger range, or the controller-manager a smaller node-cidr-mask-size"
    else:
        cause = "the controller-manager gives them out, and is not up or was started with allocate-node-cidrs=false"
        remedy = "look at its log: kubectl -n kube-system logs -l component=kube-controller-manager"
    return ClusterError(
        f"node {name} has no podCIDR after {waited_s:.0f} s", cause=cause, remedy=remedy, code="no-pod-cidr"
    )


def check_cni_plugins(host: Host, searched: Sequence[str], *, runtime: str) -> None:
    """Raise HostError (cni-plugins-missing) if a plugin is missing in the folders that the runtime searches. The error says where the
    plugins are, if they are anywhere."""
    folders = [Path(folder) for folder in searched]
    missing = [name for name in CNI_PLUGINS if not any(host.exists(folder / name) for folder in folders)]
    if not missing:
        return
    looked = ", ".join(str(folder) for folder in folders)
    elsewhere = next(
        (
            folder
            for folder in KNOWN_CNI_DIRS
            if folder not in folders and all(host.exists(folder / name) for name in missing)
        ),
        None,
    )
    if elsewhere is not None:
        cause = f"the plugins are in {elsewhere}, and {runtime} is configured to look in {looked}"
        remedy = f"link them: mkdir -p {folders[0]} && ln -s {elsewhere}/{{{','.join(missing)}}} {folders[0]}/"
        if len(missing) == 1:
            remedy = f"link it: mkdir -p {folders[0]} && ln -s {elsewhere}/{missing[0]} {folders[0]}/"
    else:
        cause = f"{runtime} looks for CNI plugins in {looked}, and they are in none of the usual folders either"
        remedy = "install them: apt-get install containernetworking-plugins, or unpack the release's archive there"
    raise HostError(
        f"the CNI plugins {', '.join(missing)} are missing", cause=cause, remedy=remedy, code="cni-plugins-missing"
    )


def find_foreign_cni_config(host: Host, paths: Paths) -> str:
    """The CNI file that the runtime would use before kb's; "" if there is none."""
    first = find_first_cni_config(host, paths)
    return first if first and first < CNI_FILE else ""


@contextlib.contextmanager
def end_by_own(host: Host, paths: Paths) -> Iterator[None]:
    """Have the runtime end pods by kb's own network meanwhile, or by loopback alone, whichever network they are in. The interface of a pod goes
    with its namespace; what else another network keeps of it is that network's."""
    files = (paths.cni_conf / CNI_FILE, paths.cni_conf / RENAMED_CNI_FILE)
    text = next((host.read_text(path) for path in files if host.exists(path)), _LOOPBACK)
    host.write_file(paths.cni_conf / ENDING_CNI_FILE, text)
    try:
        yield
    finally:
        host.remove(paths.cni_conf / ENDING_CNI_FILE)


def is_kept(host: Host, paths: Paths) -> bool:
    """Whether kb's network was set up on this node, by the unit of its keeper. The CNI file is no proof, because Cilium renames other
    networks' files."""
    return host.exists(paths.systemd / UNIT)


def check_foreign_cni_config(host: Host, paths: Paths, *, keep: str = "or keep it: podNetwork: {plugin: none}") -> None:
    """Raise HostError (foreign-cni-config) if another network's file would take precedence over kb's from the start. `keep` names the
    alternative to moving that file away."""
    first = find_foreign_cni_config(host, paths)
    if first and not is_kept(host, paths):
        raise HostError(
            f"{paths.cni_conf / first} already exists",
            cause=f"the runtime takes the first file by name, so it would not use kb's network ({CNI_FILE})",
            remedy=f"move it away (mv {paths.cni_conf / first} {paths.cni_conf / first}.off), {keep}",
            code="foreign-cni-config",
        )


def plan_node_files(
    host: Host, node: Mapping[str, Any], *, config: NodeConfig, network: PodNetwork, command: str
) -> NodeFiles:
    """The files of the bridge network for the Node object `node`.

    Raises HostError (no-node-interface) if the machine has no interface with an address.
    """
    (me,) = parse_peers([node])
    underlay = find_underlay(me, read_interfaces(host))
    if underlay is None:
        raise HostError(
            f"no network interface carries an address of node {me.name}",
            cause=f"its InternalIP is {', '.join(me.addresses) or 'unknown'}, and `ip address show` names no other",
            remedy="configure the node's network, or set its address: kubeletExtraArgs node-ip",
            code="no-node-interface",
        )
    address = me.addresses[0] if me.addresses else underlay.addresses[0].partition("/")[0]
    mtu = plan_mtu(network, link_mtu=underlay.mtu, node_address=address)
    settings = RouteSettings(
        me.name, config.cluster.pod_cidrs(), network.backend, tuple(filter(None, config.cluster.service_cidrs()))
    )
    return NodeFiles(render_conflist(me.pod_cidrs, mtu), render_settings(settings), render_unit(command))


def remove_node_network(host: Host, paths: Paths, *, socket: str = "") -> bool:
    """Remove everything of the bridge network from this node, for `kb reset`, once no pod runs any more: the unit, routes and rules,
    both links, the files. Returns whether there was anything."""
    had_unit = host.exists(paths.systemd / UNIT)
    if had_unit:
        services.stop_own_unit(host, UNIT)
    changed = had_unit
    if host.which("ip"):
        pod_view.remove_namespace(host, paths, socket=socket)
        changed = withdraw(host) or changed
        step_aside.end_ports(host)
        if host.query(["ip", "link", "show", "dev", BRIDGE]).ok:
            host.run(["ip", "link", "delete", BRIDGE])
            changed = True
    cni_files = [paths.cni_conf / name for name in (CNI_FILE, RENAMED_CNI_FILE, ENDING_CNI_FILE)]
    for path in (paths.systemd / UNIT, settings_path(paths), *cni_files, *list_leases(host)):
        changed = host.remove(path) or changed
    if had_unit:
        services.forget_removed_units(host)
    return changed


# ---- plugin: manifest


def read_manifest(host: Host, place: str) -> list[Object]:
    """The objects in a file or at an http(s) URL, with Lists expanded.

    Raises UsageError (manifest-missing, manifest-invalid), or HostError if it cannot be downloaded.
    """
    if place.startswith(("http://", "https://")):
        text = _download(host, place)
    elif place and host.exists(Path(place)):
        text = host.read_text(Path(place))
    else:
        raise UsageError(
            f"podNetwork.manifest is {place!r}",
            cause="there is no such file on this node, and it is not an http(s) URL",
            remedy="give the path of a YAML file on this node, or its URL",
            code="manifest-missing",
        )
    return parse_manifest(text, place)


def _download(host: Host, url: str) -> str:
    place, answer = get_page(host, url, timeout_s=60)
    if answer.status == 200:
        return answer.body.decode("utf-8", errors="replace")
    raise HostError(
        f"the pod network's manifest {url} cannot be downloaded",
        cause=f"{place} answered HTTP {answer.status}",
        remedy=f"check the URL (curl -fL {url}), or save the file on this node and give its path",
        code="manifest-unreachable",
    )


def parse_manifest(text: str, place: str) -> list[Object]:
    """The objects in a manifest, with Lists expanded. Raises UsageError (manifest-invalid)."""
    try:
        documents = load_all_yaml(text, MANIFEST)
    except YAMLError as error:
        raise _invalid_manifest(place, f"it is not YAML: {' '.join(str(error).split())}") from error
    objects: list[Object] = []
    for document in documents:
        is_list = isinstance(document, dict) and str(document.get("kind", "")).endswith("List") and "items" in document
        objects += document["items"] or [] if is_list else [document]
    for found in objects:
        if not isinstance(found, dict) or not found.get("kind") or not found.get("apiVersion"):
            raise _invalid_manifest(place, f"a document in it is not a Kubernetes object: {str(found)[:80]!r}")
        metadata = found.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if name is None or name == "":
            raise _invalid_manifest(place, f"a {found['kind']} in it has no metadata.name")
        if not isinstance(name, str):
            shown = dump_yaml(name).split("\n")[0]
            cause = f"a {found['kind']} in it has the metadata.name {shown}, which is not a string: put y, no, on and numbers in quotes"
            raise _invalid_manifest(place, cause)
    if not objects:
        raise _invalid_manifest(place, "it holds no object")
    return objects


def _invalid_manifest(place: str, cause: str) -> UsageError:
    return UsageError(
        f"the pod network's manifest {place}",
        cause=cause,
        remedy="correct it, or give another one: podNetwork: {plugin: manifest, manifest: FILE}",
        code="manifest-invalid",
    )


def sort_objects(objects: Iterable[Object]) -> list[Object]:
    """Sort Namespaces first, then CustomResourceDefinitions, then the rest in its order: each may need those before it."""
    return sorted(objects, key=lambda found: _ORDER.get(str(found["kind"]), 2))


def rewrite_images(objects: Iterable[Object], mirror: str) -> list[Object]:
    """The objects with their containers' images renamed to the mirror; with mirror "", unchanged.

    Image names in an operator's arguments are not renamed: the runtime's mirror configuration (hosts.toml) covers those.
    """
    server = mirror.partition("://")[2] or mirror
    return [_rewrite(found, server.strip("/")) for found in objects] if mirror else list(objects)


def _rewrite(value: Any, server: str) -> Any:
    if isinstance(value, list):
        return [_rewrite(item, server) for item in value]
    if not isinstance(value, dict):
        return value
    rewritten = {key: _rewrite(item, server) for key, item in value.items()}
    for name in _POD_LISTS:
        for container in rewritten.get(name) or []:
            if isinstance(container, dict) and isinstance(container.get("image"), str):
                container["image"] = rewrite_image(container["image"], server)
    return rewritten


def is_established(crd: Optional[Mapping[str, Any]]) -> bool:
    conditions = ((crd or {}).get("status") or {}).get("conditions") or []
    return any(found.get("type") == "Established" and found.get("status") == "True" for found in conditions)


def crd_path(crd: Object) -> str:
    return path_of("CustomResourceDefinition", str(crd["metadata"]["name"]))
