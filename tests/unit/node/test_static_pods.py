from __future__ import annotations

from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from kubeup.config.types import (
    APIServer,
    Arg,
    Component,
    ExternalEtcd,
    LocalAPIEndpoint,
    LocalEtcd,
    Networking,
    NodeConfig,
    Timeouts,
    Volume,
)
from kubeup.errors import UsageError
from kubeup.node.static_pods import (
    CONTROL_PLANE,
    HOST_CA_DIRS,
    NodeFacts,
    Pod,
    fill_scalars,
    merge_env,
    override_args,
    probe_host_ca_dirs,
    render_pod,
    startup_failures,
)
from kubeup.releases import RELEASES
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_host import FakeHost
from tests.unit.golden import DEBIAN, REAL_VERSIONS, VERSIONS, golden_config, golden_text, release_of

COMPONENTS = ("etcd", *CONTROL_PLANE)
NO_FACTS = NodeFacts()


def render(component: str, config: NodeConfig, *, minor: int = 35, node: NodeFacts = NO_FACTS) -> Pod:
    return render_pod(component, config, release=release_of(minor), node=node)


def container(pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def flags(pod: Pod) -> dict[str, str]:
    return dict(text[2:].split("=", 1) for text in container(pod)["command"][1:])


def volumes(pod: Pod) -> dict[str, tuple[str, str, bool]]:
    """name -> (host path, type, is read-only)"""
    read_only = {mount["name"]: mount.get("readOnly", False) for mount in container(pod)["volumeMounts"]}
    return {
        item["name"]: (item["hostPath"]["path"], item["hostPath"]["type"], read_only[item["name"]])
        for item in pod["spec"]["volumes"]
    }


# ---- golden files


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("minor", RELEASES)
def test_manifest_equals_the_golden_file(minor: int, component: str) -> None:
    pod = render(component, golden_config(minor), minor=minor, node=DEBIAN)
    assert pod == load_yaml(golden_text(minor, f"manifests/{component}.yaml"))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("minor", REAL_VERSIONS)
def test_manifest_is_byte_for_byte_what_kubeadm_writes(minor: int, component: str) -> None:
    pod = render(component, golden_config(minor), minor=minor, node=DEBIAN)
    assert dump_yaml(pod) == golden_text(minor, f"manifests/{component}.yaml")


def _everything(minor: int) -> NodeConfig:
    """A configuration that uses every way to change a manifest."""
    extras = {
        "extra_args": (Arg("v", "4"), Arg("bind-address", "0.0.0.0")),
        "extra_volumes": (Volume("mine", "/srv/mine", "/mine", True, "Directory"), Volume("other", "/o", "/o")),
        "extra_envs": ({"name": "A", "value": "1"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}),
    }
    config = golden_config(
        minor,
        networking=Networking("10.96.0.0/16,fd00:96::/112", "10.244.0.0/16,fd00:244::/56", "k8s.example"),
        api_server=APIServer(**extras),  # type: ignore[arg-type]
        controller_manager=Component(**extras),  # type: ignore[arg-type]
        scheduler=Component(**extras),  # type: ignore[arg-type]
        local_etcd=LocalEtcd(extra_args=(Arg("quota-backend-bytes", "1"),), extra_envs=({"name": "E", "value": "2"},)),
    )
    return replace(
        config, local_api_endpoint=LocalAPIEndpoint("fd00::11", 8443), proxy_env={"https_proxy": "http://p:3128"}
    )


@pytest.mark.parametrize("minor", RELEASES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_manifest_is_a_valid_pod(minor: int, component: str) -> None:
    plain = render(component, golden_config(minor), minor=minor, node=DEBIAN)
    full = render(component, _everything(minor), minor=minor, node=DEBIAN)
    for pod in (plain, full):
        kubernetes_validate.validate(pod, f"1.{minor}", strict=True)


def test_validation_would_find_a_broken_pod() -> None:
    pod = render("etcd", golden_config())
    container(pod)["imagePullPolicies"] = "IfNotPresent"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.35", strict=True)


# ---- flags


def test_extra_args_take_the_place_of_defaults_and_keep_their_order() -> None:
    command = ["prog", "--b=2", "--a=1", "--c=3"]
    extra = (Arg("z", "9"), Arg("b", "x"), Arg("b", ""))
    assert override_args(command, extra) == ["prog", "--a=1", "--c=3", "--z=9", "--b=x", "--b="]


def test_a_flag_value_may_hold_an_equals_sign() -> None:
    assert override_args(["etcd", "--initial-cluster=a=https://x"], ()) == ["etcd", "--initial-cluster=a=https://x"]


def test_authorization_config_drops_the_authorization_mode() -> None:
    own = APIServer(extra_args=(Arg("authorization-config", "/etc/authz.yaml"),))
    assert "authorization-mode" not in flags(render("kube-apiserver", golden_config(api_server=own)))


def test_authorization_mode_of_the_user_is_taken_verbatim() -> None:
    own = APIServer(extra_args=(Arg("authorization-mode", "Node,RBAC,Webhook"),))
    pod = render("kube-apiserver", golden_config(api_server=own))
    assert [text for text in container(pod)["command"] if "authorization-mode" in text] == [
        "--authorization-mode=Node,RBAC,Webhook"
    ]


def test_without_a_pod_subnet_the_controller_manager_allocates_nothing() -> None:
    have = flags(render("kube-controller-manager", golden_config(networking=Networking())))
    assert not {"allocate-node-cidrs", "cluster-cidr", "service-cluster-ip-range"} & set(have)


def test_an_external_ca_leaves_the_controller_manager_without_signing_files() -> None:
    have = flags(render("kube-controller-manager", golden_config(), node=NodeFacts(has_external_ca=True)))
    assert (have["cluster-signing-cert-file"], have["cluster-signing-key-file"]) == ("", "")
    assert have["root-ca-file"] == "/etc/kubernetes/pki/ca.crt"


def test_a_value_cannot_break_out_of_its_place() -> None:
    have = flags(render("kube-controller-manager", golden_config(cluster_name='a: b #"c"\n- d ${pki}')))
    assert have["cluster-name"] == 'a: b #"c"\n- d ${pki}'


def test_a_certificates_folder_of_its_own_is_used_everywhere() -> None:
    config = golden_config(certificates_dir="/srv/pki")
    for component in COMPONENTS:
        pod = render(component, config)
        assert "/etc/kubernetes/pki" not in dump_yaml(pod)
    assert volumes(render("kube-apiserver", config))["k8s-certs"] == ("/srv/pki", "DirectoryOrCreate", True)
    assert volumes(render("etcd", config))["etcd-certs"] == ("/srv/pki/etcd", "DirectoryOrCreate", False)


# ---- etcd


@pytest.mark.parametrize(
    ("tag", "is_new"),
    [("3.5.24-0", False), ("3.6.0-0", True), ("3.6.6-0", True), ("v3.6.1", True), ("latest", False), ("4.0.0", True)],
)
def test_etcd_flags_follow_the_image_tag(tag: str, is_new: bool) -> None:
    have = flags(render("etcd", golden_config(local_etcd=LocalEtcd(image_tag=tag))))
    assert (have.get("feature-gates") == "InitialCorruptCheck=true") is is_new
    assert (have.get("watch-progress-notify-interval") == "5s") is is_new
    assert (have.get("experimental-initial-corrupt-check") == "true") is not is_new
    assert (have.get("experimental-watch-progress-notify-interval") == "5s") is not is_new


def test_older_etcd_flags_are_sorted_in() -> None:
    command = container(render("etcd", golden_config(31), minor=31))["command"]
    assert command[1:] == sorted(command[1:])


def test_a_joining_etcd_member_is_told_all_members() -> None:
    members = (("cp0", "https://10.77.0.10:2380"), ("cp1", "https://10.77.0.11:2380"))
    have = flags(render("etcd", golden_config(), node=NodeFacts(etcd_members=members)))
    assert have["initial-cluster"] == "cp0=https://10.77.0.10:2380,cp1=https://10.77.0.11:2380"
    assert have["initial-cluster-state"] == "existing"
    assert "initial-cluster-state" not in flags(render("etcd", golden_config()))


def test_etcd_gets_no_proxy() -> None:
    config = replace(golden_config(), proxy_env={"HTTPS_PROXY": "http://p"})
    assert "env" not in container(render("etcd", config))
    assert container(render("kube-scheduler", config))["env"] == [{"name": "HTTPS_PROXY", "value": "http://p"}]


@pytest.mark.parametrize(
    ("urls", "want"),
    [
        ("https://0.0.0.0:2400,http://127.0.0.1:2381", ("0.0.0.0", "HTTPS", 2400)),
        ("http://[fd00::1]:9", ("fd00::1", "HTTP", 9)),
        ("http://10.0.0.1", ("10.0.0.1", "HTTP", 2381)),
        ("nonsense", ("127.0.0.1", "HTTP", 2381)),
        ("http://[::1", ("127.0.0.1", "HTTP", 2381)),
    ],
)
def test_etcd_is_probed_where_it_shows_its_metrics(urls: str, want: tuple[str, str, int]) -> None:
    own = LocalEtcd(extra_args=(Arg("listen-metrics-urls", urls),))
    found = container(render("etcd", golden_config(local_etcd=own)))
    request = found["livenessProbe"]["httpGet"]
    assert (request["host"], request["scheme"], found["ports"][0]["containerPort"]) == want
    request = container(render("etcd", golden_config(33, local_etcd=own), minor=33))["startupProbe"]["httpGet"]
    assert request["port"] == want[2]


def test_apiserver_finds_etcd_where_its_extra_arg_says() -> None:
    own = LocalEtcd(extra_args=(Arg("advertise-client-urls", "https://etcd.example:2379"),))
    assert flags(render("kube-apiserver", golden_config(local_etcd=own)))["etcd-servers"] == "https://etcd.example:2379"


def test_external_etcd_with_tls() -> None:
    etcd = ExternalEtcd(("https://e1:2379", "https://e2:2379"), (), "/srv/ca/ca.crt", "/srv/a/c.crt", "/srv/a/k/c.key")
    pod = render("kube-apiserver", golden_config(local_etcd=None, external_etcd=etcd))
    have = flags(pod)
    assert have["etcd-servers"] == "https://e1:2379,https://e2:2379"
    assert (have["etcd-cafile"], have["etcd-keyfile"]) == ("/srv/ca/ca.crt", "/srv/a/k/c.key")
    assert {name: where for name, where in volumes(pod).items() if name.startswith("etcd")} == {
        "etcd-certs-0": ("/srv/a", "DirectoryOrCreate", True),
        "etcd-certs-1": ("/srv/ca", "DirectoryOrCreate", True),
    }


def test_external_etcd_files_in_a_folder_that_is_there_anyway_need_no_volume() -> None:
    etcd = ExternalEtcd(
        ("https://e:1",), (), "/etc/ssl/certs/ca.crt", "/etc/kubernetes/pki/x/c.crt", "/etc/kubernetes/pkis/c"
    )
    found = volumes(render("kube-apiserver", golden_config(local_etcd=None, external_etcd=etcd)))
    assert [(name, where[0]) for name, where in found.items() if name.startswith("etcd")] == [
        ("etcd-certs-0", "/etc/kubernetes/pkis")
    ]


def test_external_etcd_without_tls() -> None:
    pod = render("kube-apiserver", golden_config(local_etcd=None, external_etcd=ExternalEtcd(("http://e:2379",))))
    assert {name for name in flags(pod) if name.startswith("etcd")} == {"etcd-servers"}


# ---- addresses


def test_ipv6_advertise_address() -> None:
    config = replace(golden_config(), local_api_endpoint=LocalAPIEndpoint("fd00::11"))
    etcd = flags(render("etcd", config))
    assert etcd["listen-client-urls"] == "https://[::1]:2379,https://[fd00::11]:2379"
    assert etcd["listen-metrics-urls"] == "http://[::1]:2381"
    assert etcd["initial-cluster"] == "cp1=https://[fd00::11]:2380"
    assert container(render("etcd", config))["livenessProbe"]["httpGet"]["host"] == "::1"
    pod = render("kube-apiserver", config)
    assert flags(pod)["etcd-servers"] == "https://[::1]:2379"
    assert flags(pod)["advertise-address"] == "fd00::11"
    assert pod["metadata"]["annotations"] == {
        "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint": "[fd00::11]:6443"
    }


def test_a_component_on_all_addresses_is_probed_on_the_pods_own() -> None:
    own = Component(extra_args=(Arg("bind-address", "10.0.0.9"), Arg("bind-address", "::")))
    for component in ("kube-controller-manager", "kube-scheduler"):
        pod = render(component, golden_config(controller_manager=own, scheduler=own))
        assert "host" not in container(pod)["livenessProbe"]["httpGet"]
    own = Component(extra_args=(Arg("bind-address", "10.0.0.9"),))
    assert (
        container(render("kube-scheduler", golden_config(scheduler=own)))["startupProbe"]["httpGet"]["host"]
        == "10.0.0.9"
    )


def test_bind_port_is_where_the_apiserver_listens_and_is_probed() -> None:
    config = replace(golden_config(), local_api_endpoint=LocalAPIEndpoint("10.77.0.11", 8443))
    pod = render("kube-apiserver", config)
    assert (flags(pod)["secure-port"], container(pod)["ports"][0]["containerPort"]) == ("8443", 8443)
    older = container(render("kube-apiserver", config, minor=33))
    assert (older["livenessProbe"]["httpGet"]["port"], "ports" in older) == (8443, False)


@pytest.mark.parametrize(("timeout_s", "failures"), [(240, 24), (241, 25), (60, 6), (1, 1), (0, 24)])
def test_startup_probe_covers_the_timeout(timeout_s: int, failures: int) -> None:
    assert startup_failures(timeout_s) == failures
    config = replace(golden_config(), timeouts=Timeouts(control_plane_component_health_check_s=timeout_s))
    assert container(render("etcd", config))["startupProbe"]["failureThreshold"] == failures


# ---- volumes and environment


def test_host_ca_folders_are_mounted_where_the_host_has_them() -> None:
    host = FakeHost(dirs={"/etc/pki/tls/certs", "/usr/share/ca-certificates"})
    found = probe_host_ca_dirs(host)
    assert found == ("/etc/pki/tls/certs", "/usr/share/ca-certificates")
    names = set(volumes(render("kube-apiserver", golden_config(), node=NodeFacts(found))))
    assert names == {"ca-certs", "k8s-certs", "etc-pki-tls-certs", "usr-share-ca-certificates"}
    assert not {name for name, _ in HOST_CA_DIRS} & set(volumes(render("kube-scheduler", golden_config(), node=DEBIAN)))


def test_extra_volumes_are_sorted_in_and_replace_a_default_of_the_same_name() -> None:
    own = APIServer(
        extra_volumes=(Volume("audit", "/var/log/a", "/a"), Volume("k8s-certs", "/x", "/y", True, "Directory"))
    )
    pod = render("kube-apiserver", golden_config(api_server=own))
    assert volumes(pod) == {
        "audit": ("/var/log/a", "", False),
        "ca-certs": ("/etc/ssl/certs", "DirectoryOrCreate", True),
        "k8s-certs": ("/x", "Directory", True),
    }
    assert [mount["mountPath"] for mount in container(pod)["volumeMounts"]] == ["/a", "/etc/ssl/certs", "/y"]


def test_flexvolume_folder_goes_where_the_flag_says_and_ends_with_1_35() -> None:
    own = Component(extra_args=(Arg("flex-volume-plugin-dir", "/var/lib/flex"),))
    config = golden_config(controller_manager=own)
    older = volumes(render("kube-controller-manager", config, minor=35))
    assert older["flexvolume-dir"] == ("/var/lib/flex", "DirectoryOrCreate", False)
    assert "flexvolume-dir" not in volumes(render("kube-controller-manager", config, minor=36))


def test_extra_envs_win_over_proxies_and_all_is_sorted() -> None:
    env = merge_env(
        {"no_proxy": "a", "HTTP_PROXY": "b"},
        ({"name": "no_proxy", "value": "mine"}, {"name": "A", "valueFrom": {"x": 1}}),
    )
    assert env == [
        {"name": "A", "valueFrom": {"x": 1}},
        {"name": "HTTP_PROXY", "value": "b"},
        {"name": "no_proxy", "value": "mine"},
    ]


# ---- the rest


def test_rootless_control_plane_is_refused_by_name() -> None:
    with pytest.raises(UsageError) as raised:
        render("kube-scheduler", golden_config(feature_gates={"RootlessControlPlane": True}))
    assert raised.value.code == "rootless-control-plane"
    assert "RootlessControlPlane" in raised.value.what + raised.value.remedy
    render("kube-scheduler", golden_config(feature_gates={"RootlessControlPlane": False}))


def test_fill_scalars_keeps_numbers_and_fails_on_a_word_without_a_value() -> None:
    assert fill_scalars({"a": ["${n}", "x${n}", 3]}, {"n": 7}) == {"a": [7, "x7", 3]}
    with pytest.raises(KeyError):
        fill_scalars("${other}", {"n": 7})


def test_scheduler_of_1_31_has_no_readiness_probe() -> None:
    found = container(render("kube-scheduler", golden_config(31), minor=31))
    assert "readinessProbe" not in found
    assert found["livenessProbe"]["httpGet"]["path"] == found["startupProbe"]["httpGet"]["path"] == "/healthz"


def test_versions_cover_all_releases() -> None:
    assert set(VERSIONS) == set(RELEASES)
