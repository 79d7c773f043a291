"""The phase install/packages: install the container runtime, the kubelet and their tools if they are missing.

They come from a bundle, a mirror, the distribution's packages or the official download sites. The phase runs before
preflight, which checks what it installs. It does its own checks first, and changes nothing if one fails. kubeadm leaves all
of this to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.config import presets
from kubeup.config.types import NodeConfig
from kubeup.engine.items import Gone
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import BareRun, Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.waiting import becomes_so
from kubeup.phases.find_mirror import mirror_of
from kubeup.phases.local_bundle import bundle_copy, find_architecture, open_copies, open_signed

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import distro_packages, downloads, oci_layout, programs
    from kubeup.diagnosis.checks import runtime as runtime_checks
    from kubeup.engine import records, state
    from kubeup.machine import local_host
    from kubeup.node import crictl, runtime
    from kubeup.phases import preflight
    from kubeup.upgrade import kept

if TYPE_CHECKING:
    from kubeup.airgap.programs import Offered, Standing

CRICTL_CONFIG = Path("/etc/crictl.yaml")
BOOT_LINK = Path("/etc/systemd/system/multi-user.target.wants/containerd.service")
CONTAINERD_DATA = (Path("/var/lib/containerd"), Path("/run/containerd"))
NRI_SOCKET = Path("/run/nri/nri.sock")
"""Where containerd listens for plugins, from 2.0 on without being told to. Source: containerd, internal/nri; nri, pkg/adaptation"""
RUNTIME_FOLDERS = tuple(
    Path(name)
    for name in ("/etc/cni", "/etc/cni/net.d", "/opt/containerd", "/opt/containerd/bin", "/opt/containerd/lib")
)
"""Folders that containerd makes when it starts. Reset removes those that are empty then, if kb expected them."""
CONTAINERD_TIMEOUT_S = 30


def wants_packages(config: NodeConfig) -> bool:
    source = config.kb.packages.source
    return source not in ("auto", "none") or (source == "auto" and bool(config.kb.bundle or config.kb.mirror.endpoint))


def install_packages(ctx: Run) -> Outputs:
    """Verify and install the missing programs, and start the runtime. Usable programs are kept; unusable ones that kb did
    not install are an error.

    Raises HostError: package-wrong, packages-not-found, wrong-architecture, wrong-version, file-damaged, disk-full,
    runtime-not-started.
    """
    return _install(ctx, Ways(_fetch_and_place, _becomes_active, preflight.fix_runtime))


def foretell_packages(ctx: Run) -> Outputs:
    """Dry run: what would be installed. Nothing is fetched."""
    return _install(ctx, Ways(_foretell_placing, lambda run: True, preflight.foretell_fix))


@frozen
class Ways:
    """The steps that differ between a real run and a dry run: install programs, wait for the runtime, configure it."""

    place: Callable[[Run, Sequence[Standing], str], None]
    becomes_active: Callable[[Run], bool]
    fix: Callable[..., None]


def _install(ctx: Run, ways: Ways) -> Outputs:
    # created by a package's scripts, when the runtime is enabled below, and by the runtime when it starts
    ctx.promises.expect([BOOT_LINK, *RUNTIME_FOLDERS])
    standing = programs.look(ctx.host, ctx.config.cluster.kubernetes_version, release=ctx.release)
    wanted = _wanted(ctx, standing)
    kept = [one for one in standing if one.verdict == "good" and one.item.version_words]
    if kept:
        ctx.report.note("left alone: " + ", ".join(f"{one.item.name} {one.version} ({one.path})" for one in kept))
    if wanted:
        source = _source(ctx)
        if source in ("apt", "dnf"):
            distro_packages.install(
                ctx.host,
                source,
                wanted=wanted,
                version=ctx.config.cluster.kubernetes_version,
                preset_name=ctx.config.kb.packages.preset,
            )
        else:
            ways.place(ctx, wanted, source)
    _configure_crictl(ctx, wanted)
    has_runtime = any(one.item.component in ("containerd", "runc") for one in wanted)
    _ensure_runtime_runs(ctx, has_placed=has_runtime, becomes_active=ways.becomes_active)
    if has_runtime and _source(ctx) in ("apt", "dnf", "download"):
        # The defaults of distributions and of upstream do not fit the kubelet; the CNI plugins are in upstream's directory.
        # With a mirror or a bundle, the phase install/registries does this.
        ways.fix(ctx, cni_bin_dir=runtime.DEFAULT_CNI_BIN_DIRS[0])
    return None


def _configure_crictl(ctx: Run, wanted: Sequence[Standing]) -> None:
    """Configure the runtime's socket for a crictl that kb installs: otherwise it guesses, and warns at every call."""
    is_placed = any(one.item.name == "crictl" for one in wanted)
    if is_placed and not ctx.host.exists(CRICTL_CONFIG):
        socket = f"unix://{crictl.socket_path(ctx.config.node.cri_socket)}"
        ctx.host.write_file(CRICTL_CONFIG, f"runtime-endpoint: {socket}\nimage-endpoint: {socket}\n", keeps=True)


