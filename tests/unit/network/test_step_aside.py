"""kubeup/network/step_aside.py: kb's bridge goes out of the way of another network, and not before."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from kubeup.network import step_aside
from kubeup.network.step_aside import Bridge
from tests.fake_host import FakeHost

LEASES = "/run/kb/pod-addresses/kb-bridge"
IDS = ("7383e4709f", "0e67b984ab")


def link(name: str, *addresses: str, up: bool = True) -> dict[str, Any]:
    entries = [text.partition("/") for text in addresses]
    found = [{"local": local, "prefixlen": int(size), "scope": "global"} for local, _, size in entries]
    return {"ifname": name, "flags": ["BROADCAST", *(["UP"] if up else [])], "addr_info": found}


ETH0 = link("eth0", "10.0.0.11/8")
CBR0 = link("cbr0", "10.244.1.1/24")
CNI0 = link("cni0", "10.244.1.1/24")


def make_host(*links: dict[str, Any], ports: int = 2, routes: Optional[list[dict[str, str]]] = None) -> FakeHost:
    return FakeHost(
        answers={
            "ip -json address show": json.dumps(links),
            "ip -json link show master cbr0": json.dumps([{"ifname": f"veth{number}"} for number in range(ports)]),
            "ip -json -4 route show": json.dumps(routes or []),
        },
        files={
            f"{LEASES}/10.244.1.2": f"{IDS[0]}\r\neth0".encode(),
            f"{LEASES}/10.244.1.3": f"{IDS[1]}\r\neth0".encode(),
            f"{LEASES}/last_reserved_ip.0": b"10.244.1.3",
            f"{LEASES}/lock": b"",
        },
        dirs={LEASES, "/run/kb/pod-addresses"},
        accepts={f"ip link {words}" for words in ("set cbr0 down", "set cbr0 up", "delete cbr0")},
    )


def retire(host: FakeHost) -> str:
    bridge = step_aside.read_bridge(host)
    assert bridge is not None
    return step_aside.retire_bridge(host, bridge)


def test_the_bridge_is_read() -> None:
    found = step_aside.read_bridge(make_host(ETH0, CBR0))
    assert found == Bridge(True, ("veth0", "veth1"), ("10.244.1.0/24",))
    assert step_aside.read_bridge(make_host(ETH0)) is None
    assert step_aside.read_bridge(FakeHost()) is None


def test_the_port_of_a_pod_that_has_ended_does_not_count() -> None:
    host = make_host(ETH0, CBR0)
    ports = [{"ifname": "veth0", "link_netnsid": 2}, {"ifname": "veth1", "link_netnsid": 3}, {"ifname": "tap0"}]
    host.answers["ip -json link show master cbr0"] = json.dumps(ports)

    def read_ports(*namespaces: dict[str, Any]) -> tuple[str, ...]:
        host.answers["ip -json netns list"] = json.dumps(namespaces)
        found = step_aside.read_bridge(host)
        assert found is not None
        return found.ports

    assert read_ports({"name": "cni-1", "id": 3}, {"name": "cni-2", "id": 7}) == ("veth1", "tap0")
    # namespaces without names of the runtime's: nothing is known
    assert read_ports() == read_ports({"name": "of-an-admin"}) == ("veth0", "veth1", "tap0")


def test_a_bridge_that_holds_the_other_network_s_addresses_is_taken_down_once() -> None:
    host = make_host(ETH0, CBR0, link("flannel.1", "10.244.1.0/32"), CNI0)
    assert retire(host) == (
        "2 pods still on cbr0, cut off, since both networks have the same addresses, until they are restarted"
        " (kb doctor names them)"
    )
    assert host.changes == ["run ip link set cbr0 down"]
    host = make_host(ETH0, link("cbr0", "10.244.1.1/24", up=False), CNI0)
    assert "since both networks have the same addresses" in retire(host)
    assert host.changes == []


@pytest.mark.parametrize(
    ("links", "routes"),
    [
        # flannel before its first pod
        ([link("flannel.1", "10.244.1.0/32")], [{"dst": "10.244.0.0/24", "dev": "flannel.1"}]),
        # Calico: a route a pod, and one a block
        ([link("vxlan.calico", "10.244.9.0/32")], [{"dst": "10.244.1.64/26", "dev": "vxlan.calico"}]),
        ([], [{"dst": "10.244.1.0/24", "dev": "cbr0"}, {"dst": "default", "dev": "eth0"}]),
    ],
)
def test_a_bridge_in_nobody_s_way_stays_up_for_its_pods(
    links: list[dict[str, Any]], routes: list[dict[str, str]]
) -> None:
    host = make_host(ETH0, CBR0, *links, routes=routes)
    assert retire(host).startswith("2 pods still on cbr0, cut off from other nodes, until they are restarted")
    assert host.changes == []


@pytest.mark.parametrize(
    ("links", "routes"),
    [
        # one flat network for all nodes
        ([link("cni0", "10.244.1.1/16")], []),
        # Cilium with the nodes' podCIDRs
        ([link("cilium_host", "10.244.1.88/32")], [{"dst": "10.244.1.0/24", "dev": "cilium_host"}]),
    ],
)
def test_every_other_way_to_the_same_addresses_counts(
    links: list[dict[str, Any]], routes: list[dict[str, str]]
) -> None:
    host = make_host(ETH0, CBR0, *links, routes=routes)
    retire(host)
    assert host.changes == ["run ip link set cbr0 down"]


def test_both_ip_versions_are_looked_at() -> None:
    both = link("cbr0", "10.244.1.1/24", "fd00:10:244:1::1/64")
    host = make_host(ETH0, both)
    host.answers["ip -json -6 route show"] = json.dumps([{"dst": "fd00:10:244:1::/64", "dev": "cilium_host"}])
    retire(host)
    assert host.changes == ["run ip link set cbr0 down"]


def test_the_last_pod_takes_bridge_and_addresses_along() -> None:
    host = make_host(ETH0, CBR0, CNI0, ports=0)
    assert retire(host) == ""
    assert host.changes[0] == "run ip link delete cbr0"
    assert not [path for path in host.files if path.startswith("/run/kb")]
    assert host.changes[-1] == "remove /run/kb/pod-addresses"


def test_one_pod_is_spoken_of_as_one() -> None:
    assert retire(make_host(ETH0, CBR0, ports=1)).startswith("1 pod still on cbr0, cut off")


def test_the_sandboxes_of_the_pods_are_read() -> None:
    assert step_aside.read_sandboxes(make_host(ETH0, CBR0)) == set(IDS)
    assert step_aside.read_sandboxes(FakeHost()) == set()
