"""The pod network's files, checks and manifests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup.config.types import Arg, ClusterConfiguration, Component, Networking, PodNetwork
from kubeup.errors import HostError, KbError, UsageError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.network import node_routes, pod_network, route_keeper
from kubeup.node import images
from kubeup.paths import Paths
from tests.fake_host import FakeHost

PATHS = Paths()


# ---- plugin: bridge


def test_the_conflist_is_what_the_plugins_read() -> None:
    conflist = json.loads(pod_network.render_conflist(["10.244.1.0/24", "fd00:244:0:1::/64"], 1450))
    assert conflist["name"] == "kb-bridge"
    bridge, portmap = conflist["plugins"]
    assert (bridge["type"], bridge["bridge"], bridge["mtu"]) == ("bridge", "cbr0", 1450)
    # the default route into the pod, and room for a pod to reach itself through a Service
    assert (bridge["isDefaultGateway"], bridge["hairpinMode"]) == (True, True)
    # masking is the route keeper's: the plugin would mask the traffic between nodes too
    assert bridge["ipMasq"] is False
    assert bridge["ipam"]["type"] == "host-local"
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:0:1::/64"}]]
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}


@pytest.mark.parametrize(
    "name", ["10-calico.conflist", "05-cilium.conflist", "10-flannel.conflist", "10-weave.conflist", "00-multus.conf"]
)
def test_every_other_network_sorts_before_kbs(name: str) -> None:
    assert name < node_routes.CNI_FILE


@pytest.mark.parametrize(
    ("network", "address", "mtu"),
    [
        (PodNetwork(), "10.0.0.11", 1450),
        (PodNetwork(), "fd00::11", 1430),
        (PodNetwork(backend="vxlan"), "10.0.0.11", 1450),
        (PodNetwork(backend="route"), "10.0.0.11", 1500),
        (PodNetwork(mtu=8900), "10.0.0.11", 8900),
    ],
)
def test_the_mtu_leaves_room_for_the_tunnel_where_there_may_be_one(network: PodNetwork, address: str, mtu: int) -> None:
    assert pod_network.plan_mtu(network, link_mtu=1500, node_address=address) == mtu


def cluster(pod_subnet: str = "10.244.0.0/16", allocate: str = "") -> ClusterConfiguration:
    args = (Arg("allocate-node-cidrs", allocate),) if allocate else ()
    return ClusterConfiguration("v1.35.6", Networking(pod_subnet=pod_subnet), controller_manager=Component(args))


@pytest.mark.parametrize(
    ("configuration", "named"),
    [(cluster(""), "networking.podSubnet is empty"), (cluster(allocate="false"), "allocate-node-cidrs=false")],
)
def test_a_cluster_that_gives_nodes_no_range_is_told_before_any_wait(
    configuration: ClusterConfiguration, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        pod_network.check_pod_cidr_source(configuration)
    assert caught.value.code == "no-pod-subnet"
    assert named in caught.value.cause


def test_a_cluster_that_gives_ranges_passes() -> None:
    pod_network.check_pod_cidr_source(cluster())
    pod_network.check_pod_cidr_source(cluster(allocate="true"))


def plugins(folder: str, *names: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": b"" for name in names}


def test_plugins_may_lie_in_any_folder_that_the_runtime_searches() -> None:
    host = FakeHost(files={**plugins("/a", "bridge", "portmap"), **plugins("/b", "host-local", "loopback")})
    pod_network.check_cni_plugins(host, ["/a", "/b"], runtime="containerd 2.1")


def test_plugins_in_another_folder_are_named_with_the_links_to_make() -> None:
    host = FakeHost(files=plugins("/usr/lib/cni", *pod_network.CNI_PLUGINS))
    with pytest.raises(HostError) as caught:
        pod_network.check_cni_plugins(host, ["/opt/cni/bin"], runtime="containerd 1.7")
    error = caught.value
    assert error.code == "cni-plugins-missing"
    assert error.cause == "the plugins are in /usr/lib/cni, and containerd 1.7 is configured to look in /opt/cni/bin"
    assert error.remedy == (
        "link them: mkdir -p /opt/cni/bin && ln -s /usr/lib/cni/{bridge,host-local,loopback,portmap} /opt/cni/bin/"
    )


def test_one_missing_plugin_is_linked_alone() -> None:
    host = FakeHost(
        files={**plugins("/opt/cni/bin", "bridge", "host-local", "loopback"), **plugins("/usr/lib/cni", "portmap")}
    )
    with pytest.raises(HostError) as caught:
        pod_network.check_cni_plugins(host, ["/opt/cni/bin"], runtime="containerd 1.7")
    assert caught.value.what == "the CNI plugins portmap are missing"
    assert "ln -s /usr/lib/cni/portmap /opt/cni/bin/" in caught.value.remedy


def test_plugins_that_are_nowhere_are_to_be_installed() -> None:
    with pytest.raises(HostError) as caught:
        pod_network.check_cni_plugins(FakeHost(), ["/opt/cni/bin"], runtime="containerd 1.7")
    assert "install" in caught.value.remedy


def test_another_networks_file_stops_the_first_start_and_not_a_later_one() -> None:
    host = FakeHost(files={"/etc/cni/net.d/87-podman-bridge.conflist": b""})
    with pytest.raises(HostError) as caught:
        pod_network.check_foreign_cni_config(host, PATHS)
    assert caught.value.code == "foreign-cni-config"
    assert "/etc/cni/net.d/87-podman-bridge.conflist" in caught.value.what
    host.files[f"/etc/systemd/system/{pod_network.UNIT}"] = b""
    pod_network.check_foreign_cni_config(host, PATHS)


def test_a_file_that_sorts_behind_kbs_stops_nothing() -> None:
    pod_network.check_foreign_cni_config(FakeHost(files={"/etc/cni/net.d/99-z.conf": b""}), PATHS)
    pod_network.check_foreign_cni_config(FakeHost(files={"/etc/cni/net.d/README": b""}), PATHS)


def test_the_unit_runs_the_keeper() -> None:
    assert "\nExecStart=/usr/bin/python3 /x/kb.pyz routes\n" in pod_network.render_unit("/usr/bin/python3 /x/kb.pyz")


def test_reset_takes_away_all_that_the_bridge_network_left() -> None:
    host = FakeHost(
        programs={"ip"},
        answers={
            "ip -json": CommandResult((), 1),
            "ip link show dev cbr0": "9: cbr0",
            "nft list table ip kb_pods": "table ip kb_pods",
        },
        files={"/run/kb/pod-addresses/kb-bridge/10.244.0.2": b"", "/etc/cni/net.d/10-calico.conflist": b""},
        dirs={"/run/kb/pod-addresses/kb-bridge", "/run/kb/pod-addresses"},
        accepts={
            "systemctl disable --now kb-routes.service",
            "nft delete table ip kb_pods",
            "ip link delete cbr0",
            "systemctl daemon-reload",
        },
    )
    for path in (
        PATHS.systemd / pod_network.UNIT,
        route_keeper.settings_path(PATHS),
        PATHS.cni_conf / node_routes.CNI_FILE,
    ):
        host.write_file(path, "x")
    host.files["/etc/cni/net.d/99-kb-bridge.conflist.cilium_bak"] = b""
    host.changes.clear()
    assert pod_network.remove_node_network(host, PATHS) is True
    assert host.changes == [
        "run systemctl disable --now kb-routes.service",
        "run nft delete table ip kb_pods",
        "run ip link delete cbr0",
        "remove /etc/systemd/system/kb-routes.service",
        "remove /var/lib/kb/pod-network.json",
        "remove /etc/cni/net.d/99-kb-bridge.conflist",
        "remove /etc/cni/net.d/99-kb-bridge.conflist.cilium_bak",
        "remove /run/kb/pod-addresses/kb-bridge/10.244.0.2",
        "remove /run/kb/pod-addresses/kb-bridge",
        "remove /run/kb/pod-addresses",
        "run systemctl daemon-reload",
    ]
    assert list(host.files) == ["/etc/cni/net.d/10-calico.conflist"]


def test_reset_of_a_node_without_kbs_network_changes_nothing() -> None:
    host = FakeHost(programs={"ip"}, answers={"ip": CommandResult((), 1)})
    assert pod_network.remove_node_network(host, PATHS) is False
    assert host.changes == []


# ---- plugin: manifest

MANIFEST = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: net}
spec:
  template:
    spec:
      initContainers: [{name: i, image: "quay.io/cilium/cilium:v1.18"}]
      containers: [{name: a, image: "quay.io/cilium/cilium@sha256:abc"}]
---
# nothing here
---
apiVersion: v1
kind: List
items:
- apiVersion: apiextensions.k8s.io/v1
  kind: CustomResourceDefinition
  metadata: {name: things.example.com}
- {apiVersion: v1, kind: Namespace, metadata: {name: net}}
"""


