"""The world outside, as far as a node asks it: the hosts of official releases and images, by their names, over TLS, in the lab.

The places of files are those of the projects' release pages. A host of downloads sends on to another one, as the real ones do.
Must not: know kb.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..lab import image, registry
from ..lab.node import wait_until
from ..lab.settings import Release
from ..lab.shell import sh

if TYPE_CHECKING:
    from ..lab.lab import Lab
    from ..lab.node import Node

FILES, IMAGES = "10.77.0.2", "10.77.0.3"
SENT_ON = {"dl.k8s.io": "cdn.dl.k8s.io", "github.com": "release-assets.githubusercontent.com"}
NAMES = {FILES: (*SENT_ON, *SENT_ON.values()), IMAGES: ("registry.k8s.io", "registry-1.docker.io")}
GITHUB = "github.com/{}/releases/download"
SERVER = f"""\
import functools, http.server, ssl, sys

SENT_ON = {SENT_ON!r}


class Handler(http.server.SimpleHTTPRequestHandler):
    def send_head(self):
        host = self.headers["Host"]
        if host not in SENT_ON:
            return super().send_head()
        self.send_response(302)
        self.send_header("Location", f"https://{{SENT_ON[host]}}/{{host}}{{self.path}}")
        self.send_header("Content-Length", "0")
        self.end_headers()


folder, address, pem = sys.argv[1:]
server = http.server.ThreadingHTTPServer((address, 443), functools.partial(Handler, directory=folder))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class World:
    """Where its files lie, its authority's certificate, and what it was asked for."""

    www: Path
    authority: Path
    log: Path

    def publish(self, place: str, data: bytes, *, sums: str, told: str = "") -> None:
        """A file by its URL without the scheme, and the file of its checksum: beside it, by suffix, or by a name."""
        path = self.www / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        total = told or hashlib.sha256(data).hexdigest()
        if sums.startswith("."):
            is_alone = place.startswith("dl.k8s.io")
            (self.www / f"{place}{sums}").write_text(total if is_alone else f"{total}  {path.name}\n")
        else:
            (path.parent / sums).write_text(f"{'0' * 64}  {path.name}.asc\n{total}  {path.name}\n")


def publish_release(world: World, release: Release) -> None:
    """All that a node of amd64 downloads, with the versions that are current for 1.35."""
    publish_kubernetes(world, release)
    crictl = "crictl-v1.35.0-linux-amd64.tar.gz"
    data = _pack({"crictl": release.binary("crictl")})
    world.publish(f"{GITHUB.format('kubernetes-sigs/cri-tools')}/v1.35.0/{crictl}", data, sums=".sha256")
    runtime, base = image.ensure_variant("2.1")[0], image.ensure_base()
    names = ("containerd", "containerd-shim-runc-v2", "ctr")
    data = _pack({f"bin/{name}": _find(runtime, base, f"usr/bin/{name}") for name in names})
    containerd = "containerd-2.1.4-linux-amd64.tar.gz"
    world.publish(f"{GITHUB.format('containerd/containerd')}/v2.1.4/{containerd}", data, sums=".sha256sum")
    publish_runc(world)
    plugins = {f"./{path.name}": path for path in sorted((base / "usr/lib/cni").iterdir()) if path.is_file()}
    cni = "cni-plugins-linux-amd64-v1.7.1.tgz"
    world.publish(f"{GITHUB.format('containernetworking/plugins')}/v1.7.1/{cni}", _pack(plugins), sums=".sha256")


def publish_kubernetes(world: World, release: Release, *, told: str = "") -> None:
    """What dl.k8s.io has of a release; with another checksum of the kubelet, if one is told."""
    for name in ("kubelet", "kubectl"):
        place = f"dl.k8s.io/release/{release.version}/bin/linux/amd64/{name}"
        told_of = told if name == "kubelet" else ""
        world.publish(place, release.binary(name).read_bytes(), sums=".sha256", told=told_of)
    (world.www / f"dl.k8s.io/release/stable-{release.minor}.txt").write_text(release.version)


def publish_runc(world: World, *, told: str = "") -> None:
    """The real one; with another checksum, if one is told."""
    data = (image.ensure_base() / "usr/sbin/runc").read_bytes()
    place = f"{GITHUB.format('opencontainers/runc')}/v1.3.0/runc.amd64"
    world.publish(place, data, sums="runc.sha256sum", told=told)


def _find(runtime: Path, base: Path, path: str) -> Path:
    return runtime / path if (runtime / path).exists() else base / path


def _pack(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, path in files.items():
            tar.add(path, arcname=name)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ serving


@contextlib.contextmanager
def serve_world(lab: Lab, folder: Path, release: Release) -> Iterator[World]:
    """Its hosts answer in the lab's network for the time of the block; the images are the release's."""
    folder.mkdir()
    world = World(folder / "www", folder / "ca.crt", folder / "asked.log")
    world.www.mkdir()
    pem = _make_certificate(folder)
    lab.registry.add_release(release)
    (folder / "server.py").write_text(SERVER)
    tls = f"  tls: {{certificate: {pem}, key: {pem}}}\n"
    config = registry.CONFIG.format(storage=lab.registry.folder, address=f"{IMAGES}:443")
    (folder / "registry.yml").write_text(config + tls)
    for address in NAMES:
        lab.exec(f"ip addr add {address}/24 dev {lab.bridge}")
    programs = [
        ["python3", "-u", str(folder / "server.py"), str(world.www), FILES, str(pem)],
        ["docker-registry", "serve", str(folder / "registry.yml")],
    ]
    with contextlib.ExitStack() as stack:
        for address in NAMES:
            stack.callback(lab.exec, f"ip addr del {address}/24 dev {lab.bridge}")
        log = stack.enter_context(world.log.open("ab"))
        for argv in programs:
            server = subprocess.Popen(
                [*lab.enter_argv(), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(server.wait, timeout=10)
            stack.callback(server.send_signal, signal.SIGTERM)
        for url in (f"https://{FILES}/", f"https://{IMAGES}/v2/"):
            wait_until(lambda: lab.exec(f"curl -skf {url}", check=False).ok, what=url, timeout_s=15)  # noqa: B023
        yield world


def _make_certificate(folder: Path) -> Path:
    """An authority, and one certificate of it for all names, with its key in one file."""
    request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    authority = ["-subj", "/CN=lab-world", "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.crt"]
    sh([*request, "-x509", "-days", "30", *authority])
    sh([*request, "-subj", "/CN=world", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/world.csr"])
    names = ",".join(f"DNS:{name}" for hosts in NAMES.values() for name in hosts)
    (folder / "world.ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
    signed = [
        "-CA",
        f"{folder}/ca.crt",
        "-CAkey",
        f"{folder}/ca.key",
        "-CAcreateserial",
        "-extfile",
        f"{folder}/world.ext",
    ]
    sh(["openssl", "x509", "-req", "-days", "30", "-in", f"{folder}/world.csr", *signed, "-out", f"{folder}/world.crt"])
    pem = folder / "world.pem"
    pem.write_text((folder / "world.crt").read_text() + (folder / "key.pem").read_text())
    return pem


def lead_to_world(node: Node, world: World) -> None:
    """The node finds the hosts by their names, and trusts their authority as it does the world's."""
    for address, names in NAMES.items():
        node.run(f"echo {address} {' '.join(names)} >>/etc/hosts")
    node.write("/usr/local/share/ca-certificates/lab-world.crt", world.authority.read_text())
    node.run("update-ca-certificates")
