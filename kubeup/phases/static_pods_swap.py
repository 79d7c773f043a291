"""The phases of `kb reconfigure static-pods`: replace running static pods, and come back if the new ones do not work.

Before anything stops, the new manifests are tried as far as that is possible without starting them. How pods are stopped, started, and
proven is in kubeup/swap/. kubeadm replaces the file, and waits for the hash of the mirror pod
(cmd/kubeadm/app/phases/upgrade/staticpods.go), which a pod that exits again and again has too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from kubeup.addresses import join_host_port
from kubeup.cluster.api import Api, path_of
from kubeup.engine.items import File
from kubeup.engine.plan import compare_documents
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import becomes_so, say_round, watch
from kubeup.trouble import Trouble, advise
from kubeup.yaml_files import commands_of_pod, flags_of, load_mapping

with lazily:
    from kubeup.cluster import etcd, etcd_stop, health, probes, try_mark
    from kubeup.engine import records
    from kubeup.network import drain, drain_marks
    from kubeup.node import crictl, etcd_data, image_pulls, pod_trials, runtime, tried_pod
    from kubeup.swap import manifests, order, patience, proof, store, turn, wake
    from kubeup.upgrade import target

COMMAND = "kb reconfigure static-pods"
ROOM = 256 << 20
"""Free space, in bytes, that the runtime and the kubelet need to start a pod, with a margin."""
PLACES = (Path("/var/lib/kubelet"), Path("/var/lib/containerd"), Path("/var/lib/containers"), Path("/var/log"))
DEFAULT_QUOTA = 2 << 30
"""How many bytes etcd's data may have where nothing else is said."""
BROKEN_S = 5.0
"""For how long a component may fail its probe before it counts as broken."""
GATE_S = 60.0
"""How long the cluster may take to be well again."""
LISTED_S = 30.0
"""How long an API server that has just started may take until it is among those of the cluster: it looks every ten seconds."""
UNLISTED = "no API server is listed by the cluster"
NEW_S = 30.0
"""For how long leases that were read count as those of now: who has renewed one since then lived not longer ago."""
LOOK_LASTS_S = 20.0
"""For how long a look at them is not repeated: the rest of NEW_S is for what comes before the gate."""
AWAY_S = 2.0
"""How long another API server may take to say who has renewed a lease, while this one is away and the next waits for that. It has answered a
moment before; if it is gone by now, this node's own says so later."""
NODES = "system:nodes"
API_GAP_S, ETCD_GAP_S = 10, 15
"""How long the API is away on a node that is alone, as measured; said before it happens."""


@frozen_by_name
class SwapRun(Run):
    """texts: the wanted manifests, by component. agree: asks for consent to what is said; raises UsageError without it.

    before_stop, after_start: the user's own commands, for a load balancer that is not kb's. command: what the user runs, for remedies;
    tells_edits: whether others' changes of a manifest are still to be told. try_s: for how many seconds the change is tried, 0: it stays.
    tried_config: the ClusterConfiguration that is stored once it is confirmed, "" for none; tried_from: what it was made from. is_in_unit: the unit that waits for the end
    of a trial runs this."""

    texts: tuple[tuple[str, str], ...]
    agree: Callable[[str], None]
    before_stop: str = ""
    after_start: str = ""
    is_undo: bool = False
    command: str = COMMAND
    tells_edits: bool = True
    try_s: float = 0.0
    tried_config: str = ""
    tried_from: str = ""
    is_in_unit: bool = False


# ---- preflight


def check_swap(ctx: SwapRun) -> Outputs:
    """Pull the images, try the new manifests, and check that the rest of the cluster can do without this node meanwhile.

    Raises HostError: kubelet-not-running, no-cri-client, static-pod-refused, disk-full; ClusterError: etcd-stop-unsafe, try-elsewhere;
    ImagePullError; UsageError (not-confirmed).
    """
    if not services.may_run(ctx.host, "kubelet"):
        raise HostError(
            "the kubelet does not run",
            cause="it is what stops and starts static pods",
            remedy=f"start it: {services.spoken_of(ctx.host).say('start', 'kubelet')}; then: {ctx.command}",
            code="kubelet-not-running",
        )
    if not ctx.host.which("crictl"):
        raise HostError(
            "crictl is not in PATH",
            cause="containers are ended and inspected through it; nothing was stopped",
            remedy=f"install it: {crictl.install_command(ctx.host, 'cri-tools')}",
            code="no-cri-client",
        )
    cut_off = store.load_cut_off(ctx.host, ctx.paths)
    if cut_off is not None:
        ctx.report.note(
            f"a swap of {', '.join(cut_off.names)} was cut off: {'taking it back' if ctx.is_undo else 'continuing it'}"
        )
        return None
    for name in (name for name, _ in ctx.texts if name not in _installed(ctx)):
        raise HostError(
            f"{name} does not run on this node as a static pod",
            cause=f"there is no {ctx.paths.manifest(name)}",
            remedy=f"see which static pods it has: ls {ctx.paths.manifests}",
            code="static-pod-not-here",
        )
    swap = plan_swap(ctx)
    if not swap.pods:
        return None
    _refuse_held(_find_holder(ctx))
    refuse_tried_elsewhere(ctx)
    _tell_differences(ctx, swap)
    _pull_images(ctx, swap)
    _try_pods(ctx, swap)
    _check_room(ctx)
    _check_members(ctx, swap)
    return None


