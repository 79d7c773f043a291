"""The kubelet of an upgrade: program and files change together, and both come back where the new one does not work."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import pytest

from kubeup.airgap import containerd_hosts
from kubeup.cluster import eviction, health, upgrade_turn
from kubeup.config import presets
from kubeup.config.types import Join, KbConfiguration, Mirror, Packages
from kubeup.engine.run import Caller, Selection
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.host import Argv, CommandResult, shown_argv
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.network import load_balancer
from kubeup.node import containers
from kubeup.phases import static_pods_swap, upgrade_kubelet, upgrade_programs, upgrade_rollback
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.swap import former_pods, kubelet_view, leads, order, proof, turn
from kubeup.upgrade import kept
from tests.fake_drain import BUDGET, NODE, DrainedNode, api_of, make_pod, refuse
from tests.fake_node import PATHS, finished_node, make_config

OLD, NEW = "v1.34.9", "v1.35.6"
KUBELET, KUBECTL = "/usr/bin/kubelet", "/usr/bin/kubectl"
STAGED = kept.programs_folder(PATHS)
CONFIG, ENV = str(PATHS.kubelet_config), str(PATHS.kubelet_flags_env)
NODE_PATH = f"/api/v1/nodes/{NODE}"
LEASE_PATH = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}"
FORMER_ENV = 'KUBELET_KUBEADM_ARGS="--node-labels=a=b --pod-infra-container-image=registry.k8s.io/pause:3.10.1"\n'
MANAGED = {
    "systemctl stop kubelet",
    "systemctl restart kubelet",
    "systemctl reset-failed kubelet",
    "systemctl daemon-reload",
}


@dataclass
class Worker(DrainedNode):
    """A worker with a kubelet of 1.34. A program's content is the version that it prints; breaks: what the new kubelet does not do."""

    breaks: str = ""
    is_running: bool = True
    pid: int = 100
    exits: int = 0
    dies_at: Optional[str] = None
    """The change before which kb is killed."""
    refused_flag: str = ""
    starts: str = KUBELET
    """The program that the service starts."""

    def query(self, argv: Argv, **more: Any) -> CommandResult:
        words = shown_argv(argv)
        text = self.files.get(words[0], b"").decode()
        if words[1:2] == ("--version",) and text.startswith("v"):
            if text == NEW and self.refused_flag and any(word.startswith(self.refused_flag) for word in words[2:]):
                told = f'err="failed to parse kubelet flag: unknown flag: {self.refused_flag}"'
                return CommandResult(words, 1, "", told)
            return CommandResult(words, 0, f"Kubernetes {text}\n")
        if words[1:2] == ("version",) and text.startswith("v"):
            return CommandResult(words, 0, f"Client Version: {text}\n")
        if words[:3] == ("systemctl", "show", "kubelet"):
            return CommandResult(words, 0, self._show(words))
        if words[:3] == ("systemctl", "is-active", "kubelet"):
            return CommandResult(words, 0, "active\n" if self.is_running else "inactive\n")
        if words[0] == "journalctl":
            return CommandResult(words, 0, 'E1130 run.go:72] "command failed" err="no such field: nope"\n')
        return super().query(argv, **more)

    def _show(self, words: tuple[str, ...]) -> str:
        if "ExecStart" in words:
            return f"{{ path={self.starts} ; argv[]={self.starts} $KUBELET_EXTRA_ARGS ; }}\n"
        if "LoadState,NeedDaemonReload,DropInPaths" in words:
            return "LoadState=loaded\nNeedDaemonReload=no\nDropInPaths=\n"
        ends = self.breaks == "exits" and self.version == NEW
        state = (
            "ActiveState=activating\nSubState=auto-restart\nExecMainStatus=1"
            if ends
            else "ActiveState=active\nSubState=running"
        )
        return f"LoadState=loaded\n{state}\nNRestarts={self.exits}\nMainPID={self.pid}\n"

    @property
    def version(self) -> str:
        return self.files[KUBELET].decode()

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        words = shown_argv(argv)
        self._die_before(" ".join(words))
        if words[:2] == ("systemctl", "stop"):
            self.is_running = False
        if words[:2] == ("systemctl", "restart"):
            self.is_running, self.pid = True, self.pid + 1
            self._report()
        return super().run(argv, **more)

    def _report(self) -> None:
        is_bad = self.version == NEW and self.breaks == "exits"
        if is_bad:
            return
        ready = "False" if self.version == NEW and self.breaks == "not ready" else "True"
        node = self.cluster.objects[NODE_PATH]
        node["status"] = {
            "nodeInfo": {"kubeletVersion": self.version},
            "conditions": [{"type": "Ready", "status": ready, "message": "no network"}],
        }
        self.cluster.objects[LEASE_PATH]["spec"]["renewTime"] = f"{self.clock:%Y-%m-%dT%H:%M:%S.000000Z}"

    def http_get(self, url: str, **more: Any) -> HttpResponse:
        if url.endswith(":10248/healthz"):
            if not self.is_running or (self.breaks == "exits" and self.version == NEW):
                raise Unreachable(url, "refused", text="refused")
            return HttpResponse(200, b"ok")
        return super().http_get(url, **more)

    def write_file(self, path: Path, data: Any, **more: Any) -> bool:
        self._die_before(f"write {path}")
        return super().write_file(path, data, **more)

    def http_send(self, method: str, url: str, **more: Any) -> HttpResponse:
        self._die_before(f"{method} {url.partition('6443')[2]}".partition("?")[0])
        return super().http_send(method, url, **more)

    def _die_before(self, change: str) -> None:
        self.steps.append(change)
        if change == self.dies_at:
            self.dies_at = None
            raise Killed

    steps: list[str] = field(default_factory=list)


