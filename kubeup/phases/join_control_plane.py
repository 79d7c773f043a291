"""The phases of join that only control plane nodes have: control-plane-prepare/*, check-etcd, etcd-join,
control-plane-join/*, wait-control-plane.

Mirrors cmd/kubeadm/app/cmd/phases/join/{preflight,controlplaneprepare,checketcd,etcdjoin,controlplanejoin,
waitcontrolplane}.go. Unlike kubeadm, kb makes this node a voting member of etcd before it writes the API server's
manifest. So the API server never starts against an etcd that cannot serve it, and no container ends up in the kubelet's
back-off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.engine.compare import make_so
from kubeup.engine.items import Issued
from kubeup.engine.plan import Ground, Plan, Proof
from kubeup.engine.run import Caller, Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.lazy_modules import lazily
from kubeup.machine.waiting import wait_for
from kubeup.phases import certs, control_plane, kubeconfigs, kubelet_start
from kubeup.phases.soak_static_pods import soak
from kubeup.phases.wait_control_plane import wait_for_control_plane, wait_for_controllers
from kubeup.phases.waits import Wait, nudge_kubelet, wait_until

with lazily:
    from kubeup.cluster import amid_rotation, api, etcd, etcd_join, lease, shared_certs
    from kubeup.node import ca_pins, cert_specs, crictl, kubeconfig, kubelet, pki, static_pods

if TYPE_CHECKING:
    from kubeup.config.types import ExternalEtcd

QUEUE = "kb-control-plane-join"
"""The Lease that serializes control plane nodes that join at the same time: etcd accepts one learner at a time."""
QUEUE_POLL_S = 0.2
SILENT_S = 0.4
"""How long a voting member may take to serve before its container is restarted. A member that serves takes a few hundredths of a
second, and one that does not keeps the first probe waiting for longer than this (etcd.READ_S), so one probe decides."""
JOINED = ("admin", "controller-manager", "scheduler")
"""The kubeconfigs of a joining control plane node, besides kubelet.conf. Only the first node has super-admin.conf."""


def has_admin(ctx: Run) -> bool:
    """Whether this is a control plane node that has its admin.conf, so that kb can use it."""
    return ctx.config.is_control_plane and ctx.host.exists(ctx.paths.admin_conf)


# ---- preflight


def check_prepared(ctx: Run) -> None:
    """Check the prerequisites in the cluster and the shared files before anything is written on this node.

    Raises ClusterError (no-control-plane-endpoint, certs-secret-missing, those of shared_certs.plan_downloads,
    certs-of-another-cluster, rotation-under-way), HostError (shared-files-missing).
    """
    cluster = ctx.config.cluster
    if not cluster.control_plane_endpoint:
        raise ClusterError(
            "the cluster has no controlPlaneEndpoint",
            cause="its nodes know one API server by its own address, so a second one would be of no use to them",
            remedy="give it a stable name first, on its control plane: kb reconfigure endpoint NAME:PORT",
            code="no-control-plane-endpoint",
        )
    if ctx.config.certificate_key and not _shared_files_are_here(ctx):
        ctx.found.shared_files = _open_shared_files(ctx)
    elif missing := _missing_shared_files(ctx):
        raise HostError(
            f"{len(missing)} of the files that control planes share are not on this node",
            cause=f"there is no {', '.join(str(path) for path in missing)}, and no --certificate-key was given",
            remedy="take the join command with the key, on a control plane: kb token create --print-join-command "
            "--control-plane; or copy the files from there",
            code="shared-files-missing",
        )
    refuse_amid_rotation(ctx)


def refuse_amid_rotation(ctx: Run, files: Sequence[shared_certs.SharedFile] = ()) -> None:
    """Look, once in a run, whether the shared files let this node become a control plane while a key of theirs is rotated. files: those that were
    downloaded; the others are on this node. Raises ClusterError (rotation-under-way, rotation-unreadable)."""
    if ctx.found.rotation is not None:
        return
    coming = {file.path: file.data.reveal() for file in files}

    def read(path: Path) -> str:
        return coming.get(path) or (ctx.host.read_text(path) if ctx.host.exists(path) else "")

    one = amid_rotation.look(ctx.api)
    signs_with_ca = pki.signs_with_ca(ctx.config.cluster) and bool(read(ctx.paths.pki / "ca.key"))
    amid_rotation.refuse_control_plane(one, ctx.paths, read=read, signs_with_ca=signs_with_ca)
    ctx.found.rotation = (one,)


def start_making_keys(ctx: Run) -> None:
    """Generate the keys in the background while preflight checks the node and pulls images."""
    missing = [spec for spec in _leaves(ctx) if not ctx.host.exists(spec.key_path(ctx.paths))]
    confs = [name for name in (*JOINED, "kubelet") if not ctx.host.exists(ctx.paths.kubeconfig(f"{name}.conf"))]
    certs.start_making_keys(ctx, wanted=len(missing) + len(confs))


def _leaves(ctx: Run) -> list[cert_specs.CertSpec]:
    return [spec for spec in cert_specs.wanted_certs(ctx.config.cluster) if not spec.is_ca]


def _missing_shared_files(ctx: Run) -> list[Path]:
    """The shared files that are missing on this node. CA keys do not count: a CA without its key may be external, which is
    checked with the certificates."""
    shared = shared_certs.shared_files(ctx.paths, ctx.config.cluster)
    return [path for name, path in shared.items() if not name.endswith("ca.key") and not ctx.host.exists(path)]


def _shared_files_are_here(ctx: Run) -> bool:
    shared = shared_certs.shared_files(ctx.paths, ctx.config.cluster).values()
    return all(ctx.host.exists(path) for path in shared)


def _open_shared_files(ctx: Run) -> Any:
    secret = ctx.api.get(api.path_of("Secret", shared_certs.SECRET_NAME, namespace="kube-system"))
    if secret is None:
        raise ClusterError(
            f"the cluster has no Secret kube-system/{shared_certs.SECRET_NAME}",
            cause="the certificates were never uploaded, or more than two hours ago: they are deleted then",
            remedy="upload them again, on a control plane: kb token create --print-join-command --control-plane, and use "
            "the command that is printed",
            code="certs-secret-missing",
        )
    files = shared_certs.plan_downloads(secret, ctx.config.certificate_key, paths=ctx.paths, cluster=ctx.config.cluster)
    refuse_amid_rotation(ctx, files)
    ca = next((file for file in files if file.path == ctx.paths.pki / "ca.crt"), None)
    trusted = set(ca_pins.ca_cert_hashes(ctx.config.joined.ca_pem))
    if ca is not None and trusted and not trusted >= set(ca_pins.ca_cert_hashes(ca.data.reveal())):
        raise ClusterError(
            "the uploaded certificates are those of another cluster",
            cause=f"their CA has the public key {', '.join(ca_pins.ca_cert_hashes(ca.data.reveal()))}, this cluster's "
            f"{', '.join(sorted(trusted))}",
            remedy="upload them again, on a control plane: kb init phase upload-certs --upload-certs",
            code="certs-of-another-cluster",
        )
    return files


# ---- control-plane-prepare


def plan_shared_certs(run: Run) -> Plan:
    """The shared CAs and keys, from the Secret that the certificate key decrypts."""
    files = tuple(shared_certs.shared_files(run.paths, run.config.cluster).values())

    def judge(_: Ground) -> str:
        missing = _missing_shared_files(run)
        return f"{missing[0]} is not there" if missing else ""

    def issue(ground: Ground) -> None:
        _download_certs(replace(run, host=ground.host))

    return Plan(Issued("files that control planes share", files, {}, judge=judge, issue=issue))


def _download_certs(ctx: Run) -> None:
    files, ctx.found.shared_files = ctx.found.shared_files, None
    if files is None:
        if not ctx.config.certificate_key or _shared_files_are_here(ctx):
            ctx.report.detail("the shared certificates are on this node already")
            return
        files = _open_shared_files(ctx)
    for file in files:
        _refuse_another_content(ctx, file)
        ctx.host.write_file(file.path, file.data.reveal(), mode=file.mode)


def _refuse_another_content(ctx: Run, file: shared_certs.SharedFile) -> None:
    """Never overwrite a file that differs: it may be all that is left of another cluster. Raises HostError (shared-file-differs)."""
    if not ctx.host.exists(file.path) or ctx.host.read_text(file.path) == file.data.reveal():
        return
    raise HostError(
        f"{file.path} exists and does not belong to this cluster",
        cause="it differs from what the cluster's control planes share",
        remedy=f"if nothing needs it any more, move it away: mv {file.path} {file.path}.old; then run the command again",
        code="shared-file-differs",
    )


def plan_certs(run: Run) -> Plan:
    """All leaf certificates, with this node's names and addresses. Never creates a CA.

    Raises when applied: HostError (shared-files-missing, and those of a CA that cannot sign)."""

    def check(_: Ground) -> None:
        _require_shared_files(run)
        refuse_amid_rotation(run)
        start_making_keys(run)
        for name in dict.fromkeys(spec.signer for spec in _leaves(run)):
            certs.warn_of_ca(run, name)

    leaves = (certs.issued_cert(run, spec.name) for spec in _leaves(run))
    return Plan(Proof("the authorities that control planes share", wait=check), *leaves)


def _require_shared_files(ctx: Run) -> None:
    if missing := _missing_shared_files(ctx):
        raise HostError(
            f"{missing[0]} is not there",
            cause="a further control plane works with the authorities of the first; it makes none",
            remedy="kb join phase control-plane-prepare/download-certs with --certificate-key, or copy them here",
            code="shared-files-missing",
        )


def plan_kubeconfigs(run: Run) -> Plan:
    """The kubeconfigs JOINED, and kubelet.conf unless the CA is external. The kubelet's certificate is signed here, as on the
    first node, so that it does not wait for an API server that itself needs the kubelet. From here on, kb uses admin.conf."""

    def check(_: Ground) -> None:
        refuse_amid_rotation(run)
        start_making_keys(run)

    start = Proof("keys", wait=check)
    confs = [kubeconfigs.issued_kubeconfig(run, name) for name in JOINED]
    if _may_sign(run):
        kubelets = kubeconfigs.issued_kubeconfig(run, "kubelet")
        issue = lambda ground: _write_kubelet_identity(replace(run, host=ground.host))  # noqa: E731
        confs.append(replace(kubelets, issue=issue))
    return Plan(start, *confs, Proof("admin.conf", wait=lambda _: run.caller.become("admin")))


def _may_sign(ctx: Run) -> bool:
    return not pki.is_external_ca(ctx.host, ctx.paths)


def _write_kubelet_identity(ctx: Run) -> None:
    """Write kubelet.conf as TLS bootstrap leaves it: it refers to the file that the kubelet rotates."""
    path = ctx.paths.kubeconfig("kubelet.conf")
    if kubeconfig.is_kubeconfig_valid(ctx.host, ctx.paths, name="kubelet") and ctx.host.exists(_client_pem(ctx)):
        return
    kubeconfigs.ensure(ctx, "kubelet")
    found = kubeconfig.read_kubeconfig(ctx.host.read_text(path), host=ctx.host, path=path)
    current = _client_pem(ctx)
    dated = current.with_name(f"kubelet-client-{ctx.host.now():%Y-%m-%d-%H-%M-%S}.pem")
    ctx.host.make_dir(current.parent, mode=0o750)
    ctx.host.write_file(dated, found.client_cert_pem + found.client_key_pem.reveal(), mode=0o600)
    ctx.host.symlink(current, str(dated))
    kubelet_start.name_rotated_cert(ctx)


def _client_pem(ctx: Run) -> Path:
    return Path(kubelet.find_rotated_cert(ctx.config))


def plan_components(run: Run) -> Plan:
    """The API server, controller-manager and scheduler. Raises when applied: ClusterError (rotation-under-way)."""
    check = Proof("no rotation in the way", wait=lambda _: refuse_amid_rotation(run))
    return Plan(check) + control_plane.plan_components(run)


# ---- etcd


def check_etcd(ctx: Run) -> Outputs:
    """Check before the kubelet starts that etcd serves and all voting members are up. Raises ClusterError
    (etcd-no-quorum, etcd-member-down, etcd-unreachable, etcd-name-taken)."""
    external = ctx.config.cluster.external_etcd
    if external is not None:
        _check_external_etcd(ctx, external)
    if ctx.config.cluster.local_etcd is None:
        return None
    client = _make_client(ctx)
    members = etcd_join.list_members(client)
    etcd.find_place(members, name=ctx.config.node.name, peer_url=_peer_url(ctx), has_data=_has_data(ctx))
    own = etcd.find_by_peer_url(members, _peer_url(ctx))
    others = [member for member in members if member is not own]
    error = etcd.judge_members(others, etcd.probe_members(client, others))
    if error:
        raise error
    return None


def _check_external_etcd(ctx: Run, external: ExternalEtcd) -> None:
    """Check that this node can use the external etcd: without access, the API server would exit again and again, and log only a
    timeout. Raises ClusterError (etcd-unreachable) if no endpoint serves this node."""
    trouble = etcd.probe_external(ctx.host, external)
    away = [f"{url}: {text}" for url, text in trouble.items() if text]
    if away and len(away) == len(trouble):
        raise ClusterError(
            "the external etcd does not serve this machine",
            cause="; ".join(away),
            remedy=f"check the way there (firewalls, the certificates of etcd.external): curl -vk {next(iter(trouble))}/health; "
            "then run the command again",
            code="etcd-unreachable",
        )
    for line in away:
        ctx.report.warn(f"an endpoint of the external etcd does not serve this machine, {line}")


def _make_client(ctx: Run) -> etcd.Etcd:
    pods = ctx.api.list(api.path_of("Pod", "", namespace="kube-system"), label="component=etcd,tier=control-plane")
    urls = etcd.client_urls_of_pods(pods)
    if not urls:
        raise ClusterError(
            "the cluster shows no etcd member",
            cause="no pod in kube-system with the label component=etcd has an annotation with its client URL",
            remedy="look at them: kubectl -n kube-system get pods -l component=etcd -o wide",
            code="etcd-unreachable",
        )
    own = static_pods.etcd_client_url(ctx.config.local_api_endpoint.advertise_address)
    # this node's own etcd comes last: it serves nobody until it has joined
    ordered = [*(url for url in urls if url != own), *(url for url in urls if url == own)]
    return etcd.Etcd(ctx.host, ordered, tls=etcd.read_client_tls(ctx.host, ctx.paths))


def _peer_url(ctx: Run) -> str:
    return static_pods.etcd_peer_url(ctx.config.local_api_endpoint.advertise_address)


def _has_data(ctx: Run) -> bool:
    return ctx.host.is_dir(control_plane.etcd_data_dir(ctx) / "member")


def join_etcd(ctx: Run) -> Outputs:
    """Become a member of etcd, one node at a time: add a learner, start it, wait until it is in sync, promote it.

    Raises ClusterError: join-queue, etcd-busy, etcd-member-down, etcd-no-quorum, etcd-unreachable, etcd-name-taken,
    not-healthy; HostError (etcd-data-foreign). A learner that was not promoted is removed again.
    """
    if ctx.config.cluster.local_etcd is None:
        return None
    client = _make_client(ctx)
    with _turn(ctx) as turn:
        place = etcd.find_place(
            etcd_join.list_members(client), name=ctx.config.node.name, peer_url=_peer_url(ctx), has_data=_has_data(ctx)
        )
        if place.action == "replace" and place.member is not None:
            ctx.report.note(f"etcd still listed this node's former member {place.member.describe()}: it was removed")
            etcd_join.remove_former(client, place.member)
        is_new = place.action in ("add", "replace")
        if is_new and _has_data(ctx):
            _clear_former_data(ctx)
        ctx.promises.register(_membership(ctx, client))
        members = _announce(ctx, client, turn=turn) if is_new else etcd_join.list_members(client)
        try:
            rows = etcd.plan_initial_cluster(members, name=ctx.config.node.name, peer_url=_peer_url(ctx))
            make_so(control_plane.plan_etcd_member(ctx, rows), ctx)
            _wait_for_vote(ctx, client, turn=turn)
            _wait_until_it_serves(ctx, turn)
        except BaseException as error:
            _take_back(ctx, client, error=error)
            raise
    return Results(etcd_members=[member.name or ctx.config.node.name for member in members])


def _membership(run: Run, client: etcd.Etcd) -> dict[str, str]:
    own = static_pods.etcd_client_url(run.config.local_api_endpoint.advertise_address)
    return etcd_join.promise(_peer_url(run), [url for url in client.endpoints if url != own])


@contextlib.contextmanager
def _turn(ctx: Run) -> Iterator[lease.Lease]:
    """Hold the Lease QUEUE during the block, or until the new member serves again (wait_for_instance). Raises ClusterError (join-queue)."""
    turn = lease.Lease(ctx.api, QUEUE, ctx.config.node.name)
    _wait_for_turn(ctx, turn)
    try:
        yield turn
    finally:
        if ctx.found.turn is None:
            _give_back(turn)


def _give_back(turn: lease.Lease) -> None:
    with contextlib.suppress(KbError):
        turn.give_back()


def _wait_for_turn(ctx: Run, turn: lease.Lease) -> None:
    holder = ""

    def look() -> str:
        nonlocal holder
        before, holder = holder, turn.try_take(ctx.host.now(), ctx.host.monotonic())
        if holder and holder != before:
            ctx.report.note(f"control plane {holder} is joining: waiting until it has finished")
        return f"control plane {holder} joins first" if holder else ""

    def failure(_: str, elapsed: float) -> ClusterError:
        return ClusterError(
            f"control plane {holder} has been joining for {elapsed:.0f} s",
            cause=f"it holds Lease kube-system/{QUEUE} and renews it: etcd takes one new member at a time",
            remedy=f"see what it waits for, on {holder}; then run the command again",
            code="join-queue",
        )

    limit = 2.0 * ctx.config.timeouts.etcd_api_call_s
    tell = ctx.report.waiting
    wait_for(ctx.host, look, goal="etcd", timeout_s=limit, tell=tell, failure=failure, poll_s=QUEUE_POLL_S)


def _clear_former_data(ctx: Run) -> None:
    """Remove the data of a former member that is not in the member list any more: etcd would refuse to start with it, and the
    cluster has all of it. Raises HostError (etcd-data-foreign) if kb did not create it."""
    folder = control_plane.etcd_data_dir(ctx) / "member"
    manifest = ctx.paths.manifest("etcd")
    if str(manifest) not in ctx.owned_paths:
        raise HostError(
            f"{folder} holds the data of an etcd member that does not belong to this cluster",
            cause="no member of the cluster has this node's address, and kb did not make the data",
            remedy=f"if nobody needs it, move it away: mv {folder} {folder}.old; then run the command again",
            code="etcd-data-foreign",
        )
    ctx.host.remove(manifest)
    ctx.host.remove_tree(folder)
    ctx.report.note("this node's former etcd member is not in the list any more: its data here was removed")


def _announce(ctx: Run, client: etcd.Etcd, *, turn: lease.Lease) -> tuple[etcd.Member, ...]:
    """Add this node as a learner. Returns all members."""

    def keep() -> None:
        turn.keep(ctx.host.now(), ctx.host.monotonic())

    return etcd_join.add_learner(client, _peer_url(ctx), tell=ctx.report.waiting, keep=keep)


def _wait_for_vote(ctx: Run, client: etcd.Etcd, *, turn: lease.Lease) -> None:
    """Wait until this node's etcd runs and is a voting member."""

    def look() -> str:
        turn.keep(ctx.host.now(), ctx.host.monotonic())
        return etcd_join.try_promote(client, _peer_url(ctx))

    limit = ctx.config.timeouts.etcd_api_call_s
    took = Wait(ctx, limit, "etcd member", ("etcd",), nudge=lambda: nudge_kubelet(ctx, ("etcd",))).until(look)
    ctx.report.detail(f"etcd member {ctx.config.node.name} has its vote after {took:.1f} s")


