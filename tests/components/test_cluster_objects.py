"""The cluster phases against a real kube-apiserver with a real etcd, on loopback: $KB_E2E_BIN/<minor>/ has both.

What only a server can tell: that it takes every object, that a second run changes nothing (it fills in defaults), and
what a kubelet's identity may read.
"""

from __future__ import annotations

import copy
import io
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.cluster import addons as addons_domain
from kubeup.cluster import objects
from kubeup.cluster.api import Api, ApiRefused, Object, path_of, read_identity
from kubeup.config.types import (
    BootstrapToken,
    ClusterConfiguration,
    LocalAPIEndpoint,
    Networking,
    NodeConfig,
    NodeRegistration,
)
from kubeup.engine.plan import Plan
from kubeup.engine.run import Caller, Run, Who
from kubeup.errors import ClusterError
from kubeup.machine.host import CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.network import route_plan
from kubeup.paths import Paths
from kubeup.phases import addons, bootstrap_tokens, mark_control_plane, upload_certs, upload_config
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from tests.fake_node import CERT_PLANS, KUBECONFIG_PLANS
from tests.plans import do, is_done
from tests.unit.cluster.test_addons import assert_equals_real, golden_name, read_golden

pytestmark = [pytest.mark.component, pytest.mark.timeout(180)]

BIN = Path(os.environ.get("KB_E2E_BIN", "/nonexistent"))
MINORS = [
    minor
    for minor in sorted(RELEASES)
    if all((BIN / f"1.{minor}" / name).exists() for name in ("etcd", "kube-apiserver"))
]
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation")


