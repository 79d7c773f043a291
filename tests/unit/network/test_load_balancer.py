"""kubeup/network/load_balancer.py: haproxy's file, the line in /etc/hosts, and how the keeper follows API servers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from kubeup import releases
from kubeup.cluster import api, objects
from kubeup.config.types import KbConfiguration, LoadBalancer, Mirror, PodNetwork
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import AnyTls, HttpResponse, Unreachable
from kubeup.network import drain_marks, keeper, load_balancer
from kubeup.network.load_balancer import GONE_AFTER_S, MARK, Memory, Settings
from kubeup.node import images
from kubeup.paths import Paths
from kubeup.yaml_files import load_yaml
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

PATHS = Paths()
SETTINGS = Settings("kb-api.cluster.local:7443", 10281, "unix:///run/containerd/containerd.sock")
KB = KbConfiguration(load_balancer=LoadBalancer("local"))
MANIFEST = str(PATHS.manifest(load_balancer.NAME))
CONFIG, HOSTS = str(load_balancer.config_path(PATHS)), "/etc/hosts"
THREE = ("10.0.0.11:6443", "10.0.0.12:6443", "[fd00::13]:6443")


def endpoint_slice(*addresses: str, ready: Optional[bool] = None, port: int = 6443) -> dict[str, Any]:
    endpoints = [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses]
    return {"kind": "EndpointSlice", "endpoints": endpoints, "ports": [{"name": "https", "port": port}]}


# ---- haproxy.cfg


def test_the_configuration_names_every_server_and_reads_back() -> None:
    text = load_balancer.render_config(SETTINGS, [*THREE, THREE[0]])
    servers, digest = load_balancer.parse_config(text)
    assert servers == tuple(sorted(THREE)) and len(digest) == 16
    ready = text.partition("backend ready")[2].partition("backend any")[0]
    assert "    server fd00::13:6443 [fd00::13]:6443 tcp-ut 6s\n" in ready and ready.count("    server ") == 3
    assert text.count("bind 127.0.0.1:7443\n") == 1 and text.count("bind 127.0.0.1:10281\n") == 1
    assert "0.0.0.0" not in text and "$" not in text


def test_the_digest_tells_configurations_apart() -> None:
    digests = {load_balancer.parse_config(load_balancer.render_config(SETTINGS, THREE[:n]))[1] for n in (1, 2, 3)}
    other = Settings("kb-api.cluster.local:8443", 10281, SETTINGS.cri_socket)
    assert len(digests | {load_balancer.parse_config(load_balancer.render_config(other, THREE))[1]}) == 4
    again = load_balancer.parse_config(load_balancer.render_config(SETTINGS, THREE[::-1]))[1]
    assert again in digests


def test_a_foreign_configuration_names_nothing() -> None:
    assert load_balancer.parse_config("listen stats\n  bind *:9000\n") == ((), "")


def test_the_pod_runs_with_few_rights_on_the_host_s_network() -> None:
    pod = load_yaml(load_balancer.render_pod(KB, PATHS, node_name="cp1"))
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["hostNetwork"] and container["image"] == releases.LOAD_BALANCER_IMAGE
    assert container["securityContext"]["runAsNonRoot"] and container["securityContext"]["capabilities"] == {
        "drop": ["ALL"]
    }
    assert container["livenessProbe"]["httpGet"]["port"] == 10281
    assert pod["spec"]["volumes"][0]["hostPath"]["path"] == "/etc/kubernetes/kb-load-balancer"


# ---- who the pod is


def uid_of(text: str) -> Any:
    return load_yaml(text)["metadata"].get("uid")


def without_uid(text: str) -> str:
    """As an older kb wrote it."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("  uid: "))


OTHER_IMAGE = KbConfiguration(load_balancer=LoadBalancer("local", "quay.io/x/y:1"))
RENDERED = load_balancer.render_pod(KB, PATHS, node_name="cp1")


def test_the_pod_has_a_uid_that_tells_contents_and_nodes_apart() -> None:
    """Without one, kubelets of different minors reckon different ones, and each starts haproxy again."""
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uid_of(RENDERED))
    assert load_balancer.render_pod(KB, PATHS, node_name="cp1") == RENDERED
    others = [(OTHER_IMAGE, "cp1"), (KB, "cp2")]
    assert (
        len({uid_of(load_balancer.render_pod(kb, PATHS, node_name=name)) for kb, name in others} | {uid_of(RENDERED)})
        == 3
    )


