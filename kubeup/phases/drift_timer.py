"""The timer that looks for drift once a day, as two units of kb's own. Off unless it is switched on.

This module decides where the timer runs. It does not know what drifts. kubeadm has no counterpart.
"""

from __future__ import annotations

from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.phases import own_timer

_NAME = "kb-drift"
SERVICE, TIMER = own_timer.units_of(_NAME)


def plan_timer(run: Run) -> Plan:
    """The two units, and the copy of kb that they run. Raises when it is applied: HostError (unit-not-started, folder-of-another-user)."""
    return own_timer.plan_timer(run, _NAME, values={})


def plan_no_timer(run: Run) -> Plan:
    """Neither unit."""
    return own_timer.plan_no_timer(run, _NAME, what="the timer that looks for drift", phase="drift-timer")
