"""kb drift on real nodes: nothing is told of nodes as kb and kubeadm leave them, and twelve things that somebody changed are named, and
put back or accepted."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.bundles import BARE
from .lab.config import lab_config
from .lab.control_planes import IGNORE
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release
from .test_adopt import IGNORE as IGNORE_ALL
from .test_join import join, make_token
from .test_static_pods import make_three
from .test_upgrade_kubelet import DROP_IN, behind, init, upgrade
from .test_upgrade_under_the_name_kubeadm import RESTS
from .world import apt_repository
from .world.podnet import connect_nodes

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
LONGEST_S = 2.0
REPLACED = "/usr/bin/kubelet /usr/bin/containerd /usr/sbin/runc"
TOOK_S: list[float] = []
"""How long each look took."""
__all__ = ("behind",)

# what somebody does to a node, by the name under which it is told; three of them only people can put right
CHANGES = {
    "kubelet/config.yaml": "echo 'maxPods: 77' >> /var/lib/kubelet/config.yaml",
    "kubelet/kubeadm-flags.env": "sed -i 's/\"$/ --v=4\"/' /var/lib/kubelet/kubeadm-flags.env",
    "sysctl/net.ipv4.ip_forward": "sysctl -w net.ipv4.ip_forward=0",
    "file/etc/sysctl.d/90-kb.conf": "echo '# mine' >> /etc/sysctl.d/90-kb.conf",
    "unit/kb-routes": "sed -i 's/^\\[Service\\]/&\\nNice=3/' /etc/systemd/system/kb-routes.service",
    "drop-in/kubelet/90-own.conf": f"mkdir -p $(dirname {DROP_IN}); printf '[Service]\\nNice=1\\n' > {DROP_IN}",
    "foreign/miner.yaml": "printf 'apiVersion: v1\\nkind: Pod\\n' > /etc/kubernetes/manifests/miner.yaml",
    "certificate/front-proxy-client": "mv /etc/kubernetes/pki/front-proxy-client.crt /root/",
    "package/crictl": "echo >> $(readlink -f $(which crictl))",
    "configmap/kube-system/coredns": "kubectl -n kube-system get cm coredns -o yaml | sed 's/cache 30/cache 5/' | kubectl replace --validate=false -f -",
    "daemonset/kube-system/kube-proxy": "kubectl -n kube-system set image ds/kube-proxy kube-proxy=example.org/kube-proxy:v1",
    "manifest/kube-scheduler": "sed -i 's/- --leader-elect=true/&\\n    - --v=3/' /etc/kubernetes/manifests/kube-scheduler.yaml",
}  # fmt: skip
LEFT_TO_PEOPLE = (
    "drop-in/kubelet/90-own.conf",
    "foreign/miner.yaml",
    "package/crictl",
)


def look(node: Node, *words: str) -> list[dict[str, Any]]:
    """What is told, and that the exit status fits."""
    began = time.monotonic()
    done = node.run(f"{KB} drift -o json {' '.join(words)}", check=False)
    took_s = time.monotonic() - began
    TOOK_S.append(took_s)
    assert done.code in (0, 1), done.output
    found = json.loads(done.stdout)
    assert found["notLooked"] == [], found
    assert done.code == (1 if found["drift"] else 0)
    print(f"{node.name}: {len(found['drift'])} rows in {took_s:.2f} s")
    return list(found["drift"])


def names_on(node: Node) -> list[str]:
    return sorted({row["name"] for row in look(node)})


@pytest.mark.k8s_versions("1.35", "1.36")
def test_twelve_changes_are_named_and_put_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    join(w1, cp1, *make_token(cp1))
    cp1.wait_pods_ready("kube-system")
    assert (names_on(cp1), names_on(w1)) == ([], [])
    cp1.run(f"{KB} certs renew all", timeout=300)
    cp1.run("systemctl restart kubelet")
    w1.run("systemctl restart kubelet")
    cp1.wait_node_ready("cp1")
    assert (names_on(cp1), names_on(w1)) == ([], [])

    for command in CHANGES.values():
        cp1.run(f"export KUBECONFIG=/etc/kubernetes/admin.conf; {command}")
    rows = look(cp1)
    assert {row["name"] for row in rows} - {"running/kubelet", "running/kube-scheduler"} == set(CHANGES), rows
    assert names_on(w1) == []
    assert all(
        row["since"] for row in rows if row["name"] in ("kubelet/config.yaml", "daemonset/kube-system/kube-proxy")
    )

    # one by its name, then the rest; what only people can put right is left, and told
    assert cp1.run(f"{KB} drift --fix sysctl/net.ipv4.ip_forward").code == 0
    assert cp1.run("cat /proc/sys/net/ipv4/ip_forward").stdout.strip() == "1"
    fixed = cp1.run(f"{KB} drift --fix --all --yes", check=False, timeout=600)
    assert fixed.code == 1, fixed.output
    assert names_on(cp1) == sorted(LEFT_TO_PEOPLE), fixed.output
    assert "--v=3" not in cp1.read("/etc/kubernetes/manifests/kube-scheduler.yaml")
    cp1.run("rm /etc/kubernetes/manifests/miner.yaml")
    for name in ("drop-in/kubelet/90-own.conf", "package/crictl"):
        cp1.run(f"{KB} drift --accept {name}")
    assert names_on(cp1) == []

    # a hand edit that is meant: silent from then on, until it is another one
    cp1.run(CHANGES["manifest/kube-scheduler"])
    wait_until(lambda: "running/kube-scheduler" not in names_on(cp1), what="the scheduler to restart", timeout_s=60)
    cp1.run(f"{KB} drift --accept manifest/kube-scheduler")
    assert names_on(cp1) == []
    cp1.run("sed -i s/--v=3/--v=5/ /etc/kubernetes/manifests/kube-scheduler.yaml")
    assert "manifest/kube-scheduler" in names_on(cp1)
    wait_until(lambda: "running/kube-scheduler" not in names_on(cp1), what="the scheduler to restart", timeout_s=60)
    look_by_timer(cp1)
    assert min(TOOK_S) < LONGEST_S, TOOK_S


def look_by_timer(node: Node) -> None:
    """It is off until it is switched on, and what it finds is in the journal and in an Event of the node."""
    status = f"{KB} drift schedule status"
    assert "is off" in node.run(status).stdout and not node.exists("/etc/systemd/system/kb-drift.timer")
    node.run(f"{KB} drift schedule on")
    assert "is on" in node.run(status).stdout and node.run("systemctl is-active kb-drift.timer").ok
    assert names_on(node) == [
        "manifest/kube-scheduler"
    ]  # the timer itself is none, and the kubelet has started the edit
    node.run("systemctl start kb-drift.service", check=False, timeout=60)
    events = [one for one in node.get("events -n default")["items"] if one["reason"] == "DriftFound"]
    assert [one["involvedObject"]["name"] for one in events] == [node.name], events
    assert "manifest/kube-scheduler" in events[0]["message"]
    assert "manifest/kube-scheduler" in node.journal("kb-drift")
    node.run(f"{KB} drift schedule off")
    assert "is off" in node.run(status).stdout and not node.exists("/etc/systemd/system/kb-drift.timer")


@pytest.mark.k8s_versions("1.35", "1.36")
def test_nothing_is_told_of_what_kubeadm_made(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A control plane and a worker of real kubeadm, adopted."""
    cp1, w1 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "w1"))
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE_ALL}", timeout=600)
    w1.run(f"{cp1.run('kubeadm token create --print-join-command').stdout.strip()} {IGNORE_ALL}", timeout=300)
    connect_nodes([cp1, w1])
    cp1.wait_node_ready("cp1")
    cp1.wait_pods_ready("kube-system")
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
        node.run(f"{KB} adopt")
        assert names_on(node) == []
    cp1.run(CHANGES["manifest/kube-scheduler"])
    assert "manifest/kube-scheduler" in names_on(cp1)


