"""Checks what a pod on this node can reach, from inside a pod's network namespace.

What the node itself reaches proves nothing about its pods: their packets are forwarded, and a firewall may drop just those. The probe
runs in a network namespace that kb creates with its own network's plugin, as the runtime does for a pod. If nothing may be created, or
the network is not kb's, it runs in the namespaces of existing pods. If something is not reached, the module names the broken link. It
never waits (phases/wait_pod_ways.py does), and leaves nothing behind. kubeadm has no such check.
"""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import join_host_port
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table, parse_json
from kubeup.machine import services
from kubeup.machine.host import CommandResult, Host
from kubeup.network import step_aside
from kubeup.network.node_routes import CNI_FILE
from kubeup.node import crictl, runtime
from kubeup.paths import Paths
from kubeup.shapes import fit, fit_what_does

NAME = "kb-probe"
NAMESPACES = Path("/run/netns")
PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_MAX_PODS = 20


@frozen
class Way:
    """A destination that pods have to reach. what: in words; kind: udp for a DNS server, tcp for an API server."""

    what: str
    address: str
    port: int
    kind: str
    is_here: bool = False
    """It is a pod on this node."""

    def __str__(self) -> str:
        return f"{self.what} at {join_host_port(self.address, self.port)}"


@frozen
class Ways:
    """The Services that every pod needs, and their backends, as far as they are known.

    name: the name that the DNS is asked for."""

    name: str
    services: tuple[Way, ...]
    behind: tuple[Way, ...] = ()


def service_ways(dns_address: str, api_address: str) -> tuple[Way, ...]:
    """The Services that every pod needs. An address of "" is left out."""
    ways = (
        Way("the cluster's DNS", dns_address, 53, "udp"),
        Way("the API's Service", api_address, 443, "tcp"),
    )
    return tuple(way for way in ways if way.address)


def dns_pod_ways(pods: Iterable[tuple[str, str]], node_name: str) -> tuple[Way, ...]:
    """The backends of the cluster's DNS, from (address, node) of CoreDNS' pods."""
    return tuple(Way(f"CoreDNS on {node}", address, 53, "udp", node == node_name) for address, node in pods)


def server_ways(url: str) -> tuple[Way, ...]:
    """The API server in a URL; () if the URL has a host name, because pods may not be able to resolve it."""
    try:
        parts = urllib.parse.urlsplit(url)
        return (Way("the API server", str(ipaddress.ip_address(parts.hostname or "")), parts.port or 443, "tcp"),)
    except ValueError:
        return ()


# ---- existing pods


def find_namespaces(host: Host, socket: str, *, limit: int = 2, is_own_network: bool = True) -> list[Path]:
    """The network namespaces of the pods on this node, except host-network pods. In another network than kb's, CoreDNS' pods are skipped, because
    in some a pod cannot reach itself through a Service, and so are pods that kb's has left behind: they are cut off, which is told by itself."""
    if not (host.which("crictl") and host.which("nsenter")):
        return []
    listed = host.query(crictl.crictl_argv(socket, "pods", "--state", "ready", "-o", "json"), timeout_s=15)
    items = fit_what_does(as_table(listed.stdout).get("items"), [{"id!": str, "labels!": {str: str}}])
    left = set() if is_own_network else step_aside.read_sandboxes(host)
    asked = [item for item in items if is_own_network or item["labels"].get("k8s-app") != "kube-dns"]
    ids = [item["id"] for item in asked if item["id"] and item["id"] not in left]
    if not ids:
        return []
    answer = host.query(crictl.crictl_argv(socket, "inspectp", *ids[:_MAX_PODS]), timeout_s=15)
    found = [_namespace_of(pod) for pod in crictl.split_json(answer.stdout)]
    return [Path(path) for path in found if path][:limit]


def find_namespace(host: Host, socket: str, *, pod: str) -> Optional[Path]:
    """The network namespace of the pod with this name; None if there is none, or a program for it is missing."""
    if not (host.which("crictl") and host.which("nsenter")):
        return None
    listed = host.query(crictl.crictl_argv(socket, "pods", "-q", "--state", "ready", "--name", pod), timeout_s=15)
    ids = listed.stdout.split() if listed.ok else []
    answer = host.query(crictl.crictl_argv(socket, "inspectp", ids[0]), timeout_s=15) if ids else None
    found = [_namespace_of(one) for one in crictl.split_json(answer.stdout)] if answer is not None else []
    return Path(found[0]) if found and found[0] else None


