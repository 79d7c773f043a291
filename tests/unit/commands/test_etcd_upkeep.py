"""kb etcd defrag, compact, alarm and leader: the order, what is refused, and what is said."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeup.machine.http import HttpStream
from kubeup.machine.local_host import LocalHost
from tests.fake_control_plane import MANIFESTS
from tests.fake_etcd import MIB, EtcdPlane, make_etcd_plane
from tests.fuzz.node import Ended, call
from tests.unit.backup.etcd_case import SNAPSHOT, Stream, messages


def kb(host: EtcdPlane, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["etcd", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def does(host: EtcdPlane, *words: str) -> Any:
    ended = kb(host, *words, "-o", "json")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def refused(host: EtcdPlane, *words: str, code: str) -> Ended:
    """Refused, and etcd was asked for no change."""
    ended = kb(host, *words)
    assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
    assert host.asked == []
    return ended


# ---- defrag


@pytest.mark.parametrize("leads", [1, 2, 3])
def test_the_followers_come_first_and_the_leader_hands_over(leads: int) -> None:
    host = make_etcd_plane(leads=leads)
    rows = does(host, "defrag")
    others = [f"cp{n}" for n in (1, 2, 3) if n != leads]
    assert [row["name"] for row in rows] == [*others, f"cp{leads}"]
    assert [row["freed"] for row in rows] == [80 * MIB] * 3
    assert host.done() == [
        *(f"{name} defragment" for name in others),
        f"cp{leads} transfer-leadership",
        f"cp{leads} defragment",
    ]
    assert host.leads != leads


def test_it_says_what_was_freed() -> None:
    ended = kb(make_etcd_plane(), "defrag")
    assert ended.status == 0 and "240 MiB were freed on 3 members" in ended.out
    assert "cp2: 100 MiB, now 20 MiB" in ended.err


def test_a_single_member_asks_first() -> None:
    host = make_etcd_plane(1)
    ended = refused(host, "defrag", code="not-confirmed")
    assert "API pauses while etcd rewrites 100 MiB" in ended.err and "kb etcd defrag --yes" in ended.err
    assert does(host, "defrag", "--yes")[0]["sizeAfter"] == 20 * MIB


def test_nothing_is_defragmented_while_a_member_is_away() -> None:
    host = make_etcd_plane()
    host.of_etcd[3].is_up = False
    assert "kb etcd remove cp3" in refused(host, "defrag", code="etcd-member-away").err


def test_a_member_that_does_not_come_back_is_the_last_that_was_touched() -> None:
    host = make_etcd_plane()
    host.of_etcd[2].comes_back = False
    ended = kb(host, "defrag")
    assert "code:   etcd-not-back\n" in ended.err and host.done() == ["cp2 defragment"]


def test_a_full_disk_refuses_it() -> None:
    host = make_etcd_plane(free=50 * MIB)
    assert "84 MiB" in refused(host, "defrag", code="disk-full").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("defrag",), ["would defragment cp2: 100 MiB, of which 20 MiB are in use", "would defragment cp1"]),
        (("compact",), ["would have etcd forget what was before revision 4000 of 5000"]),
        (("leader", "cp3"), ["would have cp3 lead etcd, in the place of cp1"]),
        (("leader", "cp1"), []),
        (("alarm", "disarm"), []),
    ],
)
def test_a_dry_run_asks_etcd_for_no_change(words: tuple[str, ...], said: list[str]) -> None:
    host = make_etcd_plane(leads=1)
    ended = kb(host, *words, "--dry-run")
    assert ended.status == 0 and ended.out.endswith("nothing was changed\n"), ended.err
    assert all(line in ended.out for line in said) and ("would" in ended.out) == bool(said), ended.out
    told = does(host, *words, "--dry-run")
    assert told["dryRun"] and len(told["would"]) >= len(said)
    assert host.asked == [] and not [one for one in host.changes if "/leases" in one]


def test_a_dry_run_is_refused_as_the_command_is() -> None:
    host = make_etcd_plane(alarms=[("3", "CORRUPT")])
    refused(host, "alarm", "disarm", "--dry-run", code="etcd-corrupt")
    host = make_etcd_plane()
    host.of_etcd[2].is_learner, host.of_etcd[3].is_up = True, False
    refused(host, "leader", "cp2", "--dry-run", code="etcd-leader-unfit")
    refused(host, "defrag", "--dry-run", code="etcd-member-away")
    refused(host, "compact", "5001", "--dry-run", code="etcd-revision-unknown")


def test_a_dry_run_of_an_alarm_says_what_makes_room() -> None:
    host = make_etcd_plane(alarms=[("2", "NOSPACE")], quota=110 * MIB)
    told = does(host, "alarm", "disarm", "--dry-run")["would"]
    assert told[0] == "have etcd forget its history" and told[-1] == "disarm NOSPACE of member 2"
    assert host.asked == [] and host.alarms == [("2", "NOSPACE")]


# ---- compact


def test_history_goes_as_far_as_the_api_servers_need_none() -> None:
    host = make_etcd_plane()
    assert does(host, "compact") == {"revision": 5000, "compacted": 4000}
    assert host.asked == [("cp1", "compaction", {"revision": "4000", "physical": True})]
    assert does(host, "compact") == {"revision": 5000, "compacted": None}, "once more is no error"


def test_a_revision_of_the_user_s() -> None:
    host = make_etcd_plane()
    assert "begin anew" in kb(host, "compact", "4500").err and host.compacted == 4500
    host.asked.clear()
    refused(host, "compact", "5001", code="etcd-revision-unknown")
    for word in ("0", "-1", "x", "٣", "9" * 30):
        refused(host, "compact", "--", word, code="usage")


def test_an_etcd_that_no_api_server_has_compacted_is_left_alone() -> None:
    host = make_etcd_plane(floor=0)
    assert does(host, "compact") == {"revision": 5000, "compacted": None} and host.asked == []


# ---- alarm


def test_room_is_made_before_the_alarm_is_disarmed() -> None:
    host = make_etcd_plane(alarms=[("2", "NOSPACE")], quota=110 * MIB)
    assert does(host, "alarm") == [{"alarm": "NOSPACE", "id": "2", "name": "cp2"}] and host.asked == []
    assert does(host, "alarm", "disarm")["disarmed"] == 1
    done = host.done()
    assert done[0] == "cp1 compaction" and host.compacted == host.revision
    assert done[-1] == "cp1 alarm" and done.count("cp1 defragment") == 1 and host.alarms == []


@pytest.mark.parametrize("told_by", ["status", "manifest"])
def test_without_room_the_alarm_stays(told_by: str) -> None:
    host = make_etcd_plane(alarms=[("1", "NOSPACE")])
    if told_by == "status":
        host.quota = 24 * MIB
    else:
        path = f"{MANIFESTS}/etcd.yaml"
        host.files[path] += f"    - --quota-backend-bytes={24 * MIB}\n".encode()
    ended = kb(host, "alarm", "disarm")
    assert "code:   etcd-no-room\n" in ended.err and "20 of 24 MiB on cp1" in ended.err
    assert host.alarms == [("1", "NOSPACE")]


def test_a_corrupt_member_is_not_hidden() -> None:
    host = make_etcd_plane(alarms=[("3", "CORRUPT")])
    ended = refused(host, "alarm", "disarm", code="etcd-corrupt")
    assert "cp3" in ended.err and "kb reset" in ended.err
    del host.of_etcd[3]
    assert does(host, "alarm", "disarm")["left"] == 0 and host.done() == ["cp1 alarm"]


def test_no_alarm() -> None:
    assert "no alarm is raised" in kb(make_etcd_plane(), "alarm").out
    assert does(make_etcd_plane(), "alarm", "disarm") == {"disarmed": 0, "left": 0, "members": []}
    refused(make_etcd_plane(), "alarm", "activate", code="usage")


# ---- leader


def test_the_leader_is_shown_and_moved() -> None:
    host = make_etcd_plane()
    assert does(host, "leader") == {"leader": "cp1", "id": "1", "moved": False} and host.asked == []
    assert does(host, "leader", "cp3") == {"leader": "cp3", "id": "3", "moved": True}
    assert host.asked == [("cp1", "transfer-leadership", {"targetID": "3"})]
    host.asked.clear()
    assert "cp3 leads etcd already" in kb(host, "leader", "cp3").out and host.asked == []


def test_who_may_not_lead() -> None:
    host = make_etcd_plane()
    host.of_etcd[2].is_learner, host.of_etcd[3].is_up = True, False
    assert "learner" in refused(host, "leader", "cp2", code="etcd-leader-unfit").err
    assert "refused" in refused(host, "leader", "cp3", code="etcd-leader-unfit").err
    refused(host, "leader", "cp9", code="etcd-member-unknown")
    host.leads = 0
    refused(host, "leader", "cp3", code="etcd-no-leader")


def test_etcd_of_others_is_left_to_its_operator() -> None:
    host = make_etcd_plane()
    del host.files[f"{MANIFESTS}/etcd.yaml"]
    for words in (("defrag",), ("compact",), ("alarm", "disarm"), ("leader", "cp2"), ("remove", "cp2")):
        ended = kb(host, *words)
        assert "code:   etcd-is-external\n" in ended.err and "etcdctl --endpoints" in ended.err


# ---- snapshot


class Streaming(EtcdPlane):
    pieces: tuple[bytes, ...] = (messages(SNAPSHOT),)

    @contextlib.contextmanager
    def http_open(self, url: str, **_: Any) -> Iterator[HttpStream]:
        yield Stream(url, self.pieces)

    def write_output(self, target: str, chunks: Iterable[bytes], *, is_secret: bool = False, **_: bool) -> None:
        assert is_secret
        self.write_file(Path(target), b"".join(chunks), mode=0o600)


def streaming(**fields: Any) -> Streaming:
    host = Streaming()
    host.__dict__.update(make_etcd_plane(1, **fields).__dict__)
    host.dirs.add("/b")
    return host


def test_what_a_killed_snapshot_left_is_removed() -> None:
    host = streaming()
    half, other = "/b/.s.db.kb-999999999-7f00", "/b/.c.db.kb-999999999-7f00"
    host.files |= {half: b"half", other: b"half"}
    does(host, "snapshot", "/b/s.db")
    assert half not in host.files and other in host.files


def test_a_snapshot_is_saved_with_its_hash() -> None:
    host = streaming()
    told = does(host, "snapshot", "/b/s.db")
    assert host.files["/b/s.db"] == SNAPSHOT and len(SNAPSHOT) % 512 == 32
    assert told == {"file": "/b/s.db", "size": len(SNAPSHOT), "sha256": hashlib.sha256(SNAPSHOT).hexdigest()}


def test_a_snapshot_that_ends_early_is_none() -> None:
    host = streaming()
    host.pieces = (messages(SNAPSHOT[:-600]),)
    ended = kb(host, "snapshot", "/b/s.db")
    assert ended.status != 0 and "snapshot-" in ended.err and "/b/s.db" not in host.files
    refused(streaming(free=1 << 20), "snapshot", "/b/s.db", code="disk-full")
    refused(streaming(), "snapshot", code="usage")


# ---- remove


def test_a_member_that_is_lost_is_removed() -> None:
    host = make_etcd_plane()
    host.of_etcd[3].is_up = False
    ended = kb(host, "remove", "cp3")
    assert ended.status == 0 and "removed: cp3 (https://10.0.0.13:2380); 2 members are left" in ended.out, ended.err


def test_a_removal_is_foretold_and_told_to_programs() -> None:
    host = make_etcd_plane()
    assert "etcd-member-serves" in kb(host, "remove", "cp3", "--dry-run").err
    host.of_etcd[3].is_up = False
    ended = kb(host, "remove", "cp3", "--dry-run")
    assert ended.out == "would remove cp3 (https://10.0.0.13:2380); left would be: cp1, cp2\nnothing was changed\n", (
        ended.err
    )
    assert does(host, "remove", "cp3", "--dry-run")["dryRun"]
    assert host.asked == [] and not host.changes
    assert does(host, "remove", "cp3") == {"dryRun": False, "removed": "cp3", "left": ["cp1", "cp2"]}
    assert host.done() == ["cp1 remove"]
    assert host.asked == [("cp1", "remove", {"ID": "3"})]
    refused(make_etcd_plane(), "remove", "cp3", code="etcd-member-serves")
    refused(make_etcd_plane(), "remove", code="usage")


# ---- one admin at a time


LEASE = {
    "metadata": {"name": "kb-static-pods"},
    "spec": {"holderIdentity": "cp2", "leaseDurationSeconds": 600, "renewTime": "2026-01-01T00:00:00.000000Z"},
}


@pytest.mark.parametrize(
    "words", [("defrag",), ("compact",), ("alarm", "disarm"), ("leader", "cp2"), ("remove", "cp2", "--force")]
)
def test_two_admins_on_two_machines_are_kept_apart(words: tuple[str, ...]) -> None:
    host = make_etcd_plane(alarms=[("1", "NOSPACE")] if words[0] == "alarm" else [])
    host.leases["kb-static-pods"] = json.loads(json.dumps(LEASE))
    told = refused(host, *words, code="swap-elsewhere").err
    assert "control plane cp2 works on etcd" in told and "delete lease kb-static-pods" in told
    del host.leases["kb-static-pods"]
    assert kb(host, *words).status == 0 and not host.leases
    sent = [one for one in host.changes if "/leases" in one]
    assert sent[0].startswith("POST ") and sent[-1].startswith("DELETE ")


def test_the_lease_is_held_on_from_member_to_member() -> None:
    host = make_etcd_plane()
    does(host, "defrag")
    assert [one.partition(" ")[0] for one in host.changes if "/leases" in one] == [
        "POST",
        "PUT",
        "PUT",
        "PUT",
        "DELETE",
    ]


def test_without_an_api_server_it_goes_on_and_says_so() -> None:
    class Silent(EtcdPlane):
        def serves(self, name: str) -> bool:
            return name != "kube-apiserver" and super().serves(name)

    host = Silent()
    host.__dict__.update(make_etcd_plane().__dict__)
    ended = kb(host, "defrag")
    assert (
        ended.status == 0 and ended.err.count("other control planes are not kept from working on etcd meanwhile") == 1
    )
