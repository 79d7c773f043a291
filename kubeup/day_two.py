"""The story of day two: what kb does to a node of a cluster that lives, step by step, in order, and why.

It goes on where kb.py ends, which makes a node and takes it back; how to read a line is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kubeup.engine.story import Story, act, control_planes_only, step, story

# isort: off
# fmt: off
from kubeup.phases import auto_renewal, backup_timer, cert_names, drift_timer, endpoint, mirror_move, node_reboot, node_remove, own_units, readdress, reconfigure_addons, reconfigure_config, reconfigure_kubelet, reconfigure_proxy, restore, rotation, static_pods_swap, tried_swap, upgrade_addons, upgrade_backup, upgrade_control_plane, upgrade_kubelet, upgrade_preflight, upgrade_programs, upgrade_rights, upgrade_rollback
# isort: on

# Steps that both upgrades have, and the last of them a swap too.
UPGRADE_CHECKS = act("preflight",     "Check versions, health, others' changes and the new static pods; pull images; stop nothing", upgrade_preflight.CHECKS)
UPGRADE_PROGRAMS = act("programs",    "Fetch and try the new kubelet and kubectl; keep the former ones; replace nothing yet",         upgrade_programs.PROGRAMS)
UPGRADE_SWAP = act("control-plane",   "Renew certificates and swap the static pods that differ; go back if one does not work",      upgrade_control_plane.SWAP)
UPGRADE_SERVER = step("kubeconfig",   "Have this node's kubelet call its own API server, where the new version has it so",          upgrade_control_plane.plan_kubelet_server)
UPGRADE_KUBELET = act("kubelet-config", "Replace the kubelet and its configuration together; watch it, and go back if it does not work", upgrade_kubelet.KUBELET)
UPGRADE_DNS = step("addon/coredns",   "Upgrade CoreDNS once every API server has the new version, its edits kept",                   upgrade_addons.start_coredns,    live="cluster")
UPGRADE_PROXY = step("addon/kube-proxy", "Upgrade kube-proxy once every API server has the new version, its edits kept",             upgrade_addons.start_kube_proxy, live="cluster")
UPGRADE_ROLLOUTS = step("addon/rollouts", "Wait until the new pods of CoreDNS and kube-proxy run on every node",                  upgrade_addons.plan_rollouts,    live="cluster")
UPGRADE_UNITS = step("own-units",     "Have kb's own units on this node run this kb, if they run another one",                      own_units.plan_own_units, live="node")
GATE = act("gate",                    "Check the whole cluster: may the next control plane follow?",                                static_pods_swap.GATE)

# kb reconfigure endpoint: give the API servers a stable name, if the cluster has none or another one. First every certificate
# gets the name, then the clients are pointed at it. On the other nodes the same command does their part. Steps only named are init's.
def make_endpoint(init: Callable[..., Story]) -> Story:
    return story(
        act("preflight", "Check that the endpoint leads to this cluster", endpoint.CHECKS),
        control_planes_only(
            step("certs/apiserver",       "Add the name to the API server's certificate, with the same key", endpoint.plan_apiserver_cert),
            step("upload-config/kubeadm", "Store the endpoint in the cluster's configuration",               endpoint.plan_stored),
        ),
        init("load-balancer/local"),
        step("load-balancer/keeper", "Follow API servers as they come and go",         endpoint.plan_keeper, live="cluster"),
        step("kubeconfig",           "Have this node's kubeconfigs call the endpoint", endpoint.plan_kubeconfigs),
        control_planes_only(
            step("cluster-info", "Publish the endpoint in cluster-info, for joining nodes", endpoint.plan_cluster_info),
            step("kube-proxy",   "Point kube-proxy at the endpoint, and restart it",        endpoint.plan_kube_proxy),
        ),
        step("load-balancer/remove", "Remove the load balancer if the conversion that added it is undone",                        endpoint.plan_removal),
        act("verify",                "Verify TLS with the API servers under the new name, and list what is left to do elsewhere", endpoint.HANDSHAKE),
    )

# kb reconfigure static-pods: replace the running etcd, API server, controller-manager or scheduler of this node by those in the given
# files. Nothing stops before the new ones were tried; whatever goes wrong later, the former ones come back. With --try they come back as
# well unless the change is confirmed.
RECONFIGURE_STATIC_PODS = story(
    act("preflight", "Try the new static pods without starting them, and check that the cluster can do without the former ones meanwhile", tried_swap.TRIALS),
    act("swap",      "Stop the former static pods, start the new ones, and watch them; go back if one does not work",                       tried_swap.SWAP),
    GATE,
)

# kb reconfigure back: a change that is being tried goes back, at once or by itself at the end of its time.
RECONFIGURE_BACK = story(
    act("preflight", "Try the former static pods without starting them",                  tried_swap.BACK_TRIALS),
    act("swap",      "Swap the former static pods in; then nothing waits for the end any more", tried_swap.BACK_SWAP),
    GATE,
)

# kb reconfigure apiserver --set NAME=VALUE, or --config FILE: this control plane first; what the cluster stores follows once it works. On the
# other nodes: kb reconfigure node, which finds it stored. Every step looks first: the same command continues what was cut off.
RECONFIGURE = story(
    control_planes_only(
        act("preflight",              "Say what others changed, and try the new static pods without starting them",     reconfigure_config.CHECKS),
        step("certs/apiserver",       "Issue the API server's certificate with the configured names, for the same key", reconfigure_config.plan_certificate),
        act("swap",                   "Swap the static pods that differ, and watch them; go back if one does not work", reconfigure_config.SWAP),
        step("upload-config/kubeadm", "Store the changed configuration in the cluster, and keep the former one",        reconfigure_config.plan_stored, live="cluster"),
    ),
    step("proxy",         "Restart the container runtime and the kubelet with other HTTP proxies, and watch them",          reconfigure_proxy.plan_services, live="node"),
    act("kubelet-config", "Restart the kubelet with its changed configuration, and watch it; go back if it does not work", reconfigure_kubelet.KUBELET),
    control_planes_only(
        step("upload-config/kubelet", "Store the kubelets' changed configuration",                                         reconfigure_kubelet.plan_stored, live="cluster"),
        step("addon/kube-proxy",      "Restart kube-proxy with its changed configuration; go back if it does not come up", reconfigure_addons.plan_kube_proxy, live="cluster"),
        step("addon/coredns",         "The same with CoreDNS, its Corefile, and the number of its pods",                   reconfigure_addons.plan_coredns, live="cluster"),
        act("gate",                   "Check the whole cluster, and list the nodes that are left",                         reconfigure_config.GATE),
    ),
)

# kb readdress OLD NEW: the address of a control plane has changed. There, everything that names it follows; on the other nodes the same
# command has them call the new one. What is replaced is kept.
READDRESS = story(
    act("preflight", "Check that the new address is there, certificates can be issued, and etcd's other members agree", readdress.CHECKS),
    act("files",     "Issue certificates, write kubeconfigs and static pods with the new address, and start them",      readdress.MOVE),
    control_planes_only(
        step("upload-config/kubeadm", "Store the new address in the cluster's configuration, where it was the endpoint", readdress.plan_stored, live="cluster"),
        step("cluster-info",          "Publish the new address for joining nodes, where it was the endpoint",            readdress.plan_cluster_info, live="cluster"),
        step("kube-proxy",            "Point kube-proxy at the new address, where it was the endpoint, and restart it",  readdress.plan_kube_proxy, live="cluster"),
    ),
    act("ready",     "Watch that the node becomes Ready at its address, and list what is left to do elsewhere",         readdress.READY),
)

# kb node remove NAME: another node leaves the cluster, dead or alive. Its pods go first and its Node last, since that says whose the rest
# is. No step keeps a state: each finds nothing to do where an earlier run has done it.
NODE_REMOVE = story(
    act("preflight",          "Check that the cluster can do without the node, tell what goes with it, and ask",       node_remove.CHECKS),
    act("drain",              "Move its pods to other nodes; give up those of a dead node, and free their volumes",    node_remove.DRAIN),
    act("remove-etcd-member", "Take its API server out of the load balancers, and its member out of etcd",             node_remove.ETCD_MEMBER),
    step("cluster-info",      "Have joining nodes and kube-proxy call another control plane, if they called this one", node_remove.plan_names, live="node"),
    act("strike-out",         "Delete its Node, leases and pods, and list what is left to do elsewhere",               node_remove.STRIKE_OUT),
)

# kb node reboot: this node alone, one node of the cluster at a time. After the boot, a unit does what is left.
NODE_REBOOT = story(
    act("preflight", "Check that the cluster can do without this node meanwhile, tell what leaves it, ask, and take the turn", node_reboot.CHECKS),
    act("drain",     "Move its pods to other nodes",                                                                         node_reboot.DRAIN),
    act("reboot",    "Take its API server out of the load balancers and etcd's leadership away, and reboot",                 node_reboot.REBOOT),
)

# kb node returned: what the unit runs after the boot.
NODE_RETURN = story(act("ready", "Wait until the node is well; let pods onto it again, and the next node reboot", node_reboot.READY))

# kb upgrade apply VERSION: this control plane, and what the cluster stores, go to another version. Whatever differs of the static pods is
# swapped at once, so that the API is away once and not three times. Every step looks first: the same command continues what was cut off.
UPGRADE_APPLY = story(
    UPGRADE_CHECKS,
    UPGRADE_PROGRAMS,
    act("backup",                 "Back up this control plane, for what no swap takes back",                    upgrade_backup.BACKUP),
    step("bindings",              "Write the rights of the new version's clients, before their certificates",   upgrade_rights.plan_bindings, live="cluster"),
    UPGRADE_SWAP,
    step("upload-config/kubeadm", "Store the new version in the cluster's configuration, for the other nodes",  upgrade_control_plane.plan_stored_version, live="cluster"),
    step("upload-config/kubelet", "Store the kubelets' configuration of the new version",                       upgrade_control_plane.plan_kubelet_config, live="cluster"),
    UPGRADE_SERVER,
    UPGRADE_DNS,
    UPGRADE_PROXY,
    UPGRADE_KUBELET,
    step("bootstrap-token",       "Write what joining nodes, and kubelets that renew certificates, are allowed", upgrade_rights.plan_bootstrap_rights, live="cluster"),
    UPGRADE_UNITS,
    UPGRADE_ROLLOUTS,
    GATE,
)

# kb upgrade node: the same on every other node, to the version that the cluster stores by now. Control planes first; the last of them
# upgrades the addons.
UPGRADE_NODE = story(
    UPGRADE_CHECKS,
    UPGRADE_PROGRAMS,
    control_planes_only(UPGRADE_SWAP, UPGRADE_SERVER, UPGRADE_DNS, UPGRADE_PROXY),
    UPGRADE_KUBELET,
    UPGRADE_UNITS,
    control_planes_only(UPGRADE_ROLLOUTS, GATE),
)

# kb upgrade self: a newer kb.pyz was copied to the node; what runs of kb here is to be that one.
UPGRADE_SELF = story(UPGRADE_UNITS)

# kb upgrade rollback: this node alone goes back, from what was kept of it. First the kubelet, which must not be newer than an API server.
UPGRADE_ROLLBACK = story(
    act("preflight",      "Check that this node may go back, and that its former static pods would start", upgrade_rollback.RETURN_CHECKS),
    act("kubelet-config", "Drain for a minor; put the former kubelet and its files back, and watch it",    upgrade_rollback.RETURN_KUBELET),
    control_planes_only(act("swap", "Swap the former static pods in",                                      static_pods_swap.SWAP), GATE),
)

# kb certs auto on: the timer of init and join, on a node that another tool made, or where it was switched off.
CERTS_AUTO = story(step("auto-renewal", "Renew what is due of this node's certificates, once a day", auto_renewal.plan_timer, live="node"))

# kb certs add-san: names and addresses in the API server's certificate, or with --remove out of it. On each other control plane the same
# command issues that node's certificate.
CERTS_ADD_SAN = story(
    act("preflight",              "Check that the certificate can be issued here, and that no name is needed that is to go",    cert_names.CHECKS),
    step("certs/apiserver",       "Issue the API server's certificate with these names, for the same key",                     cert_names.plan_apiserver_cert),
    step("upload-config/kubeadm", "Store the names in the cluster's configuration, for nodes that join and later renewals",    cert_names.plan_stored),
    act("verify",                 "Verify TLS with this API server under each name, and list the control planes that are left", cert_names.HANDSHAKE),
)

# kb certs rotate-sa, and rotate-ca for an authority: on one control plane, and then with --continue on the others, the cluster's on workers too,
# until nothing is left. A stage begins when every one of them has acknowledged the one before; until the last one begins, --undo goes back.
CERTS_ROTATE = story(
    control_planes_only(act("preflight", "Check that every API server serves, and that this control plane can take part", rotation.CHECKS),
                        act("begin", "Make the new one and keep it in the cluster, sealed; with --undo turn round", rotation.BEGIN)),
    act("trust",     "Accept the new one beside the former one",                                      rotation.TRUSTED),
    act("use",       "Use the new one, once every control plane accepts it",                          rotation.USED),
    act("drop",      "Accept the former one no more, once nobody needs it and --finish was given",     rotation.DROPPED),
    control_planes_only(GATE),
)

# kb backup schedule daily: what is made is in kubeup/backup/.
BACKUP_SCHEDULE = story(step("backup-timer", "Back up this control plane as scheduled, by a timer", backup_timer.plan_timer, live="node"))

# kb drift schedule on: what the look tells is in kubeup/drift/.
DRIFT_SCHEDULE = story(step("drift-timer", "Look for what was changed on this node, once a day", drift_timer.plan_timer, live="node"))

# kb mirror move: this control plane serves the mirror from now on. Each node is pointed to it by kb mirror use, which is init's step; the
# former mirror goes on until kb mirror stop there.
def make_mirror_move(init: Callable[..., Story]) -> Story:
    return story(
        act("install/bundle", "Copy the mirror's bundles here, and check them", mirror_move.BUNDLES),
        init("install/mirror", "install/registries"),
    )

# kb restore: make this machine the control plane of a backup. Everything that may be missing is looked for before anything stops. What is
# in the way is moved aside. The steps that are only named are init's (kb.py), with the restored authorities.
def make_restore(init: Callable[..., Story]) -> Story:
    return story(
        # 0. Programs and images, as for init, so that a bare machine is enough.
        init("install/bundle", "install/packages", "install/mirror", "install/registries"),

        # 1. What can fail, before anything stops; then the former cluster out of the way.
        act("snapshot",   "Make etcd's data from the snapshot, beside what is there",        restore.DATA),
        act("move-aside", "Stop what runs of a former cluster, and move its files aside",    restore.ASIDE),
        act("preflight",  "Check this machine, now that nothing is in the way",              restore.CHECKS),
        init("install/sysctls"),

        # 2. The authorities and the data of the backup; certificates and kubeconfigs of this machine, made by these authorities.
        act("files", "Write the authorities and keys of the backup, and give etcd's data their place", restore.FILES),
        init("kubeconfig/kubelet", "load-balancer/local", "kubelet-start", "certs/apiserver", "certs/apiserver-kubelet-client"),
        init("certs/front-proxy-client", "certs/etcd-server", "certs/etcd-peer", "certs/etcd-healthcheck-client"),
        init("certs/apiserver-etcd-client", "kubeconfig/admin", "kubeconfig/super-admin", "kubeconfig/controller-manager"),
        init("kubeconfig/scheduler"),

        # 3. The static pods of the backup, with this machine's name and addresses in them; then the cluster learns what has changed.
        step("etcd/local",              "Write etcd's static pod of the backup, for this machine",           restore.plan_etcd),
        step("control-plane/apiserver", "Write the API server's static pod of the backup, for this machine", restore.plan_apiserver),
        init("wait-control-plane"),
        act("strike-out",               "Remove the nodes, leases and pods of control planes that are not there any more", restore.STRIKE_OUT),
        step("upload-config/kubeadm",   "Store the cluster's configuration, if this is another machine", restore.plan_config, live="cluster"),
        step("mark-control-plane",      "Label and taint this node as a control plane, if it is a new one", restore.plan_marks, live="cluster"),
        init("bootstrap-token"),
        step("control-plane/controller-manager", "Write the controller-manager's static pod of the backup", restore.plan_controller_manager),
        step("control-plane/scheduler",          "Write the scheduler's static pod of the backup",          restore.plan_scheduler),
        step("addon/kube-proxy",                 "Point kube-proxy at this machine, if it is another one",  restore.plan_kube_proxy, live="cluster"),
        init("wait-control-plane/controllers", "load-balancer/keeper", "pod-network", "auto-renewal"),
        act("ready", "Watch that the node becomes Ready, and list what is left to do elsewhere", restore.READY),
    )

STORIES: Mapping[str, Story] = {
    "reconfigure-static-pods": RECONFIGURE_STATIC_PODS, "reconfigure": RECONFIGURE, "reconfigure-back": RECONFIGURE_BACK, "readdress": READDRESS,
    "node-remove": NODE_REMOVE, "node-reboot": NODE_REBOOT, "node-return": NODE_RETURN, "upgrade-apply": UPGRADE_APPLY,
    "upgrade-node": UPGRADE_NODE, "upgrade-rollback": UPGRADE_ROLLBACK, "upgrade-self": UPGRADE_SELF, "certs-auto": CERTS_AUTO,
    "certs-add-san": CERTS_ADD_SAN, "certs-rotate": CERTS_ROTATE, "backup-schedule": BACKUP_SCHEDULE, "drift-schedule": DRIFT_SCHEDULE,
}
"""Each by its name in a node's state."""

_WITH_STEPS_OF_INIT: Mapping[str, Callable[[Callable[..., Story]], Story]] = {
    "reconfigure-endpoint": make_endpoint, "restore": make_restore, "mirror-move": make_mirror_move, "mirror-use": lambda init: story(init("install/registries")),
}
# fmt: on


def find_story(name: str, *, init: Story) -> Story:
    """A story by its name in a node's state. init: kb.py's, of which some have steps."""
    if name in _WITH_STEPS_OF_INIT:
        return _WITH_STEPS_OF_INIT[name](
            lambda *names: tuple(phase for name in names for phase in init if phase.name == name)
        )
    return STORIES[name]
