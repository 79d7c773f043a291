"""The phases of `kb upgrade rollback`: this node goes back to what it ran before its upgrade, from what was kept of it.

First the kubelet, which must not be newer than an API server; then the former static pods, by the same swap that brought the new ones.
What going back would break is refused by name before anything stops (docs/upgrade.md has the table). Objects of the cluster stay as they
are. kubeadm has no counterpart: its way back is a restore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Optional

from kubeup import releases
from kubeup.engine.run import Outputs, Results
from kubeup.engine.story import Act
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import static_pods_swap, upgrade_kubelet, upgrade_preflight, upgrade_programs
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.yaml_files import load_mapping, load_yaml

with lazily:
    from kubeup.cluster import api, eviction, health, objects, upgrade_turn
    from kubeup.phases import renewed_certs
    from kubeup.swap import proof, store
    from kubeup.upgrade import kept, survey

_TAG = re.compile(r":v?(\d+)\.(\d+)[^/:@]*(?:@\S+)?$")


@frozen
class Facts:
    """What decides whether a node may go back. server: the highest version of an API server that serves; stored: the version in the
    cluster's configuration; others: node -> version of its kubelet, without this one. Versions as `v1.35.6`, "" if unknown."""

    server: str = ""
    stored: str = ""
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)


def judge_return(former: str, *, pods: Sequence[store.Pod], facts: Facts) -> Optional[HostError]:
    """Why a node must not go back to `former`, or None. pods: its static pods that would change. Pure.

    Sources: https://kubernetes.io/releases/version-skew-policy; docs/adr/0018 for etcd"""
    wanted = releases.parse_version(former)
    if wanted is None:
        return _unsafe(former, "the version that it ran is not known", "upgrade it again, or restore a backup")
    server, stored = releases.parse_version(facts.server), releases.parse_version(facts.stored)
    if not any(pod.name == "kube-apiserver" and pod.is_changed for pod in pods):
        if server is not None and wanted.minor < server.minor - releases.KUBELET_SKEW:
            why = f"an API server of {server.text} supports no kubelet that is older than 1.{server.minor - releases.KUBELET_SKEW}"
            return _unsafe(former, why, "leave it as it is")
        return None
    if stored is not None and stored.minor > wanted.minor:
        why = f"the cluster is at {stored.text}: its objects and addons may be in forms that an API server of {former} does not know"
        return _unsafe(
            former,
            why,
            "take back the kubelet alone: kb upgrade rollback --kubelet-only; or restore the backup of before, which apply wrote below /var/lib/kb/upgrade",
        )
    newer = sorted(
        name
        for name, text in facts.others.items()
        if (have := releases.parse_version(text)) and have.minor > wanted.minor
    )
    if newer:
        why = f"the kubelet of {', '.join(newer)} is newer, and must not be newer than any API server"
        return _unsafe(
            former, why, f"take those nodes back first, on each of them: kb upgrade rollback ({', '.join(newer)})"
        )
    return None


def _unsafe(former: str, why: str, remedy: str) -> HostError:  # noqa: PLR0917
    return HostError(
        f"this node cannot go back to {former}",
        cause=f"{why}; nothing was changed",
        remedy=remedy,
        code="rollback-unsafe",
    )


def keep_etcd(pods: Sequence[store.Pod]) -> tuple[list[store.Pod], str]:
    """The pods that go back, and why etcd does not, in words. An etcd of an older minor does not start on data whose cluster version has
    risen; an API server works with a newer etcd. Source: etcd's downgrade, server/etcdserver/api/membership/cluster.go"""
    etcd = next((pod for pod in pods if pod.name == "etcd" and pod.is_changed), None)
    images = [proof.image_of(load_mapping(text, "etcd")) for text in (etcd.former, etcd.wanted)] if etcd else []
    tags = [_minor_of(image) for image in images]
    if etcd is None or images[0] == images[1] or tags[0] == tags[1] != "":
        return list(pods), ""
    told = f"etcd stays as it is: its data are of {tags[0] or 'another minor'} by now, and an etcd of {tags[1] or 'another'} does not start on them"
    return [pod for pod in pods if pod.name != "etcd"], told


