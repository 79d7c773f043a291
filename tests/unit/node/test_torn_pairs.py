"""A renewal that is killed at any write leaves a pair, or one whose other half is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.types import ClusterConfiguration
from kubeup.node import cert_specs, former_certs, pki, private_keys, renewal, torn_pairs
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node

CLUSTER = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")
ROW = renewal.ROWS["etcd-server"]
KEY, CERT = renewal.files_of(PATHS, ROW)
ROWS = tuple(renewal.ROWS.values())


class Killed(BaseException):
    pass


@dataclass
class MortalHost(FakeHost):
    """writes_left: after so many writes the process is killed."""

    writes_left: int = 10**9

    def write_file(self, path: Path, data: Any, **more: Any) -> bool:
        if not self.writes_left:
            raise Killed
        self.writes_left -= 1
        return super().write_file(path, data, **more)


@pytest.fixture
def host() -> MortalHost:
    made = finished_node()
    return MortalHost(made.files, made.modes, made.dirs, clock=made.clock)


def renew(host: MortalHost) -> None:
    former_certs.keep_former(host, PATHS, files=(KEY, CERT))
    renewal.renew(host, PATHS, row=ROW, cluster=CLUSTER)


def is_pair(host: FakeHost) -> bool:
    return private_keys.is_key_of(pki.read_key(host, KEY), pki.read_certs(host, CERT)[0])


def find(host: FakeHost) -> list[torn_pairs.TornPair]:
    return torn_pairs.find_torn_pairs(host, PATHS, rows=ROWS)


@pytest.mark.parametrize("writes", range(5))
def test_a_kill_at_any_write_leaves_a_pair_or_one_that_can_be_put_right(host: MortalHost, writes: int) -> None:
    old = host.files[str(CERT)]
    host.writes_left = writes
    if writes < 4:
        with pytest.raises(Killed):
            renew(host)
    else:
        renew(host)
    host.writes_left = 10**9
    torn = find(host)
    assert bool(torn) == (writes == 3) == (not is_pair(host)), "the key is written, and its certificate is not"
    for one in torn:
        assert (one.half, one.copy) == (KEY, PATHS.former_certs / "20260101T000000Z" / KEY.relative_to("/"))
        torn_pairs.put_right(host, one)
    assert is_pair(host) and find(host) == [] and (host.files[str(CERT)] == old) == (writes < 4)


def test_the_half_is_found_in_an_older_copy_too(host: MortalHost) -> None:
    host.writes_left = 3
    with pytest.raises(Killed):
        renew(host)
    host.writes_left = 10**9
    former_certs.keep_former(host, PATHS, files=(KEY, CERT))
    (torn,) = find(host)
    assert torn.copy is not None and torn.copy.parts[5] == "20260101T000000Z"


def test_a_certificate_that_lost_its_half_is_put_back(host: MortalHost) -> None:
    """What a way back leaves that is killed after the key."""
    old = host.files[str(KEY)]
    renew(host)
    new = host.files[str(KEY)]
    former_certs.keep_former(host, PATHS, files=(KEY, CERT))
    host.files[str(KEY)] = old
    (torn,) = find(host)
    assert torn.half == KEY, "both halves are known: that of the certificate that is there is taken"
    torn_pairs.put_right(host, torn)
    assert host.files[str(KEY)] == new and is_pair(host)
    host.remove_tree(PATHS.former_certs)
    host.files[str(PATHS.former_certs / "20260101T000000Z" / CERT.relative_to("/"))] = host.files[str(CERT)]
    renewal.renew(host, PATHS, row=ROW, cluster=CLUSTER)
    host.files[str(KEY)] = new
    (torn,) = find(host)
    assert torn.half == CERT
    torn_pairs.put_right(host, torn)
    assert is_pair(host)


def test_a_pair_of_which_nothing_is_kept_is_torn_all_the_same(host: MortalHost) -> None:
    host.files[str(KEY)] = host.files[str(cert_specs.CERTS["apiserver"].key_path(PATHS))]
    (torn,) = find(host)
    assert torn.copy is None and torn.describe() == (
        f"{CERT} and {KEY} do not belong together, as after a renewal that was cut off"
    )
    torn_pairs.put_right(host, torn)
    assert not is_pair(host)


@pytest.mark.parametrize(
    "text", [b"", b"no key", b"-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_another_matter(host: MortalHost, text: bytes) -> None:
    host.files[str(KEY)] = text
    assert find(host) == []
    del host.files[str(KEY)]
    assert find(host) == []
