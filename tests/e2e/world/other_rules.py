"""Packet filter rules, links, mounts and settings that have nothing to do with kb: a machine's own, Docker's, kube-router's.

All of it is as these programs leave it on a real machine, made by hand, since the lab has none of them. Must not: know kb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..lab.node import Node

_OWN = """
for program in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do
  $program -N MINE
  $program -A MINE -p tcp --dport 9100 -m comment --comment "the admin's own" -j ACCEPT
  $program -A INPUT -p tcp --dport 22 -j ACCEPT
  $program -A INPUT -j MINE
  $program -A FORWARD -p udp --dport 9 -j DROP
  $program -t nat -A POSTROUTING -p udp --dport 9 -j ACCEPT
  $program -t mangle -A OUTPUT -p udp --dport 9 -j TOS --set-tos 0x10
done
nft -f - <<'E'
table inet mine { chain input { type filter hook input priority 5; policy accept; tcp dport 9101 accept; }; }
E
"""
_DOCKER = """
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
sysctl -qw net.ipv4.ip_forward=1
iptables -P FORWARD DROP
for chain in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do iptables -N $chain; done
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -o docker0 -j DOCKER
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables -A DOCKER-USER -j RETURN
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -t nat -A DOCKER -i docker0 -j RETURN
"""
_KUBE_ROUTER = """
for program in iptables ip6tables; do
  for chain in INPUT FORWARD OUTPUT; do
    $program -N KUBE-ROUTER-$chain
    $program -I $chain -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-$chain
  done
  $program -N KUBE-POD-FW-J6SH4TJGRNYZZBAF
  $program -N KUBE-NWPLCY-DEFAULT
  $program -A KUBE-POD-FW-J6SH4TJGRNYZZBAF -m comment --comment "run through default network policy" -j KUBE-NWPLCY-DEFAULT
  $program -A KUBE-NWPLCY-DEFAULT -m comment --comment "rule to mark traffic" -j MARK --set-xmark 0x10000/0x10000
  $program -t nat -N KUBE-ROUTER-SERVICES
  $program -t nat -A POSTROUTING -j KUBE-ROUTER-SERVICES
done
"""
_FLANNEL = """
mkdir -p /run/flannel /var/lib/cni/networks/cbr0 /var/lib/cni/flannel /etc/cni/net.d
cat >/etc/cni/net.d/10-flannel.conflist <<'E'
{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
  {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
E
echo FLANNEL_MTU=1450 >/run/flannel/subnet.env
echo 10.244.0.9 >/var/lib/cni/networks/cbr0/last_reserved_ip.0
ip link add cni0 type bridge
ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning
for program in iptables-nft ip6tables-nft; do
  $program -t nat -N FLANNEL-POSTRTG
  $program -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
  $program -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
  $program -N FLANNEL-FWD
  $program -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
done
"""


def plant(node: Node) -> None:
    """Rules of the machine's own in both variants of iptables, Docker's bridge with its rules, kube-router's chains."""
    node.run("modprobe -q iptable_filter; true")
    node.run(f"set -e\n{_OWN}{_DOCKER}{_KUBE_ROUTER}", timeout=60)


def copy_service_rules_to_legacy(node: Node) -> None:
    """The rules of the kubelet and kube-proxy in the legacy variant too, as after a kube-proxy whose image chose that one."""
    foreign = "KUBE-(ROUTER|NWPLCY|POD-FW)"
    for family in ("iptables", "ip6tables"):
        own = f"{family}-nft-save | grep -E '^[*]|^COMMIT|KUBE-' | grep -vE '{foreign}'"
        node.run(f"set -o pipefail; {own} | {family}-legacy-restore --noflush")
        assert "-j KUBE-SERVICES" in node.run(f"{family}-legacy-save").stdout


def leave_flannel(node: Node) -> None:
    """What flannel leaves when its pods have ended, as its releases make it: the lab need not have flannel. Without its plugin no pod leaves
    its network, in which the runtime believes all of them."""
    node.run(f"set -e\n{_FLANNEL}", timeout=60)
