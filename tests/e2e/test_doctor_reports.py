"""What broke other people's clusters on a later day: each fault of docs/doctor-reports.md is put on a real node at work,
and `kb doctor` must name its cause in its first finding within 20 seconds, and nothing else as a cause.

One table, FAULTS, and one lab of a control plane and a worker. A fault is a context: it breaks a node, waits until what it
breaks is broken, and puts it right again; then doctor must find nothing any more.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import LOGS, LabError
from .test_join_load_balancer import join

VERSION = "1.35"
LIMIT_S = 20.0
KB = "python3 /root/kb.pyz"
MANIFESTS = "/etc/kubernetes/manifests"
CONFIG = "/var/lib/kubelet/config.yaml"
CLIENT_PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
ALWAYS_TOLD = {"SystemVerification", "disk", "ContainerRuntimeVersion", "Hostname"}
"""What doctor says of every node of a lab: its kernel, its disk and its runtime are the same as this machine's."""


@dataclass(frozen=True)
class Cluster:
    """A control plane and a worker."""

    cp1: Node
    w1: Node


Context = Callable[[Cluster], "contextlib.AbstractContextManager[object]"]


@dataclass(frozen=True)
class Fault:
    """name: as in the table of docs/doctor-reports.md. on: the node where doctor is asked. says: what its first finding says, regular
    expressions."""

    name: str
    on: str
    inject: Context
    says: tuple[str, ...]
    level: str = "error"


# ---- ways to break something


@contextlib.contextmanager
def done(node: Node, do: str, undo: str) -> Iterator[None]:
    """A shell line, and the one that takes it back."""
    try:
        node.run(do, check=False)
        yield
    finally:
        node.run(undo)


@contextlib.contextmanager
def changed(
    node: Node, path: str, change: Callable[[str], str], *, after: str = "true", mode: int = 0o600
) -> Iterator[None]:
    """A file with another text; `after`: what makes it read, there and back."""
    good = node.read(path)
    bad = change(good)
    assert bad != good, f"{path} is as it was"
    try:
        node.write(path, bad, mode=mode)
        node.run(after, check=False)
        yield
    finally:
        node.write(path, good, mode=mode)
        node.run(after, check=False)


@contextlib.contextmanager
def away(node: Node, path: str, *, after: str = "true") -> Iterator[None]:
    """A file that is not in its place."""
    with done(node, f"mv {path} /root/away && {{ {after}; }}", f"mv /root/away {path} && {{ {after}; }}"):
        yield


def settles(what: str, is_so: Callable[[], Any], *, timeout_s: float = 90) -> None:
    wait_until(is_so, what=what, timeout_s=timeout_s, every_s=1)


RESTART_KUBELET = "systemctl reset-failed kubelet; systemctl restart kubelet"


def kubelet_config(node: Node, line: str) -> contextlib.AbstractContextManager[None]:
    """The kubelet's configuration with one line more, in the place of what it says of the same field."""
    field = line.partition(":")[0]

    def put(text: str) -> str:
        kept = re.sub(rf"(?m)^{field}:.*\n(?:[ -].*\n)*", "", text)
        return f"{kept.rstrip()}\n{line}\n"

    return changed(node, CONFIG, put, after=RESTART_KUBELET)


def has_ended(node: Node) -> bool:
    """Whether the kubelet ends whenever it is started."""
    return int(node.run("systemctl show kubelet -p NRestarts --value").stdout) >= 2


def is_ready(cluster: Cluster, name: str) -> bool:
    node = cluster.cp1.get(["node", name])
    conditions = node["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "somebody", "namespace": "default"},
    "spec": {
        "nodeName": "w1",
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "it", "image": "registry.k8s.io/pause:3.10.1"}],
    },
}


def put_pod(cluster: Cluster) -> None:
    cluster.cp1.kubectl("create -f -", stdin=json.dumps(POD))


def remove_pod(cluster: Cluster) -> None:
    cluster.cp1.kubectl("delete pod somebody --force --grace-period=0 --ignore-not-found", check=False)


def events_of_pod(cluster: Cluster) -> str:
    events = cluster.cp1.get("events -n default --field-selector involvedObject.name=somebody")["items"]
    return " ".join(f"{one['reason']}: {one['message']}" for one in events)


def pod_is_running(cluster: Cluster) -> bool:
    return bool(cluster.cp1.get("pod somebody")["status"].get("podIP"))


@contextlib.contextmanager
def pod_that_does_not_start(cluster: Cluster) -> Iterator[None]:
    """A pod on w1 which the kubelet has tried to start."""
    cluster.cp1.kubectl("-n default delete events --all", check=False)
    put_pod(cluster)
    try:
        settles("the pod to fail", lambda: "Failed" in events_of_pod(cluster), timeout_s=60)
        yield
    finally:
        remove_pod(cluster)


# ---- the kubelet and its files


def sign_ended(cluster: Cluster, cert_pem: str, *, authority: str = "/etc/kubernetes/pki/ca") -> str:
    """The same certificate, which ended an hour ago."""
    ca = x509.load_pem_x509_certificate(cluster.cp1.read(f"{authority}.crt").encode())
    key: Any = serialization.load_pem_private_key(cluster.cp1.read(f"{authority}.key").encode(), None)
    old = x509.load_pem_x509_certificate(cert_pem.encode())
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(ca.subject, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=365))
    builder = builder.not_valid_after(now - datetime.timedelta(hours=1))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@contextlib.contextmanager
def ended_client_certificate(cluster: Cluster) -> Iterator[None]:
    node = cluster.w1
    target = node.run(f"readlink -f {CLIENT_PEM}").stdout.strip()
    pem = node.read(target)
    key = pem[pem.index("-----BEGIN EC PRIVATE") if "BEGIN EC PRIVATE" in pem else pem.index("-----BEGIN PRIVATE") :]
    with changed(node, target, lambda text: sign_ended(cluster, text) + key, after=RESTART_KUBELET):
        settles("the kubelet to end", lambda: has_ended(node))
        yield


@contextlib.contextmanager
def empty_client_certificate(cluster: Cluster) -> Iterator[None]:
    target = cluster.w1.run(f"readlink -f {CLIENT_PEM}").stdout.strip()
    with changed(cluster.w1, target, lambda text: "", after=RESTART_KUBELET):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield


@contextlib.contextmanager
def kubelet_config_gone(cluster: Cluster) -> Iterator[None]:
    with away(cluster.w1, CONFIG, after=RESTART_KUBELET):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield


@contextlib.contextmanager
def kubeconfig_gone(cluster: Cluster) -> Iterator[None]:
    with away(cluster.w1, "/etc/kubernetes/kubelet.conf", after=RESTART_KUBELET):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield


@contextlib.contextmanager
def stopped_kubelet(cluster: Cluster) -> Iterator[None]:
    with done(cluster.w1, "systemctl stop kubelet", "systemctl start kubelet"):
        yield


@contextlib.contextmanager
def cpu_manager_state(cluster: Cluster) -> Iterator[None]:
    state = "/var/lib/kubelet/cpu_manager_state"
    with kubelet_config(cluster.w1, 'cpuManagerPolicy: static\nreservedSystemCPUs: "0"'):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield
    assert cluster.w1.exists(state)


@contextlib.contextmanager
def no_cgroup_for_the_system(cluster: Cluster) -> Iterator[None]:
    line = "enforceNodeAllocatable: [pods, system-reserved]\nsystemReservedCgroup: /system-reserved\nsystemReserved: {memory: 100Mi}"
    with kubelet_config(cluster.w1, line):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield


DROP_IN = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"


@contextlib.contextmanager
def drop_in_gone(cluster: Cluster) -> Iterator[None]:
    found = cluster.w1.run("systemctl show kubelet -p DropInPaths --value").stdout.split()
    with away(cluster.w1, found[0], after=f"systemctl daemon-reload; {RESTART_KUBELET}"):
        time.sleep(5)
        yield


