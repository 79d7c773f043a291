"""`kb reconfigure static-pods` is killed after every single change that it makes: the same command comes to the same end, and
`--undo` to the former one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

import pytest

from .lab import change_killer
from .lab.changes import Moment, kill_at_every_change, list_moments, run_watched
from .lab.config import lab_config
from .lab.control_planes import IGNORE, KB, check_members
from .lab.node import Node, wait_until
from .lab.static_pods import (
    COMPONENTS,
    MANIFESTS,
    SWAP,
    add_flag,
    argv_of,
    draft,
    fill_store,
    list_left,
    manifest,
    read_manifests,
    read_running,
    read_stored,
)
from .test_static_pods import lead_etcd, make_three, read_drained

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
FEW = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}, "proxy": {"disabled": True}}
"""Nothing here is about keys, DNS and Services."""
PHASES = ("reconfigure-static-pods/preflight", "reconfigure-static-pods/swap", "reconfigure-static-pods/gate")
FILES = " ".join(f"/root/wanted/{component}.yaml" for component in COMPONENTS)
ARGV = shlex.split(f"kb.pyz reconfigure static-pods {FILES} --yes")
NUMBERED = {
    "etcd": "--max-txn-ops",
    "kube-apiserver": "--max-requests-inflight",
    "kube-controller-manager": "--concurrent-gc-syncs",
    "kube-scheduler": "--kube-api-qps",
}


class Swaps:
    """One control plane whose four static pods are swapped again and again, each time for ones that never ran before: a static pod of
    the same contents that comes back counts as one that crashes, with longer and longer pauses."""

    def __init__(self, make_node: MakeNode, kb_pyz: Path, version: str) -> None:
        node = make_node("cp1", version=version)
        node.scp(kb_pyz, "/root/kb.pyz")
        node.scp(change_killer.PROGRAM, "/root/change_killer.py")
        kb = {"podNetwork": {"plugin": "bridge"}}
        node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=FEW, kb=kb))
        node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
        node.wait_node_ready()
        fill_store(node, 100)
        self.node, self.number = node, 500
        self.original = self.wanted = self.former = read_manifests(node)
        self.stored = read_stored(node)
        self.want_others()

    def want_others(self) -> None:
        """Lay manifests ready that have another number in one flag each."""
        self.number += 1
        self.former = read_manifests(self.node)
        self.wanted = {name: add_flag(text, f"{NUMBERED[name]}={self.number}") for name, text in self.original.items()}
        draft(self.node, self.wanted)

    def check(self, moment: str) -> None:
        self.check_run(self.wanted, moment, status="done")
        again = self.node.run(["python3", *ARGV], check=False, timeout=300)
        assert again.ok and "run with these manifests already" in again.output, (moment, again.output)

    def check_run(self, texts: Mapping[str, str], moment: str, *, status: str) -> None:
        """That these manifests are there, run, and are what kb remembers, and that nothing is lost or left."""
        assert read_manifests(self.node) == texts, moment
        running = read_running(self.node)
        assert {name: one.argv for name, one in running.items()} == {n: argv_of(t) for n, t in texts.items()}, moment
        assert list_left(self.node) == [], moment
        assert json.loads(self.node.read("/var/lib/kb/swap/swap.json"))["status"] == status, moment
        assert read_recorded(self.node) == texts, moment
        wait_until(lambda: read_stored(self.node) == self.stored, what=f"the same objects, {moment}", timeout_s=30)


def read_recorded(node: Node) -> dict[str, str]:
    """The manifests by kb's record."""
    newest = node.run("ls /var/lib/kb/records/*.json | tail -n 1").stdout.strip()
    record = json.loads(node.read(newest))
    found = {}
    for items in record["steps"].values():
        for name in COMPONENTS:
            if manifest(name) in items:
                found[name] = record["contents"][items[manifest(name)]["content"].partition(":")[2]]
    return found


def show(killed: Sequence[Moment]) -> None:
    for phase in PHASES:
        moments = [moment for moment in killed if moment.phase == phase]
        print(f"{phase}: killed after each of {len(moments)} changes", *moments, sep="\n  ")
        assert moments[0] == Moment(phase, "save the state") and moments[-1].change == "save the state", moments


