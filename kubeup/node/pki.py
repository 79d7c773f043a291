"""The cluster's certificates and keys: what there must be, making it, reading it, judging what is already there.

Owns the table CERTS and the reuse rules. Knows no phase; does not talk to the cluster. Mirrors
cmd/kubeadm/app/phases/certs/{certs,certlist}.go, cmd/kubeadm/app/util/pkiutil/pki_helpers.go and
cmd/kubeadm/app/util/pubkeypin/pubkeypin.go.

What is found on the node is used: a key is never replaced, a certificate only where it would not serve (expired,
a name is missing) and its CA's key is at hand, and then it keeps its key. Where kb cannot mend without losing
something, it says what lies there and stops. A key is written before its certificate, so that a crash in between
leaves a key alone, which the next run takes up.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import secrets
import string
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Optional, TypeVar, Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kubeup.config.pins import parse_ca_cert_hash
from kubeup.config.types import ClusterConfiguration, InitConfig
from kubeup.errors import HostError, UsageError, shown
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node.verify import CURVES, Fault, find_fault, find_flaw
from kubeup.paths import Paths
from kubeup.pem import describe_lack, split_pem
from kubeup.secret import Secret
from kubeup.startup import head_start
from kubeup.trust import Anchors, Offered

Key = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]
"""The kinds of private key that Kubernetes' components and kubeadm read."""

_BACKDATED = datetime.timedelta(minutes=5)
"""Certificates begin before they are made: the clocks of a cluster's machines differ a little."""

_PRINTABLE_STRING = frozenset(string.ascii_letters + string.digits + " '()+,-./:=?")
"""What Go writes as a PrintableString; a text with any other character becomes a UTF8String."""


# ---- what there must be


@frozen
class Sans:
    """A certificate's subject alternative names: DNS names sorted, addresses in order, each of them once."""

    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dns or self.ips)

    def __str__(self) -> str:
        return f"DNS names [{' '.join(self.dns)}] and IPs [{' '.join(self.ips)}]"

    def covers(self, name: str) -> bool:
        """Whether a server with these names is believed when it is called `name` (a DNS name or an address)."""
        wanted = _as_ip(name)
        if wanted is not None:
            return wanted in self.ips
        labels = name.lower().rstrip(".").split(".")
        return any(_dns_matches(pattern.lower().split("."), labels) for pattern in self.dns)

    def lacks(self, wanted: Sans) -> tuple[str, ...]:
        """The names in `wanted` that these do not cover."""
        return tuple(name for name in (*wanted.dns, *wanted.ips) if not self.covers(name))


_NO_SANS = Sans()


def make_sans(names: Iterable[str]) -> Sans:
    """Sort `names` into DNS names and addresses; what is neither is left out."""
    dns: set[str] = set()
    ips: dict[str, None] = {}
    for name in names:
        address = _as_ip(name)
        if address is not None:
            ips[address] = None
        elif _DNS_NAME.fullmatch(name.removeprefix("*.")):
            dns.add(name)
    return Sans(tuple(sorted(dns)), tuple(ips))


def apiserver_sans(config: InitConfig) -> Sans:
    """The names by which clients inside and outside the cluster call the API server."""
    service_network = ipaddress.ip_network(config.cluster.service_cidrs()[0], strict=False)
    domain = config.cluster.networking.dns_domain
    return make_sans(
        (
            config.node.name,
            *("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}"),
            str(service_network[1]),
            config.local_api_endpoint.advertise_address,
            *(
                [split_host_port(config.cluster.control_plane_endpoint)[0]]
                * bool(config.cluster.control_plane_endpoint)
            ),
            *config.cluster.api_server.cert_sans,
        )
    )


def etcd_server_sans(config: InitConfig) -> Sans:
    local = config.cluster.local_etcd
    return _etcd_sans(config, local.server_cert_sans if local else ())


def etcd_peer_sans(config: InitConfig) -> Sans:
    local = config.cluster.local_etcd
    return _etcd_sans(config, local.peer_cert_sans if local else ())


def _etcd_sans(config: InitConfig, extra: Sequence[str]) -> Sans:
    address = config.local_api_endpoint.advertise_address
    return make_sans((config.node.name, "localhost", address, "127.0.0.1", "::1", *extra))


def _no_sans(config: InitConfig) -> Sans:
    return Sans()


@frozen
class CertSpec:
    """One certificate of a control plane node. `base` names its files below certificatesDir, without .crt and .key."""

    name: str
    base: str
    signer: str = ""
    """The name of its CA; "" for a CA, which signs itself."""
    common_name: str = ""
    """"" takes the node's name."""
    is_server: bool = False
    is_client: bool = False
    sans: Callable[[InitConfig], Sans] = _no_sans

    @property
    def is_ca(self) -> bool:
        return not self.signer

    @property
    def usages(self) -> tuple[str, ...]:
        """As what it has to be believed. etcd's server shows its certificate to itself too, where its gateway calls it, and
        gets on without."""
        is_asked = self.is_client and self.name != "etcd-server"
        return ("server",) * self.is_server + ("client",) * is_asked

    @property
    def is_etcd(self) -> bool:
        """Whether it is needed for an etcd that kb runs, and for no other."""
        return "etcd-ca" in (self.name, self.signer)

    def cert_path(self, paths: Paths) -> Path:
        return paths.pki / f"{self.base}.crt"

    def key_path(self, paths: Paths) -> Path:
        return paths.pki / f"{self.base}.key"


