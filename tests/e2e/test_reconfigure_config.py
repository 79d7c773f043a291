"""`kb reconfigure` on real nodes: what it changes, what it refuses, and what it comes back from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, code_of, print_join
from .lab.node import Node, wait_until
from .lab.shell import Result
from .lab.static_pods import COMPONENTS, list_left, manifest, read_manifests, read_running, read_stored
from .test_static_pods import make_control_plane, make_three, told
from .world.podnet import connect_nodes

MakeNode = Callable[..., Node]
RECONFIGURE = f"{KB} reconfigure"
FLAG = "--max-requests-inflight=555"


def reconfigure(node: Node, words: str, *, check: bool = True) -> Result:
    result = node.run(f"{RECONFIGURE} {words} --yes", check=check, timeout=600)
    told(result)
    return result


def read_config(node: Node, name: str = "kubeadm-config", key: str = "ClusterConfiguration") -> str:
    return node.kubectl(f"-n kube-system get configmap {name} -o jsonpath={{.data.{key}}}")


def argv_of(node: Node, component: str) -> tuple[str, ...]:
    """The arguments of the container that runs; () while there is none."""
    found = read_running(node).get(component)
    return found.argv if found is not None else ()


def read_configz(node: Node) -> dict[str, Any]:
    shown = node.kubectl(f"get --raw /api/v1/nodes/{node.name}/proxy/configz")
    found: dict[str, Any] = json.loads(shown)["kubeletconfig"]
    return found


class Before:
    """A node as it was."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.texts, self.running, self.config = read_manifests(node), read_running(node), read_config(node)
        self.kubelet = node.read("/var/lib/kubelet/config.yaml")

    def check(self, *, same_containers: bool = True) -> None:
        assert read_manifests(self.node) == self.texts
        assert read_config(self.node) == self.config
        assert self.node.read("/var/lib/kubelet/config.yaml") == self.kubelet
        assert list_left(self.node) == []
        if same_containers:
            assert read_running(self.node) == self.running


# ---- one node


def test_one_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    first, stored = Before(node), read_stored(node)
    check_refused(node, first)
    check_flags(node, first)
    check_hand_edit(node)
    check_file(node)
    check_kubelet(node)
    check_proxies(node)
    assert stored <= read_stored(node)


def check_refused(node: Node, first: Before) -> None:
    """Nothing stops, and nothing is stored."""
    node.write("/root/subnets.yaml", "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking: {serviceSubnet: 10.111.0.0/16, podSubnet: 10.112.0.0/16}\n")  # fmt: skip
    for words, code, hint in (
        ("apiserver --set no-such-flag=1", "static-pod-refused", "unknown flag: --no-such-flag"),
        ("apiserver --set feature-gates=NoSuchGate=true", "static-pod-refused", "NoSuchGate"),
        ("apiserver --set service-cluster-ip-range=10.111.0.0/16", "not-changeable", "--service-cluster-ip-range"),
        ("--config subnets.yaml", "not-changeable", "networking.podSubnet cannot be changed"),
        ("kubelet --set maxPod=5", "bad-setting", 'did you mean "maxPods"?'),
        ("kubelet --set maxPods=many", "invalid-config", "must be a whole number"),
        ("kubelet --set maxPods=3", "kubelet-not-changed", "nothing was changed on this node"),
        ("apiserver --set anonymous-auth=false", "static-pod-refused", "the kubelet restarts it every few minutes"),
        ("apiserver --set bind-address=127.0.0.1", "static-pod-refused", "it would listen on 127.0.0.1:6443"),
        ("etcd --set quota-backend-bytes=1048576", "static-pod-refused", "etcd would take no write any more"),
    ):
        refused = reconfigure(node, words, check=False)
        assert code_of(refused) == code and hint in refused.output, words
        first.check()