def _wait_until_it_serves(ctx: Run, turn: lease.Lease) -> None:
    """Wait until the new member answers: an API server whose etcd is silent for longer than 20 s exits, and is delayed by the kubelet's back-off
    (dialTimeout of apiserver, storagebackend/factory/etcd3.go).

    A new member serves only after it has published its name in the member list. If the entry arrived with the snapshot that
    it started from, its request times out first (7 s by etcd's defaults; etcdserver publishV3). After a restart it serves at
    once, so its container is restarted, once, and is up again before an API server that is started from here on has begun to ask it."""
    own_url = static_pods.etcd_client_url(ctx.config.local_api_endpoint.advertise_address)
    client = etcd.Etcd(ctx.host, (own_url,), tls=etcd.read_client_tls(ctx.host, ctx.paths))
    started, woken = ctx.host.monotonic(), False

    def look() -> str:
        nonlocal woken
        turn.keep(ctx.host.now(), ctx.host.monotonic())
        trouble = client.probe_read(own_url)
        if trouble and not woken and ctx.host.monotonic() - started > SILENT_S:
            woken = True
            if _restart_etcd_container(ctx):
                ctx.found.turn = turn  # of two members one is away now: nothing can be written for a moment
                return ""
        return trouble

    wait_until(ctx, look, goal="etcd member", timeout_s=ctx.config.timeouts.etcd_api_call_s)


