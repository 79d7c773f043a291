"""What the scenarios of joining share: a cluster that is founded once, and copied for each."""

from __future__ import annotations

import pytest

from tests.fake_join import Site

from .scenario import found_cluster, found_kubeadms_cluster


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return found_cluster(tmp_path_factory.mktemp("founded"))


@pytest.fixture(scope="session")
def founded_by_kubeadm(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return found_kubeadms_cluster(tmp_path_factory.mktemp("kubeadm"))
