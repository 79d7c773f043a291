"""The pod network on real nodes: bridge and its route keeper, a manifest of the operator's, two IP versions."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.images import WEB_IMAGE
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import LabError
from .test_init_options import BRIDGE, fetch_by_name, init, init_again_is_a_no_op, put, start_web_and_client
from .world.podnet import CONFLIST, render_conflist
from .world.web import PAGE, check_cluster_serves

MakeNode = Callable[..., Node]
KB_CONFLIST = "/etc/cni/net.d/99-kb-bridge.conflist"
ROUTES = "ip -4 route show proto 199"
# The keeper looks every ten seconds.
ROUND_S = 25


@contextlib.contextmanager
def serving(lab: Lab, folder: Path, port: int = 8000) -> Iterator[Path]:
    """A web server in the lab's network, outside of every node; gives its log, which names who asked."""
    log = folder / "asked.log"
    argv = [*lab.enter_argv(), "python3", "-u", "-m", "http.server", "--bind", lab.gateway, "--directory", str(folder), str(port)]  # fmt: skip
    with log.open("wb") as file:
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: lab.exec(f"curl -sf http://{lab.gateway}:{port}/", check=False).ok,
                   what="the lab's web server", timeout_s=15)  # fmt: skip
        yield log
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=10)


def networking(**fields: str) -> dict[str, Any]:
    return {"networking": {"serviceSubnet": "10.96.0.0/12", **fields}}


def create_node(node: Node, name: str, address: str, cidr: str) -> None:
    """A Node object that no machine stands behind."""
    node.kubectl("create --validate=false -f -", stdin=json.dumps({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))  # fmt: skip


def wait_for(node: Node, command: str, pattern: str) -> None:
    wait_until(lambda: re.search(pattern, node.run(command, check=False).stdout),
               what=f"{pattern!r} in {command}", timeout_s=ROUND_S, every_s=1)  # fmt: skip


def wait_gone(node: Node, command: str, pattern: str = ".") -> None:
    wait_until(lambda: not re.search(pattern, node.run(command, check=False).stdout),
               what=f"{command} without {pattern!r}", timeout_s=ROUND_S, every_s=1)  # fmt: skip


# ---- bridge


@pytest.mark.k8s_versions("1.35")
def test_bridge_avoids_the_networks_of_the_host(node: Node, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    """No podSubnet is given, and a VPN, say, has the usual one: another is chosen, said, and kept."""
    node.run(f"ip route add 10.244.0.0/16 via {lab.gateway}")
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, cluster=networking(), kb=BRIDGE))
    first = init(node)
    assert "pod network 10.245.0.0/16" in first.stderr
    assert "10.244.0.0/16 overlaps 10.244.0.0/16" in first.stderr
    node.wait_node_ready()
    check_cluster_serves(node)
    cidr = node.get(f"node {node.name}")["spec"]["podCIDR"]
    assert ipaddress.ip_network(cidr).subnet_of(ipaddress.ip_network("10.245.0.0/16"))  # type: ignore[arg-type]
    # by now the host has a route of cbr0 in 10.245, and of another node: neither counts against it
    create_node(node, "n2", "10.77.0.52", "10.245.7.0/24")
    wait_for(node, ROUTES, r"10\.245\.7\.0/24")
    assert "10.245.0.0/16" in init(node, "--dry-run").stderr
    init_again_is_a_no_op(node)
    node.kubectl("delete node n2")


@pytest.mark.k8s_versions("1.35", "1.36")
def test_bridge_keeps_routes_and_steps_aside(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)

    # what pods send out of the cluster carries the node's address; what stays inside carries their own
    (tmp_path / "page").write_text("outside")
    with serving(lab, tmp_path) as log:
        assert fetch_by_name(node, f"http://{lab.gateway}:8000/page") == "outside"
        asked = [line.split()[0] for line in log.read_text().splitlines() if "/page" in line]
    assert asked == [node.address]

    # a node next door is reached by a route, one beyond a router by VXLAN
    create_node(node, "near", "10.77.0.50", "10.244.7.0/24")
    create_node(node, "far", "192.0.2.7", "10.244.9.0/24")
    wait_for(node, ROUTES, r"10\.244\.7\.0/24 via 10\.77\.0\.50 dev eth0")
    if has_vxlan(node):
        wait_for(node, ROUTES, r"10\.244\.9\.0/24 via 10\.244\.9\.0 dev cbr-vxlan")
        assert "0a:6b:c0:00:02:07 dst 192.0.2.7" in node.run("bridge fdb show dev cbr-vxlan").stdout
        assert "10.244.9.0 lladdr 0a:6b:c0:00:02:07 PERMANENT" in node.run("ip neighbour show dev cbr-vxlan").stdout
    node.kubectl("delete node near far")
    wait_gone(node, ROUTES)
    wait_gone(node, "ip link show dev cbr-vxlan 2>/dev/null")
    create_node(node, "near", "10.77.0.50", "10.244.7.0/24")
    wait_for(node, ROUTES, r"10\.244\.7\.0/24")

    # somebody applies another network: its file sorts first, and the keeper goes
    assert "masquerade" in node.run("nft list table ip kb_pods").stdout
    node.write("/etc/cni/net.d/10-other.conflist", render_conflist())
    wait_gone(node, ROUTES)
    wait_gone(node, "nft list tables", "kb_pods")
    assert "stepped aside" in node.journal("kb-routes")
    again = init(node)
    assert "nothing to do" in again.output, again.output
    assert node.run(ROUTES).stdout == ""
    assert "kb_pods" not in node.run("nft list tables").stdout
    assert node.read("/etc/cni/net.d/10-other.conflist") == render_conflist()

    # and it goes away again: kb's network is back by itself
    node.run("rm /etc/cni/net.d/10-other.conflist")
    wait_for(node, ROUTES, r"10\.244\.7\.0/24")
    wait_for(node, "nft list tables", "kb_pods")
    node.kubectl("delete node near")

    # all of it survives a power loss
    node.kill()
    node.start()
    node.wait_node_ready()
    check_cluster_serves(node)
    wait_for(node, "nft list tables", "kb_pods")


