"""The optional load balancer in front of the API servers: haproxy as a static pod on every node.

This module renders its configuration, its pod, and the line in /etc/hosts that points the name in controlPlaneEndpoint to it. It also
contains the keeper (`kb load-balancer`), which adapts the configuration as API servers come and go. It never touches other lines of
/etc/hosts. kubeadm has no counterpart: it leaves the load balancer to the operator.

haproxy listens only on 127.0.0.1 and passes TLS through, so with it a node trusts nobody whom it would not trust without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from kubeup.addresses import host_of, port_of
from kubeup.cluster.api import Api, read_identity
from kubeup.cluster.objects import API_SERVERS, parse_api_servers
from kubeup.config.types import KbConfiguration
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table, parse_json
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import UNPROVEN, Tls, Unreachable
from kubeup.machine.waiting import becomes_so, wait_for
from kubeup.network import drain_marks
from kubeup.network.drain_marks import Marks
from kubeup.network.keeper import POLL_S, RETRY_S, Keeper, Round, run
from kubeup.node import containers, crictl
from kubeup.node.images import load_balancer_image
from kubeup.node.static_pods import fill_scalars
from kubeup.paths import Paths
from kubeup.shapes import fit
from kubeup.trust import Anchors
from kubeup.yaml_files import YAMLError, dump_yaml, fill_template, load_yaml, read_resource

NAME = "kb-load-balancer"
"""The name of the static pod, its container, and the keeper's unit."""
UNIT = f"{NAME}.service"
HOSTS = Path("/etc/hosts")
MARK = "# kb: the API servers, through this node's load balancer"
GONE_AFTER_S = 60.0
"""How long a server is kept after the cluster stopped listing it, so that a reboot does not reload haproxy twice."""
START_TIMEOUT_S = 90.0
RELOAD_TIMEOUT_S = 5.0
RELOAD_POLL_S = 0.1
_CUT = "tcp-ut 6s"
"""After how long haproxy gives up a connection whose other end acknowledges nothing. haproxy 2.6 ignores it in default-server."""
_DRAINED = "disabled"


# ---- values


@frozen
class Settings:
    """The keeper's settings, which the phase load-balancer writes to /var/lib/kb/load-balancer.json."""

    endpoint: str
    """controlPlaneEndpoint, `name:port`."""
    health_port: int
    cri_socket: str

    @property
    def name(self) -> str:
        return host_of(self.endpoint)

    @property
    def port(self) -> int:
        return port_of(self.endpoint)


def config_dir(paths: Paths) -> Path:
    return paths.kubernetes / NAME


def config_path(paths: Paths) -> Path:
    return config_dir(paths) / "haproxy.cfg"


def settings_path(paths: Paths) -> Path:
    return paths.state_dir / "load-balancer.json"


def render_config(settings: Settings, servers: Sequence[str], *, drained: Collection[str] = ()) -> str:
    """haproxy.cfg for these API servers (`10.0.0.11:6443`, `[fd00::11]:6443`), sorted. New connections go to `drained` ones only if no
    other is ready."""
    rows = {server: f"    server {_server_name(server)} {server}" for server in sorted(set(servers))}
    values = {
        "bind": f"127.0.0.1:{settings.port}",
        "health": f"127.0.0.1:{settings.health_port}",
        "ready": "\n".join(
            f"{row} {_CUT}{f' {_DRAINED}' if server in drained else ''}" for server, row in rows.items()
        ),
        "servers": "\n".join(rows.values()),
        "digest": "",
    }
    template = "load-balancer/haproxy.cfg"
    digest = hashlib.sha256(fill_template(template, values).encode()).hexdigest()[:16]
    return fill_template(template, {**values, "digest": digest})


def _server_name(server: str) -> str:
    return server.replace("[", "").replace("]", "")


def parse_config(text: str) -> tuple[tuple[str, ...], str]:
    """(servers, digest) of a haproxy.cfg that kb wrote; ((), "") for anything else."""
    rows = [line.split() for line in text.splitlines()]
    servers = {row[2] for row in rows if len(row) >= 3 and row[0] == "server"}
    digests = [row[-1].strip('"') for row in rows if row[:2] == ["http-request", "return"]]
    return tuple(sorted(servers)), digests[0] if digests else ""


