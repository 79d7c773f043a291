"""Turns file and flags into one UpgradeConfiguration.

Source: cmd/kubeadm/app/util/config/upgradeconfiguration.go, cmd/kubeadm/app/cmd/upgrade/{apply,node,plan,diff}.go
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup.config import schema, types, validate_join
from kubeup.config.documents import build
from kubeup.config.flags import apply_flags, check_mixing
from kubeup.config.load_init import Trees, read_documents, take_kinds
from kubeup.config.problems import Problems
from kubeup.errors import UsageError
from kubeup.machine.host import Host

_UPGRADE = "UpgradeConfiguration"
_FIELDS: Mapping[str, str] = {
    "allow-experimental-upgrades": "allowExperimentalUpgrades",
    "allow-release-candidate-upgrades": "allowRCUpgrades",
    "certificate-renewal": "certificateRenewal",
    "context-lines": "contextLines",
    "dry-run": "dryRun",
    "etcd-upgrade": "etcdUpgrade",
    "force": "forceUpgrade",
    "ignore-preflight-errors": "ignorePreflightErrors",
    "patches": "patches.directory",
    "print-config": "printConfig",
    "skip-phases": "skipPhases",
}
"""Flag -> the field of a section that it sets."""


def load_upgrade_config(
    host: Host, *, config_file: Optional[Path], flags: Mapping[str, Any], section: str, is_kubeadm: bool = True
) -> types.UpgradeConfiguration:
    """The complete and checked configuration of an upgrade; the flags set fields of `section` (apply | node | plan | diff). is_kubeadm: under
    its name, what it only warns of is no error.

    Raises UsageError: mixed-flags, config-not-readable, invalid-config."""
    problems = Problems(is_lenient=is_kubeadm, is_kubeadm=is_kubeadm)
    fields = {name: (_UPGRADE, f"{section}.{field}") for name, field in _FIELDS.items()}
    trees: Trees = {}
    if config_file is not None:
        check_mixing(config_file, flags, fields=fields)
        trees = take_kinds(read_documents(host, config_file, problems=problems), (_UPGRADE,), problems=problems)
        if not problems and _UPGRADE not in trees:
            raise UsageError(
                f"{config_file} configures no upgrade",
                cause="no UpgradeConfiguration found in the supplied config",
                remedy="add one; a full example: kb config print upgrade-defaults",
                code="invalid-config",
            )
    ignored = ((trees.get(_UPGRADE) or {}).get(section) or {}).get("ignorePreflightErrors") or ()
    given = {name: value for name, value in flags.items() if name in fields}
    if ignored and "ignore-preflight-errors" in given:
        given["ignore-preflight-errors"] = [*ignored, *given["ignore-preflight-errors"]]
    apply_flags(given, trees, problems=problems, fields=fields)
    upgrade: types.UpgradeConfiguration = build(schema.UPGRADE, trees.get(_UPGRADE, {}))
    validate_join.check_upgrade(upgrade, problems)
    problems.raise_if_any()
    return upgrade
