"""Checks of ClusterConfiguration: the components, etcd, the endpoint, validity periods, and the networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Optional

from kubeup import releases
from kubeup.addresses import split_host_port
from kubeup.config import types
from kubeup.config.choose import Address, Network, parse_address
from kubeup.config.problems import Problems, shorten, suggest
from kubeup.config.validate_fields import (
    CLUSTER,
    LABEL,
    check_absolute,
    check_args,
    check_choice,
    check_port,
    check_repository,
    check_sans,
    check_tag,
    is_subdomain,
    parse_cidr,
    url_scheme,
)
from kubeup.errors import UsageError

ALGORITHMS = ("RSA-2048", "RSA-3072", "RSA-4096", "ECDSA-P256", "ECDSA-P384")
PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)


def check_cluster(cluster: types.ClusterConfiguration, tree: Mapping[str, object], *, problems: Problems) -> None:
    """The rules of a ClusterConfiguration that need no other document."""
    release = check_version(problems, CLUSTER, version=cluster.kubernetes_version)
    if release:
        check_gates(cluster.feature_gates, release, problems=problems)
    check_algorithm(cluster.encryption_algorithm, release, problems=problems)
    _check_endpoint(cluster.control_plane_endpoint, problems)
    if not is_subdomain(cluster.networking.dns_domain):
        problems.fail(
            CLUSTER,
            "networking.dnsDomain",
            message=f"{shorten(cluster.networking.dns_domain)!r} is not a DNS domain",
            remedy="write a name such as cluster.local",
        )
    check_absolute(problems, CLUSTER, path="certificatesDir", value=cluster.certificates_dir)
    check_repository(problems, CLUSTER, path="imageRepository", value=cluster.image_repository)
    _check_validity(cluster, problems)
    check_sans(problems, CLUSTER, path="apiServer.certSANs", sans=cluster.api_server.cert_sans)
    for name, component in (
        ("apiServer", cluster.api_server),
        ("controllerManager", cluster.controller_manager),
        ("scheduler", cluster.scheduler),
        *([("etcd.local", cluster.local_etcd)] if cluster.local_etcd else []),
    ):
        _check_component(name, component, problems=problems)
    check_repository(problems, CLUSTER, path="dns.imageRepository", value=cluster.dns.image_repository)
    check_tag(problems, CLUSTER, path="dns.imageTag", value=cluster.dns.image_tag)
    _check_etcd(cluster, tree, problems=problems)


def check_version(
    problems: Problems, kind: str, *, version: str, path: str = "kubernetesVersion"
) -> Optional[releases.Release]:
    try:
        return releases.find_release(version)
    except UsageError as error:
        problems.fail(kind, path, message=str(error), remedy=error.remedy)
        return None


def check_gates(gates: Mapping[str, bool], release: releases.Release, *, problems: Problems) -> None:
    for gate in gates:
        if gate in release.feature_gates:
            continue
        elsewhere = [row.name for row in releases.RELEASES.values() if gate in row.feature_gates]
        if elsewhere:
            message = (
                f"Kubernetes {release.name} has no feature gate {gate} (known to {elsewhere[0]} to {elsewhere[-1]})"
            )
            remedy = "remove it"
        else:
            message, remedy = f"unrecognized feature-gate key: {shorten(gate)}", suggest(gate, release.feature_gates)
        problems.fail(CLUSTER, f"featureGates.{gate}", message=message, remedy=remedy)


def check_algorithm(name: str, release: Optional[releases.Release], *, problems: Problems) -> None:
    choices = ALGORITHMS if release is None or release.has_ecdsa_p384 else ALGORITHMS[:-1]
    check_choice(problems, CLUSTER, path="encryptionAlgorithm", value=name, choices=choices)


def _check_endpoint(endpoint: str, problems: Problems) -> None:
    if not endpoint:
        return
    path, example = "controlPlaneEndpoint", "write host:port such as api.example.com:6443"
    parts = split_host_port(endpoint)
    scheme = re.fullmatch(r"\[?([A-Za-z][A-Za-z0-9+.-]*)://([^\]/]*)[^\]]*\]?(:\d+)?", endpoint)
    if scheme:
        given, right = f"{scheme[1]}://{scheme[2]}", scheme[2] or "api.example.com:6443"
        problems.fail(
            CLUSTER, path, message=f"{shorten(given)!r} is a URL", remedy=f"write it without {scheme[1]}://: {right}"
        )
    elif parts is not None and parts[0] != parts[0].lower() and is_subdomain(parts[0].lower()):
        text = f"{shorten(parts[0])!r} has upper-case letters, which a DNS name in Kubernetes must not have"
        problems.fail(CLUSTER, path, message=text, remedy=f"write {parts[0].lower()}")
    elif parts is None or (parse_address(parts[0]) is None and not is_subdomain(parts[0])):
        problems.fail(
            CLUSTER, path, message=f"{shorten(endpoint)!r} is not a DNS name or IP address with a port", remedy=example
        )
    elif parts[1] is not None:
        check_port(problems, CLUSTER, path=path, port=parts[1])


_YEAR_S = types.ClusterConfiguration.certificate_validity_period_s
_DECADE_S = types.ClusterConfiguration.ca_certificate_validity_period_s


def _check_validity(cluster: types.ClusterConfiguration, problems: Problems) -> None:
    leaf_s, ca_s = cluster.certificate_validity_period_s, cluster.ca_certificate_validity_period_s
    for path, seconds in (("certificateValidityPeriod", leaf_s), ("caCertificateValidityPeriod", ca_s)):
        if seconds <= 0:
            problems.fail(
                CLUSTER,
                path,
                message="a certificate would be expired when it is issued",
                remedy="write a duration such as 8760h",
            )
    if leaf_s > _YEAR_S:
        problems.warn(
            CLUSTER, "certificateValidityPeriod", message="longer than a year: revoking a certificate is not possible"
        )
    if ca_s > _DECADE_S:
        problems.warn(CLUSTER, "caCertificateValidityPeriod", message="longer than ten years")
    if 0 < ca_s < leaf_s:
        problems.warn(
            CLUSTER,
            "caCertificateValidityPeriod",
            message="shorter than certificateValidityPeriod: the CA expires before its certificates",
        )


def _check_component(name: str, component: types.Component, *, problems: Problems) -> None:
    check_args(problems, CLUSTER, path=f"{name}.extraArgs", args=component.extra_args)
    names: set[str] = set()
    for index, volume in enumerate(component.extra_volumes):
        path = f"{name}.extraVolumes[{index}]"
        if not re.fullmatch(LABEL, volume.name[:64]) or len(volume.name) > 63:
            problems.fail(
                CLUSTER,
                f"{path}.name",
                message=f"{shorten(volume.name)!r} is not a volume's name",
                remedy="use a-z, 0-9 and -",
            )
        elif volume.name in names:
            problems.fail(
                CLUSTER, f"{path}.name", message=f"two volumes are called {volume.name}", remedy="rename one of them"
            )
        names.add(volume.name)
        check_absolute(problems, CLUSTER, path=f"{path}.hostPath", value=volume.host_path)
        if not volume.mount_path or ":" in volume.mount_path or "\0" in volume.mount_path:
            problems.fail(
                CLUSTER,
                f"{path}.mountPath",
                message=f"{shorten(volume.mount_path)!r} is not a path",
                remedy="write a path without a colon",
            )
        check_choice(problems, CLUSTER, path=f"{path}.pathType", value=volume.path_type, choices=PATH_TYPES)
    for index, env in enumerate(component.extra_envs):
        path = f"{name}.extraEnvs[{index}]"
        env_name = str(env.get("name") or "")
        if not env_name or "=" in env_name or not env_name.isprintable() or not env_name.isascii():
            problems.fail(
                CLUSTER,
                f"{path}.name",
                message=f"{shorten(env_name)!r} is not a variable's name",
                remedy="give it a name",
            )
        if env.get("value") and env.get("valueFrom"):
            problems.fail(
                CLUSTER, path, message="value and valueFrom are mutually exclusive", remedy="remove one of them"
            )


def _check_etcd(cluster: types.ClusterConfiguration, tree: Mapping[str, object], *, problems: Problems) -> None:
    if cluster.local_etcd:
        local = cluster.local_etcd
        check_absolute(problems, CLUSTER, path="etcd.local.dataDir", value=local.data_dir)
        check_repository(problems, CLUSTER, path="etcd.local.imageRepository", value=local.image_repository)
        check_tag(problems, CLUSTER, path="etcd.local.imageTag", value=local.image_tag)
        check_sans(problems, CLUSTER, path="etcd.local.serverCertSANs", sans=local.server_cert_sans)
        check_sans(problems, CLUSTER, path="etcd.local.peerCertSANs", sans=local.peer_cert_sans)
    if cluster.external_etcd:
        _check_external_etcd(cluster.external_etcd, problems)
    given = tree.get("etcd")
    if isinstance(given, Mapping) and given.get("local") is not None and given.get("external") is not None:
        problems.fail(
            CLUSTER, "etcd", message="etcd.local and etcd.external are mutually exclusive", remedy="remove one of them"
        )


def _check_external_etcd(etcd: types.ExternalEtcd, problems: Problems) -> None:
    path = "etcd.external"
    files = {"caFile": etcd.ca_file, "certFile": etcd.cert_file, "keyFile": etcd.key_file}
    if not etcd.endpoints:
        problems.fail(
            CLUSTER,
            f"{path}.endpoints",
            message="no endpoint",
            remedy="list the members' client URLs: https://host:2379",
        )
    own_http = () if etcd.http_endpoints == etcd.endpoints else etcd.http_endpoints
    for name, urls in (("endpoints", etcd.endpoints), ("httpEndpoints", own_http)):
        for index, url in enumerate(urls):
            scheme = url_scheme(url)
            place = f"{path}.{name}[{index}]"
            if scheme is None:
                problems.fail(
                    CLUSTER, place, message=f"{shorten(url)!r} is not a URL", remedy="write https://host:2379"
                )
            elif scheme == "http" and any(files.values()) and name == "endpoints":
                problems.fail(
                    CLUSTER,
                    place,
                    message="http, while certificates are given",
                    remedy="write https://, or remove the files",
                )
    for name, value in files.items():
        if value:
            check_absolute(problems, CLUSTER, path=f"{path}.{name}", value=value)
    if bool(etcd.cert_file) != bool(etcd.key_file):
        missing = "keyFile" if etcd.cert_file else "certFile"
        problems.fail(
            CLUSTER, path, message=f"certFile and keyFile go together, {missing} is missing", remedy=f"give {missing}"
        )
    if (etcd.cert_file or etcd.key_file) and not etcd.ca_file:
        problems.fail(CLUSTER, path, message="certFile and keyFile without caFile", remedy="give caFile")


# ---- networks


def check_networks(config: types.NodeConfig, problems: Problems) -> None:
    """Check the form and size of subnets; report overlaps."""
    cluster = config.cluster
    services = _check_subnet(
        problems, "networking.serviceSubnet", text=cluster.networking.service_subnet, check_size=_check_service_size
    )
    pods = _check_subnet(
        problems, "networking.podSubnet", text=cluster.networking.pod_subnet, check_size=_check_pod_size
    )
    for pod in pods:
        _check_node_mask(pod, cluster.controller_manager, problems=problems)
        for service in services:
            if pod.version == service.version and pod.overlaps(service):
                # kubeadm accepts this, and such clusters work: the controller-manager leaves out the Services' range
                problems.warn(
                    CLUSTER,
                    "networking.podSubnet",
                    message=f"{pod} overlaps the service subnet {service}: better use separate ranges",
                )
    path = "localAPIEndpoint.advertiseAddress"
    address = parse_address(config.local_api_endpoint.advertise_address)
    if address is None:
        return
    for name, nets in (("networking.serviceSubnet", services), ("networking.podSubnet", pods)):
        for net in nets:
            if address in net:
                text = f"{net} holds this node's own address {address}: pods do not reach the machines whose addresses are pods' too"
                problems.warn(CLUSTER, name, message=text)
    _check_families(address, services, pods=pods, problems=problems, path=path)


def _check_families(
    address: Address, services: list[Network], *, pods: list[Network], problems: Problems, path: str
) -> None:
    if services and services[0].version != address.version:
        problems.fail(
            CLUSTER,
            "networking.serviceSubnet",
            message=f"the first subnet is IPv{services[0].version}, the advertise address {address} is not: the API server refuses that",
            remedy=f"put an IPv{address.version} subnet first, or give an IPv{services[0].version} advertise address ({path})",
        )
    elif services and pods and services[0].version != pods[0].version:
        problems.fail(
            CLUSTER,
            "networking.podSubnet",
            message=f"the first subnet is IPv{pods[0].version}, the first service subnet IPv{services[0].version}",
            remedy="give both in the same order",
        )
    elif len(services) == 2 and len(pods) == 1:
        problems.warn(CLUSTER, "networking.podSubnet", message="services are dual-stack, pods are not")


def _check_subnet(problems: Problems, path: str, *, text: str, check_size: object) -> list[Network]:
    """The one or two networks of a subnet field; [] if it is empty or wrong (a wrong one is reported)."""
    if not text:
        return []
    nets: list[Network] = []
    parts = text.split(",")
    if len(parts) > 2:
        problems.fail(CLUSTER, path, message=f"{len(parts)} subnets", remedy="give one, or one IPv4 and one IPv6: a,b")
        return []
    for part in parts:
        net = parse_cidr(part)
        if net is None:
            problems.fail(
                CLUSTER,
                path,
                message=f"{shorten(part)!r} is not a subnet",
                remedy="write a CIDR such as 10.96.0.0/12 (no spaces)",
            )
            return []
        if str(net.network_address) != str(parse_address(part.partition("/")[0])):
            problems.warn(CLUSTER, path, message=f"{part} has bits after its prefix: it means {net}")
        nets.append(net)
        if callable(check_size):
            check_size(problems, path, net)
    if len(nets) == 2 and nets[0].version == nets[1].version:
        problems.fail(
            CLUSTER,
            path,
            message=f"two IPv{nets[0].version} subnets",
            remedy="dual-stack needs one IPv4 and one IPv6 subnet",
        )
    return nets


def _check_service_size(problems: Problems, path: str, net: Network) -> None:  # noqa: PLR0917
    host_bits = net.max_prefixlen - net.prefixlen
    if net.num_addresses < 10:
        problems.fail(
            CLUSTER,
            path,
            message=f"{net} has {net.num_addresses} addresses, services need 10 at least",
            remedy="take a larger one",
        )
    elif host_bits > 20:
        problems.fail(
            CLUSTER,
            path,
            message=f"{net} is too large: the API server handles 2^20 addresses",
            remedy=f"write /{net.max_prefixlen - 20} or longer",
        )


def _check_pod_size(problems: Problems, path: str, net: Network) -> None:  # noqa: PLR0917
    if net.num_addresses < 14:
        problems.fail(
            CLUSTER,
            path,
            message=f"{net} has {net.num_addresses} addresses, pods need 14 at least",
            remedy="take a larger one",
        )


def _check_node_mask(net: Network, manager: types.Component, *, problems: Problems) -> None:
    """The controller-manager splits the pod subnet into one piece per node, at most 65536."""
    if (manager.last_arg("allocate-node-cidrs") or "").lower() in ("false", "0", "f"):
        return
    flag = f"node-cidr-mask-size-ipv{net.version}"
    given = manager.last_arg(flag)
    mask = 24 if net.version == 4 else 64
    if given is not None:
        if not given.isdecimal() or not given.isascii() or not 1 <= int(given[:4]) <= net.max_prefixlen:
            problems.fail(
                CLUSTER,
                "controllerManager.extraArgs",
                message=f"{flag}={shorten(given)!r} is not a prefix length",
                remedy=f"write {mask}",
            )
            return
        mask = int(given)
    if net.prefixlen > mask:
        problems.fail(
            CLUSTER,
            "networking.podSubnet",
            message=f"{net} is smaller than one node's piece of it (/{mask})",
            remedy=f"take a larger one, or set {flag} in controllerManager.extraArgs",
        )
    elif mask - net.prefixlen > 16:
        problems.fail(
            CLUSTER,
            "networking.podSubnet",
            message=f"{net} in pieces of /{mask} makes more than 65536 nodes",
            remedy=f"write /{mask - 16} or longer, or set {flag} in controllerManager.extraArgs",
        )
