"""Progress lines: a listener that is gone does not stop the work."""

from __future__ import annotations

import os

from kubeup.report import Report


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
