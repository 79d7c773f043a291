"""kubeup/phases/upgrade_preflight.py: what speaks against an upgrade of this node, before anything stops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster import health
from kubeup.cluster.health import Part
from kubeup.config.types import APIServer, Arg, Join
from kubeup.engine.plan import Difference
from kubeup.engine.run import Selection
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.machine import services
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.node import torn_pairs
from kubeup.node.renewal import find_row
from kubeup.phases import static_pods_swap, upgrade_addons, upgrade_preflight
from kubeup.phases.upgrade_control_plane import plan_kubelet_server, swap_control_plane
from kubeup.phases.upgrade_preflight import check_upgrade
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.releases import RELEASES
from kubeup.trouble import Trouble
from kubeup.upgrade import v2_content
from kubeup.upgrade.target import Target
from tests.fake_control_plane import COMPONENTS, FORMER, SERVER, ControlPlane, make_control_plane
from tests.unit.swap.swap_case import Stage, make_swap_run, said, set_stage, trial

NEW = {name: text.replace("v1.35.6", "v1.36.3") for name, text in FORMER.items()}
EDIT = Difference("kube-apiserver", "spec.containers[kube-apiserver].command --v", "", "4")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = set_stage(monkeypatch)
    made.parts = parts()
    return made


def parts(server: str = "v1.35.6", kubelet: str = "v1.35.6", **troubles: Trouble) -> list[Part]:
    """A cluster of this node and a worker."""
    return [
        Part("api-server", SERVER, node="cp1", version=server),
        Part("etcd", "cp1", node="cp1", version="3.6.6"),
        *(Part("node", name, troubles.get(name), node=name, version=kubelet) for name in ("cp1", "w1")),
    ]


def make_run(
    host: Optional[ControlPlane] = None, *, to: str = "v1.36.3", edits: tuple[Difference, ...] = (), **fields: Any
) -> UpgradeRun:
    base = make_swap_run(host or make_control_plane(), NEW)
    config = dataclasses.replace(base.config, cluster=dataclasses.replace(base.config.cluster, kubernetes_version=to))
    given = {item.name: getattr(base, item.name) for item in dataclasses.fields(base)}
    targets = tuple(
        Target(name, FORMER[name], FORMER[name], NEW[name], edits if name == "kube-apiserver" else ())
        for name in COMPONENTS
    )
    more = {
        "config": config, "release": RELEASES[36], "former": "v1.35.6", "is_first": True, "targets": targets, "tells_edits": False,
        "command": "kb upgrade apply v1.36.3", **fields,
    }  # fmt: skip
    return UpgradeRun(**{**given, **more})


def refused(run: UpgradeRun) -> KbError:
    host = run.host
    assert isinstance(host, ControlPlane)
    before = dict(host.files)
    with pytest.raises(KbError) as caught:
        check_upgrade(run)
    assert host.changes == []
    assert host.files == before
    return caught.value


def test_a_cluster_that_is_well_may_go_on(stage: Stage) -> None:
    run = make_run()
    check_upgrade(run)
    assert stage.tried == list(COMPONENTS)
    assert "image: registry.k8s.io/kube-apiserver:v1.35.6 -> registry.k8s.io/kube-apiserver:v1.36.3" in said(run)


def test_the_addons_images_are_there_before_anything_stops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the control plane that upgrades them: a mirror that lacks one was found at the very end."""
    monkeypatch.setattr(upgrade_addons, "list_images", lambda run: ["registry.k8s.io/kube-proxy:v1.36.3"])
    host = make_control_plane()
    real = host.run

    def run(argv: Any, **more: Any) -> Any:
        if "pull" in argv:
            return CommandResult(tuple(argv), 1, stderr="not found: manifest unknown")
        return real(argv, **more)

    host.run = run  # type: ignore[method-assign]
    error = refused(make_run(host, selection=Selection(will_run=frozenset({"addon/kube-proxy"}))))
    assert error.code == "image-pull-failed" and "kube-proxy:v1.36.3" in error.what
    check_upgrade(make_run(host, selection=Selection(will_run=frozenset({"control-plane"}))))


