"""kubeup/network/route_keeper.py: rounds of the keeper on a scripted node."""

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
from kubeup.network import keeper, node_routes, route_keeper
from kubeup.network.route_keeper import RouteSettings
from kubeup.network.route_plan import Peer
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.network.routes_case import FAR4, ME4, NEAR4

PATHS = Paths()


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


KEEPS = {
    "nft -f -",
    "nft delete table ip kb_pods",
    "ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199",
    "ip -4 route delete 10.244.2.0/24 proto 199",
    "ip link add cbr-vxlan address 0a:6b:0a:00:00:0b mtu 1450 type vxlan id 4097 dstport 4789 local 10.0.0.11 nolearning",
    "ip link set cbr-vxlan up",
    "ip address replace 10.244.1.0/32 dev cbr-vxlan",
    "bridge fdb replace 0a:6b:0a:00:09:0d dev cbr-vxlan dst 10.0.9.13",
    "ip neighbour replace 10.244.3.0 lladdr 0a:6b:0a:00:09:0d dev cbr-vxlan nud permanent",
    "ip -4 route replace 10.244.3.0/24 via 10.244.3.0 dev cbr-vxlan onlink proto 199",
    "ip -4 route replace 10.96.0.0/12 dev eth0 proto 199",
    "ip -4 route delete 10.96.0.0/12 proto 199",
    "ip link set cbr0 up",
    "ip link delete cbr0",
}
"""What the keeper of node n1 does for its peers NEAR4 and FAR4, and for Services."""


def make_host(nodes: list[Peer], files: tuple[str, ...] = (node_routes.CNI_FILE,)) -> ApiHost:
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
        accepts=KEEPS,
        urls={f"{SERVER}/api/v1/nodes": HttpResponse(200, listed)},
    )


def keep(host: FakeHost, settings: RouteSettings = SETTINGS) -> keeper.Round:
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    return route_keeper.keep_round(host, lambda: api, settings=settings, paths=PATHS)


def test_a_round_sets_routes_and_the_rule_and_says_so() -> None:
    host = make_host([ME4, NEAR4, FAR4])
    assert keep(host).text == "1 routes and 1 VXLAN ways to 2 nodes"
    assert "run ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199" in host.changes
    assert host.changes[-1] == "run nft -f -"


@pytest.mark.parametrize("name", ["10-calico.conflist", "05-cilium.conflist", "87-podman-bridge.conflist"])
def test_the_keeper_steps_aside_for_another_network(name: str) -> None:
    host = make_host([ME4, NEAR4], (node_routes.CNI_FILE, name))
    host.answers["ip -json -4 route show proto 199"] = json.dumps(
        [{"dst": "10.244.2.0/24", "gateway": "10.0.0.12", "dev": "eth0"}]
    )
    host.answers["nft list table ip kb_pods"] = "table ip kb_pods"
    assert keep(host).text == f"stepped aside: the runtime takes /etc/cni/net.d/{name}, not {node_routes.CNI_FILE}"
    assert host.changes == ["run ip -4 route delete 10.244.2.0/24 proto 199", "run nft delete table ip kb_pods"]


def show_bridge(*flags: str) -> dict[str, Any]:
    entry = {"local": "10.244.1.1", "prefixlen": 24, "scope": "global"}
    return {"ifname": "cbr0", "flags": list(flags), "addr_info": [entry]}


def test_beside_another_network_the_keeper_tells_of_pods_on_the_old_bridge() -> None:
    host = make_host([ME4, NEAR4], (node_routes.CNI_FILE, "10-flannel.conflist"))
    host.answers["ip -json address show"] = json.dumps([show_bridge("UP")])
    host.answers["ip -json link show master cbr0"] = json.dumps([{"ifname": "veth1"}])
    found = keep(host)
    assert found.text.startswith("stepped aside: the runtime takes /etc/cni/net.d/10-flannel.conflist")
    assert "1 pod still on cbr0" in found.text
    assert found.wait_s == keeper.RETRY_S


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
    host = make_host([ME4, NEAR4], (node_routes.CNI_FILE, "10-flannel.conflist"))
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
    assert keep(make_host([ME4, NEAR4], (node_routes.CNI_FILE, "10-calico.conflist.off"))).text.startswith("1 routes")


def test_the_keeper_does_nothing_without_its_own_file() -> None:
    host = make_host([ME4, NEAR4], ())
    assert keep(host).text == f"stepped aside: no CNI configuration is there, not {node_routes.CNI_FILE}"
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
    host.answers["ip -4 route replace 10.244.2.0/24 via 10.0.0.12 dev eth0 proto 199"] = CommandResult(
        ("ip", "route"), 2, stderr="RTNETLINK: no\n"
    )
    found = keep(host)
    assert "RTNETLINK: no" in found.text
    assert found.wait_s == keeper.RETRY_S


def test_missing_iproute2_is_named() -> None:
    host = FakeHost(files={f"/etc/cni/net.d/{node_routes.CNI_FILE}": b""}, urls=make_host([ME4]).urls)
    with pytest.raises(HostError) as caught:
        node_routes.read_network(host)
    assert caught.value.code == "iproute2-missing"


def test_an_unreachable_server_leaves_the_routes_and_is_told_once() -> None:
    host = make_host([ME4, NEAR4])
    host.urls.clear()
    host.files["/var/lib/kb/pod-network.json"] = route_keeper.render_settings(SETTINGS).encode()
    host.files["/etc/kubernetes/kubelet.conf"] = KUBECONFIG
    said: list[str] = []
    route_keeper.keep_routes(host, log=said.append, once=True)
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
    host.files["/var/lib/kb/pod-network.json"] = route_keeper.render_settings(SETTINGS).encode()
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
        route_keeper.keep_routes(host, log=stop_after)
    assert said[0] == "kb routes: 1 routes and 0 VXLAN ways to 1 nodes"
    assert said[1].startswith("kb routes: stepped aside: the runtime takes /etc/cni/net.d/10-flannel.conflist")
    assert host.ticks == 30


def show_routes(*destinations: str, protocol: str = "kernel", **fields: str) -> str:
    return json.dumps([{"dst": text, "dev": "eth0", "protocol": protocol, **fields} for text in destinations])


def test_a_node_without_a_default_route_gets_one_to_services() -> None:
    host = make_host([ME4, NEAR4])
    settings = dataclasses.replace(SETTINGS, service_cidrs=("10.96.0.0/12",))
    host.answers["ip -json -4 route show table all"] = show_routes("10.0.0.0/24")
    assert "a route to Services (10.96.0.0/12), which had none" in keep(host, settings).text
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
    assert route_keeper.read_settings(host, PATHS) == SETTINGS


def test_settings_survive_the_file() -> None:
    host = FakeHost()
    settings = RouteSettings("n1", ("10.244.0.0/16", "fd00:244::/56"), "vxlan", ("10.96.0.0/12",))
    host.write_file(Path("/var/lib/kb/pod-network.json"), route_keeper.render_settings(settings))
    assert route_keeper.read_settings(host, PATHS) == settings


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"not json"])
def test_missing_or_damaged_settings_name_the_phase_that_writes_them(content: Optional[bytes]) -> None:
    host = FakeHost(files={} if content is None else {"/var/lib/kb/pod-network.json": content})
    with pytest.raises(HostError) as caught:
        route_keeper.read_settings(host, PATHS)
    assert caught.value.code == "pod-network-settings"
    assert "kb init phase pod-network" in caught.value.remedy
