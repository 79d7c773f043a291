"""kubeup/cluster/membership.py: a node that has joined."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kubeup.cluster import membership
from kubeup.errors import KbError
from kubeup.node.kubeconfig import render_kubeconfig
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.unit.cluster.discovery_case import CA, PIN, SERVER, wanted

# ---- a member


def member_host() -> FakeHost:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
    text = render_kubeconfig(
        server=SERVER, ca_pem=CA, user="default-auth", client_cert_pem=CA, client_key_pem=Secret(pem)
    )
    return FakeHost(files={"/etc/kubernetes/kubelet.conf": text.encode()})


def test_a_member_is_known_by_its_kubelet_conf() -> None:
    path = Path("/etc/kubernetes/kubelet.conf")
    access = membership.find_member_access(member_host(), path)
    assert access and access.is_member and access.server == SERVER
    assert membership.find_member_access(FakeHost(), path) is None
    assert membership.find_member_access(FakeHost(files={str(path): b"nonsense"}), path) is None
    membership.check_same_cluster(access, wanted())
    with pytest.raises(KbError) as caught:
        membership.check_same_cluster(access, wanted(("sha256:" + "0" * 64,)))
    assert caught.value.code == "already-joined" and PIN in caught.value.cause
