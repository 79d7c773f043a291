"""What the rehearsed API server is started with: the flags and files of the manifest in the backup, without what calls out.

Pure: reads the backup, starts nothing. Source of the flags: kube-apiserver --help, 1.34 to 1.36
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeup.backup.archive import FILES, Backup, Entry
from kubeup.backup.node_content import kms_endpoints
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.node import private_keys
from kubeup.secret import Secret
from kubeup.yaml_files import YAMLError, commands_of_pod, containers_of_pod, load_yaml

DATA, CERTS, TOKENS, SIGNING_KEY = "/kb-etcd", "/kb-certs", "/kb-tokens.csv", "/kb-sa.key"
ETCD_URL, APISERVER_URL = "http://127.0.0.1:2379", "https://127.0.0.1:6443"
PEER_URL = "http://127.0.0.1:2380"
MEMBER = ("--name=kb", f"--initial-cluster=kb={PEER_URL}", f"--initial-advertise-peer-urls={PEER_URL}")
"""The one member that etcdutl makes of the snapshot. Addresses, since nothing resolves names there."""
ETCD_ARGV = (
    "etcd",
    f"--data-dir={DATA}",
    *MEMBER,
    f"--listen-client-urls={ETCD_URL}",
    f"--advertise-client-urls={ETCD_URL}",
    f"--listen-peer-urls={PEER_URL}",
    "--unsafe-no-fsync",
    "--log-level=warn",
)
MANIFEST = "files/etc/kubernetes/manifests/kube-apiserver.yaml"
_TAKEN_OUT = re.compile(
    r"audit-.*|authentication-config|authentication-token-webhook.*|authorization-.*|oidc-.*|egress-selector-config-file"
    r"|cloud-.*|admission-control-config-file|(enable|disable)-admission-plugins|tracing-config-file|anonymous-auth|token-auth-file"
    r"|etcd-(servers|servers-overrides|cafile|certfile|keyfile)|tls-(cert-file|private-key-file|sni-cert-key)|cert-dir"
    r"|advertise-address|bind-address|secure-port|external-hostname|log-file.*|log-dir|peer-.*|endpoint-reconciler-type"
    r"|service-account-signing-endpoint|kubelet-certificate-authority|permit-(address|port)-sharing|shutdown-.*"
)
"""Who calls whom, who may do what, and what is written elsewhere: none of it is needed to read the data."""


@frozen
class Pod:
    """argv: of the API server; files: what lies at which path of the machine; mounts: which of these it sees where.

    kms: the KMS plugins of its encryption configuration, which are not reached: what they encrypted stays unread."""

    argv: tuple[str, ...]
    files: Mapping[Path, bytes]
    mounts: tuple[tuple[Path, str], ...]
    kms: tuple[str, ...] = ()


def plan_pod(backup: Backup, *, token: Secret) -> Pod:
    """Raises HostError (rehearsal-failed) if the backup has no manifest of an API server."""
    pod = _read_manifest(backup)
    files: dict[Path, bytes] = {}
    mounts = []
    for source, target in _mounts_of(pod):
        found = dict(_files_below(backup, source))
        if found:
            files.update(found)
            mounts.append((source, target))
    mounts.append((Path(TOKENS), TOKENS))
    files[Path(TOKENS)] = f'{token.reveal()},kb,kb,"system:masters"\n'.encode()
    command = commands_of_pod(pod)[0]
    kept = [word for word in command[1:] if not _TAKEN_OUT.fullmatch(_name_of(word))]
    kms = _find_kms(command, files=files, mounts=mounts)
    if kms:
        kept = [word for word in kept if not word.startswith("--encryption-provider-config")]
    if any(_name_of(word) == "service-account-signing-endpoint" for word in command[1:]):
        # whoever signs elsewhere keeps the keys there; an API server that has none does not start
        files[Path(SIGNING_KEY)] = private_keys.key_to_pem(private_keys.generate_key("ECDSA-P256")).reveal().encode()
        mounts.append((Path(SIGNING_KEY), SIGNING_KEY))
        kept += [f"--service-account-{name}={SIGNING_KEY}" for name in ("signing-key-file", "key-file")]
    own = (
        f"--etcd-servers={ETCD_URL}",
        f"--cert-dir={CERTS}",
        f"--token-auth-file={TOKENS}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--secure-port=6443",
        "--authorization-mode=AlwaysAllow",
        "--endpoint-reconciler-type=none",
    )
    return Pod((command[0], *kept, *own), files, tuple(mounts), kms)


def _name_of(flag: str) -> str:
    return flag.lstrip("-").partition("=")[0]


def _read_manifest(backup: Backup) -> Mapping[str, Any]:
    try:
        pod = load_yaml(backup.read(MANIFEST).decode()) if backup.has(MANIFEST) else None
    except (YAMLError, UnicodeDecodeError):
        pod = None
    commands = commands_of_pod(pod) if isinstance(pod, dict) else []
    if not isinstance(pod, dict) or not commands or not commands[0]:
        raise HostError(
            "the backup cannot be booted",
            cause=f"it has no manifest of an API server: {MANIFEST}",
            remedy="take another backup; its data can still be restored with etcdutl",
            code="rehearsal-failed",
        )
    return pod


def _mounts_of(pod: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What the container mounts from the host: the host's path, and its own."""
    spec = pod["spec"]
    volumes = {str(row.get("name")): row.get("hostPath") for row in spec.get("volumes") or () if isinstance(row, dict)}
    for row in containers_of_pod(pod)[0].get("volumeMounts") or ():
        told = volumes.get(str(row.get("name"))) if isinstance(row, dict) else None
        source = str(told.get("path") or "") if isinstance(told, dict) else ""
        if source.startswith("/") and row.get("mountPath"):
            yield Path(source), str(row["mountPath"])


def _files_below(backup: Backup, place: Path) -> Iterator[tuple[Path, bytes]]:
    """The files at or below a path of the node, with what links lead to in the links' place."""
    entries = {entry.path: entry for entry in backup.entries if entry.name.startswith(FILES)}
    for path, entry in entries.items():
        if place == path or place in path.parents:
            yield from _contents(backup, path, entries=entries, entry=entry, depth=0)


def _contents(
    backup: Backup, path: Path, *, entries: Mapping[Path, Entry], entry: Entry, depth: int
) -> Iterator[tuple[Path, bytes]]:
    if not entry.link:
        yield path, backup.read(entry.name)
        return
    target = Path(posixpath.normpath(path.parent / entry.link))
    for other, found in entries.items() if depth < 8 else ():
        if other == target or target in other.parents:
            for place, data in _contents(backup, other, entries=entries, entry=found, depth=depth + 1):
                yield path / place.relative_to(target), data


def _find_kms(command: list[str], *, files: Mapping[Path, bytes], mounts: list[tuple[Path, str]]) -> tuple[str, ...]:
    found: list[str] = []
    for word in command:
        name, _, value = word.partition("=")
        if name.lstrip("-") != "encryption-provider-config":
            continue
        for source, target in mounts:
            if value == target or value.startswith(target.rstrip("/") + "/"):
                place = source / value[len(target) :].lstrip("/")
                found += kms_endpoints(files.get(place, b"").decode(errors="replace"))
    return tuple(dict.fromkeys(found))
