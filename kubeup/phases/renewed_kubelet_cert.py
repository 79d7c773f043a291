"""Has the kubelet make its own serving certificate again, once the year of the first one is over.

The kubelet makes /var/lib/kubelet/pki/kubelet.crt when it starts without one, for the names that it knows best, so kb takes the pair away
and restarts it. Pods go on running. What somebody else issued, or the cluster signs, is never touched. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kubeup.engine.run import Run
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.waiting import watch
from kubeup.phases import kubelet_start

with lazily:
    from kubeup.node import certificates, former_certs, kubelet_cert, pki, torn_pairs

TIMEOUT_S = 60.0
"""How long the kubelet may take to present its new certificate: two seconds as a rule."""


def find_obstacle(ctx: Run, path: Path, *, config: Mapping[str, object]) -> str:
    """Why the certificate at `path` is not the kubelet's to make again, in words; "" if it is. config: the kubelet's configuration."""
    if config.get("serverTLSBootstrap") is True:
        return "the kubelet requests it from the cluster (serverTLSBootstrap), and renews it by itself"
    if config.get("tlsCertFile"):
        return f"the kubelet is told to present {path} (tlsCertFile), and whoever issued that renews it"
    if torn_pairs.was_taken_away(ctx.host, ctx.paths, path=path):
        return ""
    if not ctx.host.exists(path):
        return f"there is no {path}: the kubelet makes it when it starts"
    if ctx.host.read_link(path) is not None:
        return f"{path} is a link: whoever made it renews what it leads to"
    if not kubelet_cert.is_made_by_kubelet(pki.read_certs(ctx.host, path)[0]):
        return f"the kubelet did not make {path}: whoever issued it renews it"
    if services.find(ctx.host) is None or not services.is_active(ctx.host, "kubelet"):
        return "the kubelet does not run"
    return ""


def make_again(ctx: Run, path: Path, *, port: int) -> former_certs.Former:
    """Have the kubelet make the pair at `path` again, and wait until it presents the new one. Returns the copies of the former pair.

    port: where the kubelet serves. A run that was cut off is gone on with: the certificate goes first and comes back last, so that as long as
    it is there the pair is whole.

    Raises HostError (kubelet-certificate-not-made, and those of a restart), after the former pair has come back.
    """
    host, files = ctx.host, (path, path.with_suffix(".key"))
    found = None if host.exists(path) else former_certs.find_former(host, ctx.paths, files=files)
    former = found or former_certs.keep_former(host, ctx.paths, files=files)
    rights = {one: _rights(host, one) for one in former.files}
    before = host.read_text(former.copy_of(path))
    for one in files:
        host.remove(one)

    def look() -> str:
        if not all(host.exists(one) for one in files):
            return f"the kubelet has not made {path}"
        served = host.served_cert("127.0.0.1", port)
        shown = certificates.parse_shown(served) if served else ()
        made = certificates.parse_shown(host.read_text(path))
        return "" if shown and shown[:1] == made[:1] else f"the kubelet does not present it on port {port}"

    try:
        kubelet_start.restart_kubelet(ctx)
        missing, waited_s = watch(host, look, timeout_s=TIMEOUT_S, poll_s=0.5)
        if missing or host.read_text(path) == before:
            raise HostError(
                "the kubelet did not make its serving certificate again",
                cause=f"{missing} after {waited_s:.0f} s",
                remedy=f"see why: {services.say_log(host, 'kubelet')}",
                code="kubelet-certificate-not-made",
            )
    except KbError:
        for one in reversed(former.files):
            mode, owner = rights[one]
            host.write_file(one, host.read_bytes(former.copy_of(one)), mode=mode, owner=owner)
        kubelet_start.restart_kubelet(ctx)
        raise
    return former


def _rights(host: Host, path: Path) -> tuple[int, tuple[int, int]]:
    """Mode and owner of the file; if it is not there, those that the kubelet gives it."""
    found = host.stat(path)
    if found is None:
        return 0o600 if path.suffix == ".key" else 0o644, (0, 0)
    return found.mode & 0o7777, (found.uid, found.gid)
