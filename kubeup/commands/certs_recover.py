"""The command certs recover: which way this node comes back, and what is left to do on the others.

A control plane with its authorities' keys issues everything by itself; any other node asks for its kubelet's certificate with a token,
which a recovered control plane prints. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup import moments, releases
from kubeup.addresses import join_host_port
from kubeup.commands.launcher import Launch
from kubeup.config import token_text
from kubeup.errors import HostError, KbError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.secret import Secret

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import probes
    from kubeup.commands import token as token_command
    from kubeup.config import types
    from kubeup.doctor import certs_in_use, node_files
    from kubeup.engine import run as engine_run
    from kubeup.node import ca_pins, cert_specs, certificates, expired_certs, pki, renewal
    from kubeup.phases import join_command, recovered_certs, recovered_kubelet, wait_node

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.api import Api
    from kubeup.cluster.membership import Access
    from kubeup.doctor.node_files import Patient
    from kubeup.engine.run import Run, Who
    from kubeup.node.expired_certs import Expired, KubeletFiles

COMMAND = "kb certs recover"

TOKEN_S = 2 * 3600
"""How long a token lives that is printed for other nodes. It may only ask for a kubelet's certificate."""


@frozen
class Waiting:
    """Another node that does not report. line: what to run on it."""

    node: str
    role: str
    why: str
    line: Secret


@dataclass
class Outcome:
    """What was done, and what is left."""

    node: str
    expired: Sequence[Expired]
    done: Optional[recovered_certs.Recovered] = None
    waiting: list[Waiting] = field(default_factory=list)


def recover(call: Invocation) -> int:
    """Issue anew what has expired on this node, and bring it back."""
    launch = Launch(call)
    launch.require_root()
    patient = node_files.read_patient(launch.local, Paths())
    if not patient.is_member:
        raise HostError(
            "this machine is no node of a cluster",
            cause=f"there is no {patient.paths.kubelet_config}",
            remedy="set it up: kb init; or join it with the line that a control plane prints: kb token create --print-join-command",
            code="no-node",
        )
    launch.refuse_cut_off(patient.paths)
    files = _find_files(patient)
    ctx = _make_run(launch, patient)
    cluster = patient.config.cluster if patient.is_control_plane else None
    expired = expired_certs.find_expired(launch.local, patient.paths, cluster=cluster, kubelet_files=files)
    cut_off = recovered_certs.read_cut_off(ctx)
    if cut_off and not expired and recovered_certs.has_come_back(ctx):
        cut_off = ()
        if not launch.is_dry:
            recovered_certs.end(ctx)
    outcome = Outcome(patient.config.node.name, expired)
    _check_clock(launch, patient, expired=expired, files=files)
    _check(launch, patient, expired=expired)
    if expired or cut_off:
        names = tuple(dict.fromkeys((*(one.name for one in expired), *cut_off)))
        _bring_back(launch, ctx, patient=patient, outcome=outcome, files=files, names=names)
    elif patient.is_control_plane and not launch.is_dry:
        outcome.waiting = list(_find_waiting(ctx, call))
    _print(launch, outcome)
    return 0


# ---- the node


def _find_files(patient: Patient) -> KubeletFiles:
    flags = node_files.read_kubelet_flags(patient.host, patient.paths)
    folder = Path(flags.get("cert-dir") or patient.paths.kubelet_client_pem.parent)
    path = certs_in_use.find_serving_file(patient)
    is_told = patient.config.kubelet.get("tlsCertFile") or patient.config.kubelet.get("serverTLSBootstrap") is True
    is_own = not is_told and expired_certs.is_self_made(patient.host, path)
    return expired_certs.KubeletFiles(
        patient.paths.kubernetes / "kubelet.conf",
        folder / patient.paths.kubelet_client_pem.name,
        path if is_own else None,
    )


