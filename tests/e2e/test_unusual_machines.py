"""What real machines are like: firewalls that drop what they forward, certificates and data in folders of one's own, two IP
versions, a kubelet with another root, a runtime that is dead, a user who is not root.

One cluster of two such nodes serves all tests here, which go on from each other in their order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .test_init_options import BRIDGE, INIT, init, put
from .test_pod_network import give_ipv6
from .world.web import PAGE, apply, render_pod, render_service, wait_service_account

VERSION = "1.35"
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
PORT = 8443
PKI, DATA, ROOT = "/etc/kubernetes/ssl", "/srv/etcd", "/data/kubelet"


@dataclass(frozen=True)
class Cluster:
    """ipv6: whether this machine has it, and the cluster then too."""

    cp1: Node
    w1: Node
    ipv6: bool


def has_ipv6(node: Node, lab: Lab) -> bool:
    try:
        give_ipv6(node, lab)
    except pytest.skip.Exception:
        return False
    return True


@pytest.fixture(scope="module")
def cluster(lab: Lab, kb_pyz: Path) -> Iterator[Cluster]:
    """Made by init alone; what goes wrong there is the first test's to say."""
    cp1, w1 = (lab.add_node(name, version=VERSION) for name in ("cp1", "w1"))
    # as Docker leaves a machine, and ufw
    for node in (cp1, w1):
        node.run("iptables -P FORWARD DROP && ip6tables -P FORWARD DROP")
    ipv6 = has_ipv6(cp1, lab) and has_ipv6(w1, lab)
    networking = {"podSubnet": "10.244.0.0/16", "serviceSubnet": "10.96.0.0/16"}
    if ipv6:
        networking = {
            name: f"{cidr},{own}"
            for (name, cidr), own in zip(networking.items(), ("fd00:10:244::/56", "fd00:10:96::/112"))
        }
    config = lab_config(
        VERSION,
        address=cp1.address,
        init={
            "localAPIEndpoint": {"advertiseAddress": cp1.address, "bindPort": PORT},
            "nodeRegistration": {"taints": [], "kubeletExtraArgs": [{"name": "root-dir", "value": ROOT}]},
        },
        cluster={"certificatesDir": PKI, "etcd": {"local": {"dataDir": DATA}}, "networking": networking},
        kb=BRIDGE,
    )
    put(cp1, kb_pyz, config)
    w1.scp(kb_pyz, "/root/kb.pyz")
    init(cp1)
    yield Cluster(cp1, w1, ipv6)
    for node in (cp1, w1):
        lab.remove_node(node)


def errors_of(node: Node) -> list[str]:
    return [
        line
        for line in node.run(f"{KB} doctor", check=False, timeout=120).stdout.splitlines()
        if line.startswith("error")
    ]


def fetch(node: Node, pod: str, address: str) -> str:
    """The page at an address, as a pod gets it."""
    shown = f"[{address}]" if ":" in address else address
    return str(
        wait_until(
            lambda: node.kubectl(
                f"exec {pod} -- /bin/busybox timeout 4 /bin/busybox wget -q -O - 'http://{shown}/'"
            ).strip(),
            what=f"the page at {shown} in pod {pod}",
            timeout_s=40,
            every_s=1,
        )
    )


# ---- the folders and the port are the cluster's own


def test_doctor_finds_a_healthy_node_in_its_own_folders(cluster: Cluster) -> None:
    assert errors_of(cluster.cp1) == []


def test_commands_find_certificates_and_port_by_the_node_s_files(cluster: Cluster) -> None:
    cp1 = cluster.cp1
    assert cp1.address in cp1.run(f"{KB} etcd members").stdout
    line = cp1.run(f"{KB} token create --print-join-command --control-plane").stdout
    assert f"join {cp1.address}:{PORT} " in line and "--control-plane" in line
    started = time.monotonic()
    uploaded = cp1.run(f"{KB} init phase upload-certs --upload-certs", timeout=90)
    assert time.monotonic() - started < 10 and uploaded.ok
    assert cp1.get("secret -n kube-system kubeadm-certs")["data"]["ca.key"]


def test_a_user_who_is_not_root_is_told_so(cluster: Cluster) -> None:
    cluster.cp1.run("install -m 755 kb.pyz /tmp/kb.pyz")
    for command, words in (
        ("status", r"cannot read /var/lib/kb\S*: Permission|Permission denied"),
        ("doctor", "IsPrivilegedUser"),
    ):
        told = cluster.cp1.run(f"runuser -u nobody -- python3 /tmp/kb.pyz {command}", check=False)
        assert told.code and re.search(words, told.output) and "sudo" in told.output, told.output
        assert "has not worked on this node" not in told.output
        assert told.output.count("error") < 4, told.output


# ---- a worker by the printed line


