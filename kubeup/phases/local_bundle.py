"""The phase install/bundle: keeps a copy of the bundle on this node, checked before anything is taken from it.

This module decides where the copies are stored. Other phases open a bundle only through it, because it checks the signature.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.config.types import NodeConfig
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host

with lazily:
    from kubeup.airgap import bundle, bundle_needs, bundle_signature, bundle_verify, downloads, oci_layout, programs
    from kubeup.network import pod_network
    from kubeup.node import images

if TYPE_CHECKING:
    from kubeup.airgap.oci_layout import Layout
    from kubeup.machine.local_host import LocalHost

MIRROR_FOLDER = Path("/var/lib/kb/mirror")


@contextlib.contextmanager
def hold_folder(local: LocalHost, holder: str) -> Iterator[None]:
    """Keep other kb processes from changing the mirror's tars, and from reading what is about to change. The mirror itself goes on. holder: `kb
    mirror gc`. Raises HostError (locked)."""
    with local.lock(MIRROR_FOLDER / ".lock", holder):
        yield


def wants_bundle(config: NodeConfig) -> bool:
    return bool(config.kb.bundle)


def bundle_copy(ctx: Run) -> Path:
    return MIRROR_FOLDER / Path(ctx.config.kb.bundle).name


def lay_down_bundle(ctx: Run) -> Outputs:
    """Check that the bundle is complete, signed and holds what this cluster needs; then keep the copy that is served to nodes.

    Raises HostError: bundle-unreadable, bundle-truncated, bundle-not-fit, signature-missing, signature-wrong, disk-full.
    """
    path, copy = Path(ctx.config.kb.bundle).absolute(), bundle_copy(ctx)
    if path.is_relative_to(MIRROR_FOLDER):
        _require_fit(ctx, open_signed(ctx, path))
        return None
    found = open_signed(ctx, path)  # before a large copy is made
    if found.path.suffix != ".tar" and ctx.host.is_dir(path):
        raise HostError(
            f"{path} is a folder",
            cause="init takes a bundle as one file",
            remedy=f"make it one: kb bundle create --from {path} -o FILE",
            code="bundle-unreadable",
        )
    stat = ctx.host.stat(ctx.host.real_path(path))
    _require_space(ctx.host, stat.size if stat else 0)
    ctx.host.make_dir(MIRROR_FOLDER, mode=0o755)

    def check(own: Path) -> None:
        _require_fit(ctx, open_signed(ctx, own))

    _copy_checked(ctx.host, path, copy=copy, size=stat.size if stat else 0, check=check, tell=ctx.report.waiting)
    return None


def foretell_bundle(ctx: Run) -> Outputs:
    """For a dry run: check the given bundle, and show the path of its copy without making it, since no mirror serves it."""
    path = Path(ctx.config.kb.bundle).absolute()
    _require_fit(ctx, open_signed(ctx, path))
    if not path.is_relative_to(MIRROR_FOLDER):
        ctx.host.write_stream(bundle_copy(ctx), (), mode=0o600)
    return None


def _copy_checked(
    host: Host, path: Path, *, copy: Path, size: int, check: Callable[[Path], None], tell: Callable[[str], None]
) -> None:
    """Copy to a temporary name, check the copy, and only then rename it. The given file itself could change between check and
    copy: it may be on a USB stick, on a share or in a user's folder."""
    own = copy.with_name(f".{copy.name}.new")
    tell(f"copying {path.name} to {copy.parent}")
    try:
        host.write_stream(own, oci_layout.read_place(host, oci_layout.Place(path, 0, size)), mode=0o600)
        check(own)
        host.move_file(own, copy)
    finally:
        host.remove(own)


def open_signed(ctx: Run, path: Path) -> Layout:
    """Open a bundle and check its signature, if a key is configured. Every phase that reads a bundle opens it here.

    Raises HostError as lay_down_bundle does.
    """
    found = oci_layout.open_layout(ctx.host, path)
    if ctx.config.kb.verify_key:
        bundle_signature.check_signature(found, ctx.host.read_text(Path(ctx.config.kb.verify_key).absolute()))
    return found


def _require_fit(ctx: Run, found: Layout) -> None:
    arch = find_architecture(ctx)
    titles = programs.architectures_in(ctx.host, found)
    if titles and arch not in titles:
        raise HostError(
            f"{found.path} is a bundle for {', '.join(titles)}",
            cause=f"this machine is {arch}",
            remedy=f"make one for it: kb bundle create --arch {arch}",
            code="wrong-architecture",
        )
    network = ctx.config.kb.pod_network
    objects = pod_network.read_manifest(ctx.host, network.manifest) if network.plugin == "manifest" else []
    needs = bundle_needs.plan_images(ctx.config, ctx.release, network=objects, more=())
    # a delta is accepted if its base is here already
    others = [one for one in open_copies(ctx.host) if one.path != found.path]
    base = _merged(others) if others else None
    verdict = bundle_verify.verify_bundle(ctx.host, found, base=base, needs=needs, tell=ctx.report.waiting)
    missing = [need for need in verdict.missing if not base or need.name not in base.names]
    lines = [*verdict.problems, *(f"{need.name} is missing, for {need.by}" for need in missing)]
    if lines:
        raise _not_fit(found.path, lines)


def add_bundle(host: Host, path: Path, *, key_pem: str = "", tell: Callable[[str], None]) -> Layout:
    """Store a checked copy of another bundle next to the existing ones; return the copy.

    key_pem: the public key that its signature must match; "" accepts it unsigned. Raises HostError as lay_down_bundle does.
    """
    others = [one for one in open_copies(host) if one.path.name != path.name]

    def check(own: Path) -> None:
        found = oci_layout.open_layout(host, own)
        if key_pem:
            bundle_signature.check_signature(found, key_pem)
        verdict = bundle_verify.verify_bundle(host, found, base=_merged(others) if others else None, tell=tell)
        if verdict.problems:
            raise _not_fit(path, verdict.problems)

    if host.is_dir(path):
        raise HostError(
            f"{path} is a folder",
            cause="the mirror takes a bundle as one file",
            remedy=f"make it one: kb bundle create --from {path} -o FILE",
            code="bundle-unreadable",
        )
    oci_layout.open_layout(host, path)  # before a large copy is made
    stat = host.stat(host.real_path(path))
    _require_space(host, stat.size if stat else 0)
    copy = MIRROR_FOLDER / path.name
    if copy == path:
        check(copy)
    else:
        _copy_checked(host, path, copy=copy, size=stat.size if stat else 0, check=check, tell=tell)
    return oci_layout.open_layout(host, copy)


def _not_fit(path: Path, lines: Sequence[str]) -> HostError:
    return HostError(
        f"{path} is not fit for this cluster",
        cause=lines[0],
        remedy="get it again from where it was made, or make one that fits: kb bundle create --config FILE",
        code="bundle-not-fit",
        details=lines,
    )


def open_copies(host: Host) -> list[Layout]:
    names = [name for name in host.list_dir(MIRROR_FOLDER) if name.endswith(".tar") and not name.startswith(".")]
    return [oci_layout.open_layout(host, MIRROR_FOLDER / name) for name in names]


def _merged(found: Sequence[Layout]) -> Layout:
    blobs = {digest: place for one in found for digest, place in one.blobs.items()}
    names = {name: entry for one in found for name, entry in one.names.items()}
    return oci_layout.Layout(MIRROR_FOLDER, {}, b"", blobs, b"", names)


def _require_space(host: Host, size: int) -> None:
    free = host.free_bytes(MIRROR_FOLDER)
    # the images are unpacked on the same file system
    if free < 3 * size:
        raise HostError(
            f"the file system of {MIRROR_FOLDER} is too full for the bundle",
            cause=f"its copy and the unpacked images need about {3 * size >> 20} MiB, and {free >> 20} MiB are free",
            remedy=f"make space there (df -h {MIRROR_FOLDER.parent}), or mount a larger disk at {MIRROR_FOLDER.parent}",
            code="disk-full",
        )


def bundle_is_laid_down(ctx: Run) -> bool:
    """Whether the copy has the same index as the given file, if that still exists, and the required signature."""
    path, copy = Path(ctx.config.kb.bundle).absolute(), bundle_copy(ctx)
    if not ctx.host.exists(copy):
        return False
    try:
        laid_down = open_signed(ctx, copy)
        given = oci_layout.open_layout(ctx.host, path) if ctx.host.exists(path) else laid_down
    except KbError:
        return False
    return given.index_bytes == laid_down.index_bytes


def find_architecture(ctx: Run) -> str:
    machine = ctx.host.query(["uname", "-m"]).stdout.strip()
    return downloads.MACHINES.get(machine, machine)


def kb_digest(ctx: Run) -> str:
    """The sha256, in hex, of the kb.pyz that the mirror serves; "" if no bundle has one."""
    known = [bundle.read_files(ctx.host, one) for one in open_copies(ctx.host)]
    entry = bundle.choose_files(known).get(bundle.KB_FILE)
    return entry.digest.partition(":")[2] if entry else ""


def _needed(ctx: Run) -> object:
    """The inputs, apart from the bundle itself, that the check depends on."""
    return ctx.config.kb.bundle, ctx.config.kb.verify_key, images.list_node_images(ctx.config, ctx.release)


BUNDLE = Act(
    do=lay_down_bundle,
    probe=bundle_is_laid_down,
    spec=_needed,
    foretell=foretell_bundle,
    live="node",
    when=wants_bundle,
)
