"""`kb reconfigure static-pods` on real nodes: what it changes, what it refuses, what it comes back from, and who notices."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from .lab.config import PATIENT_KUBELET, lab_config
from .lab.control_planes import IGNORE, KB, check_members, code_of, read_members
from .lab.node import Node, wait_until
from .lab.settings import LabError
from .lab.shell import Result
from .lab.static_pods import (
    COMPONENTS,
    HARMLESS,
    MANIFESTS,
    SLOW,
    SWAP,
    Calls,
    Client,
    Running,
    add_flag,
    argv_of,
    clear_health_log,
    draft,
    fill_store,
    is_out,
    list_left,
    manifest,
    meddle,
    read_manifests,
    read_outages,
    read_running,
    read_stored,
    start_health_log,
    swap,
    with_flags,
)
from .test_join_load_balancer import init as init_with_balancer
from .test_join_load_balancer import join, wait_servers
from .world.podnet import CONFLIST, render_conflist

MakeNode = Callable[..., Node]
FEW = {"encryptionAlgorithm": "ECDSA-P256", "dns": {"disabled": True}, "proxy": {"disabled": True}}
"""Nothing here is about keys, DNS and Services."""
BACK_S, BACK_WITH_ETCD_S = 45.0, 90.0
"""For how long a component may be away, from the stop of the former one until that serves again: without etcd, and with it."""
GAP_S = 2.0
"""For how long no call of a client may succeed while one of three control planes swaps its etcd and its API server."""
ON_ONE_DISK = ("/etc/kubernetes", "/var/lib/containerd", "/var/lib/etcd", "/var/lib/kb", "/var/lib/kubelet", "/var/log")
DISK = "/mnt/disk"


def make_control_plane(make_node: MakeNode, kb_pyz: Path, version: str, *, on_one_disk: bool = False) -> Node:
    """A control plane made by kb, with its health written down from now on."""
    node = make_node("cp1", version=version)
    node.scp(kb_pyz, "/root/kb.pyz")
    if on_one_disk:
        put_on_one_disk(node)
    kb = {"podNetwork": {"plugin": "bridge"}}
    kubelet = PATIENT_KUBELET if on_one_disk else None
    node.write("/root/init.yaml", lab_config(version, address=node.address, cluster=FEW, kubelet=kubelet, kb=kb))
    node.run(f"{KB} init --config init.yaml --soak 0 {IGNORE}", timeout=600)
    node.wait_node_ready()
    fill_store(node)
    start_health_log(node)
    return node


def put_on_one_disk(node: Node) -> None:
    """Give the node a disk of its own that can be filled: this machine's is everybody's."""
    node.run(f"mkdir -p {DISK} && mount -t tmpfs -o size=4g,mode=755 tmpfs {DISK} && systemctl stop containerd")
    for folder in ON_ONE_DISK:
        place = DISK + folder
        node.run(f"mkdir -p {folder} {place} && cp -a {folder}/. {place} && mount --bind {place} {folder}", timeout=300)
    node.run("systemctl start containerd; systemctl restart systemd-journald")


def told(result: Result) -> str:
    """For the report of a test that passes too."""
    print(result.command, result.output, sep="\n", flush=True)
    return result.output


# ---- what it changes


def test_one_flag_of_each(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Each component alone, then all four together, then back: the containers have the new arguments and differ in nothing else,
    those of the others go on, and nothing that was stored is lost."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    stored, first = read_stored(node), read_manifests(node)
    for component, flag in HARMLESS.items():
        wanted = with_flags(node, {component: flag})
        check_swap(node, wanted, gap_s=BACK_WITH_ETCD_S if component == "etcd" else BACK_S)
        assert read_stored(node) == stored

    # all four together, from a dry run on
    wanted = {name: add_flag(text, HARMLESS[name] + "1") for name, text in first.items()}
    before = read_running(node), read_manifests(node)
    planned = node.run(f"{SWAP} {draft(node, wanted)} --dry-run", timeout=120)
    assert "--max-txn-ops: 256 -> 2561" in told(planned) and (read_running(node), read_manifests(node)) == before
    assert all(f"would write: {manifest(name)}" in planned.output for name in COMPONENTS)
    check_swap(node, wanted, gap_s=BACK_WITH_ETCD_S)
    assert read_stored(node) == stored
    again = swap(node, draft(node, wanted))
    assert "run with these manifests already" in again.output and "nothing to do" in again.output, again.output
    told(node.run(f"{SWAP} --undo --yes", timeout=600))
    check_runs(node, before[1])
    assert read_stored(node) == stored and list_left(node) == []
    assert "no swap of static pods was cut off" in node.run(f"{KB} doctor", check=False, timeout=120).stdout


def check_swap(node: Node, wanted: Mapping[str, str], *, gap_s: float) -> None:
    """Swap these, and look at everything that may and may not have changed."""
    before, texts = read_running(node), read_manifests(node)
    clear_health_log(node)
    began = time.monotonic()
    done = swap(node, draft(node, wanted))
    took = time.monotonic() - began
    told(done)
    print(f"{', '.join(wanted)}: {took:.1f} s, away for {read_outages(node)}", flush=True)
    after = check_runs(node, {**texts, **wanted})
    swapped = {*wanted, "kube-apiserver"} if "etcd" in wanted else set(wanted)
    check_others(before, after, swapped)
    assert all(seconds < gap_s * SLOW for seconds in read_outages(node).values()), read_outages(node)
    assert list_left(node) == []


def check_others(before: Mapping[str, Running], after: Mapping[str, Running], swapped: Collection[str]) -> None:
    """That these were started anew, and the others were not; but a controller-manager or scheduler that led and misses its API server
    for ten seconds ends by itself."""
    for name in COMPONENTS:
        assert after[name].start[1:] == before[name].start[1:], name
        if name in swapped or "kube-apiserver" not in swapped or name == "etcd":
            assert (after[name].id != before[name].id) == (name in swapped), name


def check_runs(node: Node, texts: Mapping[str, str]) -> dict[str, Running]:
    """That these manifests are on the disk, byte for byte, and are what runs."""
    assert read_manifests(node) == texts
    running = read_running(node)
    assert {name: one.argv for name, one in running.items()} == {name: argv_of(text) for name, text in texts.items()}
    return running


# ---- what it refuses


@pytest.mark.k8s_versions("1.35")
def test_refused_before_anything_stops(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version, on_one_disk=True)
    texts, before = read_manifests(node), read_running(node)
    node.write("/etc/kubernetes/pki/nonsense.crt", "nonsense\n")
    apiserver = texts["kube-apiserver"]
    missing = texts["kube-scheduler"].replace("path: /etc/kubernetes/scheduler.conf", "path: /etc/kubernetes/none.conf")
    unknown_image = texts["kube-scheduler"].replace(
        "image: registry.k8s.io/kube-scheduler:v", "image: registry.k8s.io/kube-scheduler:v9"
    )
    pair = "--tls-private-key-file=/etc/kubernetes/pki/front-proxy-client.key"
    signing = "--cluster-signing-cert-file=/etc/kubernetes/pki/nonsense.crt"
    for component, text, hint in (
        ("kube-apiserver", add_flag(apiserver, "--no-such-flag=1"), "unknown flag: --no-such-flag"),
        ("etcd", add_flag(texts["etcd"], "--no-such-flag=1"), "no-such-flag"),
        ("kube-apiserver", add_flag(apiserver, "--feature-gates=NoSuchGate=true"), "NoSuchGate"),
        ("kube-scheduler", missing, "/etc/kubernetes/none.conf"),
        ("kube-scheduler", unknown_image, "kube-scheduler:v9"),
        ("kube-apiserver", add_flag(apiserver, pair), "/etc/kubernetes/pki/front-proxy-client.key"),
        ("kube-controller-manager", add_flag(texts["kube-controller-manager"], signing), "nonsense.crt"),
    ):  # fmt: skip
        refused = swap(node, draft(node, {component: text}, "/root/bad"), check=False)
        assert not refused.ok and hint in told(refused), hint
        assert read_running(node) == before and read_manifests(node) == texts and list_left(node) == [], hint

    words = draft(node, with_flags(node, {"kube-scheduler": HARMLESS["kube-scheduler"]}))
    node.run("systemctl stop kubelet")
    refused = swap(node, words, check=False)
    assert code_of(refused) == "kubelet-not-running", told(refused)
    assert read_running(node) == before and read_manifests(node) == texts
    node.run("systemctl start kubelet")

    fill_disk(node, leave_mib=100)
    refused = swap(node, words, check=False)
    free_disk(node)
    assert code_of(refused) == "disk-full" and "/var/lib/" in told(refused)
    assert read_running(node) == before and read_manifests(node) == texts and list_left(node) == []

    # an outage is agreed to, or does not happen
    asked = node.run(f"{SWAP} {draft(node, with_flags(node, {'etcd': HARMLESS['etcd']}))}", check=False)
    assert code_of(asked) == "not-confirmed" and "the whole cluster's API is away" in told(asked)
    assert read_running(node) == before
    assert set(read_outages(node).values()) == {0.0}


def fill_disk(node: Node, *, leave_mib: int = 0) -> None:
    node.run(f"sh -c '{filling(leave_mib)}'")


def filling(leave_mib: int = 0) -> str:
    """For the shell: take all but this much of the disk. Where somebody else takes some in the same moment, fallocate takes none."""
    take = f"fallocate -l $(( $(df --output=avail -k {DISK} | tail -n 1) - {leave_mib} * 1024 ))K {DISK}/filler"
    return f"for _ in 1 2 3 4 5 6 7 8 9; do {take} && break; sleep 0.1; done"


def free_disk(node: Node) -> None:
    node.exec(f"rm -f {DISK}/filler")


# ---- what it comes back from


class Faults:
    """Swaps of one control plane that go wrong after the stop. Each has to end with what was there before."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.texts, self.running, self.stored = read_manifests(node), read_running(node), read_stored(node)
        self.seen: list[str] = []
        self.wrong: list[str] = []

    def check(
        self, name: str, flags: Mapping[str, str], *, cause: str, when: str = "", action: str = "", after: str = ""
    ) -> Result:
        """Swap in components with these flags, and have `action` happen `when`: lines for the shell. cause: what kb has to say.
        after: what is done on the node when kb has ended, before the node is looked at."""
        words = draft(self.node, with_flags(self.node, flags), "/root/bad")
        clear_health_log(self.node)
        if when:
            meddle(self.node, when, action)
        failed = self.node.run(f"echo $$ >kb.pid; exec {SWAP} {words} --yes", check=False, timeout=600)
        if after:
            self.node.exec(after)
        if failed.ok or cause not in told(failed):
            self.wrong.append(f"{name}: {cause!r} is not said:\n{failed.output}")
        self.check_is_back(name, flags)
        return failed

    def tell(self) -> None:
        """At the end, so that one run says all."""
        print(*self.seen, sep="\n", flush=True)
        assert not self.wrong, "\n".join(self.wrong)

    def check_is_back(self, name: str, flags: Collection[str]) -> None:
        """flags: the components that were to be swapped. Those that only lost their API server have ends and pauses of their own."""
        swapped = {*flags, "kube-apiserver"} if "etcd" in flags else set(flags)
        wanted = {component: one.start for component, one in self.running.items()}

        def are_back() -> bool:
            found = {component: one.start for component, one in read_running(self.node).items()}
            assert all(found.get(component) == wanted[component] for component in swapped), (name, found)
            return found == wanted

        time.sleep(2)
        bound = (BACK_WITH_ETCD_S if "etcd" in flags else BACK_S) * SLOW
        outages = read_outages(self.node)
        self.seen.append(f"{name}: away for {outages}")
        print(self.seen[-1], flush=True)
        assert read_manifests(self.node) == self.texts, name
        wait_until(are_back, what=f"the others after: {name}", timeout_s=120)
        wait_until(lambda: read_stored(self.node) == self.stored, what=f"the same objects after: {name}", timeout_s=60)
        assert list_left(self.node) == [], name
        assert max(outages[component] for component in swapped) < bound, (name, outages)


