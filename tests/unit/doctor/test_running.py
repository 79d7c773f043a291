"""kubeup/doctor/looks/running.py: preflight's checks on a node at work, and static pods that are not ready."""

from __future__ import annotations

import datetime
import json
from typing import Optional

import pytest

from kubeup.cluster import probes
from kubeup.diagnosis import chain
from kubeup.diagnosis.checks import facts, table
from kubeup.diagnosis.signs import BrokenLink
from kubeup.machine.http import HttpResponse
from kubeup.node import containers
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, notes, remedies


def test_kb_s_own_network_is_known_and_its_plugins_are_looked_for() -> None:
    host = make_host()
    host.files["/etc/systemd/system/kb-routes.service"] = b""
    assert any("bridge" in text and "plugin" in text.lower() for _, text in notes(host, "checks")), notes(
        host, "checks"
    )


def test_the_checks_of_preflight_are_doctor_s_too() -> None:
    host = make_host()
    host.files["/proc/swaps"] = b"Filename Type\n/dev/sda2 partition\n"
    assert any("swap is on (/dev/sda2)" in text for _, text in notes(host, "checks"))
    names = [check.names for check in table.CHECKS if facts.DOCTOR in check.workflows]
    assert {"CRI", "CgroupDriver", "Swap", "KubeletVersion", "AdvertiseAddress"} <= set(names)
    assert "ImagePull" not in names


def probed_host(started: datetime.datetime, *messages: str) -> FakeHost:
    """kube-scheduler runs since then and is not Ready; the kubelet said this of its probes."""
    host = make_host()
    status = {"ready": False, "containerID": "x", "state": {"running": {"startedAt": f"{started:%Y-%m-%dT%H:%M:%SZ}"}}}
    pod = {
        "metadata": {"name": "kube-scheduler-cp1", "labels": {"component": "kube-scheduler"}},
        "status": {"containerStatuses": [status]},
    }
    namespace = f"{SERVER}/api/v1/namespaces/kube-system"
    pods = f"{namespace}/pods?labelSelector=tier%3Dcontrol-plane&fieldSelector=spec.nodeName%3Dcp1"
    events = f"{namespace}/events?fieldSelector=involvedObject.name%3Dkube-scheduler-cp1%2Creason%3DUnhealthy"
    host.urls[pods] = HttpResponse(200, json.dumps({"items": [pod]}).encode())
    host.urls[events] = HttpResponse(200, json.dumps({"items": [{"message": text} for text in messages]}).encode())
    return host


def test_a_pod_whose_probes_fail_is_told_and_one_that_was_not_probed_yet_is_not() -> None:
    now = make_host().now()
    young, old = now - datetime.timedelta(seconds=5), now - datetime.timedelta(seconds=90)
    assert notes(probed_host(young), "static-pods") == []
    ((level, text),) = notes(probed_host(young, "Startup probe failed: HTTP 500"), "static-pods")
    assert level == "error" and "kube-scheduler runs but is not Ready: Startup probe failed: HTTP 500" in text
    ((_, text),) = notes(probed_host(old), "static-pods")
    assert "the kubelet has reported nothing about its probes" in text


def test_probes_that_ask_where_nothing_listens() -> None:
    old = make_host().now() - datetime.timedelta(seconds=90)
    refused = 'Startup probe failed: Get "http://127.0.0.1:10251/healthz": dial tcp 127.0.0.1:10251: connect: connection refused'
    ((_, text),) = notes(probed_host(old, refused), "static-pods")
    assert text.endswith("its probes ask at port 10251, and --secure-port is 10259")
    told = probes.describe_astray_probes("etcd", refused, flags={})
    assert told == "its probes ask at port 10251, and --listen-metrics-urls is not there"
    flags = {"listen-metrics-urls": "http://127.0.0.1:10251"}
    assert probes.describe_astray_probes("etcd", refused, flags=flags) == "", "it has ended"


FOLDER = "/etc/kubernetes/manifests"


def manifest(name: str) -> bytes:
    return f"kind: Pod\nmetadata: {{name: {name}, namespace: kube-system}}\n".encode()


COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def whole_host() -> FakeHost:
    """A control plane with a manifest of each component."""
    host = make_host()
    for name in COMPONENTS:
        host.files[f"{FOLDER}/{name}.yaml"] = manifest(name)
    return host


