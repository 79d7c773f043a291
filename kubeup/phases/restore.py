"""The phases of `kb restore` beside those that it shares with init: what is moved aside, what comes from the backup, and what of the
former machines is struck out of the cluster.

Everything that can fail for want of something (etcdutl, an image, room) comes before anything is stopped. What is in the way is moved
aside, with the time in its name, and never removed. kubeadm has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.addresses import host_of, join_host_port
from kubeup.engine.items import File, Folder
from kubeup.engine.plan import Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import HostError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.paths import Paths
from kubeup.phases import addons, mark_control_plane, preflight, runtime_registries, serve_mirror, upload_config
from kubeup.phases.waits import Wait
from kubeup.secret import Secret

with lazily:
    from kubeup.airgap import containerd_hosts
    from kubeup.backup import archive, etcdutl, restoring
    from kubeup.cluster import amid_rotation, api, departure, objects, probes, rotation
    from kubeup.node import containers, etcd_data, image_program, image_pulls

KEPT, COMING = "kb-before-restore", "kb-restored"
MARGIN = 256 << 20
"""Bytes that stay free beside the restored data."""


@frozen_by_name
class RestoreRun(Run):
    """backup: open, and whole. place: this machine. stamp: when this restore began, 20261129T231407, for the names of what is moved
    aside."""

    backup: archive.Backup
    place: restoring.Place
    stamp: str

    @property
    def is_same(self) -> bool:
        """Whether this is the machine of the backup, by its name and its address."""
        return self.place == restoring.former_place(self.backup.about)

    @property
    def peer_url(self) -> str:
        return f"https://{join_host_port(self.place.address, 2380)}"

    @property
    def real(self) -> Host:
        """The machine itself: what is moved aside is no file of this step's, which reset would take back."""
        return self.machine or self.host


def folder(run: Run) -> Path:
    return run.paths.state_dir / "restore"


def _beside(run: RestoreRun, kind: str) -> Path:
    """A place for etcd's data on the same file system as their folder: `/var/lib/etcd.kb-restored-20261129T231407`."""
    return _place_of(run.real, run.paths, kind=f"{kind}-{run.stamp}")


def _place_of(host: Host, paths: Paths, *, kind: str) -> Path:
    place = etcd_data.place_of_copy(host, paths.etcd_data)
    return place.with_name(place.name.replace("kb-former", kind))


def list_coming(host: Host, paths: Paths) -> list[Path]:
    """The data that earlier restores made and did not put in their place: they are nobody's."""
    begin = _place_of(host, paths, kind=f"{COMING}-")
    names = host.list_dir(begin.parent) if host.is_dir(begin.parent) else []
    return [begin.with_name(name) for name in names if name.startswith(begin.name)]


def _coming(run: RestoreRun) -> Path:
    """The restored data, until they are in their place."""
    return _beside(run, COMING)


# ---- etcd's data, made beside what is there


def make_data(ctx: RestoreRun) -> Outputs:
    """Restore the snapshot beside the data that are there. Nothing runs or stops by this. Raises HostError: disk-full, no-etcdutl,
    etcdutl-failed; ImagePullError."""
    host, coming = ctx.real, _coming(ctx)
    part = coming.with_name(f"{coming.name}.part")
    if host.is_dir(coming):
        host.remove_tree(part)
        return None
    _check_room(ctx)
    image, socket = restoring.etcd_image(ctx.backup), ctx.config.node.cri_socket
    pulled = image_pulls.ensure_images(host, socket, names=[image], tell=ctx.report.waiting)
    for failure in pulled.failed:
        raise failure
    snapshot = folder(ctx) / "snapshot.db"
    with image_program.mount_image(host, socket, image=image) as mounted:
        etcdutl.require_etcdutl(host, mounted)
        host.make_dir(folder(ctx), mode=0o700)
        host.remove_tree(part)
        host.make_dir(part, mode=0o700)
        try:
            host.write_stream(snapshot, ctx.backup.chunks(archive.SNAPSHOT), mode=0o600)
            ctx.report.waiting("etcd's data are made from the snapshot")
            words = _words_of_etcdutl(ctx)
            etcdutl.restore_snapshot(host, mounted, snapshot=snapshot, data_dir=part / "data", words=words)
        finally:
            host.remove(snapshot)
    host.move_file(part / "data", coming)
    host.remove_tree(part)
    return None


