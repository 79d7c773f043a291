from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.errors import UsageError
from kubeup.machine.local_host import LocalHost
from kubeup.node.patches import Patches, merge_json, order_items, read_patches
from tests.fake_host import FakeHost

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"labels": {"tier": "control-plane", "component": "etcd"}, "finalizers": ["a", "b"]},
    "spec": {
        "hostNetwork": True,
        "tolerations": [{"key": "x"}],
        "containers": [
            {
                "name": "etcd",
                "command": ["etcd", "--a=1", "--b=2"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"containerPort": 2381, "name": "probe-port"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "certs", "mountPath": "/certs"}],
                "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
            }
        ],
        "volumes": [
            {"name": "data", "hostPath": {"path": "/data", "type": "DirectoryOrCreate"}},
            {"name": "certs", "hostPath": {"path": "/certs"}},
        ],
    },
}


def folder(**files: Any) -> FakeHost:
    """A host with /p; names use __ for a dot and _plus_ for a +."""
    host = FakeHost()
    for name, body in files.items():
        text = body if isinstance(body, str) else json.dumps(body)
        host.files["/p/" + name.replace("__", ".").replace("_plus_", "+")] = text.encode()
    return host


def apply(body: Any, *, kind: str = "strategic", target: str = "etcd", obj: dict[str, Any] = POD) -> dict[str, Any]:
    host = FakeHost(files={f"/p/{target}+{kind}.yaml": json.dumps(body).encode()})
    before = copy.deepcopy(obj)
    result = read_patches(host, "/p").apply(target, obj)
    assert obj == before, "a patch never changes the object that it is given"
    return result


def failure(action: Callable[[], object]) -> UsageError:
    with pytest.raises(UsageError) as raised:
        action()
    return raised.value


def etcd_of(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


# ---- reading


def test_files_are_read_by_name_in_order_with_sub_folders() -> None:
    host = folder(
        **{
            "etcd1_plus_merge__yaml": "a: 1\n---\nb: 2\n",
            "etcd0__json": '{"c": 3}',
            "sub/etcd_plus_json__json": "[]",
            "kube-apiserver-hardening__yaml": "{}",
            "etcdempty__yaml": "",
            "etcdempty__json": " \n",
        }
    )
    patches = read_patches(host, "/p")
    assert [(str(patch.path), patch.target, patch.kind, patch.body) for patch in patches.patches] == [
        ("/p/etcd0.json", "etcd", "strategic", {"c": 3}),
        ("/p/etcd1+merge.yaml", "etcd", "merge", {"a": 1}),
        ("/p/etcd1+merge.yaml", "etcd", "merge", {"b": 2}),
        ("/p/kube-apiserver-hardening.yaml", "kube-apiserver", "strategic", {}),
        ("/p/sub/etcd+json.json", "etcd", "json", []),
    ]
    assert patches.ignored == ("/p/etcdempty.yaml is not a patch: it is empty",)
    assert patches.apply("etcd", {"x": 0}) == {"x": 0, "a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "name",
    ["etcd.yml", "README.md", "ETCD.yaml", "etcd.yaml.bak", "etcd", "kubelet.yaml", "my-etcd.yaml", "etcd.json~"],
)
def test_other_files_are_ignored_with_a_sentence(name: str) -> None:
    patches = read_patches(FakeHost(files={f"/p/{name}": b"a: 1"}), "/p")
    assert patches.patches == ()
    assert len(patches.ignored) == 1
    assert f"/p/{name}" in patches.ignored[0]


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [
        ("kube-apiserver.prod.yaml", "kube-apiserver", "strategic"),
        ("kube-scheduler0+json-audit.yaml", "kube-scheduler", "json"),
        ("etcd+merge.prod.json", "etcd", "merge"),
        ("etcdjson.yaml", "etcd", "strategic"),
        ("etcd.x+json.yaml", "etcd", "strategic"),
        ("etcd++json.yaml", "", ""),
        ("kube-apiserverless.yaml", "kube-apiserver", "strategic"),
        ("etcd x+strategic+json.yaml", "etcd", "strategic"),
    ],
)
def test_only_the_beginning_of_a_name_counts(name: str, target: str, kind: str) -> None:
    host = FakeHost(files={f"/p/{name}": b"[]" if kind == "json" else b"{a: 1}"})
    if not target:
        assert failure(lambda: read_patches(host, "/p")).code == "patch-invalid"
        return
    patches = read_patches(host, "/p")
    assert [(patch.target, patch.kind) for patch in patches.patches] == [(target, kind)]
    assert patches.ignored == ()


