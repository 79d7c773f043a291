"""What speaks against an upgrade, how much it weighs, and for which node."""

from __future__ import annotations

from collections.abc import Iterable

from kubeup.frozen_values import frozen
from kubeup.trouble import Trouble

MANDATORY, SKIPPABLE, SAID = "mandatory", "skippable", "said"
"""How an objection weighs: nothing overrides it; --force does; it is only told."""
WEIGHTS = (MANDATORY, SKIPPABLE, SAID)


@frozen
class Objection:
    """Something that speaks against an upgrade.

    name: stable, in kebab-case. weighs: one of WEIGHTS. node: the only node that it concerns; "" for all: what concerns one node does
    not keep the others from being upgraded.
    """

    name: str
    trouble: Trouble
    weighs: str = MANDATORY
    node: str = ""


def find_blockers(objections: Iterable[Objection], *, node: str = "", is_forced: bool = False) -> list[Objection]:
    """Those that keep `node` from being upgraded; without a node, those that keep all of them. is_forced: the skippable do not count."""
    weights = (MANDATORY,) if is_forced else (MANDATORY, SKIPPABLE)
    return [one for one in objections if one.weighs in weights and one.node in ("", node)]
