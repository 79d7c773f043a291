"""The phase preflight: is this node fit, and are the images here? Mirrors cmd/kubeadm/app/cmd/phases/init/preflight.go."""

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
    """Run the batches; each tells all its errors at once. Then pull the images that are missing.

    Raises PreflightError (preflight).
    """
    _check_files(ctx)
    certs.start_making_keys(ctx)  # the second processor makes them while the first looks and pulls
    if ctx.config.kb.runtime.fix:
        fix(ctx)
    if ctx.found.programs_are_planned:
        ctx.report.note("the runtime and the kubelet are not here yet: this machine is checked when they are")
        return None
    look_at_node(ctx, facts.INIT, batches=(facts.ROOT, facts.NODE, facts.IMAGES), owned=map(str, find_own_files(ctx)))
    return None


def find_own_files(ctx: Run) -> list[Path]:
    """The static pods and the kubelet's configuration as far as they are, to the letter, what this run would write:
    with them a node whose state.json was lost is gone on with, not refused. None where nothing else tells that kb was at
    work here: kubeadm's files are the same to the letter, and its node is not kb's to go on with unasked."""
    if ctx.config.kb.only_kubeadm or not _bears_kb_s_mark(ctx):
        return []
    own = [ctx.paths.manifest(name) for name, plan in control_plane.PLANS.items() if is_there(plan(ctx), ctx)]
    if own and is_there(node.plan_kubelet(ctx), ctx):
        own += node.render_kubelet_files(ctx, node.shared_kubelet_config(ctx))
    return own


def _bears_kb_s_mark(ctx: Run) -> bool:
    """What kubeadm never makes: kb's own sysctls, or more in kb's folder than a run makes that its checks refuse."""
    refused = {ctx.paths.lock.name, ctx.paths.state.name}
    return kernel.has_own_sysctls(ctx) or bool(set(ctx.host.list_dir(ctx.paths.state_dir)) - refused)


def look_at_node(ctx: Run, workflow: str, *, batches: Iterable[str], owned: Iterable[str] = ()) -> None:
    """The batches of checks in their order; each tells all its errors at once. owned: further paths that are kb's.

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
    """--fix, and a containerd that kb has just had installed: what the checks would find wrong with it is mended before
    they look; cni_bin_dir: where the CNI plugins were installed, if that is known."""
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
    """All but what containerd has to try."""
    return run_checks(ctx, fix=foretell_fix)


def _check_files(ctx: Run) -> None:
    """Certificates and kubeconfigs that are here already must fit together: told before anything is written."""
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
    """The probe: whether the runtime still has every image (one look; kb's images may have been garbage-collected)."""
    node = ctx.config.node
    if node.image_pull_policy == "Never":
        return True
    wanted = {image_pulls.full_image_name(name) for name in images.list_node_images(ctx.config, ctx.release)}
    try:
        return wanted <= image_pulls.list_images(ctx.host, node.cri_socket)
    except HostError:
        return False


CHECKS = Act(do=run_checks, probe=images_are_here, spec=lambda run: run.config, foretell=foretell_checks, live="node")
"""Whatever the configuration says otherwise is a reason to look again."""
