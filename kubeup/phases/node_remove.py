"""The phases of `kb node remove`: a node leaves the cluster, seen from another control plane.

The order is what makes it safe, and lets the same command go on after a kill at any change. What could be refused is asked first. Then the
pods leave, while their node is still known. Then the member of etcd goes, while whoever asks still knows by the Node whose it was; each of
these finds nothing to do the next time. The Node goes last: its addresses say what else is its. The machine itself is not touched.
See docs/adr/0025-nodes-leave.md. kubeadm has no counterpart: kubectl drain, kubectl delete node, etcdctl member remove.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.waiting import becomes_so, say_round, watch
from kubeup.phases import readdress

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import containerd_hosts
    from kubeup.cluster import api, departure, etcd, etcd_stop, eviction, objects, reboot_turn, try_mark
    from kubeup.network import drain
    from kubeup.swap import proof, turn

COMMAND = "kb node remove"
HOSTS_FOLDER = Path("/etc/containerd/certs.d")
DETACHED_S = 8.0
"""How long the volumes of a dead node may take to be detached. After that its Node goes, and they are detached some minutes later."""
FORGOTTEN_S = 100.0
"""From the mark of an API server that is gone until all load balancers have forgotten it, those too whose keeper does not say so: 25 s until
it is not listed any more, load_balancer.GONE_AFTER_S, and the pause of a keeper."""
DELISTED_S = 30.0
"""How long an API server without etcd is still listed: until its lease of 15 s is over, and the others look again."""


@frozen_by_name
class NodeRemoveRun(Run):
    """leaving: the node's name. agree: asks for consent to what is said; raises UsageError without it. drains: whether its pods are
    evicted; drain_s: for how long disruption budgets may refuse that."""

    leaving: str
    agree: Callable[[str], None]
    drains: bool = True
    drain_s: float = 300.0

    @property
    def departing(self) -> departure.Departing:
        return self.found.departing or departure.Departing(self.leaving)

    def say_again(self) -> str:
        return f"{COMMAND} {self.leaving}"


# ---- preflight


def look(ctx: NodeRemoveRun) -> Outputs:
    """Find the node, and refuse what would stop the cluster; tell what goes with it, and ask. Raises what departure.look, settle and check
    raise, UsageError (not-confirmed)."""
    client = own_etcd(ctx)
    one = departure.look(ctx.api, ctx.leaving, client=client)
    if one.is_nowhere:
        names = ", ".join(str(node["metadata"]["name"]) for node in ctx.api.list(api.path_of("Node")))
        ctx.report.note(f"the cluster has no node {ctx.leaving} (its nodes are {names}), and etcd no member of it")
        ctx.found.departing = one
        return None
    departure.check(one, own=ctx.config.node.name, endpoint=read_endpoint(ctx))
    ctx.found.departing = one = departure.settle(ctx.api, one, tell=ctx.report.waiting)
    ctx.agree(f"{'; '.join(_describe(ctx, one))}.")
    return None


def check(ctx: NodeRemoveRun) -> Outputs:
    """look, and keep others from stopping a member of etcd meanwhile. Raises ClusterError (swap-elsewhere)."""
    look(ctx)
    if ctx.departing.is_control_plane:
        _take_turn(ctx)
    return None


def own_etcd(ctx: Run) -> Optional[etcd.Etcd]:
    """A client of the cluster's own etcd; None if it is external."""
    return proof.own_etcd(ctx) if ctx.host.exists(ctx.paths.manifest("etcd")) else None


def read_endpoint(ctx: NodeRemoveRun) -> str:
    text = objects.read_config_key(ctx.api, "kubeadm-config", key="ClusterConfiguration")
    found = yaml_files.load_mapping(text or "{}", "ConfigMap kube-system/kubeadm-config")
    return str(found.get("controlPlaneEndpoint") or "")


def _describe(ctx: NodeRemoveRun, one: departure.Departing) -> Iterator[str]:
    """What happens, one part of a sentence each."""
    yield f"node {one.name} leaves the cluster" if one.node else f"there is no Node {one.name} any more"
    pods = len(departure.list_pods(ctx.api, one.name))
    if one.state == departure.DEAD:
        yield (
            f"its kubelet answers nobody, so {eviction.count(pods)} given up and its volumes detached: if that machine may still run, switch "
            "it off first, since two pods that write to one volume destroy it"
        )
    elif one.node is not None and not ctx.drains:
        yield f"{eviction.count(pods)} not evicted, and what is left goes with it whatever disruption budgets say"
    elif one.node is not None:
        prospect = eviction.look(ctx.api, one.name)
        yield f"{eviction.count(len(prospect.moves))} evicted from it"
        yield from prospect.describe()
        if prospect.moves and not eviction.has_refuge(ctx.api, one.name):
            yield "no other node takes pods"
    members = departure.say_members(one)
    if members:
        yield members
    mirror = find_mirror(ctx.host, ctx.departing.addresses)
    if mirror:
        yield (
            f"images come from its mirror {mirror}, on this node too: pods whose images are not on their node yet will not start, unless the "
            "mirror moves first (kb mirror move, here)"
        )


