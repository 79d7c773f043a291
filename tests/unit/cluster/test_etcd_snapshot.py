"""kubeup/cluster/etcd_snapshot.py: a snapshot is whole, or an error says what is wrong with it."""

from __future__ import annotations

import json

import pytest

from kubeup.cluster import etcd, etcd_snapshot
from kubeup.errors import ClusterError
from kubeup.machine.http import Tls, Unreachable
from tests.fake_host import FakeHost
from tests.unit.backup.etcd_case import DATABASE, SNAPSHOT, URL, EtcdAnswers, messages


class Host(EtcdAnswers, FakeHost):  # type: ignore[misc]
    """A machine whose etcd answers."""


def client(host: Host, *urls: str) -> etcd.Etcd:
    return etcd.Etcd(host, urls or (URL,), tls=Tls())


def read(host: Host, *urls: str) -> bytes:
    return b"".join(etcd_snapshot.stream_snapshot(client(host, *urls)))


def code_of(host: Host) -> str:
    with pytest.raises(ClusterError) as caught:
        read(host)
    return caught.value.code


def test_it_is_the_database_and_its_hash() -> None:
    assert read(Host()) == SNAPSHOT


def test_a_hash_that_comes_in_parts_and_lines_that_are_empty() -> None:
    host = Host()
    host.stream = messages(SNAPSHOT, step=1000).replace(b"\n", b"\n\n") + b'{"result": {"remaining_bytes": "0"}}\n'
    assert read(host) == SNAPSHOT


def test_the_first_member_that_answers_gives_it() -> None:
    assert read(Host(), "https://10.0.0.12:2379", URL) == SNAPSHOT
    with pytest.raises(Unreachable, match=r"10\.0\.0\.12"):
        read(Host(), "https://10.0.0.12:2379")


@pytest.mark.parametrize("bytes_left", [0, 1, 5000, 100_000])
def test_one_that_ends_early(bytes_left: int) -> None:
    host = Host()
    host.breaks_after = bytes_left
    assert code_of(host) == "snapshot-cut-off"


@pytest.mark.parametrize("data", [b"", DATABASE, SNAPSHOT[:-1], SNAPSHOT[: 512 * 3]])
def test_one_without_its_whole_hash(data: bytes) -> None:
    host = Host()
    host.stream = messages(data)
    assert code_of(host) == "snapshot-cut-off"


def test_one_that_is_not_what_etcd_sent() -> None:
    host = Host()
    host.stream = messages(b"\1" + SNAPSHOT[1:])
    assert code_of(host) == "snapshot-damaged"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"error": {"code": 7, "message": "etcdserver: permission denied"}}, "permission denied"),
        ({"error": "etcdserver: not capable", "code": 14}, "not capable"),
        ({"result": {"blob": "no base64!"}}, "base64"),
        ({"result": []}, "it has no result"),
        ([], "it has no result"),
    ],
)
def test_what_etcd_says_in_place_of_it(line: object, message: str) -> None:
    host = Host()
    host.stream = json.dumps(line).encode() + b"\n"
    with pytest.raises(etcd.EtcdRefused, match="maintenance snapshot") as caught:
        read(host)
    assert message in caught.value.message


def test_a_refusal_by_its_status() -> None:
    host = Host()
    host.status, host.stream = 403, b'{"message": "etcdserver: user name is empty"}'
    with pytest.raises(etcd.EtcdRefused, match="maintenance snapshot") as caught:
        read(host)
    assert "user name is empty" in caught.value.message


def test_a_line_without_an_end_is_not_kept_in_memory() -> None:
    host = Host()
    host.stream = b"x" * (3 << 20)
    assert code_of(host) == "etcd-refused"


def test_the_keys_below_a_prefix_are_counted_and_the_revision_is_told() -> None:
    assert client(Host()).count_keys("/registry/") == 301
    assert client(Host()).read_status(URL).revision == 812
