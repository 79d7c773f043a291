"""kubeup/node/pki.py: what a certificate looks like, and what becomes of the ones that are there already."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from kubeup.config import pins
from kubeup.config.types import ClusterConfiguration, ExternalEtcd, InitConfig, LocalEtcd
from kubeup.errors import HostError, KbError, UsageError
from kubeup.node import pki
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, cert_at, finished_node, make_ca_unfit, make_config

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
YEAR = 365 * 86400
EKU = x509.ExtendedKeyUsage


def new_ca(common_name: str = "kubernetes", *, algorithm: str = "ECDSA-P256", seconds: int = 10 * YEAR) -> pki.Ca:
    key = pki.generate_key(algorithm)
    return pki.Ca(pki.issue_ca_cert(common_name, key, pki.plan_validity(NOW, seconds)), key, Path("/pki/ca.crt"))


CLIENT = pki.Subject("x", is_client=True)


def new_leaf(ca: pki.Ca, subject: pki.Subject = CLIENT, **kwargs: Any) -> x509.Certificate:
    kwargs.setdefault("key", pki.generate_key("ECDSA-P256"))
    kwargs.setdefault("validity", pki.plan_validity(NOW, YEAR))
    return pki.issue_leaf_cert(subject, kwargs["key"], ca=ca, validity=kwargs["validity"])


def put(host: FakeHost, base: str, *, cert: Any = None, key: Any = None) -> None:
    if cert is not None:
        host.files[f"/etc/kubernetes/pki/{base}.crt"] = pki.cert_to_pem(cert).encode()
    if key is not None:
        host.files[f"/etc/kubernetes/pki/{base}.key"] = pki.key_to_pem(key).reveal().encode()


def node_ca(host: FakeHost, name: str = "ca") -> pki.Ca:
    return pki.read_ca(host, PATHS, name)


def ensure(host: FakeHost, name: str = "apiserver", config: Union[InitConfig, None] = None) -> pki.Finding:
    ensure_one: Callable[..., pki.Finding] = pki.ensure_ca if pki.CERTS[name].is_ca else pki.ensure_cert
    return ensure_one(
        host, PATHS, config=config or make_config(), name=name, make_key=lambda: pki.generate_key("ECDSA-P256")
    )


def refused(host: FakeHost, name: str = "apiserver", config: Union[InitConfig, None] = None) -> HostError:
    """The error of ensure, which must have changed nothing."""
    before = dict(host.files)
    with pytest.raises(HostError) as caught:
        ensure(host, name, config)
    assert host.files == before
    assert host.changes == []
    error: HostError = caught.value
    return error


# ---- the table


def test_table_is_kubeadms() -> None:
    client, server = "client", "server"
    assert [
        (spec.name, spec.base, spec.signer, spec.common_name, [server] * spec.is_server + [client] * spec.is_client)
        for spec in pki.CERTS.values()
    ] == [
        ("ca", "ca", "", "kubernetes", []),
        ("apiserver", "apiserver", "ca", "kube-apiserver", [server]),
        ("apiserver-kubelet-client", "apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", [client]),
        ("front-proxy-ca", "front-proxy-ca", "", "front-proxy-ca", []),
        ("front-proxy-client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", [client]),
        ("etcd-ca", "etcd/ca", "", "etcd-ca", []),
        ("etcd-server", "etcd/server", "etcd-ca", "", [server, client]),
        ("etcd-peer", "etcd/peer", "etcd-ca", "", [server, client]),
        ("etcd-healthcheck-client", "etcd/healthcheck-client", "etcd-ca", "kube-etcd-healthcheck-client", [client]),
        ("apiserver-etcd-client", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", [client]),
    ]


def test_external_etcd_needs_no_etcd_certs() -> None:
    cluster = ClusterConfiguration("v1.35.6", local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))
    assert [spec.name for spec in pki.wanted_certs(cluster)] == [
        "ca",
        "apiserver",
        "apiserver-kubelet-client",
        "front-proxy-ca",
        "front-proxy-client",
    ]


# ---- names


def test_apiserver_sans_of_a_plain_cluster() -> None:
    assert pki.apiserver_sans(make_config()) == pki.Sans(
        ("cp1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
        ("10.96.0.1", "10.77.0.11"),
    )


def test_apiserver_sans_follow_the_configuration() -> None:
    config = make_config(
        control_plane_endpoint="api.example.com:8443",
        networking=dataclasses.replace(
            ClusterConfiguration("v1.35.6").networking,
            service_subnet="fd00:10:96::/112,10.96.0.0/16",
            dns_domain="k8s.lan",
        ),
        api_server=dataclasses.replace(
            ClusterConfiguration("v1.35.6").api_server,
            cert_sans=("*.example.com", "10.0.0.9", "cp1", "10.77.0.11", "not a name", "2001:DB8::9"),
        ),
    )
    sans = pki.apiserver_sans(config)
    assert sans.ips == ("fd00:10:96::1", "10.77.0.11", "10.0.0.9", "2001:db8::9")
    assert sans.dns == (
        "*.example.com",
        "api.example.com",
        "cp1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.k8s.lan",
    )


@pytest.mark.parametrize("endpoint", ["192.0.2.7:6443", "192.0.2.7"])
def test_an_address_as_endpoint_is_an_ip_san_after_the_advertise_address(endpoint: str) -> None:
    assert pki.apiserver_sans(make_config(control_plane_endpoint=endpoint)).ips == (
        "10.96.0.1",
        "10.77.0.11",
        "192.0.2.7",
    )


def test_etcd_sans_have_extra_names_of_their_own() -> None:
    config = make_config(local_etcd=LocalEtcd(server_cert_sans=("etcd.lan", "10.0.0.1"), peer_cert_sans=("peer.lan",)))
    assert pki.etcd_server_sans(config) == pki.Sans(
        ("cp1", "etcd.lan", "localhost"), ("10.77.0.11", "127.0.0.1", "::1", "10.0.0.1")
    )
    assert pki.etcd_peer_sans(config) == pki.Sans(("cp1", "localhost", "peer.lan"), ("10.77.0.11", "127.0.0.1", "::1"))


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("api.example.com", True),
        ("API.example.COM", True),
        ("a.b.example.com", False),
        ("api.example.org", False),
        ("example.com", False),
        ("*.example.com", True),
        ("*.com", False),
        ("cp1", True),
        ("cp2", False),
        ("10.0.0.1", True),
        ("10.0.0.2", False),
        ("FD00:0::1", True),
    ],
)
def test_coverage_is_hostname_verification(name: str, is_covered: bool) -> None:
    assert pki.Sans(("*.example.com", "cp1"), ("10.0.0.1", "fd00::1")).covers(name) is is_covered


def test_a_plain_name_does_not_cover_a_wanted_wildcard() -> None:
    assert pki.Sans(("a.example.com",)).lacks(pki.Sans(("*.example.com", "a.example.com"))) == ("*.example.com",)


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("h:1", ("h", 1)),
        ("h", ("h", 0)),
        ("[fd00::1]:6443", ("fd00::1", 6443)),
        ("[fd00::1]", ("fd00::1", 0)),
        ("fd00::1", ("fd00::1", 0)),
    ],
)
def test_split_host_port(endpoint: str, parts: tuple[str, int]) -> None:
    assert pki.split_host_port(endpoint) == parts


# ---- keys


@pytest.mark.parametrize(
    ("algorithm", "gates", "expected"),
    [
        ("RSA-3072", {}, "RSA-3072"),
        ("", {}, "RSA-2048"),
        ("RSA-4096", {"PublicKeysECDSA": True}, "ECDSA-P256"),
        ("ECDSA-P384", {"PublicKeysECDSA": False}, "RSA-2048"),
        ("ECDSA-P384", {"RootlessControlPlane": True}, "ECDSA-P384"),
    ],
)
def test_key_algorithm(algorithm: str, gates: dict[str, bool], expected: str) -> None:
    cluster = ClusterConfiguration("v1.35.6", encryption_algorithm=algorithm, feature_gates=gates)
    assert pki.key_algorithm(cluster) == expected


def test_rsa_keys() -> None:
    for bits in (2048, 3072):
        key = pki.generate_key(f"RSA-{bits}")
        assert isinstance(key, rsa.RSAPrivateKey)
        assert (key.key_size, key.public_key().public_numbers().e) == (bits, 65537)
    text = pki.key_to_pem(key).reveal()
    assert text.startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert pki.parse_key(text).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(("algorithm", "curve"), [("ECDSA-P256", "secp256r1"), ("ECDSA-P384", "secp384r1")])
def test_ec_keys(algorithm: str, curve: str) -> None:
    key = pki.generate_key(algorithm)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == curve
    text = pki.key_to_pem(key).reveal()
    assert text.startswith("-----BEGIN EC PRIVATE KEY-----\n")
    assert text.count("BEGIN") == 1
    assert pki.public_key_to_pem(key).startswith("-----BEGIN PUBLIC KEY-----\n")


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        pki.generate_key("RSA-1024")
    assert caught.value.code == "unknown-encryption-algorithm"
    assert "RSA-1024" in caught.value.what


def test_reads_every_form_of_private_key() -> None:
    key = pki.generate_key("ECDSA-P256")
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for text in (pkcs8, pki.key_to_pem(key).reveal(), parameters + pki.key_to_pem(key).reveal()):
        assert pki.parse_key(text).private_numbers() == key.private_numbers()


def test_private_keys_that_cannot_be_used_say_why_and_show_nothing() -> None:
    key = pki.generate_key("ECDSA-P256")
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    ).decode()
    other = ed25519.Ed25519PrivateKey.generate()
    other_pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    damaged = pki.key_to_pem(key).reveal().replace("\n", "\nAAAA", 1)
    for text, reason in (
        (encrypted, "encrypted with a password"),
        (other_pem, "neither RSA nor ECDSA"),
        (damaged, "damaged"),
        ("hello", "nothing in PEM form"),
        (pki.cert_to_pem(new_ca().cert), "no private key, but CERTIFICATE"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            pki.parse_key(text)
        assert "AAAA" not in str(caught.value)


def test_a_private_key_with_a_flipped_bit_is_not_the_certificates() -> None:
    key = pki.generate_key("RSA-2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    cert = pki.issue_ca_cert("kubernetes", key, pki.plan_validity(NOW, YEAR))
    assert pki.is_key_of(key, cert)
    numbers = key.private_numbers()
    broken = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d ^ 4, numbers.dmp1 ^ 4, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert not pki.is_key_of(broken, cert)


def test_key_maker_makes_what_is_wanted_and_more_on_demand() -> None:
    maker = pki.KeyMaker("RSA-2048", wanted=2)
    keys = [maker.take() for _ in range(3)]
    assert len({key.private_numbers().public_numbers.n for key in keys}) == 3  # type: ignore[union-attr]
    assert all(isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048 for key in keys)


def test_key_maker_starts_no_thread_for_elliptic_curves() -> None:
    before = set(threading.enumerate())
    key = pki.KeyMaker("ECDSA-P384", wanted=16).take()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert set(threading.enumerate()) <= before


# ---- the shape of certificates


def shape(cert: x509.Certificate) -> list[tuple[str, bool]]:
    return [(type(extension.value).__name__, extension.critical) for extension in cert.extensions]


def usages(cert: x509.Certificate) -> list[str]:
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    flags = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return [flag for flag in (*flags, "key_cert_sign", "crl_sign") if getattr(usage, flag)]


def test_ca_certificate() -> None:
    ca = new_ca("front-proxy-ca")
    assert ca.cert.version == x509.Version.v3
    assert 1 <= ca.cert.serial_number < 2**63
    assert ca.cert.subject.rfc4514_string() == ca.cert.issuer.rfc4514_string() == "CN=front-proxy-ca"
    assert ca.cert.not_valid_before_utc == NOW - datetime.timedelta(minutes=5)
    assert ca.cert.not_valid_after_utc == NOW + datetime.timedelta(days=3650)
    assert shape(ca.cert) == [
        ("KeyUsage", True),
        ("BasicConstraints", True),
        ("SubjectKeyIdentifier", False),
        ("SubjectAlternativeName", False),
    ]
    assert usages(ca.cert) == ["digital_signature", "key_encipherment", "key_cert_sign"]
    assert ca.cert.extensions[1].value == x509.BasicConstraints(ca=True, path_length=None)
    assert len(ca.cert.extensions[2].value.digest) == 20  # type: ignore[attr-defined]
    assert pki.sans_of(ca.cert) == pki.Sans(("front-proxy-ca",))
    assert pki.is_ca_cert(ca.cert)


def test_leaf_certificate() -> None:
    ca = new_ca()
    subject = pki.Subject("cp1", is_server=True, is_client=True, sans=pki.Sans(("a", "b"), ("10.0.0.1", "::1")))
    cert = new_leaf(ca, subject)
    assert shape(cert) == [
        ("KeyUsage", True),
        ("ExtendedKeyUsage", False),
        ("BasicConstraints", True),
        ("AuthorityKeyIdentifier", False),
        ("SubjectAlternativeName", False),
    ]
    assert usages(cert) == ["digital_signature", "key_encipherment"]
    assert list(cert.extensions.get_extension_for_class(EKU).value) == [
        x509.oid.ExtendedKeyUsageOID.SERVER_AUTH,
        x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    assert cert.extensions[2].value == x509.BasicConstraints(ca=False, path_length=None)
    authority = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == ca.cert.extensions[2].value.digest  # type: ignore[attr-defined]
    assert (authority.authority_cert_issuer, authority.authority_cert_serial_number) == (None, None)
    assert list(cert.extensions[4].value) == [  # type: ignore[call-overload]
        x509.DNSName("a"),
        x509.DNSName("b"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    assert pki.subject_of(cert) == subject


def test_client_certificate_has_no_san() -> None:
    assert [name for name, _ in shape(new_leaf(new_ca()))] == [
        "KeyUsage",
        "ExtendedKeyUsage",
        "BasicConstraints",
        "AuthorityKeyIdentifier",
    ]


def test_a_leaf_may_outlive_its_ca() -> None:
    cert = new_leaf(new_ca(), validity=pki.plan_validity(NOW, 30 * YEAR))
    assert cert.not_valid_after_utc == NOW + datetime.timedelta(days=30 * 365)


def test_organizations_share_one_set_before_the_common_name() -> None:
    cert = new_leaf(new_ca(), pki.Subject("alice", ("dev", "ops", "dev"), is_client=True))
    assert [sorted((part.rfc4514_attribute_name, part.value) for part in rdn) for rdn in cert.subject.rdns] == [
        [("O", "dev"), ("O", "ops")],
        [("CN", "alice")],
    ]


@pytest.mark.parametrize(
    ("common_name", "tag"),
    [("system:node:cp1", 0x13), ("a'b (c) +,-./=?", 0x13), ("*.x", 0x0C), ("a_b", 0x0C), ("a@b", 0x0C)],
)
def test_names_have_the_bytes_that_go_gives_them(common_name: str, tag: int) -> None:
    """Go looks for an issuer by the bytes of its name: a CA that kubeadm makes anew must carry kb's."""
    text = common_name.encode()
    encoded = bytes([tag, len(text)]) + text
    ca = new_ca(common_name)
    leaf = new_leaf(ca, pki.Subject(common_name, (common_name,), is_client=True))
    for name in (ca.cert.subject, ca.cert.issuer, leaf.issuer):
        assert name.public_bytes().endswith(encoded)
    assert leaf.subject.public_bytes().count(encoded) == 2