@contextlib.contextmanager
def resolv_conf_gone(cluster: Cluster) -> Iterator[None]:
    """systemd-resolved was switched off, and its file went with it."""
    with kubelet_config(cluster.w1, "resolvConf: /run/systemd/resolve/resolv.conf"), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def foreign_client_ca(cluster: Cluster) -> Iterator[None]:
    """The kubelet asks for clients of another authority than the one that signs the API server's."""
    node, path = cluster.w1, "/etc/kubernetes/pki/ca.crt"
    node.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=kubernetes -days 99 -keyout /root/other.key -out /root/other.crt"
    )
    with changed(node, path, lambda text: node.read("/root/other.crt"), after=RESTART_KUBELET):
        time.sleep(5)
        yield


@contextlib.contextmanager
def foreign_ca_of_the_cluster(cluster: Cluster) -> Iterator[None]:
    node, path = cluster.w1, "/etc/kubernetes/kubelet.conf"
    node.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=kubernetes -days 99 -keyout /root/other.key -out /root/other.crt"
    )
    other = node.run("base64 -w0 /root/other.crt").stdout.strip()
    put = lambda text: re.sub(r"certificate-authority-data: \S+", f"certificate-authority-data: {other}", text)  # noqa: E731
    with changed(node, path, put, after=RESTART_KUBELET):
        time.sleep(8)
        yield


@contextlib.contextmanager
def wrong_node_ip(cluster: Cluster) -> Iterator[None]:
    put = lambda text: text.replace('ARGS="', 'ARGS="--node-ip=10.99.0.7 ')  # noqa: E731
    with changed(cluster.w1, "/var/lib/kubelet/kubeadm-flags.env", put, after=RESTART_KUBELET):
        time.sleep(8)
        yield


@contextlib.contextmanager
def wrong_cluster_dns(cluster: Cluster) -> Iterator[None]:
    with kubelet_config(cluster.w1, "clusterDNS: [10.96.0.99]"):
        yield


def read_bare(cluster: Cluster, what: str) -> dict[str, Any]:
    """An object as it could be created again."""
    found: dict[str, Any] = cluster.cp1.get(what)
    for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        found["metadata"].pop(key, None)
    found.pop("status", None)
    return found


@contextlib.contextmanager
def deleted_node(cluster: Cluster, spec: Optional[dict[str, Any]] = None) -> Iterator[None]:
    """spec: of another Node object that takes its place."""
    good = read_bare(cluster, "node w1")
    try:
        cluster.cp1.kubectl("delete node w1")
        if spec:
            cluster.cp1.kubectl("create -f -", stdin=json.dumps({**good, "spec": spec}))
            settles("w1 to be Ready", lambda: is_ready(cluster, "w1"))
        yield
    finally:
        cluster.cp1.kubectl("delete node w1 --ignore-not-found")
        cluster.cp1.kubectl("create -f -", stdin=json.dumps(good))
        settles("w1 to be back", lambda: is_ready(cluster, "w1"))


@contextlib.contextmanager
def other_pod_network(cluster: Cluster) -> Iterator[None]:
    """The node was deleted and has registered anew: it gets another podCIDR, and its pods keep the former."""
    with deleted_node(cluster, {"podCIDR": "10.244.77.0/24", "podCIDRs": ["10.244.77.0/24"]}):
        yield


@contextlib.contextmanager
def cloud_taint(cluster: Cluster) -> Iterator[None]:
    taint = "node.cloudprovider.kubernetes.io/uninitialized"
    try:
        cluster.cp1.kubectl(f"taint node w1 {taint}=true:NoSchedule")
        yield
    finally:
        cluster.cp1.kubectl(f"taint node w1 {taint}-")


@contextlib.contextmanager
def no_static_pods(cluster: Cluster) -> Iterator[None]:
    """The line staticPodPath was lost from the kubelet's configuration: what it ran from there ends."""
    put = lambda text: re.sub(r"(?m)^staticPodPath:.*\n", "", text)  # noqa: E731
    with changed(cluster.w1, CONFIG, put, after=RESTART_KUBELET):
        settles("the load balancer to end", lambda: is_gone(cluster.w1, "kb-load-balancer"))
        yield


@contextlib.contextmanager
def few_pods(cluster: Cluster) -> Iterator[None]:
    """w1 takes no more pods than it has, or three; a Deployment wants eight."""
    here = cluster.cp1.get("pods -A --field-selector spec.nodeName=w1")["items"]
    pause = POD["spec"]["containers"][0]["image"]  # type: ignore[index]
    with kubelet_config(cluster.w1, f"maxPods: {max(3, len(here))}"):
        settles("w1 to say so", lambda: cluster.cp1.get("node w1")["status"]["allocatable"]["pods"] != "110")
        try:
            cluster.cp1.kubectl(f"create deployment web --image={pause} --replicas=8")
            settles("a pod to find no place", lambda: "Too many pods" in tell_events(cluster))
            time.sleep(12)  # doctor leaves a new pod some time
            yield
        finally:
            cluster.cp1.kubectl("delete deployment web --ignore-not-found")
            settles("its pods to go", lambda: not cluster.cp1.get("pods -n default -l app=web")["items"])


def tell_events(cluster: Cluster) -> str:
    """What the scheduler says of pods of the default namespace that it cannot place."""
    events = cluster.cp1.get("events -n default --field-selector reason=FailedScheduling")["items"]
    return " ".join(one["message"] for one in events)


@contextlib.contextmanager
def no_host_name(cluster: Cluster) -> Iterator[None]:
    label = "kubernetes.io/hostname"
    try:
        cluster.cp1.kubectl(f"label node w1 {label}-")
        yield
    finally:
        cluster.cp1.kubectl(f"label node w1 {label}=w1 --overwrite")


# ---- the runtime and the pod network


@contextlib.contextmanager
def hanging_containerd(cluster: Cluster) -> Iterator[None]:
    with done(
        cluster.w1,
        "systemctl kill -s STOP --kill-whom=main containerd",
        "systemctl kill -s CONT --kill-whom=main containerd",
    ):
        yield


def containerd_unit(cluster: Cluster, line: str) -> contextlib.AbstractContextManager[None]:
    path = "/etc/systemd/system/containerd.service.d/99-limit.conf"
    restart = "systemctl daemon-reload; systemctl reset-failed containerd; timeout 60 systemctl restart containerd"
    return done(
        cluster.w1,
        f"mkdir -p {path.rpartition('/')[0]}; printf '[Service]\\n{line}\\n' >{path}; {restart}",
        f"rm {path}; {restart}; sleep 3",
    )


@contextlib.contextmanager
def few_files(cluster: Cluster) -> Iterator[None]:
    with containerd_unit(cluster, "LimitNOFILE=12"):
        time.sleep(10)
        yield


@contextlib.contextmanager
def left_by_another_network(cluster: Cluster) -> Iterator[None]:
    config = '{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni", "enable-debug": false}]}'
    path = "/etc/cni/net.d/05-cilium.conflist"
    with done(cluster.w1, f"echo '{config}' >{path}; sleep 1", f"rm {path}"), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def no_plugin(cluster: Cluster) -> Iterator[None]:
    folder = cluster.w1.run(
        "dirname $(ls /opt/cni/bin/bridge /usr/lib/cni/bridge 2>/dev/null | head -1)"
    ).stdout.strip()
    with away(cluster.w1, f"{folder}/bridge"), pod_that_does_not_start(cluster):
        yield


IPAM = "/run/kb/pod-addresses"