def find_mirror(host: Host, addresses: Collection[str]) -> str:
    """The URL of a mirror on the node with these addresses, from which this node pulls; "" if there is none."""
    names = host.list_dir(HOSTS_FOLDER) if host.is_dir(HOSTS_FOLDER) else []
    files = [path for path in (HOSTS_FOLDER / name / "hosts.toml" for name in names) if host.exists(path)]
    urls = {containerd_hosts.parse_mirror(host.read_text(path)) for path in files}
    return next((url for url in sorted(urls) if host_of(url.partition("://")[2].partition("/")[0]) in addresses), "")


def _take_turn(ctx: NodeRemoveRun) -> None:
    """Raises ClusterError (swap-elsewhere) if another node works on its etcd or its static pods. A dead one that leaves does not."""
    held = turn.take(ctx)
    if held is not None and held.node == ctx.leaving and ctx.departing.state in (departure.DEAD, departure.GONE):
        turn.end_of(ctx, held.node)
        held = turn.take(ctx)
    if held is not None:
        raise turn.refusal(held)


# ---- drain


def empty(ctx: NodeRemoveRun) -> Outputs:
    """Move the node's pods away, or give up those of a dead one. Raises ClusterError (pods-not-evicted, pods-not-gone): then it takes pods
    again."""
    one = ctx.departing
    if one.state == departure.DEAD:
        _give_up(ctx)
    elif one.node is not None and ctx.drains:
        try:
            eviction.drain(ctx.api, one.name, tell=ctx.report.waiting, note=ctx.report.note, refused_s=ctx.drain_s)
        except ClusterError:
            with contextlib.suppress(KbError):
                eviction.uncordon(ctx.api, one.name)
            raise
    return None


def _give_up(ctx: NodeRemoveRun) -> None:
    name = ctx.leaving
    count = departure.give_up(ctx.api, name)
    ctx.report.note(f"{eviction.count(count)} given up, of node {name}")

    def look() -> str:
        left = departure.find_attached(ctx.api, name)
        return f"still attached: {', '.join(left)}" if left else ""

    def say(missing: str, elapsed: float) -> bool:
        ctx.report.waiting(say_round(f"the volumes of node {name}", missing, elapsed=elapsed, timeout_s=DETACHED_S))
        return False

    missing, _ = watch(ctx.host, look, timeout_s=DETACHED_S, is_over=say, poll_s=0.5)
    if missing:
        ctx.report.warn(
            f"{missing}: pods that need them start elsewhere once the cluster has detached them, after some minutes"
        )


def foretell_empty(ctx: NodeRemoveRun) -> Outputs:
    """Dry run: the requests, and no wait for what they bring about."""
    one = ctx.departing
    if one.state == departure.DEAD:
        departure.give_up(ctx.api, one.name)
    elif one.node is not None and ctx.drains:
        eviction.foretell_drain(ctx.api, one.name)
    return None


# ---- etcd


def remove_member(ctx: NodeRemoveRun) -> Outputs:
    """Take the node's API server out of the load balancers, and its member out of etcd, which is counted once more right before. Raises
    ClusterError (etcd-removal-unsafe, etcd-leader-stays, swap-elsewhere), EtcdRefused."""
    found = _count_again(ctx)
    if found is None:
        return None
    client, members, own = found
    _take_turn(ctx)
    if own.member_id not in ctx.departing.trouble:
        if ctx.departing.server:
            told = drain.drain(ctx.api, ctx.departing.server, tell=ctx.report.waiting)
            _note_silent(ctx, told.silent)
        etcd_stop.lead_away(client, members, own=own)
    client.remove(own)
    left = [member.name or member.hex_id for member in members if member is not own]
    ctx.report.note(
        f"{own.describe()} is no member of etcd any more; {', '.join(left)} {'is' if len(left) == 1 else 'are'}"
    )
    return None


def _count_again(ctx: NodeRemoveRun) -> Optional[tuple[etcd.Etcd, tuple[etcd.Member, ...], etcd.Member]]:
    """A client of the other members, all members, and the one that leaves; None if it is no member. Raises ClusterError
    (etcd-removal-unsafe)."""
    wanted, client = ctx.departing.member, own_etcd(ctx)
    if wanted is None or client is None:
        return None
    members = client.list_members(is_sure=False)
    own = next((one for one in members if one.member_id == wanted.member_id), None)
    if own is None:
        return None
    etcd.check_removal(members, own, trouble=etcd.probe_members(client, members))
    others = [url for one in members if one is not own for url in one.client_urls]  # it cannot confirm its own removal
    return etcd.Etcd(ctx.host, others, tls=client.tls), members, own


def _note_silent(ctx: NodeRemoveRun, names: tuple[str, ...]) -> None:
    others = [name for name in names if name != ctx.leaving]
    if others:
        ctx.report.note(
            f"the load balancers of {', '.join(others)} did not say that they leave {ctx.departing.server} out; their own checks do "
            "within some seconds"
        )


def foretell_member(ctx: NodeRemoveRun) -> Outputs:
    found = _count_again(ctx)
    if found is not None:
        found[0].remove(found[2])
    return None