@pytest.mark.parametrize(
    ("found", "stays"),
    [
        (RENDERED, True),
        (without_uid(RENDERED), True),
        (RENDERED.replace(uid_of(RENDERED), "8d0f64e0a3c24d33b04b0cbd1d3c2ac1"), True),
        (load_balancer.render_pod(OTHER_IMAGE, PATHS, node_name="cp1"), False),
        (without_uid(load_balancer.render_pod(OTHER_IMAGE, PATHS, node_name="cp1")), False),
        ("][", False),
        ("[]", False),
    ],
)
def test_another_uid_alone_is_no_reason_to_start_haproxy_again(found: str, stays: bool) -> None:
    assert load_balancer.keep_uid(found, RENDERED) == (found if stays else RENDERED)


RUNS_AS = "12345678901234567890123456789012"
WRITTEN, STARTED = 1_000.0, 2_000 * 10**9


def make_unnamed(text: str = without_uid(RENDERED), *, state: str = "RUNNING", created_ns: int = STARTED) -> FakeHost:
    labels = {"io.kubernetes.pod.uid": RUNS_AS}
    row = {"id": "a", "metadata": {"name": load_balancer.NAME}, "state": f"CONTAINER_{state}", "createdAt": str(created_ns),
           "labels": labels}  # fmt: skip
    shown = json.dumps({"containers": [row]})
    host = FakeHost(files={MANIFEST: text.encode()}, programs={"crictl"}, answers={"crictl": shown})
    host.mtimes[MANIFEST] = WRITTEN
    return host


def test_a_pod_whose_manifest_names_no_uid_goes_on_under_the_one_that_it_has() -> None:
    host = make_unnamed()
    assert load_balancer.name_uid(host, PATHS, socket=SETTINGS.cri_socket)
    text = host.files[MANIFEST].decode()
    assert uid_of(text) == RUNS_AS and without_uid(text) == without_uid(RENDERED)
    assert load_balancer.keep_uid(text, RENDERED) == text
    assert not load_balancer.name_uid(host, PATHS, socket=SETTINGS.cri_socket)


@pytest.mark.parametrize(
    "host",
    [
        make_unnamed(RENDERED),
        make_unnamed(state="EXITED"),
        make_unnamed(created_ns=500 * 10**9),  # written since: what runs may have other contents
        make_unnamed("][\n"),
        make_unnamed("{kind: Pod, metadata: {name: kb-load-balancer}}\n"),
        FakeHost(programs={"crictl"}),
    ],
)
def test_any_other_manifest_stays(host: FakeHost) -> None:
    before = dict(host.files)
    assert not load_balancer.name_uid(host, PATHS, socket=SETTINGS.cri_socket)
    assert host.files == before and not host.changes


@pytest.mark.parametrize(
    ("kb", "wanted"),
    [
        (KbConfiguration(), releases.LOAD_BALANCER_IMAGE),
        (KbConfiguration(mirror=Mirror("http://10.0.0.5:5000")), releases.LOAD_BALANCER_IMAGE),
        (
            KbConfiguration(mirror=Mirror("http://m:1"), load_balancer=LoadBalancer("local", "quay.io/x/y:1")),
            "quay.io/x/y:1",
        ),
    ],
)
def test_the_image_keeps_its_name_where_a_mirror_is_set(kb: KbConfiguration, wanted: str) -> None:
    assert images.load_balancer_image(kb) == wanted


def test_a_drained_server_is_disabled_and_still_the_last_resort() -> None:
    text = load_balancer.render_config(SETTINGS, THREE, drained=[THREE[0], "10.9.9.9:6443"])
    ready, _, resort = text.partition("backend ready")[2].partition("backend any")
    assert "    server 10.0.0.11:6443 10.0.0.11:6443 tcp-ut 6s disabled\n" in ready and ready.count("disabled\n") == 1
    assert "disabled" not in resort
    assert "    server 10.0.0.11:6443 10.0.0.11:6443\n" in resort, "the form in which an older kb reads the list"
    assert load_balancer.parse_config(text)[0] == tuple(sorted(THREE)) and "10.9.9.9" not in text
    assert load_balancer.parse_drained(text) == (THREE[0],)
    plain = load_balancer.render_config(SETTINGS, THREE)
    assert load_balancer.parse_drained(plain) == ()
    assert load_balancer.parse_config(text)[1] != load_balancer.parse_config(plain)[1]


# ---- /etc/hosts


def test_one_marked_line_and_nothing_else_changes() -> None:
    before = "127.0.0.1 localhost\n# a comment\n10.0.0.7 db"
    after = load_balancer.plan_hosts(before, "kb-api.cluster.local")
    assert after == f"{before}\n127.0.0.1 kb-api.cluster.local {MARK}\n"
    assert load_balancer.plan_hosts(after, "kb-api.cluster.local") == after
    assert load_balancer.strip_hosts(after) == before + "\n"


