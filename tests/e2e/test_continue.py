"""`kb init` is killed, loses its power, its disk fills up, a second one starts beside it: nothing is lost, and the same
command goes on to the same end."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab import killer
from .lab.config import lab_config, list_ignored_checks
from .lab.node import Node, wait_until
from .lab.settings import LabError
from .lab.shell import Result
from .world.web import check_cluster_serves

pytestmark = pytest.mark.k8s_versions("1.35")
MakeNode = Callable[..., Node]
Snapshot = dict[str, str]
ARGV = ["python3", "kb.pyz", "init", "--config", "init.yaml", "-v", "1", "--ignore-preflight-errors=" + ",".join(list_ignored_checks())]  # fmt: skip
INIT = shlex.join(ARGV)
PHASES = 39
KUBELET_CONF = "/etc/kubernetes/kubelet.conf"
MANIFESTS = "/etc/kubernetes/manifests"

# What an undisturbed run leaves, by name and mode; content too, but for what has keys, times or random names in it. Every run
# that changes something begins a generation of the record, so there are as many as there were runs.
FILES = r"""cd / && find etc usr/local opt/cni var/lib/kb var/lib/kubelet -maxdepth 5 -name pods -prune -o -printf '%p %y %m %u:%g %l\n' \
  | grep -v -e 'var/lib/kubelet/pki/kubelet-client-2' -e 'ssl/certs' -e 'var/lib/kb/records/' | sort
