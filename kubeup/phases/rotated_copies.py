"""The kubeconfigs on a node that a rotation of the cluster's authority does not replace, since they are somebody's own: each node that takes part
names those that lie on it. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.engine.run import Run
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.node import certificates, kubeconfig, user_kubeconfigs

if TYPE_CHECKING:
    from cryptography import x509


def find_copies(run: Run, *, former: x509.Certificate, following: x509.Certificate) -> Iterator[Path]:
    """Those whose certificate the former authority has signed, or that trust it and not the following one."""
    for path in user_kubeconfigs.list_files(run.host, run.paths):
        text = user_kubeconfigs.read(run.host, path)
        try:
            found = kubeconfig.read_kubeconfig(text, host=run.host, path=path) if "clusters" in text else None
        except (KbError, ValueError):
            continue
        if found is None:
            continue
        certs = certificates.parse_shown(found.client_cert_pem)
        known = certificates.parse_shown(found.ca_pem)
        if certs and certificates.is_expired(certs[0], run.host.now()):
            continue  # nobody calls with it any more
        is_old = bool(certs) and certificates.is_issued_by(certs[0], former)
        if is_old or (former in known and following not in known):
            yield path


def tell_copies(run: Run, *, former: x509.Certificate, following: x509.Certificate) -> None:
    """Name those of this node, and say where was looked."""
    found = [str(path) for path in find_copies(run, former=former, following=following)]
    homes = ", ".join(map(str, user_kubeconfigs.list_homes(run.host)))
    looked = f"looked at in {run.paths.kubeconfigs} and in {homes}; those elsewhere are in no list"
    if found:
        run.report.warn(
            f"kubeconfigs on this node end with the former authority: {', '.join(found)} ({looked}); others: kb kubeconfig user"
        )
    else:
        run.report.note(f"no kubeconfig on this node ends with the former authority ({looked})")
