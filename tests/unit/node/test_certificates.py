"""kubeup/node/certificates.py: what a certificate looks like, and who believes it."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from kubeup.errors import KbError
from kubeup.node import cert_specs, certificates, pki, private_keys
from tests.fake_node import PATHS, finished_node, make_config
from tests.unit.node.pki_case import EKU, NOW, YEAR, new_ca, new_leaf, put, shape, usages


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
    assert certificates.sans_of(ca.cert) == cert_specs.Sans(("front-proxy-ca",))
    assert certificates.is_ca_cert(ca.cert)


def test_leaf_certificate() -> None:
    ca = new_ca()
    subject = certificates.Subject(
        "cp1", is_server=True, is_client=True, sans=cert_specs.Sans(("a", "b"), ("10.0.0.1", "::1"))
    )
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
    assert certificates.subject_of(cert) == subject


def test_client_certificate_has_no_san() -> None:
    assert [name for name, _ in shape(new_leaf(new_ca()))] == [
        "KeyUsage",
        "ExtendedKeyUsage",
        "BasicConstraints",
        "AuthorityKeyIdentifier",
    ]


def test_a_leaf_may_outlive_its_ca() -> None:
    cert = new_leaf(new_ca(), validity=certificates.plan_validity(NOW, 30 * YEAR))
    assert cert.not_valid_after_utc == NOW + datetime.timedelta(days=30 * 365)


def test_organizations_share_one_set_before_the_common_name() -> None:
    cert = new_leaf(new_ca(), certificates.Subject("alice", ("dev", "ops", "dev"), is_client=True))
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
    leaf = new_leaf(ca, certificates.Subject(common_name, (common_name,), is_client=True))
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
    validity = certificates.plan_validity(NOW.replace(microsecond=999999), 60)
    assert validity == certificates.Validity(NOW - datetime.timedelta(minutes=5), NOW + datetime.timedelta(seconds=60))


# ---- chains and pins


def test_signature_not_name_makes_the_chain() -> None:
    ca, other = new_ca(), new_ca()
    leaf = new_leaf(ca)
    assert certificates.is_signed_by([leaf], ca.cert)
    assert not certificates.is_signed_by([leaf], other.cert)


def test_intermediates_are_followed() -> None:
    root = new_ca("root")
    key = private_keys.generate_key("ECDSA-P256")
    template = certificates.issue_ca_cert("middle", key, validity=certificates.plan_validity(NOW, YEAR))
    assert root.key is not None
    builder = x509.CertificateBuilder(
        root.cert.subject, template.subject, key.public_key(), 7, NOW.replace(tzinfo=None), NOW.replace(year=2030)
    )
    middle = builder.add_extension(x509.BasicConstraints(True, None), True).sign(root.key, SHA256())
    leaf = new_leaf(certificates.Ca(middle, key, Path("/x")))
    assert certificates.is_signed_by([leaf, middle], root.cert)
    assert not certificates.is_signed_by([leaf], root.cert)
    assert not certificates.is_signed_by([leaf, leaf, template], root.cert)


def test_a_leaf_is_no_intermediate() -> None:
    """Whoever has a client certificate could otherwise make others."""
    ca = new_ca()
    key = private_keys.generate_key("ECDSA-P256")
    leaf = new_leaf(ca, key=key)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "kubernetes-admin")])
    builder = x509.CertificateBuilder(leaf.subject, name, key.public_key(), 7, NOW, NOW.replace(year=2030))
    forged = builder.sign(key, SHA256())
    assert certificates.is_signed_by([leaf], ca.cert)
    assert not certificates.is_signed_by([forged, leaf], ca.cert)


def test_no_authority_identifier_where_the_ca_has_none() -> None:
    key = private_keys.generate_key("ECDSA-P256")
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "old")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW.replace(tzinfo=None), NOW.replace(year=2030))
    cert = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, SHA256())
    leaf = new_leaf(certificates.Ca(cert, key, Path("/x")))
    assert [name for name, _ in shape(leaf)] == ["KeyUsage", "ExtendedKeyUsage", "BasicConstraints"]


@pytest.mark.parametrize("length", [1, 64, 65, 75, 253])
def test_names_are_as_long_as_go_has_them(length: int) -> None:
    """`system:node:` and a machine's full name are longer than RFC 5280's 64 characters."""
    validity = certificates.plan_validity(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), 3600)
    key = private_keys.generate_key("ECDSA-P256")
    ca = certificates.Ca(certificates.issue_ca_cert("kubernetes", key, validity=validity), key, Path("ca.crt"))
    name = "n" * length
    cert = certificates.issue_leaf_cert(
        certificates.Subject(name, (name, "x"), is_client=True), key, ca=ca, validity=validity
    )
    found = certificates.subject_of(certificates.parse_certs(certificates.cert_to_pem(cert))[0])
    assert (found.common_name, set(found.organizations)) == (name, {name, "x"})
    request = certificates.render_request(certificates.Subject(name, (name,)), key)
    assert certificates.common_name_of_request(request) == name


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\udce9", "n" * 5000])
def test_what_is_no_name_is_refused_by_name(name: str) -> None:
    key = private_keys.generate_key("ECDSA-P256")
    with pytest.raises(KbError) as caught:
        certificates.render_request(certificates.Subject(name), key)
    assert caught.value.code == "bad-name"


def test_an_indented_certificate_is_refused_as_go_refuses_it() -> None:
    """As cloud-init writes it with a wrong indentation: the API server and the kubelets would end minutes later."""
    validity = certificates.plan_validity(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), 3600)
    pem = certificates.cert_to_pem(
        certificates.issue_ca_cert("kubernetes", private_keys.generate_key("ECDSA-P256"), validity=validity)
    )
    for text in ("".join(f"  {line}\n" for line in pem.splitlines()), f"x {pem}"):
        with pytest.raises(ValueError, match="PEM"):
            certificates.parse_certs(text)
    for text in (f"Bag Attributes\n{pem}", pem.replace("\n", "\r\n"), f"{pem}trailing"):
        assert len(certificates.parse_certs(text)) == 1


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
    problems = [
        error for error in pki.find_problems(host, PATHS, config=make_config()) if error.code == "certificate-unfit"
    ]
    assert [cause in error.cause for error in problems] == [True] * bool(cause)
    assert all("have your CA issue" in error.remedy for error in problems)


def test_a_certificate_of_the_second_authority_of_a_bundle_is_believed() -> None:
    """While authorities are exchanged, ca.crt holds the new one first and the old one still."""
    host = finished_node()
    new = new_ca()
    host.files["/etc/kubernetes/pki/ca.crt"] = (
        certificates.cert_to_pem(new.cert).encode() + host.files["/etc/kubernetes/pki/ca.crt"]
    )
    put(host, "ca", key=new.key)
    assert pki.find_problems(host, PATHS, config=make_config()) == []
