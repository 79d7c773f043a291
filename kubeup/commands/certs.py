"""The commands certs check-expiration, certs renew and certs generate-csr. Mirrors cmd/kubeadm/app/cmd/certs.go,
including the form of the output."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.errors import HostError, KbError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths

with lazily:
    from kubeup import releases
    from kubeup.airgap import oci_layout
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import objects, shared_certs
    from kubeup.config import load_init, load_join, types
    from kubeup.doctor import certs_in_use, node_files
    from kubeup.engine import run
    from kubeup.node import kubelet_cert, pki, renewal, torn_pairs, unread_certs
    from kubeup.phases import renewed_certs, renewed_kubelet_cert, serve_mirror

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import ClusterConfiguration
    from kubeup.engine.run import Run, Who
    from kubeup.machine.host import Host
    from kubeup.node.renewal import Expiry, Row

OUTPUT_API = "output.kubeadm.k8s.io/v1alpha3"
KUBELET_SERVER = "kubelet-server"
"""The name of the kubelet's own serving certificate, which kubeadm does not know."""
MIRROR = "kb-mirror"
"""The name of the certificate of this node's mirror."""


# ---- which cluster


def read_cluster(
    call: Invocation, local: Host, *, verb: str, fallback: Optional[ClusterConfiguration] = None
) -> ClusterConfiguration:
    """The configuration from --config, else from the cluster if it answers at once, else `fallback`, or the defaults. A cluster that
    is down because of expired certificates must not prevent their renewal."""
    if "config" in call.flags:
        # an unknown field must not prevent a renewal
        is_kubeadm = bool(call.program.wishes.get("only-kubeadm"))
        given = load_init.load_partial_config(
            local,
            config_file=Path(call.flags["config"]),
            flags={"allow-unknown-fields": True, "only-kubeadm": is_kubeadm},
            read_bundle_version=oci_layout.read_kubernetes_version,
        )
        for warning in given.warnings:
            call.report.warn(warning)
        return given.cluster
    path = Path(call.flags.get("kubeconfig", Paths().admin_conf))
    if not local.exists(path):
        return fallback or types.ClusterConfiguration(releases.NEWEST_PROVEN)
    _say(call, f'[{verb}] Reading configuration from the "kubeadm-config" ConfigMap in namespace "kube-system"...')
    try:
        api = kubeapi.Api(local, kubeapi.read_identity(local, path), retry_s=0)
        text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
        found = load_join.parse_stored_cluster(local, text, warnings=[])
    except KbError as error:
        _say(call, f"[{verb}] Error reading configuration from the Cluster. Falling back to default configuration\n")
        call.report.note(f"{error}")
        return fallback or types.ClusterConfiguration(releases.NEWEST_PROVEN)
    _say(call, f"[{verb}] To change it there: '{call.program.name} init phase upload-config kubeadm --config FILE'\n")
    return found


def _say(call: Invocation, text: str) -> None:
    if call.output == "text":
        call.print(text)


def _paths(call: Invocation, cluster: ClusterConfiguration) -> Paths:
    return Paths(pki=Path(call.flags.get("cert-dir", cluster.certificates_dir)).absolute())


# ---- check-expiration


def check_expiration(call: Invocation) -> int:
    """Print when each certificate of this node expires, as kubeadm does. For kb's own, see certs_expiry.py."""
    local = launcher.open_host(call)
    cluster = read_cluster(call, local, verb="check-expiration")
    paths = _paths(call, cluster)
    certs = [renewal.read_expiry(local, paths, row=row) for row in renewal.wanted_rows(cluster)]
    cas = [renewal.read_ca_expiry(local, paths, name=name) for name in renewal.wanted_cas(cluster)]
    now = local.now()
    if call.output == "text":
        call.print(render_expiries(certs, cas, now=now))
        return 0
    call.print_value(
        {
            "apiVersion": OUTPUT_API,
            "kind": "CertificateExpirationInfo",
            "certificates": [describe_expiry(item, now) for item in certs],
            "certificateAuthorities": [describe_expiry(item, now) for item in cas],
        }
    )
    return 0


