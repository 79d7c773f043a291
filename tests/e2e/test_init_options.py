"""What `kb init` is told is what runs: options of every kind, seen in the live processes, objects and files of real nodes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import KUBECONFIG, Node, wait_until
from .lab.shell import Result, sh
from .world.own_etcd import ask_etcd, give_client_files, make_certificates, render_external_etcd, start_etcd
from .world.podnet import CONFLIST, render_conflist
from .world.web import PAGE, apply, check_cluster_serves, render_pod, render_service, wait_service_account

MakeNode = Callable[..., Node]
INIT = "python3 kb.pyz init --config init.yaml --ignore-preflight-errors=" + ",".join(list_ignored_checks())
BRIDGE = {"podNetwork": {"plugin": "bridge"}}
LISTING = "cd / && find etc usr/lib/systemd var/lib/kb var/lib/kubelet/*.* -type f -printf '%p %T@ %m\\n' 2>/dev/null | grep -v -e kb/state.json -e kb/lock | sort"  # fmt: skip
# What is in no log, argument list, state file or result: keys, and the secret half of a token (its id is public).
TOKEN_ID, TOKEN_SECRET = "abcdef", "0123456789fedcba"
SECRET_MARKS = (
    "PRIVATE KEY",
    "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVkt",
    "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS",
    TOKEN_SECRET,
)

PUBLIC = "203.0.113.9"
ENDPOINT = "api.kb.test"


# ---- helpers


def put(node: Node, kb_pyz: Path, config: str) -> None:
    """kb and its configuration on a node, as its README says."""
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", config)


def init(node: Node, flags: str = "", *, check: bool = True) -> Result:
    return node.run(f"{INIT} {flags}".strip(), check=check, timeout=600)


def init_again_is_a_no_op(node: Node, flags: str = "") -> None:
    """The same words a second time: nothing to do, no file touched, every container as old as before."""
    ids = "crictl ps -q --label io.kubernetes.pod.namespace=kube-system 2>/dev/null | sort"
    before = set(node.run(f"{LISTING}; {ids}").stdout.splitlines())
    result = init(node, flags)
    assert "nothing to do" in result.output, result.output
    assert set(node.run(f"{LISTING}; {ids}").stdout.splitlines()) ^ before == set()


def command_line(node: Node, component: str) -> list[str]:
    """The words of the living process, which the manifest only announces."""
    words = node.run(f"tr '\\0' '\\n' </proc/$(pidof -s {component})/cmdline").stdout.splitlines()
    assert words
    return words


def environment(node: Node, component: str) -> list[str]:
    return node.run(f"tr '\\0' '\\n' </proc/$(pidof -s {component})/environ").stdout.splitlines()


def last_flag(words: list[str], flag: str) -> Optional[str]:
    values = [word.partition("=")[2] for word in words if word.startswith(f"--{flag}=")]
    return values[-1] if values else None


def fetch_by_name(node: Node, url: str) -> str:
    """The page behind `url`, asked in a pod; the loop waits for CoreDNS and for kube-proxy's rules."""
    return str(wait_until(lambda: node.kubectl(f"exec client -- wget -q -O - {shlex.quote(url)}").strip(),
                          what=f"{url} in a pod", timeout_s=90, every_s=1))  # fmt: skip


def start_web_and_client(node: Node, **service: Any) -> None:
    wait_service_account(node)
    sleep = ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1; done"]
    found = render_service("web")
    found["spec"].update(service)
    apply(node, render_pod("web"), found, render_pod("client", command=sleep))
    node.wait_pods_ready("default", "app=web")
    node.wait_pods_ready("default", "app=client")


def read_state(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.read("/var/lib/kb/state.json"))
    return found


def openssl(node: Node, path: str) -> str:
    return node.run(f"openssl x509 -noout -text -in {path}").stdout


# ---- every kind of option at once

PATCHES = {
    "kube-apiserver0+strategic.yaml": "metadata:\n  annotations:\n    kb.test/patch: strategic\n",
    "kube-controller-manager+merge.json": '{"metadata": {"annotations": {"kb.test/patch": "merge"}}}',
    "kube-scheduler+json.yaml": "- {op: add, path: /metadata/annotations, value: {kb.test/patch: json}}\n",
    "etcd.yaml": "metadata:\n  annotations:\n    kb.test/patch: default\n",
    "kubeletconfiguration+merge.yaml": "maxPods: 42\n",
    "corednsdeployment+strategic.yaml": "spec:\n  replicas: 1\n  template:\n    metadata:\n      annotations:\n        kb.test/patch: dns\n",
}
AUDIT_POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"
PKI = "/etc/kb-pki"
ETCD_DATA = "/var/lib/etcd/blue"


