"""The commands mirror serve, mirror add and mirror sync."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.addresses import join_host_port
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.trust import Anchors

with lazily:
    from kubeup.airgap import bundle, mirror_catalog, mirror_server, mirror_sync
    from kubeup.machine import http
    from kubeup.phases import local_bundle

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation


def serve(call: Invocation) -> int:
    """Serve until a signal ends it."""
    local = launcher.open_host(call)
    path = _one_word(call)
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


def add(call: Invocation) -> int:
    """Add a bundle to this node's mirror: check it first, then copy it; it is served a second later."""
    launch, path = Launch(call), _one_word(call)
    launch.require_root()
    local = launch.local
    if not local.is_dir(local_bundle.MIRROR_FOLDER):
        raise HostError(
            "this node has no mirror",
            cause=f"there is no {local_bundle.MIRROR_FOLDER}",
            remedy="run it on the control plane that was made with kb init --bundle",
            code="no-mirror-here",
        )
    key = local.read_text(Path(call.flags["verify-key"]).absolute()) if "verify-key" in call.flags else ""
    found = local_bundle.add_bundle(local, path, key_pem=key, tell=call.report.waiting)
    call.print(f"{found.path} is served: {len(found.names)} images, {len(bundle.list_files(local, found))} files")
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
    layouts = mirror_catalog.find_layouts(local, _one_word(call))
    url = f"{base.partition('://')[0]}://{server}"
    count = 0
    for name in mirror_sync.sync(
        local,
        layouts,
        base=url,
        prefix=prefix,
        tls=http.Tls(Anchors.given(ca)) if ca else None,
        tell=call.report.waiting,
    ):
        call.print(f"pushed {name}")
        count += 1
    call.report.line(f"{count} images are in {base}")
    return 0


def _one_word(call: Invocation) -> Path:
    if len(call.words) != 1:
        raise UsageError(
            f"kb {call.command.name} {' '.join(call.words)}".strip(),
            cause="it takes one bundle, or a folder of bundles",
            remedy=f"kb {call.command.name} FILE",
            code="usage",
        )
    return Path(call.words[0]).absolute()


def _both(call: Invocation, flag: str) -> str:
    if flag not in call.flags:
        raise UsageError(
            f"kb mirror serve: --{flag} is missing",
            cause="TLS needs a certificate and its key",
            remedy="give --tls-cert FILE and --tls-key FILE, or neither",
            code="missing-flag",
        )
    return str(call.flags[flag])
