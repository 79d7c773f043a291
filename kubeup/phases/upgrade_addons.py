"""The phases addon/coredns and addon/kube-proxy of an upgrade.

An addon is upgraded once every API server of the cluster runs the new version: kube-proxy must not be newer than the API server that
it talks to. Until then its phase waits, and names the control planes that are left. What others changed in the objects is kept.
Mirrors cmd/kubeadm/app/cmd/phases/upgrade/addons.go, which compares the images of the API servers' pods, skips the addons otherwise,
and does not look whether they come up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from kubeup.addresses import host_of
from kubeup.engine.cluster_items import Manifest, Object, PodConfig
from kubeup.engine.plan import Item, Plan, Proof, Waiting
from kubeup.errors import ClusterError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import watch
from kubeup.phases.addons import read_running_dns
from kubeup.trouble import advise
from kubeup.yaml_files import load_mapping

with lazily:
    from kubeup import releases
    from kubeup.cluster import addons, api, field_owners, health, probes
    from kubeup.cluster import objects as clusterobjects
    from kubeup.node import images, patches
    from kubeup.upgrade import corefile, kept_edits

if TYPE_CHECKING:
    from kubeup.config.types import NodeConfig
    from kubeup.phases.upgrade_run import UpgradeRun

SYSTEM = "kube-system"
BACKUP_KEY = "Corefile-backup"
"""The Corefile from before it was changed, in the ConfigMap. The name is kubeadm's."""
STALLED_S = 120.0
"""How long a rollout may go on without another pod: an image has to be pulled on the next node, and a pod gets 30 s to end."""
ROLLOUT_S = 3600.0
PROXIES_S, PROXY_STALLED_S = 120.0, 20.0
"""How long kube-proxy on the other nodes holds this node's kubelet up, and without any progress."""
POLL_S = 1.0
_PROXY_LABEL = "k8s-app=kube-proxy"
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable")
"""What a kubelet says of a container whose image it does not get. Source: pkg/kubelet/images/types.go"""
_PROXY_NAMES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
MERGED = ("Deployment", "DaemonSet", "Service")
"""The kinds in which edits of others are kept. What CoreDNS and kube-proxy may do has to be the new version's."""


# ---- addon/coredns


def plan_coredns(run: UpgradeRun) -> Plan:
    """CoreDNS with the image of the new version. Its Corefile is carried over; if that is not possible, CoreDNS stays as it is."""
    if run.config.cluster.dns.disabled:
        return Plan(notes=["dns.disabled is set: no CoreDNS"])
    left = find_lagging(run)
    if left:
        return Plan(_waiting("CoreDNS", left, run=run))
    running = read_running_dns(run)
    if not running.tag:
        return Plan(notes=["the cluster has no CoreDNS: an upgrade installs none"])
    cluster, release = run.config.cluster, run.release
    wanted = images.image_of("coredns", cluster, release=release).tag
    try:
        migrated = corefile.migrate(running.corefile, former=running.tag, wanted=wanted)
    except ClusterError as error:
        return Plan(
            Waiting("CoreDNS", f"it stays at {running.tag}: {error.what}"),
            warnings=[f"CoreDNS stays at {running.tag}: {advise(error)}; then run the command again"],
        )
    notes = [f"the Corefile, {change}" for change in migrated.changes]
    notes += [f"the Corefile imports {path}, which was not looked at" for path in migrated.unread]
    if migrated.text and not addons.is_default_corefile(migrated.text, cluster):
        notes.append("the Corefile in ConfigMap kube-system/coredns was edited: the edits are kept")
    patch = patches.read_patches(run.host, run.config.patches_directory)
    carried = replace(running, corefile=migrated.text)
    rendered = addons.render_coredns(run.config, release, running=carried, patch=patch)
    _keep_former_corefile(run, rendered, former=running.corefile if migrated.changes else "")
    bases = [
        addons.render_coredns(run.config, row, running=carried, patch=one)
        for row in releases.RELEASES.values()
        for one in (None, patch)
    ]
    items, edits = _plan_objects(run, rendered, bases=bases)
    place = api.path_of("Deployment", running.deployment, namespace=SYSTEM)
    return Plan(*items, _rollout(place, addons.DNS_LABEL), notes=[*notes, *edits.kept], warnings=edits.lost)


