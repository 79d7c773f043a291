"""The certificates of this node that no renewal of kubeadm's knows: the kubelet's own, and what each server presents.

Everything is read from this node, so it works without an API server, and on workers. What to print, and what an end means for an
exit status, the command decides. kubeadm has no counterpart: its list has neither the kubelet's certificates nor the served ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from cryptography import x509

from kubeup.addresses import host_of, join_host_port, port_of
from kubeup.diagnosis.checks import facts
from kubeup.doctor.node_files import Patient, parse_first, read_flags, read_kubelet_flags
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.node import certificates, kubeconfig, kubelet_cert

with lazily:
    from kubeup.phases import find_mirror, serve_mirror

OWN = "itself"
"""The issuer of a certificate that a component made for itself."""


_EMBEDDED = (
    "kubelet.conf embeds a certificate, which nothing renews: once that has expired, the kubelet does not start again; name the rotating "
    "one there: kb init phase kubelet-finalize enable-client-cert-rotation"
)


@frozen
class Held:
    """A certificate of the kubelet, in a file. issuer: `ca`, `itself`, or "" for another's."""

    name: str
    path: Path
    cert: x509.Certificate
    issuer: str
    renews_itself: bool = False
    """The kubelet renews it while it runs, once 70 to 90 % of its life are over."""
    note: str = ""


@frozen
class Served:
    """What a server presents. cert: None if it does not answer, or shows what Go cannot read (`note` says which)."""

    component: str
    address: str
    """`10.0.0.11:6443`"""
    cert: Optional[x509.Certificate]
    file: Optional[Path] = None
    """The file that it is told to present; None if it makes its certificate when it starts."""
    differs: bool = False
    """It presents another certificate than the file's."""
    note: str = ""


# ---- the kubelet's


def read_kubelet_certs(patient: Patient) -> list[Held]:
    """The kubelet's client certificate (its rotating pair, and the one that kubelet.conf embeds), and its serving certificate."""
    authority = _read_authority(patient)
    places = [("kubelet-client", patient.paths.kubelet_client_pem), ("kubelet-server", find_serving_file(patient))]
    held = [_hold(patient, name, path=path, pem=_read(patient, path), authority=authority) for name, path in places]
    conf = patient.paths.kubeconfig("kubelet.conf")
    pem = _read_embedded(patient, conf)
    if pem:
        held.insert(1, _hold(patient, "kubelet.conf", path=conf, pem=pem, authority=authority))
    return [one for one in held if one]


def find_serving_file(patient: Patient) -> Path:
    """The file whose certificate the kubelet presents."""
    given = str(patient.config.kubelet.get("tlsCertFile") or "")
    if given.startswith("/"):
        return Path(given)
    folder = Path(read_kubelet_flags(patient.host, patient.paths).get("cert-dir") or kubelet_cert.FOLDER)
    rotates = patient.config.kubelet.get("serverTLSBootstrap") is True
    return folder / ("kubelet-server-current.pem" if rotates else "kubelet.crt")


def find_kubelet_port(patient: Patient) -> int:
    """The port of the kubelet's own API."""
    port = patient.config.kubelet.get("port")
    return port if isinstance(port, int) and port else 10250


def _hold(
    patient: Patient, name: str, *, path: Path, pem: str, authority: Optional[x509.Certificate]
) -> Optional[Held]:
    for _, cert in parse_first(path, pem):
        issuer = "ca" if authority is not None and certificates.is_issued_by(cert, authority) else ""
        issuer = issuer or (OWN if kubelet_cert.is_made_by_kubelet(cert) else "")
        return Held(
            name, path, cert, issuer, path.name.endswith("-current.pem"), _EMBEDDED if name == "kubelet.conf" else ""
        )
    return None


def _read_embedded(patient: Patient, path: Path) -> str:
    """The certificate in kubelet.conf itself, or in another file than the rotating pair that it names; "" if there is none."""
    if not patient.host.exists(path):
        return ""
    try:
        found = kubeconfig.read_kubeconfig(patient.host.read_text(path), host=patient.host, path=path)
    except KbError:
        return ""
    return "" if found.client_cert_file.endswith(patient.paths.kubelet_client_pem.name) else found.client_cert_pem


