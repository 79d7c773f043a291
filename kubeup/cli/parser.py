"""The command line: parsers out of three tables (COMMANDS in kb.py, the phase tuples, OPTIONS here), and the end of
every command: results, errors, exit statuses.

Flags carry kubeadm's names and forms (`--flag value`, `--flag=value`, `--bool=true`, lists with commas or repeated).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import io
import itertools
import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Optional, TextIO

from kubeup.cli.own_name import Spelling
from kubeup.cli.own_name import find_call as find_call
from kubeup.engine.step import Phase
from kubeup.errors import Interrupted, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host, encode_text
from kubeup.report import Report

if TYPE_CHECKING:
    from kubeup.engine.runner import RunResult
    from kubeup.machine.local_host import LocalHost


@frozen
class Option:
    """One flag. takes: text | list | int | flag."""

    help: str
    takes: str = "text"
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    is_hidden: bool = False


OPTIONS: Mapping[str, Option] = {
    # kubeadm's
    "apiserver-advertise-address": Option("the address on which the API server is reached", metavar="IP"),
    "apiserver-bind-port": Option("the API server's port (6443)", "int", metavar="PORT"),
    "apiserver-cert-extra-sans": Option("further names and addresses in the API server's certificate", "list"),
    "cert-dir": Option("the certificates' folder (/etc/kubernetes/pki)", metavar="DIR"),
    "certificate-key": Option("the key that encrypts the certificates of --upload-certs", metavar="HEX"),
    "client-name": Option("the user's name: the certificate's CN", metavar="NAME"),
    "component-configs": Option("print these component configurations too", "list", metavar="KIND"),
    "config": Option("a file of configuration documents", metavar="FILE"),
    "allow-unknown-fields": Option("of fields and documents that kb does not know, or doubled ones, only warn", "flag"),
    "control-plane-endpoint": Option("a stable name or address for all API servers", metavar="HOST[:PORT]"),
    "cri-socket": Option("the container runtime's socket", metavar="URL"),
    "dry-run": Option("look, and print what would be done; change nothing", "flag"),
    "feature-gates": Option("kubeadm's feature gates, Name=true,...", metavar="GATES"),
    "ignore-preflight-errors": Option(
        "checks whose errors become warnings; 'all' for every check", "list", metavar="NAME"
    ),
    "image-repository": Option("where the images come from (registry.k8s.io)", metavar="REGISTRY"),
    "kubernetes-version": Option("the Kubernetes version, or a label such as stable-1.35", metavar="VERSION"),
    "new-config": Option("write the migrated documents here instead of printing them", metavar="FILE"),
    "node-name": Option("this node's name (the host name)", metavar="NAME"),
    "old-config": Option("the file to migrate", metavar="FILE"),
    "org": Option("the user's groups: the certificate's O", "list", metavar="GROUP"),
    "patches": Option("a folder of patches for the generated files", metavar="DIR"),
    "pod-network-cidr": Option("the addresses of pods", metavar="CIDR"),
    "service-cidr": Option("the addresses of Services (10.96.0.0/12)", metavar="CIDR"),
    "service-dns-domain": Option("the DNS domain of Services (cluster.local)", metavar="DOMAIN"),
    "skip-certificate-key-print": Option("do not print the key of --upload-certs", "flag"),
    "skip-phases": Option("leave out these phases", "list", metavar="NAME"),
    "skip-token-print": Option("do not print the bootstrap token", "flag"),
    "token": Option("the bootstrap token", metavar="ID.SECRET"),
    "token-ttl": Option("how long the token is good; 0 for ever (24h0m0s)", metavar="DURATION"),
    "control-plane": Option("of a further control plane: join as one, or print its join command", "flag"),
    "description": Option("what the token is for, in words", metavar="TEXT"),
    "discovery-file": Option("a kubeconfig, or an https URL of one, that leads to the cluster", metavar="FILE|URL"),
    "discovery-token": Option("the token that proves the cluster to this node", metavar="ID.SECRET"),
    "discovery-token-ca-cert-hash": Option(
        "the pin of the cluster's CA, sha256:<hex>; may be repeated", "list", metavar="HASH"
    ),
    "discovery-token-unsafe-skip-ca-verification": Option(
        "join without a pin: trust whoever signed with the token", "flag"
    ),
    "groups": Option("the groups of whoever logs in with the token", "list", metavar="GROUP"),
    "print-join-command": Option("print the whole join command instead of the token alone", "flag"),
    "tls-bootstrap-token": Option("the token with which the kubelet asks for its certificate", metavar="ID.SECRET"),
    "ttl": Option("how long the token is good; 0 for ever (24h0m0s)", metavar="DURATION"),
    "usages": Option("what the token is good for: signing, authentication", "list", metavar="USAGE"),
    "upload-certs": Option("store the certificate authorities, encrypted, in the cluster", "flag"),
    "validity-period": Option("how long the user's certificate is good (8760h0m0s)", metavar="DURATION"),
    "cleanup-tmp-dir": Option("empty /etc/kubernetes/tmp too", "flag"),
    "vmodule": Option("has no effect", metavar="SPEC", is_hidden=True),
    "rootfs": Option("not in kb", metavar="DIR", is_hidden=True),
    "allow-experimental-api": Option("accept API versions that are not released", "flag", is_hidden=True),
    # of kubeadm's phase commands
    "kubeconfig": Option("the kubeconfig to use (/etc/kubernetes/admin.conf)", metavar="FILE"),
    "kubeconfig-dir": Option("where kubeconfigs are written (/etc/kubernetes)", metavar="DIR"),
    "apiserver-extra-args": Option("further flags of the API server, a=b,c=d", metavar="ARGS"),
    "controller-manager-extra-args": Option("further flags of the controller-manager", metavar="ARGS"),
    "scheduler-extra-args": Option("further flags of the scheduler", metavar="ARGS"),
    # kb's own
    "pod-network": Option("the pod network: bridge, manifest or none (bridge)", choices=("bridge", "manifest", "none")),
    "pod-network-manifest": Option("a YAML file or URL of a pod network to apply", metavar="FILE|URL"),
    "load-balancer": Option(
        "local: haproxy on every node, behind the name of --control-plane-endpoint (none)", choices=("local", "none")
    ),
    "mirror": Option("a registry that has every image: the runtime is pointed to it", metavar="URL"),
    "mirror-ca-hash": Option("the pin of the authority of the mirror's certificate, sha256:<hex>", metavar="HASH"),
    "bundle": Option("take programs and images from this bundle, and serve it to the other nodes", metavar="FILE"),
    "packages": Option(
        "where the node's programs come from (auto: the bundle or mirror that was given)",
        choices=("auto", "bundle", "mirror", "download", "apt", "dnf", "none"),
    ),
    "air-gapped": Option("refuse every connection that leads neither to the cluster nor to the mirror", "flag"),
    "soak": Option(
        "how long the control plane is watched before it is called ready (10s; 0: not at all)", metavar="DURATION"
    ),
    # the air gap
    "output-file": Option("the bundle to write", metavar="FILE", short="o"),
    "arch": Option("architectures: amd64, arm64, ... (this machine's)", "list", metavar="ARCH"),
    "image": Option("a further image", "list", metavar="NAME"),
    "file": Option("a further file, under this title", "list", metavar="PATH[=TITLE]"),
    "from": Option(
        "where to take it from, in order: a registry's URL, a bundle or layout, a folder of programs, official",
        "list",
        metavar="SOURCE",
    ),
    "preset": Option("a mirror for slow networks, by its name in configs/presets.yaml", metavar="NAME"),
    "use": Option("take this version of containerd, runc, cni or crictl", "list", metavar="COMPONENT=VERSION"),
    "without": Option("leave out a component, or `files`: all of them", "list", metavar="COMPONENT"),
    "since": Option("a bundle that is there already: leave out what it has", metavar="FILE"),
    "sign": Option("sign it with this ed25519 key (PEM)", metavar="KEYFILE"),
    "verify-key": Option("the public ed25519 key (PEM) that must have signed it", metavar="KEYFILE"),
    "listen": Option("where to listen (:5000)", metavar="ADDRESS:PORT"),
    "tls": Option("serve TLS with the certificate that kb init made for this node's mirror", "flag"),
    "tls-cert": Option("serve TLS with this certificate (PEM)", metavar="FILE"),
    "tls-key": Option("the certificate's key (PEM)", metavar="FILE"),
    "tls-ca": Option("the authority that signed the certificate (PEM)", metavar="FILE"),
    "no-access-log": Option("do not log every request", "flag"),
    "server": Option(
        "the address in the kubeconfig; it must be in the API server's certificate", metavar="HOST[:PORT]"
    ),
    "root": Option("write the node's files below DIR and leave this machine alone", metavar="DIR"),
    "fix": Option("mend containerd's configuration where it is wrong (with a backup), and restart it", "flag"),
    "undo": Option("go back to what was before the last reconfiguration of this node", "flag"),
    "to": Option("the file, or the registry's URL, to write to", metavar="FILE|URL"),
    "force": Option("do not ask", "flag", short="f"),
    "list": Option("list the phases", "flag"),
    "show-managed-fields": Option("kubeadm's; nothing that is printed has such fields", "flag", is_hidden=True),
    "allow-missing-template-keys": Option("kubeadm's, of forms that kb does not print", "flag", is_hidden=True),
    "once": Option("bring the routes up to date once and end", "flag"),
    "output": Option(
        "the form of the result: text, json, yaml (version also: short)",
        short="o",
        choices=("text", "json", "yaml", "short"),
    ),
}
_GLOBAL_OPTIONS: Mapping[str, Option] = {
    "v": Option("say more: 1 every changed file, 2 commands too", "int", short="v", metavar="LEVEL"),
    "debug": Option("show the traceback of an error", "flag"),
}

INIT_OPTIONS: tuple[str, ...] = (
    "config",
    "allow-unknown-fields",
    "kubernetes-version",
    "apiserver-advertise-address",
    "apiserver-bind-port",
    "apiserver-cert-extra-sans",
    "control-plane-endpoint",
    "pod-network-cidr",
    "service-cidr",
    "service-dns-domain",
    "node-name",
    "image-repository",
    "cri-socket",
    "cert-dir",
    "feature-gates",
    "patches",
    "token",
    "token-ttl",
    "upload-certs",
    "certificate-key",
    "skip-token-print",
    "skip-certificate-key-print",
    "ignore-preflight-errors",
    "skip-phases",
    "pod-network",
    "pod-network-manifest",
    "load-balancer",
    "bundle",
    "verify-key",
    "mirror",
    "mirror-ca-hash",
    "packages",
    "preset",
    "air-gapped",
    "soak",
    "fix",
    "dry-run",
    "root",
    "list",
    "output",
)
PHASE_OPTIONS: tuple[str, ...] = (
    "kubeconfig",
    "kubeconfig-dir",
    "apiserver-extra-args",
    "controller-manager-extra-args",
    "scheduler-extra-args",
)

JOIN_OPTIONS: tuple[str, ...] = (
    "config",
    "allow-unknown-fields",
    "token",
    "discovery-token",
    "discovery-token-ca-cert-hash",
    "discovery-token-unsafe-skip-ca-verification",
    "discovery-file",
    "tls-bootstrap-token",
    "node-name",
    "cri-socket",
    "patches",
    "control-plane",
    "apiserver-advertise-address",
    "apiserver-bind-port",
    "certificate-key",
    "ignore-preflight-errors",
    "skip-phases",
    "soak",
    "mirror",
    "mirror-ca-hash",
    "packages",
    "preset",
    "air-gapped",
    "fix",
    "dry-run",
    "list",
    "output",
)


@frozen
class Command:
    """One command: its words ("config images list"), its one-line reason, what runs it, the flags it takes."""

    name: str
    does: str
    run: Callable[[Invocation], int]
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """Names of positional words; `name...` takes any number."""
    phases: tuple[Phase, ...] = ()
    workflow: str = ""


def make_local_host(root: Path) -> LocalHost:
    """This machine, or the folder `root` of it."""
    from kubeup.machine.local_host import LocalHost

    return LocalHost(root)


@frozen
class Program:
    """The name under which kb was called, and what differs with it: kb itself, or kubeadm (kubeup/kubeadm/program.py)."""

    name: str = "kb"
    called_as: str = "kb"
    """How a person runs it again (own_name.find_call)."""
    title: str = "kb: Kubernetes from one file"
    make_report: Callable[..., Report] = Report
    """Called with verbosity and quiet."""
    end_with_error: Optional[Callable[[KbError, Report], int]] = None
    """Tells an error and gives the exit status; None: as kb does."""
    show_result: Optional[Callable[[Invocation, RunResult, Host], None]] = None
    """Tells the end of a workflow; None: as kb does."""
    wishes: Mapping[str, Any] = field(default_factory=dict)
    """Flags that init and join get on top of those that were given."""
    spelling: Optional[Spelling] = None
    """How commands are named; None: all of them by called_as."""
    make_host: Callable[[Path], LocalHost] = make_local_host
    """Gives the machine that a command works on, by the folder of --root (`/` without one)."""
    keeps_state: bool = True
    """Whether what is done is written into state.json, so that a second run goes on and reset takes it back."""

    @property
    def does_more(self) -> bool:
        """Whether a command may do more than kubeadm's of the same name."""
        return not self.wishes.get("only-kubeadm")

    def open_report(self, commands: Sequence[Command], command: str = "", **wishes: Any) -> Report:
        """What tells a person; it names commands as they are called here."""
        report = self.make_report(**wishes)
        spelling = self.spelling or Spelling(self.called_as, tuple(item.name for item in commands))
        report.spell = functools.partial(spelling.spell, command=command.removesuffix(" phase") if command else "")
        return report


