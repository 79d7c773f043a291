"""Renews certificates, restarts the static pods that would go on with the former ones, and takes back what they cannot use.

Which component has to be restarted for which certificate is in kubeup/node/renewal.py (docs/adr/0017-renewed-certificates.md says why).
kubeadm renews the files alone (cmd/kubeadm/app/phases/certs/renewal/manager.go).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import say_round, watch
from kubeup.phases.restart_pods import Restarted, find_obstacle, restart_static_pods

with lazily:
    from kubeup.cluster import api
    from kubeup.node import certificates, former_certs, kubeconfig, renewal, torn_pairs, unread_certs
    from kubeup.swap import store, turn

TRIAL_S = 10.0
"""How long the API server may take to show its own new certificate, and to accept a new client's: a second, as measured."""
TURN_S = 300.0
"""How long another control plane may take with its own static pods before this one gives up: a renewal takes less than a minute there, a
swap a few."""


@dataclass
class Renewed:
    """What a renewal did. outcomes: name of the certificate -> missing | external | renewed."""

    former: former_certs.Former
    outcomes: dict[str, str] = field(default_factory=dict)
    restarted: list[Restarted] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """component that still uses its former certificate -> why it was not restarted, in words."""


def renew_and_restart(
    ctx: Run, rows: Sequence[renewal.Row], *, tell: Callable[[renewal.Row, str], None] = lambda row, outcome: None
) -> Renewed:
    """Renew these certificates of this node, each with its key, and restart what reads them only when it starts; what an authority has signed
    elsewhere stays, and its reader is restarted if it has not read it.

    tell: called after each certificate with its outcome. If the API server refuses a new client certificate, or a component does not
    come back with it, the former kubeconfig comes back and the component runs with it.

    No two control planes restart theirs at once: this one waits for its turn before it renews anything.

    Raises ClusterError (renewal-taken-back, swap-elsewhere), HostError from the files, and what restart_static_pods raises if there was
    nothing to go back to.
    """
    unread = unread_certs.find_unread(ctx.host, ctx.paths, socket=ctx.config.node.cri_socket, rows=rows)
    names = {one.row.name for one in unread}
    with _turn(ctx, rows, unread=names):
        return _renew_and_restart(ctx, rows, unread=names, tell=tell)


def renew_files(
    ctx: Run, rows: Sequence[renewal.Row], *, tell: Callable[[renewal.Row, str], None] = lambda row, outcome: None
) -> Renewed:
    """Renew these certificates, each with its key, and keep the former ones; restart nothing. tell: called after each with its outcome.
    Raises HostError from the files."""
    put_torn_right(ctx)
    files = [path for row in rows for path in _files(ctx, row)]
    done = Renewed(former_certs.keep_former(ctx.host, ctx.paths, files=files))
    for row in rows:
        done.outcomes[row.name] = renewal.renew(ctx.host, ctx.paths, row=row, cluster=ctx.config.cluster)
        tell(row, done.outcomes[row.name])
    return done


def _renew_and_restart(
    ctx: Run, rows: Sequence[renewal.Row], *, unread: Collection[str], tell: Callable[[renewal.Row, str], None]
) -> Renewed:
    done = renew_files(ctx, rows, tell=tell)
    readers = {
        row.reader: row for row in rows if row.reader and (done.outcomes[row.name] == "renewed" or row.name in unread)
    }
    done.left = find_left(ctx, readers)
    readers = {name: row for name, row in readers.items() if name not in done.left}
    _check_accepted(ctx, readers, former=done.former)
    try:
        done.restarted = restart_static_pods(ctx, tuple(readers))
    except (ClusterError, HostError) as error:
        _go_back(ctx, readers, former=done.former, error=error)
    return done


def put_torn_right(ctx: Run) -> None:
    """Make the pairs usable that a renewal left torn when it was cut off, before what is kept of them could be of no use."""
    for torn in torn_pairs.find_torn_pairs(ctx.host, ctx.paths, rows=renewal.wanted_rows(ctx.config.cluster)):
        torn_pairs.put_right(ctx.host, torn)
        ctx.report.note(f"{torn.describe()}" + (f": {torn.half} is as it was before" if torn.half else ""))


def find_left(ctx: Run, components: Iterable[str]) -> dict[str, str]:
    """Those of these components that cannot be restarted here, and why, in words."""
    return {name: why for name in components if (why := find_obstacle(ctx, name))}


# ---- one control plane at a time


@contextlib.contextmanager
def _turn(ctx: Run, rows: Sequence[renewal.Row], *, unread: Collection[str]) -> Iterator[None]:
    """Hold the Lease of the static pods, if one of this node's is going to be restarted. An API that is away hinders nothing: certificates
    that have ended must not keep others from their renewal. Raises ClusterError (swap-elsewhere)."""
    if not any(row.reader and (row.name in unread or _is_renewable(ctx, row)) for row in rows):
        yield
        return
    _wait_for_turn(ctx)
    try:
        yield
    finally:
        _end_turn(ctx)


def _is_renewable(ctx: Run, row: renewal.Row) -> bool:
    found = renewal.read_expiry(ctx.host, ctx.paths, row=row)
    return found.expires is not None and not found.is_external