def test_a_manifest_is_read_from_a_file_with_lists_opened() -> None:
    found = pod_network.read_manifest(FakeHost(files={"/m.yaml": MANIFEST.encode()}), "/m.yaml")
    assert [obj["kind"] for obj in found] == ["DaemonSet", "CustomResourceDefinition", "Namespace"]
    assert [obj["kind"] for obj in pod_network.sort_objects(found)] == [
        "Namespace",
        "CustomResourceDefinition",
        "DaemonSet",
    ]


def test_a_manifest_is_read_from_a_url_behind_a_redirect() -> None:
    host = FakeHost(
        urls={
            "https://example.com/a.yaml": HttpResponse(302, b"", {"location": "https://cdn.example.com/b.yaml"}),
            "https://cdn.example.com/b.yaml": HttpResponse(200, MANIFEST.encode()),
        }
    )
    assert len(pod_network.read_manifest(host, "https://example.com/a.yaml")) == 3


@pytest.mark.parametrize("status", [404, 500])
def test_a_url_that_answers_no_is_an_error(status: int) -> None:
    host = FakeHost(urls={"https://example.com/a.yaml": HttpResponse(status)})
    with pytest.raises(HostError) as caught:
        pod_network.read_manifest(host, "https://example.com/a.yaml")
    assert caught.value.code == "manifest-unreachable"
    assert f"HTTP {status}" in caught.value.cause


