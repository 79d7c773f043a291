"""kubeup/doctor/looks/table.py: every look has an answer, and nothing is changed."""

from __future__ import annotations

import json

from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor.looks import table
from tests.unit.doctor.doctor_case import make_host, make_patient


def test_doctor_changes_nothing_and_answers_for_every_look() -> None:
    host = make_host()
    host.changes.clear()
    found = table.examine(make_patient(host))
    assert {look.name for look in table.LOOKS} <= {note.name.partition("/")[0] for note in found} | {"checks"}
    assert [change for change in host.changes if change != "run modprobe configs"] == []
    assert all(note.remedy for note in found if note.level != facts.OK)


def test_a_note_is_written_under_these_names_in_this_order() -> None:
    note = Finding("disk", "warning", "etcd's disk is slow", "give it a faster one")
    written = '{"look": "disk", "level": "warning", "text": "etcd\'s disk is slow", "remedy": "give it a faster one"}'
    assert json.dumps(table.as_dict(note)) == written
