"""Moments as Kubernetes writes them: RFC 3339 in UTC, whole seconds, `2026-01-01T00:00:00Z`."""

from __future__ import annotations

import datetime
import re
from typing import Optional

_FORM = "%Y-%m-%dT%H:%M:%SZ"
_FRACTION = re.compile(r"\.\d+(?=Z$)")


def show(moment: datetime.datetime) -> str:
    """moment: with its time zone."""
    return moment.astimezone(datetime.timezone.utc).strftime(_FORM)


def parse(text: str) -> datetime.datetime:
    """Raises ValueError for any other form."""
    return datetime.datetime.strptime(text, _FORM).replace(tzinfo=datetime.timezone.utc)


def find(text: str) -> Optional[datetime.datetime]:
    """The same, and without the fraction that a MicroTime has, such as a Lease's; None for any other form."""
    try:
        return parse(_FRACTION.sub("", text))
    except ValueError:
        return None
