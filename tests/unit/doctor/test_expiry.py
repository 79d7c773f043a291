"""kubeup/doctor/looks/expiry.py: certificates on disk, and as servers show them."""

from __future__ import annotations

import datetime
import re

import pytest

from kubeup.doctor import node_files
from kubeup.doctor.looks import expiry
from kubeup.machine.http import HttpResponse
from kubeup.node import certificates
from kubeup.paths import Paths
from tests import cert_forms
from tests.unit.doctor.doctor_case import ETCD, SERVER, make_host, notes, remedies


def test_certificates_that_are_well() -> None:
    assert notes(make_host(), "certificates") == []


def test_expired_and_expiring_certificates_are_named() -> None:
    host = make_host()
    host.clock += datetime.timedelta(days=350)
    soon = dict.fromkeys(level for level, _ in notes(host, "certificates"))
    assert list(soon) == ["warning"]
    host.clock += datetime.timedelta(days=30)
    texts = [text for level, text in notes(host, "certificates") if level == "error"]
    assert any(text.startswith("/etc/kubernetes/pki/apiserver.crt expired") for text in texts)
    assert any(text.startswith("/etc/kubernetes/admin.conf expired") for text in texts)


def test_a_kubelet_that_does_not_renew_its_certificate() -> None:
    """Its requests are not approved, or nobody signs them: nothing else shows until the day on which the node is lost."""
    host = make_host()
    path = str(Paths().kubelet_client_pem)
    host.files[path] = cert_forms.make_own_pair("cp1", now=host.now(), days=100)[0].encode()
    own = f"{path} expires in "
    host.clock += datetime.timedelta(days=89)
    assert [text for _, text in notes(host, "certificates") if text.startswith(path)] == []
    host.clock += datetime.timedelta(days=4)
    ((level, text),) = [(level, text) for level, text in notes(host, "certificates") if text.startswith(own)]
    assert level == "warning" and "which renews it before nine tenths of its life are over, has not done so" in text


def test_a_key_that_does_not_belong_to_its_certificate() -> None:
    host = make_host()
    host.files["/etc/kubernetes/pki/apiserver.key"] = host.files["/etc/kubernetes/pki/ca.key"]
    ((level, text),) = notes(host, "certificates")
    assert level == "error"
    assert "apiserver.crt" in text and "apiserver.key" in text


def test_an_authority_with_two_certificates_beside_its_key() -> None:
    host = make_host()
    host.files["/etc/kubernetes/pki/ca.crt"] += host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    ((level, text),) = notes(host, "certificates")
    assert level == "warning" and "holds 2 certificates" in text
    manifest = "/etc/kubernetes/manifests/kube-controller-manager.yaml"
    host.files[manifest] = host.files[manifest].replace(
        b"cert-file=/etc/kubernetes/pki/ca.crt", b"cert-file=/etc/x.crt"
    )
    assert notes(host, "certificates") == []


def test_a_certificate_that_nobody_believes() -> None:
    """An API server's certificate for clients alone, as a user's own authority may have issued it."""
    host = make_host()
    for kind in ("crt", "key"):
        host.files[f"/etc/kubernetes/pki/apiserver.{kind}"] = host.files[
            f"/etc/kubernetes/pki/apiserver-kubelet-client.{kind}"
        ]
    ((level, text),) = notes(host, "certificates")
    assert level == "error" and "lacks serverAuth" in text and "apiserver.crt" in text


@pytest.mark.parametrize("shown", ["", "hello", "DER", "serial"])
def test_a_server_that_shows_what_nobody_reads(shown: str) -> None:
    host = make_host()
    forms = cert_forms.make_forms()
    good = host.files["/etc/kubernetes/pki/apiserver.crt"].decode()
    odd = {"DER": good.replace("MII", "AII", 1), "serial": forms["serial negative"].chain.decode()}
    host.served["10.77.0.11:6443"] = odd.get(shown, shown)
    ((level, text),) = notes(host, "served-certificates")
    assert level == "error" and "kube-apiserver presents a certificate that Kubernetes (Go) cannot read" in text


