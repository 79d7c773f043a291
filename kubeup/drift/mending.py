"""Puts back what drifted, as it is recorded, or as the cluster's configuration has it.

What was found is kept below /var/lib/kb/drift before it is replaced. A running static pod is no matter of this module: its manifest is
swapped, so that the former pod comes back where the recorded one does not work. A kubelet whose files change is watched, and its files go
back as they were found if it does not start with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kubeup.cluster.api import Api
from kubeup.drift import cluster_objects, identities, machine, recorded_files
from kubeup.drift.drifted import Drift, Ground
from kubeup.engine import cluster_items
from kubeup.engine.items import Sysctl
from kubeup.engine.run import Caller, Run
from kubeup.errors import ClusterError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths

with lazily:
    from kubeup.node import renewal, unread_certs
    from kubeup.phases import kubelet_start, restart_pods, static_pods_swap, upgrade_kubelet
    from kubeup.swap import store

_KUBELET = ("kubelet/", "unit/kubelet", "drop-in/kubelet/")
_UNITS = (*_KUBELET, "unit/")
RUNNING = "running/"
SWAP = "reconfigure-static-pods"
"""The name under which a swap of manifests is in the node's state."""


def find_swaps(ground: Ground, names: Iterable[str]) -> dict[str, str]:
    """Component -> the manifest that has to be swapped in, for the static pods among these. One whose manifest is gone is not among them:
    it does not run, so its file can be written."""
    paths, found = ground.run.paths, {}
    for name in names:
        kind, _, component = name.partition("/")
        if kind == "manifest" and component in store.COMPONENTS and ground.run.host.exists(paths.manifest(component)):
            text = recorded_files.find_text(ground, paths.manifest(component))
            if text is not None:
                found[component] = text
    return found


def find_left(ground: Ground, name: str, *, found: Sequence[Drift]) -> tuple[Drift, ...]:
    """What an earlier run left to be done of this name that had put the files back, and then failed or was killed: to restart what reads
    them, or to check the cluster. () if nothing is. found: what has drifted."""
    pods = tuple(one for one in find_unproven(ground) if one.name == name)
    if pods or name.startswith(_UNITS):
        unit = name.partition("/")[2] if name.startswith("unit/") else "kubelet"
        return pods or tuple(one for one in found if one.name == f"{RUNNING}{unit}")
    row, node = renewal.ROWS.get(name.partition("/")[2]), ground.run.config.node
    rows = [row] if row is not None and identities.find_item(ground, name) is not None else []
    unread = unread_certs.find_unread(ground.run.host, ground.run.paths, socket=node.cri_socket, rows=rows)
    return tuple(Drift(f"{RUNNING}{one.row.reader}", str(one.file), one.describe(), is_fixable=True) for one in unread)


def find_unproven(ground: Ground) -> tuple[Drift, ...]:
    """The static pods of the last swap, if it succeeded and no look at the whole cluster has ended well since."""
    gate = ground.phases.get(f"{SWAP}/gate")
    last = store.load(ground.run.host, ground.run.paths) if gate is not None and gate.status != "done" else None
    if last is None or last.status != store.DONE:
        return ()
    what = "the health of the cluster since it was swapped"
    return tuple(
        Drift(f"manifest/{name}", str(ground.run.paths.manifest(name)), what, is_fixable=True) for name in last.changed
    )


def mend(ground: Ground, run: Run, *, found: Sequence[Drift], api: Callable[[], Api]) -> list[str]:
    """Put back what is fixable of these, but for what find_swaps names. run: on the machine that is to change; api: of the cluster that is.
    Returns what was done, in words. Raises HostError, ClusterError (kubelet-files-taken-back), and what the API raises."""
    names = list(dict.fromkeys(one.name for one in found if one.is_fixable))
    swapped = {f"{kind}/{name}" for name in find_swaps(ground, names) for kind in ("manifest", "running")}
    left = [name for name in names if name not in swapped]
    told = [*_set_sysctls(ground, run, names=left), *_write_files(ground, run, names=left)]
    told += [*_issue(ground, run, names=left), *_restart(run, left)]
    for title in (one for one in left if any(row.name == one and row.is_of_cluster for row in found)):
        told.append(_apply(ground, title, api=api()))
    return told


