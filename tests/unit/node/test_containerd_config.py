"""kubeup/node/containerd_config.py: the small reader of TOML, and the line that disables the CRI."""

from __future__ import annotations

import pytest

from kubeup.node import containerd_config
from tests.fake_host import FakeHost
from tests.unit.node.runtime_case import DUMP_1_6, DUMP_2_1


def test_a_line_in_an_imported_file_counts_too() -> None:
    files = {"/etc/containerd/conf.d/10-x.toml": b'disabled_plugins = ["cri"]', "/etc/containerd/config.toml": b""}
    host = FakeHost(files=files)
    assert containerd_config.find_disabled_cri(host) is None, "a file that nothing imports"
    files["/etc/containerd/config.toml"] = b'imports = [\n  "conf.d/*.toml",  # ours\n]\n'
    assert containerd_config.find_disabled_cri(host) == (
        "/etc/containerd/conf.d/10-x.toml",
        1,
        'disabled_plugins = ["cri"]',
    )


# ---- TOML


@pytest.mark.parametrize("text", [DUMP_1_6, DUMP_2_1])
def test_the_small_toml_reader_agrees_with_the_real_one(text: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    assert containerd_config.parse_dumped_toml(text) == tomllib.loads(text)


def test_toml_values() -> None:
    text = """
    # a comment
    a = "x # y \\" z"   # another
    b = 'c:\\d'
    c = [1, -2, 3.5]
    d = [ "x", 'y', ]
    e = true
    f = false
    g = {h = 1, "i j" = [true], k.l = 'm'}
    n = 0.02
    o = []
    "io.containerd.timeout" = "5s"
    [p."q.r".'s']
    t = 1_000
    [p]
    u = {}
    """
    assert containerd_config.parse_dumped_toml(text) == {
        "a": 'x # y " z',
        "b": "c:\\d",
        "c": [1, -2, 3.5],
        "d": ["x", "y"],
        "e": True,
        "f": False,
        "g": {"h": 1, "i j": [True], "k": {"l": "m"}},
        "n": 0.02,
        "o": [],
        "io.containerd.timeout": "5s",
        "p": {"q.r": {"s": {"t": 1000}}, "u": {}},
    }


@pytest.mark.parametrize(
    "text",
    ["a", "a = ", "= 1", "a = [1", "[a", "[[a]]", 'a = """', "a = 1 2", "a = yes", "a = 1\n[a]\nb = 2", "a = {b 1}"],
)
def test_toml_that_cannot_be_read_names_the_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d: "):
        containerd_config.parse_dumped_toml(text)