def test_a_server_that_shows_an_old_certificate() -> None:
    host = make_host()
    apiserver = host.files["/etc/kubernetes/pki/apiserver.crt"].decode()
    host.served["10.77.0.11:6443"] = apiserver
    assert notes(host, "served-certificates") == []
    host.served["10.77.0.11:6443"] = host.files["/etc/kubernetes/pki/etcd/server.crt"].decode()
    missing, (level, text) = notes(host, "served-certificates")
    assert missing[0] == "error" and "without kubernetes.default.svc, 10.96.0.1: whoever calls it so" in missing[1]
    assert (level, text.partition(":")[0]) == (
        "warning",
        "kube-apiserver still presents another certificate than /etc/kubernetes/pki/apiserver.crt",
    )
    host.served["10.77.0.11:6443"] = apiserver
    host.clock = certificates.parse_certs(apiserver)[0].not_valid_after_utc + datetime.timedelta(hours=1)
    assert notes(host, "served-certificates")[0][0] == "error"


ETCD_URLS = 'command: [etcd, "--advertise-client-urls={0}:2379", "--initial-advertise-peer-urls={0}:2380"'


@pytest.mark.parametrize(("kind", "says"), [("server", "API servers and kb"), ("peer", "the other members")])
def test_an_etcd_whose_certificate_lacks_its_address(kind: str, says: str) -> None:
    """By its own flags: whoever has given it other names is not told of kubeadm's."""
    host = make_host()
    pem = host.files["/etc/kubernetes/pki/etcd/server.crt"].decode()
    host.served["127.0.0.1:2379"] = pem
    own = next(ip for ip in certificates.sans_of(certificates.parse_certs(pem)[0]).ips if ip[:3] not in ("127", "::1"))

    def advertise(url: str) -> None:
        text = ETCD.replace("command: [etcd", ETCD_URLS.format(url))
        host.files["/etc/kubernetes/manifests/etcd.yaml"] = text.encode()

    advertise(f"https://{own}")
    assert notes(host, "served-certificates") == []
    other = host.files["/etc/kubernetes/pki/apiserver-kubelet-client.crt"]
    if kind == "server":
        host.served["127.0.0.1:2379"] = other.decode()
    host.files[f"/etc/kubernetes/pki/etcd/{kind}.crt"] = other
    ((level, text),) = notes(host, "served-certificates")
    assert (
        level == "error"
        and f" presents a certificate without {own}" in text.replace("127.0.0.1, ", "")
        and says in text
    )
    assert remedies(host, "served-certificates") == [f"kb init phase certs etcd-{kind}"]
    advertise(f"http://{own}")
    assert all(own not in text for _, text in notes(host, "served-certificates")), "it has no TLS there"


KUBELET_CRT = "/var/lib/kubelet/pki/kubelet.crt"


def test_the_kubelet_s_own_certificate_is_made_again_by_its_name() -> None:
    """Nothing renews it: the kubelet makes it once."""
    host = make_host()
    host.files[KUBELET_CRT] = cert_forms.make_own_pair("cp1", now=host.now(), days=20)[0].encode()
    ((level, text),) = notes(host, "certificates")
    assert level == "warning" and text.startswith(f"{KUBELET_CRT} expires in 20 days")
    (found,) = expiry.look_at_certs(node_files.read_patient(host, Paths()))
    assert found.remedy == "kb certs renew kubelet-server"
    host.clock += datetime.timedelta(days=21)
    assert [level for level, text in notes(host, "certificates") if text.startswith(KUBELET_CRT)] == ["error"]


