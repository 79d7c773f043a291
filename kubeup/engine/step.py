"""Phase: one step of a workflow as data; and the selection, by name, of the phases that a run executes.

Names and selection mirror cmd/kubeadm/app/cmd/phases/workflow/{phase,runner}.go. Probes and fingerprints are kb's additions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

from kubeup.config.types import NodeConfig
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.secret import Secret

with lazily:
    import difflib


def _nothing(run: Any) -> Outputs:
    return None


def _nothing_before(run: Any) -> None: ...


def _nothing_after(run: Any, handed: Results, took: float) -> None: ...  # noqa: PLR0917


@frozen
class Phase:
    """One step of a workflow.

    name   kubeadm's name: `certs/apiserver`
    does   the one-line reason, shown in the progress line, --help and the README
    plan   returns what should exist, without changing anything; the engine derives the rest from it (engine/plan.py)
    act    does the work of a phase without a plan. It takes the Run of the command, changes the machine through run.host and
           the cluster through run.api, and returns its Results, or None
    probe  looks at the real node: is what the act did still there, and still right?
    spec   the value that the act works with, for acts whose probe cannot tell one configuration from another. When the value
           changes, the act runs again
    foretell  replaces the act in a dry run, for acts whose recorded changes do not tell the whole story
    formerly  the phase's previous name; its state and records move to the new name
    before, after  report the start and the end of the phase; `after` gets the Results and the duration in seconds
    part_of  the phase without which this one makes no sense: who skips that one skips this one too
    needs  phases that must not be skipped if this one runs
    live   "node": needs the running machine, so it is deferred under --root; "cluster": needs the running cluster, so it is
           deferred under both --root and --dry-run
    always runs every time, because it reports rather than changes
    hidden runs but is not listed, as some phases of kubeadm
    on     "control-plane": only where a joining node becomes a control plane
    when   whether the configuration asks for this phase; None: always
    """

    name: str
    does: str
    act: Callable[[Any], Outputs] = _nothing
    probe: Optional[Callable[[Any], bool]] = None
    spec: Optional[Callable[[Any], object]] = None
    foretell: Optional[Callable[[Any], Outputs]] = None
    needs: tuple[str, ...] = ()
    live: str = ""
    always: bool = False
    hidden: bool = False
    on: str = ""
    when: Optional[Callable[[NodeConfig], bool]] = None
    plan: Optional[Callable[[Any], Plan]] = None
    formerly: str = ""
    part_of: str = ""
    before: Callable[[Any], None] = _nothing_before
    after: Callable[[Any, Results, float], None] = _nothing_after


def select_phases(phases: Sequence[Phase], name: str) -> tuple[Phase, ...]:
    """The phases that `kb init phase NAME` selects: one phase, or all phases below a parent (`certs`, `certs/all`).

    Raises UsageError (unknown-phase) with the nearest name.
    """
    wanted = name.strip("/").replace(" ", "/")
    parent = wanted[: -len("/all")] if wanted.endswith("/all") else wanted
    found = tuple(phase for phase in phases if phase.name == wanted or phase.name.startswith(parent + "/"))
    if found:
        return found
    raise _unknown_phase(phases, name)


def wanted_phases(phases: Sequence[Phase], config: Optional[NodeConfig]) -> tuple[Phase, ...]:
    """The phases without those that this configuration does not ask for."""
    return tuple(phase for phase in phases if phase.when is None or (config is not None and phase.when(config)))


def _unknown_phase(phases: Sequence[Phase], name: str) -> UsageError:
    known = sorted({phase.name for phase in phases} | {phase.name.partition("/")[0] for phase in phases})
    near = difflib.get_close_matches(name, known, 1)
    return UsageError(
        f"invalid phase name: {name}",
        cause="this workflow has no phase of that name",
        remedy=f"did you mean {near[0]}? All names: kb COMMAND --list" if near else "all names: kb COMMAND --list",
        code="unknown-phase",
    )


def plan_skips(phases: Sequence[Phase], skip: Sequence[str]) -> frozenset[str]:
    """The names of the phases that --skip-phases skips. A parent's name skips all its children.

    Raises UsageError: unknown-phase, or unresolved-dependencies if a remaining phase needs a skipped one.
    """
    skipped: set[str] = set()
    for name in skip:
        skipped.update(phase.name for phase in select_phases(phases, name))
    skipped.update(phase.name for phase in phases if phase.part_of in skipped)
    for phase in phases:
        missing = [need for need in phase.needs if need in skipped]
        if phase.name not in skipped and missing:
            listed = ", ".join(missing)
            raise UsageError(
                "unresolved dependencies:",
                cause=f'missing [{" ".join(missing)}] phase(s) needed by "{phase.name}" phase',
                remedy=f"skip {phase.name} too (--skip-phases {','.join([*skip, phase.name])}), or keep {listed}",
                code="unresolved-dependencies",
            )
    return frozenset(skipped)


def names_below(phases: Sequence[Phase], names: Sequence[str]) -> frozenset[str]:
    """The names of the phases that `names` select. A parent's name selects its children; unknown names are ignored."""
    parents = tuple(f"{name}/" for name in names)
    return frozenset(phase.name for phase in phases if phase.name in names or phase.name.startswith(parents))


def fingerprint_spec(phase: Phase, run: Any) -> dict[str, str]:
    """A short hash of an act's spec; {} if the act has none because its probe is enough.

    All values that kb generated count as one constant, so that a second run with the same command line has the same hash."""
    if phase.spec is None:
        return {}
    text = json.dumps(_plain(phase.spec(run)), sort_keys=True, default=str)
    return {"spec": hashlib.sha256(text.encode()).hexdigest()[:16]}


def fingerprint_of(plan: Plan) -> dict[str, str]:
    """The fingerprint of a plan; {} while some value in it is not known yet."""
    fingerprint = plan.fingerprint()
    return {"plan": fingerprint} if fingerprint else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return hashlib.sha256(b"kb" + value.reveal().encode()).hexdigest()
    if dataclasses.is_dataclass(value):
        if getattr(value, "is_generated", False):
            return "generated"
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value
