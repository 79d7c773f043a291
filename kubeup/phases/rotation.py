"""The phases of `kb certs rotate-sa` and `kb certs rotate-ca`: a private key that the control planes share is replaced, in stages.

Each control plane runs the same line. In a stage it writes its files, has what reads them read them, proves that, and acknowledges the stage; when
every control plane has, the stage is proven at every API server, and the next one begins. How far it is stands in the cluster
(cluster/rotation.py), and no node keeps a record: what is done is what is found. What is rotated is a Kind. See docs/adr/0027-rotation.md.
kubeadm has no counterpart: its documentation describes the cluster's authority, by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Optional, Protocol

from kubeup.cluster import account_tokens, request_header, rotation
from kubeup.cluster.account_tokens import Holder
from kubeup.cluster.api import ApiRefused
from kubeup.cluster.rotation import Rotation
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen, frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import say_round, wait_for, watch
from kubeup.node.rotated_pairs import DROP, TRUST, USE, Pair
from kubeup.phases import static_pods_swap
from kubeup.phases.static_pods_swap import SwapRun
from kubeup.secret import Secret
from kubeup.trouble import Trouble, advise

with lazily:
    from kubeup import yaml_files
    from kubeup.cluster import health, objects
    from kubeup.node import pki, rotated_pairs

ROLLED_S = 600.0
"""How long restarted workloads may take until none of their former pods is left."""
PUBLISHED_S = 90.0
SETTLED_S = 3.0
"""For how long the former one has to stay away from what is published: an API server that still had it would add it again at once."""
MOST_NAMED = 20
"""How many of those who hold something of the former one are named."""
SHARED = ("", "ca", "front-proxy-ca", "etcd-ca")
"""Whose private keys the control planes share, by the authority; "" for the key that signs tokens."""


@frozen
class Work:
    """A stage of a rotation, with both pairs. is_changed: whether this run has written files of this node."""

    one: Rotation
    former: Pair
    following: Pair
    is_changed: bool = False

    @property
    def stage(self) -> str:
        return self.one.stage


class Kind:
    """What is rotated. word: in the cluster's record; title: in words; authority: its name in the table of certificates."""

    word = ""
    title = ""
    command = ""
    authority = ""
    stops: tuple[str, ...] = ()
    """The static pods that are restarted in some stage."""
    unused_when = ""
    """From when on nobody needs the former one, in words."""

    @property
    def takes_workers(self) -> bool:
        """Whether workers take part, whose kubelets trust it too."""
        return self.word in rotation.WITH_WORKERS

    def check(self, ctx: RotationRun) -> None:
        """Whether this control plane can take part. Raises KbError."""

    def prepare(self, ctx: RotationRun, work: Work) -> None:
        """What has to be so on this node before the files of the pair may say what the stage wants. Raises KbError."""

    def take_up(self, ctx: RotationRun, work: Work) -> None:
        """Have what reads the files of the pair read them, and prove it of this node. Raises KbError."""
        raise NotImplementedError

    def settle(self, ctx: RotationRun, work: Work) -> None:
        """What follows in the cluster once every node has acknowledged the stage, before that is proven. Raises KbError."""

    def prove(self, ctx: RotationRun, work: Work) -> Sequence[Trouble]:
        """What is not as the stage wants it, over all nodes."""
        raise NotImplementedError

    def check_unused(self, ctx: RotationRun, work: Work) -> None:
        """Whether anybody needs the former one still. Raises ClusterError (rotation-still-used)."""

    def end(self, ctx: RotationRun, work: Work) -> None:
        """What is left to do once no control plane accepts the former one. Raises KbError."""


@frozen_by_name
class RotationRun(SwapRun):
    """continues: whether only one that is under way is gone on with. finishes: whether the last stage may begin. turns: whether it is taken back. restarts: whether workloads that may need the former one
    are restarted. force: whether the last stage begins whoever needs it."""

    kind: Kind
    continues: bool = False
    finishes: bool = False
    turns: bool = False
    restarts: bool = False
    force: bool = False

    def take(self, stage: str) -> Outputs:
        """This control plane's part in a stage, if that is the present one. Raises KbError."""
        return _take_stage(self, stage)