@contextlib.contextmanager
def no_address_left(cluster: Cluster) -> Iterator[None]:
    """Addresses that pods of former days never gave back."""
    fill = (
        f"d={IPAM}/kb-bridge; mkdir -p $d; p=$(grep -o '10.244.[0-9]*' /etc/cni/net.d/99-kb-bridge.conflist); "
        'for i in $(seq 1 254); do [ -e $d/$p.$i ] || { printf "gone\\r\\neth0" >$d/$p.$i; echo $d/$p.$i >>/root/filled; }; done'
    )
    with done(cluster.w1, fill, "xargs rm -f </root/filled; rm /root/filled"), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def full_log_folder(cluster: Cluster) -> Iterator[None]:
    """No inode is left for logs of pods."""
    do = "mount -t tmpfs -o size=4g,nr_inodes=12 tmpfs /var/log; mkdir -p /var/log/pods /var/log/containers; for i in $(seq 20); do touch /var/log/f$i; done"
    with done(cluster.w1, do, "umount -l /var/log"), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def route_lost(cluster: Cluster) -> Iterator[None]:
    """What keeps the routes of pods has stopped, and the route to the other node is gone."""
    route = cluster.w1.run("ip -4 route show | grep '^10.244' | grep via").stdout.strip().splitlines()[0]
    put_pod(cluster)
    settles("a pod", lambda: pod_is_running(cluster))
    try:
        with done(
            cluster.w1,
            f"systemctl stop kb-routes; ip route del {route}",
            "systemctl start kb-routes",
        ):
            yield
    finally:
        remove_pod(cluster)


