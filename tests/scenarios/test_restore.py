"""kb restore: another machine, and the same one, become the control plane of a backup; refusals, a kill, a dry run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeup.backup import archive, etcdutl, node_content, restoring
from kubeup.backup.archive import About, Content, Member, content_of, render_archive
from kubeup.errors import HostError
from kubeup.node import certificates, image_program, pki
from kubeup.node.image_program import MountedImage
from kubeup.paths import Paths
from kubeup.phases import serve_mirror
from kubeup.swap import last_member
from kubeup.yaml_files import commands_of_pod, dump_yaml, flags_of, load_yaml
from tests.fake_join import SYSTEM, Machine, Site

from .scenario import found_cluster, run_kb

PATHS = Paths()
CA = PATHS.pki / "ca.crt"
MANIFESTS = [PATHS.manifest(name) for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")]
DB = Path("/var/lib/etcd/member/snap/db")


class Tools:
    """etcdutl, and who listens elsewhere."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.listening: list[str] = []
        self.has_etcdutl = True

    @contextlib.contextmanager
    def mount_image(self, host: Any, socket: str, *, image: str) -> Iterator[MountedImage]:
        yield MountedImage(image)

    def require_etcdutl(self, host: Any, mounted: MountedImage) -> str:
        if not self.has_etcdutl:
            raise HostError("there is no etcdutl", cause="none", remedy="get one", code="no-etcdutl")
        return "image"

    def restore_snapshot(self, host: Any, mounted: Any, *, snapshot: Path, data_dir: Path, words: list[str]) -> None:
        self.words = list(words)
        host.write_file(data_dir / "member/snap/db", b"restored " + host.read_bytes(snapshot))

    def find_listeners(self, host: Any, members: Any) -> Any:
        return [(one, f"{one.name}:2379") for one in members if one.name in self.listening]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools()
    monkeypatch.setattr(image_program, "mount_image", made.mount_image)
    monkeypatch.setattr(etcdutl, "require_etcdutl", made.require_etcdutl)
    monkeypatch.setattr(etcdutl, "restore_snapshot", made.restore_snapshot)
    monkeypatch.setattr(last_member, "find_listeners", made.find_listeners)
    return made


def make_backup(site: Site, *, members: tuple[str, ...] = ("cp1",), kubernetes: str = "v1.35.6") -> bytes:
    """What kb backup writes on cp1, with a snapshot that only the test knows."""
    first = site.machine("cp1")
    contents: list[Content] = list(node_content.gather_files(first, PATHS).contents)
    for name in ("kubeadm-config", "kubelet-config", "kube-proxy", "kb-config"):
        found = site.cluster.objects.get(f"{SYSTEM}/configmaps/{name}")
        if found:
            contents.append(content_of(f"objects/{name}.yaml", dump_yaml(found).encode()))
    contents.append(content_of("etcd/snapshot.db", b"snapshot"))
    rows = tuple(Member(f"{n}", name, (f"https://10.0.0.1{n}:2380",)) for n, name in enumerate(members, start=1))
    about = About(
        made="2026-01-01T00:00:00Z", kb="0.1.0", node="cp1", kubernetes=kubernetes, etcd="3.6.6", address="10.0.0.11",
        endpoint="api.example.org:6443", members=rows,
    )  # fmt: skip
    return b"".join(render_archive(about, contents))


@pytest.fixture
def founded(tmp_path: Path) -> Site:
    return found_cluster(tmp_path / "former")


def new_machine(tmp_path: Path, founded: Site, *, name: str, address: str, data: bytes) -> Machine:
    """A bare machine beside the cluster's objects, as an etcd with the restored data has them."""
    site = founded.clone(tmp_path / "clone", "w1")
    site.machines.clear()
    site.names["api.example.org"] = address
    site.members.clear()
    machine = Machine(tmp_path / name, site, name=name, address=address)
    put(machine, "/root/b.tar", data)
    return machine


def put(machine: Machine, path: str, data: bytes) -> None:
    machine.put(path, "")
    machine.at(Path(path)).write_bytes(data)


def flags(machine: Machine, component: str) -> dict[str, str]:
    command, *_ = commands_of_pod(load_yaml(machine.read_text(PATHS.manifest(component))))
    return flags_of(command)


