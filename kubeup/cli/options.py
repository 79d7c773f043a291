"""The flags: what each is called, takes and says, and which of them init, join and the phases take.

Owns the table OPTIONS.
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.frozen_values import frozen


@frozen
class Option:
    """One flag. takes: text | list | int | flag."""

    help: str
    takes: str = "text"
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    is_hidden: bool = False


OPTIONS: Mapping[str, Option] = {
    # kubeadm's
    "apiserver-advertise-address": Option("the address on which the API server is reached", metavar="IP"),
    "apiserver-bind-port": Option("the API server's port (6443)", "int", metavar="PORT"),
    "apiserver-cert-extra-sans": Option("further names and addresses in the API server's certificate", "list"),
    "cert-dir": Option("the certificates' folder (/etc/kubernetes/pki)", metavar="DIR"),
    "certificate-key": Option("the key that encrypts the certificates of --upload-certs", metavar="HEX"),
    "client-name": Option("the user's name: the certificate's CN", metavar="NAME"),
    "component-configs": Option("print these component configurations too", "list", metavar="KIND"),
    "config": Option("a file of configuration documents", metavar="FILE"),
    "allow-unknown-fields": Option("of fields and documents that kb does not know, or doubled ones, only warn", "flag"),
    "control-plane-endpoint": Option("a stable name or address for all API servers", metavar="HOST[:PORT]"),
    "cri-socket": Option("the container runtime's socket", metavar="URL"),
    "dry-run": Option("look, and print what would be done; change nothing", "flag"),
    "feature-gates": Option("kubeadm's feature gates, Name=true,...", metavar="GATES"),
    "ignore-preflight-errors": Option(
        "checks whose errors become warnings; 'all' for every check", "list", metavar="NAME"
    ),
    "image-repository": Option("where the images come from (registry.k8s.io)", metavar="REGISTRY"),
    "kubernetes-version": Option("the Kubernetes version, or a label such as stable-1.35", metavar="VERSION"),
    "new-config": Option("write the migrated documents here instead of printing them", metavar="FILE"),
    "node-name": Option("this node's name (the host name)", metavar="NAME"),
    "old-config": Option("the file to migrate", metavar="FILE"),
    "org": Option("the user's groups: the certificate's O", "list", metavar="GROUP"),
    "patches": Option("a folder of patches for the generated files", metavar="DIR"),
    "pod-network-cidr": Option("the addresses of pods", metavar="CIDR"),
    "service-cidr": Option("the addresses of Services (10.96.0.0/12)", metavar="CIDR"),
    "service-dns-domain": Option("the DNS domain of Services (cluster.local)", metavar="DOMAIN"),
    "skip-certificate-key-print": Option("do not print the key of --upload-certs", "flag"),
    "skip-phases": Option("leave out these phases", "list", metavar="NAME"),
    "skip-token-print": Option("do not print the bootstrap token", "flag"),
    "token": Option("the bootstrap token", metavar="ID.SECRET"),
    "token-ttl": Option("how long the token is good; 0 for ever (24h0m0s)", metavar="DURATION"),
    "control-plane": Option("of a further control plane: join as one, or print its join command", "flag"),
    "description": Option("what the token is for, in words", metavar="TEXT"),
    "discovery-file": Option("a kubeconfig, or an https URL of one, that leads to the cluster", metavar="FILE|URL"),
    "discovery-token": Option("the token that proves the cluster to this node", metavar="ID.SECRET"),
    "discovery-token-ca-cert-hash": Option(
        "the pin of the cluster's CA, sha256:<hex>; may be repeated", "list", metavar="HASH"
    ),
    "discovery-token-unsafe-skip-ca-verification": Option(
        "join without a pin: trust whoever signed with the token", "flag"
    ),
    "groups": Option("the groups of whoever logs in with the token", "list", metavar="GROUP"),
    "print-join-command": Option("print the whole join command instead of the token alone", "flag"),
    "tls-bootstrap-token": Option("the token with which the kubelet asks for its certificate", metavar="ID.SECRET"),
    "ttl": Option("how long the token is good; 0 for ever (24h0m0s)", metavar="DURATION"),
    "usages": Option("what the token is good for: signing, authentication", "list", metavar="USAGE"),
    "upload-certs": Option("store the certificate authorities, encrypted, in the cluster", "flag"),
    "validity-period": Option("how long the user's certificate is good (8760h0m0s)", metavar="DURATION"),
    "cleanup-tmp-dir": Option("empty /etc/kubernetes/tmp too", "flag"),
    "vmodule": Option("has no effect", metavar="SPEC", is_hidden=True),
    "rootfs": Option("not in kb", metavar="DIR", is_hidden=True),
    "allow-experimental-api": Option("accept API versions that are not released", "flag", is_hidden=True),
    # of kubeadm's phase commands
    "kubeconfig": Option("the kubeconfig to use (/etc/kubernetes/admin.conf)", metavar="FILE"),
    "kubeconfig-dir": Option("where kubeconfigs are written (/etc/kubernetes)", metavar="DIR"),
    "apiserver-extra-args": Option("further flags of the API server, a=b,c=d", metavar="ARGS"),
    "controller-manager-extra-args": Option("further flags of the controller-manager", metavar="ARGS"),
    "scheduler-extra-args": Option("further flags of the scheduler", metavar="ARGS"),
    # kb's own
    "pod-network": Option("the pod network: bridge, manifest or none (bridge)", choices=("bridge", "manifest", "none")),
    "pod-network-manifest": Option("a YAML file or URL of a pod network to apply", metavar="FILE|URL"),
    "load-balancer": Option(
        "local: haproxy on every node, behind the name of --control-plane-endpoint (none)", choices=("local", "none")
    ),
    "mirror": Option("a registry that has every image: the runtime is pointed to it", metavar="URL"),
    "mirror-ca-hash": Option("the pin of the authority of the mirror's certificate, sha256:<hex>", metavar="HASH"),
    "bundle": Option("take programs and images from this bundle, and serve it to the other nodes", metavar="FILE"),
    "packages": Option(
        "where the node's programs come from (auto: the bundle or mirror that was given)",
        choices=("auto", "bundle", "mirror", "download", "apt", "dnf", "none"),
    ),
    "air-gapped": Option("refuse every connection that leads neither to the cluster nor to the mirror", "flag"),
    "soak": Option(
        "how long the control plane is watched before it is called ready (10s; 0: not at all)", metavar="DURATION"
    ),
    # the air gap
    "output-file": Option("the bundle to write", metavar="FILE", short="o"),
    "arch": Option("architectures: amd64, arm64, ... (this machine's)", "list", metavar="ARCH"),
    "image": Option("a further image", "list", metavar="NAME"),
    "file": Option("a further file, under this title", "list", metavar="PATH[=TITLE]"),
    "from": Option(
        "where to take it from, in order: a registry's URL, a bundle or layout, a folder of programs, official",
        "list",
        metavar="SOURCE",
    ),
    "preset": Option("a mirror for slow networks, by its name in configs/presets.yaml", metavar="NAME"),
    "use": Option("take this version of containerd, runc, cni or crictl", "list", metavar="COMPONENT=VERSION"),
    "without": Option("leave out a component, or `files`: all of them", "list", metavar="COMPONENT"),
    "since": Option("a bundle that is there already: leave out what it has", metavar="FILE"),
    "sign": Option("sign it with this ed25519 key (PEM)", metavar="KEYFILE"),
    "verify-key": Option("the public ed25519 key (PEM) that must have signed it", metavar="KEYFILE"),
    "listen": Option("where to listen (:5000)", metavar="ADDRESS:PORT"),
    "tls": Option("serve TLS with the certificate that kb init made for this node's mirror", "flag"),
    "tls-cert": Option("serve TLS with this certificate (PEM)", metavar="FILE"),
    "tls-key": Option("the certificate's key (PEM)", metavar="FILE"),
    "tls-ca": Option("the authority that signed the certificate (PEM)", metavar="FILE"),
    "no-access-log": Option("do not log every request", "flag"),
    "server": Option(
        "the address in the kubeconfig; it must be in the API server's certificate", metavar="HOST[:PORT]"
    ),
    "root": Option("write the node's files below DIR and leave this machine alone", metavar="DIR"),
    "fix": Option("mend containerd's configuration where it is wrong (with a backup), and restart it", "flag"),
    "undo": Option("go back to what was before the last reconfiguration of this node", "flag"),
    "to": Option("the file, or the registry's URL, to write to", metavar="FILE|URL"),
    "force": Option("do not ask", "flag", short="f"),
    "list": Option("list the phases", "flag"),
    "show-managed-fields": Option("kubeadm's; nothing that is printed has such fields", "flag", is_hidden=True),
    "allow-missing-template-keys": Option("kubeadm's, of forms that kb does not print", "flag", is_hidden=True),
    "once": Option("bring the routes up to date once and end", "flag"),
    "output": Option(
        "the form of the result: text, json, yaml (version also: short)",
        short="o",
        choices=("text", "json", "yaml", "short"),
    ),
}
GLOBAL_OPTIONS: Mapping[str, Option] = {
    "v": Option("say more: 1 every changed file, 2 commands too", "int", short="v", metavar="LEVEL"),
    "debug": Option("show the traceback of an error", "flag"),
}

INIT_OPTIONS: tuple[str, ...] = (
    "config",
    "allow-unknown-fields",
    "kubernetes-version",
    "apiserver-advertise-address",
    "apiserver-bind-port",
    "apiserver-cert-extra-sans",
    "control-plane-endpoint",
    "pod-network-cidr",
    "service-cidr",
    "service-dns-domain",
    "node-name",
    "image-repository",
    "cri-socket",
    "cert-dir",
    "feature-gates",
    "patches",
    "token",
    "token-ttl",
    "upload-certs",
    "certificate-key",
    "skip-token-print",
    "skip-certificate-key-print",
    "ignore-preflight-errors",
    "skip-phases",
    "pod-network",
    "pod-network-manifest",
    "load-balancer",
    "bundle",
    "verify-key",
    "mirror",
    "mirror-ca-hash",
    "packages",
    "preset",
    "air-gapped",
    "soak",
    "fix",
    "dry-run",
    "root",
    "list",
    "output",
)
PHASE_OPTIONS: tuple[str, ...] = (
    "kubeconfig",
    "kubeconfig-dir",
    "apiserver-extra-args",
    "controller-manager-extra-args",
    "scheduler-extra-args",
)

JOIN_OPTIONS: tuple[str, ...] = (
    "config",
    "allow-unknown-fields",
    "token",
    "discovery-token",
    "discovery-token-ca-cert-hash",
    "discovery-token-unsafe-skip-ca-verification",
    "discovery-file",
    "tls-bootstrap-token",
    "node-name",
    "cri-socket",
    "patches",
    "control-plane",
    "apiserver-advertise-address",
    "apiserver-bind-port",
    "certificate-key",
    "ignore-preflight-errors",
    "skip-phases",
    "soak",
    "mirror",
    "mirror-ca-hash",
    "packages",
    "preset",
    "air-gapped",
    "fix",
    "dry-run",
    "list",
    "output",
)
