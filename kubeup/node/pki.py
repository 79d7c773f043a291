"""The folder /etc/kubernetes/pki: reads it, checks what is already there, and creates what is missing.

This module knows no phase, and does not talk to the cluster. Mirrors cmd/kubeadm/app/phases/certs/certs.go.

kb reuses what it finds on the node. A key is never replaced. A certificate is reissued, for the same key, only if it is unusable
(expired, or a name is missing) and its CA's key is available. If kb cannot fix something without losing something else, it
reports what it found, and stops. A key is written before its certificate, so that a crash in between leaves only a key, which the
next run uses.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from kubeup.config.types import ClusterConfiguration, NodeConfig
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node.cert_specs import CERTS, NO_SANS, CertSpec, Sans, make_sans, wanted_certs
from kubeup.node.certificates import (
    Ca,
    Subject,
    cert_to_pem,
    chain_to_pem,
    is_ca_cert,
    is_expired,
    is_in_future,
    is_issued_by,
    issue_ca_cert,
    issue_leaf_cert,
    parse_certs,
    plan_validity,
    sans_of,
    unfit_ca,
)
from kubeup.node.private_keys import Key, generate_key, is_key_of, is_pair, key_to_pem, parse_key, public_key_to_pem
from kubeup.node.verify import find_fault
from kubeup.paths import Paths
from kubeup.pem import split_pem


def read_certs(host: Host, path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in a file. Raises HostError (certificate-unreadable)."""
    try:
        return parse_certs(host.read_text(path))
    except ValueError as error:
        raise HostError(
            f"the certificate {path} cannot be used",
            cause=str(error),
            remedy=f"look at it: openssl x509 -noout -text -in {path}; put back a good copy, or move it away",
            code="certificate-unreadable",
        ) from error


def read_key(host: Host, path: Path) -> Key:
    """The private key in a file. Raises HostError (key-unreadable)."""
    try:
        return parse_key(host.read_text(path))
    except ValueError as error:
        raise HostError(
            f"the private key {path} cannot be used",
            cause=str(error),
            remedy=f"put back a good copy of {path}, without a password",
            code="key-unreadable",
        ) from error


def is_external_ca(host: Host, paths: Paths, *, name: str = "ca") -> bool:
    """Whether the CA `name` (ca, front-proxy-ca, etcd-ca) is external: its certificate is on the node, but its key is not."""
    spec = CERTS[name]
    if host.exists(spec.key_path(paths)) or not host.exists(spec.cert_path(paths)):
        return False
    return is_ca_cert(read_certs(host, spec.cert_path(paths))[0])


_ca_keys: dict[Path, tuple[tuple[str, str], Key]] = {}
"""The content of a CA's two files when its key was read and verified, and that key. Every certificate that a CA signs needs it, and
reading and verifying it takes as long as signing."""


def read_ca(host: Host, paths: Paths, *, name: str = "ca") -> Ca:
    """The CA `name` on the node, checked for use.

    Raises HostError: ca-missing, certificate-unreadable, key-unreadable, not-a-ca, ca-expired,
    certificate-not-yet-valid, key-mismatch.
    """
    spec = CERTS[name]
    path, key_path = spec.cert_path(paths), spec.key_path(paths)
    if not host.exists(path):
        raise HostError(
            f"the CA certificate {path} is not there",
            cause=f"everything that {name} signs needs it",
            remedy=f"make it: kb init phase certs {name}; or put yours there",
            code="ca-missing",
        )
    cert = read_certs(host, path)[0]
    _check_ca_cert(cert, path, now=host.now())
    if not host.exists(key_path):
        return Ca(cert, None, path)
    proven = _ca_keys.get(path)
    texts = (host.read_text(path), host.read_text(key_path))
    if proven is None or proven[0] != texts:
        key = read_key(host, key_path)
        if not is_key_of(key, cert):
            raise _key_mismatch(path, key_path)
        proven = _ca_keys[path] = (texts, key)
    return Ca(cert, proven[1], path)