CERTS: dict[str, CertSpec] = {
    spec.name: spec
    for spec in (
        CertSpec("ca", "ca", common_name="kubernetes"),
        CertSpec("apiserver", "apiserver", "ca", "kube-apiserver", is_server=True, sans=apiserver_sans),
        CertSpec(
            "apiserver-kubelet-client",
            "apiserver-kubelet-client",
            "ca",
            "kube-apiserver-kubelet-client",
            is_client=True,
        ),
        CertSpec("front-proxy-ca", "front-proxy-ca", common_name="front-proxy-ca"),
        CertSpec("front-proxy-client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", is_client=True),
        CertSpec("etcd-ca", "etcd/ca", common_name="etcd-ca"),
        CertSpec("etcd-server", "etcd/server", "etcd-ca", is_server=True, is_client=True, sans=etcd_server_sans),
        CertSpec("etcd-peer", "etcd/peer", "etcd-ca", is_server=True, is_client=True, sans=etcd_peer_sans),
        CertSpec(
            "etcd-healthcheck-client",
            "etcd/healthcheck-client",
            "etcd-ca",
            "kube-etcd-healthcheck-client",
            is_client=True,
        ),
        CertSpec(
            "apiserver-etcd-client", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", is_client=True
        ),
    )
}
"""By phase name, in the order in which they are made."""


def wanted_certs(cluster: ClusterConfiguration) -> tuple[CertSpec, ...]:
    """The rows of CERTS that a control plane node of this cluster has: none of etcd's where etcd is external."""
    return tuple(spec for spec in CERTS.values() if cluster.external_etcd is None or not spec.is_etcd)


# ---- keys


def key_algorithm(cluster: ClusterConfiguration) -> str:
    """encryptionAlgorithm, or what the feature gate PublicKeysECDSA, which counts more where it is set, makes of it."""
    gate = cluster.feature_gates.get("PublicKeysECDSA")
    if gate is not None:
        return "ECDSA-P256" if gate else "RSA-2048"
    return cluster.encryption_algorithm or "RSA-2048"


def generate_key(algorithm: str) -> Key:
    """A new private key: RSA-2048, RSA-3072, RSA-4096, ECDSA-P256 or ECDSA-P384."""
    if algorithm == "ECDSA-P256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "ECDSA-P384":
        return ec.generate_private_key(ec.SECP384R1())
    if algorithm in ("RSA-2048", "RSA-3072", "RSA-4096"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(algorithm[4:]))
    raise UsageError(
        f"encryptionAlgorithm {algorithm!r}",
        cause="there is no such algorithm",
        remedy="take one of RSA-2048, RSA-3072, RSA-4096, ECDSA-P256, ECDSA-P384",
        code="unknown-encryption-algorithm",
    )


class KeyMaker:
    """Makes up to `wanted` keys ahead of their use, in two threads: an RSA key takes some 40 ms of one processor,
    outside Python's lock, and a control plane node has 16. A key that nobody takes is never written anywhere."""

    def __init__(self, algorithm: str, *, wanted: int) -> None:
        self._algorithm = algorithm
        self._ahead: deque[head_start.Making] = deque()
        if algorithm == head_start.ALGORITHM:
            self._ahead.extend(head_start.take_keys(wanted))
        # an elliptic-curve key is made faster than a thread is
        left = 0 if algorithm.startswith("ECDSA") else wanted - len(self._ahead)
        more = [head_start.Making(generate_key, algorithm) for _ in range(left)]
        head_start.make_in_threads(more)
        self._ahead.extend(more)

    def take(self) -> Key:
        """A new key; made on the spot where none was made ahead."""
        if not self._ahead:
            return generate_key(self._algorithm)
        key: Key = self._ahead.popleft().result()
        return key


def key_to_pem(key: Key) -> Secret:
    """`RSA PRIVATE KEY` (PKCS#1) or `EC PRIVATE KEY` (SEC1)."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return Secret(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode())


def public_key_to_pem(key: Key) -> str:
    """`PUBLIC KEY` (PKIX)."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def parse_key(pem: str) -> Key:
    """The first private key in `pem`: PKCS#1, SEC1 or PKCS#8. Raises ValueError, whose text never holds the key."""
    key = _parse_any_key(pem)
    if isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        return key
    raise ValueError("its private key is neither RSA nor ECDSA")


