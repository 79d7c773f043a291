"""The phases of `kb node reboot`: one node at a time is emptied, reboots, and takes pods again once it is well.

The record is written before anything changes: whoever comes after a boot, the unit or the same command, knows by it that there is something
to finish. The unit is laid last, before the reboot itself. kubeadm has no counterpart.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import record_file, services
from kubeup.machine.host import Host
from kubeup.machine.waiting import wait_for
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap, tried_swap

with lazily:
    from kubeup.cluster import api, departure, etcd_stop, eviction, probes, reboot_turn
    from kubeup.node import crictl
    from kubeup.swap import manifests, proof, turn

UNIT = "kb-reboot.service"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MARKS = (Path("/run/reboot-required"), Path("/var/run/reboot-required"))
"""What Debian's packages leave when a reboot is due."""
SERVER_ENDS_S = "5"
"""For how many seconds the API server may still answer those that it has not sent away."""
WELL_S = 300.0
"""How long a node may take after its boot until it is well. The unit tries again after that."""


@frozen_by_name
class RebootRun(Run):
    """agree: asks for consent; drains, drain_s: as in node_remove. is_server: this node is a control plane."""

    agree: Callable[[str], None]
    is_server: bool
    drains: bool = True
    drain_s: float = 300.0

    @property
    def name(self) -> str:
        return str(self.config.node.name)


# ---- the record


def record_path(paths: Paths) -> Path:
    return paths.state_dir / "reboot" / "reboot.json"


def read_boot_id(host: Host) -> str:
    return host.read_text(BOOT_ID).strip() if host.exists(BOOT_ID) else ""


def find_begun(host: Host, paths: Paths) -> str:
    """The boot in which a reboot of this node was begun; "" if none was, or it is finished. Raises HostError (reboot-unreadable)."""
    path = record_path(paths)
    if not host.exists(path):
        return ""
    try:
        return str(record_file.read(host, path, shape={"boot!": str})["boot"])
    except ValueError as error:
        raise HostError(
            f"{path} cannot be read",
            cause=str(error),
            remedy=f"if no reboot is to be finished, remove it: rm {path}; then see whether the node is cordoned: kubectl get nodes",
            code="reboot-unreadable",
        ) from error


def is_required(host: Host) -> str:
    """Why a reboot is due, by the package manager's word; "" if it is not. Source: needs-restarting(1), exit status 1 of -r"""
    for mark in MARKS:
        if host.exists(mark):
            return f"{mark} is there"
    told = host.query(["needs-restarting", "-r"], timeout_s=120) if host.which("needs-restarting") else None
    return "needs-restarting -r says so" if told is not None and told.code == 1 else ""


def give_up(host: Host, paths: Paths) -> None:
    """Forget a reboot that was begun: there is nothing to finish any more."""
    tried_swap.remove_unit(host, paths, unit=UNIT)
    if host.exists(record_path(paths)):
        host.remove(record_path(paths))


# ---- before


def check(ctx: RebootRun) -> Outputs:
    """Whether the cluster can do without this node meanwhile; tell what leaves, ask, and take the turn. Raises HostError: no-systemd,
    kubelet-not-enabled; ClusterError: etcd-stop-unsafe, reboot-elsewhere, reboot-not-provided, swap-elsewhere; UsageError
    (not-confirmed)."""
    if find_begun(ctx.host, ctx.paths):
        wake(dataclasses.replace(ctx, host=ctx.machine or ctx.host))
    look(ctx)
    if ctx.is_server:
        reboot_turn.provide(ctx.api)
    reboot_turn.take(ctx.api, ctx.name)
    held = turn.take(ctx) if ctx.is_server else None
    if held is not None:
        reboot_turn.give_back(ctx.api, ctx.name)
        raise turn.refusal(held)
    record_file.write(ctx.machine or ctx.host, record_path(ctx.paths), values={"boot": read_boot_id(ctx.host)})
    return None


def look(ctx: RebootRun) -> Outputs:
    """What is asked and refused, with nothing changed."""
    manager = services.find(ctx.host)
    if manager is None or manager.name != "systemd":
        raise HostError(
            "a reboot cannot be finished without systemd",
            cause="a unit of its lets pods onto the node again after the boot",
            remedy=f"by hand: kb node drain; reboot; kb node uncordon {ctx.name}",
            code="no-systemd",
        )
    if ctx.host.query(["systemctl", "is-enabled", "kubelet"]).stdout.strip() == "disabled":
        raise HostError(
            "the kubelet does not start at boot",
            cause="systemctl is-enabled kubelet says: disabled; the node would not come back",
            remedy="systemctl enable kubelet",
            code="kubelet-not-enabled",
        )
    ctx.agree(f"{'; '.join(_describe(ctx))}.")
    return None


def _describe(ctx: RebootRun) -> Iterator[str]:
    yield f"node {ctx.name} reboots"
    if ctx.is_server:
        members, own, trouble = static_pods_swap.check_quorum(ctx) if _has_etcd(ctx) else ((), None, {})
        gap = etcd_stop.stop_gap(members, own, trouble=trouble) if own is not None else ""
        if gap or not static_pods_swap.list_other_servers(ctx):
            yield f"the cluster's API is away until it is back{f', since {gap}' if gap else ''}"
    if ctx.drains:
        prospect = eviction.look(ctx.api, ctx.name)
        yield f"{eviction.count(len(prospect.moves))} evicted from it"
        yield from prospect.describe()
    else:
        yield "its pods start again with it"


