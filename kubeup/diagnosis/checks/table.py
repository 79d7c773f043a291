"""The table of checks that preflight and doctor share, and the code that runs them.

Owns each check's name (kubeadm's, as in --ignore-preflight-errors) and the workflows that use it. Must not print:
findings are returned, judge_findings() sorts them. Mirrors cmd/kubeadm/app/preflight/checks.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from kubeup.diagnosis.checks.etcd import check_external_etcd_files, check_external_etcd_version
from kubeup.diagnosis.checks.facts import (
    DOCTOR,
    ERROR,
    IMAGES,
    INIT,
    JOIN,
    JOIN_CONTROL_PLANE,
    NODE,
    RESET,
    ROOT,
    UPGRADE,
    WARNING,
    Finding,
    Findings,
    Node,
)
from kubeup.diagnosis.checks.images import check_balancer_image, check_images
from kubeup.diagnosis.checks.kernel import SYSTEM, check_cgroup_writable, check_system
from kubeup.diagnosis.checks.kubelet import (
    check_kubelet_flags,
    check_kubelet_unit,
    check_kubelet_version,
    check_own_units,
    check_resolver,
)
from kubeup.diagnosis.checks.machine import (
    check_advertise_address,
    check_anonymous_auth,
    check_clock,
    check_cpus,
    check_disk_space,
    check_firewall,
    check_forwarding,
    check_host_paths,
    check_hostname,
    check_kubernetes_version,
    check_memory,
    check_programs,
    check_root_user,
    check_service_route,
    check_swap,
)
from kubeup.diagnosis.checks.ports import (
    check_balancer_ports,
    check_control_plane_ports,
    check_etcd_folder,
    check_etcd_ports,
    check_joined,
    check_kubelet_port,
    check_manifests,
)
from kubeup.diagnosis.checks.proxies import check_join_proxy, check_kubelet_proxy, check_proxy, check_proxy_cidrs
from kubeup.diagnosis.checks.runtime import (
    check_cgroup_driver,
    check_cni_plugins,
    check_join_network,
    check_oom_score,
    check_pod_network,
    check_registry_config,
    check_runtime,
    check_runtime_version,
    check_sandbox_image,
)
from kubeup.errors import KbError, PreflightError, UsageError
from kubeup.frozen_values import frozen
from kubeup.node import runtime


@frozen
class Check:
    """names: the names of its findings (`*`: a port, a program, a path with - for /)."""

    names: str
    batch: str
    workflows: frozenset[str]
    look: Callable[[Node], Findings]


def _in(*workflows: str) -> frozenset[str]:
    return frozenset(workflows)


_EVERY_NODE = _in(INIT, JOIN, DOCTOR)
_CONTROL_PLANE = _in(INIT, JOIN_CONTROL_PLANE)

CHECKS: tuple[Check, ...] = (
    Check("IsPrivilegedUser", ROOT, _in(INIT, JOIN, UPGRADE, RESET, DOCTOR), check_root_user),
    Check("NumCPU", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_cpus),
    Check("Mem", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_memory),
    Check("KubernetesVersion", NODE, _CONTROL_PLANE, check_kubernetes_version),
    Check("Firewalld", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_firewall),
    Check("Port-*", NODE, _CONTROL_PLANE, check_control_plane_ports),
    Check("FileAvailable-*", NODE, _CONTROL_PLANE, check_manifests),
    Check("FileAvailable-*", NODE, _in(JOIN), check_joined),
    Check("AdvertiseAddress", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_advertise_address),
    Check("HostPath", NODE, _CONTROL_PLANE, check_host_paths),
    Check("AnonymousAuth", NODE, _CONTROL_PLANE, check_anonymous_auth),
    Check("ServiceRoute", NODE, _EVERY_NODE, check_service_route),
    Check("HTTPProxy", NODE, _CONTROL_PLANE, check_proxy),
    Check("KubeletProxy", NODE, _in(INIT, JOIN_CONTROL_PLANE, DOCTOR), check_kubelet_proxy),
    Check("HTTPProxyCIDR", NODE, _CONTROL_PLANE, check_proxy_cidrs),
    Check("HTTPProxy", NODE, _in(JOIN), check_join_proxy),
    Check("ClockSkew", NODE, _in(JOIN), check_clock),
    Check("CRI", NODE, _EVERY_NODE, check_runtime),
    Check("ContainerRuntimeVersion", NODE, _in(INIT, JOIN, UPGRADE, DOCTOR), check_runtime_version),
    Check("CgroupDriver", NODE, _EVERY_NODE, check_cgroup_driver),
    Check("OOMScoreAdj", NODE, _EVERY_NODE, check_oom_score),
    Check("SandboxImage", NODE, _EVERY_NODE, check_sandbox_image),
    Check("RegistryConfig", NODE, _EVERY_NODE, check_registry_config),
    Check("CNIPlugins", NODE, _EVERY_NODE, check_cni_plugins),
    Check("CNIConfig", NODE, _in(INIT), check_pod_network),
    Check("CNIConfig", NODE, _in(JOIN), check_join_network),
    Check("OwnUnits", NODE, _in(INIT, JOIN), check_own_units),
    Check("Swap", NODE, _EVERY_NODE, check_swap),
    Check("FileExisting-*", NODE, _EVERY_NODE, check_programs),
    Check(SYSTEM, NODE, _in(INIT, JOIN, UPGRADE, DOCTOR), check_system),
    Check("CgroupWritable", NODE, _EVERY_NODE, check_cgroup_writable),
    Check("DiskSpace", NODE, _in(INIT, JOIN), check_disk_space),
    Check("Hostname", NODE, _in(INIT, JOIN), check_hostname),
    Check("Resolver", NODE, _EVERY_NODE, check_resolver),
    Check("KubeletVersion", NODE, _EVERY_NODE, check_kubelet_version),
    Check("KubeletFlags", NODE, _EVERY_NODE, check_kubelet_flags),
    Check("Service-kubelet", NODE, _EVERY_NODE, check_kubelet_unit),
    Check("Port-10250", NODE, _in(INIT, JOIN), check_kubelet_port),
    Check("FileContent-*", NODE, _EVERY_NODE, check_forwarding),
    Check("ExternalEtcdVersion", NODE, _in(INIT, DOCTOR), check_external_etcd_version),
    Check("Port-*", NODE, _CONTROL_PLANE, check_etcd_ports),
    Check("DirAvailable-*", NODE, _CONTROL_PLANE, check_etcd_folder),
    Check("ExternalEtcdClientCertificates", NODE, _CONTROL_PLANE, check_external_etcd_files),
    Check("LoadBalancerPort-*", NODE, _in(INIT, JOIN, JOIN_CONTROL_PLANE), check_balancer_ports),
    Check("ImagePull", IMAGES, _in(INIT, JOIN_CONTROL_PLANE, UPGRADE), check_images),
    Check("ImagePull", IMAGES, _in(JOIN), check_balancer_image),
)
"""In kubeadm's order; kb's own (AdvertiseAddress, HostPath, AnonymousAuth, KubeletFlags, ServiceRoute, KubeletProxy, CgroupDriver, OOMScoreAdj, SandboxImage, RegistryConfig, CNIPlugins,
CNIConfig or PodNetworkManifest, OwnUnits, CgroupWritable, DiskSpace, Resolver) stand by their kin. A batch is run whole before its errors count: first root, then node, then images."""


# ---- running them


def run_batch(node: Node, batch: str) -> list[Finding]:
    """All findings of the batch's checks for the node's workflow, in the table's order."""
    if batch == NODE:
        node.look_ahead()
    found: list[Finding] = []
    for check in CHECKS:
        if check.batch == batch and node.workflow in check.workflows:
            found.extend(_look(check, node))
    return found


