"""Lets a node whose kubelet has no valid certificate any more ask for another one by a token, as a joining node does.

The node stays what it is: its Node object, its pods and its volumes; no container is restarted. The kubelet does the work: with a
bootstrap-kubelet.conf beside a kubelet.conf that has expired it requests a certificate in the background and writes kubelet.conf again
(LoadClientConfig in pkg/kubelet/certificate/bootstrap/bootstrap.go). kubeadm has no counterpart: its way is a reset and a join.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.config import token_text
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, HttpResponse, Unreachable
from kubeup.paths import Paths
from kubeup.phases import join_worker, kubelet_start, recovered_certs
from kubeup.secret import Secret
from kubeup.trust import Offered

with lazily:
    from kubeup.cluster import clock, find_cluster, membership
    from kubeup.network import load_balancer
    from kubeup.node import ca_pins, expired_certs, former_certs

_REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests?limit=1"
_CLUSTER_NAME = "kubernetes"


# ---- may it ask?


def find_way(host: Host, paths: Paths, *, token: Secret, pins: Sequence[str]) -> membership.Access:
    """The server and CA in kubelet.conf, with the token, tried: a server that answers is in `asked`. Nothing is changed.

    Raises ClusterError: ca-hash-mismatch, server-unreachable, server-not-trusted, clock-skew, token-unknown, token-without-right.
    """
    conf = paths.kubernetes / "kubelet.conf"
    access = membership.read_way(host, conf, token=token)
    if pins and not (access.ca_pem and ca_pins.keep_pinned(Offered(access.ca_pem), pins)):
        raise ClusterError(
            f"the CA in {conf} is not the one that was pinned",
            cause=f"its public key is {', '.join(ca_pins.ca_cert_hashes(access.ca_pem)) if access.ca_pem else 'not there'}",
            remedy="take the line from a control plane of this node's own cluster: kb certs recover",
            code="ca-hash-mismatch",
        )
    servers = (access.server.rstrip("/"), *_behind_balancer(host, paths))
    last: Optional[Unreachable] = None
    for server in dict.fromkeys(servers):
        try:
            answer = _ask(host, replace(access, server=server))
        except Unreachable as error:
            last = last if last is not None and last.reason == "tls" else error
            continue
        _check_answer(host, answer, server=server, token=token)
        return replace(access, asked=server)
    assert last is not None
    raise _explain(host, last, servers=servers)


def _behind_balancer(host: Host, paths: Paths) -> tuple[str, ...]:
    """The API servers behind this node's own load balancer, which the kubelet has yet to start after a reboot."""
    path = load_balancer.config_path(paths)
    found = load_balancer.parse_config(host.read_text(path))[0] if host.exists(path) else ()
    return tuple(f"https://{server}" for server in found)


def _ask(host: Host, access: membership.Access) -> HttpResponse:
    identity = access.identity
    headers = {"Authorization": f"Bearer {access.token.reveal()}", "Accept": "application/json"}
    return host.http_get(identity.server + _REQUESTS, tls=identity.tls, headers=headers)


def _check_answer(host: Host, answer: HttpResponse, *, server: str, token: Secret) -> None:
    skew_s = clock.measure_skew(answer, host.now())
    if abs(skew_s) > clock.MAX_SKEW_S:
        raise clock.clock_error(skew_s, host.now())
    if answer.status == 401:
        raise find_cluster.token_unknown(token_text.parse_token(token)[0], server)
    if answer.status != 200:
        raise ClusterError(
            "the token may not ask for a kubelet's certificate",
            cause=f"the API server at {server} answers HTTP {answer.status} when it reads signing requests",
            remedy="take a fresh line from a control plane (kb certs recover); what lets tokens ask: kb init phase bootstrap-token",
            code="token-without-right",
        )


def _explain(host: Host, error: Unreachable, *, servers: Sequence[str]) -> KbError:
    """Why no server could be asked."""
    if error.reason == "tls":
        skew_s = _measure_unproven(host, error.url)
        if abs(skew_s) > clock.MAX_SKEW_S:
            return clock.clock_error(skew_s, host.now())
        return ClusterError(
            "no API server proves that it is this node's cluster's",
            cause=error.cause,
            remedy="recover the control planes first, on each of them: kb certs recover",
            code="server-not-trusted",
        )
    return ClusterError(
        f"no API server of this node's cluster answers: {', '.join(servers)}",
        cause=error.cause,
        remedy="recover the control planes first, on each of them: kb certs recover; or see what is in the way: "
        f"curl -vk {servers[0]}/version",
        code="server-unreachable",
    )


def _measure_unproven(host: Host, url: str) -> float:
    """The clock of a server whose certificate cannot be verified: only for an explanation."""
    try:
        return clock.measure_skew(host.http_get(url.partition("/apis/")[0] + "/version", tls=UNPROVEN), host.now())
    except Unreachable:
        return 0.0


# ---- ask


def recover(run: Run, access: membership.Access, *, names: Sequence[str], files: expired_certs.KubeletFiles) -> Path:
    """Have the kubelet ask for a certificate by the token of `access`, and wait until its node is Ready. The run's caller is the
    bootstrap identity. Returns the folder of the former files.

    Raises ClusterError (csr-*, kubelet-conf-missing, not-healthy), HostError, after the former files have come back if the kubelet got
    no certificate.
    """
    host, bootstrap = run.host, run.paths.kubernetes / "bootstrap-kubelet.conf"
    recovered_certs.begin(run, names)
    serving = [files.serving, files.serving.with_suffix(".key")] if files.serving else []
    former = former_certs.keep_former(host, run.paths, files=[files.conf, files.pem, *serving])
    began = host.now()

    def go_back() -> None:
        """The token goes first. Whoever is told to stop once more, as by a second Ctrl-C, still makes every step: what is interrupted is
        a wait for the kubelet."""
        try:
            host.remove(bootstrap)
            kubelet_start.stop_kubelet(run)
        finally:
            try:
                # not the link, which the kubelet leads elsewhere only with a new certificate
                former_certs.put_back(host, former, files=[path for path in former.files if path != files.pem])
                recovered_certs.end(run)
            finally:
                with contextlib.suppress(KbError):
                    kubelet_start.restart_kubelet(run)

    try:
        host.write_file(bootstrap, access.render_bootstrap_kubeconfig(_CLUSTER_NAME).reveal(), mode=0o600)
        recovered_certs.restart_node(run, names=names, files=files)
        join_worker.wait_for_identity(run)
    except BaseException:  # also where kb is told to stop: the token would stay in a file
        go_back()
        raise
    host.remove(bootstrap)
    run.caller.become("kubelet")
    recovered_certs.wait_for_report(run, since=began)
    recovered_certs.end(run)
    return former.folder