@pytest.mark.parametrize(
    ("algorithm", "signature"),
    [
        ("RSA-2048", "sha256WithRSAEncryption"),
        ("ECDSA-P256", "ecdsa-with-SHA256"),
        ("ECDSA-P384", "ecdsa-with-SHA384"),
    ],
)
def test_the_signers_key_chooses_the_hash(algorithm: str, signature: str) -> None:
    ca = new_ca(algorithm=algorithm)
    for cert in (ca.cert, new_leaf(ca)):
        assert cert.signature_algorithm_oid._name == signature


def test_fractions_of_a_second_are_cut() -> None:
    validity = pki.plan_validity(NOW.replace(microsecond=999999), 60)
    assert validity == pki.Validity(NOW - datetime.timedelta(minutes=5), NOW + datetime.timedelta(seconds=60))


# ---- chains and pins


def test_signature_not_name_makes_the_chain() -> None:
    ca, other = new_ca(), new_ca()
    leaf = new_leaf(ca)
    assert pki.is_signed_by([leaf], ca.cert)
    assert not pki.is_signed_by([leaf], other.cert)


def test_intermediates_are_followed() -> None:
    root = new_ca("root")
    key = pki.generate_key("ECDSA-P256")
    template = pki.issue_ca_cert("middle", key, pki.plan_validity(NOW, YEAR))
    assert root.key is not None
    builder = x509.CertificateBuilder(
        root.cert.subject, template.subject, key.public_key(), 7, NOW.replace(tzinfo=None), NOW.replace(year=2030)
    )
    middle = builder.add_extension(x509.BasicConstraints(True, None), True).sign(root.key, SHA256())
    leaf = new_leaf(pki.Ca(middle, key, Path("/x")))
    assert pki.is_signed_by([leaf, middle], root.cert)
    assert not pki.is_signed_by([leaf], root.cert)
    assert not pki.is_signed_by([leaf, leaf, template], root.cert)


