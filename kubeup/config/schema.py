"""The documents that kb reads, as tables: field name -> type, per kind and version.

A default lives with the value: in the dataclass that a Struct makes (kubeup/config/types.py). There a field's attribute
is its name in snake case, with `_s` for a duration, unless `renames` says otherwise. To add a field: one row here, one
attribute there. Source: cmd/kubeadm/app/apis/kubeadm/v1beta4/types.go, v1beta3/types.go, bootstraptoken/v1/types.go;
corev1.EnvVar of k8s.io/api; configs/component-types/ for KubeletConfiguration and KubeProxyConfiguration.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Callable, Optional, Union

from kubeup.config import types
from kubeup.frozen_values import frozen
from kubeup.yaml_files import load_yaml, read_resource


@frozen
class Scalar:
    """One value. `wants` describes it in messages; bounds: the inclusive range of a whole number."""

    wants: str
    is_secret: bool = False
    bounds: Optional[tuple[int, int]] = None


TEXT = Scalar("a text")
SECRET = Scalar("a text", is_secret=True)
BOOL = Scalar("true or false")
NUMBER = Scalar("a whole number", bounds=(-(2**63) + 1, 2**63 - 1))
INT32 = Scalar(f"a whole number from {-(2**31)} to {2**31 - 1}", bounds=(-(2**31), 2**31 - 1))
INT64 = Scalar("a whole number of 64 bits", bounds=(-(2**63), 2**63 - 1))
UINT32 = Scalar(f"a whole number from 0 to {2**32 - 1}", bounds=(0, 2**32 - 1))
FLOAT = Scalar("a number")
DURATION = Scalar("a duration such as 90s, 4m0s or 24h")
DURATION_OR_NUMBER = Scalar("a duration such as 5s, or a whole number of nanoseconds")
QUANTITY = Scalar("a quantity such as 100m, 2, 1.5 or 512Mi")
TIME = Scalar("a time such as 2030-01-31T12:00:00Z")


@frozen
class Anything:
    """Passed through without checks."""


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
    since: Mapping[str, int] = field(default_factory=dict)
    """For fields that not all of kb's minors have: the first Kubernetes minor that has it."""


Type = Union[Scalar, Anything, ListOf, MapOf, Struct]

TEXTS = ListOf(TEXT)

# ---- makers: for documents whose shape differs from the value's shape


def _arg(name: str = "", value: str = "") -> types.Arg:
    return types.Arg(name, value)


def _volume(name: str = "", host_path: str = "", *, mount_path: str = "", **rest: Any) -> types.Volume:
    return types.Volume(name, host_path, mount_path, **rest)


def _taint(key: str = "", effect: str = "", **rest: Any) -> types.Taint:
    return types.Taint(key, effect, **rest)


def _bootstrap_token(ttl_s: Optional[int] = None, expires: Optional[str] = None, **rest: Any) -> types.BootstrapToken:
    """A ttl of 0 means no expiry, a token with `expires` has no ttl, and groups are only for authentication."""
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
_KEY_REF = Struct({"name": TEXT, "key": TEXT, "optional": BOOL})
_ENV_SOURCE = Struct(
    {
        "fieldRef": Struct({"apiVersion": TEXT, "fieldPath": TEXT}),
        "resourceFieldRef": Struct({"containerName": TEXT, "resource": TEXT, "divisor": QUANTITY}),
        "configMapKeyRef": _KEY_REF,
        "secretKeyRef": _KEY_REF,
        "fileKeyRef": Struct({"volumeName": TEXT, "path": TEXT, "key": TEXT, "optional": BOOL}),
    }
)
_ENVS = ListOf(Struct({"name": TEXT, "value": TEXT, "valueFrom": _ENV_SOURCE}))
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

# ---- kubeadm.k8s.io/v1beta3: the differences from v1beta4 (kubeup/config/convert.py converts it to v1beta4)


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

# ---- component configs: configs/component-types/*.yaml, read at first use, since most calls need none of them

_WORDS: dict[str, Scalar] = {
    "text": TEXT,
    "bool": BOOL,
    "int32": INT32,
    "int64": INT64,
    "uint32": UINT32,
    "float": FLOAT,
    "duration": DURATION,
    "duration or number": DURATION_OR_NUMBER,
    "quantity": QUANTITY,
    "time": TIME,
}
_SINCE = re.compile(r" since 1\.(\d+)$")


@functools.cache
def _component_structs(file: str) -> Mapping[str, Struct]:
    """The structs of a file in configs/component-types/, by name."""
    rows: Mapping[str, Mapping[str, str]] = load_yaml(read_resource(f"component-types/{file}.yaml"))
    structs = {name: Struct({}, since={}) for name in rows}

    def parse(word: str) -> Type:
        if word.startswith("list "):
            return ListOf(parse(word[len("list ") :]))
        if word.startswith("map "):
            return MapOf(parse(word[len("map ") :]))
        return structs[word] if word in structs else _WORDS[word]

    for name, fields in rows.items():
        known, since = structs[name].fields, structs[name].since
        assert isinstance(known, dict) and isinstance(since, dict)
        for field_name, text in fields.items():
            minor = _SINCE.search(text)
            known[field_name] = parse(_SINCE.sub("", text))
            if minor is not None:
                since[field_name] = int(minor[1])
    return structs


class _ComponentFields(Mapping[str, Type]):
    """The fields of a component configuration's outermost struct."""

    def __init__(self, file: str, kind: str) -> None:
        self.file = file
        self.kind = kind

    def __getitem__(self, name: str) -> Type:
        return self.struct.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.struct.fields)

    def __len__(self) -> int:
        return len(self.struct.fields)

    @property
    def struct(self) -> Struct:
        return _component_structs(self.file)[self.kind]


KUBELET = Struct(_ComponentFields("kubelet-v1beta1", "KubeletConfiguration"))
KUBE_PROXY = Struct(_ComponentFields("kube-proxy-v1alpha1", "KubeProxyConfiguration"))


def find_newer_fields(kind: str, tree: Mapping[str, Any], *, minor: int) -> list[tuple[str, int]]:
    """(path, first minor that has it) of each field of a component configuration that Kubernetes 1.`minor` lacks."""
    fields = {"KubeletConfiguration": KUBELET, "KubeProxyConfiguration": KUBE_PROXY}[kind].fields
    assert isinstance(fields, _ComponentFields)
    return list(_newer_fields(fields.struct, tree, minor=minor, path=""))


def _newer_fields(struct: Struct, tree: Mapping[str, Any], *, minor: int, path: str) -> Iterator[tuple[str, int]]:
    for name, value in tree.items():
        if struct.since.get(name, 0) > minor:
            yield path + name, struct.since[name]
        inner = struct.fields.get(name)
        if isinstance(inner, Struct) and isinstance(value, Mapping):
            yield from _newer_fields(inner, value, minor=minor, path=f"{path}{name}.")


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
"""Removed API versions -> the last kubeadm whose `config migrate` reads them."""