def test_below_a_root_the_folder_may_be_this_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/etcd.yaml").write_text("from: machine\n")
    (tmp_path / "root/there").mkdir(parents=True)
    (tmp_path / "root/there/etcd.yaml").write_text("from: root\n")
    monkeypatch.chdir(tmp_path)
    host = LocalHost(root=tmp_path / "root")
    for directory, found in ((f"{tmp_path}/here", "machine"), ("here", "machine"), ("/there", "root")):
        assert [patch.body for patch in read_patches(host, directory).patches] == [{"from": found}]
    assert failure(lambda: read_patches(host, "/nowhere")).code == "patches-directory-missing"


def test_yaml_in_a_json_file_and_an_empty_file() -> None:
    found = read_patches(
        FakeHost(files={"/p/etcd.json": "a: é\n---\nb: 1e3\n".encode("utf-16"), "/p/etcd0.yaml": b""}), "/p"
    )
    assert [patch.body for patch in found.patches] == [{"a": "é"}, {"b": 1000}]
    assert found.ignored == ("/p/etcd0.yaml is not a patch: it is empty",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested more than"),
        ("a: &a {b: *a}", "an alias of something that contains it"),
        ("a: &a [" + "x," * 99 + "x]\n" + "".join(f"{k}: &{k} [{', '.join([f'*{j}'] * 20)}]\n" for j, k in zip("abcd", "bcde")), "aliases stand for more"),
        ("- " * 2000 + "a", "nested more than"),
    ],
    ids=["deep", "alias of itself", "bomb", "deep list"],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused_at_once(text: str, problem: str) -> None:
    for name in ("etcd.yaml", "etcd+json.json"):
        error = failure(lambda name=name: read_patches(FakeHost(files={f"/p/{name}": text.encode()}), "/p"))  # type: ignore[misc]
        assert error.code == "patch-invalid"
        assert problem in str(error.cause)


@pytest.mark.parametrize("source", ["", "/spec"])
def test_copies_of_copies_end(source: str) -> None:
    operations = [{"op": "copy", "from": source, "path": f"/spec/x{number}"} for number in range(40)]
    error = failure(lambda: apply(operations, kind="json"))
    assert error.code == "patch-failed"
    assert "operation" in error.what
    assert "would hold more than" in str(error.cause)


@pytest.mark.parametrize("name", ["etcd+.yaml", "etcd0+stategic.json"])
def test_a_plus_wants_a_known_kind(name: str) -> None:
    error = failure(lambda: read_patches(FakeHost(files={f"/p/{name}": b"a: 1"}), "/p"))
    assert (error.code, error.what) == ("patch-invalid", f"patch /p/{name}")
    assert "+strategic, +merge, +json" in error.remedy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("etcd.yaml", "a: [1"),
        ("etcd.json", "{"),
        ("etcd.yaml", "- a"),
        ("etcd+merge.yaml", "text"),
        ("etcd+json.yaml", "op: add"),
    ],
)
def test_a_file_of_the_wrong_shape_is_named(name: str, text: str) -> None:
    error = failure(lambda: read_patches(FakeHost(files={f"/p/{name}": text.encode()}), "/p"))
    assert (error.code, error.what) == ("patch-invalid", f"patch /p/{name}")


