"""The phase proxy of `kb reconfigure`: the HTTP proxies of this node's kubelet and container runtime, as drop-ins of their units.

Those of the static pods are in their manifests, which the swap brings in. Pods run on while the runtime restarts. kubeadm copies the proxies of
its environment into the manifests, and leaves both services to the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kubeup.engine.items import File, Folder
from kubeup.engine.plan import Group, Plan
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.phases import upgrade_kubelet
from kubeup.phases.reconfigure_config import ReconfigureRun

with lazily:
    from kubeup.upgrade import proxies


@frozen
class ProxiedServices:
    """The runtime and the kubelet: they read their environment when they start, and need not be stopped before it changes."""

    runtime: str
    name = "services with proxies"
    places: tuple[Path, ...] = ()

    def is_running(self, run: ReconfigureRun) -> bool:
        return True

    def stop(self, run: ReconfigureRun) -> None: ...

    def start(self, run: ReconfigureRun) -> None:
        """Raises HostError (runtime-not-restarted), ClusterError (not-healthy)."""
        if not run.host.is_live:
            return
        run.host.run(services.SYSTEMD.reload)
        done = services.run(run.host, "restart", unit=self.runtime, timeout_s=60)
        if not done.ok:
            raise HostError(
                f"{self.runtime} does not start again",
                cause=(done.stderr or done.stdout).strip()[-300:] or "it gave no reason",
                remedy=f"see why: {services.say_log(run.host, self.runtime)}; then run the command again",
                code="runtime-not-restarted",
            )
        upgrade_kubelet.start_and_watch(run, version="", since=run.host.now())

    def settle(self, run: ReconfigureRun) -> None: ...


def plan_services(run: ReconfigureRun) -> Plan:
    """The drop-ins with these proxies; without any, empty ones. Raises HostError (no-systemd)."""
    if run.proxies is None:
        return Plan()
    files = render_files(run, run.proxies)
    folders = [Folder(path.parent) for path in files]
    items = tuple(File(path, text, mode=0o600, has_mode=True, is_secret=True) for path, text in files.items())
    return Plan(*folders, Group(items, guard=ProxiedServices(proxies.runtime_unit(run.config.node.cri_socket))))


def render_files(run: ReconfigureRun, wanted: Mapping[str, str]) -> dict[Path, str]:
    if services.find(run.host) is not services.SYSTEMD:
        raise HostError(
            "systemd does not run this machine",
            cause="the proxies of the kubelet and the container runtime are drop-ins of their units",
            remedy="set them where your service manager has environment variables of services",
            code="no-systemd",
        )
    return proxies.render_drop_ins(run.paths, wanted, socket=run.config.node.cri_socket)
