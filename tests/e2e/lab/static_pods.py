"""What the tests of running static pods share: a manifest with another flag, what runs, what is stored, who could not be reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from . import api_client, health_log
from .images import WEB_IMAGE
from .node import Node, wait_until
from .shell import Result

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
MANIFESTS = "/etc/kubernetes/manifests"
SWAP = "python3 kb.pyz reconfigure static-pods"
HARMLESS = {
    "etcd": "--max-txn-ops=256",
    "kube-apiserver": "--max-requests-inflight=500",
    "kube-controller-manager": "--concurrent-gc-syncs=25",
    "kube-scheduler": "--kube-api-qps=60",
}
"""A flag of each component that changes nothing that a test looks at."""
SLOW = 2.0
"""By how much the bounds may be exceeded here: the nodes of a lab share two processors with those of other labs, and a control plane
whose pods start in 5 s when nothing else runs was seen to need 10 s."""
HEALTH_LOG = "/root/health.log"
STORED = (
    "configmaps,secrets,serviceaccounts,namespaces,nodes,clusterroles,clusterrolebindings,roles,daemonsets,deployments"
)


# ---- manifests


def manifest(component: str) -> str:
    return f"{MANIFESTS}/{component}.yaml"


def add_flag(text: str, flag: str) -> str:
    """The manifest with this flag, `--name=value`, in place of the one of that name if there is one."""
    name = flag.partition("=")[0]
    without = re.sub(rf"^    - {re.escape(name)}(=.*)?\n", "", text, flags=re.MULTILINE)
    found = re.subn(r"^(  - command:\n    - \S+\n)", rf"\g<1>    - {flag}\n", without, count=1, flags=re.MULTILINE)
    assert found[1] == 1, text
    return found[0]


def draft(node: Node, wanted: Mapping[str, str], folder: str = "/root/wanted") -> str:
    """Write these manifests, by component, where nothing reads them; returns their paths as words of a command."""
    for component, text in wanted.items():
        node.write(f"{folder}/{component}.yaml", text)
    return " ".join(f"{folder}/{component}.yaml" for component in wanted)


def read_manifests(node: Node) -> dict[str, str]:
    return {component: node.read(manifest(component)) for component in COMPONENTS}


def with_flags(node: Node, flags: Mapping[str, str]) -> dict[str, str]:
    """The manifests of these components, each with one more flag."""
    return {component: add_flag(node.read(manifest(component)), flag) for component, flag in flags.items()}


def swap(node: Node, words: str, *, check: bool = True) -> Result:
    return node.run(f"{SWAP} {words} --yes", check=check, timeout=600)


# ---- what runs, and what is stored


@dataclass(frozen=True)
class Running:
    """A container: its ID, and what it was started with."""

    id: str
    argv: tuple[str, ...]
    image: str
    mounts: tuple[str, ...]

    @property
    def start(self) -> tuple[Any, ...]:
        """Everything but the ID, and the environment, which names the Services that the kubelet knew by then."""
        return self.argv, self.image, self.mounts


def read_running(node: Node) -> dict[str, Running]:
    """The running containers of the static pods, by component."""
    names = "|".join(COMPONENTS)
    shown = node.run(f"crictl inspect $(crictl ps -q --name '^({names})$')").stdout
    found: dict[str, Running] = {}
    for one in _split(shown):
        name = one["status"]["metadata"]["name"]
        assert name not in found, f"two of {name} run"
        process = one["info"]["runtimeSpec"]["process"]
        mounts = (
            f"{m['containerPath']} {_without_uid(m['hostPath'])} {m.get('readonly')}" for m in one["status"]["mounts"]
        )
        found[name] = Running(
            one["status"]["id"],
            tuple(process["args"]),
            one["status"]["imageRef"],
            tuple(sorted(mounts)),
        )
    return found


def _split(text: str) -> Iterator[Any]:
    """The documents of a text, one after the other or in a list."""
    place, decoder = 0, json.JSONDecoder()
    while text[place:].strip():
        place += len(text[place:]) - len(text[place:].lstrip())
        value, place = decoder.raw_decode(text, place)
        yield from value if isinstance(value, list) else [value]


def _without_uid(path: str) -> str:
    """What the kubelet makes for one container is called otherwise for the next."""
    return re.sub(r"(?<=/pods/).*", "POD", path)


def argv_of(text: str) -> tuple[str, ...]:
    """What a manifest has its container started with."""
    block = re.search(r"^  - command:\n((?:    - .*\n)+)", text, re.MULTILINE)
    assert block, text
    return tuple(line[6:].strip('"') for line in block[1].splitlines())


def fill_store(node: Node, count: int = 300) -> None:
    """Make some objects that are counted later."""
    items = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"counted-{number}"}, "data": {"number": str(number)}}
             for number in range(count)]  # fmt: skip
    node.write("/root/counted.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    node.kubectl("create --validate=false -f /root/counted.json", timeout=180)


def read_stored(node: Node) -> set[str]:
    """Every object of the kinds that stay when nobody does anything: kind, namespace, name, and UID."""
    columns = "K:.kind,S:.metadata.namespace,N:.metadata.name,U:.metadata.uid"
    shown = node.kubectl(f"get {STORED} -A --no-headers -o custom-columns={columns}")
    return {re.sub(r" +", " ", line).strip() for line in shown.splitlines()}


# ---- who could not be reached, and for how long


BETWEEN_S = 5.0


def start_program(node: Node, unit: str, argv: Sequence[str]) -> None:
    node.run(["systemd-run", "--quiet", "--collect", "--unit", unit, "--working-directory", "/root", *argv])


def start_health_log(node: Node) -> None:
    node.scp(health_log.PROGRAM, "/root/health_log.py")
    start_program(node, "health-log", ["python3", "health_log.py", node.address, HEALTH_LOG])
    wait_until(lambda: node.exists(HEALTH_LOG), what="the first look", timeout_s=20)


def clear_health_log(node: Node) -> None:
    node.run(f"truncate --size 0 {HEALTH_LOG}")


def read_outages(node: Node) -> dict[str, float]:
    """For how many seconds each component was away since the log was cleared: from the first bad answer to the last one, so that a
    new one that lived for a moment counts as none."""
    outages: dict[str, float] = {}
    rows = [json.loads(line) for line in node.read(HEALTH_LOG).splitlines() if line.endswith("]")]
    for component in COMPONENTS:
        bad = [began for began, seen in rows if not seen[component]]
        outages[component] = round(bad[-1] - bad[0] + health_log.EVERY_S, 1) if bad else 0.0
    return outages


def read_gaps(node: Node) -> dict[str, list[float]]:
    """The same in pieces: the seconds of each time that a component was away. What was well for less than BETWEEN_S in between counts as none."""
    rows = [json.loads(line) for line in node.read(HEALTH_LOG).splitlines() if line.endswith("]")]
    gaps: dict[str, list[float]] = {}
    for component in COMPONENTS:
        pieces: list[tuple[float, float]] = []
        for began in (began for began, seen in rows if not seen[component]):
            if pieces and began - pieces[-1][1] < BETWEEN_S:
                pieces[-1] = (pieces[-1][0], began)
            else:
                pieces.append((began, began))
        gaps[component] = [round(last - first + health_log.EVERY_S, 1) for first, last in pieces]
    return gaps


@dataclass(frozen=True)
class Client:
    """A client that runs on a node, and its log. kubeconfig: on the node."""

    node: Node
    way: str
    kubeconfig: str = "/etc/kubernetes/admin.conf"

    @property
    def unit(self) -> str:
        return f"client-{self.way}"

    @property
    def _log(self) -> str:
        return f"/root/{self.unit}.log"

    def start(self) -> None:
        self.node.scp(api_client.PROGRAM, "/root/api_client.py")
        self.node.run(["rm", "-f", self._log])
        self._start(
            ["python3", "/root/api_client.py", self.kubeconfig, self._log, self.way, f"{self.unit}-{self.node.name}"]
        )
        wait_until(lambda: self.node.exists(self._log), what="the client's first call", timeout_s=60)

    def _start(self, argv: Sequence[str]) -> None:
        start_program(self.node, self.unit, argv)

    def stop(self) -> Calls:
        until = float(self.node.run("date +%s.%N").stdout)
        self._stop()
        rows = [json.loads(line) for line in self.node.read(self._log).splitlines() if line.endswith("]")]
        return Calls(tuple(tuple(row) for row in rows), until)

    def _stop(self) -> None:
        self.node.run(f"systemctl stop {self.unit}")


@dataclass(frozen=True)
class PodClient(Client):
    """One that runs in a pod on the node. server: where the pod is made. is_on_host: it shares the node's network, and so its load balancer."""

    server: Optional[Node] = None
    is_on_host: bool = True

    @property
    def unit(self) -> str:
        return f"pod-{'host' if self.is_on_host else 'own'}-{self.way}"

    @property
    def name(self) -> str:
        return f"{self.unit}-{self.node.name}"

    def _start(self, argv: Sequence[str]) -> None:
        assert self.server is not None
        container = {
            "name": "client",
            "image": WEB_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/busybox", "chroot", "/host", *argv],  # the image has no Python; the node has
            "volumeMounts": [{"name": "host", "mountPath": "/host"}],
        }
        spec = {
            "nodeName": self.node.name,
            "hostNetwork": self.is_on_host,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}
        self.server.kubectl("create --validate=false -f -", stdin=json.dumps(pod))

    def _stop(self) -> None:
        assert self.server is not None
        self.server.kubectl(f"delete pod {self.name} --grace-period=0 --force --wait=false")


