"""The phases addon/coredns and addon/kube-proxy.

The objects and rules are in kubeup/cluster/addons.py. Mirrors cmd/kubeadm/app/cmd/phases/init/addons.go.
"""

from __future__ import annotations

from kubeup.engine.cluster_items import Manifest, Object, PodConfig, RestartedPods
from kubeup.engine.plan import Item, Plan
from kubeup.engine.run import Run
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.cluster import addons, api
    from kubeup.cluster import objects as clusterobjects
    from kubeup.node import patches

# ---- addon/coredns


def plan_coredns(run: Run) -> Plan:
    """CoreDNS. The replica count and an edited Corefile of a running CoreDNS are kept."""
    if run.config.cluster.dns.disabled:
        return Plan(notes=["dns.disabled is set: no CoreDNS"])
    running = read_running_dns(run)
    is_edited = running.corefile and not addons.is_default_corefile(running.corefile, run.config.cluster)
    return Plan(
        *map(Object, _coredns(run, running)),
        notes=["the Corefile in ConfigMap kube-system/coredns was edited: it is kept"] if is_edited else (),
    )


def read_running_dns(run: Run) -> addons.RunningDns:
    return addons.parse_running_dns(
        run.api.list(api.path_of("Deployment", "", namespace=clusterobjects.SYSTEM), label=addons.DNS_LABEL),
        run.api.get(api.path_of("ConfigMap", "coredns", namespace=clusterobjects.SYSTEM)),
        service=run.api.get(api.path_of("Service", "kube-dns", namespace=clusterobjects.SYSTEM)),
    )


def _coredns(run: Run, running: addons.RunningDns) -> list[Manifest]:
    patch = patches.read_patches(run.host, run.config.patches_directory)
    return addons.render_coredns(run.config, run.release, running=running, patch=patch)


# ---- addon/kube-proxy


def plan_kube_proxy(run: Run) -> Plan:
    """kube-proxy. It reads its configuration only when it starts, so its pods are restarted when the configuration changes."""
    if run.config.cluster.proxy.disabled:
        return Plan(notes=["proxy.disabled is set: no kube-proxy"])
    config_map, *rest = addons.render_kube_proxy(run.config, run.release)
    owner = api.path_of("DaemonSet", "kube-proxy", namespace=clusterobjects.SYSTEM)
    told = "kube-proxy's configuration changed: its pods are restarted, one node after the other"
    items: list[Item] = [PodConfig(config_map, owner, told), *map(Object, rest)]
    if "addon/kube-proxy" in run.selection.cut_off:  # perhaps after it had written the configuration
        items.append(RestartedPods("pods of kube-proxy", owner))
    return Plan(*items)