def test_a_worker_joins_by_the_printed_line_and_its_kubelet_finds_its_authority(cluster: Cluster) -> None:
    line = cluster.cp1.run(f"{KB} token create --print-join-command").stdout.strip()
    cluster.w1.run(f"{line} {IGNORE}", timeout=300)
    cluster.cp1.wait_node_ready("w1")
    assert cluster.w1.run(f"openssl x509 -noout -subject -in {PKI}/ca.crt").ok
    assert errors_of(cluster.w1) == []


def test_pods_reach_each_other_and_services_where_forwarding_is_dropped(cluster: Cluster) -> None:
    """In both directions, in all IP versions: over the nodes' own ways, through kb's rules."""
    cp1 = cluster.cp1
    wait_service_account(cp1)
    service = render_service("web-cp1")
    if cluster.ipv6:
        service["spec"]["ipFamilyPolicy"] = "RequireDualStack"
    apply(cp1, render_pod("web-cp1", node="cp1"), render_pod("web-w1", node="w1"), service)
    for name in ("web-cp1", "web-w1"):
        cp1.wait_pods_ready("default", f"app={name}")
    addresses = {
        name: [item["ip"] for item in cp1.get(f"pod {name}")["status"]["podIPs"]] for name in ("web-cp1", "web-w1")
    }
    cluster_ips = cp1.get("service web-cp1")["spec"]["clusterIPs"]
    assert len(cluster_ips) == len(addresses["web-w1"]) == (2 if cluster.ipv6 else 1)
    for address in (*addresses["web-cp1"], *cluster_ips, "web-cp1.default.svc.cluster.local"):
        assert fetch(cp1, "web-w1", address) == PAGE
    for address in addresses["web-w1"]:
        assert fetch(cp1, "web-cp1", address) == PAGE
    for node in (cp1, cluster.w1):
        assert "-P FORWARD DROP" in node.run("iptables -S FORWARD").stdout, "kb changed a policy"


def test_both_ends_of_a_dual_stack_cluster_take_the_same_way(cluster: Cluster) -> None:
    if not cluster.ipv6:
        pytest.skip("no IPv6 in this machine's network namespaces")
    for node in (cluster.cp1, cluster.w1):
        found = cluster.cp1.get(f"node {node.name}")["status"]["addresses"]
        assert len([item for item in found if item["type"] == "InternalIP"]) == 2
        routes = node.run("ip -6 route show proto 199").stdout
        assert "dev eth0" in routes and "cbr-vxlan" not in routes


def test_pods_that_a_firewall_cuts_off_are_told_by_doctor_and_by_a_second_init(cluster: Cluster) -> None:
    """The node itself reaches DNS and API all the while."""
    cp1 = cluster.cp1
    cp1.run("nft add table inet fw && nft 'add chain inet fw f { type filter hook forward priority 10; }'")
    cp1.run("nft add rule inet fw f ip saddr 10.244.0.0/16 drop")
    try:
        (told,) = errors_of(cp1)
        assert re.search(r"a pod on this node does not reach the cluster's DNS .* though the node itself does", told)
        assert "dropped where it is forwarded" in told
        started = time.monotonic()
        again = init(cp1, check=False)
        assert (
            again.code == 5
            and "does not reach the cluster's DNS" in again.stderr
            and "iptables -S FORWARD" in again.stderr
        )
        assert time.monotonic() - started < 100
    finally:
        cp1.run("nft delete table inet fw")
    assert "kb-probe" not in cp1.run("ip netns list").stdout
    init(cp1)
    assert errors_of(cp1) == []


# ---- reset


def test_a_reset_worker_says_that_its_node_stays(cluster: Cluster) -> None:
    told = cluster.w1.run(f"{KB} reset --force", timeout=300).output
    assert "Node w1 is still in the cluster" in told and "node remove w1" in told
    cluster.cp1.kubectl("delete node w1")
    assert cluster.w1.run("iptables -S").stdout.count("KB-FORWARD") == 0
    assert "-P FORWARD DROP" in cluster.w1.run("iptables -S FORWARD").stdout


FOREIGN = """\
mkdir -p /var/lib/kubelet/pki && cd /var/lib/kubelet/pki && openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 1 \
  -subj /O=system:nodes/CN=system:node:w1 && cat c k >kubelet-client-2024-01-01-00-00-00.pem && rm c k \
  && ln -sf kubelet-client-2024-01-01-00-00-00.pem kubelet-client-current.pem
"""
"""What a cluster of before left for its kubelet: not expired, and of no use here."""


def test_a_certificate_of_another_cluster_does_not_keep_a_worker_out(cluster: Cluster) -> None:
    """Neither before the first join nor, with a kubelet that runs with it, before the second."""
    w1, line = cluster.w1, cluster.cp1.run(f"{KB} token create --print-join-command").stdout.strip()
    for words in (FOREIGN, f"{FOREIGN}systemctl restart kubelet; sleep 2"):
        w1.run(words)
        told = w1.run(f"{line} {IGNORE}", timeout=120).output
        assert "kubelet-client-current.pem is not from this cluster" in told
        cluster.cp1.wait_node_ready("w1")
    assert w1.exists("/var/lib/kubelet/pki/kubelet-client-2024-01-01-00-00-00.pem"), "kb took away what is not its own"


