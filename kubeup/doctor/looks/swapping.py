"""Doctor's checks of what is under way on this node: a swap of static pods that was cut off leaves a pod stopped, or half of them replaced; one
on trial goes back by itself, if what waits for that runs; a reboot that is not finished leaves the node cordoned."""

from __future__ import annotations

from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.machine import services
from kubeup.phases import node_reboot
from kubeup.swap import store, try_record

_WAITS = "kb-try.service"


def look_at_swap(patient: Patient) -> Findings:
    cut_off = store.load_cut_off(patient.host, patient.paths)
    if cut_off is None:
        return
    away = [name for name in cut_off.names if not patient.host.exists(patient.paths.manifest(name))]
    told = f"; stopped meanwhile: {', '.join(away)}" if away else ""
    yield Finding(
        "swap",
        ERROR,
        f"a swap of {', '.join(cut_off.names)} was cut off on this node{told}",
        remedy="continue it: kb reconfigure static-pods; or take it back: kb reconfigure static-pods --undo",
    )


def look_at_try(patient: Patient) -> Findings:
    one = try_record.load_pending(patient.host, patient.paths)
    if one is None:
        return
    names, end = (
        ", ".join(one.names),
        "keep the change: kb reconfigure confirm; or go back at once: kb reconfigure back",
    )
    if one.failures:
        times = "once" if one.failures == 1 else f"{one.failures} times"
        told = f"the change of {names} was not confirmed, and going back failed {times} ({one.why}); it is tried again at {one.ends}"
        yield Finding("try", ERROR, told, remedy=f"see why: {services.say_log(patient.host, 'kb-try')}; {end}")
    else:
        yield Finding("try", WARNING, f"a change of {names} is being tried; it goes back at {one.ends}", remedy=end)
    if not services.is_active(patient.host, _WAITS):
        yield Finding("try", ERROR, f"{_WAITS}, which goes back at the end, does not run", remedy=end)


def look_at_reboot(patient: Patient) -> Findings:
    """Of another boot, it should be finished: the unit tries, and says what is missing."""
    begun = node_reboot.find_begun(patient.host, patient.paths)
    if not begun:
        return
    is_back = begun != node_reboot.read_boot_id(patient.host)
    told = "the machine is back" if is_back else "the machine has not rebooted yet"
    log = (
        f"see what is missing: {services.say_log(patient.host, node_reboot.UNIT.partition('.')[0])}; "
        if is_back
        else ""
    )
    yield Finding(
        "reboot",
        WARNING,
        f"a reboot of this node was begun and is not finished ({told}): it may be cordoned, and no other node reboots",
        remedy=f"{log}go on with it: kb node reboot; or give it up: kb node uncordon",
    )
