"""How a node that joins finds its cluster, learns to trust it, and is trusted: discovery and the TLS bootstrap.

By a token (an unproven connection, a signature that only the token's holders can make, a pin of the CA, then a proven
connection), by a kubeconfig file, or by one behind an https URL. Owns the errors of all that: each names what was
seen and the one command that helps. Only looks; never sends a token over a connection that is not proven. Knows no
phase. Mirrors cmd/kubeadm/app/discovery/{token,file,https}.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import email.utils
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.cluster import api as kubeapi
from kubeup.cluster import tokens
from kubeup.cluster.api import path_of
from kubeup.config import token_text
from kubeup.config.pins import parse_ca_cert_hash
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, LoadBalancer, PodNetwork, Timeouts
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazy_import
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, HttpResponse, Tls, Unreachable
from kubeup.node.credential_plugin import resolve_credentials
from kubeup.node.kubeconfig import Kubeconfig, parse_kubeconfig, read_kubeconfig, render_kubeconfig
from kubeup.secret import Secret
from kubeup.trust import Anchors, Offered

if TYPE_CHECKING:
    from kubeup.cluster import objects
    from kubeup.node import certificates
else:
    objects = lazy_import("kubeup.cluster.objects")
    certificates = lazy_import("kubeup.node.certificates")

CLUSTER_INFO = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
FIRST_RETRIES_S = (0.1, 0.2, 0.2, 0.5, 0.5, 1.0)
"""A token that was made a moment ago is signed within a second; nothing tells when, since its holder may not watch."""
RETRY_S = 2.0
SETTLE_S = 15.0
"""How long what should come right in a moment is waited for: a new token's signature, a name that does not resolve."""
MAX_SKEW_S = 300.0
"""Certificates are back-dated by this much: a clock that is further behind takes them for not valid yet."""
TOKEN_USER = "tls-bootstrap-token-user"  # noqa: S105
TOKEN_CONTEXT = "tls-bootstrap-token-user@kubernetes"  # noqa: S105
_NEW_TOKEN = "on a control plane: kb token create --print-join-command"  # noqa: S105

_NO_BALANCER = LoadBalancer()
_MAX_KUBECONFIG = 1 << 16
"""Bytes of cluster-info's kubeconfig: an address and some certificates. It is read before anything is proven."""

Tell = Callable[[str], None]


@frozen
class Access:
    """A cluster that is trusted, and who this node is to it."""

    server: str
    ca: Optional[Anchors]
    """None: whom the system believes (a discovery file without an authority)."""
    token: Secret = kubeapi.NO_TOKEN
    user: str = TOKEN_USER
    client_cert_pem: str = ""
    client_key_pem: Secret = kubeapi.NO_TOKEN
    skew_s: float = 0.0
    """By how much the server's clock is ahead of this node's."""
    is_member: bool = False
    """The identity is the kubelet's own: this node has joined."""
    has_signed: bool = False
    """cluster-info bears a signature made with the token: the cluster knew it at some time."""
    notes: tuple[str, ...] = ()
    asked: str = ""
    """The server that answered discovery: the command line's, where cluster-info names another."""
    tls_server_name: str = ""
    """The name that the server proves, where that is not its address."""
    proxy_url: str = ""
    """The proxy that leads to the server: a discovery file's."""

    @property
    def ca_pem(self) -> str:
        return self.ca.pem if self.ca else ""

    @property
    def identity(self) -> kubeapi.Identity:
        cert, key = self.client_cert_pem or None, self.client_key_pem or None
        tls = Tls(self.ca, cert, key, self.tls_server_name, self.proxy_url)
        return kubeapi.Identity(self.server.rstrip("/"), tls, self.token)

    def render_bootstrap_kubeconfig(self, cluster_name: str) -> Secret:
        """The text of bootstrap-kubelet.conf."""
        return Secret(
            render_kubeconfig(
                server=self.server,
                ca_pem=self.ca_pem,
                user=self.user,
                cluster_name=cluster_name,
                token=self.token,
                client_cert_pem=self.client_cert_pem,
                client_key_pem=self.client_key_pem,
                context=TOKEN_CONTEXT if self.token else "",
                tls_server_name=self.tls_server_name,
                proxy_url=self.proxy_url,
            )
        )


@frozen
class _Trouble:
    """Why discovery is not there yet, and how long that may last before it is the end."""

    error: KbError
    patience_s: float


_FOR_EVER = float("inf")


def discover_cluster(host: Host, wanted: Discovery, timeouts: Timeouts, *, tell: Tell, note: Tell) -> Access:
    """Find the cluster as the configuration says.

    tell: what is waited for right now. note: said once, when waiting begins. Raises ClusterError (see the codes
    below), UsageError (discovery-no-credentials), HostError (kubeconfig-unreadable).
    """
    patience = _Patience(host, timeouts.discovery_s, tell, note)
    if wanted.bootstrap_token:
        return _discover_by_token(host, wanted.bootstrap_token, wanted.tls_bootstrap_token, patience)
    return _discover_by_file(host, wanted.file, wanted.tls_bootstrap_token, patience)


