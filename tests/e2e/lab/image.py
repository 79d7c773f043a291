"""The file systems a node is made of: one Debian base and thin layers upon it, each built once and cached.

A layer is a folder that an overlay mount stacks: the base comes from debootstrap, a variant (another containerd, or none) is
what a recipe changed in an overlay upon the base, a version layer holds kubelet, kubectl and crictl of one Kubernetes release.
A layer's folder is named after a hash of its recipe: to change the recipe is to build anew, and nothing else ever is.
Must not: start nodes (node.py), know Kubernetes' images (images.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from . import openrc, settings
from .settings import LabError, Release
from .shell import sh

SUITE = "bookworm"
PACKAGES = (
    # a system that boots, and a way in
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "ca-certificates",
    # what kubelet, kube-proxy and kubeadm call
    "iproute2", "iptables", "nftables", "conntrack", "socat", "ethtool", "kmod", "procps",
    # the runtime of an ordinary node
    "containerd", "runc", "containernetworking-plugins",
    # for the tests, and for whoever looks around; busybox becomes the web image
    "curl", "iputils-ping", "bind9-dnsutils", "busybox", "less", "vim-tiny", "jq", "tcpdump", "strace",
)  # fmt: skip
RUNTIME_PACKAGES = ("containerd", "runc", "containernetworking-plugins")

# containerd's of other Debian suites, by the name tests use. 1.6 is the base's own.
CONTAINERD_SUITES = {"1.7": "trixie", "2.1": "sid"}
VARIANTS = ("1.6", *CONTAINERD_SUITES, "bare")

# haproxy and the libraries that the base lacks; the load balancer's image is made of them (images.py).
HAPROXY_PACKAGES = ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")

# What CRI-O calls, and the libraries of it that the base lacks. CRI-O itself is no package of Debian's: $KB_E2E_BIN/crio has it.
CRIO_PACKAGES = ("conmon", "libglib2.0-0")

# OpenRC in the place of systemd, as far as Debian has it: sysvinit-core's init starts it.
OPENRC_PACKAGES = ("openrc", "sysvinit-core", "initscripts", "insserv", "libeinfo1", "librc1")

# A second package manager beside apt: dnf, rpmkeys (which it calls to check signatures), and an RPM data base of its own.
DNF_PACKAGES = ("dnf", "rpm")

# Services that only cost time in a node that lives for minutes.
MASKED_UNITS = (
    "console-getty.service", "getty.target", "systemd-resolved.service", "systemd-networkd.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
)  # fmt: skip

# nspawn mounts cgroup v1 read-only, and a kubelet needs it writable before it starts, after every boot.
CGROUPS_UNIT = """\
[Unit]
Description=Make the cgroup controllers writable (test node)
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup /sys/fs/cgroup/*; do ! mountpoint -q $c || mount -o remount,bind,rw $c; done'

[Install]
WantedBy=sysinit.target
"""

# Without CAP_SYS_RESOURCE the kernel refuses a negative oom_score_adj and runc gives up on every sandbox. Few configurations of
# containerd ask it not to, and tests need the others too; so runc itself is wrapped, on such machines only.
RUNC_WRAPPER = """\
#!/bin/sh
# Test node: this machine may not lower oom_score_adj, and has no CAP_SYS_RESOURCE to give.
bundle=
for word; do
    [ "$bundle" != next ] || bundle=$word
    case $word in --bundle | -b) bundle=next ;; esac
done
if [ -f "$bundle/config.json" ]; then
    sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/; s/, *"CAP_SYS_RESOURCE"//g; s/"CAP_SYS_RESOURCE",//g' "$bundle/config.json"
fi
exec REAL "$@"
"""

SSHD_CONFIG = "PermitRootLogin prohibit-password\nUseDNS no\nMaxStartups 100\nMaxSessions 100\n"


# ------------------------------------------------------------------------------------------------ caching


def hash_recipe(*parts: object) -> str:
    """A short name for what a build is made from."""
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:12]


def describe_file(path: Path) -> str:
    """What tells one version of a large file from another, without reading it."""
    stat = path.stat()
    return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Give `target`, building it the first time: into a folder beside it, renamed when complete, under a lock."""
    if target.exists():
        return target
    with lock_file(target.parent / f".{target.name}.lock"):
        if target.exists():
            return target
        draft = target.parent / f".{target.name}.draft"
        remove_tree(draft)
        draft.mkdir(parents=True)
        build(draft)
        draft.rename(target)
    return target


def remove_tree(path: Path) -> None:
    """Remove a folder and what is below it, after unmounting whatever is mounted there."""
    for mount in reversed(list_mounts(path)):
        sh(["umount", "--lazy", mount])
    if path.exists():
        shutil.rmtree(path)


def list_mounts(below: Path) -> list[str]:
    """The mount points at or below a folder, in the order in which they were mounted."""
    top = str(below.resolve())
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [p for p in points if p == top or p.startswith(top + "/")]


def layers_dir() -> Path:
    """Where layers are cached."""
    return settings.cache_dir() / "layers"


# ------------------------------------------------------------------------------------------------ Debian


def read_mirror() -> str:
    """The mirror that this machine's apt takes Debian itself from."""
    fields = "$(SITE)|$(COMPONENT)|$(CODENAME)|$(SUITE)"
    lines = sh(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).stdout.splitlines()
    for line in lines:
        site, component, codename, _ = line.split("|")
        if component == "main" and codename in (SUITE, "trixie", "sid", "forky") and "security" not in site:
            return site
    raise LabError("apt of this machine has no mirror of Debian")


def base_key() -> str:
    """The hash of everything the base is made from."""
    return hash_recipe(SUITE, PACKAGES, MASKED_UNITS, CGROUPS_UNIT, SSHD_CONFIG)


def ensure_base() -> Path:
    """The Debian base system (a minute the first time)."""
    return build_once(layers_dir() / f"base-{base_key()}", _build_base)


def _build_base(root: Path) -> None:
    """Bootstrap Debian and set it up as a node that boots without asking anything."""
    script = Path("/usr/share/debootstrap/scripts") / SUITE
    if not script.exists():
        raise LabError(f"debootstrap has no script for {SUITE}")
    sh(["debootstrap", "--variant=minbase", "--include=" + ",".join(PACKAGES), SUITE, str(root), read_mirror()],
       timeout_s=1800)  # fmt: skip
    shutil.rmtree(root / "var/cache/apt/archives")
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    (root / "etc/ssh/sshd_config.d/e2e.conf").write_text(SSHD_CONFIG)
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    for name in MASKED_UNITS:
        link = root / "etc/systemd/system" / name
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    unit = root / "etc/systemd/system/e2e-cgroups.service"
    unit.write_text(CGROUPS_UNIT)
    wants = root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / unit.name).symlink_to(f"/etc/systemd/system/{unit.name}")
    # Debian keeps the plugins in /usr/lib/cni, everybody else in /opt/cni/bin: offer both.
    plugins = root / "opt/cni/bin"
    plugins.mkdir(parents=True)
    for plugin in sorted((root / "usr/lib/cni").iterdir()):
        (plugins / plugin.name).symlink_to(f"/usr/lib/cni/{plugin.name}")


@contextmanager
def mount_overlay(root: Path, *, lower: list[Path], upper: Path, work: Path) -> Iterator[Path]:
    """Mount layers (topmost first) with `upper` to take the changes, for the time of the block."""
    for folder in (root, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    stack = ":".join(str(layer) for layer in lower)
    sh(
        [
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={stack},upperdir={upper},workdir={work}",
            str(root),
        ]
    )
    try:
        yield root
    finally:
        sh(["umount", str(root)])


def _build_layer(draft: Path, change: Callable[[Path], None], *, lower: Optional[list[Path]] = None) -> None:
    """Make `draft` the folder of what `change` does to the base, or to the layers `lower`."""
    scratch = draft.parent / f"{draft.name}.scratch"
    remove_tree(scratch)
    try:
        stack = lower or [ensure_base()]
        with mount_overlay(scratch / "root", lower=stack, upper=draft, work=scratch / "work") as root:
            change(root)
    finally:
        remove_tree(scratch)


def haproxy_key() -> str:
    """The hash of what the load balancer's image is made from."""
    return hash_recipe(base_key(), HAPROXY_PACKAGES)


def ensure_haproxy() -> list[Path]:
    """The layers (topmost first) of the base with Debian's haproxy in it."""
    target = layers_dir() / f"haproxy-{haproxy_key()}"
    return [build_once(target, lambda draft: _build_layer(draft, _add_haproxy)), ensure_base()]


def _add_haproxy(root: Path) -> None:
    _add_packages(root, HAPROXY_PACKAGES)


def variant_key(variant: str) -> str:
    """The hash of a variant's recipe and of the base below it."""
    return hash_recipe(base_key(), variant, CONTAINERD_SUITES.get(variant))


def ensure_variant(variant: str) -> list[Path]:
    """The layers (topmost first) of a node with that containerd, or of one without any ("bare")."""
    if variant not in VARIANTS:
        raise LabError(f"no such containerd variant: {variant} (there are {', '.join(VARIANTS)})")
    if variant == "1.6":
        return [ensure_base()]
    change = _remove_runtime if variant == "bare" else _containerd_from(variant)
    target = layers_dir() / f"runtime-{variant}-{variant_key(variant)}"
    return [build_once(target, lambda draft: _build_layer(draft, change)), ensure_base()]


def ensure_dnf(variant: str) -> list[Path]:
    """The layers (topmost first) of that variant with Debian's dnf in it."""
    layers = ensure_variant(variant)
    target = layers_dir() / f"dnf-{variant}-{hash_recipe(variant_key(variant), DNF_PACKAGES)}"
    return [build_once(target, lambda draft: _build_layer(draft, _add_dnf, lower=layers)), *layers]


def _add_dnf(root: Path) -> None:
    """With all that it depends on, which is much: this machine's apt finds and fetches it, the node's dpkg installs it."""
    folder = settings.cache_dir() / "apt" / f"{SUITE}-dnf"
    with lock_file(folder.parent / f".{folder.name}.lock"):
        apt = [*prepare_apt(SUITE, folder), f"-oDir::State::status={root}/var/lib/dpkg/status"]
        sh([*apt, "update"], timeout_s=600)
        archives = folder / "cache/archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        sh([*apt, "install", "-y", "--download-only", "--no-install-recommends", *DNF_PACKAGES], timeout_s=600)
        fetched = root / "tmp/dnf"
        shutil.copytree(archives, fetched, ignore=shutil.ignore_patterns("partial", "lock"))
    sh(["chroot", str(root), "sh", "-c", "DEBIAN_FRONTEND=noninteractive dpkg --install /tmp/dnf/*.deb"], timeout_s=600)
    shutil.rmtree(fetched)


def ensure_crio() -> list[Path]:
    """The layers (topmost first) of the base with CRI-O in the place of containerd; runc and the CNI plugins are the base's."""
    programs = [settings.find_crio(name) for name in settings.CRIO_BINARIES]
    key = hash_recipe(base_key(), CRIO_PACKAGES, *(describe_file(path) for path in programs))
    return [build_once(layers_dir() / f"crio-{key}", lambda draft: _build_layer(draft, _add_crio)), ensure_base()]


def _add_crio(root: Path) -> None:
    sh(["chroot", str(root), "dpkg", "--purge", "containerd"])
    _add_packages(root, CRIO_PACKAGES)
    for name in settings.CRIO_BINARIES:
        target = root / "usr/local/bin" / name
        shutil.copyfile(settings.find_crio(name), target)
        target.chmod(0o755)


def ensure_openrc() -> list[Path]:
    """The layers (topmost first) of the base with OpenRC, and without systemd."""
    key = hash_recipe(base_key(), OPENRC_PACKAGES, openrc.FILES)
    return [build_once(layers_dir() / f"openrc-{key}", lambda draft: _build_layer(draft, _add_openrc)), ensure_base()]


def _add_openrc(root: Path) -> None:
    apt = settings.cache_dir() / "apt" / SUITE
    fetched = root / "tmp/openrc"
    fetched.mkdir()
    for name in OPENRC_PACKAGES:
        shutil.copy(download_package(name, SUITE, apt), fetched)
    install = (
        "dpkg --purge --force-depends --force-remove-essential systemd-sysv systemd && dpkg --install /tmp/openrc/*.deb"
    )
    sh(["chroot", str(root), "sh", "-c", f"export DEBIAN_FRONTEND=noninteractive; {install}"], timeout_s=600)
    shutil.rmtree(fetched)
    openrc.write_services(root)


def _add_packages(root: Path, names: Sequence[str]) -> None:
    """Lay the files of packages over a base, without telling dpkg."""
    for name in names:
        apt = settings.cache_dir() / "apt" / SUITE
        unpacked = apt / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        # not straight into the base: a package's /lib would take the place of the link /lib
        sh(["dpkg-deb", "--extract", str(download_package(name, SUITE, apt)), str(unpacked)])
        for part in ("usr", "lib"):
            if (unpacked / part).is_dir():
                shutil.copytree(
                    unpacked / part, root / "usr" / ("" if part == "usr" else part), symlinks=True, dirs_exist_ok=True
                )


def _remove_runtime(root: Path) -> None:
    """Take containerd, runc and the CNI plugins off, as if they had never been installed."""
    sh(["chroot", str(root), "dpkg", "--purge", *RUNTIME_PACKAGES])
    for leftover in ("opt/cni", "etc/containerd", "etc/cni", "var/lib/containerd"):
        shutil.rmtree(root / leftover, ignore_errors=True)


def _containerd_from(variant: str) -> Callable[[Path], None]:
    """A change that lays another Debian suite's containerd over the base's (it runs with the base's runc and libc)."""

    def change(root: Path) -> None:
        suite = CONTAINERD_SUITES[variant]
        apt = settings.cache_dir() / "apt" / suite
        package = download_package("containerd", suite, apt)
        unpacked = apt / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        sh(["dpkg-deb", "--extract", str(package), str(unpacked)])
        shutil.copytree(unpacked / "usr/bin", root / "usr/bin", dirs_exist_ok=True)
        version = sh(["chroot", str(root), "containerd", "--version"]).stdout.split()[2].lstrip("v")
        if version.split(".")[0] != variant.split(".")[0]:
            raise LabError(f"Debian {suite} has containerd {version} by now, not {variant}: correct CONTAINERD_SUITES")

    return change


def prepare_apt(suite: str, folder: Path, *, architecture: Optional[str] = None) -> list[str]:
    """The start of a command line of an apt for one suite, that leaves this machine's sources and lists alone."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {read_mirror()} {suite} main\n")
    options = [
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={folder}/lists",
        f"Dir::Cache={folder}/cache",
        "APT::Sandbox::User=root",
    ]
    if architecture:
        options += [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
    return ["apt-get", *(f"-o{option}" for option in options)]


def download_package(name: str, suite: str, folder: Path, *, architecture: Optional[str] = None) -> Path:
    """Fetch one package of a suite, with its lists in `folder` too."""
    # What this machine has installed counts as a candidate, though no source of the suite may have that version.
    apt = [*prepare_apt(suite, folder, architecture=architecture), "-oDir::State::status=/dev/null"]
    for old in folder.glob("*.deb"):
        old.unlink()
    sh([*apt, "update"], timeout_s=600)
    sh(
        ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(folder), *apt, "download", name],
        timeout_s=600,
    )
    (package,) = folder.glob("*.deb")
    return package


# ------------------------------------------------------------------------------------------------ Kubernetes


def ensure_release_layer(release: Release, *, kubeadm: bool) -> Path:
    """The layer with kubelet, kubectl and crictl in /usr/bin, and, if wanted, kubeadm in /usr/local/bin."""
    binaries = {name: f"usr/bin/{name}" for name in settings.NODE_BINARIES}
    if kubeadm:
        binaries["kubeadm"] = "usr/local/bin/kubeadm"
    key = hash_recipe(*(describe_file(release.binary(name)) for name in binaries))

    def build(draft: Path) -> None:
        draft.chmod(0o755)
        for name, place in binaries.items():
            target = draft / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release.binary(name), target)
            target.chmod(0o755)

    suffix = "-kubeadm" if kubeadm else ""
    return build_once(layers_dir() / f"kubernetes-{release.minor}{suffix}-{key}", build)


def wrap_runc(root: Path) -> None:
    """Put RUNC_WRAPPER in the place of a node's runc, if there is one and this machine needs it."""
    real = root / "usr/sbin/runc"
    if settings.has_cap_sys_resource() or not real.exists():
        return
    hidden = root / "usr/libexec/e2e-runc"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    os.replace(real, hidden)
    real.write_text(RUNC_WRAPPER.replace("REAL", "/usr/libexec/e2e-runc"))
    real.chmod(0o755)
