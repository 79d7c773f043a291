"""A node whose certificates have expired comes back by itself, and says who is missing where it cannot."""

from __future__ import annotations

import base64
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster import api, membership
from kubeup.engine.run import Caller, Run
from kubeup.errors import ClusterError, HostError, Interrupted, KbError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.node import certificates, expired_certs, kubeconfig, pki, private_keys
from kubeup.phases import join_worker, recovered_certs, recovered_kubelet
from kubeup.secret import Secret
from tests.cert_forms import make_own_pair
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node, make_context

CONF, PEM = PATHS.kubernetes / "kubelet.conf", PATHS.kubelet_client_pem
CRT = PEM.with_name("kubelet.crt")
FILES = expired_certs.KubeletFiles(CONF, PEM, CRT)
BOOTSTRAP = PATHS.kubernetes / "bootstrap-kubelet.conf"
OWN = "https://10.77.0.11"
TOKEN = Secret("abcdef.0123456789abcdef")
ETCD = """\
apiVersion: v1
kind: Pod
spec: {containers: [{name: etcd, command: [etcd, --name=cp1, --advertise-client-urls=https://10.77.0.11:2379,
  --initial-advertise-peer-urls=https://10.77.0.11:2380]}]}
"""


class Node(FakeHost):
    """A control plane whose certificates ended 35 days ago. Its kubelet makes its serving pair, its API server serves."""

    def restart(self, argv: tuple[str, ...]) -> CommandResult:
        self.answers["systemctl is-active kubelet"] = "active\n"
        if str(CRT) not in self.files:
            text, key = make_own_pair("cp1", now=self.now())
            self.files[str(CRT)], self.files[str(CRT.with_suffix(".key"))] = text.encode(), key.encode()
        return CommandResult(argv, 0)


def make_node() -> Node:
    made = finished_node()
    host = Node(files=made.files, modes=made.modes, dirs=made.dirs)
    text, key = make_own_pair("cp1", now=host.now())
    host.files[str(CRT)], host.files[str(CRT.with_suffix(".key"))] = text.encode(), key.encode()
    host.programs.update({"systemctl", "crictl"})
    host.dirs.add("/run/systemd/system")
    host.answers = {
        "systemctl is-active kubelet": "failed\n",
        "systemctl restart kubelet": host.restart,
        "systemctl reset-failed kubelet": "",
        "systemctl stop kubelet": "",
        "systemctl show kubelet": "LoadState=loaded\nNeedDaemonReload=no\nDropInPaths=\n",
        "crictl": '{"containers": []}',
    }
    host.urls[f"{OWN}:6443/livez"] = HttpResponse(200, b"ok")
    host.clock += datetime.timedelta(days=400)
    tell_ready(host)
    return host


def make_run(host: FakeHost) -> Run:
    def make_api(_: object) -> api.Api:
        return api.Api(host, api.read_identity(host, PATHS.admin_conf, server=f"{OWN}:6443"))

    return replace(make_context(host), caller=Caller(make_api))


@pytest.fixture
def node() -> Node:
    return make_node()


@pytest.fixture
def run(node: Node) -> Run:
    return make_run(node)


