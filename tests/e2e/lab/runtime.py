"""The container runtime's configuration on a node: the lab's own, and the states real nodes are found in.

Owns: /etc/containerd of a node's disk before its first boot.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import settings
from .shell import sh

if TYPE_CHECKING:
    from .node import Node

# Mirrored by the lab's registry: what manifests name, and what people type without a host.
MIRRORED = ("registry.k8s.io", "docker.io")

CONFIGS = {
    "lab": "what a Kubernetes node should have: systemd cgroups, the right pause image, the lab's registry",
    "debian": "as Debian's package leaves it",
    "default": "the output of `containerd config default`",
    "no-cri": "as Docker's package leaves it: the CRI plugin disabled",
    "none": "no file at all",
}

LAB_VERSION_2 = """\
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
LAB_VERSION_3 = """\
version = 3

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
HOSTS = """\
server = "http://{registry}"

[host."http://{registry}"]
  capabilities = ["pull", "resolve"]
"""


CRIO_UNIT = """\
[Unit]
Description=Container Runtime Interface for OCI (CRI-O)
After=network-online.target

[Service]
Type=notify
ExecStart=/usr/local/bin/crio
KillMode=process
TasksMax=infinity
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
CRIO_CONFIG = """\
[crio.image]
pause_image = "registry.k8s.io/pause:{pause}"
[crio.runtime]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "/usr/sbin/runc"
monitor_path = "/usr/bin/conmon"
[crio.network]
plugin_dirs = ["/opt/cni/bin"]
"""
CRIO_MIRROR = """\
[[registry]]
location = "{host}"
[[registry.mirror]]
location = "{registry}"
insecure = true
"""


def render_lab_config(containerd: str, pause: str) -> str:
    """The lab's config.toml for that containerd."""
    template = LAB_VERSION_3 if containerd.startswith("2") else LAB_VERSION_2
    return template.format(pause=pause)


def write_config(node: Node) -> None:
    """Give a node's containerd the configuration that its spec asks for, and the way to the lab's registry."""
    spec = node.spec
    if spec.crio:
        write_crio(node)
    if spec.crio or spec.containerd == "bare":
        return
    folder = node.root / "etc/containerd"
    config = folder / "config.toml"
    if spec.containerd_config == "none":
        config.unlink(missing_ok=True)
    elif spec.containerd_config == "no-cri":
        config.write_text('disabled_plugins = ["cri"]\n')
    elif spec.containerd_config == "default":
        config.write_text(sh(["chroot", str(node.root), "containerd", "config", "default"]).stdout)
    elif spec.containerd_config == "lab":
        facts = node.release.facts if spec.version else settings.MINORS["1.35"]
        text = render_lab_config(spec.containerd, facts.pause)
        config.write_text(text.replace("SystemdCgroup = true", "SystemdCgroup = false") if spec.openrc else text)
        write_hosts(folder / "certs.d", node.lab.registry.address)
    elif spec.containerd_config != "debian":
        config.write_text(spec.containerd_config)


def write_hosts(folder: Path, registry: str) -> None:
    """Make containerd ask the lab's registry for every name of MIRRORED, and never the upstream."""
    for host in MIRRORED:
        (folder / host).mkdir(parents=True, exist_ok=True)
        (folder / host / "hosts.toml").write_text(HOSTS.format(registry=registry))


def write_crio(node: Node) -> None:
    """CRI-O's unit and configuration, and the way to the lab's registry."""
    facts = node.release.facts if node.spec.version else settings.MINORS["1.35"]
    mirrors = [CRIO_MIRROR.format(host=host, registry=node.lab.registry.address) for host in MIRRORED]
    files = {
        "etc/systemd/system/crio.service": CRIO_UNIT,
        "etc/crio/crio.conf.d/10-lab.conf": CRIO_CONFIG.format(pause=facts.pause),
        "etc/containers/registries.conf": "\n".join(mirrors),
        "etc/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
    }
    for name, text in files.items():
        place = node.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    wants = node.root / "etc/systemd/system/multi-user.target.wants/crio.service"
    wants.symlink_to("/etc/systemd/system/crio.service")
