"""What this node uses now and the next version lacks: flags, feature gates and settings with which the new programs would not run.

The new program itself is asked where its image or file is here; what it says counts. Otherwise the tables of releases.py and
config/kubelet_flags.py speak, which know what has been removed and not every spelling. Only looks. Each objection keeps this node from
being upgraded, and --force does not help: the program would end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from kubeup import releases
from kubeup.config import kubelet_flags
from kubeup.diagnosis.checks.facts import read_or_empty
from kubeup.diagnosis.checks.kubelet import KUBELET_ENV_FILES, find_unparsed
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import image_program, image_pulls, kubelet, program_trials, tried_pod
from kubeup.paths import Paths
from kubeup.releases import Release, Version
from kubeup.trouble import Trouble
from kubeup.upgrade import v2_content
from kubeup.upgrade.objection import MANDATORY, SAID, Objection
from kubeup.upgrade.survey import tag_of
from kubeup.yaml_files import YAMLError, containers_of_pod, load_yaml

OURS = frozenset({"pod-infra-container-image", "container-runtime-endpoint"})
"""Flags in kubeadm-flags.env that kubeadm and kb write for a version and leave out for the next."""


@frozen
class Pod:
    """A static pod as it is to be. now: its manifest on disk; wanted: for the new version, with what others changed."""

    name: str
    now: Mapping[str, Any]
    wanted: Mapping[str, Any]


@frozen
class Look:
    """The node that is looked at. socket: the runtime's. kubelet: the new program, if it is on this machine."""

    host: Host
    paths: Paths
    node: str
    target: Version
    release: Release
    socket: str
    kubelet: Optional[Path] = None


# ---- static pods


def judge_pods(look: Look, pods: Iterable[Pod]) -> Iterator[Objection]:
    """What the new etcd, API server, controller-manager and scheduler do not accept of their command lines."""
    listed = list(pods)
    here = _list_images(look)
    with ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(lambda pod: _try_pod(look, pod, here=here), listed))
    for pod, found in zip(listed, tried):
        yield from _look_up(look, pod) if found is None else found
    for pod in (one for one in listed if one.name == "etcd"):
        data_dir = look.paths.etcd_data
        error = v2_content.find(look.host, look.socket, now=pod.now, wanted=pod.wanted, data_dir=data_dir)
        if error is not None:
            yield Objection(error.code, Trouble(error.what, error.cause, error.remedy), MANDATORY, look.node)


def _list_images(look: Look) -> frozenset[str]:
    try:
        return frozenset(image_pulls.list_images(look.host, look.socket))
    except HostError:  # without a runtime that answers, the tables speak
        return frozenset()


def _try_pod(look: Look, pod: Pod, *, here: frozenset[str]) -> Optional[list[Objection]]:
    """Have the new program read the flags; None if it is not here, or could not be asked."""
    try:
        tried = tried_pod.read_pod(pod.wanted)
    except ValueError as error:
        return [_refuse(look, "manifest-invalid", what=f"the manifest of {pod.name} is not a pod", cause=str(error))]
    image = str(tried.container["image"])
    if image_program.runtime_name(image) not in here or not tried.is_known:
        return None
    with image_program.mount_image(look.host, look.socket, image=image) as mounted:
        trials = list(program_trials.try_command(look.host, mounted, pod=tried))
    if not mounted.why_not and any(trial.not_tried for trial in trials) and not any(trial.trouble for trial in trials):
        return None
    if mounted.why_not:
        return None
    return [
        Objection("flag-refused", trial.trouble, MANDATORY, look.node) for trial in trials if trial.trouble is not None
    ]


def _look_up(look: Look, pod: Pod) -> Iterator[Objection]:
    try:
        tried = tried_pod.read_pod(pod.wanted)
    except ValueError:
        return
    if pod.name == "etcd":
        yield from _look_up_etcd(look, pod, flags=[name for name, _ in tried.flags])
        return
    for text in (value for name, value in tried.flags if name == "feature-gates"):
        where = f"--feature-gates of {pod.name}"
        yield from _judge_gates(look, parse_gates(text), where=where, remedy=f"remove it from {where}")


def _look_up_etcd(look: Look, pod: Pod, *, flags: Iterable[str]) -> Iterator[Objection]:
    before, after = (releases.parse_version(tag_of(_image_of(one))) for one in (pod.now, pod.wanted))
    if before is None or after is None:
        return
    gone = releases.etcd_flags_gone(before, after)
    for flag in flags:
        if flag in gone or any(one.endswith("-") and flag.startswith(one) for one in gone):
            cause = f"etcd {after.major}.{after.minor} has no such flag"
            yield _refuse(look, "flag-gone", what=f"etcd is started with --{flag}", cause=cause)


def _image_of(pod: Mapping[str, Any]) -> str:
    return next((str(one.get("image") or "") for one in containers_of_pod(pod)), "")


