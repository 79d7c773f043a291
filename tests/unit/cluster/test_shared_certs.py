"""kubeup/cluster/shared_certs.py: the Secret kubeadm-certs, up and down."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster import shared_certs
from kubeup.config import token_text
from kubeup.config.types import ExternalEtcd
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node, make_config

CLUSTER = make_config().cluster
EXTERNAL = dataclasses.replace(
    CLUSTER,
    local_etcd=None,
    external_etcd=ExternalEtcd(("https://e:2379",), ca_file="/e/ca.crt", cert_file="/e/c.crt", key_file="/e/c.key"),
)
KEY = Secret("00112233445566778899aabbccddeeff" * 2)
STACKED_KEYS = {
    *("ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.pub", "sa.key"),
    *("etcd-ca.crt", "etcd-ca.key"),
}


def upload(host: FakeHost, cluster: Any = CLUSTER) -> dict[str, Any]:
    files = shared_certs.read_shared_files(host, PATHS, cluster=cluster)
    return shared_certs.render_certs_secret(files, KEY, token_id="abcdef", token_uid="u-1")


def download(secret: Any, key: Secret = KEY, cluster: Any = CLUSTER) -> dict[Path, tuple[str, int]]:
    found = shared_certs.plan_downloads(secret, key, paths=PATHS, cluster=cluster)
    return {file.path: (file.data.reveal(), file.mode) for file in found}


def test_certificate_keys() -> None:
    keys = [shared_certs.new_certificate_key() for _ in range(2)]
    assert keys[0] != keys[1]
    assert [len(shared_certs.parse_certificate_key(key)) for key in keys] == [32, 32]
    assert shared_certs.parse_certificate_key(Secret(KEY.reveal().upper())) == bytes.fromhex(KEY.reveal())


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, " " + "00" * 32])
def test_bad_certificate_keys_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        shared_certs.parse_certificate_key(Secret(text))
    assert caught.value.code == "bad-certificate-key"
    assert not text or text not in str(caught.value.as_dict())


def test_the_cipher_is_aes_256_gcm_with_the_nonce_in_front() -> None:
    """Test case 14 of McGrew and Viega's GCM paper: key 0, nonce 0, one block of 0."""
    data = bytes(12) + bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
    assert shared_certs.decrypt(data, Secret("0" * 64)) == bytes(16)


def test_every_encryption_has_a_fresh_nonce() -> None:
    one, two = shared_certs.encrypt(b"text", KEY), shared_certs.encrypt(b"text", KEY)
    assert one[:12] != two[:12]
    assert len(one) == 12 + 4 + 16
    assert shared_certs.decrypt(one, KEY) == shared_certs.decrypt(two, KEY) == b"text"


@pytest.mark.parametrize("data", [b"", bytes(11), bytes(40)])
def test_what_does_not_open_is_said(data: bytes) -> None:
    with pytest.raises(ClusterError) as caught:
        shared_certs.decrypt(data, KEY)
    assert caught.value.code == "certificate-key-wrong"


def test_secret_of_a_stacked_cluster() -> None:
    secret = upload(finished_node())
    assert secret["metadata"] == {
        "name": "kubeadm-certs",
        "namespace": "kube-system",
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "name": "bootstrap-token-abcdef",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    assert (secret["apiVersion"], secret["kind"], "type" in secret) == ("v1", "Secret", False)
    assert set(secret["data"]) == STACKED_KEYS
    opened = shared_certs.decrypt(base64.b64decode(secret["data"]["etcd-ca.key"]), KEY)
    assert opened == finished_node().files["/etc/kubernetes/pki/etcd/ca.key"]


def test_up_and_down_again() -> None:
    host = finished_node()
    found = download(upload(host))
    names = ("ca", "front-proxy-ca", "sa", "etcd/ca")
    public = {"sa": "pub"}
    wanted = {}
    for name in names:
        for suffix, mode in (("key", 0o600), (public.get(name, "crt"), 0o644)):
            path = PATHS.pki / f"{name}.{suffix}"
            wanted[path] = (host.files[str(path)].decode(), mode)
    assert found == wanted


def test_external_etcd_files_go_to_their_own_paths() -> None:
    host = finished_node()
    ca = host.files["/etc/kubernetes/pki/ca.crt"]
    host.files.update({"/e/ca.crt": ca, "/e/c.key": host.files["/etc/kubernetes/pki/ca.key"]})
    secret = upload(host, EXTERNAL)
    assert set(secret["data"]) == (STACKED_KEYS - {"etcd-ca.crt", "etcd-ca.key"}) | {
        *("external-etcd-ca.crt", "external-etcd.crt", "external-etcd.key")
    }
    assert secret["data"]["external-etcd.crt"] == ""
    found = download(secret, cluster=EXTERNAL)
    assert found[Path("/e/ca.crt")] == (ca.decode(), 0o644)
    assert found[Path("/e/c.key")][1] == 0o600
    assert Path("/e/c.crt") not in found


def test_external_etcd_without_tls_has_empty_entries() -> None:
    plain = dataclasses.replace(EXTERNAL, external_etcd=ExternalEtcd(("http://e:2379",)))
    host = finished_node()
    assert shared_certs.shared_files(PATHS, plain).keys() == STACKED_KEYS - {"etcd-ca.crt", "etcd-ca.key"}
    secret = upload(host, plain)
    assert [secret["data"][f"external-etcd{name}"] for name in ("-ca.crt", ".crt", ".key")] == ["", "", ""]
    assert len(download(secret, cluster=plain)) == 6


def test_a_missing_file_is_an_empty_entry_that_is_skipped() -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/sa.pub"]
    secret = upload(host)
    assert secret["data"]["sa.pub"] == ""
    assert PATHS.pki / "sa.pub" not in download(secret)


@pytest.mark.parametrize("name", ["ca", "front-proxy-ca"])
def test_an_external_ca_cannot_be_shared(name: str) -> None:
    host = finished_node()
    del host.files[f"/etc/kubernetes/pki/{name}.key"]
    with pytest.raises(HostError) as caught:
        upload(host)
    assert caught.value.code == "external-ca-not-shareable"


def test_wrong_key_and_damaged_secrets() -> None:
    secret = upload(finished_node())
    with pytest.raises(ClusterError) as caught:
        download(secret, shared_certs.new_certificate_key())
    assert caught.value.code == "certificate-key-wrong"
    without = {key: value for key, value in secret["data"].items() if key not in ("sa.key", "ca.crt")}
    junk = base64.b64encode(shared_certs.encrypt(b"hello", KEY)).decode()
    for data, code, cause in (
        (without, "certs-secret-incomplete", "it lacks ca.crt, sa.key"),
        (None, "certs-secret-incomplete", "it lacks ca.crt"),
        ({**secret["data"], "ca.crt": "!"}, "certs-secret-damaged", "its entry ca.crt is not base64"),
        ({**secret["data"], "ca.crt": junk}, "certs-secret-damaged", "its entry ca.crt is neither a key nor"),
    ):
        with pytest.raises(ClusterError) as caught:
            download({**secret, "data": data})
        assert caught.value.code == code
        assert caught.value.cause.startswith(cause)


def test_the_proxy_token_lets_nobody_in() -> None:
    token = shared_certs.make_proxy_token()
    assert token_text.is_token(token.token.reveal())
    assert (token.description, token.ttl_s) == ("Proxy for managing TTL for the kubeadm-certs secret", 7200)
    assert (token.usages, token.groups) == ((), ())
