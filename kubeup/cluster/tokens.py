"""Bootstrap tokens: rendering and parsing their Secrets, and the signatures of cluster-info made with them.

This module knows no phase and no cluster. Mirrors cmd/kubeadm/app/apis/bootstraptoken/v1/*.go and
staging/src/k8s.io/cluster-bootstrap/token/{api,jws,util}.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any, Optional

from kubeup import moments
from kubeup.config.token_text import is_token, parse_token
from kubeup.config.types import BootstrapToken
from kubeup.errors import UsageError
from kubeup.secret import Secret

SECRET_TYPE = "bootstrap.kubernetes.io/token"  # noqa: S105
USAGES = ("signing", "authentication")


def secret_name(token_id: str) -> str:
    """The name of a token's Secret in kube-system."""
    return f"bootstrap-token-{token_id}"


# ---- Secrets


def render_token_secret(token: BootstrapToken, now: datetime.datetime) -> dict[str, Any]:
    """The Secret of a token. The token expires at `expires` if set, else `ttl_s` seconds from now, else never (None or 0)."""
    token_id, token_secret = parse_token(token.token)
    texts = {"token-id": token_id, "token-secret": token_secret.reveal()}
    if token.description:
        texts["description"] = token.description
    expiration = plan_expiration(token, now)
    if expiration:
        texts["expiration"] = expiration
    texts.update({f"usage-bootstrap-{usage}": "true" for usage in token.usages})
    if token.groups:
        texts["auth-extra-groups"] = ",".join(token.groups)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name(token_id), "namespace": "kube-system"},
        "type": SECRET_TYPE,
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in sorted(texts.items())},
    }


def plan_expiration(token: BootstrapToken, now: datetime.datetime) -> str:
    """When a token created now expires, in RFC 3339 (`2026-11-24T17:14:04Z`); "" for never."""
    if token.expires:
        return moments.show(_parse_moment(token.expires))
    return moments.show(now + datetime.timedelta(seconds=token.ttl_s)) if token.ttl_s else ""


def parse_token_secret(secret: Mapping[str, Any]) -> Optional[BootstrapToken]:
    """The token in a Secret; None if it holds no complete token. `expires` is as stored, and ttl_s is None."""
    texts = {key: _decode(value) for key, value in (secret.get("data") or {}).items()}
    text = f"{texts.get('token-id', '')}.{texts.get('token-secret', '')}"
    if not is_token(text) or (secret.get("metadata") or {}).get("name") != secret_name(text[:6]):
        return None
    groups = texts.get("auth-extra-groups", "")
    return BootstrapToken(
        Secret(text),
        description=texts.get("description", ""),
        ttl_s=None,
        expires=texts.get("expiration") or None,
        usages=tuple(usage for usage in USAGES if texts.get(f"usage-bootstrap-{usage}") == "true"),
        groups=tuple(groups.split(",")) if groups else (),
    )


def is_expired(token: BootstrapToken, now: datetime.datetime) -> bool:
    """Whether a token read from its Secret has expired. An invalid expiry counts as expired, as in the API server."""
    if not token.expires:
        return False
    try:
        return _parse_moment(token.expires) <= now
    except UsageError:
        return True


def expires_at(token: BootstrapToken) -> datetime.datetime:
    """When a token read from its Secret expires; far in the past if the expiry is invalid."""
    try:
        return _parse_moment(token.expires or "")
    except UsageError:
        return datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)


def _decode(value: object) -> str:
    try:
        return base64.b64decode(str(value), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _parse_moment(text: str) -> datetime.datetime:
    """Parse an RFC 3339 time. Python before 3.11 parses neither `Z` nor fractions of arbitrary length."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.\d+)?([Zz]|[+-]\d\d:\d\d)", text)
    try:
        if match is None:
            raise ValueError(text)
        zone = "+00:00" if match[3] in "Zz" else match[3]
        return datetime.datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
    except ValueError:
        raise UsageError(
            f"the token's expiry {text!r}",
            cause="it is not a time in RFC 3339 format",
            remedy="write it like 2026-11-24T17:14:04Z, or give a ttl instead",
            code="bad-token-expiry",
        ) from None


# ---- signatures of cluster-info


def compute_jws(payload: str, token: Secret) -> str:
    """The detached signature of `payload` by a token, as stored in cluster-info under `jws-kubeconfig-<id>`."""
    token_id, token_secret = parse_token(token)
    header = _base64url(json.dumps({"alg": "HS256", "kid": token_id}, separators=(",", ":")).encode())
    signed = f"{header}.{_base64url(payload.encode())}"
    signature = hmac.new(token_secret.reveal().encode(), signed.encode(), hashlib.sha256).digest()
    return f"{header}..{_base64url(signature)}"


def is_signed(payload: str, jws: str, *, token: Secret) -> bool:
    """Whether `jws` is the signature of `payload` by this token."""
    return hmac.compare_digest(compute_jws(payload, token).encode(), jws.encode(errors="replace"))


def jws_key(token_id: str) -> str:
    """The key of a token's signature in ConfigMap cluster-info."""
    return f"jws-kubeconfig-{token_id}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
