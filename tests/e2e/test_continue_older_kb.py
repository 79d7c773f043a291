"""kb.pyz is exchanged for a newer one between two runs, as an operator does: $KB_E2E_BEFORE_PYZ is the older one. It makes a node
whole, is killed, fails or adopts; the newer one goes on, leaves alone what is done, joins others to it and takes it back."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab import killer
from .lab.config import lab_config
from .lab.control_planes import (
    IGNORE,
    KB,
    KEY,
    check_members,
    join_control_plane,
    join_worker,
    print_join,
    start_cluster,
)
from .lab.node import Node, wait_until
from .test_adopt import kubeadm_s_own
from .test_beside_kubeadm import read_living
from .test_continue import Keys, assert_no_op, init, look, put, put_config, read_state, reset, statuses_of, strike
from .test_reset import assert_as_before, list_everything
from .world.podnet import connect_nodes
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
LISTING = (
    "cd / && find etc var/lib/kb var/lib/kubelet/*.* usr/local -type f -printf '%p %T@ %m\\n'"
    " | grep -v -e ^var/lib/kb/lock -e ^var/lib/kb/state.json -e ^var/lib/kb/records/ -e ^usr/local/lib/kb/kb.pyz | sort"
)
"""What stays as it is. kb's own copy is the newer one by then; its services are started from it, and the run is recorded."""


@pytest.fixture(scope="module")
def older() -> Path:
    """The zipapp that was there before."""
    given = os.environ.get("KB_E2E_BEFORE_PYZ", "")
    if not given:
        pytest.skip("KB_E2E_BEFORE_PYZ names no older kb.pyz")
    return Path(given)


def exchange(kb_pyz: Path, *nodes: Node) -> None:
    """The newer kb, in the place of the older."""
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")


def run_killed(node: Node, argv: list[str], phase: int, delay_s: float) -> dict[str, Any]:
    """Any command, killed in that phase; what killer.py says."""
    node.scp(killer.PROGRAM, "/root/killer.py")
    wish = {"argv": argv, "phase": phase, "delay_s": delay_s, "signal": int(signal.SIGKILL)}
    found: dict[str, Any] = json.loads(node.run(["python3", "killer.py", json.dumps(wish)], timeout=600).stdout)
    return found


def examine(node: Node) -> None:
    examined = node.run(f"{KB} doctor", check=False)
    assert examined.code == 0 and "\n0 errors, " in examined.stdout, examined.output


