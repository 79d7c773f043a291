"""Which certificates may verify a server and which may not, by their origin.

Owns the two types that keep them apart. An Offered text came over an unverified connection: it may be examined and
shown. Anchors are vouched for by this machine or its operator. TLS that can carry credentials accepts only Anchors, so
mypy rejects Offered there. Only the constructors here, or a pin (ca_pins.keep_pinned), create Anchors. Does not parse
certificates.
"""

from __future__ import annotations

from kubeup.frozen_values import frozen


@frozen
class Offered:
    """Certificates (PEM) that a server presented before it was verified."""

    pem: str


@frozen
class Anchors:
    """At least one certificate (PEM). Each one may verify a server: all certificates of such a text are trusted,
    whether roots or not, as in Go's x509.CertPool."""

    pem: str

    @classmethod
    def given(cls, pem: str) -> Anchors:
        """Certificates from this machine or given by its operator."""
        return cls(pem)

    @classmethod
    def vouched(cls, offered: Offered) -> Anchors:
        """Certificates that a server offered, if the text has a signature that only holders of the token can make, or
        if a verified server sent the same text."""
        return cls(offered.pem)
