"""kubeup/cluster/find_cluster.py: trust in both directions, and every error by its cause."""

from __future__ import annotations

from typing import Any, Optional, Union

import pytest

from kubeup.cluster import clock, find_cluster, membership
from kubeup.config.types import Discovery
from kubeup.errors import KbError
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.node.kubeconfig import render_kubeconfig
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.unit.cluster.discovery_case import (
    CA,
    DATE,
    ENDPOINT,
    NOW,
    PIN,
    SERVER,
    TIMEOUTS,
    TOKEN,
    ClusterHost,
    cluster_host,
    discover,
    make_ca,
    unreachable,
    wanted,
)


def fails(host: FakeHost, what: Optional[Discovery] = None) -> KbError:
    with pytest.raises(KbError) as caught:
        discover(host, what)
    assert TOKEN.reveal() not in str(caught.value.as_dict())
    return caught.value


# ---- by token


def test_the_server_and_the_ca_are_the_cluster_s_word() -> None:
    host = cluster_host(TOKEN)
    access = discover(host)
    assert (access.server, access.ca_pem.strip(), access.token) == (SERVER, CA.strip(), TOKEN)
    assert host.sent_tokens == [] and access.has_signed
    text = access.render_bootstrap_kubeconfig("prod").reveal()
    assert "current-context: tls-bootstrap-token-user@kubernetes" in text
    assert f"token: {TOKEN.reveal()}" in text and "name: prod" in text


def test_a_token_of_its_own_for_the_bootstrap() -> None:
    access = discover(cluster_host(TOKEN), wanted(tls="bbbbbb.0123456789abcdef"))
    assert access.token == Secret("bbbbbb.0123456789abcdef")


def test_any_pin_of_any_certificate_will_do_in_any_case() -> None:
    both = make_ca("old") + CA
    assert discover(cluster_host(TOKEN, ca=both), wanted(("sha256:" + "0" * 64, PIN.upper().replace("SHA", "sha"))))


def test_another_ca_is_told_with_both_pins() -> None:
    other = "sha256:" + "0" * 64
    error = fails(cluster_host(TOKEN), wanted((other,)))
    assert error.code == "ca-hash-mismatch" and PIN in error.cause and other in error.cause


def test_without_pins_the_signature_alone_counts_and_no_token_is_sent() -> None:
    host = cluster_host(Secret("bbbbbb.0123456789abcdef"))
    assert fails(host, wanted(())).code == "token-unknown"
    assert host.sent_tokens == []


def test_an_unknown_token_is_told_from_a_signer_that_is_down() -> None:
    unknown = cluster_host(good_tokens=set())
    assert fails(unknown).code == "token-unknown"
    unsigned = cluster_host()
    error = fails(unsigned)
    assert error.code == "cluster-info-unsigned" and "kube-controller-manager" in error.remedy
    assert unsigned.ticks >= TIMEOUTS.discovery_s - 2 * find_cluster.RETRY_S
    assert unknown.ticks < find_cluster.SETTLE_S
    assert set(unknown.sent_tokens + unsigned.sent_tokens) == {True}


def test_a_signature_that_comes_late_is_waited_for() -> None:
    host, notes = cluster_host(), []  # type: ClusterHost, list[str]
    signed = cluster_host(TOKEN).data
    rest = host.sleep

    def sleep(seconds: float) -> None:
        rest(seconds)
        if host.ticks > 10:
            host.data = signed

    host.sleep = sleep  # type: ignore[method-assign]
    assert discover(host, notes=notes).server == SERVER
    assert len(notes) == 1 and "kb keeps trying" in notes[0]


def test_a_wrong_secret() -> None:
    error = fails(cluster_host(Secret("abcdef.ffffffffffffffff")))
    assert error.code == "token-secret-wrong" and "abcdef" in error.what


