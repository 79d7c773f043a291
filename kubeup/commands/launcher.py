"""How every command starts (machine, configuration, root, lock, state, run) and ends (result).

Owns each of these once. A command asks for what it needs in this order: Launch(call), then `load_partial` or its own
configuration, `is_dry`, `require_root`, `tell`, `locked`, `work`, `print_result`. Must not know what a command does.
Mirrors newInitData, newJoinData and newResetData of cmd/kubeadm/app/cmd/{init,join,reset}.go.

Only Program.make_host creates the machine, so a whole command line runs on another machine without patching:
`kb.main(["join", ...], make_host=lambda root: fake)`, where `root` is the folder of --root, or `/` without one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import releases
from kubeup.addresses import join_host_port
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.airgap import oci_layout
    from kubeup.cluster import amid_rotation, api, node_events
    from kubeup.commands import closing_look
    from kubeup.config import load_init
    from kubeup.doctor import node_files
    from kubeup.engine import run, runner, state
    from kubeup.machine import dry_run
    from kubeup.phases import rotate_cluster, tried_swap, upgrade_runtime
    from kubeup.swap import recovery_record, store, try_record
    from kubeup.upgrade import kept

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.run import BareRun, Run, Who
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.engine.step import Phase
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost
    from kubeup.report import Report

_CHANGES_FILES = "it changes files below /etc and /var/lib, and services"
_CALLS_ETCD = "it calls etcd with a key that only root may read"
_LOOKS_AT_SECRETS = "it reads keys, manifests and the runtime's state"
NEED_ROOT: Mapping[str, str] = {
    "init": _CHANGES_FILES,
    "join": _CHANGES_FILES,
    "reset": _CHANGES_FILES,
    "restore": _CHANGES_FILES,
    "reconfigure": _CHANGES_FILES,
    "reconfigure node": _CHANGES_FILES,
    "reconfigure endpoint": _CHANGES_FILES,
    "reconfigure static-pods": _CHANGES_FILES,
    "reconfigure confirm": _CHANGES_FILES,
    "reconfigure back": _CHANGES_FILES,
    "reconfigure wait": _CHANGES_FILES,
    "readdress": _CHANGES_FILES,
    "upgrade apply": _CHANGES_FILES,
    "upgrade node": _CHANGES_FILES,
    "upgrade rollback": _CHANGES_FILES,
    "upgrade finish": _CHANGES_FILES,
    "upgrade runtime": _CHANGES_FILES,
    "upgrade self": _CHANGES_FILES,
    "adopt": _CHANGES_FILES,
    "certs renew": _CHANGES_FILES,
    "certs auto": _CHANGES_FILES,
    "certs add-san": _CHANGES_FILES,
    "certs recover": _CHANGES_FILES,
    "certs rotate-sa": _CHANGES_FILES,
    "certs rotate-ca": _CHANGES_FILES,
    "mirror add": _CHANGES_FILES,
    "mirror list": _LOOKS_AT_SECRETS,
    "mirror remove": _CHANGES_FILES,
    "mirror gc": _CHANGES_FILES,
    "mirror move": _CHANGES_FILES,
    "mirror use": _CHANGES_FILES,
    "mirror stop": _CHANGES_FILES,
    "node remove": _CALLS_ETCD,
    "node replace": _CALLS_ETCD,
    "node reboot": _CHANGES_FILES,
    "node returned": _CHANGES_FILES,
    "node drain": "it calls the cluster with a key that only root may read",
    "node uncordon": "it calls the cluster with a key that only root may read",
    "etcd remove": _CALLS_ETCD,
    "etcd defrag": _CALLS_ETCD,
    "etcd compact": _CALLS_ETCD,
    "etcd alarm": _CALLS_ETCD,
    "etcd leader": _CALLS_ETCD,
    "etcd snapshot": _CALLS_ETCD,
    "etcd recover": _CHANGES_FILES,
    # an ordinary user cannot read keys, manifests or the runtime: half of the checks would report false errors
    "doctor": _LOOKS_AT_SECRETS,
    "drift": _LOOKS_AT_SECRETS,
    "drift schedule": _CHANGES_FILES,
    "support-bundle": _LOOKS_AT_SECRETS,
    "backup": _LOOKS_AT_SECRETS,
    "backup schedule": _CHANGES_FILES,
    "backup verify": "it reads keys, and boots an API server",
    "upgrade plan": _LOOKS_AT_SECRETS,
    "upgrade diff": _LOOKS_AT_SECRETS,
    "kubeconfig list": "it reads the kubeconfigs of this node and of its users",
}
"""The commands that require root, and why; the reason for `init` also applies to `init phase`."""

CONTINUE_SWAPS = frozenset(
    {"reconfigure", "reconfigure node", "reconfigure static-pods", "upgrade apply", "upgrade node", "upgrade rollback"}
)
"""The commands that look themselves at a swap, or an upgrade, that was cut off."""
CONTINUE_RESTARTS = frozenset({"certs rotate-sa", "certs rotate-ca"})
"""The commands that go on with a swap that was cut off if it changes no more of a manifest than a rotation does."""
END_TRIES = frozenset({"reconfigure confirm", "reconfigure back", "reconfigure wait"})
"""The commands that end a change that is being tried, from wherever it was cut off."""
_RUNTIME = "upgrade runtime"
_UPGRADES = {"upgrade-apply": "control-plane", "upgrade-node": "control-plane", "upgrade-rollback": "swap"}
_SWAPS = {**_UPGRADES, "reconfigure": "swap", "reconfigure-static-pods": "swap"}
"""Workflow -> its phase that swaps static pods."""
_KUBELET_PHASE = "kubelet-config"
"""The phase of the same workflows in which the kubelet is stopped."""


class Launch:
    """A starting command. It reads the machine through `local` and changes it through `target`."""

    def __init__(self, call: Invocation) -> None:
        self.call = call
        self.local: LocalHost = open_host(call)
        self.is_dry = bool(call.flags.get("dry-run"))
        """Whether `target` only plans. A command whose configuration can also set this does so before it uses
        `target`."""
        self.only_looks = False
        """Whether the command changes nothing at all: what it would change is only planned, and its waits are real."""

    @functools.cached_property
    def target(self) -> Host:
        is_planning = self.is_dry or self.only_looks
        return dry_run.DryRunHost(self.local, waits=self.only_looks) if is_planning else self.local

    # ---- the configuration

    @property
    def config_file(self) -> Optional[Path]:
        return Path(self.call.flags["config"]) if "config" in self.call.flags else None

    def adopted_config(self) -> Optional[Path]:
        """The configuration found on an adopted node, used if there is no --config; kb's defaults would change the
        node."""
        path = Paths().adopted(self.call.command.workflow)
        if not (self.call.program.keeps_state and "root" not in self.call.flags and self.local.exists(path)):
            return None
        self.call.report.note(f"this node was adopted: using {path}")
        return path

    def load_partial(self, names: tuple[str, ...]) -> NodeConfig:
        """Load the configuration for a command that needs only part of it, with few reads of the machine. names: the
        flags that matter."""
        flags = {name: self.call.flags[name] for name in names if name in self.call.flags}
        flags.update(strictness_of(self.call))
        config = load_init.load_partial_config(
            self.local,
            config_file=self.config_file,
            flags=flags,
            read_bundle_version=oci_layout.read_kubernetes_version,
        )
        for warning in config.warnings:
            self.call.report.warn(warning)
        return config

    def tell(self, config: NodeConfig) -> None:
        """Report what was decided for the user, and the warnings."""
        for warning in config.warnings:
            self.call.report.warn(warning)
        for note in config.notes:
            self.call.report.note(note)

    # ---- root, lock, state

    def require_root(self, ignored: Iterable[str] = ()) -> None:
        """Raises HostError (not-root) if NEED_ROOT names the command, unless it works below a folder. ignored: the
        checks whose errors are only warnings, which may include this one."""
        command = self.call.command.name.replace(" phase", "")
        is_ignored = {name.lower() for name in ignored} & {"all", "isprivilegeduser"}
        if command not in NEED_ROOT or not self.local.is_live or self.local.is_root_user() or is_ignored:
            return
        called = f"kb {command}"
        raise HostError(
            f"[ERROR IsPrivilegedUser]: {called} is not run as root",
            cause=NEED_ROOT[command],
            remedy=f"sudo {called}"
            + ("; or see what init would do, without root: kb init --root DIR" if command == "init" else ""),
            code="not-root",
        )

    @contextlib.contextmanager
    def locked(self, paths: Paths) -> Iterator[State]:
        """This node's state, locked against changes by other kb processes."""
        with contextlib.ExitStack() as stack:
            if not self.is_dry and self._needs_lock(paths):
                stack.enter_context(self.local.lock(paths.lock, f"kb {self.call.command.name}"))
            self.refuse_cut_off(paths)
            self._drop_expired(paths)
            yield self.open_state(paths)

    def _drop_expired(self, paths: Paths) -> None:
        """Remove what was kept of an upgrade for long enough: a node need not have kb's timer, which does so too."""
        if self.is_dry or not self.call.program.keeps_state:
            return
        for place in (paths.upgrade, paths.upgrade_runtime):
            if self.local.is_dir(place):
                with contextlib.suppress(KbError):  # whoever upgrades next is told of a damaged record
                    kept.drop_expired(self.local, dataclasses.replace(paths, upgrade=place))

    def refuse_cut_off(self, paths: Paths) -> None:
        """Raises HostError (swap-cut-off), (recovery-cut-off), (upgrade-cut-off); ClusterError (rotation-under-way), (try-pending): what another command changes now
        would be swapped with it, or back, and the kubelet may be stopped."""
        name = self.call.command.name
        amid_rotation.refuse_writer(self.local, paths, command=name, words=tuple(self.call.words))
        if name == "reset" or not self.call.program.keeps_state:
            return
        self._refuse_cut_off_recovery(paths)
        if name in END_TRIES:
            return
        if name != _RUNTIME and self.local.is_dir(paths.upgrade_runtime):
            self._refuse_cut_off_runtime(paths)
        cut_off = store.load_cut_off(self.local, paths)
        may_go_on = cut_off is not None or bool(self.call.flags.get("try"))  # the same trial again: its preflight tells
        if not (may_go_on and name in CONTINUE_SWAPS):
            self.refuse_tried(paths)
        if name in CONTINUE_SWAPS:
            return
        node_state = self.open_state(paths)
        if cut_off is not None and not (name in CONTINUE_RESTARTS and rotate_cluster.is_own_swap(cut_off)):
            raise swap_cut_off(cut_off, node_state)
        begun = _last_of(node_state, dict.fromkeys(_UPGRADES, _KUBELET_PHASE))
        if begun and node_state.phases[begun].status == "running":
            raise upgrade_cut_off(begun)

    def _refuse_cut_off_runtime(self, paths: Paths) -> None:
        """Raises HostError (upgrade-cut-off)."""
        if upgrade_runtime.find_cut_off(self.local, paths) is not None:
            raise HostError(
                "an upgrade of the container runtime was cut off on this node",
                cause="containerd and the kubelet may be stopped",
                remedy=f"continue it: kb {_RUNTIME}; or take it back: kb {_RUNTIME} --undo",
                code="upgrade-cut-off",
            )

    def refuse_tried(self, paths: Paths) -> None:
        """Raises ClusterError (try-pending) while a change is being tried on this node; HostError (try-unreadable)."""
        tried = try_record.load_pending(self.local, paths) if self.call.program.keeps_state else None
        if tried is not None:
            raise tried_swap.pending(tried)

    def _refuse_cut_off_recovery(self, paths: Paths) -> None:
        """Raises HostError (recovery-cut-off): etcd and the API server may be stopped."""
        if self.call.command.name == "etcd recover":
            return
        if recovery_record.load_cut_off(self.local, paths) is not None:
            raise HostError(
                "a recovery of etcd was cut off on this node",
                cause="its API server and etcd may be stopped, or etcd may be about to go on alone",
                remedy="continue it: kb etcd recover; or take it back: kb etcd recover --undo",
                code="recovery-cut-off",
            )

    def _needs_lock(self, paths: Paths) -> bool:
        """A program that keeps no state creates no folder for its lock, but waits for one that holds it."""
        return self.call.program.keeps_state or self.local.is_dir(paths.state_dir)

    def open_state(self, paths: Paths) -> State:
        """This node's state; for a program that keeps none, an empty state that is never written."""
        if self.call.program.keeps_state:
            return state.load_state(self.target, paths)
        return state.State(self.target, paths, is_kept=False)

    # ---- the phases, and the end

    def work(
        self,
        ctx: BareRun,
        node_state: State,
        *,
        phases: Optional[Sequence[Phase]] = None,
        only: str = "",
        skip: Sequence[str] = (),
        keeps_journal: bool = True,
        workflow: str = "",
    ) -> RunResult:
        """Run the command's phases (or `phases`), or only those named by `only`, even if they are to be skipped. workflow: their name in
        the node's state, if it is not the command's."""
        worker = runner.Runner(
            workflow or self.call.command.workflow,
            self.call.command.phases if phases is None else phases,
            state=node_state,
            keeps_journal=keeps_journal and self.call.program.keeps_state,
        )
        try:
            return worker.run(ctx, only=only, skip=skip)
        except ClusterError as error:
            is_own = self.call.program.keeps_state and self.call.command.workflow in closing_look.WORKFLOWS
            if is_own and self.local.is_live and not self.is_dry:
                closing_look.explain_failure(self.local, error)
            raise

    def print_result(self, result: RunResult, *, more: Optional[Mapping[str, Any]] = None) -> None:
        """more: fields of the command's own, for -o json and yaml."""
        call, target = self.call, self.target
        if call.program.show_result:
            call.program.show_result(call, result, target)
            return
        plan = list(getattr(target, "plan", []))
        plan = [step for step in plan if not step.what.startswith("/var/lib/kb")]
        if call.output != "text":
            value = result.as_dict()
            value["deferred"] = self.local.deferred
            value["plan"] = [dataclasses.asdict(step) for step in plan]
            value["server"] = result.results.server or ""
            value["caCertHashes"] = list(result.results.ca_cert_hashes or ())
            if result.results.remaining is not None:
                value["remaining"] = list(result.results.remaining)
            value.update(more or {})
            call.print_value(value)
        elif target.mode == "dry-run":
            print_plan(call, plan)
        elif target.mode == "root":
            self._print_deferred()
        else:
            changes = result.changes
            call.report.line(f"{changes} change{'s' * (changes != 1)}" if changes else "nothing to do")
            if result.results.closing_text:
                call.tell(result.results.closing_text.reveal())

    def _print_deferred(self) -> None:
        call, local = self.call, self.local
        call.print(f"the node's files lie below {local.root}")
        if local.deferred:
            call.print("left out, since it needs the running node:")
            for step in dict.fromkeys(local.deferred):
                call.print(f"  {step}")
        machine = call.program.make_host(Path("/"))
        missing = [name for name in ("containerd", "kubelet", "crictl") if not machine.which(name)]
        have = f"this machine lacks {', '.join(missing)}; " if missing else ""
        call.print(
            f"to make it real: {have}on a machine with containerd and the kubelet, run the same command without --root"
        )


