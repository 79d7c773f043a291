"""kubeup/upgrade/changed_config.py: the stored document after a change, and what a running cluster cannot follow."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.config.load_join import parse_stored_cluster
from kubeup.config.types import Arg, ClusterConfiguration
from kubeup.errors import ClusterError, UsageError
from kubeup.upgrade.changed_config import (
    Wish,
    carry_over,
    change_document,
    changed_args,
    find_fixed,
    find_unnamed,
    parse_wish,
    refuse_fixed,
    render_difference,
)
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_host import FakeHost
from tests.unit.golden import golden_text

STORED: dict[str, Any] = load_yaml(golden_text(35, "cluster-configuration.yaml"))


def args_of(document: Any, part: str = "apiServer") -> list[tuple[str, str]]:
    return [(one["name"], one["value"]) for one in document[part].get("extraArgs", ())]


def wish(*sets: str, unset: tuple[str, ...] = (), part: str = "apiserver") -> Wish:
    return parse_wish(part, sets=sets, unsets=unset)


def parse(document: Any) -> ClusterConfiguration:
    return parse_stored_cluster(FakeHost(), dump_yaml(document), warnings=[])


def with_args(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {**STORED, "apiServer": {"extraArgs": [{"name": name, "value": value} for name, value in pairs]}}


# ---- the command line


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("v=4", "v", "4"),
        ("--v=4", "v", "4"),
        ("audit-log-path=", "audit-log-path", ""),
        ("a=b=c", "a", "b=c"),
        ("enable-admission-plugins=NodeRestriction,PodSecurity", "enable-admission-plugins", "NodeRestriction,PodSecurity"),
        ("issuer='x y'", "issuer", "'x y'"),
    ],
)  # fmt: skip
def test_a_setting_is_taken_as_it_is_written(text: str, name: str, value: str) -> None:
    assert wish(text).sets == (Arg(name, value),)


@pytest.mark.parametrize("text", ["v", "", "=4", "-v=4", "a b=1", "'v=4'", "a,b=1", "v=1\n2"])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        wish(text)
    assert caught.value.code == "bad-setting"


def test_a_name_is_set_or_unset() -> None:
    with pytest.raises(UsageError, match="--set and --unset of v"):
        wish("v=4", unset=("--v",))


# ---- arguments


def test_an_argument_of_a_component_that_has_none() -> None:
    changed = change_document(STORED, wish("v=4"))
    assert args_of(changed) == [("v", "4")]
    assert {**changed, "apiServer": {}} == STORED
    assert change_document(changed, wish("v=4")) == changed
    assert change_document(changed, wish(unset=("v",))) == STORED


def test_an_argument_keeps_its_place_and_the_others_theirs() -> None:
    changed = change_document(with_args(("a", "1"), ("v", "2"), ("b", "3")), wish("v=4", "c=5"))
    assert args_of(changed) == [("a", "1"), ("v", "4"), ("b", "3"), ("c", "5")]


def test_the_same_argument_twice_is_two_arguments_in_their_order() -> None:
    changed = change_document(STORED, wish("service-account-issuer=b", "service-account-issuer=a"))
    assert args_of(changed) == [("service-account-issuer", "b"), ("service-account-issuer", "a")]
    again = change_document(changed, wish("service-account-issuer=c"))
    assert args_of(again) == [("service-account-issuer", "c")]


@pytest.mark.parametrize("args", [{"v": "3"}, ["v=3"], "v=3", [None]])
def test_stored_arguments_that_somebody_has_edited_into_none(args: Any) -> None:
    """In the form of v1beta3, for example."""
    with pytest.raises(ClusterError) as caught:
        change_document({"scheduler": {"extraArgs": args}}, parse_wish("scheduler", sets=["v=4"], unsets=[]))
    assert caught.value.code == "stored-config-invalid" and "kube-scheduler" in caught.value.what


def test_etcd_is_below_its_kind() -> None:
    changed = change_document(STORED, wish("max-txn-ops=256", part="etcd"))
    assert changed["etcd"]["local"]["extraArgs"] == [{"name": "max-txn-ops", "value": "256"}]
    assert changed["etcd"]["local"]["dataDir"] == "/var/lib/etcd"


@pytest.mark.parametrize(
    ("former", "wanted", "now", "then"),
    [
        ({"a": 1}, {"a": 2}, {"a": 1, "b": 5}, {"a": 2, "b": 5}),
        ({"a": 1}, {}, {"a": 1, "b": 5}, {"b": 5}),
        ({}, {"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"y": 2, "x": 1}}),
        ({"a": {"x": 1, "z": 3}}, {"a": {"x": 2}}, {"a": {"x": 1, "y": 2, "z": 3}}, {"a": {"x": 2, "y": 2}}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 2, 4]}, {"a": [1, 4, 3]}),
        ({"a": [1]}, {}, {"a": [1, 4]}, {"a": [4]}),
        ({"a": [1]}, {"a": [2]}, {"a": [2]}, {"a": [2]}),
        ({"a": [1]}, {"a": [2]}, {"a": [1]}, {"a": [2]}),
        ({"a": 1}, {"a": 1}, {"a": 7}, {"a": 7}),
    ],
)
def test_a_change_is_carried_over_to_what_others_have_changed_meanwhile(
    former: Any, wanted: Any, now: Any, then: Any
) -> None:
    assert carry_over(now, former=former, wanted=wanted) == then
    assert carry_over(then, former=former, wanted=wanted) == then


def test_fields_of_a_newer_kubeadm_stay() -> None:
    changed = change_document({**STORED, "newField": {"a": 1}}, wish("v=4"))
    assert changed["newField"] == {"a": 1}


# ---- the fields of a file


def test_what_a_file_names_is_as_it_is_there_and_the_rest_stays() -> None:
    before = {**with_args(("v", "2")), "featureGates": {"A": True}}
    fields = {"scheduler": {"extraArgs": [{"name": "v", "value": "3"}]}, "imageRepository": "mirror.local/k8s"}
    changed = change_document(before, Wish(cluster=fields))
    assert (args_of(changed), args_of(changed, "scheduler")) == ([("v", "2")], [("v", "3")])
    assert (changed["imageRepository"], changed["featureGates"]) == ("mirror.local/k8s", {"A": True})
    assert changed["networking"] == STORED["networking"]


def test_a_list_of_a_file_replaces_the_stored_one_and_an_empty_one_is_none() -> None:
    before = with_args(("v", "2"), ("a", "1"))
    kept = change_document(before, Wish(cluster={"apiServer": {"extraArgs": [{"name": "a", "value": "1"}]}}))
    assert args_of(kept) == [("a", "1")]
    assert change_document(before, Wish(cluster={"apiServer": {"extraArgs": []}})) == STORED
    assert list(find_unnamed(before, {"scheduler": {}})) == ["apiServer.extraArgs"]
    assert not list(find_unnamed(before, {"apiServer": {"extraArgs": []}}))


# ---- what cannot be changed


@pytest.mark.parametrize(
    ("fields", "what", "way"),
    [
        ({"networking": {"serviceSubnet": "10.97.0.0/16"}}, "networking.serviceSubnet", "make a new cluster"),
        ({"networking": {"podSubnet": "10.245.0.0/16"}}, "networking.podSubnet", "make a new cluster"),
        ({"networking": {"dnsDomain": "other.local"}}, "networking.dnsDomain", "make a new cluster"),
        ({"clusterName": "other"}, "clusterName", "make a new cluster"),
        ({"kubernetesVersion": "v1.35.7"}, "kubernetesVersion", "kb upgrade apply"),
        ({"controlPlaneEndpoint": "api.local:6443"}, "controlPlaneEndpoint", "kb reconfigure endpoint"),
        ({"certificatesDir": "/etc/pki"}, "certificatesDir", "leave them"),
        ({"encryptionAlgorithm": "ECDSA-P256"}, "encryptionAlgorithm", "leave it"),
        ({"etcd": {"local": {"dataDir": "/data"}}}, "etcd.local.dataDir", "join it again"),
        ({"etcd": {"external": {"endpoints": ["https://e:2379"]}}}, "etcd cannot be changed from local", "new cluster"),
        ({"dns": {"disabled": True}}, "dns.disabled", "kubectl"),
        ({"apiServer": {"extraArgs": [{"name": "service-cluster-ip-range", "value": "1.2.3.0/24"}]}}, "--service-cluster-ip-range of kube-apiserver", "new cluster"),
        ({"controllerManager": {"extraArgs": [{"name": "cluster-cidr", "value": "1.2.3.0/24"}]}}, "--cluster-cidr", "new cluster"),
    ],
)  # fmt: skip
def test_what_a_running_cluster_cannot_follow(fields: dict[str, Any], what: str, way: str) -> None:
    after = change_document(STORED, Wish(cluster=fields))
    with pytest.raises(UsageError) as caught:
        refuse_fixed(parse(STORED), parse(after))
    assert caught.value.code == "not-changeable"
    assert what in caught.value.what
    assert way in caught.value.remedy
    assert "nothing was changed" in caught.value.cause


def test_everything_that_cannot_be_changed_is_said_at_once() -> None:
    fields = {"clusterName": "other", "networking": {"dnsDomain": "other.local"}}
    with pytest.raises(UsageError) as caught:
        refuse_fixed(parse(STORED), parse(change_document(STORED, Wish(cluster=fields))))
    assert len(caught.value.details) == 1


def test_the_same_in_another_spelling_is_no_change() -> None:
    fields = {"kubernetesVersion": "1.35.6", "networking": {"podSubnet": "10.244.0.0/16"}}
    assert not list(find_fixed(parse(STORED), parse(change_document(STORED, Wish(cluster=fields)))))


def test_what_was_stored_before_may_stay() -> None:
    before = with_args(("secure-port", "7443"))
    assert not list(find_fixed(parse(before), parse(change_document(before, wish("v=4")))))


def test_external_members_may_change_while_one_stays() -> None:
    def external(*names: str) -> ClusterConfiguration:
        urls = [f"https://{name}:2379" for name in names]
        return parse({**STORED, "etcd": {"external": {"endpoints": urls}}})

    assert not list(find_fixed(external("a", "b"), external("b", "c")))
    assert [one.what for one in find_fixed(external("a"), external("b"))] == [
        "etcd.external.endpoints has none of the present members"
    ]


def test_the_arguments_that_differ() -> None:
    before, after = parse(with_args(("v", "2"), ("a", "1"))), parse(with_args(("v", "2"), ("v", "3"), ("a", "1")))
    assert changed_args(before, after) == {"apiserver": {"v"}}


def test_the_difference_of_two_texts() -> None:
    shown = render_difference("a\nb\n", "a\nc", name="x.yaml")
    assert shown.splitlines() == ["--- x.yaml (now)", "+++ x.yaml", "@@ -1,2 +1,2 @@", " a", "-b", "+c"]
    assert not render_difference("a\n", "a\n", name="x.yaml")
