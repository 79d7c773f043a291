"""What an upgrade would do, node by node: versions of now and then, what restarts, the lines to run, and what was seen to say so.

Pure. A plan that is kept in a file is good for as long as what was seen stays the same: `find_moved` says what did not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from kubeup import releases
from kubeup.cluster import upgrade_turn
from kubeup.frozen_values import frozen
from kubeup.releases import Version
from kubeup.trouble import Trouble
from kubeup.upgrade.objection import SAID, SKIPPABLE, Objection
from kubeup.upgrade.survey import (
    API_SERVER,
    CONTROLLER_MANAGER,
    COREDNS,
    ETCD,
    KUBE_PROXY,
    KUBELET,
    RUNTIME,
    SCHEDULER,
    Seen,
    Versions,
)

ORDER = (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, RUNTIME)
"""The components of a node in the order in which they are shown; addons come last."""
KEPT = 300 << 20
"""Bytes that the former programs, manifests and configuration of a node take while they are kept, rounded up."""


@frozen
class Change:
    """A component of a node ("" for the cluster), its version now and then; current is "" if it did not answer. restarts: whether it is
    replaced, which may be so for the same version, with another image or other flags."""

    component: str
    node: str
    current: str
    target: str
    restarts: bool


@frozen
class Gap:
    """For how long something is away, at most, and why. seconds: 0 if nobody has to notice."""

    node: str
    seconds: int
    why: str


@frozen
class Line:
    """What to run on which node. verb: `apply v1.36.3`, on the node with which the upgrade begins, else `node`. sources: the flags that say
    where the new programs come from, each with a space before it."""

    node: str
    verb: str
    sources: str = ""


@frozen
class Wanted:
    """Where the upgrade leads. etcd, coredns: the image tags that come with it. own: the node on which it begins; replaced: its static
    pods whose manifest differs. api_gap_s, etcd_gap_s: for how long the API is away where no other API server, or etcd, serves meanwhile.
    """

    version: Version
    etcd: str
    coredns: str
    own: str
    api_gap_s: int
    etcd_gap_s: int
    replaced: tuple[str, ...] = ()


# ---- versions


def plan_changes(versions: Versions, wanted: Wanted) -> tuple[Change, ...]:
    """Every component of every node, control planes first, then the addons."""
    names = [node.name for node in sorted(versions.nodes, key=lambda one: (not one.is_control_plane, one.name))]
    places = {name: number for number, name in enumerate(names)}
    of_nodes = [one for one in versions.seen if one.component in ORDER]
    of_nodes.sort(key=lambda one: (places.get(one.node, len(places)), one.node, ORDER.index(one.component)))
    addons = versions.of(KUBE_PROXY, COREDNS)
    return tuple(_plan_change(one, versions, wanted=wanted) for one in (*of_nodes, *addons))


def _plan_change(one: Seen, versions: Versions, *, wanted: Wanted) -> Change:
    current = f"{one.place} {one.version}" if one.component == RUNTIME else one.version
    where = one.node or (one.place if one.component in (API_SERVER, ETCD) else "")
    target = _target_of(one, versions, wanted=wanted)
    is_ours = one.node == wanted.own and one.component in wanted.replaced
    return Change(one.component, where, current, target, is_ours or _has_other_image(one, wanted) or current != target)


def _has_other_image(one: Seen, wanted: Wanted) -> bool:
    """Whether an etcd has another image than the new version's, be it the same etcd. None goes back."""
    have, want = releases.parse_version(one.tag), releases.parse_version(wanted.etcd)
    return (
        one.component == ETCD
        and bool(have and want)
        and one.tag != wanted.etcd
        and _newer(one.tag, wanted.etcd) == wanted.etcd
    )


def _target_of(one: Seen, versions: Versions, *, wanted: Wanted) -> str:
    if one.component == RUNTIME:
        return f"{one.place} {one.version}"
    if one.component == ETCD:
        return one.version if versions.etcd_is_external else _newer(one.version, wanted.etcd.partition("-")[0])
    if one.component == COREDNS:
        return _newer(one.version, wanted.coredns)
    return wanted.version.text


def _newer(now: str, then: str) -> str:
    """The target of what never goes back."""
    have, want = releases.parse_version(now), releases.parse_version(then)
    return now if have and want and have.key > want.key else then


def needs_drain(versions: Versions, target: Version) -> bool:
    """Whether some kubelet goes to another minor, for which its node is drained."""
    return any((found := one.parsed) is not None and found.minor != target.minor for one in versions.of(KUBELET))


# ---- what restarts


def plan_gaps(changes: Sequence[Change], versions: Versions, *, wanted: Wanted) -> Iterator[Gap]:
    """What is away while each node is upgraded."""
    servers = {one.node or one.place for one in versions.of(API_SERVER) if one.version}
    members = 0 if versions.etcd_is_external else len(versions.of(ETCD))
    for node in dict.fromkeys(change.node for change in changes if change.node):
        moved = [one.component for one in changes if one.node == node and one.restarts]
        static = [name for name in moved if name != KUBELET]
        if ETCD in static and 0 < members <= 2:
            why = f"etcd has {members} member{'s' * (members > 1)} and stops with this one: the whole API is away, pods keep running"
            yield Gap(node, wanted.etcd_gap_s, why)
        elif {ETCD, API_SERVER} & set(static) and len(servers) <= 1:
            yield Gap(node, wanted.api_gap_s, "no other API server serves: the API is away, pods keep running")
        elif static:
            yield Gap(node, 0, f"{', '.join(static)} restart; the other API servers serve meanwhile")
        if KUBELET in moved:
            yield Gap(node, 0, _say_kubelet(node, changes))


