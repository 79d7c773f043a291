"""verify: what it waits for, what it says at the end of its patience, and what a second run looks at."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster import objects as clusterobjects
from kubeup.cluster.api import Api, Identity, read_identity
from kubeup.config.types import (
    APIServer,
    Arg,
    ClusterConfiguration,
    KbConfiguration,
    LocalAPIEndpoint,
    Networking,
    NodeConfig,
    NodeRegistration,
    Proxy,
    Timeouts,
)
from kubeup.engine.run import Caller, Results, Run
from kubeup.errors import ClusterError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.paths import Paths
from kubeup.phases import health
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from tests.fake_cluster import ClusterHost
from tests.unit.network.test_pod_view import dns_answer

INFO = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
PODS = "/api/v1/namespaces/kube-system/pods"
INFO = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}
LOG = "E0101 00:00:00.000000       1 proxier.go:1] Failed to execute iptables-restore\n"


class Node(ClusterHost):
    """A node that came up. `answers_dns` False: nothing leads to the DNS' Service."""

    answers_dns = True

    def udp_exchange(self, address: str, port: int, payload: bytes, *, timeout_s: float = 2) -> Optional[bytes]:
        return super().udp_exchange(address, port, payload) if self.answers_dns else None


def make_context(tmp_path: Path, **config: Any) -> Run:
    host = Node(tmp_path)
    for component in COMPONENTS:
        host.write_file(Path(f"/etc/kubernetes/manifests/{component}.yaml"), "kind: Pod\n")
    host.write_file(Path("/var/run/containerd/containerd.sock"), "")
    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, json.dumps(INFO if "info" in argv else {}))
    host.run(["systemctl", "restart", "kubelet"])
    api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    made = NodeConfig(
        cluster=ClusterConfiguration("v1.35.0", Networking(pod_subnet="10.244.0.0/16")),
        node=NodeRegistration("cp1"),
        local_api_endpoint=LocalAPIEndpoint("10.0.0.11"),
        timeouts=Timeouts(kubelet_health_check_s=30),
    )
    return Run(
        host=host,
        paths=Paths(),
        config=replace(made, **config),
        release=RELEASES[35],
        report=Report(io.StringIO()),
        caller=Caller.by(api),
    )


def node_of(ctx: Run) -> Node:
    assert isinstance(ctx.host, Node)
    return ctx.host


def run_container(ctx: Run, name: str, *, state: str, exit_code: int = 0) -> None:
    """Let crictl tell of one container, with one line in its log."""
    ctx.host.write_file(Path("/var/log/one.log"), f"2026-01-01T00:00:00Z stderr F {LOG}")
    row = {"id": "abc", "metadata": {"name": name, "attempt": 1}, "state": state, "createdAt": "1"}
    inspect = {"status": {"id": "abc", "exitCode": exit_code, "logPath": "/var/log/one.log"}}

    def answer(argv: tuple[str, ...]) -> CommandResult:
        told: dict[str, Any] = {"info": INFO, "ps": {"containers": [row]}, "inspect": inspect}
        word = next((word for word in argv if word in told), "")
        return CommandResult(argv, 0, json.dumps(told.get(word, {})))

    node_of(ctx).answers["crictl"] = answer


