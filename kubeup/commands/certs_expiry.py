"""kb's own certs check-expiration: kubeadm's list, the kubelet's certificates, what each server presents, and authorities that end early.

Needs no API server, and shows on a worker what a worker has. Under the name kubeadm the list is kubeadm's (certs.py).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments
from kubeup.commands import certs, launcher
from kubeup.config import documents
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import certs_in_use, node_files
    from kubeup.node import renewal, torn_pairs, unread_certs

if TYPE_CHECKING:
    from cryptography import x509

    from kubeup.cli.program import Invocation
    from kubeup.doctor.certs_in_use import Held, Served
    from kubeup.node.renewal import Expiry
    from kubeup.node.torn_pairs import TornPair
    from kubeup.node.unread_certs import Unread

EXPIRING = 1
"""The exit status if --within is given and something has expired or expires within it: kb's errors have others (2 to 5, 70)."""
_SELF_RENEWED_LEFT = 0.1
"""The part of its life that a certificate which the kubelet renews has left when it should have been renewed: that is due at 70 to 90 %
(jitteryDuration in client-go/util/certificate/certificate_manager.go)."""
_FORESIGHT_S = 2 * 365 * 86400
"""How long before an authority has less life than what it signs that is said: another one takes a change of every client."""


@dataclass
class Listing:
    """The certificates of this node, and what is to be said of them."""

    now: datetime.datetime
    certs: Sequence[Expiry]
    files: Sequence[Path]
    """Of each of `certs`, its file."""
    authorities: Sequence[Expiry]
    kubelet: Sequence[Held]
    served: Sequence[Served]
    period_s: int
    """For how long a certificate that is issued now is valid."""
    torn: Sequence[TornPair] = ()
    """The pairs of files that do not belong together."""
    unread: Sequence[Unread] = ()
    """The kubeconfigs whose readers have not read them."""
    taken_away: Optional[Path] = None
    """The kubelet's serving certificate, if a renewal that was cut off has taken it away."""


def check_expiration(call: Invocation) -> int:
    """Print when each certificate of this node expires. Returns 1 if --within is given and one expires within it, else 0."""
    if not call.program.does_more:
        return certs.check_expiration(call)
    within_s = parse_span(call.flags["within"]) if "within" in call.flags else None
    listing = read_listing(call)
    due = [] if within_s is None else list(find_due(listing, within_s))
    if call.output == "text":
        call.print(render(listing))
        for warning in find_warnings(listing):
            call.report.warn(warning)
        for note in foresee(listing):
            call.report.note(note)
        for line in due:
            call.tell(line)
        if within_s is not None and not due:
            call.print(f"\nnothing expires within {call.flags['within']}")
    else:
        call.print_value(describe(listing, due=None if within_s is None else due))
    return EXPIRING if due else 0


def parse_span(text: str) -> int:
    """Seconds of `30d`, `12h`, `1d12h`. Raises UsageError (invalid-duration)."""
    match = re.fullmatch(r"(?:(\d{1,6})d)?(.*)", text, re.DOTALL)
    days, rest = (match.group(1), match.group(2)) if match else (None, text)
    seconds = documents.parse_duration(rest) if rest else 0
    if seconds is None or seconds < 0 or not text:
        raise UsageError(
            f"--within {text[:80]}",
            cause="that is not a period from now on",
            remedy="write days, or hours and minutes: --within 30d",
            code="invalid-duration",
        )
    return int(days or 0) * 86400 + seconds