cd / && find etc/kubernetes/manifests etc/systemd/system etc/sysctl.d etc/cni usr/local/lib/kb var/lib/kubelet/*.yaml var/lib/kubelet/*.env \
  -type f -exec sha256sum {} +; cat /proc/sys/net/ipv4/ip_forward; systemctl is-enabled kubelet kb-routes"""
KINDS = "configmaps,serviceaccounts,roles,rolebindings,daemonsets,deployments,services"
CLUSTER_KINDS = "clusterroles,clusterrolebindings"
_REFERENCE: Snapshot = {}


# ---- helpers


def put(node: Node, kb_pyz: Path, **config: Any) -> None:
    node.scp(kb_pyz, "/root/kb.pyz")
    node.scp(killer.PROGRAM, "/root/killer.py")
    put_config(node, **config)


def put_config(node: Node, **config: Any) -> None:
    kb = {"podNetwork": {"plugin": "bridge"}, **config.pop("kb", {})}
    node.write("/root/init.yaml", lab_config(node.release.minor, address=node.address, kb=kb, **config))


def init(node: Node, flags: str = "", *, check: bool = True) -> Result:
    return node.run(f"{INIT} {flags}".strip(), check=check, timeout=600)


def reset(node: Node) -> Result:
    return node.run("python3 kb.pyz reset --force", timeout=300)


def strike(node: Node, *, phase: int, delay_s: float = 0, number: int = signal.SIGKILL) -> dict[str, Any]:
    """Run init and send it a signal at that moment; what killer.py says."""
    wish = {"argv": ARGV, "phase": phase, "delay_s": delay_s, "signal": int(number)}
    found: dict[str, Any] = json.loads(node.run(["python3", "killer.py", json.dumps(wish)], timeout=600).stdout)
    return found


def look(node: Node) -> dict[str, Any]:
    """The private keys and half-written files on the disk, as killer.py says them."""
    wish = {"argv": ["true"], "signal": 0}
    found: dict[str, Any] = json.loads(node.run(["python3", "killer.py", json.dumps(wish)]).stdout)
    return found


def read_state(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.read("/var/lib/kb/state.json"))
    return found


def statuses_of(node: Node) -> dict[str, str]:
    """phase -> what kb's state says of it."""
    return {name: phase["status"] for name, phase in read_state(node)["phases"].items()}


def read_snapshot(node: Node) -> Snapshot:
    """The node and its cluster as far as two runs must agree on them: line -> line, object -> its content."""
    found = dict.fromkeys(node.run(FILES, check=False).stdout.splitlines(), "file")
    objects = node.get(f"{KINDS} -A")["items"] + node.get(CLUSTER_KINDS)["items"]
    for obj in objects:
        meta = obj["metadata"]
        kept = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
        kept["labels"] = meta.get("labels")
        text = json.dumps(kept, sort_keys=True)
        # the CA, random names of tokens, and the deployment's moments
        text = re.sub(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]*|-----BEGIN.*?-----END CERTIFICATE-----\\n", "PEM", text)
        text = re.sub(r'"jws-kubeconfig-[a-z0-9]{6}": "[^"]*"', '"jws": ""', text)
        # a run that was cut off in that phase has kube-proxy's pods restarted: they may run from what was before
        text = re.sub(r'"annotations": {"kubectl.kubernetes.io/restartedAt": "[^"]*"}, ', "", text)
        found[f"{obj['kind']} {meta.get('namespace', '')}/{meta['name']}"] = text
    secrets = [re.sub(r"-[a-z0-9]{6}$", "-X", s["metadata"]["name"]) for s in node.get("secrets -A")["items"]]
    found["secrets"] = " ".join(sorted(secrets))
    me = node.get(f"node {node.name}")
    found["node"] = json.dumps([me["metadata"]["labels"], me["spec"].get("taints"), me["spec"]["podCIDRs"]])
    return found


def ensure_reference(node: Node) -> Snapshot:
    """What an undisturbed run leaves; the node is as it was before it afterwards."""
    if not _REFERENCE:
        init(node)
        node.wait_node_ready()
        _REFERENCE.update(read_snapshot(node))
        reset(node)
    return _REFERENCE


def assert_same_end(node: Node) -> None:
    node.wait_node_ready()
    with contextlib.suppress(LabError):  # what differs says more than that it does
        wait_until(lambda: _difference(node) == [], what="the state of an undisturbed run", timeout_s=30, every_s=2)
    assert _difference(node) == []


def _difference(node: Node) -> list[str]:
    wanted, found = _REFERENCE, read_snapshot(node)
    keys = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    return [f"{key}: {wanted.get(key)} -> {found.get(key)}" for key in keys]


def assert_no_op(node: Node, *, within_s: Optional[float] = None) -> None:
    """The same words again: no change, exit 0, at once. The fastest of three counts: the machine is shared."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        result = init(node)
        times.append(time.monotonic() - started)
        assert "nothing to do" in result.output, result.output
        if within_s is None or times[-1] < within_s:
            break
    assert within_s is None or min(times) < within_s, times


class Keys:
    """The private keys that were seen on the disk: none may change or go."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def check(self, found: dict[str, str], when: str) -> None:
        assert "HALF" not in found.values(), f"{when}: a half-written key: {found}"
        for path, digest in self.seen.items():
            if path == KUBELET_CONF and path not in found:
                continue  # it names the certificate that the kubelet rotates, once that is there
            assert found.get(path) == digest, f"{when}: the key in {path} was {digest}, is {found.get(path)}"
        self.seen.update(found)


# ---- killed


def test_killed_after_every_phase(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """One node goes through all boundaries: each run is killed when it has come one phase further."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    ensure_reference(node)
    keys = Keys()
    for phase in range(1, PHASES):
        found = strike(node, phase=phase)
        assert found["status"] == -signal.SIGKILL, f"{phase}: {found['lines'][-5:]}"
        keys.check(found["keys"], f"killed after phase {phase}")
    result = init(node)
    keys.check(look(node)["keys"], "after the last run")
    assert "Your Kubernetes control-plane has initialized successfully!" in result.output
    assert_same_end(node)
    assert_no_op(node, within_s=2)
    assert look(node)["leftovers"] == []
    check_cluster_serves(node)


def test_killed_inside_phases(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Kills at random moments: 0 to 0.4 s after a phase has begun, until init has come to its end all the same."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    ensure_reference(node)
    chance, keys, reached, log = random.Random(35), Keys(), 0, []
    for turn in range(40):
        delay_s = chance.uniform(0, 0.4)
        found = strike(node, phase=reached, delay_s=delay_s + 0.2 * (reached == 0))
        log.append(f"{turn}: {delay_s:.2f} s into phase {reached + 1}: {found['status']} at {found['last']}")
        keys.check(found["keys"], log[-1])
        # a phase that waits is killed twice, then given its time
        if found["last"] > reached:
            reached = found["last"]
        elif turn % 2:
            reached = min(reached + 1, PHASES)
        if found["status"] == 0:
            break
    init(node)
    assert_same_end(node)
    assert_no_op(node)
    assert look(node)["leftovers"] == [], log


def test_power_loss(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The node loses its power while the control plane starts, and again while the addons come up."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    ensure_reference(node)
    for phase in ("init/wait-control-plane", "init/pod-network"):
        running = node.popen(INIT)

        def has_begun(phase: str = phase) -> bool:
            return phase in node.run("cat /var/lib/kb/state.json", check=False).stdout

        wait_until(has_begun, what=f"{phase} to begin", timeout_s=300, every_s=0.3)
        node.kill()
        running.wait(timeout=60)
        json.loads(node.read("/var/lib/kb/state.json"))
        node.start()
    init(node)
    assert_same_end(node)
    assert_no_op(node)
    check_cluster_serves(node)


class Trace:
    """What kb asked the kernel to do with its files, in order: strace's lines of one process tree."""

    CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)\) += 0")
    PLACE = re.compile(r'(?:\w+<([^>]*)>, )?"([^"]+)"')
    """A path, and the folder from which it is looked up where the call names one."""

    def __init__(self, text: str) -> None:
        found = (self.CALL.match(line) for line in text.splitlines())
        self.calls = [(match.group(1), match.group(2)) for match in found if match]

    def check_order(self) -> int:
        """Every new content is on disk before it takes its name, and the name is on disk before kb goes on to the next
        file. Returns how many files took their names."""
        renamed = 0
        for at, (name, words) in enumerate(self.calls):
            if name not in ("rename", "renameat", "renameat2"):
                continue
            source, target = (Path(folder, path) for folder, path in self.PLACE.findall(words))
            renamed += 1
            before = [call for call in self.calls[:at] if call[0] == "fsync"]
            assert before and f"<{source}>" in before[-1][1], f"{target} took its name before its content was safe"
            after = next(
                (call for call in self.calls[at + 1 :] if call[0] in ("fsync", "rename", "renameat", "renameat2")), None
            )
            assert after and after[0] == "fsync" and f"<{target.parent}>" in after[1], f"{target}: the folder is not"
        return renamed


def test_every_file_is_on_disk_before_it_takes_its_name(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The lab cannot lose pages that were never written; so the order of kb's own calls is looked at."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    strace = "strace -f -y -qq -e trace=fsync,rename,renameat,renameat2 -o /root/trace"
    phases = ("certs/all", "kubeconfig/all", "etcd/local", "control-plane/all", "kubelet-start")
    for phase in phases:
        argv = ["init", "phase", phase, "--config", "init.yaml"]
        node.run(f"{strace} python3 kb.pyz {shlex.join(argv)}", timeout=300)
        assert Trace(node.read("/root/trace")).check_order() > 1, phase
    node.run("python3 kb.pyz reset --force", timeout=300)


# ---- told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(make_node: MakeNode, kb_pyz: Path, k8s_version: str, number: signal.Signals) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    for phase, delay_s in ((1, 0.05), (12, 0.02), (23, 1.0), (32, 0.5)):
        found = strike(node, phase=phase, delay_s=delay_s, number=number)
        text = "\n".join(found["lines"])
        assert found["status"] == 128 + number, text
        match = re.search(rf"interrupted by {number.name} in phase (\S+): what was done is recorded", text)
        assert match, text
        entry = read_state(node)["phases"].get("init/" + match.group(1))
        # interrupted in its work; or while kb only looked whether it has to be done
        assert entry is None or entry["status"] == "done" or entry["error"]["code"] == "interrupted"
        assert found["leftovers"] == []
    init(node)
    node.wait_node_ready()
    assert_no_op(node)


# ---- the disk is full


@pytest.mark.parametrize(
    ("folder", "sizes_kib"), [("/etc/kubernetes", (64, 72, 80, 96)), ("/var/lib/kb", (12, 20, 28, 36))]
)
def test_full_disk(
    make_node: MakeNode, kb_pyz: Path, k8s_version: str, folder: str, sizes_kib: tuple[int, ...]
) -> None:
    """A full disk stops kb with its name; what is written is whole; with more space the same command ends."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    node.run(f"mkdir -p {folder} && mount -t tmpfs -o size={sizes_kib[0]}k,mode=755 tmpfs {folder}")
    keys, refused = Keys(), 0
    for size in sizes_kib:
        node.run(f"mount -o remount,size={size}k {folder}")
        found = strike(node, phase=PHASES + 1, number=0)
        text = "\n".join(found["lines"])
        keys.check(found["keys"], f"{size} KiB")
        assert found["leftovers"] == [], text
        if found["status"] == 0:
            break
        refused += 1
        assert found["status"] == 4, text
        assert re.search(rf"error: error execution phase \S+: cannot \w+ {folder}/\S+", text), text
        assert "cause:  the disk is full" in text and f"df -h {folder}" in text, text
        state = node.run("cat /var/lib/kb/state.json", check=False).stdout
        assert not state or json.loads(state)["schema"] == 1
    assert refused >= 2  # else the disk was never full
    node.run(f"mount -o remount,size=64m {folder}")
    init(node)
    node.wait_node_ready()
    assert_no_op(node)


# ---- the lock and the state


def test_two_at_once(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    first = node.popen(INIT)
    wait_until(lambda: node.exists("/etc/kubernetes/pki/ca.crt"), what="the first CA", timeout_s=120)
    pid = node.run("pgrep -f 'kb.pyz init' | head -1").stdout.strip()
    for command in (INIT, "python3 kb.pyz reset --force"):
        second = node.run(command, check=False)
        assert second.code == 4, second.output
        assert re.search(
            r"kb init \(pid \d+, since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\) holds /var/lib/kb/lock", second.output
        )
        assert f"pid {pid}" in second.output or pid == ""
        assert "code:   locked" in second.output
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 0, output
    assert_no_op(node)


def test_state_that_cannot_be_trusted(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Damaged, of a newer kb, of another machine: refused with a remedy, for init, reset and status; nothing is changed."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    init(node)
    good = node.read("/var/lib/kb/state.json")
    newer = json.dumps({**json.loads(good), "schema": 2, "kb": "9.9.9"})
    foreign = json.dumps({**json.loads(good), "machine_id": "f" * 32})
    for text, code, word in (
        ("", "state-damaged", "mv /var/lib/kb/state.json"),
        (good[: len(good) // 2], "state-damaged", "mv /var/lib/kb/state.json"),
        (newer, "state-too-new", "kb 9.9.9"),
        (foreign, "state-foreign", "the disk was cloned"),
    ):
        node.write("/var/lib/kb/state.json", text)
        for command in (INIT, "python3 kb.pyz reset --force", "python3 kb.pyz status"):
            refused = node.run(command, check=False)
            assert refused.code == 4 and f"code:   {code}" in refused.output, refused.output
            assert word in refused.output, refused.output
        assert node.read("/var/lib/kb/state.json") == text
        node.run("kubectl get nodes", env={"KUBECONFIG": "/etc/kubernetes/admin.conf"})
    # the remedy for the damaged one, as it is printed: kb looks at the node itself and goes on
    node.run("mv /var/lib/kb/state.json /var/lib/kb/state.json.damaged")
    keys = look(node)["keys"]
    init(node)
    assert look(node)["keys"] == keys
    assert_no_op(node)


def test_a_changed_configuration(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """What is done again, and why, is said; what does not depend on it stays."""
    node = make_node("cp1", version=k8s_version)
    put(node, kb_pyz)
    init(node)
    keys = look(node)["keys"]
    extra = {"name": "v", "value": "1"}
    put_config(node, cluster={"apiServer": {"certSANs": ["kb.example"], "extraArgs": [extra]}, "scheduler": {"extraArgs": [extra]}})  # fmt: skip
    result = init(node)
    for phase, why in (
        ("certs/apiserver", "certificate apiserver names"),
        ("control-plane/apiserver", f"{MANIFESTS}/kube-apiserver.yaml spec.containers[kube-apiserver].command --v"),
        ("control-plane/scheduler", f"{MANIFESTS}/kube-scheduler.yaml spec.containers[kube-scheduler].command --v"),
        ("upload-config/kubeadm", "ConfigMap kube-system/kubeadm-config data.ClusterConfiguration"),
    ):
        assert f"{phase}: {why} changed since the last run: applying it again" in result.output, result.output
    assert re.search(r"certs/ca .* unchanged", result.output)
    assert re.search(r"control-plane/controller-manager .* unchanged", result.output)
    found = look(node)
    assert found["keys"] == keys
    assert "kb.example" in node.run("openssl x509 -noout -text -in /etc/kubernetes/pki/apiserver.crt").stdout
    node.wait_node_ready()
    assert_no_op(node)
