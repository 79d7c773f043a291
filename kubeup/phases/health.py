"""wait-control-plane and verify: no phase after the first runs without a control plane, and none says "ready" unseen.

Mirrors cmd/kubeadm/app/cmd/phases/init/waitcontrolplane.go; the soak is kb's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from kubeup.engine.run import Outputs, Results, Run
from kubeup.errors import ClusterError, HostError
from kubeup.lazy_modules import lazy_import
from kubeup.machine import services

if TYPE_CHECKING:
    from kubeup.cluster import api, objects, probes, signing_request
    from kubeup.diagnosis import chain as diagnosis_chain
    from kubeup.diagnosis import container_trouble, signs
    from kubeup.network import node_routes, pod_view
    from kubeup.node import image_pulls
else:
    objects = lazy_import("kubeup.cluster.objects")
    signs = lazy_import("kubeup.diagnosis.signs")
    container_trouble = lazy_import("kubeup.diagnosis.container_trouble")
    diagnosis_chain = lazy_import("kubeup.diagnosis.chain")
    signing_request = lazy_import("kubeup.cluster.signing_request")
    probes = lazy_import("kubeup.cluster.probes")
    api = lazy_import("kubeup.cluster.api")
    pod_view = lazy_import("kubeup.network.pod_view")
    node_routes = lazy_import("kubeup.network.node_routes")
    image_pulls = lazy_import("kubeup.node.image_pulls")

POLL_S = 0.1
LOOK_AFTER_S = 6
"""How long a start may take before kb looks for what is wrong: longer than one takes that is well, whose processors a look
would only keep busy."""
LOOK_EVERY_S = 3
PULL_TIMEOUT_S = 20
POD_WAYS_TIMEOUT_S = 60
"""How long a pod may reach nothing where the node does: rules and routes of a new node follow within seconds."""

PRESSURES = {
    "DiskPressure": (
        "by default it wants 15% of the images' file system to be free, 10% of its own, and 5% of the inodes",
        "make room: df -h /var/lib/containerd /var/lib/kubelet; df -i /var/lib/kubelet; crictl rmi --prune",
    ),
    "MemoryPressure": ("by default it wants 100 MiB to be free", "see what takes it: ps aux --sort=-rss | head"),
    "PIDPressure": (
        "the machine runs out of process numbers",
        "see who has them: ps -eLf | wc -l; sysctl kernel.pid_max",
    ),
}
"""Conditions under which a node takes no pods: the kubelet's eviction thresholds (its --eviction-hard), and where to look."""


@dataclass
class _Wait:
    """One wait: until all is well, until the time is up, or until a look finds what cannot heal.

    components: what the goal depends on, in the order in which one needs the other; unhealthy: what their probes see.
    """

    ctx: Run
    timeout_s: float
    goal: str
    components: tuple[str, ...] = ()
    unhealthy: Mapping[str, str] = field(default_factory=dict)
    explain: Callable[[], str] = str
    """Asked once, at the end of the patience: what more is known of the cause, in words; "" for nothing."""
    heal: Callable[[], None] = lambda: None
    """Called at every look for what is wrong: what kb may do so that nothing is waited out whose cause is gone."""
    find_cause: Callable[[], Optional[signs.BrokenLink]] = lambda: None
    """What only the cluster knows and no container of this node shows; asked before these are looked at."""

    def until(self, look: Callable[[], str]) -> float:
        """Call `look` until it returns "" (well); it otherwise returns what is still missing, in words. Returns the
        seconds that it took. Raises ClusterError (not-healthy) with the broken link."""
        host, started, looked = self.ctx.host, self.ctx.host.monotonic(), 0.0
        link: Optional[signs.BrokenLink] = None
        told: set[object] = set()
        while True:
            missing = look()
            elapsed = host.monotonic() - started
            if not missing:
                return elapsed
            why = f" ({link.what})" if link else ""
            self.ctx.report.waiting(f"{self.goal}: {elapsed:.0f} s of {self.timeout_s:.0f} s; {missing}{why}")
            if elapsed > LOOK_AFTER_S and elapsed - looked > LOOK_EVERY_S:
                self.heal()
                before, link, looked = link, self._find_broken_link(), elapsed
                if link and link.is_final:
                    raise self._failure(missing, elapsed, link)
                # what two looks see is no hiccup of a start: it may heal, but nobody should have to wait to hear of it
                if link and before and link.key == before.key and link.key not in told:
                    told.add(link.key)
                    self.ctx.report.note(f"{link.what}: {link.cause}. Remedy: {link.remedy} (kb goes on waiting)")
            if elapsed > self.timeout_s:
                raise self._failure(missing, elapsed, self._find_broken_link())
            host.sleep(POLL_S)

    def _find_broken_link(self) -> Optional[signs.BrokenLink]:
        found = self.find_cause()
        if found:
            return found
        socket = self.ctx.config.node.cri_socket
        return diagnosis_chain.find_broken_link(
            self.ctx.host, socket, components=self.components, unhealthy=dict(self.unhealthy)
        )

    def _failure(self, missing: str, elapsed: float, found: Optional[signs.BrokenLink]) -> ClusterError:
        is_word_only = found is not None and found.link == "probe" and not found.is_final
        if found and not is_word_only:
            return ClusterError(
                found.what, cause=found.cause, remedy=found.remedy, code="not-healthy", details=found.details
            )
        more = self.explain() or (f"{found.what}: {found.cause}" if found else "")
        return ClusterError(
            f"{self.goal}: not there after {elapsed:.0f} s",
            cause=f"{missing}; {more}" if more else missing,
            remedy=f"look at the kubelet ({services.say_log(self.ctx.host, 'kubelet')}) and the containers (crictl ps -a), "
            "then run the command again",
            code="not-healthy",
        )


