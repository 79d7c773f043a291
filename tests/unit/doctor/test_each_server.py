"""Several API servers behind a node's own load balancer: each connection leads to another one, so doctor asks one that serves, and proves of the
others, each at its own address, that they take this node and its pods for what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup.diagnosis.checks.facts import ERROR, FOLLOWS, OK, WARNING, Finding
from kubeup.doctor import node_files
from kubeup.doctor.looks import table, traffic
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.network import load_balancer
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes, remedies
from tests.unit.doctor.test_registered_node import REQUESTS, node_host

ENDPOINT = "https://api.kb.test:7443"
OTHER, THIRD = "https://10.77.0.12:6443", "https://10.77.0.13:6443"
NODE = "/api/v1/nodes/cp1"


def balance(host: FakeHost, *servers: str) -> FakeHost:
    """With kb's load balancer before these servers, to which every kubeconfig leads."""
    settings = load_balancer.Settings("api.kb.test:7443", 7444, "unix:///run/containerd/containerd.sock")
    host.write_file(load_balancer.settings_path(Paths()), load_balancer.render_settings(settings))
    names = [server.partition("://")[2] for server in servers]
    host.write_file(load_balancer.config_path(Paths()), load_balancer.render_config(settings, names))
    for name in ("admin.conf", "kubelet.conf"):
        path = f"/etc/kubernetes/{name}"
        host.files[path] = host.files[path].replace(SERVER.encode(), ENDPOINT.encode())
    return host


def ready(host: FakeHost, *servers: str) -> None:
    for server in servers:
        host.urls[f"{server}/readyz"] = HttpResponse(200, b"ok")
        host.urls[f"{server}{NODE}"] = HttpResponse(200, b"{}")


@pytest.mark.parametrize(
    ("serve", "chosen"),
    [((SERVER, OTHER), SERVER), ((OTHER, THIRD), OTHER), ((), ENDPOINT)],
    ids=["its own first", "one that serves", "nobody"],
)
def test_who_is_asked(serve: tuple[str, ...], chosen: str) -> None:
    host = balance(make_host(), OTHER, SERVER, THIRD)
    ready(host, *serve)
    host.urls[f"{THIRD}/readyz"] = host.urls.get(f"{THIRD}/readyz", HttpResponse(500, b"[-]etcd failed"))
    patient = node_files.choose_server(make_patient(host))
    assert node_files.open_api(patient).server == chosen
    assert node_files.open_api(patient).timeout_s == (5 if serve else 2)  # a dead one keeps many checks waiting
    if serve:  # it calls itself ready, and reads nothing
        del host.urls[f"{chosen}{NODE}"]
        assert node_files.open_api(node_files.choose_server(make_patient(host))).server != chosen


def test_another_cluster_s_server_is_left_as_it_is_named() -> None:
    """--kubeconfig, or a control plane's kubelet.conf, which names its own server."""
    host = balance(make_host(), SERVER, OTHER)
    ready(host, OTHER)
    path = "/etc/kubernetes/kubelet.conf"
    host.files[path] = host.files[path].replace(ENDPOINT.encode(), SERVER.encode())
    patient = node_files.choose_server(make_patient(host))
    assert node_files.open_api(patient, Paths().kubeconfig("kubelet.conf")).server == SERVER
    assert node_files.open_api(patient).server == OTHER
    assert node_files.choose_server(make_patient(make_host())).server == ""


def put_token(host: FakeHost) -> None:
    pod = "/var/lib/kubelet/pods/u1"
    host.files[f"{pod}/volumes/kubernetes.io~projected/kube-api-access-x/token"] = b"a.b.c"
    host.files[f"{pod}/containers/kube-proxy/x"] = b""


def test_one_server_that_does_not_know_the_tokens_of_pods() -> None:
    host = balance(make_host(), SERVER, OTHER)
    put_token(host)
    host.urls[f"{SERVER}/version"] = HttpResponse(200, b"{}")
    assert notes(host, "pod-tokens") == []  # the other one does not answer, which is another check's
    host.urls[f"{OTHER}/version"] = HttpResponse(401, b"{}")
    ((level, text),) = notes(host, "pod-tokens")
    assert level == "error" and text.startswith(
        "API server 10.77.0.12:6443 refuses the service account tokens of pods (kube-proxy)"
    )
    assert "sa.key" in remedies(host, "pod-tokens")[0]
    host.urls[f"{SERVER}/version"] = HttpResponse(401, b"{}")
    ((_, text),) = notes(host, "pod-tokens")
    assert text.startswith("the API server refuses the service account tokens of this node's pods")


REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def allow(host: FakeHost, server: str, *, is_allowed: bool, status: int = 200) -> None:
    """What a server answers to this node's kubelet."""
    host.urls[f"{server}{NODE}"] = HttpResponse(status, b"{}")
    host.urls[f"{server}{REVIEW}"] = HttpResponse(
        201 if status == 200 else status, json.dumps({"status": {"allowed": is_allowed}}).encode()
    )


@pytest.mark.parametrize(
    ("is_allowed", "status", "says"),
    [
        (True, 401, "does not accept the certificate of this node's kubelet"),
        (False, 200, "lets no kubelet update its node"),
        (True, 200, ""),
    ],
)
def test_one_server_that_does_not_take_this_node_for_what_it_is(is_allowed: bool, status: int, says: str) -> None:
    host = balance(node_host(), SERVER, OTHER)
    host.urls.update({url.replace(SERVER, ENDPOINT): answer for url, answer in host.urls.items()})
    allow(host, SERVER, is_allowed=True)
    allow(host, OTHER, is_allowed=is_allowed, status=status)
    told = [text for _, text in notes(host, "node")]
    assert len(told) == bool(says), told
    assert all("API server 10.77.0.12:6443 " in text and says in text for text in told), told


