"""A change that is being tried: what this node goes back to by itself, and until when it may be confirmed.

It is written before the first change, and read again at boot, so that neither a program that is killed nor a machine that restarts makes
the change stay. The file holds whole manifests, which may hold a user's secrets: only root may read it. This module decides how much time is
left. It stops nothing.

    {"schema": 1, "status": "waiting", "lasts_s": 300, "ends": "2026-11-30T08:35:00Z", "boot": "5f0c...", "until_s": 8143.2,
     "pods": [{"name": "kube-apiserver", "former": "apiVersion: v1...", "wanted": "..."}], "config": "", "failures": 0, "why": ""}
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, Optional

from kubeup import moments
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import record_file
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.swap import store
from kubeup.yaml_files import is_same_yaml

SWAPPING, WAITING, GOING_BACK, CONFIRMED, BACK = "swapping", "waiting", "going back", "confirmed", "back"
PENDING = (SWAPPING, WAITING, GOING_BACK)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
AGAIN_S, AGAIN_AT_MOST_S = 30.0, 600.0
"""How long to wait after a way back that failed, the first time and at most: each restarts the API server."""


@frozen
class Try:
    """lasts_s: for how long the change is tried, in seconds. pods: those that go back. config: the ClusterConfiguration that is stored when
    the change is confirmed; "" for none. config_from: what it was made from; what differs from that by then is others' and stays.

    The end is kept twice. `until_s` is on the monotonic clock of the boot `boot`, which nobody sets; `ends` is in UTC, for people, and for
    the time after a reboot. failures, why: how often the way back has failed, and why the last time."""

    pods: tuple[store.Pod, ...]
    lasts_s: float
    status: str = SWAPPING
    ends: str = ""
    boot: str = ""
    until_s: float = 0.0
    config: str = ""
    config_from: str = ""
    failures: int = 0
    why: str = ""

    @property
    def is_pending(self) -> bool:
        return self.status in PENDING

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(pod.name for pod in self.pods)

    @property
    def formers(self) -> tuple[tuple[str, str], ...]:
        """(component, its former manifest)"""
        return tuple((pod.name, pod.former) for pod in self.pods)

    def leads_back(self, swap: store.Swap) -> bool:
        """Whether a swap, cut off perhaps, is this one's way back rather than its way there."""
        wanted = {pod.name: pod.wanted for pod in swap.pods}
        return all(name in wanted and is_same_yaml(wanted[name], former) for name, former in self.formers)


def folder(paths: Paths) -> Path:
    return paths.state_dir / "try"


def _file(paths: Paths) -> Path:
    return folder(paths) / "try.json"


# ---- the record


_SHAPE = {
    "status!": str, "lasts_s!": float, "ends!": str, "boot!": str, "until_s!": float, "config": str, "config_from": str, "failures": int,
    "why": str, "pods!": [{"name!": str, "former!": str, "wanted!": str}],
}  # fmt: skip


def load(host: Host, paths: Paths) -> Optional[Try]:
    """The last change that was tried, ended or not; None if there was none. Raises HostError (try-unreadable)."""
    path = _file(paths)
    if not host.exists(path):
        return None
    try:
        return _parse(record_file.read(host, path, shape=_SHAPE))
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            f"{path} cannot be read",
            cause=f"it does not describe a change that is being tried: {error}",
            remedy=f"check the files in {paths.manifests} (they must be the ones that are to run), then: mv {path} {path}.damaged",
            code="try-unreadable",
        ) from error


def _parse(found: dict[str, Any]) -> Try:
    pods = tuple(store.Pod(row["name"], row["former"], row["wanted"]) for row in found.pop("pods"))
    one = Try(pods, **{name: value for name, value in found.items() if value is not None})
    strange = [pod.name for pod in pods if pod.name not in store.COMPONENTS or not (pod.former and pod.wanted)]
    if strange or not pods or one.status not in (*PENDING, CONFIRMED, BACK):
        raise ValueError(f"not known, or without its manifests: {', '.join(strange) or 'its pods or its status'}")
    if one.ends:
        moments.parse(one.ends)
    return one


def load_pending(host: Host, paths: Paths) -> Optional[Try]:
    """The change that is being tried now. Raises HostError (try-unreadable)."""
    found = load(host, paths)
    return found if found is not None and found.is_pending else None


def save(host: Host, paths: Paths, *, one: Try) -> Try:
    record_file.write(host, _file(paths), values=dataclasses.asdict(one))
    return one


# ---- time


def read_boot(host: Host) -> str:
    """Which boot of the machine this is; "" if the kernel does not say."""
    return host.read_text(_BOOT_ID).strip() if host.exists(_BOOT_ID) else ""


def set_end(host: Host, one: Try, *, in_s: float) -> Try:
    """The same, to end in so many seconds from now."""
    ends = host.now() + datetime.timedelta(seconds=in_s)
    return dataclasses.replace(
        one, ends=moments.show(ends), boot=read_boot(host), until_s=round(host.monotonic() + in_s, 3)
    )


def is_of_this_boot(host: Host, one: Try) -> bool:
    boot = read_boot(host)
    return bool(boot) and boot == one.boot


def left_s(host: Host, one: Try) -> float:
    """How many seconds are left; 0 at the end. Within a boot the clock may be set as one likes. After another boot only the clock can tell,
    and one that was set back in between never makes it longer than it was to be."""
    if one.status != WAITING:
        return 0.0
    if is_of_this_boot(host, one):
        return max(0.0, one.until_s - host.monotonic())
    left = (moments.parse(one.ends) - host.now()).total_seconds() if one.ends else 0.0
    return min(max(0.0, left), one.lasts_s)


def note_failure(host: Host, one: Try, *, why: str) -> Try:
    """The same after a way back that failed: it is tried again after a while, a longer one each time."""
    pause_s = min(AGAIN_S * 2.0**one.failures, AGAIN_AT_MOST_S)
    failed = dataclasses.replace(one, status=WAITING, failures=one.failures + 1, why=why)
    return set_end(host, failed, in_s=pause_s)
