"""Checks of KbConfiguration, kb's own document."""

from __future__ import annotations

import re

from kubeup.addresses import split_host_port
from kubeup.config import presets, types
from kubeup.config.choose import parse_address
from kubeup.config.problems import Problems, shorten
from kubeup.config.validate_fields import (
    CLUSTER,
    KB,
    REPOSITORY,
    TAG,
    check_choice,
    check_port,
    check_repository,
    url_scheme,
)

PACKAGE_SOURCES = ("auto", "bundle", "mirror", "download", "apt", "dnf", "none")
PLUGINS = ("bridge", "manifest", "none")
BACKENDS = ("auto", "route", "vxlan")
BALANCER_MODES = ("local", "none")
_IMAGE = re.compile(rf"{REPOSITORY.pattern}(?::{TAG.pattern})?(?:@sha256:[0-9a-f]{{64}})?")


def check_kb(kb: types.KbConfiguration, problems: Problems) -> None:
    _check_network(kb.pod_network, problems)
    balancer = kb.load_balancer
    check_choice(problems, KB, path="loadBalancer.mode", value=balancer.mode, choices=BALANCER_MODES)
    check_port(problems, KB, path="loadBalancer.healthPort", port=balancer.health_port)
    if balancer.image and not _IMAGE.fullmatch(balancer.image):
        problems.fail(
            KB,
            "loadBalancer.image",
            message=f"{shorten(balancer.image)!r} is not an image name",
            remedy="write REGISTRY/NAME:TAG",
        )
    _check_sources(kb, problems)
    if not 0 <= kb.soak_s <= 3600:
        problems.fail(KB, "soak", message="the soak lasts from 0s to 1h", remedy="write 10s")


def _check_network(network: types.PodNetwork, problems: Problems) -> None:
    check_choice(problems, KB, path="podNetwork.plugin", value=network.plugin, choices=PLUGINS)
    check_choice(problems, KB, path="podNetwork.backend", value=network.backend, choices=BACKENDS)
    if network.plugin == "manifest" and not network.manifest:
        problems.fail(
            KB,
            "podNetwork.manifest",
            message="plugin manifest without a manifest",
            remedy="give a path or URL: --pod-network-manifest",
        )
    if network.manifest and network.plugin != "manifest":
        problems.fail(
            KB,
            "podNetwork.manifest",
            message=f"a manifest beside plugin {shorten(network.plugin)}",
            remedy="write plugin: manifest, or remove it",
        )
    check_repository(problems, KB, path="podNetwork.imageRepository", value=network.image_repository)
    if network.image_repository and network.plugin != "manifest":
        problems.fail(
            KB,
            "podNetwork.imageRepository",
            message=f"plugin {shorten(network.plugin)} has no images",
            remedy="write plugin: manifest, or remove it",
        )
    if network.mtu and not 576 <= network.mtu <= 65535:
        problems.fail(
            KB,
            "podNetwork.mtu",
            message=f"{network.mtu} cannot be an MTU",
            remedy="write 0 (detected) or 576 to 65535",
        )


def check_balancer(config: types.NodeConfig, problems: Problems) -> None:
    """Check what a load balancer on every node needs: an endpoint with its own name, and a port that is free there."""
    balancer, path = config.kb.load_balancer, "controlPlaneEndpoint"
    parts = split_host_port(config.cluster.control_plane_endpoint)
    if not balancer.is_local or parts is None:
        return
    host, port = parts
    if parse_address(host) is not None:
        problems.fail(
            CLUSTER,
            path,
            message=f"{host} is an address, and loadBalancer.mode local needs a name that leads to 127.0.0.1 on every node",
            remedy="write a name such as kb-api.cluster.local:7443, or leave it out",
        )
    bind_port = config.local_api_endpoint.bind_port
    if port == bind_port:
        problems.fail(
            CLUSTER,
            path,
            message=f"port {port} is the API server's own, and loadBalancer.mode local listens on the same node",
            remedy=f"take another port for the endpoint, such as {host}:7443",
        )
    if balancer.health_port in (port, bind_port):
        problems.fail(
            KB,
            "loadBalancer.healthPort",
            message=f"{balancer.health_port} is the port of the API server or its endpoint",
            remedy=f"write another one, such as {types.LoadBalancer.health_port}",
        )


def _check_sources(kb: types.KbConfiguration, problems: Problems) -> None:
    mirror, packages = kb.mirror, kb.packages
    if mirror.endpoint and url_scheme(mirror.endpoint) is None:
        text = f"{shorten(mirror.endpoint)!r} is not a URL"
        problems.fail(KB, "mirror.endpoint", message=text, remedy="write http://10.0.0.11:5000")
    if mirror.ca_hash and not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", mirror.ca_hash):
        text = f"{shorten(mirror.ca_hash)!r} is not a pin of a CA"
        problems.fail(
            KB, "mirror.caHash", message=text, remedy="write sha256: and 64 hexadecimal digits, as kb init printed it"
        )
    if mirror.ca_hash and not mirror.endpoint.startswith("https://"):
        problems.fail(
            KB, "mirror.caHash", message="a pin without an https mirror", remedy="give mirror.endpoint as https://..."
        )
    check_choice(problems, KB, path="packages.source", value=packages.source, choices=PACKAGE_SOURCES)
    if packages.source == "bundle" and not kb.bundle:
        problems.fail(KB, "packages.source", message="bundle, and no bundle is named", remedy="give one: --bundle FILE")
    if packages.source == "mirror" and not mirror.endpoint:
        problems.fail(KB, "packages.source", message="mirror, and no mirror is named", remedy="give one: --mirror URL")
    if packages.preset and packages.preset not in presets.list_presets():
        known = ", ".join(presets.list_presets())
        problems.fail(
            KB,
            "packages.preset",
            message=f"there is no preset {shorten(packages.preset)!r}",
            remedy=f"write one of {known}",
        )
    if kb.verify_key and not kb.bundle:
        problems.fail(KB, "verifyKey", message="a key without a bundle", remedy="give the bundle too: --bundle FILE")
    if kb.air_gapped and packages.source in ("download", "apt", "dnf"):
        problems.fail(
            KB, "packages.source", message=f"{packages.source} beside airGapped", remedy="write bundle, mirror or none"
        )
