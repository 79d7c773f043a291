"""Documents out: the stored one is kubeadm's field by field, the printed ones are read again unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.commands.config_documents import migrate_config_file, print_defaults, validate_config_file
from kubeup.config.load_init import load_init_config
from kubeup.config.render import render_cluster_configuration, render_init_configuration
from kubeup.errors import UsageError
from kubeup.machine.local_host import LocalHost
from kubeup.releases import find_release
from kubeup.yaml_files import dump_yaml, load_all_yaml, load_yaml
from tests.fake_host import FakeHost
from tests.unit.config_case import CLUSTER, INIT, KB, load

TESTS = Path(__file__).parents[2]
EXAMPLES = sorted((TESTS.parent / "configs" / "examples").glob("*.yaml"))

# what the nodes in tests/golden were made from
NODE = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.77.0.11}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: vVERSION
networking: {podSubnet: 10.244.0.0/16}
"""


def migrate(text: str) -> str:
    return migrate_config_file(FakeHost(files={"a.yaml": text.encode()}), Path("a.yaml"))


@pytest.mark.parametrize("version", ["1.34.9", "1.35.6", "1.36.3"])
def test_the_stored_document_is_kubeadms(version: str) -> None:
    config = load(NODE.replace("VERSION", version))
    golden = (TESTS / "golden" / version.rpartition(".")[0] / "cluster-configuration.yaml").read_text()
    stored = render_cluster_configuration(config.cluster, find_release(config.cluster.kubernetes_version))
    assert stored == load_yaml(golden)
    assert dump_yaml(stored) == golden


def test_everything_that_can_be_stored_is_stored() -> None:
    text = (
        CLUSTER
        + """\
apiServer:
  certSANs: [a.org]
  extraArgs: [{name: v, value: "2"}, {name: v, value: ""}]
  extraEnvs: [{name: A, value: b}]
  extraVolumes: [{name: v, hostPath: /h, mountPath: /m}, {name: w, hostPath: /h, mountPath: /m, readOnly: true, pathType: File}]
caCertificateValidityPeriod: 87600h0m0s
certificateValidityPeriod: 1h30m0s
certificatesDir: /pki
clusterName: c
controlPlaneEndpoint: a.org:6443
controllerManager: {extraArgs: [{name: a, value: b}]}
dns: {disabled: true, imageRepository: r.org, imageTag: t}
encryptionAlgorithm: ECDSA-P256
etcd: {local: {dataDir: /d, extraArgs: [{name: a, value: b}], imageTag: "3", peerCertSANs: [p], serverCertSANs: [s]}}
featureGates: {PublicKeysECDSA: true}
imageRepository: r.org
kubernetesVersion: v1.35.6
networking: {dnsDomain: d, podSubnet: 10.1.0.0/16, serviceSubnet: 10.2.0.0/16}
proxy: {disabled: true}
scheduler: {}
"""
    )
    cluster = load(text).cluster
    assert render_cluster_configuration(cluster, find_release("v1.35.6")) == load_yaml(text)


def test_http_endpoints_are_stored_from_1_35_on() -> None:
    cluster = load(CLUSTER + "etcd: {external: {endpoints: ['http://a:2379']}}\n").cluster
    both = {"endpoints": ["http://a:2379"], "httpEndpoints": ["http://a:2379"]}
    assert render_cluster_configuration(cluster, find_release("v1.35.6"))["etcd"] == {"external": both}
    assert render_cluster_configuration(cluster, find_release("v1.34.9"))["etcd"] == {
        "external": {"endpoints": ["http://a:2379"]}
    }


def test_an_init_document_is_read_again_as_the_same_config() -> None:
    config = load(
        INIT + "nodeRegistration: {taints: [], imagePullSerial: false}\nbootstrapTokens: [{ttl: 0s}]\n---\n" + CLUSTER
    )
    document = render_init_configuration(config)
    assert document["bootstrapTokens"][0]["ttl"] == "0s"
    assert document["nodeRegistration"]["taints"] == []
    again = load(dump_yaml(document) + "---\n" + CLUSTER)
    assert (again.node, again.timeouts, again.local_api_endpoint) == (
        config.node,
        config.timeouts,
        config.local_api_endpoint,
    )
    assert again.bootstrap_tokens[0].ttl_s is None


# ---- config print


def test_init_defaults_are_kubeadms() -> None:
    init, cluster = load_all_yaml(print_defaults("init-defaults"))
    assert init["bootstrapTokens"][0] == {
        "token": "abcdef.0123456789abcdef",
        "ttl": "24h0m0s",
        "usages": ["signing", "authentication"],
        "groups": ["system:bootstrappers:kubeadm:default-node-token"],
    }
    assert init["localAPIEndpoint"] == {"advertiseAddress": "1.2.3.4", "bindPort": 6443}
    assert init["nodeRegistration"] == {
        "name": "node",
        "criSocket": "unix:///var/run/containerd/containerd.sock",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSerial": True,
        "taints": None,
    }
    assert (cluster["kubernetesVersion"], cluster["networking"]) == (
        "1.36.0",
        {"dnsDomain": "cluster.local", "serviceSubnet": "10.96.0.0/12"},
    )


