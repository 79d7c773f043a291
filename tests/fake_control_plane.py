"""A control plane that runs its static pods in a FakeHost: a kubelet that watches a folder, a runtime, etcd, leases.

Nothing happens but by the host's clock, so that a minute of a machine's time takes a moment. What the code under test must never do
(etcd stopped under an API server whose manifest is in, two containers of one pod) is noted in `violations` as it happens. The run can
be killed after any change: whatever it asks the machine from then on raises Gone, as nothing of a killed process reaches it.
Timings are those of a kubelet 1.35 on a test node, rounded.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Union

from kubeup.errors import HostError
from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.http import AnyTls, HttpResponse, Unreachable
from kubeup.yaml_files import commands_of_pod, load_mapping
from tests.fake_host import FakeHost

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
MANIFESTS = "/etc/kubernetes/manifests"
ADDRESS = "10.0.0.11"
SERVER = f"{ADDRESS}:6443"
DATA = "/var/lib/etcd/member/snap/db"
SETTLE_S = 0.05
"""The longest step of the clock."""
SERVES_AFTER_S = {"etcd": 1.0, "kube-apiserver": 3.0}
LEASE_S = 15.0
LATE_S = 10.0
"""After how long a kubelet looks again at a pod that came while its predecessor of the same name was still cleaned up."""
BACK_OFF_S = 10.0
STARTS_AFTER_S = 0.6
"""How long a kubelet takes from a new manifest to the start of its container."""

_FLAGS: Mapping[str, tuple[str, ...]] = {
    "etcd": (
        f"--advertise-client-urls=https://{ADDRESS}:2379",
        f"--initial-advertise-peer-urls=https://{ADDRESS}:2380",
        "--data-dir=/var/lib/etcd",
    ),
    "kube-apiserver": (f"--advertise-address={ADDRESS}", "--secure-port=6443", "--etcd-servers=https://127.0.0.1:2379"),
    "kube-controller-manager": ("--leader-elect=true",),
    "kube-scheduler": ("--leader-elect=true",),
}


def manifest(name: str, *flags: str, image: str = "") -> str:
    """The manifest of a component, with more flags."""
    words = "".join(f"    - {word}\n" for word in (name, *_FLAGS[name], *flags))
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: kube-system\nspec:\n  containers:\n"
        f"  - name: {name}\n    image: {image or f'registry.k8s.io/{name}:v1.35.6'}\n    command:\n{words}"
    )


FORMER = {name: manifest(name) for name in COMPONENTS}
WANTED = {name: manifest(name, "--v=4") for name in COMPONENTS}
PEM = "-----BEGIN CERTIFICATE-----\nQ0E=\n-----END CERTIFICATE-----\n"
ADMIN_CONF = f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://{SERVER}", certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tClEwRT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
FILES = {
    "/etc/kubernetes/admin.conf": ADMIN_CONF,
    "/etc/kubernetes/pki/ca.crt": PEM,
    "/etc/kubernetes/pki/apiserver-kubelet-client.crt": PEM,
    "/etc/kubernetes/pki/apiserver-kubelet-client.key": "key",
    "/etc/kubernetes/pki/etcd/ca.crt": PEM,
    "/etc/kubernetes/pki/etcd/healthcheck-client.crt": PEM,
    "/etc/kubernetes/pki/etcd/healthcheck-client.key": "key",
    "/var/lib/kubelet/pki/kubelet.crt": PEM,
    "/var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n",
    "/run/containerd/containerd.sock": "",
    DATA: "of the former etcd",
}


class Gone(BaseException):
    """The process was killed."""


@dataclass
class Container:
    """mood: what is wrong with it: "" | exits | unhealthy | other image | other argv | never leads | exits late | breaks data."""

    id: str
    name: str
    uid: str
    argv: list[str]
    image: str
    began: float
    created_ns: int
    attempt: int = 0
    mood: str = ""
    state: str = "running"
    stops_at: Optional[float] = None
    ended: float = 0.0
    pod: str = ""
    """The name of its pod; "" for this node's static pod of the same name."""

    @property
    def is_running(self) -> bool:
        return self.state == "running"


@dataclass
class Pod:
    name: str
    text: str
    uid: str
    container: Optional[Container] = None


@functools.cache
def parse(text: str) -> Mapping[str, Any]:
    return load_mapping(text, "a manifest")


