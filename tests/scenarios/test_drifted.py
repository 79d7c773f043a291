"""kb drift as a whole: nothing is told of nodes as kb and kubeadm leave them, and whatever somebody changed there is told by its name."""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from kubeup.cluster import health, objects
from kubeup.commands import drift
from kubeup.drift import machine, mending
from kubeup.drift.drifted import Drift
from kubeup.engine.records import load_records, record_programs
from kubeup.engine.state import PhaseState, load_state
from kubeup.machine import services
from kubeup.network import load_balancer
from kubeup.node import renewal, unread_certs
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap
from kubeup.report import Report
from kubeup.swap import store
from kubeup.trouble import Trouble
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_join import SYSTEM, Machine, Site

from .scenario import run_adopt, run_control_plane_join, run_join, run_kb, take_back

PATHS = Paths()
KUBELET_CONFIG = str(PATHS.kubelet_config)


@pytest.fixture
def site(founded: Site, tmp_path: Path) -> Site:
    return founded.clone(tmp_path / "site")


@pytest.fixture
def kubeadms(founded_by_kubeadm: Site, tmp_path: Path) -> Site:
    return founded_by_kubeadm.clone(tmp_path / "site")


def look(machine: Machine) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and what is told."""
    _age(machine)
    ended = run_kb(machine, "drift", "-o", "json")
    assert ended.status in (0, 1), ended.err
    found = json.loads(ended.out)
    assert found["notLooked"] == [], found
    return ended.status, found["drift"]


def names_on(machine: Machine) -> list[str]:
    status, found = look(machine)
    names = list(dict.fromkeys(row["name"] for row in found))
    assert status == (1 if names else 0)
    return names


def _age(machine: Machine) -> None:
    """The kubelet's files are from before its start; the machine's clock is not that of its disk."""
    for path in (PATHS.kubelet_config, PATHS.kubelet_instance_config):
        if machine.exists(path):
            os.utime(machine.at(path), (1, 1))


def edit(machine: Machine, path: str, old: str, new: str) -> None:
    text = machine.text(path)
    assert old in text
    machine.put(path, text.replace(old, new), mode=0o600)


def change_object(
    site: Site, path: str, change: Callable[[dict[str, Any]], object], manager: str = "kubectl-edit"
) -> None:
    """As kubectl edit writes it."""
    place = next(one for one in site.cluster.objects if one.endswith(f"/namespaces/kube-system/{path}"))
    obj = copy.deepcopy(site.cluster.objects[place])
    change(obj)
    site.cluster._store(place, obj, manager)


def _set_proxy_mode(obj: dict[str, Any]) -> None:
    text = obj["data"]["config.conf"]
    assert 'mode: ""' in text
    obj["data"]["config.conf"] = text.replace('mode: ""', "mode: ipvs")


def container(obj: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = obj["spec"]["template"]["spec"]["containers"][0]
    return found


# ---- no false alarm


def test_nothing_is_told_of_fresh_nodes(site: Site) -> None:
    first, second, worker = (site.machine(name) for name in ("cp1", "cp2", "w1"))
    run_control_plane_join(second)
    run_join(worker)
    assert [names_on(one) for one in (first, second, worker)] == [[], [], []]
    assert "nothing has drifted on node cp1" in run_kb(first, "drift").out


def test_nothing_is_told_of_adopted_nodes(kubeadms: Site) -> None:
    first = kubeadms.machine("cp1")
    edit(first, str(PATHS.manifest("kube-scheduler")), "- kube-scheduler\n", "- kube-scheduler\n    - --v=4\n")
    change_object(kubeadms, "configmaps/kube-proxy", _set_proxy_mode)
    first.put(str(PATHS.manifests / "kube-vip.yaml"), "apiVersion: v1\nkind: Pod\n")
    first.put("/etc/systemd/system/kubelet.service.d/20-own.conf", "[Service]\nNice=1\n")
    kubeadms.clock = _now_of_disk()
    for name in ("cp1", "cp2", "w1"):
        assert run_adopt(kubeadms.machine(name)).status == 0
        assert names_on(kubeadms.machine(name)) == []


def _now_of_disk() -> Any:
    """A clock that agrees with the disk's: what is there by now is from before."""
    import datetime

    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)


