"""Runs a program from an image of the runtime without making a container: the image is mounted, and the program runs in a transient
unit of systemd.

A container made through the CRI would not do: the kubelet removes one that it does not know. The unit has no network and sees
nothing but the image's files; what it writes there goes with the mount. Everything is a look: afterwards the machine is as before,
also after a timeout or an exception. What a killed kb left behind is removed by the next mount_image.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.machine.services import SYSTEMD
from kubeup.node import runtime
from kubeup.node.crictl import crictl_argv, ctr_argv, last_words, unit_of
from kubeup.node.image_pulls import full_image_name

_RUN = Path("/run")
_PREFIX = "kb-image"
_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where a program without a folder is searched: the runtime's default, which the images of Kubernetes do not change."""
_MOUNT_TIMEOUT_S = 120.0
"""The snapshotter `native` copies the whole image."""


@frozen
class MountedImage:
    """The files of an image. why_not: why it could not be mounted, in words; "" if it is mounted at `root`."""

    image: str
    root: Path = Path("/nonexistent")
    why_not: str = ""


@frozen
class ProgramResult:
    """The end of a program. why_not: why it could not be run, or did not end by itself, in words."""

    code: int = 0
    stdout: str = ""
    stderr: str = ""
    why_not: str = ""


def runtime_name(image: str) -> str:
    """The name under which the runtime holds an image: with a digest, it is held without the tag."""
    name, at, digest = image.partition("@")
    return full_image_name(f"{re.sub(r':[^:/]*$', '', name)}@{digest}" if at else image)


# ---- mount


@contextlib.contextmanager
def mount_image(host: Host, socket: str, *, image: str) -> Iterator[MountedImage]:
    """Mount an image that the runtime has, for as long as the context lasts. Never raises; see MountedImage.why_not."""
    why_not = _find_obstacle(host, socket)
    if why_not:
        yield MountedImage(image, why_not=why_not)
        return
    snapshotter = _find_snapshotter(host, socket)
    _sweep(host, socket, snapshotter=snapshotter)
    made = host.query(["mktemp", "-d", str(_RUN / f"{_PREFIX}.{os.getpid()}.XXXXXX")])
    root = Path(made.stdout.strip() or "/nonexistent")
    if not made.ok or root.parent != _RUN:
        yield MountedImage(image, why_not=f"no folder could be made for it in {_RUN}: {last_words(made.stderr)}")
        return
    try:
        # writable, because systemd makes the folders /proc, /dev and so on, which an image need not have
        words = ("images", "mount", "--rw", *snapshotter, runtime_name(image), str(root))
        answer = host.query(ctr_argv(socket, *words), timeout_s=_MOUNT_TIMEOUT_S)
        why_not = "" if answer.ok else f"ctr could not mount {image}: {last_words(answer.stderr)}"
        yield MountedImage(image, root, why_not)
    finally:
        _unmount(host, socket, root=root, snapshotter=snapshotter)


def _find_obstacle(host: Host, socket: str) -> str:
    if unit_of(socket) != "containerd":
        return "only containerd can mount an image for kb, and this runtime is CRI-O"
    if not host.which("ctr"):
        return "there is no ctr in PATH, which mounts images"
    if not host.is_root_user():
        return "only root may mount an image"
    return ""


def _find_snapshotter(host: Host, socket: str) -> tuple[str, ...]:
    """The option that names the snapshotter of the runtime's pods. With another one, ctr would unpack the image once more."""
    info = host.query(crictl_argv(socket, "info"), timeout_s=30) if host.which("crictl") else None
    own = as_table(as_table(as_table(info.stdout).get("config")).get("containerd")) if info and info.ok else {}
    name = own.get("snapshotter")
    if not name:
        plugins = as_table((runtime.read_containerd_config(host, socket) or {}).get("plugins"))
        old = as_table(as_table(plugins.get("io.containerd.grpc.v1.cri")).get("containerd"))
        name = as_table(plugins.get("io.containerd.cri.v1.images")).get("snapshotter") or old.get("snapshotter")
    return ("--snapshotter", name) if isinstance(name, str) and name else ()


def _unmount(host: Host, socket: str, *, root: Path, snapshotter: Sequence[str]) -> None:
    """Remove the mount, its snapshot and lease (`--rm`), and the folder. Without a mount, ctr still removes the rest."""
    remove = ctr_argv(socket, "images", "unmount", "--rm", *snapshotter, str(root))
    if not host.query(remove, timeout_s=60).ok:
        host.query(["umount", "--lazy", str(root)])  # busy
        host.query(remove, timeout_s=60)
    host.query(["rmdir", str(root)])


def _sweep(host: Host, socket: str, *, snapshotter: Sequence[str]) -> None:
    """Remove the mounts of a kb that was killed."""
    try:
        names = host.list_dir(_RUN)
    except HostError:
        return
    for name in names:
        match = re.fullmatch(rf"{_PREFIX}\.(\d+)\.\w+", name)
        if match and not host.exists(Path("/proc") / match[1]):
            _unmount(host, socket, root=_RUN / name, snapshotter=snapshotter)


def is_in_image(host: Host, mounted: MountedImage, path: str) -> bool:  # noqa: PLR0917
    """Whether the image has a file or folder at the absolute `path`. A link counts, wherever it leads."""
    return host.stat(mounted.root / str(PurePosixPath(path)).lstrip("/")) is not None