def plan_swap(ctx: SwapRun) -> store.Swap:
    """The swap of the given manifests that differ from those on disk. An API server is restarted with the etcd that it uses."""
    found = {name: ctx.host.read_text(ctx.paths.manifest(name)) for name in _installed(ctx)}
    pods = [store.Pod(name, found[name], dict(ctx.texts).get(name, found[name])) for name in found]
    changed = {pod.name for pod in pods if pod.is_changed}
    if "etcd" in changed:
        changed.add("kube-apiserver")
    return store.Swap(tuple(pod for pod in pods if pod.name in changed))


def refuse_tried_elsewhere(ctx: Run) -> None:
    """Raises ClusterError (try-elsewhere) if another control plane is trying a change. An API that is away hinders nothing."""
    with contextlib.suppress(Unreachable):
        try_mark.refuse_elsewhere(Api(ctx.host, ctx.api.identity, retry_s=0), node=ctx.config.node.name)


def _installed(ctx: SwapRun) -> list[str]:
    return [name for name in store.COMPONENTS if ctx.host.exists(ctx.paths.manifest(name))]


def _tell_differences(ctx: SwapRun, swap: store.Swap) -> None:
    """What changes, field by field; and what others have changed since kb wrote the manifest, which the new one keeps or drops."""
    kept_records = records.load_records(ctx.host, ctx.paths.records)
    for pod in swap.pods:
        path = ctx.paths.manifest(pod.name)
        former, wanted = (load_mapping(text, str(path)) for text in (pod.former, pod.wanted))
        for one in compare_documents(pod.name, wanted, found=former):
            ctx.report.note(f"change: {one.as_change()}")
        recorded = target.find_recorded(kept_records, path)
        if recorded is None or not ctx.tells_edits:
            continue
        kept = {one.field for one in compare_documents(pod.name, wanted, found=load_mapping(recorded, str(path)))}
        for one in compare_documents(pod.name, former, found=load_mapping(recorded, str(path))):
            fate = "the new manifest keeps that" if one.field in kept else "the new manifest has what kb wrote"
            ctx.report.note(
                f"not written by kb: {one.field} is {one.wanted or 'not set'}, kb wrote {one.found or 'nothing'}; {fate}"
            )
    others = sorted(name for name in ctx.host.list_dir(ctx.paths.manifests) if not name.startswith("."))
    foreign = [name for name in others if Path(name).stem not in (*store.COMPONENTS, "kb-load-balancer")]
    if foreign:
        ctx.report.note(f"static pods of others, left alone: {', '.join(foreign)}")


def _pull_images(ctx: Run, swap: store.Swap) -> None:
    """The pods' images, and that of their sandboxes: a kubelet short of disk space deletes it where the runtime does not keep it from that
    (containerd 1.6), and then neither new nor former pods start."""
    socket = ctx.config.node.cri_socket
    images = [proof.image_of(load_mapping(pod.wanted, pod.name)) for pod in swap.pods]
    images.append(runtime.probe_runtime(ctx.host, socket).sandbox_image or "")
    wanted = [name for name in dict.fromkeys(images) if name]
    pulled = image_pulls.ensure_images(ctx.host, socket, names=wanted, tell=ctx.report.waiting)
    for failure in pulled.failed:
        raise failure


