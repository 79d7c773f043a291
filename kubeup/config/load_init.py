"""Turns file, flags and environment into one NodeConfig: the order of the steps, and the defaults that need the
machine.

Source: cmd/kubeadm/app/util/config/initconfiguration.go, cmd/kubeadm/app/cmd/init.go (newInitData)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

from kubeup import releases
from kubeup.addresses import join_host_port, split_host_port
from kubeup.config import choose, documents, schema, types, validate, validate_fields
from kubeup.config.convert import convert_documents
from kubeup.config.documents import MAX_BYTES, Document, build, parse_documents
from kubeup.config.flags import apply_flags, check_mixing, is_allowed_beside_config
from kubeup.config.problems import Problem, Problems, shorten
from kubeup.config.token_text import generate_token
from kubeup.errors import KbError, UsageError
from kubeup.machine.host import Host
from kubeup.machine.local_host import LocalHost

_INIT, _CLUSTER, _KB = "InitConfiguration", "ClusterConfiguration", "KbConfiguration"
_KUBELET, _KUBE_PROXY = "KubeletConfiguration", "KubeProxyConfiguration"
INIT_KINDS = (_INIT, _CLUSTER, _KUBELET, _KUBE_PROXY, _KB)

Trees = dict[str, dict[str, Any]]

BundleReader = Callable[[Host, Path], str]
"""Returns the Kubernetes version that a bundle was made for. Bundles belong to airgap/, so the caller passes this
in."""

BALANCER_PORT = 7443
"""The port of controlPlaneEndpoint if a load balancer runs on every node and no other port was given."""

_BY_FLAGS = "The default bootstrap token made by 'kb init'."
"""The description of the token if init runs with flags only; a file has its own."""


def load_init_config(
    host: Host,
    *,
    config_file: Optional[Path],
    flags: Mapping[str, Any],
    only: str = "",
    read_bundle_version: Optional[BundleReader] = None,
) -> types.NodeConfig:
    """Load the complete and checked configuration of an init. `only`: for this phase, or this parent's phases.

    flags: those given on the command line, under kubeadm's names without dashes. Raises UsageError: mixed-flags,
    config-not-readable, invalid-config (all problems at once, in its details). The file is the operator's: it is read
    from this machine even with --root.
    """
    problems = Problems.for_flags(flags)
    trees: Trees = {}
    if config_file is not None:
        check_mixing(config_file, flags)
        trees = _read_init(host, config_file, problems=problems)
    else:
        trees[_INIT] = {"bootstrapTokens": [{"description": _BY_FLAGS}]}
    apply_flags(flags, trees, problems=problems)
    # certificates contain only names and addresses: they need neither the kubelet's version nor a pod network
    looks = "nothing" if problems else "identity" if only.partition("/")[0] == "certs" else "machine"
    config = build_init_config(host, trees, problems=problems, looks=looks, read_bundle_version=read_bundle_version)
    problems.raise_if_any()
    return replace(
        config,
        upload_certs=bool(flags.get("upload-certs")),
        skip_token_print=bool(flags.get("skip-token-print")),
        skip_certificate_key_print=bool(flags.get("skip-certificate-key-print")),
    )


def load_partial_config(
    host: Host,
    *,
    config_file: Optional[Path],
    flags: Mapping[str, Any],
    read_bundle_version: Optional[BundleReader] = None,
) -> types.NodeConfig:
    """Load the configuration for a command that needs only part of it (images, the certificates folder, names). Only
    the version is read from the machine. With a file, flags are ignored but are not an error."""
    problems = Problems.for_flags(flags)
    trees: Trees = {}
    if config_file is not None:
        trees = _read_init(host, config_file, problems=problems)
        flags = {name: value for name, value in flags.items() if is_allowed_beside_config(name)}
    apply_flags(flags, trees, problems=problems)
    looks = "nothing" if problems else "version"
    config = build_init_config(host, trees, problems=problems, looks=looks, read_bundle_version=read_bundle_version)
    problems.raise_if_any()
    return config


def _read_init(host: Host, config_file: Path, *, problems: Problems) -> Trees:
    """The documents of a cluster's configuration. Raises UsageError (invalid-config) if there are none: a file that is
    empty by mistake does not ask for the defaults."""
    trees = take_kinds(read_documents(host, config_file, problems=problems), INIT_KINDS, problems=problems)
    if not problems and not {_INIT, _CLUSTER} & set(trees):
        raise UsageError(
            f"{config_file} configures no cluster",
            cause="no InitConfiguration or ClusterConfiguration kind was found in the configuration file",
            remedy="add one of them; a full example: kb config print init-defaults",
            code="invalid-config",
        )
    return trees


def parse_duration(text: str, flag: str) -> int:
    """A flag's duration in seconds. Raises UsageError (invalid-duration)."""
    seconds = documents.parse_duration(text)
    if seconds is None:
        raise UsageError(
            f"{flag} {shorten(text)}",
            cause="that is not a duration",
            remedy=f"write hours, minutes and seconds: {flag} 24h0m0s",
            code="invalid-duration",
        )
    return seconds


