"""Checks of the kubelet: its version, its flags, its service, and the resolver that it hands to pods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kubeup.config import kubelet_flags
from kubeup.diagnosis.checks.facts import (
    DOCTOR,
    ERROR,
    INIT,
    JOIN,
    WARNING,
    Finding,
    Findings,
    Node,
    address_or_none,
    read_or_empty,
)
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import crictl
from kubeup.paths import RESOLVED_CONF

with lazily:
    from kubeup.node import kubelet


def check_kubelet_version(node: Node) -> Findings:
    answer, version = node.kubelet_answer, node.kubelet_version
    wanted = node.config.cluster.kubernetes_version
    if answer.missing:
        yield Finding("KubeletVersion", ERROR, "there is no kubelet in PATH", f"install kubelet {wanted}")
    elif version is None:
        told = crictl.last_words(answer.stderr or answer.stdout)
        yield Finding(
            "KubeletVersion", ERROR, f"the kubelet does not print its version: {told}", f"install kubelet {wanted}"
        )
    elif version.minor < node.release.oldest_kubelet_minor:
        yield Finding(
            "KubeletVersion",
            ERROR,
            f"kubelet {version} is too old for a control plane {wanted} (1.{node.release.oldest_kubelet_minor} is the oldest)",
            f"install kubelet {wanted}",
        )
    elif version.minor > node.release.minor and node.workflow in (INIT, JOIN):
        yield Finding(
            "KubeletVersion",
            ERROR,
            f"kubelet {version} is newer than the control plane {wanted}",
            f"install kubelet {wanted}, or "
            + (f"--kubernetes-version {version}" if node.workflow == INIT else "upgrade the control plane first"),
        )


KUBELET_ENV_FILES = (Path("/etc/default/kubelet"), Path("/etc/sysconfig/kubelet"))
"""Files with an admin's own flags (KUBELET_EXTRA_ARGS), which the packages' drop-in reads."""
_NOT_PARSED = re.compile(
    r"unknown flag: --(?P<unknown>[\w-]+)|invalid argument \\*\".*?\\*\" for \\*\"(?:-\w, )?--(?P<invalid>[\w-]+)"
)


def check_kubelet_flags(node: Node) -> Findings:
    """Ask the installed kubelet whether it accepts its flags: it parses them all before it prints its version. kubeadm
    does not check this, and waits for a kubelet that crashes again and again."""
    for source, flags in _kubelet_flags(node):
        for name, value, is_known in find_unparsed(node.host, flags):
            gone = kubelet_flags.find_gone(name)
            what = f"does not take --{name}={value}" if is_known else f"has no flag --{name}"
            yield Finding(
                "KubeletFlags",
                ERROR,
                f"this kubelet ({node.kubelet_version}) {what}, which {source} gives",
                gone.remedy if gone and not is_known else f"correct it in {source}",
            )
        for refusal in (
            refusal
            for name, value in flags
            if name == kubelet_flags.LABELS_FLAG
            for refusal in kubelet_flags.find_refused_labels(value)
        ):
            yield Finding("KubeletFlags", ERROR, f"{refusal.message} ({source})", refusal.remedy)


def _kubelet_flags(node: Node) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """For each place: (where the flags are, (name, value) of each) of the flags that the kubelet will be started
    with."""
    if node.workflow == DOCTOR:
        path = node.paths.kubelet_flags_env
        args = kubelet.parse_flags_env(read_or_empty(node.host, str(path)))
        yield str(path), [(arg.name, arg.value) for arg in args]
    else:
        args = node.config.node.kubelet_extra_args
        yield "nodeRegistration.kubeletExtraArgs", [(arg.name, arg.value) for arg in args]
    for path in KUBELET_ENV_FILES:
        text = read_or_empty(node.host, str(path))
        yield str(path), [(arg.name, arg.value) for arg in kubelet.parse_flags_env(text, "KUBELET_EXTRA_ARGS")]


def find_unparsed(
    host: Host, flags: list[tuple[str, str]], *, program: str = "kubelet"
) -> Iterator[tuple[str, str, bool]]:
    """(name, value, whether the flag exists at all) of each flag that the kubelet `program` rejects. It names only the first, so
    the others are tried again without it."""
    left = list(flags)
    while left:
        words = [f"--{name}={value}" if value else f"--{name}" for name, value in left]
        answer = host.query([program, *words, "--version"], timeout_s=30)
        found = None if answer.ok or answer.missing else _NOT_PARSED.search(answer.stderr or answer.stdout)
        name = (found["unknown"] or found["invalid"]) if found else ""
        culprits = [flag for flag in left if kubelet_flags.normal_name(flag[0]) == kubelet_flags.normal_name(name)]
        if not found or not culprits:
            return  # success, or an error that is not about a flag: other checks examine that
        yield culprits[0][0], culprits[0][1], found["unknown"] is None
        left = [flag for flag in left if flag not in culprits]


def check_kubelet_unit(node: Node) -> Findings:
    """kubeadm only warns of a missing unit, and then waits four minutes for a kubelet that nothing starts."""
    if services.find(node.host) is services.OPENRC:
        yield from _check_openrc_kubelet(node)
    elif not node.units:
        yield Finding(
            "Service-kubelet",
            WARNING,
            "neither systemd nor OpenRC answers, so kb cannot start the kubelet",
            "start it yourself when kb waits for it and at every boot",
        )
    elif node.has_unit("kubelet.service", "LoadState", "not-found", "masked"):
        state = node.units["kubelet.service"]["LoadState"]
        if state == "not-found" and "kubelet-start" in node.mends and node.host.which("kubelet"):
            return  # kb writes the unit itself
        yield Finding(
            "Service-kubelet",
            ERROR,
            f"the unit kubelet.service is {'masked' if state == 'masked' else 'not there'}",
            "systemctl unmask kubelet"
            if state == "masked"
            else f"install it: {crictl.install_command(node.host, 'kubelet')}",
        )
    elif "kubelet-start" not in node.mends and not node.has_unit(
        "kubelet.service", "UnitFileState", "enabled", "enabled-runtime", "static", "generated"
    ):
        yield Finding(
            "Service-kubelet",
            WARNING,
            "the unit kubelet.service is not enabled: after a reboot this node stays down",
            "systemctl enable kubelet.service",
        )


def _check_openrc_kubelet(node: Node) -> Findings:
    """OpenRC needs a script, which comes with the kubelet's package."""
    if not node.host.exists(Path("/etc/init.d/kubelet")):
        text = f"{services.OPENRC.name_unit('kubelet')} is not there"
        remedy = f"install it: {crictl.install_command(node.host, 'kubelet', apk='kubelet-openrc')}"
        yield Finding("Service-kubelet", ERROR, text, remedy)
    elif "kubelet-start" not in node.mends and not node.host.exists(Path("/etc/runlevels/default/kubelet")):
        yield Finding(
            "Service-kubelet",
            WARNING,
            "the kubelet is in no runlevel of OpenRC: after a reboot this node stays down",
            services.OPENRC.say("enable", "kubelet"),
        )


