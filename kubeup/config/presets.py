"""Sources of images and packages behind a firewall: the rows of configs/presets.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.yaml_files import load_yaml, read_resource


@frozen
class Preset:
    """A row of configs/presets.yaml."""

    name: str
    registries: Mapping[str, str] = field(default_factory=dict)
    image_repository: str = ""
    downloads: Mapping[str, str] = field(default_factory=dict)
    apt: Mapping[str, str] = field(default_factory=dict)
    dnf: Mapping[str, str] = field(default_factory=dict)


def list_presets() -> tuple[str, ...]:
    return tuple(sorted(load_yaml(read_resource("presets.yaml"))))


def find_preset(name: str) -> Preset:
    """The preset of this name; "" is the one that changes nothing. Raises UsageError (unknown-preset)."""
    if not name:
        return Preset("")
    rows = load_yaml(read_resource("presets.yaml"))
    if name not in rows:
        raise UsageError(
            f"there is no mirror preset {name!r}",
            cause="the presets are " + ", ".join(sorted(rows)),
            remedy="take one of them, or give a mirror's address: --mirror URL",
            code="unknown-preset",
        )
    row = rows[name]
    return Preset(
        name,
        row.get("registries") or {},
        str(row.get("imageRepository") or ""),
        row.get("downloads") or {},
        row.get("apt") or {},
        row.get("dnf") or {},
    )
