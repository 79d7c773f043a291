"""Bundles and the mirror against real programs: skopeo, docker-registry, curl, and servers that fail on purpose."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from kubeup.airgap import bundle, bundle_needs, bundle_sources, bundle_write, oci_layout, registry_client
from kubeup.airgap import programs as packages
from kubeup.errors import HostError
from kubeup.machine.http import Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.releases import find_release
from tests.bundle_case import elf, write_layout, write_programs

pytestmark = pytest.mark.component

REPO = Path(__file__).resolve().parents[2]
PAUSE, WEB = "registry.k8s.io/pause:3.10.1", "docker.io/library/web:1"
LAYER = bytes(range(256)) * 4096  # one MiB
IMAGES = {PAUSE: {"amd64": [b"pause"]}, WEB: {"amd64": [LAYER, b"second"]}}


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program), reason=f"needs the program {program}")


def kb(*words: object, check: bool = True, env: Optional[dict[str, str]] = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(REPO / "kb.py"), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})})
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        assert time.monotonic() < deadline and process.poll() is None, f"{url} does not come up"
        time.sleep(0.05)


@contextlib.contextmanager
def running(argv: list[str], url: str) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(url, process)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with two images and every program."""
    (tmp_path / "source").mkdir()
    write_layout(tmp_path / "source", IMAGES)
    write_programs(tmp_path / "programs")
    gathering = bundle_sources.Gathering(LocalHost(), tmp_path / "parts", ("amd64",))
    sources = (
        bundle_sources.LayoutSource(oci_layout.open_layout(LocalHost(), tmp_path / "source")),
        bundle_sources.FolderSource(tmp_path / "programs"),
    )
    for name in IMAGES:
        gathering.add_image(bundle_needs.Need(name, "a test"), sources)
    gathering.add_files(bundle_needs.plan_files(("amd64",)), sources, kubernetes_version="v1.35.6")
    bundle_write.write_bundle(gathering, tmp_path / "a.tar", kubernetes_version="v1.35.6")
    return tmp_path / "a.tar"


@contextlib.contextmanager
def docker_registry(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
    )
    url = f"http://127.0.0.1:{port}"
    with running(["docker-registry", "serve", str(config)], f"{url}/v2/"):
        yield url


@contextlib.contextmanager
def mirror(path: Path, *words: str) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    argv = [
        sys.executable,
        str(REPO / "kb.py"),
        "mirror",
        "serve",
        str(path),
        "--listen",
        url.partition("//")[2],
        *words,
    ]
    with running(argv, f"{url}/healthz"):
        yield url


def skopeo(*words: str) -> str:
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- read by others


@needs("skopeo")
def test_skopeo_reads_the_bundle(whole: Path, tmp_path: Path) -> None:
    for name in IMAGES:
        skopeo("copy", f"oci-archive:{whole}:{name}", f"dir:{tmp_path}/copy-{len(name)}")
    manifest = json.loads((tmp_path / f"copy-{len(WEB)}/manifest.json").read_text())
    assert manifest["layers"][0]["digest"] == oci_layout.digest_of(LAYER)


@needs("skopeo")
@needs("docker-registry")
def test_by_way_of_a_registry_the_bundle_is_the_same(whole: Path, tmp_path: Path) -> None:
    """bundle -> skopeo -> docker-registry -> kb bundle create by the distribution API: byte for byte."""
    with docker_registry(tmp_path) as url:
        for name in IMAGES:
            place = f"docker://{url.partition('//')[2]}/{name.partition('/')[2]}"
            skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci-archive:{whole}:{name}", place)
        gathering = bundle_sources.Gathering(LocalHost(), tmp_path / "parts2", ("amd64",))
        sources = (bundle_sources.RegistrySource(url), bundle_sources.FolderSource(tmp_path / "programs"))
        for name in IMAGES:
            gathering.add_image(bundle_needs.Need(name, "a test"), sources)
        gathering.add_files(bundle_needs.plan_files(("amd64",)), sources, kubernetes_version="v1.35.6")
        bundle_write.write_bundle(gathering, tmp_path / "b.tar", kubernetes_version="v1.35.6")
    assert (tmp_path / "b.tar").read_bytes() == whole.read_bytes()


