"""The phase verify: checks that the node works before kb reports success. kubeadm has no such phase."""

from __future__ import annotations

from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazily
from kubeup.phases.soak_static_pods import expected_pods, is_well, running_for_s, soak
from kubeup.phases.wait_dns import dns_chain, has_dns, has_proxy, look_up_dns, wait_for_dns
from kubeup.phases.wait_pod_ways import find_pod_cut, first_pod, plan_ways, wait_for_pod_ways
from kubeup.phases.waits import Wait

with lazily:
    from kubeup.cluster import api, probes, signing_request
    from kubeup.network import pod_view


def verify_node(ctx: Run) -> Outputs:
    """Wait until the node is Ready, its static pods are stable for the soak time, and the node and its pods reach the cluster's DNS and
    API through their Services. Raises ClusterError (not-healthy)."""
    if ctx.config.kb.soak_s == 0:
        ctx.report.note("--soak 0: kb did not watch whether this node stays up")
        return None
    name = ctx.config.node.name
    if ctx.config.kb.pod_network.plugin != "none":
        # kube-proxy has been started by now. It exits at once if its configuration is invalid
        wait_for_ready(ctx, name, components=dns_chain(ctx) if has_dns(ctx) else ())
        wait_for_dns(ctx)
        wait_for_pod_ways(ctx, _plan_ways(ctx))
    soak(ctx, name)
    warn_of_serving_request(ctx)
    status, _ = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
    if status != "True":
        ctx.report.note("the node stays NotReady and CoreDNS Pending until a pod network is applied (plugin: none)")
    return Results(node_ready=status == "True")


def warn_of_serving_request(ctx: Run) -> None:
    """Warn that the kubelet requests a serving certificate that somebody has to approve. Otherwise nobody would notice before
    `kubectl logs` fails."""
    if not ctx.config.kubelet.get("serverTLSBootstrap"):
        return
    path = api.path_of("CertificateSigningRequest")
    requests = ctx.api.list(path, field=f"spec.signerName={signing_request.SERVING_SIGNER}")
    found = signing_request.explain_serving_request(ctx.config.node.name, requests)
    if found:
        ctx.report.warn(f"{found[0]}. Remedy: {found[1]}")


def wait_for_ready(ctx: Run, name: str, *, components: tuple[str, ...]) -> None:
    """Wait until node `name` is Ready. components: the containers that run on it by now. Raises ClusterError (not-healthy)."""

    def look() -> str:
        status, message = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
        return "" if status == "True" else f"node {name} is not Ready: {message}"

    Wait(ctx, ctx.config.timeouts.kubelet_health_check_s, "node Ready", components).until(look)


def _plan_ways(ctx: Run) -> pod_view.Ways:
    if not has_proxy(ctx):
        return pod_view.Ways("", ())
    dns_address = ctx.config.cluster.service_address(10) if has_dns(ctx) else ""
    pods = probes.read_dns_pods(ctx.api) if dns_address else []
    return plan_ways(ctx, dns_address, behind=pod_view.dns_pod_ways(pods, ctx.config.node.name))


def node_is_verified(ctx: Run) -> bool:
    """The probe of a second run: whether the node is still Ready, every static pod has run for the soak time, and DNS and API answer
    the node and its pods."""
    if ctx.config.kb.soak_s == 0:
        return True
    name = ctx.config.node.name
    pods = probes.read_static_pods(ctx.api, name)
    # being well now is not enough: a pod that was recreated a second ago may still fail
    stable = {pod.component for pod in pods if running_for_s(ctx, pod) >= ctx.config.kb.soak_s and is_well(ctx, pod)}
    if expected_pods(ctx) - stable:
        return False
    if ctx.config.kb.pod_network.plugin == "none":
        return True
    status, _ = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
    if status != "True" or (has_dns(ctx) and look_up_dns(ctx)):
        return False
    ways, place = _plan_ways(ctx), first_pod(ctx)  # a probe creates nothing, so it uses an existing pod
    return not (place and ways.services) or find_pod_cut(ctx, place, ways=ways) is None


SOAK = Act(do=verify_node, probe=node_is_verified, live="cluster")