def test_nothing_is_told_after_certificates_were_renewed(site: Site) -> None:
    first = site.machine("cp1")
    first.lists_containers = True
    assert run_kb(first, "certs", "renew", "all").status == 0
    assert names_on(first) == []


def test_what_kubeadm_wrote_for_another_version_is_no_drift(site: Site) -> None:
    """Real kubeadm upgraded this control plane: its files are as the stored configuration has them."""
    first = site.machine("cp1")
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        edit(first, str(PATHS.manifest(name)), "v1.35.6", "v1.35.7")
    assert names_on(first) == ["manifest/kube-apiserver", "manifest/kube-controller-manager", "manifest/kube-scheduler"]
    new = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"].replace(
        "v1.35.6", "v1.35.7"
    )
    change_object(
        site, "configmaps/kubeadm-config", lambda obj: obj["data"].update(ClusterConfiguration=new), "kubeadm"
    )
    change_object(
        site,
        "daemonsets/kube-proxy",
        lambda obj: container(obj).update(image="registry.k8s.io/kube-proxy:v1.35.7"),
        "kubeadm",
    )
    assert names_on(first) == []


def test_what_another_version_lacks_is_no_drift(site: Site) -> None:
    """From 1.36 on the controller-manager has no volume for FlexVolume plugins."""
    first = site.machine("cp1")
    path = str(PATHS.manifest("kube-controller-manager"))
    pod = load_yaml(first.text(path).replace("v1.35.6", "v1.36.1"))
    for items in (pod["spec"]["volumes"], pod["spec"]["containers"][0]["volumeMounts"]):
        items[:] = [one for one in items if one["name"] != "flexvolume-dir"]
    first.put(path, dump_yaml(pod), mode=0o600)
    fields = {row["field"] for row in look(first)[1] if row["name"] == "manifest/kube-controller-manager"}
    assert "spec.volumes[flexvolume-dir].hostPath.path" in fields
    new = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"].replace(
        "v1.35.6", "v1.36.1"
    )
    change_object(
        site, "configmaps/kubeadm-config", lambda obj: obj["data"].update(ClusterConfiguration=new), "kubeadm"
    )
    assert "manifest/kube-controller-manager" not in names_on(first)

    # what the version has, and somebody took away, is told
    pod["spec"]["containers"][0]["command"].remove("--leader-elect=true")
    first.put(path, dump_yaml(pod), mode=0o600)
    (row,) = (row for row in look(first)[1] if row["name"] == "manifest/kube-controller-manager")
    assert (row["field"].split()[-1], row["wanted"], row["found"]) == ("--leader-elect", "true", "")


def test_nothing_is_told_where_another_control_plane_was_upgraded(site: Site) -> None:
    first = site.machine("cp1")
    new = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"].replace(
        "v1.35.6", "v1.36.1"
    )
    change_object(
        site, "configmaps/kubeadm-config", lambda obj: obj["data"].update(ClusterConfiguration=new), "kubeadm"
    )
    change_object(
        site,
        "configmaps/kubelet-config",
        lambda obj: obj["data"].update(kubelet=obj["data"]["kubelet"] + "maxPods: 99\n"),
        "kubeadm",
    )
    assert names_on(first) == []


def test_a_node_whose_cluster_does_not_answer_is_looked_at_all_the_same(site: Site) -> None:
    first = site.machine("cp1")
    _age(first)
    _tamper(site, "kubelet/config.yaml")
    _age(first)
    site.cluster.is_up = False
    ended = run_kb(first, "drift")
    assert ended.status == 1 and "1 drifted on node cp1: kubelet/config.yaml" in ended.out, ended.out + ended.err
    assert "not looked at: the cluster's configuration" in ended.err


