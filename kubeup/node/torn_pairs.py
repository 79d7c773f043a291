"""A certificate and a key that do not belong together, as a renewal leaves them that was cut off between the two files.

No file system replaces two files at once. A renewal keeps the former pair first, so one half of a torn pair has its other half among the
copies: put back, the pair is usable again, whatever the authority. Knows neither commands nor phases. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import certificates, former_certs, pki, private_keys, renewal
from kubeup.node.renewal import Row
from kubeup.paths import Paths


@frozen
class TornPair:
    """The files of a row that do not belong together. half: the one that was replaced, whose former content is in `copy`; both None if
    no copy fits. is_external: the key of its authority is kept elsewhere, so that no new pair can be issued here."""

    row: Row
    key: Path
    cert: Path
    half: Optional[Path] = None
    copy: Optional[Path] = None
    is_external: bool = False

    @property
    def can_be_put_right(self) -> bool:
        """Whether a renewal makes the two a pair again."""
        return self.copy is not None or not self.is_external

    def describe(self) -> str:
        """What is wrong, in a sentence."""
        known = f"; what belongs to it is in {self.copy}" if self.copy else ""
        return f"{self.cert} and {self.key} do not belong together, as after a renewal that was cut off{known}"


def find_torn_pairs(host: Host, paths: Paths, *, rows: Iterable[Row]) -> list[TornPair]:
    """The torn ones of these rows. What is missing or cannot be read is another matter, and left out."""
    return [torn for row in rows if not row.is_kubeconfig for torn in _look_at(host, paths, row=row)]


def was_taken_away(host: Host, paths: Paths, *, path: Path) -> bool:
    """Whether a renewal that was cut off has taken the kubelet's serving certificate at `path` away, and the kubelet has not made another.
    With one half of the pair it does not start again (CanReadCertAndKey in client-go/util/cert/io.go)."""
    return not host.exists(path) and any(former_certs.find_copies(host, paths, path=path))


def say_taken_away(path: Path) -> str:
    """That, in a sentence."""
    return f"{path} was taken away by a renewal that was cut off, and with one half of the pair the kubelet does not start again"


def put_right(host: Host, torn: TornPair) -> None:
    """Put the former half back. Raises HostError from the files."""
    if torn.half is not None and torn.copy is not None:
        host.write_file(torn.half, host.read_bytes(torn.copy), mode=0o600, keeps=True)


def _look_at(host: Host, paths: Paths, *, row: Row) -> Iterable[TornPair]:
    key, cert = renewal.files_of(paths, row)
    texts = _read(host, key), _read(host, cert)
    if _fits(*texts) is not False:
        return
    for half, other in ((key, (None, texts[1])), (cert, (texts[0], None))):
        for copy in former_certs.find_copies(host, paths, path=half):
            former = _read(host, copy)
            if _fits(other[0] or former, other[1] or former):
                yield TornPair(row, key, cert, half, copy)
                return
    yield TornPair(row, key, cert, is_external=_is_external(host, paths, row=row))


def _is_external(host: Host, paths: Paths, *, row: Row) -> bool:
    try:
        return pki.is_external_ca(host, paths, name=row.ca)
    except HostError:
        return True


def _read(host: Host, path: Path) -> str:
    try:
        return host.read_text(path) if host.exists(path) else ""
    except HostError:
        return ""


def _fits(key_pem: str, cert_pem: str) -> Optional[bool]:
    """Whether the key is the certificate's; None if one of them is none."""
    certs = certificates.parse_shown(cert_pem)
    try:
        return private_keys.is_key_of(private_keys.parse_key(key_pem), certs[0]) if certs else None
    except ValueError:
        return None
