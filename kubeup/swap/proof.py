"""Proves that a static pod that was put in is the one that was asked for, and that it works.

A mirror pod's hash, or the phase Running, prove nothing: a pod whose container exits again and again is "Running" (H1). What counts is
what the runtime says (another container, with this image and these arguments), the component's own health at this node's
address, a read that needs etcd's quorum, and some seconds without a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster import etcd, probes
from kubeup.cluster.api import Api, ApiRefused, path_of, read_identity
from kubeup.diagnosis import chain, container_trouble, signs
from kubeup.diagnosis.signs import BrokenLink
from kubeup.engine.run import Run
from kubeup.errors import ClusterError, HostError, KbError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import say_round, watch
from kubeup.node import containers, image_program, image_pulls, runtime
from kubeup.node.crictl import UNITS, crictl_argv, data_folder, split_json, unit_of
from kubeup.swap import manifests, patience
from kubeup.trouble import Trouble
from kubeup.yaml_files import commands_of_pod, containers_of_pod, flags_of, load_mapping

START_S = 30.0
"""How long a pod may take from its manifest to its health."""
FULL = 16 << 20
"""Free space, in bytes, below which a disk counts as full."""
NUDGE_S = 4.0
LAST_RESORT_S = 20.0
"""After this time without a container, the kubelet is restarted on the way back: it has forgotten every back-off then."""
WATCH_S, SERVES_S = 10.0, 5.0
"""How long a new container has to run before its pod counts as working, and for how long of that after it has served."""
LEAD_S = 40.0
"""How long the only controller-manager or scheduler may take to lead: the former lease may have to run out first."""
LEADERS = ("kube-controller-manager", "kube-scheduler")
SERVERS = ("etcd", "kube-apiserver")
POLL_S = 0.2
RUNTIME_S = 60.0
"""How long the runtime may take to say which containers there are: a busy machine's answers late."""
CAUSE_AFTER_S, CAUSE_EVERY_S = 8.0, 3.0


_OF_A_NEW_NODE = (" reset", "mv ")
"""Words of remedies for a node that is being made: to reset it, or to move etcd's data away, would destroy a control plane."""


class NotProven(ClusterError):
    """A static pod does not work. The cause is its container's last word, if it had one."""

    has_exited = False
    """Whether its container ended, rather than being slow."""


# ---- one pod


def wait_until_works(
    run: Run,
    name: str,
    *,
    text: str,
    known: Collection[str] = (),
    timeout_s: float = START_S,
    last_resort_s: float = LAST_RESORT_S,
) -> str:
    """Wait until the pod of this manifest serves; return its container's ID. known: containers of before. last_resort_s: without a container
    for so long the kubelet is restarted, if timeout_s is longer than START_S.

    Raises NotProven (static-pod-not-working) with the first cause: an exit is one at once.
    """
    start = _Start(run, name, text=text, known=frozenset(known), timeout_s=timeout_s)
    start.restarts_after = last_resort_s if start.is_way_back else None
    longest_s = start.deadline + manifests.KUBELET_S
    missing, elapsed = watch(run.host, start.look, timeout_s=longest_s, is_over=start.is_over, poll_s=POLL_S)
    if missing:
        raise start.failure(missing, elapsed)
    trouble = judge_container(run, name, text=text, container_id=start.container)
    if trouble:
        raise _not_proven(trouble)
    return start.container


