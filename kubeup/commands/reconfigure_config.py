"""The command reconfigure: what of the cluster's configuration is to change, this node's part of it, and what is left to do elsewhere."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kubeup import releases
from kubeup.commands import launcher, upgrade
from kubeup.commands.launcher import Launch
from kubeup.errors import UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api as kubeapi
    from kubeup.config import choose, load_init, load_join, problems, schema, validate_cluster
    from kubeup.doctor import node_files
    from kubeup.engine import step
    from kubeup.phases import cert_names, reconfigure_config
    from kubeup.swap import store
    from kubeup.upgrade import changed_config, node_config, target

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import ClusterConfiguration, NodeConfig
    from kubeup.engine.run import Run
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.upgrade.changed_config import Wish

SWAP = "swap"
"""The phase that swaps the static pods."""
CLUSTER = "ClusterConfiguration"
STORED = "ConfigMap kube-system/kubeadm-config"


def reconfigure(call: Invocation) -> int:
    """Change the stored configuration and this node with it: one component's arguments, or the fields of a file."""
    return _reconfigure(call)


def node(call: Invocation) -> int:
    """Bring this node to the stored configuration."""
    return _reconfigure(call)


def _reconfigure(call: Invocation) -> int:
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    wish, found = read_wish(launch)
    with launch.locked(Paths()) as node_state:
        if not launch.local.exists(Paths().manifest("kube-apiserver")) and not store.load_cut_off(
            launch.local, Paths()
        ):
            raise launcher.no_control_plane(Paths())
        continue_swap(launch, node_state, wish=wish)
        ground = look(launch, wish, found=found)
        ctx = make_run(launch, node_state, ground=ground)
        shown = [] if launch.is_dry and call.output == "text" else list(_render_differences(ctx))
        shown = [*_render_document(ground), *shown]
        if call.output == "text":
            for one in shown:
                call.print(one["diff"])
        result = launch.work(ctx, node_state)
    _print(launch, result, ctx=ctx, shown=shown)
    return 0


# ---- what is asked for


def read_wish(launch: Launch) -> tuple[Wish, problems.Problems]:
    """What the command line and its file ask for, and the mistakes that were found in it. Raises UsageError: usage, bad-setting,
    config-not-readable, invalid-config."""
    call = launch.call
    sets, unsets = (list(call.flags.get(name) or ()) for name in ("set", "unset"))
    if call.command.name.endswith(" node"):
        return changed_config.Wish(), problems.Problems()
    if "config" in call.flags:
        if call.words or sets or unsets:
            raise _usage(call, "--config says all that is to change", "kb reconfigure --config FILE")
        return _read_file(launch)
    if len(call.words) != 1 or call.words[0] not in changed_config.PARTS:
        listed = ", ".join(changed_config.PARTS)
        near = problems.suggest(call.words[0], changed_config.PARTS) if call.words else f"it is one of {listed}"
        raise _usage(call, f"it takes one component: {near}", "kb reconfigure apiserver --set NAME=VALUE")
    if not sets and not unsets:
        remedy = f"kb reconfigure {call.words[0]} --set NAME=VALUE; or: --unset NAME"
        raise _usage(call, "it does not say what is to change", remedy)
    return changed_config.parse_wish(call.words[0], sets=sets, unsets=unsets), problems.Problems()


def _usage(call: Invocation, cause: str, remedy: str) -> UsageError:  # noqa: PLR0917
    return UsageError(say_command(call), cause=cause, remedy=remedy, code="usage")


def say_command(call: Invocation) -> str:
    """The command line, to run it again."""
    words = ["kb", *call.command.name.split(), *call.words]
    for name in ("set", "unset"):
        words += [part for text in call.flags.get(name) or () for part in (f"--{name}", text)]
    if "config" in call.flags:
        words += ["--config", str(call.flags["config"])]
    return " ".join(map(shlex.quote, words))


def _read_file(launch: Launch) -> tuple[Wish, problems.Problems]:
    path = launch.config_file
    assert path is not None
    found = problems.Problems.for_flags(launcher.strictness_of(launch.call))
    documents = load_init.read_documents(launch.local, path, problems=found)
    trees = load_init.take_kinds(documents, (CLUSTER,), problems=found)
    found.raise_if_any()
    if CLUSTER not in trees:
        raise UsageError(
            f"{path} has no {CLUSTER}",
            cause="that is the document whose fields can be changed",
            remedy=f"write one with the fields that are to change: apiVersion: {schema.V1BETA4}, kind: {CLUSTER}",
            code="invalid-config",
        )
    fields = dict(trees[CLUSTER])
    for name in ("certificateValidityPeriod", "caCertificateValidityPeriod"):
        if name in fields:
            fields[name] = yaml_files.format_duration(fields[name])
    version = str(fields.get("kubernetesVersion") or "")
    if choose.is_version_label(version):
        del fields["kubernetesVersion"]
    return changed_config.Wish(cluster=fields), found


