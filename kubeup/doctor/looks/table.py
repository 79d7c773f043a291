"""The table of checks of kb doctor, and the code that examines a node with it.

Owns which checks there are and their order: the checks shared with preflight, the chain that kb walks while it waits,
and what only a node that has been running can show. Must not change anything: it gets a host that plans changes instead
of making them. kubeadm has no equivalent.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

from kubeup.addresses import host_of
from kubeup.diagnosis import signs
from kubeup.diagnosis.checks.facts import ERROR, FOLLOWS, OK, WARNING, Finding, Findings, as_consequence
from kubeup.doctor import node_files
from kubeup.doctor.looks.backups import look_at_backups
from kubeup.doctor.looks.drift import look_at_images, look_at_kubelet_drift
from kubeup.doctor.looks.etcd_alarms import look_at_etcd_alarms
from kubeup.doctor.looks.every_node import look_at_dns_address, look_at_every_node, look_at_system_pods
from kubeup.doctor.looks.expiry import look_at_auto_renewal, look_at_certs, look_at_served_certs
from kubeup.doctor.looks.firewall import CLOSED_ETCD, look_at_firewall
from kubeup.doctor.looks.kubelet_files import NO_STATIC_PODS, look_at_kubelet_files
from kubeup.doctor.looks.machine_events import look_at_events
from kubeup.doctor.looks.machine_limits import look_at_limits
from kubeup.doctor.looks.pending import look_at_all_pending, look_at_pending
from kubeup.doctor.looks.pod_tokens import look_at_pod_tokens
from kubeup.doctor.looks.pod_ways import DOES, NAME, look_at_leftovers, prove_pod_ways
from kubeup.doctor.looks.registered_node import look_at_node
from kubeup.doctor.looks.rotating import look_at_rotation
from kubeup.doctor.looks.running import (
    STARTING,
    look_at_chain,
    look_at_checks,
    look_at_manifests,
    look_at_sandboxes,
    look_at_static_pods,
)
from kubeup.doctor.looks.skew import look_at_clock
from kubeup.doctor.looks.storage import NO_QUORUM, OWN_MEMBER, look_at_disk, look_at_etcd
from kubeup.doctor.looks.swapping import look_at_reboot, look_at_swap, look_at_try
from kubeup.doctor.looks.traffic import look_at_dns, look_at_load_balancer, look_at_pod_network, look_at_tunnel
from kubeup.doctor.looks.whole_cluster import (
    NO_SECRETS,
    OF_LEADERS,
    OF_NODES,
    RANGES,
    UNREAD,
    look_at_cluster,
    look_at_flags,
    look_at_rights,
    look_at_whole_cluster,
)
from kubeup.doctor.node_files import Patient
from kubeup.errors import HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host


@frozen
class Look:
    name: str
    does: str
    look: Callable[[Patient], Findings]
    after: tuple[str, ...] = ()
    """The findings whose errors bring about what this one finds, by their names or the first part of these."""


_BELOW_PODS = (
    "kubelet-files",
    "CRI",
    *(f"FileContent--proc-sys-net-{path}" for path in ("ipv4-ip_forward", "ipv6-conf-default-forwarding")),
    "manifests",
    "chain",
    "firewall",
    "pod-network",
    "load-balancer",
    "rights",
    "node",
    "pod-tokens",
)
"""What breaks the ways of every pod on this node."""
_STARTS = "schedulers see every pod, and no node fails to start some"

_KEPT = "no controller is switched off, pods' calls lead to every API server, and each reads what is encrypted"

LOOKS: tuple[Look, ...] = (
    Look("kubelet-files", "the files are there from which the kubelet starts", look_at_kubelet_files),
    Look("checks", "this machine is fit for Kubernetes", look_at_checks, ("kubelet-files",)),
    Look("machine", "disks, connections, files and processes have room", look_at_limits),
    Look("events", "the kernel reports no failures, and no service has failed", look_at_events),
    Look("manifests", "each static pod has one manifest, and the kubelet can read it", look_at_manifests),
    Look("certificates", "certificates on disk are valid and have their keys", look_at_certs),
    Look("etcd-alarms", "etcd has raised no alarm", look_at_etcd_alarms),
    Look("firewall", "no rule of this machine keeps others from what this node serves", look_at_firewall),
    Look("flags", _KEPT, look_at_flags),
    Look(
        "chain",
        "kubelet, runtime, sandboxes, containers and probes",
        look_at_chain,
        (
            "kubelet-files",
            "CRI",
            "AdvertiseAddress",
            "CgroupDriver",
            "machine/mounts",
            "manifests",
            "certificates/expired",
            "etcd-alarms",
            CLOSED_ETCD,
            NO_SECRETS,
            OF_LEADERS,
        ),
    ),
    Look("swap", "no swap of static pods was cut off", look_at_swap),
    Look("try", "no change is being tried that goes back by itself", look_at_try),
    Look("reboot", "no reboot of this node is left unfinished", look_at_reboot),
    Look("rotation", "no rotation of a key that control planes share is under way", look_at_rotation),
    Look("rights", "the cluster's own programs have their rights, and their pods could be made again", look_at_rights),
    Look(
        "static-pods",
        "the kubelet's probes of this node's own pods succeed",
        look_at_static_pods,
        ("etcd-alarms", CLOSED_ETCD, NO_SECRETS, OF_NODES),  # a kubelet that may not report leaves what it last said
    ),
    Look(
        "pod-network", "the pod network is set up here, and no pod is attached to a previous one", look_at_pod_network
    ),
    Look(
        "load-balancer",
        "this node's load balancer leads to the API servers, if it has one",
        look_at_load_balancer,
        ("kubelet-files", "CRI", "CgroupDriver", "manifests", "chain"),
    ),
    Look(
        "node",
        "the cluster has this node, and it is Ready",
        look_at_node,
        (
            "etcd-alarms",
            "kubelet-files",
            "KubeletProxy",
            "CRI",
            "machine",
            "manifests",
            "certificates/expired",
            "chain",
            "pod-network",
            "load-balancer",
            "rights",
            NO_SECRETS,
        ),
    ),
    Look("pod-tokens", "every API server knows the tokens of this node's pods", look_at_pod_tokens, ("chain", "node")),
    Look("served-certificates", "servers present the certificates that are on disk", look_at_served_certs, (RANGES,)),
    Look("auto-renewal", "the timer that renews certificates runs, and did not fail last time", look_at_auto_renewal),
    Look("clock", "this clock and the API server's agree", look_at_clock),
    Look("etcd", "every member of etcd serves", look_at_etcd, ("etcd-alarms", NO_STATIC_PODS)),
    Look(
        "cluster",
        "other nodes, API servers, controllers and admission, as a control plane sees them",
        look_at_cluster,
        ("etcd-alarms", NO_QUORUM, OF_LEADERS),
    ),
    Look(
        "pending-pods", _STARTS, look_at_pending, (*_BELOW_PODS, "etcd-alarms", "machine", "etcd", "cluster", "flags")
    ),
    Look("backups", "scheduled backups are made, and are there", look_at_backups),
    Look("disk", "etcd's disk is fast enough", look_at_disk),
    Look(
        NAME,
        DOES,
        look_at_leftovers,
        (*_BELOW_PODS, "machine"),
    ),
    Look(
        "dns",
        "node and pods reach the cluster's DNS and API through their Services",
        look_at_dns,
        (*_BELOW_PODS, "flags", NAME),
    ),
    Look("tunnel", "the pod network's tunnel reaches the nodes behind routers, if there are any", look_at_tunnel),
    Look("images", "the images of this node's own pods are in the runtime", look_at_images, ("chain/image",)),
    Look(
        "sandboxes",
        "the runtime makes a sandbox for each pod of this node",
        look_at_sandboxes,
        (*_BELOW_PODS, "Resolver", "CNIPlugins", "machine", "pending-pods", "images"),
    ),
    Look("kubelet-drift", "the kubelet runs with the flags in its files", look_at_kubelet_drift),
)


OF_THE_CLUSTER: tuple[Look, ...] = (
    Look("etcd-alarms", "etcd has raised no alarm", look_at_etcd_alarms),
    Look("etcd", "every member of etcd serves", look_at_etcd, ("etcd-alarms",)),
    Look(
        "rights",
        "the cluster's own programs have their rights, and their pods could be made again",
        look_at_rights,
        ("etcd-alarms", NO_QUORUM),
    ),
    Look("flags", _KEPT, look_at_flags),
    Look(
        "cluster",
        "nodes, their kubelets, API servers, controllers, admission and aggregated APIs",
        look_at_whole_cluster,
        ("etcd-alarms", NO_QUORUM, OF_LEADERS),
    ),
    Look("nodes", "nothing keeps pods away from the nodes that are Ready", look_at_every_node, (NO_QUORUM,)),
    Look("pod-tokens", "every API server knows the tokens of pods", look_at_pod_tokens),
    Look("pods", "no pod of kube-system is stuck", look_at_system_pods, ("etcd-alarms", "cluster", "nodes")),
    Look(
        "dns",
        "the cluster's DNS is where pods ask for it, and serves what they ask for",
        look_at_dns_address,
        ("cluster", "rights", "pods"),
    ),
    Look("pending-pods", _STARTS, look_at_all_pending, ("etcd-alarms", "rights", "cluster", "nodes", "flags", "pods")),
)
"""The checks of --cluster, which need no more of this machine than its identity."""
_AT_ONCE = 6
"""Most looks wait for other programs, servers and machines: one after the other, they took twice the time."""


_OF_START = frozenset({"KubeletFlags", "KubeletVersion"})
"""The checks whose errors keep a kubelet from starting, which it says in its log as well."""
_OF_SERVERS = frozenset(
    {NO_SECRETS, NO_STATIC_PODS, "chain", "manifests", "certificates", "served-certificates", "etcd-alarms", "firewall"}
)
"""The looks whose errors keep this node's own controllers from leading, and its API server, its kubelet and its member of etcd from serving."""


