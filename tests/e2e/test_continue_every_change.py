"""kb is killed after every single change that it makes in a phase, to the machine or to the cluster; the same command comes to the
same end."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab import end_state
from .lab.changes import Moment, kill_at_every_change, run_watched
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, KEY, check_members, kubectl, print_join, read_members, start_cluster
from .lab.node import Node

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
LEASE = "lease -n kube-system kb-control-plane-join"
LOCAL = "kb-api.cluster.local:7443"
QUICK = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}, "proxy": {"disabled": True}}
"""Nothing here is about keys, DNS and Services."""
FEW = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}}


# ---- what has to be the same


class Ends:
    """The ends of one command on a node, all to be like the first: that of the run which was not disturbed.

    server: a control plane, which is asked for the tokens; reads: files that the kubelet has read too; last_word: what the
    command says when it is given again."""

    def __init__(
        self,
        node: Node,
        argv: Sequence[str],
        *,
        server: Node,
        reads: Sequence[str] = (),
        last_word: str = "nothing to do",
    ) -> None:
        self.node, self.argv, self.server, self.reads, self.last_word = node, argv, server, reads, last_word
        self.first: dict[str, Any] = {}
        node.scp(end_state.PROGRAM, "/root/end_state.py")

    def check(self, moment: str) -> None:
        self.server.wait_node_ready(self.node.name)
        found = self._read()
        assert set(found["statuses"].values()) == {"done"}, (moment, found["statuses"])
        assert found["stale"] == [], moment
        first = self.first = self.first or found
        differing = sorted(set(found["tree"]) ^ set(first["tree"]))
        assert not differing, (moment, differing)
        for what in ("records", "tokens"):
            assert found[what] == first[what], moment
        again = self.node.run(["python3", *self.argv], check=False, timeout=300)
        assert self.last_word in again.stderr, (moment, again.output)
        assert self._read()["tree"] == found["tree"], moment

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.node.run(["python3", "end_state.py", *self.reads]).stdout)
        return {**found, "tokens": read_tokens(self.server)}


def read_tokens(server: Node) -> list[list[str]]:
    """What kind of token each bootstrap token of the cluster is."""
    secrets = server.get("secrets -n kube-system --field-selector type=bootstrap.kubernetes.io/token")["items"]
    return sorted(sorted(f"{key}={value}" for key, value in secret["data"].items() if key.startswith(("usage", "desc", "auth")))
                  for secret in secrets)  # fmt: skip


def show(killed: Sequence[Moment], phases: Sequence[str]) -> None:
    for phase in phases:
        moments = [moment for moment in killed if moment.phase == phase]
        print(f"{phase}: killed after each of {len(moments)} changes", *moments, sep="\n  ")
        # the first and the last thing that a phase does is to say so
        assert len(moments) > 1 and moments[0] == Moment(phase, "save the state")
        assert moments[-1].change == "save the state", moments[-1]


def assert_among(words: Sequence[str], killed: Sequence[Moment]) -> None:
    for word in words:
        assert any(word in str(moment) for moment in killed), (word, killed)


# ---- join


def test_a_control_plane_that_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"], cluster=QUICK)
    argv = shlex.split(f"kb.pyz {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0")
    ends = Ends(cp2, argv, server=cp1)

    def check(moment: str) -> None:
        check_members(cp1, ["cp1", "cp2"])
        assert kubectl(cp1, f"get {LEASE}", check=False).code != 0, moment
        ends.check(moment)

    def restore() -> None:
        cp2.run(f"{KB} reset --force", timeout=300)
        check_members(cp1, ["cp1"])

    phases = ("join/etcd-join", "join/control-plane-prepare/control-plane")
    killed = kill_at_every_change(cp2, argv, phases, check=check, restore=restore)
    show(killed, phases)
    manifests = [
        f"manifests/{name}.yaml" for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ]
    assert_among(("/leases", "member/add", "member/promote", *manifests), killed)


def test_a_learner_goes_with_the_reset(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Killed when etcd's list has the new member, and before anything on the node says so: the reset knows of it all the same."""
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"], cluster=QUICK)
    argv = shlex.split(f"kb.pyz {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0")
    cp2.scp(end_state.PROGRAM.with_name("change_killer.py"), "/root/change_killer.py")
    url = "https://10.77.0.11:2379/v3/cluster/member/add"
    found = run_watched(cp2, argv, Moment("join/etcd-join", f"http_send POST {url}"))
    assert found[-1][0] == "killed", found
    assert not cp2.exists("/etc/kubernetes/manifests/etcd.yaml")
    assert [member["isLearner"] for member in read_members(cp1)].count(True) == 1
    cp2.run(f"{KB} reset --force", timeout=300)
    check_members(cp1, ["cp1"])
    assert not cp2.exists("/var/lib/kb/state.json")


