"""The phases of the air gap on a scripted machine, and the fence around a host."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

import kb
from kubeup.airgap import programs
from kubeup.config.types import KbConfiguration, Mirror, Packages, PodNetwork
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.fence import Fence
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.machine.local_host import LocalHost
from kubeup.node import certificates, pki
from kubeup.phases import airgap, kernel
from tests.fake_host import Answer, FakeHost
from tests.fake_node import PATHS, finished_node, make_config, make_context
from tests.unit.airgap.test_programs import ANSWERS

URL = "https://10.77.0.11:5000"


def context(host: FakeHost, **wishes: object) -> Run:
    return make_context(host, replace(make_config(), kb=KbConfiguration(**wishes)))  # type: ignore[arg-type]


# ---- whether


@pytest.mark.parametrize(
    ("wishes", "names"),
    [
        ({}, set()),
        ({"bundle": "/x.tar"}, {"bundle", "packages", "mirror", "registries"}),
        ({"bundle": "/x.tar", "packages": Packages("none")}, {"bundle", "mirror", "registries"}),
        ({"mirror": Mirror(URL)}, {"packages", "registries"}),
        ({"packages": Packages("download")}, {"packages"}),
        ({"packages": Packages("auto", "ustc")}, {"registries"}),
    ],
)
def test_only_what_was_asked_for_runs(wishes: dict[str, object], names: set[str]) -> None:
    config = context(FakeHost(), **wishes).config
    chosen = {phase.name for phase in kb.INIT if phase.when is not None and phase.when(config)}
    assert chosen == {f"install/{name}" for name in names}


def test_where_the_mirror_is() -> None:
    assert airgap.mirror_url(context(FakeHost(), bundle="/x.tar").config) == URL
    assert airgap.mirror_url(context(FakeHost(), mirror=Mirror("http://m:5000/")).config) == "http://m:5000"
    six = replace(make_config(address="fd00::1"), kb=KbConfiguration(bundle="/x"))
    assert airgap.mirror_url(six) == "https://[fd00::1]:5000"


# ---- packages


def test_a_foreign_program_that_is_wrong_is_not_replaced() -> None:
    host = FakeHost(programs={"kubelet"}, answers={**ANSWERS, "/usr/bin/kubelet --version": "Kubernetes v1.33.0"})
    ctx = context(host, packages=Packages("mirror"), mirror=Mirror(URL))
    with pytest.raises(HostError) as caught:
        airgap.install_packages(ctx)
    assert caught.value.code == "package-wrong" and "/usr/bin/kubelet" in caught.value.what
    assert host.changes == []


def test_a_file_in_the_way_is_not_overwritten() -> None:
    host = FakeHost(files={"/usr/local/bin/kubelet": b"somebody's"})
    with pytest.raises(HostError) as caught:
        airgap.install_packages(context(host, packages=Packages("mirror"), mirror=Mirror(URL)))
    assert caught.value.code == "package-wrong" and host.changes == []


def test_a_mirror_without_programs_is_no_error_where_nobody_asked_for_them() -> None:
    host = FakeHost(
        answers={"uname -m": "x86_64"},
        urls={"http://m:5000/v2/": HttpResponse(200), "http://m:5000/files/?version=v1.35.6": HttpResponse(404)},
    )
    auto = context(host, mirror=Mirror("http://m:5000"))
    airgap._fetch_and_place(auto, airgap._wanted(auto, programs.look(host, "v1.35.6", auto.release)), "mirror")
    assert "the mirror has images alone" in auto.report.notes[-1]
    told = context(host, mirror=Mirror("http://m:5000"), packages=Packages("mirror"))
    with pytest.raises(HostError) as caught:
        airgap._fetch_and_place(told, airgap._wanted(told, programs.look(host, "v1.35.6", told.release)), "mirror")
    assert caught.value.code == "packages-not-found" and "kubelet" in caught.value.cause


def test_a_dry_run_fetches_nothing_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it would fetch, and from where: hundreds of megabytes are no look."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run touched this machine or the network")

    for verb in ("http_get", "http_open", "write_file", "append", "make_dir", "write_stream", "rename"):
        monkeypatch.setattr(LocalHost, verb, refuse)
    dry = DryRunHost(FakeHost(answers={"uname -m": "x86_64"}))
    ctx = make_context(dry, replace(make_config(), kb=KbConfiguration(packages=Packages("download", "ustc"))))
    airgap.install_packages(ctx)
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
    airgap._ensure_runtime_runs(context(host), has_placed=True)
    unit = host.read_text(airgap.CONTAINERD_UNIT)
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
    airgap._ensure_runtime_runs(context(packaged), has_placed=False)
    assert packaged.changes == []


# ---- the mirror's certificate


def served(host: FakeHost) -> Run:
    host.urls[f"{URL}/healthz"] = HttpResponse(200, b"ok\n")
    unit = airgap.MIRROR_UNIT
    host.accepts = {f"systemctl {words}" for words in ("daemon-reload", f"enable {unit}", f"restart {unit}")}
    ctx = context(host, bundle="/x.tar")
    airgap.serve_bundle(ctx)
    return ctx


def test_the_mirror_s_certificate_is_of_the_cluster_s_authority() -> None:
    host = finished_node()
    ctx = served(host)
    (cert,) = pki.read_certs(host, PATHS.pki / "kb-mirror.crt")
    ca = pki.read_ca(host, PATHS)
    assert certificates.is_signed_by((cert,), ca.cert) and certificates.sans_of(cert).covers("10.77.0.11")
    assert certificates.not_after(cert) <= certificates.not_after(ca.cert)
    assert host.modes[str(PATHS.pki / "kb-mirror.key")] == 0o600
    assert airgap.bundle_is_served(ctx)
    unit = host.read_text(PATHS.systemd / airgap.MIRROR_UNIT)
    assert "mirror serve /var/lib/kb/mirror --listen 0.0.0.0:5000 --tls-cert /etc/kubernetes/pki/kb-mirror.crt" in unit
    changes = len(host.changes)
    airgap._ensure_certificate(ctx)
    assert len(host.changes) == changes


def test_it_is_issued_again_when_it_expires_or_the_address_changes() -> None:
    host = finished_node()
    ctx = served(host)
    host.clock += datetime.timedelta(days=3650 - 40)  # the authority ends with it: nothing better is to be had
    assert airgap._certificate_is_good(ctx)
    host.clock += datetime.timedelta(days=60)
    assert not airgap._certificate_is_good(ctx)
    fresh = finished_node()
    moved = replace(
        served(fresh), config=replace(make_config(address="10.77.0.99"), kb=KbConfiguration(bundle="/x.tar"))
    )
    assert not airgap._certificate_is_good(moved)
    fresh.files[str(PATHS.pki / "kb-mirror.crt")] = b"garbage"
    assert not airgap._certificate_is_good(ctx)


def test_without_the_authority_s_key_it_is_said_what_to_do() -> None:
    host = finished_node()
    del host.files[str(PATHS.pki / "ca.key")]
    with pytest.raises(HostError) as caught:
        airgap._ensure_certificate(context(host, bundle="/x.tar"))
    assert caught.value.code == "mirror-certificate-missing"


# ---- the fence


def test_the_fence_lets_the_cluster_and_the_mirror_through() -> None:
    fence = airgap.plan_fence(context(FakeHost(), mirror=Mirror("https://m.example:5000")).config)
    inside = ("10.77.0.11", "m.example", "127.0.0.1", "::1", "localhost", "10.96.0.10", "cp1")
    assert all(fence.allows(name) for name in inside)
    assert not any(fence.allows(name) for name in ("dl.k8s.io", "10.77.0.12", "registry.k8s.io", "8.8.8.8"))


@pytest.mark.parametrize(
    "connect",
    [
        lambda host: host.http_get("https://dl.k8s.io/release/stable.txt"),
        lambda host: host.http_send("POST", "https://dl.k8s.io/"),
        lambda host: host.http_open("https://dl.k8s.io/x").__enter__(),
        lambda host: host.http_upload("https://dl.k8s.io/x", (), size=0),
        lambda host: host.resolve("dl.k8s.io"),
        lambda host: host.udp_exchange("8.8.8.8", 53, b""),
        lambda host: host.served_cert("8.8.8.8", 443),
    ],
)
def test_every_way_out_is_closed(connect: object) -> None:
    host = LocalHost()
    host.fence = Fence(frozenset({"cp1"}))
    with pytest.raises(HostError) as caught:
        connect(host)  # type: ignore[operator]
    assert caught.value.code == "air-gap"
    assert "dl.k8s.io" in caught.value.what or "8.8.8.8" in caught.value.what


def test_without_a_fence_nothing_is_refused() -> None:
    assert LocalHost().resolve("localhost") and Tls()


# ---- Services on a machine without a default route


ADDRESSES = (
    '[{"ifname": "eth0", "addr_info": [{"family": "inet", "local": "10.77.0.11", "prefixlen": 24, "scope": "global"}]}]'
)


def test_services_get_a_route_where_there_is_none() -> None:
    unreachable = CommandResult((), 2, stderr="RTNETLINK answers: Network is unreachable")
    host = FakeHost(
        answers={"ip route get 10.96.0.1": unreachable, "ip -json address show": ADDRESSES, "ip -j addr": ADDRESSES}
    )
    host.answers["ip"] = ADDRESSES
    host.accepts = {
        "systemctl daemon-reload",
        f"systemctl enable {kernel.ROUTE_UNIT}",
        f"systemctl disable {kernel.ROUTE_UNIT}",
        "ip route replace 10.96.0.0/12 dev eth0",
        "ip route delete 10.96.0.0/12 dev eth0",
    }
    kernel._ensure_service_route(make_context(host, make_config()))
    assert host.changes == [], "the bridge network keeps a route itself"
    ctx = make_context(host, replace(make_config(), kb=KbConfiguration(pod_network=PodNetwork("none"))))
    kernel._ensure_service_route(ctx)
    unit = host.read_text(PATHS.systemd / kernel.ROUTE_UNIT)
    assert "route replace 10.96.0.0/12 dev eth0" in unit
    assert "run ip route replace 10.96.0.0/12 dev eth0" in host.changes
    kernel.remove_service_route(ctx)
    assert "run ip route delete 10.96.0.0/12 dev eth0" in host.changes


def test_with_a_default_route_nothing_is_done() -> None:
    host = FakeHost(answers={"ip route get 10.96.0.1": "10.96.0.1 via 10.77.0.1 dev eth0"})
    ctx = make_context(host, replace(make_config(), kb=KbConfiguration(pod_network=PodNetwork("none"))))
    kernel._ensure_service_route(ctx)
    assert host.changes == []
