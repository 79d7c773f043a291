"""The phase install/registries: configures containerd to pull through the mirror, and proves that it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from kubeup.config import presets
from kubeup.config.types import NodeConfig
from kubeup.engine.items import File
from kubeup.engine.plan import Difference, Fields, Ground, Item, Later, Plan, Proof
from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.phases.find_mirror import mirror_of, mirror_url

with lazily:
    from kubeup import yaml_files
    from kubeup.airgap import bundle_needs, containerd_hosts
    from kubeup.config import choose
    from kubeup.diagnosis.checks import runtime as runtime_checks
    from kubeup.network import pod_network
    from kubeup.node import ca_pins, crictl, image_pulls, images, runtime, runtime_fix

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror
    from kubeup.machine.host import Host


def wants_registries(config: NodeConfig) -> bool:
    return bool(config.kb.bundle or config.kb.mirror.endpoint or config.kb.packages.preset)


def plan_registries(run: Run) -> Plan:
    """A hosts.toml per registry, which containerd reads at each pull; containerd's settings, with the folder of these files and the
    sandbox image; then a pull through the CRI as proof.

    Raises when it is applied: HostError (mirror-not-trusted, mirror-unreachable, runtime-not-fixable, runtime-fix-failed,
    image-pull-failed, mirror-not-used).
    """
    socket = run.config.node.cri_socket
    if "containerd" not in crictl.socket_path(socket).name:
        told = f"the runtime at {socket} is not containerd: configure {mirror_url(run.config)} as its mirror yourself"
        return Plan(notes=[told])
    folder = _hosts_folder(run)
    pause = images.image_of("pause", run.config.cluster, release=run.release).ref
    config = ContainerdConfig(
        socket, _wanted_settings(run, folder, pause=pause), "install/registries" in run.selection.cut_off
    )
    proofs = [Proof("the runtime asks the mirror", wait=lambda _: _prove(run, pause))] if _has_mirror(run) else []
    return Plan(_plan_hosts(run, folder), config, *proofs)


def _plan_hosts(run: Run, folder: Path) -> Later:
    """The hosts.toml files: the mirror's catalog says which registries it mirrors."""

    def read(_: Run) -> Optional[Mapping[Path, str]]:
        try:
            return _plan_files(run, folder)
        except HostError:
            return None  # the mirror does not run yet

    def wait(_: Run) -> Mapping[Path, str]:
        files = _plan_files(run, folder)
        changed = [
            path for path, text in files.items() if not (run.host.exists(path) and run.host.read_text(path) == text)
        ]
        names = sorted({path.parent.name for path in changed if path.name == "hosts.toml"})
        if names:
            run.report.note(f"containerd asks {_told_mirror(run)} for {', '.join(names)}")
        return files

    def plan(files: Mapping[Path, str]) -> list[Item]:
        return [File(path, text, keeps_rights=True) for path, text in files.items()]

    return Later("what the mirror has", read=read, wait=wait, then=plan)


def _wanted_settings(run: Run, folder: Path, *, pause: str) -> runtime_fix.Wanted:
    """All settings for a containerd that kb installed, or with --fix; for any other only what is required."""
    is_ours = str(runtime.CONTAINERD_UNIT) in _made(run) or run.config.kb.runtime.fix
    is_systemd = (run.config.kubelet.get("cgroupDriver") or "systemd") == "systemd"
    return runtime_fix.Wanted(
        sandbox_image=pause,
        systemd_cgroup=is_systemd if is_ours else None,
        restrict_oom_score_adj=not runtime_checks.may_lower_oom_score(run.host) if is_ours else None,
        registry_config_path=str(folder) if folder == runtime_fix.CERTS_D else None,
    )


@frozen
class ContainerdConfig:
    """The settings that kb needs in containerd's configuration, which belongs to the admin.

    Only containerd itself can tell their effect, in a trial run, so they are not inspected again until other settings are wanted.
    is_cut_off: an earlier run was interrupted. It may have changed the configuration without restarting containerd.
    """

    socket: str
    settings: runtime_fix.Wanted
    is_cut_off: bool

    name = "containerd's configuration"
    is_of_cluster = False
    is_blind = True
    is_judged = True
    places = ()

    def wanted(self) -> Fields:
        return {key: str(value) for key, value in vars(self.settings).items() if value is not None}

    def look(self, run: Ground) -> Optional[Fields]:
        status = runtime.probe_runtime(run.host, self.socket)
        return (
            self.wanted()
            if status.is_ready
            else {**self.wanted(), "trouble": status.cause or "containerd is not ready"}
        )

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        trouble = (found or {}).get("trouble")
        return (Difference(self.name, str(trouble)),) if trouble else ()

    def apply(self, run: Ground) -> Fields:
        told = runtime_fix.fix_runtime(run.host, self.socket, wanted=self.settings, restarts=self.is_cut_off)
        for fault in told:
            run.report.note(f"containerd's configuration was completed and containerd restarted: {fault}")
        return self.wanted()

    def record(self, fields: Fields) -> Fields:
        return fields


def _has_mirror(ctx: Run) -> bool:
    return bool(ctx.config.kb.bundle or ctx.config.kb.mirror.endpoint)


