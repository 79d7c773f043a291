"""`kb upgrade runtime`: another containerd on this node, with its configuration carried over.

The new program itself reads the present configuration before anything stops, and writes it in its own form (`containerd config migrate`),
which counts only if it means the same. Then the kubelet and containerd stop, program and configuration change together, and both are watched;
what was there comes back if they do not work. Containers run on meanwhile: each has a shim of its own, which a new containerd finds again.
runc and the CNI plugins stay. kubeadm leaves the runtime to its operator.
Source: containerd's docs/containerd-2.0.md, cmd/containerd/command/config.go
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.waiting import watch
from kubeup.paths import Paths
from kubeup.phases import kubelet_start, upgrade_kubelet, upgrade_programs
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.releases import Version, parse_version

with lazily:
    from kubeup.airgap import downloads, programs
    from kubeup.cluster import eviction
    from kubeup.node import containerd_config, containers, crictl, runtime
    from kubeup.upgrade import kept

UNIT = "containerd"
NAMES = ("containerd", "containerd-shim-runc-v2", "ctr")
CHANGING = "changing"
"""The step after which the kubelet and containerd may be stopped."""
READY_S = 60.0
"""How long a containerd may take to answer: it looks up every container first."""
_GONE_TYPES = ("io.containerd.runtime.v1.linux", "io.containerd.runc.v1")
"""Runtimes that containerd 2 no longer has."""


def own_paths(paths: Paths) -> Paths:
    """Where this upgrade keeps what was there before, apart from that of a Kubernetes upgrade."""
    return replace(paths, upgrade=paths.upgrade_runtime)


def find_cut_off(host: Host, paths: Paths) -> Optional[kept.Kept]:
    """The upgrade of the runtime that was cut off while it may have been stopped; None if there is none."""
    found = kept.load(host, own_paths(paths))
    return found if found is not None and found.status == kept.RUNNING and found.has_done(CHANGING) else None


# ---- looks


@frozen
class Ready:
    """What is to be put in. programs: where each goes -> the new one that waits. config: where it is, its former text, and its text for the
    new program."""

    former: str
    wanted: str
    programs: Mapping[Path, Path]
    config: Path
    text: str
    new_text: str

    @property
    def files(self) -> list[Path]:
        return [*self.programs, self.config]


def prepare(run: UpgradeRun) -> Optional[Ready]:
    """Fetch the new programs, and try the present configuration with them; None if this containerd runs already. Nothing stops.

    Raises HostError: not-containerd, no-source, runtime-older, containerd-config-refused, packages-not-found, disk-full, ...
    """
    place = _require_containerd(run)
    former = _version_of(run, place)
    cut_off = find_cut_off(run.host, run.paths)
    staged = _fetch(run)
    wanted = _version_of(run, staged["containerd"])
    have, want = (_parse(one) for one in (former, wanted))
    if cut_off is None and former == wanted:
        run.host.remove_tree(kept.programs_folder(own_paths(run.paths)))
        return None
    if have is not None and want is not None and want.key < have.key:
        raise HostError(
            f"containerd {wanted} is older than the one that runs, {former}",
            cause="what a newer containerd has written about images and containers, an older one may not understand; nothing was changed",
            remedy="take a newer one from another source: --bundle FILE, --mirror URL or --packages download",
            code="runtime-older",
        )
    former = cut_off.former if cut_off is not None else former
    kept.begin(run.host, own_paths(run.paths), former=former, wanted=wanted, has_programs=True)
    config = containerd_config.find_config(run.host)
    text = run.host.read_text(config) if run.host.exists(config) else ""
    new_text = _carry_over(run, staged["containerd"], config=config, text=text, version=want)
    there = {name: _place_of(run, name, place) for name in NAMES}
    return Ready(former, wanted, {there[name]: path for name, path in staged.items()}, config, text, new_text)


def _require_containerd(run: UpgradeRun) -> Path:
    """The containerd that the service starts. Raises HostError (not-containerd)."""
    if "containerd" not in crictl.socket_path(run.config.node.cri_socket).name:
        raise HostError(
            f"this node's runtime is behind {run.config.node.cri_socket}",
            cause="that is not containerd, which is the only runtime that is replaced here; nothing was changed",
            remedy="upgrade it by its packages, on a drained node: kubectl drain " + run.config.node.name,
            code="not-containerd",
        )
    shown = run.host.query(["systemctl", "show", UNIT, "-p", "ExecStart", "--value"]).stdout
    match = re.search(r"path=(/\S+)", shown)
    found = Path(match.group(1)) if match else run.host.which("containerd")
    if found is None or not run.host.exists(found):
        raise HostError(
            "there is no containerd on this machine",
            cause="neither its service nor PATH leads to one",
            remedy=f"install it: {crictl.install_command(run.host, 'containerd')}",
            code="not-containerd",
        )
    return found


def _place_of(run: UpgradeRun, name: str, place: Path) -> Path:  # noqa: PLR0917
    """Where a program of containerd's is: beside it, else in PATH, else beside it from now on."""
    beside = place.parent / name
    return beside if run.host.exists(beside) else run.host.which(name) or beside


