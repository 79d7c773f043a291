"""The commands join and join phase: find the cluster, then run the phases with what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup import commands, releases
from kubeup.errors import HostError, UsageError
from kubeup.lazy import lazy_import
from kubeup.paths import Paths

if TYPE_CHECKING:
    from kubeup import discovery, dryrun, host, kubeapi, kubeconfig, state, workflow
    from kubeup.cli import Invocation
    from kubeup.config import load_join
    from kubeup.config.types import JoinConfig
    from kubeup.discovery import Access
    from kubeup.host import Host, LocalHost
    from kubeup.report import Report
    from kubeup.state import State
    from kubeup.workflow import Context
else:
    discovery = lazy_import("kubeup.discovery")
    dryrun = lazy_import("kubeup.dryrun")
    host = lazy_import("kubeup.host")
    kubeapi = lazy_import("kubeup.kubeapi")
    kubeconfig = lazy_import("kubeup.kubeconfig")
    load_join = lazy_import("kubeup.config.load_join")
    state = lazy_import("kubeup.state")
    workflow = lazy_import("kubeup.workflow")

_NOT_CONFIG = frozenset({"list", "output", "config"})
"""Flags of join that say nothing about the node."""


def join(call: Invocation) -> int:
    """The whole workflow; with --list only its names."""
    if call.flags.get("list"):
        return commands.list_phases(call)
    if len(call.words) > 1:
        raise UsageError(
            f"kb join {' '.join(call.words)}",
            cause="it takes one word, the API server's HOST:PORT",
            remedy="kb join HOST:PORT --token TOKEN --discovery-token-ca-cert-hash HASH",
            code="usage",
        )
    return _run_join(call, only="", endpoint=call.words[0] if call.words else "")


def join_phase(call: Invocation) -> int:
    """One phase. The API server's HOST:PORT may follow its name, as kubeadm has it."""
    words = list(call.words)
    endpoint = words.pop() if len(words) > 1 and ":" in words[-1] else ""
    if not words:
        raise UsageError(
            "no phase was named",
            cause="kb join phase runs the phase that you name",
            remedy="kb join --list shows their names; for example: kb join phase preflight HOST:PORT --token TOKEN ...",
            code="no-phase",
        )
    return _run_join(call, only="/".join(word.strip("/") for word in words), endpoint=endpoint)


def _run_join(call: Invocation, *, only: str, endpoint: str) -> int:
    local = host.LocalHost()
    if only:
        workflow.select_phases(call.command.phases, only)
    member = discovery.find_member_access(local, Paths().kubeconfigs / "kubelet.conf")
    wishes = _load_wishes(call, local, endpoint, is_member=member is not None)
    ignored = {name.lower() for name in wishes.join.node.ignore_preflight_errors}
    if not local.is_root_user() and not ignored & {"all", "isprivilegeduser"}:
        raise commands.not_root("kb join")
    target: Host = dryrun.DryRunHost(local) if wishes.join.dry_run else local
    with commands.locked(local, Paths(), f"kb {call.command.name}", is_dry=wishes.join.dry_run):
        node_state = state.load_state(target, Paths())
        _require_no_control_plane(local, node_state)
        config = _find_cluster(local, wishes, member, node_state, call.report)
        for warning in config.warnings:
            call.report.warn(warning)
        for note in config.notes:
            call.report.note(note)
        paths = Paths(pki=Path(config.cluster.certificates_dir))
        commands.require_same_node(node_state, config, paths)
        runner = workflow.Runner("join", call.command.phases, node_state)
        ctx = _make_context(target, config, paths, call.report)
        result = runner.run(ctx, only=only, skip=() if only else config.skip_phases)
    result.outputs["server"] = config.server
    commands.print_result(call, result, target, local)
    if result.changes and not only and call.output == "text" and target.mode == "live":
        call.print(_CLOSING)
    return 0


