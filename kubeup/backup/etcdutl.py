"""Makes a data folder of a snapshot with etcd's own tool, etcdutl: from etcd's image, else from this machine's PATH.

Newer images of etcd have it (about 3.6.6 on), older ones do not. Knows nothing of members and revisions: those are the caller's words.
Source: etcdutl/etcdutl/snapshot_command.go
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.machine.host import Host
from kubeup.node.crictl import last_words
from kubeup.node.image_program import Bind, MountedImage, is_in_image, run_program

PROGRAM = "etcdutl"
_PLACES = ("/usr/local/bin/etcdutl", "/usr/bin/etcdutl", "/bin/etcdutl")
_TIMEOUT_S = 600


def find_place(host: Host, mounted: MountedImage) -> str:
    """`image`, `path`, or "" if there is no etcdutl."""
    if not mounted.why_not and any(is_in_image(host, mounted, place) for place in _PLACES):
        return "image"
    return "path" if host.which(PROGRAM) else ""


def require_etcdutl(host: Host, mounted: MountedImage) -> str:
    """Where it is, as find_place. Raises HostError (no-etcdutl)."""
    place = find_place(host, mounted)
    if place:
        return place
    raise HostError(
        "there is no etcdutl, which turns a snapshot into etcd's data",
        cause=f"{mounted.why_not or f'{mounted.image} does not have it'}, and it is not in PATH",
        remedy="put the etcdutl of etcd's release (github.com/etcd-io/etcd/releases) into /usr/local/bin",
        code="no-etcdutl",
    )


def restore_snapshot(
    host: Host, mounted: MountedImage, *, snapshot: Path, data_dir: Path, words: Sequence[str] = ()
) -> None:
    """Make `data_dir`, which must not exist, of the snapshot. words: more flags of `etcdutl snapshot restore`.

    mounted: the image of etcd. The parent of data_dir has to exist. Raises HostError: no-etcdutl, snapshot-not-restored,
    disk-full."""
    if require_etcdutl(host, mounted) == "image":
        inside = ("/kb-snapshot.db", "/kb-restored")
        binds = (Bind(snapshot, inside[0]), Bind(data_dir.parent, inside[1], is_writable=True))
        argv = [PROGRAM, "snapshot", "restore", inside[0], f"--data-dir={inside[1]}/{data_dir.name}", *words]
        done = run_program(host, mounted, argv=argv, timeout_s=_TIMEOUT_S, binds=binds)
        why_not = done.why_not or ("" if done.code == 0 else last_words(done.stderr or done.stdout))
    else:
        argv = [PROGRAM, "snapshot", "restore", str(snapshot), f"--data-dir={data_dir}", *words]
        answer = host.query(argv, timeout_s=_TIMEOUT_S)
        why_not = "" if answer.ok else last_words(answer.stderr or answer.stdout)
    if why_not:
        raise find_full_disk(why_not, data_dir.parent) or HostError(
            "etcdutl cannot restore the snapshot",
            cause=why_not,
            remedy="take the backup before it, or see what the tool says of it: etcdutl snapshot status FILE",
            code="snapshot-not-restored",
        )


def find_v2_content(host: Host, mounted: MountedImage, *, data_dir: Path) -> str:
    """What `etcdutl check v2store` objects to in a member's data; "" if nothing, or if there is no etcdutl that has this check (3.5 alone
    has it). mounted: the image of the etcd that runs. Source: etcdutl/etcdutl/check_command.go of 3.5"""
    place = find_place(host, mounted)
    words = [PROGRAM, "check", "v2store"]
    if place == "image":
        binds = (Bind(data_dir, "/kb-data"),)
        done = run_program(host, mounted, argv=[*words, "--data-dir=/kb-data"], timeout_s=_TIMEOUT_S, binds=binds)
        told = f"{done.stdout}\n{done.stderr}" if done.code and not done.why_not else ""
    elif place == "path":
        answer = host.query([*words, f"--data-dir={data_dir}"], timeout_s=_TIMEOUT_S)
        told = "" if answer.ok else f"{answer.stdout}\n{answer.stderr}"
    else:
        told = ""
    return next((line.partition("Error: ")[2] or line for line in told.splitlines() if "custom content" in line), "")


def find_full_disk(told: str, folder: Path) -> Optional[HostError]:
    """The error (disk-full) if a program said that there is no space left: then the backup is not to blame. folder: where it writes."""
    if "no space left on device" not in told.lower():
        return None
    return HostError(
        f"there is no room left in {folder}",
        cause=told.strip(),
        remedy=f"make space there: df -h {folder}",
        code="disk-full",
    )