def check_flags(node: Node, first: Before) -> None:
    planned = node.run(f"{RECONFIGURE} apiserver --set {FLAG[2:]} --dry-run", timeout=120)
    assert f"+    - {FLAG}" in told(planned)
    first.check()
    began = time.monotonic()
    reconfigure(node, f"apiserver --set {FLAG[2:]}")
    print(f"one flag on one node: {time.monotonic() - began:.1f} s", flush=True)
    assert FLAG in argv_of(node, "kube-apiserver") and "max-requests-inflight" in read_config(node)
    assert "nothing to do" in reconfigure(node, f"apiserver --set {FLAG[2:]}").output

    # a value with which it ends, which no trial finds
    now = Before(node)
    crash = reconfigure(node, "controller-manager --set 'controllers=*,none-of-this-name'", check=False)
    assert code_of(crash) == "static-pod-not-working" and "none-of-this-name" in crash.output
    now.check(same_containers=False)

    # one with which it works, and no node does: refused at once, and where that cannot be known before, taken back
    now = Before(node)
    began = time.monotonic()
    lost = reconfigure(node, "apiserver --set authorization-mode=RBAC", check=False)
    print(f"refused after {time.monotonic() - began:.1f} s", flush=True)
    assert code_of(lost) == "static-pod-refused" and "no role that is bound to system:nodes" in lost.output
    now.check()
    node.kubectl("create clusterrole some-leases --verb=update --resource=leases.coordination.k8s.io")
    node.kubectl("create clusterrolebinding some-nodes --clusterrole=some-leases --group=system:nodes")
    lost = reconfigure(node, "apiserver --set authorization-mode=RBAC", check=False)
    node.kubectl("delete clusterrolebinding/some-nodes clusterrole/some-leases")
    assert code_of(lost) == "static-pod-not-working" and "it refuses what this node's kubelet asks" in lost.output
    now.check(same_containers=False)

    reconfigure(node, "apiserver --unset max-requests-inflight")
    assert read_manifests(node)["kube-apiserver"] == first.texts["kube-apiserver"]
    assert read_config(node) == first.config


def check_hand_edit(node: Node) -> None:
    path = manifest("kube-scheduler")
    node.run(f"sed -i 's/^    - kube-scheduler$/&\\n    - --kube-api-burst=77/' {path}")
    wait_until(lambda: "--kube-api-burst=77" in argv_of(node, "kube-scheduler"), what="the hand edit", timeout_s=60)
    done = reconfigure(node, "scheduler --set kube-api-qps=66")
    assert "--kube-api-burst is 77, not unset; kept" in done.output
    assert {"--kube-api-burst=77", "--kube-api-qps=66"} <= set(argv_of(node, "kube-scheduler"))
    reconfigure(node, "scheduler --unset kube-api-qps --unset kube-api-burst")
    assert not {"--kube-api-burst=77", "--kube-api-qps=66"} & set(argv_of(node, "kube-scheduler"))


