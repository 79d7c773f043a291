"""The service manager of this machine: systemd or OpenRC.

This module knows the commands for a service, and how commands and logs are named in a remedy, so that a remedy never names a
program that the machine does not have. When a service is started or stopped is decided elsewhere. Mirrors
cmd/kubeadm/app/util/initsystem.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import CommandResult, Host

_UNIT = "UNIT"
"""A placeholder for the service's name in a command."""


@frozen
class ServiceManager:
    """The commands of a service manager; () is a command that it does not need."""

    name: str
    programs: tuple[str, ...]
    booted: str
    """A folder that exists while this manager runs the machine; "" if its programs are proof enough. A container may have systemctl
    but no systemd."""
    commands: Mapping[str, tuple[str, ...]]
    """is-active, start, stop, restart, enable, enable-now, show."""
    reload: tuple[str, ...]
    unit: str
    """How it names a service."""
    environment: str
    """Where a person sets an environment variable of a service."""

    def argv(self, verb: str, unit: str) -> tuple[str, ...]:
        return tuple(word.replace(_UNIT, unit) for word in self.commands[verb])

    def say(self, verb: str, unit: str) -> str:
        """The command as typed in a shell."""
        return " ".join(self.argv(verb, unit))

    def name_unit(self, unit: str) -> str:
        return self.unit.replace(_UNIT, unit)

    def say_environment(self, unit: str) -> str:
        """Where to set an environment variable of the service; the variable itself follows."""
        return self.environment.replace(_UNIT, unit)


SYSTEMD = ServiceManager(
    "systemd",
    programs=("systemctl",),
    booted="/run/systemd/system",
    commands={
        "is-active": ("systemctl", "is-active", _UNIT),
        "start": ("systemctl", "start", _UNIT),
        "stop": ("systemctl", "stop", _UNIT),
        "restart": ("systemctl", "restart", _UNIT),
        # the unit is running already: systemd reads the link at the next boot
        "enable": ("systemctl", "enable", "--no-reload", _UNIT),
        "enable-now": ("systemctl", "enable", "--now", _UNIT),
        "show": ("systemctl", "cat", _UNIT),
    },
    reload=("systemctl", "daemon-reload"),
    unit="the unit UNIT.service",
    environment="systemctl edit UNIT, below [Service]: Environment=",
)
OPENRC = ServiceManager(
    "OpenRC",
    programs=("openrc", "rc-service", "rc-update"),
    booted="",
    commands={
        "is-active": ("rc-service", _UNIT, "status"),
        "start": ("rc-service", _UNIT, "start"),
        "stop": ("rc-service", _UNIT, "stop"),
        "restart": ("rc-service", _UNIT, "restart"),
        "enable": ("rc-update", "add", _UNIT, "default"),
        "enable-now": ("rc-update", "add", _UNIT, "default", "&&", "rc-service", _UNIT, "start"),
        "show": ("cat", f"/etc/init.d/{_UNIT}", f"/etc/conf.d/{_UNIT}"),
    },
    reload=(),
    unit="the script /etc/init.d/UNIT",
    environment="in /etc/conf.d/UNIT: export ",
)
MANAGERS = (SYSTEMD, OPENRC)


def find(host: Host) -> Optional[ServiceManager]:
    """The service manager of this machine; None if there is none. A folder that represents a machine (--root) is assumed to have
    systemd, unless it has OpenRC."""
    for one in MANAGERS:
        is_running = host.mode == "root" or not one.booted or host.is_dir(Path(one.booted))
        if is_running and all(host.which(name) for name in one.programs):
            return one
    return SYSTEMD if host.mode == "root" else None


def spoken_of(host: Host) -> ServiceManager:
    """The service manager whose commands a remedy names: systemd, unless this machine has OpenRC."""
    return find(host) or SYSTEMD


def read_state(host: Host, unit: str) -> str:
    """The state of a service in systemd's terms: active | activating | inactive | failed | ...; "unknown" if it cannot be
    determined."""
    manager = spoken_of(host)
    answer = host.query(manager.argv("is-active", unit))
    if manager is SYSTEMD:
        return answer.stdout.strip() or "unknown"
    told = next((word for word in answer.stdout.split() if word in _OPENRC_STATES), "started" if answer.ok else "")
    return _OPENRC_STATES.get(told, "unknown")


