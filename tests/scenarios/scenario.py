"""Whole runs of kb: `kb init` on a folder with a scripted cluster, and any command line on a machine of a scripted network."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import kb
from kubeup.commands import launcher
from kubeup.config.load_init import load_init_config
from kubeup.config.types import NodeRegistration
from kubeup.engine.run import ResetRun
from kubeup.engine.runner import Runner, RunResult
from kubeup.engine.state import load_state
from kubeup.engine.undo import take_away
from kubeup.machine.host import Host
from kubeup.node.ca_pins import ca_cert_hash
from kubeup.paths import Paths
from kubeup.report import Report
from kubeup.yaml_files import read_resource
from tests.fake_cluster import ClusterHost
from tests.fake_join import Machine, Site
from tests.fuzz.node import Ended, call

T = TypeVar("T")
FLAGS: Mapping[str, Any] = {
    "apiserver-advertise-address": "10.0.0.11",
    "kubernetes-version": "v1.35.6",
    "pod-network-cidr": "10.244.0.0/16",
    "soak": "1s",
    "token": "abcdef.0123456789abcdef",
}
CONFIG = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.0.0.11}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
networking: {podSubnet: 10.244.0.0/16}
---
apiVersion: kb/v1alpha1
kind: KbConfiguration
soak: 1s
"""
CONFIG_FILE = Path("/root/init.yaml")
# a folder has no kernel, no runtime and no network: these are looked at in tests/unit and tests/e2e
SKIPPED = ("preflight",)


def run_init(
    host: Host,
    *,
    flags: Optional[Mapping[str, Any]] = None,
    config_file: Optional[Path] = None,
    only: str = "",
    skip: tuple[str, ...] = SKIPPED,
    log: Optional[io.StringIO] = None,
) -> RunResult:
    """Run kb's own INIT; returns its result."""
    given = dict(FLAGS if flags is None else flags)
    config = load_init_config(host, config_file=config_file, flags=given)
    paths = launcher.paths_of(config, given)
    ctx = launcher.make_run(host, config, paths=paths, report=Report(log or io.StringIO(), verbosity=1))
    runner = Runner("init", kb.INIT, state=load_state(host, paths))
    return runner.run(ctx, only=only, skip=() if only else (*skip, *config.skip_phases))


def run_reset(host: Host, *, log: Optional[io.StringIO] = None) -> RunResult:
    """Run kb's own RESET, as `kb reset --force` does."""
    paths = Paths()
    node_state = load_state(host, paths)
    report = Report(log or io.StringIO(), verbosity=1)
    ctx = ResetRun(host=host, paths=paths, report=report, cri_socket=NodeRegistration.cri_socket)
    result = Runner("reset", kb.RESET, state=node_state, keeps_journal=False).run(ctx)
    take_away(host, paths)
    return result


def snapshot(host: ClusterHost) -> dict[str, bytes]:
    """path -> content of every file but kb's own."""
    return {str(path): host.read_bytes(path) for path in host.files() if not str(path).startswith("/var/lib/kb")}


# ---- command lines on the machines of a network

TOKEN, KEY = "abcdef.0123456789abcdef", "ab" * 32
ENDPOINT = "10.0.0.11:6443"
NETWORK_CONFIG = f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: 10.0.0.11}}
bootstrapTokens: [{{token: {TOKEN}}}]
certificateKey: {KEY}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
controlPlaneEndpoint: api.example.org:6443
networking: {{podSubnet: 10.244.0.0/16}}
---
apiVersion: kb/v1alpha1
kind: KbConfiguration
soak: 1s
"""
LIMIT_S = 120.0
"""How long one command may take on a machine that is busy with others."""


def run_kb(machine: Machine, *words: str) -> Ended:
    """kb with these words on that machine: the whole program, from its command line to its exit status."""
    ended = call(words, lambda: machine, *machine.writable, limit_s=LIMIT_S)
    assert not ended.bug, ended.bug
    return ended


def found_cluster(folder: Path) -> Site:
    """A network with the first control plane, cp1, whose certificates are uploaded, and two machines, w1 and cp2."""
    site = Site(names={"api.example.org": "10.0.0.11"})
    first = Machine(folder / "cp1", site, name="cp1", address="10.0.0.11")
    first.put("/root/init.yaml", NETWORK_CONFIG)
    ended = run_kb(first, "init", "--config=/root/init.yaml", "--upload-certs")
    assert ended.status == 0, ended.err
    Machine(folder / "w1", site, name="w1", address="10.0.0.21")
    Machine(folder / "cp2", site, name="cp2", address="10.0.0.12")
    return site


def found_kubeadms_cluster(folder: Path) -> Site:
    """Three nodes that kb has made under the name kubeadm, cp1, cp2 and w1: of kb itself nothing is on them. What the packages and
    an operator bring besides: the kubelet's drop-in, forwarding, a pod network."""
    site = Site(names={"api.example.org": "10.0.0.11"})
    places = {"cp1": "10.0.0.11", "cp2": "10.0.0.12", "w1": "10.0.0.21"}
    first, second, worker = (Machine(folder / name, site, name=name, address=place) for name, place in places.items())
    first.put("/root/init.yaml", NETWORK_CONFIG.partition("---\napiVersion: kb/")[0])
    for machine in (first, second, worker):
        machine.put(
            "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", read_resource("systemd/10-kubeadm.conf")
        )
        machine.put("/proc/sys/net/ipv4/ip_forward", "1\n")
    words = ("--as-kubeadm", "join", ENDPOINT, f"--token={TOKEN}")
    for machine, more in (
        (first, ("--as-kubeadm", "init", "--config=/root/init.yaml", "--upload-certs")),
        (second, (*words, "--control-plane", f"--certificate-key={KEY}")),
        (worker, words),
    ):
        pin = () if machine is first else (f"--discovery-token-ca-cert-hash={pin_of(site)}",)
        ended = run_kb(machine, *more, *pin)
        assert ended.status == 0 and not machine.has(str(Paths.state_dir)), ended.err
        machine.put("/etc/cni/net.d/10-flannel.conflist", "{}")
    for machine in (first, second, worker):
        machine.sleep(10)
        machine.changes.clear()
    return site


