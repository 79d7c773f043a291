"""The phases of every join: preflight, kubelet-start, kubelet-wait-bootstrap, pod-network, verify. For those of control plane
nodes only, see phases/join_control_plane.py.

Discovery runs before the first phase; its result is in the configuration (config/load_join.py). Mirrors
cmd/kubeadm/app/cmd/phases/join/{preflight,kubelet}.go. Unlike kubeadm, kb reports the state of the kubelet's certificate
signing request, and verifies the node before it reports it as joined.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from kubeup.config.types import NodeConfig
from kubeup.engine.compare import make_so
from kubeup.engine.items import File, Folder
from kubeup.engine.plan import Item, Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import wait_for
from kubeup.phases import join_control_plane, kubelet_start, preflight
from kubeup.phases.mark_control_plane import plan_socket
from kubeup.phases.verify_node import wait_for_ready, warn_of_serving_request
from kubeup.phases.wait_dns import find_pressure, free_waiting_pods
from kubeup.phases.wait_pod_ways import plan_ways, wait_for_pod_ways
from kubeup.phases.waits import End, Wait, is_word_only
from kubeup.secret import Secret
from kubeup.trouble import advise

with lazily:
    from kubeup.cluster import amid_rotation, api, membership, node_name, probes, signing_request
    from kubeup.config import choose
    from kubeup.diagnosis import chain, container_trouble, kubelet_trouble
    from kubeup.diagnosis.checks import facts

LOOK_AFTER_S = 4
LOOK_EVERY_S = 3
FOREIGN_NETWORK_S = 30
"""How long to wait for Ready if the pod network is not kb's: it may be deployed later."""
DNS_TIMEOUT_S = 60


def _kubelet_conf(ctx: Run) -> Path:
    return ctx.paths.kubernetes / "kubelet.conf"


def _bootstrap_conf(ctx: Run) -> Path:
    return ctx.paths.kubernetes / "bootstrap-kubelet.conf"


def _is_member(ctx: Run) -> bool:
    """Whether the kubelet has its own credentials already, so that no bootstrap is needed."""
    if ctx.config.is_control_plane:
        return membership.find_member_access(ctx.host, _kubelet_conf(ctx)) is not None
    return not ctx.config.joined.bootstrap_kubeconfig


# ---- preflight


def run_checks(ctx: Run, *, fix: Callable[[Run], None] = lambda run: preflight.fix_runtime(run)) -> Outputs:
    """Check a joining node, and that its name is free. Raises PreflightError, ClusterError (node-name-taken)."""
    is_control_plane = ctx.config.is_control_plane
    if is_control_plane:
        join_control_plane.check_prepared(ctx)
        join_control_plane.start_making_keys(ctx)
    elif ctx.config.joined.ca_pem.count("-----BEGIN CERTIFICATE-----") > 1:  # as cluster-info tells them in a rotation
        ctx.found.rotation = (amid_rotation.look(ctx.api),)
    if ctx.config.kb.runtime.fix:
        fix(ctx)
    if ctx.found.programs_are_planned:
        ctx.report.note("the runtime and the kubelet are not here yet: this machine is checked when they are")
        return None
    owned = ctx.owned_paths
    # the kubelet writes kubelet.conf at any time, perhaps between two runs of kb
    extra = [str(_kubelet_conf(ctx))] if str(ctx.paths.kubelet_config) in owned else []
    preflight.look_at_node(ctx, facts.JOIN, batches=(facts.ROOT, facts.NODE, facts.IMAGES), owned=extra)
    if not _is_member(ctx):
        _check_name(ctx)
    if is_control_plane:
        preflight.look_at_node(ctx, facts.JOIN_CONTROL_PLANE, batches=(facts.NODE, facts.IMAGES))
    return None


def foretell_checks(ctx: Run) -> Outputs:
    """Dry run of run_checks: the runtime is left unchanged."""
    return run_checks(ctx, fix=preflight.foretell_fix)


