"""A control plane that is well, and what the looks say of it."""

from __future__ import annotations

import json

from kubeup.doctor import node_files
from kubeup.doctor.looks import table
from kubeup.machine.host import CommandResult
from kubeup.paths import Paths
from tests.fake_host import FakeHost
from tests.fake_node import finished_node

APISERVER = """\
spec:
  containers:
  - image: registry.k8s.io/kube-apiserver:v1.35.6
    command:
    - kube-apiserver
    - --advertise-address=10.77.0.11
    - --secure-port=6443
    - --service-cluster-ip-range=10.96.0.0/12
    - --etcd-servers=https://127.0.0.1:2379
"""
MANAGER = """\
spec:
  containers:
  - image: registry.k8s.io/kube-controller-manager:v1.35.6
    command: [kube-controller-manager, --cluster-cidr=10.244.0.0/16, --cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt]
"""
ETCD = """\
spec:
  containers:
  - image: registry.k8s.io/etcd:3.6.6-0
    command: [etcd, --data-dir=/data/etcd, "--listen-metrics-urls=http://127.0.0.1:2381"]
"""
UNIT = (
    "LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=0\nExecMainStatus=0\nInvocationID=abc\n"
    "ActiveEnterTimestampMonotonic=900000000\nMainPID=42\n"
)
IMAGES = ("kube-apiserver:v1.35.6", "kube-controller-manager:v1.35.6", "etcd:3.6.6-0", "pause:3.10.1")


def make_host() -> FakeHost:
    """A control plane that is well."""
    host = finished_node()
    host.files.update(
        {
            "/etc/kubernetes/manifests/kube-apiserver.yaml": APISERVER.encode(),
            "/etc/kubernetes/manifests/kube-controller-manager.yaml": MANAGER.encode(),
            "/etc/kubernetes/manifests/etcd.yaml": ETCD.encode(),
            "/var/lib/kubelet/config.yaml": b"clusterDomain: example.org\nclusterDNS: [10.96.0.10]\nstaticPodPath: /etc/kubernetes/manifests\n",
            "/var/lib/kubelet/instance-config.yaml": b'containerRuntimeEndpoint: "unix:///run/x/containerd.sock"\n',
            "/var/lib/kubelet/kubeadm-flags.env": b'KUBELET_KUBEADM_ARGS="--hostname-override=cp1 --v=2"\n',
            "/proc/42/cmdline": b"/usr/bin/kubelet\0--hostname-override=cp1\0--v=2\0",
            "/run/x/containerd.sock": b"",
        }
    )
    host.programs.update({"crictl", "systemctl"})
    host.ticks = 1000.0
    host.answers["systemctl show kubelet -p"] = UNIT
    host.answers["journalctl"] = ""
    host.accepts = {"modprobe configs"}
    set_images(host, *IMAGES)
    return host


def set_images(host: FakeHost, *names: str) -> None:
    info = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}, "config": {"sandboxImage": "registry.k8s.io/pause:3.10.1"}}  # fmt: skip
    rows = {"images": [{"repoTags": [f"registry.k8s.io/{name}"]} for name in names]}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0, json.dumps(info if "info" in argv else rows if "images" in argv else {}))

    host.answers["crictl"] = crictl


def make_patient(host: FakeHost) -> node_files.Patient:
    return node_files.read_patient(host, Paths())


def notes(host: FakeHost, look: str) -> list[tuple[str, str]]:
    """(level, text) of one look."""
    found = next(item for item in table.LOOKS if item.name == look)
    return [(note.level, note.text) for note in found.look(make_patient(host))]


def remedies(host: FakeHost, look: str) -> list[str]:
    """The remedies of one look."""
    found = next(item for item in table.LOOKS if item.name == look)
    return [note.remedy for note in found.look(make_patient(host))]


SERVER = "https://10.77.0.11:6443"
