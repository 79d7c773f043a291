"""What kubeadm only warns of: kb's own name refuses it and says how to go on; what a cluster stores is taken by all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.commands import config_documents
from kubeup.config.load_init import load_partial_config
from kubeup.config.load_join import parse_stored_cluster
from kubeup.config.problems import Problems
from kubeup.errors import UsageError
from kubeup.machine.local_host import LocalHost
from tests.unit.config_case import CLUSTER, load, machine

INIT = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 10.0.0.11}\n"

UNKNOWN = [
    f"{CLUSTER}metadata: {{name: config}}\n",
    f"{CLUSTER}networking: {{podCIDR: 10.1.0.0/16}}\n",
    f"{CLUSTER}clusterName: a\nclusterName: b\n",
    f"{CLUSTER}---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterStatus\n",
    CLUSTER.replace("kind:", "Kind:") + "kubernetesVersion: v1.35.6\n",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_refusal_of_the_unknown_says_how_to_go_on_and_that_works(text: str) -> None:
    text = f"{INIT}---\n{text}"
    with pytest.raises(UsageError) as caught:
        load(text)
    assert "--allow-unknown-fields" in caught.value.remedy
    config = load(text, flags={"allow-unknown-fields": True})
    assert config.warnings
    assert load(text, flags={"only-kubeadm": True}).warnings


def test_what_is_wrong_is_wrong_with_the_flag_too() -> None:
    text = f"{INIT}---\n{CLUSTER}foo: 1\nclusterName: [a]\n"
    with pytest.raises(UsageError) as caught:
        load(text)
    assert "--allow-unknown-fields" not in caught.value.remedy
    with pytest.raises(UsageError, match="must be a text"):
        load(text, flags={"allow-unknown-fields": True})


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ("kubeadm.k8s.io/v1beta5", "ClusterConfiguration"),
        ("kubeadm.k8s.io/v1", "ClusterConfiguration"),
        ("kubelet.config.k8s.io/v1", "KubeletConfiguration"),
    ],
)
def test_a_version_that_nobody_reads_yet_is_no_document_to_pass_over(group: str, kind: str) -> None:
    """kubeadm ends with it; passed over, the cluster would be made with none of what the file says."""
    for flags in ({"only-kubeadm": True}, {"allow-unknown-fields": True}, {}):
        with pytest.raises(UsageError, match=f"kind {kind} has no version {group}"):
            load(f"{INIT}---\napiVersion: {group}\nkind: {kind}\n", flags=flags)


def test_json_documents_need_a_line_between_them() -> None:
    one, two = '{"apiVersion":"kubeadm.k8s.io/v1beta4","kind":"ClusterConfiguration"}', '{"kind":"InitConfiguration"}'
    with pytest.raises(UsageError, match=r"init.yaml:2: .*more text after the end of the document; write ---"):
        load(f"{one}\n{two}")
    for end in ("", "\n", "\n# nothing\n", "\n...\n"):
        assert load(one + end)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"]
)
def test_a_file_that_configures_no_cluster_is_not_taken_for_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    for flags in ({}, {"only-kubeadm": True}):
        with pytest.raises(UsageError, match="no InitConfiguration or ClusterConfiguration kind was found"):
            load_partial_config(LocalHost(), config_file=tmp_path / "c.yaml", flags=flags)


def test_what_a_cluster_stores_is_taken() -> None:
    text = (
        CLUSTER + "kubernetesVersion: v1.35.6\nnewField: {a: 1}\nclusterName: a\nclusterName: b\ndns: {type: CoreDNS}\n"
    )
    warnings: list[str] = []
    cluster = parse_stored_cluster(machine(), text, warnings=warnings)
    assert cluster.cluster_name == "b"
    told = "\n".join(warnings)
    assert all(name in told for name in ("newField", "clusterName", "dns.type"))


@pytest.mark.parametrize(
    ("flags", "is_lenient", "is_kubeadm"),
    [({}, False, False), ({"only-kubeadm": True}, True, True), ({"allow-unknown-fields": True}, True, False)],
)
def test_strictness_follows_name_and_flag(flags: dict[str, Any], is_lenient: bool, is_kubeadm: bool) -> None:
    problems = Problems.for_flags(flags)
    assert (problems.is_lenient, problems.is_kubeadm) == (is_lenient, is_kubeadm)


@pytest.mark.parametrize("socket", ["unix:/run/x.sock", "/run/x.sock", "UNIX:///run/x.sock", "unix://run/x.sock"])
@pytest.mark.parametrize("kind", ["ResetConfiguration", "JoinConfiguration", "InitConfiguration"])
def test_a_socket_is_taken_in_every_form_by_validate_and_migrate(tmp_path: Path, kind: str, socket: str) -> None:
    body = {
        "ResetConfiguration": f"criSocket: {socket}\n",
        "JoinConfiguration": f"nodeRegistration: {{name: n1, criSocket: '{socket}'}}\n"
        "discovery: {bootstrapToken: {token: abcdef.0123456789abcdef, apiServerEndpoint: '10.0.0.1:6443',"
        " unsafeSkipCAVerification: true}}\n",
        "InitConfiguration": f"nodeRegistration: {{name: n1, criSocket: '{socket}'}}\n",
    }[kind]
    path = tmp_path / "c.yaml"
    path.write_text(f"apiVersion: kubeadm.k8s.io/v1beta4\nkind: {kind}\n{body}")
    config_documents.validate_config_file(LocalHost(), path)
    assert "criSocket: unix:///run/x.sock\n" in config_documents.migrate_config_file(LocalHost(), path)


@pytest.mark.parametrize(
    ("given", "usual"),
    [
        ("::ffff:192.0.2.10", "192.0.2.10"),
        ("192.000.002.010", "192.0.2.10"),
        ("FD00:0:0::10", "fd00::10"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_migrate_writes_an_address_in_its_usual_form(tmp_path: Path, given: str, usual: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(INIT.replace("10.0.0.11", f"'{given}'"))
    assert f"advertiseAddress: {usual}\n" in config_documents.migrate_config_file(LocalHost(), path)


def test_addresses_and_endpoints_are_taken_in_the_forms_that_go_takes() -> None:
    config = load(
        f"{INIT}---\n{CLUSTER}controlPlaneEndpoint: 'lb.example.com:'\n"
        "networking: {podSubnet: 010.244.000.0/16, serviceSubnet: '10.96.0.0/12'}\n"
    )
    assert config.cluster.control_plane_endpoint == "lb.example.com:6443"
    assert config.cluster.networking.pod_subnet == "10.244.0.0/16"
