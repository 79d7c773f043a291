"""kubeup/node/containers.py: containers, their logs, and pods that are taken away."""

from __future__ import annotations

import base64
import json

from kubeup.machine.host import CommandResult
from kubeup.node import containers
from tests.fake_host import Answer, FakeHost
from tests.unit.node.runtime_case import CRICTL, CTR, SOCKET, crictl_host, failed, fatal

# ---- containers

PS = {
    "containers": [
        {
            "id": "aaa",
            "metadata": {"name": "etcd", "attempt": 2},
            "image": {"image": "sha256:1", "userSpecifiedImage": "r/etcd:1"},
            "state": "CONTAINER_EXITED",
            "createdAt": "1700000000000000001",
            "labels": {"io.kubernetes.pod.name": "etcd-cp1", "io.kubernetes.pod.namespace": "kube-system"},
        },
        {
            "id": "bbb",
            "metadata": {"name": "etcd", "attempt": 3},
            "image": {"image": "sha256:1"},
            "state": "CONTAINER_RUNNING",
            "createdAt": "1700000000000000005",
            "labels": {"io.kubernetes.pod.name": "etcd-cp1", "io.kubernetes.pod.namespace": "kube-system"},
        },
    ]
}
END = {
    "status": {"id": "aaa", "exitCode": 137, "reason": "OOMKilled", "message": "m", "logPath": "/var/log/pods/x/2.log"}
}


def test_list_containers_newest_first_with_how_they_ended() -> None:
    host = crictl_host({f"{CRICTL} ps -a -o json": json.dumps(PS), f"{CRICTL} inspect aaa": json.dumps(END)})
    running, ended = containers.list_containers(host, SOCKET)
    assert (running.id, running.state, running.attempt, running.exit_code) == ("bbb", "running", 3, None)
    assert running.created_ns == 1700000000000000005
    assert ended == containers.ContainerInfo(
        "aaa", "etcd", "exited", 2, 1700000000000000001, "r/etcd:1", "etcd-cp1", "kube-system", 137, "OOMKilled", "m",
        "/var/log/pods/x/2.log",
    )  # fmt: skip


def test_list_containers_by_name_asks_for_that_name_alone() -> None:
    asked: list[tuple[str, ...]] = []

    def answer(argv: tuple[str, ...]) -> CommandResult:
        asked.append(argv)
        return CommandResult(argv, 0, '{"containers": []}')

    assert containers.list_containers(crictl_host({f"{CRICTL} ps": answer}), SOCKET, name="kube-apiserver") == []
    assert asked[0][-2:] == ("--name", r"^kube\-apiserver$")


def test_list_containers_never_raises() -> None:
    assert containers.list_containers(crictl_host({f"{CRICTL} ps": failed("boom")}), SOCKET) == []
    assert containers.list_containers(FakeHost(), SOCKET) == []
    broken = crictl_host({f"{CRICTL} ps": json.dumps(PS), f"{CRICTL} inspect": failed("gone")})
    assert [item.exit_code for item in containers.list_containers(broken, SOCKET)] == [None, None]


def ctr_host() -> FakeHost:
    record = {"Metadata": {"Config": {"metadata": {"attempt": 4}}, "LogPath": "/var/log/pods/x/4.log"}}
    value = base64.b64encode(json.dumps(record).encode()).decode()
    labels = {
        "io.kubernetes.container.name": "etcd",
        "io.kubernetes.pod.name": "etcd-cp1",
        "io.kubernetes.pod.namespace": "kube-system",
    }
    info = {
        "Labels": labels,
        "Image": "r/etcd:1",
        "Extensions": {"io.cri-containerd.container.metadata": {"value": value}},
    }
    return FakeHost(
        programs={"ctr"},
        files={"/var/log/pods/x/4.log": b"2026-01-01T00:00:00Z stderr F last\n"},
        answers={
            f"{CTR} tasks ls": "TASK    PID    STATUS\naaa     42     RUNNING\n",
            f"{CTR} containers ls -q": "aaa\nsandbox\n",
            f"{CTR} containers info aaa": json.dumps(info),
            f"{CTR} containers info sandbox": json.dumps({"Labels": {}}),
        },
    )


