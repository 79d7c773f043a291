"""A first control plane whose operator asks for a bundle, a mirror or programs."""

from __future__ import annotations

from dataclasses import replace

from kubeup.config.types import KbConfiguration
from kubeup.engine.run import Run
from tests.fake_host import FakeHost
from tests.fake_node import make_config, make_context

URL = "https://10.77.0.11:5000"


def context(host: FakeHost, **wishes: object) -> Run:
    return make_context(host, replace(make_config(), kb=KbConfiguration(**wishes)))  # type: ignore[arg-type]
