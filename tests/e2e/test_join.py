"""`kb join` on real nodes: workers of kb's and of kubeadm's clusters, every error by its cause, tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab import killer
from .lab.config import lab_config, list_ignored_checks, render_documents
from .lab.node import Node, wait_until
from .lab.shell import Result
from .world.podnet import connect_nodes
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
KCM = "/etc/kubernetes/manifests/kube-controller-manager.yaml"


def init(node: Node, kb_pyz: Path, plugin: str = "bridge") -> None:
    node.scp(kb_pyz, "/root/kb.pyz")
    config = lab_config(node.release.minor, address=node.address, kb={"podNetwork": {"plugin": plugin}})
    node.write("/root/init.yaml", config)
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)


def make_token(node: Node, words: str = "", program: str = KB) -> tuple[str, str]:
    """(token, pin) of a fresh join command, made on a control plane."""
    shown = node.run(f"{program} token create --print-join-command {words}").stdout
    found = re.fullmatch(rf"{program} join \S+ --token (\S+) --discovery-token-ca-cert-hash (\S+) \n", shown)
    assert found, shown
    return found[1], found[2]


def join(node: Node, server: Node, token: str, pin: str, words: str = "", *, check: bool = True) -> Result:
    line = f"{KB} join {server.address}:6443 --token {token} --discovery-token-ca-cert-hash {pin} {IGNORE} {words}"
    return node.run(line, check=check, timeout=600)


def pending_requests(server: Node) -> set[str]:
    """The certificate signing requests that nobody has decided about: a kubelet makes one at every start."""
    found = server.get("csr")["items"]
    return {request["metadata"]["name"] for request in found if not request.get("status", {}).get("conditions")}


def read_files(node: Node) -> list[str]:
    """What a second run must leave alone, times included; the kubelet's own notes left out."""
    listing = "cd / && find etc var/lib/kb var/lib/kubelet/*.* usr/local -type f -printf '%p %T@ %m\\n' | sort"
    return [line for line in node.run(listing).stdout.splitlines() if not line.startswith("var/lib/kb/")]


def phases(result: Result) -> dict[str, str]:
    """phase -> its outcome, from the progress lines."""
    rows = re.findall(r"^\[ *\d+/\d+\] (\S+)  .*  (\S+(?: \(.*\))?)$", result.stderr, re.MULTILINE)
    return dict(rows)


# ---- a worker


def test_worker_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A plain machine becomes a Ready worker; pods on both nodes reach each other; again: nothing; reset, and again."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    before = read_files(w1)
    token, pin = make_token(cp1)

    planned = join(w1, cp1, token, pin, "--dry-run")
    assert "would run: systemctl restart kubelet" in planned.stdout and token not in planned.output
    assert read_files(w1) == before

    done = join(w1, cp1, token, pin)
    assert "This node has joined the cluster:" in done.stdout
    assert [name for name, end in phases(done).items() if not re.fullmatch(r"[\d.]+s", end)] == []
    found = cp1.get("node w1")
    assert [c["status"] for c in found["status"]["conditions"] if c["type"] == "Ready"] == ["True"]
    assert not w1.exists("/etc/kubernetes/bootstrap-kubelet.conf")
    assert f"via {cp1.address} dev eth0" in w1.run("ip route show proto 199").stdout
    check_cluster_serves(cp1, server="w1", client="cp1")
    address = cp1.get("pod web")["status"]["podIP"]
    assert "kb e2e web" in cp1.kubectl(f"exec client -- wget -q -O - http://{address}/")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)
    check_cluster_serves(cp1, server="cp1", client="w1")

    # again: nothing, even when the token is gone
    cp1.run(f"{KB} token delete {token}")
    files = read_files(w1)
    again = join(w1, cp1, token, pin)
    assert set(phases(again).values()) == {"unchanged"} and "nothing to do" in again.stderr
    assert read_files(w1) == files

    # the wrong commands for such nodes
    for node, line, code in (
        (w1, f"{KB} init {IGNORE}", "node-is-worker"),
        (cp1, f"{KB} join {cp1.address}:6443 --token {token} --discovery-token-ca-cert-hash {pin}", "node-is-control-plane"),
        (w1, f"{KB} join {cp1.address}:6443 --token {token} --discovery-token-ca-cert-hash {pin} --control-plane", "node-is-worker"),
        (w1, f"{KB} join {cp1.address}:6443 --token {token} --discovery-token-ca-cert-hash sha256:{'0' * 64}", "already-joined"),
    ):  # fmt: skip
        refused = node.run(line, check=False)
        assert f"code:   {code}" in refused.stderr, refused.output
    assert read_files(w1) == files

    # reset takes all of it back, and the machine may come again at once, under its own name
    w1.run(f"{KB} reset --force", timeout=300)
    assert read_files(w1) == before
    assert w1.run("systemctl is-active kubelet", check=False).stdout.strip() != "active"
    assert w1.run("find /var/lib/kubelet /etc/kubernetes -mindepth 1", check=False).stdout == ""
    token, pin = make_token(cp1)
    rejoined = join(w1, cp1, token, pin)
    assert "node w1 is this machine's, from before" in rejoined.stderr
    cp1.wait_node_ready("w1")


