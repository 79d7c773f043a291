"""The data folder of this node's etcd member: its copy from before a change, the way back, and the guard against an empty one.

A copy is the way back of a single member alone. Where etcd has others, an old folder must never come back: the member has voted and
acknowledged writes since. Then it is removed from the list, emptied, and joins again. The copy is made of a stopped member: a folder
that is copied while etcd writes to it need not start. kubeadm copies the running one, and copies it back into the folder that is still
there, where it nests (kubernetes/kubernetes#65580).

Every function can be called again after it was killed between any two steps.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.machine.host import Argv, Host
from kubeup.yaml_files import commands_of_pod, containers_of_pod, flags_of

OWN_PREFIX = ".kb-"
"""How the names of what kb keeps inside a data folder begin."""
_COMING = f"{OWN_PREFIX}coming"
"""A folder in the data folder: what is being restored, until all of it is on disk. While it is there, the rest is no whole data folder."""
_NOT_DATA = ("lost+found",)
_MARGIN = 64 << 20
"""Bytes by which a member may grow between the check and the copy: etcd allocates its log in files of this size."""
COPY_TIMEOUT_S = 1800
KEPT_FLAGS = ("--initial-cluster", "--initial-cluster-state")
"""Flags that etcd reads only at its first start. kb cannot render them again later, so an existing manifest keeps them."""


# ---- the copy


def place_of_copy(host: Host, data_dir: Path) -> Path:
    """Where the copy of this data folder lies, on the same file system: beside it (`/var/lib/etcd.kb-former`), or inside if a disk of
    its own is mounted there. Links are followed."""
    real = host.real_path(data_dir)
    if real in host.mounts_below(real.parent):
        return real / f"{OWN_PREFIX}former"
    return real.with_name(f"{real.name}.kb-former")


def place_of_kept(host: Host, data_dir: Path, *, kind: str) -> Path:
    """Where data are kept for longer than one change takes: `/var/lib/etcd.kb-before-recover` for the kind `recover`. A copy at
    place_of_copy would be in the way of the next change."""
    place = place_of_copy(host, data_dir)
    return place.with_name(place.name.replace("kb-former", f"kb-before-{kind}"))


def check_room(host: Host, data_dir: Path, *, copy_dir: Optional[Path] = None, wal_dir: Optional[Path] = None) -> None:
    """Check before anything is stopped that the data can be copied. wal_dir: etcd's --wal-dir.

    Raises HostError: etcd-copy-no-room; etcd-data-spread if a part of it lies elsewhere, so that a copy would not be whole.
    """
    place = copy_dir or place_of_copy(host, data_dir)
    real = host.real_path(data_dir)
    elsewhere = [*host.mounts_below(real), *_links_in(host, real)]
    if wal_dir is not None and real not in host.real_path(wal_dir).parents:
        elsewhere.append(wal_dir)
    if elsewhere:
        raise HostError(
            f"etcd's data {data_dir} cannot be copied as a whole",
            cause=f"a part of it lies elsewhere: {', '.join(map(str, elsewhere[:3]))}",
            remedy="save it before the change (etcdctl snapshot save), or move the data into one folder",
            code="etcd-data-spread",
        )
    needed = sum(_measure(host, real / name) for name in _data_in(host, real))
    needed += max(needed // 10, _MARGIN)
    free = host.free_bytes(place)
    if free < needed:
        raise HostError(
            f"there is no room for a copy of etcd's data {data_dir}",
            cause=f"it takes {_in_mib(needed)} MiB on the file system of {place.parent}, and {_in_mib(free)} MiB are free; without it "
            "there would be no way back",
            remedy=f"make space there (df -h {place.parent}), or make etcd's data smaller (etcdctl defrag), then run the command again",
            code="etcd-copy-no-room",
        )


def copy_data(host: Host, data_dir: Path, *, copy_dir: Optional[Path] = None) -> Path:
    """Copy the data of this node's stopped member, with all attributes, and return where the copy lies. It is completely on disk
    before it has that name, and private (0700).

    Raises HostError: etcd-data-missing if the folder holds no data; etcd-copy-exists if there is a copy already, which may be the only
    good one: whoever knows that it is not wanted calls remove_copy first; etcd-copy-no-room; etcd-copy-failed.
    """
    place = copy_dir or place_of_copy(host, data_dir)
    if host.exists(place):
        raise copy_exists(place)
    real = host.real_path(data_dir)
    names = _data_in(host, real)
    if not names:
        raise _missing(data_dir, others=())
    part = _part_of(place)
    host.remove_tree(part)
    check_room(host, data_dir, copy_dir=place)
    host.make_dir(part, mode=0o700)
    try:
        _copy(host, [real / name for name in names], folder=part)
    except HostError:
        with contextlib.suppress(HostError):
            host.remove_tree(part)  # it may have filled the disk
        raise
    host.move_file(part, place)
    return place


def copy_exists(place: Path) -> HostError:
    """The error for a copy that is in the way (etcd-copy-exists)."""
    return HostError(
        f"there is a copy of etcd's data already: {place}",
        cause="an earlier change of etcd did not end, and the copy may be the only good one",
        remedy=f"if etcd serves and nothing is missing in the cluster, remove it: rm -r {place}; then run the command again",
        code="etcd-copy-exists",
    )


def has_copy(host: Host, data_dir: Path, *, copy_dir: Optional[Path] = None) -> bool:
    """Whether there is a whole copy."""
    return host.is_dir(copy_dir or place_of_copy(host, data_dir))


def restore_data(host: Host, data_dir: Path, *, copy_dir: Optional[Path] = None) -> None:
    """Put the copy in the place of the data of this node's stopped member. The copy stays until remove_copy, so this can be repeated;
    but not once etcd has served again, since what it wrote would be lost.

    The folder itself stays, with its mode, owner and labels, because it may be a mount point or the target of a link. What is in it is
    exchanged: it is removed first, which makes room, and the copy gets its name when all of it is on disk. Until then the folder is
    is_half_replaced. Raises HostError: etcd-copy-missing; etcd-copy-failed; mount-in-the-way.
    """
    place = copy_dir or place_of_copy(host, data_dir)
    kept = _data_in(host, place)
    if not kept:
        raise HostError(
            f"etcd's data cannot be restored to {data_dir}",
            cause=f"there is no copy of it: {place}",
            remedy="restore a snapshot, if there is one: etcdutl snapshot restore",
            code="etcd-copy-missing",
        )
    real = host.real_path(data_dir)
    coming = real / _COMING
    begin_replacement(host, real)
    empty_data(host, coming)  # of an earlier run
    _copy(host, [place / name for name in kept], folder=coming)
    for name in kept:
        host.move_file(coming / name, real / name)
    end_replacement(host, real)


def remove_copy(host: Host, data_dir: Path, *, copy_dir: Optional[Path] = None) -> bool:
    """Remove the copy, and what is left of one that was interrupted; return whether there was anything."""
    place = copy_dir or place_of_copy(host, data_dir)
    removed = [host.remove_tree(path) for path in _copies(host, data_dir, place=place)]
    return any(removed)


def find_copies(host: Host, data_dir: Path) -> list[Path]:
    """What remove_copy would remove."""
    return [path for path in _copies(host, data_dir, place=place_of_copy(host, data_dir)) if host.exists(path)]


def find_kept(host: Host, data_dir: Path) -> list[Path]:
    """The data of before a recovery that are still kept."""
    place = place_of_kept(host, data_dir, kind="recover")
    return [path for path in (place, _part_of(place)) if host.exists(path)]


def _copies(host: Host, data_dir: Path, *, place: Path) -> tuple[Path, ...]:
    return place, _part_of(place), host.real_path(data_dir) / _COMING


def empty_data(host: Host, data_dir: Path) -> None:
    """Remove the data of this node's stopped member: others have all of it, or there is a copy. The folder itself stays."""
    real = host.real_path(data_dir)
    for name in _data_in(host, real):
        if not host.remove_tree(real / name):
            host.remove(real / name)


