"""What kb believes beside what Go believes: authorities and certificates, sound and unsound.

Source of GO: a program of a few lines, with Go 1.27 and GODEBUG as of Kubernetes 1.35 (go1.25), that gives each form to
x509.Certificate.Verify. The words are Go's own reason, "" where it believes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509

from kubeup.node import certificates
from kubeup.node.verify import find_fault
from kubeup.pem import split_pem
from tests import cert_forms
from tests.cert_forms import NOW, Form
from tests.make_docs import REPO

pytestmark = [pytest.mark.component, pytest.mark.filterwarnings("ignore")]

# fmt: off
GO = {
    "good": "",
    "good client": "",
    "another authority": "ECDSA verification failure",
    "another name of the authority": "certificate signed by unknown authority",
    "name in another type of text": "certificate signed by unknown authority",
    "second of two": "",
    "authority that may not sign": "invalid signature: parent certificate cannot sign this kind of certificate",
    "authority without key usage": "",
    "CA:FALSE": "invalid signature: parent certificate cannot sign this kind of certificate",
    "no basic constraints": "invalid signature: parent certificate cannot sign this kind of certificate",
    "path length 0": "",
    "intermediate": "",
    "intermediate missing": "certificate signed by unknown authority",
    "intermediate alone as authority": "",
    "intermediate not CA": "invalid signature: parent certificate cannot sign this kind of certificate",
    "intermediate that may not sign": "invalid signature: parent certificate cannot sign this kind of certificate",
    "intermediate and stranger": "",
    "path length 0 and intermediate": "too many intermediates for path length constraint",
    "path length 1 and intermediate": "",
    "expired": "certificate has expired or is not yet valid",
    "not yet": "certificate has expired or is not yet valid",
    "authority expired": "certificate has expired or is not yet valid",
    "authority not yet": "certificate has expired or is not yet valid",
    "outlives its authority": "",
    "older than its authority": "",
    "year 9999": "",
    "for clients, as server": "certificate specifies an incompatible key usage",
    "for servers, as client": "certificate specifies an incompatible key usage",
    "for nothing said": "",
    "for anything": "",
    "for an unknown purpose": "certificate specifies an incompatible key usage",
    "for servers and an unknown purpose": "",
    "authority for servers": "",
    "authority for servers, as client": "certificate specifies an incompatible key usage",
    "authority for code": "certificate specifies an incompatible key usage",
    "authority for anything": "",
    "intermediate for clients": "certificate specifies an incompatible key usage",
    "no digital signature": "",
    "itself an authority": "",
    "signed by itself and trusted": "",
    "signed by itself": "certificate signed by unknown authority",
    "DNS permitted elsewhere": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cp1\" is not permitted by any constraint",
    "DNS permitted in part": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cp1\" is not permitted by any constraint",
    "DNS permitted": "",
    "DNS permitted in capitals": "",
    "DNS permitted, not critical": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cp1\" is not permitted by any constraint",
    "DNS permitted with a dot": "",
    "DNS permitted with a dot, itself": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cluster.local\" is not permitted by any constraint",
    "DNS permitted, half a label": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"xlocal\" is not permitted by any constraint",
    "DNS permitted, empty": "",
    "DNS excluded": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"kubernetes.default.svc.cluster.local\" is excluded by constraint \"svc.cluster.local\"",
    "DNS excluded elsewhere": "",
    "DNS excluded, empty": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cp1\" is excluded by constraint \"\"",
    "wildcard below what is excluded": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"*.example.com\" is excluded by constraint \"a.example.com\"",
    "IP permitted elsewhere": "a root or intermediate certificate is not authorized to sign for this name: IP address \"10.0.0.11\" is not permitted by any constraint",
    "IP permitted": "",
    "IPv6 permitted alone": "a root or intermediate certificate is not authorized to sign for this name: IP address \"10.0.0.11\" is not permitted by any constraint",
    "IP excluded": "a root or intermediate certificate is not authorized to sign for this name: IP address \"10.0.0.11\" is excluded by constraint \"10.0.0.0/24\"",
    "IP excluded elsewhere": "",
    "all IP excluded": "a root or intermediate certificate is not authorized to sign for this name: IP address \"10.0.0.11\" is excluded by constraint \"0.0.0.0/0\"",
    "names limited, none there": "",
    "folder names limited": "unhandled critical extension",
    "folder names limited, not critical": "",
    "mail limited": "",
    "URI permitted": "",
    "URI permitted elsewhere": "a root or intermediate certificate is not authorized to sign for this name: URI \"spiffe://cluster.local/ns/a\" is not permitted by any constraint",
    "mail permitted elsewhere": "a root or intermediate certificate is not authorized to sign for this name: email address \"a@cluster.local\" is not permitted by any constraint",
    "odd DNS name under limits": "a root or intermediate certificate is not authorized to sign for this name: x509: cannot parse dnsName \"a..example.com\"",
    "limits of an intermediate": "a root or intermediate certificate is not authorized to sign for this name: DNS name \"cp1\" is not permitted by any constraint",
    "unknown critical extension": "unhandled critical extension",
    "unknown extension": "",
    "authority's unknown critical extension": "unhandled critical extension",
    "critical OCSP no check": "unhandled critical extension",
    "other name, critical": "unhandled critical extension",
    "names critical": "",
    "authority's key identifier critical": "certificate signed by unknown authority",
    "issuer's key identifier critical": "authority key identifier incorrectly marked critical",
    "issuer's key identifier of another": "",
    "explicit policy wanted": "",
    "explicit policy wanted below": "",
    "explicit policy wanted far below": "",
    "policies, critical": "",
    "places of revocation, critical": "",
    "RSA": "",
    "RSA with PSS": "",
    "RSA of 512 bits": "crypto/rsa: 512-bit keys are insecure (see https://go.dev/pkg/crypto/rsa#hdr-Minimum_key_size)",
    "key of 512 bits": "",
    "RSA of 1024 bits": "",
    "SHA-384": "",
    "SHA-224": "cannot verify signature: algorithm unimplemented",
    "SHA-1": "cannot verify signature: insecure algorithm SHA1-RSA",
    "MD5": "cannot verify signature: insecure algorithm MD5-RSA",
    "authority signed with SHA-1": "",
    "Ed25519": "",
    "P-521": "",
    "authority on secp256k1": "certificate signed by unknown authority",
    "on secp256k1": "unsupported elliptic curve",
    "serial negative": "negative serial number",
    "serial zero": "",
    "authority's serial negative": "certificate signed by unknown authority",
    "signature broken": "crypto/rsa: verification error",
    "name with an underscore in PrintableString": "invalid RDNSequence: invalid attribute value: invalid PrintableString",
    "names with an underscore": "",
    "IPv4 in an IPv6": "SAN iPAddress contains IPv4-mapped IPv6 address",
    "no subject": "",
}
# fmt: on
NEWER_GO_ALONE = ("IPv4 in an IPv6",)
"""Refused by Go from 1.27 on; the components of 1.35 and older read it."""
FORMS = cert_forms.make_forms()


def judge(form: Form) -> str:
    """kb's reason, "" where it believes."""
    try:
        chain = certificates.parse_certs(form.chain.decode())
    except ValueError as error:
        return str(error)
    pool = [x509.load_der_x509_certificate(block.content) for block in split_pem(form.pool.decode())]
    fault = find_fault(chain, pool, usage=form.usage, now=NOW)
    return "" if fault is None else fault.text


