"""The phases kubeconfig/*: for the admins, the kubelet, the controller-manager and the scheduler.

The rules are in kubeup/node/kubeconfig.py. Mirrors cmd/kubeadm/app/cmd/phases/init/kubeconfig.go.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from kubeup.engine.items import Issued
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import Outputs, Run
from kubeup.lazy_modules import lazily
from kubeup.phases.certs import reason_of, take_key

with lazily:
    from kubeup.cluster import amid_rotation
    from kubeup.node import kubeconfig


def _plan(run: Run, name: str) -> Plan:
    return Plan(issued_kubeconfig(run, name))


def issued_kubeconfig(run: Run, name: str) -> Issued:
    """The kubeconfig `name` of KUBECONFIGS."""
    user = kubeconfig.KUBECONFIGS[name].user.format(node=run.config.node.name)

    probe = partial(kubeconfig.probe_kubeconfig, run.host, run.paths, name)

    def issue(ground: Ground) -> None:
        ensure(dataclasses.replace(run, host=ground.host), name)

    path = run.paths.kubeconfig(kubeconfig.KUBECONFIGS[name].file)
    return Issued(path.name, (path,), {"user": user}, judge=lambda _: reason_of(probe), issue=issue)


plan_admin = partial(_plan, name="admin")
plan_super_admin = partial(_plan, name="super-admin")
plan_kubelet = partial(_plan, name="kubelet")
plan_controller_manager = partial(_plan, name="controller-manager")
plan_scheduler = partial(_plan, name="scheduler")


def ensure(ctx: Run, name: str) -> Outputs:
    """Write the kubeconfig `name` of KUBECONFIGS, or keep the existing one if it is valid."""
    finding = kubeconfig.ensure_kubeconfig(
        ctx.host,
        ctx.paths,
        config=ctx.config,
        release=ctx.release,
        name=name,
        make_key=partial(take_key, ctx),
        ca_pem=amid_rotation.read_authorities(ctx.host, ctx.paths),
    )
    if finding.action == "renew":
        ctx.report.note(finding.reason)
    else:
        ctx.report.detail(finding.reason)
    wanted = kubeconfig.server_url(name, ctx.config, release=ctx.release)
    if finding.action != "issue" and finding.server != wanted:
        ctx.report.warn(f"{name}.conf calls {finding.server}, the configuration says {wanted}; it was left as it is")
    return None
