"""What control planes were told by flags that takes a part of the cluster away: controllers that are switched off, keys of encryption at rest that
differ, an address that is not kept for pods. Nothing ends with it, and no probe fails.

The flags are those of the mirror pods, which the kubelets make of the manifests that they run.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Optional

from kubeup import moments
from kubeup.addresses import join_host_port
from kubeup.cluster import objects
from kubeup.cluster.api import Api, Object, path_of
from kubeup.config.documents import parse_duration
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine.http import Unreachable
from kubeup.pem import split_pem
from kubeup.shapes import Shape, fit_what_does
from kubeup.trouble import Trouble
from kubeup.yaml_files import commands_of_pod, flags_of, load_mapping

_NEEDED = {
    "endpointslice-controller": ("endpointslice", "Services learn of no new pods"),
    "deployment-controller": ("deployment", "Deployments that are made or changed get no pods"),
    "replicaset-controller": ("replicaset", "pods of Deployments that end are not made again"),
    "daemonset-controller": ("daemonset", "new nodes get no kube-proxy, and no pod of other DaemonSets"),
    "statefulset-controller": ("statefulset", "pods of StatefulSets that end are not made again"),
    "job-controller": ("job", "Jobs do not run"),
    "cronjob-controller": ("cronjob", "CronJobs do not run"),
    "namespace-controller": ("namespace", "namespaces that are deleted stay"),
    "garbage-collector-controller": ("garbagecollector", "what belonged to a deleted object stays"),
    "serviceaccount-controller": ("serviceaccount", "new namespaces get no ServiceAccount, so no pod can be made there"),
    "root-ca-certificate-publisher-controller": ("root-ca-cert-publisher", "pods in new namespaces do not start"),
    "node-lifecycle-controller": ("nodelifecycle", "a node that is lost stays Ready, and its pods are not made elsewhere"),
    "taint-eviction-controller": ("taint-eviction-controller", "pods of a node that is lost are not made elsewhere"),
    "pod-garbage-collector-controller": ("podgc", "pods of nodes that are gone stay"),
    "persistentvolume-binder-controller": ("persistentvolume-binder", "claims get no volumes"),
    "persistentvolume-attach-detach-controller": ("attachdetach", "volumes are not attached to nodes"),
    "disruption-controller": ("disruption", "PodDisruptionBudgets are not kept up to date, so evictions are refused"),
}  # fmt: skip
"""controller -> (its former name, what is missing without it). Source: cmd/kube-controller-manager/names/controller_names.go and the aliases"""
_WHOLE_LIST_S = 10


@frozen
class Planes:
    """The static pods of all control planes. pods: component -> node -> pod."""

    api: Api
    pods: Mapping[str, Mapping[str, Object]]

    def flags(self, component: str) -> dict[str, dict[str, str]]:
        """Node -> the flags of its static pod of this component, as its kubelet reported it."""
        return {node: _flags_of(pod, component) for node, pod in self.pods.get(component, {}).items()}


def read_planes(api: Api) -> Planes:
    """Raises Unreachable, ApiRefused."""
    pods: dict[str, dict[str, Object]] = {}
    for pod in api.list(path_of("Pod", namespace=objects.SYSTEM), label="tier=control-plane"):
        found = fit_what_does(pod, _POD)
        component, node = found["metadata"]["labels"]["component"], found["spec"]["nodeName"]
        if component and node and _flags_of(pod, component):
            pods.setdefault(component, {})[node] = pod
    return Planes(api, {component: dict(sorted(some.items())) for component, some in pods.items()})


def _flags_of(pod: Object, component: str) -> dict[str, str]:
    commands = [words for words in commands_of_pod(pod) if words and words[0].rpartition("/")[2] == component]
    return flags_of(commands[0]) if commands else {}


_POD: Shape = {"metadata!": {"labels!": {"component!": str}}, "spec!": {"nodeName!": str}}


def find_lost_controllers(planes: Planes) -> list[Trouble]:
    """The controllers that each cluster needs and that a controller-manager was told not to run. Raises Unreachable, ApiRefused."""
    lost: dict[str, list[str]] = {}
    for node, flags in planes.flags("kube-controller-manager").items():
        told = [word.strip() for word in flags.get("controllers", "*").split(",")]
        for name in (name for name in _NEEDED if not _is_on(name, told)):
            lost.setdefault(name, []).append(node)
    return [
        Trouble(
            f"{' and '.join(nodes)} run{'s' * (len(nodes) == 1)} kube-controller-manager without {name}: {_NEEDED[name][1]}",
            "its flag --controllers leaves it out"
            + ("" if len(nodes) > 1 else ", which matters while it leads (kubectl -n kube-system get leases)"),
            "put it back on each machine, in /etc/kubernetes/manifests/kube-controller-manager.yaml: --controllers=*,bootstrapsigner,tokencleaner",
        )
        for name, nodes in lost.items()
    ]


def _is_on(name: str, told: Sequence[str]) -> bool:
    """Source: controller-manager/app/helper.go, IsControllerEnabled: the first word that names it counts, then `*`"""
    names = (name, _NEEDED[name][0])
    for word in told:
        if word.lstrip("-") in names:
            return not word.startswith("-")
    return "*" in told


def find_unlisted_servers(planes: Planes) -> list[Trouble]:
    """API servers that serve, and to which the Service `kubernetes` of the pods does not lead. Each keeps its own address there. Raises Unreachable,
    ApiRefused. Source: pkg/controlplane/reconcilers"""
    api, pods = planes.api, planes.pods.get("kube-apiserver", {})
    listed = objects.read_api_servers(api)
    told = {node: flags for node, flags in planes.flags("kube-apiserver").items() if _has_served(api, pods[node])}
    places = {node: _find_place(flags) for node, flags in told.items() if flags.get("advertise-address")}
    missing = [node for node, place in places.items() if place not in listed and _serves(api, place)]
    if not missing:
        return []
    off = [node for node in missing if told[node].get("endpoint-reconciler-type") == "none"]
    named = " and ".join(f"{places[node]} of {node}" for node in missing)
    what = f"the Service kubernetes, at which pods call the API, does not lead to API server {named}"
    if off:
        cause, remedy = (
            "with --endpoint-reconciler-type=none it keeps no address there",
            f"take that flag out of /etc/kubernetes/manifests/kube-apiserver.yaml on {' and '.join(off)}",
        )
    else:
        cause = f"EndpointSlice default/kubernetes has {', '.join(listed) or 'no address'}"
        remedy = "have it written anew: kubectl -n default delete endpointslice kubernetes; kubectl -n default delete endpoints kubernetes"
    return [Trouble(what, cause, remedy)]


def _serves(api: Api, place: str) -> bool:
    """Whether it is ready by its own word, and reads from etcd: of a machine that is gone, the cluster keeps what its kubelet said last."""
    own = api.with_server(f"https://{place}")
    with contextlib.suppress(Unreachable):
        return all(
            own.probe_health(path, timeout_s=_READY_S).status == 200
            for path in ("/readyz", path_of("Namespace", objects.SYSTEM))
        )
    return False


_READY_S = 3


def _has_served(api: Api, pod: Object) -> bool:
    """Whether it has been Ready for some time: one that starts or ends is not in the list."""
    ready = next((one for one in fit_what_does(pod, _READY)["status"]["conditions"] if one["type"] == "Ready"), None)
    since = moments.find(ready["lastTransitionTime"]) if ready is not None and ready["status"] == "True" else None
    return since is not None and (api.host.now() - since).total_seconds() > _LISTED_S


_READY = {"status!": {"conditions!": [{"type!": str, "status!": str, "lastTransitionTime!": str}]}}
_LISTED_S = 15


def _find_place(flags: Mapping[str, str]) -> str:
    return join_host_port(flags["advertise-address"], flags.get("secure-port") or "6443")


def find_foreign_root(planes: Planes) -> Optional[Trouble]:
    """Whether pods are given other authorities than that with which this identity knows the API server. Raises Unreachable, ApiRefused."""
    name = "kube-root-ca.crt"
    given = _split_certs(objects.read_config_key(planes.api, name, key="ca.crt"))
    known = planes.api.identity.tls.ca
    if not given or known is None or given & _split_certs(known.pem):
        return None
    flags = {node: told.get("root-ca-file", "?") for node, told in planes.flags("kube-controller-manager").items()}
    places = ", ".join(f"{path} on {node}" for node, path in flags.items())
    what = f"pods are told to trust another authority than the API server's (ConfigMap {objects.SYSTEM}/{name}), so they cannot call it"
    remedy = "correct it in /etc/kubernetes/manifests/kube-controller-manager.yaml: --root-ca-file=/etc/kubernetes/pki/ca.crt"
    return Trouble(what, f"kube-controller-manager takes it from --root-ca-file: {places}", remedy)


def _split_certs(text: str) -> set[str]:
    return {block.text.strip() for block in split_pem(text) if block.is_cert}


def find_unread_secrets(planes: Planes) -> list[Trouble]:
    """API servers with encryption at rest that cannot decrypt what is stored: each has its own file of keys. Raises Unreachable, ApiRefused."""
    encrypting = {
        node: f"https://{_find_place(flags)}"
        for node, flags in planes.flags("kube-apiserver").items()
        if flags.get("encryption-provider-config") and flags.get("advertise-address")
    }
    told = {node: _ask_secrets(planes.api.with_server(server)) for node, server in encrypting.items()}
    well = next((node for node, why in told.items() if why == ""), "")
    return [
        Trouble(
            f"the API server of {node} cannot read all Secrets",
            f"{why}: the keys in its EncryptionConfiguration are not those with which they were written",
            "have every control plane use the same file (--encryption-provider-config)"
            + (f", such as that of {well}, which reads them all" if well else ", with the former key as a further one"),
        )
        for node, why in told.items()
        if why
    ]


def _ask_secrets(own: Api) -> Optional[str]:
    """What keeps an API server from decrypting the Secrets, of which it has to tell only the names; None if that is not known."""
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    try:
        answer = own.probe_health(path_of("Secret"), timeout_s=_WHOLE_LIST_S, accept=accept)
    except Unreachable:
        return None
    message = str(as_table(answer.body[:2000].decode(errors="replace")).get("message") or "")
    is_refused = answer.status == 500 or (
        answer.status == 429 and _NO_KEY in message
    )  # 429: its cache could not be filled
    return "" if answer.status == 200 else message if is_refused else None


_NO_KEY = "unable to transform key"


_SCARCE = 20
"""Requests at a time. The kubelets, controllers and schedulers of one node have more than that under way; by default it is 400 and 200."""


def find_uneven_ports(planes: Planes) -> list[Trouble]:
    """API servers that listen at different ports: the list of them, from which Services and load balancers have theirs, has one port for all."""
    told = {node: flags.get("secure-port") or "6443" for node, flags in planes.flags("kube-apiserver").items()}
    if len(set(told.values())) < 2:
        return []
    what = "API servers listen at different ports, and the cluster's list of them has one port for all, which of them is chance"
    cause = ", ".join(f"{port} on {node}" for node, port in told.items())
    return [Trouble(what, cause, "give all the same --secure-port, in /etc/kubernetes/manifests/kube-apiserver.yaml")]


def find_foreign_ranges(planes: Planes) -> list[Trouble]:
    """API servers whose range of Services is not the one in which the cluster has its own. Raises Unreachable, ApiRefused."""
    service = fit_what_does(planes.api.get(path_of("Service", "kubernetes", namespace="default")) or {}, _SERVICE)
    own = service["spec"]["clusterIP"]
    told = {node: flags.get(_RANGE, "") for node, flags in planes.flags("kube-apiserver").items()}
    astray = {node: ranges for node, ranges in told.items() if ranges and own and not _has(ranges, own)}
    if not astray:
        return []
    named = " and ".join(astray)
    what = f"the API server{'s' * (len(astray) > 1)} of {named} give{'s' * (len(astray) == 1)} Services addresses of another range than the cluster's"
    cause = f"--{_RANGE}={' and '.join(dict.fromkeys(astray.values()))}, and Service default/kubernetes has {own}"
    remedy = f"put the former --{_RANGE} back in /etc/kubernetes/manifests/kube-apiserver.yaml on {named}; a further range is added as a ServiceCIDR"
    return [Trouble(what, cause, remedy)]


_RANGE = "service-cluster-ip-range"
_SERVICE: Shape = {"spec!": {"clusterIP!": str}}


def _has(ranges: str, address: str) -> bool:
    """Whether one of the networks has it, or cannot be read."""
    try:
        return any(
            ipaddress.ip_address(address) in ipaddress.ip_network(one, strict=False) for one in ranges.split(",")
        )
    except ValueError:
        return True


def find_signerless(planes: Planes) -> list[Trouble]:
    """Controller-managers that were given no authority to sign with, in a cluster whose authority's key is at hand (else it is kept elsewhere, and that
    is meant). Source: cmd/kubeadm/app/phases/controlplane/manifests.go"""
    told = planes.flags("kube-controller-manager")
    lacking = [
        node for node, flags in told.items() if not all(_is_given(flags, kind) for kind in ("cert-file", "key-file"))
    ]
    if not lacking:
        return []
    what = f"{' and '.join(lacking)} run{'s' * (len(lacking) == 1)} kube-controller-manager that signs nothing: no node can join, and kubelets' certificates end"
    cause = "it lacks --cluster-signing-cert-file or --cluster-signing-key-file"
    remedy = (
        "put them back on each machine, in /etc/kubernetes/manifests/kube-controller-manager.yaml: "
        "--cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt, --cluster-signing-key-file=/etc/kubernetes/pki/ca.key"
    )
    return [Trouble(what, cause, remedy)]


def _is_given(flags: Mapping[str, str], kind: str) -> bool:
    return bool(
        flags.get(f"cluster-signing-{kind}") or flags.get(f"cluster-signing-kube-apiserver-client-kubelet-{kind}")
    )


def find_scarce_servers(planes: Planes) -> list[Trouble]:
    """API servers that were told to take few requests at a time, and turn the others away (429). Raises Unreachable, ApiRefused."""
    told = {
        (node, flag): flags[flag]
        for node, flags in planes.flags("kube-apiserver").items()
        for flag in ("max-requests-inflight", "max-mutating-requests-inflight")
        if flags.get(flag, "").isdigit() and 0 < int(flags[flag]) < _SCARCE
    }
    return [
        Trouble(
            f"the API server of {node} takes only {value} request{'s' * (value != '1')} at a time, and turns others away (429)",
            f"its flag --{flag}={value}",
            f"take it out of /etc/kubernetes/manifests/kube-apiserver.yaml on {node}",
        )
        for (node, flag), value in told.items()
    ]


_RHYTHM = {"heartbeat-interval": "100", "election-timeout": "1000"}
"""Milliseconds, etcd's defaults."""


