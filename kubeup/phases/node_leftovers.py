"""Reset: what the kubelet, kube-proxy and pods leave on a node that no file names.

None of it is made by kb itself, so there is no step to which these plans belong. kubeadm leaves all of it, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from kubeup.engine.items import Gone
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import BareRun
from kubeup.lazy_modules import lazily
from kubeup.phases.kubelet_start import is_kubelet_of_kb

with lazily:
    from kubeup.engine import state
    from kubeup.network import flannel_traces, service_rules
    from kubeup.node import control_groups, machine_before


def plan_no_service_rules(run: BareRun) -> Plan:
    """Remove the rules of kube-proxy and the kubelet, both of which have ended by now. Raises when it is applied: HostError
    (rules-not-removed)."""
    if not is_kubelet_of_kb(run):
        return Plan()

    def take_away(ground: Ground) -> None:
        for text in service_rules.remove_all(ground.host):
            ground.report.note(f"stays: {text}")

    return Plan(Gone("the rules of Services", lambda ground: service_rules.find_all(ground.host), take_away))


def plan_no_flannel(run: BareRun) -> Plan:
    """Remove what flannel left, if it came after kb. Raises when it is applied: HostError (rules-not-removed)."""
    before = _recall(run)
    if not is_kubelet_of_kb(run) or before is None:
        return Plan()
    places, links = before["absent"], before["links"]

    def take_away(ground: Ground) -> None:
        for text in flannel_traces.remove(ground.host, places=places):
            ground.report.note(f"stays: {text}")

    return Plan(
        Gone(
            "what flannel left", lambda ground: flannel_traces.find(ground.host, places=places, links=links), take_away
        )
    )


def _recall(run: BareRun) -> Optional[dict[str, Any]]:
    return machine_before.parse(state.load_state(run.host, run.paths).compensations(machine_before.KIND))


def plan_no_traces(run: BareRun) -> Plan:
    """Remove the control groups of pods, their logs, and the empty folders that were made for them."""
    if not is_kubelet_of_kb(run):
        return Plan()
    before = _recall(run)

    def find_folders(ground: Ground) -> list[Path]:
        return machine_before.find_left_folders(ground.host, before) if before is not None else []

    def take_away(ground: Ground) -> None:
        for text in control_groups.remove(ground.host):
            ground.report.note(text)
        machine_before.remove_folders(ground.host, find_folders(ground))

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in (*control_groups.find(ground.host), *find_folders(ground))]

    return Plan(Gone("what pods left", find, take_away))
