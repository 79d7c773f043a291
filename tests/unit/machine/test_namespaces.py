"""kubeup/machine/namespaces.py"""

from __future__ import annotations

import os

import pytest

from kubeup.errors import HostError
from kubeup.machine import namespaces


def test_a_process_that_has_ended() -> None:
    with pytest.raises(HostError) as caught:
        namespaces.call_inside(999_999_999, lambda: 1)
    assert caught.value.code == "no-such-network"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter a network")
def test_what_the_function_returns_or_raises_comes_back() -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    assert namespaces.call_inside(os.getpid(), lambda: os.readlink("/proc/thread-self/ns/net")) == before
    with pytest.raises(ZeroDivisionError):
        namespaces.call_inside(os.getpid(), lambda: 1 // 0)
