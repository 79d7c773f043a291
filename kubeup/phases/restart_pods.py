"""Restarts static pods whose manifests stay as they are, for files that a component reads only when it starts.

The kubelet has no request for this. Their containers are stopped through the runtime, and the kubelet starts others in the same
pods. It does so at once the first time, and delays a second restart within ten minutes (its back-off: 10 s, 20 s, ... 5 min), which
only a restart of the kubelet ends. This module does not know why a pod is restarted, and takes nothing back. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import kubelet_start
from kubeup.phases.wait_control_plane import probe_component
from kubeup.phases.waits import Wait

with lazily:
    from kubeup.cluster import probes
    from kubeup.node import containers, crictl, runtime
    from kubeup.swap import leads, manifests, patience, proof

GRACE_S = 30
"""How long a container may take to end: what the kubelet gives a pod that names no other time."""
TIMEOUT_S = 60.0
"""How long the new containers may take until they are healthy: a second as a rule, and three for the API server."""
_SERVER = "kube-apiserver"
_LOG_LINES = 100
_SOAK_POLL_S = 1.0
"""Between two looks of the soak: each runs crictl and calls every component."""


@frozen
class Restarted:
    """A static pod that runs in another container now. away_s: for how many seconds it did not serve."""

    component: str
    away_s: float


def find_obstacle(ctx: Run, component: str) -> str:
    """Why the static pod cannot be restarted through the runtime here, in words; "" if it can."""
    obstacle = find_obstacle_to_stop(ctx, component)
    if obstacle:
        return obstacle
    if services.find(ctx.host) is not None and not services.is_active(ctx.host, "kubelet"):
        return "the kubelet does not run"
    return ""


def find_obstacle_to_stop(ctx: Run, component: str) -> str:
    """Why the containers of the static pod cannot be stopped here, in words; "" if they can."""
    if not ctx.host.is_live:
        return "this is not the running node"
    if not ctx.host.exists(ctx.paths.manifest(component)):
        return f"there is no {ctx.paths.manifest(component)}"
    if not ctx.host.which("crictl"):
        return "crictl is missing"
    status = runtime.probe_runtime(ctx.host, ctx.config.node.cri_socket)
    if not status.is_ready:
        return f"the container runtime does not answer: {status.cause}"
    return ""


def restart_static_pods(
    ctx: Run,
    components: Sequence[str],
    *,
    before_stop: Callable[[], None] = lambda: None,
    after_start: Callable[[], None] = lambda: None,
) -> list[Restarted]:
    """Restart the static pods side by side. Return once each runs in another container, is healthy, and has stayed so for the soak
    time (KbConfiguration soakSeconds). The leases of a controller-manager and scheduler that ended are given up, so that the next ones
    need not wait until they run out.

    before_stop: called before the first container is stopped, for what must not call these components meanwhile, such as a load
    balancer in front of an API server; after_start: called when all are healthy again, before the soak.

    Raises ClusterError (not-healthy, static-pod-not-steady) with the container's last words, HostError (container-not-stopped,
    kubelet-not-started).
    """
    if not components:
        return []
    restart = Restart(ctx, components)
    led = proof.read_holders(ctx, components)
    is_served = _SERVER not in components
    before_stop()
    restart.stop()
    if is_served:
        leads.free(ctx, led)
    restart.wait_until_healthy()
    if not is_served:
        leads.free(ctx, led)
    after_start()
    restart.soak()
    return [Restarted(name, restart.away_s[name]) for name in components]


class Restart:
    """One restart, and what has been seen of it. It is made before anything stops: what runs then is what has to go."""

    def __init__(self, ctx: Run, components: Sequence[str]) -> None:
        self.ctx = ctx
        self.components = tuple(components)
        self.former = {item.id for item in self._list()}
        """The ids of their containers before the restart, whatever their state."""
        self.present: dict[str, str] = {}
        """component -> the id of its new container, once that is healthy."""
        self.away_s: dict[str, float] = {}
        self.unhealthy: dict[str, str] = {}
        """component -> what its probe sees."""
        self._stopped_at = 0.0
        self._healthy_at = 0.0
        self._may_restart_kubelet = True

    def _list(self) -> list[containers.ContainerInfo]:
        found = containers.list_containers(self.ctx.host, self.ctx.config.node.cri_socket)
        return [item for item in found if item.name in self.components and self._is_own(item)]

    def _is_own(self, item: containers.ContainerInfo) -> bool:
        """A second scheduler's container may have the same name. ctr tells no pod."""
        return not item.namespace or manifests.is_of_pod(self.ctx, item, name=item.name)

    # ---- the stop

    def stop(self, *, grace_s: int = GRACE_S) -> None:
        """A component without a running container is in the kubelet's back-off, or about to start: nothing to stop. grace_s: how long
        a container may take to end.

        Raises HostError (container-not-stopped)."""
        host = self.ctx.host
        ids = [item.id for item in self._list() if item.state == "running"]
        self._stopped_at = host.monotonic()
        if not ids:
            return
        self.ctx.report.waiting(f"stopping {', '.join(self.components)}")
        argv = crictl.crictl_argv(self.ctx.config.node.cri_socket, "stop", "--timeout", str(grace_s), *ids)
        answer = host.run(argv, timeout_s=(grace_s + 30) * len(ids))
        still = sorted(item.name for item in self._list() if item.id in ids and item.state == "running")
        if still:
            raise HostError(
                f"{', '.join(still)} could not be stopped",
                cause=crictl.last_words(answer.stderr or answer.stdout),
                remedy=f"see why: {services.say_log(host, crictl.unit_of(self.ctx.config.node.cri_socket))}",
                code="container-not-stopped",
            )

    # ---- the start

    def wait_until_healthy(self) -> None:
        wait = Wait(
            self.ctx,
            TIMEOUT_S * patience.find_patience(self.ctx.host),
            f"restart of {' and '.join(self.components)}",
            unhealthy=self.unhealthy,
            nudge=self._end_back_off,
            explain=self._say_last_words,
        )

        def look() -> str:
            new = [item for item in self._list() if item.id not in self.former]
            # what ended before, by this restart or in a crash loop, must not be taken for the fate of the new container
            ended = {item.name for item in new if item.state == "exited"}
            wait.components = tuple(name for name in self.components if name in ended)
            return self._find_missing({item.name: item.id for item in new if item.state == "running"})

        wait.until(look)
        self._healthy_at = self.ctx.host.monotonic()

    def _find_missing(self, running: Mapping[str, str]) -> str:
        """What is missing, in words. running: component -> the id of its new container."""
        missing = []
        for name in self.components:
            if self.present.get(name) and self.present[name] == running.get(name):
                continue
            seen = self._probe(name) if name in running else "is not running yet"
            if seen:
                missing.append(f"{name} {seen}")
                continue
            self.present[name] = running[name]
            self.away_s.setdefault(name, self.ctx.host.monotonic() - self._stopped_at)
        return "; ".join(missing)

    def _probe(self, name: str) -> str:
        """What the component's health endpoint says; "" if it is healthy, or has no endpoint that is known here."""
        seen = probe_component(self.ctx, name) if name in probes.COMPONENTS else probes.Health(True, "")
        self.unhealthy.pop(name, None)
        if not seen.is_healthy:
            self.unhealthy[name] = seen.seen
        return "" if seen.is_healthy else seen.seen

    def _say_last_words(self) -> str:
        """The last lines of the new containers that are not healthy."""
        socket = self.ctx.config.node.cri_socket
        newest = {item.name: item.id for item in reversed(self._list()) if item.id not in self.former}
        ids = [newest[name] for name in self.components if name not in self.present and name in newest]
        lines = [containers.container_logs(self.ctx.host, socket, container_id=one, lines=1) for one in ids]
        return "; ".join(f"its last word: {line[-1]}" for line in lines if line)

    def _end_back_off(self) -> None:
        """Restart the kubelet, once, if it says that it delays the start of a component that nothing else keeps from starting."""
        if not self._may_restart_kubelet:
            return
        begun = {item.name for item in self._list() if item.id not in self.former}
        lines = services.read_log(self.ctx.host, "kubelet", lines=_LOG_LINES)
        delayed = [name for name in self.components if name not in begun and _is_delayed(name, lines)]
        if delayed:
            self._may_restart_kubelet = False
            self.ctx.report.detail(f"the kubelet delays the start of {', '.join(delayed)}: it is restarted")
            kubelet_start.restart_kubelet(self.ctx)

    # ---- the soak

    def soak(self) -> None:
        """Watch that no container ends for the soak time."""
        soak_s = self.ctx.config.kb.soak_s
        looked_at, seen = -1e9, ""

        def look() -> str:
            nonlocal looked_at, seen
            now = self.ctx.host.monotonic()
            left = soak_s - (now - self._healthy_at)
            if now - looked_at >= _SOAK_POLL_S or left <= 0:
                looked_at, seen = now, self._find_unsteady()
            return seen or (f"{left:.0f} s of {soak_s} s left" if left > 0 else "")

        goal = f"soak of {' and '.join(self.components)}"
        Wait(self.ctx, soak_s + TIMEOUT_S, goal, self.components, self.unhealthy).until(look)

    def _find_unsteady(self) -> str:
        """What the components that run say of their health; "" if all are well. Raises ClusterError (static-pod-not-steady)."""
        running = {item.id for item in self._list() if item.state == "running"}
        for name in self.components:
            if self.present[name] not in running:
                raise self._ended(name)
        return "; ".join(f"{name} {seen}" for name in self.components if (seen := self._probe(name)))

    def _ended(self, name: str) -> ClusterError:
        ran_s = self.ctx.host.monotonic() - self._healthy_at
        lines = containers.container_logs(
            self.ctx.host, self.ctx.config.node.cri_socket, container_id=self.present[name], lines=5
        )
        return ClusterError(
            f"{name} ended {ran_s:.0f} s after it was healthy",
            cause=lines[-1] if lines and lines[-1].strip() else "it said nothing",
            remedy=f"look at its log: crictl logs {self.present[name][:13]}",
            code="static-pod-not-steady",
            details=lines,
        )


def _is_delayed(component: str, lines: Sequence[str]) -> bool:
    """Whether the kubelet's log says so. Source: doBackOff of pkg/kubelet/kuberuntime/kuberuntime_manager.go"""
    return any("back-off" in line and f"restarting failed container={component} " in line for line in lines)
