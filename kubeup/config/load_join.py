"""Turns file and flags into one JoinConfiguration and, once the cluster is found, into the full NodeConfig of a joining
node.

Source: cmd/kubeadm/app/util/config/joinconfiguration.go, cmd/kubeadm/app/cmd/join.go (newJoinData),
cmd/kubeadm/app/util/config/cluster.go (FetchInitConfigurationFromCluster)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Optional

from kubeup.config import choose, pins, schema, types, validate_join, validate_kb
from kubeup.config.convert import convert_documents
from kubeup.config.documents import build, parse_documents
from kubeup.config.flags import JOIN_FIELDS, apply_flags, check_mixing
from kubeup.config.load_init import Chooser, Trees, read_documents, take_kinds, with_node_ip
from kubeup.config.problems import Problems
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.paths import RESOLVED_CONF, Paths
from kubeup.secret import Secret
from kubeup.yaml_files import YAMLError, load_yaml

_JOIN, _KB, _CLUSTER = "JoinConfiguration", "KbConfiguration", "ClusterConfiguration"
JOIN_KINDS = (_JOIN, _KB)
_CONTROL_PLANE_FLAGS = ("apiserver-advertise-address", "apiserver-bind-port", "certificate-key")
_DISCOVERY_FLAGS = (
    "token",
    "discovery-token",
    "discovery-token-ca-cert-hash",
    "discovery-token-unsafe-skip-ca-verification",
)
_JOIN_COMMAND = "take the join command that a control plane prints: kb token create --print-join-command"


@frozen
class JoinWishes:
    """The operator's settings, with every default that does not need the cluster."""

    join: types.JoinConfiguration
    kb: types.KbConfiguration = field(default_factory=types.KbConfiguration)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_join_config(
    host: Host, *, config_file: Optional[Path], flags: Mapping[str, Any], endpoint: str = "", is_member: bool = False
) -> JoinWishes:
    """Load the complete and checked configuration of a join.

    endpoint: the API server's `host:port` from the command line. is_member: the node has already joined, and can
    continue without endpoint and token. Raises UsageError: no-endpoint, mixed-flags, config-not-readable,
    invalid-config, bad-ca-cert-hash.
    """
    problems = Problems.for_flags(flags)
    notes: list[str] = []
    if config_file is not None:
        trees = _read_join(host, config_file, flags=flags, problems=problems)
        if endpoint:
            problems.warnings.append(f"{endpoint} has no effect: {config_file} says where the API server is")
    else:
        trees = _say_join(
            _spread_flags(flags, endpoint, is_member=is_member, problems=problems), flags, problems=problems
        )
    tree = trees.setdefault(_JOIN, {})
    chooser = Chooser(
        host, trees, problems=problems, notes=notes, looks="nothing" if problems else "machine", kind=_JOIN
    )
    join: types.JoinConfiguration = build(schema.JOIN, {**tree, "nodeRegistration": chooser.node_tree()})
    join = _fill_tls_token(join)
    kb = build(schema.KB, trees.get(_KB, {}))
    validate_join.check_join(join, problems, needs_discovery=not is_member)
    validate_kb.check_kb(kb, problems)
    problems.raise_if_any()
    for pin in join.discovery.bootstrap_token.ca_cert_hashes if join.discovery.bootstrap_token else ():
        pins.parse_ca_cert_hash(pin)
    return JoinWishes(join, kb, tuple(notes), tuple(problems.warnings))


def _read_join(host: Host, config_file: Path, *, flags: Mapping[str, Any], problems: Problems) -> Trees:
    """The documents of a file, with the flags that may be combined with it."""
    # an adopted node's file was written by kb: --control-plane only repeats what the node is, and is checked against
    # that
    is_adopted = config_file == Paths().adopted("join")
    check_mixing(
        config_file,
        {name: flags[name] for name in flags if name != "control-plane" or not is_adopted},
        fields=JOIN_FIELDS,
    )
    trees = take_kinds(read_documents(host, config_file, problems=problems), JOIN_KINDS, problems=problems)
    if not problems and _JOIN not in trees:
        raise UsageError(
            f"{config_file} configures no join",
            cause="no JoinConfiguration found in the supplied config",
            remedy="add one; a full example: kb config print join-defaults",
            code="invalid-config",
        )
    apply_flags(flags, trees, problems=problems, fields=JOIN_FIELDS)
    return trees


