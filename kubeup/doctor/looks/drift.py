"""Checks for a running state that differs from the files: removed images, a kubelet started before its files
changed."""

from __future__ import annotations

import re

from kubeup.diagnosis import kubelet_trouble, signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings
from kubeup.doctor.node_files import Patient
from kubeup.node import image_pulls, kubelet, runtime


def look_at_images(patient: Patient) -> Findings:
    """The images of static pods and sandboxes: the runtime may have removed them to free space."""
    texts = [facts.read_or_empty(patient.host, str(patient.paths.manifest(name))) for name in patient.components]
    wanted = [
        image for text in texts for image in re.findall(r"^\s+(?:- )?image: [\"']?([^\s\"']+)", text, re.MULTILINE)
    ]
    status = runtime.probe_runtime(patient.host, patient.config.node.cri_socket)
    if not status.is_ready:
        return
    if status.sandbox_image:
        wanted.append(status.sandbox_image)
    have = image_pulls.list_images(patient.host, patient.config.node.cri_socket)
    for image in dict.fromkeys(wanted):
        if image_pulls.full_image_name(image) not in have:
            text = f"the image {image} is not in the runtime: what needs it cannot be restarted"
            yield Finding("images", ERROR, text, f"crictl pull {image}")


def look_at_kubelet_drift(patient: Patient) -> Findings:
    """Whether the kubelet runs with the flags and the configuration in its files."""
    unit = kubelet_trouble.read_kubelet_unit(patient.host)
    if unit is None or unit.active != "active" or not unit.pid:
        return
    command = facts.read_or_empty(patient.host, f"/proc/{unit.pid}/cmdline").split("\0")
    text = facts.read_or_empty(patient.host, str(patient.paths.kubelet_flags_env))
    wanted = [f"--{arg.name}={arg.value}" for arg in kubelet.parse_flags_env(text)]
    lost = [flag for flag in wanted if flag not in command]
    if command != [""] and lost:
        text = f"the kubelet runs without {' '.join(lost)}, which {patient.paths.kubelet_flags_env} holds"
        yield Finding("kubelet-drift", WARNING, text, signs.say_restart(patient.host, "kubelet"))
    started = patient.host.now().timestamp() - (patient.host.monotonic() - unit.active_since_s)
    for path in (patient.paths.kubelet_config, patient.paths.kubelet_instance_config):
        found = patient.host.stat(path)
        if found and found.mtime > started + 1:
            text = f"{path} was changed after the kubelet was started: it runs with the old one"
            yield Finding("kubelet-drift", WARNING, text, signs.say_restart(patient.host, "kubelet"))
