"""Command line flags of init as a table: flag -> kind and field, and kubeadm's rules for mixing them with a file.

Source: cmd/kubeadm/app/cmd/options/*.go, ValidateMixedArguments of cmd/kubeadm/app/apis/kubeadm/validation/validation.go
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from kubeup.config import schema
from kubeup.config.documents import parse_duration
from kubeup.config.problems import Problem, Problems, shorten
from kubeup.errors import UsageError

_INIT, _CLUSTER, _KB = "InitConfiguration", "ClusterConfiguration", "KbConfiguration"

Fields = Mapping[str, tuple[str, str, schema.Type]]

FIELDS: dict[str, tuple[str, str, schema.Type]] = {
    "apiserver-advertise-address": (_INIT, "localAPIEndpoint.advertiseAddress", schema.TEXT),
    "apiserver-bind-port": (_INIT, "localAPIEndpoint.bindPort", schema.NUMBER),
    "certificate-key": (_INIT, "certificateKey", schema.SECRET),
    "cri-socket": (_INIT, "nodeRegistration.criSocket", schema.TEXT),
    "dry-run": (_INIT, "dryRun", schema.BOOL),
    "ignore-preflight-errors": (_INIT, "nodeRegistration.ignorePreflightErrors", schema.TEXTS),
    "node-name": (_INIT, "nodeRegistration.name", schema.TEXT),
    "patches": (_INIT, "patches.directory", schema.TEXT),
    "skip-phases": (_INIT, "skipPhases", schema.TEXTS),
    "token": (_INIT, "bootstrapTokens[0].token", schema.SECRET),
    "token-ttl": (_INIT, "bootstrapTokens[0].ttl", schema.DURATION),
    "apiserver-cert-extra-sans": (_CLUSTER, "apiServer.certSANs", schema.TEXTS),
    "apiserver-extra-args": (_CLUSTER, "apiServer.extraArgs", schema.MapOf(schema.TEXT)),
    "cert-dir": (_CLUSTER, "certificatesDir", schema.TEXT),
    "control-plane-endpoint": (_CLUSTER, "controlPlaneEndpoint", schema.TEXT),
    "controller-manager-extra-args": (_CLUSTER, "controllerManager.extraArgs", schema.MapOf(schema.TEXT)),
    "feature-gates": (_CLUSTER, "featureGates", schema.MapOf(schema.BOOL)),
    "image-repository": (_CLUSTER, "imageRepository", schema.TEXT),
    "kubernetes-version": (_CLUSTER, "kubernetesVersion", schema.TEXT),
    "pod-network-cidr": (_CLUSTER, "networking.podSubnet", schema.TEXT),
    "scheduler-extra-args": (_CLUSTER, "scheduler.extraArgs", schema.MapOf(schema.TEXT)),
    "service-cidr": (_CLUSTER, "networking.serviceSubnet", schema.TEXT),
    "service-dns-domain": (_CLUSTER, "networking.dnsDomain", schema.TEXT),
    "fix": (_KB, "runtime.fix", schema.BOOL),
    "load-balancer": (_KB, "loadBalancer.mode", schema.TEXT),
    "air-gapped": (_KB, "airGapped", schema.BOOL),
    "bundle": (_KB, "bundle", schema.TEXT),
    "verify-key": (_KB, "verifyKey", schema.TEXT),
    "mirror": (_KB, "mirror.endpoint", schema.TEXT),
    "mirror-ca-hash": (_KB, "mirror.caHash", schema.TEXT),
    "packages": (_KB, "packages.source", schema.TEXT),
    "preset": (_KB, "packages.preset", schema.TEXT),
    "pod-network": (_KB, "podNetwork.plugin", schema.TEXT),
    "pod-network-manifest": (_KB, "podNetwork.manifest", schema.TEXT),
    "only-kubeadm": (_KB, "onlyKubeadm", schema.BOOL),
    "soak": (_KB, "soak", schema.DURATION),
}
"""Every flag that says what a document could say. kb's own come last."""

_JOIN = "JoinConfiguration"
_ENDPOINT = "controlPlane.localAPIEndpoint"
_BOOTSTRAP_TOKEN = "discovery.bootstrapToken"  # noqa: S105