Mood = Callable[[str, str], str]
"""(component, text of its manifest) -> the mood of its containers."""
_LOOKS = frozenset(
    [
        "exists",
        "is_dir",
        "stat",
        "read_bytes",
        "read_text",
        "open_read",
        "list_dir",
        "read_link",
        "real_path",
        "free_bytes",
        "which",
        "query",
        "http_get",
        "http_ask",
        "port_holder",
        "resolve",
        "hostname",
        "environ",
        "now",
        "monotonic",
        "sleep",
        "is_root_user",
        "cpu_count",
        "lock",
    ]
)
_CHANGES = frozenset(
    ["write_file", "write_stream", "move_file", "make_dir", "remove", "remove_tree", "symlink", "run", "http_send"]
)


@dataclass
class ControlPlane(FakeHost):
    """others: host:port of other API servers -> whether they are ready. members: names of etcd's other members -> whether they serve.

    mood: what becomes of a container, by component and manifest. at_change: called after each change with its number and its words.
    """

    mood: Mood = lambda name, text: ""
    others: dict[str, bool] = field(default_factory=dict)
    members: dict[str, bool] = field(default_factory=dict)
    leader: str = "1"
    kubelet_runs: bool = True
    kubelet_answers: bool = True
    never_cleans_up: bool = False
    """It finishes with no pod, and every cgroup stays, as they do while no API server has answered a kubelet; started anew, it does not
    know the pods of before."""
    is_cut_off: bool = False
    """No API server has answered the kubelet since its start: it ends no pod whose manifest goes, and finishes with none."""
    unready: frozenset[str] = frozenset()
    """Components that run, and whose containers wait for something before they are ready. One that starts while the API serves does not."""
    runtime_answers: bool = True
    answers_at: float = 1e9
    """When a runtime that does not answer begins to."""
    back_off_s: float = BACK_OFF_S
    """How long the kubelet delays the next start of a container that has ended; one that was started anew does not know of it."""
    notices_after_s: float = 0.0
    """How long the kubelet takes to notice that a manifest is gone: a file event may get lost."""
    cannot_write: Callable[[str], bool] = lambda path: False
    dies_after: int = 0
    """After which change the process is killed; 0: never."""
    is_dead: bool = False
    at_change: Callable[[str], None] = lambda change: None
    events: list[str] = field(default_factory=list)
    """What happened to the manifests and containers, in order: "lay etcd" (beside the live one), "out etcd", "in etcd", "write etcd",
    "start etcd", "end etcd", "drop etcd" (by the kubelet)."""
    violations: list[str] = field(default_factory=list)
    pods: dict[str, Pod] = field(default_factory=dict)
    ending: list[tuple[Pod, float]] = field(default_factory=list)
    """Pods that the kubelet is stopping, and when their containers were seen to have ended; 0.0 while they have not."""
    containers: list[Container] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=dict)
    leases: dict[str, Any] = field(default_factory=dict)
    """The leases of nodes that swap, by name."""
    clock_ahead_s: float = 0.0
    """How far this node's clock is ahead of the API server's."""
    deferred: list[str] = field(default_factory=list)
    _not_before: dict[str, float] = field(default_factory=dict)
    _missed: dict[str, float] = field(default_factory=dict)
    answers_after: float = 0.0
    """When a kubelet that was started begins to answer."""
    _made: int = 0
    _served_since: float = 0.0

    def __getattribute__(self, name: str) -> Any:
        if (name in _LOOKS or name in _CHANGES) and object.__getattribute__(self, "is_dead"):
            raise Gone(name)
        return object.__getattribute__(self, name)

    # ---- the life of the machine

    def revive(self, after_s: float = 3.0) -> None:
        """Another process may start: the machine went on meanwhile."""
        self.is_dead, self.dies_after = False, 0
        self.sleep(after_s)

    def sleep(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            step = min(left, SETTLE_S)
            super().sleep(step)
            left -= step
            self.settle()

    def settle(self) -> None:
        for one in self.containers:
            if one.stops_at is not None and one.is_running and self.ticks >= one.stops_at:
                self._end(one)
        if self.kubelet_runs:
            self._sync()
        self._elect()
        self._judge()

    def _end(self, one: Container) -> None:
        one.state, one.ended = "exited", self.ticks
        self.events.append(f"end {one.name}")

    def _sync(self) -> None:
        desired = self.desired()
        self._not_before = {name: when for name, when in self._not_before.items() if name in desired}
        for name, pod in list(self.pods.items()):
            if desired.get(name) == pod.text:
                self._missed.pop(name, None)
            elif self.ticks - self._missed.setdefault(name, self.ticks) >= self.notices_after_s:
                del self.pods[name], self._missed[name]
                self.events.append(f"drop {name}")
                self.ending.append((pod, 0.0))
                waits = (
                    name == "kube-apiserver" or self.is_cut_off
                )  # for its clients; for what the API has to say of its pods
                if pod.container and pod.container.is_running and not waits:
                    pod.container.stops_at = min(pod.container.stops_at or 1e9, self.ticks + 0.5)
        self._clean_up()
        busy = {pod.name for pod, _ in self.ending}
        for name, text in desired.items():
            if name in busy:
                self._not_before[name] = self.ticks + LATE_S
            elif name not in self.pods and self.ticks >= self._not_before.setdefault(name, self.ticks + STARTS_AFTER_S):
                del self._not_before[name]
                uid = hashlib.sha256(text.encode()).hexdigest()[:32]
                self.pods[name] = Pod(name, text, uid)
                self._start(self.pods[name], attempt=0)
        for pod in self.pods.values():
            one = pod.container
            if one is not None and not one.is_running and self.ticks - one.ended >= self.back_off_s:
                self._start(pod, attempt=one.attempt + 1)

    def _clean_up(self) -> None:
        left = []
        for pod, seen in self.ending:
            ended = pod.container is None or not pod.container.is_running
            if not ended:
                left.append((pod, 0.0))
            elif not seen:
                left.append((pod, self.ticks))
            elif self.ticks - seen < 0.6 or self.never_cleans_up or self.is_cut_off:
                left.append((pod, seen))
        self.ending = left

    def desired(self) -> dict[str, str]:
        """name -> manifest, of what the kubelet reads in its folder."""
        found = {}
        for path, data in self.files.items():
            folder, _, name = path.rpartition("/")
            if folder == MANIFESTS and not name.startswith(".") and name.endswith(".yaml"):
                text = data.decode()
                found[str(parse(text)["metadata"]["name"])] = text
        return found

    def _start(self, pod: Pod, *, attempt: int) -> None:
        self._made += 1
        mood = self.mood(pod.name, pod.text) if pod.name in COMPONENTS else ""
        argv = next(iter(commands_of_pod(parse(pod.text))), [])
        if mood == "other argv":
            argv = [*argv, "--of-somebody-else"]
        image = (
            "sha256:other"
            if mood == "other image"
            else self.image_id(parse(pod.text)["spec"]["containers"][0]["image"])
        )
        made = Container(
            f"c{self._made:04d}{'0' * 59}",
            pod.name,
            pod.uid,
            argv,
            image,
            self.ticks,
            self._nanoseconds(),
            attempt,
            mood,
        )
        made.stops_at = self.ticks + {"exits": 0.4, "exits late": 8.0}.get(mood, 1e9)
        if pod.name == "etcd" and DATA not in self.files:
            self.files[DATA] = b"of the others" if "--initial-cluster-state=existing" in argv else b"of a new cluster"
            if self.files[DATA] == b"of a new cluster":
                self._blame("etcd began a new cluster, without any objects")
        if mood == "breaks data":
            self.files[DATA] = b"of the new etcd"
        if mood == "needs its own data" and self.files.get(DATA) != b"of the former etcd":
            made.stops_at, made.mood = self.ticks + 0.4, "exits"
        pod.container = made
        self.containers.append(made)
        self.events.append(f"start {pod.name}")

    def _nanoseconds(self) -> int:
        return int(self.clock.timestamp() * 1e9)

    @staticmethod
    def image_id(image: str) -> str:
        return "sha256:" + hashlib.sha256(image.encode()).hexdigest()

    def running(self, name: str) -> list[Container]:
        return [one for one in self.containers if one.name == name and one.is_running and not one.pod]

    def serves(self, name: str) -> bool:
        """Whether the component of this node works."""
        one = next(iter(self.running(name)), None)
        if one is None or one.mood in ("unhealthy", "exits") or self.ticks - one.began < SERVES_AFTER_S.get(name, 0.5):
            return False
        if name == "etcd":
            return 2 * (1 + sum(self.members.values())) > 1 + len(self.members)
        return name != "kube-apiserver" or self.serves("etcd")

    def _is_unready(self, name: str) -> bool:
        return name in self.unready and self.running(name)[0].began < self._served_since

    def _elect(self) -> None:
        if not self.serves("kube-apiserver"):
            return
        for name in COMPONENTS[2:]:
            node, _, held_by = self.holders.get(name, "").partition("_")
            holder = next((one for one in self.containers if one.id == held_by), None)
            if node and node != self.host_name:
                continue
            if holder is not None and (holder.is_running or self.ticks - holder.ended < LEASE_S):
                continue
            for one in self.running(name):
                if self.serves(name) and one.mood != "never leads":
                    self.holders[name] = f"{self.host_name}_{one.id}"

    def _renewed(self, name: str) -> float:
        """When the lease was renewed last: now, or the end of the container that holds it."""
        held_by = self.holders.get(name, "").partition("_")[2]
        holder = next((one for one in self.containers if one.id == held_by), None)
        return self.ticks if holder is None or holder.is_running else holder.ended

    def _judge(self) -> None:
        if not self.serves("kube-apiserver"):
            self._served_since = self.ticks
        for name in COMPONENTS:
            if len(self.running(name)) > 1:
                self._blame(f"{name} has two containers")
        live = {name for name in COMPONENTS if f"{MANIFESTS}/{name}.yaml" in self.files}
        if "kube-apiserver" in live and "etcd" not in live:
            self._blame("etcd is out under an API server that is in")
        if self.running("kube-apiserver") and not self.running("etcd") and not self.mood_of("etcd").startswith("exits"):
            self._blame("etcd stopped under a running API server")

    def mood_of(self, name: str) -> str:
        pod = self.pods.get(name)
        return pod.container.mood if pod and pod.container else ""

    def _blame(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)

    # ---- changes

    def _changed(self, change: str) -> None:
        self.settle()
        self.at_change(change)
        if self.dies_after and len(self.changes) >= self.dies_after:
            self.is_dead = True
            raise Gone(change)

    def _note_manifest(self, what: str, path: Path) -> None:
        if str(path.parent) == MANIFESTS:
            self.events.append(f"{what} {path.name.strip('.').partition('.yaml')[0]}")

    def write_file(self, path: Path, data: Union[bytes, str], **more: Any) -> bool:
        if self.cannot_write(str(path)):
            raise HostError(
                f"cannot write {path}", cause="No space left on device", remedy="make space", code="disk-full"
            )
        is_changed = super().write_file(path, data, **more)
        if is_changed:
            self.mtimes[str(path)] = self.clock.timestamp()
            self._note_manifest("lay" if path.name.startswith(".") else "write", path)
            self._changed(self.changes[-1])
        return is_changed

    def move_file(self, source: Path, path: Path) -> None:
        super().move_file(source, path)
        self.mtimes[str(path)] = self.mtimes.get(str(source), 0.0)
        self._note_manifest("out" if path.name.startswith(".") else "in", path)
        self._changed(self.changes[-1])

    def make_dir(self, path: Path, *, mode: int = 0o755) -> bool:
        is_made = super().make_dir(path, mode=mode)
        if is_made:
            self._changed(self.changes[-1])
        return is_made

    def remove(self, path: Path) -> bool:
        is_gone = super().remove(path)
        if is_gone:
            if not path.name.startswith("."):
                self._note_manifest("out", path)
            self._changed(self.changes[-1])
        return is_gone

    def remove_tree(self, path: Path) -> bool:
        is_gone = super().remove_tree(path)
        if is_gone:
            self._changed(self.changes[-1])
        return is_gone

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        words = tuple(str(word) for word in argv)
        answer = self._command(words, is_change=True)
        if answer is None:
            done = super().run(argv, **more)
        else:
            self.changes.append(f"run {' '.join(words)}")
            done = CommandResult(words, 0, answer)
        self._changed(self.changes[-1])
        return done

    def http_send(self, method: str, url: str, *, body: bytes = b"", **more: Any) -> HttpResponse:
        if url.endswith("/v3/maintenance/transfer-leadership"):
            self.changes.append(f"{method} {url}")
            self.leader = str(json.loads(body)["targetID"])
            self._changed(self.changes[-1])
            return HttpResponse(200, b"{}")
        if "/leases" in url:
            return self._write_lease(method, url, body=body)
        return super().http_send(method, url, body=body, **more)

    def _write_lease(self, method: str, url: str, *, body: bytes) -> HttpResponse:
        if not self.serves("kube-apiserver"):
            raise Unreachable(url, "refused", text="connection refused")
        found = json.loads(body) if body else {}
        name = url.partition("?")[0].rpartition("/")[2] if method != "POST" else found["metadata"]["name"]
        self.changes.append(f"{method} {url}")
        if name in COMPONENTS:
            return self._give_up(name, found)
        if method == "DELETE":
            self.leases.pop(name)
        else:
            owner = {"manager": "kb", "operation": "Update", "time": f"{self._server_time():%Y-%m-%dT%H:%M:%SZ}"}
            found["metadata"]["managedFields"] = [owner]
            self.leases[name] = found
        self._changed(self.changes[-1])
        return _json(found)

    def _give_up(self, name: str, found: dict[str, Any]) -> HttpResponse:
        """The lease of a controller is given up on behalf of its holder."""
        if found["metadata"]["resourceVersion"] != self._version_of(name):
            return HttpResponse(409, b"{}")
        holder = self.holders.get(name, "").partition("_")[2]
        if any(one.id == holder and one.is_running for one in self.containers):
            self._blame(f"the lease of a {name} that runs was given up")
        assert found["spec"]["holderIdentity"] is None
        self.holders[name] = ""
        self._changed(self.changes[-1])
        return _json(found)

    def _version_of(self, name: str) -> str:
        return f"{self.holders.get(name, '')} {self._renewed(name):.0f}"

    def _server_time(self) -> datetime.datetime:
        return self.now() - datetime.timedelta(seconds=self.clock_ahead_s)

    @contextlib.contextmanager
    def lock(self, path: Path, holder: str) -> Iterator[None]:
        yield

    # ---- programs

    def which(self, program: str) -> Optional[Path]:
        return Path("/usr/bin") / program if program in ("crictl", "systemctl", "kubelet") else super().which(program)

    def query(self, argv: Argv, **more: Any) -> CommandResult:
        words = tuple(str(word) for word in argv)
        if words[0] == "crictl" and not self.runtime_answers and self.ticks < self.answers_at:
            return CommandResult(words, 124, "", "context deadline exceeded")
        answer = self._command(words, is_change=False)
        return super().query(argv, **more) if answer is None else CommandResult(words, 0, answer)

    def _command(self, words: tuple[str, ...], *, is_change: bool) -> Optional[str]:
        if words[0] == "crictl":
            verb = next(word for word in words[1:] if word in _CRICTL)
            return _CRICTL[verb](self, words[words.index(verb) + 1 :])
        if words[:3] == ("systemctl", "is-active", "kubelet"):
            return "active\n" if self.kubelet_runs else "inactive\n"
        if words[0] == "systemctl" and words[1] in ("start", "restart") and words[2:] == ("kubelet",):
            if not self.kubelet_runs or words[1] == "restart":  # a new one knows no pods that have ended
                self.pods = {name: pod for name, pod in self.pods.items() if pod.container and pod.container.is_running}
                self.ending = [one for one in self.ending if one[0].container and one[0].container.is_running]
                self._not_before.clear()
            if not self.kubelet_runs:
                self.answers_after = self.ticks + 1.5
            self.kubelet_runs = True
            return ""
        if words == ("systemctl", "stop", "kubelet"):
            self.kubelet_runs = False
            return ""
        if words[0] == "fallocate":
            self.files[words[-1]] = b"0"
            return ""
        return self._find(words) if words[0] == "find" else None

    def _find(self, words: tuple[str, ...]) -> str:
        kept = {pod.uid for pod in self.pods.values()}
        kept |= {pod.uid for pod, seen in self.ending if not seen or self.ticks - seen < 0.3}
        wanted = [word for word in words if "pod" in word]
        if self.never_cleans_up or (self.is_cut_off and self.kubelet_runs):
            return "".join(f"/sys/fs/cgroup/kubepods/{word}\n" for word in wanted[:1])
        return "".join(f"/sys/fs/cgroup/kubepods/pod{uid}\n" for uid in kept if f"pod{uid}" in wanted)

    def _list(self, words: tuple[str, ...]) -> str:
        name = words[words.index("--name") + 1].strip("^$").replace("\\", "") if "--name" in words else ""
        rows = [
            {
                "id": one.id,
                "metadata": {"name": one.name, "attempt": one.attempt},
                "state": f"CONTAINER_{one.state.upper()}",
                "createdAt": str(one.created_ns),
                "labels": {"io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.name": one.pod or f"{one.name}-cp1",
                           "io.kubernetes.pod.uid": one.uid},
            }
            for one in self.containers[-12:]
            if not name or one.name == name
        ]  # fmt: skip
        return json.dumps({"containers": rows})

    def _inspect(self, words: tuple[str, ...]) -> str:
        shown = []
        for one in self.containers:
            if one.id in words:
                status = {"id": one.id, "imageRef": one.image, "exitCode": 1, "logPath": f"/var/log/{one.id}.log"}
                shown.append({"status": status, "info": {"runtimeSpec": {"process": {"args": one.argv}}}})
        return json.dumps(shown if len(shown) != 1 else shown[0])

    def _stop(self, words: tuple[str, ...]) -> str:
        for one in self.containers:
            if one.id in words and one.is_running:
                self._end(one)
        return ""

    # ---- the network

    def http_get(self, url: str, *, tls: Optional[AnyTls] = None, **more: Any) -> HttpResponse:
        rest = url.partition("://")[2]
        address, _, path = rest.partition("/")
        port = address.rpartition(":")[2]
        if port == "10250":
            return self._kubelet(url, path)
        if address == SERVER and self.serves("kube-apiserver"):
            return self._api(url, path)
        if self.others.get(address):
            return self.urls.get(url, HttpResponse(200, b"ok"))
        names = {"10257": "kube-controller-manager", "10259": "kube-scheduler"}
        if port in names and self.running(names[port]):
            is_well = self.serves(names[port]) and not (path == "readyz" and self._is_unready(names[port]))
            return HttpResponse(200, b"ok") if is_well else HttpResponse(500, b"starting")
        return super().http_get(url, tls=tls, **more)

    def _kubelet(self, url: str, path: str) -> HttpResponse:
        if not (self.kubelet_runs and self.kubelet_answers) or self.ticks < self.answers_after:
            raise Unreachable(url, "refused", text="connection refused")
        if self.is_cut_off:
            return HttpResponse(500, b"Authorization error (user=kube-apiserver-kubelet-client)")
        if path == "metrics":
            lines = 'kubelet_working_pods{config="desired",lifecycle="sync",static="true"} 4\n'
            lines += (
                f'kubelet_working_pods{{config="desired",lifecycle="terminating",static="true"}} {len(self.ending)}\n'
            )
            return HttpResponse(200, lines.encode())
        rows = [
            {
                "metadata": {"name": f"{pod.name}-cp1", "uid": pod.uid, "annotations": {"kubernetes.io/config.source": "file"}},
                "spec": {"containers": [{"name": pod.name}]},
            }
            for pod in self.pods.values()
        ]  # fmt: skip
        return HttpResponse(200, json.dumps({"items": rows}).encode())

    def _api(self, url: str, path: str) -> HttpResponse:
        if path.partition("?")[0] in ("livez", "readyz"):
            return HttpResponse(200, b"ok", {"date": f"{self._server_time():%a, %d %b %Y %H:%M:%S} GMT"})
        if path.endswith("/namespaces/kube-system"):
            return _json({"kind": "Namespace", "metadata": {"name": "kube-system"}})
        if "/leases/" in path:
            name = path.rpartition("/")[2]
            if name not in COMPONENTS:
                return _json(self.leases[name]) if name in self.leases else HttpResponse(404, b"{}")
            spec = {"holderIdentity": self.holders.get(name, ""), "renewTime": f"{self._renewed(name):.0f}"}
            return _json({"metadata": {"name": name, "resourceVersion": self._version_of(name)}, "spec": spec})
        if path.endswith("/endpointslices/kubernetes"):
            ends = [{"addresses": [one.partition(":")[0]]} for one in (SERVER, *self.others)]
            return _json(
                {"metadata": {"name": "kubernetes"}, "ports": [{"name": "https", "port": 6443}], "endpoints": ends}
            )
        return self.urls.get(url, HttpResponse(404, b"{}"))

    def http_ask(self, url: str, body: bytes, **more: Any) -> HttpResponse:
        address, _, path = url.partition("://")[2].partition("/v3/")
        place = address.partition(":")[0]
        index = int(place.rpartition(".")[2]) - 10
        names = ["cp1", *self.members]
        if not 1 <= index <= len(names):
            return super().http_ask(url, body, **more)
        is_up = bool(self.running("etcd")) if index == 1 else list(self.members.values())[index - 2]
        if not is_up or (index == 1 and self.mood_of("etcd") in ("unhealthy", "exits")):
            raise Unreachable(url, "refused", text="connection refused")
        if path == "kv/range":
            return _json({}) if index > 1 or self.serves("etcd") else HttpResponse(503, b'{"message": "no leader"}')
        if path == "maintenance/status":
            leader = self.leader if self.leader != "1" or self.running("etcd") else ""
            return _json({"raftAppliedIndex": "100", "raftIndex": "100", "leader": leader, "version": "3.6.0"})
        rows = [
            {"ID": str(n), "name": name, "peerURLs": [f"https://10.0.0.{n + 10}:2380"], "clientURLs": [f"https://10.0.0.{n + 10}:2379"]}
            for n, name in enumerate(names, start=1)
        ]  # fmt: skip
        return _json({"members": rows})


def _json(value: object) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode(), {"content-type": "application/json"})


