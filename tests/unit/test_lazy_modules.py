"""What is imported lazily loads at its first use, once, whoever touches it first."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
SOURCES = [REPO / "kb.py", *sorted((REPO / "kubeup").rglob("*.py"))]
BLOCK = "from kubeup.lazy_modules import lazily\nwith lazily:\n    "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `shelf` with a module that says when it is run."""
    package = tmp_path / "shelf"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "book.py").write_text(
        "import threading, time\nruns = globals().get('runs', 0) + 1\ntime.sleep(0.2)\nlast = 'the end'\ndef read(): return last\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
        del sys.modules[name]


def run_module(text: str) -> types.ModuleType:
    module = types.ModuleType("reader")
    exec(compile(text, "reader.py", "exec"), module.__dict__)
    return module


def test_a_module_loads_when_it_is_used_and_takes_its_place(folder: Path) -> None:
    reader = run_module(BLOCK + "from shelf import book as novel\ndef read(): return novel.read()\n")
    assert "shelf.book" not in sys.modules and "not loaded yet" in repr(reader.novel)
    assert reader.read() == "the end"
    assert reader.novel is sys.modules["shelf.book"]


def test_threads_that_touch_it_first_meet_one_whole_module(folder: Path) -> None:
    reader = run_module(BLOCK + "from shelf import book\ndef read(): return book.last, book.runs\n")
    found: list[Any] = []
    start = threading.Barrier(8)

    def touch() -> None:
        start.wait()
        found.append(reader.read())

    threads = [threading.Thread(target=touch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("the end", 1)] * 8


def test_what_other_threads_import_meanwhile_is_there_at_once(folder: Path) -> None:
    is_inside, is_done = threading.Event(), threading.Event()
    found: list[object] = []

    def stay_inside() -> None:
        run_module_with(stay=is_done, tell=is_inside)

    def run_module_with(**names: object) -> None:
        module = types.ModuleType("slow")
        module.__dict__.update(names)
        exec(BLOCK + "tell.set()\n    stay.wait(10)\n    from shelf import book\n", module.__dict__)
        found.append(module.book)

    thread = threading.Thread(target=stay_inside)
    thread.start()
    assert is_inside.wait(10)
    from shelf import book  # type: ignore[import-not-found]

    assert book.runs == 1
    is_done.set()
    thread.join()
    assert "not loaded yet" in repr(found[0])


def test_blocks_of_two_threads_end_in_any_order(folder: Path) -> None:
    before = builtins.__import__
    events = [threading.Event() for _ in range(2)]
    insides = [threading.Event() for _ in range(2)]

    def stay(index: int) -> None:
        module = types.ModuleType(f"slow{index}")
        module.__dict__.update(stay=events[index], tell=insides[index])
        exec(BLOCK + "tell.set()\n    stay.wait(10)\n", module.__dict__)

    threads = [threading.Thread(target=stay, args=(index,)) for index in range(2)]
    for index, thread in enumerate(threads):
        thread.start()
        insides[index].wait(10)
    events[0].set()
    threads[0].join()
    assert builtins.__import__ is not before
    events[1].set()
    threads[1].join()
    assert builtins.__import__ is before


def test_an_error_in_the_block_leaves_imports_as_they_were(folder: Path) -> None:
    before = builtins.__import__
    with pytest.raises(ZeroDivisionError):
        run_module(BLOCK + "1 / 0\n")
    assert builtins.__import__ is before


def test_what_is_set_is_set_in_the_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = run_module(BLOCK + "from shelf import book\n")
    monkeypatch.setattr(reader.book, "last", "another end")
    assert sys.modules["shelf.book"].last == "another end"


def test_a_function_is_refused_when_it_is_used(folder: Path) -> None:
    reader = run_module(BLOCK + "from shelf.book import read\n")
    with pytest.raises(ImportError, match=r"shelf\.book\.read is no module"):
        reader.read.anything  # noqa: B018


def test_a_module_that_lacks_another_says_which(folder: Path) -> None:
    (folder / "torn.py").write_text("import no_such_module_anywhere\n")
    reader = run_module(BLOCK + "from shelf import torn\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        reader.torn.anything  # noqa: B018


@pytest.mark.parametrize("statement", ["import shelf.book", "from . import book"])
def test_other_forms_are_refused_at_once(folder: Path, statement: str) -> None:
    with pytest.raises(ImportError, match="from package import module"):
        run_module(BLOCK + statement + "\n")


def lazy_imports(path: Path) -> list[str]:
    """The full names of what a file imports lazily."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr) == "lazily":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    found += [f"{statement.module}.{name.name}" for name in statement.names]
                elif isinstance(statement, ast.Import):
                    found += [name.name for name in statement.names]
                else:
                    found.append(ast.unparse(statement))
    return found


def is_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is none
        return False


@pytest.mark.parametrize("path", [path for path in SOURCES if lazy_imports(path)], ids=lambda path: path.stem)
def test_only_modules_are_imported_lazily(path: Path) -> None:
    others = [name for name in lazy_imports(path) if not is_module(name)]
    assert others == [], "a function or a class has to be there when it is imported: import its module"


def test_the_look_knows_a_function_from_a_module() -> None:
    assert is_module("kubeup.node.pki") and not is_module("kubeup.node.pki.ensure_ca")


def test_the_blocks_are_found() -> None:
    assert sum(len(lazy_imports(path)) for path in SOURCES) > 300


LATER = ("bz2", "ctypes", "difflib", "lzma", "shutil", "ssl", "subprocess", "tarfile", "traceback", "yaml")
"""Modules of Python that take long to load and that few commands need, or none before it has begun to work."""
OF_OTHERS = ("airgap", "backup", "diagnosis", "doctor", "kubeadm", "network", "node", "swap")
"""The folders of what the phases use."""


def test_a_command_does_not_load_what_the_others_need() -> None:
    """Every command loads kb.py, and with it the phases of all stories. What they use comes when they run, and the module of each
    command when it is called."""
    program = "import sys, kb; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-S", "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = found.stdout.split()
    assert [name for name in loaded if name.startswith("kubeup.commands.")] == ["kubeup.commands.table"]
    assert [name for name in loaded if name.startswith(tuple(f"kubeup.{folder}." for folder in OF_OTHERS))] == []
    assert sorted(set(LATER).intersection(loaded)) == []


def test_a_look_into_a_manifest_does_not_load_what_certificates_need() -> None:
    """A worker's join looks whether this node has an API server that is newer: cryptography took an eighth of that join."""
    program = "import sys, kubeup.doctor.node_files as it; it.read_server_version; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = found.stdout.split()
    assert "kubeup.doctor.node_files" in loaded
    assert [
        name for name in loaded if name.startswith(("cryptography", "kubeup.network.", "kubeup.node.certificates"))
    ] == []
