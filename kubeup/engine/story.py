"""The vocabulary in which kb.py lists a workflow: one line per step, in order.

This module knows no step in particular.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Optional, Union

from kubeup.config.types import NodeConfig
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs
from kubeup.engine.step import Phase
from kubeup.frozen_values import frozen_by_name

Story = tuple[Phase, ...]


@frozen_by_name
class Act:
    """A step that does something instead of planning items. It is declared beside its functions in phases/. The fields are
    those of Phase."""

    do: Callable[[Any], Outputs]
    probe: Optional[Callable[[Any], bool]] = None
    spec: Optional[Callable[[Any], object]] = None
    foretell: Optional[Callable[[Any], Outputs]] = None
    live: str = ""
    always: bool = False
    needs: tuple[str, ...] = ()
    when: Optional[Callable[[NodeConfig], bool]] = None


def step(  # noqa: PLR0917
    name: str,
    reason: str,
    plan: Callable[[Any], Plan],
    *,
    live: str = "",
    when: Optional[Callable[[NodeConfig], bool]] = None,
    part_of: str = "",
) -> Phase:
    """A step that plans what should exist."""
    return Phase(name, reason, plan=plan, live=live, when=when, part_of=part_of)


def act(name: str, reason: str, what: Act) -> Phase:  # noqa: PLR0917
    """A step that does something."""
    return Phase(
        name,
        reason,
        act=what.do,
        probe=what.probe,
        spec=what.spec,
        foretell=what.foretell,
        live=what.live,
        always=what.always,
        needs=what.needs,
        when=what.when,
    )


def control_planes_only(*steps: Phase) -> Story:
    """These steps, limited to nodes that are, or become, control planes."""
    return tuple(dataclasses.replace(phase, on="control-plane") for phase in steps)


def story(*parts: Union[Phase, Story]) -> Story:
    """The steps in order. The steps of a group run where the group is listed."""
    return tuple(phase for part in parts for phase in (part if isinstance(part, tuple) else (part,)))