def _minor_of(image: str) -> str:
    match = _TAG.search(image)
    return f"{match[1]}.{match[2]}" if match else ""


# ---- the phases


def check_return(ctx: UpgradeRun) -> Outputs:
    """Whether this node may go back; then the former manifests are tried as for any swap. Nothing stops.

    Raises HostError: rollback-unsafe, nothing-kept, hand-edits, and those of check_swap."""
    former = _former(ctx)
    _refuse_lost(ctx)
    upgrade_preflight.refuse_edits(ctx, is_return=True)
    if ctx.config.is_control_plane and not _has_ended(ctx):  # perhaps cut off between a certificate and its key
        renewed_certs.put_torn_right(dataclasses.replace(ctx, host=ctx.machine or ctx.host))
    pods = plan_return(ctx)
    trouble = judge_return(former, pods=pods, facts=read_facts(ctx))
    trouble = trouble or (_judge_own_kubelet(ctx, former) if pods else None)
    if trouble is not None:
        raise trouble
    upgrade_programs.tell_pods(ctx, goes_to=upgrade_kubelet.find_former(ctx))
    if not pods:
        return None
    if upgrade_kubelet.PHASE in ctx.selection.cut_off and not services.may_run(ctx.host, "kubelet"):
        ctx.report.note("the way back was cut off while the kubelet was stopped: it is started again first")
        return None  # the run that was cut off had tried the manifests
    return static_pods_swap.check_swap(ctx)


def _judge_own_kubelet(ctx: UpgradeRun, former: str) -> Optional[HostError]:
    """Why the API server must not go back before this node's kubelet, which somebody else replaced; None if kb takes that back."""
    here, wanted = upgrade_programs.find_installed(ctx, "kubelet"), releases.parse_version(former)
    have, back = (
        releases.parse_version(text) for text in (here.version if here else "", upgrade_kubelet.find_former(ctx))
    )
    if (
        have is None
        or wanted is None
        or have.minor <= wanted.minor
        or (back is not None and back.minor <= wanted.minor)
    ):
        return None
    why = f"the kubelet of this node is {have.text}, and must not be newer than its API server; the former one was not kept"
    return _unsafe(former, why, f"install the former one first: {upgrade_programs.say_installation(ctx, former)}")


def _refuse_lost(ctx: UpgradeRun) -> None:
    """Raises HostError (kept-incomplete): the kubelet would be stopped, and its former files are not there."""
    found = kept.load(ctx.host, ctx.paths)
    lost = kept.find_lost(ctx.host, ctx.paths, found) if found is not None else []
    if lost:
        raise HostError(
            "not everything is there that this node ran before its upgrade",
            cause=f"missing: {', '.join(map(str, lost[:3]))}; nothing was changed",
            remedy="leave it as it is, and drop the rest: kb upgrade finish",
            code="kept-incomplete",
        )


def read_facts(ctx: UpgradeRun) -> Facts:
    """Raises ApiRefused, Unreachable. A kubelet may ask API servers for their version, and for nothing of other nodes."""
    servers = [found for one in survey.ask_servers(ctx.api) if (found := releases.parse_version(one.seen.version))]
    newest = max(servers, key=lambda one: one.key).text if servers else ""
    if not ctx.config.is_control_plane:
        return Facts(server=newest)
    nodes = health.probe_nodes(ctx.api)
    config = ctx.api.get(api.path_of("ConfigMap", "kubeadm-config", namespace=objects.SYSTEM)) or {}
    stored = load_yaml((config.get("data") or {}).get("ClusterConfiguration") or "{}")
    return Facts(
        server=newest,
        stored=str(stored.get("kubernetesVersion") or "") if isinstance(stored, dict) else "",
        others={part.name: part.version for part in nodes if part.name != ctx.config.node.name},
    )