def test_a_kubelet_that_another_tool_replaced_is_told(site: Site) -> None:
    """kb recorded the program as it was placed."""
    first, path = site.machine("cp1"), "/usr/local/bin/kubelet"
    first.put(path, "program", mode=0o755)
    record_programs(first, PATHS.records, paths=[Path(path)])
    assert names_on(first) == []
    first.put(path, "another", mode=0o755)
    assert names_on(first) == ["package/kubelet"]


def test_the_keeper_of_the_load_balancer_may_follow_the_api_servers(site: Site) -> None:
    first, path = site.machine("cp1"), load_balancer.config_path(PATHS)
    settings = load_balancer.Settings("api.example.org:7443", 10300, "unix:///run/containerd/containerd.sock")
    first.put(str(path), load_balancer.render_config(settings, ["10.0.0.11:6443"]))
    kept = load_records(first, PATHS.records)
    kept.put("init/load-balancer/local", {str(path): {"content": first.text(str(path))}})
    kept.save()
    first.put(str(path), load_balancer.render_config(settings, ["10.0.0.11:6443", "10.0.0.12:6443"]))
    assert names_on(first) == []
    edit(first, str(path), "timeout connect 1s", "timeout connect 9s")
    assert names_on(first) == ["file/etc/kubernetes/kb-load-balancer/haproxy.cfg"]


# ---- what somebody changed


def _remove(machine: Machine, path: str) -> None:
    machine.at(Path(path)).unlink()


def _tamper(site: Site, name: str) -> None:
    first = site.machine("cp1")
    manifest = str(PATHS.manifest("kube-apiserver"))
    actions: dict[str, Callable[[], object]] = {
        "manifest/kube-apiserver": lambda: edit(first, manifest, "--secure-port=6443", "--secure-port=6443\n    - --profiling=false"),
        "kubelet/config.yaml": lambda: edit(first, KUBELET_CONFIG, "clusterDomain: cluster.local", "clusterDomain: other.local"),
        "kubelet/kubeadm-flags.env": lambda: first.put(str(PATHS.kubelet_flags_env), 'KUBELET_KUBEADM_ARGS="--v=6"\n'),
        "sysctl/net.ipv4.ip_forward": lambda: first.put("/proc/sys/net/ipv4/ip_forward", "0\n"),
        "file/etc/sysctl.d/90-kb.conf": lambda: _remove(first, "/etc/sysctl.d/90-kb.conf"),
        "drop-in/kubelet/10-kubeadm.conf": lambda: edit(first, "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", "ExecStart=\n", "ExecStart=\n# mine\n"),
        "unit/kb-routes": lambda: _remove(first, "/etc/systemd/system/kb-routes.service"),
        "drop-in/kubelet/99-own.conf": lambda: first.put("/etc/systemd/system/kubelet.service.d/99-own.conf", "[Service]\n"),
        "hosts.toml/quay.io": lambda: first.put("/etc/containerd/certs.d/quay.io/hosts.toml", 'server = "https://x"'),
        "foreign/miner.yaml": lambda: first.put(str(PATHS.manifests / "miner.yaml"), "apiVersion: v1\nkind: Pod\n"),
        "certificate/front-proxy-client": lambda: _remove(first, str(PATHS.pki / "front-proxy-client.crt")),
        "running/kube-scheduler": lambda: first.put("/proc/77/cmdline", "kube-scheduler\0--leader-elect=false\0"),
        "configmap/kube-system/kube-proxy": lambda: change_object(
            site, "configmaps/kube-proxy", _set_proxy_mode
        ),
        "configmap/kube-system/coredns": lambda: change_object(
            site, "configmaps/coredns", lambda obj: obj["data"].update(Corefile=obj["data"]["Corefile"].replace("cache 30", "cache 5"))
        ),
        "configmap/kube-system/kubeadm-config": lambda: change_object(
            site, "configmaps/kubeadm-config", lambda obj: obj["data"].update(ClusterConfiguration=obj["data"]["ClusterConfiguration"] + "featureGates: {}\n")
        ),
        "daemonset/kube-system/kube-proxy": lambda: change_object(
            site, "daemonsets/kube-proxy", lambda obj: container(obj).update(image="example.org/kube-proxy:v1"), "kubectl-set"
        ),
        "deployment/kube-system/coredns": lambda: site.cluster.objects.pop(f"{SYSTEM.replace('/api/v1', '/apis/apps/v1')}/deployments/coredns"),
    }  # fmt: skip
    actions[name]()