# ---- what names its address


def plan_names(run: NodeRemoveRun) -> Plan:
    """cluster-info and kube-proxy call this control plane if they called the one that leaves. All nodes have another endpoint: that was
    checked."""
    info = run.api.get(api.path_of("ConfigMap", "cluster-info", namespace=objects.PUBLIC))
    texts = (
        objects.value_of(info, "kubeconfig"),
        objects.read_config_key(run.api, "kube-proxy", key="kubeconfig.conf"),
    )
    called = {_host_in(text) for text in texts if text}
    old = next((one for one in run.departing.addresses if one in called), "")
    if not old:
        return Plan()
    new = run.config.local_api_endpoint.advertise_address
    moved = readdress.ReaddressRun(**_values(run), old=old, new=new, is_own=True, folder=Path())
    return Plan(*readdress.plan_cluster_info(moved).parts, *readdress.plan_kube_proxy(moved).parts)


def _host_in(text: str) -> str:
    """The host of the server that a kubeconfig names; cluster-info has no user, and so is none that could be used."""
    clusters = yaml_files.load_mapping(text, "kubeconfig").get("clusters") or [{}]
    server = str((clusters[0].get("cluster") or {}).get("server") or "")
    return host_of(server.partition("://")[2].partition("/")[0])


def _values(run: Run) -> dict[str, Any]:
    return {item.name: getattr(run, item.name) for item in dataclasses.fields(Run)}


# ---- the end


def strike_out(ctx: NodeRemoveRun) -> Outputs:
    """Delete the node's objects, wait until its API server is not listed any more, and list what is left to do elsewhere."""
    one = ctx.departing
    is_found, pods = departure.strike_out(ctx.api, ctx.leaving)
    if is_found or pods:
        ctx.report.note(
            f"the Node of {ctx.leaving} and its leases are deleted, and {eviction.count(pods)} deleted with it"
        )
    left = list(_list_remaining(ctx))
    if one.server and not _is_delisted(ctx):
        left.append(f"{one.server} is still listed as an API server: kubectl get endpointslice kubernetes")
    _forget_marks(ctx)
    try_mark.remove(ctx.api, ctx.leaving)
    reboot_turn.give_back(ctx.api, ctx.leaving)
    return Results(remaining=tuple(left))


def _is_delisted(ctx: NodeRemoveRun) -> bool:
    server = ctx.departing.server
    ctx.report.waiting(f"the other API servers take {server} off their list")
    return becomes_so(
        ctx.host, lambda: server not in objects.read_api_servers(ctx.api), timeout_s=DELISTED_S, poll_s=1.0
    )


def _forget_marks(ctx: NodeRemoveRun) -> None:
    """Remove the marks of API servers that no node has, those of an earlier run too, which was killed after the Node had gone: a machine that
    joins with such an address is to get connections at once. Not before the load balancers have forgotten the server: without its mark they
    would send it connections again, until their checks fail."""
    known = {address for node in ctx.api.list(api.path_of("Node")) for address in departure.addresses_of(node)}
    marks = {one: since for one, since in drain.read_marks(ctx.api).items() if host_of(one) not in known}
    for server in marks:
        drain.strike(ctx.api, server)

    names: list[str] = []

    def look() -> str:
        age_s = min([drain.age_of(since, now=ctx.host.now()) for since in marks.values()], default=FORGOTTEN_S)
        if age_s >= FORGOTTEN_S:
            return ""
        names[:] = drain.list_mindful(ctx.api, marks)
        return f"known to {', '.join(names)} for {FORGOTTEN_S - age_s:.0f} s more" if names else ""

    def say(missing: str, elapsed: float) -> bool:
        ctx.report.waiting(
            say_round(f"load balancers without {', '.join(marks)}", missing, elapsed=elapsed, timeout_s=FORGOTTEN_S)
        )
        return False

    watch(ctx.host, look, timeout_s=FORGOTTEN_S, is_over=say, poll_s=1.0)
    if names:
        ctx.report.note(
            f"the load balancers of {', '.join(names)} did not say that they have forgotten {', '.join(marks)}; their own checks leave it out"
        )
    for server in marks:
        drain.forget(ctx.api, server)


def _list_remaining(ctx: NodeRemoveRun) -> Iterator[str]:
    one = ctx.departing
    if one.state == departure.LIVING:
        yield f"on {one.name}: kb reset --force, or kubeadm reset if kubeadm made it (until then a restart of its kubelet makes it a node again)"
    if one.server and not objects.read_load_balancer(ctx.api).is_local:
        yield f"in a load balancer of your own: take out {one.server}"


def foretell_end(ctx: NodeRemoveRun) -> Outputs:
    departure.strike_out(ctx.api, ctx.leaving)
    return None


CHECKS = Act(do=check, foretell=look, live="node", always=True)
DRAIN = Act(do=empty, foretell=foretell_empty, live="node", always=True)
ETCD_MEMBER = Act(do=remove_member, foretell=foretell_member, live="node", always=True)
STRIKE_OUT = Act(do=strike_out, foretell=foretell_end, live="node", always=True)
