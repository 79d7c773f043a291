"""kb readdress: which files follow a control plane's new address, what is refused first, and what goes on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.addresses import replace_address
from kubeup.cluster import etcd
from kubeup.cluster.etcd import Member
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.node import certificates, pki
from kubeup.paths import Paths
from kubeup.phases import readdress
from kubeup.swap import manifests, proof
from tests.unit.commands.test_launcher import INIT, Machine

OLD, NEW = "10.0.0.11", "10.0.0.99"
PEER = Member("1", "cp1", (f"https://{OLD}:2380",), (f"https://{OLD}:2379",), False)


def links(*addresses: str) -> str:
    rows = [{"local": one, "prefixlen": 24, "scope": "global"} for one in addresses]
    return json.dumps([{"ifname": "eth0", "flags": ["UP"], "addr_info": rows}])


class Etcd:
    """The member list, and what was changed in it."""

    def __init__(self, members: tuple[Member, ...] = (PEER,)) -> None:
        self.members, self.updated = members, list[tuple[str, tuple[str, ...]]]()

    def list_members(self, *, is_sure: bool = True) -> tuple[Member, ...]:
        return self.members

    def update(self, member: Member, *, peer_urls: Any) -> None:
        self.updated.append((member.name, tuple(peer_urls)))


@pytest.fixture
def members() -> Etcd:
    return Etcd()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: Etcd, capsys: Any) -> Machine:
    host = Machine(tmp_path)
    assert run(host, *INIT) == 0
    host.answers["ip -json addr"] = links(NEW)
    host.accepts |= {"systemctl stop kubelet", "systemctl start kubelet"}

    def take_out(run: Any, names: Any) -> None:
        services.run(run.host, "stop", unit="kubelet")
        for name in names:
            manifests._set_aside(run, name)

    monkeypatch.setattr(manifests, "take_out_stopped", take_out)
    for name in ("ask_etcd", "ask_apiserver"):
        monkeypatch.setattr(proof, name, lambda run: "")
    monkeypatch.setattr(proof, "own_etcd", lambda run: members)
    monkeypatch.setattr(readdress, "wait_ready", readdress.wait_ready)
    node = host.cluster.by_kind("Node")["cp1"]
    node["status"] = {
        "addresses": [{"type": "InternalIP", "address": NEW}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def with_old(host: Machine) -> list[str]:
    """The files of the node, but for kb's own and what others own, that have the former address."""
    places = ("/etc/kubernetes", "/var/lib/kubelet")
    found = []
    for path in host.files():
        if str(path).startswith(places) and replace_address(
            host.read_bytes(path).decode(errors="replace"), OLD, new="x"
        ) != host.read_bytes(path).decode(errors="replace"):
            found.append(str(path))
    return found


def test_everything_of_the_machine_follows(machine: Machine, members: Etcd, capsys: Any) -> None:
    assert with_old(machine)
    key = machine.read_bytes(Paths().pki / "apiserver.key")
    assert run(machine, "readdress", OLD, NEW) == 0, capsys.readouterr().err
    assert with_old(machine) == []
    for name in ("apiserver", "etcd/server", "etcd/peer"):
        sans = certificates.sans_of(pki.read_certs(machine, Paths().pki / f"{name}.crt")[0])
        assert NEW in sans.ips and OLD not in sans.ips
        assert "cp1" in sans.dns
    assert machine.read_bytes(Paths().pki / "apiserver.key") == key
    assert f"https://{NEW}:6443" in machine.read_text(Paths().kubernetes / "controller-manager.conf")
    assert f"--advertise-address={NEW}" in machine.read_text(Paths().manifest("kube-apiserver"))
    assert members.updated == [("cp1", (f"https://{NEW}:2380",))]
    kept = Paths.state_dir / "readdress" / f"{OLD}-{NEW}"
    assert f"--advertise-address={OLD}" in machine.read_text(kept / "etc/kubernetes/manifests/kube-apiserver.yaml")
    assert not [name for name in machine.list_dir(Paths().manifests) if name.startswith(".")]
    info = machine.cluster.by_kind("ConfigMap")["cluster-info"]["data"]["kubeconfig"]
    assert f"https://{NEW}:6443" in info and OLD not in info
    proxy = machine.cluster.by_kind("ConfigMap")["kube-proxy"]["data"]["kubeconfig.conf"]
    assert f"https://{NEW}:6443" in proxy