class Killed(SystemExit):
    """kb is killed: no line of it runs any more. The tests see to that, since a way back would run."""


def make_worker(*pods: Any, former: str = OLD, **more: Any) -> Worker:
    host = Worker(pods={pod["metadata"]["name"]: pod for pod in pods}, accepts=MANAGED, **more)
    host.programs = {"systemctl", "kubelet", "kubectl", "apt-get"}
    host.dirs = {"/run/systemd/system", "/sys/fs/cgroup"}
    host.files = {
        KUBELET: former.encode(), KUBECTL: former.encode(), CONFIG: b"kind: KubeletConfiguration\n", ENV: FORMER_ENV.encode(),
        "/sys/fs/cgroup/cgroup.controllers": b"", str(PATHS.kubernetes / "kubelet.conf"): b"x",
        "/usr/lib/systemd/system/kubelet.service": b"EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n",
    }  # fmt: skip
    host.modes = {KUBELET: 0o755, KUBECTL: 0o755}
    host.cluster.objects[NODE_PATH] = {
        "kind": "Node", "metadata": {"name": NODE}, "spec": {}, "status": {"nodeInfo": {"kubeletVersion": former}},
    }  # fmt: skip
    lease = {"kind": "Lease", "metadata": {"name": NODE}, "spec": {"renewTime": "2025-12-31T00:00:00.000000Z"}}
    host.cluster.objects[LEASE_PATH] = lease
    return host


def fetched(host: Worker) -> Worker:
    """As after the phase before, which has fetched the programs."""
    host.files[str(STAGED / "kubelet")] = host.files[str(STAGED / "kubectl")] = NEW.encode()
    return host


def make_run(host: Worker, *, drains: bool = True, source: str = "bundle", **more: Any) -> UpgradeRun:
    config = make_config(node=NODE)
    config = dataclasses.replace(
        config,
        cluster=dataclasses.replace(config.cluster, kubernetes_version=NEW),
        kb=KbConfiguration(bundle="/root/b.tar" if source == "bundle" else "", packages=Packages(source=source)),
        join=Join(),
    )
    fields: dict[str, Any] = {
        "host": host, "paths": PATHS, "config": config, "release": RELEASES[35], "caller": Caller.by(api_of(host)),
        "report": Report(io.StringIO(), verbosity=1), "texts": (), "agree": lambda question: None, "former": OLD,
        "is_first": False, "drains": drains, **more,
    }  # fmt: skip
    return UpgradeRun(**fields)


def begin(host: Worker, **more: Any) -> UpgradeRun:
    run = make_run(host, **more)
    kept.begin(host, PATHS, former=OLD, wanted=NEW)
    fetched(host)
    return run


def node_of(host: Worker) -> dict[str, Any]:
    return host.cluster.objects[NODE_PATH]


def was_cordoned(host: Worker) -> bool:
    """Whether the node was closed to pods meanwhile: otherwise only its turn is taken, and given back."""
    assert upgrade_turn.ANNOTATION not in (node_of(host)["metadata"].get("annotations") or {})
    return len([step for step in host.steps if step.startswith("PATCH")]) != 2


def expect_new(host: Worker) -> None:
    assert host.version == NEW and host.files[KUBECTL] == NEW.encode() and host.is_running
    assert b"pod-infra-container-image" not in host.files[ENV] and b"--node-labels=a=b" in host.files[ENV]
    assert b"clusterDNS" in host.files[CONFIG] and str(PATHS.kubelet_instance_config) in host.files
    assert host.modes[KUBELET] == 0o755


def expect_former(host: Worker) -> None:
    assert host.version == OLD and host.files[KUBECTL] == OLD.encode() and host.is_running
    assert host.files[ENV] == FORMER_ENV.encode() and host.files[CONFIG] == b"kind: KubeletConfiguration\n"
    assert str(PATHS.kubelet_instance_config) not in host.files
    assert "unschedulable" not in node_of(host)["spec"]


# ---- forward


def test_program_and_files_change_together_on_a_drained_node() -> None:
    host = make_worker(make_pod("web"), make_pod("proxy", owner="DaemonSet"))
    run = begin(host)
    upgrade_kubelet.change_kubelet(run)
    expect_new(host)
    assert host.evicted == ["web"] and "unschedulable" not in node_of(host)["spec"]
    steps = [
        step for step in host.steps if step.startswith(("POST", "systemctl", f"write {KUBELET}", f"write {CONFIG}"))
    ]
    assert steps[0].startswith("POST") and steps[1:] == [
        "systemctl stop kubelet", f"write {CONFIG}", f"write {KUBELET}", "systemctl reset-failed kubelet", "systemctl restart kubelet",
    ]  # fmt: skip
    found = kept.load(host, PATHS)
    assert found and found.status == kept.DONE and found.has_done("kubelet")
    assert host.files[str(kept.copy_of(PATHS, Path(KUBELET)))] == OLD.encode()