def _say_join(spread: Mapping[str, Any], given: Mapping[str, Any], *, problems: Problems) -> Trees:
    """The documents that the flags alone describe. spread: the flags as expanded by _spread_flags."""
    trees: Trees = {}
    apply_flags(spread, trees, problems=problems, fields=JOIN_FIELDS)
    for name in _TOKEN_FLAGS:
        if "token" in given and name not in given and name in spread:
            problems.origins[":".join(JOIN_FIELDS[name])] = ("--token", 0)
    return trees


_TOKEN_FLAGS = ("discovery-token", "tls-bootstrap-token")
"""The flags that --token stands for."""


def _spread_flags(flags: Mapping[str, Any], endpoint: str, *, is_member: bool, problems: Problems) -> dict[str, Any]:
    """Expand the flags to fields: --token sets two of them, and a worker ignores the control plane's flags."""
    spread = dict(flags)
    token = spread.pop("token", None)
    if endpoint:
        spread["endpoint"] = endpoint
        if token is not None:
            spread.setdefault("discovery-token", token)
    elif not flags.get("discovery-file"):
        given = [f"--{name}" for name in _DISCOVERY_FLAGS if name in flags]
        if not is_member or given:
            raise no_endpoint(", ".join(given) or "nothing")
    else:
        for name in _DISCOVERY_FLAGS[1:]:
            if spread.pop(name, None) is not None:
                problems.warnings.append(f"--{name} has no effect beside --discovery-file without HOST:PORT")
    if token is not None:
        spread.setdefault("tls-bootstrap-token", token)
    if not flags.get("control-plane"):
        for name in _CONTROL_PLANE_FLAGS:
            if spread.pop(name, None) is not None:
                problems.warnings.append(f"--{name} has no effect without --control-plane")
    return spread


def no_endpoint(given: str) -> UsageError:
    return UsageError(
        "kb join needs to know where the cluster is",
        cause=f"{given} was given, and no HOST:PORT of the API server",
        remedy=_JOIN_COMMAND,
        code="no-endpoint",
    )


def _fill_tls_token(join: types.JoinConfiguration) -> types.JoinConfiguration:
    token = join.discovery.bootstrap_token
    if token is None or join.discovery.tls_bootstrap_token:
        return join
    return replace(join, discovery=replace(join.discovery, tls_bootstrap_token=token.token))


# ---- with the cluster


@frozen
class ClusterDocuments:
    """What a node reads from its cluster before it joins."""

    cluster_text: str
    """ClusterConfiguration, as YAML."""
    kubelet_text: str
    """KubeletConfiguration, as YAML."""
    pod_network: types.PodNetwork
    load_balancer: types.LoadBalancer = types.KbConfiguration.load_balancer
    api_servers: tuple[str, ...] = ()
    """`host:port` of the API servers if the nodes run a load balancer; includes the one that answered."""
    reached_server: str = ""
    """The server that was queried, if the cluster's own name for it resolves only on nodes that have joined."""


def build_join_config(
    host: Host, wishes: JoinWishes, *, stored: ClusterDocuments, server: str, ca_pem: str
) -> types.NodeConfig:
    """What the phases read: the node's own settings and the documents stored in the cluster.

    Raises ClusterError (stored-config-invalid) if a document cannot be parsed.
    """
    notes, warnings = list(wishes.notes), list(wishes.warnings)
    cluster = parse_stored_cluster(host, stored.cluster_text, warnings=warnings)
    endpoint = find_own_endpoint(host, cluster, wanted=wishes.join.control_plane, notes=notes)
    node = wishes.join.node
    if not wishes.kb.only_kubeadm:
        only = (choose.NO_DEFAULT_ROUTE,)  # a worker with several interfaces has nothing better than its default route
        node = with_node_ip(host, node, address=endpoint.advertise_address, cluster=cluster, notes=notes, doubts=only)
    return types.NodeConfig(
        cluster=cluster,
        node=node,
        local_api_endpoint=endpoint,
        certificate_key=wishes.join.control_plane.certificate_key if wishes.join.control_plane else Secret(""),
        skip_phases=wishes.join.skip_phases,
        dry_run=wishes.join.dry_run,
        patches_directory=wishes.join.patches_directory,
        timeouts=wishes.join.timeouts,
        kubelet=_without_foreign_resolver(host, _parse_stored_kubelet(stored.kubelet_text), notes=notes),
        kb=replace(wishes.kb, pod_network=stored.pod_network, load_balancer=stored.load_balancer),
        proxy_env=choose.read_proxy_env(host),
        notes=tuple(notes),
        warnings=tuple(warnings),
        join=types.Join(
            server,
            ca_pem,
            ca_cert_path=wishes.join.ca_cert_path,
            control_plane=wishes.join.control_plane,
            api_servers=stored.api_servers,
            reached_server=stored.reached_server,
        ),
    )


