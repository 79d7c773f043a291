"""The hash with which a user pins a cluster's CA (kubeadm's --discovery-token-ca-cert-hash)."""

from __future__ import annotations

import re

from kubeup.errors import UsageError


def parse_ca_cert_hash(text: str) -> str:
    """A user's pin in lower case. Raises UsageError (bad-ca-cert-hash)."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text.lower()):
        raise UsageError(
            f"CA certificate hash {text!r}",
            cause="a hash is `sha256:` and 64 hex digits",
            remedy="take it from the output of `kb token create --print-join-command` on a control plane node",
            code="bad-ca-cert-hash",
        )
    return text.lower()