class _Patience:
    """Asks again until an answer is good, or cannot become good any more."""

    def __init__(self, host: Host, timeout_s: float, tell: Tell, note: Tell) -> None:
        self.host, self.timeout_s, self.tell, self.note = host, timeout_s, tell, note

    def until(self, look: Callable[[], Optional[_Trouble]]) -> None:
        started, told = self.host.monotonic(), ""
        for pause_s in itertools.chain(FIRST_RETRIES_S, itertools.repeat(RETRY_S)):
            trouble = look()
            if trouble is None:
                return
            elapsed = self.host.monotonic() - started
            limit = min(trouble.patience_s, self.timeout_s)
            if elapsed + pause_s > limit:
                raise trouble.error
            self.tell(f"discovery: {elapsed:.0f} s of {limit:.0f} s; {trouble.error}")
            if trouble.error.what != told and elapsed >= sum(FIRST_RETRIES_S[:4]):
                told = trouble.error.what
                self.note(f"{trouble.error}. Remedy: {trouble.error.remedy} (kb goes on trying for {limit:.0f} s)")
            self.host.sleep(pause_s)


# ---- by token


def _discover_by_token(host: Host, wanted: BootstrapTokenDiscovery, tls_token: Secret, patience: _Patience) -> Access:
    """Both directions of trust: only who holds the token can have signed, and only the pinned CA can have answered."""
    server = f"https://{wanted.api_server_endpoint}"
    seen: dict[str, Any] = {}

    def look() -> Optional[_Trouble]:
        try:
            answer = host.http_get(server + CLUSTER_INFO, tls=UNPROVEN)
        except Unreachable as error:
            return judge_unreachable(error, wanted.api_server_endpoint)
        seen["skew_s"] = measure_skew(answer, host.now())
        data = _read_cluster_info(answer, server)
        if isinstance(data, _Trouble):
            return data
        seen["text"] = str(data.get("kubeconfig", ""))
        return _check_cluster_info(host, server, data, wanted)

    patience.until(look)
    text: str = seen["text"]
    skew_s: float = seen["skew_s"]
    found = parse_kubeconfig(text, source=f"in ConfigMap kube-public/cluster-info at {server}")
    offered = Offered(found.ca_pem)
    if wanted.ca_cert_hashes:
        pinned = certificates.keep_pinned(offered, wanted.ca_cert_hashes)
        assert pinned is not None  # _check_cluster_info has seen to it
        _check_again(host, server, pinned, text, skew_s)
    else:
        patience.note(
            "the cluster's authority is not pinned (--discovery-token-unsafe-skip-ca-verification): whoever knows the token can "
            "pass for the cluster, every node that joins with it included"
        )
    token = tls_token or wanted.token
    return Access(
        found.server, Anchors.vouched(offered), token, skew_s=skew_s, has_signed=token == wanted.token, asked=server
    )


def _read_cluster_info(answer: HttpResponse, server: str) -> Any:
    """The data of ConfigMap cluster-info, or the trouble."""
    body = _json(answer)
    where = f"{server}{CLUSTER_INFO}"
    if answer.status == 200 and body.get("kind") == "ConfigMap":
        return _texts_of(body.get("data"))
    if answer.status in (429, 500, 502, 503, 504):
        told = body.get("message") or answer.body[:100].decode(errors="replace").strip() or "no reason given"
        return _Trouble(
            ClusterError(
                f"the API server at {server} is not ready",
                cause=f"it answers HTTP {answer.status}: {told}",
                remedy="look at it on the control plane: kb doctor",
                code="api-server-not-ready",
            ),
            _FOR_EVER,
        )
    if body.get("kind") != "Status":
        return _Trouble(_not_an_api_server(server, f"it answers HTTP {answer.status} without an object of the API"), 0)
    if answer.status == 404:
        return _Trouble(
            ClusterError(
                "the cluster has no ConfigMap kube-public/cluster-info",
                cause=f"{where} answers 404: neither kb nor kubeadm made this cluster, or its bootstrap was cut off",
                remedy="on a control plane: kb init phase bootstrap-token; or join with --discovery-file",
                code="cluster-info-missing",
            ),
            SETTLE_S,
        )
    return _Trouble(
        ClusterError(
            "the API server shows cluster-info to nobody without an identity",
            cause=f"{where} answers HTTP {answer.status}: {body.get('message') or 'no reason given'}",
            remedy="on a control plane: kb init phase bootstrap-token; or join with --discovery-file",
            code="cluster-info-forbidden",
        ),
        SETTLE_S,
    )


def _texts_of(data: object) -> dict[str, str]:
    """The entries of a ConfigMap's data that are texts: what a server sends that is no API server may be anything."""
    return {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}