def test_containers_through_ctr() -> None:
    (found,) = containers.list_containers(ctr_host(), SOCKET)
    assert (found.id, found.name, found.state, found.attempt) == ("aaa", "etcd", "running", 4)
    assert (found.pod, found.namespace, found.log_path) == ("etcd-cp1", "kube-system", "/var/log/pods/x/4.log")
    assert containers.list_containers(ctr_host(), SOCKET, name="other") == []
    assert containers.container_logs(ctr_host(), SOCKET, container_id="aaa") == ["last"]


def test_container_logs_keep_the_order_and_lose_the_stamp() -> None:
    log = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P two\n2026-01-01T00:00:02Z stdout F \n"
    host = crictl_host({f"{CRICTL} inspect aaa": json.dumps(END)}, files={"/var/log/pods/x/2.log": log})
    assert containers.container_logs(host, SOCKET, container_id="aaa", lines=2) == ["two", ""]


def test_container_logs_from_crictl_where_there_is_no_file() -> None:
    host = crictl_host(
        {f"{CRICTL} inspect": failed("x"), f"{CRICTL} logs --tail 5 aaa": CommandResult((), 0, "a\n", "b\n")}
    )
    assert containers.container_logs(host, SOCKET, container_id="aaa", lines=5) == ["a", "b"]
    assert containers.container_logs(crictl_host(), SOCKET, container_id="aaa") == []
    assert containers.container_logs(FakeHost(), SOCKET, container_id="aaa") == []


# ---- removing pods


def removing_host(listings: list[Answer], removals: list[Answer]) -> FakeHost:
    def next_of(answers: list[Answer], argv: tuple[str, ...]) -> CommandResult:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        assert isinstance(answer, (str, CommandResult))
        return answer if isinstance(answer, CommandResult) else CommandResult(argv, 0, answer)

    return crictl_host(
        {
            f"{CRICTL} pods -q": lambda argv: next_of(listings, argv),
            f"{CRICTL} rmp": lambda argv: next_of(removals, argv),
            f"{CRICTL} stopp a": "",
            f"{CRICTL} stopp b": "",
            f"{CRICTL} stopp late": "",
        }
    )


def test_a_pod_whose_container_is_starting_is_removed_a_moment_later() -> None:
    starting = fatal("failed to remove container: container is in starting state, can't be removed")
    host = removing_host(["a\nb\n", "a\n", ""], [starting, "", ""])
    assert containers.remove_pods(host, SOCKET) == []
    removed = [change.split()[-1] for change in host.changes if " rmp " in change]
    assert removed == ["a", "b", "a"]


def test_a_pod_that_appears_after_the_first_look_is_removed_too() -> None:
    host = removing_host(["a\n", "late\n", ""], [""])
    assert containers.remove_pods(host, SOCKET) == []
    assert [change.split()[-1] for change in host.changes if " rmp " in change] == ["a", "late"]


def test_a_pod_that_cannot_be_removed_is_told_with_its_reason() -> None:
    host = removing_host(["a\n"], [fatal("device or resource busy")])
    (failure,) = containers.remove_pods(host, SOCKET)
    assert failure.startswith("crictl rmp -f a: ") and "device or resource busy" in failure
    assert host.ticks >= containers.REMOVAL_TIMEOUT_S


def test_a_runtime_that_does_not_answer_is_no_node_without_pods() -> None:
    host = removing_host([fatal("connection refused")], [""])
    (failure,) = containers.remove_pods(host, SOCKET)
    assert "connection refused" in failure
    assert containers.remove_pods(FakeHost(), SOCKET) == []


def test_pods_that_appear_for_ever_end_the_attempts() -> None:
    host = removing_host(["a\n"], [""])

    def stop(argv: tuple[str, ...]) -> CommandResult:
        host.sleep(1)
        return CommandResult(argv, 0)

    host.answers[f"{CRICTL} stopp a"] = stop
    (failure,) = containers.remove_pods(host, SOCKET)
    assert "another kubelet" in failure