def plan_return(ctx: UpgradeRun) -> list[store.Pod]:
    """The static pods that go back: those whose former manifest differs from the one on disk, without what has to stay."""
    wanted = dict(ctx.texts)
    return [pod for pod in _changed(ctx) if pod.name in wanted]


def _changed(ctx: UpgradeRun) -> list[store.Pod]:
    return [pod for pod in static_pods_swap.plan_swap(ctx).pods if pod.is_changed]


def _former(ctx: UpgradeRun) -> str:
    found = kept.load(ctx.host, ctx.paths)
    if found is None:
        raise nothing_kept()
    return found.former


def _has_ended(ctx: UpgradeRun) -> bool:
    """Whether the upgrade that is taken back came to its end."""
    found = kept.load(ctx.host, ctx.paths)
    return found is not None and found.status != kept.RUNNING


def nothing_kept() -> HostError:
    return HostError(
        "nothing is kept of an upgrade of this node",
        cause="it was not upgraded, or what was kept was removed after seven days or by finish",
        remedy="see which versions the nodes run: kubectl get nodes",
        code="nothing-kept",
    )


def return_kubelet(ctx: UpgradeRun) -> Outputs:
    """Put the former kubelet and its files back, watched, on a drained node if the minor differs. Raises ClusterError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    node, former = run.config.node.name, upgrade_kubelet.find_former(run)
    left = _find_left(run, former)
    try:
        if left is not None or _is_back(run, former):
            upgrade_kubelet.end_spared(run)
            eviction.uncordon(run.api, node)
            upgrade_turn.give_back(run.api, node)
            return left
        if upgrade_programs.drains(run, former):
            upgrade_kubelet.drain(run)
        leaves_minor = upgrade_programs.leaves_minor(run, former)
        with upgrade_kubelet.spared(run, leaves_minor=leaves_minor):
            upgrade_kubelet.take_back(run, version=former, leaves_minor=leaves_minor)
    except BaseException:
        with contextlib.suppress(KbError):  # its own failure must stay the one that is shown
            eviction.uncordon(run.api, node)
        raise
    eviction.uncordon(run.api, node)
    upgrade_turn.give_back(run.api, node)
    run.report.note(f"the kubelet {former} runs again")
    return None


def _find_left(run: UpgradeRun, former: str) -> Optional[Results]:
    """What the operator has to do himself, since what he installed over the former kubelet was all that could be kept; None if it was kept."""
    found = kept.load(run.host, run.paths)
    if found is None or former not in ("", found.wanted):
        return None
    told = (
        f"the kubelet stays {found.wanted}: it was not kb that replaced the former one, so that was not kept. To have {found.former} again: "
        f"{upgrade_programs.say_installation(run, found.former)}"
    )
    run.report.warn(told)
    return Results(remaining=(told,))


def _is_back(run: UpgradeRun, former: str) -> bool:
    """Whether the former kubelet runs, with its former files: a run that was cut off may have stopped it in between."""
    place = upgrade_programs.find_installed(run, "kubelet")
    if place is None or place.version != former or not services.is_active(run.host, "kubelet"):
        return False
    files = (run.paths.kubelet_config, run.paths.kubelet_flags_env, run.paths.kubelet_instance_config)
    are_same = all(kept.is_as_kept(run.host, run.paths, path) for path in files)
    return are_same and upgrade_programs.read_reported(run) == former


def foretell_return(ctx: UpgradeRun) -> Outputs:
    """Dry run: which files would come back."""
    found = kept.load(ctx.host, ctx.paths)
    for name, was_there in (found.files if found is not None else {}).items():
        ctx.report.note(f"{name}: {'its former content would come back' if was_there else 'it would be removed'}")
    return None


RETURN_CHECKS = Act(do=check_return, live="cluster", always=True)
RETURN_KUBELET = Act(do=return_kubelet, foretell=foretell_return, live="cluster", always=True)