@pytest.mark.k8s_versions("1.35")
def test_new_pods_that_do_not_work(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """What no trial finds: the flags are known, and the program ends, or never serves."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    faults = Faults(node)
    crash = {"kube-controller-manager": "--controllers=*,none-of-this-name"}
    faults.check("controller-manager in a crash loop", crash, cause="none-of-this-name")
    faults.check(
        "etcd does not start", {"etcd": "--heartbeat-interval=900"}, cause="--election-timeout[1000ms] should be"
    )
    nowhere = {"kube-apiserver": "--etcd-servers=https://127.0.0.1:2"}
    faults.check("API server without its etcd", nowhere, cause="etcd did not answer it in time")
    both = {**crash, "etcd": "--max-txn-ops=300", "kube-apiserver": "--max-requests-inflight=300"}
    faults.check("the last of several", both, cause="none-of-this-name")
    # nothing stands in the way of a good one afterwards
    check_swap(node, with_flags(node, HARMLESS), gap_s=BACK_WITH_ETCD_S)
    faults.tell()


@pytest.mark.k8s_versions("1.35")
def test_kb_is_told_to_stop(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """By an administrator, or by an ssh session that ends."""
    faults = Faults(make_control_plane(make_node, kb_pyz, k8s_version))
    flags = {"etcd": "--max-txn-ops=301", "kube-apiserver": "--max-requests-inflight=301"}
    for number, name in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
        component = ("kube-apiserver", "etcd", "etcd")[number]
        faults.check(f"{name.name} with {component} out", flags, cause="Going back to the former pods",
                     when=is_out(component), action=f"kill -{name.value} $(cat kb.pid)")  # fmt: skip
    lose_session(faults, flags)
    faults.tell()


@pytest.mark.k8s_versions("1.35")
def test_the_machine_fails_meanwhile(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    node = make_control_plane(make_node, kb_pyz, k8s_version, on_one_disk=True)
    faults = Faults(node)
    # somebody stops the kubelet, which kb starts again: the new pod comes, or the former one does
    for component in ("kube-scheduler", "kube-apiserver"):
        end_either_way(
            faults, component, {component: HARMLESS[component]}, "systemctl stop kubelet", "the kubelet stopped"
        )

    # the disk fills up
    end_either_way(faults, "kube-scheduler", {"kube-scheduler": "--kube-api-qps=70"}, filling(), "the disk full")
    end = f"{filling()}; crictl stop --timeout 0 $(crictl ps -q --name ^etcd$)"
    end_either_way(faults, "kube-scheduler", {"kube-scheduler": "--kube-api-qps=71"}, end, "etcd ended on a full disk")
    end_either_way(faults, "etcd", {"etcd": "--max-txn-ops=302"}, filling(), "the disk full")

    check_swap(node, with_flags(node, {name: flag + "2" for name, flag in HARMLESS.items()}), gap_s=BACK_WITH_ETCD_S)
    faults.tell()


def lose_session(faults: Faults, flags: Mapping[str, str]) -> None:
    """The terminal of the command goes away, as it does when a laptop is closed."""
    node = faults.node
    words = draft(node, with_flags(node, flags), "/root/bad")
    clear_health_log(node)
    argv = node.ssh_argv(tty=True)
    argv.insert(argv.index("-t"), "-t")
    session = subprocess.Popen(
        [*argv, "--", f"{SWAP} {words} --yes >kb.log 2>&1"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: node.run(is_out("kube-apiserver"), check=False).ok, what="the stop", timeout_s=120, every_s=0.1)
    session.kill()
    session.wait()
    wait_until(
        lambda: not node.run("pgrep -f '^python3 kb.pyz reconfigure'", check=False).ok, what="kb to end", timeout_s=300
    )
    print(node.read("/root/kb.log"), flush=True)
    faults.check_is_back("the ssh session is gone", flags)


def end_either_way(faults: Faults, component: str, flags: Mapping[str, str], action: str, what: str) -> None:
    """kb comes through or goes back; in either case what runs is whole, and serves."""
    node, name = faults.node, f"{what} with {component} out"
    words = draft(node, with_flags(node, flags), "/root/bad")
    clear_health_log(node)
    meddle(node, is_out(component), action)
    ended = node.run(f"{SWAP} {words} --yes", check=False, timeout=600)
    told(ended)
    outages = read_outages(node)
    free_disk(node)
    if not ended.ok:
        faults.check_is_back(name, flags)
        return
    faults.seen.append(f"{name}: comes through, away for {outages}")
    print(faults.seen[-1], flush=True)
    check_runs(node, {**faults.texts, **{name: add_flag(faults.texts[name], flag) for name, flag in flags.items()}})
    told(node.run(f"{SWAP} --undo --yes", timeout=600))
    clear_health_log(node)
    faults.check_is_back(f"{name}, and taken back", flags)


# ---- what others wrote


@pytest.mark.k8s_versions("1.35")
def test_what_others_wrote(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """A hand edit is shown before it is dropped or kept, and a static pod of others is left alone."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    foreign = run_foreign(node)
    text = node.read(manifest("kube-scheduler"))
    node.write("/root/edited.yaml", add_flag(text, "--v=1"), mode=0o600)
    node.run(f"cp edited.yaml {MANIFESTS}/.new && mv {MANIFESTS}/.new {manifest('kube-scheduler')}")

    def runs_edited() -> bool:
        found = read_running(node).get("kube-scheduler")
        return found is not None and "--v=1" in found.argv

    wait_until(runs_edited, what="the edited scheduler", timeout_s=120)

    shown = told(
        node.run(f"{SWAP} {draft(node, {'kube-scheduler': add_flag(text, HARMLESS['kube-scheduler'])})} --dry-run")
    )
    assert "not written by kb" in shown and "--v is 1" in shown and "the new manifest has what kb wrote" in shown
    assert "static pods of others, left alone: vip.yaml" in shown
    kept = draft(node, with_flags(node, {"kube-scheduler": HARMLESS["kube-scheduler"]}))
    shown = told(swap(node, kept))
    assert "--v is 1" in shown and "the new manifest keeps that" in shown
    assert find_foreign(node) == foreign
    shown = told(
        swap(node, draft(node, {name: add_flag(node.read(manifest(name)), HARMLESS[name]) for name in COMPONENTS}))
    )
    assert "--v is" not in shown  # it is what kb wrote by now
    assert find_foreign(node) == foreign and "--v=1" in read_running(node)["kube-scheduler"].argv


def run_foreign(node: Node) -> str:
    """A static pod as kube-vip is one, which does nothing; its container."""
    image = node.run("crictl images | awk '/pause/ {print $1 \":\" $2; exit}'").stdout.strip()
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vip", "namespace": "kube-system"},
           "spec": {"hostNetwork": True, "containers": [{"name": "vip", "image": image}]}}  # fmt: skip
    node.write(f"{MANIFESTS}/vip.yaml", json.dumps(pod))
    return str(wait_until(lambda: find_foreign(node), what="the foreign pod", timeout_s=60))


