"""The flags: everything that kb knows about a flag is in its row, and nowhere else.

The parsers, help, completion, the fields that flags set, whether a flag may be combined with --config, and
docs/flags.md are derived from the rows. A command lists its flags in the order of this table. The schema defines the
fields of documents.

Owns the table. Must not load the schema, because every command line is parsed with this table. Source:
cmd/kubeadm/app/cmd/options/*.go, ValidateMixedArguments of cmd/kubeadm/app/apis/kubeadm/validation/validation.go
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.frozen_values import frozen


@frozen
class Flag:
    """One flag. The name has no leading dashes."""

    name: str
    help: str
    takes: str = "text"
    """text | list | texts | int | flag. A list has commas between its items or is repeated; texts are repeated, each as it is."""
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    is_hidden: bool = False
    of: tuple[str, ...] = ()
    """The commands that have it, in kubeadm too. `kubeadm reset`: only kubeadm's own reset."""
    added_to: tuple[str, ...] = ()
    """The commands to which kb adds it; kubeadm's command of the same name lacks it."""
    sets: tuple[str, ...] = ()
    """The fields of documents that it sets, one per kind: `ClusterConfiguration.networking.podSubnet`."""
    beside_config: bool = False
    """Whether it may be given together with --config and overrides the file. All of kb's own (KbConfiguration) may."""


INIT = ("init", "init phase")
JOIN = ("join", "join phase")

