"""kb is killed after every single change that it makes in a phase, to the machine or to the cluster; the same command comes to the
same end. $KB_E2E_EVERY_CHANGE names more phases to go through (join/kubelet-start,...): each takes some minutes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Callable

import pytest

from .lab.changes import kill_at_every_change
from .lab.control_planes import IGNORE, KB, KEY, check_members, kubectl, print_join, start_cluster
from .lab.node import Node
from .test_continue import statuses_of

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
LEASE = "lease -n kube-system kb-control-plane-join"
PHASES = ("join/etcd-join", *filter(None, os.environ.get("KB_E2E_EVERY_CHANGE", "").split(",")))
TREE = r"""find /etc/kubernetes /etc/cni /etc/systemd/system /usr/local/lib/kb /var/lib/kb /var/lib/kubelet -maxdepth 3 -name pods -prune \
  -o -printf '%p %y %m\n' | grep -v -e kubelet-client-2 -e _state -e device-plugins -e plugins -e checkpoints | sort
cd /etc/kubernetes/manifests && sha256sum kube-*.yaml /var/lib/kubelet/*.yaml /var/lib/kubelet/*.env
grep -v initial-cluster= etcd.yaml | sha256sum; grep -o 'initial-cluster=.*' etcd.yaml | cut -d= -f2- | tr , '\n' | sort"""


@pytest.mark.parametrize("phase", PHASES)
def test_a_control_plane_that_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str, phase: str) -> None:
    cp1, cp2 = start_cluster(make_node, kb_pyz, k8s_version, names=["cp1", "cp2"])
    argv = shlex.split(f"kb.pyz {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0")
    trees: list[str] = []

    def check(moment: str) -> None:
        check_members(cp1, ["cp1", "cp2"])
        cp1.wait_node_ready("cp2")
        assert set(statuses_of(cp2).values()) == {"done"}, moment
        assert kubectl(cp1, f"get {LEASE}", check=False).code != 0, moment
        trees.append(cp2.run(TREE).stdout)
        assert sorted(set(trees[-1].splitlines()) ^ set(trees[0].splitlines())) == [], moment
        assert "nothing to do" in cp2.run(["python3", *argv], timeout=300).stderr, moment

    def restore() -> None:
        cp2.run(f"{KB} reset --force", timeout=300)
        check_members(cp1, ["cp1"])

    killed = kill_at_every_change(cp2, argv, phase, check=check, restore=restore)
    print(f"{phase}: killed after each of", *killed, sep="\n  ")
    if phase == "join/etcd-join":
        for word in ("/leases", "member/add", "manifests/etcd.yaml", "member/promote"):
            assert any(word in moment for moment in killed), (word, killed)
    # the first and the last thing that a phase does is to say so
    assert len(killed) > 3 and killed[0] == f"{phase}: save the state (1)" and "save the state" in killed[-1]
