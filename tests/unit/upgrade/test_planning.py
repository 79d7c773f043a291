"""kubeup/upgrade/planning.py: what changes on which node, what is away meanwhile, and the lines in order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeup import releases
from kubeup.upgrade import planning
from kubeup.upgrade.planning import Change, Gap, Line, Wanted
from kubeup.upgrade.survey import NodeSeen, Seen, Versions

OLD, NEW = "v1.35.6", "v1.36.3"


def versions(*control_planes: str, workers: tuple[str, ...] = (), kubelets: str = "", stored: str = OLD) -> Versions:
    """control_planes: the version of cp1, cp2 ...; workers: of the kubelets of w1, w2 ..."""
    seen, nodes = [], []
    for number, version in enumerate(control_planes, 1):
        name = f"cp{number}"
        nodes.append(NodeSeen(name, is_control_plane=True, is_ready=True))
        seen += [
            Seen(one, version, name, f"10.0.0.1{number}:6443")
            for one in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        ]
        seen.append(Seen("etcd", "3.6.6" if version == OLD else "3.6.8", name))
        seen += [Seen("kubelet", kubelets or version, name), Seen("container-runtime", "2.1.4", name, "containerd")]
    for number, version in enumerate(workers, 1):
        nodes.append(NodeSeen(f"w{number}", is_control_plane=False, is_ready=True))
        seen.append(Seen("kubelet", version, f"w{number}"))
    seen += [Seen("kube-proxy", OLD), Seen("coredns", "v1.13.1")]
    return Versions(tuple(seen), stored=stored, nodes=tuple(nodes))


def wanted(target: str = NEW, own: str = "cp1") -> Wanted:
    version = releases.parse_version(target)
    assert version is not None
    release = releases.find_release(target)
    return Wanted(version, release.etcd_tag, release.coredns_tag, own, api_gap_s=10, etcd_gap_s=15)


def lines(found: Versions, *, own: str = "cp1") -> list[Line]:
    want = wanted(own=own)
    return list(planning.plan_lines(planning.plan_changes(found, want), found, wanted=want))


def test_changes_are_shown_by_node_and_in_the_order_in_which_they_happen() -> None:
    found = planning.plan_changes(versions(OLD, workers=(OLD,)), wanted())
    assert found == (
        Change("etcd", "cp1", "3.6.6", "3.6.8", True),
        Change("kube-apiserver", "cp1", OLD, NEW, True),
        Change("kube-controller-manager", "cp1", OLD, NEW, True),
        Change("kube-scheduler", "cp1", OLD, NEW, True),
        Change("kubelet", "cp1", OLD, NEW, True),
        Change("container-runtime", "cp1", "containerd 2.1.4", "containerd 2.1.4", False),
        Change("kubelet", "w1", OLD, NEW, True),
        Change("kube-proxy", "", OLD, NEW, True),
        Change("coredns", "", "v1.13.1", "v1.14.2", True),
    )


def test_what_is_newer_than_the_release_brings_stays() -> None:
    found = versions(OLD)
    seen = [
        replace(one, version={"etcd": "3.6.11", "coredns": "v1.14.3"}.get(one.component, one.version))
        for one in found.seen
    ]
    changes = planning.plan_changes(replace(found, seen=tuple(seen)), wanted())
    assert {one.component: one.restarts for one in changes if one.component in ("etcd", "coredns")} == {
        "etcd": False,
        "coredns": False,
    }


def test_an_etcd_of_the_same_version_in_another_image_restarts() -> None:
    found = Versions((Seen("etcd", "3.6.8", "cp2", tag="3.6.6-0"), Seen("etcd", "3.6.8", "cp3", tag="3.6.8-0")))
    assert [(one.node, one.restarts) for one in planning.plan_changes(found, wanted())] == [
        ("cp2", True),
        ("cp3", False),
    ]


def test_a_static_pod_of_this_node_that_differs_restarts() -> None:
    found = Versions((Seen("kube-scheduler", NEW, "cp1"), Seen("kube-scheduler", NEW, "cp2")))
    want = replace(wanted(), replaced=("kube-scheduler",))
    assert [(one.node, one.restarts) for one in planning.plan_changes(found, want)] == [("cp1", True), ("cp2", False)]


def test_an_external_etcd_is_left_to_its_operator() -> None:
    found = Versions((Seen("etcd", "3.5.30", place="https://10.0.0.31:2379"),), etcd_is_external=True)
    assert planning.plan_changes(found, wanted()) == (
        Change("etcd", "https://10.0.0.31:2379", "3.5.30", "3.5.30", False),
    )


# ---- the lines


def test_this_control_plane_first_then_the_others_then_the_workers() -> None:
    found = lines(versions(OLD, OLD, OLD, workers=(OLD, OLD)), own="cp2")
    assert found == [Line("cp2", f"apply {NEW}"), *(Line(name, "node") for name in ("cp1", "cp3", "w1", "w2"))]


def test_what_is_done_already_is_left_out() -> None:
    assert lines(versions(NEW, OLD, workers=(NEW, OLD), stored=NEW), own="cp2") == [
        Line("cp2", "node"),
        Line("w2", "node"),
    ]
    assert lines(versions(NEW, OLD, stored=NEW), own="cp1") == [Line("cp1", f"apply {NEW}"), Line("cp2", "node")]
    done = versions(NEW, workers=(NEW,), stored=NEW)
    done = replace(done, seen=(*done.seen[:-2], Seen("kube-proxy", NEW), Seen("coredns", "v1.14.2")))
    assert lines(done) == []


def test_addons_that_are_left_behind_want_an_apply() -> None:
    assert lines(versions(NEW, stored=NEW)) == [Line("cp1", f"apply {NEW}")]


# ---- what is away


def gaps(found: Versions, *, target: str = NEW) -> list[tuple[str, int]]:
    want = wanted(target)
    return [
        (one.node, one.seconds) for one in planning.plan_gaps(planning.plan_changes(found, want), found, wanted=want)
    ]


def test_gaps() -> None:
    assert gaps(versions(OLD)) == [("cp1", 15), ("cp1", 0)]
    assert gaps(versions(OLD, OLD)) == [("cp1", 15), ("cp1", 0), ("cp2", 15), ("cp2", 0)]
    assert gaps(versions(OLD, OLD, OLD, workers=(OLD,))) == [*((f"cp{n}", 0) for n in (1, 1, 2, 2, 3, 3)), ("w1", 0)]


def test_an_api_server_alone_beside_an_external_etcd() -> None:
    found = versions(OLD)
    external = replace(found, seen=tuple(one for one in found.seen if one.component != "etcd"), etcd_is_external=True)
    assert gaps(external) == [("cp1", 10), ("cp1", 0)]


def test_a_patch_drains_nothing_and_says_so() -> None:
    found = versions("v1.36.1", workers=("v1.36.1",))
    want = wanted()
    told = list(planning.plan_gaps(planning.plan_changes(found, want), found, wanted=want))
    assert told[-1] == Gap("w1", 0, "the kubelet restarts; pods keep running")
    assert not planning.needs_drain(found, want.version)
    assert planning.needs_drain(versions(OLD), want.version)


# ---- room, nodes, and what was seen


def test_room_for_the_way_back() -> None:
    assert planning.judge_room("cp1", free=2 << 30, database=512 << 20, place="/var/lib/kb") is None
    found = planning.judge_room("cp1", free=1 << 30, database=512 << 20, place="/var/lib/kb")
    assert found is not None and found.trouble.what == "/var/lib/kb of cp1 has 1024 MiB of free space"


def test_nodes_that_are_not_ready_or_cordoned() -> None:
    nodes = (
        NodeSeen("w1", False, is_ready=False),
        NodeSeen("w2", False, True, is_cordoned=True),
        NodeSeen("w3", False, True),
        NodeSeen("w4", False, True, turn="v1.36.3 since 2026-11-30T08:00:00Z"),
    )
    found = list(planning.say_not_ready(Versions((), nodes=nodes)))
    assert [(one.name, one.node, one.weighs) for one in found] == [
        ("node-not-ready", "w1", "skippable"),
        ("node-cordoned", "w2", "said"),
        ("upgrade-under-way", "w4", "said"),
    ]
    assert "kubectl annotate node w4 kb.io/upgrade-" in found[-1].trouble.remedy


def test_what_moved_is_named() -> None:
    then = planning.seen_of(versions(OLD), target=NEW, texts={"kubeadm-config": "a", "/x of cp1": ""})
    now = planning.seen_of(versions(NEW, workers=(OLD,)), target=NEW, texts={"kubeadm-config": "b", "/x of cp1": "c"})
    assert planning.digest_of(then) != planning.digest_of(now)
    assert list(planning.find_moved(then, then)) == []
    assert list(planning.find_moved(then, now)) == [
        "/x of cp1 has changed",
        "etcd of cp1 was 3.6.6 and is 3.6.8",
        "kube-apiserver of cp1 was v1.35.6 and is v1.36.3",
        "kube-controller-manager of cp1 was v1.35.6 and is v1.36.3",
        "kube-scheduler of cp1 was v1.35.6 and is v1.36.3",
        "kubeadm-config has changed",
        "kubelet of cp1 was v1.35.6 and is v1.36.3",
        "kubelet of w1 is new",
    ]


@pytest.mark.parametrize("text", ["a: b\n", ""])
def test_no_text_is_kept(text: str) -> None:
    assert text not in planning.seen_of(versions(OLD), target=NEW, texts={"kubeadm-config": text or "x"}).values()
