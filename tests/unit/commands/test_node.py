"""kb node remove and kb node replace: what is refused, in which order a node leaves, and that a killed run is continued."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from kubeup.airgap import containerd_hosts
from kubeup.cluster import eviction
from kubeup.commands import token
from kubeup.machine.local_host import LocalHost
from kubeup.network import drain_marks
from kubeup.node import ca_pins
from tests.fake_control_plane import Gone
from tests.fake_departure import LEASES, NODES, PODS, Departure, make_departure
from tests.fuzz.node import Ended, call


def kb(host: Departure, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["node", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def removed(host: Departure, name: str, *words: str) -> Ended:
    ended = kb(host, "remove", name, "--yes", *words)
    assert ended.status == 0, ended.err
    return ended


def refused(host: Departure, *words: str, code: str) -> Ended:
    """Refused, and nothing was changed."""
    ended = kb(host, *words)
    assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
    assert [one for one in host.sent if "kb-static-pods" not in one and not one.endswith("/leases")] == []
    return ended


def order_of(host: Departure, *parts: str) -> list[str]:
    """Which of these parts the changes name, in the order of the first of each."""
    first = {part: next((n for n, one in enumerate(host.sent) if part in one), -1) for part in parts}
    return sorted((part for part in parts if first[part] >= 0), key=lambda part: first[part])


def left_of(host: Departure, name: str) -> list[str]:
    """What names the node still, wherever."""
    return [path for path, one in host.cluster.objects.items() if name in path.split("/") or name in json.dumps(one)]


# ---- a worker


def test_a_living_worker_is_drained_first_and_its_node_goes_last() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.add_pod("w1", "agent", owner="DaemonSet")
    ended = removed(host, "w1")
    assert order_of(host, "pods/web-1/eviction", f"DELETE{NODES}/w1".replace("/api", " api")) == [
        "pods/web-1/eviction", "DELETE api/v1/nodes/w1",
    ]  # fmt: skip
    assert left_of(host, "w1") == [] and host.list_names("Pod") == []
    assert host.member_names() == ["cp1", "cp2", "cp3"]
    assert "evicted from node w1: app/web-1" in ended.err
    assert "on w1: kb reset --force" in ended.out


def test_it_asks_and_says_what_goes() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.add_pod("w1", "lonely", owner="")
    ended = refused(host, "remove", "w1", code="not-confirmed")
    assert "2 pods are evicted from it" in ended.err
    assert "pods without a controller, which are not made anew elsewhere: app/lonely" in ended.err
    assert "kb node remove w1 --yes" in ended.err


def test_a_mirror_that_goes_with_it_is_told() -> None:
    host = make_departure()
    mirror = containerd_hosts.Mirror("https://10.0.0.13:5000")
    for name in ("registry.k8s.io", "docker.io"):
        text = containerd_hosts.render_hosts(name, mirror, is_only=False)
        host.files[f"/etc/containerd/certs.d/{name}/hosts.toml"] = text.encode()
    assert "images come from its mirror https://10.0.0.13:5000" in kb(host, "remove", "cp3").err
    assert "mirror" not in kb(host, "remove", "cp2").err


def test_a_budget_that_refuses_is_named_and_the_node_takes_pods_again() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.guarded.add("web-1")
    ended = kb(host, "remove", "w1", "--yes", "--drain-timeout", "20s")
    assert "code:   pods-not-evicted\n" in ended.err and "budget web needs 2 healthy pods" in ended.err
    assert "w1" in host.list_names("Node")
    assert not host.cluster.objects[f"{NODES}/w1"]["spec"].get("unschedulable")
    host.guarded.clear()
    removed(host, "w1")


def test_without_a_drain_the_pods_go_with_the_node() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.guarded.add("web-1")
    removed(host, "w1", "--no-drain")
    assert left_of(host, "w1") == [] and host.list_names("Pod") == []


# ---- a control plane


def test_a_living_control_plane_is_drained_leaves_the_balancers_and_etcd_and_then_the_cluster() -> None:
    host = make_departure()
    host.leads = 3
    ended = removed(host, "cp3")
    assert host.member_names() == ["cp1", "cp2"]
    assert left_of(host, "cp3") == []
    assert order_of(host, "transfer-leadership", "member/remove", "DELETE api/v1/nodes/cp3") == [
        "transfer-leadership", "member/remove", "DELETE api/v1/nodes/cp3",
    ]  # fmt: skip
    assert "none of them may fail then" in ended.err
    assert host.leases == {}, "the cluster's turn is given back"


def test_a_dead_control_plane_is_out_in_time() -> None:
    host = make_departure()
    host.add_pod("cp3", "db-0", owner="StatefulSet")
    host.add_volume("cp3", "disk-1")
    host.cut_power("cp3")
    began = host.ticks
    ended = removed(host, "cp3")
    assert host.ticks - began <= 20
    assert host.member_names() == ["cp1", "cp2"]
    assert left_of(host, "cp3") == [] and host.list_names("Pod") == []
    assert order_of(host, "pods/db-0", "member/remove", "DELETE api/v1/nodes/cp3") == [
        "pods/db-0", "member/remove", "DELETE api/v1/nodes/cp3",
    ]  # fmt: skip
    assert "switch it off first" in ended.err and "kb reset" not in ended.out


def test_volumes_that_stay_attached_are_named_and_hold_nothing_up() -> None:
    host = make_departure()
    host.add_volume("w1", "disk-1")
    host.cut_power("w1")
    host.detaches = False
    ended = removed(host, "w1")
    assert "still attached: disk-1" in ended.err and left_of(host, "w1") == [
        "/apis/storage.k8s.io/v1/volumeattachments/disk-1"
    ]


def test_what_a_dead_node_held_of_the_turn_hinders_nothing() -> None:
    host = make_departure()
    host.cut_power("cp3")
    spec = {"holderIdentity": "cp3", "renewTime": "2026-01-01T00:01:00.000000Z"}
    host.leases["kb-static-pods"] = {"metadata": {"name": "kb-static-pods"}, "spec": spec}
    removed(host, "cp3")
    assert host.member_names() == ["cp1", "cp2"] and host.leases == {}


def test_another_that_works_on_etcd_is_waited_for() -> None:
    host = make_departure()
    host.cut_power("cp3")
    stamp = host.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    host.leases["kb-static-pods"] = {
        "metadata": {"name": "kb-static-pods"},
        "spec": {"holderIdentity": "cp2", "renewTime": stamp},
    }
    refused(host, "remove", "cp3", "--yes", code="swap-elsewhere")
    assert "kb-static-pods" in host.leases


# ---- refused


def test_a_worker_at_a_lost_member_s_address_takes_no_member_along() -> None:
    host = make_departure(workers=())
    host.cut_power("cp3")
    del host.cluster.objects[f"{NODES}/cp3"]
    host.add_node("w1")
    host.cluster.objects[f"{NODES}/w1"]["status"]["addresses"][0]["address"] = "10.0.0.13"
    host.served["10.0.0.13:10250"] = "a certificate"
    removed(host, "w1")
    assert host.member_names() == ["cp1", "cp2", "cp3"]


def test_a_member_of_another_name_is_found_by_its_node_s_address() -> None:
    host = make_departure()
    host.cut_power("cp3")
    host.of_etcd[3].name = "etcd-3"
    removed(host, "cp3")
    assert host.member_names() == ["cp1", "cp2"]


def test_a_removal_that_costs_the_quorum_is_refused() -> None:
    host = make_departure()
    host.cut_power("cp3")
    ended = refused(host, "remove", "cp2", "--yes", code="etcd-removal-unsafe")
    assert "1 of the 2 others serve, 2 are needed" in ended.err


def test_without_a_quorum_nothing_is_tried() -> None:
    host = make_departure()
    for name in ("cp2", "cp3"):
        host.cut_power(name)
    refused(host, "remove", "cp3", "--yes", code="etcd-no-quorum")


def test_the_node_that_asks_stays() -> None:
    refused(make_departure(), "remove", "cp1", "--yes", code="node-is-this-one")


def test_the_node_that_all_others_call_stays() -> None:
    host = make_departure()
    host.add_config("10.0.0.12:6443")
    ended = refused(host, "remove", "cp2", "--yes", code="endpoint-is-on-node")
    assert "kb reconfigure endpoint" in ended.err


def test_a_silent_node_that_counts_as_ready_is_waited_for() -> None:
    host = make_departure()
    host.cut_power("w1", is_noticed=False)
    refused(host, "remove", "w1", "--yes", code="node-silent")
    host.notice("w1")
    removed(host, "w1")


def test_a_node_whose_port_is_closed_to_this_one_lives_if_it_renews_its_lease() -> None:
    host = make_departure()
    host.served.clear()
    host.add_pod("w1", "web-1")
    ended = removed(host, "w1")
    assert "POST api/v1/namespaces/app/pods/web-1/eviction" in host.sent and "on w1: kb reset" in ended.out


def test_a_worker_refuses() -> None:
    host = make_departure()
    for name in list(host.files):
        if "/manifests/" in name:
            del host.files[name]
    refused(host, "remove", "w1", "--yes", code="not-a-control-plane")


@pytest.mark.parametrize("words", [(), ("w1", "w2")])
def test_it_takes_one_name(words: tuple[str, ...]) -> None:
    refused(make_departure(), "remove", *words, code="usage")


@pytest.mark.parametrize(("is_older", "shortest_s", "longest_s"), [(False, 0, 10), (True, 90, 110)])
def test_the_load_balancers_are_told_to_spare_it_until_they_have_forgotten_it(
    is_older: bool, shortest_s: float, longest_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper of an older kb does not say so."""
    host = make_departure()
    meta: dict[str, Any] = {"name": "kb-load-balancer-w1", "namespace": "kube-system", "uid": "u"}
    meta.update(labels={"component": "kb-load-balancer"}, annotations={eviction.MIRROR: "hash"})
    host.cluster.objects[f"{PODS.format('kube-system')}/kb-load-balancer-w1"] = {
        "kind": "Pod", "metadata": meta, "spec": {"nodeName": "w1"}, "status": {"phase": "Running"},
    }  # fmt: skip
    slept = host.sleep

    def follow(seconds: float) -> None:
        slept(seconds)
        marks = drain_marks.parse_config_map(host.cluster.objects.get(drain_marks.PATH))
        gone = [] if is_older else [one for one in marks if marks[one].startswith("gone:") and one not in host.others]
        text = drain_marks.render_annotation({**marks, **dict.fromkeys(gone, "forgotten")})
        if f"{NODES}/w1" in host.cluster.objects:
            host.cluster.objects[f"{NODES}/w1"]["metadata"]["annotations"] = {drain_marks.ANNOTATION: text}

    monkeypatch.setattr(host, "sleep", follow)
    key = drain_marks.key_of("10.0.0.13:6443")
    since = host.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mark = {"metadata": {"name": drain_marks.NAME}, "data": {key: drain_marks.render_mark("10.0.0.13:6443", since)}}
    host.cluster.objects[drain_marks.PATH] = {"kind": "ConfigMap", **mark}
    began = host.ticks
    removed(host, "cp3")
    assert shortest_s <= host.ticks - began <= longest_s
    assert host.cluster.objects[drain_marks.PATH]["data"] == {}
    began = host.ticks
    removed(host, "w1")
    assert host.ticks - began < 10


