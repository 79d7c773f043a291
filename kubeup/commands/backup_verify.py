"""The command backup verify: proves that a backup is whole, and that a cluster comes out of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.commands.launcher import Launch
from kubeup.errors import ClusterError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.backup import archive, node_content, opening, rehearsal, rehearsal_objects
    from kubeup.doctor import node_files

if TYPE_CHECKING:
    from kubeup.backup.archive import Backup
    from kubeup.backup.rehearsal_objects import Counted
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.machine.local_host import LocalHost


def verify(call: Invocation) -> int:
    """Check the hashes, boot the backup, and say what is in it and what a restore would need."""
    launch = Launch(call)
    launch.require_root()
    local = launch.local
    if len(call.words) != 1:
        raise UsageError(
            "kb backup verify " + " ".join(call.words),
            cause="it takes one file, or - for standard input",
            remedy="kb backup verify FILE",
            code="usage",
        )
    patient = node_files.read_patient(local, Paths())
    own = own_images(local, patient)
    begin = local.monotonic()
    with opening.open_backup(local, call.words[0], identity=str(call.flags.get("identity", ""))) as backup:
        call.report.line(describe_backup(call.words[0], backup))
        ca = compare_ca(local, backup, pki=patient.paths.pki)
        needs = find_needs(backup, node=patient.config.node.name)
        rehearsed = rehearsal.rehearse(
            local, backup, socket=patient.config.node.cri_socket, own_images=own, tell=call.report.waiting
        )
        counted, images = rehearsed.counted, rehearsed.images
        took_s = local.monotonic() - begin
        value = {
            "about": dataclasses.asdict(backup.about),
            "entries": len(backup.entries),
            "ca": ca,
            "needs": needs,
            "bootedWith": [images.etcd, images.apiserver],
            "kinds": dict(counted.kinds),
            "objects": counted.objects,
            "keys": counted.keys,
            "secret": counted.secret,
            "unread": dict(counted.unread),
            "notProven": dict(counted.unproven),
            "notCounted": dict(counted.uncounted),
            "seconds": round(took_s, 1),
        }
        if call.output != "text":
            call.print_value(value)
        else:
            _tell(call, value)
        _refuse_unread(call.words[0], backup, counted=counted)
    return 0


def own_images(local: LocalHost, patient: Patient) -> tuple[str, ...]:
    """The images of this node's own static pods."""
    pods = node_content.read_pods(local, patient.paths)
    return tuple(image for _, pod in pods for image in node_content.images_of(pod))


def describe_backup(target: str, backup: Backup) -> str:
    about = backup.about
    return (
        f"{target} is whole: {len(backup.entries)} files, made {about.made} by kb {about.kb} on node {about.node}; "
        f"Kubernetes {about.kubernetes}, etcd {about.etcd or 'unknown'}, revision {about.revision}"
    )


def compare_ca(local: LocalHost, backup: Backup, *, pki: Path) -> str:
    """Whether the cluster's CA in the backup is this node's: same | other | none here | none in it"""
    name = archive.file_name(Path(backup.about.pki) / "ca.crt")
    if not backup.has(name):
        return "none in it"
    if not local.exists(pki / "ca.crt"):
        return "none here"
    return "same" if local.read_bytes(pki / "ca.crt").strip() == backup.read(name).strip() else "other"


def find_needs(backup: Backup, *, node: str) -> dict[str, Any]:
    """What a restore needs, and whether this node is the one that was backed up."""
    about = backup.about
    return {
        "kubernetes": about.kubernetes,
        "etcd": about.etcd,
        "images": list(about.images),
        "node": about.node,
        "isThisNode": about.node == node,
        "address": about.address,
        "endpoint": about.endpoint,
        "members": [member.name for member in about.members],
        "missing": list(about.missing),
    }


_CA = {
    "same": "its CA is this node's: kubelets and kubeconfigs of this cluster trust what a restore brings back",
    "other": "its CA is not this node's: it is of another cluster, or from before the CA was replaced",
    "none here": "this machine has no CA to compare with",
    "none in it": "it holds no CA",
}


def _tell(call: Invocation, value: dict[str, Any]) -> None:
    call.print(
        f"it boots: {value['objects']} objects of {len(value['kinds'])} kinds, in {value['seconds']:.1f} s; "
        f"Secrets: {value['secret']}"
    )
    width = max(map(len, value["kinds"]), default=0)
    for name, count in value["kinds"].items():
        call.print(f"  {name:<{width}}  {count}")
    for name, why in value["notProven"].items():
        call.print(f"  not proven: {name}, which takes a program that is not reached from here ({why})")
    for name, how_many in value["notCounted"].items():
        call.print(f"  not counted: {name}, of which the API server lists {how_many} that etcd holds")
    for image in sorted(set(value["bootedWith"]) - set(value["needs"]["images"])):
        call.print(f"it was booted with this node's {image}: the backup's is not here")
    call.print(_CA[value["ca"]])
    needs = value["needs"]
    where = "this node" if needs["isThisNode"] else f"a machine named {needs['node']}, or another one"
    endpoint = f"; endpoint {needs['endpoint']}" if needs["endpoint"] else ""
    call.print(
        f"a restore needs: {where}, address {needs['address']}{endpoint}; Kubernetes {needs['kubernetes']}, etcd {needs['etcd']}"
    )
    for image in needs["images"]:
        call.print(f"  {image}")
    for words in needs["missing"]:
        call.print(f"  not in it: {words}")


def _refuse_unread(target: str, backup: Backup, *, counted: Counted) -> None:
    """Raises ClusterError (backup-unreadable) if the backup boots, and something in it cannot be read."""
    unread = dict(counted.unread)
    if counted.secret.startswith(rehearsal_objects.UNREADABLE):
        unread.setdefault("secrets", counted.secret[len(rehearsal_objects.UNREADABLE) :])
    lost = not counted.keys and backup.about.objects
    if not unread and not lost:
        return
    first = next(iter(unread.items()), ("the data", "etcd holds no key of the API server's"))
    raise ClusterError(
        f"{target} boots, but not all of it can be read",
        cause=f"{first[0]}: {first[1]}",
        remedy="take another backup; if it is about decryption: the backup lacks the key, so look for it in the encryption configuration of "
        "the node that it was made on",
        code="backup-unreadable",
        details=[f"{name}: {why}" for name, why in unread.items()],
    )
