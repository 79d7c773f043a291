"""kubeup/config/load_join.py: a JoinConfiguration by flags or file, and the cluster's documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.load_join import ClusterDocuments, JoinWishes, build_join_config, load_join_config
from kubeup.config.types import JoinControlPlane, LocalAPIEndpoint, NodeConfig, PodNetwork
from kubeup.errors import ClusterError, UsageError
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.unit.config_case import machine

TOKEN, OTHER = "abcdef.0123456789abcdef", "bbbbbb.0123456789abcdef"
PIN = "sha256:" + "ab" * 32
FLAGS: dict[str, Any] = {"token": TOKEN, "discovery-token-ca-cert-hash": [PIN]}
DOCUMENT = f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken: {{token: {TOKEN}, apiServerEndpoint: "10.0.0.11:6443", caCertHashes: ["{PIN}"]}}
"""


def load(
    text: str = "",
    *,
    flags: Optional[dict[str, Any]] = None,
    endpoint: str = "",
    host: Optional[FakeHost] = None,
    is_member: bool = False,
) -> JoinWishes:
    host = host or machine()
    path = Path("join.yaml") if text else None
    if text:
        host.files["join.yaml"] = text.encode()
    return load_join_config(host, config_file=path, flags=flags or {}, endpoint=endpoint, is_member=is_member)


