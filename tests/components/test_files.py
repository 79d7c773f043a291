"""Files, links, devices and mounts as they are on real machines: nothing of others is lost, and nothing is followed that
others could have laid. What needs mounts runs in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Optional

import pytest

import kb
from kubeup.errors import HostError
from kubeup.machine import own_copy
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.files import is_root_s_alone
from kubeup.machine.local_host import LocalHost
from kubeup.machine.process import find_root_python
from kubeup.network import load_balancer
from kubeup.paths import Paths
from tests.bundle_case import write_layout
from tests.make_docs import REPO

pytestmark = pytest.mark.component
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs root and a mount namespace",
)


def in_namespace(tmp_path: Path, shell: str, python: str) -> str:
    """What `python` prints behind `shell`, in a mount namespace; T is tmp_path."""
    script = tmp_path / "script.py"
    head = f"import sys; sys.path.insert(0, {str(REPO)!r})\nfrom pathlib import Path\nfrom kubeup.machine.local_host import LocalHost\n"
    tail = "from kubeup.errors import HostError\nT = Path(sys.argv[1])\nhost = LocalHost()\n"
    script.write_text(head + tail + textwrap.dedent(python))
    line = f"set -e; T={tmp_path}; {shell}; exec {sys.executable} {script} {tmp_path}"
    done = subprocess.run(["unshare", "-m", "bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- mounts


@needs_mounts
@pytest.mark.parametrize("mount", ["mount -t tmpfs tmpfs", "mount --bind $T/volume"])
@pytest.mark.parametrize("link", ["kubelet", "parent"])
def test_a_volume_behind_a_link_is_found_and_never_emptied(tmp_path: Path, mount: str, link: str) -> None:
    """/var/lib/kubelet is a link to a larger disk, as on many machines, or a folder above it is one."""
    shell = (
        "mkdir -p $T/big/kubelet/pods/pv1 $T/volume $T/lib; "
        f"{mount} $T/big/kubelet/pods/pv1; echo rows >$T/big/kubelet/pods/pv1/customer.db; "
        + ("ln -s $T/big/kubelet $T/lib/kubelet" if link == "kubelet" else "rmdir $T/lib; ln -s $T/big $T/lib")
    )
    told = in_namespace(
        tmp_path,
        shell,
        """
        folder = T / "lib/kubelet"
        assert host.mounts_below(folder) == [T / "big/kubelet/pods/pv1"], host.mounts_below(folder)
        for path in (folder / "pods", T / "big/kubelet/pods", T / "big/kubelet", T / "lib/kubelet/pods/"):
            try:
                host.remove_tree(path)
                print("removed", path)
            except HostError as error:
                assert error.code == "mount-in-the-way", error
        print((T / "big/kubelet/pods/pv1/customer.db").read_text().strip())
        """,
    )
    assert told == "rows"


@needs_mounts
def test_a_mount_that_comes_while_a_tree_is_removed_stays(tmp_path: Path) -> None:
    """mountinfo was clean when it was looked at: each folder is looked at again right before."""
    told = in_namespace(
        tmp_path,
        "mkdir -p $T/tree/a $T/tree/z/late $T/disk; echo rows >$T/disk/customer.db",
        """
        import os, subprocess
        real = os.rmdir
        def mount_first(*words, **names):
            if not os.path.ismount(T / "tree/z/late"):
                subprocess.run(["mount", "--bind", T / "disk", T / "tree/z/late"], check=True)
            real(*words, **names)
        os.rmdir = mount_first
        try:
            host.remove_tree(T / "tree")
            print("removed")
        except HostError as error:
            print(error.code, (T / "disk/customer.db").read_text().strip())
        """,
    )
    assert told == "mount-in-the-way rows"


@needs_mounts
def test_what_is_mounted_twice_over_a_folder_is_told_twice(tmp_path: Path) -> None:
    told = in_namespace(
        tmp_path,
        "mkdir -p $T/tree/a; mount -t tmpfs one $T/tree/a; mount -t tmpfs two $T/tree/a",
        """
        print(host.mounts_below(T / "tree") == [T / "tree/a"] * 2)
        """,
    )
    assert told == "True"


@needs_mounts
def test_a_file_that_is_a_mount_point_is_written_in_place(tmp_path: Path) -> None:
    """/etc/hosts in a container. What was there stays where the new content does not fit."""
    told = in_namespace(
        tmp_path,
        "mkdir $T/disk; mount -t tmpfs -o size=64k tmpfs $T/disk; echo '127.0.0.1 localhost' >$T/disk/hosts; chmod 640 $T/disk/hosts;"
        " touch $T/hosts; mount --bind $T/disk/hosts $T/hosts",
        """
        from kubeup.network import load_balancer
        load_balancer.HOSTS = T / "hosts"
        assert load_balancer.ensure_hosts(host, "kb-api.cluster.local")
        assert "kb-api.cluster.local" in (T / "disk/hosts").read_text()
        assert oct((T / "hosts").stat().st_mode)[-3:] == "640"
        before = (T / "hosts").read_bytes()
        try:
            host.write_file(T / "hosts", b"x" * 100000, keeps=True)
        except HostError as error:
            print(error.code)
        assert (T / "hosts").read_bytes() == before
        assert load_balancer.remove_hosts(host)
        print((T / "hosts").read_text().strip())
        """,
    )
    assert told == "disk-full\n127.0.0.1 localhost"


@needs_mounts
def test_a_mounted_file_comes_back_where_the_machine_stopped_while_it_was_written(tmp_path: Path) -> None:
    """Half of the new line is in it; what it held lies beside it until the next run."""
    told = in_namespace(
        tmp_path,
        "echo '127.0.0.1 localhost' >$T/source; touch $T/hosts; mount --bind $T/source $T/hosts",
        """
        import os
        from kubeup.machine import files
        from kubeup.engine.journal import remove_leftovers
        from kubeup.paths import Paths
        from kubeup.engine.state import PhaseState, State
        def stop(descriptor, data):
            os.pwrite(descriptor, data[:10], 0)
            os._exit(9)
        pid = os.fork()
        if pid == 0:
            files._overwrite = stop
            host.write_file(T / "hosts", "# written by kb\\n", keeps=True)
        os.waitpid(pid, 0)
        torn = (T / "hosts").read_text()
        entry = PhaseState("running", backups=[{"path": str(T / "hosts"), "copy": ""}])
        state = State(host, Paths(), phases={"init/x": entry})
        remove_leftovers(host, state)
        print(torn != "127.0.0.1 localhost\\n", (T / "hosts").read_text().strip(), sorted(os.listdir(T)))
        """,
    )
    assert told == "True 127.0.0.1 localhost ['hosts', 'script.py', 'source']"


def test_what_somebody_wrote_after_a_stop_stays(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("theirs")
    (tmp_path / ".hosts.kb-saved").write_text("before")
    os.utime(tmp_path / ".hosts.kb-saved", (1, 1))
    assert not LocalHost().put_back(tmp_path / ".hosts.kb-saved")
    assert (tmp_path / "hosts").read_text() == "theirs" and (tmp_path / ".hosts.kb-saved").exists()


@needs_mounts
@pytest.mark.parametrize("root", ["/", "image"])
def test_a_bind_mount_of_the_same_device_stays_below_any_root(tmp_path: Path, root: str) -> None:
    told = in_namespace(
        tmp_path,
        "mkdir -p $T/image/tree/a/volume $T/disk; echo rows >$T/disk/customer.db; mount --bind $T/disk $T/image/tree/a/volume",
        f"""
        host, tree = (LocalHost(), T / "image/tree") if {root!r} == "/" else (LocalHost(T / "image"), Path("/tree"))
        try:
            host.remove_tree(tree)
            print("removed")
        except HostError as error:
            print(error.code, (T / "disk/customer.db").read_text().strip())
        """,
    )
    assert told == "mount-in-the-way rows"


# ---- trees


def make_deep(folder: Path, depth: int) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)


def test_a_tree_of_any_depth_is_removed(tmp_path: Path) -> None:
    """Deeper than there are descriptors, frames of Python, and characters in a path."""
    (tmp_path / "tree").mkdir()
    make_deep(tmp_path / "tree", 5000)
    assert LocalHost().remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("x")
    real = os.scandir

    def exchange(folder: int) -> object:
        found = list(real(folder))
        if (tmp_path / "tree/inner").is_dir() and not (tmp_path / "tree/inner").is_symlink():
            (tmp_path / "tree/inner").rmdir()
            (tmp_path / "tree/inner").symlink_to(tmp_path / "outside")
        return contextlib.nullcontext(found)

    monkeypatch.setattr(os, "scandir", exchange)
    with pytest.raises(HostError):
        LocalHost().remove_tree(tmp_path / "tree")
    assert (tmp_path / "outside/precious").exists()


def test_the_root_of_a_machine_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for path in ("/", "/etc/.."):
        with pytest.raises(HostError):
            LocalHost(tmp_path).remove_tree(Path(path))
    assert (tmp_path / "etc").is_dir()


# ---- links


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault/real").write_text("old")
    (tmp_path / "vault/real").chmod(0o640)
    (tmp_path / "inner").symlink_to("vault/real")
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    host = LocalHost()
    assert host.write_file(tmp_path / "link", "new", mode=0o600, keeps=True)
    assert (
        (tmp_path / "vault/real").read_text() == "new"
        and (tmp_path / "link").is_symlink()
        and (tmp_path / "inner").is_symlink()
    )
    assert stat.S_IMODE((tmp_path / "vault/real").stat().st_mode) == 0o640
    assert not host.write_file(tmp_path / "link", "new", keeps=True), "a second time there is nothing to do"
    (tmp_path / "dangling").symlink_to("vault/fresh")
    host.write_file(tmp_path / "dangling", "x", mode=0o600)
    assert (tmp_path / "vault/fresh").read_text() == "x" and (tmp_path / "dangling").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError):
        host.write_file(tmp_path / "loop", "x")


def test_the_other_names_of_a_file_of_others_are_written_too(tmp_path: Path) -> None:
    """Hard links: kubeadm, which writes into files, keeps them."""
    path = tmp_path / "hosts"
    path.write_text("old")
    os.link(path, tmp_path / "other")
    LocalHost().write_file(path, "new and longer", keeps=True)
    assert (tmp_path / "other").read_text() == "new and longer" and path.stat().st_nlink == 2
    LocalHost().write_file(path, "short", keeps=True)
    assert (tmp_path / "other").read_text() == "short"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["hosts", "other"]


@pytest.mark.parametrize("before", [b"127.0.0.1 localhost # B\xfcro\n", b"127.0.0.1 localhost\r\n", b"127.0.0.1 x\n\n"])
def test_a_hosts_file_keeps_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """Whatever encoding and line ends it has."""
    (tmp_path / "hosts").write_bytes(before)
    monkeypatch.setattr(load_balancer, "HOSTS", tmp_path / "hosts")
    assert load_balancer.ensure_hosts(LocalHost(), "kb-api.cluster.local")
    assert (tmp_path / "hosts").read_bytes().startswith(before)
    assert load_balancer.remove_hosts(LocalHost())
    assert (tmp_path / "hosts").read_bytes() == before


def test_the_line_in_a_linked_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").write_text("127.0.0.1 localhost\n")
    (tmp_path / "hosts").symlink_to("real")
    monkeypatch.setattr(load_balancer, "HOSTS", tmp_path / "hosts")
    assert load_balancer.ensure_hosts(LocalHost(), "kb-api.cluster.local")
    assert (tmp_path / "hosts").is_symlink() and "kb-api.cluster.local" in (tmp_path / "real").read_text()
    assert load_balancer.remove_hosts(LocalHost())
    assert (tmp_path / "real").read_text() == "127.0.0.1 localhost\n"


@needs_root
def test_a_link_that_another_user_laid_is_not_followed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "victim").write_text("precious")
    (shared / "out").symlink_to(tmp_path / "victim")
    os.lchown(shared / "out", NOBODY, NOBODY)
    host = LocalHost()
    for write in (
        lambda: host.write_file(shared / "out", "planted"),
        lambda: host.write_output(str(shared / "out"), [b"planted"]),
        lambda: host.append(shared / "out", [b"planted"]),
    ):
        with pytest.raises(HostError):
            write()
    assert (tmp_path / "victim").read_text() == "precious"


@needs_root
@pytest.mark.parametrize("kind", ["folder", "file", "pipe"])
def test_what_another_user_laid_on_the_way_gets_no_output(tmp_path: Path, kind: str) -> None:
    """A linked folder above the file; a file or a pipe of his in a folder like /tmp, which would have the secret be his."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(0o1777)
    own.mkdir()
    out = shared / "x" / "out" if kind == "folder" else shared / "out"
    if kind == "folder":
        (shared / "x").symlink_to(own)
        os.lchown(shared / "x", NOBODY, NOBODY)
    elif kind == "file":
        out.write_text("his")
        os.chown(out, NOBODY, NOBODY)
    else:
        os.mkfifo(out)
        os.chown(out, NOBODY, NOBODY)
    with pytest.raises(HostError) as caught:
        LocalHost().write_output(str(out), [b"secret"], is_secret=True)
    assert caught.value.code == "link-not-followed" and list(own.iterdir()) == []
    if kind == "folder":
        with pytest.raises(HostError):
            LocalHost().write_file(out, "x")
        os.lchown(shared / "x", 0, 0)
        LocalHost().write_output(str(out), [b"x"])
        assert (own / "out").read_text() == "x", "root's own link is followed"