def read_listing(call: Invocation) -> Listing:
    """Everything that this node has."""
    local = launcher.open_host(call)
    patient = node_files.read_patient(local, Paths())
    own = replace(patient.config.cluster, certificates_dir=str(patient.paths.pki))
    cluster = (
        certs.read_cluster(call, local, verb="check-expiration", fallback=own) if patient.is_control_plane else own
    )
    paths = replace(patient.paths, pki=Path(call.flags.get("cert-dir", cluster.certificates_dir)).absolute())
    rows = renewal.wanted_rows(cluster)
    serving = certs_in_use.find_serving_file(patient)
    found = [(renewal.read_expiry(local, paths, row=row), renewal.files_of(paths, row)[-1]) for row in rows]
    authorities = [renewal.read_ca_expiry(local, paths, name=name) for name in renewal.wanted_cas(cluster)]
    if not patient.is_control_plane:
        found = [one for one in found if one[0].expires]
        authorities = [one for one in authorities if one.expires]
    return Listing(
        local.now(),
        [one for one, _ in found],
        [path for _, path in found],
        authorities,
        certs_in_use.read_kubelet_certs(patient),
        certs_in_use.look_at_servers(patient),
        cluster.certificate_validity_period_s,
        torn_pairs.find_torn_pairs(local, paths, rows=rows),
        unread_certs.find_unread(local, paths, socket=patient.config.node.cri_socket, rows=rows),
        serving if torn_pairs.was_taken_away(local, patient.paths, path=serving) else None,
    )


# ---- what is due, and what to warn of


def find_due(listing: Listing, within_s: int) -> Iterator[str]:
    """What has expired or expires within that time, a line each.

    What a component makes for itself when it starts is left out, since nobody verifies it; so is what the kubelet renews by itself, unless
    that is overdue."""
    now, limit = listing.now, listing.now + datetime.timedelta(seconds=within_s)
    for item in (*listing.certs, *listing.authorities):
        if item.expires and item.expires <= limit:
            yield _say_end(item.name, item.expires, now=now)
    for held in listing.kubelet:
        end = held.cert.not_valid_after_utc
        if end <= limit and (not held.renews_itself or _is_overdue(held.cert, now)):
            yield _say_end(f"{held.name} ({held.path})", end, now=now)
    for server in listing.served:
        if server.cert is not None and server.file is not None and server.differs:
            end = server.cert.not_valid_after_utc
            if end <= limit:
                yield _say_end(f"what {server.component} presents at {server.address}", end, now=now)


def _is_overdue(cert: x509.Certificate, now: datetime.datetime) -> bool:
    life = cert.not_valid_after_utc - cert.not_valid_before_utc
    return cert.not_valid_after_utc - now < _SELF_RENEWED_LEFT * life


def _say_end(name: str, end: datetime.datetime, *, now: datetime.datetime) -> str:
    return f"{name} expired at {_moment(end)}" if end < now else f"{name} expires at {_moment(end)}"


