"""kubeup/phases/find_mirror.py: where the mirror is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kubeup.airgap import containerd_hosts
from kubeup.config.types import KbConfiguration, Mirror
from kubeup.phases import find_mirror
from tests.fake_host import FakeHost
from tests.fake_node import make_config
from tests.unit.phases.wishes_case import URL, context


def test_where_the_mirror_is() -> None:
    assert find_mirror.mirror_url(context(FakeHost(), bundle="/x.tar").config) == URL
    assert find_mirror.mirror_url(context(FakeHost(), mirror=Mirror("http://m:5000/")).config) == "http://m:5000"
    six = replace(make_config(address="fd00::1"), kb=KbConfiguration(bundle="/x"))
    assert find_mirror.mirror_url(six) == "https://[fd00::1]:5000"


@pytest.mark.parametrize("is_made", [True, False])
def test_a_control_plane_believes_the_authority_of_its_own_cluster(
    is_made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kb's own mirror has a certificate of that, and an upgrade names the mirror as the lines of a join do."""
    asked: list[Any] = []

    def find(host: Any, url: str, *, cluster_ca: Any, **more: Any) -> containerd_hosts.Mirror:
        asked.append((url, cluster_ca.pem if cluster_ca else ""))
        return containerd_hosts.Mirror(url)

    monkeypatch.setattr(containerd_hosts, "find_mirror", find)
    host = FakeHost(files={"/etc/kubernetes/pki/ca.crt": b"own"} if is_made else {})
    find_mirror.mirror_of(context(host, mirror=Mirror("https://10.0.0.11:5000")))
    assert asked == [("https://10.0.0.11:5000", "own" if is_made else "")]