def test_another_machine(tmp_path: Path, founded: Site, tools: Tools) -> None:
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    machine.site.cluster.objects["/api/v1/nodes/w9"] = {
        "kind": "Node",
        "metadata": {"name": "w9", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {},
        "status": {},
    }
    ended = run_kb(machine, "restore", "/root/b.tar")
    assert ended.status == 0, ended.err
    assert "  ssh w9 systemctl restart kubelet" in ended.out
    assert machine.read_bytes(CA) == founded.machine("cp1").read_bytes(CA)
    assert machine.read_bytes(DB) == b"restored snapshot"
    assert flags(machine, "kube-apiserver")["advertise-address"] == "10.0.0.31"
    assert flags(machine, "etcd")["initial-cluster"] == "new=https://10.0.0.31:2380"
    assert "--bump-revision=1000000000" in tools.words and "--mark-compacted" in tools.words
    assert not [path for path in machine.site.cluster.objects if path.endswith("/nodes/cp1")], "it is struck out"
    again = run_kb(machine, "restore", "/root/b.tar")
    assert "code:   cluster-lives\n" in again.err


@pytest.mark.parametrize("told", [{"dns": {"disabled": True}, "proxy": {"disabled": True}}, {}])
def test_a_cluster_without_kube_proxy_gets_none(
    tmp_path: Path, founded: Site, tools: Tools, told: dict[str, Any]
) -> None:
    """Whether its configuration says so, or an older kubeadm was only told to leave kube-proxy out."""
    objects = founded.cluster.objects
    for path in [path for path in objects if "kube-proxy" in path]:
        del objects[path]
    config = objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]
    config["ClusterConfiguration"] = dump_yaml({**load_yaml(config["ClusterConfiguration"]), **told})
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    ended = run_kb(machine, "restore", "/root/b.tar")
    assert ended.status == 0, ended.err
    assert not [path for path in machine.site.cluster.objects if "kube-proxy" in path]
    refused = run_kb(machine, "restore", "/root/b.tar", "--force", "--skip-phases=addon/coredns")
    assert "code:   unknown-phase\n" in refused.err


def test_the_same_machine_is_replaced_by_force_and_nothing_is_lost(tmp_path: Path, founded: Site, tools: Tools) -> None:
    first, data = founded.machine("cp1"), make_backup(founded)
    put(first, "/root/b.tar", data)
    before = {path: first.read_bytes(path) for path in MANIFESTS}
    assert "code:   cluster-lives\n" in run_kb(first, "restore", "/root/b.tar").err
    ended = run_kb(first, "restore", "/root/b.tar", "--force")
    assert ended.status == 0, ended.err
    (kept,) = [path for path in first.list_dir(Path("/etc")) if path.startswith("kubernetes.kb-before-restore-")]
    assert {path: first.read_bytes(Path("/etc") / kept / "manifests" / path.name) for path in MANIFESTS} == before
    assert first.read_bytes(DB) == b"restored snapshot"
    assert json.loads(first.read_text(Path("/var/lib/kb/restore/restore.json")))["done"] is True


