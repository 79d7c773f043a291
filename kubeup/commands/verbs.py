"""What each command does with its flags: build the context, run the phases or call the domain, print the result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import urlsplit

from kubeup import releases
from kubeup.addresses import join_host_port
from kubeup.config import token_text
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazy_import
from kubeup.paths import Paths
from kubeup.secret import Secret
from kubeup.startup.version import render_version

if TYPE_CHECKING:
    from kubeup.airgap import oci_layout
    from kubeup.cli import completion as completion_scripts
    from kubeup.cli.parser import Invocation
    from kubeup.cluster import api, shared_certs, tokens
    from kubeup.commands import config_documents as config_commands
    from kubeup.config import choose, load_init, types
    from kubeup.config.types import InitConfig
    from kubeup.doctor import doctor
    from kubeup.engine import run, runner, state, step, undo
    from kubeup.engine.run import Run, Who
    from kubeup.engine.runner import RunResult
    from kubeup.machine import dry_run, fence, host, local_host
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost
    from kubeup.network import load_balancer as balancer_keeper
    from kubeup.network import routes as route_keeper
    from kubeup.node import image_pulls, images, kubeconfig
    from kubeup.phases import airgap
    from kubeup.report import Report
else:
    oci_layout = lazy_import("kubeup.airgap.oci_layout")
    airgap = lazy_import("kubeup.phases.airgap")
    shared_certs = lazy_import("kubeup.cluster.shared_certs")
    completion_scripts = lazy_import("kubeup.cli.completion")
    config_commands = lazy_import("kubeup.commands.config_documents")
    choose = lazy_import("kubeup.config.choose")
    doctor = lazy_import("kubeup.doctor.doctor")
    dry_run = lazy_import("kubeup.machine.dry_run")
    local_host = lazy_import("kubeup.machine.local_host")
    fence = lazy_import("kubeup.machine.fence")
    host = lazy_import("kubeup.machine.host")
    images = lazy_import("kubeup.node.images")
    api = lazy_import("kubeup.cluster.api")
    kubeconfig = lazy_import("kubeup.node.kubeconfig")
    balancer_keeper = lazy_import("kubeup.network.load_balancer")
    load_init = lazy_import("kubeup.config.load_init")
    route_keeper = lazy_import("kubeup.network.routes")
    image_pulls = lazy_import("kubeup.node.image_pulls")
    state = lazy_import("kubeup.engine.state")
    tokens = lazy_import("kubeup.cluster.tokens")
    types = lazy_import("kubeup.config.types")
    undo = lazy_import("kubeup.engine.undo")
    run = lazy_import("kubeup.engine.run")
    runner = lazy_import("kubeup.engine.runner")
    step = lazy_import("kubeup.engine.step")

KB_ONLY_FLAGS = frozenset({"root", "list", "output"})
"""Flags of init that say nothing about the node."""


# ---- init


def init(call: Invocation) -> int:
    """The whole workflow; with --list only its names."""
    return list_phases(call) if call.flags.get("list") else _run_init(call, only="")


def list_phases(call: Invocation) -> int:
    from kubeup.cli.parser import render_phases

    if call.output != "text":
        call.print_value(
            [{"name": phase.name, "does": phase.does} for phase in call.command.phases if not phase.hidden]
        )
    else:
        call.print(render_phases(call.command.phases))
    return 0


def init_phase(call: Invocation) -> int:
    """One phase, or a parent's; `certs ca` and `certs/ca` are the same."""
    if not call.words:
        raise UsageError(
            "no phase was named",
            cause="kb init phase runs the phases that you name",
            remedy="kb init --list shows their names; for example: kb init phase certs/apiserver",
            code="no-phase",
        )
    return _run_init(call, only="/".join(word.strip("/") for word in call.words))


