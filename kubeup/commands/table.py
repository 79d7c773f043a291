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


class _Table:
    """The commands of one task after the other."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._task = ""

    def task(self, name: str) -> None:
        self._task = name

    def add(
        self,
        name: str,
        does: str,
        run: Callable[[Invocation], int],
        *,
        words: str = "",
        phases: Story = (),
        workflow: str = "",
    ) -> None:
        """words: the name of what follows the command; `name...` takes any number."""
        arguments = (words,) if words else ()
        self.commands.append(Command(name, does, run, flags_of(name), arguments, phases, workflow, self._task))


# fmt: off

def make_commands(workflows: Workflows) -> tuple[Command, ...]:
    """The operator's first, by task; last what systemd runs."""
    table = _Table()
    task, add = table.task, table.add

    task("Set up a cluster")
    add("init",       "Set up the first control plane of a cluster on this machine",                             init.init, phases=workflows.init, workflow="init")
    add("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)",                 init.init_phase, words="phase...", phases=workflows.init, workflow="init")
    add("join",       "Join this machine to a cluster as a worker, or with --control-plane as a control plane",  join.join, words="endpoint...", phases=workflows.join, workflow="join")
    add("join phase", "Run one phase of join",                                                                   join.join_phase, words="phase...", phases=workflows.join, workflow="join")
    add("reset",      "Undo what kb did on this node",                                                           reset.reset, phases=workflows.reset, workflow="reset")
    add("adopt",      "Take over a node that kubeadm made: record its state and change nothing else",            adopt.adopt)

    task("Look at it")
    add("status",         "Show what kb did on this node",                                         status.status, phases=workflows.init)
    add("doctor",         "Find what is wrong with this node and how to fix it; change nothing",   doctor.doctor)
    add("support-bundle", "Collect this node's logs and state in one file, with secrets redacted", doctor.support_bundle)
    add("etcd members",   "List the members of the cluster's etcd and whether each serves",        etcd.members)

    task("Change it")
    add("reconfigure endpoint", "Give the cluster's API servers a stable name, or another one: NAME:PORT", reconfigure.endpoint, words="endpoint...", phases=workflows.reconfigure_endpoint, workflow="reconfigure-endpoint")
    add("etcd remove",          "Remove a lost member from the cluster's etcd",                            etcd.remove, words="member...")

    task("Configuration files")
    add("config print init-defaults",    "Print InitConfiguration and ClusterConfiguration with all defaults", config.print_defaults)
    add("config print join-defaults",    "Print JoinConfiguration with all defaults",                          config.print_defaults)
    add("config print reset-defaults",   "Print ResetConfiguration with all defaults",                         config.print_defaults)
    add("config print upgrade-defaults", "Print UpgradeConfiguration with all defaults",                       config.print_defaults)
    add("config validate",               "Check a configuration file and report every mistake in it",          config.validate_config)
    add("config migrate",                "Rewrite a configuration file in the newest API version",             config.migrate_config)
    add("config images list",            "List the images that a control plane needs",                         config.images_list)
    add("config images pull",            "Pull the images that a control plane needs",                         config.images_pull)

    task("Users and tokens")
    add("kubeconfig user", "Print a kubeconfig for another user",                            kubeconfig_user.kubeconfig_user)
    add("token create",    "Create a bootstrap token, or print the complete join command",   token.create, words="token...")
    add("token list",      "List the bootstrap tokens",                                      token.list_tokens)
    add("token delete",    "Delete bootstrap tokens, by id or in full",                      token.delete, words="token...")
    add("token generate",  "Print a random bootstrap token without creating it",             token.generate)

    task("Certificates")
    add("certs certificate-key",  "Print a random key for --certificate-key",                              certs.certificate_key)
    add("certs check-expiration", "Show when each certificate of this node expires",                       certs.check_expiration)
    add("certs renew",            "Renew one certificate of this node, or all of them: kb certs renew all", certs.renew, words="certificate...")
    add("certs generate-csr",     "Create keys and signing requests for an external CA",                   certs.generate_csr)

    task("Without a network")
    add("bundle create", "Write everything a cluster needs into one file",                               bundle.create)
    add("bundle verify", "Check every digest of a bundle, and that it has what a configuration needs",   bundle.verify, words="file...")
    add("bundle show",   "List the contents of a bundle",                                                bundle.show, words="file...")
    add("bundle diff",   "Show what a second bundle has that the first one lacks",                       bundle.diff, words="file...")
    add("mirror serve",  "Serve a bundle as an image registry, and its files",                           mirror.serve, words="path...")
    add("mirror add",    "Check another bundle and add it to this node's mirror",                        mirror.add, words="file...")
    add("mirror sync",   "Push the images of a bundle to a registry",                                    mirror.sync, words="path...")

    task("This program")
    add("version",    "Print the version of kb",                            about.version)
    add("completion", "Print a completion script for bash, zsh or fish",    about.completion, words="shell")

    task("Run by systemd, not by you")
    add("routes",        "Keep the routes to the pods of other nodes up to date",                       keepers.routes)
    add("load-balancer", "Keep this node's load balancer up to date as API servers come and go",        keepers.load_balancer)

    return tuple(table.commands)
