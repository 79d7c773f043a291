"""The node's programs from the distribution's package manager: apt or dnf, with Kubernetes' own repository.

Owns the repository's files and the package names. Must not judge what is installed (programs.py does that).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kubeup.airgap.programs import Standing
from kubeup.config import presets
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult, Host
from kubeup.node import crictl

_UPSTREAM = {
    "apt": "https://pkgs.k8s.io/core:/stable:/v{minor}/deb/",
    "dnf": "https://pkgs.k8s.io/core:/stable:/v{minor}/rpm/",
}
PACKAGES = {
    "apt": {"containerd": "containerd", "runc": "runc", "cni": "kubernetes-cni", "crictl": "cri-tools"},
    "dnf": {"containerd": "containerd", "runc": "runc", "cni": "kubernetes-cni", "crictl": "cri-tools"},
}
HELD = ("kubelet", "kubectl")
"""An upgrade of the machine must not upgrade the cluster. The dnf repository excludes these packages for the same
reason."""
_OF_SIGNATURES = re.compile(
    r"is not signed|PGP check for package|Failing package is|not correct for this package|NO_PUBKEY|BADSIG|EXPKEYSIG"
)
_TELLING = re.compile(r"^E: |Curl error|Unable to find a match|No match for argument|nothing provides|conflicts with")
APT_LIST = Path("/etc/apt/sources.list.d/kb-kubernetes.list")
APT_KEY = Path("/etc/apt/keyrings/kb-kubernetes.asc")
DNF_REPO = Path("/etc/yum.repos.d/kb-kubernetes.repo")


def install(host: Host, manager: str, *, wanted: Sequence[Standing], version: str, preset_name: str) -> list[str]:
    """Install the packages of the wanted files; return the package names. Raises HostError: no-package-manager,
    packages-not-installed, packages-not-trusted, repository-key-missing."""
    _require(host, manager)
    _add_repository(host, manager, version=version, preset=presets.find_preset(preset_name))
    names = plan_packages(manager, wanted, version=version)
    commands = {
        "apt": (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", *names]),
        # --refresh, because dnf caches a repository's metadata for two days; --setopt, because dnf 5 lacks
        # --disableexcludes
        "dnf": (["dnf", "install", "-y", "--refresh", "--setopt=disable_excludes=kb-kubernetes", *names],),
    }
    for argv in commands[manager]:
        _run(host, argv)
    held = [name for name in HELD if any(one.item.component == name for one in wanted)]
    if manager == "apt" and held:
        host.run(["apt-mark", "hold", *held])
    return names


def fetch(host: Host, manager: str, *, names: Sequence[str], version: str, preset_name: str) -> None:
    """Have the package manager fetch kubelet or kubectl of a version, and verify the signatures. Nothing is installed, and what is held
    stays held. Raises HostError, as install."""
    _require(host, manager)
    _add_repository(host, manager, version=version, preset=presets.find_preset(preset_name))
    words = ("--download-only",) if manager == "apt" else ("--downloadonly",)
    for argv in _commands(host, manager, names=names, version=version, words=words):
        _run(host, argv)


def install_fetched(host: Host, manager: str, *, names: Sequence[str], version: str) -> None:
    """Install what fetch() has fetched. apt drops the hold of what it installs, so they are held again. Raises HostError."""
    try:
        words = ("--no-download",) if manager == "apt" else ("--cacheonly",)
        for argv in _commands(host, manager, names=names, version=version, words=words):
            _run(host, argv)
    finally:
        hold(host, manager, names=names)


def hold(host: Host, manager: str, *, names: Sequence[str]) -> None:
    """Have apt hold these packages, those that it does not hold already: a run that was cut off may have left one without. dnf's are kept
    by the repository's file."""
    if manager == "apt":
        held = host.query(["apt-mark", "showhold"]).stdout.split()
        missing = [name for name in names if name not in held]
        if missing:
            host.run(["apt-mark", "hold", *missing])


def place_of(name: str) -> Path:
    """Where the package puts its program. Source: kubelet.spec and kubectl.spec of kubernetes/release"""
    return Path("/usr/bin") / name


def _commands(
    host: Host, manager: str, *, names: Sequence[str], version: str, words: Sequence[str]
) -> Iterator[list[str]]:
    """The package is installed once more where the manager has it already: after a way back, another program is in its place."""
    plain = version.lstrip("v")
    if manager == "apt":
        if "--download-only" in words:
            yield ["apt-get", "update", "-q"]
        options = ["-q", "-y", "--no-install-recommends", "--allow-change-held-packages", "--reinstall", *words]
        yield ["apt-get", "install", *options, *(f"{name}={plain}-*" for name in names)]
        return
    # --setopt, because dnf 5 lacks --disableexcludes
    options = ["-y", *(["--refresh"] if "--downloadonly" in words else []), "--setopt=disable_excludes=kb-kubernetes"]
    has = {name for name in names if _rpm_version(host, name) == plain}
    for verb, chosen in (("install", [name for name in names if name not in has]), ("reinstall", sorted(has))):
        if chosen:
            yield ["dnf", verb, *options, *words, *(f"{name}-{plain}" for name in chosen)]


def owns(host: Host, path: Path) -> bool:
    """Whether the package manager put it there."""
    if host.which("dpkg-query"):
        return host.query(["dpkg-query", "--search", str(path)]).ok
    return bool(host.which("rpm")) and host.query(["rpm", "--query", "--file", str(path)]).ok


