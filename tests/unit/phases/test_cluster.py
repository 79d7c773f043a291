"""The phases from upload-config to pod-network, on a folder as node and a dict as cluster."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster import objects, shared_certs, tokens
from kubeup.cluster.api import Api, Identity, Object
from kubeup.config.types import (
    DNS,
    BootstrapToken,
    ClusterConfiguration,
    KbConfiguration,
    LocalAPIEndpoint,
    Networking,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
    Proxy,
    Taint,
)
from kubeup.engine.run import Caller, Results, Run
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import Tls
from kubeup.network import route_keeper
from kubeup.paths import Paths
from kubeup.phases import addons, cluster, node_network
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from kubeup.yaml_files import load_yaml
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.plans import do, is_done

TOKEN = BootstrapToken(Secret("abcdef.0123456789abcdef"))
CA_PEM = "-----BEGIN CERTIFICATE-----\nQ0E=\n-----END CERTIFICATE-----\n"
CA_DATA = base64.b64encode(CA_PEM.encode()).decode()
KEY = Secret("0123456789abcdef" * 4)
ADMIN_CONF = f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://api.example.com:6443", certificate-authority-data: {CA_DATA}}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
LINKS = [{"ifname": "eth0", "mtu": 1500, "addr_info": [{"local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]}]

KB_CONFLIST = Path("/etc/cni/net.d/99-kb-bridge.conflist")


def make_context(tmp_path: Path, *, minor: int = 35, node: Optional[Object] = None, **config: Any) -> Run:
    host = ClusterHost(tmp_path, FakeCluster())
    api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    host.write_file(Path("/etc/kubernetes/admin.conf"), ADMIN_CONF)
    host.answers["ip -json address show"] = lambda argv: CommandResult(argv, 0, json.dumps(LINKS))
    for name in ("bridge", "host-local", "loopback", "portmap"):
        host.write_file(Path("/opt/cni/bin") / name, b"")
    if node is not None:
        api.create(node)
    networking = Networking(pod_subnet="10.244.0.0/16")
    given = {"cluster": ClusterConfiguration(f"v1.{minor}.0", networking), "bootstrap_tokens": (TOKEN,), **config}
    made = NodeConfig(node=NodeRegistration("cp1"), local_api_endpoint=LocalAPIEndpoint("10.0.0.11"), **given)
    stream = io.StringIO()
    return Run(
        host=host, paths=Paths(), config=made, release=RELEASES[minor], report=Report(stream), caller=Caller.by(api)
    )


def make_node(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "cp1", "labels": {"kubernetes.io/hostname": "cp1"}},
        "spec": {"podCIDRs": ["10.244.0.0/24"], **spec},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.11"}]},
    }


def fake(ctx: Run) -> FakeCluster:
    assert isinstance(ctx.host, ClusterHost)
    return ctx.host.cluster


def made(ctx: Run, kind: str) -> dict[str, Object]:
    return fake(ctx).by_kind(kind)


def changes(ctx: Run) -> int:
    """A number that grows with every change of an object."""
    return fake(ctx).version


PHASES: list[tuple[str, Callable[[Run], Any], Callable[[Run], bool]]] = [
    ("upload-config/kubeadm", cluster.upload_kubeadm_config, cluster.kubeadm_config_is_uploaded),
    ("upload-config/kubelet", cluster.upload_kubelet_config, cluster.kubelet_config_is_uploaded),
    ("mark-control-plane", cluster.mark_control_plane, cluster.control_plane_is_marked),
    ("bootstrap-token", partial(do, cluster.plan_bootstrap_tokens), partial(is_done, cluster.plan_bootstrap_tokens)),
    ("addon/coredns", addons.apply_coredns, addons.coredns_is_applied),
    ("addon/kube-proxy", addons.apply_kube_proxy, addons.kube_proxy_is_applied),
]


@pytest.mark.parametrize("minor", sorted(RELEASES))
@pytest.mark.parametrize(("name", "run", "done"), PHASES, ids=[name for name, _, _ in PHASES])
def test_a_phase_is_done_once_it_ran_and_a_second_run_changes_nothing(
    tmp_path: Path, minor: int, name: str, run: Callable[[Run], Any], done: Callable[[Run], bool]
) -> None:
    ctx = make_context(tmp_path, minor=minor, node=make_node())
    assert done(ctx) is False
    before = changes(ctx)
    run(ctx)
    after = changes(ctx)
    assert after > before
    assert done(ctx) is True
    run(ctx)
    assert changes(ctx) == after


# ---- upload-config


def test_the_stored_configuration_is_kubeadms(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    cluster.upload_kubeadm_config(ctx)
    stored = load_yaml(made(ctx, "ConfigMap")["kubeadm-config"]["data"]["ClusterConfiguration"])
    assert stored["kind"] == "ClusterConfiguration"
    assert stored["kubernetesVersion"] == "v1.35.0"
    assert list(made(ctx, "RoleBinding")) == ["kubeadm:nodes-kubeadm-config"]


def test_other_keys_of_kubeadm_config_survive(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    ctx.api.create(objects.render_config_map("kubeadm-config", {"other": "kept"}))
    cluster.upload_kubeadm_config(ctx)
    assert made(ctx, "ConfigMap")["kubeadm-config"]["data"]["other"] == "kept"


def test_older_minors_note_the_cri_socket_on_the_node(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, minor=33, node=make_node())
    cluster.upload_kubelet_config(ctx)
    assert made(ctx, "Node")["cp1"]["metadata"]["annotations"] == {
        "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///var/run/containerd/containerd.sock"
    }
    newer = make_context(tmp_path / "2", minor=34, node=make_node())
    cluster.upload_kubelet_config(newer)
    assert "annotations" not in made(newer, "Node")["cp1"]["metadata"]


def test_a_users_kubelet_configuration_is_not_signed(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    cluster.upload_kubelet_config(ctx)
    assert objects.HASH_ANNOTATION in made(ctx, "ConfigMap")["kubelet-config"]["metadata"]["annotations"]
    own = replace(ctx, config=replace(ctx.config, kubelet={"maxPods": 42}))
    assert cluster.kubelet_config_is_uploaded(own) is False
    cluster.upload_kubelet_config(own)
    found = made(ctx, "ConfigMap")["kubelet-config"]
    assert "annotations" not in found["metadata"]
    assert load_yaml(found["data"]["kubelet"])["maxPods"] == 42


# ---- upload-certs

SHARED = (
    "ca.crt",
    "ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "sa.pub",
    "sa.key",
    "etcd/ca.crt",
    "etcd/ca.key",
)


def with_pki(ctx: Run) -> Run:
    for name in SHARED:
        kind = "CERTIFICATE" if name.endswith(".crt") else "PUBLIC KEY" if name.endswith(".pub") else "PRIVATE KEY"
        ctx.host.write_file(ctx.paths.pki / name, f"-----BEGIN {kind}-----\nQ0E=\n-----END {kind}-----\n")
    return ctx


def test_without_the_flag_no_certificate_is_uploaded(tmp_path: Path) -> None:
    ctx = with_pki(make_context(tmp_path))
    assert cluster.certs_are_uploaded(ctx) is True
    assert cluster.upload_certs(ctx) is None
    assert fake(ctx).objects == {}
    assert ctx.report.notes == []


def test_certificates_are_uploaded_under_the_key_and_owned_by_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_certs, "check_shareable", lambda host, paths: None)
    ctx = with_pki(make_context(tmp_path, upload_certs=True, certificate_key=KEY))
    assert cluster.certs_are_uploaded(ctx) is False
    assert cluster.upload_certs(ctx) == Results(certificate_key=KEY)
    secrets = made(ctx, "Secret")
    owner = secrets["kubeadm-certs"]["metadata"]["ownerReferences"]
    token = next(secret for name, secret in secrets.items() if name.startswith("bootstrap-token-"))
    assert [(entry["name"], entry["uid"]) for entry in owner] == [(token["metadata"]["name"], token["metadata"]["uid"])]
    parsed = tokens.parse_token_secret(token)
    assert parsed is not None
    assert parsed.usages == ()
    files = shared_certs.plan_downloads(secrets["kubeadm-certs"], KEY, paths=ctx.paths, cluster=ctx.config.cluster)
    assert len(files) == 8
    assert list(made(ctx, "RoleBinding")) == ["kubeadm:kubeadm-certs"]
    assert cluster.certs_are_uploaded(ctx) is True
    other = replace(ctx, config=replace(ctx.config, certificate_key=Secret("f" * 64)))
    assert cluster.certs_are_uploaded(other) is False


def test_a_second_upload_has_one_owner_and_a_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_certs, "check_shareable", lambda host, paths: None)
    ctx = with_pki(make_context(tmp_path, upload_certs=True))
    first, second = cluster.upload_certs(ctx), cluster.upload_certs(ctx)
    assert first is not None
    assert second is not None
    assert first.certificate_key != second.certificate_key
    assert len(made(ctx, "Secret")["kubeadm-certs"]["metadata"]["ownerReferences"]) == 1


# ---- mark-control-plane


@pytest.mark.parametrize(
    ("taints", "wanted"),
    [
        (None, [("node-role.kubernetes.io/control-plane", "NoSchedule")]),
        ((), []),
        ((Taint("team", "NoExecute", "a"),), [("team", "NoExecute")]),
    ],
)
def test_taints_follow_the_configuration(tmp_path: Path, taints: Any, wanted: list[tuple[str, str]]) -> None:
    ctx = make_context(tmp_path, node=make_node())
    ctx = replace(ctx, config=replace(ctx.config, node=replace(ctx.config.node, taints=taints)))
    cluster.mark_control_plane(ctx)
    node = made(ctx, "Node")["cp1"]
    assert [(taint["key"], taint["effect"]) for taint in node["spec"].get("taints", [])] == wanted
    assert node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] == ""


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("active", "the kubelet runs, and has not registered a node of this name; the cluster's nodes are: other"),
        ("failed", "the kubelet's service is failed, so it registers no node; the cluster's nodes are: other"),
    ],
)
def test_a_node_that_never_registers_is_an_error_with_the_kubelets_state(
    tmp_path: Path, state: str, cause: str
) -> None:
    ctx = make_context(tmp_path)
    ctx.api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    assert isinstance(ctx.host, ClusterHost)
    ctx.host.answers["systemctl is-active kubelet"] = lambda argv: CommandResult(argv, 0, f"{state}\n")
    with pytest.raises(ClusterError) as caught:
        cluster.wait_for_node(ctx)
    error = caught.value
    assert error.code == "node-not-registered"
    assert error.what == "node cp1 is not registered after 60 s"
    assert error.cause == cause
    assert "journalctl -u kubelet" in error.remedy


def test_a_node_is_waited_for_until_its_kubelet_reported(tmp_path: Path) -> None:
    node = make_node()
    labels = node["metadata"].pop("labels")
    ctx = make_context(tmp_path, node=node)
    host, original = ctx.host, ctx.host.sleep
    started = host.monotonic()

    def sleep(seconds: float) -> None:
        original(seconds)
        if host.monotonic() - started > 3:
            fake(ctx).objects["/api/v1/nodes/cp1"]["metadata"]["labels"] = labels

    host.sleep = sleep  # type: ignore[method-assign]
    assert cluster.wait_for_node(ctx)["metadata"]["labels"] == labels
    assert host.monotonic() - started == pytest.approx(3.25)


# ---- bootstrap-token


def test_tokens_and_cluster_info(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    handed = do(cluster.plan_bootstrap_tokens, ctx)
    assert handed == Results(tokens=[TOKEN.token], token_ids=["abcdef"])
    assert list(made(ctx, "Secret")) == ["bootstrap-token-abcdef"]
    info = load_yaml(made(ctx, "ConfigMap")["cluster-info"]["data"]["kubeconfig"])
    assert info["clusters"] == [
        {"name": "", "cluster": {"server": "https://api.example.com:6443", "certificate-authority-data": CA_DATA}}
    ]


def test_objects_come_in_kubeadms_order(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(cluster.plan_bootstrap_tokens, ctx)
    sent = [request.rpartition("/")[2] for request in fake(ctx).requests if not request.startswith("GET")]
    assert sent == [
        "bootstrap-token-abcdef",
        "kubeadm:get-nodes",
        "kubeadm:get-nodes",
        "kubeadm:kubelet-bootstrap",
        "kubeadm:node-autoapprove-bootstrap",
        "kubeadm:node-autoapprove-certificate-rotation",
        "kubeadm:apiserver-kubelet-client",
        "cluster-info",
        "kubeadm:bootstrap-signer-clusterinfo",
        "kubeadm:bootstrap-signer-clusterinfo",
    ]


def test_an_expired_token_is_made_again(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(cluster.plan_bootstrap_tokens, ctx)
    assert is_done(cluster.plan_bootstrap_tokens, ctx) is True
    ctx.host.sleep(86400 + 1)
    assert is_done(cluster.plan_bootstrap_tokens, ctx) is False


def test_another_token_is_not_taken_for_the_configured_one(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    do(cluster.plan_bootstrap_tokens, ctx)
    other = BootstrapToken(Secret("zzzzzz.0123456789abcdef"))
    assert (
        is_done(cluster.plan_bootstrap_tokens, replace(ctx, config=replace(ctx.config, bootstrap_tokens=(other,))))
        is False
    )
    same_id = BootstrapToken(Secret("abcdef.ffffffffffffffff"))
    assert (
        is_done(cluster.plan_bootstrap_tokens, replace(ctx, config=replace(ctx.config, bootstrap_tokens=(same_id,))))
        is False
    )


# ---- addons


def test_disabled_addons_are_left_out(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    without = replace(ctx.config.cluster, dns=DNS(disabled=True), proxy=Proxy(disabled=True))
    ctx = replace(ctx, config=replace(ctx.config, cluster=without))
    assert addons.coredns_is_applied(ctx)
    assert addons.kube_proxy_is_applied(ctx)
    addons.apply_coredns(ctx)
    addons.apply_kube_proxy(ctx)
    assert fake(ctx).objects == {}
    assert ctx.report.notes == ["dns.disabled is set: no CoreDNS", "proxy.disabled is set: no kube-proxy"]


def test_a_changed_configuration_restarts_kube_proxy(tmp_path: Path) -> None:
    """kube-proxy reads its configuration once; the first install and an unchanged one restart nothing."""
    ctx = make_context(tmp_path)
    restarted = "kubectl.kubernetes.io/restartedAt"

    def annotations(ctx: Run) -> Object:
        found: Object = made(ctx, "DaemonSet")["kube-proxy"]["spec"]["template"]["metadata"].get("annotations") or {}
        return found

    addons.apply_kube_proxy(ctx)
    addons.apply_kube_proxy(ctx)
    assert restarted not in annotations(ctx)
    changed = replace(ctx, config=replace(ctx.config, kube_proxy={"mode": "nftables"}))
    addons.apply_kube_proxy(changed)
    assert annotations(ctx)[restarted] == "2026-01-01T00:00:00Z"
    assert addons.kube_proxy_is_applied(changed)


def test_what_people_changed_in_coredns_stays(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    addons.apply_coredns(ctx)
    deployment = made(ctx, "Deployment")["coredns"]
    deployment["spec"]["replicas"] = 4
    config_map = made(ctx, "ConfigMap")["coredns"]
    config_map["data"]["Corefile"] = edited = config_map["data"]["Corefile"].replace("ttl 30", "ttl 5")
    assert addons.coredns_is_applied(ctx) is True
    addons.apply_coredns(ctx)
    assert made(ctx, "Deployment")["coredns"]["spec"]["replicas"] == 4
    assert made(ctx, "ConfigMap")["coredns"]["data"]["Corefile"] == edited
    assert ctx.report.notes == ["the Corefile in ConfigMap kube-system/coredns was edited: it is kept"]


def test_a_coredns_of_another_version_is_not_done(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    addons.apply_coredns(ctx)
    assert addons.coredns_is_applied(replace(ctx, release=RELEASES[36])) is False


# ---- pod-network


def with_network(ctx: Run, network: PodNetwork, mirror: str = "") -> Run:
    return replace(ctx, config=replace(ctx.config, kb=KbConfiguration(network, mirror)))


def start_units(ctx: Run) -> None:
    """Let systemctl say that the keeper runs once it was started."""
    assert isinstance(ctx.host, ClusterHost)
    host = ctx.host

    def is_active(argv: tuple[str, ...]) -> CommandResult:
        runs = "systemctl restart kb-routes.service" in host.commands
        return CommandResult(argv, 0 if runs else 3, "active\n" if runs else "inactive\n")

    host.answers["systemctl is-active kb-routes.service"] = is_active


def test_the_bridge_is_set_up_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    start_units(ctx)
    assert is_done(node_network.plan_pod_network, ctx) is False
    do(node_network.plan_pod_network, ctx)
    conflist = json.loads(ctx.host.read_text(KB_CONFLIST))
    assert conflist["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.244.0.0/24"}]]
    assert conflist["plugins"][0]["mtu"] == 1450
    settings = route_keeper.read_settings(ctx.host, ctx.paths)
    assert settings == route_keeper.RouteSettings("cp1", ("10.244.0.0/16",), "auto", ("10.96.0.0/12",))
    assert "kb:node-routes" in made(ctx, "ClusterRoleBinding")
    assert is_done(node_network.plan_pod_network, ctx) is True
    assert isinstance(ctx.host, ClusterHost)
    count, version = len(ctx.host.commands), changes(ctx)
    do(node_network.plan_pod_network, ctx)
    assert (len(ctx.host.commands), changes(ctx)) == (count, version)


@pytest.mark.parametrize("state", ["inactive\n", "failed\n"])
def test_a_keeper_that_does_not_run_is_seen(tmp_path: Path, state: str) -> None:
    ctx = make_context(tmp_path, node=make_node())
    start_units(ctx)
    do(node_network.plan_pod_network, ctx)
    assert isinstance(ctx.host, ClusterHost)
    ctx.host.answers["systemctl is-active kb-routes.service"] = CommandResult((), 3, state)
    assert is_done(node_network.plan_pod_network, ctx) is False


def test_an_edited_file_of_the_bridge_is_seen(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    start_units(ctx)
    do(node_network.plan_pod_network, ctx)
    ctx.host.write_file(KB_CONFLIST, "edited")
    assert is_done(node_network.plan_pod_network, ctx) is False


def test_a_network_that_was_installed_later_is_no_drift(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    start_units(ctx)
    do(node_network.plan_pod_network, ctx)
    ctx.host.write_file(Path("/etc/cni/net.d/10-calico.conflist"), "{}")
    assert is_done(node_network.plan_pod_network, ctx) is True
    ctx.host.move_file(KB_CONFLIST, Path(f"{KB_CONFLIST}.cilium_bak"))
    assert is_done(node_network.plan_pod_network, ctx) is True


def test_a_clusters_other_network_may_be_quicker_than_kb_on_a_node_that_joins(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    do(node_network.plan_pod_network, ctx)
    for path in (KB_CONFLIST, Path("/etc/systemd/system/kb-routes.service")):
        ctx.host.remove(path)
    ctx.host.write_file(Path("/etc/cni/net.d/10-calico.conflist"), "{}")
    assert not is_done(node_network.plan_node_network, ctx)
    do(node_network.plan_node_network, ctx)
    start_units(ctx)
    assert is_done(node_network.plan_node_network, ctx) and ctx.host.exists(KB_CONFLIST)


def test_a_network_that_is_there_before_stops_the_phase_before_any_change(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    ctx.host.write_file(Path("/etc/cni/net.d/87-podman.conflist"), "{}")
    with pytest.raises(HostError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert caught.value.code == "foreign-cni-config"
    assert not ctx.host.exists(KB_CONFLIST)


def test_missing_plugins_stop_the_phase(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    ctx.host.remove(Path("/opt/cni/bin/portmap"))
    with pytest.raises(HostError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert caught.value.code == "cni-plugins-missing"


def test_a_node_without_a_range_waits_and_then_says_why(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node(podCIDRs=[]))
    with pytest.raises(KbError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert caught.value.code == "no-pod-cidr"
    assert caught.value.what == "node cp1 has no podCIDR after 120 s"


def test_a_cluster_without_ranges_does_not_wait(tmp_path: Path) -> None:
    configuration = ClusterConfiguration("v1.35.0")
    ctx = make_context(tmp_path, node=make_node(podCIDRs=[]), cluster=configuration)
    started = ctx.host.monotonic()
    with pytest.raises(UsageError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert caught.value.code == "no-pod-subnet"
    assert ctx.host.monotonic() == started


def test_a_used_up_range_is_told_from_the_nodes_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = make_context(tmp_path, node=make_node(podCIDRs=[]))
    real = ctx.api.list

    def listed(path: str, *, label: str = "", field: str = "") -> list[Object]:
        if path.endswith("/events"):
            assert field == "involvedObject.name=cp1,reason=CIDRNotAvailable"
            return [{"message": "Node cp1 status is now: CIDRNotAvailable"}]
        return real(path, label=label, field=field)

    monkeypatch.setattr(ctx.api, "list", listed)
    with pytest.raises(ClusterError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert "the range is used up" in caught.value.cause


def test_a_joining_node_does_as_the_cluster_says(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, node=make_node())
    start_units(ctx)
    assert is_done(node_network.plan_node_network, ctx) is True  # a cluster that kubeadm made
    do(node_network.plan_node_network, ctx)
    assert ctx.host.list_dir(Path("/etc/cni/net.d")) == []
    ctx.api.create(objects.render_kb_config(PodNetwork(backend="route")))
    assert is_done(node_network.plan_node_network, ctx) is False
    do(node_network.plan_node_network, ctx)
    assert is_done(node_network.plan_node_network, ctx) is True
    assert route_keeper.read_settings(ctx.host, ctx.paths).backend == "route"
    assert made(ctx, "ClusterRole") == {}


def test_no_network_writes_nothing_on_the_node(tmp_path: Path) -> None:
    ctx = with_network(make_context(tmp_path, node=make_node()), PodNetwork("none"))
    do(node_network.plan_pod_network, ctx)
    assert ctx.host.list_dir(Path("/etc/cni/net.d")) == []
    assert objects.read_pod_network(ctx.api).plugin == "none"
    assert is_done(node_network.plan_pod_network, ctx) is True


MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata: {name: net, namespace: net}
data: {a: b}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
---
{apiVersion: v1, kind: Namespace, metadata: {name: net}}
"""


