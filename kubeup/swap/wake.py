"""Has static pods work again at once that only wait for their next try.

Without an API server a controller-manager or scheduler cannot renew its lease: it ends, and ends again at each start. The kubelet delays each
next start, for five minutes in the end, and counts on for a pod that came and went with the same contents; only a kubelet that starts anew has
forgotten that (doBackOff of pkg/kubelet/kuberuntime/kuberuntime_manager.go). A scheduler that was started meanwhile lives on, and asks the API
server again only after up to half a minute for each kind of object (the reflectors' back-off in client-go): it is alive and not ready.

etcd and the API server are delayed in the same way where a full disk has ended them a few times. A kubelet that starts anew without an API server
looks after its pods only after a minute, so that it is restarted only where its delay is longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeup.cluster import probes
from kubeup.engine.run import Run
from kubeup.machine import services
from kubeup.machine.waiting import becomes_so
from kubeup.node import containers
from kubeup.node.crictl import crictl_argv
from kubeup.swap import leads, manifests, proof
from kubeup.swap.patience import find_patience

CONTROLLERS = proof.LEADERS
ALONE_S = 5.0
"""How long they may take by themselves: a first end is followed by a start within seconds."""
FIRST_DELAY_S, LONGEST_DELAY_S = 10.0, 300.0
"""The kubelet's delay before it starts a container again that has ended twice, and the longest; each is twice the last."""
LATE_S = 5.0
"""How much later than that a kubelet may be."""
AWAKE_S = 30.0
"""How long they may take once they, or the kubelet, were started anew."""


def wake(run: Run, names: Sequence[str]) -> bool:
    """Have these static pods start anew that are not ready, and the kubelet if it delays that. Whether they are ready afterwards; the API
    has to serve."""

    def are_ready() -> bool:
        return all(_is_ready(run, name) for name in names)

    def is_over() -> bool:
        return are_ready() or proof.find_fallen(run) is not None

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
    return becomes_so(run.host, is_over, timeout_s=AWAKE_S * find_patience(run.host), poll_s=0.5) and are_ready()


def wake_server(run: Run, name: str) -> None:
    """Have etcd or this node's API server serve again that ended meanwhile though nobody touched it. Where it does not that is told, and no
    reason for an error: it is not what was swapped."""
    newest = None if proof.works(run, name) else proof.find_newest(run, name)
    if newest is None or newest.state != "exited":
        return
    run.report.note(f"{name} has ended meanwhile: waiting for the kubelet to start it again")
    text = run.host.read_text(run.paths.manifest(name))
    ended = proof.list_ids(run, [name], only_ended=True)
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** max(0, newest.attempt - 1))
    last_resort_s = 0.0 if delay_s > manifests.KUBELET_S else delay_s + LATE_S
    longest_s = last_resort_s + 2 * proof.START_S  # more than START_S, with which no kubelet is restarted
    try:
        proof.wait_until_works(run, name, text=text, known=ended, timeout_s=longest_s, last_resort_s=last_resort_s)
    except proof.NotProven as error:
        run.report.note(f"{error}. Cause: {error.cause}")


def _is_ready(run: Run, name: str) -> bool:
    """Whether the component works, and answers whatever the kubelet asks of it, /readyz of a scheduler too."""
    urls = probes.find_probed_urls(run.host, run.paths, component=name)
    return proof.works(run, name) and all(probes.probe_url(run.host, url).is_healthy for url in urls)