def test_a_leaf_is_no_intermediate() -> None:
    """Whoever has a client certificate could otherwise make others."""
    ca = new_ca()
    key = pki.generate_key("ECDSA-P256")
    leaf = new_leaf(ca, key=key)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "kubernetes-admin")])
    builder = x509.CertificateBuilder(leaf.subject, name, key.public_key(), 7, NOW, NOW.replace(year=2030))
    forged = builder.sign(key, SHA256())
    assert pki.is_signed_by([leaf], ca.cert)
    assert not pki.is_signed_by([forged, leaf], ca.cert)


def test_no_authority_identifier_where_the_ca_has_none() -> None:
    key = pki.generate_key("ECDSA-P256")
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "old")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW.replace(tzinfo=None), NOW.replace(year=2030))
    cert = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, SHA256())
    leaf = new_leaf(pki.Ca(cert, key, Path("/x")))
    assert [name for name, _ in shape(leaf)] == ["KeyUsage", "ExtendedKeyUsage", "BasicConstraints"]


PINNED = """-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBBzAKBggqhkjOPQQDAjANMQswCQYDVQQDDAJrYjAeFw0y
-----END CERTIFICATE-----
"""


def test_pins_are_of_the_public_key() -> None:
    one, two = new_ca(), new_ca()
    assert one.key is not None
    renewed = pki.issue_ca_cert("kubernetes", one.key, pki.plan_validity(NOW, 20 * YEAR))
    pin = pki.ca_cert_hash(pki.cert_to_pem(one.cert))
    assert pins.parse_ca_cert_hash(pin) == pin
    assert len(pin) == len("sha256:") + 64
    assert pki.ca_cert_hash(pki.cert_to_pem(renewed)) == pin
    bundle = pki.cert_to_pem(one.cert) + pki.cert_to_pem(two.cert)
    assert pki.ca_cert_hashes(bundle) == (pin, pki.ca_cert_hash(pki.cert_to_pem(two.cert)))
    with pytest.raises(ValueError, match="damaged"):
        pki.ca_cert_hash(PINNED)