# ---- preflight


def check_rotation(ctx: RotationRun) -> Outputs:
    """Say what comes, and refuse what would not end well. Raises HostError, ClusterError, UsageError (not-confirmed)."""
    ctx.kind.check(ctx)
    static_pods_swap.refuse_tried_elsewhere(ctx)
    one = rotation.read(ctx.api)
    _refuse_words(ctx, one)
    if one is None and ctx.continues:
        return None
    _seal_key(ctx)
    if one is None:
        rotated_pairs.read_pair(ctx.host, _place(ctx))
        _refuse_unwell(ctx)
    done = one is not None and rotation.read_marks(ctx.api, one.what).get(ctx.config.node.name) == one.mark
    if ctx.kind.stops and not (done and one is not None and one.stage == USE and not ctx.finishes):
        static_pods_swap.check_restart(ctx, ctx.kind.stops)
        _ask_for_gap(ctx)
    return None


def _refuse_words(ctx: RotationRun, one: Optional[Rotation]) -> None:
    """Raises ClusterError: rotation-elsewhere, no-rotation, rotation-too-late."""
    command = ctx.kind.command
    if one is None and (ctx.turns or ctx.finishes):
        raise ClusterError(
            f"no rotation of {ctx.kind.title} is under way",
            cause=f"there is no ConfigMap kube-system/{rotation.NAME}: none was begun, or the last one has ended",
            remedy=f"begin one: {command}",
            code="no-rotation",
        )
    if one is not None and one.what != ctx.kind.word:
        raise ClusterError(
            "another rotation is under way in this cluster",
            cause=f"{one.command} has come to its stage {one.stage!r}, and the keys of one seal those of the other",
            remedy=f"go on with it on every control plane: {one.command} --continue",
            code="rotation-elsewhere",
        )
    if one is not None and ctx.turns and one.stage == DROP and not one.is_undo:
        raise ClusterError(
            f"the rotation of {ctx.kind.title} cannot be taken back any more",
            cause="its last stage has begun: the former one is accepted no more, or soon not",
            remedy=f"end it on every control plane: {command} --continue",
            code="rotation-too-late",
        )


def _refuse_unwell(ctx: RotationRun) -> None:
    """Raises ClusterError (cluster-not-well): every API server has to follow."""
    for part in health.probe_api_servers(ctx.api):
        if part.trouble is not None:
            raise ClusterError(
                part.trouble.what,
                cause=f"{part.trouble.cause}; it would not learn of the new one, and nothing was begun",
                remedy=part.trouble.remedy,
                code="cluster-not-well",
            )


def _ask_for_gap(ctx: RotationRun) -> None:
    """Raises UsageError (not-confirmed)."""
    if "kube-apiserver" in ctx.kind.stops and not static_pods_swap.list_other_servers(ctx):
        gap_s = static_pods_swap.ETCD_GAP_S if "etcd" in ctx.kind.stops else static_pods_swap.API_GAP_S
        ctx.agree(
            f"the API is away for about {gap_s} s in each stage, since no other API server serves. Pods keep running."
        )


def _place(ctx: RotationRun) -> rotated_pairs.Place:
    return rotated_pairs.place_of(ctx.paths, ctx.kind.authority)


def _seal_key(ctx: RotationRun) -> Secret:
    """Raises HostError: rotation-not-sealed, key-unreadable."""
    places = [rotated_pairs.place_of(ctx.paths, name) for name in SHARED if name != ctx.kind.authority]
    keys = [pki.read_key(ctx.host, one.key) for one in places if ctx.host.exists(one.key)]
    if keys:
        return rotation.derive_seal(keys)
    raise HostError(
        "the new private key could not be handed to the other control planes",
        cause=f"it is sealed with the other private keys that they share, and this one has none of {', '.join(str(one.key) for one in places)}",
        remedy=f"put one of them on every control plane, and then: {ctx.kind.command}",
        code="rotation-not-sealed",
    )


