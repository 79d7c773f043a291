"""How phases wait: no longer than it helps, while they look for what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Callable, Optional

from kubeup.engine.run import Run
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.waiting import say_round, watch
from kubeup.trouble import advise

with lazily:
    from kubeup.diagnosis import chain as diagnosis_chain
    from kubeup.diagnosis import signs
    from kubeup.node import containers

LOOK_AFTER_S = 6
"""After how long kb starts to look for what is wrong. A healthy start is done by then: a look during it would only take CPU time
from it."""
LOOK_EVERY_S = 3
NUDGE_EVERY_S = 3
"""How long the kubelet may take to create the container of a static pod."""


@frozen
class End:
    """How a wait ended. missing: "" if the goal was reached, else what is missing, in words. link: what is broken, if known."""

    missing: str
    took_s: float
    link: Optional[signs.BrokenLink] = None


@dataclass
class Wait:
    """One wait. It ends when the goal is reached, when the time is up, or when a look finds a cause that waiting cannot heal.

    components: what the goal depends on, each before those that need it. unhealthy: component -> what its probe sees.
    """

    ctx: Run
    timeout_s: float
    goal: str
    components: tuple[str, ...] = ()
    unhealthy: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[], str] = str
    """Called once, when the wait has failed: more about the cause, in words; "" if nothing is known."""
    heal: Callable[[], None] = lambda: None
    """Called before every look for what is wrong: cuts short a delay whose cause is gone, such as a back-off."""
    nudge: Callable[[], None] = lambda: None
    """Called every few seconds: repeats an event that may have been missed, and does no harm if it was not."""
    is_patient: bool = False
    """Whether to wait until the time is up even if what is broken cannot heal by itself, since it may not be the cause."""
    find_cause: Callable[[], Optional[signs.BrokenLink]] = lambda: None
    """Called before this node's containers are looked at: finds causes that they do not show."""

    def until(self, look: Callable[[], str]) -> float:
        """Call `look` until it returns "" (well) instead of what is missing, in words. Return the seconds that it took.

        Raises ClusterError (not-healthy) with the broken link.
        """
        end = self.watch(look)
        if end.missing:
            raise self._failure(end)
        return end.took_s

    def watch(self, look: Callable[[], str]) -> End:
        """Like `until`, for goals that a command can do without: a failure is returned, not raised."""
        nudged, looked = 0.0, 0.0
        link: Optional[signs.BrokenLink] = None
        told: set[object] = set()

        def is_over(missing: str, elapsed: float) -> bool:
            nonlocal nudged, looked, link
            if elapsed - nudged > NUDGE_EVERY_S:
                self.nudge()
                nudged = elapsed
            if elapsed > LOOK_AFTER_S and elapsed - looked > LOOK_EVERY_S:
                self.heal()
                before, link, looked = link, self._find_broken_link(), elapsed
                # seen by two looks, it is not a hiccup of the start: it may still heal, but the user should know now
                is_lasting = link and before and link.key == before.key
                if link and is_lasting and (self.is_patient or not link.is_final) and link.key not in told:
                    told.add(link.key)
                    self.ctx.report.note(f"{advise(link)} (still waiting)")
            if link and link.is_final and not self.is_patient:
                return True
            text = f"{missing} ({link.what})" if link else missing
            self.ctx.report.waiting(say_round(self.goal, text, elapsed=elapsed, timeout_s=self.timeout_s))
            return False

        missing, elapsed = watch(self.ctx.host, look, timeout_s=self.timeout_s, is_over=is_over)
        if missing and not (link and link.is_final):
            link = self._find_broken_link()
        return End(missing, elapsed, link if missing else None)

    def _find_broken_link(self) -> Optional[signs.BrokenLink]:
        found = self.find_cause()
        if found:
            return found
        socket = self.ctx.config.node.cri_socket
        return diagnosis_chain.find_broken_link(
            self.ctx.host, socket, components=self.components, unhealthy=dict(self.unhealthy)
        )

    def _failure(self, end: End) -> ClusterError:
        found = end.link
        if found and not is_word_only(found):
            return found.as_error()
        more = self.explain() or (str(found) if found else "")
        return ClusterError(
            f"{self.goal}: not there after {end.took_s:.0f} s",
            cause=f"{end.missing}; {more}" if more else end.missing,
            remedy=f"look at the kubelet ({services.say_log(self.ctx.host, 'kubelet')}) and the containers (crictl ps -a), "
            "then run the command again",
            code="not-healthy",
        )


def is_word_only(link: signs.BrokenLink) -> bool:
    """Whether the link is only the last line that a running container logged, which need not be the cause."""
    return link.link == "probe" and not link.is_final


def nudge_kubelet(ctx: Run, components: Iterable[str]) -> None:
    """Touch the manifests of `components` that have no container yet, so that the kubelet reads them at once.

    A kubelet that is just starting may miss a manifest written at that moment, and finds it only 20 s later
    (fileCheckFrequency). Touching a manifest that it knows has no effect.
    """
    started = {item.name for item in containers.list_containers(ctx.host, ctx.config.node.cri_socket)}
    manifests = [ctx.paths.manifest(name) for name in components if name not in started]
    for path in manifests:
        if ctx.host.exists(path):
            containers.nudge(ctx.host, path)


def wait_until(
    ctx: Run, look: Callable[[], str], *, goal: str, timeout_s: float, components: tuple[str, ...] = ()
) -> float:
    """Call `look` until it returns "" (well) instead of what is missing, in words. Return the seconds that it took.

    components: containers on this node to look at meanwhile. Raises ClusterError (not-healthy) with the broken link.
    """
    return Wait(ctx, timeout_s, goal, components).until(look)
