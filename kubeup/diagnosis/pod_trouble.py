"""Why a pod does not start, from the kubelet's log: volumes, sandboxes, images, containers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks.machine import FLEXVOLUME_REMEDY
from kubeup.diagnosis.kubelet_trouble import RECENT_S, read_present_log
from kubeup.diagnosis.log_lines import shorten
from kubeup.diagnosis.signs import (
    CONFIG_OF,
    CONTAINER_SIGNS,
    MANIFESTS,
    SANDBOX_SIGNS,
    THEN,
    BrokenLink,
    match_signs,
    source_words,
)
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import image_pulls, runtime
from kubeup.node.crictl import crictl_argv, data_folder, last_words, unit_of


@frozen
class PodTrouble:
    """A pod that the kubelet cannot start, from its log."""

    container: str
    """The container's name; "" for the sandbox, which only `pod` identifies."""
    pod: str
    kind: str
    """sandbox | image | start | volume"""
    text: str
    uid: str = ""
    """The pod's, of a sandbox's trouble."""


_POD = re.compile(r'pod="(?P<pod>[^"]+)"')
_SYNC = re.compile(
    r'failed to \\*"(?P<step>\w+)\\*" for \\*"(?P<name>[^"\\]+)\\*" with (?P<reason>\w+): (?P<text>.*)', re.DOTALL
)
_SET_UP = re.compile(
    r'MountVolume\.SetUp failed for volume "(?P<volume>[^"]+)".*? pod "(?P<pod>[^"]+)".*?\) : (?P<why>.*)'
)
_KINDS = {
    "CreatePodSandboxError": "sandbox",
    "ErrImagePull": "image",
    "ImagePullBackOff": "image",
    "ErrImageNeverPull": "image",
    "InvalidImageName": "image",
    "RunContainerError": "start",
    "CreateContainerError": "start",
    "CreateContainerConfigError": "start",
    "StartError": "start",
}


def parse_pod_troubles(lines: Iterable[str]) -> list[PodTrouble]:
    """The pod troubles in a kubelet's log: the newest of each pod and kind, oldest first."""
    found: dict[tuple[str, str, str], PodTrouble] = {}
    for line in lines:
        set_up = _SET_UP.search(_unescape(line)) if "MountVolume.SetUp failed" in line else None
        if set_up:
            key = ("", set_up["pod"], "volume")
            found.pop(key, None)
            found[key] = PodTrouble("", set_up["pod"], "volume", f"{set_up['volume']}: {set_up['why']}")
        if "Error syncing pod" not in line:
            continue
        match, pod = _SYNC.search(line), _POD.search(line)
        if not match or match["reason"] not in _KINDS:
            continue
        kind = _KINDS[match["reason"]]
        text = _unescape(match["text"].partition('" pod="')[0])
        name = pod["pod"].partition("/")[2] if pod else match["name"]
        # a sandbox is called NAME_NAMESPACE(UID)
        container, uid = (
            ("", match["name"].rpartition("(")[2].rstrip(")")) if kind == "sandbox" else (match["name"], "")
        )
        trouble = PodTrouble(container, name, kind, text, uid)
        old = found.get((trouble.container, trouble.pod, kind))
        if old and match["reason"] == "ImagePullBackOff" and "Back-off" not in old.text:
            continue  # the failed pull itself said more than the back-off after it
        found.pop((trouble.container, trouble.pod, kind), None)
        found[(trouble.container, trouble.pod, kind)] = trouble
    return list(found.values())


def _unescape(text: str) -> str:
    while "\\" in text:
        plainer = re.sub(r"\\(.)", lambda quoted: " " if quoted[1] in "nt" else quoted[1], text)
        if plainer == text:
            break
        text = plainer
    return text.strip().strip('"').strip()


def find_pod_trouble(host: Host, cri_socket: str, *, component: str) -> Optional[BrokenLink]:
    """Why no container of `component` was started, from the kubelet's log."""
    troubles = parse_pod_troubles(read_present_log(host, lines=400, since_s=_find_age_s(host, component)))
    own = [
        trouble
        for trouble in troubles
        if trouble.container == component or (not trouble.container and trouble.pod.startswith(f"{component}-"))
    ]
    if not own:
        return None
    newest = own[-1]
    explain = {
        "sandbox": _describe_sandbox,
        "volume": _describe_volume,
        "image": _describe_image,
        "start": _describe_start,
    }
    return explain[newest.kind](host, cri_socket, component=component, text=newest.text)


