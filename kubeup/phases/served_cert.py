"""The certificate that an API server serves: which names it has, and the wait until a new one is served.

The API server reads its file again by itself (docs/adr/0017-renewed-certificates.md). One that does not is restarted, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from kubeup.addresses import host_of, port_of
from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import becomes_so
from kubeup.phases import static_pods_swap

with lazily:
    from kubeup.node import cert_specs, certificates, kubeconfig

CERT_TIMEOUT_S = 90.0
"""The API server reloads its certificate when the file changes, and checks it once a minute."""
RESTARTED_S = 10.0


def own_server(ctx: Run) -> str:
    """`host:port` of this node's API server."""
    return kubeconfig.local_url(ctx.config).partition("://")[2]


def read_served_names(ctx: Run, server: str) -> Optional[cert_specs.Sans]:
    """The names in the certificate that the API server at `host:port` serves: none if it cannot be read, None if no server answers."""
    pem = ctx.host.served_cert(host_of(server), port_of(server))
    if pem is None:
        return None
    shown = certificates.parse_shown(pem)
    return certificates.sans_of(shown[0]) if shown else cert_specs.NO_SANS


def wait_until_served(ctx: Run, is_served: Callable[[], bool], *, names: str, command: str) -> None:
    """Wait until this node's API server serves its new certificate. names: what is new in it; command: what continues after a mend.

    Raises ClusterError (apiserver-keeps-certificate), and what a restart raises."""

    def look() -> bool:
        found = is_served()
        if not found:
            ctx.report.waiting("waiting for the API server to show its new certificate")
        return found

    if becomes_so(ctx.host, look, timeout_s=CERT_TIMEOUT_S):
        return
    ctx.report.note(f"the API server has not read its new certificate for {CERT_TIMEOUT_S:.0f} s: restarting it")
    static_pods_swap.restart(ctx)
    if becomes_so(ctx.host, look, timeout_s=RESTARTED_S):
        return
    raise ClusterError(
        f"the API server at {own_server(ctx)} does not show its new certificate",
        cause=f"the certificate {names} is in {ctx.paths.pki}, and a restart did not help: --tls-cert-file of its manifest may name another "
        "file",
        remedy=f"look at it: grep tls-cert-file {ctx.paths.manifest('kube-apiserver')}; then: {command}",
        code="apiserver-keeps-certificate",
    )
