"""kubeup/airgap/bundle_needs.py: the images and files of a configuration."""

from __future__ import annotations

from pathlib import Path

from kubeup.airgap import (
    bundle_needs,
)
from kubeup.config.types import KbConfiguration, LoadBalancer
from kubeup.releases import find_release
from tests.bundle_case import config
from tests.unit.airgap.bundle_case import A, make, verify


def test_a_configuration_s_missing_images_are_listed(tmp_path: Path) -> None:
    found = make(tmp_path)
    needs = bundle_needs.plan_images(config(), find_release("v1.35.6"), network=[], more=[])
    missing = {need.name: need.by for need in verify(found, needs=needs).missing}
    assert A not in missing and missing["registry.k8s.io/etcd:3.6.6-0"] == "the static pod etcd"


def test_the_images_of_a_manifest_are_needed_too() -> None:
    pods = {"spec": {"initContainers": [{"image": "quay.io/a/b:1"}], "containers": [{"image": "busybox"}]}}
    daemon = {"kind": "DaemonSet", "metadata": {"name": "flannel"}, "spec": {"template": pods}}
    needs = {
        need.name: need.by
        for need in bundle_needs.plan_images(config(), find_release("v1.35.6"), network=[daemon], more=[])
    }
    assert not any("haproxy" in name for name in needs)
    balanced = config(kb=KbConfiguration(load_balancer=LoadBalancer("local")))
    assert any(
        "haproxy" in need.name
        for need in bundle_needs.plan_images(balanced, find_release("v1.35.6"), network=[], more=[])
    )
    assert needs["quay.io/a/b:1"] == "DaemonSet flannel" and "docker.io/library/busybox:latest" in needs
