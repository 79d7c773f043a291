"""Why the cluster's DNS answers, and not as it should: what its Corefile serves and where it forwards, against what pods ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from kubeup.cluster import dns_service, objects
from kubeup.cluster.api import Api
from kubeup.errors import ClusterError
from kubeup.json_text import as_table
from kubeup.trouble import Trouble
from kubeup.upgrade.corefile import EDIT, Directive, parse_corefile

_REVERSE = ("in-addr.arpa", "ip6.arpa")
_OPEN = frozenset({"import", "rewrite", "template"})
"""With these, a Corefile may answer what its zones do not tell."""


def explain_zone(api: Api, domain: str) -> Optional[Trouble]:
    """Why CoreDNS knows no Service in the domain that kubelets tell pods; None if its Corefile does not show it. Raises Unreachable, ApiRefused."""
    servers = _read_servers(api)
    plugins = [(server, one) for server in servers for one in server.options if one.name == "kubernetes"]
    zones = {zone for server, one in plugins for zone in _list_zones(server, one)}
    if not servers or domain in zones or any("{$" in zone for zone in zones) or _is_open(servers):
        return None
    told = (
        f"its Corefile serves Services in {' and '.join(sorted(zones))}"
        if zones
        else "its Corefile has no plugin kubernetes"
    )
    if zones and _read_domain(api) not in (None, domain):
        remedy = _CORRECT.format(" or ".join(sorted(zones)))
    else:
        remedy = f"correct the plugin kubernetes in it ({domain}): {EDIT}; CoreDNS reads it again within two minutes"
    return Trouble(told, f"kubelets have pods ask for names in {domain} (clusterDomain)", remedy)


_CORRECT = "correct clusterDomain ({}) in /var/lib/kubelet/config.yaml; then: systemctl restart kubelet"


def explain_domain(api: Api, domain: str) -> Optional[Trouble]:
    """Why CoreDNS knows no Service in the domain that this machine's kubelet tells pods: the cluster's is another. Raises Unreachable, ApiRefused."""
    stored = _read_domain(api)
    if stored in (None, domain):
        return None
    what = f"the kubelet has pods ask for names in {domain} (clusterDomain in /var/lib/kubelet/config.yaml)"
    return Trouble(what, f"the cluster's domain is {stored}", _CORRECT.format(stored))


def _read_domain(api: Api) -> Optional[object]:
    return as_table(dns_service.read_stored(api).get("networking")).get("dnsDomain")


def read_forwards(api: Api) -> list[str]:
    """Where CoreDNS asks for names that are not the cluster's: the targets of its plugins forward. Raises Unreachable, ApiRefused."""
    plugins = (one for server in _read_servers(api) for one in server.options if one.name == "forward")
    return [target for one in plugins for target in one.args[1:]]


def _read_servers(api: Api) -> tuple[Directive, ...]:
    """The server blocks; () if there is no CoreDNS of kubeadm's make, or its Corefile cannot be read, which its pods tell."""
    text = objects.read_config_key(api, "coredns", key="Corefile")
    try:
        return parse_corefile(text)
    except ClusterError:
        return ()


def _is_open(servers: tuple[Directive, ...]) -> bool:
    return any(one.name in _OPEN for server in servers for one in (server, *server.options))


def _list_zones(server: Directive, plugin: Directive) -> Iterator[str]:
    """The zones of one plugin kubernetes, which are those of its server block if it names none."""
    for text in plugin.args or (server.name, *server.args):
        zone = text.rpartition("://")[2].partition(":")[0].rstrip(",").rstrip(".").lower()
        if not zone.endswith(_REVERSE):
            yield zone or "."