def _check_cluster_info(
    host: Host, server: str, data: Mapping[str, str], wanted: BootstrapTokenDiscovery
) -> Optional[_Trouble]:
    """The pin, then the signature: a wrong cluster is the more telling of the two."""
    text = str(data.get("kubeconfig", ""))
    if len(text) > _MAX_KUBECONFIG:
        return _Trouble(_bad_cluster_info(f"its kubeconfig has more than {_MAX_KUBECONFIG} bytes"), 0)
    if not text:
        cause = "its key kubeconfig is missing"
        return _Trouble(_bad_cluster_info(cause), SETTLE_S)
    try:
        offered = Offered(parse_kubeconfig(text, source="in cluster-info").ca_pem)
        found = certificates.ca_cert_hashes(offered.pem)
        pinned = certificates.keep_pinned(offered, wanted.ca_cert_hashes)
    except (HostError, ValueError) as error:
        return _Trouble(_bad_cluster_info(" ".join(str(error).split())), 0)
    if not found:
        return _Trouble(_bad_cluster_info("its kubeconfig holds no certificate of an authority"), 0)
    if wanted.ca_cert_hashes and not pinned:
        return _Trouble(_pin_mismatch(server, found, wanted.ca_cert_hashes), 0)
    token_id, _ = token_text.parse_token(wanted.token)
    jws = data.get(tokens.jws_key(token_id))
    if jws is None:
        return _explain_missing_signature(host, server, data, wanted.token, pinned)
    if not tokens.is_signed(text, jws, wanted.token):
        return _Trouble(
            ClusterError(
                f"the secret of token {token_id} is not the cluster's",
                cause=f"cluster-info at {server} is signed with a token of the same id and another secret",
                remedy=f"give the token whole, as printed; or make a new one {_NEW_TOKEN}",
                code="token-secret-wrong",
            ),
            SETTLE_S,
        )
    return None


def _explain_missing_signature(
    host: Host, server: str, data: Mapping[str, str], token: Secret, pinned: Optional[Anchors]
) -> _Trouble:
    """Unknown token, or nobody who signs: the API server tells, asked over a connection that a pin has proven. Without a
    pin the token is not shown to it."""
    token_id, _ = token_text.parse_token(token)
    others = sorted(key for key in data if key.startswith("jws-kubeconfig-"))
    is_known: Optional[bool] = None
    if pinned:
        try:
            answer = host.http_get(
                f"{server}/version",
                tls=Tls(pinned),
                headers={"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json"},
            )
            is_known = answer.status != 401
        except Unreachable as error:
            if error.reason == "tls":
                return _Trouble(explain_untrusted(error, server, 0.0, host.now()), 0)
    if is_known is None:
        is_known = not others
    if not is_known:
        return _Trouble(_token_unknown(token_id, server), SETTLE_S)
    signers = f"it has {len(others)} signatures by other tokens" if others else "it has no signature at all"
    return _Trouble(
        ClusterError(
            f"cluster-info is not signed with token {token_id}",
            cause=f"{signers}, though the API server takes the token: the controller-manager, which signs, is down or "
            "behind, or the token lacks the usage signing",
            remedy="on a control plane: kubectl -n kube-system get pods -l component=kube-controller-manager",
            code="cluster-info-unsigned",
        ),
        _FOR_EVER,
    )


def _token_unknown(token_id: str, server: str) -> ClusterError:
    return ClusterError(
        f"the cluster does not know token {token_id}",
        cause=f"the API server at {server} refuses it: it was deleted, it expired (24 h after it was made unless said "
        "otherwise) and was cleaned up, or it belongs to another cluster",
        remedy=f"see those that there are (kb token list), or make a new one {_NEW_TOKEN}",
        code="token-unknown",
    )


def _pin_mismatch(server: str, found: Sequence[str], pins: Sequence[str]) -> ClusterError:
    return ClusterError(
        f"the CA of the cluster at {server} is not the one that was pinned",
        cause=f"its public key is {', '.join(found) or 'not there'}; the pin says {', '.join(pins)}: the endpoint leads "
        "to another cluster, the cluster was made anew, or somebody stands between",
        remedy=f"check the endpoint, then take the join command of today {_NEW_TOKEN}",
        code="ca-hash-mismatch",
    )


def _bad_cluster_info(cause: str) -> ClusterError:
    return ClusterError(
        "ConfigMap kube-public/cluster-info cannot be used",
        cause=cause,
        remedy="write it anew, on a control plane: kb init phase bootstrap-token",
        code="cluster-info-invalid",
    )


def _check_again(host: Host, server: str, pinned: Anchors, text: str, skew_s: float) -> None:
    """The same question over a connection that only a server of the pinned CA can answer, and the same answer."""
    try:
        answer = host.http_get(server + CLUSTER_INFO, tls=Tls(pinned))
    except Unreachable as error:
        raise explain_untrusted(error, server, skew_s, host.now()) from error
    again = _texts_of(_json(answer).get("data")).get("kubeconfig")
    if answer.status != 200 or again != text:
        raise ClusterError(
            "cluster-info differs between two looks",
            cause=f"asked over a proven connection, {server} answers HTTP {answer.status} with another text than before: "
            "it was changed just now, or somebody stands between",
            remedy="run the command again; if it stays so, compare with: kubectl -n kube-public get configmap cluster-info",
            code="cluster-info-changed",
        )


