"""hosts.toml per registry, and whom a node believes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.airgap import containerd_hosts
from kubeup.airgap.containerd_hosts import Mirror
from kubeup.errors import HostError
from kubeup.machine.http import HttpResponse, Tls, Unproven, Unreachable
from kubeup.node import ca_pins
from kubeup.node.containerd_config import parse_toml
from kubeup.trust import Anchors
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node

FOLDER = Path("/etc/containerd/certs.d")
URL = "https://10.0.0.11:5000"


def test_the_upstream_stays_as_the_fallback_unless_air_gapped() -> None:
    mirror = Mirror(URL, Anchors.given("PEM"))
    open_, closed = (
        parse_toml(containerd_hosts.render_hosts("docker.io", mirror, is_only=only)) for only in (False, True)
    )
    assert open_["server"] == "https://registry-1.docker.io"
    assert closed["server"] == URL and closed["ca"] == str(containerd_hosts.CA_FILE)
    for found in (open_, closed):
        assert found["host"][URL] == {"capabilities": ["pull", "resolve"], "ca": str(containerd_hosts.CA_FILE)}


def test_a_mirror_below_a_path_and_without_tls() -> None:
    found = parse_toml(containerd_hosts.render_hosts("registry.k8s.io", Mirror("http://h.example/k8s"), is_only=False))
    assert found["host"] == {"http://h.example/v2/k8s": {"capabilities": ["pull", "resolve"], "override_path": True}}
    assert found["server"] == "https://registry.k8s.io"


def test_planned_files() -> None:
    files = containerd_hosts.plan_hosts(
        FOLDER, ["registry.k8s.io", "10.0.0.11:5000"], mirror=Mirror(URL, Anchors.given("PEM")), is_only=True
    )
    names = ("registry.k8s.io", "10.0.0.11:5000", "_default")
    assert set(files) == {containerd_hosts.CA_FILE, *(FOLDER / name / "hosts.toml" for name in names)}
    assert set(containerd_hosts.plan_hosts(FOLDER, ["quay.io"], mirror=Mirror("http://m:5000"), is_only=False)) == {
        FOLDER / "quay.io/hosts.toml"
    }


def test_an_image_that_is_named_after_the_mirror() -> None:
    """It is there alone, and containerd would try https where nothing said otherwise."""
    (text,) = containerd_hosts.plan_hosts(FOLDER, ["m:5000"], mirror=Mirror("http://m:5000"), is_only=False).values()
    found = parse_toml(text)
    assert found["server"] == "http://m:5000" and list(found["host"]) == ["http://m:5000"]


def test_the_folder_that_containerd_reads() -> None:
    assert containerd_hosts.hosts_folder("/etc/containerd/certs.d:/etc/docker/certs.d") == FOLDER
    assert containerd_hosts.hosts_folder("") is None


def test_registries() -> None:
    catalog = ["registry.k8s.io/pause", "quay.io/a/b", "library/web"]
    found = containerd_hosts.registries_of(catalog, ["ghcr.io/x/y:1"])
    assert found == ("ghcr.io", "registry.k8s.io", "quay.io", "docker.io")


class TlsHost(FakeHost):
    """A server whose certificate `ca` signed: others fail in the handshake."""

    ca = ""
    why = "certificate verify failed"

    def http_get(self, url, *, tls=None, headers=None, timeout_s=10, max_bytes=0):  # type: ignore[no-untyped-def]
        if not isinstance(tls, Unproven) and (tls is None or tls.ca != Anchors.given(self.ca)):
            raise Unreachable(url, "tls", text=self.why)
        return super().http_get(url, tls=tls, headers=headers, timeout_s=timeout_s)


def host_with(ca: str) -> TlsHost:
    host = TlsHost(urls={f"{URL}/v2/": HttpResponse(200, b"{}"), f"{URL}/ca.crt": HttpResponse(200, ca.encode())})
    host.ca = ca
    return host


@pytest.fixture
def cluster_ca() -> str:
    return finished_node().read_text(PATHS.pki / "ca.crt")


def test_the_cluster_s_authority_is_enough(cluster_ca: str) -> None:
    assert containerd_hosts.find_mirror(
        host_with(cluster_ca), f"{URL}/", cluster_ca=Anchors.given(cluster_ca)
    ) == Mirror(URL, Anchors.given(cluster_ca))
    assert Mirror(URL, Anchors.given(cluster_ca)).tls == Tls(Anchors.given(cluster_ca))


def test_a_pin_is_enough_and_nothing_else_is(cluster_ca: str) -> None:
    pin = ca_pins.ca_cert_hashes(cluster_ca)[0]
    assert containerd_hosts.find_mirror(host_with(cluster_ca), URL, ca_hash=pin) == Mirror(
        URL, Anchors.given(cluster_ca)
    )
    with pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(host_with(cluster_ca), URL, ca_hash=f"sha256:{'0' * 64}")
    assert caught.value.code == "mirror-not-trusted" and pin in caught.value.cause
    with pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(host_with(cluster_ca), URL)
    assert caught.value.code == "mirror-not-trusted"


def test_an_expired_certificate_is_named(cluster_ca: str) -> None:
    host = host_with("another authority")
    host.why = "certificate has expired"
    with pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(host, URL, cluster_ca=Anchors.given(cluster_ca))
    assert "expired" in caught.value.cause and "kb certs renew kb-mirror" in caught.value.remedy


def test_nobody_and_somebody_else_there() -> None:
    with pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(FakeHost(), "http://10.0.0.11:5000")
    assert caught.value.code == "mirror-unreachable"
    host = FakeHost(urls={"http://10.0.0.11:5000/v2/": HttpResponse(404)})
    with pytest.raises(HostError) as caught:
        containerd_hosts.find_mirror(host, "http://10.0.0.11:5000")
    assert "is not an image registry" in caught.value.what


def test_counts() -> None:
    text = (
        'kb_mirror_requests_total{method="GET",code="200"} 9\nkb_mirror_client_requests_total{client="10.0.0.12"} 3\n'
    )
    mirror = Mirror("http://m:5000")
    host = FakeHost(urls={"http://m:5000/metrics": HttpResponse(200, text.encode())})
    assert containerd_hosts.count_requests(host, mirror, addresses=["10.0.0.12", "127.0.0.1"]) == 3
    assert containerd_hosts.count_requests(host, mirror, addresses=["10.0.0.13"]) == 0
    assert containerd_hosts.count_requests(FakeHost(), mirror, addresses=[]) is None
