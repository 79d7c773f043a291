"""The phases bindings and bootstrap-token of an upgrade: the rights that the new version's components and joining nodes need.

`bindings` comes before any certificate is renewed. Since 1.36's newest patches (and those of 1.34 and 1.35) the API server's client
certificate for kubelets carries no group, so its rights come from a binding to its name; admin.conf has got its rights from one since
1.29. Mirrors cmd/kubeadm/app/cmd/phases/upgrade/apply/bootstraptoken.go, which writes them after the certificates.
"""

from __future__ import annotations

from kubeup.engine.cluster_items import Manifest, Object
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.cluster import objects

_OF_CLIENTS = frozenset({"kubeadm:apiserver-kubelet-client", "kubeadm:cluster-admins"})


def plan_bindings(run: Run) -> Plan:
    """The bindings without which a renewed certificate has no rights."""
    return Plan(*(Object(found) for found in _rights() if found["metadata"]["name"] in _OF_CLIENTS))


def plan_bootstrap_rights(run: Run) -> Plan:
    """What nodes that join, and kubelets that renew their certificates, are allowed. Tokens and cluster-info stay as they are."""
    return Plan(*(Object(found) for found in _rights() if found["metadata"]["name"] != "kubeadm:cluster-admins"))


def _rights() -> list[Manifest]:
    names = ("rbac/cluster-admins.yaml", "rbac/bootstrap.yaml", "rbac/cluster-info.yaml")
    return [found for name in names for found in objects.load_objects(name)]
