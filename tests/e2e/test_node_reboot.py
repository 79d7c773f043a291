"""`kb node reboot` on real nodes: a worker, by its kubelet's identity, and the only control plane; open again by themselves after the boot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, check_members, code_of, join_worker
from .lab.node import Node, wait_until
from .lab.static_pods import SLOW, Client, fill_store
from .test_static_pods import GAP_S, lead_etcd, make_three

pytestmark = pytest.mark.k8s_versions("1.35", "1.36")
MakeNode = Callable[..., Node]
BOOT = "/proc/sys/kernel/random/boot_id"
NEEDS_RESTARTING = f"""\
#!/bin/sh
[ "$1" = -r ] || exit 2
cmp -s {BOOT} /var/lib/needs-restarting || exit 0
printf 'Core libraries or services have been updated since boot-up:\\n  * glibc\\n\\nReboot is required to fully utilize these updates.\\n'
exit 1
"""
"""As the program of dnf-utils answers. Source: needs_restarting.py of dnf-plugins-core"""
UNIT = "/etc/systemd/system/kb-reboot.service"


def reboot(node: Node, server: Node, words: str) -> None:
    """Until it is open again, by nobody's hand."""
    boot = node.read(BOOT)
    done = node.run(f"{KB} node reboot --yes {words}", check=False, timeout=600)
    print(done.output, flush=True)
    assert "the machine reboots now" in done.output or done.code != 0, (
        done.output
    )  # it may have gone before it could say so
    node.finish_reboot()
    assert node.read(BOOT) != boot

    def is_open() -> bool:
        found = server.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get node -o json", check=False)
        if found.code or node.exists(UNIT):
            return False
        spec = next(one["spec"] for one in json.loads(found.stdout)["items"] if one["metadata"]["name"] == node.name)
        return not spec.get("unschedulable")

    wait_until(is_open, what=f"{node.name} to be open again", timeout_s=300)
    print(node.journal("kb-reboot.service"), flush=True)
    server.wait_node_ready(node.name)
    assert not node.exists("/var/lib/kb/reboot/reboot.json")
    assert server.get("configmap kb-node-reboot -n kube-system")["data"]["turn"] == ""


def test_a_worker_and_the_only_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
    kb = {"podNetwork": {"plugin": "bridge"}}
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address, kb=kb))
    cp1.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=900)
    join_worker(w1, cp1)
    cp1.wait_node_ready("w1")
    cp1.kubectl("create deployment web --image=registry.k8s.io/e2e-test/web:1 --replicas=1")
    cp1.wait_pods_ready("default", "app=web")

    # a reboot is due on the worker, and nobody has made the turn yet
    w1.run("touch /run/reboot-required")
    assert code_of(w1.run(f"{KB} node reboot --if-required --yes", check=False)) == "reboot-not-provided"
    assert "no reboot is due" in cp1.run(f"{KB} node reboot --if-required").stdout
    cp1.kubectl("""patch configmap kb-node-reboot -n kube-system --type merge -p '{"data":{"turn":"cp1 since now"}}'""")
    assert code_of(w1.run(f"{KB} node reboot --if-required --yes", check=False)) == "reboot-elsewhere"
    assert not cp1.get("node w1")["spec"].get("unschedulable")
    cp1.kubectl("""patch configmap kb-node-reboot -n kube-system --type merge -p '{"data":{"turn":""}}'""")
    reboot(w1, cp1, "--if-required")
    cp1.wait_pods_ready("default", "app=web")
    assert "no reboot is due" in w1.run(f"{KB} node reboot --if-required").stdout

    # what dnf's plugin says: until the next boot, as /proc has it
    w1.write("/usr/bin/needs-restarting", NEEDS_RESTARTING)
    w1.run(f"chmod 755 /usr/bin/needs-restarting && cat {BOOT} >/var/lib/needs-restarting")
    reboot(w1, cp1, "--if-required")
    assert "no reboot is due" in w1.run(f"{KB} node reboot --if-required").stdout

    refused = cp1.run(f"{KB} node reboot", check=False)
    assert code_of(refused) == "not-confirmed" and "the cluster's API is away" in refused.stderr
    reboot(cp1, cp1, "")
    cp1.wait_pods_ready("default", "app=web")


def test_nobody_notices_when_one_of_three_reboots_or_leaves(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str
) -> None:
    """The one that leads etcd, while clients read and write through the load balancer of another."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    fill_store(nodes[0])
    cp1, _, cp3 = nodes
    for what in ("reboots", "leaves"):
        lead_etcd(nodes, cp3)
        clients = [Client(cp1, "keep"), Client(cp1, "new")]
        for client in clients:
            client.start()
        time.sleep(2)
        if what == "reboots":
            reboot(cp3, cp1, "")
            check_members(cp1, [node.name for node in nodes])
        else:
            print(cp1.run(f"{KB} node remove cp3 --yes", timeout=300).output, flush=True)
        time.sleep(3)
        for client in clients:
            calls = client.stop()
            print(f"cp3 {what}, {client.way}: {calls}", *calls.failed[:9], sep="\n", flush=True)
            assert not calls.failed and calls.longest_gap_s <= GAP_S * SLOW, calls.failed[:10]
    check_members(cp1, ["cp1", "cp2"])
