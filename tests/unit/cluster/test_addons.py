"""CoreDNS and kube-proxy against the objects that real kubeadm left in real clusters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from kubeup.cluster import addons
from kubeup.cluster import objects as clusterobjects
from kubeup.cluster.api import Object
from kubeup.config.types import DNS, ClusterConfiguration, LocalAPIEndpoint, Networking, NodeConfig, NodeRegistration
from kubeup.errors import ClusterError
from kubeup.node import kubelet, patches
from kubeup.releases import RELEASES
from kubeup.yaml_files import load_yaml
from tests.fake_host import FakeHost

GOLDEN = Path(__file__).parents[2] / "golden"
VERSIONS = {34: "v1.34.9", 35: "v1.35.6", 36: "v1.36.3"}
ANYWHERE = "*"

# What the API server fills in: (end of the path, value). A field that only the real object has must be one of these.
SERVER_DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("spec.progressDeadlineSeconds", 600),
    ("spec.revisionHistoryLimit", 10),
    ("strategy.rollingUpdate.maxSurge", "25%"),
    ("updateStrategy.rollingUpdate.maxSurge", 0),
    ("updateStrategy.rollingUpdate.maxUnavailable", 1),
    ("spec.dnsPolicy", "ClusterFirst"),
    ("spec.restartPolicy", "Always"),
    ("spec.schedulerName", "default-scheduler"),
    ("spec.terminationGracePeriodSeconds", 30),
    ("spec.serviceAccount", ANYWHERE),
    ("terminationMessagePath", "/dev/termination-log"),
    ("terminationMessagePolicy", "File"),
    ("configMap.defaultMode", 420),
    ("fieldRef.apiVersion", "v1"),
    ("hostPath.type", ""),
    ("livenessProbe.periodSeconds", 10),
    ("readinessProbe.periodSeconds", 10),
    ("readinessProbe.failureThreshold", 3),
    ("readinessProbe.successThreshold", 1),
    ("readinessProbe.timeoutSeconds", 1),
    ("spec.clusterIPs[0]", "10.96.0.10"),
    ("spec.internalTrafficPolicy", "Cluster"),
    ("spec.ipFamilies[0]", "IPv4"),
    ("spec.ipFamilyPolicy", "SingleStack"),
    ("spec.sessionAffinity", "None"),
    ("spec.type", "ClusterIP"),
)


def make_config(minor: int = 35, **kwargs: Any) -> NodeConfig:
    """The configuration of the golden nodes."""
    cluster = ClusterConfiguration(VERSIONS.get(minor, f"v1.{minor}.0"), Networking(pod_subnet="10.244.0.0/16"))
    given = {"kube_proxy": {"conntrack": {"maxPerCore": 0}}, "kubelet": {"failCgroupV1": False}, **kwargs}
    return NodeConfig(
        cluster=given.pop("cluster", cluster),
        node=NodeRegistration("cp1"),
        local_api_endpoint=given.pop("local_api_endpoint", LocalAPIEndpoint("10.77.0.11")),
        **given,
    )


def read_golden(minor: int, name: str) -> Object:
    found: Object = json.loads((GOLDEN / f"1.{minor}" / "objects" / f"{name}.json").read_text())
    return found


def golden_name(obj: Mapping[str, Any]) -> str:
    meta = obj["metadata"]
    return f"{obj['kind'].lower()}--{meta.get('namespace', 'cluster')}--{meta['name'].replace(':', '_')}"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in `value` that is no container; empty containers say nothing."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def assert_equals_real(rendered: Object, real: Object) -> None:
    """Every field that is rendered is real, and every field of the real one is rendered or a server's default."""
    ours, theirs = dict(leaves(rendered)), dict(leaves(real))
    different = {path: (value, theirs.get(path)) for path, value in ours.items() if theirs.get(path) != value}
    assert different == {}
    missing = {path: value for path, value in theirs.items() if path not in ours}
    unexplained = {
        path: value
        for path, value in missing.items()
        if not any(path.endswith(end) and default in (ANYWHERE, value) for end, default in SERVER_DEFAULTS)
    }
    assert unexplained == {}


def all_objects(config: NodeConfig, minor: int) -> list[Object]:
    release = RELEASES[minor]
    return [
        *addons.render_coredns(config, release, running=addons.RunningDns()),
        *addons.render_kube_proxy(config, release),
    ]


@pytest.mark.parametrize("minor", sorted(VERSIONS))
def test_addons_equal_the_objects_of_real_kubeadm(minor: int) -> None:
    objects = all_objects(make_config(minor), minor)
    assert len(objects) == 12
    for rendered in objects:
        assert_equals_real(rendered, read_golden(minor, golden_name(rendered)))