# ---- again, and after a kill


@pytest.mark.parametrize("name", ["w1", "cp3"])
def test_once_more_is_no_error_and_changes_nothing(name: str) -> None:
    host = make_departure()
    removed(host, name)
    host.sent.clear()
    ended = removed(host, name)
    assert host.sent == [] and f"the cluster has no node {name}" in ended.err and "nothing to do" in ended.err


def _rounds(*, is_dead: bool, name: str) -> list[Departure]:
    """The same removal, killed before each of its changes."""
    made = []
    for number in range(1, 40):
        host = make_departure()
        host.leads = 3
        host.add_pod(name, "web-1")
        host.add_volume(name, "disk-1")
        if is_dead:
            host.leads = 1
            host.cut_power(name)
        host.kills_at = number
        with contextlib.suppress(Gone):
            kb(host, "remove", name, "--yes")
        if not host.is_dead:
            break
        host.kills_at = 0
        host.revive(1.0)
        made.append(host)
    return made


@pytest.mark.parametrize(("name", "is_dead"), [("w1", False), ("w1", True), ("cp3", False), ("cp3", True)])
def test_killed_before_any_change_the_same_command_goes_on(name: str, is_dead: bool) -> None:
    rounds = _rounds(is_dead=is_dead, name=name)
    assert len(rounds) >= 5
    for host in rounds:
        removed(host, name)
        gone = [path for path in left_of(host, name) if "volumeattachments" not in path]
        assert gone == [] and host.list_names("Pod") == [] and host.leases == {}
        assert name not in host.member_names() and "cp1" in host.member_names()


