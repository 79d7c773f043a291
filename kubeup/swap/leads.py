"""The leases of controllers whose processes kb has ended: given up on their behalf, as a process does that is told to end and
releases its lease.

A controller-manager or scheduler that ends leaves its lease to run out, and the next one leads only after that: some fifteen seconds in which
nothing of a cluster's controllers happens. kb knows that the process is gone, so nobody has to wait. Source: release() of client-go,
tools/leaderelection/leaderelection.go
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.cluster.api import path_of
from kubeup.engine.run import Run
from kubeup.errors import KbError
from kubeup.swap import proof


def free(run: Run, ended: Mapping[str, str]) -> None:
    """Give up the leases that these processes of this node held: component -> holderIdentity. One that somebody else holds by now stays. Where
    that fails, the lease runs out by itself. So does that of a node whose name is not its machine's: a holder is called after its machine, and
    another machine may be called the same (`localhost`), whose controller lives on."""
    if run.host.hostname().lower() != run.config.node.name.lower():
        return
    for name, holder in ended.items():
        if proof.is_own(run, holder):
            _free(run, name, holder=holder)


def _free(run: Run, name: str, *, holder: str) -> None:
    client, path = proof.own_api(run), path_of("Lease", name, namespace="kube-system")
    try:
        found = client.get(path) or {}
        if (found.get("spec") or {}).get("holderIdentity") != holder:
            return
        version = found["metadata"]["resourceVersion"]  # whoever takes it meanwhile keeps it
        spec = {"holderIdentity": None, "leaseDurationSeconds": 1}
        client.patch(path, {"metadata": {"resourceVersion": version}, "spec": spec})
    except KbError as error:
        run.report.detail(f"the lease {name} has to run out: {error}")
