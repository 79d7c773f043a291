"""kubeup/network/service_rules.py: what is kube-proxy's goes, by its exact name, and nothing that looks like it."""

from __future__ import annotations

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.network import service_rules
from tests.fake_host import FakeHost

FILTER = """\
-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER-USER
-N KUBE-FIREWALL
-N KUBE-FORWARD
-N KUBE-NWPLCY-DEFAULT
-N KUBE-POD-FW-J6SH4TJGRNYZZBAF
-N KUBE-ROUTER-INPUT
-N KUBE-SERVICES
-A INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -m comment --comment "not -j KUBE-SERVICES" -j RETURN
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -j DROP
"""
REMOVAL = """\
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-D INPUT -j KUBE-FIREWALL
-D FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-X KUBE-FIREWALL
-X KUBE-FORWARD
-X KUBE-SERVICES
COMMIT
"""


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("KUBE-SERVICES", True),
        ("KUBE-IPVS-OUT-FILTER", True),
        ("KUBE-SVC-X27LE4BHSL4DOUIK", True),
        ("KUBE-SVC-MINE", False),
        ("KUBE-SVC-X27LE4BHSL4DOUIK2", False),
        ("KUBE-ROUTER-SERVICES", False),
        ("KUBE-POD-FW-J6SH4TJGRNYZZBAF", False),
        ("KUBE-NWPLCY-DEFAULT", False),
        ("KUBE-DUMMY", False),
    ],
)
def test_a_chain_is_known_by_its_whole_name(name: str, is_own: bool) -> None:
    assert service_rules.is_own_chain(name) is is_own


def test_one_transaction_names_what_goes_and_nothing_else() -> None:
    found = service_rules.parse_rules(FILTER, "iptables-nft", table="filter")
    assert found.render_removal() == REMOVAL and found.held == ()
    assert "KUBE-ROUTER" not in REMOVAL and "DOCKER" not in REMOVAL


def test_a_chain_that_a_rule_of_others_leads_to_stays_with_what_it_leads_to() -> None:
    text = (
        "-N KUBE-MARK-MASQ\n-N KUBE-NODEPORTS\n-N KUBE-SERVICES\n-N MINE\n"
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n'
        "-A OUTPUT -p tcp -j KUBE-NODEPORTS\n-A KUBE-NODEPORTS -j KUBE-MARK-MASQ\n-A MINE -j RETURN\n"
    )
    found = service_rules.parse_rules(text, "iptables-nft", table="nat")
    assert found.chains == ("KUBE-SERVICES",) and found.held == ("-A OUTPUT -p tcp -j KUBE-NODEPORTS",)
    assert len(found.jumps) == 1


PORT_MAPPINGS = """\
-N CNI-HOSTPORT-DNAT
-N CNI-HOSTPORT-MASQ
-N CNI-HOSTPORT-SETMARK
-N DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
"""


def test_the_chains_of_port_mappings_go_while_they_map_nothing() -> None:
    found = service_rules.parse_rules(PORT_MAPPINGS, "iptables-nft", table="nat")
    assert set(found.chains) == service_rules.PORT_MAPPINGS and len(found.jumps) == 2 and found.held == ()
    mapped = PORT_MAPPINGS + "-N CNI-DN-7\n-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80 -j CNI-DN-7\n"
    found = service_rules.parse_rules(mapped, "iptables-nft", table="nat")
    assert (found.chains, found.jumps, found.held) == ((), (), ())


def make_host(**answers: str) -> FakeHost:
    programs = {f"{family}-{variant}" for family in ("iptables", "ip6tables") for variant in ("nft", "legacy")}
    return FakeHost(programs={*programs, "iptables", "ip6tables"}, answers=dict(answers))


def test_both_variants_are_looked_at_and_no_legacy_table_is_created_by_it() -> None:
    host = make_host()
    host.files["/proc/net/ip_tables_names"] = b"nat\nfilter\n"
    for program in ("iptables-nft", "iptables-legacy"):
        host.answers[f"{program} -w 10 -t filter -S"] = FILTER
    host.answers["iptables-legacy -w 10 -t mangle -S"] = "-N KUBE-PROXY-CANARY\n"
    assert service_rules.find_all(host) == [
        "3 chains of iptables-nft's table filter",
        "3 chains of iptables-legacy's table filter",
    ]
    given: list[tuple[str, ...]] = []

    def restore(argv: tuple[str, ...]) -> CommandResult:
        given.append(argv)
        host.answers[f"{argv[0][: -len('-restore')]} -w 10 -t filter -S"] = ""
        return CommandResult(argv, 0)

    host.answers |= {f"iptables-{variant}-restore": restore for variant in ("nft", "legacy")}
    assert service_rules.remove_all(host) == [] and service_rules.find_all(host) == []
    assert given == [(f"iptables-{variant}-restore", "-w", "10", "--noflush") for variant in ("nft", "legacy")]