# ---- looks


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_dry_run_says_what_would_be_done(is_dead: bool) -> None:
    host = make_departure()
    host.add_pod("cp3", "web-1")
    if is_dead:
        host.cut_power("cp3")
    before = json.dumps(host.cluster.objects)
    ended = kb(host, "remove", "cp3", "--dry-run")
    assert ended.status == 0, ended.err
    for part in ("pods/web-1", "member/remove", "DELETE https://10.0.0.11:6443/api/v1/nodes/cp3"):
        assert part in ended.out, ended.out
    assert ended.out.endswith("nothing was changed\n")
    assert host.sent == [] and json.dumps(host.cluster.objects) == before and host.leases == {}


def test_its_result_for_programs() -> None:
    host = make_departure()
    told: Any = json.loads(removed(host, "w1", "-o", "json").out)
    assert told["node"] == "w1" and told["wasFound"] == "living"
    assert told["remaining"] and told["remaining"][0].startswith("on w1: kb reset")


def test_joining_nodes_are_sent_to_another_control_plane() -> None:
    host = make_departure()
    host.add_config("kb-api.cluster.local:7443", called="10.0.0.13:6443")
    removed(host, "cp3")
    maps = host.cluster.by_kind("ConfigMap")
    assert "10.0.0.11:6443" in maps["cluster-info"]["data"]["kubeconfig"]
    assert "10.0.0.11:6443" in maps["kube-proxy"]["data"]["kubeconfig.conf"]