def test_a_kubelet_that_is_answered_unauthorized_is_named_and_the_wait_goes_on_when_it_is_not(cluster: Cluster) -> None:
    """Under the name kubeadm, which leaves the certificate of before where it is."""
    w1, line = cluster.w1, cluster.cp1.run(f"{KB} token create --print-join-command").stdout.strip()
    w1.run("mkdir -p /root/units && cp -a /etc/systemd/system/kubelet.service* /root/units/")
    w1.run(f"{KB} reset --force", timeout=300)
    w1.run("cp -a /root/units/* /etc/systemd/system/ && systemctl daemon-reload")
    w1.run(FOREIGN)
    process = w1.popen(f"{line.replace('kb.pyz', 'kb.pyz --as-kubeadm -v=1')} {IGNORE} 2>&1")
    assert process.stdout is not None
    started, told = time.monotonic(), ""
    for text in process.stdout:
        told += text
        if "Unauthorized" in text:
            assert "kubelet-client-current.pem.off && systemctl restart kubelet" in text, text
            assert time.monotonic() - started < 30
            w1.run("cd /var/lib/kubelet/pki && mv kubelet-client-current.pem kubelet-client-current.pem.off")
            w1.run("systemctl restart kubelet")
            started = time.monotonic()
    assert process.wait(timeout=60) == 0 and "Unauthorized" in told, told
    assert time.monotonic() - started < 60
    # kubeadm brings no network: the node is there, and waits for one
    wait_until(lambda: cluster.cp1.get("node w1"), what="the node to register", timeout_s=60)


def test_reset_without_a_runtime_stops_at_once_and_says_how_to_go_on(cluster: Cluster) -> None:
    cp1 = cluster.cp1
    cp1.run("systemctl stop containerd && systemctl mask --runtime containerd")
    try:
        started = time.monotonic()
        told = cp1.run(f"{KB} reset --force", check=False, timeout=120)
        assert time.monotonic() - started < 20
        assert (
            told.code == 4
            and "does not answer" in told.output
            and "--skip-phases cleanup-node/remove-pods" in told.output
        )
        assert "pods could not be removed" not in told.output
        assert cp1.exists(f"{PKI}/ca.key") and cp1.exists(DATA)
    finally:
        cp1.run("systemctl unmask --runtime containerd && systemctl start containerd")


def test_reset_takes_back_the_kubelet_s_own_root_and_kb_s_rules(cluster: Cluster) -> None:
    cp1 = cluster.cp1
    assert ROOT in cp1.run("findmnt -lno TARGET").stdout, "the kubelet did not use that root"
    told = cp1.run(f"{KB} reset --force", timeout=300).output
    assert "everything that kb made is gone" in told
    assert ROOT not in cp1.run("findmnt -lno TARGET").stdout
    assert cp1.run(f"find {ROOT} -mindepth 1 2>/dev/null", check=False).stdout == ""
    assert cp1.run(f"find {PKI} {DATA} -mindepth 1 2>/dev/null", check=False).stdout == ""
    assert "KB-FORWARD" not in cp1.run("iptables -S; ip6tables -S").stdout
    assert "-P FORWARD DROP" in cp1.run("iptables -S FORWARD").stdout


# ---- a wait ends when its cause is gone


def test_images_that_come_again_are_not_waited_for(cluster: Cluster, lab: Lab) -> None:
    """The API server has every pod's image asked for anew, and the registry is away: the kubelet pauses between its tries for
    up to five minutes."""
    cp1 = cluster.cp1
    lab.registry.add_release(cp1.release)
    pulls = {
        "apiServer": {"extraArgs": [{"name": "enable-admission-plugins", "value": "NodeRestriction,AlwaysPullImages"}]}
    }
    config = lab_config(VERSION, address=cp1.address, cluster=pulls, kubelet={"serverTLSBootstrap": True}, kb=BRIDGE)
    cp1.write("/root/init.yaml", config)
    process = cp1.popen(f"{INIT} 2>&1")
    assert process.stdout is not None
    told, started = "", 0.0
    for text in process.stdout:
        told += text
        if "cannot be pulled" in text and not started:
            assert "the image is on this node" in text and "AlwaysPullImages" in text, text
            time.sleep(25)  # until the kubelet pauses for longer than anybody wants to wait
            lab.registry.start()
            started = time.monotonic()
    try:
        assert process.wait(timeout=60) == 0, told
        assert started and time.monotonic() - started < 45, told
        assert "can be pulled again: deleted pod kube-proxy-" in told
        assert re.search(r"its request csr-\S+ is Pending .*kubectl certificate approve csr-", told), told
    finally:
        lab.registry.stop()
