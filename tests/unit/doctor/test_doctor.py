"""What doctor sees on a node: each look with something wrong, and with nothing wrong."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import pytest

from kubeup.diagnosis.checks import facts, table
from kubeup.doctor import doctor
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.network import load_balancer, route_keeper, route_plan
from kubeup.node import certificates
from kubeup.paths import Paths
from tests import cert_forms
from tests.fake_host import FakeHost
from tests.fake_node import finished_node
from tests.unit.network.test_pod_view import dns_answer

APISERVER = """\
spec:
  containers:
  - image: registry.k8s.io/kube-apiserver:v1.35.6
    command:
    - kube-apiserver
    - --advertise-address=10.77.0.11
    - --secure-port=6443
    - --service-cluster-ip-range=10.96.0.0/12
    - --etcd-servers=https://127.0.0.1:2379
"""
MANAGER = """\
spec:
  containers:
  - image: registry.k8s.io/kube-controller-manager:v1.35.6
    command: [kube-controller-manager, --cluster-cidr=10.244.0.0/16, --cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt]
"""
ETCD = """\
spec:
  containers:
  - image: registry.k8s.io/etcd:3.6.6-0
    command: [etcd, --data-dir=/data/etcd, "--listen-metrics-urls=http://127.0.0.1:2381"]