def _keep_former_corefile(run: UpgradeRun, rendered: Sequence[Manifest], *, former: str) -> None:
    kept = former or clusterobjects.read_config_key(run.api, "coredns", key=BACKUP_KEY)
    for found in rendered:
        if kept and found["kind"] == "ConfigMap":
            found["data"][BACKUP_KEY] = kept


# ---- addon/kube-proxy


def plan_kube_proxy(run: UpgradeRun) -> Plan:
    """kube-proxy in the new version, with the configuration that people gave it. The DaemonSet replaces one node's pod after another."""
    if run.config.cluster.proxy.disabled:
        return Plan(notes=["proxy.disabled is set: no kube-proxy"])
    left = find_lagging(run)
    place = api.path_of("DaemonSet", "kube-proxy", namespace=SYSTEM)
    running = run.api.get(place)
    if left:
        return Plan(_waiting("kube-proxy", left, run=run), warnings=_judge_age(running, run))
    if running is None:
        return Plan(notes=["the cluster has no kube-proxy: an upgrade installs none"])
    config_map = run.api.get(api.path_of("ConfigMap", "kube-proxy", namespace=SYSTEM))
    config = _proxy_config(run.config, config_map, daemon_set=running)
    wanted, *rest = addons.render_kube_proxy(config, run.release)
    notes = []
    if config.kube_proxy:
        notes.append("kube-proxy's configuration in ConfigMap kube-system/kube-proxy was edited: it is kept")
    if _is_others(config_map, "kubeconfig.conf"):
        assert config_map is not None
        wanted["data"]["kubeconfig.conf"] = config_map["data"]["kubeconfig.conf"]
        notes.append("kube-proxy's kubeconfig in ConfigMap kube-system/kube-proxy was edited: it is kept")
    bases = [addons.render_kube_proxy(config, row) for row in releases.RELEASES.values()]
    former = replace(config, cluster=replace(config.cluster, kubernetes_version=run.former))
    bases.append(addons.render_kube_proxy(former, run.release))
    items, edits = _plan_objects(run, rest, bases=bases)
    told = "kube-proxy's configuration changed: its pods are restarted, one node after the other"
    return Plan(
        PodConfig(wanted, place, told),
        *items,
        _rollout(place, _PROXY_LABEL),
        notes=[*notes, *edits.kept],
        warnings=edits.lost,
    )


def _proxy_config(config: NodeConfig, found: Optional[Manifest], *, daemon_set: Manifest) -> NodeConfig:
    """The node's configuration with kube-proxy's as people changed it, or none of theirs if it is what a tool generated; and with the
    HTTP proxies that its pods have."""
    data = (found or {}).get("data") or {}
    given = {}
    if data.get("config.conf") and not addons.is_generated(found):
        given = load_mapping(data["config.conf"], f"ConfigMap {SYSTEM}/kube-proxy")
    return replace(config, kube_proxy=given, proxy_env={**read_proxy_env(daemon_set), **config.proxy_env})


def read_proxy_env(daemon_set: Manifest) -> dict[str, str]:
    """The HTTP proxies that kube-proxy's pods have; {} if there is none."""
    container = addons.container_of(daemon_set, "kube-proxy")
    return {one["name"]: one["value"] for one in container.get("env") or () if _is_proxy(one)}


def _is_proxy(variable: Mapping[str, Any]) -> bool:
    return str(variable.get("name", "")).lower() in _PROXY_NAMES and "value" in variable


def _is_others(config_map: Optional[Manifest], key: str) -> bool:
    if not ((config_map or {}).get("data") or {}).get(key):
        return False
    assert config_map is not None
    others = field_owners.below(field_owners.read_others(config_map), "data")
    return bool(field_owners.below(others, key))


