"""Doctor's check of the rest of the cluster, from a control plane: other nodes, API servers, controllers, admission."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from kubeup.cluster import api as kubeapi
from kubeup.cluster import control_flags, health, reach, system_rights
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, not_proven
from kubeup.doctor.looks.etcd_alarms import look_at_etcd_alarms
from kubeup.doctor.node_files import Patient, open_api
from kubeup.machine.http import Unreachable
from kubeup.network.forwarding import describe_input_drops

_LEVELS = {
    "node": WARNING,
    "api-server": WARNING,
    "leader": ERROR,
    "admission": ERROR,
    "kubelet": WARNING,
    reach.REFUSED: ERROR,
    reach.ENDLESS: WARNING,
    "aggregated": WARNING,
    reach.HOLDS_NAMESPACES: ERROR,
}
"""Another machine's problem is only a warning here. Without controllers or admission the whole cluster makes no progress. An aggregated API that
nobody else waits for is a warning everywhere."""


_IN_ALARM = not_proven("cluster", "nobody renews a lease while etcd takes no writes")


def look_at_whole_cluster(patient: Patient) -> Findings:
    """The same for all nodes, this one as any other, whose problems weigh as much as they do for the cluster. Raises what the API does."""
    if any(note.level == ERROR for note in look_at_etcd_alarms(patient)):
        yield _IN_ALARM
        return
    for part in _read_parts(open_api(patient)):
        if part.unproven:
            yield not_proven("cluster", part.unproven)
        elif part.trouble:
            level = WARNING if part.kind in ("aggregated", reach.ENDLESS) else ERROR
            yield Finding("cluster", level, str(part.trouble), part.trouble.remedy)


def _read_parts(api: kubeapi.Api, own: str = "") -> list[health.Part]:
    """own: the name of this node, which other checks judge; every other API server is asked for the way to its kubelet, which this machine may close. Each
    API server has a client certificate of its own for kubelets."""
    parts = health.gate(api, counts_recent=True, unwatched=[own])
    ready = [part.name for part in parts if part.kind == "node" and part.trouble is None]
    servers = [f"https://{part.name}" for part in parts if part.kind == "api-server" and part.is_well]
    one = [own] if own in ready else ready[:_MANY_NODES]
    # a load balancer leads to one of them, which is to be asked once
    first = api if api.server in servers or not servers else api.with_server(servers[0])
    others = [server for server in servers if server != first.server]
    silent = [part.name for part in parts if _is_silent(part)][:_MANY_NODES]
    with ThreadPoolExecutor(len(others) + 2) as pool:
        kubelets = pool.submit(reach.probe_kubelets, first, ready)
        away = pool.submit(reach.probe_kubelets, first, silent) if silent else None
        back = list(pool.map(lambda server: reach.probe_kubelets(api.with_server(server), one), others))
        found = [*kubelets.result(), *(part for some in back for part in some)]
        seen = dict(zip(silent, map(reach.describe_presence, away.result()))) if away else {}
    parts = [_with_presence(part, seen) for part in parts]
    if not own:  # whoever does not reach a kubelet, it is one trouble
        found = list({(part.kind, part.name, part.is_well): part for part in reversed(found)}.values())[::-1]
    is_led = all(part.trouble is None for part in parts if part.kind == "leader")
    unled = [] if is_led else control_flags.find_unled(control_flags.read_planes(api))
    led = [part for part in parts if part.kind != "leader" or part.name not in unled]
    return [*led, *dict.fromkeys(found), *reach.probe_aggregated(api), *reach.probe_namespaces(api)]


def _is_silent(part: health.Part) -> bool:
    told = str(part.trouble or "")
    return part.kind == "node" and (" is silent: " in told or "Kubelet stopped posting" in told)


def _with_presence(part: health.Part, seen: Mapping[str, str]) -> health.Part:
    told = seen.get(part.name, "")
    if not (told and part.trouble and _is_silent(part)):
        return part
    cause = f"{part.trouble.cause.rstrip('.')}; {told}"
    return dataclasses.replace(part, trouble=dataclasses.replace(part.trouble, cause=cause))


_MANY_NODES = 20
"""Of larger clusters, not every API server is asked for the way to every kubelet."""


def look_at_rights(patient: Patient) -> Findings:
    """What the cluster's own programs may do, and this node's admin. Only on a control plane, since a worker's identity may not ask."""
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    api = open_api(patient)
    try:
        api.get(kubeapi.path_of("ClusterRoleBinding", _ADMINS))
        troubles = [
            *system_rights.find_lost_rights(api, patient.config.node.name),
            *(system_rights.find_lost_proxy(api) or filter(None, (system_rights.find_proxy_astray(api),))),
            *system_rights.find_barred_pods(api),
        ]
        unapproved = system_rights.find_unapproved(api, patient.config.node.name)
    except Unreachable as error:
        yield not_proven("rights", error)
        return
    except kubeapi.ApiRefused as error:
        if error.http_status == 403 and patient.kubeconfig == patient.paths.admin_conf:
            text = f"{patient.kubeconfig} may do nothing any more: the ClusterRoleBinding of its group {_ADMINS} is gone, or another one's"
            again = f"kubectl --kubeconfig /etc/kubernetes/super-admin.conf create clusterrolebinding {_ADMINS} --clusterrole=cluster-admin --group={_ADMINS}"
            yield Finding("rights", ERROR, text, again)
        else:
            yield not_proven("rights", error)
        return
    for trouble in troubles:
        name = OF_NODES if trouble.what.startswith("API server ") else "rights"
        is_of_leaders = any(leader in trouble.what.partition(" may not ")[0] for leader in health.LEADERS)
        yield Finding(OF_LEADERS if is_of_leaders else name, ERROR, str(trouble), trouble.remedy)
    if unapproved:
        yield Finding("rights", WARNING, str(unapproved), unapproved.remedy)


