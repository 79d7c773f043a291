"""kubeup/node/crictl.py: how the runtime is spoken to."""

from __future__ import annotations

from pathlib import Path

from kubeup.node import crictl


def test_last_words() -> None:
    assert crictl.last_words('a\ntime="t" level=fatal msg="pull \\"x\\": desc = not there"\n') == "not there"
    assert crictl.last_words("one\ntwo\n") == "two"
    assert crictl.last_words("") == "it said nothing"


def test_socket_path() -> None:
    assert crictl.socket_path("unix:///run/x.sock") == crictl.socket_path("/run/x.sock") == Path("/run/x.sock")
