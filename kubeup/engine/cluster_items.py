"""The items of plans that the cluster holds: how each kind of object is looked at, told apart, and applied.

Owns one class a kind, and no knowledge of what Kubernetes wants in them: phases say that. Cluster items are compared with the cluster's
configuration, and no node records them. Must not ask whether this is a dry run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from kubeup.engine.items import DIFFERS
from kubeup.engine.plan import Difference, Fields, Ground, compare_documents
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.yaml_files import covers, pick_like

with lazily:
    from kubeup.cluster import field_owners, objects

Manifest = dict[str, Any]

EXPIRED = "it has expired, or is not there"
"""What is told of a token."""


class _ClusterItem:
    """What the cluster holds. No node records it."""

    is_of_cluster = True
    is_blind = False
    is_judged = False
    places = ()

    def record(self, fields: Fields) -> Fields:
        return {}


@frozen
class Object(_ClusterItem):
    """An object of the cluster, by server-side apply: what kb says of it; what the server and others add is theirs. What kb said of
    it before and says no more is a difference too: the server takes it away at the next apply."""

    manifest: Manifest

    @property
    def name(self) -> str:
        meta = self.manifest["metadata"]
        return f"{self.manifest['kind']} " + "/".join(filter(None, (meta.get("namespace", ""), meta["name"])))

    def wanted(self) -> Fields:
        return {"object": self.manifest}

    def allowed(self) -> Manifest:
        """What may be there of kb's."""
        return self.manifest

    def look(self, run: Ground) -> Optional[Fields]:
        found = run.api.get(run.api.object_path(self.manifest))
        return None if found is None else {"object": found}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        if found is None:
            return (Difference(self.name, ""),)
        if covers(found["object"], wanted["object"]):
            left_over = field_owners.find_left_over(found["object"], self.allowed())
            return tuple(
                Difference(self.name, f"{field}, which is no longer needed, is still there") for field in left_over
            )
        shown = compare_documents(
            self.name, wanted["object"], found=pick_like(found["object"], wanted["object"]), is_whole=False
        )
        is_secret = self.manifest["kind"] == "Secret"
        return (Difference(self.name, DIFFERS),) if is_secret or not shown else shown

    def apply(self, run: Ground) -> Fields:
        objects.apply_objects(run.api, [self.manifest])
        return self.wanted()


@frozen
class ComponentConfig(Object):
    """A ConfigMap that says by an annotation whether a tool made its content up, or a user gave it. While the content is the same,
    who it was is no difference: of a configuration that was found on a node nobody knows it."""

    manifest: Manifest

    def allowed(self) -> Manifest:
        meta = self.manifest["metadata"]
        annotations = {objects.HASH_ANNOTATION: "", **meta.get("annotations", {})}
        return {**self.manifest, "metadata": {**meta, "annotations": annotations}}

    def apply(self, run: Ground) -> Fields:
        objects.apply_component_config(run.api, self.manifest)
        return self.wanted()


@frozen
class PodConfig(ComponentConfig):
    """One that the pods of a DaemonSet read when they start, and never again: where another one was there, they are started again.
    owner: the DaemonSet's path; told: what is said then."""

    manifest: Manifest
    owner: str
    told: str

    def apply(self, run: Ground) -> Fields:
        before = run.api.get(run.api.object_path(self.manifest))
        objects.apply_component_config(run.api, self.manifest)
        if before and before.get("data") != self.manifest["data"] and run.api.get(self.owner) is not None:
            run.report.note(self.told)
            objects.restart_pods(run.api, self.owner, now=run.host.now())
        return self.wanted()


@frozen
class RestartedPods(_ClusterItem):
    """Pods of a DaemonSet that may run from what their configuration was before: started again, one after the other. owner: its path."""

    title: str
    owner: str

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return {}

    def look(self, run: Ground) -> Optional[Fields]:
        return {}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return (Difference(self.name, "they may run from what was before"),)

    def apply(self, run: Ground) -> Fields:
        if run.api.get(self.owner) is not None:
            objects.restart_pods(run.api, self.owner, now=run.host.now())
        return {}


@frozen
class PatchedFields(_ClusterItem):
    """Fields of kb's in an object that others make and keep. title: what they are called; path: of the object; spec: what is wanted,
    in plain values; plan: out of the object, the merge patch that is missing, or None; wait: until the object is there."""

    title: str
    path: str
    spec: Fields
    plan: Callable[[Manifest], Optional[Manifest]]
    wait: Callable[[], object]

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return self.spec

    def look(self, run: Ground) -> Optional[Fields]:
        found = run.api.get(self.path)
        return None if found is None else {"object": found}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        if found is None:
            return (Difference(self.name, ""),)
        patch = self.plan(found["object"])
        return () if patch is None else _compare_patch(self.name, patch, found=found["object"])

    def apply(self, run: Ground) -> Fields:
        self.wait()
        objects.patch_fields(run.api, self.path, plan=self.plan)
        return self.wanted()


@frozen
class ClusterInfo(Object):
    """ConfigMap cluster-info, of which the controller-manager owns the signatures: they go where what they sign changes."""

    manifest: Manifest

    def apply(self, run: Ground) -> Fields:
        objects.apply_cluster_info(run.api, self.manifest)
        return self.wanted()


@frozen
class AppliedManifest(_ClusterItem):
    """Objects of others, applied when what names them is another than before, and never looked at again: from then on they are
    run by their own operator, or by people. title: `manifest URL`; inputs: all that they are made of; install: applies them."""

    title: str
    inputs: Fields
    install: Callable[[Ground], None]

    is_blind = True

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return self.inputs

    def look(self, run: Ground) -> Optional[Fields]:
        return self.inputs

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return ()

    def apply(self, run: Ground) -> Fields:
        self.install(run)
        return self.inputs


@frozen
class TokenSecret(Object):
    """A bootstrap token. It expires by itself, which is no drift: then another one is made. title: what it is called; kind: all that
    makes it this token, for one that kb makes up no more than what it is for; is_valid: whether a token that does for it is there."""

    manifest: Manifest
    title: str
    kind: Fields
    is_valid: bool

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return self.kind

    def look(self, run: Ground) -> Optional[Fields]:
        return self.kind if self.is_valid else None

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return () if found is not None else (Difference(self.name, EXPIRED),)


def _compare_patch(item: str, patch: Manifest, *, found: Manifest) -> tuple[Difference, ...]:
    """What a patch would change; the version for which it was made is no part of it."""
    wanted = {**patch, "metadata": {**patch.get("metadata", {})}}
    wanted["metadata"].pop("resourceVersion", None)
    return compare_documents(item, wanted, found=pick_like(found, wanted), is_whole=False) or (
        Difference(item, DIFFERS),
    )
