"""Functions fit on a screen. How deep they nest and how many arguments go by position, ruff holds (pyproject.toml)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kb

REPO = Path(kb.__file__).parent
LINES = 45
SOURCES = [REPO / "kb.py", REPO / "build_zipapp.py", *sorted((REPO / "kubeup").rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    long = {node.name: lines for node in functions if (lines := (node.end_lineno or 0) - node.lineno + 1) > LINES}
    assert long == {}