def test_a_mirror_serves_on_and_follows_the_restored_authority(
    tmp_path: Path, founded: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images come from it while the former cluster's files are out of the way; afterwards the nodes trust the restored CA alone."""
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    other = found_cluster(tmp_path / "other").machine("cp1")
    pair, ca_file = (PATHS.pki / "kb-mirror.crt", PATHS.pki / "kb-mirror.key"), Path("/etc/kubernetes/kb-mirror-ca.crt")
    for path in (CA, CA.with_suffix(".key")):
        put(machine, str(path), other.read_bytes(path))
    put(machine, str(ca_file), other.read_bytes(CA))
    put(machine, "/etc/systemd/system/kb-mirror.service", b"[Service]\n")
    for path in pair:
        put(machine, str(path), b"of the other authority")
    real = pki.find_problems

    def find_problems(host: Any, paths: Any, *, config: Any) -> Any:
        """What the preflight checks look for first."""
        assert machine.read_bytes(ca_file) == other.read_bytes(CA)
        assert all(map(machine.exists, pair)) and not machine.exists(CA)
        return real(host, paths, config=config)

    monkeypatch.setattr(pki, "find_problems", find_problems)
    monkeypatch.setattr(serve_mirror, "_wait_for_mirror", lambda ctx: None)
    ended = run_kb(machine, "restore", "/root/b.tar")
    assert ended.status == 0, ended.err
    shown = certificates.parse_shown(machine.read_text(pair[0]))
    ca = certificates.parse_shown(founded.machine("cp1").read_text(CA))[0]
    assert certificates.is_issued_by(shown[0], ca), "the mirror's certificate"
    assert machine.read_bytes(ca_file) == machine.read_bytes(CA) == founded.machine("cp1").read_bytes(CA)
    kept = [name for name in machine.list_dir(Path("/etc")) if name.startswith("kubernetes.kb-before-restore-")]
    assert len(kept) == 1 and machine.read_bytes(Path("/etc") / kept[0] / "pki/ca.key")


def test_a_kms_plugin_that_does_not_run_is_missed_before_anything_changes(
    tmp_path: Path, founded: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No API server becomes ready without it, and by then the former cluster is out of the way."""
    monkeypatch.setattr(restoring, "find_kms", lambda backup: ["unix:///run/kms/vault.sock", "unix:///@abstract"])
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    before = {str(path) for path in machine.files()}
    ended = run_kb(machine, "restore", "/root/b.tar")
    assert "code:   kms-plugin-missing\n" in ended.err and "/run/kms/vault.sock" in ended.err
    assert {str(path) for path in machine.files()} == before
    put(machine, "/run/kms/vault.sock", b"")
    assert run_kb(machine, "restore", "/root/b.tar").status == 0


def test_what_is_refused_before_anything_changes(
    tmp_path: Path, founded: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_backup(founded, members=("cp1", "cp2"))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=data)
    put(machine, "/root/flipped.tar", bytes(flipped))
    put(machine, "/root/cut.tar", data[: len(data) // 2])
    put(machine, "/root/newer.tar", make_backup(founded, kubernetes="v1.99.0"))
    with monkeypatch.context() as newer_kb:
        newer_kb.setattr(archive, "FORMAT", archive.FORMAT + 1)
        put(machine, "/root/format.tar", make_backup(founded))
    before = {str(path) for path in machine.files()}

    def refused(code: str, *words: str) -> None:
        ended = run_kb(machine, "restore", *words)
        assert ended.status != 0 and f"code:   {code}\n" in ended.err, ended.err
        assert {str(path) for path in machine.files() if not str(path).startswith("/var/lib/kb")} == before

    refused("backup-damaged", "/root/flipped.tar")
    refused("backup-truncated", "/root/cut.tar")
    refused("backup-too-new", "/root/format.tar")
    refused("release-unsupported", "/root/newer.tar")
    refused("usage")
    refused("restore-older-version", "/root/b.tar", "--kubernetes-version=v1.34.9")
    refused("restore-newer-version", "/root/b.tar", "--kubernetes-version=v1.36.3")
    tools.listening = ["cp2"]
    refused("etcd-member-reachable", "/root/b.tar")
    tools.listening, tools.has_etcdutl = [], False
    refused("no-etcdutl", "/root/b.tar", "--ignore-preflight-errors=all")


def test_a_forced_restore_that_lacks_its_tool_leaves_the_node_as_it_was(founded: Site, tools: Tools) -> None:
    first, tools.has_etcdutl = founded.machine("cp1"), False
    put(first, "/root/b.tar", make_backup(founded))
    watched = ("/etc", "/var/lib/etcd", "/var/lib/kubelet", "/var/lib/kb/records", "/var/lib/kb/restore")

    def state() -> dict[str, bytes]:
        return {str(path): first.read_bytes(path) for path in first.files() if str(path).startswith(watched)}

    before = state()
    assert "code:   no-etcdutl\n" in run_kb(first, "restore", "/root/b.tar", "--force").err
    assert state() == before


def test_an_external_authority_ties_a_backup_to_its_machine(tmp_path: Path, founded: Site, tools: Tools) -> None:
    founded.machine("cp1").remove(PATHS.pki / "ca.key")
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    ended = run_kb(machine, "restore", "/root/b.tar")
    assert "code:   external-ca-other-machine\n" in ended.err and "a machine called cp1" in ended.err


def test_another_backup_does_not_continue_a_restore(tmp_path: Path, founded: Site, tools: Tools) -> None:
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    kill_after(machine, 30)
    with pytest.raises(Gone):
        run_kb(machine, "restore", "/root/b.tar")
    revive(machine)
    put(machine, "/root/other.tar", make_backup(founded, members=("cp1", "cp9")))
    assert "code:   restore-unfinished\n" in run_kb(machine, "restore", "/root/other.tar").err
    ended = run_kb(machine, "restore", "/root/b.tar", "-o", "json")
    assert ended.status == 0, ended.err
    told = json.loads(ended.out)
    assert told["workflow"] == "restore" and isinstance(told["remaining"], list), told


def test_a_dry_run_changes_nothing(tmp_path: Path, founded: Site, tools: Tools) -> None:
    machine = new_machine(tmp_path, founded, name="new", address="10.0.0.31", data=make_backup(founded))
    before = {str(path): machine.read_bytes(path) for path in machine.files()}
    ended = run_kb(machine, "restore", "/root/b.tar", "--dry-run")
    assert ended.status == 0, ended.err
    assert "would write: /etc/kubernetes/manifests/etcd.yaml" in ended.out
    assert {str(path): machine.read_bytes(path) for path in machine.files()} == before


class Gone(BaseException):
    """The process was killed."""


CHANGES = (
    "write_file",
    "write_stream",
    "move_file",
    "make_dir",
    "symlink",
    "remove",
    "remove_tree",
    "run",
    "http_send",
)


def kill_after(machine: Machine, number: int) -> list[str]:
    """Whatever kb asks for after its change of this number fails, as nothing of a killed process reaches the machine. Returns the changes,
    as they come."""
    made: list[str] = []

    def wrap(name: str, real: Any) -> Any:
        def change(*args: Any, **more: Any) -> Any:
            if number and len(made) >= number:
                raise Gone
            made.append(f"{name} {args[0]}")
            return real(*args, **more)

        return change

    for name in CHANGES:
        setattr(machine, name, wrap(name, getattr(machine, name)))
    return made


def revive(machine: Machine) -> None:
    for name in CHANGES:
        delattr(machine, name)


def test_killed_in_the_middle_it_goes_on_to_the_same_end(tmp_path: Path, founded: Site, tools: Tools) -> None:
    """On a machine that belongs to a cluster, so that what was there before has to be kept at each of these moments."""
    data = make_backup(founded)

    def machine_of(number: int) -> Machine:
        first = founded.clone(tmp_path / str(number), "cp1").machine("cp1")
        put(first, "/root/b.tar", data)
        return first

    whole = machine_of(0)
    made = kill_after(whole, 0)
    assert run_kb(whole, "restore", "/root/b.tar", "--force").status == 0
    former = founded.machine("cp1").read_bytes(MANIFESTS[0])
    for number in range(2, len(made), max(1, len(made) // 9)):
        machine = machine_of(number)
        kill_after(machine, number)
        with pytest.raises(Gone):
            run_kb(machine, "restore", "/root/b.tar", "--force")
        revive(machine)
        ended = run_kb(machine, "restore", "/root/b.tar", "--force")
        assert ended.status == 0, f"{number} ({made[number - 1]}): {ended.err}"
        assert machine.read_bytes(DB) == b"restored snapshot", f"{number} ({made[number - 1]})"
        kept = [name for name in machine.list_dir(Path("/etc")) if name.startswith("kubernetes.kb-before-restore-")]
        assert [machine.read_bytes(Path("/etc") / name / "manifests/etcd.yaml") for name in kept] == [former]
        assert not [name for name in machine.list_dir(Path("/var/lib")) if "kb-restored" in name]


def test_a_second_restore_that_is_killed_restores_all_the_same(tmp_path: Path, founded: Site, tools: Tools) -> None:
    """Every step is done by the first restore's account: whenever the second is killed, it must not pass for what the first has done.
    And data that are on their way are neither left nor taken for somebody else's."""
    first, data = founded.machine("cp1"), make_backup(founded)
    put(first, "/root/b.tar", data)
    assert run_kb(first, "restore", "/root/b.tar", "--force").status == 0

    def machine_of(number: int) -> Machine:
        again = first.site.clone(tmp_path / f"again{number}", "cp1").machine("cp1")
        put(again, str(DB), b"written since")
        return again

    whole = machine_of(0)
    made = kill_after(whole, 0)
    assert run_kb(whole, "restore", "/root/b.tar", "--force").status == 0
    words = ("restore/restore.json", "kb-restored", "/var/lib/etcd")
    at_data = [number for number, what in enumerate(made[:-1], start=1) if any(word in what for word in words)]
    assert len(at_data) > 8, made
    for number in (1, *at_data):
        machine = machine_of(number)
        kill_after(machine, number)
        with pytest.raises(Gone):
            run_kb(machine, "restore", "/root/b.tar", "--force")
        revive(machine)
        ended = run_kb(machine, "restore", "/root/b.tar", "--force")
        assert ended.status == 0, f"{number} ({made[number - 1]}): {ended.err}"
        assert machine.read_bytes(DB) == b"restored snapshot", f"{number} ({made[number - 1]})"
        left = [name for name in machine.list_dir(Path("/var/lib")) if "kb-restored" in name]
        assert not left, f"{number} ({made[number - 1]}): {left}"