def parse_drained(text: str) -> tuple[str, ...]:
    """The drained servers in a haproxy.cfg that kb wrote."""
    rows = [line.split() for line in text.splitlines()]
    return tuple(sorted({row[2] for row in rows if row[:1] == ["server"] and _DRAINED in row[3:]}))


def render_pod(kb: KbConfiguration, paths: Paths, *, node_name: str) -> str:
    """The static pod's manifest. Its UID comes from its contents and its node. Where a manifest names none, the kubelet reckons one from all
    fields that it knows of a pod, so that one of another minor starts haproxy again, which cuts the connections of this node's clients.
    Source: applyDefaults of pkg/kubelet/config/common.go; containers of a pod with a given UID run on (HashContainer: name and image)."""
    words: dict[str, Union[str, int]] = {
        "image": load_balancer_image(kb),
        "health_port": kb.load_balancer.health_port,
        "config_dir": str(config_dir(paths)),
        "uid": "",
    }
    pod = fill_scalars(load_yaml(read_resource(f"manifests/{NAME}.yaml")), words)
    digest = hashlib.sha256(f"{node_name}\n{dump_yaml(pod)}".encode()).hexdigest()
    uid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    return dump_yaml({**pod, "metadata": {**pod["metadata"], "uid": uid}})


def keep_uid(found: str, wanted: str) -> str:
    """Which of two manifests is to lie there: the one that does, if it differs in nothing but its UID, which an older kb did not write."""
    try:
        is_same = _without_uid(found) == _without_uid(wanted)
    except YAMLError:
        return wanted
    return found if is_same else wanted


def _without_uid(text: str) -> dict[str, Any]:
    pod = as_table(load_yaml(text))
    return {**pod, "metadata": {**as_table(pod.get("metadata")), "uid": ""}}


def render_settings(settings: Settings) -> str:
    stored = {
        "endpoint": settings.endpoint,
        "healthPort": settings.health_port,
        "criSocket": settings.cri_socket,
    }
    return json.dumps(stored, indent=2) + "\n"


def read_settings(host: Host, paths: Paths) -> Settings:
    """Read the settings. Raises HostError (load-balancer-settings) if the file is missing or incomplete."""
    path = settings_path(paths)
    try:
        text = host.read_text(path) if host.exists(path) else "{}"
        stored = fit(parse_json(text, "it"), {"endpoint": str, "healthPort": int, "criSocket": str}, what="it")
        return Settings(stored["endpoint"], stored["healthPort"], stored["criSocket"])
    except (ValueError, KeyError) as error:
        raise HostError(
            f"no settings for the load balancer's keeper in {path}",
            cause="the file is written by the phase load-balancer of kb init and kb join, and is missing or damaged",
            remedy="write it: kb init phase load-balancer, or on a joined node: kb join phase load-balancer",
            code="load-balancer-settings",
        ) from error


# ---- /etc/hosts


def plan_hosts(text: str, name: str) -> str:
    """The text of /etc/hosts with kb's line for `name`. Everything else stays. Earlier names in kb's line stay too: until a change of
    the endpoint is complete on all nodes, they are still in use.

    Raises HostError (endpoint-in-hosts) if somebody else's line maps the name to another address: the first line wins, and
    theirs may have a reason.
    """
    lines = text.splitlines(keepends=True)
    own = [line for line in lines if MARK in line]
    others = [line for line in lines if MARK not in line]
    for line in others:
        words = line.partition("#")[0].split()
        if name in words[1:] and words[0] not in ("127.0.0.1", "::1"):
            raise HostError(
                f"{HOSTS} maps {name} to {words[0]}",
                cause="the line is not kb's, and the load balancer of this node needs the name to map to 127.0.0.1",
                remedy=f"remove that line from {HOSTS}, or take another name: --control-plane-endpoint NAME:PORT",
                code="endpoint-in-hosts",
            )
    before = [word for line in own for word in line.partition("#")[0].split()[1:]]
    names = before if name in before else [name, *before]
    wanted = f"127.0.0.1 {' '.join(names)} {MARK}\n"
    if own == [wanted]:
        return text
    head = "".join(others)
    return head + ("\n" if head and not head.endswith("\n") else "") + wanted


def strip_hosts(text: str) -> str:
    """The text of /etc/hosts without kb's line."""
    return "".join(line for line in text.splitlines(keepends=True) if MARK not in line)


