"""The commands etcd defrag, etcd alarm, etcd compact, etcd leader and etcd snapshot: the upkeep for which admins otherwise need etcdctl, in the order
that is safe. They run on a control plane, and query etcd itself, so they need no API server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.commands import etcd as members_command
from kubeup.commands import launcher
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.backup import making
    from kubeup.cluster import etcd, etcd_snapshot, etcd_upkeep
    from kubeup.doctor import node_files
    from kubeup.machine import process

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.etcd import Etcd, Member, Status
    from kubeup.cluster.etcd_upkeep import Defragmented
    from kubeup.machine.local_host import LocalHost

MARGIN = 64 << 20
"""Bytes that stay free on the disk beside the file that defragmenting writes."""


@frozen
class _Scene:
    """etcd as this control plane finds it. flags: of this node's etcd."""

    call: Invocation
    local: LocalHost
    client: Etcd
    members: tuple[Member, ...]
    statuses: Mapping[str, Status]
    flags: Mapping[str, str]

    def look_again(self) -> Mapping[str, Status]:
        return etcd.read_statuses(self.client, self.members)

    @property
    def is_dry(self) -> bool:
        return bool(self.call.flags.get("dry-run"))

    @property
    def quota(self) -> int:
        """--quota-backend-bytes of this node's etcd."""
        given = self.flags.get("quota-backend-bytes", "")
        return int(given) if given.isdecimal() and int(given) else etcd_upkeep.DEFAULT_QUOTA


def _look(launch: launcher.Launch, *, instead: str) -> _Scene:
    """instead: what the operator of an external etcd tells etcdctl. Raises HostError (no-local-etcd), UsageError (etcd-is-external)."""
    call, local = launch.call, launch.local
    client = members_command.find_client(call, local, instead=instead)
    found = client.list_members(is_sure=False)
    flags = node_files.read_flags(local, Paths(), component="etcd")
    return _Scene(call, local, client, found, etcd.read_statuses(client, found), flags)


# ---- defrag


def defrag(call: Invocation) -> int:
    """Defragment every member, one after the other, and say what was freed."""
    launch = launcher.Launch(call)
    launch.require_root()
    with members_command.hold_turn(launch, instead="defrag") as hold_on:
        scene = _look(launch, instead="defrag")
        etcd_upkeep.check_all_serve(scene.members, scene.statuses)
        _check_room(scene)
        if launch.is_dry:
            return _print_plan(scene, list(_foretell_defrag(scene)))
        _ask_for_gap(scene)
        done = [_tell(scene, one) for one in _defragment(scene, hold_on)]
    if call.output != "text":
        call.print_value([_describe(one) for one in done])
    else:
        call.print(f"{etcd_upkeep.in_mib(sum(one.freed for one in done))} MiB were freed on {len(done)} members")
    return 0


def _foretell_defrag(scene: _Scene) -> Iterator[str]:
    for member in etcd_upkeep.order_of(scene.members, scene.statuses):
        status = scene.statuses[member.member_id]
        size, used = etcd_upkeep.in_mib(status.db_size), etcd_upkeep.in_mib(status.db_in_use)
        yield f"defragment {_name(member)}: {size} MiB, of which {used} MiB are in use"
    why = etcd_upkeep.stop_gap(scene.members, scene.statuses)
    if why:
        yield f"pause the API meanwhile: {why}"


def _print_plan(scene: _Scene, steps: Sequence[str]) -> int:
    """The end of a dry run."""
    if scene.call.output != "text":
        scene.call.print_value({"dryRun": True, "would": list(steps)})
        return 0
    for step in steps:
        scene.call.print(f"would {step}")
    scene.call.print("nothing was changed")
    return 0