def _words_of_etcdutl(ctx: RestoreRun) -> list[str]:
    """A cluster of this member alone, whose revisions go on far above those that anybody has seen: watchers and caches that lived through
    the restore would else take the restored past for the present (kubernetes/kubernetes#118501)."""
    return [
        f"--name={ctx.place.name}",
        f"--initial-cluster={ctx.place.name}={ctx.peer_url}",
        f"--initial-advertise-peer-urls={ctx.peer_url}",
        f"--bump-revision={restoring.BUMP}",
        "--mark-compacted",
    ]


def _check_room(ctx: RestoreRun) -> None:
    size = next(entry.size for entry in ctx.backup.entries if entry.name == archive.SNAPSHOT)
    for place in (_coming(ctx).parent, ctx.paths.state_dir.parent):
        free, needed = ctx.host.free_bytes(place), 2 * size + MARGIN
        if free < needed:
            raise HostError(
                f"{place} has {free >> 20} MiB of free space",
                cause=f"the snapshot and the data that are made from it take {needed >> 20} MiB; nothing was changed",
                remedy=f"make space: du -xh {place} | sort -h | tail",
                code="disk-full",
            )


def foretell_data(ctx: RestoreRun) -> Outputs:
    _check_room(ctx)
    ctx.report.note(f"would restore etcd's data at revision {ctx.backup.about.revision} into {ctx.paths.etcd_data}")
    return None


def has_begun(ctx: RestoreRun) -> bool:
    """Whether there is something that a next run has to continue."""
    return bool(_list_kept(ctx)) or ctx.real.is_dir(_coming(ctx))


# ---- what is in the way


def list_in_the_way(ctx: RestoreRun) -> list[Path]:
    """What is moved aside: the cluster's files, the kubelet's identity, etcd's data."""
    host, paths = ctx.real, ctx.paths
    if not set(_list_files(host, paths)) - set(serve_mirror.own_files(paths)):
        found = []  # brought back already
    else:
        found = [paths.kubernetes] if host.list_dir(paths.kubernetes) else []
    if host.list_dir(paths.pki) and paths.kubernetes not in paths.pki.parents:
        found.append(paths.pki)
    if host.list_dir(paths.kubelet / "pki"):
        found.append(paths.kubelet / "pki")
    return found


def _list_files(host: Host, paths: Paths) -> Iterator[Path]:
    left = [paths.kubernetes]
    while left:
        place = left.pop()
        found = host.stat(place)
        if found is not None and found.is_dir:
            left += [place / name for name in host.list_dir(place)]
        elif found is not None:
            yield place


def _bring_mirror_back(ctx: RestoreRun) -> None:
    """The files by which the images of this machine are pulled, and served to other nodes: the checks come next, and pull what is missing."""
    host, kept = ctx.real, _kept(ctx, ctx.paths.kubernetes)
    for path in serve_mirror.own_files(ctx.paths):
        is_moved = ctx.paths.kubernetes in path.parents
        former = kept / path.relative_to(ctx.paths.kubernetes) if is_moved else path
        found = host.stat(former)
        if is_moved and found is not None and not host.exists(path):
            host.make_dir(path.parent)
            host.write_file(path, host.read_bytes(former), mode=found.mode)