def _restart_etcd_container(ctx: Run) -> bool:
    """Whether it was ended, so that the kubelet starts it again at once."""
    if not ctx.host.which("crictl"):
        return False
    is_ended = False
    socket = ctx.config.node.cri_socket
    found = ctx.host.query(crictl.crictl_argv(socket, "ps", "-q", "--name", "^etcd$", "--state", "running"))
    for container in found.stdout.split() if found.ok else ():
        ctx.report.detail("etcd has its vote and does not serve yet: restarting its container")
        # kill it: it does not react to SIGTERM in this state, and its WAL survives even a power loss
        is_ended |= ctx.host.run(crictl.crictl_argv(socket, "stop", "--timeout", "0", container)).ok
    return is_ended


def _take_back(ctx: Run, client: etcd.Etcd, *, error: BaseException) -> None:
    """After a failed join, remove a learner that was not promoted, with its manifest and data: it would block the next join. A
    voting member stays. The outcome is added to the details of `error`."""
    try:
        members = etcd_join.list_members(client)
        own = etcd.find_by_peer_url(members, _peer_url(ctx))
        if own is not None and not own.is_learner:
            return
        ctx.host.remove(ctx.paths.manifest("etcd"))
        with contextlib.suppress(HostError):
            # a kubelet that could not create the pod's sandbox never drops the pod, nor starts another of that name
            kubelet_start.restart_kubelet(ctx)
        if own is not None:
            client.remove(own)
        ctx.promises.withdraw(_membership(ctx, client))
        ctx.host.remove_tree(control_plane.etcd_data_dir(ctx) / "member")
        rest = [member for member in members if member is not own]
        serving = len(rest) - len(etcd.probe_members(client, rest))
        text = f"its member was taken out of etcd's list again: the cluster is as it was ({serving} of {len(rest)} members serve)"
    except KbError as second:
        text = f"its member is still in etcd's list ({second}): kb etcd members shows it, and the next run continues with it"
    if isinstance(error, KbError):
        error.details = (*error.details, text)
    ctx.report.note(text)