@needs_root
@pytest.mark.parametrize("made", ["by another", "as a link", "open to all"])
def test_a_spool_that_others_could_have_made_is_refused(tmp_path: Path, made: str) -> None:
    spool, elsewhere = tmp_path / ".out.tar.parts", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if made == "as a link":
        spool.symlink_to(elsewhere)
    else:
        spool.mkdir(mode=0o700)
        if made == "by another":
            os.chown(spool, NOBODY, NOBODY)
        else:
            spool.chmod(0o777)
    with pytest.raises(HostError) as caught:
        LocalHost().make_private_dir(spool)
    assert caught.value.code == "spool-not-private"
    shutil.rmtree(spool, ignore_errors=True)
    spool.unlink(missing_ok=True)
    LocalHost().make_private_dir(spool)
    LocalHost().make_private_dir(spool)
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700


# ---- files of others


@needs_root
def test_a_file_of_others_keeps_its_mode_owner_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('password = "topsecret"\n')
    path.chmod(0o600)
    os.chown(path, 1, 2)
    try:
        os.setxattr(path, "user.note", b"x")
        has_attributes = True
    except OSError:
        has_attributes = False
    LocalHost().write_file(path, "version = 2\n", keeps=True)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 1, 2)
    if has_attributes:
        assert os.getxattr(path, "user.note") == b"x"


