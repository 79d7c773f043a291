"""What may prove a server, and what may not: certificates by where they came from.

Owns the two types that keep them apart. An Offered text came over a connection that proved nothing: it may be looked at, and
shown. Anchors are what this machine or its operator vouches for; TLS that can carry credentials takes Anchors alone, so that
mypy refuses the other way. Becoming Anchors takes one of the constructors here, or a pin (pki.keep_pinned).
Knows no certificate's inside.
"""

from __future__ import annotations

from kubeup.frozen_values import frozen


@frozen
class Offered:
    """Certificates (PEM) that a server showed before it had proven who it is."""

    pem: str


@frozen
class Anchors:
    """Certificates (PEM), at least one, each of which may prove a server: every certificate of such a text is believed, a
    root or not, as in Go's x509.CertPool."""

    pem: str

    @classmethod
    def given(cls, pem: str) -> Anchors:
        """What lies on this machine or was given by its operator."""
        return cls(pem)

    @classmethod
    def vouched(cls, offered: Offered) -> Anchors:
        """What a server offered, where its text bears a signature that only the token's holders can make, or where a server
        that has proven itself sent the same text."""
        return cls(offered.pem)
