"""Doctor's proof of a pod: what a new one on this node gets and reaches, and what reaches it.

Without --probe-pods nothing is made, and the look says so. With it, this module is the only one of doctor's that changes anything: pods of
the pause image, one here and one on each other Ready node, which are removed before it returns, whatever happens.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of, join_host_port, port_of
from kubeup.cluster import api as kubeapi
from kubeup.cluster import dns_service, objects, probe_pods, probes
from kubeup.cluster.api import Api, path_of
from kubeup.cluster.probe_pods import ProbePod, Wish
from kubeup.diagnosis import container_trouble, pod_trouble
from kubeup.diagnosis.checks.facts import ERROR, WARNING, Finding, Findings, not_proven
from kubeup.doctor.node_files import Patient, open_api
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import becomes_so
from kubeup.network import node_routes, pod_view, pod_walks
from kubeup.network.pod_questions import GREETING, Question, ask
from kubeup.network.pod_walks import Backend, Goal, Neighbour, Walk
from kubeup.node import runtime
from kubeup.shapes import Shape, fit_what_does

NAME = "pod-ways"
DOES = "a new pod here gets an address, reaches API, DNS and the pods of other nodes, and is reached"
MAX_NODES = 20
"""Beyond so many other nodes, the rest is said as not proven."""
_START_S = 10
"""A pod on a node that is well runs after one or two seconds."""
_TRIES = 2
"""A datagram may get lost, and some pod networks take a moment to let a new pod through."""
_MOST_WATCHED = 5
_HOST_PORTS = range(61500, 61600)
_FREE = "kb doctor --probe-pods"
_WORKER = "on a worker with a kubeconfig of an administrator: kb doctor --probe-pods --kubeconfig FILE"


def look_at_leftovers(patient: Patient) -> Findings:
    """Without the proof: what was not proven, and the pods of a proof that was killed, which have ended by themselves."""
    yield _unproven(f"what a new pod gets and reaches, since none was made: {_FREE}")
    if not patient.is_control_plane or not patient.host.exists(patient.kubeconfig):
        return
    with contextlib.suppress(KbError):  # the check of this node reports why
        for name in probe_pods.list_leftovers(open_api(patient)):
            text = f"pod {probe_pods.NAMESPACE}/{name} was left by a kb doctor that was killed; it has ended, and nobody owns it"
            remedy = f"kubectl -n {probe_pods.NAMESPACE} delete pod {name} (or {_FREE}, which removes it)"
            yield Finding(NAME, WARNING, text, remedy)


def prove_pod_ways(patient: Patient, changing: Host) -> list[Finding]:
    """With the proof. changing: the machine through which pods are made, the only change there is."""
    name = patient.config.node.name
    if not patient.is_member:
        return []
    api = Api(changing, kubeapi.read_identity(patient.host, patient.kubeconfig), retry_s=0)
    try:
        nodes = {str(node["metadata"]["name"]): node for node in api.list(path_of("Node"))}
        leftovers = probe_pods.list_leftovers(api)
    except kubeapi.ApiRefused as error:
        if error.http_status not in (401, 403):
            raise
        return [_unproven(f"the identity in {patient.kubeconfig} may not make pods; {_WORKER}")]
    if probes.node_condition(nodes.get(name))[0] != "True":
        return [_unproven(f"what a new pod gets and reaches, since node {name} is not Ready")]
    run = probe_pods.new_run()
    found: list[Finding] = []
    try:
        found += _prove(_Proof(patient, api, run, nodes))
    except kubeapi.ApiRefused as error:
        if error.http_status != 403:
            raise
        found.append(_unproven(f"what a new pod gets and reaches, since the API server refused one: {error.cause}"))
    finally:
        found += _remove(api, run, leftovers=leftovers)
    return found


def _remove(api: Api, run: str, *, leftovers: Sequence[str]) -> Findings:
    try:
        own = [pod.name for pod in probe_pods.read_pods(api, run)]
        left = probe_pods.remove_pods(api, [*leftovers, *own])
    except KbError as error:
        yield Finding(NAME, WARNING, f"the pods {run}-* could not be removed: {error}", _say_removal(run))
        return
    if left:
        text = f"the pods {', '.join(left)} are still there; they end {probe_pods.LIFE_S} s after their start"
        yield Finding(NAME, WARNING, text, _say_removal(run))


def _say_removal(run: str) -> str:
    return f"kubectl -n {probe_pods.NAMESPACE} delete pods -l {probe_pods.RUN}={run}"


@frozen
class _Proof:
    patient: Patient
    api: Api
    run: str
    nodes: Mapping[str, Any]
    """name -> the Node object."""

    @property
    def own(self) -> str:
        return self.patient.config.node.name


def _prove(proof: _Proof) -> Findings:
    host, own = proof.patient.host, proof.own
    ready = [name for name, node in proof.nodes.items() if probes.node_condition(node)[0] == "True" and name != own]
    for name in (*sorted(proof.nodes.keys() - {*ready, own}), *ready[MAX_NODES:]):
        why = f"there are more than {MAX_NODES} other nodes" if name in ready else "that node is not Ready"
        yield _unproven(f"the way to pods of node {name}: {why}")
    port = next((port for port in _HOST_PORTS if host.port_holder(port) is None), 0)
    names = [own, *ready[:MAX_NODES]]
    wishes = [Wish(name, _choose_image(proof, name), port if name == own else 0) for name in names]
    probe_pods.make_pods(proof.api, proof.run, wishes=wishes)
    pods: list[ProbePod] = []

    def have_started() -> bool:
        pods[:] = probe_pods.read_pods(proof.api, proof.run)
        return all(pod.addresses and (pod.is_running or pod.node != own) for pod in pods)

    becomes_so(host, have_started, timeout_s=_START_S, poll_s=0.3)
    for pod in pods:
        yield from _judge_start(proof, pod)
    mine = next((pod for pod in pods if pod.node == own and pod.addresses), None)
    place = pod_view.find_namespace(host, proof.patient.config.node.cri_socket, pod=mine.name) if mine else None
    if mine is None or place is None:
        if mine is not None:
            yield _unproven(
                "what a new pod reaches: its network namespace is not found (are crictl and nsenter there?)"
            )
        return
    others = [pod for pod in pods if pod.node != own and pod.addresses]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        later = pool.submit(_find_port_cut, proof, place, address=mine.addresses[0], port=port)
        found = list(_judge_ways(proof, _ask_all(proof, place, mine=mine, others=others)))
        cut = later.result()
    yield from found
    if cut is not None:
        yield cut


def _choose_image(proof: _Proof, name: str) -> str:
    """A pause image that the node has, as it says itself, so that none has to be pulled; else the one of this node's runtime."""
    shape: Shape = {"status!": {"images!": [{"names!": [str]}]}}
    told = fit_what_does(proof.nodes[name], shape)["status"]["images"]
    own = [text for image in told for text in image["names"] if "/pause:" in text]
    if own:
        return str(own[0])
    socket = proof.patient.config.node.cri_socket
    return (
        runtime.probe_runtime(proof.patient.host, socket).sandbox_image
        or f"registry.k8s.io/pause:{proof.patient.release.pause_tag}"
    )


