"""The certificates of a node that have expired, and issuing each of them anew from the files of this node alone.

Nothing is asked of an API server or of etcd: when everything has expired, both refuse everybody. Subject, names, key and period are those
of the expired certificate. The certificate authorities and the keys stay. This module knows no phase, and restarts nothing. kubeadm has
no counterpart: its renewal leaves the kubelet's own certificate out.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from cryptography import x509

from kubeup import yaml_files
from kubeup.config.types import ClusterConfiguration
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import cert_specs, certificates, kubeconfig, kubelet, kubelet_cert, pki, private_keys, renewal
from kubeup.paths import Paths

CLIENT, EMBEDDED, SERVER = "kubelet-client", "kubelet.conf", "kubelet-server"
"""The names of the kubelet's own certificates: its rotating client pair, one that kubelet.conf embeds, and the one that it presents."""
AUTHORITY = "authority"
"""The name of an authority that has ended and that a kubeconfig trusts, where ca.crt has another certificate of the same key by now."""
USER, GROUP = "system:node:", "system:nodes"
LONGEST_S = 365 * 86400
"""For how long a certificate is issued whose own period cannot be told."""
BACKDATED_S = 300
"""By how much certificates are backdated, by kubeadm, kb and the controller-manager."""
DOUBTFUL = datetime.timedelta(days=3 * 365)
"""If everything ended longer ago than this, the clock is more likely to be wrong than the machine to have been off."""
SLACK = datetime.timedelta(hours=1)
"""By how much a file may be newer than the clock: they are dated by the same one, unless that was set back."""


@frozen
class KubeletFiles:
    """Where this node's kubelet keeps its certificates."""

    conf: Path
    """kubelet.conf"""
    pem: Path
    """The link to its current client pair, kubelet-client-current.pem."""
    serving: Optional[Path] = None
    """The certificate that it made for itself, with its key beside it; None if what it presents is somebody else's to renew."""


@frozen
class Expired:
    """A certificate that has expired. ca: `ca`, `etcd-ca` or `front-proxy-ca`; "" for what the kubelet makes for itself, and for an authority."""

    name: str
    path: Path
    cert: x509.Certificate
    ca: str = "ca"

    @property
    def ended(self) -> datetime.datetime:
        return self.cert.not_valid_after_utc


# ---- what has expired


def find_expired(
    host: Host, paths: Paths, *, cluster: Optional[ClusterConfiguration], kubelet_files: KubeletFiles
) -> tuple[Expired, ...]:
    """Everything on this node that has expired, but for authorities whose place nothing has taken yet. cluster: None on a worker, which has
    only the kubelet's. Raises HostError if a file is there and holds no usable certificate."""
    rows = renewal.wanted_rows(cluster) if cluster is not None else ()
    found = [*_read_rows(host, paths, rows=rows), *_read_kubelet(host, kubelet_files)]
    confs = [renewal.files_of(paths, row)[-1] for row in rows if row.is_kubeconfig]
    found += _read_trusted(host, paths, confs=(*confs, kubelet_files.conf))
    return tuple(one for one in found if certificates.is_expired(one.cert, host.now()))


def _read_trusted(host: Host, paths: Paths, *, confs: Iterable[Path]) -> Iterator[Expired]:
    """The first authority in each kubeconfig that trusts none which is still valid, if ca.crt has a valid one of that key."""
    path = cert_specs.CERTS["ca"].cert_path(paths)
    valid = [one for one in certificates.parse_shown(_read(host, path)) if not certificates.is_expired(one, host.now())]
    for conf in confs if valid else ():
        text = _read(host, conf)
        try:
            found = kubeconfig.parse_kubeconfig(text, source=str(conf)) if text else None
        except HostError:
            continue  # what reads it says so
        trusted = certificates.parse_shown(found.ca_pem) if found is not None and not found.ca_file else ()
        is_over = bool(trusted) and all(certificates.is_expired(one, host.now()) for one in trusted)
        if is_over and any(certificates.is_issued_by(trusted[0], one) for one in valid):
            yield Expired(AUTHORITY, conf, trusted[0], "")


def _read_rows(host: Host, paths: Paths, *, rows: Iterable[renewal.Row]) -> Iterator[Expired]:
    for row in rows:
        cert = renewal.read_cert(host, paths, row=row)
        if cert is not None:
            yield Expired(row.name, renewal.files_of(paths, row)[-1], cert, row.ca)


def _read_kubelet(host: Host, files: KubeletFiles) -> Iterator[Expired]:
    for name, path, pem in (
        (CLIENT, files.pem, _read(host, files.pem)),
        (EMBEDDED, files.conf, _read_embedded(host, files)[0]),
        (SERVER, files.serving, _read(host, files.serving)),
    ):
        certs = certificates.parse_shown(pem)
        if path is not None and certs:
            yield Expired(name, path, certs[0], "" if name == SERVER else "ca")