def _run_init(call: Invocation, *, only: str) -> int:
    local = local_host.LocalHost(Path(call.flags["root"]) if "root" in call.flags else Path("/"))
    if only:
        step.select_phases(call.command.phases, only)
    flags = {name: value for name, value in call.flags.items() if name not in KB_ONLY_FLAGS}
    flags.update(call.program.wishes)
    config_file = Path(flags.pop("config")) if "config" in flags else adopted_config(call, local)
    if config_file is not None and "config" not in call.flags:
        flags["allow-unknown-fields"] = True  # the cluster runs with them
    if "air-gapped" in flags:
        local.fence = fence.Fence()  # nothing outside is asked for a version either
    config = load_init.load_init_config(
        local, config_file=config_file, flags=flags, only=only, read_bundle_version=oci_layout.read_kubernetes_version
    )
    if config.kb.air_gapped:
        local.fence = airgap.plan_fence(config)
        manifest = config.kb.pod_network.manifest
        if "://" in manifest:
            # fetched late: better told before anything is changed
            local.require_inside(urlsplit(manifest).hostname or "", manifest)
    is_dry = config.dry_run
    target: Host = dry_run.DryRunHost(local) if is_dry else local
    _require_root(local, config)
    for warning in config.warnings:
        call.report.warn(warning)
    for note in config.notes:
        call.report.note(note)
    paths = paths_of(config, call.flags)
    own_server = ""
    if only and config_file is None:
        # one phase on a node that is there: its own files say where they lie, and where its API server listens
        own_server = doctor.find_own_server(local, paths)
        paths = paths if "cert-dir" in call.flags else doctor.find_paths(local, paths)
    with locked(local, paths, f"kb {call.command.name}", is_dry=is_dry or not needs_lock(call, local, paths)):
        node_state = open_state(call, target, paths)
        _require_no_worker(node_state)
        require_same_node(node_state, config, paths)
        kubeconfig_file = Path(call.flags["kubeconfig"]) if "kubeconfig" in call.flags else None
        ctx = make_context(target, config, paths, call.report, kubeconfig_file=kubeconfig_file, own_server=own_server)
        worker = runner.Runner(
            call.command.workflow, call.command.phases, node_state, keeps_journal=call.program.keeps_state
        )
        result = worker.run(ctx, only=only, skip=() if only else config.skip_phases)
    print_result(call, result, target, local)
    return 0


def adopted_config(call: Invocation, local: Host) -> Optional[Path]:
    """Without --config an adopted node is gone on with as it was found: kb's defaults would make it another one."""
    path = Paths().adopted(call.command.workflow)
    if not (call.program.keeps_state and "root" not in call.flags and local.exists(path)):
        return None
    call.report.note(f"this node was adopted: going by {path}")
    return path


def paths_of(config: InitConfig, flags: dict[str, Any]) -> Paths:
    """Where this node's files lie, by its configuration."""
    local_etcd = config.cluster.local_etcd
    return Paths(
        pki=Path(config.cluster.certificates_dir),
        kubeconfigs=Path(flags.get("kubeconfig-dir", "/etc/kubernetes")),
        etcd_data=Path(local_etcd.data_dir if local_etcd else "/var/lib/etcd"),
    )


def _require_root(local: LocalHost, config: InitConfig) -> None:
    ignored = {name.lower() for name in config.node.ignore_preflight_errors}
    if local.is_live and not local.is_root_user() and not ignored & {"all", "isprivilegeduser"}:
        raise not_root("kb init")


def not_root(command: str, *, cause: str = "it changes files below /etc and /var/lib, and services") -> HostError:
    return HostError(
        f"[ERROR IsPrivilegedUser]: {command} is not run as root",
        cause=cause,
        remedy=f"sudo {command}"
        + ("; or see what init would do, without rights: kb init --root DIR" if command == "kb init" else ""),
        code="not-root",
    )


def _require_no_worker(node_state: state.State) -> None:
    if node_state.has_run("join"):
        raise HostError(
            f"this node, {node_state.node}, has joined cluster {node_state.cluster}",
            cause="a node that has joined a cluster cannot become the first control plane of another",
            remedy="leave that cluster first: kb reset",
            code="node-is-worker",
        )


def require_same_node(node_state: state.State, config: InitConfig, paths: Paths) -> None:
    # a run that its checks refused left nothing that bears the name: another one may be what they asked for
    if node_state.has_changed_files() and node_state.node and node_state.node != config.node.name:
        raise HostError(
            f"this node is called {config.node.name!r} now",
            cause=f"kb began it as {node_state.node!r} ({paths.state}), and certificates and etcd bear that name",
            remedy=f"go on with --node-name {node_state.node}, or give the machine its old name back",
            code="node-renamed",
        )
    node_state.node, node_state.cluster = config.node.name, config.cluster.cluster_name
    node_state.cri_socket = config.node.cri_socket


@contextlib.contextmanager
def locked(local: LocalHost, paths: Paths, holder: str, *, is_dry: bool) -> Iterator[None]:
    if is_dry:
        yield
        return
    with local.lock(paths.lock, holder):
        yield


def needs_lock(call: Invocation, local: Host, paths: Paths) -> bool:
    """Whoever keeps no state makes no folder for its lock either, but waits for who does."""
    return call.program.keeps_state or local.is_dir(paths.state_dir)


