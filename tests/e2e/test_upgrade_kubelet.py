"""The kubelet's part of an upgrade on real nodes: a worker that is a minor behind its cluster, and every way in which that can fail."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab import settings
from .lab.bundles import make_bundle
from .lab.config import lab_config
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.shell import Result
from .test_join import IGNORE, join, make_token
from .world import web

MakeNode = Callable[..., Node]
FORMER = {"1.35": "1.34", "1.36": "1.35"}
BUNDLE = "/root/new.tar"
DROP_IN = "/etc/systemd/system/kubelet.service.d/90-own.conf"
UPGRADE = f"python3 kb.pyz upgrade node --bundle {BUNDLE} --yes"


def init(node: Node, kb_pyz: Path, *, cluster: Optional[dict[str, Any]] = None) -> None:
    """A cluster whose kubelets delete no image and evict no pod for want of space: a second release fills the disks of test nodes."""
    node.scp(kb_pyz, "/root/kb.pyz")
    spare = {"evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}}
    kubelet = {**spare, "imageGCHighThresholdPercent": 100}
    config = lab_config(node.release.minor, address=node.address, kubelet=kubelet, cluster=cluster)
    node.write("/root/init.yaml", config)
    node.run(f"python3 kb.pyz init --config init.yaml --soak 0 {IGNORE}", timeout=600)


@pytest.fixture
def behind(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> tuple[Node, Node]:
    return start_behind(make_node, lab, kb_pyz, version=k8s_version, folder=tmp_path)


def start_behind(make_node: MakeNode, lab: Lab, kb_pyz: Path, *, version: str, folder: Path) -> tuple[Node, Node]:
    """A control plane of the new minor and a worker whose kubelet is of the one before, with a bundle that has the new one."""
    release = settings.find_release(version)
    cp1 = make_node("cp1", version=version)
    w1 = make_node("w1", version=FORMER[version], containerd=release.facts.containerd)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    w1.load_images(version)
    join(w1, cp1, *make_token(cp1))
    w1.scp(make_bundle(lab, kb_pyz, release, folder / "new.tar"), BUNDLE)
    return cp1, w1


def kubelet_of(cp1: Node, name: str) -> str:
    return str(cp1.get(f"node {name}")["status"]["nodeInfo"]["kubeletVersion"])


def is_open(cp1: Node, name: str) -> bool:
    """Whether the node takes pods, and kb has left no mark on it."""
    node = cp1.get(f"node {name}")
    return not node["spec"].get("unschedulable") and "kb.io/cordoned" not in node["metadata"].get("annotations", {})


def deploy(cp1: Node, *, budget: bool) -> None:
    """Two pods on the worker, and perhaps a budget that lets none of them go."""
    web.wait_service_account(cp1)
    spec: dict[str, Any] = web.render_pod("web", node=None)["spec"]
    spec["nodeSelector"] = {"kubernetes.io/hostname": "w1"}
    labels = {"app": "drained"}
    template = {"metadata": {"labels": labels}, "spec": spec}
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "drained"},
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        }
    ]  # fmt: skip
    if budget:
        objects.append(
            {
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "all-of-them"},
                "spec": {"minAvailable": 2, "selector": {"matchLabels": labels}},
            }
        )  # fmt: skip
    web.apply(cp1, *objects)
    cp1.wait_pods_ready("default", "app=drained")


def upgrade(w1: Node, words: str = "", *, check: bool = True) -> Result:
    return w1.run(f"{UPGRADE} {words}", check=check, timeout=600)


def expect_back(cp1: Node, w1: Node, former: str) -> None:
    assert kubelet_of(cp1, "w1") == former and is_open(cp1, "w1")
    assert former in w1.run("kubelet --version").stdout
    cp1.wait_node_ready("w1")


@pytest.mark.k8s_versions("1.35", "1.36")
def test_a_worker_goes_forward_and_back(behind: tuple[Node, Node], k8s_version: str) -> None:
    """Drained, upgraded, once more without a change, taken back, upgraded again without a drain, finished."""
    cp1, w1 = behind
    former, wanted = (settings.find_release(minor).version for minor in (FORMER[k8s_version], k8s_version))
    deploy(cp1, budget=False)
    before = {pod["metadata"]["uid"] for pod in cp1.get("pods -l app=drained")["items"]}
    began = time.monotonic()
    done = upgrade(w1)
    print(f"the upgrade took {time.monotonic() - began:.0f} s")
    assert kubelet_of(cp1, "w1") == wanted and is_open(cp1, "w1"), done.output
    assert "pod-infra-container-image" not in w1.read("/var/lib/kubelet/kubeadm-flags.env")
    assert not before & {pod["metadata"]["uid"] for pod in cp1.get("pods -l app=drained")["items"]}
    assert "nothing to do" in upgrade(w1).output or kubelet_of(cp1, "w1") == wanted

    began = time.monotonic()
    w1.run("python3 kb.pyz upgrade rollback --yes", timeout=600)
    print(f"the way back took {time.monotonic() - began:.0f} s")
    expect_back(cp1, w1, former)

    upgrade(w1, "--no-drain")
    assert kubelet_of(cp1, "w1") == wanted
    w1.run("python3 kb.pyz upgrade finish")
    assert not w1.exists("/var/lib/kb/upgrade")
    cp1.wait_pods_ready("default", "app=drained")


@pytest.mark.k8s_versions("1.35")
def test_what_can_fail_leaves_the_node_as_it_was(behind: tuple[Node, Node], k8s_version: str) -> None:
    """A budget, a flag of the admin, a configuration that the new kubelet does not start with, kb killed half way: and then it works."""
    cp1, w1 = behind
    former, wanted = (settings.find_release(minor).version for minor in (FORMER[k8s_version], k8s_version))
    deploy(cp1, budget=True)

    refused = upgrade(w1, "--drain-timeout 10s", check=False)
    assert refused.code == 5 and "all-of-them" in refused.output, refused.output
    expect_back(cp1, w1, former)
    cp1.kubectl("delete pdb all-of-them")

    w1.write(DROP_IN, '[Service]\nEnvironment="KUBELET_EXTRA_ARGS=--no-such-flag=1"\n')
    refused = upgrade(w1, check=False)
    assert refused.code == 4 and DROP_IN in refused.output and "--no-such-flag" in refused.output, refused.output
    expect_back(cp1, w1, former)
    w1.run(["rm", DROP_IN])

    config = cp1.get("configmap kubelet-config -n kube-system")
    good = config["data"]["kubelet"]
    _set_config(cp1, good + "memorySwap:\n  swapBehavior: NoSuchBehavior\n")
    began = time.monotonic()
    failed = upgrade(w1, check=False)
    print(f"not started, and back, after {time.monotonic() - began:.0f} s")
    assert failed.code == 5 and re.search(r"(?i)swapBehavior", failed.output) and former in failed.output, failed.output
    expect_back(cp1, w1, former)
    assert time.monotonic() - began < 90 + 60
    _set_config(cp1, good)

    _kill_when(w1, lambda: w1.run("systemctl is-active kubelet", check=False).stdout.strip() == "inactive")
    upgrade(w1)
    assert kubelet_of(cp1, "w1") == wanted and is_open(cp1, "w1")
    w1.run("python3 kb.pyz upgrade rollback --yes", timeout=600)
    expect_back(cp1, w1, former)


def _set_config(cp1: Node, text: str) -> None:
    cp1.write("/root/kubelet.yaml", text)
    made = "kubectl -n kube-system create configmap kubelet-config --from-file=kubelet=/root/kubelet.yaml --dry-run=client -o yaml"
    cp1.run(f"export KUBECONFIG=/etc/kubernetes/admin.conf; {made} | kubectl replace -f -")


def _kill_when(w1: Node, is_so: Callable[[], bool]) -> None:
    """Run the upgrade, and kill it at that moment."""
    started = w1.popen(f"echo $$ >/run/kb-upgrade.pid; exec {UPGRADE}")
    wait_until(is_so, what="the kubelet to be stopped", timeout_s=120, every_s=0.05)
    w1.run("kill -KILL $(cat /run/kb-upgrade.pid)", check=False)
    started.wait(timeout=60)


# ---- a control plane


@pytest.mark.k8s_versions("1.35", "1.36")
def test_a_control_plane_goes_back_until_the_cluster_has_moved_on(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """Its static pods come back while the cluster stores the former version; afterwards that is refused, and the kubelet alone goes back."""
    release = settings.find_release(k8s_version)
    former, wanted = settings.find_release(FORMER[k8s_version]).version, release.version
    cp1 = make_node("cp1", version=FORMER[k8s_version], containerd=release.facts.containerd)
    init(cp1, kb_pyz)
    cp1.load_images(k8s_version)
    cp1.scp(make_bundle(lab, kb_pyz, release, tmp_path / "new.tar"), BUNDLE)
    apply = f"python3 kb.pyz upgrade apply {wanted} --bundle {BUNDLE} --yes"
    server = "/etc/kubernetes/manifests/kube-apiserver.yaml"

    cp1.run(f"{apply} --skip-phases upload-config,kubeconfig,kubelet-config,bootstrap-token,addon,gate", timeout=900)
    assert f":{wanted}" in cp1.read(server)
    began = time.monotonic()
    cp1.run("python3 kb.pyz upgrade rollback --yes", timeout=600)
    print(f"the static pods were back after {time.monotonic() - began:.0f} s")
    assert f":{former}" in cp1.read(server) and kubelet_of(cp1, "cp1") == former and is_open(cp1, "cp1")

    began = time.monotonic()
    cp1.run(apply, timeout=900)
    print(f"the upgrade took {time.monotonic() - began:.0f} s")
    assert f":{wanted}" in cp1.read(server) and kubelet_of(cp1, "cp1") == wanted and is_open(cp1, "cp1")
    refused = cp1.run("python3 kb.pyz upgrade rollback --yes", check=False)
    assert refused.code == 4 and "rollback-unsafe" in refused.output and "--kubelet-only" in refused.output, (
        refused.output
    )
    assert f":{wanted}" in cp1.read(server) and kubelet_of(cp1, "cp1") == wanted
    cp1.run("python3 kb.pyz upgrade rollback --kubelet-only --yes", timeout=600)
    assert f":{wanted}" in cp1.read(server)
    expect_former_kubelet(cp1, former)


def expect_former_kubelet(cp1: Node, former: str) -> None:
    assert kubelet_of(cp1, "cp1") == former and is_open(cp1, "cp1")
    cp1.wait_node_ready("cp1")
