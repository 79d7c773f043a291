"""The command adopt: examine a node set up by kubeadm and write kb's state for it; change nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments
from kubeup.commands import join, launcher
from kubeup.commands.launcher import Launch
from kubeup.engine.compare import look_at, record_found
from kubeup.engine.items import Folder
from kubeup.engine.plan import Plan
from kubeup.engine.records import Records, load_records
from kubeup.engine.run import Results, Run
from kubeup.engine.step import Phase, fingerprint_of, fingerprint_spec, wanted_phases
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.config import load_init
    from kubeup.doctor import foreign_node
    from kubeup.engine import state
    from kubeup.machine import dry_run
    from kubeup.phases import bootstrap_tokens

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.state import State
    from kubeup.machine.dry_run import DryRunHost
    from kubeup.machine.host import Host


@frozen
class Looked:
    """The result of examining a phase. `why` is "" if the node is as the phase would leave it. plan: what the phase
    wants, if it has a plan."""

    phase: Phase
    why: str
    plan: Optional[Plan] = None


def adopt(call: Invocation) -> int:
    """Examine every phase's result, and record as done what is as kb would leave it. All reads go through a host that
    cannot change anything."""
    launch, paths = Launch(call), Paths()
    launch.require_root()
    local = launch.local
    chosen = Path(call.flags["kubeconfig"]).absolute() if "kubeconfig" in call.flags else None
    patches = str(Path(call.flags["patches"]).absolute()) if "patches" in call.flags else ""
    found = foreign_node.look_at_node(local, paths, kubeconfig_file=chosen, patches=patches)
    _require_foreign(local, paths)
    with launch.locked(paths):
        looking = dry_run.DryRunHost(local)
        workflow = found.workflow
        looking.write_file(paths.adopted(workflow), found.text, mode=0o600)
        phases = next(command.phases for command in call.commands if command.name == workflow)
        phases = join.phases_on(phases, is_control_plane=found.role == "control plane")
        ctx = _make_run(call, looking, paths=paths, workflow=workflow)
        looked = look_at_phases(ctx, [phase for phase in phases if not phase.always])
        node_state = render_state(ctx, local, paths=paths, workflow=workflow, looked=looked)
        if not launch.is_dry:
            local.make_dir(paths.state_dir, mode=0o700)
            local.write_file(paths.adopted(workflow), found.text, mode=0o600)
            node_state.save()
            render_records(ctx, local, paths=paths, workflow=workflow, looked=looked).save()
    _print(call, found, node_state=node_state, looked=looked, workflow=workflow, is_dry=launch.is_dry)
    return 0


def _require_foreign(local: Host, paths: Paths) -> None:
    node_state = state.load_state(local, paths)
    if node_state.has_changed_files():
        raise HostError(
            f"node {node_state.node} already belongs to kb",
            cause=f"{paths.state} names files that kb made or changed on it",
            remedy="see what kb knows about it: kb status",
            code="nothing-to-adopt",
        )


def _make_run(call: Invocation, looking: DryRunHost, *, paths: Paths, workflow: str) -> Run:
    """The run that `kb init` or `kb join` would have with the documents found on the node."""
    if workflow == "join":
        return join.make_member_run(looking, paths.adopted(workflow), report=call.report)
    config = load_init.load_init_config(
        looking, config_file=paths.adopted(workflow), flags={"allow-unknown-fields": True}
    )
    own = launcher.paths_of(config, {})
    return launcher.make_run(looking, config, paths=own, report=call.report)


def look_at_phases(ctx: Run, phases: Sequence[Phase]) -> list[Looked]:
    """Examine the phases that have a probe and that the configuration asks for."""
    return [_look_at_phase(ctx, phase) for phase in wanted_phases(phases, ctx.config) if phase.probe or phase.plan]


def _look_at_phase(ctx: Run, phase: Phase) -> Looked:
    """Compare what the phase wants with the node, or call its probe."""
    try:
        if phase.plan:
            plan = phase.plan(ctx)
            # a missing folder says nothing about the other tool's work: kb creates it and continues
            folders = {item.name for item in plan.items() if isinstance(item, Folder)}
            differences = [one for one in look_at(plan, ctx, recorded=None).differences if one.item not in folders]
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            return Looked(phase, f"{differences[0]}{more}" if differences else "", plan)
        is_done = phase.probe is not None and phase.probe(ctx)
    except KbError as error:
        return Looked(phase, f"{error}")
    return Looked(phase, "" if is_done else "not as kb would leave it")


def render_records(ctx: Run, local: Host, *, paths: Paths, workflow: str, looked: list[Looked]) -> Records:
    """Record what was found of everything that the phases want, so that a later difference counts as a change."""
    records = load_records(local, paths.records)
    for item in looked:
        if item.plan is not None and not item.why:
            records.put(f"{workflow}/{item.phase.name}", record_found(item.plan, ctx))
    return records


def render_state(ctx: Run, local: Host, *, paths: Paths, workflow: str, looked: list[Looked]) -> State:
    """The state of a node on which kb has done nothing but knows what is done."""
    node_state = state.load_state(local, paths)
    node_state.phases.clear()
    node_state.node, node_state.cluster = ctx.config.node.name, ctx.config.cluster.cluster_name
    node_state.cri_socket = ctx.config.node.cri_socket
    now = moments.show(local.now())
    made: dict[str, None] = {}
    for item in looked:
        plan = item.plan.resolve(ctx) if item.plan else None
        files = plan.places() if plan else ()
        made.update((str(path), None) for path in files if local.exists(path) and not local.is_dir(path))
        if not item.why:
            inputs = fingerprint_of(plan) if plan else fingerprint_spec(item.phase, ctx)
            found = Results(token_ids=_join_tokens(ctx)) if item.phase.name == "bootstrap-token" else Results()
            node_state.phases[f"{workflow}/{item.phase.name}"] = state.PhaseState(
                "done", started=now, ended=now, inputs=inputs, outputs=found.stored(), adopted=True
            )
    own, etcd = ctx.paths, ctx.paths.etcd_data
    others = [
        own.kubelet_instance_config,
        own.kubernetes / "kubelet.conf",
        etcd,
        own.pki / "ca.crt",
        own.manifest("etcd"),
    ]
    if ctx.config.join:
        others.append(Path(ctx.config.join.ca_cert_path))
    made.update((str(path), None) for path in others if local.exists(path))
    node_state.adopted = sorted(made)
    return node_state


def _join_tokens(ctx: Run) -> list[str]:
    """The ids of the tokens that nodes join with; kb shows their join command."""
    found = bootstrap_tokens.valid_tokens(ctx.api, ctx.host.now())
    return [token.token_id for token in found if {"signing", "authentication"} <= set(token.usages)][:1]


def _print(
    call: Invocation,
    found: foreign_node.Found,
    *,
    node_state: State,
    looked: list[Looked],
    workflow: str,
    is_dry: bool,
) -> None:
    left = [item for item in looked if item.why]
    if call.output != "text":
        value: dict[str, Any] = {
            "node": found.node,
            "cluster": node_state.cluster,
            "role": found.role,
            "adopted": [item.phase.name for item in looked if not item.why],
            "left": {item.phase.name: item.why for item in left},
            "files": node_state.adopted,
        }
        call.print_value(value)
        return
    width = max(len(item.phase.name) for item in looked)
    for item in looked:
        call.print(f"{item.phase.name:<{width}}  {item.why or 'as kb would leave it'}")
    verb = "would be adopted; nothing was written" if is_dry else "is adopted; nothing but /var/lib/kb was written"
    call.print(f"node {found.node}, {found.role} of cluster {node_state.cluster}, {verb}")
    again = f"kb {workflow}"
    if left:
        call.tell(f"{again} would do: {', '.join(item.phase.name for item in left)}; see it first: {again} --dry-run")
    else:
        call.tell(f"{again} would change nothing")
