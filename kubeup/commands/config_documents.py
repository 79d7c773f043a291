"""The implementation of `kb config print`, `config validate` and `config migrate`.

Source: cmd/kubeadm/app/cmd/config.go. Unlike kubeadm, migrate keeps component configs and UpgradeConfiguration, and
writes no values that depend on the current machine (its name, address, runtime, a random token).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from kubeup import releases
from kubeup.config import choose, render, schema, types, validate_join
from kubeup.config.documents import build
from kubeup.config.load_init import INIT_KINDS, Trees, build_init_config, read_documents, take_kinds
from kubeup.config.problems import Problems, suggest
from kubeup.errors import UsageError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.secret import Secret
from kubeup.yaml_files import dump_yaml

with lazily:
    from kubeup.cluster import addons
    from kubeup.node import kubelet

_INIT, _CLUSTER, _KB = "InitConfiguration", "ClusterConfiguration", "KbConfiguration"
_JOIN, _RESET, _UPGRADE = "JoinConfiguration", "ResetConfiguration", "UpgradeConfiguration"
_KINDS = (*INIT_KINDS, _JOIN, _RESET, _UPGRADE)

_PLACEHOLDER_TOKEN = Secret("abcdef.0123456789abcdef")
_PLACEHOLDER_ADDRESS = "1.2.3.4"


# ---- print


def print_defaults(
    kind: str,
    component_configs: Iterable[str] = (),
    *,
    node_name: str = "node",
    version: str = releases.NEWEST_PROVEN,
) -> str:
    """The documents with every default. kind is init-defaults, join-defaults, reset-defaults or upgrade-defaults; the
    documents are for the minor of `version`."""
    makers: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "init-defaults": lambda name: _default_init(name, version),
        "join-defaults": _default_join,
        "reset-defaults": lambda name: [
            render.render_reset_configuration(types.ResetConfiguration(cri_socket=types.NodeRegistration.cri_socket))
        ],
        "upgrade-defaults": lambda name: [render.render_upgrade_configuration(types.UpgradeConfiguration())],
    }
    if kind not in makers:
        raise UsageError(
            f"{kind} has no defaults to print",
            cause=f"kb prints {', '.join(makers)}",
            remedy=suggest(kind, makers),
            code="unknown-document-kind",
        )
    names = [component_configs] if isinstance(component_configs, str) else component_configs
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    return _join_documents([*makers[kind](node_name), *(_default_component(name, version) for name in wanted)])


def _default_config(node_name: str, version: str) -> types.NodeConfig:
    """The configuration of an init without any flags, on a machine that was not examined."""
    release = releases.find_release(version)
    return types.NodeConfig(
        cluster=types.ClusterConfiguration(f"{release.name}.0"),
        node=types.NodeRegistration(node_name),
        local_api_endpoint=types.LocalAPIEndpoint(_PLACEHOLDER_ADDRESS),
        bootstrap_tokens=(types.BootstrapToken(_PLACEHOLDER_TOKEN),),
    )


def _default_init(node_name: str, version: str) -> list[dict[str, Any]]:
    config = _default_config(node_name, version)
    release = releases.find_release(config.cluster.kubernetes_version)
    return [
        render.render_init_configuration(config),
        render.render_cluster_configuration(config.cluster, release),
    ]


def _default_join(node_name: str) -> list[dict[str, Any]]:
    discovery = types.Discovery(
        bootstrap_token=types.BootstrapTokenDiscovery(
            token=_PLACEHOLDER_TOKEN, api_server_endpoint="kube-apiserver:6443", unsafe_skip_ca_verification=True
        ),
        tls_bootstrap_token=_PLACEHOLDER_TOKEN,
    )
    join = types.JoinConfiguration(node=types.NodeRegistration(node_name), discovery=discovery)
    return [render.render_join_configuration(join)]


def _default_component(name: str, version: str) -> dict[str, Any]:
    config = _default_config("node", version)
    if name == "KubeletConfiguration":
        release = releases.find_release(config.cluster.kubernetes_version)
        return dict(kubelet.render_kubelet_config(config, release).document)
    if name == "KubeProxyConfiguration":
        return addons.render_kube_proxy_config(config)
    raise UsageError(
        f"{name} is not a component configuration",
        cause=f"kb knows {' and '.join(schema.COMPONENT_GROUPS)}",
        remedy=suggest(name, schema.COMPONENT_GROUPS),
        code="unknown-document-kind",
    )


def _join_documents(documents: list[dict[str, Any]]) -> str:
    return "---\n".join(dump_yaml(document) for document in documents)


# ---- validate, migrate


def validate_config_file(host: Host, path: Path, *, as_kubeadm: bool = False) -> list[str]:
    """Check every document of a file without examining the machine; return the warnings. Raises UsageError
    (invalid-config) with every mistake."""
    problems = Problems(is_kubeadm=as_kubeadm)
    _read_checked(host, path, problems=problems)
    return problems.warnings


def migrate_config_file(host: Host, path: Path, *, as_kubeadm: bool = False) -> str:
    """The file's documents in the newest API version, with static defaults filled in. Raises as validate does."""
    problems = Problems(is_kubeadm=as_kubeadm)
    checked = _read_checked(host, path, problems=problems)
    return _join_documents(checked)