def test_every_form_has_its_answer() -> None:
    assert list(FORMS) == list(GO)


@pytest.mark.parametrize("name", GO)
def test_kb_believes_what_go_believes(name: str) -> None:
    assert bool(judge(FORMS[name])) is (bool(GO[name]) and name not in NEWER_GO_ALONE), judge(FORMS[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("authority that may not sign", "keyCertSign"),
        ("CA:FALSE", "CA:TRUE"),
        ("path length 0 and intermediate", "path length"),
        ("authority for servers, as client", "extended key usage of CN=kubernetes lacks clientAuth"),
        ("DNS permitted elsewhere", "may not sign for cp1: its name constraints permit only example.com"),
        ("all IP excluded", "may not sign for 10.0.0.11: its name constraints exclude 0.0.0.0/0, ::/0"),
        ("DNS excluded, empty", "exclude every name"),
        ("SHA-1", "sha1WithRSAEncryption"),
        ("RSA of 512 bits", "512 bits"),
        ("name in another type of text", "another string type"),
        ("serial negative", "serial number is negative"),
        ("authority's serial negative", "CN=kubernetes: its serial number is negative"),
        ("on secp256k1", "secp256k1"),
        ("expired", "expired at 2026-05-31"),
        ("authority not yet", "CN=kubernetes is valid only from"),
        ("another authority", "another key"),
        ("signed by itself", "another CA"),
    ],
)
def test_the_reason_names_what_is_wrong(name: str, words: str) -> None:
    assert words in judge(FORMS[name])


