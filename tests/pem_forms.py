"""Files as people's tools leave them where a certificate or a key belongs: one good pair, in every form that PEM is met in.

Owns the forms alone; what Go reads in each stands in tests/components/test_pem.py.
"""

from __future__ import annotations

import base64
import datetime
import re
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

_ENCODING = serialization.Encoding
_FORMAT = serialization.PrivateFormat
_PLAIN = serialization.NoEncryption()


def make_cert(key: Any, name: str = "one") -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1)
    return (
        x509.CertificateBuilder(subject, subject, key.public_key(), 5)
        .not_valid_before(start)
        .not_valid_after(start.replace(year=2120))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def render_key(key: Any, form: serialization.PrivateFormat = _FORMAT.TraditionalOpenSSL, lock: Any = _PLAIN) -> str:
    return str(key.private_bytes(_ENCODING.PEM, form, lock).decode())


def wrap(label: str, body: str, *, width: int = 64, end: str = "\n") -> str:
    """A block of base64 in lines of `width`."""
    lines = [body[at : at + width] for at in range(0, len(body), width)]
    return end.join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def make_forms() -> dict[str, bytes]:
    """By name; each new run makes a new pair."""
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    cert = make_cert(key)
    der = cert.public_bytes(_ENCODING.DER)
    one, two = (made.public_bytes(_ENCODING.PEM).decode() for made in (cert, make_cert(other, "two")))
    rsa_cert = make_cert(big).public_bytes(_ENCODING.PEM).decode()
    body = base64.b64encode(der).decode()
    sec1, pkcs8 = render_key(key), render_key(key, _FORMAT.PKCS8)
    parameters = wrap("EC PARAMETERS", "BggqhkjOPQMBBw==")
    locked = serialization.BestAvailableEncryption(b"secret")
    edwards = ed25519.Ed25519PrivateKey.generate()
    lines = one.splitlines(keepends=True)
    forms: dict[str, str | bytes] = {
        "plain": one,
        "CRLF": one.replace("\n", "\r\n"),
        "CR alone": one.replace("\n", "\r"),
        "no newline at the end": one.rstrip("\n"),
        "blanks after BEGIN": one.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----- \t"),
        "blanks after END": one.replace("END CERTIFICATE-----", "END CERTIFICATE-----  "),
        "blanks after each line": one.replace("\n", "  \n"),
        "blanks before each line of the body": "".join(
            f"  {line}" if not line.startswith("-") else line for line in lines
        ),
        "text after BEGIN": one.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----- x"),
        "text after END": one.replace("END CERTIFICATE-----", "END CERTIFICATE----- x"),
        "indented": "".join(f"    {line}" for line in lines),
        "BEGIN indented": one.replace("-----BEGIN", " -----BEGIN"),
        "END indented": one.replace("-----END", " -----END"),
        "all in one line": one.replace("\n", ""),
        "newlines written as \\n": one.replace("\n", "\\n"),
        "body in one line": wrap("CERTIFICATE", body, width=100_000),
        "lines of 76": wrap("CERTIFICATE", body, width=76),
        "lines of 7": wrap("CERTIFICATE", body, width=7),
        "a line broken": one.replace(lines[3], lines[3][:10] + "\n" + lines[3][10:]),
        "empty lines in the body": one.replace(lines[3], "\n" + lines[3] + "\n\n"),
        "a character missing": one.replace(lines[3], lines[3][:10] + lines[3][11:]),
        "a character that is no base64": one.replace(lines[3], "!" + lines[3][1:]),
        "url's base64": wrap("CERTIFICATE", base64.urlsafe_b64encode(der + b"\xff\xfe").decode()),
        "a form feed in the body": one.replace(lines[3], "\f" + lines[3]),
        "no padding": wrap(
            "CERTIFICATE", re.sub("=+$", "", base64.b64encode(der + b"\0" * (1 + -len(der) % 3)).decode())
        ),
        "a byte after the certificate": wrap("CERTIFICATE", base64.b64encode(der + b"\0").decode()),
        "two in one block": wrap("CERTIFICATE", base64.b64encode(der + der).decode()),
        "empty block": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "empty block, then a good one": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" + one,
        "text before": "subject=CN = one\nissuer=CN = one\n" + one,
        "text before, no newline": "here: " + one,
        "text between and after": one + "\nsome words\n\n" + two + "the end",
        "Bag Attributes": "Bag Attributes\n    localKeyID: 01 02\nsubject=/CN=one\n" + one,
        "headers inside": one.replace(lines[0], lines[0] + "Made-By: hand\nOn: a day\n\n"),
        "headers inside, no empty line": one.replace(lines[0], lines[0] + "Made-By: hand\n"),
        "only a header": "-----BEGIN CERTIFICATE-----\nMade-By: hand\n-----END CERTIFICATE-----\n",
        "mark of the byte order": "\ufeff" + one,
        "mark of the byte order, then a newline": "\ufeff\n" + one,
        "UTF-16": one.encode("utf-16"),
        "Latin-1 in the text before": "Aussteller: M\xfcller\n".encode("latin-1") + one.encode(),
        "NUL at the end": one + "\0",
        "DER": der,
        "base64 alone": base64.encodebytes(der),
        "base64 of PEM": base64.b64encode(one.encode()),
        "empty": "",
        "blanks": "  \n\n",
        "words": "put the certificate here\n",
        "BEGIN alone": lines[0],
        "no END": "".join(lines[:-1]),
        "no END, then a good one": "".join(lines[:-1]) + one,
        "no BEGIN, then a good one": "".join(lines[1:]) + one,
        "BEGIN twice": lines[0] + one,
        "END twice": one + lines[-1],
        "END of another label": one.replace("END CERTIFICATE", "END RSA PRIVATE KEY"),
        "END of another label, then a good one": one.replace("END CERTIFICATE", "END CERTIFICATES") + two,
        "small letters": one.replace("CERTIFICATE", "certificate"),
        "four dashes": one.replace("-----B", "----B").replace("-----E", "----E"),
        "four dashes at the end of BEGIN": one.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE----"),
        "six dashes": one.replace("-----", "------"),
        "long dashes": one.replace("-----", "\u2014\u2014\u2014\u2014\u2014"),
        "TRUSTED CERTIFICATE": one.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        "X509 CERTIFICATE": one.replace("CERTIFICATE", "X509 CERTIFICATE"),
        "CERTIFICATE REQUEST": one.replace("CERTIFICATE", "CERTIFICATE REQUEST"),
        "an empty label": one.replace(" CERTIFICATE", " "),
        "two": one + two,
        "doubled": one + one,
        "no newline between": one.rstrip("\n") + two,
        "a damaged one, then a good one": wrap("CERTIFICATE", "MAA=") + two,
        "a good one, then a damaged one": one + wrap("CERTIFICATE", "MAA="),
        "another block, then a good one": wrap("X509 CRL", "MAA=") + one,
        "certificate and key": one + sec1,
        "key and certificate": pkcs8 + one,
        "certificate and another's key": one + render_key(other),
        "SEC1": sec1,
        "PKCS#8": pkcs8,
        "EC PARAMETERS": parameters + sec1,
        "EC PARAMETERS after": sec1 + parameters,
        "PKCS#1": render_key(big),
        "PKCS#8 of RSA": render_key(big, _FORMAT.PKCS8),
        "certificate and key, RSA": rsa_cert + render_key(big),
        "PKCS#1 under the label of PKCS#8": render_key(big).replace("RSA PRIVATE", "PRIVATE"),
        "PKCS#8 under the label of PKCS#1": render_key(big, _FORMAT.PKCS8).replace("PRIVATE", "RSA PRIVATE"),
        "SEC1 under the label of PKCS#8": sec1.replace("EC PRIVATE", "PRIVATE"),
        "PKCS#8 under the label of SEC1": pkcs8.replace("PRIVATE", "EC PRIVATE"),
        "SEC1 under the label of PKCS#1": sec1.replace("EC PRIVATE", "RSA PRIVATE"),
        "ANY PRIVATE KEY": pkcs8.replace("PRIVATE", "ANY PRIVATE"),
        "locked PKCS#8": render_key(key, _FORMAT.PKCS8, locked),
        "locked SEC1": render_key(key, lock=locked),
        "locked, then an open one": render_key(key, _FORMAT.PKCS8, locked) + sec1,
        "OPENSSH PRIVATE KEY": render_key(key, _FORMAT.OpenSSH),
        "Ed25519": render_key(edwards, _FORMAT.PKCS8),
        "Ed25519, then another": render_key(edwards, _FORMAT.PKCS8) + sec1,
        "certificate and key, Ed25519": make_cert(edwards).public_bytes(_ENCODING.PEM).decode()
        + render_key(edwards, _FORMAT.PKCS8),
        "secp256k1": render_key(ec.generate_private_key(ec.SECP256K1()), _FORMAT.PKCS8),
        "secp224r1": render_key(ec.generate_private_key(ec.SECP224R1()), _FORMAT.PKCS8),
        "secp521r1": render_key(ec.generate_private_key(ec.SECP521R1())),
        "a damaged key, then a good one": wrap("EC PRIVATE KEY", "MAA=") + sec1,
        "two keys": sec1 + render_key(other),
        "key with CRLF": sec1.replace("\n", "\r\n"),
        "key, indented": "".join(f"  {line}\n" for line in sec1.splitlines()),
        "key with a header": sec1.replace("KEY-----\n", "KEY-----\nMade-By: hand\n\n", 1),
        "DER of a key": key.private_bytes(_ENCODING.DER, _FORMAT.PKCS8, _PLAIN),
        "public key": big.public_key().public_bytes(_ENCODING.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    return {name: form if isinstance(form, bytes) else form.encode() for name, form in forms.items()}