def check_file(node: Node) -> None:
    """v1beta3, with an audit policy, a volume, and a name in the certificate."""
    node.write("/etc/kubernetes/audit.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
    node.write("/root/audit.yaml", """apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
apiServer:
  certSANs: [api.example.com]
  extraArgs: {audit-policy-file: /etc/kubernetes/audit.yaml, audit-log-path: "-"}
  extraVolumes: [{name: audit, hostPath: /etc/kubernetes/audit.yaml, mountPath: /etc/kubernetes/audit.yaml, readOnly: true, pathType: File}]
""")  # fmt: skip
    value = json.loads(node.run(f"{RECONFIGURE} --config audit.yaml --yes -o json 2>/dev/null", timeout=600).stdout)
    assert {one["name"] for one in value["differences"]} == {
        "ConfigMap kube-system/kubeadm-config",
        manifest("kube-apiserver"),
    }
    assert "--audit-log-path=-" in argv_of(node, "kube-apiserver")
    shown = node.run(
        f"openssl s_client -connect {node.address}:6443 </dev/null 2>/dev/null | openssl x509 -noout -text"
    )
    assert "DNS:api.example.com" in shown.stdout
    assert "kubeadm.k8s.io/v1beta4" in read_config(node)


def check_kubelet(node: Node) -> None:
    before, running = Before(node), read_running(node)
    began = time.monotonic()
    reconfigure(node, "kubelet --set maxPods=123 --set evictionHard.memory.available=3%")
    print(f"the kubelet: {time.monotonic() - began:.1f} s", flush=True)
    seen = read_configz(node)
    assert (seen["maxPods"], seen["evictionHard"]["memory.available"]) == (123, "3%")
    assert read_running(node) == running, "pods run on"
    assert "maxPods: 123" in read_config(node, "kubelet-config", "kubelet")
    now = Before(node)
    kubelets = read_config(node, "kubelet-config", "kubelet")
    bad = reconfigure(node, "kubelet --set cpuManagerPolicy=static", check=False)
    assert code_of(bad) == "kubelet-not-changed" and "unable to determine reserved CPU" in bad.output
    now.check()
    assert read_config(node, "kubelet-config", "kubelet") == kubelets
    node.wait_node_ready()
    reconfigure(node, "kubelet --unset maxPods --unset evictionHard.memory.available")
    before.check()


def check_proxies(node: Node, runtime: str = "containerd") -> None:
    """Of the static pods, and of both services; and none of them any more."""
    first = read_manifests(node)
    began = time.monotonic()
    reconfigure(node, "proxy --set HTTPS_PROXY=http://10.77.0.1:9")
    print(f"proxies: {time.monotonic() - began:.1f} s", flush=True)
    assert all("HTTPS_PROXY" in text for name, text in read_manifests(node).items() if name != "etcd")
    for unit in ("kubelet", runtime):
        environ = node.run(f"tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value {unit})/environ").stdout
        assert "HTTPS_PROXY=http://10.77.0.1:9" in environ and node.address in environ, unit
    node.wait_node_ready()
    reconfigure(node, "proxy --unset https_proxy")
    assert read_manifests(node) == first
    for unit in ("kubelet", runtime):
        assert "_PROXY" not in node.run(f"cat /proc/$(systemctl show -p MainPID --value {unit})/environ").stdout, unit


# ---- a node of kubeadm's, and etcd


@pytest.mark.k8s_versions("1.35", "1.36")
def test_a_node_of_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Real kubeadm made it. It is changed before it is adopted, and afterwards; nothing of that is drift."""
    node = make_node("cp1", version=k8s_version, kubeadm=True)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    node.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    connect_nodes([node])
    node.wait_node_ready()
    node.wait_pods_ready("kube-system")
    first, stored = Before(node), read_stored(node)
    reconfigure(node, f"apiserver --set {FLAG[2:]}")
    assert FLAG in argv_of(node, "kube-apiserver") and "max-requests-inflight" in read_config(node)
    node.run(f"{KB} adopt")
    node.run(f"{KB} drift")
    check_hand_edit(node)
    reconfigure(node, "apiserver --unset max-requests-inflight")
    assert read_manifests(node) == first.texts and read_config(node) == first.config
    check_kubelet(node)
    check_etcd(node)
    assert read_manifests(node) == first.texts and read_config(node) == first.config
    assert stored <= read_stored(node)
    node.run(f"{KB} drift")


@pytest.mark.k8s_versions("1.35", "1.36")
def test_etcd_and_another_registry(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb=kb))
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    node.wait_pods_ready("kube-system")
    check_etcd(node)
    check_registry(node)
    node.run(f"{KB} drift")


ETCD_FLAGS = ("--max-txn-ops=300", "--quota-backend-bytes=4294967296")


def check_etcd(node: Node) -> None:
    """Its arguments are set, refused, taken back when it ends with them, and unset; no object is lost."""
    before, stored = Before(node), read_stored(node)
    for words, code, hint in (
        ("--set no-such-flag=1", "static-pod-refused", "kubectl -n kube-system exec etcd-cp1 -- etcd --help"),
        ("--set max-txn-op=300", "static-pod-refused", "Then: python3 kb.pyz reconfigure etcd --set max-txn-ops=300"),
        ("--set quota-backend-bytes=many", "static-pod-refused", "reconfigure etcd --set quota-backend-bytes=VALUE"),
        ("--set data-dir=/var/lib/other", "not-changeable", "--data-dir of etcd cannot be changed"),
    ):
        refused = reconfigure(node, f"etcd {words}", check=False)
        assert code_of(refused) == code and hint in refused.output, words
        before.check()
    reconfigure(node, " ".join(("etcd", *(f"--set {flag[2:]}" for flag in ETCD_FLAGS))))
    assert set(ETCD_FLAGS) <= set(argv_of(node, "etcd"))
    assert all(flag[2:].partition("=")[0] in read_config(node) for flag in ETCD_FLAGS)
    assert stored <= read_stored(node)

    # it reads this value, and ends with it
    now = Before(node)
    crash = reconfigure(node, "etcd --set heartbeat-interval=900", check=False)
    assert code_of(crash) == "static-pod-not-working" and "heartbeat" in crash.output
    now.check(same_containers=False)
    assert stored <= read_stored(node)
    reconfigure(node, "etcd --unset max-txn-ops --unset quota-backend-bytes")
    assert read_manifests(node) == before.texts and read_config(node) == before.config


REGISTRY = "registry.lab.test/mirror"


def check_registry(node: Node) -> None:
    """imageRepository: one that does not have the images is refused; another one, and back."""
    first = Before(node)
    names = node.run("ctr -n k8s.io images ls -q name~=^registry.k8s.io/").stdout.split()
    for name in (one for one in names if "@" not in one):
        node.run(f"ctr -n k8s.io images tag {name} {REGISTRY}/{name.rpartition('/')[2]}")
    node.wait_node_ready()
    for registry in ("registry.lab.test/nothing", REGISTRY, "registry.k8s.io"):
        node.write(
            "/root/images.yaml",
            f"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nimageRepository: {registry}\n",
        )
        if registry.endswith("nothing"):
            refused = reconfigure(node, "--config images.yaml", check=False)
            assert code_of(refused).startswith("image-"), refused.output
            first.check()
            continue
        reconfigure(node, "--config images.yaml")
        assert f"imageRepository: {registry}" in read_config(node)
        assert all(f"image: {registry}/{name}:" in text for name, text in read_manifests(node).items())
        images = node.kubectl("-n kube-system get ds/kube-proxy deploy/coredns -o jsonpath={..image}").split()
        assert all(image.startswith(f"{registry}/") for image in images) and len(images) >= 2, images
        node.wait_pods_ready("kube-system")
    assert read_manifests(node) == first.texts and read_config(node) == first.config


# ---- killed in the middle


@pytest.mark.k8s_versions("1.35")
def test_killed_in_the_middle(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    words = f"reconfigure apiserver --set {FLAG[2:]} --yes"
    watch = "until test -e /etc/kubernetes/manifests/.kube-apiserver.yaml.kb-former; do sleep 0.05; done"
    node.run(f"{KB} {words} >killed.log 2>&1 & p=$!; {watch}; kill -9 $p; true", timeout=600)
    other = reconfigure(node, "scheduler --set v=3", check=False)
    assert code_of(other) == "swap-cut-off"
    reconfigure(node, f"apiserver --set {FLAG[2:]}")
    assert FLAG in argv_of(node, "kube-apiserver") and "max-requests-inflight" in read_config(node)
    assert list_left(node) == []


# ---- a worker


@pytest.mark.k8s_versions("1.35")
def test_a_worker(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """It changes nothing of the cluster, and follows what is stored."""
    cp1 = make_control_plane(make_node, kb_pyz, k8s_version)
    w1 = make_node("w1", version=k8s_version)
    w1.scp(kb_pyz, "/root/kb.pyz")
    w1.run(f"{KB} {print_join(cp1)} {IGNORE}", timeout=600)
    for words in ("apiserver --set v=4", "kubelet --set maxPods=123"):
        refused = reconfigure(w1, words, check=False)
        assert code_of(refused) == "not-a-control-plane" and "reconfigure node" in refused.output
    done = reconfigure(cp1, "kubelet --set maxPods=123")
    assert f"on node w1: {RECONFIGURE} node" in done.output
    assert "nothing to do" not in reconfigure(w1, "node").output
    seen = json.loads(cp1.kubectl("get --raw /api/v1/nodes/w1/proxy/configz"))["kubeletconfig"]
    assert seen["maxPods"] == 123
    assert "nothing to do" in reconfigure(w1, "node").output
    assert "still to be done" not in reconfigure(cp1, "kubelet --set maxPods=123").output
    reconfigure(w1, "proxy --set HTTP_PROXY=http://10.77.0.1:9")
    assert "HTTP_PROXY=http://10.77.0.1:9" in w1.run("systemctl show -p Environment containerd").stdout
    reconfigure(w1, "proxy --unset HTTP_PROXY")
    assert "PROXY" not in w1.run("systemctl show -p Environment containerd").stdout


# ---- three


def test_three_control_planes(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = make_three(make_node, kb_pyz, k8s_version)
    took: list[float] = []
    for index, node in enumerate(nodes):
        began = time.monotonic()
        done = reconfigure(node, "node" if index else f"apiserver --set {FLAG[2:]}")
        took.append(time.monotonic() - began)
        assert FLAG in argv_of(node, "kube-apiserver")
        for later in nodes[index + 1 :]:
            assert f"on control plane {later.name}: {RECONFIGURE} node" in done.output
        assert index < 2 or "still to be done" not in done.output
    print(
        f"one flag on three control planes: {sum(took):.1f} s ({', '.join(f'{one:.1f}' for one in took)})", flush=True
    )

    # unset: the others tell what was stored before from a hand edit
    reconfigure(nodes[0], "apiserver --unset max-requests-inflight")
    for node in nodes[1:]:
        reconfigure(node, "node")
        assert not [word for word in argv_of(node, "kube-apiserver") if "max-requests-inflight" in word]

    done = reconfigure(nodes[0], "kubelet --set maxPods=123")
    assert f"on node {nodes[1].name}: {RECONFIGURE} node" in done.output
    for node in nodes[1:]:
        reconfigure(node, "node")
        assert read_configz(node)["maxPods"] == 123
    assert set(read_running(nodes[0])) == set(COMPONENTS)
