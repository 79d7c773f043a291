"""kubeup/phases/join_control_plane.py: a further control plane against an etcd and an API server made of dicts."""

from __future__ import annotations

import datetime
import io
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest

import kb
from kubeup.cluster import amid_rotation, api, etcd, rotation, shared_certs
from kubeup.config.types import Arg, Join, JoinControlPlane, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.engine.run import Caller, Run
from kubeup.errors import KbError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.node import certificates, crictl, rotated_pairs
from kubeup.paths import Paths
from kubeup.phases import control_plane, join_control_plane, join_worker
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.secret import Secret
from kubeup.yaml_files import load_yaml
from tests.fake_host import KUBELET_STARTS
from tests.fake_node import finished_node, make_ca_unfit
from tests.plans import do, is_done
from tests.unit.cluster.discovery_case import make_ca
from tests.unit.golden import golden_config
from tests.unit.phases.test_kubelet_start import SystemdHost

KEY = Secret("ab" * 32)
API, OWN_API = "https://10.77.0.11:6443", "https://10.77.0.12:6443"
CP1_ETCD, OWN_ETCD, OWN_PEER = "https://10.77.0.11:2379", "https://10.77.0.12:2379", "https://10.77.0.12:2380"
MANIFEST = "/etc/kubernetes/manifests/etcd.yaml"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kb-control-plane-join"
FIRST = finished_node()
"""The first control plane, whose files are shared."""


@dataclass
class SecondHost(SystemdHost):
    """A machine that joins: the cluster's objects are a dict, and its etcd is a list of members that obey etcd's rules.
    Once etcd's manifest lies here, its member starts after `starts_after_s`."""

    objects: dict[str, Any] = field(default_factory=dict)
    members: list[dict[str, Any]] = field(default_factory=list)
    starts_after_s: float = 1.0
    refusals: list[str] = field(default_factory=list)
    """What etcd says to the next requests to add a member."""
    in_sync_after: int = 2
    """How often a promotion is refused first."""
    written_at: Optional[float] = None
    dead: set[str] = field(default_factory=set)
    adds: int = 0

    def write_file(self, path: Path, data: Any, **rest: Any) -> bool:
        if str(path) == MANIFEST:
            self.written_at = self.ticks
        return super().write_file(path, data, **rest)

    def symlink(self, path: Path, target: str) -> bool:
        return super().write_file(path, self.files[target])  # whoever reads the link reads what it leads to

    def _own(self) -> Optional[dict[str, Any]]:
        return next((m for m in self.members if m["peerURLs"] == [OWN_PEER]), None)

    def _live(self) -> None:
        own = self._own()
        is_due = self.written_at is not None and self.ticks - self.written_at >= self.starts_after_s
        if own and is_due and MANIFEST in self.files:
            own.update(name="cp2", clientURLs=[OWN_ETCD])
            self.files["/var/lib/etcd/member/wal"] = b""

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        parts = urllib.parse.urlsplit(url)
        if f"{parts.scheme}://{parts.netloc}" not in (API, OWN_API):
            raise Unreachable(url, "refused", text="connection refused")
        found = self.objects.get(parts.path)
        if parts.path.endswith("/pods"):
            note = {"kubeadm.kubernetes.io/etcd.advertise-client-urls": CP1_ETCD}
            found = {"items": [{"metadata": {"annotations": note}}]}
        return HttpResponse(200, json.dumps(found).encode()) if found else HttpResponse(404, b"{}")

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:
        return self.http_send("POST", url, body=body)

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Optional[Tls] = None,
        headers: Optional[Mapping[str, str]] = None, timeout_s: float = 10,
    ) -> HttpResponse:  # fmt: skip
        value = json.loads(body) if body else {}
        if "/v3/" in url:
            endpoint, _, verb = url.partition("/v3/")
            return self._etcd(endpoint, verb, value)
        path = urllib.parse.urlsplit(url).path
        if method == "DELETE":
            return HttpResponse(200 if self.objects.pop(path, None) else 404, b"{}")
        path = f"{path}/{value['metadata']['name']}" if method == "POST" else path
        value["metadata"].setdefault("resourceVersion", "1")
        self.objects[path] = value
        return HttpResponse(200, json.dumps(value).encode())

    def _etcd(self, endpoint: str, verb: str, value: Any) -> HttpResponse:
        self._live()
        own = self._own()
        is_own = endpoint == OWN_ETCD
        if endpoint in self.dead or endpoint not in (CP1_ETCD, OWN_ETCD) or (is_own and not (own and own.get("name"))):
            raise Unreachable(endpoint, "refused", text="connection refused")
        if verb == "cluster/member/list" or verb == "maintenance/status":
            return HttpResponse(200, json.dumps({"members": self.members}).encode())
        if verb == "kv/range":
            is_learner = is_own and bool(own and own.get("isLearner"))
            return _said("rpc not supported for learner") if is_learner else HttpResponse(200, b"{}")
        if verb == "cluster/member/add":
            self.adds += 1
            if self.refusals:
                return _said(self.refusals.pop(0))
            self.members.append({"ID": str(90 + self.adds), "peerURLs": value["peerURLs"], "isLearner": True})
            return HttpResponse(200, json.dumps({"members": self.members}).encode())
        found = next(m for m in self.members if m["ID"] == value["ID"])
        if verb == "cluster/member/remove":
            self.members.remove(found)
            return HttpResponse(200, b"{}")
        assert verb == "cluster/member/promote"
        self.in_sync_after -= 1
        if self.in_sync_after >= 0:
            return _said("can only promote a learner member which is in sync with leader")
        found.pop("isLearner")
        return HttpResponse(200, b"{}")