def fails(code: str, *args: Any, **rest: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(*args, **rest)
    assert caught.value.code == code, caught.value.as_dict()
    return caught.value


def test_flags() -> None:
    flags = {**FLAGS, "node-name": "W1", "cri-socket": "/run/crio.sock", "patches": "/p", "skip-phases": ["verify"]}
    join = load(flags=flags, endpoint="10.0.0.11:6443").join
    token = join.discovery.bootstrap_token
    assert token and (token.token, token.api_server_endpoint, token.ca_cert_hashes) == (Secret(TOKEN), "10.0.0.11:6443", (PIN,))  # fmt: skip
    assert join.discovery.tls_bootstrap_token == Secret(TOKEN)
    assert (join.node.name, join.node.cri_socket, join.patches_directory) == ("w1", "unix:///run/crio.sock", "/p")
    assert join.skip_phases == ("verify",) and join.control_plane is None


def test_token_fills_what_is_not_given() -> None:
    join = load(flags={**FLAGS, "tls-bootstrap-token": OTHER}, endpoint="h:1").join
    assert join.discovery.tls_bootstrap_token == Secret(OTHER)
    join = load(flags={**FLAGS, "discovery-token": OTHER}, endpoint="h:1").join
    assert join.discovery.bootstrap_token and join.discovery.bootstrap_token.token == Secret(OTHER)
    assert join.discovery.tls_bootstrap_token == Secret(TOKEN)


def test_discovery_by_file_with_a_token_beside_it() -> None:
    wishes = load(flags={"discovery-file": "/root/found.conf", "token": TOKEN, "discovery-token-ca-cert-hash": [PIN]})
    discovery = wishes.join.discovery
    assert discovery.bootstrap_token is None and discovery.file == "/root/found.conf"
    assert discovery.tls_bootstrap_token == Secret(TOKEN)
    assert "discovery-token-ca-cert-hash has no effect" in wishes.warnings[0]


@pytest.mark.parametrize(
    ("flags", "endpoint", "code"),
    [
        ({}, "", "no-endpoint"),
        (FLAGS, "", "no-endpoint"),
        ({**FLAGS, "discovery-token-ca-cert-hash": ["sha256:abc"]}, "h:1", "bad-ca-cert-hash"),
        ({"token": TOKEN}, "h:1", "invalid-config"),
        ({**FLAGS, "token": "abc"}, "h:1", "invalid-config"),
        (FLAGS, "h", "invalid-config"),
        ({**FLAGS, "discovery-file": "/x"}, "h:1", "invalid-config"),
        ({"discovery-file": "ftp://x"}, "", "invalid-config"),
        ({**FLAGS, "control-plane": True, "certificate-key": "abc"}, "h:1", "invalid-config"),
        ({**FLAGS, "control-plane": True, "apiserver-advertise-address": "10.0.0.300"}, "h:1", "invalid-config"),
    ],
)
def test_what_cannot_be(flags: dict[str, Any], endpoint: str, code: str) -> None:
    error = fails(code, flags=flags, endpoint=endpoint)
    assert "0123456789abcdef" not in str(error.as_dict())


def test_a_malformed_token_names_its_flag() -> None:
    error = fails("invalid-config", flags={**FLAGS, "token": "abc"}, endpoint="h:1")
    assert len(error.details) == 1 and error.details[0].startswith("--token: not a bootstrap token (6 and 16")
    error = fails("invalid-config", flags={**FLAGS, "token": "abc", "tls-bootstrap-token": "x"}, endpoint="h:1")
    assert [line.partition(":")[0] for line in error.details] == ["--tls-bootstrap-token", "--token"]


def test_flags_of_a_control_plane_have_no_effect_on_a_worker() -> None:
    wishes = load(flags={**FLAGS, "certificate-key": "ab" * 32}, endpoint="h:1")
    assert wishes.join.control_plane is None and "--certificate-key has no effect" in wishes.warnings[0]


def test_a_member_needs_neither_endpoint_nor_token() -> None:
    join = load(is_member=True).join
    assert join.discovery.bootstrap_token is None and join.discovery.file == ""


def test_a_file() -> None:
    wishes = load(DOCUMENT + "---\napiVersion: kb/v1alpha1\nkind: KbConfiguration\n")
    assert wishes.join.discovery.tls_bootstrap_token == Secret(TOKEN)
    assert wishes.join.ca_cert_path == "/etc/kubernetes/pki/ca.crt"


def test_other_documents_are_ignored_aloud() -> None:
    kubelet = "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
    assert "kind KubeletConfiguration has no effect here" in load(DOCUMENT + kubelet).warnings[0]
    fails("invalid-config", kubelet)


def test_v1beta3() -> None:
    text = DOCUMENT.replace("v1beta4", "v1beta3") + "  timeout: 20s\nnodeRegistration: {kubeletExtraArgs: {v: '3'}}\n"
    wishes = load(text)
    assert wishes.join.timeouts.discovery_s == 20
    assert [(arg.name, arg.value) for arg in wishes.join.node.kubelet_extra_args] == [("v", "3")]


def test_a_control_plane_by_file_and_by_flags() -> None:
    by_file = load(DOCUMENT + "controlPlane: {localAPIEndpoint: {bindPort: 7443}}\n").join.control_plane
    assert by_file == JoinControlPlane(LocalAPIEndpoint("", 7443))
    flags = {**FLAGS, "control-plane": True, "certificate-key": "ab" * 32, "apiserver-advertise-address": "10.0.0.5"}
    assert load(flags=flags, endpoint="h:1").join.control_plane == JoinControlPlane(
        LocalAPIEndpoint("10.0.0.5"), Secret("ab" * 32)
    )
    assert load(flags={**FLAGS, "control-plane": True}, endpoint="h:1").join.control_plane == JoinControlPlane()


@pytest.mark.parametrize(
    "flags", [{"token": TOKEN}, {"discovery-file": "x"}, {"patches": "/p"}, {"control-plane": True}]
)
def test_flags_beside_a_file(flags: dict[str, Any]) -> None:
    assert f"[{next(iter(flags))}]" in fails("mixed-flags", DOCUMENT, flags=flags).what


def test_the_name_wins_over_the_file() -> None:
    assert load(DOCUMENT, flags={"node-name": "w9", "dry-run": True}).join.node.name == "w9"


# ---- the cluster's documents

CLUSTER = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: prod
kubernetesVersion: v1.35.6
controlPlaneEndpoint: cp.example:6443
networking: {dnsDomain: cluster.local, podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/12}
"""
KUBELET = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 50\n"


def build(
    cluster: str = CLUSTER, kubelet: str = KUBELET, host: Optional[FakeHost] = None, plugin: str = "bridge"
) -> NodeConfig:
    host = host or machine()
    return build_join_config(
        host,
        load(flags=FLAGS, endpoint="h:1", host=host),
        stored=ClusterDocuments(cluster, kubelet, PodNetwork(plugin)),
        server="https://cp.example:6443",
        ca_pem="CA",
    )


def test_what_the_phases_read_is_the_cluster_s() -> None:
    config = build()
    assert (config.cluster.cluster_name, config.cluster.kubernetes_version) == ("prod", "v1.35.6")
    assert config.cluster.pod_cidrs() == ("10.244.0.0/16",)
    assert config.kubelet == {"maxPods": 50} and config.kb.pod_network.plugin == "bridge"
    assert config.local_api_endpoint.advertise_address == "10.0.0.11"
    assert (config.joined.server, config.joined.ca_pem) == ("https://cp.example:6443", "CA")


def test_the_kubelet_is_told_its_address_where_no_default_route_tells_it() -> None:
    assert build().node.kubelet_extra_args == ()
    host = machine()
    host.files["/proc/net/route"] = b"Iface\n"
    config = build(host=host)
    assert [(arg.name, arg.value) for arg in config.node.kubelet_extra_args] == [("node-ip", "10.0.0.11")]
    assert "this machine has no default route: the kubelet registers with 10.0.0.11 (--node-ip)" in config.notes
    dual = CLUSTER.replace("10.96.0.0/12", "'10.96.0.0/12,fd00:96::/112'")
    assert build(dual, host=host).node.kubelet_extra_args == ()


def test_a_newer_tool_s_field_is_a_warning() -> None:
    config = build(CLUSTER + "quantumMode: true\n")
    assert "quantumMode" in config.warnings[0] and config.cluster.cluster_name == "prod"


def test_v1beta3_in_the_cluster() -> None:
    text = CLUSTER.replace("v1beta4", "v1beta3") + "apiServer: {extraArgs: {v: '2'}}\n"
    assert build(text).cluster.api_server.last_arg("v") == "2"


@pytest.mark.parametrize(
    ("cluster", "kubelet"),
    [("", KUBELET), ("x: [", KUBELET), (CLUSTER, "a: ["), (CLUSTER, ""), (CLUSTER, KUBELET.replace("v1beta1", "v9"))],
)
def test_documents_that_cannot_be_understood(cluster: str, kubelet: str) -> None:
    with pytest.raises(ClusterError) as caught:
        build(cluster, kubelet)
    assert caught.value.code == "stored-config-invalid"


def test_a_resolver_that_this_node_does_not_have_is_left_out() -> None:
    text = KUBELET + "resolvConf: /run/systemd/resolve/resolv.conf\n"
    config = build(kubelet=text)
    assert "resolvConf" not in config.kubelet and "which this node does not have" in config.notes[-1]
    host = machine()
    host.files["/run/systemd/resolve/resolv.conf"] = b""
    assert build(kubelet=text, host=host).kubelet["resolvConf"] == "/run/systemd/resolve/resolv.conf"
