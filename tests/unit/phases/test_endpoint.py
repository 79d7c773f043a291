"""kubeup/phases/endpoint.py: who is told of a new endpoint, and who not before all API servers bear it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

import kb
from kubeup import day_two
from kubeup.cluster import api as kubeapi
from kubeup.cluster import objects
from kubeup.commands.reconfigure import _parse_endpoint, _plan_undo
from kubeup.config.types import (
    ClusterConfiguration,
    Join,
    JoinControlPlane,
    KbConfiguration,
    LoadBalancer,
    LocalAPIEndpoint,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
)
from kubeup.engine.run import Caller, Found, Results
from kubeup.engine.runner import Runner
from kubeup.engine.state import PhaseState, load_state
from kubeup.errors import ClusterError, KbError, UsageError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.network import load_balancer
from kubeup.node import certificates, kubeconfig, pki, private_keys
from kubeup.paths import Paths
from kubeup.phases import endpoint as reconfigure
from kubeup.phases import static_pods_swap
from kubeup.phases.endpoint import Before, Change, EndpointRun
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.trust import Anchors
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.fake_host import KUBELET_STARTS, FakeHost
from tests.plans import do

NAME, ENDPOINT = "api.test", "api.test:6443"
OWN, OTHER = "10.0.0.11:6443", "10.0.0.12:6443"
BEFORE = Before("", f"https://{OWN}", "none")
STORED_BEFORE = {
    "before_endpoint": "",
    "before_server": f"https://{OWN}",
    "before_balancer": "none",
    "before_is_begun_here": True,
}
"""As every kb that has this command has stored it."""
PATHS = Paths()
SLICE = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"


class Endpoint(ClusterHost):
    """A control plane that serves its certificate from disk; `names` are what the other API servers bear."""

    names: dict[str, bool] = {}  # noqa: RUF012
    leads: bool = True

    def resolve(self, name: str) -> list[str]:
        return ["10.0.0.100"] if name == NAME and self.leads else []

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        place = f"{address}:{port}"
        own = self.read_text(PATHS.pki / "apiserver.crt")
        if place in (OWN, ENDPOINT):
            return own
        if place in self.names:
            return own if self.names[place] else self.read_text(PATHS.pki / "apiserver-kubelet-client.crt")
        return None

    def http_get(self, url: str, **words: Any) -> HttpResponse:
        return super().http_get(url.replace(ENDPOINT, OWN), **words)


def make(tmp_path: Path, *, servers: tuple[str, ...] = (OWN,), **kb_fields: Any) -> tuple[Endpoint, EndpointRun]:
    cluster = FakeCluster(is_up=True)
    host = Endpoint(tmp_path, cluster)
    before = ClusterConfiguration("v1.35.6")
    endpoint = LocalAPIEndpoint("10.0.0.11")
    plain = NodeConfig(before, NodeRegistration("cp1"), endpoint)
    keys = private_keys.KeyMaker("ECDSA-P256", wanted=6)
    pki.ensure_ca(host, PATHS, config=plain, name="ca", make_key=keys.take)
    for name in ("apiserver", "apiserver-kubelet-client"):
        pki.ensure_cert(host, PATHS, config=plain, name=name, make_key=keys.take)
    for name in ("admin", "super-admin", "kubelet"):
        kubeconfig.ensure_kubeconfig(host, PATHS, config=plain, release=RELEASES[35], name=name, make_key=keys.take)
    host.write_file(PATHS.manifest("kube-apiserver"), "kind: Pod\n")
    ca_pem = host.read_text(PATHS.pki / "ca.crt")
    api = kubeapi.Api(host, kubeapi.Identity(f"https://{OWN}", Tls(Anchors.given(ca_pem))), retry_s=0)
    stored = {"kind": "ClusterConfiguration", "apiVersion": "kubeadm.k8s.io/v1beta4", "newerField": 1}
    proxy = "apiVersion: v1\nkind: Config\nclusters: [{name: default, cluster: {server: 'https://10.0.0.11:6443'}}]\n"
    proxy += "contexts: [{name: default, context: {cluster: default}}]\ncurrent-context: default\n"
    for found in (
        objects.render_kubeadm_config(stored),
        objects.render_cluster_info(f"https://{OWN}", ca_pem),
        objects.render_config_map("kube-proxy", {"kubeconfig.conf": proxy, "config.conf": "x"}),
        objects.render_kb_config(PodNetwork()),
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
         "spec": {"template": {"metadata": {}}}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "kubernetes", "namespace": "default"},
         "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": [one.partition(":")[0]]} for one in servers]},
        *({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
          for name, labels in (("cp1", {"node-role.kubernetes.io/control-plane": ""}), ("w1", {}))),
    ):  # fmt: skip
        api.create(found)
    config = replace(
        plain,
        cluster=replace(before, control_plane_endpoint=ENDPOINT),
        kb=KbConfiguration(**kb_fields),
        join=Join(f"https://{ENDPOINT}", ca_pem, control_plane=JoinControlPlane(), api_servers=servers),
    )
    ctx = EndpointRun(
        host=host,
        paths=PATHS,
        config=config,
        release=RELEASES[35],
        report=Report(io.StringIO()),
        caller=Caller.by(api),
        change=Change(BEFORE),
    )
    return host, ctx


def run(host: Endpoint, ctx: EndpointRun) -> list[str]:
    node_state = load_state(host, PATHS)
    result = Runner(
        "reconfigure-endpoint", day_two.find_story("reconfigure-endpoint", init=kb.INIT), state=node_state
    ).run(replace(ctx, found=Found()))
    return list(result.results.remaining or ())


def servers(host: Endpoint) -> dict[str, str]:
    """Who is called, by the clients that say so."""
    found = {}
    for name in ("admin.conf", "super-admin.conf", "kubelet.conf"):
        found[name] = kubeconfig.parse_kubeconfig(host.read_text(PATHS.kubernetes / name), source=name).server
    info = host.cluster.objects["/api/v1/namespaces/kube-public/configmaps/cluster-info"]["data"]["kubeconfig"]
    found["cluster-info"] = kubeconfig.parse_kubeconfig(info, source="x").server
    proxy = host.cluster.objects[f"{CONFIG_MAPS}/kube-proxy"]["data"]
    assert proxy["config.conf"] == "x"
    found["kube-proxy"] = kubeconfig.parse_kubeconfig(proxy["kubeconfig.conf"], source="x").server
    return found


def names_of(host: Endpoint) -> tuple[str, ...]:
    return certificates.sans_of(pki.read_certs(host, PATHS.pki / "apiserver.crt")[0]).dns


def test_one_control_plane_is_done_at_once_and_names_its_workers(tmp_path: Path) -> None:
    host, ctx = make(tmp_path)
    key = host.read_text(PATHS.pki / "apiserver.key")
    assert run(host, ctx) == ["on worker w1: kb reconfigure endpoint"]
    assert NAME in names_of(host) and host.read_text(PATHS.pki / "apiserver.key") == key
    own = servers(host).pop("kubelet.conf")
    assert own == f"https://{OWN}"  # a control plane's kubelet calls its own API server
    assert {one for name, one in servers(host).items() if name != "kubelet.conf"} == {f"https://{ENDPOINT}"}
    text = host.cluster.objects[f"{CONFIG_MAPS}/kubeadm-config"]["data"]["ClusterConfiguration"]
    assert f"controlPlaneEndpoint: {ENDPOINT}" in text and "newerField: 1" in text
    requests = len([one for one in host.cluster.requests if not one.startswith("GET")])
    run(host, ctx)
    assert len([one for one in host.cluster.requests if not one.startswith("GET")]) == requests


def test_nobody_is_told_before_every_api_server_bears_the_name(tmp_path: Path) -> None:
    host, ctx = make(tmp_path, servers=(OWN, OTHER))
    host.names = {OTHER: False}
    before = servers(host)
    assert run(host, ctx) == [
        f"on the control plane at {OTHER}: kb reconfigure endpoint",
        "on worker w1: kb reconfigure endpoint",
        "then here again, for what waits for them: kb reconfigure endpoint",
    ]
    assert servers(host) == before and NAME in names_of(host)
    host.names = {}  # it does not answer at all: when it comes back it has the old certificate
    assert len(run(host, ctx)) == 3 and servers(host) == before
    host.names = {OTHER: True}
    assert run(host, ctx) == ["on worker w1: kb reconfigure endpoint"]
    assert servers(host)["admin.conf"] == f"https://{ENDPOINT}"


def test_kube_proxy_waits_for_the_load_balancers_of_all_nodes(tmp_path: Path) -> None:
    host, ctx = make(tmp_path, load_balancer=LoadBalancer("local"))
    assert reconfigure.find_without_balancer(ctx) == ["w1"]
    assert reconfigure.plan_kube_proxy(ctx).waits[0].why == "until these nodes have their load balancer: w1"
    do(reconfigure.plan_kube_proxy, ctx)
    assert servers(host)["kube-proxy"] == f"https://{OWN}"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kube-system",
           "labels": {"component": "kb-load-balancer"}}, "spec": {"nodeName": "w1"}}  # fmt: skip
    ctx.api.create(pod)
    do(reconfigure.plan_kube_proxy, ctx)
    assert servers(host)["kube-proxy"] == f"https://{ENDPOINT}"
    template = host.cluster.objects["/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"]["spec"]["template"]
    assert template["metadata"]["annotations"]


def test_back_to_a_cluster_that_had_none(tmp_path: Path) -> None:
    host, ctx = make(tmp_path, servers=(OWN, OTHER))
    host.names = {OTHER: True}
    before = servers(host)
    run(host, ctx)
    cluster = replace(ctx.config.cluster, control_plane_endpoint="")
    join = replace(ctx.config.joined, server=f"https://{OWN}")
    config = replace(ctx.config, cluster=cluster, join=join)
    back = replace(ctx, config=config, change=Change(BEFORE, is_undo=True))
    assert run(host, back) == ["on worker w1: kb reconfigure endpoint --undo"]
    assert servers(host) == before
    text = host.cluster.objects[f"{CONFIG_MAPS}/kubeadm-config"]["data"]["ClusterConfiguration"]
    assert "controlPlaneEndpoint" not in text


def test_an_endpoint_that_leads_elsewhere_changes_nothing(tmp_path: Path) -> None:
    host, ctx = make(tmp_path)
    changes = list(ctx.api.changes)
    host.leads = False
    with pytest.raises(KbError) as caught:
        run(host, ctx)
    assert caught.value.code == "endpoint-unknown-name"
    host.leads = True
    for endpoint, code in (("api.test:7000", "endpoint-unreachable"), ("10.0.0.9:6443", "endpoint-of-another-cluster")):
        foreign = certificates.issue_ca_cert(
            "other", private_keys.generate_key("ECDSA-P256"), validity=certificates.plan_validity(host.now(), 9999)
        )
        host.served_cert = lambda address, port, timeout_s=3: (  # type: ignore[method-assign, assignment, misc]
            certificates.cert_to_pem(foreign) if address == "10.0.0.9" else None  # noqa: B023
        )
        with pytest.raises(ClusterError) as refused:
            reconfigure.check_leads_here(ctx, endpoint)
        assert refused.value.code == code
    assert ctx.api.changes == changes and NAME not in names_of(host)


def test_a_load_balancer_needs_a_name_and_a_port_of_its_own(tmp_path: Path) -> None:
    for endpoint in ("api.test:6443", "10.0.0.1:7443"):
        _, ctx = make(tmp_path / endpoint.replace(":", "-"), load_balancer=LoadBalancer("local"))
        config = replace(ctx.config, cluster=replace(ctx.config.cluster, control_plane_endpoint=endpoint))
        with pytest.raises(UsageError) as caught:
            reconfigure.check_endpoint(replace(ctx, config=config))
        assert caught.value.code == "bad-endpoint"


@pytest.mark.parametrize("helps", [True, False])
def test_an_api_server_that_keeps_its_certificate_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    host, run = make(tmp_path)
    shown, restarts = [host.read_text(PATHS.pki / "apiserver-kubelet-client.crt")], []

    def restart(ctx: EndpointRun) -> None:
        restarts.append(ctx.config.node.name)
        if helps:
            shown[0] = host.read_text(PATHS.pki / "apiserver.crt")

    host.served_cert = lambda address, port, timeout_s=3: shown[0]  # type: ignore[method-assign, assignment, misc]
    monkeypatch.setattr(static_pods_swap, "restart", restart)
    if helps:
        do(reconfigure.plan_apiserver_cert, run)
    else:
        with pytest.raises(ClusterError) as caught:
            do(reconfigure.plan_apiserver_cert, run)
        assert caught.value.code == "apiserver-keeps-certificate"
    assert restarts == ["cp1"]


def test_a_load_balancer_that_clients_call_keeps_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a run left before it had its keeper does not: no client was told of it."""
    monkeypatch.setattr(reconfigure, "_pull_image", lambda ctx: None)
    host, ctx = make(tmp_path, load_balancer=LoadBalancer("local"))
    cluster = replace(ctx.config.cluster, control_plane_endpoint="api.test:7443")
    ctx = replace(ctx, config=replace(ctx.config, cluster=cluster))
    host.write_file(PATHS.manifest(load_balancer.NAME), "kind: Pod\n")
    assert reconfigure.check_endpoint(ctx) == Results(
        before_endpoint="", before_server=f"https://{OWN}", before_balancer="none", before_is_begun_here=True
    )
    settings = load_balancer.Settings("api.test:8443", 8444, "unix:///run/containerd/containerd.sock")
    host.write_file(load_balancer.settings_path(PATHS), load_balancer.render_settings(settings))
    with pytest.raises(UsageError) as caught:
        reconfigure.check_endpoint(ctx)
    assert caught.value.code == "bad-endpoint" and "port 8443" in caught.value.cause
    settings = replace(settings, endpoint="former.test:7443")
    host.write_file(load_balancer.settings_path(PATHS), load_balancer.render_settings(settings))
    reconfigure.check_endpoint(ctx)  # another name, and the command again, keep the port