# ---- the commands


def run_kb(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    config = root / "init.yaml"
    config.write_text(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.10}\n"
        "nodeRegistration: {name: cp1}\n"
        "---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.35.6\n"
        "encryptionAlgorithm: ECDSA-P256\n"
    )
    argv = [sys.executable, str(REPO / "kb.py"), *words, "--root", str(root / "node"), "--config", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def put_ca(root: Path, *words: str, name: str = "ca") -> Path:
    pki_dir = root / "node/etc/kubernetes/pki"
    pki_dir.mkdir(parents=True, exist_ok=True)
    argv = ("-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "3650")
    kind = () if any("basicConstraints" in word for word in words) else ("-addext", "basicConstraints=critical,CA:TRUE")
    openssl("req", "-x509", *argv, *words, *kind, "-keyout", pki_dir / f"{name}.key", "-out", pki_dir / f"{name}.crt")
    return pki_dir


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-addext", "keyUsage=critical,digitalSignature"), "keyCertSign"),
        (("-addext", "nameConstraints=critical,permitted;DNS:example.com"), "may not sign for"),
        (("-addext", "nameConstraints=critical,excluded;IP:192.0.2.0/255.255.255.0"), "may not sign for 192.0.2.10"),
        (("-addext", "extendedKeyUsage=clientAuth"), "lacks serverAuth"),
        (("-addext", "1.2.3.4=critical,DER:0500"), "critical extension (1.2.3.4)"),
        (("-set_serial", "-5"), "serial number is negative"),
    ],
)
def test_an_authority_that_nobody_would_believe_ends_in_an_error(
    words: Sequence[str], reason: str, tmp_path: Path
) -> None:
    """kubeadm issues everything, and nothing that was issued works."""
    pki_dir = put_ca(tmp_path, *words)
    before = sorted(pki_dir.rglob("*"))
    done = run_kb(tmp_path, "init", "phase", "certs", "all")
    assert done.returncode == 4 and reason in done.stderr, done.stderr
    assert "mv /etc/kubernetes/pki/ca.crt" in done.stderr or "put back a good copy" in done.stderr
    assert sorted(pki_dir.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"),
        ("-addext", "extendedKeyUsage=serverAuth,clientAuth"),
        ("-addext", "nameConstraints=critical,excluded;DNS:example.com"),
        ("-sha1",),
    ],
)
def test_an_authority_that_may_sign_is_used(words: Sequence[str], tmp_path: Path) -> None:
    pki_dir = put_ca(tmp_path, *words)
    done = run_kb(tmp_path, "init", "phase", "certs", "all")
    assert done.returncode == 0, done.stderr
    openssl("verify", "-CAfile", pki_dir / "ca.crt", pki_dir / "apiserver.crt")


def test_an_authority_that_ends_soon_is_told(tmp_path: Path) -> None:
    put_ca(tmp_path, "-days", "30")
    done = run_kb(tmp_path, "init", "phase", "certs", "all")
    assert done.returncode == 0
    assert "/etc/kubernetes/pki/ca.crt ends in 29 days, before the certificates that it signs" in done.stderr
    assert done.stderr.count("before the certificates") == 1


def test_two_certificates_beside_the_authoritys_key_are_told(tmp_path: Path) -> None:
    pki_dir = put_ca(tmp_path)
    put_ca(tmp_path, name="old")
    alone = (pki_dir / "ca.crt").read_text()
    (pki_dir / "ca.crt").write_text(alone + (pki_dir / "old.crt").read_text())
    done = run_kb(tmp_path, "init", "phase", "certs", "all")
    assert done.returncode == 0
    assert "ca.crt holds 2 certificates" in done.stderr and "no kubelet that joins" in done.stderr
    assert "cluster-signing-cert-file" in done.stderr
    (pki_dir / "ca.key").unlink()
    assert "holds 2" not in run_kb(tmp_path, "init", "phase", "certs", "all").stderr
