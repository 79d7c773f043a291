"""The phase install/mirror: this node serves the bundle to all nodes of the cluster, as a service of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.lazy_modules import lazy_import
from kubeup.machine.http import Tls, Unreachable
from kubeup.phases import certs
from kubeup.phases.find_mirror import MIRROR_PORT, mirror_url
from kubeup.phases.local_bundle import MIRROR_FOLDER, bundle_copy, open_signed, wants_bundle
from kubeup.trust import Anchors

if TYPE_CHECKING:
    from kubeup import yaml_files
    from kubeup.network import pod_network
    from kubeup.node import cert_specs, certificates, crictl, pki, private_keys
else:
    yaml_files = lazy_import("kubeup.yaml_files")
    pod_network = lazy_import("kubeup.network.pod_network")
    cert_specs = lazy_import("kubeup.node.cert_specs")
    certificates = lazy_import("kubeup.node.certificates")
    crictl = lazy_import("kubeup.node.crictl")
    pki = lazy_import("kubeup.node.pki")
    private_keys = lazy_import("kubeup.node.private_keys")

MIRROR_UNIT = "kb-mirror.service"
MIRROR_TIMEOUT_S = 30
RENEW_BEFORE_S = 90 * 86400
POLL_S = 0.1


def _mirror_cert(ctx: Run) -> tuple[Path, Path]:
    return ctx.paths.pki / "kb-mirror.crt", ctx.paths.pki / "kb-mirror.key"


def serve_bundle(ctx: Run) -> Outputs:
    """The mirror as a service of this node, with a certificate of the cluster's authority; up before this returns.

    Raises HostError: ca-key-missing, mirror-not-started, port-in-use, signature-missing, signature-wrong.
    """
    _require_signed_copy(ctx)
    certs.issue_ca(ctx)
    _ensure_certificate(ctx)
    pyz = pod_network.find_running_pyz()
    pod_network.ensure_installed_kb(ctx.host, ctx.paths, pyz)
    changed = ctx.host.write_file(ctx.paths.systemd / MIRROR_UNIT, _render_unit(ctx, pyz))
    if changed:
        ctx.host.run(["systemctl", "daemon-reload"])
    ctx.host.run(["systemctl", "enable", MIRROR_UNIT])
    is_active = ctx.host.query(["systemctl", "is-active", MIRROR_UNIT]).stdout.strip() == "active"
    if not is_active or changed or ctx.found.mirror_cert_is_new:
        ctx.host.run(["systemctl", "restart", MIRROR_UNIT])
    _wait_for_mirror(ctx)
    return None


def _require_signed_copy(ctx: Run) -> None:
    if ctx.host.mode != "dry-run" and ctx.host.exists(bundle_copy(ctx)):
        open_signed(ctx, bundle_copy(ctx))


def _render_unit(ctx: Run, pyz: Optional[Path]) -> str:
    cert, key = _mirror_cert(ctx)
    address = ctx.config.local_api_endpoint.advertise_address
    values = {
        "command": pod_network.plan_command(ctx.host, pyz, ctx.paths),
        "folder": MIRROR_FOLDER,
        "listen": f"[::]:{MIRROR_PORT}" if ":" in address else f"0.0.0.0:{MIRROR_PORT}",
        "cert": cert,
        "key": key,
        "ca": ctx.paths.pki / "ca.crt",
    }
    text: str = yaml_files.fill_template(f"systemd/{MIRROR_UNIT}", values)
    return text


def _ensure_certificate(ctx: Run) -> None:
    if _certificate_is_good(ctx):
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
    # as long as the authority: nobody renews it between two runs of init
    validity = certificates.plan_validity(ctx.host.now(), left_s)
    subject = certificates.Subject("kb-mirror", is_server=True, sans=_mirror_sans(ctx))
    issued = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
    ctx.host.write_file(key_path, private_keys.key_to_pem(key).reveal(), mode=0o600)
    ctx.host.write_file(cert_path, certificates.cert_to_pem(issued))
    ctx.found.mirror_cert_is_new = True


def _mirror_sans(ctx: Run) -> cert_specs.Sans:
    config = ctx.config
    endpoint = config.cluster.control_plane_endpoint
    names = [config.node.name, "localhost", config.local_api_endpoint.advertise_address, "127.0.0.1"]
    names += [cert_specs.split_host_port(endpoint)[0]] if endpoint else []
    found: cert_specs.Sans = cert_specs.make_sans((*names, *config.cluster.api_server.cert_sans))
    return found


def _certificate_is_good(ctx: Run) -> bool:
    """There, of this authority, for all names, its own key beside it, and not about to expire."""
    cert_path, key_path = _mirror_cert(ctx)
    try:
        chain = pki.read_certs(ctx.host, cert_path)
        key = pki.read_key(ctx.host, key_path)
        ca = pki.read_ca(ctx.host, ctx.paths)
    except HostError:
        return False
    left_s = (certificates.not_after(chain[0]) - ctx.host.now()).total_seconds()
    lifetime_s = (certificates.not_after(ca.cert) - ctx.host.now()).total_seconds()
    return (
        certificates.is_signed_by(chain, ca.cert)
        and private_keys.is_key_of(key, chain[0])
        and not certificates.sans_of(chain[0]).lacks(_mirror_sans(ctx))
        and (left_s > RENEW_BEFORE_S or left_s > lifetime_s - 86400)
    )


def _own_tls(ctx: Run) -> Tls:
    """Believe this node's own authority, which signed the mirror's certificate."""
    return Tls(Anchors.given(ctx.host.read_text(ctx.paths.pki / "ca.crt")))


def _wait_for_mirror(ctx: Run) -> None:
    if ctx.host.mode != "live":
        return
    tls = _own_tls(ctx)
    url, started = f"{mirror_url(ctx.config)}/healthz", ctx.host.monotonic()
    while True:
        try:
            if ctx.host.http_get(url, tls=tls, timeout_s=5).status == 200:
                return
            last = "it does not answer as kb's mirror"
        except Unreachable as error:
            last = error.cause
        elapsed = ctx.host.monotonic() - started
        if elapsed > MIRROR_TIMEOUT_S:
            break
        ctx.report.waiting(f"mirror: {elapsed:.0f} s of {MIRROR_TIMEOUT_S} s; {last}")
        ctx.host.sleep(POLL_S)
    log = ctx.host.query(["journalctl", "-u", MIRROR_UNIT, "-n", "5", "-o", "cat", "--no-pager"]).stdout
    raise HostError(
        f"the mirror does not answer at {url}",
        cause=f"{last}; its log ends: {crictl.last_words(log)}",
        remedy=f"see why: journalctl -u {MIRROR_UNIT} -n 20",
        code="mirror-not-started",
    )


def bundle_is_served(ctx: Run) -> bool:
    try:
        _require_signed_copy(ctx)
        tls = _own_tls(ctx)
        answers = ctx.host.http_get(f"{mirror_url(ctx.config)}/healthz", tls=tls, timeout_s=5).status == 200
    except HostError:
        return False
    unit = ctx.paths.systemd / MIRROR_UNIT
    is_current = ctx.host.exists(unit) and ctx.host.read_text(unit) == _render_unit(ctx, pod_network.find_running_pyz())
    return answers and is_current and _certificate_is_good(ctx)


MIRROR = Act(
    do=serve_bundle,
    probe=bundle_is_served,
    live="node",
    when=wants_bundle,
    reads=("kb.bundle", "node.name", "local_api_endpoint", "cluster.control_plane_endpoint"),
    makes=("/etc/systemd/system/multi-user.target.wants/kb-mirror.service",),
)