def parse_stored_cluster(host: Host, text: str, *, warnings: list[str]) -> types.ClusterConfiguration:
    """The ClusterConfiguration of ConfigMap kubeadm-config. A field that kb does not know was written by a newer tool
    and does not matter to a joining worker: it is only a warning."""
    problems = Problems(is_lenient=True)
    trees = convert_documents(parse_documents(text, _STORED, problems=problems), Problems())
    if _CLUSTER not in trees or not trees[_CLUSTER].get("kubernetesVersion"):
        told = problems.items[0].text if problems else "it holds no ClusterConfiguration with a kubernetesVersion"
        raise _stored_invalid("kubeadm-config", told)
    warnings.extend([*problems.warnings, *(f"{problem.text} (ignored)" for problem in problems.items)])
    endpoint = types.LocalAPIEndpoint(choose.PLACEHOLDER_ADDRESSES[4])
    chooser = Chooser(host, {_CLUSTER: trees[_CLUSTER]}, problems=problems, notes=[], looks="nothing")
    return chooser.cluster(endpoint, types.KbConfiguration())


_STORED = "ConfigMap kube-system/kubeadm-config"


def _parse_stored_kubelet(text: str) -> types.FrozenDict:
    try:
        found = load_yaml(text)
    except YAMLError as error:
        raise _stored_invalid("kubelet-config", f"it is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or found.get("kind") != "KubeletConfiguration":
        raise _stored_invalid("kubelet-config", "its key kubelet holds no KubeletConfiguration")
    if found.get("apiVersion") != schema.KUBELET_V1BETA1:
        raise _stored_invalid("kubelet-config", f"its apiVersion is {found.get('apiVersion')!r}")
    return {key: value for key, value in found.items() if key not in ("apiVersion", "kind")}


def _without_foreign_resolver(host: Host, document: types.FrozenDict, *, notes: list[str]) -> types.FrozenDict:
    """Drop systemd-resolved's resolver file, which is stored if the first node has one; a node without it could start
    no pods."""
    path = document.get("resolvConf")
    if path != RESOLVED_CONF or host.exists(Path(path)):
        return document
    notes.append(f"the cluster's kubelets start from {path}, which this node does not have: it takes its own")
    return {key: value for key, value in document.items() if key != "resolvConf"}


def _stored_invalid(name: str, cause: str) -> ClusterError:
    return ClusterError(
        f"ConfigMap kube-system/{name} cannot be understood",
        cause=cause,
        remedy=f"look at it on a control plane: kubectl -n kube-system get configmap {name} -o yaml",
        code="stored-config-invalid",
    )


def find_own_endpoint(
    host: Host, cluster: types.ClusterConfiguration, *, wanted: Optional[types.JoinControlPlane], notes: list[str]
) -> types.LocalAPIEndpoint:
    """Where this node's API server listens. A worker has none; its address is used only in checks and hints.

    Raises HostError (no-advertise-address) for a control plane whose address cannot be determined.
    """
    prefer = 6 if ":" in cluster.service_cidrs()[0] else 4
    given = wanted.local_api_endpoint if wanted and wanted.local_api_endpoint else types.LocalAPIEndpoint("")
    choice = choose.choose_advertise_address(
        host, choose.normalize_address(given.advertise_address), prefer=prefer, is_sure=True
    )
    if wanted and not choice.value:
        raise HostError(
            "cannot choose this machine's address",
            cause=choice.message or "no network interface has a usable address",
            remedy=choice.remedy or "say which one: --apiserver-advertise-address IP",
            code="no-advertise-address",
        )
    if wanted and choice.note:
        notes.append(choice.note)
    return replace(given, advertise_address=choice.value or choose.PLACEHOLDER_ADDRESSES[prefer])
