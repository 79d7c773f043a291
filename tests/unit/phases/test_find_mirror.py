"""kubeup/phases/find_mirror.py: where the mirror is."""

from __future__ import annotations

from dataclasses import replace

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
