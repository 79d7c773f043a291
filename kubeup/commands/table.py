"""What kb offers: every command, its one-line reason, and what runs it. The flags are in kubeup/config/flag_table.py.

Owns the table. The workflows are defined in kb.py and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kubeup.cli.program import Command, Invocation
from kubeup.commands import (
    about,
    adopt,
    backup,
    backup_schedule,
    backup_verify,
    bundle,
    certs,
    certs_auto,
    certs_expiry,
    certs_names,
    certs_recover,
    config,
    doctor,
    etcd,
    etcd_recover,
    etcd_upkeep,
    init,
    join,
    keepers,
    kubeconfig_list,
    kubeconfig_user,
    mirror,
    reconfigure,
    reset,
    restore,
    static_pods,
    status,
    token,
)
from kubeup.config.flag_table import flags_of
from kubeup.engine.story import Story
from kubeup.frozen_values import frozen


@frozen
class Row:
    """One command: its words, its reason, and the function that runs it."""

    name: str
    does: str
    run: Callable[[Invocation], int]
    words: str = ""
    """The name of the argument that follows the command; `name...` takes any number."""
    story: str = ""
    """The story of kb.py that the command runs."""
    runs_story: bool = True


# fmt: off
TASKS: Mapping[str, tuple[Row, ...]] = {
    "Set up a cluster": (
        Row("init",       "Set up the first control plane of a cluster on this machine",                             init.init, story="init"),
        Row("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)",                 init.init_phase, words="phase...", story="init"),
        Row("join",       "Join this machine to a cluster as a worker, or with --control-plane as a control plane",  join.join, words="endpoint...", story="join"),
        Row("join phase", "Run one phase of join",                                                                   join.join_phase, words="phase...", story="join"),
        Row("reset",      "Undo what kb did on this node",                                                           reset.reset, story="reset"),
        Row("adopt",      "Take over a node that kubeadm made: record its state and change nothing else",            adopt.adopt),
    ),
    "Look at it": (
        Row("status",         "Show what kb did on this node",                                         status.status, story="init", runs_story=False),
        Row("doctor",         "Find what is wrong with this node and how to fix it; change nothing",   doctor.doctor),
        Row("support-bundle", "Collect this node's logs and state in one file, with secrets redacted", doctor.support_bundle),
        Row("etcd members",   "List the members of the cluster's etcd and whether each serves",        etcd.members),
    ),
    "Change it": (
        Row("reconfigure endpoint", "Give the cluster's API servers a stable name, or another one: NAME:PORT", reconfigure.endpoint, words="endpoint...", story="reconfigure-endpoint"),
        Row("reconfigure static-pods", "Replace running static pods by the given manifests, and come back if they do not work", static_pods.static_pods, words="file...", story="reconfigure-static-pods"),
        Row("etcd remove",          "Remove a lost member from the cluster's etcd",                            etcd.remove, words="member..."),
        Row("etcd recover",         "Go on with the one etcd member that is left, from its own data",          etcd_recover.recover),
        Row("etcd defrag",          "Give back the space that etcd's file no longer needs, member by member",  etcd_upkeep.defrag),
        Row("etcd compact",         "Have etcd forget its history, as far as no API server needs it",          etcd_upkeep.compact, words="revision..."),
        Row("etcd alarm",           "List etcd's alarms, or make room and disarm them: kb etcd alarm disarm",  etcd_upkeep.alarm, words="verb..."),
        Row("etcd leader",          "Show which member leads etcd, or have another one lead",                  etcd_upkeep.leader, words="member..."),
    ),
    "Keep it safe": (
        Row("backup", "Write all that another machine needs to be this control plane into one file", backup.backup),
        Row("restore", "Make this machine the control plane of a backup", restore.restore, words="file...", story="restore"),
        Row("etcd snapshot", "Save etcd's data alone into one file, as etcdctl does", etcd_upkeep.snapshot, words="file..."),
        Row("backup verify", "Check every byte of a backup, and boot it where nothing else reaches it", backup_verify.verify, words="file..."),
        Row("backup schedule", "Make backups by a timer: daily, a line of cron's, off or status", backup_schedule.backup_schedule, words="when...", story="backup-schedule"),
    ),
    "Configuration files": (
        Row("config print init-defaults",    "Print InitConfiguration and ClusterConfiguration with all defaults", config.print_defaults),
        Row("config print join-defaults",    "Print JoinConfiguration with all defaults",                          config.print_defaults),
        Row("config print reset-defaults",   "Print ResetConfiguration with all defaults",                         config.print_defaults),
        Row("config print upgrade-defaults", "Print UpgradeConfiguration with all defaults",                       config.print_defaults),
        Row("config validate",               "Check a configuration file and report every mistake in it",          config.validate_config),
        Row("config migrate",                "Rewrite a configuration file in the newest API version",             config.migrate_config),
        Row("config images list",            "List the images that a control plane needs",                         config.images_list),
        Row("config images pull",            "Pull the images that a control plane needs",                         config.images_pull),
    ),
    "Users and tokens": (
        Row("kubeconfig user", "Print a kubeconfig for another user",                            kubeconfig_user.kubeconfig_user),
        Row("kubeconfig list", "Show who may call the cluster with what lies on this node, and until when", kubeconfig_list.kubeconfig_list),
        Row("token create",    "Create a bootstrap token, or print the complete join command",   token.create, words="token..."),
        Row("token list",      "List the bootstrap tokens",                                      token.list_tokens),
        Row("token delete",    "Delete bootstrap tokens, by id or in full",                      token.delete, words="token..."),
        Row("token generate",  "Print a random bootstrap token without creating it",             token.generate),
    ),
    "Certificates": (
        Row("certs certificate-key",  "Print a random key for --certificate-key",                              certs.certificate_key),
        Row("certs check-expiration", "Show when each certificate of this node expires",                       certs_expiry.check_expiration),
        Row("certs renew",            "Renew one certificate of this node, or all of them: kb certs renew all", certs.renew, words="certificate..."),
        Row("certs auto",             "Renew certificates before they end, by a timer: on, off or status",       certs_auto.certs_auto, words="on|off|status|run", story="certs-auto"),
        Row("certs add-san",          "Add names and addresses to the API server's certificate, or take them out", certs_names.add_san, words="name...", story="certs-add-san"),
        Row("certs recover",          "Bring this node back after its certificates have expired, the kubelet's too", certs_recover.recover),
        Row("certs generate-csr",     "Create keys and signing requests for an external CA",                   certs.generate_csr),
    ),
    "Without a network": (
        Row("bundle create", "Write everything a cluster needs into one file",                               bundle.create),
        Row("bundle verify", "Check every digest of a bundle, and that it has what a configuration needs",   bundle.verify, words="file..."),
        Row("bundle show",   "List the contents of a bundle",                                                bundle.show, words="file..."),
        Row("bundle diff",   "Show what a second bundle has that the first one lacks",                       bundle.diff, words="file..."),
        Row("mirror serve",  "Serve a bundle as an image registry, and its files",                           mirror.serve, words="path..."),
        Row("mirror add",    "Check another bundle and add it to this node's mirror",                        mirror.add, words="file..."),
        Row("mirror sync",   "Push the images of a bundle to a registry",                                    mirror.sync, words="path..."),
    ),
    "This program": (
        Row("version",    "Print the version of kb",                            about.version),
        Row("completion", "Print a completion script for bash, zsh or fish",    about.completion, words="shell"),
    ),
    "Run by systemd, not by you": (
        Row("routes",        "Keep the routes to the pods of other nodes up to date",                       keepers.routes),
        Row("load-balancer", "Keep this node's load balancer up to date as API servers come and go",        keepers.load_balancer),
    ),
}
"""The operator's commands by task; last, those that systemd runs."""
# fmt: on


def make_commands(stories: Mapping[str, Story]) -> tuple[Command, ...]:
    """The commands. stories: those of kb.py, by their name in a node's state."""
    return tuple(
        Command(
            row.name,
            row.does,
            row.run,
            options=flags_of(row.name),
            arguments=(row.words,) if row.words else (),
            phases=stories.get(row.story, ()),
            workflow=row.story if row.runs_story else "",
            task=task,
        )
        for task, rows in TASKS.items()
        for row in rows
    )
