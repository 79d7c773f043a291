"""Private keys: generating them, writing and parsing PEM, and checking that two halves match.

The parser accepts what Kubernetes (Go) accepts, and says of everything else why not. No error message contains a key.
"""

from __future__ import annotations

from collections import deque
from typing import Union

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

from kubeup.errors import UsageError
from kubeup.node.verify import CURVES
from kubeup.pem import describe_lack, split_pem
from kubeup.secret import Secret
from kubeup.startup import head_start

Key = Union[rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey]
"""The types of private key that Kubernetes' components and kubeadm accept."""


def generate_key(algorithm: str) -> Key:
    """Generate a private key: RSA-2048, RSA-3072, RSA-4096, ECDSA-P256 or ECDSA-P384. Raises UsageError
    (unknown-encryption-algorithm)."""
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
    """Generates up to `wanted` keys in advance, in two threads. An RSA key takes about 40 ms of one CPU, outside the GIL, and a control
    plane node has 16 keys. Unused keys are never written anywhere."""

    def __init__(self, algorithm: str, *, wanted: int) -> None:
        self._algorithm = algorithm
        self._ahead: deque[head_start.Making] = deque()
        if algorithm == head_start.ALGORITHM:
            self._ahead.extend(head_start.take_keys(wanted))
        # generating an elliptic-curve key is faster than starting a thread
        left = 0 if algorithm.startswith("ECDSA") else wanted - len(self._ahead)
        more = [head_start.Making(generate_key, algorithm) for _ in range(left)]
        head_start.make_in_threads(more)
        self._ahead.extend(more)

    def take(self) -> Key:
        """Take a new key; generate one now if none is ready."""
        if not self._ahead:
            return generate_key(self._algorithm)
        key: Key = self._ahead.popleft().result()
        return key


def key_to_pem(key: Key) -> Secret:
    """The PEM of a private key: `RSA PRIVATE KEY` (PKCS#1) or `EC PRIVATE KEY` (SEC1)."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return Secret(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode())


def public_key_to_pem(key: Key) -> str:
    """The PEM of the public key: `PUBLIC KEY` (PKIX)."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def parse_key(pem: str) -> Key:
    """The first private key in `pem`: PKCS#1, SEC1 or PKCS#8. Raises ValueError, whose message never contains the key."""
    key = parse_any_key(pem)
    if isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        return key
    raise ValueError("its private key is neither RSA nor ECDSA")


def parse_any_key(pem: str) -> object:
    """Like parse_key, but also accepts types of key that a TLS client accepts and kubeadm does not."""
    block = next((block for block in split_pem(pem) if block.is_private_key), None)
    if block is None:
        raise ValueError(describe_lack(pem, "private key"))
    if block.label.startswith("ENCRYPTED") or "Proc-Type" in block.headers:
        raise ValueError("the private key is encrypted with a password")
    try:
        # OpenSSL's full check of an RSA key takes longer than generating one; is_key_of verifies it with a signature
        key = serialization.load_der_private_key(block.content, password=None, unsafe_skip_rsa_key_validation=True)
    except Exception as error:
        raise ValueError("its private key is damaged, or of a kind that Kubernetes (Go) cannot read") from error
    form = _FORM_BY_TAG.get(_third_tag(block.content), block.label)
    if form != block.label:
        raise ValueError(
            f"its label says {block.label}, but its content is {form}: Kubernetes (Go) goes by the label (openssl pkey writes the right one)"
        )
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name not in CURVES:
        raise ValueError(f"its private key is on the curve {key.curve.name}, which Kubernetes (Go) cannot read")
    if isinstance(key, rsa.RSAPrivateKey) and _PSS in block.content[:64]:
        raise ValueError("its private key is only for RSA-PSS, which Kubernetes (Go) cannot read")
    return key


_FORM_BY_TAG = {0x02: "RSA PRIVATE KEY", 0x04: "EC PRIVATE KEY", 0x30: "PRIVATE KEY"}
"""PKCS#1, SEC1 and PKCS#8 all begin with a version; the next tag distinguishes them."""


def _third_tag(der: bytes) -> int:
    start = 2 + (der[1] & 0x7F if len(der) > 1 and der[1] & 0x80 else 0)
    return der[start + 3] if len(der) > start + 3 else 0


_PSS = bytes.fromhex("06092a864886f70d01010a")
"""The object identifier id-RSASSA-PSS (RFC 4055), as encoded in a PKCS#8 key."""


def is_key_of(key: Key, cert: x509.Certificate) -> bool:
    """Whether `key` is the private key of `cert`, and works. Otherwise no server or client would start (tls.X509KeyPair)."""
    try:
        return is_pair(key, cert.public_key())
    except UnsupportedAlgorithm:
        return False


def is_pair(key: Key, public_key: object) -> bool:
    """Whether the public keys are equal, and a signature of the private key can be verified."""
    if spki(key.public_key()) != spki(public_key):
        return False
    try:
        if isinstance(key, rsa.RSAPrivateKey) and isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(key.sign(b"kb", PKCS1v15(), hashes.SHA256()), b"kb", PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(key.sign(b"kb", ec.ECDSA(hashes.SHA256())), b"kb", ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def spki(public_key: object) -> bytes:
    der: bytes = public_key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return der
