"""kubeup.node.runtime against a real containerd with a root of its own, and a real registry on loopback."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from kubeup.machine.local_host import LocalHost
from kubeup.node import containerd_config, containers, image_pulls, runtime
from kubeup.node import crictl as node_crictl
from tests.fake_host import FakeHost

pytestmark = pytest.mark.component

HOST = LocalHost()


def need(*programs: str) -> None:
    missing = [name for name in programs if HOST.which(name) is None]
    if missing:
        pytest.skip(f"not in PATH: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    if platform.machine() != "x86_64":
        pytest.skip("the test's programs are machine code for x86_64")


def wait_for_file(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.skip(f"containerd does not start here: {log.read_text()[-400:]}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Daemon:
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/c.sock"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def crictl(self, *words: str) -> str:
        done = HOST.run(node_crictl.crictl_argv(self.socket, *words))
        assert done.ok, done.stderr
        return done.stdout.strip()


def start_containerd(folder: Path, *, top: str = "", sandbox: str = "") -> Daemon:
    """containerd of either major version; the settings of both schemas stand in one file of the older schema."""
    plugin = f'sandbox_image = "{sandbox}"' if sandbox else ""
    (folder / "config.toml").write_text(
        f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
{top}
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  {plugin}
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
    )
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(["containerd", "-c", folder / "config.toml"], stdout=stream, stderr=stream)
    wait_for_file(folder / "c.sock", process, log)
    return Daemon(folder, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """127.0.0.1:PORT, with test/pause:1 (waits) and test/fail:1 (writes a line and exits with 3)."""
    need("docker-registry", "skopeo")
    folder = Path(tempfile.mkdtemp(prefix="kb-registry-"))
    address = f"127.0.0.1:{free_port()}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with (folder / "log").open("wb") as stream:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=stream, stderr=stream)
    try:
        for name, program in (("pause", PAUSE), ("fail", FAIL)):
            write_layout(folder / name, program)
            for _ in range(100):
                done = subprocess.run(
                    ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{folder}/{name}:1",
                     f"docker://{address}/test/{name}:1"],
                    capture_output=True, text=True,
                )  # fmt: skip
                if done.returncode == 0:
                    break
                time.sleep(0.1)
            assert done.returncode == 0, done.stderr
        yield address
    finally:
        stop(process)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def containerd(registry: str) -> Iterator[Daemon]:
    need("containerd", "crictl")
    folder = Path(tempfile.mkdtemp(prefix="kb-containerd-"))
    daemon = start_containerd(folder, sandbox=f"{registry}/test/pause:1")
    try:
        yield daemon
    finally:
        HOST.run(node_crictl.crictl_argv(daemon.socket, "rmp", "-f", "-a"))
        stop(daemon.process)
        shutil.rmtree(folder, ignore_errors=True)


# ---- two programs and an image around each


def elf(code: bytes) -> bytes:
    """A static x86_64 program: one segment, loaded at 4 MiB."""
    base, size = 0x400000, 120 + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


_LINE = b"Error: boom\n"
PAUSE = elf(bytes.fromhex("b822000000 0f05 ebf7"))  # pause(), for ever
FAIL = elf(
    bytes.fromhex("b801000000 bf02000000 488d3513000000 ba")  # write(2, line, length)
    + struct.pack("<I", len(_LINE))
    + bytes.fromhex("0f05 b83c000000 bf03000000 0f05")  # exit(3)
    + _LINE
)


def write_layout(folder: Path, program: bytes) -> None:
    """An OCI layout of one image with one layer: the program as /main."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("main")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, BytesIO(program))
    layer = gzip.compress(packed.getvalue(), mtime=0)
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    diff = f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}"
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/main"]},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    config = add(json.dumps(image).encode(), "config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [add(layer, "layer.v1.tar+gzip")],
    }
    entry_point = add(json.dumps(manifest).encode(), "manifest.v1+json")
    entry_point["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry_point]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


# ---- tests


def test_probe(containerd: Daemon) -> None:
    status = runtime.probe_runtime(HOST, containerd.socket)
    assert status.is_ready, status
    assert status.name == "containerd"
    assert status.has_runtime_config is (int(status.version.split(".")[0]) >= 2)
    assert status.cgroup_driver == "cgroupfs"
    assert status.restricts_oom_score is True
    assert "/opt/cni/bin" in status.cni_bin_dirs
    assert status.root_dir == f"{containerd.folder}/root"


def test_images_come_once(containerd: Daemon, registry: str) -> None:
    names = [f"{registry}/test/pause:1", f"{registry}/test/fail:1"]
    first = image_pulls.ensure_images(HOST, containerd.socket, names=names, is_serial=False)
    assert first.failed == ()
    assert set(first.pulled) | set(first.present) == set(names)
    assert set(names) <= image_pulls.list_images(HOST, containerd.socket)
    again = image_pulls.ensure_images(HOST, containerd.socket, names=names)
    assert again == image_pulls.ImagesResult(present=tuple(names))


def test_an_image_that_is_not_there(containerd: Daemon, registry: str) -> None:
    for name in (f"{registry}/test/pause:2", f"{registry}/other:1"):
        (error,) = image_pulls.ensure_images(HOST, containerd.socket, names=[name]).failed
        assert error.kind == "not-found"


def test_a_registry_that_is_not_there(containerd: Daemon) -> None:
    with pytest.raises(image_pulls.ImagePullError) as caught:
        image_pulls.pull_image(HOST, containerd.socket, image=f"127.0.0.1:{free_port()}/a:1")
    assert caught.value.kind == "refused"
    with pytest.raises(image_pulls.ImagePullError) as caught:
        image_pulls.pull_image(HOST, containerd.socket, image="registry.invalid/a:1")
    assert caught.value.kind == "dns"


def test_a_container_that_fails(containerd: Daemon, registry: str) -> None:
    """How it ended, and its last words."""
    need("runc")
    test_images_come_once(containerd, registry)
    pod = {
        "metadata": {"name": "p", "namespace": "kube-system", "uid": "1", "attempt": 0},
        "log_directory": f"{containerd.folder}/logs",
        "labels": {"io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "kube-system"},
        "linux": {"security_context": {"namespace_options": {"network": 2}}},
    }
    container = {
        "metadata": {"name": "fail", "attempt": 4},
        "image": {"image": f"{registry}/test/fail:1"},
        "log_path": "fail.log",
        "labels": {"io.kubernetes.container.name": "fail", **pod["labels"]},  # type: ignore[dict-item]
    }
    (containerd.folder / "pod.json").write_text(json.dumps(pod))
    (containerd.folder / "container.json").write_text(json.dumps(container))
    (containerd.folder / "logs").mkdir(exist_ok=True)
    started = HOST.run(node_crictl.crictl_argv(containerd.socket, "runp", f"{containerd.folder}/pod.json"))
    if not started.ok:
        pytest.skip(f"no Pod can be run here: {started.stderr[-300:]}")
    files = (f"{containerd.folder}/container.json", f"{containerd.folder}/pod.json")
    container_id = containerd.crictl("create", started.stdout.strip(), *files)
    containerd.crictl("start", container_id)
    for _ in range(100):
        (ended,) = containers.list_containers(HOST, containerd.socket)
        if ended.state == "exited":
            break
        time.sleep(0.05)
    assert (ended.id, ended.name, ended.attempt, ended.exit_code) == (container_id, "fail", 4, 3)
    assert (ended.pod, ended.namespace, ended.reason) == ("p", "kube-system", "Error")
    assert time.time_ns() - ended.created_ns < 60 * 10**9
    assert containers.list_containers(HOST, containerd.socket, name="fail") == [ended]
    assert containers.list_containers(HOST, containerd.socket, name="fai") == []
    assert containers.container_logs(HOST, containerd.socket, container_id=container_id) == ["Error: boom"]
    if HOST.which("ctr"):
        seen = (containers._list_through_ctr(HOST, containerd.socket, name="") or [])[0]
        assert (seen.id, seen.name, seen.attempt, seen.state, seen.pod) == (container_id, "fail", 4, "exited", "p")
        assert seen.log_path == f"{containerd.folder}/logs/fail.log"


def test_the_dump_of_a_real_containerd_can_be_read(containerd: Daemon) -> None:
    dump = HOST.query(["containerd", "-c", containerd.config, "config", "dump"])
    ours = containerd_config.parse_dumped_toml(dump.stdout)
    tomllib = pytest.importorskip("tomllib")
    assert ours == tomllib.loads(dump.stdout)
    fake = FakeHost(answers={"containerd config dump": dump.stdout})
    config = runtime.read_containerd_config(fake, containerd.socket)
    status = runtime._with_dump(runtime.RuntimeStatus(containerd.socket), config)
    assert status.cgroup_driver == "cgroupfs"
    assert status.restricts_oom_score is True
    assert status.sandbox_image is not None
    assert status.sandbox_image.endswith("/test/pause:1")
    assert status.root_dir == f"{containerd.folder}/root"


def test_ctr_sees_the_same(containerd: Daemon, registry: str) -> None:
    need("ctr")
    test_images_come_once(containerd, registry)
    status = runtime._probe_through_ctr(HOST, containerd.socket)
    assert status.is_ready
    full = runtime.probe_runtime(HOST, containerd.socket)
    assert (status.version, status.has_runtime_config) == (full.version, full.has_runtime_config)
    through_ctr = HOST.query(node_crictl.ctr_argv(containerd.socket, "images", "ls", "-q")).stdout.split()
    assert f"{registry}/test/pause:1" in through_ctr


def test_a_disabled_cri_plugin() -> None:
    need("containerd", "crictl")
    folder = Path(tempfile.mkdtemp(prefix="kb-containerd-"))
    daemon = start_containerd(folder, top='disabled_plugins = ["io.containerd.grpc.v1.cri"]')
    try:
        status = runtime.probe_runtime(HOST, daemon.socket)
        assert not status.is_ready
        assert status.problem in ("cri-disabled", "cri-failed")
        assert "CRI plugin" in status.cause
        if HOST.which("ctr"):
            assert runtime._probe_through_ctr(HOST, daemon.socket).problem == status.problem
    finally:
        stop(daemon.process)
        shutil.rmtree(folder, ignore_errors=True)
    dead = runtime.probe_runtime(HOST, daemon.socket)
    assert dead.problem == "no-socket"
