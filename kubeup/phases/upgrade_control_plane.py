"""The phases control-plane, upload-config/kubeadm and kubeconfig of an upgrade.

All static pods that differ are replaced in one swap (docs/adr/0020-upgrade.md), after their certificates were renewed, as kubeadm does
with each component. Mirrors cmd/kubeadm/app/phases/upgrade/staticpods.go, and UpdateKubeletKubeconfigServer of postupgrade.go beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kubeup import yaml_files
from kubeup.engine.items import File
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily
from kubeup.phases import static_pods_swap, stored_cluster, upload_config
from kubeup.phases.upgrade_run import UpgradeRun

with lazily:
    from kubeup.config import render, schema
    from kubeup.node import kubeconfig, renewal
    from kubeup.phases import renewed_certs
    from kubeup.swap import proof, store
    from kubeup.upgrade import kept


def swap_control_plane(ctx: UpgradeRun) -> Outputs:
    """Renew this node's certificates, then swap the pods that differ, or continue a swap that was cut off. Raises KbError after the way
    back."""
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)  # outside of the journal, as the swap itself
    is_cut_off = store.load_cut_off(run.host, run.paths) is not None
    swaps = is_cut_off or bool(static_pods_swap.plan_swap(run).pods)
    _keep_images(run)
    renewed = _renew_certs(run) if ctx.renews and swaps and not is_cut_off else 0
    try:
        results = static_pods_swap.swap_pods(ctx)
    except KbError as error:
        if renewed:
            error.changed = error.changed or f"{renewed} certificates were renewed, and stay"
        raise
    paths = [run.paths.manifest(name) for name in store.COMPONENTS]
    kept.keep_after(
        run.host,
        run.paths,
        files=[path for path in paths if swaps or not run.host.exists(kept.after_of(run.paths, path))],
    )
    return results


def _keep_images(run: UpgradeRun) -> None:
    """The images that the way back needs. The swap has begun perhaps: what is kept of the manifests is what was there before it."""
    copies = (kept.copy_of(run.paths, run.paths.manifest(name)) for name in store.COMPONENTS)
    texts = [run.host.read_text(path) for path in copies if run.host.exists(path)]
    images = [proof.image_of(yaml_files.load_mapping(text, "a former manifest")) for text in texts]
    why_not = kept.keep_images(run.host, run.paths, socket=run.config.node.cri_socket, images=filter(None, images))
    if why_not:
        run.report.note(f"the kubelet may delete the former images if the disk becomes full: {why_not}")


def _renew_certs(run: Run) -> int:
    """Every certificate that a renewal issues; returns how many. The running components go on with what they have loaded until they are swapped; the same
    authorities signed both."""
    outcomes = renewed_certs.renew_files(run, renewal.wanted_rows(run.config.cluster)).outcomes
    renewed = [name for name, outcome in outcomes.items() if outcome == "renewed"]
    external = [name for name, outcome in outcomes.items() if outcome == "external"]
    if renewed:
        run.report.note(f"renewed {len(renewed)} certificates; the former ones are below {run.paths.former_certs}")
    if external:
        run.report.note(f"their CA signs elsewhere, so they were not renewed: {', '.join(external)}")
    return len(renewed)


def plan_stored_version(run: UpgradeRun) -> Plan:
    """ConfigMap kubeadm-config with the new version, and otherwise as it is; a document of an API version that the new kubeadm does not
    write is written again as a whole."""

    def change(document: Mapping[str, Any]) -> dict[str, Any]:
        if document.get("apiVersion") != schema.V1BETA4:
            return dict(render.render_cluster_configuration(run.config.cluster, run.release))
        return {**document, "kubernetesVersion": run.config.cluster.kubernetes_version}

    return stored_cluster.plan_stored(run, change)


def plan_kubelet_server(run: UpgradeRun) -> Plan:
    """kubelet.conf of a control plane calls its own API server where the new version has it so (ControlPlaneKubeletLocalMode)."""
    path = run.paths.kubeconfigs / "kubelet.conf"
    wanted = kubeconfig.server_url("kubelet", run.config, release=run.release)
    if wanted != kubeconfig.local_url(run.config) or not run.host.exists(path):
        return Plan()
    text = run.host.read_text(path)
    if kubeconfig.parse_kubeconfig(text, source=str(path)).server == wanted:
        return Plan()
    return Plan(File(path, kubeconfig.with_server(text, wanted, source=str(path)), mode=0o600))


plan_kubelet_config = upload_config.plan_kubelet_config
SWAP = Act(do=swap_control_plane, foretell=static_pods_swap.foretell_swap, live="node", always=True)
