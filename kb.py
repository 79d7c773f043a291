#!/usr/bin/env python3
"""kb: Kubernetes from one file.

    scp kb.pyz node: && ssh node python3 kb.pyz init

This file is the story: what kb does to a machine, step by step, in order, and why. Read it from top to bottom to
learn what happens to the node. What kb does to a cluster that lives is told in the same way in kubeup/day_two.py. The
helpers that carry out the steps are in kubeup/.

What a node looks like after `kb init`:

    /etc/kubernetes/pki          the cluster's certificate authorities, certificates and keys
    /etc/kubernetes/*.conf       kubeconfigs: the users that may talk to the API server
    /etc/kubernetes/manifests    static pods: etcd, API server, controller-manager, scheduler; the kubelet runs them
    /var/lib/kubelet             the kubelet's configuration and flags
    /var/lib/etcd                the cluster's data
    /etc/cni/net.d               the pod network of this node
    /var/lib/kb                  what kb did, so that it can continue after an interruption, show it, and undo it

Paths, names and objects are kubeadm's: either tool can continue with a node that the other one set up.

How to read a line: its name (kubeadm's, if kubeadm has one), what it does, and which function in kubeup/phases/ does it.

    step       declares what should be there: files, running programs, objects in the cluster. kb compares it with the node
               and changes only what differs. It can also preview the change (--dry-run), report drift later, and undo it
    act        does something that has no such result: it checks, waits, fetches or prints
    live=      "node": needs the running machine, skipped with --root; "cluster": needs the running cluster, also
               skipped with --dry-run
    when=      runs only if the configuration asks for it
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.cli import entry, own_name
from kubeup.cli.program import Program, is_kubeadm, make_local_host
from kubeup.commands.table import make_commands
from kubeup.engine.story import act, control_planes_only, step, story
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup import day_two

# isort: off
# fmt: off
from kubeup.phases import (
    addons, auto_renewal, bootstrap_tokens, certs, control_plane, install_programs, join_command, join_control_plane,
    join_worker, kernel, kubeconfigs, kubelet_start, load_balancer, local_bundle, mark_control_plane, node_leftovers,
    node_network, preflight, reset, runtime_registries, serve_mirror, upload_certs, upload_config, verify_node,
    wait_control_plane,
)
# isort: on

if TYPE_CHECKING:
    from kubeup.machine.local_host import LocalHost

# Steps shared by several stories: every node needs the programs, the images and packet forwarding.
PROGRAMS = act("install/packages",      "Install the runtime, the kubelet and their tools", install_programs.PROGRAMS)
REGISTRIES = step("install/registries", "Point the runtime to the mirror, and check that it uses it", runtime_registries.plan_registries, live="node", when=runtime_registries.wants_registries)
FORWARDING = step("install/sysctls",    "Let this node forward packets between pods, now and after a reboot", kernel.plan_forwarding)
BALANCER = step("load-balancer/local",  "Run a load balancer for the API servers on this node, if configured", load_balancer.plan_load_balancer)
RENEWAL = step("auto-renewal",          "Renew this node's certificates before they end, by a timer", auto_renewal.plan_default, live="node")

# kb init: the first node of a cluster.
INIT = story(
    # 0. If asked for: get programs and images from a bundle, a mirror or the official sites, so that a bare machine is enough.
    act("install/bundle", "Check the bundle, and keep a copy to serve to the nodes", local_bundle.BUNDLE),
    PROGRAMS,
    step("install/mirror", "Serve the bundle to all nodes of the cluster", serve_mirror.plan_mirror, live="node", when=local_bundle.wants_bundle),
    REGISTRIES,

    # 1. Check before writing anything: is this machine suitable, does the runtime work, are the images available?
    act("preflight", "Check this machine and fetch the images", preflight.CHECKS),
    FORWARDING,

    # 2. Start the kubelet as soon as there is a CA that signs its certificate. It looks for static pods only half a second later;
    #    meanwhile kb creates everything that they need (docs/adr/0009).
    step("certs/ca",           "Create the cluster's certificate authority",  certs.plan_ca),
    step("kubeconfig/kubelet", "Write the kubeconfig of this node's kubelet", kubeconfigs.plan_kubelet),
    BALANCER,
    step("kubelet-start", "Configure and start the kubelet", kubelet_start.plan_kubelet),

    # 3. Trust: two more CAs (front proxy, etcd), and a certificate for everything that must prove its identity.
    step("certs/apiserver",                "Issue the API server's serving certificate",                             certs.plan_apiserver),
    step("certs/apiserver-kubelet-client", "Issue the certificate that the API server uses to call kubelets",        certs.plan_apiserver_kubelet_client),
    step("certs/front-proxy-ca",           "Create the CA of the front proxy (for aggregated APIs)",                 certs.plan_front_proxy_ca),
    step("certs/front-proxy-client",       "Issue the certificate that the API server uses to call aggregated APIs", certs.plan_front_proxy_client),
    step("certs/etcd-ca",                  "Create etcd's own certificate authority",                                certs.plan_etcd_ca),
    step("certs/etcd-server",              "Issue etcd's serving certificate",                                       certs.plan_etcd_server),
    step("certs/etcd-peer",                "Issue the certificate that etcd members use among themselves",           certs.plan_etcd_peer),
    step("certs/etcd-healthcheck-client",  "Issue the certificate for etcd's health checks",                         certs.plan_etcd_healthcheck_client),
    step("certs/apiserver-etcd-client",    "Issue the certificate that the API server uses to call etcd",            certs.plan_apiserver_etcd_client),
    step("certs/sa",                       "Create the key that signs service account tokens",                       certs.plan_service_account_key),

    # 4. Identities: a kubeconfig for the admin and for each component that calls the API server.
    step("kubeconfig/admin",              "Write the admin's kubeconfig",                             kubeconfigs.plan_admin),
    step("kubeconfig/super-admin",        "Write the kubeconfig that bypasses RBAC, for emergencies", kubeconfigs.plan_super_admin),
    step("kubeconfig/controller-manager", "Write the controller-manager's kubeconfig",                kubeconfigs.plan_controller_manager),
    step("kubeconfig/scheduler",          "Write the scheduler's kubeconfig",                         kubeconfigs.plan_scheduler),

    # 5. Static pods: files in a folder that the kubelet watches. It runs them without asking an API server.
    step("etcd/local",                       "Write the static pod of this node's etcd",              control_plane.plan_etcd),
    step("control-plane/apiserver",          "Write the static pod of the API server",                control_plane.plan_apiserver),
    RENEWAL,
    act("wait-control-plane",                "Wait until the kubelet and the API server are healthy", wait_control_plane.APISERVER),

    # 6. Store the configuration in the cluster: other nodes and later upgrades read it from there.
    step("upload-config/kubeadm",                        "Store the cluster's configuration in the cluster", upload_config.plan_kubeadm_config),
    step("upload-config/kubelet",                        "Store the kubelets' configuration in the cluster", upload_config.plan_kubelet_config),
    act("upload-certs",                                  "Store the shared certificates and keys, encrypted, for other control planes", upload_certs.CERTS),
    step("mark-control-plane",                           "Label and taint this node as a control plane", mark_control_plane.plan_marks, live="cluster"),
    step("bootstrap-token",                              "Let nodes join: a token, and the permissions of a joining kubelet", bootstrap_tokens.plan_bootstrap_tokens),
    #    Start the controllers now that the API server has written the roles that let them hold their leases: a refused first
    #    attempt costs seconds (docs/adr/0009). They start while the next steps continue.
    step("control-plane/controller-manager", "Write the static pod of the controller-manager", control_plane.plan_controller_manager),
    step("control-plane/scheduler",          "Write the static pod of the scheduler",          control_plane.plan_scheduler),

    # 7. Addons: what pods expect of every cluster: DNS, Services, and a network between pods.
    step("addon/coredns",    "Install CoreDNS, the cluster's DNS",                 addons.plan_coredns),
    step("addon/kube-proxy", "Install kube-proxy, which makes Services reachable", addons.plan_kube_proxy),
    #    Everything so far needed only the API server; from here on the controllers have to be running.
    act("wait-control-plane/controllers", "Wait until the controller-manager and the scheduler are healthy", wait_control_plane.CONTROLLERS),
    #    This restarts the kubelet, so it comes where it delays nothing: the node waits for its podCIDR anyway (docs/adr/0009).
    step("kubelet-finalize/enable-client-cert-rotation", "Let the kubelet renew its own certificate", kubelet_start.plan_client_cert_rotation),
    step("load-balancer/keeper",          "Follow API servers as they come and go, and let joining nodes do so too", load_balancer.plan_shared_keeper, live="cluster"),
    step("pod-network",                   "Give pods a network: addresses on this node, routes to the others", node_network.plan_pod_network, live="cluster"),

    # 8. Call the node ready only after watching it.
    act("verify",            "Watch that the node is Ready, stays up, and its DNS answers", verify_node.SOAK),
    act("show-join-command", "Print the command that joins the next node",                  join_command.JOIN_COMMAND),
)

# kb join: another node. Discovery has found and verified the cluster; the rest comes from the configuration stored in it.
JOIN = story(
    # 0. If asked for: get programs, and a mirror to pull images from.
    PROGRAMS,
    REGISTRIES,

    # 1. Check before writing anything.
    act("preflight", "Check this machine, and that its node name is free", join_worker.CHECKS),
    FORWARDING,

    # 2. With --control-plane: the CAs, and the identities with which this node's components call the API server.
    control_planes_only(
        step("control-plane-prepare/download-certs", "Download the certificates and keys that control planes share", join_control_plane.plan_shared_certs),
        step("control-plane-prepare/certs",          "Issue this node's certificates, signed by the cluster's CAs", join_control_plane.plan_certs),
        step("control-plane-prepare/kubeconfig",     "Write the kubeconfigs of the admin, the components and this node's kubelet", join_control_plane.plan_kubeconfigs),
        act("check-etcd",                            "Check that etcd can take a new member", join_control_plane.ETCD_CHECK),
    ),

    # 3. The kubelet: it requests its own certificate with the token while the next steps continue.
    BALANCER,
    step("kubelet-start", "Configure and start the kubelet", join_worker.plan_kubelet),

    # 4. With --control-plane: etcd before the API server, so that each component finds the one it needs.
    control_planes_only(
        act("etcd-join",                            "Join etcd: first as a learner, as a voter once it has caught up", join_control_plane.ETCD_MEMBER),
        step("control-plane-prepare/control-plane", "Write the static pods of the API server, the controller-manager and the scheduler", join_control_plane.plan_components),
        RENEWAL,
    ),
    act("kubelet-wait-bootstrap", "Wait until the cluster has signed the kubelet's own certificate", join_worker.BOOTSTRAP),
    control_planes_only(
        act("wait-control-plane",                     "Wait until this node's kubelet, API server, controller-manager and scheduler are healthy", join_control_plane.INSTANCE),
        step("control-plane-join/mark-control-plane", "Label and taint this node as a control plane", mark_control_plane.plan_joined_marks, live="cluster"),
    ),

    # 5. This node's network, and a check that everything works.
    step("load-balancer/keeper", "Follow API servers as they come and go", load_balancer.plan_keeper, live="cluster"),
    step("pod-network",          "Give this node's pods addresses, and routes to the others, as the cluster is configured", node_network.plan_node_network, live="cluster"),
    act("verify",                "Watch that the node becomes Ready and reaches the cluster's DNS", join_worker.VERIFIED),
)

# kb reset: undo what init and join did. First what others depend on, the files last, so that an interrupted reset still
# knows what there was.
RESET = story(
    act("remove-etcd-member",                 "Remove this node's member from the cluster's etcd, while etcd can still be reached", reset.ETCD_MEMBER),
    step("cleanup-node/stop-kubelet",         "Stop the kubelet, which would restart every pod",                                    kubelet_start.plan_stopped_kubelet, live="node"),
    step("cleanup-node/remove-pods",          "Stop and remove this node's pods",                                                   kubelet_start.plan_no_pods, live="node"),
    step("cleanup-node/unmount",              "Unmount what the kubelet mounted for pods",                                          kubelet_start.plan_no_mounts, live="node"),
    step("cleanup-node/remove-service-rules", "Remove the rules of kube-proxy and the kubelet, and no others",               node_leftovers.plan_no_service_rules, live="node", part_of="cleanup-node/remove-pods"),
    step("cleanup-node/remove-pod-network",   "Remove kb's routes, link and bridge",                                                node_network.plan_no_pod_network, live="node"),
    step("cleanup-node/remove-flannel",        "Remove the links, rules and files of flannel, if it came after kb",                  node_leftovers.plan_no_flannel, live="node", part_of="cleanup-node/remove-pods"),
    step("cleanup-node/remove-load-balancer", "Remove the load balancer and its line in /etc/hosts",                                load_balancer.plan_removal),
    step("cleanup-node/remove-service-route", "Remove the route to Services, on a machine that has no default route",              kernel.plan_no_service_route, live="node"),
    step("cleanup-node/restore-settings",     "Give kernel settings their values of before, unless others need them",              kernel.plan_former_settings, live="node"),
    step("cleanup-node/release-packages",     "Let the package manager upgrade the packages that it held for kb",                   install_programs.plan_released_packages, live="node"),
    step("cleanup-node/release-images",       "Let the kubelet delete the images that an upgrade kept for its way back",            install_programs.plan_released_images, live="node"),
    step("cleanup-node/stop-services",        "Stop the mirror and the runtime, if kb installed them",                              reset.plan_no_services, live="node"),
    step("cleanup-node/remove-runtime-data",  "Remove the images and containers of a runtime that kb installed",                    install_programs.plan_no_runtime_data, live="node", part_of="cleanup-node/stop-services"),
    step("cleanup-node/remove-etcd-data",     "Remove the data of this node's etcd",                                                reset.plan_no_etcd_data, part_of="cleanup-node/take-back-files"),
    step("cleanup-node/remove-kubelet-data",  "Remove the kubelet's own data, and a joined node's credentials",                     kubelet_start.plan_no_kubelet_data, part_of="cleanup-node/take-back-files"),
    step("cleanup-node/remove-traces",        "Remove the control groups and logs of pods, and empty folders made for them",       node_leftovers.plan_no_traces, live="node", part_of="cleanup-node/remove-pods"),
    act("cleanup-node/take-back-files",       "Remove the files that kb created, and restore those it changed",                     reset.FILES),
)

# fmt: on

# What kb does to a cluster that lives, and kb restore, is told in kubeup/day_two.py, with init's steps where they are the same.
COMMANDS = make_commands(
    {"init": INIT, "join": JOIN, "reset": RESET}, others=lambda name: day_two.find_story(name, init=INIT)
)


def main(argv: list[str] | None = None, *, make_host: Callable[[Path], LocalHost] = make_local_host) -> int:
    """Run kb with `argv` (default: sys.argv) and return the exit status.

    When called through a link named kubeadm, or with --as-kubeadm, it acts as kubeadm: see kubeup/kubeadm/program.py.
    make_host returns the machine for the folder of --root (`/` without one); tests pass their own."""
    called, words = (sys.argv[0], sys.argv[1:]) if argv is None else ("", argv)
    if is_kubeadm(called, words):
        from kubeup.kubeadm import program

        return program.main(COMMANDS, words, called=called, make_host=make_host)
    call = own_name.find_call(called, sys.executable)
    return entry.main(COMMANDS, words, program=Program(called_as=call, make_host=make_host))


if __name__ == "__main__":
    raise SystemExit(main())
