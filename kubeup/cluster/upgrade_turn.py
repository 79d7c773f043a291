"""The mark of a node whose kubelet is being replaced: an annotation on its own Node, which is all that a kubelet may change in a cluster
(NodeRestriction). Whoever looks at the cluster sees which node is at it, and which one was cut off.

It keeps nobody from anything: workers may not see one another's Nodes. Control planes take turns by a Lease instead (swap/turn.py).
"""

from __future__ import annotations

from typing import Optional

from kubeup import moments
from kubeup.cluster.api import Api, Object, path_of

ANNOTATION = "kb.io/upgrade"


def take(api: Api, node: str, *, version: str) -> None:
    """Say that the node goes to this version now. Raises ApiRefused, Unreachable."""
    _annotate(api, node, f"{version} since {moments.show(api.host.now())}")


def give_back(api: Api, node: str) -> None:
    """Say that it is over, however it ended. Raises ApiRefused, Unreachable."""
    found = api.get(path_of("Node", node))
    if found is not None and read(found):
        _annotate(api, node, None)


def _annotate(api: Api, node: str, text: Optional[str]) -> None:  # noqa: PLR0917
    api.patch(path_of("Node", node), {"metadata": {"annotations": {ANNOTATION: text}}})


def read(node: Object) -> str:
    """`v1.36.3 since 2026-11-30T08:00:00Z`; "" if the node's kubelet is not being replaced."""
    return str((node["metadata"].get("annotations") or {}).get(ANNOTATION) or "")


def say_removal(node: str) -> str:
    """The command line that removes it by hand."""
    return f"kubectl annotate node {node} {ANNOTATION}-"
