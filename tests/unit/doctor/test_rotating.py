"""kubeup/doctor/looks/rotating.py: a rotation that nobody ends is told, with the line that goes on with it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kubeup.cluster.rotation import ANNOTATION, CONTROL_PLANE, Rotation
from kubeup.config.types import Join
from kubeup.doctor.looks import rotating
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes, remedies


def rotating_host(stage: str, *acknowledged: str, what: str = "sa") -> FakeHost:
    """cp1 and cp2, and a worker w1, in a rotation: of the key of service accounts, if nothing else is said."""
    host = make_host()
    one = Rotation(what, stage, "a" * 64, "b" * 64)
    data = {"what": what, "stage": stage, "former": "a" * 64, "following": "b" * 64}
    nodes = [
        {
            "metadata": {
                "name": name,
                "labels": {CONTROL_PLANE: ""} if name != "w1" else {},
                "annotations": {ANNOTATION: one.mark} if name in acknowledged else {},
            }
        }
        for name in ("cp1", "cp2", "w1")
    ]
    answers = {
        "/api/v1/namespaces/kube-system/configmaps/kb-rotation": {"metadata": {"name": "kb-rotation"}, "data": data},
        "/api/v1/namespaces/kube-system/pods?labelSelector=component%3Dkube-apiserver%2Ctier%3Dcontrol-plane": {"items": []},
        "/api/v1/nodes": {"items": nodes},
    }  # fmt: skip
    host.urls.update(
        {f"{SERVER}{path}": HttpResponse(200, json.dumps(value).encode()) for path, value in answers.items()}
    )
    return host


@pytest.mark.parametrize(
    ("stage", "acknowledged", "says", "remedy"),
    [
        ("trust", ("cp1",), "a rotation of sa is in its stage 'trust', which cp2 has not acknowledged", "on cp2: kb certs rotate-sa --continue"),
        ("drop", (), "a rotation of sa is in its stage 'drop', which cp1, cp2 have not acknowledged", "on cp1 and on cp2: kb certs rotate-sa --continue"),
        ("use", ("cp1", "cp2"), "a rotation of sa is in its stage 'use', and every control plane has acknowledged it", "go on: kb certs rotate-sa --finish"),
        ("trust", ("cp1", "cp2"), "a rotation of sa is in its stage 'trust', and every control plane has acknowledged it", "go on: kb certs rotate-sa --continue"),
    ],
)  # fmt: skip
def test_a_rotation_that_waits(stage: str, acknowledged: tuple[str, ...], says: str, remedy: str) -> None:
    host = rotating_host(stage, *acknowledged)
    assert notes(host, "rotation") == [("warning", says)]
    assert remedies(host, "rotation") == [remedy]


def test_none_a_worker_and_an_api_that_is_away() -> None:
    host = rotating_host("use")
    patient = make_patient(host)
    worker = dataclasses.replace(patient, config=dataclasses.replace(patient.config, join=Join()))
    assert list(rotating.look_at_rotation(worker)) == []
    missing = b'{"kind": "Status", "reason": "NotFound"}'
    host.urls[f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kb-rotation"] = HttpResponse(404, missing)
    assert notes(host, "rotation") == []
    host.urls.clear()
    assert notes(host, "rotation") == []


def test_workers_take_part_where_kubelets_trust_it() -> None:
    host = rotating_host("use", "cp1", "cp2", what="cluster")
    says = "a rotation of cluster is in its stage 'use', which w1 has not acknowledged"
    assert notes(host, "rotation") == [("warning", says)]
    assert remedies(host, "rotation") == ["on w1: kb certs rotate-ca cluster --continue"]
    host = rotating_host("use", "cp1", "cp2", "w1", what="cluster")
    assert notes(host, "rotation")[0][1].endswith("and every node has acknowledged it")