def test_once_more_it_changes_nothing() -> None:
    host = make_worker()
    upgrade_kubelet.change_kubelet(begin(host))
    before, host.changes = dict(host.files), []
    upgrade_kubelet.change_kubelet(make_run(host))
    assert host.files == before and not host.changes


def test_without_a_drain_no_pod_leaves() -> None:
    host = make_worker(make_pod("web"))
    upgrade_kubelet.change_kubelet(begin(host, drains=False))
    expect_new(host)
    assert not host.evicted and not was_cordoned(host)


def test_a_patch_needs_no_drain() -> None:
    host = make_worker(make_pod("web"), former="v1.35.2")
    upgrade_kubelet.change_kubelet(begin(host))
    expect_new(host)
    assert not host.evicted and not was_cordoned(host)


@pytest.mark.parametrize(
    ("others", "leaves"), [([], False), (["cordoned"], False), (["away"], False), (["ready"], True)]
)
def test_pods_that_no_other_node_can_take_stay(others: list[str], leaves: bool) -> None:
    """On a cluster of one node a drain would only cost."""
    host = make_worker(make_pod("web"))
    host.others = [node_of(host)]
    for name in others:
        status = {"conditions": [{"type": "Ready", "status": "False" if name == "away" else "True"}]}
        host.others.append(
            {"metadata": {"name": name}, "spec": {"unschedulable": name == "cordoned"}, "status": status}
        )
    out = io.StringIO()
    upgrade_kubelet.change_kubelet(begin(host, report=Report(out, verbosity=1)))
    expect_new(host)
    assert host.evicted == (["web"] if leaves else [])
    assert ("no other node can take the pods of w1" in out.getvalue()) is not leaves


def test_the_cordon_of_the_admin_stays() -> None:
    host = make_worker(make_pod("web"))
    node_of(host)["spec"]["unschedulable"] = True
    upgrade_kubelet.change_kubelet(begin(host))
    expect_new(host)
    assert host.evicted == ["web"] and node_of(host)["spec"]["unschedulable"] is True


def test_without_a_source_what_the_operator_has_to_do_is_told() -> None:
    host = make_worker(make_pod("web"))
    run = make_run(host, source="none")
    upgrade_programs.fetch_programs(run)
    results = upgrade_kubelet.change_kubelet(run)
    expect_former(host)
    assert (
        results
        and results.remaining
        and "apt-get install" in results.remaining[0]
        and "1.35.6-*" in results.remaining[0]
    )
    assert not host.evicted


def test_what_the_operator_has_installed_is_started() -> None:
    host = make_worker(make_pod("web"))
    host.files[KUBELET] = NEW.encode()  # and kubectl may stay as old as it is
    run = make_run(host, source="none")
    upgrade_programs.fetch_programs(run)
    upgrade_kubelet.change_kubelet(run)
    host.steps.clear()
    upgrade_kubelet.change_kubelet(run)
    assert not host.steps
    host.files[KUBECTL] = NEW.encode()
    expect_new(host)


def test_what_somebody_wrote_into_the_nodes_own_configuration_is_told_before_it_goes() -> None:
    host = make_worker()
    host.files[CONFIG] = b"kind: KubeletConfiguration\nmaxPods: 250\n"
    out = io.StringIO()
    upgrade_kubelet.change_kubelet(begin(host, report=Report(out, verbosity=1)))
    assert "change: config.yaml: maxPods: 250 -> " in out.getvalue()


def test_where_another_minor_comes_from_is_told_too() -> None:
    host = make_worker()
    run = make_run(host, source="none", command="kb upgrade node")
    upgrade_programs.fetch_programs(run)
    results = upgrade_kubelet.change_kubelet(run)
    assert results and results.remaining and "kb upgrade node --packages apt" in results.remaining[0]


def left_of(run: UpgradeRun) -> str:
    """What the operator is told to do."""
    results = upgrade_kubelet.change_kubelet(run)
    assert results is not None and results.remaining is not None
    (told,) = results.remaining
    return told


@pytest.mark.parametrize("is_owned", [True, False])
def test_a_program_that_is_replaced_under_its_package_is_told(is_owned: bool) -> None:
    host, out = make_worker(), io.StringIO()
    host.programs.add("dpkg-query")
    if is_owned:
        host.answers[f"dpkg-query --search {KUBELET}"] = f"kubelet: {KUBELET}\n"
    run = make_run(host, report=Report(out, verbosity=1), command="kb upgrade node")
    upgrade_programs._tell_of_packages(run, upgrade_programs.list_outdated(run))
    told = f"{KUBELET} came by a package, which apt goes on to list as {OLD}"
    assert (told in out.getvalue()) is is_owned
    assert ("kb upgrade node --packages apt" in out.getvalue()) is is_owned


def hosts_of(url: str) -> bytes:
    return containerd_hosts.render_hosts("registry.k8s.io", containerd_hosts.Mirror(url), is_only=True).encode()


