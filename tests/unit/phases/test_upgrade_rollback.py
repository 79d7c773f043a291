"""The way back of an upgraded node: refused by name where it would break something, and otherwise the node is as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster import eviction
from kubeup.errors import ClusterError, HostError
from kubeup.phases import static_pods_swap, upgrade_kubelet, upgrade_programs, upgrade_rollback
from kubeup.phases.upgrade_rollback import Facts, judge_return
from kubeup.swap import store
from kubeup.upgrade import kept
from kubeup.yaml_files import load_mapping
from tests.fake_control_plane import ADMIN_CONF
from tests.fake_drain import make_pod
from tests.fake_node import PATHS
from tests.unit.phases.test_upgrade_kubelet import begin, expect_former, expect_new, make_run, make_worker, node_of


def pod(name: str, former: str, wanted: str) -> store.Pod:
    text = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: {0}\n    image: registry.k8s.io/{0}:{1}\n"
    return store.Pod(name, text.format(name, former), text.format(name, wanted))


SERVER = pod("kube-apiserver", "v1.36.3", "v1.35.6")
ETCD = pod("etcd", "3.6.5-0", "3.6.5-0")
PATCH = pod("kube-apiserver", "v1.35.7", "v1.35.6")


@pytest.mark.parametrize(
    ("former", "pods", "facts", "told"),
    [
        # a worker, or a kubelet alone
        ("v1.35.6", [], Facts(), ""),
        ("v1.35.6", [], Facts(server="v1.36.3", stored="v1.36.3"), ""),
        ("v1.32.1", [], Facts(server="v1.36.3"), "supports no kubelet that is older than 1.33"),
        ("1.x", [], Facts(), "not known"),
        # a patch, at any moment
        ("v1.35.6", [PATCH], Facts(server="v1.35.6", stored="v1.35.7", others={"w1": "v1.35.7"}), ""),
        # a minor: until the cluster has moved on, and nobody newer is left
        ("v1.35.6", [SERVER], Facts(server="v1.36.3", stored="v1.35.6", others={"w1": "v1.35.6"}), ""),
        ("v1.35.6", [SERVER], Facts(server="v1.36.3", stored="v1.36.3"), "the cluster is at v1.36.3"),
        (
            "v1.35.6",
            [SERVER],
            Facts(stored="v1.35.6", others={"w1": "v1.36.3", "w2": "v1.35.6"}),
            "the kubelet of w1 is newer",
        ),
    ],
)
def test_what_decides(former: str, pods: list[store.Pod], facts: Facts, told: str) -> None:
    found = judge_return(former, pods=pods, facts=facts)
    assert (found is None) == (told == "")
    if found is not None:
        assert told in found.cause and "nothing was changed" in found.cause and found.code == "rollback-unsafe"


def test_an_etcd_of_another_minor_stays_and_a_patch_goes_back() -> None:
    left, told = upgrade_rollback.keep_etcd([pod("etcd", "3.6.5-0", "3.5.24-0"), SERVER])
    assert left == [SERVER] and "3.6" in told and "3.5" in told
    both = [pod("etcd", "3.6.8-0", "3.6.6-0"), SERVER]
    assert upgrade_rollback.keep_etcd(both) == (both, "")


def test_an_etcd_whose_version_is_not_known_stays() -> None:
    pinned = store.Pod(
        "etcd", *(text.former.replace(":3.6.5-0", f"@sha256:{name}") for name, text in (("a", ETCD), ("b", ETCD)))
    )
    left, told = upgrade_rollback.keep_etcd([pinned, SERVER])
    assert left == [SERVER] and told
    same = dataclasses.replace(pinned, wanted=pinned.former + "  hostNetwork: true\n")
    assert upgrade_rollback.keep_etcd([same]) == ([same], "")


def upgraded(*pods: Any, **more: Any) -> Any:
    host = make_worker(*pods, **more)
    upgrade_kubelet.change_kubelet(begin(host))
    expect_new(host)
    host.evicted.clear()
    return host


def roll_back(host: Any, **more: Any) -> None:
    run = dataclasses.replace(make_run(host, **more), former="v1.35.6")
    upgrade_rollback.check_return(run)
    upgrade_rollback.return_kubelet(run)
    kept.end(host, PATHS, status=kept.TAKEN_BACK)  # as the command does


def test_a_worker_goes_back_with_program_and_files_on_a_drained_node() -> None:
    host = upgraded()
    host.pods["web"] = make_pod("web")
    roll_back(host)
    expect_former(host)
    assert host.evicted == ["web"]
    found = kept.load(host, PATHS)
    assert found and found.status == kept.TAKEN_BACK


def test_the_cordon_of_the_admin_stays_on_the_way_back() -> None:
    host = upgraded()
    node_of(host)["spec"]["unschedulable"] = True
    roll_back(host)
    assert node_of(host)["spec"]["unschedulable"] is True


def test_once_more_it_changes_nothing() -> None:
    host = upgraded()
    roll_back(host)
    before = dict(host.files)
    host.steps.clear()
    roll_back(host)
    assert host.files == before and not host.steps


def test_where_nothing_is_kept_it_says_so() -> None:
    host = make_worker()
    with pytest.raises(HostError) as caught:
        upgrade_rollback.check_return(make_run(host))
    assert caught.value.code == "nothing-kept"


def test_it_can_be_upgraded_again() -> None:
    host = upgraded()
    roll_back(host)
    upgrade_kubelet.change_kubelet(begin(host))
    expect_new(host)
    assert host.files[str(kept.copy_of(PATHS, Path("/usr/bin/kubelet")))] == b"v1.34.9"


def test_a_node_that_was_cut_off_with_its_kubelet_stopped_goes_back() -> None:
    host = make_worker(make_pod("web"))
    run = begin(host)
    kept.keep(host, PATHS, files=upgrade_programs.list_kept_files(run))
    upgrade_kubelet.drain(run)
    host.is_running = False
    host.files[str(PATHS.kubelet_config)] = b"new"
    roll_back(host)
    expect_former(host)


def test_a_kubelet_that_the_operator_replaced_is_his_to_take_back() -> None:
    host = make_worker()
    host.files["/usr/bin/kubelet"] = b"v1.35.6"
    run = make_run(host, source="none")
    upgrade_programs.fetch_programs(run)
    upgrade_kubelet.change_kubelet(run)
    results = upgrade_rollback.return_kubelet(run)
    assert results and results.remaining and "--allow-downgrades kubelet='1.34.9-*'" in results.remaining[0]
    assert host.version == "v1.35.6" and host.is_running


def test_a_worker_whose_former_kubelet_is_too_old_by_now_stays() -> None:
    host = upgraded()
    host.cluster.objects["/version"] = {"kind": "Info", "gitVersion": "v1.38.0"}
    with pytest.raises(HostError) as caught:
        roll_back(host)
    assert caught.value.code == "rollback-unsafe" and "v1.38.0" in caught.value.cause
    expect_new(host)


def test_what_is_not_kept_any_more_is_said_before_the_kubelet_stops() -> None:
    host = upgraded()
    del host.files[str(kept.copy_of(PATHS, Path("/usr/bin/kubelet")))]
    with pytest.raises(HostError) as caught:
        roll_back(host)
    assert caught.value.code == "kept-incomplete" and "former/usr/bin/kubelet" in caught.value.cause
    assert host.is_running


def test_the_failure_that_is_shown_is_that_of_the_kubelet(monkeypatch: pytest.MonkeyPatch) -> None:
    host = upgraded()

    def fail(*args: Any, **more: Any) -> None:
        raise ClusterError("away", cause="x", remedy="y", code="unreachable")

    monkeypatch.setattr(upgrade_kubelet, "take_back", lambda run, version, leaves_minor: fail_as(HostError))
    monkeypatch.setattr(eviction, "uncordon", fail)

    def fail_as(kind: type[HostError]) -> None:
        raise kind("the kubelet", cause="x", remedy="y", code="kubelet-not-taken-back")

    with pytest.raises(HostError) as caught:
        upgrade_rollback.return_kubelet(make_run(host))
    assert caught.value.code == "kubelet-not-taken-back"


def test_an_api_server_does_not_go_back_below_a_kubelet_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_worker()
    host.files["/usr/bin/kubelet"] = b"v1.35.6"
    run = make_run(host, source="none")
    upgrade_programs.fetch_programs(run)  # what the operator has installed is all that can be kept
    monkeypatch.setattr(upgrade_rollback, "plan_return", lambda ctx: [pod("kube-apiserver", "v1.35.6", "v1.34.9")])
    monkeypatch.setattr(upgrade_rollback, "_changed", lambda ctx: [])
    monkeypatch.setattr(static_pods_swap, "check_swap", lambda ctx: None)
    monkeypatch.setattr(upgrade_rollback, "read_facts", lambda ctx: Facts(server="v1.35.6", stored="v1.34.9"))
    with pytest.raises(HostError) as caught:
        upgrade_rollback.check_return(run)
    assert caught.value.code == "rollback-unsafe"
    assert "must not be newer than its API server" in caught.value.cause
    assert "kubelet='1.34.9-*'" in caught.value.remedy
    host.files["/usr/bin/kubelet"] = b"v1.34.9"
    upgrade_rollback.check_return(run)


def test_the_kubelet_keeps_the_certificate_that_it_has_renewed_since() -> None:
    """Of kubelet.conf only the server goes back."""
    conf = str(PATHS.kubernetes / "kubelet.conf")
    host = make_worker()
    host.files[conf] = ADMIN_CONF.encode()
    run = begin(host)
    kept.keep(host, PATHS, files=upgrade_programs.list_kept_files(run))
    upgrade_kubelet.change_kubelet(run)
    now = ADMIN_CONF.replace("10.0.0.11:6443", "10.0.0.99:6443").replace("token: t", "token: renewed")
    host.files[conf] = now.encode()
    roll_back(host)
    expect_former(host)
    found = load_mapping(host.files[conf].decode(), conf)
    assert found == load_mapping(ADMIN_CONF.replace("token: t", "token: renewed"), conf)