def _check_room(scene: _Scene) -> None:
    """Raises HostError (disk-full). Only this machine's disk can be seen; on another one a full disk ends the step and changes nothing."""
    own = etcd.find_by_peer_url(scene.members, scene.flags.get("initial-advertise-peer-urls", ""))
    others = [member for member in scene.members if member is not own]
    if own is not None:
        folder = Path(scene.flags.get("data-dir") or Paths().etcd_data)
        needed = scene.statuses[own.member_id].db_in_use + MARGIN
        free = scene.local.free_bytes(folder)
        if free < needed:
            raise HostError(
                f"{folder} has {free >> 20} MiB of free space",
                cause=f"etcd writes its file anew beside the old one, which takes {etcd_upkeep.in_mib(needed)} MiB; nothing was changed",
                remedy=f"make space: du -xh {folder.parent} | sort -h | tail",
                code="disk-full",
            )
    for member in others:
        needed = etcd_upkeep.in_mib(scene.statuses[member.member_id].db_in_use + MARGIN)
        scene.call.report.detail(
            f"not proven: whether {member.name} has {needed} MiB of free space, which is seen only there"
        )


def _ask_for_gap(scene: _Scene) -> None:
    why = etcd_upkeep.stop_gap(scene.members, scene.statuses)
    if why:
        size = etcd_upkeep.in_mib(max(status.db_size for status in scene.statuses.values()))
        question = f"The cluster's API pauses while etcd rewrites {size} MiB, since it answers nobody meanwhile: {why}. Pods keep running."
        launcher.agree(scene.call, question)


def _defragment(scene: _Scene, hold_on: Callable[[], None]) -> Iterator[Defragmented]:
    for member in etcd_upkeep.order_of(scene.members, scene.statuses):
        hold_on()
        scene.call.report.waiting(f"{member.name or member.hex_id} defragments")
        yield etcd_upkeep.defragment_one(scene.client, scene.members, member)


def _tell(scene: _Scene, done: Defragmented) -> Defragmented:
    """Say it at once: the next member may take long."""
    before, after = etcd_upkeep.in_mib(done.before), etcd_upkeep.in_mib(done.after)
    scene.call.report.note(
        f"{done.member.name or done.member.hex_id}: {before} MiB, now {after} MiB; {done.took_s:.1f} s"
    )
    return done


def _describe(done: Defragmented) -> dict[str, Any]:
    return {
        "id": done.member.hex_id,
        "name": done.member.name,
        "sizeBefore": done.before,
        "sizeAfter": done.after,
        "freed": done.freed,
        "seconds": round(done.took_s, 2),
    }


# ---- compact


def compact(call: Invocation) -> int:
    """Forget the history up to a revision; by default up to the one that the API servers compact to at their next turn."""
    launch = launcher.Launch(call)
    launch.require_root()
    wanted = _read_revision(call)
    with members_command.hold_turn(launch, instead="compact REVISION"):
        scene = _look(launch, instead="compact REVISION")
        newest, floor = etcd_upkeep.find_floor(scene.client)
        if wanted > newest:
            raise UsageError(
                f"etcd has no revision {wanted} yet",
                cause=f"its newest is {newest}",
                remedy="kb etcd compact, which chooses the revision itself",
                code="etcd-revision-unknown",
            )
        revision = wanted or floor
        if floor and revision > floor:
            call.report.warn(
                f"revisions up to {revision} are younger than what the API servers keep ({floor}): lists that clients read in pages begin anew"
            )
        if launch.is_dry:
            step = f"have etcd forget what was before revision {revision} of {newest}, as far as it still knows it"
            return _print_plan(scene, [step] if revision else [])
        is_done = bool(revision) and etcd_upkeep.compact(scene.client, revision, statuses=scene.statuses)
    if call.output != "text":
        call.print_value({"revision": newest, "compacted": revision if is_done else None})
    elif is_done:
        call.print(
            f"etcd has forgotten what was before revision {revision} of {newest}; to give back the space: kb etcd defrag"
        )
    else:
        why = f"revision {revision} was compacted already" if revision else "no API server has compacted this etcd yet"
        call.print(f"nothing to compact: {why}; the newest revision is {newest}")
    return 0