CASES = (
    "manifest/kube-apiserver",
    "kubelet/config.yaml",
    "kubelet/kubeadm-flags.env",
    "sysctl/net.ipv4.ip_forward",
    "file/etc/sysctl.d/90-kb.conf",
    "drop-in/kubelet/10-kubeadm.conf",
    "unit/kb-routes",
    "drop-in/kubelet/99-own.conf",
    "foreign/miner.yaml",
    "hosts.toml/quay.io",
    "certificate/front-proxy-client",
    "running/kube-scheduler",
    "configmap/kube-system/kube-proxy",
    "configmap/kube-system/coredns",
    "configmap/kube-system/kubeadm-config",
    "daemonset/kube-system/kube-proxy",
    "deployment/kube-system/coredns",
)


@pytest.mark.parametrize("name", CASES)
def test_what_was_changed_is_named(site: Site, name: str) -> None:
    _tamper(site, name)
    assert names_on(site.machine("cp1")) == [name]


def test_a_change_is_told_with_what_was_recorded_and_what_is_wanted(site: Site) -> None:
    _tamper(site, "kubelet/config.yaml")
    first = site.machine("cp1")
    _, (row,) = look(first)
    assert (row["field"], row["recorded"], row["wanted"], row["found"]) == (
        "clusterDomain",
        "cluster.local",
        "cluster.local",
        "other.local",
    )
    assert row["where"] == KUBELET_CONFIG and row["since"].endswith("Z") and row["fixable"]
    told = run_kb(first, "drift")
    assert told.status == 1 and "1 drifted on node cp1: kubelet/config.yaml" in told.out


def test_nothing_secret_is_told(site: Site) -> None:
    first = site.machine("cp1")
    edit(
        first,
        str(PATHS.manifest("kube-apiserver")),
        "- kube-apiserver\n",
        "- kube-apiserver\n    - --token=s3cr3t-word\n",
    )
    first.put(str(PATHS.pki / "sa.key"), "s3cr3t-word", mode=0o600)
    ended = run_kb(first, "drift", "-o", "json")
    assert ended.status == 1 and "s3cr3t-word" not in ended.out + ended.err
    assert {"manifest/kube-apiserver", "key/sa"} <= {row["name"] for row in json.loads(ended.out)["drift"]}


def test_a_machine_that_is_no_node_is_refused(site: Site) -> None:
    ended = run_kb(site.machine("w1"), "drift")
    assert ended.status == 4 and "code:   not-a-node" in ended.err


def _tell(machine: Machine) -> tuple[int, dict[str, Any]]:
    _age(machine)
    ended = run_kb(machine, "drift", "-o", "json")
    return ended.status, json.loads(ended.out)


@pytest.mark.parametrize(
    "text", ["{ broken", "", "[]", "apiVersion: kubeadm.k8s.io/v1beta9\nkind: ClusterConfiguration\n"]
)
def test_a_stored_configuration_that_nobody_understands_any_more_is_told(site: Site, text: str) -> None:
    change_object(site, "configmaps/kubeadm-config", lambda obj: obj["data"].update(ClusterConfiguration=text))
    status, found = _tell(site.machine("cp1"))
    assert status == 1 and len(found["notLooked"]) == 1
    (row,) = found["drift"]
    assert row["name"] == "configmap/kube-system/kubeadm-config" and "kb-former-config" in row["remedy"]


