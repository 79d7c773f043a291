"""The phases load-balancer/*: a local load balancer on every node, if the configuration or the cluster asks for it.

The rules are in kubeup/network/load_balancer.py. Without `loadBalancer: {mode: local}` these phases do nothing. kubeadm has no such
phases: it expects controlPlaneEndpoint to work already.
"""

from __future__ import annotations

from dataclasses import replace

from kubeup.addresses import join_host_port
from kubeup.engine.cluster_items import Object
from kubeup.engine.items import File, Folder, Gone, MarkedLines, Unit
from kubeup.engine.plan import Group, Plan, Proof, Yielded
from kubeup.engine.run import BareRun, Run
from kubeup.lazy_modules import lazily
from kubeup.machine import own_copy
from kubeup.phases.kb_program import plan_program

with lazily:
    from kubeup.cluster import api
    from kubeup.cluster import objects as clusterobjects
    from kubeup.network import load_balancer
    from kubeup.node import images


def is_wanted(ctx: Run) -> bool:
    return ctx.config.kb.load_balancer.is_local


def _settings(ctx: Run) -> load_balancer.Settings:
    return load_balancer.settings_of(
        ctx.config.cluster.control_plane_endpoint, ctx.config.kb, cri_socket=ctx.config.node.cri_socket
    )


# ---- load-balancer/local


def plan_load_balancer(run: Run) -> Plan:
    """The load balancer's configuration, the line in /etc/hosts, and last the static pod that needs both.

    They are written before the kubelet starts, so that the load balancer is up when the kubelet first calls the endpoint. Later
    the keeper updates the list of servers. A load balancer that is no longer asked for stays, because the kubelet and other
    clients may still call the API servers through it.

    Raises HostError (endpoint-in-hosts), before anything is written.
    """
    if not is_wanted(run):
        manifest = run.paths.manifest(load_balancer.NAME)
        why = f"{manifest} stays, although it is no longer configured: clients may call the API servers through it"
        return Plan(Yielded("load balancer", why)) if run.host.exists(manifest) else Plan()
    settings = _settings(run)
    load_balancer.plan_hosts(load_balancer.read_hosts(run.host), settings.name)
    config = load_balancer.render_config(settings, _first_servers(run))

    def keep_servers(found: str, wanted: str) -> str:
        servers = load_balancer.parse_config(found)[0]
        drained = load_balancer.parse_drained(found)
        return load_balancer.render_config(settings, servers, drained=drained) if servers else wanted

    return Plan(
        Folder(load_balancer.config_dir(run.paths)),
        File(load_balancer.config_path(run.paths), config, keeps=keep_servers),
        MarkedLines(
            load_balancer.HOSTS, load_balancer.MARK, lambda text: load_balancer.plan_hosts(text, settings.name)
        ),
        Folder(run.paths.manifests),
        File(
            run.paths.manifest(load_balancer.NAME),
            load_balancer.render_pod(run.config.kb, run.paths, node_name=run.config.node.name),
            mode=0o600,
            keeps=load_balancer.keep_uid,
        ),
    )


def _first_servers(ctx: Run) -> tuple[str, ...]:
    """The API servers that discovery found; on the first control plane this node's own. Later the keeper updates them."""
    if ctx.config.join:
        return ctx.config.join.api_servers
    endpoint = ctx.config.local_api_endpoint
    return (join_host_port(endpoint.advertise_address, endpoint.bind_port),)


# ---- load-balancer/keeper


def plan_shared_keeper(run: Run) -> Plan:
    """init: the objects in the cluster that joining nodes read, then this node's keeper."""
    if not is_wanted(run):
        return Plan()
    rights = (name for name in ("rbac/pod-network.yaml", "rbac/load-balancer.yaml"))
    objects = [render_kb_config(run), *(found for name in rights for found in clusterobjects.load_objects(name))]
    return Plan(*map(Object, objects)) + plan_keeper(run)


def plan_keeper(run: Run) -> Plan:
    """This node's keeper, and the proof that the endpoint works on this node.

    Raises when it is applied: ClusterError (load-balancer-not-up, endpoint-not-in-certificate), HostError (unit-not-started).
    """
    if not is_wanted(run):
        return Plan()
    settings, pyz = _settings(run), own_copy.find_running_pyz()
    command = own_copy.plan_command(run.host, pyz, paths=run.paths)
    files = load_balancer.plan_keeper_files(run.paths, settings=settings, command=command)
    items = (*plan_program(run, pyz), *(File(path, text) for path, text in files.items()))

    def wait(_: Run) -> None:
        load_balancer.wait_until_serving(run.host, settings, ca_pem=_ca_pem(run), tell=run.report.waiting)

    return Plan(
        Group(items, guard=Unit(load_balancer.UNIT)),
        Proof("the endpoint serves", wait),
    )


def _ca_pem(ctx: Run) -> str:
    found = ctx.config.join.ca_pem if ctx.config.join else ""
    return found or ctx.host.read_text(ctx.paths.pki / "ca.crt")


# ---- what the cluster stores


def render_kb_config(ctx: Run) -> api.Object:
    """ConfigMap kb-config. A run without a load balancer keeps the stored one, because nodes rely on it."""
    balancer = ctx.config.kb.load_balancer
    if balancer.is_local:
        balancer = replace(balancer, image=images.load_balancer_image(ctx.config.kb))
    else:
        balancer = clusterobjects.read_load_balancer(ctx.api)
    return clusterobjects.render_kb_config(ctx.config.kb.pod_network, balancer)


# ---- reset


def plan_removal(run: BareRun) -> Plan:
    """Remove the unit, the static pod, the configuration, and kb's line in /etc/hosts."""
    find = lambda ground: load_balancer.find_node_files(ground.host, run.paths)  # noqa: E731
    take_away = lambda ground: load_balancer.remove_node_files(ground.host, run.paths)  # noqa: E731
    return Plan(Gone("the load balancer", find, take_away))