_VERBS = {
    "write": "write",
    "mkdir": "make folder",
    "remove": "remove",
    "link": "link",
    "run": "run",
    "send": "request",
    "later": "make, once it is known, what follows from",
}


def print_plan(call: Invocation, plan: Sequence[dry_run.Planned]) -> None:
    for step in plan:
        call.print(f"would {_VERBS[step.kind]}: {step.what}")
        if step.diff:
            call.print("\n".join("    " + line for line in step.diff.splitlines()))
    call.print(f"{len(plan)} changes planned; nothing was changed")


def open_host(call: Invocation) -> LocalHost:
    """The machine, or the folder of --root."""
    return call.program.make_host(Path(call.flags.get("root", "/")))


def strictness_of(call: Invocation) -> dict[str, Any]:
    """The flags and the program name that decide which mistakes in a file are only warnings."""
    given = {**call.program.wishes, **call.flags}
    return {name: given[name] for name in ("only-kubeadm", "allow-unknown-fields") if name in given}


def required(call: Invocation, flag: str) -> str:
    """The value of a required flag. Raises UsageError (missing-flag)."""
    if not call.flags.get(flag):
        raise UsageError(
            f"kb {call.command.name}: --{flag} is missing",
            cause="the command requires it",
            remedy=f"give --{flag}; all flags: kb {call.command.name} --help",
            code="missing-flag",
        )
    return str(call.flags[flag])


