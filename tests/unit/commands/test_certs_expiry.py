"""kb's certs check-expiration: the kubelet's certificates, what is served, early ends, and the exit status for monitoring."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.commands import certs_expiry
from kubeup.errors import UsageError
from kubeup.node import certificates, former_certs, private_keys
from kubeup.paths import Paths
from kubeup.phases import renewed_kubelet_cert
from tests.cert_forms import make_own_pair
from tests.unit.commands.test_launcher import INIT, Machine

PKI = Paths().pki
KUBELET = Path("/var/lib/kubelet/pki")


@pytest.fixture
def machine(tmp_path: Path, capsys: Any) -> Machine:
    host = Machine(tmp_path)
    assert run(host, *INIT) == 0
    served: dict[str, str] = {}
    host.served = served  # type: ignore[attr-defined]
    host.served_cert = lambda address, port, timeout_s=3: served.get(f"{address}:{port}")  # type: ignore[method-assign,assignment,misc]
    host.write_file(KUBELET / "kubelet.crt", make_own(host, "cp1"))
    for address, file in (
        ("10.0.0.11:6443", "apiserver"),
        ("127.0.0.1:2379", "etcd/server"),
        ("10.0.0.11:2380", "etcd/peer"),
    ):
        served[address] = host.read_text(PKI / f"{file}.crt")
    served.update({f"127.0.0.1:{port}": make_own(host, "localhost") for port in (10257, 10259)})
    served["127.0.0.1:10250"] = host.read_text(KUBELET / "kubelet.crt")
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def check(host: Machine, capsys: Any, *words: str, status: int = 0) -> dict[str, Any]:
    assert run(host, "certs", "check-expiration", "-o", "json", *words) == status
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def make_own(host: Machine, name: str, *, days: int = 365) -> str:
    return make_own_pair(name, now=host.now(), days=days)[0]


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (row,) = [row for row in rows if name in (row.get("name"), row.get("component"))]
    return row


def test_kubeadm_s_object_and_kb_s_fields(machine: Machine, capsys: Any) -> None:
    shown = check(machine, capsys)
    assert [row["name"] for row in shown["certificates"]][:3] == ["admin.conf", "apiserver", "apiserver-etcd-client"]
    assert [row["name"] for row in shown["certificateAuthorities"]] == ["ca", "etcd-ca", "front-proxy-ca"]
    own = named(shown["kubeletCertificates"], "kubelet-server")
    assert own["caName"] == "itself" and own["file"] == str(KUBELET / "kubelet.crt") and not own["renewsItself"]
    places = {row["component"]: row["address"] for row in shown["servedCertificates"]}
    assert places == {
        "kube-apiserver": "10.0.0.11:6443", "etcd": "127.0.0.1:2379", "etcd (peers)": "10.0.0.11:2380",
        "kube-controller-manager": "127.0.0.1:10257", "kube-scheduler": "127.0.0.1:10259", "kubelet": "127.0.0.1:10250",
    }  # fmt: skip
    assert all(row["answers"] and not row["differsFromFile"] for row in shown["servedCertificates"])
    assert named(shown["servedCertificates"], "kube-scheduler")["note"] == "made by itself when it started"
    assert "made by the kubelet itself" in named(shown["servedCertificates"], "kubelet")["note"]
    assert "expiring" not in shown


def test_the_tables(machine: Machine, capsys: Any) -> None:
    assert run(machine, "certs", "check-expiration") == 0
    told = capsys.readouterr().out
    assert "NAME" in told and "CERTIFICATE AUTHORITY   EXPIRES" in told and "SERVED BY" in told
    assert any(
        line.split()[0] == "apiserver" and line.endswith("/pki/apiserver.crt") for line in told.splitlines() if line
    )


def test_what_is_served_differs_from_the_file(machine: Machine, capsys: Any) -> None:
    machine.served["10.0.0.11:6443"] = machine.read_text(PKI / "etcd/server.crt")  # type: ignore[attr-defined]
    del machine.served["127.0.0.1:2379"]  # type: ignore[attr-defined]
    machine.served["127.0.0.1:10259"] = "hello"  # type: ignore[attr-defined]
    shown = check(machine, capsys)
    assert named(shown["servedCertificates"], "kube-apiserver")["differsFromFile"]
    assert any("kube-apiserver presents another certificate" in line for line in shown["warnings"])
    assert named(shown["servedCertificates"], "etcd")["note"] == "does not answer"
    assert "cannot read" in named(shown["servedCertificates"], "kube-scheduler")["note"]


def test_ports_and_addresses_are_the_flags(machine: Machine, capsys: Any) -> None:
    path = Paths.manifests / "kube-scheduler.yaml"
    text = machine.read_text(path).replace(
        "- --bind-address=127.0.0.1", "- --bind-address=0.0.0.0\n    - --secure-port=9"
    )
    machine.write_file(path, text)
    assert named(check(machine, capsys)["servedCertificates"], "kube-scheduler")["address"] == "127.0.0.1:9"


def test_the_exit_status_for_monitoring(machine: Machine, capsys: Any) -> None:
    assert check(machine, capsys, "--within", "30d")["expiring"] == []
    due = check(machine, capsys, "--within", "366d", status=1)["expiring"]
    assert any(line.startswith("apiserver expires at") for line in due)
    assert any(line.startswith("kubelet-server (") for line in due)
    assert not any("kube-scheduler" in line or line.startswith("ca ") for line in due)
    assert run(machine, "certs", "check-expiration", "--within", "366d") == 1
    assert "apiserver expires at" in capsys.readouterr().out
    assert run(machine, "certs", "check-expiration", "--within", "soon") == 2


@pytest.mark.parametrize("text, seconds", [("30d", 30 * 86400), ("12h", 43200), ("1d12h", 129600), ("0", 0)])
def test_spans(text: str, seconds: int) -> None:
    assert certs_expiry.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "-1h", "d", "1w", "30d1"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(UsageError, match="--within"):
        certs_expiry.parse_span(text)


def shorten_authority(machine: Machine, base: str, *, days: int) -> None:
    key = private_keys.parse_key(machine.read_text(PKI / f"{base}.key"))
    validity = certificates.plan_validity(machine.now(), days * 86400)
    machine.write_file(
        PKI / f"{base}.crt",
        certificates.cert_to_pem(certificates.issue_ca_cert("kubernetes", key, validity=validity)),
    )


def test_a_kubelet_s_certificate_that_was_taken_away(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A renewal that was cut off: told by both, and the timer's run has the kubelet make another one."""
    former_certs.keep_former(machine, Paths(), files=[KUBELET / "kubelet.crt"])
    assert not any("taken away" in line for line in check(machine, capsys)["warnings"])
    machine.remove(KUBELET / "kubelet.crt")
    (warning,) = [line for line in check(machine, capsys)["warnings"] if "taken away" in line]
    assert warning.endswith("kb certs renew kubelet-server")
    run(machine, "doctor")
    assert "taken away by a renewal" in capsys.readouterr().out
    made: list[Path] = []
    former = former_certs.Former(Path("/x"), ())
    again = lambda ctx, path, *, port: made.append(path) or former  # type: ignore[func-returns-value]  # noqa: E731
    monkeypatch.setattr(renewed_kubelet_cert, "make_again", again)
    assert run(machine, "certs", "renew", "all", "--expiring") == 0
    assert made == [KUBELET / "kubelet.crt"] and "nothing to renew" not in capsys.readouterr().out