def has_vxlan(node: Node) -> bool:
    """Whether this kernel has VXLAN; where it has none, the keeper must say which node it cannot reach."""
    try:
        node.run("ip link add e2e-vx type vxlan id 9 dstport 9999 local 127.0.0.1 && ip link delete e2e-vx")
    except LabError:
        wait_until(lambda: "cbr-vxlan" in node.journal("kb-routes"), what="a word on cbr-vxlan", timeout_s=ROUND_S)
        return False
    return True


@pytest.mark.k8s_versions("1.35")
def test_bridge_does_not_hide_behind_a_network_that_is_there(node: Node, kb_pyz: Path, k8s_version: str) -> None:
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    node.write(CONFLIST, render_conflist())
    refused = init(node, check=False)
    assert refused.code == 3, refused.output
    assert "CNIConfig" in refused.stderr and CONFLIST in refused.stderr
    assert not node.exists("/etc/kubernetes/pki/ca.crt"), "found after the cluster was made, not before"
    node.run(f"mv {CONFLIST} {CONFLIST}.off")
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)


# ---- manifest


def manifest(node: Node) -> str:
    """A pod network as its project publishes it, the wrong way round: what needs a kind or a namespace comes first."""
    tolerations = [{"operator": "Exists"}]
    write = f"cat >/host/10-e2e.conflist <<'E'\n{render_conflist()}E\nwhile :; do sleep 5; done"
    container = {
        "name": "install",
        "image": WEB_IMAGE,
        "command": ["/bin/sh", "-c", write],
        "volumeMounts": [{"name": "cni", "mountPath": "/host"}],
    }
    pod = {
        "hostNetwork": True,
        "tolerations": tolerations,
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "cni", "hostPath": {"path": "/etc/cni/net.d"}}],
    }
    template = {"metadata": {"labels": {"app": "cni"}}, "spec": pod}
    names = {"plural": "pools", "singular": "pool", "kind": "Pool"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    documents = [
        {"apiVersion": "net.kb.test/v1", "kind": "Pool", "metadata": {"name": "default"}, "cidr": "10.244.0.0/16"},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "cni", "namespace": "e2e-net"},
         "spec": {"selector": {"matchLabels": {"app": "cni"}}, "template": template}},
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
         "metadata": {"name": "pools.net.kb.test"},
         "spec": {"group": "net.kb.test", "names": names, "scope": "Cluster",
                  "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}]}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "e2e-net"}},
    ]  # fmt: skip
    return "---\n".join(json.dumps(document) + "\n" for document in documents)


def check_manifest_is_applied(node: Node, image: str) -> None:
    node.wait_node_ready()
    node.wait_pods_ready("e2e-net", "app=cni")
    found = node.get("daemonset -n e2e-net cni")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == image
    assert "kb" in {entry["manager"] for entry in node.get("pools.net.kb.test default --show-managed-fields")["metadata"]["managedFields"]}  # fmt: skip
    assert not node.exists(KB_CONFLIST)
    check_cluster_serves(node)


@pytest.mark.k8s_versions("1.35", "1.36")
def test_manifest_from_a_file(node: Node, kb_pyz: Path, k8s_version: str) -> None:
    network = {"podNetwork": {"plugin": "manifest", "manifest": "/root/net.yaml"}}
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=network))
    missing = init(node, check=False)
    assert missing.code == 3 and "PodNetworkManifest" in missing.stderr and "/root/net.yaml" in missing.stderr
    assert not node.exists("/etc/kubernetes/pki/ca.crt"), "found after the cluster was made, not before"
    node.write("/root/net.yaml", manifest(node))
    init(node)
    check_manifest_is_applied(node, WEB_IMAGE)
    init_again_is_a_no_op(node)


