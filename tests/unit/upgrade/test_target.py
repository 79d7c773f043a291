from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.types import APIServer, Arg, NodeConfig
from kubeup.engine.records import Records
from kubeup.paths import Paths
from kubeup.upgrade.target import Asked, Target, find_changes, plan_targets
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_host import FakeHost
from tests.unit.golden import golden_config, golden_text

PATHS = Paths()
CA_DIRS = ("/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def node(minor: int = 35, **texts: str) -> FakeHost:
    """A control plane with the manifests that real kubeadm of this minor wrote; texts: those that others changed."""
    host = FakeHost(
        files={"/etc/kubernetes/pki/ca.key": b"key", "/etc/kubernetes/pki/ca.crt": b"cert"}, dirs=set(CA_DIRS)
    )
    for name in COMPONENTS:
        text = texts.get(name.replace("-", "_")) or golden_text(minor, f"manifests/{name}.yaml")
        host.write_file(PATHS.manifest(name), text)
    return host


def plan(
    host: FakeHost,
    *,
    name: str = "kube-apiserver",
    former: Optional[NodeConfig] = None,
    config: Optional[NodeConfig] = None,
    keep_edits: bool = True,
) -> Target:
    former, config = former or golden_config(35), config or golden_config(36)
    found = plan_targets(host, PATHS, former=former, config=config, keep_edits=keep_edits)
    return next(target for target in found if target.name == name)


def changed(name: str, change: Any, *, minor: int = 35) -> str:
    """The text of a golden manifest after `change`, which gets the pod and its container."""
    pod = load_yaml(golden_text(minor, f"manifests/{name}.yaml"))
    change(pod, pod["spec"]["containers"][0])
    return dump_yaml(pod)


def record(host: FakeHost, texts: dict[str, str]) -> None:
    kept = Records(host, PATHS.records, steps={}, generation=0)
    kept.put("init/control-plane", {str(PATHS.manifest(name)): {"content": text} for name, text in texts.items()})
    kept.save()


def with_args(config: NodeConfig, *args: Arg) -> NodeConfig:
    return replace(config, cluster=replace(config.cluster, api_server=APIServer(extra_args=args)))


def flags(target: Target) -> list[str]:
    command: list[str] = load_yaml(target.wanted)["spec"]["containers"][0]["command"]
    return command


# ---- untouched nodes


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("minor", [34, 35])
def test_the_manifest_of_real_kubeadm_becomes_that_of_its_next_minor(minor: int, component: str) -> None:
    found = plan(node(minor), name=component, former=golden_config(minor), config=golden_config(minor + 1))
    assert load_yaml(found.wanted) == load_yaml(golden_text(minor + 1, f"manifests/{component}.yaml"))
    assert (found.edits, found.conflicts) == ((), ())


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_same_version_changes_nothing_at_all(component: str) -> None:
    found = plan(node(), name=component, config=golden_config(35))
    assert found.wanted == found.former
    assert not found.is_changed


@pytest.mark.parametrize("minor", [34, 35])
@pytest.mark.parametrize("done", [("etcd",), ("etcd", "kube-apiserver"), COMPONENTS[:3]])
def test_an_upgrade_that_another_tool_left_half_done_goes_on(done: tuple[str, ...], minor: int) -> None:
    """The API server says which version the node runs, and some of the rest may still be of the former one."""
    texts = {name.replace("-", "_"): golden_text(minor + 1, f"manifests/{name}.yaml") for name in done}
    running = golden_config(minor + 1 if "kube-apiserver" in done else minor)
    for keep_edits in (True, False):
        found = plan_targets(
            node(minor, **texts), PATHS, former=running, config=golden_config(minor + 1), keep_edits=keep_edits
        )
        for target in found:
            wanted = golden_text(minor + 1, f"manifests/{target.name}.yaml")
            assert load_yaml(target.wanted) == load_yaml(wanted), target.name
            assert (target.edits, target.conflicts) == ((), ()), target.name
            assert target.is_changed == (target.name not in done)


def test_another_tag_of_an_image_is_nobodys_change() -> None:
    text = golden_text(35, "manifests/kube-apiserver.yaml").replace(":v1.35.6", ":v1.35.2")
    found = plan(node(kube_apiserver=text))
    assert not found.edits
    assert "kube-apiserver:v1.36.3" in found.wanted


def test_etcd_never_goes_back() -> None:
    text = golden_text(35, "manifests/etcd.yaml").replace("etcd:3.6.6-0", "etcd:3.6.99-0")
    found = plan(node(etcd=text), name="etcd")
    assert "etcd:3.6.99-0" in found.wanted


def test_the_members_of_etcd_stay() -> None:
    def join(_: Any, container: Any) -> None:
        words = container["command"]
        place = next(index for index, word in enumerate(words) if word.startswith("--initial-cluster="))
        words[place] = "--initial-cluster=cp1=https://10.77.0.11:2380,cp2=https://10.77.0.12:2380"
        words.insert(place + 1, "--initial-cluster-state=existing")

    found = plan(node(etcd=changed("etcd", join)), name="etcd")
    assert not found.edits
    assert "--initial-cluster-state=existing" in flags(found)
    assert any(word.endswith("cp2=https://10.77.0.12:2380") for word in flags(found))


# ---- what others changed


def test_an_option_that_somebody_added_is_kept_and_said() -> None:
    text = changed("kube-apiserver", lambda _, container: container["command"].append("--v=4"))
    found = plan(node(kube_apiserver=text))
    assert flags(found)[-1] == "--v=4"
    assert [str(one) for one in found.edits] == [
        "kube-apiserver: spec.containers[kube-apiserver].command --v is 4, not unset"
    ]
    assert not found.conflicts


def test_an_option_that_somebody_added_goes_if_so_wished() -> None:
    text = changed("kube-apiserver", lambda _, container: container["command"].append("--v=4"))
    found = plan(node(kube_apiserver=text), keep_edits=False)
    assert load_yaml(found.wanted) == load_yaml(golden_text(36, "manifests/kube-apiserver.yaml"))
    assert len(found.edits) == 1


def test_everything_by_its_name() -> None:
    def edit(pod: Any, container: Any) -> None:
        container["env"] = [{"name": "GOGC", "value": "50"}]
        container["resources"]["requests"]["memory"] = "1Gi"
        container["volumeMounts"].append({"mountPath": "/etc/audit", "name": "audit", "readOnly": True})
        pod["spec"]["volumes"].append({"name": "audit", "hostPath": {"path": "/etc/audit"}})
        pod["metadata"]["annotations"]["example.com/owner"] = "me"
        pod["metadata"]["labels"]["team"] = "a"

    found = plan(node(kube_apiserver=changed("kube-apiserver", edit)))
    pod = load_yaml(found.wanted)
    container = pod["spec"]["containers"][0]
    assert container["image"].endswith(":v1.36.3")
    assert container["env"] == [{"name": "GOGC", "value": "50"}]
    assert container["resources"]["requests"] == {"cpu": "250m", "memory": "1Gi"}
    assert container["volumeMounts"][-1] == {"mountPath": "/etc/audit", "name": "audit", "readOnly": True}
    assert pod["spec"]["volumes"][-1]["name"] == "audit"
    assert pod["metadata"]["annotations"]["example.com/owner"] == "me"
    assert pod["metadata"]["labels"]["team"] == "a"
    assert [one.field for one in found.edits] == [
        "metadata.annotations.example.com/owner",
        "metadata.labels.team",
        "spec.containers[kube-apiserver].resources.requests.memory",
        "spec.containers[kube-apiserver].volumeMounts[/etc/audit]",
        "spec.containers[kube-apiserver].env",
        "spec.volumes[audit]",
    ]


def test_an_option_given_twice_is_one_option() -> None:
    def edit(_: Any, container: Any) -> None:
        container["command"].append("--service-account-key-file=/etc/kubernetes/pki/former-sa.pub")

    found = plan(node(kube_apiserver=changed("kube-apiserver", edit)))
    told = [word for word in flags(found) if word.startswith("--service-account-key-file=")]
    assert [word.rpartition("/")[2] for word in told] == ["sa.pub", "former-sa.pub"]


def test_a_change_of_what_the_new_version_changes_too_is_a_conflict() -> None:
    former, config = with_args(golden_config(35), Arg("v", "2")), with_args(golden_config(36), Arg("v", "3"))
    text = changed("kube-apiserver", lambda _, container: container["command"].append("--v=5"))
    found = plan(node(kube_apiserver=text), former=former, config=config)
    assert [(one.wanted, one.found) for one in found.conflicts] == [("3", "5")]
    assert "--v=5" in flags(found)
    dropped = plan(node(kube_apiserver=text), former=former, config=config, keep_edits=False)
    assert "--v=3" in flags(dropped)


def test_of_another_image_the_registry_is_kept_but_not_the_version() -> None:
    text = golden_text(35, "manifests/kube-apiserver.yaml").replace("registry.k8s.io/", "mirror.local:5000/k8s/")
    found = plan(node(kube_apiserver=text))
    assert "image: mirror.local:5000/k8s/kube-apiserver:v1.36.3" in found.wanted
    assert len(found.edits) == 1
    assert not found.conflicts


def test_an_image_by_its_digest_cannot_be_kept() -> None:
    text = golden_text(35, "manifests/kube-apiserver.yaml").replace(
        "registry.k8s.io/kube-apiserver:v1.35.6", f"a.b/kube-apiserver@sha256:{64 * '0'}"
    )
    found = plan(node(kube_apiserver=text))
    assert "image: registry.k8s.io/kube-apiserver:v1.36.3" in found.wanted
    assert len(found.conflicts) == 1


# ---- whose change it was


def test_what_was_added_to_the_stored_configuration_is_no_change_of_the_node() -> None:
    args = (Arg("audit-log-path", "-"),)
    former, config = (with_args(one, *args) for one in (golden_config(35), golden_config(36)))
    found = plan(node(), former=former, config=config)
    assert "--audit-log-path=-" in flags(found)
    assert not found.edits


def test_an_option_that_somebody_removed_stays_away_where_the_record_shows_that() -> None:
    text = changed(
        "kube-apiserver", lambda _, container: container["command"].remove("--enable-bootstrap-token-auth=true")
    )
    host = node(kube_apiserver=text)
    assert "--enable-bootstrap-token-auth=true" in flags(plan(host))
    record(host, {"kube-apiserver": golden_text(35, "manifests/kube-apiserver.yaml")})
    found = plan(host)
    assert "--enable-bootstrap-token-auth=true" not in flags(found)
    assert [(one.wanted, one.found) for one in found.edits] == [("true", "")]


def test_a_value_that_the_stored_configuration_has_changed_since_kb_wrote_it() -> None:
    text = changed("kube-apiserver", lambda _, container: container["command"].append("--v=2"))
    host = node(kube_apiserver=text)
    record(host, {"kube-apiserver": text})
    former, config = (with_args(one, Arg("v", "4")) for one in (golden_config(35), golden_config(36)))
    found = plan(host, former=former, config=config)
    assert "--v=4" in flags(found)
    assert not found.edits


def test_what_a_patch_of_then_wrote_is_not_lost_in_silence() -> None:
    text = changed("kube-apiserver", lambda _, container: container["resources"]["requests"].update(cpu="2"))
    host = node(kube_apiserver=text)
    record(host, {"kube-apiserver": text})
    found = plan(host)
    assert [(one.wanted, one.found) for one in found.edits] == [("250m", "2")]
    assert found.base == text


def test_patches_count_on_both_sides() -> None:
    text = changed("kube-apiserver", lambda _, container: container["resources"]["requests"].update(cpu="2"))
    host = node(kube_apiserver=text)
    host.write_file(
        Path("/etc/kb/patches/kube-apiserver.yaml"),
        "spec: {containers: [{name: kube-apiserver, resources: {requests: {cpu: '2'}}}]}",
    )
    former, config = (replace(golden_config(minor), patches_directory="/etc/kb/patches") for minor in (35, 36))
    found = plan(host, former=former, config=config)
    assert not found.edits
    assert load_yaml(found.wanted)["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "2"}


def test_options_in_args_are_of_the_same_command() -> None:
    """Divided otherwise than kubeadm does: none of them is given twice, and the division is nobody's change."""

    def divide(pod: Any, own: Any) -> None:
        own["command"], own["args"] = own["command"][:1], [*own["command"][1:], "--profiling=false"]

    host = node(kube_apiserver=changed("kube-apiserver", divide))
    found = plan(host)
    assert "args" not in load_yaml(found.wanted)["spec"]["containers"][0]
    assert len(flags(found)) == len({word.partition("=")[0] for word in flags(found)})
    assert "--profiling=false" in flags(found)
    assert [edit.field.rpartition(" ")[2] for edit in found.edits] == ["--profiling"]
    same = plan(host, former=golden_config(35), config=golden_config(35))
    assert same.wanted == same.former


def test_a_command_in_a_shell_is_one_field() -> None:
    def edit(_: Any, container: Any) -> None:
        container["command"] = ["sh", "-c", "exec kube-apiserver"]

    found = plan(node(kube_apiserver=changed("kube-apiserver", edit)))
    assert flags(found) == ["sh", "-c", "exec kube-apiserver"]
    assert [one.field for one in found.edits] == ["spec.containers[kube-apiserver].command"]


# ---- what is asked for now


def asked(host: FakeHost, *, before: tuple[Arg, ...], after: tuple[Arg, ...], **fields: Any) -> Target:
    former, config = with_args(golden_config(35), *before), with_args(golden_config(35), *after)
    found = plan_targets(host, PATHS, former=former, config=config, asked=Asked(**fields))
    return next(target for target in found if target.name == "kube-apiserver")


def by_hand(*words: str) -> FakeHost:
    return node(kube_apiserver=changed("kube-apiserver", lambda _, container: container["command"].extend(words)))


def test_what_is_asked_for_by_name_counts_more_than_a_hand_edit() -> None:
    options = {"kube-apiserver": {"v"}}
    found = asked(
        by_hand("--v=4", "--profiling=false"), before=(Arg("v", "5"),), after=(Arg("v", "5"),), options=options
    )
    assert {"--v=5", "--profiling=false"} <= set(flags(found))
    assert not {"--v=4"} & set(flags(found))
    gone = asked(by_hand("--v=4"), before=(), after=(), options=options)
    assert not [word for word in flags(gone) if word.startswith("--v=")]


def test_what_changes_counts_more_than_a_hand_edit_of_the_same_field() -> None:
    found = asked(
        by_hand("--v=4", "--profiling=false"), before=(Arg("v", "2"),), after=(Arg("v", "3"),), prefers_new=True
    )
    assert {"--v=3", "--profiling=false"} <= set(flags(found))
    assert [(one.found, one.wanted) for one in found.edits] == [("false", "")]
    assert not found.conflicts


def test_what_was_stored_before_is_no_hand_edit() -> None:
    older = [with_args(golden_config(35), Arg("v", "4")), with_args(golden_config(35), Arg("v", "3"))]
    for value in ("3", "4"):
        found = asked(by_hand(f"--v={value}", "--profiling=false"), before=(), after=(), older=older)
        assert not [word for word in flags(found) if word.startswith("--v=")]
        assert "--profiling=false" in flags(found)
        assert [one.field.rpartition(" ")[2] for one in found.edits] == ["--profiling"]
    found = asked(by_hand("--v=6"), before=(), after=(), older=older)
    assert "--v=6" in flags(found)


def test_which_fields_another_control_plane_may_still_have() -> None:
    formers = [with_args(golden_config(35), Arg("v", "4")), golden_config(35)]
    found = find_changes(node(), PATHS, formers=formers, config=with_args(golden_config(35), Arg("v", "3")))
    (one,) = found["kube-apiserver"]
    at = "spec.containers[kube-apiserver].command --v"
    assert (one.field, one.wanted, one.former) == (at, "3", frozenset(("4", "")))
    assert [one.is_left_in(fields) for fields in ({at: "4"}, {}, {at: "3"}, {at: "9"})] == [True, True, False, False]
    assert list(found) == ["kube-apiserver"]