def test_an_authority_that_will_end_before_what_it_signs_is_said_years_ahead(machine: Machine, capsys: Any) -> None:
    assert check(machine, capsys)["notes"] == []
    shorten_authority(machine, "ca", days=3 * 365 + 30)
    assert check(machine, capsys)["notes"] == []
    shorten_authority(machine, "ca", days=3 * 365 - 30)
    shown = check(machine, capsys, "--within", "30d")
    (note,) = shown["notes"]
    ends, since = (machine.now() + datetime.timedelta(days=365 * years - 30) for years in (3, 2))
    assert f"ca ends at {ends:%Y-%m-%d}" in note and f"what it signs after {since:%Y-%m-%d}" in note, note
    assert shown["expiring"] == [] and not any("authority" in line for line in shown["warnings"])
    assert run(machine, "certs", "check-expiration") == 0
    assert "would outlive it" in "".join(capsys.readouterr())


def test_an_authority_that_ends_before_what_it_signs(machine: Machine, capsys: Any) -> None:
    assert not any("authority" in line for line in check(machine, capsys)["warnings"])
    for base in ("ca", "front-proxy-ca"):
        shorten_authority(machine, base, days=200)
    machine.remove(PKI / "front-proxy-ca.key")
    first, second = (line for line in check(machine, capsys)["warnings"] if "authority" in line)
    assert "the certificate authority ca ends at" in first and "renew it for the same key" in first
    assert "front-proxy-ca" in second and "whoever holds its key" in second


