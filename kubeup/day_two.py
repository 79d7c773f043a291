"""The story of day two: what kb does to a node of a cluster that lives, step by step, in order, and why.

It goes on where kb.py ends, which makes a node and takes it back; how to read a line is said there.
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.engine.story import Story, act, control_planes_only, step, story

# isort: off
# fmt: off
from kubeup.phases import auto_renewal, backup_timer, cert_names, endpoint, load_balancer, static_pods_swap
# isort: on

# A step shared with init and join.
BALANCER = step("load-balancer/local",  "Run a load balancer for the API servers on this node, if configured", load_balancer.plan_load_balancer)

# kb reconfigure endpoint: give the API servers a stable name, if the cluster has none or another one. First every certificate
# gets the name, then the clients are pointed at it. On the other nodes the same command does their part.
RECONFIGURE_ENDPOINT = story(
    act("preflight", "Check that the endpoint leads to this cluster", endpoint.CHECKS),
    control_planes_only(
        step("certs/apiserver",       "Add the name to the API server's certificate, with the same key", endpoint.plan_apiserver_cert),
        step("upload-config/kubeadm", "Store the endpoint in the cluster's configuration",               endpoint.plan_stored),
    ),
    BALANCER,
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
# files. Nothing stops before the new ones were tried; whatever goes wrong later, the former ones come back.
RECONFIGURE_STATIC_PODS = story(
    act("preflight", "Try the new static pods without starting them, and check that the cluster can do without the former ones meanwhile", static_pods_swap.TRIALS),
    act("swap",      "Stop the former static pods, start the new ones, and watch them; go back if one does not work",                       static_pods_swap.SWAP),
    act("gate",      "Check the whole cluster: may the next control plane follow?",                                                          static_pods_swap.GATE),
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

# kb backup schedule daily: what is made is in kubeup/backup/.
BACKUP_SCHEDULE = story(step("backup-timer", "Back up this control plane as scheduled, by a timer", backup_timer.plan_timer, live="node"))

# fmt: on

STORIES: Mapping[str, Story] = {
    "reconfigure-endpoint": RECONFIGURE_ENDPOINT,
    "reconfigure-static-pods": RECONFIGURE_STATIC_PODS,
    "certs-auto": CERTS_AUTO,
    "certs-add-san": CERTS_ADD_SAN,
    "backup-schedule": BACKUP_SCHEDULE,
}
"""Each by its name in a node's state."""