def _make_run(launch: Launch, patient: Patient) -> Run:
    """A run that calls this node's own API server, with the strongest identity that lies on the node."""
    host, paths = launch.local, patient.paths
    server = node_files.find_own_server(host, paths)

    def make_api(_: Who) -> Api:
        names = ("admin.conf", "super-admin.conf") if server else ()
        found = [path for name in names if host.exists(path := paths.kubeconfig(name))]
        path = next(iter(found), paths.kubernetes / "kubelet.conf")
        return kubeapi.Api(host, kubeapi.read_identity(host, path, server=server))

    return engine_run.Run(
        host=host,
        paths=paths,
        config=patient.config,
        release=releases.find_release(patient.config.cluster.kubernetes_version),
        report=launch.call.report,
        caller=engine_run.Caller(make_api),
    )


# ---- before anything changes


def _check_clock(launch: Launch, patient: Patient, *, expired: Sequence[Expired], files: KubeletFiles) -> None:
    """Raises HostError (clock-behind, clock-doubtful)."""
    host, paths = launch.local, patient.paths
    certs = [one.cert for one in expired]
    for name in renewal.CAS if patient.is_control_plane else ():
        path = cert_specs.CERTS[name].cert_path(paths)
        certs += pki.read_certs(host, path)[:1] if host.exists(path) else ()
    traces = (paths.state, paths.etcd_data / "member" / "wal", paths.etcd_data / "member" / "snap" / "db", files.pem)
    try:
        expired_certs.check_clock(host, expired=expired, traces=traces, certs=certs)
    except HostError as error:
        if not (launch.call.flags.get("force") and error.code == "clock-doubtful"):
            raise


def _check(launch: Launch, patient: Patient, *, expired: Sequence[Expired]) -> None:
    """Raises HostError: external-ca-expired, kubelet-of-another-name, and those of the authorities."""
    if patient.is_control_plane and not _needs_token(patient, expired):
        cluster = patient.config.cluster
        expired_certs.check_authorities(launch.local, patient.paths, cluster=cluster, expired=expired)
    _check_name(launch, patient, expired=expired)


def _needs_token(patient: Patient, expired: Sequence[Expired]) -> bool:
    """Whether this node cannot issue its kubelet's certificate, and nothing else has expired that it would have to issue."""
    if not patient.is_control_plane:
        return True
    own = (expired_certs.CLIENT, expired_certs.EMBEDDED, expired_certs.SERVER, expired_certs.AUTHORITY)
    return pki.is_external_ca(patient.host, patient.paths) and all(one.name in own for one in expired)


def _check_name(launch: Launch, patient: Patient, *, expired: Sequence[Expired]) -> None:
    """Warn, or on a node that asks for its certificate refuse, if the kubelet would call itself by another name than its certificate."""
    flags = node_files.read_kubelet_flags(launch.local, patient.paths)
    called = node_files.read_called_name(launch.local, flags)
    named = next(
        (
            name
            for one in expired
            if one.name in (expired_certs.CLIENT, expired_certs.EMBEDDED)
            and (name := expired_certs.node_name_of(one.cert))
        ),
        called,
    )
    if named == called:
        return
    cause = (
        f"its certificate is of node {named}, and the kubelet would call itself {called} (the host name has changed)"
    )
    remedy = f"give the machine its name back (hostnamectl set-hostname {named}), or add --hostname-override={named} to {patient.paths.kubelet_flags_env}"
    if _needs_token(patient, expired):
        raise HostError(
            f"the kubelet of {named} would ask for the certificate of another node",
            cause=cause,
            remedy=remedy,
            code="kubelet-of-another-name",
        )
    launch.call.report.warn(f"{cause}: the certificate is issued for {named}. Remedy: {remedy}")


# ---- bring it back


