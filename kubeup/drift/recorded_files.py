"""Files that kb wrote or took over, against its record of them: static pods, the kubelet's files, units, hosts.toml, sysctl.d.

A file drifted where it is neither as one of the steps recorded it nor as the cluster's configuration has it by now: real kubeadm may have
written it meanwhile, for another version. Kubeconfigs are judged by what they are for (identities.py), since renewals write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.drift.drifted import Drift, Ground, drop_wanted, fingerprint, show_difference
from kubeup.engine.items import DIFFERS, File
from kubeup.engine.plan import Difference, Fields, flatten
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.yaml_files import YAMLError, load_yaml

with lazily:
    from kubeup.network import load_balancer, pod_network
    from kubeup.node import etcd_data, kubelet, own_manifests
    from kubeup.phases import kubelet_start
    from kubeup.swap import store

_OWN = ("/var/lib/kb", "/usr/local/lib/kb", "/opt/kb")
"""kb's own folders: what is in them changes with kb."""


def look_at_files(ground: Ground) -> Iterator[Drift]:
    for name in ground.recorded:
        path = Path(name)
        if is_compared(path, ground.run.paths):
            yield from _look_at(ground, path)


def is_compared(path: Path, paths: Paths) -> bool:
    is_own = any(str(path).startswith(f"{folder}/") for folder in _OWN)
    is_kubeconfig = path.suffix == ".conf" and path.parent in (paths.kubernetes, paths.kubeconfigs)
    return path.is_absolute() and not is_own and not is_kubeconfig


def name_of(path: Path, paths: Paths) -> str:
    """The name of what is at this path, to be typed."""
    if path.parent == paths.manifests:
        return f"manifest/{path.stem}"
    if path.parent == paths.kubelet:
        return f"kubelet/{path.name}"
    if path.parent.name.endswith(".service.d"):
        return f"drop-in/{path.parent.name[: -len('.service.d')]}/{path.name}"
    if path.suffix in (".service", ".timer") and path.parent.name == "system":
        return f"unit/{path.stem if path.suffix == '.service' else path.name}"
    if path.name == "hosts.toml":
        return f"hosts.toml/{path.parent.name}"
    if paths.pki in path.parents:
        return f"pki/{path.relative_to(paths.pki)}"
    return f"file{path}"


def find_path(ground: Ground, name: str) -> Optional[Path]:
    """The recorded file of this name; None if there is none."""
    paths = ground.run.paths
    found = (Path(text) for text in ground.recorded if is_compared(Path(text), paths))
    return next((path for path in found if name_of(path, paths) == name), None)


def find_text(ground: Ground, path: Path) -> Optional[str]:
    """The file as it was recorded last; None if only its digest was."""
    for fields in reversed(ground.recorded.get(str(path), [])):
        if "content" in fields:
            return str(fields["content"])
    return None


def _look_at(ground: Ground, path: Path) -> Iterator[Drift]:
    records = ground.recorded[str(path)]
    compared = [_compare(ground, path, fields=fields) for fields in records]
    if not all(compared):
        return
    if _gave_way(ground, path):
        return
    differences, wanted = compared[-1], {}
    if any(one.field for one in differences):
        wanted = _find_wanted(ground, path, fields=[one.field for one in differences])
        differences = drop_wanted(differences, wanted)
    has_text = find_text(ground, path) is not None
    for one in differences:
        yield Drift(
            name_of(path, ground.run.paths),
            str(path),
            *show_difference(one, wanted.get(one.field, "")),
            since=ground.since(path),
            is_fixable=has_text or "lines" in records[-1],
            remedy="" if has_text else f"put {path} back as it was, from a backup",
        )


def _gave_way(ground: Ground, path: Path) -> bool:
    """Whether kb's CNI configuration made room for another network's."""
    run = ground.run
    is_gone = path.parent == run.paths.cni_conf and not run.host.exists(path)
    return is_gone and bool(pod_network.find_foreign_cni_config(run.host, run.paths))


# ---- one file against one record


