"""The commands doctor and support-bundle: examine a node, and report or pack the findings. Neither changes the node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.diagnosis.checks import facts
    from kubeup.doctor import metrics, node_files
    from kubeup.doctor import support_bundle as supportbundle
    from kubeup.doctor.looks import table

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation

UNFIT = 3
"""The exit status if something is wrong, the same as for a failed preflight."""


WATCH_S = 10
"""How long --watch waits between two examinations."""


def doctor(call: Invocation) -> int:
    """Print what each check found, errors with their remedies; exit with 3 if there is an error."""
    if call.flags.get("watch"):
        return _watch(call)
    patient, notes = _examine(call)
    errors = [note for note in notes if note.level == "error"]
    if call.output != "text":
        call.print_value(
            {"node": node_files.describe_patient(patient), "notes": [table.as_dict(note) for note in notes]}
        )
        return UNFIT if errors else 0
    call.print(node_files.describe_patient(patient))
    width = max(len(note.name) for note in notes)
    for note in notes:
        call.print(f"{note.level:<7}  {note.name:<{width}}  {_on_one_line(note.text)}")
        if note.remedy:
            call.tell(f"{'':<7}  {'':<{width}}  remedy: {_on_one_line(note.remedy)}")
    warnings = sum(note.level == "warning" for note in notes)
    what = "nothing but pods of the proof" if call.flags.get("probe-pods") else "nothing"
    call.print(f"{len(errors)} errors, {warnings} warnings; {what} was changed")
    return UNFIT if errors else 0


def _examine(call: Invocation) -> tuple[node_files.Patient, list[facts.Finding]]:
    """Examine this node, and write what was found for --textfile."""
    local = launcher.open_host(call)
    started = local.monotonic()
    patient = _read_patient(call)
    of_cluster = bool(call.flags.get("cluster"))
    if of_cluster:
        _require_control_plane(patient)
    looks = table.OF_THE_CLUSTER if of_cluster else table.LOOKS
    if call.flags.get("probe-pods"):
        looks = table.with_pods(looks, local)
    notes = table.examine(patient, looks)
    if "textfile" in call.flags:
        prefix = metrics.CLUSTER if of_cluster else metrics.NODE
        took_s = local.monotonic() - started
        text = metrics.render(notes, prefix=prefix, ended_at=local.now().timestamp(), took_s=took_s)
        local.write_output(str(Path(call.flags["textfile"]) / metrics.name_file(prefix)), [text.encode()])
    return patient, notes


def _require_control_plane(patient: node_files.Patient) -> None:
    if patient.is_control_plane and patient.host.exists(patient.kubeconfig):
        return
    raise UsageError(
        "--cluster on a node that is no control plane",
        cause="a worker's own identity may not read the cluster",
        remedy="run kb doctor --cluster on a control plane; for this node: kb doctor",
        code="cluster-from-control-plane",
    )


def _watch(call: Invocation) -> int:
    """Print what begins and what ends, one line each, until the user ends it."""
    if call.output != "text":
        raise UsageError(
            f"--watch with -o {call.output}",
            cause="--watch writes lines for as long as it runs",
            remedy="leave one of them out",
            code="watch-as-text-only",
        )
    if call.flags.get("probe-pods"):
        raise UsageError(
            "--watch with --probe-pods",
            cause="it would make pods every few seconds",
            remedy="leave one of them out",
            code="watch-makes-no-pods",
        )
    local, before = launcher.open_host(call), dict[tuple[str, str], facts.Finding]()
    while True:
        patient, notes = _examine(call)
        if not before:
            call.print(node_files.describe_patient(patient))
        now = {_key_of(note): note for note in notes}
        for key, note in now.items():
            if note.level != (before[key].level if key in before else "ok"):
                call.print(f"{local.now():%H:%M:%S}  {note.level:<7}  {note.name}  {_on_one_line(note.text)}")
        for key in before.keys() - now.keys():
            if before[key].level != "ok":
                call.print(f"{local.now():%H:%M:%S}  ended    {before[key].name}  {_on_one_line(before[key].text)}")
        before = now
        local.sleep(WATCH_S)


def _on_one_line(text: str) -> str:
    """What others wrote (a condition's message, a webhook's refusal) may have line breaks, and would look like findings of its own."""
    return " ".join(text.split())


def _key_of(note: facts.Finding) -> tuple[str, str]:
    """What makes it the same finding a moment later: its text without the numbers, which may have changed."""
    return note.name, re.sub(r"\d+", "", note.text)


def _read_patient(call: Invocation) -> node_files.Patient:
    launch = Launch(call)
    launch.only_looks = True  # a check that would change something (modprobe configs) is only planned
    launch.require_root()
    chosen = Path(call.flags["kubeconfig"]) if "kubeconfig" in call.flags else None
    return node_files.read_patient(launch.target, Paths(), kubeconfig_file=chosen)


def support_bundle(call: Invocation) -> int:
    """Write one file with logs and states, with secrets redacted."""
    local = launcher.open_host(call)
    name = f"kb-support-{local.hostname()}-{local.now():%Y%m%d-%H%M%S}.tar.gz"
    target = Path(call.flags.get("to", name))
    patient = _read_patient(call)
    files = supportbundle.collect(patient)
    prefix = (target.name if target.name.endswith(".tar.gz") else name).partition(".tar")[0]
    local.write_output(str(target), [supportbundle.pack(files, prefix=prefix)], is_secret=True)
    call.report.line(f"{target}: {len(files)} files, secrets redacted; read it before you share it")
    return 0
