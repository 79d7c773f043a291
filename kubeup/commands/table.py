"""What kb offers: every command, its one-line reason, and what runs it. Its flags stand in kubeup/config/flag_table.py.

Owns the table. The workflows are told in kb.py and handed in.
"""

from __future__ import annotations

from collections.abc import Callable

from kubeup.cli.program import Command, Invocation
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
from kubeup.config.flag_table import flags_of
from kubeup.engine.story import Story
from kubeup.frozen_values import frozen_by_name


@frozen_by_name
class Workflows:
    """The stories of kb.py."""

    init: Story
    join: Story
    reset: Story
    reconfigure_endpoint: Story


def _command(
    name: str,
    does: str,
    run: Callable[[Invocation], int],
    *,
    arguments: tuple[str, ...] = (),
    phases: Story = (),
    workflow: str = "",
) -> Command:
    return Command(name, does, run, flags_of(name), arguments, phases, workflow)


# fmt: off

def make_commands(workflows: Workflows) -> tuple[Command, ...]:
    return (
        _command("init", "Make this machine the first control plane of a cluster", init.init, phases=workflows.init, workflow="init"),
        _command("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)", init.init_phase, phases=workflows.init, workflow="init", arguments=("phase...",)),
        _command("join", "Make this machine a worker of a cluster, or with --control-plane a further control plane", join.join, phases=workflows.join, workflow="join", arguments=("endpoint...",)),
        _command("join phase", "Run one phase of join", join.join_phase, phases=workflows.join, workflow="join", arguments=("phase...",)),
        _command("reconfigure endpoint", "Give the cluster a stable name for its API servers, or another one: NAME:PORT",
                reconfigure.endpoint,
                phases=workflows.reconfigure_endpoint, workflow="reconfigure-endpoint", arguments=("endpoint...",)),
        _command("reset", "Take back what kb did on this node", reset.reset, phases=workflows.reset, workflow="reset"),
        _command("adopt", "Write kb's state for a node that kubeadm made; change nothing else", adopt.adopt),
        _command("status", "Show what kb did on this node", status.status, phases=workflows.init),
        _command("doctor", "Say what is wrong with this node, and what to do; change nothing", doctor.doctor),
        _command("support-bundle", "Pack logs and states of this node into one file, secrets redacted",
                doctor.support_bundle),
        _command("config print init-defaults", "Print InitConfiguration and ClusterConfiguration with every default",
                config.print_defaults),
        _command("config print join-defaults", "Print JoinConfiguration with every default",
                config.print_defaults),
        _command("config print reset-defaults", "Print ResetConfiguration with every default", config.print_defaults),
        _command("config print upgrade-defaults", "Print UpgradeConfiguration with every default", config.print_defaults),
        _command("config validate", "Check a configuration file and name every mistake in it", config.validate_config),
        _command("config migrate", "Rewrite a configuration file in the newest API version", config.migrate_config),
        _command("config images list", "List the images that a control plane needs", config.images_list),
        _command("config images pull", "Fetch the images that a control plane needs", config.images_pull),
        _command("bundle create", "Write all that a cluster needs into one file", bundle.create),
        _command("bundle verify", "Check every digest of a bundle, and that it has what a configuration needs",
                bundle.verify, arguments=("file...",)),
        _command("bundle show", "List what is in a bundle", bundle.show, arguments=("file...",)),
        _command("bundle diff", "Say what a second bundle has that the first has not", bundle.diff, arguments=("file...",)),
        _command("mirror serve", "Serve a bundle as an image registry, and its files", mirror.serve, arguments=("path...",)),
        _command("mirror add", "Check a further bundle and let this node's mirror serve it", mirror.add, arguments=("file...",)),
        _command("mirror sync", "Push the images of a bundle into a registry", mirror.sync, arguments=("path...",)),
        _command("kubeconfig user", "Print a kubeconfig for a further user", kubeconfig_user.kubeconfig_user),
        _command("token create", "Make a bootstrap token in the cluster, or print a whole join command",
                token.create, arguments=("token...",)),
        _command("token list", "List the cluster's bootstrap tokens", token.list_tokens),
        _command("token delete", "Delete bootstrap tokens, by id or whole", token.delete, arguments=("token...",)),
        _command("token generate", "Print a random bootstrap token", token.generate),
        _command("certs certificate-key", "Print a random key for --certificate-key", certs.certificate_key),
        _command("etcd members", "List the members of the cluster's etcd, and whether each serves", etcd.members),
        _command("etcd remove", "Take a member that is gone for ever out of etcd's list", etcd.remove, arguments=("member...",)),
        _command("certs check-expiration", "Say when each certificate of this node ends", certs.check_expiration),
        _command("certs renew", "Renew one certificate of this node, or all: kb certs renew all", certs.renew, arguments=("certificate...",)),
        _command("certs generate-csr", "Make keys and signing requests for a CA that is kept elsewhere",
                certs.generate_csr),
        _command("routes", "Keep the routes to other nodes' pods (run by systemd)", keepers.routes),
        _command("load-balancer", "Follow the API servers behind this node's load balancer (run by systemd)",
                keepers.load_balancer),
        _command("version", "Print kb's version", about.version),
        _command("completion", "Print a completion script for bash, zsh or fish", about.completion,
                arguments=("shell",)),
    )
