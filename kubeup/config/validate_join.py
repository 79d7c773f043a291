"""Checks of JoinConfiguration, ResetConfiguration and UpgradeConfiguration."""

from __future__ import annotations

from kubeup.addresses import split_host_port
from kubeup.config import types
from kubeup.config.choose import is_open_address
from kubeup.config.problems import Problems, shorten
from kubeup.config.validate_fields import (
    JOIN,
    RESET,
    UPGRADE,
    check_absolute,
    check_advertise_address,
    check_certificate_key,
    check_choice,
    check_ignored,
    check_port,
    check_socket,
    check_timeouts,
    check_token,
)
from kubeup.config.validate_node import PULL_POLICIES, check_node

UNMOUNT_FLAGS = ("MNT_FORCE", "MNT_DETACH", "MNT_EXPIRE", "UMOUNT_NOFOLLOW")


def check_join(join: types.JoinConfiguration, problems: Problems, *, needs_discovery: bool = True) -> None:
    """Check a JoinConfiguration. needs_discovery: False for a node that is already a member and finds its cluster
    through kubelet.conf."""
    check_node(problems, JOIN, node=join.node)
    check_timeouts(problems, JOIN, timeouts=join.timeouts)
    check_absolute(problems, JOIN, path="caCertPath", value=join.ca_cert_path)
    if not join.ca_cert_path.endswith(".crt"):
        problems.fail(
            JOIN,
            "caCertPath",
            message=f"{shorten(join.ca_cert_path)!r} does not end with .crt",
            remedy="write a .crt path",
        )
    if needs_discovery or join.discovery.bootstrap_token or join.discovery.file:
        _check_discovery(join.discovery, problems)
    if join.control_plane:
        check_certificate_key(
            problems, JOIN, path="controlPlane.certificateKey", key=join.control_plane.certificate_key
        )
        endpoint = join.control_plane.local_api_endpoint
        if endpoint:
            path = "controlPlane.localAPIEndpoint"
            check_port(problems, JOIN, path=f"{path}.bindPort", port=endpoint.bind_port)
            if not is_open_address(endpoint.advertise_address):
                check_advertise_address(
                    problems, JOIN, path=f"{path}.advertiseAddress", value=endpoint.advertise_address
                )


def _check_discovery(discovery: types.Discovery, problems: Problems) -> None:
    token = discovery.bootstrap_token
    if (token is None) == (not discovery.file):
        word = "neither" if token is None else "both"
        problems.fail(
            JOIN,
            "discovery",
            message=f"{word} of discovery.bootstrapToken and discovery.file",
            remedy="give exactly one of the two",
        )
    if token is not None:
        path = "discovery.bootstrapToken"
        check_token(problems, JOIN, path=f"{path}.token", token=token.token)
        parts = split_host_port(token.api_server_endpoint)
        if parts is None or not parts[0] or parts[1] is None:
            problems.fail(
                JOIN,
                f"{path}.apiServerEndpoint",
                message=f"{shorten(token.api_server_endpoint)!r} is not host:port",
                remedy="write the control plane's address: 10.0.0.10:6443",
            )
        if not token.ca_cert_hashes and not token.unsafe_skip_ca_verification:
            problems.fail(
                JOIN,
                f"{path}.caCertHashes",
                message="without the CA's hash nothing proves that this is your cluster",
                remedy="take the join command that a control plane prints: kb token create --print-join-command",
            )
    if discovery.file and "://" in discovery.file and not discovery.file.startswith("https://"):
        problems.fail(
            JOIN,
            "discovery.file.kubeConfigPath",
            message="neither a path nor an https URL",
            remedy="give one of the two",
        )
    if discovery.tls_bootstrap_token:
        check_token(problems, JOIN, path="discovery.tlsBootstrapToken", token=discovery.tls_bootstrap_token)


def check_reset(reset: types.ResetConfiguration, problems: Problems) -> None:
    check_absolute(problems, RESET, path="certificatesDir", value=reset.certificates_dir)
    check_socket(problems, RESET, path="criSocket", value=reset.cri_socket)
    check_ignored(problems, RESET, path="ignorePreflightErrors", names=reset.ignore_preflight_errors)
    for index, flag in enumerate(reset.unmount_flags):
        check_choice(problems, RESET, path=f"unmountFlags[{index}]", value=flag, choices=UNMOUNT_FLAGS)
    check_timeouts(problems, RESET, timeouts=reset.timeouts)


def check_upgrade(upgrade: types.UpgradeConfiguration, problems: Problems) -> None:
    for name, section in (("apply", upgrade.apply), ("node", upgrade.node)):
        policy = section.image_pull_policy
        check_choice(problems, UPGRADE, path=f"{name}.imagePullPolicy", value=policy, choices=PULL_POLICIES)
        check_ignored(problems, UPGRADE, path=f"{name}.ignorePreflightErrors", names=section.ignore_preflight_errors)
        if section.patches_directory:
            check_absolute(problems, UPGRADE, path=f"{name}.patches.directory", value=section.patches_directory)
    if upgrade.diff.context_lines < 0:
        problems.fail(UPGRADE, "diff.contextLines", message="a negative number of lines", remedy="write 3")
    check_timeouts(problems, UPGRADE, timeouts=upgrade.timeouts)
