"""The phase `kubelet-config` of an upgrade: another kubelet and its configuration together, watched, and back if it does not work.

The kubelet has no mode in which it only checks its configuration, and two must not run on one node: so the real start is watched, and
what was there before comes back if the new one does not work. Each change is one rename, or is looked at first, so that a run that was cut
off goes on. Pods run on meanwhile; where they should leave first (another minor), they are evicted, and the node is as open to pods
afterwards as it was before. kubeadm writes config.yaml and leaves the rest to the operator.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kubeup.engine.plan import compare_documents
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.files import CHUNK
from kubeup.machine.waiting import say_round, wait_for, watch
from kubeup.phases import kubelet_start, static_pods_swap, upgrade_addons, upgrade_programs
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.phases.wait_node import is_renewed, node_path
from kubeup.trouble import Trouble
from kubeup.yaml_files import load_mapping

with lazily:
    from kubeup.airgap import distro_packages, downloads, programs
    from kubeup.cluster import api, eviction, health, probes, upgrade_turn
    from kubeup.diagnosis import kubelet_trouble, log_lines
    from kubeup.engine import records
    from kubeup.network import load_balancer
    from kubeup.node import containers, kubeconfig
    from kubeup.swap import former_pods, kubelet_view, leads, order, patience, proof, store, turn, wake
    from kubeup.upgrade import kept

PHASE = "kubelet-config"
STEP = "kubelet"
START_S = 90.0
"""How long a kubelet may take until its node is Ready with the new version, on a machine that is not busy: five to fifteen seconds as a rule."""
LASTS_S = 10.0
"""For how long it then has to run without a restart."""
LOOK_AFTER_S, LOOK_EVERY_S = 3.0, 2.0
ASKED_S = 25.0
"""How long a kubelet may take to tell which static pods it runs."""
POLL_S = 0.5
SPARE = 16 << 20
"""Bytes that stay free beside a new program: the kubelet writes its own files there as a rule."""


# ---- the phase


def change_kubelet(ctx: UpgradeRun) -> Outputs:
    """Put the new kubelet in its place with its configuration, and watch it start. Where the operator installs programs himself and has
    not yet done so, nothing changes, and what is left is told.

    Raises ClusterError: pods-not-evicted, pods-not-gone, kubelet-not-upgraded (after the former one has come back),
    kubelet-not-taken-back; HostError.
    """
    run = replace(ctx, host=ctx.machine or ctx.host)
    if (
        upgrade_programs.find_candidate(run) is None
        and upgrade_programs.find_source(run) not in upgrade_programs.MANAGERS
    ):
        return _leave_to_operator(run)
    wanted = upgrade_programs.wanted_version(run)
    change = Change(run, plan_files(run), wanted, needs_ready=not run.force or is_ready(run))
    if change.is_done():
        end_spared(run)
        hold_packages(run)
        eviction.uncordon(run.api, run.config.node.name)
        upgrade_turn.give_back(run.api, run.config.node.name)
        kept.end(run.host, run.paths, status=kept.DONE)
        return None
    kept.begin(run.host, run.paths, former=run.former, wanted=change.wanted)
    kept.keep(run.host, run.paths, files=(*upgrade_programs.list_kept_files(run), *change.files))
    _tell_differences(run, change.files)
    _require_room(run, change.place)
    ctx.promises.expect(change.files)
    took_s = change.carry_out(drains=upgrade_programs.drains(run, change.wanted))
    ctx.promises.tell_changed([*change.files, change.place])
    run.report.note(f"the kubelet {change.wanted} runs; the node was Ready with it after {took_s:.0f} s")
    kept.note_done(run.host, run.paths, step=STEP)
    kept.end(run.host, run.paths, status=kept.DONE)
    return None


def _require_room(run: UpgradeRun, place: Path) -> None:
    """Room for the new programs beside those that run, before anything stops. Raises HostError (disk-full)."""
    for one in upgrade_programs.list_outdated(run):
        new = upgrade_programs.find_new(run, one.name)
        stat = run.host.stat(new) if new is not None else None
        folder = run.host.real_path(place if one.name == "kubelet" else one.path).parent
        if stat is None or run.host.free_bytes(folder) >= stat.size + SPARE:
            continue
        raise HostError(
            f"{folder} has {run.host.free_bytes(folder) >> 20} MiB of free space",
            cause=f"the new {one.name} takes {stat.size >> 20} MiB there beside the one that runs; nothing was stopped",
            remedy=f"make space: du -xh {folder} | sort -h | tail",
            code="disk-full",
        )


def _tell_differences(run: Run, files: Mapping[Path, str]) -> None:
    """What changes in the kubelet's configuration, field by field: what somebody wrote into this node's file alone does not stay."""
    path = run.paths.kubelet_config
    if path in files and run.host.exists(path):
        found, wanted = (load_mapping(text, str(path)) for text in (run.host.read_text(path), files[path]))
        for one in compare_documents(path.name, wanted, found=found):
            run.report.note(f"change: {one.as_change()}")


def _leave_to_operator(run: UpgradeRun) -> Outputs:
    told = f"the kubelet of node {run.config.node.name} is still {run.former}: {upgrade_programs.say_ways(run)}"
    run.report.warn(told)
    return Results(remaining=(told,))


def plan_files(run: Run) -> dict[Path, str]:
    """The kubelet's files for the wanted version, in the order in which they are written."""
    shared = kubelet_start.shared_kubelet_config(run)
    for text in shared.warnings:
        run.report.warn_once(text)
    files = {**kubelet_start.render_kubelet_files(run, shared), **kubelet_start.render_unit_files(run)}
    env = upgrade_programs.render_flags_env(run)
    if env:  # its flags may be the admin's, or those with which the node registered
        files[run.paths.kubelet_flags_env] = env
    return files