# ---- by file or URL


def _discover_by_file(host: Host, place: str, tls_token: Secret, patience: _Patience) -> Access:
    found = _read_discovery_file(host, place, patience, has_token=bool(tls_token))
    # the file is the operator's own, or came from a server that the system believes
    ca = Anchors.given(found.ca_pem) if found.ca_pem else None
    tls = Tls(ca, found.client_cert_pem or None, found.client_key_pem or None, found.tls_server_name, found.proxy_url)
    if not tls_token and not found.has_credentials:
        raise UsageError(
            f"{place} holds no credentials",
            cause="a node needs some to ask for its certificate: a token or a client certificate in the file, or a token "
            "beside it",
            remedy=f"give --tls-bootstrap-token TOKEN; make one {_NEW_TOKEN}",
            code="discovery-no-credentials",
        )
    if found.insecure_skip_tls_verify:
        raise UsageError(
            f"{place} says insecure-skip-tls-verify",
            cause="a node that joins must know that it is your cluster which answers",
            remedy="put the cluster's CA into it: certificate-authority-data",
            code="discovery-insecure",
        )
    seen: dict[str, Any] = {}
    server = found.server.rstrip("/")
    headers = {"Authorization": f"Bearer {found.token.reveal()}"} if found.token else {}

    def look() -> Optional[_Trouble]:
        try:
            answer = host.http_get(server + CLUSTER_INFO, tls=tls, headers=headers)
        except Unreachable as error:
            if error.reason == "tls":
                return _Trouble(explain_untrusted(error, server, seen.get("skew_s", 0.0), host.now()), 0)
            if found.proxy_url:
                return _Trouble(_proxy_leads_nowhere(error, place, server), _FOR_EVER)
            return judge_unreachable(error, server.partition("://")[2])
        seen["skew_s"] = measure_skew(answer, host.now())
        if answer.status in (401, 403) and _json(answer).get("kind") == "Status":
            return None  # who may not see cluster-info has all that is needed in the file
        data = _read_cluster_info(answer, server)
        if isinstance(data, _Trouble):
            return data
        seen["text"] = str(data.get("kubeconfig", ""))
        return None

    patience.until(look)
    notes: list[str] = []
    if seen.get("text"):
        told = parse_kubeconfig(seen["text"], source=f"in ConfigMap kube-public/cluster-info at {server}")
        if told.server.rstrip("/") != server:
            notes.append(f"{place} names the server {server}, the cluster itself {told.server}: the file's is taken")
        # the connection was proven, so what came over it is the cluster's word
        ca = ca or (Anchors.vouched(Offered(told.ca_pem)) if told.ca_pem else None)
    if found.proxy_url or found.tls_server_name:
        notes.append(
            f"{place} has {' and '.join(name for name, text in _ways(found) if text)}: the join goes that way, but the kubelet "
            f"writes its kubelet.conf without; let this node reach {server} itself"
            + (", or name the proxy in the kubelet's unit (HTTPS_PROXY)" if found.proxy_url else "")
        )
    access = Access(
        server,
        ca,
        skew_s=seen["skew_s"],
        notes=tuple(notes),
        tls_server_name=found.tls_server_name,
        proxy_url=found.proxy_url,
    )
    if tls_token:
        return replace(access, token=tls_token)
    return replace(
        access,
        token=found.token,
        user=found.user or TOKEN_USER,
        client_cert_pem=found.client_cert_pem,
        client_key_pem=found.client_key_pem,
    )


def _ways(found: Kubeconfig) -> tuple[tuple[str, str], ...]:
    return (("proxy-url", found.proxy_url), ("tls-server-name", found.tls_server_name))


def _proxy_leads_nowhere(error: Unreachable, place: str, server: str) -> ClusterError:
    return ClusterError(
        f"the proxy of {place} does not lead to {server}",
        cause=error.cause,
        remedy=f"check it (curl -vk --proxy PROXY {server}/version), or take proxy-url out of {place}",
        code="proxy-unreachable",
    )


def _read_discovery_file(host: Host, place: str, patience: _Patience, *, has_token: bool) -> Kubeconfig:
    if not place.startswith("https://"):
        path = Path(place).absolute()
        found = read_kubeconfig(host.read_text(path), host=host, path=path)
        return _settle(host, found, place, folder=path.parent, has_token=has_token)
    seen: dict[str, str] = {}

    def look() -> Optional[_Trouble]:
        try:
            answer = host.http_get(place)
        except Unreachable as error:
            return _Trouble(error, 0 if error.reason == "tls" else SETTLE_S)
        if answer.status != 200:
            return _Trouble(
                HostError(
                    f"{place} answers HTTP {answer.status}",
                    cause="there is no kubeconfig to be had",
                    remedy=f"check the URL: curl -fL {place}",
                    code="discovery-file-missing",
                ),
                SETTLE_S,
            )
        seen["text"] = answer.body.decode(errors="replace")
        return None

    patience.until(look)
    found = parse_kubeconfig(seen["text"], source=place)
    if found.plugin is not None or any(
        (found.ca_file, found.client_cert_file, found.client_key_file, found.token_file)
    ):
        raise UsageError(
            f"{place} names programs or files of this machine",
            cause="kb runs and reads for root what lies on this machine, not what a server asks for",
            remedy=f"look at it, then take it from a file: curl -fo /root/discovery.conf {place}; kb join --discovery-file "
            "/root/discovery.conf",
            code="discovery-not-self-contained",
        )
    return _settle(host, found, place, folder=Path("/"), has_token=has_token)