def read_documents(host: Host, path: Path, *, problems: Problems) -> list[Document]:
    """The documents of a configuration file. Raises UsageError (config-not-readable) if it cannot be read."""
    if str(path) == "-":
        raise _unreadable(
            "standard input", "kb reads its configuration from a file", remedy="write it to a file: --config FILE"
        )
    reader: Host = LocalHost() if host.mode == "root" else host
    found = None
    try:
        found = reader.stat(path)
        if found is None:
            raise _unreadable(str(path), "there is no such file", remedy=f"check the path: ls -l {path}")
        if found.is_dir:
            raise _unreadable(str(path), "it is a folder", remedy=f"name a file in it: --config {path}/init.yaml")
        if found.size > MAX_BYTES:
            size = f"the file has {found.size} bytes"
            problems.add(Problem(str(path), 0, "", size, f"a configuration has at most {MAX_BYTES}: give another file"))
            return []
        data = reader.read_bytes(path)
    except UsageError:
        raise
    except (KbError, ValueError) as error:
        cause = error.cause if isinstance(error, KbError) else str(error)
        raise _unreadable(str(path), cause, remedy=f"make it readable: ls -l {path}") from error
    return parse_documents(data, str(path), problems=problems)


def _unreadable(name: str, cause: str, *, remedy: str) -> UsageError:
    return UsageError(f"cannot read {name}", cause=cause, remedy=remedy, code="config-not-readable")


def take_kinds(given: list[Document], kinds: Iterable[str], *, problems: Problems) -> Trees:
    """The v1beta4 trees of the kinds that a command accepts; the rest is ignored with a warning."""
    wanted = [document for document in given if document.kind in kinds]
    for document in given:
        if document.kind not in kinds:
            problems.warnings.append(
                f"{document.file}:{document.line}: kind {document.kind} has no effect here: ignored"
            )
    return convert_documents(wanted, problems)


def build_init_config(
    host: Host,
    trees: Trees,
    *,
    problems: Problems,
    looks: str,
    read_bundle_version: Optional[BundleReader] = None,
) -> types.NodeConfig:
    """Build a NodeConfig with every default from the trees; validation problems are added to `problems`.

    looks: what is read from the machine: "machine" (everything that only it knows), "identity" (its name and address),
    "version" (only that), "nothing". Values that are not read are filled with plausible ones."""
    notes: list[str] = []
    chooser = Chooser(host, trees, problems=problems, notes=notes, looks=looks, read_bundle_version=read_bundle_version)
    kb = build(schema.KB, trees.get(_KB, {}))
    own = {name: value for name, value in trees.get(_INIT, {}).items() if name not in _BUILT_APART}
    init = build(schema.INIT, {**own, "nodeRegistration": chooser.node_tree()})
    endpoint = chooser.local_api_endpoint()
    cluster = chooser.cluster(endpoint, kb)
    if not kb.only_kubeadm and chooser.looks_for_network:
        init["node"] = with_node_ip(
            host, init["node"], address=endpoint.advertise_address, cluster=cluster, notes=chooser.notes
        )
    skip_phases, cluster = _align_addons(init.pop("skip_phases", ()), cluster)
    config = types.NodeConfig(
        **init,
        bootstrap_tokens=_fill_tokens(trees.get(_INIT, {}).get("bootstrapTokens")),
        cluster=cluster,
        local_api_endpoint=endpoint,
        skip_phases=skip_phases,
        kubelet=trees.get(_KUBELET, {}),
        kube_proxy=trees.get(_KUBE_PROXY, {}),
        kb=kb,
        proxy_env=choose.read_proxy_env(host),
    )
    validate.check_init(config, trees, problems=problems)
    return replace(config, notes=tuple(notes), warnings=tuple(problems.warnings))


