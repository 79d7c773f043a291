"""kubeup/doctor/looks/table.py: every look has an answer, and nothing is changed."""

from __future__ import annotations

from kubeup.doctor.looks import table
from tests.unit.doctor.doctor_case import make_host, make_patient


def test_doctor_changes_nothing_and_answers_for_every_look() -> None:
    host = make_host()
    host.changes.clear()
    found = table.examine(make_patient(host))
    assert {look.name for look in table.LOOKS} <= {note.name.partition("/")[0] for note in found} | {"checks"}
    assert [change for change in host.changes if change != "run modprobe configs"] == []
    assert all(note.remedy for note in found if note.level != table.OK)
