"""Checks of certificates, on disk and as served."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of
from kubeup.config.types import NodeConfig
from kubeup.diagnosis import signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.certs_in_use import find_serving_file
from kubeup.doctor.node_files import Patient, find_own_server, parse_first, read_flags
from kubeup.errors import KbError
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Tls, Unreachable
from kubeup.node import cert_specs, certificates, kubeconfig, kubelet_cert, pki, renewal, torn_pairs, unread_certs
from kubeup.paths import Paths
from kubeup.phases import auto_renewal
from kubeup.trust import Anchors

EXPIRES_SOON = datetime.timedelta(days=30)
_OVERDUE = 0.08
"""The rest of its life in which a certificate that a kubelet renews is overdue. Source: client-go/util/certificate, jitteryDuration: 70 to 90 %"""
_SEE_REQUESTS = "see why: journalctl -u kubelet | grep -i certificate; whether its requests are approved and signed, on a control plane: kubectl get certificatesigningrequests"
_LOG_LINES = 30
_PEER = "etcd, to other members,"


def look_at_certs(patient: Patient) -> Findings:
    """Certificates on disk: valid now and for some time to come, and matching their keys."""
    host, paths = patient.host, patient.paths
    if patient.is_control_plane:
        rows = renewal.wanted_rows(patient.config.cluster)
        torn = [one for one in torn_pairs.find_torn_pairs(host, paths, rows=rows) if one.can_be_put_right]
        for pair in torn:
            yield Finding("certificates", ERROR, pair.describe(), f"kb certs renew {pair.row.name}")
        for unread in unread_certs.find_unread(host, paths, socket=patient.config.node.cri_socket, rows=rows):
            yield Finding("certificates", WARNING, unread.describe(), f"kb certs renew {unread.row.name}")
        problems = [*pki.find_problems(host, paths, config=_as_found(patient)), *kubeconfig.find_problems(host, paths)]
        for problem in problems:
            if not any(problem.what.startswith(f"{pair.cert} and {pair.key} do not") for pair in torn):
                yield Finding(_name_problem(paths, problem), ERROR, str(problem), problem.remedy)
        yield from _find_astray(patient)
        bundle = _describe_bundle(patient)
        if bundle:
            yield Finding("certificates", WARNING, bundle, "then: kb init phase control-plane controller-manager")
        yield from _find_early_ends(patient)
    own = find_serving_file(patient)
    if torn_pairs.was_taken_away(host, paths, path=own):
        yield Finding("certificates", ERROR, torn_pairs.say_taken_away(own), "kb certs renew kubelet-server")
    for path, cert in _find_certs(patient):
        left = cert.not_valid_after_utc - host.now()
        if left < datetime.timedelta(0):
            text = f"{path} expired {_days(-left)} ago ({cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC)"
            yield Finding("certificates/expired", ERROR, text, _way_back(patient, path))
        elif path == paths.kubelet_client_pem and left < _OVERDUE * (
            cert.not_valid_after_utc - cert.not_valid_before_utc
        ):
            text = f"{path} expires in {_days(left)}, and the kubelet, which renews it before nine tenths of its life are over, has not done so"
            yield Finding("certificates", WARNING, text, _SEE_REQUESTS)
        elif left < EXPIRES_SOON and not _renews_itself(path):
            yield Finding("certificates", WARNING, f"{path} expires in {_days(left)}", _renewal(host, path))


def _find_astray(patient: Patient) -> Findings:
    """Kubeconfigs of this node's controllers that lead to where nobody answers, though this node's own API server does: they go on, and do nothing."""
    host, paths, own = patient.host, patient.paths, find_own_server(patient.host, patient.paths)
    if not own or _find_silence(host, own) is not None:
        return
    astray: dict[str, list[str]] = {}
    for component in _WITH_KUBECONFIG:
        path = paths.kubeconfig(f"{component.removeprefix('kube-')}.conf")
        with contextlib.suppress(KbError):  # told as what cannot be used
            server = kubeconfig.parse_kubeconfig(facts.read_or_empty(host, str(path)), source=str(path)).server
            if server != own:
                astray.setdefault(server, []).append(component)
    for server, components in astray.items():
        silence = _find_silence(host, server)
        if silence is not None:
            names = " and ".join(str(paths.kubeconfig(f"{one.removeprefix('kube-')}.conf")) for one in components)
            text = f"{names} lead{'s' * (len(components) == 1)} {' and '.join(components)} to {server}, which does not answer: {silence.cause}"
            if host_of(server.rpartition("://")[2]) == host_of(own.rpartition("://")[2]):
                text += f"; this node's API server is at {own} (--secure-port in {paths.manifest('kube-apiserver')})"
            remedy = f"make them agree ({own}); then: {'; '.join(signs.say_restart(host, one) for one in components)}"
            yield Finding(f"certificates/{components[0]}", ERROR, text, remedy)


def _find_silence(host: Host, server: str) -> Optional[Unreachable]:
    """Why nothing answers there; None if something does, whoever it is."""
    try:
        host.http_get(f"{server}/livez", tls=UNPROVEN, timeout_s=3)
    except Unreachable as error:
        return None if error.reason == "tls" else error
    return None


def _name_problem(paths: Paths, problem: KbError) -> str:
    """With the component that cannot work with such a kubeconfig."""
    of = {paths.kubeconfig(f"{name.removeprefix('kube-')}.conf"): name for name in _WITH_KUBECONFIG}
    return next(
        (f"certificates/{name}" for path, name in of.items() if f" {path} " in f"{problem.what} "), "certificates"
    )


_WITH_KUBECONFIG = ("kube-controller-manager", "kube-scheduler")


def _find_early_ends(patient: Patient) -> Findings:
    """Authorities that end before a certificate that they sign today. Nothing that they signed is accepted from then on."""
    host, paths = patient.host, patient.paths
    period = datetime.timedelta(seconds=patient.config.cluster.certificate_validity_period_s)
    for name in renewal.wanted_cas(patient.config.cluster):
        path = cert_specs.CERTS[name].cert_path(paths)
        for _, cert in parse_first(path, facts.read_or_empty(host, str(path))):
            left = cert.not_valid_after_utc - host.now()
            if EXPIRES_SOON <= left < period:
                text = f"{path} ends in {_days(left)}, before a certificate that it signs today"
                yield Finding("certificates", WARNING, text, _renewal(host, path))


def look_at_auto_renewal(patient: Patient) -> Findings:
    """The timer that renews certificates, on a node that has one: whether it runs, and how its last run ended."""
    host = patient.host
    if not host.exists(patient.paths.systemd / auto_renewal.TIMER):
        return
    timer = auto_renewal.read_timer(host, patient.paths)
    if not timer.is_on:
        text = f"{auto_renewal.TIMER} does not run, so nothing renews this node's certificates"
        yield Finding("auto-renewal", WARNING, text, "kb certs auto on; or, if that is meant: kb certs auto off")
    if timer.result not in ("", "success"):
        lines = services.read_log(host, auto_renewal.SERVICE, lines=_LOG_LINES)
        said = [line for line in lines if line.startswith("error: ")]
        text = f"the renewal of certificates failed at {timer.last} ({timer.result})" + (
            f": {said[-1]}" if said else ""
        )
        log = services.say_log(host, auto_renewal.SERVICE)
        yield Finding("auto-renewal", WARNING, text, f"see why: {log}; then: kb certs renew all --expiring")


def _describe_bundle(patient: Patient) -> str:
    """What is logged when certificates are issued; the signer's own flag says which file it uses."""
    host, paths = patient.host, patient.paths
    path = cert_specs.CERTS["ca"].cert_path(paths)
    try:
        flags = read_flags(host, paths, component="kube-controller-manager")
        text = pki.describe_bundle(host, pki.read_ca(host, paths))
    except KbError:
        return ""  # a problem that is reported elsewhere
    return text if flags.get("cluster-signing-cert-file") == str(path) else ""


