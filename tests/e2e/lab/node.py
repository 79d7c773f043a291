"""One node: a systemd-nspawn container that boots Debian, and everything a test does with it.

Owns: the node's disk (an overlay upon the layers of image.py, plus ordinary folders for what may not lie on an overlay), its
network namespace, its cgroup, its processes. A node keeps its disk when it is stopped or killed, and gets it back at start().
Must not: know pytest; choose addresses or names (lab.py does).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from . import cgroups, image, images, runtime, settings
from .settings import LabError, Release
from .shell import Command, CommandFailed, Result, as_shell, sh

if TYPE_CHECKING:
    from .lab import Lab

# An overlay cannot lie upon an overlay, and these hold overlays, mounts, or a data base that wants a real file system.
DISK_FOLDERS = ("var/lib/containerd", "var/lib/containers", "var/lib/kubelet", "var/lib/etcd")
KUBECONFIG = "/etc/kubernetes/admin.conf"
INTERFACE = "eth0"
STOP_S = 150.0
"""systemd waits for each container for 90 s, and an API server whose etcd has no quorum takes all of them."""
OFFERED = "/opt/kubernetes"
"""Where offer_release puts a release's programs."""

# What the packages of the Kubernetes project install; kb writes its own, kubeadm expects them.
KUBELET_UNIT = """\
[Unit]
Description=kubelet: The Kubernetes Node Agent
Documentation=https://kubernetes.io/docs/
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
"""
KUBEADM_DROP_IN = """\
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"""


@dataclass(frozen=True)
class NodeSpec:
    """How a node is made.

    `containerd_config` is a key of runtime.CONFIGS or the text of a config.toml. `prepared` is what kubeadm's manual asks of
    the operator: the kubelet's unit as its package installs it, and IP forwarding; `kubeadm` adds its program to that.
    `far`: on the lab's second network, beyond a router.
    `dnf` puts Debian's dnf beside apt. `crio`: CRI-O in the place of containerd, with an empty image store.
    `openrc`: OpenRC in the place of systemd.
    """

    name: str
    number: int
    version: Optional[str] = None
    containerd: str = "1.6"
    containerd_config: str = "lab"
    images: bool = True
    kubelet: bool = True
    kubeadm: bool = False
    prepared: bool = False
    default_route: bool = True
    far: bool = False
    dnf: bool = False
    crio: bool = False
    openrc: bool = False


@dataclass
class Running:
    """The processes of a booted node, with the time they started: a number alone may be somebody else's by now."""

    nspawn: int
    leader: int
    started: dict[str, int]
    groups: list[str]


def read_start_time(pid: int) -> Optional[int]:
    """When a process started, in ticks since the machine did; None when there is no such living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until(probe: Callable[[], Any], *, what: str, timeout_s: float, every_s: float = 0.2) -> Any:
    """Call `probe` until it gives something true, and return that. A probe's LabError counts as not yet."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            if value := probe():
                return value
        except LabError as error:
            last = f"; at last: {error}"
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:g} s in vain for {what}{last}")
        time.sleep(every_s)


