"""Checks of ports, files and folders: what must be free, and what another cluster left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.addresses import port_of
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings, Node, read_or_empty
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.node.etcd_data import OWN_PREFIX
from kubeup.yaml_files import name_of


@frozen
class Port:
    """A port of a control-plane node. The program may use it if kb created `made_by`."""

    number: int
    program: str
    address: str
    made_by: Path


def control_plane_ports(node: Node) -> tuple[Port, ...]:
    config, paths = node.config, node.paths
    advertised = config.local_api_endpoint.advertise_address
    cluster = config.cluster
    ports = [
        Port(
            config.local_api_endpoint.bind_port,
            "kube-apiserver",
            cluster.api_server.last_arg("bind-address") or advertised,
            paths.manifest("kube-apiserver"),
        ),
        Port(
            10259,
            "kube-scheduler",
            cluster.scheduler.last_arg("bind-address") or "127.0.0.1",
            paths.manifest("kube-scheduler"),
        ),
        Port(
            10257,
            "kube-controller-manager",
            cluster.controller_manager.last_arg("bind-address") or "127.0.0.1",
            paths.manifest("kube-controller-manager"),
        ),
    ]
    return tuple(ports)


def check_control_plane_ports(node: Node) -> Findings:
    return _check_ports(node, control_plane_ports(node))


def check_kubelet_port(node: Node) -> Findings:
    address = str(node.kubelet_setting("address", "address") or "")
    return _check_ports(node, (Port(10250, "kubelet", address, node.paths.kubelet_config),))


def check_etcd_ports(node: Node) -> Findings:
    if node.config.cluster.local_etcd is None:
        return ()
    advertised = node.config.local_api_endpoint.advertise_address
    manifest = node.paths.manifest("etcd")
    return _check_ports(node, (Port(2379, "etcd", advertised, manifest), Port(2380, "etcd", advertised, manifest)))


def check_balancer_ports(node: Node) -> Findings:
    """The load balancer's two ports on loopback, if one is configured."""
    balancer, endpoint = node.config.kb.load_balancer, node.config.cluster.control_plane_endpoint
    if not balancer.is_local:
        return ()
    manifest = node.paths.manifest("kb-load-balancer")
    numbers = (port_of(endpoint), balancer.health_port)
    found = _check_ports(node, [Port(number, "haproxy", "127.0.0.1", manifest) for number in numbers])
    return [replace(finding, name=f"LoadBalancer{finding.name}") for finding in found]


def _check_ports(node: Node, ports: Iterable[Port]) -> Findings:
    for port in ports:
        holder = node.host.port_holder(port.number, "" if node.release.probe_ports_bind_all else port.address)
        if holder is None or _is_own_process(node, port, holder=holder):
            continue
        pid = re.search(r"pid (\d+)", holder)
        remedy = (
            f"see it with: ps -fp {pid.group(1)}; then stop it" if pid else f"find it: ss -ltnp sport = :{port.number}"
        )
        if holder.startswith(port.program[:15]):
            remedy = f"if the cluster that it belongs to is no longer needed: {_plan_removal(node)[1]}"
        yield Finding(
            f"Port-{port.number}",
            ERROR,
            f"port {port.number}, which {port.program} needs, is in use by {holder}",
            remedy,
        )


def _is_own_process(node: Node, port: Port, *, holder: str) -> bool:
    """Whether an unfinished run of kb started it. The kernel keeps only 15 characters of a program's name."""
    return node.owns(port.made_by) and holder.partition(" (pid ")[0] == port.program[:15]


def check_manifests(node: Node) -> Findings:
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
    return _check_available(node, [node.paths.manifest(name) for name in names])


def check_joined(node: Node) -> Findings:
    """A node that has joined a cluster has these files."""
    names = ("kubelet.conf", "bootstrap-kubelet.conf")
    files = [node.paths.kubeconfig(name) for name in names]
    if node.config.join and not node.config.is_control_plane:
        files.append(Path(node.config.join.ca_cert_path))  # a control plane may have received it together with its key
    return _check_available(node, files)


def _check_available(node: Node, files: Iterable[Path]) -> Findings:
    for path in files:
        if node.host.exists(path) and not node.owns(path):
            maker, removal = _plan_removal(node, path)
            yield Finding(
                f"FileAvailable-{name_of(path)}",
                ERROR,
                f"{path} already exists: {maker}",
                f"if it is no longer needed: {removal}",
            )


_OTHER_PRODUCTS = (
    ("/etc/rancher/k3s", "k3s", "k3s-uninstall.sh"),
    ("/etc/rancher/rke2", "rke2", "rke2-uninstall.sh"),
    ("/etc/k0s", "k0s", "k0s reset"),
)


def _plan_removal(node: Node, path: Optional[Path] = None) -> tuple[str, str]:
    """Whose cluster this node belongs to, as far as its files tell, and how to remove it: kb reset would refuse.

    With a path: who created that file.
    """
    for folder, product, removal in _OTHER_PRODUCTS:
        if node.host.exists(Path(folder)):
            return f"this node belongs to {product} ({folder} exists)", removal
    text = read_or_empty(node.host, str(path or node.paths.manifest("kube-apiserver")))
    if node.host.exists(node.paths.kubelet_flags_env) or "kubeadm.kubernetes.io/" in text:
        maker = "kubeadm made this node part of a cluster (or a kb whose state.json is gone)"
        return (
            maker,
            "kubeadm reset (it removes that cluster's data from this node); to go on with it as it is: kb adopt",
        )
    # not in the same folder: the kubelet runs every file there, whatever its suffix
    removal = f"mv {path} /root/" if path else "stop it with the tools of the cluster that it belongs to"
    return "neither kb nor kubeadm created it", removal


def check_etcd_folder(node: Node) -> Findings:
    etcd = node.config.cluster.local_etcd
    if etcd is None or node.owns(node.paths.manifest("etcd")):
        return
    folder = Path(etcd.data_dir)
    name = f"DirAvailable-{name_of(folder)}"
    try:
        # the root of a file system; and what a restore keeps there if the folder is one
        inside = [
            name for name in node.host.list_dir(folder) if name != "lost+found" and not name.startswith(OWN_PREFIX)
        ]
    except HostError as error:
        yield Finding(name, ERROR, f"{folder} cannot be opened ({error.cause})", error.remedy)
        return
    if inside:
        what = "the data of an etcd" if "member" in inside else ", ".join(inside[:3])
        yield Finding(
            name, ERROR, f"{folder} is not empty: it holds {what}", f"keep it elsewhere: mv {folder} {folder}.old"
        )
