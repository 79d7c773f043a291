"""It says why: each cause is injected on a real node, and kb must name it, with its remedy, within 30 seconds.

One table, CAUSES. A cause is a context: it breaks the node and puts it right again, so that one node serves them all;
between two causes `kb reset` takes back what an init left. The seconds run from the command's start, or, for a cause
that strikes a running cluster, from the moment it strikes.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import LOGS, find_release, has_cap_sys_resource
from .lab.shell import Result

VERSION = "1.35"
LIMIT_S = 30.0
CONTAINERD = "/etc/containerd/config.toml"
CRI_PLUGIN = "io.containerd.grpc.v1.cri"
PROXY = "http://10.77.0.1:3128"

Inject = Callable[[Node], "contextlib.AbstractContextManager[None]"]


@contextlib.contextmanager
def nothing(node: Node) -> Iterator[None]:
    """The configuration alone is wrong."""
    yield


# ---- the runtime


@contextlib.contextmanager
def containerd_config(node: Node, *edits: tuple[str, str]) -> Iterator[None]:
    """containerd with some texts of its configuration replaced."""
    good = bad = node.read(CONTAINERD)
    for old, new in edits:
        assert old in bad, f"{old} is not in {CONTAINERD}"
        bad = bad.replace(old, new)
    try:
        node.write(CONTAINERD, bad)
        node.run("systemctl restart containerd", check=False)
        yield
    finally:
        node.write(CONTAINERD, good)
        node.run("systemctl reset-failed containerd; systemctl restart containerd")


def edit_containerd(*edits: tuple[str, str]) -> Inject:
    return lambda node: containerd_config(node, *edits)


@contextlib.contextmanager
def stopped_containerd(node: Node) -> Iterator[None]:
    node.run("systemctl stop containerd")
    try:
        yield
    finally:
        node.run("systemctl start containerd")


@contextlib.contextmanager
def refused_oom_score(node: Node) -> Iterator[None]:
    """The runc that tries what this machine refuses, and a containerd that lets it try."""
    wrapped = node.read("/usr/sbin/runc")
    node.run("ln -sf /usr/libexec/e2e-runc /root/runc && mv -f /root/runc /usr/sbin/runc")
    try:
        with containerd_config(node, ("restrict_oom_score_adj = true", "restrict_oom_score_adj = false")):
            yield
    finally:
        node.run("rm /usr/sbin/runc")
        node.write("/usr/sbin/runc", wrapped, mode=0o755)


@contextlib.contextmanager
def missing_image(node: Node, image: str = "kube-scheduler") -> Iterator[None]:
    """An image is not in the runtime's store, and the registry does not have it either."""
    full = f"registry.k8s.io/{image}:{find_release(VERSION).version}"
    archive = f"/root/{image}.tar"
    node.run(f"ctr -n k8s.io images export {archive} {full} && crictl rmi {full}")
    node.lab.registry.start()
    try:
        yield
    finally:
        node.run(f"ctr -n k8s.io images import {archive} && rm {archive}")
        node.lab.registry.stop()


ASKS_FOR_CREDENTIALS = """\
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
http.server.HTTPServer(("10.77.0.11", 5001), Handler).serve_forever()
"""


@contextlib.contextmanager
def running(node: Node, name: str, script: str) -> Iterator[None]:
    """A Python program that runs on the node for the time of the block."""
    node.write(f"/root/{name}.py", script)
    node.run(f"systemd-run --quiet --unit e2e-{name} python3 /root/{name}.py && sleep 0.7")
    try:
        yield
    finally:
        node.run(f"systemctl stop e2e-{name}", check=False)


@contextlib.contextmanager
def registry_with_credentials(node: Node) -> Iterator[None]:
    hosts = "/etc/containerd/certs.d/registry.example/hosts.toml"
    node.write(hosts, 'server = "http://10.77.0.11:5001"\n\n[host."http://10.77.0.11:5001"]\n')
    with running(node, "registry", ASKS_FOR_CREDENTIALS):
        yield


# ---- the machine


@contextlib.contextmanager
def port_in_use(node: Node) -> Iterator[None]:
    with running(
        node, "squatter", "import http.server as h\nh.HTTPServer(('', 10259), h.BaseHTTPRequestHandler).serve_forever()"
    ):
        yield


@contextlib.contextmanager
def swap_on(node: Node) -> Iterator[None]:
    """What a node with swap shows; really switched on it would be on for the whole machine."""
    table = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0\tpartition\t4194300\t0\t100\n"
    node.write("/root/swaps", table)
    node.exec("mount --bind /root/swaps /proc/swaps")
    try:
        yield
    finally:
        node.exec("umount /proc/swaps")


