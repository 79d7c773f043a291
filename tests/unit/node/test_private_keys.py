"""kubeup/node/private_keys.py: keys of every form, and those that Kubernetes cannot read."""

from __future__ import annotations

import subprocess
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kubeup.errors import UsageError
from kubeup.node import certificates, private_keys
from tests.unit.node.pki_case import NOW, YEAR, new_ca


def test_rsa_keys() -> None:
    for bits in (2048, 3072):
        key = private_keys.generate_key(f"RSA-{bits}")
        assert isinstance(key, rsa.RSAPrivateKey)
        assert (key.key_size, key.public_key().public_numbers().e) == (bits, 65537)
    text = private_keys.key_to_pem(key).reveal()
    assert text.startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert private_keys.parse_key(text).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(("algorithm", "curve"), [("ECDSA-P256", "secp256r1"), ("ECDSA-P384", "secp384r1")])
def test_ec_keys(algorithm: str, curve: str) -> None:
    key = private_keys.generate_key(algorithm)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == curve
    text = private_keys.key_to_pem(key).reveal()
    assert text.startswith("-----BEGIN EC PRIVATE KEY-----\n")
    assert text.count("BEGIN") == 1
    assert private_keys.public_key_to_pem(key).startswith("-----BEGIN PUBLIC KEY-----\n")


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        private_keys.generate_key("RSA-1024")
    assert caught.value.code == "unknown-encryption-algorithm"
    assert "RSA-1024" in caught.value.what


def test_reads_every_form_of_private_key() -> None:
    key = private_keys.generate_key("ECDSA-P256")
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    for text in (pkcs8, private_keys.key_to_pem(key).reveal(), parameters + private_keys.key_to_pem(key).reveal()):
        assert private_keys.parse_key(text).private_numbers() == key.private_numbers()


def test_private_keys_that_cannot_be_used_say_why_and_show_nothing() -> None:
    key = private_keys.generate_key("ECDSA-P256")
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    ).decode()
    other = ed25519.Ed25519PrivateKey.generate()
    other_pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    damaged = private_keys.key_to_pem(key).reveal().replace("\n", "\nAAAA", 1)
    for text, reason in (
        (encrypted, "encrypted with a password"),
        (other_pem, "neither RSA nor ECDSA"),
        (damaged, "damaged"),
        ("hello", "nothing in PEM form"),
        (certificates.cert_to_pem(new_ca().cert), "no private key, but CERTIFICATE"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            private_keys.parse_key(text)
        assert "AAAA" not in str(caught.value)


def test_a_private_key_with_a_flipped_bit_is_not_the_certificates() -> None:
    key = private_keys.generate_key("RSA-2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    cert = certificates.issue_ca_cert("kubernetes", key, validity=certificates.plan_validity(NOW, YEAR))
    assert private_keys.is_key_of(key, cert)
    numbers = key.private_numbers()
    broken = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d ^ 4, numbers.dmp1 ^ 4, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert not private_keys.is_key_of(broken, cert)


def test_key_maker_makes_what_is_wanted_and_more_on_demand() -> None:
    maker = private_keys.KeyMaker("RSA-2048", wanted=2)
    keys = [maker.take() for _ in range(3)]
    assert len({key.private_numbers().public_numbers.n for key in keys}) == 3  # type: ignore[union-attr]
    assert all(isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048 for key in keys)


def test_key_maker_starts_no_thread_for_elliptic_curves() -> None:
    before = set(threading.enumerate())
    key = private_keys.KeyMaker("ECDSA-P384", wanted=16).take()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ecparam", "-genkey", "-noout", "-name", "secp256k1"), "secp256k1"),
        (("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"), "RSA-PSS"),
        (("genpkey", "-algorithm", "ed448"), "neither RSA nor ECDSA"),
    ],
)
def test_keys_that_go_cannot_read_are_refused_by_name(words: tuple[str, ...], told: str) -> None:
    made = subprocess.run(["openssl", *words], capture_output=True, text=True, check=True).stdout
    with pytest.raises(ValueError, match=told):
        private_keys.parse_key(made)