def _try_pods(ctx: SwapRun, swap: store.Swap) -> None:
    """Try each changed manifest without starting it. Raises HostError (static-pod-refused) with everything that would fail."""
    troubles: list[Trouble] = []
    for name in swap.changed:
        pod = swap.pod(name)
        wanted, former = (load_mapping(text, name) for text in (pod.wanted, pod.former))
        trials = pod_trials.try_pod(ctx.host, socket=ctx.config.node.cri_socket, pod=wanted, running=former)
        if proof.image_of(wanted):  # missing after the pulls: this is a dry run, which pulls none
            trials = [_without_pull(trial) for trial in trials]
        troubles += [trial.trouble for trial in trials if trial.trouble is not None]
        troubles += [*_find_closed_probes(wanted, former), *_find_unheard(swap, name)]
        troubles += [*_find_small_quota(ctx, wanted, former=former), *_find_lost_nodes(ctx, wanted, former=former)]
        passed = [trial.name for trial in trials if trial.trouble is None and not trial.not_tried]
        ctx.report.note(f"{name}: tried without starting it: {', '.join(passed) or 'nothing'}")
        for trial in trials:
            if trial.not_tried:
                ctx.report.note(f"{name}: {trial.name} could not be tried: {trial.not_tried}")
    if not troubles:
        return
    first = troubles[0]
    raise HostError(
        first.what,
        cause=f"{first.cause}; nothing was stopped",
        remedy=first.remedy,
        code="static-pod-refused",
        details=[advise(trouble) for trouble in troubles[1:]],
    )


def _find_closed_probes(wanted: Mapping[str, Any], former: Mapping[str, Any]) -> Iterator[Trouble]:
    """An API server that answers kb, and not the kubelet's probes: it would be restarted long after the swap has ended well."""
    closed, was_closed = (probes.describe_closed_probes(_flags_of_pod(pod).items()) for pod in (wanted, former))
    if closed and not was_closed and probes.list_probed_urls(wanted):
        yield Trouble("kube-apiserver would be restarted again and again", closed, probes.CLOSED_PROBES_REMEDY)


def _find_unheard(swap: store.Swap, name: str) -> Iterator[Trouble]:
    """A pod that listens where nobody asks it: an API server that is away, until it is taken back; a controller that kb asks at its new
    address, and the kubelet at the former one; an etcd that its API server does not find."""

    def describe(kind: str) -> str:
        texts = {pod.name: getattr(pod, kind) for pod in swap.pods}
        pod = load_mapping(texts[name], name)
        server = load_mapping(texts["kube-apiserver"], name) if name == "etcd" and "kube-apiserver" in texts else {}
        return probes.describe_missed_probes(pod) or (probes.describe_missed_etcd(pod, server) if server else "")

    missed = describe("wanted")
    if missed and not describe("former"):
        flag = "the URLs on which it listens" if name == "etcd" else "--bind-address"
        yield Trouble(f"{name} would not be heard", missed, f"leave {flag} as before, or have it cover that address")


def _find_small_quota(ctx: SwapRun, wanted: Mapping[str, Any], *, former: Mapping[str, Any]) -> Iterator[Trouble]:
    """An etcd that would start, and take no write any more, its members neither: server/storage/quota.go, DefaultQuotaBytes."""
    given, was = (_flags_of_pod(pod).get("quota-backend-bytes", "0") for pod in (wanted, former))
    data = ctx.host.stat(ctx.paths.etcd_data / "member" / "snap" / "db")
    if str(wanted["metadata"]["name"]) != "etcd" or given == was or data is None or not given.isdecimal():
        return
    quota = int(given) or DEFAULT_QUOTA
    if data.size >= quota:
        yield Trouble(
            "etcd would take no write any more",
            f"its data have {data.size >> 20} MiB, and with --quota-backend-bytes={given} it may have {quota >> 20} MiB",
            "allow it more; or make its data smaller first: kb etcd compact; kb etcd defrag",
        )


def _find_lost_nodes(ctx: SwapRun, wanted: Mapping[str, Any], *, former: Mapping[str, Any]) -> Iterator[Trouble]:
    """An API server that lets no kubelet work: RBAC alone has no word for them, unless somebody gave them a role. ABAC, a webhook and a file
    of authorization may have one; that is seen once it runs (swap/proof.py)."""
    given, was = (_flags_of_pod(pod).get("authorization-mode", "") for pod in (wanted, former))
    if "Node" not in was.split(",") or not given or not set(given.split(",")) <= {"RBAC", "AlwaysDeny"}:
        return
    try:
        has_role = _have_nodes_a_role(ctx.api)
    except KbError:
        return
    if not has_role:
        yield Trouble(
            "every node of the cluster would be lost",
            f"with --authorization-mode={given} the API server refuses what kubelets ask: Node is not in it, and no role that is bound to "
            f"{NODES} lets them renew their Leases",
            f"keep Node in it: --authorization-mode=Node,{given}",
        )


