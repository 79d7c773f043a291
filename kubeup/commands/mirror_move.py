"""The commands mirror move, use and stop: another control plane serves the cluster's mirror, and each node is pointed to it."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.addresses import host_of
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.config import types
from kubeup.engine.step import Phase
from kubeup.errors import HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.paths import Paths
from kubeup.trust import Anchors

with lazily:
    from kubeup.airgap import containerd_hosts
    from kubeup.config import choose
    from kubeup.doctor import node_files
    from kubeup.phases import find_mirror, local_bundle, mirror_move, runtime_registries, serve_mirror

if TYPE_CHECKING:
    from kubeup.airgap.containerd_hosts import Mirror
    from kubeup.cli.program import Invocation
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.run import Run

_SHOWN = 5


def move(call: Invocation) -> int:
    """Serve the cluster's mirror on this control plane: copy its bundles, or take the given ones, and point this node to it."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    patient = node_files.read_patient(launch.local, Paths())
    if not patient.is_control_plane:
        raise launcher.no_control_plane(patient.paths)
    with launch.locked(patient.paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=patient.paths)
        ctx = _make_move(launch, patient)
        with contextlib.ExitStack() as stack:
            if not launch.is_dry:
                launch.local.make_dir(local_bundle.MIRROR_FOLDER, mode=0o755)
                stack.enter_context(local_bundle.hold_folder(launch.local, "kb mirror move"))
            result = launch.work(ctx, node_state)
    left = [] if launch.is_dry else mirror_move.list_remaining(ctx)
    launch.print_result(result, more={"remaining": left})
    if call.output == "text" and left:
        call.tell("\n".join(["still to be done:", *(f"  {one}" for one in left)]))
    return 0


def _make_move(launch: Launch, patient: Patient) -> mirror_move.MirrorMoveRun:
    base = _make_run(launch, patient)
    own = find_mirror.mirror_url(base.config)
    former = _find_former(base)
    files = tuple(Path(word).absolute() for word in launch.call.words)
    mirror: Optional[Mirror] = None
    offered: tuple[mirror_move.Bundle, ...] = ()
    if not files and former and former != own:
        mirror = _open_mirror(base, former)
        offered = mirror_move.list_bundles(launch.local, mirror)
    names = [*(path.name for path in files), *(one.name for one in offered), *_list_here(launch)]
    if not names:
        raise UsageError(
            "kb mirror move",
            cause="this node has asked no mirror until now, and no bundle is named",
            remedy="name what it is to serve: kb mirror move FILE...",
            code="usage",
        )
    config = dataclasses.replace(base.config, kb=_with(base, bundle=str(local_bundle.MIRROR_FOLDER / names[0])))
    return mirror_move.MirrorMoveRun(
        **{**base.values(), "config": config},
        former=former if former != own else "",
        files=files,
        offered=offered,
        former_mirror=mirror,
    )


def _list_here(launch: Launch) -> list[str]:
    folder = local_bundle.MIRROR_FOLDER
    names = launch.local.list_dir(folder) if launch.local.is_dir(folder) else []
    return sorted(name for name in names if name.endswith(".tar") and not name.startswith("."))


def _make_run(launch: Launch, patient: Patient) -> Run:
    base = launcher.make_run(launch.target, patient.config, paths=patient.paths, report=launch.call.report)
    if not patient.is_control_plane:
        base = dataclasses.replace(base, caller=launcher.kubelet_caller(launch.target, patient.paths))
    return base


def _with(run: Run, **fields: Any) -> types.KbConfiguration:
    """kb's settings for this node's registries: as they are, but for the mirror."""
    return dataclasses.replace(run.config.kb, air_gapped=runtime_registries.is_closed(run), **fields)


def _find_former(run: Run) -> str:
    """The URL of the mirror that this node asks, "" for none."""
    words = runtime_registries.say_mirror(run).split()
    return words[1] if words else ""


