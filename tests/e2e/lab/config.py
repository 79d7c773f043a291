"""Config documents that work on the lab's nodes, for kubeadm and kb alike."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from . import settings

POD_SUBNET = "10.244.0.0/16"
SERVICE_SUBNET = "10.96.0.0/12"
PATIENT_KUBELET = {
    "evictionHard": dict.fromkeys(
        ("nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"), "0%"
    ),
    "imageGCHighThresholdPercent": 100,
}
"""One that neither removes images nor evicts pods when the disk fills up: what a node has for a disk is this machine's, which others fill too."""


def list_ignored_checks() -> list[str]:
    """The preflight checks that this machine cannot pass: cgroup version 1, and whatever it is too small for."""
    ignored = ["SystemVerification"]
    if len(os.sched_getaffinity(0)) < 2:
        ignored.append("NumCPU")
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    if memory_kib < 1700 * 1024:
        ignored.append("Mem")
    return ignored


def lab_config(
    version: str,
    *,
    address: str,
    node_name: Optional[str] = None,
    endpoint: Optional[str] = None,
    pod_subnet: str = POD_SUBNET,
    init: Optional[Mapping[str, Any]] = None,
    cluster: Optional[Mapping[str, Any]] = None,
    kubelet: Optional[Mapping[str, Any]] = None,
    kb: Optional[Mapping[str, Any]] = None,
) -> str:
    """The documents for `init` on a node with that address. `init`, `cluster`, `kubelet` and `kb` add fields to theirs.

    What a node in a namespace needs: a kubelet that accepts cgroup version 1, and a kube-proxy that leaves the connection
    tracking table's size alone (it is read-only there). No KbConfiguration is written unless `kb` is given: kubeadm knows none.
    """
    kubernetes = settings.find_release(version).version
    init_doc: dict[str, Any] = {"localAPIEndpoint": {"advertiseAddress": address}}
    if node_name:
        init_doc["nodeRegistration"] = {"name": node_name}
    cluster_doc: dict[str, Any] = {
        "kubernetesVersion": kubernetes,
        "networking": {"podSubnet": pod_subnet, "serviceSubnet": SERVICE_SUBNET},
    }
    if endpoint:
        cluster_doc["controlPlaneEndpoint"] = endpoint
    return render_documents(
        {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration", **init_doc, **(init or {})},
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            **cluster_doc,
            **(cluster or {}),
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            **(kubelet or {}),
        },
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "conntrack": {"maxPerCore": 0},
        },
        *([{"apiVersion": "kb/v1alpha1", "kind": "KbConfiguration", **kb}] if kb is not None else []),
    )


def render_documents(*documents: Mapping[str, Any]) -> str:
    """Documents as YAML text: one field a line at the top, JSON (which is YAML) below it. Needs no library."""
    texts = ["".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items()) for document in documents]
    return "---\n".join(texts)
