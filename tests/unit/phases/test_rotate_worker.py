"""A worker in a rotation of the cluster's authority: its kubelet follows each stage with its own rights, and asks for its certificate."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest
from cryptography import x509

from kubeup.airgap import containerd_hosts
from kubeup.cluster import rotation
from kubeup.cluster.api import Api, Identity
from kubeup.cluster.rotation import Rotation
from kubeup.config.types import ClusterConfiguration, Join
from kubeup.engine.run import Caller, Outputs
from kubeup.errors import ClusterError
from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.http import HttpResponse, Tls
from kubeup.node import certificates, kubeconfig, private_keys, rotated_pairs
from kubeup.node.rotated_pairs import DROP, TRUST, USE, Pair
from kubeup.phases import rotated_copies
from kubeup.phases.rotate_worker import WorkerRun
from kubeup.report import Report
from kubeup.secret import Secret
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost
from tests.fake_node import make_config, make_context

SERVER = "https://10.0.0.11:6443"
CA, CONF = "/etc/kubernetes/pki/ca.crt", "/etc/kubernetes/kubelet.conf"
FOLDER = "/var/lib/kubelet/pki"
PEM, SERVING = f"{FOLDER}/kubelet-client-current.pem", f"{FOLDER}/kubelet-server-current.pem"
MIRROR = str(containerd_hosts.CA_FILE)
NODE, LEASE = "/api/v1/nodes/w1", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/w1"
RECORD = "/api/v1/namespaces/kube-system/configmaps/kb-rotation"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
CLUSTER = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")


def make_pair() -> Pair:
    return rotated_pairs.make_pair(FakeHost(), CLUSTER, authority="ca")


@dataclass
class Worker(FakeHost):
    """former, following: the authorities. signer: which of them the controller-manager signs with; None: it signs nothing."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    former: Pair = field(default_factory=make_pair)
    following: Pair = field(default_factory=make_pair)
    signer: Any = None
    is_forbidden: bool = False

    def symlink(self, path: Path, target: str) -> bool:
        return self.write_file(path, self.files[target])

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        if tuple(map(str, argv)) == ("systemctl", "restart", "kubelet"):
            self.cluster.objects[LEASE]["spec"]["renewTime"] = f"{self.clock:%Y-%m-%dT%H:%M:%S.000000Z}"
            if self.signer and self.files.get(SERVING) is None and self.is_serving:
                self.files[SERVING] = issue(self.signer, "system:node:w1")[0].encode()
        return super().run(argv, **more)

    is_serving: bool = False

    def http_get(self, url: str, **more: Any) -> HttpResponse:
        if self.is_forbidden and url.endswith("/kb-rotation"):
            return HttpResponse(403, b'{"kind": "Status", "reason": "Forbidden"}')
        return self.cluster.answer("GET", url, b"", {})

    def http_send(self, method: str, url: str, *, body: bytes = b"", headers: Any = None, **more: Any) -> HttpResponse:
        found = self.cluster.answer(method, url, body, headers or {})
        for path, one in self.cluster.objects.items():
            if path.startswith(REQUESTS) and self.signer:
                spec = one["spec"]
                assert spec["usages"] == ["digital signature", "client auth"]
                assert spec["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
                one["status"] = {"certificate": sign(self.signer, base64.b64decode(spec["request"]))}
        return found

    def certs(self, path: str) -> list[x509.Certificate]:
        return list(certificates.parse_certs(self.files[path].decode()))

    def mark(self) -> str:
        return rotation.read_mark(self.cluster.objects[NODE])


def issue(signer: Pair, name: str, key: Any = None) -> tuple[str, str]:
    key = key or private_keys.generate_key("ECDSA-P256")
    ca = certificates.Ca(signer.cert, signer.key, Path(CA))
    subject = certificates.Subject(name, ("system:nodes",), is_client=True, is_server=True)
    validity = certificates.plan_validity(FakeHost().now(), 86400)
    cert = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
    return certificates.cert_to_pem(cert), private_keys.key_to_pem(key).reveal()


def sign(signer: Pair, request: bytes) -> str:
    """What the controller-manager makes of a request: the same names and key."""
    asked = x509.load_pem_x509_csr(request)
    name = certificates.common_name_of_request(request.decode())
    groups = [str(part.value) for part in asked.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)]
    assert (name, groups) == ("system:node:w1", ["system:nodes"])
    issued, _ = issue(signer, name, _PublicOnly(asked.public_key()))
    return base64.b64encode(issued.encode()).decode()


