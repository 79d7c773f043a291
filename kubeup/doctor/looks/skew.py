"""The check of this machine's clock against the API server's."""

from __future__ import annotations

from kubeup.cluster import api as kubeapi
from kubeup.cluster import clock
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, not_proven
from kubeup.doctor.node_files import Patient
from kubeup.errors import KbError
from kubeup.machine.http import UNPROVEN, Unreachable

CLOCK_WARNING_S, CLOCK_ERROR_S = 30, clock.MAX_SKEW_S


def look_at_clock(patient: Patient) -> Findings:
    """This clock against the API server's Date header: both clocks decide whether tokens and certificates are valid."""
    server = _server_of(patient)
    if not server:
        return
    try:
        before = patient.host.now()
        answer = patient.host.http_get(f"{server}/version", tls=UNPROVEN, timeout_s=5)
    except Unreachable as error:
        yield not_proven("clock", error)
        return
    skew = clock.measure_skew(answer, before)
    if abs(skew) >= CLOCK_WARNING_S:
        yield Finding(
            "clock",
            ERROR if abs(skew) >= CLOCK_ERROR_S else WARNING,
            f"this clock is {clock.describe_skew(skew, server)}",
            "set the time on whichever is wrong (timedatectl set-ntp true, or chronyc makestep), then try again",
        )


def _server_of(patient: Patient) -> str:
    try:
        return kubeapi.read_identity(patient.host, patient.kubeconfig).server
    except KbError:
        return ""
