"""What the tests of certificates share: authorities and leaves, made in a moment."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from kubeup.node import certificates, private_keys
from tests.fake_host import FakeHost

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
YEAR = 365 * 86400
EKU = x509.ExtendedKeyUsage


def new_ca(
    common_name: str = "kubernetes", *, algorithm: str = "ECDSA-P256", seconds: int = 10 * YEAR
) -> certificates.Ca:
    key = private_keys.generate_key(algorithm)
    return certificates.Ca(
        certificates.issue_ca_cert(common_name, key, validity=certificates.plan_validity(NOW, seconds)),
        key,
        Path("/pki/ca.crt"),
    )


CLIENT = certificates.Subject("x", is_client=True)


def new_leaf(ca: certificates.Ca, subject: certificates.Subject = CLIENT, **kwargs: Any) -> x509.Certificate:
    kwargs.setdefault("key", private_keys.generate_key("ECDSA-P256"))
    kwargs.setdefault("validity", certificates.plan_validity(NOW, YEAR))
    return certificates.issue_leaf_cert(subject, kwargs["key"], ca=ca, validity=kwargs["validity"])


def put(host: FakeHost, base: str, *, cert: Any = None, key: Any = None) -> None:
    if cert is not None:
        host.files[f"/etc/kubernetes/pki/{base}.crt"] = certificates.cert_to_pem(cert).encode()
    if key is not None:
        host.files[f"/etc/kubernetes/pki/{base}.key"] = private_keys.key_to_pem(key).reveal().encode()


# ---- the shape of certificates


def shape(cert: x509.Certificate) -> list[tuple[str, bool]]:
    return [(type(extension.value).__name__, extension.critical) for extension in cert.extensions]


def usages(cert: x509.Certificate) -> list[str]:
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    flags = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return [flag for flag in (*flags, "key_cert_sign", "crl_sign") if getattr(usage, flag)]