def with_pods(looks: Sequence[Look], changing: Host) -> tuple[Look, ...]:
    """The same checks, of which the one of pods makes some through `changing`."""
    prove = functools.partial(prove_pod_ways, changing=changing)
    kept = tuple(dataclasses.replace(look, look=prove) if look.name == NAME else look for look in looks)
    own = next(look for look in LOOKS if look.name == NAME)
    return (
        kept
        if any(look.name == NAME for look in looks)
        else (*looks, dataclasses.replace(own, look=prove, after=(*own.after, "dns")))
    )


def examine(patient: Patient, looks: Optional[Sequence[Look]] = None) -> list[Finding]:
    """All findings of all checks; a check that finds nothing wrong returns one too, and so does one that fails. What comes of an error of
    another check is said as such, once."""
    chosen = LOOKS if looks is None else looks
    patient = node_files.choose_server(patient)
    results = _take_all(patient, chosen)
    notes: list[Finding] = []
    broken, twice = set[str](), set[str]()
    """The looks that found an error, and the static pods that have two manifests, or no kubeconfig: whatever is wrong with these comes of that."""
    away = dict[str, str]()
    """The members of etcd that do not serve, and their machines' addresses."""
    for look, found in zip(chosen, results):
        if broken & set(look.after):
            found = [as_consequence(note) for note in found if note.text not in {one.text for one in notes}]
        if any(note.level == ERROR for note in notes):
            found = [as_consequence(note) if note.name == UNREAD else note for note in found]
        found = [
            as_consequence(note, ERROR, WARNING)
            if _is_told(note, notes) or _lacks_same(note, [*notes, *found])
            else note
            for note in found
        ]
        if broken & _OF_START:
            found = [as_consequence(note) if note.name.startswith("chain/kubelet") else note for note in found]
        if OF_LEADERS in broken:
            found = [as_consequence(note, ERROR, WARNING) if _is_of_leader(note) else note for note in found]
        if broken & {OF_NODES, NO_SECRETS}:
            found = [as_consequence(note, ERROR, WARNING) if _is_of_kubelet(note) else note for note in found]
        if broken & _OF_SERVERS or any(note.name == STARTING for note in notes):
            found = [as_consequence(note, ERROR, WARNING) if _is_own(patient, note) else note for note in found]
        found = [as_consequence(note, ERROR, WARNING) if _is_of_member(note, away) else note for note in found]
        away |= {name: host for note in found for name, host in _find_away(note)}
        found = [
            as_consequence(note, ERROR, WARNING) if any(pod in note.text for pod in twice) else note for note in found
        ]
        failed = [note.name for note in found if note.level in (ERROR, FOLLOWS)]
        broken |= {*failed, *(name.partition("/")[0] for name in failed)}
        twice |= {pod for _, _, pod in (name.partition("/") for name in failed) if pod in node_files.COMPONENTS}
        notes.extend(found)
    return [dataclasses.replace(note, remedy=_for_a_doctor(note.remedy)) for note in notes]