class _OutputLost(Exception):
    """Standard output takes no more: a full disk."""


@contextlib.contextmanager
def _to_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputLost(str(error)) from error


@dataclass
class Invocation:
    """A command as it was called: the flags that were given, and where results go."""

    command: Command
    commands: tuple[Command, ...]
    flags: dict[str, Any]
    """Flag name -> value, for flags that were given."""
    words: list[str]
    report: Report
    out: TextIO = field(default_factory=lambda: sys.stdout)
    program: Program = field(default_factory=Program)

    @property
    def output(self) -> str:
        return str(self.flags.get("output", "text"))

    def print(self, text: str) -> None:
        """A result: stdout."""
        with _to_output():
            self.out.write(text if text.endswith("\n") else text + "\n")

    def tell(self, text: str) -> None:
        """A result in kb's own words: it names commands as they are called here."""
        self.print(self.report.spell(text))

    def print_document(self, text: str) -> None:
        """A result that is a file for other programs: in UTF-8, whatever the terminal's encoding is."""
        raw = getattr(self.out, "buffer", None)
        if raw is None:
            self.print(text)
            return
        data = encode_text(text if text.endswith("\n") else text + "\n", "the output")
        with _to_output():
            self.out.flush()
            raw.write(data)
            raw.flush()

    def print_value(self, value: Any) -> None:
        """A result as -o json or yaml."""
        if self.output == "yaml":
            from kubeup.yaml_files import dump_yaml

            self.print_document(dump_yaml(value))
        else:
            self.print(json.dumps(value, indent=2, sort_keys=True))