def _parse_any_key(pem: str) -> object:
    """As parse_key, and kinds of key that kubeadm does not take, though a TLS client does."""
    block = next((block for block in split_pem(pem) if block.is_private_key), None)
    if block is None:
        raise ValueError(describe_lack(pem, "private key"))
    if block.label.startswith("ENCRYPTED") or "Proc-Type" in block.headers:
        raise ValueError("the private key is encrypted with a password")
    try:
        # OpenSSL's full check of an RSA key takes longer than making one: is_key_of proves it by a signature
        key = serialization.load_der_private_key(block.content, password=None, unsafe_skip_rsa_key_validation=True)
    except Exception as error:
        raise ValueError("its private key is damaged, or of a kind that Kubernetes (Go) cannot read") from error
    form = _FORM_BY_TAG.get(_third_tag(block.content), block.label)
    if form != block.label:
        raise ValueError(
            f"its label says {block.label}, what is in it is a {form}: Kubernetes (Go) reads by the label (openssl pkey writes it right)"
        )
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name not in CURVES:
        raise ValueError(f"its private key is on the curve {key.curve.name}, which Kubernetes (Go) cannot read")
    if isinstance(key, rsa.RSAPrivateKey) and _PSS in block.content[:64]:
        raise ValueError("its private key is for RSA-PSS alone, which Kubernetes (Go) cannot read")
    return key


_FORM_BY_TAG = {0x02: "RSA PRIVATE KEY", 0x04: "EC PRIVATE KEY", 0x30: "PRIVATE KEY"}
"""PKCS#1, SEC1 and PKCS#8 begin alike, with a version; what comes then tells them apart."""


def _third_tag(der: bytes) -> int:
    start = 2 + (der[1] & 0x7F if len(der) > 1 and der[1] & 0x80 else 0)
    return der[start + 3] if len(der) > start + 3 else 0


_PSS = bytes.fromhex("06092a864886f70d01010a")
"""The object identifier id-RSASSA-PSS (RFC 4055), as it stands in a PKCS#8 key."""


def describe_pair(cert_pem: str, key_pem: str, now: datetime.datetime) -> str:
    """Why no client gets on with this certificate and key, whoever signed it; "" where one does."""
    try:
        certs, key = parse_certs(cert_pem), _parse_any_key(key_pem)
        fault = find_fault(certs, certs[:1], usage="client", now=now)
        if fault is None and _spki(key.public_key()) != _spki(certs[0].public_key()):  # type: ignore[attr-defined]
            return "the certificate is for another key"
    except (ValueError, UnsupportedAlgorithm) as error:
        return str(error)
    return "" if fault is None else fault.text


def is_key_of(key: Key, cert: x509.Certificate) -> bool:
    """Whether `key` is the private half of what `cert` certifies, and works: without that no server and no client starts
    (tls.X509KeyPair)."""
    try:
        return _is_pair(key, cert.public_key())
    except UnsupportedAlgorithm:
        return False