def test_the_comparison_notices_a_field_that_is_missing_and_one_that_differs() -> None:
    real = read_golden(35, "service--kube-system--kube-dns")
    with pytest.raises(AssertionError):
        assert_equals_real({**real, "spec": {**real["spec"], "clusterIP": "10.96.0.11"}}, real)
    less = {**real, "spec": {key: value for key, value in real["spec"].items() if key != "selector"}}
    with pytest.raises(AssertionError):
        assert_equals_real(less, real)


@pytest.mark.parametrize("minor", sorted(RELEASES))
def test_every_object_is_valid_in_every_minor(minor: int) -> None:
    for rendered in all_objects(make_config(minor), minor):
        kubernetes_validate.validate(rendered, f"1.{minor}", strict=True)


def test_the_order_is_kubeadms() -> None:
    objects = addons.render_coredns(make_config(), RELEASES[35], running=addons.RunningDns())
    assert [found["kind"] for found in objects] == [
        "ConfigMap",
        "ClusterRole",
        "ClusterRoleBinding",
        "ServiceAccount",
        "Deployment",
        "Service",
    ]
    proxy = addons.render_kube_proxy(make_config(), RELEASES[35])
    assert [found["kind"] for found in proxy] == [
        "ConfigMap",
        "DaemonSet",
        "ServiceAccount",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ]


# ---- CoreDNS


def deployment_of(objects: list[Object]) -> Object:
    return next(found for found in objects if found["kind"] == "Deployment")