def find_uneven_members(planes: Planes) -> list[Trouble]:
    """Members of etcd that do not agree how often a leader has to be heard: one that is slow makes the others elect again and again. Raises Unreachable,
    ApiRefused. Source: etcd, tuning"""
    members = planes.flags("etcd")
    found = []
    for flag, default in _RHYTHM.items():
        told = {node: flags.get(flag) or default for node, flags in members.items()}
        if len(set(told.values())) > 1:
            what = f"members of etcd have different --{flag}, so its leader may change without need"
            cause = ", ".join(f"{value} ms on {node}" for node, value in told.items())
            found.append(Trouble(what, cause, "give all the same, in /etc/kubernetes/manifests/etcd.yaml"))
    return found


_LEADING = ("kube-controller-manager", "kube-scheduler")
_LONG_LEASE_S = 60


def find_unled(planes: Planes) -> list[str]:
    """The components whose pods all work without leader election, and of which nobody renews a lease. Raises Unreachable, ApiRefused."""
    told = {name: planes.flags(name).values() for name in _LEADING}
    return [name for name, some in told.items() if some and all(flags.get("leader-elect") == "false" for flags in some)]


def find_unelected(planes: Planes) -> list[Trouble]:
    """Controllers and schedulers that work whether another one leads or not, so that several do the same at once."""
    found = []
    for name in _LEADING:
        members = planes.flags(name)
        off = [node for node, flags in members.items() if flags.get("leader-elect") == "false"]
        if off and len(members) > 1:
            what = f"{name} works on {' and '.join(off)} whether another one leads or not"
            remedy = f"take it out of /etc/kubernetes/manifests/{name}.yaml there"
            found.append(Trouble(what, "its flag --leader-elect=false", remedy))
    return found