def test_the_other_defaults() -> None:
    (join,) = load_all_yaml(print_defaults("join-defaults", node_name="w1"))
    assert join["discovery"] == {
        "bootstrapToken": {
            "apiServerEndpoint": "kube-apiserver:6443",
            "token": "abcdef.0123456789abcdef",
            "unsafeSkipCAVerification": True,
        },
        "tlsBootstrapToken": "abcdef.0123456789abcdef",
    }
    assert (join["nodeRegistration"]["name"], join["caCertPath"]) == ("w1", "/etc/kubernetes/pki/ca.crt")
    (reset,) = load_all_yaml(print_defaults("reset-defaults"))
    assert sorted(reset) == ["apiVersion", "certificatesDir", "criSocket", "kind", "timeouts"]
    (upgrade,) = load_all_yaml(print_defaults("upgrade-defaults"))
    assert (upgrade["plan"], upgrade["diff"]) == ({"etcdUpgrade": True}, {})
    assert upgrade["timeouts"]["upgradeManifests"] == "5m0s"


def test_component_configs_are_printed_beside() -> None:
    documents = load_all_yaml(print_defaults("init-defaults", ["KubeletConfiguration,KubeProxyConfiguration"]))
    assert [document["kind"] for document in documents[2:]] == ["KubeletConfiguration", "KubeProxyConfiguration"]
    assert documents[2]["clusterDNS"] == ["10.96.0.10"]
    with pytest.raises(UsageError) as caught:
        print_defaults("init-defaults", "KubeletConfig")
    assert (caught.value.code, caught.value.remedy) == ("unknown-document-kind", 'did you mean "KubeletConfiguration"?')
    with pytest.raises(UsageError, match="defaults has no defaults to print"):
        print_defaults("defaults")


# ---- config migrate


@pytest.mark.parametrize("kind", ["init-defaults", "join-defaults", "reset-defaults", "upgrade-defaults"])
def test_what_print_prints_migrate_keeps(kind: str) -> None:
    printed = print_defaults(kind)
    migrated = migrate(printed)
    assert migrated == printed.replace("kubernetesVersion: 1.36.0", "kubernetesVersion: v1.36.0")
    assert migrate(migrated) == migrated


def test_migrate_writes_v1beta3_as_v1beta4() -> None:
    init, cluster = load_all_yaml(
        migrate(
            CLUSTER.replace("beta4", "beta3")
            + "apiServer: {timeoutForControlPlane: 5m, extraArgs: {v: '2'}}\n---\n"
            + INIT.replace("beta4", "beta3")
            + "nodeRegistration: {name: a}\n"
        )
    )
    assert init["timeouts"]["controlPlaneComponentHealthCheck"] == "5m0s"
    assert cluster["apiServer"] == {"extraArgs": [{"name": "v", "value": "2"}]}
    assert (init["apiVersion"], cluster["apiVersion"]) == ("kubeadm.k8s.io/v1beta4",) * 2


def test_migrate_writes_nothing_that_only_a_machine_can_tell() -> None:
    init, cluster = load_all_yaml(migrate(INIT + "---\n" + CLUSTER))
    assert "bootstrapTokens" not in init
    assert init["localAPIEndpoint"] == {"bindPort": 6443}
    assert not {"name", "criSocket"} & set(init["nodeRegistration"])
    assert "kubernetesVersion" not in cluster


def test_migrate_keeps_what_is_given() -> None:
    text = (
        INIT + "localAPIEndpoint: {advertiseAddress: 0.0.0.0}\nbootstrapTokens: [{ttl: 1h}]\n"
        "timeouts: {controlPlaneComponentHealthCheck: 0s}\n---\n"
        + CLUSTER
        + "kubernetesVersion: stable-1\n---\n"
        + KB
        + "soak: 5s\npodNetwork: {plugin: none}\n---\n"
        + "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 5\n"
    )
    init, cluster, kubelet, kb = load_all_yaml(migrate(text))
    assert init["localAPIEndpoint"]["advertiseAddress"] == "0.0.0.0"
    assert init["timeouts"]["controlPlaneComponentHealthCheck"] == "0s"
    assert "token" not in init["bootstrapTokens"][0]
    assert cluster["kubernetesVersion"] == "stable-1"
    assert kubelet == {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "maxPods": 5}
    assert (kb["soak"], kb["podNetwork"]["plugin"]) == ("5s", "none")


