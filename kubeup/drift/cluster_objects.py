"""Objects of the cluster, against the cluster's configuration: the ConfigMaps of kubeadm and kb, CoreDNS and kube-proxy.

What drifted is what somebody else set, by managedFields, and differs from what kb and kubeadm write for the versions that are about: this
node's and the stored one, since another control plane may have been upgraded. No node's record counts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from kubeup.cluster import addons, field_owners, objects
from kubeup.cluster.api import Api, Object, path_of
from kubeup.cluster.field_owners import Owner
from kubeup.config.types import NodeConfig
from kubeup.drift.drifted import Drift, Ground, fingerprint, parse_moment
from kubeup.engine import cluster_items
from kubeup.engine.plan import Difference, compare_documents, compare_lines, show_value
from kubeup.lazy_modules import lazily
from kubeup.releases import Release, find_release
from kubeup.yaml_files import YAMLError, load_yaml, pick_like

with lazily:
    from kubeup.node import kubelet
    from kubeup.phases import addons as addon_phases
    from kubeup.phases import upgrade_addons
    from kubeup.upgrade import kept_edits

_SYSTEM, _PUBLIC = "kube-system", "kube-public"
_PROXY, _DNS = "kube-proxy", "coredns"


@dataclass
class Wanted:
    """One object of the cluster. texts: for a ConfigMap, its data as kb and kubeadm write it, by key, one text for each version; () where
    only people know it. manifests: the whole object, one for each version."""

    kind: str
    name: str
    namespace: str = _SYSTEM
    texts: Optional[Mapping[str, Sequence[str]]] = None
    manifests: Sequence[Object] = ()

    @property
    def title(self) -> str:
        """`configmap/kube-system/kube-proxy`"""
        return "/".join(filter(None, (self.kind.lower(), self.namespace, self.name)))

    @property
    def path(self) -> str:
        return path_of(self.kind, self.name, namespace=self.namespace)


_KUBEADM = Wanted("ConfigMap", "kubeadm-config", texts={"ClusterConfiguration": ()})
_RESTORE = (
    "correct it, joins and upgrades need it: kubectl -n kube-system edit configmap kubeadm-config; what it was before a change of kb's is in "
    "ConfigMap kube-system/kb-former-config"
)


def look_at_cluster(ground: Ground) -> Iterator[Drift]:
    """Every object that differs. Raises what the API raises."""
    if ground.damage:
        yield Drift(
            _KUBEADM.title,
            _KUBEADM.title,
            "it is not understood",
            found=ground.damage,
            remedy=_RESTORE,
            is_of_cluster=True,
        )
    if ground.api is None:
        return
    for wanted in list_wanted(ground, ground.api):
        found = ground.api.get(wanted.path)
        if found is None:
            yield Drift(
                wanted.title, wanted.title, "it is not there", is_fixable=bool(wanted.manifests), is_of_cluster=True
            )
        elif wanted.texts is not None:
            yield from _look_at_data(ground, wanted, found=found)
            if objects.is_restart_due(found):  # kb was killed
                text = "its pods may still run with the former one"
                yield Drift(wanted.title, wanted.title, text, is_fixable=True, is_of_cluster=True)
        else:
            yield from _look_at_object(ground, wanted, found=found)


def find_wanted(ground: Ground, api: Api, *, title: str) -> Wanted:
    return next(one for one in list_wanted(ground, api) if one.title == title)


def choose_manifest(wanted: Wanted, found: Optional[Object]) -> Object:
    """The object as the version has it from which it differs least; as the stored version has it, if it is not there."""
    if found is None:
        return wanted.manifests[0]
    there = found

    def count(manifest: Object) -> int:
        if wanted.texts is None:
            return len(_compare_object(manifest, there, bases=wanted.manifests))
        data = there.get("data") or {}
        return sum(
            len(_compare_texts(wanted, key, text=str(data.get(key, "")), other=manifest["data"][key]))
            for key in wanted.texts
        )

    return min(wanted.manifests, key=count)


# ---- what is wanted


def list_wanted(ground: Ground, api: Api) -> Iterator[Wanted]:
    yield _KUBEADM
    pairs = _versions(ground)
    shared = [kubelet.render_kubelet_config(replace(config, kubelet={}), release).document for config, release in pairs]
    data = [{"kubelet": kubelet.dump_kubelet_config(one)} for one in shared]
    made = [
        objects.render_component_config("kubelet-config", one, generated_hash=kubelet.component_config_hash(one))
        for one in data
    ]
    yield Wanted("ConfigMap", "kubelet-config", texts={"kubelet": [one["kubelet"] for one in data]}, manifests=made)
    yield Wanted("ConfigMap", "cluster-info", _PUBLIC, texts={"kubeconfig": ()})
    cluster = ground.run.config.cluster
    if not cluster.proxy.disabled and _was_installed(api, _PROXY):
        yield from _list_kube_proxy(api, pairs)
    if not cluster.dns.disabled and _was_installed(api, _DNS):
        yield from _list_coredns(ground, pairs)


def _versions(ground: Ground) -> list[tuple[NodeConfig, Release]]:
    """The configuration for this node's version, and for the stored one if that is another."""
    config = ground.run.config
    here = ground.patient.config.cluster.kubernetes_version
    texts = dict.fromkeys((config.cluster.kubernetes_version, here))
    return [
        (replace(config, cluster=replace(config.cluster, kubernetes_version=one)), find_release(one)) for one in texts
    ]


