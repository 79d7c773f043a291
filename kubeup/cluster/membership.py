"""This node's access to its cluster: found by discovery, or that of a node which has already joined.

This module only looks. It asks the API server whether a member's identity is still valid.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.cluster import api as kubeapi
from kubeup.config.pins import parse_ca_cert_hash
from kubeup.config.types import Discovery
from kubeup.errors import ClusterError, HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import Tls, Unreachable
from kubeup.node.kubeconfig import parse_kubeconfig, read_kubeconfig, render_kubeconfig
from kubeup.secret import Secret
from kubeup.trust import Anchors

with lazily:
    from kubeup.cluster import objects
    from kubeup.node import ca_pins, certificates


TOKEN_USER = "tls-bootstrap-token-user"  # noqa: S105
TOKEN_CONTEXT = "tls-bootstrap-token-user@kubernetes"  # noqa: S105


@frozen
class Access:
    """A trusted cluster, and this node's identity in it."""

    server: str
    ca: Optional[Anchors]
    """None: use the system's CAs (a discovery file without a CA)."""
    token: Secret = kubeapi.NO_TOKEN
    user: str = TOKEN_USER
    client_cert_pem: str = ""
    client_key_pem: Secret = kubeapi.NO_TOKEN
    skew_s: float = 0.0
    """How many seconds the server's clock is ahead of this node's."""
    is_member: bool = False
    """The identity is the kubelet's own: this node has already joined."""
    has_signed: bool = False
    """cluster-info has a signature made with the token: the cluster once knew the token."""
    notes: tuple[str, ...] = ()
    asked: str = ""
    """The server that answered discovery: the one on the command line, even if cluster-info names another."""
    tls_server_name: str = ""
    """The name to verify in the server's certificate, if it differs from the address."""
    proxy_url: str = ""
    """The proxy to the server, from a discovery file."""

    @property
    def ca_pem(self) -> str:
        return self.ca.pem if self.ca else ""

    @property
    def identity(self) -> kubeapi.Identity:
        cert, key = self.client_cert_pem or None, self.client_key_pem or None
        tls = Tls(self.ca, cert, key, self.tls_server_name, self.proxy_url)
        return kubeapi.Identity(self.server.rstrip("/"), tls, self.token)

    def render_bootstrap_kubeconfig(self, cluster_name: str) -> Secret:
        """The content of bootstrap-kubelet.conf."""
        return Secret(
            render_kubeconfig(
                server=self.server,
                ca_pem=self.ca_pem,
                user=self.user,
                cluster_name=cluster_name,
                token=self.token,
                client_cert_pem=self.client_cert_pem,
                client_key_pem=self.client_key_pem,
                context=TOKEN_CONTEXT if self.token else "",
                tls_server_name=self.tls_server_name,
                proxy_url=self.proxy_url,
            )
        )


def find_member_access(host: Host, kubelet_conf: Path) -> Optional[Access]:
    """The kubelet's own identity; None if kubelet.conf is missing or unusable."""
    access = read_member_access(host, kubelet_conf)
    try:
        if access is not None:
            certificates.parse_certs(access.client_cert_pem)
    except ValueError:
        return None
    return access


def read_member_access(host: Host, kubelet_conf: Path) -> Optional[Access]:
    """The identity that kubelet.conf names; None if it names none. Whether its certificate is one, the API server is to judge
    (is_accepted)."""
    if not host.exists(kubelet_conf):
        return None
    try:
        found = read_kubeconfig(host.read_text(kubelet_conf), host=host, path=kubelet_conf)
    except (HostError, ValueError):
        return None
    if not (found.client_cert_pem and found.client_key_pem):
        return None
    return Access(
        found.server,
        Anchors.given(found.ca_pem) if found.ca_pem else None,
        user=found.user,
        client_cert_pem=found.client_cert_pem,
        client_key_pem=found.client_key_pem,
        is_member=True,
        tls_server_name=found.tls_server_name,
        proxy_url=found.proxy_url,
    )


def read_way(host: Host, kubelet_conf: Path, *, token: Secret) -> Access:
    """The server and the CA that kubelet.conf names, and a token instead of its identity, whose certificate may be dead or gone. Raises
    HostError (kubeconfig-unreadable, file-unreadable)."""
    found = parse_kubeconfig(host.read_text(kubelet_conf), source=str(kubelet_conf))
    ca_file = kubelet_conf.parent / found.ca_file
    ca_pem = host.read_text(ca_file) if found.ca_file else found.ca_pem
    return Access(
        found.server,
        Anchors.given(ca_pem) if ca_pem else None,
        token,
        tls_server_name=found.tls_server_name,
        proxy_url=found.proxy_url,
    )


def is_accepted(host: Host, access: Access) -> bool:
    """Whether the API server accepts this identity. Raises ClusterError (server-unreachable)."""
    identity = access.identity
    try:
        return host.http_get(f"{identity.server}/version", tls=identity.tls, headers=_bearer(identity)).status != 401
    except Unreachable as error:
        if error.reason == "tls":
            return False  # the server aborts the handshake if the client certificate has expired
        raise ClusterError(
            f"this node has joined a cluster whose API server {identity.server} does not answer",
            cause=error.cause,
            remedy=f"check the way there (curl -vk {identity.server}/version), or leave that cluster: kb reset",
            code="server-unreachable",
        ) from error


def find_way_of_member(host: Host, access: Access, *, wanted: Discovery) -> Access:
    """Choose a server that answers. An interrupted join may have left a kubeconfig that names a load balancer which does not run
    yet. Then use the server on the command line, if it accepts this identity."""
    token = wanted.bootstrap_token
    asked = f"https://{token.api_server_endpoint}" if token and token.api_server_endpoint else ""
    if not asked or asked == access.server.rstrip("/"):
        return access
    try:
        is_accepted(host, access)
        return access
    except ClusterError:
        near = replace(access, server=asked)
        is_way = is_accepted(host, near)
    return with_reachable_server(host, replace(access, asked=asked)) if is_way else access


def _bearer(identity: kubeapi.Identity) -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.token.reveal()}"} if identity.token else {}


def check_same_cluster(access: Access, wanted: Discovery) -> None:
    """Raise HostError (already-joined) if this node has joined another cluster than the one on the command line."""
    pins = wanted.bootstrap_token.ca_cert_hashes if wanted.bootstrap_token else ()
    given = {parse_ca_cert_hash(pin) for pin in pins}
    found = ca_pins.ca_cert_hashes(access.ca_pem) if access.ca_pem else ()
    if given and not given & set(found):
        raise HostError(
            f"this node has joined another cluster, at {access.server}",
            cause=f"that one's CA has the public key {', '.join(found)}, the one to join {', '.join(sorted(given))}",
            remedy="leave it first: kb reset",
            code="already-joined",
        )


def with_reachable_server(host: Host, access: Access) -> Access:
    """Keep using the server that answered discovery if every node has its own load balancer: until this node has one, the cluster's
    name for its API server leads nowhere. The server was verified to be the cluster's, and is verified again with the CA from
    cluster-info."""
    if not access.asked or access.asked == access.server.rstrip("/"):
        return access
    near = replace(access, server=access.asked)
    try:
        balancer = objects.read_load_balancer(kubeapi.Api(host, near.identity, retry_s=0))
    except Unreachable:
        return access
    except kubeapi.ApiRefused as error:
        return near if error.http_status == 401 else access
    return near if balancer.is_local else access
