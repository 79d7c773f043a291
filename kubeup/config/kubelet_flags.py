"""What a kubelet rejects on its command line: removed flags, and labels that a node must not give itself.

Pure rules, for validating a configuration and checking a node. checks.check_kubelet_flags asks the installed kubelet
which flags it accepts; this table needs no machine, and knows what to do instead. kubeadm checks neither, and the
kubelet then crashes again and again. Source: cmd/kubelet/app/options/options.go,
staging/src/k8s.io/kubelet/pkg/apis/well_known_labels.go
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

from kubeup.frozen_values import frozen

LABELS_FLAG = "node-labels"

_CRI = "leave it out: the kubelet talks to every runtime through the CRI (nodeRegistration.criSocket)"
_CNI = "leave it out: the container runtime has its own settings for CNI (containerd: bin_dir and conf_dir)"
_LOG = "leave it out: the kubelet logs to the journal (logging: in the KubeletConfiguration)"
_NONE = "leave it out"
_DOCKERSHIM_CNI = ("network-plugin", "cni-bin-dir", "cni-conf-dir", "cni-cache-dir", "network-plugin-mtu")
_KLOG = (
    "add-dir-header",
    "alsologtostderr",
    "log-backtrace-at",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "logtostderr",
    "one-output",
    "skip-headers",
    "skip-log-headers",
    "stderrthreshold",
)


@frozen
class Refusal:
    """Why a kubelet exits, and what to do."""

    message: str
    remedy: str


@frozen
class Gone:
    """A removed kubelet flag: the first minor without it, and what to do."""

    since: int
    remedy: str

    def refusal(self, name: str) -> Refusal:
        return Refusal(f"kubelets from 1.{self.since} on have no flag --{name}", self.remedy)


GONE: Mapping[str, Gone] = {
    "pod-infra-container-image": Gone(
        35, "leave it out: the container runtime names the image (containerd: sandbox_image)"
    ),
    "keep-terminated-pod-volumes": Gone(31, _NONE),
    "iptables-masquerade-bit": Gone(31, _NONE),
    "iptables-drop-bit": Gone(31, _NONE),
    "container-runtime": Gone(27, _CRI),
    **{name: Gone(26, _LOG) for name in _KLOG},
    "dynamic-config-dir": Gone(26, "leave it out: --config names the KubeletConfiguration"),
    **{name: Gone(24, _CNI) for name in _DOCKERSHIM_CNI},
    **{name: Gone(24, _CRI) for name in ("docker-endpoint", "image-pull-progress-deadline")},
    "non-masquerade-cidr": Gone(24, "leave it out: the pod network decides what is masqueraded"),
    "containerized": Gone(16, _NONE),
    "allow-privileged": Gone(15, _NONE),
    "cadvisor-port": Gone(12, _NONE),
}
"""Not a complete list: only flags that still appear in configurations in circulation."""

_LABELS = frozenset(
    (
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    )
)
_LABEL_DOMAINS = ("kubelet.kubernetes.io", "node.kubernetes.io")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PART = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_PART}(?:\.{_PART})*/)?{_NAME}")


def normal_name(name: str) -> str:
    """A flag's name as the kubelet reads it: `network_plugin` becomes `network-plugin`."""
    return name.replace("_", "-")


def find_gone(name: str) -> Optional[Gone]:
    """None if every kubelet may know the flag."""
    return GONE.get(normal_name(name))


def find_refused_labels(value: str) -> Iterator[Refusal]:
    """What is wrong with the value of --node-labels."""
    for key, text in _split_labels(value):
        if not _KEY.fullmatch(key):
            yield Refusal(f"{key[:80]!r} is not a valid label key, and the kubelet exits", "write name or domain/name")
        elif text and not re.fullmatch(_NAME, text):
            yield Refusal(
                f"{text[:80]!r} is not a valid label value, and the kubelet exits",
                "write 63 letters, digits, -, _ and . at most",
            )
        elif is_refused_label(key):
            yield Refusal(
                f"a kubelet may not give its node the label {key}, and exits",
                f"label the node once it is registered: kubectl label node NAME {key}={text}",
            )


def is_refused_label(key: str) -> bool:
    """In Kubernetes' own domains a kubelet may set only some labels; otherwise a node could give itself any role."""
    domain, slash, _ = key.partition("/")
    return (
        bool(slash)
        and _is_in(domain, ("kubernetes.io", "k8s.io"))
        and key not in _LABELS
        and not _is_in(domain, _LABEL_DOMAINS)
    )


def _is_in(domain: str, domains: Iterable[str]) -> bool:
    return any(domain == one or domain.endswith(f".{one}") for one in domains)


def _split_labels(value: str) -> Iterator[tuple[str, str]]:
    for pair in value.split(","):
        if pair:
            key, _, text = pair.partition("=")
            yield key.strip(), text.strip()
