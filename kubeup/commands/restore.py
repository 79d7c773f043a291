"""The command restore: make this machine the control plane of a backup."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.json_text import parse_json
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.shapes import fit

with lazily:
    from kubeup.airgap import air_gap_fence, oci_layout
    from kubeup.backup import opening, restoring
    from kubeup.cluster import etcd
    from kubeup.config import choose, documents, flags, load_init, problems
    from kubeup.engine import records
    from kubeup.phases import restore as phases
    from kubeup.swap import last_member

if TYPE_CHECKING:
    from kubeup.backup.archive import Backup
    from kubeup.backup.restoring import Place
    from kubeup.cli.program import Invocation
    from kubeup.config.types import NodeConfig
    from kubeup.engine.runner import RunResult
    from kubeup.engine.state import State
    from kubeup.machine.host import Host
    from kubeup.machine.local_host import LocalHost

_SHAPE = {"sha256!": str, "stamp!": str, "name!": str, "address!": str, "done!": bool}


@frozen
class Record:
    """A restore on this machine: of which backup, since when, as which machine."""

    sha256: str
    stamp: str
    name: str
    address: str
    done: bool = False


def restore(call: Invocation) -> int:
    """Restore a backup, or continue a restore that was cut off."""
    if call.flags.get("list"):
        return launcher.list_phases(call)
    launch = Launch(call)
    launch.require_root()
    target = _find_file(call)
    with opening.open_backup(launch.local, target, identity=str(call.flags.get("identity") or "")) as backup:
        restoring.check_backup(backup, what=target)
        restoring.check_version(backup.about, str(call.flags.get("kubernetes-version") or ""))
        result = _restore(launch, backup)
    launch.print_result(result)
    return 0


def _restore(launch: Launch, backup: Backup) -> RunResult:
    digest = hashlib.sha256(repr((backup.about, backup.entries)).encode()).hexdigest()
    last = _load_record(launch.local)
    record = last if last is not None and not last.done and last.sha256 == digest else None
    place = restoring.Place(record.name, record.address) if record else _find_place(launch, backup)
    config = _load_config(launch, backup, place=place)
    place = restoring.Place(config.node.name, config.local_api_endpoint.advertise_address)
    _refuse_other_machine(backup, place)
    if record is None:
        _refuse_unfinished(launch, last)
        _refuse_living(launch.local, is_forced=bool(launch.call.flags.get("force")))
        _refuse_reachable(launch, backup, place=place)
        _refuse_without_kms(launch, backup, place=place)
    else:
        launch.call.report.note(f"a restore of this backup was cut off: continuing it as {record.name}")
    launch.tell(config)
    paths = launcher.paths_of(config, launch.call.flags)
    with launch.locked(paths) as node_state:
        if record is None:
            record = Record(digest, f"{launch.local.now():%Y%m%dT%H%M%S}", place.name, place.address)
            _begin_anew(launch, node_state, paths=paths)
        if not launch.is_dry:
            _save_record(launch.local, record)
        node_state.node, node_state.cluster = config.node.name, config.cluster.cluster_name
        node_state.cri_socket = config.node.cri_socket
        base = launcher.make_run(launch.target, config, paths=paths, report=launch.call.report)
        ctx = phases.RestoreRun(**base.values(), backup=backup, place=place, stamp=record.stamp)
        try:
            result = launch.work(ctx, node_state, skip=_list_skipped(launch, config))
        except BaseException:
            if not launch.is_dry and not phases.has_begun(ctx):  # nothing is to be continued
                launch.local.remove(_record_file())
            raise
        if not launch.is_dry:
            _forget_former(launch, node_state, paths=paths)
            _save_record(launch.local, dataclasses.replace(record, done=True))
    return result


def _list_skipped(launch: Launch, config: NodeConfig) -> list[str]:
    """The phases that are named, and the addons that the cluster does without; of these a restore touches kube-proxy alone."""
    given = launch.call.flags.get("skip-phases") or ()
    own = {phase.name for phase in launch.call.command.phases}
    return [name for name in config.skip_phases if name in given or name in own]


def _find_file(call: Invocation) -> str:
    if len(call.words) != 1:
        raise UsageError(
            "kb restore takes one backup",
            cause=f"{len(call.words)} were named",
            remedy="name its file, or - for standard input: kb restore FILE",
            code="usage",
        )
    return call.words[0]


# ---- as which machine


def _find_place(launch: Launch, backup: Backup) -> Place:
    """The name and the address: those that are given; else those of the backup where this machine has them."""
    call, local, about = launch.call, launch.local, backup.about
    cards = choose.read_interfaces(local) or ()
    own = {str(address).partition("/")[0] for card in cards for address in card.addresses}
    address = str(call.flags.get("apiserver-advertise-address") or (about.address if about.address in own else ""))
    return restoring.Place(str(call.flags.get("node-name") or choose.read_node_name(local)), address)


def _load_config(launch: Launch, backup: Backup, *, place: Place) -> NodeConfig:
    """The configuration with which this machine becomes the control plane of the backup. Raises UsageError (invalid-config)."""
    call = launch.call
    given = {**call.flags, **call.program.wishes, "allow-unknown-fields": True}  # the cluster ran with them
    found = problems.Problems.for_flags(given)
    text = restoring.render_config(backup, place=place)
    documents_given = documents.parse_documents(text.encode(), "the backup", problems=found)
    trees = load_init.take_kinds(documents_given, load_init.INIT_KINDS, problems=found)
    flags.apply_flags(given, trees, problems=found)
    config = load_init.build_init_config(
        launch.local, trees, problems=found, looks="machine", read_bundle_version=oci_layout.read_kubernetes_version
    )
    found.raise_if_any()
    if config.kb.air_gapped:
        launch.local.fence = air_gap_fence.plan_fence(config)
    return config


# ---- what is refused


def _refuse_other_machine(backup: Backup, place: Place) -> None:
    """Raises HostError (external-ca-other-machine)."""
    about = backup.about
    if restoring.has_external_ca(backup) and place != restoring.former_place(about):
        raise HostError(
            f"the backup of {about.node} cannot be restored on {place.name} ({place.address})",
            cause="an authority of its cluster signs elsewhere, so kb cannot make certificates for another name or address",
            remedy=f"restore it on a machine called {about.node} with the address {about.address}",
            code="external-ca-other-machine",
        )


def _refuse_unfinished(launch: Launch, last: Optional[Record]) -> None:
    """Raises HostError (restore-unfinished)."""
    if last is not None and not last.done and not launch.call.flags.get("force"):
        raise HostError(
            "a restore of another backup was cut off on this machine",
            cause=f"it began at {last.stamp}, as {last.name}",
            remedy="continue it with that backup; or begin anew with this one: kb restore FILE --force",
            code="restore-unfinished",
        )


def _refuse_living(local: LocalHost, *, is_forced: bool) -> None:
    """Whether this machine is a node of a cluster already."""
    paths = Paths()
    signs = [paths.manifest("kube-apiserver"), paths.manifest("etcd"), paths.kubernetes / "kubelet.conf"]
    found = [path for path in signs if local.exists(path)]
    if found and not is_forced:
        raise HostError(
            "this machine belongs to a cluster",
            cause=f"{', '.join(map(str, found))} say so; a restore takes it back to the time of the backup, with all that is in it",
            remedy="to replace it by the backup, with what is there moved aside: kb restore FILE --force; to leave it: kb reset",
            code="cluster-lives",
        )


def _refuse_reachable(launch: Launch, backup: Backup, *, place: Place) -> None:
    """The other members of the backup's etcd: while one runs, the restored cluster would be a second one beside it."""
    members = [
        etcd.Member(str(int(one.id or "0", 16)), one.name, one.peer_urls, one.client_urls, one.is_learner)
        for one in backup.about.members
        if one.name != place.name and place.address not in {urlsplit(url).hostname for url in one.peer_urls}
    ]
    listening = last_member.find_listeners(launch.local, members)
    if not listening:
        return
    member, where = listening[0]
    is_part = place.name in {one.name for one in backup.about.members} or launch.local.exists(Paths().manifest("etcd"))
    if is_part or not launch.call.flags.get("force"):
        raise ClusterError(
            f"the cluster of the backup lives: {member.describe()}",
            cause=f"{where} takes connections from here; the restored cluster would be a second one, with the same authorities and names",
            remedy="take that machine out first: kb reset --force there"
            + ("" if is_part else "; to make a second cluster beside it all the same: --force"),
            code="etcd-member-reachable",
        )
    launch.call.report.warn(f"{member.describe()} runs: from now on there are two clusters with the same authorities")