def test_a_certificate_that_the_kubelet_does_not_present_any_more() -> None:
    """It asked for one since (serverTLSBootstrap), and the file of before stays."""
    host = make_host()
    old, own = (cert_forms.make_own_pair("cp1", now=host.now(), days=days)[0] for days in (20, 365))
    host.files["/var/lib/kubelet/config.yaml"] += b"serverTLSBootstrap: true\n"
    host.files[KUBELET_CRT] = old.encode()
    host.files["/var/lib/kubelet/pki/kubelet-server-current.pem"] = own.encode()
    host.served["127.0.0.1:10250"] = own
    assert notes(host, "certificates") == [] and notes(host, "served-certificates") == []


def test_the_timer_that_renews_certificates() -> None:
    host = make_host()
    assert notes(host, "auto-renewal") == []  # a node without one
    host.files["/etc/systemd/system/kb-certs.timer"] = b""
    host.answers["systemctl show kb-certs.timer"] = "ActiveState=active\nNextElapseUSecRealtime=Mon\n"
    host.answers["systemctl show kb-certs.service"] = "Result=success\nExecMainExitTimestamp=\n"
    assert notes(host, "auto-renewal") == []
    host.answers["systemctl show kb-certs.service"] = "Result=exit-code\nExecMainExitTimestamp=Sun 03:17\n"
    host.answers["journalctl -u kb-certs.service"] = (
        "Started it\nerror: kube-scheduler did not come back\n  cause:  x\n"
    )
    ((level, text),) = notes(host, "auto-renewal")
    assert level == "warning" and "failed at Sun 03:17 (exit-code): error: kube-scheduler did not come back" in text
    host.answers["systemctl show kb-certs.timer"] = "ActiveState=inactive\n"
    assert len(notes(host, "auto-renewal")) == 2


def test_an_authority_that_ends_before_what_it_signs_is_said_a_year_ahead() -> None:
    host = make_host()
    authority = host.files["/etc/kubernetes/pki/ca.crt"]
    end = certificates.parse_certs(authority.decode())[0].not_valid_after_utc
    for days, is_told in ((400, False), (300, True), (20, False)):
        host.clock = end - datetime.timedelta(days=days)
        early = [text for _, text in notes(host, "certificates") if "before a certificate that it signs today" in text]
        assert bool(early) == is_told, days
        assert not is_told or early[0].startswith("/etc/kubernetes/pki/ca.crt ends in 300 days")


def test_a_pair_that_a_renewal_can_put_right_is_named_once() -> None:
    host = make_host()
    former = host.files["/etc/kubernetes/pki/apiserver.key"]
    host.files["/etc/kubernetes/pki/apiserver.key"] = host.files["/etc/kubernetes/pki/etcd/server.key"]
    host.files["/var/lib/kb/former-certs/20260101T000000Z/etc/kubernetes/pki/apiserver.key"] = former
    patient = node_files.read_patient(host, Paths())
    (found,) = [one for one in expiry.look_at_certs(patient) if one.level == "error"]
    assert found.remedy == "kb certs renew apiserver"
    assert found.text.endswith(
        "belongs to it is in /var/lib/kb/former-certs/20260101T000000Z/etc/kubernetes/pki/apiserver.key"
    )


def test_kubeconfigs_that_lead_to_where_nobody_answers() -> None:
    host = make_host()
    assert "leads" not in str(notes(host, "certificates"))  # its own API server does not answer either
    host.urls[f"{SERVER}/livez"] = HttpResponse(200, b"ok")
    before = notes(host, "certificates")
    paths = Paths()
    for name in ("controller-manager.conf", "scheduler.conf"):
        text = host.read_text(paths.kubeconfig(name))
        host.files[str(paths.kubeconfig(name))] = re.sub(
            r"server: \S+", "server: https://10.77.0.11:6444", text
        ).encode()
    (told,) = [text for _, text in notes(host, "certificates") if "does not answer" in text]
    assert "lead kube-controller-manager and kube-scheduler to https://10.77.0.11:6444" in told
    assert (
        f"this node's API server is at {SERVER} (--secure-port in /etc/kubernetes/manifests/kube-apiserver.yaml)"
        in told
    )
    assert "does not answer" not in str(before)
