"""kb node reboot and kb node returned: one node at a time, emptied before, open again once it is well; and what an interruption leaves."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from kubeup.cluster import objects, reboot_turn
from kubeup.doctor import node_files
from kubeup.doctor.looks import swapping
from kubeup.machine.host import CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from tests.fake_control_plane import Gone
from tests.fake_departure import NODES, Departure, make_departure
from tests.fuzz.node import Ended, call

UNIT = "/etc/systemd/system/kb-reboot.service"
BOOT = "/proc/sys/kernel/random/boot_id"
RECORD = "/var/lib/kb/reboot/reboot.json"
TURN = "/api/v1/namespaces/kube-system/configmaps/kb-node-reboot"


def kb(host: Departure, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["node", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def make_node(workers: tuple[str, ...] = ("w1",), **more: Any) -> Departure:
    host = make_departure(workers=workers, **more)
    host.files[BOOT] = b"boot-1\n"
    host.accepts = {
        *host.accepts,
        "systemctl reboot", "systemctl daemon-reload",
        *(f"systemctl {verb} kb-reboot.service" for verb in ("enable --no-reload", "restart", "disable", "disable --now")),
    }  # fmt: skip
    host.answers["systemctl is-enabled kubelet"] = "enabled\n"
    host.add_pod("cp1", "web-1")
    return host


def boot(host: Departure) -> None:
    """The machine is back."""
    host.files[BOOT] = b"boot-2\n"
    host.kubelet_runs = True
    host.sleep(15)


def turn_of(host: Departure) -> str:
    return str(host.cluster.objects[TURN]["data"]["turn"])


def is_cordoned(host: Departure, name: str = "cp1") -> bool:
    return bool(host.cluster.objects[f"{NODES}/{name}"]["spec"].get("unschedulable"))


def is_open(host: Departure) -> bool:
    """Whether nothing is left of a reboot."""
    left = RECORD in host.files or UNIT in host.files or is_cordoned(host) or bool(host.leases)
    return not left and not turn_of(host)


def test_a_node_is_emptied_reboots_and_is_open_again_once_it_is_well() -> None:
    host = make_node()
    ended = kb(host, "reboot", "--yes")
    assert ended.status == 0, ended.err
    assert host.list_names("Pod") == [] and is_cordoned(host) and turn_of(host).startswith("cp1 since ")
    assert "run systemctl reboot" in host.changes and "node returned" in host.files[UNIT].decode()
    assert host.leads != 1, "the leadership went before"
    assert not host.running("kube-apiserver"), "it would keep the machine for 90 s"
    boot(host)
    ended = kb(host, "returned")
    assert ended.status == 0, ended.err
    assert is_open(host)
    assert "run systemctl disable kb-reboot.service" in host.changes


def test_before_the_boot_the_unit_does_nothing() -> None:
    host = make_node()
    kb(host, "reboot", "--yes")
    before = list(host.changes), list(host.sent)
    assert kb(host, "returned").status == 0
    assert (list(host.changes), list(host.sent)) == before


def test_the_same_command_finishes_it_too() -> None:
    host = make_node()
    kb(host, "reboot", "--yes")
    boot(host)
    assert kb(host, "reboot", "--yes").status == 0
    assert is_open(host) and host.changes.count("run systemctl reboot") == 1


def test_a_node_that_is_not_well_stays_closed_and_keeps_the_turn() -> None:
    host = make_node()
    kb(host, "reboot", "--yes")
    boot(host)
    host.cluster.objects[f"{NODES}/cp1"]["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "message": "no network"}
    ]
    ended = kb(host, "returned")
    assert "code:   not-well-after-boot\n" in ended.err and "no network" in ended.err
    assert is_cordoned(host) and turn_of(host) and UNIT in host.files


def test_two_do_not_reboot_at_the_same_time() -> None:
    host = make_node()
    assert kb(host, "reboot", "--if-required").status == 0
    host.cluster.objects[TURN]["data"]["turn"] = "w1 since 2026-01-01T00:00:00Z"
    ended = kb(host, "reboot", "--yes")
    assert "code:   reboot-elsewhere\n" in ended.err and "w1" in ended.err
    assert not is_cordoned(host) and "run systemctl reboot" not in host.changes and host.list_names("Pod") == ["web-1"]


@pytest.mark.parametrize("how", ["", "debian", "dnf"])
def test_only_if_it_is_required(how: str) -> None:
    host = make_node()
    if how == "debian":
        host.files["/run/reboot-required"] = b"*** System restart required ***\n"
    if how == "dnf":
        host.programs.add("needs-restarting")
        host.answers["needs-restarting -r"] = lambda argv: CommandResult(argv, 1)
    ended = kb(host, "reboot", "--if-required", "--yes")
    assert ended.status == 0, ended.err
    assert ("run systemctl reboot" in host.changes) is bool(how)
    assert ("no reboot is due" in ended.out) is not bool(how)


def test_a_budget_that_refuses_leaves_everything_as_it_was() -> None:
    host = make_node()
    host.guarded.add("web-1")
    ended = kb(host, "reboot", "--yes", "--drain-timeout", "10s")
    assert "code:   pods-not-evicted\n" in ended.err
    assert is_open(host) and "run systemctl reboot" not in host.changes


def test_without_the_others_quorum_it_is_refused() -> None:
    host = make_node()
    host.cut_power("cp3")
    ended = kb(host, "reboot", "--yes")
    assert "code:   etcd-stop-unsafe\n" in ended.err and not is_cordoned(host)


def test_a_kubelet_that_does_not_start_at_boot_is_refused() -> None:
    host = make_node()
    host.answers["systemctl is-enabled kubelet"] = "disabled\n"
    assert "code:   kubelet-not-enabled\n" in kb(host, "reboot", "--yes").err
    assert not is_cordoned(host) and RECORD not in host.files


def test_it_asks() -> None:
    ended = kb(make_node(), "reboot")
    assert "code:   not-confirmed\n" in ended.err and "1 pod is evicted" in ended.err


def test_a_dry_run_changes_nothing() -> None:
    host = make_node()
    ended = kb(host, "reboot", "--dry-run")
    assert ended.status == 0, ended.err
    assert "would run: systemctl reboot" in ended.out and host.sent == [] and host.changes == []


def test_an_interruption_before_the_boot_is_gone_on_with() -> None:
    for number in range(1, 12):
        host = make_node()
        host.kills_at = number
        with contextlib.suppress(Gone):
            kb(host, "reboot", "--yes")
        if not host.is_dead:
            break
        host.kills_at = 0
        host.revive(1.0)
        assert kb(host, "reboot", "--yes").status == 0
        boot(host)
        assert kb(host, "returned").status == 0 and is_open(host)
    assert number > 4


def test_an_interruption_right_before_the_reboot_leaves_no_kubelet_stopped() -> None:
    host = make_node()
    host.answers["systemctl reboot"] = lambda argv: CommandResult(argv, 1, stderr="held by an inhibitor")
    ended = kb(host, "reboot", "--yes")
    assert "code:   reboot-failed\n" in ended.err and host.kubelet_runs
    host.kubelet_runs = False  # as if it was killed there
    del host.answers["systemctl reboot"]
    assert kb(host, "reboot", "--yes").status == 0
    assert "run systemctl start kubelet" in host.changes


def test_an_interruption_is_given_up_by_uncordon() -> None:
    host = make_node()
    kb(host, "reboot", "--yes")
    host.kubelet_runs = True
    host.sleep(15)
    assert kb(host, "uncordon").status == 0
    assert not is_cordoned(host) and not turn_of(host) and RECORD not in host.files and UNIT not in host.files


def test_the_doctor_tells_of_one_that_is_not_finished() -> None:
    host = make_node()
    patient = node_files.read_patient(host, Paths())  # type: ignore[arg-type]
    assert list(swapping.look_at_reboot(patient)) == []
    kb(host, "reboot", "--yes")
    (found,) = swapping.look_at_reboot(patient)
    assert found.level == "warning" and "has not rebooted yet" in found.text and "kb node uncordon" in found.remedy
    boot(host)
    (found,) = swapping.look_at_reboot(patient)
    assert "the machine is back" in found.text and "journalctl -u kb-reboot" in found.remedy


def test_nodes_may_take_the_turn_and_nothing_else() -> None:
    role, binding = objects.load_objects(reboot_turn.RIGHTS)
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [reboot_turn.NAME], "verbs": ["get", "patch"]}
    ]
    assert [one["name"] for one in binding["subjects"]] == ["system:nodes"] and role["metadata"][
        "namespace"
    ] == "kube-system"