def _namespace_of(pod: Any) -> str:
    """The path of a sandbox's network namespace, from `crictl inspectp`; "" if it uses the host's."""
    found = fit_what_does(pod, _SANDBOX)["info"]["runtimeSpec"]["linux"]["namespaces"]
    return next((str(namespace["path"]) for namespace in found if namespace["type"] == "network"), "")


_SANDBOX = {"info!": {"runtimeSpec!": {"linux!": {"namespaces!": [{"type!": str, "path!": str}]}}}}


# ---- kb's own namespace


class OwnNamespace:
    """A namespace in kb's own network. It is created on first use, and removed at the end of a `with` block.

    It is created as the runtime does for a pod: by the plugin in the CNI file, with an address of this node's podCIDR."""

    def __init__(self, host: Host, paths: Paths, *, socket: str) -> None:
        self._host, self._paths, self._socket = host, paths, socket
        self._is_made = False

    def __enter__(self) -> OwnNamespace:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_made:
            remove_namespace(self._host, self._paths, socket=self._socket)

    def path(self) -> Optional[Path]:
        """The path of the namespace; None if this machine lacks the programs for it. Raises HostError (pod-namespace)."""
        place = NAMESPACES / NAME
        if self._is_made:
            return place
        if not (self._host.which("nsenter") and self._host.which("ip")):
            return None
        remove_namespace(self._host, self._paths, socket=self._socket)  # left over from a killed run
        self._is_made = True
        _check(self._host, self._host.run(["ip", "netns", "add", NAME]))
        done = _run_plugin(self._host, self._paths, socket=self._socket, command="ADD")
        if not done.ok:
            remove_namespace(self._host, self._paths, socket=self._socket)
            self._is_made = False
            _check(self._host, done)
        return place


def remove_namespace(host: Host, paths: Paths, *, socket: str) -> None:
    """Release the namespace's address and remove it, if it exists."""
    if host.exists(NAMESPACES / NAME):
        if host.exists(paths.cni_conf / CNI_FILE):
            _run_plugin(host, paths, socket=socket, command="DEL")
        host.run(["ip", "netns", "delete", NAME])


_CNI_FILE = {"cniVersion!": str, "name!": str, "plugins!": [{"type!": str}]}


def _run_plugin(host: Host, paths: Paths, *, socket: str, command: str) -> CommandResult:
    """Run the first plugin in kb's CNI file as a runtime does. The second one maps ports, which the probe does not need."""
    path = paths.cni_conf / CNI_FILE
    try:
        network = fit(parse_json(host.read_text(path), "it"), _CNI_FILE, what="it")
        first = network["plugins"][0]
    except (ValueError, IndexError) as error:
        raise HostError(
            f"{path} cannot be read",
            cause=str(error) if isinstance(error, ValueError) else "it names no plugin",
            remedy="write it again: kb init phase pod-network, or on a worker: kb join phase pod-network",
            code="cni-file-damaged",
        ) from error
    plugin = {"cniVersion": network["cniVersion"], "name": network["name"], **first}
    folders = dict.fromkeys((*runtime.probe_runtime(host, socket).cni_bin_dirs, *PLUGIN_DIRS))
    program = next(
        (Path(folder) / plugin["type"] for folder in folders if host.exists(Path(folder) / plugin["type"])), None
    )
    if program is None:
        return CommandResult((plugin["type"],), 127, stderr=f"not in {', '.join(folders)}", missing=True)
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": NAME,
        "CNI_NETNS": str(NAMESPACES / NAME),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": ":".join(folders),
    }
    return host.run([str(program)], env=env, stdin=json.dumps(plugin), timeout_s=30)


def _check(host: Host, done: CommandResult) -> None:
    if done.ok:
        return
    told = as_table(done.stdout)
    raise HostError(
        "no pod can be connected to this node's network",
        cause=f"{done.argv[0]}: {told.get('msg') or done.stderr.strip() or done.stdout.strip()}",
        remedy=f"see what the runtime reports: {services.say_log(host, 'containerd')}; ls /etc/cni/net.d",
        code="pod-namespace",
    )
