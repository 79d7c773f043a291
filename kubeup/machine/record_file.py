"""The record of a long change of this node, in a folder of its own: written before the first change, so that whoever comes after a kill or a
power cut can continue it or take it back.

It may hold whole manifests, and these a user's secrets: only root may read it. What a record means is its owner's part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.shapes import Shape, fit

SCHEMA = 1


def write(host: Host, path: Path, *, values: Mapping[str, Any]) -> None:
    """path: in its folder in kb's own folder."""
    for folder in (path.parent.parent, path.parent):
        host.make_dir(folder, mode=0o700)
    host.write_file(path, json.dumps({"schema": SCHEMA, **values}, indent=1) + "\n", mode=0o600)


def read(host: Host, path: Path, *, shape: Mapping[str, Shape]) -> dict[str, Any]:
    """The values, of this shape. Raises ValueError: another shape, or written by a kb that has another one."""
    found = dict(fit(parse_json(host.read_text(path), "it"), {"schema!": int, **shape}, what="it"))
    if found.pop("schema") != SCHEMA:
        raise ValueError("it has another schema")
    return found
