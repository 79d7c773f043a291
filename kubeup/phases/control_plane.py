"""The phases etcd/local and control-plane/*: the static pod manifests.

The rules are in kubeup/node/static_pods.py, patches.py and own_manifests.py. Mirrors cmd/kubeadm/app/cmd/phases/init/{etcd,controlplane}.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from kubeup.engine.items import File, Folder
from kubeup.engine.plan import Plan, Yielded
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily
from kubeup.yaml_files import YAMLError, dump_yaml, load_yaml

with lazily:
    from kubeup.node import etcd_data, own_manifests, patches


# ---- etcd


def plan_etcd(run: Run) -> Plan:
    """etcd.yaml of the first member. If etcd is external, nothing is written, and an existing etcd.yaml is left alone: its member
    holds data and may be a voting member."""
    if run.config.cluster.local_etcd is not None:
        return plan_etcd_member(run)
    manifest = run.paths.manifest("etcd")
    if not run.host.exists(manifest):
        return Plan()
    return Plan(Yielded("etcd", f"{manifest} stays although etcd is external now: its member holds data"))


def plan_etcd_member(run: Run, members: Sequence[tuple[str, str]] = ()) -> Plan:
    """etcd.yaml. `members` are the (name, peer URL) pairs of the initial cluster, including the joining node itself. Without
    them, an existing manifest keeps its initial cluster."""
    manifest = _plan_manifest(run, "etcd", members=members, keeps=None if members else keep_members)
    # etcd checks that others cannot read its data directory
    return Plan(Folder(etcd_data_dir(run), 0o700)) + manifest


def keep_members(found: str, wanted: str) -> str:
    """The text of `wanted`, with the members as they are in `found`. Both are texts of etcd.yaml."""
    try:
        told, pod = load_yaml(found), load_yaml(wanted)
    except YAMLError:
        return wanted
    if not (isinstance(told, dict) and isinstance(pod, dict)):
        return wanted
    return dump_yaml(etcd_data.keep_initial_cluster(pod, told))


def etcd_data_dir(run: Run) -> Path:
    etcd = run.config.cluster.local_etcd
    return Path(etcd.data_dir) if etcd else run.paths.etcd_data


# ---- the control plane


def plan_apiserver(run: Run) -> Plan:
    return _plan_manifest(run, "kube-apiserver")


def plan_controller_manager(run: Run) -> Plan:
    return _plan_manifest(run, "kube-controller-manager")


def plan_scheduler(run: Run) -> Plan:
    return _plan_manifest(run, "kube-scheduler")


def plan_components(run: Run) -> Plan:
    """The API server, controller-manager and scheduler of a joining control plane node, in one plan."""
    return plan_apiserver(run) + plan_controller_manager(run) + plan_scheduler(run)


PLANS: Mapping[str, Callable[[Run], Plan]] = {
    "etcd": plan_etcd,
    "kube-apiserver": plan_apiserver,
    "kube-controller-manager": plan_controller_manager,
    "kube-scheduler": plan_scheduler,
}


# ---- common


def _plan_manifest(
    run: Run,
    component: str,
    *,
    members: Sequence[tuple[str, str]] = (),
    keeps: Optional[Callable[[str, str], str]] = None,
) -> Plan:
    text = render_manifest(run, component, members=members)
    details, warnings = describe_patches(run, component)
    return Plan(
        Folder(run.paths.manifests, 0o700),
        File(run.paths.manifest(component), text, mode=0o600, has_mode=True, keeps=keeps),
        details=details,
        warnings=warnings,
    )


def render_manifest(run: Run, component: str, *, members: Sequence[tuple[str, str]] = ()) -> str:
    """The text of a component's manifest on this node, with patches applied. Writes nothing."""
    pod = own_manifests.render_own(run.host, run.paths, config=run.config, component=component, members=members)
    return dump_yaml(pod)


def describe_patches(run: Run, target: str) -> tuple[list[str], list[str]]:
    """Messages about the patch files: (details: those applied to `target`, warnings: files in the directory that are ignored)."""
    found = patches.read_patches(run.host, run.config.patches_directory)
    applied = [f"applied the {patch.kind} patch {patch.path} to {target}" for patch in found.for_target(target)]
    return applied, list(found.ignored)