def _say_kubelet(node: str, changes: Sequence[Change]) -> str:
    one = next(change for change in changes if (change.node, change.component) == (node, KUBELET))
    have, want = releases.parse_version(one.current), releases.parse_version(one.target)
    if have and want and have.minor == want.minor:
        return "the kubelet restarts; pods keep running"
    return "the node is drained, since its kubelet goes to another minor: its pods move, or wait if no other node takes them"


# ---- lines


def plan_lines(changes: Sequence[Change], versions: Versions, *, wanted: Wanted, sources: str = "") -> Iterator[Line]:
    """What to run, in order: this node's control plane first, then the other ones, then workers. A node that is there already is left
    out. `apply` runs once: a cluster whose configuration has the version, and an API server of it, goes on with `node`."""
    started = versions.stored == wanted.version.text and any(
        one.version == wanted.version.text and one.node != wanted.own for one in versions.of(API_SERVER)
    )
    todo = {change.node for change in changes if change.restarts and change.node}
    addons = any(change.restarts and not change.node for change in changes)
    nodes = sorted(versions.nodes, key=lambda one: (one.name != wanted.own, not one.is_control_plane, one.name))
    for node in nodes:
        if node.name == wanted.own and not started and (todo or addons):
            yield Line(node.name, f"apply {wanted.version}", sources)
        elif node.name in todo:
            yield Line(node.name, "node", sources)


# ---- room


def judge_room(node: str, *, free: int, database: int, place: str) -> Optional[Objection]:
    """Whether what is kept of before has room. free: bytes on the file system of `place`. database: bytes of etcd's file, which is kept
    once as a copy of the member and once in the backup; 0 without etcd."""
    need = KEPT + 2 * database
    if free >= need:
        return None
    trouble = Trouble(
        f"{place} of {node} has {free >> 20} MiB of free space",
        f"the way back takes about {need >> 20} MiB there: former programs, manifests, etcd's data, a backup",
        f"make space: du -xh {place} | sort -h | tail",
    )
    return Objection("no-room-for-the-way-back", trouble, SKIPPABLE, node)


def say_not_ready(versions: Versions) -> Iterator[Objection]:
    """Nodes that are not Ready now, or cordoned: they stay as they are. And those whose upgrade is under way, or was cut off."""
    for node in versions.nodes:
        if node.turn:
            trouble = Trouble(
                f"the kubelet of node {node.name} is being replaced: {node.turn}",
                "that is under way, or was cut off",
                f"if it was cut off, on that machine: kb upgrade node; if that machine is gone: {upgrade_turn.say_removal(node.name)}",
            )
            yield Objection("upgrade-under-way", trouble, SAID, node.name)
        if not node.is_ready:
            trouble = Trouble(
                f"node {node.name} is not Ready", "its turn comes only when it is", "on that machine: kb doctor"
            )
            yield Objection("node-not-ready", trouble, SKIPPABLE, node.name)
        elif node.is_cordoned:
            trouble = Trouble(
                f"node {node.name} is cordoned",
                "somebody marked it as unschedulable",
                "nothing has to be done: it stays so",
            )
            yield Objection("node-cordoned", trouble, SAID, node.name)


# ---- what was seen


def seen_of(versions: Versions, *, target: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Everything a plan stands on, by name: versions, nodes, and the digests of what was read. texts: name -> text, of the cluster's
    configuration and of this node's files; no text is kept."""
    seen = {"target": target}
    for one in versions.seen:
        where = one.node or (one.place if one.component in (API_SERVER, ETCD) else "")
        seen[f"{one.component} of {where}" if where else one.component] = one.version or "(no answer)"
    for name, text in texts.items():
        seen[name] = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else "(missing)"
    return dict(sorted(seen.items()))


def digest_of(seen: Mapping[str, str]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()}"


def find_moved(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """What is not as it was seen, a line each: `kubelet of w1 was v1.35.6 and is v1.36.3`."""
    for name in sorted({*then, *now}):
        was, is_now = then.get(name), now.get(name)
        if was == is_now:
            continue
        if was is None or is_now is None:
            yield f"{name} is {'new' if was is None else 'gone'}"
        elif was.startswith("sha256:") or is_now.startswith("sha256:"):
            yield f"{name} has changed"
        else:
            yield f"{name} was {was} and is {is_now}"


def describe_objection(one: Objection) -> dict[str, Any]:
    return {
        "name": one.name,
        "weighs": one.weighs,
        "node": one.node,
        "what": one.trouble.what,
        "cause": one.trouble.cause,
        "remedy": one.trouble.remedy,
    }


def describe_changes(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [
        {
            "component": one.component,
            "node": one.node,
            "current": one.current,
            "target": one.target,
            "restarts": one.restarts,
        }
        for one in changes
    ]
