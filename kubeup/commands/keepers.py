"""The commands routes and load-balancer, which are run by systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.network import load_balancer as balancer_keeper
    from kubeup.network import route_keeper

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def routes(call: Invocation) -> int:
    route_keeper.keep_routes(launcher.open_host(call), once=bool(call.flags.get("once")), log=call.report.line)
    return 0


def load_balancer(call: Invocation) -> int:
    balancer_keeper.keep(launcher.open_host(call), once=bool(call.flags.get("once")), log=call.report.line)
    return 0
