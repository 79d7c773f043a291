"""The command backup schedule: switches the timer that makes backups on or off, says how it stands, and is what the timer runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments
from kubeup.commands import backup, launcher, timers
from kubeup.commands.launcher import Launch
from kubeup.engine.step import Phase
from kubeup.errors import HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.backup import destination, encryption, making, opening, schedule
    from kubeup.doctor import node_files
    from kubeup.machine import http, own_copy, services, waiting
    from kubeup.phases import backup_timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kubeup.cli.program import Invocation

_COMMAND = "kb backup schedule"
_BOOT_S = 300.0
"""How long a run waits for etcd and the API server: after a boot the timer makes up for a missed backup before the kubelet has started them."""


def backup_schedule(call: Invocation) -> int:
    """Run `kb backup schedule WHEN|off|status`, or `run` for the timer."""
    launch = Launch(call)
    launch.require_root()
    word = " ".join(call.words)
    if not word:
        raise UsageError(
            _COMMAND,
            cause="it takes when to make backups, off, or status",
            remedy=f"for example: {_COMMAND} daily --to /backup; how it stands: {_COMMAND} status",
            code="usage",
        )
    if word == "run":
        if launch.is_dry:
            raise UsageError(
                f"{_COMMAND} run --dry-run",
                cause="run does at once what the timer does, and has no dry run",
                remedy="see what would be in a backup: kb backup --dry-run",
                code="usage",
            )
        return _run_now(launch)
    if word == "status":
        return _show(launch)
    return _switch(launch, None if word == "off" else _read_wishes(call, word, launch=launch))


def _read_wishes(call: Invocation, when: str, *, launch: Launch) -> schedule.Schedule:
    schedule.parse_when(when)
    recipients = backup.find_recipients(call)
    keep = int(call.flags.get("keep", schedule.KEEP))
    if keep < 1:
        raise UsageError(f"--keep {keep}", cause="no backup would be kept", remedy="give at least 1", code="usage")
    to = str(launcher.required(call, "to"))
    wanted = schedule.Schedule(when, to, keep, recipients.age, recipients.gpg)
    if services.find(launch.local) is not services.SYSTEMD:
        raise _no_timers(wanted)
    destination.find_destination(launch.local, to)
    encryption.check_recipients(launch.local, recipients)
    return wanted


def _no_timers(wanted: schedule.Schedule) -> HostError:
    program = own_copy.find_running_pyz() or "kb.py"
    when = wanted.when if len(wanted.when.split()) == 5 else "30 3 * * *"
    words = [f"--{name} {one}" for name in ("age", "gpg") for one in getattr(wanted, name)]
    name = "kb-$(date +\\%F).tar"
    is_folder = wanted.to.startswith("/")
    parts = [when, sys.executable, str(program), "backup", "-o", f"{wanted.to}/{name}" if is_folder else "-", *words]
    line = " ".join(parts) + ("" if is_folder else f" | PROGRAM, one that sends its input to {wanted.to}/{name}")
    return timers.no_timers(line)


# ---- on, off, status


def _switch(launch: Launch, wanted: Optional[schedule.Schedule]) -> int:
    patient = node_files.read_patient(launch.local, Paths())
    paths = patient.paths
    if wanted is not None:
        backup.require_control_plane(patient)
    switch_off = Phase(
        "backup-timer-off", "Remove the timer that makes backups", plan=backup_timer.plan_no_timer, live="node"
    )
    with launch.locked(paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=paths)
        base = launcher.make_run(launch.target, patient.config, paths=paths, report=launch.call.report)
        if wanted is not None:
            result = launch.work(backup_timer.ScheduleRun(**base.values(), schedule=wanted), node_state)
        else:
            # by its name, so that it is done again whatever an earlier run recorded
            result = launch.work(base, node_state, phases=(switch_off,), only=switch_off.name)
    launch.print_result(result)
    return 0


def _show(launch: Launch) -> int:
    """Print the schedule, and how the last run ended."""
    paths = Paths()
    has_one = launch.local.exists(schedule.schedule_file(paths))
    wanted = schedule.read_schedule(launch.local, paths) if has_one else None
    last = schedule.read_last(launch.local, paths)
    if launch.call.output != "text":
        value: dict[str, Any] = {"on": wanted is not None}
        value["schedule"] = dataclasses.asdict(wanted) if wanted else None
        value["last"] = dataclasses.asdict(last) if last else None
        launch.call.print_value(value)
        return 0
    if wanted is None:
        launch.call.print("no backups are scheduled")
        return 0
    launch.call.print(f"backups are made {wanted.when}, to {wanted.to}, and {wanted.keep} are kept")
    if last is None:
        launch.call.print("  none was made yet")
    else:
        launch.call.print(
            f"  last: {last.ended or f'began {last.began}, and has not ended'}  {last.error or last.file}"
        )
    return 0


# ---- what the timer runs


def _run_now(launch: Launch) -> int:
    """Make a backup, then remove the oldest. How it ended is written down for the doctor. Raises what the backup raises."""
    local, paths = launch.local, Paths()
    wanted = schedule.read_schedule(local, paths) if local.exists(schedule.schedule_file(paths)) else None
    if wanted is None:
        raise HostError(
            "no backups are scheduled on this node",
            cause=f"there is no {schedule.schedule_file(paths)}, or it is damaged",
            remedy=f"{_COMMAND} daily --to DIR",
            code="no-schedule",
        )
    before = schedule.read_last(local, paths)
    last = schedule.Last(_now(launch), file=before.file if before else "", good=before.good if before else "")
    schedule.write_last(local, paths, last=last)
    try:
        place, remove_old = _make(launch, wanted)
        last = dataclasses.replace(last, ended=_now(launch), file=place, good=_now(launch))
        remove_old()
    except KbError as error:
        schedule.write_last(local, paths, last=dataclasses.replace(last, ended=_now(launch), error=str(error)))
        raise
    schedule.write_last(local, paths, last=last)
    launch.call.print(place)
    return 0


def _now(launch: Launch) -> str:
    return moments.show(launch.local.now())


def _wait_until_up(launch: Launch, source: making.Source) -> None:
    """Wait until etcd and this node's API server answer, but not for ever: what is wrong with them, the backup says."""

    def look() -> str:
        if all(source.client.probe_read(one).startswith("no answer") for one in source.client.endpoints):
            return "etcd does not answer"
        try:
            is_ready = source.api is None or source.api.probe_health("/readyz").status == 200
        except http.Unreachable:
            is_ready = False
        return "" if is_ready else "the API server is not ready"

    def tell(missing: str, elapsed: float) -> bool:
        launch.call.report.waiting(
            waiting.say_round("etcd and the API server", missing, elapsed=elapsed, timeout_s=_BOOT_S)
        )
        return False

    waiting.watch(launch.local, look, timeout_s=_BOOT_S, is_over=tell, poll_s=2.0)


