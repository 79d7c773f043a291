"""What a log says last that says why: lines of klog, etcd and runc, made short and clean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kubeup.json_text import as_table

_KLOG = re.compile(r"^[EWIF]\d{4} [\d:.]+\s+\d+ (?P<where>[\w.-]+:\d+)\] ?")


def last_lines(log: Sequence[str]) -> tuple[str, ...]:
    """What to show of a log: its last lines, cleaned."""
    return tuple(clean_log_line(line) for line in log[-5:] if line.strip())


def last_error_line(lines: Sequence[str]) -> str:
    """The last line that tells of a failure: klog's E and F lines, etcd's fatal JSON, `Error: ...`."""
    lines = _join_blocks(lines)
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
    """klog's texts of several lines, which stand between `err=<` and ` >`, in one."""
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
    """A log line without klog's stamp, or the words of a JSON one (etcd's): at most 400 characters."""
    text = line.strip()
    if text.startswith("{"):
        row = as_table(text)
        text = ": ".join(str(row[key]) for key in ("msg", "error") if row.get(key)) or text
    return shorten(_KLOG.sub("", text))


def shorten(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
