"""What several fuzzers share."""

from __future__ import annotations

import pytest

from tests.fuzz.node import Site, build_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build_site(tmp_path_factory.mktemp("site"))
