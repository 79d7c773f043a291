"""kubeup/cluster/tokens.py: bootstrap tokens, their Secrets, and the signatures of cluster-info."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import pytest

from kubeup.cluster import tokens
from kubeup.config import token_text
from kubeup.config.types import BootstrapToken
from kubeup.errors import UsageError
from kubeup.secret import Secret

NOW = datetime.datetime(2026, 11, 23, 17, 14, 4, 500000, tzinfo=datetime.timezone.utc)
TOKEN = Secret("abcdef.0123456789abcdef")


def texts(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def test_generated_tokens_are_tokens_and_differ() -> None:
    made = {token_text.generate_token().reveal() for _ in range(50)}
    assert len(made) == 50
    assert all(token_text.is_token(token) for token in made)
    assert set("".join(made)) - set("abcdefghijklmnopqrstuvwxyz0123456789.") == set()


def test_a_token_has_two_parts() -> None:
    assert token_text.parse_token(TOKEN) == ("abcdef", Secret("0123456789abcdef"))


@pytest.mark.parametrize(
    "text", ["", "zyxwvu", "ZYXWVU.9876543210zyxwvu", "zyxwvu.9876543210zyxwv", "zyxwvu.9876543210zyxwvu\n"]
)
def test_bad_tokens_are_refused_and_not_repeated(text: str) -> None:
    assert not token_text.is_token(text)
    with pytest.raises(UsageError) as caught:
        token_text.parse_token(Secret(text))
    assert caught.value.code == "bad-token"
    assert f"this one has {len(text)} characters" in caught.value.cause
    assert "9876543210" not in str(caught.value.as_dict())


def test_secret_of_a_default_token() -> None:
    secret = tokens.render_token_secret(BootstrapToken(TOKEN), NOW)
    assert {key: value for key, value in secret.items() if key != "data"} == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
    }
    assert texts(secret) == {
        "token-id": "abcdef",
        "token-secret": "0123456789abcdef",
        "expiration": "2026-11-24T17:14:04Z",
        "usage-bootstrap-signing": "true",
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
    }


def test_secret_of_a_token_that_does_nothing_and_never_expires() -> None:
    token = BootstrapToken(TOKEN, description="why", ttl_s=None, usages=(), groups=())
    assert texts(tokens.render_token_secret(token, NOW)) == {
        "token-id": "abcdef",
        "token-secret": "0123456789abcdef",
        "description": "why",
    }


@pytest.mark.parametrize(
    ("ttl_s", "expires", "expected"),
    [
        (0, None, ""),
        (60, None, "2026-11-23T17:15:04Z"),
        (60, "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        (None, "2027-01-01T02:00:00.123456789+02:00", "2027-01-01T00:00:00Z"),
    ],
)
def test_expiration(ttl_s: Any, expires: Any, expected: str) -> None:
    assert tokens.plan_expiration(BootstrapToken(TOKEN, ttl_s=ttl_s, expires=expires), NOW) == expected


@pytest.mark.parametrize("expires", ["tomorrow", "2027-13-01T00:00:00Z", "2027-01-01", "2027-01-01T00:00:00"])
def test_bad_expiry_is_refused(expires: str) -> None:
    with pytest.raises(UsageError) as caught:
        tokens.plan_expiration(BootstrapToken(TOKEN, expires=expires), NOW)
    assert (caught.value.code, caught.value.what) == ("bad-token-expiry", f"the token's expiry {expires!r}")


def test_a_secret_is_read_back() -> None:
    token = BootstrapToken(TOKEN, description="d", usages=("authentication",), groups=("system:bootstrappers:a", "b"))
    found = tokens.parse_token_secret(tokens.render_token_secret(token, NOW))
    assert found == BootstrapToken(
        TOKEN,
        description="d",
        ttl_s=None,
        expires="2026-11-24T17:14:04Z",
        usages=("authentication",),
        groups=("system:bootstrappers:a", "b"),
    )
    assert not tokens.is_expired(found, NOW)
    end = NOW.replace(microsecond=0) + datetime.timedelta(days=1)
    assert [tokens.is_expired(found, end + datetime.timedelta(seconds=late)) for late in (-1, 0, 1)] == [
        False,
        True,
        True,
    ]


def test_what_is_no_token_secret_is_none() -> None:
    good = tokens.render_token_secret(BootstrapToken(TOKEN), NOW)
    assert tokens.parse_token_secret({}) is None
    assert tokens.parse_token_secret({**good, "metadata": {"name": "bootstrap-token-other1"}}) is None
    assert tokens.parse_token_secret({**good, "data": {**good["data"], "token-secret": "!"}}) is None


def test_expiry_that_cannot_be_read_is_past_and_none_is_never() -> None:
    assert tokens.is_expired(BootstrapToken(TOKEN, expires="soon"), NOW)
    assert not tokens.is_expired(BootstrapToken(TOKEN, expires=None), NOW)


def test_jws_header_is_the_controllers_to_the_byte() -> None:
    """The header that a real controller-manager wrote for the token id ohy70v."""
    jws = tokens.compute_jws("payload", Secret("ohy70v.0123456789abcdef"))
    assert jws.split("..")[0] == "eyJhbGciOiJIUzI1NiIsImtpZCI6Im9oeTcwdiJ9"


def test_jws_by_openssl() -> None:
    """printf 'eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.aGVsbG8' | openssl dgst -sha256 -hmac 0123456789abcdef -binary |
    base64 | tr '+/' '-_' | tr -d ="""
    assert tokens.compute_jws("hello", TOKEN) == (
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..MxsnbCjBaYzcbNIFa06F-wuF9LX26rhMlrL4zA1511s"
    )


def test_jws_is_verified() -> None:
    jws = tokens.compute_jws("hello", TOKEN)
    assert tokens.is_signed("hello", jws, token=TOKEN)
    assert not tokens.is_signed("hello ", jws, token=TOKEN)
    assert not tokens.is_signed("hello", jws, token=Secret("abcdef.0123456789abcdeg"))
    assert not tokens.is_signed("hello", jws[:-1], token=TOKEN)
    assert not tokens.is_signed("hello", "é", token=TOKEN)
    assert tokens.jws_key("abcdef") == "jws-kubeconfig-abcdef"