class _Start:
    """One start of a pod: what is looked at, and what is done about it meanwhile."""

    def __init__(self, run: Run, name: str, *, text: str, known: frozenset[str], timeout_s: float) -> None:
        self.run, self.name, self.text, self.known = run, name, text, known
        self.deadline = timeout_s * patience.find_patience(run.host)
        self.container = ""
        self.trouble: Optional[Trouble] = None
        self.has_exited = False
        self._nudged = self._looked = self._asked = 0.0
        self.is_way_back = timeout_s > START_S
        self.restarts_after: Optional[float] = None

    def look(self) -> str:
        newest = find_newest(self.run, self.name, known=self.known)
        if newest is None:
            self.container = ""
            return "the kubelet has not started it yet"
        self.container = newest.id
        if newest.state == "exited":
            self.trouble = _describe_exit(self.run, newest)
            self.has_exited = True
            return "its container exited"
        return ask(self.run, self.name) if newest.state == "running" else f"its container is {newest.state}"

    def is_over(self, missing: str, elapsed: float) -> bool:
        self.run.report.waiting(say_round(self.name, missing, elapsed=elapsed, timeout_s=self.deadline))
        if self.trouble is not None or elapsed > self.deadline:
            return True
        if elapsed - self._asked > manifests.LOOK_EVERY_S:
            self._asked = elapsed
            if manifests.keep_kubelet(self.run) or self._restart_kubelet(elapsed):
                self.deadline = elapsed + manifests.KUBELET_S
        if not self.container and elapsed - self._nudged > NUDGE_S:
            self._nudged = elapsed
            manifests.nudge(self.run, self.name)
        if (
            self.trouble is None and not self.is_way_back
        ):  # which has the space that is missing, and nothing better to do than to wait
            is_stuck = not self.container and elapsed > NUDGE_S
            self.trouble = find_fallen(self.run) or (_find_full_disk(self.run) if is_stuck else None)
        if self.trouble is None and elapsed > CAUSE_AFTER_S and elapsed - self._looked > CAUSE_EVERY_S:
            self._looked = elapsed
            link = self._find_link(missing)
            self.trouble = link if link is not None and link.is_final else None
        return self.trouble is not None

    def _restart_kubelet(self, elapsed: float) -> bool:
        if self.container or self.restarts_after is None or elapsed < self.restarts_after:
            return False
        self.restarts_after = None
        self.run.report.note(f"the kubelet has not started {self.name} for {elapsed:.0f} s: restarting the kubelet")
        services.run(self.run.host, "restart", unit="kubelet")
        return True

    def _find_link(self, missing: str) -> Optional[BrokenLink]:
        socket = self.run.config.node.cri_socket
        return chain.find_broken_link(self.run.host, socket, components=(self.name,), unhealthy={self.name: missing})

    def _find_lost_image(self) -> Optional[Trouble]:
        """An image that was there before the swap: a kubelet short of disk space deletes what no pod uses at that moment."""
        socket = self.run.config.node.cri_socket
        wanted = (
            image_of(load_mapping(self.text, self.name)),
            runtime.probe_runtime(self.run.host, socket).sandbox_image or "",
        )
        try:
            have = () if self.container else image_pulls.list_images(self.run.host, socket)
        except HostError:
            return None
        lost = next((one for one in wanted if one and have and image_program.runtime_name(one) not in have), "")
        if not lost:
            return None
        cause = "a kubelet that is short of disk space deletes images that no pod uses at that moment"
        return Trouble(
            f"{lost}, which {self.name} needs, is no longer on this node",
            cause,
            f"make space: df -h; then: crictl pull {lost}",
        )

    def failure(self, missing: str, elapsed: float) -> NotProven:
        log = f"read its log: crictl logs {self.container[:13]}" if self.container else ""
        remedy = log or f"see why: {services.say_log(self.run.host, 'kubelet')}"
        what = f"{self.name} does not work {elapsed:.0f} s after its manifest came"
        found = self.trouble or _find_full_disk(self.run) or self._find_lost_image() or self._find_link(missing)
        error = _not_proven(found or Trouble(what, missing, remedy), name=self.name)
        error.has_exited = self.has_exited
        return error


def _not_proven(found: Trouble, *, name: str = "") -> NotProven:
    details = found.details if isinstance(found, BrokenLink) else ()
    name = name or found.what.split()[0]
    cause, remedy = found.cause, found.remedy
    # a swapped manifest may be anybody's, whatever the configuration says
    for words in sorted(signs.source_words(name).values(), key=len, reverse=True):
        cause, remedy = (text.replace(words, "its manifest") for text in (cause, remedy))
    if any(word in remedy for word in _OF_A_NEW_NODE):
        remedy = f"correct what its manifest says or names; its last container: crictl ps -a --name {name}"
    return NotProven(found.what, cause=cause, remedy=remedy, code="static-pod-not-working", details=details)


def _find_full_disk(run: Run) -> Optional[Trouble]:
    """A disk without space: then the kubelet starts nothing, and says so only in its log."""
    runtimes = (Path(data_folder(unit)) for unit in UNITS)
    for place in (Path("/var/lib/kubelet"), *runtimes, Path("/var/lib/etcd")):
        free = run.host.free_bytes(place) if run.host.is_dir(place) else FULL
        if free < FULL:
            remedy = f"make space: du -xh {place} | sort -h | tail"
            return Trouble(f"{place} has {free >> 20} MiB of free space", "no pod can be started without some", remedy)
    return None


def find_fallen(run: Run) -> Optional[Trouble]:
    """The full disk that has ended etcd or the API server of this node, which no swap had to touch for that: until there is space, each of
    its next starts ends too, and the kubelet delays each for twice as long as the last. The way back has space to give. None if both run,
    or are out."""
    full = _find_full_disk(run)
    if full is None:
        return None
    for name in SERVERS:
        newest = find_newest(run, name) if run.host.exists(run.paths.manifest(name)) else None
        if newest is not None and newest.state == "exited":
            return Trouble(f"{name} has ended: {full.what}", "it cannot work without some", full.remedy)
    return None


