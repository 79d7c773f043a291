"""kubeup/upgrade/kept_edits.py: what people changed in CoreDNS' and kube-proxy's objects outlives an upgrade."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster import addons
from kubeup.cluster.api import Object
from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.releases import RELEASES, Release
from kubeup.upgrade.kept_edits import keep_edits
from tests import fake_fields


def render(image: str = "coredns:v1", *, has_ports: bool = True) -> Object:
    container: Object = {
        "name": "coredns",
        "image": image,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "tcp", "containerPort": 53}],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    if has_ports:
        container["ports"].append({"name": "ready", "containerPort": 8181, "protocol": "TCP"})
    pod = {
        "containers": [container],
        "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
    }
    labels = {"k8s-app": "kube-dns"}
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    metadata = {"name": "coredns", "namespace": "kube-system", "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


BASES = [render("coredns:v0", has_ports=False), render("coredns:v1"), render("coredns:v2")]
POD = "spec.template.spec"
C = f"{POD}.containers[coredns]"


def pod_of(obj: Object) -> Any:
    return obj["spec"]["template"]["spec"]


def container_of(obj: Object) -> Any:
    return pod_of(obj)["containers"][0]


def edited(edit: Callable[[Object], object], *, by: str = "kubectl-edit", maker: str = "kubeadm Update") -> Object:
    """What the tool made, and then somebody changed."""
    before = render()
    owners = {maker: set(fake_fields.lay_out(before))} if maker else {}
    after = copy.deepcopy(before)
    edit(after)
    if maker:
        fake_fields.update(before, after, owners, manager=by)
        after["metadata"]["managedFields"] = managed(owners)
    return after


def managed(owners: fake_fields.Owners) -> list[Object]:
    return [
        {
            "manager": owner.rpartition(" ")[0],
            "operation": owner.rpartition(" ")[2],
            "fieldsV1": fake_fields.nest(fields),
        }
        for owner, fields in owners.items()
    ]


def upgraded(found: Object) -> tuple[Object, list[tuple[str, str, str, bool]]]:
    """The object after it was applied for the new version, and what was edited."""
    manifest, edits = keep_edits(render("coredns:v2"), found, bases=BASES)
    entries = found["metadata"].get("managedFields") or [{"manager": "before-first-apply", "operation": "Update"}]
    owners = {f"{one['manager']} {one['operation']}": _fields(one.get("fieldsV1") or {}) for one in entries}
    bare = {**found, "metadata": {k: v for k, v in found["metadata"].items() if k != "managedFields"}}
    if not found["metadata"].get("managedFields"):
        owners = {fake_fields.BEFORE: set(fake_fields.lay_out(bare))}
    after = fake_fields.apply(bare, manifest, owners, manager="kb", force=True)
    return after, [(edit.field, edit.found, edit.wanted, edit.is_kept) for edit in edits]


def _fields(tree: Object, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for step, inner in tree.items():
        found |= _fields(inner, (*at, step)) or {(*at, step)}
    return found


def test_what_nobody_changed_becomes_the_new_version_s() -> None:
    after, edits = upgraded(edited(lambda obj: None))
    assert after["spec"] == render("coredns:v2")["spec"] and edits == []


def set_memory(obj: Object) -> None:
    container_of(obj)["resources"]["limits"]["memory"] = "300Mi"


def tolerate(obj: Object) -> None:
    pod_of(obj)["tolerations"].append({"key": "ours", "operator": "Exists"})


def drop_limits(obj: Object) -> None:
    del container_of(obj)["resources"]["limits"]


def recreate(obj: Object) -> None:
    obj["spec"]["strategy"] = {"type": "Recreate"}


def change_args(obj: Object) -> None:
    container_of(obj)["args"].append("-quiet")


def move_port(obj: Object) -> None:
    container_of(obj)["ports"][0]["containerPort"] = 1053


def pin(obj: Object) -> None:
    pod_of(obj)["nodeSelector"]["disk"] = "ssd"


EDITS = [
    (
        pin,
        [
            (
                f"{POD}.nodeSelector",
                '{"kubernetes.io/os": "linux", "disk": "ssd"}',
                '{"kubernetes.io/os": "linux"}',
                True,
            )
        ],
    ),
    (set_memory, [(f"{C}.resources.limits.memory", "300Mi", "170Mi", True)]),
    (
        tolerate,
        [
            (
                f"{POD}.tolerations",
                '[{"key": "CriticalAddonsOnly", "operator": "Exists"}, {"key": "ours", "operator": "Exists"}]',
                '[{"key": "CriticalAddonsOnly", "operator": "Exists"}]',
                True,
            )
        ],
    ),
    (drop_limits, [(f"{C}.resources.limits", "", '{"memory": "170Mi"}', True)]),
    (
        recreate,
        [
            ("spec.strategy.type", "Recreate", "RollingUpdate", True),
            ("spec.strategy.rollingUpdate", "", '{"maxUnavailable": 1}', True),
        ],
    ),
    (
        change_args,
        [(f"{C}.args", '["-conf", "/etc/coredns/Corefile", "-quiet"]', '["-conf", "/etc/coredns/Corefile"]', True)],
    ),
    (
        move_port,
        [
            (
                f"{C}.ports[53,UDP]",
                "",
                '{"name": "dns", "containerPort": 53, "protocol": "UDP"}',
                True,
            )
        ],
    ),
]


@pytest.mark.parametrize("maker", ["kubeadm Update", "kb Apply", ""])
@pytest.mark.parametrize(("edit", "told"), EDITS)
def test_an_edit_is_kept_whoever_made_the_object(edit: Callable[[Object], None], told: Any, maker: str) -> None:
    """Without managedFields, the values alone tell."""
    found = edited(edit, maker=maker)
    after, edits = upgraded(found)
    expected = render("coredns:v2")
    edit(expected)
    for obj in (after, expected):
        container_of(obj)["ports"].sort(key=lambda port: int(port["containerPort"]))
    assert after["spec"] == expected["spec"]
    assert edits == told


def test_what_only_others_set_is_theirs() -> None:
    def more(obj: Object) -> None:
        obj["metadata"]["annotations"] = {"ours": "1"}
        pod = pod_of(obj)
        obj["spec"]["template"]["metadata"]["annotations"] = {"scrape": "yes"}
        pod["containers"].append({"name": "sidecar", "image": "other:1"})
        pod["topologySpreadConstraints"] = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
        container_of(obj)["env"] = [{"name": "A", "value": "b"}]

    after, edits = upgraded(edited(more))
    expected = render("coredns:v2")
    more(expected)
    assert sorted(pod_of(after)["containers"], key=lambda one: str(one["name"])) == pod_of(expected)["containers"]
    assert {k: v for k, v in pod_of(after).items() if k != "containers"} == {
        k: v for k, v in pod_of(expected).items() if k != "containers"
    }
    assert after["metadata"]["annotations"] == {"ours": "1"} and edits == []


def test_what_the_new_version_changes_is_replaced_and_told() -> None:
    after, edits = upgraded(edited(lambda obj: container_of(obj).update(image="mine:7")))
    assert container_of(after)["image"] == "coredns:v2"
    assert edits == [(f"{C}.image", "mine:7", "coredns:v2", False)]


def test_what_another_version_of_kubeadm_wrote_is_no_edit() -> None:
    """A value that no version known to kb writes, but kubeadm's by managedFields."""
    found = edited(set_memory, by="kubeadm")
    after, edits = upgraded(found)
    assert container_of(after)["resources"]["limits"]["memory"] == "170Mi" and edits == []


