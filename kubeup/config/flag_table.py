"""The flags: everything that kb knows of one stands in its row, and nowhere else.

The parsers, their help, completion, what a flag says in a document, whether it may stand beside --config, and docs/flags.md
follow from the rows. A command lists its flags in the order of this table. What a field of a document is, the
schema says.

Owns the table. Must not need the schema to be loaded: every command line is parsed with it.
Source: cmd/kubeadm/app/cmd/options/*.go, ValidateMixedArguments of cmd/kubeadm/app/apis/kubeadm/validation/validation.go
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.frozen_values import frozen


@frozen
class Flag:
    """One flag, without its dashes."""

    name: str
    help: str
    takes: str = "text"
    """text | list | int | flag"""
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    is_hidden: bool = False
    of: tuple[str, ...] = ()
    """The commands that have it; kubeadm's of the same name has it too. `kubeadm reset`: kubeadm's alone."""
    added_to: tuple[str, ...] = ()
    """The commands to which kb adds it: kubeadm's of the same name lacks it."""
    sets: tuple[str, ...] = ()
    """The fields of documents that it says, one a kind: `ClusterConfiguration.networking.podSubnet`."""
    beside_config: bool = False
    """Whether it may be given together with --config, and wins over the file. kb's own (KbConfiguration) all may."""


INIT = ("init", "init phase")
JOIN = ("join", "join phase")

