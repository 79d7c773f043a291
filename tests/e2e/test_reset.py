"""`kb reset` on real nodes takes back what the journal names, and nothing else: of a whole node, of a half-made one, of one
whose kubelet a package enabled."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from .lab.bundles import BARE, make_bundle
from .lab.changes import kill_after_each_change_in_turn
from .lab.config import list_ignored_checks
from .lab.lab import Lab
from .lab.machine_state import compare_states, read_state
from .lab.node import Node
from .lab.settings import find_release
from .test_continue import init, put, reset, strike
from .test_pod_network import give_ipv6
from .world import other_rules
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]

EVERYTHING = r"""cd / && find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o -path /var/tmp \
  -o -path /var/lib/containerd -o -path /var/lib/systemd -o -path /root \) -prune -o -printf '%p %y %m %u:%g %l\n' | sort
find /var/lib/kubelet /var/lib/etcd -xdev -printf '%p %y %m %u:%g %l\n' | sort -u
find /etc /usr/local -xdev -type f -exec sha256sum {} +"""


def list_everything(node: Node) -> set[str]:
    return set(node.run(EVERYTHING, timeout=300).stdout.splitlines())


def assert_as_before(node: Node, before: set[str]) -> None:
    after = list_everything(node)
    assert (sorted(before - after), sorted(after - before)) == ([], [])


def test_reset_leaves_nothing_and_loses_nothing(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    bare = list_everything(node)
    refused = node.run("python3 kb.pyz reset --force", check=False)
    assert list_everything(node) == bare
    assert refused.code == 4 and "code:   nothing-to-reset" in refused.output
    node.run("mkdir -p /etc/sysctl.d && echo '# mine' >/etc/sysctl.d/90-kb.conf && chmod 640 /etc/sysctl.d/90-kb.conf")
    before = list_everything(node)
    init(node)
    node.wait_node_ready()
    node.run(
        "mkdir -p /root/data /var/lib/kubelet/some/dir && echo precious >/root/data/file"
        " && mount --bind /root/data /var/lib/kubelet/some/dir"
    )
    done = reset(node)
    assert node.read("/root/data/file") == "precious\n"
    assert node.read("/var/lib/kubelet/some/dir/file") == "precious\n", done.output
    node.run("umount /var/lib/kubelet/some/dir && rmdir /var/lib/kubelet/some/dir /var/lib/kubelet/some")
    assert_as_before(node, before)
    assert node.run("pgrep -l 'kube|etcd'", check=False).stdout == ""
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)


def test_reset_of_a_prepared_node_gives_the_unit_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A kubelet that its package enabled stays enabled; etcd's own folder goes, what lies beside it stays."""
    node = make_node("cp1", version=k8s_version, prepared=True)
    put(node, kb_pyz, cluster={"etcd": {"local": {"dataDir": "/var/lib/etcd/blue"}}})
    node.run("mkdir -p /var/lib/etcd/green && echo mine >/var/lib/etcd/green/db && echo own >/var/lib/kubelet/own.yaml")
    before = list_everything(node)
    init(node)
    reset(node)
    assert_as_before(node, before)


@pytest.mark.parametrize("phase", [1, 2, 13, 20, 22])
def test_reset_of_a_half_made_node(make_node: MakeNode, kb_pyz: Path, k8s_version: str, phase: int) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    before = list_everything(node)
    strike(node, phase=phase, delay_s=0.05)
    node.run("python3 kb.pyz reset --force", timeout=300)
    assert_as_before(node, before)
    if phase == 22:
        init(node)
        node.wait_node_ready()


def put_dual_stack(node: Node, lab: Lab, kb_pyz: Path, *, proxy_mode: str) -> None:
    """Two IP versions, so that Services have addresses of both."""
    ipv6 = give_ipv6(node, lab)
    put(
        node,
        kb_pyz,
        init={
            "localAPIEndpoint": {"advertiseAddress": node.address},
            "nodeRegistration": {"kubeletExtraArgs": [{"name": "node-ip", "value": f"{node.address},{ipv6}"}]},
        },
        cluster={
            "networking": {
                "serviceSubnet": "10.96.0.0/16,fd00:10:96::/112",
                "podSubnet": "10.244.0.0/16,fd00:10:244::/56",
            }
        },
    )
    kind = 'kind: "KubeProxyConfiguration"\n'
    node.write("/root/init.yaml", node.read("/root/init.yaml").replace(kind, f'{kind}mode: "{proxy_mode}"\n'))