def _wait_for_turn(ctx: Run) -> None:
    held: Optional[turn.Held] = None

    def look() -> str:
        nonlocal held
        try:
            held = turn.take(ctx, patience_s=0)
        except KbError as error:
            held = None
            ctx.report.detail(f"other control planes are not kept from restarting theirs meanwhile: {error}")
        return f"control plane {held.node} works on its static pods" if held else ""

    def tell(missing: str, elapsed: float) -> bool:
        if missing:
            ctx.report.waiting(say_round("this node's turn", missing, elapsed=elapsed, timeout_s=TURN_S))
        return False

    missing, _ = watch(ctx.host, look, timeout_s=TURN_S, is_over=tell, poll_s=2.0)
    if missing and held is not None:
        raise ClusterError(
            f"control plane {held.node} works on its static pods",
            cause=f"it has held Lease kube-system/{turn.NAME} for {held.for_s:.0f} s; nothing was renewed here",
            remedy=f"wait until it has finished; if nothing is under way there: kubectl -n kube-system delete lease {turn.NAME}",
            code="swap-elsewhere",
        )


def _end_turn(ctx: Run) -> None:
    """Give the turn back, unless a swap was cut off on this node: whoever ends that gives it back."""
    if store.load_cut_off(ctx.host, ctx.paths) is not None:
        return
    turn.end(ctx, tell=ctx.report.detail)


# ---- before the restart: would the API server accept it?


def _check_accepted(ctx: Run, readers: Mapping[str, renewal.Row], *, former: former_certs.Former) -> None:
    """Call the API server with each new kubeconfig. A component that it refuses stays healthy by its own word, and does nothing, so this
    is the proof. Raises ClusterError (renewal-taken-back)."""
    for name, row in readers.items():
        path = ctx.paths.kubeconfig(row.name)
        _, refusal = _try_kubeconfig(ctx, path)
        if not refusal:
            continue
        files = [path for one in readers.values() for path in _files(ctx, one)]
        back = former_certs.put_back(ctx.host, former, files=files)
        raise ClusterError(
            f"the API server does not accept the renewed certificate of {name}",
            cause=f"{refusal}; {_say_back(back)}, and no component was restarted",
            remedy=f"see whether {ctx.paths.pki}/ca.crt is the CA of the running API server, and whether its clock is right",
            code="renewal-taken-back",
        )


def _try_kubeconfig(ctx: Run, path: Path) -> tuple[bool, str]:
    """(whether the API server answered, why it refuses the client of this kubeconfig: "" if it does not)."""
    client = api.Api(ctx.host, api.read_identity(ctx.host, path), retry_s=0)
    answered = False

    def look() -> str:
        nonlocal answered
        try:
            status = client.probe_health("/version").status
        except Unreachable as error:
            answered = error.reason == "tls"
            return f"the call fails: {error.cause}"
        answered = True
        return "it answers HTTP 401" if status == 401 else ""

    missing, _ = watch(ctx.host, look, timeout_s=TRIAL_S, poll_s=0.5)
    if missing and not answered:
        ctx.report.warn(f"the API server does not answer, so {path} is not tried: {missing}")
    return answered, missing if answered else ""


# ---- the way back


def _go_back(ctx: Run, readers: Mapping[str, renewal.Row], *, former: former_certs.Former, error: KbError) -> None:
    """Put the former kubeconfigs back, and restart the components with them. Raises ClusterError (renewal-taken-back), or `error` if
    the former ones are of no use either."""
    files = [path for row in readers.values() for path in _files(ctx, row)]
    usable = [path for path in files if _is_usable(ctx, former.copy_of(path))]
    back = former_certs.put_back(ctx.host, former, files=usable)
    if not back:
        raise error
    names = " and ".join(readers)
    try:
        restart_static_pods(ctx, tuple(readers))
        end = f"{names} run{'s' if len(readers) == 1 else ''} with {'it' if len(back) == 1 else 'them'} again"
    except (ClusterError, HostError) as second:
        end = f"but {names} did not come back with {'it' if len(back) == 1 else 'them'} either ({second.what}: {second.cause})"
    raise ClusterError(
        f"{names} did not come back after the renewal: {error.what}",
        cause=f"{error.cause}; {_say_back(back)}; {end}",
        remedy=error.remedy,
        code="renewal-taken-back",
        details=error.details,
    ) from error


def _files(ctx: Run, row: renewal.Row) -> tuple[Path, ...]:
    return renewal.files_of(ctx.paths, row)


def _is_usable(ctx: Run, copy: Path) -> bool:
    """Whether the client certificate in the copy of a kubeconfig is valid now. One that has expired would not help."""
    if not ctx.host.exists(copy):
        return False
    found = kubeconfig.read_kubeconfig(ctx.host.read_text(copy), host=ctx.host, path=copy)
    certs = certificates.parse_shown(found.client_cert_pem or "")
    return bool(certs) and not certificates.is_expired(certs[0], ctx.host.now())


def _say_back(paths: Iterable[Path]) -> str:
    names = list(map(str, paths))
    return (
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} as before"
        if names
        else "nothing could be put back"
    )