def test_pins_are_read_in_any_case() -> None:
    assert pins.parse_ca_cert_hash("SHA256:" + "AB" * 32) == "sha256:" + "ab" * 32


@pytest.mark.parametrize("text", ["", "sha256", "sha256:ab", "md5:" + "a" * 64, "sha256:" + "g" * 64, "a" * 64])
def test_bad_pins_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        pins.parse_ca_cert_hash(text)
    assert caught.value.code == "bad-ca-cert-hash"


# ---- what becomes of what is there: CAs


def test_a_ca_is_made_key_first_and_private() -> None:
    host = FakeHost()
    assert ensure(host, "etcd-ca").action == "issue"
    assert host.changes == ["write /etc/kubernetes/pki/etcd/ca.key", "write /etc/kubernetes/pki/etcd/ca.crt"]
    assert host.modes == {"/etc/kubernetes/pki/etcd/ca.key": 0o600, "/etc/kubernetes/pki/etcd/ca.crt": 0o644}
    cert = cert_at(host, "etcd/ca")
    assert cert.not_valid_after_utc - cert.not_valid_before_utc == datetime.timedelta(days=3650, minutes=5)
    assert pki.read_ca(host, PATHS, "etcd-ca").key is not None


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
    key = pki.generate_key("ECDSA-P384")
    put(host, "ca", key=key)
    assert ensure(host, "ca").action == "issue"
    assert host.changes == ["write /etc/kubernetes/pki/ca.crt"]
    assert pki.is_key_of(key, cert_at(host, "ca"))


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
    assert not pki.is_ca_valid(host, PATHS, "ca")
    host.clock = NOW + datetime.timedelta(seconds=60)
    assert pki.is_ca_valid(host, PATHS, "ca")


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
    put(host, "ca", key=pki.generate_key("ECDSA-P256"))
    error = refused(host, "ca")
    assert error.code == "key-mismatch"
    assert error.what == "/etc/kubernetes/pki/ca.crt and /etc/kubernetes/pki/ca.key do not belong together"