def _checked(ctx: Run) -> NodeConfig:
    """The configuration without the credentials for joining: they do not describe the node, and are gone after the join."""
    return dataclasses.replace(ctx.config, join=None, certificate_key=Secret(""))


def _check_name(ctx: Run) -> None:
    found = ctx.api.get(api.path_of("Node", ctx.config.node.name))
    interfaces = choose.read_interfaces(ctx.host) or []
    own = [str(address) for interface in interfaces for address in interface.addresses]
    note = node_name.check_node_name(found, own, now=ctx.host.now())
    if note:
        ctx.report.note(note)


# ---- kubelet-start


@frozen
class JoiningKubelet(kubelet_start.Kubelet):
    """A running kubelet is kept only if the node is a member already, or its certificate signing request is still open."""

    def is_running(self, run: Run) -> bool:
        return super().is_running(run) and (_is_member(run) or _is_asking(run))


def plan_kubelet(run: Run) -> Plan:
    """The kubelet, with the files that it needs to request its certificate. A worker registers with its taints; a control plane
    node is marked once it works, and uses the CA that control plane nodes share."""
    is_worker = not run.config.is_control_plane
    shared = kubelet_start.shared_kubelet_config(run)
    files = {
        **kubelet_start.render_kubelet_files(run, shared, register_with_taints=is_worker),
        **kubelet_start.render_unit_files(run),
    }
    ca_pem, ca_cert = run.config.joined.ca_pem, Path(run.config.joined.ca_cert_path)
    once: list[Item] = []
    if is_worker:
        files.update(dict.fromkeys((ca_cert, *_client_ca_files(run)), ca_pem))
    else:  # control plane nodes share this file; keep it if it exists
        once.append(File(ca_cert, ca_pem, keeps=lambda found, _: found, keeps_rights=True))
    if not _is_member(run):
        token = run.config.joined.bootstrap_kubeconfig.reveal()
        once.append(File(_bootstrap_conf(run), token, mode=0o600, is_secret=True))
    running = kubelet_start.plan_running(run, files, shared=shared, ca_pem=ca_pem, guard=JoiningKubelet(), once=once)
    return Plan(Folder(run.paths.manifests)) + running


def _client_ca_files(ctx: Run) -> tuple[Path, ...]:
    """The clientCAFile of the cluster's kubelets. It is below the cluster's certificatesDir, which may differ from the directory
    where a join puts the CA. The kubelet does not start without this file."""
    authentication = ctx.config.kubelet.get("authentication") or {}
    told = (authentication.get("x509") or {}).get("clientCAFile") if isinstance(authentication, dict) else None
    is_path = isinstance(told, str) and told.startswith("/")
    return (Path(str(told)),) if is_path else ()


def _is_asking(ctx: Run) -> bool:
    """Whether the kubelet waits for a certificate signing request that may still succeed. After a restart it would create a new
    one, and an approval of the old one would be lost. A denied or deleted request never succeeds."""
    try:
        request = signing_request.read_signing_request(_bootstrap_api(ctx), ctx.config.node.name)
    except (Unreachable, api.ApiRefused):
        return False
    return request.state in ("pending", "approved", "signed")


# ---- kubelet-wait-bootstrap


def wait_for_bootstrap(ctx: Run) -> Outputs:
    """Wait until the kubelet has its certificate, then remove the bootstrap credentials.

    Raises ClusterError: csr-not-sent, csr-pending, csr-denied, csr-failed, csr-not-signed, csr-unknown,
    kubelet-conf-missing, not-healthy.
    """
    host = ctx.host
    ctx.promises.expect([_kubelet_conf(ctx)])
    if ctx.config.is_control_plane and _is_member(ctx):
        host.remove(_bootstrap_conf(ctx))
        return None  # its certificate was signed here; it can be tried only once its API server runs
    wait_for_identity(ctx)
    host.remove(_bootstrap_conf(ctx))
    # from here on, kb uses the node's own credentials
    ctx.caller.become("admin" if join_control_plane.has_admin(ctx) else "kubelet")
    if not ctx.config.is_control_plane:
        make_so(plan_socket(ctx), ctx)
    return None


