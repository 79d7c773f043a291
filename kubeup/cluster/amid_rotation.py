"""A rotation of a key that the control planes share, as the cluster tells of it, and what may not be done meanwhile.

A node that joins knows of it by ConfigMap kube-system/kb-rotation, which its bootstrap token may read then, and by the shared files. A control
plane that takes part in one of the cluster's authority knows by its controller-manager's manifest, so that it needs no API server. How one is
carried out is in kubeup/cluster/rotation.py and kubeup/phases/rotation.py. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

from kubeup.cluster.api import Api, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.pem import split_pem

with lazily:
    from kubeup.node import rotated_pairs

NAME = "kb-rotation"
PATH = path_of("ConfigMap", NAME, namespace="kube-system")
CLUSTER = "cluster"
COMMANDS: Mapping[str, str] = {
    "sa": "kb certs rotate-sa",
    "front-proxy": "kb certs rotate-ca front-proxy",
    "etcd": "kb certs rotate-ca etcd",
    CLUSTER: "kb certs rotate-ca cluster",
}
"""By what the cluster's record says that is rotated."""
AUTHORITIES: Mapping[str, str] = {"sa": "", "front-proxy": "front-proxy-ca", "etcd": "etcd-ca", CLUSTER: "ca"}
"""By the same, the name in the table of certificates; "" for the key that signs tokens."""
CERTS = ("formerCert", "followingCert")
LOOK_S = 10.0
MANAGER = "kube-controller-manager"
SIGNING = "ca-signing.crt"
"""The controller-manager's certificate to sign with, as long as ca.crt holds two."""
SIGNING_FLAG = "--cluster-signing-cert-file="
WRITERS = frozenset(
    {"adopt", "init", "join", "reconfigure", "reconfigure node", "upgrade apply", "upgrade node", "upgrade rollback"}
)
"""The commands that take the controller-manager's manifest from a configuration, or from before, where it does not sign with SIGNING."""
_PHASES = frozenset({"all", "control-plane", "controller-manager"})
"""Parts of the names of phases that do so when they are run alone."""
Read = Callable[[Path], str]


@frozen
class Rotation:
    """what: sa, front-proxy, etcd or cluster. former, following: the ids of the pairs. is_undo: it goes back to a pair that was used before. used:
    since when all control planes have used the following one, by the API server's clock; "" if they do not yet. version: of the
    ConfigMap."""

    what: str
    stage: str
    former: str
    following: str
    used: str = ""
    is_undo: bool = False
    version: str = ""
    certs: tuple[str, ...] = ()
    """The former and the following certificate (PEM), where workers take part; else ()."""

    @property
    def mark(self) -> str:
        """What a node's annotation says once it has done the stage."""
        return f"{self.what} {self.stage} {self.following[:16]}"

    @property
    def command(self) -> str:
        """What goes on with it."""
        return COMMANDS.get(self.what, f"the command that began it ({self.what})")


def read(api: Api) -> Optional[Rotation]:
    """The rotation that is under way. Raises ApiRefused, Unreachable, ClusterError (rotation-unreadable)."""
    found = api.get(PATH)
    if found is None:
        return None
    data = found.get("data") or {}
    stage = str(data.get("stage", ""))
    stages = (rotated_pairs.TRUST, rotated_pairs.USE, rotated_pairs.DROP)
    if stage not in stages or not data.get("following") or not data.get("what"):
        raise unreadable(f"ConfigMap kube-system/{NAME} has no stage that is known, or does not say what is rotated")
    return Rotation(
        str(data["what"]),
        stage,
        str(data.get("former", "")),
        str(data["following"]),
        str(data.get("used", "")),
        is_undo=data.get("undo") == "true",
        version=str(found["metadata"].get("resourceVersion") or ""),
        certs=tuple(str(data[name]) for name in CERTS if data.get(name)),
    )


def unreadable(cause: str) -> ClusterError:
    return ClusterError(
        "the rotation that was begun in this cluster cannot be read",
        cause=cause,
        remedy="if no control plane has taken it up yet, forget it: "
        f"kubectl -n kube-system delete configmap,secret {NAME}; then begin it again",
        code="rotation-unreadable",
    )


# ---- a control plane that takes part


def signs_apart(host: Host, paths: Paths) -> bool:
    """Whether this node's controller-manager signs with SIGNING: it takes part in a rotation of the cluster's authority."""
    path = paths.manifest(MANAGER)
    words = (line.strip() for line in host.read_text(path).splitlines()) if host.exists(path) else ()
    return any(SIGNING_FLAG in word and word.endswith(f"/{SIGNING}") for word in words)