def test_an_address_that_goes_to_and_fro_is_a_change_each_time(machine: Machine, members: Etcd, capsys: Any) -> None:
    """As a DHCP server has it: what is kept is what was there last."""
    node = machine.cluster.by_kind("Node")["cp1"]["status"]["addresses"][0]
    place = Path("etc/kubernetes/manifests/kube-apiserver.yaml")
    for number, (old, new) in enumerate(((OLD, NEW), (NEW, OLD), (OLD, NEW))):
        machine.answers["ip -json addr"], node["address"] = links(new), new
        text = machine.read_text("/" / place).replace("- kube-apiserver\n", f"- kube-apiserver\n    - --v={number}\n")
        machine.write_file("/" / place, text)
        assert run(machine, "readdress", old, new) == 0
        assert "going on" not in capsys.readouterr().err
        assert machine.read_text(Paths.state_dir / "readdress" / f"{old}-{new}" / place) == text


def test_the_same_again_changes_nothing(machine: Machine, members: Etcd, capsys: Any) -> None:
    assert run(machine, "readdress", OLD, NEW) == 0
    members.members = (Member("1", "cp1", (f"https://{NEW}:2380",), (f"https://{NEW}:2379",), False),)
    before = {str(path): machine.read_bytes(path) for path in machine.files() if "/var/lib/kb" not in str(path)}
    capsys.readouterr()
    assert run(machine, "readdress", OLD, NEW) == 0
    assert "going on" in capsys.readouterr().err
    assert {str(path): machine.read_bytes(path) for path in machine.files() if "/var/lib/kb" not in str(path)} == before
    assert len(members.updated) == 1


@pytest.mark.parametrize("count", range(1, 24, 3))
def test_killed_at_any_write_the_same_command_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any, count: int
) -> None:
    left = [count]

    def kill(path: Path) -> None:
        if "/var/lib/kb/state" in str(path) or "/var/lib/kb/records" in str(path):
            return
        left[0] -= 1
        if left[0] == 0:
            raise SystemExit(9)

    machine.before_write = kill
    with pytest.raises(SystemExit):
        run(machine, "readdress", OLD, NEW)
        raise SystemExit(0)
    machine.before_write = None
    assert run(machine, "readdress", OLD, NEW) == 0, capsys.readouterr().err
    assert with_old(machine) == []
    assert not [name for name in machine.list_dir(Paths().manifests) if name.startswith(".")]


# ---- refused before anything stops


def refused(machine: Machine, capsys: Any, *words: str, code: str) -> str:
    before = {str(path): machine.read_bytes(path) for path in machine.files() if "/var/lib/kb" not in str(path)}
    assert run(machine, "readdress", *words) != 0
    told = str(capsys.readouterr().err)
    assert f"code:   {code}\n" in told, told
    assert {str(path): machine.read_bytes(path) for path in machine.files() if "/var/lib/kb" not in str(path)} == before
    assert "systemctl stop kubelet" not in machine.commands
    return told


@pytest.mark.parametrize("words", [(), (OLD,), (OLD, OLD), (OLD, "cp1"), (OLD, "fd00::1"), (OLD, NEW, NEW)])
def test_what_are_no_two_addresses(machine: Machine, capsys: Any, words: tuple[str, ...]) -> None:
    refused(machine, capsys, *words, code="usage")


def test_a_machine_that_does_not_have_the_address(machine: Machine, capsys: Any) -> None:
    machine.answers["ip -json addr"] = links("10.0.0.50")
    assert "10.0.0.50" in refused(machine, capsys, OLD, NEW, code="address-not-here")


