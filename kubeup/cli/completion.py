"""Completion scripts for bash, zsh and fish, generated from the table of commands.

Protocols: bash's programmable completion, zsh's compdef and bashcompinit, fish's complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kubeup.engine.step import Phase
from kubeup.errors import UsageError


class _Command(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def does(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def phases(self) -> tuple[Phase, ...]: ...


def render_completion(shell: str, commands: Sequence[_Command], *, programs: Sequence[str] = ("kb", "kb.pyz")) -> str:
    """The completion script for a shell, registered for `programs`, the names of the kb program. Raises UsageError
    (unknown-shell)."""
    if shell == "bash":
        return _render_bash(commands, programs)
    if shell == "zsh":
        head = f"#compdef {' '.join(programs)}\nautoload -U +X bashcompinit && bashcompinit\n"
        return head + _render_bash(commands, programs)
    if shell == "fish":
        return _render_fish(commands, programs)
    raise UsageError(
        f"no completion for {shell!r}",
        cause="kb knows bash, zsh and fish",
        remedy="kb completion bash > /etc/bash_completion.d/kb",
        code="unknown-shell",
    )


def _next_words(commands: Sequence[_Command]) -> dict[str, list[str]]:
    """The words that may follow each prefix of the command line: subcommands, phases, flags."""
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


def _prefixes(words: Mapping[str, Sequence[str]]) -> list[str]:
    """The prefixes that can be completed. Other words (a file, a phase already named) do not extend a prefix."""
    return [prefix for prefix in words if prefix]


def _render_bash(commands: Sequence[_Command], programs: Sequence[str]) -> str:
    next_words = _next_words(commands)
    cases = "\n".join(f'    "{prefix}") words="{" ".join(words)}" ;;' for prefix, words in next_words.items())
    return f"""_kb_complete() {{
  local word words="" prefix="" at=1
  while [ "$at" -lt "$COMP_CWORD" ]; do
    word="${{prefix:+$prefix }}${{COMP_WORDS[at]}}"
    case "|{"|".join(_prefixes(next_words))}|" in
      *"|$word|"*) prefix="$word" ;;
    esac
    at=$((at + 1))
  done
  case "$prefix" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _kb_complete {" ".join(programs)}
"""


def _render_fish(commands: Sequence[_Command], programs: Sequence[str]) -> str:
    next_words = _next_words(commands)
    known = " ".join(f"'{prefix}'" for prefix in _prefixes(next_words))
    lines = [
        f"""function __kb_after
    set -l prefix ""
    for word in (commandline -opc)[2..-1]
        set -l longer (string trim "$prefix $word")
        contains -- "$longer" {known}; and set prefix "$longer"
    end
    test "$prefix" = "$argv[1]"
end"""
    ]
    for program in programs:
        for prefix, words in next_words.items():
            test = f"__kb_after '{prefix}'"
            plain = " ".join(word for word in words if not word.startswith("--"))
            if plain:
                lines.append(f'complete -c {program} -f -n "{test}" -a "{plain}"')
            lines += [f'complete -c {program} -n "{test}" -l {word[2:]}' for word in words if word.startswith("--")]
    return "\n".join(lines) + "\n"
