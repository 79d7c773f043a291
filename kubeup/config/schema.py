"""The documents that kb reads, as tables: field name -> type, per kind and version.

A default lives where the value lives: in the dataclass that a Struct makes (kubeup/config/types.py). A field's
attribute there is its name in snake case, with `_s` for a duration, unless `renames` says otherwise. To teach kb
a field: one row here, one attribute there.
Source: cmd/kubeadm/app/apis/kubeadm/v1beta4/types.go, v1beta3/types.go, bootstraptoken/v1/types.go;
KubeletConfiguration and KubeProxyConfiguration: config/v1beta1, config/v1alpha1 of the kubelet and kube-proxy modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Callable, Optional, Union

from kubeup.config import types
from kubeup.frozen import frozen


@frozen
class Scalar:
    """One value. `wants` is how a message names it."""

    wants: str
    is_secret: bool = False


TEXT = Scalar("a text")
SECRET = Scalar("a text", is_secret=True)
BOOL = Scalar("true or false")
NUMBER = Scalar("a whole number")
FLOAT = Scalar("a number")
DURATION = Scalar("a duration such as 90s, 4m0s or 24h")
TIME = Scalar("a time such as 2030-01-31T12:00:00Z")


@frozen
class Anything:
    """Passes through unread."""


@frozen
class ListOf:
    item: Type


@frozen
class MapOf:
    item: Type


@frozen
class Struct:
    """A mapping with known fields. make: called with the attributes that are set; None keeps the mapping."""

    fields: Mapping[str, Type]
    make: Optional[Callable[..., Any]] = None
    renames: Mapping[str, str] = field(default_factory=dict)


Type = Union[Scalar, Anything, ListOf, MapOf, Struct]

ANYTHING = Anything()
TEXTS = ListOf(TEXT)

# ---- makers: where a document's shape is not the value's shape


def _arg(name: str = "", value: str = "") -> types.Arg:
    return types.Arg(name, value)


def _volume(name: str = "", host_path: str = "", mount_path: str = "", **rest: Any) -> types.Volume:
    return types.Volume(name, host_path, mount_path, **rest)


def _taint(key: str = "", effect: str = "", **rest: Any) -> types.Taint:
    return types.Taint(key, effect, **rest)


def _bootstrap_token(ttl_s: Optional[int] = None, expires: Optional[str] = None, **rest: Any) -> types.BootstrapToken:
    """ttl 0 means for ever, a token that has its end in `expires` has no ttl, and groups are for logging in."""
    if ttl_s is None:
        ttl_s = None if expires else types.BootstrapToken.ttl_s
    if "authentication" not in rest.get("usages", types.BootstrapToken.usages):
        rest.setdefault("groups", ())
    return types.BootstrapToken(ttl_s=ttl_s or None, expires=expires, **rest)


def _node(name: str = "", **rest: Any) -> types.NodeRegistration:
    return types.NodeRegistration(name, **rest)


def _endpoint(advertise_address: str = "", **rest: Any) -> types.LocalAPIEndpoint:
    return types.LocalAPIEndpoint(advertise_address, **rest)


def _folder(directory: str = "") -> str:
    return directory


def _discovery_file(kube_config_path: str = "") -> str:
    return kube_config_path[len("file://") :] if kube_config_path.startswith("file://") else kube_config_path


def _external_etcd(endpoints: tuple[str, ...] = (), **rest: Any) -> types.ExternalEtcd:
    rest.setdefault("http_endpoints", endpoints)
    return types.ExternalEtcd(endpoints, **rest)


# ---- kubeadm.k8s.io/v1beta4

_ARG = Struct({"name": TEXT, "value": TEXT}, _arg)
_ARGS = ListOf(_ARG)
_VOLUMES = ListOf(
    Struct({"name": TEXT, "hostPath": TEXT, "mountPath": TEXT, "readOnly": BOOL, "pathType": TEXT}, _volume)
)
_ENVS = ListOf(Struct({"name": TEXT, "value": TEXT, "valueFrom": MapOf(ANYTHING)}))
_TAINTS = ListOf(Struct({"key": TEXT, "value": TEXT, "effect": TEXT, "timeAdded": TIME}, _taint))
_PATCHES = Struct({"directory": TEXT}, _folder)
_PATCHES_NAME = {"patches": "patches_directory"}

TIMEOUTS = Struct(
    {
        "controlPlaneComponentHealthCheck": DURATION,
        "kubeletHealthCheck": DURATION,
        "kubernetesAPICall": DURATION,
        "etcdAPICall": DURATION,
        "tlsBootstrap": DURATION,
        "discovery": DURATION,
        "upgradeManifests": DURATION,
    },
    types.Timeouts,
)

BOOTSTRAP_TOKEN = Struct(
    {"token": SECRET, "description": TEXT, "ttl": DURATION, "expires": TIME, "usages": TEXTS, "groups": TEXTS},
    _bootstrap_token,
)

NODE_REGISTRATION = Struct(
    {
        "name": TEXT,
        "criSocket": TEXT,
        "taints": _TAINTS,
        "kubeletExtraArgs": _ARGS,
        "ignorePreflightErrors": TEXTS,
        "imagePullPolicy": TEXT,
        "imagePullSerial": BOOL,
    },
    _node,
)

LOCAL_API_ENDPOINT = Struct({"advertiseAddress": TEXT, "bindPort": NUMBER}, _endpoint)

INIT = Struct(
    {
        "bootstrapTokens": ListOf(BOOTSTRAP_TOKEN),
        "dryRun": BOOL,
        "nodeRegistration": NODE_REGISTRATION,
        "localAPIEndpoint": LOCAL_API_ENDPOINT,
        "certificateKey": SECRET,
        "skipPhases": TEXTS,
        "patches": _PATCHES,
        "timeouts": TIMEOUTS,
    },
    dict,
    {"nodeRegistration": "node", **_PATCHES_NAME},
)

_COMPONENT: dict[str, Type] = {"extraArgs": _ARGS, "extraVolumes": _VOLUMES, "extraEnvs": _ENVS}
COMPONENT = Struct(_COMPONENT, types.Component)
_IMAGE: dict[str, Type] = {"imageRepository": TEXT, "imageTag": TEXT}

NETWORKING = Struct({"serviceSubnet": TEXT, "podSubnet": TEXT, "dnsDomain": TEXT}, types.Networking)

ETCD = Struct(
    {
        "local": Struct(
            {
                **_IMAGE,
                "dataDir": TEXT,
                "extraArgs": _ARGS,
                "extraEnvs": _ENVS,
                "serverCertSANs": TEXTS,
                "peerCertSANs": TEXTS,
            },
            types.LocalEtcd,
        ),
        "external": Struct(
            {"endpoints": TEXTS, "httpEndpoints": TEXTS, "caFile": TEXT, "certFile": TEXT, "keyFile": TEXT},
            _external_etcd,
        ),
    },
    dict,
)

CLUSTER = Struct(
    {
        "kubernetesVersion": TEXT,
        "clusterName": TEXT,
        "controlPlaneEndpoint": TEXT,
        "networking": NETWORKING,
        "certificatesDir": TEXT,
        "imageRepository": TEXT,
        "encryptionAlgorithm": TEXT,
        "certificateValidityPeriod": DURATION,
        "caCertificateValidityPeriod": DURATION,
        "featureGates": MapOf(BOOL),
        "apiServer": Struct({**_COMPONENT, "certSANs": TEXTS}, types.APIServer),
        "controllerManager": COMPONENT,
        "scheduler": COMPONENT,
        "dns": Struct({**_IMAGE, "disabled": BOOL}, types.DNS),
        "proxy": Struct({"disabled": BOOL}, types.Proxy),
        "etcd": ETCD,
    },
    dict,
)

JOIN = Struct(
    {
        "dryRun": BOOL,
        "nodeRegistration": NODE_REGISTRATION,
        "caCertPath": TEXT,
        "discovery": Struct(
            {
                "bootstrapToken": Struct(
                    {
                        "token": SECRET,
                        "apiServerEndpoint": TEXT,
                        "caCertHashes": TEXTS,
                        "unsafeSkipCAVerification": BOOL,
                    },
                    types.BootstrapTokenDiscovery,
                ),
                "file": Struct({"kubeConfigPath": TEXT}, _discovery_file),
                "tlsBootstrapToken": SECRET,
            },
            types.Discovery,
        ),
        "controlPlane": Struct(
            {"localAPIEndpoint": LOCAL_API_ENDPOINT, "certificateKey": SECRET}, types.JoinControlPlane
        ),
        "skipPhases": TEXTS,
        "patches": _PATCHES,
        "timeouts": TIMEOUTS,
    },
    types.JoinConfiguration,
    {"nodeRegistration": "node", **_PATCHES_NAME},
)

RESET = Struct(
    {
        "certificatesDir": TEXT,
        "cleanupTmpDir": BOOL,
        "criSocket": TEXT,
        "dryRun": BOOL,
        "force": BOOL,
        "ignorePreflightErrors": TEXTS,
        "skipPhases": TEXTS,
        "unmountFlags": TEXTS,
        "timeouts": TIMEOUTS,
    },
    types.ResetConfiguration,
)

_UPGRADE_NODE: dict[str, Type] = {
    "certificateRenewal": BOOL,
    "etcdUpgrade": BOOL,
    "dryRun": BOOL,
    "ignorePreflightErrors": TEXTS,
    "skipPhases": TEXTS,
    "patches": _PATCHES,
    "imagePullPolicy": TEXT,
    "imagePullSerial": BOOL,
}
_UPGRADE_VERSION: dict[str, Type] = {
    "kubernetesVersion": TEXT,
    "allowExperimentalUpgrades": BOOL,
    "allowRCUpgrades": BOOL,
    "printConfig": BOOL,
}

UPGRADE = Struct(
    {
        "apply": Struct({**_UPGRADE_NODE, **_UPGRADE_VERSION, "forceUpgrade": BOOL}, types.UpgradeApply, _PATCHES_NAME),
        "node": Struct(_UPGRADE_NODE, types.UpgradeNode, _PATCHES_NAME),
        "plan": Struct(
            {**_UPGRADE_VERSION, "dryRun": BOOL, "etcdUpgrade": BOOL, "ignorePreflightErrors": TEXTS},
            types.UpgradePlan,
        ),
        "diff": Struct({"kubernetesVersion": TEXT, "contextLines": NUMBER}, types.UpgradeDiff),
        "timeouts": TIMEOUTS,
    },
    types.UpgradeConfiguration,
)

# ---- kubeadm.k8s.io/v1beta3: what differs from v1beta4 (kubeup/config/convert.py turns it into v1beta4)


def _but(struct: Struct, without: tuple[str, ...] = (), **other: Type) -> Struct:
    fields = {name: kind for name, kind in struct.fields.items() if name not in without}
    return Struct({**fields, **other})


def _at(struct: Struct, name: str) -> Struct:
    found = struct.fields[name]
    assert isinstance(found, Struct)
    return found


_OLD_ARGS = MapOf(TEXT)
_OLD_NODE = _but(NODE_REGISTRATION, ("imagePullSerial",), kubeletExtraArgs=_OLD_ARGS)
_OLD_COMPONENT = Struct({"extraArgs": _OLD_ARGS, "extraVolumes": _VOLUMES})

INIT_V1BETA3 = _but(INIT, ("dryRun", "timeouts"), nodeRegistration=_OLD_NODE)
CLUSTER_V1BETA3 = _but(
    CLUSTER,
    ("proxy", "encryptionAlgorithm", "certificateValidityPeriod", "caCertificateValidityPeriod"),
    apiServer=_but(_OLD_COMPONENT, certSANs=TEXTS, timeoutForControlPlane=DURATION),
    controllerManager=_OLD_COMPONENT,
    scheduler=_OLD_COMPONENT,
    dns=Struct(_IMAGE),
    etcd=Struct(
        {
            "local": _but(_at(ETCD, "local"), ("extraEnvs",), extraArgs=_OLD_ARGS),
            "external": _but(_at(ETCD, "external"), ("httpEndpoints",)),
        }
    ),
)
JOIN_V1BETA3 = _but(
    JOIN,
    ("dryRun", "timeouts"),
    nodeRegistration=_OLD_NODE,
    discovery=_but(_at(JOIN, "discovery"), timeout=DURATION),
)

# ---- kb/v1alpha1

KB = Struct(
    {
        "podNetwork": Struct(
            {"plugin": TEXT, "manifest": TEXT, "backend": TEXT, "mtu": NUMBER, "imageRepository": TEXT},
            types.PodNetwork,
        ),
        "loadBalancer": Struct({"mode": TEXT, "image": TEXT, "healthPort": NUMBER}, types.LoadBalancer),
        "bundle": TEXT,
        "verifyKey": TEXT,
        "mirror": Struct({"endpoint": TEXT, "caHash": TEXT}, types.Mirror),
        "packages": Struct({"source": TEXT, "preset": TEXT}, types.Packages),
        "airGapped": BOOL,
        "soak": DURATION,
        "runtime": Struct({"fix": BOOL}, types.Runtime),
        "onlyKubeadm": BOOL,
    },
    types.KbConfiguration,
)

# ---- component configs: only their top level is known. A name that is not here may be newer than kb (a warning)


def _known(**names: str) -> Struct:
    by_word: dict[str, Type] = {
        "texts": TEXT,
        "bools": BOOL,
        "numbers": NUMBER,
        "floats": FLOAT,
        "durations": DURATION,
        "lists": ListOf(ANYTHING),
        "maps": MapOf(ANYTHING),
    }
    return Struct({name: by_word[word] for word, text in names.items() for name in text.split()})


KUBELET = _known(
    bools="""enableServer rotateCertificates serverTLSBootstrap enableDebuggingHandlers enableContentionProfiling
        cgroupsPerQOS singleProcessOOMKill runOnce cpuCFSQuota serializeImagePulls mergeDefaultEvictionSettings
        enableControllerAttachDetach protectKernelDefaults makeIPTablesUtilChains failSwapOn
        kernelMemcgNotification enableSystemLogHandler enableSystemLogQuery enableProfilingHandler
        enableDebugFlagsHandler seccompDefault registerNode localStorageCapacityIsolation failCgroupV1""",
    texts="""staticPodPath podLogsDir staticPodURL address tlsCertFile tlsPrivateKeyFile tlsMinVersion
        imagePullCredentialsVerificationPolicy healthzBindAddress clusterDomain kubeletCgroups systemCgroups
        cgroupRoot cgroupDriver cpuManagerPolicy memoryManagerPolicy topologyManagerPolicy topologyManagerScope
        hairpinMode podCIDR resolvConf contentType containerLogMaxSize configMapAndSecretChangeDetectionStrategy
        reservedSystemCPUs showHiddenMetricsForVersion systemReservedCgroup kubeReservedCgroup volumePluginDir
        providerID memoryReservationPolicy containerRuntimeEndpoint imageServiceEndpoint""",
    numbers="""port readOnlyPort registryPullQPS registryBurst eventRecordQPS eventBurst healthzPort oomScoreAdj
        nodeLeaseDurationSeconds imageGCHighThresholdPercent imageGCLowThresholdPercent maxPods podPidsLimit
        nodeStatusMaxImages maxOpenFiles kubeAPIQPS kubeAPIBurst maxParallelImagePulls evictionMaxPodGracePeriod
        podsPerCore iptablesMasqueradeBit iptablesDropBit containerLogMaxFiles containerLogMaxWorkers""",
    floats="memoryThrottlingFactor",
    durations="""syncFrequency fileCheckFrequency httpCheckFrequency streamingConnectionIdleTimeout
        nodeStatusUpdateFrequency nodeStatusReportFrequency imageMinimumGCAge imageMaximumGCAge volumeStatsAggPeriod
        cpuManagerReconcilePeriod runtimeRequestTimeout cpuCFSQuotaPeriod evictionPressureTransitionPeriod
        containerLogMonitorInterval shutdownGracePeriod shutdownGracePeriodCriticalPods""",
    lists="""tlsCipherSuites tlsCurvePreferences preloadedImagesVerificationAllowlist clusterDNS
        enforceNodeAllocatable allowedUnsafeSysctls shutdownGracePeriodByPodPriority reservedMemory
        registerWithTaints""",
    maps="""staticPodURLHeader authentication authorization cpuManagerPolicyOptions topologyManagerPolicyOptions
        qosReserved evictionHard evictionSoft evictionSoftGracePeriod evictionMinimumReclaim featureGates memorySwap
        systemReserved kubeReserved defaultPodSysctls logging crashLoopBackOff tracing userNamespaces""",
)

KUBE_PROXY = _known(
    bools="bindAddressHardFail enableProfiling windowsRunAsService",
    texts="""hostnameOverride bindAddress healthzBindAddress metricsBindAddress showHiddenMetricsForVersion mode
        detectLocalMode clusterCIDR portRange""",
    numbers="oomScoreAdj",
    durations="configSyncPeriod",
    lists="nodePortAddresses",
    maps="featureGates clientConnection logging iptables ipvs nftables winkernel detectLocal conntrack",
)

KUBEADM_GROUP = "kubeadm.k8s.io"
V1BETA4 = "kubeadm.k8s.io/v1beta4"
V1BETA3 = "kubeadm.k8s.io/v1beta3"
KB_V1ALPHA1 = "kb/v1alpha1"
KUBELET_V1BETA1 = "kubelet.config.k8s.io/v1beta1"
KUBE_PROXY_V1ALPHA1 = "kubeproxy.config.k8s.io/v1alpha1"

SCHEMAS: dict[tuple[str, str], Struct] = {
    (V1BETA4, "InitConfiguration"): INIT,
    (V1BETA4, "ClusterConfiguration"): CLUSTER,
    (V1BETA4, "JoinConfiguration"): JOIN,
    (V1BETA4, "ResetConfiguration"): RESET,
    (V1BETA4, "UpgradeConfiguration"): UPGRADE,
    (V1BETA3, "InitConfiguration"): INIT_V1BETA3,
    (V1BETA3, "ClusterConfiguration"): CLUSTER_V1BETA3,
    (V1BETA3, "JoinConfiguration"): JOIN_V1BETA3,
    (KUBELET_V1BETA1, "KubeletConfiguration"): KUBELET,
    (KUBE_PROXY_V1ALPHA1, "KubeProxyConfiguration"): KUBE_PROXY,
    (KB_V1ALPHA1, "KbConfiguration"): KB,
}

COMPONENT_GROUPS = {"KubeletConfiguration": KUBELET_V1BETA1, "KubeProxyConfiguration": KUBE_PROXY_V1ALPHA1}

LAST_READER = {"v1alpha1": "v1.11", "v1alpha2": "v1.12", "v1alpha3": "v1.14", "v1beta1": "v1.15", "v1beta2": "v1.22"}
"""API versions that are gone -> the kubeadm whose `config migrate` still reads them."""
