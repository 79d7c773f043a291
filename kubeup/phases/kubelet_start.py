"""The phases kubelet-start and kubelet-finalize/*: the kubelet's files and its service.

The rules of the files are in kubeup/node/kubelet.py. Mirrors cmd/kubeadm/app/cmd/phases/init/{kubelet,kubeletfinalize}.go
and cmd/kubeadm/app/util/initsystem; unlike kubeadm, kb writes the unit where no package brought one, enables the
kubelet at boot, and says so when it does not start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from kubeup import yaml_files
from kubeup.config.problems import Problems
from kubeup.config.types import Arg
from kubeup.engine.items import File, Folder, MovedAside
from kubeup.engine.plan import Group, Guard, Item, Plan
from kubeup.engine.run import Run
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
    from kubeup.node import certificates, crictl, kubelet, patches


# ---- its service


def stop_kubelet(ctx: Run) -> None:
    """Stop the kubelet if it runs. That it cannot be stopped is no failure: it is restarted or looked at next."""
    if services.find(ctx.host) is not None and services.is_active(ctx.host, "kubelet"):
        services.run(ctx.host, "stop", unit="kubelet")


def enable_kubelet(ctx: Run) -> None:
    """Have the kubelet started at boot. A machine that does not let itself be changed so runs it all the same."""
    if ctx.config.kb.only_kubeadm:
        return
    answer = services.enable(ctx.host, "kubelet")
    if answer is not None and not answer.ok:
        ctx.report.warn(f"the kubelet does not start at boot: {' '.join(answer.argv)}: {_reason(answer)}")


def restart_kubelet(ctx: Run) -> None:
    """Start the kubelet anew, after systemd has read its units again where they have changed (a tenth of a second).
    Raises HostError: no-init-system, kubelet-not-started."""
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
    """Whether the service manager knows the kubelet's unit by other files than those on the disk, or not at all."""
    if manager is not services.SYSTEMD:
        return True
    wanted = "LoadState,NeedDaemonReload,DropInPaths"
    lines = host.query(["systemctl", "show", "kubelet", "--property", wanted], timeout_s=15).stdout.splitlines()
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    if (shown.get("LoadState"), shown.get("NeedDaemonReload")) != ("loaded", "no"):
        return True
    # systemd does not look into a folder of drop-ins that is newer than its list of such folders
    known = {Path(path).name for path in shown.get("DropInPaths", "").split()}
    there = {path.name for path in kubelet.find_unit_files(host) if path.suffix == ".conf"}
    return not there <= known


def _reason(answer: CommandResult) -> str:
    return " ".join((answer.stderr or answer.stdout).split()) or "it gave no reason"


def _start_by_hand(ctx: Run) -> None:
    """Without systemd or OpenRC kb cannot move the kubelet: fine if one answers, or if nothing runs here anyway."""
    if not ctx.host.is_live:
        ctx.report.note("no systemd and no OpenRC here: the kubelet has to be started by other means")
        return
    url = probes.kubelet_healthz_url(ctx.config)
    if url and probes.probe_url(ctx.host, url).is_healthy:
        ctx.report.note(
            "no systemd and no OpenRC here: the kubelet that runs keeps its old files until it is restarted"
        )
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
        return Path("/usr/bin/kubelet")  # where the packages put it, and where it may be by the time it is needed
    if found is None:
        raise HostError(
            "there is no kubelet on this node",
            cause="no program kubelet in PATH",
            remedy=f"install it (for example: {crictl.install_command(host, 'kubelet')}), then run the command again",
            code="kubelet-missing",
        )
    return found


# ---- the identity of before


def has_foreign_identity(ctx: Run, ca_pem: str) -> bool:
    """Whether the kubelet's own certificate is none of this cluster's: a kubelet shows it for as long as it is there, and is
    answered 401, instead of asking for another one. kubeadm leaves it, and the node never appears."""
    pem = kubelet.find_rotated_cert(ctx.config)
    if not ca_pem or ctx.config.kb.only_kubeadm or not ctx.host.exists(pem):
        return False
    try:
        chain = certificates.parse_certs(ctx.host.read_text(pem))
        return not any(certificates.is_signed_by(chain, ca) for ca in certificates.parse_certs(ca_pem))
    except (HostError, ValueError):
        return True  # a link into nowhere, or no certificate: nothing that this cluster's kubelet could show


def _move_foreign_identity(run: Run, ca_pem: str) -> MovedAside:
    """Out of the kubelet's way, and no further: whose it is, is not kb's to say."""
    pem = kubelet.find_rotated_cert(run.config)
    aside = pem.with_name(f"of-before-{pem.name}")
    told = f"{pem} is no certificate of this cluster: it is {aside.name} now, and the kubelet gets its own"
    return MovedAside(pem, aside, lambda _: has_foreign_identity(run, ca_pem), told)


