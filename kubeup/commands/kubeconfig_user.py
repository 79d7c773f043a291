"""The command kubeconfig user: write a kubeconfig for an additional user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.lazy_modules import lazily
from kubeup.secret import Secret

with lazily:
    from kubeup.cluster import amid_rotation
    from kubeup.config import load_init
    from kubeup.node import kubeconfig

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def kubeconfig_user(call: Invocation) -> int:
    client_name = launcher.required(call, "client-name")
    launch = Launch(call)
    config = launch.load_partial(("cert-dir",))
    period = call.flags.get("validity-period")
    local, paths = launch.local, launcher.paths_of(config, call.flags)
    text = kubeconfig.make_user_kubeconfig(
        local,
        paths,
        config=config,
        client_name=client_name,
        orgs=tuple(call.flags.get("org", ())),
        token=Secret(call.flags.get("token", "")),
        validity_s=load_init.parse_duration(period, "--validity-period") if period else None,
        server=call.flags.get("server", ""),
    )
    authorities = amid_rotation.read_authorities(local, paths)
    if authorities:
        text = kubeconfig.with_authorities(text, authorities, source="the new kubeconfig")
    call.print_document(text)
    return 0