def _describe_exit(run: Run, ended: containers.ContainerInfo) -> Trouble:
    return container_trouble.describe_exit(run.host, run.config.node.cri_socket, ended=ended)


def find_newest(run: Run, name: str, *, known: Collection[str] = ()) -> Optional[containers.ContainerInfo]:
    """The pod's newest container that is none of these, with how it ended if it has; None if there is none."""
    socket = run.config.node.cri_socket
    for has_exits in (False, True):  # the former ones have ended, which nobody wants to know at every look
        found = containers.list_containers(run.host, socket, name=name, has_exits=has_exits)
        newest = next((one for one in found if manifests.is_of_pod(run, one, name=name) and one.id not in known), None)
        if newest is None or newest.state != "exited":
            break
    return newest


def list_ids(run: Run, names: Sequence[str], *, only_ended: bool = False) -> frozenset[str]:
    """The IDs of the pods' containers; only_ended: of those that have ended.

    Raises HostError (runtime-silent) if the runtime does not tell: a container of before would be taken for a new one, and its end for
    a failure, after which etcd's data are replaced."""
    listed: Optional[list[containers.ContainerInfo]] = None

    def look() -> str:
        nonlocal listed
        listed = containers.ask_containers(run.host, run.config.node.cri_socket, has_exits=False)
        return "the container runtime does not answer" if listed is None else ""

    missing, elapsed = watch(run.host, look, timeout_s=RUNTIME_S, poll_s=1.0)
    if missing:
        raise HostError(
            "the container runtime does not answer",
            cause=f"crictl ps fails for {elapsed:.0f} s: without it nobody knows what runs",
            remedy=f"see why: {services.say_log(run.host, unit_of(run.config.node.cri_socket))}",
            code="runtime-silent",
        )
    return frozenset(
        one.id
        for one in listed or ()
        if one.name in names
        and manifests.is_of_pod(run, one, name=one.name)
        and (one.state == "exited" or not only_ended)
    )


# ---- what a component says of itself


def works(run: Run, name: str) -> bool:
    return not ask(run, name)


def ask(run: Run, name: str) -> str:
    """Ask the component at this node's address; "" if it works, else what it says."""
    if name == "etcd":
        return ask_etcd(run)
    if name == "kube-apiserver":
        return ask_apiserver(run)
    seen = probes.probe_url(run.host, probes.component_url(run.host, run.paths, component=name))
    return "" if seen.is_healthy else seen.seen


def ask_etcd(run: Run) -> str:
    """A read through this node's member that needs the quorum."""
    client = own_etcd(run)
    return client.probe_read(client.endpoints[0])


def find_own_member(run: Run, members: Sequence[etcd.Member]) -> Optional[etcd.Member]:
    """This node's row in the member list, by the peer URL in its manifest."""
    return etcd.find_by_peer_url(members, etcd_flags(run).get("initial-advertise-peer-urls", ""))


def etcd_flags(run: Run) -> dict[str, str]:
    command, *_ = [*commands_of_pod(_etcd_pod(run)), []]
    return flags_of(command)


def _etcd_pod(run: Run) -> dict[str, Any]:
    path = run.paths.manifest("etcd")
    path = path if run.host.exists(path) else manifests.former_path(run, "etcd")
    return load_mapping(run.host.read_text(path), str(path))


def own_etcd(run: Run) -> etcd.Etcd:
    """A client of the members that this node's manifest names, its own first."""
    urls = etcd.client_urls_of_manifest(_etcd_pod(run))
    return etcd.Etcd(run.host, urls, tls=etcd.read_client_tls(run.host, run.paths))


def ask_apiserver(run: Run) -> str:
    """/livez and /readyz of this node's API server, and a read through its etcd: of kube-system, past the watch cache. It has to let the
    kubelet probe it, which shows no certificate, and work."""
    api = own_api(run)
    try:
        for endpoint in ("/livez", "/readyz"):
            answer = api.probe_health(endpoint, timeout_s=5)
            if answer.status != 200:
                failed = [line for line in answer.body.decode(errors="replace").splitlines() if line.startswith("[-]")]
                return f"{endpoint} answers HTTP {answer.status}" + (f": {failed[0][3:]}" if failed else "")
        api.get(path_of("Namespace", "kube-system"))
    except Unreachable as error:
        return error.reason if error.reason != "tls" else error.cause
    except ApiRefused as error:
        return error.cause
    for url in probes.find_probed_urls(run.host, run.paths, component="kube-apiserver"):
        seen = probes.probe_url(run.host, url).seen
        if seen.startswith(("HTTP 401", "HTTP 403")) and not url.endswith("/readyz"):
            return f"it refuses the kubelet's probe of {url}, for which the kubelet will restart it: {seen}"
    return _ask_as_kubelet(run, server=api.server)