def of_a_swap(call: Invocation) -> dict[str, Any]:
    """The fields of a SwapRun that the command line gives: how to ask, and the user's own commands around a stop."""
    return {
        "agree": lambda question: agree(call, question),
        "before_stop": str(call.flags.get("before-stop") or ""),
        "after_start": str(call.flags.get("after-start") or ""),
    }


def require_one_file(call: Invocation, *, takes: str) -> Path:
    """The file that the command's only word names. takes: `one bundle`. Raises UsageError (usage)."""
    if len(call.words) != 1:
        raise UsageError(
            f"kb {call.command.name} {' '.join(call.words)}".strip(),
            cause=f"it takes {takes}",
            remedy=f"kb {call.command.name} FILE",
            code="usage",
        )
    return Path(call.words[0]).absolute()


def agree(call: Invocation, question: str) -> None:
    """Go on only with the user's word: --yes, or an answer at the terminal. Raises UsageError (not-confirmed)."""
    if call.flags.get("yes") or call.flags.get("dry-run"):
        call.report.note(question)
        return
    command = " ".join(("kb", call.command.name, *call.words))
    again = f"if you agree, give it --yes: {command} --yes, with the other flags as before"
    if not sys.stdin.isatty():
        raise UsageError(
            question,
            cause="it asks for confirmation, and stdin is not a terminal",
            remedy=again,
            code="not-confirmed",
        )
    answer = ask(f"{question}\nGo on? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(
            "nothing was changed", cause="the question was not answered with y", remedy=command, code="not-confirmed"
        )


