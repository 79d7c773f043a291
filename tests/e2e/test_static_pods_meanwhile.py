"""What happens to the machine while `kb reconfigure static-pods` is under way: it loses its power, it is reset, its clock is off."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Callable

import pytest

from .lab.control_planes import IGNORE, KB
from .lab.node import Node, wait_until
from .lab.static_pods import (
    HARMLESS,
    MANIFESTS,
    SWAP,
    draft,
    is_out,
    list_left,
    manifest,
    read_manifests,
    read_stored,
    with_flags,
)
from .test_static_pods import check_runs, make_control_plane, told

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
ETCD_AND_SERVER = {name: HARMLESS[name] for name in ("etcd", "kube-apiserver")}
NEW_ETCD_RUNS = f"test -e {manifest('etcd')} && test ! -e {MANIFESTS}/.etcd.yaml.kb-next && test -e {MANIFESTS}/.etcd.yaml.kb-former"
SHIFTED = """\
import datetime, runpy, sys
sys.path.insert(0, "/root/kb.pyz")
from kubeup.machine.local_host import LocalHost
real, off = LocalHost.now, datetime.timedelta(seconds=int(sys.argv[1]))
LocalHost.now = lambda self: real(self) + off
sys.argv[:2] = ["/root/kb.pyz"]
runpy.run_path("/root/kb.pyz", run_name="__main__")
"""
"""kb with a clock that is off by so many seconds: the nodes share this machine's."""


def swap_until(node: Node, words: str, moment: str) -> None:
    """Begin a swap, and return as soon as this is true on the node: a line for the shell."""
    node.run(f"systemd-run --quiet --collect --unit=swap sh -c 'cd /root && exec {SWAP} {words} --yes >swap.log 2>&1'")
    seen = node.run(f"until {moment}; do systemctl --quiet is-active swap || exit 3; done", check=False, timeout=120)
    assert seen.ok, node.read("/root/swap.log")


@pytest.mark.parametrize("moment", [is_out("kube-apiserver"), is_out("etcd"), NEW_ETCD_RUNS])
def test_the_power_is_cut(make_node: MakeNode, kb_pyz: Path, k8s_version: str, moment: str) -> None:
    """The same command afterwards brings the new pods, `--undo` the former ones; every object is there."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, former = read_stored(node), read_manifests(node)
    for number, again in enumerate((True, False)):
        # others each time: a static pod that comes back unchanged counts as one that crashes
        wanted = with_flags(node, {name: f"{flag}{number}" for name, flag in ETCD_AND_SERVER.items()})
        words = draft(node, wanted)
        swap_until(node, words, moment)
        node.kill()
        node.start()
        if node.exists(manifest("etcd")):  # its kubelet runs it, without an API server: no pod is ever finished with
            wait_until(lambda: node.run("crictl ps -q --name '^etcd$'").stdout.strip(), what="etcd", timeout_s=60)
        line = f"{SWAP} {words} --yes" if again else f"{SWAP} --undo --yes"
        ended = node.run(line, check=False, timeout=600)
        assert ended.ok, told(ended)
        told(ended)
        check_runs(node, {**former, **wanted} if again else former)
        wait_until(lambda: read_stored(node) == stored, what=f"the same objects after {line}", timeout_s=60)
        assert list_left(node) == []
        former = read_manifests(node)


def test_the_node_is_reset(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb was killed with etcd and the API server out. Nothing of them may be left, and nothing may hinder the next cluster."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    words = draft(node, with_flags(node, ETCD_AND_SERVER))
    swap_until(node, words, is_out("etcd"))
    node.run("systemctl kill -s SIGKILL swap")
    told(node.run(f"{KB} reset --force", timeout=300))
    left = node.run(f"find {MANIFESTS} /var/lib/etcd /var/lib/kb ! -type d 2>/dev/null; crictl ps -aq; true").stdout
    assert not left, left
    told(node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600))
    node.wait_node_ready()


@pytest.mark.parametrize("off_s", [-200, 900])
def test_the_clock_is_off(make_node: MakeNode, kb_pyz: Path, k8s_version: str, off_s: int) -> None:
    """A swap goes through, and whether another node swaps is told by the API server's clock. By one that is a quarter of an hour
    behind, the certificates are not valid yet: that is refused with the clock as the cause."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, former = read_stored(node), read_manifests(node)
    node.write("/root/shifted.py", SHIFTED)
    shifted = f"python3 shifted.py {off_s} reconfigure static-pods"
    wanted = with_flags(node, ETCD_AND_SERVER)
    words = draft(node, wanted)
    held = {"holderIdentity": "cp2", "leaseDurationSeconds": 600, "renewTime": "2026-01-01T00:00:00.000000Z"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": held,
             "metadata": {"name": "kb-static-pods", "namespace": "kube-system"}}  # fmt: skip
    node.kubectl("create -f -", stdin=json.dumps(lease))
    refused = node.run(f"{shifted} {words} --yes", check=False, timeout=300)
    assert not refused.ok and "control plane cp2 swaps its static pods" in told(refused)
    assert read_manifests(node) == former
    node.kubectl(shlex.split("-n kube-system delete lease kb-static-pods"))
    behind = node.run(f"python3 shifted.py -86400 reconfigure static-pods {words} --yes", check=False, timeout=300)
    assert not behind.ok and "set this machine's clock, which says" in told(behind)
    assert read_manifests(node) == former
    told(node.run(f"{shifted} {words} --yes", timeout=600))
    check_runs(node, {**former, **wanted})
    wait_until(lambda: read_stored(node) == stored, what="the same objects", timeout_s=60)
    assert list_left(node) == []
