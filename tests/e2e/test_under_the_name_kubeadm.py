"""kb under the name kubeadm, on real nodes, is told from kubeadm by nobody who reads its output or its node; each joins
workers and control planes to the other's cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab import compare
from .lab.config import lab_config
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.shell import Result
from .test_adopt import HASH, IGNORE, KB, TOKEN, kubeadm_s_own
from .test_beside_kubeadm import (
    CERTIFICATE_KEY,
    failed_checks,
    make_prepared_node,
    read_living,
    read_reference,
    render_config,
    render_differences,
)
from .world.podnet import connect_nodes
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]

# What provisioning tools wait for and cut out: every line of kubeadm's output that one of these matches must be in kb's,
# in the same order, but for what changes from run to run.
SCRIPTED = (
    r"\[init\] Using Kubernetes version: v1\.\d+\.\d+",
    r"\[preflight\] Running pre-flight checks",
    r"\[certs\] .*",
    r"\[kubeconfig\] .*",
    r"\[etcd\] .*",
    r"\[control-plane\] .*",
    r"\[kubelet-start\] .*",
    r"\[wait-control-plane\] .*",
    r"\[kubelet-check\] Waiting .*",
    r"\[control-plane-check\] (Waiting|Checking) .*",
    r"\[upload-config\] .*",
    r"\[upload-certs\] .*",
    r"[0-9a-f]{64}",
    r"\[mark-control-plane\] .*",
    r"\[bootstrap-token\] (Using|Creating) .*",
    r"\[kubelet-finalize\] .*",
    r"\[addons\] .*",
    r"Your Kubernetes control-plane has initialized successfully!",
    r" *mkdir -p \$HOME/\.kube",
    r" *sudo cp -i /etc/kubernetes/admin\.conf \$HOME/\.kube/config",
    r" *sudo chown \$\(id -u\):\$\(id -g\) \$HOME/\.kube/config",
    r" *export KUBECONFIG=/etc/kubernetes/admin\.conf",
    r" *kubeadm join .*",
    r"\t--discovery-token-ca-cert-hash .*",
    r"\t--control-plane .*",
    r"This node has joined the cluster:",
    r"\[reset\] (Stopping|Unmounting|Deleting|Deleted) .*",
    r"CERTIFICATE .*",
    r"\S+ +[A-Z][a-z]{2} \d\d, \d{4} \d\d:\d\d UTC .*",
    r"(certificate .*|MISSING! .*) renewed",
    r"bootstrap token \"\S+\" deleted",
)


def scripted(text: str) -> list[str]:
    """The lines that scripts go by, with what differs between two runs of one tool taken out."""
    lines = [line for line in text.splitlines() if any(re.fullmatch(pattern, line) for pattern in SCRIPTED)]
    for pattern, name in (
        (TOKEN, "TOKEN"),
        (HASH, "HASH"),
        (r"\b[0-9a-f]{64}\b", "KEY"),
        (r"[A-Z][a-z]{2} \d\d, \d{4} \d\d:\d\d UTC", "DATE"),
    ):
        lines = [re.sub(pattern, name, line) for line in lines]
    return lines


def become_kubeadm(node: Node, kb_pyz: Path) -> None:
    """kb.pyz, through a link, in the place of the real kubeadm."""
    node.scp(kb_pyz, "/root/kb.pyz")
    node.run("chmod +x kb.pyz && ln -sf /root/kb.pyz $(command -v kubeadm) && kubeadm version | grep -q kb-")


def both(nodes: list[Node], line: str, *, check: bool = True, stdin: str = "") -> list[Result]:
    """Run a line on both nodes: the exit status and what scripts read must be the same."""
    given = f"printf '{stdin}' | {line}" if stdin else line
    results = [node.run(given, check=False, timeout=600) for node in nodes]
    real, ours = results
    told = f"{line}\n--- kubeadm ({real.code}):\n{real.output}\n--- kb ({ours.code}):\n{ours.output}"
    assert real.code == ours.code, told
    assert not check or real.code == 0, told
    texts = [
        result.stdout.replace(node.address, "ADDRESS").replace(node.name, "NAME")
        for node, result in zip(nodes, results)
    ]
    assert scripted(texts[0]) == scripted(texts[1]), told
    return results


# ---- the name kubeadm


def test_a_node_made_under_the_name_kubeadm_is_kubeadm_s(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str
) -> None:
    """No file, mode, owner, certificate field or object differs: not one thing more, and no state."""
    expected = read_reference(make_node, lab, k8s_version)
    node = make_prepared_node(make_node, k8s_version)
    become_kubeadm(node, kb_pyz)
    node.write("/root/init.yaml", render_config(node))
    node.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    differences = compare.list_differences(expected, compare.read_node(node, certificate_key=CERTIFICATE_KEY))
    # The link is the test's. The kubelet asks for its next certificate when it first reaches the API server, unless
    # kubelet-finalize restarts it before that: a race that either tool wins or loses.
    chance = r"file /usr/local(/bin(/kubeadm)?)? |object CertificateSigningRequest\S* -/csr-\* "
    left = [found for found in differences if not re.match(chance, found.where)]
    assert not left, render_differences(left)
    assert not node.exists("/var/lib/kb")


def test_output_and_exit_status_are_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The same lines for both, on a control plane, side by side: init, tokens, certificates, phases, mistakes, reset."""
    nodes = [make_node(name, version=k8s_version, kubeadm=True) for name in ("real", "ours")]
    real, ours = nodes
    become_kubeadm(ours, kb_pyz)
    for node in nodes:
        init = {"certificateKey": CERTIFICATE_KEY}
        node.write(
            "/root/init.yaml", lab_config(k8s_version, address=node.address, endpoint=f"{node.address}:6443", init=init)
        )
    check_words_before_init(nodes)
    done = both(nodes, f"kubeadm init --config init.yaml --upload-certs {IGNORE}")
    for result in done:
        assert len(scripted(result.stdout)) > 50, result.stdout
        command = re.search(rf"^kubeadm join \S+:6443 --token {TOKEN} \\\n\t--discovery-token-ca-cert-hash {HASH} $",
                            result.stdout, re.MULTILINE)  # fmt: skip
        assert command, result.stdout

    again = both(nodes, f"kubeadm init --config init.yaml {IGNORE}", check=False)
    assert failed_checks(again[0]) == failed_checks(again[1]) and "Port-6443" in failed_checks(again[0])
    assert all("error: error execution phase preflight: preflight checks failed" in r.stderr for r in again)
    check_tokens(nodes)
    check_certificates(nodes)
    check_phases(nodes)
    check_version_and_images(nodes)
    both(nodes, "kubeadm reset", check=False, stdin="n\\n")
    assert ours.exists("/etc/kubernetes/admin.conf")
    both(nodes, "kubeadm reset --force")
    listing = (
        "find /etc/kubernetes /var/lib/kubelet /var/lib/etcd -printf '%p %m\\n' | sort; crictl pods -q 2>/dev/null"
    )
    assert ours.run(listing).stdout == real.run(listing).stdout
    assert ours.run("systemctl is-active kubelet", check=False).stdout == "inactive\n"
    assert not ours.exists("/var/lib/kb")