def test_a_manifest_waits_for_its_own_kinds(tmp_path: Path) -> None:
    ctx = with_network(make_context(tmp_path), PodNetwork("manifest", "/m.yaml"))
    ctx.host.write_file(Path("/m.yaml"), MANIFEST)
    original = ctx.host.sleep
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.example.com"

    def sleep(seconds: float) -> None:
        original(seconds)
        assert "net" not in made(ctx, "ConfigMap")
        fake(ctx).objects[path]["status"] = {"conditions": [{"type": "Established", "status": "True"}]}

    ctx.host.sleep = sleep  # type: ignore[method-assign]
    do(node_network.plan_pod_network, ctx)
    sent = [request.rpartition("/")[2] for request in fake(ctx).requests if request.startswith("PATCH")]
    assert sent[-3:] == ["net", "things.example.com", "net"]
    assert is_done(node_network.plan_pod_network, ctx) is True


def test_a_kind_that_is_never_established_is_named(tmp_path: Path) -> None:
    ctx = with_network(make_context(tmp_path), PodNetwork("manifest", "/m.yaml"))
    ctx.host.write_file(Path("/m.yaml"), MANIFEST)
    with pytest.raises(ClusterError) as caught:
        do(node_network.plan_pod_network, ctx)
    assert caught.value.code == "crd-not-established"
    assert "things.example.com" in caught.value.what