def find_foreign(node: Node) -> str:
    return node.run("crictl ps -q --name '^vip$' 2>/dev/null").stdout.strip()


@pytest.mark.k8s_versions("1.35")
def test_a_control_plane_of_kubeadm_s(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """It was never adopted, and kubeadm goes on with it as before."""
    node = make_node("cp1", version=k8s_version, kubeadm=True)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address, cluster=FEW))
    node.write(CONFLIST, render_conflist())
    node.run(f"kubeadm init --config init.yaml {IGNORE}", timeout=600)
    node.wait_node_ready()
    start_health_log(node)
    foreign = run_foreign(node)
    stored, asked = read_stored(node), ask_kubeadm(node)
    check_swap(node, with_flags(node, HARMLESS), gap_s=BACK_WITH_ETCD_S)
    assert find_foreign(node) == foreign
    # a cluster that kubeadm has just made gets more objects for a while: of those that were there none is lost
    wait_until(lambda: read_stored(node) >= stored, what="the same objects", timeout_s=60)
    after = ask_kubeadm(node)
    assert {**after, "diff": ""} == {**asked, "diff": ""}
    # what it would write has none of the flags: it says so, and nothing else
    removed = {line[1:].strip() for line in after["diff"].splitlines() if line.startswith("-    ")}
    assert {f"- {HARMLESS[name]}" for name in COMPONENTS if name != "etcd"} == removed, after["diff"]
    told(node.run(f"{SWAP} --undo --yes", timeout=600))
    assert ask_kubeadm(node) == asked
    node.run("kubeadm certs renew scheduler.conf")


