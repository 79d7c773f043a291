"""Discovery: how a joining node finds its cluster and establishes trust in it.

There are three ways: a token, a kubeconfig file, or a kubeconfig behind an https URL. With a token, kb first reads cluster-info over an
unverified connection, checks its signature (which only holders of the token can make) and the pin of the CA, and then reads it
again over a verified connection. Each error names what was seen and the one command that helps. This module only looks, knows no
phase, and never sends a token over an unverified connection. Mirrors cmd/kubeadm/app/discovery/{token,file,https}.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of, port_of
from kubeup.cluster import tokens
from kubeup.cluster.clock import explain_untrusted, measure_skew
from kubeup.cluster.membership import TOKEN_USER, Access
from kubeup.config import token_text
from kubeup.config.types import BootstrapTokenDiscovery, Discovery, Timeouts
from kubeup.errors import ClusterError, HostError, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, HttpResponse, Tls, Unreachable
from kubeup.node.credential_plugin import resolve_credentials
from kubeup.node.kubeconfig import Kubeconfig, parse_kubeconfig, read_kubeconfig
from kubeup.secret import Secret
from kubeup.trouble import advise
from kubeup.trust import Anchors, Offered

with lazily:
    from kubeup.node import ca_pins, certificates


CLUSTER_INFO = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
FIRST_RETRIES_S = (0.1, 0.2, 0.2, 0.5, 0.5, 1.0)
"""The first pauses between retries. A new token's signature appears within a second; kb has to poll, since the token's holder may
not watch cluster-info."""
RETRY_S = 2.0
SETTLE_S = 15.0
"""How long to wait for what should resolve itself soon: a new token's signature, a name that does not resolve."""
NEW_TOKEN = "on a control plane: kb token create --print-join-command"  # noqa: S105
_MAX_KUBECONFIG = 1 << 16
"""The maximum size, in bytes, of cluster-info's kubeconfig, which holds an address and some certificates. It is read before
anything is verified."""

Tell = Callable[[str], None]


@frozen
class _Trouble:
    """Why discovery has not succeeded yet, and for how many seconds that may last before kb gives up."""

    error: KbError
    patience_s: float


_FOR_EVER = float("inf")


def discover_cluster(host: Host, wanted: Discovery, *, timeouts: Timeouts, tell: Tell, note: Tell) -> Access:
    """Find the cluster in the way that the configuration names.

    tell: reports what kb is waiting for right now. note: reports once, when waiting begins. Raises ClusterError (see the codes
    below), UsageError (discovery-no-credentials), HostError (kubeconfig-unreadable).
    """
    patience = _Patience(host, timeouts.discovery_s, tell=tell, note=note)
    if wanted.bootstrap_token:
        return _discover_by_token(host, wanted.bootstrap_token, tls_token=wanted.tls_bootstrap_token, patience=patience)
    return _discover_by_file(host, wanted.file, tls_token=wanted.tls_bootstrap_token, patience=patience)


class _Patience:
    """Retries until an answer is good, or can no longer become good."""

    def __init__(self, host: Host, timeout_s: float, *, tell: Tell, note: Tell) -> None:
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
                self.note(f"{advise(trouble.error)} (kb keeps trying for {limit:.0f} s)")
            self.host.sleep(pause_s)


# ---- by token


def _discover_by_token(
    host: Host, wanted: BootstrapTokenDiscovery, *, tls_token: Secret, patience: _Patience
) -> Access:
    """Discover by token. Only a holder of the token can have signed cluster-info, and only a server of the pinned CA can have
    answered."""
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
        return _check_cluster_info(host, server, data=data, wanted=wanted)

    patience.until(look)
    text: str = seen["text"]
    skew_s: float = seen["skew_s"]
    found = parse_kubeconfig(text, source=f"in ConfigMap kube-public/cluster-info at {server}")
    offered = Offered(found.ca_pem)
    if wanted.ca_cert_hashes:
        pinned = ca_pins.keep_pinned(offered, wanted.ca_cert_hashes)
        assert pinned is not None  # _check_cluster_info made sure of it
        _check_again(host, server, pinned=pinned, text=text, skew_s=skew_s)
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
    """The data of ConfigMap cluster-info, or a _Trouble."""
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
        return _Trouble(_not_an_api_server(server, f"it answers HTTP {answer.status} without an API object"), 0)
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
            "the API server does not show cluster-info to anonymous clients",
            cause=f"{where} answers HTTP {answer.status}: {body.get('message') or 'no reason given'}",
            remedy="on a control plane: kb init phase bootstrap-token; or join with --discovery-file",
            code="cluster-info-forbidden",
        ),
        SETTLE_S,
    )


