"""The phase install/mirror: a systemd service on this node serves the bundle to all nodes of the cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

from kubeup.addresses import host_of
from kubeup.engine.items import File, Issued, Unit
from kubeup.engine.plan import Group, Plan, Proof
from kubeup.engine.run import Run
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy, services
from kubeup.machine.http import Tls, Unreachable
from kubeup.machine.waiting import wait_for
from kubeup.paths import Paths
from kubeup.phases import certs
from kubeup.phases.find_mirror import MIRROR_PORT, mirror_url
from kubeup.phases.kb_program import plan_program
from kubeup.phases.local_bundle import MIRROR_FOLDER, bundle_copy, kb_digest, open_signed
from kubeup.trust import Anchors

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import containerd_hosts
    from kubeup.node import ca_pins, cert_specs, certificates, crictl, pki, private_keys

MIRROR_UNIT = "kb-mirror.service"
MIRROR_TIMEOUT_S = 30
RENEW_BEFORE_S = 90 * 86400


def _mirror_cert(ctx: Run) -> tuple[Path, Path]:
    return ctx.paths.pki / "kb-mirror.crt", ctx.paths.pki / "kb-mirror.key"


def plan_mirror(run: Run) -> Plan:
    """The mirror as a service of this node, with a certificate from the cluster's CA.

    It serves the bundle to all nodes, so the bundle's signature is checked first. The last item waits until the mirror answers.

    Raises when it is applied: HostError (ca-key-missing, mirror-certificate-missing, unit-not-started, mirror-not-started,
    signature-missing, signature-wrong).
    """
    pyz = own_copy.find_running_pyz()
    items = (
        *plan_program(run, pyz),
        _plan_certificate(run),
        File(run.paths.systemd / MIRROR_UNIT, _render_unit(run, pyz)),
    )
    return (
        Plan(_prove_signature(run))
        + certs.plan_ca(run)
        + Plan(Group(items, guard=Unit(MIRROR_UNIT)), _prove_service(run))
    )


def _prove_signature(run: Run) -> Proof:
    def judge(_: Run) -> str:
        try:
            _require_signed_copy(run)
        except KbError as error:
            return str(error)
        return ""

    return Proof("the bundle's signature", wait=lambda _: _require_signed_copy(run), judge=judge)


def _require_signed_copy(run: Run) -> None:
    if run.host.exists(bundle_copy(run)):
        open_signed(run, bundle_copy(run))


def _plan_certificate(run: Run) -> Issued:
    return Issued(
        "certificate kb-mirror",
        _mirror_cert(run),
        {"for": "kb-mirror", "names": str(_mirror_sans(run))},
        judge=lambda _: _judge_certificate(run),
        issue=lambda ground: _issue_certificate(dataclasses.replace(run, host=ground.host)),
    )


def _prove_service(run: Run) -> Proof:
    def judge(_: Run) -> str:
        try:
            return "" if _answers(run) else "it does not answer as kb's mirror"
        except HostError as error:
            return error.cause

    return Proof(f"the mirror {mirror_url(run.config)}", wait=lambda _: _wait_for_mirror(run), judge=judge)


def _render_unit(ctx: Run, pyz: Optional[Path]) -> str:
    command = own_copy.plan_command(ctx.host, pyz, paths=ctx.paths)
    return yaml_files.fill_template(f"systemd/{MIRROR_UNIT}", unit_values(ctx, command=command))


def unit_values(ctx: Run, *, command: str) -> dict[str, str]:
    """What the unit's file is filled in with. command: how it runs kb."""
    cert, key = _mirror_cert(ctx)
    address = ctx.config.local_api_endpoint.advertise_address
    return {
        "command": command,
        "folder": str(MIRROR_FOLDER),
        "listen": f"[::]:{MIRROR_PORT}" if ":" in address else f"0.0.0.0:{MIRROR_PORT}",
        "cert": str(cert),
        "key": str(key),
        "ca": str(ctx.paths.pki / "ca.crt"),
    }


