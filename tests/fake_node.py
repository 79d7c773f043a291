"""A control plane node in a FakeHost, with its PKI, for the tests of what reads one."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any, Optional

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.engine.run import Run
from kubeup.machine.host import Host
from kubeup.node import cert_specs, certificates, pki
from kubeup.paths import Paths
from kubeup.phases import certs, kubeconfigs
from kubeup.releases import RELEASES
from kubeup.report import Report
from tests.fake_host import FakeHost

PATHS = Paths()
CERT_PHASES = {
    "ca": (certs.issue_ca, certs.ca_is_valid),
    "apiserver": (certs.issue_apiserver_cert, certs.apiserver_cert_is_valid),
    "apiserver-kubelet-client": (
        certs.issue_apiserver_kubelet_client_cert,
        certs.apiserver_kubelet_client_cert_is_valid,
    ),
    "front-proxy-ca": (certs.issue_front_proxy_ca, certs.front_proxy_ca_is_valid),
    "front-proxy-client": (certs.issue_front_proxy_client_cert, certs.front_proxy_client_cert_is_valid),
    "etcd-ca": (certs.issue_etcd_ca, certs.etcd_ca_is_valid),
    "etcd-server": (certs.issue_etcd_server_cert, certs.etcd_server_cert_is_valid),
    "etcd-peer": (certs.issue_etcd_peer_cert, certs.etcd_peer_cert_is_valid),
    "etcd-healthcheck-client": (
        certs.issue_etcd_healthcheck_client_cert,
        certs.etcd_healthcheck_client_cert_is_valid,
    ),
    "apiserver-etcd-client": (certs.issue_apiserver_etcd_client_cert, certs.apiserver_etcd_client_cert_is_valid),
    "sa": (certs.make_service_account_key, certs.service_account_key_is_valid),
}
KUBECONFIG_PHASES = {
    "admin": (kubeconfigs.write_admin_conf, kubeconfigs.admin_conf_is_valid),
    "super-admin": (kubeconfigs.write_super_admin_conf, kubeconfigs.super_admin_conf_is_valid),
    "kubelet": (kubeconfigs.write_kubelet_conf, kubeconfigs.kubelet_conf_is_valid),
    "controller-manager": (kubeconfigs.write_controller_manager_conf, kubeconfigs.controller_manager_conf_is_valid),
    "scheduler": (kubeconfigs.write_scheduler_conf, kubeconfigs.scheduler_conf_is_valid),
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
    for run, _ in CERT_PHASES.values():
        run(ctx)
    return ctx


@functools.cache
def _finished_node() -> FakeHost:
    host = FakeHost()
    ctx = make_pki(host)
    for run, _ in KUBECONFIG_PHASES.values():
        run(ctx)
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