def describe_expiry(item: Expiry, now: datetime.datetime) -> dict[str, Any]:
    """kubeadm's output object; residualTime in seconds."""
    shown: dict[str, Any] = {
        "name": item.name,
        "expirationDate": moments.show(item.expires) if item.expires else None,
        "residualTime": item.residual_s(now),
        "externallyManaged": item.is_external,
        "missing": item.expires is None,
    }
    return {**shown, "caName": item.ca} if item.ca else shown


def render_expiries(certs: list[Expiry], cas: list[Expiry], *, now: datetime.datetime) -> str:
    """kubeadm's two tables."""
    head = ("CERTIFICATE", "EXPIRES", "RESIDUAL TIME", "CERTIFICATE AUTHORITY", "EXTERNALLY MANAGED")
    first = [head, *(_row(item, now, has_ca=True) for item in certs)]
    second = [(*_without_ca(head, "CERTIFICATE AUTHORITY"),), *(_row(item, now, has_ca=False) for item in cas)]
    return f"{render_table(first)}\n\n{render_table(second)}"


def _without_ca(head: tuple[str, ...], first: str) -> tuple[str, ...]:
    return (first, *head[1:3], *head[4:])


def _row(item: Expiry, now: datetime.datetime, *, has_ca: bool) -> tuple[str, ...]:
    if item.expires is None:
        return (f"!MISSING! {item.name}", "", "", *([""] * has_ca), "")
    cells = (item.name, f"{item.expires:%b %d, %Y %H:%M} UTC", describe_span(item.residual_s(now)))
    return (*cells, *([item.ca] * has_ca), f"{'yes' if item.is_external else 'no':<8}")


def render_table(rows: list[tuple[str, ...]]) -> str:
    """Columns at least 10 characters wide, separated by 3 spaces, as kubeadm's tabwriter prints them."""
    widths = [max(10, max(len(row[column]) for row in rows) + 3) for column in range(len(rows[0]) - 1)]
    return "\n".join("".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + row[-1] for row in rows)