def _set_sysctls(ground: Ground, run: Run, *, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        key = name.partition("sysctl/")[2]
        if key:
            value = str((ground.recorded.get(f"sysctl {key}") or [{"value": "1"}])[-1]["value"])
            Sysctl(key, value).apply(run)
            yield f"{key} is {value} again"


def _issue(ground: Ground, run: Run, *, names: Sequence[str]) -> Iterator[str]:
    """Certificates and kubeconfigs that are gone. The API server and etcd read theirs again by themselves; the others are restarted."""
    readers = []
    for name in names:
        item = identities.find_item(dataclasses.replace(ground, run=run), name)
        if item is not None:
            item.apply(run)
            row = renewal.ROWS.get(name.partition("/")[2])
            readers += [row.reader] if row is not None and row.reader else []
            yield f"{item.files[0]} was issued again"
    yield from _restart(run, [f"{RUNNING}{name}" for name in readers])


# ---- files


def _write_files(ground: Ground, run: Run, *, names: Sequence[str]) -> Iterator[str]:
    texts = {name: path for name in names if (path := recorded_files.find_path(ground, name)) is not None}
    of_kubelet = {name: path for name, path in texts.items() if name.startswith(_KUBELET)}
    for name, path in texts.items():
        if name in of_kubelet:
            continue
        if path.parent == run.paths.systemd:
            with _restart_due(run, path.name):
                _put(ground, run, path=path)
                services.start_own_unit(run.host, path.name)
        else:
            _put(ground, run, path=path)
        yield f"{path} is as recorded again"
    if of_kubelet:
        with _restart_due(run, "kubelet"):
            told = list(_write_kubelet(ground, run, paths=list(of_kubelet.values())))
        yield from told


@contextlib.contextmanager
def _restart_due(run: Run, unit: str) -> Iterator[None]:
    """Whoever looks after a kill within this context is told that the unit is still to be restarted: its files are as recorded by then."""
    machine.note_due(run.host, run.paths, units={*machine.read_due(run.host, run.paths), unit})
    yield
    _end_due(run, unit)


def _end_due(run: Run, *units: str) -> None:
    machine.note_due(run.host, run.paths, units={*machine.read_due(run.host, run.paths)} - {*units})


def _write_kubelet(ground: Ground, run: Run, *, paths: Sequence[Path]) -> Iterator[str]:
    """Raises ClusterError (kubelet-files-taken-back) if the kubelet does not work with the recorded files."""
    before = {path: run.host.read_bytes(path) if run.host.exists(path) else None for path in paths}
    began = run.host.now()
    try:
        for path in paths:
            _put(ground, run, path=path)
        _start_kubelet(run, began)
    except KbError as error:
        for path, text in before.items():
            if text is None:
                run.host.remove(path)
            else:
                run.host.write_file(path, text, keeps=True)
        kubelet_start.restart_kubelet(run)
        _end_due(run, "kubelet")
        raise ClusterError(
            "the kubelet does not work with its files as they are recorded",
            cause=f"{error}; its files are as they were found, and it was started with them",
            remedy=error.remedy,
            code="kubelet-files-taken-back",
        ) from error
    yield f"the kubelet runs with {', '.join(path.name for path in paths)} as recorded"


def _start_kubelet(run: Run, began: datetime.datetime) -> None:
    if run.host.mode == "dry-run":
        kubelet_start.restart_kubelet(run)
        return
    upgrade_kubelet.start_and_watch(run, version="", since=began, needs_ready=upgrade_kubelet.is_ready(run))


def _put(ground: Ground, run: Run, *, path: Path) -> None:
    """The file as it is recorded, with what was found kept aside."""
    keep_found(run.host, run.paths, path=path)
    records = ground.recorded[str(path)]
    text = recorded_files.find_text(ground, path)
    if text is not None:
        mode = next((int(str(one["mode"]), 8) for one in reversed(records) if "mode" in one), 0)
        run.host.write_file(path, text, mode=mode or 0o644, keeps=not mode)
        return
    found = run.host.read_bytes(path).decode(errors="surrogateescape") if run.host.exists(path) else ""
    missing = [line for line in str(records[-1]["lines"]).splitlines() if line not in found.splitlines()]
    start = found if not found or found.endswith("\n") else f"{found}\n"
    run.host.write_file(path, start + "".join(f"{line}\n" for line in missing), keeps=True)


def keep_found(host: Host, paths: Paths, *, path: Path) -> None:
    """Copy the file to /var/lib/kb/drift/TIME/, readable by root alone."""
    if not host.exists(path) or host.is_dir(path):
        return
    folder = paths.state_dir / "drift" / f"{host.now():%Y%m%dT%H%M%SZ}"
    for one in (paths.state_dir, paths.state_dir / "drift", folder):
        host.make_dir(one, mode=0o700)
    host.write_file(folder / str(path).strip("/").replace("/", "-"), host.read_bytes(path), mode=0o600)


# ---- what runs


def _restart(run: Run, names: Sequence[str]) -> Iterator[str]:
    components = [name[len(RUNNING) :] for name in names if name.startswith(RUNNING)]
    due = [unit for unit in machine.read_due(run.host, run.paths) if unit.removesuffix(".service") in components]
    if "kubelet" in components:
        _start_kubelet(run, run.host.now())
        yield "the kubelet was restarted"
    for unit in due:
        if unit != "kubelet":
            services.start_own_unit(run.host, unit)
            yield f"{unit} was restarted"
    _end_due(run, *due)
    pods = [name for name in components if name in store.COMPONENTS]
    if run.host.mode == "dry-run":
        pass
    elif not {"etcd", "kube-apiserver"}.isdisjoint(pods):  # others use these
        static_pods_swap.restart(run, pods)
    elif pods:
        restart_pods.restart_static_pods(run, pods)
    if pods:
        yield f"restarted: {', '.join(pods)}"


# ---- the cluster's objects


def _apply(ground: Ground, title: str, *, api: Api) -> str:
    """Apply the object as the version has it from which it differs least. kube-proxy's pods read their configuration only when they start."""
    wanted = cluster_objects.find_wanted(ground, api, title=title)
    manifest = cluster_objects.choose_manifest(wanted, api.get(wanted.path))
    run = dataclasses.replace(ground.run, caller=Caller.by(api), host=api.host)
    item: cluster_items.Object = cluster_items.Object(manifest)
    if title == "configmap/kube-system/kube-proxy":
        owner = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
        item = cluster_items.PodConfig(manifest, owner, "kube-proxy's pods are restarted, one node after the other")
    elif title == "configmap/kube-system/kubelet-config":
        item = cluster_items.ComponentConfig(manifest)
    item.apply(run)
    return f"{title} is as the cluster's configuration has it"