def _read_ca(ctx: Run) -> str:
    path = ctx.paths.pki / "ca.crt"
    return ctx.host.read_text(path) if ctx.host.exists(path) else ""


# ---- kubelet-start


@frozen
class Kubelet:
    """The kubelet, which reads its files when it starts. Stopped before they change: a run that is cut off leaves it stopped,
    and not with the files of before."""

    name = "kubelet"
    places: tuple[Path, ...] = (
        Path("/etc/systemd/system/multi-user.target.wants/kubelet.service"),
        Path("/etc/runlevels/default/kubelet"),
    )
    """What enabling it makes, by service manager."""

    def is_running(self, run: Run) -> bool:
        return services.may_run(run.host, "kubelet")

    def stop(self, run: Run) -> None:
        stop_kubelet(run)

    def start(self, run: Run) -> None:
        restart_kubelet(run)

    def settle(self, run: Run) -> None:
        enable_kubelet(run)


def plan_kubelet(run: Run) -> Plan:
    """The files of the first control plane's kubelet, and that it runs from them."""
    shared = shared_kubelet_config(run)
    files = {**render_kubelet_files(run, shared), **render_unit_files(run)}
    return plan_running(run, files, shared=shared, ca_pem=_read_ca(run))


def plan_running(
    run: Run,
    files: Mapping[Path, str],
    *,
    shared: kubelet.KubeletConfig,
    ca_pem: str,
    guard: Optional[Guard] = None,
    once: Sequence[Item] = (),
) -> Plan:
    """A kubelet that runs from these files; nothing is stopped or restarted where nothing changes."""
    details, warnings = describe_patches(run, "kubeletconfiguration")
    items: list[Item] = [_move_foreign_identity(run, ca_pem), *(File(path, text) for path, text in files.items())]
    return Plan(
        Folder(run.paths.kubelet, 0o700),
        Group(tuple(items), guard=guard or Kubelet(), once=tuple(once)),
        details=details,
        warnings=[*shared.warnings, *warnings],
    )


def shared_kubelet_config(ctx: Run) -> kubelet.KubeletConfig:
    """The KubeletConfiguration that all nodes share, as it goes to the ConfigMap kubelet-config."""
    return kubelet.render_kubelet_config(ctx.config, ctx.release, resolv_conf=kubelet.probe_resolv_conf(ctx.host))


def render_kubelet_files(
    ctx: Run, shared: kubelet.KubeletConfig, *, register_with_taints: bool = False
) -> dict[Path, str]:
    """The kubelet's own files and their texts, in the order in which they are written. shared: shared_kubelet_config's, for which
    the machine is asked."""
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
    """A kubelet does not start with a value of another type, and its log says so to nobody. Raises UsageError."""
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
    """The unit and the drop-in, as far as no package brought them; {} where systemd does not run the node."""
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
    """One that is started again where its kubeconfig changes. That it runs, and at boot, is kubelet-start's to see."""

    places = ()

    def is_running(self, run: Run) -> bool:
        return True

    def settle(self, run: Run) -> None: ...


def plan_client_cert_rotation(run: Run) -> Plan:
    """kubelet.conf points to the certificate that the kubelet renews itself, once it is there."""
    path, wanted = _kubelet_conf(run), _rotated_kubelet_conf(run)
    if wanted is None:
        return Plan(details=[f"{kubelet.find_rotated_cert(run.config)} is not there: {path} stays as it is"])
    return Plan(Group((File(path, wanted, mode=0o600, is_secret=True),), guard=RestartedKubelet()))


def name_rotated_cert(ctx: Run) -> None:
    """The same for a kubelet that has not been started yet."""
    wanted = _rotated_kubelet_conf(ctx)
    if wanted is not None:
        ctx.host.write_file(_kubelet_conf(ctx), wanted, mode=0o600)


def _kubelet_conf(ctx: Run) -> Path:
    return ctx.paths.kubernetes / "kubelet.conf"


def _rotated_kubelet_conf(ctx: Run) -> Optional[str]:
    """The text of kubelet.conf with the rotating certificate; None where there is none, or nothing to change."""
    path, pem = _kubelet_conf(ctx), kubelet.find_rotated_cert(ctx.config)
    if not ctx.host.exists(pem):
        return None
    text = ctx.host.read_text(path)
    try:
        before = yaml_files.load_yaml(text)
        after = kubelet.use_rotated_cert(before, pem)
    except (LookupError, TypeError, AttributeError, yaml_files.YAMLError) as error:
        raise HostError(
            f"{path} is no kubeconfig with a current user",
            cause=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy=f"move it away (mv {path} /root/), then: {signs.say_new_identity(ctx.host)}",
            code="kubelet-conf-damaged",
        ) from error
    return text if after == before else yaml_files.dump_yaml(after)
