"""The phases addon/kube-proxy and addon/coredns of `kb reconfigure`: their configuration, and back if their pods do not come up with it.

Both replace one pod after another, so a configuration that does not work stops at the first one. kubeadm has no command for either.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Optional

from kubeup.engine.cluster_items import Manifest, PatchedFields, PodConfig, RestartedPods
from kubeup.engine.plan import Plan, Proof
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import watch
from kubeup.phases import upgrade_addons
from kubeup.phases.addons import read_running_dns
from kubeup.phases.reconfigure_config import ReconfigureRun
from kubeup.yaml_files import covers

with lazily:
    from kubeup.cluster import addons, api, objects
    from kubeup.node import kubelet
    from kubeup.upgrade import changed_component

PROXY_LABEL = "k8s-app=kube-proxy"
FAILS_S = 25.0
"""How long after the first failure of a pod the others may still come up: an image may be pulled again, an API server be away."""
LASTS_S = 8.0
"""For how long all pods then have to run."""
NEVER = float("inf")
ROLLOUT_S = 1800.0
_FAILING = ("CrashLoopBackOff", "Error", "RunContainerError", "CreateContainerConfigError", "CreateContainerError")


def plan_kube_proxy(run: ReconfigureRun) -> Plan:
    """kube-proxy with the changed configuration; or with other images, if a file names a registry."""
    if "kube-proxy" not in run.components:
        return upgrade_addons.plan_kube_proxy(run) if run.changes_images else Plan()
    place = api.path_of("DaemonSet", "kube-proxy", namespace=objects.SYSTEM)
    text = changed_component.render(run.components["kube-proxy"].after, changed_component.KINDS["kube-proxy"])
    is_cut_off = "addon/kube-proxy" in run.selection.cut_off
    return _plan_config(run, "kube-proxy", {"config.conf": text}, place=place, label=PROXY_LABEL, is_cut_off=is_cut_off)


def plan_coredns(run: ReconfigureRun) -> Plan:
    """CoreDNS with the given Corefile or number of pods; or with other images."""
    if not run.dns:
        return upgrade_addons.plan_coredns(run) if run.changes_images else Plan()
    name = read_running_dns(run).deployment
    place = api.path_of("Deployment", name, namespace=objects.SYSTEM)
    plan = Plan()
    if "replicas" in run.dns:
        plan += Plan(
            _scaled(name, place, int(run.dns["replicas"])), _rollout(name, place=place, label=addons.DNS_LABEL)
        )
    if "Corefile" in run.dns:
        data = {"Corefile": run.dns["Corefile"]}
        is_cut_off = "addon/coredns" in run.selection.cut_off
        plan += _plan_config(run, "coredns", data, place=place, label=addons.DNS_LABEL, is_cut_off=is_cut_off)
    return plan


def _scaled(name: str, place: str, replicas: int) -> PatchedFields:  # noqa: PLR0917
    patch = {"spec": {"replicas": replicas}}

    def plan(found: Manifest) -> Optional[Manifest]:
        return None if covers(found, patch) else patch

    return PatchedFields(f"the pods of Deployment {objects.SYSTEM}/{name}", place, patch, plan, wait=lambda: None)


def _plan_config(  # noqa: PLR0917
    run: ReconfigureRun, name: str, data: Mapping[str, str], *, place: str, label: str, is_cut_off: bool
) -> Plan:
    """Keys of the ConfigMap `name`, and the pods that read it when they start. Raises ClusterError (addon-not-here)."""
    found = run.api.get(api.path_of("ConfigMap", name, namespace=objects.SYSTEM))
    if found is None or run.api.get(place) is None:
        raise ClusterError(
            f"the cluster has no {name} of kb's or kubeadm's",
            cause=f"ConfigMap kube-system/{name}, or what runs its pods, is not there",
            remedy="change it where it was installed",
            code="addon-not-here",
        )
    if covers(found.get("data"), data):
        restarted = Plan(RestartedPods(f"pods of {name}", place), _rollout(name, place=place, label=label))
        return restarted if is_cut_off else Plan()
    told = f"the configuration of {name} changed: its pods are restarted, one after the other"
    labels = found["metadata"].get("labels")
    former = _render(name, found.get("data") or {}, labels=labels, hashed=addons.is_generated(found))
    wanted = _render(name, {**(found.get("data") or {}), **data}, labels=labels, hashed=False)
    return Plan(PodConfig(wanted, place, told), _rollout(name, place=place, label=label, former=former))


def _render(name: str, data: Mapping[str, str], *, labels: Optional[Mapping[str, str]], hashed: bool) -> Manifest:
    made = kubelet.component_config_hash(data) if hashed else ""
    return dict(objects.render_component_config(name, data, generated_hash=made, labels=labels))


def _rollout(name: str, *, place: str, label: str, former: Optional[Manifest] = None) -> Proof:
    """former: the ConfigMap that comes back if the pods do not come up."""
    look = functools.partial(upgrade_addons.describe_rollout, place=place, label=label)
    wait = functools.partial(_wait_or_go_back, place=place, label=label, former=former)
    return Proof(f"the rollout of {name}", wait, look)


def _wait(run: ReconfigureRun, *, place: str, label: str) -> None:
    """Until all pods run, and have done so for a while: one that ends again is counted as available for a moment. Raises ClusterError
    (addon-not-rolled-out)."""
    name = place.rpartition("/")[2]
    moved, told, well_since, failing_since = run.host.monotonic(), "", NEVER, NEVER

    def look() -> str:
        nonlocal well_since, failing_since
        missing, now = upgrade_addons.describe_rollout(run, place=place, label=label), run.host.monotonic()
        if missing:
            well_since = NEVER
            failing_since = min(failing_since, now) if any(word in missing for word in _FAILING) else failing_since
            return missing
        well_since = min(well_since, now)
        return "" if now - well_since >= LASTS_S else f"its pods run, for {now - well_since:.0f} s of {LASTS_S:.0f} s"

    def is_over(missing: str, elapsed: float) -> bool:
        nonlocal told, moved
        now = run.host.monotonic()
        if upgrade_addons.count_in(missing) != told:
            told, moved = upgrade_addons.count_in(missing), now
        run.report.waiting(f"{name}: {elapsed:.0f} s; {missing}")
        return now - failing_since > FAILS_S or now - moved > upgrade_addons.STALLED_S

    missing, _ = watch(run.host, look, timeout_s=ROLLOUT_S, is_over=is_over, poll_s=1.0)
    if missing:
        raise ClusterError(
            f"{name} does not come up with the changed configuration",
            cause=missing,
            remedy=f"see why: kubectl -n kube-system describe pods -l {label}",
            code="addon-not-rolled-out",
        )


def _wait_or_go_back(run: ReconfigureRun, *, place: str, label: str, former: Optional[Manifest]) -> None:
    """Raises ClusterError (addon-not-rolled-out), once the former configuration is back where there is one."""
    try:
        _wait(run, place=place, label=label)
    except ClusterError as error:
        if former is None:
            raise
        run.report.note(f"{error.what}: taking it back. {error.cause}")
        objects.apply_component_config(run.api, former)
        objects.restart_pods(run.api, place, now=run.host.now())
        _wait(run, place=place, label=label)
        raise ClusterError(
            error.what,
            cause=f"{error.cause}; the former configuration is back, and its pods run",
            remedy="correct the value, then run the command again",
            code="addon-not-rolled-out",
        ) from error