def _read_embedded(host: Host, files: KubeletFiles) -> tuple[str, str]:
    """The certificate and key that kubelet.conf names, unless that is the rotating pair."""
    if not host.exists(files.conf):
        return "", ""
    try:
        found = kubeconfig.read_kubeconfig(host.read_text(files.conf), host=host, path=files.conf)
    except KbError:
        return "", ""  # it names a file that is missing, or is no kubeconfig: nothing that could have expired
    if found.client_cert_file.endswith(files.pem.name):
        return "", ""
    return found.client_cert_pem, found.client_key_pem.reveal()


def _read(host: Host, path: Optional[Path]) -> str:
    try:
        return host.read_text(path) if path is not None and host.exists(path) else ""
    except HostError:
        return ""  # a link that leads nowhere


# ---- may it be issued here?


def check_authorities(host: Host, paths: Paths, *, cluster: ClusterConfiguration, expired: Sequence[Expired]) -> None:
    """Check that everything that has expired can be issued here, before anything is changed.

    Raises HostError: ca-expired and what else read_ca raises, for any authority of the node; external-ca-expired,
    certificate-of-other-ca.
    """
    for name in renewal.wanted_cas(cluster):
        wanted = [one for one in expired if one.ca == name]
        if not wanted and not host.exists(cert_specs.CERTS[name].cert_path(paths)):
            continue
        ca = pki.read_ca(host, paths, name=name)
        if wanted and ca.key is None:
            raise _external(ca, wanted)
        pool = pki.read_certs(host, ca.path)
        for one in wanted:
            if not any(certificates.is_issued_by(one.cert, authority) for authority in pool):
                raise HostError(
                    f"the certificate in {one.path} was not signed by {ca.path}",
                    cause=f"its issuer is {one.cert.issuer.rfc4514_string()}, so whoever accepts it trusts another authority",
                    remedy=f"have that authority issue it again, for the same key, and put it at {one.path}",
                    code="certificate-of-other-ca",
                )


def _external(ca: certificates.Ca, wanted: Sequence[Expired]) -> HostError:
    names = ", ".join(one.name for one in wanted)
    return HostError(
        f"{names}: expired, and signed by an authority whose key is kept elsewhere",
        cause=f"there is no {ca.path.with_suffix('.key')} on this node",
        remedy="have that authority sign requests for them: kb certs generate-csr --cert-dir /root/csr --kubeconfig-dir /root/csr; "
        f"or put its key at {ca.path.with_suffix('.key')} for the time being, and run the command again",
        code="external-ca-expired",
    )


def check_clock(
    host: Host, *, expired: Sequence[Expired], traces: Iterable[Path], certs: Iterable[x509.Certificate] = ()
) -> None:
    """Check this machine's clock by what lies on it, since nobody can be asked: traces are files that a running node writes often.

    Raises HostError (clock-behind, clock-doubtful).
    """
    now = host.now()
    times = [(f"the certificate of {_name_of(cert)}", cert.not_valid_before_utc) for cert in certs]
    for path in traces:
        found = host.stat(path)
        if found is not None:
            written = datetime.datetime.fromtimestamp(found.mtime, datetime.timezone.utc)
            times.append((str(path), written - SLACK))
    what, newest = max(times, key=lambda row: row[1], default=("", now))
    if newest > now:
        raise HostError(
            f"this machine's clock is behind: it says {now:%Y-%m-%d %H:%M} UTC",
            cause=f"{what} is from {newest:%Y-%m-%d %H:%M} UTC",
            remedy=f"set it: timedatectl set-ntp true, or date -u -s '{newest:%Y-%m-%d %H:%M:%S}' with the time of your watch",
            code="clock-behind",
        )
    last = max((one.ended for one in expired), default=now)
    if now - last > DOUBTFUL:
        raise HostError(
            f"this machine's clock may be wrong: it says {now:%Y-%m-%d %H:%M} UTC",
            cause=f"the last of its certificates ended at {last:%Y-%m-%d %H:%M} UTC, {(now - last).days // 365} years ago",
            remedy="set it (timedatectl set-ntp true), then run the command again; if it is right: --force",
            code="clock-doubtful",
        )


def _name_of(cert: x509.Certificate) -> str:
    return certificates.subject_of(cert).common_name or "this node"


# ---- issuing


def files_of(host: Host, paths: Paths, *, expired: Iterable[Expired], kubelet_files: KubeletFiles) -> list[Path]:
    """The files that issuing these anew replaces or takes away."""
    files: list[Path] = []
    for one in expired:
        if one.name in renewal.ROWS:
            files += renewal.files_of(paths, renewal.ROWS[one.name])
        elif one.name == SERVER:
            files += [one.path, one.path.with_suffix(".key")]
        elif one.name == AUTHORITY:
            files.append(one.path)
        else:
            files += [kubelet_files.conf, kubelet_files.pem]
    return [path for path in dict.fromkeys(files) if host.exists(path)]


