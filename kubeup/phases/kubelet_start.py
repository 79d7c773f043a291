"""The phases kubelet-start and kubelet-finalize/*: the kubelet's files and service. For reset: removes the kubelet's pods, mounts and data.

The content of the files is in kubeup/node/kubelet.py. Mirrors cmd/kubeadm/app/cmd/phases/init/{kubelet,kubeletfinalize}.go
and cmd/kubeadm/app/util/initsystem. Unlike kubeadm, kb writes the unit if no package installed one, enables the kubelet
at boot, and fails if it does not start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from kubeup import yaml_files
from kubeup.config.problems import Problems
from kubeup.config.types import Arg
from kubeup.engine.items import File, Folder, Gone, MovedAside
from kubeup.engine.plan import Ground, Group, Guard, Item, Plan
from kubeup.engine.run import BareRun, ResetRun, Run
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import CommandResult, Host
from kubeup.phases.control_plane import describe_patches

with lazily:
    from kubeup.cluster import probes
    from kubeup.config import documents
    from kubeup.diagnosis import signs
    from kubeup.engine import state
    from kubeup.network import pod_network
    from kubeup.node import certificates, containers, crictl, kubelet, patches, runtime


# ---- its service


def stop_kubelet(ctx: Run) -> None:
    """Stop the kubelet if it runs. A failure to stop it is ignored: the next step restarts or checks it."""
    if services.find(ctx.host) is not None and services.is_active(ctx.host, "kubelet"):
        services.run(ctx.host, "stop", unit="kubelet")


def enable_kubelet(ctx: Run) -> None:
    """Enable the kubelet at boot. Where that is not possible, the report warns: the kubelet still runs now."""
    if ctx.config.kb.only_kubeadm:
        return
    answer = services.enable(ctx.host, "kubelet")
    if answer is not None and not answer.ok:
        ctx.report.warn(f"the kubelet does not start at boot: {' '.join(answer.argv)}: {_reason(answer)}")


def restart_kubelet(ctx: Run) -> None:
    """Restart the kubelet. Before that, reload systemd if its units have changed; a reload takes a tenth of a second.

    Raises HostError: no-init-system, kubelet-not-started.
    """
    manager = services.find(ctx.host)
    if manager is None:
        _start_by_hand(ctx)
        return
    reload = manager.reload if _has_stale_units(ctx.host, manager) else ()
    for command in filter(None, (reload, manager.argv("restart", "kubelet"))):
        answer = ctx.host.run(command)
        if not answer.ok:
            raise HostError(
                f"{' '.join(command)} ended with code {answer.code}",
                cause=_reason(answer),
                remedy=f"see why: {services.say_log(ctx.host, 'kubelet')}",
                code="kubelet-not-started",
            )


def _has_stale_units(host: Host, manager: services.ServiceManager) -> bool:
    """Whether the service manager has loaded other files for the kubelet's unit than those on disk, or none."""
    if manager is not services.SYSTEMD:
        return True
    wanted = "LoadState,NeedDaemonReload,DropInPaths"
    lines = host.query(["systemctl", "show", "kubelet", "--property", wanted], timeout_s=15).stdout.splitlines()
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    if (shown.get("LoadState"), shown.get("NeedDaemonReload")) != ("loaded", "no"):
        return True
    # systemd does not notice a drop-in folder that is newer than its list of such folders
    known = {Path(path).name for path in shown.get("DropInPaths", "").split()}
    there = {path.name for path in kubelet.find_unit_files(host) if path.suffix == ".conf"}
    return not there <= known


def _reason(answer: CommandResult) -> str:
    return " ".join((answer.stderr or answer.stdout).split()) or "it gave no reason"


def _start_by_hand(ctx: Run) -> None:
    """Without systemd or OpenRC, kb cannot start the kubelet. Accepted if one answers, or if the host is not live.

    Raises HostError (no-init-system) otherwise.
    """
    if not ctx.host.is_live:
        ctx.report.note("no systemd and no OpenRC here: the kubelet has to be started by other means")
        return
    url = probes.kubelet_healthz_url(ctx.config)
    if url and probes.probe_url(ctx.host, url).is_healthy:
        ctx.report.note("no systemd and no OpenRC here: the running kubelet keeps its old files until it is restarted")
        return
    command = kubelet.render_kubelet_command(_flags(ctx), kubelet=_find_kubelet(ctx.host))
    raise HostError(
        "the kubelet cannot be started",
        cause="neither systemd (systemctl, /run/systemd/system) nor OpenRC (openrc, rc-service, rc-update) runs this node",
        remedy=f"start it by hand and keep it running, then run the command again: {command}",
        code="no-init-system",
    )