def _check_ca_cert(cert: x509.Certificate, path: Path, *, now: datetime.datetime) -> None:
    if not is_ca_cert(cert):
        raise HostError(
            f"{path} is not a CA certificate",
            cause=f"its basic constraints do not say CA:TRUE (subject {cert.subject.rfc4514_string()})",
            remedy=f"put the certificate of your CA at {path}, or move it away and kb makes one",
            code="not-a-ca",
        )
    if is_expired(cert, now):
        raise HostError(
            f"the CA certificate {path} expired at {_utc(cert.not_valid_after_utc)}",
            cause=f"this clock says {_utc(now)}; certificates signed by this CA are no longer accepted",
            remedy=f"set the clock if it is wrong (timedatectl); otherwise replace {path} with a renewed one for the same key",
            code="ca-expired",
        )
    if is_in_future(cert, now):
        raise _not_yet_valid(cert, path, now=now)


@frozen
class Finding:
    """What has to be done about a certificate: keep it, or issue it. `reason` says why, in words for people."""

    action: str
    """keep | issue | reissue"""
    reason: str
    key: Optional[Key] = None
    """The existing key, for which a certificate is to be issued."""
    found_sans: Sans = Sans()


def probe_ca(host: Host, paths: Paths, name: str) -> Finding:  # noqa: PLR0917
    """What has to be done about the CA `name`. Raises HostError if the existing files cannot be used (see read_ca), and ca-missing if
    there are only certificates that it signed."""
    spec = CERTS[name]
    if host.exists(spec.cert_path(paths)):
        ca = read_ca(host, paths, name=name)
        where = "its key is kept elsewhere" if ca.key is None else "with its key"
        return Finding("keep", f"using the existing CA {ca.path} ({where})", ca.key)
    if host.exists(spec.key_path(paths)):
        return Finding("issue", f"using the existing key {spec.key_path(paths)}", read_key(host, spec.key_path(paths)))
    orphans = [leaf.cert_path(paths) for leaf in CERTS.values() if leaf.signer == name]
    check_no_orphans(host, paths, name=name, orphans=[path for path in orphans if host.exists(path)])
    return Finding("issue", "there is none yet")


def find_ca_warnings(host: Host, paths: Paths, *, cluster: ClusterConfiguration, name: str) -> tuple[str, ...]:
    """Warnings about an existing CA that works but may surprise. Raises the same errors as read_ca."""
    ca = read_ca(host, paths, name=name)
    bundle = describe_bundle(host, ca) if name == "ca" and signs_with_ca(cluster) else ""
    return tuple(
        filter(None, (describe_early_end(ca, host.now(), seconds=cluster.certificate_validity_period_s), bundle))
    )


def signs_with_ca(cluster: ClusterConfiguration) -> bool:
    """Whether the controller-manager signs with ca.crt, unless the configuration names another file."""
    own = cluster.controller_manager
    return not any(own.last_arg(f"cluster-signing{kind}-cert-file") for kind in ("", "-kubelet-client"))


def describe_early_end(ca: Ca, now: datetime.datetime, *, seconds: int) -> str:
    """A warning that a CA expires before the certificates that it signs now; "" if it does not, or is external."""
    left = ca.cert.not_valid_after_utc - now
    if ca.key is None or left >= datetime.timedelta(seconds=seconds):
        return ""
    return (
        f"{ca.path} ends in {left.days} days, before the certificates that it signs: nothing that it signed is accepted from then "
        "on; renew it for the same key while there is time"
    )


def describe_bundle(host: Host, ca: Ca) -> str:
    """A warning that a CA's file holds several certificates, while the signer accepts exactly one; "" if it does not."""
    count = len(read_certs(host, ca.path)) if ca.key is not None else 1
    if count == 1:
        return ""
    return (
        f"{ca.path} holds {count} certificates, and kube-controller-manager signs with a file of exactly one: no kubelet that "
        f"joins gets its certificate; put the one of {ca.path.with_suffix('.key')} alone into a file beside it, and name that in "
        "controllerManager.extraArgs: cluster-signing-cert-file"
    )