def _issue_certificate(ctx: Run, *, is_forced: bool = False) -> None:
    """is_forced: even if there is one that serves; it is then for the names of that one too, some of which the configuration may not know any
    more. Raises HostError (mirror-certificate-missing)."""
    if not is_forced and not _judge_certificate(ctx):
        return
    cert_path, key_path = _mirror_cert(ctx)
    ca = pki.read_ca(ctx.host, ctx.paths)
    if ca.key is None:
        raise HostError(
            "the mirror has no certificate",
            cause=f"the key of {ca.path} is kept elsewhere, so kb cannot issue one",
            remedy=f"have your CA issue {cert_path} and {key_path} for {ctx.config.local_api_endpoint.advertise_address}, then run the command again",
            code="mirror-certificate-missing",
        )
    key = private_keys.generate_key(cert_specs.key_algorithm(ctx.config.cluster))
    left_s = int((certificates.not_after(ca.cert) - ctx.host.now()).total_seconds())
    # valid as long as the CA: nothing renews it between two runs of init
    validity = certificates.plan_validity(ctx.host.now(), left_s)
    sans = _mirror_sans(ctx)
    if is_forced and ctx.host.exists(cert_path):
        former = [certificates.sans_of(one) for one in certificates.parse_shown(ctx.host.read_text(cert_path))[:1]]
        sans = cert_specs.make_sans(name for one in (sans, *former) for name in (*one.dns, *one.ips))
    subject = certificates.Subject("kb-mirror", is_server=True, sans=sans)
    issued = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
    ctx.host.write_file(key_path, private_keys.key_to_pem(key).reveal(), mode=0o600)
    ctx.host.write_file(cert_path, certificates.cert_to_pem(issued))


def say_bare_join(ctx: Run, words: str) -> str:
    """The line with which a machine joins that has nothing: all of it comes from this node's mirror. words: of its join command."""
    url = mirror_url(ctx.config)
    pin = ca_pins.ca_cert_hashes(ctx.host.read_text(ctx.paths.pki / "ca.crt"))[0]
    closed = " --air-gapped" if ctx.config.kb.air_gapped else ""
    return f"{say_fetch(ctx)}{words} --mirror {url} --mirror-ca-hash {pin}{closed}"


def say_fetch(ctx: Run) -> str:
    """What gets kb itself from this node's mirror, before the words of a join command on the same line; "" if the mirror has no kb."""
    url, digest = mirror_url(ctx.config), kb_digest(ctx)
    return f'curl -fsSk -o kb.pyz {url}/files/kb.pyz && echo "{digest}  kb.pyz" | sha256sum -c - && ' if digest else ""


def own_files(paths: Paths) -> tuple[Path, ...]:
    """What the mirror and its clients on this node read besides the authority itself; a key comes before its certificate."""
    return paths.pki / "kb-mirror.key", paths.pki / "kb-mirror.crt", containerd_hosts.CA_FILE


def follow_authority(ctx: Run) -> None:
    """Have the mirror of this node, if it serves one, present a certificate of the authority that is here now, which a restore has
    exchanged, and have this node trust that one. Raises HostError (mirror-not-started)."""
    host, ca = ctx.host, ctx.paths.pki / "ca.crt"
    if not host.exists(ctx.paths.systemd / MIRROR_UNIT) or not _judge_certificate(ctx):
        return
    if not host.exists(ca.with_suffix(".key")):
        ctx.report.warn(
            f"the mirror's certificate was not signed by {ca}, whose key is kept elsewhere: other nodes do not trust it"
        )
        return
    _issue_certificate(ctx)
    if host.exists(containerd_hosts.CA_FILE):
        host.write_file(containerd_hosts.CA_FILE, host.read_bytes(ca))
    services.run(host, "restart", unit=MIRROR_UNIT)
    _wait_for_mirror(ctx)


def find_due(ctx: Run) -> str:
    """Why the certificate of this node's mirror is to be renewed, in words; "" if it is not, or if this node serves no mirror. One that is
    written and not presented yet is due: a renewal may have been cut off."""
    if not ctx.host.exists(ctx.paths.systemd / MIRROR_UNIT):
        return ""
    return _judge_certificate(ctx) or _judge_presented(ctx)


