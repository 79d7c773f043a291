"""The swap on disk: which static pods are to be replaced, by what, and what was there before.

It is written before the first change, so that a swap that was cut off can be continued or taken back, whatever happened to this
program or this machine. The last swap that succeeded stays there too, so that it can be taken back later. The file holds whole
manifests, which may hold a user's secrets: only root may read it.

    {"schema": 1, "status": "running", "pods": [{"name": "etcd", "former": "apiVersion: v1...", "wanted": "..."}],
     "data_dir": "/var/lib/etcd"}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import record_file
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.yaml_files import is_same_yaml

with lazily:
    from kubeup.machine import dry_run

RUNNING, DONE, TAKEN_BACK = "running", "done", "taken back"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
"""The static pods that can be swapped, each after those that it needs."""


@frozen
class Pod:
    """One static pod of the swap. `former` and `wanted` are the texts of its manifest, which may be the same: the API server is
    restarted with its etcd."""

    name: str
    former: str
    wanted: str

    @property
    def is_changed(self) -> bool:
        return not is_same_yaml(self.former, self.wanted)


@frozen
class Swap:
    """A swap. data_dir: etcd's data folder if the swap keeps a copy of it, else "". holders: who held the lease of each controller before;
    only another one leads. others: the client URLs of etcd's other members, which the manifest of the first one does not name. broken: the pods that did not work
    before either, and controllers that are not swapped: a swap is how they are repaired, and its way back cannot wait for them."""

    pods: tuple[Pod, ...]
    status: str = RUNNING
    data_dir: str = ""
    holders: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def formers(self) -> dict[str, str]:
        """Component -> its former manifest."""
        return {pod.name: pod.former for pod in self.pods}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(pod.name for pod in self.pods)

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(pod.name for pod in self.pods if pod.is_changed)

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.pods if pod.name == name)

    def reversed(self) -> Swap:
        """The swap that takes this one back."""
        return Swap(tuple(Pod(pod.name, pod.wanted, pod.former) for pod in self.pods))

    def wants_same(self, texts: Sequence[tuple[str, str]]) -> bool:
        """Whether these manifests (name, text) are those that the swap changes, and others that it leaves as they were."""
        wanted = dict(texts)
        kept = {pod.name: pod.former for pod in self.pods}
        others = [name for name, text in texts if name not in self.changed]
        return (
            set(self.changed) <= set(wanted)
            and all(is_same_yaml(self.pod(name).wanted, wanted[name]) for name in self.changed)
            and all(name not in kept or is_same_yaml(kept[name], wanted[name]) for name in others)
        )

    def with_former(self, name: str, text: str) -> Swap:
        """The swap whose way back ends with this manifest of a pod."""
        pods = tuple(dataclasses.replace(pod, former=text) if pod.name == name else pod for pod in self.pods)
        return dataclasses.replace(self, pods=pods)


def folder(paths: Paths) -> Path:
    return paths.state_dir / "swap"


def _file(paths: Paths) -> Path:
    return folder(paths) / "swap.json"


def _file_of_last(paths: Paths) -> Path:
    return folder(paths) / "last.json"


def begin(host: Host, paths: Paths, *, swap: Swap) -> None:
    """Write down a new swap. The last one that succeeded is kept aside, in case this one is taken back; a restart of pods, which changes
    none, keeps whatever the last one was."""
    last = load(host, paths)
    is_kept = last is not None and (last.status == DONE or (last.status == TAKEN_BACK and not swap.changed))
    if is_kept and host.exists(_file(paths)):
        host.move_file(_file(paths), _file_of_last(paths))
    save(host, paths, swap=swap)


def end(host: Host, paths: Paths, *, swap: Swap, is_as_before: bool) -> None:
    """Write down how a swap ended. is_as_before: its former pods are back, so the last swap that succeeded can still be undone. So it can
    after pods were only restarted, and there is nothing of that to undo."""
    last = _file_of_last(paths)
    if not swap.changed:
        if host.exists(last):
            host.move_file(last, _file(paths))
        else:
            host.remove(_file(paths))
        return
    save(host, paths, swap=swap)
    if not host.exists(last):
        return
    if is_as_before:
        host.move_file(last, _file(paths))
    else:
        host.remove(last)


def save(host: Host, paths: Paths, *, swap: Swap) -> None:
    record_file.write(host, _file(paths), values=dataclasses.asdict(swap))


_SHAPE = {
    "status!": str,
    "pods!": [{"name!": str, "former!": str, "wanted!": str}],
    "data_dir": str,
    "holders": {str: str},
    "others": [str],
    "broken": [str],
}


def load(host: Host, paths: Paths) -> Optional[Swap]:
    """The last swap, finished or not; None if there was none. Raises HostError (swap-unreadable)."""
    path = _file(paths) if host.exists(_file(paths)) else _file_of_last(paths)
    if not host.exists(path):
        return None
    try:
        return _parse(record_file.read(host, path, shape=_SHAPE))
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            f"{path} cannot be read",
            cause=f"it does not describe a swap of static pods: {error}",
            remedy=f"check the files in {paths.manifests} (they must be the ones that are to run), then: mv {path} {path}.damaged",
            code="swap-unreadable",
        ) from error


def _parse(found: dict[str, Any]) -> Swap:
    pods = tuple(Pod(row["name"], row["former"], row["wanted"]) for row in found["pods"])
    unknown = [pod.name or "a pod" for pod in pods if pod.name not in COMPONENTS or not (pod.former and pod.wanted)]
    if unknown or not pods or found["status"] not in (RUNNING, DONE, TAKEN_BACK):
        raise ValueError(f"not known, or without its manifests: {', '.join(unknown) or 'its pods or its status'}")
    return Swap(
        pods,
        found["status"],
        found.get("data_dir", ""),
        found.get("holders", {}),
        tuple(found.get("others", ())),
        tuple(found.get("broken", ())),
    )


def with_missing(host: Host, paths: Paths, *, texts: Mapping[str, str]) -> Host:
    """The machine as it looks with every manifest in its place: what was cut off may have taken some out. texts: component -> the manifest
    that it has to have."""
    seen = dry_run.DryRunHost(host)
    for name, text in texts.items():
        if not host.exists(paths.manifest(name)):
            seen.write_file(paths.manifest(name), text, mode=0o600)
    return seen


def load_cut_off(host: Host, paths: Paths) -> Optional[Swap]:
    """The swap that was begun and has not ended; None if there is none. Raises HostError (swap-unreadable)."""
    found = load(host, paths)
    return found if found is not None and found.status == RUNNING else None
