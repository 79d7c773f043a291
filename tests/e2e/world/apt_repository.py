"""pkgs.k8s.io as a node's apt sees it: packages with the names, files and units of Kubernetes' own, signed.

Made of the local binaries; containerd and runc are Debian's packages. Must not: know pytest.
"""

from __future__ import annotations

import email.utils
import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .package_server import HOST, PackageServer, SigningKey, run_program

if TYPE_CHECKING:
    from ..lab.lab import Lab
    from ..lab.node import Node
    from ..lab.settings import Release

PROGRAMS = ("dpkg-deb", "dpkg-scanpackages", "gpg", "openssl")


class AptRepository(PackageServer):
    """Build it, serve it in the lab's network, have a node trust it."""

    def __init__(self, lab: Lab, release: Release, folder: Path) -> None:
        super().__init__(lab, folder)
        self.release = release
        self._key: SigningKey

    def build(self, *more: Release) -> None:
        """The repository of this minor and of each further release, and one of Debian's packages beside them."""
        from ..lab import image

        cores = [self._build_core(release) for release in (self.release, *more)]
        debian = self.www / "debian"
        debian.mkdir()
        for name in ("containerd", "runc"):
            shutil.copy(image.download_package(name, image.SUITE, self.folder / "apt"), debian)
        key = SigningKey(self.folder / "gnupg", "kb-test")
        for repository in (*cores, debian):
            self._index(repository, key)
        key.close()
        self._key = key

    def revise(self) -> None:
        """A later revision of this minor's kubelet, of Debian's containerd and of its runc beside the former ones: programs with other bytes,
        and other units, with drop-ins in both of systemd's folders."""
        debian = self.www / "debian"
        core = self.www / f"core:/stable:/v{self.release.minor}/deb"
        for package in [*core.glob("kubelet_*.deb"), *debian.glob("*.deb")]:
            root = self.folder / "revised" / package.stem
            root.mkdir(parents=True)
            run_program("dpkg-deb", "--raw-extract", str(package), str(root))
            _revise(root)
            later = package.with_name(f"later-{package.name}")
            run_program("dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), str(later))
        for repository in (core, debian):
            self._index(repository, self._key)
        self._key.close()

    def _build_core(self, release: Release) -> Path:
        from ..lab import image

        core = self.www / f"core:/stable:/v{release.minor}/deb"
        plain = release.version.lstrip("v")
        layers = image.ensure_variant(release.facts.containerd)
        plugins = [next(p for layer in layers if (p := layer / "usr/lib/cni" / name).exists())
                   for name in ("bridge", "host-local", "loopback", "portmap")]  # fmt: skip
        binaries = release.folder
        self._pack(
            core, "kubelet", plain, {"usr/bin/kubelet": binaries / "kubelet"}, depends="kubernetes-cni", is_unit=True
        )
        self._pack(core, "kubectl", plain, {"usr/bin/kubectl": binaries / "kubectl"})
        self._pack(core, "cri-tools", f"{release.minor}.0", {"usr/bin/crictl": binaries / "crictl"})
        self._pack(core, "kubernetes-cni", "1.7.1", {f"opt/cni/bin/{path.name}": path for path in plugins})
        return core

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
        from ..lab.node import KUBELET_UNIT

        root = self.folder / "packages" / repository.parent.name / name
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
        run_program("dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), str(repository))

    def _index(self, repository: Path, key: SigningKey) -> None:
        """Packages, and Release with its hash and a signature."""
        listed = run_program("dpkg-scanpackages", "--multiversion", ".", cwd=repository)
        (repository / "Packages").write_bytes(listed)
        release = (
            f"Origin: kb-test\nDate: {email.utils.formatdate(usegmt=True)}\nSHA256:\n"
            f" {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
        )
        (repository / "Release").write_text(release)
        key.run("--clearsign", "--output", str(repository / "InRelease"), str(repository / "Release"))
        (repository / "Release.key").write_bytes(key.export())

    def offer_to(self, node: Node) -> None:
        """Debian's packages come from here too."""
        node.run("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
        super().offer_to(node)
        node.write("/etc/apt/sources.list", f"deb [trusted=yes] https://{HOST}/debian/ /\n")


def _revise(root: Path) -> None:
    """Turn the content of an unpacked package into that of its next revision."""
    control = root / "DEBIAN/control"
    control.write_text(re.sub(r"^(Version: .*)$", r"\1+later1", control.read_text(), flags=re.MULTILINE))
    for folder in ("usr/bin", "usr/sbin"):
        for program in (root / folder).glob("*"):
            with program.open("ab") as file:
                file.write(b"\0")  # which no ELF program minds
    for unit in list(root.rglob("*.service")):
        unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nTimeoutStopSec=61\n"))
        for place in (unit.parent, root / "etc/systemd/system"):
            drop_in = place / f"{unit.name}.d" / "50-package.conf"
            drop_in.parent.mkdir(parents=True)
            drop_in.write_text("[Service]\nTimeoutStartSec=91\n")
    files = [
        path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and path.parent.name != "DEBIAN"
    ]
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in sorted(files))
    (root / "DEBIAN/md5sums").write_text("".join(sums))