def _said(text: str) -> HttpResponse:
    return HttpResponse(503, json.dumps({"message": f"etcdserver: {text}"}).encode())


def second(**fields: Any) -> SecondHost:
    machine: dict[str, Any] = {
        "programs": {"systemctl", "kubelet"},
        "dirs": {"/run/systemd/system"},
        "accepts": KUBELET_STARTS,
    }
    host = SecondHost(host_name="cp2", **machine, **fields)
    host.answers["systemctl is-active kubelet"] = CommandResult(("systemctl",), 3, "inactive\n")
    if not host.members:
        host.members = [{"ID": "1", "name": "cp1", "peerURLs": ["https://10.77.0.11:2380"], "clientURLs": [CP1_ETCD]}]
    files = shared_certs.read_shared_files(FIRST, Paths(), cluster=golden_config().cluster)
    secret = shared_certs.render_certs_secret(files, KEY, token_id="abcdef", token_uid="u")
    host.objects["/api/v1/namespaces/kube-system/secrets/kubeadm-certs"] = secret
    return host


PREPARED = (join_control_plane.plan_shared_certs, join_control_plane.plan_certs, join_control_plane.plan_kubeconfigs)


def config(**fields: Any) -> NodeConfig:
    cluster = replace(golden_config().cluster, control_plane_endpoint="k8s.example:6443")
    node = NodeRegistration("cp2")
    join = Join(
        API, FIRST.files["/etc/kubernetes/pki/ca.crt"].decode(), bootstrap_kubeconfig=Secret("x"),
        control_plane=JoinControlPlane(certificate_key=KEY),
    )  # fmt: skip
    found = NodeConfig(cluster, node, LocalAPIEndpoint("10.77.0.12"), join=join, certificate_key=KEY)
    return replace(found, **fields)


def context(host: Any, wanted: Optional[NodeConfig] = None) -> Run:
    return Run(host=host, paths=Paths(), config=wanted or config(), release=RELEASES[35], report=Report(io.StringIO(), verbosity=2),
        caller=Caller(lambda who: api.Api(host, api.Identity(API, Tls()), retry_s=0)),
    )  # fmt: skip


def prepared(**fields: Any) -> tuple[SecondHost, Run]:
    """Certificates and kubeconfigs are in place; etcd comes next."""
    host = second(**fields)
    ctx = context(host)
    join_control_plane.check_prepared(ctx)
    do(join_control_plane.plan_shared_certs, ctx)
    do(join_control_plane.plan_certs, ctx)
    do(join_control_plane.plan_kubeconfigs, ctx)
    return host, ctx


def fails(code: str, call: Any, ctx: Run) -> KbError:
    with pytest.raises(KbError) as caught:
        call(ctx)
    assert caught.value.code == code, caught.value
    return caught.value


# ---- the tuple


