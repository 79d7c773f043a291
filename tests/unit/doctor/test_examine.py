"""kubeup/doctor/looks/table.py: every look has an answer, and nothing is changed."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import Finding
from kubeup.doctor.looks import pod_ways, table
from kubeup.doctor.node_files import Patient
from kubeup.errors import Interrupted
from tests.unit.doctor.doctor_case import make_host, make_patient


def test_doctor_changes_nothing_and_answers_for_every_look() -> None:
    host = make_host()
    host.changes.clear()
    found = table.examine(make_patient(host))
    assert {look.name for look in table.LOOKS} <= {note.name.partition("/")[0] for note in found} | {"checks"}
    assert [change for change in host.changes if change != "run modprobe configs"] == []
    assert all(note.remedy for note in found if note.level not in (facts.OK, facts.FOLLOWS))


def test_the_documentation_names_every_look() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/doctor.md").read_text()
    named = re.findall(
        r"`([a-z-]+)`", "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    )
    assert named == [look.name for look in table.LOOKS]


def test_a_note_is_written_under_these_names_in_this_order() -> None:
    note = Finding("disk", "warning", "etcd's disk is slow", "give it a faster one")
    written = '{"look": "disk", "level": "warning", "text": "etcd\'s disk is slow", "remedy": "give it a faster one"}'
    assert json.dumps(table.as_dict(note)) == written


def test_who_is_interrupted_waits_for_what_was_made_to_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """kb ends by the signal, and no thread outlives that: the pods of the proof would stay."""
    removed = threading.Event()
    proves = threading.Event()

    def prove(patient: Patient) -> Iterator[Finding]:
        proves.set()
        time.sleep(0.5)
        removed.set()
        yield from ()

    def interrupt(number: int, frame: object) -> None:
        assert proves.is_set()
        raise Interrupted(number)

    monkeypatch.setattr(table, "LOOKS", (table.Look(pod_ways.NAME, "pods reach", prove),))
    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interrupted):
            table.examine(make_patient(make_host()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert removed.is_set()


def test_what_comes_of_an_error_is_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told below its cause and without a remedy, and the same words are not told twice."""
    stopped = Finding("CRI", "error", "the runtime is stopped", "start it")
    looks = (
        table.Look("checks", "fit", lambda patient: [stopped]),
        table.Look("chain", "works", lambda patient: [Finding("chain/runtime", "error", stopped.text, "x")], ("CRI",)),
        table.Look("dns", "answers", lambda patient: [Finding("dns", "error", "no answer", "look")], ("CRI", "chain")),
        table.Look("disk", "fast", lambda patient: [Finding("disk", "error", "slow", "another")]),
        table.Look("swap", "none", lambda patient: [], ("CRI",)),
    )
    monkeypatch.setattr(table, "LOOKS", looks)
    assert [(note.name, note.level, note.text) for note in table.examine(make_patient(make_host()))] == [
        ("CRI", "error", "the runtime is stopped"),
        ("dns", "follows", "because of that: no answer"),
        ("disk", "error", "slow"),
        ("swap", "ok", "none"),
    ]


def test_what_has_the_words_of_an_error_above_comes_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    why = 'Internal error occurred: failed calling webhook "validate.kyverno.svc-fail": service "kyverno-svc" not found'
    cluster = Finding("cluster", "error", f"no pod can be created: {why} (HTTP 500)", "see")
    pods = [
        Finding("pending-pods", "warning", f"no pods are made for {name}: {text}", "see")
        for name, text in (("a", why), ("b", "a quota"))
    ]
    looks = (table.Look("cluster", "", lambda patient: [cluster]), table.Look("pending-pods", "", lambda patient: pods))
    found = table.examine(make_patient(make_host()), looks)
    assert [note.level for note in found] == ["error", "follows", "warning"]


def test_one_config_map_is_missing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lack = 'does not mount the volumes of pod kube-system/kube-proxy-x: MountVolume.SetUp failed : configmap "{}" not found'
    names = ("kube-proxy", "kube-proxy", "other")
    pods = [Finding("pending-pods", "error", f"node w{n} {lack.format(name)}", "see") for n, name in enumerate(names)]
    found = table.examine(make_patient(make_host()), (table.Look("pending-pods", "", lambda patient: pods),))
    assert [note.level for note in found] == ["error", "follows", "error"]


def test_packets_that_are_not_forwarded_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_host()
    host.files["/proc/sys/net/ipv4/ip_forward"] = b"0\n"
    looks = {look.name: look for look in table.LOOKS}
    dns = Finding("dns", "error", "a pod on this node does not reach the cluster's DNS", "let it pass")
    silent = dataclasses.replace(looks["dns"], look=lambda patient: [dns])
    found = [
        note
        for note in table.examine(make_patient(host), (looks["checks"], silent))
        if note.level in ("error", "follows")
    ]
    assert [(note.name, note.level) for note in found if "forward" in note.name or note.name == "dns"] == [
        ("FileContent--proc-sys-net-ipv4-ip_forward", "error"),
        ("dns", "follows"),
    ]


def test_what_is_wrong_with_a_pod_of_two_manifests_comes_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = Finding(
        "manifests/kube-scheduler", "error", "a.yaml and b.yaml are both manifests of kube-system/kube-scheduler", "mv"
    )
    chain = [Finding("chain/container", "error", text, "look") for text in ("kube-scheduler exited", "etcd exited")]
    looks = (table.Look("manifests", "", lambda patient: [twice]), table.Look("chain", "", lambda patient: chain))
    monkeypatch.setattr(table, "LOOKS", looks)
    assert [note.level for note in table.examine(make_patient(make_host()))] == ["error", "follows", "error"]


def test_what_comes_of_a_consequence_is_one_too_and_so_are_controllers_that_do_not_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = Finding("certificates/expired", "error", "apiserver.crt expired", "kb certs recover")
    silent = "no kube-scheduler leads: {} has not renewed its lease in the last 6 s"
    leaders = [Finding("cluster", "warning", silent.format(name), "look") for name in ("cp1", "cp2")]
    looks = (
        table.Look("certificates", "", lambda patient: [ended]),
        table.Look("chain", "", lambda patient: [Finding("chain/probe", "error", "x", "y")], ("certificates/expired",)),
        table.Look("node", "", lambda patient: [Finding("node", "error", "z", "y")], ("chain",)),
        table.Look("cluster", "", lambda patient: leaders),
    )
    monkeypatch.setattr(table, "LOOKS", looks)
    levels = [note.level for note in table.examine(make_patient(make_host()))]
    assert levels == ["error", "follows", "follows", "follows", "warning"]  # cp2 is another machine