@contextlib.contextmanager
def wrong_kubelet(node: Node) -> Iterator[None]:
    """The kubelet of the next minor, in front of the right one in PATH."""
    source = find_release("1.36").binary("kubelet")
    target = node.disk_path("/usr/local/bin/kubelet")
    node.scp(source, "/usr/local/bin/kubelet")
    try:
        yield
    finally:
        node.run(f"rm {target.relative_to(node.root).as_posix()}".replace("rm usr", "rm /usr"))


@contextlib.contextmanager
def read_only_cgroup(node: Node) -> Iterator[None]:
    node.exec("mount -o remount,bind,ro /sys/fs/cgroup/cpuset")
    try:
        yield
    finally:
        node.exec("mount -o remount,bind,rw /sys/fs/cgroup/cpuset")


@contextlib.contextmanager
def full_etcd_disk(node: Node) -> Iterator[None]:
    """A small file system below /var/lib/etcd with no room in it."""
    node.exec("mount -t tmpfs -o size=8m,mode=0700 tmpfs /var/lib/etcd")
    node.exec("dd if=/dev/zero of=/var/lib/etcd/lost+found bs=1M", check=False)
    try:
        yield
    finally:
        node.exec("umount -l /var/lib/etcd")


@contextlib.contextmanager
def no_forwarding(node: Node) -> Iterator[None]:
    node.run("rm -f /etc/sysctl.d/90-kb.conf; sysctl -w net.ipv4.ip_forward=0")
    yield