def find_sandbox_trouble(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """Why this node makes no sandbox for a pod of anybody, from what the kubelet said in the last minute; None if each pod has one since, or
    is gone."""
    told = parse_pod_troubles(read_present_log(host, lines=400, since_s=_TRIED_S))
    wanted = [one for one in told if one.kind == "sandbox" and host.is_dir(PODS / one.uid)]
    if not wanted:
        return None
    ready = host.query(crictl_argv(cri_socket, "pods", "--state", "ready", "-o", "json"), timeout_s=15)
    stuck = [one for one in wanted if ready.ok and one.uid not in ready.stdout]
    if not stuck:
        return None
    count = f" and of {len(stuck) - 1} more" if len(stuck) > 1 else ""
    return _describe_sandbox(host, cri_socket, component=f"pod {stuck[-1].pod}{count}", text=stuck[-1].text)


PODS = Path("/var/lib/kubelet/pods")
"""The kubelet's folder of a pod, by its uid, is there from before its sandbox until it is gone. Source: pkg/kubelet/kubelet_getters.go"""
_TRIED_S = 60
"""The kubelet tries again every 10 to 15 seconds."""


def _find_age_s(host: Host, component: str) -> float:
    """For how many seconds of the kubelet's log a static pod is responsible: what it said before the manifest was put there is about the pod of
    the former one. A rename shows in its folder, and a nudge (node/containers.py) in neither."""
    manifest, folder = host.stat(MANIFESTS / f"{component}.yaml"), host.stat(MANIFESTS)
    since = max(manifest.mtime, folder.mtime if folder else 0.0) if manifest else 0.0
    age_s = host.now().timestamp() - since if manifest else RECENT_S
    return min(age_s, RECENT_S) if age_s >= 0 else RECENT_S


def _describe_volume(host: Host, cri_socket: str, *, component: str, text: str) -> BrokenLink:
    """A folder or file of this machine that the kubelet can neither find nor create, or a Secret that does not exist
    yet."""
    volume, _, why = text.partition(": ")
    remedy = f"see the pod's volumes: kubectl -n kube-system describe pods; {THEN}"
    if volume == "flexvolume-dir":
        remedy = f"{FLEXVOLUME_REMEDY}, {THEN}"
    elif component in CONFIG_OF:
        remedy = f"correct the hostPath of {CONFIG_OF[component]}.extraVolumes {volume}, {THEN}"
    return BrokenLink(
        f"{component} cannot be started: its volume {volume} cannot be set up",
        shorten(why),
        remedy,
        is_final="read-only file system" in why,
        link="volume",
    )


def _describe_sandbox(host: Host, cri_socket: str, *, component: str, text: str) -> BrokenLink:
    what = f"no sandbox of {component} can be made"
    pulled = re.search(r'failed to (?:get sandbox|pull) image "(?P<image>[^"]+)"', text)
    if pulled:
        status = runtime.probe_runtime(host, cri_socket)
        image = pulled["image"]
        failure = image_pulls.explain_pull_failure(
            host, image, text=shorten(text.rpartition("failed to do request: ")[2] or text)
        )
        if re.fullmatch(r"registry\.k8s\.io/pause:[\w.]+", image) and not _own_pause(host, cri_socket):
            # the right one, which was there: a kubelet that is short of space deletes what no pod uses at that moment
            setting = f"{failure.remedy}; and if the kubelet has deleted it: df -h {data_folder(unit_of(cri_socket))}"
        else:
            setting = runtime.describe_setting(
                status, "sandbox_image", value=f'"{_own_pause(host, cri_socket) or "registry.k8s.io/pause:TAG"}"'
            )
        return BrokenLink(
            f"{what}: the sandbox image {image} cannot be pulled",
            failure.cause,
            f"{setting}; {THEN}",
            is_final=failure.kind in ("not-found", "unauthorized", "tls"),
            link="sandbox",
        )
    found = match_signs(host, SANDBOX_SIGNS, lines=[text], what=what, link="sandbox")
    if found is None:
        return BrokenLink(
            what, shorten(text), f"fix what the cause names, {THEN} (its log: {services.say_log(host, unit_of(cri_socket))})",
            link="sandbox",
        )  # fmt: skip
    setting_of = re.fullmatch(r"(\w+) = (\w+)", found.remedy)
    if setting_of:
        status = runtime.probe_runtime(host, cri_socket)
        found = replace(
            found, remedy=runtime.describe_setting(status, setting_of.group(1), value=setting_of.group(2)) + f"; {THEN}"
        )
    return found


def _own_pause(host: Host, cri_socket: str) -> str:
    """The pause image that the runtime already has, if any."""
    try:
        names = image_pulls.list_images(host, cri_socket)
    except HostError:
        return ""
    tagged = sorted(name for name in names if re.search(r"/pause:[\w.]+$", name))
    return tagged[-1] if tagged else ""


def _describe_image(host: Host, cri_socket: str, *, component: str, text: str) -> BrokenLink:
    named = re.search(r'image "(?P<image>[^"]+)"', text)
    image = named["image"] if named else ""
    if "is not present with pull policy of Never" in text:
        return BrokenLink(
            f"{component} cannot be started: its image {image} is missing",
            "its imagePullPolicy is Never, so the kubelet does not fetch it",
            f"load it: ctr -n k8s.io images import FILE, or: crictl pull {image}",
            is_final=True,
            link="image",
        )
    failure = image_pulls.explain_pull_failure(host, image or component, text=shorten(text))
    cause = failure.cause
    if image and image_pulls.full_image_name(image) in image_pulls.list_images(host, cri_socket):
        cause += (
            "; the image is on this node, but its pod's imagePullPolicy Always makes the kubelet query the registry anyway "
            "(the API server's AlwaysPullImages sets that)"
        )
    return BrokenLink(
        f"{component} cannot be started: its image {image} cannot be pulled",
        cause,
        f"{failure.remedy}; {THEN}",
        is_final=failure.kind in ("not-found", "unauthorized", "tls"),
        link="image",
    )


def _describe_start(host: Host, cri_socket: str, *, component: str, text: str) -> BrokenLink:
    what = f"the container of {component} cannot be started"
    signs = (*CONTAINER_SIGNS, *SANDBOX_SIGNS)
    found = match_signs(host, signs, lines=[text], what=what, link="container", words=source_words(component))
    return found or BrokenLink(
        what,
        shorten(last_words(text)),  # CRI-O quotes the line of runc's log
        f"fix what the cause names, {THEN} (its log: {services.say_log(host, unit_of(cri_socket))})",
        link="container",
    )  # fmt: skip
