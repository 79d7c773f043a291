"""What a look tells: a note with its level, and the one thing to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host


@frozen
class Note:
    """What one look found: level ok | warning | error."""

    look: str
    level: str
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


Notes = Iterable[Note]


def say_restart(host: Host, name: str) -> str:
    """The kubelet is a service; what runs as a static pod is started anew by the kubelet."""
    own = name == "kubelet"
    return services.spoken_of(host).say("restart", name) if own else f"crictl stop $(crictl ps -q --name {name})"
