"""kubeup/phases/upgrade_backup.py: the cluster as it was before an upgrade, in one file, once."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.backup import archive
from kubeup.cluster.api import Api, Identity
from kubeup.commands import launcher
from kubeup.doctor.node_files import read_patient
from kubeup.errors import KbError
from kubeup.machine.http import Tls
from kubeup.paths import Paths
from kubeup.phases import upgrade_backup
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.report import Report
from kubeup.upgrade import kept
from tests.unit.commands.test_backup import Node
from tests.unit.commands.test_launcher import INIT

FILE = Path("/var/lib/kb/upgrade/before-v1.36.3.tar")


@pytest.fixture
def node(tmp_path: Path, capsys: Any) -> Node:
    host = Node(tmp_path)
    assert kb.main(list(INIT), make_host=lambda root: host) == 0
    capsys.readouterr()
    return host


def make_run(host: Node, *, to: str = "v1.36.3") -> UpgradeRun:
    patient = read_patient(host, Paths())
    config = dataclasses.replace(
        patient.config, cluster=dataclasses.replace(patient.config.cluster, kubernetes_version=to)
    )
    base = launcher.make_run(host, config, paths=patient.paths, report=Report(io.StringIO()))
    base.caller._api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    given = {item.name: getattr(base, item.name) for item in dataclasses.fields(base)}
    return UpgradeRun(**given, texts=(), agree=lambda question: None, former="v1.35.6", is_first=True)


def read_backup(host: Node) -> archive.Backup:
    return archive.Backup(io.BytesIO(host.read_bytes(FILE)), what="it")


def test_it_is_of_the_version_of_before_and_private(node: Node) -> None:
    upgrade_backup.back_up(make_run(node))
    assert (read_backup(node).about.kubernetes, read_backup(node).about.objects) == ("v1.35.6", 301)
    found = node.stat(FILE)
    assert found is not None and found.mode == 0o600


def test_a_run_that_goes_on_keeps_the_one_of_before(node: Node) -> None:
    upgrade_backup.back_up(make_run(node))
    node.write_file(FILE, b"of before", mode=0o600)
    upgrade_backup.back_up(make_run(node))
    assert node.read_bytes(FILE) == b"of before"


def test_the_next_upgrade_makes_its_own_without_the_former_one_in_it(node: Node) -> None:
    upgrade_backup.back_up(make_run(node, to="v1.35.7"))
    kept.end(node, Paths(), status=kept.DONE)
    upgrade_backup.back_up(make_run(node))
    assert node.list_dir(FILE.parent) == [FILE.name, "upgrade.json"]
    assert not [entry.name for entry in read_backup(node).entries if "/kb/upgrade" in entry.name]


def test_a_backup_that_cannot_be_made_stops_the_upgrade_and_leaves_nothing(node: Node) -> None:
    node.breaks_after = 0
    with pytest.raises(KbError) as caught:
        upgrade_backup.back_up(make_run(node))
    assert caught.value.code == "snapshot-cut-off"
    assert node.list_dir(FILE.parent) == ["upgrade.json"]
    found = kept.load(node, Paths())
    assert found is not None and not found.has_done(upgrade_backup.STEP)


def test_without_room_it_says_so(node: Node) -> None:
    node.free = 1 << 20
    with pytest.raises(KbError) as caught:
        upgrade_backup.back_up(make_run(node))
    assert caught.value.code == "disk-full"
