"""The phases of reset under the name kubeadm: preflight, remove-etcd-member, cleanup-node.

Unlike kb's own reset, which undoes what its journal holds, this empties kubeadm's folders, whoever filled them, as
kubeadm does. Failures are reported, and the rest is still done. Mirrors cmd/kubeadm/app/cmd/phases/reset/*.go and
RemoveStackedEtcdMemberFromCluster of cmd/kubeadm/app/phases/etcd/local.go.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from kubeup.config.types import ResetConfiguration
from kubeup.engine.run import Outputs, ResetRun
from kubeup.errors import HostError, KbError, PreflightError, UsageError
from kubeup.frozen_values import frozen_by_name
from kubeup.kubeadm.lines import KubeadmReport
from kubeup.lazy_modules import lazily
from kubeup.machine import services

with lazily:
    from kubeup.diagnosis.checks import machine as machine_checks
    from kubeup.diagnosis.checks import table
    from kubeup.node import containers
    from kubeup.phases import reset

KUBECONFIGS = (
    "admin.conf", "super-admin.conf", "kubelet.conf", "bootstrap-kubelet.conf", "controller-manager.conf",
    "scheduler.conf",
)  # fmt: skip
_UNMOUNT_FLAGS = {"MNT_FORCE": "-f", "MNT_DETACH": "-l"}
"""umount(8) has no option for the others: MNT_EXPIRE, and UMOUNT_NOFOLLOW (umount follows no links anyway)."""


@frozen_by_name
class KubeadmReset(ResetRun):
    wishes: ResetConfiguration


def _say(ctx: KubeadmReset, text: str) -> None:
    assert isinstance(ctx.report, KubeadmReport)
    ctx.report.say(text)


# ---- preflight


def ask(ctx: KubeadmReset) -> Outputs:
    """Ask for confirmation unless --force; then require root. Raises UsageError (not-confirmed), PreflightError
    (preflight)."""
    if not ctx.wishes.force and ctx.host.mode != "dry-run":
        ctx.report.warn("[reset] what 'kubeadm init' or 'kubeadm join' did to this host will be taken back")
        with contextlib.suppress(OSError):
            sys.stdout.write("[reset] Are you sure you want to proceed? [y/N]: ")
            sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError(
                "won't proceed", cause="the question was not answered with y", remedy="kubeadm reset --force", code="not-confirmed"
            )  # fmt: skip
    _say(ctx, "[preflight] Running pre-flight checks")
    ignored = table.parse_ignored(ctx.wishes.ignore_preflight_errors)
    errors, warnings = table.judge_findings(machine_checks.find_ordinary_user(ctx.host), ignored)
    for warning in warnings:
        ctx.report.warn(str(warning))
    if errors:
        raise PreflightError(
            "this node cannot be reset",
            cause="kubeadm reset is not run as root",
            remedy="sudo kubeadm reset",
            code="preflight-reset",
            details=[str(error) for error in errors],
        )
    return None


# ---- remove-etcd-member


def remove_etcd_member(ctx: KubeadmReset) -> Outputs:
    """Remove this node's member from the cluster, so that the others do not count on it; then empty its data folder."""
    pod = reset.read_etcd_pod(ctx)
    if pod is None and not ctx.host.is_dir(ctx.paths.etcd_data):
        _say(ctx, "[reset] No etcd config found. Assuming external etcd")
        _say(ctx, "[reset] Please, manually reset etcd to prevent further issues")
        return None
    data_dir = reset.find_etcd_data(ctx, pod)
    if ctx.host.mode == "dry-run":
        if pod is None:
            return None
        _say(ctx, "[dryrun] Would remove the etcd member on this node from the etcd cluster")
        _say(ctx, f"[dryrun] Would delete contents of the etcd data directory: {data_dir}")
        return None
    if pod is not None:
        try:
            reset.leave_etcd(ctx, ctx.paths.manifest("etcd"))
        except KbError as error:
            ctx.report.warn(
                f"[reset] Failed to remove etcd member: {error}, please manually remove this etcd member using etcdctl"
            )
    if _empty(ctx, data_dir):
        _say(ctx, f"[reset] Deleted contents of the etcd data directory: {data_dir}")
    return None


