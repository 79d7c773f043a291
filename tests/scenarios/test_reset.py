"""kb reset as a whole: the node is as it was before init, whatever lay there; then init works again."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import Argv, CommandResult
from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost
from tests.fake_join import Site

from .scenario import run_init, run_kb, run_reset, snapshot

SYSCTLS = Path("/etc/sysctl.d/90-kb.conf")
SETTINGS = {"ip_forward": "net/ipv4", "panic": "kernel"}
"""Kernel settings that kb and the kubelet change, and their folders."""


class MountedHost(ClusterHost):
    """A node with mounts below the kubelet's folder; `busy` does not let go."""

    mounts: tuple[str, ...] = ()
    busy: str = ""

    def mounts_below(self, path: Path) -> list[Path]:
        return sorted((Path(name) for name in self.mounts if name.startswith(f"{path}/")), reverse=True)

    def run(self, argv: Argv, **rest: object) -> CommandResult:
        words = tuple(str(word) for word in argv)
        if words[0] == "umount":
            if words[1] == self.busy:
                return CommandResult(words, 32, "", "target is busy.")
            assert words[1] in self.mounts, f"{words[1]} is not mounted"
            self.accepts.add(" ".join(words))
            self.mounts = tuple(name for name in self.mounts if name != words[1])
        return super().run(argv, **rest)


@pytest.fixture
def host(tmp_path: Path) -> MountedHost:
    made = MountedHost(tmp_path)
    for name, folder in SETTINGS.items():
        made.write_file(Path("/proc/sys") / folder / name, "0\n")
        made.accepts.add(f"sysctl -w {folder.replace('/', '.')}.{name}=0")
    for name in ("var/lib", "var/log", "usr/local/lib", "etc/cni/net.d"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    return made


def everything(host: ClusterHost) -> dict[str, str]:
    """path -> mode and content; of /proc the kernel's settings that were there from the start."""
    places = [
        place
        for place in host.root.rglob("*")
        if place.relative_to(host.root).parts[0] != "proc" or place.name in SETTINGS
    ]
    return {
        str(
            place.relative_to(host.root)
        ): f"{place.lstat().st_mode:o} {place.read_text(errors='replace') if place.is_file() else ''}"
        for place in places
    }


def play_kubelet(host: ClusterHost) -> None:
    """What the kubelet and etcd write once they run."""
    for name in ("pki/kubelet.crt", "pods/x/volumes/token", "device-plugins/kubelet.sock", "cpu_manager_state"):
        host.write_file(Paths.kubelet / name, "x")
    host.write_file(Path("/var/lib/etcd/member/snap/db"), "x")
    for path in ("/var/log/pods/a/0.log", "/var/log/containers/a.log"):
        host.write_file(Path(path), "x")
    host.make_dir(Path("/usr/libexec/kubernetes/kubelet-plugins/volume/exec"))
    host.write_file(Path("/proc/sys/kernel/panic"), "10\n")


def test_the_node_is_as_before_and_init_works_again(host: MountedHost) -> None:
    host.write_file(SYSCTLS, "# the admin's\n", mode=0o640)
    before = everything(host)
    run_init(host)
    play_kubelet(host)
    first = snapshot(host)
    run_reset(host)
    assert everything(host) == before
    host.cluster.objects.clear()
    run_init(host)
    again = snapshot(host)
    play_kubelet(host)
    assert set(again) == set(first) - {path for path in first if path.startswith(("/var/lib/etcd", "/var/lib/kubelet/p", "/var/lib/kubelet/d", "/var/lib/kubelet/cpu", "/var/log/"))}  # fmt: skip
    assert again["/etc/kubernetes/pki/ca.key"] != first["/etc/kubernetes/pki/ca.key"]


def test_an_admin_s_files_beside_kb_s_stay_and_are_named(host: MountedHost) -> None:
    mine = [Paths.kubelet / "credential-provider.yaml", Path("/etc/kubernetes/audit.yaml"), Path("/var/lib/etcd/mine")]
    run_init(host)
    play_kubelet(host)
    for path in mine:
        host.write_file(path, "mine")
    log = io.StringIO()
    run_reset(host, log=log)
    assert [host.read_text(path) for path in mine] == ["mine"] * 3
    for path in mine:
        assert f"{path.parent} holds files that kb did not make: {path.name}" in log.getvalue()
    assert host.list_dir(Paths.kubelet) == ["credential-provider.yaml"]


def test_what_is_skipped_is_named_and_a_later_reset_undoes_it(founded: Site, tmp_path: Path) -> None:
    """Who keeps the files keeps the data with which a cluster would go on."""
    host = founded.clone(tmp_path, "cp1").machine("cp1")
    play_kubelet(host)
    kept = [Path("/var/lib/etcd/member/snap/db"), Paths.kubelet / "pki/kubelet.crt", Paths.pki / "ca.key", Paths.state]
    ended = run_kb(host, "reset", "--force", "--skip-phases", "cleanup-node/take-back-files,remove-etcd-member")
    assert ended.status == 0 and all(map(host.exists, kept)), ended.err
    assert "cleanup-node/remove-etcd-data, cleanup-node/remove-kubelet-data, cleanup-node/take-back-files" in ended.out
    assert "everything that kb made is gone" not in ended.out
    ended = run_kb(host, "reset", "--force", "--skip-phases", "remove-etcd-member")
    assert "everything that kb made is gone" in ended.out and not any(map(host.exists, kept)), ended.err


def test_the_kubelet_s_mounts_go_and_others_stay(host: MountedHost) -> None:
    run_init(host)
    play_kubelet(host)
    own, other = "/var/lib/kubelet/pods/x/volumes/token", "/var/lib/kubelet/some/dir"
    host.write_file(Path(other) / "file", "precious")
    host.mounts = (own, other)
    run_reset(host)
    assert list(host.mounts) == [other]
    assert host.read_text(Path(other) / "file") == "precious"


def test_a_mount_that_does_not_let_go_stops_it_before_anything_is_deleted(host: MountedHost) -> None:
    run_init(host)
    play_kubelet(host)
    before = snapshot(host)
    host.mounts = (own,) = ("/var/lib/kubelet/pods/x/volumes/data",)
    host.busy = own
    with pytest.raises(HostError) as caught:
        run_reset(host)
    assert caught.value.code == "mount-in-the-way" and own in caught.value.what
    assert set(snapshot(host)) == set(before)
    host.busy = ""
    run_reset(host)
    assert not host.exists(Paths.kubelet / "pods") and not host.exists(Paths.state)


def test_etcd_s_data_is_where_its_static_pod_says(host: MountedHost) -> None:
    run_init(host)
    manifest = Paths.manifests / "etcd.yaml"
    host.write_file(manifest, host.read_text(manifest).replace("/var/lib/etcd", "/srv/blue"), mode=0o600)
    host.write_file(Path("/srv/blue/member/wal/0"), "kb's")
    host.write_file(Path("/srv/blue/notes"), "mine")
    host.write_file(Path("/var/lib/etcd/member/wal/0"), "another's")
    run_reset(host)
    assert host.list_dir(Path("/srv/blue")) == ["notes"]
    assert host.read_text(Path("/var/lib/etcd/member/wal/0")) == "another's"


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_kubelet_starts_at_boot_only_if_it_did_before(host: MountedHost, was_enabled: bool) -> None:
    link = Path("/etc/systemd/system/multi-user.target.wants/kubelet.service")
    if was_enabled:
        host.symlink(link, "/usr/lib/systemd/system/kubelet.service")
    run_init(host)
    assert host.exists(link)
    run_reset(host)
    assert host.exists(link) is was_enabled