# ---- the start of each pod


def _judge_start(proof: _Proof, pod: ProbePod) -> Findings:
    is_own = pod.node == proof.own
    if pod.addresses and (pod.is_running or not is_own):
        yield from _judge_address(proof, pod)
        return
    link = (
        pod_trouble.find_pod_trouble(proof.patient.host, proof.patient.config.node.cri_socket, component=proof.run)
        if is_own
        else None
    )
    if link is not None:
        yield Finding(NAME, ERROR, f"a new pod does not start on this node: {link}", link.remedy)
        return
    lacks = "does not run" if pod.addresses else "got no address"
    why = _read_event(proof.api, pod.name) or (pod.waits_for if pod.has_failed else "")
    where, again = (
        ("this node", "journalctl -u kubelet -n 50") if is_own else (f"node {pod.node}", f"on that machine: {_FREE}")
    )
    if not why:  # a machine that is busy is not broken
        yield _unproven(
            f"a new pod on {where}, since it {lacks} after {_START_S} s ({pod.waits_for or 'no reason given'})"
        )
        return
    yield Finding(NAME, ERROR if is_own else WARNING, f"a new pod on {where} {lacks} within {_START_S} s: {why}", again)


def _read_event(api: Api, name: str) -> str:
    """The newest warning about a pod: what its kubelet failed at."""
    events = api.list(
        path_of("Event", namespace=probe_pods.NAMESPACE), field=f"involvedObject.name={name},type=Warning"
    )
    newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
    return str(newest.get("message", ""))


