"""KubeletConfiguration values that have the right type but make the kubelet exit at startup.

kubeadm passes them on, and its init then waits in vain. Owns the values that people often get wrong: quantities,
thresholds, ranges, names of policies. Does not duplicate the kubelet's own validation: whatever depends on feature
gates is left to the kubelet. Source: pkg/kubelet/apis/config/validation/validation.go, parseResourceList of
cmd/kubelet/app/server.go, pkg/kubelet/eviction/helpers.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

from kubeup.config.documents import QUANTITY_FORM, parse_duration
from kubeup.config.problems import shorten, suggest

Fault = tuple[str, str, str]
"""(path, what is wrong, remedy)"""

_RESOURCES = ("cpu", "memory", "ephemeral-storage", "pid")
_SIGNALS = (
    "memory.available",
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "topologyManagerPolicy": ("none", "best-effort", "restricted", "single-numa-node"),
    "topologyManagerScope": ("container", "pod"),
    "hairpinMode": ("none", "hairpin-veth", "promiscuous-bridge"),
    "memorySwap.swapBehavior": ("", "LimitedSwap", "NoSwap"),
    "logging.format": ("text", "json"),
    "tlsMinVersion": ("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"),
    "cgroupDriver": ("cgroupfs", "systemd"),
}
_ENFORCED = ("pods", "system-reserved", "system-reserved-compressible", "kube-reserved", "kube-reserved-compressible", "none")  # fmt: skip
_RANGES: Mapping[str, tuple[int, Optional[int]]] = {
    **dict.fromkeys(("eventBurst", "eventRecordQPS", "kubeAPIBurst", "kubeAPIQPS", "maxPods", "podsPerCore"), (0, None)),
    **dict.fromkeys(("registryBurst", "registryPullQPS", "maxOpenFiles"), (0, None)),
    **dict.fromkeys(("readOnlyPort", "healthzPort", "port"), (0, 65535)),
    **dict.fromkeys(("imageGCHighThresholdPercent", "imageGCLowThresholdPercent"), (0, 100)),
    "nodeStatusMaxImages": (-1, None),
    "oomScoreAdj": (-1000, 1000),
    "containerLogMaxFiles": (2, None),
    "maxParallelImagePulls": (1, None),
}  # fmt: skip


def find_faults(tree: Mapping[str, Any]) -> Iterator[Fault]:
    """Find the values that stop the kubelet from starting. Values of a wrong type are reported elsewhere."""
    for name in ("kubeReserved", "systemReserved"):
        yield from _check_map(tree, name, keys=_RESOURCES, fault_of=_amount_fault)
    for name in ("evictionHard", "evictionSoft"):
        yield from _check_map(tree, name, keys=_SIGNALS, fault_of=_threshold_fault)
    yield from _check_map(tree, "evictionMinimumReclaim", keys=_SIGNALS, fault_of=_reclaim_fault)
    yield from _check_map(tree, "evictionSoftGracePeriod", keys=_SIGNALS, fault_of=_grace_fault)
    yield from _check_map(tree, "qosReserved", keys=("memory",), fault_of=_percentage_fault)
    graces = tree.get("evictionSoftGracePeriod") or {}
    for signal in tree.get("evictionSoft") or {}:
        if signal in _SIGNALS and signal not in graces:
            yield f"evictionSoft.{signal}", "a soft threshold without a grace period", f"give it: evictionSoftGracePeriod: {{{signal}: 1m30s}}"  # fmt: skip
    for path, choices in _CHOICES.items():
        value = _at(tree, path)
        if isinstance(value, str) and value not in choices:
            yield path, f"{shorten(value)!r} is none of {', '.join(filter(None, choices))}", suggest(value, choices)
    for name, (low, high) in _RANGES.items():
        value = tree.get(name)
        if isinstance(value, int) and value and (value < low or (high is not None and value > high)):
            wanted = f"from {low} to {high}" if high is not None else f"{low} or more"
            yield name, f"{value} is out of range", f"write a number that is {wanted}"
    high, low = tree.get("imageGCHighThresholdPercent") or 85, tree.get("imageGCLowThresholdPercent") or 80
    if isinstance(high, int) and isinstance(low, int) and 0 <= high <= 100 and 0 <= low <= 100 and low >= high:
        name = "imageGCLowThresholdPercent" if "imageGCLowThresholdPercent" in tree else "imageGCHighThresholdPercent"
        yield name, f"images are cleaned from {high} percent down to {low}", "write a low threshold below the high one"
    for index, word in enumerate(tree.get("enforceNodeAllocatable") or ()):
        if isinstance(word, str) and word not in _ENFORCED:
            yield f"enforceNodeAllocatable[{index}]", f"{shorten(word)!r} cannot be enforced", suggest(word, _ENFORCED)


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _check_map(
    tree: Mapping[str, Any], name: str, *, keys: tuple[str, ...], fault_of: Callable[[str], Optional[tuple[str, str]]]
) -> Iterator[Fault]:
    given = tree.get(name)
    for key, value in given.items() if isinstance(given, Mapping) else ():
        if key not in keys:
            yield f"{name}.{key}", f"the kubelet knows no {shorten(key)} here", suggest(key, keys)
        elif isinstance(value, str):
            fault = fault_of(value)
            if fault:
                yield (f"{name}.{key}", *fault)


def _amount_fault(text: str) -> Optional[tuple[str, str]]:
    if not QUANTITY_FORM.fullmatch(text):
        return f"{shorten(text)!r} is no quantity", _quantity_remedy(text)
    return ("a negative amount", "write an amount of 0 or more") if text.startswith("-") else None


def _quantity_remedy(text: str) -> str:
    plain = re.sub(r"\s+", "", text)
    for good in (plain, re.sub(r"(?i)([kmgtpe]i?)b$", lambda match: f"{match[1][0].upper()}i", plain)):
        if QUANTITY_FORM.fullmatch(good):
            return f'write "{good}"'
    return "write a quantity such as 100m, 2, 1.5 or 512Mi"


def _threshold_fault(text: str) -> Optional[tuple[str, str]]:
    if text.endswith("%"):
        return _percentage_fault(text)
    fault = _amount_fault(text)
    is_zero = not fault and not re.search(r"[1-9]", re.split(r"[eE]", text)[0])
    return ("a threshold of nothing", 'write an amount above 0, or "0%" for no threshold') if is_zero else fault


def _percentage_fault(text: str) -> Optional[tuple[str, str]]:
    match = re.fullmatch(r"\+?(\d+(?:\.\d*)?|\.\d+)%+", text)
    if not match or float(match[1]) > 100:
        return f"{shorten(text)!r} is not a percentage", 'write one from 0 to 100, with no blank: "10%"'
    return None


def _reclaim_fault(text: str) -> Optional[tuple[str, str]]:
    return _percentage_fault(text) if text.endswith("%") else _amount_fault(text)


def _grace_fault(text: str) -> Optional[tuple[str, str]]:
    seconds = parse_duration(text)
    if seconds is None:
        return f"{shorten(text)!r} is no duration", f'give the unit: "{text}s"' if text.isdigit() else 'write "1m30s"'
    return ("a negative duration", 'write a duration such as "1m30s"') if seconds < 0 else None