"""
UNIT = (
    "LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=0\nExecMainStatus=0\nInvocationID=abc\n"
    "ActiveEnterTimestampMonotonic=900000000\nMainPID=42\n"
)
IMAGES = ("kube-apiserver:v1.35.6", "kube-controller-manager:v1.35.6", "etcd:3.6.6-0", "pause:3.10.1")


def make_host() -> FakeHost:
    """A control plane that is well."""
    host = finished_node()
    host.files.update(
        {
            "/etc/kubernetes/manifests/kube-apiserver.yaml": APISERVER.encode(),
            "/etc/kubernetes/manifests/kube-controller-manager.yaml": MANAGER.encode(),
            "/etc/kubernetes/manifests/etcd.yaml": ETCD.encode(),
            "/var/lib/kubelet/config.yaml": b"clusterDomain: example.org\nclusterDNS: [10.96.0.10]\n",
            "/var/lib/kubelet/instance-config.yaml": b'containerRuntimeEndpoint: "unix:///run/x/containerd.sock"\n',
            "/var/lib/kubelet/kubeadm-flags.env": b'KUBELET_KUBEADM_ARGS="--hostname-override=cp1 --v=2"\n',
            "/proc/42/cmdline": b"/usr/bin/kubelet\0--hostname-override=cp1\0--v=2\0",
            "/run/x/containerd.sock": b"",
        }
    )
    host.programs.update({"crictl", "systemctl"})
    host.ticks = 1000.0
    host.answers["systemctl show kubelet -p"] = UNIT
    host.answers["journalctl"] = ""
    host.accepts = {"modprobe configs"}
    set_images(host, *IMAGES)
    return host


def set_images(host: FakeHost, *names: str) -> None:
    info = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}, "config": {"sandboxImage": "registry.k8s.io/pause:3.10.1"}}  # fmt: skip
    rows = {"images": [{"repoTags": [f"registry.k8s.io/{name}"]} for name in names]}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0, json.dumps(info if "info" in argv else rows if "images" in argv else {}))

    host.answers["crictl"] = crictl


def make_patient(host: FakeHost) -> doctor.Patient:
    return doctor.read_patient(host, Paths())


def notes(host: FakeHost, look: str) -> list[tuple[str, str]]:
    """(level, text) of one look."""
    found = next(item for item in doctor.LOOKS if item.name == look)
    return [(note.level, note.text) for note in found.look(make_patient(host))]


# ---- the node from its files


def test_the_node_is_read_from_its_files() -> None:
    patient = make_patient(make_host())
    config = patient.config
    assert config.cluster.kubernetes_version == "v1.35.6"
    assert config.cluster.networking.pod_subnet == "10.244.0.0/16"
    assert config.cluster.networking.dns_domain == "example.org"
    assert config.cluster.local_etcd is not None
    assert config.cluster.local_etcd.data_dir == "/data/etcd"
    assert (config.node.name, config.node.cri_socket) == ("cp1", "unix:///run/x/containerd.sock")
    assert config.local_api_endpoint.advertise_address == "10.77.0.11"
    assert patient.components == ("etcd", "kube-apiserver", "kube-controller-manager")
    assert doctor.describe_patient(patient) == "node cp1, control plane, Kubernetes v1.35.6"


def test_a_machine_without_a_kubelet_belongs_to_no_cluster() -> None:
    patient = make_patient(FakeHost())
    assert not patient.is_member
    assert doctor.describe_patient(patient).startswith("node node1: no kubelet was configured here")


def test_doctor_changes_nothing_and_answers_for_every_look() -> None:
    host = make_host()
    host.changes.clear()
    found = doctor.examine(make_patient(host))
    assert {look.name for look in doctor.LOOKS} <= {note.look.partition("/")[0] for note in found} | {"checks"}
    assert [change for change in host.changes if change != "run modprobe configs"] == []
    assert all(note.remedy for note in found if note.level != doctor.OK)


# ---- certificates


def test_certificates_that_are_well() -> None:
    assert notes(make_host(), "certificates") == []


def test_expired_and_expiring_certificates_are_named() -> None:
    host = make_host()
    host.clock += datetime.timedelta(days=350)
    soon = dict.fromkeys(level for level, _ in notes(host, "certificates"))
    assert list(soon) == ["warning"]
    host.clock += datetime.timedelta(days=30)
    texts = [text for level, text in notes(host, "certificates") if level == "error"]
    assert any(text.startswith("/etc/kubernetes/pki/apiserver.crt expired") for text in texts)
    assert any(text.startswith("/etc/kubernetes/admin.conf expired") for text in texts)


def test_a_key_that_does_not_belong_to_its_certificate() -> None:
    host = make_host()
    host.files["/etc/kubernetes/pki/apiserver.key"] = host.files["/etc/kubernetes/pki/ca.key"]
    ((level, text),) = notes(host, "certificates")
    assert level == "error"
    assert "apiserver.crt" in text and "apiserver.key" in text


def test_an_authority_with_two_certificates_beside_its_key() -> None:
    host = make_host()
    host.files["/etc/kubernetes/pki/ca.crt"] += host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    ((level, text),) = notes(host, "certificates")
    assert level == "warning" and "holds 2 certificates" in text
    manifest = "/etc/kubernetes/manifests/kube-controller-manager.yaml"
    host.files[manifest] = host.files[manifest].replace(
        b"cert-file=/etc/kubernetes/pki/ca.crt", b"cert-file=/etc/x.crt"
    )
    assert notes(host, "certificates") == []


def test_a_certificate_that_nobody_believes() -> None:
    """An API server's certificate for clients alone, as a user's own authority may have issued it."""
    host = make_host()
    for kind in ("crt", "key"):
        host.files[f"/etc/kubernetes/pki/apiserver.{kind}"] = host.files[
            f"/etc/kubernetes/pki/apiserver-kubelet-client.{kind}"
        ]
    ((level, text),) = notes(host, "certificates")
    assert level == "error" and "lacks serverAuth" in text and "apiserver.crt" in text


@pytest.mark.parametrize("shown", ["", "hello", "DER", "serial"])
def test_a_server_that_shows_what_nobody_reads(shown: str) -> None:
    host = make_host()
    forms = cert_forms.make_forms()
    good = host.files["/etc/kubernetes/pki/apiserver.crt"].decode()
    odd = {"DER": good.replace("MII", "AII", 1), "serial": forms["serial negative"].chain.decode()}
    host.served["10.77.0.11:6443"] = odd.get(shown, shown)
    ((level, text),) = notes(host, "served-certificates")
    assert level == "error" and "kube-apiserver shows a certificate that Kubernetes (Go) cannot read" in text


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 -2300", "Mon, 01 Jan 0001 00:00:00 +2300", "x", ""])
def test_a_date_beyond_the_calendar_is_none(date: str) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    skew = doctor.read_skew_s(date, now)
    assert skew is None or abs(skew) > 10**8
    assert doctor.read_skew_s("Thu, 01 Jan 2026 00:00:07 -0000", now) == 7


def test_a_server_that_shows_an_old_certificate() -> None:
    host = make_host()
    apiserver = host.files["/etc/kubernetes/pki/apiserver.crt"].decode()
    host.served["10.77.0.11:6443"] = apiserver
    assert notes(host, "served-certificates") == []
    host.served["10.77.0.11:6443"] = host.files["/etc/kubernetes/pki/etcd/server.crt"].decode()
    ((level, text),) = notes(host, "served-certificates")
    assert (level, text.partition(":")[0]) == (
        "warning",
        "kube-apiserver still shows another certificate than /etc/kubernetes/pki/apiserver.crt",
    )
    host.served["10.77.0.11:6443"] = apiserver
    host.clock = certificates.parse_certs(apiserver)[0].not_valid_after_utc + datetime.timedelta(hours=1)
    assert notes(host, "served-certificates")[0][0] == "error"


# ---- the clock


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Thu, 01 Jan 2026 00:00:05 GMT", []),
        ("Thu, 01 Jan 2026 00:01:00 GMT", [("warning", "this clock is 1 min 0 s behind https://10.77.0.11:6443")]),
        ("Thu, 01 Jan 2026 02:07:00 GMT", [("error", "this clock is 2 h 07 min behind https://10.77.0.11:6443")]),
        ("Wed, 31 Dec 2025 21:53:00 GMT", [("error", "this clock is 2 h 07 min ahead of https://10.77.0.11:6443")]),
        ("no date", []),
    ],
)
def test_the_clock_is_compared_with_the_server_s(date: str, expected: list[tuple[str, str]]) -> None:
    host = make_host()
    host.urls["https://10.77.0.11:6443/version"] = HttpResponse(401, b"", {"date": date})
    assert notes(host, "clock") == expected


# ---- an external etcd


def test_an_external_etcd_is_judged_by_what_this_node_meets() -> None:
    host = make_host()
    del host.files["/etc/kubernetes/manifests/etcd.yaml"]
    flags = APISERVER.replace("https://127.0.0.1:2379", "https://e1:2379,https://e2:2379")
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = flags.encode()
    assert [level for level, _ in notes(host, "etcd")] == ["error", "error"]
    host.urls["https://e1:2379/health"] = HttpResponse(200, b'{"health":"true"}')
    host.urls["https://e2:2379/health"] = HttpResponse(503, b'{"health":"false","reason":"RAFT NO LEADER"}')
    ((level, text),) = notes(host, "etcd")
    assert level == "warning" and "https://e2:2379" in text and "RAFT NO LEADER" in text
    host.urls["https://e2:2379/health"] = HttpResponse(404)
    assert notes(host, "etcd") == []


# ---- disk, DNS, images, drift

METRICS = """\
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.001"}} {fast}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.008"}} {fair}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="0.128"}} {slow}
etcd_disk_wal_fsync_duration_seconds_bucket{{le="+Inf"}} 1000
etcd_disk_wal_fsync_duration_seconds_count 1000
"""


def test_a_slow_disk_is_told_by_etcd_s_own_count() -> None:
    host = make_host()
    url = "http://127.0.0.1:2381/metrics"
    host.urls[url] = HttpResponse(200, METRICS.format(fast=900, fair=995, slow=1000).encode())
    assert notes(host, "disk") == []
    host.urls[url] = HttpResponse(200, METRICS.format(fast=10, fair=900, slow=995).encode())
    ((level, text),) = notes(host, "disk")
    assert level == "warning"
    assert "the disk of /data/etcd is slow: one of 100 writes takes longer than 128 ms" in text
    assert doctor.read_fsync_p99_s("etcd_disk_wal_fsync_duration_seconds_count 5\n") is None


def test_a_load_balancer_that_has_drifted() -> None:
    host, look = make_host(), "load-balancer"
    assert notes(host, look) == []
    settings = load_balancer.Settings("api.kb.test:7443", 7444, "unix:///run/containerd/containerd.sock")
    paths = Paths()
    load_balancer.write_keeper_files(host, paths, settings=settings, command="kb")
    path = load_balancer.config_path(paths)
    host.write_file(path, load_balancer.render_config(settings, ["10.77.0.11:6443"]))
    host.write_file(load_balancer.HOSTS, load_balancer.plan_hosts("", settings.name))
    host.write_file(paths.manifest(load_balancer.NAME), "kind: Pod\n")
    digest = load_balancer.parse_config(host.read_text(path))[1]
    url = "http://127.0.0.1:7444/"
    host.urls[url] = HttpResponse(200, digest.encode())
    host.answers[f"systemctl is-active {load_balancer.UNIT}"] = "active"
    assert notes(host, look) == []

    host.urls[url] = HttpResponse(200, b"older")
    host.answers[f"systemctl is-active {load_balancer.UNIT}"] = "failed"
    host.files["/etc/hosts"] = b"127.0.0.1 localhost\n"
    found = notes(host, look)
    assert [level for level, _ in found] == ["error", "warning", "warning"]
    assert "api.kb.test does not lead to" in found[0][1] and "10.77.0.11:6443" in found[1][1]
    assert "kb-load-balancer.service does not run" in found[2][1]

    del host.urls[url]
    assert "no load balancer answers on 127.0.0.1:7444" in notes(host, look)[1][1]
    del host.files[str(path)]
    assert "names no API server" in notes(host, look)[1][1]


def test_a_tunnel_that_a_firewall_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    host, look = make_host(), "tunnel"
    assert notes(host, look) == []

    def is_silent(url: str, **_: object) -> HttpResponse:
        if url not in host.urls:
            raise Unreachable(url, "timeout", "no answer in time")
        return host.urls[url]

    monkeypatch.setattr(host, "http_get", is_silent)
    host.answers.update({"ip": "[]", "bridge": "[]"})
    host.write_file(route_keeper.settings_path(Paths()), "{}")
    assert notes(host, look) == [], "nobody lives beyond a router"
    row = {
        "ifname": "cbr-vxlan",
        "mtu": 1450,
        "addr_info": [{"local": "10.244.0.0", "prefixlen": 32, "scope": "global"}],
    }
    data = {"id": route_plan.VXLAN_ID, "port": route_plan.VXLAN_PORT, "local": "10.77.0.11"}
    link = {**row, "address": "0a:6b:0a:4d:00:0b", "linkinfo": {"info_kind": "vxlan", "info_data": data}}
    mac = route_plan.vtep_mac("10.78.0.12")
    host.answers["ip -json address show"] = json.dumps([row])
    host.answers["ip -json -details link show dev cbr-vxlan"] = json.dumps([link])
    host.answers["ip -json neighbour show dev cbr-vxlan"] = json.dumps(
        [{"dst": "10.244.2.0", "lladdr": mac, "state": ["PERMANENT"]}]
    )
    host.answers["bridge -json fdb show dev cbr-vxlan"] = json.dumps(
        [{"mac": mac, "dst": "10.78.0.12", "flags": ["self"]}]
    )
    seen = {
        "https://10.244.2.0:10250/healthz": HttpResponse(401),
        "https://10.78.0.12:10250/healthz": HttpResponse(401),
    }
    host.urls.update(seen)
    assert notes(host, look) == []
    del host.urls["https://10.244.2.0:10250/healthz"]
    ((level, text),) = notes(host, look)
    assert level == "error" and text.startswith("the node 10.78.0.12 answers, and through the tunnel it does not")
    del host.urls["https://10.78.0.12:10250/healthz"]
    assert notes(host, look) == [("warning", "the node 10.78.0.12 does not answer: no pod on it can be reached")]


def test_a_cluster_dns_that_does_not_answer() -> None:
    ((level, text),) = notes(make_host(), "dns")
    assert level == "error"
    assert "10.96.0.10 does not answer for kubernetes.default.svc.example.org" in text


def test_a_pod_that_does_not_reach_what_the_node_reaches() -> None:
    host = make_host()
    host.datagrams["10.96.0.10:53"] = lambda data: bytes.fromhex(dns_answer(data.hex()))
    assert notes(host, "dns") == []
    host.programs.add("nsenter")
    before = host.answers["crictl"]
    assert callable(before)

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "pods" in argv:
            return CommandResult(argv, 0, json.dumps({"items": [{"id": "a"}]}))
        if "inspectp" in argv:
            namespaces = [{"type": "network", "path": "/run/netns/cni-a"}]
            return CommandResult(argv, 0, json.dumps({"info": {"runtimeSpec": {"linux": {"namespaces": namespaces}}}}))
        answer: CommandResult = before(argv)
        return answer

    host.answers["crictl"] = crictl
    host.answers["nsenter"] = lambda argv: CommandResult(argv, 0, json.dumps([""] * len(json.loads(argv[-1]))))
    host.answers["iptables -S FORWARD"] = "-P FORWARD DROP\n"
    ((level, text),) = notes(host, "dns")
    assert level == "error" and "a pod on this node does not reach the cluster's DNS at 10.96.0.10:53" in text
    assert "the chain FORWARD of iptables has the policy DROP" in text
    assert not host.changes
    host.answers["nsenter"] = lambda argv: CommandResult(argv, 0, json.dumps([dns_answer(json.loads(argv[-1])[0][3])]))
    assert notes(host, "dns") == []


def test_an_image_that_the_runtime_threw_away() -> None:
    host = make_host()
    assert notes(host, "images") == []
    set_images(host, *(name for name in IMAGES if not name.startswith(("etcd", "pause"))))
    assert [text.partition(" is not")[0] for _, text in notes(host, "images")] == [
        "the image registry.k8s.io/etcd:3.6.6-0",
        "the image registry.k8s.io/pause:3.10.1",
    ]


def test_a_kubelet_that_runs_without_its_flags() -> None:
    host = make_host()
    assert notes(host, "kubelet-drift") == []
    host.files["/proc/42/cmdline"] = b"/usr/bin/kubelet\0--hostname-override=cp1\0"
    assert notes(host, "kubelet-drift") == [
        ("warning", "the kubelet runs without --v=2, which /var/lib/kubelet/kubeadm-flags.env holds")
    ]


def test_a_configuration_that_the_kubelet_has_not_read() -> None:
    class Later(FakeHost):
        def stat(self, path: Path):  # type: ignore[no-untyped-def]
            found = super().stat(path)
            is_config = found and path.name == "config.yaml"
            return dataclasses.replace(found, mtime=self.now().timestamp() - 5) if is_config and found else found

    later = Later(**{item.name: getattr(make_host(), item.name) for item in dataclasses.fields(FakeHost)})
    assert notes(later, "kubelet-drift") == [
        ("warning", "/var/lib/kubelet/config.yaml was changed after the kubelet was started: it runs with the old one")
    ]


def test_kb_s_own_network_is_known_and_its_plugins_are_looked_for() -> None:
    host = make_host()
    host.files["/etc/systemd/system/kb-routes.service"] = b""
    assert any("bridge" in text and "plugin" in text.lower() for _, text in notes(host, "checks")), notes(
        host, "checks"
    )


def test_the_checks_of_preflight_are_doctor_s_too() -> None:
    host = make_host()
    host.files["/proc/swaps"] = b"Filename Type\n/dev/sda2 partition\n"
    assert any("swap is on (/dev/sda2)" in text for _, text in notes(host, "checks"))
    names = [check.names for check in table.CHECKS if facts.DOCTOR in check.workflows]
    assert {"CRI", "CgroupDriver", "Swap", "KubeletVersion", "AdvertiseAddress"} <= set(names)
    assert "ImagePull" not in names


# ---- the node as its cluster sees it

SERVER = "https://10.77.0.11:6443"
REQUESTS = f"{SERVER}/apis/certificates.k8s.io/v1/certificatesigningrequests?fieldSelector=spec.signerName%3Dkubernetes.io%2Fkubelet-serving"


def node_host(status: str = "True", message: str = "", *requests: dict[str, object]) -> FakeHost:
    host = make_host()
    conditions = [{"type": "Ready", "status": status, "message": message}]
    node = {"kind": "Node", "metadata": {"name": "cp1"}, "status": {"conditions": conditions}}
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(200, json.dumps(node).encode())
    host.urls[REQUESTS] = HttpResponse(200, json.dumps({"kind": "List", "items": requests}).encode())
    return host


def serving_request(name: str, status: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"username": "system:node:cp1"}, "status": status}


def test_a_node_that_is_ready_needs_no_word() -> None:
    assert notes(node_host(), "node") == []


def test_a_machine_that_was_renamed_cannot_register() -> None:
    host = node_host("Unknown", "Kubelet stopped posting node status.")
    host.files["/var/lib/kubelet/kubeadm-flags.env"] = b'KUBELET_KUBEADM_ARGS=""\n'
    host.host_name = "renamed-cp1"
    renamed, stopped = doctor.look_at_node(make_patient(host))
    assert renamed.level == "error" and "called renamed-cp1 now, and its node is cp1" in renamed.text
    assert "hostnamectl set-hostname cp1" in renamed.remedy and "--hostname-override=cp1" in renamed.remedy
    assert stopped.text == "node cp1 is NotReady: Kubelet stopped posting node status."
    assert doctor.describe_patient(make_patient(host)).startswith("node cp1, control plane")


def test_a_node_that_was_deleted_and_a_cluster_that_does_not_answer() -> None:
    host = node_host()
    host.urls[f"{SERVER}/api/v1/nodes/cp1"] = HttpResponse(404, b'{"kind": "Status", "reason": "NotFound"}')
    (note,) = doctor.look_at_node(make_patient(host))
    assert "the cluster has no node cp1" in note.text and note.remedy == "systemctl restart kubelet"
    host.urls.clear()
    (note,) = doctor.look_at_node(make_patient(host))
    assert note.level == "error" and "the cluster does not say how node cp1 is: no answer from" in note.text


def test_a_serving_certificate_that_nobody_approves() -> None:
    pending = serving_request("csr-1", {})
    (note,) = doctor.look_at_node(make_patient(node_host("True", "", pending)))
    assert note.level == "warning" and "its request csr-1 is Pending" in note.text
    assert note.remedy.endswith("kubectl certificate approve csr-1")
    signed = serving_request("csr-0", {"conditions": [{"type": "Approved"}], "certificate": "eA=="})
    assert notes(node_host("True", "", signed, pending), "node") == []


# ---- static pods that the kubelet holds for not ready


def probed_host(started: datetime.datetime, *messages: str) -> FakeHost:
    """kube-scheduler runs since then and is not Ready; the kubelet said this of its probes."""
    host = make_host()
    status = {"ready": False, "containerID": "x", "state": {"running": {"startedAt": f"{started:%Y-%m-%dT%H:%M:%SZ}"}}}
    pod = {
        "metadata": {"name": "kube-scheduler-cp1", "labels": {"component": "kube-scheduler"}},
        "status": {"containerStatuses": [status]},
    }
    namespace = f"{SERVER}/api/v1/namespaces/kube-system"
    pods = f"{namespace}/pods?labelSelector=tier%3Dcontrol-plane&fieldSelector=spec.nodeName%3Dcp1"
    events = f"{namespace}/events?fieldSelector=involvedObject.name%3Dkube-scheduler-cp1%2Creason%3DUnhealthy"
    host.urls[pods] = HttpResponse(200, json.dumps({"items": [pod]}).encode())
    host.urls[events] = HttpResponse(200, json.dumps({"items": [{"message": text} for text in messages]}).encode())
    return host


def test_a_pod_whose_probes_fail_is_told_and_one_that_was_not_probed_yet_is_not() -> None:
    now = make_host().now()
    young, old = now - datetime.timedelta(seconds=5), now - datetime.timedelta(seconds=90)
    assert notes(probed_host(young), "static-pods") == []
    ((level, text),) = notes(probed_host(young, "Startup probe failed: HTTP 500"), "static-pods")
    assert level == "error" and "kube-scheduler runs, and is not Ready: Startup probe failed: HTTP 500" in text
    ((_, text),) = notes(probed_host(old), "static-pods")
    assert "the kubelet has said nothing of its probes" in text


# ---- the pod network of before


def bridge_host(*files: str) -> FakeHost:
    """A node on whose cbr0 one pod hangs, and another pod on something else."""
    host = make_host()
    entry = {"local": "10.244.0.1", "prefixlen": 24, "scope": "global"}
    host.answers["ip -json address show"] = json.dumps([{"ifname": "cbr0", "flags": ["UP"], "addr_info": [entry]}])
    host.answers["ip -json link show master cbr0"] = json.dumps([{"ifname": "veth1"}])
    host.files.update({f"/etc/cni/net.d/{name}": b"{}" for name in files})
    if any(name.startswith("99-kb-bridge.conflist") for name in files):
        host.files["/etc/systemd/system/kb-routes.service"] = b""
    host.files["/run/kb/pod-addresses/kb-bridge/10.244.0.2"] = b"abc\r\neth0"
    host.dirs.add("/run/kb/pod-addresses/kb-bridge")
    pods = [{"id": text, "metadata": {"name": f"pod-{text}", "namespace": "shop"}} for text in ("abc", "def")]
    host.answers["crictl"] = json.dumps({"items": pods})
    return host


@pytest.mark.parametrize("kbs", ["99-kb-bridge.conflist", "99-kb-bridge.conflist.cilium_bak"])
def test_pods_on_the_bridge_of_before_are_named(kbs: str) -> None:
    host = bridge_host("10-flannel.conflist", kbs)
    (note,) = doctor.look_at_pod_network(make_patient(host))
    assert note.level == "warning" and "1 pod of before on cbr0" in note.text and "10-flannel.conflist" in note.text
    assert note.remedy == "kubectl -n shop delete pod pod-abc"
    host.answers["crictl"] = CommandResult((), 1)
    (note,) = doctor.look_at_pod_network(make_patient(host))
    assert "bridge link show master cbr0" in note.remedy


@pytest.mark.parametrize("files", [("99-kb-bridge.conflist",), ("10-flannel.conflist",), ()])
def test_pods_on_the_bridge_are_fine_while_the_network_is_kbs(files: tuple[str, ...]) -> None:
    assert notes(bridge_host(*files), "pod-network") == []


def test_a_bridge_of_before_without_pods_is_nothing() -> None:
    host = bridge_host("10-flannel.conflist", "99-kb-bridge.conflist")
    host.answers["ip -json link show master cbr0"] = "[]"
    assert notes(host, "pod-network") == []


# ---- where this node's files lie


def moved_host() -> FakeHost:
    """A control plane whose certificates lie where kubespray has them, and whose API server listens on 8443."""
    host = make_host()
    for name in [name for name in host.files if name.startswith("/etc/kubernetes/pki/")]:
        host.files[name.replace("/etc/kubernetes/pki/", "/etc/kubernetes/ssl/")] = host.files.pop(name)
    flags = (
        "    - --tls-cert-file=/etc/kubernetes/ssl/apiserver.crt\n    - --client-ca-file=/etc/kubernetes/ssl/ca.crt\n"
    )
    manifest = APISERVER.replace("--secure-port=6443", "--secure-port=8443") + flags
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = manifest.encode()
    return host


def test_certificates_elsewhere_are_found_by_the_static_pod() -> None:
    host = moved_host()
    found = doctor.find_paths(host, Paths())
    assert found.pki == Path("/etc/kubernetes/ssl") and found.etcd_data == Path("/data/etcd")
    assert doctor.find_own_server(host, Paths()) == "https://10.77.0.11:8443"
    assert [note for note in notes(host, "certificates") if note[0] == "error"] == []
    assert doctor.find_paths(FakeHost(), Paths()) == Paths() and doctor.find_own_server(FakeHost(), Paths()) == ""