def is_kubeadm(program: str, argv: Sequence[str]) -> bool:
    """Whether kb was called as kubeadm: `program` is the name under which it was called, a link's as a rule."""
    return Path(program).name == "kubeadm" or "--as-kubeadm" in argv


def main(commands: Sequence[Command], argv: Sequence[str], program: Optional[Program] = None) -> int:
    """Parse, run, and turn every end into an exit status: 0, the status of a KbError, 128 + a signal, 70 for a bug."""
    _open_streams()
    try:
        status = _run(commands, argv, program)
        with _to_output():
            sys.stdout.flush()  # what is lost is told here, and not while Python ends
        return status
    except Interrupted as stop:  # a further one, while the first was being told
        return 128 + stop.number
    except BrokenPipeError:
        _drop_output()
        return 0
    except _OutputLost as error:
        _drop_output()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"kb: the output cannot be written: {error}\n")
            sys.stderr.flush()
        return 1


def _open_streams() -> None:
    """Whatever of the three was closed leads to /dev/null, as in Go's programs: else the next file that is opened would be
    taken for it, by kb and by the programs that it runs."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:
                continue  # an embedding program has them elsewhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (for as long as the process)


def _run(commands: Sequence[Command], argv: Sequence[str], program: Optional[Program]) -> int:
    program = program or Program()
    debug = "--debug" in argv
    report = program.open_report(commands)
    _catch_signals()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what a library tells programmers is nothing for an operator
    try:
        invocation = parse_command_line(commands, argv, program)
        report = invocation.report
        return invocation.command.run(invocation)
    except _HelpShown as shown:
        return shown.status
    except KbError as error:
        if program.end_with_error and not debug:
            return program.end_with_error(error, report)
        return _end_with_error(error, report, argv, debug)
    except Interrupted as stop:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it ends already
        phase = (
            f" in phase {stop.phase}: what was done is recorded; continue with the same command" if stop.phase else ""
        )
        report.line(f"\ninterrupted by {stop}{phase}")
        return 128 + stop.number
    except (BrokenPipeError, _OutputLost):
        raise
    except Exception as error:
        if debug:
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.line(f"kb has a bug: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        report.line("  please report it with the output of the same command and --debug")
        return 70


def _show(text: str) -> None:
    with _to_output():
        sys.stdout.write(text)


def _drop_output() -> None:
    """Let what is still on its way to standard output end without a further error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _catch_signals() -> None:
    """The first signal has the phase end in order, a second one ends what that waits for, a third one ends all."""
    came: list[int] = []

    def stop(number: int, _frame: object) -> NoReturn:
        came.append(number)
        if len(came) > 2:
            os._exit(128 + number)
        raise Interrupted(number)

    _show_anything(sys.stdout, sys.stderr)
    try:
        for number in _SIGNALS:
            # a hang-up that is ignored (nohup) stays ignored
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)
    except ValueError:
        pass  # not the main thread: an embedding program owns the signals


