"""kb's timers across a boot: they come back, and what was missed while the machine was off is made up for."""

from __future__ import annotations

import datetime
import json
import os
import time
from pathlib import Path
from typing import Callable

import pytest

from ..cert_forms import make_own_pair
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, print_join
from .lab.node import Node, wait_until

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
DAYS_S = 3 * 86400
STAMPS = "/var/lib/systemd/timers/stamp-{}.timer"


def is_active(node: Node, *timers: str) -> bool:
    return node.run(f"systemctl is-active {' '.join(timers)}", check=False).ok


def was_off_for_days(node: Node, *timers: str) -> None:
    """By what systemd goes: when each timer last did something."""
    then = time.time() - DAYS_S
    for name in timers:
        os.utime(node.disk_path(STAMPS.format(name)), (then, then))


def test_what_was_missed_is_made_up_for(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The backup begins as soon as the machine runs: before its etcd does, for which it waits."""
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.run(f"mkdir /backup && {KB} backup schedule daily --to /backup")
    node.run("systemctl start kb-backup kb-certs", timeout=180)
    before = node.run("ls /backup").stdout.split()
    assert len(before) == 1 and is_active(node, "kb-certs.timer", "kb-backup.timer")

    # off for a moment: nothing was missed
    node.stop()
    node.start()
    assert is_active(node, "kb-certs.timer", "kb-backup.timer")
    assert node.run("systemctl show kb-backup -p ExecMainStartTimestamp").stdout.strip() == "ExecMainStartTimestamp="

    node.stop()
    was_off_for_days(node, "kb-backup", "kb-certs")
    node.start()
    began = time.monotonic()
    assert is_active(node, "kb-certs.timer", "kb-backup.timer")
    wait_until(lambda: len(node.run("ls /backup").stdout.split()) == 2, what="the missed backup", timeout_s=240)
    print(f"the missed backup was there {time.monotonic() - began:.0f} s after the boot", node.journal("kb-backup"))
    last = json.loads(node.run(f"{KB} backup schedule status -o json").stdout)["last"]
    assert last["error"] == "" and last["good"]
    node.run(f"{KB} backup verify {last['file']} -o json", check=False, timeout=120)
    check_due(node)


def check_due(node: Node) -> None:
    """That of the certificates is due at another time on each node, and what was missed within hours. While its service runs, systemd
    names no time."""

    def next_at() -> str:
        return node.run('date +%s -d "$(systemctl show kb-certs.timer -p NextElapseUSecRealtime --value)"').stdout

    told = wait_until(next_at, what="the next renewal", timeout_s=120)
    due = datetime.datetime.fromtimestamp(int(told), datetime.timezone.utc)
    assert due - datetime.datetime.now(datetime.timezone.utc) < datetime.timedelta(hours=6), told


def test_a_worker_that_renews(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Off unless it is switched on; then it looks after the one certificate that a worker's kubelet does not."""
    server, worker = (make_node(name, version=k8s_version) for name in ("cp1", "w1"))
    for node in (server, worker):
        node.scp(kb_pyz, "/root/kb.pyz")
    server.write("/root/init.yaml", lab_config(k8s_version, address=server.address))
    server.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    worker.run(f"{KB} {print_join(server)} --soak 0 {IGNORE}", timeout=600)
    assert worker.run(f"{KB} certs auto status").stdout == "automatic renewal is off\n"
    worker.run(f"{KB} certs auto on")
    worker.run("systemctl start kb-certs", timeout=180)
    assert is_active(worker, "kb-certs.timer") and "nothing to renew" in worker.journal("kb-certs")

    # its serving certificate, which the kubelet made for itself, has ended
    pair = "/var/lib/kubelet/pki/kubelet"
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    before, key = make_own_pair("w1", now=yesterday - datetime.timedelta(days=365))
    worker.write(f"{pair}.crt", before)
    worker.write(f"{pair}.key", key, mode=0o600)
    worker.run("systemctl restart kubelet")
    worker.run("systemctl start kb-certs", timeout=180)
    print(worker.journal("kb-certs"))
    assert worker.read(f"{pair}.crt") != before
    worker.stop()
    worker.start()
    assert is_active(worker, "kb-certs.timer")
    worker.run(f"{KB} certs auto off")
    assert not is_active(worker, "kb-certs.timer")