def read_authorities(host: Host, paths: Paths) -> str:
    """What a kubeconfig that this control plane writes has to trust beside ca.crt's first certificate: all of ca.crt (PEM) while it takes part in a
    rotation of the cluster's authority, since API servers that had no turn yet are known by the former one alone; else ""."""
    return host.read_text(paths.pki / "ca.crt") if signs_apart(host, paths) else ""


def refuse_writer(host: Host, paths: Paths, *, command: str, words: tuple[str, ...] = ()) -> None:
    """command: without the name of the program; words: of a phase that is run alone. Raises ClusterError (rotation-under-way)."""
    is_alone = command in ("init phase", "join phase")
    writes = not is_alone or any(not _PHASES.isdisjoint(word.split("/")) for word in words)
    if command.replace(" phase", "") in WRITERS and writes and signs_apart(host, paths):
        raise ClusterError(
            f"kb {command} would have the controller-manager sign with a file of two certificates",
            cause=f"the cluster's authority is rotated: until that ends, ca.crt holds two, {MANAGER} signs with {SIGNING}, and does not start "
            "otherwise; nothing was changed",
            remedy=f"end the rotation first, on every node: {COMMANDS[CLUSTER]} --continue",
            code="rotation-under-way",
        )


# ---- a node that joins


def look(api: Api) -> Optional[Rotation]:
    """As `read`, for who may not read it while there is none: that is final, and not asked again. Raises Unreachable, ApiRefused,
    ClusterError (rotation-unreadable)."""
    return None if api.probe_health(PATH, timeout_s=LOOK_S).status in (403, 404) else read(api)


def refuse_control_plane(one: Optional[Rotation], paths: Paths, *, read: Read, signs_with_ca: bool) -> None:
    """Whether a machine with these shared files can become a control plane now. read: the text of a shared file, "" if there is none;
    signs_with_ca: whether its controller-manager is to sign with ca.crt. Raises ClusterError (rotation-under-way)."""
    if one is not None and (one.what == CLUSTER or one.what not in AUTHORITIES):
        raise _no_control_plane(
            f"it has come to its stage {one.stage!r}; until it ends, ca.crt holds two certificates, and {MANAGER} does not start with two",
            command=one.command,
        )
    count = sum(block.is_cert for block in split_pem(read(paths.pki / "ca.crt"))) if signs_with_ca else 1
    if count > 1:
        raise _no_control_plane(
            f"the control planes' ca.crt holds {count} certificates, and {MANAGER} does not start with more than one",
            command=COMMANDS[CLUSTER],
        )
    lack = _find_lack(one, paths, read=read) if one is not None else ""
    if one is not None and lack:
        raise ClusterError(
            "the shared files that this machine has, or gets, are not those of the rotation that is under way",
            cause=f"{one.command} has come to its stage {one.stage!r}, and {lack}; nothing was changed",
            remedy="upload them again, on a control plane that has done this stage: kb init phase upload-certs --upload-certs; then join with the "
            "key that it prints, without copies of former files in the way",
            code="rotation-under-way",
        )


def _no_control_plane(cause: str, *, command: str) -> ClusterError:
    return ClusterError(
        "no control plane can join while the cluster's authority is rotated",
        cause=f"{cause}; nothing was changed",
        remedy=f"end the rotation first, on a control plane: {command} --continue; a worker may join meanwhile",
        code="rotation-under-way",
    )


def _find_lack(one: Rotation, paths: Paths, *, read: Read) -> str:
    """Why a control plane with these files would refuse what the others use, or use what they refuse, in words; "" if it would do neither. Its own
    part in the stage it does afterwards: no other stage begins before that."""
    place = rotated_pairs.place_of(paths, AUTHORITIES[one.what])
    known, signing = rotated_pairs.ids_in(read(place.public)), rotated_pairs.ids_in(read(place.key))
    first, second = (one.former,), (one.following,)
    used = {rotated_pairs.TRUST: first, rotated_pairs.USE: (*first, *second), rotated_pairs.DROP: second}[one.stage]
    missing = [name for name in used if name not in known]
    if missing:
        return f"{place.public.name} lacks {missing[0][:16]}, which other control planes use"
    refused = [name for name in signing if name not in used]
    return f"{place.key.name} is {refused[0][:16]}, which other control planes refuse" if refused else ""


def say_next(one: Rotation, node: str) -> str:
    """What is left to do on a node that joins meanwhile."""
    return f"a rotation is under way ({one.what}, stage {one.stage!r}), and waits for {node} from now on; run here: {one.command} --continue"
