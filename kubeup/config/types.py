"""The configuration as frozen values: kubeadm's v1beta4 documents with every default filled in.

Field names are the documents' names in snake case; durations are whole seconds (`_s`); lists are tuples. A field that
is absent from a document and has no default is None or empty. Other API versions are converted before they get here.
Source: cmd/kubeadm/app/apis/kubeadm/v1beta4/types.go
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Optional

from kubeup.frozen_values import frozen
from kubeup.secret import Secret

_NO_SECRET = Secret("")

FrozenDict = Mapping[str, Any]
"""A parsed YAML mapping that kb passes through (a KubeletConfiguration, an EnvVar). Never modified."""


@frozen
class Arg:
    """One entry of extraArgs: a flag's name without dashes, and its value ("" is a value)."""

    name: str
    value: str


@frozen
class Volume:
    """One entry of extraVolumes."""

    name: str
    host_path: str
    mount_path: str
    read_only: bool = False
    path_type: str = ""


@frozen
class Taint:
    key: str
    effect: str
    value: str = ""
    time_added: str = ""


@frozen
class BootstrapToken:
    """One entry of bootstrapTokens. `token` is `id.secret`; ttl_s None means that it never expires."""

    token: Secret
    description: str = ""
    ttl_s: Optional[int] = 86400
    expires: Optional[str] = None
    usages: tuple[str, ...] = ("signing", "authentication")
    groups: tuple[str, ...] = ("system:bootstrappers:kubeadm:default-node-token",)
    is_generated: bool = False
    """Whether kb generated the token; generated tokens do not count as a difference between two runs."""

    @property
    def token_id(self) -> str:
        return self.token.reveal().partition(".")[0]


@frozen
class NodeRegistration:
    """nodeRegistration of init and join. taints None: the workflow's default; (): no taints."""

    name: str
    cri_socket: str = "unix:///var/run/containerd/containerd.sock"
    taints: Optional[tuple[Taint, ...]] = None
    kubelet_extra_args: tuple[Arg, ...] = ()
    ignore_preflight_errors: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    image_pull_serial: bool = True


@frozen
class LocalAPIEndpoint:
    advertise_address: str = ""
    """"" in a document means that kb chooses one."""
    bind_port: int = 6443


@frozen
class Timeouts:
    """Timeouts in seconds. Never stored in the cluster."""

    control_plane_component_health_check_s: int = 240
    kubelet_health_check_s: int = 240
    kubernetes_api_call_s: int = 60
    etcd_api_call_s: int = 120
    tls_bootstrap_s: int = 300
    discovery_s: int = 300
    upgrade_manifests_s: int = 300


@frozen
class Networking:
    """service_subnet and pod_subnet are one CIDR or two ("a,b", dual-stack), verbatim; pod_subnet may be ""."""

    service_subnet: str = "10.96.0.0/12"
    pod_subnet: str = ""
    dns_domain: str = "cluster.local"


@frozen
class Component:
    """controllerManager, scheduler, and the fields that apiServer has in common with them."""

    extra_args: tuple[Arg, ...] = ()
    extra_volumes: tuple[Volume, ...] = ()
    extra_envs: tuple[FrozenDict, ...] = ()

    def last_arg(self, name: str) -> Optional[str]:
        """The value of the last extra argument `name`: the effective one."""
        values = [arg.value for arg in self.extra_args if arg.name == name]
        return values[-1] if values else None


@frozen
class APIServer(Component):
    cert_sans: tuple[str, ...] = ()


@frozen
class LocalEtcd(Component):
    """etcd.local; extra_volumes stays empty, because kubeadm has none for etcd."""

    data_dir: str = "/var/lib/etcd"
    image_repository: str = ""
    image_tag: str = ""
    server_cert_sans: tuple[str, ...] = ()
    peer_cert_sans: tuple[str, ...] = ()


@frozen
class ExternalEtcd:
    endpoints: tuple[str, ...]
    http_endpoints: tuple[str, ...] = ()
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@frozen
class DNS:
    image_repository: str = ""
    image_tag: str = ""
    disabled: bool = False


@frozen
class Proxy:
    disabled: bool = False


