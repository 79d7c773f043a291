"""kubeup/phases/serve_mirror.py: the mirror's service and its certificate."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from kubeup.config.types import KbConfiguration
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.machine.http import HttpResponse
from kubeup.node import certificates, pki
from kubeup.phases import serve_mirror
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node, make_config
from tests.unit.phases.wishes_case import URL, context


def served(host: FakeHost) -> Run:
    host.urls[f"{URL}/healthz"] = HttpResponse(200, b"ok\n")
    unit = serve_mirror.MIRROR_UNIT
    host.accepts = {f"systemctl {words}" for words in ("daemon-reload", f"enable {unit}", f"restart {unit}")}
    ctx = context(host, bundle="/x.tar")
    serve_mirror.serve_bundle(ctx)
    return ctx


def test_the_mirror_s_certificate_is_of_the_cluster_s_authority() -> None:
    host = finished_node()
    ctx = served(host)
    (cert,) = pki.read_certs(host, PATHS.pki / "kb-mirror.crt")
    ca = pki.read_ca(host, PATHS)
    assert certificates.is_signed_by((cert,), ca.cert) and certificates.sans_of(cert).covers("10.77.0.11")
    assert certificates.not_after(cert) <= certificates.not_after(ca.cert)
    assert host.modes[str(PATHS.pki / "kb-mirror.key")] == 0o600
    assert serve_mirror.bundle_is_served(ctx)
    unit = host.read_text(PATHS.systemd / serve_mirror.MIRROR_UNIT)
    assert "mirror serve /var/lib/kb/mirror --listen 0.0.0.0:5000 --tls-cert /etc/kubernetes/pki/kb-mirror.crt" in unit
    changes = len(host.changes)
    serve_mirror._ensure_certificate(ctx)
    assert len(host.changes) == changes


def test_it_is_issued_again_when_it_expires_or_the_address_changes() -> None:
    host = finished_node()
    ctx = served(host)
    host.clock += datetime.timedelta(days=3650 - 40)  # the authority ends with it: nothing better is to be had
    assert serve_mirror._certificate_is_good(ctx)
    host.clock += datetime.timedelta(days=60)
    assert not serve_mirror._certificate_is_good(ctx)
    fresh = finished_node()
    moved = replace(
        served(fresh), config=replace(make_config(address="10.77.0.99"), kb=KbConfiguration(bundle="/x.tar"))
    )
    assert not serve_mirror._certificate_is_good(moved)
    fresh.files[str(PATHS.pki / "kb-mirror.crt")] = b"garbage"
    assert not serve_mirror._certificate_is_good(ctx)


def test_without_the_authority_s_key_it_is_said_what_to_do() -> None:
    host = finished_node()
    del host.files[str(PATHS.pki / "ca.key")]
    with pytest.raises(HostError) as caught:
        serve_mirror._ensure_certificate(context(host, bundle="/x.tar"))
    assert caught.value.code == "mirror-certificate-missing"