JOIN_FIELDS: dict[str, tuple[str, str, schema.Type]] = {
    "apiserver-advertise-address": (_JOIN, f"{_ENDPOINT}.advertiseAddress", schema.TEXT),
    "apiserver-bind-port": (_JOIN, f"{_ENDPOINT}.bindPort", schema.NUMBER),
    "certificate-key": (_JOIN, "controlPlane.certificateKey", schema.SECRET),
    "cri-socket": (_JOIN, "nodeRegistration.criSocket", schema.TEXT),
    "discovery-file": (_JOIN, "discovery.file.kubeConfigPath", schema.TEXT),
    "discovery-token": (_JOIN, f"{_BOOTSTRAP_TOKEN}.token", schema.SECRET),
    "discovery-token-ca-cert-hash": (_JOIN, f"{_BOOTSTRAP_TOKEN}.caCertHashes", schema.TEXTS),
    "discovery-token-unsafe-skip-ca-verification": (
        _JOIN,
        f"{_BOOTSTRAP_TOKEN}.unsafeSkipCAVerification",
        schema.BOOL,
    ),
    "dry-run": (_JOIN, "dryRun", schema.BOOL),
    "endpoint": (_JOIN, f"{_BOOTSTRAP_TOKEN}.apiServerEndpoint", schema.TEXT),
    "ignore-preflight-errors": (_JOIN, "nodeRegistration.ignorePreflightErrors", schema.TEXTS),
    "node-name": (_JOIN, "nodeRegistration.name", schema.TEXT),
    "patches": (_JOIN, "patches.directory", schema.TEXT),
    "skip-phases": (_JOIN, "skipPhases", schema.TEXTS),
    "tls-bootstrap-token": (_JOIN, "discovery.tlsBootstrapToken", schema.SECRET),
    "fix": (_KB, "runtime.fix", schema.BOOL),
    "only-kubeadm": (_KB, "onlyKubeadm", schema.BOOL),
    "soak": (_KB, "soak", schema.DURATION),
    "air-gapped": (_KB, "airGapped", schema.BOOL),
    "mirror": (_KB, "mirror.endpoint", schema.TEXT),
    "mirror-ca-hash": (_KB, "mirror.caHash", schema.TEXT),
    "packages": (_KB, "packages.source", schema.TEXT),
    "preset": (_KB, "packages.preset", schema.TEXT),
}
"""The flags of join, and `endpoint`, the word that is no flag. --token fills two fields: see config/load_join.py."""

_RESET = "ResetConfiguration"

RESET_FIELDS: dict[str, tuple[str, str, schema.Type]] = {
    "cert-dir": (_RESET, "certificatesDir", schema.TEXT),
    "cleanup-tmp-dir": (_RESET, "cleanupTmpDir", schema.BOOL),
    "cri-socket": (_RESET, "criSocket", schema.TEXT),
    "dry-run": (_RESET, "dryRun", schema.BOOL),
    "force": (_RESET, "force", schema.BOOL),
    "ignore-preflight-errors": (_RESET, "ignorePreflightErrors", schema.TEXTS),
    "skip-phases": (_RESET, "skipPhases", schema.TEXTS),
}
"""The flags of kubeadm's reset."""

_BESIDE_CONFIG = frozenset(
    {"cleanup-tmp-dir", "dry-run", "force", "ignore-preflight-errors", "node-name", "skip-phases"}
)


def is_allowed_beside_config(name: str, fields: Fields = FIELDS) -> bool:
    """kb's own flags are, and win over the file, as --node-name does; of kubeadm's only a few."""
    return name not in fields or name in _BESIDE_CONFIG or fields[name][0] == _KB


def check_mixing(config_file: object, flags: Mapping[str, Any], fields: Fields = FIELDS) -> None:
    """Raise UsageError (mixed-flags) where a flag that a file should say stands beside --config."""
    mixed = sorted(name for name in flags if not is_allowed_beside_config(name, fields))
    if mixed:
        told = ", ".join(f"--{name} is {fields[name][1]} of {fields[name][0]}" for name in mixed)
        raise UsageError(
            f"can not mix '--config' with arguments [{' '.join(mixed)}]",
            cause=f"with a configuration file, the file says what these flags say: {told}",
            remedy=f"move them into {config_file}, or leave --config out",
            code="mixed-flags",
        )