def _show_anything(*streams: TextIO) -> None:
    """Have a terminal of any encoding take any text: what it cannot show is escaped."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_with_error(error: KbError, report: Report, argv: Sequence[str], debug: bool) -> int:
    if debug:
        traceback.print_exc(file=report.stream)
    form = _asked_form(argv)
    value = {"error": {**error.as_dict(), "remedy": report.spell(error.remedy)}}
    try:
        if form == "json":
            sys.stdout.write(json.dumps(value, indent=2) + "\n")
        elif form == "yaml":
            from kubeup.yaml_files import dump_yaml

            sys.stdout.write(dump_yaml(value))
        sys.stdout.flush()
    except OSError:
        _drop_output()  # the error itself is told below, and by the status
    # `error execution phase` is what kubeadm's callers look for
    head = f"error execution phase {error.phase}: " if error.phase else ""
    report.line(f"error: {head}{error.what}")
    for line in error.details:
        report.line(f"  {report.spell(line)}")
    report.line(f"  cause:  {error.cause}")
    report.line(f"  remedy: {report.spell(error.remedy)}")
    if error.changed:
        can_undo = words_first(argv)[:1] in (["init"], ["join"]) and not error.changed.startswith("nothing")
        undo = report.spell("; undo: kb reset") if can_undo else ""
        report.line(f"  so far: {error.changed}; continue with the same command{undo}")
    report.line(f"  code:   {error.code}")
    return error.status


def _asked_form(argv: Sequence[str]) -> str:
    """json or yaml, where -o asks for it; the words may be such that they cannot be parsed."""
    text = " ".join(argv)
    found = re.search(r"(?:^| )(?:-o|--output)[ =]?(json|yaml)(?: |$)", text)
    return found.group(1) if found else ""


# ---- parsing


class _HelpShown(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are UsageErrors with the nearest name."""

    known_flags: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        remedy = f"see: {self.prog} --help"
        for word in message.split():
            if word.startswith("--"):
                near = difflib.get_close_matches(word.partition("=")[0], self.known_flags, 1)
                if near:
                    remedy = f"did you mean {near[0]}? All flags: {self.prog} --help"
        raise UsageError(
            f"{self.prog}: {message}", cause="the command line is not understood", remedy=remedy, code="usage"
        )

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        if message:
            with contextlib.suppress(OSError):
                sys.stderr.write(message)
        raise _HelpShown(status)


