"""The phase preflight: is this node fit, and are the images here? Mirrors cmd/kubeadm/app/cmd/phases/init/preflight.go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.errors import HostError
from kubeup.lazy import lazy_import
from kubeup.phases import certs
from kubeup.workflow import Context, Outputs

if TYPE_CHECKING:
    from kubeup import certshare, checks, images, kubeconfig, pki, runtime
else:
    certshare = lazy_import("kubeup.certshare")
    kubeconfig = lazy_import("kubeup.kubeconfig")
    pki = lazy_import("kubeup.pki")
    checks = lazy_import("kubeup.checks")
    images = lazy_import("kubeup.images")
    runtime = lazy_import("kubeup.runtime")


def run_checks(ctx: Context) -> Outputs:
    """Run the batches; each tells all its errors at once. Then pull the images that are missing.

    Raises PreflightError (preflight).
    """
    _check_files(ctx)
    certs.start_making_keys(ctx)  # the second processor makes them while the first looks and pulls
    ignored = checks.parse_ignored(ctx.config.node.ignore_preflight_errors)
    node = checks.Node(
        ctx.host,
        ctx.config,
        ctx.release,
        ctx.paths,
        owned=frozenset(ctx.outputs.get("owned_paths", ())),
        mends=ctx.outputs.get("will_run", frozenset()),
        tell=ctx.report.waiting,
    )
    for batch in (checks.ROOT, checks.NODE, checks.IMAGES):
        errors, warnings = checks.judge_findings(checks.run_batch(node, batch), ignored)
        for warning in warnings:
            ctx.report.warn(str(warning))
        if errors:
            raise checks.make_error(node, errors)
    return None


def _check_files(ctx: Context) -> None:
    """Certificates and kubeconfigs that are here already must fit together: told before anything is written."""
    found = [
        *pki.find_problems(ctx.host, ctx.paths, ctx.config),
        *kubeconfig.find_problems(ctx.host, ctx.paths),
    ]
    if found:
        first = found[0]
        raise HostError(
            first.what,
            cause=first.cause,
            remedy=first.remedy,
            code=first.code,
            details=[f"also: {problem}. Remedy: {problem.remedy}" for problem in found[1:]],
        )
    if ctx.config.upload_certs:
        certshare.check_shareable(ctx.host, ctx.paths)


def images_are_here(ctx: Context) -> bool:
    """The probe: whether the runtime still has every image (one look; kb's images may have been garbage-collected)."""
    node = ctx.config.node
    if node.image_pull_policy == "Never":
        return True
    wanted = {runtime.full_image_name(image.ref) for image in images.list_images(ctx.config.cluster, ctx.release)}
    try:
        return wanted <= runtime.list_images(ctx.host, node.cri_socket)
    except HostError:
        return False
