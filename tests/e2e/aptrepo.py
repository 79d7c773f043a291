"""pkgs.k8s.io as a node's apt sees it: packages with the names, files and units of Kubernetes' own, signed, by https.

Made of the local binaries; containerd and runc are Debian's packages. Run as a program it is the web server:
`python3 aptrepo.py FOLDER ADDRESS CERT KEY`. Must not: know pytest, or be reachable from outside the lab.
"""

from __future__ import annotations

import email.utils
import functools
import hashlib
import http.server
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from .lab import Lab
    from .node import Node
    from .settings import Release

HOST = "pkgs.k8s.io"
PROGRAMS = ("dpkg-deb", "dpkg-scanpackages", "gpg", "openssl")


def serve(folder: str, address: str, cert: str, key: str) -> None:
    """Serve a folder by https on port 443 of an address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer((address, 443), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


class AptRepository:
    """Build it, serve it in the lab's network, have a node trust it."""

    def __init__(self, lab: Lab, release: Release, folder: Path) -> None:
        self.lab, self.release, self.folder = lab, release, folder
        self.www = folder / "www"
        self._server: Optional[subprocess.Popen[bytes]] = None

    def build(self) -> None:
        """The repository of this minor, and one of Debian's packages beside it."""
        from . import image

        core = self.www / f"core:/stable:/v{self.release.minor}/deb"
        plain = self.release.version.lstrip("v")
        layers = image.ensure_variant(self.release.facts.containerd)
        plugins = [next(p for layer in layers if (p := layer / "usr/lib/cni" / name).exists())
                   for name in ("bridge", "host-local", "loopback", "portmap")]  # fmt: skip
        binaries = self.release.folder
        self._pack(
            core, "kubelet", plain, {"usr/bin/kubelet": binaries / "kubelet"}, depends="kubernetes-cni", is_unit=True
        )
        self._pack(core, "kubectl", plain, {"usr/bin/kubectl": binaries / "kubectl"})
        self._pack(core, "cri-tools", f"{self.release.minor}.0", {"usr/bin/crictl": binaries / "crictl"})
        self._pack(core, "kubernetes-cni", "1.7.1", {f"opt/cni/bin/{path.name}": path for path in plugins})
        debian = self.www / "debian"
        debian.mkdir()
        for name in ("containerd", "runc"):
            shutil.copy(image.download_package(name, image.SUITE, self.folder / "apt"), debian)
        for repository in (core, debian):
            self._index(repository)
        self._run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                  "-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
                  "-keyout", str(self.folder / "key.pem"), "-out", str(self.folder / "cert.pem"))  # fmt: skip

    def _pack(
        self,
        repository: Path,
        name: str,
        version: str,
        files: dict[str, Path],
        *,
        depends: str = "",
        is_unit: bool = False,
    ) -> None:
        from .node import KUBELET_UNIT

        root = self.folder / "packages" / name
        for target, source in files.items():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / target)
            (root / target).chmod(0o755)
        control = [
            f"Package: {name}",
            f"Version: {version}-1.1",
            "Architecture: amd64",
            "Maintainer: kb's tests <kb@test>",
        ]
        control += [f"Depends: {depends}"] if depends else []
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text("\n".join([*control, f"Description: {name}", ""]))
        if is_unit:
            unit = root / "usr/lib/systemd/system/kubelet.service"
            unit.parent.mkdir(parents=True)
            unit.write_text(KUBELET_UNIT)
            script = root / "DEBIAN/postinst"
            script.write_text("#!/bin/sh\nset -e\nsystemctl daemon-reload\nsystemctl enable --now kubelet.service\n")
            script.chmod(0o755)
        repository.mkdir(parents=True, exist_ok=True)
        self._run("dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), str(repository))

    def _index(self, repository: Path) -> None:
        """Packages, and Release with its hash and a signature."""
        listed = self._run("dpkg-scanpackages", "--multiversion", ".", cwd=repository)
        (repository / "Packages").write_bytes(listed)
        release = (
            f"Origin: kb-test\nDate: {email.utils.formatdate(usegmt=True)}\nSHA256:\n"
            f" {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
        )
        (repository / "Release").write_text(release)
        home = self.folder / "gnupg"
        gpg = ("gpg", "--homedir", str(home), "--batch", "--yes", "--passphrase", "", "--pinentry-mode", "loopback")
        if not home.exists():
            home.mkdir(mode=0o700)
            self._run(*gpg, "--quick-generate-key", "kb-test", "rsa2048", "sign", "never")
        self._run(*gpg, "--clearsign", "--output", str(repository / "InRelease"), str(repository / "Release"))
        (repository / "Release.key").write_bytes(self._run(*gpg, "--armor", "--export"))

    @staticmethod
    def _run(*argv: str, cwd: Optional[Path] = None) -> bytes:
        return subprocess.run(argv, cwd=cwd, check=True, capture_output=True).stdout

    def start(self) -> None:
        """Serve until stop()."""
        from .node import wait_until

        argv = [*self.lab.enter_argv(), sys.executable, __file__, str(self.www), self.lab.gateway]
        argv += [str(self.folder / "cert.pem"), str(self.folder / "key.pem")]
        self._server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probe = f"curl -fsSk https://{self.lab.gateway}/debian/Release"
        wait_until(lambda: self.lab.exec(probe, check=False).ok, what="the package repository", timeout_s=15)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def offer_to(self, node: Node) -> None:
        """The node knows the repository by its name and trusts its certificate; Debian's packages come from here too."""
        node.run(
            f"echo '{self.lab.gateway} {HOST}' >>/etc/hosts; rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*"
        )
        node.write("/usr/local/share/ca-certificates/kb-test.crt", (self.folder / "cert.pem").read_text())
        node.run("update-ca-certificates")
        node.write("/etc/apt/sources.list", f"deb [trusted=yes] https://{HOST}/debian/ /\n")


if __name__ == "__main__":
    serve(*sys.argv[1:])