def test_a_new_name_joins_the_old_one_until_nobody_calls_it() -> None:
    one = load_balancer.plan_hosts("", "a.test")
    two = load_balancer.plan_hosts(one, "b.test")
    assert two == f"127.0.0.1 b.test a.test {MARK}\n"
    assert load_balancer.plan_hosts(two, "a.test") == two


def test_somebody_else_s_line_for_the_name_is_not_overruled() -> None:
    with pytest.raises(HostError) as caught:
        load_balancer.plan_hosts("10.0.0.9 lb kb-api.cluster.local # ours\n", "kb-api.cluster.local")
    assert caught.value.code == "endpoint-in-hosts" and "10.0.0.9" in caught.value.what
    fine = "127.0.0.1 localhost kb-api.cluster.local\n#10.0.0.9 kb-api.cluster.local\n"
    assert load_balancer.plan_hosts(fine, "kb-api.cluster.local").startswith(fine)


def test_reset_leaves_what_others_wrote_since() -> None:
    host = FakeHost(files={HOSTS: b"127.0.0.1 localhost\n"})
    assert load_balancer.ensure_hosts(host, "kb-api.cluster.local")
    host.files[HOSTS] += b"10.0.0.8 new\n"
    assert load_balancer.remove_hosts(host)
    assert host.files[HOSTS] == b"127.0.0.1 localhost\n10.0.0.8 new\n"
    assert not load_balancer.remove_hosts(host)


# ---- what the cluster says


def test_the_api_servers_in_their_slice() -> None:
    found = endpoint_slice("10.0.0.12", "10.0.0.11", "fd00::13")
    assert objects.parse_api_servers(found) == THREE
    assert objects.parse_api_servers(endpoint_slice("10.0.0.11", ready=False)) == ()
    assert objects.parse_api_servers(endpoint_slice("10.0.0.11", ready=True)) == THREE[:1]
    assert objects.parse_api_servers(None) == ()
    assert objects.parse_api_servers({"endpoints": found["endpoints"], "ports": None}) == ()


def test_the_setting_goes_through_the_cluster_and_says_nothing_where_there_is_none() -> None:
    stored = objects.render_kb_config(PodNetwork(), LoadBalancer("local", "m/haproxy:1", 9000))
    assert objects.parse_load_balancer(stored) == LoadBalancer("local", "m/haproxy:1", 9000)
    assert "loadBalancer" not in objects.render_kb_config(PodNetwork())["data"]
    assert objects.parse_load_balancer(objects.render_kb_config(PodNetwork())) == LoadBalancer()
    assert objects.parse_load_balancer(None).mode == "none"


# ---- the keeper


@dataclass
class BalancedHost(FakeHost):
    """A node whose haproxy reads its file at its start and on SIGUSR2, and whose cluster answers with `listed`."""

    listed: Optional[dict[str, Any]] = None
    alive: tuple[str, ...] = THREE
    """The API servers that answer at their own address."""
    is_up: bool = True
    loaded: str = ""
    signals: list[str] = field(default_factory=list)
    marked: tuple[str, ...] = ()
    serial: str = "1"
    keeps: list[bool] = field(default_factory=list)
    """Whether it kept the connection of a request."""
    told: list[Optional[str]] = field(default_factory=list)
    """What the keeper said on its Node."""

    def http_get(
        self,
        url: str,
        *,
        tls: Optional[AnyTls] = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout_s: float = 10,
        max_bytes: int = 4 << 20,
    ) -> HttpResponse:
        if url.startswith("http://127.0.0.1:10281"):
            if not self.is_up:
                raise Unreachable(url, "refused", text="no")
            return HttpResponse(200, self.loaded.encode())
        if url.endswith("/livez"):
            if not any(url == f"https://{server}/livez" for server in self.alive):
                raise Unreachable(url, "refused", text="no")
            return HttpResponse(401, b"")
        if self.listed is None:
            raise Unreachable(url, "refused", text="no")
        self.keeps.append((headers or {}).get("Connection") != "close")
        if "/configmaps?" in url:
            items = [{"metadata": {"name": "m"}, "data": {server: f"{server}={self.serial}"}} for server in self.marked]
            found = {"kind": "List", "metadata": {"resourceVersion": "7"}, "items": items}
            return HttpResponse(200, json.dumps(found).encode())
        assert "/endpointslices/kubernetes" in url
        return HttpResponse(200, json.dumps(self.listed).encode())

    def query(self, argv: Any, **rest: Any) -> CommandResult:
        words = " ".join(str(word) for word in argv)
        if "ps -a" in words:
            row = {
                "id": "abc",
                "metadata": {"name": "kb-load-balancer"},
                "state": "CONTAINER_RUNNING",
                "createdAt": "1",
            }
            return CommandResult(("crictl",), 0, json.dumps({"containers": [row] if self.is_up else []}))
        if "inspect" in words:
            return CommandResult(("crictl",), 0, json.dumps({"info": {"pid": 4711}}))
        return super().query(argv, **rest)

    def http_send(self, method: str, url: str, *, body: bytes = b"", **_: Any) -> HttpResponse:
        self.told.append(json.loads(body)["metadata"]["annotations"][drain_marks.ANNOTATION])
        return HttpResponse(200, b'{"kind": "Node", "metadata": {"name": "cp1"}}')

    def run(self, argv: Any, **rest: Any) -> CommandResult:
        if argv[0] == "sh":
            self.signals.append(argv[-1])
            self.loaded = load_balancer.parse_config(self.files[CONFIG].decode())[1]
            return CommandResult(("sh",), 0)
        return super().run(argv, **rest)


