"""What the record does not hold: the running kernel's settings, programs, what runs beside its files, and others' files in kb's places.

Of the content of programs there is no record: one that kb placed has changed if its file changed since. For one that kb did not place, or
an older kb, that is so if it changed at a time at which kb did not work. What a package brought is no drift, until somebody changes it.
"""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from kubeup.drift.drifted import Drift, Ground, show_moment
from kubeup.engine.items import Sysctl
from kubeup.engine.plan import digest_of, show_value
from kubeup.engine.records import PROGRAMS, describe_program
from kubeup.errors import HostError, KbError, shown
from kubeup.lazy_modules import lazily
from kubeup.machine import record_file
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, commands_of_pod, load_yaml

with lazily:
    from kubeup.airgap import distro_packages
    from kubeup.doctor.looks import drift as kubelet_drift
    from kubeup.node import runtime
    from kubeup.phases import kernel, node_reboot
    from kubeup.swap import store

_NAMES = ("kubelet", "kubectl", "containerd", "runc", "crictl")
_PLACES = (Path("/usr/local/bin"), Path("/usr/local/sbin"), Path("/usr/bin"), Path("/opt/cni/bin"))
_ADMINS = (Path("/etc/systemd/system"), Path("/run/systemd/system"))
"""Where units and drop-ins belong to the admin; in the other folders they belong to packages."""
_UNITS = ("kubelet", "containerd")


# ---- the kernel


def look_at_sysctls(ground: Ground) -> Iterator[Drift]:
    """The values in force, which any program may have changed since the boot."""
    wanted = {
        item.key: item.value
        for item in kernel.plan_forwarding(ground.run).resolve(ground.run).items()
        if isinstance(item, Sysctl)
    }
    recorded = {
        name.partition(" ")[2]: str(rows[-1].get("value", ""))
        for name, rows in ground.recorded.items()
        if name.startswith("sysctl ")
    }
    for key, value in {**wanted, **recorded}.items():
        found = (Sysctl(key, value).look(ground.run) or {"value": "(no such setting)"})["value"]
        if found != value:
            place = f"/proc/sys/{key.replace('.', '/')}"
            known = recorded.get(key, ""), wanted.get(key, "")
            yield Drift(f"sysctl/{key}", place, "value", *known, found, is_fixable=True)


# ---- programs


def look_at_programs(ground: Ground) -> Iterator[Drift]:
    host = ground.run.host
    for path in _find_programs(ground):
        found = host.stat(path)
        if found is None and str(path) in ground.known_paths:
            yield Drift(f"package/{path.name}", str(path), "it is not there", remedy="install it again")
        elif found is None:
            continue
        elif _is_changed(ground, path) and not distro_packages.is_intact(ground.run.host, path):
            yield Drift(
                f"package/{path.name}",
                str(path),
                "the program's content",
                found=f"sha256:{digest_of(ground.run, path)}",
                since=show_moment(max(found.mtime, found.ctime)),
                remedy="if nobody meant that, put back the program that belongs to this version",
            )
    yield from _look_at_holds(ground)


def _find_programs(ground: Ground) -> list[Path]:
    """The programs that kb placed, and those of its names that it found in PATH."""
    placed = [Path(text) for text in ground.known_paths if Path(text).parent in _PLACES]
    placed += [path for path in map(ground.run.host.which, _NAMES) if path is not None]
    placed += [Path(name) for name in ground.records.of(PROGRAMS) or {}]
    real = {path: ground.run.host.real_path(path) for path in placed if ground.run.host.exists(path)}
    return sorted({real.get(path, path) for path in placed})


def _is_changed(ground: Ground, path: Path) -> bool:
    recorded = (ground.records.of(PROGRAMS) or {}).get(str(path))
    if recorded is not None:
        return dict(recorded) != dict(describe_program(ground.run.host, path))
    return not ground.was_there_before(path)


def _look_at_holds(ground: Ground) -> Iterator[Drift]:
    """The packages that kb had apt hold, so that an upgrade of the machine does not upgrade the cluster."""
    if str(distro_packages.APT_LIST) not in ground.known_paths:
        return
    held = ground.run.host.query(["apt-mark", "showhold"]).stdout.split()
    for name in distro_packages.HELD:
        if name not in held:
            yield Drift(
                f"package/{name}", "apt", "hold", recorded="held", found="not held", remedy=f"apt-mark hold {name}"
            )


# ---- what runs


def look_at_running(ground: Ground) -> Iterator[Drift]:
    """Whether the static pods run with the arguments in their manifests, and units with their files."""
    running = _read_commands(ground)
    for name in store.COMPONENTS:
        if ground.run.host.exists(ground.run.paths.manifest(name)):
            yield from _compare_command(ground, name, running=running.get(name, []))
    for finding in kubelet_drift.look_at_kubelet_drift(ground.patient):
        yield Drift("running/kubelet", "unit kubelet", finding.text, remedy=finding.remedy, is_fixable=True)
    for unit in read_due(ground.run.host, ground.run.paths):
        text = "its files were put back, and it was not restarted since"
        yield Drift(f"running/{unit.removesuffix('.service')}", f"unit {unit}", text, is_fixable=True)


# ---- units whose files were put back


def due_path(paths: Paths) -> Path:
    return paths.state_dir / "drift" / "restart-due.json"


