"""What a rotation of the cluster's authority changes around a node's kubelet: whom it and its node's runtime trust, and the certificates that
the cluster has signed for it.

The kubelet reads its kubeconfig and its certificates when it starts, so it is restarted; pods run on. A control plane issues the client
certificate itself, a worker asks for it as its kubelet does. kubeadm has no counterpart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from cryptography import x509

from kubeup import yaml_files
from kubeup.airgap import containerd_hosts
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import watch
from kubeup.node.rotated_pairs import TRUST, render_where_known
from kubeup.phases import kubelet_start, recovered_certs

with lazily:
    from kubeup.cluster import api, signing_request
    from kubeup.node import certificates, kubeconfig, kubelet, kubelet_cert, pki, private_keys

GROUP = "system:nodes"
PEM = Path("/var/lib/kubelet/pki/kubelet-client-current.pem")
SERVING = "kubelet-server-current.pem"
SERVING_S = 90.0
"""How long the approval of a kubelet's serving certificate is waited for, which nothing gives by itself in a plain cluster."""


@frozen
class Turn:
    """former, following: the certificates of the authorities (PEM). issue: makes a client certificate (PEM) for a subject and a key. command: goes on
    with the rotation."""

    stage: str
    former: str
    following: str
    issue: Callable[[certificates.Subject, private_keys.Key], str]
    command: str

    @property
    def signer(self) -> x509.Certificate:
        """The authority that signs in this stage."""
        return certificates.parse_certs(self.former if self.stage == TRUST else self.following)[0]

    def render(self, present: str) -> str:
        return render_where_known(present, former=self.former, following=self.following, stage=self.stage)


def check(run: Run) -> None:
    """That the kubelet's files are where they can follow. Raises HostError (kubeconfig-unreadable, file-unreadable)."""
    conf = _conf(run)
    kubeconfig.read_kubeconfig(run.host.read_text(conf), host=run.host, path=conf)


def follow(run: Run, turn: Turn) -> None:
    """Have this node's kubelet do what the stage wants, and wait until it reports. Raises ClusterError: rotation-not-proven, csr-pending,
    not-healthy; HostError."""
    for path in _trust_files(run):
        present = run.host.read_text(path)
        wanted = turn.render(present)
        if wanted != present:
            pki.write_keeping_mode(run.host, path, text=wanted, mode=0o644)
    _renew_client(run, turn)
    _trust_in_kubeconfig(run, turn)
    serving = _take_serving(run, turn)
    began = run.host.now()
    kubelet_start.restart_kubelet(run)
    recovered_certs.wait_for_report(run, since=began)
    if serving is not None:
        _wait_for_serving(run, turn, path=serving)


def _conf(run: Run) -> Path:
    return run.paths.kubernetes / "kubelet.conf"


def _trust_files(run: Run) -> Iterator[Path]:
    """The files with authorities that programs of this node read: for who calls the kubelet, and for the mirror's certificate."""
    told = ((run.config.kubelet.get("authentication") or {}).get("x509") or {}).get("clientCAFile")
    files = (Path(str(told or run.paths.pki / "ca.crt")), run.paths.pki / "ca.crt", containerd_hosts.CA_FILE)
    yield from (path for path in dict.fromkeys(files) if run.host.exists(path))


def _trust_in_kubeconfig(run: Run, turn: Turn) -> None:
    path = _conf(run)
    text = run.host.read_text(path)
    present = kubeconfig.parse_kubeconfig(text, source=str(path)).ca_pem
    wanted = kubeconfig.with_authorities(text, turn.render(present), source=str(path))
    if wanted != text:
        pki.write_keeping_mode(run.host, path, text=wanted, mode=0o600)