def _texts_of(data: object) -> dict[str, str]:
    """The entries of a ConfigMap's data that are strings: a server that is no API server may send anything."""
    return {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}


def _check_cluster_info(
    host: Host, server: str, *, data: Mapping[str, str], wanted: BootstrapTokenDiscovery
) -> Optional[_Trouble]:
    """Check the pin, then the signature: of the two, a wrong cluster is the more informative error."""
    text = str(data.get("kubeconfig", ""))
    if len(text) > _MAX_KUBECONFIG:
        return _Trouble(_bad_cluster_info(f"its kubeconfig has more than {_MAX_KUBECONFIG} bytes"), 0)
    if not text:
        cause = "its key kubeconfig is missing"
        return _Trouble(_bad_cluster_info(cause), SETTLE_S)
    try:
        offered = Offered(parse_kubeconfig(text, source="in cluster-info").ca_pem)
        found = ca_pins.ca_cert_hashes(offered.pem)
        pinned = ca_pins.keep_pinned(offered, wanted.ca_cert_hashes)
    except (HostError, ValueError) as error:
        return _Trouble(_bad_cluster_info(" ".join(str(error).split())), 0)
    if not found:
        return _Trouble(_bad_cluster_info("its kubeconfig holds no CA certificate"), 0)
    if wanted.ca_cert_hashes and not pinned:
        return _Trouble(_pin_mismatch(server, found, pins=wanted.ca_cert_hashes), 0)
    token_id, _ = token_text.parse_token(wanted.token)
    jws = data.get(tokens.jws_key(token_id))
    if jws is None:
        return _explain_missing_signature(host, server, data=data, token=wanted.token, pinned=pinned)
    if not tokens.is_signed(text, jws, token=wanted.token):
        return _Trouble(
            ClusterError(
                f"the secret of token {token_id} is wrong",
                cause=f"cluster-info at {server} is signed with a token that has the same id but another secret",
                remedy=f"give the whole token, as printed; or make a new one {NEW_TOKEN}",
                code="token-secret-wrong",
            ),
            SETTLE_S,
        )
    return None


def _explain_missing_signature(
    host: Host, server: str, *, data: Mapping[str, str], token: Secret, pinned: Optional[Anchors]
) -> _Trouble:
    """Find out whether the token is unknown or nobody signs cluster-info, by using the token over a connection verified by a pin.
    Without a pin, the token is not sent."""
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
                return _Trouble(explain_untrusted(error, server, skew_s=0.0, now=host.now()), 0)
    if is_known is None:
        is_known = not others
    if not is_known:
        return _Trouble(token_unknown(token_id, server), SETTLE_S)
    signers = f"it has {len(others)} signatures by other tokens" if others else "it has no signature at all"
    return _Trouble(
        ClusterError(
            f"cluster-info is not signed with token {token_id}",
            cause=f"{signers}, though the API server accepts the token: the controller-manager, which signs, is down or "
            "behind, or the token lacks the usage signing",
            remedy="on a control plane: kubectl -n kube-system get pods -l component=kube-controller-manager",
            code="cluster-info-unsigned",
        ),
        _FOR_EVER,
    )


def token_unknown(token_id: str, server: str) -> ClusterError:
    return ClusterError(
        f"the cluster does not know token {token_id}",
        cause=f"the API server at {server} refuses it: it was deleted, it expired (by default 24 h after it was made) "
        "and was cleaned up, or it belongs to another cluster",
        remedy=f"list the tokens (kb token list), or make a new one {NEW_TOKEN}",
        code="token-unknown",
    )


