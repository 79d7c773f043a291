"""Certificates as people's own authorities make them, sound and unsound, each with the authority that should vouch for it.

Owns the forms alone; what Go's verifier makes of each stands in tests/components/test_verify.py.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from kubeup.frozen_values import frozen
from kubeup.node import certificates, private_keys

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
NAMES: Sequence[x509.GeneralName] = (
    x509.DNSName("cp1"),
    x509.DNSName("kubernetes.default.svc.cluster.local"),
    x509.IPAddress(ipaddress.ip_address("10.0.0.11")),
)
_KEY = ec.generate_private_key(ec.SECP256R1())
_OTHER = ec.generate_private_key(ec.SECP256R1())
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@frozen
class Form:
    """pool: the authority's file. chain: the certificate's. usage: server or client."""

    pool: bytes
    chain: bytes
    usage: str = "server"


def constraints(ca: bool, length: Optional[int] = None) -> x509.Extension[x509.ExtensionType]:
    return critical(x509.BasicConstraints(ca, length))


def critical(value: x509.ExtensionType, is_critical: bool = True) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, is_critical, value)


def plain(value: x509.ExtensionType) -> x509.Extension[x509.ExtensionType]:
    return critical(value, False)


def usage(*, sign: bool, digital: bool = True) -> x509.Extension[x509.ExtensionType]:
    bits = dict.fromkeys(("content_commitment", "data_encipherment", "key_agreement", "crl_sign"), False)
    rest = dict.fromkeys(("encipher_only", "decipher_only"), False)
    return critical(x509.KeyUsage(digital_signature=digital, key_encipherment=True, key_cert_sign=sign, **bits, **rest))


def purposes(*oids: ObjectIdentifier) -> x509.Extension[x509.ExtensionType]:
    return plain(x509.ExtendedKeyUsage(oids))


def name(text: str, kind: _ASN1Type = _ASN1Type.UTF8String) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _type=kind, _validate=False)])


def make(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    signer: Any,
    *extensions: x509.Extension[x509.ExtensionType],
    days: tuple[int, int] = (-30, 300),
    digest: Any = None,
    serial: int = 1234,
    **how: Any,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), serial)
    builder = builder.not_valid_before(NOW + DAY * days[0]).not_valid_after(NOW + DAY * days[1])
    for extension in extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    is_ed = isinstance(signer, ed25519.Ed25519PrivateKey)
    return builder.sign(signer, None if is_ed else digest or hashes.SHA256(), **how)


def pem(*certs: x509.Certificate) -> bytes:
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certs)


CA_NAME, LEAF_NAME, MIDDLE_NAME = name("kubernetes"), name("kube-apiserver"), name("middle")
CA_BITS = (usage(sign=True), constraints(True))
LEAF_BITS = (usage(sign=False), purposes(SERVER, CLIENT), constraints(False), plain(x509.SubjectAlternativeName(NAMES)))


def authority(*extensions: x509.Extension[x509.ExtensionType], key: Any = _KEY, **how: Any) -> x509.Certificate:
    return make(CA_NAME, CA_NAME, key, key, *(extensions or CA_BITS), **how)


def leaf(*extensions: x509.Extension[x509.ExtensionType], signer: Any = _KEY, key: Any = _OTHER, **how: Any) -> Any:
    return make(LEAF_NAME, how.pop("issuer", CA_NAME), key, signer, *(extensions or LEAF_BITS), **how)


def middle(*extensions: x509.Extension[x509.ExtensionType]) -> x509.Certificate:
    return make(MIDDLE_NAME, CA_NAME, _RSA, _KEY, *(extensions or CA_BITS))


def below_middle() -> Any:
    return leaf(signer=_RSA, issuer=MIDDLE_NAME)


def named(*names: x509.GeneralName) -> Any:
    return leaf(*LEAF_BITS[:3], plain(x509.SubjectAlternativeName(names)))


def limited(
    permitted: Optional[list[x509.GeneralName]] = None,
    excluded: Optional[list[x509.GeneralName]] = None,
    is_critical: bool = True,
) -> x509.Certificate:
    return authority(*CA_BITS, critical(x509.NameConstraints(permitted, excluded), is_critical))


def network(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text))


def signed_again(
    cert: x509.Certificate, change: Callable[[bytes], bytes], digest: Optional[hashes.HashAlgorithm] = None
) -> bytes:
    """The certificate with other bytes in what is signed, signed by the RSA authority."""
    body = change(cert.tbs_certificate_bytes)
    algorithm = change(_sequence(bytes.fromhex("06092a864886f70d01010b0500")))
    signature = _RSA.sign(body, padding.PKCS1v15(), digest or hashes.SHA256())
    der = _sequence(body + algorithm + b"\x03" + _length(len(signature) + 1) + b"\0" + signature)
    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n".encode()


def _length(count: int) -> bytes:
    if count < 128:
        return bytes([count])
    raw = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(raw)]) + raw


def _sequence(content: bytes) -> bytes:
    return b"\x30" + _length(len(content)) + content


def swap(before: str, after: str) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(bytes.fromhex(before), bytes.fromhex(after), 1)


UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
WITH_RSA = "2a864886f70d0101"
SERIAL = "020204d2"
SMALL_KEY = """\
-----BEGIN RSA PRIVATE KEY-----
MIIBPAIBAAJBAMZy97ZG0lgUg81sStABdSGY55xvoBPbj+Kh1KwbMuMPR//D2IiU
ND983tHosEtvq+D+5TLeSOZPoAzxt9j81HUCAwEAAQJAO/9qURucYLDjIGpLPBQU
u7Gk5LEC7r4FBHn0+IvImMjvp/4BcZC1KM0qIV4wXScECBPC/n/hcNDoXAAoRKbq
QQIhAOR7E2mRslhg67AEXVsFBiV5sBspts92/i9toKVMiaWJAiEA3lnm6YE0GWbL
Bvnh0viJmnekOrI3ULOVb7tl/+hFaI0CIQDO3L/OrSMT8WxyiQEdD4dpFqvja/kg
DVRGDLON9aYKQQIhAI/MdJnvBVKoOAV69aELO3K6jWuodj2q5qor9/tYrArBAiEA
gfBLznsvnZuogITjwjzHjsC/SFFXcRGLGj+DND3egoE=
-----END RSA PRIVATE KEY-----
"""
"""512 bits, which nobody makes any more."""


def make_forms() -> dict[str, Form]:
    """By name; each new run makes new keys."""
    ca, one = pem(authority()), pem(leaf())
    rsa_ca = pem(authority(key=_RSA))
    rsa_leaf = leaf(signer=_RSA)
    edwards = ed25519.Ed25519PrivateKey.generate()
    bits = ec.generate_private_key(ec.SECP256K1())
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    big = ec.generate_private_key(ec.SECP521R1())
    key_id = x509.SubjectKeyIdentifier(b"one")
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    below = x509.DNSName("cluster.local")
    san = LEAF_BITS[3]
    own = pem(make(LEAF_NAME, LEAF_NAME, _OTHER, _OTHER, *LEAF_BITS))
    small: Any = serialization.load_pem_private_key(SMALL_KEY.encode(), None, unsafe_skip_rsa_key_validation=True)
    forms: dict[str, Form] = {
        "good": Form(ca, one),
        "good client": Form(ca, one, "client"),
        "another authority": Form(pem(authority(key=_OTHER)), one),
        "another name of the authority": Form(pem(make(name("other"), name("other"), _KEY, _KEY, *CA_BITS)), one),
        "name in another type of text": Form(
            pem(make(name("kubernetes", _ASN1Type.PrintableString), CA_NAME, _KEY, _KEY, *CA_BITS)), one
        ),
        "second of two": Form(pem(authority(key=_OTHER)) + ca, one),
        "authority that may not sign": Form(pem(authority(usage(sign=False), constraints(True))), one),
        "authority without key usage": Form(pem(authority(constraints(True))), one),
        "CA:FALSE": Form(pem(authority(usage(sign=True), constraints(False))), one),
        "no basic constraints": Form(pem(authority(usage(sign=True))), one),
        "path length 0": Form(pem(authority(usage(sign=True), constraints(True, 0))), one),
        "intermediate": Form(ca, pem(below_middle(), middle())),
        "intermediate missing": Form(ca, pem(below_middle())),
        "intermediate alone as authority": Form(pem(middle()), pem(below_middle())),
        "intermediate not CA": Form(ca, pem(below_middle(), middle(usage(sign=True), constraints(False)))),
        "intermediate that may not sign": Form(ca, pem(below_middle(), middle(usage(sign=False), constraints(True)))),
        "intermediate and stranger": Form(ca, pem(below_middle(), leaf(), middle())),
        "path length 0 and intermediate": Form(
            pem(authority(usage(sign=True), constraints(True, 0))), pem(below_middle(), middle())
        ),
        "path length 1 and intermediate": Form(
            pem(authority(usage(sign=True), constraints(True, 1))), pem(below_middle(), middle())
        ),
        "expired": Form(ca, pem(leaf(days=(-30, -1)))),
        "not yet": Form(ca, pem(leaf(days=(1, 30)))),
        "authority expired": Form(pem(authority(days=(-30, -1))), one),
        "authority not yet": Form(pem(authority(days=(1, 30))), one),
        "outlives its authority": Form(pem(authority(days=(-30, 1))), one),
        "older than its authority": Form(pem(authority(days=(-3, 300))), one),
        "year 9999": Form(ca, pem(leaf(days=(-30, (datetime.datetime(9999, 12, 31) - NOW.replace(tzinfo=None)).days)))),
        "for clients, as server": Form(ca, pem(leaf(LEAF_BITS[0], purposes(CLIENT), *LEAF_BITS[2:]))),
        "for servers, as client": Form(ca, pem(leaf(LEAF_BITS[0], purposes(SERVER), *LEAF_BITS[2:])), "client"),
        "for nothing said": Form(ca, pem(leaf(LEAF_BITS[0], *LEAF_BITS[2:]))),
        "for anything": Form(
            ca, pem(leaf(LEAF_BITS[0], purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE), *LEAF_BITS[2:]))
        ),
        "for an unknown purpose": Form(
            ca, pem(leaf(LEAF_BITS[0], purposes(ObjectIdentifier("1.3.6.1.4.1.99999.2")), *LEAF_BITS[2:]))
        ),
        "for servers and an unknown purpose": Form(
            ca, pem(leaf(LEAF_BITS[0], purposes(ObjectIdentifier("1.3.6.1.4.1.99999.2"), SERVER), *LEAF_BITS[2:]))
        ),
        "authority for servers": Form(pem(authority(*CA_BITS, purposes(SERVER))), one),
        "authority for servers, as client": Form(pem(authority(*CA_BITS, purposes(SERVER))), one, "client"),
        "authority for code": Form(pem(authority(*CA_BITS, purposes(ExtendedKeyUsageOID.CODE_SIGNING))), one),
        "authority for anything": Form(
            pem(authority(*CA_BITS, purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))), one
        ),
        "intermediate for clients": Form(ca, pem(below_middle(), middle(*CA_BITS, purposes(CLIENT)))),
        "no digital signature": Form(ca, pem(leaf(usage(sign=False, digital=False), *LEAF_BITS[1:]))),
        "itself an authority": Form(ca, pem(leaf(*CA_BITS, san))),
        "signed by itself and trusted": Form(own, own),
        "signed by itself": Form(ca, own),
        "DNS permitted elsewhere": Form(pem(limited([x509.DNSName("example.com")])), one),
        "DNS permitted in part": Form(pem(limited([below])), one),
        "DNS permitted": Form(pem(limited([below, x509.DNSName("cp1")])), one),
        "DNS permitted in capitals": Form(pem(limited([x509.DNSName("Cluster.LOCAL"), x509.DNSName("CP1")])), one),
        "DNS permitted, not critical": Form(pem(limited([x509.DNSName("example.com")], is_critical=False)), one),
        "DNS permitted with a dot": Form(
            pem(limited([x509.DNSName(".cluster.local")])), pem(named(x509.DNSName("a.cluster.local")))
        ),
        "DNS permitted with a dot, itself": Form(
            pem(limited([x509.DNSName(".cluster.local")])), pem(named(x509.DNSName("cluster.local")))
        ),
        "DNS permitted, half a label": Form(pem(limited([x509.DNSName("local")])), pem(named(x509.DNSName("xlocal")))),
        "DNS permitted, empty": Form(pem(limited([x509.DNSName("")])), one),
        "DNS excluded": Form(pem(limited(None, [x509.DNSName("svc.cluster.local")])), one),
        "DNS excluded elsewhere": Form(pem(limited(None, [x509.DNSName("example.com")])), one),
        "DNS excluded, empty": Form(pem(limited(None, [x509.DNSName("")])), one),
        "wildcard below what is excluded": Form(
            pem(limited(None, [x509.DNSName("a.example.com")])), pem(named(x509.DNSName("*.example.com")))
        ),
        "IP permitted elsewhere": Form(pem(limited([network("192.168.0.0/16")])), one),
        "IP permitted": Form(pem(limited([network("10.0.0.0/8")])), one),
        "IPv6 permitted alone": Form(pem(limited([network("fd00::/8")])), one),
        "IP excluded": Form(pem(limited(None, [network("10.0.0.0/24")])), one),
        "IP excluded elsewhere": Form(pem(limited(None, [network("10.1.0.0/24")])), one),
        "all IP excluded": Form(pem(limited(None, [network("0.0.0.0/0"), network("::/0")])), one),
        "names limited, none there": Form(
            pem(limited([x509.DNSName("example.com")])), pem(leaf(*LEAF_BITS[:3])), "client"
        ),
        "folder names limited": Form(pem(limited([x509.DirectoryName(LEAF_NAME)])), one),
        "folder names limited, not critical": Form(
            pem(limited([x509.DirectoryName(LEAF_NAME)], is_critical=False)), one
        ),
        "mail limited": Form(pem(limited([x509.RFC822Name("example.com")])), one),
        "URI permitted": Form(
            pem(limited([x509.UniformResourceIdentifier("cluster.local")])),
            pem(named(x509.UniformResourceIdentifier("spiffe://cluster.local/ns/a"))),
        ),
        "URI permitted elsewhere": Form(
            pem(limited([x509.UniformResourceIdentifier("example.com")])),
            pem(named(x509.UniformResourceIdentifier("spiffe://cluster.local/ns/a"))),
        ),
        "mail permitted elsewhere": Form(
            pem(limited([x509.RFC822Name("example.com")])), pem(named(x509.RFC822Name("a@cluster.local")))
        ),
        "odd DNS name under limits": Form(
            pem(limited([x509.DNSName("example.com")])), pem(named(x509.DNSName("a..example.com")))
        ),
        "limits of an intermediate": Form(
            ca, pem(below_middle(), middle(*CA_BITS, critical(x509.NameConstraints([x509.DNSName("a.b")], None))))
        ),
        "unknown critical extension": Form(ca, pem(leaf(*LEAF_BITS, critical(UNKNOWN)))),
        "unknown extension": Form(ca, pem(leaf(*LEAF_BITS, plain(UNKNOWN)))),
        "authority's unknown critical extension": Form(pem(authority(*CA_BITS, critical(UNKNOWN))), one),
        "critical OCSP no check": Form(ca, pem(leaf(*LEAF_BITS, critical(x509.OCSPNoCheck())))),
        "other name, critical": Form(
            ca,
            pem(
                leaf(
                    *LEAF_BITS[:3],
                    critical(x509.SubjectAlternativeName([x509.RegisteredID(ObjectIdentifier("1.2.3"))])),
                )
            ),
            "client",
        ),
        "names critical": Form(ca, pem(leaf(*LEAF_BITS[:3], critical(x509.SubjectAlternativeName(NAMES))))),
        "authority's key identifier critical": Form(pem(authority(*CA_BITS, critical(key_id))), one),
        "issuer's key identifier critical": Form(
            ca, pem(leaf(*LEAF_BITS, critical(x509.AuthorityKeyIdentifier(b"one", None, None))))
        ),
        "issuer's key identifier of another": Form(
            pem(authority(*CA_BITS, plain(key_id))),
            pem(leaf(*LEAF_BITS, plain(x509.AuthorityKeyIdentifier(b"two", None, None)))),
        ),
        "explicit policy wanted": Form(pem(authority(*CA_BITS, critical(x509.PolicyConstraints(0, None)))), one),
        "explicit policy wanted below": Form(pem(authority(*CA_BITS, critical(x509.PolicyConstraints(1, None)))), one),
        "explicit policy wanted far below": Form(
            pem(authority(*CA_BITS, critical(x509.PolicyConstraints(5, None)))), one
        ),
        "policies, critical": Form(
            ca,
            pem(
                leaf(
                    *LEAF_BITS,
                    critical(x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier("1.2.3"), None)])),
                )
            ),
        ),
        "places of revocation, critical": Form(
            ca,
            pem(
                leaf(
                    *LEAF_BITS,
                    critical(
                        x509.CRLDistributionPoints(
                            [x509.DistributionPoint([x509.UniformResourceIdentifier("http://a/")], None, None, None)]
                        )
                    ),
                )
            ),
        ),
        "RSA": Form(rsa_ca, pem(rsa_leaf)),
        "RSA with PSS": Form(rsa_ca, pem(leaf(signer=_RSA, rsa_padding=pss))),
        "RSA of 512 bits": Form(pem(authority(key=small)), pem(leaf(signer=small))),
        "key of 512 bits": Form(ca, pem(leaf(key=small))),
        "RSA of 1024 bits": Form(pem(authority(key=weak)), pem(leaf(signer=weak))),
        "SHA-384": Form(ca, pem(leaf(digest=hashes.SHA384()))),
        "SHA-224": Form(ca, pem(leaf(digest=hashes.SHA224()))),
        "SHA-1": Form(rsa_ca, signed_again(rsa_leaf, swap(WITH_RSA + "0b", WITH_RSA + "05"), hashes.SHA1())),
        "MD5": Form(rsa_ca, signed_again(rsa_leaf, swap(WITH_RSA + "0b", WITH_RSA + "04"), hashes.MD5())),
        "authority signed with SHA-1": Form(
            signed_again(authority(key=_RSA), swap(WITH_RSA + "0b", WITH_RSA + "05"), hashes.SHA1()), pem(rsa_leaf)
        ),
        "Ed25519": Form(pem(authority(key=edwards)), pem(leaf(signer=edwards))),
        "P-521": Form(pem(authority(key=big)), pem(leaf(signer=big, digest=hashes.SHA512()))),
        "authority on secp256k1": Form(pem(authority(key=bits)), pem(leaf(signer=bits))),
        "on secp256k1": Form(ca, pem(leaf(key=bits))),
        "serial negative": Form(rsa_ca, signed_again(rsa_leaf, swap(SERIAL, "0202fb2e"))),
        "serial zero": Form(rsa_ca, signed_again(leaf(signer=_RSA, serial=1), swap("020101", "020100"))),
        "authority's serial negative": Form(signed_again(authority(key=_RSA), swap(SERIAL, "0202fb2e")), pem(rsa_leaf)),
        "signature broken": Form(rsa_ca, signed_again(rsa_leaf, lambda data: data, hashes.SHA512())),
        "name with an underscore in PrintableString": Form(
            rsa_ca,
            signed_again(
                make(name("a+b", _ASN1Type.PrintableString), CA_NAME, _OTHER, _RSA, *LEAF_BITS),
                swap(b"a+b".hex(), b"a_b".hex()),
            ),
        ),
        "names with an underscore": Form(ca, pem(named(x509.DNSName("a_b")))),
        "IPv4 in an IPv6": Form(ca, pem(named(x509.IPAddress(ipaddress.ip_address("::ffff:10.0.0.1"))))),
        "no subject": Form(ca, pem(make(x509.Name([]), CA_NAME, _OTHER, _KEY, *LEAF_BITS))),
    }
    return forms


def make_own_pair(name: str, *, now: datetime.datetime, days: int = 365) -> tuple[str, str]:
    """What a component makes for itself: its certificate and the authority that it threw away, and the key."""
    validity = certificates.plan_validity(now, days * 86400)
    key, leaf_key = private_keys.generate_key("ECDSA-P256"), private_keys.generate_key("ECDSA-P256")
    authority = certificates.issue_ca_cert(f"{name}-ca@1795987236", key, validity=validity)
    ca = certificates.Ca(authority, key, Path("/nowhere"))
    subject = certificates.Subject(f"{name}@1795987236", is_server=True)
    leaf = certificates.issue_leaf_cert(subject, leaf_key, ca=ca, validity=validity)
    text = certificates.cert_to_pem(leaf) + certificates.cert_to_pem(authority)
    return text, private_keys.key_to_pem(leaf_key).reveal()
