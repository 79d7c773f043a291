"""Prints kb's own version without loading anything else of kb, because scripts ask for it most often."""

from __future__ import annotations

import sys
from typing import TextIO

from kubeup import __version__

FORMS = ("text", "short", "json", "yaml")


def render_version(form: str) -> str:
    """The version in the form text, short, json or yaml. Raises KeyError for another form."""
    return {
        "short": f"{__version__}\n",
        "text": f"kb {__version__}\n",
        "json": f'{{"kb": {{"version": "{__version__}"}}}}\n',
        "yaml": f"kb:\n  version: {__version__}\n",
    }[form]


def print_version(words: list[str], out: TextIO = sys.stdout) -> bool:
    """Answer `version` in one of its plain forms; return False if the words ask for more (--help) or are invalid."""
    flat = [part for word in words for part in word.split("=", 1)]
    if not flat:
        flat = ["-o", "text"]
    if len(flat) != 2 or flat[0] not in ("-o", "--output") or flat[1] not in FORMS:
        return False
    out.write(render_version(flat[1]))
    return True
