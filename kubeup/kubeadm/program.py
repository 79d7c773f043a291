"""kb under the name kubeadm: exactly what kubeadm does, so that a provisioning tool that calls kubeadm runs unchanged.

Owns which of kb's commands and phases kubeadm has, its exit status (1 for every error), the form of its errors, and the
commands that only kubeadm has (version, reset). Must not do a phase's work: the phases are kb's, without those that
kubeadm lacks, and kubeup/kubeadm/lines.py prints their lines. No state is kept, so that the same checks refuse a second
run. Mirrors cmd/kubeadm/app/cmd/*.go and cmd/kubeadm/app/util/errors/errors.go.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup import __version__, releases
from kubeup.cli.entry import main as run_command_line
from kubeup.cli.own_name import Spelling, find_kb_behind
from kubeup.cli.program import Command, Invocation, Program, make_local_host
from kubeup.commands import init as commands_init
from kubeup.commands import join as commands_join
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.config.flag_table import BY_NAME, flags_of
from kubeup.engine.runner import RunResult
from kubeup.engine.step import Phase
from kubeup.errors import KbError, PreflightError, UsageError
from kubeup.kubeadm import reset as kubeadm_reset
from kubeup.kubeadm.lines import KubeadmReport, Speech, init_lines, join_lines, speaking
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.report import Report

with lazily:
    from kubeup import yaml_files
    from kubeup.config import choose, load_reset, types
    from kubeup.kubeadm import stands_for, upgrade, upgrade_phases

if TYPE_CHECKING:
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost

INIT_PHASES = (
    "preflight", "certs", "kubeconfig", "etcd", "control-plane", "kubelet-start", "wait-control-plane",
    "upload-config", "upload-certs", "mark-control-plane", "bootstrap-token", "kubelet-finalize", "addon",
    "show-join-command",
)  # fmt: skip
JOIN_PHASES = (
    "preflight", "control-plane-prepare", "check-etcd", "kubelet-start", "etcd-join", "kubelet-wait-bootstrap",
    "control-plane-join", "wait-control-plane",
)  # fmt: skip
"""The phases that kubeadm has, by their first word."""
HIDDEN = ("wait-control-plane/controllers", "check-etcd")
"""These run but are not listed in kubeadm's help."""

ALIASES = {
    "uploadconfig": "upload-config",
    "bootstraptoken": "bootstrap-token",
    "pre-flight": "preflight",
    "cleanupnode": "cleanup-node",
}
HAVE_NO_ALL = ("etcd",)
KUBECONFIGS = ("admin", "super-admin", "kubelet", "controller-manager", "scheduler")
"""In kubeadm's order."""

_EVERYWHERE = ("vmodule", "rootfs")
_TRUE_ALONE = frozenset({"--etcd-upgrade", "--certificate-renewal"})
"""Switches that are on by default, and are usually given with a value."""
_COMMANDS = re.compile(r"(init|join)( phase)?|(config|token|certs|kubeconfig) .*|completion")

RESET: tuple[Phase, ...] = (
    Phase("preflight", does="Ask, and look whether this is root", act=kubeadm_reset.ask, live="node"),
    Phase("remove-etcd-member", does="Take this node's member out of the etcd cluster", act=kubeadm_reset.remove_etcd_member, live="node"),
    Phase("cleanup-node", does="Stop the kubelet, remove pods, and empty kubeadm's folders", act=kubeadm_reset.clean_up, live="node"),
)  # fmt: skip


def main(
    kb_commands: Sequence[Command],
    argv: Sequence[str],
    *,
    called: str = "",
    make_host: Callable[[Path], LocalHost] = make_local_host,
) -> int:
    """Run as kubeadm with `argv`; called: the file it was called by. Returns the exit status: 0, 1 for every error, 128
    + a signal."""
    words = [word for word in argv if word != "--as-kubeadm"]
    if not words:
        words = ["--help"]  # calling kubeadm without arguments is no error
    words = [f"{word}=true" if word in _TRUE_ALONE else word for word in words]
    commands = kubeadm_commands(kb_commands)
    program = Program(
        "kubeadm",
        called_as="kubeadm",
        file=called,
        spelling=make_spelling(kb_commands, commands, called_as_kb=find_kb_behind(called, sys.executable)),
        title=f"kb {__version__} under the name kubeadm: it does what kubeadm does and no more",
        make_report=KubeadmReport,
        end_with_error=end_with_error,
        show_result=show_result,
        wishes={"pod-network": "none", "soak": "0s", "only-kubeadm": True},
        keeps_state=False,
        make_host=make_host,
    )
    status = run_command_line(commands, words, program=program)
    return status if status == 0 or status >= 128 else 1