def _read_revision(call: Invocation) -> int:
    if not call.words:
        return 0
    word = call.words[0]
    if len(call.words) > 1 or not word.isascii() or not word.isdecimal() or len(word) > 18 or not int(word):
        raise UsageError(
            f"{' '.join(call.words)!r} is not a revision of etcd",
            cause="kb etcd compact takes one number, or none",
            remedy="kb etcd compact, which chooses the revision itself",
            code="usage",
        )
    return int(word)


# ---- alarm


def alarm(call: Invocation) -> int:
    """List the alarms, or make room and disarm them."""
    verb = " ".join(call.words) or "list"
    if verb not in ("list", "disarm"):
        raise UsageError(
            f"kb etcd alarm {verb}",
            cause="it takes list (the default) or disarm",
            remedy="kb etcd alarm list",
            code="usage",
        )
    launch = launcher.Launch(call)
    launch.require_root()
    if verb == "list":
        scene = _look(launch, instead="alarm list")
        return _print_alarms(scene, scene.client.list_alarms())
    with members_command.hold_turn(launch, instead="alarm disarm") as hold_on:
        scene = _look(launch, instead="alarm disarm")
        return _disarm(scene, hold_on)


def _print_alarms(scene: _Scene, alarms: Sequence[etcd.Alarm]) -> int:
    by_id = {member.member_id: member for member in scene.members}
    rows = [
        {
            "alarm": one.kind,
            "id": f"{int(one.member_id):x}",
            "name": by_id[one.member_id].name if one.member_id in by_id else "",
        }
        for one in alarms
    ]
    if scene.call.output != "text":
        scene.call.print_value(rows)
        return 0
    for row in rows:
        scene.call.print(f"{row['alarm']}  {row['name'] or row['id']}")
    scene.call.print("to make room and take writes again: kb etcd alarm disarm" if rows else "no alarm is raised")
    return 0


def _disarm(scene: _Scene, hold_on: Callable[[], None]) -> int:
    """Compact, defragment, see that there is room, and disarm."""
    alarms = scene.client.list_alarms()
    etcd_upkeep.refuse_corrupt(alarms, scene.members)
    done: list[Defragmented] = []
    if any(one.kind == "NOSPACE" for one in alarms):
        etcd_upkeep.check_all_serve(scene.members, scene.statuses)
        _check_room(scene)
        if scene.is_dry:
            return _print_plan(
                scene, ["have etcd forget its history", *_foretell_defrag(scene), *_foretell_disarm(alarms)]
            )
        _ask_for_gap(scene)
        newest, _ = etcd_upkeep.find_floor(scene.client)
        # etcd takes no writes, so nobody waits for its history, and the API servers' own compaction is refused
        if newest and etcd_upkeep.compact(scene.client, newest, statuses=scene.statuses):
            scene.call.report.note(f"etcd has forgotten what was before revision {newest}")
        done = [_tell(scene, one) for one in _defragment(scene, hold_on)]
        etcd_upkeep.refuse_full(etcd_upkeep.find_full(scene.members, scene.look_again(), quota=scene.quota))
    if scene.is_dry:
        return _print_plan(scene, list(_foretell_disarm(alarms)))
    for one in alarms:
        scene.client.disarm(one)
    left = scene.client.list_alarms()
    if scene.call.output != "text":
        scene.call.print_value(
            {"disarmed": len(alarms) - len(left), "left": len(left), "members": [_describe(one) for one in done]}
        )
    elif alarms and not left:
        scene.call.print("disarmed: etcd takes writes again")
    else:
        scene.call.print("no alarm is raised" if not left else "an alarm was raised again: kb etcd alarm list")
    return 1 if left else 0


def _foretell_disarm(alarms: Sequence[etcd.Alarm]) -> Iterator[str]:
    for one in alarms:
        yield f"disarm {one.kind} of member {int(one.member_id):x}"


# ---- leader