def _have_nodes_a_role(api: Api) -> bool:
    """Whether RBAC gives kubelets a right to their Leases. What kubeadm binds to them, to renew certificates and to read its
    configuration, does not. Raises ApiRefused, Unreachable."""
    bound = [one for one in api.list(path_of("ClusterRoleBinding")) if _is_of_nodes(one)]
    if any(map(_is_of_nodes, api.list(path_of("RoleBinding", namespace="kube-node-lease")))):
        return True
    names = {str((one.get("roleRef") or {}).get("name") or "") for one in bound}
    roles = [api.get(path_of("ClusterRole", name)) for name in sorted(names) if name]
    return any(_is_about_leases(rule) for role in roles if role for rule in role.get("rules") or ())


def _is_of_nodes(binding: Mapping[str, Any]) -> bool:
    names = [str(subject.get("name") or "") for subject in binding.get("subjects") or ()]
    return any(name in (NODES, "system:authenticated") or name.startswith("system:node:") for name in names)


def _is_about_leases(rule: Mapping[str, Any]) -> bool:
    groups, resources = set(rule.get("apiGroups") or ()), set(rule.get("resources") or ())
    return bool(groups & {"*", "coordination.k8s.io"}) and bool(resources & {"*", "leases"})


def _flags_of_pod(pod: Mapping[str, Any]) -> dict[str, str]:
    return flags_of(next(iter(commands_of_pod(pod)), []))


