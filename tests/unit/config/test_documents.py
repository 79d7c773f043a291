"""Strict decoding: every mistake in a file is found at once, with its line, and nothing takes long."""

from __future__ import annotations

import time

import pytest

from kubeup.config.documents import MAX_BYTES, parse_documents, parse_duration, snake_case
from kubeup.config.problems import Problems
from kubeup.config.schema import SCHEMAS
from kubeup.yaml_files import format_duration
from tests.unit.config_case import CLUSTER, INIT, load, refuse


def texts(data: str | bytes) -> list[str]:
    """The problems of a file, as they are shown."""
    problems = Problems()
    parse_documents(data, "init.yaml", problems=problems)
    return [problem.text for problem in problems.items]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            CLUSTER + "clusterNam: a\n",
            'init.yaml:3: clusterNam: unknown field "clusterNam"; did you mean "clusterName"?',
        ),
        (CLUSTER + "networking:\n  PodSubnet: a\n", 'unknown field "PodSubnet"; did you mean "podSubnet"?'),
        (CLUSTER + "podSubnet: a\n", "it belongs to networking of ClusterConfiguration"),
        (CLUSTER + "advertiseAddress: a\n", "it belongs to localAPIEndpoint of InitConfiguration"),
        (
            CLUSTER + "clusterName: a\nclusterName: b\n",
            "init.yaml:4: clusterName: the field is given twice (first in line 3)",
        ),
        (CLUSTER + "kubernetesVersion: 1.35\n", 'must be a text, not the number 1.35; put it in quotes: "1.35"'),
        (CLUSTER + "clusterName: [a]\n", "clusterName: must be a text, not a list"),
        (CLUSTER + "clusterName: yes\n", "must be a text, not the truth value yes"),
        (CLUSTER + "networking: a\n", 'networking: must be a mapping, not the text "a"'),
        (CLUSTER + "apiServer: {extraArgs: {v: '2'}}\n", "a mapping is v1beta3's form"),
        (CLUSTER + "apiServer: {certSANs: a}\n", 'apiServer.certSANs: must be a list, not the text "a"'),
        (CLUSTER + "apiServer: {certSANs: [a, ]}\n---\n[]\n", "a document is a mapping, this one is a list"),
        (CLUSTER + "apiServer:\n  certSANs:\n  -\n", "init.yaml:5: apiServer.certSANs[0]: an empty entry"),
        (CLUSTER + "proxy: {disabled: 'true'}\n", "write true without quotes"),
        (INIT + "localAPIEndpoint: {bindPort: '6443'}\n", "write 6443 without quotes"),
        (INIT + "timeouts: {discovery: 90}\n", 'give the unit: "90s"'),
        (INIT + "timeouts: {discovery: soon}\n", "must be a duration such as 90s, 4m0s or 24h"),
        (INIT + "bootstrapTokens: [{expires: tomorrow}]\n", "bootstrapTokens[0].expires: must be a time such as"),
        (INIT + "localAPIEndpoint: {bindPort: !!int x}\n", "the tag !!int on what is none"),
        (INIT + "nodeRegistration: {name: y}\n", "must be a text, not the truth value y"),
        (INIT + "nodeRegistration: {name: 129e6}\n", "must be a text, not the number 129e6"),
        (INIT + "? [a, b]\n: c\n", "a key that is no plain word"),
        (INIT + 'nodeRegistration: {name: "\\ud800"}\n', "half a Unicode character"),
        (INIT + "---\n" + INIT, "init.yaml:4: kind InitConfiguration is given twice (first in line 1)"),
        ("kind: InitConfiguration\n", 'a document without apiVersion; add "apiVersion: kubeadm.k8s.io/v1beta4"'),
        ("apiVersion: kubeadm.k8s.io/v1beta4\n", "a document without kind"),
        (INIT.replace("v1beta4", "v1beta2"), "convert the file with kubeadm v1.22"),
        (INIT.replace("v1beta4", "v1alpha1"), "convert the file with kubeadm v1.11"),
        (
            INIT.replace("v1beta4", "v1"),
            "kind InitConfiguration has no version kubeadm.k8s.io/v1; write apiVersion: kubeadm",
        ),
        (
            INIT.replace("InitC", "InitialC"),
            'unknown kind InitialConfiguration of kubeadm.k8s.io/v1beta4; did you mean "InitConf',
        ),
        ("apiVersion: kb/v1alpha1\nkind: KbConfig\n", 'did you mean "KbConfiguration"?'),
        (
            "apiVersion: kubelet.config.k8s.io/v1\nkind: KubeletConfiguration\n",
            "write apiVersion: kubelet.config.k8s.io/v1beta1",
        ),
        ("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfig\n", 'did you mean "KubeletConfiguration"?'),
        (INIT + "a: [\n", "not YAML: column 1: "),
        (INIT + "nodeRegistration:\n\tname: a\n", "init.yaml:4: not YAML: column 1: found character"),
        (INIT + "name: 'a\n", "not YAML: "),
        (INIT + "a: *nowhere\n", "not YAML: an alias of an anchor that is not above it"),
        ("a: \x00\n", "a character that YAML does not allow"),
    ],
)
def test_each_mistake_is_named_with_its_line_and_a_remedy(text: str, wanted: str) -> None:
    found = texts(text)
    assert any(wanted in line for line in found), found