# ---- cleanup-node


def clean_up(ctx: KubeadmReset) -> Outputs:
    """Stop the kubelet, unmount, remove the pods, empty the folders. Raises HostError (mount-in-the-way) before any
    folder is emptied."""
    is_dry = ctx.host.mode == "dry-run"
    _stop_kubelet(ctx, is_dry=is_dry)
    folders = [ctx.paths.manifests]
    kubelet_dir = ctx.host.real_path(ctx.paths.kubelet)
    if is_dry:
        _say(ctx, f'[dryrun] Would unmount mounted directories in "{ctx.paths.kubelet}"')
        _say(ctx, "[dryrun] Would remove Kubernetes-managed containers")
    else:
        if ctx.host.is_dir(kubelet_dir):
            _say(ctx, f'[reset] Unmounting mounted directories in "{ctx.paths.kubelet}"')
            _unmount(ctx, kubelet_dir)
        for failure in containers.remove_pods(ctx.host, ctx.cri_socket):
            ctx.report.warn(f"[reset] Failed to remove containers: {failure}")
    if ctx.host.is_dir(kubelet_dir) and not is_dry:
        folders.append(kubelet_dir)
    if str(ctx.paths.pki) != ResetConfiguration.certificates_dir:
        ctx.report.warn(f'[reset] Cleaning a non-default certificates directory: "{ctx.paths.pki}"')
    folders.append(ctx.paths.pki)
    if ctx.wishes.cleanup_tmp_dir:
        folders.append(ctx.paths.kubernetes / "tmp")
    _empty_folders(ctx, folders, is_dry=is_dry)
    return None


def _stop_kubelet(ctx: KubeadmReset, *, is_dry: bool) -> None:
    manager = services.find(ctx.host)
    if manager is None:
        ctx.report.warn("[reset] no supported init system: please ensure kubelet is stopped manually")
    elif is_dry:
        _say(ctx, "[dryrun] Would stop the kubelet service")
    else:
        _say(ctx, "[reset] Stopping the kubelet service")
        done = services.run(ctx.host, "stop", unit="kubelet")
        if not done.ok:
            ctx.report.warn(f"[reset] the kubelet could not be stopped: {done.stderr.strip()}")


def _unmount(ctx: KubeadmReset, folder: Path) -> None:
    flags = [_UNMOUNT_FLAGS[name] for name in ctx.wishes.unmount_flags if name in _UNMOUNT_FLAGS]
    for mount in ctx.host.mounts_below(folder):
        done = ctx.host.run(["umount", *flags, str(mount)])
        if not done.ok and str(mount) in map(str, ctx.host.mounts_below(folder)):
            raise HostError(
                f"{mount} is still mounted",
                cause=done.stderr.strip() or f"umount ended with code {done.code}",
                remedy=f"see who uses it (fuser -vm {mount}), then: kubeadm reset; or let it go: unmountFlags [MNT_DETACH]",
                code="mount-in-the-way",
            )


def _empty_folders(ctx: KubeadmReset, folders: list[Path], *, is_dry: bool) -> None:
    files = [ctx.paths.kubernetes / name for name in KUBECONFIGS]
    verb = "[dryrun] Would delete" if is_dry else "[reset] Deleting"
    _say(ctx, f"{verb} contents of directories: [{' '.join(map(str, folders))}]")
    for folder in [] if is_dry else folders:
        _empty(ctx, folder)
    _say(ctx, f"{verb} files: [{' '.join(map(str, files))}]")
    for path in [] if is_dry else files:
        ctx.host.remove(path)


def _empty(ctx: KubeadmReset, folder: Path) -> bool:
    """Remove a folder's content but not the folder; return whether there was any. What cannot be removed is
    reported."""
    if not ctx.host.is_dir(folder):
        return False
    names = ctx.host.list_dir(folder)
    for name in names:
        try:
            if not ctx.host.remove_tree(folder / name):
                ctx.host.remove(folder / name)
        except HostError as error:
            ctx.report.warn(f'[reset] Failed to delete contents of "{folder}" directory: {error}')
    return bool(names)
