"""What the command reconfigure is asked for: its words, its flags, its file, and nothing of the cluster."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import probes
    from kubeup.config import choose, load_init, problems, schema
    from kubeup.upgrade import changed_component, changed_config, corefile

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.errors import KbError
    from kubeup.upgrade.changed_config import Wish

CLUSTER = "ClusterConfiguration"
DNS = "coredns"
PROXY = "proxy"
DNS_SETTINGS = ("corefile", "replicas")
_NEAR = re.compile(r'did you mean "(?:--)?([^"]+)"\?')
_UNKNOWN = re.compile(r"(?:unknown flag: --|flag provided but not defined: -|unrecognized feature gate: )([^\s;=]+)")
_WRONG_VALUE = r"^invalid .*-{}\b"
"""What the programs say of a name that they do not have, and of a value that they do not take."""


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
    known = (*changed_config.PARTS, *changed_component.KINDS, DNS, PROXY)
    if len(call.words) != 1 or call.words[0] not in known:
        near = problems.suggest(call.words[0], known) if len(call.words) == 1 else f"one of {', '.join(known)}"
        raise _usage(call, f"it takes one component: {near}", "kb reconfigure apiserver --set NAME=VALUE")
    if not sets and not unsets:
        remedy = f"kb reconfigure {call.words[0]} --set NAME=VALUE; or: --unset NAME"
        raise _usage(call, "it does not say what is to change", remedy)
    return changed_config.parse_wish(call.words[0], sets=sets, unsets=unsets), problems.Problems()


def _usage(call: Invocation, cause: str, remedy: str) -> UsageError:  # noqa: PLR0917
    return UsageError(say_command(call), cause=cause, remedy=remedy, code="usage")


def say_command(call: Invocation, *, instead: tuple[str, str] = ("", "")) -> str:
    """The command line, to run it again; without the values of proxies, which may have passwords in them. instead: (a word in the
    settings, another one in its place)."""
    words = ["kb", *call.command.name.split(), *call.words]
    if PROXY in call.words:
        return " ".join(map(shlex.quote, words))
    for name in ("set", "unset"):
        texts = (text.replace(*instead) if instead[0] else text for text in call.flags.get(name) or ())
        words += [part for text in texts for part in (f"--{name}", text)]
    if "config" in call.flags:
        words += ["--config", str(call.flags["config"])]
    return " ".join(map(shlex.quote, words))


def say_next(call: Invocation, error: KbError, *, wish: Wish, node: str) -> str:
    """What to do where the new static pods were refused before anything stopped, with the command that comes next. error: of code
    static-pod-refused."""
    if error.remedy == probes.CLOSED_PROBES_REMEDY:
        return error.remedy  # the same command would be refused again
    near, unknown = _NEAR.match(error.remedy), _UNKNOWN.search(error.cause)
    if "config" in call.flags:
        advice = f"{near[0]} Correct it in" if near else error.remedy.replace("in the manifest", "in").rstrip()
        place = f" {call.flags['config']}" if advice.endswith(" in") else ""
        return f"{advice}{place}; then: {say_command(call)}"
    if wish.part not in changed_config.PARTS:
        return f"{error.remedy}; then: {say_command(call)}"
    if unknown and near:
        return f"{near[0]} Then: {say_command(call, instead=(unknown[1], near[1]))}"
    if unknown:
        pod = changed_config.PARTS[wish.part].pod
        return f"see which ones it has: kubectl -n kube-system exec {pod}-{node} -- {pod} --help"
    wrong = next(
        (arg.name for arg in wish.sets if re.search(_WRONG_VALUE.format(re.escape(arg.name)), error.cause)), ""
    )
    if wrong:
        return f"give it another value: kb reconfigure {wish.part} --set {wrong}=VALUE"
    return f"{error.remedy.replace(' in the manifest', '')}; then: {say_command(call)}"


def _read_file(launch: Launch) -> tuple[Wish, problems.Problems]:
    path = launch.config_file
    assert path is not None
    found = problems.Problems.for_flags(launcher.strictness_of(launch.call))
    documents = load_init.read_documents(launch.local, path, problems=found)
    kinds = {one.kind: word for word, one in changed_component.KINDS.items()}
    trees = load_init.take_kinds(documents, (CLUSTER, *kinds), problems=found)
    found.raise_if_any()
    components = {word: trees[kind] for kind, word in kinds.items() if trees.get(kind)}
    fields = dict(trees.get(CLUSTER) or {})
    if not fields and not components:
        raise UsageError(
            f"{path} names nothing that can be changed",
            cause=f"it has no field of a {CLUSTER}, {', '.join(kinds)}",
            remedy=f"write the fields that are to change: apiVersion: {schema.V1BETA4}, kind: {CLUSTER}",
            code="invalid-config",
        )
    for name in ("certificateValidityPeriod", "caCertificateValidityPeriod"):
        if name in fields:
            fields[name] = yaml_files.format_duration(fields[name])
    version = str(fields.get("kubernetesVersion") or "")
    if choose.is_version_label(version):
        del fields["kubernetesVersion"]
    return changed_config.Wish(cluster=fields, components=components), found


def read_dns(launch: Launch, wish: Wish) -> dict[str, str]:
    """What CoreDNS is to have: replicas, Corefile. Raises UsageError (bad-setting), ClusterError (corefile-unreadable), HostError."""
    if wish.part != DNS:
        return {}
    given = {arg.name: arg.value for arg in wish.sets}
    unknown = sorted({*wish.names} - {*DNS_SETTINGS} | {*wish.unsets})
    if unknown:
        raise UsageError(
            f"{say_command(launch.call)}: {unknown[0]}",
            cause=f"of CoreDNS, {' and '.join(DNS_SETTINGS)} can be set, and none of them unset",
            remedy="kb reconfigure coredns --set replicas=3; or: --set corefile=FILE",
            code="bad-setting",
        )
    dns = {}
    if "replicas" in given:
        if not given["replicas"].isdecimal() or not 0 < int(given["replicas"][:6]) <= 1000:
            raise UsageError(
                f"--set replicas={given['replicas'][:60]}",
                cause="that is not a number of pods",
                remedy="write one from 1 to 1000: --set replicas=3",
                code="bad-setting",
            )
        dns["replicas"] = given["replicas"]
    if "corefile" in given:
        dns["Corefile"] = launch.local.read_text(Path(given["corefile"]).absolute())
        corefile.parse_corefile(dns["Corefile"])
    return dns
