"""One row per Kubernetes minor: all differences between versions are here and nowhere else.

Comparing versions anywhere else is a bug; dropping a minor deletes a row. Sources of the tags:
cmd/kubeadm/app/constants/constants.go of each release's latest known patch, and the nodes set up by real kubeadm
1.34.9, 1.35.6 and 1.36.3.
"""

from __future__ import annotations

import re
from typing import Optional

from kubeup.errors import UsageError
from kubeup.frozen_values import frozen

KUBELET_SKEW = 3
"""How many minors a kubelet may be older than an API server (https://kubernetes.io/releases/version-skew-policy)."""


@frozen
class Release:
    """What a Kubernetes minor requires of the tool that deploys it. Flags are true if the minor has the feature."""

    minor: int
    etcd_tag: str
    coredns_tag: str
    pause_tag: str
    config_api: str = "kubeadm.k8s.io/v1beta4"
    """The API version in which ClusterConfiguration is stored in the cluster."""
    reads_v1beta3: bool = True
    has_named_probe_ports: bool = True
    """Static pods and CoreDNS name their probe ports (1.34)."""
    scheduler_has_readyz: bool = True
    """The scheduler is probed on /livez and /readyz (1.32); before, only on /healthz, without a readiness probe."""
    node_local_cri_socket: bool = True
    """Default of the gate NodeLocalCRISocket: instance-config.yaml instead of a node annotation and a flag (1.34)."""
    control_plane_kubelet_local_mode: bool = True
    """Default of the gate: a control plane's kubelet talks to its own API server (1.33)."""
    pod_infra_container_image_flag: bool = False
    """The kubelet gets --pod-infra-container-image (until 1.34)."""
    refuses_cgroup_v1: bool = True
    """The kubelet does not start on cgroup v1 unless failCgroupV1 is false (1.35)."""
    kernel_mismatch_is_error: bool = False
    """A kernel outside the validated list is an error of SystemVerification, not a warning (until 1.33)."""
    needs_conntrack: bool = False
    """preflight requires the conntrack program (until 1.31)."""
    needs_ip_and_iptables: bool = False
    """preflight requires ip and iptables (until 1.32)."""
    warns_without_runtime_config: bool = True
    """preflight warns if the CRI has no RuntimeConfig call (1.35)."""
    needs_runtime_config: bool = False
    """The kubelet refuses to run if the CRI has no RuntimeConfig call (1.37: containerd 2). Until then it takes the cgroup driver of its own
    configuration (getCgroupDriverFromCRI in cmd/kubelet/app/server.go; tried with 1.36.3 on containerd 1.6.20)."""
    corefile: str = "Corefile"
    """CoreDNS's default configuration in configs/addons: since 1.32 it does not cache answers for the cluster's zone
    (kubernetes/kubernetes pull request 128359)."""
    probe_ports_bind_all: bool = True
    """preflight tests a port on all addresses; 1.37 tests the configured address."""
    mounts_flexvolume_dir: bool = False
    """The controller-manager gets the host's folder of FlexVolume plugins (until 1.35)."""
    kubelet_config_has_crash_loop_back_off: bool = True
    """KubeletConfiguration has the field crashLoopBackOff (1.32)."""
    min_external_etcd_tag: str = "3.5.24-0"
    """The oldest external etcd that preflight accepts."""
    has_ecdsa_p384: bool = True
    """encryptionAlgorithm may be ECDSA-P384 (1.34)."""
    has_etcd_http_endpoints: bool = True
    """ClusterConfiguration has etcd.external.httpEndpoints (1.35)."""
    feature_gates: tuple[str, ...] = (
        "ControlPlaneKubeletLocalMode",
        "NodeLocalCRISocket",
        "PublicKeysECDSA",
        "RootlessControlPlane",
    )
    """kubeadm's feature gates that ClusterConfiguration may set."""

    @property
    def name(self) -> str:
        """`1.35`"""
        return f"1.{self.minor}"

    @property
    def oldest_kubelet_minor(self) -> int:
        """The oldest kubelet that is supported with this control plane (Kubernetes' skew policy)."""
        return self.minor - KUBELET_SKEW

    @property
    def is_proven(self) -> bool:
        """Whether this minor was tested on real nodes."""
        proven = parse_version(NEWEST_PROVEN)
        return proven is not None and self.minor <= proven.minor


