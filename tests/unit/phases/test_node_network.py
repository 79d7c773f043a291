"""kubeup/phases/node_network.py: kb's bridge, another network, a manifest, none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kubeup.cluster import objects
from kubeup.cluster.api import Object
from kubeup.config.types import (
    ClusterConfiguration,
    KbConfiguration,
    PodNetwork,
)
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.machine.host import CommandResult
from kubeup.network import route_keeper
from kubeup.phases import (
    node_network,
)
from tests.fake_cluster import ClusterHost
from tests.plans import do, is_done
from tests.unit.phases.cluster_case import changes, fake, made, make_context, make_node

KB_CONFLIST = Path("/etc/cni/net.d/99-kb-bridge.conflist")


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
