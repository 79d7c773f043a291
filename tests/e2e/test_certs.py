"""`kb certs renew` on real nodes: everything uses its new certificate at once, nobody notices, and what cannot be used is taken back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab import change_killer
from .lab.changes import Moment, run_watched
from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
RESTARTED = {"kube-controller-manager": "controller-manager.conf", "kube-scheduler": "scheduler.conf"}
PKI = "/etc/kubernetes/pki"
GAP_S = 2.0
LEADS_S = 10.0
"""A lease that runs out takes fifteen seconds."""
CLIENT = f"""
import http.client, json, ssl, time
context = ssl.create_default_context(cafile="{PKI}/ca.crt")
context.load_cert_chain("/root/client.crt", "/root/client.key")
path = "/api/v1/namespaces/default/configmaps/heartbeat"
def call(method, path, body=None):
    connection = http.client.HTTPSConnection("kb-api.cluster.local", 7443, context=context, timeout=5)
    kind = "merge-patch+json" if method == "PATCH" else "json"
    connection.request(method, path, body and json.dumps(body), {{"Content-Type": "application/" + kind}})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return "ok" if answer.status in (200, 201) else "HTTP %d" % answer.status
call("POST", path.rpartition("/")[0], {{"metadata": {{"name": "heartbeat"}}}})
log, number = open("/root/client.log", "w", 1), 0
while True:
    began, number = time.time(), number + 1
    for method, body in (("GET", None), ("PATCH", {{"data": {{"number": str(number)}}}})):
        try:
            said = call(method, path, body)
        except Exception as error:
            said = repr(error)
        print(time.time(), method, said, file=log)
    time.sleep(max(0.0, 0.1 - (time.time() - began)))
"""
"""Reads and writes each 100 ms through this node's load balancer, with a connection for each call."""


LEASES = f"""
import http.client, json, ssl, time
context = ssl.create_default_context(cafile="{PKI}/ca.crt")
context.load_cert_chain("/root/client.crt", "/root/client.key")
log = open("/root/leases.log", "w", 1)
while True:
    for name in {tuple(RESTARTED)!r}:
        try:
            connection = http.client.HTTPSConnection("ADDRESS", 6443, context=context, timeout=5)
            connection.request("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/" + name)
            spec = json.loads(connection.getresponse().read())["spec"]
            print(time.time(), name, spec.get("holderIdentity") or "-", file=log)
        except Exception as error:
            print(time.time(), name, "?", file=log)
        connection.close()
    time.sleep(0.1)
"""
"""Notes who leads, some ten times a second."""


def extract_client(node: Node) -> None:
    """The admin's client certificate and key, as files."""
    for field, name in (("certificate", "crt"), ("key", "key")):
        words = f"grep client-{field}-data /etc/kubernetes/admin.conf | awk '{{print $2}}' | base64 -d"
        node.run(f"{words} >/root/client.{name}")


def watch_leases(node: Node) -> None:
    extract_client(node)
    node.write("/root/leases.py", LEASES.replace("ADDRESS", node.address))
    node.run("systemd-run --unit leases python3 /root/leases.py")
    wait_until(lambda: len(node.read("/root/leases.log").splitlines()) > 4, what="the watch of leases", timeout_s=30)


def check_leads_again(
    watcher: Node, before: Mapping[str, Mapping[str, tuple[str, float]]], nodes: Sequence[Node]
) -> None:
    """A controller that was restarted gives its lease up, so that the next one leads within seconds, and not when it has run out.
    before: node -> its containers before the restart."""
    watcher.run("systemctl stop leases")
    rows = [line.split() for line in watcher.read("/root/leases.log").splitlines()]
    for component in RESTARTED:
        seen = [(float(when), holder) for when, name, holder in rows if name == component and holder not in ("?", "-")]
        changes = [(former, when) for (_, former), (when, holder) in zip(seen, seen[1:]) if former != holder]
        assert changes, (component, seen[-1:])
        for former, when in changes:
            node = next(one for one in nodes if one.name == former.partition("_")[0])
            shown = json.loads(node.run(f"crictl inspect {before[node.name][component][0]}").stdout)
            ended = node.run(["date", "-d", shown["status"]["finishedAt"], "+%s.%N"]).stdout
            took_s = when - float(ended)
            print(f"{component}: another process led {took_s:.1f} s after that of {node.name} had ended", flush=True)
            assert took_s < LEADS_S, component


