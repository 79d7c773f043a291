"""How much longer a wait may take on a machine that is busy. What a kubelet and a runtime do in seconds takes them minutes where others
have the processors."""

from __future__ import annotations

from pathlib import Path

from kubeup.errors import HostError
from kubeup.machine.host import Host

MOST = 4.0


def find_patience(host: Host) -> float:
    """How many times longer than usual: this machine's load per processor, halved; 1 to 4."""
    try:
        load = float(host.read_text(Path("/proc/loadavg")).split()[0])
    except (HostError, ValueError, IndexError):
        return 1.0
    return min(MOST, max(1.0, load / host.cpu_count() / 2))
