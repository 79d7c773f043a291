"""`kb init` on a real node: the node becomes Ready, and what runs on it is reached through a Service by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.shell import Result
from .world.podnet import CONFLIST, render_conflist
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
INIT = "python3 kb.pyz init --config init.yaml --ignore-preflight-errors="


def run_init(node: Node, kb_pyz: Path, config: str) -> Result:
    """Copy kb and its configuration to a node, as its README says, and run init."""
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", config)
    return node.run(INIT + ",".join(list_ignored_checks()), timeout=600)


def make_prepared_node(make_node: MakeNode, version: str, **wishes: Any) -> Node:
    """A node on which the operator has done what kubeadm's manual asks for: units, forwarding, pod network."""
    node = make_node("cp1", version=version, prepared=True, **wishes)
    node.write(CONFLIST, render_conflist())
    return node


def render_config(node: Node, plugin: str = "none") -> str:
    """The documents for init on that node; kb sees to the pod network if `plugin` names one."""
    return lab_config(node.release.minor, address=node.address, kb={"podNetwork": {"plugin": plugin}})


def test_init_on_a_node_prepared_for_kubeadm(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kubeadm's division of labour: kb finds the operator's files and leaves them alone."""
    node = make_prepared_node(make_node, k8s_version)
    run_init(node, kb_pyz, render_config(node))
    node.wait_node_ready()
    check_cluster_serves(node)


def test_init_on_a_plain_node(node: Node, kb_pyz: Path, k8s_version: str) -> None:
    """A runtime and the binaries are there, nothing else: kb brings the unit, forwarding and the pod network."""
    run_init(node, kb_pyz, render_config(node, "bridge"))
    node.wait_node_ready()
    check_cluster_serves(node)
    check_accounts(node)


def check_accounts(node: Node) -> None:
    """The service accounts that kb made for the controllers are those that a controller-manager makes for itself, and no more."""

    def list_accounts() -> set[str]:
        found = node.kubectl("-n kube-system get serviceaccounts -o name").split()
        return {name for name in found if not name.endswith(("/coredns", "/kube-proxy"))}

    made = list_accounts()
    node.kubectl("-n kube-system delete serviceaccounts --all")
    node.run("crictl stop $(crictl ps -q --name kube-controller-manager)")
    wait_until(
        lambda: made <= list_accounts(), what=f"a controller-manager that makes {len(made)} accounts", timeout_s=90
    )
    assert list_accounts() == made


@pytest.mark.k8s_versions("1.35")
def test_init_pulls_its_images(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    """With an empty image store everything comes from the mirror, and nothing is asked of the outside."""
    node = make_prepared_node(make_node, k8s_version, images=False)
    lab.registry.add_release(node.release)
    lab.registry.start()
    run_init(node, kb_pyz, render_config(node))
    node.wait_node_ready()
    check_cluster_serves(node)
    assert [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")] == []


@pytest.mark.k8s_versions("1.35")
def test_init_again_changes_nothing(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_prepared_node(make_node, k8s_version)
    run_init(node, kb_pyz, render_config(node))
    node.wait_node_ready()
    # kb's own lock and state tell of the run itself; everything else must be untouched, times included.
    listing = (
        "cd / && find etc var/lib/kb var/lib/kubelet/*.* -type f -printf '%p %T@ %m\\n'"
        " | grep -v -e ^var/lib/kb/lock -e ^var/lib/kb/state.json | sort"
    )
    before = node.run(listing).stdout.splitlines()
    run_init(node, kb_pyz, render_config(node))
    changed = set(before) ^ set(node.run(listing).stdout.splitlines())
    assert sorted(changed) == []


@pytest.mark.k8s_versions("1.35")
def test_cluster_comes_back_after_a_power_loss(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_prepared_node(make_node, k8s_version)
    run_init(node, kb_pyz, render_config(node))
    node.wait_node_ready()
    node.kill()
    node.start()
    node.wait_node_ready()
    check_cluster_serves(node)
