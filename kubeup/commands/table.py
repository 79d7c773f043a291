"""What kb offers: every command, its one-line reason, what runs it, and the flags that it takes.

Owns the table. The workflows are told in kb.py and handed in.
"""

from __future__ import annotations

from kubeup.cli import options
from kubeup.cli.program import Command
from kubeup.commands import (
    about,
    adopt,
    bundle,
    certs,
    config,
    doctor,
    etcd,
    init,
    join,
    keepers,
    kubeconfig_user,
    mirror,
    reconfigure,
    reset,
    status,
    token,
)
from kubeup.engine.story import Story
from kubeup.frozen_values import frozen_by_name


@frozen_by_name
class Workflows:
    """The stories of kb.py."""

    init: Story
    join: Story
    reset: Story
    reconfigure_endpoint: Story


# fmt: off

def make_commands(workflows: Workflows) -> tuple[Command, ...]:
    return (
        Command("init", "Make this machine the first control plane of a cluster", init.init,
                options=options.INIT_OPTIONS, phases=workflows.init, workflow="init"),
        Command("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)", init.init_phase,
                options=options.INIT_OPTIONS + options.PHASE_OPTIONS, phases=workflows.init, workflow="init", arguments=("phase...",)),
        Command("join", "Make this machine a worker of a cluster, or with --control-plane a further control plane", join.join,
                options=options.JOIN_OPTIONS, phases=workflows.join, workflow="join", arguments=("endpoint...",)),
        Command("join phase", "Run one phase of join", join.join_phase,
                options=options.JOIN_OPTIONS, phases=workflows.join, workflow="join", arguments=("phase...",)),
        Command("reconfigure endpoint", "Give the cluster a stable name for its API servers, or another one: NAME:PORT",
                reconfigure.endpoint, options=("load-balancer", "undo", "dry-run", "list", "output"),
                phases=workflows.reconfigure_endpoint, workflow="reconfigure-endpoint", arguments=("endpoint...",)),
        Command("reset", "Take back what kb did on this node", reset.reset,
                options=("force", "cri-socket", "dry-run", "list", "output", "skip-phases"), phases=workflows.reset, workflow="reset"),
        Command("adopt", "Write kb's state for a node that kubeadm made; change nothing else", adopt.adopt,
                options=("kubeconfig", "patches", "dry-run", "output")),
        Command("status", "Show what kb did on this node", status.status, options=("output",), phases=workflows.init),
        Command("doctor", "Say what is wrong with this node, and what to do; change nothing", doctor.doctor,
                options=("kubeconfig", "output")),
        Command("support-bundle", "Pack logs and states of this node into one file, secrets redacted",
                doctor.support_bundle, options=("to", "kubeconfig")),
        Command("config print init-defaults", "Print InitConfiguration and ClusterConfiguration with every default",
                config.print_defaults, options=("component-configs",)),
        Command("config print join-defaults", "Print JoinConfiguration with every default",
                config.print_defaults, options=("component-configs",)),
        Command("config print reset-defaults", "Print ResetConfiguration with every default", config.print_defaults),
        Command("config print upgrade-defaults", "Print UpgradeConfiguration with every default", config.print_defaults),
        Command("config validate", "Check a configuration file and name every mistake in it", config.validate_config,
                options=("config", "allow-experimental-api")),
        Command("config migrate", "Rewrite a configuration file in the newest API version", config.migrate_config,
                options=("old-config", "new-config", "allow-experimental-api")),
        Command("config images list", "List the images that a control plane needs", config.images_list,
                options=("config", "allow-unknown-fields", "feature-gates", "image-repository", "kubernetes-version",
                         "output")),
        Command("config images pull", "Fetch the images that a control plane needs", config.images_pull,
                options=("config", "allow-unknown-fields", "cri-socket", "feature-gates", "image-repository",
                         "kubernetes-version")),
        Command("bundle create", "Write all that a cluster needs into one file", bundle.create,
                options=("output-file", "config", "allow-unknown-fields", "kubernetes-version", "image-repository",
                         "pod-network-manifest", "arch", "image", "file", "from", "preset", "use", "without", "since", "sign")),
        Command("bundle verify", "Check every digest of a bundle, and that it has what a configuration needs",
                bundle.verify,
                options=("config", "allow-unknown-fields", "kubernetes-version", "image-repository", "pod-network-manifest",
                         "arch", "image", "since", "verify-key", "output"), arguments=("file...",)),
        Command("bundle show", "List what is in a bundle", bundle.show, options=("output",), arguments=("file...",)),
        Command("bundle diff", "Say what a second bundle has that the first has not", bundle.diff,
                options=("output",), arguments=("file...",)),
        Command("mirror serve", "Serve a bundle as an image registry, and its files", mirror.serve,
                options=("listen", "tls", "tls-cert", "tls-key", "tls-ca", "no-access-log"), arguments=("path...",)),
        Command("mirror add", "Check a further bundle and let this node's mirror serve it", mirror.add,
                options=("verify-key",), arguments=("file...",)),
        Command("mirror sync", "Push the images of a bundle into a registry", mirror.sync,
                options=("to", "tls-ca"), arguments=("path...",)),
        Command("kubeconfig user", "Print a kubeconfig for a further user", kubeconfig_user.kubeconfig_user,
                options=("client-name", "config", "org", "token", "validity-period", "server", "cert-dir")),
        Command("token create", "Make a bootstrap token in the cluster, or print a whole join command",
                token.create,
                options=("kubeconfig", "config", "certificate-key", "control-plane", "description", "groups",
                         "print-join-command", "ttl", "usages", "dry-run", "output"), arguments=("token...",)),
        Command("token list", "List the cluster's bootstrap tokens", token.list_tokens,
                options=("kubeconfig", "dry-run", "output")),
        Command("token delete", "Delete bootstrap tokens, by id or whole", token.delete,
                options=("kubeconfig", "dry-run"), arguments=("token...",)),
        Command("token generate", "Print a random bootstrap token", token.generate),
        Command("certs certificate-key", "Print a random key for --certificate-key", certs.certificate_key),
        Command("etcd members", "List the members of the cluster's etcd, and whether each serves", etcd.members,
                options=("cert-dir", "output")),
        Command("etcd remove", "Take a member that is gone for ever out of etcd's list", etcd.remove,
                options=("cert-dir", "force"), arguments=("member...",)),
        Command("certs check-expiration", "Say when each certificate of this node ends", certs.check_expiration,
                options=("config", "cert-dir", "kubeconfig", "output")),
        Command("certs renew", "Issue one certificate of this node anew, or all: kb certs renew all", certs.renew,
                options=("config", "cert-dir", "kubeconfig"), arguments=("certificate...",)),
        Command("certs generate-csr", "Make keys and signing requests for a CA that is kept elsewhere",
                certs.generate_csr, options=("config", "cert-dir", "kubeconfig-dir")),
        Command("routes", "Keep the routes to other nodes' pods (run by systemd)", keepers.routes, options=("once",)),
        Command("load-balancer", "Follow the API servers behind this node's load balancer (run by systemd)",
                keepers.load_balancer, options=("once",)),
        Command("version", "Print kb's version", about.version, options=("output",)),
        Command("completion", "Print a completion script for bash, zsh or fish", about.completion,
                arguments=("shell",)),
    )