@pytest.mark.k8s_versions("1.35")
def test_join_by_file_and_by_document(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A v1beta3 document with a kubeconfig as discovery, patches, taints and a name; phase by phase."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    token, _ = make_token(cp1)
    w1.write(
        "/root/found.conf", cp1.kubectl("-n kube-public get configmap cluster-info -o jsonpath={.data.kubeconfig}")
    )
    w1.write("/root/patches/kubeletconfiguration.json", json.dumps({"maxPods": 77}))
    taints = [{"key": "lab", "value": "yes", "effect": "NoSchedule"}]
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "JoinConfiguration",
        "discovery": {"file": {"kubeConfigPath": "/root/found.conf"}, "tlsBootstrapToken": token, "timeout": "20s"},
        "nodeRegistration": {"name": "worker-x", "taints": taints, "kubeletExtraArgs": {"node-labels": "a=b"}},
        "patches": {"directory": "/root/patches"},
    }  # fmt: skip
    w1.write("/root/join.yaml", render_documents(document))
    for phase in ("install/sysctls", "preflight", "kubelet-start", "kubelet-wait-bootstrap"):
        w1.run(f"{KB} join phase {phase} --config join.yaml {IGNORE},Service-kubelet")
    wait_until(lambda: cp1.get("node worker-x"), what="the node", timeout_s=60)
    assert [t["key"] for t in cp1.get("node worker-x")["spec"]["taints"]].count("lab") == 1
    w1.run(f"{KB} join --config join.yaml {IGNORE}", timeout=300)
    found = cp1.get("node worker-x")
    assert (found["metadata"]["labels"]["a"], found["status"]["capacity"]["pods"]) == ("b", "77")
    # the node's controller takes its own (not-ready) away a moment after the node is Ready
    assert [t["key"] for t in found["spec"]["taints"] if not t["key"].startswith("node.kubernetes.io/")] == ["lab"]


# ---- errors


def code_of(result: Result) -> str:
    found = re.search(r"^  code:   (\S+)$", result.stderr, re.MULTILINE)
    assert found, result.output
    return found[1]


def write_join(node: Node, server: str, token: str, pin: Optional[str], **fields: Any) -> None:
    """A document with short patience."""
    bootstrap = {"token": token, "apiServerEndpoint": server, **({"caCertHashes": [pin]} if pin else {"unsafeSkipCAVerification": True})}  # fmt: skip
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": bootstrap}, "timeouts": {"discovery": "3s", "tlsBootstrap": "15s"}, **fields,
    }  # fmt: skip
    node.write("/root/join.yaml", render_documents(document))