def test_a_version_that_kb_does_not_know_keeps_it_from_no_look_at_the_node(site: Site) -> None:
    def upgrade(obj: dict[str, Any]) -> None:
        text = obj["data"]["ClusterConfiguration"]
        obj["data"]["ClusterConfiguration"] = text.replace("kubernetesVersion: v1.35.6", "kubernetesVersion: v1.99.0")

    change_object(site, "configmaps/kubeadm-config", upgrade)
    _tamper(site, "sysctl/net.ipv4.ip_forward")
    status, found = _tell(site.machine("cp1"))
    assert status == 1 and [row["name"] for row in found["drift"]] == ["sysctl/net.ipv4.ip_forward"]
    assert "1.99" in found["notLooked"][0]


def test_what_cannot_be_read_hides_nothing_that_lies_beside_it(site: Site) -> None:
    first = site.machine("cp1")
    folder = first.at(PATHS.manifests)
    os.symlink("/nowhere", folder / "a.yaml")
    os.mkfifo(folder / "b.yaml")
    (Path(os.fsdecode(os.fsencode(folder) + b"/c\xff\nd.yaml"))).touch()
    (folder / "z.yaml").write_text("kind: Pod\n")
    names = ["foreign/a.yaml", "foreign/b.yaml", "foreign/c\\udcff\\nd.yaml", "foreign/z.yaml"]
    assert names_on(first) == names
    assert run_kb(first, "drift", "--accept", *names).status == 0
    assert names_on(first) == []


# ---- put back, and accepted

FIXABLE = (
    "sysctl/net.ipv4.ip_forward",
    "file/etc/sysctl.d/90-kb.conf",
    "certificate/front-proxy-client",
    "configmap/kube-system/kube-proxy",
    "configmap/kube-system/coredns",
    "daemonset/kube-system/kube-proxy",
    "deployment/kube-system/coredns",
)


@pytest.mark.parametrize("name", FIXABLE)
def test_what_was_changed_is_put_back(site: Site, name: str) -> None:
    first = site.machine("cp1")
    _tamper(site, name)
    assert names_on(first) == [name]
    ended = run_kb(first, "drift", "--fix", name)
    assert ended.status == 0 and "nothing is left of it on node cp1" in ended.out, ended.out + ended.err
    assert names_on(first) == []


def _swap_scheduler(machine: Machine, gate: str) -> None:
    """As a --fix of its manifest leaves it."""
    text = machine.text(str(PATHS.manifest("kube-scheduler")))
    pod = store.Pod("kube-scheduler", text.replace("- kube-scheduler\n", "- kube-scheduler\n    - --v=4\n"), text)
    store.save(machine, PATHS, swap=store.Swap((pod,), store.DONE))
    kept = load_state(machine, PATHS)
    kept.phases["reconfigure-static-pods/gate"] = PhaseState(gate, started="2026-01-01T00:00:00Z")
    kept.save()


@pytest.mark.parametrize("word", ["manifest/kube-scheduler", "--all"])
@pytest.mark.parametrize("gate", ["failed", "running"])
def test_a_manifest_that_was_put_back_in_a_cluster_that_was_not_well_is_looked_at_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, word: str, gate: str
) -> None:
    first, trouble = site.machine("cp1"), Trouble("node w1 is not Ready", "it is away", "start it")
    parts = [health.Part("node", "w1", trouble)]
    monkeypatch.setattr(static_pods_swap, "read_health", lambda ctx, **more: parts)
    _age(first)
    _swap_scheduler(first, gate)
    ended = run_kb(first, "drift", "--fix", word)
    assert ended.status == 5 and "code:   cluster-not-well" in ended.err, ended.err
    parts.clear()
    ended = run_kb(first, "drift", "--fix", word)
    assert ended.status == 0 and "nothing is left of it on node cp1" in ended.out, ended.out + ended.err
    monkeypatch.setattr(static_pods_swap, "read_health", None)
    ended = run_kb(first, "drift", "--fix", "manifest/kube-scheduler")
    assert ended.status == 2 and "code:   not-drifted" in ended.err, ended.err


