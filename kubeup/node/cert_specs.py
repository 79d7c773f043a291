"""The certificates of a control plane node, and the names in them: the table CERTS.

Mirrors cmd/kubeadm/app/phases/certs/certlist.go and the names in cmd/kubeadm/app/util/pkiutil/pki_helpers.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Optional

from kubeup.addresses import host_of
from kubeup.config.types import ClusterConfiguration, NodeConfig
from kubeup.frozen_values import frozen
from kubeup.paths import Paths

# ---- the wanted certificates


@frozen
class Sans:
    """A certificate's subject alternative names: DNS names sorted, addresses in order, without duplicates."""

    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dns or self.ips)

    def __str__(self) -> str:
        return f"DNS names [{' '.join(self.dns)}] and IPs [{' '.join(self.ips)}]"

    def covers(self, name: str) -> bool:
        """Whether clients accept a server with these names under `name` (a DNS name or an address)."""
        wanted = _as_ip(name)
        if wanted is not None:
            return wanted in self.ips
        labels = name.lower().rstrip(".").split(".")
        return any(_dns_matches(pattern.lower().split("."), labels) for pattern in self.dns)

    def lacks(self, wanted: Sans) -> tuple[str, ...]:
        """The names in `wanted` that these do not cover."""
        return tuple(name for name in (*wanted.dns, *wanted.ips) if not self.covers(name))


NO_SANS = Sans()


def make_sans(names: Iterable[str]) -> Sans:
    """Sort `names` into DNS names and addresses; skip what is neither."""
    dns: set[str] = set()
    ips: dict[str, None] = {}
    for name in names:
        address = _as_ip(name)
        if address is not None:
            ips[address] = None
        elif _DNS_NAME.fullmatch(name.removeprefix("*.")):
            dns.add(name)
    return Sans(tuple(sorted(dns)), tuple(ips))


def apiserver_sans(config: NodeConfig) -> Sans:
    """The names under which clients inside and outside the cluster reach the API server."""
    service_network = ipaddress.ip_network(config.cluster.service_cidrs()[0], strict=False)
    domain = config.cluster.networking.dns_domain
    return make_sans(
        (
            config.node.name,
            *("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}"),
            str(service_network[1]),
            config.local_api_endpoint.advertise_address,
            *([host_of(config.cluster.control_plane_endpoint)] * bool(config.cluster.control_plane_endpoint)),
            *config.cluster.api_server.cert_sans,
        )
    )


def etcd_server_sans(config: NodeConfig) -> Sans:
    local = config.cluster.local_etcd
    return _etcd_sans(config, local.server_cert_sans if local else ())


def etcd_peer_sans(config: NodeConfig) -> Sans:
    local = config.cluster.local_etcd
    return _etcd_sans(config, local.peer_cert_sans if local else ())


def _etcd_sans(config: NodeConfig, extra: Sequence[str]) -> Sans:
    address = config.local_api_endpoint.advertise_address
    return make_sans((config.node.name, "localhost", address, "127.0.0.1", "::1", *extra))


def _no_sans(config: NodeConfig) -> Sans:
    return Sans()


@frozen
class CertSpec:
    """One certificate of a control plane node. `base` is the path of its files below certificatesDir, without .crt and .key."""

    name: str
    base: str
    signer: str = ""
    """The name of its CA; "" for a CA, which signs itself."""
    common_name: str = ""
    """"": the node's name."""
    is_server: bool = False
    is_client: bool = False
    sans: Callable[[NodeConfig], Sans] = _no_sans

    @property
    def is_ca(self) -> bool:
        return not self.signer

    @property
    def usages(self) -> tuple[str, ...]:
        """The usages for which the certificate must be valid. etcd also uses its server certificate as a client, for its gateway's
        calls to itself, but works without that."""
        is_asked = self.is_client and self.name != "etcd-server"
        return ("server",) * self.is_server + ("client",) * is_asked

    @property
    def is_etcd(self) -> bool:
        """Whether it is needed only for an etcd that kb runs."""
        return "etcd-ca" in (self.name, self.signer)

    def cert_path(self, paths: Paths) -> Path:
        return paths.pki / f"{self.base}.crt"

    def key_path(self, paths: Paths) -> Path:
        return paths.pki / f"{self.base}.key"


CERTS: dict[str, CertSpec] = {
    spec.name: spec
    for spec in (
        CertSpec("ca", "ca", common_name="kubernetes"),
        CertSpec("apiserver", "apiserver", "ca", "kube-apiserver", is_server=True, sans=apiserver_sans),
        CertSpec(
            "apiserver-kubelet-client",
            "apiserver-kubelet-client",
            "ca",
            "kube-apiserver-kubelet-client",
            is_client=True,
        ),
        CertSpec("front-proxy-ca", "front-proxy-ca", common_name="front-proxy-ca"),
        CertSpec("front-proxy-client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", is_client=True),
        CertSpec("etcd-ca", "etcd/ca", common_name="etcd-ca"),
        CertSpec("etcd-server", "etcd/server", "etcd-ca", is_server=True, is_client=True, sans=etcd_server_sans),
        CertSpec("etcd-peer", "etcd/peer", "etcd-ca", is_server=True, is_client=True, sans=etcd_peer_sans),
        CertSpec(
            "etcd-healthcheck-client",
            "etcd/healthcheck-client",
            "etcd-ca",
            "kube-etcd-healthcheck-client",
            is_client=True,
        ),
        CertSpec(
            "apiserver-etcd-client", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", is_client=True
        ),
    )
}
"""By phase name, in the order in which they are created."""


def wanted_certs(cluster: ClusterConfiguration) -> tuple[CertSpec, ...]:
    """The rows of CERTS for a control plane node of this cluster: with an external etcd, none of etcd's."""
    return tuple(spec for spec in CERTS.values() if cluster.external_etcd is None or not spec.is_etcd)


# ---- keys


def key_algorithm(cluster: ClusterConfiguration) -> str:
    """The algorithm of new keys: encryptionAlgorithm, unless the feature gate PublicKeysECDSA is set, which takes precedence."""
    gate = cluster.feature_gates.get("PublicKeysECDSA")
    if gate is not None:
        return "ECDSA-P256" if gate else "RSA-2048"
    return cluster.encryption_algorithm or "RSA-2048"


# ---- helpers

_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _as_ip(text: str) -> Optional[str]:
    """The address in Go's canonical form. An IPv4-mapped IPv6 address becomes the IPv4 address, as Go writes it into certificates.
    (Since Go 1.27 it reads no other form there.)"""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _dns_matches(pattern: list[str], labels: list[str]) -> bool:
    """Whether a name matches a pattern. `*` matches exactly one label, the first."""
    return pattern[1:] == labels[1:] and pattern[0] in ("*", labels[0])
