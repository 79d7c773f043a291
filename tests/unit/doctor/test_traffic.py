"""kubeup/doctor/looks/traffic.py: the load balancer, the pods' network, the DNS, the tunnel."""

from __future__ import annotations

import json

import pytest

from kubeup.doctor.looks import traffic
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.network import drain_marks, load_balancer, pod_network, route_keeper, route_plan
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import SERVER, make_host, make_patient, notes, remedies
from tests.unit.network.test_pod_view import dns_answer


def test_a_load_balancer_that_has_drifted() -> None:
    host, look = make_host(), "load-balancer"
    assert notes(host, look) == []
    settings = load_balancer.Settings("api.kb.test:7443", 7444, "unix:///run/containerd/containerd.sock")
    paths = Paths()
    for place, text in load_balancer.plan_keeper_files(paths, settings=settings, command="kb").items():
        host.write_file(place, text)
    path = load_balancer.config_path(paths)
    host.write_file(path, load_balancer.render_config(settings, ["10.77.0.11:6443"]))
    host.write_file(load_balancer.HOSTS, load_balancer.plan_hosts("", settings.name))
    host.write_file(paths.manifest(load_balancer.NAME), "kind: Pod\n")
    digest = load_balancer.parse_config(host.read_text(path))[1]
    url = "http://127.0.0.1:7444/"
    host.urls[url] = HttpResponse(200, digest.encode())
    host.answers[f"systemctl is-active {load_balancer.UNIT}"] = "active"
    ((level, text),) = notes(host, look)
    assert level == "error" and text.startswith("no API server answers this node (10.77.0.11:6443: nothing listens")
    host.urls[f"{SERVER}/livez"] = HttpResponse(403, b"")
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
    host.answers["journalctl"] = (
        'I1201 06:00:00.1 42 kubelet.go:1] "Pod admission denied" podUID="x" pod="kube-system/kb-load-balancer-w1" reason="UnexpectedAdmissionError" '
        'message="no set of running pods found to reclaim resources: [(res: pods, q: 1)]"\n'
    )
    assert notes(host, look)[1][1].endswith(
        ": the kubelet refused its static pod: no set of running pods found to reclaim resources: [(res: pods, q: 1)]"
    )
    host.answers["journalctl"] = ""
    del host.files[str(paths.manifest(load_balancer.NAME))]
    assert "kb-load-balancer.yaml is not there, so no load balancer runs here" in notes(host, look)[1][1]
    del host.files[str(path)]
    assert "names no API server" in notes(host, look)[1][1]


def test_an_api_server_that_is_still_marked() -> None:
    host = make_host()
    settings = load_balancer.Settings("api.kb.test:7443", 7444, "unix:///run/containerd/containerd.sock")
    host.write_file(load_balancer.settings_path(Paths()), load_balancer.render_settings(settings))
    before = notes(host, "load-balancer")
    url = f"{SERVER}{drain_marks.PATH}"
    data = {"10.0.0.12_6443": "10.0.0.12:6443=2025-12-31T23:59:00.000000Z"}  # it is midnight here
    host.urls[url] = HttpResponse(200, json.dumps({"metadata": {"name": "m"}, "data": data}).encode())
    (fresh,) = [note for note in traffic.look_at_load_balancer(make_patient(host)) if "10.0.0.12" in note.text]
    assert fresh.level == "warning" and fresh.text.endswith("10.0.0.12:6443 since 60 s")
    command = """kubectl -n kube-system patch configmap kb-drained-api-servers --type merge -p '{"data": {"10.0.0.12_6443": null}}'"""
    assert fresh.remedy.endswith(command)
    host.sleep(drain_marks.LAPSE_S)
    (old,) = [note for note in traffic.look_at_load_balancer(make_patient(host)) if "10.0.0.12" in note.text]
    assert "still marked" in old.text and old.remedy.endswith(command)
    host.urls[url] = HttpResponse(404, b'{"kind": "Status"}')
    assert notes(host, "load-balancer") == before


def test_a_tunnel_that_a_firewall_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    host, look = make_host(), "tunnel"
    assert notes(host, look) == []

    def is_silent(url: str, **_: object) -> HttpResponse:
        if url not in host.urls:
            raise Unreachable(url, "timeout", text="no answer in time")
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


