"""What runs where in a cluster: the versions that an upgrade starts from.

Owns the shape of what was seen. Changes nothing, and judges nothing: that is policy.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from kubeup import releases
from kubeup.frozen_values import frozen
from kubeup.releases import Version

API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
ETCD = "etcd"
KUBELET = "kubelet"
RUNTIME = "container-runtime"
KUBE_PROXY = "kube-proxy"
COREDNS = "coredns"


@frozen
class Seen:
    """One thing that runs, and its version.

    version: as it says itself (`v1.35.6`, `3.6.6`, `2.1.4`), or its image's tag; "" if it did not answer. node: "" for what belongs to
    the cluster (kube-proxy, coredns), and where it is not known. place: an API server's or etcd member's address, a runtime's name, else
    an image. unknown: why there is no version, in words.
    """

    component: str
    version: str
    node: str = ""
    place: str = ""
    unknown: str = ""

    @property
    def parsed(self) -> Optional[Version]:
        """The version, or None if it has none that is understood. What a distribution appends (`1.6.20~ds1`) is left out."""
        return releases.parse_version(self.version) or releases.parse_version(self.version.partition("~")[0])


@frozen
class Versions:
    """What was seen of the versions. etcd_is_external: then its members have no node. etcd_tag: the image tag that the cluster's
    configuration pins for etcd; "" if it pins none. stored: the version in the cluster's configuration; "" if unknown."""

    seen: tuple[Seen, ...]
    etcd_is_external: bool = False
    etcd_tag: str = ""
    stored: str = ""

    def of(self, *components: str) -> tuple[Seen, ...]:
        return tuple(one for one in self.seen if one.component in components)

    def newest(self, component: str) -> Optional[Version]:
        return max(_parsed(self.of(component)), key=lambda found: found.key, default=None)

    def oldest(self, component: str) -> Optional[Version]:
        return min(_parsed(self.of(component)), key=lambda found: found.key, default=None)


def _parsed(seen: Iterable[Seen]) -> list[Version]:
    return [found for one in seen if (found := one.parsed) is not None]
