"""The phase preflight: checks this node and pulls the images. Mirrors cmd/kubeadm/app/cmd/phases/init/preflight.go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Optional

from kubeup.engine.compare import is_there
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.phases import certs, control_plane, kernel
from kubeup.phases import kubelet_start as node
from kubeup.trouble import advise

with lazily:
    from kubeup.cluster import shared_certs
    from kubeup.diagnosis.checks import facts, table
    from kubeup.diagnosis.checks import runtime as runtime_checks
    from kubeup.node import image_pulls, images, kubeconfig, pki, runtime_fix


def run_checks(ctx: Run, *, fix: Callable[[Run], None] = lambda run: fix_runtime(run)) -> Outputs:
    """Run the batches of checks; each reports all its errors at once. The last one pulls missing images.

    Raises PreflightError (preflight).
    """
    _check_files(ctx)
    certs.start_making_keys(ctx)  # a second CPU generates them during the checks and pulls
    if ctx.config.kb.runtime.fix:
        fix(ctx)
    if ctx.found.programs_are_planned:
        ctx.report.note("the runtime and the kubelet are not here yet: this machine is checked when they are")
        return None
    look_at_node(ctx, facts.INIT, batches=(facts.ROOT, facts.NODE, facts.IMAGES), owned=map(str, find_own_files(ctx)))
    return None


def find_own_files(ctx: Run) -> list[Path]:
    """The static pods and kubelet files that are identical to what this run would write.

    They count as kb's, so that a node whose state.json was lost is continued, not rejected. [] unless something else shows
    that kb worked here: kubeadm writes identical files, and kb must not take over kubeadm's node unasked."""
    if ctx.config.kb.only_kubeadm or not _bears_kb_s_mark(ctx):
        return []
    own = [ctx.paths.manifest(name) for name, plan in control_plane.PLANS.items() if is_there(plan(ctx), ctx)]
    if own and is_there(node.plan_kubelet(ctx), ctx):
        own += node.render_kubelet_files(ctx, node.shared_kubelet_config(ctx))
    return own


def _bears_kb_s_mark(ctx: Run) -> bool:
    """Whether there is something that kubeadm never creates: kb's sysctl file, or files in kb's folder besides the lock and the
    state, which even a run that fails its checks leaves."""
    refused = {ctx.paths.lock.name, ctx.paths.state.name}
    return kernel.has_own_sysctls(ctx) or bool(set(ctx.host.list_dir(ctx.paths.state_dir)) - refused)


def look_at_node(ctx: Run, workflow: str, *, batches: Iterable[str], owned: Iterable[str] = ()) -> None:
    """Run the batches of checks in order; each reports all its errors at once. owned: more paths that are kb's.

    Raises PreflightError (preflight).
    """
    ignored = table.parse_ignored(ctx.config.node.ignore_preflight_errors)
    looked_at = facts.Node(
        ctx.host,
        ctx.config,
        ctx.release,
        ctx.paths,
        owned=ctx.owned_paths.union(owned),
        workflow=workflow,
        mends=ctx.selection.planned,
        skipped=ctx.selection.skipped,
        tell=ctx.report.waiting,
    )
    for batch in batches:
        errors, warnings = table.judge_findings(table.run_batch(looked_at, batch), ignored)
        for warning in warnings:
            ctx.report.warn(str(warning))
        if errors:
            raise table.make_error(looked_at, errors)


def fix_runtime(ctx: Run, *, cni_bin_dir: Optional[str] = None) -> None:
    """Fix what the checks would find wrong with containerd, before they run: with --fix, or after kb installed containerd.

    cni_bin_dir: where the CNI plugins were installed, if known.
    """
    driver = ctx.config.kubelet.get("cgroupDriver") or "systemd"
    wanted = runtime_fix.Wanted(
        sandbox_image=images.image_of("pause", ctx.config.cluster, release=ctx.release).ref,
        systemd_cgroup=driver == "systemd",
        restrict_oom_score_adj=not runtime_checks.may_lower_oom_score(ctx.host),
        registry_config_path=str(runtime_fix.CERTS_D) if ctx.host.is_dir(runtime_fix.CERTS_D) else None,
        cni_bin_dir=cni_bin_dir,
    )
    for fault in runtime_fix.fix_runtime(ctx.host, ctx.config.node.cri_socket, wanted=wanted):
        ctx.report.note(f"fixed containerd's configuration and restarted it: {fault}")


def foretell_fix(ctx: Run, *, cni_bin_dir: Optional[str] = None) -> None:
    ctx.report.note("--fix: only containerd itself can try its new configuration, so this is not part of the plan")


def foretell_checks(ctx: Run) -> Outputs:
    """For a dry run: all checks, but not the fix, because only containerd itself can try that."""
    return run_checks(ctx, fix=foretell_fix)


def _check_files(ctx: Run) -> None:
    """Check that existing certificates and kubeconfigs fit together, before anything is written. Raises HostError."""
    found = [
        *pki.find_problems(ctx.host, ctx.paths, config=ctx.config),
        *kubeconfig.find_problems(ctx.host, ctx.paths),
    ]
    if found:
        first = found[0]
        raise HostError(
            first.what,
            cause=first.cause,
            remedy=first.remedy,
            code=first.code,
            details=[f"also: {advise(problem)}" for problem in found[1:]],
        )
    if ctx.config.upload_certs:
        shared_certs.check_shareable(ctx.host, ctx.paths)


def images_are_here(ctx: Run) -> bool:
    """The probe: whether the runtime still has every image. The kubelet may have garbage-collected some."""
    node = ctx.config.node
    if node.image_pull_policy == "Never":
        return True
    wanted = {image_pulls.full_image_name(name) for name in images.list_node_images(ctx.config, ctx.release)}
    try:
        return wanted <= image_pulls.list_images(ctx.host, node.cri_socket)
    except HostError:
        return False


CHECKS = Act(do=run_checks, probe=images_are_here, spec=lambda run: run.config, foretell=foretell_checks, live="node")
"""Any change of the configuration is a reason to check again."""