def test_older_minors_probe_numbered_ports() -> None:
    deployment = deployment_of(addons.render_coredns(make_config(33), RELEASES[33], running=addons.RunningDns()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert [port["name"] for port in container["ports"]] == ["dns", "dns-tcp", "metrics"]
    assert container["livenessProbe"]["httpGet"]["port"] == 8080
    assert container["readinessProbe"]["httpGet"]["port"] == 8181


def test_the_service_has_index_ten_of_the_first_service_cidr() -> None:
    dual = ClusterConfiguration("v1.35.6", Networking("fd00:1::/112,10.96.0.0/16", "fd00:2::/64,10.244.0.0/16"))
    objects = addons.render_coredns(make_config(cluster=dual), RELEASES[35], running=addons.RunningDns())
    assert objects[-1]["spec"]["clusterIP"] == "fd00:1::a"
    assert "ipFamilyPolicy" not in objects[-1]["spec"]


def test_the_images_follow_the_configuration() -> None:
    cluster = replace(make_config().cluster, image_repository="10.0.0.5:5000/k8s", dns=DNS(image_tag="v9"))
    objects = all_objects(make_config(cluster=cluster), 35)
    images = [
        container["image"]
        for found in objects
        if found["kind"] in ("Deployment", "DaemonSet")
        for container in found["spec"]["template"]["spec"]["containers"]
    ]
    assert images == ["10.0.0.5:5000/k8s/coredns:v9", "10.0.0.5:5000/k8s/kube-proxy:v1.35.6"]


def test_replicas_and_the_name_of_a_running_deployment_are_kept() -> None:
    found = {"metadata": {"name": "coredns-own"}, "spec": {"replicas": 5}}
    running = addons.parse_running_dns([found], None, service=None)
    deployment = deployment_of(addons.render_coredns(make_config(), RELEASES[35], running=running))
    assert (deployment["metadata"]["name"], deployment["spec"]["replicas"]) == ("coredns-own", 5)


def test_zero_replicas_are_kept_too() -> None:
    found = {"metadata": {"name": "coredns"}, "spec": {"replicas": 0}}
    assert addons.parse_running_dns([found], None, service=None).replicas == 0


def test_two_dns_deployments_are_an_error_that_names_them() -> None:
    found = [{"metadata": {"name": name}, "spec": {}} for name in ("coredns", "kube-dns")]
    with pytest.raises(ClusterError) as caught:
        addons.parse_running_dns(found, None, service=None)
    assert caught.value.code == "dns-deployments-many"
    assert "coredns, kube-dns" in caught.value.what


@pytest.mark.parametrize("minor", [31, 32, 35])
def test_a_default_corefile_of_any_minor_is_replaced(minor: int) -> None:
    config = make_config()
    old = addons.render_corefile(config.cluster, RELEASES[minor])
    running = addons.RunningDns(corefile=old.replace("    errors\n", "  errors   # as shipped\n\n"))
    objects = addons.render_coredns(config, RELEASES[36], running=running)
    assert objects[0]["data"]["Corefile"] == addons.render_corefile(config.cluster, RELEASES[36])


def test_the_corefile_caches_the_clusters_zone_until_131_alone() -> None:
    cluster = make_config().cluster
    assert "disable success" not in addons.render_corefile(cluster, RELEASES[31])
    assert "disable success cluster.local" in addons.render_corefile(cluster, RELEASES[32])


@pytest.mark.parametrize(
    "change",
    [
        ("forward . /etc/resolv.conf", "forward . 10.0.0.53"),
        ("    reload\n", "    reload\n    log\n"),
        ("ttl 30", "ttl 5"),
        ("loadbalance\n}\n", "loadbalance\n}\nexample.org:53 {\n    forward . 10.0.0.53\n}\n"),
    ],
)
def test_an_edited_corefile_is_kept(change: tuple[str, str]) -> None:
    config = make_config()
    edited = addons.render_corefile(config.cluster, RELEASES[35]).replace(*change)
    assert change[1] in edited
    objects = addons.render_coredns(config, RELEASES[36], running=addons.RunningDns(corefile=edited))
    assert objects[0]["data"]["Corefile"] == edited


def test_a_kube_dns_with_another_address_is_an_error() -> None:
    with pytest.raises(ClusterError) as caught:
        addons.render_coredns(make_config(), RELEASES[35], running=addons.RunningDns(service_address="10.43.0.10"))
    assert caught.value.code == "dns-address-differs"
    assert "10.43.0.10" in caught.value.what


def test_patches_apply_to_the_deployment_alone() -> None:
    host = FakeHost(files={"/p/corednsdeployment.yaml": b"spec: {replicas: 3}\n"})
    patch = patches.read_patches(host, "/p")
    objects = addons.render_coredns(make_config(), RELEASES[35], running=addons.RunningDns(), patch=patch)
    assert deployment_of(objects)["spec"]["replicas"] == 3
    assert objects[-1] == addons.render_coredns(make_config(), RELEASES[35], running=addons.RunningDns())[-1]


# ---- kube-proxy


def proxy_config(config: NodeConfig) -> dict[str, Any]:
    data = addons.render_kube_proxy(config, RELEASES[35])[0]["data"]
    found: dict[str, Any] = load_yaml(data["config.conf"])
    return found


def test_the_users_fields_lie_on_top() -> None:
    own = {"mode": "nftables", "clusterCIDR": "10.9.0.0/16", "iptables": {"masqueradeAll": True}}
    found = proxy_config(make_config(kube_proxy=own))
    assert (found["mode"], found["clusterCIDR"]) == ("nftables", "10.9.0.0/16")
    assert found["iptables"] == {
        "localhostNodePorts": None,
        "masqueradeAll": True,
        "masqueradeBit": None,
        "minSyncPeriod": "0s",
        "syncPeriod": "0s",
    }
    assert found["clientConnection"]["kubeconfig"] == "/var/lib/kube-proxy/kubeconfig.conf"


def test_the_bind_address_follows_the_nodes() -> None:
    config = make_config(local_api_endpoint=LocalAPIEndpoint("fd00::11"))
    assert proxy_config(config)["bindAddress"] == "::"
    kubeconfig = addons.render_kube_proxy(config, RELEASES[35])[0]["data"]["kubeconfig.conf"]
    assert load_yaml(kubeconfig)["clusters"][0]["cluster"]["server"] == "https://[fd00::11]:6443"


def test_kube_proxy_speaks_to_the_control_plane_endpoint() -> None:
    cluster = replace(make_config().cluster, control_plane_endpoint="api.example.com:8443")
    kubeconfig = addons.render_kube_proxy(make_config(cluster=cluster), RELEASES[35])[0]["data"]["kubeconfig.conf"]
    assert load_yaml(kubeconfig)["clusters"][0]["cluster"]["server"] == "https://api.example.com:8443"


def test_a_generated_configuration_is_signed_and_a_users_is_not() -> None:
    own = addons.render_kube_proxy(make_config(), RELEASES[35])[0]
    assert "annotations" not in own["metadata"]
    generated = addons.render_kube_proxy(make_config(kube_proxy={}), RELEASES[35])[0]
    assert generated["metadata"]["annotations"] == {
        clusterobjects.HASH_ANNOTATION: kubelet.component_config_hash(generated["data"])
    }


def test_proxy_variables_follow_the_node_name_in_order() -> None:
    config = make_config(proxy_env={"no_proxy": "10.0.0.0/8", "HTTPS_PROXY": "http://p:3128"})
    daemon_set = addons.render_kube_proxy(config, RELEASES[35])[1]
    env = daemon_set["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [entry["name"] for entry in env] == ["NODE_NAME", "HTTPS_PROXY", "no_proxy"]
    assert env[1]["value"] == "http://p:3128"


def test_the_two_files_end_without_a_newline() -> None:
    data = addons.render_kube_proxy(make_config(), RELEASES[35])[0]["data"]
    assert not any(text.endswith("\n") for text in data.values())
