"""kubeup/doctor/looks/dns_zone.py, and what the looks make of it: a DNS that answers, and not as it should."""

from __future__ import annotations

import json
import struct

import pytest

from kubeup.cluster import api as kubeapi
from kubeup.doctor.looks import dns_zone
from kubeup.doctor.node_files import open_api
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes, remedies
from tests.unit.network.test_pod_view import dns_answer

COREFILE = """\
.:53 {{
    errors
    kubernetes {zones} in-addr.arpa ip6.arpa {{
        pods insecure
    }}
    forward . {upstream} {{
        max_concurrent 1000
    }}
}}
"""


def with_corefile(text: str, domain: str = "example.org") -> FakeHost:
    host, system = make_host(), f"{SERVER}/api/v1/namespaces/kube-system/configmaps"
    told = {
        "coredns": ("Corefile", text),
        "kubeadm-config": ("ClusterConfiguration", f"networking: {{dnsDomain: {domain}}}"),
    }
    for name, (key, value) in told.items():
        body = json.dumps({"metadata": {"name": name}, "data": {key: value}}).encode()
        host.urls[f"{system}/{name}"] = HttpResponse(200, body)
    return host


def fail(data: bytes, code: int = 2) -> bytes:
    """The answer SERVFAIL to any question."""
    return data[:2] + struct.pack(">H", 0x8180 | code) + data[4:]


def explain(text: str, domain: str = "example.org") -> str:
    api: kubeapi.Api = open_api(make_patient(with_corefile(text)))
    found = dns_zone.explain_zone(api, domain)
    return f"{found}. {found.remedy}" if found else ""


def test_a_corefile_that_serves_the_domain() -> None:
    for zones in ("example.org", "Example.Org.", "cluster.local example.org"):
        assert explain(COREFILE.format(zones=zones, upstream="/etc/resolv.conf")) == ""
    assert explain("example.org:53 {\n kubernetes\n}\n") == ""


@pytest.mark.parametrize(
    "text", ["", ".:53 {", ".:53 {\n import custom/*\n}\n", ".:53 {\n kubernetes {$ZONE}\n}\n",
             ".:53 {\n rewrite name suffix .a. .b.\n kubernetes prod.local\n}\n"],
)  # fmt: skip
def test_what_cannot_be_judged_is_no_trouble(text: str) -> None:
    assert explain(text) == ""


def test_a_corefile_of_another_zone() -> None:
    told = explain(COREFILE.format(zones="prod.local", upstream="/etc/resolv.conf"))
    assert told.startswith(
        "its Corefile serves Services in prod.local: kubelets have pods ask for names in example.org"
    )
    assert "edit configmap coredns" in told
    assert "has no plugin kubernetes" in explain(".:53 {\n forward . /etc/resolv.conf\n}\n")
    # the cluster was made with the Corefile's domain: it is the kubelet that was changed
    told = explain(COREFILE.format(zones="example.org", upstream="/etc/resolv.conf"), domain="other.org")
    assert "correct clusterDomain (example.org) in /var/lib/kubelet/config.yaml" in told


@pytest.mark.parametrize(("code", "said"), [(2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED")])
def test_a_refusal_is_no_silence(code: int, said: str) -> None:
    host = with_corefile(COREFILE.format(zones="prod.local", upstream="/etc/resolv.conf"))
    host.datagrams["10.96.0.10:53"] = lambda data: fail(data, code)
    ((level, text),) = notes(host, "dns")
    assert level == "error" and text.startswith(
        f"the cluster's DNS at 10.96.0.10 answers {said} for kubernetes.default.svc.example.org: its Corefile serves"
    )
    host = make_host()  # what is behind cannot be read
    host.datagrams["10.96.0.10:53"] = lambda data: fail(data, code)
    ((level, text),) = notes(host, "dns")
    assert text == f"the cluster's DNS at 10.96.0.10 answers {said} for kubernetes.default.svc.example.org"
    assert remedies(host, "dns")[0].startswith("see what CoreDNS says")


def test_the_kubelet_of_one_node_tells_another_domain() -> None:
    host = with_corefile("", domain="cluster.local")  # a worker's identity may not read the Corefile
    corefile = next(url for url in host.urls if url.endswith("/coredns"))
    host.urls[corefile] = HttpResponse(403, b'{"kind": "Status", "message": "forbidden"}')
    host.datagrams["10.96.0.10:53"] = fail
    ((level, text),) = notes(host, "dns")
    assert level == "error" and text.endswith(
        ": the kubelet has pods ask for names in example.org (clusterDomain in /var/lib/kubelet/config.yaml): the cluster's domain is cluster.local"
    )
    assert remedies(host, "dns")[0].startswith("correct clusterDomain (cluster.local)")


def test_names_outside_that_only_the_machine_finds() -> None:
    host = with_corefile(COREFILE.format(zones="example.org", upstream="10.0.0.250"))

    def answer(data: bytes) -> bytes:
        is_root = data[12:13] == b"\0"
        return fail(data) if is_root else bytes.fromhex(dns_answer(data.hex()))

    host.datagrams["10.96.0.10:53"] = answer
    host.files["/etc/resolv.conf"] = b"search x\nnameserver\nnameserver 10.0.0.1\n"
    ((level, text),) = notes(
        host, "dns"
    )  # nothing answers this machine either: an air gap, and somebody wrote an address of before
    assert level == "warning" and text.startswith("no name server answers to which CoreDNS forwards (10.0.0.250)")
    host.datagrams["10.0.0.250:53"] = lambda data: fail(data, 5)
    assert notes(host, "dns") == []
    del host.datagrams["10.0.0.250:53"]
    host.datagrams["10.0.0.1:53"] = lambda data: fail(data, 5)  # it lives, and tells nobody of the root
    ((level, text),) = notes(host, "dns")
    assert level == "error" and text == (
        "the cluster's DNS at 10.96.0.10 finds no names outside the cluster, and this machine's name server 10.0.0.1 does: "
        "CoreDNS asks 10.0.0.250 for them (forward in its Corefile)"
    )
    host.datagrams["10.96.0.10:53"] = lambda data: fail(data, 5) if data[12:13] == b"\0" else answer(data)
    assert notes(host, "dns") == []  # it refuses on purpose: it has no plugin forward