def _find_kubelet(host: Host) -> Path:
    found = host.which("kubelet")
    if found is None and not host.is_live:
        return Path("/usr/bin/kubelet")  # where the packages install it: it may be there by the time it is needed
    if found is None:
        raise HostError(
            "there is no kubelet on this node",
            cause="no program kubelet in PATH",
            remedy=f"install it (for example: {crictl.install_command(host, 'kubelet')}), then run the command again",
            code="kubelet-missing",
        )
    return found


# ---- an earlier cluster's identity


def has_foreign_identity(ctx: Run, ca_pem: str) -> bool:
    """Whether the kubelet's own certificate is not from this cluster.

    As long as it exists, the kubelet presents it and gets a 401, instead of requesting a new one. kubeadm leaves it there, and
    the node never registers."""
    pem = kubelet.find_rotated_cert(ctx.config)
    if not ca_pem or ctx.config.kb.only_kubeadm or not ctx.host.exists(pem):
        return False
    try:
        chain = certificates.parse_certs(ctx.host.read_text(pem))
        return not any(certificates.is_signed_by(chain, ca) for ca in certificates.parse_certs(ca_pem))
    except (HostError, ValueError):
        return True  # a dangling link, or not a certificate: nothing that this cluster's kubelet could present


def _move_foreign_identity(run: Run, ca_pem: str) -> MovedAside:
    """Rename it out of the kubelet's way. It is not deleted: kb does not know whose it is."""
    pem = kubelet.find_rotated_cert(run.config)
    aside = pem.with_name(f"of-before-{pem.name}")
    told = f"{pem} is not from this cluster: it was renamed to {aside.name}, and the kubelet requests a new one"
    return MovedAside(pem, aside, lambda _: has_foreign_identity(run, ca_pem), told)


def _read_ca(ctx: Run) -> str:
    path = ctx.paths.pki / "ca.crt"
    return ctx.host.read_text(path) if ctx.host.exists(path) else ""


# ---- kubelet-start


@frozen
class Kubelet:
    """The kubelet's service. The kubelet reads its files only when it starts, so it is stopped before they change: an interrupted
    run leaves it stopped, rather than running from the old files."""

    name = "kubelet"
    places: tuple[Path, ...] = (
        Path("/etc/systemd/system/multi-user.target.wants/kubelet.service"),
        Path("/etc/runlevels/default/kubelet"),
    )
    """The links that enabling it creates: systemd's, then OpenRC's."""

    def is_running(self, run: Run) -> bool:
        return services.may_run(run.host, "kubelet")

    def stop(self, run: Run) -> None:
        stop_kubelet(run)

    def start(self, run: Run) -> None:
        restart_kubelet(run)

    def settle(self, run: Run) -> None:
        enable_kubelet(run)


def plan_kubelet(run: Run) -> Plan:
    """The first control plane's kubelet: its files, and the service that runs from them.

    The folder of the static pods comes first. A kubelet that starts without it looks for it again a second later, and then watches only
    for what changes: a manifest written in between is found 20 s later (pkg/kubelet/config/file_linux.go).
    """
    shared = shared_kubelet_config(run)
    files = {**render_kubelet_files(run, shared), **render_unit_files(run)}
    running = plan_running(run, files, shared=shared, ca_pem=_read_ca(run))
    return Plan(Folder(run.paths.manifests, 0o700)) + running


def plan_running(
    run: Run,
    files: Mapping[Path, str],
    *,
    shared: kubelet.KubeletConfig,
    ca_pem: str,
    guard: Optional[Guard] = None,
    once: Sequence[Item] = (),
) -> Plan:
    """A kubelet that runs from these files. If none of them changes, it is neither stopped nor restarted."""
    details, warnings = describe_patches(run, "kubeletconfiguration")
    items: list[Item] = [_move_foreign_identity(run, ca_pem), *(File(path, text) for path, text in files.items())]
    return Plan(
        Folder(run.paths.kubelet, 0o700),
        Group(tuple(items), guard=guard or Kubelet(), once=tuple(once)),
        details=details,
        warnings=[*shared.warnings, *warnings],
    )


