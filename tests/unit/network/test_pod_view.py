"""What a pod reaches is asked from a pod's namespace, and the link that broke is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.network import pod_view, step_aside
from kubeup.network.pod_view import Way
from kubeup.paths import Paths
from tests.fake_host import FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
PLACE = Path("/run/netns/x")
CNI = "/etc/cni/net.d/99-kb-bridge.conflist"
DNS, API = pod_view.service_ways("10.96.0.10", "10.96.0.1")
HERE = Way("CoreDNS on cp1", "10.244.0.5", 53, "udp", is_here=True)
THERE = Way("CoreDNS on cp2", "10.244.1.5", 53, "udp")
SERVER = Way("the API server", "10.0.0.11", 6443, "tcp")
NAME = "kubernetes.default.svc.cluster.local"


def dns_answer(query: str) -> str:
    """One A record to this query, in hexadecimal digits."""
    data = bytes.fromhex(query)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 30, 4) + bytes((10, 96, 0, 1))
    return (data[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + data[12:] + record).hex()


def make_host(*reached: Way, forward: str = "ACCEPT", has_chain: bool = True) -> FakeHost:
    """A node from whose pods these places answer."""

    def nsenter(argv: tuple[str, ...]) -> CommandResult:
        assert argv[1] == f"--net={PLACE}" or argv[1] == "--net=/run/netns/kb-probe"
        questions = json.loads(argv[-1])
        answers = []
        for kind, address, port, payload in questions:
            is_reached = any((way.kind, way.address, way.port) == (kind, address, port) for way in reached)
            answers.append((dns_answer(payload) if kind == "udp" else "open") if is_reached else "")
        return CommandResult(argv, 0, json.dumps(answers))

    host = FakeHost(programs={"nsenter", "ip", "crictl"}, answers={"nsenter": nsenter})
    host.answers["iptables -S FORWARD"] = f"-P FORWARD {forward}\n"
    host.answers["iptables -S KB-FORWARD"] = CommandResult((), 0 if has_chain else 1)
    return host


def sandbox(path: str) -> dict[str, Any]:
    namespaces = [{"type": "pid"}, *([{"type": "network", "path": path}] if path else [])]
    return {"status": {}, "info": {"runtimeSpec": {"linux": {"namespaces": namespaces}}}}


def test_the_namespaces_of_pods_that_are_there() -> None:
    host = make_host()
    pods = [{"id": "a"}, {"id": "b", "labels": {"k8s-app": "kube-dns"}}, {"id": "c"}]
    own = {"a": sandbox(""), "b": sandbox("/run/netns/cni-b"), "c": sandbox("/run/netns/cni-c")}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "pods" in argv:
            return CommandResult(argv, 0, json.dumps({"items": pods}))
        asked = [json.dumps(own[word]) for word in argv if word in own]
        return CommandResult(argv, 0, "\n".join(asked))

    host.answers["crictl"] = crictl
    assert pod_view.find_namespaces(host, SOCKET) == [Path("/run/netns/cni-b"), Path("/run/netns/cni-c")]
    assert pod_view.find_namespaces(host, SOCKET, limit=1) == [Path("/run/netns/cni-b")]
    assert pod_view.find_namespaces(host, SOCKET, is_own_network=False) == [Path("/run/netns/cni-c")]
    host.files[f"{step_aside.LEASES}/10.244.0.7"] = b"c\r\neth0"  # kb's network has left it behind
    assert pod_view.find_namespaces(host, SOCKET, is_own_network=False) == []
    host.programs.discard("nsenter")
    assert pod_view.find_namespaces(host, SOCKET) == []


# ---- the one that kb makes


def network_host(plugin: CommandResult) -> FakeHost:
    host = make_host()
    conflist = {
        "cniVersion": "0.4.0",
        "name": "kb-bridge",
        "plugins": [{"type": "bridge", "bridge": "cbr0"}, {"type": "portmap"}],
    }
    host.files |= {CNI: json.dumps(conflist).encode(), "/opt/cni/bin/bridge": b""}

    def ip(argv: tuple[str, ...]) -> CommandResult:
        place = f"/run/netns/{argv[-1]}"
        host.files.pop(place, None) if "delete" in argv else host.files.setdefault(place, b"")
        return CommandResult(argv, 0)

    host.answers |= {"ip netns": ip, "/opt/cni/bin/bridge": plugin}
    return host


def commands(host: FakeHost) -> list[str]:
    return [change for change in host.changes if change.startswith("run ")]


def test_a_namespace_is_made_when_it_is_asked_for_and_taken_away() -> None:
    host = network_host(CommandResult((), 0, "{}"))
    with pod_view.OwnNamespace(host, Paths(), socket=SOCKET) as own:
        assert not host.changes
        assert own.path() == own.path() == Path("/run/netns/kb-probe")
        assert commands(host) == ["run ip netns add kb-probe", "run /opt/cni/bin/bridge"]
        host.changes.clear()
    assert commands(host) == ["run /opt/cni/bin/bridge", "run ip netns delete kb-probe"]
    assert "/run/netns/kb-probe" not in host.files


def test_what_a_killed_run_left_is_taken_away_first() -> None:
    host = network_host(CommandResult((), 0, "{}"))
    host.files["/run/netns/kb-probe"] = b""
    with pod_view.OwnNamespace(host, Paths(), socket=SOCKET) as own:
        own.path()
    assert commands(host)[:3] == [
        "run /opt/cni/bin/bridge",
        "run ip netns delete kb-probe",
        "run ip netns add kb-probe",
    ]


def test_a_network_to_which_no_pod_can_be_connected() -> None:
    told = json.dumps({"code": 999, "msg": "no IP addresses available in range set: 10.244.0.1-10.244.0.254"})
    host = network_host(CommandResult(("/opt/cni/bin/bridge",), 1, told))
    with pod_view.OwnNamespace(host, Paths(), socket=SOCKET) as own:
        with pytest.raises(HostError) as caught:
            own.path()
        assert "no IP addresses available" in caught.value.cause and caught.value.code == "pod-namespace"
        assert "/run/netns/kb-probe" not in host.files
    del host.files["/opt/cni/bin/bridge"]
    with (
        pod_view.OwnNamespace(host, Paths(), socket=SOCKET) as own,
        pytest.raises(HostError, match="no pod can be connected"),
    ):
        own.path()


def test_without_nsenter_nothing_is_made() -> None:
    host = network_host(CommandResult((), 0, "{}"))
    host.programs.discard("nsenter")
    with pod_view.OwnNamespace(host, Paths(), socket=SOCKET) as own:
        assert own.path() is None
    assert not host.changes