def _version_of(run: UpgradeRun, path: Path) -> str:
    return programs.ask_version(run.host, path, item=downloads.FILES_BY_NAME["containerd"])[0]


def _parse(version: str) -> Optional[Version]:
    """Distributions append to versions: `1.6.20~ds1`, `2.1.9+unknown`."""
    return parse_version(re.split(r"[~+]", version)[0])


def _fetch(run: UpgradeRun) -> dict[str, Path]:
    """The new programs, fetched and verified: name -> where it waits. Raises HostError."""
    folder = kept.programs_folder(own_paths(run.paths))
    waiting = {name: folder / name for name in NAMES if run.host.exists(folder / name)}
    if len(waiting) == len(NAMES):
        return waiting
    source = upgrade_programs.find_source(run)
    if not source:
        raise _no_source(
            run, "no source of containerd is given", cause="it comes from a bundle, a mirror or the official downloads"
        )
    if source in upgrade_programs.MANAGERS:
        cause = "a package's scripts restart it unwatched, and its configuration stays as it is; nothing was changed"
        raise _no_source(run, f"{source} replaces containerd itself", cause=cause)
    staged = upgrade_programs.stage_programs(run, source, names=NAMES, folder=folder)
    if not staged:
        cause = "it was made from a bundle without programs, or is another registry; nothing was changed"
        raise _no_source(run, "the mirror serves no containerd", cause=cause)
    run.report.note(f"fetched from the {source}, and verified: {', '.join(staged)}")
    return staged


def _no_source(run: UpgradeRun, what: str, *, cause: str) -> HostError:
    remedy = f"say where it comes from: {run.command} --bundle FILE, --mirror URL or --packages download"
    return HostError(what, cause=cause, remedy=remedy, code="no-source")


def _carry_over(run: UpgradeRun, program: Path, *, config: Path, text: str, version: Optional[Version]) -> str:
    """The configuration's text for the new program: as it migrates it, if that means the same to it. Raises HostError
    (containerd-config-refused)."""
    if not text:
        return text
    before = _dump(run, program, config=config)
    if version is not None and version.major >= 2:
        _refuse_gone_types(run, before, config=config)
    migrated = run.host.query([program, "--config", str(config), "config", "migrate"], timeout_s=60)
    trial = kept.programs_folder(own_paths(run.paths)) / "config.toml"
    if not migrated.ok or not migrated.stdout.strip():
        run.report.warn(
            f"{config} stays in its former form: {crictl.last_words(migrated.stderr) or 'it was not migrated'}"
        )
        return text
    run.host.write_file(trial, migrated.stdout, mode=0o600)
    if _meaning(_dump(run, program, config=trial)) != _meaning(before):
        run.report.warn(
            f"{config} stays in its former form, which containerd reads as well: migrated, it would mean something else"
        )
        return text
    return migrated.stdout if _schema_of(migrated.stdout) > _schema_of(text) else text


def _dump(run: UpgradeRun, program: Path, *, config: Path) -> dict[str, object]:
    """What the program makes of a configuration. Raises HostError (containerd-config-refused)."""
    answer = run.host.query([program, "--config", str(config), "config", "dump"], timeout_s=60)
    try:
        found = containerd_config.parse_toml(answer.stdout) if answer.ok else {}
    except ValueError:
        found = {}
    if not found:
        raise HostError(
            f"the new containerd does not accept {config}",
            cause=f"{crictl.last_words(answer.stderr) or 'it says nothing'}; nothing was stopped",
            remedy=f"correct it, or what it imports: vi {config}",
            code="containerd-config-refused",
        )
    return found


def _meaning(dump: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in dump.items() if name not in ("imports", "version")}


def _schema_of(text: str) -> int:
    match = re.search(r"^\s*version\s*=\s*(\d+)", text, re.MULTILINE)
    return int(match.group(1)) if match else 1


def _refuse_gone_types(run: UpgradeRun, dump: Mapping[str, object], *, config: Path) -> None:
    told = str(dump)
    gone = next((name for name in _GONE_TYPES if f"'{name}'" in told and f"'runtime_type': '{name}'" in told), "")
    if gone:
        raise HostError(
            f"{config} names the runtime {gone}",
            cause="containerd 2 has it no more; nothing was stopped",
            remedy=f'have its containers run by "io.containerd.runc.v2": vi {config}',
            code="containerd-config-refused",
        )