def ask(question: str) -> str:
    """What the user answers at the terminal; "" at the end of the input, or if the question reaches nobody. Standard output may be a
    file, for a program."""
    try:
        sys.stderr.write(question)
        sys.stderr.flush()
        return input()
    except (EOFError, OSError):
        return ""


def is_begun(node_state: State, key: str) -> bool:
    """Whether a phase was begun, and has not come to its end."""
    return key in node_state.phases and node_state.phases[key].status != "done"


def _last_of(node_state: State, phases: Mapping[str, str]) -> str:
    """The last that ran of these phases (workflow -> phase), by its key `upgrade-apply@v1.36.3/control-plane`; "" if none did."""
    found = [key for key in node_state.phases if phases.get(re.split("[@/]", key)[0]) == key.partition("/")[2]]
    return max(found, key=lambda key: node_state.phases[key].started, default="")


def _command_of(key: str) -> str:
    """`kb upgrade apply v1.36.3` of `upgrade-apply@v1.36.3/control-plane`."""
    workflow, _, version = key.partition("/")[0].partition("@")
    return f"kb {workflow.replace('-', ' ')} {version if workflow == 'upgrade-apply' else ''}".rstrip()


def swap_cut_off(swap: store.Swap, node_state: Optional[State] = None) -> HostError:
    """node_state: to name the upgrade that began it, if one did."""
    key = _last_of(node_state, _SWAPS) if node_state is not None and swap.changed else ""
    is_of_upgrade = key.startswith("upgrade") and node_state is not None and is_begun(node_state, key)
    return HostError(
        f"a swap of {', '.join(swap.names)} was cut off on this node",
        cause="its static pods may be half swapped",
        remedy=f"continue it: {_command_of(key) if is_of_upgrade else 'kb reconfigure static-pods'}; "
        "or take it back: kb reconfigure static-pods --undo",
        code="swap-cut-off",
    )