def test_no_directory_means_no_patches_and_a_missing_one_is_an_error() -> None:
    assert read_patches(FakeHost(), "") == Patches()
    assert failure(lambda: read_patches(FakeHost(), "/p")).code == "patches-directory-missing"
    error = failure(lambda: read_patches(FakeHost(files={"/p": b""}), "/p"))
    assert error.cause == "it is not a directory"


def test_a_patch_for_another_target_does_nothing() -> None:
    patches = read_patches(folder(etcd__yaml={"a": 1}), "/p")
    assert patches.apply("kube-scheduler", {"x": 1}) == {"x": 1}


# ---- strategic


def test_strategic_merges_objects_and_replaces_plain_lists() -> None:
    result = apply(
        {
            "metadata": {"labels": {"tier": None, "mine": "yes"}},
            "spec": {"tolerations": [], "containers": [{"name": "etcd", "command": ["x"]}]},
        }
    )
    assert result["metadata"]["labels"] == {"component": "etcd", "mine": "yes"}
    assert (result["spec"]["tolerations"], etcd_of(result)["command"]) == ([], ["x"])
    assert etcd_of(result)["env"] == etcd_of(POD)["env"]


def test_strategic_merges_lists_by_their_key() -> None:
    result = etcd_of(
        apply(
            {
                "spec": {
                    "containers": [
                        {
                            "name": "etcd",
                            "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
                            "ports": [{"containerPort": 2381, "hostPort": 2381}],
                            "volumeMounts": [{"mountPath": "/certs", "readOnly": True}],
                        }
                    ]
                }
            }
        )
    )
    assert sorted((one["name"], one["value"]) for one in result["env"]) == [("A", "1"), ("B", "3"), ("C", "4")]
    assert result["ports"] == [{"containerPort": 2381, "name": "probe-port", "hostPort": 2381}]
    assert result["volumeMounts"][1] == {"name": "certs", "mountPath": "/certs", "readOnly": True}


def test_strategic_puts_new_items_before_the_others() -> None:
    result = apply({"spec": {"volumes": [{"name": "new", "emptyDir": {}}]}})
    assert [one["name"] for one in result["spec"]["volumes"]] == ["new", "data", "certs"]


@pytest.mark.parametrize(
    ("had", "patched", "want"),
    [
        ("abc", "b", "abc"),
        ("abc", "cx", "abcx"),
        ("abc", "xc", "xabc"),
        ("abc", "ca", "bca"),
        ("", "yx", "yx"),
        ("ab", "", "ab"),
    ],
)
def test_order_of_merged_lists(had: str, patched: str, want: str) -> None:
    assert order_items(list(had), list(patched)) == list(want)


def test_strategic_delete_and_replace_directives() -> None:
    result = apply(
        {"spec": {"volumes": [{"name": "data", "$patch": "delete"}, {"name": "absent", "$patch": "delete"}]}}
    )
    assert [one["name"] for one in result["spec"]["volumes"]] == ["certs"]
    result = apply({"spec": {"volumes": [{"$patch": "replace"}, {"name": "only"}]}})
    assert result["spec"]["volumes"] == [{"name": "only"}]
    result = apply({"metadata": {"labels": {"$patch": "replace", "a": "b"}}})
    assert result["metadata"]["labels"] == {"a": "b"}
    assert apply({"metadata": {"labels": {"$patch": "delete"}}})["metadata"]["labels"] == {}
    assert (
        apply({"metadata": {"labels": {"$patch": "merge", "a": "b"}}})["metadata"]["labels"]["tier"] == "control-plane"
    )


def test_strategic_retain_keys() -> None:
    patch = {"spec": {"volumes": [{"name": "data", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}]}}
    assert apply(patch)["spec"]["volumes"][0] == {"name": "data", "emptyDir": {}}


