"""kubeup/doctor/looks/drift.py: images that are gone, and a kubelet that runs by other files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.fake_host import FakeHost
from tests.unit.doctor.doctor_case import IMAGES, make_host, notes, set_images


def test_an_image_that_the_runtime_threw_away() -> None:
    host = make_host()
    assert notes(host, "images") == []
    set_images(host, *(name for name in IMAGES if not name.startswith(("etcd", "pause"))))
    assert [text.partition(" is not")[0] for _, text in notes(host, "images")] == [
        "the image registry.k8s.io/etcd:3.6.6-0",
        "the image registry.k8s.io/pause:3.10.1",
    ]


def test_a_kubelet_that_runs_without_its_flags() -> None:
    host = make_host()
    assert notes(host, "kubelet-drift") == []
    host.files["/proc/42/cmdline"] = b"/usr/bin/kubelet\0--hostname-override=cp1\0"
    assert notes(host, "kubelet-drift") == [
        ("warning", "the kubelet runs without --v=2, which /var/lib/kubelet/kubeadm-flags.env holds")
    ]


def test_a_configuration_that_the_kubelet_has_not_read() -> None:
    class Later(FakeHost):
        def stat(self, path: Path):  # type: ignore[no-untyped-def]
            found = super().stat(path)
            is_config = found and path.name == "config.yaml"
            return dataclasses.replace(found, mtime=self.now().timestamp() - 5) if is_config and found else found

    later = Later(**{item.name: getattr(make_host(), item.name) for item in dataclasses.fields(FakeHost)})
    assert notes(later, "kubelet-drift") == [
        ("warning", "/var/lib/kubelet/config.yaml was changed after the kubelet was started: it runs with the old one")
    ]
