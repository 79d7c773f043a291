"""Tokens of service accounts: which key signs them, which keys an API server accepts, and who may still hold one of the former key.

Whether a key is accepted is tried: an API server gives out a token, its claims are signed again with the key in question, and each API
server is asked whom it takes the bearer for. Sources: pkg/serviceaccount/jwt.go (kid, algorithms), pkg/kubelet/token/token_manager.go (when
a pod's token is renewed), plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy.go (system:basic-user may create selfsubjectreviews).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from kubeup import moments
from kubeup.cluster.api import Api, Identity, Object, path_of
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.machine.http import Tls
from kubeup.node.private_keys import Key, spki
from kubeup.secret import Secret

ACCOUNT = "/api/v1/namespaces/kube-system/serviceaccounts/default"
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
ROOT_CA = "kube-root-ca.crt"
"""The ConfigMap with the cluster's authority that is in each namespace."""
ASK_S = 10.0
TOKEN_S = 600
"""How long a token lives that is asked for to look at it: the least that may be asked for."""
MOST_AGE_S = 24 * 3600
"""After which age the kubelet renews a pod's token at the latest (maxTTL)."""
DEFAULT_LIFE_S = 3607
"""How long the token lives that every pod has by default (pkg/serviceaccount WarnOnlyBoundTokenExpirationPeriod)."""
NOTICE_S = 300
"""How much longer a pod may take to have the renewed token, and its client to have read it: the kubelet's next sync of the pod and the
minute of client-go, with room."""
_STALE = re.compile(rb"^serviceaccount_stale_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
_METRICS_BYTES = 64 << 20


# ---- tokens and keys


def kid_of_key(key: Key) -> str:
    """What a token says of the key that signed it."""
    return _encode(hashlib.sha256(spki(key.public_key())).digest())


def kid_of_token(token: Secret) -> str:
    """The same, as a token says it; "" if it is none that can be read."""
    try:
        head = parse_json(_decode(token.reveal().partition(".")[0]), "the token")
    except (ValueError, binascii.Error):
        return ""
    return str(head.get("kid", "")) if isinstance(head, dict) else ""


def request_token(api: Api) -> Secret:
    """A token that this API server signs now. Raises ClusterError (token-not-given), Unreachable."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_S}}
    status, found = _ask(api, f"{ACCOUNT}/token", body)
    given = found.get("status") if isinstance(found, dict) else None  # of a refusal it is the word "Failure"
    token = given.get("token") if isinstance(given, dict) else ""
    if status < 300 and token:
        return Secret(str(token))
    raise ClusterError(
        f"the API server at {api.server} gives out no token",
        cause=f"it answers HTTP {status}: {_message(found)}",
        remedy=f"see why: kubectl --server {api.server} -n kube-system create token default",
        code="token-not-given",
    )


def sign_again(token: Secret, key: Key) -> Secret:
    """The same claims, signed with another key."""
    claims = token.reveal().split(".")[1]
    head = {"alg": _algorithm(key), "kid": kid_of_key(key)}
    text = f"{_encode(json.dumps(head).encode())}.{claims}"
    return Secret(f"{text}.{_encode(_sign(key, text.encode()))}")


def _algorithm(key: Key) -> str:
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else f"ES{key.key_size}"


def _sign(key: Key, data: bytes) -> bytes:
    """As RFC 7518, section 3.3 and 3.4, want it."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    size = key.key_size // 8
    numbers = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256() if size == 32 else hashes.SHA384())))
    return b"".join(number.to_bytes(size, "big") for number in numbers)


