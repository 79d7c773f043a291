"""The lab: one network namespace with a bridge, nodes plugged into it, a registry, and a way to look at what wants out.

Owns: names, addresses and the lab's folder below the cache; finding and removing what a killed run left behind.
Nothing of a lab reaches the outside: its gateway answers that every other network is unreachable, and counts who asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from . import image, images, settings
from .node import Node, NodeSpec
from .registry import Registry
from .settings import LabError, Release
from .shell import Command, Result, as_shell, sh

FIRST_NUMBER, LAST_NUMBER = 11, 99
SEED_LAB = "seed"
GATEWAY_MAC = "02:6b:62:00:00:01"

# Who wanted to leave: packets addressed to the gateway's hardware for another network, and questions to its name server.
OUTSIDE_RULES = f"""\
table inet outside {{
    set asked {{ typeof ip daddr . meta l4proto . th dport; flags dynamic; }}
    chain watch {{
        type filter hook prerouting priority -300;
        ether daddr {GATEWAY_MAC} ip daddr != {{ 10.77.0.0/24, 10.78.0.0/24 }} meta l4proto {{ tcp, udp }} update @asked {{ ip daddr . meta l4proto . th dport }}
        ether daddr {GATEWAY_MAC} ip daddr {{ 10.77.0.1, 10.78.0.1 }} udp dport 53 update @asked {{ ip daddr . meta l4proto . th dport }}
    }}
}}
"""


INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1024


def _raise_inotify_limit() -> None:
    """All nodes' programs are one user's to the kernel, and its default of 128 is used up by two or three nodes:
    kube-proxy then ends with "too many open files"."""
    if int(INOTIFY.read_text()) < INOTIFY_INSTANCES:
        INOTIFY.write_text(f"{INOTIFY_INSTANCES}\n")


class Lab:
    """A lab of that name. Labs of different names run side by side, each with the same addresses."""

    network = "10.77.0"
    gateway = "10.77.0.1"
    bridge = "br0"
    far_network = "10.78.0"
    far_gateway = "10.78.0.1"
    far_bridge = "br1"
    """A second network, which the lab's own namespace routes to and from the first."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,12}", name):
            raise LabError(f"a lab's name has up to twelve lower-case letters and digits, not {name!r}")
        self.name = name
        self.folder = settings.cache_dir() / "labs" / name
        self.netns = f"{settings.PREFIX}-{name}"
        self.key = self.folder / "id_ed25519"
        self.nodes: dict[str, Node] = {}
        self.registry = Registry(self)

    # -------------------------------------------------------------------------------------------- life

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Own the lab for the time of the block; an error at once when somebody else does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                who = lock.read().strip() or "unknown"
                raise LabError(
                    f"lab {self.name} is in use by process {who}; set KB_E2E_LAB=<other name> to work beside it"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def create(self) -> Lab:
        """Make the lab's network and key, unless they exist."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _raise_inotify_limit()
        if not self.key.exists():
            sh(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.netns, "-f", str(self.key)])
        if not Path("/run/netns", self.netns).exists():
            sh(["ip", "netns", "add", self.netns])
            commands = (
                "link set lo up",
                f"link add {self.bridge} address {GATEWAY_MAC} type bridge",
                f"addr add {self.gateway}/24 dev {self.bridge}",
                f"link set {self.bridge} up",
                f"link add {self.far_bridge} address {GATEWAY_MAC} type bridge",
                f"addr add {self.far_gateway}/24 dev {self.far_bridge}",
                f"link set {self.far_bridge} up",
                "route add unreachable default",
            )
            sh(["ip", "-netns", self.netns, "-batch", "-"], stdin="\n".join(commands) + "\n")
            # The gateway says no to everybody at once; by default the kernel does so once a second.
            self.exec("cd /proc/sys/net/ipv4 && echo 1 >ip_forward && echo 0 >icmp_ratelimit")
            self.exec(["nft", "-f", "-"], stdin=OUTSIDE_RULES)
        return self

    def load(self) -> Lab:
        """Take up the nodes that another process made and left running."""
        for spec in sorted(self.folder.glob("nodes/*/spec.json")):
            node = Node(self, NodeSpec(**json.loads(spec.read_text())))
            self.nodes[node.name] = node
        return self

    def remove_leftovers(self) -> None:
        """Remove whatever a killed run left: processes by their recorded numbers, then mounts, namespaces and folders."""
        for folder in sorted(self.folder.glob("nodes/*")):
            number = FIRST_NUMBER
            with contextlib.suppress(OSError, ValueError):
                number = int(json.loads((folder / "spec.json").read_text())["number"])
            Node(self, NodeSpec(folder.name, number)).remove()
        self.nodes.clear()
        self.registry.stop()
        for netns in Path("/run/netns").glob(f"{self.netns}*"):
            # The names of one lab's namespaces may begin like another's: test, test2.
            if netns.name == self.netns or netns.name.startswith(f"{self.netns}-"):
                sh(["ip", "netns", "delete", netns.name])

    def destroy(self) -> None:
        """Remove every node, the registry and the network; caches stay."""
        self.remove_leftovers()
        image.remove_tree(self.registry.folder)

    # -------------------------------------------------------------------------------------------- nodes

    def add_node(self, name: Optional[str] = None, *, start: bool = True, **wishes: Any) -> Node:
        """Make a node and boot it. The wishes are NodeSpec's fields; containerd follows the version by default."""
        number = self._pick_number()
        version = wishes.get("version")
        if version is not None:
            wishes["version"] = settings.find_release(version).minor
        if not wishes.get("containerd"):
            wishes["containerd"] = settings.MINORS[wishes["version"]].containerd if version else "1.6"
        spec = NodeSpec(name or f"node{number - FIRST_NUMBER + 1}", number, **wishes)
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", spec.name):
            raise LabError(f"not a host name: {spec.name!r}")
        if spec.name in self.nodes:
            raise LabError(f"the lab has a node {spec.name} already")
        node = self.nodes[spec.name] = Node(self, spec)
        node.create_disk()
        return node.start() if start else node

    def _pick_number(self) -> int:
        taken = {node.spec.number for node in self.nodes.values()}
        return next(n for n in range(FIRST_NUMBER, LAST_NUMBER) if n not in taken)

    def remove_node(self, node: Node) -> None:
        """Kill a node and remove its disk."""
        node.remove()
        self.nodes.pop(node.name, None)

    def find_node(self, name: str) -> Node:
        """A node by its name."""
        if name not in self.nodes:
            raise LabError(f"lab {self.name} has no node {name} (it has: {', '.join(self.nodes) or 'none'})")
        return self.nodes[name]

    @staticmethod
    def ensure_seed(release: Release, containerd: str) -> Path:
        """A /var/lib/containerd with all images of a release in it, to be copied to new nodes (built once, about 25 s)."""
        key = image.hash_recipe(images.images_key(release), image.variant_key(containerd))
        target = settings.cache_dir() / "seeds" / f"{release.minor}-containerd{containerd}-{key}"

        def build(draft: Path) -> None:
            # In a lab of its own: its node must not be seen, numbered or cleaned up as one of this lab's.
            remove_dead_seeds()
            lab = Lab(f"{SEED_LAB}{os.getpid() % 100000}")
            with lab.hold():
                try:
                    node = lab.create().add_node("seed", version=release.minor, containerd=containerd, images=False)
                    node.load_images()
                    node.exec("sync -f /var/lib/containerd")
                    node.stop()
                    for entry in node.disk_path("/var/lib/containerd").iterdir():
                        entry.rename(draft / entry.name)
                finally:
                    lab.destroy()
                    shutil.rmtree(lab.folder, ignore_errors=True)

        return image.build_once(target, build)

    # -------------------------------------------------------------------------------------------- the lab's own corner

    @property
    def ssh_options(self) -> list[str]:
        """Options of ssh and scp to reach this lab's nodes, whatever this machine's own settings say."""
        options = (
            "BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5",
            "ServerAliveInterval=5", "ServerAliveCountMax=6", "IdentitiesOnly=yes",
        )  # fmt: skip
        return ["-F", "none", "-i", str(self.key), *(f"-o{option}" for option in options)]

    def enter_argv(self) -> list[str]:
        """The start of a command line that runs in the lab's network."""
        return ["nsenter", f"--net=/run/netns/{self.netns}"]

    def exec(self, command: Command, *, check: bool = True, timeout: float = 60, stdin: Optional[str] = None) -> Result:
        """Run a command on this machine, in the lab's network."""
        argv = [*self.enter_argv(), "sh", "-c", as_shell(command)]
        return sh(argv, check=check, timeout_s=timeout, stdin=stdin, shown=f"lab# {as_shell(command)}")

    def list_outside(self, *, cluster: Sequence[str] = ("10.96.0.0/12", "10.244.0.0/16")) -> list[str]:
        """What nodes and pods asked of the outside since the last clear_outside(): `address . protocol . port`, sorted.

        The cluster's own networks are left out: until kube-proxy has set its rules, a Service's address goes to the gateway.
        Questions to the name server show as the gateway's port 53.
        """
        inside = [ipaddress.ip_network(network) for network in cluster]
        table = json.loads(self.exec(["nft", "-j", "list", "set", "inet", "outside", "asked"]).stdout)
        elements = next(entry["set"] for entry in table["nftables"] if "set" in entry).get("elem", [])
        found = (e["elem"]["val"] if "elem" in e else e for e in elements)
        parts = sorted([str(part) for part in e["concat"]] for e in found)
        return [" . ".join(p) for p in parts if not any(ipaddress.ip_address(p[0]) in network for network in inside)]

    def clear_outside(self) -> None:
        """Forget what was asked so far."""
        self.exec(["nft", "flush", "set", "inet", "outside", "asked"])


def remove_dead_seeds() -> None:
    """Remove the short-lived labs in which a killed run was preparing a seed."""
    for folder in sorted((settings.cache_dir() / "labs").glob(f"{SEED_LAB}*")):
        lab = Lab(folder.name)
        with contextlib.suppress(LabError), lab.hold():
            lab.destroy()
            shutil.rmtree(folder, ignore_errors=True)


def clean_cache() -> list[Path]:
    """Remove cached builds whose recipe is not today's, unless a node stands on them; returns what was removed."""
    keep = {image.ensure_base()}
    for variant in image.VARIANTS:
        keep.update(image.ensure_variant(variant))
    keep.update(image.ensure_dnf("bare"))
    keep.update(image.ensure_openrc())
    with contextlib.suppress(LabError):  # without its programs
        keep.update(image.ensure_crio())
    for release in settings.read_releases().values():
        keep.add(images.ensure_layout(release))
        keep.add(Lab.ensure_seed(release, release.facts.containerd))
        keep.update(image.ensure_release_layer(release, kubeadm=kubeadm) for kubeadm in (False, True))
    for used in (settings.cache_dir() / "labs").glob("*/nodes/*/layers"):
        keep.update(Path(line) for line in used.read_text().splitlines())
    found = [path for kind in ("layers", "images", "seeds") for path in (settings.cache_dir() / kind).iterdir()]
    removed = [path for path in sorted(found) if path not in keep and not path.name.startswith(".")]
    for path in removed:
        image.remove_tree(path)
    return removed