def config_with_everything(node: Node) -> str:
    kb_env = [{"name": "KB_E2E", "value": "seen"}]
    return lab_config(
        node.release.minor,
        address=node.address,
        init={
            "localAPIEndpoint": {"advertiseAddress": node.address, "bindPort": 7443},
            "nodeRegistration": {
                "name": "blue-cp1",
                "kubeletExtraArgs": [
                    {"name": "node-labels", "value": "kb.test/colour=blue"},
                    {"name": "v", "value": "3"},
                ],
                "taints": [{"key": "kb.test/own", "value": "yes", "effect": "PreferNoSchedule"}],
            },
            "bootstrapTokens": [{"token": f"{TOKEN_ID}.{TOKEN_SECRET}", "description": "of the test"}],
            "patches": {"directory": "/root/patches"},
        },
        cluster={
            "clusterName": "blue",
            "certificatesDir": PKI,
            "encryptionAlgorithm": "ECDSA-P256",
            "certificateValidityPeriod": "1000h",
            "controlPlaneEndpoint": f"{ENDPOINT}:7443",
            "featureGates": {"NodeLocalCRISocket": False},
            "networking": {"serviceSubnet": "10.200.0.0/16", "podSubnet": "10.99.0.0/16", "dnsDomain": "kb.test"},
            "apiServer": {
                "certSANs": ["public.kb.test", PUBLIC],
                "extraArgs": [
                    {"name": "audit-policy-file", "value": "/etc/kb-audit/policy.yaml"},
                    {"name": "audit-log-path", "value": "/var/log/kb-audit/audit.log"},
                    {"name": "service-account-issuer", "value": "https://new.kb.test"},
                    {"name": "service-account-issuer", "value": "https://kubernetes.default.svc.kb.test"},
                ],
                "extraVolumes": [
                    {"name": "policy", "hostPath": "/etc/kb-audit", "mountPath": "/etc/kb-audit",
                     "readOnly": True, "pathType": "Directory"},
                    {"name": "log", "hostPath": "/var/log/kb-audit", "mountPath": "/var/log/kb-audit",
                     "pathType": "DirectoryOrCreate"},
                ],
                "extraEnvs": kb_env,
            },
            "controllerManager": {
                "extraArgs": [{"name": "node-cidr-mask-size", "value": "25"}],
                "extraEnvs": kb_env,
            },
            "scheduler": {"extraArgs": [{"name": "v", "value": "4"}], "extraEnvs": kb_env},
            "etcd": {
                "local": {
                    "dataDir": ETCD_DATA,
                    "extraArgs": [{"name": "heartbeat-interval", "value": "150"}],
                    "extraEnvs": kb_env,
                    "serverCertSANs": ["etcd.kb.test"],
                    "peerCertSANs": ["peer.kb.test"],
                }
            },
        },
        kb=BRIDGE,
    )  # fmt: skip


def prepare_everything(node: Node, kb_pyz: Path) -> None:
    put(node, kb_pyz, config_with_everything(node))
    node.run(f"echo {node.address} {ENDPOINT} >>/etc/hosts")
    node.write("/etc/kb-audit/policy.yaml", AUDIT_POLICY)
    for name, text in PATCHES.items():
        node.write(f"/root/patches/{name}", text)