def test_an_api_server_that_has_just_started_is_waited_for_until_it_is_listed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another tool leaves it that was killed when it had replaced the API server."""
    seen = [parts()[1:], parts()[1:], parts()]
    monkeypatch.setattr(health, "gate", lambda *_, **__: seen.pop(0) if len(seen) > 1 else seen[0])
    host = make_control_plane()
    check_upgrade(make_run(host))
    assert len(seen) == 1
    seen[:] = [parts()[1:]]
    began = host.ticks
    error = refused(make_run(host))
    assert error.what == "the cluster's version is not known"
    assert static_pods_swap.LISTED_S <= host.ticks - began < 2 * static_pods_swap.LISTED_S


@pytest.mark.parametrize(
    ("replaced", "longest_s"), [((), upgrade_preflight.PATIENCE_S), (("etcd",), static_pods_swap.GATE_S)]
)
def test_what_was_replaced_a_moment_ago_may_take_its_time(
    replaced: tuple[str, ...], longest_s: float, stage: Stage
) -> None:
    stage.parts = parts(w1=Trouble("no kube-scheduler leads", "it starts", "wait"))
    host = make_control_plane()
    run = make_run(host)
    targets = tuple(dataclasses.replace(one, former=one.wanted) if one.name in replaced else one for one in run.targets)
    began = host.ticks
    assert refused(dataclasses.replace(run, targets=targets)).code == "cluster-not-well"
    assert longest_s <= host.ticks - began < 2 * longest_s


def test_what_others_changed_wants_a_word(stage: Stage) -> None:
    error = refused(make_run(edits=(EDIT,)))
    assert error.code == "hand-edits"
    assert "--v is 4, not unset" in error.cause
    assert "kb upgrade apply v1.36.3 --hand-edits keep" in error.remedy
    for keeps, word in ((True, "kept"), (False, "dropped")):
        run = make_run(edits=(EDIT,), keep_edits=keeps)
        check_upgrade(run)
        assert f"--v is 4, not unset; {word}" in said(run)


@pytest.mark.parametrize("cut_off", ["control-plane", "programs"])
def test_a_renewal_that_was_cut_off_between_two_files_is_put_right_before_the_trials(
    cut_off: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They refuse a certificate and a key that do not belong together, so the same command would never go on."""
    key, cert, copy = Path("/etc/kubernetes/pki/etcd/server.key"), Path("/c"), Path("/copy")
    host = make_control_plane()
    torn = torn_pairs.TornPair(find_row("etcd-server", make_run(host).config.cluster), key, cert, key, copy)
    host.files |= {str(key): b"new", str(copy): b"former"}
    monkeypatch.setattr(
        torn_pairs, "find_torn_pairs", lambda *args, **more: [torn] if host.files[str(key)] == b"new" else []
    )
    names = frozenset(("preflight", "programs", "backup", cut_off))
    check_upgrade(make_run(host, selection=Selection(cut_off=names)))
    assert host.files[str(key)] == (b"former" if cut_off == "control-plane" else b"new")