def read_hosts(host: Host) -> str:
    """Read /etc/hosts byte for byte: comments may be in any encoding, and lines may end in any way."""
    return host.read_bytes(HOSTS).decode(errors="surrogateescape") if host.exists(HOSTS) else ""


def ensure_hosts(host: Host, name: str) -> bool:
    """Map the name to this node's load balancer; return whether that changed anything."""
    return host.write_file(HOSTS, plan_hosts(read_hosts(host), name), keeps=True)


def remove_hosts(host: Host) -> bool:
    """Remove kb's line, and keep what others have written since."""
    text = read_hosts(host)
    return MARK in text and host.write_file(HOSTS, strip_hosts(text), keeps=True)


# ---- looks


def read_servers(host: Host, paths: Paths) -> tuple[str, ...]:
    """The servers in haproxy.cfg; () if there is no such file."""
    path = config_path(paths)
    return parse_config(host.read_text(path))[0] if host.exists(path) else ()


def read_running_digest(host: Host, health_port: int) -> str:
    """The digest of the haproxy.cfg that the running haproxy has read; "" if haproxy does not answer."""
    try:
        answer = host.http_get(f"http://127.0.0.1:{health_port}/", timeout_s=2)
    except Unreachable:
        return ""
    return answer.body.decode(errors="replace").strip() if answer.status == 200 else ""


def find_container(host: Host, socket: str) -> Optional[containers.ContainerInfo]:
    """The newest container of the load balancer, including exited ones."""
    found = containers.list_containers(host, socket, name=NAME)
    return found[0] if found else None


# ---- changes


def plan_keeper_files(paths: Paths, *, settings: Settings, command: str) -> dict[Path, str]:
    """The keeper's settings and unit file: path -> text."""
    unit = fill_template(f"systemd/{UNIT}", {"command": command})
    return {settings_path(paths): render_settings(settings), paths.systemd / UNIT: unit}


def name_uid(host: Host, paths: Paths, *, socket: str) -> bool:
    """Write the UID under which the pod runs into a manifest that names none, so that a kubelet of another minor keeps it running. To be
    called while the kubelet is stopped. Returns whether it was written; a manifest that is newer than the container stays as it is."""
    path, found = paths.manifest(NAME), find_container(host, socket)
    stat = host.stat(path)
    if stat is None or found is None or found.state != "running" or not found.pod_uid:
        return False
    text = host.read_text(path)
    marked = text.replace("\nmetadata:\n", f'\nmetadata:\n  uid: "{found.pod_uid}"\n', 1)
    try:
        has_uid = bool(as_table(as_table(load_yaml(text)).get("metadata")).get("uid"))
        if has_uid or marked == text or _without_uid(marked) != _without_uid(text):
            return False
    except YAMLError:
        return False
    is_newer = stat.mtime * 1e9 > found.created_ns
    return not is_newer and host.write_file(path, marked, keeps=True)


def reload(host: Host, settings: Settings) -> str:
    """Have the running haproxy reload its file: its master starts a new worker on the same listening sockets, while the old one serves
    its open connections until they end. Returns what failed, in words, or ""."""
    found = find_container(host, settings.cri_socket)
    if found is None or found.state != "running":
        return "haproxy does not run yet"
    if host.which("crictl"):
        shown = host.query(crictl.crictl_argv(settings.cri_socket, "inspect", "-o", "json", found.id))
        pid = str(as_table(as_table(shown.stdout).get("info")).get("pid", ""))
        if not pid.isdigit() or pid == "0":
            return f"crictl inspect {found.id[:13]} names no process: {(shown.stderr or shown.stdout)[:200].strip()}"
        done = host.run(["sh", "-c", 'kill -USR2 "$1"', "sh", pid])
    else:
        argv = crictl.ctr_argv(settings.cri_socket, "tasks", "kill", "--signal", "SIGUSR2", found.id)
        done = host.run(argv)
    return "" if done.ok else f"{' '.join(done.argv)}: {done.stderr.strip()}"


def remove_node_files(host: Host, paths: Paths) -> bool:
    """Remove everything of the load balancer from this node, for `kb reset`, once no pod runs any more."""
    had_unit = host.exists(paths.systemd / UNIT)
    if had_unit:
        services.stop_own_unit(host, UNIT)
    changed = had_unit
    for path in _own_paths(paths):
        changed = host.remove(path) or changed
    changed = remove_hosts(host) or changed
    if had_unit:
        services.forget_removed_units(host)
    return changed


