"""What has expired on a node is found and issued anew from its own files, and what may not be issued is refused by name."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.errors import HostError
from kubeup.node import cert_specs, certificates, expired_certs, kubeconfig, pki, private_keys, renewal
from kubeup.node.expired_certs import CLIENT, EMBEDDED, SERVER, Expired, KubeletFiles
from kubeup.node.verify import find_fault
from tests.cert_forms import make_own_pair
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, cert_at, finished_node, make_config

CLUSTER = make_config().cluster
CONF, PEM = PATHS.kubernetes / "kubelet.conf", PATHS.kubelet_client_pem
CRT = PEM.with_name("kubelet.crt")
FILES = KubeletFiles(CONF, PEM, CRT)
YEAR_S = 365 * 86400


@dataclass
class Node(FakeHost):
    """A node whose links lead somewhere."""

    links: dict[str, str] = field(default_factory=dict)

    def read_link(self, path: Path) -> Optional[str]:
        return self.links.get(str(path))

    def symlink(self, path: Path, target: str) -> bool:
        self.links[str(path)] = target
        self.files[str(path)] = self.files[target]
        self.changes.append(f"link {path}")
        return True


@pytest.fixture
def node() -> Node:
    """A control plane all of whose certificates have ended, 400 days after they were issued; kubelet.conf embeds the first one."""
    made = finished_node()
    host = Node(**{item.name: getattr(made, item.name) for item in dataclasses.fields(made)})
    host.write_file(CRT, make_own_pair("cp1", now=host.now())[0])
    host.clock += datetime.timedelta(days=400)
    return host


def find(host: FakeHost) -> tuple[Expired, ...]:
    return expired_certs.find_expired(host, PATHS, cluster=CLUSTER, kubelet_files=FILES)


def check(host: FakeHost) -> None:
    expired_certs.check_authorities(host, PATHS, cluster=CLUSTER, expired=find(host))


def issue(host: FakeHost) -> None:
    expired = find(host)
    for one in expired:
        if one.name in renewal.ROWS:
            expired_certs.issue_row(host, PATHS, one=one)
    expired_certs.issue_kubelet_client(host, PATHS, expired=expired, files=FILES)


def client_of(host: FakeHost, name: str) -> Any:
    path = PATHS.kubeconfig(name)
    return certificates.parse_certs(
        kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path).client_cert_pem
    )[0]


# ---- found


def test_nothing_has_expired_on_a_new_node() -> None:
    assert find(finished_node()) == ()


def test_everything_is_found(node: Node) -> None:
    assert [one.name for one in find(node)] == [*renewal.ROWS, EMBEDDED, SERVER]
    worker = expired_certs.find_expired(node, PATHS, cluster=None, kubelet_files=FILES)
    assert [(one.name, one.ca) for one in worker] == [(EMBEDDED, "ca"), (SERVER, "")]


def test_only_what_has_expired_is_found(node: Node) -> None:
    expired_certs.issue_row(node, PATHS, one=find(node)[1])
    assert "apiserver" not in [one.name for one in find(node)] and len(find(node)) == len(renewal.ROWS) + 1


# ---- issued


def test_each_is_issued_for_its_key_names_and_period(node: Node) -> None:
    before = {one.name: one.cert for one in find(node)}
    keys = {name: node.files[str(PATHS.pki / f"{name}.key")] for name in ("apiserver", "etcd/peer", "ca", "sa")}
    issue(node)
    assert [one.name for one in find(node)] == [SERVER]
    assert all(node.files[str(PATHS.pki / f"{name}.key")] == text for name, text in keys.items())
    for row in renewal.ROWS.values():
        new, old = renewal.read_cert(node, PATHS, row=row), before[row.name]
        ca = cert_at(node, {"ca": "ca", "etcd-ca": "etcd/ca", "front-proxy-ca": "front-proxy-ca"}[row.ca])
        assert new is not None and certificates.subject_of(new) == certificates.subject_of(old)
        assert private_keys.spki(new.public_key()) == private_keys.spki(old.public_key())
        assert find_fault((new,), (ca,), now=node.now()) is None
        assert abs((new.not_valid_after_utc - node.now()).total_seconds() - YEAR_S) < 1000


def test_the_kubelet_s_certificate_lies_as_the_kubelet_keeps_it(node: Node) -> None:
    """A file named by the time, and a link to it; kubelet.conf embeds none any more, or nothing would renew it."""
    issue(node)
    target = node.links[str(PEM)]
    assert Path(target).parent == PEM.parent and Path(target).name.startswith("kubelet-client-2027-02-0")
    assert node.modes[target] == 0o600 and node.read_text(PEM).count("-----BEGIN") == 2
    cert = client_of(node, "kubelet.conf")
    assert certificates.subject_of(cert).common_name == "system:node:cp1"
    assert certificates.subject_of(cert).organizations == ("system:nodes",)
    assert f"client-certificate: {PEM}" in node.read_text(CONF) and "client-key-data" not in node.read_text(CONF)


def test_a_rotating_pair_that_ended_is_replaced_with_its_key(node: Node) -> None:
    issue(node)
    node.clock += datetime.timedelta(days=400)
    key = private_keys.parse_key(node.read_text(PEM))
    conf = node.files[str(CONF)]
    assert [one.name for one in find(node) if one.name not in renewal.ROWS] == [CLIENT, SERVER]
    issue(node)
    assert private_keys.is_key_of(key, certificates.parse_certs(node.read_text(PEM))[0])
    assert node.files[str(CONF)] == conf and "2028-03" in node.links[str(PEM)]


def test_an_embedded_one_that_ended_is_left_for_a_valid_rotating_pair(node: Node) -> None:
    embedded = node.files[str(CONF)]
    issue(node)
    node.files[str(CONF)] = embedded
    target = node.links[str(PEM)]
    issue(node)
    assert node.links[str(PEM)] == target and f"client-certificate: {PEM}" in node.read_text(CONF)


def test_a_key_that_is_lost_is_made_again(node: Node) -> None:
    path = PATHS.pki / "apiserver.key"
    node.remove(path)
    expired_certs.issue_row(node, PATHS, one=find(node)[1])
    assert private_keys.is_key_of(pki.read_key(node, path), cert_at(node, "apiserver"))


def test_intermediates_stay_behind_the_certificate(node: Node) -> None:
    path = PATHS.pki / "apiserver.crt"
    node.files[str(path)] += node.files[str(PATHS.pki / "ca.crt")]
    expired_certs.issue_row(node, PATHS, one=find(node)[1])
    assert pki.read_certs(node, path)[1:] == (cert_at(node, "ca"),)


def test_the_period_is_the_expired_one_s(node: Node) -> None:
    ca, key = pki.read_ca(node, PATHS), private_keys.generate_key("ECDSA-P256")
    start = ca.cert.not_valid_before_utc

    def period(begin: datetime.datetime, seconds: float) -> int:
        validity = certificates.Validity(begin, begin + datetime.timedelta(seconds=seconds))
        cert = certificates.issue_leaf_cert(certificates.Subject("x", is_client=True), key, ca=ca, validity=validity)
        return expired_certs.period_of(cert, ca.cert)

    later = start + datetime.timedelta(days=9)
    assert period(later, 900) == 600 and period(later, 10 * YEAR_S) == 10 * YEAR_S - 300
    # older kubeadms, and every new kubeconfig, begin with their authority
    assert period(start, 900) == 900 and period(start, 3 * YEAR_S) == YEAR_S


# ---- refused


def refusal(host: FakeHost) -> HostError:
    with pytest.raises(HostError) as caught:
        check(host)
    return caught.value


def test_an_authority_that_has_expired_is_refused(node: Node) -> None:
    check(node)
    node.clock += datetime.timedelta(days=3650)
    assert refusal(node).code == "ca-expired" and "/etc/kubernetes/pki/ca.crt expired" in refusal(node).what


@pytest.mark.parametrize("name, first", [("ca", "admin.conf"), ("front-proxy-ca", "front-proxy-client")])
def test_an_authority_whose_key_is_elsewhere_is_refused(node: Node, name: str, first: str) -> None:
    node.remove(cert_specs.CERTS[name].key_path(PATHS))
    error = refusal(node)
    assert error.code == "external-ca-expired" and error.what.startswith(first) and "certs generate-csr" in error.remedy


def test_a_key_of_another_authority_is_refused(node: Node) -> None:
    node.files[str(PATHS.pki / "ca.key")] = node.files[str(PATHS.pki / "front-proxy-ca.key")]
    assert refusal(node).code == "key-mismatch"


def test_what_another_authority_signed_is_refused(node: Node) -> None:
    node.files[str(PATHS.pki / "apiserver.crt")] = node.files[str(PATHS.pki / "etcd/server.crt")]
    error = refusal(node)
    assert error.code == "certificate-of-other-ca" and "apiserver.crt" in error.what


# ---- the clock


def check_clock(host: FakeHost) -> None:
    expired_certs.check_clock(
        host, expired=find(host), traces=(PATHS.state, PATHS.manifest("etcd")), certs=[cert_at(host, "ca")]
    )


def test_a_clock_that_is_behind_is_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    check_clock(node)
    later = node.now() + datetime.timedelta(days=9)
    node.files[str(PATHS.state)] = b"{}"
    found = node.stat(PATHS.state)
    assert found is not None
    monkeypatch.setattr(
        Node, "stat", lambda self, path: dataclasses.replace(found, mtime=later.timestamp()) if path == PATHS.state else None
    )  # fmt: skip
    with pytest.raises(HostError, match="clock is behind") as caught:
        check_clock(node)
    assert caught.value.code == "clock-behind" and str(PATHS.state) in caught.value.cause
    node.clock = node.clock.replace(year=1999)
    with pytest.raises(HostError, match="it says 1999") as caught:
        check_clock(node)


def test_a_clock_that_is_years_ahead_is_asked_about(node: Node) -> None:
    node.clock += datetime.timedelta(days=4 * 365)
    with pytest.raises(HostError) as caught:
        check_clock(node)
    assert caught.value.code == "clock-doubtful" and "--force" in caught.value.remedy