# ---- the change


@dataclass
class RuntimeChange:
    """Another containerd for this node."""

    run: UpgradeRun
    ready: Ready

    def carry_out(self) -> float:
        """Returns after how many seconds the node was Ready again. Raises ClusterError (runtime-not-upgraded), after the way back; and those of
        a drain."""
        run, node = self.run, self.run.config.node.name
        places = own_paths(run.paths)
        kept.keep(run.host, places, files=self.ready.files)
        before = _list_running(run)
        try:
            if run.drains and eviction.has_refuge(run.api, node):
                upgrade_kubelet.drain(run)
            kept.note_done(run.host, places, step=CHANGING)
            took_s = self._replace()
        finally:
            with contextlib.suppress(KbError):  # its own failure must stay the one that is shown
                eviction.uncordon(run.api, node)
        kept.end(run.host, places, status=kept.DONE)
        _tell_ended(run, before)
        return took_s

    def _replace(self) -> float:
        run, began = self.run, self.run.host.now()
        try:
            _stop(run)
            for place, new in self.ready.programs.items():
                upgrade_kubelet.lay(run, new, place)
            if self.ready.new_text != self.ready.text:
                run.host.write_file(self.ready.config, self.ready.new_text, keeps=True)
            return _start(run, since=began)
        except BaseException as error:
            trouble = upgrade_kubelet.find_trouble(run, error)
            run.report.note(f"containerd {self.ready.wanted} does not work: taking it back. {trouble.cause}")
            take_back(run)
            if not isinstance(error, KbError):
                raise
            raise ClusterError(
                f"containerd {self.ready.wanted} does not work on node {run.config.node.name}",
                cause=f"{trouble.cause}; the former one, {self.ready.former}, runs again",
                remedy=trouble.remedy,
                code="runtime-not-upgraded",
                details=error.details,
            ) from error


def take_back(run: UpgradeRun) -> None:
    """Put the former containerd and its configuration back, and watch it. Raises HostError (nothing-kept); ClusterError
    (runtime-not-taken-back)."""
    places = own_paths(run.paths)
    found = kept.load(run.host, places)
    if found is None or not found.files:
        raise HostError(
            "nothing is kept of an upgrade of this node's runtime",
            cause="it was not upgraded, or what was kept was removed after seven days",
            remedy="see which one it runs: kubectl get nodes -o wide",
            code="nothing-kept",
        )
    began = run.host.now()
    try:
        _stop(run)
        kept.put_back(run.host, places, files=map(Path, found.files))
        _start(run, since=began)
    except KbError as error:
        raise ClusterError(
            f"the former containerd, {found.former}, does not come back on node {run.config.node.name}",
            cause=error.cause,
            remedy=f"{error.remedy}; what was there before is in {kept.folder(places) / 'former'}",
            code="runtime-not-taken-back",
        ) from error
    kept.end(run.host, places, status=kept.TAKEN_BACK)


def _stop(run: UpgradeRun) -> None:
    """The kubelet first: without a runtime it would call its pods broken. Containers run on."""
    kubelet_start.stop_kubelet(run)
    services.run(run.host, "stop", unit=UNIT)


def _start(run: UpgradeRun, *, since: datetime.datetime) -> float:
    """Returns after how many seconds the node was Ready. Raises HostError (runtime-not-started), ClusterError (not-healthy)."""
    done = services.run(run.host, "start", unit=UNIT, timeout_s=90)
    socket = run.config.node.cri_socket

    def look() -> str:
        status = runtime.probe_runtime(run.host, socket)
        return "" if status.is_ready else status.cause or status.problem

    missing, elapsed = watch(run.host, look, timeout_s=READY_S, poll_s=0.5) if done.ok else (done.stderr.strip(), 0.0)
    if missing:
        raise HostError(
            "containerd does not answer",
            cause=f"{missing} (after {elapsed:.0f} s)",
            remedy=f"see why: {services.say_log(run.host, UNIT, lines=30)}",
            code="runtime-not-started",
        )
    return upgrade_kubelet.start_and_watch(run, version="", since=since)


def _list_running(run: UpgradeRun) -> dict[str, str]:
    """The containers that run: ID -> name."""
    found = containers.list_containers(run.host, run.config.node.cri_socket)
    return {one.id: one.name for one in found if one.state == "running"}


def _tell_ended(run: UpgradeRun, before: Mapping[str, str]) -> None:
    """Say which containers did not outlive the change; the kubelet has started others by then."""
    now = _list_running(run)
    ended = sorted({name for one, name in before.items() if one not in now})
    stayed = len(before) - sum(one not in now for one in before)
    run.report.note(f"{stayed} containers ran on meanwhile" + (f"; started anew: {', '.join(ended)}" if ended else ""))
