"""kubeup/phases/serve_mirror.py: the mirror's service and its certificate."""

from __future__ import annotations

import datetime
import signal
from dataclasses import replace

import pytest

import kb
from kubeup.config.types import KbConfiguration, NodeConfig
from kubeup.engine.run import Run
from kubeup.engine.runner import Runner
from kubeup.engine.state import load_state
from kubeup.errors import HostError, Interrupted
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.node import certificates, pki
from kubeup.phases import serve_mirror
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node, make_config
from tests.plans import do, is_done
from tests.unit.phases.wishes_case import URL, context

UNIT = serve_mirror.MIRROR_UNIT
RESTART = f"run systemctl restart {UNIT}"
STARTS = (f"enable --no-reload {UNIT}", "daemon-reload", f"restart {UNIT}")
CERT = PATHS.pki / "kb-mirror.crt"


def make_host() -> FakeHost:
    host = finished_node()
    host.urls[f"{URL}/healthz"] = HttpResponse(200, b"ok\n")
    host.accepts = {f"systemctl {words}" for words in STARTS}
    host.answers[f"systemctl is-active {UNIT}"] = "active\n"
    return host


def served(host: FakeHost) -> Run:
    ctx = context(host, bundle="/x.tar")
    do(serve_mirror.plan_mirror, ctx)
    return ctx


def at(ctx: Run, address: str) -> Run:
    return replace(ctx, config=replace(make_config(address=address), kb=KbConfiguration(bundle="/x.tar")))


def test_the_mirror_s_certificate_is_of_the_cluster_s_authority() -> None:
    host = make_host()
    ctx = served(host)
    (cert,) = pki.read_certs(host, CERT)
    ca = pki.read_ca(host, PATHS)
    assert certificates.is_signed_by((cert,), ca.cert) and certificates.sans_of(cert).covers("10.77.0.11")
    assert certificates.not_after(cert) <= certificates.not_after(ca.cert)
    assert host.modes[str(PATHS.pki / "kb-mirror.key")] == 0o600
    assert is_done(serve_mirror.plan_mirror, ctx)
    unit = host.read_text(PATHS.systemd / UNIT)
    assert "mirror serve /var/lib/kb/mirror --listen 0.0.0.0:5000 --tls-cert /etc/kubernetes/pki/kb-mirror.crt" in unit
    before = host.files[str(CERT)]
    do(serve_mirror.plan_mirror, ctx)
    assert host.files[str(CERT)] == before, "one that serves is kept"


def test_planning_it_changes_nothing() -> None:
    host = make_host()
    for _ in range(2):
        host.changes.clear()
        plan = serve_mirror.plan_mirror(context(host, bundle="/x.tar"))
        assert [item.name for item in plan.items()][-1] == str(PATHS.systemd / UNIT)
        assert host.changes == []
        served(host)


def test_a_mirror_that_does_not_answer_is_not_done() -> None:
    host = make_host()
    ctx = served(host)
    host.urls[f"{URL}/healthz"] = HttpResponse(404, b"")
    assert not is_done(serve_mirror.plan_mirror, ctx)
    host.urls[f"{URL}/healthz"] = HttpResponse(200, b"ok\n")
    assert is_done(serve_mirror.plan_mirror, ctx)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda host, ctx: host.files.update({str(CERT): b"garbage"}), "kb-mirror.crt"),
        (lambda host, ctx: host.files.update({str(CERT): host.files[str(PATHS.pki / "ca.crt")]}), "is not the key of"),
    ],
)
def test_a_certificate_that_cannot_serve_is_issued_again(spoil: object, told: str) -> None:
    host = make_host()
    ctx = served(host)
    spoil(host, ctx)  # type: ignore[operator]
    assert told in serve_mirror._judge_certificate(ctx)
    host.changes.clear()
    do(serve_mirror.plan_mirror, ctx)
    assert serve_mirror._judge_certificate(ctx) == "" and RESTART in host.changes


