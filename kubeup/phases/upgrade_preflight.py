"""The phase preflight of an upgrade: whether this node may be upgraded now. Nothing is changed, and nothing stops.

What others changed in the manifests, the rules of versions, the health of the cluster, the images, the trials of the new static pods.
Mirrors cmd/kubeadm/app/phases/upgrade/{policy,health,preflight}.go.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from kubeup.engine.run import Outputs
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import static_pods_swap
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.phases.wait_node import node_path
from kubeup.releases import parse_version
from kubeup.trouble import Trouble, advise
from kubeup.yaml_files import load_mapping

with lazily:
    from kubeup.cluster import api, health, objects, probes
    from kubeup.node import image_pulls
    from kubeup.phases import renewed_certs, upgrade_addons
    from kubeup.swap import store
    from kubeup.upgrade import changed_config, policy, survey, v2_content
    from kubeup.upgrade import target as targets

PATIENCE_S = 10.0
"""How long a trouble of the cluster may last before it counts."""
UNLISTED_ASKED = 4
"""How often an endpoint is asked behind which there may be several API servers."""
SHOWN = 3
"""How many of many things a sentence names; the rest follows as details."""


def check_upgrade(ctx: UpgradeRun) -> Outputs:
    """Raises HostError: hand-edits, disk-pressure, etcd-v2-content, and those of check_swap; ClusterError: upgrade-blocked, cluster-not-well, control-plane-first,
    etcd-stop-unsafe, try-elsewhere; ImagePullError; UsageError (not-confirmed)."""
    static_pods_swap.refuse_tried_elsewhere(ctx)
    if not ctx.config.is_control_plane:
        _check_servers(ctx)
        _check_own_node(ctx)
        return None
    refuse_edits(ctx)
    _refuse_pressure(ctx)
    if (
        "control-plane" in ctx.selection.cut_off
    ):  # perhaps between a certificate and its key, which the trials would refuse
        renewed_certs.put_torn_right(dataclasses.replace(ctx, host=ctx.machine or ctx.host))
    # where the kubelet was stopped when an upgrade was cut off, no patience makes the node Ready
    goes_on = _goes_on(ctx)
    is_settling = goes_on and services.is_active(ctx.host, "kubelet")
    known = [("node", ctx.config.node.name)] if goes_on and not is_settling else []
    patience_s = static_pods_swap.GATE_S if is_settling or _is_half_done(ctx) else PATIENCE_S
    parts = static_pods_swap.read_health(ctx, patience_s=patience_s, is_before=not is_settling, known=known)
    _judge_versions(ctx, parts)
    _judge_health(ctx, parts)
    if _goes_on(ctx) and not static_pods_swap.plan_swap(ctx).pods and not store.load_cut_off(ctx.host, ctx.paths):
        return None  # the kubelet may be what was cut off while it was stopped; it is started again below
    _refuse_v2_content(ctx)
    try:
        static_pods_swap.check_swap(ctx)
    except HostError as error:
        remedy = _find_stored_flag(ctx, error)
        if not remedy:
            raise
        raise HostError(error.what, cause=error.cause, remedy=remedy, code=error.code, details=error.details) from error
    _pull_addons(ctx)
    return None


def _pull_addons(ctx: UpgradeRun) -> None:
    """Where this run upgrades CoreDNS and kube-proxy: a registry that does not have them is found before anything stops. The other nodes
    pull them when their pods start. Raises ImagePullError."""
    if not ctx.selection.will_run.isdisjoint(("addon/coredns", "addon/kube-proxy")):
        names = upgrade_addons.list_images(ctx)
        socket = ctx.config.node.cri_socket
        for failure in image_pulls.ensure_images(ctx.host, socket, names=names, tell=ctx.report.waiting).failed:
            raise failure


def _is_half_done(ctx: UpgradeRun) -> bool:
    """Whether some of this node's static pods are as they are to be already. Another tool may have replaced them a moment ago, and a
    controller that lost its API server by that takes half a minute until it leads again."""
    return any(not one.is_changed for one in ctx.targets)


def _refuse_v2_content(ctx: UpgradeRun) -> None:
    """Raises HostError (etcd-v2-content)."""
    for pod in (one for one in static_pods_swap.plan_swap(ctx).pods if one.name == "etcd"):
        now, wanted = (load_mapping(text, pod.name) for text in (pod.former, pod.wanted))
        socket = ctx.config.node.cri_socket
        error = v2_content.find(ctx.host, socket, now=now, wanted=wanted, data_dir=ctx.paths.etcd_data)
        if error is not None:
            raise error


def _find_stored_flag(ctx: UpgradeRun, error: HostError) -> str:
    """What to do about a flag that the new version refuses, if the stored configuration asks for it: a manifest would be written so again.
    "" for anything else."""
    component, named = error.what.partition(" ")[0], re.search(r"--([a-z][a-z0-9-]*)", error.cause)
    part = next((one for one in changed_config.PARTS.values() if one.pod == component), None)
    if error.code != "static-pod-refused" or part is None:
        return ""
    flag = "feature-gates" if "feature gate" in error.cause else named.group(1) if named else ""
    if flag not in targets.find_explicit(ctx.config, component):
        return ""
    if flag == "feature-gates":
        return f"take it out of the stored feature gates: kb reconfigure {part.word} --set feature-gates=NAME=true,..."
    return f"take it out of the stored configuration: kb reconfigure {part.word} --unset {flag}"


def _target(ctx: UpgradeRun) -> str:
    return ctx.config.cluster.kubernetes_version


# ---- what others changed


def refuse_edits(ctx: UpgradeRun, *, is_return: bool = False) -> None:
    """Say what others changed in the manifests. is_return: since the upgrade that is taken back. Raises HostError (hand-edits) if nobody has
    said what becomes of it."""
    source = "the upgrade left it" if is_return else "the stored configuration says"
    edits = [str(edit) for target in ctx.targets for edit in target.edits]
    if edits and ctx.keep_edits is None:
        many = (
            f"{len(edits)} fields of this node's static pods are"
            if len(edits) > 1
            else "a field of this node's static pods is"
        )
        raise HostError(
            f"{many} not as {source}",
            cause=f"{'; '.join(edits[:SHOWN])}; nothing was changed",
            remedy=f"to keep what is there: {ctx.command} --hand-edits keep; "
            + (
                "to have what ran before the upgrade: --hand-edits drop"
                if is_return
                else "to have the stored configuration alone: --hand-edits drop; if patches made it, give their folder: --patches DIR"
            ),
            code="hand-edits",
            details=edits[SHOWN:],
        )
    for edit in edits:
        whose = "changed since the upgrade" if is_return else "not of the stored configuration"
        ctx.report.note(f"{whose}: {edit}; {'kept' if ctx.keep_edits else 'dropped'}")
    for target in ctx.targets:
        for conflict in target.conflicts:
            ctx.report.warn(
                f"{target.name}: {conflict.field} is {conflict.found!r}, "
                + (
                    f"before the upgrade it was {conflict.wanted!r}"
                    if is_return
                    else f"Kubernetes {_target(ctx)} has {conflict.wanted!r}"
                )
            )


# ---- versions


def _judge_versions(ctx: UpgradeRun, parts: Iterable[health.Part]) -> None:
    """Raises ClusterError (upgrade-blocked)."""
    kinds = {"api-server": survey.API_SERVER, "etcd": survey.ETCD, "node": survey.KUBELET}
    seen = [survey.Seen(kinds[part.kind], part.version, part.node, part.name) for part in parts if part.kind in kinds]
    etcd = ctx.config.cluster.local_etcd
    versions = survey.Versions(tuple(seen), etcd is None, etcd.image_tag if etcd else "", _target(ctx))
    objections = policy.judge(versions, _target(ctx), allows_experimental=not ctx.is_first)  # apply has asked
    blockers = policy.find_blockers(objections, node=ctx.config.node.name, is_forced=ctx.force)
    for one in objections:
        if one not in blockers:
            ctx.report.note(f"{one.trouble.what}: {one.trouble.cause}")
    if blockers:
        first, *others = [one.trouble for one in blockers]
        skips = all(one.weighs == policy.SKIPPABLE for one in blockers)
        raise ClusterError(
            first.what,
            cause=f"{first.cause}; nothing was changed",
            remedy=first.remedy + (f"; or go on all the same: {ctx.command} --force" if skips else ""),
            code="upgrade-blocked",
            details=[advise(trouble) for trouble in others],
        )


def _check_servers(ctx: UpgradeRun) -> None:
    """A kubelet is never newer than any API server, so each is asked at its own address. A kubelet may not list them where kb has no load
    balancer: then their common endpoint is asked several times. Raises ClusterError (control-plane-first)."""
    target = parse_version(_target(ctx))
    listed = objects.read_api_servers(ctx.api)
    asked = [one for _ in range(1 if listed else UNLISTED_ASKED) for one in survey.ask_servers(ctx.api)]
    for one in asked:
        server = parse_version(one.seen.version)
        if server is None and listed and not ctx.force:
            raise _control_plane_first(
                one.seen.unknown or f"the API server at {one.address} does not say its version",
                "no kubelet may be newer than an API server, and this one may be older",
                f"on that machine: kb doctor; or go on all the same: {ctx.command} --force",
            )
        if server is None or target is None:
            ctx.report.warn_once(f"the API server at {one.address} does not say its version")
        elif server.minor < target.minor:
            raise _control_plane_first(
                f"the API server at {one.address} is still {server}",
                f"no kubelet may be newer than an API server, and this node's would be {target}",
                "on each control plane first: kb upgrade node",
            )


def _control_plane_first(what: str, cause: str, remedy: str) -> ClusterError:  # noqa: PLR0917
    return ClusterError(what, cause=f"{cause}; nothing was changed", remedy=remedy, code="control-plane-first")


# ---- health


def _refuse_pressure(ctx: UpgradeRun) -> None:
    """Raises HostError (disk-pressure): the kubelet deletes the images that no pod uses yet, those of the new version first."""
    node = ctx.api.get(api.path_of("Node", ctx.config.node.name)) or {}
    rows = (node.get("status") or {}).get("conditions") or ()
    if not any(row.get("type") == "DiskPressure" and row.get("status") == "True" for row in rows):
        return
    if ctx.force:
        ctx.report.warn(f"node {ctx.config.node.name} is under disk pressure")
        return
    raise HostError(
        f"node {ctx.config.node.name} is under disk pressure",
        cause="its kubelet deletes images that no pod uses, those of the new version too, and takes no new pods; nothing was changed",
        remedy=f"make space: du -xh /var | sort -h | tail; or go on all the same: {ctx.command} --force",
        code="disk-pressure",
    )


def _goes_on(ctx: UpgradeRun) -> bool:
    """Whether an earlier run has begun to change this node, and did not come to the end."""
    begun, left = ctx.selection.cut_off, ctx.selection.unfinished
    return ctx.goes_on or bool(begun - {"preflight"}) or ("gate" in left and "control-plane" not in left)


def _check_own_node(ctx: UpgradeRun) -> None:
    """A worker's own node. Raises ClusterError (cluster-not-well): a kubelet that works could not be told from one that does not."""
    name = ctx.config.node.name
    node = ctx.api.get(node_path(ctx))
    status, message = probes.node_condition(node)
    if status == "True" or _goes_on(ctx):
        return
    if ctx.force:
        ctx.report.warn(f"node {name} is not Ready: {message}")
        return
    raise ClusterError(
        f"node {name} is not Ready",
        cause=f"{message or 'its kubelet says nothing'}; nothing was changed",
        remedy=f"see why: kb doctor; or go on all the same: {ctx.command} --force",
        code="cluster-not-well",
    )


