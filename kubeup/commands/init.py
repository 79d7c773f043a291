"""The commands init and init phase: load the configuration and run the phases of a first control plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.airgap import air_gap_fence, oci_layout
    from kubeup.config import load_init
    from kubeup.doctor import node_files
    from kubeup.engine import step
    from kubeup.machine import fence

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.engine.state import State


def init(call: Invocation) -> int:
    """Run the whole workflow; with --list only print the names of its phases."""
    return launcher.list_phases(call) if call.flags.get("list") else _run_init(call, only="")


def init_phase(call: Invocation) -> int:
    """Run one phase, or all phases of a parent; `certs ca` and `certs/ca` are the same."""
    if not call.words:
        raise UsageError(
            "no phase was named",
            cause="kb init phase runs the phases that you name",
            remedy="kb init --list shows their names; for example: kb init phase certs/apiserver",
            code="no-phase",
        )
    return _run_init(call, only="/".join(word.strip("/") for word in call.words))


def _run_init(call: Invocation, *, only: str) -> int:
    launch = Launch(call)
    if only:
        step.select_phases(call.command.phases, only)
    config_file = launch.config_file or launch.adopted_config()
    config = _load_config(launch, config_file, only=only)
    launch.is_dry = config.dry_run
    launch.require_root(config.node.ignore_preflight_errors)
    launch.tell(config)
    paths, own_server = launcher.paths_of(config, call.flags), ""
    if only and config_file is None:
        # one phase on an existing node: its own files say where they are, and where its API server listens
        own_server = node_files.find_own_server(launch.local, paths)
        paths = paths if "cert-dir" in call.flags else node_files.find_paths(launch.local, paths)
    with launch.locked(paths) as node_state:
        if not (only and launch.local.exists(paths.manifest("kube-apiserver"))):
            _require_no_worker(node_state)
        launcher.require_same_node(node_state, config, paths=paths)
        if not only and call.program.keeps_state:
            launcher.require_no_step_back(launch.local, config, paths=paths, command="kb init")
        chosen = Path(call.flags["kubeconfig"]) if "kubeconfig" in call.flags else None
        ctx = launcher.make_run(
            launch.target, config, paths=paths, report=call.report, kubeconfig_file=chosen, own_server=own_server
        )
        result = launch.work(ctx, node_state, only=only, skip=config.skip_phases)
    launch.print_result(result)
    return 0


def _load_config(launch: Launch, config_file: Optional[Path], *, only: str) -> NodeConfig:
    """Load the configuration, and with --air-gapped set up the fence before anything outside is contacted."""
    call, local = launch.call, launch.local
    flags = {**call.flags, **call.program.wishes}
    if config_file is not None and launch.config_file is None:
        flags["allow-unknown-fields"] = True  # the cluster already runs with them
    if "air-gapped" in flags:
        local.fence = fence.Fence()  # nor may the version be looked up outside
    config = load_init.load_init_config(
        local, config_file=config_file, flags=flags, only=only, read_bundle_version=oci_layout.read_kubernetes_version
    )
    if config.kb.air_gapped:
        local.fence = air_gap_fence.plan_fence(config)
        manifest = config.kb.pod_network.manifest
        if "://" in manifest:
            # it is fetched late, so report a violation before anything is changed
            local.require_inside(urlsplit(manifest).hostname or "", manifest)
    return config


def _require_no_worker(node_state: State) -> None:
    if node_state.has_run("join"):
        raise HostError(
            f"this node, {node_state.node}, has joined cluster {node_state.cluster}",
            cause="a node that has joined a cluster cannot become the first control plane of another",
            remedy="leave that cluster first: kb reset",
            code="node-is-worker",
        )