def apply_flags(
    flags: Mapping[str, Any], trees: dict[str, dict[str, Any]], problems: Problems, fields: Fields = FIELDS
) -> None:
    """Write the flags that were given into the trees, over what a file says."""
    for name, given in flags.items():
        if name not in fields or given is None:
            continue
        kind, path, wanted = fields[name]
        value = _decode_flag(name, given, wanted, problems)
        if value is None:
            continue
        tree = trees.setdefault(kind, {})
        if name == "ignore-preflight-errors":
            value = [*tree.get("nodeRegistration", {}).get("ignorePreflightErrors", ()), *value]
        if name.endswith("-extra-args"):
            value = [{"name": key, "value": text} for key, text in value]
        problems.origins[f"{kind}:{path}"] = (f"--{name}", 0)
        _put(tree, path, value)
    if flags.get("pod-network-manifest") and "pod-network" not in flags:
        _put(trees[_KB], "podNetwork.plugin", "manifest")


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    if path.startswith("bootstrapTokens[0]."):
        tokens = tree.setdefault("bootstrapTokens", [{}])
        tokens[0][path.partition(".")[2]] = value
        return
    *parents, last = path.split(".")
    place = tree
    for name in parents:
        place[name] = place = dict(place.get(name) or {})
    place[last] = value


def _decode_flag(name: str, given: Any, wanted: schema.Type, problems: Problems) -> Any:
    """What argparse gave -> the value of the tree; None where it is wrong."""
    if isinstance(wanted, schema.ListOf):
        return _split(given)
    if isinstance(wanted, schema.MapOf):
        pairs = _decode_pairs(name, given, wanted.item, problems)
        # of flags each counts, also of one name; a feature gate has one value
        return pairs if pairs is None or name.endswith("-extra-args") else dict(pairs)
    text = str(given)
    value: Any = text
    if wanted is schema.NUMBER:
        value = int(text) if text.lstrip("-").isdecimal() and len(text) < 12 else None
    elif wanted is schema.DURATION:
        value = parse_duration(text)
    elif wanted is schema.BOOL:
        value = parse_bool(text)
    if value is None:
        assert isinstance(wanted, schema.Scalar)
        problems.add(
            Problem(f"--{name}", 0, "", f"wants {wanted.wants}, has {shorten(text)!r}", f"write {wanted.wants}")
        )
    return value


def parse_bool(text: str) -> Optional[bool]:
    """As Go's strconv.ParseBool has it, in any case."""
    return {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}.get(text.lower())


def _split(given: Any) -> list[str]:
    texts = given if isinstance(given, (list, tuple)) else [given]
    return [part.strip() for text in texts for part in str(text).split(",") if part.strip()]


_FLAG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def _decode_pairs(name: str, given: Any, item: schema.Type, problems: Problems) -> Optional[list[tuple[str, Any]]]:
    """`a=b,c=d`, a list of such texts, or a mapping. A part without = continues the value before it
    (admission plugins are a list with commas themselves). A part with a second = is refused, as by kubeadm (argSlice.Set in
    cmd/kubeadm/app/cmd/options): what a comma in such a value means cannot be told."""
    if isinstance(given, Mapping):
        pairs = [f"{key}={value}" for key, value in given.items()]
    else:
        pairs = _split(given)
    found: list[tuple[str, Any]] = []
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals and found and item is schema.TEXT:
            found[-1] = (found[-1][0], f"{found[-1][1]},{key}")
            continue
        if item is schema.TEXT and not isinstance(given, Mapping) and ("=" in text or not _FLAG_NAME.fullmatch(key)):
            remedy = "give it in a file (--config): extraArgs: [{name: NAME, value: VALUE}]"
            told = f"malformed key=value pair in flag value: {shorten(pair)!r}"
            problems.add(Problem(f"--{name}", 0, "", told, remedy))
            return None
        value: Any = text if item is schema.TEXT else parse_bool(text)
        if not equals or not key or value is None:
            form = "name=value,..." if item is schema.TEXT else "Name=true,..."
            problems.add(Problem(f"--{name}", 0, "", f"{shorten(pair)!r} is not {form}", f"write --{name}={form}"))
            return None
        found.append((key, value))
    return found