RELEASES: dict[int, Release] = {
    31: Release(
        31,
        etcd_tag="3.5.24-0",
        coredns_tag="v1.11.3",
        pause_tag="3.10",
        corefile="Corefile-1.31",
        has_named_probe_ports=False,
        scheduler_has_readyz=False,
        node_local_cri_socket=False,
        control_plane_kubelet_local_mode=False,
        pod_infra_container_image_flag=True,
        refuses_cgroup_v1=False,
        kernel_mismatch_is_error=True,
        needs_conntrack=True,
        needs_ip_and_iptables=True,
        warns_without_runtime_config=False,
        mounts_flexvolume_dir=True,
        kubelet_config_has_crash_loop_back_off=False,
        has_ecdsa_p384=False,
        has_etcd_http_endpoints=False,
        feature_gates=(
            "ControlPlaneKubeletLocalMode",
            "EtcdLearnerMode",
            "PublicKeysECDSA",
            "RootlessControlPlane",
            "WaitForAllControlPlaneComponents",
        ),
    ),
    32: Release(
        32,
        etcd_tag="3.5.24-0",
        coredns_tag="v1.11.3",
        pause_tag="3.10",
        has_named_probe_ports=False,
        node_local_cri_socket=False,
        control_plane_kubelet_local_mode=False,
        pod_infra_container_image_flag=True,
        refuses_cgroup_v1=False,
        kernel_mismatch_is_error=True,
        needs_ip_and_iptables=True,
        warns_without_runtime_config=False,
        mounts_flexvolume_dir=True,
        has_ecdsa_p384=False,
        has_etcd_http_endpoints=False,
        feature_gates=(
            "ControlPlaneKubeletLocalMode",
            "EtcdLearnerMode",
            "NodeLocalCRISocket",
            "PublicKeysECDSA",
            "RootlessControlPlane",
            "WaitForAllControlPlaneComponents",
        ),
    ),
    33: Release(
        33,
        etcd_tag="3.5.24-0",
        coredns_tag="v1.12.0",
        pause_tag="3.10",
        has_named_probe_ports=False,
        node_local_cri_socket=False,
        pod_infra_container_image_flag=True,
        refuses_cgroup_v1=False,
        kernel_mismatch_is_error=True,
        warns_without_runtime_config=False,
        mounts_flexvolume_dir=True,
        has_ecdsa_p384=False,
        has_etcd_http_endpoints=False,
        feature_gates=(
            "ControlPlaneKubeletLocalMode",
            "NodeLocalCRISocket",
            "PublicKeysECDSA",
            "RootlessControlPlane",
            "WaitForAllControlPlaneComponents",
        ),
    ),
    34: Release(
        34,
        etcd_tag="3.6.5-0",
        coredns_tag="v1.12.1",
        pause_tag="3.10.1",
        pod_infra_container_image_flag=True,
        refuses_cgroup_v1=False,
        warns_without_runtime_config=False,
        mounts_flexvolume_dir=True,
        has_etcd_http_endpoints=False,
        feature_gates=(
            "ControlPlaneKubeletLocalMode",
            "NodeLocalCRISocket",
            "PublicKeysECDSA",
            "RootlessControlPlane",
            "WaitForAllControlPlaneComponents",
        ),
    ),
    35: Release(35, etcd_tag="3.6.6-0", coredns_tag="v1.13.1", pause_tag="3.10.1", mounts_flexvolume_dir=True),
    36: Release(
        36,
        etcd_tag="3.6.8-0",
        coredns_tag="v1.14.2",
        pause_tag="3.10.2",
        feature_gates=("NodeLocalCRISocket", "PublicKeysECDSA", "RootlessControlPlane"),
    ),
    37: Release(
        37,
        etcd_tag="3.6.11-0",
        coredns_tag="v1.14.3",
        pause_tag="3.10.2",
        reads_v1beta3=False,
        needs_runtime_config=True,
        probe_ports_bind_all=False,
        feature_gates=("RootlessControlPlane",),
    ),
}

NEWEST_PROVEN = "v1.36.3"
"""The newest version tested on real nodes; kb uses it if no version is given and none can be found."""


@frozen
class EtcdStep:
    """From which patch of the minor before a minor of etcd may follow. least: with an older one, the newer member may not start, or the
    member lists may differ. advised: what etcd's own guide asks for now."""

    least: str
    advised: str


ETCD_STEPS: dict[tuple[int, int], EtcdStep] = {
    (3, 6): EtcdStep(least="3.5.26", advised="3.5.32"),
    (3, 7): EtcdStep(least="3.6.11", advised="3.6.11"),
}
"""etcd's minors that may follow another one, each by its number. Kubernetes 1.33 to 1.34 crosses from 3.5 to 3.6, and the tags of 1.31 to
1.33 above are older than what that step needs. Source: etcd.io/docs/v3.6/upgrades/upgrade_3_6, and of v3.7"""