# ---- the commands


def kubeadm_commands(kb_commands: Sequence[Command]) -> tuple[Command, ...]:
    """Select kubeadm's commands from kb's."""
    found = [_as_kubeadm_has_it(command) for command in kb_commands if _COMMANDS.fullmatch(command.name)]
    of_reset = flags_of("kubeadm reset")
    found += [
        Command("reset", "Take back what was done to this node by init or join", reset, of_reset, (), lambda: RESET, "reset"),
        Command("reset phase", "Run one phase of reset", reset, of_reset, ("phase...",), lambda: RESET, "reset"),
        Command("version", "Print the version of Kubernetes that this stands for", version, ("output",)),
        *_upgrade_commands(),
        Command("alpha", "Experimental commands: there are none", alpha, (), ("word...",)),
    ]  # fmt: skip
    commands = [replace(command, options=(*command.options, *_EVERYWHERE)) for command in found]
    spelling = make_spelling(kb_commands, commands)
    return tuple(replace(command, does=spelling.spell(command.does)) for command in commands)


def _upgrade_commands() -> list[Command]:
    apply, node = (lambda: upgrade_phases.APPLY), (lambda: upgrade_phases.NODE)
    of_apply, of_node = flags_of("kubeadm upgrade apply"), flags_of("kubeadm upgrade node")
    return [
        Command("upgrade", "Upgrade a cluster, one node after the other", upgrade_parent, (), ("word...",)),
        Command("upgrade apply", "Upgrade this control plane, and the cluster's objects", lambda call: upgrade.apply(call), of_apply, ("version...",), apply, "upgrade-apply"),
        Command("upgrade apply phase", "Run one phase of upgrade apply", upgrade_phase, of_apply, ("phase...",), apply, "upgrade-apply"),
        Command("upgrade node", "Upgrade this node to the version that the cluster has", lambda call: upgrade.node(call), of_node, (), node, "upgrade-node"),
        Command("upgrade node phase", "Run one phase of upgrade node", upgrade_phase, of_node, ("phase...",), node, "upgrade-node"),
        Command("upgrade plan", "See what an upgrade would bring", lambda call: upgrade.plan(call), flags_of("kubeadm upgrade plan"), ("version...",)),
        Command("upgrade diff", "Compare the manifests here with those of another version", lambda call: upgrade.diff(call), flags_of("kubeadm upgrade diff"), ("version...",)),
    ]  # fmt: skip


def make_spelling(kb_commands: Sequence[Command], own: Sequence[Command], *, called_as_kb: str = "kb") -> Spelling:
    """Spell a command as kubeadm's if kubeadm has it with the named options, otherwise as kb's."""
    names = tuple(command.name for command in kb_commands)
    options = {command.name: command.options for command in own}
    return Spelling("kubeadm", names, options, called_as_kb, {"--list": "--help"})


def _as_kubeadm_has_it(command: Command) -> Command:
    options = tuple(name for name in command.options if command.name not in BY_NAME[name].added_to)
    if command.name.startswith("config ") and "kubeconfig" not in options:
        options += ("kubeconfig",)
    if "output" in options:
        options += ("show-managed-fields", "allow-missing-template-keys")
    runs = {"init": init, "init phase": one_phase, "join": join, "join phase": one_phase}
    story = functools.cache(lambda: kubeadm_phases(command.workflow, command.phases))
    return replace(command, options=options, story=story, run=runs.get(command.name, command.run), task="")