def read_containers(node: Node) -> dict[str, tuple[str, float]]:
    """component -> (id, when it was created, in seconds) of the running containers."""
    rows = json.loads(node.run("crictl ps -o json 2>/dev/null").stdout)["containers"]
    return {row["metadata"]["name"]: (row["id"], int(row["createdAt"]) / 1e9) for row in rows}


def check_used(node: Node, before: dict[str, tuple[str, float]]) -> None:
    """What embeds its certificate started after that was written; the others run on and show theirs."""
    now = read_containers(node)
    for component, conf in RESTARTED.items():
        written = float(node.run(f"stat -c %.9Y /etc/kubernetes/{conf}").stdout)
        assert now[component][0] != before[component][0] and now[component][1] > written, component
    for component in ("etcd", "kube-apiserver"):
        assert now[component] == before[component]
    for place, cert in (
        (f"{node.address}:6443", "apiserver"), ("127.0.0.1:2379", "etcd/server"), (f"{node.address}:2380", "etcd/peer"),
    ):  # fmt: skip
        wait_until(lambda: is_shown(node, place, cert), what=f"{place} to show {cert}.crt", timeout_s=10)  # noqa: B023


def is_shown(node: Node, place: str, cert: str) -> bool:
    own = f"-cert {PKI}/etcd/healthcheck-client.crt -key {PKI}/etcd/healthcheck-client.key"
    shown = f"openssl s_client -connect {place} {own} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    serials = node.run(f"{shown}; openssl x509 -noout -serial -in {PKI}/{cert}.crt", check=False).stdout.split()
    return len(serials) == 2 and serials[0] == serials[1]


def check_listings(node: Node) -> None:
    """What is served is what is on disk; the exit status tells what is due; and who may call the cluster is known."""
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json --within 30d").stdout)
    served = {row["component"]: row for row in shown["servedCertificates"]}
    assert set(served) == {"kube-apiserver", "etcd", "etcd (peers)", *RESTARTED, "kubelet"}
    assert all(row["answers"] and not row["differsFromFile"] for row in served.values()), served
    assert shown["expiring"] == [] and shown["warnings"] == []
    late = node.run(f"{KB} certs check-expiration --within 400d", check=False)
    assert late.code == 1 and "kubelet-server (/var/lib/kubelet/pki/kubelet.crt) expires at" in late.stdout, late.output
    rows = json.loads(node.run(f"{KB} kubeconfig list -o json").stdout)
    assert {row["user"]: row["groups"] for row in rows}["kubernetes-admin"] == ["kubeadm:cluster-admins"]


def check_dry_run(node: Node) -> None:
    """What would be renewed and restarted is told, and nothing is."""
    state = "find /etc/kubernetes /var/lib/kubelet/pki -type f | sort | xargs sha256sum; crictl ps -q | sort; ls /var/lib/kb"
    before = node.run(state).stdout
    told = json.loads(renew(node, "all --dry-run -o json").stdout)
    assert "apiserver" in told["renewed"] and told["restarted"] == list(RESTARTED) and told["dryRun"], told
    assert "would renew: certificate for serving the kubelet's API" in renew(node, "kubelet-server --dry-run").stdout
    assert node.run(state).stdout == before


def check_torn(node: Node) -> None:
    """A pair of which a renewal that was cut off has replaced one half: it is told, and the timer's next run makes it a pair again."""
    pair = f"{PKI}/front-proxy-client"
    is_pair = f'[ "$(openssl x509 -noout -pubkey -in {pair}.crt)" = "$(openssl pkey -pubout -in {pair}.key)" ]'
    node.run(is_pair)
    node.run(f"cp $(find /var/lib/kb/former-certs -name front-proxy-client.key | head -1) {pair}.key")
    assert not node.run(is_pair, check=False).ok
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json", check=False).stdout)
    assert ["do not belong together" in one and "front-proxy-client" in one for one in shown["warnings"]] == [True], (
        shown
    )
    told = node.run(f"{KB} certs auto run", timeout=300)
    node.run(is_pair)
    assert "front-proxy-client" in told.output, told.output
    assert json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)["warnings"] == []


