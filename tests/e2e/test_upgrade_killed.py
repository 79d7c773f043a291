"""`kb upgrade apply`, `node` and `rollback` are killed after what they change: the same command comes to its end, and nothing is lost. With
KB_E2E_EVERY_KILL=1 after every single change, each from the start, which takes hours, and in turn, which takes half an hour; else in each
phase, after what matters there."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

from .lab import change_killer
from .lab.bundles import make_bundle
from .lab.changes import kill_after_each_change_in_turn, kill_at_every_change
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, wait_well
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .lab.static_pods import fill_store, list_left, read_manifests, read_stored
from .test_day_two_killed import COUNTED, EVERY, only, show
from .test_upgrade_kubelet import BUNDLE, FORMER, deploy, is_open, kubelet_of, start_behind

pytestmark = pytest.mark.k8s_versions("1.36")
MakeNode = Callable[..., Node]
PROGRAMS = ("upgrade/upgrade.json", "upgrade/programs/kubelet")
KUBELET = ("http_send PATCH .*/nodes/", "systemctl stop kubelet", r"/bin/kubelet \(")


def read_upgrade(node: Node) -> dict[str, object]:
    found: dict[str, object] = json.loads(node.read("/var/lib/kb/upgrade/upgrade.json"))
    return found


def has_turn(server: Node, name: str) -> bool:
    """Whether the node still says that it is being upgraded."""
    return "kb.io/upgrade" in server.get(f"node {name}")["metadata"].get("annotations", {})


def expect_upgraded(server: Node, node: Node, version: str, moment: str) -> None:
    """The kubelet, what is kept, and no mark on the node."""
    wait_until(lambda: kubelet_of(server, node.name) == version, what=f"kubelet {version}, {moment}", timeout_s=30)
    assert is_open(server, node.name) and not has_turn(server, node.name), moment
    kept = read_upgrade(node)
    assert (kept["wanted"], kept["status"]) == (version, "done"), (moment, kept)
    assert not node.exists("/var/lib/kb/upgrade/programs"), moment
    server.wait_node_ready(node.name)


@dataclass(frozen=True)
class Sweep:
    """A control plane of the former minor, saved, with a bundle of the new one. argv: its upgrade."""

    node: Node
    argv: tuple[str, ...]
    wanted: str
    stored: set[str]

    def check(self, moment: str) -> None:
        node, wanted, facts = self.node, self.wanted, find_release(self.wanted).facts
        expect_upgraded(node, node, wanted, moment)
        texts = read_manifests(node)
        assert all(f":{wanted}" in text for name, text in texts.items() if name != "etcd"), moment
        assert f":{facts.etcd[-1]}" in texts["etcd"], moment
        assert list_left(node) == [], moment
        assert self.stored <= read_stored(node), moment
        images = node.kubectl("-n kube-system get deploy,ds -o jsonpath={..image}")
        assert f"kube-proxy:{wanted}" in images and f"coredns:{facts.coredns}" in images, (moment, images)
        config = node.get("configmap kubeadm-config -n kube-system")["data"]["ClusterConfiguration"]
        assert f"kubernetesVersion: {wanted}" in config, moment
        again = node.run(["python3", *self.argv], check=False, timeout=300)
        assert again.ok and "run with these manifests already" in again.output, (moment, again.output)

    def restore(self) -> None:
        self.node.restore_disk()
        wait_well(self.node)


@pytest.fixture
def sweep(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> Sweep:
    release = find_release(k8s_version)
    former, wanted = FORMER[k8s_version], release.version
    node = make_node("cp1", version=former, containerd=release.facts.containerd)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(former, address=node.address, kb={"podNetwork": {"plugin": "bridge"}}))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()
    node.load_images(k8s_version)
    node.scp(make_bundle(lab, kb_pyz, release, tmp_path / "new.tar"), BUNDLE)
    fill_store(node, COUNTED)
    stored = read_stored(node)
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    node.save_disk()
    wait_well(node)
    argv = shlex.split(f"kb.pyz upgrade apply {wanted} --bundle {BUNDLE} --yes")
    return Sweep(node, tuple(argv), wanted, stored)


def test_a_control_plane(sweep: Sweep) -> None:
    few = only(
        *PROGRAMS,
        "before-.*tar",
        "clusterrolebindings/kubeadm%3Acluster-admins",
        "write_file /etc/kubernetes/pki/etcd/server.key",
        r"\.etcd\.yaml\.kb-former",
        "kube-apiserver.yaml.kb-next ",
        "swap/swap.json",
        "configmaps/kube",
        *KUBELET,
        "deployments/coredns",
        "daemonsets/kube-proxy",
    )
    show(kill_at_every_change(sweep.node, sweep.argv, (), check=sweep.check, restore=sweep.restore, wanted=few))


@pytest.mark.skipif(not EVERY, reason="it takes half an hour: KB_E2E_EVERY_KILL=1")
def test_a_control_plane_that_is_killed_after_each_change_in_turn(sweep: Sweep) -> None:
    """One upgrade, cut off as often as it has changes."""
    for_s = float(os.environ.get("KB_E2E_KILL_FOR_S", "inf"))
    phases = os.environ.get("KB_E2E_KILL_IN", "")
    killed = kill_after_each_change_in_turn(sweep.node, sweep.argv, phases=phases, for_s=for_s)
    print(f"killed {len(killed)} times", flush=True)
    sweep.check("killed after each change in turn")
    counts = Counter(phase.rpartition("/")[2] for phase, _ in killed)
    print(dict(counts), flush=True)
    if for_s == float("inf") and not phases:
        assert min(counts["programs"], counts["control-plane"], counts["kubelet-config"]) > 5, counts


def test_a_worker(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """Drained, with a kubelet of another minor; what takes it back each time is `kb upgrade rollback`."""
    cp1, w1 = start_behind(make_node, lab, kb_pyz, version=k8s_version, folder=tmp_path)
    former, wanted = (find_release(minor).version for minor in (FORMER[k8s_version], k8s_version))
    deploy(cp1, budget=False)

    def check(moment: str) -> None:
        expect_upgraded(cp1, w1, wanted, moment)

    def take_back() -> None:
        w1.run(f"{KB} upgrade rollback --yes", timeout=600)
        expect_back("taken back")

    def expect_back(moment: str) -> None:
        assert kubelet_of(cp1, "w1") == former and is_open(cp1, "w1") and not has_turn(cp1, "w1"), moment
        assert read_upgrade(w1)["status"] == "taken back", moment
        cp1.wait_node_ready("w1")

    argv = shlex.split(f"kb.pyz upgrade node --bundle {BUNDLE} --yes")
    show(kill_at_every_change(w1, argv, (), check=check, restore=take_back, wanted=only(*PROGRAMS, *KUBELET)))

    def upgrade() -> None:
        w1.run(["python3", *argv], timeout=600)
        check("upgraded again")

    upgrade()
    back = shlex.split("kb.pyz upgrade rollback --yes")
    few = only(*KUBELET)
    show(kill_at_every_change(w1, back, (), check=expect_back, restore=upgrade, wanted=few))