def pin_of(site: Site) -> str:
    """The pin of the cluster's CA, as a join command has it."""
    return ca_cert_hash(site.machine("cp1").text("/etc/kubernetes/pki/ca.crt"))


def run_join(machine: Machine, *more: str, token: str = TOKEN, pin: str = "") -> Ended:
    """`kb join` with the words of a join command."""
    pin = pin or pin_of(machine.site)
    return run_kb(machine, "join", ENDPOINT, f"--token={token}", f"--discovery-token-ca-cert-hash={pin}", *more)


def run_control_plane_join(machine: Machine, *more: str, key: str = KEY) -> Ended:
    soak = () if any(word.startswith("--soak") for word in more) else ("--soak=1s",)
    return run_join(machine, "--control-plane", f"--certificate-key={key}", *soak, *more)


def run_adopt(machine: Machine, *more: str) -> Ended:
    return run_kb(machine, "adopt", *more)


def run_reconfigure(machine: Machine, *more: str) -> Ended:
    return run_kb(machine, "reconfigure", "endpoint", *more)


def expect_refusal(ended: Ended, code: str, status: int) -> None:
    assert ended.status == status, ended.err
    assert f"\n  code:   {code}\n" in ended.err, ended.err


def take_back(machine: Machine) -> Ended:
    return run_kb(machine, "reset", "--force")


# ---- what is compared

_RUNTIME = ("proc", "sys", "run", "tmp")
"""Folders of the kernel and of this boot: what stands there stays until the next one."""
_GENERATION = re.compile(r"lib/kb/records/\d+\.json$")
_DATED = re.compile(r"kubelet-client-\d.*\.pem")


def tree_of(machine: Machine) -> dict[str, str]:
    """path -> mode and content of all that outlives a boot."""
    found = {}
    for place in sorted(machine.root.rglob("*")):
        path = place.relative_to(machine.root)
        if path.parts[0] not in _RUNTIME and path != Path("var/lib/kb/lock"):
            held = f"-> {os.readlink(place)}" if place.is_symlink() else place.read_text() if place.is_file() else "/"
            found[str(path)] = f"{place.lstat().st_mode:o} {held}"
    return found


def shape_of(machine: Machine) -> dict[str, str]:
    """The same but for what differs between two nodes that were made alike: keys, certificates, moments."""
    shape = {}
    tree = tree_of(machine)
    generations = sorted(path for path in tree if _GENERATION.search(path))
    if generations:  # each run that changes something has one
        steps = json.loads(tree[generations[-1]].partition(" ")[2])["steps"]
        shape["the record"] = str({step: sorted(items) for step, items in sorted(steps.items())})
    for path, text in tree.items():
        if path in generations:
            continue
        if _DATED.search(path):
            continue  # of a run that was cut off one may be left, as kubelets leave their old ones
        is_own = path.endswith((".crt", ".key", ".pub", ".conf", ".pem", "lib/kb/state.json", "lib/kb/lock"))
        shape[path] = text.partition(" ")[0] if is_own and "cni" not in path else text
    return shape


def keys_of(machine: Machine) -> dict[str, str]:
    """Every private key below /etc/kubernetes/pki that is there whole."""
    return {
        path: text
        for path, text in tree_of(machine).items()
        if path.startswith("etc/kubernetes/pki") and path.endswith(".key")
    }


def objects_of(site: Site) -> dict[str, Any]:
    """path -> object, without the stamps of the moment and the signing requests, which a kubelet sends again."""
    found = {}
    for path, obj in site.cluster.objects.items():
        if "certificatesigningrequests" in path:
            continue
        plain = copy.deepcopy(obj)
        for name in ("resourceVersion", "uid", "creationTimestamp"):
            plain["metadata"].pop(name, None)
        if obj["kind"] == "Pod":
            plain.pop("status")
        found[path] = plain
    return found


def changed_by(site: Site, work: Callable[[], Ended]) -> tuple[Ended, int]:
    """What `work` ended with, and how many objects of the cluster it changed or made."""
    before = site.cluster.version
    ended = work()
    return ended, site.cluster.version - before


def cut_off(machine: Machine, work: Callable[[], Ended], folder: Path) -> list[tuple[str, Site]]:
    """Do `work` on the machine; before each of its changes the network is copied, as a kill at that moment leaves it."""
    cuts: list[tuple[str, Site]] = []

    def keep(what: str) -> None:
        cuts.append((what, machine.site.clone(folder / str(len(cuts)), machine.name)))

    machine.before_change = keep
    machine.writable = (folder, *(other.root for other in machine.site.machines.values()))
    ended = work()
    machine.before_change, machine.writable = None, (machine.root,)
    assert ended.status == 0, ended.err
    return cuts


def in_two_processes(cases: Sequence[T], check: Callable[[T], None]) -> None:
    """Check every case, half of them in a process of its own; the first that fails is told."""
    pid = os.fork()
    mine = cases[::2] if pid else cases[1::2]
    failure = ""
    for case in mine:
        try:
            check(case)
        except BaseException:
            failure = traceback.format_exc()
            break
    if pid == 0:
        os.write(2, failure.encode())
        os._exit(1 if failure else 0)
    status = os.waitpid(pid, 0)[1]
    assert not failure, failure
    assert status == 0, "see what the other process wrote"
