"""The phases certs/*: the CAs, the certificates they sign, and the service account key.

Each `issue_*` keeps what is on the node where it serves; each `*_is_valid` looks whether there is nothing to do.
The rules are in kubeup/node/pki.py. Mirrors cmd/kubeadm/app/cmd/phases/init/certs.go.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Optional

from kubeup.engine.run import Outputs, Run
from kubeup.lazy_modules import lazy_import

if TYPE_CHECKING:
    from kubeup.node import kubeconfig, pki, private_keys
else:
    kubeconfig = lazy_import("kubeup.node.kubeconfig")
    private_keys = lazy_import("kubeup.node.private_keys")
    pki = lazy_import("kubeup.node.pki")


# ---- the cluster CA and what it signs


def issue_ca(ctx: Run) -> Outputs:
    return _ensure_ca(ctx, "ca")


def ca_is_valid(ctx: Run) -> bool:
    return pki.is_ca_valid(ctx.host, ctx.paths, "ca")


def issue_apiserver_cert(ctx: Run) -> Outputs:
    return ensure_cert(ctx, "apiserver")


def apiserver_cert_is_valid(ctx: Run) -> bool:
    return _cert_is_valid(ctx, "apiserver")


def issue_apiserver_kubelet_client_cert(ctx: Run) -> Outputs:
    return ensure_cert(ctx, "apiserver-kubelet-client")


def apiserver_kubelet_client_cert_is_valid(ctx: Run) -> bool:
    return _cert_is_valid(ctx, "apiserver-kubelet-client")


# ---- the front proxy CA and what it signs


def issue_front_proxy_ca(ctx: Run) -> Outputs:
    return _ensure_ca(ctx, "front-proxy-ca")


def front_proxy_ca_is_valid(ctx: Run) -> bool:
    return pki.is_ca_valid(ctx.host, ctx.paths, "front-proxy-ca")


def issue_front_proxy_client_cert(ctx: Run) -> Outputs:
    return ensure_cert(ctx, "front-proxy-client")


def front_proxy_client_cert_is_valid(ctx: Run) -> bool:
    return _cert_is_valid(ctx, "front-proxy-client")


# ---- etcd's CA and what it signs: nothing to do where etcd is external


def issue_etcd_ca(ctx: Run) -> Outputs:
    return None if _has_external_etcd(ctx) else _ensure_ca(ctx, "etcd-ca")


def etcd_ca_is_valid(ctx: Run) -> bool:
    return ctx.config.cluster.external_etcd is not None or pki.is_ca_valid(ctx.host, ctx.paths, "etcd-ca")


def issue_etcd_server_cert(ctx: Run) -> Outputs:
    return None if _has_external_etcd(ctx) else ensure_cert(ctx, "etcd-server")


def etcd_server_cert_is_valid(ctx: Run) -> bool:
    return ctx.config.cluster.external_etcd is not None or _cert_is_valid(ctx, "etcd-server")


def issue_etcd_peer_cert(ctx: Run) -> Outputs:
    return None if _has_external_etcd(ctx) else ensure_cert(ctx, "etcd-peer")


def etcd_peer_cert_is_valid(ctx: Run) -> bool:
    return ctx.config.cluster.external_etcd is not None or _cert_is_valid(ctx, "etcd-peer")


def issue_etcd_healthcheck_client_cert(ctx: Run) -> Outputs:
    return None if _has_external_etcd(ctx) else ensure_cert(ctx, "etcd-healthcheck-client")


def etcd_healthcheck_client_cert_is_valid(ctx: Run) -> bool:
    return ctx.config.cluster.external_etcd is not None or _cert_is_valid(ctx, "etcd-healthcheck-client")


def issue_apiserver_etcd_client_cert(ctx: Run) -> Outputs:
    return None if _has_external_etcd(ctx) else ensure_cert(ctx, "apiserver-etcd-client")


def apiserver_etcd_client_cert_is_valid(ctx: Run) -> bool:
    return ctx.config.cluster.external_etcd is not None or _cert_is_valid(ctx, "apiserver-etcd-client")


# ---- the key that signs service account tokens


def make_service_account_key(ctx: Run) -> Outputs:
    finding = pki.ensure_service_account_key(ctx.host, ctx.paths, make_key=partial(take_key, ctx))
    _report(ctx, finding)
    return None


def service_account_key_is_valid(ctx: Run) -> bool:
    return pki.is_service_account_key_valid(ctx.host, ctx.paths)


# ---- shared


def start_making_keys(ctx: Run, wanted: Optional[int] = None) -> None:
    """Begin to make the keys that this run will ask for: `wanted`, or as many as this node lacks for the phases that
    run. A phase that waits (preflight pulls images) may call it first; otherwise the first that needs a key does."""
    if ctx.found.keys is not None:
        return
    if wanted is None:
        missing = [f"certs/{name}" for name in pki.find_missing_keys(ctx.host, ctx.paths, ctx.config.cluster)]
        missing += [f"kubeconfig/{name}" for name in kubeconfig.find_missing(ctx.host, ctx.paths)]
        wanted = len(ctx.selection.will_run.intersection(missing))
    ctx.start_keys(wanted)


def take_key(ctx: Run) -> private_keys.Key:
    """A new key of the configured kind."""
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
    """Say what may surprise of an authority that lies there. Raises as pki.read_ca does."""
    for warning in pki.find_ca_warnings(ctx.host, ctx.paths, ctx.config.cluster, name):
        ctx.report.warn_once(warning)


def ensure_cert(ctx: Run, name: str) -> Outputs:
    """Issue the leaf `name` of pki.CERTS, or keep the one that is here and right."""
    _report(ctx, pki.ensure_cert(ctx.host, ctx.paths, config=ctx.config, name=name, make_key=partial(take_key, ctx)))
    return None


def _cert_is_valid(ctx: Run, name: str) -> bool:
    return pki.is_cert_valid(ctx.host, ctx.paths, config=ctx.config, name=name)


def _has_external_etcd(ctx: Run) -> bool:
    is_external = ctx.config.cluster.external_etcd is not None
    if is_external:
        ctx.report.detail("etcd is external: its certificates are yours to give")
    return is_external


def _report(ctx: Run, finding: pki.Finding) -> None:
    """What was found and used is worth a line only with -v; what was issued again always is."""
    if finding.action == "reissue":
        ctx.report.note(finding.reason)
    else:
        ctx.report.detail(finding.reason)