_CLOSING = """
This node has joined the cluster:
* its kubelet asked for a certificate, and the cluster signed it;
* its kubelet talks to the API server with it, and renews it by itself.

See it on a control plane: kubectl get nodes
"""


def _load_wishes(call: Invocation, local: LocalHost, endpoint: str, *, is_member: bool) -> load_join.JoinWishes:
    flags = {name: value for name, value in call.flags.items() if name not in _NOT_CONFIG}
    config_file = Path(call.flags["config"]) if "config" in call.flags else None
    return load_join.load_join_config(
        local, config_file=config_file, flags=flags, endpoint=endpoint, is_member=is_member
    )


def _require_no_control_plane(local: LocalHost, node_state: State) -> None:
    manifest = Paths().manifest("kube-apiserver")
    if node_state.has_run("init") or local.exists(manifest):
        seen = f"{manifest} is there" if local.exists(manifest) else "kb init has worked on it"
        raise HostError(
            "this node is a control plane",
            cause=f"{seen}: it cannot join another cluster as a worker",
            remedy="if nothing of its cluster is wanted: kb reset (kubeadm reset, if kubeadm made it)",
            code="node-is-control-plane",
        )


def _find_cluster(
    local: LocalHost, wishes: load_join.JoinWishes, member: Optional[Access], node_state: State, report: Report
) -> JoinConfig:
    """A member asks with its own identity: the token of a join that is run again may be long gone."""
    wanted = wishes.join
    is_ours = member is not None and node_state.has_run("join")
    access = member if is_ours else None
    if access is not None:
        discovery.check_same_cluster(access, wanted.discovery)
        if not discovery.is_accepted(local, access):
            report.note(f"the cluster does not take this node's certificate any more: it joins {access.server} anew")
            access = None
    if access is None:
        _require_discovery(wishes)
        report.waiting("discovery: looking for the cluster")
        access = discovery.discover_cluster(
            local, wanted.discovery, wanted.timeouts, tell=report.waiting, note=report.note
        )
    for note in access.notes:
        report.note(note)
    found = discovery.read_documents(local, access, wanted.timeouts)
    config = load_join.build_join_config(
        local,
        wishes,
        cluster_text=found.cluster_text,
        kubelet_text=found.kubelet_text,
        pod_network=found.pod_network,
        server=access.server,
        ca_pem=access.ca_pem,
    )
    if access.is_member:
        return config
    text = access.render_bootstrap_kubeconfig(config.cluster.cluster_name)
    return replace(config, bootstrap_kubeconfig=text, clock_skew_s=access.skew_s)


def _require_discovery(wishes: load_join.JoinWishes) -> None:
    if not wishes.join.discovery.bootstrap_token and not wishes.join.discovery.file:
        raise load_join.no_endpoint("nothing")


def _make_context(target: Host, config: JoinConfig, paths: Paths, report: Report) -> Context:
    """The API speaks as the bootstrap's identity until the kubelet has its own."""

    def make_api(ctx: Context) -> kubeapi.Api:
        is_bootstrap = config.bootstrap_kubeconfig and "_is_bootstrapped" not in ctx.outputs
        if is_bootstrap:
            found = kubeconfig.parse_kubeconfig(config.bootstrap_kubeconfig.reveal(), source="bootstrap-kubelet.conf")
            identity = discovery.Access(
                found.server,
                found.ca_pem,
                found.token,
                client_cert_pem=found.client_cert_pem,
                client_key_pem=found.client_key_pem,
            ).identity
        else:
            identity = kubeapi.read_identity(target, paths.kubernetes / "kubelet.conf")
        return kubeapi.Api(target, identity, retry_s=config.timeouts.kubernetes_api_call_s)

    outputs = {"skipped_phases": frozenset(config.skip_phases)}
    release = releases.find_release(config.cluster.kubernetes_version)
    return workflow.Context(target, paths, config, release, report, outputs, make_api)