def describe_span(seconds: int) -> str:
    """`364d`, `9y`, `30m`: kubectl's form of ages (HumanDuration of k8s.io/apimachinery/pkg/util/duration)."""
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    for limit, big, unit, small, rest in (
        (10 * 60, minutes, "m", "s", seconds % 60),
        (3 * 3600, minutes, "m", "", 0),
        (8 * 3600, hours, "h", "m", minutes % 60),
        (48 * 3600, hours, "h", "", 0),
        (8 * 86400, days, "d", "h", hours % 24),
        (2 * 365 * 86400, days, "d", "", 0),
        (8 * 365 * 86400, days // 365, "y", "d", days % 365),
    ):
        if seconds < limit:
            return f"{big}{unit}{rest}{small}" if small and rest else f"{big}{unit}"
    return f"{days // 365}y"


# ---- renew


def renew(call: Invocation) -> int:
    """Renew one certificate by name, or all. Except under the name kubeadm, what reads a renewed one only when it starts is restarted."""
    name = _find_name(call)
    launch = Launch(call)
    local = launch.local
    if "cert-dir" not in call.flags and "config" not in call.flags:
        launch.require_root()
    refuse_cut_off(launch)
    if name in (KUBELET_SERVER, MIRROR) and call.program.does_more:
        _print_outcome(launch, _renew_kubelet_s(launch) if name == KUBELET_SERVER else _renew_mirror_s(launch))
        return 0
    if name != "all":
        renewal.find_row(name, types.ClusterConfiguration(releases.NEWEST_PROVEN))  # before querying the cluster
    cluster = read_cluster(call, local, verb="renew")
    rows = renewal.wanted_rows(cluster) if name == "all" else (renewal.find_row(name, cluster),)
    paths = _paths(call, cluster)
    if call.flags.get("expiring"):
        outcome = _renew_expiring(launch, rows, cluster=cluster, paths=paths, name=name)
    else:
        outcome = _renew_rows(launch, rows, cluster=cluster, paths=paths, name=name)
        if name == "all" and _has_mirror(launch):
            outcome.add(_renew_mirror_s(launch))
    _print_outcome(launch, outcome)
    return 0


@dataclass
class Outcome:
    """What a renewal did, or would do: the names of certificates and components.

    external: not renewed, since the key of their authority is kept elsewhere; left: those of them that have less than a fifth of their life
    left; not_restarted: component -> why it goes on with its former certificate; former: the folder of the former files."""

    renewed: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    not_restarted: dict[str, str] = field(default_factory=dict)
    former: str = ""

    def add(self, other: Outcome) -> None:
        for name in ("renewed", "external", "left", "restarted"):
            getattr(self, name).extend(getattr(other, name))
        self.former = self.former or other.former

    def take(self, row: Row, outcome: str) -> None:
        {"renewed": self.renewed, "external": self.external, "missing": self.missing}[outcome].append(row.name)


def _print_outcome(launch: Launch, outcome: Outcome) -> None:
    """The end of the text, or all of it for programs."""
    call = launch.call
    if call.output == "text":
        if launch.is_dry:
            call.print("nothing was changed")
        return
    call.print_value(
        {
            "dryRun": launch.is_dry,
            "renewed": outcome.renewed,
            "external": outcome.external,
            "missing": outcome.missing,
            "left": outcome.left,
            "restarted": outcome.restarted,
            "notRestarted": outcome.not_restarted,
            "formerFiles": outcome.former or None,
        }
    )


def refuse_cut_off(launch: Launch) -> None:
    """Raises HostError (swap-cut-off, upgrade-cut-off, recovery-cut-off, locked): the components that a renewal restarts may be stopped."""
    if not (launch.call.program.keeps_state and launch.local.is_root_user()):
        return
    try:
        launch.refuse_cut_off(Paths())
    except HostError:
        with launch.local.lock(Paths().lock, f"kb {launch.call.command.name}"):
            raise  # unless it is under way: then that is what is told


def renew_due(launch: Launch) -> Outcome:
    """What `kb certs renew all --expiring` does, for the timer. If the cluster does not answer, this node's files tell its configuration.
    Raises KbError."""
    refuse_cut_off(launch)
    patient = node_files.read_patient(launch.local, Paths())
    own = replace(patient.config.cluster, certificates_dir=str(patient.paths.pki))
    cluster = read_cluster(launch.call, launch.local, verb="renew", fallback=own)
    paths = _paths(launch.call, cluster)
    return _renew_expiring(launch, renewal.wanted_rows(cluster), cluster=cluster, paths=paths, name="all")


def _renew_rows(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths, name: str
) -> Outcome:
    """Renew these rows, as kb or as kubeadm. name: what the user named."""
    call, local = launch.call, launch.local
    for ca in {row.ca: None for row in rows}:
        for warning in renewal.find_warnings(local, paths, ca=ca, cluster=cluster):
            call.report.warn_once(warning)
    if call.program.does_more:
        is_of_this_node = paths.pki == Path(cluster.certificates_dir) and local.is_root_user()
        if is_of_this_node:
            launch.refuse_tried(paths)
        if launch.is_dry:
            return _foretell(launch, rows, cluster=cluster, paths=paths, restarts=is_of_this_node)
        renew_here = _renew_and_restart if is_of_this_node else _renew_elsewhere
        return renew_here(launch, rows, cluster=cluster, paths=paths)
    done = Outcome()
    for row in rows:
        _note_outcome(call, row, outcome=renewal.renew(local, paths, row=row, cluster=cluster), done=done)
    if name == "all":
        call.print(_AFTER_RENEWAL)
    return done


def _foretell(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths, restarts: bool
) -> Outcome:
    """What a renewal of these would do. restarts: whether it would restart what reads them when it starts."""
    done, call = Outcome(), launch.call
    for row in rows:
        found = renewal.read_expiry(launch.local, paths, row=row)
        if found.expires is None or found.is_external:
            _note_outcome(call, row, outcome="external" if found.is_external else "missing", done=done)
            continue
        done.renewed.append(row.name)
        _say(call, f"would renew: {row.what} ({renewal.files_of(paths, row)[-1]})")
    readers = [row.reader for row in rows if row.reader and row.name in done.renewed]
    ctx = _make_ctx(launch, cluster=cluster, paths=paths)
    if restarts:
        done.not_restarted = renewed_certs.find_left(ctx, readers)
        done.restarted = [name for name in readers if name not in done.not_restarted]
    _tell_restarts(call, done)
    return done


def _tell_restarts(call: Invocation, done: Outcome) -> None:
    if done.restarted:
        _say(call, f"would restart: {', '.join(done.restarted)}")
    for component, why in done.not_restarted.items():
        call.report.note(f"{component} would not be restarted: {why}")


def _renew_expiring(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths, name: str
) -> Outcome:
    """Renew those of these that are due, or that a renewal which was cut off has left unusable or unread, and with `all` the kubelet's
    serving certificate if that is due and its own. What an authority signs elsewhere stays, and is warned of, so that a timer's log says
    it."""
    call, local = launch.call, launch.local
    cut_off = {one.row.name for one in torn_pairs.find_torn_pairs(local, paths, rows=rows)}
    cut_off |= _find_unread(launch, rows, paths=paths)
    rows = tuple(row for row in rows if row.name in cut_off or renewal.is_due(local, paths, row=row, cluster=cluster))
    done = _renew_rows(launch, rows, cluster=cluster, paths=paths, name=name) if rows else Outcome()
    for row in rows:
        would_be = launch.is_dry and row.name in done.renewed
        if not would_be and renewal.is_due(local, paths, row=row, cluster=cluster):
            done.left.append(row.name)
            verb = "would not be" if launch.is_dry else "was not"
            call.report.warn(f"{row.name} has less than a fifth of its life left, and {verb} renewed")
    if name == "all" and _is_kubelet_due(launch):
        done.add(_renew_kubelet_s(launch))
    why = _find_mirror_due(launch) if name == "all" else ""
    if why:
        call.report.note(why)
        done.add(_renew_mirror_s(launch, is_due=True))
    if not done.renewed and not done.left:
        _say(call, "nothing to renew: every certificate has more than a fifth of its life left")
    return done


def _find_unread(launch: Launch, rows: Sequence[Row], *, paths: Paths) -> set[str]:
    """The names of those that were written while their reader ran on, which restarts it with a new one."""
    if not launch.local.is_root_user():
        return set()
    socket = node_files.read_patient(launch.local, paths).config.node.cri_socket
    found = unread_certs.find_unread(launch.local, paths, socket=socket, rows=rows)
    for one in found:
        launch.call.report.note(one.describe())
    return {one.row.name for one in found}


def _is_kubelet_due(launch: Launch) -> bool:
    """Whether the kubelet's serving certificate is due, and the kubelet's to make again."""
    ctx, patient = _read_kubelet(launch)
    path = certs_in_use.find_serving_file(patient)
    if renewed_kubelet_cert.find_obstacle(ctx, path, config=patient.config.kubelet):
        return False
    if torn_pairs.was_taken_away(ctx.host, ctx.paths, path=path):
        return True
    return renewal.is_cert_due(pki.read_certs(ctx.host, path)[0], ctx.host.now(), period_s=kubelet_cert.LIFE_S)


def _read_kubelet(launch: Launch) -> tuple[Run, node_files.Patient]:
    patient = node_files.read_patient(launch.local, Paths())
    ctx = run.Run(
        host=launch.local,
        paths=patient.paths,
        config=patient.config,
        release=patient.release,
        report=launch.call.report,
    )
    return ctx, patient


def _find_name(call: Invocation) -> str:
    if len(call.words) == 1:
        return call.words[0]
    raise UsageError(
        "one certificate must be named",
        cause=f"{len(call.words)} were: {' '.join(call.words)}" if call.words else "none was",
        remedy=f"{call.program.name} certs renew all; their names: {call.program.name} certs check-expiration",
        code="no-certificate-named",
    )


def _note_outcome(call: Invocation, row: Row, *, outcome: str, done: Outcome) -> None:
    """Note what became of a certificate, and say it."""
    done.take(row, outcome)
    _say(
        call,
        {
            "missing": f"MISSING! {row.what}",
            "external": f"Detected external {row.ca}, {row.what} can't be renewed",
            "renewed": f"{row.what} renewed",
        }[outcome],
    )


_AFTER_RENEWAL = """
Done renewing certificates. You must restart the kube-apiserver, kube-controller-manager, kube-scheduler and etcd, so that they use them."""


def _renew_elsewhere(launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths) -> Outcome:
    """Renew in a folder that this node's components do not use, or without the rights to restart them."""
    done = Outcome()
    for row in rows:
        outcome = renewal.renew(launch.local, paths, row=row, cluster=cluster)
        _note_outcome(launch.call, row, outcome=outcome, done=done)
    why = "they are not this node's, or you are not root"
    done.not_restarted = {row.reader: why for row in rows if row.reader and row.name in done.renewed}
    _tell_end(launch.call, left=list(done.not_restarted))
    return done


def _renew_and_restart(launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths) -> Outcome:
    call, done = launch.call, Outcome()
    ctx = _make_ctx(launch, cluster=cluster, paths=paths)
    with launch.local.lock(paths.lock, f"kb {call.command.name}"):
        renewed = renewed_certs.renew_and_restart(
            ctx, rows, tell=lambda row, outcome: _note_outcome(call, row, outcome=outcome, done=done)
        )
    for one in renewed.restarted:
        _say(call, f"{one.component} restarted: it was away for {one.away_s:.1f} s")
        done.restarted.append(one.component)
    for component, why in renewed.left.items():
        call.report.note(f"{component} was not restarted: {why}")
    done.not_restarted = dict(renewed.left)
    _tell_end(call, left=list(renewed.left))
    if done.renewed:
        done.former = str(renewed.former.folder)
        _say(call, f"The former files are in {done.former}")
    return done


def _make_ctx(launch: Launch, *, cluster: ClusterConfiguration, paths: Paths) -> Run:
    local = launch.local
    patient = node_files.read_patient(local, paths)

    def make_api(_: Who) -> kubeapi.Api:
        # this node's own API server: the name in admin.conf may not lead to one at this moment
        server = node_files.find_own_server(local, paths)
        return kubeapi.Api(local, kubeapi.read_identity(local, paths.admin_conf, server=server), retry_s=0)

    return run.Run(
        host=local,
        paths=paths,
        config=replace(patient.config, cluster=cluster),
        release=patient.release,
        report=launch.call.report,
        caller=run.Caller(make_api),
    )


def _renew_kubelet_s(launch: Launch) -> Outcome:
    """Have the kubelet make its serving certificate again, unless it is somebody else's to renew. Works on workers as well."""
    call, local = launch.call, launch.local
    launch.require_root()
    ctx, patient = _read_kubelet(launch)
    path = certs_in_use.find_serving_file(patient)
    obstacle = renewed_kubelet_cert.find_obstacle(ctx, path, config=patient.config.kubelet)
    if obstacle:
        raise HostError(
            "the kubelet's serving certificate is left alone",
            cause=obstacle,
            remedy=f"see what the kubelet presents: {call.program.name} certs check-expiration",
            code="not-the-kubelets-own",
        )
    done = Outcome(renewed=[KUBELET_SERVER], restarted=["kubelet"])
    if launch.is_dry:
        _say(call, f"would renew: {_KUBELET_S} ({path})")
        _tell_restarts(call, done)
        return done
    with local.lock(patient.paths.lock, f"kb {call.command.name}"):
        former = renewed_kubelet_cert.make_again(ctx, path, port=certs_in_use.find_kubelet_port(patient))
    done.former = str(former.folder)
    _say(call, f"{_KUBELET_S} renewed: the kubelet was restarted, and presents {path}")
    _say(call, f"The former files are in {done.former}")
    return done


def _has_mirror(launch: Launch) -> bool:
    is_here = launch.local.exists(Paths().systemd / serve_mirror.MIRROR_UNIT)
    return (
        is_here
        and launch.call.program.does_more
        and launch.local.is_root_user()
        and "cert-dir" not in launch.call.flags
    )


def _find_mirror_due(launch: Launch) -> str:
    return serve_mirror.find_due(_read_kubelet(launch)[0]) if _has_mirror(launch) else ""


def _renew_mirror_s(launch: Launch, *, is_due: bool = False) -> Outcome:
    """Issue the certificate of this node's mirror again, and restart the mirror. is_due: it has not long to live. Raises HostError
    (no-mirror-here, mirror-not-started)."""
    call, local = launch.call, launch.local
    launch.require_root()
    ctx, _ = _read_kubelet(launch)
    if not _has_mirror(launch):
        raise HostError(
            "this node has no mirror",
            cause=f"there is no {ctx.paths.systemd / serve_mirror.MIRROR_UNIT}",
            remedy="run it on the control plane that serves it (kb init --bundle, kb mirror move)",
            code="no-mirror-here",
        )
    done = Outcome(renewed=[MIRROR], restarted=[serve_mirror.MIRROR_UNIT])
    if launch.is_dry:
        _say(call, f"would renew: {_MIRROR_S}")
        _tell_restarts(call, done)
        return done
    with local.lock(ctx.paths.lock, f"kb {call.command.name}"):
        is_renewed = serve_mirror.renew_certificate(ctx)
    if not is_renewed:
        _say(call, f"Detected external ca, {_MIRROR_S} can't be renewed")
        return Outcome(external=[MIRROR], left=[MIRROR] if is_due else [])
    _say(call, f"{_MIRROR_S} renewed: {serve_mirror.MIRROR_UNIT} was restarted")
    return done


_MIRROR_S = "certificate of this node's mirror"
_KUBELET_S = "certificate for serving the kubelet's API"


def _tell_end(call: Invocation, *, left: Sequence[str]) -> None:
    """What follows from a renewal. left: the components that have to be restarted by hand."""
    end = "Done renewing certificates."
    if left:
        end += f" You must restart the {' and '.join(left)}, so that {'they use' if len(left) > 1 else 'it uses'} them."
    if left or call.words == ["all"]:
        _say(call, f"\n{end}")


# ---- generate-csr


def generate_csr(call: Invocation) -> int:
    """Create keys and certificate requests for an external CA."""
    local = launcher.open_host(call)
    config_file: Optional[Path] = Path(call.flags["config"]) if "config" in call.flags else None
    config = load_init.load_init_config(
        local,
        config_file=config_file,
        flags={"allow-unknown-fields": True, **call.program.wishes},
        read_bundle_version=oci_layout.read_kubernetes_version,
    )
    folder = Path(call.flags.get("cert-dir", config.cluster.certificates_dir)).absolute()
    paths = Paths(pki=folder, kubeconfigs=Path(call.flags.get("kubeconfig-dir", "/etc/kubernetes")).absolute())
    config = replace(config, cluster=replace(config.cluster, certificates_dir=str(folder)))
    release = releases.find_release(config.cluster.kubernetes_version)
    for place, names in (
        (paths.pki, renewal.write_cert_requests(local, paths, config=config)),
        (paths.kubeconfigs, renewal.write_kubeconfig_requests(local, paths, config=config, release=release)),
    ):
        call.print(f"generating keys and CSRs in {place}")
        for name in names:
            call.print(f"  {name}")
    return 0


# ---- certificate-key


def certificate_key(call: Invocation) -> int:
    call.print(shared_certs.new_certificate_key().reveal())
    return 0