def test_strategic_set_element_order_and_delete_from_primitive_list() -> None:
    result = apply(
        {
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
            "spec": {"$setElementOrder/volumes": [{"name": "certs"}, {"name": "data"}]},
        }
    )
    assert sorted(result["metadata"]["finalizers"]) == ["b", "c"]
    assert [one["name"] for one in result["spec"]["volumes"]] == ["certs", "data"]


def test_strategic_does_not_keep_nulls_or_directives_of_what_is_new() -> None:
    assert apply({"spec": {"new": {"a": None, "b": {"$patch": "replace", "c": 1}}}})["spec"]["new"] == {"b": {"c": 1}}


def test_strategic_item_without_its_key_names_file_and_place() -> None:
    error = failure(lambda: apply({"spec": {"containers": [{"image": "x"}]}}))
    assert error.code == "patch-failed"
    assert "/p/etcd+strategic.yaml" in error.what
    assert "/spec/containers/0" in error.what
    assert "'name'" in error.cause


def test_strategic_unknown_directive() -> None:
    assert "/spec/$patch" in failure(lambda: apply({"spec": {"$patch": "remove"}})).what


def test_kubelet_configuration_merges_no_lists() -> None:
    have = {"kind": "KubeletConfiguration", "clusterDNS": ["10.96.0.10"], "env": [{"name": "A"}]}
    result = apply({"clusterDNS": ["1.1.1.1"], "env": [{"x": 1}]}, target="kubeletconfiguration", obj=have)
    assert result == {"kind": "KubeletConfiguration", "clusterDNS": ["1.1.1.1"], "env": [{"x": 1}]}


# ---- merge: RFC 7386

RFC_7386 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "want"), RFC_7386)
def test_examples_of_rfc_7386(target: Any, patch: Any, want: Any) -> None:
    assert merge_json(target, patch) == want


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(_VALUES, _VALUES)
def test_a_merge_patch_applied_twice_changes_nothing_more(target: Any, patch: Any) -> None:
    once = merge_json(copy.deepcopy(target), patch)
    assert merge_json(copy.deepcopy(once), patch) == once


@given(_VALUES)
def test_an_empty_merge_patch_keeps_an_object(target: Any) -> None:
    assert merge_json(target, {}) == (target if isinstance(target, dict) else {})


def test_merge_patch_replaces_lists() -> None:
    assert apply({"spec": {"volumes": []}}, kind="merge")["spec"]["volumes"] == []


# ---- json: RFC 6902


