"""docs/benchmarks.md after a part of the bench was run."""

from __future__ import annotations

from tests.bench.document import merge

OLD = """\
# Speed

| job | kb |
|---|---|
| init | 5 |
| join | 2 |

In 0 of 2 joins.

## A backup

old

## Flags

| part | kb |
|---|---|
| etcd | 1 |
"""


def test_a_row_replaces_that_of_the_same_job() -> None:
    text = merge(OLD, "| job | kb |\n|---|---|\n| init | 4 |\n")
    assert "| init | 4 |" in text and "| init | 5 |" not in text
    assert "| join | 2 |" in text and "old" in text and "| etcd | 1 |" in text


def test_a_section_replaces_that_of_the_same_heading() -> None:
    text = merge(OLD, "\n## A backup\n\nnew\n")
    assert text.count("## A backup") == 1 and "new" in text and "old" not in text
    assert text.index("## A backup") < text.index("## Flags")


def test_what_is_new_comes_at_the_end_of_its_kind() -> None:
    text = merge(OLD, "| job | kb |\n|---|---|\n| reset | 3 |\n\n## Restore\n\n4 s\n")
    assert "| join | 2 |\n| reset | 3 |\n" in text
    assert text.index("## Flags") < text.index("## Restore")


def test_nothing_measured_changes_nothing() -> None:
    assert merge(OLD, "").rstrip() == OLD.rstrip()


def test_a_section_that_was_written_twice_is_written_once() -> None:
    assert merge(OLD + "\n## A backup\n\nagain\n", "").count("## A backup") == 1
