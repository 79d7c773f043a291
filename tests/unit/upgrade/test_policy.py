"""kubeup/upgrade/policy.py: which version may follow which, case by case."""

from __future__ import annotations

import pytest

from kubeup import releases
from kubeup.upgrade import policy
from kubeup.upgrade.objection import MANDATORY, SAID, SKIPPABLE, find_blockers
from kubeup.upgrade.policy import Wish
from kubeup.upgrade.survey import API_SERVER, ETCD, KUBE_PROXY, KUBELET, RUNTIME, Seen, Versions


def cluster(
    *servers: str,
    kubelets: tuple[str, ...] = (),
    etcd: tuple[str, ...] = (),
    proxy: str = "",
    runtimes: tuple[str, ...] = (),
    external: bool = False,
    etcd_tag: str = "",
) -> Versions:
    """servers: of cp1, cp2 ...; kubelets and etcd likewise; runtimes as a Node reports them."""
    seen = [Seen(API_SERVER, one, f"cp{n}", f"10.0.0.1{n}:6443") for n, one in enumerate(servers, 1)]
    seen += [Seen(KUBELET, one, f"n{n}") for n, one in enumerate(kubelets, 1)]
    seen += [Seen(ETCD, one, f"cp{n}", f"10.0.0.1{n}:2379") for n, one in enumerate(etcd, 1)]
    seen += [Seen(KUBE_PROXY, proxy)] if proxy else []
    for n, one in enumerate(runtimes, 1):
        name, _, version = one.partition("://")
        seen.append(Seen(RUNTIME, version, f"n{n}", name))
    return Versions(tuple(seen), etcd_is_external=external, etcd_tag=etcd_tag)


