"""kubeup/diagnosis/log_lines.py: the last line that says why."""

from __future__ import annotations

from kubeup.diagnosis import log_lines
from tests.unit.diagnosis.signs_case import ETCD_BIND


def test_log_lines_are_cleaned() -> None:
    assert log_lines.clean_log_line("E0101 00:00:00.000000       1 proxier.go:1] Failed") == "Failed"
    assert log_lines.clean_log_line(ETCD_BIND) == (
        "creating peer listener failed: listen tcp 10.0.0.99:2380: bind: cannot assign requested address"
    )
    assert log_lines.clean_log_line("x" * 500) == "x" * 397 + "..."


def test_an_error_of_several_lines_is_told_as_one() -> None:
    lines = ['E1129 08:09:41.0       1 proxier.go:1] "Failed to list nftables objects" err=<', "\tno such table", " > family=4", "I1129 next"]  # fmt: skip
    assert log_lines.last_error_line(lines).endswith('"Failed to list nftables objects" err=< no such table > family=4')


def test_what_healthy_components_say_as_an_error_is_none() -> None:
    line = 'E1130 13:00:00.000000       1 server.go:243] "Kube-proxy configuration may be incomplete or incorrect" err="nodePortAddresses is unset"'
    assert log_lines.last_error_line([line]) == ""
    assert log_lines.last_error_line([line.replace("incomplete or incorrect", "wrong")])
