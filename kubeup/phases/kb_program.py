"""The installed copy of kb that kb's own systemd units run, as a part of their plans."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from kubeup.engine.items import CopiedFile
from kubeup.engine.plan import Ground, Item, digest_of
from kubeup.engine.run import Run
from kubeup.machine import own_copy


def plan_program(run: Run, pyz: Optional[Path]) -> list[Item]:
    """The copy of `pyz`; nothing for a checkout, which is not a single file.

    Raises when it is applied: HostError (folder-of-another-user).
    """
    if pyz is None:
        return []

    def install(ground: Ground) -> None:
        own_copy.ensure_installed_kb(ground.host, ground.paths, pyz=pyz)

    return [CopiedFile(own_copy.find_installed_kb(run.host, run.paths), digest_of(run, pyz), install)]