def check_no_orphans(host: Host, paths: Paths, *, name: str, orphans: Sequence[Path]) -> None:
    """Raise HostError (ca-missing) if there are files that the CA `name` signed, but not the CA: a new CA would invalidate them."""
    spec = CERTS[name]
    if orphans and not host.exists(spec.cert_path(paths)) and not host.exists(spec.key_path(paths)):
        names = " ".join(str(path) for path in orphans)
        raise HostError(
            f"the CA certificate {spec.cert_path(paths)} is not there",
            cause=f"what it signed is ({names}), and a new CA would invalidate it",
            remedy=f"put {spec.cert_path(paths)} back, with its key; or start over: mv {names} /root/",
            code="ca-missing",
        )


def probe_cert(host: Host, paths: Paths, *, config: NodeConfig, name: str) -> Finding:
    """What has to be done about the leaf certificate `name`.

    Raises HostError if the existing files cannot be used, and cannot be fixed without losing something:
    certificate-of-other-ca, certificate-expired, certificate-lacks-san, certificate-not-yet-valid, key-missing,
    key-mismatch, external-ca-incomplete, and the errors of read_ca.
    """
    spec = CERTS[name]
    path, key_path = spec.cert_path(paths), spec.key_path(paths)
    ca = read_ca(host, paths, name=spec.signer)
    if not host.exists(path):
        if ca.key is None:
            raise _external_ca_incomplete(ca, [path, key_path])
        if host.exists(key_path):
            return Finding("issue", f"using the existing key {key_path}", read_key(host, key_path))
        return Finding("issue", "there is none yet")
    chain = read_certs(host, path)
    _check_chain(host, spec, chain=chain, paths=paths, ca=ca)
    if is_in_future(chain[0], host.now()):
        raise _not_yet_valid(chain[0], path, now=host.now())
    if not host.exists(key_path):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"its certificate {path} is, and is useless without it",
            remedy=f"put {key_path} back, or move {path} away and kb makes a new pair",
            code="key-missing",
        )
    key = read_key(host, key_path)
    if not is_key_of(key, chain[0]):
        raise _key_mismatch(path, key_path)
    return _judge_cert(chain[0], key, ca=ca, path=path, wanted=spec.sans(config), now=host.now())


def _check_chain(host: Host, spec: CertSpec, *, chain: Sequence[x509.Certificate], paths: Paths, ca: Ca) -> None:
    """Raise HostError (certificate-of-other-ca, ca-unfit, certificate-unfit) if Kubernetes would not accept the certificate. Its own
    dates are not checked here: an expired certificate may be issued again."""
    path, pool, now = spec.cert_path(paths), read_certs(host, ca.path), host.now()
    is_now = not is_expired(chain[0], now) and not is_in_future(chain[0], now)
    if find_fault(chain, pool) is not None and not any(
        is_issued_by(cert, authority) for cert in chain for authority in pool
    ):
        raise _other_ca(path, spec.key_path(paths), cert=chain[0], ca=ca)
    for usage in spec.usages:
        fault = find_fault(chain, pool, usage=usage, now=now if is_now else None)
        if fault is not None and fault.is_authority and fault.cert in pool:
            raise unfit_ca(ca, f"Kubernetes would not accept the certificate {path}", fault=fault)
        if fault is not None:
            raise HostError(
                f"Kubernetes would not accept the certificate {path}",
                cause=fault.text,
                remedy=f"move it and its key away (mv {path} {spec.key_path(paths)} /root/) and kb makes a new pair"
                if ca.key is not None
                else f"have your CA issue {path} again, for the usages {' and '.join(spec.usages)}",
                code="certificate-unfit",
            )