@pytest.mark.k8s_versions("1.35", "1.36")
def test_nothing_is_told_of_an_upgraded_worker(behind: tuple[Node, Node], lab: Lab, k8s_version: str) -> None:
    cp1, w1 = behind
    assert (names_on(cp1), names_on(w1)) == ([], [])
    upgrade(w1, "--no-drain")
    assert (names_on(cp1), names_on(w1)) == ([], [])
    w1.run("python3 kb.pyz upgrade rollback --yes", timeout=600)
    assert names_on(w1) == []


@pytest.mark.k8s_versions("1.35")
def test_nothing_is_told_where_kubeadm_upgraded_another(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Three control planes of kb's; real kubeadm upgrades the first one."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    assert [names_on(node) for node in nodes] == [[], [], []]
    first, second, third = nodes
    folder = first.offer_release("1.36")
    first.run(f"{folder}/kubeadm upgrade apply {find_release('1.36').version} -y {RESTS}", timeout=900)
    first.run("systemctl restart kubelet")
    first.wait_node_ready("cp1")
    assert [names_on(node) for node in nodes] == [[], [], []]

    # what is the cluster's is told on every control plane, and accepted for all of them
    first.run(f"export KUBECONFIG=/etc/kubernetes/admin.conf; {CHANGES['configmap/kube-system/coredns']}")
    second.run(CHANGES["manifest/kube-scheduler"])
    assert names_on(third) == ["configmap/kube-system/coredns"]
    assert "manifest/kube-scheduler" in names_on(second)
    third.run(f"{KB} drift --accept --all")
    second.run(f"{KB} drift --fix --all --yes", timeout=300)
    assert [names_on(node) for node in nodes] == [[], [], []]


@pytest.mark.k8s_versions("1.35", "1.36")
def test_nothing_is_told_of_what_apt_changed(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """The next revisions of kubelet, containerd and runc: other programs, other units, drop-ins in both of systemd's folders. What somebody
    does beside apt is told as before."""
    missing = [program for program in apt_repository.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install dpkg-dev gnupg openssl")
    release = find_release(k8s_version)
    repository = apt_repository.AptRepository(lab, release, tmp_path)
    repository.build()
    lab.registry.add_release(release)
    mirror = f"http://{lab.registry.start().address}"
    node = make_node("cp1", version=k8s_version, **BARE)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"packages": {"source": "apt"}, "podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, kb=kb))
    repository.start()
    try:
        repository.offer_to(node)
        node.run(f"{KB} init --config init.yaml --mirror {mirror} --soak 0 {IGNORE}", timeout=600)
        node.wait_node_ready()
        node.wait_pods_ready("kube-system")
        assert names_on(node) == []

        repository.revise()
        node.run("apt-get update -q && apt-mark unhold kubelet")
        before = node.run(f"sha256sum {REPLACED}").stdout
        node.run("DEBIAN_FRONTEND=noninteractive apt-get install -q -y kubelet containerd runc", timeout=300)
        assert not set(before.splitlines()) & set(node.run(f"sha256sum {REPLACED}").stdout.splitlines())
        assert "50-package.conf" in node.run("systemctl cat kubelet containerd").stdout
        node.run("systemctl daemon-reload && systemctl restart containerd kubelet")
        node.wait_node_ready()
        assert names_on(node) == ["package/kubelet"]  # the hold, and nothing else
        node.run("apt-mark hold kubelet")
        assert names_on(node) == []
        node.run(f"printf '[Service]\\nNice=1\\n' > {Path(DROP_IN).parent}/60-mine.conf")
        assert names_on(node) == ["drop-in/kubelet/60-mine.conf"]
        node.run("cp /usr/sbin/runc /root/runc && echo >>/root/runc && mv /root/runc /usr/sbin/runc")
        assert names_on(node) == ["drop-in/kubelet/60-mine.conf", "package/runc"]
    finally:
        repository.stop()


@pytest.mark.k8s_versions("1.35", "1.36")
def test_nothing_is_told_of_what_kb_reconfigured(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Each kind of change, and one on trial that is taken back."""
    cp1 = make_node("cp1", version=k8s_version)
    init(cp1, kb_pyz)
    cp1.wait_pods_ready("kube-system")
    for words in (
        "scheduler --set v=3",
        "kubelet --set maxPods=150",
        "kube-proxy --set conntrack.tcpEstablishedTimeout=1h0m0s",
        "coredns --set replicas=1",
        "scheduler --set v=5 --try 10m",
    ):
        cp1.run(f"{KB} reconfigure {words} --yes", timeout=600)
        assert names_on(cp1) == [], words
    cp1.run(f"{KB} reconfigure back", timeout=300)
    assert names_on(cp1) == []
