"""kubeup/airgap/mirror_needs.py: who needs which image and which version, and what may therefore not go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubeup.airgap import mirror_needs
from kubeup.airgap.mirror_content import Content, find_bundles, plan_removal, read_content
from kubeup.airgap.mirror_needs import Needs
from kubeup.cluster.api import Api, Identity
from kubeup.machine.http import HttpResponse, Tls
from kubeup.paths import Paths
from tests.bundle_case import config
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost
from tests.mirror_bundles import ETCD, HOST, KUBE_34, KUBE_35, PAUSE, add_bundle

WEB = "docker.io/library/web:1"


class Site(FakeHost):
    """An API server, and this node's manifests."""

    cluster = FakeCluster()

    def list_dir(self, path: Path) -> list[str]:
        return sorted(Path(name).name for name in self.files if Path(name).parent == path)

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        if url.endswith("/api/v1/pods"):
            pods = list(self.cluster.by_kind("Pod").values())
            return HttpResponse(200, json.dumps({"kind": "PodList", "items": pods}).encode())
        return self.cluster.answer("GET", url, b"", {})


def add_pod(host: Site, name: str, *images: str, node: str = "w1") -> None:
    host.cluster.objects[f"/api/v1/namespaces/app/pods/{name}"] = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "app"},
        "spec": {
            "nodeName": node,
            "initContainers": [{"name": "i", "image": images[0]}],
            "containers": [{"name": "c", "image": one} for one in images[1:]],
        },
    }


def make_site(**kubelets: str) -> Site:
    host = Site()
    host.cluster = FakeCluster()
    for name, version in kubelets.items():
        host.cluster.objects[f"/api/v1/nodes/{name}"] = {
            "kind": "Node",
            "metadata": {"name": name},
            "status": {"nodeInfo": {"kubeletVersion": version}},
        }
    return host


def read(host: Site, version: str = "v1.35.6", **more: str) -> Needs:
    api = Api(host, Identity("https://10.0.0.1:6443", Tls()), retry_s=0)
    return mirror_needs.read_needs(api, config(version), paths=Paths(), more=more)


def make_content(tmp_path: Path) -> Content:
    add_bundle(tmp_path / "m", "kb-34.tar", version="v1.34.9", images={PAUSE: [b"p"], KUBE_34: [b"34"]}, program=b"34")
    add_bundle(tmp_path / "m", "kb-35.tar", version="v1.35.6", images={KUBE_35: [b"35"], PAUSE: [b"p"]}, program=b"35")
    add_bundle(tmp_path / "m", "web.tar", version="", images={WEB: [b"w"], ETCD: [b"e"]})
    return read_content(HOST, tmp_path / "m")


def hindrances(content: Content, needs: Needs, *words: str) -> list[str]:
    bundles = [name for word in words for name in find_bundles(content, word) or ()]
    images = [word for word in words if find_bundles(content, word) is None]
    removal = plan_removal(content, bundles=bundles, images=images)
    return mirror_needs.find_hindrances(content, removal, needs=needs)


def test_every_version_that_a_node_runs_has_its_images() -> None:
    needs = read(make_site(cp1="v1.35.6", w1="v1.34.9", w2="v1.34.9", odd="v1.2.3"))
    assert needs.versions["v1.34.9"] == ["node w1", "node w2"]
    assert needs.versions["v1.35.6"] == ["node cp1", "nodes that join"]
    assert needs.images[KUBE_34] == ["node w1", "node w2"] and KUBE_35 in needs.images
    assert needs.of_version("v1.34.1") == "node w1, node w2" and needs.of_version("v1.33.0") == ""


def test_the_images_of_pods_of_manifests_and_of_containers() -> None:
    host = make_site(cp1="v1.35.6")
    add_pod(host, "web-1", "busybox", "web:1")
    add_pod(host, "waits", "busybox", f"registry.k8s.io/etcd@sha256:{'1' * 64}", node="")
    host.files["/etc/kubernetes/manifests/own.yaml"] = b"spec: {containers: [{name: a, image: 'quay.io/own:2'}]}\n"
    host.files["/etc/kubernetes/manifests/odd.yaml"] = b"spec: {containers: 7, initContainers: {a: b}}\n"
    host.files["/etc/kubernetes/manifests/worse.yaml"] = b"{: :"
    needs = read(host)
    assert needs.images["docker.io/library/busybox:latest"] == ["pod app/web-1 on w1", "pod app/waits"]
    assert needs.images[WEB] == ["pod app/web-1 on w1"]
    assert needs.images["quay.io/own:2"] == ["/etc/kubernetes/manifests/own.yaml"]


def test_what_the_way_back_of_an_upgrade_needs() -> None:
    needs = read(make_site(cp1="v1.35.6"), **{"v1.34.9": "the way back"})
    assert needs.of_version("v1.34.9") == "the way back" and needs.images[KUBE_34] == ["the way back"]


def test_many_are_counted() -> None:
    assert mirror_needs.say_some(["a", "b", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_what_no_node_runs_may_go_and_what_one_runs_may_not(tmp_path: Path) -> None:
    content = make_content(tmp_path)
    host = make_site(cp1="v1.35.6")
    assert hindrances(content, read(host), "v1.34") == []
    assert hindrances(content, read(host), "web.tar") == [f"image {ETCD}: node cp1, nodes that join"]
    add_pod(host, "web-1", "busybox", "web:1")
    assert f"image {WEB}: pod app/web-1 on w1" in hindrances(content, read(host), "web.tar")
    told = hindrances(content, read(host), "v1.35")
    assert told[0] == "the programs of v1.35.6: node cp1, nodes that join"
    assert f"image {KUBE_35}: node cp1, nodes that join" in told and not any(PAUSE in one for one in told)
    assert hindrances(content, read(host), PAUSE) == [f"image {PAUSE}: node cp1, nodes that join"]


def test_a_pod_that_names_a_digest_needs_its_image(tmp_path: Path) -> None:
    content, host = make_content(tmp_path), make_site(cp1="v1.35.6")
    digest = next(one.digest for one in content.images if one.name == WEB)
    add_pod(host, "web-1", "busybox", f"docker.io/library/web@{digest}")
    assert hindrances(content, read(host), WEB) == [f"image {WEB}: pod app/web-1 on w1"]


@pytest.mark.parametrize(
    ("kubelets", "spare"),
    [
        ({"cp1": "v1.35.6"}, ["v1.34"]),
        ({"cp1": "v1.35.6", "w1": "v1.34.1"}, []),
        ({"cp1": "v1.36.0"}, ["v1.34"]),
    ],
)
def test_which_minors_nobody_needs(tmp_path: Path, kubelets: dict[str, str], spare: list[str]) -> None:
    needs = read(make_site(**kubelets), version="v1.36.0" if kubelets["cp1"] == "v1.36.0" else "v1.35.6")
    assert mirror_needs.find_spare(make_content(tmp_path), needs) == spare, "the newest one always stays"