def wait_until(
    ctx: Run, look: Callable[[], str], *, goal: str, timeout_s: float, components: tuple[str, ...] = ()
) -> float:
    """Until `look` says "" (well; else what is missing, in words); the seconds that it took. `components` run on this
    node and are looked at meanwhile. Raises ClusterError (not-healthy) with the broken link."""
    return _Wait(ctx, timeout_s, goal, components).until(look)


def wait_for_control_plane(ctx: Run) -> Outputs:
    """The kubelet, then the API server; the admin's rights are made with its first breath.

    A new API server takes a second or more to write its first roles, and until then knows system:masters alone. With
    super-admin.conf at hand the phases that follow do not wait for it: they speak as the super-admin, until
    wait_for_controllers sees that the admin's rights hold. The controller-manager and the scheduler come up meanwhile,
    and are waited for when the objects that need neither are in place.
    """
    url = probes.kubelet_healthz_url(ctx.config)
    if url:
        took = _Wait(ctx, ctx.config.timeouts.kubelet_health_check_s, "kubelet").until(
            lambda: _missing("kubelet", probes.probe_url(ctx.host, url))
        )
        ctx.report.detail(f"the kubelet is healthy after {took:.1f} s")
    super_admin = _find_super_admin(ctx)
    if super_admin is None:
        _wait_for_components(ctx, ("kube-apiserver",))
    else:
        ctx.api.become(super_admin)
        _wait_for_components(ctx, ("kube-apiserver",), probe=_probe_for_masters)
    _bind_admin(ctx)
    return None


def wait_for_controllers(ctx: Run) -> Outputs:
    """The controller-manager and the scheduler; the API server must be well still, to the admin too."""
    if _find_super_admin(ctx) == ctx.api.identity:
        ctx.api.become(_read_identity(ctx, ctx.paths.admin_conf))
    _wait_for_components(ctx, probes.COMPONENTS)
    return None


def _find_super_admin(ctx: Run) -> Optional[api.Identity]:
    """The identity in super-admin.conf; None where it is not there or not fit, or where this run speaks by a
    kubeconfig that the operator named."""
    path = ctx.paths.kubeconfig("super-admin.conf")
    try:
        found = _read_identity(ctx, path) if ctx.host.exists(path) else None
        is_own = ctx.api.identity in (found, _read_identity(ctx, ctx.paths.admin_conf))
    except HostError:
        return None
    return found if is_own else None


def _read_identity(ctx: Run, path: Path) -> api.Identity:
    return api.read_identity(ctx.host, path, server=ctx.api.server)


