"""Findings as metrics, in a file that node_exporter's textfile collector reads.

Owns the names of the metrics and the form of the file. Source: Prometheus, text exposition format 0.0.4
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kubeup.diagnosis.checks.facts import ERROR, FOLLOWS, WARNING, Finding

NODE, CLUSTER = "kb_doctor", "kb_doctor_cluster"
"""What the names of the metrics begin with: of this node's own findings, and of those of --cluster."""
_LEVELS = (ERROR, WARNING, FOLLOWS)


def name_file(prefix: str) -> str:
    return f"{prefix}.prom"


def render(notes: Iterable[Finding], *, prefix: str, ended_at: float, took_s: float) -> str:
    """The file's text. prefix: NODE or CLUSTER; ended_at: seconds since 1970. A check that found nothing has no row, so that alerts end by
    themselves."""
    levels = Counter(note.level for note in notes)
    rows = Counter((note.name, note.level) for note in notes if note.level in _LEVELS)
    return "".join(
        [
            *_head(f"{prefix}_findings", "Findings of kb doctor, by level."),
            *(f'{prefix}_findings{{level="{level}"}} {levels[level]}\n' for level in _LEVELS),
            *_head(f"{prefix}_finding", "Findings of kb doctor, by check and level."),
            *(
                f'{prefix}_finding{{check="{_escape(name)}",level="{level}"}} {count}\n'
                for (name, level), count in sorted(rows.items())
            ),
            *_head(f"{prefix}_duration_seconds", "How long kb doctor took."),
            f"{prefix}_duration_seconds {took_s:.3f}\n",
            *_head(f"{prefix}_timestamp_seconds", "When kb doctor ended, in seconds since 1970."),
            f"{prefix}_timestamp_seconds {ended_at:.0f}\n",
        ]
    )


def _head(name: str, help_text: str) -> tuple[str, str]:
    return f"# HELP {name} {help_text}\n", f"# TYPE {name} gauge\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
