"""Converts v1beta3 trees to v1beta4. The only place that knows the differences; to be removed along with v1beta3.

Source: cmd/kubeadm/app/apis/kubeadm/v1beta3/conversion.go
"""

from __future__ import annotations

from typing import Any

from kubeup.config import schema
from kubeup.config.documents import Document
from kubeup.config.problems import Problems

_ARG_FIELDS = {
    "InitConfiguration": ("nodeRegistration.kubeletExtraArgs",),
    "JoinConfiguration": ("nodeRegistration.kubeletExtraArgs",),
    "ClusterConfiguration": (
        "apiServer.extraArgs",
        "controllerManager.extraArgs",
        "scheduler.extraArgs",
        "etcd.local.extraArgs",
    ),
}
_DEFAULT_TIMEOUT_S = 240


def convert_documents(documents: list[Document], problems: Problems) -> dict[str, dict[str, Any]]:
    """Kind -> v1beta4 tree. Adds a warning for every v1beta3 document."""
    trees: dict[str, dict[str, Any]] = {}
    wait_s = 0
    for document in documents:
        tree: dict[str, Any] = dict(document.tree)
        trees[document.kind] = tree
        if document.api_version != schema.V1BETA3:
            continue
        problems.warnings.append(
            f"{document.file}:{document.line}: {schema.V1BETA3} is deprecated and gone from Kubernetes 1.37; "
            f"convert the file: kb config migrate --old-config {document.file}"
        )
        for path in _ARG_FIELDS[document.kind]:
            _convert_args(tree, document.kind, path=path, problems=problems)
        if document.kind == "ClusterConfiguration" and "apiServer" in tree:
            wait_s = tree["apiServer"].pop("timeoutForControlPlane", 0)
        if document.kind == "JoinConfiguration" and "timeout" in tree.get("discovery", {}):
            tree["timeouts"] = {"discovery": tree["discovery"].pop("timeout")}
            problems.move_origin(document.kind, "discovery.timeout", new="timeouts.discovery")
    if wait_s not in (0, _DEFAULT_TIMEOUT_S):
        init = trees.setdefault("InitConfiguration", {})
        init["timeouts"] = {**init.get("timeouts", {}), "controlPlaneComponentHealthCheck": wait_s}
    return trees


def _convert_args(tree: dict[str, Any], kind: str, *, path: str, problems: Problems) -> None:
    """Convert a mapping of name: value to v1beta4's ordered list, sorted by name."""
    *parents, last = path.split(".")
    place: Any = tree
    for name in parents:
        place = place.get(name)
        if not place:
            return
    if last in place:
        names = sorted(place[last])
        for index, name in enumerate(names):
            problems.move_origin(kind, f"{path}.{name}", new=f"{path}[{index}]")
        place[last] = [{"name": name, "value": place[last][name]} for name in names]
