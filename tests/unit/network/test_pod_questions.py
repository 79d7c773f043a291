"""kubeup/network/pod_questions.py: what is asked from a namespace, by the real program on this machine's own loopback."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeup.machine.local_host import LocalHost
from kubeup.network import pod_questions
from kubeup.network.pod_questions import Question, ask
from tests.fake_host import FakeHost
from tests.unit.network.test_pod_view import dns_answer

NAME = "kubernetes.default.svc.cluster.local"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def find_closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def test_what_listens_what_refuses_and_what_is_silent(listener: socket.socket) -> None:
    port, closed = listener.getsockname()[1], find_closed_port()
    questions = [Question(kind, "127.0.0.1", number) for kind in ("tcp", "touch") for number in (port, closed)]
    found = ask(LocalHost(), None, questions=questions)
    assert found is not None
    assert [found[one] for one in questions] == ["open", "", "open", "refused"]


def test_dns_by_udp_and_by_tcp(listener: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", listener.getsockname()[1]))

        def serve() -> None:
            data, other = datagrams.recvfrom(500)
            datagrams.sendto(bytes.fromhex(dns_answer(data.hex())), other)
            stream, _ = listener.accept()
            with stream:
                data = stream.recv(500)
                answer = bytes.fromhex(dns_answer(data[2:].hex()))
                stream.sendall(len(answer).to_bytes(2, "big") + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        questions = [Question(kind, "127.0.0.1", listener.getsockname()[1]) for kind in ("udp", "dns-tcp")]
        found = ask(LocalHost(), None, questions=questions, name=NAME)
        thread.join()
    assert found is not None and all(found.values())


def test_an_answer_to_another_question_is_none() -> None:
    host = FakeHost(answers={"nsenter": '["0001", "zz"]'})
    questions = [Question("udp", "10.96.0.10", 53), Question("dns-tcp", "10.96.0.10", 53)]
    assert ask(host, Path("/run/netns/x"), questions=questions, name=NAME) == dict.fromkeys(questions, "")
    host.answers["nsenter"] = "[]"
    assert ask(host, Path("/run/netns/x"), questions=questions, name=NAME) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are root's")
def test_an_echo_tells_how_large_a_packet_came_back_and_a_watch_sees_it() -> None:
    echo, watch = Question("echo", "127.0.0.1"), Question("watch", "127.0.0.1")
    assert ask(LocalHost(), None, questions=[echo]) == {echo: "9000 9000"}
    seen: dict[Question, str] = {}
    thread = threading.Thread(target=lambda: seen.update(ask(LocalHost(), None, questions=[watch]) or {}))
    thread.start()
    while thread.is_alive():
        ask(LocalHost(), None, questions=[echo])
    assert seen == {watch: "answered"}
    silent = Question("watch", "192.0.2.1")
    assert ask(LocalHost(), None, questions=[silent]) == {silent: "stayed"}


def test_a_listener_greets_who_calls_it() -> None:
    port = find_closed_port()
    question = Question("listen", "127.0.0.1", port)
    found: dict[Question, str] = {}
    thread = threading.Thread(target=lambda: found.update(ask(LocalHost(), None, questions=[question]) or {}))
    thread.start()
    body = b""
    while not body and thread.is_alive():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                body = answer.read()
        except OSError:
            continue
    thread.join()
    assert body.decode() == pod_questions.GREETING and found == {question: "served"}