def begin_replacement(host: Host, data_dir: Path) -> None:
    """Remove the data of this node's stopped member, and have the folder say that they are being replaced, whenever kb is killed. etcd
    must not start on it then, unless it is to fetch all data from others: it would begin a new cluster, or find half of its log."""
    real = host.real_path(data_dir)
    host.make_dir(real, mode=0o700)
    host.make_dir(real / _COMING, mode=0o700)
    empty_data(host, real)


def is_half_replaced(host: Host, data_dir: Path) -> bool:
    """Whether begin_replacement was called, and end_replacement was not."""
    return host.is_dir(host.real_path(data_dir) / _COMING)


def end_replacement(host: Host, data_dir: Path) -> None:
    """The data are whole again."""
    host.remove_tree(host.real_path(data_dir) / _COMING)


def _part_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _data_in(host: Host, folder: Path) -> list[str]:
    """The names in a data folder that are etcd's. `member` comes last: with it, the folder counts as one that holds data."""
    names = [name for name in host.list_dir(folder) if name not in _NOT_DATA and not name.startswith(OWN_PREFIX)]
    return sorted(names, key=lambda name: (name == "member", name))


def _measure(host: Host, path: Path) -> int:
    """The size in bytes of a file, or of all files below a folder. What vanishes meanwhile counts as nothing."""
    found = host.stat(path)
    if found is None:
        return 0
    return sum(_measure(host, path / name) for name in host.list_dir(path)) if found.is_dir else found.size