def _read_authority(patient: Patient) -> Optional[x509.Certificate]:
    """The cluster's CA, as this node's kubelet knows it."""
    trusted = (patient.config.kubelet.get("authentication") or {}).get("x509") or {}
    path = Path(str(trusted.get("clientCAFile") or patient.paths.pki / "ca.crt"))
    return next((cert for _, cert in parse_first(path, _read(patient, path))), None)


def _read(patient: Patient, path: Path) -> str:
    return facts.read_or_empty(patient.host, str(path))


# ---- what is served


@frozen
class _Server:
    component: str
    address: str
    port: int
    file: Optional[Path]


def look_at_servers(patient: Patient) -> list[Served]:
    """What each TLS server of this node presents now, beside what is on disk."""
    return [_look_at(patient, server) for server in _find_servers(patient)]


def _find_servers(patient: Patient) -> Iterator[_Server]:
    """The servers by the flags in their manifests, and by the kubelet's configuration."""
    flags = {name: read_flags(patient.host, patient.paths, component=name) for name in patient.components}
    if "kube-apiserver" in flags:
        own = flags["kube-apiserver"]
        endpoint = patient.config.local_api_endpoint
        yield _Server("kube-apiserver", endpoint.advertise_address, endpoint.bind_port, _file(own, "tls-cert-file"))
    if "etcd" in flags:
        for name, urls, file in (
            ("etcd", "listen-client-urls", "cert-file"),
            ("etcd (peers)", "listen-peer-urls", "peer-cert-file"),
        ):
            place = _first_tls(flags["etcd"].get(urls, ""))
            if place:
                yield _Server(name, *place, _file(flags["etcd"], file))
    for component, port in (("kube-controller-manager", 10257), ("kube-scheduler", 10259)):
        if component in flags:
            own = flags[component]
            chosen = own.get("secure-port", "")
            address = _loopback_for(own.get("bind-address", ""))
            number = int(chosen) if chosen.isdigit() else port
            if number:
                yield _Server(component, address, number, _file(own, "tls-cert-file"))
    if patient.host.exists(patient.paths.systemd / serve_mirror.MIRROR_UNIT):
        here = patient.config.local_api_endpoint.advertise_address
        yield _Server("kb-mirror", here, find_mirror.MIRROR_PORT, patient.paths.pki / "kb-mirror.crt")
    if patient.is_member:
        yield _find_kubelet(patient)


def _find_kubelet(patient: Patient) -> _Server:
    address = _loopback_for(str(patient.config.kubelet.get("address") or ""))
    return _Server("kubelet", address, find_kubelet_port(patient), find_serving_file(patient))


def _file(flags: Mapping[str, str], name: str) -> Optional[Path]:
    return Path(flags[name]) if flags.get(name, "").startswith("/") else None


def _first_tls(urls: str) -> Optional[tuple[str, int]]:
    for url in urls.split(","):
        match = re.fullmatch(r"https://(\S+:\d+)/?", url.strip())
        if match:
            return _loopback_for(host_of(match.group(1))), port_of(match.group(1))
    return None


def _loopback_for(address: str) -> str:
    """An address to call a server at that listens on `address`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def _look_at(patient: Patient, server: _Server) -> Served:
    at = join_host_port(server.address, server.port)
    pem = patient.host.served_cert(server.address, server.port)
    if pem is None:
        return Served(server.component, at, None, server.file, note="does not answer")
    shown = certificates.parse_shown(pem)
    if not shown:
        return Served(
            server.component, at, None, server.file, note="presents a certificate that Kubernetes (Go) cannot read"
        )
    if server.file is None:
        return Served(server.component, at, shown[0], note="made by itself when it started")
    on_disk = [cert for _, cert in parse_first(server.file, _read(patient, server.file))]
    if on_disk and on_disk[0] != shown[0]:
        return Served(server.component, at, shown[0], server.file, True, f"another one than {server.file}")
    is_own = kubelet_cert.is_made_by_kubelet(shown[0])
    note = f"{server.file}{', made by the kubelet itself' if is_own else ''}"
    return Served(server.component, at, shown[0], server.file, note=note if on_disk else f"{server.file} is missing")