def test_a_whole_cluster(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """Control planes and a worker of the older kb: kb's services run from the newer one, and nothing else changes; more of both
    join; all of it is taken back."""
    cp1, cp2, w1, cp3, w2 = start_cluster(make_node, older, k8s_version, names=["cp1", "cp2", "w1", "cp3", "w2"])
    join_control_plane(cp2, cp1)
    join_worker(w1, cp1)
    for name in ("cp1", "cp2", "w1"):
        cp1.wait_node_ready(name)
    lines = {cp1: f"init --config init.yaml --upload-certs --soak 0 {IGNORE}"}
    lines[cp2] = f"{print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0"
    lines[w1] = f"{print_join(cp1)} {IGNORE}"
    exchange(kb_pyz, cp1, cp2, w1, cp3, w2)
    for node, line in lines.items():
        before, recorded = node.run(LISTING).stdout, statuses_of(node)
        exchanged = node.run(f"{KB} {line} -v 1", timeout=300)
        assert re.findall(r"^ +wrote (\S+)", exchanged.stderr, re.MULTILINE) == ["/usr/local/lib/kb/kb.pyz"], (
            exchanged.output
        )
        result = node.run(f"{KB} {line} -v 1", timeout=300)
        assert "nothing to do" in result.stderr, result.output
        assert "drift" not in result.stderr and "changed since the last run" not in result.stderr, result.output
        assert node.run(LISTING).stdout == before
        assert statuses_of(node) == recorded
        assert node.run(f"{KB} status").stdout.startswith(f"node {node.name} of cluster kubernetes\n")
    for node in (cp1, cp2, w1):
        examine(node)

    join_control_plane(cp3, cp1)
    join_worker(w2, cp1)
    cp1.wait_node_ready("cp3")
    cp1.wait_node_ready("w2")
    check_members(cp1, ["cp1", "cp2", "cp3"])
    check_cluster_serves(cp1, server="w2", client="w1")

    for node in (w1, cp2):
        node.run(f"{KB} reset --force", timeout=300)
        assert node.run("find /etc/kubernetes /var/lib/kubelet /var/lib/kb -type f", check=False).stdout == ""
    check_members(cp1, ["cp1", "cp3"])


def test_kb_alone(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """A newer kb for what runs of kb on a node: the units run it, nothing of Kubernetes restarts, and nothing has drifted."""
    (cp1,) = start_cluster(make_node, older, k8s_version, names=["cp1"])
    cp1.wait_node_ready()
    exchange(kb_pyz, cp1)
    units, pods = read_starts(cp1), cp1.run("crictl ps -q | sort").stdout
    assert "nothing to do" not in cp1.run(f"{KB} upgrade self", timeout=120).stderr
    digests = cp1.run("sha256sum /root/kb.pyz /usr/local/lib/kb/kb.pyz").stdout.split()[::2]
    assert digests[0] == digests[1]
    now = read_starts(cp1)
    assert set(now) == set(units) and not set(now.items()) & set(units.items())
    assert cp1.run("crictl ps -q | sort").stdout == pods
    assert "nothing to do" in cp1.run(f"{KB} upgrade self", timeout=120).stderr
    assert read_starts(cp1) == now
    cp1.run(f"{KB} drift")
    examine(cp1)
    cp1.run(f"{KB} reset --force", timeout=300)
    assert cp1.run("find /usr/local/lib/kb /etc/systemd/system -name 'kb*'", check=False).stdout == ""


def read_starts(node: Node) -> dict[str, str]:
    """kb's services that run -> when each was started."""
    names = node.run("systemctl list-units --plain --no-legend --state=running 'kb-*.service'").stdout
    units = [line.split()[0] for line in names.splitlines()]
    assert "kb-routes.service" in units
    return {
        unit: node.run(f"systemctl show -P ExecMainStartTimestampMonotonic {unit}").stdout.strip() for unit in units
    }


def test_killed(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """The older kb is killed at phases all along; the newer one comes to the end, or takes back what there is."""
    node = make_node("cp1", version=k8s_version)
    put(node, older)
    bare = list_everything(node)
    for phase, delay_s in ((5, 0.05), (12, 0.0), (23, 1.0), (28, 0.05), (33, 0.2)):
        exchange(older, node)
        found = strike(node, phase=phase, delay_s=delay_s)
        assert found["status"] == -signal.SIGKILL, found["lines"][-5:]
        print(phase, delay_s, [name for name, status in statuses_of(node).items() if status != "done"])
        keys = Keys()
        keys.check(found["keys"], f"the older kb, killed in phase {phase}")
        exchange(kb_pyz, node)
        init(node)
        keys.check(look(node)["keys"], f"after a kill in phase {phase}")
        node.wait_node_ready()
        assert_no_op(node)
        assert set(statuses_of(node).values()) == {"done"}
        reset(node)
        assert_as_before(node, bare)
    for phase in (3, 13, 22):
        exchange(older, node)
        strike(node, phase=phase, delay_s=0.05)
        exchange(kb_pyz, node)
        reset(node)
        assert_as_before(node, bare)


def test_failed(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """The disk was full for the older kb, or the kubelet did not stay up; with that in order the newer one goes on."""
    node = make_node("cp1", version=k8s_version)
    put(node, older)
    node.run("mkdir -p /etc/kubernetes && mount -t tmpfs -o size=72k,mode=755 tmpfs /etc/kubernetes")
    failed = init(node, check=False)
    assert failed.code == 4 and "cause:  the disk is full" in failed.output, failed.output
    (name,) = (name for name, status in statuses_of(node).items() if status == "failed")
    print(name)
    node.run("mount -o remount,size=64m /etc/kubernetes")
    keys = Keys()
    keys.check(look(node)["keys"], "the older kb, with a full disk")
    exchange(kb_pyz, node)
    init(node)
    keys.check(look(node)["keys"], "after a full disk")
    node.wait_node_ready()
    assert_no_op(node)

    # a kubelet that ends at once, on the machines that the lab knows
    reset(node)
    exchange(older, node)
    put_config(node, kubelet={"failCgroupV1": True})
    failed = init(node, check=False)
    assert "failed" in statuses_of(node).values(), failed.output
    print([name for name, status in statuses_of(node).items() if status == "failed"])
    exchange(kb_pyz, node)
    put_config(node)
    init(node)
    node.wait_node_ready()
    assert_no_op(node)
    check_cluster_serves(node)


def test_a_join_that_did_not_end(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """A worker and a control plane whose joins were killed, or could not reach the cluster half way."""
    cp1, cp2, w1 = start_cluster(make_node, older, k8s_version, names=["cp1", "cp2", "w1"])
    exchange(kb_pyz, cp1)
    lines = {cp2: f"{KB} {print_join(cp1, f'--certificate-key {KEY}')} {IGNORE} --soak 0", w1: f"{KB} {print_join(cp1)} {IGNORE}"}  # fmt: skip
    for node, phase, delay_s in ((w1, 2, 0.3), (w1, 3, 0.4), (cp2, 4, 0.1), (cp2, 7, 0.6), (cp2, 9, 0.2)):
        exchange(older, node)
        found = run_killed(node, shlex.split(lines[node]), phase, delay_s)
        assert found["status"] == -signal.SIGKILL, found["lines"][-5:]
        print(node.name, phase, delay_s, [name for name, status in statuses_of(node).items() if status != "done"])
        exchange(kb_pyz, node)
        node.run(lines[node], timeout=600)
        cp1.wait_node_ready(node.name)
        assert "nothing to do" in node.run(lines[node], timeout=300).stderr
        check_members(cp1, ["cp1", "cp2"] if cp1.kubectl("get node cp2 --ignore-not-found") else ["cp1"])
        node.run(f"{KB} reset --force", timeout=300)
        check_members(cp1, ["cp1"])
        cp1.kubectl(f"delete node {node.name}")


def test_adopted(make_node: MakeNode, older: Path, kb_pyz: Path, k8s_version: str) -> None:
    """kubeadm made it and the older kb adopted it: the newer one knows it as adopted, and adds what is kb's own."""
    cp1, w1 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "w1"))
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    w1.run(f"{cp1.run('kubeadm token create --print-join-command').stdout.strip()} {IGNORE}", timeout=300)
    connect_nodes([cp1, w1])
    cp1.wait_node_ready("cp1")
    cp1.wait_node_ready("w1")
    cp1.wait_pods_ready("kube-system")
    for node, workflow in ((cp1, "init"), (w1, "join")):
        exchange(older, node)
        before = read_living(node)
        assert kubeadm_s_own(json.loads(node.run(f"{KB} adopt -o json").stdout)["left"]) == []
        recorded = read_state(node)
        exchange(kb_pyz, node)
        status = node.run(f"{KB} status").stdout
        assert re.search(rf"^{workflow}/kubelet-start +adopted ", status, re.MULTILINE), status
        done = node.run(f"{KB} {workflow} {IGNORE}", timeout=300)
        assert "this node was adopted" in done.stderr
        assert [line for line in read_living(node).splitlines() if "90-kb.conf" not in line] == before.splitlines()
        found = read_state(node)
        adopted = {name for name, phase in recorded["phases"].items() if phase.get("adopted")}
        # the checks to ignore are of this run's node registration, which the kubelet is made from: looked at again, and right
        again = {f"{workflow}/kubelet-start"}
        assert adopted - {name for name, phase in found["phases"].items() if phase.get("adopted")} <= again
        assert found["adopted"] == recorded["adopted"]
        assert "nothing to do" in node.run(f"{KB} {workflow} {IGNORE}", timeout=300).stderr
        examine(node)
    cp1.run(f"{KB} reset --force")
    wait_until(lambda: cp1.get("node cp1"), what="the API server of the node that was given back", timeout_s=60)
    cp1.wait_node_ready("cp1")
    refused = cp1.run(f"{KB} reset --force", check=False)
    assert "kubeadm reset" in refused.stderr and refused.code == 4