@contextlib.contextmanager
def firewall_to_the_server(cluster: Cluster) -> Iterator[None]:
    rule = f"OUTPUT -p tcp -d {cluster.cp1.address} --dport 6443 -j DROP"
    with done(cluster.w1, f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@contextlib.contextmanager
def ufw(cluster: Cluster) -> Iterator[None]:
    """`ufw enable` with nothing allowed but ssh, on the control plane."""
    put_pod(cluster)
    settles("a pod", lambda: pod_is_running(cluster))
    rules = ("-i lo -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-p tcp --dport 22 -j ACCEPT")
    do = "; ".join([*(f"iptables -A INPUT {rule}" for rule in rules), "iptables -P INPUT DROP"])
    undo = "; ".join(["iptables -P INPUT ACCEPT", *(f"iptables -D INPUT {rule}" for rule in rules)])
    try:
        with done(cluster.cp1, do, undo):
            yield
    finally:
        remove_pod(cluster)


@contextlib.contextmanager
def no_runc(cluster: Cluster) -> Iterator[None]:
    where = cluster.w1.run("command -v runc").stdout.strip()
    with away(cluster.w1, where), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def plugins_not_executable(cluster: Cluster) -> Iterator[None]:
    """CNI plugins that were copied without their modes."""
    one = cluster.w1.run("ls /opt/cni/bin/bridge /usr/lib/cni/bridge 2>/dev/null | head -1", check=False).stdout
    files = f"{one.strip().rpartition('/')[0]}/*"
    with done(cluster.w1, f"chmod a-x {files}", f"chmod a+x {files}"), pod_that_does_not_start(cluster):
        yield


@contextlib.contextmanager
def vpn_routes(cluster: Cluster) -> Iterator[None]:
    """A VPN's client has set a route of its own to half of cp1's pod network."""
    half = cluster.cp1.get("node cp1")["spec"]["podCIDR"].replace("/24", "/25")
    up = "ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip link set vpn1 up"
    with done(cluster.w1, f"{up}; ip route add {half} dev vpn0", "ip link del vpn0"):
        yield


@contextlib.contextmanager
def dns_dropped_early(cluster: Cluster) -> Iterator[None]:
    """A rule of the table raw, which `iptables -S` does not show."""
    rule = "PREROUTING -p udp --dport 53 -j DROP"
    with done(cluster.w1, f"iptables -t raw -A {rule}", f"iptables -t raw -D {rule}"):
        yield


@contextlib.contextmanager
def kubelet_port_closed(cluster: Cluster) -> Iterator[None]:
    rules = (
        "nft add table inet guard; nft add chain inet guard input '{ type filter hook input priority 0; }'; "
        "nft add rule inet guard input tcp dport 10250 drop"
    )
    with done(cluster.w1, rules, "nft delete table inet guard"):
        yield


@contextlib.contextmanager
def balancer_gone(cluster: Cluster) -> Iterator[None]:
    with away(cluster.w1, f"{MANIFESTS}/kb-load-balancer.yaml"):
        settles("the load balancer to end", lambda: is_gone(cluster.w1, "kb-load-balancer"), timeout_s=60)
        yield


# ---- the control plane


def manifest(component: str) -> str:
    return f"{MANIFESTS}/{component}.yaml"


def is_gone(node: Node, component: str) -> bool:
    return not node.run(f"crictl ps -q --name {component}").stdout.strip()


def serves(cluster: Cluster) -> bool:
    return cluster.cp1.run("kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz", check=False).ok


@contextlib.contextmanager
def manifest_moved_away(cluster: Cluster, component: str = "kube-apiserver") -> Iterator[None]:
    """Taken out of the folder to restore etcd, as many instructions have it, and forgotten."""
    with away(cluster.cp1, manifest(component)):
        settles(f"{component} to end", lambda: is_gone(cluster.cp1, component))
        yield


@contextlib.contextmanager
def scheduler_moved_away(cluster: Cluster) -> Iterator[None]:
    with manifest_moved_away(cluster, "kube-scheduler"):
        yield


@contextlib.contextmanager
def empty_manifest(cluster: Cluster) -> Iterator[None]:
    """What a full disk or a power failure leaves of a file that was being written."""
    with changed(cluster.cp1, manifest("kube-scheduler"), lambda text: ""):
        settles("the scheduler to end", lambda: is_gone(cluster.cp1, "kube-scheduler"))
        yield


@contextlib.contextmanager
def torn_yaml(cluster: Cluster) -> Iterator[None]:
    put = lambda text: text.replace("    - --leader-elect=true\n", "\t- --leader-elect=true\n")  # noqa: E731
    with changed(cluster.cp1, manifest("kube-controller-manager"), put):
        settles("the controller-manager to end", lambda: is_gone(cluster.cp1, "kube-controller-manager"))
        yield


@contextlib.contextmanager
def flag_names_a_lost_file(cluster: Cluster) -> Iterator[None]:
    """The audit policy of an API server was deleted; it shows at its next start."""
    flag = "    - --audit-policy-file=/etc/kubernetes/pki/audit-policy.yaml\n"
    put = lambda text: text.replace("    - --allow-privileged=true\n", f"    - --allow-privileged=true\n{flag}")  # noqa: E731
    with changed(cluster.cp1, manifest("kube-apiserver"), put):
        ended = "crictl ps -aq --state exited --name kube-apiserver"
        settles(
            "the API server to end twice",
            lambda: len(cluster.cp1.run(ended).stdout.split()) >= 2 and not serves(cluster),
        )
        time.sleep(5)
        yield
    settles("the API server to serve", lambda: serves(cluster))


@contextlib.contextmanager
def node_authorizer_gone(cluster: Cluster) -> Iterator[None]:
    put = lambda text: text.replace("--authorization-mode=Node,RBAC", "--authorization-mode=RBAC")  # noqa: E731
    with changed(cluster.cp1, manifest("kube-apiserver"), put):
        settles(
            "the API server to be restarted",
            lambda: "mode=RBAC" in cluster.cp1.run("pgrep -af '^kube-apiserver'", check=False).stdout,
        )
        settles("the API server to serve", lambda: serves(cluster))
        for name in ("kube-scheduler", "kube-controller-manager"):
            settles(f"{name} to lead again", lambda name=name: is_led(cluster, name))  # type: ignore[misc]
        yield
    settles(
        "the API server to be restarted",
        lambda: "mode=Node" in cluster.cp1.run("pgrep -af '^kube-apiserver'", check=False).stdout,
    )
    settles("the API server to serve", lambda: serves(cluster))


PKI = "/etc/kubernetes/pki"


@contextlib.contextmanager
def foreign_service_account_key(cluster: Cluster) -> Iterator[None]:
    """The API server's key of service accounts was made anew; pods still have tokens of the other one."""
    node = cluster.cp1
    pair = f"{PKI}/sa.key {PKI}/sa.pub"
    again = "crictl stop $(crictl ps -q --name kube-apiserver)"
    do = f"mkdir /root/sa && cp -a {pair} /root/sa/ && openssl genrsa -out {PKI}/sa.key 2048 && openssl rsa -in {PKI}/sa.key -pubout -out {PKI}/sa.pub; {again}"
    try:
        with done(node, do, f"cp -a /root/sa/* {PKI}/; rm -r /root/sa; {again}; true"):
            settles("the API server to serve", lambda: serves(cluster))
            time.sleep(15)
            yield
    finally:
        settles("the API server to serve", lambda: serves(cluster))


@contextlib.contextmanager
def ended_server_certificate(cluster: Cluster) -> Iterator[None]:
    with changed(
        cluster.cp1,
        f"{PKI}/apiserver.crt",
        lambda text: sign_ended(cluster, text),
        after="crictl stop $(crictl ps -q --name kube-apiserver); sleep 10",
        mode=0o644,
    ):
        yield
    settles("the API server to serve", lambda: serves(cluster))


@contextlib.contextmanager
def ended_etcd_certificate(cluster: Cluster) -> Iterator[None]:
    path = f"{PKI}/apiserver-etcd-client.crt"
    with changed(
        cluster.cp1,
        path,
        lambda text: sign_ended(cluster, text, authority=f"{PKI}/etcd/ca"),
        after="crictl stop $(crictl ps -q --name kube-apiserver); sleep 20",
        mode=0o644,
    ):
        yield
    settles("the API server to serve", lambda: serves(cluster))


@contextlib.contextmanager
def ended_identity_of_the_controllers(cluster: Cluster) -> Iterator[None]:
    def put(text: str) -> str:
        found = re.search(r"client-certificate-data: (\S+)", text)
        assert found
        ended = sign_ended(cluster, base64.b64decode(found[1]).decode())
        return text.replace(found[1], base64.b64encode(ended.encode()).decode())

    with changed(
        cluster.cp1,
        "/etc/kubernetes/controller-manager.conf",
        put,
        after="crictl stop $(crictl ps -q --name kube-controller-manager); sleep 25",
    ):
        yield


ETCD = f"etcdctl --endpoints https://127.0.0.1:2379 --cacert {PKI}/etcd/ca.crt --cert {PKI}/etcd/server.crt --key {PKI}/etcd/server.key"
CURL_ETCD = f"curl -sf --cacert {PKI}/etcd/ca.crt --cert {PKI}/etcd/server.crt --key {PKI}/etcd/server.key https://127.0.0.1:2379"


@contextlib.contextmanager
def etcd_out_of_quota(cluster: Cluster) -> Iterator[None]:
    """etcd's alarm NOSPACE, as etcd itself raises it: nothing can be written any more."""

    def alarm(action: str) -> str:
        body = json.dumps({"action": action, "memberID": "0", "alarm": "NOSPACE"})
        member = (
            f"$({CURL_ETCD}/v3/maintenance/status -X POST -d '{{}}' | sed 's/.*\"member_id\":\"\\([0-9]*\\)\".*/\\1/')"
        )
        return f"{CURL_ETCD}/v3/maintenance/alarm -X POST -d '{body}'".replace('"0"', f"\"'{member}'\"")

    with done(cluster.cp1, alarm("ACTIVATE"), alarm("DEACTIVATE")):
        yield


@contextlib.contextmanager
def damaged_wal(cluster: Cluster) -> Iterator[None]:
    """A block of etcd's write-ahead log that a failing disk gives back as something else: a record that is none, or one of another checksum."""
    node = cluster.cp1
    stop = f'mv {manifest("etcd")} /root/etcd.yaml; for i in $(seq 60); do [ -z "$(crictl ps -q --name etcd)" ] && break; sleep 1; done'
    start = f"mv /root/etcd.yaml {manifest('etcd')}"
    harm = "cp -a /var/lib/etcd /root/etcd.good; f=$(ls /var/lib/etcd/member/wal/*.wal | tail -1); dd if=/dev/urandom of=$f bs=1 seek=20000 count=400 conv=notrunc status=none"
    heal = "rm -rf /var/lib/etcd/* && cp -a /root/etcd.good/. /var/lib/etcd/ && rm -r /root/etcd.good"  # the folder may still be mounted
    with done(node, f"{stop}; {harm}; {start}", f"{stop}; {heal}; {start}"):
        settles(
            "etcd to end",
            lambda: "etcd" in node.run("crictl ps -a --state exited --name etcd", check=False).stdout,
            timeout_s=60,
        )
        time.sleep(3)
        yield
    settles("the API server to serve", lambda: serves(cluster), timeout_s=180)
    wait_control_plane(cluster)  # its connections to etcd come back one by one, each after a delay of its own


def stop_container(name: str) -> str:
    """The shell's words that end a container of the control plane: its kubelet starts it again."""
    return f"crictl stop $(crictl ps -q --name {name})"


def wait_control_plane(cluster: Cluster) -> None:
    """Until the API server serves, and both controllers lead again."""
    settles("the API server to serve", lambda: serves(cluster))
    for name in ("kube-scheduler", "kube-controller-manager"):
        settles(f"{name} to lead", lambda name=name: is_led(cluster, name))  # type: ignore[misc]


@contextlib.contextmanager
def foreign_kubelet_client(cluster: Cluster) -> Iterator[None]:
    """The API server's certificate for kubelets was made by hand, with a user whom nobody has given any right."""
    path, names = f"{PKI}/apiserver-kubelet-client", "extendedKeyUsage=clientAuth"
    cluster.cp1.run(
        f"cd /root && echo {names} >names && openssl req -new -key {path}.key -subj /CN=apiserver.example.com -out request && "
        f"openssl x509 -req -in request -CA {PKI}/ca.crt -CAkey {PKI}/ca.key -CAserial /root/serial -CAcreateserial -days 365 -extfile names -out other-client.crt"
    )
    other = cluster.cp1.read("/root/other-client.crt")
    with changed(cluster.cp1, f"{path}.crt", lambda _: other, after=stop_container("kube-apiserver"), mode=0o644):
        wait_control_plane(cluster)
        yield
    wait_control_plane(cluster)


def says_of_itself(cluster: Cluster, component: str, word: str) -> bool:
    """Whether the mirror pod of cp1's component has this word."""
    return word in cluster.cp1.kubectl(f"-n kube-system get pod {component}-cp1 -o json", check=False)


@contextlib.contextmanager
def controller_switched_off(cluster: Cluster) -> Iterator[None]:
    name, flag = "kube-controller-manager", "-endpointslice-controller"
    put = lambda text: text.replace("--controllers=*,", f"--controllers=*,{flag},")  # noqa: E731
    with changed(cluster.cp1, manifest(name), put):
        settles("it to be restarted", lambda: runs_with(cluster, name, flag))
        settles("its pod to say so", lambda: says_of_itself(cluster, name, flag))
        settles("it to lead", lambda: is_led(cluster, name))
        yield
    settles("it to be restarted", lambda: not runs_with(cluster, name, flag))


@contextlib.contextmanager
def exchanged_encryption_key(cluster: Cluster) -> Iterator[None]:
    """Secrets were encrypted at rest with a key that somebody has exchanged for another one. It shows at the API server's next start."""
    node, path = cluster.cp1, f"{PKI}/encryption.json"
    flag = f"    - --encryption-provider-config={path}\n"
    put = lambda text: text.replace("    - --allow-privileged=true\n", f"    - --allow-privileged=true\n{flag}")  # noqa: E731
    node.write(path, encryption(1), mode=0o600)
    with changed(node, manifest("kube-apiserver"), put):
        settles("the API server to be restarted", lambda: runs_with(cluster, "kube-apiserver", path))
        wait_control_plane(cluster)
        other = changed(node, path, lambda _: encryption(2), after=stop_container("kube-apiserver"))
        with encrypted_secret(cluster) as read, other:
            is_unreadable = lambda: "Internal error" in node.run(f"{read} 2>&1", check=False).stdout  # noqa: E731
            settles("the Secret to be unreadable", is_unreadable)
            yield
    settles("the API server to be restarted", lambda: not runs_with(cluster, "kube-apiserver", path))
    wait_control_plane(cluster)
    node.run(f"rm {path}")


@contextlib.contextmanager
def encrypted_secret(cluster: Cluster) -> Iterator[str]:
    """A Secret of the default namespace, written through cp1's own API server: the line that reads it there. It goes once it can be read again."""
    direct = f"--server https://{cluster.cp1.address}:6443 -n default"
    cluster.cp1.kubectl(f"{direct} create secret generic somebody --from-literal=a=b")
    try:
        yield f"kubectl --kubeconfig /etc/kubernetes/admin.conf {direct} get secret somebody"
    finally:
        wait_control_plane(cluster)
        cluster.cp1.kubectl(f"{direct} delete secret somebody")


def encryption(number: int) -> str:
    """An EncryptionConfiguration of Secrets with a key that is this number's alone."""
    key = {"name": "key1", "secret": base64.b64encode(bytes([number]) * 32).decode()}
    providers: list[Any] = [{"aescbc": {"keys": [key]}}, {"identity": {}}]
    return json.dumps(
        {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{"resources": ["secrets"], "providers": providers}],
        }
    )


