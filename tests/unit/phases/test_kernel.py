"""kubeup/phases/kernel.py: Services get a route on a machine without a default route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kubeup.config.types import KbConfiguration, PodNetwork
from kubeup.engine.run import NoPromises
from kubeup.engine.state import PhaseState, State
from kubeup.machine.host import CommandResult
from kubeup.node import machine_before
from kubeup.phases import kernel
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, make_config, make_context
from tests.plans import do, is_done

ADDRESSES = (
    '[{"ifname": "eth0", "addr_info": [{"family": "inet", "local": "10.77.0.11", "prefixlen": 24, "scope": "global"}]}]'
)
FORWARDS = {"/proc/sys/net/ipv4/ip_forward": b"1\n"}


def test_services_get_a_route_where_there_is_none() -> None:
    unreachable = CommandResult((), 2, stderr="RTNETLINK answers: Network is unreachable")
    host = FakeHost(
        answers={"ip route get 10.96.0.1": unreachable, "ip -json address show": ADDRESSES, "ip -j addr": ADDRESSES}
    )
    host.answers["ip"] = ADDRESSES
    host.accepts = {
        "systemctl daemon-reload",
        f"systemctl enable {kernel.ROUTE_UNIT}",
        f"systemctl disable --now {kernel.ROUTE_UNIT}",
        "ip route replace 10.96.0.0/12 dev eth0",
        "ip route delete 10.96.0.0/12 dev eth0",
    }
    ctx = make_context(host, make_config())
    assert kernel._plan_service_route(ctx).parts == (), "the bridge network keeps a route itself"
    ctx = make_context(host, replace(make_config(), kb=KbConfiguration(pod_network=PodNetwork("none"))))
    do(kernel._plan_service_route, ctx)
    unit = host.read_text(PATHS.systemd / kernel.ROUTE_UNIT)
    assert "route replace 10.96.0.0/12 dev eth0" in unit
    assert "run ip route replace 10.96.0.0/12 dev eth0" in host.changes
    host.answers["ip route get 10.96.0.1"] = "10.96.0.1 dev eth0"
    assert is_done(kernel._plan_service_route, ctx) and kernel._plan_service_route(ctx).parts
    assert not is_done(kernel.plan_no_service_route, ctx)
    host.changes.clear()
    do(kernel.plan_no_service_route, ctx)
    assert host.changes == [
        "run ip route delete 10.96.0.0/12 dev eth0",
        f"run systemctl disable --now {kernel.ROUTE_UNIT}",
        f"remove {PATHS.systemd / kernel.ROUTE_UNIT}",
        "run systemctl daemon-reload",
    ]
    assert is_done(kernel.plan_no_service_route, ctx)


def test_with_a_default_route_nothing_is_done() -> None:
    host = FakeHost(answers={"ip route get 10.96.0.1": "10.96.0.1 via 10.77.0.1 dev eth0"})
    ctx = make_context(host, replace(make_config(), kb=KbConfiguration(pod_network=PodNetwork("none"))))
    do(kernel._plan_service_route, ctx)
    assert host.changes == []


def test_a_module_that_cannot_be_loaded_is_told_and_is_no_drift() -> None:
    refused = CommandResult(("modprobe",), 1, stderr="modprobe: FATAL: Module br_netfilter not found")
    host = FakeHost(
        files={**FORWARDS, str(PATHS.kubelet_config): b""}, answers={"modprobe br_netfilter": lambda argv: refused}
    )
    ctx = make_context(host, make_config())
    do(kernel.plan_forwarding, ctx)
    assert not host.exists(kernel.MODULES)
    assert [text for text in ctx.report.warnings if "br_netfilter cannot be loaded" in text]
    assert is_done(kernel.plan_forwarding, ctx)


def test_what_the_kernel_forgot_is_set_again() -> None:
    host = FakeHost(files={**FORWARDS, str(PATHS.kubelet_config): b""}, accepts={"modprobe br_netfilter"})
    ctx = make_context(host, make_config())
    do(kernel.plan_forwarding, ctx)
    assert host.read_text(kernel.MODULES).endswith("br_netfilter\n") and "ip_forward = 1" in host.read_text(
        kernel.SYSCTLS
    )
    host.files[str(kernel.BRIDGE_NF)] = b"1\n"
    do(kernel.plan_forwarding, ctx)
    assert "bridge-nf-call-iptables = 1" in host.read_text(kernel.SYSCTLS)
    assert is_done(kernel.plan_forwarding, ctx)
    host.files["/proc/sys/net/ipv4/ip_forward"] = b"0\n"
    assert not is_done(kernel.plan_forwarding, ctx)


def test_the_machine_is_remembered_once_and_never_after_a_kubelet_was_configured() -> None:
    host = FakeHost(files=dict(FORWARDS), accepts={"modprobe br_netfilter"})
    told: list[dict[str, str]] = []

    class Kept(NoPromises):
        def register(self, compensation: Mapping[str, str]) -> None:
            told.append(dict(compensation))
            entry = PhaseState("running", compensations=told)
            State(host, PATHS, phases={"init/install/sysctls": entry}).save()

    ctx = replace(make_context(host, make_config()), promises=Kept())
    do(kernel.plan_forwarding, ctx)
    do(kernel.plan_forwarding, ctx)
    found = machine_before.parse(told)
    assert len(told) == 1 and found is not None and found["settings"] == {"net.ipv4.ip_forward": "1"}
    host.remove(PATHS.state)
    host.files[str(PATHS.kubelet_config)] = b""
    do(kernel.plan_forwarding, ctx)
    assert len(told) == 1