def ask_kubeadm(node: Node) -> dict[str, str]:
    """What kubeadm says of this control plane."""
    diff = node.run(f"kubeadm upgrade diff {node.release.version}", check=False)
    certs = node.run("kubeadm certs check-expiration -o json 2>/dev/null", check=False)
    names = [row["name"] for row in json.loads(certs.stdout)["certificates"]] if certs.ok else [certs.output]
    return {"diff": diff.stdout, "diff code": str(diff.code), "certificates": ", ".join(names)}


# ---- a load balancer of the user's own


LB_LOG = "/root/balancer.log"
NOTED = f"echo {{}} $KB_SERVER $(curl -sk --max-time 5 -o /dev/null -w %{{{{http_code}}}} https://$KB_SERVER/readyz) >>{LB_LOG}"
"""A command of the user's that writes down what the API server answers when it is called."""


def swap_with(node: Node, wanted: Mapping[str, str], *, before: str = "", after: str = "") -> tuple[Result, list[str]]:
    """Swap with these commands of the user's, after what writes down that they were called. Returns what kb said, and what was written."""
    node.run(f": >{LB_LOG}")
    hooks = (f"--{flag} {shlex.quote(NOTED.format(flag) + more)}" for flag, more in
             (("before-stop", before), ("after-start", after)))  # fmt: skip
    done = swap(node, f"{draft(node, wanted)} {' '.join(hooks)}", check=False)
    told(done)
    lines = node.read(LB_LOG).splitlines()
    print(*lines, sep="\n", flush=True)
    return done, lines