def _ask_as_kubelet(run: Run, *, server: str) -> str:
    """What it says to this node's kubelet, if it does not let it work: without Node in --authorization-mode every node would be lost, a
    minute after the swap has ended well. It is asked for the Lease, for which only that mode has a word: to read Nodes, pod networks give
    kubelets a right of their own, kb's too. A certificate that it does not know was as bad before."""
    path = run.paths.kubernetes / "kubelet.conf"
    try:
        client = Api(run.host, read_identity(run.host, path, server=server), retry_s=0)
        place = path_of("Lease", run.config.node.name, namespace="kube-node-lease")
        answer = client.probe_health(place, timeout_s=5)
    except KbError:
        return ""
    return "it refuses what this node's kubelet asks: HTTP 403 for its own Lease" if answer.status == 403 else ""


def is_api_up(run: Run) -> bool:
    try:
        return own_api(run).probe_health("/livez", timeout_s=5).status == 200
    except Unreachable:
        return False


def own_api(run: Run) -> Api:
    """A client of this node's own API server that does not retry."""
    return Api(run.host, run.api.identity, retry_s=0)


# ---- what the runtime says


def judge_container(run: Run, name: str, *, text: str, container_id: str) -> Optional[Trouble]:
    """What of the running container is not as the manifest says: its arguments, its image. None if all is, or it cannot be told."""
    socket = run.config.node.cri_socket
    shown: Mapping[str, Any] = next(
        iter(split_json(run.host.query(crictl_argv(socket, "inspect", container_id), timeout_s=15).stdout)), {}
    )
    pod = load_mapping(text, str(run.paths.manifest(name)))
    wanted = next(iter(commands_of_pod(pod)), [])
    process = as_table(as_table(as_table(shown.get("info")).get("runtimeSpec")).get("process"))
    argv = process.get("args")
    is_plain = not any("$(" in word for word in wanted)  # the kubelet fills in variables
    if isinstance(argv, list) and wanted and is_plain and [str(word) for word in argv] != wanted:
        other = next(
            (word for word in wanted if word not in argv), next((w for w in argv if w not in wanted), "their order")
        )
        return Trouble(
            f"the container of {name} does not run with the arguments of its manifest",
            f"{other} differs",
            f"see them: crictl inspect {container_id[:13]}",
        )
    return _judge_image(run, name, shown=shown, image=image_of(pod))


def image_of(pod: Mapping[str, Any]) -> str:
    """The image of the container with the pod's own name."""
    return next((str(one.get("image") or "") for one in containers_of_pod(pod)), "")


def _judge_image(run: Run, name: str, *, shown: Mapping[str, Any], image: str) -> Optional[Trouble]:
    socket = run.config.node.cri_socket
    answer = run.host.query(crictl_argv(socket, "inspecti", image), timeout_s=15)
    wanted = as_table(next(iter(split_json(answer.stdout)), {}).get("status"))
    status = as_table(shown.get("status"))
    has = {
        str(value)
        for value in (status.get("imageRef"), status.get("imageId"), as_table(status.get("image")).get("image"))
    }
    known = {str(wanted.get("id")), *map(str, wanted.get("repoDigests") or ()), *map(str, wanted.get("repoTags") or ())}
    if not answer.ok or not wanted.get("id") or has & known:
        return None
    return Trouble(
        f"the container of {name} does not run the image of its manifest",
        f"{image} is {wanted.get('id')}, and the container has {status.get('imageRef')}",
        "see which images there are: crictl images --digests",
    )


# ---- all of them, together