def test_cluster_info_that_changes_between_two_looks_is_not_believed() -> None:
    assert fails(cluster_host(TOKEN, proven_data={"kubeconfig": "x"})).code == "cluster-info-changed"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (unreachable("refused", "refused"), "endpoint-refused"),
        (unreachable("timeout", "timed out"), "endpoint-unreachable"),
        (unreachable("other", "No route to host"), "endpoint-unreachable"),
        (unreachable("dns", "Name or service not known"), "endpoint-unknown-name"),
        (unreachable("tls", "wrong version number"), "not-an-api-server"),
        (HttpResponse(404, b"404 page not found"), "not-an-api-server"),
        (HttpResponse(200, b"<html>"), "not-an-api-server"),
        (HttpResponse(503, b'{"kind": "Status", "message": "starting"}'), "api-server-not-ready"),
        (HttpResponse(404, b'{"kind": "Status"}'), "cluster-info-missing"),
        (HttpResponse(401, b'{"kind": "Status"}'), "cluster-info-forbidden"),
        (HttpResponse(200, b'{"kind": "ConfigMap"}'), "cluster-info-invalid"),
    ],
)
def test_an_endpoint_that_is_none(trouble: Union[Unreachable, HttpResponse], code: str) -> None:
    assert fails(cluster_host(TOKEN, trouble={"unproven": trouble})).code == code


@pytest.mark.parametrize(
    ("text", "date", "code", "hint"),
    [
        ("certificate is not yet valid", "Thu, 01 Jan 2026 03:05:00 GMT", "clock-skew", "3 h 5 min behind"),
        ("certificate has expired", "Wed, 31 Dec 2025 23:50:00 GMT", "clock-skew", "10 min ahead of"),
        ("certificate has expired", DATE, "server-not-trusted", "cannot prove"),
        (
            "IP address mismatch, certificate is not valid for '10.0.0.11'",
            DATE,
            "endpoint-not-in-certificate",
            ENDPOINT,
        ),
        ("unable to get local issuer certificate", DATE, "server-not-trusted", ENDPOINT),
    ],
)
def test_a_connection_that_does_not_prove_the_cluster(text: str, date: str, code: str, hint: str) -> None:
    error = fails(cluster_host(TOKEN, date=date, trouble={"proven": unreachable("tls", text)}))
    assert error.code == code and hint in error.what


def test_the_clock_is_measured() -> None:
    assert discover(cluster_host(TOKEN, date="Thu, 01 Jan 2026 03:05:00 GMT")).skew_s == 3 * 3600 + 300
    assert discover(cluster_host(TOKEN, date="")).skew_s == 0
    assert clock.describe_skew(59.0) == "59 s behind the API server's"
    assert "date -u -s '2026-01-01 03:05:00'" in clock.skew_remedy(11100, NOW)


# ---- by file


def file_host(token: str = "", *, ca: str = CA, server: str = SERVER, **fields: Any) -> ClusterHost:
    text = render_kubeconfig(server=server, ca_pem=ca, user="jane", token=Secret(token or "none"))
    if not token:
        text = text.replace("token: none", "extensions: []")
    host = cluster_host(TOKEN, **fields)
    host.files["/root/found.conf"] = text.encode()
    return host


def test_a_file_brings_its_own_credentials_or_a_token_beside_it() -> None:
    host = file_host("bearer", good_tokens={"bearer"})
    access = discover(host, Discovery(file="/root/found.conf"))
    assert (access.server, access.token, access.user) == (SERVER, Secret("bearer"), "jane")
    access = discover(file_host(), Discovery(file="/root/found.conf", tls_bootstrap_token=TOKEN))
    assert (access.token, access.user) == (TOKEN, membership.TOKEN_USER)


def test_a_file_without_credentials_is_refused() -> None:
    assert fails(file_host(), Discovery(file="/root/found.conf")).code == "discovery-no-credentials"


def test_a_file_whose_server_is_another_is_said_and_taken() -> None:
    host = file_host(server="https://10.0.0.11:6443")
    access = discover(host, Discovery(file="/root/found.conf", tls_bootstrap_token=TOKEN))
    assert access.server == "https://10.0.0.11:6443" and SERVER in access.notes[0]


def test_who_may_not_see_cluster_info_needs_it_not() -> None:
    host = file_host("bearer", good_tokens=set())
    assert discover(host, Discovery(file="/root/found.conf")).ca_pem.strip() == CA.strip()


def test_a_missing_file_is_named() -> None:
    assert "/root/none.conf" in fails(cluster_host(), Discovery(file="/root/none.conf")).what
