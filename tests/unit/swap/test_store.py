"""kubeup/swap/store.py: the record of a swap survives whatever happens, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.errors import HostError
from kubeup.paths import Paths
from kubeup.swap import store
from kubeup.swap.store import Pod, Swap
from tests.fake_control_plane import FORMER, WANTED
from tests.fake_host import FakeHost

PATHS = Paths()
FILE = Path("/var/lib/kb/swap/swap.json")
ETCD, SERVER = "etcd", "kube-apiserver"
SWAP = Swap(
    (Pod(ETCD, FORMER[ETCD], WANTED[ETCD]), Pod(SERVER, FORMER[SERVER], FORMER[SERVER])), data_dir="/var/lib/etcd"
)


def saved(swap: Swap = SWAP) -> FakeHost:
    host = FakeHost()
    store.save(host, PATHS, swap=swap)
    return host


def with_record(**changed: Any) -> FakeHost:
    host = saved()
    host.files[str(FILE)] = json.dumps({**json.loads(host.files[str(FILE)]), **changed}).encode()
    return host


def test_what_is_saved_is_read_again() -> None:
    assert store.load(saved(), PATHS) == SWAP


def test_only_root_may_read_the_manifests_in_it() -> None:
    host = saved()
    assert host.modes[str(FILE)] == 0o600
    assert host.modes[str(FILE.parent)] == 0o700


def test_there_is_none_on_a_fresh_machine() -> None:
    assert store.load(FakeHost(), PATHS) is None
    assert store.load_cut_off(FakeHost(), PATHS) is None


@pytest.mark.parametrize(
    ("status", "is_cut_off"), [(store.RUNNING, True), (store.DONE, False), (store.TAKEN_BACK, False)]
)
def test_only_a_swap_that_has_not_ended_is_cut_off(status: str, is_cut_off: bool) -> None:
    host = saved(Swap(SWAP.pods, status))
    assert (store.load_cut_off(host, PATHS) is not None) is is_cut_off
    found = store.load(host, PATHS)
    assert found is not None and found.status == status


def test_a_record_without_a_data_folder_keeps_no_copy() -> None:
    record = json.loads(saved().files[str(FILE)])
    del record["data_dir"]
    found = store.load(FakeHost(files={str(FILE): json.dumps(record).encode()}), PATHS)
    assert found is not None and found.data_dir == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"swap"', "{}", '{"schema": 1, "status": "running"}', "\x00", '{"schema": "1"}']
)
def test_a_damaged_record_is_refused(text: str) -> None:
    host = FakeHost(files={str(FILE): text.encode()})
    for read in (store.load, store.load_cut_off):
        with pytest.raises(HostError) as caught:
            read(host, PATHS)
        assert caught.value.code == "swap-unreadable"
        assert str(FILE) in caught.value.remedy
    assert host.files[str(FILE)] == text.encode(), "it is left for its owner"


@pytest.mark.parametrize(
    "changed",
    [
        {"schema": 2},
        {"status": "half"},
        {"pods": []},
        {"pods": [{"name": "kube-proxy", "former": "", "wanted": ""}]},
        {"pods": [{"name": "../../root/x", "former": "", "wanted": ""}]},
        {"pods": [{"name": "etcd", "former": ""}]},
        {"pods": {"etcd": ""}},
        {"data_dir": 1},
    ],
)
def test_a_record_of_another_kind_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(HostError) as caught:
        store.load(with_record(**changed), PATHS)
    assert caught.value.code == "swap-unreadable"


# ---- pods that are only restarted


@pytest.mark.parametrize("status", [store.DONE, store.TAKEN_BACK])
@pytest.mark.parametrize("is_as_before", [True, False])
def test_a_restart_leaves_the_last_swap_as_it_was(status: str, is_as_before: bool) -> None:
    last = Swap(SWAP.pods, status)
    host = saved(last)
    restart = Swap((Pod(SERVER, FORMER[SERVER], FORMER[SERVER]),))
    store.begin(host, PATHS, swap=restart)
    assert store.load_cut_off(host, PATHS) == restart
    store.end(host, PATHS, swap=dataclasses.replace(restart, status=store.DONE), is_as_before=is_as_before)
    assert store.load(host, PATHS) == last


def test_a_restart_alone_leaves_nothing_to_undo() -> None:
    host, restart = FakeHost(), Swap((Pod(SERVER, FORMER[SERVER], FORMER[SERVER]),))
    store.begin(host, PATHS, swap=restart)
    store.end(host, PATHS, swap=restart, is_as_before=False)
    assert store.load(host, PATHS) is None


# ---- what a swap says of itself


def test_a_pod_that_is_only_restarted_is_not_changed() -> None:
    assert SWAP.names == (ETCD, SERVER)
    assert SWAP.changed == (ETCD,)


def test_another_spelling_is_no_change() -> None:
    assert not Pod(ETCD, "a: 1\nb: '2'\n", 'b: "2"\na: 1\n').is_changed
    assert Pod(ETCD, "a: 1\n", "a: 2\n").is_changed


def test_reversed_wants_what_was_there() -> None:
    back = Swap(SWAP.pods, store.DONE, "/var/lib/etcd").reversed()
    assert back.pod(ETCD) == Pod(ETCD, WANTED[ETCD], FORMER[ETCD])
    assert (back.status, back.data_dir) == (store.RUNNING, "")


@pytest.mark.parametrize(
    ("texts", "is_same"),
    [
        ({ETCD: WANTED[ETCD]}, True),
        ({ETCD: "# mine\n" + WANTED[ETCD]}, True),
        ({ETCD: WANTED[ETCD], SERVER: FORMER[SERVER]}, True),  # the same command line: one of its files changes nothing
        ({ETCD: FORMER[ETCD]}, False),
        ({ETCD: WANTED[ETCD], SERVER: WANTED[SERVER]}, False),
        ({SERVER: WANTED[SERVER]}, False),
        ({}, False),
    ],
)
def test_wants_same(texts: dict[str, str], is_same: bool) -> None:
    assert SWAP.wants_same(tuple(texts.items())) is is_same
