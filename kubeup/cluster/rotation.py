"""A rotation as the cluster keeps it: which pair follows which, in which stage it is, and which node has acknowledged the stage.

ConfigMap kube-system/kb-rotation says what is rotated and how far that is, for everybody to see. Secret kube-system/kb-rotation holds
both private keys, encrypted with a key that is derived from all other private keys that the control planes share: who got hold of the
rotated one, or of a backup of etcd, cannot open it. Each node acknowledges a stage by an annotation of its own Node, which goes with
the node. This module knows no phase, and nothing of files. kubeadm has no counterpart.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from cryptography.hazmat.primitives import serialization

from kubeup import moments
from kubeup.cluster import clock, objects, shared_certs
from kubeup.cluster.amid_rotation import CERTS, PATH, unreadable
from kubeup.cluster.amid_rotation import NAME as NAME
from kubeup.cluster.amid_rotation import Rotation as Rotation
from kubeup.cluster.amid_rotation import read as read
from kubeup.cluster.api import AlreadyExists, Api, ApiRefused, Object, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.node.private_keys import Key
from kubeup.node.rotated_pairs import DROP, TRUST, USE, Pair
from kubeup.secret import Secret

ANNOTATION = "kb.io/rotation"
WITH_WORKERS = ("cluster",)
"""What every node's kubelet trusts, so that workers take part."""
RIGHTS = "rbac/rotation.yaml"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_SECRET = path_of("Secret", NAME, namespace=objects.SYSTEM)
_PURPOSE = b"kb rotation"
_KEY = "pairs"


def _render(one: Rotation) -> Object:
    data = {"what": one.what, "stage": one.stage, "former": one.former, "following": one.following, "used": one.used}
    return objects.render_config_map(
        NAME, {**data, **dict(zip(CERTS, one.certs)), "undo": "true" if one.is_undo else ""}
    )


# ---- the pairs, sealed


