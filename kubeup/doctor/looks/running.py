"""Checks of what runs: preflight's checks, the chain from the kubelet to the probes, static pods about to be
restarted, and what the kubelet makes static pods of."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Optional

from kubeup.cluster import etcd, probes
from kubeup.diagnosis import chain, kubelet_trouble, pod_trouble, signs
from kubeup.diagnosis.checks import facts, table
from kubeup.diagnosis.checks.facts import ERROR, OK, WARNING, Finding, Findings, not_proven
from kubeup.doctor.node_files import COMPONENTS, Patient, open_api, read_flags, read_mapping
from kubeup.errors import KbError
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Unreachable
from kubeup.node import containers
from kubeup.shapes import fit_what_does
from kubeup.trouble import Trouble
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
    first = next(iter(unhealthy), "") if link is None or link.link == "probe" else ""
    found = _judge_first(patient, first, seen=unhealthy.get(first, "")) if first else None
    if found is not None:
        yield found
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


def _judge_first(patient: Patient, component: str, *, seen: str) -> Optional[Finding]:
    """What can be said of the first component that is unhealthy without its log: its flags, its manifest, whether it has a container at all."""
    path = patient.paths.manifest(component)
    told = _explain_server(patient) if component == "kube-apiserver" else None
    if told is not None:
        return Finding("chain/probe", ERROR, f"kube-apiserver is not healthy ({seen}): {told}", told.remedy)
    if _is_fresh(patient, component):
        text = f"not proven: {path} was changed less than {_STARTED_S} s ago, and the kubelet starts {component} anew once the former one has ended"
        return Finding(STARTING, OK, text, remedy="")
    if not _is_absent(patient, component):
        return None
    denial = kubelet_trouble.read_denial(patient.host, component)
    why = f"it refuses the pod: {denial}" if denial else "and has not said why"
    text = f"{component} does not run: the kubelet has made no container of {path}, {why}"
    remedy = f"{signs.say_restart(patient.host, 'kubelet')}, which makes it read its manifests again"
    return Finding("chain/container", ERROR, text, remedy)


def _explain_server(patient: Patient) -> Optional[Trouble]:
    """What this node's API server was told that keeps it from serving others, or from its data."""
    flags = read_flags(patient.host, patient.paths, component="kube-apiserver")
    path = patient.paths.manifest("kube-apiserver")
    bind, called = flags.get("bind-address", ""), flags.get("advertise-address", "")
    if bind not in ("", "0.0.0.0", "::", called):
        what = f"it listens at {bind} alone, and everybody calls it at {called}"
        return Trouble(what, f"--bind-address={bind} in {path}", f"take that flag out of {path}")
    silent = [url for url in flags.get("etcd-servers", "").split(",") if url and _is_refused(patient.host, url)]
    if silent and len(silent) == len(flags["etcd-servers"].split(",")):
        what = f"it is told to keep its data at {', '.join(silent)}, where nothing listens"
        own = ", ".join(etcd.client_urls_of_manifest(read_mapping(patient.host, patient.paths.manifest("etcd"))))
        remedy = (
            f"correct it there (this node's etcd is at {own})"
            if own and own not in silent
            else "see why etcd does not run: crictl ps -a --name etcd"
        )
        return Trouble(what, f"--etcd-servers in {path}", remedy)
    return None


def _is_refused(host: Host, url: str) -> bool:
    try:
        host.http_get(f"{url}/health", tls=UNPROVEN, timeout_s=2)
    except Unreachable as error:
        return error.reason == "refused"
    return False


def _is_absent(patient: Patient, component: str) -> bool:
    """Whether it has no container although its manifest has been there for a while."""
    if _read_age_s(patient, component) < _STARTED_S:
        return False
    return (
        containers.ask_containers(patient.host, patient.config.node.cri_socket, name=component, has_exits=False) == []
    )


def _is_fresh(patient: Patient, component: str) -> bool:
    """Whether its manifest was changed a moment ago, and no container was made of it yet."""
    age_s = _read_age_s(patient, component)
    if age_s >= _STARTED_S:
        return False
    since = patient.host.now().timestamp() - age_s
    found = containers.ask_containers(patient.host, patient.config.node.cri_socket, name=component)
    return not any(one.created_ns / 1e9 > since for one in found or ())


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
    except KbError as error:
        yield not_proven("static-pods", error)
        return
    young = {
        pod.component for pod in pods if pod.running_since and _seconds_since(patient, pod.running_since) < PROBES_S
    }
    seen = probe_components(patient) if any(told[name] for name in young & told.keys()) else {}
    for name, text in told.items():
        if name in young and (not text or seen.get(name) == ""):
            continue  # not probed yet, or not again since it has started
        flags = read_flags(patient.host, patient.paths, component=name)
        closed = probes.describe_closed_probes(flags.items()) if name == "kube-apiserver" else ""
        astray = probes.describe_astray_probes(name, text, flags=flags)
        manifest = patient.paths.manifest(name)
        remedy = probes.CLOSED_PROBES_REMEDY if closed else f"crictl logs $(crictl ps -q --name {name})"
        remedy = f"make its flags and its probes one again, in {manifest}" if astray else remedy
        cause = "; ".join(filter(None, (text or "the kubelet has reported nothing about its probes", closed or astray)))
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