def test_all_mistakes_of_all_documents_come_at_once_in_the_order_of_the_file() -> None:
    found = refuse(
        CLUSTER
        + "kubernetesVersion: 1.35\nnetworking: {podSubent: a, serviceSubnet: 10.0.0.0/8}\n---\n"
        + INIT
        + "localAPIEndpoint: {bindPort: 70000}\nnodeRegistration: {name: a_b}\n---\n"
        + "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: many\n"
    )
    assert [line.partition(": ")[0] for line in found] == [f"init.yaml:{number}" for number in (3, 4, 4, 8, 9, 13)]
    assert [line.split(": ")[1] for line in found[1:3]] == ["networking.podSubent", "networking.serviceSubnet"]


def test_secrets_are_not_shown_in_problems() -> None:
    found = texts(INIT + "certificateKey: 123454321\nbootstrapTokens: [{token: 998877}]\n")
    assert len(found) == 2
    assert not any("123454321" in line or "998877" in line for line in found)
    assert "s3cret" not in str(refuse(INIT + "bootstrapTokens: [{token: s3cret}]\ncertificateKey: s3cret\n"))


def test_documents_that_are_not_for_init_are_ignored_with_a_warning() -> None:
    config = load(
        CLUSTER
        + "---\napiVersion: v1\nkind: Secret\ndata: {}\n---\n"
        + "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n---\n---\n"
    )
    assert config.warnings == (
        "init.yaml:4: kind Secret (v1) is not for kb: ignored",
        "init.yaml:8: kind JoinConfiguration has no effect here: ignored",
    )


def test_a_typo_in_a_kubelet_field_is_a_warning_and_passes_on() -> None:
    config = load(
        CLUSTER + "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
        "failCgroupsV1: false\nsyncFrequency: 1m30s\nevictionHard: {memory.available: 100Mi}\nbrandNew: {a: [1, 2.5]}\n"
    )
    assert config.kubelet == {
        "failCgroupsV1": False,
        "syncFrequency": "1m30s",
        "evictionHard": {"memory.available": "100Mi"},
        "brandNew": {"a": [1, 2.5]},
    }
    assert config.warnings == (
        'init.yaml:6: KubeletConfiguration has no field failCgroupsV1 known to kb; did you mean "failCgroupV1"?',
        "init.yaml:9: KubeletConfiguration has no field brandNew known to kb; it is passed on as it is",
    )


def test_json_with_tabs_is_read() -> None:
    config = load(
        '{\n\t"apiVersion": "kubeadm.k8s.io/v1beta4",\n\t"kind": "ClusterConfiguration",\n\t"clusterName": "a\\/b"\n}'
    )
    assert config.cluster.cluster_name == "a/b"