def test_every_option_is_seen_in_effect(make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    prepare_everything(node, kb_pyz)
    shown = init(node)
    node.wait_node_ready("blue-cp1")

    check_processes(node)
    check_certificates(node)
    check_patches(node)
    check_node_and_kubelet(node)
    check_service_addresses(node)
    assert f"python3 kb.pyz join {ENDPOINT}:7443 --token {TOKEN_ID}.{TOKEN_SECRET}" in shown.stdout

    start_web_and_client(node)
    assert fetch_by_name(node, "http://web.default.svc.kb.test/") == PAGE
    assert fetch_by_name(node, "http://web/") == PAGE
    check_kubeconfig_user(node, lab)
    init_again_is_a_no_op(node)


def check_processes(node: Node) -> None:
    server = command_line(node, "kube-apiserver")
    assert last_flag(server, "secure-port") == "7443"
    assert last_flag(server, "service-cluster-ip-range") == "10.200.0.0/16"
    assert last_flag(server, "tls-cert-file") == f"{PKI}/apiserver.crt"
    issuers = [word for word in server if word.startswith("--service-account-issuer=")]
    assert issuers == [
        "--service-account-issuer=https://new.kb.test",
        "--service-account-issuer=https://kubernetes.default.svc.kb.test",
    ]
    manager = command_line(node, "kube-controller-manager")
    assert last_flag(manager, "cluster-name") == "blue"
    assert last_flag(manager, "cluster-cidr") == "10.99.0.0/16"
    assert last_flag(manager, "node-cidr-mask-size") == "25"
    assert last_flag(command_line(node, "kube-scheduler"), "v") == "4"
    etcd = command_line(node, "etcd")
    assert last_flag(etcd, "data-dir") == ETCD_DATA
    assert last_flag(etcd, "heartbeat-interval") == "150"
    assert node.exists(f"{ETCD_DATA}/member/wal")
    for component in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"):
        assert "KB_E2E=seen" in environment(node, component), component
    wait_until(lambda: '"kind":"Event"' in node.run("head -c 300 /var/log/kb-audit/audit.log", check=False).stdout,
               what="the audit log on the node", timeout_s=20)  # fmt: skip


def check_certificates(node: Node) -> None:
    text = openssl(node, f"{PKI}/apiserver.crt")
    assert "ASN1 OID: prime256v1" in text
    for san in ("DNS:public.kb.test", f"IP Address:{PUBLIC}", f"DNS:{ENDPOINT}", "DNS:kubernetes.default.svc.kb.test", "IP Address:10.200.0.1", "DNS:blue-cp1"):  # fmt: skip
        assert san in text, san
    assert "DNS:etcd.kb.test" in openssl(node, f"{PKI}/etcd/server.crt")
    assert "DNS:peer.kb.test" in openssl(node, f"{PKI}/etcd/peer.crt")
    # 1000 hours: still good in 41 days, no more in 42
    assert node.run(f"openssl x509 -noout -checkend $((41*86400)) -in {PKI}/apiserver.crt", check=False).ok
    assert not node.run(f"openssl x509 -noout -checkend $((42*86400)) -in {PKI}/apiserver.crt", check=False).ok
    assert not node.exists("/etc/kubernetes/pki")
    modes = node.run(f"find {PKI} -name '*.key' -printf '%m\\n'; stat -c %a /etc/kubernetes/*.conf").stdout.split()
    assert set(modes) == {"600"}


def check_patches(node: Node) -> None:
    def annotation(pod: str) -> Optional[str]:
        found = node.get(f"pod -n kube-system {pod}-blue-cp1")["metadata"]["annotations"]
        return str(found.get("kb.test/patch"))

    assert annotation("kube-apiserver") == "strategic"
    assert annotation("kube-controller-manager") == "merge"
    assert annotation("kube-scheduler") == "json"
    assert annotation("etcd") == "default"
    dns = node.get("deployment -n kube-system coredns")["spec"]
    assert dns["replicas"] == 1
    assert dns["template"]["metadata"]["annotations"]["kb.test/patch"] == "dns"


def check_node_and_kubelet(node: Node) -> None:
    found = node.get("node blue-cp1")
    assert found["metadata"]["labels"]["kb.test/colour"] == "blue"
    assert found["status"]["capacity"]["pods"] == "42"
    assert found["spec"]["podCIDR"].endswith("/25") and found["spec"]["podCIDR"].startswith("10.99.")
    taints = [t for t in found["spec"].get("taints", []) if not t["key"].startswith("node.kubernetes.io/")]
    assert taints == [{"key": "kb.test/own", "value": "yes", "effect": "PreferNoSchedule"}]
    # the gate turned off: the annotation is back
    assert found["metadata"]["annotations"]["kubeadm.alpha.kubernetes.io/cri-socket"].endswith("containerd.sock")
    assert last_flag(command_line(node, "kubelet"), "v") == "3"
    stored = node.get("configmap -n kube-system kubeadm-config")["data"]["ClusterConfiguration"]
    for line in ("clusterName: blue", f"certificatesDir: {PKI}", f"controlPlaneEndpoint: {ENDPOINT}:7443", "encryptionAlgorithm: ECDSA-P256"):  # fmt: skip
        assert line in stored, line
    admin = node.run(f"kubectl --kubeconfig {KUBECONFIG} config view -o json").stdout
    assert json.loads(admin)["clusters"][0] == {
        "name": "blue",
        "cluster": {"certificate-authority-data": "DATA+OMITTED", "server": f"https://{ENDPOINT}:7443"},
    }


def check_service_addresses(node: Node, domain: str = "kb.test") -> None:
    """The API's Service, the DNS' and the kubelet's word for it follow the service subnet together."""
    assert node.get("service kubernetes")["spec"]["clusterIP"] == "10.200.0.1"
    assert node.get("service -n kube-system kube-dns")["spec"]["clusterIP"] == "10.200.0.10"
    name = node.get("nodes")["items"][0]["metadata"]["name"]
    live = json.loads(node.kubectl(f"get --raw /api/v1/nodes/{name}/proxy/configz"))["kubeletconfig"]
    assert (live["clusterDNS"], live["clusterDomain"]) == (["10.200.0.10"], domain)


def check_kubeconfig_user(node: Node, lab: Lab) -> None:
    """A user's kubeconfig for a public address works from a machine that is no node; a name without a SAN is refused."""
    make = "python3 kb.pyz kubeconfig user --config init.yaml --client-name alice --org kubeadm:cluster-admins"
    text = node.run(f"{make} --server {PUBLIC}:7443").stdout
    assert f"server: https://{PUBLIC}:7443" in text
    node.run(f"ip address add {PUBLIC}/32 dev eth0")
    lab.exec(f"ip route replace {PUBLIC}/32 via {node.address}")
    place = lab.folder / "alice.conf"
    place.write_text(text)
    place.chmod(0o600)
    kubectl = [str(node.release.binary("kubectl")), f"--kubeconfig={place}"]
    try:
        who = json.loads(lab.exec([*kubectl, "auth", "whoami", "-o", "json"]).stdout)["status"]["userInfo"]
        assert (who["username"], sorted(who["groups"])) == ("alice", ["kubeadm:cluster-admins", "system:authenticated"])
        assert "blue-cp1" in lab.exec([*kubectl, "get", "nodes", "-o", "name"]).stdout
    finally:
        place.unlink()
        lab.exec(f"ip route delete {PUBLIC}/32", check=False)
        node.run(f"ip address delete {PUBLIC}/32 dev eth0")
    refused = node.run(f"{make} --server other.kb.test:7443", check=False)
    assert refused.code == 2
    assert "server-not-in-certificate" in refused.stderr and "other.kb.test" in refused.stderr
    assert refused.stdout == ""
    # a name alone means the port of this API server
    assert "server: https://public.kb.test:7443" in node.run(f"{make} --server public.kb.test").stdout


# ---- external etcd, external CA


@pytest.mark.k8s_versions("1.35", "1.36")
def test_external_etcd(make_node: MakeNode, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    node = make_node("cp1", version=k8s_version)
    store = make_node("etcd1")
    make_certificates(tmp_path / "own", store.address)
    url = start_etcd(store, node.release.binary("etcd"), tmp_path / "own")
    give_client_files(node, tmp_path / "own")
    etcd = render_external_etcd(url)
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, cluster={"etcd": etcd}, kb=BRIDGE))
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)
    assert last_flag(command_line(node, "kube-apiserver"), "etcd-servers") == url
    assert not node.exists("/etc/kubernetes/manifests/etcd.yaml")
    assert not node.exists("/etc/kubernetes/pki/etcd")
    assert not node.exists("/etc/kubernetes/pki/apiserver-etcd-client.crt")
    assert node.run("pidof etcd", check=False).stdout == ""
    # the cluster's data is there and nowhere else
    key = "L3JlZ2lzdHJ5L21pbmlvbnMvY3Ax"  # /registry/minions/cp1
    assert ask_etcd(store, url, "kv/range", {"key": key, "keys_only": True})["count"] == "1"
    init_again_is_a_no_op(node)