def _settle(host: Host, found: Kubeconfig, place: str, *, folder: Path, has_token: bool) -> Kubeconfig:
    """The file with the credentials that it leads to. A token beside it counts more: then only the way to the server matters."""
    if has_token:
        ways = tuple(text for text in found.unsupported if text.startswith("proxy-url"))
        found = replace(found, plugin=None, unsupported=ways)
    found = resolve_credentials(host, found, place=place, folder=folder)
    has_pair = found.client_cert_pem and found.client_key_pem
    fault = (
        certificates.describe_pair(found.client_cert_pem, found.client_key_pem.reveal(), host.now()) if has_pair else ""
    )
    if fault:  # a handshake would fail in its middle, where nobody tells why
        raise UsageError(
            f"{place} has a client certificate that cannot be used",
            cause=fault,
            remedy="put the matching pair there, or give a token: --tls-bootstrap-token TOKEN",
            code="discovery-identity-unfit",
        )
    return found


# ---- a node that has joined


def find_member_access(host: Host, kubelet_conf: Path) -> Optional[Access]:
    """The kubelet's own identity where it has one; None where kubelet.conf is missing or cannot be used."""
    if not host.exists(kubelet_conf):
        return None
    try:
        found = read_kubeconfig(host.read_text(kubelet_conf), host=host, path=kubelet_conf)
        if not (found.client_cert_pem and found.client_key_pem):
            return None
        certificates.parse_certs(found.client_cert_pem)
    except (HostError, ValueError):
        return None
    return Access(
        found.server,
        Anchors.given(found.ca_pem) if found.ca_pem else None,
        user=found.user,
        client_cert_pem=found.client_cert_pem,
        client_key_pem=found.client_key_pem,
        is_member=True,
        tls_server_name=found.tls_server_name,
        proxy_url=found.proxy_url,
    )


def is_accepted(host: Host, access: Access) -> bool:
    """Whether the API server knows this identity. Raises ClusterError (server-unreachable)."""
    identity = access.identity
    try:
        return host.http_get(f"{identity.server}/version", tls=identity.tls, headers=_bearer(identity)).status != 401
    except Unreachable as error:
        if error.reason == "tls":
            return False  # an expired client certificate ends the handshake
        raise ClusterError(
            f"this node has joined a cluster whose API server {identity.server} does not answer",
            cause=error.cause,
            remedy=f"check the way there (curl -vk {identity.server}/version), or leave that cluster: kb reset",
            code="server-unreachable",
        ) from error


def find_way_of_member(host: Host, access: Access, wanted: Discovery) -> Access:
    """A join that was cut off may have left a kubeconfig whose server is the name of a load balancer that does not run
    yet: then the server on the command line is the way, if it takes this identity."""
    token = wanted.bootstrap_token
    asked = f"https://{token.api_server_endpoint}" if token and token.api_server_endpoint else ""
    if not asked or asked == access.server.rstrip("/"):
        return access
    try:
        is_accepted(host, access)
        return access
    except ClusterError:
        near = replace(access, server=asked)
        is_way = is_accepted(host, near)
    return _with_reachable_server(host, replace(access, asked=asked)) if is_way else access


def _bearer(identity: kubeapi.Identity) -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.token.reveal()}"} if identity.token else {}


def check_same_cluster(access: Access, wanted: Discovery) -> None:
    """Raise HostError (already-joined) where this node is a member of another cluster than the command line means."""
    pins = wanted.bootstrap_token.ca_cert_hashes if wanted.bootstrap_token else ()
    given = {parse_ca_cert_hash(pin) for pin in pins}
    found = certificates.ca_cert_hashes(access.ca_pem) if access.ca_pem else ()
    if given and not given & set(found):
        raise HostError(
            f"this node has joined another cluster, at {access.server}",
            cause=f"that one's CA has the public key {', '.join(found)}, the one to join {', '.join(sorted(given))}",
            remedy="leave it first: kb reset",
            code="already-joined",
        )


# ---- what the cluster stores


@frozen
class ClusterDocuments:
    """What a node reads of its cluster before it joins."""

    cluster_text: str
    """ClusterConfiguration, as YAML."""
    kubelet_text: str
    """KubeletConfiguration, as YAML."""
    pod_network: PodNetwork
    load_balancer: LoadBalancer = _NO_BALANCER
    api_servers: tuple[str, ...] = ()
    """`host:port`, where the cluster's nodes have a load balancer; the one that answered is among them."""
    reached_server: str = ""
    """The server that was asked, where the cluster's own name for it leads somewhere only on nodes that have joined."""


