"""--config of the commands upgrade apply, node, plan and diff: an UpgradeConfiguration, as the flags that say the same.

Must not know what an upgrade does. What the document says of kubeadm's own ways (its checks' names, how it pulls images) has no counterpart
here, and is told. Mirrors the sections of UpgradeConfiguration of kubeadm.k8s.io/v1beta4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.commands import launcher
    from kubeup.config import load_upgrade, types

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def with_config(call: Invocation, section: str) -> Invocation:
    """The call with what --config says in this section (apply | node | plan | diff) as flags and words; a version on the command line counts
    more. Without --config, the call itself. Raises UsageError: mixed-flags, config-not-readable, invalid-config."""
    if "config" not in call.flags:
        return call
    local = launcher.open_host(call)
    upgrade = load_upgrade.load_upgrade_config(
        local,
        config_file=Path(call.flags["config"]).absolute(),
        flags={name: value for name, value in call.flags.items() if name != "config"},
        section=section,
        is_kubeadm=False,
    )
    chosen = getattr(upgrade, section)
    for text in _list_unused(chosen, upgrade.timeouts):
        call.report.note(text)
    version = getattr(chosen, "kubernetes_version", "")
    words = call.words or ([version] if version else [])
    given = {name: value for name, value in call.flags.items() if name != "config"}
    return dataclasses.replace(call, words=words, flags={**given, **_as_flags(chosen)})


def _as_flags(chosen: Any) -> Mapping[str, Any]:
    """What a section says beside its defaults, by the flags that say the same."""
    plain = {
        "allow-experimental-upgrades": "allow_experimental_upgrades",
        "allow-release-candidate-upgrades": "allow_rc_upgrades",
        "context-lines": "context_lines",
        "dry-run": "dry_run",
        "force": "force_upgrade",
        "patches": "patches_directory",
        "skip-phases": "skip_phases",
    }
    flags = {flag: getattr(chosen, name, None) for flag, name in plain.items()}
    flags = {flag: list(value) if isinstance(value, tuple) else value for flag, value in flags.items() if value}
    for flag, name in (("certificate-renewal", "certificate_renewal"), ("etcd-upgrade", "etcd_upgrade")):
        if getattr(chosen, name, True) is False:
            flags[flag] = "false"
    return flags


def _list_unused(chosen: Any, timeouts: types.Timeouts) -> Iterator[str]:
    """What of the document has no counterpart, in words."""
    if getattr(chosen, "ignore_preflight_errors", ()):
        yield (
            f"ignorePreflightErrors ({', '.join(chosen.ignore_preflight_errors)}) names checks of kubeadm's: "
            "what can be overridden here, --force overrides"
        )
    if getattr(chosen, "image_pull_policy", "IfNotPresent") != "IfNotPresent":
        yield f"imagePullPolicy: {chosen.image_pull_policy} is not used: images are pulled if they are not there"
    if getattr(chosen, "print_config", False):
        yield "printConfig is not used: kubectl -n kube-system get configmap kubeadm-config -o yaml prints it"
    if timeouts.upgrade_manifests_s != types.Timeouts().upgrade_manifests_s:
        yield "timeouts.upgradeManifests is not used: each static pod is watched until it works or is known not to"