def test_a_server_that_authorizes_no_kubelet_is_said_once() -> None:
    """Without a load balancer too; what it then refuses is not said beside that."""
    host = node_host()
    allow(host, SERVER, is_allowed=False)
    host.urls[REQUESTS] = HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden", "message": "cannot list"}')
    ((level, text),) = notes(host, "node")
    assert level == "error" and text.startswith("API server 10.77.0.11:6443 lets no kubelet update its node")
    assert "--authorization-mode=Node,RBAC" in remedies(host, "node")[0]


@pytest.mark.parametrize("is_worker", [True, False])
def test_one_server_whose_certificate_this_node_does_not_accept(
    monkeypatch: pytest.MonkeyPatch, is_worker: bool
) -> None:
    """On a control plane it is the check of the whole cluster that names it."""
    host = make_host()
    if is_worker:
        for path in [path for path in host.files if "/manifests/" in path or path.endswith("apiserver.crt")]:
            del host.files[path]

    def get(url: str, **_: Any) -> HttpResponse:
        if url.startswith(OTHER):
            raise Unreachable(url, "tls", text="certificate has expired")
        return HttpResponse(200, b"ok")

    patient = make_patient(host)
    monkeypatch.setattr(host, "http_get", get)
    found = list(traffic._judge_way_to(patient, [SERVER.partition("://")[2], OTHER.partition("://")[2]]))
    assert [note.level for note in found] == ["error"] * is_worker
    assert all(
        note.text.startswith("API server 10.77.0.12:6443, to which") and "expired" in note.text for note in found
    )


# ---- what comes of what


def say(*found: Finding, look: str, after: tuple[str, ...] = ()) -> table.Look:
    return table.Look(look, "", lambda patient: iter(found), after)


@pytest.mark.parametrize(
    ("note", "becomes"),
    [
        (Finding("etcd/own", ERROR, "the member of etcd on this node does not answer: x", "y"), FOLLOWS),
        (Finding("cluster", WARNING, "API server 10.77.0.11:6443 does not answer: x", "y"), FOLLOWS),
        (Finding("cluster", WARNING, "API server 10.77.0.12:6443 does not answer: x", "y"), WARNING),
        (Finding("etcd", ERROR, "etcd member cp2 does not serve", "y"), ERROR),
        (Finding("etcd", ERROR, "etcd member cp1 does not serve, so etcd accepts no new one: x", "y"), FOLLOWS),
    ],
    ids=["its member", "its server", "another server", "another member", "its member, as others see it"],
)
def test_what_this_node_s_own_servers_do_not_do_comes_of_its_broken_chain(note: Finding, becomes: str) -> None:
    broken = say(Finding("chain/container", ERROR, "etcd exited", "see"), look="chain")
    patient = make_patient(make_host())
    assert [one.level for one in table.examine(patient, [broken, say(note, look="cluster")])] == [ERROR, becomes]
    assert [one.level for one in table.examine(patient, [say(note, look="cluster")])] == [note.level]


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("node cp3 is not Ready: Kubelet stopped posting node status.", FOLLOWS),
        ("the kubelet of node cp3 is silent: x", FOLLOWS),
        ("API server 10.77.0.13:6443 does not answer: x", FOLLOWS),
        ("no kube-scheduler leads: cp3 has not renewed its lease in the last 6 s", FOLLOWS),
        ("node cp31 is not Ready: x", ERROR),
        ("API server 10.77.0.1:6443 does not answer: x", ERROR),
    ],
)
def test_what_the_machine_of_a_lost_member_does_not_do_comes_of_that(text: str, becomes: str) -> None:
    lost = "etcd member cp3 does not serve, so etcd accepts no new one: cp3 (https://10.77.0.13:2380): no answer; 2 of 3 members serve"
    etcd, note = say(Finding("etcd", ERROR, lost, "x"), look="etcd"), Finding("cluster", ERROR, text, "y")
    found = table.examine(make_patient(make_host()), [etcd, say(note, look="cluster")])
    assert [one.level for one in found] == [ERROR, becomes]


def test_kubelets_that_an_api_server_does_not_let_report_are_silent_because_of_that() -> None:
    denies = say(
        Finding("rights/nodes", ERROR, "API server 10.77.0.12:6443 lets no kubelet update its node", "x"), look="rights"
    )
    silent = Finding("cluster", WARNING, "the kubelet of node w1 is silent: x", "y")
    other = Finding("cluster", WARNING, "the aggregated API v1 does not answer: x", "y")
    patient = make_patient(make_host())
    found = table.examine(patient, [denies, say(silent, other, look="cluster")])
    assert [note.level for note in found] == [ERROR, FOLLOWS, WARNING]
    sealed = say(Finding("flags/secrets", ERROR, "the API server of cp1 cannot read all Secrets: x", "y"), look="flags")
    found = table.examine(patient, [sealed, say(silent, other, look="cluster")])
    assert [note.level for note in found] == [ERROR, FOLLOWS, WARNING]
    quota = say(Finding("rights", ERROR, "no new pod is let in", "x"), look="rights")
    assert [note.level for note in table.examine(patient, [quota, say(silent, look="cluster")])] == [ERROR, WARNING]


def test_a_controller_that_is_being_started_does_not_lead_yet() -> None:
    starts = say(
        Finding("chain/starting", OK, "not proven: kube-scheduler exited: it lost its lease", ""), look="chain"
    )
    own = Finding("cluster", WARNING, "no kube-scheduler leads: cp1 has not renewed its lease in the last 6 s", "y")
    patient = make_patient(make_host())
    assert [note.level for note in table.examine(patient, [starts, say(own, look="cluster")])] == [OK, FOLLOWS]