def _find_wanted_room(ctx: SwapRun, place: Path) -> int:
    """The free space, in bytes, below which the kubelet deletes images or evicts pods, from its evictionHard; at least ROOM.
    The ballast of the swap comes on top. Source:
    DefaultEvictionHard of pkg/kubelet/apis/config/v1beta1/defaults_linux.go, imageGCHighThresholdPercent of types.go"""
    config = ctx.config.kubelet
    given = config.get("evictionHard")
    limits = dict(given) if isinstance(given, Mapping) else {"nodefs.available": "10%", "imagefs.available": "15%"}
    shares = [str(limits.get(name, "0%")) for name in ("nodefs.available", "imagefs.available")]
    percent = max(int(text[:-1]) if text.endswith("%") and text[:-1].isdecimal() else 0 for text in shares)
    high = config.get("imageGCHighThresholdPercent", 85)
    percent = max(percent, 100 - high if isinstance(high, int) else 0)
    shown = ctx.host.query(["df", "-B1", "--output=size", str(place)]).stdout.split()
    size = int(shown[-1]) if shown and shown[-1].isdecimal() else 0
    return max(ROOM, size * percent // 100) + (sum(order.BALLAST_MIB.values()) << 20)


def _without_pull(trial: pod_trials.Trial) -> pod_trials.Trial:
    is_missing = trial.name == pod_trials.IMAGE and trial.trouble is not None
    return dataclasses.replace(trial, trouble=None, not_tried="it is pulled first") if is_missing else trial


def _check_room(ctx: SwapRun) -> None:
    """Raises HostError (disk-full): on a full disk neither the new pods start nor the former ones again, and a kubelet that is short of
    space deletes the images that no pod uses at that moment, those of the former pods too."""
    for place in PLACES:
        if not ctx.host.is_dir(place):
            continue
        free, wanted = ctx.host.free_bytes(place), _find_wanted_room(ctx, place)
        if free < wanted:
            raise HostError(
                f"{place} has {free >> 20} MiB of free space",
                cause=f"a pod that starts needs some, and below {wanted >> 20} MiB the kubelet may delete the images of stopped pods; "
                "nothing was stopped",
                remedy=f"make space: du -xh {place} | sort -h | tail",
                code="disk-full",
            )


def _check_members(ctx: SwapRun, swap: store.Swap) -> None:
    """Whether the others can do without this node's etcd and API server; what the user has to agree to if not."""
    gaps: list[str] = []
    if "etcd" in swap.names:
        members, own, trouble = check_quorum(ctx)
        why = etcd_stop.stop_gap(members, own, trouble=trouble) if own is not None else ""
        if why:
            gaps.append(f"the whole cluster's API is away for about {ETCD_GAP_S} s, since etcd stops: {why}")
        if own is None:
            ctx.report.note("no member of etcd answers here: nothing is lost while this one is stopped")
        _check_data(ctx, swap, members=members, own=own)
    if "kube-apiserver" in swap.names and not gaps and not list_other_servers(ctx):
        gaps.append(f"the API is away for about {API_GAP_S} s, since no other API server serves")
    if gaps:
        ctx.agree(f"{'; '.join(gaps)}. Pods keep running.")


def check_quorum(ctx: Run) -> tuple[Sequence[etcd.Member], Optional[etcd.Member], Mapping[str, str]]:
    """etcd's members, this node's own, and what is wrong with those that do not serve. ((), None, {}) if no member that this node knows
    answers: then this is a repair. Raises ClusterError (etcd-stop-unsafe, etcd-member-unknown)."""
    client = proof.own_etcd(ctx)
    try:
        members = client.list_members(is_sure=False)
    except Unreachable:
        return (), None, {}
    own = proof.find_own_member(ctx, members) or _refuse_stranger(ctx, members)
    trouble = etcd.probe_members(client, members)
    etcd_stop.check_stop(members, own, trouble=trouble)
    return members, own, trouble


def _refuse_stranger(ctx: Run, members: Sequence[etcd.Member]) -> NoReturn:
    raise ClusterError(
        "etcd does not list this node's member",
        cause=f"--initial-advertise-peer-urls in {ctx.paths.manifest('etcd')} is none of: "
        + "; ".join(member.describe() for member in members),
        remedy="see the members: kb etcd members",
        code="etcd-member-unknown",
    )


def _check_data(ctx: Run, swap: store.Swap, *, members: Sequence[etcd.Member], own: Optional[etcd.Member]) -> None:
    """That etcd would start on its data, and that those of a single member can be copied. Raises HostError."""
    _refuse_moved_data(ctx, swap.pod("etcd"))
    data_dir = ctx.paths.etcd_data
    flags = proof.etcd_flags(ctx)
    wal_dir = Path(flags["wal-dir"]) if flags.get("wal-dir") else None
    etcd_data.refuse_empty(ctx.host, data_dir, others=[one.name for one in members if one is not own], wal_dir=wal_dir)
    if len(members) > 1:
        return
    left = etcd_data.find_copies(ctx.host, data_dir)
    if left:
        raise etcd_data.copy_exists(left[0])
    etcd_data.check_room(ctx.host, data_dir, wal_dir=wal_dir)


def _refuse_moved_data(ctx: Run, pod: store.Pod) -> None:
    """Raises HostError (etcd-data-moved) if the new etcd would look for its data at another place of this machine: on an empty folder it
    begins a cluster without any objects, and what was copied from a running member is not its data."""
    before, after = (_data_places(ctx, text) for text in (pod.former, pod.wanted))
    if before == after:
        return
    raise HostError(
        "the new manifest of etcd does not have the data where they are",
        cause=f"they are at {before or 'no known place'}, and it has them at {after or 'no known place'}; nothing was stopped",
        remedy="keep --data-dir, --wal-dir and their mounts as they are; to move the data, remove this node's member and join it again",
        code="etcd-data-moved",
    )


def _data_places(ctx: Run, text: str) -> str:
    """Where an etcd manifest has the data and the log, in words."""
    pod = tried_pod.read_pod(load_mapping(text, "etcd"))
    paths = [pod.flag(name) for name in ("data-dir", "wal-dir") if pod.flag(name)]
    found = [(path, pod.locate(path).host_path) for path in paths]
    return " and ".join(
        str(ctx.host.real_path(place)) if place else f"{path} of the container" for path, place in found
    )


def list_other_servers(ctx: Run) -> list[str]:
    """`host:port` of the other API servers that serve now."""
    own = _own_server(ctx)
    try:
        parts = health.probe_api_servers(proof.own_api(ctx))
    except KbError:
        return []
    return [part.name for part in parts if part.is_well and part.name != own]


def _own_server(ctx: Run) -> str:
    endpoint = ctx.config.local_api_endpoint
    return join_host_port(endpoint.advertise_address, endpoint.bind_port)


# ---- the swap


def swap_pods(ctx: SwapRun) -> Outputs:
    """Swap the pods, continue a swap that was cut off, or take one back. Raises KbError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    cut_off = store.load_cut_off(run.host, run.paths)
    swap = cut_off or plan_swap(run)
    if not swap.pods:
        ctx.report.note("the static pods run with these manifests already")
        return None
    # nobody took the API server out of the user's load balancer for a controller
    after_start = ctx.after_start if order.CALLED.intersection(swap.names) else ""
    around = find_surroundings(run, before_stop=ctx.before_stop, after_start=after_start)
    with _turn(run, is_new=cut_off is None):
        if cut_off is None:
            swap = _begin(ctx, run, swap=swap)
        else:
            _check_again(run, swap)
            for path, kept in manifests.keep_edits(run, swap.pods, folder=store.folder(run.paths)):
                run.report.warn(
                    f"{path} was changed since this swap was cut off; it is replaced, and what was in it is in {kept}"
                )
        work = order.Order(run, swap, around, lambda: record_files(run, map(run.paths.manifest, swap.names)))
        changed = [run.paths.manifest(name) for name in swap.changed]
        try:
            if ctx.is_undo and cut_off is not None:
                work.go_back()
            else:
                _tell_end(ctx, work.carry_out(store.TAKEN_BACK if ctx.is_undo else store.DONE))
        except KbError:
            if store.load_cut_off(run.host, run.paths) is not None:  # neither way came to its end
                ctx.promises.tell_changed(changed)
            raise
    ctx.promises.tell_changed(changed)
    return None


def _check_again(run: SwapRun, swap: store.Swap) -> None:
    """Whether the others can still do without this node's etcd, if the rest of a swap that was cut off stops it: since it was cut off, one of
    them may have gone. What is out already only comes back. Raises ClusterError (etcd-stop-unsafe)."""
    if "etcd" not in swap.names or not run.host.exists(run.paths.manifest("etcd")):
        return
    stays = manifests.has_stayed if run.is_undo else manifests.has_come
    if stays(run, swap.pod("etcd")):
        return
    try:
        check_quorum(run)
    except etcd.EtcdRefused:  # a learner, as one is that joins again: it has no vote that the others could miss
        return
    except ClusterError as error:
        other = f"to let this swap go on: {COMMAND}" if run.is_undo else f"to take this swap back: {COMMAND} --undo"
        error.remedy = f"{error.remedy}; {other}"
        raise


def restart(ctx: Run, names: Sequence[str] = ("kube-apiserver",), *, texts: Optional[Mapping[str, str]] = None) -> None:
    """Restart static pods with the manifests that they have, or with those of `texts`: etcd with the API server that uses it, which is out of
    the load balancers meanwhile. Raises KbError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    found = check_restart(run, names)
    pods = (dataclasses.replace(pod, wanted=(texts or {}).get(pod.name, pod.wanted)) for pod in found.pods)
    wanted = store.Swap(tuple(pods))
    with _turn(run, is_new=True):
        swap = _begin(ctx, run, swap=wanted)
        record = functools.partial(record_files, run, [run.paths.manifest(name) for name in wanted.changed])
        _tell_end(ctx, order.Order(run, swap, find_surroundings(run), record).carry_out())


def check_restart(run: Run, names: Sequence[str]) -> store.Swap:
    """The swap that restarts these pods, if what they need to start is there, and the others can do without etcd meanwhile. Raises
    ClusterError (etcd-stop-unsafe, etcd-member-unknown), HostError, ImagePullError."""
    chosen = {*names, "kube-apiserver"} if "etcd" in names else set(names)
    texts = {name: run.host.read_text(run.paths.manifest(name)) for name in store.COMPONENTS if name in chosen}
    wanted = store.Swap(tuple(store.Pod(name, text, text) for name, text in texts.items()))
    _pull_images(run, wanted)
    if "etcd" in names:
        members, own, _ = check_quorum(run)
        _check_data(run, wanted, members=members, own=own)
    return wanted


def _find_holder(ctx: SwapRun) -> Optional[turn.Held]:
    try:
        return turn.find_holder(ctx)
    except KbError:
        return None  # the swap itself says so


@contextlib.contextmanager
def _turn(run: Run, *, is_new: bool) -> Iterator[None]:
    """No other control plane swaps meanwhile. One that is alone has to come back without its API, so an API that is away hinders nothing.
    is_new: nothing was stopped yet. Raises ClusterError (swap-elsewhere)."""
    held: Optional[turn.Held] = None
    try:
        held = turn.take(run, patience_s=turn.PATIENCE_S if is_new else 0)
    except KbError as error:
        run.report.note(f"other control planes are not kept from swapping meanwhile: {error}")
    _refuse_held(held)
    try:
        yield
    except BaseException:
        if store.load_cut_off(run.host, run.paths) is None:  # it had not begun; its end gives the turn back itself
            _end_turn(run)
        raise


def _end_turn(run: Run) -> None:
    try:
        turn.give_back(run)
    except KbError as error:
        run.report.warn(f"other control planes cannot swap for {turn.LASTS_S // 60} minutes: {error}. {_say_removal()}")


def _refuse_held(held: Optional[turn.Held]) -> None:
    if held is None:
        return
    raise ClusterError(
        f"control plane {held.node} swaps its static pods",
        cause=f"it has held Lease kube-system/{turn.NAME} for {held.for_s:.0f} s; two that stop at once may cost etcd its quorum",
        remedy=f"wait until it has finished; if it was cut off, on {held.node}: {COMMAND}; {_say_removal()}",
        code="swap-elsewhere",
    )


def _say_removal() -> str:
    return f"if no swap is under way: kubectl -n kube-system delete lease {turn.NAME}"


def _find_broken(run: Run, swap: store.Swap) -> tuple[str, ...]:
    """The pods, and the controllers beside them, that do not work now, for some seconds."""
    beside = (name for name in wake.CONTROLLERS if run.host.exists(run.paths.manifest(name)))
    longest_s = BROKEN_S * patience.find_patience(run.host)
    return tuple(
        name
        for name in dict.fromkeys((*swap.names, *beside))
        if not becomes_so(run.host, functools.partial(proof.works, run, name), timeout_s=longest_s)
    )


def _begin(ctx: Run, run: Run, *, swap: store.Swap) -> store.Swap:
    """Write down the swap, and lay the new manifests ready. From here on a run that is cut off can be continued or taken back."""
    ctx.promises.expect(
        [path for name in swap.names for path in (manifests.former_path(run, name), manifests.next_path(run, name))]
    )
    if "etcd" in swap.names:
        members, own, _ = check_quorum(run)  # once more: another control plane may have swapped since
        others = tuple(url for member in members if member is not own for url in member.client_urls)
        swap = dataclasses.replace(swap, data_dir=str(run.paths.etcd_data) if len(members) == 1 else "", others=others)
    swap = dataclasses.replace(swap, holders=proof.read_holders(run, swap.names), broken=_find_broken(run, swap))
    try:
        manifests.lay_ready(run, swap)
        store.begin(run.host, run.paths, swap=swap)
    except BaseException:
        manifests.remove_leftovers(run.host, run.paths)
        raise
    order.keep_ballast(run)
    return swap


def find_surroundings(run: Run, *, before_stop: str = "", after_start: str = "") -> order.Surroundings:
    others: list[str] = []

    def leave() -> None:
        if before_stop:
            _run_users(run, before_stop, flag="--before-stop")
        if not proof.is_api_up(run):
            return  # a swap that was cut off is continued: nobody is sent there any more
        others.extend(list_other_servers(run))
        for node in drain.drain(proof.own_api(run), _own_server(run), tell=run.report.waiting).silent:
            run.report.note(f"the load balancer of node {node} has not confirmed that it spares this API server")

    def is_away() -> None:
        if others:
            client = proof.own_api(run).with_server(f"https://{others[0]}", timeout_s=AWAY_S)
            _note_renewals(run, client)

    def rejoin() -> None:
        try:
            drain.undrain(proof.own_api(run), _own_server(run), tell=run.report.waiting)
        except KbError as error:
            lapse_min = drain_marks.LAPSE_S / 60
            run.report.warn(f"the load balancers spare this API server for up to {lapse_min:.0f} minutes more: {error}")
        if run.found.renewals is None or run.host.monotonic() - run.found.looked_at > LOOK_LASTS_S:
            _note_renewals(run, proof.own_api(run))
        try:
            if after_start:
                _run_users(run, after_start, flag="--after-start")
        except HostError as error:
            run.report.warn(f"{error}. Remedy: {error.remedy}")

    def begin_watch() -> None:  # no leader of before is swapped any more
        with contextlib.suppress(KbError):
            run.found.led = health.read_leader_renewals(proof.own_api(run))

    return order.Surroundings(
        lambda: not list_other_servers(run), leave, rejoin, lambda: _end_turn(run), begin_watch, is_away=is_away
    )


def _note_renewals(run: Run, client: Api) -> None:
    """For the gate, which counts who has renewed its lease since, and has its own look if this one fails. Read from another API server while
    this one is away, they prove as much as read once it is back: a kubelet that calls only this one renews its lease again with the new
    one, and every other kubelet keeps its connection to another one, wherever that is read."""
    run.found.renewals, run.found.looked_at = None, run.host.monotonic()
    with contextlib.suppress(KbError):
        run.found.renewals = health.read_node_renewals(client)


def _run_users(run: Run, command: str, *, flag: str) -> None:
    """Run a command of the user's, with the API server's host:port in KB_SERVER. Raises HostError (users-command-failed)."""
    run.report.waiting(f"the command of {flag}: {command}")
    done = run.host.run(["sh", "-c", command], env={"KB_SERVER": _own_server(run)})
    if not done.ok:
        raise HostError(
            f"the command of {flag} ended with code {done.code}",
            cause=(done.stderr or done.stdout).strip()[-300:] or "it said nothing",
            remedy=f"correct it: {command}",
            code="users-command-failed",
        )


def _tell_end(ctx: Run, ended: order.Ended) -> None:
    if ended.gap_s is not None:
        ctx.report.note(f"this node's API server was away for {ended.gap_s:.1f} s")
    for text in ended.notes:
        ctx.report.note(text)


def record_files(run: Run, files: Iterable[Path]) -> None:
    """Have the record say what these files are now, so that a later change of somebody else's is told from this one."""
    kept = records.load_records(run.host, run.paths.records)
    for path in files:
        item = File(path, "", has_mode=True)
        steps = [step for step, items in kept.steps.items() if str(path) in items and step != records.PROGRAMS]
        found = item.look(run) if steps else None
        for step in steps:
            if found is not None:
                kept.put(step, {**kept.steps[step], str(path): item.record(found)})
    try:
        kept.save()
    except HostError as error:
        run.report.warn_once(f"what was done could not be recorded: {error}")


def foretell_swap(ctx: SwapRun) -> Outputs:
    """What the swap would write, for a dry run."""
    for pod in plan_swap(ctx).pods:
        ctx.host.write_file(ctx.paths.manifest(pod.name), pod.wanted, mode=0o600)
    return None


# ---- the gate


def find_unwell(ctx: SwapRun) -> frozenset[tuple[str, str]]:
    """The parts, (kind, name), that are in trouble now, by a look that waits for nobody. An API that is away hinders nothing."""
    client = proof.own_etcd(ctx) if "etcd" in _installed(ctx) else None
    try:
        parts = health.glance(proof.own_api(ctx), client)
    except KbError:
        return frozenset()
    return frozenset((part.kind, part.name) for part in health.find_blockers(parts))


def read_health(
    ctx: SwapRun, *, patience_s: float, is_before: bool = False, known: Collection[tuple[str, str]] = ()
) -> list[health.Part]:
    """All parts of the cluster, once none is in trouble, or at the end of one's patience. What was away with an API server takes a moment
    to come back: a controller-manager that could not renew its lease exits and starts again. patience_s: on a machine that is not busy; a busy
    one gets more, but not for the kubelets of other machines. is_before: nothing has been changed yet. known: the parts, (kind, name), that
    nobody waits for."""
    busy, own = patience.find_patience(ctx.host), ctx.config.node.name
    longest_s, lead_s = patience_s * busy, max(patience_s, GATE_S) * busy
    client = proof.own_etcd(ctx) if "etcd" in _installed(ctx) else None
    parts: list[health.Part] = []

    def find_new() -> list[health.Part]:
        return [part for part in health.find_blockers(parts) if (part.kind, part.name) not in known]

    def look() -> str:
        # while the swap has watched its pods, each kubelet and leader has renewed its lease
        seen, is_new = ctx.found, ctx.host.monotonic() - ctx.found.looked_at < NEW_S
        renewed, led = (seen.renewals, seen.led) if is_new else (None, None)
        parts[:] = health.gate(ctx.api, client, renewed=renewed, led=led, counts_recent=is_before)
        seen.renewals = seen.led = None
        if is_before and not any(part.kind == "api-server" for part in parts):
            return UNLISTED
        return "; ".join(part.trouble.what for part in find_new() if part.trouble is not None)

    def is_over(missing: str, elapsed: float) -> bool:
        found = find_new()
        is_elsewhere = all(one.kind == "node" and one.name != own for one in found)
        # a lease that was lost lapses after 15 s, and its process starts again after another 10 to 20 s: shorter is no sign of trouble
        is_led_soon = bool(found) and all(one.kind == "leader" for one in found)
        allowed_s = lead_s if is_led_soon else patience_s if is_elsewhere else longest_s
        if missing == UNLISTED:
            allowed_s = max(longest_s, LISTED_S)
        ctx.report.waiting(say_round("the cluster", missing, elapsed=elapsed, timeout_s=allowed_s))
        return elapsed > allowed_s

    watch(ctx.host, look, timeout_s=max(lead_s, LISTED_S), is_over=is_over, poll_s=2.0)
    return parts


def check_cluster(ctx: SwapRun) -> Outputs:
    """Whether the next control plane may follow. Raises ClusterError (cluster-not-well)."""
    parts = ctx.found.parts if ctx.found.parts is not None else read_health(ctx, patience_s=GATE_S)
    missing = health.find_blockers(parts)
    for part in parts:
        if part.unproven:
            ctx.report.note(f"not proven: {part.unproven}")
    if not missing:
        return None
    blockers = [part.trouble for part in health.find_blockers(parts) if part.trouble is not None]
    raise ClusterError(
        blockers[0].what,
        cause=f"{blockers[0].cause}; the static pods of this node are as they are to be",
        remedy=f"before the next control plane follows: {blockers[0].remedy}",
        code="cluster-not-well",
        details=[advise(trouble) for trouble in blockers[1:]],
    )


TRIALS = Act(do=check_swap, live="node", always=True)
SWAP = Act(do=swap_pods, foretell=foretell_swap, live="node", always=True)
GATE = Act(do=check_cluster, live="cluster", always=True)