def leader(call: Invocation) -> int:
    """Show which member leads, or have another one lead."""
    if len(call.words) > 1:
        raise UsageError(
            "kb etcd leader takes one member, or none",
            cause=f"{len(call.words)} were named",
            remedy="name the one that is to lead: kb etcd members",
            code="usage",
        )
    launch = launcher.Launch(call)
    launch.require_root()
    scene = _look(launch, instead="move-leader ID" if call.words else "")
    is_moved = False
    if call.words:
        to = etcd.match_member(scene.members, call.words[0])
        if launch.is_dry:
            former = etcd_upkeep.find_former_leader(scene.client, scene.members, to=to)
            step = f"have {_name(to)} lead etcd, in the place of {_name(former)}"
            return _print_plan(scene, [step] if former else [])
        with members_command.hold_turn(launch, instead="move-leader ID"):
            is_moved = etcd_upkeep.move_leader(scene.client, scene.members, to=to, tell=call.report.detail)
    found = etcd_upkeep.find_leader(scene.members, scene.look_again())
    if call.output != "text":
        call.print_value({"leader": _name(found), "id": found.hex_id if found else None, "moved": is_moved})
    elif found is None:
        call.print("no member leads: etcd has no quorum, or elects a leader right now")
    else:
        call.print(f"{_name(found)} leads etcd{'' if is_moved or not call.words else ' already'}")
    return 0 if found else 1


def _name(member: Optional[Member]) -> Optional[str]:
    return (member.name or member.hex_id) if member else None


# ---- snapshot


def snapshot(call: Invocation) -> int:
    """Save etcd's data as `etcdctl snapshot save` does, their hash checked: as a whole, or not at all."""
    launch = launcher.Launch(call)
    launch.require_root()
    if len(call.words) != 1:
        raise UsageError(
            "kb etcd snapshot takes one file",
            cause=f"{len(call.words)} were named",
            remedy="name the file to write, or - for standard output: kb etcd snapshot FILE",
            code="usage",
        )
    target = call.words[0]
    if process.given_descriptor(target) == 1 and call.output != "text":
        raise UsageError(
            f"kb etcd snapshot {target} --output {call.output}",
            cause="the snapshot and what is said of it would both go to standard output",
            remedy="leave --output out, or name a file",
            code="usage",
        )
    client = members_command.find_client(call, launch.local)
    measured = _Measured(etcd_snapshot.stream_snapshot(client))
    _check_room_for(launch.local, client, target=target)
    if not process.is_stream(target):
        making.sweep_beside(launch.local, Path(target))
    launch.local.write_output(target, measured, is_secret=True, has_to_be_whole=True)
    text = f"{target}: {etcd_upkeep.in_mib(measured.size)} MiB, its hash is right; whoever has it has all Secrets of the cluster"
    if call.output != "text":
        call.print_value({"file": target, "size": measured.size, "sha256": measured.digest.hexdigest()})
    elif process.given_descriptor(target) == 1:
        call.report.line(text)
    else:
        call.print(f"{text}\nsha256:{measured.digest.hexdigest()}")
    return 0


class _Measured:
    """Pieces, with the size and the hash of those that have passed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.size = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.size += len(piece)
            self.digest.update(piece)
            yield piece


def _check_room_for(local: LocalHost, client: Etcd, *, target: str) -> None:
    """Raises HostError (disk-full)."""
    folder = Path(target).absolute().parent
    if process.is_stream(target) or not local.is_dir(folder):
        return
    needed = max(client.read_status(endpoint).db_size for endpoint in client.endpoints) + MARGIN
    free = local.free_bytes(folder)
    if free < needed:
        raise HostError(
            f"there is no room for a snapshot in {folder}",
            cause=f"it takes up to {needed >> 20} MiB, and the file system has {free >> 20} MiB free",
            remedy=f"make space there (df -h {folder}), or write it to another machine: kb etcd snapshot - | ssh HOST 'cat > FILE'",
            code="disk-full",
        )