def wait_for_identity(ctx: Run) -> None:
    """Wait until the API server accepts the kubelet as the node's. The run calls as whoever may read signing requests.

    Raises ClusterError: csr-not-sent, csr-pending, csr-denied, csr-failed, csr-not-signed, csr-unknown, kubelet-conf-missing, not-healthy.
    """
    seen, last, told, looked = "the kubelet starts", "", "", 0.0

    def meanwhile(_: str, elapsed: float) -> None:
        nonlocal seen, last, told, looked
        if elapsed > LOOK_AFTER_S and elapsed - looked > LOOK_EVERY_S:
            trouble, looked = _find_trouble(ctx, elapsed), elapsed
            is_lasting, last, seen = trouble.code == last, trouble.code, trouble.what
            if is_lasting and trouble.code != told:  # seen twice, so it is not a passing state
                told = trouble.code
                ctx.report.note(f"{advise(trouble)} (still waiting)")

    wait_for(
        ctx.host,
        lambda: "" if _has_identity(ctx) else seen,
        goal="TLS bootstrap",
        timeout_s=ctx.config.timeouts.tls_bootstrap_s,
        tell=ctx.report.waiting,
        failure=lambda _, elapsed: _find_trouble(ctx, elapsed),
        meanwhile=meanwhile,
    )


def is_bootstrapped(ctx: Run) -> bool:
    return _is_member(ctx) and not ctx.host.exists(_bootstrap_conf(ctx))


def _has_identity(ctx: Run) -> bool:
    access = membership.read_member_access(ctx.host, _kubelet_conf(ctx))
    if access is None:
        return False
    try:
        return membership.is_accepted(ctx.host, access)
    except ClusterError:
        return False


def _find_trouble(ctx: Run, elapsed: float) -> ClusterError:
    """Why the kubelet has no certificate yet. Returns the error, or raises it if waiting cannot help."""
    link = chain.find_broken_link(ctx.host, ctx.config.node.cri_socket)
    if link and link.is_final:
        raise link.as_error()
    name = ctx.config.node.name
    try:
        request = signing_request.read_signing_request(_bootstrap_api(ctx), name)
    except (Unreachable, api.ApiRefused) as error:
        if isinstance(error, api.ApiRefused) and error.http_status == 403:
            return signing_request.explain_lacking_right(error, elapsed)
        return ClusterError(
            f"the kubelet has no certificate after {elapsed:.0f} s",
            cause=f"its certificate signing request cannot be read: {error}",
            remedy=error.remedy,
            code="csr-unknown",
            details=(advise(link),) if link else (),
        )
    trouble = signing_request.explain_signing_request(ctx.host, request, node_name=name, waited_s=elapsed)
    is_unasked = request.state in ("not-sent", "signed")  # a signed request may be that of an earlier join
    if is_unasked:
        link = link or kubelet_trouble.find_request_trouble(ctx.host)
    if is_unasked and link:
        trouble = ClusterError(trouble.what, cause=str(link), remedy=link.remedy, code=trouble.code)
    if request.state in ("denied", "failed"):
        raise trouble
    return trouble


def _bootstrap_api(ctx: Run) -> api.Api:
    """A client with the bootstrap credentials, which may read certificate signing requests. Retries are left to the caller."""
    return api.Api(ctx.host, ctx.api.identity, retry_s=0)


# ---- verify


