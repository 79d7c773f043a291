"""Nodes near and far, for the tests of routes."""

from __future__ import annotations

from kubeup.network.route_plan import Interface, Network, Peer, Route, Vxlan

ETH0 = Interface("eth0", 1500, ("10.0.0.11/24", "fd00::11/64"))
ME = Peer("n1", ("10.0.0.11", "fd00::11"), ("10.244.1.0/24", "fd00:244:0:1::/64"))
NEAR = Peer("n2", ("10.0.0.12", "fd00::12"), ("10.244.2.0/24", "fd00:244:0:2::/64"))
FAR = Peer("n3", ("10.0.9.13", "fd00:9::13"), ("10.244.3.0/24", "fd00:244:0:3::/64"))
ME4 = Peer("n1", ("10.0.0.11",), ("10.244.1.0/24",))
NEAR4 = Peer("n2", ("10.0.0.12",), ("10.244.2.0/24",))
FAR4 = Peer("n3", ("10.0.9.13",), ("10.244.3.0/24",))
LINK = Vxlan("10.0.0.11", "0a:6b:0a:00:00:0b", 1450, frozenset({"10.244.1.0/32"}))
FAR_NETWORK = Network(
    frozenset({Route("10.244.3.0/24", "10.244.3.0", "cbr-vxlan")}),
    LINK,
    frozenset({("10.244.3.0", "0a:6b:0a:00:09:0d")}),
    frozenset({("0a:6b:0a:00:09:0d", "10.0.9.13")}),
)