def move_aside(ctx: RestoreRun) -> Outputs:
    """Stop the kubelet and the pods of this machine, and move the files of its former cluster aside."""
    host = ctx.real
    found = list_in_the_way(ctx)
    has_data = bool(_list_data(ctx))
    if found or has_data:
        if services.may_run(host, "kubelet"):
            ctx.report.waiting("the kubelet stops")
            services.run(host, "stop", unit="kubelet", timeout_s=60)
        ctx.report.waiting("the pods of this machine stop")
        for trouble in containers.remove_pods(host, ctx.config.node.cri_socket):
            ctx.report.warn(f"a pod was not removed: {trouble}")
    for path in found:
        kept = _kept(ctx, path)
        host.move_file(path, kept)
        ctx.report.note(f"{path} is now {kept}")
    if has_data:
        _move_data_aside(ctx)
    _bring_mirror_back(ctx)
    return None


def _kept(ctx: RestoreRun, path: Path) -> Path:
    return path.with_name(f"{path.name}.{KEPT}-{ctx.stamp}")


def _list_data(ctx: RestoreRun) -> list[str]:
    names = ctx.real.list_dir(ctx.real.real_path(ctx.paths.etcd_data))
    return [name for name in names if name != "lost+found" and not name.startswith(etcd_data.OWN_PREFIX)]


def _move_data_aside(ctx: RestoreRun) -> None:
    """What is in the folder; the folder itself may be a mount point."""
    host, real = ctx.real, ctx.real.real_path(ctx.paths.etcd_data)
    kept = _beside(ctx, KEPT)
    host.make_dir(kept, mode=0o700)
    for name in _list_data(ctx):
        host.move_file(real / name, kept / name)
    ctx.report.note(f"etcd's former data are in {kept}")


def foretell_aside(ctx: RestoreRun) -> Outputs:
    for path in list_in_the_way(ctx):
        ctx.report.note(f"would move {path} to {_kept(ctx, path)}")
    if _list_data(ctx):
        ctx.report.note(f"would move etcd's data in {ctx.paths.etcd_data} aside")
    return None


def foretell_checks(ctx: RestoreRun) -> Outputs:
    """In a dry run, what is moved aside before the checks is still in their way."""
    if list_in_the_way(ctx) or _list_data(ctx):
        ctx.report.note("this machine is checked when its former cluster is out of the way")
        return None
    return preflight.foretell_checks(ctx)


# ---- what comes from the backup


def lay_files(ctx: RestoreRun) -> Outputs:
    """Write the authorities, the service accounts' key, and what the static pods read beside; and give etcd's data their place.

    Raises HostError (etcd-data-in-the-way)."""
    for entry in restoring.select_files(ctx.backup, is_same=ctx.is_same):
        if not (
            entry.path == containerd_hosts.CA_FILE and runtime_registries.wants_registries(ctx.config)
        ):  # this run has its own
            _lay(ctx, entry)
    serve_mirror.follow_authority(ctx)
    _put_data_in(ctx)
    return None


def foretell_files(ctx: RestoreRun) -> Outputs:
    """The files, which the certificates of the next steps need, but not etcd's data, which a dry run does not make."""
    for entry in restoring.select_files(ctx.backup, is_same=ctx.is_same):
        _lay(ctx, entry)
    return None


def _lay(ctx: RestoreRun, entry: archive.Entry) -> None:
    path = entry.path
    ctx.host.make_dir(path.parent, mode=0o700 if ctx.paths.pki in (path.parent, *path.parents) else 0o755)
    if entry.link:
        ctx.host.symlink(path, entry.link)
        return
    ctx.host.write_file(path, ctx.backup.read(entry.name), mode=entry.mode, owner=(entry.uid, entry.gid))


def _put_data_in(ctx: RestoreRun) -> None:
    host, real, coming = ctx.real, ctx.real.real_path(ctx.paths.etcd_data), _coming(ctx)
    if not host.is_dir(coming):  # an earlier run was cut off after it
        return
    if "member" in host.list_dir(real) and "member" in host.list_dir(coming):  # else it is the restored one
        raise HostError(
            f"{real} holds data of etcd",
            cause="they came there after the restore began",
            remedy=f"see what writes there; if nobody needs them: mv {real}/member /root/",
            code="etcd-data-in-the-way",
        )
    host.make_dir(real, mode=0o700)
    for name in sorted(host.list_dir(coming)):
        host.move_file(coming / name, real / name)
    host.remove_tree(coming)


