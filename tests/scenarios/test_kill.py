"""kb init is killed (SIGKILL, truly) before every 47th change of a file, or the disk is full from there on: what is whole
stays whole, no key is lost or made twice, no half-written file stays, and the same command goes on to the same end.

KB_KILL_STRIDE=1 takes every change, for many minutes. tests/scenarios/test_init.py goes on from before every single file
write, in one process."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from kubeup.cluster.shared_certs import plan_downloads
from kubeup.cluster.tokens import parse_token_secret
from kubeup.config.types import ClusterConfiguration
from kubeup.errors import HostError
from kubeup.machine.files import is_leftover
from kubeup.machine.http import HttpResponse
from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost, FakeCluster

from .scenario import CONFIG, CONFIG_FILE, run_init, run_reset, snapshot

Work = Callable[[ClusterHost], None]
CHANGES = ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.symlink")
STRIDE = int(os.environ.get("KB_KILL_STRIDE", "47"))
"""How many changes further the next kill is."""


class Trap:
    """Counts the changes of files below a folder as the interpreter makes them, and acts at one of them."""

    def __init__(self, root: Path, act: Callable[[int], None]) -> None:
        self.root = str(root)
        self.act = act
        self.count = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event != "open" or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_CREAT))
        if event in CHANGES and writes and self._is_below(event, args):
            self.count += 1
            self.act(self.count)

    def _is_below(self, event: str, args: tuple[Any, ...]) -> bool:
        """Whether it is a change below the folder: by its path, by a descriptor, or by a name in a folder that is held open,
        which of an `open` is not told."""
        if isinstance(args[0], int) or str(args[0]).startswith(self.root + "/"):
            return True
        folder = args[-1] if event != "open" else None
        if os.path.isabs(args[1] if event == "os.symlink" else args[0]):
            return False
        return folder is None or (folder >= 0 and os.readlink(f"/proc/self/fd/{folder}").startswith(self.root))


def make_host(folder: Path) -> ClusterHost:
    """A node whose cluster outlives the processes that work on it."""
    memory = folder / "etcd.json"
    cluster = FakeCluster(is_up=False, memory=memory)
    host = ClusterHost(folder / "root", cluster)
    for name in ("var/lib", "usr/local/lib", "etc/cni/net.d"):
        host.at(Path("/") / name).mkdir(parents=True, exist_ok=True)
    place = host.at(CONFIG_FILE)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(CONFIG)
    return host


def init(host: ClusterHost) -> None:
    run_init(host, flags={}, config_file=CONFIG_FILE)


def reset(host: ClusterHost) -> None:
    run_reset(host)


def in_child(work: Callable[[], None]) -> int:
    """Do it in a process of its own; its exit status as waitpid has it (negative: the signal that ended it)."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do(folder: Path, work: Work) -> None:
    """Do it undisturbed, in a process of its own."""
    assert in_child(lambda: work(make_host(folder))) == 0


def count_changes(folder: Path, work: Work) -> int:
    """How many changes `work` makes below folder/root."""
    counted = folder / "count"

    def run() -> None:
        host = make_host(folder)
        trap = Trap(folder / "root", lambda number: None)
        work(host)
        counted.write_text(str(trap.count))

    assert in_child(run) == 0
    return int(counted.read_text())


def kill_at(folder: Path, number: int, work: Work) -> int:
    def strike(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        host = make_host(folder)
        Trap(folder / "root", strike)
        work(host)

    return in_child(run)


def hashes(host: ClusterHost) -> dict[str, str]:
    """path -> hash, for every file with a private key."""
    held = {path: data for path, data in snapshot(host).items() if path.endswith((".key", ".conf"))}
    return {path: hashlib.sha256(data).hexdigest() for path, data in held.items() if not is_leftover(Path(path).name)}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in (folder / "root").rglob(".*") if is_leftover(path.name)]


def tree(folder: Path) -> list[str]:
    """Every path below the root with its mode."""
    root = folder / "root"
    places = [path for path in root.rglob("*") if path.parent.name != "records"]
    return sorted(f"{path.relative_to(root)} {path.lstat().st_mode:o}" for path in places)


def names_of(cluster: FakeCluster) -> set[str]:
    return {path if "bootstrap-token-" not in path else "token" for path in cluster.objects}


