"""The text of a bootstrap token: `id.secret`.

Mirrors cmd/kubeadm/app/apis/bootstraptoken/v1/utils.go and staging/src/k8s.io/cluster-bootstrap/token/util.
"""

from __future__ import annotations

import re
import secrets

from kubeup.errors import UsageError
from kubeup.secret import Secret

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_TOKEN_ID = re.compile(r"[a-z0-9]{6}")


def generate_token() -> Secret:
    """A new token, `id.secret`: 6 and 16 characters from a to z and 0 to 9."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(22))
    return Secret(f"{letters[:6]}.{letters[6:]}")


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def is_token_id(text: str) -> bool:
    return _TOKEN_ID.fullmatch(text) is not None


def parse_token(token: Secret) -> tuple[str, Secret]:
    """The id and the secret of a token. Raises UsageError (bad-token), which does not repeat the token."""
    match = _TOKEN.fullmatch(token.reveal())
    if match is None:
        raise UsageError(
            "the bootstrap token",
            cause="a token is 6 and 16 lower-case letters or digits with a dot between (abcdef.0123456789abcdef); "
            f"this one has {len(token.reveal())} characters",
            remedy="make one: kb token generate",
            code="bad-token",
        )
    return match[1], Secret(match[2])