def parse_command_line(
    commands: Sequence[Command], argv: Sequence[str], program: Optional[Program] = None
) -> Invocation:
    """The command and its flags. Raises UsageError (usage, unknown-command)."""
    program = program or Program()
    words = list(argv)
    if words[:1] == ["--version"]:
        words[0] = "version"
    words = words_first(words)
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        _show(render_help(commands, program))
        raise _HelpShown(0 if words else 2)
    command, rest = _find_command(commands, words, program)
    parser = _make_parser(command, program)
    known = {**OPTIONS, **_GLOBAL_OPTIONS}
    given = vars(parser.parse_args(_plain_booleans(rest, command)))
    flags = {name: _value_of(name, known[name], given[key]) for name, key in _dests(command) if key in given}
    positional = [str(word) for name in command.arguments for word in _as_list(given.get(name.rstrip(".")))]
    verbosity = int(flags.pop("v", 0) or 0)
    flags.pop("debug", None)
    is_quiet = flags.get("output") in ("json", "yaml") and not verbosity
    report = program.open_report(commands, command.name, verbosity=verbosity, quiet=is_quiet)
    return Invocation(command, tuple(commands), flags, positional, report, program=program)


def words_first(argv: Sequence[str]) -> list[str]:
    """The words, then the flags: `--kubeconfig X token create`, as Go's flags may stand anywhere. Go's spellings become
    argparse's: `--pod_network_cidr`, `-o=json`; a flag with a value is one word then, whatever the value begins with."""
    words: list[str] = []
    flags: list[str] = []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        if item == "--":  # what follows are words
            words += rest
            break
        if not item.startswith("-") or item == "-":
            words.append(item)
            continue
        name, equals, value = item.partition("=")
        is_short = not item.startswith("--")
        long = _long_name(name) if is_short else name.replace("_", "-")
        if rest and not equals and _takes_next(long, rest[0]):
            equals, value = "=", rest.pop(0)
        # of one letter there may be two options, each of other commands; both take a value
        stays = is_short and value and long in ("--output", "--output-file")
        flags.append(name + value if stays else long + equals + value)
    return words + flags