def _compare(ground: Ground, path: Path, *, fields: Fields) -> Sequence[Difference]:
    if "lines" in fields:
        return _compare_lines(ground, path, wanted=str(fields["lines"]))
    if not {"content", "digest"} & set(fields):
        return ()
    item = File(path, str(fields.get("content", "")), has_mode="mode" in fields, is_secret="digest" in fields)
    found = item.look(ground.run)
    if path == load_balancer.config_path(ground.run.paths):  # the keeper writes it again as API servers come and go
        fields, found = (_without_servers(one) for one in (fields, found or {}))
    if found is None or "content" not in found:
        return (Difference(str(path), ""),)
    rest = (
        [Difference(str(path), "mode", str(fields["mode"]), str(found["mode"]))]
        if _has_other_mode(fields, found)
        else []
    )
    if "digest" in fields:
        same = item.record(found).get("digest") == fields["digest"]
        return rest if same else [Difference(str(path), DIFFERS), *rest]
    return [*_compare_texts(item, str(fields["content"]), found=str(found["content"])), *rest]


def _without_servers(fields: Fields) -> Fields:
    """haproxy.cfg without its lines that name API servers, and without the digest of them."""
    if "content" not in fields:
        return fields
    lines = str(fields["content"]).splitlines(keepends=True)
    kept = (line for line in lines if line.split()[:1] != ["server"] and "http-request return" not in line)
    return {**fields, "content": "".join(kept)}


def _has_other_mode(fields: Fields, found: Fields) -> bool:
    return "mode" in fields and fields["mode"] != found.get("mode")


def _compare_lines(ground: Ground, path: Path, *, wanted: str) -> Sequence[Difference]:
    host = ground.run.host
    text = host.read_bytes(path).decode(errors="surrogateescape") if host.exists(path) else ""
    there = set(text.splitlines())
    return [Difference(str(path), "line", line, "") for line in wanted.splitlines() if line not in there]


def _compare_texts(item: File, recorded: str, *, found: str) -> Sequence[Difference]:
    if item.is_same(recorded, found):
        return ()
    view = _find_view(item.path, recorded)
    if view is None:
        return item.differences({"content": recorded}, {"content": found})
    one, other = view(recorded), view(found)
    names = dict.fromkeys((*one, *other))
    return [
        Difference(item.name, name, one.get(name, ""), other.get(name, ""))
        for name in names
        if one.get(name) != other.get(name)
    ]


def _find_view(path: Path, text: str) -> Optional[Callable[[str], dict[str, str]]]:
    """How the file is taken apart into fields; None if it is YAML or compared by its lines."""
    if path.suffix == ".env":
        return lambda told: {f"--{arg.name}": arg.value for arg in kubelet.parse_flags_env(told)}
    return _fingerprints if "-----BEGIN CERTIFICATE-----" in text else None


def _fingerprints(pem: str) -> dict[str, str]:
    return {"fingerprint": fingerprint(pem)}


# ---- what the cluster's configuration wants by now


def _find_wanted(ground: Ground, path: Path, *, fields: Iterable[str]) -> dict[str, str]:
    """The wanted file by its fields, "" for those of `fields` that it is not to have; {} where the cluster's configuration does not say what
    is wanted, or cannot be asked."""
    if not ground.has_stored:
        return {}
    absent = dict.fromkeys(fields, "")
    try:
        if path.parent == ground.run.paths.manifests and path.stem in store.COMPONENTS:
            return {**absent, **flatten(render_manifest(ground, path.stem))}
        text = _kubelet_files(ground).get(path, "") if path.parent == ground.run.paths.kubelet else ""
        if path == ground.run.paths.kubelet_flags_env:  # the others are as somebody gave them to this node
            return {f"--{name}": value for name, value in _own_flags(text).items()}
        return {**absent, **flatten(load_yaml(text))} if text else {}
    except (KbError, YAMLError, ValueError):
        return {}


def render_manifest(ground: Ground, component: str) -> dict[str, Any]:
    """The static pod as the cluster's stored configuration and version have it."""
    run = ground.run
    pod = own_manifests.render_own(run.host, run.paths, config=run.config, component=component)
    path = run.paths.manifest(component)
    if component != "etcd" or not run.host.exists(path):
        return dict(pod)
    found = load_yaml(run.host.read_text(path))
    return dict(etcd_data.keep_initial_cluster(pod, found) if isinstance(found, Mapping) else pod)


def _own_flags(text: str) -> dict[str, str]:
    """The flags that kubeadm and kb write for a version; "" for those that this version does not have."""
    given = {arg.name: arg.value for arg in kubelet.parse_flags_env(text)}
    return {name: given.get(name, "") for name in kubelet.GENERATED_FLAGS}


def _kubelet_files(ground: Ground) -> Mapping[Path, str]:
    run = ground.run
    shared = kubelet_start.shared_kubelet_config(run)
    return kubelet_start.render_kubelet_files(run, shared, register_with_taints=not ground.patient.is_control_plane)
