"""Waits until the cluster's DNS answers through its Service, which takes CoreDNS, the pod network and kube-proxy's rules.

This module decides what may prevent an answer, and in which order to check for it.
"""

from __future__ import annotations

from typing import Optional

from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.phases.waits import Wait

with lazily:
    from kubeup.cluster import api, objects, probes
    from kubeup.diagnosis import container_trouble, signs
    from kubeup.network import node_routes
    from kubeup.node import image_pulls

PULL_TIMEOUT_S = 20

PRESSURES = {
    "DiskPressure": (
        "by default 15% of the images' file system, 10% of its own, and 5% of the inodes must be free",
        "make room: df -h /var/lib/containerd /var/lib/kubelet; df -i /var/lib/kubelet; crictl rmi --prune",
    ),
    "MemoryPressure": ("by default 100 MiB must be free", "see what takes it: ps aux --sort=-rss | head"),
    "PIDPressure": (
        "the machine runs out of process numbers",
        "see who has them: ps -eLf | wc -l; sysctl kernel.pid_max",
    ),
}
"""Conditions under which a node accepts no pods: (the kubelet's default --eviction-hard threshold, where to look)."""


def wait_for_dns(ctx: Run) -> None:
    """Wait until a lookup through the DNS Service's address succeeds. Raises ClusterError (not-healthy)."""
    if not has_dns(ctx):
        return
    limit = ctx.config.timeouts.kubelet_health_check_s
    if has_proxy(ctx):
        # why a pod with the old configuration exited says nothing about the new one
        Wait(ctx, limit, "kube-proxy's restart").until(lambda: _find_old_proxy(ctx))
    # CoreDNS itself needs the API's Service, so without rules it does not even become Ready
    chain = dns_chain(ctx)
    unhealthy = dict.fromkeys(chain, "the cluster's DNS does not answer")
    wait = Wait(
        ctx,
        limit,
        "cluster DNS",
        chain,
        unhealthy,
        explain=lambda: _proxy_trouble(ctx),
        heal=lambda: free_waiting_pods(ctx),
        find_cause=lambda: (
            find_pressure(ctx) or container_trouble.find_lost_rules(ctx.host, ctx.config.node.cri_socket)
        ),
    )
    wait.until(lambda: look_up_dns(ctx))


def free_waiting_pods(ctx: Run) -> None:
    """Delete this node's kube-proxy and CoreDNS pods that are in image pull back-off, if their image can be pulled by now.

    The back-off takes up to five minutes. For the pods that replace them the kubelet pulls at once.
    """
    field = f"spec.nodeName={ctx.config.node.name}"
    for label in ("k8s-app=kube-proxy", "k8s-app=kube-dns"):
        for pod in ctx.api.list(api.path_of("Pod", namespace="kube-system"), label=label, field=field):
            image = _awaited_image(pod)
            if not image:
                continue
            try:
                image_pulls.pull_image(ctx.host, ctx.config.node.cri_socket, image=image, timeout_s=PULL_TIMEOUT_S)
            except HostError:
                return  # the other images come from the same registry
            name = str(pod["metadata"]["name"])
            ctx.api.delete(api.path_of("Pod", name, namespace="kube-system"))
            ctx.report.note(
                f"{image} can be pulled again: deleted pod {name}, so that the kubelet pulls it at once for a new pod"
            )


def _awaited_image(pod: api.Object) -> str:
    """The image that a container of the pod waits for after a failed pull; "" if none does."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"):
            return str(status.get("image") or "")
    return ""


def find_pressure(ctx: Run) -> Optional[signs.BrokenLink]:
    """The pressure condition under which this node accepts no more pods, although static pods still run; None if it has
    none."""
    node = ctx.api.get(api.path_of("Node", ctx.config.node.name))
    for condition, (what, look) in PRESSURES.items():
        status, message = probes.node_condition(node, condition)
        if status == "True":
            return signs.BrokenLink(
                f"node {ctx.config.node.name} has {condition} and accepts no pods",
                cause=f"{message}: {what}",
                remedy=f"{look}; the kubelet clears the condition some minutes after there is room; then run the "
                "command again",
                link=condition,
            )
    return None


def _find_old_proxy(ctx: Run) -> str:
    """Say which kube-proxy pod on this node is older than the last requested restart; "" if none is."""
    owner = ctx.api.get(api.path_of("DaemonSet", "kube-proxy", namespace="kube-system"))
    field = f"spec.nodeName={ctx.config.node.name}"
    pods = ctx.api.list(api.path_of("Pod", namespace="kube-system"), label="k8s-app=kube-proxy", field=field)
    old = [pod["metadata"]["name"] for pod in pods if owner and not objects.is_restarted(pod, owner)]
    return f"pod {', '.join(old)} still has the old configuration" if old else ""


def look_up_dns(ctx: Run) -> str:
    """What the cluster's DNS lacks for a correct answer, in words; "" if it answers correctly."""
    name = f"kubernetes.default.svc.{ctx.config.cluster.networking.dns_domain}"
    wanted = ctx.config.cluster.service_address(1)
    ready = probes.read_dns_pods(ctx.api)
    if not ready:
        return "CoreDNS is not Ready yet"
    ended = _describe_ended_proxy(ctx)
    if ended:
        return ended
    server = ctx.config.cluster.service_address(10) if has_proxy(ctx) else ready[0][0]
    found = probes.lookup_in_cluster(ctx.host, server, name=name)
    if found is None:
        return f"CoreDNS is Ready, but no answer comes from {server}:53{_describe_missing_route(ctx, server)}"
    return "" if wanted in found else f"{name} resolves to {found}, not to {wanted}"


def _describe_missing_route(ctx: Run, server: str) -> str:
    """The kernel looks up a route before it applies kube-proxy's rules. Without a route they are of no use to the node."""
    unrouted = node_routes.read_unrouted(ctx.host, [server], counts_own=True)
    return f"; this machine has no route to it (add a default route, or: ip route add {server} dev ...)" * bool(
        unrouted
    )


def _describe_ended_proxy(ctx: Run) -> str:
    """Detect a kube-proxy that keeps exiting while the rules of its predecessor still lead to the DNS; "" if it runs."""
    if not has_proxy(ctx):
        return ""
    field = f"spec.nodeName={ctx.config.node.name}"
    pods = ctx.api.list(api.path_of("Pod", namespace="kube-system"), label="k8s-app=kube-proxy", field=field)
    states = [
        status.get("state") or {} for pod in pods for status in (pod.get("status") or {}).get("containerStatuses") or ()
    ]
    return "" if all("running" in state for state in states) else "kube-proxy does not run"


def has_dns(ctx: Run) -> bool:
    return not ctx.config.cluster.dns.disabled and "addon/coredns" not in ctx.selection.skipped


def has_proxy(ctx: Run) -> bool:
    return not ctx.config.cluster.proxy.disabled and "addon/kube-proxy" not in ctx.selection.skipped


def dns_chain(ctx: Run) -> tuple[str, ...]:
    """The containers that an answer depends on, each before those that need it."""
    return ("kube-proxy", "coredns") if has_proxy(ctx) else ("coredns",)


def _proxy_trouble(ctx: Run) -> str:
    """What kube-proxy's log on this node says about its rules. It keeps running, and is Ready, even if it cannot program them."""
    if not has_proxy(ctx):
        return "there is no kube-proxy: the API's Service cannot be reached unless another program implements Services"
    line = container_trouble.container_error(ctx.host, ctx.config.node.cri_socket, name="kube-proxy")
    return f"kube-proxy says: {line}" if line else "kube-proxy's rules may be missing, although its log shows no error"