def test_it_is_issued_again_when_it_expires_or_the_address_changes() -> None:
    host = make_host()
    ctx = served(host)
    host.clock += datetime.timedelta(days=3650 - 40)  # the authority ends with it: nothing better is to be had
    assert serve_mirror._judge_certificate(ctx) == ""
    host.clock += datetime.timedelta(days=60)
    assert "expired at" in serve_mirror._judge_certificate(ctx)
    assert "is not for 10.77.0.99" in serve_mirror._judge_certificate(at(served(make_host()), "10.77.0.99"))


def test_without_the_authority_s_key_it_is_said_what_to_do() -> None:
    host = make_host()
    del host.files[str(PATHS.pki / "ca.key")]
    with pytest.raises(HostError) as caught:
        served(host)
    assert caught.value.code == "mirror-certificate-missing"


@pytest.mark.parametrize("change", ["the unit", "the certificate"])
@pytest.mark.parametrize("cut_off_at", STARTS)
def test_one_that_was_changed_and_not_started_again_is_started_by_the_next_run(cut_off_at: str, change: str) -> None:
    """Killed in between, it runs on from what it was started with, and its files are right already."""
    host, phases = make_host(), tuple(phase for phase in kb.INIT if phase.name == "install/mirror")

    def run(config: NodeConfig) -> None:
        Runner("init", phases, state=load_state(host, PATHS)).run(
            replace(context(host, bundle="/x.tar"), config=config)
        )

    first = context(host, bundle="/x.tar").config
    run(first)

    def cut_off(_: object) -> CommandResult:
        raise Interrupted(signal.SIGTERM)

    host.answers[f"systemctl {cut_off_at}"] = cut_off
    if change == "the certificate":
        host.files[str(CERT)] = b"garbage"
    else:
        host.files[str(PATHS.systemd / UNIT)] = b"[Service]\nExecStart=/bin/other\n"
    with pytest.raises(Interrupted):
        run(first)
    del host.answers[f"systemctl {cut_off_at}"]
    host.changes.clear()
    run(first)
    assert RESTART in host.changes
    host.changes.clear()
    run(first)
    assert host.changes == []


# ---- renewed


def test_what_is_due_of_its_certificate() -> None:
    host = make_host()
    assert serve_mirror.find_due(context(host)) == "", "there is no mirror"
    ctx = served(host)
    own = (PATHS.pki / "kb-mirror.crt").as_posix()
    assert serve_mirror.find_due(ctx) == "", "nobody presents anything"
    host.served["10.77.0.11:5000"] = host.files[own].decode()
    assert serve_mirror.find_due(ctx) == ""
    host.served["10.77.0.11:5000"] = host.files[str(PATHS.pki / "apiserver.crt")].decode()
    assert "does not present" in serve_mirror.find_due(ctx), "a renewal was cut off before the restart"
    del host.files[own]
    assert own in serve_mirror.find_due(ctx)


def test_it_is_renewed_with_all_names_that_it_had() -> None:
    """The files of a node do not say every name that its configuration once had."""
    host = make_host()
    ctx = context(host, bundle="/x.tar")
    cluster = replace(ctx.config.cluster, control_plane_endpoint="mirror.example.org:6443")
    do(serve_mirror.plan_mirror, replace(ctx, config=replace(ctx.config, cluster=cluster)))
    before = pki.read_certs(host, CERT)[0]
    host.changes.clear()
    assert serve_mirror.renew_certificate(ctx)
    (after,) = pki.read_certs(host, CERT)
    assert after != before and RESTART in host.changes
    assert {"mirror.example.org", "localhost"} <= set(certificates.sans_of(after).dns)
    assert "10.77.0.11" in certificates.sans_of(after).ips
    del host.files[str(PATHS.pki / "ca.key")]
    host.changes.clear()
    assert not serve_mirror.renew_certificate(ctx) and host.changes == []