def test_migrate_of_a_v1beta3_join() -> None:
    (join,) = load_all_yaml(
        migrate(
            "apiVersion: kubeadm.k8s.io/v1beta3\nkind: JoinConfiguration\ncontrolPlane: {}\ndiscovery:\n  timeout: 3m\n"
            "  file: {kubeConfigPath: 'file:///etc/d.conf'}\nnodeRegistration: {kubeletExtraArgs: {b: '1', a: '2'}}\n"
        )
    )
    assert join["timeouts"]["discovery"] == "3m0s"
    assert join["discovery"] == {"file": {"kubeConfigPath": "/etc/d.conf"}}
    assert join["controlPlane"] == {}
    assert [arg["name"] for arg in join["nodeRegistration"]["kubeletExtraArgs"]] == ["a", "b"]


# ---- config validate


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    assert validate_config_file(LocalHost(), path) == []
    if path.name.startswith("init-"):
        flags = {} if "advertiseAddress" in path.read_text() else {"node-name": "cp1"}
        host = FakeHost(
            files={str(path): path.read_bytes()},
            answers={"ip -json addr": '[{"ifname":"eth0","addr_info":[{"local":"10.0.0.11"}]}]'},
        )
        assert load_init_config(host, config_file=path, flags=flags).cluster.kubernetes_version == "v1.36.3"


def test_there_are_examples() -> None:
    assert {"init-single.yaml", "init-ha-endpoint.yaml", "init-dual-stack.yaml", "init-external-etcd.yaml"} <= {
        path.name for path in EXAMPLES
    }


def test_validate_asks_no_machine_and_returns_the_warnings() -> None:
    host = FakeHost(files={"a.yaml": (CLUSTER.replace("beta4", "beta3") + "kubernetesVersion: stable-1\n").encode()})
    assert [text.partition(";")[0] for text in validate_config_file(host, Path("a.yaml"))] == [
        "a.yaml:1: kubeadm.k8s.io/v1beta3 is deprecated and gone from Kubernetes 1.37"
    ]


def test_validate_takes_an_ipv6_cluster_without_an_address() -> None:
    text = CLUSTER + "networking: {serviceSubnet: 'fd00::/112', podSubnet: 'fd01::/56'}\n"
    assert validate_config_file(FakeHost(files={"a.yaml": text.encode()}), Path("a.yaml")) == []


JOIN = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n"
RESET = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ResetConfiguration\n"
UPGRADE = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: UpgradeConfiguration\n"
TOKEN = (
    "discovery: {bootstrapToken: {token: abcdef.0123456789abcdef, apiServerEndpoint: 'a:6443', caCertHashes: [x]}}\n"
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (JOIN, "neither of discovery.bootstrapToken and discovery.file"),
        (
            JOIN + "discovery: {bootstrapToken: {token: a, apiServerEndpoint: 'a:1', caCertHashes: [x]}}",
            "not a bootstrap token",
        ),
        (JOIN + TOKEN.replace("'a:6443'", "a"), "apiServerEndpoint: 'a' is not host:port"),
        (JOIN + TOKEN.replace("[x]", "[]"), "without the CA's hash nothing proves that this is your cluster"),
        (
            JOIN + TOKEN.replace("}}", "}, file: {kubeConfigPath: /a}}"),
            "both of discovery.bootstrapToken and discovery.file",
        ),
        (JOIN + "discovery: {file: {kubeConfigPath: 'ftp://a'}}", "neither a path nor an https URL"),
        (JOIN + TOKEN + "caCertPath: /a.pem", "does not end with .crt"),
        (JOIN + TOKEN + "controlPlane: {certificateKey: a}", "controlPlane.certificateKey: not a key of 32 bytes"),
        (JOIN + TOKEN + "controlPlane: {localAPIEndpoint: {bindPort: 99999}}", "port 99999 does not exist"),
        (RESET + "unmountFlags: [MNT_FORC]", 'did you mean "MNT_FORCE"?'),
        (RESET + "criSocket: docker", "'docker' is not a socket"),
        (UPGRADE + "apply: {imagePullPolicy: x}", "apply.imagePullPolicy: 'x' is not allowed"),
        (UPGRADE + "node: {patches: {directory: x}}", "node.patches.directory: 'x' is not an absolute path"),
        (UPGRADE + "diff: {contextLines: -1}", "a negative number of lines"),
        (KB, "it holds none of InitConfiguration"),
    ],
)
def test_rules_of_the_other_kinds(text: str, wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate_config_file(FakeHost(files={"a.yaml": text.encode()}), Path("a.yaml"))
    assert caught.value.code == "invalid-config"
    assert wanted in " ".join([caught.value.cause, *caught.value.details])