def _open_mirror(run: Run, url: str) -> Mirror:
    """A mirror that this node trusts: by the CA that its runtime has for it, or by the cluster's. Raises HostError (mirror-unreachable,
    mirror-not-trusted)."""
    files = (containerd_hosts.CA_FILE, run.paths.pki / "ca.crt")
    ca = next((run.host.read_text(path) for path in files if run.host.exists(path)), "")
    try:
        return containerd_hosts.find_mirror(run.host, url, cluster_ca=Anchors.given(ca) if ca else None)
    except HostError as error:
        if error.code != "mirror-unreachable":
            raise
        raise HostError(
            error.what,
            cause=error.cause,
            remedy="start it; if it is gone, name the bundles: kb mirror move FILE...",
            code=error.code,
        ) from error


# ---- use


def use(call: Invocation) -> int:
    """Point this node's runtime to another mirror, once that has whatever the former one has."""
    launch = Launch(call)
    launch.require_root()
    if len(call.words) != 1 or not call.words[0].startswith(("https://", "http://")):
        raise UsageError(
            f"kb mirror use {' '.join(call.words)}".rstrip(),
            cause="it takes the URL of one mirror",
            remedy="kb mirror use https://ADDRESS:5000, as kb mirror move has printed it",
            code="usage",
        )
    patient = node_files.read_patient(launch.local, Paths())
    url = call.words[0].rstrip("/")
    with launch.locked(patient.paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=patient.paths)
        base = _make_run(launch, patient)
        former = _find_former(base)
        mirror = types.Mirror(url, str(call.flags.get("mirror-ca-hash") or ""))
        base = dataclasses.replace(base, config=dataclasses.replace(base.config, kb=_with(base, mirror=mirror)))
        if former and former != url and not call.flags.get("force"):
            _require_whole(launch, base, former=former)
        result = launch.work(base, node_state)
    launch.print_result(result)
    return 0


def _require_whole(launch: Launch, run: Run, *, former: str) -> None:
    """Raises HostError (mirror-lacks) if the new mirror lacks an image of the former one. One that does not answer any more hinders nothing."""
    new = find_mirror.mirror_of(run)
    try:
        missing = mirror_move.find_missing(launch.local, _open_mirror(run, former), new)
    except (HostError, Unreachable) as error:
        launch.call.report.note(f"what {former} has is not known: {error}")
        return
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise HostError(
            f"the mirror {new.url} lacks images that {former} has",
            cause=f"{', '.join(missing[:_SHOWN])}{more}; nothing was changed",
            remedy=f"add their bundle where {new.url} runs: kb mirror add FILE; or change to it all the same: kb mirror use {new.url} --force",
            code="mirror-lacks",
        )


# ---- stop


def stop(call: Invocation) -> int:
    """Take the mirror away from this node, once the node itself asks another one."""
    launch = Launch(call)
    launch.require_root()
    patient = node_files.read_patient(launch.local, Paths())
    with launch.locked(patient.paths) as node_state:
        launcher.require_same_node(node_state, patient.config, paths=patient.paths)
        base = _make_run(launch, patient)
        if not launch.local.exists(base.paths.systemd / serve_mirror.MIRROR_UNIT):
            call.report.note("this node serves no mirror")
        _require_other(base)
        if not launch.is_dry:
            launcher.agree(call, "nodes that still ask this mirror will not get images that they do not have yet.")
        step = Phase(
            "no-mirror",
            "Remove the mirror's unit, bundles and certificate",
            plan=mirror_move.plan_no_mirror,
            live="node",
        )
        # by its name, so that it is done again whatever an earlier run recorded
        result = launch.work(base, node_state, phases=(step,), only=step.name, workflow="mirror-stop")
    launch.print_result(result)
    return 0


def _require_other(run: Run) -> None:
    """Raises HostError (mirror-in-use) if this node asks its own mirror."""
    url = _find_former(run)
    cards = choose.read_interfaces(run.host) or ()
    own = {str(address).partition("/")[0] for card in cards for address in card.addresses}
    own.add(run.config.local_api_endpoint.advertise_address)
    if url and host_of(url.partition("://")[2].partition("/")[0]) in own:
        raise HostError(
            "this node itself asks its mirror",
            cause=f"its runtime is pointed to {url}; nothing was changed",
            remedy="on another control plane: kb mirror move; then here: kb mirror use https://ADDRESS:5000",
            code="mirror-in-use",
        )
