"""`kb certs recover` on real nodes whose certificates lived for minutes: everything has expired, and all are Ready again within two."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until
from .world.podnet import CONFLIST, render_conflist

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
BAR_S = 120
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def short(minutes: int) -> dict[str, object]:
    """What every certificate of the cluster but its authorities' lives for so many minutes by."""
    life = f"{minutes}m0s"
    args = [{"name": "cluster-signing-duration", "value": life}]
    return {"certificateValidityPeriod": life, "controllerManager": {"extraArgs": args}}


def read_workloads(node: Node) -> dict[str, str]:
    """Pod and container -> id, of the running containers that are no component of the control plane."""
    rows = json.loads(node.run("crictl ps -o json 2>/dev/null").stdout)["containers"]
    names = {f"{row['labels']['io.kubernetes.pod.name']}/{row['metadata']['name']}": row["id"] for row in rows}
    return {name: one for name, one in names.items() if name.rpartition("/")[2] not in COMPONENTS}


def wait_until_over(node: Node) -> None:
    """Until the last certificate of this node has ended, its kubelet's too: that is kept from renewing it meanwhile."""
    files = "/etc/kubernetes/pki/*.crt /etc/kubernetes/pki/etcd/*.crt /var/lib/kubelet/pki/kubelet-client-current.pem"
    script = (
        f"for f in {files}; do case $f in */ca.crt|*-ca.crt) ;; *) openssl x509 -noout -enddate -in $f;; esac; done"
    )
    ends = [
        datetime.datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=datetime.timezone.utc)
        for line in node.run(script, check=False).stdout.splitlines()
        if line.startswith("notAfter")
    ]
    left = (max(ends) - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    time.sleep(max(0.0, left) + 3)


def stop_kubelets(nodes: list[Node]) -> None:
    """A machine that is off renews nothing; what the kubelet left running runs on."""
    for node in nodes:
        node.run("systemctl stop kubelet")


def recover(node: Node, words: str = "", *, check: bool = True) -> dict[str, object]:
    done = node.run(f"{KB} certs recover {words} -o json", check=check, timeout=300)
    print(node.name, done.stderr)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def are_ready(node: Node, count: int) -> bool:
    told = node.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes --no-headers", check=False).stdout
    return [line.split()[1] for line in told.splitlines()] == ["Ready"] * count


def check_reports(node: Node, since: datetime.datetime) -> None:
    """Every kubelet has reported since then."""
    for lease in node.get("lease -n kube-node-lease")["items"]:
        renewed = datetime.datetime.strptime(lease["spec"]["renewTime"][:19], "%Y-%m-%dT%H:%M:%S")
        assert renewed.replace(tzinfo=datetime.timezone.utc) >= since.replace(microsecond=0), lease["metadata"]["name"]


def work(node: Node, name: str) -> None:
    """The controller-manager and the scheduler lead and do their work."""
    node.kubectl(f"create namespace {name}")
    wait_until(
        lambda: "serviceaccount/default" in node.kubectl(f"get serviceaccounts -n {name} -o name"),
        what="the controller-manager to lead",
        timeout_s=90,
    )


@pytest.mark.k8s_versions("1.34", "1.35", "1.36")
@pytest.mark.parametrize("program", [f"{KB} init", "kubeadm init"])
def test_one_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str, program: str) -> None:
    is_kubeadm = program.startswith("kubeadm")
    node = make_node("cp1", version=k8s_version, kubeadm=True) if is_kubeadm else make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    if is_kubeadm:
        node.write(CONFLIST, render_conflist())
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, cluster=short(3)))
    node.run(f"{program} --config init.yaml {IGNORE}", timeout=600)
    wait_until(lambda: are_ready(node, 1), what="the node", timeout_s=90)
    assert recover(node)["expired"] == []
    before = read_workloads(node)
    stop_kubelets([node])
    wait_until_over(node)
    assert node.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes", check=False).code != 0
    node.run("systemctl start kubelet")
    time.sleep(5)
    said = node.run(f"{KB} doctor", check=False).stdout
    assert "kb.pyz certs recover" in said or "kb certs recover" in said, said
    foretold = node.run(f"{KB} certs recover --dry-run").stdout
    assert "kubelet-client" in foretold and "nothing was changed" in foretold
    began, now = time.monotonic(), datetime.datetime.now(datetime.timezone.utc)
    done = recover(node)
    print(f"{program}: Ready after {time.monotonic() - began:.1f} s; {done}")
    assert done["nodeReady"] and done["next"] == []
    check_reports(node, now)
    assert time.monotonic() - began < BAR_S and are_ready(node, 1)
    work(node, "one")
    after = read_workloads(node)
    assert {name: one for name, one in after.items() if name in before} == before
    assert recover(node)["expired"] == []


@pytest.mark.k8s_versions("1.35")
def test_an_api_server_that_has_lost_its_etcd(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """It runs on, and dials etcd at ever longer intervals: up to two minutes."""
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, cluster=short(3)))
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    stop_kubelets([node])
    wait_until_over(node)
    node.run("crictl stop $(crictl ps -q --name etcd)")
    time.sleep(60)
    began = time.monotonic()
    done = recover(node)
    print(f"without its etcd for a minute: Ready after {time.monotonic() - began:.1f} s")
    assert done["nodeReady"] and time.monotonic() - began < 60


@pytest.mark.k8s_versions("1.35")
@pytest.mark.parametrize("was", ["running", "off"])
def test_three_control_planes_and_a_worker(make_node: MakeNode, kb_pyz: Path, k8s_version: str, was: str) -> None:
    """Machines that ran on meanwhile, whose containers still run; and machines that were off, on which no kubelet starts any."""
    nodes = [make_node(name, version=k8s_version) for name in ("cp1", "cp2", "cp3", "w1")]
    first, *others = nodes
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    first.write("/root/init.yaml", lab_config(
        k8s_version, address=first.address, cluster=short(5), kb={"loadBalancer": {"mode": "local"}}
    ))  # fmt: skip
    first.run(f"{KB} init --config init.yaml {IGNORE} --soak 0", timeout=600)
    for node in others:
        key = first.run(f"{KB} certs certificate-key").stdout.strip()
        more = "" if node.name == "w1" else f" --certificate-key {key}"
        line = first.run(f"{KB} token create --print-join-command{more}").stdout.strip()
        node.run(f"{line} {IGNORE} --soak 0", timeout=600)
    wait_until(lambda: are_ready(first, 4), what="four nodes", timeout_s=120)
    before = {node.name: read_workloads(node) for node in nodes}
    stop_kubelets(nodes)
    for node in nodes:
        wait_until_over(node)
    for node in nodes:
        if was == "off":
            node.kill()
            node.start()
        node.run("systemctl start kubelet")
    began, now = time.monotonic(), datetime.datetime.now(datetime.timezone.utc)
    lines = {}
    for node in nodes[:3]:
        done = recover(node)
        print(f"{node.name}: {time.monotonic() - began:.1f} s; {done}")
        lines.update({row["node"]: row["command"] for row in done["next"]})  # type: ignore[attr-defined]
    assert "--token" in lines["w1"]
    done = recover(nodes[3], lines["w1"].partition("certs recover ")[2])
    wait_until(lambda: are_ready(first, 4), what="four nodes", timeout_s=60)
    took = time.monotonic() - began
    print(f"three control planes and a worker: all Ready after {took:.1f} s")
    check_reports(first, now)
    assert took < BAR_S
    for node in nodes if was == "running" else ():
        after = read_workloads(node)
        assert {name: one for name, one in after.items() if name in before[node.name]} == before[node.name], node.name
    work(first, "four")
