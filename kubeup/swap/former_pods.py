"""The end of the static pods of a kubelet that makes room for one of another minor.

The next kubelet reckons other UIDs, so it starts its own pods beside those that still run: they find their ports taken and etcd's data
locked, end, and wait ten seconds for their next try. So the former ones end right before the next kubelet starts. That is systemd's part, in one job
with the start, so that a kill of kb in between does not leave an API server that is away under a kubelet that is stopped. The containers are
named by their IDs: whoever starts the kubelet later ends nothing.

Source: applyDefaults of pkg/kubelet/config/common.go; systemd.service(5), ExecStartPre
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kubeup.engine.run import Run
from kubeup.machine import services
from kubeup.node.crictl import crictl_argv
from kubeup.swap import manifests, store

DROP_IN = Path("/run/systemd/system/kubelet.service.d/99-kb-former-pods.conf")
"""It does not outlive a reboot, after which nothing of the former kubelet runs."""
_ORDER = (("kube-apiserver",), ("kube-controller-manager", "kube-scheduler", "etcd"))
"""Without its etcd, an API server would take its whole grace period to end."""
_GRACE_S = 2
"""As in a swap: an API server would wait for those who watch it until they turn to another one."""


@contextlib.contextmanager
def ended_by_start(run: Run) -> Iterator[frozenset[str]]:
    """Whoever starts the kubelet within this context ends the static pods of before: the IDs of their containers. Where systemd or crictl is
    missing, the kubelet has to, and none are known."""
    program, text, ids = run.host.which("crictl"), "", frozenset[str]()
    if program is not None and services.find(run.host) is services.SYSTEMD:
        found = [[one.id for one in manifests.find_living(run, names) or ()] for names in _ORDER]
        text = "".join(f"ExecStartPre=-{_stop(run, program, ids=some)}\n" for some in found if some)
        ids = frozenset(one for some in found for one in some)
    if not text:
        yield ids
        return
    run.host.make_dir(DROP_IN.parent)
    run.host.write_file(DROP_IN, f"[Service]\n{text}")
    try:
        yield ids
    finally:
        run.host.remove(DROP_IN)
        run.host.run(services.SYSTEMD.reload)  # else systemd says of the kubelet that its unit has changed


def have_ended(run: Run, ids: frozenset[str]) -> bool:
    """Whether all of these containers are known to have ended."""
    living = manifests.find_living(run, store.COMPONENTS)
    return bool(ids) and living is not None and not ids & {one.id for one in living}


def _stop(run: Run, program: Path, *, ids: list[str]) -> str:
    _, *words = crictl_argv(run.config.node.cri_socket, "stop", "--timeout", str(_GRACE_S), *ids)
    return " ".join((str(program), *words))
