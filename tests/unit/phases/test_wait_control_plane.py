"""kubeup/phases/wait_control_plane.py: the first roles of a new API server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from kubeup.cluster.api import Api, Identity, read_identity
from kubeup.engine.run import Caller, Run
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.phases import wait_control_plane
from kubeup.secret import Secret
from tests.unit.phases.started_node import INFO, Node, make_context, node_of

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: x
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://cluster:6443"}}}}]
users: [{{name: u, user: {{token: {who}}}}}]
"""


class YoungNode(Node):
    """Its API server knows system:masters alone until its roles are written, `roles_after_s` after its start."""

    roles_after_s = 5.0
    namespaces_after_s = 1.0
    controllers_after_s = 0.0
    asked: list[tuple[str, str]]

    def http_get(self, url: str, *, headers: Optional[Any] = None, **more: Any) -> Any:
        age = self.clock.timestamp() - START
        who = (headers or {}).get("Authorization", "").partition(" ")[2]
        self.asked.append((who, url.partition("6443")[2]))
        if ":10248" in url or ":1025" in url:
            return HttpResponse(200 if ":10248" in url or age >= self.controllers_after_s else 500)
        if age < self.roles_after_s and who != "super":
            return HttpResponse(403, b"forbidden")
        if "/livez" in url and age < self.roles_after_s and "exclude=poststarthook/rbac/bootstrap-roles" not in url:
            return HttpResponse(500, b"[-]poststarthook/rbac/bootstrap-roles failed")
        if "/namespaces/" in url and age < self.namespaces_after_s:
            return HttpResponse(404, b"{}")
        return super().http_get(url, headers=headers, **more)

    def http_send(self, method: str, url: str, *, headers: Optional[Any] = None, **more: Any) -> Any:
        who = (headers or {}).get("Authorization", "").partition(" ")[2]
        self.asked.append((who, f"{method} {url.partition('6443')[2]}"))
        if who != "super" and self.clock.timestamp() - START < self.roles_after_s:
            return HttpResponse(403, b'{"reason": "Forbidden"}')
        return super().http_send(method, url, headers=headers, **more)


START = 1767225600.0  # the fake clock's first second


def young_context(tmp_path: Path, *, has_super_admin: bool = True) -> tuple[Run, YoungNode]:
    ctx = make_context(tmp_path)
    node = YoungNode(tmp_path, node_of(ctx).cluster)
    node.asked = []
    node.answers.update(node_of(ctx).answers)
    names = ("admin", "super-admin") if has_super_admin else ("admin",)
    for name in names:
        text = KUBECONFIG.format(who=name.partition("-")[0])
        node.write_file(Path(f"/etc/kubernetes/{name}.conf"), text, mode=0o600)
    admin = read_identity(node, Path("/etc/kubernetes/admin.conf"), server="https://10.0.0.11:6443")
    api = Api(node, admin, retry_s=0)
    return replace(ctx, host=node, caller=Caller.by(api)), node


def test_the_phases_after_the_start_do_not_wait_for_the_first_roles(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    wait_control_plane.wait_for_control_plane(ctx)
    assert 1 <= node.clock.timestamp() - START < 2  # the namespaces, and not the roles
    assert ("super", "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings") in node.asked
    ctx.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "kube-system"}})
    assert node.clock.timestamp() - START < 2


def test_before_the_controllers_are_well_the_admin_s_rights_must_hold(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    wait_control_plane.wait_for_control_plane(ctx)
    del node.asked[:]
    wait_control_plane.wait_for_controllers(ctx)
    assert node.clock.timestamp() - START >= 5
    assert {who for who, path in node.asked if "livez" in path and who} == {"admin"}
    assert ctx.api.identity.token.reveal() == "admin" and ctx.api.server == "https://10.0.0.11:6443"


def test_without_super_admin_conf_the_admin_waits_for_its_rights(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path, has_super_admin=False)
    wait_control_plane.wait_for_control_plane(ctx)
    assert node.clock.timestamp() - START >= 5 and {who for who, _ in node.asked if who} == {"admin"}


def test_a_kubelet_that_missed_a_manifest_is_made_to_look(tmp_path: Path) -> None:
    """It was just starting when the file came, and would look by itself 20 s later."""
    ctx, node = young_context(tmp_path, has_super_admin=False)
    known = [{"id": "1", "metadata": {"name": "etcd"}, "state": "CONTAINER_RUNNING"}]
    node.answers["crictl"] = lambda argv: CommandResult(
        argv, 0, json.dumps({"containers": known} if "ps" in argv else INFO if "info" in argv else {})
    )
    node.roles_after_s = 8.0
    wait_control_plane.wait_for_control_plane(ctx)
    touched = [command for command in node.commands if command.startswith("touch")]
    path = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    assert set(touched) == {f"touch -c -r {path} {path}"} and len(touched) == 2


def test_who_names_a_kubeconfig_speaks_by_it_alone(tmp_path: Path) -> None:
    ctx, node = young_context(tmp_path)
    mine = Identity("https://10.0.0.11:6443", Tls(), Secret("mine"))
    ctx.api.become(mine)
    wait_control_plane.wait_for_control_plane(ctx)
    wait_control_plane.wait_for_controllers(ctx)
    assert {who for who, _ in node.asked if who} == {"mine"} and ctx.api.identity == mine


def test_a_wait_reads_once_where_a_component_listens(tmp_path: Path) -> None:
    """It asks ten times a second, on processors that the components need for their start."""
    ctx, node = young_context(tmp_path)
    node.controllers_after_s = 4.0
    wait_control_plane.wait_for_control_plane(ctx)
    with mock.patch.object(node, "read_text", wraps=node.read_text) as read:
        wait_control_plane.wait_for_controllers(ctx)
    manifests = [call.args[0].name for call in read.call_args_list if call.args[0].parent == ctx.paths.manifests]
    assert sorted(manifests) == ["kube-controller-manager.yaml", "kube-scheduler.yaml"]
