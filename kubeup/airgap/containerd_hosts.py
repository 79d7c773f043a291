"""Which server containerd queries for which registry: one hosts.toml per upstream registry.

Owns the files in /etc/containerd/certs.d, and how a mirror is verified. Image names stay the same: only the runtime
knows of the mirror. runtime_fix.py owns containerd's own configuration. kubeadm has no equivalent.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Tls, Unreachable
from kubeup.trust import Anchors, Offered

with lazily:
    from kubeup.node import ca_pins

HEADER = "# Written by kb: images of {registry} come from a mirror.\n"
CA_FILE = Path("/etc/kubernetes/kb-mirror-ca.crt")
DEFAULT = "_default"
"""containerd's name for all registries without their own folder."""
_MAX_CA = 1 << 20
UPSTREAM_SERVERS = {"docker.io": "https://registry-1.docker.io"}


@frozen
class Mirror:
    """A mirror as nodes reach it. url: `https://10.0.0.11:5000`; ca: the CA of its certificate, if the system does not
    trust it already."""

    url: str
    ca: Optional[Anchors] = None

    @property
    def ca_pem(self) -> str:
        return self.ca.pem if self.ca else ""

    @property
    def tls(self) -> Optional[Tls]:
        return Tls(self.ca) if self.ca else None

    @property
    def server(self) -> str:
        """`10.0.0.11:5000`"""
        return urllib.parse.urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""


def render_hosts(registry: str, mirror: Mirror, *, is_only: bool) -> str:
    """The hosts.toml of one upstream registry. is_only: never query the upstream, even if the mirror lacks
    something."""
    upstream = mirror.url if is_only or registry == DEFAULT else UPSTREAM_SERVERS.get(registry, f"https://{registry}")
    path = urllib.parse.urlsplit(mirror.url).path.strip("/")
    endpoint = mirror.url.rstrip("/") if not path else mirror.url.replace(f"/{path}", f"/v2/{path}").rstrip("/")
    lines = [
        HEADER.format(registry=registry if registry != DEFAULT else "every other registry"),
        f'server = "{upstream}"\n\n' if registry != DEFAULT or is_only else "",
        f'[host."{endpoint}"]\n',
        '  capabilities = ["pull", "resolve"]\n',
        f'  ca = "{CA_FILE}"\n' if mirror.ca_pem else "",
        "  override_path = true\n" if path else "",
    ]
    text = "".join(lines)
    if is_only and mirror.ca_pem:
        # the fallback is the mirror too, and needs the same CA
        text = text.replace("\n\n[host", f'\nca = "{CA_FILE}"\n\n[host', 1)
    return text


def parse_mirror(text: str) -> str:
    """The mirror's URL in a hosts.toml that kb wrote; "" if somebody else wrote it."""
    found = re.search(r'^\[host\."([^"]+)"\]', text, re.MULTILINE)
    is_own = text.startswith(HEADER.partition("{")[0])
    return found.group(1).replace("/v2/", "/", 1) if is_own and found else ""


def plan_hosts(folder: Path, registries: Iterable[str], *, mirror: Mirror, is_only: bool) -> dict[Path, str]:
    """path -> text for every registry; with is_only also for all registries that are not named."""
    names = [*dict.fromkeys(registries), *([DEFAULT] if is_only else [])]
    files = {
        # an image named after the mirror cannot come from anywhere else, and perhaps not over https
        folder / name / "hosts.toml": render_hosts(name, mirror, is_only=is_only or name == mirror.server)
        for name in names
    }
    if mirror.ca_pem:
        files = {CA_FILE: mirror.ca_pem, **files}
    return files


def hosts_folder(config_path: str) -> Optional[Path]:
    """The folder that containerd's config_path refers to: the first of several; None if it is not set."""
    first = config_path.split(":")[0].strip()
    return Path(first) if first.startswith("/") else None


def find_mirror(host: Host, url: str, *, ca_hash: str = "", cluster_ca: Optional[Anchors] = None) -> Mirror:
    """The verified mirror behind `url`: verified with a pinned CA, the cluster's CA, or the system's CAs.

    Raises HostError: mirror-not-trusted, mirror-unreachable.
    """
    base = url.rstrip("/")
    if not base.startswith("https://"):
        return _require_answer(host, Mirror(base))
    if ca_hash:
        return _require_answer(host, Mirror(base, _pinned_ca(host, base, ca_hash=ca_hash, cluster_ca=cluster_ca)))
    if cluster_ca:
        try:
            return _require_answer(host, Mirror(base, cluster_ca))
        except HostError as error:
            if error.code != "mirror-not-trusted" or "expired" in error.cause:
                raise
    return _require_answer(host, Mirror(base))