@contextlib.contextmanager
def empty_kubeconfig(cluster: Cluster) -> Iterator[None]:
    """What a full disk leaves of scheduler.conf; it shows at the scheduler's next start."""
    node, name = cluster.cp1, "kube-scheduler"
    with changed(node, "/etc/kubernetes/scheduler.conf", lambda _: "", after=stop_container(name)):
        settles("the scheduler to end", lambda: node.run(f"crictl ps -aq --state exited --name {name}").stdout.strip())
        settles("the scheduler to end again", lambda: is_gone(cluster.cp1, name))
        yield
    forget_delays(node)
    settles("the scheduler to lead", lambda: is_led(cluster, name))


# ---- what is stored in the cluster


@contextlib.contextmanager
def without_object(cluster: Cluster, kind: str, name: str, *, after: str = "true") -> Iterator[None]:
    found = read_bare(cluster, f"-n kube-system {kind} {name}")
    cluster.cp1.kubectl(f"-n kube-system delete {kind} {name}")
    try:
        cluster.cp1.run(after, check=False)
        yield
    finally:
        cluster.cp1.kubectl("create -f -", stdin=json.dumps(found))
        cluster.cp1.run(after, check=False)


RESTART_DNS = "KUBECONFIG=/etc/kubernetes/admin.conf kubectl -n kube-system delete pods -l k8s-app=kube-dns --now"
RESTART_PROXY = "KUBECONFIG=/etc/kubernetes/admin.conf kubectl -n kube-system delete pods -l k8s-app=kube-proxy --now"


@contextlib.contextmanager
def dns_may_not_read(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "clusterrolebinding", "system:coredns", after=RESTART_DNS):
        time.sleep(20)
        yield


@contextlib.contextmanager
def proxy_may_not_read(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "clusterrolebinding", "kubeadm:node-proxier", after=RESTART_PROXY):
        time.sleep(20)
        yield


@contextlib.contextmanager
def dns_service_gone(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "service", "kube-dns"):
        time.sleep(5)
        yield


@contextlib.contextmanager
def proxy_gone(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "daemonset", "kube-proxy"):
        settles("kube-proxy to end", lambda: is_gone(cluster.cp1, "kube-proxy") and is_gone(cluster.w1, "kube-proxy"))
        yield


@contextlib.contextmanager
def patched(
    cluster: Cluster, what: str, change: Callable[[dict[str, Any]], None], *, after: str = "true"
) -> Iterator[None]:
    """An object of kube-system with another text."""
    good = cluster.cp1.get(f"-n kube-system {what}")
    bad = json.loads(json.dumps(good))
    change(bad)

    def put(item: dict[str, Any]) -> None:
        item["metadata"].pop("resourceVersion", None)
        cluster.cp1.kubectl("replace -f -", stdin=json.dumps(item))
        cluster.cp1.run(after, check=False)

    try:
        put(bad)
        yield
    finally:
        put(good)


@contextlib.contextmanager
def dns_selects_nobody(cluster: Cluster) -> Iterator[None]:
    with patched(cluster, "service kube-dns", lambda item: item["spec"].update(selector={"k8s-app": "coredns"})):
        time.sleep(5)
        yield


@contextlib.contextmanager
def corefile_with_an_error(cluster: Cluster) -> Iterator[None]:
    def put(item: dict[str, Any]) -> None:
        item["data"]["Corefile"] = item["data"]["Corefile"].replace(
            "    loop\n", "    loop\n    proxy . /etc/resolv.conf\n"
        )

    with patched(cluster, "configmap coredns", put, after=RESTART_DNS):
        time.sleep(12)
        yield


@contextlib.contextmanager
def proxy_with_a_wrong_mode(cluster: Cluster) -> Iterator[None]:
    def put(item: dict[str, Any]) -> None:
        text = item["data"]["config.conf"]
        item["data"]["config.conf"] = (
            re.sub(r"(?m)^mode:.*$", "mode: iptabels", text) if "\nmode:" in text else f"{text}mode: iptabels\n"
        )

    def list_proxies(*words: str) -> set[str]:
        return set(cluster.cp1.run(f"crictl ps -q --name kube-proxy {' '.join(words)}").stdout.split())

    before = list_proxies("-a")
    with patched(cluster, "configmap kube-proxy", put, after=RESTART_PROXY):
        settles("the new kube-proxy to end", lambda: list_proxies("-a", "--state", "exited") - before)
        time.sleep(3)
        yield


@contextlib.contextmanager
def proxy_on_no_node(cluster: Cluster) -> Iterator[None]:
    def put(item: dict[str, Any]) -> None:
        item["spec"]["template"]["spec"]["nodeSelector"]["example.org/none"] = "true"

    with patched(cluster, "daemonset kube-proxy", put):
        settles("kube-proxy to end", lambda: is_gone(cluster.cp1, "kube-proxy") and is_gone(cluster.w1, "kube-proxy"))
        yield


@contextlib.contextmanager
def created(cluster: Cluster, item: dict[str, Any], *, for_s: float, remove: str = "") -> Iterator[None]:
    """An object that was not there, for so long before doctor is asked. remove: more words for kubectl delete."""
    meta = item["metadata"]
    cluster.cp1.kubectl("create -f -", stdin=json.dumps(item))
    try:
        time.sleep(for_s)
        yield
    finally:
        cluster.cp1.kubectl(f"-n {meta['namespace']} delete {item['kind'].lower()} {meta['name']} {remove}".strip())


def new_pod(cluster: Cluster, **spec: str) -> contextlib.AbstractContextManager[None]:
    """A pod of the default namespace, of an image that every node has."""
    image = cluster.w1.run("crictl images | awk '/pause/ {print $1\":\"$2; exit}'").stdout.strip()
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "newcomer", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": image}], **spec},
    }  # fmt: skip
    return created(cluster, pod, for_s=15, remove="--now")