def foretell_kubelet(ctx: UpgradeRun) -> Outputs:
    """Dry run: the files that would be written, and the program that would be replaced."""
    for path, text in plan_files(ctx).items():
        ctx.host.write_file(path, text, keeps=True)
    for one in upgrade_programs.list_outdated(ctx):
        if upgrade_programs.find_source(ctx):
            ctx.host.write_stream(one.path, (), mode=0o755)
    return None


# ---- the change, and the way back


@dataclass
class Change:
    """Another kubelet for this node: its program and its files. wanted: the version, `v1.36.3`."""

    run: UpgradeRun
    files: Mapping[Path, str]
    wanted: str
    needs_ready: bool = True
    """Whether the node has to be Ready with it; not where it was not before, and the user goes on all the same."""
    _notes: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        """Where the program is."""
        found = upgrade_programs.find_installed(self.run, "kubelet")
        return found.path if found is not None else Path("/usr/bin/kubelet")

    def is_done(self) -> bool:
        """Whether the node runs the wanted kubelet with these files already, and says so."""
        host = self.run.host
        if self._has_programs() or not services.is_active(host, "kubelet"):
            return False
        are_same = all(host.exists(path) and host.read_text(path) == text for path, text in self.files.items())
        return are_same and upgrade_programs.read_reported(self.run) == self.wanted

    def _has_programs(self) -> bool:
        """Whether there is a program to put in place; a kubectl that the operator installs may stay as old as it is."""
        is_managed = upgrade_programs.find_source(self.run) in upgrade_programs.MANAGERS
        outdated = upgrade_programs.list_outdated(self.run)
        return any(
            one.name == "kubelet" or is_managed or upgrade_programs.find_new(self.run, one.name) for one in outdated
        )

    def carry_out(self, *, drains: bool) -> float:
        """Returns after how many seconds the node was Ready again. Raises KbError, after the way back."""
        node, client = self.run.config.node.name, self.run.api
        upgrade_turn.take(client, node, version=self.wanted)
        try:
            if drains:
                drain(self.run)
            leaves_minor = upgrade_programs.leaves_minor(self.run, self.wanted)
            with spared(self.run, leaves_minor=leaves_minor):
                took_s = self._replace(leaves_minor=leaves_minor)
        except BaseException:
            with contextlib.suppress(KbError):  # its own failure must stay the one that is shown
                eviction.uncordon(client, node)
                upgrade_turn.give_back(client, node)
            raise
        upgrade_turn.give_back(client, node)
        if eviction.uncordon(client, node):
            self.run.report.note(f"node {node} takes new pods again")
        return took_s

    def _replace(self, *, leaves_minor: bool) -> float:
        began = self.run.host.now()
        try:
            self._put_in()
            return start_and_watch(
                self.run, version=self.wanted, since=began, leaves_minor=leaves_minor, needs_ready=self.needs_ready
            )
        except BaseException as error:
            trouble = find_trouble(self.run, error)
            self._go_back(trouble, error, leaves_minor=leaves_minor)
            raise

    def _put_in(self) -> None:
        run, place = self.run, self.place
        stop_kubelet(run)
        for path, text in self.files.items():
            run.host.write_file(path, text, keeps=True)
        put_programs(run, place)
        record_programs(run)
        static_pods_swap.record_files(run, self.files)

    def _go_back(self, trouble: Trouble, error: BaseException, *, leaves_minor: bool) -> None:
        """Put the former program and files back, start them, and raise an error that says why. An interruption goes on as one."""
        version = find_former(self.run)
        self.run.report.note(f"the kubelet {self.wanted} does not work: taking it back. {trouble.cause}")
        take_back(self.run, version=version, leaves_minor=leaves_minor, needs_ready=self.needs_ready)
        if not isinstance(error, KbError):
            return
        raise ClusterError(
            f"the kubelet {self.wanted} does not work on node {self.run.config.node.name}",
            cause=f"{trouble.cause}; the former one, {version}, runs again",
            remedy=trouble.remedy,
            code="kubelet-not-upgraded",
            details=error.details,
        ) from error