def test_attributes_stay_where_kb_sets_a_mode_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("theirs")
    try:
        os.setxattr(path, "user.note", b"x")
    except OSError:
        pytest.skip("no extended attributes here")
    LocalHost().write_file(path, "kb's", mode=0o600)
    assert os.getxattr(path, "user.note") == b"x" and stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_root
def test_an_acl_does_not_open_a_private_file(tmp_path: Path) -> None:
    """What an ACL gives to others is cut by the mode that kb sets."""
    path = tmp_path / "admin.conf"
    path.write_text("theirs")
    # version 2; owner rw-, user 65534 rw-, group r--, mask rw-, other ---
    entries = ((1, 6, -1), (2, 6, NOBODY), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    try:
        os.setxattr(
            path,
            "system.posix_acl_access",
            struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in entries),
        )
    except OSError:
        pytest.skip("no ACLs here")
    LocalHost().write_file(path, "secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert subprocess.run(["cat", path], user=NOBODY, capture_output=True).returncode != 0
    assert os.getxattr(path, "system.posix_acl_access")


def test_what_no_file_can_hold_is_told(tmp_path: Path) -> None:
    for text, path, code in (
        ("a\ud800b", tmp_path / "x", "text-unwritable"),
        ("x", tmp_path / "a\ud800b", "path-impossible"),
        ("x", tmp_path / "a\0b", "path-impossible"),
    ):
        for write in (LocalHost().write_file, DryRunHost(LocalHost()).write_file):
            with pytest.raises(HostError) as caught:
                write(path, text)
            assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


# ---- what a user names for output


def test_output_goes_through_devices_pipes_and_sockets(tmp_path: Path) -> None:
    host = LocalHost()
    before = os.stat("/dev/null")
    host.write_output("/dev/null", [b"x"])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and os.stat("/dev/null").st_ino == before.st_ino
    (tmp_path / "null").symlink_to("/dev/null")
    host.write_output(str(tmp_path / "null"), [b"x"])
    assert (tmp_path / "null").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    host.write_output(str(tmp_path / "pipe"), [b"a", b"b"])
    reader.join(10)
    assert got == [b"ab"] and stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        host.write_output(str(tmp_path / "s"), [b"ab"])
        assert server.accept()[0].recv(10) == b"ab"
    assert (tmp_path / "s").is_socket()


def test_a_reader_that_has_ended_has_not_taken_the_output(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(HostError) as caught:
            LocalHost().write_output(f"/dev/fd/{writer}", [b"half of a backup"], has_to_be_whole=True)
    finally:
        os.close(writer)
    assert caught.value.code == "output-cut-off"


def test_output_to_files(tmp_path: Path) -> None:
    host = LocalHost()
    host.write_output(str(tmp_path / "plain"), [b"x"])
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o644
    host.write_output(str(tmp_path / "secret"), [b"x"], is_secret=True)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    (tmp_path / "plain").chmod(0o640)
    host.write_output(str(tmp_path / "plain"), [b"y"])
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640
    host.write_output(str(tmp_path / "plain"), [b"y"], is_secret=True)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o600
    with pytest.raises(HostError) as caught:
        host.write_output(str(tmp_path / "no/such/file"), [b"x"])
    assert caught.value.code == "output-folder-missing" and not (tmp_path / "no").exists()
    for wrong in (str(tmp_path), "a\0b"):
        with pytest.raises(HostError):
            host.write_output(wrong, [b"x"])


def test_a_stick_without_modes_takes_what_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT: every file has the same mode, which cannot be changed; and a share that cannot sync folders."""
    real_open, real_sync = os.open, os.fsync

    def open_(path: str, flags: int, mode: int = 0o777, *, dir_fd: Optional[int] = None) -> int:
        return real_open(path, flags, 0o755 if flags & os.O_CREAT else mode, dir_fd=dir_fd)

    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_sync(descriptor)

    for name, fake in (("open", open_), ("fchmod", refuse), ("fsync", sync)):
        monkeypatch.setattr(os, name, fake)
    (tmp_path / "spool").mkdir(mode=0o755)
    LocalHost().make_private_dir(tmp_path / "spool")
    LocalHost().write_output(str(tmp_path / "kb.tar"), [b"bundle"])
    assert (tmp_path / "kb.tar").read_bytes() == b"bundle"
    with pytest.raises(HostError) as caught:
        LocalHost().write_output(str(tmp_path / "secret.yaml"), [b"token"], is_secret=True)
    assert caught.value.code == "file-unwritable"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kb.tar", "spool"]


def test_a_descriptor_is_written_where_it_stands(tmp_path: Path) -> None:
    """Not opened anew: that would begin at the start of the file."""
    with (tmp_path / "all").open("w+") as file:
        file.write("first ")
        file.flush()
        for number in ("/dev/fd/", "/proc/self/fd/"):
            LocalHost().write_output(f"{number}{file.fileno()}", [b"then "])
    assert (tmp_path / "all").read_text() == "first then then "
    with pytest.raises(HostError):
        LocalHost().write_output("/dev/fd/999", [b"x"])


INIT = (
    "apiVersion: kubeadm.k8s.io/v1beta3\nkind: InitConfiguration\nbootstrapTokens: [{token: abcdef.0123456789abcdef}]\n"
)


def run_kb(*words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(REPO / "kb.py"), *words], capture_output=True, env={**os.environ, **env}, timeout=60
    )


def test_a_migrated_configuration_goes_where_it_is_wanted(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(INIT)
    assert kb.main(["config", "migrate", "--old-config", str(old), "--new-config", str(tmp_path / "new.yaml")]) == 0
    assert stat.S_IMODE((tmp_path / "new.yaml").stat().st_mode) == 0o600
    done = run_kb("config", "migrate", "--old-config", str(old), "--new-config", "/dev/stdout")
    assert done.returncode == 0 and done.stdout == (tmp_path / "new.yaml").read_bytes()
    assert run_kb("config", "migrate", "--old-config", str(old), "--new-config", "-").stdout == done.stdout
    assert run_kb("config", "migrate", "--old-config", str(old), "--new-config", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with all images of a cluster."""
    folder = tmp_path_factory.mktemp("images") / "layout"
    names = run_kb("config", "images", "list", "--kubernetes-version", "v1.35.6").stdout.decode().split()
    write_layout(folder, {name: {"amd64": [name.encode() * 5000]} for name in names})
    return folder


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_bundle_on_standard_output(tmp_path: Path, images: Path, target: str) -> None:
    words = f"bundle create --kubernetes-version v1.35.6 --without files --arch amd64 --from {images} -o {target}"
    line = f"cd {tmp_path} && {sys.executable} {REPO / 'kb.py'} {words}"
    done = subprocess.run(["bash", "-c", f"{line} | tar -tf -"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "index.json" in done.stdout.split() and "images" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -c 10 | wc -c; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["10", "0"] and "error" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "completion bash",
        "config migrate --old-config OLD --new-config /dev/stdout",
        "config migrate --old-config OLD",
        "--help",
    ],
)
@pytest.mark.parametrize("reader", ["true", "head -c 10"])
def test_a_reader_that_has_seen_enough_ends_kb_quietly(tmp_path: Path, words: str, reader: str) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(INIT)
    line = f"{sys.executable} {REPO / 'kb.py'} {words.replace('OLD', str(old))} | {reader} >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["config migrate --old-config OLD --new-config -", "config migrate --old-config OLD"])
def test_a_full_disk_behind_standard_output_is_told(tmp_path: Path, words: str) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(INIT)
    line = f"{sys.executable} {REPO / 'kb.py'} {words.replace('OLD', str(old))} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 4) and "No space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_any_terminal_shows_any_text(tmp_path: Path, encoding: str) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(
        INIT.replace(
            "bootstrapTokens", "# 日本\nnodeRegistration: {name: n1, kubeletExtraArgs: {x: 日本}}\nbootstrapTokens"
        )
    )
    done = run_kb("config", "migrate", "--old-config", str(old), PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and "日本" in done.stdout.decode(), "a file for other programs is UTF-8"
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.yaml")
    Path(odd).write_text("kind: Nonsense日本\n")
    for words in (("config", "validate", "--config", odd), ("init", "--日本"), ("status", odd)):
        done = run_kb(*words, PYTHONIOENCODING=encoding)
        assert done.returncode not in (0, 70), done.stderr


# ---- --root


def test_nothing_is_written_outside_of_the_root(tmp_path: Path) -> None:
    """Absolute links and .. in an image's tree mean what they mean under chroot."""
    image, outside = tmp_path / "image", tmp_path / "outside"
    outside.mkdir()
    (image / "etc").mkdir(parents=True)
    (image / "var/lib").mkdir(parents=True)
    (image / "etc/kubernetes").symlink_to(outside)
    (image / "var/lib/kubelet").symlink_to("../../../../../../../../.." + str(outside / "kubelet"))
    (image / "etc/up").symlink_to("../../../../..")
    host = LocalHost(image)
    for name in ("etc/kubernetes/pki/ca.key", "var/lib/kubelet/config.yaml", "etc/up/planted", "etc/up/../../planted2"):
        host.write_file(Path("/") / name, "x", mode=0o600)
        assert host.read_text(Path("/") / name) == "x"
        host.append(Path("/") / name, [b"y"])
    host.symlink(Path("/etc/kubernetes/link"), "pki/ca.key")
    host.make_dir(Path("/etc/kubernetes/folder/inner"))
    assert host.list_dir(Path("/etc/kubernetes")) == ["folder", "kubelet", "link", "pki"]
    assert (
        list(outside.iterdir()) == [] and not (tmp_path / "planted").exists() and not (tmp_path / "planted2").exists()
    )
    assert (image / str(outside)[1:] / "pki/ca.key").read_text() == "xy"
    host.remove_tree(Path("/etc/kubernetes/folder"))
    assert not (image / str(outside)[1:] / "folder").exists()


def test_the_lock_is_not_taken_outside_of_the_root(tmp_path: Path) -> None:
    image, outside = tmp_path / "image", tmp_path / "outside"
    (image / "var/lib/kb").mkdir(parents=True)
    outside.mkdir()
    (image / "var/lib/kb/lock").symlink_to(outside / "lock")
    (outside / "lock").write_text("theirs")
    with pytest.raises(HostError), LocalHost(image).lock(Path("/var/lib/kb/lock"), "kb init"):
        pass
    assert (outside / "lock").read_text() == "theirs"
    shutil.rmtree(image / "var/lib/kb")
    (image / "var/lib/kb").symlink_to(outside)
    with LocalHost(image).lock(Path("/var/lib/kb/lock"), "kb init"):
        assert (image / str(outside)[1:] / "lock").exists()
    assert (outside / "lock").read_text() == "theirs"


@needs_root
def test_links_below_a_root_are_followed_whoever_laid_them(tmp_path: Path) -> None:
    """An image's tree that was unpacked by an ordinary user: they lead nowhere but into it."""
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc/kubernetes").symlink_to("/data/kubernetes")
    for path in (image, image / "etc", image / "etc/kubernetes"):
        os.lchown(path, NOBODY, NOBODY)
    LocalHost(image).write_file(Path("/etc/kubernetes/pki/ca.key"), "x")
    assert (image / "data/kubernetes/pki/ca.key").read_text() == "x"


def test_a_whole_node_is_rendered_inside(tmp_path: Path) -> None:
    image, outside = tmp_path / "image", tmp_path / "outside"
    (image / "etc").mkdir(parents=True)
    outside.mkdir()
    (image / "etc/kubernetes").symlink_to(outside)
    words = ["init", "--root", str(image), "--kubernetes-version", "v1.35.6", "--node-name", "n1"]
    assert run_kb(*words).returncode == 0
    assert list(outside.rglob("*")) == []
    assert (image / str(outside)[1:] / "pki/ca.key").exists()


# ---- reading


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.crt")
    for path in (tmp_path / "ca.crt", tmp_path, Path("/dev/zero")):
        with pytest.raises(HostError):
            LocalHost().read_text(path)
    for path in (Path("/a\0b"), Path("/proc/self/mem")):
        with pytest.raises(HostError):
            LocalHost().read_bytes(path)


def test_a_sysctl_is_read() -> None:
    """The kernel answers ENOMEM where more is asked for than it allocates at once."""
    path = Path("/proc/sys/net/ipv4/ip_forward")
    assert LocalHost().read_text(path).strip() in ("0", "1") and LocalHost().read_bytes(path)


def test_a_configuration_out_of_a_process_substitution() -> None:
    line = f"""{sys.executable} {REPO / "kb.py"} config migrate --old-config <(printf '%s\\n' "$TEXT")"""
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "TEXT": INIT}, timeout=60
    )
    assert done.returncode == 0 and "v1beta4" in done.stdout, done.stderr


# ---- a service's Python


@needs_root
def test_a_service_of_root_s_runs_a_python_that_is_root_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a user's virtual environment, from which kb may well be called."""
    venv = tmp_path / "venv/bin"
    venv.mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    shutil.copy(os.path.realpath(sys.executable), venv / "python3")
    for owner in (NOBODY, 0):
        os.chown(venv / "python3", owner, owner)
        monkeypatch.setattr(sys, "executable", str(venv / "python3"))
        find_root_python.cache_clear()
        found = find_root_python()
        assert not found.startswith(str(tmp_path))
        assert is_root_s_alone(Path(found))
    command = own_copy.plan_command(LocalHost(), Path("/x/kb.pyz"), paths=Paths())
    assert command == f"{found} -I /usr/local/lib/kb/kb.pyz"
    find_root_python.cache_clear()


def test_the_kernel_s_own_files_are_read() -> None:
    """They have no size, and /proc/sys refuses a reader who asks for too much at once."""
    for name in ("/proc/sys/kernel/ostype", "/proc/mounts", "/proc/self/status"):
        assert LocalHost().read_text(Path(name)) == Path(name).read_text() or name == "/proc/self/status"
    assert LocalHost().read_text(Path("/proc/sys/kernel/ostype")) == "Linux\n"


@needs_root
@pytest.mark.parametrize("wrong", ["the folder's owner", "the folder's mode", "a folder above", "a link to another's"])
def test_services_run_no_kb_that_another_user_could_exchange(tmp_path: Path, wrong: str) -> None:
    tmp_path.chmod(0o755)
    folder, pyz = tmp_path / "lib/kb", tmp_path / "kb.pyz"
    folder.mkdir(parents=True)
    pyz.write_text("kb")

    class Places(Paths):
        installed_kb = folder / "kb.pyz"

    (folder / "kb.pyz").write_text("kb")
    os.chown(folder / "kb.pyz", NOBODY, NOBODY)
    # pytest's own folders, in /tmp, are root's and closed
    assert own_copy.ensure_installed_kb(LocalHost(), Places(), pyz=pyz), "the same bytes, but not root's file"
    assert (folder / "kb.pyz").stat().st_uid == 0
    if wrong == "the folder's owner":
        os.chown(folder, NOBODY, NOBODY)
    elif wrong == "the folder's mode":
        folder.chmod(0o775)
    elif wrong == "a folder above":
        os.chown(tmp_path / "lib", NOBODY, NOBODY)
    else:
        (tmp_path / "his").mkdir()
        os.chown(tmp_path / "his", NOBODY, NOBODY)
        shutil.rmtree(folder)
        folder.symlink_to(tmp_path / "his")
    with pytest.raises(HostError) as caught:
        own_copy.ensure_installed_kb(LocalHost(), Places(), pyz=pyz)
    assert caught.value.code == "folder-of-another-user" and "chown root:root" in caught.value.remedy
    assert not (tmp_path / "his/kb.pyz").exists()


@needs_root
def test_whose_a_file_is(tmp_path: Path) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    for folder in (home, own):
        folder.mkdir()
        (folder / "python").write_text("")
    os.chown(home, NOBODY, NOBODY)
    (own / "link").symlink_to(home / "python")
    assert is_root_s_alone(own / "python")
    assert not is_root_s_alone(home / "python") and not is_root_s_alone(own / "link")
    (own / "python").chmod(0o775)
    assert not is_root_s_alone(own / "python") and not is_root_s_alone(own / "nothing")