def _long_name(flag: str) -> str:
    """`-f` -> `--force`; another word as it is."""
    known = {**OPTIONS, **_GLOBAL_OPTIONS}
    return next((f"--{name}" for name, item in known.items() if item.short and f"-{item.short}" == flag), flag)


def _takes_next(flag: str, following: str) -> bool:
    """Whether the value of `flag` is the word after it."""
    if flag == "--v":
        return bool(_GO_INT.fullmatch(following))
    known = {**OPTIONS, **_GLOBAL_OPTIONS}
    return flag[2:] in known and known[flag[2:]].takes != "flag"


_GO_INT = re.compile(r"[+-]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|0|[1-9][0-9_]*)")


def _parse_int(text: str) -> int:
    """A whole number as Go's flags take it: 0x1f, 0b11, 017 and 1_000 too."""
    if not _GO_INT.fullmatch(text):
        raise ValueError(text)
    plain = text.replace("_", "")
    return int(re.sub(r"^([+-]?)0(?=[0-7])", r"\g<1>0o", plain), 0)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _dests(command: Command) -> list[tuple[str, str]]:
    return [(name, name.replace("-", "_")) for name in (*command.options, *_GLOBAL_OPTIONS)]


def _value_of(name: str, option: Option, value: Any) -> Any:
    if value == [] and (option.choices or option.takes == "int"):
        raise UsageError(
            f"--{name}=--",
            cause=f"it is one of: {', '.join(option.choices)}" if option.choices else "it is a number",
            remedy="correct it, or leave it out",
            code="usage",
        )
    if value == []:  # argparse has taken the value for its own mark
        return "--"
    if option.takes == "list":
        texts = ["--" if text == [] else str(text) for text in value]
        return [item.strip() for text in texts for item in text.split(",") if item.strip()]
    return value


