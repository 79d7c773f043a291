"""kubeup/airgap/bundle_signature.py: a signature holds until something changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.airgap import (
    bundle_signature,
    oci_layout,
)
from kubeup.errors import HostError, UsageError
from kubeup.secret import Secret
from tests.unit.airgap.bundle_case import make

# ---- signatures


def keys() -> tuple[Secret, str]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()
    return Secret(private), key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo).decode()


def test_a_signature_holds_until_something_changes(tmp_path: Path) -> None:
    private, public = keys()
    found = make(tmp_path, key=private)
    bundle_signature.check_signature(found, public)
    _, foreign = keys()
    for bad in (foreign,):
        with pytest.raises(HostError) as caught:
            bundle_signature.check_signature(found, bad)
        assert caught.value.code == "signature-wrong"
    changed = oci_layout.Layout(found.path, found.index, found.index_bytes + b" ", found.blobs, found.signature)
    with pytest.raises(HostError, match="is not what the owner of the key signed"):
        bundle_signature.check_signature(changed, public)
    garbled = oci_layout.Layout(found.path, found.index, found.index_bytes, found.blobs, b'{"ed25519": 3}')
    with pytest.raises(HostError, match="is not what the owner of the key signed"):
        bundle_signature.check_signature(garbled, public)


def test_no_signature_and_no_key(tmp_path: Path) -> None:
    _, public = keys()
    found = make(tmp_path)
    with pytest.raises(HostError) as caught:
        bundle_signature.check_signature(found, public)
    assert caught.value.code == "signature-missing"
    with pytest.raises(UsageError) as wrong:
        bundle_signature.check_signature(found, "no key")
    assert wrong.value.code == "bad-key"
    with pytest.raises(UsageError):
        bundle_signature.sign_index(b"{}", Secret("no key"))
