"""Validation of a configuration: kubeadm's rules, and those that kb adds because kubeadm finds the mistake too late.

Each check takes values and reports to Problems under the field's own path. No check raises or reads the machine.
Source: cmd/kubeadm/app/apis/kubeadm/validation/validation.go, apis/bootstraptoken/v1/utils.go, features/features.go
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kubeup import releases
from kubeup.config import kubelet_values, schema, types
from kubeup.config.problems import Problems, shorten
from kubeup.config.validate_cluster import check_cluster, check_networks
from kubeup.config.validate_fields import (
    CLUSTER,
    INIT,
    check_advertise_address,
    check_certificate_key,
    check_choice,
    check_port,
    check_timeouts,
    check_token,
    is_token,
)
from kubeup.config.validate_kb import check_balancer, check_kb
from kubeup.config.validate_node import check_node

_TOKEN_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
USAGES = ("signing", "authentication")


def check_init(config: types.NodeConfig, trees: Mapping[str, Mapping[str, object]], *, problems: Problems) -> None:
    """Every rule of an init, in the order of the documents."""
    found = releases.parse_version(config.cluster.kubernetes_version)
    check_node(problems, INIT, node=config.node, minor=found.minor if found else 0)
    endpoint = config.local_api_endpoint
    check_advertise_address(problems, INIT, path="localAPIEndpoint.advertiseAddress", value=endpoint.advertise_address)
    check_port(problems, INIT, path="localAPIEndpoint.bindPort", port=endpoint.bind_port)
    check_bootstrap_tokens(problems, config.bootstrap_tokens)
    check_certificate_key(problems, INIT, path="certificateKey", key=config.certificate_key)
    check_timeouts(problems, INIT, timeouts=config.timeouts)
    check_cluster(config.cluster, trees.get(CLUSTER, {}), problems=problems)
    check_networks(config, problems)
    check_kb(config.kb, problems)
    check_balancer(config, problems)
    for kind in schema.COMPONENT_GROUPS:
        _check_newer_fields(kind, trees.get(kind, {}), version=config.cluster.kubernetes_version, problems=problems)
    for path, what, remedy in kubelet_values.find_faults(trees.get("KubeletConfiguration", {})):
        if problems.is_kubeadm:
            problems.warn(
                "KubeletConfiguration", path, message=f"{what}, and the kubelet does not start with it; {remedy}"
            )
        else:
            problems.fail(
                "KubeletConfiguration", path, message=f"{what}, and the kubelet does not start with it", remedy=remedy
            )


def _check_newer_fields(kind: str, tree: Mapping[str, object], *, version: str, problems: Problems) -> None:
    """Warn of fields that are too new: a component silently ignores fields that it does not know."""
    found = releases.parse_version(version)
    for path, minor in schema.find_newer_fields(kind, tree, minor=found.minor) if found and tree else ():
        problems.warn(
            kind, path, message=f"Kubernetes {version} has no such field and leaves it out: it came with 1.{minor}"
        )


def check_bootstrap_tokens(problems: Problems, tokens: tuple[types.BootstrapToken, ...]) -> None:
    seen: dict[str, int] = {}
    for index, token in enumerate(tokens):
        path = f"bootstrapTokens[{index}]"
        check_token(problems, INIT, path=f"{path}.token", token=token.token)
        if token.token_id in seen and is_token(token.token.reveal()):
            problems.fail(
                INIT,
                f"{path}.token",
                message=f"its id is that of bootstrapTokens[{seen[token.token_id]}]",
                remedy="give another token",
            )
        seen.setdefault(token.token_id, index)
        if token.ttl_s is not None and token.ttl_s < 0:
            problems.fail(
                INIT,
                f"{path}.ttl",
                message="a negative duration",
                remedy="write 24h0m0s, or 0s for a token that never expires",
            )
        if token.expires and problems.is_given(INIT, f"{path}.ttl"):
            problems.fail(
                INIT, f"{path}.expires", message="ttl and expires are mutually exclusive", remedy="remove one of them"
            )
        for number, usage in enumerate(token.usages):
            check_choice(problems, INIT, path=f"{path}.usages[{number}]", value=usage, choices=USAGES)
        for number, group in enumerate(token.groups):
            if not _TOKEN_GROUP.fullmatch(group):
                problems.fail(
                    INIT,
                    f"{path}.groups[{number}]",
                    message=f"{shorten(group)!r} is not a group of bootstrap tokens",
                    remedy="write system:bootstrappers:name",
                )
        if "authentication" not in token.usages and token.groups:
            problems.fail(
                INIT, f"{path}.groups", message="groups need the usage authentication", remedy="add it to usages"
            )