def _judge_health(ctx: UpgradeRun, parts: Sequence[health.Part]) -> None:
    """Raises ClusterError (cluster-not-well). Where an upgrade goes on that was cut off, this node itself may be unwell."""
    goes_on = _goes_on(ctx)
    troubles: list[Trouble] = []
    for part in health.find_blockers(parts):
        assert part.trouble is not None
        if _is_upgraded_already(ctx, part):
            continue
        if ctx.force or (goes_on and part.node == ctx.config.node.name):
            ctx.report.warn(f"{part.trouble.what}: {part.trouble.cause}")
        else:
            troubles.append(part.trouble)
    if troubles:
        raise ClusterError(
            troubles[0].what,
            cause=f"{troubles[0].cause}; nothing was changed",
            remedy=f"{troubles[0].remedy}; or go on all the same: {ctx.command} --force",
            code="cluster-not-well",
            details=[advise(trouble) for trouble in troubles[1:]],
        )
    for part in parts:
        if part.unproven:
            ctx.report.detail(f"not proven: {part.unproven}")


def _is_upgraded_already(ctx: UpgradeRun, part: health.Part) -> bool:
    """Whether a node is in trouble only because its kubelet is newer than this node's API server: it was upgraded before this one."""
    assert part.trouble is not None
    kubelet, target = parse_version(part.version), parse_version(_target(ctx))
    is_version = part.kind == "node" and part.trouble.what == f"node {part.name} has kubelet {part.version}"
    return bool(is_version and kubelet and target and kubelet.minor <= target.minor)


CHECKS = Act(do=check_upgrade, live="node", always=True)
