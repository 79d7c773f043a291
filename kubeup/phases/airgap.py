"""The phases of install that bring programs and images: the bundle, the node's programs, the mirror, the runtime's way to it.

They run before preflight, since they make the machine what preflight looks at; each looks first itself and changes nothing
where something is wrong. None of them runs where neither a bundle, a mirror nor a source of packages was asked for.
kubeadm leaves all of it to its user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup.addresses import join_host_port
from kubeup.config import presets
from kubeup.config.types import NodeConfig
from kubeup.engine.run import Outputs, Run
from kubeup.errors import HostError, KbError
from kubeup.lazy_modules import lazy_import
from kubeup.machine import services
from kubeup.machine.fence import Fence
from kubeup.machine.host import Host
from kubeup.machine.http import Tls, Unreachable
from kubeup.phases import certs
from kubeup.trust import Anchors

if TYPE_CHECKING:
    from kubeup import yaml_files
    from kubeup.airgap import (
        bundle,
        bundle_needs,
        bundle_signature,
        bundle_verify,
        containerd_hosts,
        distro_packages,
        downloads,
        oci_layout,
        programs,
    )
    from kubeup.airgap.containerd_hosts import Mirror
    from kubeup.airgap.oci_layout import Layout
    from kubeup.airgap.programs import Offered, Standing
    from kubeup.config import choose
    from kubeup.diagnosis.checks import runtime as runtime_checks
    from kubeup.machine import local_host
    from kubeup.network import pod_network
    from kubeup.node import (
        cert_specs,
        certificates,
        crictl,
        image_pulls,
        images,
        pki,
        private_keys,
        runtime,
        runtime_fix,
    )
    from kubeup.phases import preflight
else:
    local_host = lazy_import("kubeup.machine.local_host")
    bundle_needs = lazy_import("kubeup.airgap.bundle_needs")
    bundle_verify = lazy_import("kubeup.airgap.bundle_verify")
    bundle = lazy_import("kubeup.airgap.bundle")
    bundle_signature = lazy_import("kubeup.airgap.bundle_signature")
    runtime_checks = lazy_import("kubeup.diagnosis.checks.runtime")
    choose = lazy_import("kubeup.config.choose")
    distro_packages = lazy_import("kubeup.airgap.distro_packages")
    downloads = lazy_import("kubeup.airgap.downloads")
    images = lazy_import("kubeup.node.images")
    oci_layout = lazy_import("kubeup.airgap.oci_layout")
    containerd_hosts = lazy_import("kubeup.airgap.containerd_hosts")
    programs = lazy_import("kubeup.airgap.programs")
    cert_specs = lazy_import("kubeup.node.cert_specs")
    pki = lazy_import("kubeup.node.pki")
    private_keys = lazy_import("kubeup.node.private_keys")
    certificates = lazy_import("kubeup.node.certificates")
    pod_network = lazy_import("kubeup.network.pod_network")
    preflight = lazy_import("kubeup.phases.preflight")
    yaml_files = lazy_import("kubeup.yaml_files")
    image_pulls = lazy_import("kubeup.node.image_pulls")
    runtime = lazy_import("kubeup.node.runtime")
    crictl = lazy_import("kubeup.node.crictl")
    runtime_fix = lazy_import("kubeup.node.runtime_fix")

MIRROR_FOLDER = Path("/var/lib/kb/mirror")
MIRROR_PORT = 5000
MIRROR_UNIT = "kb-mirror.service"
MIRROR_TIMEOUT_S = 30
CRICTL_CONFIG = Path("/etc/crictl.yaml")
CONTAINERD_UNIT = Path("/etc/systemd/system/containerd.service")
CONTAINERD_TIMEOUT_S = 30
RENEW_BEFORE_S = 90 * 86400
POLL_S = 0.1


# ---- whether there is anything to do


def wants_bundle(config: NodeConfig) -> bool:
    return bool(config.kb.bundle)


def wants_packages(config: NodeConfig) -> bool:
    source = config.kb.packages.source
    return source not in ("auto", "none") or (source == "auto" and bool(config.kb.bundle or config.kb.mirror.endpoint))


def wants_registries(config: NodeConfig) -> bool:
    return bool(config.kb.bundle or config.kb.mirror.endpoint or config.kb.packages.preset)


# ---- install/bundle


def _bundle_copy(ctx: Run) -> Path:
    return MIRROR_FOLDER / Path(ctx.config.kb.bundle).name


def lay_down_bundle(ctx: Run) -> Outputs:
    """Check that the bundle is whole, signed and what this cluster needs; then keep a copy that nodes are served from.

    Raises HostError: bundle-unreadable, bundle-truncated, bundle-not-fit, signature-missing, signature-wrong, disk-full.
    """
    path = Path(ctx.config.kb.bundle).absolute()
    copy = _bundle_copy(ctx)
    if path == copy or path.is_relative_to(MIRROR_FOLDER) or ctx.host.mode == "dry-run":
        _require_fit(ctx, _open_signed(ctx, path))
        if path != copy and not path.is_relative_to(MIRROR_FOLDER):
            ctx.host.write_stream(copy, (), mode=0o600)
        return None
    found = _open_signed(ctx, path)  # before so much is copied
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
        _require_fit(ctx, _open_signed(ctx, own))

    _copy_checked(ctx.host, path, copy, size=stat.size if stat else 0, check=check, tell=ctx.report.waiting)
    return None


def _copy_checked(
    host: Host, path: Path, copy: Path, *, size: int, check: Callable[[Path], None], tell: Callable[[str], None]
) -> None:
    """Copy under a name of kb's own, check the copy, and only then give it its place: the file that was given can be another
    one a moment later (a stick, a share, a folder of a user's)."""
    own = copy.with_name(f".{copy.name}.new")
    tell(f"copying {path.name} to {copy.parent}")
    try:
        host.write_stream(own, oci_layout.read_place(host, oci_layout.Place(path, 0, size)), mode=0o600)
        check(own)
        host.move_file(own, copy)
    finally:
        host.remove(own)


def _open_signed(ctx: Run, path: Path) -> Layout:
    """A bundle, which the owner of the configured key has signed: every phase that takes something from one asks here.
    Raises HostError as lay_down_bundle."""
    found = oci_layout.open_layout(ctx.host, path)
    if ctx.config.kb.verify_key:
        bundle_signature.check_signature(found, ctx.host.read_text(Path(ctx.config.kb.verify_key).absolute()))
    return found


def _require_fit(ctx: Run, found: Layout) -> None:
    arch = _architecture(ctx)
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
    needs = bundle_needs.plan_images(ctx.config, ctx.release, objects, ())
    # a delta of which the base is here already is as good as the whole
    others = [one for one in _laid_down(ctx.host) if one.path != found.path]
    base = _merged(others) if others else None
    verdict = bundle_verify.verify_bundle(ctx.host, found, base=base, needs=needs, tell=ctx.report.waiting)
    missing = [need for need in verdict.missing if not base or need.name not in base.names]
    lines = [*verdict.problems, *(f"{need.name} is missing, for {need.by}" for need in missing)]
    if lines:
        raise _not_fit(found.path, lines)


def add_bundle(host: Host, path: Path, *, key_pem: str = "", tell: Callable[[str], None]) -> Layout:
    """Lay a copy of a further bundle beside the others, checked: what was copied is what is served. key_pem: whose signature it
    has to have; "" for nobody's. Returns the copy. Raises HostError as lay_down_bundle."""
    others = [one for one in _laid_down(host) if one.path.name != path.name]

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
    oci_layout.open_layout(host, path)  # before so much is copied
    stat = host.stat(host.real_path(path))
    _require_space(host, stat.size if stat else 0)
    copy = MIRROR_FOLDER / path.name
    if copy == path:
        check(copy)
    else:
        _copy_checked(host, path, copy, size=stat.size if stat else 0, check=check, tell=tell)
    return oci_layout.open_layout(host, copy)


def _not_fit(path: Path, lines: Sequence[str]) -> HostError:
    return HostError(
        f"{path} is not fit for this cluster",
        cause=lines[0],
        remedy="get it anew from where it was made, or make one that fits: kb bundle create --config FILE",
        code="bundle-not-fit",
        details=lines,
    )


def _laid_down(host: Host) -> list[Layout]:
    names = [name for name in host.list_dir(MIRROR_FOLDER) if name.endswith(".tar") and not name.startswith(".")]
    return [oci_layout.open_layout(host, MIRROR_FOLDER / name) for name in names]


def _merged(found: Sequence[Layout]) -> Layout:
    blobs = {digest: place for one in found for digest, place in one.blobs.items()}
    names = {name: entry for one in found for name, entry in one.names.items()}
    return oci_layout.Layout(MIRROR_FOLDER, {}, b"", blobs, b"", names)


def _require_space(host: Host, size: int) -> None:
    free = host.free_bytes(MIRROR_FOLDER)
    # the images are unpacked beside it
    if free < 3 * size:
        raise HostError(
            f"the file system of {MIRROR_FOLDER} is too full for the bundle",
            cause=f"its copy and the unpacked images need about {3 * size >> 20} MiB, and {free >> 20} MiB are free",
            remedy=f"make space there (df -h {MIRROR_FOLDER.parent}), or mount a larger disk at {MIRROR_FOLDER.parent}",
            code="disk-full",
        )


def bundle_is_laid_down(ctx: Run) -> bool:
    """Whether the copy has the index of the file that is given, if that is still there, and the signature that is asked for."""
    path, copy = Path(ctx.config.kb.bundle).absolute(), _bundle_copy(ctx)
    if not ctx.host.exists(copy):
        return False
    try:
        laid_down = _open_signed(ctx, copy)
        given = oci_layout.open_layout(ctx.host, path) if ctx.host.exists(path) else laid_down
    except KbError:
        return False
    return given.index_bytes == laid_down.index_bytes


# ---- install/packages


def install_packages(ctx: Run) -> Outputs:
    """Put what is missing in place, proven first, and start the runtime. What is there and good stays; what is there,
    wrong and not kb's is an error.

    Raises HostError: package-wrong, packages-not-found, wrong-architecture, wrong-version, file-damaged, disk-full,
    runtime-not-started.
    """
    standing = programs.look(ctx.host, ctx.config.cluster.kubernetes_version, ctx.release)
    wanted = _wanted(ctx, standing)
    kept = [one for one in standing if one.verdict == "good" and one.item.version_words]
    if kept:
        ctx.report.note("left alone: " + ", ".join(f"{one.item.name} {one.version} ({one.path})" for one in kept))
    if wanted:
        source = _source(ctx)
        if source in ("apt", "dnf"):
            distro_packages.install(
                ctx.host, source, wanted, ctx.config.cluster.kubernetes_version, ctx.config.kb.packages.preset
            )
        else:
            _fetch_and_place(ctx, wanted, source)
    _configure_crictl(ctx, wanted)
    has_runtime = any(one.item.component in ("containerd", "runc") for one in wanted)
    _ensure_runtime_runs(ctx, has_placed=has_runtime)
    if has_runtime and _source(ctx) in ("apt", "dnf", "download"):
        # A distribution's settings, and upstream's defaults, are for no kubelet in particular; the plugins lie where upstream
        # has them. With a mirror or a bundle the phase install/registries does this.
        preflight.fix_runtime(ctx, cni_bin_dir=runtime.DEFAULT_CNI_BIN_DIRS[0])
    return None


def _configure_crictl(ctx: Run, wanted: Sequence[Standing]) -> None:
    """A crictl of kb's is told where the runtime is: without that it guesses, and says so at every call."""
    is_placed = any(one.item.name == "crictl" for one in wanted)
    if is_placed and not ctx.host.exists(CRICTL_CONFIG):
        socket = f"unix://{crictl.socket_path(ctx.config.node.cri_socket)}"
        ctx.host.write_file(CRICTL_CONFIG, f"runtime-endpoint: {socket}\nimage-endpoint: {socket}\n", keeps=True)


def _wanted(ctx: Run, standing: Sequence[Standing]) -> list[Standing]:
    """The files to place: missing ones, and wrong ones that kb itself had placed."""
    owned = ctx.owned_paths
    # a foreign socket (CRI-O, say) means that the runtime is somebody else's business
    has_other_runtime = "containerd" not in crictl.socket_path(ctx.config.node.cri_socket).name
    wanted = []
    for one in standing:
        if one.verdict == "good" or (has_other_runtime and one.item.component in ("containerd", "runc")):
            continue
        in_the_way = one.verdict == "missing" and ctx.host.exists(Path(one.item.place))
        path, why = (one.item.place, "it cannot be run") if in_the_way else (str(one.path), one.why)
        if (one.verdict == "wrong" or in_the_way) and path not in owned:
            raise HostError(
                f"{one.item.name} at {path} does not do",
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


def _fetch_and_place(ctx: Run, wanted: Sequence[Standing], source: str) -> None:
    names = [one.item.name for one in wanted]
    arch = _architecture(ctx)
    if source == "download" and ctx.host.mode != "live":
        _plan_downloads(ctx, wanted, arch)
        return
    offered = _offer(ctx, source, names, arch)
    absent = [name for name in names if name not in offered]
    if absent and source == "mirror" and not offered and ctx.config.kb.packages.source == "auto":
        ctx.report.note(f"the mirror has images alone: {', '.join(absent)} have to come from elsewhere")
        return
    if absent:
        raise HostError(
            f"the {source} lacks programs for this node ({arch})",
            cause=f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not in it, and not on this node",
            remedy="make a bundle that has them (kb bundle create), or install them by other means",
            code="packages-not-found",
        )
    chosen = [offered[name] for name in names]
    if ctx.host.mode != "live":
        _plan_files_of(ctx, {one.item.place: one.mode for one in chosen})
        return
    version = ctx.config.cluster.kubernetes_version
    staged = programs.stage(
        ctx.host, chosen, arch=arch, cluster_version=version, release=ctx.release, tell=ctx.report.waiting
    )
    places = programs.put_in_place(ctx.host, staged)
    if source == "download":
        ctx.host.remove_tree(_spool(ctx))  # as large as what was placed
    ctx.report.note(f"placed from the {source}: {', '.join(sorted({place.name for place in places}))}")


def _plan_files_of(ctx: Run, modes: Mapping[str, int]) -> None:
    for place, mode in modes.items():
        ctx.host.write_stream(Path(place), (), mode=mode)
    ctx.found.programs_are_planned = True


def _plan_downloads(ctx: Run, wanted: Sequence[Standing], arch: str) -> None:
    """Of a dry run: what would be fetched, and nothing of it."""
    preset = presets.find_preset(ctx.config.kb.packages.preset)
    version = ctx.config.cluster.kubernetes_version
    for component in downloads.components_of({one.item.name: one for one in wanted}):
        plan = downloads.plan_download(component, kubernetes_version=version, arch=arch, versions={}, preset=preset)
        ctx.report.note(f"{component} {plan.version} would be fetched from {plan.url}")
    _plan_files_of(ctx, {one.item.place: 0o755 for one in wanted})


def _spool(ctx: Run) -> Path:
    return ctx.paths.state_dir / "downloads"


def _offer(ctx: Run, source: str, names: Sequence[str], arch: str) -> dict[str, Offered]:
    if source == "bundle":
        is_copied = ctx.host.mode == "live" and ctx.host.exists(_bundle_copy(ctx))
        path = _bundle_copy(ctx) if is_copied else Path(ctx.config.kb.bundle).absolute()
        found = _open_signed(ctx, path)
        others = _laid_down(ctx.host) if ctx.host.mode == "live" else []
        more = {digest: place for one in others for digest, place in one.blobs.items()}
        whole = oci_layout.Layout(found.path, found.index, found.index_bytes, {**more, **found.blobs}, b"", found.names)
        offered: dict[str, Offered] = programs.offer_bundle(ctx.host, whole, arch)
        return offered
    if source == "mirror":
        from_mirror: dict[str, Offered] = programs.offer_mirror(
            ctx.host, mirror_of(ctx), arch, version=ctx.config.cluster.kubernetes_version
        )
        return from_mirror
    machine = ctx.machine or ctx.host
    assert isinstance(machine, local_host.LocalHost)  # a dry run and a folder fetch nothing
    downloaded: dict[str, Offered] = programs.offer_downloads(
        machine,
        names,
        cluster_version=ctx.config.cluster.kubernetes_version,
        arch=arch,
        preset=presets.find_preset(ctx.config.kb.packages.preset),
        spool=_spool(ctx),
        tell=ctx.report.waiting,
    )
    return downloaded


def _ensure_runtime_runs(ctx: Run, *, has_placed: bool) -> None:
    """A unit where kb placed containerd and none is there; running now, and at boot."""
    host = ctx.host
    program = host.which("containerd") or Path("/usr/local/bin/containerd")
    if "containerd" not in crictl.socket_path(ctx.config.node.cri_socket).name:
        return
    units = [
        folder / "containerd.service"
        for folder in (CONTAINERD_UNIT.parent, Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
    ]
    changed = False
    owned = str(CONTAINERD_UNIT) in ctx.owned_paths
    if owned or not any(host.exists(unit) for unit in units):
        score = "-999" if runtime_checks.may_lower_oom_score(host) else "0"
        text = yaml_files.fill_template("systemd/containerd.service", {"containerd": program, "oom_score": score})
        changed = host.write_file(CONTAINERD_UNIT, text)
    if changed:
        host.run(services.SYSTEMD.reload)
    is_running = services.is_active(host, "containerd")
    services.enable(host, "containerd")
    if is_running and not (has_placed or changed):
        return
    done = services.run(host, "restart" if is_running else "start", "containerd", timeout_s=60)
    if not done.ok or not _becomes_active(ctx):
        log = "\n".join(services.read_log(host, "containerd", lines=20))
        raise HostError(
            "containerd does not start",
            cause=crictl.last_words(log),
            remedy=f"see why: {services.say_log(host, 'containerd', lines=30)}",
            code="runtime-not-started",
        )


def _becomes_active(ctx: Run) -> bool:
    if ctx.host.mode != "live":
        return True
    deadline = ctx.host.monotonic() + CONTAINERD_TIMEOUT_S
    while ctx.host.monotonic() < deadline:
        if services.is_active(ctx.host, "containerd"):
            return True
        ctx.host.sleep(POLL_S)
    return False


def packages_are_in_place(ctx: Run) -> bool:
    standing = programs.look(ctx.host, ctx.config.cluster.kubernetes_version, ctx.release)
    is_active = services.is_active(ctx.host, "containerd")
    return is_active and all(one.verdict == "good" for one in standing)


def _architecture(ctx: Run) -> str:
    machine = ctx.host.query(["uname", "-m"]).stdout.strip()
    return downloads.MACHINES.get(machine, machine)


# ---- install/mirror


def mirror_url(config: NodeConfig) -> str:
    """Where the nodes find the mirror: the one that was named, or this control plane's own."""
    if config.kb.mirror.endpoint:
        return config.kb.mirror.endpoint.rstrip("/")
    address = config.local_api_endpoint.advertise_address
    return f"https://{join_host_port(address, MIRROR_PORT)}"


def _mirror_cert(ctx: Run) -> tuple[Path, Path]:
    return ctx.paths.pki / "kb-mirror.crt", ctx.paths.pki / "kb-mirror.key"


def serve_bundle(ctx: Run) -> Outputs:
    """The mirror as a service of this node, with a certificate of the cluster's authority; up before this returns.

    Raises HostError: ca-key-missing, mirror-not-started, port-in-use, signature-missing, signature-wrong.
    """
    _require_signed_copy(ctx)
    certs.issue_ca(ctx)
    _ensure_certificate(ctx)
    pyz = pod_network.find_running_pyz()
    pod_network.ensure_installed_kb(ctx.host, ctx.paths, pyz)
    changed = ctx.host.write_file(ctx.paths.systemd / MIRROR_UNIT, _render_unit(ctx, pyz))
    if changed:
        ctx.host.run(["systemctl", "daemon-reload"])
    ctx.host.run(["systemctl", "enable", MIRROR_UNIT])
    is_active = ctx.host.query(["systemctl", "is-active", MIRROR_UNIT]).stdout.strip() == "active"
    if not is_active or changed or ctx.found.mirror_cert_is_new:
        ctx.host.run(["systemctl", "restart", MIRROR_UNIT])
    _wait_for_mirror(ctx)
    return None


def _require_signed_copy(ctx: Run) -> None:
    if ctx.host.mode != "dry-run" and ctx.host.exists(_bundle_copy(ctx)):
        _open_signed(ctx, _bundle_copy(ctx))


def _render_unit(ctx: Run, pyz: Optional[Path]) -> str:
    cert, key = _mirror_cert(ctx)
    address = ctx.config.local_api_endpoint.advertise_address
    values = {
        "command": pod_network.plan_command(ctx.host, pyz, ctx.paths),
        "folder": MIRROR_FOLDER,
        "listen": f"[::]:{MIRROR_PORT}" if ":" in address else f"0.0.0.0:{MIRROR_PORT}",
        "cert": cert,
        "key": key,
        "ca": ctx.paths.pki / "ca.crt",
    }
    text: str = yaml_files.fill_template(f"systemd/{MIRROR_UNIT}", values)
    return text


def _ensure_certificate(ctx: Run) -> None:
    if _certificate_is_good(ctx):
        return
    cert_path, key_path = _mirror_cert(ctx)
    ca = pki.read_ca(ctx.host, ctx.paths)
    if ca.key is None:
        raise HostError(
            "the mirror has no certificate",
            cause=f"the key of {ca.path} is kept elsewhere, so kb cannot issue one",
            remedy=f"have your CA issue {cert_path} and {key_path} for {ctx.config.local_api_endpoint.advertise_address}, then run the command again",
            code="mirror-certificate-missing",
        )
    key = private_keys.generate_key(cert_specs.key_algorithm(ctx.config.cluster))
    left_s = int((certificates.not_after(ca.cert) - ctx.host.now()).total_seconds())
    # as long as the authority: nobody renews it between two runs of init
    validity = certificates.plan_validity(ctx.host.now(), left_s)
    subject = certificates.Subject("kb-mirror", is_server=True, sans=_mirror_sans(ctx))
    issued = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
    ctx.host.write_file(key_path, private_keys.key_to_pem(key).reveal(), mode=0o600)
    ctx.host.write_file(cert_path, certificates.cert_to_pem(issued))
    ctx.found.mirror_cert_is_new = True


def _mirror_sans(ctx: Run) -> cert_specs.Sans:
    config = ctx.config
    endpoint = config.cluster.control_plane_endpoint
    names = [config.node.name, "localhost", config.local_api_endpoint.advertise_address, "127.0.0.1"]
    names += [cert_specs.split_host_port(endpoint)[0]] if endpoint else []
    found: cert_specs.Sans = cert_specs.make_sans((*names, *config.cluster.api_server.cert_sans))
    return found


def _certificate_is_good(ctx: Run) -> bool:
    """There, of this authority, for all names, its own key beside it, and not about to expire."""
    cert_path, key_path = _mirror_cert(ctx)
    try:
        chain = pki.read_certs(ctx.host, cert_path)
        key = pki.read_key(ctx.host, key_path)
        ca = pki.read_ca(ctx.host, ctx.paths)
    except HostError:
        return False
    left_s = (certificates.not_after(chain[0]) - ctx.host.now()).total_seconds()
    lifetime_s = (certificates.not_after(ca.cert) - ctx.host.now()).total_seconds()
    return (
        certificates.is_signed_by(chain, ca.cert)
        and private_keys.is_key_of(key, chain[0])
        and not certificates.sans_of(chain[0]).lacks(_mirror_sans(ctx))
        and (left_s > RENEW_BEFORE_S or left_s > lifetime_s - 86400)
    )


def _own_tls(ctx: Run) -> Tls:
    """Believe this node's own authority, which signed the mirror's certificate."""
    return Tls(Anchors.given(ctx.host.read_text(ctx.paths.pki / "ca.crt")))


def _wait_for_mirror(ctx: Run) -> None:
    if ctx.host.mode != "live":
        return
    tls = _own_tls(ctx)
    url, started = f"{mirror_url(ctx.config)}/healthz", ctx.host.monotonic()
    while True:
        try:
            if ctx.host.http_get(url, tls=tls, timeout_s=5).status == 200:
                return
            last = "it does not answer as kb's mirror"
        except Unreachable as error:
            last = error.cause
        elapsed = ctx.host.monotonic() - started
        if elapsed > MIRROR_TIMEOUT_S:
            break
        ctx.report.waiting(f"mirror: {elapsed:.0f} s of {MIRROR_TIMEOUT_S} s; {last}")
        ctx.host.sleep(POLL_S)
    log = ctx.host.query(["journalctl", "-u", MIRROR_UNIT, "-n", "5", "-o", "cat", "--no-pager"]).stdout
    raise HostError(
        f"the mirror does not answer at {url}",
        cause=f"{last}; its log ends: {crictl.last_words(log)}",
        remedy=f"see why: journalctl -u {MIRROR_UNIT} -n 20",
        code="mirror-not-started",
    )


def bundle_is_served(ctx: Run) -> bool:
    try:
        _require_signed_copy(ctx)
        tls = _own_tls(ctx)
        answers = ctx.host.http_get(f"{mirror_url(ctx.config)}/healthz", tls=tls, timeout_s=5).status == 200
    except HostError:
        return False
    unit = ctx.paths.systemd / MIRROR_UNIT
    is_current = ctx.host.exists(unit) and ctx.host.read_text(unit) == _render_unit(ctx, pod_network.find_running_pyz())
    return answers and is_current and _certificate_is_good(ctx)


# ---- install/registries


def mirror_of(ctx: Run) -> Mirror:
    """The mirror, proven once a run. Raises HostError: mirror-not-trusted, mirror-unreachable."""
    if ctx.found.mirror is None:
        config = ctx.config
        ca: Optional[Anchors]
        if config.kb.bundle and not config.kb.mirror.endpoint:
            ca = Anchors.given(ctx.host.read_text(ctx.paths.pki / "ca.crt"))
        else:
            found_ca = config.join.ca_pem if config.join else ""
            ca = Anchors.given(found_ca) if found_ca else None
        ctx.found.mirror = containerd_hosts.find_mirror(
            ctx.host, mirror_url(config), ca_hash=config.kb.mirror.ca_hash, cluster_ca=ca
        )
    return ctx.found.mirror


def point_runtime_to_mirror(ctx: Run) -> Outputs:
    """One hosts.toml per registry; containerd told to read them, and which image its sandboxes are; then a pull through
    the CRI that shows it.

    Raises HostError: mirror-not-trusted, mirror-unreachable, runtime-not-fixable, runtime-fix-failed, image-pull-failed,
    mirror-not-used.
    """
    if ctx.host.mode != "live":
        ctx.report.note(
            "the runtime is pointed to the mirror when this runs for real: containerd itself tries its configuration"
        )
        return None
    socket = ctx.config.node.cri_socket
    if "containerd" not in crictl.socket_path(socket).name:
        ctx.report.note(
            f"the runtime at {socket} is not containerd: point it to {mirror_url(ctx.config)} by its own means"
        )
        return None
    folder = _hosts_folder(ctx)
    files = _plan_files(ctx, folder)
    changed = [path for path, text in files.items() if ctx.host.write_file(path, text, keeps=True)]
    pause = images.image_of("pause", ctx.config.cluster, ctx.release).ref
    is_own = str(CONTAINERD_UNIT) in _made(ctx)
    driver = ctx.config.kubelet.get("cgroupDriver") or "systemd"
    wanted = runtime_fix.Wanted(
        sandbox_image=pause,
        systemd_cgroup=driver == "systemd" if is_own or ctx.config.kb.runtime.fix else None,
        restrict_oom_score_adj=not runtime_checks.may_lower_oom_score(ctx.host)
        if is_own or ctx.config.kb.runtime.fix
        else None,
        registry_config_path=str(folder) if folder == runtime_fix.CERTS_D else None,
    )
    for fault in runtime_fix.fix_runtime(ctx.host, socket, wanted):
        ctx.report.note(f"containerd's configuration was completed and containerd restarted: {fault}")
    if changed:
        names = sorted({path.parent.name for path in changed if path.name == "hosts.toml"})
        ctx.report.note(f"containerd asks {_told_mirror(ctx)} for {', '.join(names)}")
    if _has_mirror(ctx):
        _prove(ctx, pause)
    return None


def _has_mirror(ctx: Run) -> bool:
    return bool(ctx.config.kb.bundle or ctx.config.kb.mirror.endpoint)


def _told_mirror(ctx: Run) -> str:
    return mirror_of(ctx).url if _has_mirror(ctx) else f"the servers of preset {ctx.config.kb.packages.preset}"


def _made(ctx: Run) -> frozenset[str]:
    """What kb made on this node, in this run too: the unit of a containerd that it placed."""
    made = set(ctx.owned_paths)
    if ctx.host.exists(CONTAINERD_UNIT) and "Written by kb" in ctx.host.read_text(CONTAINERD_UNIT):
        made.add(str(CONTAINERD_UNIT))
    return frozenset(made)


def _hosts_folder(ctx: Run) -> Path:
    """The folder that containerd reads already, or the usual one."""
    effective = runtime.read_containerd_config(ctx.host, ctx.config.node.cri_socket) or {}
    path = runtime_fix.describe_effective(effective).registry_config_path or ""
    found: Optional[Path] = containerd_hosts.hosts_folder(path)
    folder: Path = found or runtime_fix.CERTS_D
    return folder


def _plan_files(ctx: Run, folder: Path) -> dict[Path, str]:
    names = list(images.list_node_images(ctx.config, ctx.release))
    network = ctx.config.kb.pod_network
    if network.plugin == "manifest" and network.manifest:
        objects = pod_network.read_manifest(ctx.host, network.manifest)
        objects = pod_network.rewrite_images(objects, network.image_repository)
        names += [image_pulls.full_image_name(name) for name, _ in bundle_needs.images_of(objects)]
    if not _has_mirror(ctx):
        preset = presets.find_preset(ctx.config.kb.packages.preset)
        files: dict[Path, str] = {}
        for registry, server in preset.registries.items():
            files.update(
                containerd_hosts.plan_hosts(folder, [registry], containerd_hosts.Mirror(server), is_only=False)
            )
        return files
    mirror = mirror_of(ctx)
    registries = containerd_hosts.registries_of(_catalog(ctx, mirror), names)
    planned: dict[Path, str] = containerd_hosts.plan_hosts(folder, registries, mirror, is_only=ctx.config.kb.air_gapped)
    return planned


def _catalog(ctx: Run, mirror: Mirror) -> list[str]:
    """The names in the mirror; [] where it does not say."""
    try:
        answer = ctx.host.http_get(f"{mirror.url}/v2/_catalog", tls=mirror.tls, timeout_s=15)
        found = yaml_files.load_yaml(answer.body.decode()) if answer.status == 200 else {}
        return [str(name) for name in found.get("repositories") or []]
    except (Unreachable, ValueError, AttributeError):
        return []


def _prove(ctx: Run, image: str) -> None:
    """Pull the sandbox image through the CRI, and see by the mirror's own count that it was asked."""
    mirror = mirror_of(ctx)
    own = [str(a) for interface in choose.read_interfaces(ctx.host) or [] for a in interface.addresses]
    before = containerd_hosts.count_requests(ctx.host, mirror, own)
    ctx.report.waiting(f"pulling {image} through the runtime")
    image_pulls.pull_image(ctx.host, ctx.config.node.cri_socket, image)
    after = containerd_hosts.count_requests(ctx.host, mirror, own)
    if before is None or after is None:
        ctx.report.note(f"{image} was pulled through the CRI; {mirror.url} does not say whether it was asked")
    elif after > before:
        ctx.report.note(f"{image} was pulled through the CRI, and {mirror.server} served it")
    else:
        raise HostError(
            f"the runtime does not ask the mirror {mirror.url}",
            cause=f"it pulled {image}, and not one request of this node reached the mirror",
            remedy=f"look at what containerd reads: containerd config dump | grep -A2 registry; ls {_hosts_folder(ctx)}",
            code="mirror-not-used",
        )


def runtime_asks_mirror(ctx: Run) -> bool:
    if ctx.host.mode != "live" or "containerd" not in crictl.socket_path(ctx.config.node.cri_socket).name:
        return True
    try:
        files = _plan_files(ctx, _hosts_folder(ctx))
    except HostError:
        return False
    is_ready = runtime.probe_runtime(ctx.host, ctx.config.node.cri_socket).is_ready
    return is_ready and all(ctx.host.exists(path) and ctx.host.read_text(path) == text for path, text in files.items())


def kb_digest(ctx: Run) -> str:
    """The sha256 of the kb.pyz that the mirror hands out, in hex; "" where the bundle has none."""
    known = [bundle.read_files(ctx.host, one) for one in _laid_down(ctx.host)]
    entry = bundle.choose_files(known).get(bundle.KB_FILE)
    return entry.digest.partition(":")[2] if entry else ""


# ---- --air-gapped


def plan_fence(config: NodeConfig) -> Fence:
    """The cluster, the mirror, and this machine."""
    names = {config.node.name, config.local_api_endpoint.advertise_address}
    cluster = config.cluster
    if cluster.control_plane_endpoint:
        names.add(cert_specs.split_host_port(cluster.control_plane_endpoint)[0])
    if config.kb.mirror.endpoint:
        names.add(containerd_hosts.Mirror(config.kb.mirror.endpoint).host)
    if cluster.external_etcd:
        names.update(containerd_hosts.Mirror(url).host for url in cluster.external_etcd.endpoints)
    if config.join and config.join.server:
        names.add(containerd_hosts.Mirror(config.join.server).host)
    return Fence(frozenset(names), (*cluster.service_cidrs(), *cluster.pod_cidrs()))