# ---- run

_SANDBOX = (
    "PrivateNetwork=yes",
    "ProtectSystem=strict",
    "User=65534",
    "NoNewPrivileges=yes",
    # kube-apiserver's file carries this capability, and does not start where it cannot be had
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    "LimitCORE=0",
    "KillSignal=SIGKILL",  # after its time: the components wait on SIGTERM
)
_SYSTEMD_CODES = range(200, 244)
"""The exit codes with which systemd says that it could not start a program (systemd.exec(5))."""


@frozen
class Bind:
    """A file or folder of this machine that the program sees at `target`."""

    source: Path
    target: str
    is_writable: bool = False

    def settings(self) -> tuple[str, ...]:
        told = f"{self.source}:{self.target}"
        # strict makes what is bound read-only as well
        return (
            (f"BindPaths={told}", f"ReadWritePaths={self.target}")
            if self.is_writable
            else (f"BindReadOnlyPaths={told}",)
        )


def run_program(
    host: Host, mounted: MountedImage, *, argv: Sequence[str], timeout_s: int = 20, binds: Sequence[Bind] = ()
) -> ProgramResult:
    """Run a program of a mounted image to its end, as an unprivileged user; with `binds` as root without its rights, since what is
    bound is root's. Never raises."""
    why_not = mounted.why_not or _find_no_systemd(host)
    program = "" if why_not else _find_program(host, mounted, argv[0])
    if not why_not and not program:
        why_not = f"{mounted.image} has no program {argv[0]}"
    if why_not:
        return ProgramResult(why_not=why_not)
    unit = ["systemd-run", "--wait", "--pipe", "--quiet", "--collect"]
    unit += _settings(mounted, binds, lasts_s=timeout_s)
    begin = host.monotonic()
    answer = host.query([*unit, "--", program, *_words(argv)], timeout_s=timeout_s + 20)
    if answer.missing:
        return ProgramResult(why_not=last_words(answer.stderr))
    if not answer.ok and host.monotonic() - begin >= timeout_s:  # systemd-run's own code does not say so
        return ProgramResult(why_not=f"{program} does not end within {timeout_s} s")
    if answer.code in _SYSTEMD_CODES:
        return ProgramResult(why_not=f"systemd could not start it in a sandbox of its own (status {answer.code})")
    return ProgramResult(answer.code, answer.stdout, answer.stderr)


def _settings(mounted: MountedImage, binds: Sequence[Bind], *, lasts_s: int) -> list[str]:
    settings = [f"RootDirectory={mounted.root}", f"RuntimeMaxSec={lasts_s}", *_SANDBOX]
    if binds:
        settings.remove("User=65534")
    settings += [setting for bind in binds for setting in bind.settings()]
    return [word for setting in settings for word in ("-p", setting)]


def _words(argv: Sequence[str]) -> list[str]:
    return [word.replace("$", "$$") for word in argv[1:]]  # systemd replaces $NAME in a unit's command


# ---- in the background


def start_program(
    host: Host,
    mounted: MountedImage,
    *,
    unit: str,
    argv: Sequence[str],
    lasts_s: int,
    binds: Sequence[Bind] = (),
    joins: str = "",
) -> str:
    """Start a program that serves. It ends after lasts_s at the latest, also if kb was killed; end it with stop_program. unit: the
    name of its unit. joins: the unit in whose network it runs. Returns why it does not run, in words, or "". Never raises."""
    why_not = mounted.why_not or _find_no_systemd(host)
    program = "" if why_not else _find_program(host, mounted, argv[0])
    if not program:
        return why_not or f"{mounted.image} has no program {argv[0]}"
    words = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "-p", "Type=exec", "-p", "OOMScoreAdjust=900"]
    words += ["-p", f"JoinsNamespaceOf={joins}"] if joins else []
    words += _settings(mounted, binds, lasts_s=lasts_s)
    answer = host.query([*words, "--", program, *_words(argv)], timeout_s=30)
    return "" if answer.ok else f"systemd could not start {program}: {last_words(answer.stderr)}"


def find_process(host: Host, unit: str) -> int:
    """The ID of a started program's process; 0 if it has ended."""
    told = host.query(["systemctl", "show", unit, "-p", "MainPID", "--value"]).stdout.strip()
    return int(told) if told.isdecimal() else 0


def read_log(host: Host, unit: str, *, since: str) -> list[str]:
    """What a started program has logged. since: a moment, as journalctl takes it."""
    answer = host.query(["journalctl", "-u", unit, "--since", since, "-o", "cat", "--no-pager", "-n", "200"])
    return answer.stdout.splitlines()


def stop_program(host: Host, unit: str) -> None:
    """End a started program. Does nothing if it has ended."""
    host.query(["systemctl", "stop", unit], timeout_s=30)


def _find_no_systemd(host: Host) -> str:
    if not host.is_dir(Path(SYSTEMD.booted)):
        return "systemd does not run this machine"
    return "" if host.which("systemd-run") else "there is no systemd-run in PATH"


def _find_program(host: Host, mounted: MountedImage, name: str) -> str:  # noqa: PLR0917
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in _PATH]
    return next((place for place in places if place.startswith("/") and is_in_image(host, mounted, place)), "")