def is_intact(host: Host, path: Path) -> bool:
    """Whether the package manager put it there, and it is still as in its package, as far as that has checksums. Source: dpkg(1), rpm(8),
    on --verify: the third letter of a line tells of the content."""
    if host.which("dpkg-query"):
        found = host.query(["dpkg-query", "--search", str(path)])
        lines = [line for line in found.stdout.splitlines() if not line.startswith("diversion by ")]
        names = [name for line in lines for name in line.rpartition(": ")[0].split(", ") if name]
        words = ["dpkg", "--verify", *names] if names else []
    else:
        words = ["rpm", "--verify", "--file", str(path)] if owns(host, path) else []
    told = host.query(words).stdout.splitlines() if words else []
    return bool(words) and not any(line[2:3] == "5" and line.endswith(f" {path}") for line in told)


def _rpm_version(host: Host, name: str) -> str:
    shown = host.query(["rpm", "--query", "--queryformat", "%{VERSION}", name])
    return shown.stdout.strip() if shown.ok else ""


def _run(host: Host, argv: Sequence[str]) -> None:
    done = host.run(argv, timeout_s=1800, env={"DEBIAN_FRONTEND": "noninteractive"})
    if not done.ok:
        raise _failure(argv, done)


def _require(host: Host, manager: str) -> None:
    program = "apt-get" if manager == "apt" else "dnf"
    if not host.which(program):
        raise HostError(
            f"packages.source is {manager}",
            cause=f"there is no {program} on this machine",
            remedy=f"choose another source: {'dnf' if manager == 'apt' else 'apt'}, bundle or download",
            code="no-package-manager",
        )


def _failure(argv: Sequence[str], done: CommandResult) -> HostError:
    """The relevant part of the error output: the last line of either manager is about something else, or about
    nothing."""
    lines = [line.strip().lstrip("->").strip() for line in f"{done.stderr}\n{done.stdout}".splitlines()]
    # apt only warns about a source that its owner chose to trust
    signature = [line for line in dict.fromkeys(lines) if _OF_SIGNATURES.search(line) and not line.startswith("W: ")]
    telling = [line for line in dict.fromkeys(lines) if _TELLING.search(line)]
    if signature:
        return HostError(
            f"{' '.join(argv[:2])} was offered packages that the repository's key did not sign",
            cause="; ".join(signature),
            remedy="choose another source or preset, or ask its operator; nothing from it was installed",
            code="packages-not-trusted",
        )
    is_interrupted = any("dpkg was interrupted" in line for line in telling)
    return HostError(
        f"{' '.join(argv[:2])} failed",
        cause="; ".join(telling[:3]) or crictl.last_words(done.stderr or done.stdout),
        remedy="finish what was interrupted: dpkg --configure -a"
        if is_interrupted
        else f"run it by hand to see more: {' '.join(argv)}",
        code="packages-not-installed",
    )


def release(host: Host) -> None:
    """Let apt upgrade the packages held by install() again; the packages themselves stay."""
    if host.which("apt-mark"):
        host.run(["apt-mark", "unhold", *HELD])


def plan_packages(manager: str, wanted: Sequence[Standing], *, version: str) -> list[str]:
    """The packages that contain the wanted files, with kubelet and kubectl at the cluster's version."""
    plain = version.lstrip("v")
    names = []
    for component in dict.fromkeys(one.item.component for one in wanted):
        if component in ("kubelet", "kubectl"):
            names.append(f"{component}={plain}-*" if manager == "apt" else f"{component}-{plain}")
        else:
            names.append(PACKAGES[manager][component])
    return names


def _add_repository(host: Host, manager: str, *, version: str, preset: presets.Preset) -> None:
    minor = ".".join(version.lstrip("v").split(".")[:2])
    rows = preset.apt if manager == "apt" else preset.dnf
    base = str(rows.get("kubernetes") or _UPSTREAM[manager]).format(minor=minor)
    if manager == "dnf":
        text = f"[kb-kubernetes]\nname=Kubernetes {minor}\nbaseurl={base}\nenabled=1\ngpgcheck=1\ngpgkey={base}repodata/repomd.xml.key\nexclude=kubelet kubeadm kubectl cri-tools kubernetes-cni\n"
        host.write_file(DNF_REPO, text)
        return
    answer = host.http_get(f"{base}Release.key", timeout_s=30)
    if answer.status != 200 or b"BEGIN PGP" not in answer.body:
        raise HostError(
            f"{base} has no Release.key",
            cause=f"it answers with status {answer.status}",
            remedy="choose another preset, or add the repository by hand and use packages: {source: none}",
            code="repository-key-missing",
        )
    if _has_source(host, base):
        host.remove(APT_LIST)  # apt reads no sources at all where two name the same place with different keys
        return
    host.write_file(APT_KEY, answer.body)
    host.write_file(APT_LIST, f"deb [signed-by={APT_KEY}] {base} /\n")


def _has_source(host: Host, base: str) -> bool:
    """Whether another file of apt's sources has this repository."""
    folder = APT_LIST.parent
    files = [Path("/etc/apt/sources.list"), *(folder / name for name in host.list_dir(folder))]
    others = [path for path in files if path != APT_LIST and path.suffix in (".list", ".sources") and host.exists(path)]
    return any(
        base.rstrip("/") in line and not line.lstrip().startswith("#")
        for text in map(host.read_text, others)
        if not re.search(r"(?im)^enabled:\s*no\b", text)
        for line in text.splitlines()
    )