# ---- begin


def begin(ctx: RotationRun) -> Outputs:
    """Make the following pair, or turn the rotation round. Raises ClusterError, HostError."""
    one = rotation.read(ctx.api)
    if one is None and ctx.continues:
        rotation.forget_marks(ctx.api, rotation.read_marks(ctx.api, ctx.kind.word))
        ctx.report.note(f"no rotation of {ctx.kind.title} is under way, and none is begun")
    elif one is None:
        present = rotated_pairs.read_pair(ctx.host, _place(ctx))
        made = rotated_pairs.make_pair(ctx.host, ctx.config.cluster, authority=ctx.kind.authority)
        pairs = rotation.seal(ctx.api, (present, made), key=_seal_key(ctx))
        _withdraw_shared(ctx)
        following = next(pair for pair in pairs if pair.id != present.id)
        certs = (present.cert_pem, following.cert_pem) if ctx.kind.takes_workers else ()
        one = rotation.begin(ctx.api, Rotation(ctx.kind.word, TRUST, present.id, following.id, certs=certs))
        ctx.report.note(f"the new one is {one.following[:16]}, the former one {one.former[:16]}")
    elif ctx.turns and not one.is_undo:
        one = rotation.turn_round(ctx.api, one)
        ctx.report.note(f"going back to {one.following[:16]}")
    return None


def _withdraw_shared(ctx: RotationRun) -> None:
    if rotation.withdraw_shared(ctx.api):
        again = "kb init phase upload-certs --upload-certs"
        ctx.report.note(
            f"the certificates that were uploaded for joining control planes are removed; for others: {again}"
        )


# ---- the stages


class Taker(Protocol):
    """The run of a node that takes part: of a control plane, or of a worker (rotate_worker.py)."""

    def take(self, stage: str) -> Outputs: ...


def trust(ctx: Taker) -> Outputs:
    """Raises KbError."""
    return ctx.take(TRUST)


def use(ctx: Taker) -> Outputs:
    """Raises KbError."""
    return ctx.take(USE)


def drop(ctx: Taker) -> Outputs:
    """Raises KbError."""
    return ctx.take(DROP)


def _take_stage(ctx: RotationRun, stage: str) -> Outputs:
    one = rotation.read(ctx.api)
    if one is None or one.stage != stage:
        return None
    own, marks = ctx.config.node.name, rotation.read_marks(ctx.api, one.what)
    if stage == DROP and not rotation.find_left(one, marks) and not rotation.is_sealed(ctx.api):
        rotation.end(ctx.api, marks, what=one.what)  # a run was cut off at its very end
        return Results(remaining=[])
    former, following = rotation.unseal(ctx.api, one, key=_seal_key(ctx))
    run = dataclasses.replace(ctx, host=ctx.machine or ctx.host)
    work = Work(one, former, following)
    run.kind.prepare(run, work)
    work = dataclasses.replace(work, is_changed=_write_files(run, work))
    if work.is_changed or marks.get(own) != one.mark:
        _take_up(run, work)
        rotation.acknowledge(ctx.api, one, node=own)
        marks[own] = one.mark
    left = rotation.find_left(one, marks)
    if left:
        return Results(remaining=_say_left(ctx, left))
    return _end_stage(run, work)


def _say_left(ctx: RotationRun, left: Sequence[str]) -> list[str]:
    """The lines for the nodes that have not done this stage; workers come last, since they need what the control planes do in it."""
    if not ctx.kind.takes_workers:
        return [f"on control plane {name}: {ctx.kind.command} --continue" for name in left]
    takers = rotation.read_takers(ctx.api)
    first = [name for name in left if name in takers and takers[name].is_control_plane]
    lines = [f"on control plane {name}: {ctx.kind.command} --continue" for name in first]
    return lines + [f"on worker {name}: {ctx.kind.command} --continue" for name in left if name not in first]


