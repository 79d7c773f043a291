"""What a real etcd with TLS accepts in the stages of a rotation: it reads its authorities when it starts, and its certificate at each handshake."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.cluster import etcd
from kubeup.cluster.rotation import Rotation
from kubeup.config.types import ClusterConfiguration
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost
from kubeup.machine.waiting import becomes_so
from kubeup.node import cert_specs, certificates, private_keys, rotated_pairs
from kubeup.node.rotated_pairs import DROP, TRUST, USE, Pair
from kubeup.phases import rotate_etcd
from kubeup.phases.rotation import Work
from kubeup.secret import Secret
from kubeup.trust import Anchors
from tests.components.real_etcd import PROGRAM, One

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no etcd below $KB_E2E_BIN")
CLUSTER = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")


class TlsOne(One):
    @property
    def client_url(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"


class Stand:
    """A member, the files that it reads, and both authorities."""

    def __init__(self, folder: Path) -> None:
        self.host, self.folder = LocalHost(), folder
        self.former, self.following = (
            rotated_pairs.make_pair(self.host, CLUSTER, authority="etcd-ca") for _ in range(2)
        )
        files = {"trusted-ca-file": "ca.crt", "cert-file": "server.crt", "key-file": "server.key"}
        flags = (f"--{flag}={folder / name}" for flag, name in files.items())
        self.one = TlsOne("cp1", folder / "data", more=("--client-cert-auth=true", *flags))

    def lay(self, stage: str, *, signer: Pair) -> None:
        """The files of a stage; "" as before any."""
        text = self.former.cert_pem
        if stage:
            text = rotated_pairs.render_public(text, former=self.former, following=self.following, stage=stage)
        (self.folder / "ca.crt").write_text(text)
        key, ca = private_keys.generate_key("ECDSA-P256"), certificates.Ca(signer.cert, signer.key, Path("/ca.crt"))
        sans = cert_specs.make_sans(("127.0.0.1", "localhost"))
        subject = certificates.Subject("cp1", is_server=True, is_client=True, sans=sans)
        validity = certificates.plan_validity(datetime.datetime.now(datetime.timezone.utc), 3600)
        cert = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
        (self.folder / "server.key").write_text(private_keys.key_to_pem(key).reveal())
        (self.folder / "server.crt").write_text(certificates.cert_to_pem(cert))

    def restart(self, stage: str) -> None:
        self.one.stop()
        self.one.start([("cp1", self.one.peer_url)])
        assert becomes_so(self.host, lambda: not self.client().read_status(self.one.client_url).away, timeout_s=60), (
            stage
        )

    def client(self) -> etcd.Etcd:
        """With what lies on the disk now, as kb's own calls have it."""
        text, key = (self.folder / "ca.crt").read_text(), (self.folder / "server.key").read_text()
        tls = Tls(Anchors.given(text), (self.folder / "server.crt").read_text(), Secret(key))
        return etcd.Etcd(self.host, (self.one.client_url,), tls=tls)

    def lack(self, stage: str) -> str:
        work = Work(Rotation("etcd", stage, self.former.id, self.following.id), self.former, self.following)
        return rotate_etcd._find_lack(self.client(), work)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    made.lay("", signer=made.former)
    made.restart("")
    yield made
    made.one.stop(kill=True)


def test_the_stages_of_a_rotation_at_a_real_member(stand: Stand) -> None:
    assert "does not accept the new authority" in stand.lack(TRUST)
    stand.lay(TRUST, signer=stand.former)
    assert "does not accept the new authority" in stand.lack(TRUST), "etcd reads it only when it starts"
    stand.restart(TRUST)
    assert stand.lack(TRUST) == "" and "other authority" in stand.lack(USE)
    stand.lay(USE, signer=stand.following)
    assert stand.lack(USE) == "", "etcd reads its certificate at each handshake"
    assert "still accepts the former authority" in stand.lack(DROP)
    stand.lay(DROP, signer=stand.following)
    stand.restart(DROP)
    assert stand.lack(DROP) == ""
