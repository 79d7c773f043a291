"""The command backup: writes everything that another machine would need to be this control plane into one file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.commands import etcd as etcd_command
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.backup import archive, encryption, making
    from kubeup.cluster import api
    from kubeup.doctor import node_files
    from kubeup.machine import process, waiting

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.machine.local_host import LocalHost

_LOCK_S = 120.0
"""How long a backup waits for another kb on this node: a file that is being changed would not fit to the others."""


def backup(call: Invocation) -> int:
    """Write a backup, or with --dry-run say what would be in it."""
    launch = Launch(call)
    launch.require_root()
    target, recipients = _find_target(call), find_recipients(call)
    encryption.check_recipients(launch.local, recipients)
    with locked(launch):
        source = find_source(call, launch.local)
        planned = making.plan_backup(source, without=() if process.is_stream(target) else (Path(target).absolute(),))
        if launch.is_dry:
            return _tell_plan(call, planned)
    # the files have been read: nobody has to wait while the backup goes out, which may take long
    launch.local.give_way()
    begin = launch.local.monotonic()
    made = making.write_backup(
        source,
        planned,
        target=making.find_target(launch.local, source.paths, name=target, is_encrypted=bool(recipients.program)),
        recipients=recipients,
        tell=call.report.waiting,
    )
    _tell_made(call, made, target=target, took_s=launch.local.monotonic() - begin)
    return 0


def _find_target(call: Invocation) -> str:
    if call.flags.get("dry-run") and "output-file" not in call.flags:
        return "-"
    target = str(launcher.required(call, "output-file"))
    if process.given_descriptor(target) == 1 and call.output != "text":
        raise UsageError(
            f"--output-file {target} --output {call.output}",
            cause="the backup and what is said of it would both go to standard output",
            remedy="leave --output out, or name a file",
            code="usage",
        )
    return target


def find_recipients(call: Invocation) -> encryption.Recipients:
    return encryption.Recipients(tuple(call.flags.get("age", ())), tuple(call.flags.get("gpg", ())))


def find_source(call: Invocation, local: LocalHost) -> making.Source:
    """This node, its etcd and its API server. Raises HostError (not-a-control-plane)."""
    patient = node_files.read_patient(local, Paths())
    paths = patient.paths
    require_control_plane(patient)
    client = etcd_command.find_client(call, local)
    server = node_files.find_own_server(local, paths)
    has_admin = local.exists(paths.admin_conf)
    return making.Source(
        host=local,
        paths=paths,
        node=patient.config.node.name,
        kubernetes=patient.config.cluster.kubernetes_version,
        client=client,
        etcd_kind="local" if local.exists(paths.manifest("etcd")) else "external",
        api=api.Api(local, api.read_identity(local, paths.admin_conf, server=server), retry_s=0) if has_admin else None,
    )


def require_control_plane(patient: Patient) -> None:
    """Raises HostError (not-a-control-plane)."""
    if not patient.is_control_plane:
        raise HostError(
            "this node is not a control plane",
            cause=f"there is no {patient.paths.manifest('kube-apiserver')}: a worker holds nothing of the cluster, and joins again instead",
            remedy="run it on a control plane: kubectl get nodes -l node-role.kubernetes.io/control-plane",
            code="not-a-control-plane",
        )


@contextlib.contextmanager
def locked(launch: Launch) -> Iterator[None]:
    """Hold kb's lock, once whoever holds it has ended. On a node that kb does not know there is none. Raises HostError (locked)."""
    local, paths = launch.local, Paths()
    with contextlib.ExitStack() as stack:
        refusals: list[HostError] = []

        def try_it() -> str:
            try:
                stack.enter_context(local.lock(paths.lock, f"kb {launch.call.command.name}"))
            except HostError as error:
                if error.code != "locked":
                    raise
                refusals.append(error)
                return error.cause
            return ""

        if not launch.is_dry and local.is_dir(paths.state_dir):
            missing, _ = waiting.watch(local, try_it, timeout_s=_LOCK_S, poll_s=1.0)
            if missing:
                raise refusals[-1]
        yield


# ---- what is told


def describe(about: archive.About) -> dict[str, Any]:
    """The facts of a backup, for -o json."""
    return dict(dataclasses.asdict(about))


def _describe_entries(entries: tuple[archive.Entry, ...]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "size": one.size, "mode": f"{one.mode:04o}", **({"link": one.link} if one.link else {})}
        for one in entries
    ]


def _tell_plan(call: Invocation, planned: making.Planned) -> int:
    entries = tuple(content.entry for content in planned.contents)
    if call.output != "text":
        told = {"about": describe(planned.about), "entries": _describe_entries(entries)}
        call.print_value({**told, "snapshotSize": planned.db_size, "isDryRun": True})
        return 0
    if not planned.no_snapshot:
        call.print(
            f"{archive.SNAPSHOT}  {planned.db_size} bytes, {planned.about.objects} objects at revision {planned.about.revision}"
        )
    for entry in entries:
        call.print(f"{entry.name}  " + (f"-> {entry.link}" if entry.link else f"{entry.size} bytes"))
    for text in planned.about.missing:
        call.print(f"not in it: {text}")
    return 0


def _tell_made(call: Invocation, made: making.Made, *, target: str, took_s: float) -> None:
    about = made.about
    if call.output != "text":
        told = {"about": describe(about), "entries": _describe_entries(made.entries)}
        call.print_value(
            {**told, "file": target, "size": made.size, "sha256": made.sha256, "seconds": round(took_s, 2)}
        )
        return
    has_data = any(entry.name == archive.SNAPSHOT for entry in made.entries)
    data = f"{about.objects} objects at revision {about.revision}" if has_data else "without etcd's data"
    text = f"{target}: {made.size / 2**20:.1f} MiB, {len(made.entries)} files, {data}, in {took_s:.1f} s"
    if process.given_descriptor(target) == 1:
        call.report.line(text)  # standard output carries the backup itself
    else:
        call.print(f"{text}\nsha256:{made.sha256}")
    for words in about.missing:
        call.report.warn(f"not in it: {words}")
