"""Checks of the container runtime, its configuration, and the pod network."""

from __future__ import annotations

import re

from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, Node, read_or_empty
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import images, runtime

with lazily:
    from kubeup.network import pod_network


CAP_SYS_RESOURCE = 24


def check_runtime(node: Node) -> Findings:
    status = node.runtime
    if not status.is_ready:
        yield Finding("CRI", ERROR, f"{status.label} does not serve this node: {status.cause}", status.remedy)


def check_runtime_version(node: Node) -> Findings:
    status, release = node.runtime, node.release
    if status.has_runtime_config is not False:
        return
    text = f"{status.label} has no RuntimeConfig call (containerd has it from 2.0, CRI-O from 1.28)"
    if release.needs_runtime_config:
        yield Finding(
            "ContainerRuntimeVersion",
            ERROR,
            f"{text}, and a kubelet {release.name} does not run without it",
            "install containerd 2",
        )
    elif release.warns_without_runtime_config:
        yield Finding(
            "ContainerRuntimeVersion",
            WARNING,
            f"{text}: a future kubelet will not run with it",
            "install containerd 2 before the next upgrade",
        )


def check_cgroup_driver(node: Node) -> Findings:
    """A kubelet asks the runtime if it has the RuntimeConfig call; otherwise both must be configured alike."""
    status = node.runtime
    wanted = node.kubelet_setting("cgroupDriver", "cgroup-driver") or "systemd"
    if status.has_runtime_config or status.cgroup_driver in (None, wanted):
        return
    if status.cgroup_driver == "systemd":
        remedy = "set cgroupDriver: systemd in the KubeletConfiguration"
    else:
        remedy = runtime.describe_setting(status, "SystemdCgroup", value="true", host=node.host)
        on_disk = runtime.read_containerd_config(node.host, status.socket) if status.name == "containerd" else None
        if runtime.read_cgroup_driver(on_disk) == wanted:
            restart = services.spoken_of(node.host).say("restart", "containerd")
            remedy = f"{restart} (its file is already correct, but it has not read it yet)"
    yield Finding(
        "CgroupDriver",
        ERROR,
        f"{status.label} has the cgroup driver {status.cgroup_driver}, the kubelet {wanted}: Pods would keep dying",
        remedy,
    )


def may_lower_oom_score(host: Host) -> bool:
    """Whether this machine has CAP_SYS_RESOURCE; assumed true if that cannot be determined."""
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)", read_or_empty(host, "/proc/self/status"), re.MULTILINE)
    return not match or bool(int(match.group(1), 16) >> CAP_SYS_RESOURCE & 1)


def check_oom_score(node: Node) -> Findings:
    """In a container or a small virtual machine the kernel may forbid what runc does for every sandbox."""
    if may_lower_oom_score(node.host) or node.runtime.restricts_oom_score is not False:
        return
    yield Finding(
        "OOMScoreAdj",
        ERROR,
        f"this machine has no CAP_SYS_RESOURCE, so {node.runtime.label} cannot lower oom_score_adj and no Pod starts "
        "(\"can't get final child's PID from pipe: EOF\")",
        runtime.describe_setting(node.runtime, "restrict_oom_score_adj", value="true", host=node.host),
    )


def check_sandbox_image(node: Node) -> Findings:
    status = node.runtime
    wanted = images.image_of("pause", node.config.cluster, release=node.release).ref
    if status.sandbox_image and status.sandbox_image != wanted:
        yield Finding(
            "SandboxImage",
            WARNING,
            f"{status.label} starts Pods with the image {status.sandbox_image}, this release goes with {wanted}",
            runtime.describe_setting(status, "sandbox_image", value=f'"{wanted}"', host=node.host),
        )


def check_registry_config(node: Node) -> Findings:
    """A hosts.toml that nothing reads: the configured mirror or CA is silently ignored."""
    told = node.runtime.registry_config_path
    if told is None or str(runtime.CERTS_D) in told.split(":"):
        return
    names = [name for name in node.host.list_dir(runtime.CERTS_D) if _has_hosts_toml(node.host, name)]
    if names:
        yield Finding(
            "RegistryConfig",
            WARNING,
            f"{runtime.CERTS_D} has a hosts.toml for {', '.join(names[:3])}{', ...' * (len(names) > 3)}, and "
            f"{node.runtime.label} does not read that folder (its config_path is {told or 'not set'})",
            runtime.describe_setting(node.runtime, "config_path", value=f'"{runtime.CERTS_D}"', host=node.host),
        )


def _has_hosts_toml(host: Host, registry: str) -> bool:
    return host.exists(runtime.CERTS_D / registry / "hosts.toml")


def check_cni_plugins(node: Node) -> Findings:
    if node.config.kb.pod_network.plugin != "bridge" or not node.runtime.is_ready:
        return
    try:
        pod_network.check_cni_plugins(node.host, node.runtime.cni_bin_dirs, runtime=node.runtime.label)
    except HostError as error:
        yield Finding("CNIPlugins", ERROR, str(error), error.remedy)


def check_pod_network(node: Node) -> Findings:
    """Find what would make the phase pod-network fail at the end, after the cluster is created."""
    network = node.config.kb.pod_network
    if "pod-network" in node.skipped:
        return
    try:
        if network.plugin == "bridge":
            pod_network.check_foreign_cni_config(node.host, node.paths)
        elif network.plugin == "manifest":
            pod_network.read_manifest(node.host, network.manifest)
    except KbError as error:
        name = "CNIConfig" if network.plugin == "bridge" else "PodNetworkManifest"
        yield Finding(name, ERROR, str(error), error.remedy)


def check_join_network(node: Node) -> Findings:
    """Find the file of a previous network, which would hide the cluster's. Once a joining node's kubelet has run, such
    a file belongs to the cluster itself."""
    has_bridge = node.config.kb.pod_network.plugin == "bridge" and "pod-network" not in node.skipped
    if not has_bridge or node.host.exists(node.paths.kubeconfig("kubelet.conf")):
        return
    keep = "and join: a network that was applied to the cluster since writes its file again"
    try:
        pod_network.check_foreign_cni_config(node.host, node.paths, keep=keep)
    except HostError as error:
        yield Finding("CNIConfig", ERROR, str(error), error.remedy)
