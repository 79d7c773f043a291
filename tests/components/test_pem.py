"""kb's reader of PEM beside Go's: both take and refuse the same forms of certificates and keys.

Source of GO: a program of a few lines, with Go 1.27 and k8s.io/client-go of Kubernetes 1.35, that gives each form to pem.Decode,
cert.ParseCertsPEM (kubeadm, and the API server's --client-ca-file), CertPool.AppendCertsFromPEM (a kubeconfig's authority),
keyutil.ParsePrivateKeyPEM (kubeadm) and tls.X509KeyPair (every server and client). kubectl, which is Go, shows the third and the
last live.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeup.frozen_values import frozen
from kubeup.node import certificates, private_keys
from kubeup.pem import select_certs, select_private_keys, split_pem
from tests.make_docs import REPO
from tests.pem_forms import make_forms

pytestmark = pytest.mark.component


@frozen
class Go:
    """labels: of the blocks that there are. certs: how many ParseCertsPEM reads, 0 where it refuses. key: what ParsePrivateKeyPEM
    finds. pair: whether the text serves X509KeyPair as both, certificate and key."""

    labels: str
    certs: int
    pool: bool
    key: str
    pair: bool


# fmt: off
GO = {
    "plain": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "CRLF": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "CR alone": Go("", certs=0, pool=False, key="", pair=False),
    "no newline at the end": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "blanks after BEGIN": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "blanks after END": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "blanks after each line": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "blanks before each line of the body": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "text after BEGIN": Go("", certs=0, pool=False, key="", pair=False),
    "text after END": Go("", certs=0, pool=False, key="", pair=False),
    "indented": Go("", certs=0, pool=False, key="", pair=False),
    "BEGIN indented": Go("", certs=0, pool=False, key="", pair=False),
    "END indented": Go("", certs=0, pool=False, key="", pair=False),
    "all in one line": Go("", certs=0, pool=False, key="", pair=False),
    "newlines written as \\n": Go("", certs=0, pool=False, key="", pair=False),
    "body in one line": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "lines of 76": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "lines of 7": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "a line broken": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "empty lines in the body": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "a character missing": Go("", certs=0, pool=False, key="", pair=False),
    "a character that is no base64": Go("", certs=0, pool=False, key="", pair=False),
    "url's base64": Go("", certs=0, pool=False, key="", pair=False),
    "a form feed in the body": Go("", certs=0, pool=False, key="", pair=False),
    "no padding": Go("", certs=0, pool=False, key="", pair=False),
    "a byte after the certificate": Go("CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "two in one block": Go("CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "empty block": Go("CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "empty block, then a good one": Go("CERTIFICATE, CERTIFICATE", certs=0, pool=True, key="", pair=False),
    "text before": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "text before, no newline": Go("", certs=0, pool=False, key="", pair=False),
    "text between and after": Go("CERTIFICATE, CERTIFICATE", certs=2, pool=True, key="", pair=False),
    "Bag Attributes": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "headers inside": Go("CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "headers inside, no empty line": Go("CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "only a header": Go("", certs=0, pool=False, key="", pair=False),
    "mark of the byte order": Go("", certs=0, pool=False, key="", pair=False),
    "mark of the byte order, then a newline": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "UTF-16": Go("", certs=0, pool=False, key="", pair=False),
    "Latin-1 in the text before": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "NUL at the end": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "DER": Go("", certs=0, pool=False, key="", pair=False),
    "base64 alone": Go("", certs=0, pool=False, key="", pair=False),
    "base64 of PEM": Go("", certs=0, pool=False, key="", pair=False),
    "empty": Go("", certs=0, pool=False, key="", pair=False),
    "blanks": Go("", certs=0, pool=False, key="", pair=False),
    "words": Go("", certs=0, pool=False, key="", pair=False),
    "BEGIN alone": Go("", certs=0, pool=False, key="", pair=False),
    "no END": Go("", certs=0, pool=False, key="", pair=False),
    "no END, then a good one": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "no BEGIN, then a good one": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "BEGIN twice": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "END twice": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "END of another label": Go("", certs=0, pool=False, key="", pair=False),
    "END of another label, then a good one": Go("CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "small letters": Go("certificate", certs=0, pool=False, key="", pair=False),
    "four dashes": Go("", certs=0, pool=False, key="", pair=False),
    "four dashes at the end of BEGIN": Go("", certs=0, pool=False, key="", pair=False),
    "six dashes": Go("", certs=0, pool=False, key="", pair=False),
    "long dashes": Go("", certs=0, pool=False, key="", pair=False),
    "TRUSTED CERTIFICATE": Go("TRUSTED CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "X509 CERTIFICATE": Go("X509 CERTIFICATE", certs=0, pool=False, key="", pair=False),
    "CERTIFICATE REQUEST": Go("CERTIFICATE REQUEST", certs=0, pool=False, key="", pair=False),
    "an empty label": Go("", certs=0, pool=False, key="", pair=False),
    "two": Go("CERTIFICATE, CERTIFICATE", certs=2, pool=True, key="", pair=False),
    "doubled": Go("CERTIFICATE, CERTIFICATE", certs=2, pool=True, key="", pair=False),
    "no newline between": Go("", certs=0, pool=False, key="", pair=False),
    "a damaged one, then a good one": Go("CERTIFICATE, CERTIFICATE", certs=0, pool=True, key="", pair=False),
    "a good one, then a damaged one": Go("CERTIFICATE, CERTIFICATE", certs=0, pool=True, key="", pair=False),
    "another block, then a good one": Go("X509 CRL, CERTIFICATE", certs=1, pool=True, key="", pair=False),
    "certificate and key": Go("CERTIFICATE, EC PRIVATE KEY", certs=1, pool=True, key="EC", pair=True),
    "key and certificate": Go("PRIVATE KEY, CERTIFICATE", certs=1, pool=True, key="EC", pair=True),
    "certificate and another's key": Go("CERTIFICATE, EC PRIVATE KEY", certs=1, pool=True, key="EC", pair=False),
    "SEC1": Go("EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "PKCS#8": Go("PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "EC PARAMETERS": Go("EC PARAMETERS, EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "EC PARAMETERS after": Go("EC PRIVATE KEY, EC PARAMETERS", certs=0, pool=False, key="EC", pair=False),
    "PKCS#1": Go("RSA PRIVATE KEY", certs=0, pool=False, key="RSA", pair=False),
    "PKCS#8 of RSA": Go("PRIVATE KEY", certs=0, pool=False, key="RSA", pair=False),
    "certificate and key, RSA": Go("CERTIFICATE, RSA PRIVATE KEY", certs=1, pool=True, key="RSA", pair=True),
    "PKCS#1 under the label of PKCS#8": Go("PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "PKCS#8 under the label of PKCS#1": Go("RSA PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "SEC1 under the label of PKCS#8": Go("PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "PKCS#8 under the label of SEC1": Go("EC PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "SEC1 under the label of PKCS#1": Go("RSA PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "ANY PRIVATE KEY": Go("ANY PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "locked PKCS#8": Go("ENCRYPTED PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "locked SEC1": Go("EC PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "locked, then an open one": Go("ENCRYPTED PRIVATE KEY, EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "OPENSSH PRIVATE KEY": Go("OPENSSH PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "Ed25519": Go("PRIVATE KEY", certs=0, pool=False, key="Ed25519", pair=False),
    "Ed25519, then another": Go("PRIVATE KEY, EC PRIVATE KEY", certs=0, pool=False, key="Ed25519", pair=False),
    "certificate and key, Ed25519": Go("CERTIFICATE, PRIVATE KEY", certs=1, pool=True, key="Ed25519", pair=True),
    "secp256k1": Go("PRIVATE KEY", certs=0, pool=False, key="", pair=False),
    "secp224r1": Go("PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "secp521r1": Go("EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "a damaged key, then a good one": Go("EC PRIVATE KEY, EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "two keys": Go("EC PRIVATE KEY, EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "key with CRLF": Go("EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "key, indented": Go("", certs=0, pool=False, key="", pair=False),
    "key with a header": Go("EC PRIVATE KEY", certs=0, pool=False, key="EC", pair=False),
    "DER of a key": Go("", certs=0, pool=False, key="", pair=False),
    "public key": Go("PUBLIC KEY", certs=0, pool=False, key="", pair=False),
}
# fmt: on
KEY_OF_A_PAIR = ("locked, then an open one", "a damaged key, then a good one")
"""keyutil looks further, X509KeyPair refuses a file whose first private key is not good: kb makes keys for both."""
FORMS = make_forms()


def as_text(name: str) -> str:
    """As a file is read (Host.read_text)."""
    return FORMS[name].decode("utf-8", errors="replace")


def test_every_form_has_its_answer() -> None:
    assert list(FORMS) == list(GO)


@pytest.mark.parametrize("name", GO)
def test_blocks_are_those_of_go(name: str) -> None:
    assert ", ".join(block.label for block in split_pem(as_text(name))) == GO[name].labels


@pytest.mark.parametrize("name", GO)
def test_certificates_are_those_of_go(name: str) -> None:
    try:
        found = len(certificates.parse_certs(as_text(name)))
    except ValueError as error:
        assert str(error)
        found = 0
    assert found == GO[name].certs
    if found:
        assert len(certificates.parse_certs(select_certs(as_text(name)))) == found


@pytest.mark.parametrize("name", GO)
def test_keys_are_those_of_go(name: str) -> None:
    is_wanted = GO[name].key in ("EC", "RSA") and name not in KEY_OF_A_PAIR
    for text in (as_text(name), select_private_keys(as_text(name))):
        try:
            key = private_keys.parse_key(text)
        except ValueError as error:
            assert str(error) and not is_wanted
            continue
        assert is_wanted
        if GO[name].certs:
            assert (
                private_keys.is_key_of(key, certificates.parse_certs(text)[0]) == GO[name].pair
                if "CERTIFICATE" in text
                else True
            )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DER", "not text"),
        ("UTF-16", "not text"),
        ("empty", "empty"),
        ("mark of the byte order", "byte order mark"),
        ("BEGIN indented", "indented"),
        ("END indented", "indented"),
        ("all in one line", "broken"),
        ("no END", "broken"),
        ("words", "nothing in PEM form"),
        ("TRUSTED CERTIFICATE", "but TRUSTED CERTIFICATE"),
        ("SEC1", "but EC PRIVATE KEY"),
        ("headers inside", "name: value"),
        ("a damaged one, then a good one", "damaged"),
    ],
)
def test_a_refusal_says_what_is_there(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        certificates.parse_certs(as_text(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PKCS#8 under the label of SEC1", "its label says EC PRIVATE KEY, but its content is PRIVATE KEY"),
        ("locked SEC1", "password"),
        ("locked PKCS#8", "password"),
        ("public key", "but PUBLIC KEY"),
        ("Ed25519", "neither RSA nor ECDSA"),
        ("secp256k1", "secp256k1"),
        ("key, indented", "indented"),
        ("DER of a key", "not text"),
    ],
)
def test_a_refused_key_says_what_is_there(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        private_keys.parse_key(as_text(name))


def ask_kubectl(folder: Path, cluster: dict[str, str], user: dict[str, str]) -> str:
    """What kubectl says of a kubeconfig before it connects, or that nobody listens."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(json.dumps(config))
    argv = [kubectl, "--kubeconfig", str(folder / "config"), "get", "--raw", "/version"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("name", GO)
def test_kubectl_believes_what_the_table_says(name: str, tmp_path: Path) -> None:
    (tmp_path / "ca").write_bytes(FORMS[name])
    said = ask_kubectl(tmp_path, {"certificate-authority": "ca"}, {"token": "t"})
    assert ("refused" in said) is GO[name].pool or not FORMS[name]
    assert "refused" in said or "unable to load root certificates" in said or "unable to parse bytes as PEM" in said


@pytest.mark.parametrize(
    "name", [name for name in GO if "PRIVATE KEY" in GO[name].labels and "CERT" in GO[name].labels]
)
def test_kubectl_loads_the_pairs_of_the_table(name: str, tmp_path: Path) -> None:
    data = base64.b64encode(FORMS[name]).decode()
    said = ask_kubectl(tmp_path, {}, {"client-certificate-data": data, "client-key-data": data})
    assert ("refused" in said) is GO[name].pair, said


def run_kb(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    config = root / "init.yaml"
    config.write_text(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.10}\n"
        "---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.35.6\nencryptionAlgorithm: ECDSA-P256\n"
    )
    argv = [sys.executable, str(REPO / "kb.py"), *words, "--root", str(root / "node"), "--config", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 << 30)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(str(path))


def make_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere")


def make_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "apiserver.crt", "sa.pub"])
@pytest.mark.parametrize("make", [os.mkfifo, make_folder, make_sparse, make_socket, make_nowhere, make_itself])
def test_what_is_no_file_is_an_error(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    """No hang, no traceback, no memory filled, nothing overwritten."""
    assert run_kb(tmp_path, "init", "phase", "certs", "all").returncode == 0
    place = tmp_path / "node/etc/kubernetes/pki" / name
    place.unlink()
    make(place)
    before = place.lstat().st_ino
    done = run_kb(tmp_path, "init", "phase", "certs", "all")
    assert done.returncode == 4 and str(Path("/etc/kubernetes/pki") / name) in done.stderr, done.stderr
    assert place.lstat().st_ino == before
