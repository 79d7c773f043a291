"""pkgs.k8s.io as a node's dnf sees it: RPMs with the names, files and requirements of Kubernetes' own, signed.

Made of the local binaries by rpmbuild; containerd and runc are RPMs of Debian's programs in a second repository, the
distribution's. There also is the one stand-in: a node is Debian with a dnf on it, so its RPM data base is empty, and what
Kubernetes' packages require of a distribution (iptables, socat, ...) is there without rpm knowing. `debian-itself`, which
has no files, says so to rpm; dnf resolves the requirements by it as it would by Fedora's packages.
Must not: know pytest.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from .package_server import HOST, PackageServer, SigningKey, run_program

if TYPE_CHECKING:
    from ..lab.lab import Lab
    from ..lab.node import Node
    from ..lab.settings import Release

PROGRAMS = ("rpmbuild", "rpmsign", "createrepo_c", "gpg", "openssl")
PLUGINS = ("bridge", "host-local", "loopback", "portmap")
REQUIRED_OF_A_DISTRIBUTION = ("iptables", "iproute", "socat", "ethtool", "conntrack-tools", "util-linux")
NEWER = "99"
"""The patch number of a kubelet that is in the repository too, and that no upgrade of the machine may bring."""

# What rpmbuild would do to programs it built itself: strip, compress, take apart, look for requirements.
SPEC = """\
%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
%global _build_id_links none
%global _binary_payload w.ufdio
Name: {name}
Version: {version}
Release: {release}
Summary: {name}
License: Apache-2.0
AutoReqProv: no
{requires}
%description
{name}
%install
mkdir -p %{{buildroot}}
cp -a {root}/. %{{buildroot}}/
%files
{files}
"""
DISTRIBUTION_REPO = f"""\
[distribution]
name=What a distribution of RPMs has
baseurl=https://{HOST}/distribution/
enabled=1
gpgcheck=0
"""


class RpmRepository(PackageServer):
    """Build it, serve it in the lab's network, have a node trust it."""

    def __init__(self, lab: Lab, release: Release, folder: Path) -> None:
        super().__init__(lab, folder)
        self.release = release
        self.core = self.www / f"core:/stable:/v{release.minor}/rpm"
        self.key, self.foreign_key = (SigningKey(folder / name, f"kb-{name}") for name in ("gnupg", "foreign"))

    def stop(self) -> None:
        super().stop()
        for key in (self.key, self.foreign_key):
            key.close()

    def build(self) -> None:
        """The repository of this minor, all of it signed, and the distribution's beside it."""
        from ..lab import image

        plain = self.release.version.lstrip("v")
        binaries = self.release.folder
        layers = image.ensure_variant(self.release.facts.containerd)

        def from_layers(path: str) -> Path:
            return next(layer / path for layer in layers if (layer / path).exists())

        self._pack_kubelet(plain)
        self._pack_kubelet(f"{self.release.minor}.{NEWER}")
        self._pack(self.core, "kubectl", plain, {"usr/bin/kubectl": binaries / "kubectl"})
        self._pack(self.core, "cri-tools", f"{self.release.minor}.0", {"usr/bin/crictl": binaries / "crictl"})
        plugins = {f"opt/cni/bin/{name}": from_layers(f"usr/lib/cni/{name}") for name in PLUGINS}
        self._pack(self.core, "kubernetes-cni", "1.7.1", plugins)
        self.sign(self.key)
        (self.core / "repodata/repomd.xml.key").write_bytes(self.key.export())

        distribution = self.www / "distribution"
        programs = ("containerd", "containerd-shim-runc-v2", "ctr")
        files: dict[str, Union[Path, bytes]] = {f"usr/bin/{name}": from_layers(f"usr/bin/{name}") for name in programs}
        unit = from_layers("usr/lib/systemd/system/containerd.service")
        files["usr/lib/systemd/system/containerd.service"] = unit.read_bytes()
        # a distribution's own settings: plugins where it keeps them, and nothing for a kubelet
        config = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "/usr/libexec/cni/"\n'
        files["etc/containerd/config.toml"] = config.encode()
        self._pack(distribution, "containerd", self.release.facts.containerd, files, requires=("runc",))
        self._pack(distribution, "runc", "1.1", {"usr/sbin/runc": from_layers("usr/sbin/runc")})
        self._pack(distribution, "debian-itself", "12", {}, provides=REQUIRED_OF_A_DISTRIBUTION)
        run_program("createrepo_c", "-q", str(distribution))

    def _pack_kubelet(self, version: str) -> None:
        """As its package is: a unit that nobody enables, the folder of static pods, and a file for flags."""
        from ..lab.node import KUBELET_UNIT

        files: dict[str, Union[Path, bytes]] = {
            "usr/bin/kubelet": self.release.folder / "kubelet",
            "usr/lib/systemd/system/kubelet.service": KUBELET_UNIT.encode(),
            "etc/sysconfig/kubelet": b"KUBELET_EXTRA_ARGS=\n",
        }
        requires = ("kubernetes-cni", *REQUIRED_OF_A_DISTRIBUTION)
        self._pack(self.core, "kubelet", version, files, requires=requires, folder="etc/kubernetes/manifests")

    def _pack(
        self,
        repository: Path,
        name: str,
        version: str,
        files: Mapping[str, Union[Path, bytes]],
        *,
        requires: Sequence[str] = (),
        provides: Sequence[str] = (),
        folder: str = "",
    ) -> None:
        top = self.folder / "packages" / f"{name}-{version}"
        root = top / "root"
        root.mkdir(parents=True)
        lines = []
        for target, source in files.items():
            place = root / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                place.write_bytes(source)
            else:
                shutil.copy(source, place)
            mode = "0644" if isinstance(source, bytes) else "0755"
            config = "%config(noreplace) " if target.startswith("etc/") else ""
            lines.append(f"{config}%attr({mode}, root, root) /{target}")
        if folder:
            (root / folder).mkdir(parents=True)
            lines.append(f"%dir %attr(0755, root, root) /{folder}")
        told = [*(f"Requires: {one}" for one in requires), *(f"Provides: {one}" for one in provides)]
        spec = top / f"{name}.spec"
        spec.write_text(SPEC.format(name=name, version=version, release="150500.1.1", requires="\n".join(told),
                                    root=root, files="\n".join(lines)))  # fmt: skip
        argv = ["rpmbuild", "-bb", "--quiet", "--target", "x86_64", "--define", f"_topdir {top}/build", str(spec)]
        run_program(*argv)
        (package,) = (top / "build/RPMS").rglob("*.rpm")
        repository.mkdir(parents=True, exist_ok=True)
        shutil.move(package, repository / package.name)
        shutil.rmtree(top)

    # -------------------------------------------------------------------------------------------- signatures

    def sign(self, key: Optional[SigningKey], name: str = "*") -> None:
        """Sign packages anew with a key, or take their signatures away, and list them anew."""
        for package in sorted(self.core.glob(f"{name}.rpm")):
            run_program("rpmsign", "--delsign", str(package))
            if key is not None:
                macros = (f"_gpg_name {key.name}", f"_gpg_path {key.home}", f"__gpg {shutil.which('gpg')}")
                defines = [word for macro in macros for word in ("--define", macro)]
                run_program("rpmsign", "--addsign", *defines, str(package))
        told = self.core / "repodata/repomd.xml.key"
        public = told.read_bytes() if told.exists() else b""
        run_program("createrepo_c", "-q", str(self.core))
        told.write_bytes(public)

    def offer_to(self, node: Node) -> None:
        """The distribution's packages come from here too."""
        super().offer_to(node)
        node.write("/etc/yum.repos.d/distribution.repo", DISTRIBUTION_REPO)