def json_patch(*operations: dict[str, Any], obj: dict[str, Any]) -> dict[str, Any]:
    return apply(list(operations), kind="json", obj=obj)


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ({"op": "add", "path": "/b", "value": 1}, {"a": 0}, {"a": 0, "b": 1}),
        ({"op": "add", "path": "/a/1", "value": "x"}, {"a": [1, 2]}, {"a": [1, "x", 2]}),
        ({"op": "add", "path": "/a/2", "value": "x"}, {"a": [1, 2]}, {"a": [1, 2, "x"]}),
        ({"op": "add", "path": "/a/-", "value": [3]}, {"a": [1, 2]}, {"a": [1, 2, [3]]}),
        ({"op": "add", "path": "", "value": {"n": 1}}, {"a": 1}, {"n": 1}),
        ({"op": "remove", "path": "/a/0"}, {"a": [1, 2]}, {"a": [2]}),
        ({"op": "remove", "path": "/a~1b"}, {"a/b": 1, "c": 2}, {"c": 2}),
        ({"op": "replace", "path": "/a~01/0", "value": 9}, {"a~1": [1, 2]}, {"a~1": [9, 2]}),
        ({"op": "replace", "path": "/a", "value": None}, {"a": 1}, {"a": None}),
        ({"op": "move", "from": "/a/x", "path": "/b"}, {"a": {"x": 1}}, {"a": {}, "b": 1}),
        ({"op": "move", "from": "/a/0", "path": "/a/1"}, {"a": [1, 2]}, {"a": [2, 1]}),
        ({"op": "copy", "from": "/a", "path": "/b"}, {"a": {"x": 1}}, {"a": {"x": 1}, "b": {"x": 1}}),
        ({"op": "test", "path": "/a", "value": {"y": 2, "x": 1}}, {"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"op": "test", "path": "/", "value": 1}, {"": 1}, {"": 1}),
        # wider than the RFC, as kubeadm is
        ({"op": "replace", "path": "/b", "value": 2}, {"a": 1}, {"a": 1, "b": 2}),
        ({"op": "remove", "path": "/a/-1"}, {"a": [1, 2]}, {"a": [1]}),
        ({"op": "replace", "path": "/a/-2", "value": 9}, {"a": [1, 2]}, {"a": [9, 2]}),
        ({"op": "add", "path": "/a/-1", "value": 3}, {"a": [1, 2]}, {"a": [1, 2, 3]}),
        ({"op": "test", "path": "/b", "value": None}, {"a": 1}, {"a": 1}),
    ],
)
def test_operations_of_rfc_6902(operation: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    assert json_patch(operation, obj=before) == after


@pytest.mark.parametrize(
    ("operation", "cause"),
    [
        ({"op": "remove", "path": "/x"}, "there is nothing at '/x': no field 'x'"),
        ({"op": "replace", "path": "/x/y", "value": 1}, "there is nothing at '/x': no field 'x'"),
        (
            {"op": "replace", "path": "/a/2", "value": 1},
            "there is nothing at '/a/2': the list has 2 items, counted from 0",
        ),
        ({"op": "remove", "path": "/a/-3"}, "there is nothing at '/a/-3': the list has 2 items, counted from 0"),
        ({"op": "test", "path": "/x", "value": 1}, "there is nothing at '/x': no field 'x'"),
        ({"op": "add", "path": "/x/y", "value": 1}, "there is nothing at '/x': no field 'x'"),
        ({"op": "add", "path": "/a/3", "value": 1}, "there is nothing at '/a/3': the list has 2 items, counted from 0"),
        ({"op": "add", "path": "/a/01", "value": 1}, "'01' in '/a/01' is not an index of a list"),
        ({"op": "remove", "path": "/a/-"}, "'-' in '/a/-' is not an index of a list"),
        ({"op": "add", "path": "/n/x", "value": 1}, "'/n/x' is inside a plain value"),
        ({"op": "test", "path": "/n", "value": True}, "test of '/n' found 1, not true"),
        ({"op": "add", "path": "a", "value": 1}, "path 'a' does not begin with /"),
        ({"op": "add", "path": "/b"}, "it has no 'value'"),
        ({"op": "move", "path": "/b"}, "it has no 'from'"),
        ({"op": "move", "from": "/a", "path": "/a/b"}, "'/a' cannot be moved into itself"),
        ({"op": "put", "path": "/b"}, "there is no operation 'put'"),
        ({"path": "/b"}, "it has no 'op'"),
        ({"op": "remove", "path": ""}, "the whole object cannot be removed"),
        ({"op": "add", "path": "", "value": [1]}, "its result is not an object"),
    ],
)
def test_a_json_patch_that_does_not_fit_says_where(operation: dict[str, Any], cause: str) -> None:
    error = failure(lambda: json_patch({"op": "test", "path": "/n", "value": 1}, operation, obj={"a": [1, 2], "n": 1}))
    assert (error.code, error.cause) == ("patch-failed", cause)
    assert error.what.startswith("patch /p/etcd+json.yaml (json) does not fit etcd")
    assert "operation 2" in error.what or cause.startswith("its result")


def test_copied_values_are_independent() -> None:
    result = json_patch(
        {"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/x", "value": 2}, obj={"a": {"x": 1}}
    )
    assert result == {"a": {"x": 1}, "b": {"x": 2}}