def balanced(*servers: str, **fields: Any) -> BalancedHost:
    host = BalancedHost(programs={"crictl"}, **fields)
    text = load_balancer.render_config(SETTINGS, servers)
    host.files[CONFIG], host.loaded = text.encode(), load_balancer.parse_config(text)[1]
    return host


def keep(host: BalancedHost, memory: Memory) -> keeper.Round:
    identity = api.read_identity(
        finished_node(), PATHS.kubeconfig("kubelet.conf"), server="https://kb-api.cluster.local:7443"
    )
    return load_balancer.keep_round(
        host, lambda: api.Api(host, identity, retry_s=0), settings=SETTINGS, memory=memory, paths=PATHS
    )


def test_a_new_api_server_is_taken_in_and_haproxy_told_once() -> None:
    host, memory = balanced(THREE[0], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    assert keep(host, memory).text == "2 API servers: 10.0.0.11:6443, 10.0.0.12:6443"
    assert host.signals == ["4711"]
    assert MARK in host.files[HOSTS].decode()
    keep(host, memory)
    assert host.signals == ["4711"]


def test_a_server_that_is_gone_is_kept_for_a_while() -> None:
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11")), Memory()
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == THREE[:2] and host.signals == []
    host.sleep(GONE_AFTER_S + 1)
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == THREE[:1] and host.signals == ["4711"]


def test_the_last_servers_that_answer_stay_whatever_is_listed() -> None:
    """One API server was given another --secure-port: its port is all others' too in the slice, and nobody reaches any of them there."""
    listed = endpoint_slice("10.0.0.11", "10.0.0.12")
    listed["ports"][0]["port"] = 6444
    host, memory = balanced(*THREE[:2], listed=listed, alive=THREE[:1]), Memory()
    wrong = ("10.0.0.11:6444", "10.0.0.12:6444")
    for _ in range(3):
        keep(host, memory)
        host.sleep(GONE_AFTER_S + 1)
    assert load_balancer.read_servers(host, PATHS) == (THREE[0], wrong[0], THREE[1], wrong[1])
    host.alive = (wrong[1],)
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == wrong


def test_a_server_that_is_gone_for_good_is_forgotten_once_it_is_not_listed() -> None:
    """While it is, it is a server that is drained; and one that comes back is none that is forgotten."""
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    host.marked, host.serial = (THREE[1],), "gone:1"
    keep(host, memory)
    assert drained(host) == (THREE[1],) and host.told == [f"{THREE[1]}=gone:1"]
    host.listed = None
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == THREE[:2], "nobody says that it is not listed"
    host.listed = endpoint_slice("10.0.0.11")
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == THREE[:1]
    assert host.told[-1] == f"{THREE[1]}=forgotten" and len(host.signals) == 2
    host.marked = ()
    keep(host, memory)
    assert host.told[-1] is None and load_balancer.read_servers(host, PATHS) == THREE[:1] and len(host.signals) == 2
    host.listed = endpoint_slice("10.0.0.11", "10.0.0.12")
    keep(host, memory)
    assert load_balancer.read_servers(host, PATHS) == THREE[:2] and drained(host) == ()


@pytest.mark.parametrize("listed", [None, endpoint_slice()])
def test_a_cluster_that_says_nothing_changes_no_list(listed: Optional[dict[str, Any]]) -> None:
    host, memory = balanced(*THREE, listed=listed), Memory()
    for _ in range(3):
        done = keep(host, memory)
        host.sleep(GONE_AFTER_S)
    assert load_balancer.read_servers(host, PATHS) == tuple(sorted(THREE)) and host.signals == []
    assert ("stays as it is" in done.text) == (listed is None)


def test_haproxy_that_runs_with_an_old_file_is_told_again_and_one_that_is_down_is_waited_for() -> None:
    host, memory = balanced(THREE[0], listed=endpoint_slice("10.0.0.11")), Memory()
    host.loaded = "old"
    assert keep(host, memory).wait_s == keeper.POLL_S and host.signals == ["4711"]
    host.is_up = False
    done = keep(host, memory)
    assert "does not run yet" in done.text and done.wait_s == keeper.RETRY_S


def drained(host: BalancedHost) -> tuple[str, ...]:
    return load_balancer.parse_drained(host.files[CONFIG].decode())


def test_a_marked_server_is_drained_and_the_node_says_so_once_haproxy_has_read_it() -> None:
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    assert keep(host, memory).wait_s == keeper.POLL_S and host.told == [None]
    host.marked = (THREE[0],)
    assert keep(host, memory).text.endswith("10.0.0.11:6443 is drained")
    assert drained(host) == (THREE[0],) and host.signals == ["4711"] and host.told == [None, f"{THREE[0]}=1"]
    keep(host, memory)
    assert len(host.signals) == 1 and len(host.told) == 2
    host.listed = None  # the API server behind the connection is the one that stops
    keep(host, memory)
    assert drained(host) == (THREE[0],)
    host.listed, host.marked = endpoint_slice("10.0.0.11", "10.0.0.12"), ()
    keep(host, memory)
    assert drained(host) == () and len(host.signals) == 2 and host.told[-1] is None


def test_while_a_server_is_marked_no_connection_is_kept() -> None:
    """It may lead to that server, which may have lost its etcd and list itself from its cache until it ends."""
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    keep(host, memory)
    host.marked = (THREE[0],)
    keep(host, memory)
    assert host.keeps == [True] * 4
    keep(host, memory)
    host.marked = ()
    keep(host, memory)
    assert host.keeps[4:] == [False] * 4
    keep(host, memory)
    assert host.keeps[8:] == [True] * 2


def test_haproxy_that_does_not_read_its_file_is_no_answer() -> None:
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    host.marked, host.is_up = (THREE[0],), False
    assert "does not run yet" in keep(host, memory).text and host.told == []
    host.is_up = True
    keep(host, memory)
    assert host.told == [f"{THREE[0]}=1"]


def test_a_mark_that_nobody_renews_lapses_without_the_cluster_too() -> None:
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11", "10.0.0.12")), Memory()
    host.marked = (THREE[0],)
    keep(host, memory)
    host.sleep(drain_marks.LAPSE_S)
    host.listed = None
    assert "its mark was not renewed" in keep(host, memory).text and drained(host) == ()
    host.listed = endpoint_slice("10.0.0.11", "10.0.0.12")
    keep(host, memory)
    assert drained(host) == () and host.told[-1] is None
    host.serial = "2"
    keep(host, memory)
    assert drained(host) == (THREE[0],) and host.told[-1] == f"{THREE[0]}=2"


def test_the_last_server_is_never_drained() -> None:
    host, memory = balanced(*THREE[:2], listed=endpoint_slice("10.0.0.11")), Memory()
    host.marked = (THREE[0],)  # the other one is in the file for a while, and the cluster no longer lists it
    assert "no other API server is left" in keep(host, memory).text
    assert drained(host) == () and host.told == [None]


def test_without_settings_the_keeper_says_how_they_come() -> None:
    host, said = BalancedHost(), list[str]()
    load_balancer.keep(host, log=said.append, once=True, paths=PATHS)
    assert "kb init phase load-balancer" in said[0]


# ---- does it work


def test_who_is_to_blame_when_nothing_answers() -> None:
    host = balanced(THREE[0])
    host.is_up = False
    error = load_balancer._not_up(host, SETTINGS, last=Unreachable("https://x", "refused", text="no"), elapsed=90)
    assert error.code == "load-balancer-not-up" and "the kubelet has not started" in error.cause
    host.is_up = True
    error = load_balancer._not_up(host, SETTINGS, last=Unreachable("https://x", "reset", text="no"), elapsed=90)
    assert "no API server answers behind it" in error.cause
    error = load_balancer._not_up(
        host, SETTINGS, last=Unreachable("https://x", "tls", text="hostname mismatch"), elapsed=90
    )
    assert error.code == "endpoint-not-in-certificate" and "kb reconfigure endpoint" in error.remedy
