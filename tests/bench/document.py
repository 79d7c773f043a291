"""docs/benchmarks.md: what the bench measured, with the parts kept that this run left out.

A whole bench takes half an hour, so an operator runs a part of it with --only. What that part measured replaces what the document said
about the same jobs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator


def merge(old: str, new: str) -> str:
    """The document `old` with what `new` has: a section (from one `## ` to the next) replaces that of the same heading, and in what comes
    before the first section a row of the table replaces that of the same job. Order: that of `old`, what is new at the end."""
    former, found = _split(old), _split(new)
    jobs = _merge_rows(former.pop("", ""), found.pop("", ""))
    return jobs + "".join({**former, **found}.values())


def _split(text: str) -> dict[str, str]:
    """Heading -> section with its heading; "" -> what comes before the first. The last of two with the same heading counts."""
    sections: dict[str, str] = {"": ""}
    heading = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("## "):
            heading = line.strip()
            sections[heading] = ""
        sections[heading] += line
    return {heading: f"{section.rstrip()}\n\n" if heading else section for heading, section in sections.items()}


def _merge_rows(old: str, new: str) -> str:
    rows = dict(_rows(new))
    lines: list[str] = []
    for line in old.splitlines(keepends=True):
        if line.startswith("| "):
            line = rows.pop(_job(line), line)
        elif rows and lines and lines[-1].startswith("| ") and not line.startswith("|"):
            lines += rows.values()  # jobs that the table did not have yet
            rows = {}
        lines.append(line)
    return "".join(lines)


def _rows(text: str) -> Iterator[tuple[str, str]]:
    return ((_job(line), line) for line in text.splitlines(keepends=True) if line.startswith("| "))


def _job(row: str) -> str:
    return row.split("|")[1].strip()