GATES_GONE: dict[int, str] = {
    35: (
        "AllowServiceLBStatusOnNonLB CronJobsScheduledAnnotation LoadBalancerIPMode PodIndexLabel ProbeHostPodSecurityStandards "
        "SizeMemoryBackedVolumes StatefulSetAutoDeletePVC StrictCostEnforcementForVAP StrictCostEnforcementForWebhooks "
        "UserNamespacesPodSecurityStandards"
    ),
    36: (
        "CSIMigrationPortworx HonorPVReclaimPolicy InPlacePodVerticalScalingAllocatedStatus InTreePluginPortworxUnregister MemoryManager "
        "ServiceTrafficDistribution StructuredAuthorizationConfiguration TopologyAwareHints WatchFromStorageWithoutResourceVersion"
    ),
}
"""Feature gates that the components no longer know from this minor on: they end if one is set. Where the program itself can be asked,
that counts, and not this. Source: pkg/features/kube_features.go and apiserver/pkg/features of 1.34 to 1.36"""

GATES_LOCKED: dict[int, str] = {
    31: ("LogarithmicScaleDown PodSchedulingReadiness"),
    32: (
        "AllowServiceLBStatusOnNonLB=false CronJobsScheduledAnnotation CustomResourceFieldSelectors LoadBalancerIPMode MemoryManager "
        "PodIndexLabel RetryGenerateName ServiceAccountTokenJTI ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo "
        "SizeMemoryBackedVolumes StatefulSetAutoDeletePVC StrictCostEnforcementForVAP StrictCostEnforcementForWebhooks "
        "StructuredAuthorizationConfiguration TopologyManagerPolicyOptions"
    ),
    33: (
        "AnyVolumeDataSource BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting CSIMigrationPortworx HonorPVReclaimPolicy "
        "JobBackoffLimitPerIndex JobSuccessPolicy MatchLabelKeysInPodAffinity NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread "
        "RecursiveReadOnlyMounts ServiceAccountTokenNodeBinding ServiceTrafficDistribution SidecarContainers TopologyAwareHints "
        "WatchFromStorageWithoutResourceVersion=false"
    ),
    34: (
        "APIServerTracing AnonymousAuthConfigurableEndpoints AuthorizeNodeWithSelectors AuthorizeWithSelectors ConsistentListFromCache "
        "JobPodReplacementPolicy KubeletCgroupDriverFromCRI KubeletTracing MultiCIDRServiceAllocator NodeSwap OrderedNamespaceDeletion "
        "PodLifecycleSleepAction PodLifecycleSleepActionAllowZero ProbeHostPodSecurityStandards RecoverVolumeExpansionFailure "
        "RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation ResilientWatchCacheInitialization SchedulerQueueingHints "
        "SeparateTaintEvictionController StreamingCollectionEncodingToJSON StreamingCollectionEncodingToProtobuf "
        "StructuredAuthenticationConfiguration WinDSR WinOverlay"
    ),
    35: (
        "AggregatedDiscoveryRemoveBetaType AllowOverwriteTerminationGracePeriodSeconds=false DisableAllocatorDualWrite "
        "DynamicResourceAllocation ExecProbeTimeout ImageMaximumGCAge InPlacePodVerticalScaling JobManagedBy "
        "PodObservedGenerationTracking PreferSameTrafficDistribution SupplementalGroupsPolicy SystemdWatchdog"
    ),
    36: (
        "CSIServiceAccountTokenSecrets DRAAdminAccess DeclarativeValidation DisableNodeKubeProxyVersion ExternalServiceAccountTokenSigner "
        "GitRepoVolumeDriver=false ImageVolume KubeletFineGrainedAuthz KubeletPSI KubeletPodResourcesDynamicResources "
        "KubeletPodResourcesGet MutableCSINodeAllocatableCount NodeLogQuery ProcMountType SELinuxChangePolicy "
        "SELinuxMountReadWriteOncePod SeparateCacheWatchRPC=false UserNamespacesSupport VolumeAttributesClass"
    ),
}
"""Feature gates whose value is fixed from this minor on, true if no other is named: the components end if the other one is set. The same
sources (LockToDefault)."""

ETCD_FLAGS_GONE: dict[tuple[int, int], str] = {
    (3, 6): (
        "enable-v2 proxy proxy-failure-wait proxy-refresh-interval proxy-dial-timeout proxy-write-timeout proxy-read-timeout "
        "experimental-enable-v2v3 log-package-levels debug"
    ),
    (3, 7): "experimental-",
}
"""Flags that etcd no longer knows from this minor on; one that ends in `-` stands for all that begin so. Source: etcd 3.6.8 itself,
etcd.io/docs/v3.7/upgrades"""

LOAD_BALANCER_IMAGE = "docker.io/library/haproxy:3.2.21-alpine"
"""From the long-term branch 3.2 (maintained until 2030), the same for every minor. Source: versions.json of
docker-library/haproxy."""