def kubeadm_phases(name: str, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases of kb's workflow that kubeadm has, in kubeadm's order, printing kubeadm's lines."""
    known: Mapping[str, tuple[tuple[str, ...], Mapping[str, Speech]]] = {
        "init": (INIT_PHASES, init_lines() if name == "init" else {}),
        "join": (JOIN_PHASES, join_lines() if name == "join" else {}),
    }
    if name not in known:
        return tuple(phases)
    order, lines = known[name]
    kept = [phase for phase in phases if phase.name.partition("/")[0] in order]
    if name == "init":
        # kb starts the kubelet as early and waits for the controllers as late as possible; kubeadm's lines come group
        # by group. A joining control plane keeps kb's order, which is visible only in its speed
        kept.sort(key=lambda phase: _place_in_kubeadm(phase.name, order))
    return tuple(replace(speaking(phase, lines), hidden=phase.name in HIDDEN) for phase in kept)


def _place_in_kubeadm(name: str, order: Sequence[str]) -> tuple[int, int]:
    """A phase's position in kubeadm's init; only in one group are kb's children not already in kubeadm's order."""
    group, _, child = name.partition("/")
    return order.index(group), KUBECONFIGS.index(child) if group == "kubeconfig" and child else 0


def init(call: Invocation) -> int:
    _refuse_rootfs(call)
    _report(call).opening = lambda ctx: f"[init] Using Kubernetes version: {ctx.config.cluster.kubernetes_version}"
    return commands_init.init(call)


def join(call: Invocation) -> int:
    _refuse_rootfs(call)
    return commands_join.join(call)


def one_phase(call: Invocation) -> int:
    """`init phase certs ca`, `init phase certs all`; join's may be followed by HOST:PORT."""
    _refuse_rootfs(call)
    words = [ALIASES.get(word, word) for word in call.words]
    _refuse_parent(call, words)
    call = replace(call, words=words)
    return commands_init.init_phase(call) if call.command.workflow == "init" else commands_join.join_phase(call)


def _refuse_parent(call: Invocation, words: Sequence[str]) -> None:
    """Raises UsageError (no-phase) if only a parent is named: kubeadm requires one of its children, or `all`."""
    name = "/".join(word.strip("/") for word in words if ":" not in word)
    children = [phase for phase in call.command.phases if phase.name.startswith(f"{name}/")]
    visible = [phase.name.partition("/")[2] for phase in children if not phase.hidden]
    is_parent = bool(children) and not any(phase.name == name for phase in call.command.phases)
    if not name or is_parent:
        extra = () if name in HAVE_NO_ALL else ("all",)
        first = dict.fromkeys(phase.name.partition("/")[0] for phase in call.command.phases if not phase.hidden)
        listed = ", ".join((*extra, *visible)) if name else ", ".join(first)
        raise UsageError(
            "subcommand is required",
            cause=f"kubeadm {call.command.name} {name}".rstrip() + f" takes one of: {listed}",
            remedy="name one of them",
            code="no-phase",
        )


def _report(call: Invocation) -> KubeadmReport:
    assert isinstance(call.report, KubeadmReport)
    return call.report


def _refuse_rootfs(call: Invocation) -> None:
    if call.flags.pop("rootfs", "") not in ("", "/"):
        raise UsageError(
            "--rootfs",
            cause="kb does not change the root folder of its process",
            remedy="run it inside: chroot DIR kubeadm ...; or, with kb under its own name, init's --root",
            code="rootfs-unsupported",
        )
    call.flags.pop("vmodule", None)


def alpha(call: Invocation) -> int:
    call.print("there are no experimental commands")
    return 0


# ---- upgrade


def upgrade_parent(call: Invocation) -> int:
    """Without one of its subcommands it is an error, as in kubeadm. Raises UsageError (usage)."""
    what = f'unknown command "{call.words[0]}" for "kubeadm upgrade"' if call.words else "subcommand is required"
    raise UsageError(
        what, cause="it has the subcommands apply, node, plan and diff", remedy="name one of them", code="usage"
    )


def upgrade_phase(call: Invocation) -> int:
    words = [ALIASES.get(word, word) for word in call.words]
    names = [word for word in words if releases.parse_version(word) is None]
    _refuse_parent(replace(call, words=names), names)
    if names[-1:] == ["all"]:
        words.remove("all")
    call = replace(call, words=words)
    return upgrade.apply_phase(call) if call.command.workflow == "upgrade-apply" else upgrade.node_phase(call)


# ---- version


def version(call: Invocation) -> int:
    info = describe_version(
        stands_for.find_version(launcher.open_host(call), called=call.program.file), platform.machine()
    )
    form = call.flags.get("output", "text")
    if form == "short":
        call.print(info["gitVersion"])
    elif form == "json":
        call.print(json.dumps({"clientVersion": info}, indent=2))
    elif form == "yaml":
        call.print(yaml_files.dump_yaml({"clientVersion": info}) + "\n")
    else:
        call.print(f"kubeadm version: &version.Info{{{_go_fields(info)}}}")
    return 0


def describe_version(text: str, machine: str) -> dict[str, str]:
    """kubeadm's version.Info. Fields about a Go build are empty; gitCommit names kb."""
    found = releases.parse_version(text)
    assert found is not None
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return {
        "major": "1",
        "minor": str(found.minor),
        "gitVersion": text,
        "gitCommit": f"kb-{__version__}",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "",
        "platform": f"linux/{architecture}",
    }


def _go_fields(info: Mapping[str, str]) -> str:
    empty = ("EmulationMajor", "EmulationMinor", "MinCompatibilityMajor", "MinCompatibilityMinor")
    shown = {name[0].upper() + name[1:]: value for name, value in info.items()}
    rows = [*list(shown.items())[:2], *((name, "") for name in empty), *list(shown.items())[2:]]
    return ", ".join(f'{name}:"{value}"' for name, value in rows)


# ---- reset


def reset(call: Invocation) -> int:
    """Empty kubeadm's folders, whoever filled them. `kb reset` undoes what else kb created on the node."""
    _refuse_rootfs(call)
    launch, paths = Launch(call), Paths()
    local = launch.local
    wishes = load_reset.load_reset_config(local, config_file=launch.config_file, flags=_reset_flags(call))
    launch.is_dry = wishes.dry_run
    only = "/".join(ALIASES.get(word, word) for word in call.words)
    if call.command.name == "reset phase":
        _refuse_parent(call, only.split("/") if only else [])
    socket = wishes.cri_socket or choose.choose_cri_socket(local).value or types.NodeRegistration.cri_socket
    paths = replace(paths, pki=Path(wishes.certificates_dir))
    ctx = kubeadm_reset.KubeadmReset(
        host=launch.target, paths=paths, report=call.report, cri_socket=socket, wishes=wishes
    )
    skip = [ALIASES.get(name, name) for name in wishes.skip_phases]
    launch.work(ctx, launch.open_state(paths), only=only, skip=skip, keeps_journal=False)
    if not only:
        call.print(_AFTER_RESET)
        if local.is_dir(paths.state_dir):
            call.report.line(
                f"kb worked on this node too ({paths.state}): what is left of that goes with: "
                f"{call.program.spelling.called_as_kb if call.program.spelling else 'kb'} reset"
            )
    return 0


_AFTER_RESET = """
CNI configuration, packet filter rules and kubeconfig files in home folders were left as they are.
How to remove them: https://k8s.io/docs/reference/setup-tools/kubeadm/kubeadm-reset/
"""


def _reset_flags(call: Invocation) -> dict[str, Any]:
    return {name: value for name, value in call.flags.items() if name not in ("config", "kubeconfig", "output")}


# ---- the end of a command


def show_result(call: Invocation, result: RunResult, target: Host) -> None:  # noqa: PLR0917
    """Print the last lines of init and join; for a dry run, the plan."""
    if target.mode == "dry-run":
        launcher.print_plan(call, list(getattr(target, "plan", ())))
        return
    if result.results.closing_text:
        call.tell(result.results.closing_text.reveal())
    if call.command.name == "join":
        call.tell(result.results.join_text or commands_join.CLOSING)


def end_with_error(error: KbError, report: Report) -> int:
    """Print `error: ...` on stderr and return 1; failed checks are printed in kubeadm's list format."""
    text = str(error)
    if isinstance(error, PreflightError) and any(line.startswith("[ERROR ") for line in error.details):
        report.line("[preflight] Some fatal errors occurred:")
        for line in error.details:
            report.line(report.spell(f"\t{line}"))
        report.line("[preflight] A check's error becomes a warning with `--ignore-preflight-errors=...`")
        text = "preflight checks failed"
    else:
        for line in error.details:
            report.line(report.spell(f"\t{line}"))
    head = f"error execution phase {error.phase}: " if error.phase else ""
    report.line(report.spell(f"error: {head}{text}"))
    report.line(report.spell(f"  remedy: {error.remedy}"))
    report.line(f"  code:   {error.code}")
    return 1