def check_words_before_init(nodes: list[Node]) -> None:
    """Mistakes end with 1, whatever they are; what needs no cluster gives the same."""
    for line in (
        "kubeadm foo", "kubeadm init --no-such-flag", "kubeadm init phase nothing", "kubeadm init phase certs",
        "kubeadm init --config none.yaml", "kubeadm init --config init.yaml --pod-network-cidr 10.1.0.0/16",
        "kubeadm join", "kubeadm join a b",
        "kubeadm token", "kubeadm token create abc", "kubeadm token delete", "kubeadm config validate",
        "kubeadm certs renew nothing", "kubeadm kubeconfig user", "kubeadm version -o nothing",
    ):  # fmt: skip
        results = both(nodes, line, check=False)
        assert [result.code for result in results] == [1, 1], line
    # kubeadm has said its first line by then
    assert [node.run("kubeadm init --config init.yaml --skip-phases nothing", check=False).code for node in nodes] == [
        1,
        1,
    ]
    for line in ("kubeadm", "kubeadm --help", "kubeadm init --help", "kubeadm config validate --config init.yaml",
                 "kubeadm completion bash", "kubeadm --v=5 config print init-defaults"):  # fmt: skip
        both(nodes, line)
    for line, form in (("kubeadm token generate", TOKEN), ("kubeadm certs certificate-key", "[0-9a-f]{64}")):
        for result in both(nodes, line):
            assert re.fullmatch(form + r"\n", result.stdout), result.output