def open_state(call: Invocation, target: Host, paths: Paths) -> state.State:
    """This node's state, or for a program that keeps none an empty one which is never written."""
    if call.program.keeps_state:
        return state.load_state(target, paths)
    return state.State(target, paths, is_kept=False)


def make_context(
    target: Host,
    config: InitConfig,
    paths: Paths,
    report: Report,
    *,
    kubeconfig_file: Optional[Path] = None,
    own_server: str = "",
) -> Run:
    """What the phases work with: the host, the configuration, and the API server as the admin of `kubeconfig_file`.
    own_server: where this node's API server listens, where that is known better than by the configuration."""

    def make_api(_: Who) -> api.Api:
        # admin.conf names the stable endpoint, which may not lead to this node yet: talk to this node itself
        server = "" if kubeconfig_file else own_server or local_server(config)
        identity = api.read_identity(target, kubeconfig_file or paths.admin_conf, server=server)
        return api.Api(target, identity, retry_s=config.timeouts.kubernetes_api_call_s)

    release = releases.find_release(config.cluster.kubernetes_version)
    caller = run.Caller(make_api)
    return run.Run(host=target, paths=paths, config=config, release=release, report=report, caller=caller)


def local_server(config: InitConfig) -> str:
    """`https://10.0.0.11:6443`, this node's own API server."""
    return f"https://{join_host_port(config.local_api_endpoint.advertise_address, config.local_api_endpoint.bind_port)}"


def print_result(call: Invocation, result: RunResult, target: Host, local: LocalHost) -> None:
    if call.program.show_result:
        call.program.show_result(call, result, target)
        return
    plan = list(getattr(target, "plan", []))
    plan = [step for step in plan if not step.what.startswith("/var/lib/kb")]
    if call.output != "text":
        value = result.as_dict()
        value["deferred"] = local.deferred
        value["plan"] = [dataclasses.asdict(step) for step in plan]
        value["server"] = result.results.server or ""
        value["caCertHashes"] = list(result.results.ca_cert_hashes or ())
        call.print_value(value)
        return
    if target.mode == "dry-run":
        print_plan(call, plan)
    elif target.mode == "root":
        _print_deferred(call, local)
    else:
        changes = result.changes
        call.report.line(
            f"{changes} change{'s' * (changes != 1)}" if changes else "nothing to do: all is as it should be"
        )
        if result.results.closing_text:
            call.tell(result.results.closing_text.reveal())


_VERBS = {"write": "write", "mkdir": "make folder", "remove": "remove", "link": "link", "run": "run", "send": "request"}


def print_plan(call: Invocation, plan: list[dry_run.Planned]) -> None:
    for step in plan:
        call.print(f"would {_VERBS[step.kind]}: {step.what}")
        if step.diff:
            call.print("\n".join("    " + line for line in step.diff.splitlines()))
    call.print(f"{len(plan)} changes planned; nothing was changed")


def _print_deferred(call: Invocation, local: LocalHost) -> None:
    call.print(f"the node's files lie below {local.root}")
    if local.deferred:
        call.print("left out, since it needs the running node:")
        for step in dict.fromkeys(local.deferred):
            call.print(f"  {step}")
    missing = [name for name in ("containerd", "kubelet", "crictl") if not local_host.LocalHost().which(name)]
    have = f"this machine lacks {', '.join(missing)}; " if missing else ""
    call.print(
        f"to make it real: {have}on a machine with containerd and the kubelet, run the same command without --root"
    )


# ---- reset


def reset(call: Invocation) -> int:
    """Undo what the journal holds. Nothing is guessed: without a journal nothing is touched."""
    if call.flags.get("list"):
        return list_phases(call)
    local, paths = local_host.LocalHost(), Paths()
    is_dry = bool(call.flags.get("dry-run"))
    target: Host = dry_run.DryRunHost(local) if is_dry else local
    if not local.is_root_user():
        raise not_root("kb reset")
    _require_journal(target, paths)  # before the lock is taken: its file would be all that kb ever made here
    with locked(local, paths, "kb reset", is_dry=is_dry):
        node_state = _require_journal(target, paths)
        _ask_to_reset(call, node_state, is_dry=is_dry)
        ctx = make_context(target, _reset_config(call, node_state), paths, call.report)
        worker = runner.Runner(call.command.workflow, call.command.phases, node_state, keeps_journal=False)
        result = worker.run(ctx, skip=call.flags.get("skip-phases", ()))
        if not any(
            outcome.status == "skipped" for outcome in result.phases if outcome.name.startswith("cleanup-node/")
        ):
            for text in undo.take_away(target, paths):
                call.report.note(text)
    if is_dry or call.output != "text":
        print_result(call, result, target, local)
    else:
        call.print(_AFTER_RESET)
        if node_state.has_run("join"):
            call.print(_AFTER_RESET_MEMBER.format(node=node_state.node))
        foreign = route_keeper.find_first_cni_config(local, paths)
        if foreign not in ("", route_keeper.CNI_FILE):
            call.print(_AFTER_RESET_FOREIGN.format(path=paths.cni_conf / foreign))
    return 0


