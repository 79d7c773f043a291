"""Checks of what runs: preflight's checks, the chain from the kubelet to the probes, static pods about to be
restarted, and what the kubelet makes static pods of."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from kubeup.cluster import probes
from kubeup.diagnosis import chain, kubelet_trouble, pod_trouble, signs
from kubeup.diagnosis.checks import facts, table
from kubeup.diagnosis.checks.facts import ERROR, OK, WARNING, Finding, Findings
from kubeup.doctor.node_files import COMPONENTS, Patient, open_api, read_flags
from kubeup.errors import KbError
from kubeup.node import containers
from kubeup.shapes import fit_what_does
from kubeup.yaml_files import load_mapping

STARTING = "chain/starting"
"""The finding of a component that is being started, which is no fault."""
PROBES_S = 30
"""By this time a healthy pod has been probed and is Ready."""


def look_at_checks(patient: Patient) -> Findings:
    """preflight's checks, as far as they apply to a working node."""
    node = facts.Node(
        patient.host, patient.config, patient.release, patient.paths, workflow=facts.DOCTOR,
        owned=frozenset({str(patient.paths.manifest(name)) for name in patient.components}),
    )  # fmt: skip
    only_control_plane = ("NumCPU", "Mem")
    for batch in (facts.ROOT, facts.NODE):
        for finding in table.run_batch(node, batch):
            if patient.is_control_plane or finding.name not in only_control_plane:
                yield finding


def look_at_chain(patient: Patient) -> Findings:
    """Kubelet, runtime, sandboxes, containers, probes: the first broken link."""
    if not patient.is_member:
        return
    unhealthy = {name: seen for name, seen in probe_components(patient).items() if seen}
    if _STARTING.fullmatch(unhealthy.get("kube-apiserver", "")) and _is_young(patient, "kube-apiserver"):
        del unhealthy["kube-apiserver"]
        yield Finding(
            STARTING,
            OK,
            f"not proven: kube-apiserver was started less than {PROBES_S} s ago, and is not ready yet",
            remedy="",
        )
    components = (*patient.components, "kube-proxy", "coredns") if patient.is_control_plane else ("kube-proxy",)
    link = chain.find_broken_link(
        patient.host, patient.config.node.cri_socket, components=components, unhealthy=unhealthy
    )
    fresh = _find_fresh(patient, next(iter(unhealthy), "")) if link is None or link.link == "probe" else ""
    if fresh:
        text = f"not proven: {patient.paths.manifest(fresh)} was changed less than {_STARTED_S} s ago, and the kubelet starts {fresh} anew once the former one has ended"
        yield Finding(STARTING, OK, text, remedy="")
        return
    absent = _find_absent(patient, next(iter(unhealthy), "")) if link is None or link.link == "probe" else ""
    if absent:
        denial = kubelet_trouble.read_denial(patient.host, absent)
        why = f"it refuses the pod: {denial}" if denial else "and has not said why"
        text = f"{absent} does not run: the kubelet has made no container of {patient.paths.manifest(absent)}, {why}"
        remedy = f"{signs.say_restart(patient.host, 'kubelet')}, which makes it read its manifests again"
        yield Finding("chain/container", ERROR, text, remedy)
        return
    if link and "leaderelection lost" in link.cause and _is_young(patient, "kube-apiserver", age_s=_RECENT_S):
        text = (
            f"not proven: {link.what}: it lost its lease while the API server, which has been started since, was away"
        )
        yield Finding(STARTING, OK, text, remedy="")
        return
    if link:
        yield Finding(f"chain/{link.link}", ERROR, str(link), link.remedy)
        return
    for name, seen in unhealthy.items():
        yield Finding(
            "chain/probe", ERROR, f"{name} is not healthy: {seen}", f"crictl logs $(crictl ps -q --name {name})"
        )


_STARTING = re.compile(r"HTTP 500: \[-\]poststarthook/[^;]*(; \[-\]poststarthook/[^;]*)*")
"""What an API server still has to do after its start."""


_RECENT_S = 180
"""So long a controller may wait between two starts, after some of its ends."""


def _is_young(patient: Patient, component: str, *, age_s: float = PROBES_S) -> bool:
    found = containers.list_containers(patient.host, patient.config.node.cri_socket, name=component, has_exits=False)
    now = patient.host.now().timestamp()
    return any(one.state == "running" and now - one.created_ns / 1e9 < age_s for one in found)


def _find_absent(patient: Patient, component: str) -> str:
    """The first unhealthy component, if it has no container although its manifest has been there for a while; else ""."""
    if not component or _read_age_s(patient, component) < _STARTED_S:
        return ""
    found = containers.ask_containers(patient.host, patient.config.node.cri_socket, name=component, has_exits=False)
    return component if found == [] else ""


def _find_fresh(patient: Patient, component: str) -> str:
    """The first unhealthy component, if its manifest was changed a moment ago, and no container of it runs, or it ends; else ""."""
    if not component or _read_age_s(patient, component) >= _STARTED_S:
        return ""
    found = containers.ask_containers(patient.host, patient.config.node.cri_socket, name=component)
    since = patient.host.now().timestamp() - _read_age_s(patient, component)
    is_made = any(one.created_ns / 1e9 > since for one in found or ())
    return "" if is_made else component


def _read_age_s(patient: Patient, component: str) -> float:
    """How long ago its manifest was written; 0 if there is none, of which others tell."""
    manifest = patient.host.stat(patient.paths.manifest(component))
    return 0.0 if manifest is None else patient.host.now().timestamp() - manifest.ctime


_STARTED_S = 60
"""By this time a kubelet has made a container of a manifest, or has said why not. One that was changed waits until the former pod has ended, whose
API server serves what is under way for up to 30 s."""