def _is_told(note: Finding, notes: Sequence[Finding]) -> bool:
    """Whether an error above has the same cause in the same words, such as a webhook's."""
    cause = note.text.partition(": ")[2]
    return len(cause) > _LONG and any(one.level == ERROR and cause in one.text for one in notes)


def _lacks_same(note: Finding, notes: Sequence[Finding]) -> bool:
    """Whether a finding above, or the first of its own look, lacks the same ConfigMap: it is missing once, for all nodes."""
    lack = re.search(r'configmap "[^"]+" not found', note.text)
    first = next((one for one in notes if lack and one.level == ERROR and lack.group() in one.text), note)
    return first is not note


_LONG = 60
"""Characters of a cause that nobody says twice by chance."""


def _is_of_leader(note: Finding) -> bool:
    return note.name == "cluster" and re.match(r"no [\w-]+ leads:", note.text) is not None


def _is_of_kubelet(note: Finding) -> bool:
    """Whether it tells of a kubelet, this one or another, that does not report."""
    return note.name == "cluster" and note.text.startswith(("the kubelet of node ", "node "))


_MEMBER = re.compile(r"([\w.-]+) \(https?://([^/)]+):\d+[^)]*\): ")


def _find_away(note: Finding) -> Iterator[tuple[str, str]]:
    """(name, address) of the members of etcd that an error says not to serve."""
    if note.name in ("etcd", NO_QUORUM) and note.level == ERROR and note.text.startswith("etcd "):
        yield from _MEMBER.findall(note.text)


