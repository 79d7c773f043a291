"""What the route keeper wants and does, without a network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster.api import Api, Identity
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import AnyTls, HttpResponse, Tls
from kubeup.network import routes
from kubeup.network.routes import Interface, Network, Peer, Route, RouteSettings, Vxlan
from kubeup.paths import Paths
from tests.fake_host import FakeHost

PATHS = Paths()
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


def plan(nodes: list[Peer], existing: Optional[Network] = None, *, me: Peer = ME4, backend: str = "auto") -> list[str]:
    commands = routes.plan_changes(
        routes.plan_network([me, *nodes], me, [ETH0], backend=backend), existing or Network()
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
    wanted = routes.plan_network([ME, FAR], ME, [ETH0])
    assert wanted.forwards == {("0a:6b:0a:00:09:0d", "10.0.9.13")}
    assert wanted.neighbours == {
        ("10.244.3.0", "0a:6b:0a:00:09:0d"),
        ("fd00:244:0:3::", "0a:6b:0a:00:09:0d"),
    }
    assert wanted.vxlan is not None
    assert wanted.vxlan.addresses == {"10.244.1.0/32", "fd00:244:0:1::/128"}


def test_near_and_far_nodes_mix() -> None:
    wanted = routes.plan_network([ME4, NEAR4, FAR4], ME4, [ETH0])
    assert {(route.pod_cidr, route.device) for route in wanted.routes} == {
        ("10.244.2.0/24", "eth0"),
        ("10.244.3.0/24", "cbr-vxlan"),
    }


def test_backend_vxlan_tunnels_to_neighbours_too() -> None:
    wanted = routes.plan_network([ME4, NEAR4], ME4, [ETH0], backend="vxlan")
    assert wanted.routes == {Route("10.244.2.0/24", "10.244.2.0", "cbr-vxlan")}


def test_backend_route_names_the_nodes_that_it_cannot_reach() -> None:
    wanted = routes.plan_network([ME4, NEAR4, FAR4], ME4, [ETH0], backend="route")
    assert {route.pod_cidr for route in wanted.routes} == {"10.244.2.0/24"}
    assert wanted.problems == ("node n3 (10.0.9.13) is on no network that this node is connected to",)
    assert wanted.vxlan is None


def test_a_node_without_an_address_or_range_is_left_out() -> None:
    wanted = routes.plan_network([ME4, Peer("n4", (), ("10.244.4.0/24",)), Peer("n5", ("10.0.0.15",), ())], ME4, [ETH0])
    assert wanted.routes == frozenset()
    assert wanted.problems == ("node n4 (no address) has no InternalIP",)


def test_a_family_that_this_node_lacks_is_left_out() -> None:
    assert plan([NEAR], me=ME4) == ["ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199"]


@pytest.mark.parametrize("cidr", ["10.244.1.0/24", "10.244.0.0/16", "10.244.1.128/25"])
def test_a_range_that_overlaps_the_nodes_own_never_becomes_a_route(cidr: str) -> None:
    wanted = routes.plan_network([ME4, Peer("n2", ("10.0.0.12",), (cidr,))], ME4, [ETH0])
    assert wanted.routes == frozenset()
    assert wanted.problems == (f"node n2 has the podCIDR {cidr}, which overlaps this node's own",)


def test_ipv6_nodes_leave_more_room_for_the_tunnel() -> None:
    me, far = Peer("n1", ("fd00::11",), ("fd00:244:0:1::/64",)), Peer("n3", ("fd00:9::13",), ("fd00:244:0:3::/64",))
    wanted = routes.plan_network([me, far], me, [ETH0])
    assert wanted.vxlan == Vxlan("fd00::11", routes.vtep_mac("fd00::11"), 1430, frozenset({"fd00:244:0:1::/128"}))


def test_the_narrowest_connected_network_counts() -> None:
    wide, narrow = Interface("wide", 1500, ("10.0.0.1/8",)), Interface("narrow", 1500, ("10.0.0.11/24",))
    assert routes.find_interface("10.0.0.12", [wide, narrow], own=()) == narrow
    assert routes.find_interface("10.9.0.12", [wide, narrow], own=()) == wide
    assert routes.find_interface("192.168.0.1", [wide, narrow], own=()) is None


def test_among_equal_networks_the_one_with_the_nodes_address_counts() -> None:
    one, other = Interface("eth0", 1500, ("10.0.0.10/24",)), Interface("eth1", 1500, ("10.0.0.11/24",))
    assert routes.find_interface("10.0.0.12", [one, other], own=("10.0.0.11",)) == other


def test_a_tunnel_end_has_the_mac_of_its_address() -> None:
    assert routes.vtep_mac("10.0.0.11") == "0a:6b:0a:00:00:0b"
    six = routes.vtep_mac("fd00::11")
    assert six == routes.vtep_mac("fd00:0::11")
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
    mac = routes.vtep_mac("10.0.9.14")
    both = routes.plan_network([ME4, FAR4, other], ME4, [ETH0])
    assert plan([FAR4], both) == [
        "ip -4 route delete 10.244.4.0/24 proto 199",
        "ip neighbour delete 10.244.4.0 dev cbr-vxlan",
        f"bridge fdb delete {mac} dev cbr-vxlan dst 10.0.9.14",
    ]


def test_a_far_node_with_a_new_address_is_replaced_in_place() -> None:
    moved = Peer("n3", ("10.0.9.33",), FAR4.pod_cidrs)
    mac = routes.vtep_mac("10.0.9.33")
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
    assert routes.parse_peers([node, bare]) == [Peer("n0", (), ("10.244.0.0/24",)), ME]


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
    assert routes.parse_interfaces(json.dumps(links)) == [Interface("eth0", 9000, ("10.0.0.11/24",))]


@pytest.mark.parametrize("text", ["", "  \n", "[]", "[{}]", "Device does not exist"])
def test_nothing_is_read_from_nothing(text: str) -> None:
    assert routes.parse_routes(text, 4) == frozenset()
    assert routes.parse_interfaces(text) == []
    assert routes.parse_vxlan(text, []) is None
    assert routes.parse_neighbours(text) == frozenset()
    assert routes.parse_forwards(text) == frozenset()


def test_routes_of_one_address_get_their_length() -> None:
    text = json.dumps([{"dst": "10.244.2.0", "gateway": "10.0.0.12", "dev": "eth0", "flags": []}])
    assert routes.parse_routes(text, 4) == {Route("10.244.2.0/32", "10.0.0.12", "eth0")}


def test_a_link_of_the_same_name_that_is_not_kbs_vxlan_is_not_taken_for_it() -> None:
    link = {"ifname": "cbr-vxlan", "mtu": 1450, "address": LINK.mac, "linkinfo": {"info_kind": "dummy"}}
    assert routes.parse_vxlan(json.dumps([link]), []) is None
    link["linkinfo"] = {"info_kind": "vxlan", "info_data": {"id": 4097, "port": 4789, "local": "10.0.0.11"}}
    assert routes.parse_vxlan(json.dumps([link]), ["10.244.1.0/32"]) == LINK


# ---- masquerading


def test_ranges_are_merged_before_nft_sees_them() -> None:
    cidrs = ["10.244.0.0/16", "10.244.1.0/24", "fd00:244::/56", "10.9.0.0/24"]
    assert routes.select_cidrs(cidrs, 4) == ["10.9.0.0/24", "10.244.0.0/16"]
    assert routes.select_cidrs(cidrs, 6) == ["fd00:244::/56"]


def test_the_rule_masks_what_leaves_the_cluster_alone() -> None:
    text, chain = routes.render_nft_table(4, ["10.244.1.0/24"], ["10.244.0.0/16"])
    assert "ip saddr { 10.244.1.0/24 } ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade" in text
    assert text.startswith("table ip kb_pods {}\ndelete table ip kb_pods\n")
    assert chain in text
    assert chain != routes.render_nft_table(4, ["10.244.1.0/24"], ["10.0.0.0/8"])[1]


def test_iptables_says_the_same() -> None:
    assert routes.render_iptables_chain(6, ["fd00:244:0:1::/64"], ["fd00:244::/56"]) == [
        "-N KB-POSTROUTING",
        "-A KB-POSTROUTING -d fd00:244::/56 -j RETURN",
        "-A KB-POSTROUTING -d ff00::/8 -j RETURN",
        "-A KB-POSTROUTING -s fd00:244:0:1::/64 -j MASQUERADE",
    ]


def test_both_ends_take_the_same_kind_of_way() -> None:
    """A node of a dual-stack cluster that registered with its IPv4 address alone: nobody could answer it directly in IPv6."""
    single = Peer("n2", ("10.0.0.12",), NEAR.pod_cidrs)
    for me, other in ((ME, single), (single, ME)):
        ways = {route.pod_cidr: route.device for route in routes.plan_network([me, other], me, [ETH0]).routes}
        assert {cidr: device == routes.VXLAN for cidr, device in ways.items()} == {
            cidr: ":" in cidr for cidr in other.pod_cidrs
        }


def test_a_rule_that_is_there_is_left_alone_and_a_flushed_one_is_set_again() -> None:
    text, chain = routes.render_nft_table(4, ["10.244.1.0/24"], ["10.244.0.0/16"])
    host = FakeHost(answers={"nft list tables": "", "nft list table ip kb_pods": text})
    assert routes.ensure_masquerade(host, ["10.244.1.0/24"], ["10.244.0.0/16"]) == []
    assert host.changes == []
    host.answers["nft list table ip kb_pods"] = f"table ip kb_pods {{ chain {chain} {{ }} }}"
    assert routes.ensure_masquerade(host, ["10.244.1.0/24"], ["10.244.0.0/16"]) == []
    assert host.changes == ["run nft -f -"]


def test_a_node_without_nft_and_iptables_is_told_so() -> None:
    assert routes.ensure_masquerade(FakeHost(), ["10.244.1.0/24"], []) == [
        "neither nft nor iptables is there: pods cannot reach anything outside the cluster"
    ]


# ---- the loop


class ApiHost(FakeHost):
    """A FakeHost whose URLs are looked up without their query."""

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Any = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        return super().http_get(url.partition("?")[0], tls=tls, headers=headers, timeout_s=timeout_s)


SERVER = "https://10.0.0.11:6443"
SETTINGS = RouteSettings("n1", ("10.244.0.0/16",))


def node_object(peer: Peer) -> dict[str, Any]:
    return {
        "metadata": {"name": peer.name},
        "spec": {"podCIDRs": list(peer.pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in peer.addresses]},
    }


def make_host(nodes: list[Peer], files: tuple[str, ...] = (routes.CNI_FILE,)) -> ApiHost:
    addresses = [{"ifname": "eth0", "mtu": 1500, "addr_info": []}]
    addresses[0]["addr_info"] = [{"local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]
    listed = json.dumps({"items": [node_object(node) for node in nodes]}).encode()
    return ApiHost(
        files={f"/etc/cni/net.d/{name}": b"{}" for name in files},
        answers={
            "ip -json address show": json.dumps(addresses),
            "ip -json": CommandResult(("ip",), 1, stderr="Device does not exist"),
            "nft list tables": "",
        },
        urls={f"{SERVER}/api/v1/nodes": HttpResponse(200, listed)},
    )


def keep(host: FakeHost, settings: RouteSettings = SETTINGS) -> routes.Round:
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    return routes.keep_round(host, lambda: api, settings, paths=PATHS)


def test_a_round_sets_routes_and_the_rule_and_says_so() -> None:
    host = make_host([ME4, NEAR4, FAR4])
    assert keep(host).text == "1 routes and 1 VXLAN ways to 2 nodes"
    assert "run ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199" in host.changes
    assert host.changes[-1] == "run nft -f -"


@pytest.mark.parametrize("name", ["10-calico.conflist", "05-cilium.conflist", "87-podman-bridge.conflist"])
def test_the_keeper_steps_aside_for_another_network(name: str) -> None:
    host = make_host([ME4, NEAR4], (routes.CNI_FILE, name))
    host.answers["ip -json -4 route show proto 199"] = json.dumps(
        [{"dst": "10.244.2.0/24", "gateway": "10.0.0.12", "dev": "eth0"}]
    )
    host.answers["nft list table ip kb_pods"] = "table ip kb_pods"
    assert keep(host).text == f"stepped aside: the runtime takes /etc/cni/net.d/{name}, not {routes.CNI_FILE}"
    assert host.changes == ["run ip -4 route delete 10.244.2.0/24 proto 199", "run nft delete table ip kb_pods"]


def show_bridge(*flags: str) -> dict[str, Any]:
    entry = {"local": "10.244.1.1", "prefixlen": 24, "scope": "global"}
    return {"ifname": "cbr0", "flags": list(flags), "addr_info": [entry]}


def test_beside_another_network_the_keeper_tells_of_pods_on_the_old_bridge() -> None:
    host = make_host([ME4, NEAR4], (routes.CNI_FILE, "10-flannel.conflist"))
    host.answers["ip -json address show"] = json.dumps([show_bridge("UP")])
    host.answers["ip -json link show master cbr0"] = json.dumps([{"ifname": "veth1"}])
    found = keep(host)
    assert found.text.startswith("stepped aside: the runtime takes /etc/cni/net.d/10-flannel.conflist")
    assert "1 pod of before on cbr0" in found.text
    assert found.wait_s == routes.RETRY_S


def test_a_bridge_that_was_taken_down_comes_back_with_kbs_network() -> None:
    host = make_host([ME4, NEAR4])
    links = json.loads(str(host.answers["ip -json address show"]))
    host.answers["ip -json address show"] = json.dumps([*links, show_bridge("BROADCAST")])
    assert keep(host).text.startswith("1 routes")
    assert "run ip link set cbr0 up" in host.changes
    host = make_host([ME4, NEAR4])
    host.answers["ip -json address show"] = json.dumps([*links, show_bridge("UP")])
    keep(host)
    assert "run ip link set cbr0 up" not in host.changes


def test_a_bridge_waits_for_coredns_to_be_asked() -> None:
    host = make_host([ME4, NEAR4], (routes.CNI_FILE, "10-flannel.conflist"))
    host.answers["ip -json address show"] = json.dumps([show_bridge("UP")])
    host.answers["ip -json link show master cbr0"] = "[]"
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
    host.files["/etc/kubernetes/admin.conf"] = KUBECONFIG
    found = keep(host)
    assert "CoreDNS was not restarted yet" in found.text
    assert "run ip link delete cbr0" not in host.changes
    host.urls[f"{SERVER}/apis/apps/v1/namespaces/kube-system/deployments"] = HttpResponse(200, b'{"items": []}')
    assert "CoreDNS" not in keep(host).text
    assert "run ip link delete cbr0" in host.changes


def test_a_file_that_the_runtime_does_not_read_counts_for_nothing() -> None:
    assert keep(make_host([ME4, NEAR4], (routes.CNI_FILE, "10-calico.conflist.off"))).text.startswith("1 routes")


def test_the_keeper_does_nothing_without_its_own_file() -> None:
    host = make_host([ME4, NEAR4], ())
    assert keep(host).text == f"stepped aside: no CNI configuration is there, not {routes.CNI_FILE}"
    assert host.changes == []


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([NEAR4], "node n1 is not registered: nothing was changed"),
        ([Peer("n1", ("10.0.0.11",), ()), NEAR4], "node n1 has no podCIDR yet: nothing was changed"),
    ],
)
def test_a_node_without_a_range_changes_nothing(nodes: list[Peer], text: str) -> None:
    host = make_host(nodes)
    assert keep(host).text == text
    assert host.changes == []


def test_a_large_cluster_is_asked_less_often() -> None:
    many = [Peer(f"x{index}", (f"10.0.1.{index % 250}",), ()) for index in range(400)]
    assert keep(make_host([ME4, *many])).wait_s == 40.1
    assert keep(make_host([ME4, NEAR4])).wait_s == 10


def test_a_command_that_fails_is_told_and_tried_again_soon() -> None:
    host = make_host([ME4, NEAR4])
    host.answers["ip -4 route replace"] = CommandResult(("ip", "route"), 2, stderr="RTNETLINK: no\n")
    found = keep(host)
    assert "RTNETLINK: no" in found.text
    assert found.wait_s == routes.RETRY_S


def test_missing_iproute2_is_named() -> None:
    host = FakeHost(files={f"/etc/cni/net.d/{routes.CNI_FILE}": b""}, urls=make_host([ME4]).urls)
    with pytest.raises(HostError) as caught:
        routes.read_network(host)
    assert caught.value.code == "iproute2-missing"


def test_an_unreachable_server_leaves_the_routes_and_is_told_once() -> None:
    host = make_host([ME4, NEAR4])
    host.urls.clear()
    host.files["/var/lib/kb/pod-network.json"] = routes.render_settings(SETTINGS).encode()
    host.files["/etc/kubernetes/kubelet.conf"] = KUBECONFIG
    said: list[str] = []
    routes.keep_routes(host, log=said.append, once=True)
    assert host.changes == []
    assert len(said) == 1
    assert "the routes stay as they are" in said[0]


KUBECONFIG = f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{SERVER}"}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
""".encode()


