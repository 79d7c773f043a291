"""The phases of install: what a machine needs before it can be a node, and what kubeadm leaves to its admin."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from kubeup.engine.run import BareRun, Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.yaml_files import fill_template

with lazily:
    from kubeup.config import choose

SYSCTLS = Path("/etc/sysctl.d/90-kb.conf")
MODULES = Path("/etc/modules-load.d/kb.conf")
ROUTE_UNIT = "kb-service-route.service"
BRIDGE_NF = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_HEADER = "# Written by kb: a Kubernetes node forwards packets between its pods and to other nodes.\n"


def write_sysctls(ctx: Run) -> Outputs:
    """IP forwarding for the families in use; and, for a bridge between pods, that kube-proxy's rules see its packets.

    Raises HostError (sysctl-refused) where the kernel does not take a value.
    """
    if _wants_bridge(ctx) and not ctx.host.exists(BRIDGE_NF):
        done = ctx.host.run(["modprobe", "br_netfilter"])
        if done.ok:
            ctx.host.write_file(MODULES, _HEADER + "br_netfilter\n")
        else:
            ctx.report.warn(f"the kernel module br_netfilter cannot be loaded ({done.stderr.strip()}): a pod may not reach a Service whose pod is on the same node")  # fmt: skip
    wanted = _sysctls(ctx)
    ctx.host.write_file(SYSCTLS, _HEADER + "".join(f"{key} = 1\n" for key in wanted))
    for key in wanted:
        if _value(ctx, key) == "1":
            continue
        done = ctx.host.run(["sysctl", "-w", f"{key}=1"])
        if not done.ok:
            raise HostError(
                f"{key} cannot be set to 1",
                cause=done.stderr.strip() or f"sysctl ended with code {done.code}",
                remedy=f"set it where the kernel allows it (a container's host, for one): sysctl -w {key}=1; then run the command again",
                code="sysctl-refused",
            )
    _ensure_service_route(ctx)
    return None


def sysctls_are_set(ctx: Run) -> bool:
    is_set = all(_value(ctx, key) == "1" for key in _sysctls(ctx)) and ctx.host.exists(SYSCTLS)
    return is_set and not _unroutable_services(ctx)


def _unroutable_services(ctx: Run) -> list[str]:
    """The service networks to which the kernel has no route at all, as on a machine without a default route.

    The bridge pod network looks after that itself (kubeup/network/route_keeper.py), and takes its route back when it is needed no
    more; none of the others does."""
    if ctx.config.kb.pod_network.plugin == "bridge":
        return []
    found = []
    for cidr in ctx.config.cluster.service_cidrs():
        address = str(ipaddress.ip_network(cidr, strict=False)[1])
        answer = ctx.host.query(["ip", "route", "get", address])
        if not answer.ok and "unreachable" in answer.stderr:
            found.append(cidr)
    return found


def _ensure_service_route(ctx: Run) -> None:
    """A route by this node's own interface, now and after a reboot, where there is none."""
    cidrs = _unroutable_services(ctx)
    if not cidrs:
        return
    own = ctx.config.local_api_endpoint.advertise_address
    device = next(
        (
            interface.name
            for interface in choose.read_interfaces(ctx.host) or []
            if any(str(address) == own for address in interface.addresses)
        ),
        "",
    )
    if not device:
        ctx.report.warn(
            f"there is no route to Services ({', '.join(cidrs)}), and no interface has {own}: add a default route"
        )
        return
    routes = [["ip", "route", "replace", cidr, "dev", device] for cidr in cidrs]
    program = ctx.host.which("ip") or "/sbin/ip"
    commands = "\n".join(f"ExecStart={program} {' '.join(words[1:])}" for words in routes)
    ctx.host.write_file(ctx.paths.systemd / ROUTE_UNIT, fill_template(f"systemd/{ROUTE_UNIT}", {"commands": commands}))
    ctx.host.run(["systemctl", "daemon-reload"])
    ctx.host.run(["systemctl", "enable", ROUTE_UNIT])
    for words in routes:
        ctx.host.run(words)
    ctx.report.note(
        f"this machine has no default route: {', '.join(cidrs)} is routed to {device}, so that Services can be reached"
    )


def remove_service_route(ctx: BareRun) -> None:
    """What the unit added, and the unit's link; the unit itself is in the journal."""
    unit = ctx.paths.systemd / ROUTE_UNIT
    if not ctx.host.exists(unit):
        return
    for line in ctx.host.read_text(unit).splitlines():
        words = line.partition("ExecStart=")[2].split()
        if "replace" in words:
            ctx.host.run(["ip", *("delete" if word == "replace" else word for word in words[1:])])
    ctx.host.run(["systemctl", "disable", ROUTE_UNIT])


def has_own_sysctls(ctx: Run) -> bool:
    """Whether this node's file is one that kb wrote."""
    return ctx.host.exists(SYSCTLS) and ctx.host.read_text(SYSCTLS).startswith(_HEADER)


def _sysctls(ctx: Run) -> list[str]:
    cidrs = [*ctx.config.cluster.service_cidrs(), *ctx.config.cluster.pod_cidrs()]
    cidrs.append(ctx.config.local_api_endpoint.advertise_address)
    keys = []
    if any(":" not in cidr for cidr in cidrs):
        keys.append("net.ipv4.ip_forward")
    if any(":" in cidr for cidr in cidrs):
        keys += ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.default.forwarding"]
    if _wants_bridge(ctx) and ctx.host.exists(BRIDGE_NF):
        keys.append("net.bridge.bridge-nf-call-iptables")
    return keys


def _wants_bridge(ctx: Run) -> bool:
    return ctx.config.kb.pod_network.plugin == "bridge" and ctx.host.mode != "root"


def _value(ctx: Run, key: str) -> str:
    path = Path("/proc/sys") / key.replace(".", "/")
    return ctx.host.read_text(path).strip() if ctx.host.exists(path) else ""


FORWARDING = Act(
    do=write_sysctls,
    probe=sysctls_are_set,
    reads=("cluster.networking", "kb.pod_network.plugin"),
    makes=("/etc/sysctl.d/90-kb.conf",),
)