@pytest.mark.parametrize("url", ["https://10.0.0.11:5000", "http://10.0.0.11:5000/k8s"])
def test_where_images_come_from_a_mirror_the_programs_may_too(url: str) -> None:
    """No repository of packages may be in reach."""
    host = make_worker()
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = hosts_of(url)
    run = make_run(host, source="auto", command="kb upgrade node")
    told = left_of(run)
    assert f"kb upgrade node --mirror {url};" in told and "kb upgrade node --bundle FILE" in told
    assert "apt-get" not in told


def test_a_mirror_whose_authority_nobody_knows_is_named_with_its_hash() -> None:
    host, ca = make_worker(), finished_node().files[str(PATHS.pki / "ca.crt")]
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = hosts_of("https://m.test:5000")
    host.files[str(containerd_hosts.CA_FILE)] = ca
    run = make_run(host, source="auto", command="kb upgrade node")
    told = left_of(run)
    assert "kb upgrade node --mirror https://m.test:5000 --mirror-ca-hash sha256:" in told
    host.files[str(PATHS.pki / "ca.crt")] = ca
    told = left_of(run)
    assert "kb upgrade node --mirror https://m.test:5000;" in told


def test_the_server_of_a_preset_has_no_programs() -> None:
    host = make_worker()
    server = next(url for name in presets.list_presets() for url in presets.find_preset(name).registries.values())
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = hosts_of(server)
    run = make_run(host, source="auto", command="kb upgrade node")
    told = left_of(run)
    assert "--mirror" not in told and "apt-get install" in told


def test_a_mirror_that_has_only_images_is_not_named_again() -> None:
    host = make_worker()
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = hosts_of("http://10.0.0.11:5000")
    run = make_run(host, source="auto", command="kb upgrade node")
    mirror = dataclasses.replace(run.config.kb, mirror=Mirror("http://10.0.0.11:5000"))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, kb=mirror))
    told = left_of(run)
    assert "the mirror has no programs" in told and "--bundle FILE" in told and "apt-get install" in told


def test_a_package_that_would_put_its_program_beside_the_one_that_runs_is_refused_before_anything_stops() -> None:
    host = make_worker()
    host.files["/usr/local/bin/kubelet"] = host.files.pop(KUBELET)
    host.starts = "/usr/local/bin/kubelet"
    with pytest.raises(HostError) as caught:
        upgrade_programs.fetch_programs(make_run(host, source="apt", command="kb upgrade node"))
    assert caught.value.code == "program-elsewhere" and "/usr/local/bin/kubelet" in caught.value.what
    assert "kb upgrade node --packages download" in caught.value.remedy
    assert host.is_running and not [step for step in host.steps if step.startswith(("apt", "systemctl"))]


def test_packages_that_a_killed_run_left_unheld_are_held_by_the_next() -> None:
    host = make_worker()
    upgrade_kubelet.change_kubelet(begin(host))
    host.answers["apt-mark showhold"] = ""
    host.answers["apt-mark hold"] = lambda words: CommandResult(words, 0)
    upgrade_kubelet.change_kubelet(make_run(host, source="apt"))
    assert "apt-mark hold kubelet kubectl" in host.steps


@pytest.mark.parametrize("comes_back", [False, True])
def test_the_load_balancer_of_an_older_kb_runs_on_under_the_other_kubelet(comes_back: bool) -> None:
    """Its manifest names no UID, so the other kubelet would reckon another one, and start it again."""
    host, path = make_worker(breaks="exits" if comes_back else ""), str(PATHS.manifest(load_balancer.NAME))
    host.files[path] = b"kind: Pod\nmetadata:\n  name: kb-load-balancer\n"
    labels = {"io.kubernetes.pod.uid": "8d0f64e0a3c24d33b04b0cbd1d3c2ac1"}
    row = {
        "id": "a",
        "metadata": {"name": load_balancer.NAME},
        "state": "CONTAINER_RUNNING",
        "createdAt": "9",
        "labels": labels,
    }
    host.programs.add("crictl")
    host.answers["crictl"] = json.dumps({"containers": [row]})
    run = begin(host)
    with pytest.raises(ClusterError) if comes_back else contextlib.nullcontext():
        upgrade_kubelet.change_kubelet(run)
    assert b'uid: "8d0f64e0a3c24d33b04b0cbd1d3c2ac1"' in host.files[path]
    assert (
        host.steps.index("systemctl stop kubelet")
        < host.steps.index(f"write {path}")
        < host.steps.index(f"write {KUBELET}")
    )


def test_a_kubelet_of_a_busy_machine_gets_more_time() -> None:
    took_s = []
    for load in ("0.5", "16.0"):
        host = make_worker(breaks="not ready", former=NEW)
        host.files["/proc/loadavg"] = f"{load} 9 9 1/1 1".encode()
        began = host.ticks
        with pytest.raises(ClusterError):
            upgrade_kubelet.start_and_watch(begin(host), version=NEW, since=host.clock)
        took_s.append(host.ticks - began)
    assert 90 < took_s[0] < 95 and 180 < took_s[1] < 185


