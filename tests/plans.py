"""Plans in tests: make it so, and is it so."""

from __future__ import annotations

from typing import Any, Callable

from kubeup.engine.compare import is_there, make_so
from kubeup.engine.plan import Plan
from kubeup.engine.run import Results


def do(plan: Callable[[Any], Plan], run: Any) -> Results:
    """Returns what later steps take from it."""
    wanted = plan(run)
    make_so(wanted, run)
    return wanted.hands_on or Results()


def is_done(plan: Callable[[Any], Plan], run: Any) -> bool:
    return is_there(plan(run), run)
