"""A whole `kb init` on a folder with a scripted cluster."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import kb
from kubeup.commands import verbs
from kubeup.config.load_init import load_init_config
from kubeup.config.types import ClusterConfiguration, InitConfig, LocalAPIEndpoint, NodeRegistration
from kubeup.engine.runner import Runner, RunResult
from kubeup.engine.state import load_state
from kubeup.engine.undo import take_away
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.report import Report
from tests.fake_cluster import ClusterHost

FLAGS: Mapping[str, Any] = {
    "apiserver-advertise-address": "10.0.0.11",
    "kubernetes-version": "v1.35.6",
    "pod-network-cidr": "10.244.0.0/16",
    "soak": "1s",
    "token": "abcdef.0123456789abcdef",
}
# a folder has no kernel, no runtime and no network: these are looked at in tests/unit and tests/e2e
SKIPPED = ("preflight",)


def run_init(
    host: Host,
    *,
    flags: Optional[Mapping[str, Any]] = None,
    config_file: Optional[Path] = None,
    only: str = "",
    skip: tuple[str, ...] = SKIPPED,
    log: Optional[io.StringIO] = None,
) -> RunResult:
    """Run kb's own INIT; returns its result."""
    given = dict(FLAGS if flags is None else flags)
    config = load_init_config(host, config_file=config_file, flags=given)
    paths = verbs.paths_of(config, given)
    ctx = verbs.make_context(host, config, paths, Report(log or io.StringIO(), verbosity=1))
    runner = Runner("init", kb.INIT, load_state(host, paths))
    return runner.run(ctx, only=only, skip=() if only else (*skip, *config.skip_phases))


def run_reset(host: Host, *, log: Optional[io.StringIO] = None) -> RunResult:
    """Run kb's own RESET, as `kb reset --force` does."""
    paths = Paths()
    node_state = load_state(host, paths)
    config = InitConfig(ClusterConfiguration("v1.35.6"), NodeRegistration("cp1"), LocalAPIEndpoint("127.0.0.1"))
    ctx = verbs.make_context(host, config, paths, Report(log or io.StringIO(), verbosity=1))
    result = Runner("reset", kb.RESET, node_state, keeps_journal=False).run(ctx)
    take_away(host, paths)
    return result


def snapshot(host: ClusterHost) -> dict[str, bytes]:
    """path -> content of every file but kb's own."""
    return {str(path): host.read_bytes(path) for path in host.files() if not str(path).startswith("/var/lib/kb")}