_AFTER_RESET = "this node is as it was before kb, but for kube-proxy's rules and the kernel's settings (a reboot clears them) and kubeconfigs in home folders"
_AFTER_RESET_MEMBER = """\
Node {node} is still in the cluster, and its pods count as running for some minutes.
On a control plane, unless it joins again: kubectl delete node {node}"""
_AFTER_RESET_FOREIGN = """\
Another pod network left {path}, with its programs, links and rules.
Before this node joins again: rm {path}, and reboot it"""


def _require_journal(target: Host, paths: Paths) -> state.State:
    """The state of a node on which kb made or changed something. Raises HostError (nothing-to-reset)."""
    node_state = state.load_state(target, paths)
    if node_state.has_changed_files():
        return node_state
    looked = (
        f"{paths.state} names no file that kb made or changed" if node_state.phases else f"there is no {paths.state}"
    )
    raise HostError(
        "kb has nothing to take back on this node",
        cause=f"{looked}: kb did not make this node, or reset was done already",
        remedy="a node that kubeadm made: kubeadm reset",
        code="nothing-to-reset",
    )


def _ask_to_reset(call: Invocation, node_state: state.State, *, is_dry: bool) -> None:
    if call.flags.get("force") or is_dry:
        return
    question = f"kb reset stops node {node_state.node} and deletes its part of cluster {node_state.cluster}, etcd's data included."
    if not sys.stdin.isatty():
        raise UsageError(
            question, cause="it asks first, and this is no terminal", remedy="kb reset --force", code="not-confirmed"
        )
    if _ask(f"{question}\nGo on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError(
            "nothing was changed", cause="the question was not answered with y", remedy="kb reset", code="not-confirmed"
        )