def _moment(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def find_warnings(listing: Listing) -> Iterator[str]:
    """Torn pairs, what was renewed and not read, authorities that end before what they sign, servers that present something else than their
    file, an embedded certificate."""
    for torn in listing.torn:
        way_out = (
            "to make them a pair again: kb certs renew" if torn.can_be_put_right else "put the matching half there:"
        )
        yield f"{torn.describe()}; {way_out} {torn.row.name}"
    for unread in listing.unread:
        yield f"{unread.describe()}; to restart it with a new one: kb certs renew {unread.row.name}"
    if listing.taken_away is not None:
        yield f"{torn_pairs.say_taken_away(listing.taken_away)}; to have it made: kb certs renew kubelet-server"
    for item in listing.authorities:
        if item.expires is None:
            continue
        left_s = item.residual_s(listing.now)
        if left_s < listing.period_s:
            when = f"expired at {_moment(item.expires)}" if left_s < 0 else f"ends at {_moment(item.expires)}"
            yield (
                f"the certificate authority {item.name} {when}, before a certificate that it signs today: nothing that it signed is "
                f"accepted from then on{', whoever holds its key' if item.is_external else ''}; renew it for the same key while there is time"
            )
    for server in listing.served:
        if server.differs:
            yield f"{server.component} presents another certificate than {server.file}: it has not read that yet"
    yield from dict.fromkeys(held.note for held in listing.kubelet if held.note)


def foresee(listing: Listing) -> Iterator[str]:
    """The authorities that will have less life than what they sign within two years, and from when on. Nothing is wrong yet."""
    for item in listing.authorities:
        if item.expires is None:
            continue
        spare_s = item.residual_s(listing.now) - listing.period_s
        if 0 <= spare_s < _FORESIGHT_S:
            since = item.expires - datetime.timedelta(seconds=listing.period_s)
            yield (
                f"the certificate authority {item.name} ends at {_moment(item.expires)}: what it signs after {_moment(since)} would outlive "
                "it; plan to renew it for the same key before then"
            )


# ---- output


def render(listing: Listing) -> str:
    """kubeadm's two tables with the kubelet's rows and the files, and one of what is served."""
    head = ("NAME", "EXPIRES", "RESIDUAL TIME", "CERTIFICATE AUTHORITY", "EXTERNALLY MANAGED", "FILE")
    rows = [head]
    for item, path in zip(listing.certs, listing.files):
        cells = (*_ends(item.expires, listing.now), item.ca, _yes(item.is_external and item.expires))
        rows.append(
            (item.name, *cells, str(path)) if item.expires else (f"!MISSING! {item.name}", "", "", "", "", str(path))
        )
    for held in listing.kubelet:
        managed = "no (the kubelet renews it)" if held.renews_itself else "no"
        rows.append(
            (
                held.name,
                *_ends(held.cert.not_valid_after_utc, listing.now),
                held.issuer or "another",
                managed,
                str(held.path),
            )
        )
    authorities = [("CERTIFICATE AUTHORITY", *head[1:3], head[4])]
    for item in listing.authorities:
        name = item.name if item.expires else f"!MISSING! {item.name}"
        authorities.append((name, *_ends(item.expires, listing.now), _yes(item.is_external and item.expires)))
    served = [("SERVED BY", "ADDRESS", *head[1:3], "CERTIFICATE")]
    for one in listing.served:
        ends = _ends(one.cert.not_valid_after_utc if one.cert else None, listing.now)
        served.append((one.component, one.address, *ends, one.note))
    tables = [table for table in (rows, authorities, served) if len(table) > 1]
    return "\n\n".join(certs.render_table([tuple(row) for row in table]) for table in tables)


def _ends(expires: Optional[datetime.datetime], now: datetime.datetime) -> tuple[str, str]:
    if expires is None:
        return "", ""
    return f"{expires:%b %d, %Y %H:%M} UTC", certs.describe_span(int((expires - now).total_seconds()))


def _yes(is_so: object) -> str:
    return "yes" if is_so else "no"


def describe(listing: Listing, *, due: Optional[Sequence[str]]) -> dict[str, Any]:
    """kubeadm's output object, and kb's fields beside it."""
    now = listing.now
    shown: dict[str, Any] = {
        "apiVersion": certs.OUTPUT_API,
        "kind": "CertificateExpirationInfo",
        "certificates": [
            {**certs.describe_expiry(item, now), "file": str(path)} for item, path in zip(listing.certs, listing.files)
        ],
        "certificateAuthorities": [certs.describe_expiry(item, now) for item in listing.authorities],
        "kubeletCertificates": [
            {
                "name": held.name,
                **_describe_end(held.cert, now),
                "file": str(held.path),
                "caName": held.issuer,
                "renewsItself": held.renews_itself,
            }
            for held in listing.kubelet
        ],
        "servedCertificates": [
            {
                "component": one.component,
                "address": one.address,
                **(_describe_end(one.cert, now) if one.cert else {}),
                "file": str(one.file) if one.file else None,
                "answers": one.cert is not None,
                "differsFromFile": one.differs,
                "note": one.note,
            }
            for one in listing.served
        ],
        "warnings": list(find_warnings(listing)),
        "notes": list(foresee(listing)),
    }
    return shown if due is None else {**shown, "expiring": list(due)}


def _describe_end(cert: x509.Certificate, now: datetime.datetime) -> dict[str, Any]:
    end = cert.not_valid_after_utc
    return {
        "expirationDate": moments.show(end),
        "residualTime": int((end - now).total_seconds()),
        "serialNumber": f"{cert.serial_number:x}",
    }
