"""What the kubelet of this node says about its static pods, and whether a pod has really ended.

The kubelet is asked directly, since the API server may be one of the pods that are being replaced. It authorizes a request by
asking the API server, and remembers the answer for five minutes: so ask it once before the API server stops.
Source: pkg/kubelet/server/server.go (/pods), pkg/kubelet/server/auth.go, pkg/kubelet/cm/pod_container_manager_linux.go
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from kubeup.addresses import join_host_port
from kubeup.errors import HostError
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.paths import Paths
from kubeup.secret import Secret
from kubeup.shapes import fit
from kubeup.trust import Anchors
from kubeup.yaml_files import load_mapping

PORT = 10250
_PKI = Path("/var/lib/kubelet/pki")
_PODS = {
    "items": [
        {"metadata!": {"name!": str, "uid!": str, "annotations": {str: str}}, "spec!": {"containers": [{"name": str}]}}
    ]
}
_SOURCE = "kubernetes.io/config.source"
_WORKING = re.compile(r"^kubelet_working_pods\{(.*)\} (\S+)$", re.MULTILINE)
_MAX_BYTES = 64 << 20
_TIMED_OUT = 124
_CGROUPS = Path("/sys/fs/cgroup")


def read_static_pods(host: Host, paths: Paths, *, node_name: str) -> Optional[Mapping[str, str]]:
    """Name (without the node's) -> UID of the static pods that the kubelet wants to run; None if it cannot be asked."""
    body = _ask(host, paths, node_name=node_name, path="/pods")
    try:
        shown = parse_json(body, "the answer", max_bytes=_MAX_BYTES) if body is not None else None
        pods = fit(shown, _PODS, what="the answer").get("items", ()) if shown is not None else None
    except ValueError:
        pods = None
    if pods is None:
        return None
    suffix = f"-{node_name}"
    return {
        pod["metadata"]["name"][: -len(suffix)]: pod["metadata"]["uid"]
        for pod in pods
        if pod["metadata"].get("annotations", {}).get(_SOURCE) == "file" and pod["metadata"]["name"].endswith(suffix)
    }


CUT_OFF = 500
"""A kubelet that has nobody to ask who may ask it, neither now nor in the last five minutes, answers this: no API server has answered it, as
after a power cut in the middle of a swap (InstallAuthFilter of pkg/kubelet/server/server.go)."""


def probe(host: Host, paths: Paths, *, node_name: str) -> int:
    """The HTTP status with which the kubelet answers who asks for its pods; 0 if it does not answer."""
    answer = _send(host, paths, node_name=node_name, path="/pods")
    return answer.status if answer is not None else 0


def count_ending(host: Host, paths: Paths, *, node_name: str) -> Optional[int]:
    """How many static pods the kubelet is still stopping or cleaning up after; None if that cannot be told.

    A static pod that comes while its predecessor of the same name is still cleaned up is looked at again only after 10 to 15 s
    (pod_workers.go, allowPodStart). The metric is counted every 2 s (kubelet_pods.go, HandlePodCleanups).
    """
    body = _ask(host, paths, node_name=node_name, path="/metrics")
    rows = _WORKING.findall(body.decode(errors="replace")) if body is not None else []
    if not rows:
        return None
    ending = [count for labels, count in rows if 'static="true"' in labels and 'lifecycle="terminat' in labels]
    return int(sum(map(float, ending)))


def _ask(host: Host, paths: Paths, *, node_name: str, path: str) -> Optional[bytes]:
    """What this node's kubelet answers the API server's own client; None if it does not."""
    answer = _send(host, paths, node_name=node_name, path=path)
    return answer.body if answer is not None and answer.status == 200 else None


def _send(host: Host, paths: Paths, *, node_name: str, path: str) -> Optional[HttpResponse]:
    client = paths.pki / "apiserver-kubelet-client.crt", paths.pki / "apiserver-kubelet-client.key"
    try:
        tls = Tls(
            Anchors.given(_read_authorities(host, paths)),
            cert_pem=host.read_text(client[0]),
            key_pem=Secret(host.read_text(client[1])),
            server_name=node_name,
        )
        url = f"https://{_find_address(host, paths)}{path}"
        return host.http_get(url, tls=tls, timeout_s=5, max_bytes=_MAX_BYTES)
    except (Unreachable, HostError, ValueError, TypeError):
        return None


def _find_address(host: Host, paths: Paths) -> str:
    """host:port where this node's kubelet serves, by its configuration. Raises HostError, ValueError."""
    path = paths.kubelet_config
    found = load_mapping(host.read_text(path), str(path)) if host.exists(path) else {}
    address, port = str(found.get("address") or ""), found.get("port") or PORT
    is_any = address in ("", "0.0.0.0", "::")
    return join_host_port("127.0.0.1" if is_any else address, int(port))


def _read_authorities(host: Host, paths: Paths) -> str:
    """Who may have signed the kubelet's serving certificate: itself, or the cluster's CA (serverTLSBootstrap)."""
    files = (_PKI / "kubelet.crt", paths.pki / "ca.crt")
    return "\n".join(host.read_text(path) for path in files if host.exists(path))


def has_cgroup(host: Host, uid: str) -> bool:
    """Whether the pod's cgroup still exists: the kubelet removes it when its containers have ended. The folder is called pod<UID> (cgroupfs), or kubepods-burstable-pod<UID>.slice with underscores (systemd)."""
    patterns = [f"pod{uid}", f"*-pod{uid.replace('-', '_')}.slice"]
    argv = [
        "find",
        str(_CGROUPS),
        "-maxdepth",
        "6",
        "-type",
        "d",
        "(",
        "-name",
        patterns[0],
        "-o",
        "-name",
        patterns[1],
        ")",
    ]
    found = host.query([*argv, "-print", "-quit"], timeout_s=15)
    return found.code == _TIMED_OUT or bool(found.stdout.strip())
