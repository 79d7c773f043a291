"""kubeup/doctor/metrics.py: the file for node_exporter's textfile collector."""

from __future__ import annotations

from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor import metrics


def test_findings_are_counted_by_check_and_level() -> None:
    notes = [
        Finding("disk", "ok", "fast", ""),
        Finding("dns", "follows", "because of that: no answer", ""),
        Finding("node", "error", "one", "x"),
        Finding("node", "error", "two", "x"),
        Finding('odd"\\\nname', "warning", "three", "x"),
    ]
    assert metrics.render(notes, prefix=metrics.NODE, ended_at=1767225600.4, took_s=3.25).splitlines() == [
        "# HELP kb_doctor_findings Findings of kb doctor, by level.",
        "# TYPE kb_doctor_findings gauge",
        'kb_doctor_findings{level="error"} 2',
        'kb_doctor_findings{level="warning"} 1',
        'kb_doctor_findings{level="follows"} 1',
        "# HELP kb_doctor_finding Findings of kb doctor, by check and level.",
        "# TYPE kb_doctor_finding gauge",
        'kb_doctor_finding{check="dns",level="follows"} 1',
        'kb_doctor_finding{check="node",level="error"} 2',
        'kb_doctor_finding{check="odd\\"\\\\\\nname",level="warning"} 1',
        "# HELP kb_doctor_duration_seconds How long kb doctor took.",
        "# TYPE kb_doctor_duration_seconds gauge",
        "kb_doctor_duration_seconds 3.250",
        "# HELP kb_doctor_timestamp_seconds When kb doctor ended, in seconds since 1970.",
        "# TYPE kb_doctor_timestamp_seconds gauge",
        "kb_doctor_timestamp_seconds 1767225600",
    ]


def test_those_of_the_cluster_have_names_of_their_own() -> None:
    """Both files may lie in one folder."""
    text = metrics.render([], prefix=metrics.CLUSTER, ended_at=0, took_s=1)
    assert 'kb_doctor_cluster_findings{level="error"} 0' in text and "kb_doctor_findings" not in text
    assert metrics.name_file(metrics.CLUSTER) != metrics.name_file(metrics.NODE) == "kb_doctor.prom"
