"""The command kubeconfig list: who may call this cluster with what lies on this node, until when, and by which file.

Reads the kubeconfigs of this node, those that its users keep, and the client certificates that the cluster has signed
lately. A certificate cannot be taken back, so its groups and its end are what an admin has to know. kubeadm has no counterpart.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments
from kubeup.commands import certs
from kubeup.commands.launcher import Launch
from kubeup.errors import KbError, shown
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import signing_request
    from kubeup.doctor import node_files
    from kubeup.node import certificates, pki, user_kubeconfigs

if TYPE_CHECKING:
    from cryptography import x509

    from kubeup.cli.program import Invocation
    from kubeup.machine.host import Host

_SIGNER = "kubernetes.io/kube-apiserver-client"
_WIDE = {"system:masters": "may do anything, and no RBAC rule can take that back"}


@frozen
class Access:
    """One identity. expires: None for a token or a plugin, whose end is not in the file."""

    user: str
    groups: tuple[str, ...]
    expires: Optional[datetime.datetime]
    source: str
    """The file, or `certificatesigningrequest NAME`."""
    by: str = "certificate"
    """certificate | token | plugin"""


def kubeconfig_list(call: Invocation) -> int:
    """Print who may call this cluster with what lies on this node."""
    launch = Launch(call)
    launch.require_root()
    local = launch.local
    paths = node_files.find_paths(local, Paths())
    authorities = _read_authorities(local, paths)
    found = [one for path in _find_files(local, paths) for one in read_accesses(local, path, authorities=authorities)]
    try:
        found += list(_read_signed(local, paths, authorities=authorities))
    except KbError as error:
        call.report.note(f"the cluster's signing requests are left out: {error}")
    now = local.now()
    if call.output != "text":
        call.print_value([describe(one, now) for one in found])
        return 0
    call.print(render(found, now))
    for group, why in _WIDE.items():
        names = dict.fromkeys(one.source for one in found if group in one.groups)
        if names:
            call.report.note(f"{group}, the group in {', '.join(names)}, {why}")
    return 0


def _read_authorities(local: Host, paths: Paths) -> tuple[x509.Certificate, ...]:
    path = paths.pki / "ca.crt"
    return pki.read_certs(local, path) if local.exists(path) else ()


def _find_files(local: Host, paths: Paths) -> Iterator[Path]:
    yield from map(paths.kubeconfig, user_kubeconfigs.OWN_FILES)
    yield from user_kubeconfigs.list_files(local, paths)


# ---- files


def read_accesses(local: Host, path: Path, *, authorities: tuple[x509.Certificate, ...]) -> Iterator[Access]:
    """The identities in a kubeconfig that belong to the cluster of these authorities; none if it cannot be read."""
    document = _load(local, path)
    users = {str(entry.get("name")): _table(entry.get("user")) for entry in _rows(document, "users")}
    ours = {
        str(entry.get("name"))
        for entry in _rows(document, "clusters")
        if set(authorities)
        & set(_certs(local, path, entry=_table(entry.get("cluster")), field="certificate-authority"))
    }
    contexts = [_table(entry.get("context")) for entry in _rows(document, "contexts")]
    of_ours = {str(context.get("user")) for context in contexts if str(context.get("cluster")) in ours}
    for name, user in users.items():
        for cert in _certs(local, path, entry=user, field="client-certificate")[:1]:
            if any(certificates.is_issued_by(cert, authority) for authority in authorities):
                yield _access_of(cert, str(path))
            break
        else:
            by = "token" if user.get("token") or user.get("tokenFile") else "plugin" if user.get("exec") else ""
            if by and name in of_ours:
                yield Access(shown(name), (), None, str(path), by)


def _certs(local: Host, path: Path, *, entry: Mapping[str, Any], field: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a field, which holds them (`-data`) or names their file."""
    data, file = entry.get(f"{field}-data"), entry.get(field)
    if data:
        return certificates.parse_shown(_decode(str(data)))
    return certificates.parse_shown(user_kubeconfigs.read(local, path.parent / str(file))) if file else ()


def _decode(data: str) -> str:
    try:
        return base64.b64decode(data).decode(errors="replace")
    except (ValueError, binascii.Error):
        return ""


def _access_of(cert: x509.Certificate, source: str) -> Access:
    subject = certificates.subject_of(cert)
    groups = tuple(shown(group) for group in subject.organizations)
    return Access(shown(subject.common_name), groups, cert.not_valid_after_utc, source)


def _load(local: Host, path: Path) -> Mapping[str, Any]:
    try:
        return _table(yaml_files.load_yaml(user_kubeconfigs.read(local, path)))
    except (yaml_files.YAMLError, ValueError):
        return {}


def _rows(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    rows = document.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


# ---- what the cluster has signed


def _read_signed(local: Host, paths: Paths, *, authorities: tuple[x509.Certificate, ...]) -> Iterator[Access]:
    """The client certificates of signing requests that still exist: the cluster removes one an hour after it has signed it.
    Raises KbError if the API server cannot be asked."""
    if not local.exists(paths.admin_conf):
        return
    api = kubeapi.Api(local, kubeapi.read_identity(local, paths.admin_conf), retry_s=0)
    for request in api.list(kubeapi.path_of("CertificateSigningRequest"), field=f"spec.signerName={_SIGNER}"):
        state = signing_request.judge_signing_request(request)
        if state.state == "signed":
            for cert in certificates.parse_shown(_decode(str(request["status"]["certificate"])))[:1]:
                yield _access_of(cert, f"certificatesigningrequest {shown(state.name)}")


# ---- output


def describe(one: Access, now: datetime.datetime) -> dict[str, Any]:
    """The object of -o json; residualTime in seconds."""
    return {
        "user": one.user,
        "groups": list(one.groups),
        "by": one.by,
        "expirationDate": moments.show(one.expires) if one.expires else None,
        "residualTime": int((one.expires - now).total_seconds()) if one.expires else None,
        "source": one.source,
    }


def render(found: list[Access], now: datetime.datetime) -> str:
    rows = [("USER", "GROUPS", "EXPIRES", "RESIDUAL TIME", "SOURCE")]
    for one in found:
        ends = (f"a {one.by}", "")
        if one.expires:
            left = int((one.expires - now).total_seconds())
            ends = (f"{one.expires:%b %d, %Y %H:%M} UTC", certs.describe_span(left) if left >= 0 else "expired")
        rows.append((one.user, ",".join(one.groups) or "-", *ends, one.source))
    return certs.render_table([tuple(row) for row in rows])
