"""The mirror moves to another control plane: its bundles are copied there, that node serves them, and each node is pointed to it by itself.

The former mirror goes on until it is stopped by name, so no pull is in vain meanwhile. This module copies bundles, compares two mirrors, and
takes a mirror away; serve_mirror.py and runtime_registries.py do the rest. kb reaches no other machine but the former mirror, by HTTPS.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.engine.items import Gone, Unit
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.frozen_values import frozen, frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.phases import local_bundle, serve_mirror
from kubeup.phases.find_mirror import mirror_url

with lazily:
    from kubeup.airgap import mirror_answers, oci_layout, registry_client
    from kubeup.cluster import api

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror
    from kubeup.machine.host import Host

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,200}\.tar")
_MOST_BUNDLES = 1000
_TIMEOUT_S = 15.0


@frozen
class Bundle:
    """A bundle that a mirror serves. size: of its file, in bytes."""

    name: str
    size: int


@frozen_by_name
class MirrorMoveRun(Run):
    """files: the bundles that the user gave; offered: those of `former`, the mirror that this node has asked until now, if none were given."""

    former: str = ""
    files: tuple[Path, ...] = ()
    offered: tuple[Bundle, ...] = ()
    former_mirror: object = None


# ---- the former mirror


def list_bundles(host: Host, mirror: Mirror) -> tuple[Bundle, ...]:
    """The bundles of a mirror of kb's. Raises HostError (mirror-not-movable)."""
    url = f"{mirror.url}{mirror_answers.BUNDLES}"
    try:
        answer = host.http_get(url, tls=mirror.tls, timeout_s=_TIMEOUT_S)
        rows = json.loads(answer.body)["bundles"] if answer.status == 200 else []
        found = tuple(Bundle(str(row["name"]), int(row["size"])) for row in rows[:_MOST_BUNDLES])
        cause = (
            "" if found else f"it answers {url} with status {answer.status}: it is of an older kb, or no mirror of kb's"
        )
    except Unreachable as error:
        found, cause = (), error.cause
    except (ValueError, KeyError, TypeError):
        found, cause = (), f"what it answers at {url} is no list of bundles"
    odd = next((one.name for one in found if not _NAME.fullmatch(one.name) or one.size <= 0), "")
    if cause or odd:
        raise HostError(
            f"the bundles of the mirror {mirror.url} cannot be fetched from it",
            cause=cause or f"it names a bundle {odd[:80]!r}",
            remedy="copy the bundles here, from there or from where they were made, and name them: kb mirror move FILE...",
            code="mirror-not-movable",
        )
    return found


def find_missing(host: Host, former: Mirror, new: Mirror) -> list[str]:  # noqa: PLR0917
    """The images that one mirror serves and another one does not. Raises Unreachable."""
    ours = frozenset(_list_images(host, new))
    return [name for name in _list_images(host, former) if name not in ours]


def _list_images(host: Host, mirror: Mirror) -> list[str]:
    found = []
    for repository in _read_list(host, mirror, "/v2/_catalog", "repositories"):
        quoted = urllib.parse.quote(repository)
        found += [f"{repository}:{tag}" for tag in _read_list(host, mirror, f"/v2/{quoted}/tags/list", "tags")]
    return found


def _read_list(host: Host, mirror: Mirror, path: str, key: str) -> list[str]:  # noqa: PLR0917
    answer = host.http_get(f"{mirror.url}{path}", tls=mirror.tls, timeout_s=_TIMEOUT_S)
    try:
        return [str(item) for item in json.loads(answer.body).get(key) or []] if answer.status == 200 else []
    except (ValueError, AttributeError):
        return []


# ---- the bundles


def take_bundles(ctx: MirrorMoveRun) -> Outputs:
    """Copy the bundles here, and check every blob of them. Those that are here already stay. Raises HostError (disk-full, bundle-unreadable,
    bundle-truncated, blob-damaged, bundle-not-fit), Unreachable."""
    ctx.host.make_dir(local_bundle.MIRROR_FOLDER, mode=0o755)
    for path in ctx.files:
        if not _is_here(ctx.host, path.name, same_as=path):
            local_bundle.add_bundle(ctx.host, path, tell=ctx.report.waiting)
    missing = [one for one in ctx.offered if not _is_here(ctx.host, one.name, size=one.size)]
    _require_space(ctx.host, sum(one.size for one in missing))
    for one in missing:
        _fetch(ctx, one)
    return None


