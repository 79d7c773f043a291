"""The phases etcd/local and control-plane/*: the static pod manifests.

The rules are in kubeup/node/static_pods.py and kubeup/node/patches.py. A manifest is current if rendering it again, patches
included, gives what is on disk. Mirrors cmd/kubeadm/app/cmd/phases/init/{etcd,controlplane}.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.engine.run import Outputs, Run
from kubeup.lazy_modules import lazy_import
from kubeup.yaml_files import dump_yaml, is_same_yaml

if TYPE_CHECKING:
    from kubeup.node import patches, pki, static_pods
else:
    static_pods = lazy_import("kubeup.node.static_pods")
    patches = lazy_import("kubeup.node.patches")
    pki = lazy_import("kubeup.node.pki")


# ---- etcd


def write_etcd_manifest(ctx: Run) -> Outputs:
    """Write etcd.yaml for the first member; nothing where etcd is external."""
    return None if _has_external_etcd(ctx) else write_etcd_member_manifest(ctx)


def write_etcd_member_manifest(ctx: Run, members: Sequence[tuple[str, str]] = ()) -> Outputs:
    """Write etcd.yaml; `members` (name, peer URL) are those that a joining node is told, itself included."""
    # etcd refuses to start on a folder that others may read
    ctx.host.make_dir(etcd_data_dir(ctx), mode=0o700)
    return _write(ctx, "etcd", members)


def etcd_manifest_is_current(ctx: Run) -> bool:
    return _has_external_etcd(ctx) or (ctx.host.is_dir(etcd_data_dir(ctx)) and manifest_is_current(ctx, "etcd"))


def etcd_data_dir(ctx: Run) -> Path:
    etcd = ctx.config.cluster.local_etcd
    return Path(etcd.data_dir) if etcd else ctx.paths.etcd_data


def _has_external_etcd(ctx: Run) -> bool:
    return ctx.config.cluster.local_etcd is None


# ---- the control plane


def write_apiserver_manifest(ctx: Run) -> Outputs:
    return _write(ctx, "kube-apiserver")


def apiserver_manifest_is_current(ctx: Run) -> bool:
    return manifest_is_current(ctx, "kube-apiserver")


def write_controller_manager_manifest(ctx: Run) -> Outputs:
    return _write(ctx, "kube-controller-manager")


def controller_manager_manifest_is_current(ctx: Run) -> bool:
    return manifest_is_current(ctx, "kube-controller-manager")


def write_scheduler_manifest(ctx: Run) -> Outputs:
    return _write(ctx, "kube-scheduler")


def scheduler_manifest_is_current(ctx: Run) -> bool:
    return manifest_is_current(ctx, "kube-scheduler")


# ---- common


def render_manifest(ctx: Run, component: str, members: Sequence[tuple[str, str]] = ()) -> str:
    """The text of a component's manifest on this node, patches included. Only looks."""
    node = static_pods.NodeFacts(
        host_ca_dirs=static_pods.probe_host_ca_dirs(ctx.host),
        has_external_ca=component == "kube-controller-manager" and pki.is_external_ca(ctx.host, ctx.paths),
        etcd_members=members,
    )
    pod = static_pods.render_pod(component, ctx.config, ctx.release, node)
    return dump_yaml(patches.read_patches(ctx.host, ctx.config.patches_directory).apply(component, pod))


def manifest_is_current(ctx: Run, component: str) -> bool:
    """Whether the manifest on disk is what would be written now, and private."""
    path = ctx.paths.manifest(component)
    found = ctx.host.stat(path)
    is_plain = found is not None and found.mode == 0o600 and not found.is_dir
    return is_plain and is_same_yaml(ctx.host.read_text(path), render_manifest(ctx, component))


def report_patches(ctx: Run, target: str) -> None:
    """Say which patch files apply to `target`, and which files of the folder are none."""
    found = patches.read_patches(ctx.host, ctx.config.patches_directory)
    for patch in found.for_target(target):
        ctx.report.detail(f"applied the {patch.kind} patch {patch.path} to {target}")
    for sentence in found.ignored:
        ctx.report.warn_once(sentence)


def _write(ctx: Run, component: str, members: Sequence[tuple[str, str]] = ()) -> Outputs:
    text = render_manifest(ctx, component, members)
    ctx.host.make_dir(ctx.paths.manifests, mode=0o700)
    ctx.host.write_file(ctx.paths.manifest(component), text, mode=0o600)
    report_patches(ctx, component)
    return None