def read_documents(host: Host, access: Access, timeouts: Timeouts) -> ClusterDocuments:
    """The documents that a joining node needs. Raises ClusterError: server-unreachable, token-expired, token-unknown,
    not-kubeadms-cluster, and those of the API."""
    access = _with_reachable_server(host, access)
    api = kubeapi.Api(host, access.identity, retry_s=timeouts.kubernetes_api_call_s)
    try:
        cluster_text = _read_key(api, "kubeadm-config", "ClusterConfiguration")
        kubelet_text = _read_key(api, "kubelet-config", "kubelet")
        network, balancer = objects.read_pod_network(api), objects.read_load_balancer(api)
        found = ClusterDocuments(cluster_text, kubelet_text, network, balancer)
        if not balancer.is_local:
            return found
        asked = access.asked.partition("://")[2]
        servers = {*objects.read_api_servers(api), *([asked] if _is_address(asked) else [])}
        return replace(found, api_servers=tuple(sorted(servers)), reached_server=access.asked)
    except Unreachable as error:
        if error.reason == "tls":
            raise explain_untrusted(error, access.server, access.skew_s, host.now()) from error
        raise ClusterError(
            f"the cluster's address {access.server} does not answer",
            cause=f"{error.cause}; cluster-info names it as the address of the API server for all nodes",
            remedy=f"check the way there from this node: curl -vk {access.server}/version",
            code="server-unreachable",
        ) from error
    except kubeapi.ApiRefused as error:
        if error.http_status == 401 and access.token:
            raise _token_refused(access) from error
        if error.http_status == 403:
            raise ClusterError(
                error.what,
                cause=error.cause,
                remedy="give tokens their rights, on a control plane: kb init phase upload-config all, then "
                "kb init phase bootstrap-token",
                code="join-rights-missing",
            ) from error
        raise


def _with_reachable_server(host: Host, access: Access) -> Access:
    """Where every node has a load balancer of its own, the cluster's name for its API server leads nowhere before this
    node has one: the server that answered discovery is asked for the rest too. It has proven that it is the
    cluster's, and does so again, with the CA that cluster-info brought."""
    if not access.asked or access.asked == access.server.rstrip("/"):
        return access
    near = replace(access, server=access.asked)
    try:
        balancer = objects.read_load_balancer(kubeapi.Api(host, near.identity, retry_s=0))
    except Unreachable:
        return access
    except kubeapi.ApiRefused as error:
        return near if error.http_status == 401 else access
    return near if balancer.is_local else access