def _judge_age(daemon_set: Optional[Manifest], run: UpgradeRun) -> list[str]:
    """A kube-proxy that has to wait must not be older than three minors meanwhile (Kubernetes' version skew policy)."""
    if daemon_set is None:
        return []
    image = str(addons.container_of(daemon_set, "kube-proxy").get("image", ""))
    found, server = releases.version_of_image(image), releases.parse_version(_version(run))
    if found is None or server is None or found.minor >= server.minor - releases.KUBELET_SKEW:
        return []
    return [f"kube-proxy {found.text} is older than an API server of {server.text} supports: upgrade the rest now"]


# ---- which API servers are left


def find_lagging(run: UpgradeRun) -> list[str]:
    """The control planes whose API server does not run the new version yet: `cp2 (v1.35.6)`. Each is asked at its own address. This
    node's own is not counted if this run upgrades it."""
    wanted = releases.parse_version(_version(run))
    parts = health.probe_api_servers(run.api)
    names = _names_of_addresses(run)
    own = run.config.node.name if "control-plane" in run.selection.will_run else ""
    left: dict[str, str] = {}
    for part in parts:
        found = releases.parse_version(part.version)
        if not (found and wanted and found.key >= wanted.key):
            name = names.get(host_of(part.name), part.name)
            left[name] = part.version or (part.trouble.cause if part.trouble else part.unproven) or "it is silent"
    asked = {names.get(host_of(part.name)) for part in parts}
    for name in _read_control_planes(run):
        if name not in asked:
            left.setdefault(name, "its API server does not serve")
    return [f"{name} ({why})" for name, why in sorted(left.items()) if name != own]


def _version(run: UpgradeRun) -> str:
    return run.config.cluster.kubernetes_version


def _names_of_addresses(run: UpgradeRun) -> dict[str, str]:
    found = {}
    for node in run.api.list(api.path_of("Node")):
        for entry in (node.get("status") or {}).get("addresses") or ():
            found[str(entry["address"])] = str(node["metadata"]["name"])
    return found


def _read_control_planes(run: UpgradeRun) -> list[str]:
    """The nodes that run a static pod of the API server, as far as the cluster knows."""
    pods = run.api.list(api.path_of("Pod", namespace=SYSTEM), label="component=kube-apiserver")
    return sorted({str(pod["spec"]["nodeName"]) for pod in pods if (pod.get("spec") or {}).get("nodeName")})


def _waiting(what: str, left: Sequence[str], *, run: UpgradeRun) -> Waiting:
    return Waiting(what, f"until these control planes run {_version(run)}: {', '.join(left)}")


# ---- objects


class _Edits:
    """kept, lost: what others changed, as notes."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.lost: list[str] = []

    def add(self, name: str, edits: Sequence[kept_edits.Edit]) -> None:
        for edit in edits:
            if not edit.is_kept:
                self.lost.append(f"{name}: {edit.field} is {edit.found}, set by others, and becomes {edit.wanted}")
            elif edit.found:
                self.kept.append(f"{name}: {edit.field} is {edit.found}, set by others: it is kept")
            else:
                self.kept.append(f"{name}: {edit.field} was removed by others: it stays so")


def _plan_objects(
    run: UpgradeRun, rendered: Sequence[Manifest], *, bases: Sequence[Sequence[Manifest]]
) -> tuple[list[Item], _Edits]:
    items: list[Item] = []
    edits = _Edits()
    for wanted in rendered:
        if wanted["kind"] in MERGED:
            found = run.api.get(run.api.object_path(wanted))
            alike = [one for base in bases for one in base if _name_of(one) == _name_of(wanted)]
            wanted, changed = kept_edits.keep_edits(wanted, found, bases=alike)
            edits.add(Object(wanted).name, changed)
        items.append(Object(wanted))
    return items, edits


def _name_of(obj: Manifest) -> tuple[str, str]:
    return str(obj["kind"]), str(obj["metadata"]["name"])


def list_images(run: UpgradeRun) -> list[str]:
    """The images with which CoreDNS and kube-proxy are to run, if this run upgrades them. Raises ApiRefused, Unreachable."""
    items = [item for plan in (plan_coredns(run), plan_kube_proxy(run)) for item in plan.items()]
    specs = [item.manifest.get("spec") or {} for item in items if isinstance(item, Object)]
    pods = [(spec.get("template") or {}).get("spec") or {} for spec in specs]
    return list(dict.fromkeys(image for pod in pods for image in _images_of(pod).values()))


# ---- rollout


def start_coredns(run: UpgradeRun) -> Plan:
    """CoreDNS, not waited for: its pods come up while this node's kubelet is replaced (plan_rollouts)."""
    return _without_proofs(plan_coredns(run))


