"""The swap: the order in which static pods are stopped and started, and the way back.

    API server out of the load balancers
    API server out
        etcd's leadership away; etcd out; a copy of its data, if it is the only member; etcd in; a read with quorum
    API server in; probe; back into the load balancers
    controller-manager and scheduler out and in, side by side
    one watch of all of them

etcd never stops under an API server that serves, since that would answer 5xx (H5). If anything fails, or kb is told to stop, what was
swapped so far comes back. Every step looks first, so that the same command continues a swap that was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.swap import etcd_return, leads, manifests, proof, store, wake
from kubeup.swap.store import Pod, Swap
from kubeup.yaml_files import commands_of_pod, flags_of, load_mapping

with lazily:
    from kubeup.cluster import etcd_stop
    from kubeup.node import etcd_data

BALLAST_MIB = {"ballast": 96, "ballast-2": 64}
"""Space that is kept for the way back, in case the disk fills up meanwhile. It goes in two parts: an etcd that starts takes 61 MiB at once, the
next segment of its log (SegmentSizeBytes of server/storage/wal), and the kubelet needs some for each pod that it starts after that."""
SERVER = "kube-apiserver"
CALLED = frozenset(proof.SERVERS)
"""The pods whose swap takes the API server away from those who call it."""
BACK_S = 60.0
"""How long a former pod may take to serve again."""
ETCD_BACK_S = 40.0
"""How long the former etcd may take with the data that is there, before it gets other data. Longer than proof.START_S, so that a kubelet is
restarted that delays its start, because it has ended so often already."""


@frozen
class Surroundings:
    """What is around this node's control plane. is_only: whether no other node runs these components.

    leave, rejoin: take this node's API server out of the load balancers in front of it, and put it back; both do nothing if there
    are none. let_others: other control planes may swap. begin_watch: all new pods run, and are watched from now on. is_away: this API
    server has stopped, and the next one has not started."""

    is_only: Callable[[], bool]
    leave: Callable[[], None] = lambda: None
    rejoin: Callable[[], None] = lambda: None
    let_others: Callable[[], None] = lambda: None
    begin_watch: Callable[[], None] = lambda: None
    is_away: Callable[[], None] = lambda: None


@frozen
class Ended:
    """A swap that succeeded. gap_s: how long this node's API server was away; None if it never was. notes: what was not proven."""

    gap_s: Optional[float] = None
    notes: tuple[str, ...] = ()