def _wanted(ctx: Run, standing: Sequence[Standing]) -> list[Standing]:
    """The files to install: missing ones, and unusable ones that kb had installed. Raises HostError (package-wrong)."""
    owned = ctx.owned_paths
    # the socket of another runtime, such as CRI-O: kb does not manage that runtime
    has_other_runtime = "containerd" not in crictl.socket_path(ctx.config.node.cri_socket).name
    wanted = []
    for one in standing:
        if one.verdict == "good" or (has_other_runtime and one.item.component in ("containerd", "runc")):
            continue
        in_the_way = one.verdict == "missing" and ctx.host.exists(Path(one.item.place))
        path, why = (one.item.place, "it cannot be run") if in_the_way else (str(one.path), one.why)
        if (one.verdict == "wrong" or in_the_way) and path not in owned:
            raise HostError(
                f"{one.item.name} at {path} cannot be used",
                cause=f"{why}; kb did not place it and does not replace it",
                remedy=f"remove it or bring the right version: {crictl.install_command(ctx.host, one.item.name)}",
                code="package-wrong",
            )
        wanted.append(one)
    return wanted


def _source(ctx: Run) -> str:
    source = ctx.config.kb.packages.source
    if source == "auto":
        return "bundle" if ctx.config.kb.bundle else "mirror"
    return source


def _fetch_and_place(ctx: Run, wanted: Sequence[Standing], source: str) -> None:  # noqa: PLR0917
    arch = find_architecture(ctx)
    chosen = choose_programs(
        ctx,
        wanted,
        source=source,
        offered=offer_programs(ctx, source, names=[one.item.name for one in wanted], arch=arch),
    )
    if not chosen:
        return
    version = ctx.config.cluster.kubernetes_version
    staged = programs.stage(
        ctx.host, chosen, arch=arch, cluster_version=version, release=ctx.release, tell=ctx.report.waiting
    )
    places = programs.put_in_place(ctx.host, staged)
    if ctx.host.is_live:
        try:
            records.record_programs(ctx.machine or ctx.host, ctx.paths.records, paths=places)
        except HostError as error:
            ctx.report.warn_once(f"what was done could not be recorded: {error}")
    if source == "download":
        ctx.host.remove_tree(spool_of(ctx))  # as large as what was installed
    ctx.report.note(f"placed from the {source}: {', '.join(sorted({place.name for place in places}))}")


def _foretell_placing(ctx: Run, wanted: Sequence[Standing], source: str) -> None:  # noqa: PLR0917
    arch = find_architecture(ctx)
    if source == "download":
        _plan_downloads(ctx, wanted, arch=arch)
        return
    offered = offer_programs(ctx, source, names=[one.item.name for one in wanted], arch=arch, takes_copies=False)
    chosen = choose_programs(ctx, wanted, source=source, offered=offered)
    if chosen:
        _plan_files_of(ctx, {one.item.place: one.mode for one in chosen})


