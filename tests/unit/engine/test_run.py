"""What the phases of a run hand on, what of it a later run reads back, and who calls the API server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kubeup.cluster.api import Api, Identity
from kubeup.engine.run import STORED, Caller, Results, Who, read_stored
from kubeup.machine.http import Tls
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost, FakeCluster


def test_a_later_phase_takes_over_what_was_handed_on_and_loses_nothing() -> None:
    results = Results(token_ids=["abcdef"], server="10.0.0.11:6443")
    results.take(Results(certificate_key=Secret("k"), token_ids=[]))
    assert results == Results(token_ids=[], server="10.0.0.11:6443", certificate_key=Secret("k"))


def test_what_is_stored_is_read_back_and_no_secret_is_among_it() -> None:
    results = Results(
        certificate_key=Secret("k"), tokens=[Secret("t")], closing_text=Secret("c"), join_text="j",
        token_ids=("abcdef",), server="s", ca_cert_hashes=["sha256:1"], etcd_members=["cp1"], node_ready=False,
        remaining=[], before_endpoint="", before_server="https://s", before_balancer="none", before_is_begun_here=True,
        before_cert_sans=[], changed_cert_sans=["x.test"],
    )  # fmt: skip
    assert all(getattr(results, item.name) is not None for item in dataclasses.fields(results))
    stored = results.stored()
    assert set(stored) == set(STORED) and stored["token_ids"] == ["abcdef"]
    assert read_stored(stored).stored() == stored
    assert read_stored(stored).certificate_key is None


def test_what_another_kb_stored_or_somebody_changed_is_nothing() -> None:
    assert read_stored({"token": None, "word": "w", "token_ids": "abcdef", "node_ready": 1}) == Results()


def test_who_calls_may_change_on_the_way_and_no_change_is_forgotten(tmp_path: Path) -> None:
    host = ClusterHost(tmp_path, FakeCluster(is_up=True))
    made: list[Who] = []

    def make(who: Who) -> Api:
        made.append(who)
        return Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)

    caller = Caller(make, "bootstrap")
    assert caller.changes == [] and made == []
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "kube-system"}}
    caller.api.create(config_map)
    caller.become("kubelet")
    assert len(caller.changes) == 1 and made == ["bootstrap"]
    caller.api.create({**config_map, "metadata": {"name": "b", "namespace": "kube-system"}})
    assert len(caller.changes) == 2 and made == ["bootstrap", "kubelet"]


def test_a_run_that_was_made_without_a_client_says_so() -> None:
    with pytest.raises(RuntimeError, match="without an API client"):
        _ = Caller().api