_BUILT_APART = ("localAPIEndpoint", "bootstrapTokens")


def with_node_ip(
    host: Host,
    node: types.NodeRegistration,
    *,
    address: str,
    cluster: types.ClusterConfiguration,
    notes: list[str],
    doubts: tuple[str, ...] = (choose.NO_DEFAULT_ROUTE, choose.SEVERAL_CARDS),
) -> types.NodeRegistration:
    """Tell the kubelet its address where its own choice may be wrong.

    The kubelet chooses by the default route. Without a default route, or with several interfaces, it is given the
    advertised address, so that registration, etcd and pod routes use the same one. doubts: those that apply. In a
    dual-stack cluster it is given an address of each family, because by itself it registers only one. A cloud provider
    chooses for itself."""
    is_told = any(arg.name in ("node-ip", "cloud-provider") for arg in node.kubelet_extra_args)
    is_dual = len(cluster.service_cidrs()) > 1 or len(cluster.pod_cidrs()) > 1
    if host.mode == "root" or is_told:
        return node
    if is_dual:
        both = choose.choose_dual_addresses(host, address)
        if not both:
            notes.append(
                f"the cluster is dual-stack, and this machine has no usable address of the other family than {address}: "
                "its pods reach those of other nodes in that family only through a tunnel"
            )
            return node  # a single --node-ip would make the node single-stack
        notes.append(f"dual-stack: the kubelet registers with {both[0]} and {both[1]} (--node-ip)")
        return replace(node, kubelet_extra_args=(*node.kubelet_extra_args, types.Arg("node-ip", ",".join(both))))
    doubt = choose.find_doubt_of_address(host, address)
    if doubt not in doubts:
        return node
    notes.append(f"{doubt}: the kubelet registers with {address} (--node-ip)")
    return replace(node, kubelet_extra_args=(*node.kubelet_extra_args, types.Arg("node-ip", address)))


