"""This node's static pods for another version or another configuration: what is there, and what is to be, with others' changes in it.

Only looks. The comparison itself is in three_way.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Optional

from kubeup.config.types import Component, NodeConfig
from kubeup.engine.plan import Difference, flatten
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.releases import RELEASES, parse_version, version_of_image
from kubeup.yaml_files import containers_of_pod, dump_yaml, is_same_yaml, load_mapping

with lazily:
    from kubeup.engine import records
    from kubeup.node import etcd_data, own_manifests
    from kubeup.swap import proof, store
    from kubeup.upgrade import three_way


@frozen
class Target:
    """One static pod. former: the text on disk. base: the text as a tool last wrote it: kb's record, else the rendering for the present
    version and the stored configuration. wanted: the text that is to be; the same as `former` if nothing changes.

    edits: what others changed since, as it was written (wanted) and as it is (found). conflicts: those of them that the new one changes
    too, or that cannot be kept, as they are to be (wanted) and as they are (found)."""

    name: str
    former: str
    base: str
    wanted: str
    edits: tuple[Difference, ...] = ()
    conflicts: tuple[Difference, ...] = ()

    @property
    def is_changed(self) -> bool:
        return not is_same_yaml(self.former, self.wanted)


@frozen
class Asked:
    """What somebody asks for now, beside what the stored configuration says. options: component -> the names of its options. prefers_new:
    what the new configuration changes counts more than what others made of it. older: what was stored before, newest first, as a manifest
    of this node may still have it."""

    options: Mapping[str, Collection[str]] = field(default_factory=dict)
    prefers_new: bool = False
    older: Sequence[NodeConfig] = ()


_NOTHING = Asked()


def plan_targets(
    host: Host,
    paths: Paths,
    *,
    former: NodeConfig,
    config: NodeConfig,
    keep_edits: bool = True,
    asked: Asked = _NOTHING,
) -> tuple[Target, ...]:
    """The static pods of this node. former: the stored configuration, with the version that runs now; config: as it is to be.

    Raises UsageError (patches-directory-missing, patch-invalid, patch-failed), HostError if a manifest cannot be read.
    """
    kept = records.load_records(host, paths.records)
    here = [name for name in store.COMPONENTS if host.exists(paths.manifest(name))]
    return tuple(
        _plan_target(
            host, paths, name=name, former=former, config=config, keep_edits=keep_edits, kept=kept, asked=asked
        )
        for name in here
    )


def _plan_target(
    host: Host,
    paths: Paths,
    *,
    name: str,
    former: NodeConfig,
    config: NodeConfig,
    keep_edits: bool,
    kept: records.Records,
    asked: Asked,
) -> Target:
    path = paths.manifest(name)
    text = host.read_text(path)
    found = load_mapping(text, str(path))
    present = _with_own_version(former, found, name=name)
    wanted, rendered, *older = (
        own_manifests.render_own(host, paths, config=one, component=name) for one in (config, present, *asked.older)
    )
    if name == "etcd":  # its members and its data are not a matter of the configuration
        wanted, rendered, *older = (etcd_data.keep_initial_cluster(pod, found) for pod in (wanted, rendered, *older))
        wanted = _with_newer_image(wanted, found)
    recorded_text = find_recorded(kept, path)
    recorded = load_mapping(recorded_text, str(path)) if recorded_text else None
    merged = found
    for base in (
        *reversed(older),
        rendered,
    ):  # what equals one of them is the tool's own; the last merge says what is not
        merge = three_way.Merge(
            name,
            explicit=find_explicit(config, name),
            keeps=keep_edits or base is not rendered,
            asked=asked.options.get(name, ()),
            prefers_new=asked.prefers_new and base is rendered,
        )
        merged = merge.run(base, merged, wanted=wanted, recorded=recorded)
    new = text if merged == three_way.join_words(found) else dump_yaml(merged)
    return Target(name, text, recorded_text or dump_yaml(rendered), new, tuple(merge.edits), tuple(merge.conflicts))


def _with_own_version(former: NodeConfig, found: Mapping[str, Any], *, name: str) -> NodeConfig:
    """The configuration with the version that this component runs: an upgrade that was left half done has the former one of some, and a
    field that only that version writes is nobody's change. etcd's image says nothing of Kubernetes."""
    own = version_of_image(proof.image_of(found)) if name != "etcd" else None
    running = parse_version(former.cluster.kubernetes_version)
    if own is None or running is None or own.minor == running.minor or own.minor not in RELEASES:
        return former
    return replace(former, cluster=replace(former.cluster, kubernetes_version=own.text))


@frozen
class Changed:
    """One field of a manifest: its value now, and those that it had. "" if it is not there."""

    field: str
    wanted: str
    former: frozenset[str]

    def is_left_in(self, fields: Mapping[str, str]) -> bool:
        """Whether a pod, flattened, still has one of the former values."""
        found = fields.get(self.field, "")
        return found != self.wanted and found in self.former


def find_changes(
    host: Host, paths: Paths, *, formers: Sequence[NodeConfig], config: NodeConfig
) -> dict[str, list[Changed]]:
    """Component of this node -> what the configuration changes in its manifest, against any of the former ones."""
    changes: dict[str, list[Changed]] = {}
    for name in (name for name in store.COMPONENTS if host.exists(paths.manifest(name))):
        wanted, *before = (
            flatten(own_manifests.render_own(host, paths, config=one, component=name)) for one in (config, *formers)
        )
        found: list[Changed] = []
        for one in dict.fromkeys((*wanted, *(key for fields in before for key in fields))):
            value = wanted.get(one, "")
            others = frozenset(fields.get(one, "") for fields in before) - {value}
            if others:
                found.append(Changed(one, value, others))
        if found:
            changes[name] = found
    return changes


def find_recorded(kept: records.Records, path: Path) -> Optional[str]:
    """The manifest as kb last wrote it, or took it over; None if there is no record."""
    for items in kept.steps.values():
        content = items.get(str(path), {}).get("content")
        if isinstance(content, str):
            return content
    return None


def find_explicit(config: NodeConfig, name: str) -> frozenset[str]:
    """The options of a component that the stored configuration names."""
    cluster = config.cluster
    owners: Mapping[str, Optional[Component]] = {
        "etcd": cluster.local_etcd,
        "kube-apiserver": cluster.api_server,
        "kube-controller-manager": cluster.controller_manager,
        "kube-scheduler": cluster.scheduler,
    }
    own = owners[name]
    return frozenset(arg.name for arg in own.extra_args) if own else frozenset()


def _with_newer_image(wanted: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """etcd with the image that runs, where that is newer than the one that the release names: etcd never goes back. Source: PerformStaticPodUpgrade of
    cmd/kubeadm/app/phases/upgrade/staticpods.go"""
    (place, tag), (_, own_tag) = (proof.image_of(pod).rpartition(":")[::2] for pod in (wanted, found))
    new, now = parse_version(tag), parse_version(own_tag)
    if new and now and now.key > new.key:
        containers_of_pod(wanted)[0]["image"] = f"{place}:{own_tag}"
    return wanted
