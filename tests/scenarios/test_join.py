"""kb join as a whole, on machines of a scripted network: what it leaves, twice in a row, killed anywhere, taken back."""

from __future__ import annotations

import datetime
import json
import signal
from pathlib import Path

import pytest

from kubeup.errors import Interrupted
from kubeup.node.kubeconfig import parse_kubeconfig, render_kubeconfig
from kubeup.paths import Paths
from kubeup.secret import Secret
from tests.fake_join import BOOTSTRAP_CONF, CSRS, CURRENT_PEM, KUBELET_CONF, SYSTEM, Machine, Site, user_of

from .scenario import (
    ENDPOINT,
    KEY,
    NETWORK_CONFIG,
    TOKEN,
    changed_by,
    cut_off,
    expect_refusal,
    in_two_processes,
    keys_of,
    objects_of,
    run_control_plane_join,
    run_join,
    run_kb,
    shape_of,
    take_back,
    tree_of,
)

WANTS = "/etc/systemd/system/multi-user.target.wants"
TIMERS = "/etc/systemd/system/timers.target.wants"
WORKER_FILES = {
    "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/ca.crt", "/etc/sysctl.d/90-kb.conf", "/etc/cni/net.d/99-kb-bridge.conflist",
    "/etc/systemd/system/kb-routes.service", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", f"{WANTS}/kb-routes.service",
    f"{WANTS}/kubelet.service", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/instance-config.yaml",
    "/var/lib/kubelet/kubeadm-flags.env",
}  # fmt: skip
CONTROL_PLANE_FILES = {
    *(f"/etc/kubernetes/pki/{name}.{end}" for end in ("crt", "key") for name in (
        "ca", "apiserver", "apiserver-kubelet-client", "front-proxy-ca", "front-proxy-client", "apiserver-etcd-client",
        "etcd/ca", "etcd/server", "etcd/peer", "etcd/healthcheck-client",
    )),
    "/etc/kubernetes/pki/sa.key", "/etc/kubernetes/pki/sa.pub",
    *(f"/etc/kubernetes/{name}.conf" for name in ("admin", "controller-manager", "scheduler")),
    *(f"/etc/kubernetes/manifests/{name}.yaml" for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")),
    "/etc/systemd/system/kb-certs.service", "/etc/systemd/system/kb-certs.timer", f"{TIMERS}/kb-certs.timer",
}  # fmt: skip
MASKED = ("/var/lib/kb/", "/var/lib/kubelet/pki/", "/var/lib/etcd/member/")


@pytest.fixture
def site(founded: Site, tmp_path: Path) -> Site:
    return founded.clone(tmp_path / "site", "w1", "cp2")


@pytest.fixture
def worker(site: Site) -> Machine:
    return site.machine("w1")


def files_of(machine: Machine) -> set[str]:
    """Every file but kb's own and those that the kubelet and etcd write themselves."""
    found = (f"/{path}" for path, text in tree_of(machine).items() if not text.endswith(" /"))
    return {path for path in found if not path.startswith(MASKED)}


# ---- a worker


def test_a_worker_joins_by_token(site: Site, worker: Machine) -> None:
    before = files_of(worker)
    ended = run_join(worker)
    assert ended.status == 0, ended.err
    assert "This node has joined the cluster" in ended.out
    assert files_of(worker) - before == WORKER_FILES
    conf = parse_kubeconfig(worker.text(KUBELET_CONF), source="kubelet.conf")
    assert conf.server == "https://api.example.org:6443" and conf.client_cert_file == CURRENT_PEM
    assert user_of(worker.text(CURRENT_PEM)).name == "system:node:w1"
    node = site.cluster.by_kind("Node")["w1"]
    assert node["spec"]["podCIDR"] == "10.244.1.0/24" and node["status"]["conditions"][0]["status"] == "True"
    phases = json.loads(worker.text(str(Paths.state)))["phases"]
    assert {phase["status"] for phase in phases.values()} == {"done"} and "join/verify" in phases
    (request,) = site.cluster.by_kind("CertificateSigningRequest").values()
    assert request["spec"]["username"] == "system:bootstrap:abcdef"


def test_a_worker_joins_with_the_words_that_token_create_prints(site: Site, worker: Machine) -> None:
    told = run_kb(site.machine("cp1"), "token", "create", "--print-join-command")
    words = told.out.split()
    assert words[:3] == ["python3", "kb.pyz", "join"] and TOKEN not in words
    ended = run_kb(worker, *words[2:])
    assert ended.status == 0, ended.err
    assert "w1" in site.cluster.by_kind("Node")


@pytest.mark.parametrize("has_token", [True, False])
def test_a_worker_joins_by_a_discovery_file(site: Site, worker: Machine, has_token: bool) -> None:
    ca_pem = site.machine("cp1").text("/etc/kubernetes/pki/ca.crt")
    token = Secret(TOKEN if has_token else "")
    text = render_kubeconfig(server=f"https://{ENDPOINT}", ca_pem=ca_pem, user="u", token=token)
    worker.put("/root/discovery.conf", text, 0o600)
    more = () if has_token else (f"--tls-bootstrap-token={TOKEN}",)
    ended = run_kb(worker, "join", "--discovery-file=/root/discovery.conf", *more)
    assert ended.status == 0, ended.err
    assert parse_kubeconfig(worker.text(KUBELET_CONF), source="kubelet.conf").server == f"https://{ENDPOINT}"
    again, changed = changed_by(site, lambda: run_kb(worker, "join", "--discovery-file=/root/discovery.conf", *more))
    assert (again.status, changed) == (0, 0) and "nothing to do" in again.err


@pytest.mark.parametrize("words", ["with the same words", "with none"])
def test_again_changes_nothing(site: Site, worker: Machine, words: str) -> None:
    assert run_join(worker).status == 0
    site.cluster.objects.pop("/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef")  # it has expired since
    tree, made = tree_of(worker), len(worker.changes)
    again, changed = changed_by(site, lambda: run_join(worker) if words != "with none" else run_kb(worker, "join"))
    assert again.status == 0, again.err
    assert "nothing to do" in again.err
    assert (worker.changes[made:], changed) == ([], 0)
    assert tree_of(worker) == tree


def test_a_worker_that_is_taken_back_is_as_it_was_and_joins_again(site: Site, worker: Machine) -> None:
    before = tree_of(worker)
    assert run_join(worker).status == 0
    ended = take_back(worker)
    assert ended.status == 0, ended.err
    assert "Node w1 is still in the cluster" in ended.out
    assert tree_of(worker) == before
    assert not worker.pods and worker.kubelet_since is None
    assert run_join(worker).status == 0


@pytest.mark.parametrize("name", ["w1", "cp2"])
def test_a_dry_run_leaves_no_trace(site: Site, name: str) -> None:
    machine, join = site.machine(name), run_join if name == "w1" else run_control_plane_join
    before, version = tree_of(machine), site.cluster.version
    ended = join(machine, "--dry-run")
    assert ended.status == 0, ended.err
    for path in ("/var/lib/kubelet/config.yaml", "/etc/kubernetes/pki/ca.crt"):
        assert f"would write: {path}" in ended.out
    assert "PRIVATE KEY" not in ended.out + ended.err and TOKEN.partition(".")[2] not in ended.out + ended.err
    assert (tree_of(machine), site.cluster.version, machine.kubelet_since) == (before, version, None)
    assert [member["name"] for member in site.members] == ["cp1"]


def test_no_secret_is_told_or_kept_in_the_state(site: Site) -> None:
    second = site.machine("cp2")
    ended = run_control_plane_join(second, "--v=2")
    assert ended.status == 0, ended.err
    state = second.text(str(Paths.state)).replace(second.text("/etc/machine-id").strip(), "")
    for text in (ended.out, ended.err, state):
        assert TOKEN.partition(".")[2] not in text and KEY not in text and "PRIVATE" not in text


def test_a_worker_killed_before_any_change_goes_on(site: Site, worker: Machine, tmp_path: Path) -> None:
    before = tree_of(worker)
    cuts = cut_off(worker, lambda: run_join(worker), tmp_path)
    wanted, objects = shape_of(worker), objects_of(site)
    assert len(cuts) > 40

    def check(cut: tuple[str, Site]) -> None:
        what, found = cut
        other = found.clone(tmp_path / f"other-{id(cut)}", "w1")
        ended = run_join(found.machine("w1"))
        assert ended.status == 0, f"killed before {what}: {ended.err}"
        assert shape_of(found.machine("w1")) == wanted, f"killed before {what}"
        assert objects_of(found) == objects, f"killed before {what}"
        ended = take_back(other.machine("w1"))
        assert ended.status == 0 or "code:   nothing-to-reset" in ended.err, f"killed before {what}: {ended.err}"
        left = {path for path in tree_of(other.machine("w1")) if not path.startswith("var/lib/kb")}
        assert left == {path for path in before if not path.startswith("var/lib/kb")}, f"killed before {what}"

    in_two_processes(cuts, check)


# ---- a control plane


def test_a_control_plane_joins(site: Site) -> None:
    second = site.machine("cp2")
    before = files_of(second)
    ended = run_control_plane_join(second)
    assert ended.status == 0, ended.err
    assert "a new control plane instance was created" in ended.out
    assert files_of(second) - before == WORKER_FILES | CONTROL_PLANE_FILES
    for name in ("ca.crt", "ca.key", "sa.key", "front-proxy-ca.key", "etcd/ca.key"):
        assert second.text(f"/etc/kubernetes/pki/{name}") == site.machine("cp1").text(f"/etc/kubernetes/pki/{name}")
    assert [(member["name"], member.get("isLearner", False)) for member in site.members] == [
        ("cp1", False),
        ("cp2", False),
    ]
    manifest = second.text("/etc/kubernetes/manifests/etcd.yaml")
    assert "--initial-cluster=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380" in manifest
    assert set(second.pods) == {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
    node = site.cluster.by_kind("Node")["cp2"]
    assert "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"]
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["node-role.kubernetes.io/control-plane"]
    assert "kb-control-plane-join" not in site.cluster.by_kind("Lease")
    assert user_of(second.text(CURRENT_PEM)).name == "system:node:cp2"
    assert not site.cluster.by_kind("CertificateSigningRequest")


def test_a_control_plane_again_changes_nothing(site: Site) -> None:
    second = site.machine("cp2")
    assert run_control_plane_join(second).status == 0
    site.cluster.objects.pop("/api/v1/namespaces/kube-system/secrets/kubeadm-certs")  # it is there for two hours
    tree, made = tree_of(second), len(second.changes)
    again, changed = changed_by(site, lambda: run_kb(second, "join", "--control-plane", "--soak=1s"))
    assert again.status == 0, again.err
    assert "nothing to do" in again.err
    assert (second.changes[made:], changed) == ([], 0)
    assert tree_of(second) == tree


def test_a_control_plane_that_is_taken_back_leaves_etcd(site: Site) -> None:
    second = site.machine("cp2")
    before = tree_of(second)
    assert run_control_plane_join(second).status == 0
    ended = take_back(second)
    assert ended.status == 0, ended.err
    assert [member["name"] for member in site.members] == ["cp1"]
    assert tree_of(second) == before
    assert run_control_plane_join(second).status == 0


def test_a_control_plane_killed_before_any_change_goes_on(site: Site, tmp_path: Path) -> None:
    second = site.machine("cp2")
    cuts = cut_off(second, lambda: run_control_plane_join(second, "--soak=0"), tmp_path)
    wanted, objects = shape_of(second), objects_of(site)
    assert len(cuts) > 100

    def check(cut: tuple[str, Site]) -> None:
        what, found = cut
        keys = keys_of(found.machine("cp2"))
        ended = run_control_plane_join(found.machine("cp2"), "--soak=0")
        assert ended.status == 0, f"killed before {what}: {ended.err}"
        after = keys_of(found.machine("cp2"))
        assert {path: after.get(path) for path in keys} == keys, f"a key was made again after the kill before {what}"
        assert shape_of(found.machine("cp2")) == wanted, f"killed before {what}"
        assert objects_of(found) == objects, f"killed before {what}"
        assert [(one["name"], one.get("isLearner", False)) for one in found.members] == [("cp1", False), ("cp2", False)]

    in_two_processes(cuts, check)


# ---- wrong turns


def change_nothing(site: Site) -> None:
    pass


def take_away_token(site: Site) -> None:
    del site.cluster.objects[f"{SYSTEM}/secrets/bootstrap-token-abcdef"]
    site.control()


def let_token_expire(site: Site) -> None:
    site.clock += datetime.timedelta(days=2)


def switch_off(site: Site) -> None:
    site.away.add("10.0.0.11")


def take_the_name(site: Site) -> None:
    status = {
        "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.99"}],
    }
    node = {"kind": "Node", "metadata": {"name": "w1", "creationTimestamp": "2025-12-31T00:00:00Z"}, "status": status}
    site.cluster.objects["/api/v1/nodes/w1"] = node


