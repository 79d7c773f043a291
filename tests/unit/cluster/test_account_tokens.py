"""Tokens of service accounts: signed again with another key as a verifier reads it, and who may still hold one of the former key."""

from __future__ import annotations

import base64
import datetime
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kubeup.cluster import account_tokens
from kubeup.cluster.api import Api, Identity
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls
from kubeup.node import private_keys
from kubeup.secret import Secret
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
SERVER = "https://10.0.0.11:6443"


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("algorithm", ["RSA-2048", "ECDSA-P256", "ECDSA-P384"])
def test_a_token_is_signed_again_as_a_verifier_reads_it(algorithm: str) -> None:
    key = private_keys.generate_key(algorithm)
    made = account_tokens.sign_again(Secret("e30.eyJhIjoxfQ.x"), key).reveal()
    head, claims, signature = made.split(".")
    told = json.loads(decode(head))
    assert claims == "eyJhIjoxfQ" and told["kid"] == account_tokens.kid_of_key(key) == account_tokens.kid_of_token(
        Secret(made)
    )
    signed, data = decode(signature), f"{head}.{claims}".encode()
    public: Any = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        assert told["alg"] == "RS256"
        public.verify(signed, data, padding.PKCS1v15(), hashes.SHA256())
        return
    size = len(signed) // 2
    assert told["alg"] == f"ES{8 * size}"
    pair = encode_dss_signature(int.from_bytes(signed[:size], "big"), int.from_bytes(signed[size:], "big"))
    public.verify(pair, data, ec.ECDSA(hashes.SHA256() if size == 32 else hashes.SHA384()))


@pytest.mark.parametrize("text", ["", "x", "e30", "#.#.#", "e30.e30.x", "W10.e30.x"])
def test_what_is_no_token_has_no_kid(text: str) -> None:
    assert account_tokens.kid_of_token(Secret(text)) == ""


def api_with(pods: list[Any], **more: HttpResponse) -> Api:
    host = FakeHost()
    found = {"kind": "List", "items": pods}
    host.urls = {f"{SERVER}/api/v1/pods": HttpResponse(200, json.dumps(found).encode()), **more}
    return Api(host, Identity(SERVER, Tls()), retry_s=0)


def pod(made: str, *lives: int, phase: str = "Running") -> Any:
    sources = [{"serviceAccountToken": {"expirationSeconds": life}} for life in lives]
    return {
        "metadata": {"name": "web", "namespace": "app", "creationTimestamp": made},
        "spec": {"volumes": [{"name": "t", "projected": {"sources": sources}}]},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("pods", "since_h", "holds"),
    [
        (pod("2026-01-01T00:00:00Z", 3607), 0.5, True),
        (pod("2026-01-01T00:00:00Z", 3607), 1.0, False),
        (pod("2026-01-01T00:00:00Z", 3607, 86400), 1.0, True),
        (pod("2026-01-01T00:00:00Z", 10 * 86400), 23.0, True),
        (pod("2026-01-01T00:00:00Z", 10 * 86400), 24.5, False),
        (pod("2026-01-01T23:59:00Z", 3607), 0.5, False),
        (pod("2026-01-01T00:00:00Z"), 0.5, False),
        (pod("2026-01-01T00:00:00Z", 3607, phase="Succeeded"), 0.5, False),
    ],
)
def test_who_may_hold_a_former_token(pods: Any, since_h: float, holds: bool) -> None:
    since = NOW - datetime.timedelta(hours=since_h)
    found = account_tokens.find_holders(api_with([pods]), since=since, now=NOW)
    assert [one.pod for one in found] == ["app/web"] * holds


@pytest.mark.parametrize(
    "body", [b'{"kind": "Status", "status": "Failure", "message": "starting"}', b"[]", b"", b'{"status": {}}']
)
def test_a_server_that_gives_out_no_token_says_why(body: bytes) -> None:
    url = f"{SERVER}{account_tokens.ACCOUNT}/token"
    with pytest.raises(ClusterError, match="gives out no token"):
        account_tokens.request_token(api_with([], **{url: HttpResponse(500, body)}))


def test_stale_tokens_are_counted() -> None:
    text = b"# HELP serviceaccount_stale_tokens_total\nserviceaccount_stale_tokens_total 3\nserviceaccount_valid_tokens_total 9\n"
    assert account_tokens.count_stale(api_with([], **{f"{SERVER}/metrics": HttpResponse(200, text)})) == 3
    assert account_tokens.count_stale(api_with([], **{f"{SERVER}/metrics": HttpResponse(403)})) == 0