def test_anchors_aliases_and_merge_keys_mean_what_yaml_says() -> None:
    config = load(
        CLUSTER + "scheduler: &one\n  extraArgs: &args [{name: v, value: '2'}]\n"
        "controllerManager:\n  <<: *one\napiServer:\n  <<: [*one]\n  extraArgs: [{name: v, value: '3'}]\n"
    )
    assert config.cluster.controller_manager == config.cluster.scheduler
    assert config.cluster.api_server.last_arg("v") == "3"


def test_yaml_numbers_are_read_as_kubernetes_reads_them() -> None:
    kubelet = load(
        CLUSTER + "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
        "x: [0x10, 0b11, 017, 1_000, -5, 10:20, 2026-01-01, 1.5, ~, 'a']\n"
    ).kubelet
    assert kubelet["x"] == [16, 3, 15, 1000, -5, "10:20", "2026-01-01", 1.5, None, "a"]


def _laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return INIT + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\x00\x01\x02\xff\xfe" * 1000, "init.yaml:1: byte 3 is not UTF-8 text"),
        (INIT.encode("utf-16") + b"x", "is not UTF-16 text"),
        (b"a" * (MAX_BYTES + 1), "a configuration has at most 1048576"),
        ("[" * 100_000, "nested more than 40 deep"),
        ("{a: " * 100_000, "nested more than 40 deep"),
        ("- " * 100_000, "nested more than 40 deep"),
        (INIT + "skipPhases: [" + "a, " * 100_000 + "]\n", "init.yaml:3: the file holds more than 20000 values"),
        ("".join(f"k{i}: v\n" for i in range(90_000)), "the file holds more than 20000 values"),
        (_laughs(), "the aliases stand for more than 20000 values"),
        (INIT + "skipPhases: &a [*a]\n", "an alias of something that contains it"),
        (INIT + "localAPIEndpoint: {bindPort: " + "9" * 10_000 + "}\n", "must be a whole number"),
        (INIT + 'dryRun: "\\UFFFFFFFF"\n', "not YAML"),
    ],
    ids=lambda value: f"{len(value)}",
)
def test_absurd_files_are_refused_in_no_time(data: str | bytes, wanted: str) -> None:
    started = time.process_time()
    found = texts(data)
    assert time.process_time() - started < 5
    assert any(wanted in line for line in found), found[:3]


def test_a_megabyte_of_one_text_or_of_comments_is_read_within_seconds() -> None:
    started = time.process_time()
    assert texts(INIT + "certificateKey: " + "a" * 900_000 + "\n") == []
    assert texts("#" * 900_000 + "\n" + INIT) == []
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m0s", 5400),
        ("24h", 86400),
        ("0", 0),
        ("0s", 0),
        ("-5m", -300),
        ("+5m", 300),
        ("1.5h", 5400),
        ("500ms", 1),
        ("1.000000001s", 2),
        ("8760h0m0s", 31_536_000),
        ("", None),
        ("5", None),
        ("5 m", None),
        ("1d", None),
        ("h", None),
        ("9" * 15 + "h", None),
        ("1h" * 60, None),
    ],
)
def test_durations_are_gos(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


def test_format_and_parse_of_durations_agree() -> None:
    for seconds in (0, 1, 59, 60, 3599, 3600, 86399, 31_536_000):
        assert parse_duration(format_duration(seconds)) == seconds


def test_attribute_names() -> None:
    names = ("localAPIEndpoint", "certSANs", "serverCertSANs", "kubernetesAPICall", "allowRCUpgrades", "etcdAPICall")
    assert [snake_case(name) for name in names] == [
        "local_api_endpoint",
        "cert_sans",
        "server_cert_sans",
        "kubernetes_api_call",
        "allow_rc_upgrades",
        "etcd_api_call",
    ]
    assert len(SCHEMAS) == 11
