"""pkgs.k8s.io as a node sees it: a folder of packages, by https under that name, with a certificate of its own.

What is in the folder is the repositories' business (apt_repository.py, rpm_repository.py). Run as a program it is the web server:
`python3 package_server.py FOLDER ADDRESS CERT KEY`. Must not: know pytest, or be reachable from outside the lab.
"""

from __future__ import annotations

import functools
import http.server
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ..lab.lab import Lab
    from ..lab.node import Node

HOST = "pkgs.k8s.io"


def serve(folder: str, address: str, cert: str, key: str) -> None:
    """Serve a folder by https on port 443 of an address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer((address, 443), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def run_program(*argv: str, cwd: Optional[Path] = None) -> bytes:
    """A program of this machine; its output."""
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True).stdout


class SigningKey:
    """A key of GnuPG's in a home of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        home.mkdir(mode=0o700)
        self.run("--passphrase", "", "--quick-generate-key", name, "rsa2048", "sign", "never")

    def run(self, *words: str) -> bytes:
        """gpg with this key."""
        return run_program(
            "gpg", "--homedir", str(self.home), "--batch", "--yes", "--pinentry-mode", "loopback", *words
        )

    def close(self) -> None:
        """End the agent that gpg started for this home."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def export(self) -> bytes:
        """The public half, as repositories offer it."""
        return self.run("--armor", "--export")


class PackageServer:
    """Serve `www` in the lab's network, have a node trust it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.www = folder / "www"
        self._server: Optional[subprocess.Popen[bytes]] = None

    def _make_cert(self) -> None:
        run_program("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
                    "-keyout", str(self.folder / "key.pem"), "-out", str(self.folder / "cert.pem"))  # fmt: skip

    def start(self) -> None:
        """Serve until stop()."""
        from ..lab.node import wait_until

        self._make_cert()
        argv = [*self.lab.enter_argv(), sys.executable, __file__, str(self.www), self.lab.gateway]
        argv += [str(self.folder / "cert.pem"), str(self.folder / "key.pem")]
        self._server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probe = f"curl -fsSk https://{self.lab.gateway}/"
        wait_until(lambda: self.lab.exec(probe, check=False).ok, what="the package repository", timeout_s=15)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def offer_to(self, node: Node) -> None:
        """The node knows the server by its name and trusts its certificate."""
        node.run(f"echo '{self.lab.gateway} {HOST}' >>/etc/hosts")
        node.write("/usr/local/share/ca-certificates/kb-test.crt", (self.folder / "cert.pem").read_text())
        node.run("update-ca-certificates")


if __name__ == "__main__":
    serve(*sys.argv[1:])