# ---- a swap that was cut off


def continue_swap(launch: Launch, node_state: State, *, wish: Wish) -> None:
    """End the swap of the same command that was cut off, with what lies on the disk: until then this node's API server may be out.

    Raises HostError (swap-cut-off) if another command began it, and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return
    call = launch.call
    phase = next(one for one in call.command.phases if one.name == SWAP)
    entry = node_state.phases.get(f"{call.command.workflow}/{SWAP}")
    is_own = entry is not None and entry.status != "done"
    if entry is None or not is_own or entry.inputs != step.fingerprint_spec(phase, SimpleNamespace(wish=wish)):
        raise launcher.swap_cut_off(cut_off)
    if launch.is_dry:
        raise launcher.swap_cut_off(cut_off)
    patient = node_files.read_patient(store.with_missing(launch.local, Paths(), texts=cut_off.formers), Paths())
    texts = tuple((pod.name, pod.wanted) for pod in cut_off.pods if pod.is_changed)
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report)
    ctx = _as_run(call, base, wish=wish, texts=texts)
    launch.work(ctx, node_state, phases=(phase,))


# ---- this node, as it is and as it is to be


@frozen
class Ground:
    """This node and what its cluster stores, with the document before and after the change. older: what was stored before, newest first."""

    here: upgrade.Here
    wish: Wish
    former: str
    wanted: str
    older: tuple[str, ...]

    @property
    def version(self) -> str:
        return self.here.version


def look(launch: Launch, wish: Wish, *, found: problems.Problems) -> Ground:
    """Raises UsageError: invalid-config, not-changeable; and what reading the cluster raises."""
    here = upgrade.look(launch, is_first=False)
    text = here.stored.cluster_text
    document = yaml_files.load_mapping(text, STORED)
    warnings: list[str] = []
    before = load_join.parse_stored_cluster(launch.local, text, warnings=warnings)
    if wish.part and changed_config.component_of(before, wish.part) is None:
        raise UsageError(
            "this cluster's etcd is external",
            cause="kb does not run it, so it has no arguments to change",
            remedy="change it where it runs",
            code="not-changeable",
        )
    release = releases.find_release(here.version)
    current = reconfigure_config.as_current(launch.local, document, release=release)
    changed = changed_config.change_document(current, wish)
    after = load_join.parse_stored_cluster(launch.local, yaml_files.dump_yaml(changed), warnings=[])
    changed_config.refuse_fixed(before, after)
    _check(after, changed, before=before, document=document, found=found)
    for warning in dict.fromkeys((*found.warnings, *warnings)):
        launch.call.report.warn(warning)
    unnamed = list(changed_config.find_unnamed(document, wish.cluster)) if wish.cluster else []
    if unnamed:
        launch.call.report.note(
            f"{launch.config_file} does not name {', '.join(unnamed)}: as stored; an empty list takes them away"
        )
    is_changed = changed != document
    older = tuple(reconfigure_config.read_former(_api_of(launch, here)))
    return Ground(here, wish, text, yaml_files.dump_yaml(changed) if is_changed else text, older)


def _api_of(launch: Launch, here: upgrade.Here) -> kubeapi.Api:
    paths = here.patient.paths
    server = node_files.find_own_server(launch.local, paths)
    return kubeapi.Api(launch.local, kubeapi.read_identity(launch.local, paths.admin_conf, server=server), retry_s=20)


def _check(
    after: ClusterConfiguration,
    changed: Mapping[str, Any],
    *,
    before: ClusterConfiguration,
    document: Mapping[str, Any],
    found: problems.Problems,
) -> None:
    """Raises UsageError (invalid-config) with the mistakes that the change makes; what was stored with a mistake stays."""
    known = problems.Problems()
    validate_cluster.check_cluster(before, document, problems=known)
    old = {(one.path, one.message) for one in known.items}
    validate_cluster.check_cluster(after, changed, problems=found)
    found.items = [one for one in found.items if (one.path, one.message) not in old]
    found.raise_if_any()


def make_run(launch: Launch, node_state: State, *, ground: Ground) -> reconfigure_config.ReconfigureRun:
    """Everything that the phases work with."""
    call, here, wish = launch.call, ground.here, ground.wish
    paths = here.patient.paths
    former, config, *older = (
        node_config.make_node_config(
            launch.local,
            paths,
            own=here.patient.config,
            stored=dataclasses.replace(here.stored, cluster_text=text),
            join=here.join,
            version=ground.version,
            patches=str(Path(call.flags["patches"]).absolute()) if "patches" in call.flags else "",
        )
        for text in (ground.former, ground.wanted, *ground.older)
    )
    launcher.require_same_node(node_state, config, paths=paths)
    options = _asked_options(wish, former, config)
    asked = target.Asked(options, prefers_new=True, older=older)
    targets = target.plan_targets(launch.local, paths, former=former, config=config, asked=asked)
    _tell_unset(call, wish, former=former, targets=targets)
    base = launcher.make_run(launch.target, config, paths=paths, report=call.report)
    adds, drops = _choose_names(wish, config, formers=(former, *older))
    ctx = _as_run(call, base, wish=wish, texts=tuple((one.name, one.wanted) for one in targets))
    return dataclasses.replace(
        ctx,
        targets=targets,
        changes=target.find_changes(launch.local, paths, formers=(former, *older), config=config),
        adds=adds,
        drops=drops,
    )


def _asked_options(wish: Wish, former: NodeConfig, config: NodeConfig) -> dict[str, frozenset[str]]:  # noqa: PLR0917
    """Static pod -> the options that are asked for by name, or by what a file has of them."""
    asked: dict[str, set[str]] = {
        word: set(names) for word, names in changed_config.changed_args(former.cluster, config.cluster).items()
    }
    if wish.part:
        asked.setdefault(wish.part, set()).update(wish.names)
    for word in changed_config.PARTS if wish.cluster else ():
        asked.setdefault(word, set()).update(changed_config.named_args(wish.cluster, word))
    return {changed_config.PARTS[word].pod: frozenset(names) for word, names in asked.items()}


def _choose_names(
    wish: Wish, config: NodeConfig, *, formers: Sequence[NodeConfig]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the names that the API server's certificate has to have, those that it must not have), if they are what changes here."""
    if wish.part or (wish.cluster and "certSANs" not in (wish.cluster.get("apiServer") or {})):
        return (), ()
    wanted = cert_names.normalize(config.cluster.api_server.cert_sans)
    before = cert_names.normalize(name for one in formers for name in one.cluster.api_server.cert_sans)
    drops = tuple(name for name in before if name not in wanted)
    return tuple(name for name in wanted if drops or name not in before or not wish.cluster), drops