CASES = [
    # the cluster, the target, what is objected to, as (name, weight)
    pytest.param(cluster("v1.35.6"), "v1.36.3", [], id="a minor up"),
    pytest.param(cluster("v1.35.6"), "1.35.7", [], id="a patch up"),
    pytest.param(cluster("v1.35.6"), "v1.35.6", [], id="the same again"),
    pytest.param(cluster("v1.36.3", "v1.35.6"), "v1.36.3", [], id="half upgraded, to be finished"),
    pytest.param(cluster("v1.34.9"), "v1.36.3", [("version-too-high", MANDATORY)], id="two minors up"),
    pytest.param(
        cluster("v1.34.9"),
        "v1.36.0-rc.1",
        [("version-too-high", SKIPPABLE), ("unstable-version", SKIPPABLE)],
        id="two minors up to a pre-release",
    ),
    pytest.param(
        cluster("v1.35.6", "v1.34.9"), "v1.36.3", [("api-server-left-behind", MANDATORY)], id="a server left behind"
    ),
    pytest.param(cluster("v1.36.3"), "v1.35.6", [("downgrade", MANDATORY)], id="a minor down"),
    pytest.param(cluster("v1.35.6"), "v1.35.5", [("downgrade", SKIPPABLE)], id="a patch down"),
    pytest.param(cluster("v1.36.3", "v1.35.6"), "v1.35.6", [("downgrade", MANDATORY)], id="half upgraded, back"),
    pytest.param(cluster("v1.35.6"), "v1.36.0-beta.1", [("unstable-version", SKIPPABLE)], id="a pre-release"),
    pytest.param(cluster("v1.35.6"), "v1.99.0", [("unsupported-version", MANDATORY)], id="a version nobody knows"),
    pytest.param(cluster("v1.35.6"), "next", [("unsupported-version", MANDATORY)], id="no version"),
    pytest.param(cluster(""), "v1.36.3", [("cluster-version-unknown", MANDATORY)], id="no API server answers"),
    pytest.param(cluster("v1.35.6", kubelets=("v1.33.0", "v1.35.6")), "v1.36.3", [], id="kubelets three minors older"),
    pytest.param(
        cluster("v1.35.6", kubelets=("v1.32.9", "v1.35.6")),
        "v1.36.3",
        [("kubelet-too-old", SKIPPABLE)],
        id="a kubelet four minors older",
    ),
    pytest.param(
        cluster("v1.34.9", kubelets=("v1.36.3",)), "v1.35.6", [("kubelet-too-new", SKIPPABLE)], id="a newer kubelet"
    ),
    pytest.param(cluster("v1.34.9", kubelets=("v1.35.6",)), "v1.35.6", [], id="a kubelet that is there already"),
    pytest.param(cluster("v1.35.6", proxy="v1.33.0"), "v1.36.3", [], id="kube-proxy three minors older"),
    pytest.param(
        cluster("v1.35.6", proxy="v1.32.0"), "v1.36.3", [("kube-proxy-skew", SKIPPABLE)], id="an old kube-proxy"
    ),
    pytest.param(
        cluster("v1.34.9", proxy="v1.36.0"), "v1.35.6", [("kube-proxy-skew", SKIPPABLE)], id="a new kube-proxy"
    ),
    # etcd: 1.33 comes with 3.5.24, and 1.34 with 3.6
    pytest.param(cluster("v1.33.9", etcd=("3.5.24",)), "v1.34.9", [("etcd-hop", MANDATORY)], id="etcd before its hop"),
    pytest.param(
        cluster("v1.33.9", etcd=("3.5.32", "3.5.25", "3.5.32")), "v1.34.9", [("etcd-hop", MANDATORY)], id="one member"
    ),
    pytest.param(cluster("v1.33.9", etcd=("3.5.26",)), "v1.34.9", [("etcd-hop-advised", SAID)], id="etcd just enough"),
    pytest.param(cluster("v1.33.9", etcd=("3.5.32",) * 3), "v1.34.9", [], id="etcd after its hop"),
    pytest.param(cluster("v1.33.9", etcd=("3.6.5", "3.5.32")), "v1.34.9", [], id="etcd half way"),
    pytest.param(cluster("v1.33.9", etcd=("3.5.24",)), "v1.33.12", [], id="etcd within its minor"),
    pytest.param(cluster("v1.33.9", etcd=("3.5.24",), etcd_tag="3.5.24-0"), "v1.34.9", [], id="an etcd that is pinned"),
    pytest.param(
        cluster("v1.33.9", etcd=("3.5.26",), etcd_tag="3.6.5-0"),
        "v1.33.9",
        [("etcd-hop-advised", SAID)],
        id="pinned up",
    ),
    pytest.param(cluster("v1.33.9", etcd=("3.4.30",)), "v1.34.9", [("etcd-leap", MANDATORY)], id="etcd two minors up"),
    pytest.param(cluster("v1.35.6", etcd=("3.7.1",)), "v1.36.3", [("etcd-newer", SAID)], id="an etcd that is newer"),
    pytest.param(
        cluster("v1.35.6", etcd=("3.5.20",), external=True),
        "v1.36.3",
        [("external-etcd-too-old", SKIPPABLE)],
        id="an external etcd",
    ),
    pytest.param(cluster("v1.35.6", etcd=("3.5.24",), external=True), "v1.36.3", [], id="external etcd, 3.5"),
    # runtimes: 1.37 does not run without the RuntimeConfig call
    pytest.param(cluster("v1.33.9", runtimes=("containerd://1.6.20~ds1",)), "v1.34.9", [], id="an old runtime"),
    pytest.param(
        cluster("v1.34.9", runtimes=("containerd://1.6.20~ds1",)), "v1.35.6", [("runtime-old", SAID)], id="it is told"
    ),
    pytest.param(
        cluster("v1.36.3", runtimes=("containerd://1.7.24", "containerd://2.1.4", "cri-o://1.27.1")),
        "v1.37.0",
        [("runtime-too-old", MANDATORY), ("runtime-too-old", MANDATORY), ("version-not-proven", SAID)],
        id="runtimes too old",
    ),
]


@pytest.mark.parametrize(("versions", "target", "wanted"), CASES)
def test_judge(versions: Versions, target: str, wanted: list[tuple[str, str]]) -> None:
    found = policy.judge(versions, target)
    assert [(one.name, one.weighs) for one in found] == wanted
    for one in found:
        assert one.trouble.what and one.trouble.cause and one.trouble.remedy


def test_what_does_not_answer() -> None:
    versions = Versions(
        (
            Seen(API_SERVER, "v1.35.6", "cp1", "10.0.0.11:6443"),
            Seen(API_SERVER, "", "cp2", "10.0.0.12:6443", "it is away"),
            Seen(ETCD, "", unknown="no member of etcd answers"),
        )
    )
    found = policy.judge(versions, "v1.36.3")
    assert [(one.name, one.weighs) for one in found] == [("does-not-answer", SKIPPABLE)] * 2


