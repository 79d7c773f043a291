"""UpgradeRun: what every phase of `kb upgrade apply` and `kb upgrade node` may see and change.

`config` and `release` are those of the new version. On a worker `config.is_control_plane` is False, and the API server is called as the
node's own kubelet. Mirrors the data of cmd/kubeadm/app/cmd/upgrade/{apply,node}.go.
"""

from __future__ import annotations

from typing import Optional

from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.phases.static_pods_swap import SwapRun

with lazily:
    from kubeup.upgrade import target


@frozen_by_name
class UpgradeRun(SwapRun):
    """former: `v1.35.6`, what this node runs now: its API server's version on a control plane, its kubelet's on a worker.

    is_first: this node changes the cluster's objects too (apply); False on every other node (node).
    drains: whether pods are moved away before the kubelet stops; a patch upgrade never does that.
    targets: this node's static pods, as they are to be; () on a worker. keep_edits: whether what others changed in this node's manifests is kept; None: nobody has said, so it is refused if there is any.
    renews: whether certificates are renewed on the way. upgrades_etcd: whether etcd is. force: go on where a check only warns. goes_on: a swap
    that was cut off has just been ended."""

    former: str
    is_first: bool
    targets: tuple[target.Target, ...] = ()
    drains: bool = False
    keep_edits: Optional[bool] = None
    renews: bool = True
    upgrades_etcd: bool = True
    force: bool = False
    goes_on: bool = False
    tells_edits: bool = False
    drain_s: float = 300.0
    """How long disruption budgets may refuse the drain."""
