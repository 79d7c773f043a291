"""Progress lines: a listener that is gone does not stop the work."""

from __future__ import annotations

import io
import os

import pytest

from kubeup.kubeadm.lines import KubeadmReport
from kubeup.report import Report, escape_controls

HOSTILE = "task \x1b[2J\x1b]0;x\x07(\x9b31m) \u202eoof\r blocked"
SHOWN = r"task \x1b[2J\x1b]0;x\x07(\x9b31m) \u202eoof\r blocked"


def test_a_lost_terminal_does_not_stop_the_work() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        report = Report(stream)
        report.line("heard")
        assert os.read(reading, 100) == b"heard\n"
        os.close(reading)
        report.line("not heard")
        assert report.quiet
        report.phase(1, 2, name="certs/ca", does="Make it", outcome="done")
        report.waiting("for nobody")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_what_others_wrote_cannot_steer_a_terminal() -> None:
    """The kernel's log has names of processes, a condition or a webhook what its author likes."""
    assert escape_controls(HOSTILE) == SHOWN
    assert escape_controls("two lines,\n\tand caf\u00e9") == "two lines,\n\tand caf\u00e9"
    assert escape_controls("\udcff") == r"\udcff"
    joined = "\u0915\u094d\u200d\u0937 \u00ad \ue000 \U0001f468\u200d\U0001f469"
    assert escape_controls(joined) == joined, "a document with such a word is printed as it was"


@pytest.mark.parametrize("kind", [Report, KubeadmReport])
def test_every_line_of_a_report_is_escaped(kind: type[Report]) -> None:
    stream = io.StringIO()
    report = kind(stream, verbosity=2)
    report.note(HOSTILE)
    report.warn(HOSTILE)
    report.detail(HOSTILE)
    report.line(HOSTILE)
    report.waiting(HOSTILE)
    report.phase(1, 2, name="verify", does=HOSTILE, outcome="failed")
    written = stream.getvalue()
    assert written.count(SHOWN) == (5 if kind is KubeadmReport else 6)
    assert escape_controls(written) == written
    assert report.notes == [HOSTILE], "for -o json, which escapes by itself"
