"""When the certificates of a control plane node expire, their renewal, and signing requests for an external CA.

The table ROWS lists every certificate that is renewed, in files of its own and in kubeconfigs. This module knows no phase, and does
not talk to the cluster. Mirrors cmd/kubeadm/app/phases/certs/renewal/*.go and CreateDefaultKeysAndCSRFiles in
cmd/kubeadm/app/phases/certs/certlist.go.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from cryptography import x509

from kubeup.config.types import ClusterConfiguration, NodeConfig
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import cert_specs, certificates, kubeconfig, pki, private_keys
from kubeup.paths import Paths
from kubeup.releases import Release


@frozen
class Row:
    """A certificate that can be renewed: the name under which it is renewed, its description, and its CA."""

    name: str
    what: str
    ca: str
    reader: str = ""
    """The component that reads it only when it starts; "" if whatever uses it reads it again (docs/adr/0017-renewed-certificates.md)."""

    @property
    def is_kubeconfig(self) -> bool:
        return self.name.endswith(".conf")


_IN_KUBECONFIG = "certificate embedded in the kubeconfig file for the"
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("admin.conf", f"{_IN_KUBECONFIG} admin to use and for kubeadm itself", "ca"),
        Row("apiserver", "certificate for serving the Kubernetes API", "ca"),
        Row("apiserver-etcd-client", "certificate the apiserver uses to access etcd", "etcd-ca"),
        Row("apiserver-kubelet-client", "certificate for the API server to connect to kubelet", "ca"),
        Row(
            "controller-manager.conf",
            f"{_IN_KUBECONFIG} controller manager to use",
            "ca",
            reader="kube-controller-manager",
        ),
        Row("etcd-healthcheck-client", "certificate for liveness probes to healthcheck etcd", "etcd-ca"),
        Row("etcd-peer", "certificate for etcd nodes to communicate with each other", "etcd-ca"),
        Row("etcd-server", "certificate for serving etcd", "etcd-ca"),
        Row("front-proxy-client", "certificate for the front proxy client", "front-proxy-ca"),
        Row("scheduler.conf", f"{_IN_KUBECONFIG} scheduler manager to use", "ca", reader="kube-scheduler"),
        Row("super-admin.conf", f"{_IN_KUBECONFIG} super-admin", "ca"),
    )
}
"""By name, in kubeadm's order. kubelet.conf is not listed, because the kubelet renews its own certificate."""
CAS = ("ca", "etcd-ca", "front-proxy-ca")


def wanted_rows(cluster: ClusterConfiguration) -> tuple[Row, ...]:
    """The rows for a node of this cluster: with an external etcd, none of etcd's."""
    return tuple(row for row in ROWS.values() if cluster.external_etcd is None or row.ca != "etcd-ca")


def wanted_cas(cluster: ClusterConfiguration) -> tuple[str, ...]:
    return tuple(name for name in CAS if cluster.external_etcd is None or name != "etcd-ca")


def find_row(name: str, cluster: ClusterConfiguration) -> Row:
    """The row of a certificate. Raises UsageError (unknown-certificate)."""
    for row in wanted_rows(cluster):
        if row.name == name:
            return row
    raise UsageError(
        f"there is no certificate {name!r} to renew",
        cause=f"the certificates of this node are: {', '.join(row.name for row in wanted_rows(cluster))}",
        remedy="name one of them, or: kb certs renew all",
        code="unknown-certificate",
    )


# ---- expiry


@frozen
class Expiry:
    """When a certificate expires. `expires` is None if it does not exist."""

    name: str
    expires: Optional[datetime.datetime] = None
    ca: str = ""
    is_external: bool = False
    """Its CA is external, so it is renewed elsewhere too."""

    def residual_s(self, now: datetime.datetime) -> int:
        return int((self.expires - now).total_seconds()) if self.expires else 0


def read_expiry(host: Host, paths: Paths, *, row: Row) -> Expiry:
    """When a row's certificate expires. Raises HostError if the file exists but has no usable certificate."""
    cert = read_cert(host, paths, row=row)
    if cert is None:
        return Expiry(row.name)
    return Expiry(row.name, cert.not_valid_after_utc, row.ca, pki.is_external_ca(host, paths, name=row.ca))


def read_ca_expiry(host: Host, paths: Paths, *, name: str) -> Expiry:
    path = cert_specs.CERTS[name].cert_path(paths)
    if not host.exists(path):
        return Expiry(name)
    cert = pki.read_certs(host, path)[0]
    return Expiry(name, cert.not_valid_after_utc, is_external=pki.is_external_ca(host, paths, name=name))


DUE_LEFT = 0.2
"""The part of its life that a certificate has left when it is due: 73 days of a year."""


def is_due(host: Host, paths: Paths, *, row: Row, cluster: ClusterConfiguration) -> bool:
    """Whether less than a fifth of a row's certificate's life is left. Raises HostError if the file has no usable certificate."""
    cert = read_cert(host, paths, row=row)
    return cert is not None and is_cert_due(cert, host.now(), period_s=cluster.certificate_validity_period_s)


def is_cert_due(cert: x509.Certificate, now: datetime.datetime, *, period_s: int) -> bool:
    """Whether less than a fifth of its life is left. period_s: what a certificate that is issued now lives; a longer life is not
    believed, because the certificate of a new kubeconfig begins with its CA, which may be years older."""
    life = min(cert.not_valid_after_utc - cert.not_valid_before_utc, datetime.timedelta(seconds=period_s))
    return cert.not_valid_after_utc - now < DUE_LEFT * life