def _inspect_image(host: ControlPlane, words: tuple[str, ...]) -> str:
    return json.dumps({"status": {"id": host.image_id(words[-1]), "repoTags": [words[-1]]}})


def _list_images(host: ControlPlane, words: tuple[str, ...]) -> str:
    names = [f"registry.k8s.io/{name}:{tag}" for name in COMPONENTS for tag in ("v1.35.6", "v1.36.3")]
    return json.dumps({"images": [{"repoTags": names, "repoDigests": []}]})


_CRICTL: Mapping[str, Callable[[ControlPlane, tuple[str, ...]], str]] = {
    "ps": ControlPlane._list,
    "inspect": ControlPlane._inspect,
    "inspecti": _inspect_image,
    "images": _list_images,
    "stop": ControlPlane._stop,
    "info": lambda host, words: json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}),
    "pods": lambda host, words: "",
    "version": lambda host, words: "RuntimeName:  containerd\nRuntimeVersion:  v2.1.0\n",
    "runtime-config": lambda host, words: "{}",
    "logs": lambda host, words: "",
}


def make_control_plane(kind: type[ControlPlane] = ControlPlane, /, **fields: Any) -> ControlPlane:
    """A node, cp1, whose four static pods have run for a minute, and whose controllers lead."""
    host = kind(host_name="cp1", **fields)
    host.dirs.update(("/run/systemd/system", "/var/lib/kubelet", "/var/log"))
    host.files.update({path: text.encode() for path, text in FILES.items()})
    for name, text in FORMER.items():
        host.files[f"{MANIFESTS}/{name}.yaml"] = text.encode()
        host.modes[f"{MANIFESTS}/{name}.yaml"] = 0o600
    dies_after, host.dies_after = host.dies_after, 0
    host.sleep(60.0)
    host.dies_after = dies_after
    host.changes.clear()
    host.events.clear()
    assert not host.violations
    return host


