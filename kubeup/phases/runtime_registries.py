"""The phase install/registries: containerd asks the mirror for what registries have, and shows that it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubeup.config import presets
from kubeup.config.types import NodeConfig
from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.phases.find_mirror import mirror_of, mirror_url
from kubeup.phases.install_programs import CONTAINERD_UNIT

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import bundle_needs, containerd_hosts
    from kubeup.config import choose
    from kubeup.diagnosis.checks import runtime as runtime_checks
    from kubeup.network import pod_network
    from kubeup.node import crictl, image_pulls, images, runtime, runtime_fix

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror


def wants_registries(config: NodeConfig) -> bool:
    return bool(config.kb.bundle or config.kb.mirror.endpoint or config.kb.packages.preset)


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
    found = containerd_hosts.hosts_folder(path)
    return found or runtime_fix.CERTS_D


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
    return containerd_hosts.plan_hosts(folder, registries, mirror, is_only=ctx.config.kb.air_gapped)


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


REGISTRIES = Act(
    do=point_runtime_to_mirror,
    probe=runtime_asks_mirror,
    live="node",
    when=wants_registries,
    reads=(
        "kb.bundle",
        "kb.mirror",
        "kb.air_gapped",
        "kb.packages.preset",
        "kb.pod_network",
        "kubelet",
        "cluster.image_repository",
        "cluster.kubernetes_version",
    ),
)