def test_a_copy_beside_a_manifest_is_told_and_what_the_kubelet_does_not_read_is_not() -> None:
    host = whole_host()
    host.files[f"{FOLDER}/kube-vip.yaml"] = manifest("kube-vip")
    host.files[f"{FOLDER}/.kube-scheduler.yaml.swp"] = b"\x00"
    assert notes(host, "manifests") == []
    host.files[f"{FOLDER}/kube-scheduler.yaml.bak"] = manifest("kube-scheduler")
    ((level, text),) = notes(host, "manifests")
    assert (
        level == "error"
        and f"{FOLDER}/kube-scheduler.yaml.bak are both manifests of kube-system/kube-scheduler" in text
    )
    assert remedies(host, "manifests") == [f"if it is not meant to run: mv {FOLDER}/kube-scheduler.yaml.bak /root/"]


def test_what_the_kubelet_cannot_read_is_told() -> None:
    host = whole_host()
    host.files[f"{FOLDER}/notes.txt"] = b"do not forget: : the milk"
    ((level, text),) = notes(host, "manifests")
    assert level == "warning" and f"cannot make a static pod of {FOLDER}/notes.txt" in text


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not there"),
        (b"", "it is empty"),
        (b"kind: Pod\n\t- x\n", "it is not YAML"),
        (b"a: b", "it names no pod"),
    ],
)
def test_a_manifest_that_is_lost_or_damaged(name: str, text: Optional[bytes], says: str) -> None:
    host = whole_host()
    path = f"{FOLDER}/{name}.yaml"
    del host.files[path]
    if text is not None:
        host.files[path] = text
    ((level, told),) = notes(host, "manifests")
    assert level == "error" and path in told and says in told
    phase = "etcd local" if name == "etcd" else f"control-plane {name[5:]}"
    assert remedies(host, "manifests")[0].endswith(f"kb init phase {phase}")


def test_a_component_of_which_the_kubelet_has_made_no_container() -> None:
    """It says nothing of it: it has not seen the manifest. The API server, which complains of etcd, is not the cause."""
    host = make_host()
    manifest = "/etc/kubernetes/manifests/etcd.yaml"
    host.urls["http://127.0.0.1:2381/health?serializable=false"] = HttpResponse(503, b"")
    host.urls["http://127.0.0.1:10248/healthz"] = HttpResponse(200, b"ok")
    host.mtimes[manifest] = host.now().timestamp() - 70
    first = notes(host, "chain")[0]
    assert first == (
        "error",
        f"etcd does not run: the kubelet has made no container of {manifest}, and has not said why",
    )
    host.mtimes[manifest] = host.now().timestamp() - 25  # the former one may not have ended yet
    assert notes(host, "chain") == [
        (
            "ok",
            f"not proven: {manifest} was changed less than 60 s ago, and the kubelet starts etcd anew once the former one has ended",
        )
    ]


@pytest.mark.parametrize(("age_s", "level"), [(60, "ok"), (600, "error")])
def test_a_controller_that_lost_its_lease_while_the_api_server_was_away(
    monkeypatch: pytest.MonkeyPatch, age_s: float, level: str
) -> None:
    """It is started again by itself; with an API server that has run all the while, something keeps it from its lease."""
    link = BrokenLink(
        "kube-scheduler exited 2 times (code 1)", 'its last word: "leaderelection lost"', "x", link="container"
    )
    monkeypatch.setattr(chain, "find_broken_link", lambda *_, **__: link)
    host = make_host()
    started_ns = int((host.now().timestamp() - age_s) * 1e9)
    one = containers.ContainerInfo("1", "kube-apiserver", "running", attempt=1, created_ns=started_ns)
    monkeypatch.setattr(containers, "list_containers", lambda *_, **__: [one])
    ((told, text),) = notes(host, "chain")
    assert told == level and text.startswith("not proven: " * (level == "ok") + "kube-scheduler exited 2 times")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--bind-address=127.0.0.1", "it listens at 127.0.0.1 alone, and everybody calls it at 10.77.0.11"),
        (
            "--etcd-servers=https://127.0.0.1:2399",
            "it is told to keep its data at https://127.0.0.1:2399, where nothing listens",
        ),
    ],
)
def test_an_api_server_that_was_told_to_call_nobody_or_to_listen_to_nobody(flag: str, says: str) -> None:
    host = make_host()
    host.urls["http://127.0.0.1:10248/healthz"] = HttpResponse(200, b"ok")
    host.urls["http://127.0.0.1:2381/health?serializable=false"] = HttpResponse(200, b"{}")
    path = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    host.files[path] += f"    - {flag}\n".encode()
    (told,) = [text for level, text in notes(host, "chain") if level == "error"]
    assert says in told and f"in {path}" in told
