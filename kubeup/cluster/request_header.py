"""The front proxy: whom an API server lets speak for others, as the extension API servers behind it learn it too.

Whether an authority is accepted is tried: a client certificate that it signed says in headers that somebody calls, and the API server
tells whom it takes the caller for. Sources: apiserver/pkg/authentication/request/headerrequest, pkg/controlplane/controller/
clusterauthenticationtrust (it only ever adds to the ConfigMap), kube-aggregator/pkg/controllers/status/remote (when an APIService is Available).
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeup.cluster.account_tokens import ASK_S, REVIEW
from kubeup.cluster.api import Api, ApiRefused, Identity, path_of
from kubeup.json_text import parse_json
from kubeup.machine.http import Tls
from kubeup.node import cert_specs
from kubeup.node.certificates import Ca, Subject, cert_to_pem, issue_leaf_cert, parse_certs, plan_validity
from kubeup.node.private_keys import generate_key, key_to_pem
from kubeup.node.rotated_pairs import Pair, Place
from kubeup.trouble import Trouble

CONFIG = "extension-apiserver-authentication"
"""The ConfigMap in kube-system from which extension API servers learn whom to trust."""
KEY, CLIENT_KEY = "requestheader-client-ca-file", "client-ca-file"
"""Where it holds the authorities of the front proxy, and those of all other clients."""
CALLER = "kb-front-proxy-check"
"""Who is said to call. No such user has any rights."""
TRIAL_CERT_S = 600
"""How long the certificate lives with which an API server is called: it is never written anywhere."""
_PATH = path_of("ConfigMap", CONFIG, namespace="kube-system")


def find_refusal(api: Api, pair: Pair, *, place: Place) -> str:
    """Why the API server does not let who has a certificate of this authority speak for others, in words; "" if it does. Raises
    Unreachable."""
    name = cert_specs.CERTS["front-proxy-client"].common_name
    return try_client(api, pair, place=place, name=name, caller=CALLER)


def try_client(api: Api, pair: Pair, *, place: Place, name: str, caller: str = "") -> str:
    """Why the API server refuses a client of this name with a certificate of this authority, in words; "" if it takes it for `caller`: for that
    name itself where none is said. Raises Unreachable."""
    ca, now = Ca(pair.cert, pair.key, place.public), api.host.now()
    key = generate_key("ECDSA-P256")
    cert = issue_leaf_cert(Subject(name, is_client=True), key, ca=ca, validity=plan_validity(now, TRIAL_CERT_S))
    own = api.identity.tls
    tls = Tls(own.ca, cert_to_pem(cert), key_to_pem(key), own.server_name, own.proxy)
    client = Api(api.host, Identity(api.server, tls), retry_s=0)
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = client.ask(REVIEW, body, timeout_s=ASK_S, headers={"X-Remote-User": caller} if caller else None)
    if (caller or name) in answer.body.decode(errors="replace") and answer.status in (200, 201, 403):
        return ""
    try:
        found = parse_json(answer.body, "the answer")
    except ValueError:
        found = {}
    told = str(found.get("message") or "") if isinstance(found, dict) else ""
    return f"it answers HTTP {answer.status}{f': {told[:200]}' if told else ''}"


def is_published(api: Api, pair: Pair, *, key: str = KEY) -> bool:
    """Whether extension API servers are told to accept this authority. Raises ApiRefused, Unreachable."""
    found = api.get(_PATH) or {}
    text = str((found.get("data") or {}).get(key) or "")
    return bool(text) and pair.cert in parse_certs(text)


def withdraw(api: Api, pair: Pair, *, key: str = KEY) -> bool:
    """Have extension API servers accept this authority no more; returns whether they were told to. Raises ApiRefused, Unreachable."""
    found = api.get(_PATH) or {"metadata": {}}
    text = str((found.get("data") or {}).get(key) or "")
    certs = parse_certs(text) if text else ()
    if pair.cert not in certs:
        return False
    kept = "".join(cert_to_pem(cert) for cert in certs if cert != pair.cert)
    version = found["metadata"].get("resourceVersion")
    api.patch(_PATH, {"metadata": {"resourceVersion": version}, "data": {key: kept}})
    return True


def find_unavailable(api: Api) -> list[Trouble]:
    """The aggregated APIs that do not answer. Raises ApiRefused, Unreachable."""
    try:
        services = api.list("/apis/apiregistration.k8s.io/v1/apiservices")
    except ApiRefused as error:
        if error.http_status != 404:
            raise
        return []
    found = []
    for one in services:
        if not (one.get("spec") or {}).get("service"):
            continue
        conditions = (one.get("status") or {}).get("conditions") or ()
        available: Mapping[str, str] = next((entry for entry in conditions if entry.get("type") == "Available"), {})
        if available.get("status") != "True":
            name = str(one["metadata"]["name"])
            cause = str(available.get("message") or "nothing is said of it")
            found.append(
                Trouble(
                    f"the aggregated API {name} does not answer", cause, f"see why: kubectl describe apiservice {name}"
                )
            )
    return found
