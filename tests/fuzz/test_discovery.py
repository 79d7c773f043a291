"""What a server says before it has proven anything: any answer ends in a word, never in a bug."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import random
import ssl
from collections.abc import Mapping
from typing import Any

import pytest

from kubeup.cluster import api as kubeapi
from kubeup.cluster import clock, find_cluster, signing_request, tokens
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.errors import KbError
from kubeup.machine.http import HttpResponse, Tls
from kubeup.node import ca_pins, certificates, private_keys
from kubeup.node.kubeconfig import parse_kubeconfig
from kubeup.node.verify import find_fault
from kubeup.pem import Block, split_pem
from kubeup.secret import Secret
from tests.cert_forms import make_forms as make_cert_forms
from tests.fake_host import FakeHost
from tests.fuzz import ODD_TEXTS, alter_bytes, alter_value, cases

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
TOKEN = Secret("abcdef.0123456789abcdef")
SERVER = "https://10.0.0.11:6443"
CA = certificates.cert_to_pem(
    certificates.issue_ca_cert(
        "kubernetes", private_keys.generate_key("ECDSA-P256"), validity=certificates.plan_validity(NOW, 3600)
    )
)
KUBECONFIG = render_cluster_info(SERVER, CA)["data"]["kubeconfig"]
INFO: Mapping[str, Any] = {
    "kind": "ConfigMap",
    "data": {"kubeconfig": KUBECONFIG, tokens.jws_key("abcdef"): tokens.compute_jws(KUBECONFIG, TOKEN)},
}
DATES = (
    "Thu, 01 Jan 2026 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 -2300",
    "Mon, 01 Jan 0001 00:00:00 +2300",
    *ODD_TEXTS,
)


def discover(body: bytes, *, status: int, date: str, pins: tuple[str, ...]) -> None:
    answer = HttpResponse(status, body, {"date": date})
    host = FakeHost(urls={SERVER + find_cluster.CLUSTER_INFO: answer, f"{SERVER}/version": HttpResponse(200, body)})
    wanted = BootstrapTokenDiscovery(TOKEN, "10.0.0.11:6443", pins, unsafe_skip_ca_verification=not pins)
    with contextlib.suppress(KbError):
        find_cluster.discover_cluster(
            host, Discovery(wanted), timeouts=Timeouts(discovery_s=1), tell=lambda text: None, note=lambda text: None
        )


def test_cluster_info_may_hold_anything() -> None:
    pin = ca_pins.ca_cert_hashes(CA)
    for chance in cases("cluster-info", 300):
        value = alter_value(chance, INFO)
        body = json.dumps(value).encode(errors="surrogatepass")
        body = alter_bytes(chance, body) if chance.random() < 0.3 else body
        status = chance.choice((200, 200, 200, 401, 403, 404, 429, 500, 310))
        discover(body, status=status, date=chance.choice(DATES), pins=chance.choice((pin, ())))


def test_its_kubeconfig_and_its_certificates_may_be_damaged() -> None:
    for chance in cases("cluster-info's kubeconfig", 300):
        text = alter_bytes(chance, KUBECONFIG.encode()).decode(errors="replace")
        data = {"kubeconfig": text, tokens.jws_key("abcdef"): tokens.compute_jws(text, TOKEN)}
        body = json.dumps({"kind": "ConfigMap", "data": data}).encode()
        discover(body, status=200, date=DATES[0], pins=chance.choice((ca_pins.ca_cert_hashes(CA), ())))


@pytest.mark.parametrize("date", DATES)
def test_any_date_is_measured_or_left(date: str) -> None:
    assert isinstance(clock.measure_skew(HttpResponse(200, b"", {"date": date}), NOW), float)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" + "a, " * 400_000 + "]", "a: &a {b: *a}\n", "kind: Config\nclusters: 5\n"]
)
def test_a_kubeconfig_is_read_or_refused_at_once(text: str) -> None:
    with pytest.raises(KbError):
        parse_kubeconfig(text, source="x")


def test_a_kubeconfig_of_any_values() -> None:
    value = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": SERVER, "certificate-authority-data": "eA=="}}],
        "users": [{"name": "u", "user": {"token": "t", "client-key-data": "eA==", "tokenFile": "/x"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    for chance in cases("kubeconfig", 500):
        text = json.dumps(alter_value(chance, value))
        with contextlib.suppress(KbError):
            parse_kubeconfig(text, source="x")


def test_damaged_certificates_are_valueerrors() -> None:
    for chance in cases("certificates", 500):
        der = ssl.PEM_cert_to_DER_cert(CA)
        text = (
            alter_bytes(chance, CA.encode()).decode(errors="replace")
            if chance.random() < 0.5
            else _pem(_flip(chance, der))
        )
        with contextlib.suppress(ValueError):
            ca_pins.ca_cert_hashes(text)


def _flip(chance: random.Random, der: bytes) -> bytes:
    found = bytearray(der)
    for _ in range(chance.choice((1, 2, 5))):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found)


def _pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


@pytest.mark.filterwarnings("ignore")
def test_certificates_with_altered_bytes_are_judged_or_refused() -> None:
    """Each of the forms that authorities make, damaged: unknown keys and curves, versions, dates, names, limits."""
    ders = [
        block.content for form in make_cert_forms().values() for block in split_pem((form.chain + form.pool).decode())
    ]
    good = certificates.parse_certs(CA)
    read = 0
    for chance in cases("altered certificates", 3000):
        pem = Block("CERTIFICATE", _flip(chance, chance.choice(ders)), {}).text
        try:
            certs = certificates.parse_certs(pem)
        except ValueError:
            continue
        read += 1
        with contextlib.suppress(ValueError):  # a key that kb does not know has no pin
            ca_pins.ca_cert_hashes(pem)
        for chain, pool in ((certs, good), (good, certs), (certs, certs)):
            fault = find_fault(chain, pool, usage="server", now=NOW)
            assert fault is None or fault.text
        certificates.subject_of(certs[0])
        certificates.sans_of(certs[0])
        assert isinstance(certificates.describe_pair(pem, pem, NOW), str)
    assert read > 300


@pytest.mark.filterwarnings("ignore")
def test_requests_with_altered_bytes_are_somebodys_or_nobodys() -> None:
    text = certificates.render_request(certificates.Subject("system:node:w1"), private_keys.generate_key("ECDSA-P256"))
    (block,) = split_pem(text)
    for chance in cases("altered requests", 1000):
        pem = Block(block.label, _flip(chance, block.content), {}).text
        shown = {"metadata": {"name": "x"}, "spec": {"request": base64.b64encode(pem.encode()).decode()}}
        odd: Mapping[str, Any] = chance.choice(({"spec": None}, {"spec": []}, {"spec": {"request": 5}}, {}, shown))
        api = kubeapi.Api(csr_host({**shown, **odd}), kubeapi.Identity(SERVER, Tls()), retry_s=0)
        with contextlib.suppress(KbError):
            assert signing_request.read_signing_request(api, "w1").state in ("not-sent", "pending")


def csr_host(request: Mapping[str, Any]) -> FakeHost:
    path = f"{SERVER}/apis/certificates.k8s.io/v1/certificatesigningrequests"
    body = json.dumps({"kind": "List", "apiVersion": "v1", "items": [request]}).encode()
    query = "?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkube-apiserver-client-kubelet"
    return FakeHost(urls={path: HttpResponse(200, body), path + query: HttpResponse(200, body)})