def as_control_plane(host: Worker) -> UpgradeRun:
    run = begin(host)
    for name in ("etcd", "kube-apiserver"):
        host.files[str(PATHS.manifest(name))] = b"kind: Pod\n"
    return dataclasses.replace(run, config=dataclasses.replace(run.config, join=None))


def watch_surroundings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told to load balancers and other control planes, in its order."""
    told: list[str] = []
    leave, rejoin, let = (functools.partial(told.append, word) for word in ("leave", "rejoin", "let others"))
    around = order.Surroundings(lambda: False, leave, rejoin, let)
    monkeypatch.setattr(static_pods_swap, "find_surroundings", lambda run, **more: around)
    monkeypatch.setattr(order, "lead_away", lambda run: told.append("lead away"))
    monkeypatch.setattr(static_pods_swap, "check_quorum", lambda run: told.append("count"))

    @contextlib.contextmanager
    def hold(runs: Any, *, work: str) -> Iterator[Callable[[], None]]:
        told.append("hold")
        yield lambda: None
        told.append("give back")

    monkeypatch.setattr(turn, "hold", hold)
    return told


@pytest.mark.parametrize(
    ("is_server", "leaves_minor", "is_spared"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_an_api_server_that_the_new_kubelet_starts_again_is_out_of_the_balancers_meanwhile(
    is_server: bool, leaves_minor: bool, is_spared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another minor, the kubelet reckons the UIDs of static pods anew."""
    told = watch_surroundings(monkeypatch)
    host = make_worker()
    run = as_control_plane(host) if is_server else begin(host)
    with upgrade_kubelet.spared(run, leaves_minor=leaves_minor):
        told.append("work")
    assert told == (["hold", "count", "leave", "lead away", "work", "rejoin", "give back"] if is_spared else ["work"])
    with pytest.raises(HostError), upgrade_kubelet.spared(run, leaves_minor=leaves_minor):
        raise HostError("x", cause="x", remedy="x", code="not-healthy")
    assert not is_spared or told[-1] == "rejoin"


def test_a_users_command_that_fails_before_the_stop_is_followed_by_the_one_that_takes_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have taken the API server out of a balancer by half."""
    told = watch_surroundings(monkeypatch)

    def leave() -> None:
        told.append("leave")
        raise HostError("the command of --before-stop ended", cause="x", remedy="x", code="users-command-failed")

    around = order.Surroundings(lambda: False, leave, lambda: told.append("rejoin"))
    monkeypatch.setattr(static_pods_swap, "find_surroundings", lambda run, **more: around)
    run = as_control_plane(make_worker())
    with pytest.raises(HostError), upgrade_kubelet.spared(run, leaves_minor=True):
        told.append("work")
    assert told == ["hold", "count", "leave", "rejoin"]


def test_a_member_that_went_meanwhile_keeps_the_static_pods_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd ends with the kubelet of another minor: the others would be left without a quorum."""
    told = watch_surroundings(monkeypatch)
    unsafe = ClusterError("etcd would lose its quorum", cause="cp3 is away", remedy="x", code="etcd-stop-unsafe")

    def count(run: Any) -> None:
        raise unsafe

    monkeypatch.setattr(static_pods_swap, "check_quorum", count)
    run = as_control_plane(make_worker())
    with pytest.raises(ClusterError) as caught, upgrade_kubelet.spared(run, leaves_minor=True):
        told.append("work")
    assert caught.value is unsafe and "leave" not in told and "work" not in told