def _probe_for_masters(ctx: Run, component: str) -> probes.Health:
    """The API server, as far as the super-admin needs it, and the namespaces that it makes for itself."""
    seen = probes.probe_apiserver(ctx.api, for_masters=True)
    if not seen.is_healthy:
        return seen
    missing = [name for name in ("kube-system", "kube-public") if ctx.api.get(api.path_of("Namespace", name)) is None]
    return probes.Health(not missing, f"has no namespace {' and '.join(missing)} yet" if missing else "healthy")


def _wait_for_components(
    ctx: Run, components: tuple[str, ...], *, probe: Optional[Callable[[Run, str], probes.Health]] = None
) -> None:
    waiting = dict.fromkeys(components, "not asked yet")

    def look() -> str:
        for component in list(waiting):
            seen = (probe or _probe)(ctx, component)
            if seen.is_healthy:
                del waiting[component]
            else:
                waiting[component] = seen.seen
        return "; ".join(f"{component} {seen}" for component, seen in waiting.items())

    etcd = ("etcd",) if ctx.config.cluster.local_etcd else ()
    limit = ctx.config.timeouts.control_plane_component_health_check_s
    took = _Wait(ctx, limit, "control plane", (*etcd, *components), waiting).until(look)
    ctx.report.detail(f"{', '.join(components)}: healthy after {took:.1f} s")


def _probe(ctx: Run, component: str) -> probes.Health:
    if component == "kube-apiserver":
        return probes.probe_apiserver(ctx.api)
    return probes.probe_url(ctx.host, probes.component_url(ctx.host, ctx.paths, component))


def _missing(name: str, seen: probes.Health) -> str:
    return "" if seen.is_healthy else f"{name} {seen.seen}"


def _bind_admin(ctx: Run) -> None:
    """admin.conf has no rights until its group is bound; super-admin.conf may bind it."""

    def make_super_admin() -> api.Api:
        identity = _read_identity(ctx, ctx.paths.kubeconfig("super-admin.conf"))
        return api.Api(ctx.host, identity, retry_s=ctx.config.timeouts.kubernetes_api_call_s)

    objects.ensure_admin_binding(ctx.api, make_super_admin)


def apiserver_is_healthy(ctx: Run) -> bool:
    return _probe(ctx, "kube-apiserver").is_healthy


def control_plane_is_healthy(ctx: Run) -> bool:
    return all(_probe(ctx, component).is_healthy for component in probes.COMPONENTS)


# ---- verify


def verify_node(ctx: Run) -> Outputs:
    """Node Ready, static pods stable for the soak time, and the node and its pods reach DNS and API through their Services."""
    if ctx.config.kb.soak_s == 0:
        ctx.report.note("the soak was left out (--soak 0): nothing was proven about this node")
        return None
    name = ctx.config.node.name
    if ctx.config.kb.pod_network.plugin != "none":
        # kube-proxy has been started by now, and dies at once of a configuration that it cannot bear
        wait_for_ready(ctx, name, _dns_chain(ctx) if _has_dns(ctx) else ())
        _wait_for_dns(ctx)
        wait_for_pod_ways(ctx, _plan_ways(ctx))
    soak(ctx, name)
    warn_of_serving_request(ctx)
    status, _ = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
    if status != "True":
        ctx.report.note("the node stays NotReady and CoreDNS Pending until a pod network is applied (plugin: none)")
    return Results(node_ready=status == "True")


def warn_of_serving_request(ctx: Run) -> None:
    """The kubelet asks for a certificate that somebody has to approve: said here, since nothing else tells before `kubectl
    logs` fails."""
    if not ctx.config.kubelet.get("serverTLSBootstrap"):
        return
    path = api.path_of("CertificateSigningRequest")
    requests = ctx.api.list(path, field=f"spec.signerName={signing_request.SERVING_SIGNER}")
    found = signing_request.explain_serving_request(ctx.config.node.name, requests)
    if found:
        ctx.report.warn(f"{found[0]}. Remedy: {found[1]}")


def wait_for_ready(ctx: Run, name: str, components: tuple[str, ...]) -> None:
    """Until node `name` is Ready; components: what runs on it by now. Raises ClusterError (not-healthy)."""

    def look() -> str:
        status, message = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
        return "" if status == "True" else f"node {name} is not Ready: {message}"

    _Wait(ctx, ctx.config.timeouts.kubelet_health_check_s, "node Ready", components).until(look)


