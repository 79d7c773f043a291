#!/usr/bin/env python3
"""kb: Kubernetes from one file.

    scp kb.pyz node: && ssh node python3 kb.pyz init

This file is the story: what kb does to a machine, step by step, in order, and why. Read it from top to bottom and
you know what happens to the node. The helpers that do the steps are in kubeup/.

What a node looks like after `kb init`:

    /etc/kubernetes/pki          the cluster's certificate authorities, certificates and keys
    /etc/kubernetes/*.conf       kubeconfigs: who may talk to the API server, and as whom
    /etc/kubernetes/manifests    static pods: etcd, API server, controller-manager, scheduler; the kubelet runs them
    /var/lib/kubelet             the kubelet's configuration and flags
    /var/lib/etcd                the cluster's data
    /etc/cni/net.d               the pod network of this node
    /var/lib/kb                  what kb did, so that it can go on after an interruption, show it, and undo it

Paths, names and objects are kubeadm's: either tool can go on with a node that the other one made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.cli import entry, options, own_name
from kubeup.cli.program import Command, Program, is_kubeadm, make_local_host
from kubeup.commands import (
    about,
    adopt,
    bundle,
    config,
    doctor,
    etcd,
    init,
    keepers,
    kubeconfig_user,
    mirror,
    status,
    token,
)
from kubeup.commands import certs as commands_certs
from kubeup.commands import join as commands_join
from kubeup.commands import reconfigure as commands_reconfigure
from kubeup.commands import reset as commands_reset
from kubeup.engine.step import Phase
from kubeup.phases import (
    addons,
    bootstrap_tokens,
    certs,
    control_plane,
    endpoint,
    install_programs,
    join_command,
    join_control_plane,
    join_worker,
    kernel,
    kubeconfigs,
    kubelet_start,
    load_balancer,
    local_bundle,
    mark_control_plane,
    node_network,
    preflight,
    reset,
    runtime_registries,
    serve_mirror,
    upload_certs,
    upload_config,
    verify_node,
    wait_control_plane,
)

if TYPE_CHECKING:
    from kubeup.machine.local_host import LocalHost

# fmt: off

# What the result of a phase depends on: when one of these changes between two runs, the phase is done again.
KEYS = ("cluster.encryption_algorithm", "cluster.feature_gates")
CERT = (*KEYS, "cluster.certificate_validity_period_s")
CA = (*KEYS, "cluster.ca_certificate_validity_period_s")
NODE = ("node.name", "local_api_endpoint")
ENDPOINT = ("cluster.cluster_name", "cluster.control_plane_endpoint", "local_api_endpoint")
MANIFEST = ("cluster.kubernetes_version", "cluster.image_repository", "local_api_endpoint.advertise_address", "patches_directory")

INIT: tuple[Phase, ...] = (
    # 0. Where asked for: programs and images, from a bundle, a mirror or the official places, so that a bare machine will do.
    Phase("install/bundle",
          does="Check the bundle, and keep a copy from which the nodes are served",
          run=local_bundle.lay_down_bundle, done=local_bundle.bundle_is_laid_down, live="node", when=local_bundle.wants_bundle,
          reads=("kb.bundle", "kb.verify_key", "cluster.kubernetes_version", "cluster.image_repository")),
    Phase("install/packages",
          does="Put the runtime, the kubelet and their tools in place",
          run=install_programs.install_packages, done=install_programs.packages_are_in_place,
          live="node", when=install_programs.wants_packages,
          reads=("kb.packages", "cluster.kubernetes_version"),
          makes=("/etc/systemd/system/multi-user.target.wants/containerd.service",)),
    Phase("install/mirror",
          does="Serve the bundle to all nodes of the cluster",
          run=serve_mirror.serve_bundle, done=serve_mirror.bundle_is_served, live="node", when=local_bundle.wants_bundle,
          reads=("kb.bundle", *NODE, "cluster.control_plane_endpoint"),
          makes=("/etc/systemd/system/multi-user.target.wants/kb-mirror.service",)),
    Phase("install/registries",
          does="Point the runtime to the mirror, and show that it is asked",
          run=runtime_registries.point_runtime_to_mirror, done=runtime_registries.runtime_asks_mirror,
          live="node", when=runtime_registries.wants_registries,
          reads=("kb.bundle", "kb.mirror", "kb.air_gapped", "kb.packages.preset", "kb.pod_network", "kubelet",
                 "cluster.image_repository", "cluster.kubernetes_version")),

    # 1. Look before anything is written: is this machine fit, is the runtime well, are the images at hand?
    Phase("preflight",
          does="Check this machine and fetch the images",
          run=preflight.run_checks, done=preflight.images_are_here, live="node",
          reads=("cluster.kubernetes_version", "cluster.image_repository", "cluster.local_etcd", "cluster.external_etcd",
                 "cluster.networking", "local_api_endpoint", "node.cri_socket", "kubelet", "kb.pod_network")),
    Phase("install/sysctls",
          does="Let this node forward packets between pods, now and after a reboot",
          run=kernel.write_sysctls, done=kernel.sysctls_are_set,
          reads=("cluster.networking", "kb.pod_network.plugin"),
          makes=("/etc/sysctl.d/90-kb.conf",)),

    # 2. The kubelet, as soon as there is an authority that vouches for it: it takes half a second of waiting until it looks for
    #    static pods, in which everything is made that they need (docs/adr/0009).
    Phase("certs/ca",
          does="Make the cluster's certificate authority",
          plan=certs.plan_ca),
    Phase("kubeconfig/kubelet",
          does="Write this node's kubelet's kubeconfig",
          plan=kubeconfigs.plan_kubelet),
    Phase("load-balancer/local",
          does="Put a load balancer for the API servers on this node, if one is asked for",
          plan=load_balancer.plan_load_balancer),
    Phase("kubelet-start",
          does="Configure and start the kubelet",
          plan=kubelet_start.plan_kubelet),

    # 3. Trust: two more authorities (front proxy, etcd), and a certificate for each who must prove who it is.
    Phase("certs/apiserver",
          does="Issue the API server's serving certificate",
          plan=certs.plan_apiserver),
    Phase("certs/apiserver-kubelet-client",
          does="Issue the certificate with which the API server calls kubelets",
          plan=certs.plan_apiserver_kubelet_client),
    Phase("certs/front-proxy-ca",
          does="Make the authority of the front proxy (aggregated APIs)",
          plan=certs.plan_front_proxy_ca),
    Phase("certs/front-proxy-client",
          does="Issue the certificate with which the API server calls aggregated APIs",
          plan=certs.plan_front_proxy_client),
    Phase("certs/etcd-ca",
          does="Make etcd's own certificate authority",
          plan=certs.plan_etcd_ca),
    Phase("certs/etcd-server",
          does="Issue etcd's serving certificate",
          plan=certs.plan_etcd_server),
    Phase("certs/etcd-peer",
          does="Issue the certificate with which etcd members know each other",
          plan=certs.plan_etcd_peer),
    Phase("certs/etcd-healthcheck-client",
          does="Issue the certificate of etcd's health checks",
          plan=certs.plan_etcd_healthcheck_client),
    Phase("certs/apiserver-etcd-client",
          does="Issue the certificate with which the API server talks to etcd",
          plan=certs.plan_apiserver_etcd_client),
    Phase("certs/sa",
          does="Make the key that signs service account tokens",
          plan=certs.plan_service_account_key),

    # 4. Identities: a kubeconfig for the admin and for each component that calls the API server.
    Phase("kubeconfig/admin",
          does="Write the admin's kubeconfig",
          plan=kubeconfigs.plan_admin),
    Phase("kubeconfig/super-admin",
          does="Write the kubeconfig that stands above RBAC, for emergencies",
          plan=kubeconfigs.plan_super_admin),
    Phase("kubeconfig/controller-manager",
          does="Write the controller-manager's kubeconfig",
          plan=kubeconfigs.plan_controller_manager),
    Phase("kubeconfig/scheduler",
          does="Write the scheduler's kubeconfig",
          plan=kubeconfigs.plan_scheduler),

    # 5. Static pods: files in a folder that the kubelet watches; it runs them without asking any API server.
    Phase("etcd/local",
          does="Write the static pod of this node's etcd",
          plan=control_plane.plan_etcd),
    Phase("control-plane/apiserver",
          does="Write the static pod of the API server",
          plan=control_plane.plan_apiserver),
    Phase("control-plane/controller-manager",
          does="Write the static pod of the controller-manager",
          plan=control_plane.plan_controller_manager),
    Phase("control-plane/scheduler",
          does="Write the static pod of the scheduler",
          plan=control_plane.plan_scheduler),
    Phase("wait-control-plane",
          does="Wait until the kubelet and the API server are healthy",
          run=wait_control_plane.wait_for_control_plane, done=wait_control_plane.apiserver_is_healthy, live="cluster"),

    # 6. The cluster learns what it is: other nodes and later upgrades read its configuration from it.
    Phase("upload-config/kubeadm",
          does="Store the cluster's configuration in the cluster",
          run=upload_config.upload_kubeadm_config, done=upload_config.kubeadm_config_is_uploaded,
          reads=("cluster",)),
    Phase("upload-config/kubelet",
          does="Store the kubelets' configuration in the cluster",
          run=upload_config.upload_kubelet_config, done=upload_config.kubelet_config_is_uploaded,
          reads=("kubelet", "cluster.networking", "cluster.feature_gates", "node.cri_socket")),
    Phase("upload-certs",
          does="Store the authorities, encrypted, for further control planes",
          run=upload_certs.upload_certs, done=upload_certs.certs_are_uploaded,
          reads=("upload_certs",)),
    Phase("mark-control-plane",
          does="Label and taint this node as a control plane",
          run=mark_control_plane.mark_control_plane, done=mark_control_plane.control_plane_is_marked,
          reads=("node.taints", "node.name"), live="cluster"),
    Phase("bootstrap-token",
          does="Let nodes join: a token, and the rights of a joining kubelet",
          plan=bootstrap_tokens.plan_bootstrap_tokens),
    Phase("kubelet-finalize/enable-client-cert-rotation",
          does="Let the kubelet renew its own certificate",
          run=kubelet_start.enable_client_cert_rotation, done=kubelet_start.client_cert_rotation_is_enabled),

    # 7. Addons: what pods expect of every cluster. Names, services, and a network between pods.
    Phase("addon/coredns",
          does="Install CoreDNS, the cluster's DNS",
          run=addons.apply_coredns, done=addons.coredns_is_applied,
          reads=("cluster.dns", "cluster.networking", "cluster.image_repository", "cluster.kubernetes_version",
                 "patches_directory")),
    Phase("addon/kube-proxy",
          does="Install kube-proxy, which makes Services reachable",
          run=addons.apply_kube_proxy, done=addons.kube_proxy_is_applied,
          reads=("cluster.proxy", "kube_proxy", "cluster.networking", "cluster.image_repository",
                 "cluster.kubernetes_version", "cluster.control_plane_endpoint", "local_api_endpoint", "proxy_env")),
    # What was applied until here needed the API server alone; from here on the controllers have to do their part.
    Phase("wait-control-plane/controllers",
          does="Wait until the controller-manager and the scheduler are healthy",
          run=wait_control_plane.wait_for_controllers, done=wait_control_plane.control_plane_is_healthy,
          live="cluster", hidden=True),
    Phase("load-balancer/keeper",
          does="Follow API servers as they come and go, and let joining nodes do the same",
          plan=load_balancer.plan_shared_keeper, live="cluster"),
    Phase("pod-network",
          does="Give pods a network: addresses of this node, routes to the others",
          plan=node_network.plan_pod_network, live="cluster"),

    # 8. Nobody says "ready" unseen.
    Phase("verify",
          does="Watch that the node is Ready, stays up, and its DNS answers",
          run=verify_node.verify_node, done=verify_node.node_is_verified, reads=("kb.soak_s",), live="cluster"),
    Phase("show-join-command",
          does="Say how the next node joins",
          run=join_command.show_join_command, needs=("bootstrap-token", "upload-certs"), live="cluster", always=True),
)

# What `kb join` does once discovery has found the cluster and proven it; the cluster's own documents say the rest.
# What is on="control-plane" is done with --control-plane alone. etcd comes before the API server, so that each piece
# finds the one it needs.
JOIN: tuple[Phase, ...] = (
    Phase("install/packages",
          does="Put the runtime, the kubelet and their tools in place",
          run=install_programs.install_packages, done=install_programs.packages_are_in_place,
          live="node", when=install_programs.wants_packages,
          reads=("kb.packages", "cluster.kubernetes_version"),
          makes=("/etc/systemd/system/multi-user.target.wants/containerd.service",)),
    Phase("install/registries",
          does="Point the runtime to the mirror, and show that it is asked",
          run=runtime_registries.point_runtime_to_mirror, done=runtime_registries.runtime_asks_mirror,
          live="node", when=runtime_registries.wants_registries,
          reads=("kb.mirror", "kb.air_gapped", "kb.packages.preset", "kubelet", "cluster.image_repository",
                 "cluster.kubernetes_version")),
    Phase("preflight",
          does="Check this machine, and that the cluster has no node of its name",
          run=join_worker.run_checks, live="node",
          reads=("cluster.kubernetes_version", "node.name", "node.cri_socket", "kubelet", "kb.pod_network")),
    Phase("install/sysctls",
          does="Let this node forward packets between pods, now and after a reboot",
          run=kernel.write_sysctls, done=kernel.sysctls_are_set,
          reads=("cluster.networking", "kb.pod_network.plugin"),
          makes=("/etc/sysctl.d/90-kb.conf",)),
    Phase("control-plane-prepare/download-certs",
          does="Fetch the authorities that control planes share, with the certificate key",
          run=join_control_plane.download_certs, done=join_control_plane.shared_certs_are_here, on="control-plane"),
    Phase("control-plane-prepare/certs",
          does="Issue this node's certificates, with the cluster's authorities",
          run=join_control_plane.issue_certs, done=join_control_plane.certs_are_valid, on="control-plane",
          reads=(*CERT, *NODE, "cluster.api_server.cert_sans", "cluster.networking", "cluster.control_plane_endpoint",
                 "cluster.local_etcd")),
    Phase("control-plane-prepare/kubeconfig",
          does="Write the kubeconfigs of the admin, the components and this node's kubelet",
          run=join_control_plane.write_kubeconfigs, done=join_control_plane.kubeconfigs_are_valid, on="control-plane",
          reads=(*CERT, *ENDPOINT, "node.name")),
    Phase("check-etcd",
          does="Look whether etcd can take a new member",
          run=join_control_plane.check_etcd, live="cluster", on="control-plane", hidden=True),
    Phase("load-balancer/local",
          does="Put a load balancer for the API servers on this node, if the cluster has such",
          plan=load_balancer.plan_load_balancer),
    Phase("kubelet-start",
          does="Configure and start the kubelet",
          plan=join_worker.plan_kubelet),
    Phase("etcd-join",
          does="Become a member of etcd: a learner first, a vote when it has caught up",
          run=join_control_plane.join_etcd, done=join_control_plane.is_etcd_member, live="cluster", on="control-plane",
          reads=(*MANIFEST, "cluster.local_etcd"),
          makes=("manifests/etcd.yaml",)),
    Phase("control-plane-prepare/control-plane",
          does="Write the static pods of the API server, the controller-manager and the scheduler",
          plan=control_plane.plan_components, on="control-plane"),
    Phase("kubelet-wait-bootstrap",
          does="Wait until the cluster has signed the kubelet's own certificate",
          run=join_worker.wait_for_bootstrap, done=join_worker.is_bootstrapped, live="cluster",
          makes=("kubelet.conf",)),
    Phase("wait-control-plane",
          does="Wait until this node's kubelet, API server, controller-manager and scheduler are healthy",
          run=join_control_plane.wait_for_instance, done=join_control_plane.instance_is_healthy, live="cluster",
          on="control-plane"),
    Phase("control-plane-join/mark-control-plane",
          does="Label and taint this node as a control plane",
          run=join_worker.mark_control_plane, done=mark_control_plane.control_plane_is_marked,
          reads=("node.taints", "node.name"), live="cluster", on="control-plane"),
    Phase("load-balancer/keeper",
          does="Follow API servers as they come and go",
          plan=load_balancer.plan_keeper, live="cluster"),
    Phase("pod-network",
          does="Give this node's pods addresses, and routes to the others, as the cluster says",
          plan=node_network.plan_node_network, live="cluster"),
    Phase("verify",
          does="Watch that the node becomes Ready and reaches the cluster's DNS",
          run=join_worker.verify_node, done=join_worker.node_is_verified, reads=("kb.soak_s",), live="cluster"),
)

RESET: tuple[Phase, ...] = (
    Phase("remove-etcd-member",
          does="Take this node's member out of the cluster's etcd, while it still can be asked",
          run=reset.remove_etcd_member, live="node"),
    Phase("cleanup-node/stop-kubelet",
          does="Stop the kubelet, which would start every pod again",
          run=reset.stop_kubelet, live="node"),
    Phase("cleanup-node/remove-pods",
          does="Stop and remove this node's pods",
          run=reset.remove_pods, live="node"),
    Phase("cleanup-node/unmount",
          does="Unmount what the kubelet mounted for pods",
          run=reset.unmount_kubelet_folders, live="node"),
    Phase("cleanup-node/remove-pod-network",
          does="Take away kb's routes, link and bridge",
          run=reset.remove_pod_network, live="node"),
    Phase("cleanup-node/remove-load-balancer",
          does="Take away the load balancer and its line in /etc/hosts",
          run=load_balancer.remove_load_balancer),
    Phase("cleanup-node/stop-services",
          does="Stop the mirror and the runtime, as far as kb installed them",
          run=reset.stop_services, live="node"),
    Phase("cleanup-node/take-back-files",
          does="Remove the files that kb made, and put back those it changed",
          run=reset.take_back_files),
)

# A stable name for the API servers, where the cluster had none or another one. First all certificates bear it, then those
# who call by it are told; on further nodes the same command does their part.
RECONFIGURE_ENDPOINT: tuple[Phase, ...] = (
    Phase("preflight",
          does="Look whether the endpoint leads to this cluster",
          run=endpoint.check_endpoint, live="node", always=True),
    Phase("certs/apiserver",
          does="Give the API server's certificate the name, for the same key",
          plan=endpoint.plan_apiserver_cert, on="control-plane"),
    Phase("upload-config/kubeadm",
          does="Store the endpoint in the cluster's configuration",
          plan=endpoint.plan_stored, on="control-plane"),
    Phase("load-balancer/local",
          does="Put a load balancer for the API servers on this node, if one is asked for",
          plan=load_balancer.plan_load_balancer),
    Phase("load-balancer/keeper",
          does="Follow API servers as they come and go",
          plan=endpoint.plan_keeper, live="cluster"),
    Phase("kubeconfig",
          does="Have this node's kubeconfigs call the endpoint",
          plan=endpoint.plan_kubeconfigs),
    Phase("cluster-info",
          does="Tell nodes that join",
          plan=endpoint.plan_cluster_info, on="control-plane"),
    Phase("kube-proxy",
          does="Tell kube-proxy, and restart it",
          run=endpoint.write_kube_proxy, on="control-plane", always=True),
    Phase("load-balancer/remove",
          does="Take the load balancer away again, where the conversion that brought it is taken back",
          run=endpoint.remove_load_balancer, always=True, hidden=True),
    Phase("verify",
          does="Shake hands with the API servers by the new name, and say what is left to do elsewhere",
          run=endpoint.verify_endpoint, live="cluster", always=True),
)

COMMANDS: tuple[Command, ...] = (
    Command("init", "Make this machine the first control plane of a cluster", init.init,
            options=options.INIT_OPTIONS, phases=INIT, workflow="init"),
    Command("init phase", "Run one phase of init, or all below a parent (certs, control-plane/all)", init.init_phase,
            options=options.INIT_OPTIONS + options.PHASE_OPTIONS, phases=INIT, workflow="init", arguments=("phase...",)),
    Command("join", "Make this machine a worker of a cluster, or with --control-plane a further control plane", commands_join.join,
            options=options.JOIN_OPTIONS, phases=JOIN, workflow="join", arguments=("endpoint...",)),
    Command("join phase", "Run one phase of join", commands_join.join_phase,
            options=options.JOIN_OPTIONS, phases=JOIN, workflow="join", arguments=("phase...",)),
    Command("reconfigure endpoint", "Give the cluster a stable name for its API servers, or another one: NAME:PORT",
            commands_reconfigure.endpoint, options=("load-balancer", "undo", "dry-run", "list", "output"),
            phases=RECONFIGURE_ENDPOINT, workflow="reconfigure-endpoint", arguments=("endpoint...",)),
    Command("reset", "Take back what kb did on this node", commands_reset.reset,
            options=("force", "cri-socket", "dry-run", "list", "output", "skip-phases"), phases=RESET, workflow="reset"),
    Command("adopt", "Write kb's state for a node that kubeadm made; change nothing else", adopt.adopt,
            options=("kubeconfig", "patches", "dry-run", "output")),
    Command("status", "Show what kb did on this node", status.status, options=("output",), phases=INIT),
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
    Command("certs certificate-key", "Print a random key for --certificate-key", commands_certs.certificate_key),
    Command("etcd members", "List the members of the cluster's etcd, and whether each serves", etcd.members,
            options=("cert-dir", "output")),
    Command("etcd remove", "Take a member that is gone for ever out of etcd's list", etcd.remove,
            options=("cert-dir", "force"), arguments=("member...",)),
    Command("certs check-expiration", "Say when each certificate of this node ends", commands_certs.check_expiration,
            options=("config", "cert-dir", "kubeconfig", "output")),
    Command("certs renew", "Issue one certificate of this node anew, or all: kb certs renew all", commands_certs.renew,
            options=("config", "cert-dir", "kubeconfig"), arguments=("certificate...",)),
    Command("certs generate-csr", "Make keys and signing requests for a CA that is kept elsewhere",
            commands_certs.generate_csr, options=("config", "cert-dir", "kubeconfig-dir")),
    Command("routes", "Keep the routes to other nodes' pods (run by systemd)", keepers.routes, options=("once",)),
    Command("load-balancer", "Follow the API servers behind this node's load balancer (run by systemd)",
            keepers.load_balancer, options=("once",)),
    Command("version", "Print kb's version", about.version, options=("output",)),
    Command("completion", "Print a completion script for bash, zsh or fish", about.completion,
            arguments=("shell",)),
)

# fmt: on


def main(argv: list[str] | None = None, *, make_host: Callable[[Path], LocalHost] = make_local_host) -> int:
    """Run kb with these words (the process' own by default); returns the exit status. Called through a link of the
    name kubeadm, or with --as-kubeadm, it is kubeadm: see kubeup/kubeadm/program.py. make_host: gives the machine, by the
    folder of --root (`/` without one); a test gives another one."""
    called, words = (sys.argv[0], sys.argv[1:]) if argv is None else ("", argv)
    if is_kubeadm(called, words):
        from kubeup.kubeadm import program

        return program.main(COMMANDS, words, called, make_host=make_host)
    call = own_name.find_call(called, sys.executable)
    return entry.main(COMMANDS, words, Program(called_as=call, make_host=make_host))


if __name__ == "__main__":
    raise SystemExit(main())
