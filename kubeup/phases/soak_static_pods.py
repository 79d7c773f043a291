"""The soak: watches that a node's static pods run, and keep running."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.phases.waits import Wait

with lazily:
    from kubeup.cluster import probes
    from kubeup.diagnosis import signs


def soak(ctx: Run, name: str) -> None:
    """Wait until every static pod of node `name` is well and has run without a restart for the soak time.

    Raises ClusterError (not-healthy).
    """
    soak_s = ctx.config.kb.soak_s
    expected = expected_pods(ctx)
    restarts: dict[str, int] = {}
    waiting: list[str] = []

    def look() -> str:
        pods = {pod.component: pod for pod in probes.read_static_pods(ctx.api, name)}
        waiting[:] = [pod.component for pod in pods.values() if pod.running_since and not pod.is_ready]
        missing = [f"{component} is not reported yet" for component in sorted(expected - set(pods))]
        for pod in pods.values():
            if pod.restarts > restarts.setdefault(pod.component, pod.restarts):
                restarts[pod.component] = pod.restarts
                ctx.report.note(f"{pod.component} restarted during the soak (now {pod.restarts} times)")
            age_s = running_for_s(ctx, pod)
            if pod.running_since is None:
                missing.append(f"{pod.component} is {pod.state}, not ready")
            elif age_s < soak_s:
                missing.append(f"{pod.component} has run for {age_s:.0f} s of {soak_s} s")
            elif not is_well(ctx, pod):
                missing.append(f"{pod.component} is {pod.state}, not ready")
        return "; ".join(missing)

    limit = max(ctx.config.timeouts.control_plane_component_health_check_s, 3 * soak_s)
    wait = Wait(
        ctx,
        limit,
        f"soak of {soak_s} s",
        tuple(sorted(expected)),
        find_cause=lambda: find_failing_probe(ctx, name, components=waiting),
    )
    wait.until(look)


def is_well(ctx: Run, pod: probes.StaticPod) -> bool:
    """Whether a running static pod of this node answers its probes: to the kubelet, or to kb if the kubelet has not asked yet.

    The kubelet asks for the first time 10 to 20 s after a container's start, at random (initialDelaySeconds, and doProbe and run in
    pkg/kubelet/prober/worker.go), and after its own restart once more. kb asks the same URLs as it does: without credentials, and
    without verifying the certificate. Where the kubelet has been refused, only the kubelet counts."""
    if pod.is_ready:
        return True
    urls = probes.find_probed_urls(ctx.host, ctx.paths, component=pod.component)
    if not urls or probes.read_probe_failure(ctx.api, f"{pod.component}-{ctx.config.node.name}"):
        return False
    return all(probes.probe_url(ctx.host, url).is_healthy for url in urls)


def find_failing_probe(ctx: Run, node_name: str, *, components: Iterable[str]) -> Optional[signs.BrokenLink]:
    """The first of these static pods that runs but fails the kubelet's probe, in the kubelet's words; None if there is none."""
    for component in components:
        told = probes.read_probe_failure(ctx.api, f"{component}-{node_name}")
        if not told:
            continue
        flags = ((arg.name, arg.value) for arg in ctx.config.cluster.api_server.extra_args)
        closed = probes.describe_closed_probes(flags) if component == "kube-apiserver" and "401" in told else ""
        return signs.BrokenLink(
            f"{component} runs but is not Ready",
            cause=f"{told}; {closed}" if closed else told,
            remedy=f"{probes.CLOSED_PROBES_REMEDY}; then run the command again"
            if closed
            else f"crictl logs $(crictl ps -q --name {component}), then run the command again",
            is_final=bool(closed),
            link="pod-probe",
        )
    return None


def running_for_s(ctx: Run, pod: probes.StaticPod) -> float:
    return (ctx.host.now() - pod.running_since).total_seconds() if pod.running_since else 0.0


def expected_pods(ctx: Run) -> set[str]:
    return {*probes.COMPONENTS} | ({"etcd"} if ctx.config.cluster.local_etcd else set())
