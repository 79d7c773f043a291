"""The kernel settings and the route that a node needs, which kubeadm leaves to the admin."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from kubeup.engine.items import File, Gone, KernelModule, Remembered, Sysctl
from kubeup.engine.plan import Ground, Group, Item, Later, Plan, Yielded
from kubeup.engine.run import BareRun, Run
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.yaml_files import fill_template

with lazily:
    from kubeup.config import choose
    from kubeup.engine import state
    from kubeup.network import flannel_traces, step_aside
    from kubeup.node import machine_before

SYSCTLS = Path("/etc/sysctl.d/90-kb.conf")
MODULES = Path("/etc/modules-load.d/kb.conf")
ROUTE_UNIT = "kb-service-route.service"
BRIDGE_NF = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_HEADER = "# Written by kb: a Kubernetes node forwards packets between its pods and to other nodes.\n"


def plan_forwarding(run: Run) -> Plan:
    """IP forwarding for the families in use, and a route to Services if this machine has none.

    With the bridge plugin also br_netfilter, so that kube-proxy's rules see the bridge's packets.

    Raises when it is applied: HostError (sysctl-refused) if the kernel rejects a value.
    """
    modules = [_plan_bridge_module()] if run.config.kb.pod_network.plugin == "bridge" else []
    keys = lambda _: _sysctls(run)  # noqa: E731
    # which sysctls exist is known only once the module is loaded
    before = [_plan_memory()] if run.host.is_live else []
    return Plan(*before, *modules, Later("sysctls", read=keys, wait=keys, then=_plan_sysctls)) + _plan_service_route(
        run
    )


def _plan_memory() -> Remembered:
    """What the machine was like. Once kb has set its settings, or a kubelet was configured, it is too late to look, as on a node that an
    older kb made."""

    def is_known(ground: Ground) -> bool:
        return (
            _has_own_file(ground.host)
            or ground.host.exists(ground.paths.kubelet_config)
            or bool(_recall(ground.host, ground.paths))
        )

    def read(ground: Ground) -> dict[str, str]:
        links = flannel_traces.list_links(ground.host)
        return machine_before.read(ground.host, places=flannel_traces.PLACES, links=links)

    return Remembered("the machine before kb", is_known, read)


def _recall(host: Host, paths: Paths) -> list[dict[str, str]]:
    return state.load_state(host, paths).compensations(machine_before.KIND)


def _plan_bridge_module() -> KernelModule:
    loss = "a pod may not reach a Service whose pod is on the same node"
    return KernelModule("br_netfilter", MODULES, _HEADER + "br_netfilter\n", BRIDGE_NF, loss)


def _plan_sysctls(keys: Sequence[str]) -> list[Item]:
    text = _HEADER + "".join(f"{key} = 1\n" for key in keys)
    return [File(SYSCTLS, text), *(Sysctl(key, "1") for key in keys)]


# ---- the route to Services


def _unroutable_services(ctx: Run) -> list[str]:
    """The Service CIDRs to which the kernel has no route at all, as on a machine without a default route.

    [] with the bridge plugin: its route keeper (kubeup/network/route_keeper.py) adds the route itself, and removes it when it
    is no longer needed. No other pod network does that."""
    if ctx.config.kb.pod_network.plugin == "bridge":
        return []
    found = []
    for cidr in ctx.config.cluster.service_cidrs():
        address = str(ipaddress.ip_network(cidr, strict=False)[1])
        answer = ctx.host.query(["ip", "route", "get", address])
        if not answer.ok and "unreachable" in answer.stderr:
            found.append(cidr)
    return found


def _plan_service_route(run: Run) -> Plan:
    """A route through this node's own interface, now and after a reboot, if there is none or it is kb's."""
    unit, missing = run.paths.systemd / ROUTE_UNIT, _unroutable_services(run)
    text = run.host.read_text(unit) if run.host.exists(unit) else ""
    cidrs = [cidr for cidr in run.config.cluster.service_cidrs() if cidr in missing or f" {cidr} " in text]
    if not cidrs:
        return Plan()
    own = run.config.local_api_endpoint.advertise_address
    device = _find_device(run, own)
    if not device:
        told = f"there is no route to Services ({', '.join(cidrs)}), and no interface has {own}: add a default route"
        return Plan(*([Yielded("route to Services", told)] if text else []), warnings=[told])
    routes = tuple(("route", "replace", cidr, "dev", device) for cidr in cidrs)
    program = run.host.which("ip") or "/sbin/ip"
    commands = "\n".join(f"ExecStart={program} {' '.join(words)}" for words in routes)
    item = File(unit, fill_template(f"systemd/{ROUTE_UNIT}", {"commands": commands}))
    notes = [
        f"this machine has no default route: {', '.join(missing)} is routed to {device}, so that Services can be reached"
    ]
    return Plan(Group((item,), guard=ServiceRoute(routes, not missing)), notes=notes if missing else ())


def _find_device(run: Run, address: str) -> str:
    """The name of the interface that has this address; "" if none has."""
    for interface in choose.read_interfaces(run.host) or []:
        if any(str(own) == address for own in interface.addresses):
            return str(interface.name)
    return ""


@frozen
class ServiceRoute:
    """The oneshot unit that adds the route to Services.

    routes: the arguments of ip, per route. is_there: whether the kernel has the routes.
    """

    routes: tuple[tuple[str, ...], ...]
    is_there: bool

    name = ROUTE_UNIT
    places = (Path("/etc/systemd/system/multi-user.target.wants") / ROUTE_UNIT,)

    def is_running(self, run: Run) -> bool:
        return self.is_there

    def stop(self, run: Run) -> None:
        """Not needed."""

    def start(self, run: Run) -> None:
        run.host.run(["systemctl", "daemon-reload"])
        run.host.run(["systemctl", "enable", ROUTE_UNIT])
        for words in self.routes:
            run.host.run(["ip", *words])

    def settle(self, run: Run) -> None:
        """Not needed: `start` enables it."""


def plan_no_service_route(run: BareRun) -> Plan:
    """Reset: remove the routes and then the unit, which is what names them."""
    unit = run.paths.systemd / ROUTE_UNIT
    find = lambda ground: [str(unit)] if ground.host.exists(unit) else []  # noqa: E731
    return Plan(Gone("the route to Services", find, lambda ground: _remove_service_route(ground.host, unit)))


def _remove_service_route(host: Host, unit: Path) -> None:
    for line in host.read_text(unit).splitlines() if host.exists(unit) else ():
        words = line.partition("ExecStart=")[2].split()
        if "replace" in words:
            host.run(["ip", *("delete" if word == "replace" else word for word in words[1:])])
    services.stop_own_unit(host, ROUTE_UNIT)
    host.remove(unit)
    services.forget_removed_units(host)


def plan_former_settings(run: BareRun) -> Plan:
    """Reset: give kernel settings that kb, the kubelet and kube-proxy changed their values of before, unless others need them."""
    if str(run.paths.kubelet_config) in state.load_state(run.host, run.paths).adopted:
        return Plan()  # its kubelet keeps running
    before = machine_before.parse(_recall(run.host, run.paths))
    if before is None:
        return Plan(notes=["kernel settings stay until a reboot: it is not known what they were before kb"])

    def find(ground: Ground) -> dict[str, str]:
        return machine_before.find_changed_settings(ground.host, before["settings"], own_file=SYSCTLS)

    def tell(ground: Ground) -> list[str]:
        return [f"{key}, which was {value}" for key, value in find(ground).items()]

    def take_away(ground: Ground) -> None:
        known = (*before["bridges"], step_aside.BRIDGE)
        bridges = [name for name in machine_before.list_bridges(ground.host) if name not in known]
        for text in machine_before.restore_settings(ground.host, find(ground), bridges=bridges):
            ground.report.note(text)

    return Plan(Gone("changed kernel settings", tell, take_away))


def has_own_sysctls(ctx: Run) -> bool:
    """Whether kb wrote this node's sysctl file."""
    return _has_own_file(ctx.host)


def _has_own_file(host: Host) -> bool:
    return host.exists(SYSCTLS) and host.read_text(SYSCTLS).startswith(_HEADER)


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
    return ctx.config.kb.pod_network.plugin == "bridge"