def find_refusal(api: Api, token: Secret) -> str:
    """Why the API server does not take the bearer of the token for a service account, in words; "" if it does. Raises Unreachable."""
    tls = Tls(api.identity.tls.ca, server_name=api.identity.tls.server_name, proxy=api.identity.tls.proxy)
    client = Api(api.host, Identity(api.server, tls, token), retry_s=0)
    status, found = _ask(client, REVIEW, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    return "" if status < 300 or status == 403 else f"it answers HTTP {status}: {_message(found)}"


def _ask(api: Api, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:  # noqa: PLR0917
    """(HTTP status, the answer). Raises Unreachable."""
    answer = api.ask(path, body, timeout_s=ASK_S)
    try:
        return answer.status, parse_json(answer.body, "the answer")
    except ValueError:
        return answer.status, {}


def _message(found: Any) -> str:
    return str(found.get("message") or "it says nothing")[:200] if isinstance(found, dict) else "it says nothing"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# ---- who may still hold a token of the former key


@frozen
class Holder:
    """A pod that may still hold a token of before. until: when it has another one at the latest. owner: `Deployment app/web`, what restarts
    it; "" if nothing does."""

    pod: str
    until: datetime.datetime
    owner_kind: str = ""
    owner: str = ""


def find_holders(api: Api, *, since: datetime.datetime, now: datetime.datetime) -> list[Holder]:
    """The pods that have run since before `since`, when the former key signed a token last, and whose token may not have been renewed yet;
    both times are the API server's. Raises ApiRefused, Unreachable."""
    found = []
    for pod in api.list(path_of("Pod")):
        meta, status = pod["metadata"], pod.get("status") or {}
        made = moments.find(str(meta.get("creationTimestamp") or "")) or since
        life_s = _longest_life(pod)
        until = since + datetime.timedelta(seconds=min(0.8 * life_s, MOST_AGE_S) + NOTICE_S)
        is_over = status.get("phase") in ("Succeeded", "Failed")
        if life_s and made <= since and until > now and not is_over:
            kind, name = _owner_of(api, pod)
            found.append(Holder(f"{meta.get('namespace')}/{meta['name']}", until, kind, name))
    return found


def find_older(api: Api, *, since: datetime.datetime) -> list[Holder]:
    """The pods that have run since before `since` and read the cluster's authority from a volume: their clients may have read it when they
    started, and never again (client-go before 1.36, kk119483). Raises ApiRefused, Unreachable."""
    found = []
    for pod in api.list(path_of("Pod")):
        meta, status = pod["metadata"], pod.get("status") or {}
        made = moments.find(str(meta.get("creationTimestamp") or "")) or since
        if made <= since and status.get("phase") not in ("Succeeded", "Failed") and _reads_authority(pod):
            kind, name = _owner_of(api, pod)
            found.append(Holder(f"{meta.get('namespace')}/{meta['name']}", since, kind, name))
    return found


def _reads_authority(pod: Object) -> bool:
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    sources = [source for volume in volumes for source in (volume.get("projected") or {}).get("sources") or ()]
    maps = [volume.get("configMap") or {} for volume in volumes] + [source.get("configMap") or {} for source in sources]
    return any(one.get("name") == ROOT_CA for one in maps)


def _longest_life(pod: Object) -> int:
    """For how long the token of a pod lives that lives longest, in seconds; 0 if it has none."""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    sources = (source for volume in volumes for source in (volume.get("projected") or {}).get("sources") or ())
    tokens = (source["serviceAccountToken"] for source in sources if source.get("serviceAccountToken"))
    return max((int(one.get("expirationSeconds") or DEFAULT_LIFE_S) for one in tokens), default=0)


def _owner_of(api: Api, pod: Object) -> tuple[str, str]:
    """(kind, namespace/name) of what makes the pod anew with another template; ("", "") if nothing does."""
    owner = _controller(pod)
    if owner is None:
        return "", ""
    kind, name, space = str(owner["kind"]), str(owner["name"]), str(pod["metadata"].get("namespace"))
    if kind == "ReplicaSet":
        found = api.get(f"/apis/apps/v1/namespaces/{space}/replicasets/{name}")
        owner = _controller(found) if found else None
        if owner is None:
            return "", ""
        kind, name = str(owner["kind"]), str(owner["name"])
    return (kind, f"{space}/{name}") if kind in WORKLOADS else ("", "")


WORKLOADS: Mapping[str, str] = {"Deployment": "deployments", "DaemonSet": "daemonsets", "StatefulSet": "statefulsets"}


def path_of_workload(kind: str, owner: str) -> str:
    space, _, name = owner.partition("/")
    return f"/apis/apps/v1/namespaces/{space}/{WORKLOADS[kind]}/{name}"


def _controller(obj: Object) -> Optional[Mapping[str, Any]]:
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((one for one in owners if one.get("controller")), None)


def find_secrets(api: Api, *, kid: str) -> Iterator[str]:
    """`namespace/name` of the Secrets with a token that the key of this kid signed, and that never ends. Raises ApiRefused, Unreachable."""
    for secret in api.list(path_of("Secret"), field="type=kubernetes.io/service-account-token"):
        try:
            token = base64.b64decode(str((secret.get("data") or {}).get("token") or "")).decode()
        except ValueError:
            continue
        # the controller-manager wrote no kid before Kubernetes 1.11, and whatever has none is of the former key
        if token and kid_of_token(Secret(token)) in (kid, ""):
            yield f"{secret['metadata'].get('namespace')}/{secret['metadata']['name']}"


def count_stale(api: Api) -> int:
    """How many calls this API server has got, since its start, with tokens that a kubelet had renewed long before: their clients never read
    the file again. 0 if it does not say. Raises Unreachable."""
    answer = api.read_page("/metrics", timeout_s=ASK_S, max_bytes=_METRICS_BYTES)
    return sum(int(float(found)) for found in _STALE.findall(answer.body)) if answer.status == 200 else 0