def _refuse_without_kms(launch: Launch, backup: Backup, *, place: Place) -> None:
    """Raises HostError (kms-plugin-missing). One that runs as a static pod of the same machine comes with the backup."""
    is_same = place == restoring.former_place(backup.about)
    if launch.call.flags.get("force") or (is_same and restoring.list_other_pods(backup)):
        return
    paths = [Path(one[len("unix://") :]) for one in restoring.find_kms(backup) if one.startswith("unix:///")]
    missing = [path for path in paths if not path.name.startswith("@") and not launch.local.exists(path)]
    if missing:
        raise HostError(
            f"the KMS plugin of the backup does not run here: {', '.join(map(str, missing))}",
            cause="it has the key of the cluster's Secrets, and no API server becomes ready without it; nothing was changed",
            remedy="start it on this machine, with its key, so that its socket is there; to go on without: kb restore FILE --force",
            code="kms-plugin-missing",
        )


# ---- the record


def _record_file() -> Path:
    return Paths().state_dir / "restore" / "restore.json"


def _load_record(local: Host) -> Optional[Record]:
    """The last restore on this machine; None if there was none, or its record cannot be read."""
    if not local.exists(_record_file()):
        return None
    try:
        return Record(**fit(parse_json(local.read_text(_record_file()), "it"), _SHAPE, what="it"))
    except (ValueError, TypeError):
        return None


def _save_record(local: Host, record: Record) -> None:
    local.make_dir(Paths().state_dir, mode=0o700)
    local.make_dir(_record_file().parent, mode=0o700)
    local.write_file(_record_file(), json.dumps(dataclasses.asdict(record), indent=1) + "\n", mode=0o600)


def _begin_anew(launch: Launch, node_state: State, *, paths: Paths) -> None:
    """What an earlier restore has done has to be done again, and data that one has made are nobody's. Before the record of this one is
    there: whoever continues it by that record takes what is done for done."""
    if launch.is_dry:
        return
    former = [one for name, one in node_state.phases.items() if name.startswith("restore/") and one.status == "done"]
    for entry in former:
        entry.status = "failed"
    if former:
        node_state.save()
    for place in phases.list_coming(launch.local, paths):
        launch.local.remove_tree(place)


def _forget_former(launch: Launch, node_state: State, *, paths: Paths) -> None:
    """What was recorded of this machine's former cluster is no measure any more: its files are moved aside."""
    kept = records.load_records(launch.local, paths.records)
    former = [step for step in kept.steps if not step.startswith("restore/")]
    for step in former:
        del kept.steps[step]
    if former:
        kept.save()
    for name, entry in node_state.phases.items():
        if not name.startswith("restore/"):
            entry.inputs.pop("plan", None)
    node_state.save()
