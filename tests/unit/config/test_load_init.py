"""Defaults, flags, and what the machine is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.load_init import load_init_config, load_partial_config, parse_duration
from kubeup.config.token_text import generate_token
from kubeup.config.types import Arg, LocalEtcd, NodeRegistration, Taint, Timeouts
from kubeup.errors import UsageError
from kubeup.machine.http import HttpResponse
from kubeup.machine.local_host import LocalHost
from kubeup.releases import NEWEST_PROVEN
from tests.fake_host import FakeHost
from tests.unit.config_case import CLUSTER, FLAGS, INIT, KB, ROUTE, addresses, load, machine, refuse

# ---- defaults


def test_nothing_given_gives_every_default() -> None:
    config = load()
    assert config.node == NodeRegistration("node1")
    assert config.local_api_endpoint.advertise_address == "10.0.0.11"
    assert config.local_api_endpoint.bind_port == 6443
    assert config.timeouts == Timeouts()
    cluster = config.cluster
    assert cluster.kubernetes_version == "v1.35.6"
    assert (cluster.networking.service_subnet, cluster.networking.pod_subnet) == ("10.96.0.0/12", "10.244.0.0/16")
    assert cluster.local_etcd == LocalEtcd()
    assert config.kb.pod_network.plugin == "bridge"
    token = config.bootstrap_tokens[0]
    assert token.is_generated
    assert token.ttl_s == 86400
    assert token.description == "The default bootstrap token made by 'kb init'."
    assert config.notes == (
        "Kubernetes v1.35.6, the version of /usr/bin/kubelet",
        "pod network 10.244.0.0/16: none was given, and no route of this machine overlaps it",
    )
    assert config.warnings == ()


def test_a_files_values_arrive() -> None:
    config = load(
        INIT
        + """\
bootstrapTokens:
- {token: abcdef.0123456789abcdef, ttl: 0s, description: d, usages: [signing], groups: []}
- {expires: "2030-01-01T00:00:00Z"}
nodeRegistration:
  name: " CP1 "
  criSocket: /run/my.sock
  taints: [{key: a/b, value: v, effect: NoExecute}]
  kubeletExtraArgs: [{name: v, value: "2"}, {name: v, value: ""}]
  ignorePreflightErrors: [Swap, swap]
  imagePullPolicy: Never
  imagePullSerial: false
localAPIEndpoint: {advertiseAddress: 10.9.0.1, bindPort: 7443}
certificateKey: """
        + "ab" * 32
        + """
skipPhases: [addon/kube-proxy]
patches: {directory: /p}
dryRun: true
timeouts: {kubeletHealthCheck: 1m}
---
"""
        + CLUSTER
        + """\
