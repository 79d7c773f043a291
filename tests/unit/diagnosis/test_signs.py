"""kubeup/diagnosis/signs.py: every sign can be told, on systemd and on OpenRC."""

from __future__ import annotations

import re

from kubeup.diagnosis import chain, kubelet_trouble, signs
from tests.fake_host import FakeHost
from tests.unit.diagnosis.signs_case import SOCKET, make_openrc_host


def test_a_node_of_openrc_is_told_of_no_systemd() -> None:
    """Whatever is wrong: systemctl and journalctl are not there."""
    assert kubelet_trouble.find_kubelet_trouble(make_openrc_host(" * status: started", 0)) is None
    told = []
    for kind in (signs.KUBELET_SIGNS, signs.SANDBOX_SIGNS, signs.CONTAINER_SIGNS):
        for sign in kind:
            host = make_openrc_host(" * status: crashed", 32)
            host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
            words = dict.fromkeys(re.compile(sign.pattern).groupindex, "x") | {"source": "x", "origin": "x"}
            told.append(
                sign.remedy.format_map(
                    {**signs._service_words(host), **(sign.explain or (lambda *_: {}))(host, words), **words}
                )
            )
    host = make_openrc_host(" * status: crashed", 32)
    del host.files["/var/run/containerd/containerd.sock"]
    host.programs.add("containerd")
    for link in (kubelet_trouble.find_kubelet_trouble(host), chain.find_runtime_trouble(host, SOCKET)):
        assert link
        told.append(link.remedy)
    host = make_openrc_host(" * status: started", 0)
    host.urls.clear()
    link = kubelet_trouble.find_healthz_trouble(host)
    assert link and link.remedy == "see its log: grep kubelet /var/log/messages"
    assert "rc-service containerd restart" in "".join(told)
    assert not [text for text in told if "systemctl" in text or "journalctl" in text]


def test_two_looks_at_one_trouble_have_one_key() -> None:
    first = signs.BrokenLink("etcd exited 1 time", "a", "see crictl logs 1", link="container")
    again = signs.BrokenLink("etcd exited 3 time", "b", "see crictl logs 2", link="container")
    other = signs.BrokenLink("kube-apiserver exited 1 time", "a", "see crictl logs 1", link="container")
    assert first.key == again.key != other.key


def test_every_sign_has_a_remedy_that_can_be_filled() -> None:
    """A group that is not there would be a KeyError in the worst moment."""
    words = dict.fromkeys(
        ("line", "source", "origin", "holder", "look", "mount", "folder", "free", "have", "server", "servers"), "x"
    )
    words.update(signs._service_words(FakeHost()))
    words.update(signs._look_up_identity(FakeHost(), {}))
    words.update(signs._look_up_kernel_flags(FakeHost(), {}))
    for sign in (*signs.KUBELET_SIGNS, *signs.SANDBOX_SIGNS, *signs.CONTAINER_SIGNS):
        groups = dict.fromkeys(re.compile(sign.pattern).groupindex, "x")
        assert sign.remedy.format_map({**words, **groups})
        assert sign.cause.format_map({**words, **groups}) or not sign.cause