def _take_up(run: RotationRun, work: Work) -> None:
    try:
        run.kind.take_up(run, work)
    except KbError as error:
        place = _place(run)
        if work.is_changed:
            error.changed = (
                error.changed
                or f"{place.public} and {place.key} are of stage {work.stage!r}, which cuts nobody off yet"
            )
        raise


def _write_files(run: RotationRun, work: Work) -> bool:
    """Write what the stage wants into the pair's two files; returns whether anything changed. The public one comes first: it holds what
    the key needs before the key is there. Raises HostError."""
    place = _place(run)
    present = run.host.read_text(place.public) if run.host.exists(place.public) else ""
    text = rotated_pairs.render_public(present, former=work.former, following=work.following, stage=work.stage)
    is_changed = pki.write_keeping_mode(run.host, place.public, text=text, mode=0o644)
    holder = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
    if not run.host.exists(place.key) or not pki.is_public_half_in(_public(holder), pki.read_key(run.host, place.key)):
        pki.write_keeping_mode(run.host, place.key, text=holder.key_pem.reveal(), mode=0o600)
        is_changed = True
    if is_changed:
        static_pods_swap.record_files(run, (place.public,))
    return is_changed


def _public(pair: Pair) -> str:
    return pair.cert_pem or pair.key_pem.reveal()


def _end_stage(run: RotationRun, work: Work) -> Outputs:
    """What follows once every control plane has acknowledged the stage. Raises ClusterError: rotation-not-proven, rotation-still-used."""
    run.kind.settle(run, work)
    troubles = list(run.kind.prove(run, work))
    if troubles:
        raise ClusterError(
            troubles[0].what,
            cause=f"{troubles[0].cause}; stage {work.stage!r} does not end before that is right, and nobody is cut off until then",
            remedy=troubles[0].remedy,
            code="rotation-not-proven",
            details=[advise(one) for one in troubles[1:]],
        )
    if work.stage == DROP:
        run.kind.end(run, work)
        _withdraw_shared(run)
        rotation.end(run.api, rotation.read_marks(run.api, work.one.what), what=work.one.what)
        return Results(remaining=[])
    one = work.one
    if work.stage == USE:
        one = rotation.note_used(run.api, one)
        if not run.finishes:
            return Results(remaining=[f"{run.kind.unused_when}: {run.kind.command} --finish"])
        if not run.force:
            run.kind.check_unused(run, dataclasses.replace(work, one=one))
    _advance(run, one, stage=USE if work.stage == TRUST else DROP)
    return None


def _advance(run: RotationRun, one: Rotation, *, stage: str) -> None:
    try:
        rotation.advance(run.api, one, stage=stage)
    except ApiRefused as error:
        if error.http_status != 409:  # another control plane has done so
            raise


def find_pair_lack(work: Work, find_refusal: Callable[[Pair], Optional[str]], *, form: str) -> str:
    """What of the stage a server does not have yet, in words; "" if it has all: it accepts both pairs, and in the last stage the following
    one alone. find_refusal: why it refuses a pair, "" if it accepts it, None if that cannot be tried; form: what is tried, with {} for the
    pair's name."""
    for pair, name in ((work.following, "the new"), (work.former, "the former")):
        refusal = find_refusal(pair)
        is_wanted = pair is work.following or work.stage != DROP
        if is_wanted and refusal:
            return f"it does not accept {form.format(name)}: {refusal}"
        if not is_wanted and refusal == "":
            return f"it still accepts {form.format(name)}"
    return ""


