"""What a Node object says of a node that is Ready and yet gets no pods, or loses those that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble

_PRESSURES = {
    "MemoryPressure": "see what takes it: kubectl top pods -A, or on that machine: ps aux --sort=-rss | head",
    "DiskPressure": "make space on that machine (df -h, crictl rmi --prune), or see whether its kubelet asks for more than usual (evictionHard in its configuration)",
    "PIDPressure": "see what runs so many, on that machine: ps -eLo comm= | sort | uniq -c | sort -n | tail",
}
_UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_SHAPE = {
    "metadata!": {"name!": str, "labels!": {str: str}},
    "spec!": {"unschedulable!": bool, "taints!": [{"key!": str}]},
    "status!": {"conditions!": [{"type!": str, "status!": str, "reason!": str, "message!": str}]},
}


def find_troubles(node: Mapping[str, Any]) -> list[Trouble]:
    """What keeps pods away from a node, or evicts them. Not whether it is Ready: of one that is not, these are of before."""
    found = fit_what_does(node, _SHAPE)
    name = found["metadata"]["name"]
    conditions = {one["type"]: one for one in found["status"]["conditions"] if one["status"] == "True"}
    troubles = [
        Trouble(f"node {name} has {kind}, so its kubelet evicts pods and starts no new ones", conditions[kind]["message"], remedy)
        for kind, remedy in _PRESSURES.items()
        if kind in conditions
    ]  # fmt: skip
    network = conditions.get("NetworkUnavailable")
    if network:
        what = f"node {name} is marked as without a network, so no pod is scheduled on it"
        remedy = "see the log of what sets that up, the pod network or the cloud's controller-manager: kubectl -n kube-system get pods -o wide"
        troubles.append(Trouble(what, f"{network['reason']}: {network['message']}", remedy))
    if found["metadata"]["labels"] and _HOST_NAME not in found["metadata"]["labels"]:
        what = f"node {name} has lost the label {_HOST_NAME}, by which pods ask for a machine, and volumes for theirs"
        troubles.append(Trouble(what, "somebody removed it", f"kubectl label node {name} {_HOST_NAME}={name}"))
    return [*troubles, *_judge_taints(name, {taint["key"] for taint in found["spec"]["taints"]})]


_HOST_NAME = "kubernetes.io/hostname"


def _judge_taints(name: str, keys: set[str]) -> list[Trouble]:
    """Taints that nobody removes by himself. Those that follow from a condition go with it. Source: well-known taints; KEP-2268"""
    troubles = []
    if _UNINITIALIZED in keys:
        remedy = "install the cloud's controller-manager; without a cloud, remove --cloud-provider=external from the kubelet's flags, and: "
        what = f"node {name} waits for a cloud's controller-manager, so no pod is scheduled on it"
        cause = f"it has the taint {_UNINITIALIZED}"
        troubles.append(Trouble(what, cause, f"{remedy}kubectl taint nodes {name} {_UNINITIALIZED}-"))
    if _OUT_OF_SERVICE in keys:
        what = f"node {name} is called out of service although it is here, so its pods are deleted by force"
        cause = f"it has the taint {_OUT_OF_SERVICE}"
        troubles.append(Trouble(what, cause, f"kubectl taint nodes {name} {_OUT_OF_SERVICE}-"))
    return troubles


def find_cordon(node: Mapping[str, Any]) -> Optional[Trouble]:
    found = fit_what_does(node, _SHAPE)
    if not found["spec"]["unschedulable"]:
        return None
    name = found["metadata"]["name"]
    return Trouble(f"node {name} is cordoned", "no new pod is scheduled on it", f"kb node uncordon {name}")