def foretell_bundles(ctx: MirrorMoveRun) -> Outputs:
    """For a dry run: the bundles that would come, which are not read."""
    for path in ctx.files:
        if not _is_here(ctx.host, path.name, same_as=path):
            ctx.host.write_stream(local_bundle.MIRROR_FOLDER / path.name, (), mode=0o600)
    for one in ctx.offered:
        if not _is_here(ctx.host, one.name, size=one.size):
            ctx.host.write_stream(local_bundle.MIRROR_FOLDER / one.name, (), mode=0o600)
    return None


def are_bundles_here(ctx: MirrorMoveRun) -> bool:
    given = all(_is_here(ctx.host, path.name, same_as=path) for path in ctx.files)
    return given and all(_is_here(ctx.host, one.name, size=one.size) for one in ctx.offered)


def _is_here(host: Host, name: str, *, size: int = 0, same_as: Path = Path()) -> bool:
    """Whether there is a bundle of this name with that size, or with the same index as another file."""
    path = local_bundle.MIRROR_FOLDER / name
    stat = host.stat(path)
    if stat is None or (size and stat.size != size):
        return False
    try:
        found = oci_layout.open_layout(host, path)
        return bool(size) or found.index_bytes == oci_layout.open_layout(host, same_as).index_bytes
    except HostError:
        return False


def _require_space(host: Host, size: int) -> None:
    free = host.free_bytes(local_bundle.MIRROR_FOLDER)
    if free < size + size // 10:
        raise HostError(
            f"the file system of {local_bundle.MIRROR_FOLDER} is too full for the mirror's bundles",
            cause=f"they have {size >> 20} MiB, and {free >> 20} MiB are free",
            remedy="remove what no node needs, where they are now: kb mirror list",
            code="disk-full",
        )


def _fetch(ctx: MirrorMoveRun, one: Bundle) -> None:
    mirror: Mirror = ctx.former_mirror  # type: ignore[assignment]
    url = f"{mirror.url}{mirror_answers.BUNDLES}{urllib.parse.quote(one.name)}"
    path = local_bundle.MIRROR_FOLDER / one.name
    own = path.with_name(f".{one.name}.new")
    ctx.report.waiting(f"copying {one.name} ({one.size >> 20} MiB) from {mirror.server}")
    try:
        ctx.host.write_stream(own, registry_client.open_url(ctx.host, url, offset=0, tls=mirror.tls), mode=0o600)
        for _ in _read_all(ctx.host, own):
            pass
        ctx.host.move_file(own, path)
    finally:
        ctx.host.remove(own)


def _read_all(host: Host, path: Path) -> Iterator[bytes]:
    """Every blob, checked against its digest."""
    for digest, place in oci_layout.open_layout(host, path).blobs.items():
        yield from oci_layout.read_checked(host, place, digest=digest)


# ---- what is left to do elsewhere


def list_remaining(ctx: MirrorMoveRun) -> list[str]:
    """Raises ApiRefused, Unreachable."""
    own, url = ctx.config.node.name, mirror_url(ctx.config)
    nodes = [str(node["metadata"]["name"]) for node in ctx.api.list(api.path_of("Node"))]
    others = [name for name in nodes if name != own]
    left = [f"on {', '.join(others)}: kb mirror use {url}"] if others else []
    if ctx.former:
        left.append(f"then where {ctx.former} runs: kb mirror stop")
    line = f"{serve_mirror.say_fetch(ctx)}(what kb token create --print-join-command prints here)"
    left.append(f"further nodes join with: {line}")
    return left


# ---- the end of a mirror


def plan_no_mirror(run: Run) -> Plan:
    """No mirror on this node: neither its unit, its bundles, nor its certificate. The copy of kb stays: other units may run it."""
    unit, cert = run.paths.systemd / serve_mirror.MIRROR_UNIT, run.paths.pki / "kb-mirror.crt"
    files = (unit, cert, cert.with_suffix(".key"))

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in (*files, local_bundle.MIRROR_FOLDER) if ground.host.exists(path)]

    def take_away(ground: Ground) -> None:
        if ground.host.exists(unit):
            Unit(serve_mirror.MIRROR_UNIT).take_back(ground.host)
        for path in files:
            ground.host.remove(path)
        ground.host.remove_tree(local_bundle.MIRROR_FOLDER)
        services.forget_removed_units(ground.host)

    return Plan(Gone("the mirror of this node", find, take_away, ("install/bundle", "install/mirror")))


def _wanted(ctx: MirrorMoveRun) -> object:
    return [*map(str, ctx.files), *((one.name, one.size) for one in ctx.offered)]


BUNDLES = Act(do=take_bundles, probe=are_bundles_here, spec=_wanted, foretell=foretell_bundles, live="node")
