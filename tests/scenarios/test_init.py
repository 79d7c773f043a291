"""kb init as a whole: what it leaves, twice in a row, killed anywhere, planned only."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path

import pytest

import kb
from kubeup.commands import launcher
from kubeup.config.load_init import load_init_config
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.local_host import LocalHost
from kubeup.paths import Paths
from kubeup.phases import preflight
from kubeup.report import Report
from kubeup.yaml_files import load_yaml
from tests.fake_cluster import ClusterHost

from .scenario import CONFIG, CONFIG_FILE, FLAGS, run_init, snapshot

KUBERNETES_FILES = {
    *(f"/etc/kubernetes/pki/{name}.{end}" for end in ("crt", "key") for name in (
        "ca", "apiserver", "apiserver-kubelet-client", "front-proxy-ca", "front-proxy-client", "apiserver-etcd-client",
        "etcd/ca", "etcd/server", "etcd/peer", "etcd/healthcheck-client",
    )),
    "/etc/kubernetes/pki/sa.key", "/etc/kubernetes/pki/sa.pub",
    *(f"/etc/kubernetes/{name}.conf" for name in ("admin", "super-admin", "kubelet", "controller-manager", "scheduler")),
    *(f"/etc/kubernetes/manifests/{name}.yaml" for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")),
    "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/kubeadm-flags.env",
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> ClusterHost:
    return ClusterHost(tmp_path)


def test_every_file_of_kubeadm_s_is_there_and_keys_are_private(host: ClusterHost) -> None:
    run_init(host)
    have = {path for path in snapshot(host) if path.startswith(("/etc/kubernetes", "/var/lib/kubelet"))}
    assert have == KUBERNETES_FILES
    for path in have:
        if path.endswith((".key", ".conf", "manifests/etcd.yaml")):
            stat = host.stat(Path(path))
            assert stat and stat.mode == 0o600, path


def test_every_object_of_kubeadm_s_is_there(host: ClusterHost) -> None:
    run_init(host)
    cluster = host.cluster
    assert {"kubeadm-config", "kubelet-config", "kube-proxy", "coredns", "cluster-info"} <= set(
        cluster.by_kind("ConfigMap")
    )
    assert {"kubeadm:cluster-admins", "kubeadm:get-nodes", "kubeadm:kubelet-bootstrap", "kubeadm:node-proxier"} <= set(
        cluster.by_kind("ClusterRoleBinding")
    )
    assert "bootstrap-token-abcdef" in cluster.by_kind("Secret")
    node = cluster.by_kind("Node")["cp1"]
    assert "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"]
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["node-role.kubernetes.io/control-plane"]


def test_twice_in_a_row_changes_nothing(host: ClusterHost) -> None:
    run_init(host)
    files, objects, commands_run = snapshot(host), json.dumps(host.cluster.objects), len(host.commands)
    state = host.read_bytes(Paths.state)
    again = run_init(host)
    assert {phase.status for phase in again.phases} == {"unchanged", "skipped"}
    assert again.changes == 0
    assert snapshot(host) == files
    assert json.dumps(host.cluster.objects) == objects
    assert host.commands[commands_run:] == []
    before, after = json.loads(state), json.loads(host.read_bytes(Paths.state))
    for entry in (before, after):
        entry["phases"].pop("init/show-join-command")
    assert before == after


def copy_of(host: ClusterHost, folder: Path) -> ClusterHost:
    """The machine as a kill at this moment leaves it, with the cluster as it is."""
    shutil.copytree(host.root, folder, symlinks=True)
    return ClusterHost(folder, copy.deepcopy(host.cluster))


def test_killed_before_any_write_the_next_run_ends_the_same(tmp_path: Path) -> None:
    """Kill the run before its n-th file write, for every n, and run it again: nothing is missing, no key is made again.

    One run goes through, and the machine is copied before each of its writes."""
    host = ClusterHost(tmp_path / "reference")
    host.write_file(CONFIG_FILE, CONFIG)
    killed: list[tuple[Path, ClusterHost]] = []
    host.before_write = lambda path: killed.append((path, copy_of(host, tmp_path / f"killed-{len(killed)}")))
    run_init(host, flags={}, config_file=CONFIG_FILE)
    wanted = set(snapshot(host))
    assert len(killed) > 50
    for number, (path, left) in enumerate(killed):
        keys = {name: content for name, content in snapshot(left).items() if name.endswith(".key")}
        run_init(left, flags={}, config_file=CONFIG_FILE)
        after = snapshot(left)
        assert set(after) == wanted, f"killed before write {number} ({path})"
        assert {name: after[name] for name in keys} == keys, f"a key was made again after the kill at {number}"
        shutil.rmtree(left.root)


def test_a_dry_run_leaves_no_trace(host: ClusterHost, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dry = DryRunHost(host)
    run_init(dry)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    planned = {step.what.partition(" ")[0] for step in dry.plan if step.kind == "write"}
    assert planned >= KUBERNETES_FILES
    assert any(step.what.endswith("configmaps/kubeadm-config") for step in dry.plan if step.kind == "send")
    assert not any("PRIVATE KEY" in step.diff for step in dry.plan)


def count_requests(host: ClusterHost, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that a run asks for, as it does."""
    asked: list[str] = []

    def count(verb: str) -> None:
        real = getattr(host, verb)

        def counted(url: str, *words: object, **more: object) -> object:
            asked.append(url)
            return real(url, *words, **more)

        monkeypatch.setattr(host, verb, counted)

    for verb in ("http_get", "http_open", "http_ask"):
        count(verb)
    return asked