class Chooser:
    """Fills in what the documents leave open. One per load; `kind` is the document that describes this node."""

    def __init__(
        self,
        host: Host,
        trees: Trees,
        *,
        problems: Problems,
        notes: list[str],
        looks: str,
        kind: str = _INIT,
        read_bundle_version: Optional[BundleReader] = None,
    ) -> None:
        self.host = host
        self.read_bundle_version = read_bundle_version
        self.kind = kind
        self.init = trees.get(kind, {})
        self.tree = trees.get(_CLUSTER, {})
        self.problems = problems
        self.notes = notes
        self.looks = looks in ("machine", "identity")
        self.looks_for_network = looks == "machine"
        self.looks_for_version = looks in ("machine", "version")

    def _take(self, kind: str, path: str, *, choice: choose.Choice) -> str:
        if choice.message:
            self.problems.fail(kind, path, message=choice.message, remedy=choice.remedy)
        if choice.note:
            self.notes.append(choice.note)
        if choice.warning:
            self.problems.warnings.append(choice.warning)
        return choice.value

    def node_tree(self) -> dict[str, Any]:
        tree = dict(self.init.get("nodeRegistration") or {})
        tree["name"] = (tree.get("name") or "").strip().lower() or (
            choose.read_node_name(self.host) if self.looks else "node"
        )
        tree["ignorePreflightErrors"] = list(
            dict.fromkeys(name.strip().lower() for name in tree.get("ignorePreflightErrors") or ())
        )
        socket = tree.get("criSocket") or ""
        if not socket:
            choice = choose.choose_cri_socket(self.host) if self.looks_for_network else choose.Choice(_DEFAULT_SOCKET)
            tree["criSocket"] = self._take(self.kind, "nodeRegistration.criSocket", choice=choice)
        else:
            tree["criSocket"] = choose.normalize_socket(socket)
            if socket.startswith("/"):
                self.problems.warn(
                    self.kind, "nodeRegistration.criSocket", message=f"{socket} is taken for unix://{socket}"
                )
        return tree

    def local_api_endpoint(self) -> types.LocalAPIEndpoint:
        tree = dict(self.init.get("localAPIEndpoint") or {})
        given = choose.normalize_address(tree.get("advertiseAddress") or "")
        # the API server needs an address of the same family as its first service subnet
        networking = self.tree.get("networking") or {}
        subnets = networking.get("serviceSubnet") or networking.get("podSubnet") or ""
        prefer = 6 if ":" in (given or subnets.partition(",")[0]) else 4
        if self.looks:
            choice = choose.choose_advertise_address(self.host, given, prefer=prefer, is_sure=bool(subnets))
        else:
            is_open = choose.is_open_address(given)
            choice = choose.Choice(choose.PLACEHOLDER_ADDRESSES[prefer] if is_open else given)
        path = "localAPIEndpoint.advertiseAddress"
        tree["advertiseAddress"] = self._take(_INIT, path, choice=choice) or choose.PLACEHOLDER_ADDRESSES[prefer]
        endpoint: types.LocalAPIEndpoint = build(schema.LOCAL_API_ENDPOINT, tree)
        return endpoint

    def cluster(self, endpoint: types.LocalAPIEndpoint, kb: types.KbConfiguration) -> types.ClusterConfiguration:
        tree = dict(self.tree)
        given = tree.get("kubernetesVersion") or self._version_of_bundle(kb.bundle)
        tree["kubernetesVersion"] = self._version(given)
        etcd = tree.pop("etcd", {})
        tree["networking"] = self._networking(tree.get("networking") or {}, endpoint, kb=kb)
        tree["controlPlaneEndpoint"] = self._endpoint(tree, endpoint, balancer=kb.load_balancer)
        attributes = build(schema.CLUSTER, tree)
        server = attributes.get("api_server", types.APIServer())
        attributes["api_server"] = replace(server, cert_sans=tuple(san.lower() for san in server.cert_sans))
        for name, component in list(attributes.items()):
            if isinstance(component, types.Component):
                attributes[name] = _fill_envs(component)
        return types.ClusterConfiguration(**attributes, **_choose_etcd(etcd))

    def _endpoint(
        self, tree: Mapping[str, Any], endpoint: types.LocalAPIEndpoint, *, balancer: types.LoadBalancer
    ) -> str:
        given = tree.get("controlPlaneEndpoint") or ""
        if not balancer.is_local:
            return _fill_port(given, endpoint.bind_port)
        domain = (tree.get("networking") or {}).get("dnsDomain") or types.Networking.dns_domain
        filled = _fill_port(given or f"kb-api.{domain}", BALANCER_PORT)
        if filled != given:
            self.notes.append(f"the API servers are reached at {filled}, through the load balancer of each node")
        return filled

    def _version_of_bundle(self, path: str) -> str:
        """The version that the bundle was made for; "" without a bundle. Raises HostError if it cannot be read."""
        if not path or not self.read_bundle_version or not self.looks_for_version or self.host.mode == "root":
            return ""
        version = self.read_bundle_version(self.host, Path(path).absolute())
        if version:
            self.notes.append(f"Kubernetes {version}, which the bundle was made for")
        return version

    def _version(self, given: str) -> str:
        if self.looks_for_version:
            choice = choose.choose_version(self.host, given)
        else:
            parsed = releases.parse_version(given)
            is_open = not given or choose.is_version_label(given)
            choice = choose.Choice(parsed.text if parsed else releases.NEWEST_PROVEN if is_open else given)
        return self._take(_CLUSTER, "kubernetesVersion", choice=choice) or releases.NEWEST_PROVEN

    def _networking(
        self, given: Mapping[str, str], endpoint: types.LocalAPIEndpoint, *, kb: types.KbConfiguration
    ) -> dict[str, str]:
        tree = {name: choose.normalize_cidrs(value) if "Subnet" in name else value for name, value in given.items()}
        address = choose.parse_address(endpoint.advertise_address)
        if not tree.get("serviceSubnet") and address is not None and address.version == 6:
            tree["serviceSubnet"] = _SERVICES_V6
            self.notes.append(f"service subnet {_SERVICES_V6}: the advertise address is IPv6, and none was given")
        services = [validate_fields.parse_cidr(part) for part in (tree.get("serviceSubnet") or _SERVICES_V4).split(",")]
        if tree.get("podSubnet") or kb.pod_network.plugin != "bridge" or not self.looks_for_network:
            return tree
        known = [net for net in services if net is not None]
        families = list(dict.fromkeys(net.version for net in known)) or [4]
        taken = [*map(str, known), *([str(address)] if address else [])]
        choice = choose.choose_pod_subnet(self.host, families, taken=taken)
        tree["podSubnet"] = self._take(_CLUSTER, "networking.podSubnet", choice=choice)
        return tree


