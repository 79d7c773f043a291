"""The command readdress: whose address has changed, this machine's or another control plane's, and the phases."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from kubeup.addresses import bracket, host_of, replace_address
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.config import choose, types
    from kubeup.doctor import node_files
    from kubeup.network import load_balancer
    from kubeup.phases import readdress as phases
    from kubeup.swap import manifests, store

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.machine.host import Host

ETCD_PORT = 2379


def readdress(call: Invocation) -> int:
    """Have this node's files, and what the cluster stores, name the new address; or go on with that."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    old, new = _parse(call)
    with launch.locked(Paths()) as node_state:
        ctx = _make_run(launch, old, new=new)
        launcher.require_same_node(node_state, ctx.config, paths=ctx.paths)
        wanted = [phase for phase in call.command.phases if ctx.config.is_control_plane or not phase.on]
        result = launch.work(ctx, node_state, phases=wanted)
    launch.print_result(result)
    if call.output == "text" and not launch.is_dry:
        left = list(result.results.remaining or ())
        if left:
            call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
        call.print(f"the former files are in {ctx.folder}")
    return 0


def _parse(call: Invocation) -> tuple[str, str]:
    """The two addresses, in their short form. Raises UsageError (usage)."""
    cause = "" if len(call.words) == 2 else f"it takes two addresses, and {len(call.words)} were given"
    found = []
    for word in call.words if not cause else ():
        try:
            found.append(ipaddress.ip_address(word))
        except ValueError:
            cause = f"{word!r} is no IP address"
    if not cause and found[0].version != found[1].version:
        cause = "one is IPv4, and the other IPv6: the Services of a cluster keep their family"
    if not cause and found[0] == found[1]:
        cause = "both are the same"
    if cause:
        raise UsageError(
            f"kb readdress {' '.join(call.words)}".rstrip(),
            cause=cause,
            remedy="name the former and the new address of the control plane: kb readdress 10.0.0.11 10.0.0.12",
            code="usage",
        )
    return str(found[0]), str(found[1])


def _make_run(launch: Launch, old: str, *, new: str) -> phases.ReaddressRun:
    """Raises HostError: not-a-node, address-not-here, address-not-found."""
    call, local = launch.call, launch.local
    patient = _read_patient(local)
    paths = patient.paths
    folder = paths.state_dir / "readdress" / f"{old}-{new}"
    is_own = _is_own(local, patient, addresses=(old, new))
    has_begun = local.exists(folder)
    if is_own and new not in _read_own_addresses(local):
        raise HostError(
            f"this machine does not have the address {new}",
            cause=f"its interfaces have {', '.join(sorted(_read_own_addresses(local))) or 'none that can be read'}; nothing was changed",
            remedy=f"give it the address, for good: ip address show; then: kb readdress {old} {new}",
            code="address-not-here",
        )
    if not has_begun and not phases.find_texts(local, paths, old=old, new=new, is_own=is_own):
        raise HostError(
            f"no file of this node has the address {old}",
            cause="it neither was this node's, nor does this node call it; nothing was changed",
            remedy=f"see what the node calls: grep server: {paths.kubernetes / 'kubelet.conf'}; and what it listens at: kb status",
            code="address-not-found",
        )
    if has_begun:
        call.report.note(f"kb readdress {old} {new} was run here before: going on")
    config = _make_config(patient, old=old, new=new, is_own=is_own)
    base = launcher.make_run(launch.target, config, paths=paths, report=call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, paths, retry_s=60))
    return phases.ReaddressRun(
        **base.values(),
        old=old,
        new=new,
        is_own=is_own,
        peers=() if call.flags.get("force") else _find_peers(local, patient, mine=(old, new)),
        folder=folder,
    )


def _read_patient(local: Host) -> Patient:
    """This node, by its files; those that an earlier run has taken out count. Raises HostError (not-a-node)."""
    paths = Paths()
    out = {name: manifests.former_of(paths, name) for name in store.COMPONENTS}
    texts = {name: local.read_text(path) for name, path in out.items() if local.exists(path)}
    patient = node_files.read_patient(store.with_missing(local, paths, texts=texts), paths)
    if patient.is_member:
        return patient
    raise HostError(
        "this machine is no node",
        cause=f"there is no {paths.kubelet_config}",
        remedy="run it on the control plane whose address has changed, then on the nodes that it names",
        code="not-a-node",
    )


def _is_own(local: Host, patient: Patient, *, addresses: tuple[str, str]) -> bool:
    """Whether the address is this machine's own: its API server's, its etcd's, or its kubelet's."""
    flags = node_files.read_kubelet_flags(local, patient.paths)
    told = [flags.get("node-ip", "")]
    if patient.is_control_plane:
        told.append(patient.config.local_api_endpoint.advertise_address)
    return any(one in addresses for one in told)


def _read_own_addresses(local: Host) -> set[str]:
    cards = choose.read_interfaces(local) or ()
    return {str(address).partition("/")[0] for card in cards for address in card.addresses}


def _make_config(patient: Patient, *, old: str, new: str, is_own: bool) -> types.NodeConfig:
    config = patient.config
    if patient.is_control_plane:
        endpoint = dataclasses.replace(config.local_api_endpoint, advertise_address=new) if is_own else None
        return dataclasses.replace(config, local_api_endpoint=endpoint or config.local_api_endpoint)
    server = replace_address(config.joined.server, old, new=new)
    return dataclasses.replace(config, join=dataclasses.replace(config.joined, server=server))


def _find_peers(local: Host, patient: Patient, *, mine: tuple[str, str]) -> tuple[str, ...]:
    """The client URLs of etcd's other members, as far as this node's files know them."""
    if not patient.is_control_plane or patient.config.cluster.local_etcd is None:
        return ()
    flags = node_files.read_flags(patient.host, patient.paths, component="etcd")
    hosts = [
        host_of(member.partition("=")[2].partition("://")[2]) for member in flags.get("initial-cluster", "").split(",")
    ]
    hosts += [host_of(server) for server in load_balancer.read_servers(local, patient.paths)]
    others = sorted({host for host in hosts if host and host not in mine})
    return tuple(f"https://{bracket(host)}:{ETCD_PORT}" for host in others)