def probe_components(patient: Patient) -> dict[str, str]:
    """The answer of each static pod's health endpoint; "" for healthy."""
    found = {}
    for name in patient.components:
        if name == "etcd":
            url = (
                read_flags(patient.host, patient.paths, component="etcd")
                .get("listen-metrics-urls", "")
                .partition(",")[0]
            )
            seen = (
                probes.probe_url(patient.host, f"{url}/health?serializable=false") if url else probes.Health(True, "")
            )
        else:
            seen = probes.probe_url(patient.host, probes.component_url(patient.host, patient.paths, component=name))
        is_closed = name == "kube-apiserver" and seen.seen.startswith(("HTTP 401", "HTTP 403"))
        found[name] = "" if seen.is_healthy or is_closed else seen.seen
    return found


def look_at_sandboxes(patient: Patient) -> Findings:
    """Pods of anybody that this node was given and does not start, for a reason of its runtime or its pod network."""
    link = pod_trouble.find_sandbox_trouble(patient.host, patient.config.node.cri_socket)
    if link:
        yield Finding("sandboxes", ERROR, str(link), link.remedy)


def look_at_static_pods(patient: Patient) -> Findings:
    """Static pods that run but that the kubelet considers not ready: it is about to restart them."""
    if not patient.is_control_plane:
        return
    try:
        api = open_api(patient)
        pods = probes.read_static_pods(api, patient.config.node.name)
        failing = [pod.component for pod in pods if pod.running_since and not pod.is_ready]
        told = {name: probes.read_probe_failure(api, f"{name}-{patient.config.node.name}") for name in failing}
    except KbError:
        return  # another check reports an API server that does not answer
    young = {
        pod.component for pod in pods if pod.running_since and _seconds_since(patient, pod.running_since) < PROBES_S
    }
    seen = probe_components(patient) if any(told[name] for name in young & told.keys()) else {}
    for name, text in told.items():
        if name in young and (not text or seen.get(name) == ""):
            continue  # not probed yet, or not again since it has started
        flags = read_flags(patient.host, patient.paths, component=name)
        closed = probes.describe_closed_probes(flags.items()) if name == "kube-apiserver" else ""
        remedy = probes.CLOSED_PROBES_REMEDY if closed else f"crictl logs $(crictl ps -q --name {name})"
        cause = "; ".join(filter(None, (text or "the kubelet has reported nothing about its probes", closed)))
        yield Finding("static-pods", ERROR, f"{name} runs but is not Ready: {cause}", remedy)


def look_at_manifests(patient: Patient) -> Findings:
    """What the kubelet makes static pods of: a copy that somebody left beside a manifest is one too, whatever its name ends with. Of two pods of the
    same name the kubelet runs the one that it has read first, so a restart may bring the other. Source: pkg/kubelet/config/file.go"""
    yield from _find_lost_manifests(patient)
    host, folder = patient.host, patient.paths.manifests
    places: dict[str, list[Path]] = {}
    for path in (folder / name for name in host.list_dir(folder) if not name.startswith(".")):
        if host.is_dir(path):
            continue
        try:
            pod = load_mapping(host.read_text(path), str(path))
        except KbError as error:
            yield _describe_unread(patient, path, why=error.cause)
            continue
        meta = fit_what_does(pod, {"metadata!": {"name": str, "namespace": str}})["metadata"]
        if not meta.get("name"):
            yield _describe_unread(patient, path, why="it names no pod" if pod else "it is empty")
        else:
            places.setdefault(f"{meta.get('namespace') or 'default'}/{meta['name']}", []).append(path)
    for name, paths in places.items():
        copies = [path for path in paths if path != folder / f"{path.name.partition('.')[0]}.yaml"] or paths[1:]
        if len(paths) > 1:
            text = f"{' and '.join(map(str, paths))} are both manifests of {name}: the kubelet runs only one of them, and another one perhaps after its next start"
            yield Finding(f"manifests/{name.partition('/')[2]}", ERROR, text, "; ".join(map(_say_move, copies)))


def _describe_unread(patient: Patient, path: Path, *, why: str) -> Finding:
    """A file in the kubelet's folder of which it makes no pod: of a component that this node needs, it is an error."""
    text = f"the kubelet cannot make a static pod of {path}: {why}"
    if path.suffix == ".yaml" and path.stem in COMPONENTS:
        return Finding(f"manifests/{path.stem}", ERROR, text, _say_anew(patient, path.stem))
    return Finding("manifests", WARNING, text, _say_move(path))


def _find_lost_manifests(patient: Patient) -> Findings:
    """Manifests that a control plane needs and that are not there: taken away for a restore, say, and not put back."""
    host, paths = patient.host, patient.paths
    if not patient.is_control_plane or not patient.is_member:
        return
    has_etcd = host.exists(paths.pki / "etcd/server.crt") and patient.config.cluster.external_etcd is None
    for name in COMPONENTS if has_etcd else COMPONENTS[1:]:
        if not host.exists(paths.manifest(name)):
            text = f"{paths.manifest(name)} is not there, so {name} does not run on this control plane"
            yield Finding(f"manifests/{name}", ERROR, text, _say_anew(patient, name))


def _say_anew(patient: Patient, component: str) -> str:
    path = patient.paths.manifest(component)
    phase = "etcd local" if component == "etcd" else f"control-plane {component.removeprefix('kube-')}"
    return f"put it back as it was (look for a copy: ls -t /root/*.yaml /etc/kubernetes/*/{path.name}), or have it written: kb init phase {phase}"


def _say_move(path: Path) -> str:
    return f"if it is not meant to run: mv {path} /root/"


def _seconds_since(patient: Patient, moment: datetime.datetime) -> float:
    return (patient.host.now() - moment).total_seconds()
