"""Evidence -> cause -> remedy: which link broke when a node does not come up.

Walks the chain kubelet unit -> its log -> healthz -> container runtime -> sandbox -> image -> container -> exit code ->
last log lines -> probe, and names the first broken link with its remedy. What a log line means stands in three tables of
signs: of the kubelet's own end, of a Pod that cannot start, of a container that ended. Looks only; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks.machine import FLEXVOLUME_REMEDY
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.http import Unreachable
from kubeup.node import containers as node_containers
from kubeup.node import crictl, image_pulls, runtime
from kubeup.yaml_files import YAMLError, load_yaml

_KLOG = re.compile(r"^[EWIF]\d{4} [\d:.]+\s+\d+ (?P<where>[\w.-]+:\d+)\] ?")
_LAST_WORDS_S = 1.0
_SETTLED_S = 15
"""A kubelet that has run for so long has got over what its earlier starts died of."""
_RECENT = "-90s"
"""A kubelet tells again of what still is wrong; what is older than this may have healed."""

CONFIG_OF: Mapping[str, str] = {
    "kube-apiserver": "apiServer",
    "kube-controller-manager": "controllerManager",
    "kube-scheduler": "scheduler",
    "etcd": "etcd.local",
}
"""Where ClusterConfiguration says how a component is run."""
MANIFESTS = Path("/etc/kubernetes/manifests")


@frozen
class BrokenLink:
    """The first link that broke: what, why, the remedy, and whether waiting longer can heal it."""

    what: str
    cause: str
    remedy: str
    is_final: bool = False
    details: tuple[str, ...] = ()
    link: str = ""
    """Which link of the chain: kubelet-unit | kubelet-log | kubelet-healthz | runtime | sandbox | volume | image | container |
    probe."""

    @property
    def key(self) -> tuple[str, str]:
        """Two looks at the same trouble have the same: numbers (of attempts, seconds, processes) do not count."""
        return self.link, re.sub(r"\d+", "", self.what + self.remedy)


@frozen
class Sign:
    """What a log line means. `pattern` is looked for in the line; `cause` and `remedy` are filled with its groups and
    with what the node says of itself ({port_holder}, {mount}, {source}); cause "" is the line itself."""

    pattern: str
    remedy: str
    cause: str = ""
    is_final: bool = True
    explain: Optional[Callable[[Host, Mapping[str, str]], Mapping[str, str]]] = None
    """Further words, looked up when the sign is met."""


# ---- what signs look up


def _look_up_holder(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """Who listens on the port that is taken."""
    port = groups.get("port", "")
    holder = (
        host.port_holder(int(port)) if port.isdigit() and len(port) < 6 else None
    ) or "a process that has ended meanwhile"
    pid = re.search(r"pid (\d+)", holder)
    look = f"ps -fp {pid.group(1)}" if pid else f"ss -ltnp sport = :{port}"
    return {"holder": holder, "look": look}


def _look_up_cgroup_mount(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The mount point of the cgroup folder that could not be written."""
    folder = groups.get("path", "/sys/fs/cgroup")
    points = [line.split()[1] for line in _read(host, Path("/proc/mounts")).splitlines() if len(line.split()) > 1]
    above = [point for point in points if folder == point or folder.startswith(point + "/")]
    return {"mount": max(above, key=len) if above else folder}


