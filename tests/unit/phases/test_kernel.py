"""kubeup/phases/kernel.py: Services get a route on a machine without a default route."""

from __future__ import annotations

from dataclasses import replace

from kubeup.config.types import KbConfiguration, PodNetwork
from kubeup.machine.host import CommandResult
from kubeup.phases import kernel
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, make_config, make_context

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