def find_node_files(host: Host, paths: Paths) -> list[str]:
    """What remove_node_files would remove, in words."""
    lines = [f"its line in {HOSTS}"] if MARK in read_hosts(host) else []
    return [str(path) for path in _own_paths(paths) if host.exists(path)] + lines


def _own_paths(paths: Paths) -> tuple[Path, ...]:
    return (paths.systemd / UNIT, settings_path(paths), paths.manifest(NAME), config_path(paths), config_dir(paths))


# ---- waiting until it works


def wait_until_serving(host: Host, settings: Settings, *, ca_pem: str, tell: Callable[[str], None]) -> None:
    """Wait until the endpoint's name leads through haproxy to an API server whose certificate is valid for that name.

    Raises ClusterError: load-balancer-not-up, endpoint-not-in-certificate.
    """
    tls = Tls(Anchors.given(ca_pem))
    last: Optional[Unreachable] = None

    def look() -> str:
        nonlocal last
        try:
            host.http_get(f"https://{settings.endpoint}/version", tls=tls, timeout_s=5)
        except Unreachable as error:
            last = error
            return error.cause
        return ""

    def failure(_: str, elapsed: float) -> ClusterError:
        assert last is not None
        return _not_up(host, settings, last=last, elapsed=elapsed)

    wait_for(host, look, goal="load balancer", timeout_s=START_TIMEOUT_S, tell=tell, failure=failure)


def _not_up(host: Host, settings: Settings, *, last: Unreachable, elapsed: float) -> ClusterError:
    found = find_container(host, settings.cri_socket)
    if last.reason == "tls":
        return ClusterError(
            f"no API server has a certificate for {settings.name}",
            cause=last.cause,
            remedy=f"add the name to its certificate, on each control plane: kb reconfigure endpoint {settings.endpoint}",
            code="endpoint-not-in-certificate",
        )
    if found is None:
        cause = f"the runtime has no container {NAME}: the kubelet has not started the static pod"
        remedy = f"see why: {services.say_log(host, 'kubelet')}"
    elif found.state != "running":
        lines = containers.container_logs(host, settings.cri_socket, container_id=found.id, lines=3)
        cause = f"its container is {found.state} (code {found.exit_code}): {' '.join(lines) or found.message or 'it said nothing'}"
        # its pauses grow, for a pod that came and went with the same contents too; a restarted kubelet has forgotten them
        restart = services.spoken_of(host).say("restart", "kubelet")
        remedy = f"see why: crictl logs {found.id[:13]}; to have the kubelet start it again without a pause: {restart}"
    else:
        cause = f"haproxy runs, and no API server answers behind it: {last.cause}"
        remedy = f"see which servers it considers ready: crictl logs {found.id[:13]}"
    return ClusterError(
        f"the API servers do not answer at {settings.endpoint} after {elapsed:.0f} s",
        cause=cause,
        remedy=remedy,
        code="load-balancer-not-up",
    )


# ---- the keeper


@dataclass
class Memory:
    """When each server was last listed, by the host's monotonic clock, and the marks of those that are drained."""

    seen: dict[str, float] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)

    def merge(self, listed: Sequence[str], held: Sequence[str], *, now: float, gone: Collection[str] = ()) -> list[str]:
        """The servers to configure: those that the cluster lists, and those held ones that it listed until recently. gone: those that are
        not to be held."""
        for server in held:
            self.seen.setdefault(server, now)
        for server in listed:
            self.seen[server] = now
        self.seen = {one: at for one, at in self.seen.items() if now - at < GONE_AFTER_S and one not in gone}
        return sorted(self.seen)