def _has_etcd(ctx: Run) -> bool:
    return ctx.host.exists(ctx.paths.manifest("etcd"))


def empty(ctx: RebootRun) -> Outputs:
    """Evict the node's pods. Raises ClusterError (pods-not-evicted, pods-not-gone), and then the node is as before."""
    if not ctx.drains:
        return None
    try:
        eviction.drain(ctx.api, ctx.name, tell=ctx.report.waiting, note=ctx.report.note, refused_s=ctx.drain_s)
    except ClusterError:
        with contextlib.suppress(KbError):
            give_all_back(ctx)
        raise
    return None


def foretell_empty(ctx: RebootRun) -> Outputs:
    if ctx.drains:
        eviction.foretell_drain(ctx.api, ctx.name)
    return None


def reboot(ctx: RebootRun) -> Outputs:
    """Lay the unit that finishes it, take this API server out of the load balancers and etcd's leadership away, and reboot. Raises
    HostError, ClusterError (etcd-stop-unsafe, etcd-leader-stays)."""
    tried_swap.start_unit(ctx, UNIT)
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    if ctx.is_server:
        static_pods_swap.find_surroundings(run).leave()
        if _has_etcd(run):
            members, own, _ = static_pods_swap.check_quorum(run)  # once more: it may have changed while the pods left
            if own is not None:
                etcd_stop.lead_away(proof.own_etcd(run), members, own=own)
        _end_server(run)
    done = run.host.run(["systemctl", "reboot"])
    if not done.ok:
        wake(run)
        raise HostError(
            "systemctl reboot failed",
            cause=(done.stderr or done.stdout).strip() or f"it ended with code {done.code}",
            remedy="see what keeps it: systemd-inhibit --list; or let pods onto the node again: kb node uncordon",
            code="reboot-failed",
        )
    ctx.report.note(
        f"the machine reboots now; {UNIT} lets pods onto the node again once it is well: journalctl -u {UNIT}"
    )
    return None


def _end_server(run: Run) -> None:
    """End the API server, which does not end by itself while somebody watches: systemd would give it 90 s. The kubelet, which would start it
    again, is stopped for that."""
    services.run(run.host, "stop", unit="kubelet", timeout_s=60)
    ids = [one.id for one in manifests.find_living(run, ("kube-apiserver",)) or ()]
    if ids:
        run.host.run(
            crictl.crictl_argv(run.config.node.cri_socket, "stop", "--timeout", SERVER_ENDS_S, *ids), timeout_s=60
        )


def wake(run: Run) -> None:
    """Start a kubelet that a run has stopped which did not come to the reboot."""
    if not services.is_active(run.host, "kubelet"):
        services.run(run.host, "start", unit="kubelet", timeout_s=120)


def foretell_reboot(ctx: RebootRun) -> Outputs:
    ctx.host.run(["systemctl", "reboot"])
    return None


# ---- after


def finish(ctx: RebootRun) -> Outputs:
    """Wait until the node is well, then let pods and connections onto it, and others reboot. Raises ClusterError (not-well-after-boot)."""
    first = departure.read_renewal(ctx.api, ctx.name)

    def look() -> str:
        try:
            return _say_unwell(ctx, first)
        except KbError as error:
            return error.cause or error.what

    def failure(missing: str, elapsed: float) -> ClusterError:
        return ClusterError(
            f"node {ctx.name} is not well after its reboot",
            cause=f"{missing}, for {elapsed:.0f} s; it stays cordoned, and no other node reboots",
            remedy=f"see why: kb doctor; then, if {UNIT} has not done so: kb node uncordon",
            code="not-well-after-boot",
        )

    goal, tell = f"node {ctx.name}", ctx.report.waiting
    wait_for(ctx.host, look, goal=goal, timeout_s=WELL_S, tell=tell, failure=failure, poll_s=1.0)
    give_all_back(ctx)
    return None


def _say_unwell(ctx: RebootRun, first: str) -> str:
    """What is missing, in words. What the cluster says of the node may be of before the boot, unless its kubelet has renewed its lease."""
    if ctx.is_server:
        told = proof.ask_apiserver(ctx) or (proof.ask_etcd(ctx) if _has_etcd(ctx) else "")
        if told:
            return told
    status, message = probes.node_condition(ctx.api.get(api.path_of("Node", ctx.name)))
    if status != "True":
        return f"it is not Ready: {message or 'its kubelet says nothing'}"
    return "" if departure.read_renewal(ctx.api, ctx.name) != first else "its kubelet has not renewed its lease yet"


def give_all_back(ctx: RebootRun) -> None:
    """Take back what the reboot told the cluster: connections, pods, turns. The record goes last. Raises KbError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    if ctx.is_server:
        static_pods_swap.find_surroundings(run).rejoin()
        turn.give_back(run)
    eviction.uncordon(run.api, run.name)
    reboot_turn.give_back(run.api, run.name)
    run.host.remove(record_path(run.paths))


CHECKS = Act(do=check, foretell=look, live="node", always=True)
DRAIN = Act(do=empty, foretell=foretell_empty, live="node", always=True)
REBOOT = Act(do=reboot, foretell=foretell_reboot, live="node", always=True)
READY = Act(do=finish, live="node", always=True)
