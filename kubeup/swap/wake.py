"""Starts controllers again that only wait for their next try, once the API serves.

Without an API server a controller-manager or scheduler cannot renew its lease: it ends, and ends again at each start. The kubelet delays each
next start, for five minutes in the end, and counts on for a pod that came and went with the same contents. Only a kubelet that starts anew has
forgotten that. Source: doBackOff of pkg/kubelet/kuberuntime/kuberuntime_manager.go
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeup.engine.run import Run
from kubeup.machine import services
from kubeup.machine.waiting import becomes_so
from kubeup.swap import proof
from kubeup.swap.patience import find_patience

CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
ALONE_S = 5.0
"""How long they may take by themselves: a first end is followed by a start within seconds."""
AWAKE_S = 30.0
"""How long they may take once the kubelet was started anew."""


def wake(run: Run, names: Sequence[str]) -> bool:
    """Have the kubelet start these static pods now, if it delays that. Whether they work afterwards; the API has to serve."""

    def are_well() -> bool:
        return all(proof.works(run, name) for name in names)

    if becomes_so(run.host, are_well, timeout_s=ALONE_S, poll_s=0.5):
        return True
    newest = {name: proof.find_newest(run, name) for name in names}
    delayed = [name for name, one in newest.items() if one is None or one.state == "exited"]
    if delayed:
        run.report.note(f"the kubelet delays the next start of {', '.join(delayed)}: restarting it")
        services.run(run.host, "restart", unit="kubelet")
    return becomes_so(run.host, are_well, timeout_s=AWAKE_S * find_patience(run.host), poll_s=0.5)