def test_a_redirect_in_a_circle_ends() -> None:
    loop = HttpResponse(302, b"", {"location": "https://example.com/a.yaml"})
    with pytest.raises(HostError) as caught:
        pod_network.read_manifest(FakeHost(urls={"https://example.com/a.yaml": loop}), "https://example.com/a.yaml")
    assert caught.value.code == "manifest-unreachable"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: [", "it is not YAML"),
        ("", "it holds no object"),
        ("just text", "not a Kubernetes object"),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {}}", "a ConfigMap in it has no metadata.name"),
        ("{apiVersion: v1, kind: ConfigMap, metadata: x}", "a ConfigMap in it has no metadata.name"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: n}}",
            "a Pod in it has the metadata.name false, which is not a string",
        ),
    ],
)
def test_a_manifest_that_is_none_says_why(text: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        pod_network.parse_manifest(text, "/m.yaml")
    assert caught.value.code == "manifest-invalid"
    assert cause in caught.value.cause


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(KbError) as caught:
        pod_network.read_manifest(FakeHost(), "/m.yaml")
    assert caught.value.code == "manifest-missing"


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ("quay.io/cilium/cilium:v1.18", "10.0.0.5:5000/cilium/cilium:v1.18"),
        ("registry.k8s.io/pause@sha256:abc", "10.0.0.5:5000/pause@sha256:abc"),
        ("localhost:5000/a/b", "10.0.0.5:5000/a/b"),
        ("localhost/a", "10.0.0.5:5000/a"),
        ("busybox:1", "10.0.0.5:5000/library/busybox:1"),
        ("calico/node:v3", "10.0.0.5:5000/calico/node:v3"),
        ("docker.io/calico/node:v3", "10.0.0.5:5000/calico/node:v3"),
        ("docker.io/busybox", "10.0.0.5:5000/library/busybox"),
        ("10.0.0.5:5000/a/b:1", "10.0.0.5:5000/a/b:1"),
    ],
)
def test_the_mirror_takes_the_registrys_place(image: str, wanted: str) -> None:
    assert images.rewrite_image(image, "10.0.0.5:5000") == wanted


def images_of(objects: list[dict[str, Any]]) -> list[str]:
    spec = objects[0]["spec"]["template"]["spec"]
    return [container["image"] for container in spec["initContainers"] + spec["containers"]]


def test_containers_of_every_kind_are_rewritten_and_the_input_is_not() -> None:
    objects = pod_network.parse_manifest(MANIFEST, "/m.yaml")
    rewritten = pod_network.rewrite_images(objects, "http://10.0.0.5:5000/")
    assert images_of(rewritten) == ["10.0.0.5:5000/cilium/cilium:v1.18", "10.0.0.5:5000/cilium/cilium@sha256:abc"]
    assert images_of(objects) == ["quay.io/cilium/cilium:v1.18", "quay.io/cilium/cilium@sha256:abc"]
    assert pod_network.rewrite_images(objects, "") == objects


def test_an_established_definition() -> None:
    assert not pod_network.is_established(None)
    assert not pod_network.is_established({"status": {"conditions": [{"type": "Established", "status": "False"}]}})
    assert pod_network.is_established({"status": {"conditions": [{"type": "Established", "status": "True"}]}})