def _read_checked(host: Host, path: Path, *, problems: Problems) -> list[dict[str, Any]]:
    """Read and check the file; return its documents as kb would write them, in kubeadm's order."""
    trees = take_kinds(read_documents(host, path, problems=problems), _KINDS, problems=problems)
    if not problems and not {_INIT, _CLUSTER, _JOIN, _RESET, _UPGRADE} & set(trees):
        raise UsageError(
            f"{path} configures nothing",
            cause=f"it holds none of {_INIT}, {_CLUSTER}, {_JOIN}, {_RESET}, {_UPGRADE}",
            remedy="add one of them; a full example: kb config print init-defaults",
            code="invalid-config",
        )
    found = _check_init(host, trees, problems=problems) if {*INIT_KINDS} & set(trees) else []
    if _JOIN in trees:
        found.append(_check_join(trees[_JOIN], problems))
    if _RESET in trees:
        reset = build(schema.RESET, _with_usual_socket(trees[_RESET]))
        validate_join.check_reset(reset, problems)
        found.append(render.render_reset_configuration(reset))
    if _UPGRADE in trees:
        upgrade = build(schema.UPGRADE, trees[_UPGRADE])
        validate_join.check_upgrade(upgrade, problems)
        found.append(render.render_upgrade_configuration(upgrade))
    problems.raise_if_any()
    for kind, version in (*schema.COMPONENT_GROUPS.items(), (_KB, schema.KB_V1ALPHA1)):
        if kind in trees:
            body = render.render_kb_configuration(build(schema.KB, trees[_KB])) if kind == _KB else trees[kind]
            found.append({**body, "apiVersion": version, "kind": kind})
    return found


def _check_init(host: Host, trees: Trees, *, problems: Problems) -> list[dict[str, Any]]:
    config = build_init_config(host, trees, problems=problems, looks="nothing")
    problems.raise_if_any()
    found = []
    if _INIT in trees:
        init = render.render_init_configuration(config)
        paths = ("nodeRegistration.name", "nodeRegistration.criSocket", "localAPIEndpoint.advertiseAddress")
        _drop_unsaid(init, trees[_INIT], paths=paths)
        given = (trees[_INIT].get("localAPIEndpoint") or {}).get("advertiseAddress")
        if given:  # 0.0.0.0 means the machine's own address: keep it
            init["localAPIEndpoint"]["advertiseAddress"] = choose.normalize_address(given)
        if not trees[_INIT].get("bootstrapTokens"):
            del init["bootstrapTokens"]
        for token, shown in zip(config.bootstrap_tokens, init.get("bootstrapTokens", ())):
            if token.is_generated:
                del shown["token"]
        found.append(init)
    if _CLUSTER in trees:
        release = releases.find_release(config.cluster.kubernetes_version)
        cluster = render.render_cluster_configuration(config.cluster, release)
        given = trees[_CLUSTER].get("kubernetesVersion") or ""
        if choose.is_version_label(given):
            cluster["kubernetesVersion"] = given
        elif not given:
            del cluster["kubernetesVersion"]
        found.append(cluster)
    return found


def _with_usual_socket(tree: dict[str, Any]) -> dict[str, Any]:
    given = tree.get("criSocket")
    return {**tree, "criSocket": choose.normalize_socket(given)} if isinstance(given, str) else tree


def _check_join(tree: dict[str, Any], problems: Problems) -> dict[str, Any]:
    node = dict(tree.get("nodeRegistration") or {})
    node["name"] = (node.get("name") or "node").strip().lower()
    node.update(_with_usual_socket(node))
    join: types.JoinConfiguration = build(schema.JOIN, {**tree, "nodeRegistration": node})
    token = join.discovery.bootstrap_token
    if token and not join.discovery.tls_bootstrap_token:
        join = replace(join, discovery=replace(join.discovery, tls_bootstrap_token=token.token))
    validate_join.check_join(join, problems)
    document = render.render_join_configuration(join)
    _drop_unsaid(document, tree, paths=("nodeRegistration.name", "nodeRegistration.criSocket"))
    return document


def _drop_unsaid(document: dict[str, Any], tree: dict[str, Any], *, paths: Iterable[str]) -> None:
    """Remove the fields that the file does not set and that depend on the machine."""
    for path in paths:
        outer, _, name = path.partition(".")
        if not (tree.get(outer) or {}).get(name):
            document[outer].pop(name, None)