def keep_round(host: Host, read_api: Callable[[], Api], *, settings: Settings, memory: Memory, paths: Paths) -> Round:
    """Run one round: ensure the name in /etc/hosts, the list of servers, and which of them are drained; and that haproxy has read it. If
    the cluster does not answer or lists no server, the list stays, and no server is drained that was not before."""
    ensure_hosts(host, settings.name)
    held, marks = read_servers(host, paths), memory.marks
    trouble, api, listed = "", None, tuple[str, ...]()
    try:
        api = read_api()
        api.is_fleeting = bool(marks.seen)  # the connection that is kept may lead to the server that is drained
        listed = parse_api_servers(api.get(f"{API_SERVERS}?resourceVersion=0"))
        marks.read(api)
    except KbError as error:
        trouble = f"{error}; the list stays as it is"
    now = host.monotonic()
    gone = marks.find_gone(listed) if listed and not trouble else frozenset[str]()
    servers = memory.merge(listed, held, now=now, gone=gone) if listed else list(held)
    servers = _keep_a_way(host, servers, held=[one for one in held if one not in gone])
    verdict = marks.judge(listed or held, now=now)
    wanted = render_config(settings, servers, drained=verdict.drained)
    if servers and host.write_file(config_path(paths), wanted, mode=0o644):
        held = tuple(servers)
    text = f"{len(held)} API servers: {', '.join(held)}"
    failure = _follow(host, settings, paths=paths)
    if api and not failure and not trouble:
        trouble = _answer(api, marks, drained={**verdict.drained, **dict.fromkeys(gone, drain_marks.FORGOTTEN)})
    said = "; ".join(part for part in (text, *verdict.say(), failure, trouble) if part)
    return Round(said, RETRY_S if failure or trouble else POLL_S)


def _keep_a_way(host: Host, servers: list[str], *, held: Sequence[str]) -> list[str]:
    """The servers to configure, and those to be left out if none of the others answers. One API server of another port gives its port to all in the list
    that they share, and through a balancer that believes it nobody could see it put right. Source: pkg/controlplane/reconcilers, EndpointSlice.ports"""
    left_out = [one for one in held if one not in servers]
    if not left_out or any(_is_answering(host, server) for server in servers):
        return servers
    return sorted({*servers, *left_out})


def _is_answering(host: Host, server: str) -> bool:
    """Whether anything listens there; who it is, its clients find out."""
    try:
        host.http_get(f"https://{server}/livez", tls=UNPROVEN, timeout_s=2)
    except Unreachable as error:
        return error.reason == "tls"
    return True


def _answer(api: Api, marks: Marks, *, drained: Mapping[str, str]) -> str:
    """Tell the cluster which servers this node's haproxy sends no new connection to. Returns what failed, in words, or ""."""
    try:
        marks.answer(api, drained)
    except KbError as error:
        return str(error)
    return ""


def _follow(host: Host, settings: Settings, *, paths: Paths) -> str:
    """Reload haproxy, unless it has already read the current file. Returns what failed, in words, or ""."""
    if not host.exists(config_path(paths)):
        return f"there is no {config_path(paths)}"
    wanted = parse_config(host.read_text(config_path(paths)))[1]
    running = read_running_digest(host, settings.health_port)
    if running == wanted:
        return ""
    failure = reload(host, settings)
    if failure:
        return failure
    has_read = becomes_so(
        host,
        lambda: read_running_digest(host, settings.health_port) == wanted,
        timeout_s=RELOAD_TIMEOUT_S,
        poll_s=RELOAD_POLL_S,
    )
    return "" if has_read else "haproxy did not read its new file: crictl logs of kb-load-balancer say why"


def keep(host: Host, *, log: Callable[[str], None], once: bool = False, paths: Optional[Paths] = None) -> None:
    """Run `kb load-balancer`."""
    places, memory = paths or Paths(), Memory()

    def round_of_servers() -> Round:
        settings = read_settings(host, places)
        return keep_round(
            host, lambda: connect(host, settings, paths=places), settings=settings, memory=memory, paths=places
        )

    def watch(seconds: float) -> float:
        return memory.marks.watch(lambda: connect(host, read_settings(host, places), paths=places), seconds=seconds)

    keeper = Keeper("kb load-balancer", round_of_servers, stays="the list stays as it is", watch=watch)
    run(keeper, host, paths=places, log=log, once=once)


def connect(host: Host, settings: Settings, *, paths: Paths) -> Api:
    """A client of the cluster with the kubelet's identity, through the load balancer, which knows the servers that answer."""
    identity = read_identity(host, paths.kubernetes / "kubelet.conf", server=f"https://{settings.endpoint}")
    return Api(host, identity, retry_s=0)


def settings_of(endpoint: str, kb: KbConfiguration, *, cri_socket: str) -> Settings:
    return Settings(endpoint, kb.load_balancer.health_port, cri_socket)


def is_installed(host: Host, paths: Paths) -> bool:
    """Whether this node runs the load balancer."""
    return host.exists(settings_path(paths)) or host.exists(paths.manifest(NAME))
