"""X.509 certificates: issuing and parsing them.

This module knows no file of the node. Mirrors cmd/kubeadm/app/util/pkiutil/pki_helpers.go, and writes the same bytes as Go.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional, TypeVar, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeup.errors import HostError, UsageError, shown
from kubeup.frozen_values import frozen
from kubeup.node.cert_specs import Sans
from kubeup.node.private_keys import Key, parse_any_key, spki
from kubeup.node.verify import Fault, find_fault, find_flaw
from kubeup.pem import describe_lack, split_pem

_BACKDATED = datetime.timedelta(minutes=5)
"""Certificates are valid from a little before they are issued, because the clocks of a cluster's machines differ slightly."""

_PRINTABLE_STRING = frozenset(string.ascii_letters + string.digits + " '()+,-./:=?")
"""The characters that Go writes as a PrintableString. A text with any other character becomes a UTF8String."""


def describe_pair(cert_pem: str, key_pem: str, now: datetime.datetime, *, usage: str = "client") -> str:  # noqa: PLR0917
    """Why nobody can use this certificate and key, whoever signed it; "" if one can. usage: client | server | "" for any."""
    try:
        certs, key = parse_certs(cert_pem), parse_any_key(key_pem)
        fault = find_fault(certs, certs[:1], usage=usage, now=now)
        if fault is None and spki(key.public_key()) != spki(certs[0].public_key()):  # type: ignore[attr-defined]
            return "the certificate is for another key"
    except (ValueError, UnsupportedAlgorithm) as error:
        return str(error)
    return "" if fault is None else fault.text


@frozen
class Validity:
    """The period in which a certificate is valid."""

    not_before: datetime.datetime
    not_after: datetime.datetime


def plan_validity(now: datetime.datetime, seconds: int) -> Validity:
    """The period from five minutes ago until `seconds` from now."""
    start = now.replace(microsecond=0)
    return Validity(start - _BACKDATED, start + datetime.timedelta(seconds=seconds))


@frozen
class Subject:
    """The subject and usages of a certificate."""

    common_name: str
    organizations: tuple[str, ...] = ()
    is_server: bool = False
    is_client: bool = False
    sans: Sans = Sans()


@frozen
class Ca:
    """A CA as found on the node. `key` is None if it is kept elsewhere (external CA)."""

    cert: x509.Certificate
    key: Optional[Key]
    path: Path