class Node:
    """A node of a lab. Made by Lab.add_node, which also boots it."""

    def __init__(self, lab: Lab, spec: NodeSpec) -> None:
        self.lab = lab
        self.spec = spec
        self.name = spec.name
        self.address = f"{lab.far_network if spec.far else lab.network}.{spec.number}"
        self.folder = lab.folder / "nodes" / spec.name
        self.root = self.folder / "root"
        self.netns = f"{lab.netns}-{spec.name}"
        self._nspawn: Optional[subprocess.Popen[bytes]] = None

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.address}>"

    # -------------------------------------------------------------------------------------------- disk

    @property
    def release(self) -> Release:
        """The Kubernetes release this node was made for."""
        if self.spec.version is None:
            raise LabError(f"node {self.name} was made without a Kubernetes version")
        return settings.find_release(self.spec.version)

    def create_disk(self) -> None:
        """Make the disk, with what tells this node from others written to it."""
        self.folder.mkdir(parents=True)
        layers = self._find_layers()
        if self.spec.version and self.spec.kubelet:
            layers = [image.ensure_release_layer(self.release, kubeadm=self.spec.kubeadm), *layers]
        (self.folder / "layers").write_text("\n".join(str(layer) for layer in layers))
        (self.folder / "spec.json").write_text(json.dumps(asdict(self.spec)))
        (self.folder / "console.log").touch()
        for place in DISK_FOLDERS:
            self.disk_path("/" + place).mkdir(parents=True)
        self.disk_path("/var/lib/etcd").chmod(0o700)
        self.mount()
        self._write_identity()
        runtime.write_config(self)
        image.wrap_runc(self.root)
        if self.spec.kubeadm or self.spec.prepared:
            self._write_kubelet_unit()
        if self.spec.version and self.spec.images and self.spec.containerd != "bare" and not self.spec.crio:
            seed = self.lab.ensure_seed(self.release, self.spec.containerd)
            sh(["cp", "-a", "--reflink=auto", f"{seed}/.", str(self.disk_path("/var/lib/containerd"))])

    def _find_layers(self) -> list[Path]:
        if self.spec.crio:
            return image.ensure_crio()
        if self.spec.openrc:
            return image.ensure_openrc()
        return image.ensure_dnf(self.spec.containerd) if self.spec.dnf else image.ensure_variant(self.spec.containerd)

    def mount(self) -> None:
        """Mount the disk's root (it stays mounted while the node is stopped, so that tests may change it)."""
        if str(self.root.resolve()) in image.list_mounts(self.root):
            return
        upper, work = self.folder / "upper", self.folder / "work"
        for folder in (self.root, upper, work):
            folder.mkdir(exist_ok=True)
        layers = (self.folder / "layers").read_text().replace("\n", ":")
        options = f"lowerdir={layers},upperdir={upper},workdir={work}"
        sh(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)])

    def disk_path(self, path: str) -> Path:
        """Where a file of the node lies on this machine (not for what the node itself mounts: /run, /tmp, /proc)."""
        for place in DISK_FOLDERS:
            if path == f"/{place}" or path.startswith(f"/{place}/"):
                return self.folder / place.rpartition("/")[2] / path[len(place) + 2 :]
        return self.root / path.lstrip("/")

    def save_disk(self) -> None:
        """Shut the node down, keep a copy of its disk, and boot it."""
        self.stop()
        self._copy_disk(self.folder, self.folder / "saved")
        self.start()

    def restore_disk(self) -> None:
        """Cut the power, give the node the disk that was saved, and boot it."""
        self.kill()
        if str(self.root.resolve()) in image.list_mounts(self.root):
            sh(["umount", str(self.root)])
        self._copy_disk(self.folder / "saved", self.folder)
        self.start()

    @staticmethod
    def _copy_disk(source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for name in ("upper", *(place.rpartition("/")[2] for place in DISK_FOLDERS)):
            image.remove_tree(target / name)
            sh(["cp", "-a", "--reflink=auto", str(source / name), str(target / name)])

    def _write_identity(self) -> None:
        for place in DISK_FOLDERS:
            (self.root / place).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/hostname").write_text(self.name + "\n")
        (self.root / "etc/hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{self.address} {self.name}\n"
        )
        # Nobody answers there: a name that is not in /etc/hosts fails at once instead of after half a minute.
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text(f"nameserver {self.lab.gateway}\n")
        ssh = self.root / "root/.ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.lab.key.with_suffix(".pub"), ssh / "authorized_keys")

    def _write_kubelet_unit(self) -> None:
        """What the operator of a kubeadm node does by hand: the packaged unit with its drop-in, enabled, and forwarding."""
        units = self.root / "usr/lib/systemd/system"
        (units / "kubelet.service").write_text(KUBELET_UNIT)
        (units / "kubelet.service.d").mkdir()
        (units / "kubelet.service.d/10-kubeadm.conf").write_text(KUBEADM_DROP_IN)
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        (wants / "kubelet.service").symlink_to("/usr/lib/systemd/system/kubelet.service")
        (self.root / "etc/sysctl.d/e2e.conf").write_text("net.ipv4.ip_forward = 1\n")

    # -------------------------------------------------------------------------------------------- power

    @property
    def running(self) -> Optional[Running]:
        """The node's processes, or None when it is off."""
        try:
            found = Running(**json.loads((self.folder / "running.json").read_text()))
        except FileNotFoundError:
            return None
        if self._nspawn is not None:
            self._nspawn.poll()
        alive = any(read_start_time(int(pid)) == start for pid, start in found.started.items())
        return found if alive else None

    def start(self, *, timeout_s: float = 90) -> Node:
        """Switch the node on and wait until it has booted and answers by ssh."""
        if self.running:
            return self
        self._cleanup_boot()
        self.mount()
        self._create_network()
        groups = cgroups.make_groups(self.netns)
        self._spawn(groups, timeout_s)
        self.wait_booted(timeout_s=timeout_s)
        return self

    def _spawn(self, groups: list[Path], timeout_s: float) -> None:
        nspawn = [
            "systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--console=read-only",
            f"--machine={self.netns}", f"--hostname={self.name}", f"--directory={self.root}",
            f"--network-namespace-path=/run/netns/{self.netns}", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            "--capability=all", "--system-call-filter=@known", "--bind=/dev/kmsg",
            *(f"--bind={self.disk_path('/' + place)}:/{place}" for place in DISK_FOLDERS),
        ]  # fmt: skip
        # The shell enters the groups and becomes nspawn: nothing of the node is ever outside of them.
        enter = 'until [ "$1" = -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'
        env = {**os.environ, "SYSTEMD_NSPAWN_USE_CGNS": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
        with (self.folder / "console.log").open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", enter, "sh", *(str(g) for g in groups), "--", *nspawn],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=env, start_new_session=True,
            )  # fmt: skip
        pid = self._nspawn.pid
        self._note_running(pid, [], groups)
        leader = wait_until(lambda: self._find_leader(pid), what=f"{self.name}'s first process", timeout_s=timeout_s)
        self._note_running(pid, [leader], groups)

    def _note_running(self, nspawn: int, leaders: list[int], groups: list[Path]) -> None:
        started = {str(pid): start for pid in (nspawn, *leaders) if (start := read_start_time(pid)) is not None}
        state = Running(nspawn, leaders[0] if leaders else 0, started, [str(g) for g in groups])
        (self.folder / "running.json").write_text(json.dumps(asdict(state)))

    def _find_leader(self, nspawn: int) -> Optional[int]:
        """The process that is number 1 in the node."""
        if self._nspawn is not None and self._nspawn.poll() is not None:
            log = (self.folder / "console.log").read_text(errors="replace")
            raise SystemError(f"systemd-nspawn ended at once with status {self._nspawn.returncode}:\n{log[-3000:]}")
        try:
            children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        except FileNotFoundError:
            return None
        for pid in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                match = re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if match and (b"systemd" in command or b"init" in command):
                    return int(pid)
        return None

    def wait_booted(self, *, timeout_s: float = 90) -> None:
        """Wait until everything has been started and sshd answers."""

        def has_booted() -> bool:
            if self.spec.openrc:
                return self.exec(["rc-status", "--runlevel"], check=False, timeout=15).stdout.strip() == "default"
            answer = self.exec(["systemctl", "is-system-running"], check=False, timeout=15).stdout.strip()
            return answer in ("running", "degraded")

        wait_until(has_booted, what=f"{self.name} to boot (see {self.folder}/console.log)", timeout_s=timeout_s)
        wait_until(lambda: self.run("true", timeout=15).ok, what=f"sshd of {self.name}", timeout_s=timeout_s)

    def finish_reboot(self, *, timeout_s: float = STOP_S) -> Node:
        """After something in the node asked for a reboot: wait until it is down, and boot it (nspawn leaves that to its caller)."""
        wait_until(lambda: not self.running, what=f"{self.name} to go down", timeout_s=timeout_s)
        return self.start(timeout_s=timeout_s)

    def stop(self, *, timeout_s: float = STOP_S) -> None:
        """Shut the node down in order."""
        running = self.running
        if running is None:
            return
        if self.spec.openrc:
            self.exec(["init", "0"], check=False)
        else:
            # Its first process is asked the way a hypervisor presses the power button.
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.leader, signal.SIGRTMIN + 4)
        try:
            wait_until(lambda: not self.running, what=f"{self.name} to shut down", timeout_s=timeout_s, every_s=0.05)
        finally:
            self.kill()

    def kill(self) -> None:
        """Cut the power: every process of the node dies at this moment. What was written stays, flushed or not."""
        running = self.running
        if running is not None:
            for pid, start in running.started.items():
                if read_start_time(int(pid)) == start:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            wait_until(lambda: not self.running, what=f"{self.name} to die", timeout_s=30, every_s=0.05)
        self._cleanup_boot()

    def reboot(self, *, timeout_s: float = 90) -> Node:
        """Shut down in order and boot again."""
        self.stop()
        return self.start(timeout_s=timeout_s)

    def remove(self) -> None:
        """Kill the node and remove its disk."""
        self.kill()
        image.remove_tree(self.folder)
        with contextlib.suppress(OSError):
            Path("/run/systemd/nspawn/propagate", self.netns).rmdir()

    def _cleanup_boot(self) -> None:
        """Remove what a boot made outside of the disk. A new boot gets new ones, as a machine's reboot forgets its routes."""
        with contextlib.suppress(FileNotFoundError):
            state = Running(**json.loads((self.folder / "running.json").read_text()))
            cgroups.remove_groups([Path(g) for g in state.groups])
            (self.folder / "running.json").unlink()
        if self._nspawn is not None:
            self._nspawn.wait(timeout=10)
            self._nspawn = None
        # By its name, for the namespace may live on for a while in somebody's copy of the mounts, and its cable with it.
        if Path("/run/netns", self.lab.netns).exists():
            sh(["ip", "-netns", self.lab.netns, "link", "delete", self.port], check=False)
        if Path("/run/netns", self.netns).exists():
            sh(["ip", "netns", "delete", self.netns])

    # -------------------------------------------------------------------------------------------- network

    @property
    def port(self) -> str:
        """The bridge's end of the node's cable, in the lab's namespace."""
        return f"port{self.spec.number}"

    def _create_network(self) -> None:
        sh(["ip", "netns", "add", self.netns])
        # A fixed hardware address, for the neighbours remember the one of the boot before.
        mac = f"02:6b:62:00:00:{self.spec.number:02x}"
        veth = ["ip", "link", "add", self.port, "netns", self.lab.netns, "type", "veth"]
        sh([*veth, "peer", "name", INTERFACE, "address", mac, "netns", self.netns])
        bridge, gateway = (self.lab.bridge, self.lab.gateway)
        if self.spec.far:
            bridge, gateway = (self.lab.far_bridge, self.lab.far_gateway)
        self.lab.exec(["ip", "link", "set", self.port, "master", bridge, "up"])
        commands = [
            f"addr add {self.address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            "link set lo up",
        ]
        if self.spec.default_route:
            commands.append(f"route add default via {gateway}")
        sh(["ip", "-netns", self.netns, "-batch", "-"], stdin="\n".join(commands) + "\n")

    def unplug(self) -> None:
        """Take the network cable out."""
        self.lab.exec(["ip", "link", "set", self.port, "down"])

    def plug(self) -> None:
        """Put the network cable back in."""
        self.lab.exec(["ip", "link", "set", self.port, "up"])

    # -------------------------------------------------------------------------------------------- commands

    def ssh_argv(self, *, tty: bool = False) -> list[str]:
        """The command line up to the command: ssh to this node from inside the lab's namespace."""
        return [
            *self.lab.enter_argv(),
            "ssh",
            *(["-t"] if tty else []),
            *self.lab.ssh_options,
            f"root@{self.address}",
        ]

    def run(
        self,
        command: Command,
        *,
        check: bool = True,
        timeout: float = 120,
        env: Optional[Mapping[str, str]] = None,
        stdin: Optional[Union[str, bytes]] = None,
    ) -> Result:
        """Run a command by ssh, as an operator does; a string is a line for the shell."""
        __tracebackhide__ = True
        line = _with_env(command, env)
        shown = f"{self.name}# {line}"
        return sh([*self.ssh_argv(), "--", line], check=check, timeout_s=timeout, stdin=stdin, shown=shown)

    def popen(self, command: Command, *, env: Optional[Mapping[str, str]] = None) -> subprocess.Popen[str]:
        """Start a command by ssh and return at once; its two streams come as one pipe."""
        return subprocess.Popen(
            [*self.ssh_argv(), "--", _with_env(command, env)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def exec(
        self,
        command: Command,
        *,
        check: bool = True,
        timeout: float = 120,
        env: Optional[Mapping[str, str]] = None,
        stdin: Optional[Union[str, bytes]] = None,
    ) -> Result:
        """Run a command by entering the node's namespaces: works without network and sshd."""
        __tracebackhide__ = True
        running = self.running
        if running is None or not running.leader:
            raise LabError(f"node {self.name} is off")
        line = _with_env(command, env)
        enter = [
            "nsenter",
            "--target",
            str(running.leader),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        ]
        clean = ["env", "-i", "HOME=/root", "TERM=xterm", images.PATH, "sh", "-c", f"cd /root; {line}"]
        return sh([*enter, *clean], check=check, timeout_s=timeout, stdin=stdin, shown=f"{self.name}(exec)# {line}")

    def scp(self, source: Path, target: str = "/root/") -> str:
        """Copy a file or folder of this machine to the node; returns where it is there."""
        sh([*self.lab.enter_argv(), "scp", "-r", *self.lab.ssh_options, str(source), f"root@{self.address}:{target}"],
           timeout_s=600)  # fmt: skip
        return target + source.name if target.endswith("/") else target

    def write(self, path: str, text: Union[str, bytes], *, mode: int = 0o644) -> None:
        """Write a file of the node, its folders too; also while the node is off."""
        if self.running:
            parent = shlex.quote(os.path.dirname(path) or "/")
            name = shlex.quote(path)
            self.run(f"mkdir -p {parent} && cat >{name} && chmod {mode:o} {name}", stdin=text)
            return
        place = self.disk_path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        place.chmod(mode)

    def read(self, path: str) -> str:
        """A file of the node; also while the node is off."""
        return self.run(["cat", path]).stdout if self.running else self.disk_path(path).read_text()

    def exists(self, path: str) -> bool:
        """Whether the node has such a file or folder; also while the node is off."""
        return self.run(["test", "-e", path], check=False).ok if self.running else self.disk_path(path).exists()

    # -------------------------------------------------------------------------------------------- Kubernetes

    def kubectl(self, command: Command, *, check: bool = True, timeout: float = 60, stdin: Optional[str] = None) -> str:
        """What `kubectl COMMAND` prints on this node, as the cluster's admin."""
        line = "kubectl " + as_shell(command)
        return self.run(line, check=check, timeout=timeout, env={"KUBECONFIG": KUBECONFIG}, stdin=stdin).stdout

    def get(self, command: Command) -> Any:
        """`kubectl get COMMAND -o json`, read."""
        return json.loads(self.kubectl(f"get {as_shell(command)} -o json"))

    def wait_node_ready(self, name: Optional[str] = None, *, timeout_s: float = 180) -> None:
        """Wait until a node of the cluster (this one by default) is Ready, asking on this one."""

        def is_ready() -> bool:
            node = self.get(["node", name or self.name])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])

        wait_until(is_ready, what=f"node {name or self.name} to be Ready", timeout_s=timeout_s, every_s=0.5)

    def wait_pods_ready(self, namespace: str, selector: str = "", *, timeout_s: float = 180) -> None:
        """Wait until there are pods with that selector and all of them are Ready."""

        def are_ready() -> bool:
            pods = self.get(f"pods -n {namespace}" + (f" -l {selector}" if selector else ""))["items"]
            states = [{c["type"]: c["status"] for c in p.get("status", {}).get("conditions", [])} for p in pods]
            return bool(states) and all(s.get("Ready") == "True" for s in states)

        where = f"pods {selector or '(all)'} in {namespace}"
        wait_until(are_ready, what=f"{where} to be Ready", timeout_s=timeout_s, every_s=0.5)

    def load_images(self, version: Union[str, Release, None] = None) -> list[str]:
        """Import all images of a release into the running containerd; returns their names."""
        release = settings.find_release(version) if isinstance(version, str) else version or self.release
        layout = images.ensure_layout(release)
        archive = images.copy_layout_as_tar(layout, self.disk_path("/var/tmp/images.tar"))
        try:
            self.exec("ctr --namespace k8s.io images import /var/tmp/images.tar", timeout=300)
        finally:
            archive.unlink()
        return images.list_names(layout)

    def offer_release(self, version: str) -> str:
        """Give the running node a second release: its images in containerd, and its kubelet, kubectl and kubeadm in a folder.

        Nothing that runs changes. Returns the folder, OFFERED/v1.36.3 for example: an operator would have downloaded them there.
        """
        release = settings.find_release(version)
        self.load_images(version)
        folder = f"{OFFERED}/{release.version}"
        self.run(["mkdir", "-p", folder])
        for name in ("kubelet", "kubectl", "kubeadm"):
            self.scp(release.binary(name), f"{folder}/")
        return folder

    # -------------------------------------------------------------------------------------------- evidence

    def journal(self, unit: Optional[str] = None, *, lines: Optional[int] = None) -> str:
        """The journal of all boots, of one unit or of everything; also while the node is off."""
        words = ["journalctl", "--no-pager", "--output=short-precise"]
        words += [f"--unit={unit}"] if unit else []
        words += [f"--lines={lines}"] if lines else []
        if self.running:
            return self.exec(words).stdout
        return sh([*words, f"--directory={self.root}/var/log/journal"], check=False).stdout

    def collect(self, folder: Path) -> Path:
        """Save what explains a failure into `folder`: journals, containers, pods' logs, files, cluster objects."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, unit in (("journal", None), ("kubelet", "kubelet"), ("containerd", "containerd")):
            with contextlib.suppress(LabError, subprocess.SubprocessError):
                (folder / f"{name}.log").write_text(self.journal(unit))
        shutil.copy(self.folder / "console.log", folder / "console.log")
        for place in (
            "/var/log/pods",
            "/var/lib/kb",
            "/etc/kubernetes/manifests",
            "/etc/containerd",
            "/etc/cni/net.d",
        ):
            source = self.disk_path(place)
            if source.is_dir():
                target = folder / place.strip("/").replace("/", "-")
                # a mirror's bundles are large, and explain nothing
                ignore = shutil.ignore_patterns("*.tar")
                shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True, ignore=ignore)
        if self.running:
            for name, command in EVIDENCE.items():
                with contextlib.suppress(LabError):
                    env = {"KUBECONFIG": KUBECONFIG}
                    (folder / name).write_text(self.exec(command, check=False, timeout=20, env=env).output + "\n")
        return folder

    def describe(self) -> str:
        """One line for people."""
        what = f"Kubernetes {self.spec.version}" if self.spec.version else "no Kubernetes"
        state = "running" if self.running else "off"
        return f"{self.name:12} {self.address:13} {state:8} containerd {self.spec.containerd}, {what}"


EVIDENCE = {
    "crictl-ps.txt": "crictl pods; crictl ps -a; crictl images",
    "network.txt": "ip address; ip route; ss -ltnp; iptables-save | head -n 500",
    "processes.txt": "ps axfo pid,ppid,stat,etime,args; systemctl --failed; df -h; cat /proc/meminfo | head -3",
    "cluster.txt": "kubectl --request-timeout=5s get nodes,pods,services,configmaps -A -o wide && "
    "kubectl --request-timeout=5s get events -A --sort-by=.lastTimestamp && "
    "kubectl --request-timeout=5s describe nodes",
}


def _with_env(command: Command, env: Optional[Mapping[str, str]]) -> str:
    """A shell line with these variables set for the whole of it."""
    line = as_shell(command)
    if not env:
        return line
    return "export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in env.items()) + f"; {line}"


__all__ = ["CommandFailed", "Node", "NodeSpec", "Running", "wait_until"]
