"""The versions that a cluster could go to, and where each was found: the images on this node, a bundle, the mirror, the official place.

Only looks. What does not answer is said, and costs a second or two at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

from kubeup import releases
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.host import Host
from kubeup.machine.redirects import get_page
from kubeup.node import image_pulls
from kubeup.releases import Version

OFFICIAL = "https://dl.k8s.io/release/stable-1.{}.txt"
ASK_S = 2.0
_IMAGE = re.compile(r"/kube-apiserver:(v\d+\.\d+\.\d+[^@\s]*)$")


@frozen
class Found:
    """A version, and where it was found, in words."""

    version: Version
    source: str


def find_in_runtime(host: Host, socket: str) -> Iterator[Found]:
    """The versions whose API server's image is on this node."""
    try:
        names = image_pulls.list_images(host, socket)
    except KbError:
        return
    for name in names:
        match = _IMAGE.search(name)
        version = releases.parse_version(match.group(1)) if match else None
        if version is not None:
            yield Found(version, "the images of this node")


def find_at_mirror(host: Host, url: str) -> Iterator[Found]:
    """The versions of the API server's images that a registry has."""
    for repository in ("registry.k8s.io/kube-apiserver", "kube-apiserver"):
        try:
            answer = host.http_get(f"{url.rstrip('/')}/v2/{repository}/tags/list", timeout_s=ASK_S)
            found = parse_json(answer.body, "the tags") if answer.status == 200 else None
        except (KbError, ValueError):
            return
        tags = found.get("tags") if isinstance(found, dict) else None
        for tag in tags if isinstance(tags, list) else ():
            version = releases.parse_version(str(tag))
            if version is not None:
                yield Found(version, f"the mirror {url}")
        if tags:
            return


def find_official(host: Host, minors: Iterable[int]) -> list[Found]:
    """The newest patch of these minors that was released. [] if the official place does not answer."""

    def ask(minor: int) -> Optional[Found]:
        url = OFFICIAL.format(minor)
        try:
            _, answer = get_page(host, url, timeout_s=ASK_S)
        except KbError:
            return None
        text = answer.body[:100].decode(errors="replace").strip() if answer.status == 200 else ""
        version = releases.parse_version(text)
        return Found(version, "dl.k8s.io") if version is not None else None

    with ThreadPoolExecutor(2) as pool:
        return [found for found in pool.map(ask, minors) if found is not None]


def choose_next(found: Iterable[Found], now: Version) -> tuple[Found, ...]:
    """Of what was found, the newest patch of the present minor, if it is newer, and the newest of the next one. Pre-releases are left
    out."""
    rows = [one for one in found if not one.version.prerelease and one.version.major == now.major]
    best: dict[int, Found] = {}
    for one in rows:
        minor = one.version.minor
        is_next = minor in (now.minor, now.minor + 1) and one.version.key > now.key
        if is_next and (minor not in best or one.version.key > best[minor].version.key):
            best[minor] = one
    return tuple(best[minor] for minor in sorted(best))