# fmt: off
FLAGS: tuple[Flag, ...] = (
    # Where from, and where to
    Flag("output-file", "the bundle to write", metavar="FILE", short="o", of=("bundle create",)),
    Flag("old-config", "the file to migrate", metavar="FILE", of=("config migrate",)),
    Flag("new-config", "write the migrated documents here instead of printing them", metavar="FILE", of=("config migrate",)),
    Flag("config", "a file of configuration documents", metavar="FILE",
         of=(*INIT, *JOIN, "config validate", "config images list", "config images pull", "bundle create", "bundle verify", "kubeconfig user", "token create", "certs check-expiration", "certs renew", "certs generate-csr", "kubeadm reset")),
    Flag("allow-unknown-fields", "of fields and documents that kb does not know, or doubled ones, only warn", takes="flag",
         of=("bundle create", "bundle verify"), added_to=(*INIT, *JOIN, "config images list", "config images pull")),
    Flag("allow-experimental-api", "accept API versions that are not released", takes="flag", is_hidden=True,
         of=("config validate", "config migrate")),
    Flag("component-configs", "print these component configurations too", takes="list", metavar="KIND",
         of=("config print init-defaults", "config print join-defaults")),
    # The cluster
    Flag("kubernetes-version", "the Kubernetes version, or a label such as stable-1.35", metavar="VERSION",
         of=(*INIT, "config images list", "config images pull", "bundle create", "bundle verify"),
         sets=("ClusterConfiguration.kubernetesVersion",)),
    Flag("apiserver-advertise-address", "the address on which the API server is reached", metavar="IP", of=(*INIT, *JOIN),
         sets=("InitConfiguration.localAPIEndpoint.advertiseAddress", "JoinConfiguration.controlPlane.localAPIEndpoint.advertiseAddress")),
    Flag("apiserver-bind-port", "the API server's port (6443)", takes="int", metavar="PORT", of=(*INIT, *JOIN),
         sets=("InitConfiguration.localAPIEndpoint.bindPort", "JoinConfiguration.controlPlane.localAPIEndpoint.bindPort")),
    Flag("apiserver-cert-extra-sans", "further names and addresses in the API server's certificate", takes="list", of=INIT,
         sets=("ClusterConfiguration.apiServer.certSANs",)),
    Flag("control-plane-endpoint", "a stable name or address for all API servers", metavar="HOST[:PORT]", of=INIT,
         sets=("ClusterConfiguration.controlPlaneEndpoint",)),
    Flag("pod-network-cidr", "the addresses of pods", metavar="CIDR", of=INIT,
         sets=("ClusterConfiguration.networking.podSubnet",)),
    Flag("service-cidr", "the addresses of Services (10.96.0.0/12)", metavar="CIDR", of=INIT,
         sets=("ClusterConfiguration.networking.serviceSubnet",)),
    Flag("service-dns-domain", "the DNS domain of Services (cluster.local)", metavar="DOMAIN", of=INIT,
         sets=("ClusterConfiguration.networking.dnsDomain",)),
    # The node
    Flag("node-name", "this node's name (the host name)", metavar="NAME", of=(*INIT, *JOIN),
         sets=("InitConfiguration.nodeRegistration.name", "JoinConfiguration.nodeRegistration.name"), beside_config=True),
    Flag("image-repository", "where the images come from (registry.k8s.io)", metavar="REGISTRY",
         of=(*INIT, "config images list", "config images pull", "bundle create", "bundle verify"),
         sets=("ClusterConfiguration.imageRepository",)),
    Flag("cri-socket", "the container runtime's socket", metavar="URL",
         of=(*INIT, *JOIN, "reset", "config images pull", "kubeadm reset"),
         sets=("InitConfiguration.nodeRegistration.criSocket", "JoinConfiguration.nodeRegistration.criSocket", "ResetConfiguration.criSocket")),
    Flag("cert-dir", "the certificates' folder (/etc/kubernetes/pki)", metavar="DIR",
         of=(*INIT, "kubeconfig user", "etcd members", "etcd remove", "certs check-expiration", "certs renew", "certs generate-csr", "kubeadm reset"),
         sets=("ClusterConfiguration.certificatesDir", "ResetConfiguration.certificatesDir")),
    Flag("feature-gates", "kubeadm's feature gates, Name=true,...", metavar="GATES",
         of=(*INIT, "config images list", "config images pull"), sets=("ClusterConfiguration.featureGates",)),
    Flag("patches", "a folder of patches for the generated files", metavar="DIR", of=(*INIT, *JOIN, "adopt"),
         sets=("InitConfiguration.patches.directory", "JoinConfiguration.patches.directory")),
    # How a node finds its cluster, and is let in
    Flag("token", "the bootstrap token", metavar="ID.SECRET", of=(*INIT, *JOIN, "kubeconfig user"),
         sets=("InitConfiguration.bootstrapTokens[0].token", "JoinConfiguration.discovery.bootstrapToken.token")),
    Flag("token-ttl", "token lifetime (0: never expires) (24h0m0s)", metavar="DURATION", of=INIT,
         sets=("InitConfiguration.bootstrapTokens[0].ttl",)),
    Flag("discovery-token", "the token that proves the cluster to this node", metavar="ID.SECRET", of=JOIN,
         sets=("JoinConfiguration.discovery.bootstrapToken.token",)),
    Flag("discovery-token-ca-cert-hash", "the pin of the cluster's CA, sha256:<hex>; may be repeated", takes="list",
         metavar="HASH", of=JOIN, sets=("JoinConfiguration.discovery.bootstrapToken.caCertHashes",)),
    Flag("discovery-token-unsafe-skip-ca-verification", "join without a pin: trust whoever signed with the token", takes="flag",
         of=JOIN, sets=("JoinConfiguration.discovery.bootstrapToken.unsafeSkipCAVerification",)),
    Flag("discovery-file", "a kubeconfig, or an https URL of one, that leads to the cluster", metavar="FILE|URL", of=JOIN,
         sets=("JoinConfiguration.discovery.file.kubeConfigPath",)),
    Flag("tls-bootstrap-token", "the token with which the kubelet asks for its certificate", metavar="ID.SECRET", of=JOIN,
         sets=("JoinConfiguration.discovery.tlsBootstrapToken",)),
    Flag("control-plane", "of a further control plane: join as one, or print its join command", takes="flag", of=JOIN,
         added_to=("token create",), sets=("JoinConfiguration.controlPlane",)),
    Flag("upload-certs", "store the certificate authorities, encrypted, in the cluster", takes="flag", of=INIT),
    Flag("certificate-key", "the key that encrypts the certificates of --upload-certs", metavar="HEX",
         of=(*INIT, *JOIN, "token create"),
         sets=("InitConfiguration.certificateKey", "JoinConfiguration.controlPlane.certificateKey")),
    Flag("skip-token-print", "do not print the bootstrap token", takes="flag", of=INIT),
    Flag("skip-certificate-key-print", "do not print the key of --upload-certs", takes="flag", of=INIT),
    # Which of the work
    Flag("ignore-preflight-errors", "checks whose errors become warnings; 'all' for every check", takes="list", metavar="NAME",
         of=(*INIT, *JOIN, "kubeadm reset"),
         sets=("InitConfiguration.nodeRegistration.ignorePreflightErrors", "JoinConfiguration.nodeRegistration.ignorePreflightErrors", "ResetConfiguration.ignorePreflightErrors"),
         beside_config=True),
    Flag("skip-phases", "leave out these phases", takes="list", metavar="NAME", of=(*INIT, *JOIN, "reset", "kubeadm reset"),
         sets=("InitConfiguration.skipPhases", "JoinConfiguration.skipPhases", "ResetConfiguration.skipPhases"),
         beside_config=True),
    # kb's own wishes of a node
    Flag("pod-network", "the pod network: bridge, manifest or none (bridge)", choices=("bridge", "manifest", "none"),
         added_to=INIT, sets=("KbConfiguration.podNetwork.plugin",)),
    Flag("pod-network-manifest", "a YAML file or URL of a pod network to apply", metavar="FILE|URL",
         of=("bundle create", "bundle verify"), added_to=INIT, sets=("KbConfiguration.podNetwork.manifest",)),
    Flag("load-balancer", "local: haproxy on every node, behind the name of --control-plane-endpoint (none)",
         choices=("local", "none"), of=("reconfigure endpoint",), added_to=INIT, sets=("KbConfiguration.loadBalancer.mode",)),
    Flag("bundle", "take programs and images from this bundle, and serve it to the other nodes", metavar="FILE", added_to=INIT,
         sets=("KbConfiguration.bundle",)),
    Flag("verify-key", "the public ed25519 key (PEM) that must have signed it", metavar="KEYFILE",
         of=("bundle verify", "mirror add"), added_to=INIT, sets=("KbConfiguration.verifyKey",)),
    Flag("mirror", "a registry that has every image: the runtime is pointed to it", metavar="URL", added_to=(*INIT, *JOIN),
         sets=("KbConfiguration.mirror.endpoint",)),
    Flag("mirror-ca-hash", "the pin of the authority of the mirror's certificate, sha256:<hex>", metavar="HASH",
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.mirror.caHash",)),
    Flag("packages", "where the node's programs come from (auto: the bundle or mirror that was given)",
         choices=("auto", "bundle", "mirror", "download", "apt", "dnf", "none"), added_to=(*INIT, *JOIN),
         sets=("KbConfiguration.packages.source",)),
    Flag("preset", "a mirror for slow networks, by its name in configs/presets.yaml", metavar="NAME", of=("bundle create",),
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.packages.preset",)),
    Flag("air-gapped", "refuse every connection that leads neither to the cluster nor to the mirror", takes="flag",
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.airGapped",)),
    Flag("soak", "how long the control plane is watched before it is called ready (10s; 0: not at all)", metavar="DURATION",
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.soak",)),
    Flag("fix", "fix containerd's configuration where it is wrong (with a backup), and restart it", takes="flag",
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.runtime.fix",)),
    # Phases one by one
    Flag("apiserver-extra-args", "further flags of the API server, a=b,c=d", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.apiServer.extraArgs",)),
    Flag("controller-manager-extra-args", "further flags of the controller-manager", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.controllerManager.extraArgs",)),
    Flag("scheduler-extra-args", "further flags of the scheduler", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.scheduler.extraArgs",)),
    # Tokens, and kubeconfigs of users
    Flag("description", "what the token is for, in words", metavar="TEXT", of=("token create",)),
    Flag("groups", "the groups of whoever logs in with the token", takes="list", metavar="GROUP", of=("token create",)),
    Flag("print-join-command", "print the whole join command instead of the token alone", takes="flag", of=("token create",)),
    Flag("ttl", "token lifetime (0: never expires) (24h0m0s)", metavar="DURATION", of=("token create",)),
    Flag("usages", "what the token is good for: signing, authentication", takes="list", metavar="USAGE", of=("token create",)),
    Flag("client-name", "the user's name: the certificate's CN", metavar="NAME", of=("kubeconfig user",)),
    Flag("org", "the user's groups: the certificate's O", takes="list", metavar="GROUP", of=("kubeconfig user",)),
    Flag("validity-period", "how long the user's certificate is good (8760h0m0s)", metavar="DURATION", of=("kubeconfig user",)),
    Flag("server", "the address in the kubeconfig; it must be in the API server's certificate", metavar="HOST[:PORT]",
         of=("kubeconfig user",)),
    # The air gap
    Flag("arch", "architectures: amd64, arm64, ... (this machine's)", takes="list", metavar="ARCH",
         of=("bundle create", "bundle verify")),
    Flag("image", "a further image", takes="list", metavar="NAME", of=("bundle create", "bundle verify")),
    Flag("file", "a further file, under this title", takes="list", metavar="PATH[=TITLE]", of=("bundle create",)),
    Flag("from", "where to take it from, in order: a registry's URL, a bundle or layout, a folder of programs, official",
         takes="list", metavar="SOURCE", of=("bundle create",)),
    Flag("use", "take this version of containerd, runc, cni or crictl", takes="list", metavar="COMPONENT=VERSION",
         of=("bundle create",)),
    Flag("without", "leave out a component, or `files`: all of them", takes="list", metavar="COMPONENT", of=("bundle create",)),
    Flag("since", "a bundle that is there already: leave out what it has", metavar="FILE",
         of=("bundle create", "bundle verify")),
    Flag("sign", "sign it with this ed25519 key (PEM)", metavar="KEYFILE", of=("bundle create",)),
    Flag("listen", "where to listen (:5000)", metavar="ADDRESS:PORT", of=("mirror serve",)),
    Flag("tls", "serve TLS with the certificate that kb init made for this node's mirror", takes="flag", of=("mirror serve",)),
    Flag("tls-cert", "serve TLS with this certificate (PEM)", metavar="FILE", of=("mirror serve",)),
    Flag("tls-key", "the certificate's key (PEM)", metavar="FILE", of=("mirror serve",)),
    Flag("tls-ca", "the authority that signed the certificate (PEM)", metavar="FILE", of=("mirror serve", "mirror sync")),
    Flag("no-access-log", "do not log every request", takes="flag", of=("mirror serve",)),
    # What stands at the end of any help
    Flag("kubeconfig", "the kubeconfig to use (/etc/kubernetes/admin.conf)", metavar="FILE",
         of=("init phase", "adopt", "doctor", "support-bundle", "token create", "token list", "token delete", "certs check-expiration", "certs renew", "kubeadm reset")),
    Flag("kubeconfig-dir", "where kubeconfigs are written (/etc/kubernetes)", metavar="DIR",
         of=("init phase", "certs generate-csr")),
    Flag("cleanup-tmp-dir", "empty /etc/kubernetes/tmp too", takes="flag", of=("kubeadm reset",),
         sets=("ResetConfiguration.cleanupTmpDir",), beside_config=True),
    Flag("to", "the file, or the registry's URL, to write to", metavar="FILE|URL", of=("support-bundle", "mirror sync")),
    Flag("once", "bring the routes up to date once and end", takes="flag", of=("routes", "load-balancer")),
    Flag("undo", "go back to what was before the last reconfiguration of this node", takes="flag", of=("reconfigure endpoint",)),
    Flag("force", "do not ask", takes="flag", short="f", of=("reset", "etcd remove", "kubeadm reset"),
         sets=("ResetConfiguration.force",), beside_config=True),
    Flag("dry-run", "look, and print what would be done; change nothing", takes="flag",
         of=(*INIT, *JOIN, "reconfigure endpoint", "reset", "adopt", "token create", "token list", "token delete", "kubeadm reset"),
         sets=("InitConfiguration.dryRun", "JoinConfiguration.dryRun", "ResetConfiguration.dryRun"), beside_config=True),
    Flag("root", "write the node's files below DIR and leave this machine alone", metavar="DIR", added_to=INIT),
    Flag("list", "list the phases", takes="flag", of=("reconfigure endpoint",), added_to=(*INIT, *JOIN, "reset")),
    Flag("output", "the form of the result: text, json, yaml (version also: short)", short="o",
         choices=("text", "json", "yaml", "short"),
         of=("reconfigure endpoint", "adopt", "status", "doctor", "config images list", "bundle verify", "bundle show", "bundle diff", "token list", "etcd members", "certs check-expiration", "version"),
         added_to=(*INIT, *JOIN, "reset", "token create")),
    Flag("show-managed-fields", "kubeadm's; nothing that is printed has such fields", takes="flag", is_hidden=True),
    Flag("allow-missing-template-keys", "kubeadm's, of forms that kb does not print", takes="flag", is_hidden=True),
    Flag("vmodule", "has no effect", metavar="SPEC", is_hidden=True),
    Flag("rootfs", "not in kb", metavar="DIR", is_hidden=True),
)

EVERYWHERE: tuple[Flag, ...] = (
    Flag("v", "say more: 1 every changed file, 2 commands too", takes="int", metavar="LEVEL", short="v"),
    Flag("debug", "show the traceback of an error", takes="flag"),
)
"""The flags that every command has."""

WORDS: tuple[Flag, ...] = (
    Flag("endpoint", "the API server's HOST:PORT, a word of join", sets=("JoinConfiguration.discovery.bootstrapToken.apiServerEndpoint",)),
    Flag("only-kubeadm", "whether kb was called as kubeadm", takes="flag", sets=("KbConfiguration.onlyKubeadm",)),
)
"""What a call says in documents without a flag."""
# fmt: on

BY_NAME: Mapping[str, Flag] = {flag.name: flag for flag in (*FLAGS, *EVERYWHERE)}
_BY_COMMAND: dict[str, list[str]] = {}
for _flag in FLAGS:
    for _command in (*_flag.of, *_flag.added_to):
        _BY_COMMAND.setdefault(_command, []).append(_flag.name)


def flags_of(command: str) -> tuple[str, ...]:
    """The names of a command's flags; `kubeadm reset` is kubeadm's."""
    return tuple(_BY_COMMAND.get(command, ()))
