"""A runtime that answers through crictl or ctr as containerd does."""

from __future__ import annotations

import json
from typing import Any, Optional

from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.machine.host import CommandResult
from kubeup.node import crictl, images
from kubeup.releases import find_release
from tests.fake_host import Answer, FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
CRICTL = " ".join(crictl.crictl_argv(SOCKET))
CTR = " ".join(crictl.ctr_argv(SOCKET))
RELEASE = find_release("v1.35.6")

INFO_1_6: dict[str, Any] = {
    "cniconfig": {"PluginDirs": ["/opt/cni/bin"]},
    "config": {
        "containerd": {
            "defaultRuntimeName": "runc",
            "runtimes": {"runc": {"options": {"SystemdCgroup": False}}},
        },
        "containerdRootDir": "/var/lib/containerd",
        "registry": {"configPath": "", "mirrors": None},
        "restrictOOMScoreAdj": False,
        "sandboxImage": "registry.k8s.io/pause:3.6",
    },
    "status": {"conditions": [{"type": "RuntimeReady", "status": True}, {"type": "NetworkReady", "status": False}]},
}
INFO_2_1: dict[str, Any] = {
    "cniconfig": {"PluginDirs": ["/usr/lib/cni", "/opt/cni/bin"]},
    "config": {
        "containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": True}}}},
        "containerdRootDir": "/var/lib/containerd",
        "restrictOOMScoreAdj": True,
    },
    "status": {"conditions": [{"type": "RuntimeReady", "status": True}]},
}
DUMP_2_1 = """
version = 3
root = '/var/lib/containerd'
disabled_plugins = []

[grpc]
  address = '/run/containerd/containerd.sock'

[plugins]
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'
  [plugins.'io.containerd.cri.v1.runtime']
    restrict_oom_score_adj = false
    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = true
    [plugins.'io.containerd.cri.v1.runtime'.cni]
      bin_dir = ''
      bin_dirs = ['/usr/lib/cni', '/opt/cni/bin']
"""
DUMP_1_6 = """
version = 2
root = "/var/lib/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "registry.k8s.io/pause:3.6"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
UNIMPLEMENTED = (
    'time="t" level=fatal msg="call RuntimeConfig RPC: rpc error: code = Unimplemented desc = unknown method"'
)


def version_text(version: str, name: str = "containerd") -> str:
    return f"Version:  0.1.0\nRuntimeName:  {name}\nRuntimeVersion:  {version}\nRuntimeApiVersion:  v1\n"


def failed(text: str, code: int = 1) -> CommandResult:
    return CommandResult((), code, stderr=text)


def crictl_host(answers: Optional[dict[str, Answer]] = None, **more: Any) -> FakeHost:
    """A node with containerd 1.6 and crictl."""
    all_answers: dict[str, Answer] = {
        f"{CRICTL} info": json.dumps(INFO_1_6),
        f"{CRICTL} version": version_text("1.6.20~ds1"),
        f"{CRICTL} runtime-config": failed(UNIMPLEMENTED),
        f"{CRICTL} images -o json": '{"images": []}',
        **(answers or {}),
    }
    programs = {"crictl", "containerd", *more.pop("programs", ())}
    files = {"/run/containerd/containerd.sock": b"", **more.pop("files", {})}
    return FakeHost(files=files, programs=programs, answers=all_answers, **more)


def fatal(text: str) -> CommandResult:
    escaped = text.replace('"', '\\"')
    return failed(f'E1123 log.go:32] "PullImage failed"\ntime="t" level=fatal msg="pulling image: {escaped}"\n')


def image_list(*names: str) -> str:
    return json.dumps({"images": [{"repoTags": list(names)}]})


def pulling(*names: str, answer: Answer = "") -> dict[str, Answer]:
    """The answers of a runtime that is asked for these images and no others."""
    return {f"{CRICTL} pull {name}": answer for name in names}


def pulls(host: FakeHost) -> list[str]:
    return [change.rpartition(" ")[2] for change in host.changes if " pull " in change]


def init_config() -> NodeConfig:
    return NodeConfig(
        ClusterConfiguration("v1.35.6"), NodeRegistration("cp1", cri_socket=SOCKET), LocalAPIEndpoint("10.0.0.1")
    )


IMAGE_REFS = tuple(image.ref for image in images.list_images(init_config().cluster, RELEASE))