@contextlib.contextmanager
def stub_resolver(node: Node) -> Iterator[None]:
    """A resolv.conf that names a resolver of this machine alone."""
    good = node.read("/etc/resolv.conf")
    node.write("/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    try:
        yield
    finally:
        node.write("/etc/resolv.conf", good)


@contextlib.contextmanager
def kubelet_behind_a_proxy(node: Node) -> Iterator[None]:
    """The manager's environment, which every unit inherits, as /etc/systemd/system.conf's DefaultEnvironment= makes it."""
    node.run(f"systemctl set-environment HTTPS_PROXY={PROXY}")
    try:
        yield
    finally:
        node.run("systemctl unset-environment HTTPS_PROXY")


@contextlib.contextmanager
def read_only_usr(node: Node) -> Iterator[None]:
    """As on systems whose /usr comes as an image, where no controller-manager has run yet."""
    node.exec("rm -rf /usr/libexec/kubernetes && mount --bind /usr /usr && mount -o remount,bind,ro /usr")
    try:
        yield
    finally:
        node.exec("umount -l /usr")


def own_kubelet_flags(flags: str) -> Inject:
    """Flags of the admin's own, where the packages' drop-in reads them."""

    @contextlib.contextmanager
    def inject(node: Node) -> Iterator[None]:
        node.write("/etc/default/kubelet", f'KUBELET_EXTRA_ARGS="{flags}"\n')
        try:
            yield
        finally:
            node.run("rm -f /etc/default/kubelet")

    return inject


# ---- etcd and certificates


@contextlib.contextmanager
def foreign_etcd_data(node: Node) -> Iterator[None]:
    """What an etcd of another cluster left in its folder."""
    node.run("mkdir -p /var/lib/etcd/member/snap /var/lib/etcd/member/wal && touch /var/lib/etcd/member/snap/db")
    try:
        yield
    finally:
        node.run("rm -rf /var/lib/etcd/member")


@contextlib.contextmanager
def mismatched_key(node: Node) -> Iterator[None]:
    node.run("python3 /root/kb.pyz init phase certs/all --config /root/init.yaml")
    node.run("openssl ecparam -name prime256v1 -genkey -noout -out /etc/kubernetes/pki/apiserver.key")
    try:
        yield
    finally:
        node.run("rm -rf /etc/kubernetes/pki")


@contextlib.contextmanager
def expired_ca(node: Node) -> Iterator[None]:
    """A CA whose ten years are over."""
    node.run(
        "mkdir -p /etc/kubernetes/pki && cd /etc/kubernetes/pki && openssl ecparam -name prime256v1 -genkey -noout -out ca.key"
        " && openssl req -new -key ca.key -subj /CN=kubernetes -out /root/ca.csr"
        " && printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,digitalSignature\\n' >/root/ca.ext"
        " && openssl x509 -req -in /root/ca.csr -signkey ca.key -extfile /root/ca.ext -days -1 -out ca.crt"
    )
    try:
        yield
    finally:
        node.run("rm -rf /etc/kubernetes/pki")


# ---- a running cluster

SKEWED_SERVER = """\
import datetime, email.utils, http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def date_time_string(self, timestamp=None):
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2, minutes=7)
        return email.utils.format_datetime(later, usegmt=True)
    def do_GET(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()
server = http.server.HTTPServer(("10.77.0.11", 7443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/pki/apiserver.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@contextlib.contextmanager
def skewed_clock(node: Node) -> Iterator[None]:
    """A server whose clock is two hours ahead: nodes of one machine share a clock, so its Date says it."""
    node.run("sed s/:6443/:7443/ /etc/kubernetes/admin.conf >/root/skewed.conf")
    with running(node, "skewed", SKEWED_SERVER):
        yield


@contextlib.contextmanager
def forwarding_lost(node: Node) -> Iterator[None]:
    node.run("sysctl -w net.ipv4.ip_forward=0")
    try:
        yield
    finally:
        node.run("sysctl -w net.ipv4.ip_forward=1")


# ---- the table


@contextlib.contextmanager
def renamed_machine(node: Node) -> Iterator[None]:
    """The machine gets another name, and its kubelet is started again."""
    node.run("hostname renamed && systemctl restart kubelet && sleep 3")
    try:
        yield
    finally:
        node.run("hostname cp1 && systemctl restart kubelet")
        node.wait_node_ready()


@contextlib.contextmanager
def flushed_rules(node: Node) -> Iterator[None]:
    """A firewall was restarted, and took the tables of others along. kube-proxy looks after its own only now and then."""
    node.run("sleep 41; nft flush ruleset")
    restart = "crictl stop $(crictl ps -q --name kube-proxy)"
    try:
        yield
    finally:
        node.run(restart)
        answers = "python3 -c 'import socket; socket.create_connection((\"10.96.0.1\", 443), 2)'"
        wait_until(lambda: node.run(answers, check=False).ok, what="the remedy to help", timeout_s=60)


@contextlib.contextmanager
def serving_certificate_pending(node: Node) -> Iterator[None]:
    """serverTLSBootstrap, without anybody who approves."""
    config = "/var/lib/kubelet/config.yaml"
    good = node.read(config)
    node.write(config, f"{good}serverTLSBootstrap: true\n")
    node.run(
        "mkdir /root/serving && mv /var/lib/kubelet/pki/kubelet.crt /var/lib/kubelet/pki/kubelet.key /root/serving/"
    )
    node.run("systemctl restart kubelet && sleep 6")
    try:
        yield
    finally:
        node.write(config, good)
        node.run("mv /root/serving/* /var/lib/kubelet/pki/ && rmdir /root/serving && systemctl restart kubelet")
        node.wait_node_ready()


@dataclass(frozen=True)
class Cause:
    """A way to break a node, and what must be said of it.

    says: patterns that the output must hold, each of them; code: the error's stable name ("" where doctor tells);
    skips, ignores: phases and checks that are left out, so that a cause which preflight finds is met later as well;
    config: fields for lab_config; on: "fresh" (init) or "running" (doctor on a node that was well before).
    """

    name: str
    inject: Inject
    says: tuple[str, ...]
    code: str
    config: dict[str, Any] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    command: str = "init"
    is_fatal: bool = True
    ends: bool = True
    """False: waiting longer may heal it, so kb says what it waits for and goes on."""
    strikes_at: str = ""
    """The phase at whose end the component is started that then fails: the seconds run from there."""
    skip: str = ""


NO_PULL: dict[str, Any] = {"nodeRegistration": {"imagePullPolicy": "Never"}}
OOM = "" if not has_cap_sys_resource() else "this machine grants a negative oom_score_adj"

CAUSES = (
    Cause(
        "CRI disabled",
        edit_containerd(("version = 2\n", f'version = 2\ndisabled_plugins = ["{CRI_PLUGIN}"]\n')),
        (r"CRI plugin is disabled by /etc/containerd/config.toml line 2", r"disabled_plugins", r"restart containerd"),
        "preflight",
    ),
    Cause(
        "containerd that cannot read its configuration",
        edit_containerd(("version = 2\n", 'version = 2\ndisabled_plugins = ["cri"]\n')),
        (r"does not run", r'invalid disabled plugin URI "cri"', r"/etc/containerd/config.toml"),
        "preflight",
    ),
    Cause(
        "containerd stopped",
        stopped_containerd,
        (r"containerd\.sock", r"systemctl \S+( --now)? containerd"),
        "preflight",
    ),
    Cause(
        "sandbox image unreachable",
        edit_containerd(("registry.k8s.io/pause:3.10.1", "10.77.0.1:5999/pause:3.10.1")),
        (r"10\.77\.0\.1:5999/pause:3\.10\.1", r"sandbox_image"),
        "preflight",
    ),
    Cause(
        "sandbox image unreachable, met by the kubelet",
        edit_containerd(("registry.k8s.io/pause:3.10.1", "10.77.0.1:5999/pause:3.10.1")),
        (r"no sandbox of etcd", r"10\.77\.0\.1:5999/pause:3\.10\.1", r"accepts the connection", r"sandbox_image"),
        "",
        config={"init": NO_PULL},
        ends=False,
    ),
    Cause(
        "component image missing",
        missing_image,
        (r"registry\.k8s\.io/kube-scheduler:v1\.35", r"has no such image", r"imageRepository"),
        "preflight",
    ),
    Cause(
        "component image missing, met by the kubelet",
        missing_image,
        (r"kube-scheduler", r"no such image", r"imageRepository"),
        "not-healthy",
        config={"init": NO_PULL},
    ),
    Cause(
        "registry asks for credentials",
        registry_with_credentials,
        (r"registry\.example", r"refuses it without \(or with these\) credentials", r"--creds"),
        "preflight",
        config={"cluster": {"imageRepository": "registry.example"}},
    ),
    Cause(
        "cgroup driver mismatch",
        edit_containerd(("SystemdCgroup = true", "SystemdCgroup = false")),
        (r"cgroup driver cgroupfs, the kubelet systemd", r"SystemdCgroup = true"),
        "preflight",
    ),
    Cause(
        "bad apiserver extra arg",
        nothing,
        (r"kube-apiserver exited", r"unknown flag: --foo", r"apiServer\.extraArgs", r"remedy: +remove"),
        "not-healthy",
        config={"cluster": {"apiServer": {"extraArgs": [{"name": "foo", "value": "bar"}]}}},
    ),
    Cause(
        "bad value of an apiserver extra arg",
        nothing,
        (r"kube-apiserver exited", r"max-requests-inflight", r"apiServer\.extraArgs"),
        "not-healthy",
        config={"cluster": {"apiServer": {"extraArgs": [{"name": "max-requests-inflight", "value": "many"}]}}},
    ),
    Cause(
        "bad kubelet field",
        nothing,
        (r"/root/init\.yaml:\d+: enforceNodeAllocatable", r"'everything' cannot be enforced", r"remedy: +\S+"),
        "invalid-config",
        config={"kubelet": {"enforceNodeAllocatable": ["everything"]}},
    ),
    Cause(
        "bad kubelet field, of a wrong type",
        nothing,
        (r"/root/init\.yaml:\d+", r"maxPods", r"remedy: +\S+"),
        "invalid-config",
        config={"kubelet": {"maxPods": "many"}},
    ),
    Cause(
        "unknown kubelet field",  # a kubelet says so in its log, leaves it out, and runs
        nothing,
        (r"/root/init\.yaml:\d+: KubeletConfiguration has no field fooBar",),
        "",
        config={"kubelet": {"fooBar": True}},
        is_fatal=False,
    ),
    Cause(
        "bad kubelet flag",
        nothing,
        (r"this kubelet \(v1\.35\.\d+\) has no flag --foo", r"nodeRegistration\.kubeletExtraArgs"),
        "preflight",
        config={"init": {"nodeRegistration": {"kubeletExtraArgs": [{"name": "foo", "value": "bar"}]}}},
    ),
    Cause(
        "bad kubelet flag, met by the kubelet",
        nothing,
        (r"kubelet", r"unknown flag: --foo", r"kubeletExtraArgs"),
        "not-healthy",
        config={"init": {"nodeRegistration": {"kubeletExtraArgs": [{"name": "foo", "value": "bar"}]}}},
        ignores=("KubeletFlags",),
    ),
    Cause(
        "kubelet flag that the minor has no more",
        own_kubelet_flags("--pod-infra-container-image=x --network-plugin=cni --max-pods=many"),
        (
            r"has no flag --pod-infra-container-image, which /etc/default/kubelet gives.*sandbox_image",
            r"has no flag --network-plugin",
            r"does not take --max-pods=many",
        ),
        "preflight",
    ),
    Cause(
        "label that a kubelet may not set",
        nothing,
        (r"kubeletExtraArgs\[0\]\.value", r"the label node-role\.kubernetes\.io/worker", r"kubectl label node"),
        "invalid-config",
        config={
            "init": {
                "nodeRegistration": {
                    "kubeletExtraArgs": [{"name": "node-labels", "value": "node-role.kubernetes.io/worker="}]
                }
            }
        },
    ),
    Cause(
        "label that a kubelet may not set, met by the kubelet",
        own_kubelet_flags("--node-labels=kb.k8s.io/x=1"),
        (r"may not give its node the label kb\.k8s\.io/x", r"kubectl label node NAME kb\.k8s\.io/x="),
        "not-healthy",
        ignores=("KubeletFlags",),
    ),
    Cause(
        "read-only /usr",
        read_only_usr,
        (
            r"/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
            r"/usr is mounted read-only",
            r"flex-volume-plugin-dir",
            r"volumePluginDir",
        ),
        "preflight",
    ),
    Cause(
        "read-only /usr, met by the kubelet",
        read_only_usr,
        (
            r"its volume flexvolume-dir cannot be set up",
            r"read-only file system",
            r"flex-volume-plugin-dir",
            r"volumePluginDir",
        ),
        "not-healthy",
        ignores=("HostPath",),
        strikes_at="wait-control-plane/controllers",
    ),
    Cause(
        "disk pressure",  # the kubelet is told to want more space than any disk has
        nothing,
        (r"node cp1 has DiskPressure and accepts no pods", r"kubelet has disk pressure", r"df -h /var/lib/containerd"),
        "",
        config={"kubelet": {"evictionHard": {"nodefs.available": "99%"}}},
        ends=False,
        strikes_at="pod-network",
    ),
    Cause("port in use", port_in_use, (r"port 10259", r"python3 \(pid \d+\)", r"ps -fp \d+"), "preflight"),
    Cause("swap on", swap_on, (r"swap is on \(/dev/zram0\)", r"swapoff -a"), "preflight"),
    Cause(
        "swap on, met by the kubelet",
        swap_on,
        (r"kubelet", r"swap", r"swapoff -a"),
        "not-healthy",
        ignores=("Swap",),
    ),
    Cause(
        "kubelet of a wrong version",
        wrong_kubelet,
        (r"kubelet v1\.36\.\d+ is newer than the control plane v1\.35\.\d+", r"install kubelet v1\.35"),
        "preflight",
    ),
    Cause(
        "cgroup mounted read-only",
        read_only_cgroup,
        (r"/sys/fs/cgroup/cpuset is mounted read-only", r"mount -o remount,bind,rw /sys/fs/cgroup/cpuset"),
        "preflight",
    ),
    Cause(
        "cgroup mounted read-only, met by the kubelet",
        read_only_cgroup,
        (r"cpuset", r"read-only", r"mount -o remount,bind,rw /sys/fs/cgroup/cpuset"),
        "not-healthy",
        ignores=("CgroupWritable",),
    ),
    Cause(
        "oom_score_adj refused",
        refused_oom_score,
        (r"CAP_SYS_RESOURCE", r"oom_score_adj", r"restrict_oom_score_adj = true"),
        "preflight",
        skip=OOM,
    ),
    Cause(
        "oom_score_adj refused, met by the kubelet",
        refused_oom_score,
        (r"sandbox", r"oom_score_adj", r"restrict_oom_score_adj = true"),
        "not-healthy",
        ignores=("OOMScoreAdj",),
        skip=OOM,
    ),
    Cause(
        "etcd data of another cluster",
        foreign_etcd_data,
        (r"/var/lib/etcd is not empty", r"the data of an etcd", r"mv /var/lib/etcd /var/lib/etcd\.old"),
        "preflight",
    ),
    Cause(
        "certificate that does not match its key",
        mismatched_key,
        (r"/etc/kubernetes/pki/apiserver\.crt", r"/etc/kubernetes/pki/apiserver\.key", r"remedy: +\S+"),
        "key-mismatch",
    ),
    Cause("expired CA", expired_ca, (r"/etc/kubernetes/pki/ca\.crt", r"expired", r"remedy: +\S+"), "ca-expired"),
    Cause(
        "wrong advertise address",
        nothing,
        (r"10\.77\.0\.99", r"eth0", r"10\.77\.0\.11", r"advertise"),
        "preflight",
        config={"init": {"localAPIEndpoint": {"advertiseAddress": "10.77.0.99"}}},
    ),
    Cause(
        "wrong advertise address, met by etcd",
        nothing,
        (r"etcd exited", r"10\.77\.0\.99", r"cannot assign requested address", r"advertiseAddress"),
        "not-healthy",
        config={"init": {"localAPIEndpoint": {"advertiseAddress": "10.77.0.99"}}},
        ignores=("AdvertiseAddress",),
    ),
    Cause(
        "full disk under /var/lib/etcd", full_etcd_disk, (r"0 MiB are free for /var/lib/etcd", r"df -h"), "preflight"
    ),
    Cause(
        "full disk under /var/lib/etcd, met by etcd",
        full_etcd_disk,
        (r"etcd exited", r"no space left on device", r"df -h /var/lib/etcd"),
        "not-healthy",
        ignores=("DiskSpace", "DirAvailable--var-lib-etcd"),
    ),
    Cause(
        "no ip_forward",
        no_forwarding,
        (r"/proc/sys/net/ipv4/ip_forward is 0, not 1", r"sysctl -w net\.ipv4\.ip_forward=1"),
        "preflight",
        skips=("install/sysctls",),
    ),
    Cause("no ip_forward on a running node", forwarding_lost, (r"ip_forward is 0", r"sysctl -w"), "", command="doctor"),
    Cause(
        "kube-proxy that cannot program its rules",
        nothing,
        (r"kube-proxy", r"(?i)ipvs", r"mode"),
        "not-healthy",
        config={"kube_proxy": {"mode": "ipvs", "conntrack": {"maxPerCore": 0}}},
        strikes_at="addon/kube-proxy",
    ),
    Cause(
        "kube-proxy that may not size the connection table",
        nothing,
        (r"kube-proxy", r"conntrack", r"maxPerCore: 0"),
        "not-healthy",
        config={"kube_proxy": {"conntrack": {}}},
        strikes_at="addon/kube-proxy",
    ),
    Cause(
        "CoreDNS loop through a stub resolver",
        stub_resolver,
        (
            r"/etc/resolv\.conf names the loopback address 127\.0\.0\.53",
            r"CoreDNS would query itself",
            r"resolvConf|name server",
        ),
        "preflight",
    ),
    Cause(
        "CoreDNS loop through a stub resolver, met by CoreDNS",
        stub_resolver,
        (r"coredns", r"(?i)loop", r"resolvConf"),
        "not-healthy",
        # the watch that is kb's default: CoreDNS finds its loop seconds after it has begun to answer
        config={"kb": {"podNetwork": {"plugin": "bridge"}, "soak": "10s"}},
        ignores=("Resolver",),
        strikes_at="pod-network",
    ),
    Cause(
        "proxy variable that swallows cluster traffic",
        nothing,
        (re.escape(PROXY), r"10\.77\.0\.11", r"NO_PROXY=\S*10\.77\.0\.11"),
        "preflight",
        env={"HTTPS_PROXY": PROXY},
    ),
    Cause(
        "proxy variable of the kubelet's unit",
        kubelet_behind_a_proxy,
        (r"systemd gives the kubelet the proxy " + re.escape(PROXY), r"10\.77\.0\.11", r"NO_PROXY=\S*10\.77\.0\.11"),
        "preflight",
    ),
    Cause(
        "no anonymous requests to the API server",
        nothing,
        (
            r"kube-apiserver runs but is not Ready",
            r"statuscode: 401; --anonymous-auth=false",
            r"remedy: +leave anonymous-auth out",
        ),
        "not-healthy",
        config={
            "cluster": {"apiServer": {"extraArgs": [{"name": "anonymous-auth", "value": "false"}]}},
            "kb": {"podNetwork": {"plugin": "bridge"}, "soak": "10s"},
        },
        strikes_at="wait-control-plane",
    ),
    Cause(
        "a serving certificate that nobody approves",
        serving_certificate_pending,
        (r"the kubelet of cp1 has no serving certificate", r"kubectl certificate approve csr-\S+"),
        "",
        command="doctor",
        is_fatal=False,
    ),
    Cause(
        "kube-proxy's rules that somebody flushed",
        flushed_rules,
        (
            r"kube-proxy runs, but its rules are not on this node",
            r"nft flush ruleset",
            r"crictl stop \$\(crictl ps -q --name kube-proxy\)",
        ),
        "",
        command="doctor",
    ),
    Cause(
        "a machine that was renamed",
        renamed_machine,
        (r"called renamed now, and its node is cp1", r"hostnamectl set-hostname cp1"),
        "",
        command="doctor",
    ),
    Cause(
        "clock two hours off",
        skewed_clock,
        (r"2 h 0?[67] min (behind|slow)", r"10\.77\.0\.11:7443", r"chrony|timesync|date"),
        "",
        command="doctor --kubeconfig /root/skewed.conf",
    ),
)


# ---- running them


@pytest.fixture(scope="module")
def cp1(lab: Lab, kb_pyz: Path) -> Iterator[Node]:
    """One node for all causes."""
    node = lab.add_node("cp1", version=VERSION)
    node.scp(kb_pyz, "/root/kb.pyz")
    yield node
    lab.remove_node(node)


def run_kb(node: Node, cause: Cause) -> tuple[Result, float]:
    """Run the cause's command; returns what it said, and how long it took to say it. Where kb goes on waiting, since the
    cause may heal, it is stopped as soon as it has said all that is wanted, or at the limit."""
    line = f"echo $$ >/root/kb.pid; exec timeout --signal=TERM {LIMIT_S * 3:.0f} python3 /root/kb.pyz {cause.command}"
    if cause.command == "init":
        ignored = [*list_ignored_checks(), *cause.ignores]
        line += f" --config /root/init.yaml --ignore-preflight-errors={','.join(ignored)}"
        line += f" --skip-phases={','.join(cause.skips)}" if cause.skips else ""
    started = time.monotonic()
    process = node.popen(line, env=cause.env)
    assert process.stdout is not None
    told = output = ""
    for text in process.stdout:
        output += text
        told += "" if "warning: " in text else text
        if cause.strikes_at and f"] {cause.strikes_at}  " in text:
            started = time.monotonic()
        is_late = time.monotonic() - started > LIMIT_S
        if not cause.ends and (is_late or not find_missing(cause, told)):
            break
    seconds = time.monotonic() - started
    if not cause.ends:
        node.run("kill $(cat /root/kb.pid)", check=False)
        output = told
    process.communicate(timeout=LIMIT_S)
    return Result(line, process.returncode, output, ""), seconds


def find_missing(cause: Cause, told: str) -> list[str]:
    return [pattern for pattern in cause.says if not re.search(pattern, told)]


def write_config(node: Node, config: dict[str, Any]) -> None:
    wishes = {"kb": {"podNetwork": {"plugin": "bridge"}, "soak": "2s"}, **config}
    kube_proxy = wishes.pop("kube_proxy", None)
    text = lab_config(VERSION, address=node.address, **wishes)
    if kube_proxy is not None:
        own = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", **kube_proxy}
        kept = [part for part in text.split("---\n") if "KubeProxyConfiguration" not in part]
        lines = "".join(f"{key}: {value}\n" for key, value in own.items())
        text = "---\n".join([*kept, lines])
    node.write("/root/init.yaml", text)


def take_back(node: Node) -> None:
    """The node as it was before an init, whatever that left."""
    if node.exists("/var/lib/kb/state.json"):
        done = node.run("python3 /root/kb.pyz reset --force", check=False, timeout=120)
        assert done.ok or "nothing-to-reset" in done.output, done.output
        node.run("rm -rf /var/lib/kb")
    # the rules of a kube-proxy that was well would serve the next cluster, and hide that its own programs none
    node.run("for t in nat filter mangle; do iptables -t $t -F; iptables -t $t -X; done")


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: re.sub(r"[^A-Za-z0-9_]+", "-", cause.name))
def test_the_cause_is_named(cp1: Node, cause: Cause) -> None:
    if cause.skip:
        pytest.skip(cause.skip)
    write_config(cp1, cause.config)
    if cause.command != "init":
        ensure_running_cluster(cp1)
    else:
        take_back(cp1)
    with cause.inject(cp1):
        result, seconds = run_kb(cp1, cause)
        note_result(cause, result, seconds)
        if cause.command == "init":
            take_back(cp1)
    assert result.code != 70 and bool(result.code) == cause.is_fatal, f"kb saw nothing wrong:\n{result.output}"
    told = find_telling(result.output)
    missing = find_missing(cause, told)
    assert not missing, f"{cause.name}: it does not say {missing}:\n{result.output}"
    if cause.code:
        assert re.search(rf"^  code: +({cause.code})$", result.output, re.MULTILINE), result.output
    if not cause.is_fatal:
        return  # told at the start, before the init that then does its work
    assert seconds < LIMIT_S, f"{cause.name}: named after {seconds:.1f} s only"


def find_telling(output: str) -> str:
    """The error that kb ends with; of doctor everything. What goes before may name half of the machine by chance."""
    at = output.rfind("\nerror: ")
    return output[at:] if at >= 0 else output


def ensure_running_cluster(node: Node) -> None:
    ok = node.run("python3 /root/kb.pyz status", check=False).stdout
    if "init/verify" in ok and re.search(r"init/verify\s+done", ok):
        return
    take_back(node)
    write_config(node, {})
    node.run(
        f"python3 /root/kb.pyz init --config /root/init.yaml --ignore-preflight-errors={shlex.quote(','.join(list_ignored_checks()))}",
        timeout=300,
    )


def note_result(cause: Cause, result: Result, seconds: float) -> None:
    """What kb said of each cause, to be read by people: tests/e2e/_logs/causes.txt."""
    LOGS.mkdir(exist_ok=True)
    with (LOGS / "causes.txt").open("a") as log:
        log.write(f"== {cause.name}: {seconds:.1f} s, exit {result.code}\n{find_telling(result.output)}\n\n")


# ---- --fix


@pytest.mark.parametrize("containerd", ["1.6", "1.7", "2.1"])
@pytest.mark.parametrize("config", ["no-cri", "default", "none", "debian"])
def test_fix_makes_containerd_fit(lab: Lab, kb_pyz: Path, containerd: str, config: str) -> None:
    """What a distribution, Docker's package or nobody configured becomes what a node needs; the old file is kept, and
    reset puts it back."""
    node = lab.add_node(
        f"fix{containerd.replace('.', '')}",
        version=VERSION,
        containerd=containerd,
        containerd_config=config,
        prepared=True,
    )
    try:
        node.scp(kb_pyz, "/root/kb.pyz")
        write_config(node, {"kb": {"runtime": {"fix": True}, "podNetwork": {"plugin": "none"}, "soak": "0s"}})
        before = node.run(f"cat {CONTAINERD} 2>/dev/null || echo none").stdout
        ignored = ",".join(list_ignored_checks())
        preflight = (
            f"python3 /root/kb.pyz init phase preflight --config /root/init.yaml --ignore-preflight-errors={ignored}"
        )
        told = node.run(preflight, timeout=200).output
        assert "fixed containerd's configuration and restarted it" in told
        dump = node.run("containerd config dump").stdout
        assert re.search(r"SystemdCgroup = true", dump)
        assert re.search(r"sandbox(_image)? = [\"']registry\.k8s\.io/pause:3\.10\.1", dump)
        again = node.run(preflight, timeout=200).output
        assert "fixed containerd" not in again
        node.run("python3 /root/kb.pyz reset --force", timeout=120)
        assert node.run(f"cat {CONTAINERD} 2>/dev/null || echo none").stdout == before
    finally:
        lab.remove_node(node)


# ---- support-bundle


def test_a_support_bundle_of_a_real_node_holds_no_secret(cp1: Node) -> None:
    ensure_running_cluster(cp1)
    token = cp1.run("python3 /root/kb.pyz token generate").stdout.strip()
    cp1.run(f"logger -t planted 'password: planted-pw {token}'; echo 'password: planted-pw' >/etc/default/kubelet")
    try:
        cp1.run("python3 /root/kb.pyz support-bundle --to /root/bundle.tar.gz", timeout=120)
        cp1.run("rm -rf /root/bundle && mkdir /root/bundle && tar -xzf /root/bundle.tar.gz -C /root/bundle")
        names = cp1.run("cd /root/bundle/* && find . -type f | sort").stdout.split()
        assert {"./doctor.json", "./kubelet/journal.txt", "./cluster/nodes.yaml", "./runtime/info.json"} <= set(names)
        assert any(name.startswith("./containers/kube-apiserver-") for name in names)
        assert cp1.run("stat -c %a /root/bundle.tar.gz").stdout.strip() == "600"
        secrets = ["planted-pw", token.partition(".")[2]]
        for path in ("pki/ca.key", "pki/sa.key", "pki/etcd/ca.key"):
            lines = cp1.read(f"/etc/kubernetes/{path}").splitlines()
            secrets += [lines[1], cp1.run(f"base64 -w0 /etc/kubernetes/{path}").stdout[:60]]
        secrets += re.findall(r"client-key-data: (\S{40})", cp1.read("/etc/kubernetes/admin.conf"))
        for secret in secrets:
            assert not cp1.run(["grep", "-rlF", "--", secret, "/root/bundle"], check=False).stdout, secret[:8]
        assert not cp1.run(["grep", "-rlE", "--", "PRIVATE KEY-----.?M", "/root/bundle"], check=False).stdout
    finally:
        cp1.run("rm -rf /etc/default/kubelet /root/bundle /root/bundle.tar.gz")
