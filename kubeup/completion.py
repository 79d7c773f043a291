"""Completion scripts for bash, zsh and fish, made from the table of commands.

Source of the protocols: bash's programmable completion, zsh's compdef and bashcompinit, fish's complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kubeup.errors import UsageError
from kubeup.workflow import Phase


class _Command(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def does(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def phases(self) -> tuple[Phase, ...]: ...


def render_completion(shell: str, commands: Sequence[_Command]) -> str:
    """The script for a shell. Raises UsageError (unknown-shell)."""
    if shell == "bash":
        return _render_bash(commands)
    if shell == "zsh":
        return "#compdef kb\nautoload -U +X bashcompinit && bashcompinit\n" + _render_bash(commands)
    if shell == "fish":
        return _render_fish(commands)
    raise UsageError(
        f"no completion for {shell!r}",
        cause="kb knows bash, zsh and fish",
        remedy="kb completion bash > /etc/bash_completion.d/kb",
        code="unknown-shell",
    )


def _next_words(commands: Sequence[_Command]) -> dict[str, list[str]]:
    """What may follow each leading text: subcommands, phases, flags."""
    words: dict[str, list[str]] = {}
    for command in commands:
        parts = command.name.split(" ")
        for index, part in enumerate(parts):
            row = words.setdefault(" ".join(parts[:index]), [])
            if part not in row:
                row.append(part)
        flags = [f"--{option}" for option in command.options]
        phases = [phase.name for phase in command.phases] if command.name.endswith(" phase") else []
        words.setdefault(command.name, []).extend(phases + flags)
    return words


def _render_bash(commands: Sequence[_Command]) -> str:
    cases = "\n".join(
        f'    "{prefix}") words="{" ".join(words)}" ;;' for prefix, words in _next_words(commands).items()
    )
    return f"""_kb_complete() {{
  local word words="" prefix="" at=1
  while [ "$at" -lt "$COMP_CWORD" ]; do
    word="${{COMP_WORDS[at]}}"
    case "$word" in
      -*) ;;
      *) case "$prefix" in
           "init phase") ;;
           *) prefix="${{prefix:+$prefix }}$word" ;;
         esac ;;
    esac
    at=$((at + 1))
  done
  case "$prefix" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _kb_complete kb kb.pyz
"""


def _render_fish(commands: Sequence[_Command]) -> str:
    lines = []
    for prefix, words in _next_words(commands).items():
        test = f"test (string join ' ' (commandline -opc | string match -v -- '-*')[2..-1]) = '{prefix}'"
        plain = " ".join(word for word in words if not word.startswith("--"))
        if plain:
            lines.append(f'complete -c kb -f -n "{test}" -a "{plain}"')
        lines += [f'complete -c kb -n "{test}" -l {word[2:]}' for word in words if word.startswith("--")]
    return "\n".join(lines) + "\n"