@pytest.mark.k8s_versions("1.35")
def test_manifest_from_a_url_with_a_mirror(
    node: Node, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    lab.registry.add_release(node.release)
    mirror = lab.registry.start().address
    put(node, kb_pyz, lab_config(k8s_version, address=node.address))
    (tmp_path / "net.yaml").write_text(manifest(node))
    with serving(lab, tmp_path) as log:
        init(node, f"--pod-network-manifest http://{lab.gateway}:8000/net.yaml --mirror http://{mirror}")
        assert "/net.yaml" in log.read_text()
    check_manifest_is_applied(node, WEB_IMAGE)  # the runtime alone knows of the mirror: names stay
    assert [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")] == []


@pytest.mark.k8s_versions("1.35", "1.36")
def test_manifest_whose_images_get_the_mirror_s_name(node: Node, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    """Who wishes it has the names rewritten: no image of that name is here, and the mirror alone can have served it."""
    lab.registry.add_release(node.release)
    mirror = lab.registry.start().address
    network = {"plugin": "manifest", "manifest": "/root/net.yaml", "imageRepository": mirror}
    kb = {"podNetwork": network, "mirror": {"endpoint": f"http://{mirror}"}}
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=kb))
    node.write("/root/net.yaml", manifest(node))
    init(node)
    image = WEB_IMAGE.replace("registry.k8s.io", mirror)
    check_manifest_is_applied(node, image)
    assert image in node.run("crictl images -o json").stdout
    init_again_is_a_no_op(node)


# ---- two IP versions


def give_ipv6(node: Node, lab: Lab) -> str:
    """An IPv6 address on the lab's network, and the gateway as its way out; skip where the kernel has no IPv6."""
    address = f"fd77::{node.spec.number}"
    try:
        lab.exec("ip -6 address replace fd77::1/64 dev br0 nodad")
        node.run(
            f"ip -6 address replace {address}/64 dev eth0 nodad && ip -6 route replace default via fd77::1 dev eth0"
        )
        node.run(
            "nft -f - <<'E'\ntable ip6 e2e { chain c { type nat hook postrouting priority 100; masquerade; }; }\ndelete table ip6 e2e\nE"
        )
    except LabError as error:
        pytest.skip(f"no IPv6 in this machine's network namespaces: {error}")
    return address


@pytest.mark.k8s_versions("1.35", "1.34")
def test_dual_stack(node: Node, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    ipv6 = give_ipv6(node, lab)
    put(node, kb_pyz, lab_config(
        k8s_version, address=node.address, kb=BRIDGE,
        init={"localAPIEndpoint": {"advertiseAddress": node.address},
              "nodeRegistration": {"kubeletExtraArgs": [{"name": "node-ip", "value": f"{node.address},{ipv6}"}]}},
        cluster={"networking": {"serviceSubnet": "10.96.0.0/16,fd00:10:96::/112",
                                "podSubnet": "10.244.0.0/16,fd00:10:244::/56"}},
    ))  # fmt: skip
    init(node)
    node.wait_node_ready()
    start_web_and_client(node, ipFamilyPolicy="RequireDualStack")
    assert fetch_by_name(node, "http://web.default.svc.cluster.local/") == PAGE
    first, second = node.get("service web")["spec"]["clusterIPs"]
    assert ipaddress.ip_address(first) in ipaddress.ip_network("10.96.0.0/16")
    assert ipaddress.ip_address(second) in ipaddress.ip_network("fd00:10:96::/112")
    assert fetch_by_name(node, f"http://{first}/") == PAGE
    assert fetch_by_name(node, f"http://[{second}]/") == PAGE
    addresses = [entry["ip"] for entry in node.get("pod client")["status"]["podIPs"]]
    assert ipaddress.ip_address(addresses[0]) in ipaddress.ip_network("10.244.0.0/16")
    assert ipaddress.ip_address(addresses[1]) in ipaddress.ip_network("fd00:10:244::/56")
    assert "masquerade" in node.run("nft list table ip6 kb_pods").stdout
    assert node.run("cat /proc/sys/net/ipv6/conf/all/forwarding").stdout.strip() == "1"
    init_again_is_a_no_op(node)


@pytest.mark.k8s_versions("1.35")
def test_ipv6_alone(node: Node, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    ipv6 = give_ipv6(node, lab)
    put(node, kb_pyz, lab_config(
        k8s_version, address=ipv6, kb=BRIDGE,
        init={"localAPIEndpoint": {"advertiseAddress": ipv6},
              "nodeRegistration": {"kubeletExtraArgs": [{"name": "node-ip", "value": ipv6}]}},
        cluster={"networking": {}},
    ))  # fmt: skip
    said = init(node).stderr
    assert "service subnet fd00:10:96::/112" in said and "pod network fd00:10:244::/56" in said
    node.wait_node_ready()
    start_web_and_client(node)
    assert fetch_by_name(node, "http://web.default.svc.cluster.local/") == PAGE
    assert node.get("service kubernetes")["spec"]["clusterIPs"] == ["fd00:10:96::1"]
    assert node.get("service -n kube-system kube-dns")["spec"]["clusterIPs"] == ["fd00:10:96::a"]
    assert all(":" in entry["ip"] for entry in node.get("pod client")["status"]["podIPs"])
    init_again_is_a_no_op(node)