_OPENRC_STATES = {
    "started": "active",
    "starting": "activating",
    "stopping": "deactivating",
    "stopped": "inactive",
    "inactive": "activating",  # in OpenRC, a service that waits for something
    "crashed": "failed",
}


def is_active(host: Host, unit: str) -> bool:
    """Whether the service is running or starting."""
    return read_state(host, unit) in ("active", "activating")


def may_run(host: Host, unit: str) -> bool:
    """Whether the service is running or starting. Below another root, where nothing can be asked, this is assumed."""
    return host.mode == "root" or is_active(host, unit)


def is_stopped(host: Host, unit: str) -> bool:
    """Whether the service is neither running nor starting."""
    return read_state(host, unit) in ("inactive", "failed")


def run(host: Host, verb: str, *, unit: str, timeout_s: float = 300) -> CommandResult:
    """Start, stop, restart or enable a service with this machine's service manager. Without one, systemd's command is run, and its
    result says so."""
    return host.run(spoken_of(host).argv(verb, unit), timeout_s=timeout_s)


def enable(host: Host, unit: str) -> Optional[CommandResult]:
    """Enable the service at boot. Returns None if it is already enabled, or there is no service manager."""
    manager = find(host)
    if manager is None or (manager is SYSTEMD and host.query(["systemctl", "is-enabled", unit]).ok):
        return None
    return run(host, "enable", unit=unit)


# ---- kb's own units, which exist only for systemd


def start_own_unit(host: Host, unit: str) -> None:
    """Enable one of kb's units and restart it with its current files. Raises HostError (unit-not-started).

    systemd reads all units again only if it holds others of this one than those on disk. That takes a tenth of a second, in which it
    starts no container."""
    reload = () if _holds_current_files(host, unit) else SYSTEMD.reload
    for argv in filter(None, (SYSTEMD.argv("enable", unit), reload, SYSTEMD.argv("restart", unit))):
        done = host.run(argv)
        if not done.ok:
            raise HostError(
                f"{' '.join(argv)} failed (code {done.code})",
                cause=(done.stderr or done.stdout).strip() or "systemd gave no reason",
                remedy=f"look at the unit: systemctl status {unit}; journalctl -u {unit}",
                code="unit-not-started",
            )


def _holds_current_files(host: Host, unit: str) -> bool:
    """Whether systemd holds the unit, and the service that a timer starts, as they are on disk. A unit that it has not met yet it reads
    when it is asked."""
    units = (unit, *([f"{unit[: -len('.timer')]}.service"] if unit.endswith(".timer") else []))
    told = host.query(["systemctl", "show", *units, "--property", "LoadState,NeedDaemonReload"], timeout_s=15)
    return sorted(told.stdout.split()) == sorted(("LoadState=loaded", "NeedDaemonReload=no") * len(units))


def stop_own_unit(host: Host, unit: str) -> None:
    """Stop and disable one of kb's units. The caller removes its file, and then calls forget_removed_units."""
    host.run(["systemctl", "disable", "--now", unit], timeout_s=120)
    if unit.endswith(".timer"):
        host.run(["systemctl", "clean", "--what=state", unit])  # the file that says when it last ran


def forget_removed_units(host: Host) -> None:
    host.run(SYSTEMD.reload)


# ---- the log of a service


def say_log(host: Host, unit: str, *, lines: int = 50) -> str:
    """The command that shows the log of a service."""
    if spoken_of(host) is SYSTEMD:
        return f"journalctl -u {unit} -n {lines} --no-pager"
    log = _find_log_file(host, unit)
    return f"tail -n {lines} {log}" if log else f"grep {unit} /var/log/messages"


def read_log(host: Host, unit: str, *, lines: int) -> list[str]:
    """The last lines of a service's log, oldest first; [] if it cannot be read."""
    if spoken_of(host) is SYSTEMD:
        argv = ["journalctl", "-u", unit, "-n", str(lines), "-o", "cat", "--no-pager"]
    else:
        log = _find_log_file(host, unit)
        argv = ["tail", "-n", str(lines), str(log)] if log else []
    answer = host.query(argv) if argv else None
    return answer.stdout.splitlines() if answer and answer.ok else []


def _find_log_file(host: Host, unit: str) -> Optional[Path]:
    """The log file of a service: OpenRC keeps no log, but service scripts usually name one of these files."""
    places = (Path("/var/log", unit, f"{unit}.log"), Path("/var/log", f"{unit}.log"))
    return next((path for path in places if host.exists(path)), None)
