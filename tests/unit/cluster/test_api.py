"""The REST client against a scripted API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster.api import AlreadyExists, Api, ApiRefused, Identity, path_of
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost, FakeCluster

CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "x", "namespace": "kube-system"},
    "data": {"a": "1"},
}
PATH = "/api/v1/namespaces/kube-system/configmaps/x"


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def api(tmp_path: Path, cluster: FakeCluster) -> Api:
    return Api(ClusterHost(tmp_path, cluster), Identity("https://10.0.0.11:6443", Tls()), retry_s=5)


def test_apply_tells_whether_anything_changed(api: Api) -> None:
    assert api.apply(CONFIG_MAP)
    assert not api.apply(CONFIG_MAP)
    assert api.apply({**CONFIG_MAP, "data": {"a": "2"}})
    assert api.changes == ["ConfigMap kube-system/x"] * 2


def test_create_of_a_taken_name(api: Api) -> None:
    api.create(CONFIG_MAP)
    with pytest.raises(AlreadyExists):
        api.create(CONFIG_MAP)
    assert api.create_or_replace({**CONFIG_MAP, "data": {}})["data"] == {}


def test_get_delete_and_none(api: Api) -> None:
    assert api.get(PATH) is None
    api.create(CONFIG_MAP)
    assert (api.get(PATH) or {})["data"] == {"a": "1"}
    assert api.delete(PATH) and not api.delete(PATH)


def test_list_selects(api: Api) -> None:
    for name, labels in (("p", {"app": "a"}), ("q", {"app": "b"})):
        api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n", "labels": labels}})
    assert [pod["metadata"]["name"] for pod in api.list(path_of("Pod", namespace="n"), label="app=b")] == ["q"]


def test_an_unknown_kind_is_asked_for_and_then_refused(api: Api, cluster: FakeCluster) -> None:
    cluster.objects["/apis/example.org/v1"] = {"resources": [{"name": "things", "kind": "Thing", "namespaced": True}]}
    thing: dict[str, Any] = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "t"}}
    assert api.object_path(thing) == "/apis/example.org/v1/namespaces/default/things/t"
    with pytest.raises(ClusterError) as caught:
        api.object_path({**thing, "kind": "Other"})
    assert caught.value.code == "unknown-kind"


def test_a_known_kind_of_another_group_is_not_mistaken(api: Api, cluster: FakeCluster) -> None:
    cluster.objects["/apis/x.io/v1"] = {"resources": [{"name": "pods", "kind": "Pod", "namespaced": False}]}
    assert (
        api.object_path({"apiVersion": "x.io/v1", "kind": "Pod", "metadata": {"name": "p"}}) == "/apis/x.io/v1/pods/p"
    )


class Answers:
    """A host whose next answers are given."""

    def __init__(self, host: ClusterHost, answers: list[Any]) -> None:
        self.answers = answers

        def answer(*_: Any, **__: Any) -> HttpResponse:
            given = self.answers.pop(0)
            if isinstance(given, Exception):
                raise given
            return HttpResponse(*given)

        host.http_get = answer  # type: ignore[method-assign]


def test_a_starting_server_is_asked_again(api: Api) -> None:
    refused = Unreachable("u", "refused", text="connection refused")
    Answers(api.host, [refused, (503, b""), (429, b""), (200, b'{"kind": "X"}')])  # type: ignore[arg-type]
    assert api.get("/x") == {"kind": "X"}


def test_a_server_that_stays_away_is_an_error_after_the_time(api: Api, cluster: FakeCluster) -> None:
    cluster.is_up = False
    began = api.host.monotonic()
    with pytest.raises(Unreachable):
        api.get("/x")
    assert 4 < api.host.monotonic() - began <= 5


def test_bad_trust_is_not_tried_again(api: Api) -> None:
    answers = Answers(api.host, [Unreachable("u", "tls", text="certificate verify failed"), (200, b"{}")])  # type: ignore[arg-type]
    with pytest.raises(Unreachable):
        api.get("/x")
    assert len(answers.answers) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(401, "api-unauthorized"), (403, "api-forbidden"), (422, "api-invalid"), (400, "api-refused")]
)
def test_a_refusal_names_the_reason(api: Api, status: int, code: str) -> None:
    ready = [(200, b"ok")] if status == 403 else []
    answers = Answers(api.host, [(status, b'{"reason": "R", "message": "no such thing"}'), *ready])  # type: ignore[arg-type]
    with pytest.raises(ApiRefused) as caught:
        api.get("/x")
    assert caught.value.code == code
    assert caught.value.cause == f"no such thing (HTTP {status})"
    assert answers.answers == []


def test_a_server_that_has_not_read_its_roles_is_asked_again(api: Api) -> None:
    forbidden, gone = (403, b'{"reason": "Forbidden"}'), Unreachable("u", "refused", text="connection refused")
    Answers(api.host, [forbidden, (403, b""), forbidden, (500, b""), forbidden, gone, (200, b'{"kind": "X"}')])  # type: ignore[arg-type]
    assert api.get("/x") == {"kind": "X"}


def test_a_token_goes_into_the_header_only(tmp_path: Path) -> None:
    api = Api(ClusterHost(tmp_path), Identity("https://a", Tls(), Secret("t0k3n")))
    assert api._headers()["Authorization"] == "Bearer t0k3n"
    assert "t0k3n" not in repr(api.identity)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"[]", "it is a list, not a mapping"),
        (b"<html>", "the answer is not JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"items": {"a": 1}}', "items is a mapping, not a list"),
        (b'{"items": [5]}', r"items\[0\] is a number, not a mapping"),
        (b'{"items": [{"metadata": {"labels": ["a"]}}]}', r"items\[0\].metadata.labels is a list, not a mapping"),
        (b'{"items": [{"spec": {"podCIDRs": ["x"]}}]}', r"items\[0\].spec.podCIDRs\[0\]: 'x' does not"),
        (b'{"items": [{"status": {"conditions": "Ready"}}]}', r"items\[0\].status.conditions is a text, not a list"),
    ],
)
def test_an_answer_of_another_shape_is_refused_where_it_comes_in(api: Api, body: bytes, cause: str) -> None:
    Answers(api.host, [(200, body)])  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=cause) as caught:
        api.list(path_of("Node"))
    assert caught.value.code == "api-answer-odd" and "kubectl get --raw /api/v1/nodes" in caught.value.remedy


def test_what_is_null_or_left_out_is_there_and_empty(api: Api) -> None:
    Answers(api.host, [(200, b'{"items": [null, {"metadata": {"name": "a"}, "spec": null}]}')])  # type: ignore[arg-type]
    assert api.list(path_of("Node")) == [{"metadata": {"name": ""}}, {"metadata": {"name": "a"}}]