def forget_the_configuration(site: Site) -> None:
    del site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]


def take_away_rights(site: Site) -> None:
    for name in ("kubeadm:nodes-kubeadm-config", "kubeadm:kubelet-config"):
        del site.cluster.objects[f"/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/{name}"]


WRONG = {
    # what is wrong: what was done to the cluster, words of the command, error code, exit status
    "another secret": (change_nothing, {"token": "abcdef.fedcba9876543210"}, "token-secret-wrong", 5),
    "a token that is gone": (take_away_token, {}, "token-unknown", 5),
    "a token that has expired": (let_token_expire, {}, "token-expired", 5),
    "another pin": (change_nothing, {"pin": f"sha256:{'0' * 64}"}, "ca-hash-mismatch", 5),
    "a cluster that is off": (switch_off, {}, "endpoint-unreachable", 5),
    "a name that is taken": (take_the_name, {}, "node-name-taken", 5),
    "no configuration": (forget_the_configuration, {}, "not-kubeadms-cluster", 5),
    "no right to see it": (take_away_rights, {}, "join-rights-missing", 5),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_before_anything_is_changed(site: Site, worker: Machine, wrong: str) -> None:
    spoil, words, code, status = WRONG[wrong]
    spoil(site)
    before, version = tree_of(worker), site.cluster.version
    expect_refusal(run_join(worker, **words), code, status)
    assert {path: text for path, text in tree_of(worker).items() if not path.startswith("var/lib/kb")} == before
    assert site.cluster.version == version
    assert not [what for what in worker.changes if what.startswith(("run", "link")) or "kubernetes" in what]
    expect_refusal(take_back(worker), "nothing-to-reset", 4)


def test_a_worker_is_not_made_a_control_plane(site: Site, worker: Machine) -> None:
    assert run_join(worker).status == 0
    tree, version = tree_of(worker), site.cluster.version
    expect_refusal(run_control_plane_join(worker), "node-is-worker", 4)
    assert (tree_of(worker), site.cluster.version) == (tree, version)


def test_a_control_plane_is_not_made_a_worker(site: Site) -> None:
    second = site.machine("cp2")
    assert run_control_plane_join(second).status == 0
    tree = tree_of(second)
    expect_refusal(run_join(second), "node-is-control-plane", 4)
    expect_refusal(run_join(site.machine("cp1")), "node-is-control-plane", 4)
    assert tree_of(second) == tree


def test_a_control_plane_that_joined_runs_the_phases_that_remedies_name(site: Site, worker: Machine) -> None:
    """Certificates are uploaded again on any control plane; a worker has none, and init as a whole is for the first."""
    second = site.machine("cp2")
    assert run_control_plane_join(second).status == 0
    del site.cluster.objects[f"{SYSTEM}/secrets/kubeadm-certs"]
    config = NETWORK_CONFIG.replace("10.0.0.11", "10.0.0.12")
    for machine in (second, worker):
        machine.put("/root/init.yaml", config)
    words = ("phase", "upload-certs", "--upload-certs", "--config=/root/init.yaml")
    ended = run_kb(second, "init", *words)
    assert ended.status == 0 and f"{SYSTEM}/secrets/kubeadm-certs" in site.cluster.objects, ended.err
    assert run_control_plane_join(second).status == 0
    expect_refusal(run_kb(second, "init", "--config=/root/init.yaml"), "node-is-worker", 4)
    assert run_join(worker).status == 0
    expect_refusal(run_kb(worker, "init", *words), "node-is-worker", 4)


@pytest.mark.parametrize("signer, code", [("sleeps", "csr-pending"), ("denies", "csr-denied")])
def test_a_certificate_that_is_not_signed(site: Site, worker: Machine, signer: str, code: str) -> None:
    """The kubelet runs and waits: with a signer the same command ends well; or all of it is taken back."""
    before, site.signer = tree_of(worker), signer
    ended = run_join(worker)
    expect_refusal(ended, code, 5)
    assert "error execution phase kubelet-wait-bootstrap" in ended.err
    assert not worker.has(KUBELET_CONF) and "w1" not in site.cluster.by_kind("Node")
    assert take_back(worker).status == 0
    assert tree_of(worker) == before
    expect_refusal(run_join(worker), code, 5)
    for path in [path for path in site.cluster.objects if path.startswith(CSRS)]:
        del site.cluster.objects[path]
    site.signer = "signs"
    ended = run_join(worker)
    assert ended.status == 0, ended.err
    assert worker.has(KUBELET_CONF) and not worker.has(BOOTSTRAP_CONF)


def test_control_planes_need_what_the_first_has_uploaded(site: Site) -> None:
    second = site.machine("cp2")
    before = tree_of(second)
    expect_refusal(run_control_plane_join(second, key="cd" * 32), "certificate-key-wrong", 5)
    secret = site.cluster.objects.pop(f"{SYSTEM}/secrets/kubeadm-certs")
    expect_refusal(run_control_plane_join(second), "certs-secret-missing", 5)
    expect_refusal(run_join(second, "--control-plane"), "shared-files-missing", 4)
    site.cluster.objects[f"{SYSTEM}/secrets/kubeadm-certs"] = secret
    config = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]
    stored = config["data"]["ClusterConfiguration"]
    config["data"]["ClusterConfiguration"] = stored.replace("controlPlaneEndpoint: api.example.org:6443\n", "")
    assert config["data"]["ClusterConfiguration"] != stored
    expect_refusal(run_control_plane_join(second), "no-control-plane-endpoint", 5)
    assert {path: text for path, text in tree_of(second).items() if not path.startswith("var/lib/kb")} == before
    assert [member["name"] for member in site.members] == ["cp1"]


def test_a_join_that_is_interrupted_leaves_no_learner(site: Site) -> None:
    """A signal while etcd catches up: the member without a vote goes out of the list, and the next run adds it again."""
    second = site.machine("cp2")

    def interrupt(what: str) -> None:
        if what.endswith("member/promote"):
            raise Interrupted(signal.SIGTERM)

    second.before_change = interrupt
    ended = run_control_plane_join(second)
    assert ended.status == 128 + signal.SIGTERM, ended.err
    assert "interrupted by SIGTERM in phase etcd-join" in ended.err
    assert [member["name"] for member in site.members] == ["cp1"]
    assert not second.has("/etc/kubernetes/manifests/etcd.yaml") and not second.has("/var/lib/etcd/member")
    assert "kb-control-plane-join" not in site.cluster.by_kind("Lease")
    second.before_change = None
    ended = run_control_plane_join(second)
    assert ended.status == 0, ended.err
    assert [member["name"] for member in site.members] == ["cp1", "cp2"]