@contextlib.contextmanager
def scheduler_for_others_only(cluster: Cluster) -> Iterator[None]:
    config = "/etc/kubernetes/scheduler-config.yaml"
    text = {
        "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": "/etc/kubernetes/scheduler.conf"}, "profiles": [{"schedulerName": "batch"}],
    }  # fmt: skip
    cluster.cp1.write(config, json.dumps(text))

    def put(manifest_text: str) -> str:
        flagged = manifest_text.replace("    - kube-scheduler\n", f"    - kube-scheduler\n    - --config={config}\n", 1)
        return flagged.replace("/etc/kubernetes/scheduler.conf\n      name", "/etc/kubernetes\n      name").replace(
            "      path: /etc/kubernetes/scheduler.conf\n      type: FileOrCreate",
            "      path: /etc/kubernetes\n      type: Directory",
        )

    with changed(cluster.cp1, manifest("kube-scheduler"), put):
        settles("the scheduler to be restarted", lambda: runs_with(cluster, "kube-scheduler", config))
        settles("it to lead", lambda: is_led(cluster, "kube-scheduler"))
        with new_pod(cluster):
            yield
    settles("the scheduler to be restarted", lambda: not runs_with(cluster, "kube-scheduler", config))


def runs_with(cluster: Cluster, name: str, word: str) -> bool:
    """Whether a component of cp1 runs with this in its arguments."""
    lines = cluster.cp1.run(f"pgrep -af '^{name}'", check=False).stdout.splitlines()
    return any(word in line for line in lines)


def is_led(cluster: Cluster, name: str) -> bool:
    """Whether the component's lease was renewed within the last seconds."""
    lease = cluster.cp1.get(f"-n kube-system lease {name}")
    renewed = datetime.datetime.fromisoformat(lease["spec"]["renewTime"].replace("Z", "+00:00"))
    return (datetime.datetime.now(datetime.timezone.utc) - renewed).total_seconds() < 5


@contextlib.contextmanager
def always_pulls(cluster: Cluster) -> Iterator[None]:
    put = lambda text: text.replace("--enable-admission-plugins=", "--enable-admission-plugins=AlwaysPullImages,")  # noqa: E731
    with changed(cluster.cp1, manifest("kube-apiserver"), put):
        settles("the API server to be restarted", lambda: runs_with(cluster, "kube-apiserver", "AlwaysPull"))
        settles("the API server to serve", lambda: serves(cluster))
        forget_delays(cluster.cp1)
        settles("the scheduler to lead", lambda: is_led(cluster, "kube-scheduler"))
        with new_pod(cluster, nodeName="w1"):
            yield
    settles("the API server to be restarted", lambda: not runs_with(cluster, "kube-apiserver", "AlwaysPull"))
    settles("the API server to serve", lambda: serves(cluster))


@contextlib.contextmanager
def certificate_without_the_services_names(cluster: Cluster) -> Iterator[None]:
    names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:{cluster.cp1.address}\\nextendedKeyUsage=serverAuth\\n"
    do = (
        f"cd {PKI} && cp -p apiserver.crt /root/good.crt && printf '{names}' >/tmp/names && "
        "openssl req -new -key apiserver.key -subj /CN=kube-apiserver -out /tmp/request && "
        "openssl x509 -req -in /tmp/request -CA ca.crt -CAkey ca.key -days 365 -extfile /tmp/names -out /tmp/bad.crt && "
        "cat /tmp/bad.crt >apiserver.crt; rm -f ca.srl; sleep 75"
    )
    with done(cluster.cp1, do, f"cat /root/good.crt >{PKI}/apiserver.crt; sleep 75"):
        yield


def quota(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    item = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "everybody", "namespace": "kube-system"},
        "spec": {"hard": {"limits.memory": "8Gi", "limits.cpu": "4"}},
    }  # fmt: skip
    return created(cluster, item, for_s=3)


@contextlib.contextmanager
def restricted(cluster: Cluster) -> Iterator[None]:
    """Pod security is enforced on every namespace, kube-system too."""
    label = "pod-security.kubernetes.io/enforce"
    cluster.cp1.kubectl(f"label namespace kube-system {label}=restricted")
    try:
        cluster.cp1.kubectl("-n kube-system delete pods -l k8s-app=kube-proxy --now")
        settles("kube-proxy to end", lambda: is_gone(cluster.cp1, "kube-proxy"))
        yield
    finally:
        cluster.cp1.kubectl(f"label namespace kube-system {label}-")
        settles("kube-proxy to be back", lambda: not is_gone(cluster.cp1, "kube-proxy"), timeout_s=240)


@contextlib.contextmanager
def admin_without_rights(cluster: Cluster) -> Iterator[None]:
    node = cluster.cp1
    admin = "kubectl --kubeconfig /etc/kubernetes/super-admin.conf"
    name = "kubeadm:cluster-admins"
    with done(
        node,
        f"{admin} get clusterrolebinding {name} -o yaml | grep -vE 'uid|resourceVersion|creationTimestamp' >/root/binding.yaml; {admin} delete clusterrolebinding {name}",
        f"{admin} create -f /root/binding.yaml",
    ):
        time.sleep(2)
        yield


@contextlib.contextmanager
def scheduler_without_rights(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "clusterrolebinding", "system:kube-scheduler", after=stop_container("kube-scheduler")):
        settles("the scheduler to be back", lambda: not is_gone(cluster.cp1, "kube-scheduler"))
        time.sleep(10)
        yield
    settles("the scheduler to lead", lambda: is_led(cluster, "kube-scheduler"))


@contextlib.contextmanager
def dns_of_another_zone(cluster: Cluster) -> Iterator[None]:
    def put(item: dict[str, Any]) -> None:
        item["data"]["Corefile"] = item["data"]["Corefile"].replace("kubernetes cluster.local", "kubernetes prod.local")

    with patched(cluster, "configmap coredns", put, after=RESTART_DNS):
        cluster.cp1.wait_pods_ready("kube-system", "k8s-app=kube-dns")
        yield


@contextlib.contextmanager
def proxy_calls_nobody(cluster: Cluster) -> Iterator[None]:
    def put(item: dict[str, Any]) -> None:
        text = item["data"]["kubeconfig.conf"]
        item["data"]["kubeconfig.conf"] = text.replace(":7443", ":7444")

    with patched(cluster, "configmap kube-proxy", put, after=RESTART_PROXY):
        cluster.cp1.wait_pods_ready("kube-system", "k8s-app=kube-proxy")
        yield


@contextlib.contextmanager
def all_tainted(cluster: Cluster) -> Iterator[None]:
    try:
        cluster.cp1.kubectl("taint nodes --all maintenance=yes:NoSchedule")
        with new_pod(cluster):
            yield
    finally:
        cluster.cp1.kubectl("taint nodes --all maintenance-")


def small_limit(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    item = {
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small", "namespace": "kube-system"},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": "1m"}}]},
    }  # fmt: skip
    return created(cluster, item, for_s=3)


@contextlib.contextmanager
def policy_for_pods(cluster: Cluster) -> Iterator[None]:
    """A policy for everybody's pods that forgets the cluster's own."""
    kind, version, meta = "ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", {"name": "team"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    validation = {"expression": "'team' in object.metadata.?labels.orValue({})", "message": "pods need a label team"}
    policy = {
        "apiVersion": version, "kind": kind, "metadata": meta,
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]},
    }  # fmt: skip
    binding = {
        "apiVersion": version, "kind": f"{kind}Binding", "metadata": meta,
        "spec": {"policyName": "team", "validationActions": ["Deny"]},
    }  # fmt: skip
    try:
        for item in (policy, binding):
            cluster.cp1.kubectl("create -f -", stdin=json.dumps(item))
        settles("it to bar pods", lambda: not may_make_pods(cluster))
        yield
    finally:
        cluster.cp1.kubectl("delete validatingadmissionpolicybinding,validatingadmissionpolicy team --ignore-not-found")


def may_make_pods(cluster: Cluster) -> bool:
    line = "kubectl --kubeconfig /etc/kubernetes/admin.conf create --dry-run=server -f -"
    return cluster.cp1.run(line, stdin=json.dumps(POD), check=False).ok


