"""kubeup/phases/cert_names.py: how names are compared, and how the stored configuration changes."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.phases import cert_names

CLUSTER: dict[str, Any] = {"kind": "ClusterConfiguration", "newerField": 1, "apiServer": {"timeout": "4m"}}


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (("API.test", "api.test"), ("api.test",)),
        (("2001:DB8:0::7", "::ffff:10.0.0.7"), ("2001:db8::7", "10.0.0.7")),
        (("*.Test",), ("*.test",)),
        (("https://x", ""), ()),
    ],
)
def test_names_are_compared_as_a_certificate_holds_them(given: tuple[str, ...], held: tuple[str, ...]) -> None:
    assert cert_names.normalize(given) == held


def test_names_are_added_beside_the_others() -> None:
    first = cert_names.with_cert_sans(CLUSTER, adds=("b.test", "2001:db8::7"), drops=())
    assert first == {**CLUSTER, "apiServer": {"timeout": "4m", "certSANs": ["b.test", "2001:db8::7"]}}
    again = cert_names.with_cert_sans(first, adds=("b.test", "2001:db8::7", "a.test"), drops=())
    assert again["apiServer"]["certSANs"] == ["b.test", "2001:db8::7", "a.test"]
    assert cert_names.with_cert_sans({"kind": "x"}, adds=("a.test",), drops=()) == {
        "kind": "x",
        "apiServer": {"certSANs": ["a.test"]},
    }


def test_names_that_others_wrote_in_another_form_are_found() -> None:
    """A line that nobody named stays byte for byte."""
    stored = {**CLUSTER, "apiServer": {"certSANs": ["Other.test", "B.test", "2001:DB8:0:0::7"]}}
    assert cert_names.with_cert_sans(stored, adds=("b.test", "2001:db8::7"), drops=()) == stored
    left = cert_names.with_cert_sans(stored, adds=(), drops=("b.test", "2001:db8::7"))
    assert left["apiServer"]["certSANs"] == ["Other.test"]
    assert cert_names.with_cert_sans(left, adds=(), drops=("other.test",))["apiServer"] == {}
    assert cert_names.with_cert_sans(CLUSTER, adds=(), drops=("x.test",)) == CLUSTER
