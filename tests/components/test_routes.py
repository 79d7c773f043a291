"""The pod network for real: nodes are network namespaces, pods are made by the CNI plugins from kb's conflist, routes
and rules are set by the route keeper's own functions. Nothing leaves these namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.local_host import LocalHost
from kubeup.network import masquerade, node_routes, pod_network, route_plan
from kubeup.network.route_plan import Peer

pytestmark = pytest.mark.component

CNI_DIRS = ("/usr/lib/cni", "/opt/cni/bin")
POD_CIDRS = ("10.244.0.0/16", "fd00:244::/56")
SERVE = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("::", 7777)); server.listen(); server.settimeout(20)
print("up", flush=True)
peer, address = server.accept()
size = 0
while True:
    chunk = peer.recv(65536)
    size += len(chunk)
    if not chunk: break
print(address[0].replace("::ffff:", ""), size, flush=True)
"""
CALL = """
import socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=8)
peer.sendall(b"x" * 200000)
peer.close()
"""


def cni_dir() -> Optional[Path]:
    for folder in CNI_DIRS:
        if all((Path(folder) / name).exists() for name in ("bridge", "host-local")):
            return Path(folder)
    return None


def why_not() -> str:
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [name for name in ("ip", "bridge", "nft") if not shutil.which(name)]
    if missing:
        return f"needs the programs {', '.join(missing)}"
    if cni_dir() is None:
        return "needs the CNI plugins bridge and host-local"
    name = f"kbt-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"this machine makes no network namespaces: {made.stderr.strip()}"
    vxlan = ["ip", "-n", name, "link", "add", "x", "type", "vxlan", "id", "1", "dstport", "8472"]
    has_vxlan = subprocess.run(vxlan, capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return "" if has_vxlan else "the kernel has no VXLAN"


class NamespaceHost(LocalHost):
    """A LocalHost whose programs run in a network namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.ran: list[str] = []

    def _inside(self, argv: Argv) -> list[Any]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def query(
        self, argv: Argv, *, timeout_s: float = 30, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        return super().query(self._inside(argv), timeout_s=timeout_s, env=env, stdin=stdin)

    def run(
        self, argv: Argv, *, timeout_s: float = 300, env: Optional[Mapping[str, str]] = None, stdin: str = ""
    ) -> CommandResult:
        self.ran.append(" ".join(str(part) for part in argv))
        return super().run(self._inside(argv), timeout_s=timeout_s, env=env, stdin=stdin)


class Lab:
    """Namespaces: a router with one LAN for each network, nodes and a stranger on them, pods on the nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"kbt{uuid.uuid4().hex[:5]}"
        self.names: list[str] = []
        self.hosts: dict[str, NamespaceHost] = {}
        self.peers: list[Peer] = []
        self.add("router")
        self.sh("router", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def full(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def add(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self.full(name)], check=True)
        self.names.append(name)
        self.sh(name, "ip", "link", "set", "lo", "up")

    def sh(self, name: str, *argv: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.full(name), *argv], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {' '.join(argv)}: {done.stderr}"
        return done.stdout

    def lan(self, number: int) -> None:
        """A network 10.99.N.0/24 and fd00:99:N::/64; the router is .254 in it."""
        self.sh("router", "ip", "link", "add", f"lan{number}", "type", "bridge")
        self.sh("router", "ip", "link", "set", f"lan{number}", "up")
        self.sh("router", "ip", "address", "add", f"10.99.{number}.254/24", "dev", f"lan{number}")
        self.sh("router", "ip", "address", "add", f"fd00:99:{number}::fe/64", "dev", f"lan{number}", "nodad")

    def machine(self, name: str, lan: int, last: int) -> None:
        self.add(name)
        # the name of a link has 15 characters
        outer = f"{self.prefix[-5:]}{name[:8]}"
        self.sh(name, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", outer, "netns", self.full("router"))
        self.sh("router", "ip", "link", "set", outer, "master", f"lan{lan}", "up")
        self.sh(name, "ip", "link", "set", "eth0", "up")
        self.sh(name, "ip", "address", "add", f"10.99.{lan}.{last}/24", "dev", "eth0")
        self.sh(name, "ip", "address", "add", f"fd00:99:{lan}::{last}/64", "dev", "eth0", "nodad")
        self.sh(name, "ip", "route", "add", "default", "via", f"10.99.{lan}.254")
        self.sh(name, "ip", "-6", "route", "add", "default", "via", f"fd00:99:{lan}::fe")

    def node(self, name: str, lan: int, last: int, pods: int) -> None:
        self.machine(name, lan, last)
        self.sh(name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # as strict as a distribution may be
        self.sh(name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
        self.hosts[name] = NamespaceHost(self.full(name))
        cidrs = (f"10.244.{pods}.0/24", f"fd00:244:0:{pods}::/64")
        self.peers.append(Peer(name, (f"10.99.{lan}.{last}", f"fd00:99:{lan}::{last}"), cidrs))

    def me(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)

    def pod(self, name: str, node: str, mtu: int, *, host_port: int = 0) -> dict[int, str]:
        """A pod as the runtime would make it; its addresses by IP version."""
        self.add(name)
        folder = cni_dir()
        assert folder is not None
        conflist = json.loads(pod_network.render_conflist(self.me(node).pod_cidrs, mtu))
        plugin = {"cniVersion": conflist["cniVersion"], "name": conflist["name"], **conflist["plugins"][0]}
        plugin["ipam"]["dataDir"] = str(self.folder / node)
        env = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": self.full(name),
            "CNI_NETNS": f"/run/netns/{self.full(name)}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(folder),
        }
        done = self.hosts[node].run([folder / "bridge"], env=env, stdin=json.dumps(plugin))
        assert done.ok, done.stdout + done.stderr
        if host_port and (folder / "portmap").exists():
            mapping = {"hostPort": host_port, "containerPort": 7777, "protocol": "tcp"}
            chained = {**plugin, **conflist["plugins"][1], "prevResult": json.loads(done.stdout)}
            chained["runtimeConfig"] = {"portMappings": [mapping]}
            mapped = self.hosts[node].run([folder / "portmap"], env=env, stdin=json.dumps(chained))
            assert mapped.ok, mapped.stdout + mapped.stderr
        addresses = [entry["address"].partition("/")[0] for entry in json.loads(done.stdout)["ips"]]
        return {6 if ":" in address else 4: address for address in addresses}

    def keep(self, backend: str = "auto") -> dict[str, list[str]]:
        """One round of the keeper on every node; the commands that each ran."""
        ran = {}
        for name, host in self.hosts.items():
            host.ran.clear()
            me = self.me(name)
            wanted = route_plan.plan_network(
                self.peers, me, interfaces=node_routes.read_interfaces(host), backend=backend
            )
            assert wanted.problems == ()
            assert node_routes.ensure_network(host, wanted) == []
            assert masquerade.ensure_masquerade(host, me.pod_cidrs, cluster=POD_CIDRS) == []
            ran[name] = list(host.ran)
        return ran

    def talk(self, client: str, server: str, address: str, port: int = 7777) -> tuple[str, int]:
        """Send 200 kB over TCP; return whom the server saw, and how much arrived."""
        command = ["ip", "netns", "exec", self.full(server), sys.executable, "-c", SERVE]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stdout is not None
                assert serving.stdout.readline() == "up\n"
                self.sh(client, sys.executable, "-c", CALL, address, str(port))
                seen, size = serving.stdout.readline().split()
            finally:
                serving.kill()
        return seen, int(size)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", self.full(name)], check=False)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        made.remove()


def two_nodes(lab: Lab, lans: Sequence[int], mtu: int) -> dict[str, dict[int, str]]:
    for number in sorted({*lans, 9}):
        lab.lan(number)
    lab.node("n1", lans[0], 11, pods=1)
    lab.node("n2", lans[1], 12, pods=2)
    lab.machine("stranger", 9, 99)
    lab.keep()
    return {"p1": lab.pod("p1", "n1", mtu), "p2": lab.pod("p2", "n2", mtu)}


@pytest.mark.parametrize(("lans", "backend"), [((1, 1), "route"), ((1, 2), "vxlan"), ((1, 1), "forced")])
def test_pods_of_two_nodes_reach_each_other_with_their_own_addresses(
    lab: Lab, lans: tuple[int, int], backend: str
) -> None:
    pods = two_nodes(lab, lans, 1450)
    if backend == "forced":
        lab.keep("vxlan")
    for version in (4, 6):
        assert lab.talk("p1", "p2", pods["p2"][version]) == (pods["p1"][version], 200000)
        assert lab.talk("p2", "p1", pods["p1"][version]) == (pods["p2"][version], 200000)
    links = lab.sh("n1", "ip", "-json", "link", "show")
    assert any(link["ifname"] == route_plan.VXLAN for link in json.loads(links)) == (backend != "route")


@pytest.mark.parametrize("lans", [(1, 1), (1, 2)])
def test_a_node_reaches_the_pods_of_another_node(lab: Lab, lans: tuple[int, int]) -> None:
    pods = two_nodes(lab, lans, 1450)
    for version in (4, 6):
        seen, size = lab.talk("n1", "p2", pods["p2"][version])
        own = {*lab.me("n1").addresses, "10.244.1.0", "fd00:244:0:1::", "10.244.1.1", "fd00:244:0:1::1"}
        assert size == 200000
        assert seen in own


def test_pods_leave_the_cluster_with_their_nodes_address(lab: Lab) -> None:
    two_nodes(lab, (1, 2), 1450)
    assert lab.talk("p1", "stranger", "10.99.9.99") == ("10.99.1.11", 200000)
    assert lab.talk("p1", "stranger", "fd00:99:9::99") == ("fd00:99:1::11", 200000)
    # another node is outside of the pods' network as well
    assert lab.talk("p1", "n2", "10.99.2.12") == ("10.99.1.11", 200000)


@pytest.mark.skipif(not shutil.which("iptables"), reason="the plugin portmap needs iptables")
def test_a_host_port_leads_into_the_pod(lab: Lab) -> None:
    two_nodes(lab, (1, 2), 1450)
    lab.pod("p3", "n1", 1450, host_port=8777)
    seen, size = lab.talk("stranger", "p3", "10.99.1.11", 8777)
    assert (seen, size) == ("10.99.9.99", 200000)
    # from another node's pod, which leaves its node masked
    assert lab.talk("p2", "p3", "10.99.1.11", 8777) == ("10.99.2.12", 200000)


def test_a_full_mtu_passes_where_packets_find_a_smaller_one(lab: Lab) -> None:
    """Pods whose MTU is the link's, and a VXLAN in between: the node tells them to send less."""
    pods = two_nodes(lab, (1, 2), 1500)
    assert lab.talk("p1", "p2", pods["p2"][4]) == (pods["p1"][4], 200000)


@pytest.mark.parametrize("lans", [(1, 1), (1, 2)])
def test_a_second_round_runs_nothing_and_a_lost_part_is_put_back(lab: Lab, lans: tuple[int, int]) -> None:
    pods = two_nodes(lab, lans, 1450)
    assert lab.keep() == {"n1": [], "n2": []}
    lab.sh("n1", "ip", "route", "flush", "proto", str(route_plan.PROTOCOL))
    lab.sh("n1", "nft", "flush", "ruleset")
    ran = lab.keep()
    assert any("route replace 10.244.2.0/24" in command for command in ran["n1"])
    assert [command for command in ran["n1"] if command.startswith("nft")] == ["nft -f -", "nft -f -"]
    assert ran["n2"] == []
    assert lab.talk("p1", "p2", pods["p2"][4]) == (pods["p1"][4], 200000)
    assert lab.keep() == {"n1": [], "n2": []}


def test_a_node_that_is_gone_leaves_nothing_and_foreign_routes_stay(lab: Lab) -> None:
    two_nodes(lab, (1, 2), 1450)
    lab.sh("n1", "ip", "route", "add", "10.77.0.0/16", "via", "10.99.1.254")
    lab.peers = [peer for peer in lab.peers if peer.name != "n2"]
    del lab.hosts["n2"]
    lab.keep()
    assert node_routes.read_network(lab.hosts["n1"]) == route_plan.Network()
    assert "10.77.0.0/16" in lab.sh("n1", "ip", "route")
    assert "10.244.1.0/24" in lab.sh("n1", "ip", "route")  # its own bridge


def test_withdrawing_takes_away_kbs_own_alone(lab: Lab) -> None:
    two_nodes(lab, (1, 2), 1450)
    lab.sh("n1", "nft", "add", "table", "ip", "other")
    lab.sh("n1", "ip", "route", "add", "10.77.0.0/16", "via", "10.99.1.254")
    assert node_routes.withdraw(lab.hosts["n1"]) is True
    assert node_routes.read_network(lab.hosts["n1"]) == route_plan.Network()
    tables = lab.sh("n1", "nft", "list", "tables").split("\n")
    assert "table ip other" in tables
    assert not any(masquerade.TABLE in table for table in tables)
    assert "10.77.0.0/16" in lab.sh("n1", "ip", "route")
    assert node_routes.withdraw(lab.hosts["n1"]) is False


def test_a_new_pod_range_of_a_node_replaces_the_old_one(lab: Lab) -> None:
    two_nodes(lab, (1, 2), 1450)
    old = lab.me("n2")
    lab.peers = [lab.me("n1"), Peer("n2", old.addresses, ("10.244.7.0/24",))]
    lab.keep()
    found = node_routes.read_network(lab.hosts["n1"])
    assert {route.pod_cidr for route in found.routes} == {"10.244.7.0/24"}
    assert {address for address, _ in found.neighbours} == {"10.244.7.0"}


@pytest.mark.skipif(not shutil.which("iptables"), reason="needs the program iptables")
def test_iptables_does_the_same_where_nft_is_missing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masquerade, "read_masquerade_tool", lambda host: "iptables")
    pods = two_nodes(lab, (1, 1), 1450)
    assert lab.keep() == {"n1": [], "n2": []}
    assert lab.talk("p1", "stranger", "10.99.9.99") == ("10.99.1.11", 200000)
    assert lab.talk("p1", "p2", pods["p2"][4]) == (pods["p1"][4], 200000)
    node_routes.withdraw(lab.hosts["n1"])
    assert masquerade.CHAIN not in lab.sh("n1", "iptables", "-t", "nat", "-S")


# ---- machines that drop what they forward


DROPS = {
    "policy of iptables": ["iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"],
    "rule of iptables": ["iptables -A FORWARD -j REJECT", "ip6tables -A FORWARD -j DROP"],
    "policy of nftables": [
        "nft add table inet firewall",
        "nft add chain inet firewall forward { type filter hook forward priority 0 ; policy drop ; }",
        "nft add rule inet firewall forward ct state invalid drop",
    ],
    "rule and policy of nftables": [
        "nft add table inet firewall",
        "nft add chain inet firewall forward { type filter hook forward priority 0 ; policy drop ; }",
        "nft add rule inet firewall forward counter drop",
    ],
}


def rules_of(lab: Lab, node: str) -> str:
    return lab.sh(node, "iptables-save") + lab.sh(node, "ip6tables-save") + lab.sh(node, "nft", "list", "ruleset")


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_pods_pass_where_forwarding_is_dropped(lab: Lab, drop: str, when: str) -> None:
    """As Docker, ufw and hardened machines have it, set before kb's network or on a network at work."""
    pods = two_nodes(lab, (1, 1), 1450)
    for node in ("n1", "n2"):
        if when == "before":
            node_routes.withdraw(lab.hosts[node])
        for line in DROPS[drop]:
            lab.sh(node, *line.split(" "))
    lab.keep()
    for version in (4, 6):
        assert lab.talk("p1", "p2", pods["p2"][version]) == (pods["p1"][version], 200000)
    assert lab.talk("p1", "stranger", "10.99.9.99") == ("10.99.1.11", 200000)
    assert lab.keep() == {"n1": [], "n2": []}, "a second round has nothing to do"
    lab.sh("n2", "nft", "flush", "ruleset")
    for line in DROPS[drop]:
        lab.sh("n2", *line.split(" "))
    lab.keep()
    assert lab.talk("p1", "p2", pods["p2"][4])[1] == 200000
    node_routes.withdraw(lab.hosts["n1"])
    left = rules_of(lab, "n1")
    assert "KB-FORWARD" not in left and "kb pods" not in left
    assert "DROP" in left or "REJECT" in left or "drop" in left, "the admin's own stay"
