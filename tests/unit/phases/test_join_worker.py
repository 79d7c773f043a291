"""kubeup/phases/join_worker.py: what a worker gets, in which order, and what is said when its certificate does not come."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import pytest

import kb
from kubeup.cluster import api, signing_request
from kubeup.cluster.api import ApiRefused
from kubeup.config.types import (
    Join,
    JoinControlPlane,
    KbConfiguration,
    LocalAPIEndpoint,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
    Taint,
)
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks import ports as ports_checks
from kubeup.diagnosis.checks import runtime as runtime_checks
from kubeup.engine.run import Caller, Results, Run, Who
from kubeup.engine.runner import Runner
from kubeup.engine.state import State
from kubeup.errors import ClusterError, KbError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import CommandResult
from kubeup.machine.http import AnyTls, HttpResponse, Tls, Unreachable
from kubeup.node.kubeconfig import render_kubeconfig
from kubeup.paths import Paths
from kubeup.phases import join_worker
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from kubeup.trust import Anchors
from kubeup.yaml_files import load_yaml
from tests.fake_host import KUBELET_STARTS, FakeHost
from tests.plans import do, is_done
from tests.unit.cluster.discovery_case import CA, SERVER, make_ca
from tests.unit.cluster.test_signing_request import kubelet_request
from tests.unit.phases.test_kubelet_start import SystemdHost

BOOTSTRAP, KUBELET_CONF = "/etc/kubernetes/bootstrap-kubelet.conf", "/etc/kubernetes/kubelet.conf"
CA_FILE, CONFIG = "/etc/kubernetes/pki/ca.crt", "/var/lib/kubelet/config.yaml"
TOKEN = Secret("abcdef.0123456789abcdef")


@dataclass
class WorkerHost(SystemdHost):
    """A machine whose API server is a dict of paths; the kubelet "bootstraps" some time after its start."""

    objects: dict[str, Any] = field(default_factory=dict)
    bootstraps_after_s: float = 1.0
    started_at: Optional[float] = None

    def run(self, argv: Any, **rest: Any) -> CommandResult:
        if tuple(argv) == ("systemctl", "restart", "kubelet"):
            self.started_at = self.ticks
        return super().run(argv, **rest)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.started_at is not None and self.ticks - self.started_at >= self.bootstraps_after_s:
            identity = render_kubeconfig(server=SERVER, ca_pem=CA, user="u", client_cert_pem=CA, client_key_pem=KEY)
            self.files.setdefault(KUBELET_CONF, identity.encode())

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        path = url[len(SERVER) :].partition("?")[0]
        found = self.objects.get(path, {} if path == "/version" else None)
        if found is None:
            return HttpResponse(404, b'{"kind": "Status"}')
        return HttpResponse(200, json.dumps(found).encode())


KEY = Secret("-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n")


def worker(**fields: Any) -> WorkerHost:
    machine: dict[str, Any] = {
        "programs": {"systemctl", "kubelet"},
        "dirs": {"/run/systemd/system"},
        "accepts": KUBELET_STARTS,
    }
    host = WorkerHost(host_name="w1", **machine, **fields)
    host.answers["systemctl is-active kubelet"] = CommandResult(("systemctl",), 3, "inactive\n")
    return host


def join_config(minor: int = 35, **fields: Any) -> NodeConfig:
    from tests.unit.golden import golden_config

    cluster = golden_config(minor).cluster
    text = render_kubeconfig(server=SERVER, ca_pem=CA, user="tls-bootstrap-token-user", token=TOKEN)
    config = NodeConfig(
        cluster, NodeRegistration("w1"), golden_config(minor).local_api_endpoint, kubelet={"maxPods": 50},
        join=Join(SERVER, CA, bootstrap_kubeconfig=Secret(text)),
    )  # fmt: skip
    return replace(config, **fields)


def context(host: Any, config: Optional[NodeConfig] = None, minor: int = 35) -> Run:
    config = config or join_config(minor)
    identity = api.Identity(SERVER, Tls(Anchors.given(CA)), TOKEN)
    first: Who = "bootstrap" if config.joined.bootstrap_kubeconfig else "kubelet"
    return Run(host=host, paths=Paths(), config=config, release=RELEASES[minor], report=Report(io.StringIO(), verbosity=2),
        caller=Caller(lambda who: api.Api(host, identity, retry_s=0), first),
    )  # fmt: skip


def log_of(ctx: Run) -> str:
    assert isinstance(ctx.report.stream, io.StringIO)
    return ctx.report.stream.getvalue()


def member(config: NodeConfig) -> NodeConfig:
    return replace(config, join=replace(config.joined, bootstrap_kubeconfig=Secret("")))


# ---- the tuple


def test_the_phases_have_kubeadm_s_names() -> None:
    names = [phase.name for phase in kb.JOIN if not phase.on and not phase.when]
    assert [name for name in names if not name.startswith("load-balancer/")] == [
        "preflight", "install/sysctls", "kubelet-start", "kubelet-wait-bootstrap", "pod-network", "verify",
    ]  # fmt: skip
    # haproxy is there before the kubelet, which starts it and then calls the cluster through it
    assert names.index("load-balancer/local") + 1 == names.index("kubelet-start")
    assert names.index("kubelet-wait-bootstrap") + 1 == names.index("load-balancer/keeper")


def test_another_token_is_no_change() -> None:
    from kubeup.engine.step import fingerprint_spec

    ctx = context(FakeHost())
    for phase in kb.JOIN:
        later = replace(ctx, config=member(ctx.config))
        assert fingerprint_spec(phase, ctx) == fingerprint_spec(phase, later), phase.name


# ---- kubelet-start


def test_the_files_of_a_worker() -> None:
    host = worker()
    ctx = context(host, join_config(node=NodeRegistration("w1", taints=(Taint("lab", "NoSchedule", "yes"),))))
    do(join_worker.plan_kubelet, ctx)
    assert host.modes[BOOTSTRAP] == 0o600 and TOKEN.reveal().encode() in host.files[BOOTSTRAP]
    assert host.files[CA_FILE].decode() == CA and host.modes[CA_FILE] == 0o644
    config = load_yaml(host.files[CONFIG].decode())
    assert config["maxPods"] == 50 and config["clusterDNS"] == ["10.96.0.10"]
    assert config["containerRuntimeEndpoint"] == "unix:///var/run/containerd/containerd.sock"
    assert b"--register-with-taints=lab=yes:NoSchedule" in host.files["/var/lib/kubelet/kubeadm-flags.env"]
    assert host.modes["/var/lib/kubelet"] == 0o700 and "/etc/kubernetes/manifests" in host.dirs
    runs = [change for change in host.changes if change.startswith("run")]
    assert runs == [
        "run systemctl daemon-reload",
        "run systemctl restart kubelet",
        "run systemctl enable --no-reload kubelet",
    ]
    assert host.changes.index(f"write {BOOTSTRAP}") < host.changes.index("run systemctl restart kubelet")


def test_a_ca_path_of_one_s_own() -> None:
    config = join_config()
    host = worker()
    do(
        join_worker.plan_kubelet,
        context(host, replace(config, join=replace(config.joined, ca_cert_path="/etc/x/ca.crt"))),
    )
    assert host.files["/etc/x/ca.crt"].decode() == CA and CA_FILE not in host.files


def test_a_member_gets_no_bootstrap_credentials_and_is_left_alone() -> None:
    host = worker()
    do(join_worker.plan_kubelet, context(host))
    del host.files[BOOTSTRAP]
    ctx = context(host, member(join_config()))
    assert is_done(join_worker.plan_kubelet, ctx)
    host.changes.clear()
    do(join_worker.plan_kubelet, ctx)
    assert host.changes == []
    # but a changed file is written, and the kubelet restarted
    host.files[CONFIG] += b"x: 1\n"
    assert not is_done(join_worker.plan_kubelet, ctx)
    do(join_worker.plan_kubelet, ctx)
    assert "run systemctl restart kubelet" in host.changes and BOOTSTRAP not in host.files


PKI = "/var/lib/kubelet/pki"


@pytest.mark.parametrize("content", [make_ca("another"), "no certificate"])
def test_a_certificate_of_another_cluster_is_put_out_of_the_kubelet_s_way(content: str) -> None:
    """A kubelet shows it for as long as it is there, and never asks for one of this cluster."""
    host = worker()
    host.files[f"{PKI}/kubelet-client-current.pem"] = content.encode()
    ctx = context(host)
    do(join_worker.plan_kubelet, ctx)
    assert f"{PKI}/kubelet-client-current.pem" not in host.files
    assert host.files[f"{PKI}/of-before-kubelet-client-current.pem"] == content.encode()
    assert "is not from this cluster" in log_of(ctx)
    moved = next(number for number, change in enumerate(host.changes) if "of-before" in change)
    assert moved < host.changes.index("run systemctl restart kubelet")


def test_a_certificate_of_before_does_not_leave_a_running_kubelet_alone() -> None:
    """As after a first run that waited in vain."""
    host = worker()
    do(join_worker.plan_kubelet, context(host))
    del host.files[BOOTSTRAP]
    host.files[f"{PKI}/kubelet-client-current.pem"] = make_ca("another").encode()
    ctx = context(host, member(join_config()))
    assert not is_done(join_worker.plan_kubelet, ctx)
    host.files[f"{PKI}/kubelet-client-current.pem"] = CA.encode()
    assert is_done(join_worker.plan_kubelet, ctx)


@pytest.mark.parametrize(
    ("requests", "is_left_alone"),
    [([kubelet_request("a")], True), ([kubelet_request("a", "Approved")], True), ([kubelet_request("a", "Denied")], False), ([], False)],
)  # fmt: skip
def test_a_kubelet_that_waits_for_an_answer_is_left_alone(requests: list[dict[str, Any]], is_left_alone: bool) -> None:
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    host = worker(objects={path: {"items": requests}}, bootstraps_after_s=1e9)
    do(join_worker.plan_kubelet, context(host))
    host.changes.clear()
    do(join_worker.plan_kubelet, context(host))
    assert ("run systemctl restart kubelet" not in host.changes) == is_left_alone


def test_a_dry_run_shows_no_token() -> None:
    host = worker()
    dry = DryRunHost(host)
    do(join_worker.plan_kubelet, context(dry))
    shown = "\n".join(step.what + step.diff for step in dry.plan)
    assert BOOTSTRAP in shown and TOKEN.reveal() not in shown and host.changes == []


# ---- kubelet-wait-bootstrap


def test_the_bootstrap_ends_with_the_kubelet_s_own_identity() -> None:
    host = worker()
    ctx = context(host)
    do(join_worker.plan_kubelet, ctx)
    before = ctx.api
    assert (ctx.api is before, ctx.caller.who) == (True, "bootstrap")
    join_worker.wait_for_bootstrap(ctx)
    assert BOOTSTRAP not in host.files and KUBELET_CONF in host.files
    assert (ctx.api is before, ctx.caller.who) == (False, "kubelet")
    assert join_worker.is_bootstrapped(context(host, member(join_config())))
    assert not join_worker.is_bootstrapped(ctx)


def test_on_older_minors_the_socket_is_an_annotation() -> None:
    host = worker(objects={"/api/v1/nodes/w1": {"metadata": {"labels": {"kubernetes.io/hostname": "w1"}}}})
    patch = f"PATCH {SERVER}/api/v1/nodes/w1?fieldManager=kb"
    host.urls[patch] = HttpResponse(200, b'{"metadata": {"name": "w1"}}')
    ctx = context(host, join_config(32), 32)
    do(join_worker.plan_kubelet, ctx)
    join_worker.wait_for_bootstrap(ctx)
    assert patch in host.changes


@pytest.mark.parametrize(
    ("requests", "code", "is_at_once"),
    [
        ([], "csr-not-sent", False),
        ([kubelet_request("csr-1")], "csr-pending", False),
        ([kubelet_request("csr-1", "Approved")], "csr-not-signed", False),
        ([kubelet_request("csr-1", "Denied")], "csr-denied", True),
        ([kubelet_request("csr-1", "Failed")], "csr-failed", True),
    ],
)
def test_a_bootstrap_that_does_not_end(requests: list[dict[str, Any]], code: str, is_at_once: bool) -> None:
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    host = worker(objects={path: {"items": requests}}, bootstraps_after_s=1e9)
    ctx = context(host)
    do(join_worker.plan_kubelet, ctx)
    with pytest.raises(ClusterError) as caught:
        join_worker.wait_for_bootstrap(ctx)
    assert caught.value.code == code
    assert (host.ticks < 10) == is_at_once
    assert BOOTSTRAP in host.files  # the kubelet still needs it: it may be approved by hand
    assert ("still waiting" in log_of(ctx)) == (not is_at_once)


@pytest.mark.parametrize("requests", [[], [kubelet_request("csr-1", "Approved", cert="eA==")]])
def test_a_kubelet_that_is_answered_unauthorized_is_named_within_seconds(requests: list[dict[str, Any]]) -> None:
    """It shows a certificate of before; the request of an earlier join, signed long ago, hides nothing."""
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    host = worker(objects={path: {"items": requests}}, bootstraps_after_s=1e9)
    unit = "LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=0\nInvocationID=abc\nActiveEnterTimestampMonotonic=1\n"
    host.answers["systemctl show kubelet -p"] = unit
    host.answers["journalctl"] = 'E1129 08:00:00.0   1 kubelet_node_status.go:109] "Unable to register node with API server" err="Unauthorized" node="w1"\n'  # fmt: skip
    host.programs.add("crictl")
    host.files["/var/run/containerd/containerd.sock"] = b""
    host.answers["crictl"] = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}})
    ctx = context(host, join_config(kubelet={"healthzPort": 0}))
    do(join_worker.plan_kubelet, ctx)
    with pytest.raises(ClusterError) as caught:
        join_worker.wait_for_bootstrap(ctx)
    assert "the kubelet says Unauthorized" in caught.value.cause
    assert "kubelet-client-current.pem.off && systemctl restart kubelet" in log_of(ctx)


def test_a_token_without_the_right_to_ask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    host = worker(bootstraps_after_s=1e9)
    ctx = context(host)
    do(join_worker.plan_kubelet, ctx)
    refusal = ApiRefused("GET csr", 403, reason="Forbidden", message="cannot list", server=SERVER)

    def refuse(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(signing_request, "read_signing_request", refuse)
    with pytest.raises(ClusterError) as caught:
        join_worker.wait_for_bootstrap(ctx)
    assert caught.value.code == "csr-not-sent" and "cannot list" in caught.value.cause
    assert "kubeadm:kubelet-bootstrap" in caught.value.cause
    assert "kb init phase bootstrap-token" in caught.value.remedy


# ---- preflight, verify


def test_a_ready_node_of_the_same_name_stops_the_join() -> None:
    node = {
        "metadata": {"name": "w1", "creationTimestamp": "2025-12-29T00:00:00Z"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    ctx = context(worker(objects={"/api/v1/nodes/w1": node}))
    with pytest.raises(KbError) as caught:
        join_worker._check_name(ctx)
    assert caught.value.code == "node-name-taken"


def ready_node(status: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "w1"},
        "status": {"conditions": [{"type": "Ready", "status": status, "message": "no CNI"}]},
    }


def test_a_network_of_before_is_told_before_the_join_and_the_clusters_own_is_not() -> None:
    host = worker()
    host.files["/etc/cni/net.d/10-calico.conflist"] = b"{}"
    config = join_config(kb=KbConfiguration(PodNetwork("bridge")))
    node = facts.Node(host, config, RELEASES[35], Paths(), workflow=facts.JOIN)
    (finding,) = runtime_checks.check_join_network(node)
    assert (finding.name, finding.level) == ("CNIConfig", "error")
    assert "move it away" in finding.remedy and "writes its file again" in finding.remedy
    assert not list(
        runtime_checks.check_join_network(replace(node, config=join_config(kb=KbConfiguration(PodNetwork("none")))))
    )
    host.files[KUBELET_CONF] = b""  # since its kubelet runs, a DaemonSet may have brought it
    assert not list(runtime_checks.check_join_network(node))


def test_a_foreign_pod_network_may_come_later() -> None:
    host = worker(objects={"/api/v1/nodes/w1": ready_node("False")})
    config = join_config()
    ctx = context(host, replace(config, kb=replace(config.kb, pod_network=PodNetwork("none"))))
    assert join_worker.verify_node(ctx) == Results(node_ready=False)
    assert "has joined and is not Ready yet: no CNI" in log_of(ctx)
    assert not join_worker.node_is_verified(ctx)
    host.objects["/api/v1/nodes/w1"] = ready_node("True")
    assert join_worker.verify_node(ctx) == Results(node_ready=True) and join_worker.node_is_verified(ctx)


def give_trouble(host: WorkerHost, problem: str) -> None:
    """The kubelet that was started is stopped by now, or runs below a runtime that takes no work."""
    unit = "LoadState=loaded\nActiveState={}\nSubState=running\nNRestarts=0\nExecMainStatus=0\nMainPID=0\n"
    host.answers["systemctl show kubelet -p"] = unit.format("inactive" if problem == "kubelet" else "active")
    host.programs.add("crictl")
    host.files["/var/run/containerd/containerd.sock"] = b""
    host.files[CONFIG] = b"healthzPort: 0\n"
    is_ready = problem != "runtime"
    host.answers["crictl"] = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": is_ready}]}})


@pytest.mark.parametrize(
    ("problem", "link", "remedy"),
    [
        ("kubelet", "no CNI; the kubelet is not running: it is stopped", "systemctl start kubelet, then"),
        ("runtime", "no CNI; the container runtime does not serve this node: it reports", "see its log: "),
        ("none", "no CNI", "apply the cluster's pod network, or see what its pods wait for: kubectl get pods -A"),
    ],
)
def test_a_node_that_stays_not_ready_has_its_broken_link_named(problem: str, link: str, remedy: str) -> None:
    config = join_config()
    host = worker(objects={"/api/v1/nodes/w1": ready_node("False")})
    ctx = context(host, replace(config, kb=replace(config.kb, pod_network=PodNetwork("none"))))
    give_trouble(host, problem)
    assert join_worker.verify_node(ctx) == Results(node_ready=False)
    said = log_of(ctx)
    assert f"node w1 has joined and is not Ready yet: {link}" in said and f"Remedy: {remedy}" in said
    assert 30 <= host.ticks < 31


def test_a_node_without_dns_has_its_broken_link_named() -> None:
    host = worker(objects={"/api/v1/nodes/w1": ready_node("True")})
    give_trouble(host, "kubelet")
    ctx = context(host)
    assert join_worker.verify_node(ctx) == Results(node_ready=True)
    said = log_of(ctx)
    assert (
        "gave it no answer within 60 s; the kubelet is not running: it is stopped. Remedy: systemctl start kubelet"
        in said
    )


def test_a_bootstrap_without_an_api_server_names_the_nodes_own_broken_link_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = worker(bootstraps_after_s=1e9)
    give_trouble(host, "kubelet")
    ctx = context(host)
    do(join_worker.plan_kubelet, ctx)

    def refuse(*_: object, **__: object) -> None:
        raise Unreachable(SERVER, "refused", text="connection refused")

    monkeypatch.setattr(signing_request, "read_signing_request", refuse)
    with pytest.raises(ClusterError) as caught:
        join_worker.wait_for_bootstrap(ctx)
    assert caught.value.code == "csr-unknown"
    (detail,) = caught.value.details
    assert detail.startswith("the kubelet is not running: it is stopped. Remedy: systemctl start kubelet")


def test_with_kb_s_network_the_node_must_become_ready() -> None:
    ctx = context(worker(objects={"/api/v1/nodes/w1": ready_node("False")}))
    with pytest.raises(ClusterError) as caught:
        join_worker.verify_node(ctx)
    assert caught.value.code == "not-healthy"
    ctx = context(worker(objects={"/api/v1/nodes/w1": ready_node("True")}))
    assert join_worker.verify_node(ctx) == Results(node_ready=True)
    assert "gave it no answer" in log_of(ctx)


# ---- the journal


def test_what_reset_must_take_back_is_written_down() -> None:
    host = worker()
    state = State(host, Paths(), "w1", "kubernetes")
    phases = tuple(phase for phase in kb.JOIN if phase.name in ("kubelet-start", "kubelet-wait-bootstrap"))
    Runner("join", phases, state=state).run(context(host))
    assert {BOOTSTRAP, KUBELET_CONF, CA_FILE, CONFIG} - state.created_paths() <= {BOOTSTRAP}
    assert state.has_run("join") and not state.has_run("init")


def test_a_control_plane_may_have_been_given_the_authority() -> None:
    """kubeadm looks for caCertPath on workers alone: a control plane's files may have been copied there by hand."""
    host = FakeHost()
    host.files["/etc/kubernetes/pki/ca.crt"] = b"x"
    config = join_config()
    for control_plane, found in (
        (None, ["FileAvailable--etc-kubernetes-pki-ca.crt"]),
        (JoinControlPlane(LocalAPIEndpoint("10.0.0.12")), []),
    ):
        wishes = replace(config.joined, control_plane=control_plane)
        node = facts.Node(host, replace(config, join=wishes), RELEASES[35], Paths(), workflow=facts.JOIN)
        assert [finding.name for finding in ports_checks.check_joined(node)] == found