def test_leases_of_its_api_server_go_too() -> None:
    host = make_departure()
    labels = {"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": "cp3"}
    path = f"{LEASES.format('kube-system')}/apiserver-abc"
    host.cluster.objects[path] = {"kind": "Lease", "metadata": {"name": "apiserver-abc", "labels": labels}, "spec": {}}
    removed(host, "cp3")
    assert path not in host.cluster.objects


# ---- drain and uncordon


def test_drain_and_uncordon() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.add_pod("w1", "agent", owner="DaemonSet")
    ended = kb(host, "drain", "w1")
    assert ended.status == 0, ended.err
    assert host.list_names("Pod") == ["agent"]
    assert "evicted: app/web-1" in ended.out and "kb node uncordon w1" in ended.out
    node = host.cluster.objects[f"{NODES}/w1"]
    assert node["spec"]["unschedulable"] and not node["metadata"].get("annotations"), (
        "an upgrade leaves this cordon alone"
    )
    assert "node w1 takes pods again" in kb(host, "uncordon", "w1").out
    assert not host.cluster.objects[f"{NODES}/w1"]["spec"].get("unschedulable")
    assert "node w1 was not cordoned" in kb(host, "uncordon", "w1").out


def test_this_node_is_drained_if_none_is_named() -> None:
    host = make_departure()
    host.add_pod("cp1", "web-1")
    assert json.loads(kb(host, "drain", "-o", "json").out) == {"dryRun": False, "node": "cp1", "evicted": ["app/web-1"]}