def _judge_cert(
    cert: x509.Certificate, key: Key, *, ca: Ca, path: Path, wanted: Sans, now: datetime.datetime
) -> Finding:
    """Keep a usable certificate, or reissue it for its key if the CA's key is available."""
    found = sans_of(cert)
    missing = found.lacks(wanted)
    if not is_expired(cert, now) and not missing:
        return Finding("keep", f"using the existing certificate {path}", key, found)
    if is_expired(cert, now):
        problem = f"{path} expired at {_utc(cert.not_valid_after_utc)}"
    else:
        problem = f"{path} does not name {', '.join(missing)}"
    if ca.key is not None:
        return Finding("reissue", f"{problem}: issued again for the same key", key, found)
    cause = f"its CA {ca.path} signs elsewhere (there is no key beside it), so kb cannot issue it again"
    if is_expired(cert, now):
        raise HostError(
            f"the certificate {problem}",
            cause=cause,
            remedy=f"have your CA issue {path} again for the same key",
            code="certificate-expired",
        )
    raise HostError(
        f"the certificate {problem}",
        cause=cause,
        remedy=f"have your CA issue {path} again for the same key, signed for {wanted}",
        code="certificate-lacks-san",
    )


def ensure_ca(host: Host, paths: Paths, *, config: NodeConfig, name: str, make_key: Callable[[], Key]) -> Finding:
    """Keep the CA `name`, or create it; return what was found before. Raises the same errors as probe_ca."""
    finding = probe_ca(host, paths, name)
    if finding.action == "keep":
        return finding
    spec = CERTS[name]
    key = finding.key or _write_new_key(host, spec.key_path(paths), key=make_key())
    validity = plan_validity(host.now(), config.cluster.ca_certificate_validity_period_s)
    host.write_file(
        spec.cert_path(paths), cert_to_pem(issue_ca_cert(spec.common_name, key, validity=validity)), mode=0o644
    )
    return finding


def ensure_cert(host: Host, paths: Paths, *, config: NodeConfig, name: str, make_key: Callable[[], Key]) -> Finding:
    """Keep the leaf certificate `name`, or issue it; return what was found before. Raises the same errors as probe_cert.

    Names in an expired or incomplete certificate are kept in the new one, because somebody wanted them.
    """
    finding = probe_cert(host, paths, config=config, name=name)
    if finding.action == "keep":
        return finding
    spec = CERTS[name]
    key = finding.key or make_key()
    cert = _issue_for(
        config, spec, key=key, ca=read_ca(host, paths, name=spec.signer), now=host.now(), found=finding.found_sans
    )
    if finding.key is None:
        _write_new_key(host, spec.key_path(paths), key=key)
    path = spec.cert_path(paths)
    following = read_certs(host, path)[1:] if finding.action == "reissue" else ()
    write_keeping_mode(host, path, text=chain_to_pem(cert, following=following, now=host.now()), mode=0o644)
    return finding


def reissue_cert(host: Host, paths: Paths, *, config: NodeConfig, name: str, drops: Sequence[str]) -> None:
    """Issue an existing leaf certificate again for its key: with the names that it has and those of the configuration, without `drops`.

    Raises HostError (certificate-unreadable, key-unreadable, key-mismatch, external-ca-incomplete), and the errors of read_ca.
    """
    spec = CERTS[name]
    path, key_path = spec.cert_path(paths), spec.key_path(paths)
    ca, (cert, *following), key = (
        read_ca(host, paths, name=spec.signer),
        read_certs(host, path),
        read_key(host, key_path),
    )
    if ca.key is None:
        raise _external_ca_incomplete(ca, [path])
    if not is_key_of(key, cert):
        raise _key_mismatch(path, key_path)
    found = sans_of(cert)
    kept = make_sans(one for one in (*found.dns, *found.ips) if one not in drops)
    new = _issue_for(config, spec, key=key, ca=ca, now=host.now(), found=kept)
    write_keeping_mode(host, path, text=chain_to_pem(new, following=following, now=host.now()), mode=0o644)


