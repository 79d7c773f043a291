"""Takes an API server out of the load balancers of all nodes before it is stopped, and puts it back.

A mark in the cluster says which server is about to stop, and the keeper on every node follows it and answers (drain_marks.py). A drained
server gets no new connections. Open ones live on: the API server itself closes them when it is told to stop (GOAWAY on HTTP/2, and
`Connection: close`), and its clients connect again, to another server. So a connection that was idle when the server was drained still
carries a request to it until it stops.

This module writes marks and waits for the answers. It stops no API server, and knows nothing of a user's own load balancer in front of
the cluster. kubeadm has no counterpart.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Optional

from kubeup.cluster import objects
from kubeup.cluster.api import AlreadyExists, Api, ApiRefused, path_of
from kubeup.frozen_values import frozen
from kubeup.machine.waiting import say_round, watch
from kubeup.network import drain_marks, load_balancer

TIMEOUT_S = 15.0
"""More than a keeper's sleep between two rounds, for those that could not watch the marks until now."""
POLL_S = 0.2
NODES_PER_POLL_S = 200
"""In large clusters the answers are looked at less often, because a list of a thousand nodes takes megabytes."""
NAMED = 3
"""How many of the nodes that are waited for are named."""
RIGHTS = "rbac/load-balancer.yaml"
_MOMENT = "%Y-%m-%dT%H:%M:%S.%fZ"


@frozen
class Drained:
    """The answers, as sorted names of the nodes that run a load balancer.

    answered: those whose load balancer now does what was asked: it sends no new connections to the server, or sends them again; silent:
    those that did not say so in time. Their keeper is of an older kb or does not run, the node is not Ready, or no other API server
    is left. Clients on them may meet the server while it stops."""

    answered: tuple[str, ...]
    silent: tuple[str, ...]


# ---- changes