def check_flags(run: RotationRun, flags: Sequence[tuple[str, str, str]]) -> None:
    """That the static pods read the files that are rotated, and no others. flags: (component, flag, file below certificatesDir). Raises
    HostError (rotated-files-elsewhere)."""
    for component, flag, name in flags:
        path, wanted = run.paths.manifest(component), str(run.paths.pki / name)
        pod = yaml_files.load_mapping(run.host.read_text(path), str(path)) if run.host.exists(path) else {}
        words = next(iter(yaml_files.commands_of_pod(pod)), [])
        found = [word.partition("=")[2] for word in words if word.startswith(f"--{flag}=")]
        if found != [wanted]:
            raise HostError(
                f"{component} does not use {wanted} alone",
                cause=f"--{flag} in {path} is {' and '.join(found) or 'not there'}",
                remedy=f"have it say --{flag}={wanted}, on every control plane: kb reconfigure; what lies elsewhere is replaced there",
                code="rotated-files-elsewhere",
            )


def wait_for_stage(run: RotationRun, look: Callable[[], str], *, what: str, timeout_s: float, component: str) -> None:
    """Until a component of this node is as the stage wants it. look: what is missing, in words; what: the error's first line. Raises
    ClusterError (rotation-not-proven)."""

    def fail(missing: str, elapsed: float) -> KbError:
        return ClusterError(
            what,
            cause=f"{missing}, {elapsed:.0f} s after it could have been so",
            remedy=f"look at its log: crictl logs of {component}; then: {run.kind.command} --continue",
            code="rotation-not-proven",
        )

    wait_for(run.host, look, goal="this stage", timeout_s=timeout_s, tell=run.report.waiting, failure=fail, poll_s=0.5)


def withdraw_published(run: RotationRun, former: Pair, *, key: str, flag: str) -> None:
    """Have extension API servers accept the former authority no more, and see that it stays away. key: in what is published; flag: from which
    API servers have it. Raises ClusterError (rotation-not-proven)."""
    seen = 0

    def look() -> str:
        nonlocal seen
        is_back = request_header.withdraw(run.api, former, key=key)
        seen = 0 if is_back else seen + 1
        return "" if seen > SETTLED_S else f"ConfigMap kube-system/{request_header.CONFIG} has the former one again"

    missing, _ = watch(run.host, look, timeout_s=PUBLISHED_S, poll_s=1.0)
    if missing:
        raise ClusterError(
            "extension API servers are told of the former authority again and again",
            cause=missing,
            remedy=f"see which API server still has it: grep {flag} of its manifest, on each control plane",
            code="rotation-not-proven",
        )


def restart_workloads(run: RotationRun, find_holders: Callable[[], Sequence[Holder]]) -> None:
    """Restart what made the pods that may hold something of the former one, and wait until those are gone. Raises ClusterError."""
    owners = {(one.owner_kind, one.owner) for one in find_holders() if one.owner}
    for kind, name in sorted(owners):
        run.report.note(f"restarting {kind} {name}")
        path = account_tokens.path_of_workload(kind, name)
        objects.restart_pods(run.api, path, now=rotation.read_time(run.api))

    def look() -> str:
        left = [one.pod for one in find_holders() if (one.owner_kind, one.owner) in owners]
        return f"{', '.join(left[:3])}{' and others' if len(left) > 3 else ''} still run" if left else ""

    def tell(missing: str, elapsed: float) -> bool:
        run.report.waiting(say_round("the restarted workloads", missing, elapsed=elapsed, timeout_s=ROLLED_S))
        return False

    watch(run.host, look, timeout_s=ROLLED_S, is_over=tell, poll_s=2.0)


def list_servers(run: Run) -> list[str]:
    """`host:port` of every API server."""
    return list(objects.read_api_servers(run.api))


CHECKS = Act(do=check_rotation, live="node", always=True)
BEGIN = Act(do=begin, live="cluster", always=True)
TRUSTED = Act(do=trust, live="cluster", always=True)
USED = Act(do=use, live="cluster", always=True)
DROPPED = Act(do=drop, live="cluster", always=True)