def test_a_machine_with_one_variant_is_asked_by_the_name_that_it_has() -> None:
    host = FakeHost(programs={"iptables"}, answers={"iptables --version": "iptables v1.8.7 (nf_tables)"})
    host.answers["iptables -w 10 -t mangle -S"] = "-N KUBE-IPTABLES-HINT\n"
    assert service_rules.find_all(host) == ["1 chain of iptables's table mangle"]
    host.answers["iptables --version"] = "iptables v1.6.1"
    assert service_rules.find_all(host) == [], "the legacy one, and the kernel has no such table yet"


def test_its_own_table_of_nftables_goes_whole() -> None:
    host = FakeHost(
        answers={
            "nft list tables": "table ip kube-proxy\ntable ip6 kube-proxy\ntable inet kube-proxy-2\ntable ip filter\n"
        },
        accepts={"nft delete table ip kube-proxy", "nft delete table ip6 kube-proxy"},
    )
    assert service_rules.remove_all(host) == []
    assert host.changes == ["run nft delete table ip kube-proxy", "run nft delete table ip6 kube-proxy"]


def test_the_table_of_port_mappings_goes_only_while_it_maps_nothing() -> None:
    chains = "\tchain hostports {\n%s\t}\n\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n"
    mapped = '\t\ttcp dport 8080 dnat to 10.244.0.7:80 comment "f00"\n'
    host = FakeHost(
        answers={
            "nft list tables": "table ip cni_hostport\ntable ip6 cni_hostport\n",
            "nft list table ip cni_hostport": "table ip cni_hostport {\n" + chains % "" + "}\n",
            "nft list table ip6 cni_hostport": "table ip6 cni_hostport {\n" + chains % mapped + "}\n",
        },
        accepts={"nft delete table ip cni_hostport"},
    )
    assert service_rules.find_all(host) == ["nft's table ip cni_hostport"]
    assert service_rules.remove_all(host) == []
    assert host.changes == ["run nft delete table ip cni_hostport"]


def test_of_ipvs_goes_what_its_link_and_its_sets_name() -> None:
    """A virtual server of keepalived's on the same machine stays. No machine here has IPVS: not run anywhere."""
    addresses = '[{"ifname": "kube-ipvs0", "addr_info": [{"local": "10.96.0.1", "prefixlen": 32, "scope": "global"}]}]'
    host = FakeHost(
        programs={"ipvsadm", "ipset"},
        answers={
            "ip link show dev kube-ipvs0": "9: kube-ipvs0",
            "ip -json address show dev kube-ipvs0": addresses,
            "ipset list -name": "KUBE-NODE-PORT-TCP\nKUBE-6-CLUSTER-IP\nKUBE-DST-MINE\n",
            "ipset list KUBE-NODE-PORT-TCP": "Name: KUBE-NODE-PORT-TCP\nMembers:\n30080\n",
            "ipvsadm -Sn": "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m\n-A -t 10.0.0.9:443 -s rr\n"
            "-A -t 10.0.0.1:30080 -s rr\n",
        },
        accepts={
            "ipvsadm -D -t 10.96.0.1:443",
            "ipvsadm -D -t 10.0.0.1:30080",
            "ip link delete kube-ipvs0",
            "ipset destroy KUBE-NODE-PORT-TCP",
            "ipset destroy KUBE-6-CLUSTER-IP",
        },
    )
    assert service_rules.remove_all(host) == []
    assert host.changes == [
        "run ipvsadm -D -t 10.96.0.1:443",
        "run ipvsadm -D -t 10.0.0.1:30080",
        "run ip link delete kube-ipvs0",
        "run ipset destroy KUBE-NODE-PORT-TCP",
        "run ipset destroy KUBE-6-CLUSTER-IP",
    ]


def test_virtual_servers_that_no_program_here_can_remove_are_told() -> None:
    host = FakeHost(answers={"ip link show dev kube-ipvs0": "9: kube-ipvs0"}, accepts={"ip link delete kube-ipvs0"})
    host.files["/proc/net/ip_vs"] = b"IP Virtual Server version 1.2.1\nProt LocalAddress:Port\nTCP  0A600001:01BB rr\n"
    (told,) = service_rules.remove_all(host)
    assert "there is no ipvsadm here" in told


def test_a_refusal_names_the_command_and_a_way_on() -> None:
    host = FakeHost(answers={"nft list tables": "table ip kube-proxy\n"})
    host.answers["nft delete table ip kube-proxy"] = CommandResult((), 1, stderr="Operation not permitted")
    with pytest.raises(HostError) as caught:
        service_rules.remove_all(host)
    assert caught.value.code == "rules-not-removed" and "nft delete table" in caught.value.cause
    assert "--skip-phases cleanup-node/remove-service-rules" in caught.value.remedy