@contextlib.contextmanager
def spared(run: UpgradeRun, *, leaves_minor: bool) -> Iterator[None]:
    """A control plane's API server is out of the load balancers meanwhile, and etcd's leadership away: a kubelet of another minor reckons
    the UIDs of static pods anew, since its pods have other fields, and so starts all of them again (applyDefaults of
    pkg/kubelet/config/common.go). No other control plane swaps meanwhile: etcd is among them, so the others have to have a quorum without it,
    as they had when the upgrade began. Raises ClusterError (swap-elsewhere, etcd-stop-unsafe)."""
    if not (run.config.is_control_plane and leaves_minor):
        yield
        return
    upgrade_addons.await_proxies(run)
    around = static_pods_swap.find_surroundings(run, before_stop=run.before_stop, after_start=run.after_start)
    has_etcd = run.host.exists(run.paths.manifest("etcd"))
    with turn.hold([run], work="swapping"):
        if has_etcd:
            static_pods_swap.check_quorum(run)
        try:  # what leaves the balancers has to come back, also where a command of the user's fails half-way
            around.leave()
            if has_etcd:
                order.lead_away(run)
            yield
        finally:
            around.rejoin()


def _former_pods_ended(run: Run, *, leaves_minor: bool) -> contextlib.AbstractContextManager[frozenset[str]]:
    """Where a kubelet of another minor is started: it starts static pods of its own, beside those that still run."""
    if run.config.is_control_plane and leaves_minor:
        return former_pods.ended_by_start(run)
    return contextlib.nullcontext(frozenset())


def end_spared(run: UpgradeRun) -> None:
    """Take back what a run told the load balancers, and other control planes, that was cut off once all else was done."""
    if run.config.is_control_plane and PHASE in run.selection.cut_off:
        around = static_pods_swap.find_surroundings(run, before_stop=run.before_stop, after_start=run.after_start)
        around.rejoin()
        around.let_others()


def drain(run: UpgradeRun) -> None:
    """Cordon the node and evict its pods. Raises ClusterError: pods-not-evicted, pods-not-gone; the caller uncordons."""
    tell, note = run.report.waiting, run.report.note
    eviction.drain(run.api, run.config.node.name, tell=tell, note=note, refused_s=run.drain_s)


def stop_kubelet(run: Run) -> None:
    """Stop the kubelet, and have the load balancer that an older kb laid run on under the next one."""
    kubelet_start.stop_kubelet(run)
    if load_balancer.name_uid(run.host, run.paths, socket=run.config.node.cri_socket):
        static_pods_swap.record_files(run, [run.paths.manifest(load_balancer.NAME)])


def put_programs(run: Run, place: Path) -> None:
    """Put the new programs that were fetched in their places; a file that is in its place already stays. Raises HostError."""
    source = upgrade_programs.find_source(run)
    outdated = upgrade_programs.list_outdated(run)
    if outdated and source in upgrade_programs.MANAGERS:
        names = [one.name for one in outdated]
        distro_packages.install_fetched(run.host, source, names=names, version=upgrade_programs.wanted_version(run))
        return
    for one in outdated:
        new = upgrade_programs.find_new(run, one.name)
        if new is not None:
            lay(run, new, place if one.name == "kubelet" else one.path)


