"""The phases of install: what a machine needs before it can be a node, and what kubeadm leaves to its admin."""

from __future__ import annotations

from pathlib import Path

from kubeup.errors import HostError
from kubeup.workflow import Context, Outputs

SYSCTLS = Path("/etc/sysctl.d/90-kb.conf")
MODULES = Path("/etc/modules-load.d/kb.conf")
BRIDGE_NF = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_HEADER = "# Written by kb: a Kubernetes node forwards packets between its pods and to other nodes.\n"


def write_sysctls(ctx: Context) -> Outputs:
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
                remedy=f"set it where the kernel allows it (a container's host, for one): sysctl -w {key}=1; then: kb init",
                code="sysctl-refused",
            )
    return None


def sysctls_are_set(ctx: Context) -> bool:
    return all(_value(ctx, key) == "1" for key in _sysctls(ctx)) and ctx.host.exists(SYSCTLS)


def _sysctls(ctx: Context) -> list[str]:
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


def _wants_bridge(ctx: Context) -> bool:
    return ctx.config.kb.pod_network.plugin == "bridge" and ctx.host.mode != "root"


def _value(ctx: Context, key: str) -> str:
    path = Path("/proc/sys") / key.replace(".", "/")
    return ctx.host.read_text(path).strip() if ctx.host.exists(path) else ""