def look_at_flags(patient: Patient) -> Findings:
    """What control planes were told that takes a part of the cluster away. Only on a control plane, since a worker's identity may not read it."""
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    api = open_api(patient)
    try:
        planes = control_flags.read_planes(api)
        warnings = [
            *control_flags.find_long_leases(planes),
            *control_flags.find_uneven_members(planes),
            *control_flags.find_unmarked_nodes(planes),
            *control_flags.find_lost_maps(api),
            *(control_flags.find_signerless(planes) if patient.host.exists(patient.paths.pki / "ca.key") else ()),
        ]
        unread, astray = control_flags.find_unread_secrets(planes), control_flags.find_foreign_ranges(planes)
        troubles = [
            *control_flags.find_unelected(planes),
            *control_flags.find_lost_controllers(planes),
            *control_flags.find_uneven_ports(planes),
            *control_flags.find_scarce_servers(planes),
            *astray,
            *control_flags.find_unlisted_servers(planes),
            *unread,
            *filter(None, (control_flags.find_foreign_root(planes),)),
        ]
    except (Unreachable, kubeapi.ApiRefused) as error:
        yield not_proven("flags", error)
        return
    for trouble in (*troubles, *warnings):
        name = NO_SECRETS if trouble in unread else RANGES if trouble in astray else "flags"
        yield Finding(name, WARNING if trouble in warnings else ERROR, str(trouble), trouble.remedy)


OF_NODES, OF_LEADERS = "rights/nodes", "rights/leaders"
"""The findings of an API server that lets kubelets do nothing, and of a scheduler or controller-manager that may do nothing."""
UNREAD = "cluster/unread"
"""The finding of an API server that does not answer what the check of the cluster asks: whatever else is wrong is why."""
RANGES = "flags/ranges"
"""The finding of API servers that give Services other addresses, which their certificates do not have."""
NO_SECRETS = "flags/secrets"
"""The finding of an API server that cannot decrypt what is stored: after its next start it does not become ready, and knows no kubelet's rights (its
node authorizer waits for all Secrets)."""
_ADMINS = "kubeadm:cluster-admins"


def look_at_cluster(patient: Patient) -> Findings:
    """The state of the cluster outside this node, except etcd. Only on a control plane, since a worker's identity may not read it."""
    host = patient.host
    if not patient.is_control_plane or not host.exists(patient.kubeconfig):
        return
    if any(note.level == ERROR for note in look_at_etcd_alarms(patient)):
        yield _IN_ALARM
        return
    api = open_api(patient)
    try:
        parts = _read_parts(api, patient.config.node.name)
    except Unreachable as error:
        # an API server may answer the check of this node, and hang on what it has to read for this one
        yield Finding(UNREAD, ERROR, f"the cluster cannot be judged: {error}", error.remedy)
        return
    except kubeapi.ApiRefused as error:
        if error.http_status not in (401, 403):
            raise
        yield not_proven("cluster", f"the identity in {patient.kubeconfig} may not read it")
        return
    seen = set[str]()
    for part in parts:
        is_own = part.node in (patient.config.node.name, host.hostname())
        if part.unproven:
            yield not_proven("cluster", part.unproven)
        elif part.trouble and not (is_own and part.kind == "node"):
            # another check reports the cause on this node as an error; this one only its consequence
            level = WARNING if is_own else _LEVELS[part.kind]
            drops = describe_input_drops(host) if is_own and part.kind == "kubelet" else ""
            told = f"{part.trouble}{drops and f'; of this machine, {drops}'}"
            if told not in seen:
                seen.add(told)
                yield Finding("cluster", level, told, part.trouble.remedy)