def tell_ready(host: FakeHost, *, after_s: float = 1) -> None:
    """The node is Ready, by a report of its kubelet so many seconds from now."""
    node = {"metadata": {"name": "cp1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    renewed = host.now() + datetime.timedelta(seconds=after_s)
    lease = {"metadata": {"name": "cp1"}, "spec": {"renewTime": f"{renewed:%Y-%m-%dT%H:%M:%S.000000Z}"}}
    for path, value in (
        ("/api/v1/nodes/cp1", {"kind": "Node", **node}),
        ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cp1", {"kind": "Lease", **lease}),
    ):
        host.urls[f"{OWN}:6443{path}"] = HttpResponse(200, json.dumps(value).encode())


def find(host: FakeHost) -> tuple[expired_certs.Expired, ...]:
    cluster = make_context(host).config.cluster
    return expired_certs.find_expired(host, PATHS, cluster=cluster, kubelet_files=FILES)


def recover(run: Run) -> recovered_certs.Recovered:
    expired = find(run.host)  # type: ignore[arg-type]
    names = dict.fromkeys((*(one.name for one in expired), *recovered_certs.read_cut_off(run)))
    return recovered_certs.recover(run, expired, names=tuple(names), files=FILES)


def end_authorities(host: FakeHost) -> dict[str, str]:
    """Eleven years later their keys have other certificates, by the administrator's hand; returns these, by path."""
    host.clock += datetime.timedelta(days=3650)
    tell_ready(host)
    given = {}
    for name in ("ca", "etcd/ca", "front-proxy-ca"):
        path = f"{PATHS.pki}/{name}.crt"
        subject = certificates.subject_of(certificates.parse_certs(host.files[path].decode())[0])
        key = private_keys.parse_key(host.files[f"{PATHS.pki}/{name}.key"].decode())
        validity = certificates.plan_validity(host.now(), 10 * 365 * 86400)
        new = certificates.issue_ca_cert(subject.common_name, key, validity=validity)
        given[path] = certificates.cert_to_pem(new)
        host.files[path] = given[path].encode()
    return given


def trusted_in(text: str) -> str:
    return kubeconfig.parse_kubeconfig(text, source="it").ca_pem


def commands(host: FakeHost) -> list[str]:
    return [change.removeprefix("run ") for change in host.changes if change.startswith("run ")]


# ---- a control plane


def test_everything_is_issued_and_the_kubelet_started(run: Run, node: Node) -> None:
    before = node.files[str(PATHS.pki / "apiserver.crt")]
    done = recover(run)
    assert find(node) == () and done.gap is None and len(done.names) == 13
    assert commands(node)[-2:] == ["systemctl reset-failed kubelet", "systemctl restart kubelet"]
    assert done.former is not None and node.files[f"{done.former}{PATHS.pki}/apiserver.crt"] == before
    # the fake runtime runs no manifest: what would have to be restarted is said
    assert set(done.left) == {"kube-controller-manager", "kube-scheduler"}
    assert not node.exists(PATHS.recovery)


INFO = f"{OWN}:6443/api/v1/namespaces/kube-public/configmaps/cluster-info"


def test_what_an_authority_was_that_has_ended_is_trusted_nowhere_any_more(
    run: Run, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"data": {"kubeconfig": node.files[str(CONF)].decode(), "jws-kubeconfig-abcdef": "x"}}
    node.urls[INFO] = HttpResponse(200, json.dumps(told).encode())
    sent: list[bytes] = []

    def take(method: str, url: str, *, body: bytes = b"", **how: Any) -> HttpResponse:
        assert (method, url.partition("?")[0]) == ("PATCH", INFO)
        sent.append(body)
        return HttpResponse(200, b"{}")

    monkeypatch.setattr(node, "http_send", take)
    given = end_authorities(node)
    ca_pem = given[str(PATHS.pki / "ca.crt")]
    assert {one.path for one in find(node) if one.name == expired_certs.AUTHORITY} == {
        CONF, *(PATHS.kubernetes / f"{name}.conf" for name in ("admin", "super-admin", "controller-manager", "scheduler"))
    }  # fmt: skip
    for name in ("etcd", "kube-apiserver"):
        node.files[str(PATHS.manifest(name))] = node.files.get(str(PATHS.manifest(name)), ETCD.encode())
    done = recover(run)
    assert find(node) == () and done.gap is None
    confs = [path for path in node.files if path.startswith(f"{PATHS.kubernetes}/") and path.endswith(".conf")]
    assert len(confs) == 5 and {trusted_in(node.files[path].decode()) for path in confs} == {ca_pem}
    assert {path: node.files[path].decode() for path in given} == given, "the authorities are the administrator's"
    # the fake runtime runs no manifest: what would have to be restarted is said
    assert set(done.left) == {"kube-controller-manager", "kube-scheduler", "etcd", "kube-apiserver"}
    (data,) = (json.loads(body)["data"] for body in sent)
    assert trusted_in(data["kubeconfig"]) == ca_pem and data["jws-kubeconfig-abcdef"] is None


def test_an_authority_of_another_key_is_not_taken_for_the_one_that_ended(node: Node) -> None:
    end_authorities(node)
    path = str(PATHS.pki / "ca.crt")
    validity = certificates.plan_validity(node.now(), 10 * 365 * 86400)
    other = certificates.issue_ca_cert("kubernetes", private_keys.generate_key("ECDSA-P256"), validity=validity)
    node.files[path] = certificates.cert_to_pem(other).encode()
    assert expired_certs.AUTHORITY not in {one.name for one in find(node)}


def test_the_authorities_and_the_account_key_stay(run: Run, node: Node) -> None:
    kept = [
        f"{PATHS.pki}/{name}" for name in ("ca.crt", "ca.key", "etcd/ca.key", "front-proxy-ca.key", "sa.key", "sa.pub")
    ]
    before = [node.files[path] for path in kept]
    recover(run)
    assert [node.files[path] for path in kept] == before


def test_a_report_of_before_is_none(run: Run, node: Node) -> None:
    """What the API server knows of the node may be as old as its certificates."""
    tell_ready(node, after_s=-60)
    with pytest.raises(ClusterError) as caught:
        recover(run)
    assert caught.value.code == "not-healthy" and node.ticks > 100
    assert node.exists(PATHS.recovery)


class Cut(BaseException):
    """A power loss."""


def test_cut_off_at_any_change_it_ends_the_same() -> None:
    total, at = 1, 0
    while at < total:
        host = make_node()
        ctx = make_run(host)

        class Changes(list[str]):
            limit = at

            def append(self, change: str) -> None:
                if len(self) == self.limit:
                    raise Cut(change)
                super().append(change)

        host.changes = Changes()
        try:
            recover(ctx)
        except Cut:
            total = at + 2
        host.changes = []
        tell_ready(host)
        if find(host) or recovered_certs.read_cut_off(ctx):
            recover(ctx)
            assert "systemctl restart kubelet" in commands(host), at
        assert find(host) == () and not host.exists(PATHS.recovery), at
        at += 1
    assert total > 30


def test_an_api_server_that_has_lost_its_etcd_is_stopped_while_the_kubelet_is(
    run: Run, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts calls and answers none, and a kubelet that waits for its answers starts no etcd."""
    rows = [{"id": "a1", "metadata": {"name": "kube-apiserver"}, "state": "CONTAINER_RUNNING", "labels": {}}]
    monkeypatch.setattr(
        recovered_certs, "find_obstacle_to_stop", lambda ctx, name: "" if "api" in name else "it is not here"
    )

    def play(argv: tuple[str, ...]) -> CommandResult:
        told = json.dumps({"containers": rows} if "ps" in argv else {})
        if "stop" in argv:
            rows.clear()
        return CommandResult(argv, 0, told)

    node.answers["crictl"] = play
    recover(run)
    assert "stop --timeout 3 a1" not in " ".join(commands(node))  # no etcd of its own
    node.files[str(PATHS.manifest("etcd"))] = ETCD.encode()
    recovered_certs.begin(run, ("apiserver",))
    tell_ready(node)
    node.changes.clear()
    recover(run)
    told = [command.rpartition(".sock ")[2] for command in commands(node)]
    assert told.index("stop --timeout 3 a1") < told.index("systemctl restart kubelet")


# ---- without a quorum


def make_peers(host: FakeHost, *, ended: tuple[str, ...], away: tuple[str, ...] = ()) -> None:
    """Three members of etcd, without a leader; what cp2 and cp3 present."""
    host.files[str(PATHS.manifest("etcd"))] = ETCD.encode()
    rows = [
        {"ID": str(number), "name": f"cp{number}", "peerURLs": [f"https://10.77.0.1{number}:2380"], "clientURLs": []}
        for number in (1, 2, 3)
    ]
    host.urls[f"{OWN}:2379/v3/cluster/member/list"] = HttpResponse(200, json.dumps({"members": rows}).encode())
    host.urls[f"{OWN}:2379/v3/kv/range"] = HttpResponse(503, b'{"error": "etcdserver: no leader"}')
    del host.urls[f"{OWN}:6443/livez"]
    ca, key = pki.read_ca(host, PATHS, name="etcd-ca"), private_keys.generate_key("ECDSA-P256")
    for name in ("cp2", "cp3"):
        days = -1 if name in ended else 1
        validity = certificates.Validity(
            host.now() - datetime.timedelta(days=9), host.now() + datetime.timedelta(days=days)
        )
        cert = certificates.issue_leaf_cert(certificates.Subject(name, is_server=True), key, ca=ca, validity=validity)
        if name not in away:
            host.served[f"10.77.0.1{name[-1]}:2380"] = certificates.cert_to_pem(cert)


def test_the_first_of_three_names_the_others(run: Run, node: Node) -> None:
    make_peers(node, ended=("cp2",), away=("cp3",))
    began = node.ticks
    gap = recover(run).gap
    assert gap is not None and (gap.voters, gap.needed) == (3, 2)
    assert [(one.name, one.address) for one in gap.missing] == [("cp2", "10.77.0.12"), ("cp3", "10.77.0.13")]
    assert (
        gap.missing[0].why.startswith("presents a certificate that expired at")
        and gap.missing[1].why == "does not answer"
    )
    assert node.ticks - began < 10 and find(node) == ()
    node.urls.pop(f"{OWN}:6443/api/v1/nodes/cp1")
    # what it waits for is noted, so that the same command goes on here if it does not come back by itself
    assert not recovered_certs.has_come_back(run) and len(recovered_certs.read_cut_off(run)) == 13
    node.urls[f"{OWN}:6443/livez"] = HttpResponse(200, b"ok")
    tell_ready(node)
    assert recovered_certs.has_come_back(run)
    assert recover(run).gap is None and not node.exists(PATHS.recovery)


def test_a_member_that_serves_no_client_yet_is_asked_as_its_peers_ask(run: Run, node: Node) -> None:
    """One that was just started and finds no leader does not answer on its client port at all."""
    make_peers(node, ended=("cp2", "cp3"))
    rows = [
        {"id": 2**63 + number, "name": f"cp{number}", "peerURLs": [f"https://10.77.0.1{number}:2380"]}
        for number in (1, 2, 3)
    ]
    del node.urls[f"{OWN}:2379/v3/cluster/member/list"]
    node.urls[f"{OWN}:2380/members"] = HttpResponse(200, json.dumps(rows).encode())
    gap = recover(run).gap
    assert gap is not None and [one.name for one in gap.missing] == ["cp2", "cp3"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'[{"id": "x"}]', b"<html>"])
def test_a_peer_that_tells_no_list_is_no_gap(run: Run, node: Node, body: bytes) -> None:
    make_peers(node, ended=("cp2", "cp3"))
    del node.urls[f"{OWN}:2379/v3/cluster/member/list"]
    node.urls[f"{OWN}:2380/members"] = HttpResponse(200, body)
    client = recovered_certs._etcd_of(run)
    assert client is not None and recovered_certs.find_gap(run, client) is None


def test_with_a_second_member_there_is_no_gap(run: Run, node: Node) -> None:
    make_peers(node, ended=("cp3",))
    client = recovered_certs._etcd_of(run)
    assert client is not None and recovered_certs.find_gap(run, client) is None


# ---- a worker


def ask(host: FakeHost, *, pins: tuple[str, ...] = ()) -> membership.Access:
    return recovered_kubelet.find_way(host, PATHS, token=TOKEN, pins=pins)


REQUESTS = f"{OWN}:6443/apis/certificates.k8s.io/v1/certificatesigningrequests?limit=1"


def test_the_way_is_the_one_of_its_own_kubeconfig(node: Node) -> None:
    node.urls[REQUESTS] = HttpResponse(200, b"{}")
    access = ask(node)
    assert (access.server, access.asked, access.token) == (f"{OWN}:6443", f"{OWN}:6443", TOKEN)
    assert access.ca_pem == node.read_text(PATHS.pki / "ca.crt")
    with pytest.raises(ClusterError) as caught:
        ask(node, pins=("sha256:" + "ab" * 32,))
    assert caught.value.code == "ca-hash-mismatch"


@pytest.mark.parametrize(
    "answer, code",
    [
        (None, "server-unreachable"),
        (HttpResponse(401, b"{}"), "token-unknown"),
        (HttpResponse(403, b"{}"), "token-without-right"),
        (HttpResponse(200, b"{}", {"date": "Fri, 01 Jan 2027 00:00:00 GMT"}), "clock-skew"),
    ],
)
def test_a_way_that_does_not_lead_there_is_refused_before_anything_changes(node: Node, answer: Any, code: str) -> None:
    if answer is not None:
        node.urls[REQUESTS] = answer
    with pytest.raises(KbError) as caught:
        ask(node)
    assert caught.value.code == code and node.changes == []


def test_a_server_behind_the_node_s_own_balancer_is_asked_where_that_is_down(node: Node) -> None:
    node.files["/etc/kubernetes/kb-load-balancer/haproxy.cfg"] = b"    server x 10.77.0.12:6443 check\n"
    other = "https://10.77.0.12:6443"
    node.urls[REQUESTS.replace(f"{OWN}:6443", other)] = HttpResponse(200, b"{}")
    access = ask(node)
    assert (access.server, access.asked) == (f"{OWN}:6443", other)


def test_a_kubelet_that_gets_one_goes_on_as_the_same_node(
    run: Run, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(join_worker, "wait_for_identity", lambda ctx: seen.append(node.read_text(BOOTSTRAP)))
    node.urls[REQUESTS] = HttpResponse(200, b"{}")
    folder = recovered_kubelet.recover(run, ask(node), names=("kubelet-client",), files=FILES)
    assert TOKEN.reveal() in seen[0] and f"server: {OWN}:6443" in seen[0] and not node.exists(BOOTSTRAP)
    assert not node.exists(PATHS.recovery) and node.exists(folder / str(CONF)[1:])
    assert run.caller.who == "kubelet" and TOKEN.reveal() not in "".join(commands(node))


def test_a_kubelet_that_gets_none_is_as_before(run: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(ctx: Run) -> None:
        node.files[str(CONF)] = b"written by the kubelet"
        raise HostError("no certificate", cause="nobody signs", remedy="look", code="csr-not-signed")

    monkeypatch.setattr(join_worker, "wait_for_identity", fail)
    node.urls[REQUESTS] = HttpResponse(200, b"{}")
    before = dict(node.files)
    with pytest.raises(HostError, match="no certificate"):
        recovered_kubelet.recover(run, ask(node), names=("kubelet-client", "kubelet-server"), files=FILES)
    after = {path: text for path, text in node.files.items() if not path.startswith("/var/lib/kb/")}
    assert after == before and commands(node)[-1] == "systemctl restart kubelet"


def test_the_token_is_nowhere_but_in_the_bootstrap_file(node: Node) -> None:
    node.urls[REQUESTS] = HttpResponse(200, b"{}")
    text = ask(node).render_bootstrap_kubeconfig("kubernetes").reveal()
    assert TOKEN.reveal() in text and base64.b64encode(node.files[str(PATHS.pki / "ca.crt")]).decode() in text
    assert str(Path(CONF)) == str(CONF)


# ---- told to stop, and once more


def tell_to_stop(host: Node, *words: str) -> None:
    """These commands are interrupted, the first time that each is run."""

    def stop(argv: tuple[str, ...]) -> CommandResult:
        host.answers[" ".join(argv)] = host.restart if "restart" in argv else ""
        raise Interrupted(2)

    for command in words:
        host.answers[command] = stop


@pytest.mark.parametrize("second", ["systemctl stop kubelet", "systemctl reset-failed kubelet"])
def test_a_second_ctrl_c_still_leaves_a_kubelet_that_runs(run: Run, node: Node, second: str) -> None:
    """The kubelet is failed at first, so that it is not stopped, and active then."""
    if second == "systemctl stop kubelet":
        node.answers["systemctl is-active kubelet"] = "active\n"
    tell_to_stop(node, second)
    with pytest.raises(Interrupted):
        recover(run)
    assert commands(node)[-1] == "systemctl restart kubelet"
    assert recover(run).gap is None and not node.exists(PATHS.recovery), "the same command goes on"


def test_a_second_ctrl_c_leaves_no_token_behind(run: Run, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.urls[REQUESTS] = HttpResponse(200, b"{}")
    access = ask(node)
    before = {path: node.files[path] for path in (str(CONF), str(CRT))}

    def wait(_: Run) -> None:
        node.files[str(CRT)] = b"half"
        tell_to_stop(node, "systemctl stop kubelet")
        node.answers["systemctl is-active kubelet"] = "active\n"
        raise Interrupted(2)

    monkeypatch.setattr(join_worker, "wait_for_identity", wait)
    with pytest.raises(Interrupted):
        recovered_kubelet.recover(run, access, names=("kubelet-client",), files=FILES)
    assert not node.exists(BOOTSTRAP) and not node.exists(PATHS.recovery)
    assert {path: node.files[path] for path in before} == before
    assert commands(node)[-2:] == ["systemctl stop kubelet", "systemctl restart kubelet"]
