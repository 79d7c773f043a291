"""kubeup/swap/kubelet_view.py: what the kubelet of this node says about its static pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup.machine.http import HttpResponse
from kubeup.paths import Paths
from kubeup.swap import kubelet_view
from tests.fake_control_plane import COMPONENTS, FILES
from tests.fake_host import FakeHost

PATHS = Paths()
PODS, METRICS = "https://127.0.0.1:10250/pods", "https://127.0.0.1:10250/metrics"
UID = "0123456789abcdef0123456789abcdef"


def machine(body: object = None, *, status: int = 200, url: str = PODS) -> FakeHost:
    text = body if isinstance(body, str) else json.dumps(body)
    files = {path: data.encode() for path, data in FILES.items()}
    return FakeHost(files=files, urls={url: HttpResponse(status, text.encode())})


def pod(name: str, *, source: str = "file") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": UID, "annotations": {"kubernetes.io/config.source": source}},
        "spec": {"containers": [{"name": "x"}]},
    }


def read(host: FakeHost) -> Any:
    return kubelet_view.read_static_pods(host, PATHS, node_name="cp1")


def test_static_pods_by_the_name_of_their_manifest() -> None:
    items = [pod(f"{name}-cp1") for name in COMPONENTS]
    items += [
        pod("web-cp1", source="api"),
        pod("other-cp2"),
        {"metadata": {"name": "bare-cp1", "uid": "1"}, "spec": {}},
    ]
    assert read(machine({"items": items})) == dict.fromkeys(COMPONENTS, UID)


def test_none_is_not_unknown() -> None:
    assert read(machine({"items": []})) == {}


@pytest.mark.parametrize("body", ["{", "[]", {"items": [{"metadata": {}}]}, {"items": "x"}])
def test_an_answer_that_is_none(body: object) -> None:
    assert read(machine(body)) in (None, {}) and read(machine("{")) is None


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal(status: int) -> None:
    assert read(machine({"items": []}, status=status)) is None


def test_nobody_listens() -> None:
    host = machine({"items": []})
    host.urls.clear()
    assert read(host) is None
    assert kubelet_view.count_ending(host, PATHS, node_name="cp1") is None


def test_without_the_client_certificate() -> None:
    host = machine({"items": []})
    del host.files["/etc/kubernetes/pki/apiserver-kubelet-client.key"]
    assert read(host) is None


ROW = 'kubelet_working_pods{{config="{config}",lifecycle="{life}",static="{static}"}} {count}\n'


def rows(*found: tuple[str, str, str]) -> str:
    text = "# TYPE kubelet_working_pods gauge\n"
    return text + "".join(ROW.format(config="x", life=life, static=static, count=n) for life, static, n in found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (rows(("sync", "true", "4")), 0),
        (rows(("terminating", "true", "1"), ("terminated", "true", "2"), ("sync", "true", "4")), 3),
        (rows(("terminating", "false", "5"), ("terminating", "true", "0")), 0),
        (rows(("terminated", "true", "1e+00")), 1),
        ("other_metric 1\n", None),
        ("", None),
    ],
)
def test_how_many_static_pods_are_ending(text: str, count: object) -> None:
    host = machine(text, url=METRICS)
    assert kubelet_view.count_ending(host, PATHS, node_name="cp1") == count


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_a_cgroup_of_either_driver(driver: str) -> None:
    uid = "0f-1a"
    name = {"cgroupfs": "pod0f-1a", "systemd": "*-pod0f_1a.slice"}[driver]
    host = FakeHost()
    seen: list[tuple[str, ...]] = []

    def find(argv: tuple[str, ...]) -> Any:
        from kubeup.machine.host import CommandResult

        seen.append(argv)
        return CommandResult(argv, 0, "/sys/fs/cgroup/x\n" if name in argv else "")

    host.answers["find"] = find
    assert kubelet_view.has_cgroup(host, uid)
    host.answers["find"] = ""
    assert not kubelet_view.has_cgroup(host, uid)
    assert seen[0][1] == "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("address: 10.0.0.11\nport: 10251\n", "10.0.0.11:10251"),
        ("address: 'fd00::11'\n", "[fd00::11]:10250"),
        ("address: '::'\n", "127.0.0.1:10250"),
        ("address: 0.0.0.0\nport: 0\n", "127.0.0.1:10250"),
        ("", "127.0.0.1:10250"),
    ],
)
def test_a_kubelet_is_asked_where_it_serves(config: str, place: str) -> None:
    host = machine({"items": []}, url=f"https://{place}/pods")
    host.files["/var/lib/kubelet/config.yaml"] = config.encode()
    assert read(host) == {}


@pytest.mark.parametrize("config", ["port: many", "port: [1]", "["])
def test_a_configuration_that_does_not_say_where(config: str) -> None:
    host = machine({"items": []})
    host.files["/var/lib/kubelet/config.yaml"] = config.encode()
    assert read(host) is None