def _as_found(patient: Patient) -> NodeConfig:
    """The files do not tell which additional names kb would request, so request only the address."""
    return patient.config


def _find_certs(patient: Patient) -> Iterator[tuple[Path, Any]]:
    host, paths = patient.host, patient.paths
    for folder in (paths.pki, paths.pki / "etcd"):
        for name in host.list_dir(folder):
            if name.endswith(".crt"):
                yield from parse_first(folder / name, facts.read_or_empty(host, str(folder / name)))
    for pem in (paths.kubelet_client_pem, find_serving_file(patient)):
        if host.exists(pem):
            yield from parse_first(pem, facts.read_or_empty(host, str(pem)))
    for name in ("admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf", "kubelet.conf"):
        path = paths.kubeconfig(name)
        if host.exists(path):
            try:
                found = kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)
            except KbError:
                continue
            if found.client_cert_file != str(paths.kubelet_client_pem):  # which is there by its own name
                yield from parse_first(path, found.client_cert_pem or "")


def _renews_itself(path: Path) -> bool:
    return path.name.endswith("-current.pem")


def _renewal(host: Host, path: Path) -> str:
    if path.name == "ca.crt" or path.name.endswith("-ca.crt"):
        return f"renew {path} with the same key, then restart the control plane"
    if path == kubelet_cert.FOLDER / "kubelet.crt":
        return "kb certs renew kubelet-server"
    if _renews_itself(path) or path.name == "kubelet.conf":
        return f"{signs.say_new_identity(host)}, then: {services.spoken_of(host).say('restart', 'kubelet')}"
    return "kb certs renew all"


