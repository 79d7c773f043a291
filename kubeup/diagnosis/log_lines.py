"""Finds the last line of a log that explains a failure, in the formats of klog, etcd and runc, and shortens it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kubeup.json_text import as_table

_KLOG = re.compile(r"^[EWIF]\d{4} [\d:.]+\s+\d+ (?P<where>[\w.-]+:\d+)\] ?")

_SAID_BY_HEALTHY_ONES = (
    '"Kube-proxy configuration may be incomplete or incorrect"',  # whenever nodePortAddresses is not set, as in kubeadm's configuration
)
"""Lines of level E that a component writes although nothing is wrong."""


def last_lines(log: Sequence[str]) -> tuple[str, ...]:
    """The last lines of a log, cleaned for display."""
    return tuple(clean_log_line(line) for line in log[-5:] if line.strip())


def last_error_line(lines: Sequence[str]) -> str:
    """The last line that reports a failure: klog's E and F lines, etcd's fatal JSON, `Error: ...`."""
    lines = [line for line in _join_blocks(lines) if not any(known in line for known in _SAID_BY_HEALTHY_ONES)]
    for line in reversed(lines):
        text = line.strip()
        if (
            re.match(r"^[EF]\d{4} ", text)
            or text.startswith(("Error:", "error:", "panic:"))
            or '"level":"fatal"' in text
        ):
            return clean_log_line(text)
    for line in reversed(lines):
        if re.search(r"(?i)\b(err(or)?|fail(ed|ure)?|fatal|refused|denied)\b", line):
            return clean_log_line(line)
    return ""


def _join_blocks(lines: Sequence[str]) -> list[str]:
    """Join klog's multi-line values, between `err=<` and ` >`, into one line."""
    joined: list[str] = []
    is_inside = False
    for line in lines:
        if is_inside:
            joined[-1] = f"{joined[-1]} {line.strip()}"
            is_inside = not line.startswith(" >")
        else:
            joined.append(line)
            is_inside = line.rstrip().endswith("=<")
    return joined


def clean_log_line(line: str) -> str:
    """A log line without klog's header, or the message of a JSON line (etcd's): at most 400 characters."""
    text = line.strip()
    if text.startswith("{"):
        row = as_table(text)
        text = ": ".join(str(row[key]) for key in ("msg", "error") if row.get(key)) or text
    return shorten(_KLOG.sub("", text))


def shorten(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