def _ask(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        return ""


def _reset_config(call: Invocation, node_state: state.State) -> InitConfig:
    """What the phases of reset need to know of the node."""
    socket = call.flags.get("cri-socket") or node_state.cri_socket or types.NodeRegistration("x").cri_socket
    return types.InitConfig(
        types.ClusterConfiguration(releases.NEWEST_PROVEN, cluster_name=node_state.cluster),
        types.NodeRegistration(node_state.node, cri_socket=socket),
        types.LocalAPIEndpoint("127.0.0.1"),
    )


# ---- status


def status(call: Invocation) -> int:
    """What the state file says, phase by phase."""
    local = local_host.LocalHost()
    node_state = state.load_state(local, Paths())
    if call.output != "text":
        call.print_value(node_state.as_dict())
        return 0
    if not node_state.phases:
        call.print("kb has not worked on this node yet (no /var/lib/kb/state.json)")
        return 0
    call.print(f"node {node_state.node} of cluster {node_state.cluster}")
    workflow_name = "join" if node_state.has_run("join") else "init"
    phases = next(command.phases for command in call.commands if command.name == workflow_name)
    is_control_plane = any(f"{workflow_name}/{phase.name}" in node_state.phases for phase in phases if phase.on)
    known = [f"{workflow_name}/{phase.name}" for phase in phases if is_control_plane or not phase.on]
    width = max(len(name) for name in known)
    for key in [*known, *(key for key in node_state.phases if key not in known)]:
        entry = node_state.phases.get(key)
        when = f"  {entry.ended or entry.started}" if entry else ""
        status = "not run" if entry is None else "adopted" if entry.adopted else entry.status
        call.print(f"{key:<{width}}  {status}{when}")
        if entry and entry.error:
            call.print(f"{'':<{width}}  {entry.error.get('what')}: {entry.error.get('cause', '')}")
    return 0


# ---- config


def print_defaults(call: Invocation) -> int:
    kind = call.command.name.rpartition(" ")[2]
    version = choose.choose_version(local_host.LocalHost(), "").value
    call.print_document(config_commands.print_defaults(kind, call.flags.get("component-configs", []), version=version))
    return 0


def required(call: Invocation, flag: str) -> str:
    """The value of a flag that the command cannot do without. Raises UsageError (missing-flag)."""
    if not call.flags.get(flag):
        raise UsageError(
            f"kb {call.command.name}: --{flag} is missing",
            cause="the command cannot do without it",
            remedy=f"give --{flag}; all flags: kb {call.command.name} --help",
            code="missing-flag",
        )
    return str(call.flags[flag])


def validate_config(call: Invocation) -> int:
    path, as_kubeadm = Path(required(call, "config")), bool(call.program.wishes.get("only-kubeadm"))
    warnings = config_commands.validate_config_file(local_host.LocalHost(), path, as_kubeadm=as_kubeadm)
    for warning in warnings or ():
        call.report.warn(warning)
    call.print("ok")
    return 0


def migrate_config(call: Invocation) -> int:
    local = local_host.LocalHost()
    path, as_kubeadm = Path(required(call, "old-config")), bool(call.program.wishes.get("only-kubeadm"))
    text = config_commands.migrate_config_file(local, path, as_kubeadm=as_kubeadm)
    if "new-config" in call.flags:
        # tokens and the certificate key stand in it
        target = str(call.flags["new-config"])
        local.write_output(target, [host.encode_text(text, target)], is_secret=True)
    else:
        call.print_document(text)
    return 0


def strictness_of(call: Invocation) -> dict[str, Any]:
    """The flags and the name by which it is decided what of a file is only warned of."""
    given = {**call.program.wishes, **call.flags}
    return {name: given[name] for name in ("only-kubeadm", "allow-unknown-fields") if name in given}


def _load_config(call: Invocation, names: tuple[str, ...]) -> InitConfig:
    """The configuration for a command that needs only some of it: the machine is asked for little."""
    flags = {name: call.flags[name] for name in names if name in call.flags}
    config_file = Path(call.flags["config"]) if "config" in call.flags else None
    flags.update(strictness_of(call))
    config = load_init.load_partial_config(
        local_host.LocalHost(),
        config_file=config_file,
        flags=flags,
        read_bundle_version=oci_layout.read_kubernetes_version,
    )
    for warning in config.warnings:
        call.report.warn(warning)
    return config


def images_list(call: Invocation) -> int:
    config = _load_config(call, ("feature-gates", "image-repository", "kubernetes-version"))
    names = list(images.list_node_images(config, releases.find_release(config.cluster.kubernetes_version)))
    if call.output == "text":
        call.print("\n".join(names))
    else:
        call.print_value({"apiVersion": "output.kubeadm.k8s.io/v1alpha3", "kind": "Images", "images": names})
    return 0


def images_pull(call: Invocation) -> int:
    config = _load_config(call, ("cri-socket", "feature-gates", "image-repository", "kubernetes-version"))
    release = releases.find_release(config.cluster.kubernetes_version)
    for name in image_pulls.pull_images(local_host.LocalHost(), config, release, call.report):
        call.print(f"[config/images] Pulled {name}")
    return 0


# ---- identities


def kubeconfig_user(call: Invocation) -> int:
    client_name = required(call, "client-name")
    config = _load_config(call, ("cert-dir",))
    period = call.flags.get("validity-period")
    text = kubeconfig.make_user_kubeconfig(
        local_host.LocalHost(),
        paths_of(config, call.flags),
        config,
        client_name=client_name,
        orgs=tuple(call.flags.get("org", ())),
        token=Secret(call.flags.get("token", "")),
        validity_s=load_init.parse_duration(period, "--validity-period") if period else None,
        server=call.flags.get("server", ""),
    )
    call.print_document(text)
    return 0


def token_generate(call: Invocation) -> int:
    call.print(token_text.generate_token().reveal())
    return 0


def certificate_key(call: Invocation) -> int:
    call.print(shared_certs.new_certificate_key().reveal())
    return 0


# ---- the rest


def routes(call: Invocation) -> int:
    route_keeper.keep_routes(local_host.LocalHost(), once=bool(call.flags.get("once")), log=call.report.line)
    return 0


def load_balancer(call: Invocation) -> int:
    balancer_keeper.keep(local_host.LocalHost(), once=bool(call.flags.get("once")), log=call.report.line)
    return 0


def version(call: Invocation) -> int:
    call.print(render_version(call.output))
    return 0


def completion(call: Invocation) -> int:
    programs = ("kb", "kb.pyz") if call.program.does_more else (call.program.name,)
    shell = call.words[0] if call.words else ""
    call.print(completion_scripts.render_completion(shell, call.commands, programs=programs))
    return 0
