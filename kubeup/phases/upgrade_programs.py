"""The phase `programs` of an upgrade: fetch and verify the new kubelet and kubectl, and keep the former ones.

Nothing stops here. What could stop a new kubelet from starting is tried with the new program itself as far as that is possible without
starting it. kubeadm leaves the programs to the operator's packages; so does kb where no source is configured, and says which line
installs them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import install_programs, local_bundle, runtime_registries
from kubeup.phases.upgrade_run import UpgradeRun
from kubeup.phases.wait_node import node_path
from kubeup.releases import find_refused_gate, kubelet_refuses_cgroup_v1, parse_version

with lazily:
    from kubeup.airgap import distro_packages, downloads, programs
    from kubeup.cluster import eviction, probes
    from kubeup.node import crictl, kubelet
    from kubeup.swap import store
    from kubeup.upgrade import kept, lacks

STEP = "programs"
NAMES = ("kubelet", "kubectl")
MANAGERS = ("apt", "dnf")
_CGROUP2 = Path("/sys/fs/cgroup/cgroup.controllers")
_EXTRA_FILES = (Path("/etc/default/kubelet"), Path("/etc/sysconfig/kubelet"))
_ARGS = re.compile(r"""^\s*(?:Environment=)?["']?(KUBELET_\w*ARGS)=(.*?)["']?\s*$""", re.MULTILINE)
_PARSED_BY_KB = ("KUBELET_KUBECONFIG_ARGS", "KUBELET_CONFIG_ARGS", "KUBELET_KUBEADM_ARGS")
"""The variables whose flags are kb's or kubeadm's own: they are written anew, or name only files."""


@frozen
class Program:
    """An installed program. version: `v1.35.6`, "" if it says none."""

    name: str
    path: Path
    version: str


# ---- looks


def find_installed(run: Run, name: str) -> Optional[Program]:
    """The kubelet that the service starts, or the kubectl in PATH; None if there is none, or if kubectl is a link to another tool (snap,
    k3s, minikube): writing there would replace that tool."""
    path = _find_service_program(run) if name == "kubelet" else None
    path = path or run.host.which(name)
    if path is None or (name == "kubectl" and run.host.real_path(path).name != name):
        return None
    return Program(name, path, programs.ask_version(run.host, path, item=downloads.FILES_BY_NAME[name])[0])


def _find_service_program(run: Run) -> Optional[Path]:
    """Where systemd finds the kubelet: a PATH may name another one."""
    if services.find(run.host) is not services.SYSTEMD:
        return None
    shown = run.host.query(["systemctl", "show", "kubelet", "-p", "ExecStart", "--value"]).stdout
    match = re.search(r"path=(/\S+)", shown)
    return Path(match.group(1)) if match and run.host.exists(Path(match.group(1))) else None


def find_new(run: Run, name: str) -> Optional[Path]:
    """The new program that was fetched and waits to be put in place; None if there is none."""
    path = kept.programs_folder(run.paths) / name
    return path if run.host.exists(path) else None


def find_source(run: Run) -> str:
    """Where the new programs come from: bundle | mirror | download | apt | dnf, or "" if the operator installs them."""
    source, kb = run.config.kb.packages.source, run.config.kb
    if source == "auto":
        return "bundle" if kb.bundle else "mirror" if kb.mirror.endpoint else ""
    return "" if source == "none" else source


def wanted_version(run: Run) -> str:
    return run.config.cluster.kubernetes_version


def list_outdated(run: Run) -> list[Program]:
    """The installed programs that are of another version than the wanted one."""
    found = [one for one in (find_installed(run, name) for name in NAMES) if one is not None]
    return [one for one in found if one.version != wanted_version(run)]


def say_installation(run: Run, version: str) -> str:
    """The line with which an operator installs a kubelet of another version, an older one too."""
    plain = version.lstrip("v")
    if run.host.which("apt-get"):
        words = "--allow-change-held-packages --allow-downgrades"
        return f"apt-get install -y {words} kubelet='{plain}-*' kubectl='{plain}-*'"
    if run.host.which("dnf"):
        return f"dnf install -y --setopt=disable_excludes=kubernetes kubelet-{plain} kubectl-{plain}"
    return f"put the kubelet {version} in the place of {run.host.which('kubelet') or '/usr/bin/kubelet'}"


def say_ways(run: UpgradeRun) -> str:
    """How the new kubelet comes to this node, for a sentence: as a package that the operator installs, or by kb. A node that has its images
    from a mirror may reach no repository of packages."""
    mirror, version = runtime_registries.say_mirror(run), wanted_version(run)
    if mirror and not run.config.kb.mirror.endpoint:
        return (
            f"this node has its images from a mirror; to have the kubelet from there too: {run.command} {mirror}; "
            f"from a file: {run.command} --bundle FILE"
        )
    told = f"install the new one ({say_installation(run, version)}), then run the same command again"
    if mirror:
        return f"the mirror has no programs; to take them from a bundle: {run.command} --bundle FILE; or {told}"
    if leaves_minor(run, version):
        source = next(
            (name for name, program in (("apt", "apt-get"), ("dnf", "dnf")) if run.host.which(program)), "download"
        )
        told += f"; packages of another minor are in another repository. To have them installed from there: {run.command} --packages {source}"
    return told


# ---- the phase


def fetch_programs(ctx: UpgradeRun) -> Outputs:
    """Keep what the upgrade may change on this node, fetch the new programs, verify and try them. Nothing stops, and nothing is replaced.

    Raises HostError: kubelet-missing, program-elsewhere, packages-not-found, file-damaged, wrong-architecture, wrong-version, disk-full,
    kubelet-flags-refused, cgroup-v1-refused; UsageError (not-confirmed).
    """
    run = replace(ctx, host=ctx.machine or ctx.host)
    _require_kubelet(run)
    tell_pods(run)
    kept.begin(run.host, run.paths, former=run.former, wanted=wanted_version(run))
    kept.keep(run.host, run.paths, files=list_kept_files(run))
    outdated = list_outdated(run)
    source = find_source(run)
    if outdated and source in MANAGERS:
        _fetch_packages(run, source, outdated)
    elif outdated and source:
        _fetch_files(run, source, outdated)
    elif any(one.name == "kubelet" for one in outdated):
        run.report.note(
            f"this node's kubelet stays {run.former} until you install the new one: no source of programs is given"
        )
    program = find_candidate(run)
    if program is not None:
        try_kubelet(run, program)
    kept.note_done(run.host, run.paths, step=STEP, source=source)
    return None


def _require_kubelet(run: Run) -> Program:
    found = find_installed(run, "kubelet")
    if found is None:
        raise HostError(
            "there is no kubelet on this node",
            cause="neither its service nor PATH names one",
            remedy=f"install the one that runs here: {crictl.install_command(run.host, 'kubelet')}",
            code="kubelet-missing",
        )
    return found


def find_candidate(run: Run) -> Optional[Path]:
    """The program of the wanted version: fetched, or installed already; None if there is none yet."""
    new = find_new(run, "kubelet")
    if new is not None:
        return new
    found = find_installed(run, "kubelet")
    return found.path if found is not None and found.version == wanted_version(run) else None


def list_kept_files(run: Run) -> list[Path]:
    """The files of this node that an upgrade may change."""
    found = [one.path for one in (find_installed(run, name) for name in NAMES) if one is not None]
    own = (run.paths.kubelet_flags_env, run.paths.kubelet_instance_config, run.paths.kubelet_config)
    units = [path for path in kubelet.find_unit_files(run.host) if str(path) in run.owned_paths]
    manifests = [run.paths.manifest(name) for name in store.COMPONENTS if run.config.is_control_plane]
    conf = run.paths.kubernetes / "kubelet.conf"
    repositories = (distro_packages.APT_LIST, distro_packages.APT_KEY, distro_packages.DNF_REPO)
    managed = repositories if find_source(run) in MANAGERS else ()
    return [*found, *own, *units, *manifests, conf, *managed]


def _fetch_files(run: UpgradeRun, source: str, outdated: list[Program]) -> None:  # noqa: PLR0917
    wanted, folder = wanted_version(run), kept.programs_folder(run.paths)
    missing = [one for one in outdated if not _is_good(run, folder / one.name, one.name)]
    if not missing:
        return
    staged = stage_programs(run, source, names=[one.name for one in missing], folder=folder)
    if not staged:
        return
    for name, path in staged.items():
        if not _is_good(run, path, name):
            version, why = programs.ask_version(run.host, path, item=downloads.FILES_BY_NAME[name])
            run.host.remove_tree(folder)
            raise HostError(
                f"{name} from the {source} is not {wanted}",
                cause=why or f"it is {version}; nothing was stopped",
                remedy=f"make a bundle for it: kb bundle create --kubernetes-version {wanted}",
                code="wrong-version",
            )
    run.report.note(f"fetched from the {source}, and verified: {', '.join(sorted(staged))} {wanted}")
    _tell_of_packages(run, missing)


def _tell_of_packages(run: UpgradeRun, outdated: Sequence[Program]) -> None:
    """A program that a package put there is replaced under the package manager, which does not know of it."""
    owned = [one for one in outdated if distro_packages.owns(run.host, run.host.real_path(one.path))]
    manager = "apt" if run.host.which("apt-get") else "dnf"
    if owned:
        run.report.warn_once(
            f"{' and '.join(str(one.path) for one in owned)} came by a package, which {manager} goes on to list as {owned[0].version} and may put there "
            f"again with the machine's next upgrade; to have {manager} bring the new one: {run.command} --packages {manager}"
        )


def stage_programs(run: UpgradeRun, source: str, *, names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Fetch these programs and verify them: name -> where it waits, below `folder`. {} if the mirror serves only images, which is said
    then. Raises HostError (packages-not-found, file-damaged, wrong-architecture, disk-full)."""
    arch = local_bundle.find_architecture(run)
    standing = [programs.Standing(downloads.FILES_BY_NAME[name], "wrong") for name in names]
    offered = install_programs.offer_programs(run, source, names=names, arch=arch)
    chosen = install_programs.choose_programs(run, standing, source=source, offered=offered)
    if not chosen:
        return {}
    staged = programs.stage(
        run.host,
        chosen,
        arch=arch,
        cluster_version=wanted_version(run),
        release=run.release,
        tell=run.report.waiting,
        folder=folder,
    )
    if source == "download":
        run.host.remove_tree(install_programs.spool_of(run))
    return staged


def _is_good(run: Run, path: Path, name: str) -> bool:  # noqa: PLR0917
    if not run.host.exists(path):
        return False
    return programs.ask_version(run.host, path, item=downloads.FILES_BY_NAME[name])[0] == wanted_version(run)


def _refuse_elsewhere(run: UpgradeRun, manager: str, outdated: list[Program]) -> None:  # noqa: PLR0917
    """Raises HostError (program-elsewhere) where a package would put its program beside the one that runs."""
    for one in outdated:
        place = distro_packages.place_of(one.name)
        if run.host.real_path(one.path) == run.host.real_path(place):
            continue
        who = "the service kubelet starts" if one.name == "kubelet" else "PATH leads to"
        raise HostError(
            f"{who} {one.path}, and {manager} puts the package's program at {place}",
            cause=f"{one.path} would stay {one.version or 'as it is'}; nothing was stopped",
            remedy=f"have that program replaced itself: {run.command} --packages download; "
            f"to have the package's from now on: mv {one.path} {one.path}.old, once the package is installed",
            code="program-elsewhere",
        )


def _fetch_packages(run: UpgradeRun, manager: str, outdated: list[Program]) -> None:  # noqa: PLR0917
    _refuse_elsewhere(run, manager, outdated)
    names = [one.name for one in outdated]
    preset = run.config.kb.packages.preset
    distro_packages.fetch(run.host, manager, names=names, version=wanted_version(run), preset_name=preset)
    run.report.note(f"fetched by {manager}, and verified: {', '.join(names)} {wanted_version(run)}")


def foretell_programs(ctx: UpgradeRun) -> Outputs:
    """Dry run: what would be fetched. Nothing is."""
    _require_kubelet(ctx)
    tell_pods(ctx)
    for one in list_outdated(ctx):
        source = find_source(ctx)
        ctx.report.note(
            f"{one.name} {one.version} at {one.path} would be replaced by {wanted_version(ctx)} from the {source}"
            if source
            else f"{one.name} {one.version} at {one.path} stays: no source of programs is given"
        )
    program = find_candidate(ctx)
    if program is not None:
        try_kubelet(ctx, program)
    return None


# ---- what a drain meets


def tell_pods(run: UpgradeRun, *, goes_to: str = "") -> None:
    """Say by name what a drain of this node would meet, and have the user agree to lose pods that nothing makes anew. goes_to: the version
    of the coming kubelet, if it is not the configuration's. Raises UsageError (not-confirmed), ApiRefused, Unreachable."""
    if not drains(run, goes_to or wanted_version(run)):
        return
    found = eviction.look(run.api, run.config.node.name)
    for text in found.describe():
        run.report.note(text)
    if found.bare:
        run.agree(
            f"the drain of node {run.config.node.name} ends pods that nothing makes anew: {eviction.name_pods(found.bare)}. "
            "To leave them where they are: --no-drain"
        )


def drains(run: UpgradeRun, version: str) -> bool:
    """Whether the node's pods leave before a kubelet of this version comes: for another minor, where another node can take them. Raises
    ApiRefused, Unreachable."""
    if not run.drains or not leaves_minor(run, version):
        return False
    if eviction.has_refuge(run.api, run.config.node.name):
        return True
    run.report.warn_once(
        f"no other node can take the pods of {run.config.node.name}: they stay while its kubelet is replaced"
    )
    return False


def leaves_minor(run: Run, version: str) -> bool:
    """Whether the node reports a kubelet of another minor than this version's: its pods leave before that goes. Raises ApiRefused,
    Unreachable."""
    have, want = parse_version(read_reported(run)), parse_version(version)
    return have is not None and want is not None and have.key[:2] != want.key[:2]


def read_reported(run: Run) -> str:
    """The version of the kubelet that the cluster knows of this node; "" if it knows none. Raises ApiRefused, Unreachable."""
    return probes.kubelet_version(run.api.get(node_path(run)))


# ---- trials of the new kubelet


def try_kubelet(run: Run, program: Path) -> None:
    """Try with the new program what would stop it from starting: the flags that others have set, and cgroup v1.

    Raises HostError: kubelet-flags-refused, cgroup-v1-refused."""
    for path, variable, flags in list_flags(run):
        why = find_refused_flag(run, program, flags)
        if why:
            raise HostError(
                f"the kubelet {wanted_version(run)} does not accept its flags in {path}",
                cause=f"{variable}: {why}; nothing was stopped",
                remedy=f"correct or remove it there: {shlex.join(['vi', str(path)])}",
                code="kubelet-flags-refused",
            )
    _check_cgroup(run)


def find_refused_flag(run: Run, program: Path, flags: list[str]) -> str:  # noqa: PLR0917
    """Why the program does not accept these flags, in its own words; "" if it does. `--version` has it read all flags, and end. The names of
    gates it reads only when it starts: they are looked up."""
    answer = run.host.query([program, "--version", *flags], timeout_s=60)
    if answer.ok:
        return next(_list_refused_gates(run, flags), "")
    match = re.search(r'failed to parse kubelet flag: ((?:[^"\\]|\\.)*)"', answer.stderr)
    return match.group(1).replace('\\"', '"') if match else crictl.last_words(answer.stderr)


def _list_refused_gates(run: Run, flags: Sequence[str]) -> Iterator[str]:
    """`--feature-gates=A=true` sets A to true: why the new kubelet ends with that."""
    for word, following in zip(flags, [*flags[1:], ""]):
        name, _, text = word.partition("=")
        for gate, value in lacks.parse_gates(text or following) if name == "--feature-gates" else ():
            why = find_refused_gate(gate, value, minor=run.release.minor)
            if why:
                yield f"--feature-gates sets {gate} to {str(value).lower()}: {why}"


def list_flags(run: Run) -> Iterator[tuple[Path, str, list[str]]]:
    """(file, variable, flags) of each variable with the kubelet's flags that is not written by kb or kubeadm; and those in
    kubeadm-flags.env as they will be."""
    env = render_flags_env(run)
    if env:
        flags = [f"--{flag.name}={flag.value}" for flag in kubelet.parse_flags_env(env)]
        yield run.paths.kubelet_flags_env, "KUBELET_KUBEADM_ARGS", flags
    drop_ins = kubelet.find_unit_files(run.host)
    for path in dict.fromkeys((*drop_ins, *(path for path in _EXTRA_FILES if run.host.exists(path)))):
        for variable, text in _ARGS.findall(run.host.read_text(path)):
            if variable not in _PARSED_BY_KB and (flags := _split(text)):
                yield path, variable, flags


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text.strip("\"'"))
    except ValueError:
        return text.split()


def render_flags_env(run: Run) -> str:
    """The text of kubeadm-flags.env for the new kubelet: as it is, without what the new release has elsewhere or not at all. "" if there
    is no such file."""
    path = run.paths.kubelet_flags_env
    if not run.host.exists(path):
        return ""
    text = run.host.read_text(path)
    flags = kubelet.parse_flags_env(text)
    gone = set()
    if not run.release.pod_infra_container_image_flag:
        gone.add("pod-infra-container-image")
    if kubelet.has_instance_config(run.config.cluster, run.release):
        gone |= {
            flag.name
            for flag in flags
            if flag.name == "container-runtime-endpoint" and flag.value == run.config.node.cri_socket
        }
    left = tuple(flag for flag in flags if flag.name not in gone)
    return kubelet.render_flags_env(left) if len(left) < len(flags) else text


def _check_cgroup(run: Run) -> None:
    """Raises HostError (cgroup-v1-refused)."""
    version = parse_version(wanted_version(run))
    if version is None or not kubelet_refuses_cgroup_v1(version) or run.host.exists(_CGROUP2):
        return
    setting: Mapping[str, object] = run.config.kubelet
    if not run.host.is_dir(_CGROUP2.parent) or setting.get("failCgroupV1") is False:
        return
    if any(flag.partition("=")[0] == "--fail-cgroupv1" for _, _, flags in list_flags(run) for flag in flags):
        return
    raise HostError(
        f"the kubelet {wanted_version(run)} does not start on this machine",
        cause="it has cgroup version 1, and failCgroupV1 is not false in the KubeletConfiguration; nothing was stopped",
        remedy="set it: kubectl -n kube-system edit configmap kubelet-config; or boot with systemd.unified_cgroup_hierarchy=1",
        code="cgroup-v1-refused",
    )


PROGRAMS = Act(do=fetch_programs, foretell=foretell_programs, live="node", always=True)