@pytest.mark.parametrize(
    ("is_server", "leaves_minor", "ends"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_static_pods_of_before_end_with_the_start_of_a_kubelet_of_another_minor(
    is_server: bool, leaves_minor: bool, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would run beside those that it starts, and keep their ports."""
    host = make_worker()
    run = as_control_plane(host) if is_server else begin(host)

    @contextlib.contextmanager
    def ended_by_start(run: Any) -> Iterator[frozenset[str]]:
        host.steps.append("end")
        yield frozenset({"c1"})
        host.steps.append("ended")

    monkeypatch.setattr(former_pods, "ended_by_start", ended_by_start)
    monkeypatch.setattr(former_pods, "have_ended", lambda run, ids: ids == {"c1"})
    monkeypatch.setattr(proof, "read_holders", lambda run, names: {name: f"cp1_{name}" for name in names})
    freed: dict[str, str] = {}
    monkeypatch.setattr(leads, "free", lambda run, ended: freed.update(ended))
    monkeypatch.setattr(upgrade_kubelet, "find_missing", lambda run, version, **more: "")
    monkeypatch.setattr(upgrade_kubelet, "_wait_for_static_pods", lambda run: None)
    upgrade_kubelet.start_and_watch(run, version="", since=host.now(), leaves_minor=leaves_minor)
    told = [step for step in host.steps if step in ("end", "systemctl restart kubelet", "ended")]
    assert told == (["end", "systemctl restart kubelet", "ended"] if ends else ["systemctl restart kubelet"])
    assert set(freed) == ({"kube-controller-manager", "kube-scheduler"} if ends else set())


@pytest.mark.parametrize(("waited_s", "is_kept"), [(15.0, True), (25.0, False)])
def test_a_look_at_the_leases_is_not_repeated_when_the_node_is_no_longer_spared(
    waited_s: float, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would begin anew the ten seconds in which each kubelet renews its lease."""
    host = make_worker()
    run = as_control_plane(host)
    monkeypatch.setattr("kubeup.network.drain.undrain", lambda api, server, tell: None)
    monkeypatch.setattr(health, "read_node_renewals", lambda api: {"cp1": ("now", 40.0)})
    around = static_pods_swap.find_surroundings(run)
    run.found.renewals, run.found.looked_at = {"cp1": ("before", 40.0)}, host.monotonic()
    host.sleep(waited_s)
    around.rejoin()
    assert run.found.renewals == {"cp1": ("before" if is_kept else "now", 40.0)}


@pytest.mark.parametrize("is_server", [True, False])
def test_who_renews_a_lease_while_the_kubelet_is_watched_need_not_do_so_again_for_the_gate(
    is_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_worker()
    run = as_control_plane(host) if is_server else begin(host)
    told = {"cp1": ("2026-11-30T10:00:00.000000Z", 40.0)}
    monkeypatch.setattr(health, "read_node_renewals", lambda api: told)
    monkeypatch.setattr(upgrade_kubelet, "find_missing", lambda run, version, **more: "")
    monkeypatch.setattr(upgrade_kubelet, "_wait_for_static_pods", lambda run: None)
    upgrade_kubelet.start_and_watch(run, version="", since=host.now())
    assert run.found.renewals == (told if is_server else None)


def test_two_control_planes_do_not_start_their_static_pods_again_at_once() -> None:
    """The kubelet of another minor restarts etcd too: that needs the turn of a swap."""
    host = make_worker()
    run = as_control_plane(host)
    other = dataclasses.replace(run.config, node=dataclasses.replace(run.config.node, name="cp2"))
    assert turn.take(dataclasses.replace(run, config=other)) is None
    with pytest.raises(ClusterError) as caught, upgrade_kubelet.spared(run, leaves_minor=True):
        raise AssertionError
    assert caught.value.code == "swap-elsewhere" and "cp2" in caught.value.what


@pytest.mark.parametrize("is_back", [False, True])
def test_what_a_run_that_was_cut_off_told_the_load_balancers_is_taken_back_once_the_kubelet_is_as_wanted(
    is_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed once everything was in its place, and before the API server was put back into the load balancers."""
    told = watch_surroundings(monkeypatch)
    monkeypatch.setattr(upgrade_kubelet.Change, "is_done", lambda self: True)
    monkeypatch.setattr(upgrade_rollback, "_is_back", lambda run, former: True)
    host = make_worker()
    run = as_control_plane(host)
    kept.keep(run.host, PATHS, files=upgrade_programs.list_kept_files(run))
    host.files[KUBELET] = NEW.encode()
    work = upgrade_rollback.return_kubelet if is_back else upgrade_kubelet.change_kubelet
    work(run)
    assert told == []
    work(dataclasses.replace(run, selection=Selection(cut_off=frozenset({"kubelet-config"}))))
    assert told == ["rejoin", "let others"]


def test_static_pods_have_to_be_those_that_the_new_kubelet_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = as_control_plane(make_worker())
    began = run.host.monotonic()

    def is_over(after_s: float) -> bool:
        return run.host.monotonic() - began > after_s

    def list_running(host: Any, socket: str) -> list[Any]:
        rows = {"etcd": "new", "kube-apiserver": "new" if is_over(5) else "old"}
        return [SimpleNamespace(name=name, pod_uid=uid, state="running") for name, uid in rows.items()]

    monkeypatch.setattr(
        kubelet_view, "read_static_pods", lambda *args, **more: {"etcd": "new", "kube-apiserver": "new"}
    )
    monkeypatch.setattr(containers, "list_containers", list_running)
    monkeypatch.setattr(
        proof, "ask", lambda run, name: "" if is_over(9) or name == "etcd" else "/readyz answers HTTP 500"
    )
    upgrade_kubelet._wait_for_static_pods(run)
    assert is_over(9) and not is_over(12)
    monkeypatch.setattr(proof, "ask", lambda run, name: "/readyz answers HTTP 500")
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet._wait_for_static_pods(run)
    assert "etcd: /readyz answers HTTP 500" in caught.value.cause


def test_while_the_kubelet_is_replaced_the_node_says_so() -> None:
    host = make_worker()
    seen: list[str] = []
    stop = host.run

    def look(argv: Argv, **more: Any) -> CommandResult:
        seen.append(upgrade_turn.read(node_of(host)))
        return stop(argv, **more)

    host.run = look  # type: ignore[method-assign]
    upgrade_kubelet.change_kubelet(begin(host))
    assert seen[0].startswith("v1.35.6 since 20") and upgrade_turn.read(node_of(host)) == ""
    node_of(host)["metadata"]["annotations"] = {
        upgrade_turn.ANNOTATION: "v1.35.6 since 2026-11-30T07:00:00Z"
    }  # of a run that was killed
    upgrade_kubelet.change_kubelet(make_run(host))
    assert upgrade_turn.read(node_of(host)) == ""


# ---- back


@pytest.mark.parametrize(("breaks", "told"), [("exits", "no such field: nope"), ("not ready", "no network")])
def test_a_kubelet_that_does_not_work_is_taken_back_and_the_node_uncordoned(breaks: str, told: str) -> None:
    host = make_worker(make_pod("web"), breaks=breaks)
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet.change_kubelet(begin(host))
    assert caught.value.code == "kubelet-not-upgraded"
    assert told in caught.value.cause and f"{OLD}, runs again" in caught.value.cause
    expect_former(host)
    assert host.ticks < 150


def test_a_kubelet_that_ends_at_once_costs_seconds_not_the_whole_wait() -> None:
    host = make_worker(breaks="exits")
    with pytest.raises(ClusterError):
        upgrade_kubelet.change_kubelet(begin(host, drains=False))
    assert host.ticks < 30


def test_a_budget_that_allows_none_is_named_and_nothing_stops() -> None:
    host = make_worker(make_pod("web"), answer=lambda name, at: refuse())
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet.change_kubelet(begin(host))
    assert caught.value.code == "pods-not-evicted" and BUDGET in caught.value.cause
    expect_former(host)
    assert "systemctl stop kubelet" not in host.steps


def test_a_former_kubelet_that_does_not_come_back_is_told() -> None:
    host = make_worker(breaks="exits")

    def report() -> None:
        host.breaks = "exits" if host.version == NEW else "lost"
        if host.breaks == "lost":
            host.is_running = False

    host._report = report  # type: ignore[method-assign]
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet.change_kubelet(begin(host, drains=False))
    assert caught.value.code == "kubelet-not-taken-back" and "/var/lib/kb/upgrade/former" in caught.value.remedy


class Full(Worker):
    """Its disk has no room for a program from the moment that the kubelet is stopped, while the folder with the new ones is there."""

    frees = True

    def write_stream(self, path: Path, chunks: Any, **more: Any) -> None:
        data = b"".join(chunks)
        if not self.is_running and (str(STAGED / "kubelet") in self.files or not self.frees):
            raise HostError(
                f"{path} cannot be written", cause="No space left on device", remedy="make space", code="disk-full"
            )
        super().write_stream(path, iter([data]), **more)


def full_worker(**more: Any) -> Full:
    made = make_worker()
    host = Full(**{item.name: getattr(made, item.name) for item in dataclasses.fields(made)})
    for name, value in more.items():
        setattr(host, name, value)
    return host


def test_a_disk_that_fills_up_while_the_kubelet_is_stopped() -> None:
    """What is as it was needs no room; the new programs make room for the rest."""
    host = full_worker()
    before = dict(host.files)
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet.change_kubelet(begin(host, drains=False))
    assert caught.value.code == "kubelet-not-upgraded" and "No space left" in caught.value.cause
    assert host.is_running and {path: host.files[path] for path in before} == before


def test_a_kubelet_that_cannot_be_taken_back_is_started_all_the_same() -> None:
    host = full_worker(frees=False)
    real = kept.put_back

    def fail(*words: Any, **more: Any) -> Any:
        host.files[KUBECTL] = b"half"
        return real(*words, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ClusterError) as caught:
        patch.setattr(kept, "put_back", fail)
        upgrade_kubelet.change_kubelet(begin(host, drains=False))
    assert caught.value.code == "kubelet-not-taken-back" and host.is_running


def test_room_for_the_new_programs_is_there_before_anything_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_worker()
    run = begin(host)
    host.steps.clear()
    monkeypatch.setattr(host, "free_bytes", lambda path: 1 << (20 if path == Path(KUBELET).parent else 40))
    with pytest.raises(HostError) as caught:
        upgrade_kubelet.change_kubelet(run)
    assert caught.value.code == "disk-full" and host.is_running and "systemctl stop kubelet" not in host.steps


def test_a_former_program_that_says_no_version_comes_back_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that is mounted noexec, for example."""
    host = make_worker(breaks="exits")
    monkeypatch.setattr(upgrade_kubelet, "find_former", lambda run: "")
    with pytest.raises(ClusterError) as caught:
        upgrade_kubelet.change_kubelet(begin(host, drains=False))
    assert caught.value.code == "kubelet-not-upgraded"
    expect_former(host)


def test_a_node_that_was_not_ready_before_need_not_be_afterwards_if_the_user_goes_on_all_the_same() -> None:
    host = make_worker(breaks="not ready")
    status = {"conditions": [{"type": "Ready", "status": "False", "message": "no network"}]}
    node_of(host)["status"].update(status)
    upgrade_kubelet.change_kubelet(begin(host, drains=False, force=True))
    expect_new(host)


# ---- cut off


def count_changes() -> list[str]:
    host = make_worker(make_pod("web"))
    upgrade_kubelet.change_kubelet(begin(host))
    return list(dict.fromkeys(host.steps))


@pytest.mark.parametrize("change", count_changes())
def test_killed_before_each_change_the_same_command_goes_on(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_worker(make_pod("web"))
    run = begin(host)
    host.dies_at = change
    with monkeypatch.context() as dead:
        dead.setattr(upgrade_kubelet.Change, "_go_back", lambda *args, **more: None)
        dead.setattr(eviction, "uncordon", lambda *args: False)
        with pytest.raises(Killed):
            upgrade_kubelet.change_kubelet(run)
    again = make_run(host)
    upgrade_programs.fetch_programs(again)
    upgrade_kubelet.change_kubelet(again)
    expect_new(host)
    assert "unschedulable" not in node_of(host)["spec"] and not host.pods
    assert host.files[str(kept.copy_of(PATHS, Path(KUBELET)))] == OLD.encode()


# ---- before anything stops


def refused(host: Worker, **more: Any) -> KbError:
    before = dict(host.files)
    with pytest.raises(KbError) as caught:
        upgrade_programs.fetch_programs(make_run(host, **more))
    kept_files = {name: data for name, data in host.files.items() if not name.startswith("/var/lib/kb")}
    assert kept_files == {name: data for name, data in before.items() if not name.startswith("/var/lib/kb")}
    assert host.is_running and "systemctl stop kubelet" not in host.steps
    return caught.value


def test_a_flag_of_the_admin_that_the_new_kubelet_lacks_is_named_with_its_file() -> None:
    host = make_worker(refused_flag="--gone")
    kept.begin(host, PATHS, former=OLD, wanted=NEW)
    fetched(host)
    host.files["/etc/default/kubelet"] = b'KUBELET_EXTRA_ARGS="--gone=1 --v=2"\n'
    error = refused(host)
    assert error.code == "kubelet-flags-refused"
    assert "/etc/default/kubelet" in error.what and "unknown flag: --gone" in error.cause


@pytest.mark.parametrize(
    ("flag", "is_refused"),
    [
        ("--feature-gates=ImageVolume=true,PodIndexLabel=true", True),
        ("--feature-gates PodIndexLabel=true", True),
        ("--feature-gates=ImageVolume=true", False),
    ],
)
def test_a_gate_that_the_new_kubelet_lacks_is_named_though_its_version_looks_at_none(
    flag: str, is_refused: bool
) -> None:
    host = make_worker()
    kept.begin(host, PATHS, former=OLD, wanted=NEW)
    fetched(host)
    host.files["/etc/default/kubelet"] = f'KUBELET_EXTRA_ARGS="{flag}"\n'.encode()
    if not is_refused:
        upgrade_programs.fetch_programs(make_run(host))
        return
    error = refused(host)
    assert error.code == "kubelet-flags-refused" and "/etc/default/kubelet" in error.what
    assert "--feature-gates sets PodIndexLabel to true: Kubernetes 1.35 has no feature gate" in error.cause


def test_a_drop_in_counts_too() -> None:
    host = make_worker(refused_flag="--gone")
    kept.begin(host, PATHS, former=OLD, wanted=NEW)
    fetched(host)
    host.files["/etc/systemd/system/kubelet.service.d/90-own.conf"] = (
        b'[Service]\nEnvironment="KUBELET_EXTRA_ARGS=--gone"\n'
    )
    assert "90-own.conf" in refused(host).what


def test_cgroup_v1_without_the_setting_is_refused() -> None:
    host = make_worker()
    kept.begin(host, PATHS, former=OLD, wanted=NEW)
    del fetched(host).files["/sys/fs/cgroup/cgroup.controllers"]
    assert refused(host).code == "cgroup-v1-refused"


def test_pods_that_nothing_makes_anew_need_a_word() -> None:
    def disagree(question: str) -> None:
        raise UsageError(question, cause="nobody agreed", remedy="give --yes", code="not-confirmed")

    host = make_worker(make_pod("lonely", owner=""))
    error = refused(host, agree=disagree)
    assert error.code == "not-confirmed" and "app/lonely" in error.what


def test_a_kubectl_that_is_a_link_to_another_tool_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """snap has /snap/bin/kubectl -> /usr/bin/snap: what is written to the link replaces snap itself."""
    host = make_worker()
    monkeypatch.setattr(host, "real_path", lambda path: Path("/usr/bin/snap") if path == Path(KUBECTL) else path)
    run = begin(host)
    upgrade_programs.fetch_programs(run)
    upgrade_kubelet.change_kubelet(run)
    assert host.version == NEW and host.files[KUBECTL] == OLD.encode()
    host.steps.clear()
    upgrade_kubelet.change_kubelet(make_run(host))
    assert not host.steps


def test_a_node_without_a_kubelet_is_told_apart() -> None:
    host = make_worker()
    del host.files[KUBELET]
    host.programs.discard("kubelet")
    with pytest.raises(HostError) as caught:
        upgrade_programs.fetch_programs(make_run(host))
    assert caught.value.code == "kubelet-missing"


def test_a_dry_run_changes_nothing_and_shows_the_files() -> None:
    host = make_worker(make_pod("web"))
    dry = DryRunHost(host)
    run = dataclasses.replace(make_run(host), host=dry)
    upgrade_programs.foretell_programs(run)
    upgrade_kubelet.foretell_kubelet(run)
    assert {CONFIG, KUBELET} <= {step.what.partition(" ")[0] for step in dry.plan}
    assert not host.changes and json.dumps(dry.plan[0].diff)
