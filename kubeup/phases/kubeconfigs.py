"""The phases kubeconfig/*: the identities of the admins, the kubelet and two components.

The rules are in kubeup/node/kubeconfig.py. Mirrors cmd/kubeadm/app/cmd/phases/init/kubeconfig.go.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from kubeup.engine.run import Outputs, Run
from kubeup.lazy_modules import lazy_import
from kubeup.phases.certs import take_key

if TYPE_CHECKING:
    from kubeup.node import kubeconfig
else:
    kubeconfig = lazy_import("kubeup.node.kubeconfig")


def write_admin_conf(ctx: Run) -> Outputs:
    return ensure(ctx, "admin")


def admin_conf_is_valid(ctx: Run) -> bool:
    return kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, "admin")


def write_super_admin_conf(ctx: Run) -> Outputs:
    return ensure(ctx, "super-admin")


def super_admin_conf_is_valid(ctx: Run) -> bool:
    return kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, "super-admin")


def write_kubelet_conf(ctx: Run) -> Outputs:
    return ensure(ctx, "kubelet")


def kubelet_conf_is_valid(ctx: Run) -> bool:
    return kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, "kubelet")


def write_controller_manager_conf(ctx: Run) -> Outputs:
    return ensure(ctx, "controller-manager")


def controller_manager_conf_is_valid(ctx: Run) -> bool:
    return kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, "controller-manager")


def write_scheduler_conf(ctx: Run) -> Outputs:
    return ensure(ctx, "scheduler")


def scheduler_conf_is_valid(ctx: Run) -> bool:
    return kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, "scheduler")


def ensure(ctx: Run, name: str) -> Outputs:
    """Write the kubeconfig `name` of KUBECONFIGS, or keep the one that is here and good."""
    finding = kubeconfig.ensure_kubeconfig(
        ctx.host, ctx.paths, config=ctx.config, release=ctx.release, name=name, make_key=partial(take_key, ctx)
    )
    if finding.action == "renew":
        ctx.report.note(finding.reason)
    else:
        ctx.report.detail(finding.reason)
    wanted = kubeconfig.server_url(name, ctx.config, ctx.release)
    if finding.action != "issue" and finding.server != wanted:
        ctx.report.warn(f"{name}.conf calls {finding.server}, the configuration says {wanted}; it was left as it is")
    return None
