"""Whoever starts a command makes the one host that everything else is given: with its dry run, its root folder and its fence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import kubeup

PACKAGE = Path(kubeup.__file__).resolve().parent
STARTERS = ("cli/program.py", "machine/")
EXCEPTIONS = {
    "config/load_init.py:read_documents": "with --root: the configuration that --config names is the operator's file",
    "node/patches.py:_find_reader": "with --root: so are the patches, where the folder has none of that name",
}


def find_makers(source: str) -> Iterator[str]:
    """The functions in which a LocalHost is made."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, (ast.FunctionDef, ast.Module)):
            continue
        inner = [node for item in function.body for node in ast.walk(item)]
        nested = {id(node) for item in inner if isinstance(item, ast.FunctionDef) for node in ast.walk(item)}
        for node in inner:
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name == "LocalHost" and id(node) not in nested:
                yield getattr(function, "name", "")


def test_no_phase_makes_its_own_way_to_the_machine() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{function}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(STARTERS)
        for function in find_makers(path.read_text())
    }
    assert found == set(EXCEPTIONS)


def test_a_maker_is_found_however_it_is_called() -> None:
    source = "def a(x):\n    def b():\n        return local_host.LocalHost(x)\n    return 1\nclass C:\n    def d(self):\n        return LocalHost()\n"
    assert sorted(find_makers(source)) == ["b", "d"]