def test_the_loop_says_only_what_changed() -> None:
    host = make_host([ME4, NEAR4])
    host.files["/var/lib/kb/pod-network.json"] = routes.render_settings(SETTINGS).encode()
    host.files["/etc/kubernetes/kubelet.conf"] = KUBECONFIG
    said: list[str] = []

    def stop_after(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            raise KeyboardInterrupt

    original = host.sleep

    def sleep(seconds: float) -> None:
        original(seconds)
        if host.ticks > 25:
            host.files["/etc/cni/net.d/10-flannel.conflist"] = b"{}"

    host.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        routes.keep_routes(host, log=stop_after)
    assert said[0] == "kb routes: 1 routes and 0 VXLAN ways to 1 nodes"
    assert said[1].startswith("kb routes: stepped aside: the runtime takes /etc/cni/net.d/10-flannel.conflist")
    assert host.ticks == 30


def show_routes(*destinations: str, protocol: str = "kernel", **fields: str) -> str:
    return json.dumps([{"dst": text, "dev": "eth0", "protocol": protocol, **fields} for text in destinations])


def test_find_unrouted() -> None:
    wanted = ["10.96.0.0/12"]
    assert routes.find_unrouted(show_routes("10.0.0.0/24"), wanted) == wanted
    assert routes.find_unrouted(show_routes("10.0.0.0/24", "default"), wanted) == []
    assert routes.find_unrouted(show_routes("10.0.0.0/8"), wanted) == []
    assert routes.find_unrouted(show_routes("default", type="unreachable"), wanted) == wanted
    assert routes.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), wanted) == wanted
    assert routes.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), wanted, counts_own=True) == []
    assert routes.find_unrouted(show_routes("10.96.0.0/12", protocol="199"), ["10.96.0.10"], counts_own=True) == []
    assert routes.find_unrouted("", wanted) == wanted
    assert routes.find_unrouted(show_routes("fd00::/8"), ["fd00:96::/112"]) == []