def test_a_cluster_that_is_meant_to_have_no_dns() -> None:
    """As it is stored where CoreDNS was left out: said to be deleted, and to be installed, at the end of each upgrade."""
    host, system = make_host(), f"{SERVER}/api/v1/namespaces/kube-system"
    host.urls[f"{SERVER}/api/v1/services"] = HttpResponse(200, json.dumps({"items": []}).encode())
    host.urls[f"{system}/services/kube-dns"] = HttpResponse(404, b'{"reason": "NotFound"}')
    config = {"metadata": {"name": "kubeadm-config"}, "data": {"ClusterConfiguration": "dns: {}"}}
    url = f"{system}/configmaps/kubeadm-config"
    host.urls[url] = HttpResponse(200, json.dumps(config).encode())
    ((level, text),) = notes(host, "dns")
    assert level == "error" and "there is no Service kube-dns" in text
    config["data"]["ClusterConfiguration"] = "dns: {disabled: true}"
    host.urls[url] = HttpResponse(200, json.dumps(config).encode())
    assert notes(host, "dns") == []


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


def bridge_host(*files: str) -> FakeHost:
    """A node on whose cbr0 one pod hangs, and another pod on something else."""
    host = make_host()
    entry = {"local": "10.244.0.1", "prefixlen": 24, "scope": "global"}
    host.answers["ip -json address show"] = json.dumps([{"ifname": "cbr0", "flags": ["UP"], "addr_info": [entry]}])
    host.answers["ip -json link show master cbr0"] = json.dumps([{"ifname": "veth1"}])
    host.files.update({f"/etc/cni/net.d/{name}": b'{"type": "bridge"}' for name in files})
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
    (note,) = traffic.look_at_pod_network(make_patient(host))
    assert note.level == "warning" and "1 pod still on cbr0" in note.text and "10-flannel.conflist" in note.text
    assert note.remedy == "kubectl -n shop delete pod pod-abc"
    host.answers["crictl"] = CommandResult((), 1)
    (note,) = traffic.look_at_pod_network(make_patient(host))
    assert "bridge link show master cbr0" in note.remedy


@pytest.mark.parametrize("files", [("99-kb-bridge.conflist",), ("10-flannel.conflist",), ()])
def test_pods_on_the_bridge_are_fine_while_the_network_is_kbs(files: tuple[str, ...]) -> None:
    assert notes(bridge_host(*files), "pod-network") == []


def test_a_bridge_of_before_without_pods_is_nothing() -> None:
    host = bridge_host("10-flannel.conflist", "99-kb-bridge.conflist")
    host.answers["ip -json link show master cbr0"] = "[]"
    assert notes(host, "pod-network") == []


def own_network_host(rules: str, own: str = "-N KB-FORWARD\n-A KB-FORWARD -s 10.244.0.0/24 -j ACCEPT\n") -> FakeHost:
    host = bridge_host("99-kb-bridge.conflist")
    host.files[f"/etc/systemd/system/{pod_network.UNIT}"] = b""
    host.answers["iptables -w 10 -S FORWARD"] = rules
    host.answers["iptables -w 10 -S KB-FORWARD"] = own if own else CommandResult((), 1)
    host.answers["ip6tables"] = "-P FORWARD ACCEPT\n"
    return host


@pytest.mark.parametrize(
    ("rules", "own", "is_cut"),
    [
        ("-P FORWARD ACCEPT\n", "", False),
        ("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j KB-FORWARD\n", "-N KB-FORWARD\n-A KB-FORWARD -s 10.244.0.0/24 -j ACCEPT\n", False),
        ("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", "-N KB-FORWARD\n-A KB-FORWARD -s 10.244.0.0/24 -j ACCEPT\n", True),
        ("-P FORWARD DROP\n-A FORWARD -j KB-FORWARD\n", "-N KB-FORWARD\n", True),
        ("-P FORWARD DROP\n", "", True),
    ],
)  # fmt: skip
def test_a_firewall_that_drops_what_pods_send(rules: str, own: str, is_cut: bool) -> None:
    found = notes(own_network_host(rules, own), "pod-network")
    assert bool(found) is is_cut
    if is_cut:
        ((level, text),) = found
        assert level == "error" and "its policy is DROP, and kb's rules are gone" in text


def test_a_bridge_whose_packets_no_rule_sees() -> None:
    host = bridge_host("99-kb-bridge.conflist")
    before = notes(host, "pod-network")
    host.files["/proc/sys/net/bridge/bridge-nf-call-iptables"] = b"0\n"
    (told,) = [note for note in notes(host, "pod-network") if note not in before]
    assert told[0] == "error" and "net.bridge.bridge-nf-call-iptables is 0" in told[1]
    host.files["/proc/sys/net/bridge/bridge-nf-call-iptables"] = b"1\n"
    assert notes(host, "pod-network") == before


def test_a_cni_configuration_that_is_gone() -> None:
    host = own_network_host("-P FORWARD ACCEPT\n")
    del host.files["/etc/cni/net.d/99-kb-bridge.conflist"]
    ((level, text),) = notes(host, "pod-network")
    assert level == "error" and "no CNI configuration in /etc/cni/net.d" in text
    assert remedies(host, "pod-network")[0].endswith(" phase pod-network")