@pytest.mark.k8s_versions("1.35")
def test_external_ca(make_node: MakeNode, kb_pyz: Path, k8s_version: str, tmp_path: Path) -> None:
    """The keys of both CAs never come to the node: certificates and kubeconfigs are made elsewhere, by kb --root."""
    node = make_node("cp1", version=k8s_version)
    config = lab_config(k8s_version, address=node.address, node_name="cp1", kb=BRIDGE)
    put(node, kb_pyz, config)
    (tmp_path / "init.yaml").write_text(config)
    made = tmp_path / "made"
    for phases in ("certs all", "kubeconfig all"):
        sh(
            [
                "python3",
                str(kb_pyz),
                "init",
                "phase",
                *phases.split(),
                "--config",
                f"{tmp_path}/init.yaml",
                "--root",
                str(made),
            ]
        )
    keys = [made / "etc/kubernetes/pki" / name for name in ("ca.key", "front-proxy-ca.key")]
    for key in keys:
        key.unlink()
    sh(["tar", "-C", str(made), "-czf", f"{tmp_path}/made.tgz", "etc/kubernetes"])
    node.scp(tmp_path / "made.tgz")
    node.run("tar -C / -xzf /root/made.tgz")
    given = "cd /etc/kubernetes && find . -type f ! -path './manifests/*' | sort | xargs sha256sum"
    before = node.run(given).stdout
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)
    after = node.run(given).stdout
    assert [line for line in after.splitlines() if "kubelet.conf" not in line] == [
        line for line in before.splitlines() if "kubelet.conf" not in line
    ]
    manager = command_line(node, "kube-controller-manager")
    assert last_flag(manager, "cluster-signing-key-file") == ""
    assert not node.run("find /etc/kubernetes -name 'ca.key' -not -path '*/etcd/*'").stdout
    init_again_is_a_no_op(node)