def check_tokens(nodes: list[Node]) -> None:
    form = rf"kubeadm join \S+:6443 --token {TOKEN} --discovery-token-ca-cert-hash {HASH} "
    for words, more in (
        ("", ""),
        ("--ttl 2h --description 'two hours'", ""),
        (f"--certificate-key {CERTIFICATE_KEY}", rf"--control-plane --certificate-key {CERTIFICATE_KEY}"),
    ):
        for result in both(nodes, f"kubeadm token create --print-join-command {words}"):
            assert re.fullmatch(f"{form}{more}\n", result.stdout), result.output
    for result in both(nodes, "kubeadm --kubeconfig=/etc/kubernetes/admin.conf token create"):
        assert re.fullmatch(f"{TOKEN}\n", result.stdout)
    both(nodes, "kubeadm token create abcdef.0123456789abcdef --ttl 0")
    both(nodes, "kubeadm token create abcdef.0123456789abcdef --ttl 0", check=False)
    both(nodes, "kubeadm token create --certificate-key abc", check=False)
    # of one cluster both tell the same, to the space
    for form in ("text", "json", "yaml"):
        shown = [node.run(f"kubeadm token list -o {form} --kubeconfig real.conf").stdout for node in share_admin(nodes)]
        assert shown[0] == shown[1] if form == "text" else _objects(shown[0], form) == _objects(shown[1], form)
    both(nodes, "kubeadm token delete abcdef")
    both(nodes, "kubeadm token delete abcdef", check=False)


def share_admin(nodes: list[Node]) -> list[Node]:
    """Both nodes with the first one's admin.conf, in real.conf."""
    text = nodes[0].read("/etc/kubernetes/admin.conf")
    for node in nodes:
        node.write("/root/real.conf", text)
    return nodes


def _objects(text: str, form: str) -> list[Any]:
    import yaml

    if form == "yaml":
        return list(yaml.safe_load_all(text))
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found


def check_certificates(nodes: list[Node]) -> None:
    both(nodes, "kubeadm certs check-expiration")
    shapes = []
    for node in nodes:
        told = json.loads(node.run("kubeadm certs check-expiration -o json 2>/dev/null").stdout)
        for item in [*told["certificates"], *told["certificateAuthorities"]]:
            assert item.pop("residualTime") > 3000 * 3600 and re.fullmatch(r"\d{4}-\S+Z", item.pop("expirationDate"))
        shapes.append(told)
    assert shapes[0] == shapes[1]
    listing = "sha256sum /etc/kubernetes/pki/{,etcd/}*.{crt,key} /etc/kubernetes/*.conf"
    for name in ("apiserver", "etcd-peer", "admin.conf", "all"):
        before = nodes[1].run(["bash", "-c", listing]).stdout
        both(nodes, f"kubeadm certs renew {name}")
        after = nodes[1].run(["bash", "-c", listing]).stdout
        changed = {line.split()[1] for line in after.splitlines()} - {
            line.split()[1] for line in set(before.splitlines()) & set(after.splitlines())
        }
        assert len(changed) == {"apiserver": 2, "etcd-peer": 2, "admin.conf": 1, "all": 7 * 2 + 4}[name], changed
        nodes[1].run(
            "cd /etc/kubernetes/pki && openssl verify -CAfile ca.crt apiserver.crt && openssl verify -CAfile etcd/ca.crt etcd/peer.crt"
        )
    # kb's renewed identities are believed, and the API server, started anew, is too
    nodes[1].run("kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes")
    for result in both(
        nodes,
        "rm -rf csr && kubeadm certs generate-csr --kubeconfig-dir /root/csr --cert-dir /root/csr/pki --config init.yaml",
    ):
        assert "generating keys and CSRs in /root/csr/pki" in result.stdout
    names = [sorted(node.run("find csr -type f").stdout.split()) for node in nodes]
    assert names[0] == names[1] and len(names[0]) == 24


