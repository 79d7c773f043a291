"""kubeup/airgap/mirror_server.py: where it listens. How it serves is in tests/components/test_mirror_server.py."""

from __future__ import annotations

import pytest

from kubeup.airgap import (
    mirror_server,
)
from kubeup.errors import HostError


def test_listen() -> None:
    assert mirror_server.parse_listen(":5000") == ("0.0.0.0", 5000)
    assert mirror_server.parse_listen("[::1]:80") == ("::1", 80)
    for bad in ("", "5000x", "1.2.3.4", "a:0", "a:70000"):
        with pytest.raises(HostError):
            mirror_server.parse_listen(bad)