def _find_command(commands: Sequence[Command], words: list[str], program: Program) -> tuple[Command, list[str]]:
    """The command with the most leading words."""
    for length in range(min(3, len(words)), 0, -1):
        name = " ".join(words[:length])
        for command in commands:
            if command.name == name:
                return command, words[length:]
    names = [command.name for command in commands]
    plain = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    parent, group = "", list[str]()
    for length in range(len(plain), 0, -1):
        parent = " ".join(plain[:length])
        group = [name for name in names if name.startswith(f"{parent} ")]
        if group:
            break
    wants_help = {"-h", "--help"} & set(words)
    if group and (wants_help or parent == " ".join(plain)):
        _show(render_help([command for command in commands if command.name in group], program))
        raise _HelpShown(0 if wants_help else 2)
    asked = " ".join(plain[:3])
    near = difflib.get_close_matches(asked, group or names, 1, cutoff=0.4)
    raise UsageError(
        f"{program.name} has no command {asked!r}",
        cause=f"{parent} has: {', '.join(name[len(parent) + 1 :] for name in group)}" if group else "no such word",
        remedy=f"did you mean: {program.called_as} {near[0]}?"
        if near
        else f"see all commands: {program.called_as} --help",
        code="unknown-command",
    )


def _make_parser(command: Command, program: Program) -> _Parser:
    parser = _Parser(
        prog=f"{program.called_as} {command.name}",
        description=command.does + ".",
        epilog=_phase_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.known_flags = tuple(f"--{name}" for name in (*command.options, *_GLOBAL_OPTIONS))
    for name in command.arguments:
        if name.endswith("..."):
            parser.add_argument(name.rstrip("."), nargs="*", metavar=name.rstrip(".").upper())
        else:
            parser.add_argument(name, metavar=name.upper())
    for name in command.options:
        _add_option(parser, name, OPTIONS[name])
    for name, option in _GLOBAL_OPTIONS.items():
        _add_option(parser, name, option)
    return parser


def _add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    flags = [f"-{option.short}"] if option.short else []
    flags.append(f"--{name}")
    text = argparse.SUPPRESS if option.is_hidden else option.help.replace("%", "%%")
    if option.takes == "flag":
        parser.add_argument(*flags, action="store_true", help=text)
        return
    metavar = option.metavar or ("{" + ",".join(option.choices) + "}" if option.choices else name.upper())
    kwargs: dict[str, Any] = {"help": text, "metavar": metavar}
    if option.takes == "list":
        kwargs["action"] = "append"
    if option.takes == "int":
        kwargs["type"] = _parse_int
    if option.choices:
        kwargs["choices"] = option.choices
    parser.add_argument(*flags, **kwargs)


def _plain_booleans(words: Sequence[str], command: Command) -> list[str]:
    """Go's flags take `--dry-run=true`; argparse's do not."""
    known = {**{name: OPTIONS[name] for name in command.options}, **_GLOBAL_OPTIONS, "help": Option("", "flag")}
    plain: list[str] = []
    for word in words:
        if word == "--v":
            plain.append("--v=1")
            continue
        name, has_value, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if has_value and name in known and known[name].takes == "flag":
            plain = [other for other in plain if other != f"--{name}"]  # the last one counts
            if value.lower() in ("true", "1", "t"):
                plain.append(f"--{name}")
            elif value.lower() not in ("false", "0", "f"):
                raise UsageError(
                    f"--{name}={value}",
                    cause="it is a switch: true or false",
                    remedy=f"give --{name} or --{name}=false",
                    code="usage",
                )
        else:
            plain.append(word)
    return plain


# ---- help


def render_help(commands: Sequence[Command], program: Optional[Program] = None) -> str:
    """The list of commands with their reasons."""
    program = program or Program()
    name = program.called_as
    width = max(len(command.name) for command in commands)
    rows = "\n".join(f"  {command.name:<{width}}  {command.does}" for command in commands)
    return (
        f"{program.title}\n\n"
        f"usage: {name} COMMAND [flags]\n\n"
        f"commands:\n{rows}\n\n"
        f"Flags of a command: {name} COMMAND --help. What init does, step by step: {name} init --help.\n"
    )


def render_phases(phases: Sequence[Phase]) -> str:
    """The phases with their reasons, one a line."""
    width = max(len(phase.name) for phase in phases)
    notes = {"": "", "control-plane": " (with --control-plane)"}
    return "\n".join(f"{phase.name:<{width}}  {phase.does}{notes[phase.on]}" for phase in phases if not phase.hidden)


def _phase_epilog(command: Command) -> str:
    if not command.workflow:
        return ""
    rows = "\n".join("  " + row for row in render_phases(command.phases).splitlines())
    return f"phases, in order:\n{rows}\n\nexit status: 0 done; 2 usage; 3 preflight; 4 this machine; 5 the cluster; 70 a bug"
