"""One node that reboots at a time: an entry of ConfigMap kube-system/kb-node-reboot, `w1 since 2026-11-30T08:00:00Z`.

A worker takes the turn with its kubelet's identity. NodeRestriction lets it write no Lease but its own node's, and it may not see other
nodes; so a Role lets nodes read and patch this one object. A control plane makes both. Nothing lapses: a machine that does not come back
keeps the others from rebooting, which is what the turn is for.
"""

from __future__ import annotations

import contextlib
from typing import Optional

from kubeup import moments
from kubeup.cluster import objects
from kubeup.cluster.api import AlreadyExists, Api, ApiRefused, Object, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen

NAME = "kb-node-reboot"
KEY = "turn"
PATH = path_of("ConfigMap", NAME, namespace=objects.SYSTEM)
RIGHTS = "rbac/node-reboot.yaml"


@frozen
class Turn:
    """Who reboots, and since when (`2026-11-30T08:00:00Z`, by that node's clock)."""

    node: str
    since: str


def provide(api: Api) -> None:
    """Make the object and the Role that lets nodes change it, as an admin. Raises ApiRefused, Unreachable."""
    rights = objects.load_objects(RIGHTS)
    if not objects.has_objects(api, rights):
        objects.apply_objects(api, rights)
    if api.get(PATH) is None:
        with contextlib.suppress(AlreadyExists):
            api.create(objects.render_config_map(NAME, {KEY: ""}))


def take(api: Api, node: str) -> None:
    """Take the turn, or go on to have it. Raises ClusterError: reboot-elsewhere, reboot-not-provided; ApiRefused, Unreachable."""
    found = _read(api)
    turn = _parse(found)
    if turn is not None and turn.node == node:
        return
    if turn is not None:
        raise _elsewhere(turn)
    text = f"{node} since {moments.show(api.host.now())}"
    try:
        api.patch(
            PATH, {"metadata": {"resourceVersion": found["metadata"].get("resourceVersion")}, "data": {KEY: text}}
        )
    except ApiRefused as error:
        if error.http_status != 409:
            raise
        raise _elsewhere(_parse(_read(api)) or Turn("another node", "a moment ago")) from error


def give_back(api: Api, node: str) -> bool:
    """Give the turn back if it is this node's; returns whether it was. Who may not read it has not taken it. Raises ApiRefused,
    Unreachable."""
    try:
        found = api.get(PATH)
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        return False
    turn = _parse(found)
    if found is None or turn is None or turn.node != node:
        return False
    api.patch(PATH, {"metadata": {"resourceVersion": found["metadata"].get("resourceVersion")}, "data": {KEY: ""}})
    return True


def _read(api: Api) -> Object:
    try:
        found = api.get(PATH)
    except ApiRefused as error:
        if error.http_status != 403:
            raise
        found = None
    if found is not None:
        return found
    raise ClusterError(
        "this node cannot take the cluster's turn to reboot",
        cause=f"there is no ConfigMap kube-system/{NAME}, or nodes may not read it: a control plane makes it when it is asked first",
        remedy="on a control plane, once: kb node reboot --if-required; then here",
        code="reboot-not-provided",
    )


def _parse(found: Optional[Object]) -> Optional[Turn]:
    node, _, since = objects.value_of(found, KEY).partition(" since ")
    return Turn(node, since) if node else None


def _elsewhere(turn: Turn) -> ClusterError:
    patch = f'kubectl -n kube-system patch configmap {NAME} --type merge -p \'{{"data":{{"{KEY}":""}}}}\''
    return ClusterError(
        f"node {turn.node} reboots",
        cause=f"it has had the turn since {turn.since}, and one node reboots at a time",
        remedy=f"wait until it is back; if it was interrupted, on {turn.node}: kb node reboot, or kb node uncordon; if it is gone: {patch}",
        code="reboot-elsewhere",
    )
