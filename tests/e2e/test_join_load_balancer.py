"""`loadBalancer: {mode: local}` on real nodes: joins without an outside load balancer, losses that nobody notices, CoreDNS spread."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab.config import PATIENT_KUBELET, lab_config, list_ignored_checks
from .lab.images import HAPROXY_IMAGE
from .lab.node import Node, wait_until
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
ENDPOINT = "kb-api.cluster.local:7443"
CFG = "/etc/kubernetes/kb-load-balancer/haproxy.cfg"
MARK = "# kb: the API servers, through this node's load balancer"
RUNNING = "curl -sf --max-time 2 http://127.0.0.1:10281/"
GAP_S = 15.0
"""For how long the API may be away for a client on a node when a machine is lost, this machine's slowness included."""

# One line an attempt: when it began, in seconds, and ok or why not.
API_LOOP = """\
export KUBECONFIG=/etc/kubernetes/{conf}
while :; do began=$(date +%s.%N); why=$(kubectl --request-timeout=4s get --raw {path} 2>&1 >/dev/null) && why=ok
echo "$began $why"; sleep 0.2; done >/root/api.log
"""
# One question after the other, with two tries of two seconds: less patience than a pod's resolver has (two of five).
DNS_LOOP = """\
while :; do began=$(date +%s.%N); why=$(dig +tries=2 +time=2 +short @10.96.0.10 kubernetes.default.svc.cluster.local 2>&1)
echo "$began" $why; sleep 0.05; done >/root/dns.log
"""


def init(node: Node, kb_pyz: Path, *, cluster: Optional[dict[str, Any]] = None, **kb: Any) -> None:
    """cluster: fields of its ClusterConfiguration; kb: of kb's."""
    node.scp(kb_pyz, "/root/kb.pyz")
    wishes = {"loadBalancer": {"mode": "local"}, **kb}
    config = lab_config(
        node.release.minor, address=node.address, kubelet=PATIENT_KUBELET, cluster=cluster or {}, kb=wishes
    )
    node.write("/root/init.yaml", config)
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)


def make_join_command(node: Node, *, control_plane: bool = False) -> str:
    key = f"--certificate-key {node.run(f'{KB} certs certificate-key').stdout.strip()}" if control_plane else ""
    shown = node.run(f"{KB} token create --print-join-command {key}").stdout.strip()
    assert shown.startswith(f"{KB} join ") and ENDPOINT not in shown, shown
    return f"{shown} {IGNORE}"


def join(node: Node, server: Node, kb_pyz: Path, *, control_plane: bool = False) -> None:
    node.scp(kb_pyz, "/root/kb.pyz")
    node.run(make_join_command(server, control_plane=control_plane), timeout=600)


def servers_of(node: Node) -> list[str]:
    text = node.read(CFG).partition("backend ready")[2].partition("backend any")[0]
    return re.findall(r"^ +server \S+ (\S+)", text, re.MULTILINE)


def wait_servers(node: Node, wanted: list[str], *, timeout_s: float) -> None:
    """Until haproxy's file names these, and the running haproxy has read that file."""
    addresses = sorted(f"{address}:6443" for address in wanted)

    def follows() -> bool:
        digest = re.findall(r'string "([0-9a-f]+)"', node.read(CFG))
        return servers_of(node) == addresses and node.run(RUNNING, check=False).stdout == digest[0]

    wait_until(follows, what=f"the load balancer of {node.name} to have {addresses}", timeout_s=timeout_s, every_s=1)


def start_loop(node: Node, script: str, name: str) -> None:
    node.write(f"/root/{name}.sh", script)
    node.run(f"systemd-run --unit {name} sh /root/{name}.sh")


def read_loop(node: Node, name: str) -> list[tuple[float, str]]:
    rows = [line.partition(" ") for line in node.read(f"/root/{name}.log").splitlines()]
    return [(float(began), why) for began, _, why in rows]


def longest_gap(rows: list[tuple[float, str]]) -> float:
    """The longest time between two attempts that went well."""
    good = [began for began, why in rows if why == "ok"]
    return max(after - before for before, after in zip(good, good[1:]))


# ---- one control plane, and a worker