def test_a_dry_run_with_downloads_fetches_nothing_and_writes_nothing(
    host: ClusterHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through no other way to the machine either: a phase that made one would write to /var/lib/kb of this machine."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run went round the host that plans its changes")

    which, missing = host.which, ("containerd", "runc", "kubelet", "kubectl", "crictl")
    monkeypatch.setattr(host, "which", lambda name: None if name in missing else which(name))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    asked = count_requests(host, monkeypatch)
    monkeypatch.setattr(LocalHost, "__init__", refuse)
    dry = DryRunHost(host)
    run_init(dry, flags={**FLAGS, "packages": "download"})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    planned = {step.what for step in dry.plan if step.kind == "write"}
    assert "/usr/local/bin/containerd (0755)" in planned
    assert not [what for what in planned if what.startswith("/var/lib/kb/downloads")]
    assert not [url for url in asked if "127.0.0.1" not in url and "10.0.0.11" not in url]


def test_a_whole_node_below_a_folder(tmp_path: Path) -> None:
    host = LocalHost(tmp_path)
    run_init(host)
    pod = load_yaml((tmp_path / "etc/kubernetes/manifests/kube-apiserver.yaml").read_text())
    assert pod["spec"]["containers"][0]["image"] == "registry.k8s.io/kube-apiserver:v1.35.6"
    assert any("systemctl" in text for text in host.deferred)


def test_the_service_cidr_moves_everything_together(host: ClusterHost) -> None:
    run_init(host, flags={**FLAGS, "service-cidr": "10.200.0.0/16"})
    kubelet = load_yaml(host.read_text(Path("/var/lib/kubelet/config.yaml")))
    assert kubelet["clusterDNS"] == ["10.200.0.10"]
    assert host.cluster.by_kind("Service")["kube-dns"]["spec"]["clusterIP"] == "10.200.0.10"
    manifest = host.read_text(Path("/etc/kubernetes/manifests/kube-apiserver.yaml"))
    assert "--service-cluster-ip-range=10.200.0.0/16" in manifest


def test_one_phase_alone_makes_its_file_again(host: ClusterHost) -> None:
    run_init(host)
    manifest = Path("/etc/kubernetes/manifests/kube-scheduler.yaml")
    content = host.read_bytes(manifest)
    host.remove(manifest)
    result = run_init(host, only="control-plane/scheduler")
    assert [phase.name for phase in result.phases] == ["control-plane/scheduler"]
    assert host.read_bytes(manifest) == content


def test_no_secret_in_log_state_or_result(host: ClusterHost) -> None:
    log = io.StringIO()
    result = run_init(host, log=log)
    for text in (log.getvalue(), host.read_text(Paths.state), json.dumps(result.as_dict())):
        assert "0123456789abcdef" not in text.replace("0123456789abcdef0123456789abcdef", "")
        assert "PRIVATE" not in text


def test_every_phase_has_its_reason_and_a_unique_name() -> None:
    names = [phase.name for phase in kb.INIT]
    assert len(set(names)) == len(names)
    assert all(phase.does and phase.does[0].isupper() and not phase.does.endswith(".") for phase in kb.INIT)


def test_a_node_without_its_state_is_known_by_kb_s_mark(host: ClusterHost) -> None:
    """kubeadm's files are the same to the letter: without a mark of kb's own the node counts as another's."""
    run_init(host)
    config = load_init_config(host, config_file=None, flags=dict(FLAGS))
    ctx = launcher.make_run(host, config, paths=launcher.paths_of(config, {}), report=Report(io.StringIO()))
    host.remove(Paths.state)
    assert ctx.paths.manifest("etcd") in preflight.find_own_files(ctx)
    host.remove_tree(Paths.state_dir)
    assert ctx.paths.manifest("etcd") in preflight.find_own_files(ctx)
    host.remove(Path("/etc/sysctl.d/90-kb.conf"))
    assert preflight.find_own_files(ctx) == []
    host.write_file(Paths.state, "{}")  # of the run that was refused a moment ago
    assert preflight.find_own_files(ctx) == []


def test_a_member_of_etcd_stays_where_etcd_is_external_now(host: ClusterHost) -> None:
    """It holds the cluster's data, and a vote among members on other nodes: that goes by a command of its own."""
    run_init(host)
    manifest, before = Path("/etc/kubernetes/manifests/etcd.yaml"), snapshot(host)
    host.write_file(
        CONFIG_FILE,
        CONFIG.replace("networking:", "etcd: {external: {endpoints: [https://10.0.0.9:2379]}}\nnetworking:"),
    )
    log = io.StringIO()
    for only in ("etcd/local", "control-plane/apiserver"):
        run_init(host, flags={}, config_file=CONFIG_FILE, only=only, log=log)
    assert snapshot(host)[str(manifest)] == before[str(manifest)]
    assert f"{manifest} stays" in log.getvalue()
    assert "https://10.0.0.9:2379" in host.read_text(Path("/etc/kubernetes/manifests/kube-apiserver.yaml"))
