"""The files that control plane nodes share, encrypted in the Secret kubeadm-certs (--upload-certs).

This module implements the format of that Secret, which kubeadm reads and writes too. It knows no phase, and does not talk to the
cluster. Mirrors cmd/kubeadm/app/phases/copycerts/copycerts.go and cmd/kubeadm/app/util/crypto/crypto.go.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kubeup.cluster import tokens
from kubeup.config import token_text
from kubeup.config.types import BootstrapToken, ClusterConfiguration
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import cert_specs, pki
from kubeup.paths import Paths
from kubeup.pem import split_pem
from kubeup.secret import Secret

SECRET_NAME = "kubeadm-certs"  # noqa: S105
TTL_S = 2 * 3600
"""How many seconds the shared files stay in the cluster."""

_NONCE_BYTES = 12
_SHARED = ("ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.pub", "sa.key")
_SHARED_ETCD = ("etcd/ca.crt", "etcd/ca.key")


# ---- the key and the cipher


def new_certificate_key() -> Secret:
    """A new certificate key: 32 bytes as 64 hex digits."""
    return Secret(secrets.token_hex(32))


def parse_certificate_key(key: Secret) -> bytes:
    """The 32 bytes of a certificate key. Raises UsageError (bad-certificate-key), which does not repeat the key."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", key.reveal()):
        raise UsageError(
            "the certificate key",
            cause=f"a certificate key is 64 hex digits; this one has {len(key.reveal())} characters, or other ones",
            remedy="make one: kb certs certificate-key",
            code="bad-certificate-key",
        )
    return bytes.fromhex(key.reveal())


def encrypt(plaintext: bytes, key: Secret) -> bytes:
    """Encrypt with AES-256-GCM. Returns a random nonce, the ciphertext and the tag, concatenated."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(parse_certificate_key(key)).encrypt(nonce, plaintext, None)


def decrypt(data: bytes, key: Secret) -> bytes:
    """Decrypt the result of `encrypt`. Raises ClusterError (certificate-key-wrong)."""
    try:
        return AESGCM(parse_certificate_key(key)).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError) as error:
        raise ClusterError(
            f"the Secret kube-system/{SECRET_NAME} cannot be decrypted with this certificate key",
            cause="it was encrypted with another key: each upload makes a new key unless one is given",
            remedy="upload again on a control plane node and use the key that is printed: "
            "kb init phase upload-certs --upload-certs",
            code="certificate-key-wrong",
        ) from error


# ---- upload


def shared_files(paths: Paths, cluster: ClusterConfiguration) -> dict[str, Path]:
    """The files that control plane nodes share: the key in the Secret -> the path on a node."""
    external = cluster.external_etcd
    names = _SHARED + (_SHARED_ETCD if external is None else ())
    files = {name.replace("/", "-"): paths.pki / name for name in names}
    if external is not None:
        wanted = (
            ("external-etcd-ca.crt", external.ca_file),
            ("external-etcd.crt", external.cert_file),
            ("external-etcd.key", external.key_file),
        )
        files.update({key: Path(file) for key, file in wanted if file})
    return files


def secret_keys(cluster: ClusterConfiguration) -> tuple[str, ...]:
    """All keys that the Secret must have. The value for a missing file is empty."""
    if cluster.external_etcd is None:
        return tuple(name.replace("/", "-") for name in _SHARED + _SHARED_ETCD)
    return (*_SHARED, "external-etcd-ca.crt", "external-etcd.crt", "external-etcd.key")


def check_shareable(host: Host, paths: Paths) -> None:
    """Raise HostError (external-ca-not-shareable) if the private key of a CA is kept elsewhere, so that it cannot be shared."""
    for name in ("ca", "front-proxy-ca"):
        if pki.is_external_ca(host, paths, name=name):
            spec = cert_specs.CERTS[name]
            raise HostError(
                f"the files of the CA {name} cannot be uploaded",
                cause=f"{spec.cert_path(paths)} has no key beside it: the CA signs elsewhere",
                remedy="leave out --upload-certs, and copy the certificates of each further node there yourself",
                code="external-ca-not-shareable",
            )


def read_shared_files(host: Host, paths: Paths, *, cluster: ClusterConfiguration) -> dict[str, bytes]:
    """The plaintexts by key in the Secret; empty for missing files. Raises whatever check_shareable raises."""
    check_shareable(host, paths)
    files = shared_files(paths, cluster)
    return {
        key: host.read_bytes(files[key]) if key in files and host.exists(files[key]) else b""
        for key in secret_keys(cluster)
    }


def make_proxy_token() -> BootstrapToken:
    """A token that nobody can authenticate with. When it expires, the Secret that it owns is deleted with it."""
    description = f"Proxy for managing TTL for the {SECRET_NAME} secret"
    return BootstrapToken(token_text.generate_token(), description=description, ttl_s=TTL_S, usages=(), groups=())


def render_certs_secret(
    files: Mapping[str, bytes], certificate_key: Secret, *, token_id: str, token_uid: str
) -> dict[str, Any]:
    """The Secret with each of `files` encrypted, owned by the Secret of the proxy token."""
    data = {key: encrypt(content, certificate_key) if content else b"" for key, content in sorted(files.items())}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET_NAME,
            "namespace": "kube-system",
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "name": tokens.secret_name(token_id),
                    "uid": token_uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "data": {key: base64.b64encode(content).decode() for key, content in data.items()},
    }


# ---- download


@frozen
class SharedFile:
    """A file to write on a joining control plane node."""

    path: Path
    data: Secret
    mode: int


def plan_downloads(
    secret: Mapping[str, Any], certificate_key: Secret, *, paths: Paths, cluster: ClusterConfiguration
) -> tuple[SharedFile, ...]:
    """The decrypted files in the Secret, and where they belong.

    Raises ClusterError: certs-secret-incomplete, certificate-key-wrong, certs-secret-damaged.
    """
    data = secret.get("data") or {}
    missing = [key for key in secret_keys(cluster) if key not in data]
    if missing:
        raise ClusterError(
            f"the Secret kube-system/{SECRET_NAME} is incomplete",
            cause=f"it lacks {', '.join(missing)}",
            remedy="upload again on a control plane node: kb init phase upload-certs --upload-certs",
            code="certs-secret-incomplete",
        )
    return tuple(
        _plan_download(key, data[key], certificate_key=certificate_key, path=path)
        for key, path in shared_files(paths, cluster).items()
        if data[key]
    )


def _plan_download(key: str, encoded: str, *, certificate_key: Secret, path: Path) -> SharedFile:
    try:
        encrypted = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged_secret(f"its entry {key} is not base64") from error
    text = decrypt(encrypted, certificate_key).decode(errors="replace")
    blocks = list(split_pem(text))
    if any(block.is_private_key for block in blocks):
        return SharedFile(path, Secret(text), 0o600)
    if any(block.label == "CERTIFICATE" or block.label.endswith("PUBLIC KEY") for block in blocks):
        return SharedFile(path, Secret(text), 0o644)
    raise _damaged_secret(f"its entry {key} is neither a key nor a certificate")


def _damaged_secret(cause: str) -> ClusterError:
    return ClusterError(
        f"the Secret kube-system/{SECRET_NAME} cannot be used",
        cause=cause,
        remedy="upload again on a control plane node: kb init phase upload-certs --upload-certs",
        code="certs-secret-damaged",
    )