def hold_packages(run: Run) -> None:
    """Have apt hold the packages of the programs, where kb has it install them: a kill may have come between."""
    source = upgrade_programs.find_source(run)
    if source in upgrade_programs.MANAGERS:
        here = (upgrade_programs.find_installed(run, name) for name in upgrade_programs.NAMES)
        distro_packages.hold(run.host, source, names=[one.name for one in here if one is not None])


def record_programs(run: Run) -> None:
    """Record the kubelet and kubectl as they are now, so that a later change of somebody else's is told from this one."""
    found = (upgrade_programs.find_installed(run, name) for name in upgrade_programs.NAMES)
    try:
        records.record_programs(run.host, run.paths.records, paths=[one.path for one in found if one is not None])
    except HostError as error:
        run.report.warn_once(f"what was done could not be recorded: {error}")


def lay(run: Run, source: Path, path: Path) -> None:  # noqa: PLR0917
    """A copy, so that a way back and another try need no second download; the file itself changes by one rename."""
    found = run.host.stat(run.host.real_path(path))
    with run.host.open_read(source) as file:
        run.host.write_stream(path, iter(lambda: file.read(CHUNK), b""), mode=found.mode if found else 0o755)


def find_former(run: Run) -> str:
    """The version of the kubelet that was kept; "" if none was."""
    found = kept.load(run.host, run.paths)
    place = upgrade_programs.find_installed(run, "kubelet")
    if found is None or place is None or not found.files.get(str(place.path)):
        return ""
    copy = kept.copy_of(run.paths, place.path)
    return programs.ask_version(run.host, copy, item=downloads.FILES_BY_NAME["kubelet"])[0]


def take_back(run: Run, *, version: str, leaves_minor: bool, needs_ready: bool = True) -> None:
    """Put the kubelet's former program and files back, start it and watch it. leaves_minor: it is of another minor. Raises ClusterError
    (kubelet-not-taken-back)."""
    host, paths = run.host, run.paths
    began = host.now()
    try:
        stop_kubelet(run)
        kept.put_back(host, paths, files=_kubelet_files(run))
        for path, text in _with_former_server(run).items():
            host.write_file(path, text, keeps=True)
        record_programs(run)
        static_pods_swap.record_files(run, _kubelet_files(run))
        start_and_watch(run, version=version, since=began, leaves_minor=leaves_minor, needs_ready=needs_ready)
        _tell_of_packages(run, version)
    except KbError as error:
        trouble = find_trouble(run, error)
        if not services.is_active(host, "kubelet"):
            with contextlib.suppress(KbError):  # pods run on without a kubelet, but nobody looks after them
                kubelet_start.restart_kubelet(run)
        raise ClusterError(
            f"the former kubelet, {version}, does not come back on node {run.config.node.name}",
            cause=trouble.cause,
            remedy=f"{trouble.remedy}; what was there before is in {kept.folder(paths) / 'former'}",
            code="kubelet-not-taken-back",
        ) from error


def _tell_of_packages(run: Run, version: str) -> None:
    manager = upgrade_programs.find_source(run)
    if manager in upgrade_programs.MANAGERS:
        run.report.note(f"the former kubelet, {version}, is in its place again; {manager} still lists the new package")


def _kubelet_files(run: Run) -> list[Path]:
    """Everything of the kubelet that was kept: programs, files, units, its repository. Not the manifests, which the swap takes back, and not
    kubelet.conf, whose certificate may have been renewed since."""
    found = kept.load(run.host, run.paths)
    names = [Path(name) for name in (found.files if found is not None else ())]
    return [path for path in names if path.parent != run.paths.manifests and path != _kubelet_conf(run)]


def _kubelet_conf(run: Run) -> Path:
    return run.paths.kubernetes / "kubelet.conf"


