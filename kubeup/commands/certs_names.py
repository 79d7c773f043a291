"""The command certs add-san: which names the API server's certificate is to have, and the phases that see to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.cluster import objects
    from kubeup.config import choose, load_join, validate_fields
    from kubeup.doctor import node_files
    from kubeup.engine import run
    from kubeup.phases import cert_names

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import ClusterConfiguration
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State

COMMAND = "kb certs add-san"
WORKFLOW = "certs-add-san"
BEFORE = f"{WORKFLOW}/preflight"
"""The entry of state.json whose outputs hold the previous names."""


def add_san(call: Invocation) -> int:
    """Add names to the API server's certificate, take some out (--remove), or undo the last change; with --list only print the phases."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    names = _parse_names(call)
    launch = Launch(call)
    launch.require_root()
    with launch.locked(Paths()) as node_state:
        patient = node_files.read_patient(launch.local, Paths())
        if not patient.is_control_plane:
            raise launcher.no_control_plane(patient.paths)
        launcher.require_same_node(node_state, patient.config, paths=patient.paths)
        ctx = _make_run(launch, node_state, patient=patient, names=names)
        result = launch.work(ctx, node_state)
        if call.flags.get("undo"):
            node_state.phases[BEFORE].outputs = {}
            node_state.save()
    _print(launch, result, ctx=ctx)
    return 0


def _parse_names(call: Invocation) -> tuple[str, ...]:
    """The names, as a certificate holds them. Raises UsageError (usage, bad-name)."""
    is_undo = bool(call.flags.get("undo"))
    if bool(call.words) == is_undo or (is_undo and call.flags.get("remove")):
        raise UsageError(
            f"{COMMAND} {' '.join(call.words)}".rstrip(),
            cause="it takes names or addresses, or --undo alone",
            remedy=f"for example: {COMMAND} api.example.com 192.0.2.10",
            code="usage",
        )
    for word in call.words:
        name = word[2:] if word.startswith("*.") else word
        if choose.parse_address(word) is None and not validate_fields.is_subdomain(name):
            raise UsageError(
                f"the name {word[:80]!r}",
                cause="it is neither an IP address nor a DNS name nor a wildcard such as *.example.com",
                remedy="write it without scheme and port, in lower case",
                code="bad-name",
            )
    return tuple(cert_names.normalize(call.words))


# ---- current and wanted names


@frozen
class Last:
    """The last change that began on this node: its names, and those of them that the cluster had stored before it."""

    changed: tuple[str, ...]
    before: tuple[str, ...]


def _make_run(launch: Launch, node_state: State, *, patient: Patient, names: Sequence[str]) -> cert_names.NamesRun:
    """The run, with the configuration that the cluster has stored. Raises HostError (nothing-to-undo, apiserver-certificate-elsewhere)."""
    call = launch.call
    _check_served_file(patient)
    server = node_files.find_own_server(launch.local, patient.paths)
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=call.report, own_server=server)
    cluster = _read_cluster(launch, base)
    stored = cert_names.normalize(cluster.api_server.cert_sans)
    last = _read_last(node_state)
    adds, drops = _plan(call, names, last=last)
    goal = tuple(name for name in stored if name not in drops) + tuple(name for name in adds if name not in stored)
    if goal != stored and not call.flags.get("undo"):
        last = Last(tuple(names), tuple(name for name in names if name in stored))
    wanted = dataclasses.replace(cluster, api_server=dataclasses.replace(cluster.api_server, cert_sans=goal))
    base = dataclasses.replace(base, config=dataclasses.replace(patient.config, cluster=wanted))
    changed, before = (last.changed, last.before) if last else (None, None)
    return cert_names.NamesRun(**base.values(), adds=adds, drops=drops, changed=changed, before=before)


def _read_cluster(launch: Launch, base: run.Run) -> ClusterConfiguration:
    text = objects.read_config_key(base.api, "kubeadm-config", key="ClusterConfiguration")
    warnings: list[str] = []
    cluster = load_join.parse_stored_cluster(launch.local, text, warnings=warnings)
    for warning in warnings:
        launch.call.report.warn(warning)
    return cluster


def _check_served_file(patient: Patient) -> None:
    """Raises HostError (apiserver-certificate-elsewhere) if the API server serves another file than kubeadm's."""
    path = patient.paths.pki / "apiserver.crt"
    told = node_files.read_flags(patient.host, patient.paths, component="kube-apiserver").get(
        "tls-cert-file", str(path)
    )
    if told != str(path):
        raise HostError(
            f"the API server serves {told}",
            cause=f"its --tls-cert-file names that file, not {path}",
            remedy="have whoever issued that file issue it again with these names",
            code="apiserver-certificate-elsewhere",
        )


def _plan(call: Invocation, names: Sequence[str], *, last: Optional[Last]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the names to add, the names to take out)."""
    if not call.flags.get("undo"):
        return ((), tuple(names)) if call.flags.get("remove") else (tuple(names), ())
    if last is None:
        raise HostError(
            "there is no change of the API server's names to undo on this node",
            cause="kb's state records none that began here and was not undone",
            remedy=f"take a name out: {COMMAND} --remove NAME",
            code="nothing-to-undo",
        )
    return last.before, tuple(name for name in last.changed if name not in last.before)


def _read_last(node_state: State) -> Optional[Last]:
    entry = node_state.phases.get(BEFORE)
    found = run.read_stored(entry.outputs if entry else {})
    if found.before_cert_sans is None or found.changed_cert_sans is None:
        return None
    return Last(tuple(map(str, found.changed_cert_sans)), tuple(map(str, found.before_cert_sans)))


# ---- the end


def _print(launch: Launch, result: RunResult, *, ctx: cert_names.NamesRun) -> None:
    call = launch.call
    launch.print_result(result)
    if call.output != "text" or launch.is_dry:
        return
    remaining = list(result.results.remaining or ())
    if remaining:
        call.tell("\n".join(["still to be done:", *(f"  {step}" for step in remaining)]))
        return
    told = []
    if ctx.adds:
        told.append(f"every API server of the cluster has {', '.join(ctx.adds)} in its certificate")
    if ctx.drops:
        told.append(f"no API server of the cluster has {', '.join(ctx.drops)} in its certificate")
    call.print("\n".join(told) or "the names are as they were before")
