"""tests/fake_cluster.py itself: its apply owns fields, lets go of them and tells conflicts, as an API server does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.machine.http import HttpResponse
from tests import fake_fields
from tests.fake_cluster import FakeCluster

SERVER = "https://10.0.0.11:6443"
PATH = "/api/v1/namespaces/n/configmaps/x"
WORKLOAD = "/apis/apps/v1/namespaces/n/daemonsets/x"


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def config_map(data: dict[str, str], **annotations: str) -> dict[str, Any]:
    meta = {"name": "x", "namespace": "n", **({"annotations": annotations} if annotations else {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def daemon_set(*containers: dict[str, Any], **pod: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "x", "namespace": "n"},
        "spec": {"template": {"spec": {"containers": list(containers), **pod}}},
    }


def apply(cluster: FakeCluster, obj: dict[str, Any], manager: str, *, force: bool = False) -> HttpResponse:
    path = WORKLOAD if obj["kind"] == "DaemonSet" else PATH
    url = f"{SERVER}{path}?fieldManager={manager}" + ("&force=true" if force else "")
    return cluster.answer(
        "PATCH", url, json.dumps(obj).encode(), {"Content-Type": "application/apply-patch+yaml", "User-Agent": "kb"}
    )


def put(cluster: FakeCluster, obj: dict[str, Any], agent: str = "kubeadm/v1.35") -> HttpResponse:
    return cluster.answer("PUT", SERVER + PATH, json.dumps(obj).encode(), {"User-Agent": agent})


def data_of(cluster: FakeCluster) -> Any:
    return cluster.objects[PATH].get("data")


def pod_of(cluster: FakeCluster) -> Any:
    return cluster.objects[WORKLOAD]["spec"]["template"]["spec"]


def test_a_field_that_is_no_longer_applied_goes(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1", "b": "1"}, note="x"), "kb")
    apply(cluster, config_map({"a": "1"}), "kb")
    assert data_of(cluster) == {"a": "1"}
    assert "annotations" not in cluster.objects[PATH]["metadata"]


def test_a_field_that_another_manager_owns_stays(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1", "b": "1"}), "kb")
    apply(cluster, config_map({"b": "1", "c": "1"}), "admin")
    apply(cluster, config_map({"a": "1"}), "kb")
    assert data_of(cluster) == {"a": "1", "b": "1", "c": "1"}
    apply(cluster, config_map({}), "admin")
    assert data_of(cluster) == {"a": "1"}


def test_what_was_written_without_an_apply_is_not_taken_away(cluster: FakeCluster) -> None:
    """kb that creates and later applies is two managers: the fields of its POST stay its own."""
    body = json.dumps(config_map({"a": "1", "b": "1"})).encode()
    cluster.answer("POST", f"{SERVER}/api/v1/namespaces/n/configmaps", body, {"User-Agent": "kb"})
    apply(cluster, config_map({"a": "1"}), "kb")
    apply(cluster, config_map({}), "kb")
    assert data_of(cluster) == {"a": "1", "b": "1"}


def test_a_conflict_is_told_and_force_takes_the_field(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1"}), "admin")
    answer = apply(cluster, config_map({"a": "2"}), "kb")
    assert (answer.status, json.loads(answer.body)["reason"]) == (409, "Conflict")
    assert 'conflict with "admin Apply": .data.a' in json.loads(answer.body)["message"]
    assert data_of(cluster) == {"a": "1"}
    assert apply(cluster, config_map({"a": "1"}), "kb").status == 200, "the same value is no conflict"
    assert apply(cluster, config_map({"a": "2"}), "kb", force=True).status == 200
    apply(cluster, config_map({}), "admin")
    assert data_of(cluster) == {"a": "2"}, "it is kb's alone now"


def test_who_changes_a_field_without_an_apply_owns_it(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1", "b": "1"}), "kb")
    put(cluster, config_map({"a": "9", "b": "1"}))
    assert apply(cluster, config_map({"a": "1"}), "kb").status == 409
    apply(cluster, config_map({}), "kb")
    assert data_of(cluster) == {"a": "9"}


def test_an_object_of_before_keeps_what_nobody_applied(cluster: FakeCluster) -> None:
    cluster.objects[PATH] = config_map({"a": "1", "old": "1"})
    assert apply(cluster, config_map({"a": "2"}), "kb").status == 409
    apply(cluster, config_map({"a": "2"}), "kb", force=True)
    assert data_of(cluster) == {"a": "2", "old": "1"}


def test_lists_go_by_their_keys_or_as_a_whole(cluster: FakeCluster) -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]
    ports = [{"containerPort": 53}, {"containerPort": 53, "protocol": "UDP"}]
    own = {"name": "proxy", "image": "i:1", "env": env, "ports": ports, "args": ["a", "b"]}
    apply(cluster, daemon_set(own, tolerations=[{"key": "x"}, {"key": "y"}]), "kb")
    apply(cluster, daemon_set({"name": "mesh", "image": "m"}), "admin")
    less = {"name": "proxy", "image": "i:2", "env": env[1:], "ports": ports[1:], "args": ["b"]}
    apply(cluster, daemon_set(less, tolerations=[{"key": "y"}]), "kb")
    assert pod_of(cluster) == {"containers": [less, {"name": "mesh", "image": "m"}], "tolerations": [{"key": "y"}]}
    apply(cluster, daemon_set(tolerations=[{"key": "y"}]), "kb")
    assert pod_of(cluster)["containers"] == [{"name": "mesh", "image": "m"}]


def test_an_item_stays_with_its_key_for_who_owns_a_field_of_it(cluster: FakeCluster) -> None:
    apply(cluster, daemon_set({"name": "proxy", "image": "i"}), "kb")
    apply(cluster, daemon_set({"name": "proxy", "tty": True}), "admin")
    apply(cluster, daemon_set(), "kb")
    assert pod_of(cluster)["containers"] == [{"name": "proxy", "tty": True}]


def test_the_version_changes_with_content_or_owners(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1"}), "kb")
    first = cluster.version
    apply(cluster, config_map({"a": "1"}), "kb")
    assert cluster.version == first
    apply(cluster, config_map({"a": "1"}), "admin")
    assert cluster.version == first + 1


def test_a_stale_version_is_refused(cluster: FakeCluster) -> None:
    apply(cluster, config_map({"a": "1"}), "kb")
    old = json.loads(json.dumps(cluster.objects[PATH]))
    assert put(cluster, old).status == 200
    put(cluster, config_map({"a": "2"}))
    assert put(cluster, old).status == 409


def test_owners_outlive_the_process(tmp_path: Path) -> None:
    memory = tmp_path / "etcd.json"
    apply(FakeCluster(memory=memory), config_map({"a": "1", "b": "1"}), "kb")
    again = FakeCluster(memory=memory)
    apply(again, config_map({"b": "1"}), "kb")
    assert data_of(again) == {"b": "1"}


def test_real_objects_come_back_as_they_are_laid_out(tmp_path: Path) -> None:
    from tests.unit.cluster.test_addons import read_golden

    for name in ("daemonset--kube-system--kube-proxy", "deployment--kube-system--coredns"):
        obj = read_golden(35, name)
        assert fake_fields.put_together(obj, fake_fields.lay_out(obj)) == obj