def check_own_units(node: Node) -> Findings:
    """What kb runs as units of systemd cannot run where OpenRC does. Told before a cluster is made that lacks it."""
    if services.find(node.host) is not services.OPENRC:
        return
    if node.config.kb.pod_network.plugin == "bridge" and "pod-network" not in node.skipped:
        yield Finding(
            "OwnUnits",
            ERROR,
            "OpenRC runs this machine, and kb's own pod network needs systemd: what follows other nodes' routes is a unit of it",
            "use another network: --pod-network manifest, or --pod-network none and apply one",
        )
    if node.config.kb.load_balancer.is_local:
        yield Finding(
            "OwnUnits",
            ERROR,
            "OpenRC runs this machine, and kb's own load balancer needs systemd: what follows the API servers is a unit of it",
            "have another load balancer behind --control-plane-endpoint: --load-balancer none",
        )


OTHER_RESOLV_CONFS = (Path(RESOLVED_CONF), Path("/run/NetworkManager/no-stub-resolv.conf"))


def check_resolver(node: Node) -> Findings:
    """CoreDNS forwards to the name servers in the kubelet's resolv.conf; in a pod, a loopback address there means
    CoreDNS itself."""
    chosen = node.kubelet_setting("resolvConf", "resolv-conf")
    if chosen == "" or node.config.cluster.dns.disabled:
        return
    is_resolved = node.has_unit("systemd-resolved.service", "ActiveState", "active")
    path = Path(str(chosen)) if chosen else Path(RESOLVED_CONF) if is_resolved else Path("/etc/resolv.conf")
    servers = _read_nameservers(node.host, path)
    loops = [
        server for server in servers if (address := address_or_none(server.partition("%")[0])) and address.is_loopback
    ]
    if servers and not loops:
        return
    other = next((item for item in OTHER_RESOLV_CONFS if item != path and _is_good_resolv_conf(node.host, item)), None)
    remedy = f"resolvConf: {other} in the KubeletConfiguration" if other else f"put a real name server into {path}"
    is_there = node.host.exists(node.host.real_path(path))  # and not only a link to it
    if not is_there and (chosen or node.host.exists(node.paths.kubelet_config)):
        text = f"{path}, from which the kubelet makes that of pods, is not there: it can start no pod"
        yield Finding("Resolver", ERROR, text, f"have it written (systemctl start systemd-resolved), or: {remedy}")
        return
    text = (
        f"{path} names the loopback address {loops[0]}: CoreDNS would query itself, and stop"
        if loops
        else f"{path} contains no name server: CoreDNS would know no name outside the cluster"
    )
    yield Finding("Resolver", ERROR if loops else WARNING, text, remedy)


def _read_nameservers(host: Host, path: Path) -> list[str]:
    rows = [line.split() for line in read_or_empty(host, str(path)).splitlines()]
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def _is_good_resolv_conf(host: Host, path: Path) -> bool:
    servers = [address_or_none(server.partition("%")[0]) for server in _read_nameservers(host, path)]
    return bool(servers) and not any(server is None or server.is_loopback for server in servers)
