"""The command etcd recover: the cluster goes on with the one member of etcd that is left, from its own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.commands import launcher
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup.doctor import node_files
    from kubeup.node import crictl, etcd_data
    from kubeup.swap import last_member, proof, recovery, recovery_record, store

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.engine.run import Run
    from kubeup.swap.last_member import LastMember
    from kubeup.swap.recovery_record import Record

COMMAND = "kb etcd recover"
SERVER = "kube-apiserver"


@frozen
class _Case:
    call: Invocation
    run: Run


def recover(call: Invocation) -> int:
    """Recover, continue a recovery that was cut off, or take one back."""
    launch = launcher.Launch(call)
    launch.require_root()
    paths = Paths()
    with launch.locked(paths):
        record = recovery_record.load(launch.local, paths)
        case = _Case(call, _make_run(launch, record))
        if call.flags.get("undo"):
            return _undo(case, record)
        if record is not None and record.status == recovery_record.GOING_BACK:
            call.report.note("a recovery was being taken back when it was cut off: bringing the former data back")
            return _end(case, "would be taken back", record=record) if launch.is_dry else _go_back(case, record)
        if record is not None and record.status == recovery_record.RUNNING:
            call.report.note("a recovery was cut off: continuing it")
            return _end(case, "would be recovered", record=record) if launch.is_dry else _carry_out(case, record)
        return _begin(case)


def _make_run(launch: launcher.Launch, record: Optional[Record]) -> Run:
    """Raises HostError (no-local-etcd)."""
    seen = store.with_missing(launch.local, Paths(), texts=_texts_of(record))
    if not seen.exists(Paths().manifest("etcd")):
        raise HostError(
            "this node does not run the cluster's etcd",
            cause=f"there is no {Paths().manifest('etcd')}",
            remedy=f"on the control plane that is left: {COMMAND}; an external etcd is recovered by its operator",
            code="no-local-etcd",
        )
    patient = node_files.read_patient(seen, Paths())
    return launcher.make_run(launch.local, patient.config, paths=patient.paths, report=launch.call.report)


def _texts_of(record: Optional[Record]) -> dict[str, str]:
    """The manifests that a recovery that was cut off has taken out."""
    if record is None or record.status not in (recovery_record.RUNNING, recovery_record.GOING_BACK):
        return {}
    return {name: text for name, text in (("etcd", record.etcd), (SERVER, record.server)) if text}


# ---- a new one


def _begin(case: _Case) -> int:
    call, run = case.call, case.run
    found = last_member.find_last_member(run)
    call.report.note(f"{found.own.describe()} has the data up to {found.describe()}")
    if not found.others:
        return _end(case, "alone already", found=found)
    known = last_member.find_known(run, found, given=call.flags.get("known") or ())
    for one in known:
        call.report.note(one.describe())
    last_member.check_fence(run, found, lost=call.flags.get("lost") or (), known=known)
    last_member.refuse_newer(found, known, force=bool(call.flags.get("force")))
    record = _check_machine(run, found)
    names = ", ".join(record.lost) or "the others"
    launcher.agree(
        call,
        f"{found.own.name} becomes etcd's only member, with its data up to {found.describe()}. What {names} acknowledged after that is "
        f"lost for good, and they must never start again as they are. The former data are kept in {record.copy}.",
    )
    if call.flags.get("dry-run"):
        return _end(case, "would be recovered", found=found)
    recovery_record.save(run.host, run.paths, record=record)
    return _carry_out(case, record, found=found)


def _check_machine(run: Run, found: LastMember) -> Record:
    """That the data can be copied, and the pods be stopped. Raises HostError: no-cri-client, etcd-copy-exists, etcd-copy-no-room,
    etcd-data-spread, etcd-data-missing."""
    if not run.host.which("crictl"):
        raise HostError(
            "crictl is not in PATH",
            cause="containers are ended and inspected through it; nothing was stopped",
            remedy=f"install it: {crictl.install_command(run.host, 'cri-tools')}",
            code="no-cri-client",
        )
    copy = etcd_data.place_of_kept(run.host, run.paths.etcd_data, kind="recover")
    if run.host.exists(copy):
        raise etcd_data.copy_exists(copy)
    flags = proof.etcd_flags(run)
    wal_dir = Path(flags["wal-dir"]) if flags.get("wal-dir") else None
    data_dir = run.paths.etcd_data
    etcd_data.refuse_empty(run.host, data_dir, others=[one.name for one in found.others], wal_dir=wal_dir)
    etcd_data.check_room(run.host, data_dir, copy_dir=copy, wal_dir=wal_dir)
    server = run.paths.manifest(SERVER)
    return recovery_record.Record(
        member=found.own.name,
        lost=tuple(one.name or one.hex_id for one in found.others),
        data_dir=str(data_dir),
        copy=str(copy),
        etcd=run.host.read_text(run.paths.manifest("etcd")),
        server=run.host.read_text(server) if run.host.exists(server) else "",
    )


def _carry_out(case: _Case, record: Record, *, found: Optional[LastMember] = None) -> int:
    work = recovery.Recovery(case.run, record, _peer_url(case.run))
    work.carry_out()
    return _end(case, "recovered", found=found, record=work.record)


def _peer_url(run: Run) -> str:
    return proof.etcd_flags(run).get("initial-advertise-peer-urls", "").partition(",")[0]


# ---- back


def _undo(case: _Case, record: Optional[Record]) -> int:
    call = case.call
    has_copy = record is not None and case.run.host.is_dir(Path(record.copy))
    if (
        record is None
        or record.status == recovery_record.TAKEN_BACK
        or (record.status == recovery_record.DONE and not has_copy)
    ):
        raise HostError(
            "there is no recovery of etcd to undo on this node",
            cause="none was made, it was taken back already, or its copy of the former data was removed",
            remedy="see the members: kb etcd members",
            code="nothing-to-undo",
        )
    if record.stage == recovery_record.SERVED:
        launcher.agree(
            call,
            f"etcd gets the data of before its recovery: what was written to the cluster since is lost for good ({record.copy}).",
        )
    if call.flags.get("dry-run"):
        return _end(case, "would be taken back", record=record)
    return _go_back(case, record)


def _go_back(case: _Case, record: Record) -> int:
    work = recovery.Recovery(case.run, record, "")
    work.go_back()
    return _end(case, "taken back", record=work.record)


# ---- what is said at the end


def _end(case: _Case, status: str, *, found: Optional[LastMember] = None, record: Optional[Record] = None) -> int:
    call = case.call
    lost = list(record.lost) if record else [one.name or one.hex_id for one in found.others] if found else []
    following = _say_following(lost) if status == "recovered" else []
    value: dict[str, Any] = {
        "status": status,
        "member": record.member if record else found.own.name if found else "",
        "index": found.index if found else None,
        "term": found.term if found else None,
        "lost": lost,
        "copy": record.copy if record else "",
        "next": following,
    }
    if call.output != "text":
        call.print_value(value)
        return 0
    call.print(_SENTENCES[status].format(**value))
    if record and status == "recovered":
        call.print(f"the former data are in {record.copy}; once all is well: rm -r {record.copy}")
    for line in following:
        call.tell(line)
    return 0


_SENTENCES = {
    "recovered": "{member} is etcd's only member, and the API server serves",
    "alone already": "nothing to recover: {member} is etcd's only member",
    "would be recovered": "would stop the API server and etcd, keep a copy of the data, and start etcd with {member} alone; nothing was changed",
    "would be taken back": "would stop the API server and etcd, and bring the data of before back from {copy}; nothing was changed",
    "taken back": "etcd has its former data and manifest again; without its other members it serves nobody",
}


def _say_following(lost: list[str]) -> list[str]:
    return [
        f"before one of the lost machines ({', '.join(lost)}) may run again: kb reset --force there, while it cannot reach this one",
        "each one that stays away: kubectl delete node NAME",
        "for each one that joins again, or a new one in its place: kb token create --print-join-command --control-plane",
    ]