@pytest.mark.k8s_versions("1.35")
def test_errors_by_their_causes(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    before = read_files(w1)
    token, pin = make_token(cp1)
    api = f"{cp1.address}:6443"

    def fails(server: str, token: str, pin: Optional[str], words: str = "", **fields: Any) -> Result:
        write_join(w1, server, token, pin, **fields)
        result = w1.run(f"{KB} join --config join.yaml {IGNORE} {words}", check=False, timeout=120)
        assert result.code != 0 and token not in result.output, result.output
        return result

    wrong_secret = token[:7] + "0" * 16
    for server, given, given_pin, code, hint in (
        (api, "abc", pin, "invalid-config", "not a bootstrap token"),
        (api, "aaaaaa.bbbbbbbbbbbbbbbb", pin, "token-unknown", "kb.pyz token create --print-join-command"),
        (api, "aaaaaa.bbbbbbbbbbbbbbbb", None, "token-unknown", "kb.pyz token list"),
        (api, wrong_secret, pin, "token-secret-wrong", token[:6]),
        (api, token, "sha256:" + "0" * 64, "ca-hash-mismatch", pin),
        (f"{cp1.address}:6444", token, pin, "endpoint-refused", "nothing listens at"),
        (f"{cp1.address}:22", token, pin, "not-an-api-server", "6443 is usual"),
        (f"{cp1.address}:10250", token, pin, "not-an-api-server", "6443 is usual"),
        ("10.77.0.99:6443", token, pin, "endpoint-unreachable", "curl -vk https://10.77.0.99:6443"),
        ("no-such-name.invalid:6443", token, pin, "endpoint-unknown-name", "getent hosts no-such-name.invalid"),
    ):
        result = fails(server, given, given_pin)
        assert code_of(result) == code and hint in result.stderr, result.output
    for word in ("abc", token[:-1], token.upper(), token.replace(".", "-"), f"{token}0"):
        line = f"{KB} join {api} --token {word} --discovery-token-ca-cert-hash {pin} {IGNORE}"
        refused = w1.run(line, check=False, timeout=60)
        assert refused.code == 2 and code_of(refused) == "invalid-config", refused.output
        assert "--token: not a bootstrap token" in refused.stderr and "--discovery" not in refused.stderr, (
            refused.output
        )
        assert word == "abc" or word not in refused.output, "almost a secret"
    taken = fails(api, token, pin, "--node-name cp1")
    assert code_of(taken) == "node-name-taken"
    assert re.search(rf"it has the address {re.escape(cp1.address)} and is \d+ (s|min) old", taken.stderr), taken.output
    skewed = w1.run(
        "python3 - <<'E'\nimport datetime, sys\nsys.path.insert(0, 'kb.pyz')\nfrom kubeup.machine import local_host\nimport kb\n"
        "local_host.LocalHost.now = lambda self: datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=185)\n"
        f"sys.exit(kb.main(['join', '{api}', '--token', '{token}', '--discovery-token-ca-cert-hash', '{pin}']))\nE",
        check=False,
    )
    assert "[ERROR ClockSkew]: this node's clock is 3 h 5 min behind the API server's" in skewed.stderr, skewed.output
    assert read_files(w1) == before

    # without the controller-manager: nobody signs, approves, or cleans up
    short, _ = make_token(cp1, "--ttl 25s")
    wait_until(lambda: f"jws-kubeconfig-{short[:6]}" in cp1.kubectl("-n kube-public get cm cluster-info -o yaml"),
               what="a signature", timeout_s=20)  # fmt: skip
    cp1.run(f"mv {KCM} /root/kcm.yaml")
    wait_until(lambda: not cp1.run("crictl ps -q --name kube-controller-manager").stdout.strip(),
               what="the controller-manager to end", timeout_s=60)  # fmt: skip
    late, _ = make_token(cp1)
    unsigned = fails(api, late, pin)
    assert code_of(unsigned) == "cluster-info-unsigned" and "kube-controller-manager" in unsigned.stderr
    wait_until(lambda: "<invalid>" in cp1.run(f"{KB} token list").stdout, what="the token to expire", timeout_s=60)
    expired = fails(api, short, pin)
    assert code_of(expired) == "token-expired", expired.output

    pending = fails(api, token, pin)
    assert code_of(pending) == "csr-pending", pending.output
    request = re.search(r"kubectl certificate approve (\S+);", pending.stderr)
    assert request, pending.output
    cp1.kubectl(f"certificate approve {request[1]}")
    assert code_of(fails(api, token, pin)) == "csr-not-signed"
    cp1.kubectl(f"delete csr {request[1]}")
    older = pending_requests(cp1)
    running = w1.popen(f"{KB} join --config join.yaml {IGNORE}")
    denied: set[str] = set()

    def is_turned_away() -> bool:
        # the kubelet asks under names that the API server makes up: once as it is, once more when kb has restarted it
        for name in pending_requests(cp1) - older:
            cp1.kubectl(f"certificate deny {name}")
            denied.add(name)
        return running.poll() is not None

    wait_until(is_turned_away, what="the join to end", timeout_s=90)
    text, _ = running.communicate(timeout=60)
    assert "code:   csr-denied" in text, text
    cp1.kubectl(f"delete csr {' '.join(sorted(denied))}")
    cp1.run(f"mv /root/kcm.yaml {KCM}")
    wait_until(lambda: f"jws-kubeconfig-{late[:6]}" in cp1.kubectl("-n kube-public get cm cluster-info -o yaml"),
               what="the controller-manager to work again", timeout_s=120)  # fmt: skip

    # and the same command goes on to the end
    write_join(w1, api, token, pin)
    w1.run(f"{KB} join --config join.yaml {IGNORE}", timeout=300)
    cp1.wait_node_ready("w1")


@pytest.mark.k8s_versions("1.35")
def test_a_kubelet_that_does_not_ask(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """No certificate signing request comes: since the token has no right to it, or the kubelet reaches no API server."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    api = f"{cp1.address}:6443"

    def fails() -> Result:
        write_join(w1, api, token, pin)
        result = w1.run(f"{KB} join --config join.yaml {IGNORE}", check=False, timeout=120)
        assert result.code == 5 and code_of(result) == "csr-not-sent", result.output
        assert not [r for r in cp1.get("csr")["items"] if r["spec"]["username"].startswith("system:bootstrap:")]
        return result

    cp1.kubectl("delete clusterrolebinding kubeadm:kubelet-bootstrap")
    token, pin = make_token(cp1)
    refused = fails()
    assert "ClusterRoleBinding kubeadm:kubelet-bootstrap" in refused.stderr, refused.output
    assert "kb.pyz init phase bootstrap-token" in refused.stderr
    cp1.run(f"{KB} init phase bootstrap-token --config init.yaml")
    assert cp1.get("clusterrolebinding kubeadm:kubelet-bootstrap")["subjects"]

    # a proxy that the kubelet's unit names and nobody runs: kb itself reaches the API server
    w1.write(
        "/etc/systemd/system/kubelet.service.d/50-proxy.conf", "[Service]\nEnvironment=HTTPS_PROXY=http://127.0.0.1:9\n"
    )
    lost = fails()
    assert re.search(r"cause: .*(127\.0\.0\.1:9|proxy)", lost.stderr), lost.output
    w1.run("rm /etc/systemd/system/kubelet.service.d/50-proxy.conf")
    w1.run(f"{KB} join --config join.yaml {IGNORE}", timeout=300)
    cp1.wait_node_ready("w1")


@pytest.mark.k8s_versions("1.35")
def test_killed_while_it_joins(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """SIGKILL at every phase boundary and inside, then the same command: a Ready member, asked for once."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    w1.scp(killer.PROGRAM, "/root/killer.py")
    token, pin = make_token(cp1)
    line = f"{KB} join {cp1.address}:6443 --token {token} --discovery-token-ca-cert-hash {pin} {IGNORE}"
    for phase, delay_s in [
        *((number, 0.0) for number in range(1, 6)),
        (2, 0.2),
        (2, 0.6),
        (3, 0.4),
        (3, 1.0),
        (0, 0.5),
    ]:
        wish = {"argv": line.split(), "phase": phase, "delay_s": delay_s, "signal": 9}
        seen = json.loads(w1.run(["python3", "killer.py", json.dumps(wish)], timeout=300).stdout)
        assert "HALF" not in seen["keys"].values(), (phase, delay_s, seen)
    w1.run(line, timeout=300)
    cp1.wait_node_ready("w1")
    assert not w1.exists("/etc/kubernetes/bootstrap-kubelet.conf")
    assert "nothing to do" in w1.run(line, timeout=300).stderr
    requests = [r for r in cp1.get("csr")["items"] if r["spec"]["username"].startswith("system:bootstrap:")]
    assert all(condition["type"] == "Approved" for r in requests for condition in r["status"]["conditions"])


@pytest.mark.k8s_versions("1.35")
def test_kubelet_newer_than_the_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version="1.36", containerd="1.6")
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    refused = join(w1, cp1, *make_token(cp1), check=False)
    assert refused.code == 3
    assert re.search(
        r"\[ERROR KubeletVersion\]: kubelet v1\.36\.\d+ is newer than the control plane v1\.35", refused.stderr
    )


# ---- with kubeadm


@pytest.mark.k8s_versions("1.35")
def test_kb_s_worker_of_kubeadm_s_cluster(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1 = make_node("cp1", version=k8s_version, kubeadm=True)
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address))
    cp1.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    w1 = make_node("w1", version=k8s_version)
    w1.scp(kb_pyz, "/root/kb.pyz")
    done = join(w1, cp1, *make_token(cp1, program="kubeadm"))
    assert "node w1 has joined and is not Ready yet" in done.stderr
    connect_nodes([cp1, w1])
    cp1.wait_node_ready("w1")
    check_cluster_serves(cp1, server="w1", client="cp1")


