"""The cluster's objects against those of real kubeadm, and the rules of writing them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Optional

import kubernetes_validate
import pytest

from kubeup.cluster import objects as co
from kubeup.cluster.api import Api, ApiRefused, Identity, Object, path_of
from kubeup.config.types import PodNetwork, Taint
from kubeup.errors import ClusterError, HostError
from kubeup.machine.http import Tls
from kubeup.releases import RELEASES
from kubeup.yaml_files import covers, load_yaml
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.unit.cluster.test_addons import VERSIONS, assert_equals_real, golden_name, read_golden

RBAC = ("kubeadm-config", "kubelet-config", "kubeadm-certs", "bootstrap", "cluster-info", "cluster-admins")
OWN_RBAC = ("pod-network", "node-routes")


def make_api(tmp_path: Path, *objects: Object) -> tuple[Api, FakeCluster]:
    host = ClusterHost(tmp_path, FakeCluster())
    api = Api(host, Identity("https://10.0.0.11:6443", Tls()), retry_s=0)
    for obj in objects:
        api.create(obj)
    host.cluster.requests.clear()
    return api, host.cluster


def mark(node: Object) -> Optional[Object]:
    return co.plan_node_marks(node, [co.CONTROL_PLANE_TAINT])


def changes(cluster: FakeCluster) -> list[str]:
    return [request for request in cluster.requests if not request.startswith("GET")]


# ---- values


@pytest.mark.parametrize("minor", sorted(VERSIONS))
@pytest.mark.parametrize("name", RBAC)
def test_rbac_equals_that_of_real_kubeadm(minor: int, name: str) -> None:
    objects = co.load_objects(f"rbac/{name}.yaml")
    assert objects
    for rendered in objects:
        assert_equals_real(rendered, read_golden(minor, golden_name(rendered)))


def test_no_binding_of_real_kubeadm_is_forgotten() -> None:
    ours = {golden_name(obj) for name in RBAC for obj in co.load_objects(f"rbac/{name}.yaml")}
    folder = Path(__file__).parents[2] / "golden/1.35/objects"
    real = {path.stem for path in folder.iterdir() if "role" in path.stem}
    of_addons = {
        "clusterrole--cluster--system_coredns",
        "clusterrolebinding--cluster--system_coredns",
        "clusterrolebinding--cluster--kubeadm_node-proxier",
        "role--kube-system--kube-proxy",
        "rolebinding--kube-system--kube-proxy",
    }
    assert real - of_addons == ours


def test_bootstrap_rights_are_in_kubeadms_order() -> None:
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in co.load_objects("rbac/bootstrap.yaml")] == [
        ("ClusterRole", "kubeadm:get-nodes"),
        ("ClusterRoleBinding", "kubeadm:get-nodes"),
        ("ClusterRoleBinding", "kubeadm:kubelet-bootstrap"),
        ("ClusterRoleBinding", "kubeadm:node-autoapprove-bootstrap"),
        ("ClusterRoleBinding", "kubeadm:node-autoapprove-certificate-rotation"),
        ("ClusterRoleBinding", "kubeadm:apiserver-kubelet-client"),
    ]


@pytest.mark.parametrize("minor", sorted(RELEASES))
def test_every_object_is_valid_in_every_minor(minor: int) -> None:
    objects = [obj for name in (*RBAC, *OWN_RBAC) for obj in co.load_objects(f"rbac/{name}.yaml")]
    objects += [co.render_cluster_info("https://a:6443", "PEM"), co.render_kb_config(PodNetwork())]
    for rendered in objects:
        kubernetes_validate.validate(rendered, f"1.{minor}", strict=True)


@pytest.mark.parametrize("minor", sorted(VERSIONS))
def test_cluster_info_has_the_text_of_real_kubeadm(minor: int) -> None:
    rendered = co.render_cluster_info("https://10.77.0.11:6443", "REDACTED")
    data = base64.b64encode(b"REDACTED").decode()
    real = read_golden(minor, "configmap--kube-public--cluster-info")
    assert rendered["data"]["kubeconfig"] == real["data"]["kubeconfig"].replace("REDACTED", data)
    assert golden_name(rendered) == "configmap--kube-public--cluster-info"


@pytest.mark.parametrize("minor", sorted(VERSIONS))
def test_kubeadm_config_has_the_text_of_real_kubeadm(minor: int) -> None:
    real = read_golden(minor, "configmap--kube-system--kubeadm-config")
    stored = load_yaml(real["data"]["ClusterConfiguration"])
    assert co.render_kubeadm_config(stored) == real


def test_a_generated_component_config_is_signed_and_a_users_is_not() -> None:
    signed = co.render_component_config("kubelet-config", {"kubelet": "x"}, generated_hash="sha256:ab")
    assert signed["metadata"]["annotations"] == {"kubeadm.kubernetes.io/component-config.hash": "sha256:ab"}
    assert (
        "annotations"
        not in co.render_component_config("kubelet-config", {"kubelet": "x"}, generated_hash="")["metadata"]
    )


def test_the_pod_network_survives_the_cluster() -> None:
    network = PodNetwork(plugin="bridge", backend="vxlan", mtu=1400)
    assert co.parse_kb_config(co.render_kb_config(network)) == network


@pytest.mark.parametrize("found", [None, {}, {"data": {}}, {"data": {"podNetwork": ""}}, {"data": {"podNetwork": "x"}}])
def test_a_cluster_that_says_nothing_has_no_network_of_kbs(found: Any) -> None:
    assert co.parse_kb_config(found).plugin == "none"


# ---- node marks


def make_node(taints: list[dict[str, Any]], **labels: str) -> Object:
    return {"metadata": {"name": "cp1", "labels": labels, "resourceVersion": "7"}, "spec": {"taints": taints}}


MARKED = dict(co.CONTROL_PLANE_LABELS)
NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
CONTROL_PLANE = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}


def test_configured_taints_come_first_and_the_nodes_own_stay() -> None:
    assert co.plan_node_marks(make_node([NOT_READY]), [co.CONTROL_PLANE_TAINT]) == {
        "metadata": {"labels": MARKED, "resourceVersion": "7"},
        "spec": {"taints": [CONTROL_PLANE, NOT_READY]},
    }


def test_a_marked_node_needs_nothing() -> None:
    assert co.plan_node_marks(make_node([NOT_READY, CONTROL_PLANE], **MARKED), [co.CONTROL_PLANE_TAINT]) is None


def test_no_taints_means_labels_alone() -> None:
    found = co.plan_node_marks(make_node([NOT_READY]), [])
    assert found == {"metadata": {"labels": MARKED, "resourceVersion": "7"}}


def test_a_taint_with_another_value_is_replaced_in_its_place() -> None:
    node = make_node([{"key": "team", "value": "a", "effect": "NoSchedule"}, NOT_READY], **MARKED)
    found = co.plan_node_marks(node, [Taint("team", "NoSchedule", "b")])
    assert found is not None
    assert found["spec"]["taints"] == [{"key": "team", "value": "b", "effect": "NoSchedule"}, NOT_READY]


def test_the_same_key_with_another_effect_is_another_taint() -> None:
    node = make_node([{"key": "team", "effect": "NoExecute"}], **MARKED)
    found = co.plan_node_marks(node, [Taint("team", "NoSchedule")])
    assert found is not None
    assert [taint["effect"] for taint in found["spec"]["taints"]] == ["NoSchedule", "NoExecute"]


def test_marking_tries_again_where_somebody_else_was_faster(tmp_path: Path) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cp1"}, "spec": {}}
    api, cluster = make_api(tmp_path, node)
    real, conflicts = api.patch, [1, 2]

    def patch(path: str, body: object, *, kind: str = "merge") -> Object:
        if conflicts:
            conflicts.pop()
            raise ApiRefused("PATCH node", 409, reason="Conflict", message="the object has been modified", server="")
        return real(path, body, kind=kind)

    api.patch = patch  # type: ignore[method-assign]
    assert co.patch_fields(api, path_of("Node", "cp1"), plan=mark) is True
    found = cluster.by_kind("Node")["cp1"]
    assert found["spec"]["taints"] == [CONTROL_PLANE]
    assert co.patch_fields(api, path_of("Node", "cp1"), plan=mark) is False


def test_marking_gives_up_on_a_conflict_that_never_ends(tmp_path: Path) -> None:
    api, _ = make_api(tmp_path, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cp1"}, "spec": {}})

    def patch(path: str, body: object, *, kind: str = "merge") -> Object:
        raise ApiRefused("PATCH node", 409, reason="Conflict", message="the object has been modified", server="")

    api.patch = patch  # type: ignore[method-assign]
    with pytest.raises(ApiRefused):
        co.patch_fields(api, path_of("Node", "cp1"), plan=mark)


# ---- covers


@pytest.mark.parametrize(
    ("found", "wanted", "is_covered"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
        ({"a": [1]}, {"a": [2]}, False),
        ({}, {"a": {}}, True),
        ({}, {"a": ""}, True),
        ({}, {"a": "x"}, False),
        (None, {"a": "x"}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
    ],
)
def test_covers(found: Any, wanted: Any, is_covered: bool) -> None:
    assert covers(found, wanted) is is_covered


# ---- writing


def test_applying_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    api, cluster = make_api(tmp_path)
    objects = co.load_objects("rbac/bootstrap.yaml")
    assert not co.has_objects(api, objects)
    assert co.apply_objects(api, objects) is True
    assert co.has_objects(api, objects)
    assert co.apply_objects(api, objects) is False
    assert len(cluster.objects) == 6


def test_a_binding_of_another_role_is_named_with_the_command_that_helps(tmp_path: Path) -> None:
    role, binding = co.load_objects("rbac/cluster-info.yaml")
    other = {**binding, "roleRef": {**binding["roleRef"], "kind": "ClusterRole", "name": "view"}}
    api, cluster = make_api(tmp_path, other)
    with pytest.raises(ClusterError) as caught:
        co.apply_objects(api, [role, binding])
    error = caught.value
    assert error.code == "binding-role-differs"
    assert "ClusterRole 'view'" in error.what
    assert error.remedy.startswith("kubectl delete rolebinding -n kube-public kubeadm:bootstrap-signer-clusterinfo")
    assert cluster.by_kind("RoleBinding")["kubeadm:bootstrap-signer-clusterinfo"]["roleRef"]["name"] == "view"


def test_a_users_document_loses_the_annotation_of_a_generated_one(tmp_path: Path) -> None:
    api, cluster = make_api(
        tmp_path, co.render_component_config("kubelet-config", {"kubelet": "a"}, generated_hash="sha256:ab")
    )
    assert (
        co.apply_component_config(
            api, co.render_component_config("kubelet-config", {"kubelet": "b"}, generated_hash="")
        )
        is True
    )
    found = cluster.by_kind("ConfigMap")["kubelet-config"]
    assert "annotations" not in found["metadata"]
    assert found["data"] == {"kubelet": "b"}


def test_signatures_stay_while_cluster_info_says_the_same(tmp_path: Path) -> None:
    info = co.render_cluster_info("https://10.0.0.11:6443", "PEM")
    signed = {**info, "data": {**info["data"], "jws-kubeconfig-abcdef": "e30..x"}}
    api, cluster = make_api(tmp_path, signed)
    assert co.apply_cluster_info(api, info) is False
    assert changes(cluster) == []


def test_signatures_of_an_older_cluster_info_go(tmp_path: Path) -> None:
    old = co.render_cluster_info("https://10.0.0.11:6443", "PEM")
    old["data"].update({"jws-kubeconfig-abcdef": "e30..x", "other": "kept"})
    api, cluster = make_api(tmp_path, old)
    new = co.render_cluster_info("https://api:6443", "PEM")
    assert co.apply_cluster_info(api, new) is True
    assert cluster.by_kind("ConfigMap")["cluster-info"]["data"] == {**new["data"], "other": "kept"}


def test_a_new_cluster_info_is_made(tmp_path: Path) -> None:
    api, cluster = make_api(tmp_path)
    assert co.apply_cluster_info(api, co.render_cluster_info("https://api:6443", "PEM")) is True
    assert list(cluster.by_kind("ConfigMap")) == ["cluster-info"]


def test_nodes_that_may_not_read_kb_config_have_no_network_of_kbs(tmp_path: Path) -> None:
    api, _ = make_api(tmp_path, co.render_kb_config(PodNetwork(backend="route")))
    assert co.read_pod_network(api) == PodNetwork(backend="route")

    def forbidden(path: str) -> Any:
        raise ApiRefused(f"GET {path}", 403, reason="Forbidden", message="no", server="")

    api.get = forbidden  # type: ignore[method-assign]
    assert co.read_pod_network(api).plugin == "none"


# ---- the admin's binding


def forbid_creation(api: Api) -> None:
    def create(obj: Object) -> Object:
        raise ApiRefused("POST", 403, reason="Forbidden", message="no", server="")

    api.create = create  # type: ignore[method-assign]


def must_not_be_made() -> Api:
    raise AssertionError("super-admin.conf was not needed")


def test_an_admin_with_rights_needs_no_super_admin(tmp_path: Path) -> None:
    api, cluster = make_api(tmp_path)
    assert co.ensure_admin_binding(api, must_not_be_made) is True
    assert co.ensure_admin_binding(api, must_not_be_made) is False
    assert list(cluster.by_kind("ClusterRoleBinding")) == ["kubeadm:cluster-admins"]


def test_the_super_admin_makes_the_binding_for_an_admin_without_rights(tmp_path: Path) -> None:
    api, cluster = make_api(tmp_path)
    admin = Api(api.host, api.identity, retry_s=0)
    forbid_creation(admin)
    assert co.ensure_admin_binding(admin, lambda: api) is True
    assert list(cluster.by_kind("ClusterRoleBinding")) == ["kubeadm:cluster-admins"]
    assert co.ensure_admin_binding(admin, lambda: api) is False


def test_without_super_admin_conf_the_error_names_it(tmp_path: Path) -> None:
    api, _ = make_api(tmp_path)
    forbid_creation(api)

    def missing() -> Api:
        raise HostError("no kubeconfig at /etc/kubernetes/super-admin.conf", cause="c", remedy="r", code="x")

    with pytest.raises(ClusterError) as caught:
        co.ensure_admin_binding(api, missing)
    assert caught.value.code == "admin-not-bound"
    assert "/etc/kubernetes/super-admin.conf" in caught.value.cause


def bind(name: str, *accounts: str) -> Object:
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"} for account in accounts]
    labels = {"kubernetes.io/bootstrapping": "rbac-defaults"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": labels}, "roleRef": role, "subjects": subjects,
    }  # fmt: skip


def test_controllers_find_their_accounts_made_and_nobody_else_gets_one(tmp_path: Path) -> None:
    there = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "job-controller", "namespace": "kube-system"},
    }
    api, cluster = make_api(
        tmp_path,
        bind("system:controller:job-controller", "job-controller"),
        bind("system:controller:node-controller", "node-controller"),
        bind("system:controller:route-controller", "route-controller"),
        bind("system:kube-dns", "kube-dns"),
        {**bind("mine", "mine"), "metadata": {"name": "mine"}},
        there,
    )
    co.create_controllers_accounts(api)
    assert changes(cluster) == ["POST /api/v1/namespaces/kube-system/serviceaccounts"]
    assert api.get(path_of("ServiceAccount", "node-controller", namespace="kube-system"))


def test_a_controller_manager_that_was_faster_is_no_fault(tmp_path: Path) -> None:
    api, _ = make_api(tmp_path, bind("system:controller:node-controller", "node-controller"))
    listed = api.list
    api.list = lambda path, **how: [] if path.endswith("serviceaccounts") else listed(path, **how)  # type: ignore[method-assign]
    co.create_controllers_accounts(api)
    co.create_controllers_accounts(api)
    assert api.get(path_of("ServiceAccount", "node-controller", namespace="kube-system"))