def _judge_presented(ctx: Run) -> str:
    pem = ctx.host.served_cert(ctx.config.local_api_endpoint.advertise_address, MIRROR_PORT)
    path, _ = _mirror_cert(ctx)
    presented = certificates.parse_shown(pem or "")
    return (
        f"the mirror does not present {path}" if presented and presented != pki.read_certs(ctx.host, path)[:1] else ""
    )


def renew_certificate(ctx: Run) -> bool:
    """Issue the certificate of this node's mirror again, with its names, and restart the mirror, which lets transfers end. Returns False if the
    authority's key is kept elsewhere. Nodes trust the authority, so nothing changes for them. Raises HostError (mirror-not-started)."""
    if not ctx.host.exists(ctx.paths.pki / "ca.key"):
        return False
    _issue_certificate(ctx, is_forced=True)
    services.run(ctx.host, "restart", unit=MIRROR_UNIT)
    _wait_for_mirror(ctx)
    return True


def _mirror_sans(ctx: Run) -> cert_specs.Sans:
    config = ctx.config
    endpoint = config.cluster.control_plane_endpoint
    names = [config.node.name, "localhost", config.local_api_endpoint.advertise_address, "127.0.0.1"]
    names += [host_of(endpoint)] if endpoint else []
    return cert_specs.make_sans((*names, *config.cluster.api_server.cert_sans))


def _judge_certificate(ctx: Run) -> str:
    """What is wrong with the mirror's certificate; "" if it exists, this CA signed it, it is valid for all names, fits its key and
    does not expire soon."""
    cert_path, key_path = _mirror_cert(ctx)
    try:
        chain = pki.read_certs(ctx.host, cert_path)
        key = pki.read_key(ctx.host, key_path)
        ca = pki.read_ca(ctx.host, ctx.paths)
    except HostError as error:
        return error.what
    if not certificates.is_signed_by(chain, ca.cert):
        return f"{cert_path} is not signed by {ca.path}"
    if not private_keys.is_key_of(key, chain[0]):
        return f"{key_path} is not the key of {cert_path}"
    lacking = certificates.sans_of(chain[0]).lacks(_mirror_sans(ctx))
    if lacking:
        return f"{cert_path} is not for {', '.join(map(str, lacking))}"
    left_s = (certificates.not_after(chain[0]) - ctx.host.now()).total_seconds()
    lifetime_s = (certificates.not_after(ca.cert) - ctx.host.now()).total_seconds()
    is_due = left_s <= RENEW_BEFORE_S and left_s <= lifetime_s - 86400
    when = f"expires in {left_s / 86400:.0f} days" if left_s > 0 else "has expired"
    return f"{cert_path} {when}" if is_due else ""


def _own_tls(ctx: Run) -> Tls:
    """TLS settings that trust this cluster's CA, which signed the mirror's certificate."""
    return Tls(Anchors.given(ctx.host.read_text(ctx.paths.pki / "ca.crt")))


def _answers(ctx: Run) -> bool:
    """Whether the mirror's /healthz answers 200. Raises Unreachable."""
    return ctx.host.http_get(f"{mirror_url(ctx.config)}/healthz", tls=_own_tls(ctx), timeout_s=5).status == 200


def _wait_for_mirror(ctx: Run) -> None:
    def look() -> str:
        try:
            return "" if _answers(ctx) else "it does not answer as kb's mirror"
        except Unreachable as error:
            return error.cause

    def failure(missing: str, _: float) -> HostError:
        log = "\n".join(services.read_log(ctx.host, MIRROR_UNIT, lines=5))
        return HostError(
            f"the mirror does not answer at {mirror_url(ctx.config)}",
            cause=f"{missing}; its log ends: {crictl.last_words(log)}",
            remedy=f"see why: journalctl -u {MIRROR_UNIT} -n 20",
            code="mirror-not-started",
        )

    wait_for(ctx.host, look, goal="mirror", timeout_s=MIRROR_TIMEOUT_S, tell=ctx.report.waiting, failure=failure)
