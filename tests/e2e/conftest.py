"""Fixtures of the end-to-end tests: `make_node`, `node`, `lab`, `kb_pyz`, `k8s_version`. README.md shows their use."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab import settings
from .lab.lab import Lab, remove_dead_seeds
from .lab.node import Node
from .lab.settings import LabError

MakeNode = Callable[..., Node]
KEEP = os.environ.get("KB_E2E_KEEP", "") not in ("", "0")
NO_VERSION = "none"

_lab: Optional[Lab] = None
_closing_lines: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Announce this folder's marker."""
    config.addinivalue_line(
        "markers", "k8s_versions(*minors): run a test that takes k8s_version with these minors only"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test below this folder is an end-to-end test, and is skipped where such cannot run."""
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    why = settings.explain_why_not() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.e2e)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))
    if why:
        _closing_lines.append(f"{len(ours)} end-to-end tests skipped: {why}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all that were skipped, or what KB_E2E_KEEP left running."""
    for line in _closing_lines:
        terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `k8s_version` runs once for every release in $KB_E2E_BIN, or for the ones its marker names."""
    if "k8s_version" not in metafunc.fixturenames:
        return
    minors = list(settings.read_releases())
    marker = metafunc.definition.get_closest_marker("k8s_versions")
    if marker:
        minors = [minor for minor in minors if minor in marker.args]
    elif "k8s_version" not in inspect.signature(metafunc.function).parameters:
        # Only another fixture (`node`) asks for it: one release is enough, the middle one.
        minors = minors[len(minors) // 2 :][:1]
    metafunc.parametrize("k8s_version", minors or [NO_VERSION], indirect=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab of this run; what a killed run left in it is gone."""
    global _lab
    made = Lab(settings.lab_name())
    with made.hold():
        made.remove_leftovers()
        remove_dead_seeds()
        _lab = made.create()
        yield made
        if KEEP and made.nodes:
            _closing_lines.extend(_explain_kept(made))
        else:
            made.destroy()
        _lab = None


@pytest.fixture
def k8s_version(request: pytest.FixtureRequest) -> str:
    """A Kubernetes minor that $KB_E2E_BIN has."""
    minor: str = request.param
    if minor == NO_VERSION:
        pytest.skip("KB_E2E_BIN has none of the Kubernetes versions this test is for")
    return minor


@pytest.fixture
def make_node(lab: Lab) -> Iterator[MakeNode]:
    """Make nodes: `make_node("cp1", version="1.35", ...)`, with the fields of node.NodeSpec. They go with the test."""
    for kept in list(lab.nodes.values()):
        lab.remove_node(kept)
    lab.registry.stop()
    lab.registry.clear()
    lab.clear_outside()
    yield lab.add_node
    if KEEP:
        return
    for node in list(lab.nodes.values()):
        lab.remove_node(node)


@pytest.fixture
def node(make_node: MakeNode, k8s_version: str) -> Node:
    """One node with the images of `k8s_version`, a fitting containerd, and nothing of a cluster yet."""
    return make_node(version=k8s_version)


@pytest.fixture(scope="session")
def kb_pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zipapp under test: $KB_E2E_PYZ, or built from this checkout."""
    given = os.environ.get("KB_E2E_PYZ", "")
    if given:
        if not Path(given).is_file():
            raise LabError(f"KB_E2E_PYZ={given} is no file")
        return Path(given).resolve()
    built = subprocess.run(
        [sys.executable, "build_zipapp.py"], cwd=settings.REPO, capture_output=True, text=True, timeout=600
    )
    pyz = settings.REPO / "dist" / "kb.pyz"
    if built.returncode or not pyz.is_file():
        raise LabError(f"build_zipapp.py gave no dist/kb.pyz:\n{built.stdout}{built.stderr}")
    # A copy, so that a build during a long run does not change what is tested half way.
    return Path(shutil.copy(pyz, tmp_path_factory.mktemp("pyz")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """On a failure save what the nodes know, while they still live, and say where; with KB_E2E_KEEP stop there."""
    report: pytest.TestReport = yield
    if not report.failed or report.when == "teardown" or _lab is None or not _lab.nodes:
        return report
    folder = settings.LOGS / re.sub(r"[^A-Za-z0-9_.-]+", "_", item.nodeid.rpartition("::")[2])
    for node in _lab.nodes.values():
        try:
            node.collect(folder / node.name)
        except Exception as error:  # the test's own failure must stay the one that is shown
            report.sections.append((f"collecting from {node.name}", str(error)))
    report.sections.append(("end-to-end logs", str(folder)))
    if KEEP:
        item.session.shouldstop = "KB_E2E_KEEP: stopped with the nodes running"
    return report


def _explain_kept(lab: Lab) -> list[str]:
    """What stays, and how to get at it."""
    lines = [f"KB_E2E_KEEP: lab {lab.name} stays as it is"]
    for node in lab.nodes.values():
        lines.append(f"  {node.describe()}: python3 -m tests.e2e --lab {lab.name} shell {node.name}")
    return [*lines, f"  to remove it: python3 -m tests.e2e --lab {lab.name} down"]
