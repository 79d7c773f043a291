"""A change of the ClusterConfiguration that the cluster has stored, field by field.

Joining nodes, upgrades and kubeadm read it. On an adopted node kb has a copy of its own, which `init` uses there: without the change that
would take it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kubeup.engine.cluster_items import Object
from kubeup.engine.items import File
from kubeup.engine.plan import Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import api, objects

Change = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Takes a ClusterConfiguration document, and returns the wanted one."""


def plan_stored(run: Run, change: Change) -> Plan:
    """ConfigMap kubeadm-config, and the stored documents of an adopted node, after the change. Fields that a newer tool wrote are kept."""
    text = _adopted_text(run, change)
    adopted = [File(run.paths.adopted("init"), text, mode=0o600)] if text else []
    return Plan(*(Object(wanted) for wanted in _stored(run, change)), *adopted)


def _stored(run: Run, change: Change) -> list[api.Object]:
    """The changed ConfigMap; [] if it is up to date."""
    text = objects.read_config_key(run.api, "kubeadm-config", key="ClusterConfiguration")
    document = yaml_files.load_mapping(text, "ConfigMap kube-system/kubeadm-config")
    wanted = change(document)
    return [] if wanted == document else [objects.render_kubeadm_config(wanted)]


def _adopted_text(run: Run, change: Change) -> str:
    """The stored documents of an adopted first control plane node; "" if none exist or none changes."""
    path = run.paths.adopted("init")
    documents = list(yaml_files.load_all_yaml(run.host.read_text(path))) if run.host.exists(path) else []
    wanted = [change(one) if one.get("kind") == "ClusterConfiguration" else one for one in documents]
    return "" if wanted == documents else "---\n".join(map(yaml_files.dump_yaml, wanted))