def plan_manifest(run: RestoreRun, component: str) -> Plan:
    """A static pod of the backup, with this machine's name and addresses."""
    text = restoring.move_manifest(run.backup, component, place=run.place)
    items: list[Any] = [Folder(run.paths.manifests, 0o700)]
    if component == "etcd":
        items.insert(0, Folder(run.paths.etcd_data, 0o700))
    return Plan(*items, File(run.paths.manifest(component), text, mode=0o600, has_mode=True))


def plan_etcd(run: RestoreRun) -> Plan:
    return plan_manifest(run, "etcd")


def plan_apiserver(run: RestoreRun) -> Plan:
    return plan_manifest(run, "kube-apiserver")


def plan_controller_manager(run: RestoreRun) -> Plan:
    return plan_manifest(run, "kube-controller-manager")


def plan_scheduler(run: RestoreRun) -> Plan:
    return plan_manifest(run, "kube-scheduler")


# ---- the cluster


def find_gone(ctx: RestoreRun) -> list[str]:
    """The control planes of the backup that are not this one: their members of etcd are gone, so they join again."""
    about = ctx.backup.about
    names = {about.node, *(member.name for member in about.members)}
    marked = ctx.api.list(api.path_of("Node"), label="node-role.kubernetes.io/control-plane")
    names.update(str(node["metadata"]["name"]) for node in marked)
    return sorted(name for name in names if name and name != ctx.place.name)


def strike_out(ctx: RestoreRun) -> Outputs:
    """Remove what the cluster holds of the control planes that are not there."""
    for name in find_gone(ctx):
        is_found, pods = departure.strike_out(ctx.api, name)
        if is_found or pods:
            ctx.report.note(f"{name} is not there any more: its Node and {pods} pods were removed")
    _begin_stage_again(ctx)
    return None


def _begin_stage_again(ctx: RestoreRun) -> None:
    """In a backup of the middle of a rotation this node has done a stage, of which its new certificates know nothing."""
    one = amid_rotation.look(ctx.api)
    if one is not None:
        rotation.forget_marks(ctx.api, {ctx.place.name: one.mark})
        ctx.report.note(amid_rotation.say_next(one, ctx.place.name))


def plan_config(run: RestoreRun) -> Plan:
    return Plan() if run.is_same else upload_config.plan_kubeadm_config(run)


def plan_kube_proxy(run: RestoreRun) -> Plan:
    """Point kube-proxy at this machine, if that is where the API server is now, and if the cluster has one: the configuration that an older
    kubeadm stored does not say that it was told to leave kube-proxy out."""
    if run.is_same or run.config.cluster.proxy.disabled:
        return Plan()
    found = run.api.get(api.path_of("ConfigMap", "kube-proxy", namespace=objects.SYSTEM))
    return addons.plan_kube_proxy(run) if found is not None else Plan()


def plan_marks(run: RestoreRun) -> Plan:
    """A node that the backup knows has the labels and taints that its administrator gave it."""
    return Plan() if run.place.name == run.backup.about.node else mark_control_plane.plan_marks(run)


def wait_node(ctx: RestoreRun) -> Outputs:
    """Wait until this node is Ready, and say what is to be done elsewhere. Raises ClusterError (not-healthy).

    The restored cluster calls the node Ready from the moment of the backup on: only what its kubelet has said since counts."""

    def look() -> str:
        node = ctx.api.get(api.path_of("Node", ctx.place.name))
        status, message = probes.node_condition(node)
        heard = _last_heard(node)
        if status == "True" and heard and heard < ctx.stamp:
            return f"the kubelet of {ctx.place.name} has not reported yet"
        return "" if status == "True" else f"node {ctx.place.name} is not Ready: {message}"

    Wait(ctx, ctx.config.timeouts.kubelet_health_check_s, "node Ready").until(look)
    remaining = [command for _, commands in _list_steps(ctx) for command in commands]
    return Results(closing_text=Secret(_closing_text(ctx)), remaining=remaining)


