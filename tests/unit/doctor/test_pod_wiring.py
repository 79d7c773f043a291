"""kubeup/doctor/looks/pod_wiring.py: plugins, addresses and routes of pods, each of them broken in turn."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from kubeup.doctor.looks import pod_wiring
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.network import route_keeper
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient

INFO = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}, "config": {"cni": {"binDirs": ["/opt/cni/bin"], "binDir": "/opt/cni/bin"}}}  # fmt: skip
CONF = "/etc/cni/net.d"
TAKEN = "/var/lib/cni/networks/n"


def make_config(cidr: str, kind: str = "bridge") -> bytes:
    ipam = {"type": "host-local", "ranges": [[{"subnet": cidr}]]}
    return json.dumps({"name": "n", "plugins": [{"type": kind, "ipam": ipam}, {"type": "portmap"}]}).encode()


@pytest.fixture
def host() -> FakeHost:
    host = make_host()
    host.files[f"{CONF}/99-kb-bridge.conflist"] = make_config("10.244.1.0/29")
    for name in ("bridge", "portmap"):
        host.files[f"/opt/cni/bin/{name}"] = b"a program"

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0, "alive\n" if "pods" in argv else json.dumps(INFO))

    host.answers["crictl"] = crictl
    return host


def find(look: Any, host: FakeHost) -> list[str]:
    return [f"{note.level}: {note.text}. {note.remedy}" for note in look(make_patient(host))]


def test_a_network_that_is_whole(host: FakeHost) -> None:
    assert find(pod_wiring.find_lost_plugins, host) == find(pod_wiring.find_taken_addresses, host) == []


def test_what_an_uninstalled_network_has_left(host: FakeHost) -> None:
    host.files[f"{CONF}/05-cilium.conflist"] = b'{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}'
    (told,) = find(pod_wiring.find_lost_plugins, host)
    assert told.startswith(
        "error: no pod can be started: the runtime takes /etc/cni/net.d/05-cilium.conflist, and its plugin cilium-cni is not in "
    )
    assert "rm /etc/cni/net.d/05-cilium.conflist" in told


def test_a_runtime_that_looks_for_its_configuration_elsewhere(host: FakeHost) -> None:
    info = {**INFO, "cniconfig": {"PluginDirs": ["/opt/cni/bin"], "PluginConfDir": "/etc/cni/multus.d"}}
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps(info))
    (told,) = find(pod_wiring.find_lost_plugins, host)
    assert (
        "takes its CNI configuration from /etc/cni/multus.d, where there is none: this node's is in /etc/cni/net.d"
        in told
    )
    assert 'conf_dir = "/etc/cni/net.d"' in told
    host.files["/etc/cni/multus.d/00-multus.conf"] = b"{}"
    assert find(pod_wiring.find_lost_plugins, host) == []


def test_kb_s_own_plugins_are_a_check_of_preflight_s(host: FakeHost) -> None:
    del host.files["/opt/cni/bin/portmap"]
    (told,) = find(pod_wiring.find_lost_plugins, host)
    assert "its plugin portmap is not in" in told  # somebody else's file of that name
    host.files["/etc/systemd/system/kb-routes.service"] = b""
    assert find(pod_wiring.find_lost_plugins, host) == []


@pytest.mark.parametrize(("owner", "level"), [("gone", "error"), ("alive", "warning")])
def test_addresses_that_are_all_taken(host: FakeHost, owner: str, level: str) -> None:
    for number in range(1, 7):  # and the gateway's own, which is none that a pod gets
        host.files[f"{TAKEN}/10.244.1.{number}"] = f"{owner}\r\neth0".encode()
    host.files[f"{TAKEN}/lock"] = b""
    (told,) = find(pod_wiring.find_taken_addresses, host)
    assert told.startswith(
        f"{level}: 5 of the 5 addresses that 99-kb-bridge.conflist has for pods of this node are taken ({TAKEN})"
    )
    assert ("5 of them by pods that are gone" in told) == (owner == "gone")
    del host.files[f"{TAKEN}/10.244.1.2"]
    assert find(pod_wiring.find_taken_addresses, host) == []


def route_host(host: FakeHost, own: str, *, routes: object, state: str = "active") -> FakeHost:
    nodes = [
        {"metadata": {"name": name}, "spec": {"podCIDRs": [cidr]}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}
        for name, cidr, ip in (("cp1", own, "10.77.0.11"), ("w1", "10.244.2.0/24", "10.77.0.12"))
    ]  # fmt: skip
    host.urls[f"{SERVER}/api/v1/nodes"] = HttpResponse(200, json.dumps({"items": nodes}).encode())
    settings = route_keeper.RouteSettings("cp1", ("10.244.0.0/16",), "auto", ())
    host.files[str(route_keeper.settings_path(Paths()))] = route_keeper.render_settings(settings).encode()
    addr = [{"family": "inet", "local": "10.77.0.11", "prefixlen": 24, "scope": "global"}]
    host.answers["ip -json address show"] = json.dumps(
        [{"ifname": "eth0", "mtu": 1500, "flags": ["UP"], "addr_info": addr}]
    )
    host.answers["ip -json -4 route show proto"] = json.dumps(routes)
    host.answers["ip -json -6 route show proto"] = "[]"
    host.answers["ip -json -details link show"] = "[]"
    host.answers["systemctl is-active kb-routes.service"] = state
    return host


def test_a_node_that_was_registered_anew_has_another_network(host: FakeHost) -> None:
    (told,) = find(pod_wiring.find_odd_routes, route_host(host, "10.244.9.0/29", routes=[]))
    assert told.startswith(
        "error: the cluster has given node cp1 the pod network 10.244.9.0/29, and its pods have addresses of 10.244.1.0/29"
    )
    assert "kb init phase pod-network" in told


def test_routes_that_are_lost_and_a_keeper_that_is_away(host: FakeHost) -> None:
    whole = [{"dst": "10.244.2.0/24", "gateway": "10.77.0.12", "dev": "eth0"}]
    assert find(pod_wiring.find_odd_routes, route_host(host, "10.244.1.0/29", routes=whole)) == []
    (told,) = find(pod_wiring.find_odd_routes, route_host(host, "10.244.1.0/29", routes=[], state="failed"))
    assert told.startswith(
        "error: this node has no route to the pods of node w1 (10.244.2.0/24), and kb-routes.service, which sets them, is failed"
    )
    (told,) = find(pod_wiring.find_odd_routes, route_host(host, "10.244.1.0/29", routes=whole, state="inactive"))
    assert told.startswith("warning: kb-routes.service is inactive")


WAY = {"dst": "10.244.2.0/24", "gateway": "10.77.0.12", "dev": "eth0", "protocol": "199", "flags": []}
LINK = {"dst": "10.77.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "10.77.0.11", "flags": []}  # fmt: skip


def divert(host: FakeHost, *others: dict[str, Any]) -> list[str]:
    """others: routes beside kb's own and the link's, of which the kernel takes the most specific."""
    table = [WAY, LINK, *others]
    host.answers["ip -json -4 route show table all"] = json.dumps(table)
    asked = list[str]()

    def answer(argv: tuple[str, ...]) -> CommandResult:
        asked[:] = host.stdins[-1].splitlines()
        lines = []
        for words in asked:
            fitting = [
                one for one in table if ipaddress.ip_address(words.split()[-1]) in ipaddress.ip_network(one["dst"])
            ]
            best = max(fitting, key=lambda one: ipaddress.ip_network(one["dst"]).prefixlen)
            lines.append(json.dumps([best]))
        return CommandResult(argv, 0, "\n".join(lines))

    host.answers["ip -json -4 -force -batch -"] = answer
    return find(pod_wiring.find_odd_routes, route_host(host, "10.244.1.0/29", routes=[WAY]))


def test_a_route_of_a_vpn_that_takes_packets_for_pods(host: FakeHost) -> None:
    assert divert(host) == []
    (told,) = divert(host, {"dst": "10.244.2.0/25", "dev": "vpn0", "scope": "link", "flags": []})
    assert told.startswith(
        "error: packets to the pods of node w1 (10.244.2.0/24) leave by vpn0: other routes than the pod network's take them (10.244.2.0/25 dev vpn0)"
    )
    assert told.endswith("ip route del 10.244.2.0/25 dev vpn0")
    (told,) = divert(host, {"dst": "10.77.0.12", "dev": "vpn0", "scope": "link", "flags": []})
    assert told.startswith("error: packets to node w1 (10.77.0.12) leave by vpn0")
    assert divert(host, {"dst": "10.77.0.0/28", "dev": "eth1", "protocol": "kernel", "flags": []}) == []  # two links


def test_an_interface_that_takes_less_than_pods_send(host: FakeHost) -> None:
    route_host(host, "10.244.1.0/29", routes=[WAY])
    host.answers["ip -json link show dev cbr0"] = json.dumps([{"ifname": "cbr0", "mtu": 1500}])
    assert find(pod_wiring.find_odd_routes, host) == []
    host.answers["ip -json link show dev cbr0"] = json.dumps([{"ifname": "cbr0", "mtu": 9000}])
    (told,) = find(pod_wiring.find_odd_routes, host)
    assert told.startswith("error: pods on this node send packets of 9000 bytes (cbr0), and eth0 takes 1500")


def test_a_hole_in_the_routes(host: FakeHost) -> None:
    table = [WAY, LINK, {"type": "blackhole", "dst": "10.244.2.128/25", "dev": "", "flags": []}]
    host.answers["ip -json -4 route show table all"] = json.dumps(table)
    host.answers["ip -json -4 -force -batch -"] = ""
    (told,) = find(pod_wiring.find_odd_routes, route_host(host, "10.244.1.0/29", routes=[WAY]))
    assert "(10.244.2.0/24) are dropped" in told and "(blackhole 10.244.2.128/25)" in told


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"name": "n", "plugins": []}'])
def test_a_configuration_that_names_no_plugin(host: FakeHost, text: bytes) -> None:
    host.files[f"{CONF}/99-kb-bridge.conflist"] = text
    (told,) = find(pod_wiring.find_lost_plugins, host)
    assert "99-kb-bridge.conflist, which is no CNI configuration" in told and "kb init phase pod-network" in told
