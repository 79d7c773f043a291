"""kb etcd recover: the fence, the one member that is left, and the way back, killed after any change."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import pytest

from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.node import etcd_file
from tests.fake_control_plane import DATA, Gone, manifests_of
from tests.fake_etcd import LonelyPlane, make_lonely_plane
from tests.fuzz.node import Ended, call

LOST = ("--lost", "cp2", "--lost", "cp3", "--yes")
COPY = "/var/lib/etcd.kb-before-recover"


def kb(host: LonelyPlane, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["etcd", "recover", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def refused(host: LonelyPlane, *words: str, code: str) -> Ended:
    """Refused, and nothing but kb's own state was changed."""
    before = {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")}
    made = len(host.events)
    ended = kb(host, *words)
    assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
    assert {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")} == before
    assert len(host.events) == made
    return ended


def expect_recovered(host: LonelyPlane) -> None:
    host.sleep(10)
    assert list(host.of_etcd) == [1] and host.serves("etcd") and host.serves("kube-apiserver")
    found = manifests_of(host)
    assert sorted(found) == sorted(
        f"{name}.yaml" for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    )
    assert "--force-new-cluster" not in found["etcd.yaml"], "it would drop whoever joins"
    assert (
        "--initial-cluster=cp1=https://10.0.0.11:2380" in found["etcd.yaml"]
        and "--initial-cluster-state=existing" in found["etcd.yaml"]
    )
    assert host.files[f"{COPY}/member/snap/db"] == b"of the former etcd" and host.files[DATA] == b"alone"
    assert host.violations == []


def expect_as_before(host: LonelyPlane, manifests: dict[str, str]) -> None:
    host.sleep(10)
    assert manifests_of(host) == manifests and host.files[DATA] == b"of the former etcd"
    assert not [path for path in host.files if path.startswith(COPY)]
    assert host.violations == []


# ---- the fence


def test_a_quorum_needs_no_recovery() -> None:
    host = make_lonely_plane()
    host.of_etcd[2].is_up = True
    refused(host, *LOST, code="etcd-has-quorum")


@pytest.mark.parametrize("place", ["10.0.0.12:2379", "10.0.0.13:2380", "10.0.0.13:10250", "10.0.0.12:6443"])
def test_a_machine_that_is_alive_is_not_lost(place: str) -> None:
    ended = refused(make_lonely_plane(listens=frozenset({place})), *LOST, code="etcd-member-reachable")
    assert place in ended.err and "kb reset there" in ended.err


def test_a_machine_that_boots_is_not_lost() -> None:
    """Nothing listens on it yet; a second later its kubelet starts etcd."""
    ended = refused(make_lonely_plane(booting=frozenset({"10.0.0.13:10250"})), *LOST, code="etcd-member-reachable")
    assert "switch it off" in ended.err


ELSEWHERE = "https://api.test:6443"
NODE = "/api/v1/nodes/cp1?timeout=5s"


def lead_elsewhere(
    monkeypatch: pytest.MonkeyPatch, *, reads: Union[int, Sequence[int]], files: Sequence[str] = ("admin.conf",)
) -> LonelyPlane:
    """A node whose kubeconfigs lead to a load balancer, and an API server behind it that is ready. reads: what it answers to a read from
    its etcd, the last of them from then on; 0: nothing."""
    host = make_lonely_plane()
    answers = [reads] if isinstance(reads, int) else list(reads)
    conf = re.sub(rb"https://[0-9.:]+", ELSEWHERE.encode(), host.files["/etc/kubernetes/admin.conf"])
    host.files.update({f"/etc/kubernetes/{name}": conf for name in files})
    http_get = host.http_get

    def answer(url: str, **more: Any) -> HttpResponse:
        if url == f"{ELSEWHERE}/readyz":
            return HttpResponse(200, b"ok")
        if not url.startswith(ELSEWHERE):
            return http_get(url, **more)
        assert url == f"{ELSEWHERE}{NODE}"
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        if not status:
            raise Unreachable(url, "timeout", text="timed out")
        return HttpResponse(status, b"{}")

    monkeypatch.setattr(host, "http_get", answer)
    return host


@pytest.mark.parametrize("reads", [200, 404, (504, 504, 200)])
def test_a_cluster_that_has_replaced_the_others_lives(
    monkeypatch: pytest.MonkeyPatch, reads: Union[int, Sequence[int]]
) -> None:
    """This machine's member list is old: nothing is at the addresses in it. One election is no lost quorum."""
    ended = refused(lead_elsewhere(monkeypatch, reads=reads), *LOST, code="cluster-serves-elsewhere")
    assert f"the cluster lives: an API server is ready at {ELSEWHERE}" in ended.err and "entry 900" in ended.err


@pytest.mark.parametrize("reads", [0, 401, 403, 429, (504, 0), (504, 504, 429)])
def test_an_api_server_that_may_have_a_quorum_counts_as_one_that_has(
    monkeypatch: pytest.MonkeyPatch, reads: Union[int, Sequence[int]]
) -> None:
    ended = refused(lead_elsewhere(monkeypatch, reads=reads), *LOST, code="cluster-serves-elsewhere")
    assert "the cluster may live" in ended.err and "whether its etcd has a quorum" in ended.err


@pytest.mark.parametrize("reads", [(0, 504), (504, 0, 504), (504, 429, 504)])
def test_what_is_in_doubt_is_asked_again(monkeypatch: pytest.MonkeyPatch, reads: Sequence[int]) -> None:
    """Its kubelet ends an API server without a quorum now and then: a connection is cut, and the next one says what is missing."""
    ended = kb(lead_elsewhere(monkeypatch, reads=reads), *LOST)
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("reads", [(0, 200), (429, 504, 200)])
def test_a_living_cluster_that_was_in_doubt_lives(monkeypatch: pytest.MonkeyPatch, reads: Sequence[int]) -> None:
    ended = refused(lead_elsewhere(monkeypatch, reads=reads), *LOST, code="cluster-serves-elsewhere")
    assert "the cluster lives" in ended.err


@pytest.mark.parametrize("status", [500, 503, 504])
def test_an_api_server_that_is_ready_without_a_quorum_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Some API servers leave etcd out of /readyz; behind a load balancer, it may be this machine's own."""
    host = lead_elsewhere(monkeypatch, reads=status, files=("admin.conf", "kubelet.conf"))
    began = host.ticks
    refused(host, "--lost", "cp2", "--yes", code="etcd-lost-not-named")
    assert host.ticks - began < 30
    ended = kb(host, *LOST)
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(("words", "missing"), [((), "cp2, cp3"), (("--lost", "cp2"), ": cp3")])
def test_the_operator_gives_their_word_for_each(words: tuple[str, ...], missing: str) -> None:
    ended = refused(make_lonely_plane(), *words, "--yes", code="etcd-lost-not-named")
    assert missing in ended.err and "kb etcd recover --lost cp2 --lost cp3" in ended.err and "entry 900" in ended.err


def test_words_that_name_no_other_member() -> None:
    refused(make_lonely_plane(), "--lost", "cp9", code="etcd-member-unknown")
    refused(make_lonely_plane(), "--lost", "cp1", code="etcd-member-not-lost")
    refused(make_lonely_plane(), "--lost", "cp2", "--lost", "10.0.0.13", code="not-confirmed")


def test_the_copy_must_fit_and_none_must_be_there() -> None:
    refused(make_lonely_plane(free=1 << 20), *LOST, code="etcd-copy-no-room")
    host = make_lonely_plane()
    host.files[f"{COPY}/member/snap/db"] = b"kept"
    refused(host, *LOST, code="etcd-copy-exists")


# ---- the recovery


@pytest.mark.parametrize("has_been_restarted", [False, True])
def test_the_one_that_is_left_goes_on_alone(has_been_restarted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_lonely_plane(has_been_restarted=has_been_restarted)
    if has_been_restarted:
        give_file(monkeypatch)
    ended = kb(host, *LOST, "-o", "json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    assert (told["status"], told["member"], told["lost"], told["index"]) == ("recovered", "cp1", ["cp2", "cp3"], 900)
    expect_recovered(host)
    assert "kb reset" in kb(make_lonely_plane(), *LOST).out
    again = kb(host, *LOST)
    assert again.status == 0 and "nothing to recover" in again.out


def test_a_kubelet_that_no_api_server_has_answered_is_started_anew() -> None:
    """It would never finish with the former pod, and so never start the next one of that name."""
    host = make_lonely_plane(kubelet_answers=False, never_cleans_up=True)
    ended = kb(host, *LOST)
    assert ended.status == 0, ended.err
    host.never_cleans_up = False
    expect_recovered(host)
    assert "run systemctl stop kubelet" in host.changes and host.kubelet_runs
    assert kb(host, "--undo", "--yes").status == 0 and host.kubelet_runs


def give_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd's file, which a member that answers nobody is read from."""
    from kubeup.node import etcd_file

    rows = tuple(
        etcd_file.FileMember(str(n), f"cp{n}", (f"https://10.0.0.1{n}:2380",), (f"https://10.0.0.1{n}:2379",), False)
        for n in (1, 2, 3)
    )
    monkeypatch.setattr(etcd_file, "read_content", lambda host, folder: etcd_file.Content(rows, 900, 7))


def test_a_dry_run_says_it_and_does_nothing() -> None:
    host = make_lonely_plane()
    before = dict(host.files)
    ended = kb(host, *LOST[:-1], "--dry-run")
    assert ended.status == 0 and "nothing was changed" in ended.out, ended.err
    assert host.files == before and host.events == []


def test_what_does_not_start_alone_is_taken_back() -> None:
    host = make_lonely_plane(fails_when_forced=True)
    before = manifests_of(host)
    ended = kb(host, *LOST)
    assert ended.status != 0 and "Bringing the former data and manifests back" in ended.err
    expect_as_before(host, before)


def test_undo_brings_the_former_data_back() -> None:
    host = make_lonely_plane()
    before = manifests_of(host)
    assert kb(host, *LOST).status == 0
    assert "code:   not-confirmed\n" in kb(host, "--undo").err
    assert kb(host, "--undo", "--yes").status == 0
    expect_as_before(host, before)
    assert "code:   nothing-to-undo\n" in kb(host, "--undo", "--yes").err


def count_changes() -> int:
    host = make_lonely_plane()
    assert kb(host, *LOST).status == 0
    return len(host.changes)


@pytest.mark.parametrize("undoes", [False, True])
def test_killed_after_any_change_it_ends_the_same(undoes: bool) -> None:
    for number in range(1, count_changes() + 1):
        host = make_lonely_plane()
        before = manifests_of(host)
        host.dies_after = number
        with pytest.raises(Gone):
            kb(host, *LOST)
        host.revive()
        record = json.loads(host.files.get("/var/lib/kb/swap/recovery.json", b"{}"))
        if undoes and record.get("status") == "running":
            ended = kb(host, "--undo", "--yes")
            assert ended.status == 0, f"{number}: {ended.err}"
            expect_as_before(host, before)
        else:
            ended = kb(host, *LOST)
            assert ended.status == 0, f"{number}: {ended.err}"
            expect_recovered(host)


@pytest.mark.parametrize("words", [LOST, ("--undo", "--yes"), ()])
def test_a_dry_run_of_one_that_was_cut_off_does_nothing_either(words: tuple[str, ...]) -> None:
    host = make_lonely_plane()
    host.dies_after = 8
    with pytest.raises(Gone):
        kb(host, *LOST)
    host.revive()
    for status in ("running", "going back"):
        path = "/var/lib/kb/swap/recovery.json"
        host.files[path] = json.dumps({**json.loads(host.files[path]), "status": status}).encode()
        before, events = dict(host.files), len(host.events)
        ended = kb(host, *words, "--dry-run")
        assert ended.status == 0 and "nothing was changed" in ended.out, ended.err
        assert host.files == before and len(host.events) == events


def test_killed_on_the_way_back_it_goes_on_back() -> None:
    done = make_lonely_plane()
    assert kb(done, *LOST).status == 0
    made = len(done.changes)
    assert kb(done, "--undo", "--yes").status == 0
    for number in range(made + 1, len(done.changes) + 1):
        host = make_lonely_plane()
        before = manifests_of(host)
        assert kb(host, *LOST).status == 0
        host.dies_after = number
        with pytest.raises(Gone):
            kb(host, "--undo", "--yes")
        host.revive()
        ended = (
            kb(host, *LOST)
            if json.loads(host.files["/var/lib/kb/swap/recovery.json"])["status"] == "going back"
            else kb(host, "--undo", "--yes")
        )
        assert ended.status == 0 or "nothing-to-undo" in ended.err, f"{number}: {ended.err}"
        expect_as_before(host, before)


def test_other_commands_wait_for_one_that_was_cut_off() -> None:
    host = make_lonely_plane()
    host.dies_after = 8
    with pytest.raises(Gone):
        kb(host, *LOST)
    host.revive()

    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["etcd", "defrag", "--yes"], make, limit_s=60)
    assert "code:   recovery-cut-off\n" in ended.err


# ---- which of several


def test_the_one_whose_data_end_last_is_the_one_to_recover_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's end at entry 900."""
    host = make_lonely_plane()
    ended = refused(host, *LOST, "--known", "cp2=950", "--known", "cp3=10", code="etcd-newer-elsewhere")
    assert "cp2 has the data up to entry 950 (as given), and this machine up to entry 900" in ended.err
    assert "50 entries would be lost" in ended.err
    assert "recover on cp2 instead, where its data are: kb etcd recover --lost cp1 --lost cp3" in ended.err
    assert "cp3 has the data up to entry 10 (as given)" in ended.err, "each is shown"
    assert kb(host, *LOST, "--known", "cp2=950", "--force").status == 0
    expect_recovered(host)
    assert kb(make_lonely_plane(), *LOST, "--known", "cp2=900").status == 0


def test_a_folder_with_the_data_of_another_one_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(etcd_file.FileMember(str(index), f"cp{index}", (), (), False) for index in (1, 2))
    seen: list[str] = []

    def read(host: object, data_dir: Path) -> etcd_file.Content:
        seen.append(str(data_dir))
        return etcd_file.Content(rows, 950, 4)

    monkeypatch.setattr(etcd_file, "read_content", read)
    ended = refused(make_lonely_plane(), *LOST, "--known", "cp2=/mnt/etcd", code="etcd-newer-elsewhere")
    assert "cp2 has the data up to entry 950 (/mnt/etcd)" in ended.err and seen == ["/mnt/etcd"]
    refused(make_lonely_plane(), *LOST, "--known", "cp3=/mnt/etcd", code="etcd-member-unknown")


@pytest.mark.parametrize("words", ["cp2", "cp2=", "cp2=x", "cp2=-1", "cp2=etcd", "cp2=٣"])
def test_words_that_say_nothing_of_another_one(words: str) -> None:
    refused(make_lonely_plane(), *LOST, "--known", words, code="bad-known-entry")
    refused(make_lonely_plane(), *LOST, "--known", "cp9=7", code="etcd-member-unknown")
    refused(make_lonely_plane(), *LOST, "--known", "cp1=7", code="etcd-member-unknown")


def test_one_that_answers_without_a_quorum_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that do not reach each other: each answers what needs no quorum."""
    host = make_lonely_plane(listens=frozenset({"10.0.0.12:2379"}))
    http_ask = host.http_ask

    def ask(url: str, body: bytes, **more: Any) -> HttpResponse:
        if url == "https://10.0.0.12:2379/v3/maintenance/status":
            told = {"header": {"member_id": "2"}, "raftIndex": "950", "errors": ["etcdserver: no leader"]}
            return HttpResponse(200, json.dumps(told).encode())
        return http_ask(url, body, **more)

    monkeypatch.setattr(host, "http_ask", ask)
    ended = refused(host, *LOST, code="etcd-member-reachable")
    assert "cp2 has the data up to entry 950 (it says so itself); of them, cp2 is the one to recover on" in ended.err