def test_pre_releases_that_are_wanted() -> None:
    versions = cluster("v1.35.6")
    assert policy.judge(versions, "v1.36.0-beta.1", allows_experimental=True) == ()
    assert policy.judge(versions, "v1.36.0-rc.1", allows_candidates=True) == ()
    assert [one.name for one in policy.judge(versions, "v1.36.0-beta.1", allows_candidates=True)] == [
        "unstable-version"
    ]


def test_the_hop_says_how_far_and_how() -> None:
    (found,) = policy.judge(cluster("v1.33.9", etcd=("3.5.24",)), "v1.34.9")
    assert str(found.trouble) == (
        "etcd member cp1 is 3.5.24: before 3.6.5 every member has to be 3.5.26 or newer (etcd advises 3.5.32)"
    )
    assert "imageTag: 3.5.32-0" in found.trouble.remedy


def test_what_concerns_one_node_keeps_only_that_one() -> None:
    found = policy.judge(cluster("v1.36.3", runtimes=("containerd://2.1.4", "containerd://1.7.24")), "v1.37.0")
    assert find_blockers(found) == []
    assert find_blockers(found, node="n1") == []
    assert [one.name for one in find_blockers(found, node="n2")] == ["runtime-too-old"]


def test_force_overrides_what_is_skippable_alone() -> None:
    found = policy.judge(cluster("v1.35.6", kubelets=("v1.30.0",)), "v1.35.5")
    assert {one.name for one in find_blockers(found)} == {"kubelet-too-old", "downgrade"}
    assert find_blockers(found, is_forced=True) == []
    down = policy.judge(cluster("v1.35.6"), "v1.34.9")
    assert [one.name for one in find_blockers(down, is_forced=True)] == ["downgrade"]


# ---- kubeadm's words: the rows of policy_test.go

KUBEADM = [
    # cluster, kubelet, kubeadm, target, beginnings of what is mandatory, of what is skippable
    ("v1.35.3", "v1.35.3", "v1.35.5", "v1.35.5", [], []),
    ("v1.35.3", "v1.35.3", "v1.36.3", "v1.36.3", [], []),
    ("v1.34.3", "v1.34.3", "v1.36.3", "v1.36.3", ['Specified version to upgrade to "v1.36.3" is too high'], []),
    (
        "v1.36.3",
        "v1.36.3",
        "v1.36.3",
        "v1.34.3",
        [
            'Specified version to upgrade to "v1.34.3" is equal to or lower',
            'Specified version to downgrade to "v1.34.3" is too low',
        ],
        ["Kubeadm version v1.36.3 can only be used to upgrade to Kubernetes version 1.36"],
    ),
    (
        "v1.35.3",
        "v1.35.3",
        "v1.35.3",
        "v1.35.5",
        [],
        ['Specified version to upgrade to "v1.35.5" is higher than the kubeadm version "v1.35.3"'],
    ),
    (
        "v1.35.3",
        "v1.35.3",
        "v1.35.3",
        "v1.36.3",
        [
            'Specified version to upgrade to "v1.36.3" is at least one minor release higher than the kubeadm minor release (36 > 35)'
        ],
        [],
    ),
    (
        "v1.35.3",
        "v1.35.3",
        "v1.36.3",
        "v1.36.0-rc.1",
        [],
        ['Specified version to upgrade to "v1.36.0-rc.1" is an unstable version'],
    ),
    (
        "v1.35.0",
        "v1.31.8",
        "v1.35.0",
        "v1.35.0",
        [],
        ["There are kubelets in this cluster that are too old that have these versions [v1.31.8]"],
    ),
    ("v1.35.0", "v1.32.8", "v1.35.0", "v1.35.0", [], []),
]


@pytest.mark.parametrize(("own", "kubelet", "kubeadm", "target", "mandatory", "skippable"), KUBEADM)
def test_kubeadms_words(
    own: str, kubelet: str, kubeadm: str, target: str, mandatory: list[str], skippable: list[str]
) -> None:
    version, tool, runs = (releases.parse_version(text) for text in (target, kubeadm, own))
    assert version and tool and runs
    release = releases.RELEASES[version.minor]
    wish = Wish(version, release, release.etcd_tag)
    found = policy.judge_as_kubeadm(cluster(own, kubelets=(kubelet,)), wish, kubeadm=tool, cluster=runs)
    for texts, wanted in ((found.mandatory, mandatory), (found.skippable, skippable)):
        assert len(texts) == len(wanted), texts
        assert all(text.startswith(begins) for text, begins in zip(texts, wanted)), texts