def _pinned_ca(host: Host, base: str, *, ca_hash: str, cluster_ca: Optional[Anchors]) -> Anchors:
    """The pinned certificate: one of the cluster's, or one of those that the mirror itself presents. Other certificates
    that it presents are not trusted: a CA certificate is public, and anybody can present it next to their own."""
    pinned = ca_pins.keep_pinned(Offered(cluster_ca.pem), [ca_hash]) if cluster_ca else None
    if pinned:
        return pinned
    try:
        answer = host.http_get(f"{base}/ca.crt", tls=UNPROVEN, timeout_s=10, max_bytes=_MAX_CA)
    except Unreachable as error:
        raise _unreachable(base, error) from error
    offered = Offered(answer.body.decode(errors="replace") if answer.status == 200 else "")
    try:
        found = ca_pins.ca_cert_hashes(offered.pem) if offered.pem else ()
        pinned = ca_pins.keep_pinned(offered, [ca_hash]) if found else None
    except ValueError:
        found = ()
    if not pinned:
        raise HostError(
            f"the mirror {base} is not the one that --mirror-ca-hash pins",
            cause=f"its CA has the hash {', '.join(found)}"
            if found
            else f"it presents no CA ({answer.status} for /ca.crt)",
            remedy="take the line that kb init printed on the first control plane, or: kb token create --print-join-command",
            code="mirror-not-trusted",
        )
    return pinned


def _require_answer(host: Host, mirror: Mirror) -> Mirror:
    path = urllib.parse.urlsplit(mirror.url).path.strip("/")
    root = mirror.url[: -len(path)].rstrip("/") if path else mirror.url
    try:
        answer = host.http_get(f"{root}/v2/", tls=mirror.tls, timeout_s=10)
    except Unreachable as error:
        if error.reason == "tls":
            raise HostError(
                f"the mirror {mirror.url} is not trusted",
                cause=error.cause,
                remedy=_tls_remedy(error.cause),
                code="mirror-not-trusted",
            ) from error
        raise _unreachable(mirror.url, error) from error
    if answer.status not in (200, 401):
        raise HostError(
            f"{mirror.url} is not an image registry",
            cause=f"it answers /v2/ with status {answer.status}",
            remedy=f"check the address: curl -i {mirror.url}/v2/",
            code="mirror-unreachable",
        )
    return mirror


def _tls_remedy(cause: str) -> str:
    if "expired" in cause or "not yet valid" in cause:
        return "compare this node's clock (date); where the mirror runs: kb certs renew kb-mirror"
    return "pin the CA that signed it: --mirror-ca-hash sha256:...; kb init printed it"


def _unreachable(url: str, error: Unreachable) -> HostError:
    return HostError(
        f"the mirror {url} does not answer",
        cause=error.cause,
        remedy="on the control plane that serves it: systemctl status kb-mirror; and check that no firewall is in between",
        code="mirror-unreachable",
    )


def count_requests(host: Host, mirror: Mirror, *, addresses: Iterable[str]) -> Optional[int]:
    """How often these addresses have queried a mirror of kb's; None for other registries, which do not report it."""
    try:
        answer = host.http_get(f"{mirror.url}/metrics", tls=mirror.tls, timeout_s=10)
    except Unreachable:
        return None
    text = answer.body.decode(errors="replace")
    if answer.status != 200 or "kb_mirror_requests_total" not in text:
        return None
    own = set(addresses)
    rows = re.findall(r'^kb_mirror_client_requests_total\{client="([^"]*)"\} (\d+)$', text, re.MULTILINE)
    return sum(int(count) for client, count in rows if client in own)


def registries_of(catalog: Iterable[str], images: Iterable[str]) -> tuple[str, ...]:
    """The upstream registries: those of the images, and those in the catalog of kb's mirror (the first part of its
    names)."""
    named = [name.partition("/")[0] for name in catalog]
    hosts = [name for name in named if "." in name or ":" in name]
    return tuple(dict.fromkeys([*(image.partition("/")[0] for image in images), *hosts, "docker.io"]))