def _is_address(server: str) -> bool:
    """Whether `host:port` names a host by its address: a load balancer's file is read before names may resolve."""
    try:
        ipaddress.ip_address(server.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _token_refused(access: Access) -> ClusterError:
    token_id = access.token.reveal().partition(".")[0]
    if not access.has_signed:
        return _token_unknown(token_id, access.server)
    return ClusterError(
        f"token {token_id} has expired",
        cause=f"cluster-info is signed with it, but the API server {access.server} does not take it any more (or it "
        "never had the usage authentication)",
        remedy=f"make a new one {_NEW_TOKEN}",
        code="token-expired",
    )


def _read_key(api: kubeapi.Api, name: str, key: str) -> str:
    found = api.get(path_of("ConfigMap", name, "kube-system"))
    text = ((found or {}).get("data") or {}).get(key)
    if not text:
        raise ClusterError(
            f"the cluster has no ConfigMap kube-system/{name}" if found is None else f"ConfigMap {name} has no {key}",
            cause="neither kb nor kubeadm made it, or its init was cut off",
            remedy="on a control plane: kb init phase upload-config",
            code="not-kubeadms-cluster",
        )
    return str(text)


# ---- the clock, and connections that fail


def measure_skew(answer: HttpResponse, now: datetime.datetime) -> float:
    """By how many seconds the server's clock is ahead of ours, by its Date header; 0 where it has none."""
    text = answer.headers.get("date", "")
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    try:
        return (moment - now).total_seconds()
    except OverflowError:  # a time zone at the end of the calendar
        return 0.0


def describe_skew(skew_s: float) -> str:
    """`3 h 5 min behind the API server's`, of this node's clock."""
    hours, minutes = divmod(round(abs(skew_s) / 60) if abs(skew_s) >= 60 else 0, 60)
    amount = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{abs(skew_s):.0f} s"
    return f"{amount} {'behind' if skew_s > 0 else 'ahead of'} the API server's"


def skew_remedy(skew_s: float, now: datetime.datetime) -> str:
    server = now + datetime.timedelta(seconds=skew_s)
    return f"set it: timedatectl set-ntp true, or date -u -s '{server:%Y-%m-%d %H:%M:%S}'; or the server's, if that is wrong"


def judge_unreachable(error: Unreachable, endpoint: str) -> _Trouble:
    """What an endpoint that does not answer means, and how long it may last."""
    if error.reason == "tls":
        return _Trouble(_not_an_api_server(f"https://{endpoint}", error.cause), 0)
    name, _, port = endpoint.rpartition(":")
    if error.reason == "dns":
        unknown = ClusterError(
            f"the name {name} does not resolve",
            cause=error.cause,
            remedy=f"check it: getent hosts {name}",
            code="endpoint-unknown-name",
        )
        return _Trouble(unknown, SETTLE_S)
    if error.reason == "refused":
        refused = ClusterError(
            f"nothing listens at {endpoint}",
            cause=error.cause,
            remedy=f"check the address and the port, and that the API server runs there: ss -ltn sport = :{port}",
            code="endpoint-refused",
        )
        return _Trouble(refused, _FOR_EVER)
    silent = ClusterError(
        f"{endpoint} cannot be reached",
        cause=error.cause,
        remedy=f"check the address and the firewalls between: curl -vk https://{endpoint}/version",
        code="endpoint-unreachable",
    )
    return _Trouble(silent, _FOR_EVER)


def _not_an_api_server(server: str, cause: str) -> ClusterError:
    return ClusterError(
        f"{server} is no API server of Kubernetes",
        cause=cause,
        remedy=f"check host and port (6443 is usual): curl -vk {server}/version",
        code="not-an-api-server",
    )


def explain_untrusted(error: Unreachable, server: str, skew_s: float, now: datetime.datetime) -> ClusterError:
    """Why a server's certificate does not pass, when its CA is known."""
    text = error.cause.lower()
    if abs(skew_s) > 60 and ("not yet valid" in text or "expired" in text):
        return clock_error(skew_s, now)
    if "mismatch" in text or "doesn't match" in text or "not valid for" in text:
        return ClusterError(
            f"the API server's certificate does not bear the name by which it was reached: {server}",
            cause=error.cause,
            remedy="use an address that it bears, or add this one: apiServer.certSANs and kb init phase certs apiserver",
            code="endpoint-not-in-certificate",
        )
    return ClusterError(
        f"the server at {server} cannot prove that it is the cluster's",
        cause=error.cause,
        remedy=f"see who answers there: openssl s_client -connect {server.partition('://')[2]} -showcerts",
        code="server-not-trusted",
    )


def clock_error(skew_s: float, now: datetime.datetime) -> ClusterError:
    return ClusterError(
        f"this node's clock is {describe_skew(skew_s)}",
        cause=f"it says {now:%Y-%m-%d %H:%M:%S UTC}, so it takes the cluster's certificates for "
        f"{'not valid yet' if skew_s > 0 else 'expired'}",
        remedy=skew_remedy(skew_s, now),
        code="clock-skew",
    )


def _json(answer: HttpResponse) -> dict[str, Any]:
    try:
        return parse_json_object(answer.body, "the answer")
    except ValueError:
        return {}


# ---- the TLS bootstrap: the kubelet's certificate signing request


@frozen
class SigningRequest:
    """The newest request for this node's client certificate. state: not-sent | pending | denied | failed | approved
    (and not signed) | signed."""

    state: str
    name: str = ""
    message: str = ""


def read_signing_request(api: kubeapi.Api, node_name: str, *, since: str = "") -> SigningRequest:
    """How far this node's request has got; requests from before `since` (RFC 3339) are another machine's."""
    found = [
        request
        for request in api.list(
            path_of("CertificateSigningRequest"), field="spec.signerName=kubernetes.io/kube-apiserver-client-kubelet"
        )
        if _is_request_of(request, node_name) and str(request["metadata"].get("creationTimestamp", "")) >= since
    ]
    if not found:
        return SigningRequest("not-sent")
    newest = max(found, key=lambda request: str(request["metadata"].get("creationTimestamp", "")))
    return judge_signing_request(newest)


SERVING_SIGNER = "kubernetes.io/kubelet-serving"


def explain_serving_request(name: str, requests: Iterable[Mapping[str, Any]]) -> Optional[tuple[str, str]]:
    """(what, remedy) where the kubelet of a node waits for the approval of its serving certificate. With serverTLSBootstrap nobody
    approves it by himself, and without it logs, exec and metrics end with "tls: internal error"."""
    own = [item for item in requests if (item.get("spec") or {}).get("username") == f"system:node:{name}"]
    pending = [item for item in own if judge_signing_request(item).state == "pending"]
    if not pending or len(pending) != len(own):
        return None
    request = str(pending[-1]["metadata"]["name"])
    return (
        f"the kubelet of {name} has no serving certificate: its request {request} is Pending (serverTLSBootstrap; kubectl logs and "
        'exec end with "tls: internal error")',
        f"compare its names with this node's, then, on a control plane: kubectl certificate approve {request}",
    )


def judge_signing_request(request: Mapping[str, Any]) -> SigningRequest:
    name, status = str(request["metadata"]["name"]), request.get("status") or {}
    conditions = {str(entry.get("type")): str(entry.get("message", "")) for entry in status.get("conditions") or ()}
    for kind, state in (("Denied", "denied"), ("Failed", "failed")):
        if kind in conditions:
            return SigningRequest(state, name, conditions[kind])
    if status.get("certificate"):
        return SigningRequest("signed", name)
    return SigningRequest("approved" if "Approved" in conditions else "pending", name)


def _is_request_of(request: Mapping[str, Any], node_name: str) -> bool:
    try:
        pem = base64.b64decode(str(request["spec"]["request"]), validate=True).decode()
        return certificates.common_name_of_request(pem) == f"system:node:{node_name}"
    except (KeyError, TypeError, binascii.Error, ValueError):
        return False


def explain_signing_request(host: Host, request: SigningRequest, node_name: str, waited_s: float) -> ClusterError:
    """The error for a bootstrap that ended, or was waited for, in this state."""
    name, waited = request.name, f"after {waited_s:.0f} s"
    return {
        "not-sent": ClusterError(
            f"the kubelet has not asked for its certificate {waited}",
            cause=f"the cluster has no certificate signing request of system:node:{node_name}",
            remedy=f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            code="csr-not-sent",
        ),
        "pending": ClusterError(
            f"the certificate signing request {name} is pending {waited}",
            cause="nobody approves it: the controller-manager is down, or ClusterRoleBinding "
            "kubeadm:node-autoapprove-bootstrap is missing",
            remedy=f"on a control plane: kubectl certificate approve {name}; then run the command again",
            code="csr-pending",
        ),
        "denied": ClusterError(
            f"the certificate signing request {name} was denied",
            cause=request.message or "whoever denied it gave no reason",
            remedy=f"on a control plane: kubectl delete csr {name}; then run the command again",
            code="csr-denied",
        ),
        "failed": ClusterError(
            f"the certificate signing request {name} failed",
            cause=request.message or "the signer gave no reason",
            remedy=f"on a control plane: kubectl describe csr {name}",
            code="csr-failed",
        ),
        "approved": ClusterError(
            f"the certificate signing request {name} is approved and not signed {waited}",
            cause="the signer is off: the controller-manager is down, lacks --cluster-signing-cert-file and -key-file, or "
            "runs without the controller csrsigning",
            remedy="on a control plane: kubectl -n kube-system logs -l component=kube-controller-manager --tail 50",
            code="csr-not-signed",
        ),
        "signed": ClusterError(
            f"the kubelet has no kubelet.conf {waited}",
            cause=f"the certificate signing request {name} is signed, but the kubelet has not taken the certificate",
            remedy=f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            code="kubelet-conf-missing",
        ),
    }[request.state]


def explain_lacking_right(refusal: kubeapi.ApiRefused, waited_s: float) -> ClusterError:
    """The error where the bootstrap's identity may not even look at requests: one role gives both rights, to ask and to
    look, so the kubelet was refused as kb is."""
    return ClusterError(
        f"the kubelet has not asked for its certificate after {waited_s:.0f} s",
        cause=f"the join token has no right to ask for one ({refusal.cause}): ClusterRoleBinding kubeadm:kubelet-bootstrap "
        "is missing, or does not name the token's group",
        remedy="on a control plane: kb init phase bootstrap-token; then run the command again",
        code="csr-not-sent",
    )


# ---- a node of the same name


def check_node_name(node: Optional[Mapping[str, Any]], own_addresses: Sequence[str], now: datetime.datetime) -> str:
    """Whether this machine may bear the name of `node`; a note where it takes over a node that is there.

    Raises ClusterError (node-name-taken) for a node that is Ready on another machine: two kubelets of one name would
    take each other's pods away.
    """
    if node is None:
        return ""
    name = str(node["metadata"]["name"])
    status = node.get("status") or {}
    addresses = [
        str(entry.get("address")) for entry in status.get("addresses") or () if entry.get("type") == "InternalIP"
    ]
    is_ready = any(
        entry.get("type") == "Ready" and entry.get("status") == "True" for entry in status.get("conditions") or ()
    )
    if set(addresses) & set(own_addresses):
        return f"node {name} is this machine's, from before: it goes on with it"
    age = describe_age(str(node["metadata"].get("creationTimestamp", "")), now)
    if not is_ready:
        return f"node {name} ({', '.join(addresses) or 'no address'}, {age} old) is there and not Ready: this machine takes its place"
    raise ClusterError(
        f"the cluster has a node {name} already, and it is Ready",
        cause=f"it has the address {', '.join(addresses) or 'none'} and is {age} old; this machine has "
        f"{', '.join(own_addresses) or 'no address'}",
        remedy=f"give this one another name (--node-name), or remove the other: kubectl delete node {name}",
        code="node-name-taken",
    )


def describe_age(created: str, now: datetime.datetime) -> str:
    """`3 d`, `5 h`, `12 min`, `40 s`."""
    try:
        born = datetime.datetime.strptime(created[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return "?"
    seconds = max(0, int((now - born).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
