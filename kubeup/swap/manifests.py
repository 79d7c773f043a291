"""Stops and starts static pods: their manifests out of the kubelet's folder, and in again.

A pod is stopped in this order: its manifest goes, the kubelet is seen to have dropped the pod, its container is ended through the
runtime, its cgroup is gone, the kubelet has finished with it. Ended any earlier, the container would be started again by the kubelet; left alone, an API server
lives for the whole grace period, since it waits for the watches of its clients. Only renames happen meanwhile, which need no space on the
disk: both manifests wait beside the live one under names with a dot, which the kubelet does not read (H2). Why in this way, and what
it was measured against: docs/adr/0018-swap.md. Source: pkg/kubelet/config/file_linux.go, pkg/kubelet/pod_workers.go
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable, Optional

from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.waiting import becomes_so, say_round, watch
from kubeup.node import containers
from kubeup.node.crictl import crictl_argv, last_words
from kubeup.paths import Paths
from kubeup.swap import kubelet_view
from kubeup.swap.patience import find_patience
from kubeup.swap.store import COMPONENTS, Pod, Swap
from kubeup.yaml_files import is_same_yaml

DROP_S = 25.0
"""How long the kubelet may take to notice that a manifest is gone. Normally a file event tells it at once; it also reads the folder
every 20 s."""
GONE_S = 60.0
"""How long a pod may take to end after its container has."""
STUCK_S = 10.0
"""After how long a kubelet counts as one that will never clean up after a pod whose containers have ended, if it cannot be asked either."""
FINISH_S = 8.0
"""How long the kubelet may take to finish with a pod that has ended. Its count may include pods of others that never end."""
UNTOLD_S = 3.0
"""How long to wait for that if the kubelet does not tell."""
ANSWERS_S = 10.0
"""How long a kubelet may take from its start to its first answer."""
STOP_S = 5
"""How long a container may take to end after SIGTERM where no kubelet has sent one before."""
GRACE_S = {"kube-apiserver": 2.0, "etcd": 3.0}
"""How long a component may finish its requests after SIGTERM, which the kubelet sends when it drops the pod."""
KUBELET_S = 75.0
"""How much longer everything may take after the kubelet was started: without an API server it looks after pods only after a minute."""
POLL_S = 0.2
_SILENT = "the container runtime does not answer"
LOOK_EVERY_S = 2.0
"""How often to look whether somebody has stopped the kubelet."""


def former_path(run: Run, name: str) -> Path:
    return former_of(run.paths, name)


def former_of(paths: Paths, name: str) -> Path:
    """Where the manifest of a component is while it is out."""
    return _beside(paths, name, kind="former")


def next_path(run: Run, name: str) -> Path:
    return _beside(run.paths, name, kind="next")


def _beside(paths: Paths, name: str, *, kind: str) -> Path:
    return paths.manifests / f".{name}.yaml.kb-{kind}"


# ---- preparing, and where a swap stands


def lay_ready(run: Run, swap: Swap) -> None:
    """Write the new manifests beside the live ones, with their mode and owner. Raises HostError."""
    for pod in swap.pods:
        found = run.host.stat(run.paths.manifest(pod.name))
        mode, owner = (found.mode, (found.uid, found.gid)) if found else (0o600, (0, 0))
        run.host.write_file(next_path(run, pod.name), pod.wanted, mode=mode, owner=owner)


def remove_leftovers(host: Host, paths: Paths, *, names: Iterable[str] = COMPONENTS) -> None:
    """Remove what a run left beside the live manifests that was killed before it had begun. Where none is live, the former one is the
    last there is, and stays."""
    for name in names:
        if host.exists(next_one := _beside(paths, name, kind="next")):
            host.remove(next_one)
        former = _beside(paths, name, kind="former")
        if host.exists(former) and host.exists(paths.manifest(name)):
            host.remove(former)


def keep_edits(run: Run, pods: Iterable[Pod], *, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Copy what somebody has made of manifests since, which are neither the former nor the wanted ones: (manifest, its copy in the folder)."""
    for pod in pods:
        path, kept = run.paths.manifest(pod.name), folder / f"{pod.name}.yaml"
        text = run.host.read_text(path) if run.host.exists(path) else ""
        if text and not any(is_same_yaml(text, known) for known in (pod.former, pod.wanted)):
            run.host.write_file(kept, text, mode=0o600)
            yield path, kept