@contextlib.contextmanager
def slow_webhook(cluster: Cluster) -> Iterator[None]:
    """A webhook that may fail, and is waited for: a firewall drops what is sent to it."""
    with done(cluster.w1, f"iptables -I {NINE}", f"iptables -D {NINE}"):
        try:
            for item in make_webhook(cluster):
                cluster.cp1.kubectl("create -f -", stdin=json.dumps(item))
            time.sleep(5)
            yield
        finally:
            cluster.cp1.kubectl("delete mutatingwebhookconfiguration slow --ignore-not-found")
            cluster.cp1.kubectl("-n default delete service,endpointslice slow --ignore-not-found")


NINE = "INPUT -p tcp --dport 9443 -j DROP"


def make_webhook(cluster: Cluster) -> list[dict[str, Any]]:
    """The Service, where it leads to, and the webhook for pods that calls it."""
    bundle = cluster.cp1.run(f"base64 -w0 {PKI}/ca.crt").stdout.strip()
    meta = {"name": "slow", "namespace": "default"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    hook = {
        "name": "slow.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore", "timeoutSeconds": 10, "rules": [rule],
        "clientConfig": {"service": meta, "caBundle": bundle},
    }  # fmt: skip
    ports = [{"port": 443, "targetPort": 9443}]
    labelled = {**meta, "labels": {"kubernetes.io/service-name": "slow"}}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": labelled, "addressType": "IPv4",
            "endpoints": [{"addresses": [cluster.w1.address]}], "ports": [{"port": 9443, "protocol": "TCP"}],
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "slow"}, "webhooks": [hook],
        },
    ]  # fmt: skip


@contextlib.contextmanager
def forwarding_off(cluster: Cluster) -> Iterator[None]:
    with done(cluster.w1, "sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv4.ip_forward=1"):
        yield


@contextlib.contextmanager
def no_approval(cluster: Cluster) -> Iterator[None]:
    with without_object(cluster, "clusterrolebinding", "kubeadm:node-autoapprove-certificate-rotation"):
        yield


@contextlib.contextmanager
def wrong_cluster_domain(cluster: Cluster) -> Iterator[None]:
    with kubelet_config(cluster.w1, "clusterDomain: prod.local"):
        yield


@contextlib.contextmanager
def kernel_settings(cluster: Cluster) -> Iterator[None]:
    """A hardening guide's protectKernelDefaults, on a machine whose settings a kubelet without it had made. They are the whole machine's."""
    former = cluster.w1.run("sysctl -n kernel.panic").stdout.strip()
    other = done(cluster.w1, "sysctl -w kernel.panic=0", f"sysctl -w kernel.panic={former}")
    with other, kubelet_config(cluster.w1, "protectKernelDefaults: true"):
        settles("the kubelet to end", lambda: has_ended(cluster.w1))
        yield


@contextlib.contextmanager
def foreign_conf_dir(cluster: Cluster) -> Iterator[None]:
    """A configuration of containerd that looks for CNI configurations where another network had them."""
    table = '[plugins."io.containerd.grpc.v1.cri".cni]\n  conf_dir = "/etc/cni/multus.d"\n'
    path = "/etc/containerd/config.toml"
    with changed(cluster.w1, path, lambda text: f"{text.rstrip()}\n{table}", after="systemctl restart containerd"):
        settles("w1 to be NotReady", lambda: not is_ready(cluster, "w1"))
        yield


@contextlib.contextmanager
def no_cluster_info(cluster: Cluster) -> Iterator[None]:
    kept = read_bare(cluster, "configmap cluster-info -n kube-public")
    cluster.cp1.kubectl("delete configmap cluster-info -n kube-public")
    try:
        yield
    finally:
        cluster.cp1.kubectl("create -f -", stdin=json.dumps(kept))


FAULTS = (
    Fault("kubelet certificate ended", "w1", ended_client_certificate, ("expired",)),
    Fault("kubelet certificate empty", "w1", empty_client_certificate, ("kubelet-client",)),
    Fault("kubelet config gone", "w1", kubelet_config_gone, (r"config\.yaml",)),
    Fault("kubelet.conf gone", "w1", kubeconfig_gone, (r"kubelet\.conf",)),
    Fault("kubelet stopped", "w1", stopped_kubelet, ("stopped",)),
    Fault("cpu manager state", "w1", cpu_manager_state, ("cpu_manager_state",)),
    Fault("system-reserved cgroup", "w1", no_cgroup_for_the_system, ("system-reserved",)),
    Fault("drop-in gone", "w1", drop_in_gone, ("kubeconfig",)),
    Fault("resolv.conf gone", "w1", resolv_conf_gone, (r"/run/systemd/resolve/resolv\.conf",)),
    Fault("foreign client CA", "w1", foreign_client_ca, (r"ca\.crt",)),
    Fault("foreign cluster CA", "w1", foreign_ca_of_the_cluster, (r"kubelet\.conf",)),
    Fault("wrong node-ip", "w1", wrong_node_ip, (r"10\.99\.0\.7",)),
    Fault("wrong clusterDNS", "w1", wrong_cluster_dns, (r"10\.96\.0\.99",)),
    Fault("node deleted", "w1", deleted_node, ("deleted",)),
    Fault("other pod network", "w1", other_pod_network, (r"10\.244\.77\.0/24", r"99-kb-bridge|have addresses of")),
    Fault("cloud taint", "w1", cloud_taint, ("uninitialized",)),
    Fault("containerd hangs", "w1", hanging_containerd, ("containerd",)),
    Fault("few files", "w1", few_files, ("LimitNOFILE|open files",)),
    Fault("left by another network", "w1", left_by_another_network, (r"05-cilium\.conflist", "cilium-cni")),
    Fault("no plugin", "w1", no_plugin, ("bridge",)),
    Fault("no address left", "w1", no_address_left, ("addresses",)),
    Fault("full log folder", "w1", full_log_folder, ("/var/log", "inodes")),
    Fault("route lost", "w1", route_lost, ("route",)),
    Fault("firewall to the server", "w1", firewall_to_the_server, ("6443",)),
    Fault("ufw", "cp1", ufw, ("INPUT",)),
    Fault("balancer gone", "w1", balancer_gone, ("load balancer",)),
    Fault("apiserver manifest moved away", "cp1", manifest_moved_away, (r"kube-apiserver\.yaml",)),
    Fault("scheduler manifest moved away", "cp1", scheduler_moved_away, (r"kube-scheduler\.yaml",)),
    Fault("empty manifest", "cp1", empty_manifest, (r"kube-scheduler\.yaml", "empty")),
    Fault("torn yaml", "cp1", torn_yaml, (r"kube-controller-manager\.yaml",)),
    Fault("lost audit policy", "cp1", flag_names_a_lost_file, (r"audit-policy\.yaml",)),
    Fault("node authorizer gone", "cp1", node_authorizer_gone, ("authorization-mode",)),
    Fault("foreign sa key", "cp1", foreign_service_account_key, (r"sa\.(key|pub)",)),
    Fault("ended server certificate", "cp1", ended_server_certificate, (r"apiserver\.crt expired",)),
    Fault("ended etcd client certificate", "cp1", ended_etcd_certificate, (r"apiserver-etcd-client\.crt expired",)),
    Fault(
        "ended identity of the controllers",
        "cp1",
        ended_identity_of_the_controllers,
        (r"controller-manager\.conf expired",),
    ),
    Fault("etcd out of quota", "cp1", etcd_out_of_quota, ("NOSPACE",)),
    Fault("damaged wal", "cp1", damaged_wal, ("etcd", "damaged")),
    Fault("dns may not read", "cp1", dns_may_not_read, ("system:coredns",)),
    Fault("proxy may not read", "cp1", proxy_may_not_read, ("node-proxier",)),
    Fault("dns service gone", "cp1", dns_service_gone, ("kube-dns",)),
    Fault("dns selects nobody", "cp1", dns_selects_nobody, ("kube-dns", "selector")),
    Fault("corefile error", "cp1", corefile_with_an_error, ("Corefile", "proxy")),
    Fault("proxy wrong mode", "cp1", proxy_with_a_wrong_mode, ("iptabels",)),
    Fault("proxy gone", "cp1", proxy_gone, ("kube-proxy", "DaemonSet")),
    Fault("proxy on no node", "cp1", proxy_on_no_node, ("kube-proxy", "nodeSelector")),
    Fault("scheduler for others only", "cp1", scheduler_for_others_only, ("no scheduler sees", "default-scheduler")),
    Fault("always pulls", "cp1", always_pulls, ("AlwaysPullImages",)),
    Fault("names of the Service", "cp1", certificate_without_the_services_names, (r"without .*10\.96\.0\.1",)),
    Fault("quota", "cp1", quota, ("quota: everybody",)),
    Fault("restricted", "cp1", restricted, ("kube-system", "PodSecurity|restricted")),
    Fault("admin without rights", "cp1", admin_without_rights, ("kubeadm:cluster-admins",)),
    Fault(
        "dns of another zone",
        "cp1",
        dns_of_another_zone,
        ("answers (SERVFAIL|NXDOMAIN)", r"serves Services in prod\.local"),
    ),
    Fault(
        "foreign kubelet client",
        "cp1",
        foreign_kubelet_client,
        (r"kubelets answer API server .* nothing", r"apiserver\.example\.com"),
    ),
    Fault(
        "controller switched off", "cp1", controller_switched_off, ("without endpointslice-controller", "--controllers")
    ),
    Fault("VPN routes", "w1", vpn_routes, ("leave by vpn0",)),
    Fault("all nodes tainted", "cp1", all_tainted, ("no node takes", "maintenance=yes:NoSchedule")),
    Fault("encryption key exchanged", "cp1", exchanged_encryption_key, ("cannot read all Secrets",)),
    Fault("limit range", "cp1", small_limit, ("let into kube-system", "1m")),
    Fault("proxy calls nobody", "cp1", proxy_calls_nobody, ("kube-proxy is told to call the API at .*:7444",)),
    Fault("no static pods", "w1", no_static_pods, ("staticPodPath", r"kb-load-balancer\.yaml")),
    Fault("scheduler without rights", "cp1", scheduler_without_rights, ("ClusterRoleBinding system:kube-scheduler",)),
    Fault("max pods", "cp1", few_pods, ("w1 takes no more pods", "maxPods")),
    Fault("dns dropped in raw", "w1", dns_dropped_early, (r"-t raw -A PREROUTING .*--dport 53 -j DROP",)),
    Fault("empty kubeconfig", "cp1", empty_kubeconfig, (r"scheduler\.conf", "empty")),
    Fault("no runc", "w1", no_runc, ("runc",)),
    Fault("plugins not executable", "w1", plugins_not_executable, ("executable|permission denied",)),
    Fault("kubelet port closed", "w1", kubelet_port_closed, ("10250",)),
    Fault("policy for pods", "cp1", policy_for_pods, ("let into kube-system", "pods need a label team")),
    Fault("slow webhook", "cp1", slow_webhook, (r"creating a pod takes \d+ s", r"slow\.example\.com")),
    Fault("forwarding off", "w1", forwarding_off, (r"ip_forward is 0",)),
    Fault("no approval", "cp1", no_approval, ("are not approved",), level="warning"),
    Fault("wrong cluster domain", "w1", wrong_cluster_domain, (r"prod\.local", "clusterDomain")),
    Fault("kernel settings", "w1", kernel_settings, (r"kernel\.panic=10",)),
    Fault("foreign conf_dir", "w1", foreign_conf_dir, ("/etc/cni/multus.d",)),
    Fault("cluster-info gone", "cp1", no_cluster_info, ("no node can join by a token",), level="warning"),
    Fault("host name label gone", "w1", no_host_name, (r"kubernetes\.io/hostname",)),
)