@pytest.mark.parametrize(("suffix", "code"), [("crt", "certificate-unreadable"), ("key", "key-unreadable")])
def test_a_damaged_ca_is_refused(suffix: str, code: str) -> None:
    host = finished_node()
    host.files[f"/etc/kubernetes/pki/ca.{suffix}"] = b""
    assert refused(host, "ca").code == code
    assert refused(host, "apiserver").code == code
    assert not pki.is_ca_valid(host, PATHS, "ca")


def test_external_ca_is_a_ca_without_key() -> None:
    host = finished_node()
    assert not pki.is_external_ca(host, PATHS)
    for name, base in (("ca", "ca"), ("front-proxy-ca", "front-proxy-ca"), ("etcd-ca", "etcd/ca")):
        del host.files[f"/etc/kubernetes/pki/{base}.key"]
        assert pki.is_external_ca(host, PATHS, name)
        del host.files[f"/etc/kubernetes/pki/{base}.crt"]
        assert not pki.is_external_ca(host, PATHS, name)


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
    assert pki.sans_of(cert) == pki.apiserver_sans(make_config())
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
    for name in pki.CERTS:
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
    assert pki.sans_of(cert_at(host, "apiserver")) == pki.apiserver_sans(config)
    assert pki.is_cert_valid(host, PATHS, config=config, name="apiserver")


