"""kubeup/phases/upgrade_addons.py: not before the last API server, never in silence, and with what people changed."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Callable

import pytest

from kubeup.cluster import addons as dns_and_proxy
from kubeup.cluster.api import Object
from kubeup.config.types import DNS, NodeConfig, Proxy
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run, Selection
from kubeup.errors import ClusterError
from kubeup.phases import addons, upgrade_addons
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.releases import RELEASES
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_cluster import ClusterHost
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import fake, made, make_context

NODES = {"cp1": "10.0.0.11", "cp2": "10.0.0.12"}


def make_run(tmp_path: Path, *, minor: int = 35, servers: tuple[str, ...] = ("cp1",), **config: Any) -> UpgradeRun:
    """A cluster as kb left it, whose API servers run the next minor already."""
    ctx = make_context(tmp_path, minor=minor, **config)
    do(addons.plan_coredns, ctx)
    do(addons.plan_kube_proxy, ctx)
    wanted = f"v1.{minor + 1}.0"
    for name in servers:
        add_server(ctx, name, wanted)
    endpoints = [{"addresses": [NODES[name]], "conditions": {"ready": True}} for name in servers]
    put(
        ctx,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        {"metadata": {"name": "kubernetes"}, "ports": [{"name": "https", "port": 6443}], "endpoints": endpoints},
    )
    settle(ctx)
    return as_upgrade(ctx, wanted, former=f"v1.{minor}.0")


def as_upgrade(ctx: Run, version: str, *, former: str) -> UpgradeRun:
    release = RELEASES[int(version.split(".")[1])]
    config = replace(ctx.config, cluster=replace(ctx.config.cluster, kubernetes_version=version))
    given = {one.name: getattr(ctx, one.name) for one in fields(ctx)}  # type: ignore[arg-type]
    given.update(config=config, release=release)
    return UpgradeRun(**given, texts=(), agree=lambda text: None, former=former, is_first=True)


def put(ctx: Run, path: str, obj: Object) -> None:
    obj["metadata"].setdefault("resourceVersion", "1")
    fake(ctx).objects[path] = obj


def add_server(ctx: Run, name: str, version: str) -> None:
    fake(ctx).versions[f"{NODES[name]}:6443"] = version
    node = {
        "metadata": {"name": name},
        "status": {
            "addresses": [{"type": "InternalIP", "address": NODES[name]}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    pod = {
        "metadata": {"name": f"kube-apiserver-{name}", "labels": {"component": "kube-apiserver"}},
        "spec": {"nodeName": name},
    }
    put(ctx, f"/api/v1/nodes/{name}", node)
    put(ctx, f"/api/v1/namespaces/kube-system/pods/kube-apiserver-{name}", pod)


def settle(ctx: Run) -> None:
    """Every pod runs, in whatever version is wanted."""
    for kind, status in (
        ("Deployment", {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
        ("DaemonSet", {"desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1}),
    ):
        for obj in made(ctx, kind).values():
            obj["status"] = dict(status)


def edit(ctx: Run, kind: str, name: str, change: Callable[[Object], None]) -> None:
    """As a person with kubectl does."""
    path = next(
        path for path, obj in fake(ctx).objects.items() if (obj.get("kind"), obj["metadata"]["name"]) == (kind, name)
    )
    obj = copy.deepcopy(fake(ctx).objects[path])
    change(obj)
    fake(ctx)._store(path, obj, "kubectl-edit")


def image_of(ctx: Run, kind: str, name: str) -> str:
    return str(made(ctx, kind)[name]["spec"]["template"]["spec"]["containers"][0]["image"])


def waits(plan: Plan) -> list[str]:
    return [part.why for part in plan.waits]


def test_both_addons_follow_the_last_api_server(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    assert image_of(run, "DaemonSet", "kube-proxy").endswith("kube-proxy:v1.36.0")
    assert image_of(run, "Deployment", "coredns").endswith(":" + RELEASES[36].coredns_tag)
    assert is_done(upgrade_addons.plan_coredns, run) and is_done(upgrade_addons.plan_kube_proxy, run)
    version = fake(run).version
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    assert fake(run).version == version and not run.report.notes


@pytest.mark.parametrize("minor", [31, 32, 33, 34, 35])
def test_an_unedited_cluster_becomes_the_next_minor_s(tmp_path: Path, minor: int) -> None:
    run = make_run(tmp_path, minor=minor)
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    dns = dns_and_proxy.render_coredns(run.config, run.release, running=dns_and_proxy.RunningDns())
    for wanted in (*dns, *dns_and_proxy.render_kube_proxy(run.config, run.release)):
        found = made(run, wanted["kind"])[wanted["metadata"]["name"]]
        assert found.get("spec") == wanted.get("spec") and found.get("data") == wanted.get("data")
    assert not run.report.notes and not run.report.warnings


def test_a_control_plane_that_is_left_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, servers=("cp1", "cp2"))
    fake(run).versions["10.0.0.12:6443"] = "v1.35.6"
    version = fake(run).version
    for plan in (upgrade_addons.plan_coredns, upgrade_addons.plan_kube_proxy):
        assert waits(plan(run)) == ["until these control planes run v1.36.0: cp2 (v1.35.6)"]
        do(plan, run)
    assert fake(run).version == version
    fake(run).versions["10.0.0.12:6443"] = "v1.36.1"
    assert not waits(upgrade_addons.plan_kube_proxy(run))


def test_a_control_plane_that_does_not_serve_is_named_too(tmp_path: Path) -> None:
    """Its image says nothing: it may come back in the old version."""
    run = make_run(tmp_path)
    add_server(run, "cp2", "")
    assert waits(upgrade_addons.plan_coredns(run)) == [
        "until these control planes run v1.36.0: cp2 (its API server does not serve)"
    ]


def test_this_node_s_api_server_counts_as_upgraded_where_this_run_does_it(tmp_path: Path) -> None:
    """In a dry run it still runs the former version."""
    run = make_run(tmp_path)
    fake(run).versions["10.0.0.11:6443"] = "v1.35.0"
    assert waits(upgrade_addons.plan_coredns(run)) == ["until these control planes run v1.36.0: cp1 (v1.35.0)"]
    run = replace(run, selection=Selection(will_run=frozenset({"control-plane"})))
    assert not waits(upgrade_addons.plan_coredns(run))


def test_a_kube_proxy_that_has_to_wait_and_is_too_old_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, servers=("cp1", "cp2"))
    fake(run).versions["10.0.0.12:6443"] = "v1.35.6"
    assert upgrade_addons.plan_kube_proxy(run).warnings == ()
    edit(run, "DaemonSet", "kube-proxy", lambda obj: set_image(obj, "registry.k8s.io/kube-proxy:v1.32.9"))
    (told,) = upgrade_addons.plan_kube_proxy(run).warnings
    assert "v1.32.9" in told and "upgrade the rest now" in told


def set_image(obj: Object, image: str) -> None:
    obj["spec"]["template"]["spec"]["containers"][0]["image"] = image


def test_disabled_addons_stay_disabled(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    without = replace(run.config.cluster, dns=DNS(disabled=True), proxy=Proxy(disabled=True))
    run = replace(run, config=replace(run.config, cluster=without))
    version = fake(run).version
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    assert fake(run).version == version
    assert run.report.notes == ["dns.disabled is set: no CoreDNS", "proxy.disabled is set: no kube-proxy"]


def test_an_addon_that_somebody_took_out_does_not_come_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in [path for path, obj in fake(run).objects.items() if obj.get("kind") in ("Deployment", "DaemonSet")]:
        del fake(run).objects[path]
    version = fake(run).version
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    assert fake(run).version == version
    assert run.report.notes == [
        "the cluster has no CoreDNS: an upgrade installs none",
        "the cluster has no kube-proxy: an upgrade installs none",
    ]


# ---- the Corefile


def set_corefile(run: Run, old: str, new: str) -> str:
    def change(obj: Object) -> None:
        obj["data"]["Corefile"] = obj["data"]["Corefile"].replace(old, new)

    edit(run, "ConfigMap", "coredns", change)
    return str(made(run, "ConfigMap")["coredns"]["data"]["Corefile"])


def test_an_unknown_plugin_keeps_coredns_where_it_is_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = set_corefile(run, "loadbalance", "loadbalance\n    fanout . 1.1.1.1")
    plan = upgrade_addons.plan_coredns(run)
    assert waits(plan) == ["it stays at v1.13.1: the Corefile has the plugin fanout"]
    (told,) = plan.warnings
    assert "kubectl -n kube-system edit configmap coredns; then run the command again" in told
    do(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_kube_proxy, run)
    assert made(run, "ConfigMap")["coredns"]["data"]["Corefile"] == text
    assert image_of(run, "Deployment", "coredns").endswith(":v1.13.1")
    assert image_of(run, "DaemonSet", "kube-proxy").endswith(":v1.36.0")


def test_an_edited_corefile_stays_to_the_letter(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = set_corefile(run, "ttl 30", "ttl 5 # ours")
    do(upgrade_addons.plan_coredns, run)
    assert made(run, "ConfigMap")["coredns"]["data"] == {"Corefile": text}
    assert run.report.notes == ["the Corefile in ConfigMap kube-system/coredns was edited: the edits are kept"]


def test_what_coredns_does_not_read_any_more_is_taken_out_and_kept_beside(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = set_corefile(run, "ttl 30\n", "ttl 30\n       upstream\n")
    do(upgrade_addons.plan_coredns, run)
    expected = {"Corefile": text.replace("       upstream\n", ""), "Corefile-backup": text}
    assert made(run, "ConfigMap")["coredns"]["data"] == expected
    assert "the Corefile, kubernetes: upstream was removed in CoreDNS 1.7.0: taken out" in run.report.notes
    assert is_done(upgrade_addons.plan_coredns, run)
    do(upgrade_addons.plan_coredns, run)
    assert made(run, "ConfigMap")["coredns"]["data"] == expected


# ---- what others changed


def test_edits_of_coredns_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def change(obj: Object) -> None:
        obj["spec"]["replicas"] = 4
        obj["metadata"]["annotations"] = {"ours": "1"}
        pod = obj["spec"]["template"]["spec"]
        pod["containers"][0]["resources"]["limits"]["memory"] = "300Mi"
        pod["tolerations"].append({"key": "ours", "operator": "Exists"})
        pod["affinity"] = {"nodeAffinity": {"x": 1}, **pod["affinity"]}
        pod["affinity"]["podAntiAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": []}

    edit(run, "Deployment", "coredns", change)
    before = copy.deepcopy(made(run, "Deployment")["coredns"])
    made(run, "Deployment")["coredns"]["status"] = {"replicas": 4, "updatedReplicas": 4, "availableReplicas": 4}
    do(upgrade_addons.plan_coredns, run)
    after = made(run, "Deployment")["coredns"]
    set_image(before, image_of(run, "Deployment", "coredns"))
    assert after["spec"] == before["spec"] and after["metadata"]["annotations"] == {"ours": "1"}
    assert image_of(run, "Deployment", "coredns").endswith(":" + RELEASES[36].coredns_tag)
    told = "\n".join(run.report.notes)
    assert "limits.memory is 300Mi, set by others: it is kept" in told and "tolerations is" in told


def test_edits_of_kube_proxy_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def change(obj: Object) -> None:
        config = load_yaml(obj["data"]["config.conf"])
        config["mode"], config["metricsBindAddress"] = "nftables", "0.0.0.0:10249"
        obj["data"]["config.conf"] = dump_yaml(config)
        kubeconfig = obj["data"]["kubeconfig.conf"]
        obj["data"]["kubeconfig.conf"] = kubeconfig.replace("https://10.0.0.11:6443", "https://vip.example.com:6443")

    def tolerate(obj: Object) -> None:
        obj["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "50m"}}
        obj["spec"]["template"]["spec"]["nodeSelector"]["proxy"] = "yes"

    edit(run, "ConfigMap", "kube-proxy", change)
    edit(run, "DaemonSet", "kube-proxy", tolerate)
    kubeconfig = made(run, "ConfigMap")["kube-proxy"]["data"]["kubeconfig.conf"]
    assert "vip.example.com" in kubeconfig
    do(upgrade_addons.plan_kube_proxy, run)
    data = made(run, "ConfigMap")["kube-proxy"]["data"]
    config = load_yaml(data["config.conf"])
    assert (config["mode"], config["metricsBindAddress"]) == ("nftables", "0.0.0.0:10249")
    assert data["kubeconfig.conf"] == kubeconfig
    pod = made(run, "DaemonSet")["kube-proxy"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": "50m"}}
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "proxy": "yes"}
    assert image_of(run, "DaemonSet", "kube-proxy").endswith(":v1.36.0")
    assert is_done(upgrade_addons.plan_kube_proxy, run)


def test_http_proxies_of_kube_proxy_outlive_an_environment_without_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, proxy_env={"NO_PROXY": "10.0.0.0/8"})
    config: NodeConfig = replace(run.config, proxy_env={})
    do(upgrade_addons.plan_kube_proxy, replace(run, config=config))
    env = made(run, "DaemonSet")["kube-proxy"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "NO_PROXY", "value": "10.0.0.0/8"} in env


def test_an_image_of_somebody_s_is_replaced_and_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    edit(run, "Deployment", "coredns", lambda obj: set_image(obj, "mine.example.com/coredns:v1.13.1"))
    do(upgrade_addons.plan_coredns, run)
    (told,) = run.report.warnings
    assert "mine.example.com/coredns:v1.13.1, set by others, and becomes" in told


# ---- rollout


SIDECAR = {"name": "agent", "image": "example.com/agent:v9", "env": [{"name": "NO_PROXY", "value": "agent"}]}


def add_sidecar(obj: Object) -> None:
    """A container of somebody's, before the addon's own."""
    obj["spec"]["template"]["spec"]["containers"].insert(0, dict(SIDECAR))


def test_a_sidecar_that_comes_first_is_not_taken_for_the_addon(tmp_path: Path) -> None:
    run = make_run(tmp_path, servers=("cp1", "cp2"), proxy_env={"NO_PROXY": "10.0.0.0/8"})
    fake(run).versions["10.0.0.12:6443"] = "v1.35.6"
    for kind, name in (("DaemonSet", "kube-proxy"), ("Deployment", "coredns")):
        edit(run, kind, name, add_sidecar)
    assert upgrade_addons.plan_kube_proxy(run).warnings == ()
    assert upgrade_addons.read_proxy_env(made(run, "DaemonSet")["kube-proxy"]) == {"NO_PROXY": "10.0.0.0/8"}
    assert addons.read_running_dns(run).tag == RELEASES[35].coredns_tag

    fake(run).versions["10.0.0.12:6443"] = "v1.36.0"
    made(run, "DaemonSet")["kube-proxy"]["status"].update(updatedNumberScheduled=0)
    pods = {"old": "v1.35.6", "new": "v1.36.0"}
    for name, version in pods.items():
        own = {"name": "kube-proxy", "image": f"registry.k8s.io/kube-proxy:{version}"}
        pod = {
            "metadata": {"name": name, "labels": {"k8s-app": "kube-proxy"}},
            "spec": {"nodeName": "w1", "containers": [SIDECAR, own]},
            "status": {},
        }
        put(run, f"/api/v1/namespaces/kube-system/pods/{name}", pod)
    with pytest.raises(ClusterError) as caught:
        do(upgrade_addons.plan_kube_proxy, run)
    assert "(new on w1: it is starting)" in caught.value.cause


def test_it_waits_for_the_rollout_and_says_what_does_not_come_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    image = "registry.k8s.io/kube-proxy:v1.36.0"
    made(run, "DaemonSet")["kube-proxy"]["status"] = {
        "desiredNumberScheduled": 3,
        "updatedNumberScheduled": 2,
        "numberAvailable": 1,
    }
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    pod = {
        "metadata": {"name": "kube-proxy-x", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {"nodeName": "w1", "containers": [{"name": "kube-proxy", "image": image}]},
        "status": {"containerStatuses": [{"name": "kube-proxy", "state": state}]},
    }
    put(run, "/api/v1/namespaces/kube-system/pods/kube-proxy-x", pod)
    put(run, "/api/v1/nodes/w2", {"metadata": {"name": "w2"}, "status": {"conditions": []}})
    assert not is_done(upgrade_addons.plan_kube_proxy, run)
    began = run.host.monotonic()
    with pytest.raises(ClusterError) as caught:
        do(upgrade_addons.plan_kube_proxy, run)
    assert caught.value.code == "addon-not-rolled-out"
    assert run.host.monotonic() - began < 200
    assert (
        "1 of 3 pods run (kube-proxy-x on w1: ImagePullBackOff: not found; node w2 is not Ready)" in caught.value.cause
    )
    assert caught.value.remedy == f"on w1: crictl pull {image}; see to what that says; then: {run.command}"
    state["waiting"] = {"reason": "CrashLoopBackOff"}
    with pytest.raises(ClusterError) as caught:
        do(upgrade_addons.plan_kube_proxy, run)
    assert "describe pods -l k8s-app=kube-proxy" in caught.value.remedy


def test_the_images_of_what_this_run_upgrades(tmp_path: Path) -> None:
    run = make_run(tmp_path, servers=("cp1", "cp2"))
    coredns, proxy = (f"registry.k8s.io/{name}" for name in ("coredns/coredns", "kube-proxy"))
    assert upgrade_addons.list_images(run) == [f"{coredns}:{RELEASES[36].coredns_tag}", f"{proxy}:v1.36.0"]
    fake(run).versions["10.0.0.12:6443"] = "v1.35.6"
    assert upgrade_addons.list_images(run) == []


def test_what_the_kubelet_says_of_a_pull_is_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ErrImagePull and ImagePullBackOff in turn, every few seconds."""
    run = make_run(tmp_path)
    made(run, "DaemonSet")["kube-proxy"]["status"] = {"desiredNumberScheduled": 3, "updatedNumberScheduled": 1}
    states = ("ErrImagePull: no route", "ImagePullBackOff: back-off 10s")
    monkeypatch.setattr(
        upgrade_addons, "_describe_pods", lambda *_, **__: f" (x on w1: {states[int(run.host.monotonic()) // 10 % 2]})"
    )
    began = run.host.monotonic()
    with pytest.raises(ClusterError):
        do(upgrade_addons.plan_kube_proxy, run)
    assert run.host.monotonic() - began < upgrade_addons.STALLED_S + 10