def _links_in(host: Host, real: Path) -> list[Path]:
    member = real / "member"
    return [path for path in (member, member / "wal", member / "snap") if host.read_link(path) is not None]


def _in_mib(size: int) -> int:
    return -(-size >> 20)


def _copy(host: Host, sources: Iterable[Path], *, folder: Path) -> None:
    """Copy files and folders into `folder`, and wait until they are on disk. Raises HostError (etcd-copy-failed)."""
    # copying shares the blocks where the file system can; busybox's cp need not know the option
    argv: Argv = ["cp", "-a", "--reflink=auto", *sources, folder]
    done = host.run(argv, timeout_s=COPY_TIMEOUT_S)
    if not done.ok and "reflink" in done.stderr:
        done = host.run([word for word in argv if word != "--reflink=auto"], timeout_s=COPY_TIMEOUT_S)
    if done.ok:
        done = host.run(["sync", "-f", folder], timeout_s=COPY_TIMEOUT_S)
    if not done.ok:
        raise HostError(
            f"etcd's data cannot be copied to {folder}",
            cause=f"{' '.join(done.argv[:2])} ended with {done.code}: {done.stderr.strip()[-300:] or 'it says nothing'}",
            remedy=f"look at the disk (df -h {folder.parent}; dmesg), then run the command again",
            code="etcd-copy-failed",
        )


# ---- never an empty folder


def refuse_empty(host: Host, data_dir: Path, *, others: Sequence[str], wal_dir: Optional[Path] = None) -> None:
    """Raise HostError (etcd-data-missing) if this member of a cluster that exists would start with an empty data folder: it would make
    a new, empty cluster, or be refused by the others as a stranger. A disk that is not mounted looks like this.

    others: the names of the cluster's other members. wal_dir: where etcd's log lies, if not in the data folder.
    """
    if not holds_data(host, data_dir, wal_dir=wal_dir):
        raise _missing(data_dir, others=others)


def holds_data(host: Host, data_dir: Path, *, wal_dir: Optional[Path] = None) -> bool:
    """Whether there is a log of etcd's. wal_dir: where it lies, if not in the data folder."""
    return any(name.endswith(".wal") for name in host.list_dir(wal_dir or data_dir / "member" / "wal"))


def _missing(data_dir: Path, *, others: Sequence[str]) -> HostError:
    lost = (
        f"if it is lost, remove this node's member (kb etcd members, kb etcd remove) and join again: {', '.join(others)} have the data"
        if others
        else "if it is lost, restore a snapshot: etcdutl snapshot restore"
    )
    return HostError(
        f"{data_dir} holds no data of etcd",
        cause="this node's member has run before; started on an empty folder, it would begin a new cluster without any objects",
        remedy=f"if the folder is a disk of its own, mount it (findmnt {data_dir}); {lost}",
        code="etcd-data-missing",
    )


# ---- the manifest


def keep_initial_cluster(new_pod: Mapping[str, Any], old_pod: Mapping[str, Any]) -> dict[str, Any]:
    """`new_pod` with the flags KEPT_FLAGS as they are in `old_pod`, unless it names more members itself: rendered anew, they would
    name this member alone, and with an empty data folder that is a new cluster. A pod of another program stays as it is."""
    (former, *_), (current, *_) = [*commands_of_pod(old_pod), []], [*commands_of_pod(new_pod), []]
    pod = copy.deepcopy(dict(new_pod))
    if not current or current[0] not in former or _count_members(current) > _count_members(former):
        return pod
    words = {f"--{name}": f"--{name}={value}" for name, value in flags_of(former).items()}
    command = containers_of_pod(pod)[0].get("command") or []
    for name in KEPT_FLAGS:
        options = [str(word).partition("=")[0] for word in command]
        if name in words and name in options:
            command[options.index(name)] = words[name]
        elif name in words:
            ahead = list(words)[: list(words).index(name)]
            place = max((index for index, option in enumerate(options) if option in ahead), default=0)
            command.insert(1 + place, words[name])
    return pod


def _count_members(command: Sequence[str]) -> int:
    return len([row for row in flags_of(command).get("initial-cluster", "").split(",") if row])