def choose_programs(
    ctx: Run, wanted: Sequence[Standing], *, source: str, offered: Mapping[str, Offered]
) -> list[Offered]:
    """The wanted programs out of the offered ones; [] if the mirror has only images. Raises HostError (packages-not-found)."""
    names = [one.item.name for one in wanted]
    absent = [name for name in names if name not in offered]
    if absent and source == "mirror" and not offered and ctx.config.kb.packages.source == "auto":
        ctx.report.note(f"the mirror serves only images: {', '.join(absent)} have to be installed another way")
        return []
    if absent:
        raise HostError(
            f"the {source} lacks programs for this node ({find_architecture(ctx)})",
            cause=f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not in it, and not on this node",
            remedy="make a bundle that has them (kb bundle create), or install them by other means",
            code="packages-not-found",
        )
    return [offered[name] for name in names]


def _plan_files_of(ctx: Run, modes: Mapping[str, int]) -> None:
    for place, mode in modes.items():
        ctx.host.write_stream(Path(place), (), mode=mode)
    ctx.found.programs_are_planned = True


def _plan_downloads(ctx: Run, wanted: Sequence[Standing], *, arch: str) -> None:
    """Dry run: report what would be fetched. Nothing is fetched."""
    preset = presets.find_preset(ctx.config.kb.packages.preset)
    version = ctx.config.cluster.kubernetes_version
    for component in downloads.components_of({one.item.name: one for one in wanted}):
        plan = downloads.plan_download(component, kubernetes_version=version, arch=arch, versions={}, preset=preset)
        ctx.report.note(f"{component} {plan.version} would be fetched from {plan.url}")
    _plan_files_of(ctx, {one.item.place: 0o755 for one in wanted})


def spool_of(ctx: Run) -> Path:
    return ctx.paths.state_dir / "downloads"


def offer_programs(
    ctx: Run, source: str, *, names: Sequence[str], arch: str, takes_copies: bool = True
) -> dict[str, Offered]:
    """The programs that the source offers: name -> program.

    takes_copies: whether the files in the mirror's folder exist; in a dry run they may only be planned."""
    if source == "bundle":
        is_copied = takes_copies and ctx.host.exists(bundle_copy(ctx))
        path = bundle_copy(ctx) if is_copied else Path(ctx.config.kb.bundle).absolute()
        found = open_signed(ctx, path)
        others = open_copies(ctx.host) if takes_copies else []
        more = {digest: place for one in others for digest, place in one.blobs.items()}
        whole = oci_layout.Layout(found.path, found.index, found.index_bytes, {**more, **found.blobs}, b"", found.names)
        return programs.offer_bundle(ctx.host, whole, arch=arch)
    if source == "mirror":
        return programs.offer_mirror(ctx.host, mirror_of(ctx), arch=arch, version=ctx.config.cluster.kubernetes_version)
    machine = ctx.machine or ctx.host
    assert isinstance(machine, local_host.LocalHost)  # never reached in a dry run or with a folder as host
    return programs.offer_downloads(
        machine,
        names,
        cluster_version=ctx.config.cluster.kubernetes_version,
        arch=arch,
        preset=presets.find_preset(ctx.config.kb.packages.preset),
        spool=spool_of(ctx),
        tell=ctx.report.waiting,
    )