@pytest.mark.k8s_versions("1.35")
def test_the_users_own_balancer(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """His commands are called around the stop, when the API server still serves and when it serves again, also on the way back."""
    node = make_control_plane(make_node, kb_pyz, k8s_version)
    served = [f"{flag} {node.address}:6443 200" for flag in ("before-stop", "after-start")]
    texts, before = read_manifests(node), read_running(node)

    # a command that fails before anything stops stops nothing
    wanted = with_flags(node, {"kube-apiserver": HARMLESS["kube-apiserver"]})
    done, lines = swap_with(node, wanted, before="; echo no such backend >&2; exit 3")
    assert code_of(done) == "users-command-failed" and "no such backend" in done.output
    assert lines == served and read_running(node) == before and read_manifests(node) == texts

    # the way back has the API server put in again too
    crash = with_flags(node, {"kube-apiserver": "--etcd-servers=https://127.0.0.1:2"})
    done, lines = swap_with(node, crash)
    assert not done.ok and lines == served and read_manifests(node) == texts

    # one that fails afterwards is told: the new pod works, and only the user can put it back into his balancer
    done, lines = swap_with(node, wanted, after="; exit 4")
    assert done.ok and lines == served and "the command of --after-start ended with code 4" in done.output
    check_runs(node, {**texts, **wanted})

    # of a pod that nobody calls through a balancer no command is called
    done, lines = swap_with(node, with_flags(node, {"kube-scheduler": HARMLESS["kube-scheduler"]}))
    assert done.ok and lines == []
    done, lines = swap_with(node, with_flags(node, {"etcd": HARMLESS["etcd"]}))
    assert done.ok and lines == served, "etcd takes its API server out with it"


# ---- where nothing can be tried first


@pytest.mark.k8s_versions("1.35")
def test_a_machine_that_cannot_mount_images(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """What could not be tried is said. What a trial would have found is found by the new pod, and the former one comes back."""
    faults = Faults(make_control_plane(make_node, kb_pyz, k8s_version))
    node = faults.node
    node.run("mv $(command -v ctr) /root/ctr.away")
    failed = faults.check("unknown flag", {"kube-scheduler": "--no-such-flag=1"}, cause="unknown flag: --no-such-flag")
    for what in ("flags", "feature gates"):
        assert (
            f"kube-scheduler: {what} could not be tried: there is no ctr in PATH, which mounts images" in failed.output
        )
    assert "kube-scheduler: tried without starting it: image, files, mounts, host ports" in failed.output
    check_swap(node, with_flags(node, HARMLESS), gap_s=BACK_WITH_ETCD_S)
    faults.tell()


# ---- three control planes


def make_three(
    make_node: MakeNode, kb_pyz: Path, version: str, *, cluster: Optional[dict[str, Any]] = None
) -> list[Node]:
    """Control planes that call each other through the load balancers of their own nodes. cluster: fields of the ClusterConfiguration."""
    cp1 = make_node("cp1", version=version)
    init_with_balancer(cp1, kb_pyz, cluster=cluster)
    nodes = [cp1, make_node("cp2", version=version), make_node("cp3", version=version)]
    for node in nodes[1:]:
        join(node, cp1, kb_pyz, control_plane=True)
    for node in nodes:
        wait_servers(node, [each.address for each in nodes], timeout_s=120)
    return nodes


@pytest.mark.k8s_versions("1.35")
def test_nobody_notices_with_three(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Each control plane in turn swaps etcd and API server, while clients read and write through the load balancer of another:
    no call fails, and none waits for long."""
    nodes = make_three(make_node, kb_pyz, k8s_version)
    fill_store(nodes[0])
    swap_in_turn(nodes)
    check_fault_on_one_of_three(nodes)
    check_quorum_is_kept(nodes)


def swap_in_turn(nodes: Sequence[Node]) -> None:
    names, addresses = [node.name for node in nodes], [node.address for node in nodes]
    flags = {name: HARMLESS[name] for name in ("etcd", "kube-apiserver")}
    seen: list[str] = []
    all_calls: list[Calls] = []
    for number, node in enumerate(nodes):
        other = nodes[(number + 1) % 3]
        lead_etcd(nodes, node)
        stored = read_stored(other)
        clients = [Client(other, "keep"), Client(other, "new")]
        for client in clients:
            client.start()
        time.sleep(2)
        before, began = read_running(node), time.monotonic()
        done = swap(node, draft(node, with_flags(node, flags)), check=False)
        took = time.monotonic() - began
        time.sleep(3)
        for client in clients:
            calls = client.stop()
            all_calls.append(calls)
            seen.append(f"{node.name} swaps in {took:.0f} s, {client.way} on {other.name}: {calls}")
            print(seen[-1], *calls.failed[:20], sep="\n", flush=True)
        told(done)
        assert done.ok, node.name
        after = read_running(node)
        check_others(before, after, flags)
        check_members(other, names)
        assert leader_of(nodes) is not node
        assert read_drained(other) == {}
        for each in nodes:
            wait_servers(each, addresses, timeout_s=60)
        assert read_stored(other) >= stored
    print(*seen, sep="\n")
    for line, calls in zip(seen, all_calls):
        assert not calls.failed and calls.longest_gap_s <= GAP_S * SLOW, (line, calls.failed[:10])


def ask_etcd(asked: Node, path: str, body: Optional[Mapping[str, str]] = None) -> dict[str, Any]:
    """What the member on this node answers through its JSON gateway."""
    pki = "/etc/kubernetes/pki/etcd"
    found: dict[str, Any] = json.loads(asked.run([
        "curl", "-sS", "--fail-with-body", "--cacert", f"{pki}/ca.crt", "--cert", f"{pki}/server.crt", "--key", f"{pki}/server.key",
        "-d", json.dumps(body or {}), f"https://127.0.0.1:2379/v3/{path}",
    ]).stdout)  # fmt: skip
    return found


def leader_of(nodes: Sequence[Node]) -> Node:
    """The node whose member leads etcd."""
    for node in nodes:
        status = ask_etcd(node, "maintenance/status")
        if status["header"]["member_id"] == status["leader"]:
            return node
    raise LabError("nobody leads etcd")


def lead_etcd(nodes: Sequence[Node], node: Node) -> None:
    """Have this node's member lead, so that its swap has to give that away."""

    def leads() -> bool:
        leader = leader_of(nodes)
        if leader is not node:
            target = ask_etcd(node, "maintenance/status")["header"]["member_id"]
            ask_etcd(leader, "maintenance/transfer-leadership", {"targetID": target})
        return leader is node

    wait_until(leads, what=f"{node.name} to lead etcd", timeout_s=60)


def read_drained(node: Node) -> dict[str, str]:
    """The marks by which load balancers spare an API server."""
    found = json.loads(
        node.kubectl("get configmap -n kube-system kb-drained-api-servers -o json --ignore-not-found") or "{}"
    )
    data: dict[str, str] = found.get("data") or {}
    return data


def check_fault_on_one_of_three(nodes: Sequence[Node]) -> None:
    """An etcd that does not start comes back as the member that it was, and the API server with it."""
    node, other = nodes[1], nodes[2]
    texts, before, stored = read_manifests(node), read_running(node), read_stored(other)
    members = [(member["name"], member["id"]) for member in read_members(other)]
    start_health_log(node)
    client = Client(other, "new")
    client.start()
    failed = swap(node, draft(node, with_flags(node, {"etcd": "--heartbeat-interval=900"})), check=False)
    calls = client.stop()
    print(
        f"an etcd of one of three that does not start: away for {read_outages(node)}; {calls}",
        *calls.failed[:9],
        sep="\n",
    )
    assert not failed.ok and "--election-timeout[1000ms] should be" in told(failed)
    assert read_manifests(node) == texts and list_left(node) == []
    after = read_running(node)  # a scheduler that lost its lease meanwhile may be about to start again
    assert {name: after[name].start for name in ("etcd", "kube-apiserver")} == {
        n: before[n].start for n in ("etcd", "kube-apiserver")
    }
    assert [(member["name"], member["id"]) for member in read_members(other)] == members
    check_members(other, [each.name for each in nodes])
    assert read_stored(other) >= stored and read_drained(other) == {}
    assert max(read_outages(node).values()) < BACK_WITH_ETCD_S * SLOW
    assert not calls.failed and calls.longest_gap_s <= GAP_S * SLOW, calls.failed[:10]


def check_quorum_is_kept(nodes: Sequence[Node]) -> None:
    """With one member dead, no other one is stopped."""
    dead, node = nodes[2], nodes[0]
    dead.kill()
    before, texts = read_running(node), read_manifests(node)
    words = draft(node, with_flags(node, {"etcd": "--max-txn-ops=310"}))
    refused = swap(node, words, check=False)
    assert code_of(refused) == "etcd-stop-unsafe" and dead.name in told(refused)
    assert read_running(node) == before and read_manifests(node) == texts and list_left(node) == []
