"""The phase wait-control-plane, and its second half after the addons, which waits for the controllers.

Mirrors cmd/kubeadm/app/cmd/phases/init/waitcontrolplane.go.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Optional

from kubeup.engine.run import Outputs, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.phases.waits import Wait, nudge_kubelet

with lazily:
    from kubeup.cluster import api, objects, probes


def wait_for_control_plane(ctx: Run) -> Outputs:
    """Wait for the kubelet, then the API server, and bind the admin's rights at once.

    A new API server takes a second or more to create its initial roles. Until then it authorizes only system:masters. If
    super-admin.conf exists, the next phases do not wait for the roles but act as the super-admin. Meanwhile the
    controller-manager and the scheduler start. After the objects that need neither have been applied, wait_for_controllers
    waits for both, and for the admin's rights.

    Raises ClusterError (not-healthy).
    """
    url = probes.kubelet_healthz_url(ctx.config)
    if url:
        took = Wait(ctx, ctx.config.timeouts.kubelet_health_check_s, "kubelet").until(
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
    """Wait for the controller-manager and the scheduler, and for the API server to serve the admin.

    Raises ClusterError (not-healthy).
    """
    _wait_for_admin(ctx)
    _wait_for_components(ctx, ("kube-controller-manager", "kube-scheduler"))
    return None


def wait_for_first_controllers(ctx: Run) -> Outputs:
    """The same on a new cluster. While the controllers start, create the service accounts that they need.

    Raises ClusterError (not-healthy).
    """
    _wait_for_admin(ctx)
    objects.create_controllers_accounts(ctx.api)
    _wait_for_components(ctx, ("kube-controller-manager", "kube-scheduler"))
    return None


def _wait_for_admin(ctx: Run) -> None:
    if _find_super_admin(ctx) == ctx.api.identity:
        ctx.api.become(_read_identity(ctx, ctx.paths.admin_conf))
    _wait_for_components(ctx, ("kube-apiserver",))


def _find_super_admin(ctx: Run) -> Optional[api.Identity]:
    """The identity in super-admin.conf; None if that is missing or unusable, or if this run uses a kubeconfig that the user
    named."""
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
    """The API server's health as far as the super-admin needs it, and whether it has created its namespaces."""
    seen = probes.probe_apiserver(ctx.api, for_masters=True)
    if not seen.is_healthy:
        return seen
    missing = [name for name in ("kube-system", "kube-public") if ctx.api.get(api.path_of("Namespace", name)) is None]
    return probes.Health(not missing, f"has no namespace {' and '.join(missing)} yet" if missing else "healthy")


def _wait_for_components(
    ctx: Run, components: tuple[str, ...], *, probe: Optional[Callable[[Run, str], probes.Health]] = None
) -> None:
    waiting = dict.fromkeys(components, "not asked yet")
    asks = {name: partial(probe, ctx, name) if probe else prepare_probe(ctx, name) for name in components}

    def look() -> str:
        for component in list(waiting):
            seen = asks[component]()
            if seen.is_healthy:
                del waiting[component]
            else:
                waiting[component] = seen.seen
        return "; ".join(f"{component} {seen}" for component, seen in waiting.items())

    etcd = ("etcd",) if ctx.config.cluster.local_etcd else ()
    limit = ctx.config.timeouts.control_plane_component_health_check_s
    pods = (*etcd, *components)
    took = Wait(ctx, limit, "control plane", pods, waiting, nudge=lambda: nudge_kubelet(ctx, pods)).until(look)
    ctx.report.detail(f"{', '.join(components)}: healthy after {took:.1f} s")


def prepare_probe(ctx: Run, component: str) -> Callable[[], probes.Health]:
    """How to ask a component for its health, any number of times. Its manifest, which says where it listens, is read once."""
    if component == "kube-apiserver":
        return lambda: probes.probe_apiserver(ctx.api)
    url = probes.component_url(ctx.host, ctx.paths, component=component)
    return lambda: probes.probe_url(ctx.host, url)


def probe_component(ctx: Run, component: str) -> probes.Health:
    return prepare_probe(ctx, component)()


def _missing(name: str, seen: probes.Health) -> str:
    return "" if seen.is_healthy else f"{name} {seen.seen}"


def _bind_admin(ctx: Run) -> None:
    """Bind the group of admin.conf, which has no rights before that. super-admin.conf may do so."""

    def make_super_admin() -> api.Api:
        identity = _read_identity(ctx, ctx.paths.kubeconfig("super-admin.conf"))
        return api.Api(ctx.host, identity, retry_s=ctx.config.timeouts.kubernetes_api_call_s)

    objects.ensure_admin_binding(ctx.api, make_super_admin)


def apiserver_is_healthy(ctx: Run) -> bool:
    return probe_component(ctx, "kube-apiserver").is_healthy


def control_plane_is_healthy(ctx: Run) -> bool:
    return all(probe_component(ctx, component).is_healthy for component in probes.COMPONENTS)


APISERVER = Act(do=wait_for_control_plane, probe=apiserver_is_healthy, live="cluster")
CONTROLLERS = Act(do=wait_for_first_controllers, probe=control_plane_is_healthy, live="cluster")