def test_an_address_that_nobody_had(machine: Machine, capsys: Any) -> None:
    refused(machine, capsys, "10.0.0.77", NEW, code="address-not-found")


def test_an_authority_that_signs_elsewhere(machine: Machine, capsys: Any) -> None:
    machine.remove(Paths().pki / "ca.key")
    refused(machine, capsys, OLD, NEW, code="external-ca-signs")


def test_members_that_have_no_quorum(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unreachable("https://10.0.0.12:2379", "timeout", text="no answer")

    monkeypatch.setattr(etcd.Etcd, "list_members", fail)
    path = Paths().manifest("etcd")
    text = machine.read_text(path).replace(
        f"--initial-cluster=cp1=https://{OLD}:2380",
        f"--initial-cluster=cp1=https://{OLD}:2380,cp2=https://10.0.0.12:2380",
    )
    machine.write_file(path, text)
    assert "kb etcd recover" in refused(machine, capsys, OLD, NEW, code="readdress-without-quorum")


def test_the_living_members_are_told_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, members: Etcd, capsys: Any
) -> None:
    path = Paths().manifest("etcd")
    text = machine.read_text(path).replace(
        f"--initial-cluster=cp1=https://{OLD}:2380",
        f"--initial-cluster=cp1=https://{OLD}:2380,cp2=https://10.0.0.12:2380",
    )
    machine.write_file(path, text)
    asked: list[tuple[str, ...]] = []

    def make(host: Any, endpoints: Any, *, tls: Any) -> Etcd:
        asked.append(tuple(endpoints))
        return members

    monkeypatch.setattr(etcd, "Etcd", make)
    assert run(machine, "readdress", OLD, NEW) == 0, capsys.readouterr().err
    assert asked[0] == ("https://10.0.0.12:2379",)
    assert members.updated[0] == ("cp1", (f"https://{NEW}:2380",))


# ---- nodes that follow


def test_a_worker_calls_the_new_address(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        machine.remove(Paths().manifest(name))
    machine.answers["ip -json addr"] = links("10.0.0.21")
    pem = machine.read_text(Paths().pki / "apiserver.crt")
    monkeypatch.setattr(type(machine), "served_cert", lambda *_, **__: None)
    told = refused(machine, capsys, OLD, NEW, code="server-unreachable")
    assert "on that control plane first" in told
    monkeypatch.setattr(type(machine), "served_cert", lambda *_, **__: pem)
    assert run(machine, "readdress", OLD, NEW) == 0, capsys.readouterr().err
    assert f"https://{NEW}:6443" in machine.read_text(Paths().kubernetes / "kubelet.conf")
    assert "systemctl restart kubelet" in machine.commands


def test_a_dry_run(machine: Machine, capsys: Any) -> None:
    before = {path: machine.read_bytes(path) for path in machine.files()}
    assert run(machine, "readdress", OLD, NEW, "--dry-run") == 0
    told = capsys.readouterr()
    assert "kube-apiserver.yaml" in told.out and "certificate apiserver" in told.err
    assert {path: machine.read_bytes(path) for path in machine.files()} == before


def test_the_list(machine: Machine, capsys: Any) -> None:
    assert run(machine, "readdress", "--list") == 0
    assert "kube-proxy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://10.0.0.11:6443", "https://X:6443"),
        ("--node-ip=10.0.0.11", "--node-ip=X"),
        ("10.0.0.110", "10.0.0.110"),
        ("110.0.0.11", "110.0.0.11"),
        ("10.0.0.11.example", "10.0.0.11.example"),
        ("a 10.0.0.11.", "a X."),
    ],
)
def test_an_address_stands_alone(text: str, wanted: str) -> None:
    assert replace_address(text, OLD, new="X") == wanted


def test_an_ipv6_address_stands_alone() -> None:
    assert (
        replace_address("https://[fd00::1]:6443 fd00::11", "fd00::1", new="fd00::2")
        == "https://[fd00::2]:6443 fd00::11"
    )