def test_what_was_written_and_not_read_yet_is_restarted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A --fix that was killed between the two."""
    first = site.machine("cp1")
    launch: Any = SimpleNamespace(local=first, call=SimpleNamespace(report=Report(io.StringIO())))
    ground, _ = drift.find_ground(launch, load_state(first, PATHS))
    late = Drift("running/kubelet", "unit kubelet", "an older file", is_fixable=True)
    assert mending.find_left(ground, "kubelet/config.yaml", found=(late,)) == (late,)
    assert mending.find_left(ground, "kubelet/config.yaml", found=()) == ()
    name, row = "kubeconfig/scheduler.conf", renewal.ROWS["scheduler.conf"]
    assert mending.find_left(ground, name, found=()) == ()
    unread = unread_certs.Unread(row, PATHS.kubernetes / row.name, site.clock)
    monkeypatch.setattr(unread_certs, "find_unread", lambda *_, rows, **__: [unread] if row in rows else [])
    (left,) = mending.find_left(ground, name, found=())
    assert left.name == "running/kube-scheduler" and left.is_fixable
    assert mending.find_left(ground, "file/scheduler.conf", found=()) == ()


@pytest.mark.parametrize(
    ("name", "unit"), [("unit/kb-routes", "kb-routes"), ("drop-in/kubelet/10-kubeadm.conf", "kubelet")]
)
@pytest.mark.parametrize("word", ["", "--all"])
def test_a_unit_whose_file_was_put_back_is_restarted_by_whoever_comes_after_a_kill(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, unit: str, word: str
) -> None:
    """The file is as recorded by then."""
    first = site.machine("cp1")
    _tamper(site, name)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(services, "start_own_unit", die)
        patch.setattr(mending, "_start_kubelet", die)
        with pytest.raises(KeyboardInterrupt):
            run_kb(first, "drift", "--fix", name)
    assert names_on(first) == [f"running/{unit}"]
    ended = run_kb(first, "drift", "--fix", word or name)
    assert ended.status == 0 and f"{unit}" in ended.out and "nothing is left of it" in ended.out, ended.out + ended.err
    assert names_on(first) == [] and machine.read_due(first, PATHS) == ()


def test_a_boot_has_restarted_what_was_due(site: Site) -> None:
    first = site.machine("cp1")
    first.put("/proc/sys/kernel/random/boot_id", "one\n")
    machine.note_due(first, PATHS, units=["kb-routes.service"])
    assert machine.read_due(first, PATHS) == ("kb-routes.service",)
    first.put("/proc/sys/kernel/random/boot_id", "two\n")
    assert machine.read_due(first, PATHS) == ()


def test_kube_proxy_is_restarted_by_whoever_comes_after_a_fix_that_was_killed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration was as wanted again, and its pods ran with the former one."""
    first, second, name = site.machine("cp1"), site.machine("cp2"), "configmap/kube-system/kube-proxy"
    run_control_plane_join(second)
    daemon_set = next(one for path, one in site.cluster.objects.items() if path.endswith("/daemonsets/kube-proxy"))
    _tamper(site, name)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(objects, "restart_pods", die)
        with pytest.raises(KeyboardInterrupt):
            run_kb(first, "drift", "--fix", name)
    assert "annotations" not in daemon_set["spec"]["template"]["metadata"]
    assert names_on(second) == [name]
    ended = run_kb(second, "drift", "--fix", name)
    assert ended.status == 0 and "nothing is left of it" in ended.out, ended.out + ended.err
    daemon_set = next(one for path, one in site.cluster.objects.items() if path.endswith("/daemonsets/kube-proxy"))
    assert objects.RESTARTED_ANNOTATION in daemon_set["spec"]["template"]["metadata"]["annotations"]
    assert names_on(first) == []