def _refuse(look: Look, name: str, *, what: str, cause: str) -> Objection:
    trouble = Trouble(what, cause, "take it out of the manifest, and of extraArgs in kubeadm-config")
    return Objection(name, trouble, MANDATORY, look.node)


def parse_gates(text: str) -> Iterator[tuple[str, bool]]:
    """The value of --feature-gates: `A=true,B=false`."""
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        if name:
            yield name, value.lower() in ("true", "t", "1")


def _judge_gates(
    look: Look, gates: Iterable[tuple[str, bool]], *, where: str, remedy: str, node: Optional[str] = None
) -> Iterator[Objection]:
    for name, value in gates:
        why = releases.find_refused_gate(name, value, minor=look.target.minor)
        if why:
            what = f"{where} sets {name} to {str(value).lower()}"
            yield Objection("gate-refused", Trouble(what, why, remedy), MANDATORY, look.node if node is None else node)


# ---- the kubelet


def judge_kubelet(look: Look) -> Iterator[Objection]:
    """What the new kubelet does not accept of this node's flags and configuration."""
    for source, flags in _kubelet_flags(look):
        yield from _judge_flags(look, flags, source=source)
        for text in (value for name, value in flags if name == "feature-gates"):
            yield from _judge_gates(look, parse_gates(text), where=source, remedy=f"remove it from {source}")
    config = _read_yaml(look.host, look.paths.kubelet_config)
    path = str(look.paths.kubelet_config)
    yield from judge_kubelet_config(look, config, where=path, remedy=_EDIT_KUBELET_CONFIG)
    if (
        look.release.refuses_cgroup_v1
        and not look.host.exists(Path("/sys/fs/cgroup/cgroup.controllers"))
        and config.get("failCgroupV1") is not False
        and look.host.exists(Path("/sys/fs/cgroup"))
    ):
        what, cause = f"{look.node} has cgroup v1", f"a kubelet {look.release.name} does not start there by itself"
        yield Objection(
            "cgroup-v1",
            Trouble(what, cause, f"boot it with cgroup v2, or set failCgroupV1: false; {_EDIT_KUBELET_CONFIG}"),
            MANDATORY,
            look.node,
        )


def _judge_flags(look: Look, flags: list[tuple[str, str]], *, source: str) -> Iterator[Objection]:
    """The program's --version has it read all flags; but the names of gates only when it starts."""
    if look.kubelet is not None:
        for name, value, is_known in find_unparsed(look.host, flags, program=str(look.kubelet)):
            what = f"does not take --{name}={value}" if is_known else f"has no flag --{name}"
            yield _object_to_flag(look, name, source=source, why=f"the kubelet {look.target} {what}")
        return
    for name, _ in flags:
        gone = kubelet_flags.find_gone(name)
        if gone is not None and gone.since <= look.target.minor:
            yield _object_to_flag(look, name, source=source, why=gone.refusal(name).message)


_EDIT_KUBELET_CONFIG = "kubectl -n kube-system edit configmap kubelet-config"


def judge_kubelet_config(
    look: Look, config: Mapping[str, Any], *, where: str, remedy: str, node: Optional[str] = None
) -> Iterator[Objection]:
    """What the new kubelet does not accept of a KubeletConfiguration. node: "" if it is the one of all nodes."""
    gates = config.get("featureGates")
    listed = [(str(name), value is True) for name, value in gates.items()] if isinstance(gates, dict) else []
    yield from _judge_gates(look, listed, where=f"featureGates in {where}", remedy=remedy, node=node)


def _object_to_flag(look: Look, name: str, *, source: str, why: str) -> Objection:
    gone = kubelet_flags.find_gone(name)
    remedy = gone.remedy if gone else "leave it out"
    return Objection(
        "kubelet-flag-refused", Trouble(f"{source} gives --{name}", why, f"{remedy} ({source})"), MANDATORY, look.node
    )


def _kubelet_flags(look: Look) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    path = look.paths.kubelet_flags_env
    args = kubelet.parse_flags_env(read_or_empty(look.host, str(path)))
    yield str(path), [(arg.name, arg.value) for arg in args if arg.name not in OURS]
    for place in KUBELET_ENV_FILES:
        text = read_or_empty(look.host, str(place))
        yield str(place), [(arg.name, arg.value) for arg in kubelet.parse_flags_env(text, "KUBELET_EXTRA_ARGS")]


def _read_yaml(host: Host, path: Path) -> dict[str, Any]:
    try:
        found = load_yaml(read_or_empty(host, str(path)) or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def say_unseen(nodes: Iterable[str]) -> Iterator[Objection]:
    """Other nodes' flags are in files of theirs, which only they can read."""
    names = list(nodes)
    if names:
        trouble = Trouble(
            f"the kubelet's flags of {', '.join(names)} were not looked at",
            "they are in files of these machines",
            "each looks at its own before it changes anything",
        )
        yield Objection("flags-not-seen", trouble, SAID)
