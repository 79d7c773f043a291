"""kb mirror sync: push the content of layouts into an existing registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from kubeup.airgap import oci_layout, registry_client
from kubeup.airgap.mirror_catalog import Log
from kubeup.airgap.oci_layout import Layout, Place
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost


def sync(
    local: LocalHost,
    layouts: Sequence[Layout],
    *,
    base: str,
    prefix: str = "",
    tls: Optional[Tls] = None,
    tell: Log = lambda text: None,
) -> Iterator[str]:
    """Push every image to a registry, under its name without the registry (and below `prefix`); yield each when it is
    done. Of an image index only the part in the layout can be pushed. Many registries refuse an index with missing
    children, so if there is only one manifest, it is pushed under the tag instead.

    Raises registry.Refused, Unreachable, HostError (blob-damaged).
    """
    blobs: dict[str, Place] = {}
    for item in layouts:
        blobs.update(item.blobs)
    credentials = registry_client.read_credentials(local, base.partition("://")[2].partition("/")[0])
    server = registry_client.Registry(local, base, credentials, tls=tls, tell=tell)
    for item in layouts:
        whole = Layout(item.path, item.index, item.index_bytes, blobs, item.signature, item.names)
        for name, entry in sorted(item.names.items()):
            ref = registry_client.parse_ref(name)
            repository = f"{prefix.strip('/')}/{ref.repository}".lstrip("/")
            _push_image(
                local, whole, server=server, repository=repository, reference=ref.tag or ref.digest, entry=entry
            )
            yield f"{server.base.partition('://')[2]}/{repository}:{ref.tag or ref.digest}"


def _push_image(
    local: LocalHost,
    whole: Layout,
    *,
    server: registry_client.Registry,
    repository: str,
    reference: str,
    entry: Mapping[str, Any],
) -> None:
    """Push blobs before manifests, and manifests before the indexes that name them, each once: an index can name
    another one twice, and so on."""
    document, children = _read_index(local, whole, entry=entry)
    while "manifests" in document and len(children) == 1:
        entry = children[0]
        document, children = _read_index(local, whole, entry=entry)
    waiting, seen = [(entry, False)], set()
    while waiting:
        descriptor, are_children_there = waiting.pop()
        digest = str(descriptor["digest"])
        if not are_children_there:
            if digest not in seen:
                seen.add(digest)
                waiting.append((descriptor, True))
                waiting += [(child, False) for child in _read_index(local, whole, entry=descriptor)[1]]
            continue
        document, children = _read_index(local, whole, entry=descriptor)
        for part in [*([document["config"]] if "config" in document else []), *(document.get("layers") or [])]:
            name, place = str(part["digest"]), whole.blobs.get(str(part["digest"]))
            if place is not None and name not in seen and not server.has_blob(repository, name):
                server.push_blob(
                    local,
                    repository,
                    digest=name,
                    size=place.size,
                    content=oci_layout.read_checked(local, place, digest=name),
                )
            seen.add(name)
        data, kind = (
            oci_layout.read_document(local, whole.blobs[digest], digest=digest),
            descriptor.get("mediaType") or document.get("mediaType"),
        )
        if descriptor is entry and len(children) < len(document.get("manifests") or []):
            data = oci_layout.as_json({**document, "manifests": children})  # only the children that the bundle has
        server.push_manifest(repository, reference if descriptor is entry else digest, media_type=str(kind), data=data)


def _read_index(
    local: LocalHost, whole: Layout, *, entry: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A document, and the documents that it names and the layout has."""
    document = oci_layout.read_json_blob(local, whole, digest=str(entry["digest"])) or {}
    return document, [child for child in document.get("manifests") or [] if child["digest"] in whole.blobs]