def start_kube_proxy(run: UpgradeRun) -> Plan:
    """kube-proxy in the same way."""
    return _without_proofs(plan_kube_proxy(run))


def _without_proofs(plan: Plan) -> Plan:
    parts = (part for part in plan.parts if not isinstance(part, Proof))
    return Plan(*parts, details=plan.details, notes=plan.notes, warnings=plan.warnings)


def plan_rollouts(run: UpgradeRun) -> Plan:
    """That the pods of both run on every node in the version that was started; nothing while other control planes are left."""
    if find_lagging(run):
        return Plan()
    return Plan(*(_rollout(place, label) for place, label in _list_rollouts(run)))


def _list_rollouts(run: UpgradeRun) -> list[tuple[str, str]]:
    """(API path, label of the pods) of those of both that the cluster has."""
    found = []
    dns = read_running_dns(run)
    if dns.tag and not run.config.cluster.dns.disabled:
        found.append((api.path_of("Deployment", dns.deployment, namespace=SYSTEM), addons.DNS_LABEL))
    proxy = api.path_of("DaemonSet", "kube-proxy", namespace=SYSTEM)
    if not run.config.cluster.proxy.disabled and run.api.get(proxy) is not None:
        found.append((proxy, _PROXY_LABEL))
    return found


def await_proxies(run: UpgradeRun) -> None:
    """Until kube-proxy, which was started anew, runs on every node, before this node's API server stops: a node whose kube-proxy is being
    replaced goes on to lead its pods there. Goes on without it where a node takes long, since its rules stay as they were for so long.
    Where this is the only node, nobody is led elsewhere. Raises ApiRefused, Unreachable."""
    place = api.path_of("DaemonSet", "kube-proxy", namespace=SYSTEM)
    owner = run.api.get(place)
    if owner is None or int((owner.get("status") or {}).get("desiredNumberScheduled", 0)) < 2:
        return
    _watch_rollout(run, place, label=_PROXY_LABEL, timeout_s=PROXIES_S, stalled_s=PROXY_STALLED_S)


def _rollout(place: str, label: str) -> Proof:
    """That the pods of the Deployment or DaemonSet at `place` run in the new version."""
    name = f"the rollout of {place.rpartition('/')[2]}"
    look = functools.partial(describe_rollout, place=place, label=label)
    return Proof(name, functools.partial(_wait_for_rollout, place=place, label=label), look)


def _wait_for_rollout(run: UpgradeRun, *, place: str, label: str) -> None:
    """Raises ClusterError (addon-not-rolled-out) with the pods that do not come up, and where."""
    name = place.rpartition("/")[2]
    missing = _watch_rollout(run, place, label=label, timeout_s=ROLLOUT_S, stalled_s=STALLED_S)
    if missing:
        stays = ", and where one is missing, the rules for Services stay as they are" if "/daemonsets/" in place else ""
        error = ClusterError(
            f"{name} does not come up in the new version",
            cause=f"{missing}; no more have come up for {STALLED_S:.0f} s. Its other pods serve{stays}",
            remedy=f"see why: kubectl -n kube-system describe pods -l {label}",
            code="addon-not-rolled-out",
        )
        with contextlib.suppress(KbError):
            error.remedy = _say_pulls(run) or error.remedy
        raise error


def count_in(missing: str) -> str:
    """Of what describe_rollout says, how many pods run: without what is told of the others."""
    return missing.partition(" (")[0]