@pytest.mark.k8s_versions("1.35")
def test_kubeadm_s_worker_of_kb_s_cluster(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kubeadm joins by the words that kb prints; both tools show, make and delete tokens alike."""
    cp1 = make_node("cp1", version=k8s_version, kubeadm=True)
    init(cp1, kb_pyz, plugin="none")
    w1 = make_node("w1", version=k8s_version, kubeadm=True)
    shown = cp1.run(f"{KB} token create --print-join-command").stdout.strip()
    assert shown.startswith(f"{KB} join "), shown
    w1.run(f"{shown.replace(KB, 'kubeadm', 1)} {IGNORE}", timeout=300)
    connect_nodes([cp1, w1])
    cp1.wait_node_ready("w1")
    check_cluster_serves(cp1, server="w1", client="cp1")

    cp1.run(f"{KB} token create abcdef.0123456789abcdef --ttl 0 --description 'for ever' --usages signing")
    cp1.run("kubeadm token create --ttl 50h --groups system:bootstrappers:a --groups system:bootstrappers:b")
    by_kubeadm, by_kb = (cp1.run(f"{program} token list").stdout for program in ("kubeadm", KB))
    assert [re.split(r"  +", row.strip()) for row in by_kb.splitlines()] == [
        re.split(r"  +", row.strip()) for row in by_kubeadm.splitlines()
    ]
    assert by_kb == by_kubeadm
    by_kubeadm, by_kb = (cp1.run(f"{program} token list -o json").stdout for program in ("kubeadm", KB))
    assert read_objects(by_kb) == read_objects(by_kubeadm)
    again = cp1.run(f"{KB} token create abcdef.0123456789abcdef", check=False)
    assert 'a token with id "abcdef" already exists' in again.stderr and again.code == 5
    assert cp1.run(f"{KB} token delete abcdef").stdout == 'bootstrap token "abcdef" deleted\n'
    assert "abcdef" not in cp1.run("kubeadm token list").stdout

    key = cp1.run(f"{KB} certs certificate-key").stdout.strip()
    shown = cp1.run(f"{KB} token create --print-join-command --certificate-key {key}").stdout
    assert shown.endswith(f" --control-plane --certificate-key {key}\n")
    assert "ca.key" in cp1.get("secret -n kube-system kubeadm-certs")["data"]


def read_objects(text: str) -> list[Any]:
    """JSON objects one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append({key: item for key, item in value.items() if key != "creationTimestamp"})
        place += len(text[place:]) - len(text[place:].lstrip())
    return found
