"""Tries a command line with the component's own program, out of the image that the manifest names.

`--version` makes every one of the five programs read all its flags, and end: kube-* also sets the feature gates before it prints its
version (component-base/cli/flag, featuregate), etcd reads them with its flags. So nothing is guessed from lists of names, and a
gate that is generally available, which --help omits, is not refused. --help is only asked for a near name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

from kubeup.config.problems import suggest
from kubeup.errors import shown
from kubeup.machine.host import Host
from kubeup.node.crictl import last_words
from kubeup.node.image_program import MountedImage, ProgramResult, run_program
from kubeup.node.tried_pod import Trial, TriedPod
from kubeup.trouble import Trouble

FLAGS, GATES = "flags", "feature gates"

_UNKNOWN_GATE = re.compile(r"unrecognized feature gate: ([^\s\"\\]+)")
"""An error; a build that only warns of it would run without what the manifest asks for."""
_REFUSED = re.compile(
    r"^(?:Error: )?("
    r"unknown (?:shorthand )?flag: .*"
    r"|flag provided but not defined: .*"
    r"|invalid argument .* for .* flag: .*"
    r"|invalid (?:boolean )?value .* for (?:flag )?-.*"
    r"|flag needs an argument: .*"
    r"|bad flag syntax: .*"
    r"|.* does not take any arguments, got .*)$",
    re.MULTILINE,
)
"""What pflag, cobra and Go's flag say."""
_REFUSED_IN_LOG = re.compile(
    r'"command failed" err="((?:[^"\\]|\\.)*)"|"failed to verify flags","error":"((?:[^"\\]|\\.)*)"'
)
"""What kube-* and etcd log if they refuse all the flags together."""
_ABOUT_GATES = re.compile(r"feature[ -]gate|missing bool value for|invalid value of|component not registered")
_UNKNOWN_FLAG = re.compile(r"^(?:unknown flag: --|flag provided but not defined: -)(\S+)")
_FLAG_IN_HELP = re.compile(r"--([a-z0-9][a-z0-9.-]*)")
_GATE_IN_HELP = re.compile(r"\b([A-Z]\w+)=true\|false")


def try_command(host: Host, mounted: MountedImage, *, pod: TriedPod) -> Iterator[Trial]:
    """The trials of the flags and of the feature gates."""
    why_not = _find_other_command(pod)
    if why_not:
        result = ProgramResult(why_not=why_not)
    else:
        # first, because a last flag without its value would take it for the value
        result = run_program(host, mounted, argv=[pod.argv[0], "--version", *pod.argv[1:]])
    if result.why_not:
        yield from (Trial(pod.component, name, not_tried=result.why_not) for name in (FLAGS, GATES))
        return
    lines = f"{result.stdout}\n{result.stderr}"
    unknown = list(dict.fromkeys(_UNKNOWN_GATE.findall(lines)))
    refused = _find_refused(lines) if result.code else ""
    if result.code and not refused:
        why_not = f"{pod.component} --version exits with {result.code}: {shown(last_words(lines))}"
        yield from (Trial(pod.component, name, not_tried=why_not) for name in (FLAGS, GATES))
        return
    is_about_gates = bool(_ABOUT_GATES.search(refused))
    stopped = f"{pod.component} stops reading its flags at the first that it refuses" if refused else ""
    help_text = _read_help(host, mounted, pod=pod) if unknown or refused else ""
    if refused and not is_about_gates:
        yield _refuse_flag(pod, refused, help_text=help_text)
    else:
        yield Trial(pod.component, FLAGS, not_tried=stopped)
    yield from (_refuse_gate(pod, name, help_text=help_text) for name in unknown)
    if is_about_gates and not unknown:
        yield _refuse(pod, GATES, words=refused, remedy="correct or remove it in --feature-gates")
    elif not unknown:
        yield Trial(pod.component, GATES, not_tried=stopped)


def _find_other_command(pod: TriedPod) -> str:
    """Why the command line must not be run with --version: a shell or a wrapper would start the component."""
    if not pod.argv:
        return "the manifest names no command"
    if posixpath.basename(pod.argv[0]) != pod.component:
        return f"the command is {shown(pod.argv[0])}, not {pod.component}"
    if pod.open_variables:
        return f"the value of $({pod.open_variables[0]}) in the command is known only when the pod runs"
    return ""


def _find_refused(lines: str) -> str:
    """The program's own words about what it does not accept; "" if it ended for another reason."""
    plain = _REFUSED.search(lines)
    logged = _REFUSED_IN_LOG.search(lines)
    words = plain[1] if plain else (logged[1] or logged[2] or "") if logged else ""
    return words.strip().replace('\\"', '"')


def _read_help(host: Host, mounted: MountedImage, *, pod: TriedPod) -> str:
    result = run_program(host, mounted, argv=[pod.argv[0], "--help"])
    return f"{result.stdout}\n{result.stderr}"


def _refuse_flag(pod: TriedPod, words: str, *, help_text: str) -> Trial:
    name = _UNKNOWN_FLAG.match(words)
    near = _find_near(name[1].partition("=")[0], _FLAG_IN_HELP.findall(help_text), prefix="--") if name else ""
    return _refuse(pod, FLAGS, words=words, remedy=near or "correct or remove it in the manifest")


def _refuse_gate(pod: TriedPod, name: str, *, help_text: str) -> Trial:
    near = _find_near(name, _GATE_IN_HELP.findall(help_text))
    remedy = near or "remove it from --feature-gates: this version does not have it"
    return _refuse(pod, GATES, words=f"unrecognized feature gate: {name}", remedy=remedy)


def _find_near(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    remedy = suggest(name, sorted(set(known)))
    return remedy.replace('"', f'"{prefix}', 1) if remedy.startswith("did you mean") else ""


def _refuse(pod: TriedPod, name: str, *, words: str, remedy: str) -> Trial:
    return Trial(pod.component, name, Trouble(f"{pod.component} does not accept its {name}", shown(words), remedy))