def shared_kubelet_config(ctx: Run) -> kubelet.KubeletConfig:
    """The KubeletConfiguration that all nodes share, as stored in the ConfigMap kubelet-config."""
    return kubelet.render_kubelet_config(ctx.config, ctx.release, resolv_conf=kubelet.probe_resolv_conf(ctx.host))


def render_kubelet_files(
    ctx: Run, shared: kubelet.KubeletConfig, *, register_with_taints: bool = False
) -> dict[Path, str]:
    """The kubelet's files and their texts, in the order in which they are written.

    shared: the result of shared_kubelet_config, which probes the machine.
    """
    files = {ctx.paths.kubelet_flags_env: kubelet.render_flags_env(_flags(ctx, register_with_taints))}
    instance = kubelet.render_instance_config(ctx.config, ctx.release)
    if instance:
        files[ctx.paths.kubelet_instance_config] = kubelet.dump_instance_config(instance)
    found = patches.read_patches(ctx.host, ctx.config.patches_directory)
    patched = found.apply("kubeletconfiguration", shared.document)
    if found.for_target("kubeletconfiguration"):
        _check_types(patched)
    document = kubelet.finish_kubelet_config(patched, ctx.config, release=ctx.release)
    files[ctx.paths.kubelet_config] = kubelet.dump_kubelet_config(document)
    return files


def _check_types(patched: Mapping[str, object]) -> None:
    """Check the types of patched fields: with a wrong one the kubelet does not start, and only its log says why.

    Raises UsageError (patch-failed).
    """
    problems = Problems()
    documents.parse_documents(yaml_files.dump_yaml(dict(patched)), "", problems=problems)
    details = [f"{problem.path}: {problem.message}; {problem.remedy}" for problem in problems.items]
    if details:
        raise UsageError(
            "the KubeletConfiguration with its patches cannot be read by a kubelet",
            cause=details[0],
            remedy="correct the patch files of kubeletconfiguration, then run the command again",
            code="patch-failed",
            details=details,
        )


def render_unit_files(ctx: Run) -> dict[Path, str]:
    """The unit and the drop-in that no package installed; {} if systemd does not run the node."""
    if ctx.config.kb.only_kubeadm:
        return {}
    manager = services.find(ctx.host)
    if manager is not services.SYSTEMD if manager else ctx.host.is_live:
        return {}
    wanted = kubelet.plan_unit_files(ctx.host, ctx.paths, owned=ctx.owned_paths)
    if not wanted:
        return {}
    program = _find_kubelet(ctx.host)
    return {path: kubelet.render_unit_file(name, program) for path, name in wanted.items()}


def _flags(ctx: Run, register_with_taints: bool = False) -> tuple[Arg, ...]:
    return kubelet.plan_kubelet_flags(
        ctx.config, ctx.release, os_hostname=ctx.host.hostname(), register_with_taints=register_with_taints
    )


# ---- kubelet-finalize


@frozen
class RestartedKubelet(Kubelet):
    """The kubelet, restarted if its kubeconfig changes. kubelet-start ensures that it runs and is enabled at boot."""

    places = ()

    def is_running(self, run: Run) -> bool:
        return True

    def settle(self, run: Run) -> None: ...


def plan_client_cert_rotation(run: Run) -> Plan:
    """Once the certificate that the kubelet rotates itself exists, kubelet.conf points to it."""
    path, wanted = _kubelet_conf(run), _rotated_kubelet_conf(run)
    if wanted is None:
        return Plan(details=[f"{kubelet.find_rotated_cert(run.config)} is not there: {path} stays as it is"])
    return Plan(Group((File(path, wanted, mode=0o600, is_secret=True),), guard=RestartedKubelet()))


def name_rotated_cert(ctx: Run) -> None:
    """Have kubelet.conf point to the rotated certificate before the kubelet has started."""
    wanted = _rotated_kubelet_conf(ctx)
    if wanted is not None:
        ctx.host.write_file(_kubelet_conf(ctx), wanted, mode=0o600)


def _kubelet_conf(ctx: Run) -> Path:
    return ctx.paths.kubernetes / "kubelet.conf"