def test_the_order() -> None:
    names = [phase.name for phase in kb.JOIN]
    for first, then in (
        ("control-plane-prepare/download-certs", "control-plane-prepare/certs"),
        ("check-etcd", "kubelet-start"),
        ("kubelet-start", "etcd-join"),
        ("etcd-join", "control-plane-prepare/control-plane"),
        ("control-plane-prepare/control-plane", "wait-control-plane"),
    ):
        assert names.index(first) < names.index(then)
    kubeadms = {"preflight", "control-plane-prepare/download-certs", "control-plane-prepare/certs", "check-etcd",
                "control-plane-prepare/kubeconfig", "control-plane-prepare/control-plane", "kubelet-start", "etcd-join",
                "kubelet-wait-bootstrap", "control-plane-join/mark-control-plane", "wait-control-plane"}  # fmt: skip
    assert kubeadms <= set(names)


# ---- before anything is written


def test_a_cluster_without_an_endpoint_is_refused() -> None:
    wanted = config(cluster=golden_config().cluster)
    error = fails("no-control-plane-endpoint", join_control_plane.check_prepared, context(second(), wanted))
    assert "kb reconfigure endpoint" in error.remedy


def test_what_may_be_wrong_with_the_uploaded_certificates() -> None:
    host = second()
    fails(
        "certificate-key-wrong",
        join_control_plane.check_prepared,
        context(host, config(certificate_key=Secret("cd" * 32))),
    )
    wanted = replace(config(), join=replace(config().joined, ca_pem=make_ca()))
    fails("certs-of-another-cluster", join_control_plane.check_prepared, context(host, wanted))
    host.objects.clear()
    error = fails("certs-secret-missing", join_control_plane.check_prepared, context(host))
    assert "two hours" in error.cause and "--control-plane" in error.remedy
    assert host.files == {}


def test_without_a_key_the_files_must_be_there() -> None:
    error = fails(
        "shared-files-missing", join_control_plane.check_prepared, context(second(), config(certificate_key=Secret("")))
    )
    assert "pki/sa.key" in error.cause and "ca.key" not in error.cause.split("sa.key")[0].replace("etcd/ca", "")


# ---- while a shared key is rotated


def shares(host: SecondHost, files: Mapping[str, str]) -> None:
    """The first control plane has uploaded these in the place of its own."""
    texts = shared_certs.read_shared_files(FIRST, Paths(), cluster=golden_config().cluster)
    texts.update({name.replace("/", "-"): text.encode() for name, text in files.items()})
    secret = shared_certs.render_certs_secret(texts, KEY, token_id="abcdef", token_uid="u")
    host.objects["/api/v1/namespaces/kube-system/secrets/kubeadm-certs"] = secret


def rotates(host: SecondHost, what: str, *, stage: str) -> rotated_pairs.Pair:
    """A rotation of a pair of the first control plane's is under way; returns the following one."""
    authority = amid_rotation.AUTHORITIES[what]
    present = rotated_pairs.read_pair(FIRST, rotated_pairs.place_of(Paths(), authority))
    made = rotated_pairs.make_pair(FIRST, golden_config().cluster, authority=authority)
    one = amid_rotation.Rotation(what, stage, present.id, made.id)
    host.objects[amid_rotation.PATH] = {"metadata": {"name": "kb-rotation"}, "data": rotation._render(one)["data"]}
    return made


def texts_of(what: str, following: rotated_pairs.Pair, *, stage: str) -> dict[str, str]:
    """The pair's files in a stage."""
    place = rotated_pairs.place_of(Paths(), amid_rotation.AUTHORITIES[what])
    former = rotated_pairs.read_pair(FIRST, place)
    present = FIRST.files[str(place.public)].decode()
    public = rotated_pairs.render_public(present, former=former, following=following, stage=stage)
    key = rotated_pairs.holder_of_key(stage, former=former, following=following).key_pem.reveal()
    names = [str(path.relative_to(Paths().pki)) for path in (place.public, place.key)]
    return {names[0]: public, names[1]: key}