def test_a_worker_that_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "w1"], cluster=QUICK)
    argv = shlex.split(f"kb.pyz {print_join(cp1)} {IGNORE}")
    ends = Ends(w1, argv, server=cp1)

    def restore() -> None:
        w1.run(f"{KB} reset --force", timeout=300)
        kubectl(cp1, "delete node w1 --ignore-not-found")

    phases = ("join/kubelet-start", "join/kubelet-wait-bootstrap", "join/pod-network")
    killed = kill_at_every_change(w1, argv, phases, check=ends.check, restore=restore)
    show(killed, phases)
    assert_among(
        ("systemctl restart kubelet", "remove /etc/kubernetes/bootstrap-kubelet.conf", "kb-routes.service"), killed
    )

    # the machine itself ends too, between the files and the start
    found = run_watched(w1, argv, Moment("join/kubelet-start", "write_file /var/lib/kubelet/config.yaml"))
    assert found[-1][0] == "killed", found
    w1.reboot()
    w1.run(["python3", *argv], timeout=300)
    ends.check("rebooted between the files and the kubelet's start")


# ---- init


def test_a_first_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, cluster=QUICK, kb=kb))
    argv = shlex.split(f"kb.pyz init --config init.yaml --upload-certs --soak 0 {IGNORE}")
    ends = Ends(node, argv, server=node)
    names = ("kubelet-start", "etcd/local", "control-plane/apiserver", "upload-certs", "bootstrap-token",
             "control-plane/controller-manager", "control-plane/scheduler", "pod-network")  # fmt: skip
    phases = [f"init/{name}" for name in names]

    def restore() -> None:
        node.run(f"{KB} reset --force", timeout=300)

    killed = kill_at_every_change(node, argv, phases, check=ends.check, restore=restore)
    show(killed, phases)
    # the first secret of the upload is the token that owns the second, kubeadm-certs
    owned = "init/upload-certs: http_send POST https://10.77.0.11:6443/api/v1/namespaces/kube-system/secrets (2)"
    assert_among(("manifests/etcd.yaml", owned, "configmaps/cluster-info", "kb-routes.service"), killed)


# ---- reconfigure endpoint


def test_another_endpoint(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """To a load balancer of the nodes' own, and back: each way is the other's restore."""
    node = make_first(make_node, kb_pyz, k8s_version)
    there = shlex.split(f"kb.pyz reconfigure endpoint {LOCAL} --load-balancer local")
    back = shlex.split("kb.pyz reconfigure endpoint --undo")
    # the name stays in the API server's certificate: that phase has nothing to do from the second time on
    names = ["preflight", "upload-config/kubeadm", "load-balancer/local", "load-balancer/keeper",
             "kubeconfig", "cluster-info", "kube-proxy", "verify"]  # fmt: skip
    phases = [f"reconfigure-endpoint/{name}" for name in names]

    def work(argv: Sequence[str]) -> None:
        # a static pod of the same contents that comes and goes counts as one that crashes, with longer and longer pauses
        node.run("systemctl restart kubelet")
        node.run(["python3", *argv], timeout=300)

    for argv in (there, back):  # what was there before kb is kept once
        work(argv)
    ends = Ends(node, there, server=node)
    killed = kill_at_every_change(node, there, phases, check=ends.check, restore=lambda: work(back))
    show(killed, phases)
    assert_among(("systemctl restart kb-load-balancer", "configmaps/kube-proxy", "/etc/hosts", "admin.conf"), killed)

    work(there)
    names = ["preflight", "upload-config/kubeadm", "kubeconfig", "cluster-info", "kube-proxy",
             "load-balancer/remove", "verify"]  # fmt: skip
    phases = [f"reconfigure-endpoint/{name}" for name in names]
    ends = Ends(node, back, server=node, last_word="nothing-to-undo")
    killed = kill_at_every_change(node, back, phases, check=ends.check, restore=lambda: work(there))
    show(killed, phases)
    assert_among(
        ("systemctl disable --now kb-load-balancer", "remove /etc/kubernetes/manifests/kb-load-balancer.yaml"), killed
    )


def test_another_endpoint_on_a_worker(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Its kubelet is started again with another server."""
    cp1, w1 = make_first(make_node, kb_pyz, k8s_version), make_node("w1", version=k8s_version)
    w1.scp(kb_pyz, "/root/kb.pyz")
    w1.run(f"{KB} {print_join(cp1)} {IGNORE}", timeout=600)
    there = shlex.split("kb.pyz reconfigure endpoint")
    names = ("preflight", "load-balancer/local", "load-balancer/keeper", "kubeconfig", "verify")
    phases = [f"reconfigure-endpoint/{name}" for name in names]

    def lead_there() -> None:
        cp1.run(f"{KB} reconfigure endpoint {LOCAL} --load-balancer local", timeout=300)

    def restore() -> None:
        cp1.run(f"{KB} reconfigure endpoint --undo", timeout=300)
        w1.run(f"{KB} reconfigure endpoint --undo", timeout=300)
        lead_there()

    lead_there()
    w1.run(["python3", *there], timeout=300)
    restore()
    ends = Ends(w1, there, server=cp1, reads=["/etc/kubernetes/kubelet.conf"])
    killed = kill_at_every_change(w1, there, phases, check=ends.check, restore=restore)
    show(killed, phases)
    assert_among(("write_file /etc/kubernetes/kubelet.conf", "systemctl restart kubelet"), killed)


def make_first(make_node: MakeNode, kb_pyz: Path, version: str) -> Node:
    """A control plane without controlPlaneEndpoint, and with kube-proxy."""
    node = make_node("cp1", version=version)
    node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=FEW, kb=kb))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    return node