@pytest.mark.parametrize("proxy_mode", ["iptables", "nftables"])
def test_the_machine_is_as_before_with_the_rules_of_others(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, proxy_mode: str
) -> None:
    """Rules, links, routes, mounts, kernel settings, control groups: all that is not a file."""
    node = make_node("cp1", version=k8s_version)
    put_dual_stack(node, lab, kb_pyz, proxy_mode=proxy_mode)
    other_rules.plant(node)
    node.run("mkdir -p /srv/volume && mount -t tmpfs volume /srv/volume && echo precious >/srv/volume/file")
    files, before = list_everything(node), read_state(node)
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)
    node.run("mkdir -p /var/lib/kubelet/plugins/mine && mount --bind /srv/volume /var/lib/kubelet/plugins/mine")
    if proxy_mode == "iptables":
        other_rules.copy_service_rules_to_legacy(node)
        other_rules.leave_flannel(node)
    said = reset(node)
    assert ("end without it" in said.output) is (proxy_mode == "iptables"), said.output
    assert compare_states(before, read_state(node)) == [], said.output
    assert_as_before(node, files)
    assert node.read("/srv/volume/file") == "precious\n"
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)


def test_killed_after_each_change_and_run_again(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    """Each run goes on where the one before was killed; the last one finds nothing left to undo."""
    node = make_node("cp1", version=k8s_version)
    put_dual_stack(node, lab, kb_pyz, proxy_mode="iptables")
    other_rules.plant(node)
    files, before = list_everything(node), read_state(node)
    init(node)
    node.wait_node_ready()
    other_rules.copy_service_rules_to_legacy(node)
    killed = kill_after_each_change_in_turn(node, ["kb.pyz", "reset", "--force"], ends="nothing-to-reset")
    node.run("rm -f /root/change_killer.py /root/changes.log /root/wish.json")
    told = "\n".join(" ".join(one) for one in killed)
    assert all(
        words in told for words in ("iptables-nft-restore", "iptables-legacy-restore", "umount", "state.json")
    ), told
    assert compare_states(before, read_state(node)) == []
    assert_as_before(node, files)
    init(node)
    node.wait_node_ready()


def test_a_worker_with_the_api_away(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    plane, worker = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    put(plane, kb_pyz)
    init(plane)
    line = plane.run("python3 kb.pyz token create --print-join-command").stdout.strip()
    worker.scp(kb_pyz, "/root/kb.pyz")
    other_rules.plant(worker)
    files, before = list_everything(worker), read_state(worker)
    ignored = ",".join(list_ignored_checks())
    worker.run(f"{line.replace('kb join', 'python3 kb.pyz join')} --ignore-preflight-errors={ignored}", timeout=300)
    plane.stop()
    said = reset(worker)
    assert "Node w1 is still in the cluster" in said.output and "last control plane" not in said.output
    assert compare_states(before, read_state(worker)) == [], said.output
    assert_as_before(worker, files)


def test_the_last_control_plane_says_that_the_cluster_ends(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    init(node)
    refused = node.run("python3 kb.pyz reset </dev/null", check=False)
    assert refused.code == 2 and "cp1 is the last control plane of cluster kubernetes" in refused.output
    assert "kb.pyz backup -o FILE" in refused.output, refused.output
    node.run("python3 kb.pyz backup -o /root/cluster.kb", timeout=120)
    assert "is the last control plane" in reset(node).output
    refused = node.run("python3 kb.pyz reset --force", check=False)
    assert refused.code == 4 and "nothing-to-reset" in refused.output


def test_a_bare_machine_is_bare_again(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """kb brought the runtime, its plugins, the kubelet and the mirror: all of them go, with what they made."""
    bundle = make_bundle(lab, kb_pyz, find_release(k8s_version), tmp_path / "kb.tar")
    node = make_node("cp1", version=k8s_version, **BARE)
    put(node, kb_pyz)
    node.scp(bundle, "/root/kb.tar")
    files, before = list_everything(node), read_state(node)
    init(node, "--bundle kb.tar --air-gapped")
    node.wait_node_ready()
    said = reset(node)
    assert compare_states(before, read_state(node)) == [], said.output
    assert_as_before(node, files)
    assert node.run("ls -d /run/containerd /opt/containerd", check=False).stdout == ""
    assert node.run("find /var/lib/containerd -mindepth 1").stdout == "", "the folder itself is a mount of the lab's"