def _bring_back(
    launch: Launch, ctx: Run, *, patient: Patient, outcome: Outcome, files: KubeletFiles, names: tuple[str, ...]
) -> None:
    call, local = launch.call, launch.local
    needs_token = _needs_token(patient, outcome.expired)
    token = Secret(call.flags.get("token", ""))
    asked = {one.name for one in outcome.expired} - {expired_certs.SERVER, expired_certs.AUTHORITY}
    is_asking = needs_token and bool(asked)
    if is_asking and not token:
        raise _no_token(patient)
    if token and not token_text.is_token(token.reveal()):
        raise UsageError(
            "the value of --token is no bootstrap token",
            cause="a token has 6 lower-case letters or digits, a dot, and 16 more",
            remedy=f"take the line that a control plane prints: {COMMAND}",
            code="bad-token",
        )
    pins = tuple(call.flags.get("discovery-token-ca-cert-hash") or ())
    if is_asking and expired_certs.AUTHORITY in names:  # it cannot ask before: no API server would be believed
        if launch.is_dry:
            return
        with local.lock(patient.paths.lock, COMMAND):
            expired_certs.trust_authorities(local, patient.paths, expired=outcome.expired)
    access = recovered_kubelet.find_way(local, patient.paths, token=token, pins=pins) if is_asking else None
    if token and access is None:
        call.report.note("--token is not needed: this node issues everything by itself")
    if launch.is_dry:
        return
    with local.lock(patient.paths.lock, COMMAND):
        if access is not None:
            run = replace(ctx, caller=_asking_caller(ctx, access))
            former = recovered_kubelet.recover(run, access, names=names, files=files)
            outcome.done = recovered_certs.Recovered(names, former)
            return
        outcome.done = recovered_certs.recover(ctx, outcome.expired, names=names, files=files)
    if outcome.done.gap is None and patient.is_control_plane:
        outcome.waiting = list(_find_waiting(ctx, call))


def _no_token(patient: Patient) -> UsageError:
    where = "" if not patient.is_control_plane else f" (there is no {patient.paths.pki / 'ca.key'})"
    return UsageError(
        f"the kubelet's certificate of {patient.config.node.name} has expired, and this node cannot issue one{where}",
        cause="the cluster has to sign it, and takes a request only from somebody with a token",
        remedy=f"run this on a control plane, which prints the line for this node: {COMMAND}",
        code="token-needed",
    )


def _asking_caller(ctx: Run, access: Access) -> engine_run.Caller:
    """Calls with the token first, at the server that answered, and then as the kubelet."""

    def make_api(who: Who) -> Api:
        if who == "bootstrap":
            return kubeapi.Api(ctx.host, replace(access, server=access.asked or access.server).identity)
        return kubeapi.Api(ctx.host, kubeapi.read_identity(ctx.host, ctx.paths.kubernetes / "kubelet.conf"))

    return engine_run.Caller(make_api, "bootstrap")


# ---- the other nodes


def _find_waiting(ctx: Run, call: Invocation) -> Iterator[Waiting]:
    """The other nodes whose kubelets do not report, with the line for each. Makes one token if a node needs it."""
    client = kubeapi.Api(ctx.host, ctx.api.identity, retry_s=5)
    try:
        nodes = client.list(kubeapi.path_of("Node"))
        leases = {
            one["metadata"]["name"]: one for one in client.list(kubeapi.path_of("Lease", namespace="kube-node-lease"))
        }
    except KbError as error:
        call.report.note(f"which other nodes wait is not known: {error}")
        return
    silent = [node for node in nodes if _is_silent(ctx, node, lease=leases.get(node["metadata"]["name"]))]
    line = _LineForWorkers(ctx, client)
    for node in silent:
        name = str(node["metadata"]["name"])
        if "node-role.kubernetes.io/control-plane" not in (node["metadata"].get("labels") or {}):
            yield Waiting(name, "worker", "its kubelet does not report", line.make())
        elif why := _why_expired(ctx, node):
            yield Waiting(name, "control plane", why, Secret(f"{join_command.KB} certs recover"))


def _is_silent(ctx: Run, node: dict[str, Any], *, lease: Optional[dict[str, Any]]) -> bool:
    if node["metadata"]["name"] == ctx.config.node.name:
        return False
    has_reported = lease is None or wait_node.is_renewed(lease, ctx.host.now() - recovered_certs.RECENT)
    return not has_reported or probes.node_condition(node)[0] == "Unknown"