@dataclass
class Order:
    """One swap on this node, from wherever an earlier run was cut off."""

    run: Run
    swap: Swap
    around: Surroundings
    record: Callable[[], None] = lambda: None
    """Called when the manifests are as they stay, before the swap counts as ended."""
    _has_served: Optional[bool] = None
    """Whether an API server has served with the new etcd; None if an earlier run put it in."""

    def carry_out(self, ends_as: str = store.DONE) -> Ended:
        """Afterwards either all wanted pods run, or all former ones. Raises KbError with the cause, after the way back. ends_as: the
        status of the swap in its record."""
        began = self.run.host.monotonic()
        try:
            ended = self._go_forward()
        except BaseException as error:
            self._go_back_after(error, began)
            raise
        self._finish(ends_as, is_as_before=False)
        return ended

    def go_back(self) -> None:
        """Bring every former pod back. Raises KbError."""
        drop_ballast(self.run, next(iter(BALLAST_MIB)))
        manifests.keep_kubelet(self.run)
        if self.swap.data_dir and self._may_have_served():
            etcd_data.remove_copy(self.run.host, Path(self.swap.data_dir))
        names = {pod.name for pod in self.swap.pods if not manifests.has_stayed(self.run, pod)}
        if "etcd" in names:
            names.add(SERVER)
        try:
            self._wake_other("etcd")
            self._bring_back_servers(names & set(self.swap.names))
            drop_ballast(self.run)
            self._wake_other(SERVER)  # before the controllers, of which some end without it
            self._bring_back([self.swap.pod(name) for name in wake.CONTROLLERS if name in names])
        except KbError:
            drop_ballast(self.run)
            self._leave_none_out()
            raise
        # never taken out, or put back by an earlier run
        stayed = [pod for pod in self.swap.pods if pod.name not in names and pod.name not in self.swap.broken]
        self._wait_back(pod for pod in stayed if pod.name not in wake.CONTROLLERS)
        self.around.rejoin()
        # of a controller, an end is no failure now: it could not renew its lease while the API was away
        if not self._wake(wake.CONTROLLERS):
            self._wait_back(pod for pod in stayed if pod.name in wake.CONTROLLERS)
        self._finish(store.TAKEN_BACK, is_as_before=True)

    def _wait_back(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            self._wait_again(pod.name, pod.former, timeout_s=BACK_S)

    def _wake_other(self, name: str) -> None:
        """Have a server of this node that is none of the pods of this swap serve again, if a full disk has ended it."""
        if name not in self.swap.names and self.run.host.exists(self.run.paths.manifest(name)):
            wake.wake_server(self.run, name)

    def _leave_none_out(self) -> None:
        """Give the kubelet back what is out: it starts by itself when its cause is over, a network that is away for example. Not etcd,
        whose data may be gone; and no API server without it."""
        for pod in self.swap.pods:
            needs_etcd = pod.name == SERVER and "etcd" in self.swap.names
            is_ready = not needs_etcd or self.run.host.exists(self.run.paths.manifest("etcd"))
            if pod.name != "etcd" and is_ready and not self.run.host.exists(self.run.paths.manifest(pod.name)):
                manifests.put_in(self.run, pod.name, text=pod.former)

    def _wake(self, names: Sequence[str]) -> bool:
        """Have those of these controllers go on that ended while the API was away. Whether they do; if not, the health gate says so."""
        here = [name for name in names if self.run.host.exists(self.run.paths.manifest(name))]
        return wake.wake(self.run, [name for name in here if name not in self.swap.broken])

    def _may_have_served(self) -> bool:
        """Whether an API server may have written through the new etcd: the copy of before would lose that."""
        if self._has_served is not None:
            return self._has_served
        is_in = self.run.host.exists(self.run.paths.manifest(SERVER))
        return is_in and manifests.has_come(self.run, self.swap.pod("etcd"))

    def _wait_again(self, name: str, text: str, *, timeout_s: float = proof.START_S) -> str:
        """Wait for a pod that an earlier run has put in; what ended before is none of it."""
        ended = proof.list_ids(self.run, [name], only_ended=True)
        return proof.wait_until_works(self.run, name, text=text, known=ended, timeout_s=timeout_s)

    def _finish(self, status: str, *, is_as_before: bool) -> None:
        self.record()
        manifests.remove_leftovers(self.run.host, self.run.paths, names=self.swap.names)
        drop_ballast(self.run)
        if self.swap.data_dir:
            etcd_data.remove_copy(self.run.host, Path(self.swap.data_dir))
        self.around.let_others()  # before the record: whoever is killed in between does so again
        store.end(
            self.run.host,
            self.run.paths,
            swap=replace(self.swap, status=status, data_dir=""),
            is_as_before=is_as_before,
        )

    # ---- forward

    def _go_forward(self) -> Ended:
        names = {pod.name for pod in self.swap.pods if not manifests.has_come(self.run, pod)}
        if "etcd" in names:  # a way back that was cut off may have put the same API server in, with the former etcd
            names.update({SERVER}.intersection(self.swap.names))
        new: dict[str, str] = {}
        gap_s = self._exchange_servers(names, new)
        self.around.rejoin()
        controllers = [name for name in wake.CONTROLLERS if name in names]
        # one that could not renew its lease while the API was away has ended, and its successor may hold it by now
        ended = proof.read_holders(self.run, controllers)
        self._exchange(
            [self.swap.pod(name) for name in controllers], new, meanwhile=lambda: leads.free(self.run, ended)
        )
        self._wake([name for name in wake.CONTROLLERS if name in self.swap.names and name not in new])
        for pod in self.swap.pods:
            if pod.name not in new:  # an earlier run has put it in
                new[pod.name] = self._wait_again(pod.name, pod.wanted)
        first = proof.read_renewals(self.run, self.swap.holders)
        self.around.begin_watch()
        proof.watch_all(self.run, new)
        self._wake(wake.CONTROLLERS)
        leading = proof.wait_for_lead(self.run, self.swap.holders, first=first, is_only=self.around.is_only())
        return Ended(gap_s, tuple(_say_unproven(one) for one in leading if not one.leads))

    def _exchange_servers(self, names: set[str], new: dict[str, str]) -> Optional[float]:
        """etcd and the API server. Returns for how many seconds this API server was away; None if it is not swapped now."""
        if not names & CALLED:
            return None
        if "etcd" in names:
            self._refuse_lost_data()
        self.around.leave()
        began = self.run.host.monotonic()
        if SERVER in names:
            manifests.take_out(self.run, [SERVER])
            self.around.is_away()
        if "etcd" in names:  # only now: a write of this API server would fail while the leadership leaves its etcd
            lead_away(self.run)
        known = proof.list_ids(self.run, [SERVER])
        if "etcd" in names:
            self._has_served = False
            self._exchange([self.swap.pod("etcd")], new, meanwhile=self._copy_data)
        elif "etcd" in self.swap.names:
            new["etcd"] = self._wait_again("etcd", self.swap.pod("etcd").wanted)
        if SERVER not in names:
            return None
        self._put_in([self.swap.pod(SERVER)], new, known=known)
        self._has_served = True
        if self.swap.data_dir:
            etcd_data.remove_copy(self.run.host, Path(self.swap.data_dir))  # it would lose what is written from here on
        return self.run.host.monotonic() - began

    def _exchange(
        self, pods: Sequence[Pod], new: dict[str, str], *, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Stop and start pods that do not need each other, side by side. meanwhile: what is done while they are stopped."""
        if not pods:
            return
        names = [pod.name for pod in pods]
        manifests.take_out(self.run, names)
        meanwhile()
        known = proof.list_ids(self.run, names)  # only now: the kubelet may have restarted a container just before
        self._put_in(pods, new, known=known)

    def _put_in(self, pods: Sequence[Pod], new: dict[str, str], *, known: frozenset[str]) -> None:
        for pod in pods:
            manifests.put_in(self.run, pod.name, text=pod.wanted)
        for pod in pods:
            new[pod.name] = proof.wait_until_works(self.run, pod.name, text=pod.wanted, known=known)

    def _copy_data(self) -> None:
        """Copy the data of the stopped member, unless an earlier run has, since when it was not started."""
        data_dir = Path(self.swap.data_dir)
        if self.swap.data_dir and not etcd_data.has_copy(self.run.host, data_dir):
            etcd_data.copy_data(self.run.host, data_dir)

    # ---- back

    def _go_back_after(self, error: BaseException, began: float) -> None:
        """Bring the former pods back after an error. Raises ClusterError (swap-not-taken-back) if that fails too."""
        why = str(error) if isinstance(error, KbError) else "kb was told to stop"
        self.run.report.note(f"{why}. Going back to the former pods")
        try:
            self.go_back()
        except KbError as worse:
            raise ClusterError(
                why,
                cause=f"the way back failed too: {worse}",
                remedy=f"{worse.remedy}; then: kb reconfigure static-pods --undo",
                code="swap-not-taken-back",
                details=worse.details,
            ) from error
        took = self.run.host.monotonic() - began
        self.run.report.note(f"the former pods serve again, {took:.0f} s after the swap began")

    def _bring_back_servers(self, names: set[str]) -> None:
        if SERVER in names:
            manifests.take_out(self.run, [SERVER])
            known = proof.list_ids(self.run, [SERVER])
        if "etcd" in names:
            self._bring_back_etcd(self.swap.pod("etcd"))
        if SERVER in names:
            self._put_back([self.swap.pod(SERVER)], known=known)

    def _bring_back_etcd(self, pod: Pod) -> None:
        """The former etcd with the data that is there, which loses nothing. Only if it cannot start with them, a single member gets
        the copy of its folder from before, and one of several joins again (H8)."""
        data_dir = Path(self.swap.data_dir)
        has_copy = bool(self.swap.data_dir) and etcd_data.has_copy(self.run.host, data_dir)
        why = self._find_lost_data(has_copy=has_copy)
        try:
            if not why:
                self._bring_back_twice(pod)
        except proof.NotProven as error:
            if not error.has_exited or (self.swap.data_dir and not has_copy):
                raise
            why = f"the former etcd does not start with the data that is there ({error})"
        if why:
            self.run.report.note(why)
            if self.swap.data_dir:
                etcd_return.restore(self.run, pod.former)
            else:
                etcd_return.rejoin(self.run, pod.former, urls=self.swap.others, keep=self._keep_former)
        if has_copy:
            etcd_data.remove_copy(self.run.host, data_dir)  # from here on etcd writes: the copy grows old

    def _refuse_lost_data(self) -> None:
        """etcd must not start on data that an earlier run was replacing, nor on an empty folder: it would begin a cluster without any
        objects, and the copy of the former data would count as old (H7). Raises ClusterError (swap-goes-back), HostError."""
        why = self._find_lost_data(has_copy=False)
        if why:
            raise ClusterError(
                "this swap cannot go on: its etcd did not work",
                cause=f"{why}, on the way back of this swap",
                remedy="correct what the manifest of etcd says, then swap it again",
                code="swap-goes-back",
            )

    def _find_lost_data(self, *, has_copy: bool) -> str:
        """Why etcd cannot start with the data that is there, in words; "" if it may. Raises HostError (etcd-data-missing) if they are gone,
        and there is no copy of them: a disk that is not mounted since the machine was started again looks like this."""
        host, place = self.run.host, self.run.paths.etcd_data
        if etcd_data.is_half_replaced(host, place):
            return f"an earlier run was cut off while it replaced the data in {place}"
        command, *_ = [*commands_of_pod(load_mapping(self.swap.pod("etcd").former, "etcd.yaml")), []]
        wal_dir = flags_of(command).get("wal-dir")
        try:
            etcd_data.refuse_empty(host, place, others=self.swap.others, wal_dir=Path(wal_dir) if wal_dir else None)
        except HostError:
            if not has_copy:
                raise
            return f"the data in {place} are gone"
        return ""

    def _bring_back_twice(self, pod: Pod) -> None:
        """One exit is no proof that the data are broken: a port that is not free yet ends etcd too. Raises NotProven."""
        try:
            self._bring_back([pod], timeout_s=ETCD_BACK_S)
        except proof.NotProven as error:
            if not error.has_exited:
                raise
            self._bring_back([pod], timeout_s=ETCD_BACK_S)

    def _keep_former(self, text: str) -> None:
        """The manifest with which etcd joins again is the one that the way back ends with."""
        self.swap = self.swap.with_former("etcd", text)
        store.save(self.run.host, self.run.paths, swap=self.swap)

    def _bring_back(self, pods: Sequence[Pod], *, timeout_s: float = BACK_S) -> None:
        if not pods:
            return
        names = [pod.name for pod in pods]
        manifests.take_out(self.run, names)
        known = proof.list_ids(self.run, names)
        self._put_back(pods, known=known, timeout_s=timeout_s)

    def _put_back(self, pods: Sequence[Pod], *, known: frozenset[str], timeout_s: float = BACK_S) -> None:
        for pod in pods:
            manifests.put_in(self.run, pod.name, text=pod.former)
        for pod in pods:
            if pod.name in self.swap.broken:
                self.run.report.note(
                    f"{pod.name} has its former manifest again, with which it did not work before either"
                )
                continue
            proof.wait_until_works(self.run, pod.name, text=pod.former, known=known, timeout_s=timeout_s)


def lead_away(run: Run) -> None:
    """Have another member lead etcd before this one stops, so that the others need no election (H5)."""
    client = proof.own_etcd(run)
    try:
        members = client.list_members(is_sure=False)
        own = proof.find_own_member(run, members)
        leader = etcd_stop.lead_away(client, members, own=own) if own is not None else None
    except KbError as error:
        run.report.detail(f"etcd's leadership stays: {error}")
        return
    if leader is not None:
        run.report.detail(f"etcd's leadership moved to {leader.name}")


def _say_unproven(one: proof.Leading) -> str:
    leader = one.holder or "no other"
    return f"{one.name} of this node runs, and {leader} leads: what only a leader does with its flags is not proven"


# ---- space for the way back


def keep_ballast(run: Run) -> None:
    """Occupy some space that the way back can have. Without fallocate, or on a file system that lacks it, there is none."""
    for name, size_mib in BALLAST_MIB.items():
        run.host.run(["fallocate", "-l", f"{size_mib}MiB", str(store.folder(run.paths) / name)])


def drop_ballast(run: Run, *names: str) -> None:
    """Give back these parts of it; all if none is named."""
    for name in names or BALLAST_MIB:
        place = store.folder(run.paths) / name
        if run.host.exists(place):
            run.host.remove(place)
