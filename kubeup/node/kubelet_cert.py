"""The kubelet's own certificates: how it keeps the one with which it calls, and the one that it makes for itself to serve with,
/var/lib/kubelet/pki/kubelet.crt.

A kubelet without serverTLSBootstrap and tlsCertFile makes a key, a CA that it throws away, and a certificate of one year for its host
name, if the files are missing when it starts, and never again: after that year it presents an expired one. This module tells such a
certificate from one that somebody put there. Source: GenerateSelfSignedCertKey in client-go/util/cert/cert.go, and
InitializeTLS in cmd/kubelet/app/server.go. kubeadm leaves this certificate alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509

from kubeup.machine.host import Host
from kubeup.node import certificates
from kubeup.secret import Secret

FOLDER = Path("/var/lib/kubelet/pki")
"""Its --cert-dir unless it is told another."""
LIFE_S = 365 * 86400


def is_made_by_kubelet(cert: x509.Certificate) -> bool:
    """Whether a component made it for itself: `cp1@1764450000`, issued by `cp1-ca@1764450000`."""
    subject = certificates.subject_of(cert).common_name
    issuers = [str(part.value) for part in cert.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    own = re.fullmatch(r"(.+)@\d+", subject)
    return bool(own and issuers and re.fullmatch(rf"{re.escape(own.group(1))}(-ca)?@\d+", issuers[0]))


def keep_client_pair(host: Host, link: Path, *, cert_pem: str, key_pem: Secret) -> None:
    """Write the pair with which the kubelet calls, as the kubelet does: a file named by the time, and a link to it. Source: Update and
    updateSymlink of client-go/util/certificate/certificate_store.go"""
    path = link.with_name(f"kubelet-client-{host.now().astimezone():%Y-%m-%d-%H-%M-%S}.pem")
    host.write_file(path, cert_pem + key_pem.reveal(), mode=0o600)
    host.symlink(link, str(path))
