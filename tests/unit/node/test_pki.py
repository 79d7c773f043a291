"""kubeup/node/pki.py: what becomes of the certificates and keys that are there already, and of those that are not."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import pytest
from cryptography.hazmat.primitives import serialization

from kubeup.config.types import ExternalEtcd, NodeConfig
from kubeup.errors import HostError, KbError
from kubeup.node import cert_specs, certificates, pki, private_keys
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, cert_at, finished_node, make_ca_unfit, make_config
from tests.unit.node.pki_case import NOW, new_ca, new_leaf, put


def node_ca(host: FakeHost, name: str = "ca") -> certificates.Ca:
    return pki.read_ca(host, PATHS, name=name)


def ensure(host: FakeHost, name: str = "apiserver", config: Union[NodeConfig, None] = None) -> pki.Finding:
    ensure_one: Callable[..., pki.Finding] = pki.ensure_ca if cert_specs.CERTS[name].is_ca else pki.ensure_cert
    return ensure_one(
        host, PATHS, config=config or make_config(), name=name, make_key=lambda: private_keys.generate_key("ECDSA-P256")
    )


def refused(host: FakeHost, name: str = "apiserver", config: Union[NodeConfig, None] = None) -> HostError:
    """The error of ensure, which must have changed nothing."""
    before = dict(host.files)
    with pytest.raises(HostError) as caught:
        ensure(host, name, config)
    assert host.files == before
    assert host.changes == []
    error: HostError = caught.value
    return error


# ---- what becomes of what is there: CAs


def test_a_ca_is_made_key_first_and_private() -> None:
    host = FakeHost()
    assert ensure(host, "etcd-ca").action == "issue"
    assert host.changes == ["write /etc/kubernetes/pki/etcd/ca.key", "write /etc/kubernetes/pki/etcd/ca.crt"]
    assert host.modes == {"/etc/kubernetes/pki/etcd/ca.key": 0o600, "/etc/kubernetes/pki/etcd/ca.crt": 0o644}
    cert = cert_at(host, "etcd/ca")
    assert cert.not_valid_after_utc - cert.not_valid_before_utc == datetime.timedelta(days=3650, minutes=5)
    assert pki.read_ca(host, PATHS, name="etcd-ca").key is not None


def test_a_ca_that_is_there_is_kept() -> None:
    host = finished_node()
    for name in ("ca", "front-proxy-ca", "etcd-ca"):
        finding = ensure(host, name)
        assert (finding.action, "with its key" in finding.reason) == ("keep", True)
    del host.files["/etc/kubernetes/pki/ca.key"]
    assert ensure(host, "ca").reason == "using the existing CA /etc/kubernetes/pki/ca.crt (its key is kept elsewhere)"
    assert host.changes == []


def test_a_key_without_certificate_is_used() -> None:
    """What a crash between the two writes leaves behind."""
    host = FakeHost()
    key = private_keys.generate_key("ECDSA-P384")
    put(host, "ca", key=key)
    assert ensure(host, "ca").action == "issue"
    assert host.changes == ["write /etc/kubernetes/pki/ca.crt"]
    assert private_keys.is_key_of(key, cert_at(host, "ca"))


def ca_host(**change: Any) -> FakeHost:
    """A node whose ca.crt was made with another clock, and has its key."""
    host = FakeHost()
    ca = new_ca(**change)
    put(host, "ca", cert=ca.cert, key=ca.key)
    return host


def test_an_expired_ca_is_refused() -> None:
    host = ca_host(seconds=60)
    host.clock = NOW + datetime.timedelta(seconds=61)
    error = refused(host, "ca")
    assert error.code == "ca-expired"
    assert "/etc/kubernetes/pki/ca.crt expired at 2026-01-01 00:01:00 UTC" in error.what
    assert "2026-01-01 00:01:01 UTC" in error.cause
    assert not pki.is_ca_valid(host, PATHS, name="ca")
    host.clock = NOW + datetime.timedelta(seconds=60)
    assert pki.is_ca_valid(host, PATHS, name="ca")


def test_a_ca_of_the_future_is_a_wrong_clock() -> None:
    host = ca_host()
    host.clock = NOW - datetime.timedelta(hours=2)
    error = refused(host, "ca")
    assert (error.code, error.remedy) == ("certificate-not-yet-valid", "set the clock: timedatectl set-ntp true")


def test_a_leaf_is_no_ca() -> None:
    host = FakeHost()
    put(host, "ca", cert=new_leaf(new_ca()))
    assert refused(host, "ca").code == "not-a-ca"


def test_a_ca_with_another_key_is_refused() -> None:
    host = ca_host()
    put(host, "ca", key=private_keys.generate_key("ECDSA-P256"))
    error = refused(host, "ca")
    assert error.code == "key-mismatch"
    assert error.what == "/etc/kubernetes/pki/ca.crt and /etc/kubernetes/pki/ca.key do not belong together"


@pytest.mark.parametrize(("suffix", "code"), [("crt", "certificate-unreadable"), ("key", "key-unreadable")])
def test_a_damaged_ca_is_refused(suffix: str, code: str) -> None:
    host = finished_node()
    host.files[f"/etc/kubernetes/pki/ca.{suffix}"] = b""
    assert refused(host, "ca").code == code
    assert refused(host, "apiserver").code == code
    assert not pki.is_ca_valid(host, PATHS, name="ca")


def test_external_ca_is_a_ca_without_key() -> None:
    host = finished_node()
    assert not pki.is_external_ca(host, PATHS)
    for name, base in (("ca", "ca"), ("front-proxy-ca", "front-proxy-ca"), ("etcd-ca", "etcd/ca")):
        del host.files[f"/etc/kubernetes/pki/{base}.key"]
        assert pki.is_external_ca(host, PATHS, name=name)
        del host.files[f"/etc/kubernetes/pki/{base}.crt"]
        assert not pki.is_external_ca(host, PATHS, name=name)


# ---- what becomes of what is there: leaves

APISERVER = "/etc/kubernetes/pki/apiserver.crt"


def test_a_leaf_is_made_key_first_and_private() -> None:
    host = FakeHost()
    ensure(host, "ca")
    host.changes.clear()
    assert ensure(host).action == "issue"
    assert host.changes == ["write /etc/kubernetes/pki/apiserver.key", f"write {APISERVER}"]
    assert (host.modes["/etc/kubernetes/pki/apiserver.key"], host.modes[APISERVER]) == (0o600, 0o644)
    cert = cert_at(host, "apiserver")
    assert cert.not_valid_after_utc - cert.not_valid_before_utc == datetime.timedelta(days=365, minutes=5)
    assert certificates.sans_of(cert) == cert_specs.apiserver_sans(make_config())
    assert ensure(host).action == "keep"


def test_the_configured_periods_and_node_name_count() -> None:
    host = FakeHost()
    config = make_config(certificate_validity_period_s=3600, ca_certificate_validity_period_s=7200, node="n7")
    ensure(host, "etcd-ca", config)
    ensure(host, "etcd-peer", config)
    assert cert_at(host, "etcd/ca").not_valid_after_utc == NOW + datetime.timedelta(hours=2)
    peer = cert_at(host, "etcd/peer")
    assert peer.not_valid_after_utc == NOW + datetime.timedelta(hours=1)
    assert peer.subject.rfc4514_string() == "CN=n7"


def test_no_ca_no_leaf() -> None:
    error = refused(FakeHost())
    assert error.code == "ca-missing"
    assert "kb init phase certs ca" in error.remedy


def test_everything_sound_is_kept() -> None:
    host = finished_node()
    for name in cert_specs.CERTS:
        assert ensure(host, name).action == "keep"
    assert host.changes == []


def test_a_missing_name_is_added_with_the_same_key() -> None:
    host = finished_node()
    host.modes[APISERVER] = 0o640
    key = host.files["/etc/kubernetes/pki/apiserver.key"]
    api_server = dataclasses.replace(make_config().cluster.api_server, cert_sans=("lb.example.com", "10.0.0.9"))
    config = make_config(api_server=api_server)
    assert not pki.is_cert_valid(host, PATHS, config=config, name="apiserver")
    finding = ensure(host, config=config)
    assert finding.action == "reissue"
    assert finding.reason == f"{APISERVER} does not name lb.example.com, 10.0.0.9: issued again for the same key"
    assert host.changes == [f"write {APISERVER}"]
    assert host.files["/etc/kubernetes/pki/apiserver.key"] == key
    assert host.modes[APISERVER] == 0o640
    assert certificates.sans_of(cert_at(host, "apiserver")) == cert_specs.apiserver_sans(config)
    assert pki.is_cert_valid(host, PATHS, config=config, name="apiserver")


def test_names_that_somebody_added_survive() -> None:
    host = finished_node()
    sans = cert_specs.Sans(("extra.example.com", "kubernetes"), ("192.0.2.1",))
    key = pki.read_key(host, PATHS.pki / "apiserver.key")
    put(host, "apiserver", cert=new_leaf(node_ca(host), certificates.Subject("x", is_server=True, sans=sans), key=key))
    assert ensure(host).action == "reissue"
    cert = cert_at(host, "apiserver")
    assert cert.subject.rfc4514_string() == "CN=kube-apiserver"
    assert certificates.sans_of(cert).covers("extra.example.com")
    assert certificates.sans_of(cert).ips == ("10.96.0.1", "10.77.0.11", "192.0.2.1")


def test_an_expired_leaf_is_issued_again_for_its_key() -> None:
    host = finished_node()
    host.clock = NOW + datetime.timedelta(days=365, seconds=1)
    before = cert_at(host, "apiserver-kubelet-client")
    assert not pki.is_cert_valid(host, PATHS, config=make_config(), name="apiserver-kubelet-client")
    finding = ensure(host, "apiserver-kubelet-client")
    assert finding.action == "reissue"
    assert "apiserver-kubelet-client.crt expired at 2027-01-01 00:00:00 UTC" in finding.reason
    assert host.changes == ["write /etc/kubernetes/pki/apiserver-kubelet-client.crt"]
    after = cert_at(host, "apiserver-kubelet-client")
    assert after.public_key() == before.public_key()
    assert after.not_valid_before_utc == host.clock - datetime.timedelta(minutes=5)


def test_a_leaf_of_another_ca_is_refused() -> None:
    host = finished_node()
    leaf = new_leaf(new_ca(), certificates.Subject("kube-apiserver", is_server=True))
    put(host, "apiserver", cert=leaf)
    error = refused(host)
    assert error.code == "certificate-of-other-ca"
    assert error.what == f"the certificate {APISERVER} was not signed by /etc/kubernetes/pki/ca.crt"
    assert "with another key" in error.cause
    assert f"mv {APISERVER} /etc/kubernetes/pki/apiserver.key /root/" in error.remedy


def test_a_leaf_with_another_key_is_refused() -> None:
    host = finished_node()
    put(host, "apiserver", key=private_keys.generate_key("ECDSA-P256"))
    assert refused(host).code == "key-mismatch"
    assert not pki.is_cert_valid(host, PATHS, config=make_config(), name="apiserver")


def test_a_leaf_without_key_is_refused() -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/apiserver.key"]
    error = refused(host)
    assert error.code == "key-missing"
    assert f"move {APISERVER} away" in error.remedy


def test_a_leafs_key_without_certificate_is_used() -> None:
    host = finished_node()
    key = pki.read_key(host, PATHS.pki / "apiserver.key")
    del host.files[APISERVER]
    assert ensure(host).reason == "using the existing key /etc/kubernetes/pki/apiserver.key"
    assert host.changes == [f"write {APISERVER}"]
    assert private_keys.is_key_of(key, cert_at(host, "apiserver"))


class PowerCut(Exception):
    pass


class FailingHost(FakeHost):
    """Loses power at the write of a certificate."""

    def write_file(self, path: Path, *args: Any, **kwargs: Any) -> bool:
        if path.suffix == ".crt" and self.ticks:
            raise PowerCut
        return super().write_file(path, *args, **kwargs)


@pytest.mark.parametrize("name", ["ca", "apiserver"])
def test_a_crash_between_key_and_certificate_loses_nothing(name: str) -> None:
    host = FailingHost()
    if name != "ca":
        ensure(host, "ca")
    host.ticks = 1
    with pytest.raises(PowerCut):
        ensure(host, name)
    key = host.files[f"/etc/kubernetes/pki/{name}.key"]
    host.ticks = 0
    assert ensure(host, name).action == "issue"
    assert host.files[f"/etc/kubernetes/pki/{name}.key"] == key
    assert ensure(host, name).action == "keep"


def test_no_new_ca_beside_what_the_old_one_signed() -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/etcd/ca.crt"], host.files["/etc/kubernetes/pki/etcd/ca.key"]
    error = refused(host, "etcd-ca")
    assert (error.code, error.what) == ("ca-missing", "the CA certificate /etc/kubernetes/pki/etcd/ca.crt is not there")
    assert "/etc/kubernetes/pki/etcd/server.crt /etc/kubernetes/pki/etcd/peer.crt" in error.cause
    assert "/etc/kubernetes/pki/apiserver.crt" not in error.cause


# ---- every problem at once


def test_no_problems_on_an_empty_and_on_a_finished_node() -> None:
    assert pki.find_problems(FakeHost(), PATHS, config=make_config()) == []
    assert pki.find_problems(finished_node(), PATHS, config=make_config()) == []


def test_all_problems_are_found_and_each_is_told_once() -> None:
    host = external(finished_node())
    host.files["/etc/kubernetes/pki/front-proxy-ca.crt"] = b""
    host.files["/etc/kubernetes/pki/sa.key"] = b""
    del host.files[APISERVER], host.files["/etc/kubernetes/pki/etcd/peer.key"]
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, config=make_config())]
    assert found == [
        ("external-ca-incomplete", f"there is no {APISERVER} and /etc/kubernetes/pki/apiserver.key"),
        ("certificate-unreadable", "the certificate /etc/kubernetes/pki/front-proxy-ca.crt cannot be used"),
        ("key-missing", "the key /etc/kubernetes/pki/etcd/peer.key is not there"),
        ("key-unreadable", "the private key /etc/kubernetes/pki/sa.key cannot be used"),
    ]
    assert host.changes == []


# ---- external CA


def external(host: FakeHost) -> FakeHost:
    del host.files["/etc/kubernetes/pki/ca.key"]
    return host


def test_external_ca_keeps_complete_leaves() -> None:
    host = external(finished_node())
    for name in ("ca", "apiserver", "apiserver-kubelet-client"):
        assert ensure(host, name).action == "keep"
    assert host.changes == []


def test_external_ca_names_what_is_missing() -> None:
    host = external(finished_node())
    del host.files[APISERVER]
    error = refused(host)
    assert error.code == "external-ca-incomplete"
    assert error.what == f"there is no {APISERVER} and /etc/kubernetes/pki/apiserver.key"
    assert "/etc/kubernetes/pki/ca.key" in error.remedy


def test_external_ca_cannot_mend() -> None:
    host = external(finished_node())
    config = make_config(control_plane_endpoint="api.lan:6443")
    error = refused(host, config=config)
    assert error.code == "certificate-lacks-san"
    assert error.what == f"the certificate {APISERVER} does not name api.lan"
    host.clock = NOW + datetime.timedelta(days=366)
    error = refused(host, "apiserver-kubelet-client")
    assert error.code == "certificate-expired"


def test_external_front_proxy_ca() -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/front-proxy-ca.key"]
    assert ensure(host, "front-proxy-client").action == "keep"
    del host.files["/etc/kubernetes/pki/front-proxy-client.crt"]
    assert refused(host, "front-proxy-client").code == "external-ca-incomplete"


# ---- the service account key

SA_KEY, SA_PUB = "/etc/kubernetes/pki/sa.key", "/etc/kubernetes/pki/sa.pub"


def ensure_sa(host: FakeHost) -> pki.Finding:
    return pki.ensure_service_account_key(host, PATHS, make_key=lambda: private_keys.generate_key("ECDSA-P256"))


def test_service_account_key_is_made_private() -> None:
    host = FakeHost()
    assert not pki.is_service_account_key_valid(host, PATHS)
    assert ensure_sa(host).action == "issue"
    assert host.changes == [f"write {SA_KEY}", f"write {SA_PUB}"]
    assert host.modes == {SA_KEY: 0o600, SA_PUB: 0o600}
    public = pki.read_key(host, Path(SA_KEY)).public_key()
    assert serialization.load_pem_public_key(host.files[SA_PUB]) == public
    assert ensure_sa(host).action == "keep"
    assert pki.is_service_account_key_valid(host, PATHS)


def test_service_account_public_half_is_made_again() -> None:
    host = finished_node()
    wanted = host.files.pop(SA_PUB)
    assert ensure_sa(host).action == "issue"
    assert host.changes == [f"write {SA_PUB}"]
    assert host.files[SA_PUB] == wanted


def test_several_service_account_keys_are_fine() -> None:
    host = finished_node()
    old = private_keys.public_key_to_pem(private_keys.generate_key("RSA-2048")).encode()
    host.files[SA_PUB] = old + host.files[SA_PUB]
    assert ensure_sa(host).action == "keep"
    host.files[SA_PUB] = old
    with pytest.raises(HostError) as caught:
        ensure_sa(host)
    assert caught.value.code == "key-mismatch"
    assert f"openssl pkey -in {SA_KEY} -pubout -out {SA_PUB}" in caught.value.remedy


def test_service_account_key_is_never_made_beside_a_public_half() -> None:
    host = finished_node()
    del host.files[SA_KEY]
    with pytest.raises(HostError) as caught:
        ensure_sa(host)
    assert caught.value.code == "sa-key-missing"
    assert host.changes == []


def test_service_account_key_is_not_made_with_an_external_ca() -> None:
    host = external(finished_node())
    del host.files[SA_KEY], host.files[SA_PUB]
    with pytest.raises(HostError) as caught:
        ensure_sa(host)
    assert caught.value.code == "sa-key-missing"
    assert "openssl genrsa" in caught.value.remedy
    assert host.changes == []


def test_damaged_service_account_key() -> None:
    host = finished_node()
    host.files[SA_KEY] = b"x"
    with pytest.raises(HostError) as caught:
        ensure_sa(host)
    assert caught.value.code == "key-unreadable"


# ---- looking


def test_missing_keys_are_found() -> None:
    cluster = make_config().cluster
    host = finished_node()
    assert len(pki.find_missing_keys(FakeHost(), PATHS, cluster=cluster)) == 11
    assert pki.find_missing_keys(host, PATHS, cluster=cluster) == []
    del host.files[SA_KEY], host.files["/etc/kubernetes/pki/etcd/peer.key"]
    assert pki.find_missing_keys(host, PATHS, cluster=cluster) == ["etcd-peer", "sa"]
    external_etcd = dataclasses.replace(cluster, local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))
    assert len(pki.find_missing_keys(FakeHost(), PATHS, cluster=external_etcd)) == 6


def test_no_error_shows_a_key() -> None:
    """Every refusal above, once more in one place: none of its texts holds a line of a private key."""
    host = finished_node()
    secret_lines = {
        line
        for path, content in host.files.items()
        if path.endswith(".key")
        for line in content.decode().splitlines()
        if not line.startswith("-----")
    }
    host.files["/etc/kubernetes/pki/apiserver.key"], host.files["/etc/kubernetes/pki/front-proxy-client.key"] = (
        host.files["/etc/kubernetes/pki/front-proxy-client.key"],
        host.files["/etc/kubernetes/pki/apiserver.key"][:-40],
    )
    errors: list[KbError] = [refused(host, "apiserver"), refused(host, "front-proxy-client")]
    assert [error.code for error in errors] == ["key-mismatch", "key-unreadable"]
    text = " ".join(str(error.as_dict()) for error in errors)
    assert not [line for line in secret_lines if line in text]


# ---- what nobody would believe


def test_preflight_finds_an_authority_that_may_not_sign_with_and_without_what_it_signed() -> None:
    host = make_ca_unfit(finished_node())
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, config=make_config())]
    assert [code for code, _ in found] == ["ca-unfit"] * 2 and APISERVER in found[0][1]
    for name in ("apiserver", "apiserver-kubelet-client"):
        del host.files[f"/etc/kubernetes/pki/{name}.crt"], host.files[f"/etc/kubernetes/pki/{name}.key"]
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, config=make_config())]
    assert [code for code, _ in found] == ["ca-unfit"] * 2 and "kube-apiserver" in found[0][1]
    assert host.changes == []
