"""Doctor's check of a rotation of a shared key that is under way: it waits for control planes, or for the word that ends it."""

from __future__ import annotations

import contextlib

from kubeup.cluster import api as kubeapi
from kubeup.cluster import rotation
from kubeup.diagnosis.checks.facts import WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient, open_api
from kubeup.machine.http import Unreachable
from kubeup.node.rotated_pairs import USE


def look_at_rotation(patient: Patient) -> Findings:
    """Nothing on a worker, whose identity may not read it, and nothing while the API is away, which another look reports."""
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    api = open_api(patient)
    with contextlib.suppress(Unreachable, kubeapi.ApiRefused):
        one = rotation.read(api)
        if one is None:
            return
        left = rotation.find_left(one, rotation.read_marks(api, one.what))
        command = one.command
        text = f"a rotation of {one.what} is in its stage {one.stage!r}"
        if left:
            text += f", which {', '.join(left)} {'has' if len(left) == 1 else 'have'} not acknowledged"
            yield Finding("rotation", WARNING, text, f"on {' and on '.join(left)}: {command} --continue")
        else:
            end = f"{command} --finish" if one.stage == USE else f"{command} --continue"
            who = "node" if one.what in rotation.WITH_WORKERS else "control plane"
            yield Finding("rotation", WARNING, f"{text}, and every {who} has acknowledged it", f"go on: {end}")
