"""A swap of static pods on trial: this node goes back by itself unless the change is confirmed, also after a reboot.

What it goes back to is on disk before anything stops, and a unit of kb's own waits for the end (docs/adr/0024-try.md). This module begins
a trial, ends it, and takes back. Which change it is does not matter: any story may swap through SWAP here instead of the plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Optional

from kubeup.engine.items import Unit
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap
from kubeup.phases.static_pods_swap import SwapRun
from kubeup.yaml_files import fill_template, load_mapping

with lazily:
    from kubeup.cluster import try_mark
    from kubeup.machine import own_copy
    from kubeup.node import tried_pod
    from kubeup.swap import manifests, proof, store, try_record

UNIT = "kb-try.service"
AT_LEAST_S, AT_MOST_S = 10.0, 86400.0
CONFIRM, BACK = "kb reconfigure confirm", "kb reconfigure back"
STAYS: Mapping[str, Mapping[str, str]] = {
    "etcd": {
        "data-dir": "where the data are",
        "wal-dir": "where the data are",
        "name": "who is a member",
        "initial-cluster": "who is a member",
        "initial-cluster-state": "who is a member",
        "initial-cluster-token": "who is a member",
        "initial-advertise-peer-urls": "who is a member",
        "force-new-cluster": "who is a member",
    },
    "kube-apiserver": {
        "encryption-provider-config": "how objects are encrypted in etcd",
        "service-account-issuer": "which tokens of service accounts hold",
        "service-account-key-file": "which tokens of service accounts hold",
        "service-account-signing-key-file": "which tokens of service accounts hold",
        "service-account-signing-endpoint": "which tokens of service accounts hold",
        "api-audiences": "which tokens of service accounts hold",
        "storage-backend": "how objects are stored in etcd",
        "storage-media-type": "how objects are stored in etcd",
        "etcd-prefix": "where objects are stored in etcd",
        "etcd-servers": "where objects are stored in etcd",
        "etcd-servers-overrides": "where objects are stored in etcd",
        "emulated-version": "how objects are stored in etcd",
        "min-compatibility-version": "how objects are stored in etcd",
        "service-cluster-ip-range": "the addresses that Services have",
    },
    "kube-controller-manager": {
        "service-account-private-key-file": "which tokens of service accounts hold",
        "cluster-signing-cert-file": "who signs the certificates of kubelets",
        "cluster-signing-key-file": "who signs the certificates of kubelets",
        "cluster-cidr": "the addresses that nodes have for their pods",
        "service-cluster-ip-range": "the addresses that Services have",
    },
}
"""Flags whose effect stays when the former pod is back: component -> flag -> what it decides."""


# ---- what is refused


def check_tried(ctx: SwapRun) -> Outputs:
    """The checks of any swap, and before them whether going back would undo the change. Raises HostError: try-unsafe, no-systemd, and those of
    check_swap; ClusterError (try-pending) if another change is being tried here."""
    one = try_record.load_pending(ctx.host, ctx.paths)
    if one is not None and store.load_cut_off(ctx.host, ctx.paths) is None and not _is_same(ctx, one):
        raise pending(one)
    if ctx.try_s:
        if services.find(ctx.host) is not services.SYSTEMD:
            raise HostError(
                "a change cannot be tried on this machine",
                cause=f"{_name_manager(ctx.host)}, and it takes a unit of systemd's to go back, also after a reboot",
                remedy=f"change it without --try; to take it back by hand: {ctx.command} --undo",
                code="no-systemd",
            )
        refuse_lasting(static_pods_swap.plan_swap(ctx).pods)
    return static_pods_swap.check_swap(ctx)


def _is_same(ctx: SwapRun, one: try_record.Try) -> bool:
    """Whether this is the trial that waits already: it may have ended with an error because the cluster was not well, and is given again."""
    is_waiting = bool(ctx.try_s) and one.status == try_record.WAITING and ctx.tried_config == one.config
    return is_waiting and not static_pods_swap.plan_swap(ctx).pods


def _name_manager(host: Host) -> str:
    manager = services.find(host)
    return f"{manager.name} runs it" if manager is not None else "systemd does not run it"


def refuse_lasting(pods: Iterable[store.Pod]) -> None:
    """Raises HostError (try-unsafe) if the change of a pod is one that going back does not undo. Nothing was stopped."""
    found = [told for pod in pods if pod.is_changed for told in find_lasting(pod)]
    if found:
        raise HostError(
            "going back would not undo this change, so it cannot be tried",
            cause=f"{found[0]}; nothing was stopped",
            remedy="back up first (kb backup), then make the change without --try",
            code="try-unsafe",
            details=found[1:],
        )


def find_lasting(pod: store.Pod) -> list[str]:
    """What of a change stays when the former pod is back, one sentence each: a flag, the file that it names on the host, or a version that
    writes other data."""
    former, wanted = (tried_pod.read_pod(load_mapping(text, pod.name)) for text in (pod.former, pod.wanted))
    told = []
    for flag, decides in STAYS.get(pod.name, {}).items():
        if _value_of(former, flag) != _value_of(wanted, flag):
            told.append(f"--{flag} of {pod.name} decides {decides}, and what was written meanwhile stays so")
    images = [proof.image_of(load_mapping(text, pod.name)) for text in (pod.former, pod.wanted)]
    minors = [_minor_of(image) for image in images]
    if pod.name in ("etcd", "kube-apiserver") and minors[0] != minors[1]:
        told.append(
            f"{pod.name} goes from {images[0]} to {images[1]}, and the former one may not read what the new one writes"
        )
    return told


def _value_of(pod: tried_pod.TriedPod, flag: str) -> tuple[tuple[str, str], ...]:
    """Each value of a flag, and where its file lies on the host: a mount may change while the flag does not."""
    values = [value for name, value in pod.flags if name == flag]
    return tuple((value, str(pod.locate(value).host_path) if value.startswith("/") else "") for value in values)


def _minor_of(image: str) -> str:
    """`v1.35` of `registry.k8s.io/kube-apiserver:v1.35.6`; the whole tag, or the digest, if it has no minor."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return ".".join(tag.split(".")[:2])