_VERSION = re.compile(
    r"v?(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,4})(-[0-9A-Za-z.-]{1,64})?(\+[0-9A-Za-z.-]{1,64})?"
)


@frozen
class Version:
    """A semantic version; `+build` is kept in `text` and ignored in comparisons."""

    major: int
    minor: int
    patch: int
    prerelease: str
    text: str
    """With a leading v."""

    @property
    def key(self) -> tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]:
        """Sort key: a pre-release comes before its release, rc.2 before rc.10. Source: semver.org, 11"""
        words = self.prerelease.split(".") if self.prerelease else ()
        parts = tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words)
        return (self.major, self.minor, self.patch, 0 if self.prerelease else 1, parts)

    def __str__(self) -> str:
        return self.text


def parse_version(text: str) -> Optional[Version]:
    """`v1.35.6`, `1.35.6`, `1.36.0-rc.1`, `1.35.6+x`; None for anything else."""
    match = _VERSION.fullmatch(text.strip())
    if not match:
        return None
    major, minor, patch, pre, build = match.groups()
    canonical = f"v{major}.{minor}.{patch}{pre or ''}{build or ''}"
    return Version(int(major), int(minor), int(patch), (pre or "")[1:], canonical)


def version_of_image(image: str) -> Optional[Version]:
    """The version in an image's tag: of `registry.k8s.io/kube-apiserver:v1.35.6@sha256:...`. A tag has `_` for a version's `+`."""
    tag = image.partition("@")[0].rpartition(":")[2]
    return parse_version(tag.replace("_", "+"))


def find_release(version: str) -> Release:
    """The row for a Kubernetes version such as `v1.35.6`.

    Raises UsageError (unsupported-version) for a version that kb does not deploy.
    """
    parsed = parse_version(version)
    row = RELEASES.get(parsed.minor) if parsed and parsed.major == 1 else None
    if row is None:
        first, last = min(RELEASES), max(RELEASES)
        raise UsageError(
            f"Kubernetes version {version!r}",
            cause=f"this kb deploys 1.{first} to 1.{last}",
            remedy=f"give --kubernetes-version a version from v1.{first}.0 to v1.{last}.x",
            code="unsupported-version",
        )
    return row


def is_at_least(version: str, floor: str) -> bool:
    """Whether `version`, a version or image tag, is a semantic version >= floor. As in kubeadm, `3.5.24-0` counts as a
    pre-release of 3.5.24, so compare with `3.6.0-0` if suffixes should count. Anything else: False."""
    have, want = parse_version(version), parse_version(floor)
    return bool(have and want and have.key >= want.key)


def etcd_has_new_flags(tag: str) -> bool:
    """Whether the etcd with this image tag knows --feature-gates and --watch-progress-notify-interval (3.6.0)."""
    parsed = parse_version(tag)
    return parsed is not None and (parsed.major, parsed.minor) >= (3, 6)


def kubelet_refuses_cgroup_v1(kubelet: Version) -> bool:
    """Whether a kubelet of this version does not start on cgroup v1 unless failCgroupV1 is false."""
    newest = RELEASES[max(RELEASES)]
    row = newest if kubelet.minor > newest.minor else RELEASES.get(kubelet.minor)
    return row is not None and row.refuses_cgroup_v1


def has_runtime_config_call(runtime: str, version: str) -> Optional[bool]:
    """Whether a container runtime of this version knows the CRI's RuntimeConfig call: containerd 2.0, CRI-O 1.28.
    None for a runtime that kb does not know. Distributions append to versions: `1.6.20~ds1`."""
    parsed = parse_version(re.split(r"[~+-]", version)[0])
    floor = {"containerd": (2, 0), "cri-o": (1, 28)}.get(runtime)
    if parsed is None or floor is None:
        return None
    return (parsed.major, parsed.minor) >= floor


def etcd_flags_gone(before: Version, after: Version) -> tuple[str, ...]:
    """The flags that an etcd knows no longer, which the one before it may have known; one that ends in `-` stands for a prefix."""
    first, last = (before.major, before.minor), (after.major, after.minor)
    return tuple(flag for key, text in ETCD_FLAGS_GONE.items() if first < key <= last for flag in text.split())


def find_refused_gate(name: str, value: bool, *, minor: int) -> str:
    """Why a component of this minor ends if the gate is set to `value`, in words; "" as far as it is known not to."""
    for since, names in GATES_GONE.items():
        if since <= minor and name in names.split():
            return f"Kubernetes 1.{since} has no feature gate {name} any more"
    for since, names in GATES_LOCKED.items():
        fixed = {gate.partition("=")[0]: not gate.endswith("=false") for gate in names.split()}
        if since <= minor and name in fixed and fixed[name] is not value:
            return f"since Kubernetes 1.{since} it is always {str(fixed[name]).lower()}"
    return ""
