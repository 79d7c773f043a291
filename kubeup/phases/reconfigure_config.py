"""The phases of `kb reconfigure`: the cluster's stored configuration, changed, and this node brought to it.

First this node's certificate and static pods, by the one swap; the stored configuration follows only once they work, so that no joining
node takes what does not. What was stored before is kept in the cluster too (ConfigMap kb-former-config): with it, another control plane
tells what is left of the former configuration in its manifests from what people changed there. With kubeadm, all of this is done by hand:
the ConfigMap is edited, the manifests are rendered on each node, and nobody looks whether the pods come up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Optional

from kubeup.engine.cluster_items import Object
from kubeup.engine.plan import Plan, Proof, flatten
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, KbError
from kubeup.frozen_values import frozen, frozen_by_name
from kubeup.json_text import parse_json
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.phases import cert_names, static_pods_swap, stored_cluster, tried_swap
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.releases import Release
from kubeup.trouble import advise

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api, health, objects
    from kubeup.config import load_join, render, schema
    from kubeup.upgrade import changed_config, target

FORMER = "kb-former-config"
"""The ConfigMap with the configurations that were stored before, newest first."""
MOST_FORMER = 8
UPLOAD = "upload-config/kubeadm"
"""The phase that stores the changed configuration."""


@frozen
class Configured:
    """A component's configuration as it is stored, and as it is to be; without apiVersion and kind. fields: the outermost ones that are
    asked for."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    fields: frozenset[str] = frozenset()


@frozen_by_name
class ReconfigureRun(UpgradeRun, cert_names.NamesRun):
    """wish: what is to change; an empty one brings this node to what is stored. changes: static pod -> what the configuration has changed in
    its manifest since the oldest one that is known.

    components: kubelet or kube-proxy -> its configuration, if that is what is asked for. dns: what of CoreDNS is: its Corefile, and the number
    of its replicas. changes_images: whether the images of the addons may be others. proxies: the HTTP proxies that this node is to have, if
    that is what is asked for."""

    wish: changed_config.Wish
    changes: Mapping[str, Sequence[target.Changed]]
    components: Mapping[str, Configured] = field(default_factory=dict)
    dns: Mapping[str, str] = field(default_factory=dict)
    changes_images: bool = False
    proxies: Optional[Mapping[str, str]] = None


# ---- preflight


def check_change(ctx: ReconfigureRun) -> Outputs:
    """Say what others changed, and try what is new without stopping anything. Raises KbError, as check_names and check_swap do."""
    for one in ctx.targets:
        for edit in one.edits:
            ctx.report.note(f"not of the stored configuration: {edit}; kept")
    if ctx.adds or ctx.drops:
        cert_names.check_names(ctx)
    checked = tried_swap.check_tried(ctx)
    if not ctx.wish.is_empty and static_pods_swap.plan_swap(ctx).pods:
        ctx.found.unwell = static_pods_swap.find_unwell(ctx)
    return checked


# ---- certs/apiserver


def plan_certificate(run: ReconfigureRun) -> Plan:
    """The API server's certificate, if its names are what changes."""
    return cert_names.plan_apiserver_cert(run) if run.adds or run.drops else Plan()


# ---- upload-config/kubeadm


def plan_stored(run: ReconfigureRun) -> Plan:
    """The configuration with the change, and the one before it beside it; once the cluster lives with it, if static pods were swapped for it."""

    def change(document: Mapping[str, Any]) -> dict[str, Any]:
        return changed_config.change_document(as_current(run.host, document, release=run.release), run.wish)

    plan = _plan_change(run, change)
    is_due = bool(plan.parts) and (run.found.unwell is not None or UPLOAD in run.selection.cut_off)
    return Plan(Proof("the health of the cluster", prove_well)) + plan if is_due else plan


def prove_well(run: ReconfigureRun) -> None:
    """That nothing of the cluster is in trouble that was well before the swap: what has only just come with it is not for all nodes to have.
    If an earlier run was stopped here, nobody knows any more what was in trouble before. Raises ClusterError (cluster-not-well)."""
    known = run.found.unwell if run.found.unwell and UPLOAD not in run.selection.cut_off else frozenset()
    parts = static_pods_swap.read_health(run, patience_s=static_pods_swap.GATE_S, known=known)
    new = [
        part.trouble
        for part in health.find_blockers(parts)
        if part.trouble is not None and (part.kind, part.name) not in known
    ]
    if new:
        raise ClusterError(
            new[0].what,
            cause=f"{new[0].cause}; this node runs with the change, and the cluster has not stored it",
            remedy=f"{new[0].remedy}; then: {run.command}; or take the change back: {static_pods_swap.COMMAND} --undo",
            code="cluster-not-well",
            details=[advise(trouble) for trouble in new[1:]],
        )
    if not (run.components or run.dns or run.changes_images or run.proxies is not None):
        run.found.parts = parts