# ---- what is looked at after a run


def manifests_of(host: ControlPlane) -> dict[str, str]:
    """Every file of the kubelet's folder, those with a dot too."""
    prefix = f"{MANIFESTS}/"
    return {path[len(prefix) :]: data.decode() for path, data in host.files.items() if path.startswith(prefix)}


def as_files(texts: Mapping[str, str]) -> dict[str, str]:
    return {f"{name}.yaml": text for name, text in texts.items()}


def status_of(host: ControlPlane) -> str:
    """The status of the last swap in its record; "" if there is none."""
    record = host.files.get("/var/lib/kb/swap/swap.json")
    return str(json.loads(record)["status"]) if record is not None else ""


def expect_settled(host: ControlPlane, texts: Mapping[str, str], *, status: str) -> None:
    """These manifests byte for byte and nothing else in the folder; one container of each, which works; no ballast, no copy."""
    host.sleep(20.0)
    assert manifests_of(host) == as_files(texts)
    assert {name: len(host.running(name)) for name in texts} == dict.fromkeys(texts, 1)
    assert {name: host.serves(name) for name in texts} == dict.fromkeys(texts, True)
    assert {name: host.pods[name].text for name in texts} == dict(texts)
    assert not [path for path in host.files if "/ballast" in path]
    assert not [path for path in host.files if ".kb-former" in path]
    assert status_of(host) == status
    assert not host.leases
    assert not host.violations