def test_a_dry_run_puts_nothing_back(site: Site) -> None:
    first = site.machine("cp1")
    _tamper(site, "file/etc/sysctl.d/90-kb.conf")
    _tamper(site, "configmap/kube-system/coredns")
    ended = run_kb(first, "drift", "--fix", "--all", "--dry-run")
    assert ended.status == 0 and "/etc/sysctl.d/90-kb.conf" in ended.out, ended.out + ended.err
    assert names_on(first) == ["file/etc/sysctl.d/90-kb.conf", "configmap/kube-system/coredns"]


def test_what_was_found_is_kept_when_it_is_put_back(site: Site) -> None:
    first = site.machine("cp1")
    _age(first)
    edit(first, "/etc/sysctl.d/90-kb.conf", "net.ipv4.ip_forward = 1", "net.ipv4.ip_forward = 0")
    assert run_kb(first, "drift", "--fix", "--all").status == 0
    (kept,) = first.at(PATHS.state_dir / "drift").rglob("etc-sysctl.d-90-kb.conf")
    assert "net.ipv4.ip_forward = 0" in kept.read_text() and kept.stat().st_mode & 0o777 == 0o600
    take_back(first)
    assert not first.has("/var/lib/kb")


@pytest.mark.parametrize("name", CASES)
def test_what_was_accepted_is_not_told_again(site: Site, name: str) -> None:
    first = site.machine("cp1")
    _tamper(site, name)
    assert run_kb(first, "drift", "--accept", name).status == 0
    assert names_on(first) == []


def test_an_accepted_edit_is_told_once_it_is_another_one(site: Site) -> None:
    first, path = site.machine("cp1"), str(PATHS.manifest("kube-apiserver"))
    edit(first, path, "- kube-apiserver\n", "- kube-apiserver\n    - --v=3\n")
    assert run_kb(first, "drift", "--accept", "manifest/kube-apiserver").status == 0
    assert names_on(first) == []
    edit(first, path, "--v=3", "--v=5")
    assert names_on(first) == ["manifest/kube-apiserver"]


def test_what_the_cluster_accepted_every_control_plane_knows(site: Site) -> None:
    first, second = site.machine("cp1"), site.machine("cp2")
    run_control_plane_join(second)
    _tamper(site, "configmap/kube-system/coredns")
    assert names_on(second) == ["configmap/kube-system/coredns"]
    assert run_kb(first, "drift", "--accept", "--all").status == 0
    assert names_on(second) == []


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("--fix", "sysctl/none"), "not-drifted", 2),
        (("--fix",), "usage", 2),
        (("--all",), "usage", 2),
        (("--fix", "--accept", "--all"), "usage", 2),
        (("--accept", "--all", "sysctl"), "usage", 2),
    ],
)
def test_what_is_not_understood_changes_nothing(site: Site, words: tuple[str, ...], code: str, status: int) -> None:
    ended = run_kb(site.machine("cp1"), "drift", *words)
    assert ended.status == status and f"code:   {code}" in ended.err, ended.err


def test_the_timer_is_off_until_it_is_switched_on(site: Site) -> None:
    first = site.machine("cp1")
    assert "is off" in run_kb(first, "drift", "schedule", "status").out
    assert run_kb(first, "drift", "schedule", "on").status == 0
    assert "is on" in run_kb(first, "drift", "schedule", "status").out and names_on(first) == []
    assert run_kb(first, "drift", "schedule", "off").status == 0
    assert not first.has("/etc/systemd/system/kb-drift.timer") and names_on(first) == []


def test_what_the_timer_finds_is_an_event_of_the_node(site: Site) -> None:
    first = site.machine("cp1")
    _age(first)
    assert run_kb(first, "drift", "schedule", "run").status == 0
    _tamper(site, "sysctl/net.ipv4.ip_forward")
    assert run_kb(first, "drift", "schedule", "run").status == 1
    (event,) = (one for one in site.cluster.objects.values() if one.get("reason") == "DriftFound")
    assert event["involvedObject"]["name"] == "cp1" and "sysctl/net.ipv4.ip_forward" in event["message"]