def check_phases(nodes: list[Node]) -> None:
    """What kubespray and minikube call one by one, on a node that is there."""
    for phase in ("certs all", "certs apiserver", "kubeconfig all", "kubeconfig admin", "etcd local", "control-plane all",
                  "upload-config all", "uploadconfig kubeadm", "mark-control-plane", "kubelet-finalize all", "addon all",
                  "addon kube-proxy"):  # fmt: skip
        both(nodes, f"kubeadm init phase {phase} --config init.yaml")
    both(nodes, "kubeadm init phase bootstrap-token --config init.yaml")
    both(nodes, "kubeadm init phase kubelet-start --config init.yaml")
    wait_until(lambda: all(node.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes", check=False).code == 0
                           for node in nodes), what="the API servers", timeout_s=120)  # fmt: skip
    for result in both(nodes, "kubeadm init phase upload-certs --upload-certs --config init.yaml"):
        assert re.fullmatch(r"[0-9a-f]{64}", result.stdout.splitlines()[-1])  # kubespray takes the last line
    both(nodes, "kubeadm init phase upload-certs")


def check_version_and_images(nodes: list[Node]) -> None:
    version = nodes[0].release.version
    for result in both(nodes, "kubeadm version -o short"):
        assert result.stdout == f"{version}\n"
    for form in ("json", "yaml"):
        shown = [_objects(result.stdout, form)[0] for result in both(nodes, f"kubeadm version -o {form}")]
        assert sorted(shown[0]["clientVersion"]) == sorted(shown[1]["clientVersion"])
        for name in ("major", "minor", "gitVersion", "platform"):
            assert shown[0]["clientVersion"][name] == shown[1]["clientVersion"][name]
        lists = [
            _objects(r.stdout, form) for r in both(nodes, f"kubeadm config images list --config init.yaml -o {form}")
        ]
        assert lists[0] == lists[1]
    for result in both(nodes, "kubeadm version"):
        assert f'GitVersion:"{version}"' in result.stdout
    listed = both(nodes, "kubeadm config images list --config init.yaml")
    assert listed[0].stdout == listed[1].stdout