def test_names_that_somebody_added_survive() -> None:
    host = finished_node()
    sans = pki.Sans(("extra.example.com", "kubernetes"), ("192.0.2.1",))
    key = pki.read_key(host, PATHS.pki / "apiserver.key")
    put(host, "apiserver", cert=new_leaf(node_ca(host), pki.Subject("x", is_server=True, sans=sans), key=key))
    assert ensure(host).action == "reissue"
    cert = cert_at(host, "apiserver")
    assert cert.subject.rfc4514_string() == "CN=kube-apiserver"
    assert pki.sans_of(cert).covers("extra.example.com")
    assert pki.sans_of(cert).ips == ("10.96.0.1", "10.77.0.11", "192.0.2.1")


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
    leaf = new_leaf(new_ca(), pki.Subject("kube-apiserver", is_server=True))
    put(host, "apiserver", cert=leaf)
    error = refused(host)
    assert error.code == "certificate-of-other-ca"
    assert error.what == f"the certificate {APISERVER} was not signed by /etc/kubernetes/pki/ca.crt"
    assert "with another key" in error.cause
    assert f"mv {APISERVER} /etc/kubernetes/pki/apiserver.key /root/" in error.remedy


def test_a_leaf_with_another_key_is_refused() -> None:
    host = finished_node()
    put(host, "apiserver", key=pki.generate_key("ECDSA-P256"))
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
    assert pki.is_key_of(key, cert_at(host, "apiserver"))


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
    assert pki.find_problems(FakeHost(), PATHS, make_config()) == []
    assert pki.find_problems(finished_node(), PATHS, make_config()) == []