def _with_former_server(run: Run) -> dict[Path, str]:
    """kubelet.conf with the API server that it named before, if that is another one; the rest of it stays."""
    path, copy = _kubelet_conf(run), kept.copy_of(run.paths, _kubelet_conf(run))
    if not (run.host.exists(path) and run.host.exists(copy)):
        return {}
    text = run.host.read_text(path)
    try:
        now, before = (
            kubeconfig.parse_kubeconfig(one, source=str(path)).server for one in (text, run.host.read_text(copy))
        )
        wanted = kubeconfig.with_server(text, before, source=str(path)) if now != before else text
    except KbError as error:
        run.report.warn(f"{path} stays as it is: {error}")
        return {}
    return {path: wanted} if wanted != text else {}


# ---- the watch


def start_and_watch(
    run: Run, *, version: str, since: datetime.datetime, leaves_minor: bool = False, needs_ready: bool = True
) -> float:
    """Start the kubelet, and wait until the node is Ready with it and it has run for a while without a restart. Returns after how many
    seconds the node was Ready. since: reports from before it do not count. leaves_minor: the kubelet of before was of another minor.

    Raises HostError (kubelet-not-started), ClusterError (not-healthy) with what is broken.
    """
    host = run.host
    if services.find(host) is services.SYSTEMD:
        host.run(["systemctl", "reset-failed", "kubelet"])
    led = proof.read_holders(run, wake.CONTROLLERS) if run.config.is_control_plane and leaves_minor else {}
    with _former_pods_ended(run, leaves_minor=leaves_minor) as ended:
        kubelet_start.restart_kubelet(run)
    looked = 0.0
    began = host.monotonic()

    def meanwhile(missing: str, elapsed: float) -> None:
        nonlocal looked
        if elapsed > LOOK_AFTER_S and elapsed - looked > LOOK_EVERY_S:
            looked = elapsed
            unit = kubelet_trouble.read_kubelet_unit(host)
            if unit is not None and unit.is_ending and unit.exit_code:
                raise _not_healthy(run, f"it ends with exit code {unit.exit_code}")

    took_s = wait_for(
        host,
        lambda: find_missing(run, version, since=since, waited_s=host.monotonic() - began, needs_ready=needs_ready),
        goal=f"kubelet {version}",
        timeout_s=START_S * patience.find_patience(host),
        tell=run.report.waiting,
        failure=lambda missing, elapsed: _not_healthy(run, f"{missing} after {elapsed:.0f} s"),
        meanwhile=meanwhile,
        poll_s=POLL_S,
    )
    if led and former_pods.have_ended(run, ended):
        leads.free(run, led)
    _note_renewals(run)
    _watch_on(run)
    _wait_for_static_pods(run)
    _note_leaders(run)
    return took_s


def is_ready(run: Run) -> bool:
    """Whether the cluster has this node as Ready. Raises ApiRefused, Unreachable."""
    return probes.node_condition(run.api.get(node_path(run)))[0] == "True"


def find_missing(run: Run, version: str, *, since: datetime.datetime, waited_s: float, needs_ready: bool = True) -> str:
    """What is missing until the kubelet of this version ("": of any) works, in words; "" if nothing is."""
    host, name = run.host, run.config.node.name
    url = probes.kubelet_healthz_url(run.config)
    seen = probes.probe_url(host, url) if url else probes.Health(True, "")
    if not seen.is_healthy:
        return f"its health endpoint: {seen.seen}"
    client = api.Api(host, run.api.identity, retry_s=0)
    try:
        node = client.get(node_path(run))
        lease = client.get(api.path_of("Lease", name, namespace="kube-node-lease"))
    except KbError as error:
        return f"node {name} cannot be read: {error.cause}"
    told = probes.kubelet_version(node)
    if version and told != version:
        return f"node {name} still reports kubelet {told or 'nothing'}"
    status, message = probes.node_condition(node)
    if status != "True" and needs_ready:
        return f"node {name} is not Ready: {message}"
    if lease is not None and not is_renewed(lease, since):
        return f"node {name} has not renewed its Lease"
    return _find_missing_pods(run) if waited_s < ASKED_S * patience.find_patience(host) else ""


def _find_missing_pods(run: Run) -> str:
    """The static pods that the kubelet has not read yet; asked for only as long as that can be told."""
    wanted = {name for name in store.COMPONENTS if run.host.exists(run.paths.manifest(name))}
    if not wanted or not run.config.is_control_plane:
        return ""
    seen = kubelet_view.read_static_pods(run.host, run.paths, node_name=run.config.node.name)
    if seen is None:
        return "it does not say which static pods it runs"
    missing = sorted(wanted - set(seen))
    return f"it has not read {', '.join(missing)}" if missing else ""