def _is_pair(key: Key, public_key: object) -> bool:
    """Whether the halves are equal by their numbers, and what the private one signs can be verified."""
    if _spki(key.public_key()) != _spki(public_key):
        return False
    try:
        if isinstance(key, rsa.RSAPrivateKey) and isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(key.sign(b"kb", PKCS1v15(), hashes.SHA256()), b"kb", PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(key.sign(b"kb", ec.ECDSA(hashes.SHA256())), b"kb", ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


# ---- certificates


@frozen
class Validity:
    """From when to when a certificate holds."""

    not_before: datetime.datetime
    not_after: datetime.datetime


def plan_validity(now: datetime.datetime, seconds: int) -> Validity:
    """From five minutes ago until `seconds` from now."""
    start = now.replace(microsecond=0)
    return Validity(start - _BACKDATED, start + datetime.timedelta(seconds=seconds))


@frozen
class Subject:
    """Whom a certificate is about and what it is for."""

    common_name: str
    organizations: tuple[str, ...] = ()
    is_server: bool = False
    is_client: bool = False
    sans: Sans = Sans()


@frozen
class Ca:
    """A certificate authority as found on the node; key is None where it is kept elsewhere (external CA)."""

    cert: x509.Certificate
    key: Optional[Key]
    path: Path


def issue_ca_cert(common_name: str, key: Key, validity: Validity) -> x509.Certificate:
    """A CA's certificate, signed with its own key."""
    name = _render_name(common_name, ())
    builder = (
        _new_builder(name, name, key, validity)
        .add_extension(_key_usage(signs_certs=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
    )
    return builder.sign(key, _hash_for(key))


def issue_leaf_cert(subject: Subject, key: Key, *, ca: Ca, validity: Validity) -> x509.Certificate:
    """A certificate for `key`, signed by `ca`, whose key must be at hand. Raises HostError (ca-unfit) where nobody would believe
    it: this is the one place where kb signs."""
    if ca.key is None:
        raise ValueError(f"the key of {ca.path} is not at hand")
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * subject.is_server + [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ] * subject.is_client
    name = _render_name(subject.common_name, subject.organizations)
    builder = (
        _new_builder(name, ca.cert.subject, key, validity)
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
            raise _unfit_ca(ca, f"nobody would believe a certificate for {shown(subject.common_name)}", fault)
    return cert


def _new_builder(subject: x509.Name, issuer: x509.Name, key: Key, validity: Validity) -> x509.CertificateBuilder:
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
    """O before CN; all the organizations in one set, as Go has them."""
    parts = [x509.RelativeDistinguishedName([_name_attribute(NameOID.COMMON_NAME, common_name)])]
    if organizations:
        groups = [_name_attribute(NameOID.ORGANIZATION_NAME, group) for group in dict.fromkeys(organizations)]
        parts.insert(0, x509.RelativeDistinguishedName(groups))
    return x509.Name(parts)


MAX_NAME = 1024
"""Characters: more than any system gives a machine or a user."""


def _name_attribute(oid: x509.ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    """A part of a name in the ASN.1 type that Go gives it: Go finds an issuer by the bytes of its name, not by its text. As Go
    does, it may be longer than RFC 5280's 64 characters (ub-common-name): `system:node:` and a name of 63 are. Raises UsageError
    (bad-name)."""
    if not value or len(value) > MAX_NAME or any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in value):
        raise UsageError(
            f"{shown(value[:80])} cannot be a name in a certificate",
            cause=f"it is empty, has more than {MAX_NAME} characters, or holds characters that are no text",
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


def parse_certs(pem: str) -> tuple[x509.Certificate, ...]:
    """Every certificate in `pem`: the first is the one meant, the others are intermediates. Raises ValueError."""
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
    """What a server shows; () where Go could not read it either, so that nobody believes it."""
    try:
        return parse_certs(pem)
    except ValueError:
        return ()


def render_request(subject: Subject, key: Key) -> str:
    """A certificate signing request for `key`, with the names of `subject`, in PEM form."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        _render_name(subject.common_name, subject.organizations)
    )
    if subject.sans:
        builder = builder.add_extension(_render_sans(subject.sans), critical=False)
    return builder.sign(key, _hash_for(key)).public_bytes(serialization.Encoding.PEM).decode()


def common_name_of_request(pem: str) -> str:
    """The CN of a certificate signing request; "" where it has none. Raises ValueError."""
    try:
        names = x509.load_pem_x509_csr(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except x509.InvalidVersion as error:
        raise ValueError("it is no certificate signing request of version 1") from error
    return str(names[0].value) if names else ""


def sans_of(cert: x509.Certificate) -> Sans:
    """The names in a certificate, in its own order."""
    found = _extension(cert, x509.SubjectAlternativeName)
    if found is None:
        return Sans()
    ips = tuple(str(ip) for ip in found.get_values_for_type(x509.IPAddress))
    return Sans(tuple(found.get_values_for_type(x509.DNSName)), ips)


def subject_of(cert: x509.Certificate) -> Subject:
    """What must be said again to issue the like of `cert`: one that names no purpose is good for every one."""
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
    """Whether chain[0] was signed by `ca`, or by way of the intermediates that follow it. Says nothing of dates and purposes."""
    return find_fault(chain, (ca,)) is None


def is_expired(cert: x509.Certificate, now: datetime.datetime) -> bool:
    return now > cert.not_valid_after_utc


def not_after(cert: x509.Certificate) -> datetime.datetime:
    """When it expires, with its time zone."""
    return cert.not_valid_after_utc


def is_in_future(cert: x509.Certificate, now: datetime.datetime) -> bool:
    return now < cert.not_valid_before_utc


# ---- pins of a CA's public key


def ca_cert_hashes(pem: str) -> tuple[str, ...]:
    """The pin of every certificate in `pem`: `sha256:` and the hash of its public key. Raises ValueError."""
    try:
        return tuple("sha256:" + hashlib.sha256(_spki(cert.public_key())).hexdigest() for cert in parse_certs(pem))
    except UnsupportedAlgorithm as error:
        raise ValueError(f"its public key is of a kind that kb does not know: {error}") from error


def ca_cert_hash(pem: str) -> str:
    """The pin of the first certificate in `pem`, for --discovery-token-ca-cert-hash. Raises ValueError."""
    return ca_cert_hashes(pem)[0]


def keep_pinned(offered: Offered, pins: Iterable[str]) -> Optional[Anchors]:
    """The certificates whose own hash is one of the pins, and no others; None where there is none. What else came in the same
    text is nobody's that the pins speak of: a server may show a stranger's certificate beside the real one, which is public.
    Raises ValueError for a text that holds no certificates."""
    wanted = {parse_ca_cert_hash(pin) for pin in pins}
    kept = {pem: None for pem in map(cert_to_pem, parse_certs(offered.pem)) if ca_cert_hash(pem) in wanted}
    return Anchors("".join(kept)) if kept else None


# ---- what lies on the node


def read_certs(host: Host, path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in a file. Raises HostError (certificate-unreadable)."""
    try:
        return parse_certs(host.read_text(path))
    except ValueError as error:
        raise HostError(
            f"the certificate {path} cannot be used",
            cause=str(error),
            remedy=f"look at it: openssl x509 -noout -text -in {path}; put back a good copy, or move it away",
            code="certificate-unreadable",
        ) from error


def read_key(host: Host, path: Path) -> Key:
    """The private key in a file. Raises HostError (key-unreadable)."""
    try:
        return parse_key(host.read_text(path))
    except ValueError as error:
        raise HostError(
            f"the private key {path} cannot be used",
            cause=str(error),
            remedy=f"put back a good copy of {path}, without a password",
            code="key-unreadable",
        ) from error


def is_external_ca(host: Host, paths: Paths, name: str = "ca") -> bool:
    """Whether the CA `name` (ca, front-proxy-ca, etcd-ca) signs elsewhere: its certificate is here, its key is not."""
    spec = CERTS[name]
    if host.exists(spec.key_path(paths)) or not host.exists(spec.cert_path(paths)):
        return False
    return is_ca_cert(read_certs(host, spec.cert_path(paths))[0])


_ca_keys: dict[Path, tuple[tuple[str, str], Key]] = {}
"""What a CA's two files held when their key was read and proven, and that key: each CA is asked for by every
certificate that it signs, and reading and proving takes as long as signing."""


def read_ca(host: Host, paths: Paths, name: str = "ca") -> Ca:
    """The CA `name` as it lies on the node, fit for use.

    Raises HostError: ca-missing, certificate-unreadable, key-unreadable, not-a-ca, ca-expired,
    certificate-not-yet-valid, key-mismatch.
    """
    spec = CERTS[name]
    path, key_path = spec.cert_path(paths), spec.key_path(paths)
    if not host.exists(path):
        raise HostError(
            f"the CA certificate {path} is not there",
            cause=f"everything that {name} signs needs it",
            remedy=f"make it: kb init phase certs {name}; or put yours there",
            code="ca-missing",
        )
    cert = read_certs(host, path)[0]
    _check_ca_cert(cert, path, host.now())
    if not host.exists(key_path):
        return Ca(cert, None, path)
    proven = _ca_keys.get(path)
    texts = (host.read_text(path), host.read_text(key_path))
    if proven is None or proven[0] != texts:
        key = read_key(host, key_path)
        if not is_key_of(key, cert):
            raise _key_mismatch(path, key_path)
        proven = _ca_keys[path] = (texts, key)
    return Ca(cert, proven[1], path)


def _check_ca_cert(cert: x509.Certificate, path: Path, now: datetime.datetime) -> None:
    if not is_ca_cert(cert):
        raise HostError(
            f"{path} is no CA certificate",
            cause=f"its basic constraints do not say CA:TRUE (subject {cert.subject.rfc4514_string()})",
            remedy=f"put the certificate of your CA at {path}, or move it away and kb makes one",
            code="not-a-ca",
        )
    if is_expired(cert, now):
        raise HostError(
            f"the CA certificate {path} expired at {_utc(cert.not_valid_after_utc)}",
            cause=f"this clock says {_utc(now)}; nothing that this CA signed is believed any more",
            remedy=f"set the clock if it is wrong (timedatectl); otherwise replace {path} by a renewed one of the same key",
            code="ca-expired",
        )
    if is_in_future(cert, now):
        raise _not_yet_valid(cert, path, now)


@frozen
class Finding:
    """What is to be done about a certificate: keep it, or issue it. `reason` says why, in words for people."""

    action: str
    """keep | issue | reissue"""
    reason: str
    key: Optional[Key] = None
    """The key that is already there, and that a certificate to be issued is for."""
    found_sans: Sans = Sans()


def probe_ca(host: Host, paths: Paths, name: str) -> Finding:
    """Whether the CA `name` is there. Raises HostError where what is there cannot be used (see read_ca), and
    ca-missing where only certificates that it signed are."""
    spec = CERTS[name]
    if host.exists(spec.cert_path(paths)):
        ca = read_ca(host, paths, name)
        where = "its key is kept elsewhere" if ca.key is None else "with its key"
        return Finding("keep", f"using the existing CA {ca.path} ({where})", ca.key)
    if host.exists(spec.key_path(paths)):
        return Finding("issue", f"using the existing key {spec.key_path(paths)}", read_key(host, spec.key_path(paths)))
    orphans = [leaf.cert_path(paths) for leaf in CERTS.values() if leaf.signer == name]
    check_no_orphans(host, paths, name, [path for path in orphans if host.exists(path)])
    return Finding("issue", "there is none yet")


def find_ca_warnings(host: Host, paths: Paths, cluster: ClusterConfiguration, name: str) -> tuple[str, ...]:
    """What works with the CA that lies there, and may surprise. Raises as read_ca does."""
    ca = read_ca(host, paths, name)
    own = cluster.controller_manager
    is_signer_given = any(own.last_arg(f"cluster-signing{kind}-cert-file") for kind in ("", "-kubelet-client"))
    bundle = "" if name != "ca" or is_signer_given else describe_bundle(host, ca)
    return tuple(filter(None, (describe_early_end(ca, host.now(), cluster.certificate_validity_period_s), bundle)))


def describe_early_end(ca: Ca, now: datetime.datetime, seconds: int) -> str:
    """That a CA ends before what it signs now; "" where it does not, or signs elsewhere."""
    left = ca.cert.not_valid_after_utc - now
    if ca.key is None or left >= datetime.timedelta(seconds=seconds):
        return ""
    return (
        f"{ca.path} ends in {left.days} days, before the certificates that it signs: nothing that it signed is believed from then "
        "on; renew it for the same key while there is time"
    )


def describe_bundle(host: Host, ca: Ca) -> str:
    """That a CA's file holds several certificates beside its key, of which the signer takes exactly one; "" where it does not."""
    count = len(read_certs(host, ca.path)) if ca.key is not None else 1
    if count == 1:
        return ""
    return (
        f"{ca.path} holds {count} certificates, and kube-controller-manager signs with a file of exactly one: no kubelet that "
        f"joins gets its certificate; put the one of {ca.path.with_suffix('.key')} alone into a file beside it, and name that in "
        "controllerManager.extraArgs: cluster-signing-cert-file"
    )


def check_no_orphans(host: Host, paths: Paths, name: str, orphans: Sequence[Path]) -> None:
    """Raise HostError (ca-missing) where files that the CA `name` must have made are there and it is not: a new CA
    would make them void."""
    spec = CERTS[name]
    if orphans and not host.exists(spec.cert_path(paths)) and not host.exists(spec.key_path(paths)):
        names = " ".join(str(path) for path in orphans)
        raise HostError(
            f"the CA certificate {spec.cert_path(paths)} is not there",
            cause=f"what it signed is ({names}), and a new CA would make that void",
            remedy=f"put {spec.cert_path(paths)} back, with its key; or start over: mv {names} /root/",
            code="ca-missing",
        )


def probe_cert(host: Host, paths: Paths, *, config: InitConfig, name: str) -> Finding:
    """What is to be done about the leaf certificate `name`.

    Raises HostError where what is there cannot be used and cannot be mended without losing something:
    certificate-of-other-ca, certificate-expired, certificate-lacks-san, certificate-not-yet-valid, key-missing,
    key-mismatch, external-ca-incomplete, and those of read_ca.
    """
    spec = CERTS[name]
    path, key_path = spec.cert_path(paths), spec.key_path(paths)
    ca = read_ca(host, paths, spec.signer)
    if not host.exists(path):
        if ca.key is None:
            raise _external_ca_incomplete(ca, [path, key_path])
        if host.exists(key_path):
            return Finding("issue", f"using the existing key {key_path}", read_key(host, key_path))
        return Finding("issue", "there is none yet")
    chain = read_certs(host, path)
    _check_chain(host, spec, chain, paths=paths, ca=ca)
    if is_in_future(chain[0], host.now()):
        raise _not_yet_valid(chain[0], path, host.now())
    if not host.exists(key_path):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"its certificate {path} is, and serves nothing without it",
            remedy=f"put {key_path} back, or move {path} away and kb makes a new pair",
            code="key-missing",
        )
    key = read_key(host, key_path)
    if not is_key_of(key, chain[0]):
        raise _key_mismatch(path, key_path)
    return _judge_cert(chain[0], key, ca=ca, path=path, wanted=spec.sans(config), now=host.now())


def _check_chain(host: Host, spec: CertSpec, chain: Sequence[x509.Certificate], *, paths: Paths, ca: Ca) -> None:
    """Raise HostError (certificate-of-other-ca, ca-unfit, certificate-unfit) where those to whom the certificate is shown would
    not believe it. Its own dates are another matter: what has expired may be issued again."""
    path, pool, now = spec.cert_path(paths), read_certs(host, ca.path), host.now()
    is_now = not is_expired(chain[0], now) and not is_in_future(chain[0], now)
    if find_fault(chain, pool) is not None and not any(
        is_issued_by(cert, authority) for cert in chain for authority in pool
    ):
        raise _other_ca(path, spec.key_path(paths), chain[0], ca)
    for usage in spec.usages:
        fault = find_fault(chain, pool, usage=usage, now=now if is_now else None)
        if fault is not None and fault.is_authority and fault.cert in pool:
            raise _unfit_ca(ca, f"nobody would believe the certificate {path}", fault)
        if fault is not None:
            raise HostError(
                f"nobody would believe the certificate {path}",
                cause=fault.text,
                remedy=f"move it and its key away (mv {path} {spec.key_path(paths)} /root/) and kb makes a new pair"
                if ca.key is not None
                else f"have your CA issue {path} again, for the usages {' and '.join(spec.usages)}",
                code="certificate-unfit",
            )


def is_issued_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the signature is that of `issuer`'s key, fit or not."""
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _judge_cert(
    cert: x509.Certificate, key: Key, *, ca: Ca, path: Path, wanted: Sans, now: datetime.datetime
) -> Finding:
    """Keep a sound certificate, or issue it anew for its key where the CA's key is at hand."""
    found = sans_of(cert)
    missing = found.lacks(wanted)
    if not is_expired(cert, now) and not missing:
        return Finding("keep", f"using the existing certificate {path}", key, found)
    if is_expired(cert, now):
        problem = f"{path} expired at {_utc(cert.not_valid_after_utc)}"
    else:
        problem = f"{path} does not name {', '.join(missing)}"
    if ca.key is not None:
        return Finding("reissue", f"{problem}: issued again for the same key", key, found)
    cause = f"its CA {ca.path} signs elsewhere (there is no key beside it), so kb cannot issue it again"
    if is_expired(cert, now):
        raise HostError(
            f"the certificate {problem}",
            cause=cause,
            remedy=f"have your CA issue {path} again for the same key",
            code="certificate-expired",
        )
    raise HostError(
        f"the certificate {problem}",
        cause=cause,
        remedy=f"have your CA issue {path} again for the same key, signed for {wanted}",
        code="certificate-lacks-san",
    )


def ensure_ca(host: Host, paths: Paths, *, config: InitConfig, name: str, make_key: Callable[[], Key]) -> Finding:
    """Keep the CA `name` or make it; return what was found before. Raises as probe_ca does."""
    finding = probe_ca(host, paths, name)
    if finding.action == "keep":
        return finding
    spec = CERTS[name]
    key = finding.key or _write_new_key(host, spec.key_path(paths), make_key())
    validity = plan_validity(host.now(), config.cluster.ca_certificate_validity_period_s)
    host.write_file(spec.cert_path(paths), cert_to_pem(issue_ca_cert(spec.common_name, key, validity)), mode=0o644)
    return finding


def ensure_cert(host: Host, paths: Paths, *, config: InitConfig, name: str, make_key: Callable[[], Key]) -> Finding:
    """Keep the leaf certificate `name` or issue it; return what was found before. Raises as probe_cert does.

    A name that stands in a certificate found expired or incomplete stays in the new one: somebody wanted it.
    """
    finding = probe_cert(host, paths, config=config, name=name)
    if finding.action == "keep":
        return finding
    spec = CERTS[name]
    key = finding.key or make_key()
    cert = _issue_for(config, spec, key, ca=read_ca(host, paths, spec.signer), now=host.now(), found=finding.found_sans)
    if finding.key is None:
        _write_new_key(host, spec.key_path(paths), key)
    write_keeping_mode(host, spec.cert_path(paths), cert_to_pem(cert), mode=0o644)
    return finding


def _issue_for(
    config: InitConfig, spec: CertSpec, key: Key, *, ca: Ca, now: datetime.datetime, found: Sans = _NO_SANS
) -> x509.Certificate:
    """The certificate of a row for this node. found: names of one that was there."""
    sans = spec.sans(config)
    if found:
        sans = make_sans((*sans.dns, *sans.ips, *found.dns, *found.ips))
    name = spec.common_name or config.node.name
    subject = Subject(name, is_server=spec.is_server, is_client=spec.is_client, sans=sans)
    return issue_leaf_cert(
        subject, key, ca=ca, validity=plan_validity(now, config.cluster.certificate_validity_period_s)
    )


def is_ca_valid(host: Host, paths: Paths, name: str) -> bool:
    """Whether nothing is to be done about the CA `name`."""
    try:
        return probe_ca(host, paths, name).action == "keep"
    except HostError:
        return False


def is_cert_valid(host: Host, paths: Paths, *, config: InitConfig, name: str) -> bool:
    """Whether the pair of `name` loads, belongs together, chains to its CA, holds now and names what config wants."""
    try:
        return probe_cert(host, paths, config=config, name=name).action == "keep"
    except HostError:
        return False


def find_problems(host: Host, paths: Paths, config: InitConfig) -> list[HostError]:
    """Every reason why certs/* would stop, found before anything is changed: for preflight."""
    problems: dict[str, HostError] = {}
    for spec in wanted_certs(config.cluster):
        try:
            if spec.is_ca:
                probe_ca(host, paths, spec.name)
            elif (
                spec.signer not in problems
                and host.exists(CERTS[spec.signer].cert_path(paths))
                and probe_cert(host, paths, config=config, name=spec.name).action != "keep"
            ):
                _try_to_issue(host, paths, config=config, spec=spec)
        except HostError as error:
            problems[spec.name] = error
    try:
        probe_service_account_key(host, paths)
    except HostError as error:
        problems["sa"] = error
    return list(problems.values())


def _try_to_issue(host: Host, paths: Paths, *, config: InitConfig, spec: CertSpec) -> None:
    """Issue a certificate for a key that nobody keeps. Raises as issue_leaf_cert does."""
    _issue_for(config, spec, generate_key("ECDSA-P256"), ca=read_ca(host, paths, spec.signer), now=host.now())


def probe_service_account_key(host: Host, paths: Paths) -> Finding:
    """What is to be done about sa.key and sa.pub. Raises HostError: key-unreadable, key-mismatch, sa-key-missing."""
    key_path, public_path = paths.pki / "sa.key", paths.pki / "sa.pub"
    if not host.exists(key_path):
        return _probe_missing_sa_key(host, paths)
    key = read_key(host, key_path)
    if not host.exists(public_path):
        return Finding("issue", f"using the existing key {key_path}", key)
    if _is_public_half_in(host.read_text(public_path), key):
        return Finding("keep", f"using the existing key {key_path}", key)
    raise HostError(
        f"{key_path} and {public_path} do not belong together",
        cause=f"{public_path} does not hold the public half of {key_path}: no service account token would be believed",
        remedy=f"write it again: openssl pkey -in {key_path} -pubout -out {public_path}",
        code="key-mismatch",
    )


def _probe_missing_sa_key(host: Host, paths: Paths) -> Finding:
    key_path, public_path = paths.pki / "sa.key", paths.pki / "sa.pub"
    if host.exists(public_path):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"its public half {public_path} is: a new key would make every service account token void",
            remedy=f"put {key_path} back, or move {public_path} away and kb makes a new pair",
            code="sa-key-missing",
        )
    if is_external_ca(host, paths):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"with an external CA (no {paths.pki / 'ca.key'}) the service account key is yours to give",
            remedy=f"make it: openssl genrsa -out {key_path} 2048 && openssl pkey -in {key_path} -pubout -out {public_path}",
            code="sa-key-missing",
        )
    return Finding("issue", "there is none yet")


def _is_public_half_in(pem: str, key: Key) -> bool:
    """sa.pub may hold several keys, and certificates: kube-apiserver believes what any of them signed."""
    for block in split_pem(pem):
        try:
            if block.label == "CERTIFICATE":
                found: object = x509.load_der_x509_certificate(block.content).public_key()
            elif block.is_private_key:
                found = parse_key(block.text).public_key()
            else:
                found = serialization.load_der_public_key(block.content)
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
            continue
        if _is_pair(key, found):
            return True
    return False


def ensure_service_account_key(host: Host, paths: Paths, *, make_key: Callable[[], Key]) -> Finding:
    """Keep sa.key, or make it; write sa.pub where it is missing. Raises as probe_service_account_key does."""
    finding = probe_service_account_key(host, paths)
    if finding.action == "keep":
        return finding
    key = finding.key or _write_new_key(host, paths.pki / "sa.key", make_key())
    host.write_file(paths.pki / "sa.pub", public_key_to_pem(key), mode=0o600)
    return finding


def is_service_account_key_valid(host: Host, paths: Paths) -> bool:
    try:
        return probe_service_account_key(host, paths).action == "keep"
    except HostError:
        return False


def find_missing_keys(host: Host, paths: Paths, cluster: ClusterConfiguration) -> list[str]:
    """The names of the certificates whose key certificatesDir still lacks, and `sa`."""
    files = {spec.name: spec.key_path(paths) for spec in wanted_certs(cluster)}
    files["sa"] = paths.pki / "sa.key"
    return [name for name, path in files.items() if not host.exists(path)]


def _write_new_key(host: Host, path: Path, key: Key) -> Key:
    host.write_file(path, key_to_pem(key).reveal(), mode=0o600)
    return key


def write_keeping_mode(host: Host, path: Path, text: str, *, mode: int) -> bool:
    """Write a file; one that is there keeps the mode and owner that somebody gave it."""
    return host.write_file(path, text, mode=mode, keeps=True)


# ---- errors that several places raise


def _key_mismatch(path: Path, key_path: Path) -> HostError:
    return HostError(
        f"{path} and {key_path} do not belong together",
        cause="the certificate is for another key",
        remedy=f"put the matching pair there, or move both away (mv {path} {key_path} /root/) and kb makes a new pair",
        code="key-mismatch",
    )


def _other_ca(path: Path, key_path: Path, cert: x509.Certificate, ca: Ca) -> HostError:
    return HostError(
        f"the certificate {path} was not signed by {ca.path}",
        cause=f"its issuer is {cert.issuer.rfc4514_string()}; the CA is {ca.cert.subject.rfc4514_string()}"
        + (", with another key" if cert.issuer == ca.cert.subject else ""),
        remedy=f"put its CA at {ca.path}, or move both away (mv {path} {key_path} /root/) and kb makes a new pair",
        code="certificate-of-other-ca",
    )


def _unfit_ca(ca: Ca, what: str, fault: Fault) -> HostError:
    key_path = ca.path.with_suffix(".key")
    return HostError(
        what,
        cause=f"{ca.path} is not fit for it: {fault.text}",
        remedy=f"put the certificate of a CA there that may sign for this cluster's names, for servers and clients; or move it away "
        f"(mv {ca.path} {key_path} /root/) and kb makes one",
        code="ca-unfit",
    )


def _not_yet_valid(cert: x509.Certificate, path: Path, now: datetime.datetime) -> HostError:
    return HostError(
        f"the certificate {path} holds only from {_utc(cert.not_valid_before_utc)}",
        cause=f"this clock says {_utc(now)}",
        remedy="set the clock: timedatectl set-ntp true",
        code="certificate-not-yet-valid",
    )


def _external_ca_incomplete(ca: Ca, missing: Sequence[Path]) -> HostError:
    names = " and ".join(str(path) for path in missing)
    return HostError(
        f"there is no {names}",
        cause=f"the CA {ca.path} signs elsewhere (there is no key beside it), so kb cannot issue it",
        remedy=f"have your CA issue it and put it there; or put the CA's key at {ca.path.with_suffix('.key')}",
        code="external-ca-incomplete",
    )


# ---- small parts

_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def split_host_port(endpoint: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `host` into its parts; port 0 where there is none."""
    match = re.fullmatch(r"\[(?P<six>[^]]+)](?::(?P<port6>\d+))?|(?P<host>[^:]+)(?::(?P<port>\d+))?", endpoint)
    if match is None:
        return endpoint, 0
    return match["six"] or match["host"], int(match["port6"] or match["port"] or 0)


def _as_ip(text: str) -> Optional[str]:
    """The address in Go's normal form: an IPv4 in an IPv6 is that IPv4, as which Go writes it into certificates (and from 1.27 on
    reads no other form there)."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _dns_matches(pattern: list[str], labels: list[str]) -> bool:
    """A `*` stands for exactly one label, the first."""
    return pattern[1:] == labels[1:] and pattern[0] in ("*", labels[0])


def _spki(public_key: object) -> bytes:
    der: bytes = public_key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return der


_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(cert: x509.Certificate, kind: type[_E]) -> Optional[_E]:
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _utc(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
