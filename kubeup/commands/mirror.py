"""The commands mirror serve and mirror sync; the others are in mirror_upkeep.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.addresses import join_host_port
from kubeup.commands import launcher
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.trust import Anchors

with lazily:
    from kubeup.airgap import mirror_catalog, mirror_server, mirror_sync
    from kubeup.machine import http
    from kubeup.phases import local_bundle

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def serve(call: Invocation) -> int:
    """Serve until a signal ends it."""
    local = launcher.open_host(call)
    path = launcher.require_one_file(call, takes="one bundle, or a folder of bundles")
    address, port = mirror_server.parse_listen(str(call.flags.get("listen", ":5000")))
    tls, ca_pem = None, ""
    if call.flags.get("tls"):
        own = {"tls-cert": "kb-mirror.crt", "tls-key": "kb-mirror.key", "tls-ca": "ca.crt"}
        call.flags.update({flag: str(Paths().pki / name) for flag, name in own.items() if flag not in call.flags})
    if "tls-cert" in call.flags or "tls-key" in call.flags:
        cert = Path(_both(call, "tls-cert")).absolute()
        tls = mirror_server.make_tls_context(cert, Path(_both(call, "tls-key")).absolute())
        ca_pem = local.read_text(Path(call.flags["tls-ca"]).absolute()) if "tls-ca" in call.flags else ""
    store = mirror_catalog.Store(local, path, log=call.report.line)
    listener = local.listen(address, port)
    url = f"{'https' if tls else 'http'}://{join_host_port(address, port)}"
    call.report.line(f"serving {path}: {mirror_catalog.describe(store.catalog)} on {url}")
    log_access = (lambda text: None) if call.flags.get("no-access-log") else None
    mirror_server.Server(store, listener, log=call.report.line, log_access=log_access, tls=tls, ca_pem=ca_pem).serve()
    return 0


def sync(call: Invocation) -> int:
    """Push the images of a bundle to a registry."""
    local = launcher.open_host(call)
    base = str(call.flags.get("to", ""))
    server, _, prefix = base.partition("://")[2].partition("/")
    if not base.startswith(("http://", "https://")) or not server:
        raise UsageError(
            f"kb mirror sync --to {base}".rstrip(),
            cause="it must be the URL of a registry, with a project's name if it has one: https://harbor.example/kubernetes",
            remedy="kb mirror sync FILE --to https://REGISTRY",
            code="usage",
        )
    ca = local.read_text(Path(call.flags["tls-ca"]).absolute()) if "tls-ca" in call.flags else None
    path = launcher.require_one_file(call, takes="one bundle, or a folder of bundles")
    url, count = f"{base.partition('://')[0]}://{server}", 0
    with contextlib.ExitStack() as stack:
        if path.is_relative_to(local_bundle.MIRROR_FOLDER):  # gc may not write it anew meanwhile
            stack.enter_context(local_bundle.hold_folder(local, f"kb {call.command.name}"))
        for name in mirror_sync.sync(
            local,
            mirror_catalog.find_layouts(local, path),
            base=url,
            prefix=prefix,
            tls=http.Tls(Anchors.given(ca)) if ca else None,
            tell=call.report.waiting,
        ):
            call.print(f"pushed {name}")
            count += 1
    call.report.line(f"{count} images are in {base}")
    return 0


def _both(call: Invocation, flag: str) -> str:
    if flag not in call.flags:
        raise UsageError(
            f"kb mirror serve: --{flag} is missing",
            cause="TLS needs a certificate and its key",
            remedy="give --tls-cert FILE and --tls-key FILE, or neither",
            code="missing-flag",
        )
    return str(call.flags[flag])