@pytest.mark.k8s_versions("1.35")
def test_a_node_made_phase_by_phase(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """As minikube restarts a control plane: one phase after the other, under the name kubeadm."""
    node = make_node("cp1", version=k8s_version, kubeadm=True)
    become_kubeadm(node, kb_pyz)
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    for phase in ("certs all", "kubeconfig all", "kubelet-start", "control-plane all", "etcd local", "wait-control-plane",
                  "upload-config all", "mark-control-plane", "bootstrap-token", "kubelet-finalize all", "addon all"):  # fmt: skip
        node.run(f"kubeadm init phase {phase} --config init.yaml", timeout=300)
    connect_nodes([node])
    node.wait_node_ready()
    check_cluster_serves(node)
    assert not node.exists("/var/lib/kb")


# ---- in each other's clusters


def test_workers_cross(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kubeadm's worker in the cluster of kb under its name, kb's under its name and under its own in kubeadm's."""
    real, ours, w1, w2 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("real", "ours", "w1", "w2"))
    become_kubeadm(ours, kb_pyz)
    become_kubeadm(w2, kb_pyz)
    for node in (real, ours):
        node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
        node.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    commands = [node.run("kubeadm token create --print-join-command").stdout.strip() for node in (ours, real)]
    joins = [node.run(f"{command} {IGNORE}", timeout=300) for node, command in zip((w1, w2), commands)]
    order = ("[kubelet-start] Writing", "[kubelet-start] Starting the kubelet", "This node has joined the cluster:")
    for done in joins:
        places = [done.stdout.index(line) for line in order]
        assert places == sorted(places), done.stdout
    for cluster, worker in ((ours, w1), (real, w2)):
        connect_nodes([cluster, worker])
        cluster.wait_node_ready(worker.name)
        check_cluster_serves(cluster, server=worker.name, client=cluster.name)
        cluster.kubectl("delete pod web client --wait=true", timeout=120)
    assert not w2.exists("/var/lib/kb")
    again = [node.run(f"{command} {IGNORE}", check=False) for node, command in zip((w1, w2), commands)]
    assert failed_checks(again[0]) == failed_checks(again[1]) and [r.code for r in again] == [1, 1]

    both([w1, w2], "kubeadm reset --force")
    assert w2.run("find /etc/kubernetes /var/lib/kubelet -type f", check=False).stdout == ""
    # and again at once, kb by its own name
    for cluster in (ours, real):
        cluster.kubectl("delete node w1 w2 --ignore-not-found")
    w2.run(f"{commands[1].replace('kubeadm', KB, 1)} {IGNORE}", timeout=300)
    real.wait_node_ready("w2")
    assert w2.exists("/var/lib/kb/state.json")


def test_control_planes_cross(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """In kubeadm's cluster: kb under its name joins a control plane, and its reset takes the member out of etcd; one that
    kubeadm joined is adopted as what it is, and gone on with."""
    cp1, cp2, cp3 = (make_node(name, version=k8s_version, kubeadm=True) for name in ("cp1", "cp2", "cp3"))
    init = {"certificateKey": CERTIFICATE_KEY}
    cp1.write(
        "/root/init.yaml", lab_config(k8s_version, address=cp1.address, endpoint=f"{cp1.address}:6443", init=init)
    )
    cp1.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    cp1.scp(kb_pyz, "/root/kb.pyz")
    command = cp1.run(f"kubeadm token create --print-join-command --certificate-key {CERTIFICATE_KEY}").stdout.strip()

    become_kubeadm(cp2, kb_pyz)
    done = cp2.run(f"{command} {IGNORE}", timeout=600)
    assert "This node has joined the cluster and a new control plane instance was created:" in done.stdout
    for line in (
        "[download-certs] Downloading",
        "[etcd] Announced new etcd member",
        "[mark-control-plane] Marking the node cp2",
    ):
        assert line in done.stdout, done.stdout
    assert not cp2.exists("/var/lib/kb")
    members = json.loads(cp1.run(f"{KB} etcd members -o json").stdout)
    assert "cp2" in json.dumps(members)
    cp2.run("kubeadm reset --force", timeout=300)
    assert "cp2" not in cp1.run(f"{KB} etcd members -o json").stdout
    cp1.kubectl("delete node cp2")

    cp3.run(f"{command} {IGNORE}", timeout=600)
    connect_nodes([cp1, cp3])
    cp1.wait_node_ready("cp3")
    cp3.scp(kb_pyz, "/root/kb.pyz")
    cp1.wait_pods_ready("kube-system")
    before = read_living(cp3)
    told = json.loads(cp3.run(f"{KB} adopt -o json").stdout)
    assert told["role"] == "control plane" and kubeadm_s_own(told["left"]) == [], told
    assert cp3.exists("/var/lib/kb/adopted-join.yaml")
    cp3.run(f"{KB} join {IGNORE}", timeout=300)
    assert [line for line in read_living(cp3).splitlines() if "90-kb.conf" not in line] == before.splitlines()
    assert "code:   node-is-worker" in cp3.run(f"{KB} init {IGNORE}", check=False).stderr


@pytest.mark.k8s_versions("1.35")
def test_kubeadm_s_reset_of_kb_s_own_node(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Under the name kubeadm, reset empties kubeadm's folders of a node that kb made, and says what is left for kb."""
    node: Optional[Node] = make_node("cp1", version=k8s_version)
    assert node is not None
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write(
        "/root/init.yaml", lab_config(k8s_version, address=node.address, kb={"podNetwork": {"plugin": "bridge"}})
    )
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    done = node.run(f"{KB} --as-kubeadm reset -f")
    assert f"what is left of that goes with: {KB} reset" in done.stderr
    assert node.run("find /etc/kubernetes /var/lib/kubelet /var/lib/etcd -type f").stdout == ""
    node.run(f"{KB} reset --force")
    assert not node.exists("/var/lib/kb") and not node.exists("/etc/cni/net.d/10-kb.conflist")