def _judge_address(proof: _Proof, pod: ProbePod) -> Findings:
    """In kb's own network, pods have addresses of their node's podCIDR, to which the other nodes have routes."""
    patient = proof.patient
    cidrs = _cidrs_of(proof.nodes[pod.node])
    if pod.node != proof.own or not cidrs or not node_routes.is_own_network(patient.host, patient.paths):
        return
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    for address in pod.addresses:
        if not any(ipaddress.ip_address(address) in network for network in networks):
            text = f"a new pod on this node has the address {address}, and the cluster gave this node {' and '.join(cidrs)}: no other node has a route to it"
            again = f"kb {'init' if patient.is_control_plane else 'join'} phase pod-network"
            yield Finding(
                NAME, ERROR, text, f"have {patient.paths.cni_conf / node_routes.CNI_FILE} written again: {again}"
            )


def _cidrs_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    spec = node.get("spec") or {}
    return tuple(spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")]))


def _addresses_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    told = (node.get("status") or {}).get("addresses") or ()
    return tuple(one["address"] for one in told if one.get("type") == "InternalIP")


# ---- the ways


def _ask_all(proof: _Proof, place: Path, *, mine: ProbePod, others: Sequence[ProbePod]) -> Optional[Walk]:
    """None if the pod has ended meanwhile."""
    patient, host = proof.patient, proof.patient.host
    families = {":" in address for address in mine.addresses}
    goals = _find_goals(proof, families)
    neighbours = tuple(
        Neighbour(pod.node, _addresses_of(proof.nodes[pod.node]), address, _cidrs_of(proof.nodes[pod.node]))
        for pod in others
        for address in pod.addresses
        if (":" in address) in families
    )
    name = f"kubernetes.default.svc.{patient.config.cluster.networking.dns_domain}"
    inside, outside = pod_walks.list_questions(mine.addresses, goals=goals, neighbours=neighbours)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        later = pool.submit(_ask_again, host, None, questions=outside, name=name)
        from_pod, from_node = _ask_again(host, place, questions=inside, name=name), later.result()
    if from_pod is None or from_node is None:
        return None
    socket = patient.config.node.cri_socket
    return Walk(
        host,
        mine.addresses,
        goals,
        neighbours,
        from_pod,
        from_node,
        lambda: container_trouble.find_lost_rules(host, socket),
        is_own_network=node_routes.is_own_network(host, patient.paths),
        fates=_watch_lost(host, place, lost=[one for one in neighbours if not from_pod[one.echo]]),
    )


def _watch_lost(host: Host, place: Path, *, lost: Sequence[Neighbour]) -> dict[str, str]:
    """What becomes here of what a pod sends to those that did not answer: it is sent once more, and this node's links are watched."""
    lost = lost[:_MOST_WATCHED]
    if not lost:
        return {}
    watches = [Question("watch", one.pod) for one in lost]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        later = pool.submit(ask, host, None, questions=watches)
        ask(host, place, questions=[one.echo for one in lost])
    return {one.address: fate for one, fate in (later.result() or {}).items()}


def _ask_again(
    host: Host, place: Optional[Path], *, questions: Sequence[Question], name: str
) -> Optional[dict[Question, str]]:
    """What has not answered is asked again: one lost packet is no broken way."""
    found = ask(host, place, questions=questions, name=name)
    for _ in range(_TRIES - 1):
        silent = [one for one in questions if found is not None and not found[one]]
        if found is None or not silent:
            break
        found.update(ask(host, place, questions=silent, name=name) or {})
    return found


def _find_goals(proof: _Proof, families: set[bool]) -> tuple[Goal, ...]:
    service = proof.api.get(path_of("Service", "kubernetes", namespace="default")) or {}
    spec = service.get("spec") or {}
    own = {address: name for name, node in proof.nodes.items() for address in _addresses_of(node)}
    servers = [Question("tcp", host_of(text), port_of(text)) for text in objects.read_api_servers(proof.api)]
    backends = tuple(
        Backend(f"API server {_say(one)}", one, own.get(one.address, ""), is_here=own.get(one.address) == proof.own)
        for one in servers
    )
    goals = [
        Goal(f"the API's Service at {_say(question)}", question, backends)
        for address in spec.get("clusterIPs") or filter(None, [spec.get("clusterIP")])
        for question in [Question("tcp", address, 443)]
    ]
    pods = [(address, node) for address, node in probes.read_dns_pods(proof.api) if (":" in address) in families]
    if_none = ("no pod of CoreDNS is Ready", "kubectl -n kube-system get pods -o wide -l k8s-app=kube-dns")
    addresses = [str(address) for address in proof.patient.config.kubelet.get("clusterDNS") or ()]
    if not pods and dns_service.is_left_out(proof.api, addresses):
        addresses = []
    for address in addresses:
        explain = functools.lru_cache(functools.partial(dns_service.explain_address, proof.api, [address]))
        for kind, by in (("udp", "UDP"), ("dns-tcp", "TCP")):
            behind = tuple(
                Backend(f"CoreDNS on {node} by {by}", Question(kind, pod, 53), node, is_here=node == proof.own)
                for pod, node in pods
            )
            question = Question(kind, address, 53)
            goals.append(Goal(f"the cluster's DNS at {_say(question)} by {by}", question, behind, if_none, explain))
    return tuple(goal for goal in goals if (":" in goal.question.address) in families)


def _say(question: Question) -> str:
    return join_host_port(question.address, question.port)


def _judge_ways(proof: _Proof, walk: Optional[Walk]) -> Findings:
    if walk is None:
        yield _unproven("what a new pod reaches: it ended before it was asked")
        return
    troubles, unproven = walk.judge()
    yield from map(_unproven, unproven)
    policies = probe_pods.find_policies(proof.api, proof.run) if troubles else []
    for trouble in troubles:
        if policies:
            yield _unproven(f"{trouble.what}, which {' and '.join(policies[:3])} may deny")
        else:
            yield Finding(NAME, ERROR, str(trouble), trouble.remedy)


# ---- the host port


def _find_port_cut(proof: _Proof, place: Path, *, address: str, port: int) -> Optional[Finding]:
    """Something listens in the pod, and is called at this node's address. None if it answers, or is not reached at its own address either:
    what keeps this node from its own pod is told as such."""
    host, patient = proof.patient.host, proof.patient
    first = node_routes.find_first_cni_config(host, patient.paths)
    text = host.read_text(patient.paths.cni_conf / first) if first else ""
    node = next((one for one in _addresses_of(proof.nodes[proof.own]) if (":" in one) == (":" in address)), "")
    if not (port and node and "portMappings" in text):
        return _unproven(f"a hostPort, since {first or 'the pod network'} does not say that it maps ports")
    mapped, direct = (f"http://{join_host_port(*where)}/" for where in ((node, port), (address, probe_pods.PORT)))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        served = pool.submit(ask, host, place, questions=[Question("listen", address, probe_pods.PORT)])
        if becomes_so(host, lambda: _greets(host, mapped), timeout_s=3, poll_s=0.3):
            return None
        is_there = _greets(host, direct)
        served.result()
    if not is_there:
        return None
    text = f"a hostPort does not lead to its pod: {mapped} does not answer, and {direct}, to which it leads, does"
    see = "; ".join(f"iptables -t nat -S {chain}" for chain in ("PREROUTING", "OUTPUT", "CNI-HOSTPORT-DNAT"))
    remedy = f"see what takes its packets before the rules of the CNI plugin portmap: {see}"
    return Finding(NAME, ERROR, text, remedy)


def _greets(host: Host, url: str) -> bool:
    try:
        return host.http_get(url, timeout_s=1).body.decode(errors="replace").strip() == GREETING
    except Unreachable:
        return False


def _unproven(text: str) -> Finding:
    return not_proven(NAME, text)