@dataclass(frozen=True)
class Calls:
    """What a client did: (began, seconds, verb, answer) for each call. until: when it was stopped, perhaps in the middle of a call."""

    rows: tuple[tuple[Any, ...], ...]
    until: float

    @property
    def failed(self) -> list[tuple[Any, ...]]:
        return [row for row in self.rows if row[3] != "200"]

    @property
    def longest_gap_s(self) -> float:
        """The longest time without a call that ended well."""
        ends = [began + took for began, took, _, answer in self.rows if answer == "200"]
        return max((after - before for before, after in zip(ends, [*ends[1:], self.until])), default=float("inf"))

    def __str__(self) -> str:
        return f"{len(self.rows)} calls, {len(self.failed)} failed, longest gap {self.longest_gap_s:.2f} s"


# ---- what happens meanwhile


def meddle(node: Node, when: str, action: str) -> None:
    """Do this on the node, once, as soon as the other is true: lines for the shell."""
    line = f"until {when}; do sleep 0.05; done; {action}"
    start_program(node, "meddler", ["sh", "-c", line])


def is_out(component: str) -> str:
    """For the shell: whether a swap has taken this component's manifest out."""
    return f"test -e {MANIFESTS}/.{component}.yaml.kb-former"


def list_left(node: Node) -> list[str]:
    """What a swap may not leave behind."""
    shown = node.run(f"ls -A {MANIFESTS} /var/lib/kb/swap /var/lib/etcd 2>/dev/null; true").stdout
    return [word for word in shown.split() if ".kb-" in word or word.startswith("ballast")]