def find_long_leases(planes: Planes) -> list[Trouble]:
    """Leader elections that keep the place of one that is gone."""
    found = []
    rows = [(name, node, flags) for name in _LEADING for node, flags in planes.flags(name).items()]
    for name, node, flags in rows:
        duration = flags.get("leader-elect-lease-duration", "")
        lasts_s = parse_duration(duration) or 0
        if lasts_s > _LONG_LEASE_S:
            what = f"nobody takes over from {name} of {node} for {lasts_s} s once its machine is gone"
            cause = f"its flag --leader-elect-lease-duration={duration} (15 s by default)"
            remedy = f"take it out of /etc/kubernetes/manifests/{name}.yaml on {node}; if it is gone: kubectl -n {objects.SYSTEM} delete lease {name}"
            found.append(Trouble(what, cause, remedy))
    return found


def read_issuers(planes: Planes) -> dict[str, str]:
    """Node -> the issuer of tokens that its API server was told. Raises Unreachable, ApiRefused."""
    return {node: flags.get("service-account-issuer", "") for node, flags in planes.flags("kube-apiserver").items()}


_KEPT_MAPS = {
    "kubeadm-config": ("ClusterConfiguration", "no node can join as a control plane, or be upgraded", "kubeadm"),
    "kubelet-config": ("kubelet", "no node can join, or be upgraded", "kubelet"),
}
"""name -> (key, what is not possible without it, the phase that writes it)"""