@pytest.mark.k8s_versions("1.35")
def test_a_worker_bootstraps_through_its_own_load_balancer(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    hosts = w1.read("/etc/hosts")
    init(cp1, kb_pyz)
    assert f"server: https://{ENDPOINT}" in cp1.read("/etc/kubernetes/admin.conf")
    assert HAPROXY_IMAGE in cp1.run(f"{KB} config images list --config init.yaml").stdout
    assert HAPROXY_IMAGE not in cp1.run(f"{KB} config images list --kubernetes-version {cp1.release.version}").stdout

    # a question that is asked all the time while a replica of CoreDNS moves
    start_loop(cp1, DNS_LOOP, "dns")
    wait_until(lambda: read_loop(cp1, "dns"), what="the first answer", timeout_s=20)
    join(w1, cp1, kb_pyz)
    assert f"server: https://{ENDPOINT}" in w1.read("/etc/kubernetes/kubelet.conf")
    assert w1.read("/etc/hosts") == f"{hosts}127.0.0.1 kb-api.cluster.local {MARK}\n"
    listening = w1.run("ss -ltnH 'sport = :7443 or sport = :10281'").stdout.split()
    assert {word for word in listening if ":7443" in word or ":10281" in word} == {"127.0.0.1:7443", "127.0.0.1:10281"}

    def are_spread() -> bool:
        pods = cp1.get("pods -n kube-system -l k8s-app=kube-dns")["items"]
        return len(pods) == 2 and {pod["spec"]["nodeName"] for pod in pods} == {"cp1", "w1"}

    wait_until(are_spread, what="CoreDNS on both nodes", timeout_s=120, every_s=1)
    found = cp1.get("deployment -n kube-system coredns")
    assert found["spec"]["replicas"] == 2 and "kb/spread" not in found["metadata"]["annotations"]
    answers = read_loop(cp1, "dns")
    cp1.run("systemctl stop dns")
    assert len(answers) > 50 and {why.split()[-1] for _, why in answers} == {"10.96.0.1"}, answers
    # kube-proxy may send a question to the replica that goes after it is gone: resolvers ask twice, as dig does
    again = [why for _, why in answers if why != "10.96.0.1"]
    assert len(again) <= 2, again
    check_cluster_serves(cp1, server="w1", client="cp1")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)  # they ignore SIGTERM, and would hold a reboot up
    ended = "crictl ps -q --name '^(web|client)$' 2>/dev/null"
    wait_until(lambda: not w1.run(ended).stdout.strip(), what="their containers to end", timeout_s=60)

    # again: nothing; then a reboot; then reset, which leaves what the admin wrote to /etc/hosts meanwhile
    for node, line in ((cp1, f"{KB} init --config init.yaml {IGNORE}"), (w1, make_join_command(cp1))):
        assert "nothing to do" in node.run(line, timeout=300).stderr
    w1.reboot()
    wait_until(
        lambda: w1.run(f"curl -skf https://{ENDPOINT}/readyz", check=False).stdout == "ok",
        what="the endpoint",
        timeout_s=60,
    )
    cp1.wait_node_ready("w1")

    # doctor on the worker: well; then without the keeper and the name
    def doctor() -> list[str]:
        told = json.loads(w1.run(f"{KB} doctor -o json", check=False).stdout)
        return [note["text"] for note in told["notes"] if note["look"] == "load-balancer" and note["level"] != "ok"]

    assert doctor() == []
    w1.run("systemctl stop kb-load-balancer && cp /etc/hosts hosts && sed -i '/kb: the API servers/d' /etc/hosts")
    told = doctor()
    assert len(told) == 2 and "does not lead to" in told[0] and "does not run" in told[1], told
    w1.run("cat hosts >/etc/hosts && systemctl start kb-load-balancer")

    w1.run("echo 10.77.0.200 other >>/etc/hosts")
    w1.run(f"{KB} reset --force", timeout=300)
    assert w1.read("/etc/hosts") == f"{hosts}10.77.0.200 other\n"
    left = w1.run("ls -d /etc/kubernetes /var/lib/kb /etc/systemd/system/kb-*; crictl pods -q", check=False).stdout
    assert left == "", left


@pytest.mark.k8s_versions("1.35")
def test_what_cannot_work_is_said_before_anything_is_changed(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str
) -> None:
    cp1 = make_node("cp1", version=k8s_version)
    cp1.scp(kb_pyz, "/root/kb.pyz")
    for words, code, hint in (
        ("--control-plane-endpoint lb.test:6443", "invalid-config", "port 6443 is the API server's own"),
        ("--control-plane-endpoint 10.77.0.11:7443", "invalid-config", "needs a name that leads to 127.0.0.1"),
    ):
        refused = cp1.run(f"{KB} init --load-balancer local {words} {IGNORE}", check=False)
        assert f"code:   {code}" in refused.stderr and hint in refused.stderr, refused.output
        assert not cp1.exists("/etc/kubernetes/pki")
    taken = cp1.popen("python3 -m http.server 7443 --bind 127.0.0.1")
    wait_until(lambda: "7443" in cp1.run("ss -ltn").stdout, what="the port to be taken", timeout_s=20)
    refused = cp1.run(f"{KB} init --load-balancer local {IGNORE}", check=False)
    taken.kill()
    assert "[ERROR LoadBalancerPort-7443]" in refused.stderr and not cp1.exists("/etc/kubernetes/pki"), refused.output
    cp1.run("kill $(ss -ltnpH 'sport = :7443' | sed 's/.*pid=//; s/,.*//')", check=False)
    cp1.run(f"ctr -n k8s.io images rm {HAPROXY_IMAGE}")
    refused = cp1.run(f"{KB} init --load-balancer local {IGNORE}", check=False, timeout=300)
    assert "[ERROR ImagePull]" in refused.stderr and HAPROXY_IMAGE in refused.stderr, refused.output
    assert not cp1.exists("/etc/kubernetes/pki")