def _make(launch: Launch, wanted: schedule.Schedule) -> tuple[str, Callable[[], None]]:
    """Make a backup. Returns where it is, and what removes those that are older than wanted."""
    local, call = launch.local, launch.call
    recipients = encryption.Recipients(wanted.age, wanted.gpg)
    encryption.check_recipients(local, recipients)
    local.give_way()
    there = destination.find_destination(local, wanted.to)
    _wait_until_up(launch, backup.find_source(call, local))
    with backup.locked(launch):
        source = backup.find_source(call, local)
        name = schedule.file_name(source.node, local.now(), program=recipients.program)
        is_folder = wanted.to.startswith("/")
        folder = Path(wanted.to) if is_folder else None
        if folder is not None:
            making.sweep(local, folder, names=schedule.names_of(source.node))

        def write(chunks: Iterable[bytes]) -> None:
            there.write(name, chunks)

        is_here = folder is not None and not recipients.program
        scratch = folder if folder is not None and is_here else opening.scratch_folder(local, source.paths)
        target = making.Target(there.place_of(name), scratch, folder, write)
        planned = making.plan_backup(source, without=(folder,) if folder is not None else ())
    # the files have been read: a program that hangs while it sends them keeps nobody waiting
    making.write_backup(source, planned, target=target, recipients=recipients, tell=call.report.waiting)

    def remove_old() -> None:
        for old in schedule.choose_old(there.names(), newest=name, node=source.node, keep=wanted.keep):
            there.remove(old)

    return there.place_of(name), remove_old