def find_lost_maps(api: Api) -> list[Trouble]:
    """ConfigMaps that nobody misses until the next join or upgrade. Raises Unreachable, ApiRefused."""
    found = []
    for name, (key, without, phase) in _KEPT_MAPS.items():
        text = objects.read_config_key(api, name, key=key)
        try:
            load_mapping(text, f"ConfigMap {name}")
            why = "" if text else f"it is not there, or has no {key}"
        except HostError as error:
            why = error.cause
        if why:
            what = f"ConfigMap {objects.SYSTEM}/{name} cannot be read: {without}"
            found.append(Trouble(what, why, f"write it anew, on a control plane: kb init phase upload-config {phase}"))
    # who must not show it to everybody takes its RoleBinding away, and not the ConfigMap, as kubeadm's documentation says
    if api.get(path_of("ConfigMap", "cluster-info", namespace=objects.PUBLIC)) is None:
        what, remedy = "no node can join by a token", "write it anew, on a control plane: kb init phase bootstrap-token"
        found.append(Trouble(what, f"there is no ConfigMap {objects.PUBLIC}/cluster-info", remedy))
    return found


def find_unmarked_nodes(planes: Planes) -> list[Trouble]:
    """Control planes that are not marked as such: upgrades, load balancers and kubeadm look for the label. Raises Unreachable, ApiRefused."""
    label = objects.CONTROL_PLANE_TAINT.key
    marked = {str(node["metadata"]["name"]) for node in planes.api.list(path_of("Node"), label=label)}
    return [
        Trouble(
            f"node {node} runs an API server, and is not marked as a control plane",
            f"it has no label {label}",
            f"kubectl label node {node} {label}=",
        )
        for node in planes.pods.get("kube-apiserver", ())
        if node not in marked
    ]
