"""Has controllers work again at once that only wait for their next try, once the API serves.

Without an API server a controller-manager or scheduler cannot renew its lease: it ends, and ends again at each start. The kubelet delays each
next start, for five minutes in the end, and counts on for a pod that came and went with the same contents; only a kubelet that starts anew has
forgotten that (doBackOff of pkg/kubelet/kuberuntime/kuberuntime_manager.go). A scheduler that was started meanwhile lives on, and asks the API
server again only after up to half a minute for each kind of object (the reflectors' back-off in client-go): it is alive and not ready.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeup.cluster import probes
from kubeup.engine.run import Run
from kubeup.machine import services
from kubeup.machine.waiting import becomes_so
from kubeup.node import containers
from kubeup.node.crictl import crictl_argv
from kubeup.swap import leads, proof
from kubeup.swap.patience import find_patience

CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
ALONE_S = 5.0
"""How long they may take by themselves: a first end is followed by a start within seconds."""
AWAKE_S = 30.0
"""How long they may take once they, or the kubelet, were started anew."""


def wake(run: Run, names: Sequence[str]) -> bool:
    """Have these static pods start anew that are not ready, and the kubelet if it delays that. Whether they are ready afterwards; the API
    has to serve."""

    def are_ready() -> bool:
        return all(_is_ready(run, name) for name in names)

    if becomes_so(run.host, are_ready, timeout_s=ALONE_S, poll_s=0.5):
        return True
    newest = {name: proof.find_newest(run, name) for name in names if not _is_ready(run, name)}
    running = {name: one.id for name, one in newest.items() if one is not None and one.state == "running"}
    holders = proof.read_holders(run, newest)
    if running:
        run.report.note(f"not ready since the API was away, and started anew: {', '.join(running)}")
        argv = crictl_argv(run.config.node.cri_socket, "stop", "--timeout", "1", *running.values())
        run.host.run(argv, timeout_s=60)
    listed = containers.ask_containers(run.host, run.config.node.cri_socket) or ()
    ended = {one.id for one in listed if one.state == "exited"}
    leads.free(run, {name: one for name, one in holders.items() if running.get(name) in {None, *ended}})

    def have_started() -> bool:
        found = {name: proof.find_newest(run, name, known=running.values()) for name in newest}
        return all(one is not None and one.state != "exited" for one in found.values())

    if not becomes_so(run.host, have_started, timeout_s=ALONE_S if running else 0.0, poll_s=0.5):
        run.report.note(f"the kubelet delays the next start of {', '.join(newest)}: restarting it")
        services.run(run.host, "restart", unit="kubelet")
    return becomes_so(run.host, are_ready, timeout_s=AWAKE_S * find_patience(run.host), poll_s=0.5)


def _is_ready(run: Run, name: str) -> bool:
    """Whether the component works, and answers whatever the kubelet asks of it, /readyz of a scheduler too."""
    urls = probes.find_probed_urls(run.host, run.paths, component=name)
    return proof.works(run, name) and all(probes.probe_url(run.host, url).is_healthy for url in urls)