def is_etcd_member(ctx: Run) -> bool:
    if ctx.config.cluster.local_etcd is None:
        return True
    if not ctx.host.exists(ctx.paths.manifest("etcd")):
        return False
    try:
        own = etcd.find_by_peer_url(_make_client(ctx).list_members(), _peer_url(ctx))
    except KbError:
        return False
    return own is not None and own.has_started and not own.is_learner


# ---- wait-control-plane, verify


def at_own_server(ctx: Run) -> Run:
    """The same run, but its client uses this node's own API server."""
    own = ctx.api.with_server(kubeconfig.local_url(ctx.config))
    return replace(ctx, caller=Caller.by(own))


def wait_for_instance(ctx: Run) -> Outputs:
    """Wait for the kubelet and for this node's API server, controller-manager and scheduler."""
    if ctx.found.turn is not None:
        _give_back(ctx.found.turn)
    own = at_own_server(ctx)
    wait_for_control_plane(own)
    wait_for_controllers(own)
    return None


def instance_is_healthy(ctx: Run) -> bool:
    from kubeup.phases.wait_control_plane import control_plane_is_healthy

    return control_plane_is_healthy(at_own_server(ctx))


def soak_instance(ctx: Run) -> None:
    """Watch this node's static pods for the soak time, as on the first control plane node."""
    if ctx.config.kb.soak_s:
        soak(ctx, ctx.config.node.name)


ETCD_CHECK = Act(do=check_etcd, live="cluster")
ETCD_MEMBER = Act(
    do=join_etcd,
    probe=is_etcd_member,
    spec=lambda run: control_plane.plan_etcd(run).fingerprint(),
    live="cluster",
)
INSTANCE = Act(do=wait_for_instance, probe=instance_is_healthy, live="cluster")