def test_what_the_kubelet_renews_by_itself_is_due_only_when_it_is_late(machine: Machine, capsys: Any) -> None:
    pem = make_own(machine, "cp1", days=20)
    machine.write_file(Paths.kubelet_client_pem, pem)
    assert check(machine, capsys, "--within", "30d")["expiring"] == []
    late = machine.now() + datetime.timedelta(days=19)
    machine.now = lambda: late  # type: ignore[method-assign]
    (line,) = check(machine, capsys, "--within", "10d", status=1)["expiring"]
    assert line.startswith("kubelet-client (")


def test_a_certificate_embedded_in_kubelet_conf(machine: Machine, capsys: Any) -> None:
    machine.write_file(Paths().kubeconfig("kubelet.conf"), machine.read_text(Paths().admin_conf))
    shown = check(machine, capsys)
    assert named(shown["kubeletCertificates"], "kubelet.conf")["caName"] == "ca"
    assert any("embeds a certificate, which nothing renews" in line for line in shown["warnings"])


def test_a_worker_has_what_a_worker_has(machine: Machine, capsys: Any) -> None:
    for path in list(machine.files()):
        is_own = path in (PKI / "ca.crt", Paths().kubeconfig("kubelet.conf"))
        if Path("/etc/kubernetes") in path.parents and not is_own:
            machine.remove(path)
    shown = check(machine, capsys)
    assert shown["certificates"] == [] and [row["name"] for row in shown["certificateAuthorities"]] == ["ca"]
    assert [row["component"] for row in shown["servedCertificates"]] == ["kubelet"]
    assert run(machine, "certs", "check-expiration") == 0
    assert "MISSING" not in capsys.readouterr().out


def test_without_an_api_server(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("kubeup.cluster.objects.read_config_key", refuse)
    assert len(check(machine, capsys)["certificates"]) == 11


def refuse(*_: object, **__: object) -> None:
    from kubeup.errors import ClusterError

    raise ClusterError("no answer", cause="down", remedy="wait", code="server-unreachable")


def test_under_the_name_kubeadm_it_is_kubeadm_s(machine: Machine, capsys: Any) -> None:
    assert set(check(machine, capsys, "--as-kubeadm")) == {
        "apiVersion",
        "kind",
        "certificates",
        "certificateAuthorities",
    }
    assert run(machine, "certs", "check-expiration", "--as-kubeadm", "--within", "30d") != 0


def test_files_that_do_not_belong_together_are_named(machine: Machine, capsys: Any) -> None:
    machine.write_file(PKI / "apiserver.key", machine.read_text(PKI / "etcd/server.key"))
    (warning,) = [text for text in check(machine, capsys)["warnings"] if "belong together" in text]
    assert warning.startswith(f"{PKI}/apiserver.crt and {PKI}/apiserver.key do not belong together")
    assert warning.endswith("kb certs renew apiserver")
    machine.remove(PKI / "ca.key")
    (warning,) = [text for text in check(machine, capsys)["warnings"] if "belong together" in text]
    assert "renew apiserver" not in warning