@needs("skopeo")
@needs("docker-registry")
def test_sync_into_a_registry(whole: Path, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as url:
        shown = kb("mirror", "sync", whole, "--to", f"{url}/project").stdout
        assert f"pushed {url.partition('//')[2]}/project/pause:3.10.1" in shown
        place = f"docker://{url.partition('//')[2]}/project/library/web:1"
        raw = skopeo("inspect", "--tls-verify=false", "--raw", place)
        found = oci_layout.open_layout(LocalHost(), whole)
        assert oci_layout.digest_of(raw.encode()) == found.names[WEB]["digest"]
        assert "project/pause" in kb("mirror", "sync", whole, "--to", f"{url}/project").stdout  # again: no harm


@needs("oras")
def test_oras_reads_the_bundle_and_the_mirror(whole: Path, tmp_path: Path) -> None:
    """An image by its name, and the files with their names: from the tar as it is, and from the mirror. oras takes what
    stands behind the last colon for a tag, so a name of an image in the tar needs --oci-layout-path."""

    def oras(*words: object) -> str:
        done = subprocess.run(["oras", *map(str, words)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check_files(folder: Path) -> None:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found == {need.name for need in bundle_needs.plan_files(("amd64",))}
        assert (folder / "amd64/cni/bridge").read_bytes() == elf("amd64", mark="cni/bridge")

    found = oci_layout.open_layout(LocalHost(), whole)
    assert oras("repo", "tags", "--oci-layout", whole).split() == sorted(IMAGES)
    fetched = oras("manifest", "fetch", "--oci-layout-path", whole, WEB)
    assert oci_layout.digest_of(fetched.encode()) == found.names[WEB]["digest"]
    oras("copy", "--from-oci-layout-path", whole, WEB, "--to-oci-layout-path", tmp_path / "copy", WEB)
    copied = oci_layout.open_layout(LocalHost(), tmp_path / "copy")
    assert copied.names[WEB]["digest"] == found.names[WEB]["digest"]
    shown = kb("bundle", "show", whole).stdout
    digest = next(line.split()[1] for line in shown.splitlines() if line.startswith("files "))
    oras("pull", "--oci-layout", f"{whole}@{digest}", "-o", tmp_path / "from-tar")
    check_files(tmp_path / "from-tar")

    with mirror(whole) as url:
        server = url.partition("//")[2]
        assert oras("repo", "ls", "--plain-http", server).split() == [
            "docker.io/library/web", "kb/files", "registry.k8s.io/pause"
        ]  # fmt: skip
        assert oras("resolve", "--plain-http", f"{server}/kb/files:v1.35.6").strip() == digest
        oras("pull", "--plain-http", f"{server}/kb/files:v1.35.6", "-o", tmp_path / "from-mirror")
        check_files(tmp_path / "from-mirror")
        oras("copy", "--from-plain-http", f"{server}/{WEB}", "--to-oci-layout-path", tmp_path / "copy2", WEB)
        again = oci_layout.open_layout(LocalHost(), tmp_path / "copy2")
        assert again.names[WEB]["digest"] == found.names[WEB]["digest"]


# ---- the mirror


@needs("skopeo")
@needs("curl")
def test_the_mirror_serves_skopeo_and_curl(whole: Path, tmp_path: Path) -> None:
    with mirror(whole) as url:
        server = url.partition("//")[2]
        for name in ("registry.k8s.io/pause:3.10.1", "library/web:1"):
            skopeo("copy", "--src-tls-verify=false", f"docker://{server}/{name}", f"dir:{tmp_path}/{len(name)}")
        assert "3.10.1" in skopeo("inspect", "--tls-verify=false", f"docker://{server}/pause:3.10.1")

        def curl(*words: str) -> bytes:
            return subprocess.run(["curl", "-fsS", *words], capture_output=True, timeout=60, check=True).stdout

        blob = f"{url}/v2/library/web/blobs/{oci_layout.digest_of(LAYER)}"
        assert curl(blob) == LAYER
        assert curl("-r", "1000-1999", blob) == LAYER[1000:2000]
        assert b"Content-Length: 1048576" in curl("-I", blob)
        # one connection, several requests
        assert curl(f"{url}/healthz", f"{url}/healthz") == b"ok\nok\n"
        assert curl(f"{url}/files/amd64/runc") == elf("amd64", mark="runc")
        metrics = curl(f"{url}/metrics").decode()
        assert 'kb_mirror_client_requests_total{client="127.0.0.1"}' in metrics


def test_the_mirror_serves_many_at_once(whole: Path) -> None:
    wrong: list[bytes] = []

    def fetch(url: str) -> None:
        for _ in range(8):
            with urllib.request.urlopen(f"{url}/v2/x/blobs/{oci_layout.digest_of(LAYER)}", timeout=60) as answer:
                data = answer.read()
            if data != LAYER:
                wrong.append(data[:10])

    with mirror(whole, "--no-access-log") as url:
        threads = [threading.Thread(target=fetch, args=(url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_clients_that_go_away_or_talk_nonsense_do_no_harm(whole: Path) -> None:
    with mirror(whole) as url:
        port = int(url.rpartition(":")[2])
        blob = f"GET /v2/x/blobs/{oci_layout.digest_of(LAYER)} HTTP/1.1\r\n\r\n".encode()
        for words in (b"", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"A" * 100_000, blob, blob * 50):
            with socket.create_connection(("127.0.0.1", port)) as client:
                with contextlib.suppress(OSError):
                    client.sendall(words)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"


def test_a_signal_ends_the_mirror(whole: Path) -> None:
    with mirror(whole) as url:
        port = int(url.rpartition(":")[2])
        done = kb("mirror", "serve", whole, "--listen", f"127.0.0.1:{port}", check=False)
        assert done.returncode == 4 and "code:   cannot-listen" in done.stderr
    port = free_port()
    argv = [sys.executable, str(REPO / "kb.py"), "mirror", "serve", str(whole), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    wait_for(f"http://127.0.0.1:{port}/healthz", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM


# ---- servers that fail


class Flaky(http.server.BaseHTTPRequestHandler):
    """Breaks off each answer after `cut` bytes; knows ranges where `ranges`; wants a token where `token`."""

    blob = LAYER * 3
    cut = 700_000
    ranges = True
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        self._send_blob()

    def _send_blob(self) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted[len("bytes=") : -1]) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.blob) - 1}/{len(self.blob)}")
        self.send_header("Content-Length", str(len(self.blob) - start))
        self.end_headers()
        self.wfile.write(self.blob[start : start + self.cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[Callable[..., tuple[type[Flaky], str]]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(**settings: object) -> tuple[type[Flaky], str]:
        handler = type("Handler", (Flaky,), {"asked": [], **settings})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return handler, f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()


class HastyHost(LocalHost):
    """A machine on which waiting takes no time."""

    def sleep(self, seconds: float) -> None:
        pass


def fetch(url: str, into: Path, blob: bytes = Flaky.blob) -> None:
    host = HastyHost()
    registry_client.Registry(host, url).fetch_blob(
        host, "a/b", digest=oci_layout.digest_of(blob), size=len(blob), into=into
    )


def test_a_broken_blob_is_gone_on_with(flaky: Any, tmp_path: Path) -> None:
    handler, url = flaky()
    fetch(url, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == Flaky.blob
    ranges = [asked.split(" ")[1] for asked in handler.asked if " " in asked]
    assert ranges == [f"bytes={n}-" for n in (700_000, 1_400_000, 2_100_000, 2_800_000)]


def test_a_later_run_goes_on_where_the_first_broke(flaky: Any, tmp_path: Path) -> None:
    (tmp_path / "blob.part").write_bytes(Flaky.blob[:2_000_000])
    handler, url = flaky(cut=10**9)
    fetch(url, tmp_path / "blob")
    assert handler.asked == ["/v2/a/b/blobs/" + oci_layout.digest_of(Flaky.blob) + " bytes=2000000-"]


def test_a_server_without_ranges_sends_all_again(flaky: Any, tmp_path: Path) -> None:
    (tmp_path / "blob.part").write_bytes(b"x" * 1000)
    _, url = flaky(ranges=False, cut=10**9)
    fetch(url, tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == Flaky.blob


def test_a_server_that_never_gets_on_is_given_up(flaky: Any, tmp_path: Path) -> None:
    handler, url = flaky(cut=0)
    with pytest.raises(Unreachable):
        fetch(url, tmp_path / "blob")
    assert len(handler.asked) == registry_client.ATTEMPTS


def test_a_byte_at_a_time_is_not_getting_on(flaky: Any, tmp_path: Path) -> None:
    handler, url = flaky(cut=1)
    with pytest.raises(Unreachable):
        fetch(url, tmp_path / "blob")
    assert len(handler.asked) == registry_client.ATTEMPTS


def test_more_than_was_announced_is_not_taken(flaky: Any, tmp_path: Path) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(1 << 16))

    _, url = flaky(do_GET=endless)
    with pytest.raises(HostError) as caught:
        fetch(url, tmp_path / "blob")
    assert caught.value.code == "download-damaged" and list(tmp_path.iterdir()) == []


def test_other_bytes_than_asked_for_are_refused(flaky: Any, tmp_path: Path) -> None:
    _, url = flaky(cut=10**9)
    with pytest.raises(HostError) as caught:
        fetch(url, tmp_path / "blob", blob=Flaky.blob[:-1] + b"?")
    assert caught.value.code == "download-damaged" and not (tmp_path / "blob").exists()


def test_docker_s_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    auth = base64.b64encode(b"me:p:w").decode()
    auths = {"r.example": {"auth": auth}, "https://index.docker.io/v1/": {"identitytoken": "idt"}, "x.example": {}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    found = {
        name: registry_client.read_credentials(LocalHost(), name)
        for name in ("r.example", "docker.io", "x.example", "y")
    }
    assert found["r.example"] and found["r.example"][0] == "me" and found["r.example"][1].reveal() == "p:w"
    assert found["docker.io"] and found["docker.io"][0] == "<token>"
    assert found["x.example"] is None and found["y"] is None
    for text in ("{", "[]", "[" * 100_000, '{"auths": ["x"]}', '{"credHelpers": "x"}', '"x"', "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(HostError) as caught:
            registry_client.read_credentials(LocalHost(), "r.example")
        assert caught.value.code == "docker-config-invalid"


def test_a_full_disk_leaves_nothing_behind(whole: Path, tmp_path: Path) -> None:
    """/dev/full's file system cannot be written: the file does not appear, and the error says so."""
    host = LocalHost()

    def too_much() -> Iterator[bytes]:
        yield b"x" * 1000
        raise OSError(28, "No space left on device")

    with pytest.raises(HostError) as caught:
        host.write_stream(tmp_path / "out.tar", too_much())
    assert caught.value.code == "disk-full"
    assert not [path for path in tmp_path.iterdir() if "out.tar" in path.name]


# ---- memory


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A quarter of a gigabyte in one file: create and verify stay below 100 MiB."""
    big = tmp_path / "programs/kubelet"
    write_programs(tmp_path / "programs")
    with big.open("ab") as file:
        file.truncate(256 << 20)
    (tmp_path / "source").mkdir()
    write_layout(tmp_path / "source", {})
    code = (
        "import re,sys; sys.path.insert(0, sys.argv[1]); import kb; status = kb.main(sys.argv[2:]);"
        # not ru_maxrss: that begins with what the process that started this one had
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(status)"
    )

    def measure(*words: object) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, str(REPO), *map(str, words)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    images = _all_images(tmp_path)
    created = measure("bundle", "create", "-o", tmp_path / "big.tar", "--kubernetes-version", "v1.35.6", "--arch", "amd64",
                      "--from", images, "--from", tmp_path / "programs")  # fmt: skip
    verified = measure("bundle", "verify", tmp_path / "big.tar", "--kubernetes-version", "v1.35.6", "--arch", "amd64")
    assert max(created, verified) < 100 * 1024, (created, verified)


def _all_images(tmp_path: Path, **more: list[bytes]) -> Path:
    """What a cluster needs, and images of one's own."""
    shown = kb("config", "images", "list", "--kubernetes-version", "v1.35.6").stdout.split()
    folder = tmp_path / "all"
    folder.mkdir()
    images = {name: {"amd64": [name.encode()]} for name in shown}
    return write_layout(folder, {**images, **{name: {"amd64": layers} for name, layers in more.items()}})


def test_the_command_line_end_to_end(tmp_path: Path) -> None:
    """create, verify, show, diff, a flipped byte, as an admin types them."""
    images, programs = _all_images(tmp_path), write_programs(tmp_path / "programs")
    words = ("--kubernetes-version", "v1.35.6", "--arch", "amd64", "--from", images, "--from", programs)
    kb("bundle", "create", "-o", tmp_path / "a.tar", *words)
    assert "has all that the configuration needs" in kb("bundle", "verify", tmp_path / "a.tar", *words[:4]).stdout
    shown = json.loads(kb("bundle", "show", tmp_path / "a.tar", "-o", "json").stdout)
    assert shown["kubernetesVersion"] == "v1.35.6" and len(shown["images"]) == 7 and len(shown["files"]) == 11
    assert kb("bundle", "diff", tmp_path / "a.tar", tmp_path / "a.tar").stdout == "both hold the same\n"
    missing = kb("bundle", "verify", tmp_path / "a.tar", "--kubernetes-version", "v1.34.2", check=False)
    assert (
        missing.returncode == 4 and "registry.k8s.io/etcd:3.6.5-0 is missing, for the static pod etcd" in missing.stderr
    )
    (programs / "runc").unlink()
    lacking = kb("bundle", "create", "-o", tmp_path / "b.tar", *words, check=False)
    assert lacking.returncode == 4 and "amd64/runc (for the container runtime)" in lacking.stderr


# ---- what others left in the way


@pytest.mark.parametrize("kind", ["whole", "part", "document"])
def test_what_lies_in_the_spool_is_summed_before_it_counts(tmp_path: Path, kind: str) -> None:
    """An interrupted run leaves a folder beside the bundle; whoever may write into it could have planted a layer of the right
    name and length, the beginning of one, or a manifest. Nothing of it gets into the bundle, and nothing is asked of the user."""
    images = _all_images(tmp_path, **{WEB: [LAYER]})
    web = str(oci_layout.open_layout(LocalHost(), images).names[WEB]["digest"])
    spool, evil = tmp_path / ".b.tar.parts", bytes(reversed(LAYER))
    spool.mkdir(mode=0o700)
    digest = (web if kind == "document" else oci_layout.digest_of(LAYER)).replace(":", "-")
    (spool / (f"{digest}.part" if kind == "part" else digest)).write_bytes(evil if kind == "whole" else evil[:1000])
    words = ("--kubernetes-version", "v1.35.6", "--arch", "amd64", "--without", "files", "--image", WEB)
    kb("bundle", "create", "-o", tmp_path / "good.tar", *words, "--from", images)
    with mirror(images) as url:
        kb("bundle", "create", "-o", tmp_path / "b.tar", *words, "--from", url)
    assert evil not in (tmp_path / "b.tar").read_bytes() and not spool.exists()
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "good.tar").read_bytes()
    kb("bundle", "verify", tmp_path / "b.tar")


ODD_MODES: dict[str, Any] = {
    "0755": "0755", "0644": "0644", "6777": "6777", "4755": "4755", "0666": "0666", "0": "0", "0000": "0000", "0111": "0111",
    "0o9": "0o9", "0o755": "0o755", "": "", " ": " ", "-1": "-1", "+755": "+755", "7_5_5": "7_5_5", "0x1ff": "0x1ff",
    "99999": "99999", "7777777777": "7" * 4000, "rwx": "rwxr-xr-x", "٧٥٥": "\u0667\u0665\u0665", "null": None, "number": 755,
    "list": ["0755"], "mapping": {"a": 1}, "true": True, "1e400": float("1e300"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_MODES)
def test_a_mode_from_a_bundle_gives_nobody_a_right_to_write(whole: Path, tmp_path: Path, name: str) -> None:
    """Whatever the annotation says: root alone changes what root runs, and no bit of another's identity is set."""
    folder = tmp_path / "unpacked"
    with tarfile.open(whole) as tar:
        tar.extractall(folder)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["manifests"]:
        manifest = json.loads(_blob(folder, entry["digest"]).read_text())
        layers = [layer for layer in manifest.get("layers", ()) if bundle.MODE in (layer.get("annotations") or {})]
        for layer in layers:
            layer["annotations"][bundle.MODE] = ODD_MODES[name]
        if layers:
            data = json.dumps(manifest).encode()
            entry.update(digest=oci_layout.digest_of(data), size=len(data))
            _blob(folder, entry["digest"]).write_bytes(data)
    (folder / "index.json").write_text(json.dumps(index))
    shown = kb("bundle", "show", folder, "-o", "json", check=False)
    assert shown.returncode in (0, 4), shown.stderr
    if shown.returncode == 4:
        assert not isinstance(ODD_MODES[name], str)
        return
    assert {file["mode"] for file in json.loads(shown.stdout)["files"]} <= {"0755", "0644"}
    node = LocalHost(tmp_path / "node")
    (tmp_path / "node/usr/local/bin").mkdir(parents=True)
    offered = packages.offer_bundle(LocalHost(), oci_layout.open_layout(LocalHost(), folder), arch="amd64")
    staged = packages.stage(
        node,
        list(offered.values()),
        arch="amd64",
        cluster_version="v1.35.6",
        release=find_release("v1.35.6"),
        tell=print,
    )
    modes = {oct((tmp_path / "node" / path.relative_to("/")).stat().st_mode & 0o7777) for path in staged.values()}
    assert modes and modes <= {"0o755", "0o744"}


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")
