"""kubeup/network/route_plan.py: which routes, links and entries there should be, and how to get there."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from kubeup.network import route_plan
from kubeup.network.route_plan import Interface, Network, Peer, Route, Vxlan
from tests.unit.network.routes_case import ETH0, FAR, FAR4, FAR_NETWORK, LINK, ME, ME4, NEAR, NEAR4


def plan(nodes: list[Peer], existing: Optional[Network] = None, *, me: Peer = ME4, backend: str = "auto") -> list[str]:
    commands = route_plan.plan_changes(
        route_plan.plan_network([me, *nodes], me, interfaces=[ETH0], backend=backend), existing or Network()
    )
    return [" ".join(command) for command in commands]


# ---- what should be


def test_a_node_on_the_same_network_gets_a_route_through_its_address() -> None:
    assert plan([NEAR4]) == ["ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199"]


def test_dual_stack_routes_each_family_through_its_own_address() -> None:
    assert plan([NEAR], me=ME) == [
        "ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199",
        "ip -6 route replace fd00:244:0:2::/64 via fd00::12 dev eth0 proto 199",
    ]


def test_a_node_behind_a_router_is_reached_by_vxlan_link_first_and_route_last() -> None:
    assert plan([FAR4]) == [
        "ip link add cbr-vxlan address 0a:6b:0a:00:00:0b mtu 1450 type vxlan id 4097 dstport 4789 local 10.0.0.11 "
        "nolearning",
        "ip link set cbr-vxlan up",
        "ip address replace 10.244.1.0/32 dev cbr-vxlan",
        "bridge fdb replace 0a:6b:0a:00:09:0d dev cbr-vxlan dst 10.0.9.13",
        "ip neighbour replace 10.244.3.0 lladdr 0a:6b:0a:00:09:0d dev cbr-vxlan nud permanent",
        "ip -4 route replace 10.244.3.0/24 via 10.244.3.0 dev cbr-vxlan onlink proto 199",
    ]


def test_both_families_go_through_one_tunnel() -> None:
    wanted = route_plan.plan_network([ME, FAR], ME, interfaces=[ETH0])
    assert wanted.forwards == {("0a:6b:0a:00:09:0d", "10.0.9.13")}
    assert wanted.neighbours == {
        ("10.244.3.0", "0a:6b:0a:00:09:0d"),
        ("fd00:244:0:3::", "0a:6b:0a:00:09:0d"),
    }
    assert wanted.vxlan is not None
    assert wanted.vxlan.addresses == {"10.244.1.0/32", "fd00:244:0:1::/128"}


def test_near_and_far_nodes_mix() -> None:
    wanted = route_plan.plan_network([ME4, NEAR4, FAR4], ME4, interfaces=[ETH0])
    assert {(route.pod_cidr, route.device) for route in wanted.routes} == {
        ("10.244.2.0/24", "eth0"),
        ("10.244.3.0/24", "cbr-vxlan"),
    }


def test_backend_vxlan_tunnels_to_neighbours_too() -> None:
    wanted = route_plan.plan_network([ME4, NEAR4], ME4, interfaces=[ETH0], backend="vxlan")
    assert wanted.routes == {Route("10.244.2.0/24", "10.244.2.0", "cbr-vxlan")}


def test_backend_route_names_the_nodes_that_it_cannot_reach() -> None:
    wanted = route_plan.plan_network([ME4, NEAR4, FAR4], ME4, interfaces=[ETH0], backend="route")
    assert {route.pod_cidr for route in wanted.routes} == {"10.244.2.0/24"}
    assert wanted.problems == ("node n3 (10.0.9.13) is on no network that this node is connected to",)
    assert wanted.vxlan is None


def test_a_node_without_an_address_or_range_is_left_out() -> None:
    wanted = route_plan.plan_network(
        [ME4, Peer("n4", (), ("10.244.4.0/24",)), Peer("n5", ("10.0.0.15",), ())], ME4, interfaces=[ETH0]
    )
    assert wanted.routes == frozenset()
    assert wanted.problems == ("node n4 (no address) has no InternalIP",)


def test_a_family_that_this_node_lacks_is_left_out() -> None:
    assert plan([NEAR], me=ME4) == ["ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199"]


@pytest.mark.parametrize("cidr", ["10.244.1.0/24", "10.244.0.0/16", "10.244.1.128/25"])
def test_a_range_that_overlaps_the_nodes_own_never_becomes_a_route(cidr: str) -> None:
    wanted = route_plan.plan_network([ME4, Peer("n2", ("10.0.0.12",), (cidr,))], ME4, interfaces=[ETH0])
    assert wanted.routes == frozenset()
    assert wanted.problems == (f"node n2 has the podCIDR {cidr}, which overlaps this node's own",)


def test_ipv6_nodes_leave_more_room_for_the_tunnel() -> None:
    me, far = Peer("n1", ("fd00::11",), ("fd00:244:0:1::/64",)), Peer("n3", ("fd00:9::13",), ("fd00:244:0:3::/64",))
    wanted = route_plan.plan_network([me, far], me, interfaces=[ETH0])
    assert wanted.vxlan == Vxlan("fd00::11", route_plan.vtep_mac("fd00::11"), 1430, frozenset({"fd00:244:0:1::/128"}))


def test_the_narrowest_connected_network_counts() -> None:
    wide, narrow = Interface("wide", 1500, ("10.0.0.1/8",)), Interface("narrow", 1500, ("10.0.0.11/24",))
    assert route_plan.find_interface("10.0.0.12", [wide, narrow], own=()) == narrow
    assert route_plan.find_interface("10.9.0.12", [wide, narrow], own=()) == wide
    assert route_plan.find_interface("192.168.0.1", [wide, narrow], own=()) is None


def test_among_equal_networks_the_one_with_the_nodes_address_counts() -> None:
    one, other = Interface("eth0", 1500, ("10.0.0.10/24",)), Interface("eth1", 1500, ("10.0.0.11/24",))
    assert route_plan.find_interface("10.0.0.12", [one, other], own=("10.0.0.11",)) == other


def test_a_tunnel_end_has_the_mac_of_its_address() -> None:
    assert route_plan.vtep_mac("10.0.0.11") == "0a:6b:0a:00:00:0b"
    six = route_plan.vtep_mac("fd00::11")
    assert six == route_plan.vtep_mac("fd00:0::11")
    assert int(six[:2], 16) & 0b11 == 0b10  # locally administered, not a group


# ---- from what is to what should be


def test_nothing_is_run_where_all_is_right() -> None:
    assert plan([FAR4], FAR_NETWORK) == []
    assert plan([NEAR4], Network(frozenset({Route("10.244.2.0/24", "10.0.0.12", "eth0")}))) == []


def test_a_node_that_is_gone_takes_its_route_with_it() -> None:
    existing = Network(frozenset({Route("10.244.2.0/24", "10.0.0.12", "eth0")}))
    assert plan([], existing) == ["ip -4 route delete 10.244.2.0/24 proto 199"]


def test_the_last_far_node_takes_the_link_with_it() -> None:
    assert plan([NEAR4], FAR_NETWORK) == [
        "ip link delete cbr-vxlan",
        "ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199",
    ]


def test_one_of_two_far_nodes_takes_its_own_entries_with_it() -> None:
    other = Peer("n4", ("10.0.9.14",), ("10.244.4.0/24",))
    mac = route_plan.vtep_mac("10.0.9.14")
    both = route_plan.plan_network([ME4, FAR4, other], ME4, interfaces=[ETH0])
    assert plan([FAR4], both) == [
        "ip -4 route delete 10.244.4.0/24 proto 199",
        "ip neighbour delete 10.244.4.0 dev cbr-vxlan",
        f"bridge fdb delete {mac} dev cbr-vxlan dst 10.0.9.14",
    ]


def test_a_far_node_with_a_new_address_is_replaced_in_place() -> None:
    moved = Peer("n3", ("10.0.9.33",), FAR4.pod_cidrs)
    mac = route_plan.vtep_mac("10.0.9.33")
    assert plan([moved], FAR_NETWORK) == [
        f"bridge fdb replace {mac} dev cbr-vxlan dst 10.0.9.33",
        f"ip neighbour replace 10.244.3.0 lladdr {mac} dev cbr-vxlan nud permanent",
        "bridge fdb delete 0a:6b:0a:00:09:0d dev cbr-vxlan dst 10.0.9.13",
    ]


def test_a_node_that_moved_to_another_network_loses_the_old_route_first() -> None:
    existing = Network(frozenset({Route("10.244.3.0/24", "10.0.0.13", "eth0")}))
    found = plan([FAR4], existing)
    assert found[-2:] == [
        "ip -4 route delete 10.244.3.0/24 proto 199",
        "ip -4 route replace 10.244.3.0/24 via 10.244.3.0 dev cbr-vxlan onlink proto 199",
    ]


@pytest.mark.parametrize(
    "link",
    [
        Vxlan("10.0.0.99", LINK.mac, 1450, LINK.addresses),
        Vxlan("10.0.0.11", "0a:6b:00:00:00:00", 1450, LINK.addresses),
        Vxlan("10.0.0.11", LINK.mac, 1400, LINK.addresses),
    ],
)
def test_a_link_that_differs_is_made_anew_with_all_that_hangs_on_it(link: Vxlan) -> None:
    old = Network(FAR_NETWORK.routes, link, FAR_NETWORK.neighbours, FAR_NETWORK.forwards)
    assert plan([FAR4], old) == ["ip link delete cbr-vxlan", *plan([FAR4])]


def test_a_new_pod_range_of_this_node_changes_the_links_address() -> None:
    me = Peer("n1", ("10.0.0.11",), ("10.244.8.0/24",))
    assert plan([FAR4], FAR_NETWORK, me=me) == [
        "ip address replace 10.244.8.0/32 dev cbr-vxlan",
        "ip address delete 10.244.1.0/32 dev cbr-vxlan",
    ]


# ---- parsing


def test_peers_come_from_internal_addresses_and_pod_ranges() -> None:
    node = {
        "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "10.0.0.11"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "fd00::11"},
            ]
        },
    }
    bare: dict[str, Any] = {"metadata": {"name": "n0"}, "spec": {"podCIDR": "10.244.0.0/24"}}
    assert route_plan.parse_peers([node, bare]) == [Peer("n0", (), ("10.244.0.0/24",)), ME]


def test_interfaces_leave_out_the_pod_networks_own_and_link_local_addresses() -> None:
    links = [
        {"ifname": "lo", "mtu": 65536, "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
        {
            "ifname": "eth0",
            "mtu": 9000,
            "addr_info": [
                {"family": "inet", "local": "10.0.0.11", "prefixlen": 24, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        },
        {"ifname": "cbr0", "mtu": 1450, "addr_info": [{"local": "10.244.1.1", "prefixlen": 24, "scope": "global"}]},
        {"ifname": "veth1", "mtu": 1450, "addr_info": []},
        {},
    ]
    assert route_plan.parse_interfaces(json.dumps(links)) == [Interface("eth0", 9000, ("10.0.0.11/24",))]


@pytest.mark.parametrize("text", ["", "  \n", "[]", "[{}]", "Device does not exist"])
def test_nothing_is_read_from_nothing(text: str) -> None:
    assert route_plan.parse_routes(text, 4) == frozenset()
    assert route_plan.parse_interfaces(text) == []
    assert route_plan.parse_vxlan(text, []) is None
    assert route_plan.parse_neighbours(text) == frozenset()
    assert route_plan.parse_forwards(text) == frozenset()


def test_routes_of_one_address_get_their_length() -> None:
    text = json.dumps([{"dst": "10.244.2.0", "gateway": "10.0.0.12", "dev": "eth0", "flags": []}])
    assert route_plan.parse_routes(text, 4) == {Route("10.244.2.0/32", "10.0.0.12", "eth0")}


def test_a_link_of_the_same_name_that_is_not_kbs_vxlan_is_not_taken_for_it() -> None:
    link = {"ifname": "cbr-vxlan", "mtu": 1450, "address": LINK.mac, "linkinfo": {"info_kind": "dummy"}}
    assert route_plan.parse_vxlan(json.dumps([link]), []) is None
    link["linkinfo"] = {"info_kind": "vxlan", "info_data": {"id": 4097, "port": 4789, "local": "10.0.0.11"}}
    assert route_plan.parse_vxlan(json.dumps([link]), ["10.244.1.0/32"]) == LINK


def test_both_ends_take_the_same_kind_of_way() -> None:
    """A node of a dual-stack cluster that registered with its IPv4 address alone: nobody could answer it directly in IPv6."""
    single = Peer("n2", ("10.0.0.12",), NEAR.pod_cidrs)
    for me, other in ((ME, single), (single, ME)):
        ways = {
            route.pod_cidr: route.device for route in route_plan.plan_network([me, other], me, interfaces=[ETH0]).routes
        }
        assert {cidr: device == route_plan.VXLAN for cidr, device in ways.items()} == {
            cidr: ":" in cidr for cidr in other.pod_cidrs
        }


def show_routes(*destinations: str, protocol: str = "kernel", **fields: str) -> str:
    return json.dumps([{"dst": text, "dev": "eth0", "protocol": protocol, **fields} for text in destinations])


def test_find_unrouted() -> None:
    wanted = ["10.96.0.0/12"]
    assert route_plan.find_unrouted(show_routes("10.0.0.0/24"), wanted) == wanted
    assert route_plan.find_unrouted(show_routes("10.0.0.0/24", "default"), wanted) == []
    assert route_plan.find_unrouted(show_routes("10.0.0.0/8"), wanted) == []
    assert route_plan.find_unrouted(show_routes("default", type="unreachable"), wanted) == wanted
    assert route_plan.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), wanted) == wanted
    assert route_plan.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), wanted, counts_own=True) == []
    assert route_plan.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), ["10.96.0.10"], counts_own=True) == []
    assert route_plan.find_unrouted("", wanted) == wanted
    assert route_plan.find_unrouted(show_routes("fd00::/8"), ["fd00:96::/112"]) == []