@frozen
class ClusterConfiguration:
    """What all nodes share; stored in the ConfigMap kubeadm-config.

    kubernetes_version is resolved (`v1.35.6`); control_plane_endpoint is "" or `host:port`; exactly one of local_etcd
    and external_etcd is set.
    """

    kubernetes_version: str
    networking: Networking = Networking()
    control_plane_endpoint: str = ""
    cluster_name: str = "kubernetes"
    certificates_dir: str = "/etc/kubernetes/pki"
    image_repository: str = "registry.k8s.io"
    encryption_algorithm: str = "RSA-2048"
    certificate_validity_period_s: int = 8760 * 3600
    ca_certificate_validity_period_s: int = 87600 * 3600
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    api_server: APIServer = APIServer()
    controller_manager: Component = Component()
    scheduler: Component = Component()
    dns: DNS = DNS()
    proxy: Proxy = Proxy()
    local_etcd: Optional[LocalEtcd] = LocalEtcd()
    external_etcd: Optional[ExternalEtcd] = None

    def service_cidrs(self) -> tuple[str, ...]:
        return tuple(self.networking.service_subnet.split(","))

    def service_address(self, index: int) -> str:
        """The address with this index in the first service CIDR: 1 is the API's, 10 the DNS service's."""
        return str(ipaddress.ip_network(self.service_cidrs()[0], strict=False)[index])

    def pod_cidrs(self) -> tuple[str, ...]:
        return tuple(cidr for cidr in self.networking.pod_subnet.split(",") if cidr)


@frozen
class PodNetwork:
    """KbConfiguration's podNetwork. plugin: bridge | manifest | none; manifest is a path or a URL."""

    plugin: str = "bridge"
    manifest: str = ""
    backend: str = "auto"
    """For bridge: auto (a route where nodes share a layer 2 network, else VXLAN) | route | vxlan"""
    mtu: int = 0
    """For bridge: 0 takes the MTU of the interface that holds the node's address."""
    image_repository: str = ""
    """For manifest: replaces the registry in the names of its images (`quay.io/a/b:1` -> `REPOSITORY/a/b:1`); "" keeps
    the names, and containerd asks the mirror for them."""


@frozen
class LoadBalancer:
    """KbConfiguration's loadBalancer. mode: none (controlPlaneEndpoint is the operator's own) | local (haproxy on every
    node; the name in controlPlaneEndpoint resolves to it)."""

    mode: str = "none"
    image: str = ""
    """"" takes kb's default, from the mirror if one is set."""
    health_port: int = 10281
    """haproxy's health check port on every node's loopback. Its other port is controlPlaneEndpoint's."""

    @property
    def is_local(self) -> bool:
        return self.mode == "local"


@frozen
class Runtime:
    """KbConfiguration's runtime."""

    fix: bool = False
    """Whether init may fix containerd's configuration (with a backup) and restart it."""


@frozen
class Mirror:
    """KbConfiguration's mirror: a registry that has every image under its own name."""

    endpoint: str = ""
    """`https://10.0.0.11:5000`"""
    ca_hash: str = ""
    """The pin of the CA that signed its certificate, sha256:<hex>; "" for the cluster's CA or a known one."""


@frozen
class Packages:
    """KbConfiguration's packages: the source of the node's programs."""

    source: str = "auto"
    """auto (the given bundle or mirror; else what is installed) | bundle | mirror | download | apt | dnf | none"""
    preset: str = ""
    """A row of configs/presets.yaml."""


@frozen
class KbConfiguration:
    """kb/v1alpha1: kb's own settings, for everything that kubeadm has no field for."""

    pod_network: PodNetwork = PodNetwork()
    bundle: str = ""
    """A bundle's path on this node. All programs and images come from it, and this node serves it to the others."""
    verify_key: str = ""
    """Path of the public key that must have signed the bundle."""
    mirror: Mirror = Mirror()
    packages: Packages = Packages()
    air_gapped: bool = False
    """Whether to refuse every connection that leads neither to the cluster nor to the mirror."""
    soak_s: int = 10
    """How long verify watches the static pods before it reports ready; 0 skips the soak."""
    runtime: Runtime = Runtime()
    only_kubeadm: bool = False
    """Do no more than kubeadm: write no unit, leave start at boot and --node-ip alone, treat no file as kb's own."""
    load_balancer: LoadBalancer = LoadBalancer()


@frozen
class BootstrapTokenDiscovery:
    """discovery.bootstrapToken of join."""

    token: Secret = _NO_SECRET
    api_server_endpoint: str = ""
    ca_cert_hashes: tuple[str, ...] = ()
    unsafe_skip_ca_verification: bool = False


@frozen
class Discovery:
    """How a joining node finds and trusts the cluster: exactly one of bootstrap_token and file (a path or URL)."""

    bootstrap_token: Optional[BootstrapTokenDiscovery] = None
    file: str = ""
    tls_bootstrap_token: Secret = _NO_SECRET


@frozen
class JoinControlPlane:
    """controlPlane of join: its mere presence makes the node a control plane."""

    local_api_endpoint: Optional[LocalAPIEndpoint] = None
    certificate_key: Secret = _NO_SECRET


@frozen
class JoinConfiguration:
    """JoinConfiguration with its static defaults; values that only a machine knows (name, socket) are in `node`."""

    node: NodeRegistration
    discovery: Discovery = Discovery()
    ca_cert_path: str = "/etc/kubernetes/pki/ca.crt"
    control_plane: Optional[JoinControlPlane] = None
    skip_phases: tuple[str, ...] = ()
    dry_run: bool = False
    patches_directory: str = ""
    timeouts: Timeouts = Timeouts()