STAGES = ("trust", "use", "drop")
CHECKED = (
    join_control_plane.check_prepared,
    partial(do, join_control_plane.plan_shared_certs),
    partial(do, join_control_plane.plan_certs),
    partial(do, join_control_plane.plan_kubeconfigs),
    partial(do, join_control_plane.plan_components),
)
"""Preflight, and each phase that may be run alone."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("check", CHECKED)
def test_no_control_plane_joins_while_the_cluster_s_authority_is_rotated(stage: str, check: Any) -> None:
    host = second()
    following = rotates(host, "cluster", stage=stage)
    files = texts_of("cluster", following, stage=stage)
    shares(host, files)
    if check is not CHECKED[0] and check is not CHECKED[1]:
        lay(host, files)
    joined = replace(config().joined, ca_pem=files["ca.crt"])
    error = fails("rotation-under-way", check, context(host, replace(config(), join=joined)))
    assert "kb certs rotate-ca cluster --continue" in error.remedy and stage in error.cause
    assert not [name for name in host.files if "/manifests/" in name or name.endswith(".conf")]


def lay(host: SecondHost, files: Mapping[str, str]) -> None:
    """The shared files are on the machine already."""
    texts = shared_certs.read_shared_files(FIRST, Paths(), cluster=golden_config().cluster)
    paths = shared_certs.shared_files(Paths(), golden_config().cluster)
    texts.update({name.replace("/", "-"): text.encode() for name, text in files.items()})
    host.files.update({str(paths[name]): text for name, text in texts.items()})


def test_two_certificates_in_ca_crt_are_enough_to_know_it() -> None:
    """Where an older kb rotates, whose record the token may not read; but not where the configuration names another file to sign with."""
    host = second()
    files = texts_of("cluster", rotates(host, "cluster", stage="trust"), stage="trust")
    shares(host, files)
    del host.objects[amid_rotation.PATH]
    error = fails("rotation-under-way", join_control_plane.check_prepared, context(host))
    assert "holds 2 certificates" in error.cause
    cluster = config().cluster
    args = (Arg("cluster-signing-cert-file", "/etc/kubernetes/pki/one.crt"),)
    named = replace(cluster, controller_manager=replace(cluster.controller_manager, extra_args=args))
    joined = replace(config().joined, ca_pem=files["ca.crt"])
    join_control_plane.check_prepared(context(host, config(cluster=named, join=joined)))


@pytest.mark.parametrize("what", ["sa", "front-proxy", "etcd"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_control_plane_joins_another_rotation_with_the_files_of_its_stage(what: str, stage: str) -> None:
    host = second()
    following = rotates(host, what, stage=stage)
    for other in STAGES:
        shares(host, texts_of(what, following, stage=other))
        ctx = context(host)
        if other == stage or (stage, other) in FIT:
            join_control_plane.check_prepared(ctx)
            assert ctx.found.rotation is not None and ctx.found.rotation[0] is not None
            continue
        error = fails("rotation-under-way", join_control_plane.check_prepared, ctx)
        assert "upload-certs" in error.remedy and host.files == {}
    former = second()
    former.objects[amid_rotation.PATH] = host.objects[amid_rotation.PATH]
    if stage == "trust":  # nobody uses the other one yet, and the next stage waits for this node
        join_control_plane.check_prepared(context(former))
    else:
        fails("rotation-under-way", join_control_plane.check_prepared, context(former))


FIT = {("use", "trust"), ("drop", "use")}
"""(the stage, that of the files) that go together: the files of a stage before accept what is used, and use what is accepted."""


# ---- control-plane-prepare


def test_the_files_of_a_second_control_plane() -> None:
    host, ctx = prepared()
    for name in ("ca.key", "front-proxy-ca.key", "sa.key", "etcd/ca.key"):
        assert host.files[f"/etc/kubernetes/pki/{name}"] == FIRST.files[f"/etc/kubernetes/pki/{name}"]
        assert host.modes[f"/etc/kubernetes/pki/{name}"] == 0o600
    serving = certificates.parse_certs(host.files["/etc/kubernetes/pki/apiserver.crt"].decode())[0]
    sans = certificates.sans_of(serving)
    assert {"10.77.0.12", "10.96.0.1"} <= set(map(str, sans.ips)) and {"cp2", "k8s.example"} <= set(sans.dns)
    confs = [name for name in host.files if name.endswith(".conf") and name.startswith("/etc/kubernetes/")]
    assert sorted(Path(name).stem for name in confs) == ["admin", "controller-manager", "kubelet", "scheduler"]
    admin = load_yaml(host.files["/etc/kubernetes/admin.conf"].decode())
    assert admin["clusters"][0]["cluster"]["server"] == "https://k8s.example:6443"
    kubelet = load_yaml(host.files["/etc/kubernetes/kubelet.conf"].decode())
    assert kubelet["clusters"][0]["cluster"]["server"] == OWN_API
    user = kubelet["users"][0]["user"]
    assert user == dict.fromkeys(
        ("client-certificate", "client-key"), "/var/lib/kubelet/pki/kubelet-client-current.pem"
    )
    (dated,) = [name for name in host.files if name.startswith("/var/lib/kubelet/pki/kubelet-client-2")]
    assert host.modes[dated] == 0o600 and b"PRIVATE KEY" in host.files[dated] and b"CERTIFICATE" in host.files[dated]
    for plan in PREPARED:
        assert is_done(plan, ctx), plan
    host.changes.clear()
    do(join_control_plane.plan_shared_certs, ctx)
    do(join_control_plane.plan_certs, ctx)
    do(join_control_plane.plan_kubeconfigs, ctx)
    assert host.changes == []


def test_an_authority_that_may_not_sign_ends_the_join_before_anything_is_issued() -> None:
    host = second()
    ctx = context(host)
    do(join_control_plane.plan_shared_certs, ctx)
    make_ca_unfit(host)
    error = fails("ca-unfit", partial(do, join_control_plane.plan_certs), ctx)
    assert "keyCertSign" in error.cause and not any("apiserver" in name for name in host.files)


def test_an_authority_that_ends_soon_is_told_at_the_join() -> None:
    host = second()
    ctx = context(host)
    do(join_control_plane.plan_shared_certs, ctx)
    host.clock += datetime.timedelta(days=9 * 365 + 100)
    do(join_control_plane.plan_certs, ctx)
    assert len([text for text in ctx.report.warnings if "before the certificates that it signs" in text]) == 3


def test_no_authority_is_ever_made_and_no_key_written_over() -> None:
    host = second()
    ctx = context(host)
    fails("shared-files-missing", partial(do, join_control_plane.plan_certs), ctx)
    assert host.files == {} and not is_done(join_control_plane.plan_certs, ctx)
    host.files["/etc/kubernetes/pki/sa.key"] = b"another cluster's"
    fails("shared-file-differs", partial(do, join_control_plane.plan_shared_certs), ctx)
    assert host.files["/etc/kubernetes/pki/sa.key"] == b"another cluster's"


def test_a_ca_that_signs_elsewhere_leaves_the_kubelet_to_its_bootstrap() -> None:
    host, ctx = prepared()
    for name in ("kubelet.conf", "pki/ca.key"):
        del host.files[f"/etc/kubernetes/{name}"]
    do(join_control_plane.plan_kubeconfigs, ctx)
    assert "/etc/kubernetes/kubelet.conf" not in host.files
    assert is_done(join_control_plane.plan_kubeconfigs, ctx)


def test_the_kubelet_starts_with_its_identity_and_without_taints() -> None:
    host, ctx = prepared()
    do(join_worker.plan_kubelet, ctx)
    assert "/etc/kubernetes/bootstrap-kubelet.conf" not in host.files
    assert b"register-with-taints" not in host.files["/var/lib/kubelet/kubeadm-flags.env"]
    assert "run systemctl restart kubelet" in host.changes
    host.changes.clear()
    assert join_worker.wait_for_bootstrap(ctx) is None and host.changes == []


# ---- etcd


def test_a_member_gets_its_vote_and_the_queue_is_left() -> None:
    host, ctx = prepared()
    join_control_plane.check_etcd(ctx)
    join_control_plane.join_etcd(ctx)
    assert [(m["name"], m.get("isLearner", False)) for m in host.members] == [("cp1", False), ("cp2", False)]
    command = load_yaml(host.files[MANIFEST].decode())["spec"]["containers"][0]["command"]
    assert "--initial-cluster=cp1=https://10.77.0.11:2380,cp2=https://10.77.0.12:2380" in command
    assert "--initial-cluster-state=existing" in command
    assert LEASE not in host.objects and host.in_sync_after < 0
    assert join_control_plane.is_etcd_member(ctx)
    join_control_plane.join_etcd(ctx)  # again
    assert host.adds == 1 and len(host.members) == 2


def test_a_member_that_does_not_start_is_taken_out_again() -> None:
    host, ctx = prepared(starts_after_s=1e9)
    error = fails("not-healthy", join_control_plane.join_etcd, ctx)
    assert any("taken out of etcd's list again" in text and "1 of 1" in text for text in error.details)
    assert [m["name"] for m in host.members] == ["cp1"] and MANIFEST not in host.files
    assert LEASE not in host.objects
    host.starts_after_s = 1.0
    join_control_plane.join_etcd(ctx)
    assert len(host.members) == 2 and "isLearner" not in host.members[1]


def test_a_signal_leaves_no_learner_behind() -> None:
    host, ctx = prepared(starts_after_s=1e9)

    def stop(seconds: float) -> None:
        if MANIFEST in host.files:
            raise KeyboardInterrupt

    host.sleep = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        join_control_plane.join_etcd(ctx)
    assert [m["name"] for m in host.members] == ["cp1"] and LEASE not in host.objects


def test_a_run_that_was_killed_is_gone_on_with() -> None:
    host, ctx = prepared()
    host.members.append({"ID": "9", "peerURLs": [OWN_PEER], "isLearner": True})
    join_control_plane.join_etcd(ctx)
    assert host.adds == 0 and [m["ID"] for m in host.members] == ["1", "9"] and "isLearner" not in host.members[1]


def test_a_former_life_is_named_and_replaced() -> None:
    host, ctx = prepared()
    host.members.append({"ID": "7", "name": "cp2", "peerURLs": [OWN_PEER], "clientURLs": [OWN_ETCD]})
    host.dead.add(OWN_ETCD)
    join_control_plane.check_etcd(ctx)
    host.dead.clear()
    join_control_plane.join_etcd(ctx)
    assert [m["ID"] for m in host.members] == ["1", "91"]
    assert any("former member cp2 (https://10.77.0.12:2380)" in note for note in ctx.report.notes)


@pytest.mark.parametrize(
    "refusal", ["etcdserver: unhealthy cluster", "etcdserver: too many learner members in cluster"]
)
def test_what_etcd_refuses_for_a_moment_is_waited_for(refusal: str) -> None:
    host, ctx = prepared(refusals=[refusal.partition(": ")[2]] * 3)
    if "learner" in refusal:
        host.members.append({"ID": "5", "name": "", "peerURLs": ["https://10.77.0.13:2380"], "isLearner": True})
    join_control_plane.join_etcd(ctx)
    assert host.adds == 4


def test_a_learner_that_nobody_finishes_is_named() -> None:
    host, ctx = prepared(refusals=["too many learner members in cluster"] * 10000)
    host.members.append({"ID": "171", "peerURLs": ["https://10.77.0.13:2380"], "isLearner": True})
    error = fails("etcd-busy", join_control_plane.join_etcd, ctx)
    assert "10.77.0.13" in error.what and "kb etcd remove ab" in error.remedy and MANIFEST not in host.files


def test_a_dead_member_is_named_before_the_kubelet_starts() -> None:
    dead = {
        "ID": "3",
        "name": "cp3",
        "peerURLs": ["https://10.77.0.13:2380"],
        "clientURLs": ["https://10.77.0.13:2379"],
    }
    host, ctx = prepared()
    host.members += [dead, {**dead, "ID": "4", "name": "cp4", "peerURLs": ["https://x:2380"], "clientURLs": [CP1_ETCD]}]
    error = fails("etcd-member-down", join_control_plane.check_etcd, ctx)
    assert "cp3" in error.what and "kb etcd remove cp3" in error.remedy


def test_without_any_member_that_answers() -> None:
    host, ctx = prepared()
    host.dead.add(CP1_ETCD)
    fails("etcd-unreachable", join_control_plane.check_etcd, ctx)


def test_the_queue_says_for_whom_it_waits_and_ends() -> None:
    host, ctx = prepared()
    spec = {"holderIdentity": "cp9", "leaseDurationSeconds": 15, "renewTime": "t0"}
    host.objects[LEASE] = {"metadata": {"resourceVersion": "1"}, "spec": spec}
    beat = iter(range(10**6))
    sleep = host.sleep

    def renewing(seconds: float) -> None:
        sleep(seconds)
        spec["renewTime"] = f"t{next(beat)}"

    host.sleep = renewing  # type: ignore[method-assign]
    error = fails("join-queue", join_control_plane.join_etcd, ctx)
    assert "cp9" in error.what and host.adds == 0
    assert any("control plane cp9 is joining" in note for note in ctx.report.notes)
    host.sleep = sleep  # type: ignore[method-assign]
    join_control_plane.join_etcd(ctx)  # cp9 renews no more: it died
    assert host.adds == 1


def test_an_external_etcd_is_asked_whether_it_serves_and_left_alone() -> None:
    from kubeup.config.types import ExternalEtcd

    external = ExternalEtcd(("https://e1:2379", "https://e2:2379/"))
    host = second()
    answers: dict[str, HttpResponse] = {}
    look = host.http_get

    def http_get(url: str, **more: Any) -> HttpResponse:
        return answers[url] if url in answers else look(url, **more)

    host.http_get = http_get  # type: ignore[method-assign]
    ctx = context(host, config(cluster=replace(config().cluster, local_etcd=None, external_etcd=external)))
    error = fails("etcd-unreachable", join_control_plane.check_etcd, ctx)
    assert error.cause.startswith("https://e1:2379: no answer: ") and "; https://e2:2379/: no answer: " in error.cause
    assert "curl -vk https://e1:2379/health" in error.remedy
    answers["https://e1:2379/health"] = HttpResponse(503, b'{"health":"false","reason":"RAFT NO LEADER"}')
    assert "RAFT NO LEADER" in fails("etcd-unreachable", join_control_plane.check_etcd, ctx).cause
    answers["https://e2:2379/health"] = HttpResponse(200, b'{"health":"true","reason":""}')
    assert join_control_plane.check_etcd(ctx) is None, "one is enough for an API server"
    assert join_control_plane.join_etcd(ctx) is None
    assert join_control_plane.is_etcd_member(ctx)


def test_the_manifests_come_after() -> None:
    host, ctx = prepared()
    assert not is_done(control_plane.plan_components, ctx)
    do(control_plane.plan_components, ctx)
    assert is_done(control_plane.plan_components, ctx)
    pod = load_yaml(host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"].decode())
    assert "--advertise-address=10.77.0.12" in pod["spec"]["containers"][0]["command"]


def test_data_of_a_member_that_was_removed_is_cleared_and_foreign_data_is_not() -> None:
    host, ctx = prepared()
    join_control_plane.join_etcd(ctx)
    del host.members[1]  # kb etcd remove cp2, on the first
    fails("etcd-data-foreign", join_control_plane.join_etcd, ctx)
    assert "/var/lib/etcd/member/wal" in host.files
    join_control_plane.join_etcd(replace(ctx, owned_paths=frozenset({MANIFEST})))
    assert "remove /var/lib/etcd/member" in host.changes and [m["ID"] for m in host.members] == ["1", "92"]
    assert any("its data here was removed" in note for note in ctx.report.notes)


def test_a_member_that_missed_the_word_of_its_own_entry_is_started_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host, ctx = prepared()
    host.programs.add("crictl")
    host.answers["crictl"] = "c0ffee\n"
    stop = " ".join(crictl.crictl_argv(ctx.config.node.cri_socket, "stop", "--timeout", "0", "c0ffee"))
    host.accepts = {*KUBELET_STARTS, stop}
    answer, heard = host._etcd, []

    def deaf(endpoint: str, verb: str, value: Any) -> HttpResponse:
        if (
            verb == "kv/range"
            and endpoint == OWN_ETCD
            and not any("stop --timeout 0 c0ffee" in c for c in host.changes)
        ):
            heard.append(host.ticks)
            host.ticks += etcd.READ_S
            raise Unreachable(endpoint, "timeout", text="timed out")
        return answer(endpoint, verb, value)

    host._etcd = deaf  # type: ignore[method-assign]
    join_control_plane.join_etcd(ctx)
    assert len(heard) == 1, "one probe without an answer is enough"
    assert len([change for change in host.changes if "stop --timeout" in change]) == 1
    assert "isLearner" not in host.members[1]
    assert ctx.found.turn is not None and LEASE in host.objects, (
        "with one of two members away, nothing could be written"
    )
    for name in ("wait_for_control_plane", "wait_for_controllers"):
        monkeypatch.setattr(join_control_plane, name, lambda own: None)
    join_control_plane.wait_for_instance(ctx)
    assert LEASE not in host.objects, "the next one may join"