class _PublicOnly:
    """A key of which only the public half is known."""

    def __init__(self, public: Any) -> None:
        self._public = public

    def public_key(self) -> Any:
        return self._public

    def private_bytes(self, *_: Any) -> bytes:
        return b""


def make_worker(stage: str, *, undo: bool = False) -> Worker:
    host = Worker(accepts=frozenset({"systemctl daemon-reload", "systemctl restart kubelet"}))
    host.programs, host.dirs = {"systemctl", "kubelet"}, {"/run/systemd/system"}
    cert, key = issue(host.former, "system:node:w1")
    text = kubeconfig.render_kubeconfig(
        server=SERVER, ca_pem=host.former.cert_pem, user="u", cluster_name="c", token=Secret("t")
    )
    document = load_yaml(text)
    document["users"][0]["user"] = {"client-certificate": PEM, "client-key": PEM}
    host.files = {CA: host.former.cert_pem.encode(), CONF: dump_yaml(document).encode(), PEM: (cert + key).encode()}
    host.cluster.objects[NODE] = {
        "kind": "Node", "metadata": {"name": "w1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip
    host.cluster.objects[LEASE] = {
        "kind": "Lease",
        "metadata": {"name": "w1"},
        "spec": {"renewTime": "2025-01-01T00:00:00.000000Z"},
    }
    tell(host, stage)
    return host


def tell(host: Worker, stage: str) -> Rotation:
    certs = (host.former.cert_pem, host.following.cert_pem)
    one = Rotation("cluster", stage, host.former.id, host.following.id, certs=certs)
    host.cluster.objects[RECORD] = rotation._render(one)
    return one


def run(host: Worker, *, told: Optional[io.StringIO] = None, **kubelet: Any) -> Outputs:
    config = dataclasses.replace(make_config(node="w1"), join=Join(SERVER), kubelet=kubelet)
    base = make_context(host, config)
    caller = Caller.by(Api(host, Identity(SERVER, Tls()), retry_s=0))
    values = {**base.values(), "caller": caller, "command": "kb x", "title": "the authority"}
    ctx = WorkerRun(**{**values, "report": Report(told) if told is not None else base.report})
    found = [ctx.take(stage) for stage in (TRUST, USE, DROP)]
    return next((one for one in found if one is not None), None)


def conf_of(host: Worker) -> kubeconfig.Kubeconfig:
    return kubeconfig.read_kubeconfig(host.files[CONF].decode(), host=host, path=Path(CONF))


def test_each_stage_in_turn() -> None:
    host = make_worker(TRUST)
    host.files[MIRROR] = host.former.cert_pem.encode()
    other = make_pair().cert_pem
    host.files[CA] += other.encode()
    former, following = host.former.cert, host.following.cert
    done = run(host)
    assert host.certs(CA)[:2] == host.certs(MIRROR) == [former, following] and host.mark() == tell(host, TRUST).mark
    assert set(certificates.parse_certs(conf_of(host).ca_pem)) == {former, following}
    assert len(host.certs(CA)) == 3, "what others put there stays"
    assert certificates.is_issued_by(host.certs(PEM)[0], former) and done is not None and done.remaining
    changes = len(host.changes)
    run(host)
    assert len(host.changes) == changes, "once is enough"

    tell(host, USE)
    host.signer = host.following
    run(host)
    assert certificates.is_issued_by(host.certs(PEM)[0], following) and host.mark() == tell(host, USE).mark
    pair = host.files[PEM].decode()
    assert private_keys.is_key_of(private_keys.parse_key(pair), host.certs(PEM)[0])

    tell(host, DROP)
    run(host)
    assert host.certs(CA)[0] == following and former not in host.certs(CA) and host.certs(MIRROR) == [following]
    assert certificates.parse_certs(conf_of(host).ca_pem) == (following,)


def test_the_kubeconfigs_of_this_node_s_users_are_named_by_it() -> None:
    """Wherever a user lives, and whatever the file is called; each run in the second stage tells it."""
    host = make_worker(USE)
    host.signer = host.following
    old, both = (render_conf(ca) for ca in (host.former.cert_pem, host.former.cert_pem + host.following.cert_pem))
    ends = [
        "/home/ann/.kube/config",
        "/srv/bob/.kube/work.yaml",
        "/srv/bob/prod.kubeconfig",
        "/etc/kubernetes/hook.conf",
    ]
    stays = ["/root/.kube/config", "/var/lib/service/.kube/config", "/home/ann/.kube/other"]
    host.files["/etc/passwd"] = (
        b"root:x:0:0::/root:/bin/sh\nservice:x:101:101::/var/lib/service:/bin/false\nbob:x:1001:1001:,:/srv/bob:/bin/sh\nodd:x\n"
    )
    host.files.update(dict.fromkeys(ends, old))
    host.files.update({stays[0]: both, stays[1]: old, stays[2]: b"a: ["})
    for _ in range(2):
        told = io.StringIO()
        run(host, told=told)
        assert [path for path in (*ends, *stays) if path in told.getvalue()] == ends, told.getvalue()
        assert "/srv/bob" in told.getvalue() and "elsewhere are in no list" in told.getvalue()
    for path in ends:
        del host.files[path]
    told = io.StringIO()
    run(host, told=told)
    assert "no kubeconfig on this node ends" in told.getvalue() and "/root" in told.getvalue()


def render_conf(ca_pem: str) -> bytes:
    return kubeconfig.render_kubeconfig(
        server=SERVER, ca_pem=ca_pem, user="u", cluster_name="c", token=Secret("t")
    ).encode()


def test_a_kubeconfig_whose_certificate_has_ended_is_nobody_s() -> None:
    host = make_worker(USE)
    cert, key = issue(host.former, "u")
    text = kubeconfig.render_kubeconfig(
        server=SERVER, ca_pem=host.former.cert_pem, user="u", cluster_name="c", client_cert_pem=cert, client_key_pem=Secret(key)
    )  # fmt: skip
    host.files["/root/.kube/config"] = text.encode()
    pair, ctx = {"former": host.former.cert, "following": host.following.cert}, make_context(host)
    assert [*rotated_copies.find_copies(ctx, **pair)] == [Path("/root/.kube/config")]
    host.clock += datetime.timedelta(days=2)
    assert [*rotated_copies.find_copies(ctx, **pair)] == []


def test_a_controller_manager_of_the_stage_before_signs_nothing_that_counts() -> None:
    host = make_worker(USE)
    host.signer, before = host.former, host.files[PEM]
    with pytest.raises(ClusterError) as caught:
        run(host)
    assert caught.value.code == "rotation-not-proven" and host.files[PEM] == before and not host.mark()
    host.signer = None
    with pytest.raises(ClusterError) as caught:
        run(host)
    assert caught.value.code == "csr-pending"


def test_none_is_under_way() -> None:
    host = make_worker(TRUST)
    host.is_forbidden = True
    assert run(host) is None and host.changes == []
    host.is_forbidden = False
    del host.cluster.objects[RECORD]
    assert run(host) is None and host.changes == []


def test_an_authority_of_somebody_else_s_stays_alone() -> None:
    host = make_worker(TRUST)
    host.files[MIRROR] = make_pair().cert_pem.encode()
    before = host.files[MIRROR]
    run(host)
    assert host.files[MIRROR] == before


def test_a_serving_certificate_that_the_cluster_signs_follows() -> None:
    host = make_worker(USE)
    host.files[SERVING] = issue(host.former, "system:node:w1")[0].encode()
    host.signer, host.is_serving = host.following, True
    run(host, serverTLSBootstrap=True)
    assert certificates.is_issued_by(host.certs(SERVING)[0], host.following.cert) and host.mark()
    host = make_worker(USE)
    host.files[SERVING] = issue(host.former, "system:node:w1")[0].encode()
    host.signer = host.following
    with pytest.raises(ClusterError) as caught:
        run(host, serverTLSBootstrap=True)
    assert caught.value.code == "csr-pending" and not host.mark(), "nobody has approved it"
