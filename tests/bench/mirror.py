"""Blob throughput of `kb mirror serve` beside Debian's docker-registry, on the same blob, and what a gigabyte costs.

    python3 -m tests.bench.mirror            one client and eight; GB/s, processor seconds per GB, their ratios
    python3 -m tests.bench.mirror --create   `bundle create` and `verify` of one gigabyte: seconds, MiB of memory

The two servers take turns, so that a machine that others use too slows both; the ratio of processor seconds does not
depend on who else is there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubeup.airgap import oci_layout
from kubeup.machine.local_host import LocalHost
from tests.bundle_case import write_layout, write_programs
from tests.components.test_bundle import docker_registry, free_port, kb, running, skopeo

REPO = Path(__file__).resolve().parents[2]
BLOB = 64 << 20
ROUNDS = 5
GIB_PER_ROUND = 24
"""In blobs of BLOB bytes, shared by the clients."""
NAME = "registry.k8s.io/bench:1"


def fetch(port: int, path: str, count: int) -> int:
    """GET `path` so often over one connection; returns the bytes of the bodies."""
    total, buffer = 0, bytearray(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(count):
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            head, _, rest = head.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            left = int(fields[b"content-length"]) - len(rest)
            total += left + len(rest)
            while left:
                left -= client.recv_into(buffer)
    return total


def load(port: int, path: str, clients: int) -> float:
    """GB/s of that many clients."""
    sums = [0] * clients

    def work(index: int) -> None:
        sums[index] = fetch(port, path, GIB_PER_ROUND // clients)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(sums) / 1e9 / (time.perf_counter() - started)


def processor_s(process: subprocess.Popen[Any]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, str, subprocess.Popen[Any]]]]:
    """name -> (port, path of the blob, process): both hold the same image."""
    data = os.urandom(BLOB)
    (folder / "source").mkdir()
    write_layout(folder / "source", {NAME: {"amd64": [data]}})
    kb_port, blob = free_port(), oci_layout.digest_of(data)
    argv = [
        sys.executable,
        str(REPO / "kb.py"),
        "mirror",
        "serve",
        str(folder / "source"),
        "--listen",
        f"127.0.0.1:{kb_port}",
    ]
    with running(argv, f"http://127.0.0.1:{kb_port}/healthz") as own, docker_registry(folder) as url:
        port = int(url.rpartition(":")[2])
        place = f"docker://127.0.0.1:{port}/bench:1"
        skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{folder}/source:{NAME}", place)
        other = next(_find_process("docker-registry", folder))
        yield {
            "kb": (kb_port, f"/v2/bench/blobs/{blob}", own),
            "docker-registry": (port, f"/v2/bench/blobs/{blob}", other),
        }


class _Found:
    def __init__(self, pid: int) -> None:
        self.pid = pid


def _find_process(name: str, folder: Path) -> Iterator[Any]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if words and words[0].endswith(name.encode()) and any(str(folder).encode() in word for word in words):
                yield _Found(int(entry.name))


def bench_throughput() -> None:
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as found:
        for clients in (1, 8):
            speeds: dict[str, list[float]] = {server: [] for server in found}
            costs: dict[str, list[float]] = {server: [] for server in found}
            for _ in range(ROUNDS):
                for server, (port, path, process) in found.items():
                    before = processor_s(process)
                    speeds[server].append(load(port, path, clients))
                    moved = GIB_PER_ROUND // clients * clients * BLOB / 1e9
                    costs[server].append((processor_s(process) - before) / moved)
            for server in found:
                speed, cost = statistics.median(speeds[server]), statistics.median(costs[server])
                print(f"{clients} clients  {server:<16} {speed:5.2f} GB/s  {cost:5.3f} processor seconds per GB")
            ratio = statistics.median(a / b for a, b in zip(speeds["kb"], speeds["docker-registry"]))
            spent = statistics.median(costs["docker-registry"]) / max(1e-9, statistics.median(costs["kb"]))
            print(f"{clients} clients  throughput {ratio:.2f} times docker-registry's, work per byte 1/{spent:.2f}")


def bench_create() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = write_programs(folder / "programs")
        for index, program in enumerate(("kubelet", "containerd")):
            with (programs / program).open("r+b") as file:
                file.seek(64)
                for _ in range(512):
                    file.write(os.urandom(1 << 20))
                file.write(bytes([index]))
        images = folder / "images"
        images.mkdir()
        shown = kb("config", "images", "list", "--kubernetes-version", "v1.35.6").stdout.split()
        write_layout(images, {image: {"amd64": [image.encode()]} for image in shown})
        base = ("--kubernetes-version", "v1.35.6", "--arch", "amd64")
        for words in (
            ("bundle", "create", "-o", str(folder / "b.tar"), *base, "--from", str(images), "--from", str(programs)),
            ("bundle", "verify", str(folder / "b.tar"), *base),
        ):
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(REPO / "kb.py"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds, size = time.perf_counter() - started, (folder / "b.tar").stat().st_size
            print(f"{' '.join(words[:2])}: {size / 1e9:.2f} GB in {seconds:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of"
                  f" processor), {usage.ru_maxrss / 1024:.0f} MiB, status {status}")  # fmt: skip
        assert LocalHost().exists(folder / "b.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--create", action="store_true")
    (bench_create if parser.parse_args().create else bench_throughput)()


if __name__ == "__main__":
    main()
