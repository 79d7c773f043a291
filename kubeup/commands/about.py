"""The commands version and completion: information about kb itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.lazy_modules import lazily
from kubeup.startup.version import render_version

with lazily:
    from kubeup.cli import completion as completion_scripts

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def version(call: Invocation) -> int:
    call.print(render_version(call.output))
    return 0


def completion(call: Invocation) -> int:
    programs = ("kb", "kb.pyz") if call.program.does_more else (call.program.name,)
    shell = call.words[0] if call.words else ""
    call.print(completion_scripts.render_completion(shell, call.commands, programs=programs))
    return 0