def _renew_client(run: Run, turn: Turn) -> None:
    """Raises ClusterError (rotation-not-proven) if what is issued is not of the stage's authority."""
    host, path = run.host, _conf(run)
    found = kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)
    try:
        present = certificates.parse_certs(found.client_cert_pem)[0]
    except ValueError as error:
        raise HostError(
            f"the client certificate that {path} names cannot be used",
            cause=str(error),
            remedy="have the node ask for another one: kb certs recover",
            code="certificate-unreadable",
        ) from error
    if certificates.is_issued_by(present, turn.signer):
        return
    key = private_keys.generate_key("ECDSA-P256")  # as the kubelet makes them
    subject = replace(certificates.subject_of(present), organizations=(GROUP,), is_client=True, is_server=False)
    issued = turn.issue(subject, key)
    if not certificates.is_issued_by(certificates.parse_certs(issued)[0], turn.signer):
        raise ClusterError(
            "the kubelet's certificate was still signed by the other authority",
            cause="a controller-manager that has not done this stage signs for the cluster",
            remedy=f"end the stage on every control plane first: {turn.command} --continue; then here again",
            code="rotation-not-proven",
        )
    link = path.parent / found.client_cert_file if found.client_cert_file else PEM
    kubelet_cert.keep_client_pair(host, link, cert_pem=issued, key_pem=private_keys.key_to_pem(key))
    if not found.client_cert_file:
        document = kubelet.use_rotated_cert(yaml_files.load_yaml(host.read_text(path)), link)
        pki.write_keeping_mode(host, path, text=yaml_files.dump_yaml(document), mode=0o600)


# ---- a worker asks


def ask(run: Run, subject: certificates.Subject, *, key: private_keys.Key) -> str:
    """A client certificate (PEM) for this node's kubelet, which the cluster signs. Raises ClusterError (csr-*), ApiRefused, Unreachable."""
    request = certificates.render_request(subject, key)
    name = f"kb-{run.config.node.name}-{hashlib.sha256(request.encode()).hexdigest()[:10]}"
    signing_request.send_request(run.api, request, name=name)
    signed, state = "", signing_request.SigningRequest("not-sent", name)

    def look() -> str:
        nonlocal signed, state
        state, signed = signing_request.read_signed(run.api, name)
        return "" if signed or state.state in ("denied", "failed") else f"request {name} is {state.state}"

    _, waited_s = watch(run.host, look, timeout_s=SERVING_S, poll_s=0.5)
    if not signed:
        raise signing_request.explain_signing_request(
            run.host, state, node_name=run.config.node.name, waited_s=waited_s
        )
    return signed


# ---- a serving certificate that the cluster signs


def _take_serving(run: Run, turn: Turn) -> Optional[Path]:
    """Take the kubelet's serving certificate away that the other authority has signed: the kubelet asks for another one when it starts. Returns
    the link to it; None if the kubelet makes its own, or has what somebody else issues."""
    if run.config.kubelet.get("serverTLSBootstrap") is not True:
        return None
    conf = kubeconfig.parse_kubeconfig(run.host.read_text(_conf(run)), source=str(_conf(run)))
    path = (_conf(run).parent / conf.client_cert_file if conf.client_cert_file else PEM).with_name(SERVING)
    shown = certificates.parse_shown(run.host.read_text(path)) if run.host.exists(path) else ()
    if shown and not certificates.is_issued_by(shown[0], turn.signer):
        run.host.remove(path)
    return path


def _wait_for_serving(run: Run, turn: Turn, *, path: Path) -> None:
    """Raises ClusterError (csr-pending)."""

    def look() -> str:
        shown = certificates.parse_shown(run.host.read_text(path)) if run.host.exists(path) else ()
        is_new = bool(shown) and certificates.is_issued_by(shown[0], turn.signer)
        return "" if is_new else "the kubelet has no serving certificate of this stage's authority"

    missing, waited_s = watch(run.host, look, timeout_s=SERVING_S, poll_s=1.0)
    if not missing:
        return
    requests = run.api.list(
        api.path_of("CertificateSigningRequest"), field=f"spec.signerName={signing_request.SERVING_SIGNER}"
    )
    told = signing_request.explain_serving_request(run.config.node.name, requests)
    raise ClusterError(
        missing,
        cause=f"{told[0] if told else 'its request is not signed'} after {waited_s:.0f} s",
        remedy=f"{told[1] if told else 'see its requests: kubectl get csr'}; then here: {turn.command} --continue",
        code="csr-pending",
    )
