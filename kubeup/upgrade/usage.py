"""What the cluster does that an upgrade may break: removed APIs in use, PodDisruptionBudgets, webhooks, stored versions of CRDs.

Removed APIs are summed over all API servers, because each one counts only what it was asked itself, since it started. Only looks.
Source: apiserver/pkg/endpoints/metrics/metrics.go (apiserver_requested_deprecated_apis), KEP-1693
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

from kubeup import releases
from kubeup.cluster import objects
from kubeup.cluster.api import Api, ApiRefused, Object, path_of
from kubeup.frozen_values import frozen
from kubeup.machine.http import Unreachable
from kubeup.trouble import Trouble
from kubeup.upgrade.objection import SAID, SKIPPABLE, Objection
from kubeup.upgrade.survey import AT_ONCE, Asked

METRICS_S = 15.0
MAX_METRICS = 64 << 20
"""Bytes; those of a large cluster's API server are some tens of megabytes."""

_ROW = re.compile(r"^(apiserver_requested_deprecated_apis|apiserver_request_total)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_START = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)


@frozen
class RemovedApi:
    """A deprecated API that clients have asked for. name: `flowschemas.flowcontrol.apiserver.k8s.io/v1beta3`. removed: `1.32`, the first
    release without it. requests: how many, over all API servers. servers: which of them were asked. since: the start of the one that
    has run for the longest, which all of this was counted since."""

    name: str
    removed: str
    requests: int
    servers: tuple[str, ...]
    since: Optional[datetime.datetime] = None


@frozen
class Budget:
    """A PodDisruptionBudget that allows no disruption now, with the nodes on which its pods run."""

    name: str
    nodes: tuple[str, ...]
    cause: str


@frozen
class Webhook:
    """An admission webhook without which what it matches is refused (failurePolicy: Fail), and which runs in the cluster.

    name: `validatingwebhookconfiguration/x (y.example.com)`. service: `namespace/name`. nodes: where ready pods of it run, one for each.
    holds_pods: whether it is asked about new pods, so that its own could not come back without it."""

    name: str
    service: str
    nodes: tuple[str, ...]
    holds_pods: bool


@frozen
class Usage:
    """unread: what could not be looked at, in words."""

    removed_apis: tuple[RemovedApi, ...] = ()
    budgets: tuple[Budget, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    stored_versions: tuple[str, ...] = ()
    """CustomResourceDefinitions with objects in a version that is not the one they store now."""
    unread: tuple[str, ...] = ()


def read_usage(api: Api, servers: Sequence[Asked]) -> Usage:
    """Look at all of it. Raises Unreachable, ApiRefused if the API server of `api` does not answer."""
    unread: list[str] = []
    apis = read_removed_apis(servers, unread=unread)
    return Usage(
        apis,
        tuple(_read_budgets(api, unread)),
        tuple(_read_webhooks(api, unread)),
        tuple(_read_stored_versions(api, unread)),
        tuple(unread),
    )


# ---- removed APIs


def read_removed_apis(servers: Sequence[Asked], *, unread: list[str]) -> tuple[RemovedApi, ...]:
    """Over the metrics of every API server. unread: gets those that could not be read, in words."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        texts = list(pool.map(_read_metrics, servers))
    silent = [one.address for one, text in zip(servers, texts) if not text]
    if silent:
        unread.append(f"removed APIs that clients of {', '.join(silent)} use: its metrics could not be read")
    return sum_removed_apis([(one.address, text) for one, text in zip(servers, texts) if text])


def _read_metrics(asked: Asked) -> str:
    try:
        answer = asked.api.read_page("/metrics", timeout_s=METRICS_S, max_bytes=MAX_METRICS)
    except Unreachable:
        return ""
    return answer.body.decode(errors="replace") if answer.status == 200 else ""


def sum_removed_apis(metrics: Iterable[tuple[str, str]]) -> tuple[RemovedApi, ...]:
    """metrics: (address, text) of each API server. Deprecated APIs that stay are left out."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    starts: dict[str, float] = {}
    for address, text in metrics:
        asked: dict[str, str] = {}
        requests: dict[str, int] = {}
        for metric, labels, value in _ROW.findall(text):
            words = dict(_LABEL.findall(labels))
            name = _name_api(words)
            if metric == "apiserver_request_total":
                requests[name] = requests.get(name, 0) + _whole(value)
            elif words.get("removed_release") and _whole(value):
                asked[name] = words["removed_release"]
        for name, removed in asked.items():
            found.setdefault((name, removed), {})[address] = requests.get(name, 0)
        start = _START.search(text)
        if start:
            starts[address] = float(start.group(1))
    earliest = min(starts.values(), default=None)
    since = datetime.datetime.fromtimestamp(earliest, datetime.timezone.utc) if earliest else None
    return tuple(
        RemovedApi(name, removed, sum(counts.values()), tuple(sorted(counts)), since)
        for (name, removed), counts in sorted(found.items())
    )


def _name_api(labels: Mapping[str, str]) -> str:
    group, version = labels.get("group", ""), labels.get("version", "")
    resource = "/".join(filter(None, (labels.get("resource", ""), labels.get("subresource", ""))))
    return f"{resource}.{group}/{version}" if group else f"{resource}/{version}"


def _whole(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0


# ---- what stands in the way of a drain


def _list(api: Api, path: str, *, unread: list[str], label: str = "") -> list[Object]:
    """The objects of a collection; [] and a word in `unread` if this identity may not list them."""
    try:
        return api.list(path, label=label)
    except ApiRefused as error:
        if error.http_status not in (403, 404):
            raise
        unread.append(f"{path.rpartition('/')[2]}: {error.cause}")
        return []


def _read_budgets(api: Api, unread: list[str]) -> Iterator[Budget]:
    for budget in _list(api, path_of("PodDisruptionBudget"), unread=unread):
        status, meta = budget.get("status") or {}, budget["metadata"]
        if status.get("disruptionsAllowed", 0) > 0 or not status.get("expectedPods"):
            continue
        selector = objects.render_selector((budget.get("spec") or {}).get("selector"))
        namespace = str(meta.get("namespace") or "")
        pods = _list(api, path_of("Pod", namespace=namespace), unread=unread, label=selector)
        nodes = sorted({node for pod in pods if (node := str((pod.get("spec") or {}).get("nodeName") or ""))})
        healthy, wanted = status.get("currentHealthy", 0), status.get("desiredHealthy", 0)
        cause = f"{healthy} of its {status['expectedPods']} pods are healthy, and it wants {wanted} to stay"
        if nodes:
            yield Budget(f"{namespace}/{meta['name']}", tuple(nodes), cause)


def _read_webhooks(api: Api, unread: list[str]) -> Iterator[Webhook]:
    places: dict[tuple[str, str], tuple[str, ...]] = {}
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for config in _list(api, path_of(kind), unread=unread):
            for hook in config.get("webhooks") or ():
                service = (hook.get("clientConfig") or {}).get("service")
                if hook.get("failurePolicy", "Fail") != "Fail" or not service:
                    continue
                key = (str(service.get("namespace") or ""), str(service.get("name") or ""))
                if key not in places:
                    places[key] = tuple(_find_pods(api, *key, unread=unread))
                name = f"{kind.lower()}/{config['metadata']['name']} ({hook.get('name')})"
                yield Webhook(name, "/".join(key), places[key], _holds_pods(hook))


def _find_pods(api: Api, namespace: str, name: str, *, unread: list[str]) -> Iterator[str]:  # noqa: PLR0917
    """The nodes of a service's ready endpoints, one for each."""
    label = f"kubernetes.io/service-name={name}"
    for one in _list(api, path_of("EndpointSlice", namespace=namespace), unread=unread, label=label):
        for endpoint in one.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is not False:
                yield str(endpoint.get("nodeName") or "")


def _holds_pods(hook: Mapping[str, Any]) -> bool:
    for rule in hook.get("rules") or ():
        groups, kinds, verbs = (rule.get(key) or () for key in ("apiGroups", "resources", "operations"))
        if {"", "*"} & set(groups) and {"pods", "*", "*/*", "pods/*"} & set(kinds) and {"CREATE", "*"} & set(verbs):
            return True
    return False


def _read_stored_versions(api: Api, unread: list[str]) -> Iterator[str]:
    for found in _list(api, path_of("CustomResourceDefinition"), unread=unread):
        stored = (found.get("status") or {}).get("storedVersions") or ()
        versions = (found.get("spec") or {}).get("versions") or ()
        now = next((str(row.get("name")) for row in versions if isinstance(row, dict) and row.get("storage")), "")
        others = [str(version) for version in stored if version != now]
        if others:
            yield f"{found['metadata']['name']} has objects stored as {', '.join(others)}, and stores {now} now"


# ---- what speaks against the upgrade


def judge(usage: Usage, target: str, *, drains: bool) -> Iterator[Objection]:
    """drains: whether nodes are drained on the way, as for another minor."""
    version = releases.parse_version(target)
    for one in usage.removed_apis:
        if version is not None and _is_gone(one.removed, version):
            yield _object_to_removed(one, target)
    for hook in usage.webhooks:
        yield from _judge_webhook(hook, drains=drains)
    for budget in usage.budgets if drains else ():
        for node in budget.nodes:
            trouble = Trouble(
                f"PodDisruptionBudget {budget.name} allows no pod to be evicted from {node} now",
                budget.cause,
                f"have more of its pods run, or lower what it wants: kubectl -n {budget.name.partition('/')[0]} edit pdb "
                f"{budget.name.partition('/')[2]}",
            )
            yield Objection("pod-disruption-budget", trouble, SKIPPABLE, node)
    for text in usage.stored_versions:
        trouble = Trouble(
            f"CustomResourceDefinition {text}",
            "a later version of its operator may drop the older one",
            "have its operator migrate them",
        )
        yield Objection("stored-version", trouble, SAID)
    for text in usage.unread:
        yield Objection(
            "not-looked-at", Trouble("not proven", text, "ask as a cluster admin: /etc/kubernetes/admin.conf"), SAID
        )


def _is_gone(removed: str, target: releases.Version) -> bool:
    major, _, minor = removed.partition(".")
    return major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) <= (target.major, target.minor)


def _object_to_removed(one: RemovedApi, target: str) -> Objection:
    since = f"since {one.since:%Y-%m-%d %H:%M} UTC " if one.since else ""
    cause = f"Kubernetes {one.removed} has removed it; {since}clients asked for it {one.requests} times, at {', '.join(one.servers)}"
    remedy = (
        "move its clients to a newer version of the API (the audit log names them: annotation k8s.io/removed-release); then restart "
        "the API servers, or use --force, since they count until they stop"
    )
    return Objection(
        "removed-api-in-use", Trouble(f"{one.name} is in use, and {target} lacks it", cause, remedy), SKIPPABLE
    )


def _judge_webhook(hook: Webhook, *, drains: bool) -> Iterator[Objection]:
    what = f"{hook.name} refuses what it cannot ask about (failurePolicy: Fail)"
    kind, _, name = hook.name.partition(" ")[0].partition("/")
    if not hook.nodes:
        cause = f"no ready pod is behind its service {hook.service}, so what it matches cannot be written now"
        yield Objection(
            "webhook-down", Trouble(what, cause, f"start its pods, or: kubectl delete {kind} {name}"), SKIPPABLE
        )
        return
    places = set(hook.nodes)
    if not drains or len(places) > 1:
        return
    node = hook.nodes[0]
    cause = f"all pods of its service {hook.service} run on {node}, and stop when {node} is drained"
    if hook.holds_pods:
        cause += "; it is asked about new pods too, so they may not come back"
    remedy = f"have its pods run on two nodes, or exclude its own namespace: kubectl edit {kind} {name}"
    yield Objection("webhook-on-one-node", Trouble(what, cause, remedy), SKIPPABLE if hook.holds_pods else SAID, node)