def _pin_mismatch(server: str, found: Sequence[str], *, pins: Sequence[str]) -> ClusterError:
    return ClusterError(
        f"the CA of the cluster at {server} is not the one that was pinned",
        cause=f"its public key is {', '.join(found) or 'not there'}; the pin says {', '.join(pins)}: the endpoint leads "
        "to another cluster, the cluster was set up again, or somebody is in the middle",
        remedy=f"check the endpoint, then use a new join command {NEW_TOKEN}",
        code="ca-hash-mismatch",
    )


def _bad_cluster_info(cause: str) -> ClusterError:
    return ClusterError(
        "ConfigMap kube-public/cluster-info cannot be used",
        cause=cause,
        remedy="write it again, on a control plane: kb init phase bootstrap-token",
        code="cluster-info-invalid",
    )


def _check_again(host: Host, server: str, *, pinned: Anchors, text: str, skew_s: float) -> None:
    """Read cluster-info again over a connection verified with the pinned CA, and check that it is the same."""
    try:
        answer = host.http_get(server + CLUSTER_INFO, tls=Tls(pinned))
    except Unreachable as error:
        raise explain_untrusted(error, server, skew_s=skew_s, now=host.now()) from error
    again = _texts_of(_json(answer).get("data")).get("kubeconfig")
    if answer.status != 200 or again != text:
        raise ClusterError(
            "cluster-info changed between two reads",
            cause=f"asked over a verified connection, {server} answers HTTP {answer.status} with other content than before: "
            "it was changed just now, or somebody intercepts the connection",
            remedy="run the command again; if it happens again, compare with: kubectl -n kube-public get configmap cluster-info",
            code="cluster-info-changed",
        )


# ---- by file or URL


def _discover_by_file(host: Host, place: str, *, tls_token: Secret, patience: _Patience) -> Access:
    found = _read_discovery_file(host, place, patience=patience, has_token=bool(tls_token))
    # the file is the operator's own, or came from a server that the system trusts
    ca = Anchors.given(found.ca_pem) if found.ca_pem else None
    tls = Tls(ca, found.client_cert_pem or None, found.client_key_pem or None, found.tls_server_name, found.proxy_url)
    _require_usable(found, place, has_token=bool(tls_token))
    seen: dict[str, Any] = {}
    server = found.server.rstrip("/")
    patience.until(lambda: _look_by_file(host, found, place=place, tls=tls, seen=seen))
    notes: list[str] = []
    if seen.get("text"):
        told = parse_kubeconfig(seen["text"], source=f"in ConfigMap kube-public/cluster-info at {server}")
        if told.server.rstrip("/") != server:
            notes.append(f"{place} names the server {server}, the cluster itself {told.server}: using the file's")
        # the connection was verified, so the cluster itself vouches for what came over it
        ca = ca or (Anchors.vouched(Offered(told.ca_pem)) if told.ca_pem else None)
    notes += _note_ways(found, place)
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


def _require_usable(found: Kubeconfig, place: str, *, has_token: bool) -> None:
    """Raise UsageError (discovery-no-credentials, discovery-insecure) if no node can join with this file."""
    if not has_token and not found.has_credentials:
        raise UsageError(
            f"{place} holds no credentials",
            cause="a node needs some to ask for its certificate: a token or a client certificate in the file, or a token "
            "beside it",
            remedy=f"give --tls-bootstrap-token TOKEN; make one {NEW_TOKEN}",
            code="discovery-no-credentials",
        )
    if found.insecure_skip_tls_verify:
        raise UsageError(
            f"{place} says insecure-skip-tls-verify",
            cause="a joining node must be able to verify that it talks to your cluster",
            remedy="put the cluster's CA into it: certificate-authority-data",
            code="discovery-insecure",
        )


