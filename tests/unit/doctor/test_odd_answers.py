"""What programs and etcd say with other types than kb knows: the rest of it counts, or it is told; nothing ends in a bug."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.airgap import mirror_server
from kubeup.cluster import dns_spread, etcd, objects
from kubeup.config import choose
from kubeup.diagnosis import container_trouble
from kubeup.doctor import node_files
from kubeup.doctor.looks import traffic
from kubeup.errors import HostError
from kubeup.machine.http import HttpResponse, Tls
from kubeup.machine.local_host import LocalHost
from kubeup.network import load_balancer, pod_view, route_keeper, route_plan, step_aside
from kubeup.node import containerd_config, containers, image_pulls, runtime
from kubeup.paths import Paths
from tests.fake_host import FakeHost

DEEP = "[" * 100_000
SOCKET = "unix:///run/containerd/containerd.sock"
ODD_ROWS: tuple[Any, ...] = (
    5, "x", {}, {"ifname": 5}, {"ifname": "eth1", "addr_info": 5}, {"ifname": "eth1", "addr_info": [None, 5, {"local": "x", "scope": "global", "prefixlen": 8}]},
    {"ifname": "cbr0", "addr_info": [{"local": "10.0.0.1", "prefixlen": 99, "scope": "global"}]}, {"dst": 5}, {"lladdr": "m"}, {"lladdr": "m", "dst": "x"}, {"id": []},
    {"linkinfo": "x"}, {"flags": 5},
)  # fmt: skip


@pytest.mark.parametrize("text", [DEEP, "5", "{}", json.dumps(ODD_ROWS)], ids=lambda text: text[:20])
def test_what_ip_says(text: str) -> None:
    assert route_plan.parse_interfaces(text) == []
    assert route_plan.parse_routes(text, 4) <= {route_plan.Route("x/32", "", "")}
    assert (
        route_plan.parse_vxlan(text, ()) is None
        and route_plan.parse_forwards(text) == route_plan.parse_neighbours(text) == frozenset()
    )
    bridge = step_aside.parse_bridge(text, text, namespaces=text)
    assert bridge is None or bridge.networks == ()
    host = FakeHost(answers={"ip": text})
    found = {str(address) for card in choose.read_interfaces(host) or () for address in card.addresses}
    assert found <= {"10.0.0.1"}


@pytest.mark.parametrize(
    "value",
    [
        {"items": [5, {"id": "a", "labels": 5}], "info": {"runtimeSpec": 5}},
        {"items": [{"id": "a"}], "info": {"runtimeSpec": {"linux": {"namespaces": [5, {"type": "network"}]}}}},[], 5, {"containers": 5}, {"containers": [5, {"metadata": 5}, {"metadata": {"attempt": "x"}, "createdAt": "²", "labels": []}]}, {"images": [5, {"repoTags": 5}]}],
    ids=str,
)  # fmt: skip
def test_what_crictl_says(value: Any) -> None:
    for text in (json.dumps(value), DEEP):
        host = FakeHost(
            programs={"crictl", "nsenter"}, answers={"crictl": text}, files={"/run/containerd/containerd.sock": b""}
        )
        assert {item.name for item in containers.list_containers(host, SOCKET)} <= {""}
        assert image_pulls.list_images(host, SOCKET) == set()
        assert runtime.probe_runtime(host, SOCKET).problem == "not-ready"
        assert container_trouble.container_error(host, SOCKET, name="etcd") in ("", "no container of it was started")
        assert pod_view.find_namespaces(host, SOCKET) == []
        assert traffic._find_pods(node_files.read_patient(host, Paths()), {"x"}) == []


@pytest.mark.parametrize(
    "body",
    [b"[]", DEEP.encode(), b"<html>", b'{"members": 5}', b'{"members": [{"ID": "x"}]}', b'{"members": [{"ID": "1", "peerURLs": ["https://["]}]}', b'{"members": [{"name": 5}]}'],
)  # fmt: skip
def test_what_etcd_says(body: bytes) -> None:
    class Odd(FakeHost):
        def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
            return HttpResponse(200, self.files["answer"])

    client = etcd.Etcd(Odd(files={"answer": body}), ["https://a:2379"], tls=Tls())
    with pytest.raises(etcd.EtcdRefused) as caught:
        client.list_members()
    assert caught.value.message


@pytest.mark.parametrize(
    "text", ['{"node": 5}', '{"node": "a", "podCIDRs": ["x"]}', '{"node": "a", "podCIDRs": {}}', "[]", DEEP]
)
def test_the_keepers_settings(text: str) -> None:
    host = FakeHost(
        files={
            str(route_keeper.settings_path(Paths())): text.encode(),
            str(load_balancer.settings_path(Paths())): text.encode(),
        }
    )
    for read in (route_keeper.read_settings, load_balancer.read_settings):
        with pytest.raises(HostError):
            read(host, Paths())


@pytest.mark.parametrize("text", ["mtu: x", "plugin: []", "healthPort: {}"])
def test_the_cluster_s_kb_config(text: str) -> None:
    for key, read in (
        ("podNetwork", objects.parse_kb_config),
        ("loadBalancer", objects.parse_load_balancer),
    ):
        with pytest.raises(HostError) as caught:
            read({"data": {key: text}})
        assert caught.value.code == "not-a-yaml-mapping"


def test_the_note_of_a_move_of_coredns() -> None:
    for text in (DEEP, '{"state": "moving", "replicas": "x"}', '{"state": []}', "[]"):
        found = {"metadata": {"annotations": {dns_spread.ANNOTATION: text}}}
        assert dns_spread.is_moving(found) in (None, 2)


@pytest.mark.parametrize("text", [":²", ":٣", ":99999", ":0", ":" + "9" * 5000, ":"])
def test_a_port_that_is_none(text: str) -> None:
    with pytest.raises(HostError) as caught:
        mirror_server.parse_listen(text)
    assert caught.value.code == "listen-invalid"


def test_a_port_that_there_is_not_is_held_by_nobody(tmp_path: Path) -> None:
    assert LocalHost().port_holder(99999, "127.0.0.1") is None


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{a=" * 100_000])
def test_deep_toml(text: str) -> None:
    for read in (containerd_config.parse_toml,):
        with pytest.raises(ValueError):
            read(text)
