"""The commands bundle create, verify, show and diff."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup import releases
from kubeup.commands import launcher
from kubeup.config import presets
from kubeup.errors import HostError, UsageError, shown
from kubeup.lazy_modules import lazily
from kubeup.secret import Secret

with lazily:
    from kubeup.airgap import (
        bundle,
        bundle_needs,
        bundle_signature,
        bundle_sources,
        bundle_verify,
        bundle_write,
        downloads,
        oci_layout,
    )
    from kubeup.config import load_init
    from kubeup.machine import process
    from kubeup.network import pod_network

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.machine.local_host import LocalHost


def create(call: Invocation) -> int:
    """Gather the content, then write the bundle. Downloads are kept next to the file until it is complete."""
    local, target = launcher.open_host(call), str(launcher.required(call, "output-file"))
    is_stream = process.is_stream(target)  # downloads cannot be kept next to a stream
    out = Path("kb-bundle.tar" if is_stream else target).absolute()
    if not out.name:
        raise UsageError(
            f"--output-file {target}",
            cause="it is a folder",
            remedy="name a file in that folder: --output-file kb-bundle.tar",
            code="usage",
        )
    config = _load_config(call, local)
    since = oci_layout.open_layout(local, Path(call.flags["since"]).absolute()) if "since" in call.flags else None
    key = Secret(local.read_text(Path(call.flags["sign"]).absolute())) if "sign" in call.flags else None
    spool = out.with_name(f".{out.name[:200]}.parts")
    written = bundle_write.write_bundle(
        _gather(call, local, config=config, spool=spool),
        Path(target) if is_stream else out,
        kubernetes_version=config.cluster.kubernetes_version,
        since=since,
        key=key,
    )
    local.remove_tree(spool)
    less = f", {written.left_out} left out that {call.flags['since']} has" if since else ""
    text = (
        f"{written.images} images, {written.files} files, {written.blobs} blobs{less}, "
        f"{written.bytes / 2**20:.0f} MiB\n{written.digest}"
    )
    if process.given_descriptor(target) == 1:
        call.report.line(text)  # standard output carries the bundle itself
    else:
        call.print(f"{target if is_stream else out}: {text}")
    return 0


def _gather(call: Invocation, local: LocalHost, *, config: NodeConfig, spool: Path) -> bundle_sources.Gathering:
    """Gather everything that the bundle should hold; downloads go below `spool`."""
    preset = presets.find_preset(str(call.flags.get("preset", "")))
    archs = tuple(call.flags.get("arch") or (downloads.MACHINES.get(_machine(local), "amd64"),))
    _check_archs(archs)
    sources = bundle_sources.parse_sources(
        local, call.flags.get("from", ()), preset=preset, versions=_pairs(call, "use")
    )
    local.make_private_dir(spool)
    gathering = bundle_sources.Gathering(local, spool, archs, tell=call.report.waiting)
    for need in _image_needs(call, local, config=config):
        gathering.add_image(need, sources)
    without = tuple(call.flags.get("without", ()))
    files = bundle_needs.plan_files(archs, without=without) if "files" not in without else ()
    gathering.add_files(files, sources, kubernetes_version=config.cluster.kubernetes_version)
    _add_own_files(call, gathering)
    return gathering


def verify(call: Invocation) -> int:
    """Check every digest, the signature if a key is given, and what a configuration would lack. Needs no network."""
    local = launcher.open_host(call)
    found = _open(call, local)
    base = oci_layout.open_layout(local, Path(call.flags["since"]).absolute()) if "since" in call.flags else None
    if "verify-key" in call.flags:
        bundle_signature.check_signature(found, local.read_text(Path(call.flags["verify-key"]).absolute()))
    needs: Sequence[Any] = ()
    files: Sequence[Any] = ()
    if {"config", "kubernetes-version", "image"} & set(call.flags):
        needs = _image_needs(call, local, config=_load_config(call, local))
        files = bundle_needs.plan_files(tuple(call.flags.get("arch") or _archs_in(local, found)))
    verdict = bundle_verify.verify_bundle(local, found, base=base, needs=needs, files=files, tell=call.report.waiting)
    if call.output != "text":
        missing = [{"name": need.name, "neededBy": need.by} for need in verdict.missing]
        call.print_value(
            {"problems": list(verdict.problems), "missing": missing, "blobs": verdict.blobs, "bytes": verdict.bytes}
        )
    if verdict.problems or verdict.missing:
        lines = [*verdict.problems, *(f"{need.name} is missing, for {need.by}" for need in verdict.missing)]
        raise HostError(
            f"{found.path} is not fit for use",
            cause=lines[0],
            remedy="get it again from where it was made, or make it again: kb bundle create",
            code="bundle-not-fit",
            details=lines,
        )
    if call.output == "text":
        fit = " and has all that the configuration needs" if needs else ""
        call.print(f"{found.path} is whole{fit}: {verdict.blobs} blobs, {verdict.bytes / 2**20:.0f} MiB")
    return 0


def show(call: Invocation) -> int:
    """Print names, sizes and digests."""
    local = launcher.open_host(call)
    found = _open(call, local)
    told = found.index.get("annotations") or {}
    images = [{"name": name, "digest": entry["digest"]} for name, entry in sorted(found.names.items())]
    entries = bundle.list_files(local, found)
    artifacts = [str(entry["digest"]) for entry in bundle.list_artifacts(found)]
    if call.output != "text":
        call.print_value({
            "kubernetesVersion": told.get(bundle.KUBERNETES, ""), "since": told.get(bundle.SINCE, ""), "images": images,
            "files": [{**vars(item), "mode": f"{item.mode:04o}"} for item in entries], "artifacts": artifacts, "isSigned": bool(found.signature), "digest": oci_layout.digest_of(found.index_bytes),
        })  # fmt: skip
        return 0
    lines = [f"Kubernetes {shown(told.get(bundle.KUBERNETES, '(unknown)'))}, {oci_layout.digest_of(found.index_bytes)}"]
    lines.append("signed" if found.signature else "not signed")
    if told.get(bundle.SINCE):
        lines.append(f"a delta: it needs the blobs of the bundle {shown(told[bundle.SINCE])}")
    lines += [f"image  {item['digest'][7:19]}  {shown(item['name'])}" for item in images]
    # in full, unlike the others: it is the artifact's only name here
    lines += [f"files  {digest}" for digest in artifacts]
    lines += [
        f"file   {e.digest[7:19]}  {shown(e.title)}  {e.size / 2**20:.1f} MiB  {shown(e.version)}".rstrip()
        for e in entries
    ]
    call.print("\n".join(lines))
    return 0


def diff(call: Invocation) -> int:
    local = launcher.open_host(call)
    if len(call.words) != 2:
        raise UsageError(
            "kb bundle diff " + " ".join(call.words),
            cause="it compares two bundles",
            remedy="kb bundle diff OLD NEW",
            code="usage",
        )
    one, other = (oci_layout.open_layout(local, Path(word).absolute()) for word in call.words)
    found = bundle_verify.diff_bundles(local, one, other=other)
    if call.output != "text":
        call.print_value(found)
        return 0
    marks = {"added": "+", "removed": "-", "changed": "~"}
    lines = [f"{marks[kind]} {shown(name)}" for kind, names in found.items() for name in names]
    call.print("\n".join(lines) or "both hold the same")
    return 0


# ---- shared helpers


def _open(call: Invocation, local: LocalHost) -> oci_layout.Layout:
    return oci_layout.open_layout(local, launcher.require_one_file(call, takes="one file or folder"))


def _load_config(call: Invocation, local: LocalHost) -> NodeConfig:
    names = ("kubernetes-version", "image-repository", "feature-gates", "pod-network-manifest", "allow-unknown-fields")
    flags = {name: call.flags[name] for name in names if name in call.flags}
    config_file = Path(call.flags["config"]) if "config" in call.flags else None
    return load_init.load_partial_config(
        local, config_file=config_file, flags=flags, read_bundle_version=oci_layout.read_kubernetes_version
    )


def _image_needs(call: Invocation, local: LocalHost, *, config: NodeConfig) -> Sequence[bundle_needs.Need]:
    release = releases.find_release(config.cluster.kubernetes_version)
    network = config.kb.pod_network
    objects = pod_network.read_manifest(local, network.manifest) if network.plugin == "manifest" else []
    return bundle_needs.plan_images(config, release, network=objects, more=call.flags.get("image", ()))


def _add_own_files(call: Invocation, gathering: bundle_sources.Gathering) -> None:
    """Add --file PATH[=TITLE], and kb itself if it runs from its zipapp."""
    given = dict(_split_file(text) for text in call.flags.get("file", ()))
    own = Path(sys.argv[0]).absolute()
    if bundle.KB_FILE not in given.values() and own.suffix == ".pyz" and gathering.local.exists(own):
        given[str(own)] = bundle.KB_FILE
    elif bundle.KB_FILE not in given.values():
        call.report.note("kb itself is not in it: run kb from kb.pyz, or add --file kb.pyz")
    for path, title in sorted(given.items(), key=lambda item: item[1]):
        found = gathering.local.stat(Path(path).absolute())
        gathering.add_file(
            title, Path(path).absolute(), mode=(found.mode & 0o777) if found and not found.is_symlink else 0o755
        )


def _split_file(text: str) -> tuple[str, str]:
    path, equals, title = text.partition("=")
    name = Path(path).name
    return path, title if equals else (name if name == bundle.KB_FILE else f"extra/{name}")


def _pairs(call: Invocation, flag: str) -> Mapping[str, str]:
    pairs = [str(text).partition("=") for text in call.flags.get(flag, ())]
    known = {item.component for item in downloads.NODE_FILES}
    for name, equals, value in pairs:
        if name not in known or not equals or not value:
            raise UsageError(
                f"--{flag} {name}{equals}{value}",
                cause=f"it must be COMPONENT=VERSION, where COMPONENT is one of {', '.join(sorted(known))}",
                remedy=f"for example: --{flag} containerd=2.1.4",
                code="usage",
            )
    return {name: value for name, _, value in pairs}


def _machine(local: LocalHost) -> str:
    return local.query(["uname", "-m"]).stdout.strip()


def _check_archs(archs: Sequence[str]) -> None:
    unknown = [arch for arch in archs if arch not in downloads.ARCHITECTURES]
    if unknown:
        raise UsageError(
            f"--arch {','.join(unknown)}",
            cause=f"the architectures are {', '.join(downloads.ARCHITECTURES)}",
            remedy="correct it; for example --arch amd64,arm64",
            code="usage",
        )


def _archs_in(local: LocalHost, found: oci_layout.Layout) -> Sequence[str]:
    titles = (entry.title.partition("/")[0] for entry in bundle.list_files(local, found))
    archs = tuple(dict.fromkeys(title for title in titles if title in downloads.ARCHITECTURES))
    return archs or (downloads.MACHINES.get(_machine(local), "amd64"),)
