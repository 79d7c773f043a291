"""Whether Kubernetes would accept a certificate: what Go's crypto/x509 rejects, and why.

OpenSSL, which kb's own library uses, accepts certificates that Go rejects, and the reverse. So this module finds before anything
starts what kubeadm, the API server and the kubelets would report minutes later in their logs. It reads no files and raises no errors.
The table in tests/components/test_verify.py holds Go's results for the same certificates. Mirrors crypto/x509 verify.go,
constraints.go and parser.go.
"""

from __future__ import annotations

import datetime
import ipaddress
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any, Optional, TypeVar, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from kubeup.frozen_values import frozen

CURVES = ("secp224r1", "secp256r1", "secp384r1", "secp521r1")
_EC_KEY = x509.ObjectIdentifier("1.2.840.10045.2.1")
_MIN_RSA_BITS = 1024
_KNOWN_CRITICAL = frozenset(
    (
        ExtensionOID.KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    )
)
_NEVER_CRITICAL = (
    (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, "authority key identifier"),
    (ExtensionOID.SUBJECT_KEY_IDENTIFIER, "subject key identifier"),
    (ExtensionOID.AUTHORITY_INFORMATION_ACCESS, "authority information access"),
)
_LIMITABLE = (x509.DNSName, x509.IPAddress, x509.RFC822Name, x509.UniformResourceIdentifier)
"""The types of name that Go supports in a certificate and in a CA's name constraints."""
_SIGNATURES = frozenset(
    (
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.ED25519,
    )
)
_MAX_CHAIN = 10
USAGES = {
    "server": (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
}


@frozen
class Fault:
    """Why Go would reject a certificate. cert: the certificate at fault; is_authority: it is not the first of its chain."""

    text: str
    cert: x509.Certificate
    is_authority: bool = False


# ---- what Go cannot parse


def find_flaw(cert: x509.Certificate) -> str:
    """Why Go's parser rejects `cert`; "" if it accepts it."""
    try:
        if cert.serial_number < 0:
            return "its serial number is negative"
        key: Any = cert.public_key()
    except ValueError:
        return "its public key is damaged, or its serial number is negative"
    except UnsupportedAlgorithm:
        if getattr(cert, "public_key_algorithm_oid", None) == _EC_KEY:
            return "its public key is on an unknown curve"
        key = None  # Go accepts the certificate, but nothing that it signed
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in CURVES:
        return f"its public key is on the curve {key.curve.name}"
    try:
        extensions = list(cert.extensions)
        list(cert.subject), list(cert.issuer)
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "one of its names or extensions is damaged, or occurs twice"
    for oid, name in _NEVER_CRITICAL:
        if any(extension.oid == oid and extension.critical for extension in extensions):
            return f"its {name} is marked critical"
    return ""


# ---- what Go does not trust


def find_fault(
    chain: Sequence[x509.Certificate],
    pool: Sequence[x509.Certificate],
    *,
    usage: str = "",
    now: Optional[datetime.datetime] = None,
) -> Optional[Fault]:
    """Why a client (usage server) or a server (usage client) that trusts `pool` would reject chain[0], with the rest of `chain` as
    intermediates; None if it would accept it. Without `usage` any usage is accepted; without `now` dates are not checked."""
    first = chain[0]
    for cert in chain:
        flaw = find_flaw(cert)
        if flaw:
            return Fault(f"{flaw}, which Kubernetes (Go) does not read", cert, cert is not first)
    fault = _judge(first, now, is_authority=False)
    if fault is not None:
        return fault
    if first in pool:
        return _judge_chain((first,), usage)  # trusted directly
    found = list(_walk((first,), tuple(chain[1:]), pool=pool, now=now))
    faults = [one for one in found if isinstance(one, Fault)]
    chains = [one for one in found if not isinstance(one, Fault)]
    for path in chains:
        fault = _judge_chain(path, usage)
        if fault is None:
            return None
        faults.insert(0, fault)
    if faults:
        return faults[0]
    is_spelled_otherwise = any(
        cert.subject == first.issuer and _raw(cert.subject) != _raw(first.issuer) for cert in pool
    )
    text = "it names its CA in another string type than the CA itself" if is_spelled_otherwise else ""
    return Fault(text or "it was signed by another CA", first)


_Path = tuple[x509.Certificate, ...]


def _walk(
    path: _Path, others: _Path, *, pool: Sequence[x509.Certificate], now: Optional[datetime.datetime]
) -> Iterator[Union[_Path, Fault]]:
    """All valid paths from the first certificate to a trusted CA, and the faults of the invalid ones."""
    child = path[-1]
    for parent, is_root in [*((cert, True) for cert in pool), *((cert, False) for cert in others)]:
        if parent in path or len(path) > _MAX_CHAIN or _raw(parent.subject) != _raw(child.issuer):
            continue
        flaw = find_flaw(parent)
        if flaw:
            yield Fault(f"{_name(parent)}: {flaw}, which Kubernetes (Go) does not read", parent, True)
            continue
        fault = _judge_signature(child, parent) or _judge(parent, now, is_authority=True)
        if fault is None:
            fault = _judge_length(parent, len(path) - 1)
        if fault is not None:
            yield fault
        elif is_root:
            yield (*path, parent)
        else:
            yield from _walk((*path, parent), others, pool=pool, now=now)


def _judge_length(parent: x509.Certificate, between: int) -> Optional[Fault]:
    constraints = _basic(parent)
    length = constraints.path_length if constraints is not None else None
    if length is None or between <= length:
        return None
    return Fault(f"{_name(parent)} allows {length} intermediates (path length), and there are {between}", parent, True)


def _raw(name: x509.Name) -> bytes:
    """The bytes of a name, by which Go finds an issuer."""
    return name.public_bytes()


def _name(cert: x509.Certificate) -> str:
    return cert.subject.rfc4514_string() or f"serial number {cert.serial_number}"


def _judge_signature(child: x509.Certificate, parent: x509.Certificate) -> Optional[Fault]:
    constraints, usage = _basic(parent), _extension(parent, x509.KeyUsage)
    if (constraints is None and parent.version is x509.Version.v3) or (constraints is not None and not constraints.ca):
        return Fault(f"{_name(parent)} is not a CA: its basic constraints do not say CA:TRUE", parent, True)
    if usage is not None and not usage.key_cert_sign:
        return Fault(f"{_name(parent)} may not sign certificates: its key usage lacks keyCertSign", parent, True)
    if child.signature_algorithm_oid not in _SIGNATURES:
        algorithm = getattr(child.signature_algorithm_oid, "_name", "") or child.signature_algorithm_oid.dotted_string
        return Fault(f"it was signed with {algorithm}, which Kubernetes (Go) does not accept", child)
    try:
        key = parent.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
            return Fault(
                f"the key of {_name(parent)} has {key.key_size} bits; the minimum is {_MIN_RSA_BITS}", parent, True
            )
        if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
            return Fault(f"the key of {_name(parent)} is of a kind that Kubernetes (Go) does not know", parent, True)
        child.verify_directly_issued_by(parent)
    except UnsupportedAlgorithm:
        return Fault(f"the key of {_name(parent)} is of a kind that Kubernetes (Go) does not know", parent, True)
    except (InvalidSignature, ValueError, TypeError):
        return Fault(f"{_name(parent)} has another key than the one that signed it", child)
    return None


def _judge(cert: x509.Certificate, now: Optional[datetime.datetime], *, is_authority: bool) -> Optional[Fault]:
    """Check a certificate by itself: its dates, and its critical extensions."""
    for extension in cert.extensions:
        if extension.critical and not _is_understood(extension):
            oid = extension.oid.dotted_string
            text = f"{_name(cert)} has a critical extension ({oid}) that Kubernetes (Go) does not know"
            return Fault(text, cert, is_authority)
    if now is None:
        return None
    if now < cert.not_valid_before_utc:
        return Fault(
            f"{_name(cert)} is valid only from {cert.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", cert, is_authority
        )
    if now > cert.not_valid_after_utc:
        return Fault(f"{_name(cert)} expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", cert, is_authority)
    return None


def _is_understood(extension: x509.Extension[x509.ExtensionType]) -> bool:
    value = extension.value
    if isinstance(value, x509.SubjectAlternativeName):
        return any(isinstance(name, _LIMITABLE) for name in value)
    if isinstance(value, x509.NameConstraints):
        return all(isinstance(name, _LIMITABLE) for name in _limits(value))
    return extension.oid in _KNOWN_CRITICAL


def _limits(value: x509.NameConstraints) -> list[x509.GeneralName]:
    return [*(value.permitted_subtrees or ()), *(value.excluded_subtrees or ())]


def _judge_chain(path: _Path, usage: str) -> Optional[Fault]:
    """Check a whole path: extended key usages and name constraints."""
    wanted, shown = USAGES.get(usage, (None, ""))
    for cert in reversed(path) if wanted else ():
        given = _extension(cert, x509.ExtendedKeyUsage)
        if given is not None and wanted not in given and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in given:
            text = f"the extended key usage of {_name(cert)} lacks {shown}"
            return Fault(text, cert, cert is not path[0])
    for place, cert in enumerate(path):
        limits = _extension(cert, x509.NameConstraints)
        for child in path[:place] if limits is not None else ():
            for name in _extension(child, x509.SubjectAlternativeName) or ():
                text = _judge_name(name, limits) if limits is not None else ""
                if text:
                    return Fault(f"{_name(cert)} may not sign for {text}", cert, True)
    return None


def _judge_name(name: x509.GeneralName, limits: x509.NameConstraints) -> str:
    """Why a CA with these name constraints may not sign for `name`; "" if it may."""
    if not isinstance(name, _LIMITABLE):
        return ""
    shown = str(name.value)
    host = _host_of(name)
    if host is not None and not _is_domain(host):
        return f"{shown}, which is no name that its name constraints can be applied to"
    for subtrees, is_permission in ((limits.permitted_subtrees, True), (limits.excluded_subtrees, False)):
        same = [one for one in subtrees or () if isinstance(one, type(name))]
        is_hit = any(_is_below(name, host, limit=one, is_permission=is_permission) for one in same)
        if same and is_hit is not is_permission:
            listed = ", ".join(str(one.value) or "every name" for one in same)
            return f"{shown}: its name constraints {'permit only' if is_permission else 'exclude'} {listed}"
    return ""


def _host_of(name: x509.GeneralName) -> Optional[str]:
    """The domain that name constraints apply to; None for an IP address."""
    if isinstance(name, x509.RFC822Name):
        return name.value.rpartition("@")[2].lower()
    if isinstance(name, x509.UniformResourceIdentifier):
        return (urllib.parse.urlsplit(name.value).hostname or "").lower()
    return name.value.lower() if isinstance(name, x509.DNSName) else None


def _is_domain(text: str) -> bool:
    return bool(text) and all(label and all("!" <= sign <= "~" for sign in label) for label in text.split("."))


def _is_below(name: x509.GeneralName, host: Optional[str], *, limit: x509.GeneralName, is_permission: bool) -> bool:
    if host is None:
        net, address = limit.value, name.value
        return isinstance(net, (ipaddress.IPv4Network, ipaddress.IPv6Network)) and address in net
    domain = str(limit.value).lower()
    if isinstance(limit, x509.RFC822Name) and "@" in domain:
        return str(name.value).lower() == domain
    if not domain or host == domain or host.endswith(domain if domain.startswith(".") else f".{domain}"):
        return True
    # a wildcard also covers the excluded name itself
    return not is_permission and host.startswith("*.") and "." in domain and domain.partition(".")[2] == host[2:]


# ---- helpers

_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(cert: x509.Certificate, kind: type[_E]) -> Optional[_E]:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _basic(cert: x509.Certificate) -> Optional[x509.BasicConstraints]:
    return _extension(cert, x509.BasicConstraints)
