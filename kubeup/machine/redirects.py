"""Follows HTTP redirects, which public download servers use, without leaving https."""

from __future__ import annotations

import urllib.parse

from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, Unreachable

REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5


def follow_redirect(url: str, location: str) -> str:
    """The URL that a server redirects to. Raises Unreachable if it leaves https or is no web address, because the content could then
    come from anybody."""
    target = urllib.parse.urljoin(url, location)
    if not target.startswith(("https://", "http://")) or (url.startswith("https://") and target.startswith("http://")):
        raise Unreachable(url, "other", text=f"it redirects to {target[:200]!a}, which is not https")
    return target


def get_page(host: Host, url: str, *, timeout_s: float = 10) -> tuple[str, HttpResponse]:
    """GET a URL and follow redirects, as dl.k8s.io and github.com send them. Returns the final URL and its answer, whatever the
    status. Raises Unreachable if there is no answer."""
    answer = host.http_get(url, timeout_s=timeout_s)
    for _ in range(_MAX_REDIRECTS):
        location = answer.headers.get("location")
        if answer.status not in REDIRECTS or not location:
            break
        url = follow_redirect(url, location)
        answer = host.http_get(url, timeout_s=timeout_s)
    return url, answer
