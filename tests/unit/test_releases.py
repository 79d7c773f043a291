"""kubeup/releases.py: the order of versions."""

from __future__ import annotations

import pytest

from kubeup.releases import is_at_least, parse_version


def test_versions_follow_one_another_as_semver_has_it() -> None:
    texts = [
        "1.36.0-alpha.1",
        "1.36.0-alpha.1.5",
        "1.36.0-alpha.beta",
        "1.36.0-rc.1",
        "1.36.0-rc.2",
        "1.36.0-rc.10",
        "1.36.0",
        "1.36.1",
    ]
    found = [parse_version(text) for text in texts]
    keys = [one.key for one in found if one is not None]
    assert len(keys) == len(texts) and keys == sorted(keys) and len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("version", "floor", "is_so"),
    [
        ("3.5.24-0", "3.5.24-0", True),
        ("3.5.24-0", "3.5.24", False),
        ("3.5.24", "3.5.24-0", True),
        ("3.6.6-1", "3.6.6-0", True),
        ("v1.36.0+vendor.1", "v1.36.0", True),
    ],
)
def test_a_floor(version: str, floor: str, is_so: bool) -> None:
    assert is_at_least(version, floor) is is_so