@frozen
class Join:
    """What a joining node knows in addition to other nodes: from its own document, and from the discovered cluster."""

    server: str = ""
    """The API server that this node's kubelet talks to, as the cluster names it, not the command line."""
    ca_pem: str = ""
    ca_cert_path: str = JoinConfiguration.ca_cert_path
    """Where a worker keeps the cluster's CA."""
    control_plane: Optional[JoinControlPlane] = None
    """None: it becomes a worker."""
    bootstrap_kubeconfig: Secret = _NO_SECRET
    """The text of bootstrap-kubelet.conf; "" if the node is already a member and authenticates with kubelet.conf."""
    clock_skew_s: float = 0.0
    """How far the API server's clock is ahead of this node's."""
    api_servers: tuple[str, ...] = ()
    """`host:port` of every API server that discovery found: the initial list of a local load balancer."""
    reached_server: str = ""
    """The address at which kb itself reaches the cluster while `server` is a name that resolves only with a running
    load balancer; "" if `server` will do."""


@frozen
class NodeConfig:
    """Everything that a node should be: what file, flags and environment say, with every default filled in, and on a
    joining node what the cluster stores (cluster, kubelet, kb.pod_network). The phases of init and join read the same
    names."""

    cluster: ClusterConfiguration
    node: NodeRegistration
    local_api_endpoint: LocalAPIEndpoint
    bootstrap_tokens: tuple[BootstrapToken, ...] = ()
    certificate_key: Secret = _NO_SECRET
    skip_phases: tuple[str, ...] = ()
    dry_run: bool = False
    patches_directory: str = ""
    timeouts: Timeouts = Timeouts()
    kubelet: FrozenDict = field(default_factory=dict)
    """The user's KubeletConfiguration as given (camelCase); {} if none was given. Does not contain kb's defaults."""
    kube_proxy: FrozenDict = field(default_factory=dict)
    """The user's KubeProxyConfiguration, likewise."""
    kb: KbConfiguration = KbConfiguration()
    proxy_env: Mapping[str, str] = field(default_factory=dict)
    """The non-empty `*_proxy` variables of kb's own environment, in any case; passed to control-plane pods."""
    upload_certs: bool = False
    skip_token_print: bool = False
    skip_certificate_key_print: bool = False
    notes: tuple[str, ...] = ()
    """What was decided for the user and why, one sentence each: the advertise address, the version, the podSubnet."""
    warnings: tuple[str, ...] = ()
    """What works but deserves a warning: an unusual validity period, a deprecated API version."""
    join: Optional[Join] = None
    """What is known about the cluster that the node joins or has joined; None if it creates one."""

    @property
    def is_control_plane(self) -> bool:
        return self.join is None or self.join.control_plane is not None

    @property
    def joined(self) -> Join:
        """`join`, for phases that run only on joining nodes."""
        if self.join is None:
            raise RuntimeError("this node creates a cluster and joins none")
        return self.join


@frozen
class ResetConfiguration:
    certificates_dir: str = "/etc/kubernetes/pki"
    cleanup_tmp_dir: bool = False
    cri_socket: str = ""
    """"" means: find out which runtime is there."""
    dry_run: bool = False
    force: bool = False
    ignore_preflight_errors: tuple[str, ...] = ()
    skip_phases: tuple[str, ...] = ()
    unmount_flags: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()


@frozen
class UpgradeNode:
    """The fields that `upgrade node` and `upgrade apply` share."""

    certificate_renewal: bool = True
    etcd_upgrade: bool = True
    dry_run: bool = False
    ignore_preflight_errors: tuple[str, ...] = ()
    skip_phases: tuple[str, ...] = ()
    patches_directory: str = ""
    image_pull_policy: str = "IfNotPresent"
    image_pull_serial: bool = True


@frozen
class UpgradeApply(UpgradeNode):
    kubernetes_version: str = ""
    allow_experimental_upgrades: bool = False
    allow_rc_upgrades: bool = False
    force_upgrade: bool = False
    print_config: bool = False


@frozen
class UpgradePlan:
    kubernetes_version: str = ""
    allow_experimental_upgrades: bool = False
    allow_rc_upgrades: bool = False
    dry_run: bool = False
    etcd_upgrade: bool = True
    ignore_preflight_errors: tuple[str, ...] = ()
    print_config: bool = False


@frozen
class UpgradeDiff:
    kubernetes_version: str = ""
    context_lines: int = 0


@frozen
class UpgradeConfiguration:
    apply: UpgradeApply = UpgradeApply()
    node: UpgradeNode = UpgradeNode()
    plan: UpgradePlan = UpgradePlan()
    diff: UpgradeDiff = UpgradeDiff()
    timeouts: Timeouts = Timeouts()
