"""kubeup/network/flannel_traces.py: what flannel left goes if it came after kb, and never otherwise."""

from __future__ import annotations

from kubeup.machine.host import CommandResult
from kubeup.network import flannel_traces, service_rules
from tests.fake_host import FakeHost

NAT = """\
-N FLANNEL-POSTRTG
-N MINE
-A POSTROUTING -j MINE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
"""
ALL = [str(path) for path in flannel_traces.PLACES]


def make_host() -> FakeHost:
    given: list[str] = []

    def restore(argv: tuple[str, ...]) -> CommandResult:
        given.append(" ".join(argv))
        return CommandResult(argv, 0)

    host = FakeHost(
        programs={"iptables-nft"},
        answers={
            "iptables-nft -w 10 -t nat -S": NAT,
            "iptables-nft-restore": restore,
            "nft list tables": "table ip flannel-ipv4\ntable ip mine\n",
        },
        accepts={"nft delete table ip flannel-ipv4", "ip link delete cni0", "ip link delete flannel.1"},
    )
    host.files |= {
        "/etc/cni/net.d/10-flannel.conflist": b"",
        "/run/flannel/subnet.env": b"",
        "/opt/cni/bin/flannel": b"",
        "/proc/net/dev": b"Inter-|   Receive\n face |bytes\n  eth0: 1 2\n  cni0: 0 0\nflannel.1:0 0\n",
    }
    return host


def test_all_of_it_goes_and_no_rule_of_others() -> None:
    host = make_host()
    assert flannel_traces.find(host, places=ALL, links=[])[:3] == [
        "cni0",
        "flannel.1",
        "1 chain of iptables-nft's table nat",
    ]
    assert flannel_traces.remove(host, places=ALL) == []
    assert host.changes == [
        "run iptables-nft-restore -w 10 --noflush",
        "run nft delete table ip flannel-ipv4",
        "run ip link delete cni0",
        "run ip link delete flannel.1",
        "remove /etc/cni/net.d/10-flannel.conflist",
        "remove /opt/cni/bin/flannel",
        "remove /run/flannel",
    ]
    rules = service_rules.parse_rules(NAT, "iptables-nft", table="nat", is_own=flannel_traces.CHAINS.__contains__)
    assert rules.render_removal().splitlines()[2:-1] == [
        '-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "-X FLANNEL-POSTRTG",
    ]


def test_a_program_that_was_there_before_stays() -> None:
    host = make_host()
    flannel_traces.remove(host, places=[path for path in ALL if path != "/opt/cni/bin/flannel"])
    assert "/opt/cni/bin/flannel" in host.files and "/run/flannel/subnet.env" not in host.files


def test_flannel_of_before_is_somebody_elses() -> None:
    assert flannel_traces.find(make_host(), places=[], links=["flannel.1"]) == []
