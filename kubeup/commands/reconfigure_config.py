"""The command reconfigure: what of the cluster's configuration is to change, this node's part of it, and what is left to do elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kubeup import redact, releases
from kubeup.addresses import host_of
from kubeup.commands import launcher, reconfigure_wish, static_pods, upgrade
from kubeup.commands.launcher import Launch
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import objects
    from kubeup.config import load_join, problems, validate_cluster
    from kubeup.doctor import node_files
    from kubeup.engine import step
    from kubeup.node import kubelet
    from kubeup.phases import cert_names, reconfigure_config, reconfigure_kubelet, reconfigure_proxy
    from kubeup.swap import store, try_record
    from kubeup.upgrade import changed_component, changed_config, node_config, proxies, target

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import ClusterConfiguration, NodeConfig
    from kubeup.engine.run import Run
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.engine.step import Phase
    from kubeup.upgrade.changed_config import Wish

SWAP, PROXY = "swap", "proxy"
"""The phase that swaps the static pods."""
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
    wish, found = reconfigure_wish.read_wish(launch)
    with launch.locked(Paths()) as node_state:
        if not wish.is_empty and wish.part != PROXY and store.load_cut_off(launch.local, Paths()) is None:
            _refuse_worker(launch)
        is_continued = continue_swap(launch, node_state, wish=wish)
        if is_continued and try_record.load_pending(launch.local, Paths()) is not None:
            return 0  # what is stored follows when it is confirmed
        ground = look(launch, wish, found=found)
        ctx = with_try(call, make_run(launch, node_state, ground=ground), ground=ground)
        if is_continued:
            ctx.found.unwell = frozenset()  # what was in trouble before the swap nobody knows any more
        shown = [] if launch.is_dry and call.output == "text" else list(_render_differences(ctx))
        differences = (*_render_documents(ctx, ground), *shown)
        shown = [{**one, "diff": redact.redact(one["diff"], has_flags=True)} for one in differences]
        if call.output == "text":
            for one in shown:
                call.print(one["diff"])
        result = _work(launch, node_state, ctx=ctx)
    _print(launch, result, ctx=ctx, shown=shown)
    return 0


def _work(launch: Launch, node_state: State, *, ctx: reconfigure_config.ReconfigureRun) -> RunResult:
    call = launch.call
    try:
        return launch.work(ctx, node_state, phases=_choose_phases(call, ctx))
    except HostError as error:
        if error.code == "static-pod-refused":
            error.remedy = reconfigure_wish.say_next(call, error, wish=ctx.wish, node=ctx.config.node.name)
        raise


def _refuse_worker(launch: Launch) -> None:
    if not launch.local.exists(Paths().manifest("kube-apiserver")):
        raise launcher.no_control_plane(Paths(), then="kb reconfigure node")


_ALWAYS = ("preflight", "gate")
_OF_PODS = ("certs/apiserver", SWAP, "upload-config/kubeadm")
_OF_PARTS: Mapping[str, tuple[str, ...]] = {
    "kubelet": ("kubelet-config", "upload-config/kubelet"),
    "kube-proxy": ("addon/kube-proxy",),
    "coredns": ("addon/coredns",),
    PROXY: (SWAP, "proxy"),
}


def _choose_phases(call: Invocation, ctx: reconfigure_config.ReconfigureRun) -> tuple[Phase, ...]:
    """The phases that have to do with what is asked for."""
    names = {*_ALWAYS, *(_OF_PODS if ctx.wish.is_of_pods else ())}
    parts = {
        *ctx.components,
        *([PROXY] if ctx.proxies is not None else []),
        *(["coredns"] if ctx.dns else []),
        *(["kubelet"] if ctx.wish.is_empty else []),
    }
    for part in {*parts, *(["kube-proxy", "coredns"] if ctx.changes_images else [])}:
        names.update(_OF_PARTS[part])
    if ctx.try_s:
        names.discard("upload-config/kubeadm")
    is_here = ctx.config.is_control_plane
    return tuple(one for one in call.command.phases if one.name in names and (is_here or not one.on))


def with_try(
    call: Invocation, ctx: reconfigure_config.ReconfigureRun, *, ground: Ground
) -> reconfigure_config.ReconfigureRun:
    """With --try: what is stored changes only when the change is confirmed. Raises UsageError (usage, not-tried)."""
    lasts_s = static_pods.read_try(call)
    if not lasts_s:
        return ctx
    cause = ""
    if ctx.components or ctx.dns or ctx.changes_images or not ctx.wish.is_of_pods:
        cause = "what is tried are static pods; kubelet, kube-proxy and CoreDNS go back by themselves only where they do not come up"
    elif ctx.adds or ctx.drops:
        cause = "the names in a certificate do not go back with the static pods"
    if cause:
        raise UsageError(
            "this change cannot be tried",
            cause=cause,
            remedy="make it without --try, apart from others",
            code="not-tried",
        )
    is_changed = ground.wanted != ground.former
    texts = (ground.wanted, ground.former) if is_changed else ("", "")
    return dataclasses.replace(ctx, try_s=lasts_s, tried_config=texts[0], tried_from=texts[1])


# ---- a swap that was cut off


def continue_swap(launch: Launch, node_state: State, *, wish: Wish) -> bool:
    """End the swap of the same command that was cut off, with what lies on the disk: until then this node's API server may be out. Returns
    whether there was one.

    Raises HostError (swap-cut-off) if another command began it, and KbError from the swap."""
    cut_off = store.load_cut_off(launch.local, Paths())
    if cut_off is None:
        return False
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
    return True


# ---- this node, as it is and as it is to be


@frozen
class Ground:
    """This node and what its cluster stores, with the document before and after the change. older: what was stored before, newest first."""

    here: upgrade.Here
    wish: Wish
    former: str
    wanted: str
    older: tuple[str, ...]
    components: Mapping[str, reconfigure_config.Configured]
    dns: Mapping[str, str]

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
    if wish.part in changed_config.PARTS and changed_config.component_of(before, wish.part) is None:
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
    client = _api_of(launch, here)
    older = tuple(reconfigure_config.read_former(client)) if here.patient.is_control_plane else ()
    components = {word: _configure(client, word, wish=wish, minor=release.minor) for word in _components_of(wish)}
    dns = reconfigure_wish.read_dns(launch, wish)
    return Ground(here, wish, text, yaml_files.dump_yaml(changed) if is_changed else text, older, components, dns)


def _components_of(wish: Wish) -> list[str]:
    return [word for word in changed_component.KINDS if word == wish.part or word in wish.components]


def _configure(client: kubeapi.Api, word: str, *, wish: Wish, minor: int) -> reconfigure_config.Configured:
    """A component's configuration before and after the change. Raises UsageError: bad-setting, not-changeable, invalid-config; ClusterError
    (addon-not-here)."""
    kind = changed_component.KINDS[word]
    name, key = ("kubelet-config", "kubelet") if word == "kubelet" else ("kube-proxy", "config.conf")
    text = objects.read_config_key(client, name, key=key)
    if not text:
        raise ClusterError(
            f"the cluster has no ConfigMap kube-system/{name} with a key {key}",
            cause="neither kb nor kubeadm installed it, or the ConfigMap was deleted",
            remedy="change it where it was installed",
            code="addon-not-here",
        )
    before = changed_component.split(text, f"ConfigMap kube-system/{name}")
    if word in wish.components:
        after = changed_component.lay_over(before, wish.components[word])
        fields = frozenset(wish.components[word])
    else:
        sets = [(arg.name, arg.value) for arg in wish.sets]
        after = changed_component.change(before, kind, sets=sets, unsets=wish.unsets)
        fields = frozenset(path.partition(".")[0] for path in wish.names)
    changed_component.check(before, after, kind=kind, minor=minor)
    return reconfigure_config.Configured(before, after, fields)


def _api_of(launch: Launch, here: upgrade.Here) -> kubeapi.Api:
    """The API server as this node's admin, or a worker's kubelet, calls it."""
    if not here.patient.is_control_plane:
        return launcher.kubelet_api(launch.local, here.patient.paths)
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
        _make_config(launch, ground, text) for text in (ground.former, ground.wanted, *ground.older)
    )
    config = _with_components(config, ground)
    launcher.require_same_node(node_state, config, paths=paths)
    base = launcher.make_run(launch.target, config, paths=paths, report=call.report)
    if not config.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, paths))
    ctx = dataclasses.replace(
        _as_run(call, base, wish=wish, texts=()),
        components=ground.components,
        dns=ground.dns,
        changes_images=_changes_images(wish, former, config),
    )
    if wish.part == PROXY:
        wanted = _choose_proxies(ctx, wish, present=former.proxy_env)
        config = dataclasses.replace(config, proxy_env=wanted)
        ctx = dataclasses.replace(ctx, config=config, proxies=wanted)
        reconfigure_proxy.render_files(ctx, wanted)  # refused before the swap, not after it
    if not ((wish.is_of_pods or wish.part == PROXY) and config.is_control_plane):
        return ctx
    asked = target.Asked(_asked_options(wish, former, config), prefers_new=True, older=older)
    targets = target.plan_targets(launch.local, paths, former=former, config=config, asked=asked)
    _tell_unset(call, wish, former=former, targets=targets)
    adds, drops = _choose_names(wish, config, formers=(former, *older))
    return dataclasses.replace(
        ctx,
        texts=tuple((one.name, one.wanted) for one in targets),
        targets=targets,
        changes=target.find_changes(launch.local, paths, formers=(former, *older), config=config),
        adds=adds,
        drops=drops,
    )


def _make_config(launch: Launch, ground: Ground, text: str) -> NodeConfig:  # noqa: PLR0917
    """This node's configuration if this were the stored ClusterConfiguration, in the version that runs."""
    here, flags = ground.here, launch.call.flags
    paths = here.patient.paths
    config = node_config.make_node_config(
        launch.local,
        paths,
        own=here.patient.config,
        stored=dataclasses.replace(here.stored, cluster_text=text),
        join=here.join,
        version=here.version,
        patches=str(Path(flags["patches"]).absolute()) if "patches" in flags else "",
    )
    drop_in = paths.systemd / "kubelet.service.d" / proxies.DROP_IN
    told = proxies.parse_drop_in(launch.local.read_text(drop_in)) if launch.local.exists(drop_in) else {}
    # those of this shell are not asked for
    own = node_config.read_manifest_proxies(launch.local, paths)
    return dataclasses.replace(config, proxy_env=own if config.is_control_plane else told)