def drain(api: Api, server: str, *, tell: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> Drained:
    """Have all nodes send no new connections to `server` (`10.0.0.11:6443`), and wait for their answers. To be called again, at the
    latest after drain_marks.LAPSE_S, if it has to stay drained for longer.

    The cluster's only API server is not marked, and without load balancers there is nothing to do: nobody is asked, and nobody silent.

    Raises ApiRefused, Unreachable; ClusterError (binding-role-differs).
    """
    names = _find_balanced(api)
    if not names or not set(objects.read_api_servers(api)) - {server}:
        return Drained((), ())
    rights = objects.load_objects(RIGHTS)
    if not objects.has_objects(api, rights):  # the cluster's are of an older kb
        objects.apply_objects(api, rights)
    serial = api.host.now().strftime(_MOMENT)
    _write(api, server, mark=drain_marks.render_mark(server, serial))
    return _wait(
        api,
        names,
        is_so=lambda drained: drained.get(server) == serial,
        goal=f"load balancers without {server}",
        tell=tell,
        timeout_s=timeout_s,
    )


def undrain(api: Api, server: str, *, tell: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> Drained:
    """Have all nodes send connections to `server` again, and wait for their answers. Does nothing to a server that is not marked.

    Raises ApiRefused, Unreachable.
    """
    names = _find_balanced(api)
    found = api.get(drain_marks.PATH)
    if drain_marks.key_of(server) in ((found or {}).get("data") or {}):
        _write(api, server, mark=None)
    return _wait(
        api,
        names,
        is_so=lambda drained: server not in drained,
        goal=f"load balancers with {server} again",
        tell=tell,
        timeout_s=timeout_s,
    )


def strike(api: Api, server: str) -> None:
    """Have all nodes forget a server that is gone for good as soon as the cluster does not list it any more. Its mark keeps its moment. Asks
    nobody. Raises ApiRefused, Unreachable."""
    serial = read_marks(api).get(server, "")
    if serial and not serial.startswith(drain_marks.GONE):
        _write(api, server, mark=drain_marks.render_mark(server, f"{drain_marks.GONE}{serial}"))


def list_mindful(api: Api, servers: Collection[str]) -> list[str]:
    """The nodes that run a load balancer, are Ready, and have not said that it has forgotten all of these servers, sorted. Those of an older
    kb never say so. Raises ApiRefused, Unreachable."""
    names = _find_balanced(api) if servers else frozenset[str]()
    nodes = [node for node in api.list(path_of("Node")) if node["metadata"]["name"] in names] if names else []
    said = {str(node["metadata"]["name"]): drain_marks.parse_annotation(node) for node in nodes if _is_ready(node)}
    return sorted(name for name in said if any(said[name].get(one) != drain_marks.FORGOTTEN for one in servers))


def forget(api: Api, server: str) -> None:
    """Remove the mark of a server that is gone for good, for a machine that takes its address later. Asks nobody. Raises ApiRefused,
    Unreachable."""
    if server in read_marks(api):
        _write(api, server, mark=None)


def _write(api: Api, server: str, *, mark: Optional[str]) -> None:
    """Write or remove (None) the server's mark; those of other servers stay."""
    data = {drain_marks.key_of(server): mark}
    try:
        api.patch(drain_marks.PATH, {"data": data})
        return
    except ApiRefused as error:
        if error.http_status != 404:
            raise
    if mark is None:
        return
    meta = {"name": drain_marks.NAME, "namespace": drain_marks.NAMESPACE}
    try:
        api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    except AlreadyExists:
        api.patch(drain_marks.PATH, {"data": data})


# ---- looks


def find_drained(api: Api) -> list[str]:
    """The servers that are marked now, sorted. Raises ApiRefused, Unreachable."""
    return sorted(read_marks(api))


def read_marks(api: Api) -> dict[str, str]:
    """The servers that are marked now, with the moment of their mark (`2026-11-29T20:15:00.123456Z`, by the clock of the machine that
    wrote it). Keepers ignore a mark that is older than drain_marks.LAPSE_S. Raises ApiRefused, Unreachable."""
    return drain_marks.parse_config_map(api.get(drain_marks.PATH))


def age_of(serial: str, *, now: datetime.datetime) -> float:
    """How many seconds ago a mark was written, by this machine's clock; infinite if the text is no moment."""
    try:
        written = serial.partition(drain_marks.GONE)[2] or serial
        moment = datetime.datetime.strptime(written, _MOMENT).replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return math.inf
    return (now - moment).total_seconds()


def say_removal(server: str) -> str:
    """The command line that removes a mark by hand."""
    patch = json.dumps({"data": {drain_marks.key_of(server): None}})
    return f"kubectl -n {drain_marks.NAMESPACE} patch configmap {drain_marks.NAME} --type merge -p '{patch}'"


def _find_balanced(api: Api) -> frozenset[str]:
    """The names of the nodes that run a load balancer."""
    pods = api.list(path_of("Pod", namespace=drain_marks.NAMESPACE), label=f"component={load_balancer.NAME}")
    return frozenset(str((pod.get("spec") or {}).get("nodeName") or "") for pod in pods) - {""}


def _wait(
    api: Api,
    names: frozenset[str],
    *,
    is_so: Callable[[Mapping[str, str]], bool],
    goal: str,
    tell: Callable[[str], None],
    timeout_s: float,
) -> Drained:
    """Wait until is_so holds for what each of these nodes says. Nodes that are not Ready are looked at, and not waited for."""
    answered = frozenset[str]()

    def look() -> str:
        nonlocal answered
        nodes = {str(node["metadata"]["name"]): node for node in api.list(path_of("Node"))}
        nodes = {name: node for name, node in nodes.items() if name in names}
        answered = frozenset(name for name, node in nodes.items() if is_so(drain_marks.parse_annotation(node)))
        missing = sorted(name for name, node in nodes.items() if name not in answered and _is_ready(node))
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        return f"no answer yet from {', '.join(missing[:NAMED])}{more}" if missing else ""

    def tell_it(missing: str, elapsed: float) -> bool:
        tell(say_round(goal, missing, elapsed=elapsed, timeout_s=timeout_s))
        return False

    poll_s = max(POLL_S, len(names) / NODES_PER_POLL_S)
    if names:
        watch(api.host, look, timeout_s=timeout_s, is_over=tell_it, poll_s=poll_s)
    return Drained(tuple(sorted(answered)), tuple(sorted(names - answered)))


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(entry.get("type") == "Ready" and entry.get("status") == "True" for entry in conditions)