@pytest.mark.parametrize("is_running", [True, False])
def test_a_node_whose_kubelet_is_stopped_is_not_waited_for(
    is_running: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off meanwhile, and the node becomes Ready only by what follows. Its static pods are new by then, which get a minute else."""
    monkeypatch.setattr(services, "is_active", lambda host, unit: is_running)
    host = make_control_plane()
    stage.parts = stage.parts_before = [
        *parts(),
        Part("node", "cp1", Trouble("node cp1 is not Ready", "it is out", "wait"), node="cp1"),
    ]
    run = make_run(
        host, selection=Selection(cut_off=frozenset({"preflight", "kubelet-config"})), texts=tuple(FORMER.items())
    )
    began = host.ticks
    check_upgrade(
        dataclasses.replace(run, targets=tuple(dataclasses.replace(one, former=one.wanted) for one in run.targets))
    )
    waited_s = host.ticks - began
    assert waited_s >= static_pods_swap.GATE_S if is_running else waited_s < 1.0


def test_keys_of_etcd_2_are_in_the_way(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(host: Any, socket: str, *, now: Any, wanted: Any, **more: Any) -> HostError:
        asked.extend(str(pod["spec"]["containers"][0]["image"]) for pod in (now, wanted))
        return HostError("keys of etcd 2", cause="it does not start", remedy="remove them", code="etcd-v2-content")

    monkeypatch.setattr(v2_content, "find", find)
    run = make_run()
    text = FORMER["etcd"].replace("image: registry.k8s.io/etcd:", "image: registry.k8s.io/etcd:9-")
    error = refused(dataclasses.replace(run, texts=(*(one for one in run.texts if one[0] != "etcd"), ("etcd", text))))
    assert error.code == "etcd-v2-content"
    assert len(asked) == 2 and asked[0] != asked[1]


def test_versions_that_may_not_follow(stage: Stage) -> None:
    stage.parts = parts(server="v1.34.9")
    error = refused(make_run())
    assert error.code == "upgrade-blocked"
    assert "--force" not in error.remedy
    stage.parts = parts(kubelet="v1.32.0")
    error = refused(make_run())
    assert "kb upgrade apply v1.36.3 --force" in error.remedy
    check_upgrade(make_run(force=True))


@pytest.mark.parametrize(
    ("words", "args", "remedy"),
    [
        ("unknown flag: --no-such", ("no-such",), "kb reconfigure apiserver --unset no-such"),
        ("unknown flag: --no-such", (), "correct it in the manifest"),
        ("unrecognized feature gate: Old", ("feature-gates",), "kb reconfigure apiserver --set feature-gates="),
    ],
)
def test_a_refused_flag_of_the_stored_configuration_is_taken_out_there(
    words: str, args: tuple[str, ...], remedy: str, stage: Stage
) -> None:
    """Out of the manifest alone, it would be written again."""
    told = Trouble("kube-apiserver does not accept its flags", words, "correct it in the manifest")
    stage.trials["kube-apiserver"] = [trial("flags", told)]
    run = make_run()
    server = APIServer(extra_args=tuple(Arg(name, "x") for name in args))
    cluster = dataclasses.replace(run.config.cluster, api_server=server)
    error = refused(dataclasses.replace(run, config=dataclasses.replace(run.config, cluster=cluster)))
    assert error.code == "static-pod-refused" and remedy in error.remedy


def test_a_cluster_that_is_not_well(stage: Stage) -> None:
    stage.parts = parts(w1=Trouble("node w1 is not Ready", "its kubelet says nothing", "kb doctor"))
    assert refused(make_run()).code == "cluster-not-well"
    check_upgrade(make_run(force=True))


def test_a_node_under_disk_pressure(stage: Stage) -> None:
    host = make_control_plane()
    told = b'{"metadata": {"name": "cp1"}, "status": {"conditions": [{"type": "DiskPressure", "status": "True"}]}}'
    host.urls[f"https://{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, told)
    assert refused(make_run(host)).code == "disk-pressure"
    check_upgrade(make_run(host, force=True))


def test_an_upgrade_that_was_cut_off_may_have_left_this_node_unwell(stage: Stage) -> None:
    stage.parts = parts(cp1=Trouble("node cp1 is not Ready", "its kubelet says nothing", "kb doctor"))
    assert refused(make_run()).code == "cluster-not-well"
    assert refused(make_run(selection=Selection(cut_off=frozenset({"preflight"})))).code == "cluster-not-well"
    check_upgrade(make_run(selection=Selection(cut_off=frozenset({"control-plane"}))))


def test_kubelets_that_were_upgraded_before_this_control_plane(stage: Stage) -> None:
    trouble = Trouble("node w1 has kubelet v1.36.3", "an API server of v1.35.6 supports older ones", "upgrade")
    others = [part for part in parts() if part.name != "w1"]
    stage.parts = [*others, Part("node", "w1", trouble, node="w1", version="v1.36.3")]
    check_upgrade(make_run(is_first=False))
    newer = Trouble("node w1 has kubelet v1.37.0", "an API server of v1.35.6 supports older ones", "upgrade")
    stage.parts = [*others, Part("node", "w1", newer, node="w1", version="v1.37.0")]
    assert refused(make_run(is_first=False)).code == "upgrade-blocked"


@pytest.mark.parametrize(("server", "is_refused"), [("v1.35.6", True), ("v1.36.0", False), ("", True)])
def test_a_worker_comes_after_the_control_planes(server: str, is_refused: bool) -> None:
    host = worker_of(ready="True")
    body = b'{"gitVersion": "%s"}' % server.encode() if server else b"{}"
    host.urls[f"https://{SERVER}/version"] = HttpResponse(200, body)
    run = as_worker(host)
    if is_refused:
        assert refused(run).code == "control-plane-first"
    else:
        check_upgrade(run)


@pytest.mark.parametrize("other", ["v1.35.6", ""])
def test_a_worker_comes_after_every_control_plane(other: str) -> None:
    """The one that the worker itself calls is upgraded; another is not, or says nothing, and may be older too."""
    host = worker_of(ready="True")
    host.others["10.0.0.12:6443"] = bool(other)
    if other:
        host.urls["https://10.0.0.12:6443/version"] = HttpResponse(200, b'{"gitVersion": "%s"}' % other.encode())
    error = refused(as_worker(host))
    assert error.code == "control-plane-first"
    assert "10.0.0.12:6443" in error.what
    assert "1.36.3" in error.cause if other else "--force" in error.remedy
    host.others["10.0.0.12:6443"] = True
    host.urls["https://10.0.0.12:6443/version"] = HttpResponse(200, b'{"gitVersion": "v1.36.3"}')
    check_upgrade(as_worker(host))


def worker_of(*, ready: str) -> ControlPlane:
    host = make_control_plane()
    host.urls[f"https://{SERVER}/version"] = HttpResponse(200, b'{"gitVersion": "v1.36.3"}')
    condition = {"type": "Ready", "status": ready, "message": "cni plugin not initialized"}
    node = {"kind": "Node", "metadata": {"name": "cp1"}, "status": {"conditions": [condition]}}
    host.urls[f"https://{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, json.dumps(node).encode())
    return host


def as_worker(host: ControlPlane, **fields: Any) -> UpgradeRun:
    run = make_run(host, is_first=False, command="kb upgrade node", **fields)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, join=Join(f"https://{SERVER}")))


def test_a_worker_that_is_not_ready_is_refused_since_no_watch_could_end_well(stage: Stage) -> None:
    error = refused(as_worker(worker_of(ready="False")))
    assert error.code == "cluster-not-well"
    assert "cni plugin not initialized" in error.cause
    assert "kb upgrade node --force" in error.remedy
    check_upgrade(as_worker(worker_of(ready="True")))
    check_upgrade(as_worker(worker_of(ready="False"), force=True))
    check_upgrade(as_worker(worker_of(ready="False"), selection=Selection(cut_off=frozenset({"kubelet-config"}))))


def test_a_kubelet_that_was_stopped_when_the_upgrade_was_cut_off_hinders_nothing(stage: Stage) -> None:
    """kb itself stopped it, and starts it again in what follows."""
    host = make_control_plane()
    host.files.update({f"/etc/kubernetes/manifests/{name}.yaml": NEW[name].encode() for name in COMPONENTS})
    host.kubelet_runs = False
    check_upgrade(make_run(host, selection=Selection(cut_off=frozenset({"kubelet-config"}))))
    assert refused(make_run(host)).code == "kubelet-not-running"


def test_a_pre_release_is_asked_about_once_not_on_every_node(stage: Stage) -> None:
    assert refused(make_run(to="v1.36.0-rc.1")).code == "upgrade-blocked"
    check_upgrade(make_run(to="v1.36.0-rc.1", is_first=False))


# ---- the swap, and kubelet.conf


def test_the_swap_renews_certificates_only_where_something_is_swapped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[str] = []
    monkeypatch.setattr("kubeup.phases.upgrade_control_plane._renew_certs", lambda run: renewed.append("all"))
    host = make_control_plane()
    swap_control_plane(make_run(host, renews=False))
    assert renewed == []
    assert all("v1.36.3" in host.files[f"/etc/kubernetes/manifests/{name}.yaml"].decode() for name in COMPONENTS)
    swap_control_plane(make_run(host))
    assert renewed == []  # nothing is left to swap
    other = make_control_plane()
    swap_control_plane(make_run(other))
    assert renewed == ["all"]


def test_a_swap_that_fails_says_what_was_renewed_before_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told that nothing was changed."""

    def fail(_: object) -> None:
        raise ClusterError("etcd exited", cause="c", remedy="r", code="static-pod-not-working")

    monkeypatch.setattr("kubeup.phases.static_pods_swap.swap_pods", fail)
    for renewed, told in ((11, "11 certificates were renewed, and stay"), (0, None)):
        monkeypatch.setattr("kubeup.phases.upgrade_control_plane._renew_certs", lambda _, many=renewed: many)
        with pytest.raises(ClusterError) as caught:
            swap_control_plane(make_run(make_control_plane()))
        assert caught.value.changed == told


def test_a_kubelet_that_calls_another_api_server() -> None:
    host = make_control_plane()
    text = host.files["/etc/kubernetes/admin.conf"].decode()
    host.files["/etc/kubernetes/kubelet.conf"] = text.encode()
    assert plan_kubelet_server(make_run(host)).parts == ()
    host.files["/etc/kubernetes/kubelet.conf"] = text.replace(SERVER, "api.local:7443").encode()
    (item,) = plan_kubelet_server(make_run(host)).parts
    assert f"https://{SERVER}" in item.wanted()["content"]  # type: ignore[union-attr]