def check_cut_off(node: Node) -> None:
    """A renewal that was killed before the restart: nothing is due any more, and two components go on with what they have read. It is told,
    and the timer's next run restarts them."""
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    made = run_watched(
        node, ["kb.pyz", "certs", "renew", "all"], Moment("", "write_file /etc/kubernetes/super-admin.conf")
    )
    assert made[-1][0] == "killed", made
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)["warnings"]
    assert [one.partition(" ")[0] for one in shown if "goes on with the former" in one] == list(RESTARTED), shown
    assert "goes on with the former" in node.run(f"{KB} doctor", check=False).output
    told = node.run(f"{KB} certs auto run", timeout=300)
    assert "kube-controller-manager restarted" in told.stdout and "kube-scheduler restarted" in told.stdout, told.output
    assert json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)["warnings"] == []


def check_kubelet_s(node: Node) -> None:
    """The kubelet makes its own serving certificate again, and nothing else restarts."""
    path = "/var/lib/kubelet/pki/kubelet.crt"
    before, containers = node.read(path), read_containers(node)
    renew(node, "kubelet-server")
    assert node.read(path) != before and read_containers(node) == containers
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)
    assert not any(row["differsFromFile"] for row in shown["servedCertificates"])
    # an API server that had a connection to the kubelet notices at the next call
    logs = "kubectl --kubeconfig /etc/kubernetes/admin.conf logs -n kube-system -l component=kube-scheduler --tail=1"
    wait_until(lambda: node.run(logs, check=False).code == 0, what="the kubelet's logs", timeout_s=20)


def check_kubelet_s_cut_off(node: Node) -> None:
    """Killed between the two files of its pair, and the kubelet is started again: it refuses. The timer's next run has it make another."""
    path = "/var/lib/kubelet/pki/kubelet.crt"
    made = run_watched(node, ["kb.pyz", "certs", "renew", "kubelet-server"], Moment("", f"remove {path}"))
    assert made[-1][0] == "killed" and not node.exists(path) and node.exists(path.replace(".crt", ".key")), made
    node.run("systemctl restart kubelet")
    wait_until(
        lambda: "must be supplied as a pair" in node.journal("kubelet"), what="the kubelet to refuse", timeout_s=30
    )
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)["warnings"]
    assert any("taken away by a renewal that was cut off" in one for one in shown), shown
    assert "taken away by a renewal" in node.run(f"{KB} doctor", check=False).output
    print(node.run(f"{KB} certs auto run", timeout=300).output)
    assert node.exists(path) and node.run("systemctl is-active kubelet").ok
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)
    assert shown["warnings"] == [] and not any(row["differsFromFile"] for row in shown["servedCertificates"])


def check_undone(node: Node, folder: str) -> None:
    """By hand, as docs/certificates.md says: the former files are in use again, and are as they were."""
    watched = (
        f"cd {PKI}/.. && find . -name '*.conf' -o -name '*.crt' -o -name '*.key' | sort | xargs stat -c '%a %U %N'"
    )
    serial = f"openssl x509 -noout -serial -in {PKI}/apiserver.crt"
    modes, renewed = node.run(watched).stdout, node.run(serial).stdout
    node.run(f"cp -r /var/lib/kb/former-certs/{folder}/. /")
    node.run("crictl stop $(crictl ps -q --name '^kube-(controller-manager|scheduler)$')")
    assert node.run(serial).stdout != renewed and node.run(watched).stdout == modes
    wait_until(lambda: is_shown(node, f"{node.address}:6443", "apiserver"), what="the former one", timeout_s=20)
    check_controllers_work(node, "three")
    assert json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)["warnings"] == []


