"""The look at this machine's clock beside the API server's."""

from __future__ import annotations

import datetime
import email.utils
from typing import Optional

from kubeup.cluster import api as kubeapi
from kubeup.diagnosis.checks.facts import ERROR, WARNING
from kubeup.doctor.node_files import Patient
from kubeup.doctor.notes import Note, Notes
from kubeup.errors import KbError
from kubeup.machine.http import UNPROVEN, Unreachable

CLOCK_WARNING_S, CLOCK_ERROR_S = 30, 300


def look_at_clock(patient: Patient) -> Notes:
    """This clock against the API server's Date: tokens and certificates are judged by both."""
    server = _server_of(patient)
    if not server:
        return
    try:
        before = patient.host.now()
        answer = patient.host.http_get(f"{server}/version", tls=UNPROVEN, timeout_s=5)
    except Unreachable:
        return
    skew = read_skew_s(answer.headers.get("date", ""), before)
    if skew is not None and abs(skew) >= CLOCK_WARNING_S:
        yield Note(
            "clock",
            ERROR if abs(skew) >= CLOCK_ERROR_S else WARNING,
            describe_skew(skew, server),
            "set the time on whichever is wrong (timedatectl set-ntp true, or chronyc makestep), then try again",
        )


def read_skew_s(date: str, now: datetime.datetime) -> Optional[float]:
    """How many seconds the server that sent this Date is ahead; None where it sent none."""
    try:
        told = email.utils.parsedate_to_datetime(date)
        told = told if told.tzinfo else told.replace(tzinfo=datetime.timezone.utc)
        return (told - now).total_seconds()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def describe_skew(skew_s: float, server: str) -> str:
    """`this clock is 2 h 07 min behind https://10.0.0.11:6443`"""
    minutes = round(abs(skew_s)) // 60
    span = (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {round(abs(skew_s)) % 60} s"
    )
    return f"this clock is {span} {'behind' if skew_s > 0 else 'ahead of'} {server}"


def _server_of(patient: Patient) -> str:
    try:
        return kubeapi.read_identity(patient.host, patient.kubeconfig).server
    except KbError:
        return ""
