"""A change of the configuration that a cluster has stored: the document after it, and what of it a running cluster cannot follow.

Pure. A document is a ClusterConfiguration of v1beta4 as the ConfigMap kubeadm-config stores it; fields that kb does not know stay as they
are. kubeadm has no command for this: its pages have the operator edit the ConfigMap and render the manifests on each node
(https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-reconfigure/).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Optional

from kubeup.config import types
from kubeup.config.problems import shorten
from kubeup.errors import ClusterError, UsageError
from kubeup.frozen_values import frozen
from kubeup.trouble import Trouble, advise

Document = Mapping[str, Any]


@frozen
class Part:
    """A component whose arguments can be changed. word: its name on the command line; pod: its static pod; path: where its settings are in
    a ClusterConfiguration."""

    word: str
    pod: str
    path: tuple[str, ...]


PARTS: Mapping[str, Part] = {
    part.word: part
    for part in (
        Part("apiserver", "kube-apiserver", ("apiServer",)),
        Part("controller-manager", "kube-controller-manager", ("controllerManager",)),
        Part("scheduler", "kube-scheduler", ("scheduler",)),
        Part("etcd", "etcd", ("etcd", "local")),
    )
}


@frozen
class Wish:
    """What somebody wants changed. part: a component's word, or "" for none. sets, unsets: its arguments or fields, in the order in which they
    were given. cluster: the fields of a ClusterConfiguration that are to be as they are here; the others stay. components: the same of a
    KubeletConfiguration or KubeProxyConfiguration, by its word."""

    part: str = ""
    sets: tuple[types.Arg, ...] = ()
    unsets: tuple[str, ...] = ()
    cluster: Mapping[str, Any] = field(default_factory=dict)
    components: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.part or self.cluster or self.components)

    @property
    def is_of_pods(self) -> bool:
        """Whether static pods, or the document that they are made from, may differ with it."""
        return self.part in PARTS or bool(self.cluster) or self.is_empty

    @property
    def names(self) -> frozenset[str]:
        """The arguments that it names."""
        return frozenset((*(arg.name for arg in self.sets), *self.unsets))


def parse_wish(part: str, *, sets: Sequence[str], unsets: Sequence[str]) -> Wish:
    """The wish of `--set NAME=VALUE --unset NAME`. Raises UsageError (bad-setting)."""
    args = tuple(_parse_setting(text) for text in sets)
    names = tuple(dict.fromkeys(_parse_name(text, "--unset", f"--unset {text}") for text in unsets))
    both = sorted({arg.name for arg in args} & set(names))
    if both:
        raise _bad_setting(f"--set and --unset of {both[0]}", "it can have a value, or none", "leave one of them out")
    return Wish(part, args, names)


def _parse_setting(text: str) -> types.Arg:
    name, sign, value = text.partition("=")
    shown = f"--set {shorten(text)}"
    if not sign:
        raise _bad_setting(shown, "it has no value", f"write --set {shorten(name) or 'NAME'}=VALUE")
    if "\n" in value or "\0" in value:
        raise _bad_setting(shown, "its value has a line break or NUL in it", "write it in one line")
    return types.Arg(_parse_name(name, "--set", shown), value)


def _parse_name(text: str, flag: str, shown: str) -> str:  # noqa: PLR0917
    name = text.strip()
    name = name[2:] if name.startswith("--") else name
    if not name or name.startswith("-") or not name.isprintable() or any(char in name for char in " =,\"'"):
        written = f"{flag} NAME=VALUE" if flag == "--set" else f"{flag} NAME"
        raise _bad_setting(shown, "that is not an argument's name", f"write {written}, once for each argument")
    return name


def _bad_setting(what: str, cause: str, remedy: str) -> UsageError:  # noqa: PLR0917
    return UsageError(what, cause=cause, remedy=remedy, code="bad-setting")


# ---- the document after it


def change_document(document: Document, wish: Wish) -> dict[str, Any]:
    """The document with what the wish says. The same object tree if that is so already. Raises ClusterError (stored-config-invalid)."""
    changed = dict(document)
    if wish.part in PARTS:
        path = PARTS[wish.part].path
        own = _at(document, path)
        changed = _with(document, path, _with_args(own, wish))
    if wish.cluster:
        changed = _lay_over(changed, wish.cluster)
    return dict(document) if changed == document else changed


def _at(document: Document, path: Sequence[str]) -> Mapping[str, Any]:
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _with(document: Document, path: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:  # noqa: PLR0917
    first, *rest = path
    inner = _with(_at(document, (first,)), rest, value) if rest else dict(value)
    return {**document, first: inner}


def _with_args(own: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """The settings of a component with the arguments of the wish. An argument that is set takes the place of those of its name; a new one
    comes last. Raises ClusterError (stored-config-invalid) where somebody has edited the stored ones so that they are none."""
    given = own.get("extraArgs") or []
    if not isinstance(given, list) or not all(isinstance(arg, Mapping) for arg in given):
        raise ClusterError(
            f"the stored arguments of {PARTS[wish.part].pod} are not understood",
            cause="extraArgs is no list of names and values in ConfigMap kube-system/kubeadm-config",
            remedy="correct it, as - {name: NAME, value: VALUE}: kubectl -n kube-system edit configmap kubeadm-config",
            code="stored-config-invalid",
        )
    former = [dict(arg) for arg in given]
    wanted = {
        name: [{"name": name, "value": arg.value} for arg in wish.sets if arg.name == name] for name in wish.names
    }
    args: list[dict[str, Any]] = []
    placed: set[str] = set()
    for arg in former:
        name = str(arg.get("name", ""))
        if name not in wanted:
            args.append(arg)
        elif name not in placed:
            placed.add(name)
            args += wanted[name]
    for name in dict.fromkeys(one.name for one in wish.sets):
        if name not in placed:
            args += wanted[name]
    changed = {name: value for name, value in own.items() if name != "extraArgs"}
    return {**changed, "extraArgs": args} if args else changed


_STRUCTS = frozenset(
    ("networking", "apiServer", "controllerManager", "scheduler", "dns", "proxy", "etcd", "local", "external")
)
"""The fields that hold fields of their own: what is not named in them stays."""


def _lay_over(document: Document, fields: Mapping[str, Any]) -> dict[str, Any]:
    laid = dict(document)
    for name, value in fields.items():
        if name in _STRUCTS and isinstance(value, Mapping):
            laid[name] = _lay_over(_at(document, (name,)), value)
        elif value in ("", [], {}):  # as in Go, an empty one is none
            laid.pop(name, None)
        else:
            laid[name] = value
    return laid


def find_unnamed(document: Document, fields: Mapping[str, Any], *, at: str = "") -> Iterator[str]:
    """The fields of the document that a file could name and does not, of those that lists of its make: `apiServer.extraArgs`."""
    for name, value in document.items():
        path = f"{at}.{name}" if at else name
        if name in _STRUCTS and isinstance(value, Mapping):
            given = fields.get(name)
            yield from find_unnamed(value, given if isinstance(given, Mapping) else {}, at=path)
        elif isinstance(value, list) and value and name not in fields:
            yield path


def carry_over(document: Document, *, former: Document, wanted: Document) -> dict[str, Any]:
    """The document with what leads from `former` to `wanted`, and otherwise as it is: somebody else may have changed it meanwhile."""
    carried = dict(document)
    for name in dict.fromkeys((*former, *wanted)):
        was, becomes, is_now = former.get(name), wanted.get(name), document.get(name)
        if was == becomes:
            continue
        if isinstance(becomes, Mapping) and isinstance(is_now, Mapping):
            value: Any = carry_over(is_now, former=was if isinstance(was, Mapping) else {}, wanted=becomes)
        elif isinstance(is_now, list) and is_now != was:
            before, after = ([*one] if isinstance(one, list) else [] for one in (was, becomes))
            kept = [one for one in is_now if one in after or one not in before]
            value = [*kept, *(one for one in after if one not in kept and one not in before)]
        else:
            value = becomes
        carried[name] = value
        if value is None:
            del carried[name]
    return carried


# ---- what cannot be changed


@frozen
class _Fixed:
    """A field that a running cluster cannot change. look: its value; why, way: for the user."""

    path: str
    look: Callable[[types.ClusterConfiguration], object]
    why: str
    way: str


_NEW_CLUSTER = "make a new cluster with it, and move the workloads there"
_FIXED: Sequence[_Fixed] = (
    _Fixed("kubernetesVersion", lambda one: one.kubernetes_version, "programs and data follow it step by step",
           "kb upgrade apply VERSION"),
    _Fixed("controlPlaneEndpoint", lambda one: one.control_plane_endpoint, "certificates and kubeconfigs of every node have it",
           "kb reconfigure endpoint NAME:PORT"),
    _Fixed("clusterName", lambda one: one.cluster_name, "kubeconfigs, and volumes and load balancers of a cloud, are named after it", _NEW_CLUSTER),
    _Fixed("networking.serviceSubnet", lambda one: one.networking.service_subnet, "every Service has an address of it, and certificates have the first",
           _NEW_CLUSTER),
    _Fixed("networking.podSubnet", lambda one: one.networking.pod_subnet, "every node has its part of it, and running pods their addresses", _NEW_CLUSTER),
    _Fixed("networking.dnsDomain", lambda one: one.networking.dns_domain, "certificates, every kubelet and what pods have resolved have it", _NEW_CLUSTER),
    _Fixed("certificatesDir", lambda one: one.certificates_dir, "certificates and keys are there on every control plane",
           "leave them where they are"),
    _Fixed("encryptionAlgorithm", lambda one: one.encryption_algorithm, "the authorities have keys of that kind already, and new certificates keep the keys they have",
           "leave it as it is"),
    _Fixed("etcd.local.dataDir", lambda one: one.local_etcd and one.local_etcd.data_dir, "etcd's data are there, and on an empty folder it begins anew",
           "remove this node from the cluster (kb reset), and join it again"),
    _Fixed("dns.disabled", lambda one: one.dns.disabled, "it says what is installed with a new cluster",
           "install it: kb init phase addon coredns --config FILE; or delete it: kubectl -n kube-system delete deployment coredns"),
    _Fixed("proxy.disabled", lambda one: one.proxy.disabled, "it says what is installed with a new cluster",
           "install it: kb init phase addon kube-proxy --config FILE; or delete it: kubectl -n kube-system delete daemonset kube-proxy"),
)  # fmt: skip
_OWN_ADDRESS = "each control plane has its own"
_REJOIN = "remove this node from the cluster (kb reset), and join it with the other one"
_FIXED_ARGS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "apiserver": {
        "service-cluster-ip-range": ("every Service has an address of it", _NEW_CLUSTER),
        "advertise-address": (_OWN_ADDRESS, _REJOIN),
        "secure-port": ("every node and kubeconfig calls it", _REJOIN),
        "etcd-servers": ("the objects are there", "for an external etcd, change etcd.external.endpoints: kb reconfigure --config FILE"),
    },
    "controller-manager": {
        "cluster-cidr": ("every node has its part of it", _NEW_CLUSTER),
        "service-cluster-ip-range": ("every Service has an address of it", _NEW_CLUSTER),
        "cluster-name": ("volumes and load balancers of a cloud are named after it", _NEW_CLUSTER),
    },
    "etcd": {
        "data-dir": ("etcd's data are there", _REJOIN),
        "wal-dir": ("etcd's log is where it is now", _REJOIN),
        **dict.fromkeys(
            ("name", "initial-cluster", "initial-cluster-state", "initial-cluster-token", "initial-advertise-peer-urls", "advertise-client-urls",
             "listen-peer-urls", "force-new-cluster"),
            ("each member has its own, and they were settled when it joined", "see the members: kb etcd members"),
        ),
    },
}  # fmt: skip
"""Component -> argument -> why it cannot be changed, and the way."""


def refuse_fixed(before: types.ClusterConfiguration, after: types.ClusterConfiguration) -> None:
    """Raises UsageError (not-changeable), with everything that a running cluster cannot follow."""
    refuse(list(find_fixed(before, after)))


def refuse(found: Sequence[Trouble]) -> None:
    """Raises UsageError (not-changeable), unless there is nothing to say."""
    if found:
        raise UsageError(
            found[0].what,
            cause=f"{found[0].cause}; nothing was changed",
            remedy=found[0].remedy,
            code="not-changeable",
            details=[advise(one) for one in found[1:]],
        )


def find_fixed(before: types.ClusterConfiguration, after: types.ClusterConfiguration) -> Iterator[Trouble]:
    if (before.external_etcd is None) != (after.external_etcd is None):
        kinds = ("local", "external") if before.external_etcd is None else ("external", "local")
        yield Trouble(
            f"etcd cannot be changed from {kinds[0]} to {kinds[1]}",
            "the objects of the cluster are in the one that runs",
            "make a new cluster with the other one, and restore the objects there",
        )
        return
    for one in _FIXED:
        was, becomes = one.look(before), one.look(after)
        if was != becomes:
            yield Trouble(f"{one.path} cannot be changed from {_show(was)} to {_show(becomes)}", one.why, one.way)
    yield from _find_fixed_args(before, after)
    yield from _judge_members(before, after)


def _show(value: object) -> str:
    return "unset" if value in ("", None) else str(value).lower() if isinstance(value, bool) else shorten(str(value))


def _find_fixed_args(before: types.ClusterConfiguration, after: types.ClusterConfiguration) -> Iterator[Trouble]:
    for word, names in changed_args(before, after).items():
        for name in sorted(names & set(_FIXED_ARGS.get(word, ()))):
            why, way = _FIXED_ARGS[word][name]
            yield Trouble(f"--{name} of {PARTS[word].pod} cannot be changed", why, way)


def _judge_members(before: types.ClusterConfiguration, after: types.ClusterConfiguration) -> Iterator[Trouble]:
    """Another list of external members is the same etcd only if one of them stays."""
    former, wanted = before.external_etcd, after.external_etcd
    if former and wanted and not set(former.endpoints) & set(wanted.endpoints):
        yield Trouble(
            "etcd.external.endpoints has none of the present members",
            "the objects of the cluster are there; an etcd without any of them may be another one",
            "keep at least one of the present members in the list, and take it out in a second change",
        )


def component_of(cluster: types.ClusterConfiguration, word: str) -> Optional[types.Component]:
    """The settings of a component by its word; None for a local etcd where there is none."""
    owners: Mapping[str, Optional[types.Component]] = {
        "apiserver": cluster.api_server,
        "controller-manager": cluster.controller_manager,
        "scheduler": cluster.scheduler,
        "etcd": cluster.local_etcd,
    }
    return owners[word]


def named_args(fields: Mapping[str, Any], word: str) -> set[str]:
    """The arguments of a component that fields of a ClusterConfiguration name."""
    args = _at(fields, PARTS[word].path).get("extraArgs")
    return {str(arg.get("name", "")) for arg in args or ()}


def changed_args(before: types.ClusterConfiguration, after: types.ClusterConfiguration) -> dict[str, set[str]]:
    """Component -> the names of the arguments whose values differ."""
    changed: dict[str, set[str]] = {}
    for word in PARTS:
        one, other = (_values_of(component_of(cluster, word)) for cluster in (before, after))
        names = {name for name in {*one, *other} if one.get(name) != other.get(name)}
        if names:
            changed[word] = names
    return changed


def _values_of(component: Optional[types.Component]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for arg in component.extra_args if component else ():
        found.setdefault(arg.name, []).append(arg.value)
    return found


# ---- in words


def render_difference(former: str, wanted: str, *, name: str, path: str = "") -> str:
    """A unified diff; "" if the texts are equal. name: of the first; path: of the second, if it is another one."""
    rows = difflib.unified_diff(
        former.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        fromfile=f"{name} (now)",
        tofile=path or name,
    )
    return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)