# ---- the command


class Call:
    def __init__(self, *words: str, **flags: Any) -> None:
        self.words, self.flags = list(words), flags


@pytest.mark.parametrize("word", ["api.test", "api_test:1", "api.test:0", "api.test:70000", ":6443", "[::1]", "a b:1"])
def test_words_that_are_no_endpoint(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        _parse_endpoint(Call(word))  # type: ignore[arg-type]
    assert caught.value.code == "bad-endpoint"


def test_words_that_are() -> None:
    for word in ("api.test:6443", "10.0.0.1:6443", "[fd00::1]:6443"):
        assert _parse_endpoint(Call(word)) == word  # type: ignore[arg-type]
    assert _parse_endpoint(Call()) == ""  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        _parse_endpoint(Call("api.test:1", undo=True))  # type: ignore[arg-type]


def test_an_undo_follows_the_node_on_which_it_was_begun(tmp_path: Path) -> None:
    host = ClusterHost(tmp_path)
    state = load_state(host, PATHS)
    first = BEFORE
    with pytest.raises(KbError) as caught:
        _plan_undo(state, first, stored=ENDPOINT)
    assert caught.value.code == "nothing-to-undo"
    state.phases["reconfigure-endpoint/preflight"] = PhaseState("done", outputs=STORED_BEFORE)
    assert _plan_undo(state, first, stored=ENDPOINT) == ("", f"https://{OWN}", "none")
    follower = Before(ENDPOINT, f"https://{OWN}", "none", is_begun_here=False)
    with pytest.raises(ClusterError) as later:
        _plan_undo(state, follower, stored=ENDPOINT)
    assert later.value.code == "undo-elsewhere-first"
    assert _plan_undo(state, follower, stored="") == ("", f"https://{OWN}", "none")


def test_a_kubeconfig_with_another_server_keeps_all_else() -> None:
    text = kubeconfig.render_kubeconfig(server="https://a:1", ca_pem="", user="u", token=kubeapi.NO_TOKEN)
    changed = kubeconfig.with_server(text, "https://b:2", source="x")
    assert changed == text.replace("https://a:1", "https://b:2") != text
    assert kubeconfig.with_server(text, "https://a:1", source="x") is text


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_load_balancer_that_the_kubelet_forgot_is_ended_by_one_that_starts_without_it(restarts: int) -> None:
    host = FakeHost(programs={"crictl", "systemctl"})
    host.files["/run/systemd/system/x"] = b""

    def ps(argv: tuple[str, ...]) -> str:
        done = sum("restart kubelet" in change for change in host.changes)
        state = "CONTAINER_RUNNING" if done < restarts else "CONTAINER_EXITED"
        return json.dumps({"containers": [{"id": "a1", "metadata": {"name": "kb-load-balancer"}, "state": state}]})

    host.answers["crictl"] = lambda argv: CommandResult(argv, 0, ps(argv) if "ps" in argv else "{}")
    host.accepts = KUBELET_STARTS
    said = io.StringIO()
    config = NodeConfig(ClusterConfiguration("v1.35.6"), NodeRegistration("w1"), LocalAPIEndpoint("10.0.0.21"))
    change = Change(BEFORE, is_undo=True)
    reconfigure.end_balancer(
        EndpointRun(host=host, paths=PATHS, config=config, release=RELEASES[35], report=Report(said), change=change)
    )
    assert sum("restart kubelet" in change for change in host.changes) == min(restarts, 1)
    assert ("still runs" in said.getvalue()) == (restarts == 2)
