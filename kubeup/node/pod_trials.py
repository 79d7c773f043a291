"""Tries the manifest of a static pod without starting it.

Everything here is a look, so that a dry run tries as well, and nothing stays behind. What cannot be tried is said, and is never taken
for passed. Knows nothing of how a pod is swapped.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

from kubeup.errors import HostError, shown
from kubeup.machine.host import Host
from kubeup.node import content_trials, file_trials, image_program, program_trials
from kubeup.node.image_pulls import full_image_name, list_images
from kubeup.node.tried_pod import Trial, TriedPod, read_pod
from kubeup.trouble import Trouble

__all__ = ["Trial", "try_pod"]

MANIFEST, IMAGE = "manifest", "image"


def try_pod(
    host: Host, *, socket: str, pod: Mapping[str, Any], running: Optional[Mapping[str, Any]] = None
) -> list[Trial]:
    """Try a parsed manifest. Never raises.

    socket: the runtime's CRI socket. running: the parsed manifest that runs now, whose ports are its own. Of a pod that is none of
    the control plane's only the image, the mounts and the ports are tried."""
    try:
        tried = read_pod(pod)
    except ValueError as error:
        return [_refuse_manifest(pod, str(error))]
    now = None
    with contextlib.suppress(ValueError):
        now = read_pod(running) if running is not None else None
    return list(dict.fromkeys(_try_all(host, socket, pod=tried, running=now)))


def _refuse_manifest(pod: object, cause: str) -> Trial:
    metadata = pod.get("metadata") if isinstance(pod, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    component = shown(name) if isinstance(name, str) and name else "static pod"
    what = f"the manifest of {component} is not a pod" if component != "static pod" else "the manifest is not a pod"
    return Trial(component, MANIFEST, Trouble(what, cause, "correct the manifest or the patch that changes it"))


def _try_all(host: Host, socket: str, *, pod: TriedPod, running: Optional[TriedPod]) -> Iterator[Trial]:
    missing, trials = _try_images(host, socket, pod=pod)
    yield from trials
    if pod.is_known:
        image = pod.container["image"]
        absent = missing.get(image, "")
        mounting = (
            contextlib.nullcontext(image_program.MountedImage(image, why_not=absent))
            if absent
            else image_program.mount_image(host, socket, image=image)
        )
        with mounting as mounted:
            # in full before the first is handed out: a caller that stops reading leaves no mount
            trials = [
                *program_trials.try_command(host, mounted, pod=pod),
                *_guard(pod, file_trials.FILES, trials=file_trials.try_files(host, mounted, pod=pod)),
            ]
        yield from trials
    yield from _guard(pod, file_trials.MOUNTS, trials=file_trials.try_mounts(host, pod))
    yield from _guard(pod, file_trials.PORTS, trials=file_trials.try_ports(host, pod, running=running))
    if not pod.is_known:
        return
    for name, trials_of in (
        (content_trials.CERTIFICATES, content_trials.try_certificates),
        (content_trials.CONFIGURATION, content_trials.try_configuration),
    ):
        if pod.open_variables:
            yield Trial(pod.component, name, not_tried="the command is known only when the pod runs")
        else:
            yield from _guard(pod, name, trials=trials_of(host, pod))


def _guard(pod: TriedPod, name: str, *, trials: Iterable[Trial]) -> list[Trial]:
    """The trials; where the host cannot look, for example at a path with a NUL, that is said."""
    try:
        return list(trials)
    except HostError as error:
        return [Trial(pod.component, name, not_tried=f"{error.what}: {error.cause}")]
    except (OSError, ValueError) as error:
        return [Trial(pod.component, name, not_tried=shown(str(error)))]


# ---- images


def _try_images(host: Host, socket: str, *, pod: TriedPod) -> tuple[dict[str, str], list[Trial]]:
    """The images that are missing, or not known to be there, with the reason; and the trials."""
    images = {container["image"]: container["imagePullPolicy"] for container in pod.containers()}
    try:
        have = list_images(host, socket)
    except HostError as error:
        why_not = f"{error.what}: {error.cause}"
        return dict.fromkeys(images, why_not), [Trial(pod.component, IMAGE, not_tried=why_not)]
    missing: dict[str, str] = {}
    found = []
    for image, policy in images.items():
        if not image or image_program.runtime_name(image) not in have:
            missing[image] = f"the runtime does not have {shown(image)}"
            found.append(Trial(pod.component, IMAGE, _tell_missing(pod, image)))
        elif policy == "Always" or (not policy and _is_latest(image)):
            why_not = f"imagePullPolicy is Always: the kubelet pulls {shown(image)} while nothing of the pod runs"
            found.append(Trial(pod.component, IMAGE, not_tried=why_not))
    return missing, found or [Trial(pod.component, IMAGE)]


def _tell_missing(pod: TriedPod, image: str) -> Trouble:
    if not image:
        return Trouble(f"a container of {pod.component} has no image", "its field image is empty", "name an image")
    what, cause = f"{shown(image)} is not on this node", f"{pod.component} needs it, and the runtime does not have it"
    return Trouble(what, cause, f"pull it: crictl pull {shown(image)}")


def _is_latest(image: str) -> bool:
    """Whether an image without a policy is always pulled (pkg/apis/core/v1/defaults.go)."""
    return posixpath.basename(full_image_name(image)).endswith(":latest") and "@" not in image