@pytest.mark.parametrize("was_cordoned", [False, True])
def test_a_drain_that_a_budget_refuses_leaves_the_node_as_it_was(was_cordoned: bool) -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    host.guarded.add("web-1")
    host.cluster.objects[f"{NODES}/w1"]["spec"] = {"unschedulable": True} if was_cordoned else {}
    ended = kb(host, "drain", "w1", "--drain-timeout", "10s")
    assert "code:   pods-not-evicted\n" in ended.err
    assert bool(host.cluster.objects[f"{NODES}/w1"]["spec"].get("unschedulable")) is was_cordoned


def test_pods_that_nothing_makes_anew_are_asked_for() -> None:
    host = make_departure()
    host.add_pod("w1", "lonely", owner="")
    refused(host, "drain", "w1", code="not-confirmed")
    assert kb(host, "drain", "w1", "--yes").status == 0 and host.list_names("Pod") == []


def test_a_dry_run_of_a_drain_changes_nothing() -> None:
    host = make_departure()
    host.add_pod("w1", "web-1")
    ended = kb(host, "drain", "w1", "--dry-run")
    assert "would evict: app/web-1" in ended.out and host.sent == []


def test_an_unknown_node_is_refused() -> None:
    refused(make_departure(), "drain", "w9", code="node-not-registered")
    refused(make_departure(), "uncordon", "w9", code="node-not-registered")


# ---- replace


@pytest.mark.parametrize(("name", "is_control_plane"), [("w1", False), ("cp3", True)])
def test_the_lines_for_a_machine_in_the_place_of_another(
    monkeypatch: pytest.MonkeyPatch, name: str, is_control_plane: bool
) -> None:
    host = make_departure()
    host.files["/etc/kubernetes/pki/ca.key"] = b"key"
    asked: list[Any] = []
    monkeypatch.setattr(token, "upload_certs", lambda *args, key, **more: asked.append(key.reveal()))
    monkeypatch.setattr(token, "_join_command", lambda *args, token, **more: f"kb join --token {token.token.reveal()}")
    ended = kb(host, "replace", name)
    assert ended.status == 0, ended.err
    here, there = ended.out.splitlines()
    assert here == f"here: kb node remove {name} --yes" and there.startswith("on the new machine: kb join --token ")
    assert bool(asked) is is_control_plane
    (secret,) = host.list_names("Secret")
    assert secret.startswith("bootstrap-token-") and secret.rpartition("-")[2] in there


def test_a_line_that_names_the_mirror_of_the_one_that_leaves_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_departure()
    monkeypatch.setattr(ca_pins, "ca_cert_hashes", lambda _: ("sha256:aa",))
    text = containerd_hosts.render_hosts(
        "registry.k8s.io", containerd_hosts.Mirror("https://10.0.0.13:5000"), is_only=False
    )
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = text.encode()
    host.files["/etc/kubernetes/pki/ca.key"] = b"key"
    monkeypatch.setattr(token, "upload_certs", lambda *args, **more: None)
    ended = kb(host, "replace", "cp3")
    assert ended.status == 0 and "--mirror https://10.0.0.13:5000 --control-plane" in ended.out, ended.err
    assert "https://10.0.0.13:5000 runs on cp3 and goes with it" in ended.err and "kb mirror move" in ended.err
    assert "goes with it" not in kb(host, "replace", "w1").err


def test_what_could_not_be_removed_is_not_replaced() -> None:
    refused(make_departure(), "replace", "cp1", code="node-is-this-one")
    refused(make_departure(), "replace", "w9", code="node-not-registered")
