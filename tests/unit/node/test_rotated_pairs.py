"""What the two files of a rotated pair hold in each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.config.types import ClusterConfiguration
from kubeup.errors import HostError
from kubeup.node import certificates, pki, private_keys, rotated_pairs, verify
from kubeup.node.rotated_pairs import DROP, TRUST, USE, Pair
from kubeup.paths import Paths
from tests.fake_host import FakeHost

CLUSTER = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")
ORDER = {TRUST: ("former", "following"), USE: ("following", "former"), DROP: ("following",)}


def make(authority: str) -> Pair:
    return rotated_pairs.make_pair(FakeHost(), CLUSTER, authority=authority)


@pytest.mark.parametrize("authority", ["", "front-proxy-ca"])
@pytest.mark.parametrize("stage", ORDER)
def test_the_one_whose_key_lies_beside_it_is_first(stage: str, authority: str) -> None:
    pairs = {"former": make(authority), "following": make(authority)}
    texts = {name: pair.cert_pem or private_keys.public_key_to_pem(pair.key) for name, pair in pairs.items()}
    wanted = "".join(texts[name] for name in ORDER[stage])
    for present in (
        texts["former"],
        texts["former"] + texts["following"],
        texts["following"] + texts["former"],
        texts["following"],
    ):
        assert rotated_pairs.render_public(present, **pairs, stage=stage) == wanted
    assert rotated_pairs.holder_of_key(stage, **pairs) == pairs[ORDER[stage][0]]


def test_what_others_put_there_stays_at_the_end() -> None:
    former, following, other = make(""), make(""), make("")
    public = [private_keys.public_key_to_pem(one.key) for one in (former, following, other)]
    text = rotated_pairs.render_public(public[2] + public[0], former=former, following=following, stage=TRUST)
    assert text == public[0] + public[1] + public[2]
    assert rotated_pairs.render_public(text, former=former, following=following, stage=DROP) == public[1] + public[2]


def test_a_pair_is_read_from_its_files() -> None:
    host, pair = FakeHost(), make("front-proxy-ca")
    place = rotated_pairs.place_of(Paths(), "front-proxy-ca")
    host.files = {str(place.key): pair.key_pem.reveal().encode(), str(place.public): pair.cert_pem.encode()}
    assert rotated_pairs.read_pair(host, place).id == pair.id
    assert pair.cert.subject.rfc4514_string() == "CN=front-proxy-ca" and certificates.is_ca_cert(pair.cert)
    host.files[str(place.public)] = make("front-proxy-ca").cert_pem.encode()
    with pytest.raises(HostError, match="do not belong together"):
        rotated_pairs.read_pair(host, place)
    del host.files[str(place.key)]
    with pytest.raises(HostError, match="is not there"):
        rotated_pairs.read_pair(host, place)


def test_kubeadm_s_reading_takes_the_signer() -> None:
    """Whoever reads the first certificate and the key, as kubeadm and kb do to issue another one."""
    host, former, following = FakeHost(), make("front-proxy-ca"), make("front-proxy-ca")
    place = rotated_pairs.place_of(Paths(), "front-proxy-ca")
    for stage in ORDER:
        text = rotated_pairs.render_public(former.cert_pem, former=former, following=following, stage=stage)
        holder = rotated_pairs.holder_of_key(stage, former=former, following=following)
        host.files = {str(place.key): holder.key_pem.reveal().encode(), str(place.public): text.encode()}
        assert pki.read_ca(host, Paths(), name="front-proxy-ca").cert == holder.cert
    assert place.public == Path("/etc/kubernetes/pki/front-proxy-ca.crt")


def test_the_former_one_vouches_for_the_following_one() -> None:
    """A client that knows either of them alone trusts what the following one has signed, if it is shown the certificate in between."""
    host = FakeHost()
    former, following = make("ca"), make("ca")
    cross = rotated_pairs.cross_sign(following, former=former, now=host.now())
    key = private_keys.generate_key("ECDSA-P256")
    ca = certificates.Ca(following.cert, following.key, Path("/ca.crt"))
    validity = certificates.plan_validity(host.now(), 3600)
    leaf = certificates.issue_leaf_cert(certificates.Subject("x", is_server=True), key, ca=ca, validity=validity)

    def is_trusted(pair: Pair, *chain: Any) -> bool:
        return verify.find_fault(chain, [pair.cert], usage="server", now=host.now()) is None

    assert is_trusted(former, leaf, cross) and is_trusted(following, leaf, cross) and not is_trusted(former, leaf)
    assert rotated_pairs.is_cross(cross, following=following.cert, former=former.cert)
    assert not rotated_pairs.is_cross(following.cert, following=following.cert, former=former.cert)
    assert cross.not_valid_after_utc <= min(former.cert.not_valid_after_utc, following.cert.not_valid_after_utc)


def test_a_text_about_others_stays() -> None:
    former, following, other = (make("ca").cert_pem for _ in range(3))
    for stage in ORDER:
        assert rotated_pairs.render_where_known(other, former=former, following=following, stage=stage) == other
    both = rotated_pairs.render_where_known(other + former, former=former, following=following, stage=TRUST)
    assert both == former + following + other
