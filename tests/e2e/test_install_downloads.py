"""A bare machine that takes everything from where it is published: releases from dl.k8s.io and github.com, images from
registry.k8s.io. The lab plays the hosts, by their names and over TLS; whether the real ones have the same files, no test here
can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

from .lab.bundles import BARE
from .lab.config import lab_config
from .lab.lab import Lab
from .lab.node import Node
from .lab.settings import find_release, read_architecture
from .test_air_gap import FILES, IGNORE, KB
from .world.official_hosts import lead_to_world, publish_release, publish_runc, serve_world
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]


@pytest.mark.k8s_versions("1.35")
def test_a_bare_machine_downloads_everything(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """A wrong checksum first, which stops it before anything is changed; then a node, and a bundle, of the same files."""
    if read_architecture() != "amd64":
        pytest.skip("the releases that are played are amd64's")
    release = find_release(k8s_version)
    cp1 = make_node("cp1", version=k8s_version, **BARE)
    with serve_world(lab, tmp_path / "world", release) as world:
        lead_to_world(cp1, world)
        publish_release(world, release)
        publish_runc(world, told="a" * 64)
        cp1.scp(kb_pyz, "/root/kb.pyz")
        wishes = {"packages": {"source": "download"}, "podNetwork": {"plugin": "bridge"}}
        config = lab_config(k8s_version, address=cp1.address, kb=wishes)
        cp1.write("/root/init.yaml", config.replace(release.version, f"stable-{k8s_version}"))
        line = f"{KB} init --config init.yaml {IGNORE}"
        before = cp1.run(FILES).stdout
        refused = cp1.run(line, check=False, timeout=300)
        assert not refused.ok and "runc" in refused.stderr and "a" * 64 in refused.stderr, refused.output
        left = set(cp1.run(FILES).stdout.splitlines()) - set(before.splitlines())
        assert all(name.startswith("var/lib/kb/") for name in left), left
        assert not cp1.run("command -v containerd kubelet runc", check=False).ok

        publish_runc(world)
        cp1.run(line, timeout=600)
        cp1.wait_node_ready()
        info = cp1.get("node cp1")["status"]["nodeInfo"]
        assert info["kubeletVersion"] == release.version
        assert info["containerRuntimeVersion"].startswith("containerd://2.1")
        check_cluster_serves(cp1)
        asked = world.log.read_text()
        assert "GET /dl.k8s.io/release/" in asked and "/v2/kube-apiserver/manifests/" in asked

        # the same places give a bundle
        cp1.run(f"{KB} bundle create -o all.tar --kubernetes-version {release.version}", timeout=300)
        cp1.run(f"{KB} bundle verify all.tar --kubernetes-version {release.version}", timeout=120)
        shown = json.loads(cp1.run(f"{KB} bundle show all.tar -o json").stdout)
        titles = {entry["title"] for entry in shown["files"]}
        assert {"amd64/kubelet", "amd64/containerd", "amd64/runc", "amd64/cni/bridge"} <= titles
