"""A control plane node in a FakeHost, with its PKI, for the tests of what reads one."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any, Callable, Optional

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.machine.host import Host
from kubeup.node import cert_specs, certificates, pki
from kubeup.paths import Paths
from kubeup.phases import certs, kubeconfigs
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.plans import do

PATHS = Paths()
CERT_PLANS: dict[str, Callable[[Run], Plan]] = {
    "ca": certs.plan_ca,
    "apiserver": certs.plan_apiserver,
    "apiserver-kubelet-client": certs.plan_apiserver_kubelet_client,
    "front-proxy-ca": certs.plan_front_proxy_ca,
    "front-proxy-client": certs.plan_front_proxy_client,
    "etcd-ca": certs.plan_etcd_ca,
    "etcd-server": certs.plan_etcd_server,
    "etcd-peer": certs.plan_etcd_peer,
    "etcd-healthcheck-client": certs.plan_etcd_healthcheck_client,
    "apiserver-etcd-client": certs.plan_apiserver_etcd_client,
    "sa": certs.plan_service_account_key,
}
KUBECONFIG_PLANS: dict[str, Callable[[Run], Plan]] = {
    "admin": kubeconfigs.plan_admin,
    "super-admin": kubeconfigs.plan_super_admin,
    "kubelet": kubeconfigs.plan_kubelet,
    "controller-manager": kubeconfigs.plan_controller_manager,
    "scheduler": kubeconfigs.plan_scheduler,
}


def make_config(*, node: str = "cp1", address: str = "10.77.0.11", **cluster: Any) -> NodeConfig:
    """The configuration of the node that real kubeadm made for tests/golden, with elliptic-curve keys for speed."""
    cluster.setdefault("encryption_algorithm", "ECDSA-P256")
    return NodeConfig(
        cluster=ClusterConfiguration("v1.35.6", **cluster),
        node=NodeRegistration(node),
        local_api_endpoint=LocalAPIEndpoint(address),
    )


def make_context(host: Host, config: Optional[NodeConfig] = None, *, minor: int = 35) -> Run:
    config = config or make_config()
    return Run(
        host=host, paths=PATHS, config=config, release=RELEASES[minor], report=Report(io.StringIO(), verbosity=1)
    )


def make_pki(host: Host, config: Optional[NodeConfig] = None) -> Run:
    """Run every certs/* phase on `host`."""
    ctx = make_context(host, config)
    for plan in CERT_PLANS.values():
        do(plan, ctx)
    return ctx


@functools.cache
def _finished_node() -> FakeHost:
    host = FakeHost()
    ctx = make_pki(host)
    for plan in KUBECONFIG_PLANS.values():
        do(plan, ctx)
    return host


def finished_node() -> FakeHost:
    """A fresh copy of a node with all certificates and kubeconfigs of make_config()."""
    host = copy.deepcopy(_finished_node())
    host.changes.clear()
    return host


def cert_at(host: Host, base: str) -> Any:
    """The certificate `base` of the node, parsed."""
    return pki.read_certs(host, PATHS.pki / f"{base}.crt")[0]


def make_ca_unfit(host: FakeHost) -> FakeHost:
    """The CA's certificate says, for the same name and key, that it may not sign."""
    spec = cert_specs.CERTS["ca"]
    key, old = pki.read_key(host, spec.key_path(PATHS)), pki.read_certs(host, spec.cert_path(PATHS))[0]
    builder = x509.CertificateBuilder(old.subject, old.subject, key.public_key(), 7)
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    builder = builder.add_extension(usage, True).add_extension(x509.BasicConstraints(True, None), True)
    host.files[str(spec.cert_path(PATHS))] = certificates.cert_to_pem(builder.sign(key, SHA256())).encode()
    return host
