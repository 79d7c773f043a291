"""Where the cluster's authority is told to clients, besides the files of nodes: what has the former one, what lacks the following one.

Sources: pkg/controller/certificates/rootcacertpublisher (ConfigMap kube-root-ca.crt of each namespace), pkg/controller/serviceaccount/
tokens_controller.go (ca.crt in Secrets with a token): the controller-manager writes both from its --root-ca-file. Webhooks, aggregated APIs
and conversions have what somebody wrote into them. kubeadm has no counterpart.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from cryptography import x509

from kubeup.addresses import host_of, port_of
from kubeup.cluster.account_tokens import ROOT_CA
from kubeup.cluster.api import Api, ApiRefused, Object, path_of
from kubeup.cluster.objects import PUBLIC, apply_cluster_info
from kubeup.frozen_values import frozen
from kubeup.machine.http import Tls, Unreachable
from kubeup.node import certificates, kubeconfig
from kubeup.node.rotated_pairs import render_where_known
from kubeup.trust import Anchors

INFO = "cluster-info"
ASK_S = 5.0
Certs = Sequence[x509.Certificate]


# ---- what the controller-manager publishes


def find_wrong(api: Api, *, wanted: Certs, unwanted: Certs = ()) -> Iterator[str]:
    """Each ConfigMap kube-root-ca.crt, and Secret with a token of a service account, that lacks one of the wanted authorities or has one of the
    others, in words. Raises ApiRefused, Unreachable."""
    maps = api.list(path_of("ConfigMap"), field=f"metadata.name={ROOT_CA}")
    for one in maps:
        text = str((one.get("data") or {}).get("ca.crt") or "")
        yield from _judge(f"ConfigMap {_name(one)}", text, wanted=wanted, unwanted=unwanted)
    for one in api.list(path_of("Secret"), field="type=kubernetes.io/service-account-token"):
        text = _decode(str((one.get("data") or {}).get("ca.crt") or ""))
        yield from _judge(f"Secret {_name(one)}", text, wanted=wanted, unwanted=unwanted)


def _judge(place: str, text: str, *, wanted: Certs, unwanted: Certs) -> Iterator[str]:
    certs = certificates.parse_shown(text)
    if any(one not in certs for one in wanted):
        yield f"{place} lacks the new one"
    elif any(one in certs for one in unwanted):
        yield f"{place} still has the former one"


def _name(obj: Object) -> str:
    return f"{obj['metadata'].get('namespace')}/{obj['metadata']['name']}"


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text).decode(errors="replace")
    except (ValueError, binascii.Error):
        return ""


# ---- cluster-info, which joining nodes read


def publish(api: Api, *, former: str, following: str, stage: str) -> str:
    """Have cluster-info tell the authorities of a stage (certificates, PEM); the controller-manager signs it again. Returns the kubeconfig in it;
    "" if there is none. Raises ApiRefused, Unreachable, HostError (kubeconfig-unreadable)."""
    found = api.get(path_of("ConfigMap", INFO, namespace=PUBLIC))
    text = str(((found or {}).get("data") or {}).get("kubeconfig") or "")
    if found is None or not text:
        return ""
    present = kubeconfig.parse_kubeconfig(text, source=f"in ConfigMap {INFO}").ca_pem
    return _tell_joining(api, text, wanted=render_where_known(present, former=former, following=following, stage=stage))


def replace_ended(api: Api, ca_pem: str) -> None:
    """Have cluster-info tell these authorities if all that it tells have ended. Raises ApiRefused, Unreachable, HostError
    (kubeconfig-unreadable)."""
    text = str(read_signatures(api).get("kubeconfig") or "")
    present = kubeconfig.parse_kubeconfig(text, source=f"in ConfigMap {INFO}").ca_pem if text else ""
    told = certificates.parse_shown(present)
    if told and all(certificates.is_expired(one, api.host.now()) for one in told):
        _tell_joining(api, text, wanted=ca_pem)


def _tell_joining(api: Api, text: str, *, wanted: str) -> str:
    changed = kubeconfig.with_authorities(text, wanted, source=f"in ConfigMap {INFO}")
    meta = {"name": INFO, "namespace": PUBLIC}
    apply_cluster_info(
        api, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"kubeconfig": changed}}
    )
    return changed


def read_signatures(api: Api) -> Mapping[str, str]:
    """The data of cluster-info, the kubeconfig and its signatures. Raises ApiRefused, Unreachable."""
    return dict((api.get(path_of("ConfigMap", INFO, namespace=PUBLIC)) or {}).get("data") or {})


# ---- what an API server shows


def find_distrust(api: Api, cert_pem: str) -> str:
    """Why a client that trusts this authority alone does not trust the API server, in words; "" if it does. Raises Unreachable if the server
    cannot be asked at all."""
    tls = Tls(Anchors.given(cert_pem), server_name=api.identity.tls.server_name, proxy=api.identity.tls.proxy)
    try:  # a kept connection would have seen the certificate of before
        api.host.http_get(f"{api.server}/version", tls=tls, headers={"Connection": "close"}, timeout_s=ASK_S)
    except Unreachable as error:
        if error.reason != "tls":
            raise
        return error.cause
    return ""


def find_deaf_kubelet(api: Api, node: str) -> str:
    """Why the kubelet of this node does not take a call of the API server, in words; "" if it does. Raises Unreachable."""
    answer = api.read_page(f"/api/v1/nodes/{node}/proxy/healthz", timeout_s=ASK_S, max_bytes=1 << 20)
    told = " ".join(answer.body.decode(errors="replace").split())[:200]
    return "" if answer.status == 200 else f"the API server answers HTTP {answer.status} for it: {told}"


# ---- what others wrote into their objects


@frozen
class Bundle:
    """A caBundle. title: in words; path: the object's; pointer: of the field (RFC 6901); client: the clientConfig, or an APIService's spec."""

    title: str
    path: str
    pointer: str
    pem: str
    client: Mapping[str, Any]

    def has(self, cert: x509.Certificate) -> bool:
        return cert in certificates.parse_shown(self.pem)


_WEBHOOKS = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")


def read_bundles(api: Api) -> Iterator[Bundle]:
    """Every caBundle of webhooks, aggregated APIs and conversions. Raises ApiRefused, Unreachable."""
    for kind in _WEBHOOKS:
        for one in _list(api, kind):
            for number, hook in enumerate(one.get("webhooks") or ()):
                yield from _bundle(one, f"webhook {hook.get('name')}", kind=kind, client=hook.get("clientConfig"),
                                   at=f"/webhooks/{number}/clientConfig")  # fmt: skip
    for one in _list(api, "APIService"):
        yield from _bundle(one, "the aggregated API", kind="APIService", client=one.get("spec"), at="/spec")
    for one in _list(api, "CustomResourceDefinition"):
        hook = ((one.get("spec") or {}).get("conversion") or {}).get("webhook") or {}
        yield from _bundle(one, "the conversion", kind="CustomResourceDefinition", client=hook.get("clientConfig"),
                           at="/spec/conversion/webhook/clientConfig")  # fmt: skip


def _list(api: Api, kind: str) -> list[Object]:
    try:
        return api.list(path_of(kind))
    except ApiRefused as error:
        if error.http_status != 404:
            raise
        return []


def _bundle(obj: Object, what: str, *, kind: str, client: Any, at: str) -> Iterator[Bundle]:
    data = client.get("caBundle") if isinstance(client, dict) else None
    if data:
        name = str(obj["metadata"]["name"])
        yield Bundle(f"{what} of {kind} {name}", path_of(kind, name), f"{at}/caBundle", _decode(str(data)), client)


def rewrite(api: Api, bundle: Bundle, *, former: str, following: str, stage: str) -> bool:
    """Have a caBundle with one of the authorities hold those of a stage; returns whether it did not. What somebody else changes in the same
    moment is not overwritten. Raises ApiRefused, Unreachable."""
    wanted = render_where_known(bundle.pem, former=former, following=following, stage=stage)
    if set(certificates.parse_shown(wanted)) == set(certificates.parse_shown(bundle.pem)):
        return False
    before, after = (base64.b64encode(text.encode()).decode() for text in (bundle.pem, wanted))
    steps = [
        {"op": "test", "path": bundle.pointer, "value": before},
        {"op": "replace", "path": bundle.pointer, "value": after},
    ]
    api.patch(bundle.path, steps, kind="json")
    return True


def read_server(api: Api, bundle: Bundle) -> Optional[x509.Certificate]:
    """The certificate that the server shows which is called with this caBundle; None if it cannot be asked from here. Raises ApiRefused,
    Unreachable from the cluster's API server."""
    place = _find_place(api, bundle.client)
    pem = api.host.served_cert(*place) if place is not None else None
    return next(iter(certificates.parse_shown(pem)), None) if pem else None


def _find_place(api: Api, client: Mapping[str, Any]) -> Optional[tuple[str, int]]:
    url, service = str(client.get("url") or ""), client.get("service") or {}
    if url.startswith("https://"):
        place = url[8:].partition("/")[0]
        return host_of(place), port_of(place, 443)
    if not service.get("name"):
        return None
    found = api.get(path_of("Service", str(service["name"]), namespace=str(service.get("namespace") or "default")))
    address = str(((found or {}).get("spec") or {}).get("clusterIP") or "")
    return (address, int(service.get("port") or 443)) if address and address != "None" else None