# fmt: off
FLAGS: tuple[Flag, ...] = (
    # Sources and targets
    Flag("output-file", "File to write the bundle or the backup to, - for standard output", metavar="FILE", short="o", of=("bundle create", "backup")),
    Flag("out", "File to write the plan to, for upgrade apply", metavar="FILE", of=("upgrade plan",)),
    Flag("age", "Encrypt with age to this public key, or to those in a file; may be repeated", takes="list", metavar="KEY|FILE", of=("backup", "backup schedule")),
    Flag("gpg", "Encrypt with gpg to this key of root's keyring; may be repeated", takes="list", metavar="KEY", of=("backup", "backup schedule")),
    Flag("keep", "How many backups to keep (default 7)", takes="int", metavar="N", of=("backup schedule",)),
    Flag("identity", "File with the key that opens a backup which age encrypted", metavar="FILE", of=("restore", "backup verify",)),
    Flag("old-config", "File to migrate", metavar="FILE", of=("config migrate",)),
    Flag("new-config", "File to write the migrated documents to (default: standard output)", metavar="FILE", of=("config migrate",)),
    Flag("set", "Argument to set; may be repeated, also with the same name", takes="texts", metavar="NAME=VALUE", of=("reconfigure",)),
    Flag("unset", "Argument to take away; may be repeated", takes="texts", metavar="NAME", of=("reconfigure",)),
    Flag("config", "File with configuration documents", metavar="FILE",
         of=("reconfigure", *INIT, *JOIN, "config validate", "config images list", "config images pull", "bundle create", "bundle verify", "kubeconfig user", "token create", "certs check-expiration", "certs renew", "certs generate-csr", "upgrade apply", "upgrade node", "upgrade plan", "upgrade diff", "kubeadm reset", "kubeadm upgrade apply", "kubeadm upgrade node", "kubeadm upgrade plan", "kubeadm upgrade diff")),
    Flag("allow-unknown-fields", "Warn about unknown or duplicate fields and documents instead of failing", takes="flag",
         of=("bundle create", "bundle verify"), added_to=(*INIT, *JOIN, "config images list", "config images pull")),
    Flag("allow-experimental-api", "Accept API versions that are not released", takes="flag", is_hidden=True,
         of=("config validate", "config migrate")),
    Flag("component-configs", "Component configurations to print as well", takes="list", metavar="KIND",
         of=("config print init-defaults", "config print join-defaults")),
    # Cluster
    Flag("kubernetes-version", "Kubernetes version, or a label such as stable-1.35", metavar="VERSION",
         of=("restore", *INIT, "config images list", "config images pull", "bundle create", "bundle verify"),
         sets=("ClusterConfiguration.kubernetesVersion",)),
    Flag("apiserver-advertise-address", "IP address on which the API server is reached", metavar="IP", of=("restore", *INIT, *JOIN),
         sets=("InitConfiguration.localAPIEndpoint.advertiseAddress", "JoinConfiguration.controlPlane.localAPIEndpoint.advertiseAddress")),
    Flag("apiserver-bind-port", "Port of the API server (default 6443)", takes="int", metavar="PORT", of=(*INIT, *JOIN),
         sets=("InitConfiguration.localAPIEndpoint.bindPort", "JoinConfiguration.controlPlane.localAPIEndpoint.bindPort")),
    Flag("apiserver-cert-extra-sans", "Additional names and addresses in the API server's certificate", takes="list", of=INIT,
         sets=("ClusterConfiguration.apiServer.certSANs",)),
    Flag("control-plane-endpoint", "Stable name or address that leads to all API servers", metavar="HOST[:PORT]", of=(*INIT, "restore"),
         sets=("ClusterConfiguration.controlPlaneEndpoint",)),
    Flag("pod-network-cidr", "IP range of pods", metavar="CIDR", of=INIT,
         sets=("ClusterConfiguration.networking.podSubnet",)),
    Flag("service-cidr", "IP range of Services (default 10.96.0.0/12)", metavar="CIDR", of=INIT,
         sets=("ClusterConfiguration.networking.serviceSubnet",)),
    Flag("service-dns-domain", "DNS domain of Services (default cluster.local)", metavar="DOMAIN", of=INIT,
         sets=("ClusterConfiguration.networking.dnsDomain",)),
    # Node
    Flag("node-name", "Name of this node (default: the host name)", metavar="NAME", of=("restore", *INIT, *JOIN),
         sets=("InitConfiguration.nodeRegistration.name", "JoinConfiguration.nodeRegistration.name"), beside_config=True),
    Flag("image-repository", "Registry to pull images from (default registry.k8s.io)", metavar="REGISTRY",
         of=(*INIT, "config images list", "config images pull", "bundle create", "bundle verify"),
         sets=("ClusterConfiguration.imageRepository",)),
    Flag("cri-socket", "Socket of the container runtime", metavar="URL",
         of=("restore", *INIT, *JOIN, "reset", "config images pull", "kubeadm reset"),
         sets=("InitConfiguration.nodeRegistration.criSocket", "JoinConfiguration.nodeRegistration.criSocket", "ResetConfiguration.criSocket")),
    Flag("cert-dir", "Folder of the certificates (default /etc/kubernetes/pki)", metavar="DIR",
         of=(*INIT, "kubeconfig user", "etcd members", "etcd remove", "etcd defrag", "etcd compact", "etcd alarm", "etcd leader", "etcd snapshot", "certs check-expiration", "certs renew", "certs generate-csr", "kubeadm reset"),
         sets=("ClusterConfiguration.certificatesDir", "ResetConfiguration.certificatesDir")),
    Flag("feature-gates", "kubeadm's feature gates, as Name=true,Name=false", metavar="GATES",
         of=(*INIT, "config images list", "config images pull"), sets=("ClusterConfiguration.featureGates",)),
    Flag("patches", "Folder with patches for the generated files", metavar="DIR", of=(*INIT, *JOIN, "adopt", "reconfigure", "reconfigure node", "upgrade plan", "upgrade diff", "upgrade apply", "upgrade node", "kubeadm upgrade apply", "kubeadm upgrade node"),
         sets=("InitConfiguration.patches.directory", "JoinConfiguration.patches.directory")),
    # Discovery and authentication of a joining node
    Flag("token", "Bootstrap token; for kubeconfig user: token to authenticate with", metavar="ID.SECRET", of=(*INIT, *JOIN, "kubeconfig user", "certs recover"),
         sets=("InitConfiguration.bootstrapTokens[0].token", "JoinConfiguration.discovery.bootstrapToken.token")),
    Flag("token-ttl", "Lifetime of the bootstrap token, 0 to never expire (default 24h0m0s)", metavar="DURATION", of=INIT,
         sets=("InitConfiguration.bootstrapTokens[0].ttl",)),
    Flag("discovery-token", "Token that proves the cluster to this node", metavar="ID.SECRET", of=JOIN,
         sets=("JoinConfiguration.discovery.bootstrapToken.token",)),
    Flag("discovery-token-ca-cert-hash", "Hash of the cluster's CA, as sha256:<hex>; may be repeated", takes="list",
         metavar="HASH", of=(*JOIN, "certs recover"), sets=("JoinConfiguration.discovery.bootstrapToken.caCertHashes",)),
    Flag("discovery-token-unsafe-skip-ca-verification", "Join without a CA hash: trust whoever signed with the token", takes="flag",
         of=JOIN, sets=("JoinConfiguration.discovery.bootstrapToken.unsafeSkipCAVerification",)),
    Flag("discovery-file", "Kubeconfig, or https URL of one, that leads to the cluster", metavar="FILE|URL", of=JOIN,
         sets=("JoinConfiguration.discovery.file.kubeConfigPath",)),
    Flag("tls-bootstrap-token", "Token with which the kubelet requests its certificate", metavar="ID.SECRET", of=JOIN,
         sets=("JoinConfiguration.discovery.tlsBootstrapToken",)),
    Flag("control-plane", "Join as a control plane; for token create: print the join command for one", takes="flag", of=JOIN,
         added_to=("token create",), sets=("JoinConfiguration.controlPlane",)),
    Flag("upload-certs", "Store the certificate authorities, encrypted, in the cluster", takes="flag", of=INIT),
    Flag("certificate-key", "Key that encrypts the certificates of --upload-certs", metavar="HEX",
         of=(*INIT, *JOIN, "token create"),
         sets=("InitConfiguration.certificateKey", "JoinConfiguration.controlPlane.certificateKey")),
    Flag("skip-token-print", "Do not print the bootstrap token", takes="flag", of=INIT),
    Flag("skip-certificate-key-print", "Do not print the key of --upload-certs", takes="flag", of=INIT),
    # Which phases run
    Flag("ignore-preflight-errors", "Checks whose errors become warnings, or 'all'", takes="list", metavar="NAME",
         of=("restore", *INIT, *JOIN, "kubeadm reset", "kubeadm upgrade apply", "kubeadm upgrade node", "kubeadm upgrade plan"),
         sets=("InitConfiguration.nodeRegistration.ignorePreflightErrors", "JoinConfiguration.nodeRegistration.ignorePreflightErrors", "ResetConfiguration.ignorePreflightErrors"),
         beside_config=True),
    Flag("skip-phases", "Phases to leave out", takes="list", metavar="NAME", of=("restore", *INIT, *JOIN, "reset", "upgrade apply", "upgrade node", "kubeadm reset", "kubeadm upgrade apply", "kubeadm upgrade node"),
         sets=("InitConfiguration.skipPhases", "JoinConfiguration.skipPhases", "ResetConfiguration.skipPhases"),
         beside_config=True),
    # kb's own settings of a node
    Flag("pod-network", "Pod network to install (default bridge)", choices=("bridge", "manifest", "none"),
         added_to=INIT, sets=("KbConfiguration.podNetwork.plugin",)),
    Flag("pod-network-manifest", "YAML file or URL of a pod network to apply", metavar="FILE|URL",
         of=("bundle create", "bundle verify"), added_to=INIT, sets=("KbConfiguration.podNetwork.manifest",)),
    Flag("load-balancer", "local: run haproxy on every node, behind --control-plane-endpoint (default none)",
         choices=("local", "none"), of=("reconfigure endpoint",), added_to=INIT, sets=("KbConfiguration.loadBalancer.mode",)),
    Flag("bundle", "Bundle to take programs and images from, and to serve to the other nodes", metavar="FILE", of=("restore", "upgrade apply", "upgrade node", "upgrade runtime", "upgrade plan"), added_to=INIT,
         sets=("KbConfiguration.bundle",)),
    Flag("verify-key", "Public ed25519 key (PEM) with which the bundle must be signed", metavar="KEYFILE",
         of=("restore", "upgrade apply", "upgrade node", "upgrade runtime", "bundle verify", "mirror add"), added_to=INIT, sets=("KbConfiguration.verifyKey",)),
    Flag("mirror", "Registry that has every image; the runtime is pointed to it", metavar="URL", of=("restore", "upgrade apply", "upgrade node", "upgrade runtime", "upgrade plan"), added_to=(*INIT, *JOIN),
         sets=("KbConfiguration.mirror.endpoint",)),
    Flag("mirror-ca-hash", "Hash of the CA of the mirror's certificate, as sha256:<hex>", metavar="HASH",
         of=("restore", "upgrade apply", "upgrade node", "upgrade runtime", "mirror use"), added_to=(*INIT, *JOIN), sets=("KbConfiguration.mirror.caHash",)),
    Flag("packages", "Source of the node's programs (default auto: the given bundle or mirror)",
         choices=("auto", "bundle", "mirror", "download", "apt", "dnf", "none"), of=("restore", "upgrade plan", "upgrade apply", "upgrade node", "upgrade runtime"), added_to=(*INIT, *JOIN),
         sets=("KbConfiguration.packages.source",)),
    Flag("preset", "Mirror for slow networks, by its name in configs/presets.yaml", metavar="NAME", of=("restore", "upgrade apply", "upgrade node", "upgrade runtime", "bundle create",),
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.packages.preset",)),
    Flag("air-gapped", "Refuse every connection that leads neither to the cluster nor to the mirror", takes="flag",
         of=("restore",), added_to=(*INIT, *JOIN), sets=("KbConfiguration.airGapped",)),
    Flag("soak", "Time to watch the control plane before calling it ready, 0 to skip (default 10s)", metavar="DURATION",
         added_to=(*INIT, *JOIN), sets=("KbConfiguration.soak",)),
    Flag("fix", "Put right what is wrong: containerd's configuration (with a backup), or what is named", takes="flag",
         of=("restore", "drift"), added_to=(*INIT, *JOIN), sets=("KbConfiguration.runtime.fix",)),
    # Single phases
    Flag("apiserver-extra-args", "Additional flags of the API server, as a=b,c=d", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.apiServer.extraArgs",)),
    Flag("controller-manager-extra-args", "Additional flags of the controller-manager, as a=b,c=d", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.controllerManager.extraArgs",)),
    Flag("scheduler-extra-args", "Additional flags of the scheduler, as a=b,c=d", metavar="ARGS", of=("init phase",),
         sets=("ClusterConfiguration.scheduler.extraArgs",)),
    # Tokens and users' kubeconfigs
    Flag("description", "Description of the token", metavar="TEXT", of=("token create",)),
    Flag("groups", "Groups of users who authenticate with the token", takes="list", metavar="GROUP", of=("token create",)),
    Flag("print-join-command", "Print the complete join command instead of only the token", takes="flag", of=("token create",)),
    Flag("ttl", "Lifetime of the token, 0 to never expire (default 24h0m0s)", metavar="DURATION", of=("token create",)),
    Flag("usages", "Purposes of the token: signing, authentication", takes="list", metavar="USAGE", of=("token create",)),
    Flag("client-name", "Name of the user: CN of the certificate", metavar="NAME", of=("kubeconfig user",)),
    Flag("org", "Groups of the user: O of the certificate", takes="list", metavar="GROUP", of=("kubeconfig user",)),
    Flag("validity-period", "Lifetime of the user's certificate (default 8760h0m0s)", metavar="DURATION", of=("kubeconfig user",)),
    Flag("server", "Address in the kubeconfig; the API server's certificate must have it", metavar="HOST[:PORT]",
         of=("kubeconfig user",)),
    # Air gap
    Flag("arch", "Architectures: amd64, arm64, ... (default: this machine's)", takes="list", metavar="ARCH",
         of=("bundle create", "bundle verify")),
    Flag("image", "Additional image to include; may be repeated", takes="list", metavar="NAME", of=("bundle create", "bundle verify")),
    Flag("file", "Additional file to include, under this title; may be repeated", takes="list", metavar="PATH[=TITLE]", of=("bundle create",)),
    Flag("from", "Sources, in order: URL of a registry, bundle or layout, folder of programs, official",
         takes="list", metavar="SOURCE", of=("bundle create",)),
    Flag("use", "Version of containerd, runc, cni or crictl to take", takes="list", metavar="COMPONENT=VERSION",
         of=("bundle create",)),
    Flag("without", "Component to leave out, or 'files' for all of them", takes="list", metavar="COMPONENT", of=("bundle create",)),
    Flag("since", "Bundle that exists already: leave out what it has", metavar="FILE",
         of=("bundle create", "bundle verify")),
    Flag("sign", "ed25519 key (PEM) to sign the bundle with", metavar="KEYFILE", of=("bundle create",)),
    Flag("listen", "Address to listen on (default :5000)", metavar="ADDRESS:PORT", of=("mirror serve",)),
    Flag("tls", "Serve TLS with the certificate that kb init made for this node's mirror", takes="flag", of=("mirror serve",)),
    Flag("tls-cert", "Certificate (PEM) to serve TLS with", metavar="FILE", of=("mirror serve",)),
    Flag("tls-key", "Key (PEM) of the certificate", metavar="FILE", of=("mirror serve",)),
    Flag("tls-ca", "CA (PEM) that signed the certificate", metavar="FILE", of=("mirror serve", "mirror sync")),
    Flag("no-access-log", "Do not log requests", takes="flag", of=("mirror serve",)),
    # Upgrades
    Flag("allow-experimental-upgrades", "Accept pre-releases of Kubernetes", takes="flag", of=("upgrade plan", "kubeadm upgrade apply", "kubeadm upgrade plan")),
    Flag("allow-release-candidate-upgrades", "Accept release candidates of Kubernetes", takes="flag", of=("upgrade plan", "kubeadm upgrade apply", "kubeadm upgrade plan")),
    # Flags at the end of every help text
    Flag("kubeconfig", "Kubeconfig to use (default /etc/kubernetes/admin.conf)", metavar="FILE",
         of=("init phase", "adopt", "doctor", "support-bundle", "upgrade plan", "upgrade diff", "token create", "token list", "token delete", "certs check-expiration", "certs renew", "kubeadm reset", "kubeadm upgrade apply", "kubeadm upgrade node", "kubeadm upgrade plan", "kubeadm upgrade diff")),
    Flag("kubeconfig-dir", "Folder to write kubeconfigs to (default /etc/kubernetes)", metavar="DIR",
         of=("init phase", "certs generate-csr")),
    Flag("cleanup-tmp-dir", "Empty /etc/kubernetes/tmp too", takes="flag", of=("kubeadm reset",),
         sets=("ResetConfiguration.cleanupTmpDir",), beside_config=True),
    Flag("to", "File, or URL of the registry, to write to; for backups a folder, s3://, rclone: or mc:", metavar="FILE|URL", of=("support-bundle", "mirror sync", "backup schedule")),
    Flag("once", "Update once and exit", takes="flag", of=("routes", "load-balancer")),
    Flag("undo", "Take back what this command changed last on this node", takes="flag", of=("upgrade runtime", "reconfigure endpoint", "reconfigure static-pods", "etcd recover", "certs add-san", "certs rotate-sa", "certs rotate-ca")),
    Flag("continue", "Go on with what another control plane has begun, and begin nothing", takes="flag", of=("certs rotate-sa", "certs rotate-ca")),
    Flag("finish", "Begin the last stage: the former one is accepted no more", takes="flag", of=("certs rotate-sa", "certs rotate-ca")),
    Flag("restart-workloads", "Restart what may still hold something of the former one", takes="flag", of=("certs rotate-sa", "certs rotate-ca")),
    Flag("try", "Go back by itself after this time unless kb reconfigure confirm comes", metavar="DURATION", of=("reconfigure", "reconfigure static-pods")),
    Flag("remove", "Take the names out of the certificate instead of adding them", takes="flag", of=("certs add-san",)),
    Flag("lost", "Member of etcd that is lost for good and will not start again; once for each other member", takes="list", metavar="MEMBER",
         of=("etcd recover",)),
    Flag("known", "How far another member is: the entry that it ends at, or the folder of its data", takes="list",
         metavar="MEMBER=INDEX|FOLDER", of=("etcd recover",)),
    Flag("accept", "Say that what is named is meant, and is not to be told again", takes="flag", of=("drift",)),
    Flag("all", "Everything that drifted, of --fix or --accept", takes="flag", of=("drift",)),
    Flag("yes", "Do not ask for consent to an outage", takes="flag", short="y",
         of=("drift", "upgrade finish", "upgrade rollback", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure back", "upgrade apply", "upgrade node", "upgrade runtime", "etcd defrag", "etcd alarm", "etcd recover", "kubeadm upgrade apply", "node remove", "node drain", "node reboot", "mirror stop", "certs rotate-sa", "certs rotate-ca")),
    Flag("before-stop", "Command that takes the API server (KB_SERVER) out of your own load balancer", metavar="COMMAND",
         of=("drift", "upgrade rollback", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure back", "upgrade apply", "upgrade node", "certs rotate-sa", "certs rotate-ca")),
    Flag("after-start", "Command that puts the API server (KB_SERVER) back into your own load balancer", metavar="COMMAND", of=("drift", "upgrade rollback", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure back", "upgrade apply", "upgrade node", "certs rotate-sa", "certs rotate-ca")),
    Flag("hand-edits", "What becomes of changes of this node's manifests that the configuration lacks", choices=("keep", "drop"), of=("upgrade plan", "upgrade diff", "upgrade apply", "upgrade node", "upgrade rollback")),
    Flag("no-drain", "Do not evict the node's pods first: before another minor, or before it is removed", takes="flag", of=("upgrade rollback", "upgrade apply", "upgrade node", "upgrade runtime", "node remove", "node reboot")),
    Flag("drain-timeout", "How long disruption budgets may refuse to let pods go (default 5m)", metavar="DURATION", of=("upgrade apply", "upgrade node", "upgrade runtime", "upgrade rollback", "node remove", "node drain", "node reboot")),
    Flag("cluster", "Examine the cluster as a control plane knows it, and not this node", takes="flag", of=("doctor",)),
    Flag("probe-pods", "Make short pods here and on other nodes, and prove what they reach", takes="flag", of=("doctor",)),
    Flag("textfile", "Write the findings as metrics to a file in this folder, for node_exporter", metavar="DIR", of=("doctor",)),
    Flag("watch", "Go on, and print what begins and what ends", takes="flag", of=("doctor",)),
    Flag("if-required", "Reboot only if the package manager says that one is due", takes="flag", of=("node reboot",)),
    Flag("kubelet-only", "Take back the kubelet alone, and leave the static pods", takes="flag", of=("upgrade rollback",)),
    Flag("certificate-renewal", "Whether to renew this node's certificates (default true)", choices=("true", "false"), of=("upgrade apply", "upgrade node", "kubeadm upgrade apply", "kubeadm upgrade node")),
    Flag("etcd-upgrade", "Whether to upgrade etcd too (default true)", choices=("true", "false"), of=("upgrade apply", "upgrade node", "kubeadm upgrade apply", "kubeadm upgrade node", "kubeadm upgrade plan")),
    Flag("force", "Go on all the same: without confirmation, or where a check objects", takes="flag", short="f", of=("restore", "reset", "readdress", "upgrade apply", "upgrade node", "etcd remove", "etcd recover", "certs recover", "mirror remove", "mirror use", "kubeadm reset", "kubeadm upgrade apply", "certs rotate-sa", "certs rotate-ca"),
         sets=("ResetConfiguration.force",), beside_config=True),
    Flag("dry-run", "Print what would be done, without changing anything", takes="flag",
         of=("drift", "drift schedule", "upgrade rollback", "restore", *INIT, *JOIN, "reconfigure endpoint", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure confirm", "reconfigure back", "readdress", "upgrade apply", "upgrade node", "upgrade self", "reset", "adopt", "backup", "token create", "token list", "token delete", "certs recover", "etcd recover", "etcd defrag", "etcd compact", "etcd alarm", "etcd leader", "etcd remove", "certs auto", "certs add-san", "backup schedule", "kubeadm reset", "kubeadm upgrade apply", "kubeadm upgrade node", "node remove", "node drain", "node uncordon", "node reboot", "mirror remove", "mirror gc", "mirror move", "mirror use", "mirror stop", "certs rotate-sa", "certs rotate-ca"), added_to=("certs renew",),
         sets=("InitConfiguration.dryRun", "JoinConfiguration.dryRun", "ResetConfiguration.dryRun"), beside_config=True),
    Flag("root", "Write the node's files below DIR and leave this machine alone", metavar="DIR", added_to=INIT),
    Flag("expiring", "Renew only what has less than a fifth of its life left", takes="flag", added_to=("certs renew",)),
    Flag("within", "Exit with status 1 if a certificate has expired or expires within this time: 30d, 12h", metavar="DURATION",
         added_to=("certs check-expiration",)),
    Flag("list", "List the phases", takes="flag", of=("upgrade rollback", "restore", "reconfigure endpoint", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure back", "readdress", "upgrade apply", "upgrade node", "certs add-san", "node remove", "node reboot", "mirror move", "certs rotate-sa", "certs rotate-ca"), added_to=(*INIT, *JOIN, "reset")),
    Flag("output", "Output format: text, json, yaml (version also: short)", short="o",
         choices=("text", "json", "yaml", "short"),
         of=("upgrade rollback", "restore", "upgrade plan", "upgrade diff", "reconfigure endpoint", "reconfigure", "reconfigure node", "reconfigure static-pods", "reconfigure back", "readdress", "upgrade apply", "upgrade node", "upgrade self", "adopt", "backup", "backup verify", "backup schedule", "status", "doctor", "drift", "drift schedule", "config images list", "bundle verify", "bundle show", "bundle diff", "token list", "etcd members", "certs check-expiration", "certs recover", "kubeconfig list", "etcd defrag", "etcd compact", "etcd alarm", "etcd leader", "etcd remove", "etcd recover", "etcd snapshot", "certs auto", "certs add-san", "version", "kubeadm upgrade plan", "node remove", "node drain", "node reboot", "mirror list", "mirror remove", "mirror gc", "mirror move", "mirror use", "mirror stop", "certs rotate-sa", "certs rotate-ca"),
         added_to=(*INIT, *JOIN, "reset", "token create", "certs renew")),
    Flag("print-config", "Print the cluster's configuration before the upgrade", takes="flag", of=("kubeadm upgrade apply", "kubeadm upgrade plan")),
    Flag("context-lines", "Lines of context around each difference (default 3)", takes="int", metavar="LINES", short="c", of=("upgrade diff", "kubeadm upgrade diff")),
    Flag("show-managed-fields", "kubeadm's; nothing that is printed has such fields", takes="flag", is_hidden=True),
    Flag("allow-missing-template-keys", "kubeadm's, of forms that kb does not print", takes="flag", is_hidden=True),
    Flag("vmodule", "Has no effect", metavar="SPEC", is_hidden=True),
    Flag("rootfs", "Not in kb", metavar="DIR", is_hidden=True),
)

EVERYWHERE: tuple[Flag, ...] = (
    Flag("v", "Log level: 1 for every changed file, 2 for commands too", takes="int", metavar="LEVEL", short="v"),
    Flag("debug", "Show the traceback of an error", takes="flag"),
)
"""The flags that every command has."""

WORDS: tuple[Flag, ...] = (
    Flag("endpoint", "HOST:PORT of the API server, a word of join", sets=("JoinConfiguration.discovery.bootstrapToken.apiServerEndpoint",)),
    Flag("only-kubeadm", "Whether kb was called as kubeadm", takes="flag", sets=("KbConfiguration.onlyKubeadm",)),
)
"""Settings that a call makes in documents without a flag."""
# fmt: on

BY_NAME: Mapping[str, Flag] = {flag.name: flag for flag in (*FLAGS, *EVERYWHERE)}
_BY_COMMAND: dict[str, list[str]] = {}
for _flag in FLAGS:
    for _command in (*_flag.of, *_flag.added_to):
        _BY_COMMAND.setdefault(_command, []).append(_flag.name)


def flags_of(command: str) -> tuple[str, ...]:
    """The names of a command's flags; `kubeadm reset` is kubeadm's own reset."""
    return tuple(_BY_COMMAND.get(command, ()))
