"""Plan items that live in the cluster: how each kind of object is inspected, compared and applied.

There is one class per kind. What Kubernetes wants in them is known by the phases, not here. Cluster items are compared with the
cluster's configuration, and no node records them. They never ask whether this is a dry run.
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
"""All that is reported of a token that is due."""


class _ClusterItem:
    """An item that lives in the cluster. No node records it."""

    is_of_cluster = True
    is_blind = False
    is_judged = False
    places = ()

    def record(self, fields: Fields) -> Fields:
        return {}


@frozen
class Object(_ClusterItem):
    """An API object, applied by server-side apply. Fields that the server or others add are theirs. A field that kb applied
    before and no longer wants is a difference too: the server removes it at the next apply."""

    manifest: Manifest

    @property
    def name(self) -> str:
        meta = self.manifest["metadata"]
        return f"{self.manifest['kind']} " + "/".join(filter(None, (meta.get("namespace", ""), meta["name"])))

    def wanted(self) -> Fields:
        return {"object": self.manifest}

    def allowed(self) -> Manifest:
        """All fields that kb may own in the object."""
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
    """A ConfigMap with an annotation that says whether a tool generated its content or a user provided it. With equal content the
    annotation is no difference: for a configuration that was found on a node, its origin is unknown."""

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
    """A ComponentConfig that the pods of a DaemonSet read only when they start: if its data changes, the pods are restarted. A note in it
    says so until then, so that they are restarted even if this run is killed in between.

    owner: the API path of the DaemonSet; told: the note that is printed when the pods are restarted."""

    manifest: Manifest
    owner: str
    told: str

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        if found is not None and objects.is_restart_due(found["object"]):
            return (Difference(self.name, "its pods may still run with the former one"),)
        return super().differences(wanted, found)

    def apply(self, run: Ground) -> Fields:
        before = run.api.get(run.api.object_path(self.manifest))
        is_due = before is not None and (objects.is_restart_due(before) or before.get("data") != self.manifest["data"])
        if is_due and run.api.get(self.owner) is not None:
            objects.apply_component_config(run.api, objects.with_restart_due(self.manifest))
            run.report.note(self.told)
            objects.restart_pods(run.api, self.owner, now=run.host.now())
        objects.apply_component_config(run.api, self.manifest)
        return self.wanted()


@frozen
class RestartedPods(_ClusterItem):
    """Pods of a DaemonSet that may still run with their previous configuration: they are restarted one after another.

    owner: the API path of the DaemonSet."""

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
        return (Difference(self.name, "they may still run with the old configuration"),)

    def apply(self, run: Ground) -> Fields:
        if run.api.get(self.owner) is not None:
            objects.restart_pods(run.api, self.owner, now=run.host.now())
        return {}


@frozen
class PatchedFields(_ClusterItem):
    """Fields of kb's in an object that others create and maintain.

    title: their name; path: the API path of the object; spec: the wanted values, as plain values; plan: takes the object and
    returns the merge patch that it needs, or None; wait: waits until the object exists."""

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
    """ConfigMap cluster-info. The controller-manager owns its signatures; they are removed when the signed content changes."""

    manifest: Manifest

    def apply(self, run: Ground) -> Fields:
        objects.apply_cluster_info(run.api, self.manifest)
        return self.wanted()


@frozen
class AppliedManifest(_ClusterItem):
    """A third-party manifest. It is applied when its inputs change, and never inspected: from then on its operator, or people,
    manage its objects.

    title: `manifest URL`; inputs: everything that the objects are made from; install: applies them."""

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
    """A bootstrap token. It expires by itself, which is no drift: a new one is made then.

    title: its name; kind: what identifies the token; for a token that kb generates, only its purpose; is_valid: whether a valid
    token of this kind exists."""

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
    """What a patch would change, apart from the resourceVersion that it was made for."""
    wanted = {**patch, "metadata": {**patch.get("metadata", {})}}
    wanted["metadata"].pop("resourceVersion", None)
    return compare_documents(item, wanted, found=pick_like(found, wanted), is_whole=False) or (
        Difference(item, DIFFERS),
    )