def derive_seal(keys: Sequence[Key]) -> Secret:
    """The key that seals the pairs: derived from these private keys, which all control planes share."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    texts = sorted(key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption()) for key in keys)
    return Secret(hmac.new(_PURPOSE, b"".join(texts), hashlib.sha256).hexdigest())


def seal(api: Api, pairs: Sequence[Pair], *, key: Secret) -> tuple[Pair, ...]:
    """Keep the pairs in the cluster, unless those of a run that was cut off are there, or another control plane was faster; returns what is
    kept. Raises ClusterError (rotation-sealed), ApiRefused, Unreachable."""
    text = json.dumps({one.id: {"key": one.key_pem.reveal(), "cert": one.cert_pem} for one in pairs})
    data = {_KEY: base64.b64encode(shared_certs.encrypt(text.encode(), key)).decode()}
    made = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": objects.SYSTEM}, "data": data}
    found = api.get(_SECRET)
    if found is not None:
        with contextlib.suppress(ClusterError):
            kept = _open(found, key)
            if pairs[0].id in kept and len(kept) == len(pairs):
                return tuple(kept.values())
        api.delete(_SECRET)  # of another rotation, whose ConfigMap is gone
    with contextlib.suppress(AlreadyExists):
        api.create(made)
        return tuple(pairs)
    return tuple(_open(api.get(_SECRET), key).values())


def unseal(api: Api, one: Rotation, *, key: Secret) -> tuple[Pair, Pair]:
    """(the former pair, the following one). Raises ClusterError (rotation-sealed, rotation-unreadable), ApiRefused, Unreachable."""
    kept = _open(api.get(_SECRET), key)
    if one.former not in kept or one.following not in kept:
        raise unreadable(f"Secret kube-system/{NAME} does not hold the keys that ConfigMap {NAME} names")
    return kept[one.former], kept[one.following]


def _open(found: Optional[Object], key: Secret) -> dict[str, Pair]:
    if found is None:
        raise unreadable(f"Secret kube-system/{NAME} is not there, which holds the keys")
    try:
        data = base64.b64decode(str((found.get("data") or {}).get(_KEY) or ""), validate=True)
        text = shared_certs.decrypt(data, key)
        shown = parse_json(text, "the pairs")
    except (binascii.Error, ValueError) as error:
        raise unreadable(f"Secret kube-system/{NAME} does not hold what kb wrote") from error
    except ClusterError as error:
        raise ClusterError(
            f"Secret kube-system/{NAME} cannot be opened on this control plane",
            cause="it is sealed with the private keys that control planes share, and those of this one are others",
            remedy="compare them with another control plane's: sha256sum /etc/kubernetes/pki/*.key /etc/kubernetes/pki/etcd/ca.key",
            code="rotation-sealed",
        ) from error
    if not isinstance(shown, Mapping):
        raise unreadable(f"Secret kube-system/{NAME} does not hold what kb wrote")
    return {str(name): Pair(Secret(str(pair["key"])), str(pair["cert"])) for name, pair in shown.items()}


def withdraw_shared(api: Api) -> bool:
    """Remove what was uploaded for control planes that join (--upload-certs): one that joined with it would refuse the following pair, or
    accept the former one for ever. Returns whether there was any. Raises ApiRefused, Unreachable."""
    return api.delete(path_of("Secret", shared_certs.SECRET_NAME, namespace=objects.SYSTEM))


# ---- the stages


def begin(api: Api, one: Rotation) -> Rotation:
    """Begin it, or take up what another control plane began in the same moment. Raises ApiRefused, Unreachable."""
    objects.apply_objects(api, objects.load_objects(RIGHTS))
    with contextlib.suppress(AlreadyExists):
        api.create(_render(one))
    return read(api) or one


def advance(api: Api, one: Rotation, *, stage: str) -> Rotation:
    """Begin the next stage. Raises ApiRefused (409 if another control plane has changed it meanwhile), Unreachable."""
    return _replace(api, one, after=replace(one, stage=stage))


def note_used(api: Api, one: Rotation) -> Rotation:
    """Write down that from now on nobody uses the former one. Raises as advance does."""
    return one if one.used else _replace(api, one, after=replace(one, used=moments.show(read_time(api))))


def read_time(api: Api) -> datetime.datetime:
    """What time it is for the API server. Raises Unreachable."""
    now = api.host.now()
    return now + datetime.timedelta(seconds=clock.measure_skew(api.probe_health(), now))


def turn_round(api: Api, one: Rotation) -> Rotation:
    """Have the two pairs change their parts. Nobody uses the following one in the first stage, so that it only has to be forgotten. Raises
    as advance does."""
    stage = DROP if one.stage == TRUST else USE
    turned = Rotation(
        one.what, stage, one.following, one.former, is_undo=not one.is_undo, certs=tuple(reversed(one.certs))
    )
    return _replace(api, one, after=turned)


def _replace(api: Api, before: Rotation, *, after: Rotation) -> Rotation:
    body = _render(after)
    body["metadata"]["resourceVersion"] = before.version
    api.replace(body)
    return read(api) or after


def is_sealed(api: Api) -> bool:
    """Whether the keys are still kept. Raises ApiRefused, Unreachable."""
    return api.get(_SECRET) is not None


def end(api: Api, nodes: Mapping[str, str], *, what: str) -> None:
    """Forget it, and first of all the former private key. nodes: name -> annotation; one that is left is of no rotation any more. Raises
    ApiRefused, Unreachable."""
    api.delete(_SECRET)
    for obj in reversed(objects.load_objects(RIGHTS)):
        api.delete(api.object_path(obj))
    api.delete(PATH)
    forget_marks(api, nodes)


def forget_marks(api: Api, nodes: Mapping[str, str]) -> None:
    """Remove the annotations, which a run that was cut off at its very end has left. Raises ApiRefused, Unreachable."""
    for name in (name for name, mark in nodes.items() if mark):
        try:
            _annotate(api, name, text=None)
        except ApiRefused as error:
            if error.http_status != 404:  # the node has left meanwhile
                raise


# ---- who has acknowledged


def acknowledge(api: Api, one: Rotation, *, node: str) -> None:
    """Raises ApiRefused, Unreachable."""
    _annotate(api, node, text=one.mark)


def _annotate(api: Api, node: str, *, text: Optional[str]) -> None:
    api.patch(path_of("Node", node), {"metadata": {"annotations": {ANNOTATION: text}}})


@frozen
class Taker:
    """A node that may have to take part. mark: what it has acknowledged last."""

    mark: str
    is_control_plane: bool


def read_takers(api: Api) -> dict[str, Taker]:
    """Every node. Control planes are those too that are not labelled, and run an API server. Raises ApiRefused, Unreachable."""
    pods = api.list(path_of("Pod", namespace=objects.SYSTEM), label="component=kube-apiserver,tier=control-plane")
    running = {str((pod.get("spec") or {}).get("nodeName") or "") for pod in pods}
    return {
        str(node["metadata"]["name"]): Taker(
            read_mark(node),
            CONTROL_PLANE in (node["metadata"].get("labels") or {}) or node["metadata"]["name"] in running,
        )
        for node in api.list(path_of("Node"))
    }


def read_mark(node: Object) -> str:
    return str((node["metadata"].get("annotations") or {}).get(ANNOTATION) or "")


def read_marks(api: Api, what: str) -> dict[str, str]:
    """Node that takes part in a rotation of this -> what it has acknowledged last. Raises ApiRefused, Unreachable."""
    is_wanted = what in WITH_WORKERS
    return {name: one.mark for name, one in read_takers(api).items() if is_wanted or one.is_control_plane}


def find_left(one: Rotation, marks: Mapping[str, str]) -> list[str]:
    """The nodes that have not acknowledged this stage."""
    return sorted(name for name, mark in marks.items() if mark != one.mark)