def _tell_unset(call: Invocation, wish: Wish, *, former: NodeConfig, targets: Sequence[target.Target]) -> None:
    """Say of what is to go, and is not of the stored configuration, what becomes of it."""
    component = changed_config.component_of(former.cluster, wish.part) if wish.part else None
    stored = {arg.name for arg in component.extra_args} if component else set()
    pod = changed_config.PARTS[wish.part].pod if wish.part else ""
    manifest = next((one.wanted for one in targets if one.name == pod), "")
    for name in wish.unsets:
        if f"--{name}=" in manifest:
            call.report.note(
                f"--{name} of {pod} is its default here, and stays: set another value with --set {name}=VALUE"
            )
        elif name not in stored:
            call.report.note(f"the stored configuration sets no --{name} of {pod}")


def _as_run(
    call: Invocation, base: Run, *, wish: Wish, texts: tuple[tuple[str, str], ...]
) -> reconfigure_config.ReconfigureRun:
    return reconfigure_config.ReconfigureRun(
        **{item.name: getattr(base, item.name) for item in dataclasses.fields(base)},
        texts=texts,
        agree=lambda question: launcher.agree(call, question),
        before_stop=str(call.flags.get("before-stop") or ""),
        after_start=str(call.flags.get("after-start") or ""),
        command=say_command(call),
        tells_edits=False,
        former=base.config.cluster.kubernetes_version,
        is_first=True,
        wish=wish,
        changes={},
    )


# ---- the difference, and the end


def _render_differences(ctx: reconfigure_config.ReconfigureRun) -> Iterator[dict[str, str]]:
    for one in ctx.targets:
        path = str(ctx.paths.manifest(one.name))
        if one.is_changed:
            yield {"name": path, "diff": changed_config.render_difference(one.former, one.wanted, name=path)}


def _render_document(ground: Ground) -> Iterator[dict[str, str]]:
    if ground.former != ground.wanted:
        yield {"name": STORED, "diff": changed_config.render_difference(ground.former, ground.wanted, name=STORED)}


def _print(
    launch: Launch, result: RunResult, *, ctx: reconfigure_config.ReconfigureRun, shown: Sequence[Mapping[str, str]]
) -> None:
    call = launch.call
    launch.print_result(result, more={"differences": list(shown)})
    if call.output != "text" or launch.is_dry:
        return
    left = list(result.results.remaining or ())
    if left:
        call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
    else:
        call.tell(f"node {ctx.config.node.name} and every other control plane have the stored configuration")
