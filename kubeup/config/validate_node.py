"""Checks of nodeRegistration, which init and join share."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kubeup import releases
from kubeup.config import kubelet_flags, types
from kubeup.config.problems import Problems, shorten
from kubeup.config.validate_fields import (
    MAX_NODE_NAME,
    QUALIFIED_NAME,
    TEMPLATE,
    check_args,
    check_choice,
    check_ignored,
    check_socket,
    is_subdomain,
    shorter_name,
)

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def check_node(problems: Problems, kind: str, *, node: types.NodeRegistration, minor: int = 0) -> None:
    """Check a nodeRegistration. minor: the cluster's, if known."""
    path = "nodeRegistration"
    if is_subdomain(node.name) and len(node.name) > MAX_NODE_NAME:
        problems.fail(
            kind,
            f"{path}.name",
            message=f"{shorten(node.name)!r} has {len(node.name)} characters: the kubelet could not register it, since it is the value of "
            f"the label kubernetes.io/hostname, which has {MAX_NODE_NAME} at most",
            remedy=f"give a shorter one: --node-name {shorter_name(node.name)}",
        )
    elif TEMPLATE.search(node.name):
        problems.fail(
            kind,
            f"{path}.name",
            message=f"{shorten(node.name)!r} is an unrendered template",
            remedy="have the tool that writes the file render it, or give the name: --node-name NAME",
        )
    elif not is_subdomain(node.name):
        good = re.sub(r"[^a-z0-9.-]+", "-", node.name.lower()).strip("-.")
        remedy = f"give --node-name {good}" if good and is_subdomain(good) else "give a name of a-z, 0-9, - and ."
        problems.fail(kind, f"{path}.name", message=f"{shorten(node.name)!r} cannot be a node's name", remedy=remedy)
    elif node.name == "localhost":
        problems.warn(
            kind, f"{path}.name", message="the node is called localhost, as every machine is: give --node-name"
        )
    check_socket(problems, kind, path=f"{path}.criSocket", value=node.cri_socket)
    for index, taint in enumerate(node.taints or ()):
        check_choice(problems, kind, path=f"{path}.taints[{index}].effect", value=taint.effect, choices=TAINT_EFFECTS)
        if not QUALIFIED_NAME.fullmatch(taint.key):
            problems.fail(
                kind,
                f"{path}.taints[{index}].key",
                message=f"{shorten(taint.key)!r} is not a taint's key",
                remedy="write name or domain/name",
            )
    check_args(problems, kind, path=f"{path}.kubeletExtraArgs", args=node.kubelet_extra_args)
    _check_kubelet_args(problems, kind, path=f"{path}.kubeletExtraArgs", args=node.kubelet_extra_args, minor=minor)
    check_ignored(problems, kind, path=f"{path}.ignorePreflightErrors", names=node.ignore_preflight_errors)
    check_choice(problems, kind, path=f"{path}.imagePullPolicy", value=node.image_pull_policy, choices=PULL_POLICIES)


def _check_kubelet_args(problems: Problems, kind: str, *, path: str, args: Iterable[types.Arg], minor: int) -> None:
    """Report flags that make the kubelet exit. A flag that the cluster's older kubelets may still have is only a
    warning: the node's preflight check asks the kubelet itself."""
    oldest = (releases.RELEASES.get(minor) or releases.RELEASES[min(releases.RELEASES)]).oldest_kubelet_minor
    for index, arg in enumerate(args):
        if kubelet_flags.normal_name(arg.name) == kubelet_flags.LABELS_FLAG:
            for refusal in kubelet_flags.find_refused_labels(arg.value):
                _refuse(problems, kind, place=f"{path}[{index}].value", refusal=refusal, is_sure=True)
        gone = kubelet_flags.find_gone(arg.name)
        if gone and gone.since <= max(oldest, minor):
            _refuse(
                problems,
                kind,
                place=f"{path}[{index}].name",
                refusal=gone.refusal(arg.name),
                is_sure=gone.since <= oldest,
            )


def _refuse(problems: Problems, kind: str, *, place: str, refusal: kubelet_flags.Refusal, is_sure: bool) -> None:
    """Report a refused argument; only a warning under the name kubeadm, which does not check it."""
    if is_sure and not problems.is_kubeadm:
        problems.fail(kind, place, message=refusal.message, remedy=refusal.remedy)
    else:
        problems.warn(kind, place, message=f"{refusal.message}; {refusal.remedy}")