def read_due(host: Host, paths: Paths) -> tuple[str, ...]:
    """The units whose files were put back by a run that did not come to their restart. A boot has started them anew."""
    path = due_path(paths)
    try:
        found = record_file.read(host, path, shape={"boot": str, "units": [str]}) if host.exists(path) else {}
    except ValueError:
        return ()
    return tuple(found["units"]) if found.get("boot") == node_reboot.read_boot_id(host) else ()


def note_due(host: Host, paths: Paths, *, units: Collection[str]) -> None:
    """These are to be restarted from now on; none: nothing is left to be."""
    if units:
        record_file.write(
            host, due_path(paths), values={"boot": node_reboot.read_boot_id(host), "units": sorted(units)}
        )
    elif host.exists(due_path(paths)):
        host.remove(due_path(paths))


# ---- static pods


def _compare_command(ground: Ground, name: str, *, running: list[list[str]]) -> Iterator[Drift]:
    """The process that is most like the manifest: there may be others of the same program in pods. None: it is away, which is no drift."""
    path = ground.run.paths.manifest(name)
    try:
        pod = load_yaml(ground.run.host.read_text(path))
    except YAMLError:
        return
    wanted = _by_option(next(iter(commands_of_pod(pod if isinstance(pod, Mapping) else {})), []))
    if not running or not wanted or any("$(" in value for value in wanted.values()):
        return
    found = min(map(_by_option, running), key=lambda one: len(set(one.items()) ^ set(wanted.items())))
    for option in dict.fromkeys((*wanted, *found)):
        if wanted.get(option) != found.get(option):
            told, seen = (show_value(option, words.get(option, "")) for words in (wanted, found))
            yield Drift(f"running/{name}", f"the process of {name}", option, "", told, seen, is_fixable=True)


def _by_option(words: Iterable[str]) -> dict[str, str]:
    """The options of a command, sorted and joined where one is given more than once. The program itself is left out."""
    found: dict[str, list[str]] = {}
    for word in words:
        option, _, value = word.partition("=")
        if word.startswith("-"):
            found.setdefault(option.lstrip("-"), []).append(value)
    return {f"--{name}": ",".join(values) for name, values in found.items()}


def _read_commands(ground: Ground) -> dict[str, list[list[str]]]:
    """The command lines of the processes whose program is a component's, by its name."""
    host = ground.run.host
    found: dict[str, list[list[str]]] = {}
    for pid in host.list_dir(Path("/proc")):
        if not pid.isdigit():
            continue
        try:
            words = host.read_text(Path("/proc", pid, "cmdline")).rstrip("\0").split("\0")
        except KbError:
            continue  # it has ended meanwhile
        name = os.path.basename(words[0])
        if name in store.COMPONENTS:
            found.setdefault(name, []).append(words)
    return found


# ---- what others put beside it


def look_at_others(ground: Ground) -> Iterator[Drift]:
    """Files in the folder of the static pods, hosts.toml, and units and drop-ins for the kubelet and the runtime, that came or changed since
    and are not kb's."""
    folder = ground.run.paths.manifests
    for name in _list(ground, folder):
        path = folder / name
        is_own = path.suffix == ".yaml" and path.stem in store.COMPONENTS
        if not is_own and not name.startswith(".") and _is_foreign(ground, path):
            why = f"the kubelet runs whatever is in {folder}; move it elsewhere if it is not meant to run"
            yield _foreign(ground, path, name=f"foreign/{shown(name)}", remedy=why)
    for name in _list(ground, runtime.CERTS_D):
        path = runtime.CERTS_D / name / "hosts.toml"
        if ground.run.host.exists(path) and _is_foreign(ground, path):
            yield _foreign(
                ground, path, name=f"hosts.toml/{name}", remedy=f"see where {name} is pulled from: cat {path}"
            )
    for unit, path in _find_unit_files(ground):
        if path.parent.name == f"{unit}.service.d":
            name, why = f"drop-in/{unit}/{path.name}", f"see what it changes: systemctl cat {unit}"
        else:
            name, why = f"unit/{unit}", f"it takes the place of the package's unit: systemctl cat {unit}"
        if _is_foreign(ground, path):
            yield _foreign(ground, path, name=name, remedy=why)


def _foreign(ground: Ground, path: Path, *, name: str, remedy: str) -> Drift:
    try:
        found = "a folder" if ground.run.host.is_dir(path) else f"sha256:{digest_of(ground.run, path)}"
    except (
        HostError
    ) as error:  # a pipe, or a link that leads nowhere: what else is there has to be looked at all the same
        found = error.cause
    return Drift(name, shown(str(path)), "it is not kb's", found=found, since=ground.since(path), remedy=remedy)


def _is_foreign(ground: Ground, path: Path) -> bool:
    is_known = str(path) in ground.known_paths or str(path) in ground.recorded
    return not is_known and not ground.was_there_before(path) and not distro_packages.is_intact(ground.run.host, path)


def _find_unit_files(ground: Ground) -> Iterator[tuple[str, Path]]:
    """(unit, file): the admin's units and drop-ins for the kubelet and the runtime."""
    for unit in _UNITS:
        for folder in _ADMINS:
            path = folder / f"{unit}.service"
            if ground.run.host.exists(path):
                yield unit, path
            drop_ins = folder / f"{unit}.service.d"
            yield from ((unit, drop_ins / name) for name in _list(ground, drop_ins) if name.endswith(".conf"))


def _list(ground: Ground, folder: Path) -> list[str]:
    try:
        return ground.run.host.list_dir(folder)
    except HostError:
        return []
