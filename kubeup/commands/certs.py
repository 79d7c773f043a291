"""The commands certs check-expiration, certs renew and certs generate-csr. Mirrors cmd/kubeadm/app/cmd/certs.go,
including the form of the output."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    from kubeup.phases import renewed_certs, renewed_kubelet_cert

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.config.types import ClusterConfiguration
    from kubeup.engine.run import Run, Who
    from kubeup.machine.host import Host
    from kubeup.node.renewal import Expiry, Row

OUTPUT_API = "output.kubeadm.k8s.io/v1alpha3"
KUBELET_SERVER = "kubelet-server"
"""The name of the kubelet's own serving certificate, which kubeadm does not know."""


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
    if name == KUBELET_SERVER and call.program.does_more:
        return _renew_kubelet_s(launch)
    if name != "all":
        renewal.find_row(name, types.ClusterConfiguration(releases.NEWEST_PROVEN))  # before querying the cluster
    cluster = read_cluster(call, local, verb="renew")
    rows = renewal.wanted_rows(cluster) if name == "all" else (renewal.find_row(name, cluster),)
    paths = _paths(call, cluster)
    if call.flags.get("expiring"):
        _renew_expiring(launch, rows, cluster=cluster, paths=paths, name=name)
    else:
        _renew_rows(launch, rows, cluster=cluster, paths=paths, name=name)
    return 0


def refuse_cut_off(launch: Launch) -> None:
    """Raises HostError (swap-cut-off, upgrade-cut-off, recovery-cut-off, locked): the components that a renewal restarts may be stopped."""
    if not (launch.call.program.keeps_state and launch.local.is_root_user()):
        return
    try:
        launch.refuse_cut_off(Paths())
    except HostError:
        with launch.local.lock(Paths().lock, f"kb {launch.call.command.name}"):
            raise  # unless it is under way: then that is what is told


def renew_due(launch: Launch) -> Due:
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
) -> Mapping[str, str]:
    """Renew these rows, as kb or as kubeadm, and return what became of each. name: what the user named."""
    call, local = launch.call, launch.local
    for ca in {row.ca: None for row in rows}:
        for warning in renewal.find_warnings(local, paths, ca=ca, cluster=cluster):
            call.report.warn_once(warning)
    if call.program.does_more:
        is_of_this_node = paths.pki == Path(cluster.certificates_dir) and local.is_root_user()
        renew_here = _renew_and_restart if is_of_this_node else _renew_elsewhere
        return renew_here(launch, rows, cluster=cluster, paths=paths)
    outcomes: dict[str, str] = {}
    for row in rows:
        outcomes[row.name] = renewal.renew(local, paths, row=row, cluster=cluster)
        _tell_outcome(call, row, outcome=outcomes[row.name])
    if name == "all":
        call.print(_AFTER_RENEWAL)
    return outcomes


@dataclass
class Due:
    """The certificates that had less than a fifth of their life left, by name: those that were renewed, and those that were not, because
    the key of their authority is kept elsewhere."""

    renewed: list[str]
    left: list[str]


def _renew_expiring(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths, name: str
) -> Due:
    """Renew those of these that are due, or that a renewal which was cut off has left unusable or unread, and with `all` the kubelet's
    serving certificate if that is due and its own. What an authority signs elsewhere stays, and is warned of, so that a timer's log says it."""
    call, local = launch.call, launch.local
    cut_off = {one.row.name for one in torn_pairs.find_torn_pairs(local, paths, rows=rows)} | _find_unread(
        launch, rows, paths=paths
    )
    rows = tuple(row for row in rows if row.name in cut_off or renewal.is_due(local, paths, row=row, cluster=cluster))
    outcomes = _renew_rows(launch, rows, cluster=cluster, paths=paths, name=name) if rows else {}
    done = Due([one for one, what in outcomes.items() if what == "renewed"], [])
    for row in rows:
        if renewal.is_due(local, paths, row=row, cluster=cluster):
            done.left.append(row.name)
            call.report.warn(f"{row.name} has less than a fifth of its life left, and was not renewed")
    if name == "all" and _is_kubelet_due(launch):
        _renew_kubelet_s(launch)
        done.renewed.append(KUBELET_SERVER)
    if not done.renewed and not done.left:
        call.print("nothing to renew: every certificate has more than a fifth of its life left")
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


def _tell_outcome(call: Invocation, row: Row, *, outcome: str) -> None:
    call.print(
        {
            "missing": f"MISSING! {row.what}",
            "external": f"Detected external {row.ca}, {row.what} can't be renewed",
            "renewed": f"{row.what} renewed",
        }[outcome]
    )


_AFTER_RENEWAL = """
Done renewing certificates. You must restart the kube-apiserver, kube-controller-manager, kube-scheduler and etcd, so that they use them."""


def _renew_elsewhere(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths
) -> Mapping[str, str]:
    """Renew in a folder that this node's components do not use, or without the rights to restart them."""
    outcomes: dict[str, str] = {}
    for row in rows:
        outcomes[row.name] = renewal.renew(launch.local, paths, row=row, cluster=cluster)
        _tell_outcome(launch.call, row, outcome=outcomes[row.name])
    _tell_end(launch.call, left=[row.reader for row in rows if row.reader and outcomes[row.name] == "renewed"])
    return outcomes


def _renew_and_restart(
    launch: Launch, rows: Sequence[Row], *, cluster: ClusterConfiguration, paths: Paths
) -> Mapping[str, str]:
    launch.refuse_tried(paths)
    call, local = launch.call, launch.local
    patient = node_files.read_patient(local, paths)

    def make_api(_: Who) -> kubeapi.Api:
        # this node's own API server: the name in admin.conf may not lead to one at this moment
        server = node_files.find_own_server(local, paths)
        return kubeapi.Api(local, kubeapi.read_identity(local, paths.admin_conf, server=server), retry_s=0)

    ctx = run.Run(
        host=local,
        paths=paths,
        config=replace(patient.config, cluster=cluster),
        release=patient.release,
        report=call.report,
        caller=run.Caller(make_api),
    )
    with local.lock(paths.lock, f"kb {call.command.name}"):
        done = renewed_certs.renew_and_restart(
            ctx, rows, tell=lambda row, outcome: _tell_outcome(call, row, outcome=outcome)
        )
    for one in done.restarted:
        call.print(f"{one.component} restarted: it was away for {one.away_s:.1f} s")
    for component, why in done.left.items():
        call.report.note(f"{component} was not restarted: {why}")
    _tell_end(call, left=list(done.left))
    if "renewed" in done.outcomes.values():
        call.print(f"The former files are in {done.former.folder}")
    return done.outcomes


def _renew_kubelet_s(launch: Launch) -> int:
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
    with local.lock(patient.paths.lock, f"kb {call.command.name}"):
        former = renewed_kubelet_cert.make_again(ctx, path, port=certs_in_use.find_kubelet_port(patient))
    call.print(f"certificate for serving the kubelet's API renewed: the kubelet was restarted, and presents {path}")
    call.print(f"The former files are in {former.folder}")
    return 0


def _tell_end(call: Invocation, *, left: Sequence[str]) -> None:
    """What follows from a renewal. left: the components that have to be restarted by hand."""
    end = "Done renewing certificates."
    if left:
        end += f" You must restart the {' and '.join(left)}, so that {'they use' if len(left) > 1 else 'it uses'} them."
    if left or call.words == ["all"]:
        call.print(f"\n{end}")


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