def _ensure_runtime_runs(ctx: Run, *, has_placed: bool, becomes_active: Callable[[Run], bool]) -> None:
    """Run containerd now and at boot, with a systemd unit from kb if it has no other. Raises HostError (runtime-not-started)."""
    host = ctx.host
    program = host.which("containerd") or Path("/usr/local/bin/containerd")
    if "containerd" not in crictl.socket_path(ctx.config.node.cri_socket).name:
        return
    units = [
        folder / "containerd.service"
        for folder in (runtime.CONTAINERD_UNIT.parent, Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
    ]
    changed = False
    owned = str(runtime.CONTAINERD_UNIT) in ctx.owned_paths
    if owned or not any(host.exists(unit) for unit in units):
        score = "-999" if runtime_checks.may_lower_oom_score(host) else "0"
        text = yaml_files.fill_template("systemd/containerd.service", {"containerd": program, "oom_score": score})
        changed = host.write_file(runtime.CONTAINERD_UNIT, text)
    if changed:
        host.run(services.SYSTEMD.reload)
    is_running = services.is_active(host, "containerd")
    services.enable(host, "containerd")
    if is_running and not (has_placed or changed):
        return
    done = services.run(host, "restart" if is_running else "start", unit="containerd", timeout_s=60)
    if not done.ok or not becomes_active(ctx):
        log = "\n".join(services.read_log(host, "containerd", lines=20))
        raise HostError(
            "containerd does not start",
            cause=crictl.last_words(log),
            remedy=f"see why: {services.say_log(host, 'containerd', lines=30)}",
            code="runtime-not-started",
        )


def _becomes_active(ctx: Run) -> bool:
    return becomes_so(ctx.host, lambda: services.is_active(ctx.host, "containerd"), timeout_s=CONTAINERD_TIMEOUT_S)


def packages_are_in_place(ctx: Run) -> bool:
    standing = programs.look(ctx.host, ctx.config.cluster.kubernetes_version, release=ctx.release)
    is_active = services.is_active(ctx.host, "containerd")
    return is_active and all(one.verdict == "good" for one in standing)


# ---- reset


def plan_released_packages(run: BareRun) -> Plan:
    """Reset: keep the packages that apt installed for kb, but let apt upgrade them again."""
    if str(distro_packages.APT_LIST) not in state.load_state(run.host, run.paths).created_paths():
        return Plan()
    release = lambda ground: distro_packages.release(ground.host)  # noqa: E731
    return Plan(Gone("held packages", lambda _: distro_packages.HELD, release))


def plan_released_images(run: BareRun) -> Plan:
    """Reset: let the kubelet delete the images that an upgrade keeps for its way back."""
    if not run.host.exists(kept.folder(run.paths)):
        return Plan()
    find = lambda ground: kept.list_images(ground.host, run.paths)  # noqa: E731
    return Plan(Gone("kept images", find, lambda ground: kept.release_images(ground.host, run.paths)))


def _is_left_by_nri(host: Host) -> bool:
    """Whether the folder of containerd's socket for plugins is there, with nothing of anybody else's in it."""
    folder = NRI_SOCKET.parent
    return host.is_dir(folder) and set(host.list_dir(folder)) <= {NRI_SOCKET.name}


def plan_no_runtime_data(run: BareRun) -> Plan:
    """Reset: unmount and remove the images and containers of a containerd that kb installed."""
    if str(runtime.CONTAINERD_UNIT) not in state.load_state(run.host, run.paths).created_paths():
        return Plan()

    def find(ground: Ground) -> list[str]:
        found = [str(folder) for folder in CONTAINERD_DATA if ground.host.exists(folder)]
        return found + ([str(NRI_SOCKET.parent)] if _is_left_by_nri(ground.host) else [])

    def take_away(ground: Ground) -> None:
        for folder in CONTAINERD_DATA:
            for mount in ground.host.mounts_below(folder):
                ground.host.run(["umount", str(mount)])
            ground.host.remove_tree(folder)
        if _is_left_by_nri(ground.host):
            ground.host.remove_tree(NRI_SOCKET.parent)

    return Plan(Gone("the runtime's data", find, take_away))


PROGRAMS = Act(
    do=install_packages,
    probe=packages_are_in_place,
    foretell=foretell_packages,
    live="node",
    when=wants_packages,
)