# ---- running them


KB_WISHES = {"loadBalancer": {"mode": "local"}, "podNetwork": {"plugin": "bridge"}}
PATIENT = [
    {"name": "leader-elect-lease-duration", "value": "60s"},
    {"name": "leader-elect-renew-deadline", "value": "40s"},
]
"""Controllers that survive the slow moments of a machine on which a whole lab runs."""


@pytest.fixture(scope="module")
def cluster(lab: Lab, kb_pyz: Path) -> Iterator[Cluster]:
    """One control plane and one worker for all faults."""
    cp1, w1 = (lab.add_node(name, version=VERSION) for name in ("cp1", "w1"))
    patience = {"controllerManager": {"extraArgs": PATIENT}, "scheduler": {"extraArgs": PATIENT}}
    cp1.scp(kb_pyz, "/root/kb.pyz")
    cp1.write("/root/init.yaml", lab_config(VERSION, address=cp1.address, kb=KB_WISHES, cluster=patience))
    cp1.run(f"{KB} init --config init.yaml --ignore-preflight-errors={','.join(list_ignored_checks())}", timeout=600)
    join(w1, cp1, kb_pyz)
    whole = Cluster(cp1, w1)
    wait_well(whole)
    yield whole
    for node in (w1, cp1):
        lab.remove_node(node)


def examine(node: Node) -> tuple[list[dict[str, str]], float]:
    """What doctor finds that is not well, in its order, and how long it took."""
    started = time.monotonic()
    answer = node.run(f"timeout 60 {KB} doctor -o json", check=False)
    seconds = time.monotonic() - started
    notes = json.loads(answer.stdout)["notes"]
    return [one for one in notes if one["level"] != "ok" and one["look"] not in ALWAYS_TOLD], seconds


def is_well(node: Node) -> bool:
    return not examine(node)[0]


def forget_delays(node: Node) -> None:
    """The kubelet waits longer and longer, up to five minutes, before it starts what has ended often, as after several faults in a row. One
    that has just begun does not."""
    node.run("systemctl restart kubelet")


def wait_well(cluster: Cluster) -> None:
    """Until doctor finds nothing any more, on both nodes."""
    for node in (cluster.cp1, cluster.w1):
        wait = functools.partial(wait_until, functools.partial(is_well, node), what=f"doctor to find {node.name} well")
        try:
            wait(timeout_s=45, every_s=2)
        except LabError:
            forget_delays(node)
            wait(timeout_s=200, every_s=2)


def note_result(fault: Fault, notes: list[dict[str, str]], seconds: float) -> None:
    """What kb said of each fault, to be read by people: tests/e2e/_logs/reports.txt."""
    LOGS.mkdir(exist_ok=True)
    rows = "".join(f"{one['level']:<7} {one['look']:<20} {one['text']}\n" for one in notes)
    with (LOGS / "reports.txt").open("a") as log:
        log.write(f"== {fault.name}: {seconds:.1f} s\n{rows}\n")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: re.sub(r"[^A-Za-z0-9]+", "-", fault.name))
def test_the_cause_is_named_first_and_alone(cluster: Cluster, fault: Fault) -> None:
    try:
        with fault.inject(cluster):
            notes, seconds = examine(cluster.w1 if fault.on == "w1" else cluster.cp1)
            note_result(fault, notes, seconds)
    finally:
        wait_well(cluster)
    causes = [one for one in notes if one["level"] in ("error", "warning")]
    assert causes and causes[0] == notes[0], f"doctor does not begin with a cause: {notes}"
    first = causes[0]
    missing = [pattern for pattern in fault.says if not re.search(pattern, first["text"])]
    assert not missing, f"{fault.name}: it does not say {missing}: {first}"
    assert first["level"] == fault.level and first["remedy"], first
    assert causes == [first], f"{fault.name}: more than the cause is named as one: {causes}"
    assert seconds < LIMIT_S, f"{fault.name}: named after {seconds:.1f} s only"


def test_every_fault_is_in_the_table_of_reports() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/doctor-reports.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert sorted(row for row in rows if row != "fault") == sorted(fault.name for fault in FAULTS)