def verify_node(ctx: Run) -> Outputs:
    """Wait until the node is Ready. With kb's pod network, also until the node and its pods reach the cluster's DNS and API through
    their Services."""
    name = ctx.config.node.name
    if ctx.config.kb.pod_network.plugin == "none":
        return Results(node_ready=_becomes_ready(ctx))
    wait_for_ready(ctx, name, components=_components(ctx))
    pressure = find_pressure(ctx)
    if pressure:
        ctx.report.warn(advise(pressure))
    reaches_dns = _reaches_dns(ctx)
    if not ctx.config.cluster.proxy.disabled:
        has_dns = reaches_dns and not ctx.config.cluster.dns.disabled
        wait_for_pod_ways(ctx, plan_ways(ctx, ctx.config.cluster.service_address(10) if has_dns else ""))
    if ctx.config.is_control_plane:
        join_control_plane.soak_instance(ctx)
    warn_of_serving_request(ctx)
    return Results(node_ready=True)


def node_is_verified(ctx: Run) -> bool:
    return _ready(ctx)[0] == "True"


def _ready(ctx: Run) -> tuple[str, str]:
    return probes.node_condition(ctx.api.get(api.path_of("Node", ctx.config.node.name)))


def _components(ctx: Run) -> tuple[str, ...]:
    """The components of kb's addons that run on every node."""
    return () if ctx.config.cluster.proxy.disabled else ("kube-proxy",)


def _becomes_ready(ctx: Run) -> bool:
    """Whether the node becomes Ready with a pod network that is not kb's. Reports why if it does not."""
    name = ctx.config.node.name

    def look() -> str:
        status, message = _ready(ctx)
        return "" if status == "True" else message or f"its condition Ready is {status}"

    end = Wait(ctx, FOREIGN_NETWORK_S, "node Ready", _components(ctx)).watch(look)
    if end.missing:
        pods = f"kubectl get pods -A -o wide --field-selector spec.nodeName={name}"
        hint = f". Remedy: apply the cluster's pod network, or see what its pods wait for: {pods}"
        ctx.report.note(f"node {name} has joined and is not Ready yet: {end.missing}{_say_link(end) or hint}")
    return not end.missing


def _say_link(end: End) -> str:
    return f"; {advise(end.link)}" if end.link and not is_word_only(end.link) else ""


def _reaches_dns(ctx: Run) -> bool:
    """Whether a DNS lookup through the Service address succeeds. It needs kube-proxy's rules on this node and a route to CoreDNS on
    another node. Reports why if it does not."""
    cluster = ctx.config.cluster
    if cluster.dns.disabled or cluster.proxy.disabled:
        return True
    server, name = cluster.service_address(10), f"kubernetes.default.svc.{cluster.networking.dns_domain}"

    def look() -> str:
        found = probes.lookup_in_cluster(ctx.host, server, name=name)
        return f"no answer from {server}:53 yet" if found is None else ""

    def heal() -> None:
        with contextlib.suppress(api.ApiRefused):
            free_waiting_pods(ctx)

    wait = Wait(
        ctx,
        DNS_TIMEOUT_S,
        "cluster DNS",
        _components(ctx),
        dict.fromkeys(_components(ctx), "the cluster's DNS does not answer"),
        heal=heal,
        is_patient=True,  # an earlier exit of kube-proxy need not be why CoreDNS does not answer
        find_cause=lambda: container_trouble.find_lost_rules(ctx.host, ctx.config.node.cri_socket),
    )
    end = wait.watch(look)
    if end.missing:
        ctx.report.note(
            f"node {ctx.config.node.name} is Ready, but the cluster's DNS ({server}:53) gave it no answer within "
            f"{end.took_s:.0f} s{_say_link(end) or ': look at kube-proxy on this node (crictl ps) and at CoreDNS'}"
        )
    return not end.missing


CHECKS = Act(do=run_checks, spec=_checked, foretell=foretell_checks, live="node")
BOOTSTRAP = Act(do=wait_for_bootstrap, probe=is_bootstrapped, live="cluster")
VERIFIED = Act(do=verify_node, probe=node_is_verified, live="cluster")