def read_cert(host: Host, paths: Paths, *, row: Row) -> Optional[x509.Certificate]:
    path = _path(paths, row)
    if not host.exists(path):
        return None
    if not row.is_kubeconfig:
        return pki.read_certs(host, path)[0]
    found = kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)
    if not found.client_cert_pem:
        return None
    try:
        return certificates.parse_certs(found.client_cert_pem)[0]
    except ValueError as error:
        raise HostError(
            f"the client certificate in {path} cannot be used",
            cause=str(error),
            remedy=f"move it away (mv {path} /root/), then: kb init phase kubeconfig {path.stem}",
            code="certificate-unreadable",
        ) from error


def files_of(paths: Paths, row: Row) -> tuple[Path, ...]:
    """The files that a renewal of this certificate replaces."""
    if row.is_kubeconfig:
        return (paths.kubeconfig(row.name),)
    spec = cert_specs.CERTS[row.name]
    return (spec.key_path(paths), spec.cert_path(paths))


def _path(paths: Paths, row: Row) -> Path:
    return paths.kubeconfig(row.name) if row.is_kubeconfig else cert_specs.CERTS[row.name].cert_path(paths)


# ---- renewal


def find_warnings(host: Host, paths: Paths, *, ca: str, cluster: ClusterConfiguration) -> tuple[str, ...]:
    """Warnings about the CA that will still apply to a renewed certificate."""
    return (
        pki.find_ca_warnings(host, paths, cluster=cluster, name=ca)
        if host.exists(cert_specs.CERTS[ca].cert_path(paths))
        else ()
    )


def renew(
    host: Host, paths: Paths, *, row: Row, cluster: ClusterConfiguration, crosses: Sequence[x509.Certificate] = ()
) -> str:
    """Renew a certificate: the same names, a new key, valid from now; intermediates that follow it in its file stay. crosses: those that lead
    from its authority to another one, which a server is to show from now on. Returns missing | external | renewed.

    The key is written right before its certificate. Programs that loaded the old pair keep using it until they are restarted.
    """
    cert = read_cert(host, paths, row=row)
    if cert is None:
        return "missing"
    ca = pki.read_ca(host, paths, name=row.ca)
    if ca.key is None:
        return "external"
    key = private_keys.generate_key(cert_specs.key_algorithm(cluster))
    seconds = cluster.certificate_validity_period_s
    if row.is_kubeconfig:
        path = paths.kubeconfig(row.name)
        text = kubeconfig.renew_client(host, paths, path=path, seconds=seconds, new_key=key)
        pki.write_keeping_mode(host, path, text=text, mode=0o600)
        return "renewed"
    spec = cert_specs.CERTS[row.name]
    new = certificates.issue_leaf_cert(
        certificates.subject_of(cert), key, ca=ca, validity=certificates.plan_validity(host.now(), seconds)
    )
    following = (*crosses, *pki.read_certs(host, spec.cert_path(paths))[1:])
    text = certificates.chain_to_pem(new, following=following, now=host.now())
    pki.write_keeping_mode(host, spec.key_path(paths), text=private_keys.key_to_pem(key).reveal(), mode=0o600)
    pki.write_keeping_mode(host, spec.cert_path(paths), text=text, mode=0o644)
    return "renewed"


# ---- signing requests for an external CA


def write_cert_requests(host: Host, paths: Paths, *, config: NodeConfig) -> tuple[str, ...]:
    """Write a key and a `.csr` for every certificate that the cluster's CAs sign; return their base names.

    Raises HostError (key-in-the-way) before anything is written, because an existing key is never replaced.
    """
    specs = [spec for spec in cert_specs.wanted_certs(config.cluster) if not spec.is_ca]
    _refuse_existing(host, [path for spec in specs for path in (spec.key_path(paths), _csr_path(spec.key_path(paths)))])
    for spec in specs:
        key = private_keys.generate_key(cert_specs.key_algorithm(config.cluster))
        subject = certificates.Subject(spec.common_name or config.node.name, sans=spec.sans(config))
        host.write_file(spec.key_path(paths), private_keys.key_to_pem(key).reveal(), mode=0o600)
        host.write_file(_csr_path(spec.key_path(paths)), certificates.render_request(subject, key), mode=0o644)
    return tuple(spec.base for spec in specs)


def write_kubeconfig_requests(host: Host, paths: Paths, *, config: NodeConfig, release: Release) -> tuple[str, ...]:
    """Write a `.csr`, and a kubeconfig with a key but no certificate yet, for each of the five; return the files' names."""
    specs = list(kubeconfig.KUBECONFIGS.values())
    files = [paths.kubeconfig(spec.file) for spec in specs]
    _refuse_existing(host, [place for path in files for place in (path, Path(f"{path}.csr"))])
    for spec, path in zip(specs, files):
        key = private_keys.generate_key(cert_specs.key_algorithm(config.cluster))
        user = spec.user.format(node=config.node.name)
        text = kubeconfig.render_without_cert(
            server=kubeconfig.server_url(spec.name, config, release=release),
            user=user,
            cluster_name=config.cluster.cluster_name,
            client_key_pem=private_keys.key_to_pem(key),
        )
        host.write_file(path, text, mode=0o600)
        host.write_file(
            Path(f"{path}.csr"),
            certificates.render_request(certificates.Subject(user, spec.organizations), key),
            mode=0o644,
        )
    return tuple(spec.file for spec in specs)


def _csr_path(key_path: Path) -> Path:
    return key_path.with_suffix(".csr")


def _refuse_existing(host: Host, paths: list[Path]) -> None:
    found = [str(path) for path in paths if host.exists(path)]
    if found:
        raise HostError(
            f"{found[0]} already exists",
            cause="a request is for a new key, and an existing key is not replaced",
            remedy=f"choose other folders (--cert-dir, --kubeconfig-dir), or move it away: mv {' '.join(found[:3])} /root/",
            code="key-in-the-way",
        )
