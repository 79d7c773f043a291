"""Phase: one step of a workflow as data; and choosing, by name, which of them a run works through.

Owns the contract of a phase. Mirrors cmd/kubeadm/app/cmd/phases/workflow/{phase,runner}.go in names and selection, and adds
probes and fingerprints.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

from kubeup.config.types import NodeConfig
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.secret import Secret


def _nothing(run: Any) -> Outputs:
    return None


def _nothing_before(run: Any) -> None: ...


def _nothing_after(run: Any, handed: Results, took: float) -> None: ...  # noqa: PLR0917


@frozen
class Phase:
    """One step of a workflow.

    name   kubeadm's name: `certs/apiserver`
    does   the one-line reason: progress line, --help, README
    plan   what is to be there: a pure look, from which the engine derives the rest (engine/plan.py)
    act    where there is no plan: does it, with the Run of its command; returns what it hands on, or None; changes the machine
           through run.host and the cluster through run.api
    probe  whether what the act did is there still, and right: a look at the real node
    spec   what the act is about, where its probe does not tell one from another: of another value it is done again
    foretell  in the place of the act in a dry run, where what it would do is not told by its changes alone
    formerly  the name that it had before: what is known of it is taken along
    before, after  what is told when it begins, and when it has ended: with what it handed on, and the seconds that it took
    needs  phases that must not be skipped if this one runs
    live   "node": looks at the running machine, so it is deferred under --root; "cluster": waits for the running
           cluster, so it is deferred under --root and --dry-run alike
    always runs every time: what it does is telling, not changing
    hidden runs, and is not listed: kubeadm has such
    on     "control-plane": only where a joining node becomes a control plane
    when   whether the configuration asks for it at all; None: always
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
    before: Callable[[Any], None] = _nothing_before
    after: Callable[[Any, Results, float], None] = _nothing_after


def select_phases(phases: Sequence[Phase], name: str) -> tuple[Phase, ...]:
    """The phases that `kb init phase NAME` means: one phase, or all below a parent (`certs`, `certs/all`).

    Raises UsageError (unknown-phase) with the nearest name.
    """
    wanted = name.strip("/").replace(" ", "/")
    parent = wanted[: -len("/all")] if wanted.endswith("/all") else wanted
    found = tuple(phase for phase in phases if phase.name == wanted or phase.name.startswith(parent + "/"))
    if found:
        return found
    raise _unknown_phase(phases, name)


def wanted_phases(phases: Sequence[Phase], config: Optional[NodeConfig]) -> tuple[Phase, ...]:
    """Without those that this configuration does not ask for."""
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
    """The names of the phases that --skip-phases leaves out; a parent's name leaves out its children.

    Raises UsageError: unknown-phase, or unresolved-dependencies where a phase that stays needs one that goes.
    """
    skipped: set[str] = set()
    for name in skip:
        skipped.update(phase.name for phase in select_phases(phases, name))
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
    """The phases that these names mean, a parent's its children's; a name that no phase has means none."""
    parents = tuple(f"{name}/" for name in names)
    return frozenset(phase.name for phase in phases if phase.name in names or phase.name.startswith(parents))


def fingerprint_spec(phase: Phase, run: Any) -> dict[str, str]:
    """A short hash of what an act is about; {} where its probe tells it. What kb generated for the user counts as one constant, so that a
    second run with the same words is the same run."""
    if phase.spec is None:
        return {}
    text = json.dumps(_plain(phase.spec(run)), sort_keys=True, default=str)
    return {"spec": hashlib.sha256(text.encode()).hexdigest()[:16]}


def fingerprint_of(plan: Plan) -> dict[str, str]:
    """That of a plan; nothing while something in it is not known."""
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