def issue_ca_cert(common_name: str, key: Key, *, validity: Validity) -> x509.Certificate:
    """A self-signed CA certificate."""
    name = _render_name(common_name, ())
    builder = (
        _new_builder(name, name, key=key, validity=validity)
        .add_extension(_key_usage(signs_certs=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
    )
    return builder.sign(key, _hash_for(key))


def issue_cross_cert(authority: x509.Certificate, *, ca: Ca, validity: Validity) -> x509.Certificate:
    """Another certificate for an authority's name and key, signed by `ca`, whose key must be available: a server that shows it after its own
    certificate is trusted by clients that know `ca` alone. Both may have the same name, so that the identifiers tell which key signed."""
    if ca.key is None:
        raise ValueError(f"the key of {ca.path} is not at hand")
    identifier = _extension(ca.cert, x509.SubjectKeyIdentifier)
    issuer = (
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        if identifier is not None
        else x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.cert.public_key())  # type: ignore[arg-type]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.subject)
        .issuer_name(ca.cert.subject)
        .public_key(authority.public_key())
        .serial_number(secrets.randbelow(2**63 - 1) + 1)
        .not_valid_before(validity.not_before)
        .not_valid_after(min(validity.not_after, ca.cert.not_valid_after_utc, authority.not_valid_after_utc))
        .add_extension(_key_usage(signs_certs=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_subject_key_identifier(authority), critical=False)
        .add_extension(issuer, critical=False)
    )
    return builder.sign(ca.key, _hash_for(ca.key))


def _subject_key_identifier(authority: x509.Certificate) -> x509.SubjectKeyIdentifier:
    """The one that its leaves name as their issuer's."""
    found = _extension(authority, x509.SubjectKeyIdentifier)
    return found or x509.SubjectKeyIdentifier.from_public_key(authority.public_key())  # type: ignore[arg-type]


def issue_leaf_cert(subject: Subject, key: Key, *, ca: Ca, validity: Validity) -> x509.Certificate:
    """A certificate for `key`, signed by `ca`, whose key must be available. Here, and above, are the only places where kb signs certificates.
    Raises HostError (ca-unfit) if Kubernetes would not accept the result."""
    if ca.key is None:
        raise ValueError(f"the key of {ca.path} is not at hand")
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * subject.is_server + [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ] * subject.is_client
    name = _render_name(subject.common_name, subject.organizations)
    builder = (
        _new_builder(name, ca.cert.subject, key=key, validity=validity)
        .add_extension(_key_usage(signs_certs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    identifier = _extension(ca.cert, x509.SubjectKeyIdentifier)
    if identifier is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    if subject.sans:
        builder = builder.add_extension(_render_sans(subject.sans), critical=False)
    cert = builder.sign(ca.key, _hash_for(ca.key))
    moment = max(validity.not_before, ca.cert.not_valid_before_utc)
    for usage in ("server",) * subject.is_server + ("client",) * subject.is_client:
        fault = find_fault((cert,), (ca.cert,), usage=usage, now=moment)
        if fault is not None:
            raise unfit_ca(
                ca, f"Kubernetes would not accept a certificate for {shown(subject.common_name)}", fault=fault
            )
    return cert


def _new_builder(subject: x509.Name, issuer: x509.Name, *, key: Key, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(secrets.randbelow(2**63 - 1) + 1)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
    )


def _render_name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    """O before CN; all organizations in one set, as Go writes them."""
    parts = [x509.RelativeDistinguishedName([_name_attribute(NameOID.COMMON_NAME, common_name)])]
    if organizations:
        groups = [_name_attribute(NameOID.ORGANIZATION_NAME, group) for group in dict.fromkeys(organizations)]
        parts.insert(0, x509.RelativeDistinguishedName(groups))
    return x509.Name(parts)


MAX_NAME = 1024
"""The maximum length in characters: more than any system allows in the name of a machine or user."""


def _name_attribute(oid: x509.ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    """A part of a name, in the ASN.1 type that Go uses, because Go finds an issuer by the bytes of its name, not by its text. As in
    Go, it may be longer than RFC 5280's 64 characters (ub-common-name): `system:node:` and a name of 63 characters is. Raises
    UsageError (bad-name)."""
    if not value or len(value) > MAX_NAME or any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in value):
        raise UsageError(
            f"{shown(value[:80])} cannot be a name in a certificate",
            cause=f"it is empty, has more than {MAX_NAME} characters, or holds invalid characters",
            remedy="give a name of printable characters",
            code="bad-name",
        )
    kind = _ASN1Type.PrintableString if set(value) <= _PRINTABLE_STRING else _ASN1Type.UTF8String
    return x509.NameAttribute(oid, value, _type=kind, _validate=False)


def _render_sans(sans: Sans) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in sans.dns]
    return x509.SubjectAlternativeName(names + [x509.IPAddress(ipaddress.ip_address(ip)) for ip in sans.ips])


def _key_usage(*, signs_certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hash_for(key: Key) -> Union[hashes.SHA256, hashes.SHA384, hashes.SHA512]:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384() if key.curve.key_size <= 384 else hashes.SHA512()
    return hashes.SHA256()


def cert_to_pem(cert: x509.Certificate) -> str:
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def chain_to_pem(cert: x509.Certificate, *, following: Iterable[x509.Certificate], now: datetime.datetime) -> str:
    """The PEM of a certificate and of what leads from it to its authority: those of `following`, in their order, as far as each has
    signed the one before it and has not expired. A server presents them, for clients that know the root alone."""
    chain = [cert]
    for one in following:
        if not is_issued_by(chain[-1], one) or is_expired(one, now):
            break
        chain.append(one)
    return "".join(map(cert_to_pem, chain))


def parse_certs(pem: str) -> tuple[x509.Certificate, ...]:
    """All certificates in `pem`. The first is the certificate itself, the others are intermediates. Raises ValueError."""
    blocks = [block for block in split_pem(pem) if block.is_cert]
    if not blocks:
        raise ValueError(describe_lack(pem, "certificate"))
    try:
        certs = tuple(x509.load_der_x509_certificate(block.content) for block in blocks)
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError("its certificate is damaged") from error
    for cert in certs:
        flaw = find_flaw(cert)
        if flaw:
            raise ValueError(f"{flaw}, which Kubernetes (Go) does not read")
    return certs


def parse_shown(pem: str) -> tuple[x509.Certificate, ...]:
    """The certificates that a server presents; () if Go could not parse them either, so that no client accepts them."""
    try:
        return parse_certs(pem)
    except ValueError:
        return ()


def render_request(subject: Subject, key: Key) -> str:
    """A certificate signing request (PEM) for `key`, with the names of `subject`."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        _render_name(subject.common_name, subject.organizations)
    )
    if subject.sans:
        builder = builder.add_extension(_render_sans(subject.sans), critical=False)
    return builder.sign(key, _hash_for(key)).public_bytes(serialization.Encoding.PEM).decode()


def common_name_of_request(pem: str) -> str:
    """The CN of a certificate signing request; "" if it has none. Raises ValueError."""
    try:
        names = x509.load_pem_x509_csr(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except x509.InvalidVersion as error:
        raise ValueError("it is not a certificate signing request of version 1") from error
    return str(names[0].value) if names else ""


def sans_of(cert: x509.Certificate) -> Sans:
    """The names in a certificate, in its own order."""
    found = _extension(cert, x509.SubjectAlternativeName)
    if found is None:
        return Sans()
    ips = tuple(str(ip) for ip in found.get_values_for_type(x509.IPAddress))
    return Sans(tuple(found.get_values_for_type(x509.DNSName)), ips)


def subject_of(cert: x509.Certificate) -> Subject:
    """The subject needed to issue a certificate like `cert`. A certificate without usages is good for all of them."""
    names = [str(part.value) for part in cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = tuple(str(part.value) for part in cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
    usages = _extension(cert, x509.ExtendedKeyUsage)
    return Subject(
        names[0] if names else "",
        groups,
        is_server=usages is None or ExtendedKeyUsageOID.SERVER_AUTH in usages,
        is_client=usages is None or ExtendedKeyUsageOID.CLIENT_AUTH in usages,
        sans=sans_of(cert),
    )


def is_ca_cert(cert: x509.Certificate) -> bool:
    constraints = _extension(cert, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def is_signed_by(chain: Sequence[x509.Certificate], ca: x509.Certificate) -> bool:
    """Whether chain[0] was signed by `ca`, directly or through the intermediates after it. Ignores dates and usages."""
    return find_fault(chain, (ca,)) is None


def is_expired(cert: x509.Certificate, now: datetime.datetime) -> bool:
    return now > cert.not_valid_after_utc


def not_after(cert: x509.Certificate) -> datetime.datetime:
    """When the certificate expires, as an aware datetime."""
    return cert.not_valid_after_utc


def is_in_future(cert: x509.Certificate, now: datetime.datetime) -> bool:
    return now < cert.not_valid_before_utc


def is_issued_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `cert` was signed with the key of `issuer`, even if that may not sign."""
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def unfit_ca(ca: Ca, what: str, *, fault: Fault) -> HostError:
    key_path = ca.path.with_suffix(".key")
    return HostError(
        what,
        cause=f"{ca.path} is not suitable: {fault.text}",
        remedy=f"put the certificate of a CA there that may sign for this cluster's names, for servers and clients; or move it away "
        f"(mv {ca.path} {key_path} /root/) and kb makes one",
        code="ca-unfit",
    )


_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(cert: x509.Certificate, kind: type[_E]) -> Optional[_E]:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None
