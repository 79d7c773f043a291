"""The hosts that kb may connect to with --air-gapped."""

from __future__ import annotations

import ipaddress

from kubeup.frozen_values import frozen


@frozen
class Fence:
    """The only destinations that kb may connect to with --air-gapped. hosts: names and addresses; networks: CIDRs."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()

    def allows(self, host: str) -> bool:
        if host in self.hosts or host in ("localhost", ""):
            return True
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        nets = (ipaddress.ip_network(text, strict=False) for text in self.networks)
        return address.is_loopback or any(address.version == net.version and address in net for net in nets)