def _is_of_member(note: Finding, away: Mapping[str, str]) -> bool:
    """Whether it tells of the machine of a member of etcd that does not serve: its API server ends with it, and so does its kubelet's way."""
    if note.name != "cluster":
        return False
    told = (
        start
        for name, host in away.items()
        for start in (f"node {name} is not Ready", f"the kubelet of node {name} is silent", f"API server {host}:")
    )
    return note.text.startswith(tuple(told)) or any(f": {name} has not renewed its lease" in note.text for name in away)


def _is_own(patient: Patient, note: Finding) -> bool:
    """Whether it tells what this node's own server or controller does not do, at whatever port it is called."""
    own = host_of(node_files.find_own_server(patient.host, patient.paths).rpartition("://")[2])
    server = f"[{own}]" if ":" in own else own
    return (
        f": {patient.config.node.name} has not renewed its lease" in note.text
        or note.name == OWN_MEMBER
        or f" does not reach the kubelet of node {patient.config.node.name}:" in note.text
        or note.text.startswith(f"etcd member {patient.config.node.name} does not serve")
        or bool(
            own and (note.text.startswith(f"API server {server}:") or f"no answer from https://{server}:" in note.text)
        )
    )


def _take_all(patient: Patient, looks: Sequence[Look]) -> list[list[Finding]]:
    slowest_first = sorted(looks, key=lambda look: look.name not in (NAME, "cluster"))
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        begun = {look: pool.submit(_take_look, patient, look) for look in slowest_first}
        return [begun[look].result() for look in looks]
    finally:
        # who is interrupted waits for the proof that has made pods: it removes them
        pool.shutdown(wait=True, cancel_futures=True)


def _take_look(patient: Patient, look: Look) -> list[Finding]:
    try:
        found = list(look.look(patient))
    except (HostError, KbError) as error:
        return [Finding(look.name, ERROR, str(error), error.remedy)]
    return found or [Finding(look.name, OK, look.does, remedy="")]


def as_dict(note: Finding) -> dict[str, str]:
    """A finding for -o json and the support bundle."""
    return {"look": note.name, "level": note.level, "text": note.text, "remedy": note.remedy}


def _for_a_doctor(remedy: str) -> str:
    """Complete the remedy "run the command again": for doctor this is the command that set up the node."""
    return remedy.replace(signs.AGAIN, "run kb init or kb join again, as when this node was set up")