def _look_by_file(host: Host, found: Kubeconfig, *, place: str, tls: Tls, seen: dict[str, Any]) -> Optional[_Trouble]:
    """Look at cluster-info once. Stores the text of its kubeconfig and the clock skew in `seen`."""
    server = found.server.rstrip("/")
    headers = {"Authorization": f"Bearer {found.token.reveal()}"} if found.token else {}
    try:
        answer = host.http_get(server + CLUSTER_INFO, tls=tls, headers=headers)
    except Unreachable as error:
        if error.reason == "tls":
            return _Trouble(explain_untrusted(error, server, skew_s=seen.get("skew_s", 0.0), now=host.now()), 0)
        if found.proxy_url:
            return _Trouble(_proxy_leads_nowhere(error, place, server=server), _FOR_EVER)
        return judge_unreachable(error, server.partition("://")[2])
    seen["skew_s"] = measure_skew(answer, host.now())
    if answer.status in (401, 403) and _json(answer).get("kind") == "Status":
        return None  # without the right to read cluster-info, the file alone has to do
    data = _read_cluster_info(answer, server)
    if isinstance(data, _Trouble):
        return data
    seen["text"] = str(data.get("kubeconfig", ""))
    return None


def _note_ways(found: Kubeconfig, place: str) -> list[str]:
    """A note on those connection settings of the file that the kubelet will not use."""
    server = found.server.rstrip("/")
    if not (found.proxy_url or found.tls_server_name):
        return []
    return [
        f"{place} has {' and '.join(name for name, text in _ways(found) if text)}: the join goes that way, but the kubelet "
        f"writes its kubelet.conf without; let this node reach {server} itself"
        + (", or name the proxy in the kubelet's unit (HTTPS_PROXY)" if found.proxy_url else "")
    ]


def _ways(found: Kubeconfig) -> tuple[tuple[str, str], ...]:
    return (("proxy-url", found.proxy_url), ("tls-server-name", found.tls_server_name))


def _proxy_leads_nowhere(error: Unreachable, place: str, *, server: str) -> ClusterError:
    return ClusterError(
        f"the proxy of {place} does not lead to {server}",
        cause=error.cause,
        remedy=f"check it (curl -vk --proxy PROXY {server}/version), or remove proxy-url from {place}",
        code="proxy-unreachable",
    )


def _read_discovery_file(host: Host, place: str, *, patience: _Patience, has_token: bool) -> Kubeconfig:
    if not place.startswith("https://"):
        path = Path(place).absolute()
        found = read_kubeconfig(host.read_text(path), host=host, path=path)
        return _settle(host, found, place=place, folder=path.parent, has_token=has_token)
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
                    cause="it serves no kubeconfig",
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
            cause="kb runs as root: it must not run programs or read files that a server names",
            remedy=f"look at it, then take it from a file: curl -fo /root/discovery.conf {place}; kb join --discovery-file "
            "/root/discovery.conf",
            code="discovery-not-self-contained",
        )
    return _settle(host, found, place=place, folder=Path("/"), has_token=has_token)


def _settle(host: Host, found: Kubeconfig, *, place: str, folder: Path, has_token: bool) -> Kubeconfig:
    """The kubeconfig with the credentials that it refers to. A token given separately takes precedence; then only the connection
    settings of the file matter."""
    if has_token:
        ways = tuple(text for text in found.unsupported if text.startswith("proxy-url"))
        found = replace(found, plugin=None, unsupported=ways)
    found = resolve_credentials(host, found, place=place, folder=folder)
    has_pair = found.client_cert_pem and found.client_key_pem
    fault = (
        certificates.describe_pair(found.client_cert_pem, found.client_key_pem.reveal(), host.now()) if has_pair else ""
    )
    if fault:  # otherwise the TLS handshake would fail without a clear reason
        raise UsageError(
            f"{place} has a client certificate that cannot be used",
            cause=fault,
            remedy="put the matching pair there, or give a token: --tls-bootstrap-token TOKEN",
            code="discovery-identity-unfit",
        )
    return found


def judge_unreachable(error: Unreachable, endpoint: str) -> _Trouble:
    """What it means that an endpoint does not answer, and how long that may last."""
    if error.reason == "tls":
        return _Trouble(_not_an_api_server(f"https://{endpoint}", error.cause), 0)
    name, port = host_of(endpoint), port_of(endpoint)
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
        f"{server} is not a Kubernetes API server",
        cause=cause,
        remedy=f"check host and port (6443 is usual): curl -vk {server}/version",
        code="not-an-api-server",
    )


def _json(answer: HttpResponse) -> dict[str, Any]:
    try:
        return parse_json_object(answer.body, "the answer")
    except ValueError:
        return {}