def _rotated_kubelet_conf(ctx: Run) -> Optional[str]:
    """The text of kubelet.conf with the rotated certificate; None if there is no such certificate, or nothing to change.

    Raises HostError (kubelet-conf-damaged).
    """
    path, pem = _kubelet_conf(ctx), kubelet.find_rotated_cert(ctx.config)
    if not ctx.host.exists(pem):
        return None
    text = ctx.host.read_text(path)
    try:
        before = yaml_files.load_yaml(text)
        after = kubelet.use_rotated_cert(before, pem)
    except (LookupError, TypeError, AttributeError, yaml_files.YAMLError) as error:
        raise HostError(
            f"{path} is not a kubeconfig with a current user",
            cause=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy=f"move it away (mv {path} /root/), then: {signs.say_new_identity(ctx.host)}",
            code="kubelet-conf-damaged",
        ) from error
    return text if after == before else yaml_files.dump_yaml(after)


# ---- reset

_DEAD = ("no-socket", "refused", "timeout")
"""The problems of a runtime that does not answer at all."""
_OWN_ENTRIES = (
    "actuated_pods_state",
    "allocated_pods_state",
    "checkpoints",
    "cpu_manager_state",
    "device-plugins",
    "dra_manager_state",
    "image_manager",
    "memory_manager_state",
    "pki",
    "plugin-containers",
    "plugins",
    "plugins_registry",
    "pod-resources",
    "pod_status_manager_state",
    "pods",
)
"""What the kubelet itself creates in its folder, in any minor. Anything else there is the admin's."""


def is_kubelet_of_kb(ctx: BareRun) -> bool:
    """Whether kb set up the kubelet. If not, the kubelet, its pods and their mounts belong to another cluster."""
    made = state.load_state(ctx.host, ctx.paths).created_paths()
    work = (ctx.paths.kubelet_config, *(ctx.paths.manifest(name) for name in ("etcd", *probes.COMPONENTS)))
    return any(str(path) in made for path in work)


def _find_roots(ctx: BareRun) -> tuple[Path, ...]:
    """Where this node's kubelet keeps its pods: its --root-dir, if that is set, and the default."""
    path = ctx.paths.kubelet_flags_env
    text = ctx.host.read_text(path) if ctx.host.exists(path) else ""
    told = [
        Path(arg.value) for arg in kubelet.parse_flags_env(text) if arg.name == "root-dir" and arg.value.startswith("/")
    ]
    return tuple(dict.fromkeys((*told, ctx.paths.kubelet)))


def plan_stopped_kubelet(run: BareRun) -> Plan:
    """Stop the kubelet first, or it would restart every pod. It is disabled at boot too, unless it was enabled before kb."""
    if not is_kubelet_of_kb(run):
        return Plan(notes=["kb did not set up this node's kubelet: it and its pods stay as they are"])
    made = state.load_state(run.host, run.paths).created_paths()
    links = [link for link in Kubelet().places if str(link) in made]

    def find(ground: Ground) -> list[str]:
        is_managed = services.find(ground.host) is not None
        service = ["its service"] if is_managed and not services.is_stopped(ground.host, "kubelet") else []
        return service + [str(link) for link in links if ground.host.exists(link)]

    def take_away(ground: Ground) -> None:
        if services.find(ground.host) is not None:
            services.run(ground.host, "stop", unit="kubelet")
        for link in links:
            ground.host.remove(link)

    return Plan(Gone("the running kubelet", find, take_away))


def plan_no_pods(run: ResetRun) -> Plan:
    """Remove all pods of this node until the runtime reports none.

    Raises HostError: runtime-not-ready when it is looked at, pods-not-removed when it is applied.
    """
    if not is_kubelet_of_kb(run) or _is_runtime_removed(run):
        return Plan()
    find = lambda ground: _find_pods(run, ground.host)  # noqa: E731
    return Plan(Gone("this node's pods", find, lambda ground: _remove_pods(run, ground.host)))


def _is_runtime_removed(run: ResetRun) -> bool:
    """Whether an earlier reset has stopped the containerd that kb installed, and no container is left.

    Reset stops containerd only after the pods are gone.
    """
    if str(runtime.CONTAINERD_UNIT) not in state.load_state(run.host, run.paths).created_paths():
        return False
    is_gone = not run.host.exists(runtime.CONTAINERD_UNIT) or services.is_stopped(run.host, "containerd")
    return is_gone and run.host.query(["pgrep", "-f", "containerd-shim"]).code == 1


