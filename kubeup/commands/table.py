"""What kb offers: every command, its one-line reason, and what runs it. The flags are in kubeup/config/flag_table.py.

Owns the table. The workflows are defined in kb.py and passed in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from kubeup.cli.program import Command, Invocation
from kubeup.config.flag_table import flags_of
from kubeup.engine.story import Story
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily

with lazily:
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
        certs_rotate,
        config,
        doctor,
        drift,
        drift_schedule,
        etcd,
        etcd_recover,
        etcd_upkeep,
        init,
        join,
        keepers,
        kubeconfig_list,
        kubeconfig_user,
        mirror,
        mirror_move,
        mirror_upkeep,
        node,
        node_reboot,
        readdress,
        reconfigure,
        reconfigure_config,
        reconfigure_try,
        reset,
        restore,
        static_pods,
        status,
        token,
        upgrade,
        upgrade_back,
        upgrade_plan,
        upgrade_runtime,
        upgrade_self,
    )


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
        Row("init",       "Set up the first control plane of a cluster on this machine",                             lambda call: init.init(call), story="init"),
        Row("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)",                 lambda call: init.init_phase(call), words="phase...", story="init"),
        Row("join",       "Join this machine to a cluster as a worker, or with --control-plane as a control plane",  lambda call: join.join(call), words="endpoint...", story="join"),
        Row("join phase", "Run one phase of join",                                                                   lambda call: join.join_phase(call), words="phase...", story="join"),
        Row("reset",      "Undo what kb did on this node",                                                           lambda call: reset.reset(call), story="reset"),
        Row("adopt",      "Take over a node that kubeadm made: record its state and change nothing else",            lambda call: adopt.adopt(call)),
    ),
    "Look at it": (
        Row("status",         "Show what kb did on this node",                                         lambda call: status.status(call), story="init", runs_story=False),
        Row("doctor",         "Find what is wrong with this node and how to fix it; change nothing",   lambda call: doctor.doctor(call)),
        Row("drift",          "Show what was changed on this node and in its cluster, put it back or accept it", lambda call: drift.drift(call), words="name...", story="reconfigure-static-pods", runs_story=False),
        Row("drift schedule", "Look for drift daily, by a timer: on, off or status",                   lambda call: drift_schedule.drift_schedule(call), words="on|off|status|run", story="drift-schedule"),
        Row("support-bundle", "Collect this node's logs and state in one file, with secrets redacted", lambda call: doctor.support_bundle(call)),
        Row("etcd members",   "List the members of the cluster's etcd and whether each serves",        lambda call: etcd.members(call)),
    ),
    "Change it": (
        Row("reconfigure", "Change a component's arguments, or what a file says of a live cluster's configuration", lambda call: reconfigure_config.reconfigure(call), words="component...", story="reconfigure"),
        Row("reconfigure node", "Bring this node to the configuration that the cluster stores", lambda call: reconfigure_config.node(call), story="reconfigure"),
        Row("reconfigure endpoint", "Give the cluster's API servers a stable name, or another one: NAME:PORT", lambda call: reconfigure.endpoint(call), words="endpoint...", story="reconfigure-endpoint"),
        Row("reconfigure static-pods", "Replace running static pods by the given manifests, and come back if they do not work", lambda call: static_pods.static_pods(call), words="file...", story="reconfigure-static-pods"),
        Row("reconfigure confirm", "Keep the change that is being tried (--try)", lambda call: reconfigure_try.confirm(call)),
        Row("reconfigure back",    "Go back at once from the change that is being tried", lambda call: reconfigure_try.back(call), story="reconfigure-back"),
        Row("readdress", "Follow a control plane whose address has changed: kb readdress OLD NEW", lambda call: readdress.readdress(call), words="address...", story="readdress"),
        Row("node remove",  "Take a node out of the cluster, dead or alive, from another control plane: NAME", lambda call: node.remove(call), words="name...", story="node-remove"),
        Row("node replace", "Print the lines with which a new machine takes the place of a node: OLD",         lambda call: node.replace(call), words="name..."),
        Row("node drain",    "Cordon a node and evict its pods: this one, or from a control plane another",        lambda call: node.drain(call), words="name..."),
        Row("node uncordon", "Let pods onto a node again: this one, or from a control plane another",             lambda call: node.uncordon(call), words="name..."),
        Row("node reboot",   "Empty this node, reboot it, and let pods back once it is well; one node at a time", lambda call: node_reboot.reboot(call), story="node-reboot"),
        Row("etcd remove",          "Remove a lost member from the cluster's etcd",                            lambda call: etcd.remove(call), words="member..."),
        Row("etcd recover",         "Go on with the one etcd member that is left, from its own data",          lambda call: etcd_recover.recover(call)),
        Row("etcd defrag",          "Give back the space that etcd's file no longer needs, member by member",  lambda call: etcd_upkeep.defrag(call)),
        Row("etcd compact",         "Have etcd forget its history, as far as no API server needs it",          lambda call: etcd_upkeep.compact(call), words="revision..."),
        Row("etcd alarm",           "List etcd's alarms, or make room and disarm them: kb etcd alarm disarm",  lambda call: etcd_upkeep.alarm(call), words="verb..."),
        Row("etcd leader",          "Show which member leads etcd, or have another one lead",                  lambda call: etcd_upkeep.leader(call), words="member..."),
    ),
    "Upgrade it": (
        Row("upgrade plan",  "Show what an upgrade would do to each node and what blocks it; change nothing", lambda call: upgrade_plan.plan(call), words="version..."),
        Row("upgrade diff",  "Show how an upgrade would change this node's static pods; change nothing", lambda call: upgrade_plan.diff(call), words="version..."),
        Row("upgrade apply", "Upgrade this control plane and the cluster's objects to a version, or continue", lambda call: upgrade.apply(call), words="version...", story="upgrade-apply"),
        Row("upgrade node",  "Upgrade this node to the version that the cluster stores, or continue",          lambda call: upgrade.node(call), story="upgrade-node"),
        Row("upgrade rollback", "Take this node back to what it ran before its upgrade", lambda call: upgrade_back.rollback(call), story="upgrade-rollback"),
        Row("upgrade self",     "Have kb's own units on this node run the kb.pyz that is called",              lambda call: upgrade_self.upgrade_self(call), story="upgrade-self"),
        Row("upgrade runtime",  "Replace this node's containerd with its configuration; go back if it does not work", lambda call: upgrade_runtime.runtime(call)),
        Row("upgrade finish",   "Remove what is kept of the last upgrade of this node",  lambda call: upgrade_back.finish(call)),
    ),
    "Keep it safe": (
        Row("backup", "Write all that another machine needs to be this control plane into one file", lambda call: backup.backup(call)),
        Row("restore", "Make this machine the control plane of a backup", lambda call: restore.restore(call), words="file...", story="restore"),
        Row("etcd snapshot", "Save etcd's data alone into one file, as etcdctl does", lambda call: etcd_upkeep.snapshot(call), words="file..."),
        Row("backup verify", "Check every byte of a backup, and boot it where nothing else reaches it", lambda call: backup_verify.verify(call), words="file..."),
        Row("backup schedule", "Make backups by a timer: daily, a line of cron's, off or status", lambda call: backup_schedule.backup_schedule(call), words="when...", story="backup-schedule"),
    ),
    "Configuration files": (
        Row("config print init-defaults",    "Print InitConfiguration and ClusterConfiguration with all defaults", lambda call: config.print_defaults(call)),
        Row("config print join-defaults",    "Print JoinConfiguration with all defaults",                          lambda call: config.print_defaults(call)),
        Row("config print reset-defaults",   "Print ResetConfiguration with all defaults",                         lambda call: config.print_defaults(call)),
        Row("config print upgrade-defaults", "Print UpgradeConfiguration with all defaults",                       lambda call: config.print_defaults(call)),
        Row("config validate",               "Check a configuration file and report every mistake in it",          lambda call: config.validate_config(call)),
        Row("config migrate",                "Rewrite a configuration file in the newest API version",             lambda call: config.migrate_config(call)),
        Row("config images list",            "List the images that a control plane needs",                         lambda call: config.images_list(call)),
        Row("config images pull",            "Pull the images that a control plane needs",                         lambda call: config.images_pull(call)),
    ),
    "Users and tokens": (
        Row("kubeconfig user", "Print a kubeconfig for another user",                            lambda call: kubeconfig_user.kubeconfig_user(call)),
        Row("kubeconfig list", "Show who may call the cluster with what lies on this node, and until when", lambda call: kubeconfig_list.kubeconfig_list(call)),
        Row("token create",    "Create a bootstrap token, or print the complete join command",   lambda call: token.create(call), words="token..."),
        Row("token list",      "List the bootstrap tokens",                                      lambda call: token.list_tokens(call)),
        Row("token delete",    "Delete bootstrap tokens, by id or in full",                      lambda call: token.delete(call), words="token..."),
        Row("token generate",  "Print a random bootstrap token without creating it",             lambda call: token.generate(call)),
    ),
    "Certificates": (
        Row("certs certificate-key",  "Print a random key for --certificate-key",                              lambda call: certs.certificate_key(call)),
        Row("certs check-expiration", "Show when each certificate of this node expires",                       lambda call: certs_expiry.check_expiration(call)),
        Row("certs renew",            "Renew one certificate of this node, or all of them: kb certs renew all", lambda call: certs.renew(call), words="certificate..."),
        Row("certs auto",             "Renew certificates before they end, by a timer: on, off or status",       lambda call: certs_auto.certs_auto(call), words="on|off|status|run", story="certs-auto"),
        Row("certs add-san",          "Add names and addresses to the API server's certificate, or take them out", lambda call: certs_names.add_san(call), words="name...", story="certs-add-san"),
        Row("certs recover",          "Bring this node back after its certificates have expired, the kubelet's too", lambda call: certs_recover.recover(call)),
        Row("certs rotate-sa",        "Replace the key that signs tokens of service accounts, in stages",          lambda call: certs_rotate.rotate_sa_key(call), story="certs-rotate"),
        Row("certs rotate-ca",        "Replace an authority in stages: cluster, etcd, front-proxy",                      lambda call: certs_rotate.rotate_ca(call), words="authority...", story="certs-rotate"),
        Row("certs generate-csr",     "Create keys and signing requests for an external CA",                   lambda call: certs.generate_csr(call)),
    ),
    "Without a network": (
        Row("bundle create", "Write everything a cluster needs into one file",                               lambda call: bundle.create(call)),
        Row("bundle verify", "Check every digest of a bundle, and that it has what a configuration needs",   lambda call: bundle.verify(call), words="file..."),
        Row("bundle show",   "List the contents of a bundle",                                                lambda call: bundle.show(call), words="file..."),
        Row("bundle diff",   "Show what a second bundle has that the first one lacks",                       lambda call: bundle.diff(call), words="file..."),
        Row("mirror serve",  "Serve a bundle as an image registry, and its files",                           lambda call: mirror.serve(call), words="path..."),
        Row("mirror add",    "Check another bundle and add it to this node's mirror",                        lambda call: mirror_upkeep.add(call), words="file..."),
        Row("mirror list",   "List the bundles and images of this node's mirror, and who needs them",             lambda call: mirror_upkeep.list_content(call)),
        Row("mirror remove", "Take out images, bundles or all of a minor that no node needs: v1.34",              lambda call: mirror_upkeep.remove(call), words="image|version..."),
        Row("mirror gc",     "Free what no image of this node's mirror names",                                    lambda call: mirror_upkeep.gc(call)),
        Row("mirror move",   "Serve the mirror on this control plane instead: copy its bundles, or take these",     lambda call: mirror_move.move(call), words="file...", story="mirror-move"),
        Row("mirror use",    "Point this node to another mirror: URL",                                            lambda call: mirror_move.use(call), words="url...", story="mirror-use"),
        Row("mirror stop",   "Take the mirror away from this node",                                               lambda call: mirror_move.stop(call)),
        Row("mirror sync",   "Push the images of a bundle to a registry",                                    lambda call: mirror.sync(call), words="path..."),
    ),
    "This program": (
        Row("version",    "Print the version of kb",                            lambda call: about.version(call)),
        Row("completion", "Print a completion script for bash, zsh or fish",    lambda call: about.completion(call), words="shell"),
    ),
    "Run by systemd, not by you": (
        Row("routes",        "Keep the routes to the pods of other nodes up to date",                       lambda call: keepers.routes(call)),
        Row("load-balancer", "Keep this node's load balancer up to date as API servers come and go",        lambda call: keepers.load_balancer(call)),
        Row("node returned", "Finish the reboot of this node: wait until it is well, and let pods onto it",        lambda call: node_reboot.returned(call), story="node-return"),
        Row("reconfigure wait", "Go back from the change that is being tried once its time is over", lambda call: reconfigure_try.wait(call), story="reconfigure-back"),
    ),
}
"""The operator's commands by task; last, those that systemd runs."""
# fmt: on


def make_commands(stories: Mapping[str, Story], *, others: Callable[[str], Story]) -> tuple[Command, ...]:
    """The commands. stories: those of kb.py, by their name in a node's state; others: finds those of day two, which load only with a command
    of theirs."""

    def find(name: str) -> Story:
        return stories[name] if name in stories else others(name)

    return tuple(
        Command(
            row.name,
            row.does,
            row.run,
            options=flags_of(row.name),
            arguments=(row.words,) if row.words else (),
            story=functools.cache(functools.partial(find, row.story)) if row.story else tuple,
            workflow=row.story if row.runs_story else "",
            task=task,
        )
        for task, rows in TASKS.items()
        for row in rows
    )