def test_ports_that_an_older_version_lacks_are_added() -> None:
    found = render("coredns:v0", has_ports=False)
    owners = {"kubeadm Update": set(fake_fields.lay_out(found))}
    found["metadata"]["managedFields"] = managed(owners)
    after, edits = upgraded(found)
    assert after["spec"] == render("coredns:v2")["spec"] and edits == []


def test_a_container_is_never_given_up() -> None:
    after, _ = upgraded(edited(lambda obj: container_of(obj).update(name="dns")))
    assert [one["name"] for one in pod_of(after)["containers"]] == ["coredns", "dns"]


def test_a_new_object_is_wanted_whole() -> None:
    assert keep_edits(render(), None, bases=BASES) == (render(), ())


def test_an_object_of_real_kubeadm_with_edits_of_real_kubectl() -> None:
    """kubeadm 1.35.6 created it; then kubectl set resources, annotate and patch."""
    found = json.loads((Path(__file__).parents[2] / "fixtures/coredns-of-kubeadm-edited.json").read_text())
    cluster = ClusterConfiguration("v1.36.3")
    config = NodeConfig(node=NodeRegistration("cp1"), local_api_endpoint=LocalAPIEndpoint("10.0.0.11"), cluster=cluster)

    def render_all(row: Release) -> Object:
        objects = addons.render_coredns(config, row, running=addons.RunningDns())
        return next(one for one in objects if one["kind"] == "Deployment")

    wanted = render_all(RELEASES[36])
    manifest, edits = keep_edits(wanted, found, bases=[render_all(row) for row in RELEASES.values()])
    assert [(edit.field, edit.found, edit.is_kept) for edit in edits] == [
        ("spec.template.spec.tolerations", '[{"key": "a", "operator": "Exists"}]', True),
        ("spec.template.spec.containers[coredns].resources.limits.memory", "300Mi", True),
    ]
    pod = pod_of(manifest)
    assert "tolerations" not in pod and "limits" not in container_of(manifest)["resources"]
    assert container_of(manifest)["image"].endswith("coredns:v1.14.2")