# ---- the trial


def swap_tried(ctx: SwapRun) -> Outputs:
    """Swap the pods. With --try, write down first what this node goes back to, and have a unit wait for the end. A swap that fails has gone
    back already. Raises KbError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    one = try_record.load_pending(run.host, run.paths)
    cut_off = store.load_cut_off(run.host, run.paths)
    swap = cut_off or static_pods_swap.plan_swap(run)
    is_tried = bool(ctx.try_s) or one is not None  # one that was cut off goes on as one
    if ctx.is_undo or not is_tried or not swap.pods:
        done = static_pods_swap.swap_pods(ctx)
        if one is not None and ctx.is_undo:
            end(run, status=try_record.BACK)
        elif one is not None:
            _tell_end(ctx, one)
        return done
    if one is None or cut_off is None:
        one = _begin(ctx, run, swap=swap)
    try:
        done = static_pods_swap.swap_pods(ctx)
    except BaseException:
        if store.load_cut_off(run.host, run.paths) is None:  # the former pods are back
            end(run, status=try_record.BACK)
        raise
    one = try_record.set_end(run.host, dataclasses.replace(one, status=try_record.WAITING), in_s=one.lasts_s)
    try_record.save(run.host, run.paths, one=one)
    _mark(run, one)
    _tell_end(ctx, one)
    return done


def _tell_end(ctx: Run, one: try_record.Try) -> None:
    ctx.report.note(
        f"this node goes back by itself at {one.ends} unless you run: {CONFIRM}; to go back at once: {BACK}"
    )


def _begin(ctx: SwapRun, run: SwapRun, *, swap: store.Swap) -> try_record.Try:
    """Write down the trial, and start the unit that ends it. Raises HostError; nothing is left then."""
    pods = tuple(pod for pod in swap.pods if pod.is_changed)
    one = try_record.Try(pods, ctx.try_s, config=ctx.tried_config, config_from=ctx.tried_from)
    one = try_record.save(run.host, run.paths, one=try_record.set_end(run.host, one, in_s=ctx.try_s))
    try:
        start_unit(ctx, UNIT)
    except BaseException:
        end(run, status=try_record.BACK)
        raise
    _mark(run, one)
    return one


def start_unit(ctx: Run, unit: str) -> None:
    """A unit of kb's own that waits for something, and the copy of kb that it runs, written through the journal so that a reset removes
    them."""
    pyz = own_copy.find_running_pyz()
    path = ctx.paths.systemd / unit
    ctx.promises.expect([path, *Unit(unit).places])
    own_copy.ensure_installed_kb(ctx.host, ctx.paths, pyz=pyz)
    command = own_copy.plan_command(ctx.host, pyz, paths=ctx.paths)
    ctx.host.write_file(path, fill_template(f"systemd/{unit}", {"command": command}))
    services.start_own_unit(ctx.machine or ctx.host, unit)


def _mark(run: Run, one: try_record.Try) -> None:
    try:
        try_mark.put(proof.own_api(run), run.config.node.name, ends=one.ends)
    except KbError as error:
        run.report.note(f"other nodes are not kept from joining and upgrading meanwhile: {error}")


def _unmark(run: Run) -> None:
    try:
        try_mark.remove(proof.own_api(run), run.config.node.name)
    except KbError as error:
        run.report.note(
            f"other nodes may not join or upgrade until {try_mark.LAPSE.seconds // 60} minutes after the end: {error}"
        )


def end(run: Run, *, status: str, is_in_unit: bool = False) -> None:
    """Note that the trial is over, and remove the unit. Does so again where an earlier run was killed. is_in_unit: the unit runs this."""
    one = try_record.load(run.host, run.paths)
    if one is not None and one.is_pending:
        _unmark(run)
        try_record.save(run.host, run.paths, one=dataclasses.replace(one, status=status))
    remove_unit(run.host, run.paths, is_in_unit=is_in_unit)


def remove_unit(host: Host, paths: Paths, *, is_in_unit: bool = False, unit: str = UNIT) -> None:
    """Remove the unit. What it runs itself is not stopped: it ends by itself."""
    path = paths.systemd / unit
    if not host.exists(path):
        return
    if is_in_unit:
        host.run(["systemctl", "disable", unit], timeout_s=120)
    else:
        services.stop_own_unit(host, unit)
    host.remove(path)
    services.forget_removed_units(host)


def check_confirmed(one: try_record.Try) -> None:
    """Raises HostError (try-unfinished) if the change is not there, so that it cannot stay."""
    if one.status != try_record.WAITING:
        raise HostError(
            f"the change of {', '.join(one.names)} is not made yet",
            cause="its swap was cut off" if one.status == try_record.SWAPPING else "this node is going back",
            remedy=f"let it go back: {BACK}; then make the change again",
            code="try-unfinished",
        )


# ---- the way back


def check_back(ctx: SwapRun) -> Outputs:
    """Try the former pods as in any swap. Those whose manifests somebody changed meanwhile go back too: what he wrote is kept."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    pods = _pending(ctx).pods if store.load_cut_off(ctx.host, ctx.paths) is None else ()
    for path, kept in manifests.keep_edits(run, pods, folder=try_record.folder(ctx.paths)):
        ctx.report.warn(f"{path} was changed during the trial; it goes back too, and what was in it is in {kept}")
    return static_pods_swap.check_swap(ctx)