def test_a_node_without_a_default_route_gets_one_to_services() -> None:
    host = make_host([ME4, NEAR4])
    settings = dataclasses.replace(SETTINGS, service_cidrs=("10.96.0.0/12",))
    host.answers["ip -json -4 route show table all"] = show_routes("10.0.0.0/24")
    assert "a route to Services (10.96.0.0/12), to which none led" in keep(host, settings).text
    assert "run ip -4 route replace 10.96.0.0/12 dev eth0 proto 199" in host.changes
    # it is there: nothing is done again
    host.changes.clear()
    own = {"dst": "10.96.0.0/12", "dev": "eth0", "protocol": "199"}
    near = {"dst": "10.244.2.0/24", "gateway": "10.0.0.12", "dev": "eth0"}
    host.answers["ip -json -4 route show proto 199"] = json.dumps([own, near])
    host.answers["ip -json -4 route show table all"] = json.dumps([own])
    keep(host, settings)
    assert [change for change in host.changes if "route" in change] == [], host.changes
    # a default route has come: kb's own goes
    host.answers["ip -json -4 route show table all"] = json.dumps([own, {"dst": "default", "gateway": "10.0.0.1"}])
    assert "Services" not in keep(host, settings).text
    assert "run ip -4 route delete 10.96.0.0/12 proto 199" in host.changes


def test_settings_of_an_older_kb_are_read() -> None:
    host = FakeHost(files={"/var/lib/kb/pod-network.json": b'{"node": "n1", "podCIDRs": ["10.244.0.0/16"]}'})
    assert routes.read_settings(host, PATHS) == SETTINGS


def test_settings_survive_the_file() -> None:
    host = FakeHost()
    settings = RouteSettings("n1", ("10.244.0.0/16", "fd00:244::/56"), "vxlan", ("10.96.0.0/12",))
    host.write_file(Path("/var/lib/kb/pod-network.json"), routes.render_settings(settings))
    assert routes.read_settings(host, PATHS) == settings


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"not json"])
def test_missing_or_damaged_settings_name_the_phase_that_writes_them(content: Optional[bytes]) -> None:
    host = FakeHost(files={} if content is None else {"/var/lib/kb/pod-network.json": content})
    with pytest.raises(HostError) as caught:
        routes.read_settings(host, PATHS)
    assert caught.value.code == "pod-network-settings"
    assert "kb init phase pod-network" in caught.value.remedy