def _choose_proxies(
    ctx: reconfigure_config.ReconfigureRun, wish: Wish, *, present: Mapping[str, str]
) -> dict[str, str]:
    """The proxies after the change, with what is reached without them. A worker knows its own address alone. Raises UsageError (bad-setting)."""
    config, addresses = ctx.config, [ctx.config.local_api_endpoint.advertise_address]
    if config.is_control_plane:
        nodes = ctx.api.list(kubeapi.path_of("Node"))
        rows = [row for one in nodes for row in (one.get("status") or {}).get("addresses") or ()]
        addresses += sorted(str(row["address"]) for row in rows if row.get("type") == "InternalIP")
    if config.cluster.control_plane_endpoint:
        addresses.append(host_of(config.cluster.control_plane_endpoint))
    sets = [(arg.name, arg.value) for arg in wish.sets]
    return proxies.complete(proxies.change(present, sets=sets, unsets=wish.unsets), config.cluster, addresses=addresses)


def _with_components(config: NodeConfig, ground: Ground) -> NodeConfig:
    """With the kubelets' configuration as it is to be; {} where it is what a tool generates, so that another version may do so again."""
    if "kubelet" not in ground.components:
        return config
    changed = dataclasses.replace(config, kubelet=ground.components["kubelet"].after)
    release = releases.find_release(ground.version)
    generated = kubelet.render_kubelet_config(dataclasses.replace(config, kubelet={}), release).document
    is_generated = kubelet.render_kubelet_config(changed, release).document == generated
    return dataclasses.replace(config, kubelet={}) if is_generated else changed