def check_controllers_work(node: Node, name: str) -> None:
    """The controller-manager fills a new namespace, and the scheduler holds its lease."""
    node.kubectl(f"create namespace {name}")
    wait_until(
        lambda: "serviceaccount/default" in node.kubectl(f"get serviceaccounts -n {name} -o name"),
        what="the controller-manager to lead",
        timeout_s=60,
    )
    for component in RESTARTED:
        before = read_renewal(node, component)
        wait_until(
            lambda: read_renewal(node, component) != before,  # noqa: B023
            what=f"the lease of {component} to move on",
            timeout_s=60,
        )


def read_renewal(node: Node, component: str) -> str:
    """When the leader last renewed the component's lease."""
    return str(node.get(f"lease -n kube-system {component}")["spec"]["renewTime"])


def renew(node: Node, what: str, *, check: bool = True) -> Any:
    return node.run(f"{KB} certs renew {what}", check=check, timeout=300)


@pytest.mark.k8s_versions("1.35")
def test_one_control_plane(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    check_dry_run(node)
    before = read_containers(node)
    watch_leases(node)
    done = renew(node, "all")
    check_leads_again(node, {node.name: before}, [node])
    assert re.search(r"^kube-controller-manager restarted: it was away for [\d.]+ s$", done.stdout, re.MULTILINE), done
    assert "You must restart" not in done.stdout
    check_used(node, before)
    check_controllers_work(node, "one")

    check_listings(node)
    check_torn(node)
    check_cut_off(node)
    check_kubelet_s(node)
    check_kubelet_s_cut_off(node)

    # again, while the kubelet delays the next start
    before = read_containers(node)
    done = renew(node, "scheduler.conf")
    away = float(re.findall(r"kube-scheduler restarted: it was away for ([\d.]+) s", done.stdout)[0])
    after = read_containers(node)
    assert away < 20 and after["kube-scheduler"] != before["kube-scheduler"]
    assert after["kube-controller-manager"] == before["kube-controller-manager"]

    # signed by a CA that the API server does not know: refused before anything stops
    conf, was = "/etc/kubernetes/scheduler.conf", node.read("/etc/kubernetes/scheduler.conf")
    node.run("mkdir /root/pki && cd /root/pki && openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=kubernetes "
             "-addext keyUsage=critical,keyCertSign,digitalSignature -keyout ca.key -out ca.crt 2>/dev/null")  # fmt: skip
    node.write(
        "/root/other.yaml", lab_config(k8s_version, address=node.address, cluster={"certificatesDir": "/root/pki"})
    )
    refused = renew(node, "scheduler.conf --config other.yaml", check=False)
    assert refused.code == 5 and "code:   renewal-taken-back" in refused.stderr, refused.output
    assert "does not accept the renewed certificate of kube-scheduler" in refused.stderr
    assert node.read(conf) == was and read_containers(node)["kube-scheduler"] == after["kube-scheduler"]

    # what does not start: its last word, and the former kubeconfig
    was = node.read("/etc/kubernetes/controller-manager.conf")
    node.run(f"mv {PKI}/front-proxy-ca.crt /root/")  # which a controller-manager reads when it starts, before it leads
    refused = renew(node, "controller-manager.conf", check=False)
    assert refused.code == 5 and "code:   renewal-taken-back" in refused.stderr, refused.output
    assert "front-proxy-ca.crt" in refused.stderr and node.read("/etc/kubernetes/controller-manager.conf") == was, (
        refused.output
    )
    node.run(f"mv /root/front-proxy-ca.crt {PKI}/")
    before = read_containers(node)
    renew(node, "all")
    assert before["etcd"] == read_containers(node)["etcd"]
    check_controllers_work(node, "two")
    kept = node.run("ls /var/lib/kb/former-certs; find /var/lib/kb/former-certs -perm /077").stdout.split()
    assert len(kept) == 3, kept
    check_undone(node, kept[-1])
    node.run(f"{KB} reset --force", timeout=300)
    assert not node.exists("/var/lib/kb")


@pytest.mark.k8s_versions("1.35")
def test_nobody_notices_on_three_control_planes(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    nodes = [make_node(name, version=k8s_version) for name in ("cp1", "cp2", "cp3")]
    first = nodes[0]
    for node in nodes:
        node.scp(kb_pyz, "/root/kb.pyz")
    config = lab_config(k8s_version, address=first.address, kb={"loadBalancer": {"mode": "local"}})
    first.write("/root/init.yaml", config)
    first.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    for node in nodes[1:]:
        key = first.run(f"{KB} certs certificate-key").stdout.strip()
        line = first.run(f"{KB} token create --print-join-command --certificate-key {key}").stdout.strip()
        node.run(f"{line} {IGNORE}", timeout=600)
    watch_leases(first)
    first.write("/root/client.py", CLIENT)
    first.run("systemd-run --unit client python3 /root/client.py")
    wait_until(lambda: len(read_client(first)) > 20, what="the client to start", timeout_s=30)
    began = read_client(first)[-1][0]
    formers = {node.name: read_containers(node) for node in nodes}
    for node in nodes:
        renew(node, "all")
        check_used(node, formers[node.name])
    rows = [row for row in read_client(first) if row[0] >= began]
    first.run("systemctl stop client")
    failed = [row for row in rows if row[2] != "ok"]
    assert len(rows) > 100 and not failed, failed
    gap = max(after[0] - before[0] for before, after in zip(rows, rows[1:]))
    print(f"{len(rows)} calls, {len(failed)} failed, longest gap {gap:.2f} s", flush=True)
    assert gap < GAP_S, gap
    check_leads_again(first, formers, nodes)
    check_controllers_work(first, "one")


def read_client(node: Node) -> list[tuple[float, str, str]]:
    """(when, method, ok or why not) of each call so far."""
    rows = [line.split(" ", 2) for line in node.read("/root/client.log").splitlines()]
    return [(float(row[0]), row[1], row[2]) for row in rows if len(row) == 3]


# ---- the timer


SHORT = "1m40s"
"""The life of certificates that are due at once: they begin five minutes before they are issued, so that 100 of 400 s are left of them,
and 80 s, a fifth, 20 s later."""


def list_events(node: Node) -> dict[str, tuple[str, str]]:
    """reason -> (type, message) of kb's own Events."""
    rows = json.loads(node.kubectl("get events -n default -o json"))["items"]
    return {row["reason"]: (row["type"], row["message"]) for row in rows if row["source"].get("component") == "kb"}


def make_due(node: Node) -> None:
    renew(node, "all --config short.yaml")
    node.run("sleep 20")


def read_serial(node: Node) -> str:
    shown = f"openssl s_client -connect {node.address}:6443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return node.run(shown).stdout.strip()


@pytest.mark.k8s_versions("1.35")
def test_the_timer_renews_and_says_so(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    period = {"certificateValidityPeriod": SHORT}
    node.write("/root/short.yaml", lab_config(k8s_version, address=node.address, cluster=period))
    node.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    assert node.run("systemctl is-active kb-certs.timer").stdout == "active\n"
    node.run("systemctl start kb-certs")
    assert "nothing to renew" in node.journal("kb-certs") and list_events(node) == {}

    # served anew, and told
    make_due(node)
    before = read_serial(node)
    node.run("systemctl start kb-certs", timeout=180)
    wait_until(lambda: read_serial(node) != before, what="a new certificate to be served", timeout_s=20)
    kind, message = list_events(node)["CertificatesRenewed"]
    assert kind == "Normal" and "apiserver" in message and "scheduler.conf" in message
    shown = json.loads(node.run(f"{KB} certs check-expiration -o json").stdout)
    assert all(row["residualTime"] > 300 * 86400 for row in shown["certificates"])
    assert "kb-static-pods" not in node.kubectl("get lease -n kube-system -o name")

    # the authorities' keys are kept elsewhere: warned of, nothing touched, no failed unit; with a wrong key: a failed unit
    make_due(node)
    node.run(f"cd {PKI} && tar cf /root/keys.tar ca.key front-proxy-ca.key etcd/ca.key --remove-files")
    before = read_serial(node)
    node.run("systemctl start kb-certs", timeout=180)
    assert read_serial(node) == before and list_events(node)["CertificatesExpiring"][0] == "Warning"
    node.run(f"openssl ecparam -name prime256v1 -genkey -noout -out {PKI}/ca.key && chmod 600 {PKI}/ca.key")
    assert node.run("systemctl start kb-certs", check=False, timeout=180).code != 0
    assert "kb-certs.service" in node.run("systemctl --failed --no-legend").stdout
    assert list_events(node)["CertificateRenewalFailed"][0] == "Warning"
    found = json.loads(node.run(f"{KB} doctor -o json", check=False).stdout)
    assert any("the renewal of certificates failed" in row["text"] for row in found["notes"]), found
    node.run(f"tar xf /root/keys.tar -C {PKI}")
    renew(node, "all")

    # off, on, and gone with the node
    node.run(f"{KB} certs auto off")
    assert not node.exists("/etc/systemd/system/kb-certs.timer")
    assert node.run(f"{KB} certs auto status").stdout == "automatic renewal is off\n"
    node.run(f"{KB} certs auto on")
    assert json.loads(node.run(f"{KB} certs auto status -o json").stdout)["on"] is True
    node.run(f"{KB} reset --force", timeout=300)
    assert node.run("systemctl list-unit-files 'kb-*' --no-legend", check=False).stdout == ""
    assert not node.exists("/var/lib/systemd/timers/stamp-kb-certs.timer")


# ---- names in the API server's certificate


@pytest.mark.k8s_versions("1.35")
def test_a_name_is_added_on_two_control_planes_and_taken_out(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str
) -> None:
    first, second = (make_node(name, version=k8s_version) for name in ("cp1", "cp2"))
    for node in (first, second):
        node.scp(kb_pyz, "/root/kb.pyz")
    config = lab_config(k8s_version, address=first.address, kb={"loadBalancer": {"mode": "local"}})
    first.write("/root/init.yaml", config)
    first.run(f"{KB} init --config init.yaml {IGNORE}", timeout=600)
    key = first.run(f"{KB} certs certificate-key").stdout.strip()
    line = first.run(f"{KB} token create --print-join-command --certificate-key {key}").stdout.strip()
    second.run(f"{line} {IGNORE}", timeout=600)
    keys = [node.read(f"{PKI}/apiserver.key") for node in (first, second)]
    names = ("k8s.example.net", "*.k8s.example.net", "192.0.2.7")
    words = " ".join(f"'{name}'" for name in names)
    before = read_containers(first)

    done = first.run(f"{KB} certs add-san {words}", timeout=180)
    assert f"on the control plane at {second.address}:6443:" in done.stdout and read_containers(first) == before
    for name in ("k8s.example.net", "x.k8s.example.net", "192.0.2.7"):
        assert can_call(first, first.address, name) and not can_call(first, second.address, name)
    done = second.run(f"{KB} certs add-san {words}", timeout=180)
    assert "every API server of the cluster has" in done.stdout and can_call(first, second.address, "k8s.example.net")
    assert "nothing to do" in first.run(f"{KB} certs add-san {words}").output

    assert [node.read(f"{PKI}/apiserver.key") for node in (first, second)] == keys

    # a later renewal, with a key of its own, keeps them
    renew(first, "apiserver")
    keys = [node.read(f"{PKI}/apiserver.key") for node in (first, second)]
    wait_until(lambda: is_shown(first, f"{first.address}:6443", "apiserver"), what="the renewed one", timeout_s=20)
    assert can_call(first, first.address, "k8s.example.net")
    refused = first.run(f"{KB} certs add-san --remove kb-api.cluster.local", check=False)
    assert refused.code == 2 and "code:   name-needed" in refused.stderr
    for node in (first, second):
        node.run(f"{KB} certs add-san --remove {words}", timeout=180)
        assert not can_call(first, node.address, "k8s.example.net")
    assert [node.read(f"{PKI}/apiserver.key") for node in (first, second)] == keys
    first.run(f"mv {PKI}/ca.key /root/")
    refused = first.run(f"{KB} certs add-san k8s.example.net", check=False)
    assert refused.code == 4 and "code:   external-ca-signs" in refused.stderr


def can_call(node: Node, address: str, name: str) -> bool:
    """Whether a client that verifies accepts the API server at that address under that name."""
    call = f"curl -s -o /dev/null --cacert {PKI}/ca.crt --connect-to ::{address}:6443 https://{name}:6443/version"
    return node.run(call, check=False).code == 0