def _why_expired(ctx: Run, node: dict[str, Any]) -> str:
    """Why another control plane waits, by what its API server presents; "" if that is valid: its kubelet is about to report."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    address = next((str(one.get("address")) for one in addresses if one.get("type") == "InternalIP"), "")
    port = ctx.config.local_api_endpoint.bind_port
    pem = ctx.host.served_cert(address, port) if address else None
    if pem is None:
        return f"its API server does not answer at {join_host_port(address, port)}"
    shown = certificates.parse_shown(pem)
    is_over = bool(shown) and certificates.is_expired(shown[0], ctx.host.now())
    return "its certificates have expired" if is_over else ""


class _LineForWorkers:
    """The line for nodes that need a token; the token is made when the first line is."""

    def __init__(self, ctx: Run, client: Api) -> None:
        self.ctx, self.client = ctx, client
        self._line = Secret("")

    def make(self) -> Secret:
        if not self._line:
            token = types.BootstrapToken(
                token_text.generate_token(), "for kb certs recover", ttl_s=TOKEN_S, usages=("authentication",)
            )
            token_command.create_token(self.client, token, now=self.ctx.host.now())
            pin = ca_pins.ca_cert_hash(self.client.identity.tls.ca.pem if self.client.identity.tls.ca else "")
            self._line = Secret(
                f"{join_command.KB} certs recover --token {token.token.reveal()} --discovery-token-ca-cert-hash {pin}"
            )
        return self._line


# ---- output


def _print(launch: Launch, outcome: Outcome) -> None:
    call = launch.call
    if call.output != "text":
        call.print_value(_describe(launch, outcome))
        return
    for line in _tell(launch, outcome):
        call.tell(line)


def _tell(launch: Launch, outcome: Outcome) -> Iterator[str]:
    done = outcome.done
    if not outcome.expired and done is None:
        yield f"nothing has expired on {outcome.node}"
    for one in outcome.expired:
        done_so = "replaced by that in ca.crt" if one.name == expired_certs.AUTHORITY else "issued anew"
        verb = f"would be {done_so}" if launch.is_dry else done_so
        yield f"{one.name} ({one.path}) expired at {one.ended:%Y-%m-%d %H:%M} UTC: {verb}"
    if launch.is_dry and outcome.expired:
        yield "the kubelet would be restarted; nothing was changed"
    if done is not None:
        yield from _tell_done(outcome, done)
    for waiting in outcome.waiting:
        yield f"\n{waiting.node} ({waiting.role}): {waiting.why}. On it, as root:"
        yield f"  {waiting.line.reveal()}"


def _tell_done(outcome: Outcome, done: recovered_certs.Recovered) -> Iterator[str]:
    restarted = "".join(f", {name}" for name in done.restarted)
    yield f"restarted: kubelet{restarted}"
    for name, why in done.left.items():
        yield f"{name} was not restarted ({why}): restart it, or it goes on with its former certificate"
    if done.former is not None:
        yield f"The former files are in {done.former}"
    if done.gap is None:
        yield f"node {outcome.node} is Ready"
        return
    gap = done.gap
    yield (
        f"\nThis node has done its part. etcd has no quorum yet: {gap.needed} of {gap.voters} members are needed, and these do not take "
        "part. On each of them, as root, until one says that its node is Ready:"
    )
    for member in gap.missing:
        yield f"  {member.name} ({member.address}), which {member.why}: {join_command.KB} certs recover"


def _describe(launch: Launch, outcome: Outcome) -> dict[str, Any]:
    done = outcome.done
    gap = done.gap if done is not None else None
    lines = [
        {"node": one.name, "address": one.address, "role": "control plane", "why": one.why, "command": f"{join_command.KB} certs recover"}
        for one in (gap.missing if gap else ())
    ]  # fmt: skip
    lines += [
        {"node": one.node, "role": one.role, "why": one.why, "command": one.line.reveal()} for one in outcome.waiting
    ]
    return {
        "node": outcome.node,
        "dryRun": launch.is_dry,
        "expired": [
            {"name": one.name, "file": str(one.path), "expired": moments.show(one.ended)} for one in outcome.expired
        ],
        "recovered": list(done.names) if done is not None else [],
        "restarted": ["kubelet", *done.restarted] if done is not None else [],
        "notRestarted": dict(done.left) if done is not None else {},
        "formerFiles": str(done.former) if done is not None and done.former else None,
        "hasQuorum": gap is None,
        "nodeReady": gap is None if done is not None else None,
        "next": lines,
    }