def upgrade_cut_off(key: str) -> HostError:
    """key: of the phase in which it was."""
    return HostError(
        f"{'the way back of an' if 'rollback' in key else 'an'} upgrade was cut off on this node",
        cause="its kubelet may be stopped, or of one version with the configuration of another",
        remedy=f"continue it: {_command_of(key)}"
        + ("" if "rollback" in key else "; or take it back: kb upgrade rollback"),
        code="upgrade-cut-off",
    )


def list_phases(call: Invocation) -> int:
    from kubeup.cli.parser import render_phases

    if call.output != "text":
        call.print_value(
            [{"name": phase.name, "does": phase.does} for phase in call.command.phases if not phase.hidden]
        )
    else:
        call.print(render_phases(call.command.phases))
    return 0


def require_same_node(node_state: State, config: NodeConfig, *, paths: Paths) -> None:
    """Raises HostError (node-renamed)."""
    # a run that failed its checks left nothing with the old name, and the checks may have asked for another one
    if node_state.has_changed_files() and node_state.node and node_state.node != config.node.name:
        raise HostError(
            f"this node is called {config.node.name!r} now",
            cause=f"kb began it as {node_state.node!r} ({paths.state}), and certificates and etcd have that name",
            remedy=f"go on with --node-name {node_state.node}, or give the machine its old name back; if its disk is a copy of {node_state.node}'s, "
            f"remove /etc/kubernetes, /var/lib/kubelet, /var/lib/etcd and {paths.state_dir}, or there are two of it",
            code="node-renamed",
        )
    node_state.node, node_state.cluster = config.node.name, config.cluster.cluster_name
    node_state.cri_socket = config.node.cri_socket
    if config.patches_directory:
        node_state.patches = str(Path(config.patches_directory).absolute())