def _told_mirror(ctx: Run) -> str:
    return mirror_of(ctx).url if _has_mirror(ctx) else f"the servers of preset {ctx.config.kb.packages.preset}"


def _made(ctx: Run) -> frozenset[str]:
    """The paths that kb created on this node. Includes containerd's unit if this run has just created it."""
    made = set(ctx.owned_paths)
    if ctx.host.exists(runtime.CONTAINERD_UNIT) and "Written by kb" in ctx.host.read_text(runtime.CONTAINERD_UNIT):
        made.add(str(runtime.CONTAINERD_UNIT))
    return frozenset(made)


def _hosts_folder(ctx: Run) -> Path:
    """The folder from which containerd already reads hosts.toml files, or the usual one."""
    effective = runtime.read_containerd_config(ctx.host, ctx.config.node.cri_socket) or {}
    path = runtime_fix.describe_effective(effective).registry_config_path or ""
    found = containerd_hosts.hosts_folder(path)
    return found or runtime_fix.CERTS_D


def say_mirror(run: Run) -> str:
    """The mirror that this node's containerd was told to ask, as flags: `--mirror https://10.0.0.11:5000`, with a hash where neither the
    cluster's authority nor the system's vouches for it; "" if there is none. The server of a preset is none: it has only images."""
    pause = images.image_of("pause", run.config.cluster, release=run.release).ref
    path = _hosts_folder(run) / pause.partition("/")[0] / "hosts.toml"
    url = containerd_hosts.parse_mirror(run.host.read_text(path)) if run.host.exists(path) else ""
    servers = (presets.find_preset(name).registries.values() for name in presets.list_presets())
    if not url or any(url in each for each in servers):
        return ""
    more = sorted(_read_pins(run, containerd_hosts.CA_FILE) - _read_pins(run, run.paths.pki / "ca.crt"))
    return f"--mirror {url}" + (f" --mirror-ca-hash {more[0]}" if more else "")


def list_pointed(host: Host, folder: Path) -> list[str]:
    """The registries that kb has pointed to a mirror, without the one that stands for all others, sorted."""
    paths = {name: folder / name / "hosts.toml" for name in host.list_dir(folder) if name != containerd_hosts.DEFAULT}
    files = {name: path for name, path in paths.items() if host.exists(path)}
    return sorted(name for name, path in files.items() if containerd_hosts.parse_mirror(host.read_text(path)))


def is_closed(run: Run) -> bool:
    """Whether this node's containerd asks nobody but its mirror."""
    path = _hosts_folder(run) / containerd_hosts.DEFAULT / "hosts.toml"
    return run.host.exists(path) and bool(containerd_hosts.parse_mirror(run.host.read_text(path)))


def _read_pins(run: Run, path: Path) -> set[str]:
    try:
        return set(ca_pins.ca_cert_hashes(run.host.read_text(path))) if run.host.exists(path) else set()
    except ValueError:
        return set()


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
                containerd_hosts.plan_hosts(folder, [registry], mirror=containerd_hosts.Mirror(server), is_only=False)
            )
        return files
    mirror = mirror_of(ctx)
    pointed = [f"{name}/" for name in list_pointed(ctx.host, folder)]  # an earlier mirror's: it may be gone
    registries = containerd_hosts.registries_of([*_catalog(ctx, mirror), *pointed], names)
    return containerd_hosts.plan_hosts(folder, registries, mirror=mirror, is_only=ctx.config.kb.air_gapped)


def _catalog(ctx: Run, mirror: Mirror) -> list[str]:
    """The repositories in the mirror; [] if it does not list them."""
    try:
        answer = ctx.host.http_get(f"{mirror.url}/v2/_catalog", tls=mirror.tls, timeout_s=15)
        found = yaml_files.load_yaml(answer.body.decode()) if answer.status == 200 else {}
        return [str(name) for name in found.get("repositories") or []]
    except (Unreachable, ValueError, AttributeError):
        return []


def _prove(ctx: Run, image: str) -> None:
    """Pull the sandbox image through the CRI, and check in the mirror's request count that it was asked.

    Raises HostError: image-pull-failed, mirror-not-used.
    """
    mirror = mirror_of(ctx)
    own = [str(a) for interface in choose.read_interfaces(ctx.host) or [] for a in interface.addresses]
    before = containerd_hosts.count_requests(ctx.host, mirror, addresses=own)
    ctx.report.waiting(f"pulling {image} through the runtime")
    image_pulls.pull_image(ctx.host, ctx.config.node.cri_socket, image=image)
    after = containerd_hosts.count_requests(ctx.host, mirror, addresses=own)
    if before is None or after is None:
        ctx.report.note(f"{image} was pulled through the CRI; {mirror.url} does not say whether it was asked")
    elif after > before:
        ctx.report.note(f"{image} was pulled through the CRI, and {mirror.server} served it")
    else:
        raise HostError(
            f"the runtime does not ask the mirror {mirror.url}",
            cause=f"it pulled {image}, but no request from this node reached the mirror",
            remedy=f"look at what containerd reads: containerd config dump | grep -A2 registry; ls {_hosts_folder(ctx)}",
            code="mirror-not-used",
        )