def _issue_for(
    config: NodeConfig, spec: CertSpec, *, key: Key, ca: Ca, now: datetime.datetime, found: Sans = NO_SANS
) -> x509.Certificate:
    """Issue the certificate of a row of CERTS for this node. found: the names in the existing one."""
    sans = spec.sans(config)
    if found:
        sans = make_sans((*sans.dns, *sans.ips, *found.dns, *found.ips))
    name = spec.common_name or config.node.name
    subject = Subject(name, is_server=spec.is_server, is_client=spec.is_client, sans=sans)
    return issue_leaf_cert(
        subject, key, ca=ca, validity=plan_validity(now, config.cluster.certificate_validity_period_s)
    )


def is_ca_valid(host: Host, paths: Paths, *, name: str) -> bool:
    """Whether nothing has to be done about the CA `name`."""
    try:
        return probe_ca(host, paths, name).action == "keep"
    except HostError:
        return False


def is_cert_valid(host: Host, paths: Paths, *, config: NodeConfig, name: str) -> bool:
    """Whether the certificate and key `name` can be read, match, chain to the CA, are valid now, and have all wanted names."""
    try:
        return probe_cert(host, paths, config=config, name=name).action == "keep"
    except HostError:
        return False


def find_problems(host: Host, paths: Paths, *, config: NodeConfig) -> list[HostError]:
    """All reasons why the phases certs/* would fail, found by preflight before anything is changed."""
    problems: dict[str, HostError] = {}
    for spec in wanted_certs(config.cluster):
        try:
            if spec.is_ca:
                probe_ca(host, paths, spec.name)
            elif (
                spec.signer not in problems
                and host.exists(CERTS[spec.signer].cert_path(paths))
                and probe_cert(host, paths, config=config, name=spec.name).action != "keep"
            ):
                _try_to_issue(host, paths, config=config, spec=spec)
        except HostError as error:
            problems[spec.name] = error
    try:
        probe_service_account_key(host, paths)
    except HostError as error:
        problems["sa"] = error
    return list(problems.values())


def _try_to_issue(host: Host, paths: Paths, *, config: NodeConfig, spec: CertSpec) -> None:
    """Issue a certificate for a throwaway key. Raises the same errors as issue_leaf_cert."""
    _issue_for(config, spec, key=generate_key("ECDSA-P256"), ca=read_ca(host, paths, name=spec.signer), now=host.now())


def probe_service_account_key(host: Host, paths: Paths) -> Finding:
    """What has to be done about sa.key and sa.pub. Raises HostError: key-unreadable, key-mismatch, sa-key-missing."""
    key_path, public_path = paths.pki / "sa.key", paths.pki / "sa.pub"
    if not host.exists(key_path):
        return _probe_missing_sa_key(host, paths)
    key = read_key(host, key_path)
    if not host.exists(public_path):
        return Finding("issue", f"using the existing key {key_path}", key)
    if is_public_half_in(host.read_text(public_path), key):
        return Finding("keep", f"using the existing key {key_path}", key)
    raise HostError(
        f"{key_path} and {public_path} do not belong together",
        cause=f"{public_path} does not hold the public half of {key_path}: no service account token would be accepted",
        remedy=f"write it again: openssl pkey -in {key_path} -pubout -out {public_path}",
        code="key-mismatch",
    )


def _probe_missing_sa_key(host: Host, paths: Paths) -> Finding:
    key_path, public_path = paths.pki / "sa.key", paths.pki / "sa.pub"
    if host.exists(public_path):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"its public half {public_path} is: a new key would invalidate every service account token",
            remedy=f"put {key_path} back, or move {public_path} away and kb makes a new pair",
            code="sa-key-missing",
        )
    if is_external_ca(host, paths):
        raise HostError(
            f"the key {key_path} is not there",
            cause=f"with an external CA (no {paths.pki / 'ca.key'}) you have to provide the service account key",
            remedy=f"make it: openssl genrsa -out {key_path} 2048 && openssl pkey -in {key_path} -pubout -out {public_path}",
            code="sa-key-missing",
        )
    return Finding("issue", "there is none yet")