def _find_pods(ctx: ResetRun, host: Host) -> list[str]:
    status = runtime.probe_runtime(host, ctx.cri_socket)
    if status.problem in _DEAD:
        raise HostError(
            f"the container runtime does not answer at {ctx.cri_socket}",
            cause=f"{status.cause}; without it kb cannot tell which pods run and what they have mounted",
            remedy=f"{status.remedy}; then run the command again. If it never comes back, reboot and: kb reset --skip-phases "
            "cleanup-node/remove-pods",
            code="runtime-not-ready",
        )
    return [
        "what the runtime still runs"
    ]  # not listed: a sandbox may appear after this look, and the removal looks again until none is left


FOREIGN_END_S = 10.0
"""How long pods may take to end by another network's programs before they are ended without those."""


def _remove_pods(ctx: ResetRun, host: Host) -> None:
    """The runtime has pods leave their network by the programs of the first CNI file. Those of another network may be gone, or wait for pods of
    their own that have ended: no pod would ever end."""
    foreign = pod_network.find_foreign_cni_config(host, ctx.paths)
    limit = {"timeout_s": FOREIGN_END_S} if foreign else {}
    failures = containers.remove_pods(host, ctx.cri_socket, **limit)
    if failures and foreign:
        told = f"pods do not leave the network of {ctx.paths.cni_conf / foreign}, and end without it: {failures[0]}"
        ctx.report.note(told)
        with pod_network.end_by_own(host, ctx.paths):
            failures = containers.remove_pods(host, ctx.cri_socket)
    if failures:
        raise HostError(
            f"{len(failures)} pods could not be removed",
            cause=failures[0],
            remedy=f"see why: {services.say_log(host, 'containerd')}; then run the command again",
            code="pods-not-removed",
        )


def plan_no_mounts(run: BareRun) -> Plan:
    """Unmount what the kubelet mounted for pods. Other mounts below its folder are not kb's and stay.

    Raises when it is applied: HostError (mount-in-the-way), before any file is deleted.
    """
    if not is_kubelet_of_kb(run):
        return Plan()
    folders = [root / name for root in _find_roots(run) for name in _OWN_ENTRIES]

    def find(ground: Ground) -> list[str]:
        return [str(mount) for folder in folders for mount in ground.host.mounts_below(folder)]

    def take_away(ground: Ground) -> None:
        for mount in find(ground):
            _unmount(ground.host, mount)

    return Plan(Gone("what the kubelet mounted", find, take_away))


def _unmount(host: Host, mount: str) -> None:
    done = host.run(["umount", mount])
    if not done.ok:
        raise HostError(
            f"{mount} cannot be unmounted",
            cause=done.stderr.strip() or f"umount ended with code {done.code}",
            remedy=f"see who uses it (fuser -vm {mount}), then run the command again",
            code="mount-in-the-way",
        )


def plan_no_kubelet_data(run: BareRun) -> Plan:
    """Remove what the kubelet itself wrote in its folder. On a joined node also its kubeconfig, which it may have written after
    kb last looked. A link that somebody else created stays, and so does its target."""
    node_state = state.load_state(run.host, run.paths)
    made, places = node_state.created_paths(), []
    if str(run.paths.kubelet_config) in made:
        places += [root / name for root in _find_roots(run) for name in _OWN_ENTRIES]
    foreign = [path for path in places if run.host.read_link(path) is not None and str(path) not in made]
    own_conf = run.paths.kubernetes / "kubelet.conf"
    if node_state.has_run("join") and str(own_conf) not in node_state.adopted:
        places += [own_conf, run.paths.kubernetes / "bootstrap-kubelet.conf"]

    def find(ground: Ground) -> list[str]:
        return [str(path) for path in places if path not in foreign and ground.host.exists(path)]

    def take_away(ground: Ground) -> None:
        for text in find(ground):
            if not ground.host.remove_tree(Path(text)):
                ground.host.remove(Path(text))

    notes = [f"{path} is a link that somebody else created: it stays, and so does its target" for path in foreign]
    return Plan(Gone("what the kubelet wrote", find, take_away), notes=notes)
