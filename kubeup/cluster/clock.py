"""Compares the API server's clock with this node's, and explains why a certificate of a known CA is rejected.

A wrong clock is the most common cause: certificates look expired, or not valid yet.
"""

from __future__ import annotations

import datetime
import email.utils

from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse, Unreachable

MAX_SKEW_S = 300.0
"""Certificates are back-dated by this much. To a clock that is further behind, they are not valid yet."""


def measure_skew(answer: HttpResponse, now: datetime.datetime) -> float:
    """How many seconds the server's clock is ahead of ours, from the answer's Date header; 0 if it has none."""
    text = answer.headers.get("date", "")
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    try:
        return (moment - now).total_seconds()
    except OverflowError:  # a time zone at the end of the calendar
        return 0.0


def describe_skew(skew_s: float, other: str = "the API server's") -> str:
    """This node's clock in words: `3 h 5 min behind the API server's`."""
    hours, minutes = divmod(round(abs(skew_s) / 60) if abs(skew_s) >= 60 else 0, 60)
    amount = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{abs(skew_s):.0f} s"
    return f"{amount} {'behind' if skew_s > 0 else 'ahead of'} {other}"


def skew_remedy(skew_s: float, now: datetime.datetime) -> str:
    server = now + datetime.timedelta(seconds=skew_s)
    return f"set it: timedatectl set-ntp true, or date -u -s '{server:%Y-%m-%d %H:%M:%S}'; or the server's, if that is wrong"


def explain_untrusted(error: Unreachable, server: str, *, skew_s: float, now: datetime.datetime) -> ClusterError:
    """The error for a server certificate that fails verification although its CA is known."""
    text = error.cause.lower()
    if abs(skew_s) > 60 and ("not yet valid" in text or "expired" in text):
        return clock_error(skew_s, now)
    if "mismatch" in text or "doesn't match" in text or "not valid for" in text:
        return ClusterError(
            f"the API server's certificate is not valid for the name by which it was reached: {server}",
            cause=error.cause,
            remedy="use a name that it is valid for, or add this one: apiServer.certSANs and kb init phase certs apiserver",
            code="endpoint-not-in-certificate",
        )
    return ClusterError(
        f"the server at {server} cannot prove that it is the cluster's",
        cause=error.cause,
        remedy=f"see who answers there: openssl s_client -connect {server.partition('://')[2]} -showcerts",
        code="server-not-trusted",
    )


def clock_error(skew_s: float, now: datetime.datetime) -> ClusterError:
    return ClusterError(
        f"this node's clock is {describe_skew(skew_s)}",
        cause=f"it says {now:%Y-%m-%d %H:%M:%S UTC}, so it takes the cluster's certificates for "
        f"{'not valid yet' if skew_s > 0 else 'expired'}",
        remedy=skew_remedy(skew_s, now),
        code="clock-skew",
    )