def tokens_of(cluster: FakeCluster) -> list[str]:
    return sorted(name for name in cluster.by_kind("Secret") if name.startswith("bootstrap-token-"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "changes").write_text(str(count_changes(folder, init)))
    return folder


def test_killed_before_every_47th_change(reference: Path, tmp_path: Path) -> None:
    total, wanted = int((reference / "changes").read_text()), tree(reference)
    wanted_objects = names_of(make_host(reference).cluster)
    assert total > 300
    for number in range(1, total + 1, STRIDE):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert kill_at(folder, number, init) == -signal.SIGKILL
        host = make_host(folder)
        if host.exists(Paths.state):
            assert json.loads(host.read_text(Paths.state))["schema"] == 1
        keys, tokens = hashes(host), tokens_of(host.cluster)
        do(folder, init)
        host = make_host(folder)
        after = hashes(host)
        assert {path: after.get(path) for path in keys} == keys, f"a key was made anew after the kill at {number}"
        assert leftovers(folder) == [], number
        assert tree(folder) == wanted, number
        assert names_of(host.cluster) == wanted_objects
        assert len(tokens_of(host.cluster)) == 1 and tokens_of(host.cluster)[: len(tokens)] == tokens


class MortalCluster(FakeCluster):
    """Takes the n-th change, and the process that asked for it is gone before it hears of that."""

    changes: int = 0
    fatal: int = 0

    def answer(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> HttpResponse:
        answer = super().answer(method, url, body, headers)
        if method != "GET":
            self.changes += 1
            if self.changes == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer


def test_killed_after_any_request(tmp_path: Path) -> None:
    """No second token, and the certificate key that is shown at the end opens what was uploaded."""

    def run(folder: Path, fatal: int = 0) -> None:
        host = make_host(folder)
        host.cluster = MortalCluster(is_up=False, memory=folder / "etcd.json")
        host.cluster.fatal = fatal
        result = run_init(host, flags={"upload-certs": True}, config_file=CONFIG_FILE)
        key = result.results.certificate_key
        assert key is not None
        stored = host.cluster.by_kind("Secret")["kubeadm-certs"]
        plan_downloads(stored, key, paths=Paths(), cluster=ClusterConfiguration("v1.35.6"))
        (folder / "changes").write_text(str(host.cluster.changes))

    (tmp_path / "first").mkdir()
    assert in_child(lambda: run(tmp_path / "first")) == 0
    total = int((tmp_path / "first" / "changes").read_text())
    assert total > 30
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert in_child(lambda folder=folder, number=number: run(folder, number)) == -signal.SIGKILL  # type: ignore[misc]
        before = tokens_of(make_host(folder).cluster)
        assert in_child(lambda folder=folder: run(folder)) == 0  # type: ignore[misc]
        cluster = make_host(folder).cluster
        parsed = [
            parse_token_secret(secret)
            for secret in cluster.by_kind("Secret").values()
            if "token-id" in secret.get("data", {})
        ]
        usable = [token for token in parsed if token and token.usages]
        assert len(usable) == 1, f"{number}: {before} -> {tokens_of(cluster)}"
        assert len(parsed) == 2, f"{number}: {before} -> {tokens_of(cluster)}"


def fill_at(folder: Path, number: int, work: Work) -> dict[str, Any]:
    """From the n-th change on the disk is full; the error that kb ended with, {} where it came to its end."""
    found = folder / "error"

    def refuse(count: int) -> None:
        if count >= number and not found.exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    def run() -> None:
        host = make_host(folder)
        Trap(folder / "root", refuse)
        try:
            work(host)
            text = "{}"
        except HostError as error:
            text = json.dumps(error.as_dict())
        found.write_text(text)

    assert in_child(run) == 0
    error: dict[str, Any] = json.loads(found.read_text())
    return error


def test_a_full_disk_from_every_47th_change_on(reference: Path, tmp_path: Path) -> None:
    """A clear error, everything old intact and nothing half-written; with space again the same command ends."""
    total, wanted = int((reference / "changes").read_text()), tree(reference)
    for number in range(2, total + 1, STRIDE):
        folder = tmp_path / str(number)
        folder.mkdir()
        error = fill_at(folder, number, init)
        assert error["code"] == "disk-full", (number, error)
        assert error["phase"] and error["changed"], (number, error)
        assert error["cause"] == "the disk is full" and error["remedy"].startswith("make space on the file system of")
        keys = hashes(make_host(folder))
        do(folder, init)
        after = hashes(make_host(folder))
        assert {path: after.get(path) for path in keys} == keys, number
        assert leftovers(folder) == [], number
        assert tree(folder) == wanted, number


def node_tree(folder: Path) -> list[str]:
    return [line for line in tree(folder) if not line.startswith("proc/")]


def test_killed_at_every_47th_change_then_reset(reference: Path, tmp_path: Path) -> None:
    """After the kill, reset takes back what was made: the node is as before."""
    total = int((reference / "changes").read_text())
    for number in range(5, total + 1, STRIDE):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_host(folder)
        before = node_tree(folder)
        assert kill_at(folder, number, init) == -signal.SIGKILL
        do(folder, reset)
        assert node_tree(folder) == before, number


def test_a_reset_that_is_killed_at_every_47th_change_is_done_again(tmp_path: Path) -> None:
    make_host(tmp_path)
    before = node_tree(tmp_path)
    do(tmp_path, init)
    total = count_changes(tmp_path, reset)
    assert node_tree(tmp_path) == before
    for number in range(1, total, STRIDE):
        do(tmp_path, init)
        assert kill_at(tmp_path, number, reset) == -signal.SIGKILL
        if make_host(tmp_path).exists(Paths.state):
            do(tmp_path, reset)
            assert node_tree(tmp_path) == before, number