def _changes_images(wish: Wish, former: NodeConfig, config: NodeConfig) -> bool:  # noqa: PLR0917
    one, other = former.cluster, config.cluster
    return bool(wish.cluster) and (one.image_repository, one.dns) != (other.image_repository, other.dns)


def _asked_options(wish: Wish, former: NodeConfig, config: NodeConfig) -> dict[str, frozenset[str]]:  # noqa: PLR0917
    """Static pod -> the options that are asked for by name, or by what a file has of them."""
    asked: dict[str, set[str]] = {
        word: set(names) for word, names in changed_config.changed_args(former.cluster, config.cluster).items()
    }
    if wish.part in changed_config.PARTS:
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
    if wish.part not in changed_config.PARTS:
        return
    component = changed_config.component_of(former.cluster, wish.part)
    stored = {arg.name for arg in component.extra_args} if component else set()
    pod = changed_config.PARTS[wish.part].pod
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
        **base.values(),
        texts=texts,
        **launcher.of_a_swap(call),
        command=reconfigure_wish.say_command(call),
        tells_edits=False,
        former=base.config.cluster.kubernetes_version,
        is_first=True,
        wish=wish,
        changes={},
    )


# ---- the difference, and the end


def _render_differences(ctx: reconfigure_config.ReconfigureRun) -> Iterator[dict[str, str]]:
    """Of this node's files."""
    for one in ctx.targets:
        path = str(ctx.paths.manifest(one.name))
        if one.is_changed:
            yield {"name": path, "diff": changed_config.render_difference(one.former, one.wanted, name=path)}
    if "kubelet" in ctx.components or ctx.wish.is_empty:
        path = str(ctx.paths.kubelet_config)
        former, wanted = ctx.host.read_text(ctx.paths.kubelet_config), reconfigure_kubelet.plan_file(ctx)[0]
        if not yaml_files.is_same_yaml(former, wanted):
            yield {"name": path, "diff": changed_config.render_difference(former, wanted, name=path)}