def test_all_problems_are_found_and_each_is_told_once() -> None:
    host = external(finished_node())
    host.files["/etc/kubernetes/pki/front-proxy-ca.crt"] = b""
    host.files["/etc/kubernetes/pki/sa.key"] = b""
    del host.files[APISERVER], host.files["/etc/kubernetes/pki/etcd/peer.key"]
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, make_config())]
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
    return pki.ensure_service_account_key(host, PATHS, make_key=lambda: pki.generate_key("ECDSA-P256"))


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
    old = pki.public_key_to_pem(pki.generate_key("RSA-2048")).encode()
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
    assert len(pki.find_missing_keys(FakeHost(), PATHS, cluster)) == 11
    assert pki.find_missing_keys(host, PATHS, cluster) == []
    del host.files[SA_KEY], host.files["/etc/kubernetes/pki/etcd/peer.key"]
    assert pki.find_missing_keys(host, PATHS, cluster) == ["etcd-peer", "sa"]
    external_etcd = dataclasses.replace(cluster, local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))
    assert len(pki.find_missing_keys(FakeHost(), PATHS, external_etcd)) == 6


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


@pytest.mark.parametrize("length", [1, 64, 65, 75, 253])
def test_names_are_as_long_as_go_has_them(length: int) -> None:
    """`system:node:` and a machine's full name are longer than RFC 5280's 64 characters."""
    validity = pki.plan_validity(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), 3600)
    key = pki.generate_key("ECDSA-P256")
    ca = pki.Ca(pki.issue_ca_cert("kubernetes", key, validity), key, Path("ca.crt"))
    name = "n" * length
    cert = pki.issue_leaf_cert(pki.Subject(name, (name, "x"), is_client=True), key, ca=ca, validity=validity)
    found = pki.subject_of(pki.parse_certs(pki.cert_to_pem(cert))[0])
    assert (found.common_name, set(found.organizations)) == (name, {name, "x"})
    request = pki.render_request(pki.Subject(name, (name,)), key)
    assert pki.common_name_of_request(request) == name


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\udce9", "n" * 5000])
def test_what_is_no_name_is_refused_by_name(name: str) -> None:
    key = pki.generate_key("ECDSA-P256")
    with pytest.raises(KbError) as caught:
        pki.render_request(pki.Subject(name), key)
    assert caught.value.code == "bad-name"