# ---- verify


@pytest.mark.k8s_versions("1.35")
def test_kube_proxy_without_rules_is_caught(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kube-proxy with a mode that this kernel does not have: init must not call that ready, and says who cannot."""
    node = make_node("cp1", version=k8s_version)
    config = lab_config(
        k8s_version, address=node.address, init={"timeouts": {"kubeletHealthCheck": "45s"}}, kb={**BRIDGE, "soak": "5s"}
    )
    put(node, kb_pyz, config)
    broken = config.replace("conntrack:", 'iptables: {"minSyncPeriod": "1s"}\nmode: ipvs\nconntrack:')
    assert broken != config
    node.write("/root/init.yaml", broken)
    failed = init(node, check=False)
    assert failed.code == 5, failed.output
    assert "error execution phase verify" in failed.stderr
    assert "kube-proxy" in failed.stderr
    assert re.search(r"(?i)ipvs", failed.stderr.partition("error execution phase verify")[2]), failed.stderr
    assert "initialized successfully" not in failed.stdout
    # mended: the same command goes on where it stopped
    node.write("/root/init.yaml", config.replace("45s", "4m"))
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)


@pytest.mark.k8s_versions("1.35")
def test_kube_proxy_that_runs_without_rules_is_caught(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A kube-proxy that runs, but whose every write of rules is refused."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz, lab_config(k8s_version, address=node.address,
                                 init={"timeouts": {"kubeletHealthCheck": "30s"}}, kb={**BRIDGE, "soak": "0s"}))  # fmt: skip
    quiet = init(node)
    assert "--soak 0" in quiet.stderr  # it says that nothing was proven
    node.wait_pods_ready("kube-system")  # what init left unproven: it may still be on its way
    take_rules_away(node)
    failed = init(node, "--soak 3s", check=False)
    assert failed.code == 5, failed.output
    said = failed.stderr.partition("error execution phase verify")[2]
    assert "kube-proxy says" in said and "iptables" in said, failed.stderr
    assert node.get("pods -n kube-system -l k8s-app=kube-proxy")["items"][0]["status"]["containerStatuses"][0]["ready"]


def take_rules_away(node: Node) -> None:
    """Take the program from a running kube-proxy with which it writes rules, and the rules; and let it want to write."""
    node.run("cd /proc/$(pidof -s kube-proxy)/root/usr/sbin && mv iptables-restore iptables-restore.off")
    node.run("nft flush chain ip nat KUBE-SERVICES")
    apply(node, render_service("another"))


# ---- the runtime


@pytest.mark.k8s_versions("1.35", "1.36")
def test_without_crictl_containerds_own_ctr_serves(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    node.run("rm -f $(command -v crictl)")
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    init(node)
    node.wait_node_ready()
    check_cluster_serves(node)
    again = init(node)
    assert "nothing to do" in again.output, again.output


# ---- what is not told, and what is not touched

SAMPLER = r"""
import os, stat, time
words, modes = set(), set()
places = ("/etc/kubernetes", "/etc/kubernetes/pki", "/etc/kubernetes/pki/etcd", "/var/lib/kb")
with open("/tmp/sampled", "w") as out:
    while not os.path.exists("/tmp/stop"):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    words.add(file.read().replace("\0", " "))
            except OSError:
                pass
        for place in places:
            try:
                for entry in os.scandir(place):
                    if entry.is_file() and not entry.name.endswith((".crt", ".pub")) and ".crt." not in entry.name:
                        modes.add((entry.path, oct(stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode))))
            except OSError:
                pass
        time.sleep(0.001)
    out.write("\n".join(sorted(words)) + "\nMODES\n" + "\n".join(f"{path} {mode}" for path, mode in sorted(modes)) + "\n")