def _wait_for_dns(ctx: Run) -> None:
    """A lookup through the Service address: it needs CoreDNS, the pod network and kube-proxy's rules at once."""
    if not _has_dns(ctx):
        return
    limit = ctx.config.timeouts.kubelet_health_check_s
    if _has_proxy(ctx):
        # what the pod with the old configuration died of says nothing about the new one
        _Wait(ctx, limit, "kube-proxy's restart").until(lambda: _find_old_proxy(ctx))
    # CoreDNS itself needs the API's Service, so without rules it does not even become Ready
    chain = _dns_chain(ctx)
    unhealthy = dict.fromkeys(chain, "the cluster's DNS does not answer")
    wait = _Wait(
        ctx,
        limit,
        "cluster DNS",
        chain,
        unhealthy,
        explain=lambda: _proxy_trouble(ctx),
        heal=lambda: free_waiting_pods(ctx),
        find_cause=lambda: (
            find_pressure(ctx) or container_trouble.find_lost_rules(ctx.host, ctx.config.node.cri_socket)
        ),
    )
    wait.until(lambda: _look_up_dns(ctx))


def free_waiting_pods(ctx: Run) -> None:
    """Of kb's addons on this node: pods whose image the kubelet pauses to ask for, up to five minutes, though it comes by now.
    They are made anew, and a new pod's image is asked for at once."""
    field = f"spec.nodeName={ctx.config.node.name}"
    for label in ("k8s-app=kube-proxy", "k8s-app=kube-dns"):
        for pod in ctx.api.list(api.path_of("Pod", namespace="kube-system"), label=label, field=field):
            image = _awaited_image(pod)
            if not image:
                continue
            try:
                image_pulls.pull_image(ctx.host, ctx.config.node.cri_socket, image, timeout_s=PULL_TIMEOUT_S)
            except HostError:
                return  # the others come from the same place
            name = str(pod["metadata"]["name"])
            ctx.api.delete(api.path_of("Pod", name, "kube-system"))
            ctx.report.note(
                f"{image} can be pulled again: pod {name} is made anew, which spares it the kubelet's pause"
            )


def _awaited_image(pod: api.Object) -> str:
    """The image that a pod's container waits for after a pull that failed; "" for none."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"):
            return str(status.get("image") or "")
    return ""


def wait_for_pod_ways(ctx: Run, ways: pod_view.Ways) -> None:
    """Until a pod of this node reaches what all pods need: what the node reaches proves nothing of its pods. Raises
    ClusterError (not-healthy) that names the link."""
    if not ways.services:
        return
    cut: Optional[pod_view.Cut] = None

    def find_cause() -> Optional[signs.BrokenLink]:
        return signs.BrokenLink(cut.what, cut.cause, cut.remedy, link="pod-way") if cut else None

    with pod_view.OwnNamespace(ctx.host, ctx.paths, ctx.config.node.cri_socket) as own:
        find_place = own.path if node_routes.is_own_network(ctx.host, ctx.paths) else lambda: _first_pod(ctx)

        def look() -> str:
            nonlocal cut
            try:
                place = find_place()
                cut = pod_view.find_cut(ctx.host, place, ways) if place else None
            except HostError as error:
                cut = pod_view.Cut(error.what, error.cause, error.remedy)
            return cut.what if cut else ""

        _Wait(ctx, POD_WAYS_TIMEOUT_S, "a pod's way to the cluster", find_cause=find_cause).until(look)


def _first_pod(ctx: Run) -> Optional[Path]:
    """The namespace of a pod that is there; only kb's own network is known to lead CoreDNS back to itself."""
    found = pod_view.find_namespaces(
        ctx.host, ctx.config.node.cri_socket, limit=1, but_dns=not node_routes.is_own_network(ctx.host, ctx.paths)
    )
    return found[0] if found else None


def _plan_ways(ctx: Run) -> pod_view.Ways:
    if not _has_proxy(ctx):
        return pod_view.Ways("", ())
    dns_address = ctx.config.cluster.service_address(10) if _has_dns(ctx) else ""
    pods = probes.read_dns_pods(ctx.api) if dns_address else []
    return plan_ways(ctx, dns_address, pod_view.dns_pod_ways(pods, ctx.config.node.name))