def _last_heard(node: Optional[Mapping[str, Any]]) -> str:
    """When the kubelet told this condition last, in the form of a stamp; "" if it does not say."""
    rows = ((node or {}).get("status") or {}).get("conditions") or ()
    told = next((str(row.get("lastHeartbeatTime") or "") for row in rows if row.get("type") == "Ready"), "")
    return told.rstrip("Z").replace("-", "").replace(":", "")


def _closing_text(ctx: RestoreRun) -> str:
    lines = ["", f"The cluster is as it was at {ctx.backup.about.made}, on {ctx.place.name}."]
    for why, commands in _list_steps(ctx):
        lines += ["", why, "", *(f"  {command}" for command in commands)]
    others = () if ctx.is_same else restoring.list_other_pods(ctx.backup)
    if others:
        names = ", ".join(entry.path.name for entry in others)
        lines += [
            "",
            f"These static pods of the backup were left out, since they may name the former machine: {names}.",
        ]
    for path in _list_kept(ctx):
        lines += ["", f"What was here before is in {path}; once all is well it can go."]
    return "\n".join(lines)


def _list_steps(ctx: RestoreRun) -> list[tuple[str, list[str]]]:
    """What is left to do elsewhere: why, in words, and the commands."""
    steps = []
    workers = sorted(_list_workers(ctx))
    if workers:
        steps.append(_worker_step(ctx, workers))
    gone = [name for name in (member.name for member in ctx.backup.about.members) if name != ctx.place.name]
    if gone:
        why = (
            f"The former control planes ({', '.join(gone)}) and new ones join this one: kb reset --force on those that still run, "
            "then the words of"
        )
        steps.append((why, ["kb token create --print-join-command --control-plane"]))
    return steps


def _worker_step(ctx: RestoreRun, workers: Sequence[str]) -> tuple[str, list[str]]:
    """The same for nodes that are no control planes. Where the API server is at another address, they have to be told."""
    about = ctx.backup.about
    has_moved = ctx.place.address != about.address
    if has_moved and ctx.config.kb.load_balancer.is_local:
        why = (
            f"The load balancers of these nodes know only the former API servers: {', '.join(workers)}. On each of them: kb reset --force,\n"
            "then the words of"
        )
        return why, ["kb token create --print-join-command"]
    words = "systemctl restart kubelet"
    if has_moved and host_of(about.endpoint or about.address) == about.address:
        words = f"'sed -i s/{about.address}/{ctx.place.address}/ /etc/kubernetes/kubelet.conf; {words}'"
    why = "On each of these nodes, restart the kubelet, which may run pods that the cluster does not know any more:"
    return why, [f"ssh {name} {words}" for name in workers]


def _list_workers(ctx: RestoreRun) -> Iterator[str]:
    for node in ctx.api.list(api.path_of("Node")):
        if str(node["metadata"]["name"]) != ctx.place.name:
            yield str(node["metadata"]["name"])


def _list_kept(ctx: RestoreRun) -> list[Path]:
    return [path for path in (_kept(ctx, ctx.paths.kubernetes), _beside(ctx, KEPT)) if ctx.real.exists(path)]


DATA = Act(do=make_data, foretell=foretell_data, live="node")
ASIDE = Act(do=move_aside, foretell=foretell_aside, live="node")
CHECKS = Act(do=preflight.run_checks, foretell=foretell_checks, live="node")
FILES = Act(do=lay_files, foretell=foretell_files)
STRIKE_OUT = Act(do=strike_out, live="cluster")
READY = Act(do=wait_node, live="cluster", always=True)