def has_come(run: Run, pod: Pod) -> bool:
    """Whether the wanted manifest was put in."""
    return _is_live(run, pod.name, pod.wanted) and not run.host.exists(next_path(run, pod.name))


def has_stayed(run: Run, pod: Pod) -> bool:
    """Whether the former manifest is in its place, and was never taken out or is back."""
    return _is_live(run, pod.name, pod.former) and not run.host.exists(former_path(run, pod.name))


def _is_live(run: Run, name: str, text: str) -> bool:  # noqa: PLR0917
    path = run.paths.manifest(name)
    return run.host.exists(path) and is_same_yaml(run.host.read_text(path), text)


# ---- out


def take_out(run: Run, names: Sequence[str]) -> None:
    """Stop these static pods, side by side, and return when the kubelet would start others of the same names.

    A kubelet that no API server has answered since its start does not even end a pod whose manifest goes: it is stopped meanwhile, and
    started anew (HandlePodRemoves of pkg/kubelet/kubelet.go, "skipping delete because sources aren't ready yet").

    Raises HostError (pod-does-not-end).
    """
    if _probe_kubelet(run) == kubelet_view.CUT_OFF:
        run.report.note(f"no API server has answered the kubelet: it is stopped meanwhile ({', '.join(names)} to end)")
        take_out_stopped(run, names)
        services.run(run.host, "start", unit="kubelet")
        # the next pods are stopped in the same way, which needs its answer
        becomes_so(run.host, lambda: bool(_probe_kubelet(run)), timeout_s=ANSWERS_S, poll_s=POLL_S)
        return
    seen = _read_pods(run) or {}
    kubelet_view.count_ending(run.host, run.paths, node_name=run.config.node.name)  # while somebody can authorize it
    uids = {seen[name] for name in names if name in seen}
    uids.update(one.pod_uid for one in find_living(run, names) or () if one.pod_uid)
    for name in names:
        _set_aside(run, name)
    fresh: list[bool] = []
    is_told = not _wait_until_dropped(run, names, fresh) and not fresh
    _end_containers(run, names, is_told=is_told)
    _wait_until_gone(run, uids, names=names, fresh=fresh)


def take_out_stopped(run: Run, names: Sequence[str]) -> None:
    """The same with the kubelet stopped, which stays so: for one that no API server has answered since it was started. It unmounts
    nothing, so it never finishes with a pod, and never starts another one of the same name; started anew, it has not heard of them.
    Source: pkg/kubelet/volumemanager/reconciler (unmounts once all sources are ready), pod_workers.go (SyncTerminatedPod)

    Raises HostError (pod-does-not-end)."""
    services.run(run.host, "stop", unit="kubelet", timeout_s=60)
    for name in names:
        _set_aside(run, name)
    ids = [one.id for one in find_living(run, names) or ()]
    if ids:
        run.host.run(crictl_argv(run.config.node.cri_socket, "stop", "--timeout", f"{STOP_S}", *ids), timeout_s=60)
    limit_s = GONE_S * find_patience(run.host)
    missing, _ = watch(run.host, lambda: _say_living(run, names), timeout_s=limit_s, poll_s=POLL_S)
    if missing:
        raise HostError(
            f"the static pods {', '.join(names)} do not end",
            cause=f"their containers were told to stop {limit_s:.0f} s ago, and {missing}",
            remedy="see which they are: crictl ps; then end them: crictl stop ID; and start the kubelet: "
            f"{services.spoken_of(run.host).say('start', 'kubelet')}",
            code="pod-does-not-end",
        )


def _probe_kubelet(run: Run) -> int:
    return kubelet_view.probe(run.host, run.paths, node_name=run.config.node.name)