def plan_ways(ctx: Run, dns_address: str, behind: Iterable[pod_view.Way] = ()) -> pod_view.Ways:
    """The cluster's DNS (unless its address is "") and API Service, and what is known to stand behind them."""
    name = f"kubernetes.default.svc.{ctx.config.cluster.networking.dns_domain}"
    services = pod_view.service_ways(dns_address, ctx.config.cluster.service_address(1))
    return pod_view.Ways(name, services, (*behind, *pod_view.server_ways(ctx.api.server)))


def find_pressure(ctx: Run) -> Optional[signs.BrokenLink]:
    """This node takes no further pods, since it runs out of something; static pods run all the same. None where it
    takes them."""
    node = ctx.api.get(api.path_of("Node", ctx.config.node.name))
    for condition, (what, look) in PRESSURES.items():
        status, message = probes.node_condition(node, condition)
        if status == "True":
            return signs.BrokenLink(
                f"node {ctx.config.node.name} has {condition}, and takes no pods",
                cause=f"{message}: {what}",
                remedy=f"{look}; the kubelet takes the condition back some minutes after there is room; then run the "
                "command again",
                link=condition,
            )
    return None


def _find_old_proxy(ctx: Run) -> str:
    """This node's kube-proxy pod from before its last restart was asked for; "" for none."""
    owner = ctx.api.get(api.path_of("DaemonSet", "kube-proxy", "kube-system"))
    field = f"spec.nodeName={ctx.config.node.name}"
    pods = ctx.api.list(api.path_of("Pod", namespace="kube-system"), label="k8s-app=kube-proxy", field=field)
    old = [pod["metadata"]["name"] for pod in pods if owner and not objects.is_restarted(pod, owner)]
    return f"pod {', '.join(old)} still has the old configuration" if old else ""


def _look_up_dns(ctx: Run) -> str:
    """What is missing to an answer of the cluster's DNS; "" where it answers rightly."""
    name = f"kubernetes.default.svc.{ctx.config.cluster.networking.dns_domain}"
    wanted = ctx.config.cluster.service_address(1)
    ready = probes.read_dns_pods(ctx.api)
    if not ready:
        return "CoreDNS is not Ready yet"
    ended = _describe_ended_proxy(ctx)
    if ended:
        return ended
    server = ctx.config.cluster.service_address(10) if _has_proxy(ctx) else ready[0][0]
    found = probes.lookup_in_cluster(ctx.host, server, name)
    if found is None:
        return f"CoreDNS is Ready, but no answer comes from {server}:53{_describe_missing_route(ctx, server)}"
    return "" if wanted in found else f"{name} resolves to {found}, not to {wanted}"


def _describe_missing_route(ctx: Run, server: str) -> str:
    """kube-proxy's rules are met behind the kernel's look for a route: without one they are of no use to the node."""
    unrouted = node_routes.read_unrouted(ctx.host, [server], counts_own=True)
    return f"; no route of this machine leads there (add a default route, or: ip route add {server} dev ...)" * bool(
        unrouted
    )


def _describe_ended_proxy(ctx: Run) -> str:
    """A kube-proxy that dies again and again, while the rules of one before it still lead to the DNS."""
    if not _has_proxy(ctx):
        return ""
    field = f"spec.nodeName={ctx.config.node.name}"
    pods = ctx.api.list(api.path_of("Pod", namespace="kube-system"), label="k8s-app=kube-proxy", field=field)
    states = [
        status.get("state") or {} for pod in pods for status in (pod.get("status") or {}).get("containerStatuses") or ()
    ]
    return "" if all("running" in state for state in states) else "kube-proxy does not run"


def _has_dns(ctx: Run) -> bool:
    return not ctx.config.cluster.dns.disabled and "addon/coredns" not in ctx.selection.skipped


def _has_proxy(ctx: Run) -> bool:
    return not ctx.config.cluster.proxy.disabled and "addon/kube-proxy" not in ctx.selection.skipped


def _dns_chain(ctx: Run) -> tuple[str, ...]:
    """The containers that an answer depends on, the first cause first."""
    return ("kube-proxy", "coredns") if _has_proxy(ctx) else ("coredns",)