def test_a_node_whose_dns_answers_is_verified(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    assert health.verify_node(ctx) == Results(node_ready=True)
    assert health.node_is_verified(ctx)


def test_a_running_kube_proxy_without_rules_is_named_with_its_last_error(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    node_of(ctx).answers_dns = False
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.code == "not-healthy"
    assert caught.value.cause == (
        "CoreDNS is Ready, but no answer comes from 10.96.0.10:53; kube-proxy says: Failed to execute iptables-restore"
    )


def test_coredns_that_waits_for_the_rules_does_not_hide_kube_proxy(tmp_path: Path) -> None:
    """Without kube-proxy's rules CoreDNS does not reach the API, so it is not Ready either."""
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.cause == "CoreDNS is not Ready yet; kube-proxy says: Failed to execute iptables-restore"


def test_a_node_that_takes_no_pods_for_want_of_space_is_named(tmp_path: Path) -> None:
    """CoreDNS stays Pending, and no container of the node shows why."""
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    (found,) = (one for path, one in node_of(ctx).cluster.objects.items() if path.endswith("/nodes/cp1"))
    pressure = {"type": "DiskPressure", "status": "True", "message": "kubelet has disk pressure"}
    found["status"]["conditions"].append(pressure)
    run_container(ctx, "kube-proxy", state="CONTAINER_RUNNING")
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.what == "node cp1 has DiskPressure, and takes no pods"
    assert caught.value.cause.startswith("kubelet has disk pressure: ") and "df -h" in caught.value.remedy
    pressure["status"] = "False"
    assert health.find_pressure(ctx) is None


def test_a_kube_proxy_that_ended_is_the_broken_link(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    run_container(ctx, "kube-proxy", state="CONTAINER_EXITED", exit_code=1)
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.what.startswith("kube-proxy exited 2 times")
    assert "Failed to execute iptables-restore" in caught.value.cause


def test_without_kube_proxy_its_absence_is_the_cause(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    cluster = replace(ctx.config.cluster, proxy=Proxy(disabled=True))
    ctx = replace(ctx, config=replace(ctx.config, cluster=cluster))
    node_of(ctx).cluster.objects[f"{PODS}/coredns-1"]["status"]["conditions"] = []
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.cause.startswith("CoreDNS is not Ready yet; there is no kube-proxy")


def let_pods_reach(ctx: Run, *ports: int) -> list[list[Any]]:
    """kb's network is this node's, and pods get answers from these ports; gives what was asked."""
    network = {"cniVersion": "0.4.0", "name": "kb-bridge", "plugins": [{"type": "bridge"}]}
    ctx.host.write_file(Path("/etc/cni/net.d/99-kb-bridge.conflist"), json.dumps(network))
    asked: list[list[Any]] = []

    def nsenter(argv: tuple[str, ...]) -> CommandResult:
        questions = json.loads(argv[-1])
        asked.extend(questions)
        answers = [
            ("open" if kind == "tcp" else dns_answer(text)) if port in ports else ""
            for kind, _, port, text in questions
        ]
        return CommandResult(argv, 0, json.dumps(answers))

    node_of(ctx).answers["nsenter"] = nsenter
    return asked


def test_a_node_whose_pods_reach_nothing_is_not_ready(tmp_path: Path) -> None:
    """The node itself reaches the DNS: a firewall drops what is forwarded alone."""
    ctx = make_context(tmp_path)
    asked = let_pods_reach(ctx)
    started = ctx.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.code == "not-healthy"
    assert caught.value.what.startswith(
        "a pod on this node does not reach the cluster's DNS at 10.96.0.10:53 nor the API's Service"
    )
    assert "dropped where it is forwarded" in caught.value.cause and "iptables -S FORWARD" in caught.value.remedy
    assert ctx.host.monotonic() - started < 90
    assert "(kb goes on waiting)" in str(ctx.report.notes)
    assert {(kind, address, port) for kind, address, port, _ in asked} >= {("udp", "10.96.0.10", 53), ("tcp", "10.96.0.1", 443), ("tcp", "10.0.0.11", 6443)}  # fmt: skip
    assert node_of(ctx).commands[-1] != "ip netns add kb-probe"


def test_a_node_whose_pods_reach_dns_and_api_is_verified(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    asked = let_pods_reach(ctx, 53, 443, 6443)
    assert health.verify_node(ctx) == Results(node_ready=True) and asked
    assert "ip netns add kb-probe" in node_of(ctx).commands


def test_a_pod_does_not_wait_out_the_pause_after_a_pull_that_works_by_now(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    objects, image = node_of(ctx).cluster.objects, "registry.k8s.io/coredns/coredns:v1.13.1"
    waiting = objects[f"{PODS}/coredns-1"]
    ready = json.loads(json.dumps(waiting))
    waiting["status"] |= {
        "conditions": [],
        "containerStatuses": [{"image": image, "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
    }
    waiting["metadata"]["name"] = "coredns-1"
    refused = 3

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        nonlocal refused
        if "pull" not in argv:
            return CommandResult(argv, 0, json.dumps(INFO if "info" in argv else {}))
        refused -= 1
        return CommandResult(argv, 1 if refused else 0, stderr="dial tcp 10.0.0.9:443: connect: connection refused")

    node_of(ctx).answers["crictl"] = crictl
    send = ctx.host.http_send

    def http_send(method: str, url: str, **rest: Any) -> HttpResponse:
        answer = send(method, url, **rest)
        if method == "DELETE" and url.endswith("/coredns-1"):
            objects[f"{PODS}/coredns-2"] = {**ready, "metadata": {**ready["metadata"], "name": "coredns-2"}}
        return answer

    ctx.host.http_send = http_send  # type: ignore[method-assign]
    started = ctx.host.monotonic()
    assert health.verify_node(ctx) == Results(node_ready=True)
    assert f"{PODS}/coredns-1" not in objects and not refused
    assert ctx.host.monotonic() - started < 25
    assert f"{image} can be pulled again: pod coredns-1 is made anew" in str(ctx.report.notes)


def test_a_serving_certificate_that_waits_for_approval_is_told_at_the_end(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, kubelet={"serverTLSBootstrap": True})
    requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    spec = {"username": "system:node:cp1", "signerName": "kubernetes.io/kubelet-serving"}
    objects = node_of(ctx).cluster.objects
    objects[f"{requests}/csr-1"] = {"metadata": {"name": "csr-1"}, "spec": spec, "status": {}}
    health.verify_node(ctx)
    (told,) = ctx.report.warnings
    assert "its request csr-1 is Pending" in told and "kubectl certificate approve csr-1" in told
    ctx.report.warnings.clear()
    health.verify_node(replace(ctx, config=replace(ctx.config, kubelet={})))
    objects[f"{requests}/csr-1"]["status"] = {"conditions": [{"type": "Approved"}], "certificate": "eA=="}
    health.verify_node(ctx)
    assert ctx.report.warnings == []


def probe_fails(ctx: Run, component: str, message: str) -> None:
    objects = node_of(ctx).cluster.objects
    objects[f"{PODS}/{component}-cp1"]["status"]["containerStatuses"][0]["ready"] = False
    for number, text in enumerate(("Startup probe failed: refused", message)):
        event = {"involvedObject": {"name": f"{component}-cp1"}, "reason": "Unhealthy", "message": text}
        event["lastTimestamp"] = f"2026-01-01T00:00:0{number}Z"
        objects[f"/api/v1/namespaces/kube-system/events/{component}.{number}"] = {"metadata": {"name": "x"}, **event}


@pytest.mark.parametrize(("value", "is_final"), [("false", True), ("true", False)])
def test_a_probe_that_fails_is_told_in_the_kubelet_s_words(tmp_path: Path, value: str, is_final: bool) -> None:
    args = APIServer(extra_args=(Arg("anonymous-auth", value),))
    ctx = make_context(tmp_path, cluster=ClusterConfiguration("v1.35.0", api_server=args))
    probe_fails(ctx, "kube-apiserver", "Startup probe failed: HTTP probe failed with statuscode: 401")
    started = ctx.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        health.soak(ctx, "cp1")
    assert caught.value.what == "kube-apiserver runs, and is not Ready"
    assert caught.value.cause.startswith("Startup probe failed: HTTP probe failed with statuscode: 401")
    assert ("--anonymous-auth=false has the API server answer" in caught.value.cause) is is_final
    waited = ctx.host.monotonic() - started
    assert (waited < 20) is is_final, f"it gave up after {waited:.0f} s"


def test_a_second_run_looks_at_ready_pods_and_dns(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    pod = node_of(ctx).cluster.objects[f"{PODS}/etcd-cp1"]
    pod["status"]["containerStatuses"][0]["ready"] = False
    assert not health.node_is_verified(ctx)
    pod["status"]["containerStatuses"][0]["ready"] = True
    assert health.node_is_verified(ctx)
    node_of(ctx).answers_dns = False
    assert not health.node_is_verified(ctx)
    assert health.node_is_verified(replace(ctx, config=replace(ctx.config, kb=KbConfiguration(soak_s=0))))


def test_a_second_run_does_not_take_pods_that_just_started_for_proven(tmp_path: Path) -> None:
    """The control plane was made anew a moment ago, as after a kubeadm reset: the soak has to be waited for again."""
    ctx = make_context(tmp_path)
    running = node_of(ctx).cluster.objects[f"{PODS}/etcd-cp1"]["status"]["containerStatuses"][0]["state"]["running"]
    running["startedAt"] = f"{ctx.host.now():%Y-%m-%dT%H:%M:%SZ}"
    assert not health.node_is_verified(ctx)


def test_the_end_of_a_kube_proxy_with_the_old_configuration_does_not_count(tmp_path: Path) -> None:
    """Its configuration was mended, and a restart asked for: the pod of before is waited out."""
    ctx = make_context(tmp_path)
    owner = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
    objects = node_of(ctx).cluster.objects
    objects[owner] = {"metadata": {"resourceVersion": "1", "uid": "u"}, "spec": {"template": {"metadata": {}}}}
    pod = objects[f"{PODS}/kube-proxy-1"] = {
        "metadata": {"name": "kube-proxy-1", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {"nodeName": "cp1"},
        "status": {},
    }
    assert health.verify_node(ctx) == Results(node_ready=True)

    clusterobjects.restart_pods(ctx.api, owner, ctx.host.now())
    with pytest.raises(ClusterError) as caught:
        health.verify_node(ctx)
    assert caught.value.what.startswith("kube-proxy's restart: not there after 30 s")
    assert caught.value.cause == "pod kube-proxy-1 still has the old configuration"

    pod["metadata"]["annotations"] = objects[owner]["spec"]["template"]["metadata"]["annotations"]
    assert health.verify_node(ctx) == Results(node_ready=True)


# ---- wait-control-plane: the first roles of a new API server


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: x
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://cluster:6443"}}}}]
users: [{{name: u, user: {{token: {who}}}}}]
"""


class YoungNode(Node):
    """Its API server knows system:masters alone until its roles are written, `roles_after_s` after its start."""

    roles_after_s = 5.0
    namespaces_after_s = 1.0
    asked: list[tuple[str, str]]

    def http_get(self, url: str, *, headers: Optional[Any] = None, **more: Any) -> Any:
        age = self.clock.timestamp() - START
        who = (headers or {}).get("Authorization", "").partition(" ")[2]
        self.asked.append((who, url.partition("6443")[2]))
        if ":10248" in url or ":1025" in url:
            return HttpResponse(200)
        if age < self.roles_after_s and who != "super":
            return HttpResponse(403, b"forbidden")
        if "/livez" in url and age < self.roles_after_s and "exclude=poststarthook/rbac/bootstrap-roles" not in url:
            return HttpResponse(500, b"[-]poststarthook/rbac/bootstrap-roles failed")
        if "/namespaces/" in url and age < self.namespaces_after_s:
            return HttpResponse(404, b"{}")
        return super().http_get(url, headers=headers, **more)

    def http_send(self, method: str, url: str, *, headers: Optional[Any] = None, **more: Any) -> Any:
        who = (headers or {}).get("Authorization", "").partition(" ")[2]
        self.asked.append((who, f"{method} {url.partition('6443')[2]}"))
        if who != "super" and self.clock.timestamp() - START < self.roles_after_s:
            return HttpResponse(403, b'{"reason": "Forbidden"}')
        return super().http_send(method, url, headers=headers, **more)


START = 1767225600.0  # the fake clock's first second


def young_context(tmp_path: Path, *, has_super_admin: bool = True) -> tuple[Run, YoungNode]:
    ctx = make_context(tmp_path)
    node = YoungNode(tmp_path, node_of(ctx).cluster)
    node.asked = []
    node.answers.update(node_of(ctx).answers)
    names = ("admin", "super-admin") if has_super_admin else ("admin",)
    for name in names:
        text = KUBECONFIG.format(who=name.partition("-")[0])
        node.write_file(Path(f"/etc/kubernetes/{name}.conf"), text, mode=0o600)
    admin = read_identity(node, Path("/etc/kubernetes/admin.conf"), server="https://10.0.0.11:6443")
    api = Api(node, admin, retry_s=0)
    return replace(ctx, host=node, caller=Caller.by(api)), node


def test_the_phases_after_the_start_do_not_wait_for_the_first_roles(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    health.wait_for_control_plane(ctx)
    assert 1 <= node.clock.timestamp() - START < 2  # the namespaces, and not the roles
    assert ("super", "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings") in node.asked
    ctx.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "kube-system"}})
    assert node.clock.timestamp() - START < 2


def test_before_the_controllers_are_well_the_admin_s_rights_must_hold(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    health.wait_for_control_plane(ctx)
    del node.asked[:]
    health.wait_for_controllers(ctx)
    assert node.clock.timestamp() - START >= 5
    assert {who for who, path in node.asked if "livez" in path and who} == {"admin"}
    assert ctx.api.identity.token.reveal() == "admin" and ctx.api.server == "https://10.0.0.11:6443"


def test_without_super_admin_conf_the_admin_waits_for_its_rights(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path, has_super_admin=False)
    health.wait_for_control_plane(ctx)
    assert node.clock.timestamp() - START >= 5 and {who for who, _ in node.asked if who} == {"admin"}


def test_who_names_a_kubeconfig_speaks_by_it_alone(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    mine = Identity("https://10.0.0.11:6443", Tls(), Secret("mine"))
    ctx.api.become(mine)
    health.wait_for_control_plane(ctx)
    health.wait_for_controllers(ctx)
    assert {who for who, _ in node.asked if who} == {"mine"} and ctx.api.identity == mine