kubernetesVersion: 1.36.3
controlPlaneEndpoint: api.example.com
imageRepository: r.example.com:5000/k8s
encryptionAlgorithm: ECDSA-P384
certificateValidityPeriod: 100h
featureGates: {PublicKeysECDSA: false}
apiServer:
  certSANs: [API.example.com, 10.0.0.1, "*.x.org"]
  extraEnvs: [{name: "N", valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
controllerManager:
  extraVolumes: [{name: v, hostPath: /h, mountPath: /m, readOnly: true, pathType: File}]
etcd: {local: {dataDir: /data, imageTag: 3.6.9-0, extraArgs: [{name: quota-backend-bytes, value: "1"}]}}
dns: {disabled: true}
"""
    )
    first, second = config.bootstrap_tokens
    assert (first.token.reveal(), first.ttl_s, first.usages) == ("abcdef.0123456789abcdef", None, ("signing",))
    assert (first.groups, second.groups) == ((), ("system:bootstrappers:kubeadm:default-node-token",))
    assert not first.is_generated
    assert (second.ttl_s, second.expires, second.is_generated) == (None, "2030-01-01T00:00:00Z", True)
    assert config.node == NodeRegistration(
        "cp1",
        cri_socket="unix:///run/my.sock",
        taints=(Taint("a/b", "NoExecute", "v"),),
        kubelet_extra_args=(Arg("v", "2"), Arg("v", "")),
        ignore_preflight_errors=("swap",),
        image_pull_policy="Never",
        image_pull_serial=False,
    )
    assert config.patches_directory == "/p"
    assert config.dry_run is True
    assert config.certificate_key.reveal() == "ab" * 32
    assert config.timeouts.kubelet_health_check_s == 60
    assert config.skip_phases == ("addon/kube-proxy", "addon/coredns")
    cluster = config.cluster
    assert cluster.kubernetes_version == "v1.36.3"
    assert cluster.control_plane_endpoint == "api.example.com:7443"
    assert cluster.certificate_validity_period_s == 360_000
    assert cluster.feature_gates == {"PublicKeysECDSA": False}
    assert cluster.api_server.cert_sans == ("api.example.com", "10.0.0.1", "*.x.org")
    assert cluster.api_server.extra_envs[0]["valueFrom"]["fieldRef"]["apiVersion"] == "v1"
    assert cluster.controller_manager.extra_volumes[0].read_only
    assert cluster.local_etcd
    assert (cluster.local_etcd.data_dir, cluster.local_etcd.image_tag) == ("/data", "3.6.9-0")
    assert cluster.local_etcd.extra_args == (Arg("quota-backend-bytes", "1"),)
    assert cluster.dns.disabled
    assert cluster.proxy.disabled
    assert config.warnings == (
        "init.yaml:8: nodeRegistration.criSocket: /run/my.sock is taken for unix:///run/my.sock",
    )


def test_empty_taints_are_not_the_default_taints() -> None:
    assert load(INIT + "nodeRegistration: {taints: []}\n").node.taints == ()
    assert load(INIT + "nodeRegistration: {taints: null}\n").node.taints is None
    assert load(INIT).node.taints is None


def test_external_etcd_excludes_local_and_copies_its_endpoints() -> None:
    cluster = load(CLUSTER + "etcd: {external: {endpoints: ['http://10.0.0.5:2379']}}\n").cluster
    assert cluster.local_etcd is None
    assert cluster.external_etcd
    assert cluster.external_etcd.http_endpoints == ("http://10.0.0.5:2379",)


def test_empty_texts_numbers_and_lists_mean_the_default() -> None:
    config = load(
        INIT
        + "localAPIEndpoint: {bindPort: 0}\nnodeRegistration: {name: '', imagePullPolicy: ''}\nbootstrapTokens: []\n---\n"
        + CLUSTER
        + "clusterName: ''\ndns: {}\netcd: {local: {dataDir: ''}}\n"
    )
    assert config.local_api_endpoint.bind_port == 6443
    assert config.node == NodeRegistration("node1")
    assert len(config.bootstrap_tokens) == 1
    assert config.cluster.cluster_name == "kubernetes"
    assert config.cluster.local_etcd == LocalEtcd()


def test_kbs_own_document() -> None:
    text = CLUSTER + "---\n" + KB
    config = load(
        text
        + "podNetwork: {plugin: bridge, backend: vxlan, mtu: 1400}\nmirror: {endpoint: 'http://m:5000'}\nsoak: 1m\n"
    )
    assert (config.kb.pod_network.backend, config.kb.pod_network.mtu, config.kb.mirror.endpoint) == (
        "vxlan",
        1400,
        "http://m:5000",
    )
    assert config.kb.soak_s == 60
    assert load(text + "soak: 0s\n").kb.soak_s == 0


# ---- v1beta3


def test_v1beta3_becomes_v1beta4() -> None:
    config = load(
        INIT.replace("beta4", "beta3")
        + "nodeRegistration: {kubeletExtraArgs: {v: '2', a: '1'}}\n---\n"
        + CLUSTER.replace("beta4", "beta3")
        + "apiServer: {timeoutForControlPlane: 6m, extraArgs: {z: '1', b: x}}\netcd: {local: {extraArgs: {q: '1'}}}\n"
    )
    assert config.node.kubelet_extra_args == (Arg("a", "1"), Arg("v", "2"))
    assert config.cluster.api_server.extra_args == (Arg("b", "x"), Arg("z", "1"))
    assert config.cluster.local_etcd
    assert config.cluster.local_etcd.extra_args == (Arg("q", "1"),)
    assert config.timeouts.control_plane_component_health_check_s == 360
    assert [warning.partition(";")[0] for warning in config.warnings] == [
        f"init.yaml:{line}: kubeadm.k8s.io/v1beta3 is deprecated and gone from Kubernetes 1.37" for line in (1, 5)
    ]


def test_v1beta3_knows_no_fields_of_v1beta4() -> None:
    found = refuse(
        CLUSTER.replace("beta4", "beta3")
        + "encryptionAlgorithm: RSA-2048\nproxy: {}\napiServer: {extraArgs: [{name: a, value: b}]}\n"
    )
    assert len(found) == 3
    assert "a list is v1beta4's form" in found[2]


def test_a_problem_of_a_converted_argument_keeps_its_line() -> None:
    found = refuse(CLUSTER.replace("beta4", "beta3") + "apiServer:\n  extraArgs:\n    v: '1'\n    --bad: x\n")
    assert found == [
        "init.yaml:6: apiServer.extraArgs[0].name: '--bad' is not a flag's name without its dashes; write name: bad"
    ]


# ---- flags


def test_flags_fill_the_documents() -> None:
    config = load(
        flags={
            **FLAGS,
            "apiserver-bind-port": 7443,
            "apiserver-cert-extra-sans": ["a.org,b.org", "10.0.0.9"],
            "cert-dir": "/pki",
            "control-plane-endpoint": "api.org",
            "cri-socket": "unix:///x.sock",
            "feature-gates": "RootlessControlPlane=false,PublicKeysECDSA=true",
            "ignore-preflight-errors": "Swap,NumCPU",
            "image-repository": "r.org/k",
            "node-name": "CP1",
            "patches": "/p",
            "pod-network-cidr": "10.50.0.0/16",
            "service-cidr": "10.60.0.0/16",
            "service-dns-domain": "k8s.local",
            "skip-phases": ["addon/kube-proxy"],
            "token": "abcdef.0123456789abcdef",
            "token-ttl": "0",
            "upload-certs": True,
            "skip-token-print": True,
            "apiserver-extra-args": "enable-admission-plugins=A,B,v=4",
            "dry-run": True,
            "soak": "2s",
            "mirror": "http://10.0.0.5:5000",
            "pod-network-manifest": "/net.yaml",
            "kubeconfig": "/ignored",
            "root": "/ignored",
        }
    )
    cluster, node = config.cluster, config.node
    assert cluster.api_server.cert_sans == ("a.org", "b.org", "10.0.0.9")
    assert cluster.api_server.extra_args == (Arg("enable-admission-plugins", "A,B"), Arg("v", "4"))
    assert cluster.certificates_dir == "/pki"
    assert cluster.control_plane_endpoint == "api.org:7443"
    assert cluster.feature_gates == {"RootlessControlPlane": False, "PublicKeysECDSA": True}
    assert cluster.image_repository == "r.org/k"
    assert (cluster.networking.pod_subnet, cluster.networking.service_subnet) == ("10.50.0.0/16", "10.60.0.0/16")
    assert cluster.networking.dns_domain == "k8s.local"
    assert cluster.proxy.disabled
    assert (node.name, node.cri_socket, node.ignore_preflight_errors) == ("cp1", "unix:///x.sock", ("swap", "numcpu"))
    assert config.bootstrap_tokens[0].ttl_s is None
    assert config.bootstrap_tokens[0].is_generated is False
    assert (config.upload_certs, config.skip_token_print, config.skip_certificate_key_print) == (True, True, False)
    assert (config.dry_run, config.patches_directory) == (True, "/p")
    assert config.kb.pod_network.plugin == "manifest"
    assert (config.kb.soak_s, config.kb.mirror.endpoint) == (2, "http://10.0.0.5:5000")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"service-cidr": "10.0.0.0/8"}, "--service-cidr: 10.0.0.0/8 is too large"),
        (
            {"feature-gates": "PublicKeyECDSA=true"},
            "--feature-gates: unrecognized feature-gate key: PublicKeyECDSA; did you mean",
        ),
        (
            {"feature-gates": "RootlessControlPlane=maybe"},
            "--feature-gates: 'RootlessControlPlane=maybe' is not Name=true,...",
        ),
        ({"apiserver-bind-port": "many"}, "--apiserver-bind-port: must be a whole number, not 'many'"),
        ({"token-ttl": "soon"}, "--token-ttl: must be a duration"),
        ({"token": "abc"}, "--token: not a bootstrap token"),
        ({"kubernetes-version": "1.35"}, "--kubernetes-version: '1.35' is neither a version nor a label"),
        (
            {"kubernetes-version": "v1.20.0"},
            "--kubernetes-version: Kubernetes version 'v1.20.0': this kb deploys 1.31 to 1.37",
        ),
        ({"pod-network": "calico"}, "--pod-network: 'calico' is not allowed; choose one of bridge, manifest, none"),
        ({"ignore-preflight-errors": "all,swap"}, "--ignore-preflight-errors: 'all' is combined with other checks"),
    ],
)
def test_a_wrong_flag_is_named_in_place_of_a_line(flags: dict[str, Any], wanted: str) -> None:
    found = refuse(flags={**FLAGS, **flags})
    assert len(found) == 1
    assert found[0].startswith(wanted)


def test_flags_that_a_file_should_say_cannot_stand_beside_it() -> None:
    with pytest.raises(UsageError) as caught:
        load(
            CLUSTER,
            flags={"token": "x", "cert-dir": "/x", "node-name": "a", "skip-phases": ["b"], "upload-certs": True},
        )
    assert caught.value.what == "can not mix '--config' with arguments [cert-dir token]"
    assert caught.value.code == "mixed-flags"
    assert "--cert-dir is certificatesDir of ClusterConfiguration" in caught.value.cause


def test_some_flags_win_over_a_file() -> None:
    text = (
        INIT + "nodeRegistration: {name: a, ignorePreflightErrors: [Mem]}\nskipPhases: [x]\n---\n" + KB + "soak: 5s\n"
    )
    config = load(
        text,
        flags={
            "node-name": "b",
            "ignore-preflight-errors": ["Swap"],
            "skip-phases": ["y"],
            "dry-run": True,
            "soak": "7s",
        },
    )
    assert config.node.name == "b"
    assert config.node.ignore_preflight_errors == ("mem", "swap")
    assert config.skip_phases == ("y",)
    assert config.dry_run
    assert config.kb.soak_s == 7


@pytest.mark.parametrize("only", ["certs", "certs/apiserver"])
def test_for_certificates_the_machine_is_asked_for_names_and_addresses_alone(only: str) -> None:
    host = machine()
    asked: list[str] = []
    query = host.query

    def note(argv: Any, **options: Any) -> Any:
        asked.append(" ".join(map(str, argv)))
        return query(argv, **options)

    host.query = note  # type: ignore[method-assign]
    config = load_init_config(host, config_file=None, flags={}, only=only)
    assert (config.node.name, config.local_api_endpoint.advertise_address) == ("node1", "10.0.0.11")
    assert config.cluster.kubernetes_version == NEWEST_PROVEN and config.notes == ()
    assert not [line for line in asked if "--version" in line], asked
    assert config.cluster.service_cidrs() == load().cluster.service_cidrs()
    load_init_config(host, config_file=None, flags={}, only="kubelet-start")
    assert [line for line in asked if "kubelet --version" in line]


def test_a_partial_config_asks_for_the_version_alone_and_lets_the_file_win() -> None:
    host = FakeHost(files={"init.yaml": (CLUSTER + "imageRepository: a.org\n").encode()})
    config = load_partial_config(
        host, config_file=Path("init.yaml"), flags={"image-repository": "b.org", "cert-dir": "/x"}
    )
    assert (config.cluster.image_repository, config.cluster.certificates_dir) == ("a.org", "/etc/kubernetes/pki")
    assert config.cluster.kubernetes_version == NEWEST_PROVEN
    assert load_partial_config(host, config_file=None, flags={"cert-dir": "/x"}).cluster.certificates_dir == "/x"


def test_parse_duration_of_a_flag() -> None:
    assert parse_duration("24h", "--validity-period") == 86400
    with pytest.raises(UsageError, match="--validity-period 1d"):
        parse_duration("1d", "--validity-period")


# ---- files


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("-", "kb reads its configuration from a file"),
        ("/nowhere.yaml", "there is no such file"),
        ("/dir", "it is a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(path: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_init_config(FakeHost(dirs={"/dir"}), config_file=Path(path), flags={})
    assert (caught.value.code, caught.value.cause) == ("config-not-readable", cause)


def test_a_file_without_a_cluster_is_refused() -> None:
    for text in ("# nothing\n", KB):
        with pytest.raises(UsageError, match="no InitConfiguration or ClusterConfiguration kind was found") as caught:
            load(text)
        assert caught.value.code == "invalid-config"


# ---- addresses


def test_several_networks_are_listed_beside_the_choice() -> None:
    config = load(
        host=machine(lo=["127.0.0.1"], eth0=["10.0.0.11", "2001:db8::7"], eth1=["192.168.7.1"], docker0=["172.17.0.1"])
    )
    assert config.notes[0] == (
        "advertise address 10.0.0.11: eth0 holds the default route; this machine also has 192.168.7.1 (eth1)"
    )


def test_without_a_default_route_the_only_address_is_taken_and_of_several_none() -> None:
    host = machine(eth1=["192.168.7.1"])
    host.files = {}
    assert load(host=host).notes[0] == "advertise address 192.168.7.1: no default route, eth1 holds the only address"
    host.answers["ip -json addr"] = addresses(eth0=["10.0.0.11"], eth1=["192.168.7.1"])
    assert refuse(host=host) == [
        "localAPIEndpoint.advertiseAddress: no default route tells which address others reach this machine at; it has "
        "10.0.0.11 (eth0), 192.168.7.1 (eth1); give one: --apiserver-advertise-address, or "
        "localAPIEndpoint.advertiseAddress"
    ]


def test_without_the_program_ip_the_address_must_be_given() -> None:
    host = FakeHost(files={"/proc/net/route": ROUTE})
    assert "the program ip (package iproute2) is missing" in refuse(host=host)[0]
    assert load(host=host, flags=FLAGS).local_api_endpoint.advertise_address == "10.0.0.11"


def test_an_ipv6_machine_gets_ipv6_networks() -> None:
    host = machine(eth0=["fe80::5", "2001:db8::5"])
    host.files = {
        "/proc/net/ipv6_route": (f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003 eth0\n").encode()
    }
    config = load(host=host)
    assert config.local_api_endpoint.advertise_address == "2001:db8::5"
    assert config.cluster.networking.service_subnet == "fd00:10:96::/112"
    assert config.cluster.networking.pod_subnet == "fd00:10:244::/56"


def test_ipv6_services_first_make_the_ipv6_address_the_choice() -> None:
    host = machine(eth0=["10.0.0.11", "2001:db8::5"])
    host.files["/proc/net/ipv6_route"] = (
        f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003 eth0\n".encode()
    )
    config = load(host=host, flags={"service-cidr": "fd00:9::/112,10.96.0.0/16"})
    assert config.local_api_endpoint.advertise_address == "2001:db8::5"
    assert config.cluster.networking.pod_subnet == "fd00:10:244::/56,10.244.0.0/16"


@pytest.mark.parametrize(("given", "wanted"), [("0.0.0.0", "10.0.0.11"), ("127.0.0.1", "10.5.5.5")])
def test_an_address_that_names_no_machine_is_replaced(given: str, wanted: str) -> None:
    host = machine(lo=["127.0.0.1", "10.5.5.5"], eth0=["10.0.0.11"])
    assert load(host=host, flags={"apiserver-advertise-address": given}).local_api_endpoint.advertise_address == wanted


def test_a_loopback_address_without_another_on_lo_is_refused() -> None:
    assert (
        "nobody else can reach the loopback address 127.0.0.1"
        in refuse(flags={"apiserver-advertise-address": "127.0.0.1"})[0]
    )


def test_below_a_root_nothing_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "init.yaml"
    file.write_text(CLUSTER)
    root = tmp_path / "root"
    root.mkdir()
    config = load_init_config(LocalHost(root), config_file=file, flags={"node-name": "cp1"})
    assert config.local_api_endpoint.advertise_address == "192.0.2.10"
    assert config.notes[0] == (
        "no running system below --root: advertise address 192.0.2.10 is a placeholder, give --apiserver-advertise-address"
    )
    assert config.cluster.kubernetes_version == NEWEST_PROVEN
    assert config.cluster.networking.pod_subnet == "10.244.0.0/16"
    assert config.node.cri_socket == NodeRegistration.cri_socket


# ---- runtime


def test_the_runtime_socket_is_found() -> None:
    host = machine()
    host.files["/run/crio/crio.sock"] = b""
    assert load(host=host).node.cri_socket == "unix:///var/run/crio/crio.sock"
    host.files["/var/run/containerd/containerd.sock"] = b""
    assert refuse(host=host) == [
        "nodeRegistration.criSocket: there are several container runtimes: "
        "unix:///var/run/containerd/containerd.sock, unix:///var/run/crio/crio.sock; "
        "name the one to use: nodeRegistration.criSocket, or --cri-socket"
    ]


# ---- version


STABLE = "https://dl.k8s.io/release/stable-1.txt"


def test_without_kubelet_and_version_the_newest_proven_one_is_taken() -> None:
    host = machine()
    host.programs = set()
    config = load(host=host)
    assert config.cluster.kubernetes_version == NEWEST_PROVEN
    assert config.notes[0] == f"Kubernetes {NEWEST_PROVEN}: no version was given and no kubelet is installed"


def test_a_label_is_looked_up() -> None:
    host = machine()
    host.urls["https://dl.k8s.io/release/latest-1.35.txt"] = HttpResponse(200, b"v1.35.9-rc.0\n")
    host.urls["https://storage.googleapis.com/k8s-release-dev/ci/latest.txt"] = HttpResponse(
        200, b"v1.37.0-alpha.1.5+abc"
    )
    for label, version in (
        ("latest-1.35", "v1.35.9-rc.0"),
        ("release/latest-1.35", "v1.35.9-rc.0"),
        ("ci/latest", "v1.37.0-alpha.1.5+abc"),
    ):
        assert load(host=host, flags={"kubernetes-version": label}).cluster.kubernetes_version == version


@pytest.mark.parametrize("place", ["https://cdn.dl.k8s.io/release/stable-1.txt", "/moved/stable-1.txt"])
def test_a_label_is_looked_up_where_the_host_sends_on_to(place: str) -> None:
    host = machine()
    host.urls[STABLE] = HttpResponse(302, headers={"location": place})
    host.urls[place if place.startswith("https") else f"https://dl.k8s.io{place}"] = HttpResponse(200, b"v1.35.6\n")
    assert load(host=host, flags={"kubernetes-version": "stable-1"}).cluster.kubernetes_version == "v1.35.6"
    host.urls[STABLE] = HttpResponse(302, headers={"location": STABLE})
    assert "answered with HTTP status 302" in load(host=host, flags={"kubernetes-version": "stable-1"}).warnings[0]


def test_a_label_that_stands_for_a_newer_minor_becomes_the_newest_known() -> None:
    host = machine()
    host.urls[STABLE] = HttpResponse(200, b"v1.40.2")
    host.urls["https://dl.k8s.io/release/stable-1.37.txt"] = HttpResponse(200, b"v1.37.8")
    assert load(host=host, flags={"kubernetes-version": "stable-1"}).cluster.kubernetes_version == "v1.37.8"


@pytest.mark.parametrize("answer", [None, HttpResponse(404, b"no"), HttpResponse(200, b"<html>")])
def test_a_label_that_cannot_be_looked_up_falls_back_aloud(answer: Any) -> None:
    host = machine()
    if answer:
        host.urls[STABLE] = answer
    config = load(host=host, flags={"kubernetes-version": "stable-1"})
    assert config.cluster.kubernetes_version == "v1.35.6"
    assert config.warnings[0].startswith("the version label stable-1 could not be looked up (")
    assert config.warnings[0].endswith("): taking v1.35.6")


def test_a_minor_that_cannot_be_looked_up_is_never_replaced_by_another() -> None:
    assert (
        "the version label stable-1.34 could not be looked up" in refuse(flags={"kubernetes-version": "stable-1.34"})[0]
    )


# ---- pod network


def _routed(*targets: str) -> FakeHost:
    host = machine()
    host.answers["ip -4 -json route"] = json.dumps([{"dst": target} for target in ("default", *targets)])
    return host


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (_routed("10.244.3.0/24"), "10.245.0.0/16"),
        (_routed("10.0.0.0/8"), "172.20.0.0/16"),
        (_routed("10.0.0.0/8", "172.16.0.0/12"), "192.168.128.0/17"),
        (_routed("10.244.0.7"), "10.245.0.0/16"),
    ],
)
def test_the_pod_network_avoids_the_machines_routes(host: FakeHost, wanted: str) -> None:
    assert load(host=host).cluster.networking.pod_subnet == wanted


def test_no_free_pod_network_is_a_problem() -> None:
    assert (
        "no pod network that kb tries is free"
        in refuse(host=_routed("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))[0]
    )


def test_the_pod_network_avoids_the_services_and_the_kernels_routes_without_ip() -> None:
    assert load(flags={"service-cidr": "10.244.0.0/16"}).cluster.networking.pod_subnet == "10.245.0.0/16"
    host = FakeHost(files={"/proc/net/route": ROUTE + b"eth1\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"})
    assert load(host=host, flags=FLAGS).cluster.networking.pod_subnet == "10.245.0.0/16"


def test_a_cluster_that_is_here_keeps_its_pod_network() -> None:
    host = _routed("10.245.0.0/24")
    host.files["/etc/kubernetes/manifests/kube-controller-manager.yaml"] = b"    - --cluster-cidr=10.245.0.0/16\n"
    config = load(host=host)
    assert config.cluster.networking.pod_subnet == "10.245.0.0/16"
    assert "pod network 10.245.0.0/16, the one of the existing cluster" in config.notes


def test_without_kbs_bridge_no_pod_network_is_made_up() -> None:
    assert load(flags={"pod-network": "none"}).cluster.networking.pod_subnet == ""


# ---- the rest


def test_proxies_of_the_environment_are_collected() -> None:
    host = machine()
    host.env = {"HTTP_PROXY": "http://p", "no_proxy": "a", "https_proxy": "", "Foo_Proxy": "x", "PATH": "/bin"}
    assert load(host=host).proxy_env == {"Foo_Proxy": "x", "HTTP_PROXY": "http://p", "no_proxy": "a"}


def test_generated_tokens_have_the_form_and_differ() -> None:
    tokens = {generate_token().reveal() for _ in range(20)}
    assert len(tokens) == 20
    assert all(len(token) == 23 and token[6] == "." for token in tokens)


def test_two_loads_differ_in_the_generated_token_alone() -> None:
    first, second = load(), load()
    assert first != second
    assert replace(first, bootstrap_tokens=()) == replace(second, bootstrap_tokens=())


def test_null_is_as_if_the_field_were_not_there() -> None:
    config = load(
        INIT
        + "bootstrapTokens: [{ttl: null, expires: '2030-01-01T00:00:00Z'}]\nlocalAPIEndpoint: {advertiseAddress: null}\n"
    )
    assert config.bootstrap_tokens[0].expires == "2030-01-01T00:00:00Z"
    assert config.local_api_endpoint.advertise_address == "10.0.0.11"


# ---- a load balancer on every node

LOCAL = {**FLAGS, "load-balancer": "local", "pod-network": "none"}


@pytest.mark.parametrize(
    ("flags", "wanted", "has_note"),
    [
        ({}, "kb-api.cluster.local:7443", True),
        ({"service-dns-domain": "k8s.test"}, "kb-api.k8s.test:7443", True),
        ({"control-plane-endpoint": "api.test"}, "api.test:7443", True),
        ({"control-plane-endpoint": "api.test:8443"}, "api.test:8443", False),
        ({"load-balancer": "none"}, "", False),
        ({"load-balancer": "none", "control-plane-endpoint": "api.test"}, "api.test:6443", False),
    ],
)
def test_the_endpoint_of_a_load_balancer_on_every_node(flags: dict[str, Any], wanted: str, has_note: bool) -> None:
    config = load(flags={**LOCAL, **flags})
    assert config.cluster.control_plane_endpoint == wanted
    assert any(wanted in note and "load balancer" in note for note in config.notes) == has_note


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("api.test:6443", "port 6443 is the API server's own"),
        ("10.0.0.9:7443", "needs a name that leads to 127.0.0.1"),
    ],
)
def test_an_endpoint_that_no_load_balancer_can_serve(endpoint: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(flags={**LOCAL, "control-plane-endpoint": endpoint})
    assert text in "".join(caught.value.details)


def test_the_load_balancer_s_image_is_one_of_the_node_s() -> None:
    from kubeup import releases
    from kubeup.node import images

    plain, local = load(flags={**LOCAL, "load-balancer": "none"}), load(flags=LOCAL)
    release = releases.find_release("v1.35.6")
    (more,) = set(images.list_node_images(local, release)) - set(images.list_node_images(plain, release))
    assert more == releases.LOAD_BALANCER_IMAGE