def _render_documents(ctx: reconfigure_config.ReconfigureRun, ground: Ground) -> Iterator[dict[str, str]]:
    """Of what the cluster stores."""
    texts = {"kubeadm-config": (ground.former, ground.wanted)}
    for word, one in ground.components.items():
        name = "kubelet-config" if word == "kubelet" else word
        texts[name] = (yaml_files.dump_yaml(dict(one.before)), yaml_files.dump_yaml(dict(one.after)))
    if "Corefile" in ground.dns:
        texts["coredns"] = (objects.read_config_key(ctx.api, "coredns", key="Corefile"), ground.dns["Corefile"])
    for name, (former, wanted) in texts.items():
        if former != wanted:
            place = f"ConfigMap kube-system/{name}"
            yield {"name": place, "diff": changed_config.render_difference(former, wanted, name=place)}


def _print(
    launch: Launch, result: RunResult, *, ctx: reconfigure_config.ReconfigureRun, shown: Sequence[Mapping[str, str]]
) -> None:
    call = launch.call
    launch.print_result(result, more={"differences": list(shown)})
    if call.output != "text" or launch.is_dry or ctx.try_s:
        return
    left = list(result.results.remaining or ())
    if left:
        call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
    else:
        others = " and every other node" if ctx.config.is_control_plane else ""
        call.tell(f"node {ctx.config.node.name}{others} has what is stored, of what was changed")