class NodeHost(LocalHost):
    """A folder for the node's files, the real network, scripted programs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_live, self.mode = True, "live"

    def query(self, argv: Any, **_: Any) -> CommandResult:
        return CommandResult(tuple(map(str, argv)), 127, missing=True)


@dataclass
class Lab:
    ctx: Run
    minor: int

    def api(self, kubeconfig: str) -> Api:
        path = self.ctx.paths.kubeconfig(kubeconfig)
        return Api(self.ctx.host, read_identity(self.ctx.host, path), retry_s=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_context(root: Path, minor: int, port: int) -> Run:
    config = NodeConfig(
        cluster=ClusterConfiguration(
            f"v1.{minor}.0", Networking(pod_subnet="10.244.0.0/16"), encryption_algorithm="ECDSA-P256"
        ),
        node=NodeRegistration("cp1"),
        local_api_endpoint=LocalAPIEndpoint("127.0.0.1", port),
        bootstrap_tokens=(BootstrapToken(Secret("abcdef.0123456789abcdef")),),
        upload_certs=True,
        certificate_key=Secret("0123456789abcdef" * 4),
    )
    host = NodeHost(root)

    def make_api(_: Who) -> Api:
        return Api(host, read_identity(host, Paths().admin_conf), retry_s=10)

    return Run(
        host=host,
        paths=Paths(),
        config=config,
        release=RELEASES[minor],
        report=Report(io.StringIO()),
        caller=Caller(make_api),
    )


@pytest.fixture(scope="module", params=MINORS or [0])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    minor = request.param
    if not minor:
        pytest.skip("needs $KB_E2E_BIN with etcd and kube-apiserver")
    root = tmp_path_factory.mktemp("node")
    port, client, peer = free_port(), free_port(), free_port()
    ctx = make_context(root, minor, port)
    for plan in (*CERT_PLANS.values(), *KUBECONFIG_PLANS.values()):
        do(plan, ctx)
    folder, pki = BIN / f"1.{minor}", root / "etc/kubernetes/pki"
    etcd = [folder / "etcd", "--data-dir", root / "etcd", "--name", "lab", "--log-level=error"]
    etcd += [f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}"]
    etcd += [f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}"]
    etcd += [f"--initial-cluster=lab=http://127.0.0.1:{peer}", "--unsafe-no-fsync"]
    flags = {
        "etcd-servers": f"http://127.0.0.1:{client}",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": port,
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "enable-bootstrap-token-auth": "true",
        "service-cluster-ip-range": "10.96.0.0/12",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "endpoint-reconciler-type": "none",
    }
    apiserver = [folder / "kube-apiserver", *(f"--{name}={value}" for name, value in flags.items())]
    log = (root / "log").open("w")
    started = [subprocess.Popen([str(word) for word in argv], stdout=log, stderr=log) for argv in (etcd, apiserver)]
    try:
        found = Lab(ctx, minor)
        wait_until_ready(found.api("super-admin.conf"), root / "log")
        objects.ensure_admin_binding(ctx.api, lambda: found.api("super-admin.conf"))
        yield found
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(20)
        log.close()


def wait_until_ready(api: Api, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if api.probe_health("/readyz").status == 200:
                return
        except Exception:
            time.sleep(0.3)
        time.sleep(0.2)
    raise AssertionError(f"kube-apiserver is not ready: {log.read_text()[-2000:]}")


def make_node(api: Api) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "cp1", "labels": {"kubernetes.io/hostname": "cp1"}},
        "spec": {"podCIDRs": ["10.244.0.0/24"], "podCIDR": "10.244.0.0/24"},
    }
    if api.get(path_of("Node", "cp1")) is None:
        api.create(node)


Step = tuple[str, Callable[[Run], Any], Callable[[Run], bool]]


def planned(name: str, plan: Callable[[Run], Plan]) -> Step:
    return name, partial(do, plan), partial(is_done, plan)


PHASES: list[Step] = [
    planned("upload-config/kubeadm", upload_config.plan_kubeadm_config),
    planned("upload-config/kubelet", upload_config.plan_kubelet_config),
    ("upload-certs", upload_certs.upload_certs, upload_certs.certs_are_uploaded),
    planned("mark-control-plane", mark_control_plane.plan_marks),
    planned("bootstrap-token", bootstrap_tokens.plan_bootstrap_tokens),
    planned("addon/coredns", addons.plan_coredns),
    planned("addon/kube-proxy", addons.plan_kube_proxy),
]


@pytest.mark.parametrize(("name", "run", "done"), PHASES, ids=[name for name, _, _ in PHASES])
def test_the_server_takes_the_objects_and_shows_them(
    lab: Lab, name: str, run: Callable[[Run], Any], done: Callable[[Run], bool]
) -> None:
    make_node(lab.ctx.api)
    assert done(lab.ctx) is False
    run(lab.ctx)
    assert done(lab.ctx) is True


@pytest.mark.parametrize(
    ("name", "run"), [(name, run) for name, run, _ in PHASES if name != "upload-certs"], ids=lambda value: str(value)
)
def test_a_second_run_changes_nothing(lab: Lab, name: str, run: Callable[[Run], Any]) -> None:
    make_node(lab.ctx.api)
    run(lab.ctx)
    before = versions(lab.ctx.api)
    run(lab.ctx)
    changed = {path for path, version in versions(lab.ctx.api).items() if before.get(path) != version}
    # a token's expiry moves with the clock
    assert {path for path in changed if "bootstrap-token-" not in path} == set()


KINDS = ("ConfigMap", "Secret", "Role", "RoleBinding", "ServiceAccount", "Service", "Deployment", "DaemonSet")


def versions(api: Api) -> dict[str, str]:
    found = {}
    for kind in (*KINDS, "ClusterRole", "ClusterRoleBinding", "Node"):
        for obj in api.list(path_of(kind)):
            meta = obj["metadata"]
            found[f"{kind}/{meta.get('namespace', '')}/{meta['name']}"] = meta["resourceVersion"]
    return found


def test_what_the_server_holds_equals_what_kubeadm_left(lab: Lab) -> None:
    if lab.minor not in (34, 35, 36):
        pytest.skip("no golden objects of this minor")
    make_node(lab.ctx.api)
    given = replace(lab.ctx.config, kube_proxy={"conntrack": {"maxPerCore": 0}})
    golden = replace(given, cluster=replace(given.cluster, kubernetes_version=golden_version(lab.minor)))
    ctx = replace(lab.ctx, config=golden)
    for _, run, _ in PHASES:
        run(ctx)
    rendered = addons_domain.render_coredns(golden, ctx.release, running=addons_domain.RunningDns())
    rendered += addons_domain.render_kube_proxy(golden, ctx.release)
    for obj in rendered:
        real = read_golden(lab.minor, golden_name(obj))
        found = ctx.api.get(ctx.api.object_path(obj))
        assert found is not None
        if obj["kind"] == "ConfigMap" and obj["metadata"]["name"] == "kube-proxy":
            continue  # names this server's port
        assert_equals_real(without_volatile(found), real)
        assert_equals_real(real, without_volatile(found))


def golden_version(minor: int) -> str:
    image = read_golden(minor, "daemonset--kube-system--kube-proxy")["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    return str(image).rpartition(":")[2]


def without_volatile(obj: Object) -> Object:
    meta = {key: value for key, value in obj["metadata"].items() if key not in VOLATILE}
    if "annotations" in meta:
        meta["annotations"] = {
            key: value for key, value in meta["annotations"].items() if "deprecated.daemonset" not in key
        }
    plain = {key: value for key, value in {**obj, "metadata": meta}.items() if key != "status"}
    if obj["kind"] == "DaemonSet":
        # kb restarts kube-proxy when its configuration is another one, as it is from one of these tests to the next
        plain = copy.deepcopy(plain)
        template = plain["spec"]["template"]["metadata"]
        annotations = {**template.pop("annotations", {})}
        annotations.pop("kubectl.kubernetes.io/restartedAt", None)
        if annotations:
            template["annotations"] = annotations
    return plain


def test_a_kubelet_lists_nodes_by_kbs_role_alone(lab: Lab) -> None:
    """From 1.32 on the Node authorizer lets a kubelet read its own Node only: without the role there are no routes."""
    make_node(lab.ctx.api)
    kubelet = lab.api("kubelet.conf")
    lab.ctx.api.delete(path_of("ClusterRoleBinding", "kb:node-routes"))
    refused = wait_for(lambda: is_refused(kubelet))
    assert refused is (lab.minor >= 32)
    objects.apply_objects(lab.ctx.api, objects.load_objects("rbac/node-routes.yaml"))
    assert wait_for(lambda: not is_refused(kubelet)) is True
    listed = kubelet.get(f"{path_of('Node')}?resourceVersion=0")
    assert listed is not None
    assert [peer.pod_cidrs for peer in route_plan.parse_peers(listed["items"])] == [("10.244.0.0/24",)]


def is_refused(api: Api) -> bool:
    try:
        api.list(path_of("Node"))
    except ApiRefused as error:
        assert error.http_status == 403
        return True
    return False


def wait_for(look: Callable[[], bool]) -> bool:
    """RBAC reaches the authorizer through a watch: give it a moment."""
    for _ in range(20):
        if look():
            return True
        time.sleep(0.1)
    return False


def test_a_kubelet_reads_kb_config_by_kbs_role(lab: Lab) -> None:
    kubelet = lab.api("kubelet.conf")
    assert objects.read_pod_network(kubelet).plugin == "none"
    network = lab.ctx.config.kb.pod_network
    objects.apply_objects(lab.ctx.api, [objects.render_kb_config(network)])
    objects.apply_objects(lab.ctx.api, objects.load_objects("rbac/pod-network.yaml"))
    assert wait_for(lambda: objects.read_pod_network(kubelet) == network)


def test_a_binding_of_another_role_is_refused_with_a_remedy(lab: Lab) -> None:
    binding = objects.load_objects("rbac/node-routes.yaml")[1]
    other: Object = {**binding, "metadata": {"name": "kbtest"}, "roleRef": {**binding["roleRef"], "name": "view"}}
    lab.ctx.api.apply(other)
    with pytest.raises(ClusterError) as caught:
        objects.apply_objects(lab.ctx.api, [{**other, "roleRef": binding["roleRef"]}])
    assert caught.value.code == "binding-role-differs"


def test_taking_over_from_kubeadm_and_a_named_probe_port(lab: Lab) -> None:
    """An object that another tool made by POST becomes like kb's, and its hash annotation goes with a user's document."""
    api = lab.ctx.api
    older: Optional[Object] = None
    for obj in addons_domain.render_coredns(lab.ctx.config, RELEASES[33], running=addons_domain.RunningDns()):
        if obj["kind"] == "Deployment":
            older = obj
    assert older is not None
    api.delete(api.object_path(older))
    api.create(older)
    do(addons.plan_coredns, lab.ctx)
    assert is_done(addons.plan_coredns, lab.ctx) is True


def test_kube_dns_keeps_its_address_or_says_so(lab: Lab) -> None:
    do(addons.plan_coredns, lab.ctx)
    moved = replace(lab.ctx.config.cluster, networking=Networking("10.96.16.0/20", "10.244.0.0/16"))
    with pytest.raises(ClusterError) as caught:
        do(addons.plan_coredns, replace(lab.ctx, config=replace(lab.ctx.config, cluster=moved)))
    assert caught.value.code == "dns-address-differs"
