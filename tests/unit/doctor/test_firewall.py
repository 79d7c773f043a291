"""kubeup/doctor/looks/firewall.py: what this machine's own firewall keeps others from."""

from __future__ import annotations

import dataclasses
import json

from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding
from kubeup.doctor.looks import firewall, table
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import ETCD, SERVER, make_host, make_patient, notes, remedies

DROP = "-A INPUT -p tcp -m tcp --dport {} -j DROP"


def with_rules(host: FakeHost, *rules: str, policy: str = "ACCEPT") -> FakeHost:
    host.programs.add("iptables")
    host.answers["iptables -w 10 -S"] = "\n".join((f"-P INPUT {policy}", *rules))
    return host


def make_worker() -> FakeHost:
    host = make_host()
    for path in [path for path in host.files if "/manifests/" in path or path.endswith("/apiserver.crt")]:
        del host.files[path]
    return host


def set_nodes(host: FakeHost, *names: str, planes: int = 1) -> None:
    url = f"{SERVER}/api/v1/nodes"
    for count, end in ((len(names), ""), (planes, "?labelSelector=node-role.kubernetes.io%2Fcontrol-plane")):
        body = json.dumps({"items": [{"metadata": {"name": name}} for name in names[:count]]})
        host.urls[url + end] = HttpResponse(200, body.encode())


def test_a_worker_whose_kubelet_is_closed() -> None:
    host = with_rules(make_worker(), DROP.format(10250))
    ((level, text),) = notes(host, "firewall")
    assert level == "error" and text.startswith("this machine's firewall keeps every other machine from TCP port 10250")
    assert "kubectl logs and exec" in text and f"iptables: {DROP.format(10250)}" in text
    assert "iptables -D INPUT -p tcp -m tcp --dport 10250 -j DROP" in remedies(host, "firewall")[0]
    assert notes(with_rules(make_worker(), DROP.format(6443)), "firewall") == [], "nothing serves there"
    assert notes(with_rules(make_worker(), "-A INPUT -s 192.0.2.1/32 -j DROP"), "firewall") == []


def test_a_policy_is_one_finding() -> None:
    host = with_rules(make_host(), "-A INPUT -i lo -j ACCEPT", "-A INPUT -s 10.244.0.0/16 -j ACCEPT", policy="DROP")
    set_nodes(host, "cp1", "cp2", planes=2)
    ((level, text),) = notes(host, "firewall")
    assert level == "error" and "TCP ports 10250, 6443, 2379, 2380" in text and "policy DROP" in text
    set_nodes(host, "cp1", "w1")
    ((_, text),) = notes(host, "firewall")
    assert "TCP port 6443" in text and "10250" not in text, "only workers are elsewhere"
    set_nodes(host, "cp1")
    assert notes(host, "firewall") == [], "nobody is elsewhere"


def test_a_control_plane_whose_own_etcd_is_closed() -> None:
    """Its API server answers nothing; that there are others, its etcd's manifest says."""
    host = with_rules(make_host(), DROP.format(2380))
    assert notes(host, "firewall") == []
    several = ETCD.replace(
        "[etcd,", '[etcd, "--initial-cluster=cp1=https://10.77.0.11:2380,cp2=https://10.77.0.12:2380",'
    )
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = several.encode()
    ((_, text),) = notes(host, "firewall")
    assert "TCP port 2380, so other members do not reach its etcd" in text


def test_what_other_api_servers_do_not_reach_follows() -> None:
    host = with_rules(make_worker(), DROP.format(10250))
    name = make_patient(host).config.node.name
    text = f"API server 10.77.0.12:6443 does not reach the kubelet of node {name}: it has not answered for 4 s"
    note = Finding("cluster", WARNING, text, "see")
    looks = (table.Look("firewall", "", firewall.look_at_firewall), table.Look("cluster", "", lambda _: iter([note])))
    first, second = table.examine(make_patient(host), looks)
    assert (first.level, second.level) == ("error", "follows")


def test_an_api_server_whose_etcd_is_closed_is_no_cause_of_its_own() -> None:
    """And a kubelet's closed port is no reason for anything of the chain."""
    probe = Finding("chain/probe", ERROR, "kube-apiserver runs but is not healthy (HTTP 500: [-]etcd failed)", "see")
    several = ETCD.replace(
        "[etcd,", '[etcd, "--initial-cluster=cp1=https://10.77.0.11:2380,cp2=https://10.77.0.12:2380",'
    )
    own = {look.name: look for look in table.LOOKS}
    looks = (own["firewall"], dataclasses.replace(own["chain"], look=lambda _: iter([probe])))
    assert table.LOOKS.index(looks[0]) < table.LOOKS.index(own["chain"])
    for port, level in ((2380, "follows"), (10250, "error")):
        host = with_rules(make_host(), DROP.format(port))
        host.files["/etc/kubernetes/manifests/etcd.yaml"] = several.encode()
        assert [note.level for note in table.examine(make_patient(host), looks)] == ["error", level]
