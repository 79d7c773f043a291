"""Certificates, keys and kubeconfigs: judged by whether they serve their purpose, as when they were made. A renewal is no drift.

Nothing secret is read out: a certificate is told by its fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from kubeup.drift.drifted import Drift, Ground, fingerprint
from kubeup.engine.items import Issued
from kubeup.engine.plan import Plan
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.phases import certs, kubeconfigs

_OF_THE_CLUSTER = ("authority", "key")
"""What the whole cluster trusts: it is never issued again, since nothing that it signed would count."""


def look_at_identities(ground: Ground) -> Iterator[Drift]:
    for plan in _plans(ground):
        for item in plan.items():
            if isinstance(item, Issued):
                yield from _judge(ground, item)


def _plans(ground: Ground) -> Iterator[Plan]:
    run = ground.run
    if not ground.patient.is_control_plane:
        return
    authorities = (certs.plan_ca, certs.plan_front_proxy_ca)
    leaves = (certs.plan_apiserver, certs.plan_apiserver_kubelet_client, certs.plan_front_proxy_client)
    yield from (plan(run) for plan in (*authorities, *leaves, certs.plan_service_account_key))
    if run.host.exists(run.paths.manifest("etcd")):
        for plan in (certs.plan_etcd_ca, certs.plan_etcd_server, certs.plan_etcd_peer):
            yield plan(run)
        yield from (plan(run) for plan in (certs.plan_etcd_healthcheck_client, certs.plan_apiserver_etcd_client))
    yield from (plan(run) for plan in (kubeconfigs.plan_kubelet, kubeconfigs.plan_admin))
    yield from (plan(run) for plan in (kubeconfigs.plan_controller_manager, kubeconfigs.plan_scheduler))


def _judge(ground: Ground, item: Issued) -> Iterator[Drift]:
    """One certificate or kubeconfig. What was like that when kb came, or is to have other names by now, did not drift."""
    first = item.files[0]
    if ground.run.host.exists(first) and ground.was_there_before(first):
        return
    recorded = (ground.recorded.get(item.name) or [item.spec])[-1]
    if {name: value for name, value in recorded.items() if name != "trouble"} != dict(item.spec):
        return
    try:
        trouble = item.judge(ground.run)
    except KbError as error:
        trouble = str(error)
    if trouble:
        is_there, name = ground.run.host.exists(first), name_of(item)
        is_shared = name.startswith(_OF_THE_CLUSTER)
        yield Drift(
            name,
            str(first),
            trouble if is_there else "it is not there",
            found=_fingerprint(ground, first),
            since=ground.since(first),
            is_fixable=not is_there and not is_shared,
            remedy=f"put {first} back, from a backup or another control plane"
            if is_shared
            else f"have it issued again: move it away (mv {first} /root/), then look again",
        )


def find_item(ground: Ground, name: str) -> Optional[Issued]:
    """The certificate or kubeconfig of this name; None if there is none."""
    found = (item for plan in _plans(ground) for item in plan.items() if isinstance(item, Issued))
    return next((item for item in found if name_of(item) == name), None)


def name_of(item: Issued) -> str:
    """`certificate/apiserver`, `authority/ca`, `kubeconfig/admin.conf`, `key/sa`."""
    kind, _, name = item.name.partition(" ")
    if kind in ("certificate", "authority") and name:
        return f"{kind}/{name}"
    return f"kubeconfig/{item.name}" if item.name.endswith(".conf") else f"key/{item.files[0].stem}"


def _fingerprint(ground: Ground, path: Path) -> str:
    if path.suffix != ".crt" or not ground.run.host.exists(path):
        return ""
    return fingerprint(ground.run.host.read_bytes(path).decode(errors="surrogateescape"))
