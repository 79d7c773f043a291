"""The signature of a bundle's index."""

from __future__ import annotations

import base64

from kubeup.airgap import oci_layout as layout
from kubeup.airgap.oci_layout import Layout, as_json
from kubeup.errors import HostError, UsageError
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazily
from kubeup.secret import Secret

with lazily:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519


def sign_index(index_bytes: bytes, key: Secret) -> bytes:
    """The signature file: ed25519 over index.json, which names everything else by sha256. Raises UsageError
    (bad-key)."""
    try:
        private = serialization.load_pem_private_key(key.reveal().encode(), password=None)
    except (ValueError, TypeError) as error:
        raise _bad_key("--sign", "it is not a private key in PEM, or it is encrypted") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise _bad_key("--sign", "it is not an ed25519 key")
    return as_json({"ed25519": base64.b64encode(private.sign(index_bytes)).decode(), "signs": "index.json"})


def check_signature(found: Layout, public_pem: str) -> None:
    """Raise HostError (signature-missing, signature-wrong) or UsageError (bad-key) unless the key's owner signed the
    index."""
    try:
        public = serialization.load_pem_public_key(public_pem.encode())
    except ValueError as error:
        raise _bad_key("--verify-key", "it is not a public key in PEM") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise _bad_key("--verify-key", "it is not an ed25519 key")
    if not found.signature:
        raise HostError(
            f"{found.path} is not signed",
            cause=f"it has no {layout.SIGNATURE_FILE}",
            remedy="sign it where it is made: kb bundle create --sign KEY; or leave --verify-key out",
            code="signature-missing",
        )
    try:
        told = parse_json_object(found.signature, layout.SIGNATURE_FILE)
        public.verify(base64.b64decode(str(told["ed25519"])), found.index_bytes)
    except Exception as error:  # InvalidSignature, and every error from a malformed text
        raise HostError(
            f"{found.path} is not what the owner of the key signed",
            cause="the ed25519 signature does not match index.json",
            remedy="do not use it: get it again from where it was made, and compare the key",
            code="signature-wrong",
        ) from error


def _bad_key(flag: str, cause: str) -> UsageError:
    return UsageError(
        f"the key of {flag} cannot be used",
        cause=cause,
        remedy="make a pair: openssl genpkey -algorithm ed25519 -out KEY && openssl pkey -in KEY -pubout -out KEY.pub",
        code="bad-key",
    )
