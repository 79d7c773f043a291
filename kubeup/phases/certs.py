"""The phases certs/*: the CAs, the certificates they sign, and the service account key.

Existing files are kept if they are still usable.
The rules are in kubeup/node/pki.py. Mirrors cmd/kubeadm/app/cmd/phases/init/certs.go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Optional, Union

from kubeup.engine.items import Issued
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import Outputs, Run
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.node import cert_specs, kubeconfig, pki, private_keys


# ---- plans


def _plan_ca(run: Run, name: str) -> Plan:
    spec = cert_specs.CERTS[name]
    files = (spec.cert_path(run.paths), spec.key_path(run.paths))
    return Plan(
        Issued(
            f"authority {name}",
            files,
            {"for": spec.common_name},
            judge=lambda _: reason_of(partial(pki.probe_ca, run.host, run.paths, name)),
            issue=lambda ground: _ensure_ca(dataclasses.replace(run, host=ground.host), name),
        )
    )


def _plan_cert(run: Run, name: str) -> Plan:
    return Plan(issued_cert(run, name))


def issued_cert(run: Run, name: str) -> Issued:
    """The leaf certificate `name` of cert_specs.CERTS, with this node's names."""
    spec = cert_specs.CERTS[name]
    return Issued(
        f"certificate {name}",
        (spec.cert_path(run.paths), spec.key_path(run.paths)),
        {"for": spec.common_name or run.config.node.name, "names": str(spec.sans(run.config))},
        judge=lambda _: reason_of(partial(pki.probe_cert, run.host, run.paths, config=run.config, name=name)),
        issue=lambda ground: ensure_cert(dataclasses.replace(run, host=ground.host), name),
    )


def reason_of(probe: Callable[[], Union[pki.Finding, kubeconfig.Finding]]) -> str:
    """Why an existing certificate, key or kubeconfig is not usable; "" if it is."""
    try:
        finding = probe()
    except HostError as error:
        return str(error)
    return "" if finding.action == "keep" else finding.reason


def _unless_external(plan: Callable[[Run], Plan]) -> Callable[[Run], Plan]:
    """Plan nothing if etcd is external."""

    def plan_of_etcd(run: Run) -> Plan:
        is_external = run.config.cluster.external_etcd is not None
        return Plan(details=["etcd is external: you provide its certificates"]) if is_external else plan(run)

    return plan_of_etcd


plan_ca = partial(_plan_ca, name="ca")
plan_apiserver = partial(_plan_cert, name="apiserver")
plan_apiserver_kubelet_client = partial(_plan_cert, name="apiserver-kubelet-client")
plan_front_proxy_ca = partial(_plan_ca, name="front-proxy-ca")
plan_front_proxy_client = partial(_plan_cert, name="front-proxy-client")
plan_etcd_ca = _unless_external(partial(_plan_ca, name="etcd-ca"))
plan_etcd_server = _unless_external(partial(_plan_cert, name="etcd-server"))
plan_etcd_peer = _unless_external(partial(_plan_cert, name="etcd-peer"))
plan_etcd_healthcheck_client = _unless_external(partial(_plan_cert, name="etcd-healthcheck-client"))
plan_apiserver_etcd_client = _unless_external(partial(_plan_cert, name="apiserver-etcd-client"))


def plan_service_account_key(run: Run) -> Plan:
    """The key that signs service account tokens."""

    def issue(ground: Ground) -> None:
        _report(run, pki.ensure_service_account_key(ground.host, run.paths, make_key=partial(take_key, run)))

    files = (run.paths.pki / "sa.key", run.paths.pki / "sa.pub")
    judge = partial(pki.probe_service_account_key, run.host, run.paths)
    return Plan(Issued("service account key", files, {}, judge=lambda _: reason_of(judge), issue=issue))


# ---- shared


def start_making_keys(ctx: Run, wanted: Optional[int] = None) -> None:
    """Start to generate the keys that this run needs: `wanted` of them, by default as many as are missing for the phases
    that run. A phase that waits, such as preflight while it pulls images, may call this early; otherwise the first phase that
    needs a key does."""
    if ctx.found.keys is not None:
        return
    if wanted is None:
        missing = [f"certs/{name}" for name in pki.find_missing_keys(ctx.host, ctx.paths, cluster=ctx.config.cluster)]
        missing += [f"kubeconfig/{name}" for name in kubeconfig.find_missing(ctx.host, ctx.paths)]
        wanted = len(ctx.selection.will_run.intersection(missing))
    ctx.start_keys(wanted)


def take_key(ctx: Run) -> private_keys.Key:
    """A new private key of the configured algorithm."""
    start_making_keys(ctx)
    assert ctx.found.keys is not None
    return ctx.found.keys.take()


def _ensure_ca(ctx: Run, name: str) -> Outputs:
    finding = pki.ensure_ca(ctx.host, ctx.paths, config=ctx.config, name=name, make_key=partial(take_key, ctx))
    _report(ctx, finding)
    if finding.action == "keep":
        warn_of_ca(ctx, name)
    return None


def warn_of_ca(ctx: Run, name: str) -> None:
    """Warn about what may be surprising in an existing CA. Raises what pki.read_ca raises."""
    for warning in pki.find_ca_warnings(ctx.host, ctx.paths, cluster=ctx.config.cluster, name=name):
        ctx.report.warn_once(warning)


def ensure_cert(ctx: Run, name: str) -> Outputs:
    """Issue the leaf certificate `name` of cert_specs.CERTS, or keep an existing one that is valid."""
    _report(ctx, pki.ensure_cert(ctx.host, ctx.paths, config=ctx.config, name=name, make_key=partial(take_key, ctx)))
    return None


def _report(ctx: Run, finding: pki.Finding) -> None:
    """Report a reissued certificate always, anything else only with -v."""
    if finding.action == "reissue":
        ctx.report.note(finding.reason)
    else:
        ctx.report.detail(finding.reason)