def test_killed_at_every_change(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    swaps = Swaps(make_node, kb_pyz, k8s_version)
    killed = kill_at_every_change(swaps.node, ARGV, PHASES, check=swaps.check, restore=swaps.want_others)
    show(killed)
    words = (
        "write_file /var/lib/kb/swap/swap.json",
        "crictl",
        *(f"move_file {manifest(name)} {MANIFESTS}/.{name}.yaml.kb-former" for name in COMPONENTS),
        *(f"move_file {MANIFESTS}/.{name}.yaml.kb-next {manifest(name)}" for name in COMPONENTS),
        "/var/lib/etcd",
    )
    for word in words:
        assert any(word in moment.change for moment in killed), (word, killed)


def test_killed_at_the_writes_of_one_of_three(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """What a swap of etcd and API server says to the cluster: that this API server is spared, that another member leads. A kill
    after any of it leaves no mark behind once the command was given again, or was taken back."""
    kill_at_the_writes(make_three(make_node, kb_pyz, k8s_version))


def kill_at_the_writes(nodes: Sequence[Node], number: int = 500) -> None:
    node, other = nodes[0], nodes[1]
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    original = read_manifests(node)

    def prepare() -> list[str]:
        nonlocal number
        number += 1
        lead_etcd(nodes, node)
        # so that each run makes it anew, as the first one did
        other.kubectl("-n kube-system delete configmap kb-drained-api-servers --ignore-not-found")
        names = ("etcd", "kube-apiserver")
        words = draft(node, {name: add_flag(original[name], f"{NUMBERED[name]}={number}") for name in names})
        return shlex.split(f"kb.pyz reconfigure static-pods {words} --yes")

    def check(moment: str) -> None:
        found = read_running(node)
        for name in ("etcd", "kube-apiserver"):
            assert argv_of(node.read(manifest(name))) == found[name].argv, (moment, name)
        assert list_left(node) == [] and read_drained(other) == {}, moment
        check_members(other, [each.name for each in nodes])

    made = run_watched(node, prepare())
    check("not killed")
    moments = [moment for moment in list_moments(made, PHASES[1]) if "http_send" in moment.change]
    print("the writes:", *moments, sep="\n  ", flush=True)
    assert any("kb-drained-api-servers" in str(moment) for moment in moments), made
    assert any("transfer-leadership" in str(moment) for moment in moments), made
    for place, moment in enumerate(moments):
        is_taken_back = place % 2 == 1
        argv, before = prepare(), read_manifests(node)
        found = run_watched(node, argv, moment)
        told = f"killed after {moment}, then {'--undo' if is_taken_back else 'the same command'}"
        print(told, flush=True)
        assert found[-1][0] == "killed", (told, found)
        line = f"{SWAP} --undo --yes" if is_taken_back else shlex.join(["python3", *argv])
        ended = node.run(line, check=False, timeout=600)
        assert ended.ok, (told, ended.output)
        check(told)
        assert (read_manifests(node) == before) == is_taken_back, told


def test_taken_back_after_a_kill(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """`--undo` brings the former pods back, whatever of the new ones was in already; and so does it after the last rename, when
    nothing but the record is missing, and when that is not."""
    swaps = Swaps(make_node, kb_pyz, k8s_version)
    moves = [
        f"move_file {manifest('kube-apiserver')} {MANIFESTS}/.kube-apiserver.yaml.kb-former",
        f"move_file {manifest('etcd')} {MANIFESTS}/.etcd.yaml.kb-former",
        f"move_file {MANIFESTS}/.etcd.yaml.kb-next {manifest('etcd')}",
        f"move_file {MANIFESTS}/.kube-scheduler.yaml.kb-next {manifest('kube-scheduler')}",
    ]
    moments = [Moment(PHASES[1], what) for what in moves]
    moments.append(Moment(PHASES[1], "write_file /var/lib/kb/swap/swap.json", 2))  # all is done, and not recorded
    for moment in moments:
        told = f"undone after {moment}"
        former = read_manifests(swaps.node)
        found = run_watched(swaps.node, ARGV, moment)
        assert found[-1][0] == "killed", (told, found)
        undone = swaps.node.run(f"{SWAP} --undo --yes", check=False, timeout=600)
        print(told, undone.output, sep="\n", flush=True)
        assert undone.ok, told
        status = json.loads(swaps.node.read("/var/lib/kb/swap/swap.json"))["status"]
        swaps.check_run(former, told, status=status)
        swaps.want_others()


def test_killed_on_the_way_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The new controller-manager does not start, so kb goes back; there it is killed too. `--undo` ends it, and so does the
    same command, which fails again and is back by itself."""
    swaps = Swaps(make_node, kb_pyz, k8s_version)
    name = "kube-controller-manager"
    swaps.wanted = {name: add_flag(swaps.original[name], "--controllers=*,none-of-this-name")}
    words = draft(swaps.node, swaps.wanted, "/root/bad")
    argv = shlex.split(f"kb.pyz reconfigure static-pods {words} --yes")
    back = f"move_file {MANIFESTS}/.{name}.yaml.kb-former {manifest(name)}"
    for line in (f"{SWAP} --undo --yes", f"{SWAP} {words} --yes"):
        found = run_watched(swaps.node, argv, Moment(PHASES[1], back))
        assert found[-1][0] == "killed", found
        assert list_moments(found, PHASES[1])
        ended = swaps.node.run(line, check=False, timeout=600)
        print(line, ended.output, sep="\n", flush=True)
        assert ended.ok == ("--undo" in line), ended.output
        swaps.check_run(swaps.original, line, status="taken back")


def test_killed_while_the_data_of_etcd_come_back(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The former etcd cannot start with the data that is there, so it gets the copy of its folder, and kb is killed after each change of that.
    On what is left by then, etcd would begin a new cluster."""
    swaps = Swaps(make_node, kb_pyz, k8s_version)
    node, folder = swaps.node, "/var/lib/etcd"
    copied = Moment(
        PHASES[1], f"move_file {folder}/.kb-former.part {folder}/.kb-former"
    )  # it is a disk of its own here
    undo = shlex.split("kb.pyz reconfigure static-pods --undo --yes")

    def break_data() -> None:
        """A swap is killed with etcd out and its copy made, and then the disk loses a part of the data."""
        swaps.want_others()
        found = run_watched(node, ARGV, copied)
        assert found[-1][0] == "killed", found
        node.run(f"head -c 65536 /dev/urandom >{folder}/member/snap/db")

    break_data()
    made = run_watched(node, undo)
    swaps.check_run(swaps.former, "not killed", status="taken back")
    moments = [one for one in list_moments(made, PHASES[1]) if folder in one.change and "crictl" not in one.change]
    print("the data come back:", *moments, sep="\n  ", flush=True)
    assert any(".kb-coming" in one.change for one in moments), made
    halves = 0
    for place, moment in enumerate(moments):
        break_data()
        found = run_watched(node, undo, moment)
        assert found[-1][0] == "killed", (moment, found)
        is_half = node.exists(f"{folder}/.kb-coming")
        halves += is_half
        does_go_on = is_half and place % 2 == 1
        ended = node.run(["python3", *(ARGV if does_go_on else undo)], check=False, timeout=600)
        told = f"killed after {moment}, half replaced: {is_half}, then {'the same command' if does_go_on else '--undo'}"
        print(told, ended.output, sep="\n", flush=True)
        assert ended.ok != does_go_on and ("swap-goes-back" in ended.output) == does_go_on, told
        swaps.check_run(swaps.former, told, status="taken back")
    assert halves > 2


def test_killed_while_a_member_joins_again(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """One of three whose data are of no use is taken out of the list, emptied, and joins again. The manifest of the first control plane names
    its own member alone: on the empty folder, that would be a new cluster behind an API server that the others' load balancers use."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    node, other, folder = nodes[0], nodes[1], "/var/lib/etcd"
    node.scp(change_killer.PROGRAM, "/root/change_killer.py")
    original, stored = node.read(manifest("etcd")), read_stored(other)
    undo, number = shlex.split("kb.pyz reconfigure static-pods --undo --yes"), 600

    def break_data() -> None:
        """A swap is killed with etcd out, and then the disk loses a part of the data. Before it, the manifest is as kb init wrote it."""
        nonlocal number
        texts = []
        for _ in range(2):
            number += 1
            texts.append(add_flag(original, f"{NUMBERED['etcd']}={number}"))
        words = draft(node, {"etcd": texts[0]})
        node.run(f"{SWAP} {words} --yes", timeout=300)
        words = draft(node, {"etcd": texts[1]})
        found = run_watched(node, shlex.split(f"kb.pyz reconfigure static-pods {words} --yes"), Moment(PHASES[1], out))
        assert found[-1][0] == "killed", found
        wait_until(lambda: "etcd" not in read_running(node), what="etcd to end", timeout_s=60)
        node.run(f"head -c 65536 /dev/urandom >{folder}/member/snap/db")

    def check(told: str) -> None:
        assert "--initial-cluster-state=existing" in node.read(manifest("etcd")), told
        assert list_left(node) == [] and read_drained(other) == {}, told
        check_members(other, [each.name for each in nodes])
        wait_until(lambda: stored <= read_stored(node), what=f"the same objects, {told}", timeout_s=60)

    out = f"move_file {manifest('etcd')} {MANIFESTS}/.etcd.yaml.kb-former"
    break_data()
    made = run_watched(node, undo)
    check("not killed")
    words = ("/v3/cluster/member", f"{folder}/", "/var/lib/kb/swap/swap.json")
    moments = [one for one in list_moments(made, PHASES[1]) if any(word in one.change for word in words)]
    print("a member joins again:", *moments, sep="\n  ", flush=True)
    assert any(".kb-coming" in one.change for one in moments), made
    for moment in moments[:-1]:  # the last one is its end
        break_data()
        found = run_watched(node, undo, moment)
        assert found[-1][0] == "killed", (moment, found)
        ended = node.run(["python3", *undo], check=False, timeout=600)
        print(f"killed after {moment}", ended.output, sep="\n", flush=True)
        assert ended.ok, moment
        check(str(moment))