@pytest.mark.parametrize(
    ("status", "is_there"),
    [
        ({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
        ({"replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}, False),
        ({"replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}, False),
        ({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}, False),
        ({}, False),
    ],
)
def test_a_deployment_is_rolled_out_when_only_new_pods_are_there(
    tmp_path: Path, status: Object, is_there: bool
) -> None:
    run = make_run(tmp_path)
    do(upgrade_addons.plan_coredns, run)
    made(run, "Deployment")["coredns"]["status"] = status
    assert is_done(upgrade_addons.plan_coredns, run) is is_there
    assert isinstance(run.host, ClusterHost) and json.dumps(status)


def test_a_change_that_no_controller_has_seen_is_not_rolled_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    do(upgrade_addons.plan_kube_proxy, run)
    made(run, "DaemonSet")["kube-proxy"]["metadata"]["generation"] = 2
    made(run, "DaemonSet")["kube-proxy"]["status"]["observedGeneration"] = 1
    assert not is_done(upgrade_addons.plan_kube_proxy, run)


def test_addons_are_started_at_once_and_waited_for_later(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    made(run, "DaemonSet")["kube-proxy"]["status"] = {"desiredNumberScheduled": 3, "updatedNumberScheduled": 2}
    for plan in (upgrade_addons.start_coredns, upgrade_addons.start_kube_proxy):
        do(plan, run)
        assert is_done(plan, run)
    assert not is_done(upgrade_addons.plan_rollouts, run)
    with pytest.raises(ClusterError) as caught:
        do(upgrade_addons.plan_rollouts, run)
    assert caught.value.code == "addon-not-rolled-out"
    made(run, "DaemonSet")["kube-proxy"]["status"].update(updatedNumberScheduled=3, numberAvailable=3)
    do(upgrade_addons.plan_rollouts, run)
    assert is_done(upgrade_addons.plan_rollouts, run)


@pytest.mark.parametrize(
    ("nodes", "seen", "least_s", "most_s"),
    [
        (1, ["0 of 1 pods run"], 0, 0),
        (3, ["1 of 3 pods run", "2 of 3 pods run", ""], 2, 2),
        (3, ["2 of 3 pods run"], upgrade_addons.PROXY_STALLED_S, 2 * upgrade_addons.PROXY_STALLED_S),
    ],
)
def test_an_api_server_stops_once_kube_proxy_runs_anew_on_other_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, seen: list[str], least_s: float, most_s: float
) -> None:
    run, left = make_run(tmp_path), list(seen)
    made(run, "DaemonSet")["kube-proxy"]["status"] = {"desiredNumberScheduled": nodes}
    monkeypatch.setattr(upgrade_addons, "describe_rollout", lambda *_, **__: left.pop(0) if len(left) > 1 else left[0])
    began = run.host.monotonic()
    upgrade_addons.await_proxies(run)
    assert least_s <= run.host.monotonic() - began <= most_s


def test_nothing_is_waited_for_while_control_planes_are_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, servers=("cp1", "cp2"))
    fake(run).versions["10.0.0.12:6443"] = "v1.35.6"
    assert upgrade_addons.plan_rollouts(run).parts == ()
    fake(run).versions["10.0.0.12:6443"] = "v1.36.0"
    assert len(upgrade_addons.plan_rollouts(run).parts) == 2
    for path in ("daemonsets/kube-proxy", "deployments/coredns"):
        del fake(run).objects[f"/apis/apps/v1/namespaces/kube-system/{path}"]
    assert upgrade_addons.plan_rollouts(run).parts == ()
