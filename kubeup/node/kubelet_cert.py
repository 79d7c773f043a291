"""The kubelet's serving certificate that it makes for itself, /var/lib/kubelet/pki/kubelet.crt.

A kubelet without serverTLSBootstrap and tlsCertFile makes a key, a CA that it throws away, and a certificate of one year for its host
name, if the files are missing when it starts, and never again: after that year it presents an expired one. This module tells such a
certificate from one that somebody put there. Source: GenerateSelfSignedCertKey in client-go/util/cert/cert.go, and
InitializeTLS in cmd/kubelet/app/server.go. kubeadm leaves this certificate alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509

from kubeup.node import certificates

FOLDER = Path("/var/lib/kubelet/pki")
"""Its --cert-dir unless it is told another."""
LIFE_S = 365 * 86400


def is_made_by_kubelet(cert: x509.Certificate) -> bool:
    """Whether a component made it for itself: `cp1@1764450000`, issued by `cp1-ca@1764450000`."""
    subject = certificates.subject_of(cert).common_name
    issuers = [str(part.value) for part in cert.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    own = re.fullmatch(r"(.+)@\d+", subject)
    return bool(own and issuers and re.fullmatch(rf"{re.escape(own.group(1))}(-ca)?@\d+", issuers[0]))