def test_an_indented_certificate_is_refused_as_go_refuses_it() -> None:
    """As cloud-init writes it with a wrong indentation: the API server and the kubelets would end minutes later."""
    validity = pki.plan_validity(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), 3600)
    pem = pki.cert_to_pem(pki.issue_ca_cert("kubernetes", pki.generate_key("ECDSA-P256"), validity))
    for text in ("".join(f"  {line}\n" for line in pem.splitlines()), f"x {pem}"):
        with pytest.raises(ValueError, match="PEM"):
            pki.parse_certs(text)
    for text in (f"Bag Attributes\n{pem}", pem.replace("\n", "\r\n"), f"{pem}trailing"):
        assert len(pki.parse_certs(text)) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ecparam", "-genkey", "-noout", "-name", "secp256k1"), "secp256k1"),
        (("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"), "RSA-PSS"),
        (("genpkey", "-algorithm", "ed448"), "neither RSA nor ECDSA"),
    ],
)
def test_keys_that_go_cannot_read_are_refused_by_name(words: tuple[str, ...], told: str) -> None:
    made = subprocess.run(["openssl", *words], capture_output=True, text=True, check=True).stdout
    with pytest.raises(ValueError, match=told):
        pki.parse_key(made)


def test_an_ipv4_address_in_an_ipv6_one_is_written_as_what_it_is() -> None:
    assert pki.make_sans(["::ffff:10.0.0.1", "10.0.0.1", "::1"]) == pki.Sans((), ("10.0.0.1", "::1"))
    assert pki.Sans((), ("10.0.0.1",)).covers("::ffff:10.0.0.1")


# ---- what nobody would believe


def test_preflight_finds_an_authority_that_may_not_sign_with_and_without_what_it_signed() -> None:
    host = make_ca_unfit(finished_node())
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, make_config())]
    assert [code for code, _ in found] == ["ca-unfit"] * 2 and APISERVER in found[0][1]
    for name in ("apiserver", "apiserver-kubelet-client"):
        del host.files[f"/etc/kubernetes/pki/{name}.crt"], host.files[f"/etc/kubernetes/pki/{name}.key"]
    found = [(error.code, error.what) for error in pki.find_problems(host, PATHS, make_config())]
    assert [code for code, _ in found] == ["ca-unfit"] * 2 and "kube-apiserver" in found[0][1]
    assert host.changes == []


@pytest.mark.parametrize(
    ("name", "by", "cause"),
    [
        ("apiserver", "apiserver-kubelet-client", "lacks serverAuth"),
        ("apiserver-kubelet-client", "apiserver", "lacks clientAuth"),
        ("etcd/peer", "etcd/healthcheck-client", "lacks serverAuth"),
        ("etcd/healthcheck-client", "etcd/server", ""),
        ("front-proxy-client", "front-proxy-client", ""),
    ],
)
def test_a_certificate_is_believed_for_what_it_is_for(name: str, by: str, cause: str) -> None:
    """A user's own, from an authority that is kept elsewhere; etcd's server certificate is good for clients too."""
    host = finished_node()
    for kind in ("crt", "key"):
        host.files[f"/etc/kubernetes/pki/{name}.{kind}"] = host.files[f"/etc/kubernetes/pki/{by}.{kind}"]
    for ca in ("ca", "etcd/ca"):
        del host.files[f"/etc/kubernetes/pki/{ca}.key"]
    problems = [error for error in pki.find_problems(host, PATHS, make_config()) if error.code == "certificate-unfit"]
    assert [cause in error.cause for error in problems] == [True] * bool(cause)
    assert all("have your CA issue" in error.remedy for error in problems)


def test_a_certificate_of_the_second_authority_of_a_bundle_is_believed() -> None:
    """While authorities are exchanged, ca.crt holds the new one first and the old one still."""
    host = finished_node()
    new = new_ca()
    host.files["/etc/kubernetes/pki/ca.crt"] = (
        pki.cert_to_pem(new.cert).encode() + host.files["/etc/kubernetes/pki/ca.crt"]
    )
    put(host, "ca", key=new.key)
    assert pki.find_problems(host, PATHS, make_config()) == []