"""


@contextlib.contextmanager
def sampling(node: Node) -> Iterator[dict[str, str]]:
    """Watch all command lines and the modes of private files on a node for the time of the block."""
    node.write("/tmp/sampler.py", SAMPLER)
    node.run("systemd-run --unit=sampler python3 /tmp/sampler.py")
    seen: dict[str, str] = {}
    try:
        yield seen
    finally:
        node.run("touch /tmp/stop; while systemctl -q is-active sampler; do sleep 0.1; done")
        seen["words"], _, seen["modes"] = node.read("/tmp/sampled").partition("\nMODES\n")


@pytest.mark.k8s_versions("1.35")
def test_no_secret_is_told(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """-o json, state, logs and process lists hold no secret; private files are private at every moment."""
    node = make_node("cp1", version=k8s_version)
    key = "c0ffee" * 10 + "cafe"
    put(node, kb_pyz, lab_config(
        k8s_version, address=node.address, kb=BRIDGE,
        init={"bootstrapTokens": [{"token": f"{TOKEN_ID}.{TOKEN_SECRET}"}], "certificateKey": key},
    ))  # fmt: skip
    with sampling(node) as seen:
        result = init(node, "--upload-certs -v 2 -o json")
    marks = (*SECRET_MARKS, key)
    told = json.loads(result.stdout)  # one document, and nothing beside it
    assert {entry["status"] for entry in told["phases"]} == {"done"}
    assert told["changes"] > 50
    texts = {
        "stdout": result.stdout,
        "stderr": result.stderr,
        "state": node.read("/var/lib/kb/state.json"),
        "process list": seen["words"],
        "journal": node.journal(),
        "kb status": node.run("python3 kb.pyz status -o json").stdout,
    }
    for name, text in texts.items():
        assert text.strip(), name
        for mark in marks:
            assert mark not in text, f"{mark} in {name}"
    assert "kb.pyz" in seen["words"], "the sampler saw nothing of kb"
    private = [line for line in seen["modes"].splitlines() if "/pki/" in line or line.split()[0].endswith(".conf")]
    assert any(line.startswith("/etc/kubernetes/pki/ca.key ") for line in private)
    assert [line for line in private if not line.endswith("0o600")] == []
    assert node.run("stat -c '%a %U' /var/lib/kb/state.json").stdout.split() == ["600", "root"]

    again = json.loads(init(node, "--upload-certs -o json").stdout)
    assert again["changes"] == 0
    assert sh(["python3", "-c", "import yaml, sys; print(yaml.safe_load(sys.stdin)['changes'])"],
              stdin=init(node, "--upload-certs -o yaml").stdout, env=dict(os.environ)).stdout.strip() == "0"  # fmt: skip


TREE = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/log -o -path /var/tmp -o -path /root/.cache \\) -prune -o -printf '%p %y %m %s %U %T@\\n' | sort"  # fmt: skip


@pytest.mark.k8s_versions("1.35", "1.36")
def test_dry_run_changes_nothing(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    look = TREE + "; ls -lR --time-style=full-iso /var/lib/kubelet /var/lib/etcd 2>&1; ip address; ip route; crictl images -q | sort; crictl ps -aq; systemctl is-enabled kubelet 2>&1; sysctl net.ipv4.ip_forward"  # fmt: skip
    init(node, "--dry-run")  # once before, for python's and ssh's own caches
    before = node.run(look).stdout
    done = init(node, "--dry-run")
    assert node.run(look).stdout == before
    assert not node.exists("/var/lib/kb") and not node.exists("/etc/kubernetes/pki")
    assert "would write: /etc/kubernetes/manifests/kube-apiserver.yaml" in done.stdout
    assert "+    - kube-apiserver" in done.stdout  # the diff of a file that is not there yet
    assert "would write: /etc/kubernetes/pki/ca.key" in done.stdout
    assert re.search(r"\d+ changes planned; nothing was changed", done.stdout)
    assert all(mark not in done.output for mark in ("PRIVATE KEY", "client-key-data: "))
    told = json.loads(init(node, "--dry-run -o json").stdout)
    assert {step["kind"] for step in told["plan"]} >= {"write", "run"}

    init(node)  # for real; then the plan of one changed option names that alone
    node.wait_node_ready()
    changed = lab_config(k8s_version, address=node.address, kb=BRIDGE,
                         cluster={"scheduler": {"extraArgs": [{"name": "v", "value": "4"}]}})  # fmt: skip
    node.write("/root/init.yaml", changed)
    before = node.run(LISTING + "; cat /var/lib/kb/state.json").stdout
    plan = init(node, "--dry-run").stdout
    assert node.run(LISTING + "; cat /var/lib/kb/state.json").stdout == before
    files = re.findall(r"^would write: (\S+)", plan, re.MULTILINE)
    assert files == ["/etc/kubernetes/manifests/kube-scheduler.yaml"], plan
    assert re.search(r"^ +\+ +- --v=4$", plan, re.MULTILINE), plan
    # beside added lines there is the one that an empty mapping takes
    assert re.findall(r"^    -(?!--) *(.*)$", plan, re.MULTILINE) == ["scheduler: {}"], plan
    assert re.findall(r"^would request: \S+ \S+/(\S+)$", plan, re.MULTILINE) == ["kubeadm-config"], plan
    assert "2 changes planned; nothing was changed" in plan


@pytest.mark.k8s_versions("1.35")
def test_root_writes_a_node_below_a_folder_without_rights(node: Node, kb_pyz: Path, k8s_version: str) -> None:
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    node.run("mkdir /home/nobody && cp /root/kb.pyz /root/init.yaml /home/nobody/ && chown -R nobody: /home/nobody")
    before = node.run(LISTING).stdout
    as_nobody = "cd /home/nobody && setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/home/nobody "
    done = node.run(as_nobody + "python3 kb.pyz init --config init.yaml --root /home/nobody/made", timeout=300)
    assert node.run(LISTING).stdout == before
    assert not node.exists("/var/lib/kb")
    made = node.run("cd /home/nobody/made && find . -type f | sort").stdout.split()
    for name in (
        "./etc/kubernetes/pki/ca.key",
        "./etc/kubernetes/pki/etcd/server.crt",
        "./etc/kubernetes/admin.conf",
        "./etc/kubernetes/manifests/kube-apiserver.yaml",
        "./etc/kubernetes/manifests/etcd.yaml",
        "./var/lib/kubelet/config.yaml",
        "./var/lib/kb/state.json",
    ):
        assert name in made, name
    assert node.run("cd /home/nobody/made && find . -not -user nobody").stdout == ""
    assert set(node.run("find /home/nobody/made -name '*.key' -printf '%m\\n'").stdout.split()) == {"600"}
    assert "left out, since it needs the running node" in done.stdout
    # without --root the same user is told what is missing
    refused = node.run(as_nobody + "python3 kb.pyz init --config init.yaml", check=False)
    assert refused.code in (3, 4) and "IsPrivilegedUser" in refused.stderr

    # the files are a node's: put in place as they are, init goes on with what needs the running node
    node.run("cd /home/nobody/made && chown -R root: . && cp -a etc var /")
    # (two manifests name the machine's own folders of CA certificates, which a folder elsewhere does not know)
    sums = (
        "cd /etc/kubernetes && sha256sum manifests/etcd.yaml manifests/kube-scheduler.yaml $(find pki -type f | sort)"
    )
    given = node.run(sums).stdout
    init(node)
    node.wait_node_ready()
    assert node.run(sums).stdout == given
    check_cluster_serves(node)


# ---- phases


@pytest.mark.k8s_versions("1.35")
def test_phases_one_by_one(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb=BRIDGE))
    listed = node.run("python3 kb.pyz init --list").stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert names[0] == "install/bundle" and {"preflight", "certs/apiserver"} < set(names)
    assert names[-1] == "show-join-command"
    assert "has not worked on this node yet" in node.run("python3 kb.pyz status").stdout

    wrong = node.run("python3 kb.pyz init phase certs apiservr --config init.yaml", check=False)
    assert wrong.code == 2 and "certs/apiserver" in wrong.stderr and "unknown-phase" in wrong.stderr
    wrong = init(node, "--skip-phases addon/kubeproxy", check=False)
    assert wrong.code == 2 and "addon/kube-proxy" in wrong.stderr
    assert not node.exists("/etc/kubernetes/pki/ca.crt"), "a wrong name was found too late"

    # without kube-proxy: CoreDNS cannot come up over the API's Service, so what is proven ends at the node
    done = init(node, "--skip-phases addon/kube-proxy,verify")
    assert "skipped" in done.stderr
    node.wait_node_ready()
    assert node.kubectl("get daemonset -n kube-system -o name") == ""
    stored = node.get("configmap -n kube-system kubeadm-config")["data"]["ClusterConfiguration"]
    assert re.search(r"proxy:\s+disabled: true", stored), stored

    # a certificate alone: gone, made anew, the authorities untouched
    ca = node.run("sha256sum /etc/kubernetes/pki/ca.key").stdout
    old = node.run("openssl x509 -noout -serial -in /etc/kubernetes/pki/apiserver.crt").stdout
    node.run("rm /etc/kubernetes/pki/apiserver.crt /etc/kubernetes/pki/apiserver.key")
    node.run("python3 kb.pyz init phase certs apiserver --config init.yaml")
    assert node.run("openssl x509 -noout -serial -in /etc/kubernetes/pki/apiserver.crt").stdout != old
    assert node.run("sha256sum /etc/kubernetes/pki/ca.key").stdout == ca
    assert node.run("openssl verify -CAfile /etc/kubernetes/pki/ca.crt /etc/kubernetes/pki/apiserver.crt").ok

    # an addon alone
    node.kubectl("delete deployment -n kube-system coredns")
    node.run("python3 kb.pyz init phase addon coredns --config init.yaml")
    assert node.get("deployment -n kube-system coredns")["spec"]["replicas"] == 2
    assert node.kubectl("get daemonset -n kube-system -o name") == ""

    # the skip forgotten, the whole comes: kube-proxy is installed, verify proves it
    init(node)
    check_cluster_serves(node)
    shown = node.run("python3 kb.pyz status").stdout
    assert re.search(r"^init/verify +done ", shown, re.MULTILINE), shown
    told = json.loads(node.run("python3 kb.pyz status -o json").stdout)
    assert told["phases"]["init/addon/kube-proxy"]["status"] == "done"


@pytest.mark.k8s_versions("1.35")
def test_output_for_people_and_programs(node: Node, kb_pyz: Path, k8s_version: str) -> None:
    """No colour and no control character without a terminal; -v and --debug; completion."""
    put(node, kb_pyz, lab_config(k8s_version, address=node.address, kb={"podNetwork": {"plugin": "none"}}))
    plain = init(node)
    assert "\x1b" not in plain.output and "\r" not in plain.output
    lines = re.findall(r"^\[ *(\d+)/(\d+)\] (\S+) ", plain.stderr, re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == list(range(1, len(lines) + 1))
    assert {total for _, total, _ in lines} == {str(len(lines))}
    # plugin none: said clearly, and no failure
    assert "pod network" in plain.stderr and "NotReady" in plain.stderr
    assert not node.exists("/etc/cni/net.d/99-kb-bridge.conflist")
    with_tty = f"script -qec {shlex.quote(INIT)} /dev/null"
    assert "\x1b" in node.run(with_tty, timeout=120).stdout
    assert not re.search(r"\x1b\[[0-9;]*m", node.run(f"NO_COLOR=1 {with_tty}", timeout=120).stdout)
    loud = node.run("python3 kb.pyz init phase addon coredns --config init.yaml -v 2")
    assert len(loud.stderr.splitlines()) >= len(node.run("python3 kb.pyz init phase addon coredns --config init.yaml").stderr.splitlines())  # fmt: skip
    broken = node.run("python3 kb.pyz init --config /nowhere.yaml --debug", check=False)
    assert broken.code == 2 and "Traceback" in broken.stderr
    quiet = node.run("python3 kb.pyz init --config /nowhere.yaml", check=False)
    assert quiet.code == 2 and "Traceback" not in quiet.stderr and "config-not-readable" in quiet.stderr
    told = node.run("python3 kb.pyz init --config /nowhere.yaml -o json", check=False)
    assert json.loads(told.stdout)["error"]["code"] == "config-not-readable"
    script = node.run("python3 kb.pyz completion bash").stdout
    node.write("/tmp/complete.sh", script)
    node.run("bash -n /tmp/complete.sh")
    # the network that the operator brings makes the node Ready, and CoreDNS comes up
    node.write(CONFLIST, render_conflist())
    node.wait_node_ready()
    check_cluster_serves(node)