def _was_installed(api: Api, name: str) -> bool:
    """Whether the addon was installed once: its ServiceAccount stays where somebody deletes its pods."""
    return api.get(path_of("ServiceAccount", name, namespace=_SYSTEM)) is not None


def _list_kube_proxy(api: Api, pairs: Sequence[tuple[NodeConfig, Release]]) -> Iterator[Wanted]:
    daemon_set = api.get(path_of("DaemonSet", _PROXY, namespace=_SYSTEM)) or {}
    env = upgrade_addons.read_proxy_env(daemon_set)
    rendered = [addons.render_kube_proxy(replace(one, kube_proxy={}, proxy_env=env), release) for one, release in pairs]
    yield from _by_object(rendered)


def _list_coredns(ground: Ground, pairs: Sequence[tuple[NodeConfig, Release]]) -> Iterator[Wanted]:
    running = addon_phases.read_running_dns(ground.run)
    rendered = [addons.render_coredns(one, release, running=replace(running, corefile="")) for one, release in pairs]
    yield from _by_object(rendered)


def _by_object(rendered: Sequence[Sequence[Object]]) -> Iterator[Wanted]:
    """The same object of each version side by side."""
    for first in rendered[0]:
        same = [one for version in rendered for one in version if _identity(one) == _identity(first)]
        kind, meta = str(first["kind"]), first["metadata"]
        texts = {key: [one["data"][key] for one in same] for key in first["data"]} if kind == "ConfigMap" else None
        yield Wanted(kind, str(meta["name"]), str(meta.get("namespace", "")), texts, same)


def _identity(obj: Object) -> tuple[str, str]:
    return str(obj["kind"]), str(obj["metadata"]["name"])


# ---- ConfigMaps, by key


def _look_at_data(ground: Ground, wanted: Wanted, *, found: Object) -> Iterator[Drift]:
    data = found.get("data") or {}
    for key, texts in (wanted.texts or {}).items():
        owner = _find_owner(ground, found, "data", key)
        text = str(data.get(key, ""))
        if key in data and owner is None:
            continue
        if key in data and any(_is_same(wanted, key, text=text, other=one) for one in texts):
            continue
        by_tool = bool(texts) and objects.HASH_ANNOTATION in (found["metadata"].get("annotations") or {})
        is_known = by_tool or wanted.name == _DNS
        rows = _choose([_compare_texts(wanted, key, text=text, other=one) for one in texts]) if is_known else []
        for row in rows or [Difference(wanted.title, key, "", fingerprint(text) if key in data else "")]:
            yield _drift(wanted, row, owner=owner, is_fixable=is_known)


def _is_same(wanted: Wanted, key: str, *, text: str, other: str) -> bool:
    return text == other or not _compare_texts(wanted, key, text=text, other=other)


def _compare_texts(wanted: Wanted, key: str, *, text: str, other: str) -> tuple[Difference, ...]:
    if key != "Corefile":
        try:
            return compare_documents(wanted.title, load_yaml(other), found=load_yaml(text))
        except YAMLError:
            pass
    return compare_lines(wanted.title, other, found=text)


def _choose(compared: Sequence[Sequence[Difference]]) -> Sequence[Difference]:
    """The differences from the version that differs least."""
    return min(compared, key=len, default=())


# ---- other objects


def _look_at_object(ground: Ground, wanted: Wanted, *, found: Object) -> Iterator[Drift]:
    owner = _find_owner(ground, found, "spec") or _find_owner(ground, found, "rules") or _find_owner(ground, found)
    if owner is None:
        return
    for row in _choose([_compare_object(one, found, bases=wanted.manifests) for one in wanted.manifests]):
        yield _drift(wanted, row, owner=owner, is_fixable=True)


def _compare_object(manifest: Object, found: Object, *, bases: Sequence[Object]) -> list[Difference]:
    name = cluster_items.Object(manifest).name
    if manifest["kind"] in upgrade_addons.MERGED:
        _, edits = kept_edits.keep_edits(manifest, found, bases=bases)
        return [Difference(name, one.field, one.wanted, one.found) for one in edits]
    return list(compare_documents(name, manifest, found=pick_like(found, manifest), is_whole=False))


# ---- who, and since when


def _find_owner(ground: Ground, found: Object, *fields: str) -> Optional[Owner]:
    """Who else set something in this field since the node was adopted; None if nobody did."""
    others = [one for one in field_owners.find_owners(found, fields) if parse_moment(one.since) >= ground.adopted]
    return max(others, key=lambda one: one.since, default=None)


def _drift(wanted: Wanted, row: Difference, *, owner: Optional[Owner], is_fixable: bool) -> Drift:
    who, since = (owner.manager, owner.since) if owner is not None else ("", "")
    place = f"kubectl -n {wanted.namespace} edit {wanted.kind.lower()} {wanted.name}"
    shown_wanted, shown_found = (show_value(row.field, value) for value in (row.wanted, row.found))
    return Drift(
        wanted.title,
        wanted.title,
        row.field or "it is not there",
        wanted=shown_wanted,
        found=shown_found,
        since=since,
        by=who,
        is_fixable=is_fixable,
        remedy="" if is_fixable else f"if nobody meant that, correct it: {place}",
        is_of_cluster=True,
    )