def _way_back(patient: Patient, path: Path) -> str:
    """What to do about a certificate that has expired. A renewal tries what it issues at the API server; without one, and for the
    kubelet's own client certificate, everything comes from this node's files."""
    is_authority = path.name == "ca.crt" or path.name.endswith("-ca.crt")
    is_kubelets = _renews_itself(path) or path.name == "kubelet.conf"
    if is_authority or (not is_kubelets and _answers(patient)):
        return _renewal(patient.host, path)
    if patient.is_control_plane:
        return "kb certs recover"
    return "on a control plane: kb certs recover, which prints the line for this node"


def _answers(patient: Patient) -> bool:
    """Whether this node's API server proves itself to its clients."""
    ca = facts.read_or_empty(patient.host, str(patient.paths.pki / "ca.crt"))
    server = find_own_server(patient.host, patient.paths)
    if not (ca and server):
        return False
    try:
        patient.host.http_get(f"{server}/livez", tls=Tls(Anchors.given(ca)), timeout_s=3)
    except Unreachable:
        return False
    return True


def _days(span: datetime.timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span.seconds // 3600} h {span.seconds % 3600 // 60:02d} min"


def look_at_served_certs(patient: Patient) -> Findings:
    """Certificates as served: a server keeps the one it was started with."""
    host, paths = patient.host, patient.paths
    advertised, port = patient.config.local_api_endpoint.advertise_address, patient.config.local_api_endpoint.bind_port
    servers: list[tuple[str, str, int, Path]] = [("kubelet", "127.0.0.1", 10250, find_serving_file(patient))]
    if patient.is_control_plane:
        servers.append(("kube-apiserver", advertised, port, paths.pki / "apiserver.crt"))
    if "etcd" in patient.components:
        servers.append(("etcd", "127.0.0.1", 2379, paths.pki / "etcd/server.crt"))
    for name, address, number, path in servers:
        served = host.served_cert(address, number)
        if served is None:
            continue
        shown = certificates.parse_shown(served)
        if not shown:
            text = f"{name} presents a certificate that Kubernetes (Go) cannot read"
            yield Finding(
                "served-certificates", ERROR, text, f"{_renewal(host, path)}; {signs.say_restart(host, name)}"
            )
            continue
        cert = shown[0]
        if certificates.is_expired(cert, host.now()):
            text = f"{name} presents a certificate that expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            yield Finding("served-certificates", ERROR, text, _way_back(patient, path))
        elif certificates.is_in_future(cert, host.now()):
            text = f"{name} presents a certificate that is valid from {cert.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on"
            yield Finding("served-certificates", ERROR, text, "set this machine's clock: timedatectl")
        yield from _find_missing(patient, name, cert=cert)
        on_disk = [found for _, found in parse_first(path, facts.read_or_empty(host, str(path)))]
        if on_disk and on_disk[0] != cert:
            text = f"{name} still presents another certificate than {path}: it was started before that was written"
            yield Finding("served-certificates", WARNING, text, signs.say_restart(host, name))
    peer = (
        paths.pki / "etcd/peer.crt"
    )  # etcd reads it for each connection, and complains of whoever shows none of his own
    pem = facts.read_or_empty(host, str(peer)) if "etcd" in patient.components else ""
    for _, cert in parse_first(peer, pem):
        yield from _find_missing(patient, _PEER, cert=cert)


_CALLERS = {
    "kube-apiserver": ("apiserver", "whoever calls it so, such as pods, does not trust it"),
    "etcd": ("etcd-server", "API servers and kb, which call it so, do not trust it"),
    _PEER: ("etcd-peer", "the other members, which call it so, do not trust it"),
}
"""Server -> (its certificate's name, what its clients do that call it otherwise)."""


def _find_missing(patient: Patient, name: str, *, cert: Any) -> Findings:
    """The names by which its clients call this server, and which its certificate lacks."""
    issued, lost = _CALLERS.get(name, ("", ""))
    missing = certificates.sans_of(cert).lacks(_list_names(patient, name)) if issued else ()
    if missing:
        text = f"{name} presents a certificate without {', '.join(missing)}: {lost}"
        yield Finding("served-certificates", ERROR, text, f"kb init phase certs {issued}")


def _list_names(patient: Patient, name: str) -> cert_specs.Sans:
    """The names by which its clients call this server: what every certificate of kubeadm's has of them, or what etcd's own flags tell others."""
    own = patient.config.local_api_endpoint.advertise_address
    if name == "kube-apiserver":
        service = ipaddress.ip_network(patient.config.cluster.service_cidrs()[0], strict=False)[1]
        return cert_specs.make_sans((str(service), "kubernetes.default.svc", own))
    flags = read_flags(patient.host, patient.paths, component="etcd")
    told = flags.get("initial-advertise-peer-urls" if name == _PEER else "advertise-client-urls", "")
    urls = [url for url in told.split(",") if url.startswith("https://")]
    servers = read_flags(patient.host, patient.paths, component="kube-apiserver").get("etcd-servers", "")
    if name == "etcd":
        urls += [url for url in servers.split(",") if url.startswith("https://127.0.0.1:")]
    return cert_specs.make_sans(host_of(url.partition("://")[2]) for url in urls)
