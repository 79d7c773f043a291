"""A pod network for the lab's nodes, as an operator without a network add-on makes one: a bridge on each node, routes between them.

Only for clusters whose pod network is not what the test is about; kb brings its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..lab.config import POD_SUBNET
from ..lab.node import wait_until

if TYPE_CHECKING:
    from ..lab.node import Node

CONFLIST = "/etc/cni/net.d/10-bridge.conflist"


def render_conflist(pod_cidr: str = POD_SUBNET) -> str:
    """The CNI configuration of one node, of Debian's CNI plugins: bridge, host-local and portmap."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_cidr}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "bridge", "plugins": [bridge, portmap]}, indent=2) + "\n"


def connect_nodes(nodes: Sequence[Node]) -> None:
    """Give each node of a cluster the pod network of its podCIDR, and a route to every other's. The first is asked for them."""
    first = nodes[0]
    cidrs = {}
    for node in nodes:
        cidr = wait_until(lambda: first.get(["node", node.name])["spec"].get("podCIDR"),  # noqa: B023
                          what=f"podCIDR of {node.name}", timeout_s=60)  # fmt: skip
        cidrs[node.name] = cidr
    for node in nodes:
        node.write(CONFLIST, render_conflist(cidrs[node.name]))
        for other in nodes:
            if other is not node:
                node.run(f"ip route replace {cidrs[other.name]} via {other.address}")