def _say_pulls(run: UpgradeRun) -> str:
    """What to do where nodes cannot get the images of these pods; "" if that is not what is missing."""
    wanted: dict[str, set[str]] = {}
    for place, label in _list_rollouts(run):
        owner = run.api.get(place) or {"spec": {"template": {"spec": {}}}}
        for pod in _list_late(run, owner, label=label):
            images = [image for name, image in _images_of(pod["spec"]).items() if name in place]
            if images and _state_of(pod).startswith(_NO_IMAGE):
                wanted.setdefault(str(pod["spec"].get("nodeName")), set()).update(images)
    lines = [f"on {node}: {'; '.join(f'crictl pull {one}' for one in sorted(wanted[node]))}" for node in sorted(wanted)]
    return f"{'; '.join(lines)}; see to what that says; then: {run.command}" if lines else ""


def _watch_rollout(run: UpgradeRun, place: str, *, label: str, timeout_s: float, stalled_s: float) -> str:
    """What is missing in the end, or once no more pods have come up for `stalled_s`; "" if every pod runs in the new version. What the
    kubelet says of the others is no progress: of an image that it cannot pull it says two things in turn."""
    told, since = "", run.host.monotonic()

    def is_over(missing: str, elapsed: float) -> bool:
        nonlocal told, since
        if count_in(missing) != told:
            told, since = count_in(missing), run.host.monotonic()
        run.report.waiting(f"{place.rpartition('/')[2]}: {elapsed:.0f} s; {missing}")
        return run.host.monotonic() - since > stalled_s

    look = functools.partial(describe_rollout, run, place=place, label=label)
    return watch(run.host, look, timeout_s=timeout_s, is_over=is_over, poll_s=POLL_S)[0]


def describe_rollout(run: UpgradeRun, *, place: str, label: str) -> str:
    """What is missing until every pod runs in the new version, in words; "" if none is."""
    owner = run.api.get(place)
    if owner is None:
        return "it is not there"
    status = owner.get("status") or {}
    if int(status.get("observedGeneration", 0)) < int(owner["metadata"].get("generation", 0)):
        return "the controller-manager has not seen the change yet"
    is_daemon = "/daemonsets/" in place
    wanted = int(status.get("desiredNumberScheduled", 0) if is_daemon else owner["spec"].get("replicas", 1))
    new = int(status.get("updatedNumberScheduled" if is_daemon else "updatedReplicas", 0))
    ready = int(status.get("numberAvailable" if is_daemon else "availableReplicas", 0))
    there = wanted if is_daemon else int(status.get("replicas", 0))
    if new >= wanted and ready >= wanted and there <= new:
        return ""
    return f"{min(new, ready)} of {wanted} pods run{_describe_pods(run, owner, label=label)}"


def _describe_pods(run: UpgradeRun, owner: Manifest, *, label: str) -> str:
    """The pods of the new version that are not Ready, with the node and the reason."""
    told = [
        f"{pod['metadata']['name']} on {(pod.get('spec') or {}).get('nodeName') or 'no node'}: {_state_of(pod)}"
        for pod in _list_late(run, owner, label=label)
    ]
    lost = [
        str(node["metadata"]["name"])
        for node in run.api.list(api.path_of("Node"))
        if probes.node_condition(node)[0] != "True"
    ]
    told += [f"node {name} is not Ready" for name in lost]
    return f" ({'; '.join(told)})" if told else ""


def _list_late(run: UpgradeRun, owner: Manifest, *, label: str) -> Iterator[Manifest]:
    wanted = _images_of(owner["spec"]["template"]["spec"])
    for pod in run.api.list(api.path_of("Pod", namespace=SYSTEM), label=label):
        # an admission webhook may have added containers
        is_new = wanted.items() <= _images_of(pod.get("spec") or {}).items()
        if is_new and probes.node_condition(pod)[0] != "True":
            yield pod


def _images_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Container -> image, by a pod's spec."""
    return {str(one.get("name")): str(one.get("image")) for one in spec.get("containers") or ()}


def _state_of(pod: Manifest) -> str:
    status = pod.get("status") or {}
    for one in status.get("containerStatuses") or ():
        for kind in ("waiting", "terminated"):
            state = (one.get("state") or {}).get(kind) or {}
            if state:
                return ": ".join(filter(None, (str(state.get("reason", kind)), str(state.get("message", "")))))
    reasons = [one for one in status.get("conditions") or () if one.get("status") == "False" and one.get("message")]
    return str(reasons[0]["message"]) if reasons else "it is starting"