def is_public_half_in(pem: str, key: Key) -> bool:
    """Whether `pem`, such as sa.pub, contains the public half of `key`. It may hold several keys and certificates; kube-apiserver accepts them all."""
    for block in split_pem(pem):
        try:
            if block.label == "CERTIFICATE":
                found: object = x509.load_der_x509_certificate(block.content).public_key()
            elif block.is_private_key:
                found = parse_key(block.text).public_key()
            else:
                found = serialization.load_der_public_key(block.content)
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
            continue
        if is_pair(key, found):
            return True
    return False


def ensure_service_account_key(host: Host, paths: Paths, *, make_key: Callable[[], Key]) -> Finding:
    """Keep or create sa.key, and write sa.pub if it is missing. Raises the same errors as probe_service_account_key."""
    finding = probe_service_account_key(host, paths)
    if finding.action == "keep":
        return finding
    key = finding.key or _write_new_key(host, paths.pki / "sa.key", key=make_key())
    host.write_file(paths.pki / "sa.pub", public_key_to_pem(key), mode=0o600)
    return finding


def is_service_account_key_valid(host: Host, paths: Paths) -> bool:
    try:
        return probe_service_account_key(host, paths).action == "keep"
    except HostError:
        return False


def find_missing_keys(host: Host, paths: Paths, *, cluster: ClusterConfiguration) -> list[str]:
    """The names of the certificates, and `sa`, whose key is still missing in certificatesDir."""
    files = {spec.name: spec.key_path(paths) for spec in wanted_certs(cluster)}
    files["sa"] = paths.pki / "sa.key"
    return [name for name, path in files.items() if not host.exists(path)]


def _write_new_key(host: Host, path: Path, *, key: Key) -> Key:
    host.write_file(path, key_to_pem(key).reveal(), mode=0o600)
    return key


def write_keeping_mode(host: Host, path: Path, *, text: str, mode: int) -> bool:
    """Write a file; an existing one keeps its mode and owner."""
    return host.write_file(path, text, mode=mode, keeps=True)


# ---- shared errors


def _key_mismatch(path: Path, key_path: Path) -> HostError:
    return HostError(
        f"{path} and {key_path} do not belong together",
        cause="the certificate is for another key",
        remedy=f"put the matching pair there, or move both away (mv {path} {key_path} /root/) and kb makes a new pair",
        code="key-mismatch",
    )


def _other_ca(path: Path, key_path: Path, *, cert: x509.Certificate, ca: Ca) -> HostError:
    return HostError(
        f"the certificate {path} was not signed by {ca.path}",
        cause=f"its issuer is {cert.issuer.rfc4514_string()}; the CA is {ca.cert.subject.rfc4514_string()}"
        + (", with another key" if cert.issuer == ca.cert.subject else ""),
        remedy=f"put its CA at {ca.path}, or move both away (mv {path} {key_path} /root/) and kb makes a new pair",
        code="certificate-of-other-ca",
    )


def _not_yet_valid(cert: x509.Certificate, path: Path, *, now: datetime.datetime) -> HostError:
    return HostError(
        f"the certificate {path} is valid only from {_utc(cert.not_valid_before_utc)}",
        cause=f"this clock says {_utc(now)}",
        remedy="set the clock: timedatectl set-ntp true",
        code="certificate-not-yet-valid",
    )


def _external_ca_incomplete(ca: Ca, missing: Sequence[Path]) -> HostError:
    names = " and ".join(str(path) for path in missing)
    return HostError(
        f"there is no {names}",
        cause=f"the CA {ca.path} signs elsewhere (there is no key beside it), so kb cannot issue it",
        remedy=f"have your CA issue it and put it there; or put the CA's key at {ca.path.with_suffix('.key')}",
        code="external-ca-incomplete",
    )


def _utc(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