def _proxy_trouble(ctx: Run) -> str:
    """What kube-proxy on this node says of its rules: it runs on and is "Ready" when it cannot program them."""
    if not _has_proxy(ctx):
        return "there is no kube-proxy: nothing leads to the API's Service unless another program sees to it"
    line = container_trouble.container_error(ctx.host, ctx.config.node.cri_socket, "kube-proxy")
    return f"kube-proxy says: {line}" if line else "kube-proxy's rules may be missing, though its log names no error"


def soak(ctx: Run, name: str) -> None:
    """Every static pod of node `name` has run since at least the soak time, without a restart meanwhile."""
    soak_s = ctx.config.kb.soak_s
    expected = _expected_pods(ctx)
    restarts: dict[str, int] = {}
    waiting: list[str] = []

    def look() -> str:
        pods = {pod.component: pod for pod in probes.read_static_pods(ctx.api, name)}
        waiting[:] = [pod.component for pod in pods.values() if pod.running_since and not pod.is_ready]
        missing = [f"{component} is not reported yet" for component in sorted(expected - set(pods))]
        for pod in pods.values():
            if pod.restarts > restarts.setdefault(pod.component, pod.restarts):
                restarts[pod.component] = pod.restarts
                ctx.report.note(f"{pod.component} restarted during the soak (now {pod.restarts} times)")
            age_s = _age_s(ctx, pod)
            if not pod.is_ready or pod.running_since is None:
                missing.append(f"{pod.component} is {pod.state}, not ready")
            elif age_s < soak_s:
                missing.append(f"{pod.component} has run for {age_s:.0f} s of {soak_s} s")
        return "; ".join(missing)

    limit = max(ctx.config.timeouts.control_plane_component_health_check_s, 3 * soak_s)
    wait = _Wait(
        ctx,
        limit,
        f"soak of {soak_s} s",
        tuple(sorted(expected)),
        find_cause=lambda: find_failing_probe(ctx, name, waiting),
    )
    wait.until(look)


def find_failing_probe(ctx: Run, node_name: str, components: Iterable[str]) -> Optional[signs.BrokenLink]:
    """The first of these static pods that runs while the kubelet's probe of it fails, in the kubelet's own words."""
    for component in components:
        told = probes.read_probe_failure(ctx.api, f"{component}-{node_name}")
        if not told:
            continue
        flags = ((arg.name, arg.value) for arg in ctx.config.cluster.api_server.extra_args)
        closed = probes.describe_closed_probes(flags) if component == "kube-apiserver" and "401" in told else ""
        return signs.BrokenLink(
            f"{component} runs, and is not Ready",
            cause=f"{told}; {closed}" if closed else told,
            remedy=f"{probes.CLOSED_PROBES_REMEDY}; then run the command again"
            if closed
            else f"crictl logs $(crictl ps -q --name {component}), then run the command again",
            is_final=bool(closed),
            link="pod-probe",
        )
    return None


def _age_s(ctx: Run, pod: probes.StaticPod) -> float:
    return (ctx.host.now() - pod.running_since).total_seconds() if pod.running_since else 0.0


def _expected_pods(ctx: Run) -> set[str]:
    return {*probes.COMPONENTS} | ({"etcd"} if ctx.config.cluster.local_etcd else set())


def node_is_verified(ctx: Run) -> bool:
    """Ready still, every static pod running for the soak time, and the DNS answers: what a second run looks at."""
    if ctx.config.kb.soak_s == 0:
        return True
    name = ctx.config.node.name
    pods = probes.read_static_pods(ctx.api, name)
    # not at this moment only: what was made anew a second ago has proven nothing
    stable = {pod.component for pod in pods if pod.is_ready and _age_s(ctx, pod) >= ctx.config.kb.soak_s}
    if _expected_pods(ctx) - stable:
        return False
    if ctx.config.kb.pod_network.plugin == "none":
        return True
    status, _ = probes.node_condition(ctx.api.get(api.path_of("Node", name)))
    if status != "True" or (_has_dns(ctx) and _look_up_dns(ctx)):
        return False
    ways, place = _plan_ways(ctx), _first_pod(ctx)  # a look makes nothing: a pod that is there is asked
    return not (place and ways.services) or pod_view.find_cut(ctx.host, place, ways) is None
