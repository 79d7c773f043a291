"""What the scenarios of joining share: a cluster that is founded once, and copied for each."""

from __future__ import annotations

import pytest

from kubeup.commands import closing_look
from tests.fake_join import Site

from .scenario import found_cluster, found_kubeadms_cluster


@pytest.fixture(autouse=True)
def without_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines here answer what a command asks, and not what doctor looks at once it has failed: that is tested with the looks."""
    monkeypatch.setattr(closing_look, "explain_failure", lambda *_: None)


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return found_cluster(tmp_path_factory.mktemp("founded"))


@pytest.fixture(scope="session")
def founded_by_kubeadm(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return found_kubeadms_cluster(tmp_path_factory.mktemp("kubeadm"))
