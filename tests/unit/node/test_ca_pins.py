"""kubeup/node/ca_pins.py: the pin of a CA's public key, found without cryptography."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from kubeup.config import pins
from kubeup.errors import UsageError
from kubeup.node import ca_pins, certificates, private_keys
from kubeup.pem import Block, split_pem
from kubeup.trust import Offered
from tests.unit.node.pki_case import NOW, YEAR, new_ca

REPO = Path(__file__).resolve().parents[3]
TRUNCATED = """-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBBzAKBggqhkjOPQQDAjANMQswCQYDVQQDDAJrYjAeFw0y
-----END CERTIFICATE-----
"""


def make_ca(algorithm: str = "ECDSA-P256") -> str:
    key = private_keys.generate_key(algorithm)
    return certificates.cert_to_pem(
        certificates.issue_ca_cert("kubernetes", key, validity=certificates.plan_validity(NOW, YEAR))
    )


def der_of(pem: str) -> bytes:
    (block,) = split_pem(pem)
    return block.content


def pem_of(der: bytes) -> str:
    return Block("CERTIFICATE", der, {}).text


def test_pins_are_of_the_public_key() -> None:
    one, two = new_ca(), new_ca()
    assert one.key is not None
    renewed = certificates.issue_ca_cert("kubernetes", one.key, validity=certificates.plan_validity(NOW, 20 * YEAR))
    pin = ca_pins.ca_cert_hash(certificates.cert_to_pem(one.cert))
    assert pins.parse_ca_cert_hash(pin) == pin
    assert len(pin) == len("sha256:") + 64
    assert ca_pins.ca_cert_hash(certificates.cert_to_pem(renewed)) == pin
    bundle = certificates.cert_to_pem(one.cert) + certificates.cert_to_pem(two.cert)
    assert ca_pins.ca_cert_hashes(bundle) == (pin, ca_pins.ca_cert_hash(certificates.cert_to_pem(two.cert)))
    with pytest.raises(ValueError, match="damaged"):
        ca_pins.ca_cert_hash(TRUNCATED)


@pytest.mark.parametrize("algorithm", ["RSA-2048", "RSA-4096", "ECDSA-P256", "ECDSA-P384"])
def test_the_public_key_is_the_one_that_cryptography_reads(algorithm: str) -> None:
    pem = make_ca(algorithm)
    (cert,) = certificates.parse_certs(pem)
    assert ca_pins.read_public_key(der_of(pem)) == private_keys.spki(cert.public_key())


def test_only_the_pinned_certificates_are_kept_and_each_once() -> None:
    one, two = make_ca(), make_ca()
    kept = ca_pins.keep_pinned(Offered(two + one + one), [ca_pins.ca_cert_hash(one).upper().replace("SHA", "sha")])
    assert kept is not None and kept.pem == one
    assert ca_pins.keep_pinned(Offered(two), [ca_pins.ca_cert_hash(one)]) is None
    with pytest.raises(ValueError, match="nothing in PEM form"):
        ca_pins.keep_pinned(Offered("nothing"), [])


def test_a_certificate_that_is_cut_off_or_goes_on_is_damaged() -> None:
    der = der_of(make_ca())
    for damaged in (*(der[:length] for length in range(len(der))), der + b"\0", b"\x30\x80" + der[4:] + b"\0\0"):
        with pytest.raises(ValueError, match="field"):
            ca_pins.read_public_key(damaged)


def test_a_length_has_one_form_only() -> None:
    """BER has many forms of a length; a reader that took another one for the same certificate would hash other bytes."""
    der = der_of(make_ca())
    assert der[:2] == b"\x30\x82", "the length of the whole in two bytes"
    ca_pins.read_public_key(der)
    with pytest.raises(ValueError, match="DER"):
        ca_pins.read_public_key(b"\x30\x83\x00" + der[2:])
    with pytest.raises(ValueError, match="DER"):
        ca_pins.read_public_key(b"\x30\x85" + b"\0" * 3 + der[2:])


def test_what_both_read_has_one_public_key() -> None:
    """Every byte of a certificate altered in turn: what cryptography still reads has the same public key here, or is refused here."""
    der, read = der_of(make_ca()), 0
    for at in range(len(der)):
        for value in {0, 0x30, 0x80, 0xFF, der[at] ^ 1, der[at] ^ 0x20} - {der[at]}:
            altered = der[:at] + bytes((value,)) + der[at + 1 :]
            try:
                key = ca_pins.read_public_key(altered)
                (cert,) = certificates.parse_certs(pem_of(altered))
                other = private_keys.spki(cert.public_key())
            except (ValueError, UnsupportedAlgorithm):
                continue
            read += 1
            assert key == other, (at, value)
    assert read > 200


def test_pins_are_read_in_any_case() -> None:
    assert pins.parse_ca_cert_hash("SHA256:" + "AB" * 32) == "sha256:" + "ab" * 32


@pytest.mark.parametrize("text", ["", "sha256", "sha256:ab", "md5:" + "a" * 64, "sha256:" + "g" * 64, "a" * 64])
def test_bad_pins_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        pins.parse_ca_cert_hash(text)
    assert caught.value.code == "bad-ca-cert-hash"


DISCOVERY = """
import sys

sys.modules["cryptography"] = None
from kubeup.cluster import find_cluster, membership, tokens
from kubeup.cluster.objects import render_cluster_info
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.machine.http import HttpResponse
from kubeup.node import ca_pins
from kubeup.secret import Secret
from tests.fake_host import FakeHost
import json
import pathlib

token, ca = Secret("abcdef.0123456789abcdef"), sys.stdin.read()
text = render_cluster_info("https://10.0.0.11:6443", ca)["data"]["kubeconfig"]
data = {"kubeconfig": text, tokens.jws_key("abcdef"): tokens.compute_jws(text, token)}
body = json.dumps({"kind": "ConfigMap", "data": data}).encode()
urls = {"https://10.0.0.11:6443" + find_cluster.CLUSTER_INFO: HttpResponse(200, body), "https://10.0.0.11:6443/version": HttpResponse(200, b"{}")}
conf = pathlib.Path("/etc/kubernetes/kubelet.conf")
host = FakeHost(urls=urls, files={str(conf): membership.render_kubeconfig(
    server="https://10.0.0.11:6443", ca_pem=ca, user="u", cluster_name="c", client_cert_pem=ca, client_key_pem=Secret(sys.argv[1])).encode()})
wanted = Discovery(BootstrapTokenDiscovery(token, "10.0.0.11:6443", ca_pins.ca_cert_hashes(ca)))
found = find_cluster.discover_cluster(host, wanted, timeouts=Timeouts(), tell=print, note=print)
assert found.ca_pem == ca
own = membership.read_member_access(host, conf)
assert own is not None and membership.is_accepted(host, own)
"""


def test_a_worker_finds_its_cluster_without_cryptography() -> None:
    key = private_keys.key_to_pem(private_keys.generate_key("ECDSA-P256")).reveal()
    done = subprocess.run(
        [sys.executable, "-c", DISCOVERY, key], input=make_ca(), text=True, capture_output=True, cwd=REPO, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