def issue_row(host: Host, paths: Paths, *, one: Expired) -> None:
    """Issue the certificate of a row of renewal.ROWS anew, for its own key, by one write: what is cut off leaves the former or the new
    one. A key that does not fit its certificate is replaced."""
    row, ca = renewal.ROWS[one.name], pki.read_ca(host, paths, name=one.ca)
    seconds = period_of(one.cert, ca.cert)
    if row.is_kubeconfig:
        text = kubeconfig.renew_client(host, paths, path=one.path, seconds=seconds)
        pki.write_keeping_mode(host, one.path, text=text, mode=0o600)
        return
    key_path, path = renewal.files_of(paths, row)
    key = _fitting_key(_read(host, key_path), one.cert)
    if key is None:
        key = private_keys.generate_key(_algorithm_of(one.cert))
        pki.write_keeping_mode(host, key_path, text=private_keys.key_to_pem(key).reveal(), mode=0o600)
    new = certificates.issue_leaf_cert(
        certificates.subject_of(one.cert), key, ca=ca, validity=certificates.plan_validity(host.now(), seconds)
    )
    others = [cert for cert in pki.read_certs(host, path)[1:] if not certificates.is_expired(cert, host.now())]
    pki.write_keeping_mode(
        host, path, text="".join(certificates.cert_to_pem(cert) for cert in (new, *others)), mode=0o644
    )


def trust_authorities(host: Host, paths: Paths, *, expired: Iterable[Expired]) -> None:
    """Have the kubeconfigs that trust what has ended trust what ca.crt holds now. Raises HostError (kubeconfig-unreadable)."""
    for one in (one for one in expired if one.name == AUTHORITY):
        ca_pem = host.read_text(cert_specs.CERTS["ca"].cert_path(paths))
        text = kubeconfig.with_authorities(host.read_text(one.path), ca_pem, source=str(one.path))
        pki.write_keeping_mode(host, one.path, text=text, mode=0o600)


def issue_kubelet_client(host: Host, paths: Paths, *, expired: Sequence[Expired], files: KubeletFiles) -> None:
    """Issue the kubelet's client certificate anew, the way the kubelet keeps it. kubelet.conf that embeds one names the link from here on,
    so that the kubelet renews it."""
    by_name = {one.name: one for one in expired}
    current = certificates.parse_shown(_read(host, files.pem))
    if not current or CLIENT in by_name:
        one = by_name.get(CLIENT) or by_name[EMBEDDED]
        key_pem = _read(host, files.pem) if one.name == CLIENT else _read_embedded(host, files)[1]
        ca = pki.read_ca(host, paths)
        key = _fitting_key(key_pem, one.cert) or private_keys.generate_key("ECDSA-P256")
        validity = certificates.plan_validity(host.now(), period_of(one.cert, ca.cert))
        subject = replace(certificates.subject_of(one.cert), organizations=(GROUP,), is_client=True, is_server=False)
        new = certificates.cert_to_pem(certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity))
        kubelet_cert.keep_client_pair(host, files.pem, cert_pem=new, key_pem=private_keys.key_to_pem(key))
    if EMBEDDED in by_name:
        document = kubelet.use_rotated_cert(yaml_files.load_yaml(host.read_text(files.conf)), files.pem)
        pki.write_keeping_mode(host, files.conf, text=yaml_files.dump_yaml(document), mode=0o600)


def period_of(cert: x509.Certificate, ca: x509.Certificate) -> int:
    """For how many seconds a certificate was issued. That of a new kubeconfig, and every one of older kubeadms, begins with its
    authority: then it is at most a year."""
    life_s = int((cert.not_valid_after_utc - cert.not_valid_before_utc).total_seconds())
    if cert.not_valid_before_utc == ca.not_valid_before_utc:
        return min(life_s, LONGEST_S)
    return life_s - BACKDATED_S if life_s > BACKDATED_S else life_s


def node_name_of(cert: x509.Certificate) -> str:
    """The node's name in a kubelet's client certificate; "" if it is none."""
    prefix, _, name = certificates.subject_of(cert).common_name.partition(USER)
    return name if not prefix else ""


def _fitting_key(pem: str, cert: x509.Certificate) -> Optional[private_keys.Key]:
    try:
        key = private_keys.parse_key(pem)
    except ValueError:
        return None
    return key if private_keys.is_key_of(key, cert) else None


def _algorithm_of(cert: x509.Certificate) -> str:
    """The kind of its key, as encryptionAlgorithm says it."""
    key = cert.public_key()
    size = int(getattr(key, "key_size", 2048))
    if hasattr(key, "curve"):
        return "ECDSA-P384" if size == 384 else "ECDSA-P256"
    return f"RSA-{size}" if size in (2048, 3072, 4096) else "RSA-2048"


def is_self_made(host: Host, path: Path) -> bool:
    """Whether the kubelet made the certificate at `path` for itself, and makes another if that is missing."""
    certs = certificates.parse_shown(_read(host, path))
    return bool(certs) and host.read_link(path) is None and kubelet_cert.is_made_by_kubelet(certs[0])