def watch_all(run: Run, containers_of: Mapping[str, str]) -> None:
    """Watch that none of the new containers ends until each has run for WATCH_S, and for SERVES_S at least; and that each works at the
    end. A runtime that is silent by then may take its time: only it knows whether one ended. Raises NotProven."""
    bad: list[Trouble] = []
    is_silent = False

    def look() -> str:
        nonlocal is_silent
        found = containers.ask_containers(run.host, run.config.node.cri_socket)
        is_silent = found is None
        if found is None:
            return "watching"
        listed = {one.id: one for one in found}
        for name, container_id in containers_of.items():
            one = listed.get(container_id)
            if one is None:
                bad.append(
                    Trouble(f"the container of {name} is gone", "something removed it", f"crictl ps -a --name {name}")
                )
            elif one.state != "running":
                bad.append(_describe_exit(run, one))
        youngest_s = min((_age_s(run, one) for one in found if one.id in containers_of.values()), default=0.0)
        return "" if youngest_s >= WATCH_S and run.host.monotonic() - began >= SERVES_S else "watching"

    def is_over(_: str, elapsed: float) -> bool:
        run.report.waiting(f"watching {', '.join(containers_of)}: {elapsed:.0f} s of {WATCH_S:.0f} s")
        fallen = find_fallen(run)
        bad.extend([fallen] if fallen is not None else [])
        return bool(bad) or (elapsed > WATCH_S and not is_silent)

    began = run.host.monotonic()
    watch(run.host, look, timeout_s=WATCH_S + RUNTIME_S, is_over=is_over, poll_s=1.0)
    if bad:
        raise _not_proven(bad[0])
    if is_silent:
        run.report.warn(f"the container runtime does not answer: that {', '.join(containers_of)} ran on is not proven")
    for name in containers_of:
        told = ask(run, name)
        if told:
            what = f"{name} ran on, and does not work"
            raise _not_proven(Trouble(what, told, f"read its log: crictl logs {containers_of[name][:13]}"))


def _age_s(run: Run, one: containers.ContainerInfo) -> float:
    """How long ago a container was made, by this machine's clock; 0.0 if the runtime does not say (ctr tells none)."""
    return run.host.now().timestamp() - one.created_ns / 1e9 if one.created_ns > 1e15 else 0.0


@frozen
class Leading:
    """Whether a new controller-manager or scheduler has led: what only a leader does is proven by nothing else (H44)."""

    name: str
    leads: bool
    holder: str = ""


def wait_for_lead(run: Run, before: Mapping[str, str], *, first: Mapping[str, str], is_only: bool) -> list[Leading]:
    """Whether each new controller-manager and scheduler leads. before: who held their leases before the swap (read_holders): the lease
    of a former one on this node has to run out. first: their renewals some seconds ago (read_renewals): the lease of a dead one stands
    still. is_only: there is no other, so wait until it leads.

    Raises NotProven (static-pod-not-working) if the only one does not lead in time, or none can since the disk is full."""
    found = dict.fromkeys(before, "")

    def look() -> str:
        found.update(read_holders(run, before))
        renewed = read_renewals(run, before)
        led = {name for name in before if is_own(run, found[name]) and found[name] != before[name]}
        led = {name for name in led if renewed[name] != first.get(name, "")}
        leading[:] = [Leading(name, name in led, found[name].partition("_")[0]) for name in before]
        return ", ".join(one.name for one in leading if not one.leads)

    def is_over(missing: str, elapsed: float) -> bool:
        run.report.waiting(f"{missing} to lead: {elapsed:.0f} s of {longest_s:.0f} s")
        return find_fallen(run) is not None

    leading: list[Leading] = []
    longest_s = LEAD_S * patience.find_patience(run.host) if is_only else 0.0
    missing, _ = watch(run.host, look, timeout_s=longest_s, is_over=is_over, poll_s=0.5)
    fallen = find_fallen(run) if missing else None
    if fallen is not None:
        raise _not_proven(fallen)
    if missing and is_only:
        late = missing.split(", ")[0]
        held = f"its lease is held by {found[late] or 'nobody'}"
        remedy = f"read its log: crictl logs $(crictl ps -q --name {late})"
        raise _not_proven(Trouble(f"{late} runs, and does not lead", held, remedy))
    return leading


def is_own(run: Run, holder: str) -> bool:
    return holder.partition("_")[0] == run.host.hostname()


def read_holders(run: Run, names: Iterable[str]) -> dict[str, str]:
    """Who leads, by component: the holderIdentity of its lease, `cp1_5f3c...`; "" if that cannot be read."""
    return {name: _read_lease(run, name, field="holderIdentity") for name in names if name in LEADERS}


def read_renewals(run: Run, names: Iterable[str]) -> dict[str, str]:
    """When the leases were renewed last, by component; "" if that cannot be read."""
    return {name: _read_lease(run, name, field="renewTime") for name in names if name in LEADERS}


def _read_lease(run: Run, name: str, *, field: str) -> str:
    try:
        lease = own_api(run).get(path_of("Lease", name, namespace="kube-system"))
    except KbError:
        return ""
    return str((lease or {}).get("spec", {}).get(field) or "")
