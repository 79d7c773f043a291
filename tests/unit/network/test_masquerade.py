"""kubeup/network/masquerade.py: the rule, by nft and by iptables."""

from __future__ import annotations

from kubeup.network import masquerade
from tests.fake_host import FakeHost

# ---- masquerading


def test_ranges_are_merged_before_nft_sees_them() -> None:
    cidrs = ["10.244.0.0/16", "10.244.1.0/24", "fd00:244::/56", "10.9.0.0/24"]
    assert masquerade.select_cidrs(cidrs, 4) == ["10.9.0.0/24", "10.244.0.0/16"]
    assert masquerade.select_cidrs(cidrs, 6) == ["fd00:244::/56"]


def test_the_rule_masks_what_leaves_the_cluster_alone() -> None:
    text, chain = masquerade.render_nft_table(4, ["10.244.1.0/24"], cluster=["10.244.0.0/16"])
    assert "ip saddr { 10.244.1.0/24 } ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade" in text
    assert text.startswith("table ip kb_pods {}\ndelete table ip kb_pods\n")
    assert chain in text
    assert chain != masquerade.render_nft_table(4, ["10.244.1.0/24"], cluster=["10.0.0.0/8"])[1]


def test_iptables_says_the_same() -> None:
    assert masquerade.render_iptables_chain(6, ["fd00:244:0:1::/64"], cluster=["fd00:244::/56"]) == [
        "-N KB-POSTROUTING",
        "-A KB-POSTROUTING -d fd00:244::/56 -j RETURN",
        "-A KB-POSTROUTING -d ff00::/8 -j RETURN",
        "-A KB-POSTROUTING -s fd00:244:0:1::/64 -j MASQUERADE",
    ]


def test_a_rule_that_is_there_is_left_alone_and_a_flushed_one_is_set_again() -> None:
    text, chain = masquerade.render_nft_table(4, ["10.244.1.0/24"], cluster=["10.244.0.0/16"])
    host = FakeHost(answers={"nft list tables": "", "nft list table ip kb_pods": text}, accepts={"nft -f -"})
    assert masquerade.ensure_masquerade(host, ["10.244.1.0/24"], cluster=["10.244.0.0/16"]) == []
    assert host.changes == []
    host.answers["nft list table ip kb_pods"] = f"table ip kb_pods {{ chain {chain} {{ }} }}"
    assert masquerade.ensure_masquerade(host, ["10.244.1.0/24"], cluster=["10.244.0.0/16"]) == []
    assert host.changes == ["run nft -f -"]


def test_a_node_without_nft_and_iptables_is_told_so() -> None:
    assert masquerade.ensure_masquerade(FakeHost(), ["10.244.1.0/24"], cluster=[]) == [
        "neither nft nor iptables is there: pods cannot reach anything outside the cluster"
    ]
