"""kb init again with another configuration: what the cluster holds is what the new configuration alone makes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.cluster.objects import RESTARTED_ANNOTATION
from tests.fake_cluster import ClusterHost, Object

from .scenario import run_init

HEAD = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.0.0.11}
bootstrapTokens: [{token: abcdef.0123456789abcdef, ttl: 0s}]
"""
PLAIN = f"""\
{HEAD}---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
networking: {{podSubnet: 10.244.0.0/16}}
---
apiVersion: kb/v1alpha1
kind: KbConfiguration
soak: 1s
"""
RICH = f"""\
{HEAD}patches: {{directory: /root/patches}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
networking: {{podSubnet: 10.244.0.0/16}}
imageRepository: r.example/k8s
apiServer:
  certSANs: [api.example]
  extraArgs: [{{name: v, value: "4"}}]
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 50
---
apiVersion: kb/v1alpha1
kind: KbConfiguration
soak: 1s
podNetwork: {{plugin: bridge, backend: vxlan, mtu: 1400}}
"""
PATCH = """\
metadata: {labels: {team: dns}, annotations: {note: x}}
spec:
  template:
    spec:
      nodeSelector: {disk: ssd}
      containers:
      - name: coredns
        env: [{name: A, value: "1"}]
        volumeMounts: [{name: config-volume, mountPath: /etc/extra}]
"""


def objects_of(host: ClusterHost) -> dict[str, Object]:
    """path -> object, without what the server gives each, and without the mark of pods that were restarted."""
    found = copy.deepcopy(host.cluster.objects)
    for obj in found.values():
        for name in ("uid", "resourceVersion"):
            obj["metadata"].pop(name, None)
        pod = obj.get("spec", {}).get("template", {"metadata": {}})["metadata"]
        if pod.get("annotations", {}).pop(RESTARTED_ANNOTATION, "") and not pod["annotations"]:
            del pod["annotations"]
    return found


def init(host: ClusterHost, text: str) -> None:
    host.write_file(Path("/root/patches/corednsdeployment+strategic.yaml"), PATCH)
    host.write_file(Path("/root/init.yaml"), text)
    run_init(host, flags={}, config_file=Path("/root/init.yaml"))


def differences(have: Any, want: Any, place: str = "") -> list[str]:
    if isinstance(have, dict) and isinstance(want, dict):
        return [
            line
            for key in sorted({*have, *want})
            for line in differences(have.get(key, "(none)"), want.get(key, "(none)"), f"{place}.{key}")
        ]
    return [] if have == want else [f"{place}: {json.dumps(have)[:3000]} for {json.dumps(want)[:3000]}"]


@pytest.mark.parametrize(("before", "after"), [(RICH, PLAIN), (PLAIN, RICH)], ids=["less", "more"])
def test_nothing_of_the_configuration_of_before_is_left(tmp_path: Path, before: str, after: str) -> None:
    fresh, changed = ClusterHost(tmp_path / "fresh"), ClusterHost(tmp_path / "changed")
    init(fresh, after)
    for name in ("ca.crt", "ca.key"):  # the cluster's name in the objects
        path = Path("/etc/kubernetes/pki") / name
        changed.write_file(path, fresh.read_bytes(path), mode=0o600)
    init(changed, before)
    wanted = objects_of(fresh)
    assert len(differences(objects_of(changed), wanted)) > 10
    init(changed, after)
    assert differences(objects_of(changed), wanted) == []