def take_back(ctx: SwapRun) -> Outputs:
    """Swap the former pods in, from wherever an earlier run was killed, on the way there or on the way back; then the trial is over.
    Raises KbError."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    one = _pending(run)
    try_record.save(run.host, run.paths, one=dataclasses.replace(one, status=try_record.GOING_BACK))
    done = static_pods_swap.swap_pods(ctx)
    last = store.load(run.host, run.paths)
    if last is not None and one.leads_back(last):  # it must not be undone: that would bring back what was tried
        store.save(run.host, run.paths, swap=dataclasses.replace(last, status=store.TAKEN_BACK))
    end(run, status=try_record.BACK, is_in_unit=ctx.is_in_unit)
    return done


def note_failure(host: Host, paths: Paths, *, error: KbError) -> Optional[try_record.Try]:
    """Write down that the way back failed, and when it is tried again. None if it had come to its end before that."""
    one = try_record.load_pending(host, paths)
    if one is None:
        return None
    failed = try_record.note_failure(host, one, why=f"{error.what}: {error.cause}")
    return try_record.save(host, paths, one=failed)


def _pending(run: Run) -> try_record.Try:
    one = try_record.load_pending(run.host, run.paths)
    if one is None:
        raise no_try(try_record.load(run.host, run.paths))
    return one


def no_try(last: Optional[try_record.Try]) -> HostError:
    """last: the last one on this node, if there was any."""
    told = {
        try_record.BACK: "this node has gone back from the last one already",
        try_record.CONFIRMED: "the last one was confirmed",
    }
    return HostError(
        "no change is being tried on this node",
        cause=told.get(last.status if last is not None else "", "none was made with --try, or not here"),
        remedy="see which manifests it runs: ls /etc/kubernetes/manifests; to take the last swap back: "
        "kb reconfigure static-pods --undo",
        code="nothing-tried",
    )


def pending(one: try_record.Try) -> ClusterError:
    """What other commands say of a change that is being tried."""
    return ClusterError(
        f"a change of {', '.join(one.names)} is being tried on this node",
        cause=f"unless it is confirmed, this node goes back by itself at {one.ends}, and what is done meanwhile would be lost or not fit",
        remedy=f"keep the change: {CONFIRM}; or go back at once: {BACK}",
        code="try-pending",
    )


TRIALS = Act(do=check_tried, live="node", always=True)
SWAP = Act(do=swap_tried, foretell=static_pods_swap.foretell_swap, live="node", always=True)
BACK_TRIALS = Act(do=check_back, live="node", always=True)
BACK_SWAP = Act(do=take_back, foretell=static_pods_swap.foretell_swap, live="node", always=True)
