"""The pair that is rotated, a key with its certificate if it is an authority's, and what a control plane's files hold of the former and
the next one in each stage.

The first one in a file is always the one whose key lies beside it: who issues a certificate meanwhile, kubeadm too, signs with that one.
What somebody else put into such a file stays there. Knows neither the cluster nor a phase. kubeadm has no counterpart.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import pki
from kubeup.node.cert_specs import CERTS, key_algorithm
from kubeup.node.certificates import (
    Ca,
    cert_to_pem,
    is_issued_by,
    issue_ca_cert,
    issue_cross_cert,
    parse_certs,
    plan_validity,
)
from kubeup.node.private_keys import Key, generate_key, key_to_pem, parse_key, public_key_to_pem, spki
from kubeup.paths import Paths
from kubeup.pem import Block, split_pem
from kubeup.secret import Secret

if TYPE_CHECKING:
    from kubeup.config.types import ClusterConfiguration

TRUST, USE, DROP = "trust", "use", "drop"
"""The next one is accepted beside the former one; it is used, and the former one is still accepted; the former one is not accepted."""
CROSS_CERT_S = 365 * 86400
"""How long the certificate lives that the former authority gives the following one: longer than a rotation takes."""


@frozen
class Pair:
    """key_pem: the private key. cert_pem: its certificate; "" for the key that signs tokens."""

    key_pem: Secret
    cert_pem: str = ""

    @property
    def key(self) -> Key:
        return parse_key(self.key_pem.reveal())

    @property
    def cert(self) -> x509.Certificate:
        return parse_certs(self.cert_pem)[0]

    @property
    def public_pem(self) -> str:
        """The certificate; of the key that signs tokens the public key."""
        return self.cert_pem or public_key_to_pem(self.key)

    @property
    def id(self) -> str:
        """The digest of its public key, in hex."""
        return hashlib.sha256(spki(self.key.public_key())).hexdigest()


@frozen
class Place:
    """The two files of a pair: the private key, and the certificate or public key, which may hold several."""

    key: Path
    public: Path
    authority: str = ""
    """Its name in the table of certificates; "" for the key that signs tokens."""


def place_of(paths: Paths, authority: str = "") -> Place:
    if not authority:
        return Place(paths.pki / "sa.key", paths.pki / "sa.pub")
    spec = CERTS[authority]
    return Place(spec.key_path(paths), spec.cert_path(paths), authority)


def read_pair(host: Host, place: Place) -> Pair:
    """The pair on this node: the key, and the first certificate. Raises HostError: external-ca-signs, key-mismatch, key-unreadable,
    certificate-unreadable."""
    if not host.exists(place.key):
        raise HostError(
            f"the key {place.key} is not there",
            cause="whoever keeps it signs elsewhere, and only there it can be replaced",
            remedy=f"have the new certificate made there, beside the former one in {place.public}"
            if place.authority
            else f"put it back: {place.key}",
            code="external-ca-signs",
        )
    key = pki.read_key(host, place.key)
    pair = Pair(key_to_pem(key), cert_to_pem(pki.read_certs(host, place.public)[0]) if place.authority else "")
    if not pki.is_public_half_in(pair.cert_pem or host.read_text(place.public), key):
        raise HostError(
            f"{place.key} and {place.public} do not belong together",
            cause=f"what {place.public} has first is not of this key",
            remedy="see which of them is of this cluster, and put the other one right: compare it with another control plane's",
            code="key-mismatch",
        )
    return pair


def make_pair(host: Host, cluster: ClusterConfiguration, *, authority: str = "") -> Pair:
    """A new one, with the names and the life that the cluster's configuration says."""
    key = generate_key(key_algorithm(cluster))
    if not authority:
        return Pair(key_to_pem(key))
    validity = plan_validity(host.now(), cluster.ca_certificate_validity_period_s)
    return Pair(key_to_pem(key), cert_to_pem(issue_ca_cert(CERTS[authority].common_name, key, validity=validity)))


def render_public(present: str, *, former: Pair, following: Pair, stage: str) -> str:
    """What the file of the certificate, or public key, is to hold in a stage. present: what it holds; others' entries stay, at its end."""
    return render_trusted(present, former=former.public_pem, following=following.public_pem, stage=stage)


def render_trusted(present: str, *, former: str, following: str, stage: str) -> str:
    """The same where only the public halves are known, as on a worker. former, following: a certificate or public key (PEM) each."""
    first, second = (former, following) if stage == TRUST else (following, former)
    kept = (first,) if stage == DROP else (first, second)
    known = {_read_spki(block) for text in (former, following) for block in split_pem(text)}
    others = [block.text for block in split_pem(present) if _read_spki(block) not in known]
    return "".join((*kept, *others))


def render_where_known(present: str, *, former: str, following: str, stage: str) -> str:
    """The same for a text of somebody's own: one that has neither of them is about other authorities, and stays as it is."""
    known = {_read_spki(block) for text in (former, following) for block in split_pem(text)}
    if not any(_read_spki(block) in known for block in split_pem(present)):
        return present
    return render_trusted(present, former=former, following=following, stage=stage)


def ids_in(text: str) -> tuple[str, ...]:
    """The ids of the pairs of which a certificate, public or private key is in a text, in its order."""
    return tuple(hashlib.sha256(found).hexdigest() for found in map(_read_spki, split_pem(text)) if found)


def _read_spki(block: Block) -> bytes:
    """The public key in a certificate or of a private or public key; b"" if it is none that can be read."""
    with contextlib.suppress(ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        if block.is_cert:
            return spki(x509.load_der_x509_certificate(block.content).public_key())
        if block.is_private_key:
            return spki(parse_key(block.text).public_key())
        return spki(serialization.load_der_public_key(block.content))
    return b""


def cross_sign(following: Pair, *, former: Pair, now: datetime.datetime) -> x509.Certificate:
    """The following authority as the former one has signed it, for servers to show to clients that know the former one alone. It lives no
    longer than either."""
    validity = plan_validity(now, CROSS_CERT_S)
    ca = Ca(former.cert, former.key, Path("/etc/kubernetes/pki/ca.crt"))
    return issue_cross_cert(following.cert, ca=ca, validity=validity)


def is_cross(cert: x509.Certificate, *, following: x509.Certificate, former: x509.Certificate) -> bool:
    return is_issued_by(cert, former) and spki(cert.public_key()) == spki(following.public_key())


def holder_of_key(stage: str, *, former: Pair, following: Pair) -> Pair:
    """The one whose private key lies on the nodes in a stage."""
    return former if stage == TRUST else following
