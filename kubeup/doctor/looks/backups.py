"""Checks of scheduled backups: the timer runs, the last backup was made, and it is still there."""

from __future__ import annotations

import datetime
from pathlib import Path

from kubeup import moments
from kubeup.backup import schedule
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings
from kubeup.doctor.node_files import Patient

_TIMER = "kb-backup.timer"
_GRACE = datetime.timedelta(hours=2)
"""A backup may take a while, and wait for another kb."""


def look_at_backups(patient: Patient) -> Findings:
    """Nothing is found on a node without a schedule."""
    host, paths = patient.host, patient.paths
    if not host.exists(schedule.schedule_file(paths)):
        return
    wanted = schedule.read_schedule(host, paths)
    if wanted is None:
        yield _error(f"{schedule.schedule_file(paths)} is damaged", "kb backup schedule daily --to DIR")
        return
    if host.query(["systemctl", "is-active", _TIMER], timeout_s=15).stdout.strip() != "active":
        yield _error(
            f"{_TIMER} does not run, so no backups are made",
            f"systemctl enable --now {_TIMER}; see systemctl status {_TIMER}",
        )
    last = schedule.read_last(host, paths)
    if last is not None and last.error:
        yield _error(f"the last backup failed: {last.error}", "see what is wrong: kb backup schedule run")
    found = host.stat(schedule.schedule_file(paths))
    since = moments.find(last.good) if last and last.good else None
    if since is None and found is not None:
        since = datetime.datetime.fromtimestamp(found.mtime, datetime.timezone.utc)
    gap = schedule.longest_gap(wanted.when)
    if since is not None and host.now() - since > gap * 1.5 + _GRACE:
        when = f"since {since:%Y-%m-%d %H:%M} UTC" if last and last.good else "since they were scheduled"
        yield _error(
            f"no backup was made {when}, and they are to be made {wanted.when}", "make one: kb backup schedule run"
        )
    if last and last.file.startswith("/") and not host.exists(Path(last.file)):
        yield _error(f"the last backup, {last.file}, is not there any more", "make one: kb backup schedule run")


def _error(text: str, remedy: str) -> Finding:
    return Finding("backups", ERROR, text, remedy)
