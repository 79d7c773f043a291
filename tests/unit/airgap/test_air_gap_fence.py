"""kubeup/airgap/air_gap_fence.py: who is within the fence."""

from __future__ import annotations

from kubeup.airgap import air_gap_fence
from kubeup.config.types import Mirror
from tests.fake_host import FakeHost
from tests.unit.phases.wishes_case import context


def test_the_fence_lets_the_cluster_and_the_mirror_through() -> None:
    fence = air_gap_fence.plan_fence(context(FakeHost(), mirror=Mirror("https://m.example:5000")).config)
    inside = ("10.77.0.11", "m.example", "127.0.0.1", "::1", "localhost", "10.96.0.10", "cp1")
    assert all(fence.allows(name) for name in inside)
    assert not any(fence.allows(name) for name in ("dl.k8s.io", "10.77.0.12", "registry.k8s.io", "8.8.8.8"))