def plan_tried(run: Run, *, text: str, made_from: str) -> Plan:
    """The same for a change that was tried, and is confirmed: from one text to another. What others have stored meanwhile stays."""
    former, wanted = (
        yaml_files.load_mapping(one or text, "the configuration that was tried") for one in (made_from, text)
    )
    if not made_from:  # an older kb began the trial
        return _plan_change(run, lambda _: dict(wanted))
    return _plan_change(run, lambda document: changed_config.carry_over(document, former=former, wanted=wanted))


def _plan_change(run: Run, change: stored_cluster.Change) -> Plan:
    text = objects.read_config_key(run.api, "kubeadm-config", key="ClusterConfiguration")
    document = yaml_files.load_mapping(text, "ConfigMap kube-system/kubeadm-config")
    plan = stored_cluster.plan_stored(run, change)
    if change(document) == document:
        return plan
    kept = [text, *(one for one in read_former(run.api) if not yaml_files.is_same_yaml(one, text))]
    data = {"ClusterConfiguration": "---\n".join(kept[:MOST_FORMER])}
    return Plan(Object(objects.render_config_map(FORMER, data))) + plan


def as_current(host: Host, document: Mapping[str, Any], *, release: Release) -> Mapping[str, Any]:
    """The document, in the API version that this release's kubeadm writes."""
    if document.get("apiVersion") == schema.V1BETA4:
        return document
    cluster = load_join.parse_stored_cluster(host, yaml_files.dump_yaml(dict(document)), warnings=[])
    return dict(render.render_cluster_configuration(cluster, release))


def read_former(client: api.Api) -> list[str]:
    """The ClusterConfigurations that were stored before, newest first."""
    text = objects.read_config_key(client, FORMER, key="ClusterConfiguration")
    return [yaml_files.dump_yaml(one) for one in yaml_files.load_all_yaml(text) if isinstance(one, dict)]


# ---- gate


def check_end(ctx: ReconfigureRun) -> Outputs:
    """Whether the next control plane may follow, and which ones are left. Raises ClusterError (cluster-not-well)."""
    static_pods_swap.check_cluster(ctx)
    if ctx.try_s:
        return None  # the others follow what is stored, which is when it is confirmed
    left = [f"on control plane {name}: kb reconfigure node" for name in find_left(ctx)]
    left += [f"on node {name}: kb reconfigure node" for name in find_left_kubelets(ctx)]
    if ctx.proxies is not None:
        names = sorted(str(one["metadata"]["name"]) for one in ctx.api.list(api.path_of("Node")))
        left += [
            f"on node {name}: {ctx.command}, with the same flags" for name in names if name != ctx.config.node.name
        ]
    return Results(remaining=left)


def find_left(ctx: ReconfigureRun) -> list[str]:
    """The other control planes that run something of a former configuration, by what the cluster shows of their static pods; and those
    whose certificate has other names, by their address."""
    pods = ctx.api.list(api.path_of("Pod", namespace="kube-system"), label="tier=control-plane") if ctx.changes else []
    left = []
    for pod in pods:
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        component = str((pod["metadata"].get("labels") or {}).get("component", ""))
        found = flatten({"spec": pod["spec"]})
        if node != ctx.config.node.name and any(one.is_left_in(found) for one in ctx.changes.get(component, ())):
            left.append(node)
    servers = cert_names.find_lagging(ctx) if ctx.adds or ctx.drops else []
    names = {f"{one.get('status', {}).get('podIP')}": str(one["spec"].get("nodeName")) for one in pods}
    left += [names.get(server.rpartition(":")[0].strip("[]"), server) for server in servers]
    return sorted(set(left))


def find_left_kubelets(ctx: ReconfigureRun) -> Iterator[str]:
    """The nodes whose kubelet runs with other values than this node's in the fields that are asked for, or cannot be asked."""
    configured, own = ctx.components.get("kubelet"), ctx.config.node.name
    mine = _read_configz(ctx, own) if configured else None
    if configured is None or mine is None:
        return
    for node in sorted(str(one["metadata"]["name"]) for one in ctx.api.list(api.path_of("Node"))):
        theirs = None if node == own else _read_configz(ctx, node)
        if node != own and (theirs is None or any(theirs.get(one) != mine.get(one) for one in configured.fields)):
            yield node


def _read_configz(ctx: ReconfigureRun, node: str) -> Optional[Mapping[str, Any]]:
    """The configuration with which a kubelet runs; None if it cannot be asked."""
    client = api.Api(ctx.host, ctx.api.identity, retry_s=0)
    try:
        answer = client.probe_health(f"{api.path_of('Node', node)}/proxy/configz")
        found = parse_json(answer.body.decode(), "the configuration") if answer.status == 200 else {}
    except (KbError, ValueError):
        return None
    told = found.get("kubeletconfig") if isinstance(found, dict) else None
    return told if isinstance(told, dict) else None


CHECKS = Act(do=check_change, live="node", always=True)
SWAP = Act(
    do=tried_swap.swap_tried,
    foretell=static_pods_swap.foretell_swap,
    spec=lambda run: run.wish,
    live="node",
    always=True,
)
GATE = Act(do=check_end, live="cluster", always=True)
