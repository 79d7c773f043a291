from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeup.config.types import Arg, Networking, NodeConfig, NodeRegistration, Taint
from kubeup.machine.host import CommandResult
from kubeup.node.kubelet import (
    component_config_hash,
    dump_instance_config,
    dump_kubelet_config,
    find_rotated_cert,
    finish_kubelet_config,
    merge_defaults,
    parse_flags_env,
    plan_kubelet_flags,
    plan_unit_files,
    probe_resolv_conf,
    render_flags_env,
    render_instance_config,
    render_kubelet_command,
    render_kubelet_config,
    render_unit_file,
    use_rotated_cert,
)
from kubeup.paths import Paths
from kubeup.releases import RELEASES
from kubeup.yaml_files import load_yaml
from tests.fake_host import FakeHost
from tests.unit.golden import golden_config, golden_text, release_of

PATHS = Paths()
PEM = Path("/var/lib/kubelet/pki/kubelet-client-current.pem")


def with_node(config: NodeConfig, **changes: Any) -> NodeConfig:
    return replace(config, node=replace(config.node, **changes))


def with_kubelet(**fields: Any) -> NodeConfig:
    return replace(golden_config(), kubelet=fields)


# ---- golden files


@pytest.mark.parametrize("minor", RELEASES)
def test_kubelet_files_equal_the_golden_ones(minor: int) -> None:
    config, release = golden_config(minor), release_of(minor)
    shared = render_kubelet_config(config, release)
    assert dump_kubelet_config(shared.document) == golden_text(minor, "kubelet/configmap.yaml")
    own = finish_kubelet_config(shared.document, config, release=release)
    assert dump_kubelet_config(own) == golden_text(minor, "kubelet/config.yaml")
    flags = plan_kubelet_flags(config, release, os_hostname="cp1")
    assert render_flags_env(flags) == golden_text(minor, "kubelet/kubeadm-flags.env")
    assert shared.warnings == ()


@pytest.mark.parametrize("minor", RELEASES)
def test_instance_config_equals_the_golden_one_where_there_is_one(minor: int) -> None:
    instance = render_instance_config(golden_config(minor), release_of(minor))
    if minor < 34:
        assert instance == {}
    else:
        assert dump_instance_config(instance) == golden_text(minor, "kubelet/instance-config.yaml")


# ---- KubeletConfiguration


def test_user_fields_win_and_conflicts_are_said() -> None:
    config = with_kubelet(
        staticPodPath="/x",
        clusterDNS=["1.1.1.1"],
        clusterDomain="mine",
        authentication={"anonymous": {"enabled": True}, "webhook": {"enabled": False}, "x509": {"clientCAFile": "/ca"}},
        authorization={"mode": "AlwaysAllow"},
        healthzBindAddress="0.0.0.0",
        healthzPort=0,
        readOnlyPort=10255,
        cgroupDriver="cgroupfs",
        maxPods=250,
    )
    shared = render_kubelet_config(config, RELEASES[35])
    for field, value in config.kubelet.items():
        if field not in ("authentication", "authorization"):
            assert shared.document[field] == value
    assert shared.document["authentication"] == {
        "anonymous": {"enabled": True},
        "webhook": {"enabled": False, "cacheTTL": "0s"},
        "x509": {"clientCAFile": "/ca"},
    }
    assert shared.document["authorization"]["mode"] == "AlwaysAllow"
    named = [text.split('"')[1] for text in shared.warnings]
    assert sorted(named) == [
        "authentication.anonymous.enabled",
        "authentication.webhook.enabled",
        "authentication.x509.clientCAFile",
        "authorization.mode",
        "clusterDNS",
        "clusterDomain",
        "healthzBindAddress",
        "healthzPort",
        "readOnlyPort",
        "staticPodPath",
    ]


def test_rotate_certificates_is_forced() -> None:
    shared = render_kubelet_config(with_kubelet(rotateCertificates=False), RELEASES[35])
    assert shared.document["rotateCertificates"] is True
    assert len(shared.warnings) == 1
    assert "rotateCertificates" in shared.warnings[0]


def test_the_users_document_is_not_changed() -> None:
    given = {"authentication": {"webhook": {}}, "rotateCertificates": False}
    before = json.dumps(given)
    render_kubelet_config(with_kubelet(**given), RELEASES[35])
    assert json.dumps(given) == before


def test_empty_and_null_count_as_left_out_and_zero_does_not() -> None:
    assert merge_defaults({"a": 1, "b": "x", "c": True, "d": {"e": 1}}, {"a": None, "b": "", "c": False, "d": {}}) == {
        "a": 1,
        "b": "x",
        "c": False,
        "d": {"e": 1},
    }


