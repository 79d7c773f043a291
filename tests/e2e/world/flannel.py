"""flannel, the real one, as an operator applies it: an image of its two programs, and the objects of its DaemonSet.

Needs $KB_E2E_BIN/flannel with flanneld and flannel (the CNI plugin), both static. Must not: know kb.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from ..lab.config import POD_SUBNET
from ..lab.image import ensure_base
from ..lab.images import Image, copy_layout_as_tar, plan_kube_proxy, plan_web, write_layout
from .web import apply

if TYPE_CHECKING:
    from ..lab.node import Node

NAME = "kube-flannel"
IMAGE = "docker.io/flannel/flannel:e2e"
PROGRAMS = ("flanneld", "flannel")
CONFLIST = "/etc/cni/net.d/10-flannel.conflist"
LABELS = {"app": "flannel"}


def folder() -> Path:
    """Where flannel's programs should be."""
    return Path(os.environ.get("KB_E2E_BIN", "")) / "flannel"


def explain_why_not() -> Optional[str]:
    """One line that says which program is missing, or None when all are there."""
    missing = [name for name in PROGRAMS if not (folder() / name).is_file()]
    return f"it needs flannel itself: {' and '.join(missing)} in $KB_E2E_BIN/flannel" if missing else None


# ------------------------------------------------------------------------------------------------ the image


def plan_image(node: Node) -> Image:
    """Both programs, and what they call: kube-proxy's iptables, and a shell's cp to put files on the node."""
    parts = (plan_kube_proxy(node.release), plan_web())
    files = {path: source for part in parts for path, source in part.files.items()}
    links = {path: target for part in parts for path, target in part.links.items()}
    files = {path: source for path, source in files.items() if not path.endswith("bin/kube-proxy")}
    files["opt/bin/flanneld"] = folder() / "flanneld"
    files["flannel"] = folder() / "flannel"
    links["bin/cp"] = "busybox"
    return Image((IMAGE,), files, links)


def load_image(*nodes: Node) -> None:
    """Put the image into the store of each node, as if it had been pulled."""
    ensure_base()
    draft = nodes[0].folder / "flannel-image"
    draft.mkdir()
    write_layout(draft, [plan_image(nodes[0])])
    for node in nodes:
        archive = copy_layout_as_tar(draft, node.disk_path("/var/tmp/flannel.tar"))
        node.exec("ctr --namespace k8s.io images import /var/tmp/flannel.tar", timeout=300)
        archive.unlink()


# ------------------------------------------------------------------------------------------------ the objects


def render_objects(pod_subnet: str = POD_SUBNET) -> list[dict[str, Any]]:
    """What `kubectl apply` is given."""
    rbac = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    account = {"kind": "ServiceAccount", "name": "flannel", "namespace": NAME}
    return [
        {"apiVersion": "v1", "kind": "Namespace",
         "metadata": {"name": NAME, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "flannel", "namespace": NAME}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": "flannel"}, "rules": rules},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "flannel"},
         "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "flannel"}, "subjects": [account]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-flannel-cfg", "namespace": NAME},
         "data": {"cni-conf.json": render_conflist(), "net-conf.json": render_network(pod_subnet)}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-flannel-ds", "namespace": NAME},
         "spec": {"selector": {"matchLabels": LABELS},
                  "template": {"metadata": {"labels": LABELS}, "spec": render_pod_spec()}}},
    ]  # fmt: skip


def render_conflist() -> str:
    """The CNI configuration: flannel's plugin hands over to bridge (cni0) and host-local."""
    flannel = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [flannel, portmap]}, indent=2)


def render_network(pod_subnet: str) -> str:
    return json.dumps({"Network": pod_subnet, "Backend": {"Type": "vxlan"}}, indent=2)


def render_pod_spec() -> dict[str, Any]:
    folders = {"run": "/run/flannel", "cni-plugin": "/opt/cni/bin", "cni": "/etc/cni/net.d"}
    volumes: list[dict[str, Any]] = [{"name": name, "hostPath": {"path": path}} for name, path in folders.items()]
    volumes.append({"name": "flannel-cfg", "configMap": {"name": "kube-flannel-cfg"}})
    volumes.append({"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}})
    configured = {"name": "flannel-cfg", "mountPath": "/etc/kube-flannel/"}
    field = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    return {
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "flannel",
        "initContainers": [
            _copy("install-cni-plugin", "/flannel", "/opt/cni/bin/flannel", {"name": "cni-plugin", "mountPath": "/opt/cni/bin"}),
            _copy("install-cni", "/etc/kube-flannel/cni-conf.json", CONFLIST, {"name": "cni", "mountPath": "/etc/cni/net.d"}, configured),
        ],
        "containers": [{
            "name": "kube-flannel",
            "image": IMAGE,
            "command": ["/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr"],
            "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in field.items()],
            "securityContext": {"privileged": False, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
            "volumeMounts": [
                {"name": "run", "mountPath": "/run/flannel"},
                configured,
                {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
            ],
        }],
        "volumes": volumes,
    }  # fmt: skip


def _copy(name: str, source: str, target: str, *mounts: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "image": IMAGE, "command": ["cp", "-f", source, target], "volumeMounts": list(mounts)}


def apply_flannel(node: Node) -> None:
    """`kubectl apply` its objects and wait until every node's copy runs."""
    apply(node, *render_objects())
    node.kubectl(f"rollout status -n {NAME} daemonset/kube-flannel-ds --timeout=120s", timeout=150)