def can_ask_kubelet(run: Run) -> bool:
    """Whether this node's kubelet tells its pods: it asks an API server whether it may, and remembers the answer for five minutes."""
    return _read_pods(run) is not None


def _read_pods(run: Run) -> dict[str, str] | None:
    found = kubelet_view.read_static_pods(run.host, run.paths, node_name=run.config.node.name)
    return None if found is None else dict(found)


def is_of_pod(run: Run, one: containers.ContainerInfo, *, name: str) -> bool:
    """Whether a container belongs to this node's static pod. A pod of somebody else may have a container called etcd, too."""
    return one.namespace == "kube-system" and one.pod.lower() == f"{name}-{run.config.node.name}".lower()


def find_living(run: Run, names: Sequence[str]) -> Optional[list[containers.ContainerInfo]]:
    """The pods' containers that have not ended, those of helpers beside the component too; None if the runtime does not tell."""
    found = containers.ask_containers(run.host, run.config.node.cri_socket, has_exits=False)
    if found is None:
        return None
    return [one for one in found if one.state != "exited" and any(is_of_pod(run, one, name=name) for name in names)]


def _say_living(run: Run, names: Sequence[str]) -> str:
    """Which of the pods' containers still run, in words; "" if all have ended."""
    living = find_living(run, names)
    return _SILENT if living is None else ", ".join(f"{one.name} still runs" for one in living)


def _set_aside(run: Run, name: str) -> None:
    live, former = run.paths.manifest(name), former_path(run, name)
    if not run.host.exists(live):
        return
    if run.host.exists(former):
        run.host.remove(live)  # the swap's record has its text
    else:
        run.host.move_file(live, former)


def _wait_until_dropped(run: Run, names: Sequence[str], fresh: list[bool]) -> str:  # noqa: PLR0917
    """Until the kubelet no longer wants the pods. If it does not answer, until they end by themselves, or it must have noticed. Returns what
    is missing in the end.

    fresh: not empty if the kubelet was started after the manifests had gone. Such a kubelet has never heard of the pods: it neither
    restarts their containers, nor cleans up after them before an API server answers it."""

    def look() -> str:
        if fresh:
            return ""
        seen = _read_pods(run)
        if seen is None:
            return "its kubelet does not answer" if _say_living(run, names) else ""
        held = [name for name in names if name in seen]
        return f"the kubelet still runs {', '.join(held)}" if held else ""

    limit_s = DROP_S * find_patience(run.host)
    return _watch(run, look, goal=f"{', '.join(names)} to stop", timeout_s=limit_s, on_start=lambda: fresh.append(True))


def _end_containers(run: Run, names: Sequence[str], *, is_told: bool) -> None:
    """is_told: the kubelet has sent SIGTERM, so they have had their time by then."""
    grace_s = max(GRACE_S.get(name, 1.0) for name in names)
    left, _ = watch(run.host, lambda: _say_living(run, names), timeout_s=grace_s, poll_s=POLL_S)
    ids = [one.id for one in find_living(run, names) or ()]
    if not left or not ids:
        return
    stop_s = "0" if is_told else "1"
    done = run.host.run(crictl_argv(run.config.node.cri_socket, "stop", "--timeout", stop_s, *ids), timeout_s=60)
    if not done.ok:
        run.report.detail(f"crictl stop: {last_words(done.stderr)}")