_DEFAULT_SOCKET = types.NodeRegistration.cri_socket
_SERVICES_V4 = types.Networking.service_subnet
_SERVICES_V6 = "fd00:10:96::/112"


def _fill_port(endpoint: str, bind_port: int) -> str:
    parts = split_host_port(endpoint) if endpoint else None
    return join_host_port(parts[0], bind_port) if parts and parts[1] is None else endpoint


def _choose_etcd(tree: Mapping[str, Any]) -> dict[str, Any]:
    """local unless external is given; if both are given, validate reports it."""
    built = build(schema.ETCD, {name: value for name, value in tree.items() if value is not None})
    if "external" in built:
        return {"external_etcd": built["external"], "local_etcd": None}
    local = built.get("local", types.LocalEtcd())
    return {"local_etcd": replace(_fill_envs(local), extra_volumes=())}


def _fill_envs(component: Any) -> Any:
    """Set fieldRef.apiVersion to v1 in EnvVars without one, as in any pod."""
    envs = []
    for env in component.extra_envs:
        source = env.get("valueFrom")
        if isinstance(source, Mapping) and isinstance(source.get("fieldRef"), Mapping):
            field_ref = {"apiVersion": "v1", **source["fieldRef"]}
            env = {**env, "valueFrom": {**source, "fieldRef": field_ref}}
        envs.append(env)
    return replace(component, extra_envs=tuple(envs))


def _align_addons(
    skip_phases: tuple[str, ...], cluster: types.ClusterConfiguration
) -> tuple[tuple[str, ...], types.ClusterConfiguration]:
    """Store a skipped addon as disabled, and skip a disabled one."""
    names = set(skip_phases)
    dns_off = cluster.dns.disabled or bool({"addon", "addon/coredns"} & names)
    proxy_off = cluster.proxy.disabled or bool({"addon", "addon/kube-proxy"} & names)
    wanted = [*(["addon/coredns"] if dns_off else []), *(["addon/kube-proxy"] if proxy_off else [])]
    added = [] if "addon" in names else [name for name in wanted if name not in names]
    aligned = replace(cluster, dns=replace(cluster.dns, disabled=dns_off), proxy=types.Proxy(disabled=proxy_off))
    return (*skip_phases, *added), aligned


# ---- tokens


def _fill_tokens(trees: Optional[list[dict[str, Any]]]) -> tuple[types.BootstrapToken, ...]:
    """The given tokens, or one with all defaults if none is given. A token value is generated where it is missing."""
    tokens = []
    for tree in trees or [{}]:
        is_generated = not tree.get("token")
        token = build(
            schema.BOOTSTRAP_TOKEN, {**tree, "token": generate_token().reveal() if is_generated else tree["token"]}
        )
        tokens.append(replace(token, is_generated=is_generated))
    return tuple(tokens)