def _look_up_free_space(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    folder = groups.get("path") or "/var/lib/etcd"
    return {"folder": folder, "free": f"{host.free_bytes(Path(folder)) // 2**20} MiB"}


def _look_up_addresses(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The addresses that this machine does have."""
    rows = host.query(["ip", "-o", "addr", "show", "scope", "global"], timeout_s=5).stdout.splitlines()
    cells = [row.split() for row in rows]
    have = [f"{row[3].partition('/')[0]} ({row[1]})" for row in cells if len(row) > 3]
    return {"have": ", ".join(have) or "none that ip can list"}


def _look_up_etcd_servers(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """Where this node's API server calls etcd."""
    told = re.search(r"--etcd-servers=([^\s\"']+)", _read(host, MANIFESTS / "kube-apiserver.yaml"))
    servers = told[1].split(",") if told else []
    return {
        "servers": ", ".join(servers) or "--etcd-servers",
        "server": servers[0] if servers else "https://127.0.0.1:2379",
    }


def _look_up_identity(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    return {"new_identity": say_new_identity(host)}


def say_new_identity(host: Host) -> str:
    """What gives this node's kubelet a new certificate: the CA's key on a control plane, a token on a worker."""
    if host.exists(MANIFESTS / "kube-apiserver.yaml"):
        return "kb init phase kubeconfig kubelet"
    return "take a fresh token (on a control plane: kb token create --print-join-command), then: kb reset, and that command"


def _service_words(host: Host) -> Mapping[str, str]:
    """How this machine's service manager is told to do what a remedy asks for."""
    manager = services.spoken_of(host)
    return {
        "restart_kubelet": manager.say("restart", "kubelet"),
        "restart_runtime": manager.say("restart", "containerd"),
        "runtime_log": services.say_log(host, "containerd", lines=20),
    }


def _say_unit_change(host: Host) -> str:
    """The commands that show a kubelet's own environment, and have a change of it count."""
    manager = services.spoken_of(host)
    return "; ".join(filter(None, (manager.say("show", "kubelet"), " ".join(manager.reload))))


def _say_missing_unit(host: Host) -> str:
    if services.spoken_of(host) is services.OPENRC:
        return f"install it: {crictl.install_command(host, 'kubelet', apk='kubelet-openrc')}"
    return f"{AGAIN}: it writes the unit"


def _read(host: Host, path: Path) -> str:
    try:
        return host.read_text(path)
    except HostError:
        return ""


# ---- the signs

AGAIN = "run the command again"
"""Of a remedy: whoever started the command knows its name (init, join, a phase of them), and nobody here does."""
_THEN = f"then {AGAIN}"

_NO_FILES_LEFT = Sign(
    r"too many open files",
    cause="this machine has no file watches (inotify) or file handles left ({line})",
    remedy="sysctl -w fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288 (and into /etc/sysctl.d)",
    is_final=False,
)

KUBELET_SIGNS: tuple[Sign, ...] = (
    Sign(
        r'(?:failed to load kubelet config file|strict decoding|failed to decode|unmarshal).*?unknown field \\*"(?P<field>[^"\\]+)',
        cause='its configuration /var/lib/kubelet/config.yaml has the unknown field "{field}": unknown field "{field}"',
        remedy="correct or remove {field} in the KubeletConfiguration (of --config, or of the patches), " + _THEN,
    ),
    Sign(
        r"failed to load (?:k|K)ubelet config file[^:]*: (?P<why>.*)",
        cause="its configuration /var/lib/kubelet/config.yaml cannot be read: {why}",
        remedy="correct the KubeletConfiguration (of --config, or of the patches), " + _THEN,
    ),
    Sign(
        r"failed to validate kubelet configuration, error: (?P<why>.*?)(?:, path:|$)",
        cause="its configuration /var/lib/kubelet/config.yaml is not valid: {why}",
        remedy="correct it in the KubeletConfiguration (of --config, or of the patches), " + _THEN,
    ),
    Sign(
        r"(?:unknown flag|unknown shorthand flag): (?P<flag>\S+?)[\"\\.]*(?:\s|$)",
        cause="unknown flag: {flag}, which comes from nodeRegistration.kubeletExtraArgs, /etc/default/kubelet or the unit",
        remedy="remove {flag} (in nodeRegistration.kubeletExtraArgs; else: grep -r -- {flag} /etc/default/kubelet "
        "/var/lib/kubelet/kubeadm-flags.env /etc/systemd/system), " + _THEN,
    ),
    Sign(
        r"labels specified with --node-labels: \[(?P<labels>[^\]\s]+)",
        cause="a kubelet may not give its node the label {labels} (--node-labels, of nodeRegistration.kubeletExtraArgs or "
        "/etc/default/kubelet), and ends",
        remedy="take it out, and label the node when it is there: kubectl label node NAME {labels}=, " + _THEN,
    ),
    Sign(
        r"invalid node labels: (?P<why>[^\"]*)",
        cause="--node-labels: {why}",
        remedy="correct node-labels in nodeRegistration.kubeletExtraArgs, " + _THEN,
    ),
    Sign(
        r"invalid argument \\*\"(?P<value>[^\"\\]*)\\*\" for \\*\"(?P<flag>[^\"\\]+)",
        cause='the flag {flag} does not take the value "{value}"; it comes from nodeRegistration.kubeletExtraArgs or the unit',
        remedy="correct {flag} in nodeRegistration.kubeletExtraArgs, " + _THEN,
    ),
    Sign(
        r"[Rr]unning with swap on is not supported",
        cause="swap is on, and the kubelet does not start with it",
        remedy="swapoff -a (and out of /etc/fstab), or failSwapOn: false in the KubeletConfiguration, " + _THEN,
    ),
    Sign(
        r"configured to not run on a host using cgroup v1",
        cause="this machine has cgroup version 1, on which this kubelet does not start",
        remedy="boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false in the KubeletConfiguration, "
        + _THEN,
    ),
    Sign(
        r"(?:unknown service runtime\.v1|CRI v1 runtime API is not implemented|Unimplemented desc = unknown service runtime\.v1)",
        cause="the container runtime does not serve the CRI: its CRI plugin is disabled or failed to load",
        remedy="grep -n disabled_plugins /etc/containerd/config.toml; take cri out, {restart_runtime}, " + _THEN,
    ),
    Sign(
        r"(?:kubelet cgroup driver: |cgroup driver.*)\\*\"?(?P<own>systemd|cgroupfs)\\*\"?.*is different from .*?(?P<other>systemd|cgroupfs)",
        cause="the kubelet has the cgroup driver {own}, the runtime {other}",
        remedy="set SystemdCgroup = true in /etc/containerd/config.toml, {restart_runtime}, " + _THEN,
    ),
    Sign(
        r"(?:mkdir|open) (?P<path>/sys/fs/cgroup/[^:\s\"\\]*)[^:]*: read-only file system",
        cause="the kubelet cannot make {path}: {mount} is mounted read-only",
        remedy="mount -o remount,bind,rw {mount}, " + _THEN,
        explain=_look_up_cgroup_mount,
    ),
    Sign(
        r"listen tcp[46]? (?P<address>\S*):(?P<port>\d+): bind: address already in use",
        cause="port {port} is in use by {holder}",
        remedy="stop that process ({look}), " + _THEN,
        explain=_look_up_holder,
    ),
    Sign(
        r"no space left on device",
        cause="the disk under /var/lib/kubelet is full",
        remedy="make space: df -h /var/lib/kubelet, " + _THEN,
    ),
    Sign(
        r"(?:bootstrap-kubelet\.conf: no such file|unable to load bootstrap kubeconfig)",
        cause="there is neither a valid /etc/kubernetes/kubelet.conf nor a bootstrap-kubelet.conf: the kubelet has no identity",
        remedy="{new_identity}",
        explain=_look_up_identity,
    ),
    Sign(
        r"part of the existing bootstrap client certificate .* is expired|client certificate.*expired",
        cause="the kubelet's client certificate has expired",
        remedy="{new_identity}, then: {restart_kubelet}",
        explain=_look_up_identity,
    ),
    Sign(
        r"unable to load client CA file (?P<path>[^:\s]+): (?P<why>.*)",
        cause="the CA {path} cannot be loaded: {why}",
        remedy="put {path} back, " + _THEN,
    ),
    Sign(
        r"(?:validate service connection|connect to container runtime|dial unix)[^\n]*?(?P<path>/[^\s\"\\]+\.sock)[^\n]*?(?:no such file|connection refused)",
        cause="no container runtime answers on {path}",
        remedy="{restart_runtime} (why it ended: {runtime_log}), " + _THEN,
        is_final=False,
    ),
    _NO_FILES_LEFT,
)
"""Of a kubelet that ends as soon as it is started. The first that fits counts."""

SANDBOX_SIGNS: tuple[Sign, ...] = (
    Sign(
        r"can't get final child's PID from pipe|oom_score_adj[^\n]*permission denied|setting oom score",
        cause="runc cannot lower oom_score_adj: this machine grants no CAP_SYS_RESOURCE ({line})",
        remedy="restrict_oom_score_adj = true",
    ),
    Sign(
        r"expected cgroupsPath to be of format \"slice:prefix:name\"|expected cgroupsPath|cgroup.?[Dd]river|invalid slice name",
        cause="the kubelet and the runtime have different cgroup drivers ({line})",
        remedy="SystemdCgroup = true",
    ),
    Sign(
        r"(?P<path>/sys/fs/cgroup/[^:\s\"\\]*)[^:]*: read-only file system",
        cause="{path} cannot be written: {mount} is mounted read-only",
        remedy="mount -o remount,bind,rw {mount}, " + _THEN,
        explain=_look_up_cgroup_mount,
    ),
    Sign(
        r"failed to find plugin \\*\"(?P<plugin>[^\"\\]+)\\*\" in path \[?(?P<path>[^\]\s]+)",
        cause='the CNI plugin "{plugin}" is not in {path}',
        remedy="install it (containernetworking-plugins, or the plugin of your pod network) into {path}, " + _THEN,
    ),
    Sign(
        r"no space left on device",
        cause="the disk that holds the runtime's data is full",
        remedy="make space: df -h /var/lib/containerd, " + _THEN,
    ),
    Sign(
        r"runc: executable file not found|exec: \\*\"runc\\*\"",
        cause="the runtime finds no runc",
        remedy="install runc, {restart_runtime}, " + _THEN,
    ),
)
"""Of a Pod whose sandbox cannot be made. A remedy of the form `setting = value` is one of the runtime's configuration."""

CONTAINER_SIGNS: tuple[Sign, ...] = (
    Sign(
        r"(?:unknown flag|unknown shorthand flag|flag provided but not defined): -*(?P<flag>[\w-]+)",
        cause="unknown flag: --{flag}, which comes from {origin}",
        remedy="remove --{flag} from {source}, " + _THEN,
    ),
    Sign(
        r"invalid (?:argument|value) \\*\"(?P<value>[^\"\\]*)\\*\" for (?:flag )?\\*\"?-*(?P<flag>[\w-]+)",
        cause='--{flag} does not take the value "{value}"; it comes from {origin}',
        remedy="correct --{flag} in {source}, " + _THEN,
    ),
    Sign(
        r"listen tcp[46]? (?P<address>\S+):(?P<port>\d+): bind: cannot assign requested address",
        cause="it cannot listen on {address}:{port}: bind: cannot assign requested address. This machine does not have "
        "{address}; it has {have}",
        remedy="set localAPIEndpoint.advertiseAddress (--apiserver-advertise-address) to an address of this machine, "
        "then: kb reset --force, and run the command again",
        explain=_look_up_addresses,
    ),
    Sign(
        r"listen tcp[46]? (?P<address>\S*):(?P<port>\d+): bind: address already in use|bind (?:on )?(?:port )?.*?:(?P<port2>\d+)[^\n]*address already in use",
        cause="port {port} is in use by {holder}",
        remedy="stop that process ({look}), " + _THEN,
        explain=_look_up_holder,
        is_final=False,
    ),
    Sign(
        r"(?P<path>/var/lib/etcd[^:\s\"\\]*)?[^\n]*no space left on device",
        cause="no space left on device: {free} are free for {folder}",
        remedy="make space: df -h {folder}, " + _THEN,
        explain=_look_up_free_space,
    ),
    Sign(
        r"(?:private key does not match public key|tls: failed to find any PEM data in (?:key|certificate) input)",
        cause="a certificate and its key do not belong together ({line})",
        remedy="see which: kb doctor; move the pair away, " + _THEN,
    ),
    Sign(
        r"(?:mismatch(?:ed)? cluster ID|cluster ID mismatch|member has already been bootstrapped|request sent was ignored \(cluster ID mismatch)",
        cause="the data in /var/lib/etcd belong to another cluster ({line})",
        remedy="keep them elsewhere (mv /var/lib/etcd /var/lib/etcd.old), " + _THEN,
    ),
    Sign(
        r"(?:member count is unequal|unmatched member while checking PeerURLs|couldn't find local name \\*\"(?P<name>[^\"\\]+))",
        cause="etcd's own name or peer address is not among the members it was told of ({line})",
        remedy="see --name and --initial-cluster in /etc/kubernetes/manifests/etcd.yaml; they come from etcd.local.extraArgs "
        "and the advertise address",
    ),
    Sign(
        r'"command failed" err="context deadline exceeded"',
        cause="etcd did not answer it in time: it calls {servers}",
        remedy="see whether this machine reaches an etcd that serves: curl -vk {server}/health",
        is_final=False,
        explain=_look_up_etcd_servers,
    ),
    Sign(
        r"x509: certificate has expired or is not yet valid: current time (?P<now>\S+) is (?P<side>before|after) (?P<limit>[^\s\"\\]+)",
        cause="a certificate is not valid now: it is {now} here, which is {side} {limit}",
        remedy="see which, and whether this clock is right: kb doctor",
    ),
    Sign(
        r"x509: certificate signed by unknown authority",
        cause="a certificate comes from another CA than the one it is checked against ({line})",
        remedy="see which: kb doctor",
        is_final=False,
    ),
    Sign(
        r"(?:can't use the IPVS proxier|[Ii][Pp][Vv][Ss][^\n]*(?:not supported|not available|no such file|kernel modules|can't|cannot|failed))",
        cause="this kernel has no IPVS, which mode: ipvs of the KubeProxyConfiguration wants ({line})",
        remedy="load the modules (modprobe ip_vs ip_vs_rr ip_vs_sh), or set mode: iptables (or nftables) in the "
        "KubeProxyConfiguration, " + _THEN,
    ),
    Sign(
        r"nf_conntrack_(?:max|tcp|udp)\w*[^\n]*(?:permission denied|read-only file system|no such file)",
        cause="kube-proxy may not set the size of the connection tracking table (conntrack): {line}",
        remedy="leave it alone: conntrack: {{maxPerCore: 0}} in the KubeProxyConfiguration (and set it on the host: "
        "sysctl net.netfilter.nf_conntrack_max), " + _THEN,
    ),
    Sign(
        r"(?:iptables|ip6tables|nft|iptables-restore)[^\n]*(?:executable file not found|No chain/target/match|not found in|Extension \w+ |[Pp]ermission denied|Could not fetch rule set|exit status \d+|error loading shared)",
        cause="kube-proxy cannot program its rules: {line}",
        remedy="see that this kernel has the netfilter matches (iptables -t nat -L; modprobe xt_comment xt_conntrack), or set "
        "another mode (iptables | nftables) in the KubeProxyConfiguration, " + _THEN,
        is_final=False,
    ),
    Sign(
        r"plugin/loop: (?P<loop>Loop \([^)]*\) detected for zone)",
        cause="CoreDNS asks itself: {loop}. The name servers of the node's resolv.conf are loopback addresses (a stub "
        "resolver), and inside a Pod these are the Pod itself",
        remedy="name a file with real name servers: resolvConf in the KubeletConfiguration (systemd-resolved's: "
        "/run/systemd/resolve/resolv.conf), " + _THEN,
    ),
    Sign(
        r"(?:proxyconnect tcp|Proxy Authentication Required|proxy: unknown scheme)[^\n]*",
        cause="its requests go through a proxy ({line})",
        remedy="put this node's address, the service CIDR and the pod CIDR into NO_PROXY, " + _THEN,
    ),
    _NO_FILES_LEFT,
    Sign(
        r"exec:? [^\n]*(?:no such file or directory|exec format error|permission denied)",
        cause="its program cannot be run: {line}",
        remedy="the image is of another architecture or is damaged: crictl rmi it, correct imageRepository, " + _THEN,
    ),
)
"""Of a container that ended, or runs and is not healthy."""


# ---- the kubelet


@frozen
class KubeletUnit:
    """What systemd says of kubelet.service."""

    load: str
    active: str
    sub: str
    restarts: int
    exit_code: int
    invocation: str = ""
    active_since_s: float = 0.0
    """On the monotonic clock; 0 where it does not run."""
    pid: int = 0

    @property
    def is_ending(self) -> bool:
        """It ended, and systemd has given up or is about to start it again."""
        return self.active == "failed" or self.sub == "auto-restart"


def read_kubelet_unit(host: Host) -> Optional[KubeletUnit]:
    """None where there is neither systemd nor OpenRC to ask."""
    if services.spoken_of(host) is services.OPENRC:
        return _read_openrc_service(host)
    fields = (
        "LoadState,ActiveState,SubState,NRestarts,ExecMainStatus,InvocationID,ActiveEnterTimestampMonotonic,MainPID"
    )
    answer = host.query(["systemctl", "show", "kubelet", "-p", fields])
    if not answer.ok:
        return None
    found = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
    active = found.get("ActiveState", "")
    return KubeletUnit(
        found.get("LoadState", ""),
        active,
        found.get("SubState", ""),
        int(found.get("NRestarts") or 0),
        int(found.get("ExecMainStatus") or 0),
        found.get("InvocationID", ""),
        int(found.get("ActiveEnterTimestampMonotonic") or 0) / 1e6 if active == "active" else 0.0,
        int(found.get("MainPID") or 0),
    )


def _read_openrc_service(host: Host) -> KubeletUnit:
    """The same of OpenRC, which tells no more than whether it runs."""
    state = services.read_state(host, "kubelet")
    return KubeletUnit("not-found" if state == "unknown" else "loaded", state, "", restarts=0, exit_code=0)


def read_kubelet_log(host: Host, *, lines: int = 200, since: str = "", invocation: str = "") -> list[str]:
    """The last lines of the kubelet's journal, oldest first; of one start of it alone with `invocation`. OpenRC's file
    cannot tell what was said since when: nothing of it counts as said just now."""
    if services.spoken_of(host) is services.OPENRC:
        return [] if since else services.read_log(host, "kubelet", lines=lines)
    words = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["-u", "kubelet"]
    words += ["--since", since] if since else []
    answer = host.query(["journalctl", *words, "-n", str(lines), "-o", "cat", "--no-pager"])
    return answer.stdout.splitlines() if answer.ok else []


def read_present_log(host: Host, *, lines: int = 200) -> list[str]:
    """What the kubelet that runs now said in the last 90 seconds: what an earlier one met may be mended."""
    unit = read_kubelet_unit(host)
    return read_kubelet_log(host, lines=lines, since=_RECENT, invocation=unit.invocation if unit else "")


def find_kubelet_trouble(host: Host) -> Optional[BrokenLink]:
    """Is the kubelet's unit there, and does the kubelet stay up?"""
    unit = read_kubelet_unit(host)
    if unit is None:
        return None
    if unit.load in ("not-found", "masked"):
        return BrokenLink(
            "the kubelet is not running",
            f"{services.spoken_of(host).name_unit('kubelet')} is {'masked' if unit.load == 'masked' else 'not there'}",
            "systemctl unmask kubelet" if unit.load == "masked" else _say_missing_unit(host),
            is_final=True,
            link="kubelet-unit",
        )
    is_young = unit.active == "active" and host.monotonic() - unit.active_since_s < _SETTLED_S
    if unit.is_ending or (is_young and unit.restarts >= 2):
        return _describe_kubelet_end(host, unit)
    if unit.active == "inactive":
        return BrokenLink(
            "the kubelet is not running",
            "it is stopped",
            f"{services.spoken_of(host).say('start', 'kubelet')}, {_THEN}",
            link="kubelet-unit",
        )
    return None


def _describe_kubelet_end(host: Host, unit: KubeletUnit) -> BrokenLink:
    what = f"the kubelet does not stay up (restarted {unit.restarts} times, exit code {unit.exit_code})"
    if services.spoken_of(host) is services.OPENRC:
        what = "the kubelet does not stay up (OpenRC: crashed)"
    lines = read_kubelet_log(host, invocation=unit.invocation if unit.is_ending else "", lines=300)
    found = _match_signs(host, KUBELET_SIGNS, lines, what=what, link="kubelet-log")
    if found:
        return found
    return BrokenLink(
        what,
        last_error_line(lines) or "its log names no error",
        f"fix the cause, {_THEN} (the whole log: {services.say_log(host, 'kubelet', lines=200)})",
        is_final=unit.restarts >= 2,
        link="kubelet-log",
    )


def find_request_trouble(host: Host) -> Optional[BrokenLink]:
    """Why a kubelet that runs does not get its certificate signing request to the API server, in its own words."""
    lines = read_present_log(host)
    if any(_REFUSED.search(line) for line in lines):
        return BrokenLink(
            "the API server does not take the kubelet's certificate",
            f"the kubelet says Unauthorized: {_CLIENT_PEM} is of another cluster, or of an authority of before, and the kubelet "
            "shows it for as long as it is there",
            f"mv {_CLIENT_PEM} {_CLIENT_PEM}.off && {services.spoken_of(host).say('restart', 'kubelet')} (kb goes on then)",
            link="kubelet-log",
        )
    for line in reversed(lines):
        found = _REQUEST_FAILED.search(line.replace('\\"', "'"))
        if not found:
            continue
        is_proxy = "proxyconnect" in found[0]
        return BrokenLink(
            "the kubelet cannot ask for its certificate",
            _shorten(found[0]) + ("; its unit names that proxy, and nobody else here goes by it" if is_proxy else ""),
            f"name the API server in NO_PROXY, or take the proxy out: {_say_unit_change(host)}; {_THEN}"
            if is_proxy
            else f"see what the kubelet says: {services.say_log(host, 'kubelet')}",
            link="kubelet-log",
        )
    return None


def find_registration_trouble(host: Host) -> Optional[BrokenLink]:
    """Why a kubelet that runs does not register its node, in its own words."""
    found = find_request_trouble(host)
    if found:
        return found
    for line in reversed(read_present_log(host)):
        told = _NOT_REGISTERED.search(line.replace('\\"', "'"))
        if told:
            remedy = f"see what the kubelet says: {services.say_log(host, 'kubelet')}"
            return BrokenLink("the kubelet cannot register its node", _shorten(told["why"]), remedy, link="kubelet-log")
    return None


_CLIENT_PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
_REFUSED = re.compile(
    r'Unable to register node with API server" err="Unauthorized"|"Failed to ensure lease exists.* err="Unauthorized"'
)
_NOT_REGISTERED = re.compile(r'Unable to register node with API server" err="(?P<why>[^"]+)"')
_REQUEST_FAILED = re.compile(r"cannot create certificate signing request: [^\"]*[^\"\s]")


def find_healthz_trouble(host: Host) -> Optional[BrokenLink]:
    """Does a kubelet that has run for a while answer on its health port?"""
    unit = read_kubelet_unit(host)
    config = _load_mapping(host, Path("/var/lib/kubelet/config.yaml"))
    port = config.get("healthzPort", 10248)
    if unit is None or unit.active != "active" or not port or host.monotonic() - unit.active_since_s < _SETTLED_S:
        return None
    url = f"http://127.0.0.1:{port}/healthz"
    try:
        answer = host.http_get(url, timeout_s=3)
    except Unreachable as error:
        seen = error.cause
    else:
        if answer.status == 200:
            return None
        seen = f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace').strip()}"
    line = last_error_line(read_present_log(host))
    return BrokenLink(
        f"the kubelet runs and is not healthy: {seen}",
        line or f"{url} does not answer with 200, and its log names no error",
        f"see its log: {services.say_log(host, 'kubelet')}",
        link="kubelet-healthz",
    )


def _load_mapping(host: Host, path: Path) -> Mapping[str, object]:
    try:
        found = load_yaml(_read(host, path) or "{}")
    except YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


# ---- the runtime


def find_runtime_trouble(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """Does the container runtime take work?"""
    status = runtime.probe_runtime(host, cri_socket)
    if status.is_ready or status.problem == "no-client":
        return None
    return BrokenLink(
        f"{status.label} does not serve this node",
        status.cause,
        f"{status.remedy}; {_THEN}",
        is_final=status.problem in ("cri-disabled", "cri-failed") or _is_stopped(host, status),
        link="runtime",
    )


def _is_stopped(host: Host, status: runtime.RuntimeStatus) -> bool:
    """Nobody is about to start the runtime: a restart takes its socket away for a moment too."""
    unit = "crio" if "crio" in status.socket else "containerd"
    return status.problem in ("no-socket", "refused") and services.is_stopped(host, unit)


# ---- Pods that cannot start


@frozen
class PodTrouble:
    """What the kubelet's log says of a Pod that it cannot start."""

    container: str
    """The container's name; "" for the sandbox: then `pod` alone tells."""
    pod: str
    kind: str
    """sandbox | image | start | volume"""
    text: str


_POD = re.compile(r'pod="(?P<pod>[^"]+)"')
_SYNC = re.compile(
    r'failed to \\*"(?P<step>\w+)\\*" for \\*"(?P<name>[^"\\]+)\\*" with (?P<reason>\w+): (?P<text>.*)', re.DOTALL
)
_SET_UP = re.compile(
    r'MountVolume\.SetUp failed for volume "(?P<volume>[^"]+)".*? pod "(?P<pod>[^"]+)".*?\) : (?P<why>.*)'
)
_KINDS = {
    "CreatePodSandboxError": "sandbox",
    "ErrImagePull": "image",
    "ImagePullBackOff": "image",
    "ErrImageNeverPull": "image",
    "InvalidImageName": "image",
    "RunContainerError": "start",
    "CreateContainerError": "start",
    "CreateContainerConfigError": "start",
    "StartError": "start",
}


def parse_pod_troubles(lines: Iterable[str]) -> list[PodTrouble]:
    """The Pods' troubles in a kubelet's log, the newest of each Pod and kind, oldest first."""
    found: dict[tuple[str, str, str], PodTrouble] = {}
    for line in lines:
        set_up = _SET_UP.search(_unescape(line)) if "MountVolume.SetUp failed" in line else None
        if set_up:
            key = ("", set_up["pod"], "volume")
            found.pop(key, None)
            found[key] = PodTrouble("", set_up["pod"], "volume", f"{set_up['volume']}: {set_up['why']}")
        if "Error syncing pod" not in line:
            continue
        match, pod = _SYNC.search(line), _POD.search(line)
        if not match or match["reason"] not in _KINDS:
            continue
        kind = _KINDS[match["reason"]]
        text = _unescape(match["text"].partition('" pod="')[0])
        name = pod["pod"].partition("/")[2] if pod else match["name"]
        trouble = PodTrouble("" if kind == "sandbox" else match["name"], name, kind, text)
        old = found.get((trouble.container, trouble.pod, kind))
        if old and match["reason"] == "ImagePullBackOff" and "Back-off" not in old.text:
            continue  # the pull itself said more than the pause after it
        found.pop((trouble.container, trouble.pod, kind), None)
        found[(trouble.container, trouble.pod, kind)] = trouble
    return list(found.values())


def _unescape(text: str) -> str:
    while "\\" in text:
        plainer = re.sub(r"\\(.)", r"\1", text)
        if plainer == text:
            break
        text = plainer
    return text.strip().strip('"')


def find_pod_trouble(host: Host, cri_socket: str, component: str) -> Optional[BrokenLink]:
    """Why no container of `component` was started, as the kubelet tells it."""
    troubles = parse_pod_troubles(read_present_log(host, lines=400))
    own = [
        trouble
        for trouble in troubles
        if trouble.container == component or (not trouble.container and trouble.pod.startswith(f"{component}-"))
    ]
    if not own:
        return None
    newest = own[-1]
    explain = {
        "sandbox": _describe_sandbox,
        "volume": _describe_volume,
        "image": _describe_image,
        "start": _describe_start,
    }
    return explain[newest.kind](host, cri_socket, component, newest.text)


def _describe_volume(host: Host, cri_socket: str, component: str, text: str) -> BrokenLink:
    """A folder or file of this machine that the kubelet can neither find nor make; or a Secret that is not there yet."""
    volume, _, why = text.partition(": ")
    remedy = f"see the pod's volumes: kubectl -n kube-system describe pods; {_THEN}"
    if volume == "flexvolume-dir":
        remedy = f"{FLEXVOLUME_REMEDY}, {_THEN}"
    elif component in CONFIG_OF:
        remedy = f"correct the hostPath of {CONFIG_OF[component]}.extraVolumes {volume}, {_THEN}"
    return BrokenLink(
        f"{component} cannot be started: its volume {volume} cannot be set up",
        _shorten(why),
        remedy,
        is_final="read-only file system" in why,
        link="volume",
    )


def _describe_sandbox(host: Host, cri_socket: str, component: str, text: str) -> BrokenLink:
    what = f"no sandbox of {component} can be made"
    pulled = re.search(r'failed to (?:get sandbox|pull) image "(?P<image>[^"]+)"', text)
    if pulled:
        status = runtime.probe_runtime(host, cri_socket)
        image = pulled["image"]
        failure = image_pulls.explain_pull_failure(
            host, image, _shorten(text.rpartition("failed to do request: ")[2] or text)
        )
        setting = runtime.describe_setting(
            status, "sandbox_image", f'"{_own_pause(host, cri_socket) or "registry.k8s.io/pause:TAG"}"'
        )
        return BrokenLink(
            f"{what}: the sandbox image {image} cannot be pulled",
            failure.cause,
            f"{setting}; {_THEN}",
            is_final=failure.kind in ("not-found", "unauthorized", "tls"),
            link="sandbox",
        )
    found = _match_signs(host, SANDBOX_SIGNS, [text], what=what, link="sandbox")
    if found is None:
        return BrokenLink(
            what, _shorten(text), f"fix what the cause names, {_THEN} (its log: {services.say_log(host, 'containerd')})",
            link="sandbox",
        )  # fmt: skip
    setting_of = re.fullmatch(r"(\w+) = (\w+)", found.remedy)
    if setting_of:
        status = runtime.probe_runtime(host, cri_socket)
        found = replace(
            found, remedy=runtime.describe_setting(status, setting_of.group(1), setting_of.group(2)) + f"; {_THEN}"
        )
    return found


def _own_pause(host: Host, cri_socket: str) -> str:
    """The pause image that the runtime has already, if there is one."""
    try:
        names = image_pulls.list_images(host, cri_socket)
    except HostError:
        return ""
    tagged = sorted(name for name in names if re.search(r"/pause:[\w.]+$", name))
    return tagged[-1] if tagged else ""


def _describe_image(host: Host, cri_socket: str, component: str, text: str) -> BrokenLink:
    named = re.search(r'image "(?P<image>[^"]+)"', text)
    image = named["image"] if named else ""
    if "is not present with pull policy of Never" in text:
        return BrokenLink(
            f"{component} cannot be started: its image {image} is missing",
            "its imagePullPolicy is Never, so the kubelet does not fetch it",
            f"load it: ctr -n k8s.io images import FILE, or: crictl pull {image}",
            is_final=True,
            link="image",
        )
    failure = image_pulls.explain_pull_failure(host, image or component, _shorten(text))
    cause = failure.cause
    if image and image_pulls.full_image_name(image) in image_pulls.list_images(host, cri_socket):
        cause += (
            "; the image is on this node, and its pod's imagePullPolicy Always has the kubelet ask the registry all the same "
            "(the API server's AlwaysPullImages sets that)"
        )
    return BrokenLink(
        f"{component} cannot be started: its image {image} cannot be pulled",
        cause,
        f"{failure.remedy}; {_THEN}",
        is_final=failure.kind in ("not-found", "unauthorized", "tls"),
        link="image",
    )


def _describe_start(host: Host, cri_socket: str, component: str, text: str) -> BrokenLink:
    what = f"the container of {component} cannot be started"
    signs = (*CONTAINER_SIGNS, *SANDBOX_SIGNS)
    found = _match_signs(host, signs, [text], what=what, link="container", words=_source_words(host, component))
    return found or BrokenLink(
        what, _shorten(text), f"fix what the cause names, {_THEN} (its log: {services.say_log(host, 'containerd')})",
        link="container",
    )  # fmt: skip


# ---- containers that end


def find_container_trouble(
    host: Host,
    cri_socket: str,
    component: str,
    *,
    containers: Sequence[node_containers.ContainerInfo],
    unhealthy: str = "",
) -> Optional[BrokenLink]:
    """Why a component does not run, or runs and is not healthy (`unhealthy`: what its probe sees)."""
    all_own = sorted((item for item in containers if item.name == component), key=lambda item: -item.created_ns)
    own = [item for item in all_own if not _is_replaced(host, item)]
    if all_own and not own:
        return None  # the kubelet is about to start another
    if not own:
        return find_pod_trouble(host, cri_socket, component)
    newest = own[0]
    if newest.state == "running":
        return _find_running_trouble(host, cri_socket, own, unhealthy)
    if newest.state != "exited":
        return find_pod_trouble(host, cri_socket, component)
    return _describe_exit(host, cri_socket, newest)


def _is_replaced(host: Host, item: node_containers.ContainerInfo) -> bool:
    """Whether a container ended that was made from the static pod's manifest before its last change."""
    manifest = host.stat(MANIFESTS / f"{item.name}.yaml")
    is_dated = item.created_ns > 10**9  # nanoseconds, where ctr gives an attempt's number
    return item.state == "exited" and is_dated and manifest is not None and item.created_ns / 1e9 < manifest.mtime


def _find_running_trouble(
    host: Host, cri_socket: str, own: Sequence[node_containers.ContainerInfo], unhealthy: str
) -> Optional[BrokenLink]:
    """Of a container that runs: what it says, if it is not healthy; what the one before it died of, if it is young."""
    newest = own[0]
    ended = next((item for item in own if item.state == "exited"), None)
    if ended is not None and newest.attempt >= 1 and unhealthy:
        found = _describe_exit(host, cri_socket, ended)
        if found.is_final:
            return found
    if not unhealthy:
        return None
    log = node_containers.container_logs(host, cri_socket, newest.id, lines=60)
    what = f"{newest.name} runs and is not healthy ({unhealthy})"
    found_sign = _match_signs(
        host, CONTAINER_SIGNS, log, what=what, link="probe", words=_source_words(host, newest.name)
    )
    if found_sign and found_sign.is_final:
        # its last words may be there before the runtime has seen it end
        host.sleep(_LAST_WORDS_S)
        again = (item for item in node_containers.list_containers(host, cri_socket) if item.id == newest.id)
        ended = next((item for item in again if item.state == "exited"), None)
        if ended is not None:
            return _describe_exit(host, cri_socket, ended)
    if found_sign:
        return replace(found_sign, details=_last_lines(log))
    line = last_error_line(log)
    age_s = host.now().timestamp() - newest.created_ns / 1e9
    if not line or age_s < _SETTLED_S:
        return None  # a component that starts complains of what is not there yet
    return BrokenLink(
        what,
        f"its last word: {line}",
        f"read the whole log: crictl logs {newest.id[:13]}",
        details=_last_lines(log),
        link="probe",
    )


def _describe_exit(host: Host, cri_socket: str, ended: node_containers.ContainerInfo) -> BrokenLink:
    log = node_containers.container_logs(host, cri_socket, ended.id, lines=60)
    attempts = ended.attempt + 1
    code = "?" if ended.exit_code is None else ended.exit_code
    what = f"{ended.name} exited {attempts} time{'s' * (attempts != 1)} (code {code})"
    if ended.reason == "OOMKilled":
        return BrokenLink(
            f"{what}: it was killed for want of memory",
            "the machine or the container's limit has too little memory (OOMKilled)",
            "see what uses it (free -m; dmesg | grep -i oom), give the machine more, " + _THEN,
            is_final=attempts >= 3,
            link="container",
        )
    words = _source_words(host, ended.name)
    found = _match_signs(host, CONTAINER_SIGNS, [*log, ended.message], what=what, link="container", words=words)
    if found:
        return replace(found, details=_last_lines(log))
    line = last_error_line(log) or (log[-1].strip() if log else ended.message or "it wrote no log")
    return BrokenLink(
        what,
        f"its last word: {line}",
        f"read the whole log: crictl logs {ended.id[:13]}",
        is_final=attempts >= 3,
        details=_last_lines(log),
        link="container",
    )


def _source_words(host: Host, component: str) -> dict[str, str]:
    """Where a component's flags come from."""
    if component in CONFIG_OF:
        source = f"{CONFIG_OF[component]}.extraArgs"
        return {"source": source, "origin": f"{source} of the ClusterConfiguration (or from a patch of {component})"}
    source = f"the configuration of {component}"
    return {"source": source, "origin": source}


PROXY_GRACE_S = 40
"""kube-proxy looks after its iptables rules every 30 seconds; of nftables' it takes no notice until it writes them all anew."""


def find_lost_rules(host: Host, cri_socket: str) -> Optional[BrokenLink]:
    """A kube-proxy that runs while none of its rules are here: somebody emptied the kernel's tables (a firewall that was
    restarted, `nft flush ruleset`). None where there are rules of any of its modes, or where it has just begun."""
    own = [item for item in node_containers.list_containers(host, cri_socket) if item.name == "kube-proxy"]
    newest = max(own, key=lambda item: item.created_ns, default=None)
    if newest is None or newest.state != "running" or host.now().timestamp() - newest.created_ns / 1e9 < PROXY_GRACE_S:
        return None
    tables = host.query(["nft", "list", "tables"])
    if not tables.ok:
        return None  # without nft it cannot be told
    has_rules = (
        re.search(r"^table ip6? kube-proxy$", tables.stdout, re.MULTILINE)
        or any(host.query([program, "-t", "nat", "-S", "KUBE-SERVICES"]).ok for program in ("iptables", "ip6tables"))
        or host.query(["ip", "link", "show", "dev", "kube-ipvs0"]).ok
    )
    if has_rules:
        return None
    return BrokenLink(
        "kube-proxy runs, and its rules are not on this node",
        "something emptied the kernel's tables (nft flush ruleset, systemctl restart nftables), and kube-proxy does not notice: "
        "no Service is reached",
        "have kube-proxy write them again: crictl stop $(crictl ps -q --name kube-proxy); and keep the firewall from flushing "
        "tables of others",
        link="proxy-rules",
    )


# ---- the chain


def find_broken_link(
    host: Host,
    cri_socket: str,
    *,
    components: tuple[str, ...] = (),
    unhealthy: Optional[Mapping[str, str]] = None,
) -> Optional[BrokenLink]:
    """The first broken link on the way to running components; None where all that can be seen is well.

    components: in the order in which one needs the other (etcd before the API server). unhealthy: what the probes of
    some of them see; a component that runs is looked at only then.
    """
    found = find_kubelet_trouble(host) or find_runtime_trouble(host, cri_socket) or find_healthz_trouble(host)
    if found or not components:
        return found
    containers = node_containers.list_containers(host, cri_socket)
    troubles = []
    for component in components:
        seen = (unhealthy or {}).get(component, "")
        trouble = find_container_trouble(host, cri_socket, component, containers=containers, unhealthy=seen)
        if trouble and trouble.is_final:
            return trouble
        if trouble:
            troubles.append(trouble)
    return troubles[0] if troubles else None


# ---- log lines


def _match_signs(
    host: Host,
    signs: Sequence[Sign],
    lines: Sequence[str],
    *,
    what: str,
    link: str,
    words: Optional[Mapping[str, str]] = None,
) -> Optional[BrokenLink]:
    """What the newest line that shows a sign means: a program dies of what it said last."""
    for line in reversed(lines):
        sign = next((sign for sign in signs if re.search(sign.pattern, line)), None)
        if sign is not None:
            return _fill(host, sign, line, what=what, link=link, words=words or {})
    return None


def _fill(host: Host, sign: Sign, line: str, *, what: str, link: str, words: Mapping[str, str]) -> BrokenLink:
    match = re.search(sign.pattern, line)
    groups = {name: value or "" for name, value in (match.groupdict() if match else {}).items()}
    known = {**_service_words(host), **groups, **words, "line": clean_log_line(line)}
    if sign.explain:
        known.update(sign.explain(host, groups))
    cause = sign.cause.format_map(known) if sign.cause else known["line"]
    return BrokenLink(what, cause, sign.remedy.format_map(known), is_final=sign.is_final, link=link)


def _last_lines(log: Sequence[str]) -> tuple[str, ...]:
    """What to show of a log: its last lines, cleaned."""
    return tuple(clean_log_line(line) for line in log[-5:] if line.strip())


def last_error_line(lines: Sequence[str]) -> str:
    """The last line that tells of a failure: klog's E and F lines, etcd's fatal JSON, `Error: ...`."""
    lines = _join_blocks(lines)
    for line in reversed(lines):
        text = line.strip()
        if (
            re.match(r"^[EF]\d{4} ", text)
            or text.startswith(("Error:", "error:", "panic:"))
            or '"level":"fatal"' in text
        ):
            return clean_log_line(text)
    for line in reversed(lines):
        if re.search(r"(?i)\b(err(or)?|fail(ed|ure)?|fatal|refused|denied)\b", line):
            return clean_log_line(line)
    return ""


def _join_blocks(lines: Sequence[str]) -> list[str]:
    """klog's texts of several lines, which stand between `err=<` and ` >`, in one."""
    joined: list[str] = []
    is_inside = False
    for line in lines:
        if is_inside:
            joined[-1] = f"{joined[-1]} {line.strip()}"
            is_inside = not line.startswith(" >")
        else:
            joined.append(line)
            is_inside = line.rstrip().endswith("=<")
    return joined


def clean_log_line(line: str) -> str:
    """A log line without klog's stamp, or the words of a JSON one (etcd's): at most 400 characters."""
    text = line.strip()
    if text.startswith("{"):
        row = as_table(text)
        text = ": ".join(str(row[key]) for key in ("msg", "error") if row.get(key)) or text
    return _shorten(_KLOG.sub("", text))


def _shorten(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def container_error(host: Host, cri_socket: str, name: str) -> str:
    """The last error in the log of the newest container called `name`; "" where there is none."""
    own = [container for container in node_containers.list_containers(host, cri_socket) if container.name == name]
    if not own:
        return "no container of it was started"
    newest = max(own, key=lambda container: container.created_ns)
    return last_error_line(node_containers.container_logs(host, cri_socket, newest.id, lines=50))