# ---- three control planes


@pytest.mark.k8s_versions("1.35")
def test_a_lost_control_plane_is_a_matter_of_seconds(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kubectl and the kubelet of a worker go on when the machine, or the API server, that they talk to is gone; the
    lists follow; and haproxy's reloads cut nobody off."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    cp2, cp3 = make_node("cp2", version=k8s_version), make_node("cp3", version=k8s_version)
    init(cp1, kb_pyz)
    join(w1, cp1, kb_pyz)
    wait_servers(w1, [cp1.address], timeout_s=30)
    w1.write("/etc/kubernetes/admin-copy.conf", cp1.read("/etc/kubernetes/admin.conf"), mode=0o600)
    start_loop(w1, API_LOOP.format(conf="admin-copy.conf", path="/readyz"), "api")
    watch = w1.popen("KUBECONFIG=/etc/kubernetes/admin-copy.conf kubectl get nodes --watch -o name")
    for node in (cp2, cp3):
        join(node, cp1, kb_pyz, control_plane=True)
    every = [node.address for node in (cp1, cp2, cp3)]
    for node in (cp1, cp2, cp3, w1):
        wait_servers(node, every, timeout_s=60)
    # two reloads by now: no attempt failed, and a watch that began before them still runs
    assert {why for _, why in read_loop(w1, "api")} == {"ok"}
    assert watch.poll() is None
    watch.kill()

    # the machine that most of this node's connections lead to
    def peers() -> list[str]:
        shown = w1.run("ss -tnH state established 'dport = :6443'").stdout
        return re.findall(r"(\d+\.\d+\.\d+\.\d+):6443", shown)

    lost = max((cp2, cp3), key=lambda node: peers().count(node.address))
    lost.kill()
    rows_before = len(read_loop(w1, "api"))
    lease = "lease -n kube-node-lease w1"
    renewed = w1.run(
        f"KUBECONFIG=/etc/kubernetes/admin-copy.conf kubectl get {lease} -o jsonpath={{.spec.renewTime}}"
    ).stdout
    others = [address for address in every if address != lost.address]
    wait_servers(w1, others, timeout_s=150)
    rows = read_loop(w1, "api")
    assert len(rows) > rows_before and longest_gap(rows) < GAP_S, [row for row in rows if row[1] != "ok"]
    again = w1.run(
        f"KUBECONFIG=/etc/kubernetes/admin-copy.conf kubectl get {lease} -o jsonpath={{.spec.renewTime}}"
    ).stdout
    assert again > renewed  # the kubelet's heartbeat
    assert lost.address not in peers()

    # it comes back
    lost.start()
    wait_servers(w1, every, timeout_s=150)
    cp1.wait_node_ready(lost.name)

    # an API server alone, the one of the first control plane: its own node goes on by way of the others
    start_loop(cp1, API_LOOP.format(conf="admin.conf", path="/readyz"), "api")
    wait_until(lambda: read_loop(cp1, "api"), what="the loop", timeout_s=20)
    cp1.run("mv /etc/kubernetes/manifests/kube-apiserver.yaml /root/")
    wait_until(lambda: cp1.run("ss -ltnH 'sport = :6443'").stdout == "", what="the API server to end", timeout_s=120)
    assert cp1.run("KUBECONFIG=/etc/kubernetes/admin.conf kubectl get nodes -o name").stdout.count("node/") == 4
    cp1.run("mv /root/kube-apiserver.yaml /etc/kubernetes/manifests/")
    wait_until(lambda: cp1.run(f"curl -skf https://{cp1.address}:6443/readyz", check=False).stdout == "ok",
               what="the API server to come back", timeout_s=120)  # fmt: skip
    for node in (cp1, w1):
        assert longest_gap(read_loop(node, "api")) < GAP_S


# ---- an API server that is about to stop

# Two requests every 100 ms, a read and a write, each over a connection of its own. One line an attempt, as above.
READ_WRITE_LOOP = """\
import base64, http.client, json, re, ssl, time
text = open("/etc/kubernetes/admin.conf").read()
part = lambda name: base64.b64decode(re.search(name + r":\\s*(\\S+)", text).group(1)).decode()
context = ssl.create_default_context(cadata=part("certificate-authority-data"))
open("/root/loop.pem", "w").write(part("client-certificate-data") + part("client-key-data"))
context.load_cert_chain("/root/loop.pem")
maps = "/api/v1/namespaces/default/configmaps"
def ask(method, path, body=None, kind="application/json"):
    connection = http.client.HTTPSConnection("{endpoint}", context=context, timeout=10)
    connection.request(method, path, body and json.dumps(body), {{"Content-Type": kind}})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status
ask("POST", maps, {{"metadata": {{"name": "loop"}}}})
log, count = open("/root/api.log", "w", buffering=1), 0
while True:
    began, why = time.time(), "ok"
    try:
        count += 1
        statuses = ask("GET", maps + "/loop"), ask("PATCH", maps + "/loop", {{"data": {{"count": str(count)}}}}, "application/merge-patch+json")
        why = "ok" if statuses == (200, 200) else str(statuses)
    except Exception as error:
        why = repr(error)
    print(began, why, file=log)
    time.sleep(max(0, began + 0.1 - time.time()))
"""
DRAIN = """\
import os, sys, time
sys.path.insert(0, os.path.realpath("/root/kb.pyz"))
from pathlib import Path
from kubeup.cluster.api import Api, read_identity
from kubeup.machine.local_host import LocalHost
from kubeup.network import drain
api = Api(LocalHost(), read_identity(LocalHost(), Path("/etc/kubernetes/admin.conf")))
began = time.monotonic()
done = getattr(drain, sys.argv[1])(api, sys.argv[2], tell=lambda _: None, timeout_s=15)
print(len(done.answered), ",".join(done.silent) or "none", round(time.monotonic() - began, 1))
"""


def drain(node: Node, verb: str, server: Node) -> tuple[int, str, float]:
    """How many load balancers answered, which did not, and how long that took."""
    count, silent, seconds = node.run(f"python3 /root/drain.py {verb} {server.address}:6443").stdout.split()
    return int(count), silent, float(seconds)


@pytest.mark.k8s_versions("1.35")
def test_an_api_server_is_drained_before_it_stops(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Every load balancer says so within seconds; nothing new goes to the server, which nobody misses when it is gone; a keeper that
    was killed catches up; and a mark that was left is told by the doctor."""
    cp1, cp2, cp3 = (make_node(f"cp{number}", version=k8s_version) for number in (1, 2, 3))
    init(cp1, kb_pyz)
    for node in (cp2, cp3):
        join(node, cp1, kb_pyz, control_plane=True)
    for node in (cp1, cp2, cp3):
        wait_servers(node, [each.address for each in (cp1, cp2, cp3)], timeout_s=60)
    cp1.write("/root/drain.py", DRAIN)
    cp2.write("/root/loop.py", READ_WRITE_LOOP.format(endpoint=ENDPOINT))
    cp2.run("systemd-run --unit api python3 /root/loop.py")
    wait_until(lambda: read_loop(cp2, "api"), what="the loop", timeout_s=20)

    # out on every node; the keeper of one dies meanwhile
    count, silent, seconds = drain(cp1, "drain", cp1)
    assert (count, silent) == (3, "none") and seconds < 8, seconds
    assert f"{cp1.address}:6443 {cp1.address}:6443 tcp-ut 6s disabled\n" in cp2.read(CFG)
    cp3.run("systemctl kill -s KILL kb-load-balancer")
    cp1.run("mv /etc/kubernetes/manifests/kube-apiserver.yaml /root/")
    wait_until(lambda: cp1.run("ss -ltnH 'sport = :6443'").stdout == "", what="the API server to end", timeout_s=120)

    # renewed while the server is away, through the load balancer; the killed keeper is back by then or soon
    assert drain(cp1, "drain", cp1)[:2] == (3, "none")
    told = json.loads(cp2.run(f"{KB} doctor -o json", check=False).stdout)["notes"]
    assert [note for note in told if note["look"] == "load-balancer" and "send no new connections" in note["text"]], (
        told
    )
    cp1.run("mv /root/kube-apiserver.yaml /etc/kubernetes/manifests/")
    wait_until(lambda: cp1.run(f"curl -skf https://{cp1.address}:6443/readyz", check=False).stdout == "ok",
               what="the API server to come back", timeout_s=120)  # fmt: skip
    assert drain(cp1, "undrain", cp1)[:2] == (3, "none")
    assert " disabled\n" not in cp2.read(CFG)
    nodes = cp1.get("nodes")["items"]
    assert not [node for node in nodes if "kb/drained-api-servers" in node["metadata"].get("annotations", {})]

    rows = read_loop(cp2, "api")
    assert {why for _, why in rows} == {"ok"}, [row for row in rows if row[1] != "ok"]
    assert longest_gap(rows) < 5  # 0.6 s on a quiet machine
