"""kubeup/upgrade/available.py: where versions are found, and which of them come next."""

from __future__ import annotations

import json

import pytest

from kubeup import releases
from kubeup.machine.http import HttpResponse
from kubeup.node import image_pulls
from kubeup.upgrade import available
from kubeup.upgrade.available import Found
from tests.fake_host import FakeHost


def version(text: str) -> releases.Version:
    found = releases.parse_version(text)
    assert found is not None
    return found


def test_the_newest_patch_of_this_minor_and_of_the_next() -> None:
    texts = ("v1.34.9", "v1.35.5", "v1.35.6", "v1.35.8", "v1.35.7", "v1.36.0", "v1.36.3", "v1.36.4-rc.1", "v1.37.0")
    found = available.choose_next([Found(version(text), "x") for text in texts], version("v1.35.6"))
    assert [one.version.text for one in found] == ["v1.35.8", "v1.36.3"]
    assert available.choose_next([Found(version("v1.35.6"), "x")], version("v1.35.6")) == ()


def test_images_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "registry.k8s.io/kube-apiserver:v1.36.3",
        "registry.k8s.io/kube-proxy:v1.36.4",
        "reg:5000/x/kube-apiserver:v1.35.7",
    }
    monkeypatch.setattr(image_pulls, "list_images", lambda *_: names)
    assert {one.version.text for one in available.find_in_runtime(FakeHost(), "")} == {"v1.36.3", "v1.35.7"}


def test_a_runtime_that_does_not_answer() -> None:
    assert list(available.find_in_runtime(FakeHost(), "unix:///run/containerd/containerd.sock")) == []


def test_a_mirror() -> None:
    host = FakeHost()
    assert list(available.find_at_mirror(host, "http://10.0.0.9:5000")) == []
    url = "http://10.0.0.9:5000/v2/{}/tags/list"
    host.urls[url.format("registry.k8s.io/kube-apiserver")] = HttpResponse(404)
    tags = {"name": "kube-apiserver", "tags": ["v1.36.3", "latest"]}
    host.urls[url.format("kube-apiserver")] = HttpResponse(200, json.dumps(tags).encode())
    assert [one.version.text for one in available.find_at_mirror(host, "http://10.0.0.9:5000/")] == ["v1.36.3"]
    host.urls[url.format("registry.k8s.io/kube-apiserver")] = HttpResponse(200, b"[")
    assert list(available.find_at_mirror(host, "http://10.0.0.9:5000")) == []


def test_the_official_place() -> None:
    host = FakeHost()
    assert available.find_official(host, (35, 36)) == []
    host.urls["https://dl.k8s.io/release/stable-1.35.txt"] = HttpResponse(200, b"v1.35.9\n")
    host.urls["https://dl.k8s.io/release/stable-1.36.txt"] = HttpResponse(404, b"no")
    assert [one.version.text for one in available.find_official(host, (35, 36))] == ["v1.35.9"]