def _wait_until_gone(run: Run, uids: Iterable[str], *, names: Sequence[str], fresh: list[bool]) -> None:
    """Until the pods' containers and cgroups are gone, and the kubelet has finished with the pods; a fresh kubelet has nothing to finish.
    Raises HostError (pod-does-not-end)."""
    left = set(uids)
    times = find_patience(run.host)
    ended_at: Optional[float] = None

    def look() -> str:
        nonlocal ended_at
        left.intersection_update([uid for uid in left if kubelet_view.has_cgroup(run.host, uid)])
        living = _say_living(run, names)
        if living or fresh or not left:
            return living
        ended_at = run.host.monotonic() if ended_at is None else ended_at
        if run.host.monotonic() - ended_at > STUCK_S and _restart_stuck(run, names):
            fresh.append(True)
            return ""
        return "the kubelet cleans up"

    def note_start() -> None:
        fresh.append(True)

    missing = _watch(run, look, goal=f"{', '.join(names)} to end", timeout_s=GONE_S * times, on_start=note_start)
    if missing:
        raise HostError(
            f"the static pods {', '.join(names)} do not end",
            cause=f"their manifests are out of {run.paths.manifests} for {GONE_S * times:.0f} s or more, and {missing}",
            remedy=f"see why: {services.say_log(run.host, 'kubelet')}",
            code="pod-does-not-end",
        )
    _wait_until_finished(run, names, fresh=fresh)


def _restart_stuck(run: Run, names: Sequence[str]) -> bool:
    """Start the kubelet anew if no API server has answered it since its start, as after a power cut in the middle of a swap: it unmounts
    nothing before, so it never finishes with a pod (see take_out_stopped). Whether it was restarted."""
    if can_ask_kubelet(run):
        return False
    run.report.note(
        f"the kubelet does not finish with {', '.join(names)} while no API server answers it: restarting it"
    )
    return services.run(run.host, "restart", unit="kubelet").ok


def _wait_until_finished(run: Run, names: Sequence[str], *, fresh: list[bool]) -> None:
    began = run.host.monotonic()

    def is_finished() -> str:
        if fresh:
            return ""
        ending = kubelet_view.count_ending(run.host, run.paths, node_name=run.config.node.name)
        if ending is None:  # an older kubelet, or one that does not let itself be asked
            return "" if run.host.monotonic() - began > UNTOLD_S else "the kubelet does not tell"
        return f"the kubelet is still cleaning up after {ending} of them" if ending else ""

    _watch(
        run,
        is_finished,
        goal=f"{', '.join(names)} to be forgotten",
        timeout_s=FINISH_S,
        on_start=lambda: fresh.append(True),
    )


# ---- in


def put_in(run: Run, name: str, *, text: str) -> None:
    """Give the kubelet this manifest: by a rename if the text waits beside it, which needs no space on the disk."""
    live = run.paths.manifest(name)
    if run.host.exists(live) and is_same_yaml(run.host.read_text(live), text):
        return
    for waiting in (next_path(run, name), former_path(run, name)):
        if run.host.exists(waiting) and is_same_yaml(run.host.read_text(waiting), text):
            run.host.move_file(waiting, live)
            return
    run.host.write_file(live, text, mode=0o600)


def nudge(run: Run, name: str) -> None:
    """Have the kubelet read the manifest, in case it missed the file event (H4)."""
    containers.nudge(run.host, run.paths.manifest(name))


# ---- the kubelet meanwhile


def keep_kubelet(run: Run) -> bool:
    """Start the kubelet again if somebody has stopped it; returns whether that was necessary. Without it no static pod starts."""
    if services.is_active(run.host, "kubelet"):
        return False
    run.report.note("the kubelet is not running: starting it")
    started = services.run(run.host, "start", unit="kubelet")
    if not started.ok:
        run.report.note(f"the kubelet does not start: {last_words(started.stderr)}")
    return True


def _watch(
    run: Run, look: Callable[[], str], *, goal: str, timeout_s: float, on_start: Callable[[], None] = lambda: None
) -> str:
    """Wait while the kubelet is kept running. on_start: called when it had to be started."""
    looked, deadline = 0.0, timeout_s

    def is_over(missing: str, elapsed: float) -> bool:
        nonlocal looked, deadline
        run.report.waiting(say_round(goal, missing, elapsed=elapsed, timeout_s=deadline))
        if elapsed - looked > LOOK_EVERY_S:
            looked = elapsed
            if keep_kubelet(run):
                deadline = elapsed + timeout_s + KUBELET_S
                on_start()
        return elapsed > deadline

    return watch(run.host, look, timeout_s=timeout_s + 10 * KUBELET_S, is_over=is_over, poll_s=POLL_S)[0]