def require_no_step_back(local: Host, config: NodeConfig, *, paths: Paths, command: str) -> None:
    """Raises HostError (version-goes-back) if this node's API server is newer than the configuration: the steps of `command` would write
    its manifests as they were before an upgrade."""
    found = node_files.read_server_version(local, paths)
    wanted = releases.parse_version(config.cluster.kubernetes_version)
    if found is None or wanted is None or found.key <= wanted.key:
        return
    raise HostError(
        f"this node runs Kubernetes {found}",
        cause=f"the configuration says {wanted}, and {command} would take the node back to it, which an API server's data may not survive",
        remedy=f"have the cluster's configuration say what runs: kb upgrade apply {found}"
        if config.join
        else f"have the configuration say what runs: kubernetesVersion: {found}, or --kubernetes-version {found}",
        code="version-goes-back",
    )


def paths_of(config: NodeConfig, flags: Mapping[str, Any]) -> Paths:
    """The paths of this node's files, from its configuration."""
    local_etcd = config.cluster.local_etcd
    return Paths(
        pki=Path(config.cluster.certificates_dir),
        kubeconfigs=Path(flags.get("kubeconfig-dir", "/etc/kubernetes")),
        etcd_data=Path(local_etcd.data_dir if local_etcd else "/var/lib/etcd"),
    )


def make_run(
    target: Host,
    config: NodeConfig,
    *,
    paths: Paths,
    report: Report,
    kubeconfig_file: Optional[Path] = None,
    own_server: str = "",
) -> Run:
    """The run that the phases of a control plane work with; the API server is called as the admin of `kubeconfig_file`.
    own_server: where this node's API server listens, if that is known better than from the configuration."""

    def make_api(_: Who) -> api.Api:
        # the stable endpoint in admin.conf may not lead to this node yet: talk to this node itself
        server = "" if kubeconfig_file else own_server or local_server(config)
        identity = api.read_identity(target, kubeconfig_file or paths.admin_conf, server=server)
        return api.Api(target, identity, retry_s=config.timeouts.kubernetes_api_call_s)

    release = releases.find_release(config.cluster.kubernetes_version)
    caller = run.Caller(make_api)
    return run.Run(host=target, paths=paths, config=config, release=release, report=report, caller=caller)


def write_event(launch: Launch, patient: Patient, *, reason: str, message: str, by: str, kind: str = "Normal") -> None:
    """Create an Event for this node. If the API server cannot be called, the journal alone has it. by: the unit that says so."""
    host, node = launch.local, patient.config.node.name
    server = node_files.find_own_server(host, patient.paths)
    try:
        client = api.Api(host, api.read_identity(host, patient.kubeconfig, server=server), retry_s=0)
        client.create(node_events.render_event(node, host.now(), reason=reason, message=message, kind=kind, by=by))
    except KbError as error:
        launch.call.report.note(f"no Event was written: {error}")


def kubelet_api(host: Host, paths: Paths, *, retry_s: float = 20) -> api.Api:
    """The API server as this node's kubelet calls it."""
    return api.Api(host, api.read_identity(host, paths.kubernetes / "kubelet.conf"), retry_s=retry_s)


def kubelet_caller(host: Host, paths: Paths, *, retry_s: float = 20) -> run.Caller:
    """For a worker's run, which has no other identity."""
    return run.Caller(lambda _: kubelet_api(host, paths, retry_s=retry_s), "kubelet")


def no_control_plane(paths: Paths, *, then: str = "") -> HostError:
    """then: what is to be done here afterwards."""
    remedy = "run it on a control plane: kubectl get nodes -l node-role.kubernetes.io/control-plane"
    return HostError(
        "this node is not a control plane",
        cause=f"there is no {paths.manifest('kube-apiserver')}",
        remedy=f"{remedy}; then here: {then}" if then else remedy,
        code="not-a-control-plane",
    )


def local_server(config: NodeConfig) -> str:
    """`https://10.0.0.11:6443`, the URL of this node's own API server."""
    return f"https://{join_host_port(config.local_api_endpoint.advertise_address, config.local_api_endpoint.bind_port)}"
