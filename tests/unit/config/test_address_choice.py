"""Several network cards: which address is taken and why, what is refused, and that the kubelet is told the same."""

from __future__ import annotations

from kubeup.config.types import Arg
from tests.unit.config_case import FLAGS, addresses, load, machine, refuse

NAT = "10.0.2.15"


def test_vagrant_s_nat_address_is_not_taken_where_there_is_another() -> None:
    config = load(host=machine(eth0=[NAT], eth1=["192.168.56.11"]))
    assert config.local_api_endpoint.advertise_address == "192.168.56.11"
    assert config.notes[:1] == (
        "advertise address 192.168.56.11 (eth1): 10.0.2.15 (eth0, the default route) is the NAT address that every "
        "VirtualBox machine has",
    )
    assert config.node.kubelet_extra_args == (Arg("node-ip", "192.168.56.11"),)


def test_vagrant_s_nat_address_with_several_others_is_refused() -> None:
    (detail,) = refuse(host=machine(eth0=[NAT], eth1=["192.168.56.11"], eth2=["172.16.0.9"]))
    assert "it also has 192.168.56.11 (eth1), 172.16.0.9 (eth2)" in detail
    assert "--apiserver-advertise-address" in detail


def test_vagrant_s_nat_address_alone_is_taken_with_a_warning() -> None:
    config = load(host=machine(eth0=[NAT]))
    assert config.local_api_endpoint.advertise_address == NAT
    assert any("no other machine can join this one there" in warning for warning in config.warnings)


def test_the_subnets_say_which_family_the_address_has() -> None:
    """A router announces IPv6, and nobody set a default route for IPv4, as where there is no way out."""
    host = machine(eth0=["10.0.0.11", "2001:db8::7"])
    host.files["/proc/net/route"] = b"Iface\n"
    route = (
        "00000000000000000000000000000000 00 " + "0" * 32 + " 00 fe800000000000000000000000000001 00000400 1 0 3 eth0\n"
    )
    host.files["/proc/net/ipv6_route"] = route.encode()
    assert load(host=host).local_api_endpoint.advertise_address == "2001:db8::7"
    for flag, cidr in (("pod-network-cidr", "10.244.0.0/16"), ("service-cidr", "10.96.0.0/12")):
        assert load(host=host, flags={flag: cidr}).local_api_endpoint.advertise_address == "10.0.0.11"
    host.answers["ip -json addr"] = addresses(lo=["::1"], eth0=["2001:db8::7", "fe80::1"])
    (detail,) = refuse(host=host, flags={"pod-network-cidr": "10.244.0.0/16"})
    assert "this machine has no IPv4 address, and the first subnet of the cluster is IPv4" in detail


def test_two_cards_with_the_same_address_are_refused() -> None:
    (detail,) = refuse(host=machine(eth0=["10.0.0.11"], eth1=["10.0.0.11"]))
    assert "eth0 and eth1 both hold 10.0.0.11" in detail


def test_the_kubelet_is_told_the_advertised_address_where_there_are_several() -> None:
    host = machine(eth0=["10.0.0.77"], eth1=["10.0.0.11"])
    config = load(host=host, flags=FLAGS)
    assert config.node.kubelet_extra_args == (Arg("node-ip", "10.0.0.11"),)
    assert (
        "this machine has several network interfaces: the kubelet registers with 10.0.0.11 (--node-ip)" in config.notes
    )


def test_the_kubelet_is_told_nothing_where_there_is_nothing_to_choose() -> None:
    assert load(flags=FLAGS).node.kubelet_extra_args == ()
    host = machine(eth0=["10.0.0.11"], docker0=["172.17.0.1"], cni0=["10.244.0.1"], eth1=["fd00::5"])
    assert load(host=host, flags=FLAGS).node.kubelet_extra_args == ()
    elsewhere = machine(eth0=["10.0.0.77"], eth1=["10.0.0.78"])
    assert load(host=elsewhere, flags=FLAGS).node.kubelet_extra_args == (), "an address in front of this machine"


def test_links_of_pod_networks_make_no_machine_of_several_cards() -> None:
    links = {
        name: [f"10.244.0.{number}"]
        for number, name in enumerate(("cbr0", "cbr-vxlan", "flannel.1", "cilium_host", "vxlan.calico", "tunl0"), 1)
    }
    config = load(host=machine(eth0=["10.0.0.11"], **links), flags=FLAGS)
    assert config.node.kubelet_extra_args == () and not any("cards" in note for note in config.notes)


def test_the_kubelet_is_told_its_address_where_no_default_route_tells_it() -> None:
    host = machine(eth0=["10.0.0.11"])
    host.files["/proc/net/route"] = b"Iface\n"
    config = load(host=host, flags=FLAGS)
    assert config.node.kubelet_extra_args == (Arg("node-ip", "10.0.0.11"),)
    assert "this machine has no default route: the kubelet registers with 10.0.0.11 (--node-ip)" in config.notes


DUAL = {**FLAGS, "service-cidr": "10.96.0.0/16,fd00:96::/112", "pod-network-cidr": "10.244.0.0/16,fd00:10::/56"}


def test_in_a_dual_stack_cluster_the_kubelet_is_told_an_address_of_each_family() -> None:
    """By itself it registers with one, and the pods' other family has no way between nodes."""
    config = load(host=machine(eth0=["10.0.0.77"], eth1=["10.0.0.11", "fd00::11", "fd00::12"]), flags=DUAL)
    assert config.node.kubelet_extra_args == (Arg("node-ip", "10.0.0.11,fd00::11"),)
    assert "dual-stack: the kubelet registers with 10.0.0.11 and fd00::11 (--node-ip)" in config.notes
    config = load(host=machine(eth0=["10.0.0.11"], eth1=["fd00::11"]), flags=DUAL)
    assert config.node.kubelet_extra_args == (Arg("node-ip", "10.0.0.11,fd00::11"),)


def test_a_machine_of_one_family_in_a_dual_stack_cluster_is_told_so() -> None:
    config = load(host=machine(eth0=["10.0.0.77"], eth1=["10.0.0.11"]), flags=DUAL)
    assert config.node.kubelet_extra_args == ()
    assert any("no usable address of the other family" in note for note in config.notes)


def test_a_node_ip_of_the_user_s_stays() -> None:
    host = machine(eth0=["10.0.0.77"], eth1=["10.0.0.11"])
    text = (
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 10.0.0.11}\n"
        "nodeRegistration: {kubeletExtraArgs: [{name: node-ip, value: 10.0.0.77}]}\n"
    )
    assert load(text, host=host).node.kubelet_extra_args == (Arg("node-ip", "10.0.0.77"),)


def test_ipv6_alone_is_taken() -> None:
    host = machine()
    host.answers["ip -json addr"] = addresses(lo=["::1"], eth0=["2001:db8::5", "fe80::1"])
    host.files["/proc/net/route"] = b"Iface\n"
    route = (
        "00000000000000000000000000000000 00 " + "0" * 32 + " 00 fe800000000000000000000000000001 00000400 1 0 3 eth0\n"
    )
    host.files["/proc/net/ipv6_route"] = route.encode()
    assert load(host=host).local_api_endpoint.advertise_address == "2001:db8::5"


def test_runtime_fix_comes_by_flag_or_file() -> None:
    assert not load(flags=FLAGS).kb.runtime.fix
    assert load(flags={**FLAGS, "fix": True}).kb.runtime.fix
    kb = "apiVersion: kb/v1alpha1\nkind: KbConfiguration\nruntime: {fix: true}\n---\n"
    init = (
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 10.0.0.11}\n"
    )
    assert load(kb + init).kb.runtime.fix
