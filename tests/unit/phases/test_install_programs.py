"""kubeup/phases/install_programs.py on a scripted machine: what is placed, what is left alone, and that the runtime runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeup.airgap import programs
from kubeup.config.types import KbConfiguration, Mirror, Packages
from kubeup.errors import HostError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.machine.local_host import LocalHost
from kubeup.node import runtime
from kubeup.phases import install_programs
from tests.fake_host import Answer, FakeHost
from tests.fake_node import make_config, make_context
from tests.unit.airgap.test_programs import ANSWERS
from tests.unit.phases.wishes_case import URL, context


def test_a_foreign_program_that_is_wrong_is_not_replaced() -> None:
    host = FakeHost(programs={"kubelet"}, answers={**ANSWERS, "/usr/bin/kubelet --version": "Kubernetes v1.33.0"})
    ctx = context(host, packages=Packages("mirror"), mirror=Mirror(URL))
    with pytest.raises(HostError) as caught:
        install_programs.install_packages(ctx)
    assert caught.value.code == "package-wrong" and "/usr/bin/kubelet" in caught.value.what
    assert host.changes == []


def test_a_file_in_the_way_is_not_overwritten() -> None:
    host = FakeHost(files={"/usr/local/bin/kubelet": b"somebody's"})
    with pytest.raises(HostError) as caught:
        install_programs.install_packages(context(host, packages=Packages("mirror"), mirror=Mirror(URL)))
    assert caught.value.code == "package-wrong" and host.changes == []


def test_a_mirror_without_programs_is_no_error_where_nobody_asked_for_them() -> None:
    host = FakeHost(
        answers={"uname -m": "x86_64"},
        urls={"http://m:5000/v2/": HttpResponse(200), "http://m:5000/files/?version=v1.35.6": HttpResponse(404)},
    )
    auto = context(host, mirror=Mirror("http://m:5000"))
    install_programs._fetch_and_place(
        auto, install_programs._wanted(auto, programs.look(host, "v1.35.6", release=auto.release)), "mirror"
    )
    assert "the mirror serves only images" in auto.report.notes[-1]
    told = context(host, mirror=Mirror("http://m:5000"), packages=Packages("mirror"))
    with pytest.raises(HostError) as caught:
        install_programs._fetch_and_place(
            told, install_programs._wanted(told, programs.look(host, "v1.35.6", release=told.release)), "mirror"
        )
    assert caught.value.code == "packages-not-found" and "kubelet" in caught.value.cause


def test_a_dry_run_fetches_nothing_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it would fetch, and from where: hundreds of megabytes are no look."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run touched this machine or the network")

    for verb in ("http_get", "http_open", "write_file", "append", "make_dir", "write_stream", "rename"):
        monkeypatch.setattr(LocalHost, verb, refuse)
    dry = DryRunHost(FakeHost(answers={"uname -m": "x86_64"}))
    ctx = make_context(dry, replace(make_config(), kb=KbConfiguration(packages=Packages("download", "ustc"))))
    install_programs.foretell_packages(ctx)
    written = {change.what for change in dry.plan if change.kind == "write"}
    assert {"/usr/local/bin/kubelet (0755)", "/opt/cni/bin/bridge (0755)", "/usr/local/sbin/runc (0755)"} <= written
    told = "; ".join(ctx.report.notes)
    assert "v1.35.6/bin/linux/amd64/kubelet" in told and "containerd-" in told


def test_containerd_gets_a_unit_where_there_is_none() -> None:
    active: dict[str, Answer] = {
        "systemctl is-active containerd": "active\n",
        "systemctl is-enabled containerd": CommandResult((), 1),
    }
    starts = {
        f"systemctl {words}" for words in ("daemon-reload", "enable --no-reload containerd", "restart containerd")
    }
    systemd = {"/run/systemd/system"}
    host = FakeHost(programs={"containerd", "systemctl"}, dirs=set(systemd), answers=active, accepts=starts)
    install_programs._ensure_runtime_runs(
        context(host), has_placed=True, becomes_active=install_programs._becomes_active
    )
    unit = host.read_text(runtime.CONTAINERD_UNIT)
    assert "ExecStart=/usr/bin/containerd\n" in unit and "KillMode=process" in unit
    assert (
        "run systemctl enable --no-reload containerd" in host.changes
        and "run systemctl restart containerd" in host.changes
    )
    packaged = FakeHost(
        programs={"containerd", "systemctl"},
        dirs=set(systemd),
        answers={"systemctl is-active containerd": "active\n", "systemctl is-enabled containerd": ""},
    )
    packaged.files["/lib/systemd/system/containerd.service"] = b""
    install_programs._ensure_runtime_runs(
        context(packaged), has_placed=False, becomes_active=install_programs._becomes_active
    )
    assert packaged.changes == []