def _look(check: Check, node: Node) -> Iterator[Finding]:
    """A check that fails is itself a finding, and must not prevent the others from being reported."""
    try:
        yield from check.look(node)
    except KbError as error:
        yield Finding(check.names.rstrip("*-"), ERROR, str(error), error.remedy)


def parse_ignored(names: Iterable[str]) -> frozenset[str]:
    """The names in --ignore-preflight-errors, in lower case. Raises UsageError (ignore-all-alone)."""
    ignored = frozenset(name.strip().lower() for name in names if name.strip())
    if "all" in ignored and len(ignored) > 1:
        raise UsageError(
            f"--ignore-preflight-errors {','.join(sorted(ignored))}",
            cause='"all" stands for every check already',
            remedy='give "all" alone, or the names alone',
            code="ignore-all-alone",
        )
    return ignored


def judge_findings(findings: Iterable[Finding], ignored: frozenset[str]) -> tuple[list[Finding], list[Finding]]:
    """(errors, warnings): an ignored error becomes a warning."""
    errors, warnings = [], []
    for finding in findings:
        if finding.level == ERROR and not ignored & {"all", finding.name.lower()}:
            errors.append(finding)
        else:
            warnings.append(Finding(finding.name, WARNING, finding.text, finding.remedy))
    return errors, warnings


def _is_fixable(node: Node, errors: Sequence[Finding]) -> bool:
    """Whether --fix would fix one of them: a wrong setting of containerd."""
    is_setting = any(f"{runtime.CONTAINERD_CONFIG}" in finding.remedy for finding in errors)
    return node.workflow == INIT and is_setting and not node.config.kb.runtime.fix


def make_error(node: Node, errors: Sequence[Finding]) -> PreflightError:
    """One error for a batch, with one line per problem."""
    names = list(dict.fromkeys(finding.name for finding in errors))
    count = f"{len(errors)} check{'s' * (len(errors) != 1)} failed"
    return PreflightError(
        f"this node does not meet the requirements of kb {node.workflow}",
        cause=f"{count}: {', '.join(names)}",
        remedy=f"fix what is listed, then run the command again (to accept it: --ignore-preflight-errors={','.join(names)})"
        + ("; with --fix kb corrects containerd's settings itself" if _is_fixable(node, errors) else ""),
        code="preflight",
        details=[str(finding) for finding in errors],
    )