def test_resolv_conf_of_systemd_resolved() -> None:
    active = FakeHost(answers={"systemctl is-active systemd-resolved": "active\n"})
    assert probe_resolv_conf(active) == "/run/systemd/resolve/resolv.conf"
    off = CommandResult(("systemctl",), 3, "inactive\n")
    assert probe_resolv_conf(FakeHost(answers={"systemctl is-active systemd-resolved": off})) == ""
    assert probe_resolv_conf(FakeHost()) == ""


def test_resolv_conf_is_a_default_with_a_warning() -> None:
    path = "/run/systemd/resolve/resolv.conf"
    assert render_kubelet_config(golden_config(), RELEASES[35], resolv_conf=path).document["resolvConf"] == path
    mine = render_kubelet_config(with_kubelet(resolvConf="/etc/mine"), RELEASES[35], resolv_conf=path)
    assert mine.document["resolvConf"] == "/etc/mine"
    assert "resolvConf" in mine.warnings[0]
    quiet = render_kubelet_config(with_kubelet(resolvConf="/etc/mine"), RELEASES[35])
    assert (quiet.document["resolvConf"], quiet.warnings) == ("/etc/mine", ())


def test_cluster_dns_is_address_10_of_the_first_service_cidr() -> None:
    config = golden_config(networking=Networking("fd00:96::/112,10.96.0.0/16", dns_domain="k8s.example"))
    document = render_kubelet_config(config, RELEASES[35]).document
    assert (document["clusterDNS"], document["clusterDomain"]) == (["fd00:96::a"], "k8s.example")


@pytest.mark.parametrize(("minor", "gate"), [(35, False), (33, True)])
def test_the_gate_decides_where_the_socket_is_kept(minor: int, gate: bool) -> None:
    config = golden_config(minor, feature_gates={"NodeLocalCRISocket": gate})
    names = [flag.name for flag in plan_kubelet_flags(config, release_of(minor), os_hostname="cp1")]
    assert ("container-runtime-endpoint" in names) is not gate
    shared = render_kubelet_config(config, release_of(minor)).document
    own = finish_kubelet_config(shared, config, release=release_of(minor))
    assert own["containerRuntimeEndpoint"] == (config.node.cri_socket if gate else "")
    assert shared["containerRuntimeEndpoint"] == ""


# ---- flags


def test_hostname_override_where_the_names_differ() -> None:
    config = golden_config()
    assert plan_kubelet_flags(config, RELEASES[35], os_hostname=" CP1\n") == ()
    assert plan_kubelet_flags(config, RELEASES[35], os_hostname="box") == (Arg("hostname-override", "cp1"),)
    own = with_node(config, kubelet_extra_args=(Arg("hostname-override", "other"),))
    assert plan_kubelet_flags(own, RELEASES[35], os_hostname="cp1") == (Arg("hostname-override", "other"),)


def test_extra_args_override_and_follow_in_their_order() -> None:
    extra = (Arg("v", "4"), Arg("pod-infra-container-image", "mine"), Arg("node-labels", "a=b"), Arg("v", "5"))
    config = with_node(golden_config(34), kubelet_extra_args=extra)
    flags = plan_kubelet_flags(config, RELEASES[34], os_hostname="box")
    assert flags == (Arg("hostname-override", "cp1"), *extra)


def test_a_workers_taints_come_with_its_registration() -> None:
    taints = (Taint("a", "NoSchedule", "1"), Taint("b", "NoExecute"))
    config = with_node(golden_config(), taints=taints)
    flags = plan_kubelet_flags(config, RELEASES[35], os_hostname="cp1", register_with_taints=True)
    assert flags == (Arg("register-with-taints", "a=1:NoSchedule,b:NoExecute"),)
    assert plan_kubelet_flags(config, RELEASES[35], os_hostname="cp1") == ()


def test_flags_are_quoted() -> None:
    assert render_flags_env((Arg("a", 'x"y\\z'),)) == 'KUBELET_KUBEADM_ARGS="--a=x\\"y\\\\z"\n'


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ('KUBELET_KUBEADM_ARGS=""\n', ()),
        ("", ()),
        ("OTHER=x", ()),
        ('KUBELET_KUBEADM_ARGS="--a=1 --b 2  --c"\n', (Arg("a", "1"), Arg("b", "2"), Arg("c", ""))),
        ("KUBELET_KUBEADM_ARGS=--a=b=c", (Arg("a", "b=c"),)),
        ('# x\nKUBELET_KUBEADM_ARGS="--a=1"', (Arg("a", "1"),)),
    ],
)
def test_flags_file_is_read(text: str, flags: tuple[Arg, ...]) -> None:
    assert parse_flags_env(text) == flags


