"""Turns file and flags into one ResetConfiguration.

Source: cmd/kubeadm/app/util/config/resetconfiguration.go, cmd/kubeadm/app/cmd/reset.go (newResetData)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.config import choose, schema, types, validate_join
from kubeup.config.documents import build
from kubeup.config.flags import RESET_FIELDS, apply_flags, check_mixing
from kubeup.config.load_init import Trees, read_documents, take_kinds
from kubeup.config.problems import Problems
from kubeup.errors import UsageError
from kubeup.machine.host import Host

_RESET = "ResetConfiguration"


def load_reset_config(host: Host, *, config_file: Optional[Path], flags: Mapping[str, Any]) -> types.ResetConfiguration:
    """The complete and checked configuration of a reset; flags override the file. Raises UsageError: mixed-flags,
    config-not-readable, invalid-config."""
    problems = Problems(is_lenient=True, is_kubeadm=True)  # only for kubeadm's reset: kb's own reads no file
    trees: Trees = {}
    if config_file is not None:
        check_mixing(config_file, flags, fields=RESET_FIELDS)
        trees = take_kinds(read_documents(host, config_file, problems=problems), (_RESET,), problems=problems)
        if not problems and _RESET not in trees:
            raise UsageError(
                f"{config_file} configures no reset",
                cause="no ResetConfiguration found in the supplied config",
                remedy="add one; a full example: kb config print reset-defaults",
                code="invalid-config",
            )
    ignored = (trees.get(_RESET) or {}).get("ignorePreflightErrors") or ()
    apply_flags(flags, trees, problems=problems, fields=RESET_FIELDS)
    tree = trees.get(_RESET, {})
    if isinstance(tree.get("criSocket"), str):
        tree = {**tree, "criSocket": choose.normalize_socket(tree["criSocket"])}
    reset: types.ResetConfiguration = build(schema.RESET, tree)
    names = dict.fromkeys(name.lower() for name in (*ignored, *reset.ignore_preflight_errors))
    reset = replace(reset, ignore_preflight_errors=tuple(names))
    validate_join.check_reset(reset, problems)
    problems.raise_if_any()
    return reset