def _wait_for_static_pods(run: Run) -> None:
    """Wait until each static pod that the kubelet runs is the one that it has read, and works. Raises ClusterError (not-healthy)."""
    names = [name for name in store.COMPONENTS if run.host.exists(run.paths.manifest(name))]
    if not names or not run.config.is_control_plane:
        return

    def look() -> str:
        read = kubelet_view.read_static_pods(run.host, run.paths, node_name=run.config.node.name) or {}
        listed = containers.list_containers(run.host, run.config.node.cri_socket)
        running = {(one.name, one.pod_uid) for one in listed if one.state == "running"}
        stale = [name for name in names if name in read and (name, read[name]) not in running]
        if stale:
            return f"it starts {', '.join(stale)} again"
        return next((f"{name}: {told}" for name in names if (told := proof.ask(run, name))), "")

    def tell(missing: str, elapsed: float) -> bool:
        run.report.waiting(say_round("static pods", missing, elapsed=elapsed, timeout_s=longest_s))
        return False

    longest_s = START_S * patience.find_patience(run.host)
    missing, elapsed = watch(run.host, look, timeout_s=longest_s, is_over=tell, poll_s=1.0)
    if missing:
        raise _not_healthy(run, f"{missing} after {elapsed:.0f} s")


def _note_renewals(run: Run) -> None:
    """For the gate: a kubelet that renews its lease while this one is watched need not do so once more. A worker may not see the others'."""
    run.found.led, run.found.looked_at = None, run.host.monotonic()
    if run.config.is_control_plane:
        with contextlib.suppress(KbError):  # the gate has its own look then
            run.found.renewals = health.read_node_renewals(run.api)


def _note_leaders(run: Run) -> None:
    """The same for the leaders, of after this kubelet may have started their static pods again."""
    if run.config.is_control_plane:
        with contextlib.suppress(KbError):
            run.found.led = health.read_leader_renewals(run.api)


def _watch_on(run: Run) -> None:
    """Raises ClusterError (not-healthy) if the kubelet is another process before it has run for LASTS_S more."""
    first = kubelet_trouble.read_kubelet_unit(run.host)
    if first is None or not first.pid:
        return
    began = run.host.monotonic()

    def look() -> str:
        unit = kubelet_trouble.read_kubelet_unit(run.host)
        if unit is not None and (unit.pid != first.pid or unit.is_ending):
            raise _not_healthy(run, "it worked for a moment, and then ended")
        ran_s = run.host.monotonic() - began
        return "" if ran_s >= LASTS_S else f"it has run for {ran_s:.0f} s of {LASTS_S:.0f} s"

    def tell(missing: str, elapsed: float) -> bool:
        run.report.waiting(say_round("kubelet", missing, elapsed=elapsed, timeout_s=LASTS_S))
        return False

    watch(run.host, look, timeout_s=2 * LASTS_S, is_over=tell, poll_s=1.0)


def _not_healthy(run: Run, missing: str) -> ClusterError:
    """With the kubelet's own last error, while its log is of this start."""
    host = run.host
    link = kubelet_trouble.find_kubelet_trouble(host) or kubelet_trouble.find_healthz_trouble(host)
    lines = kubelet_trouble.read_present_log(host)
    said = link.cause if link is not None else log_lines.last_error_line(lines)
    return ClusterError(
        f"the kubelet of node {run.config.node.name} does not work",
        cause=f"{missing}: {said}" if said else missing,
        remedy=f"see its log: {services.say_log(host, 'kubelet')}",
        code="not-healthy",
        details=tuple(lines[-5:]),
    )


def find_trouble(run: Run, error: BaseException) -> Trouble:
    """What an error of the change says, for an error that goes on."""
    if isinstance(error, KbError):
        return Trouble(error.what, error.cause, error.remedy)
    return Trouble("the upgrade was stopped", str(error) or type(error).__name__, services.say_log(run.host, "kubelet"))


KUBELET = Act(do=change_kubelet, foretell=foretell_kubelet, live="cluster", always=True)