_WORD = st.text(st.characters(codec="ascii", exclude_categories=("Z", "C")), max_size=8)


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True), _WORD), max_size=4))
def test_flags_survive_a_round_trip(pairs: list[tuple[str, str]]) -> None:
    flags = tuple(Arg(name, value) for name, value in pairs)
    assert parse_flags_env(render_flags_env(flags)) == flags


def test_command_line_for_a_hand() -> None:
    line = render_kubelet_command((Arg("node-labels", "a b"),), kubelet=Path("/opt/kubelet"))
    assert line.startswith("/opt/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=")
    assert line.endswith("--config=/var/lib/kubelet/config.yaml '--node-labels=a b'")


# ---- the unit

UNIT, DROP_IN = "/etc/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
READS_FLAGS = b"[Service]\nEnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n"


@pytest.mark.parametrize(
    ("files", "owned", "want"),
    [
        ({}, (), [UNIT, DROP_IN]),
        ({"/usr/lib/systemd/system/kubelet.service": b"x"}, (), [DROP_IN]),
        (
            {
                "/lib/systemd/system/kubelet.service": b"x",
                "/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": READS_FLAGS,
            },
            (),
            [],
        ),
        ({UNIT: b"an admin's"}, (), [DROP_IN]),
        ({UNIT: READS_FLAGS}, (), []),
        ({UNIT: b"old", DROP_IN: READS_FLAGS}, (UNIT, DROP_IN), [UNIT, DROP_IN]),
        ({UNIT: b"x", "/run/systemd/system/kubelet.service.d/notes.txt": READS_FLAGS}, (), [DROP_IN]),
    ],
)
def test_units_of_others_stay(files: dict[str, bytes], owned: tuple[str, ...], want: list[str]) -> None:
    assert [str(path) for path in plan_unit_files(FakeHost(files=files), PATHS, owned=owned)] == want


def test_unit_and_drop_in_start_the_kubelet_that_is_there() -> None:
    unit = render_unit_file("kubelet.service", Path("/usr/local/bin/kubelet"))
    assert "\nExecStart=/usr/local/bin/kubelet\n" in unit
    assert "\nRestart=always\nRestartSec=10\n" in unit
    assert "\nWantedBy=multi-user.target\n" in unit
    drop_in = render_unit_file("10-kubeadm.conf", Path("/usr/local/bin/kubelet")).splitlines()
    assert drop_in[-2:] == [
        "ExecStart=",
        "ExecStart=/usr/local/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS "
        "$KUBELET_EXTRA_ARGS",
    ]
    assert "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env" in drop_in
    assert (
        'Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf '
        '--kubeconfig=/etc/kubernetes/kubelet.conf"' in drop_in
    )


# ---- the rotating certificate


def test_kubelet_conf_as_kubeadm_leaves_it() -> None:
    finished = load_yaml(golden_text(36, "kubelet/kubelet.conf"))
    fresh = load_yaml(golden_text(36, "kubelet/kubelet.conf"))
    fresh["users"][0]["user"] = {"client-certificate-data": "Yw==", "client-key-data": "aw=="}
    fresh["users"].insert(0, {"name": "someone-else", "user": {"token": "t"}})
    changed = use_rotated_cert(fresh, PEM)
    assert changed["users"].pop(0) == {"name": "someone-else", "user": {"token": "t"}}
    assert changed == finished
    assert "client-key-data" in fresh["users"][1]["user"]


@pytest.mark.parametrize("broken", [{}, {"current-context": "a", "contexts": [], "users": []}])
def test_kubeconfig_without_a_current_user(broken: dict[str, Any]) -> None:
    with pytest.raises(LookupError):
        use_rotated_cert(broken, PEM)


def test_rotated_cert_lies_in_cert_dir() -> None:
    assert find_rotated_cert(golden_config()) == PEM
    node = NodeRegistration("cp1", kubelet_extra_args=(Arg("cert-dir", "/a"), Arg("cert-dir", "/srv/k")))
    assert find_rotated_cert(replace(golden_config(), node=node)) == Path("/srv/k/kubelet-client-current.pem")


# ---- hash


def test_component_config_hash_is_over_the_values_in_the_order_of_their_keys() -> None:
    abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert component_config_hash({"z": "c", "a": "ab"}) == abc
