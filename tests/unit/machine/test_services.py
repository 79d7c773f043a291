"""systemd and OpenRC: who runs this machine, and how each is spoken to."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from kubeup.errors import HostError
from kubeup.machine import services
from kubeup.machine.host import CommandResult
from kubeup.machine.local_host import LocalHost
from tests.fake_host import FakeHost

SYSTEMCTL, OPENRC = {"systemctl"}, {"openrc", "rc-service", "rc-update"}


def openrc_host(status: str = "started", code: int = 0) -> FakeHost:
    answer = CommandResult(("rc-service",), code, f" * status: {status}\n")
    return FakeHost(programs=set(OPENRC), answers={"rc-service containerd status": answer})


@pytest.mark.parametrize(
    ("programs", "dirs", "found"),
    [
        (SYSTEMCTL, {"/run/systemd/system"}, services.SYSTEMD),
        (SYSTEMCTL, set(), None),  # a container that has systemctl and no systemd
        (OPENRC, set(), services.OPENRC),
        (SYSTEMCTL | OPENRC, set(), services.OPENRC),
        (SYSTEMCTL | OPENRC, {"/run/systemd/system"}, services.SYSTEMD),
        ({"openrc", "rc-service"}, set(), None),
    ],
)
def test_who_runs_the_machine(programs: set[str], dirs: set[str], found: Optional[services.ServiceManager]) -> None:
    host = FakeHost(programs=programs, dirs=dirs)
    assert services.find(host) is found
    assert services.spoken_of(host) is (found or services.SYSTEMD)


def test_a_folder_is_taken_to_get_systemd(tmp_path: Path) -> None:
    assert services.find(LocalHost(tmp_path)) is services.SYSTEMD


@pytest.mark.parametrize(
    ("status", "code", "state", "is_active", "is_stopped"),
    [
        ("started", 0, "active", True, False),
        ("starting", 8, "activating", True, False),
        ("stopped", 3, "inactive", False, True),
        ("crashed", 32, "failed", False, True),
        ("", 1, "unknown", False, False),
    ],
)
def test_states_of_openrc_in_systemd_s_words(
    status: str, code: int, state: str, is_active: bool, is_stopped: bool
) -> None:
    host = openrc_host(status, code)
    assert services.read_state(host, "containerd") == state
    assert (services.is_active(host, "containerd"), services.is_stopped(host, "containerd")) == (is_active, is_stopped)


def test_services_are_started_stopped_and_enabled_by_whoever_runs_the_machine() -> None:
    for host, wanted in (
        (
            openrc_host(),
            ["rc-service containerd stop", "rc-service containerd restart", "rc-update add containerd default"],
        ),
        (
            FakeHost(programs=set(SYSTEMCTL), dirs={"/run/systemd/system"}),
            ["systemctl stop containerd", "systemctl restart containerd", "systemctl enable --no-reload containerd"],
        ),
    ):
        host.accepts = wanted
        services.run(host, "stop", unit="containerd")
        services.run(host, "restart", unit="containerd")
        services.enable(host, "containerd")
        assert host.changes == [f"run {command}" for command in wanted]


def test_an_enabled_service_is_left_alone_and_nobody_is_asked_where_nobody_runs_the_machine() -> None:
    host = FakeHost(
        programs=set(SYSTEMCTL), dirs={"/run/systemd/system"}, answers={"systemctl is-enabled": "enabled\n"}
    )
    assert services.enable(host, "containerd") is None
    assert services.enable(FakeHost(), "containerd") is None and host.changes == []


def test_the_log_of_a_service_is_where_its_manager_has_it() -> None:
    assert services.say_log(FakeHost(), "kubelet") == "journalctl -u kubelet -n 50 --no-pager"
    host = openrc_host()
    assert services.say_log(host, "kubelet") == "grep kubelet /var/log/messages"
    assert services.read_log(host, "kubelet", lines=2) == []
    host.files["/var/log/kubelet.log"] = b"a\nb\n"
    host.answers["tail -n 2 /var/log/kubelet.log"] = "a\nb\n"
    assert services.say_log(host, "kubelet", lines=2) == "tail -n 2 /var/log/kubelet.log"
    assert services.read_log(host, "kubelet", lines=2) == ["a", "b"]
    host.files["/var/log/kubelet/kubelet.log"] = b""
    assert services.say_log(host, "kubelet", lines=2) == "tail -n 2 /var/log/kubelet/kubelet.log"


KEEPER_STARTS = (
    "systemctl enable --no-reload kb-routes.service",
    "systemctl daemon-reload",
    "systemctl restart kb-routes.service",
)
KNOWN = "LoadState=loaded\nNeedDaemonReload=no\n"
CHANGED = "LoadState=loaded\nNeedDaemonReload=yes\n"


@pytest.mark.parametrize("shown", [CHANGED, "LoadState=not-found\nNeedDaemonReload=no\n", ""])
def test_a_unit_of_kb_s_runs_from_its_new_file_and_at_boot(shown: str) -> None:
    host = FakeHost(accepts=KEEPER_STARTS)
    host.answers["systemctl show kb-routes.service --property LoadState,NeedDaemonReload"] = shown
    services.start_own_unit(host, "kb-routes.service")
    assert host.changes == [f"run {command}" for command in KEEPER_STARTS]


def test_systemd_does_not_read_all_units_again_for_one_that_it_holds_as_it_is() -> None:
    host = FakeHost(accepts=KEEPER_STARTS)
    host.answers["systemctl show kb-routes.service"] = KNOWN
    services.start_own_unit(host, "kb-routes.service")
    assert "run systemctl daemon-reload" not in host.changes and len(host.changes) == 2


@pytest.mark.parametrize(("service", "reloads"), [(KNOWN, False), (CHANGED, True), ("", True)])
def test_a_timer_is_held_as_it_is_if_its_service_is_too(service: str, reloads: bool) -> None:
    host = FakeHost(accepts=[command.replace("routes.service", "certs.timer") for command in KEEPER_STARTS])
    host.answers["systemctl show kb-certs.timer kb-certs.service"] = f"{KNOWN}\n{service}"
    services.start_own_unit(host, "kb-certs.timer")
    assert ("run systemctl daemon-reload" in host.changes) == reloads


def test_one_that_does_not_start_is_an_error_with_the_log_to_read() -> None:
    host = FakeHost(accepts=KEEPER_STARTS)
    host.answers["systemctl restart kb-routes.service"] = CommandResult((), 1, stderr="Job failed.\n")
    with pytest.raises(HostError) as caught:
        services.start_own_unit(host, "kb-routes.service")
    assert caught.value.code == "unit-not-started"
    assert caught.value.cause == "Job failed."
