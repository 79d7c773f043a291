"""Signs: the meaning of log lines, each with its cause and its remedy, in three tables.

The tables cover a kubelet's exit, a pod that cannot start, and an exited container. The code that matches them walks
the chain kubelet unit -> its log -> healthz -> container runtime -> sandbox -> image -> container -> exit code -> last
log lines -> probe (chain.py, kubelet_trouble.py, pod_trouble.py, container_trouble.py), and names the first broken
link. Only reads; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from kubeup.diagnosis.checks.facts import read_or_empty
from kubeup.diagnosis.log_lines import clean_log_line
from kubeup.errors import ClusterError, KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import crictl
from kubeup.trouble import Trouble

with lazily:
    from kubeup.node import certificates, kubeconfig

_KUBELET_CONF = Path("/etc/kubernetes/kubelet.conf")

SETTLED_S = 15
"""A kubelet that has run for this long has overcome the errors of its earlier starts."""

CONFIG_OF: Mapping[str, str] = {
    "kube-apiserver": "apiServer",
    "kube-controller-manager": "controllerManager",
    "kube-scheduler": "scheduler",
    "etcd": "etcd.local",
}
"""Where ClusterConfiguration configures a component."""
MANIFESTS = Path("/etc/kubernetes/manifests")


@frozen
class BrokenLink(Trouble):
    """The first broken link, and whether waiting longer can help."""

    is_final: bool = False
    details: tuple[str, ...] = ()
    link: str = ""
    """The link in the chain: kubelet-unit | kubelet-log | kubelet-healthz | runtime | sandbox | volume | image |
    container | probe."""

    @property
    def key(self) -> tuple[str, str]:
        """The same for every report of the same trouble: numbers (attempts, seconds, processes) are ignored."""
        return self.link, re.sub(r"\d+", "", self.what + self.remedy)

    def as_error(self) -> ClusterError:
        """For code that stops waiting."""
        return ClusterError(self.what, cause=self.cause, remedy=self.remedy, code="not-healthy", details=self.details)


@frozen
class Sign:
    """The meaning of a log line. `pattern` is searched in the line; `cause` and `remedy` are filled in with its groups
    and with facts about the node ({port_holder}, {mount}, {source}). cause "" is the line itself."""

    pattern: str
    remedy: str
    cause: str = ""
    is_final: bool = True
    explain: Optional[Callable[[Host, Mapping[str, str]], Mapping[str, str]]] = None
    """Looks up additional values when the sign matches."""


# ---- lookups for signs


def _look_up_holder(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The process that listens on the occupied port."""
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
    points = [
        line.split()[1] for line in read_or_empty(host, Path("/proc/mounts")).splitlines() if len(line.split()) > 1
    ]
    above = [point for point in points if folder == point or folder.startswith(point + "/")]
    return {"mount": max(above, key=len) if above else folder}


def _look_up_kernel_flags(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The settings that the kubelet wants, as sysctl takes them. Source: pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables"""
    wanted = re.findall(r"kernel flag: ([\w/.-]+), expected value: (-?\d+)", groups.get("flags", ""))
    return {"settings": " ".join(f"{name.replace('/', '.')}={value}" for name, value in wanted) or "another value"}


def _look_up_free_space(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    folder = groups.get("path") or "/var/lib/etcd"
    return {"folder": folder, "free": f"{host.free_bytes(Path(folder)) // 2**20} MiB"}


def _look_up_folder(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The nearest folder above that is there."""
    path = Path(groups.get("path") or "/")
    return {"folder": str(next((one for one in path.parents if host.is_dir(one)), "/"))}


def _look_up_addresses(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The addresses that this machine has."""
    rows = host.query(["ip", "-o", "addr", "show", "scope", "global"], timeout_s=5).stdout.splitlines()
    cells = [row.split() for row in rows]
    have = [f"{row[3].partition('/')[0]} ({row[1]})" for row in cells if len(row) > 3]
    return {"have": ", ".join(have) or "none listed by ip"}


def _look_up_etcd_servers(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """The etcd servers that this node's API server uses."""
    told = re.search(r"--etcd-servers=([^\s\"']+)", read_or_empty(host, MANIFESTS / "kube-apiserver.yaml"))
    servers = told[1].split(",") if told else []
    return {
        "servers": ", ".join(servers) or "--etcd-servers",
        "server": servers[0] if servers else "https://127.0.0.1:2379",
    }


def _look_up_identity(host: Host, groups: Mapping[str, str]) -> Mapping[str, str]:
    """A worker's new certificate is signed where the authority's key is."""
    is_server = host.exists(MANIFESTS / "kube-apiserver.yaml")
    recover = (
        "kb certs recover" if is_server else "on a control plane: kb certs recover, which prints the line for this node"
    )
    if _has_expired(host):
        lack = "the kubelet's client certificate /var/lib/kubelet/pki/kubelet-client-current.pem has expired"
        return {"lack": lack, "new_identity": recover, "recover": recover}
    lack = "there is neither a valid /etc/kubernetes/kubelet.conf nor a bootstrap-kubelet.conf: the kubelet has no identity"
    return {"lack": lack, "new_identity": say_new_identity(host), "recover": recover}


def _has_expired(host: Host) -> bool:
    """Whether the client certificate that kubelet.conf names is over."""
    try:
        text = read_or_empty(host, str(_KUBELET_CONF))
        found = kubeconfig.read_kubeconfig(text, host=host, path=_KUBELET_CONF) if text else None
    except KbError:
        return False
    certs = certificates.parse_shown(found.client_cert_pem) if found else ()
    return bool(certs) and certificates.is_expired(certs[0], host.now())


def say_new_identity(host: Host) -> str:
    """What gives this node's kubelet a new certificate: the CA's key on a control plane, a token on a worker."""
    if host.exists(MANIFESTS / "kube-apiserver.yaml"):
        return "kb init phase kubeconfig kubelet"
    return "take a fresh token (on a control plane: kb token create --print-join-command), then: kb reset, and that command"


def _service_words(host: Host) -> Mapping[str, str]:
    """The commands of this machine's service manager that remedies need."""
    manager, runtime = services.spoken_of(host), crictl.find_unit(host)
    return {
        "restart_kubelet": manager.say("restart", "kubelet"),
        "restart_runtime": manager.say("restart", runtime),
        "runtime_log": services.say_log(host, runtime, lines=20),
        "runtime_data": crictl.data_folder(runtime),
    }


def say_restart(host: Host, name: str) -> str:
    """How to restart a component: the kubelet is a service; static pods are restarted by the kubelet."""
    own = name == "kubelet"
    return services.spoken_of(host).say("restart", name) if own else f"crictl stop $(crictl ps -q --name {name})"


def say_unit_change(host: Host) -> str:
    """The commands that show the kubelet's own environment and apply a change to it."""
    manager = services.spoken_of(host)
    return "; ".join(filter(None, (manager.say("show", "kubelet"), " ".join(manager.reload))))


def say_missing_unit(host: Host) -> str:
    if services.spoken_of(host) is services.OPENRC:
        return f"install it: {crictl.install_command(host, 'kubelet', apk='kubelet-openrc')}"
    return f"{AGAIN}: it writes the unit"


# ---- the signs

AGAIN = "run the command again"
"""For remedies: only the code that started the command knows its name (init, join, one of their phases)."""
THEN = f"then {AGAIN}"

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
        remedy="correct or remove {field} in the KubeletConfiguration (of --config, or of the patches), " + THEN,
    ),
    Sign(
        r"failed to load (?:k|K)ubelet config file[^:]*: (?P<why>.*)",
        cause="its configuration /var/lib/kubelet/config.yaml cannot be read: {why}",
        remedy="correct the KubeletConfiguration (of --config, or of the patches), " + THEN,
    ),
    Sign(
        r"failed to validate kubelet configuration, error: (?P<why>.*?)(?:, path:|$)",
        cause="its configuration /var/lib/kubelet/config.yaml is not valid: {why}",
        remedy="correct it in the KubeletConfiguration (of --config, or of the patches), " + THEN,
    ),
    Sign(
        r"(?:unknown flag|unknown shorthand flag): (?P<flag>\S+?)[\"\\.]*(?:\s|$)",
        cause="unknown flag: {flag}, which comes from nodeRegistration.kubeletExtraArgs, /etc/default/kubelet or the unit",
        remedy="remove {flag} (in nodeRegistration.kubeletExtraArgs; else: grep -r -- {flag} /etc/default/kubelet "
        "/var/lib/kubelet/kubeadm-flags.env /etc/systemd/system), " + THEN,
    ),
    Sign(
        r"labels specified with --node-labels: \[(?P<labels>[^\]\s]+)",
        cause="a kubelet may not give its node the label {labels} (--node-labels, of nodeRegistration.kubeletExtraArgs or "
        "/etc/default/kubelet), and exits",
        remedy="remove it, and label the node once it is registered: kubectl label node NAME {labels}=, " + THEN,
    ),
    Sign(
        r"invalid node labels: (?P<why>[^\"]*)",
        cause="--node-labels: {why}",
        remedy="correct node-labels in nodeRegistration.kubeletExtraArgs, " + THEN,
    ),
    Sign(
        r"invalid argument \\*\"(?P<value>[^\"\\]*)\\*\" for \\*\"(?P<flag>[^\"\\]+)",
        cause='the flag {flag} does not accept the value "{value}"; it comes from nodeRegistration.kubeletExtraArgs or the unit',
        remedy="correct {flag} in nodeRegistration.kubeletExtraArgs, " + THEN,
    ),
    Sign(
        r"[Rr]unning with swap on is not supported",
        cause="swap is on, and the kubelet does not start with it",
        remedy="swapoff -a (and out of /etc/fstab), or failSwapOn: false in the KubeletConfiguration, " + THEN,
    ),
    Sign(
        r"configured to not run on a host using cgroup v1",
        cause="this machine has cgroup version 1, on which this kubelet does not start",
        remedy="boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false in the KubeletConfiguration, "
        + THEN,
    ),
    Sign(
        r"(?:unknown service runtime\.v1|CRI v1 runtime API is not implemented|Unimplemented desc = unknown service runtime\.v1)",
        cause="the container runtime does not serve the CRI: its CRI plugin is disabled or failed to load",
        remedy="grep -n disabled_plugins /etc/containerd/config.toml; remove cri, {restart_runtime}, " + THEN,
    ),
    Sign(
        r"(?:kubelet cgroup driver: |cgroup driver.*)\\*\"?(?P<own>systemd|cgroupfs)\\*\"?.*is different from .*?(?P<other>systemd|cgroupfs)",
        cause="the kubelet has the cgroup driver {own}, the runtime {other}",
        remedy="set SystemdCgroup = true in /etc/containerd/config.toml, {restart_runtime}, " + THEN,
    ),
    Sign(
        r"(?:mkdir|open) (?P<path>/sys/fs/cgroup/[^:\s\"\\]*)[^:]*: read-only file system",
        cause="the kubelet cannot make {path}: {mount} is mounted read-only",
        remedy="mount -o remount,bind,rw {mount}, " + THEN,
        explain=_look_up_cgroup_mount,
    ),
    Sign(
        r"listen tcp[46]? (?P<address>\S*):(?P<port>\d+): bind: address already in use",
        cause="port {port} is in use by {holder}",
        remedy="stop that process ({look}), " + THEN,
        explain=_look_up_holder,
    ),
    Sign(
        r"no space left on device",
        cause="the disk under /var/lib/kubelet is full",
        remedy="make space: df -h /var/lib/kubelet, " + THEN,
    ),
    Sign(
        r"part of the existing bootstrap client certificate .* is expired|client certificate.*expired",
        cause="the kubelet's client certificate /var/lib/kubelet/pki/kubelet-client-current.pem has expired",
        remedy="{recover}",
        explain=_look_up_identity,
    ),
    Sign(
        r"(?:bootstrap-kubelet\.conf: no such file|unable to load bootstrap kubeconfig)",
        cause="{lack}",
        remedy="{new_identity}",
        explain=_look_up_identity,
    ),
    Sign(
        r"(?P<why>configured policy .{0,80}? differs from state checkpoint policy|checkpoint is corrupted|current set of available CPUs)"
        r".*?(?P<path>/var/lib/kubelet/\w+_manager_state)",
        cause="what it kept of its pods' processors or memory in {path} does not fit its configuration or this machine: {line}",
        remedy="empty the node (on a control plane: kb node drain NAME), then here: rm {path}; {restart_kubelet}",
    ),
    Sign(
        r"Failed at step EXEC spawning (?P<path>\S+): (?P<why>[^\n]+)",
        cause="{path} cannot be started: {why}",
        remedy="install the kubelet's package again, in the version of its node (kubectl get nodes); then: {restart_kubelet}",
    ),
    Sign(
        r"(?P<flags>invalid kernel flag: .*\d)",
        cause="protectKernelDefaults is set in its configuration, and this machine's kernel settings are others: {settings} is expected",
        remedy="sysctl -w {settings} (and into /etc/sysctl.d), or leave protectKernelDefaults out of it; then: {restart_kubelet}",
        explain=_look_up_kernel_flags,
    ),
    Sign(
        r"Failed to enforce (?P<kind>\w+) Reserved Cgroup Limits on \\*\"(?P<group>[^\"\\]+)",
        cause="it is told to limit the control group {group} (enforceNodeAllocatable), which is not there or lacks controllers: {line}",
        remedy="leave {group} out of enforceNodeAllocatable in the KubeletConfiguration, or make it; then: {restart_kubelet}",
    ),
    Sign(
        r"unable to load client CA file (?P<path>[^:\s]+): (?P<why>.*)",
        cause="the CA {path} cannot be loaded: {why}",
        remedy="put {path} back, " + THEN,
    ),
    Sign(
        r"(?:validate service connection|connect to container runtime|dial unix)[^\n]*?(?P<path>/[^\s\"\\]+\.sock)[^\n]*?(?:no such file|connection refused)",
        cause="no container runtime answers on {path}",
        remedy="{restart_runtime} (why it ended: {runtime_log}), " + THEN,
        is_final=False,
    ),
    _NO_FILES_LEFT,
)
"""Signs of a kubelet that exits right after its start. The first match wins."""

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
        remedy="mount -o remount,bind,rw {mount}, " + THEN,
        explain=_look_up_cgroup_mount,
    ),
    Sign(
        r"failed to find plugin \\*\"(?P<plugin>[^\"\\]+)\\*\" in path \[?(?P<path>[^\]\s]+)",
        cause='the CNI plugin "{plugin}" is not in {path}',
        remedy="install it (containernetworking-plugins, or the plugin of your pod network) into {path}, " + THEN,
    ),
    Sign(
        r"fork/exec (?P<path>/[^\s:\"\\]+): (?P<why>permission denied|exec format error)",
        cause="{path} cannot be executed: {why}",
        remedy="look at its mode, its file system's options and its architecture: ls -l {path}; findmnt -T {path}; file {path}; give it back what it lacks "
        "(chmod a+x {path}; mount -o remount,exec; install it for this architecture), " + THEN,
    ),
    Sign(
        r"no IP addresses available in range set: (?P<range>[\d.:a-f-]+)",
        cause="no address is left for a pod on this node ({range})",
        remedy="compare whose they are with the pods that run: crictl pods -q --no-trunc; head /run/kb/pod-addresses/*/* /var/lib/cni/networks/*/*; remove "
        "the files of sandboxes that are gone, " + THEN,
    ),
    Sign(
        r"(?:mkdir|open|write|create|symlink) (?P<path>/(?:var/log|var/lib/kubelet|run|tmp|etc|opt)/[^:\s\"\\]+)[^\n]*no space left on device",
        cause="no space, or no inode, is left for {folder}",
        remedy="see which: df -h {folder}; df -i {folder}; make room there, " + THEN,
        explain=_look_up_folder,
    ),
    Sign(
        r"no space left on device",
        cause="the disk that holds the runtime's data is full",
        remedy="make space: df -h {runtime_data}, " + THEN,
    ),
    Sign(
        r"runc: executable file not found|exec: \\*\"runc\\*\"",
        cause="the runtime finds no runc",
        remedy="install runc, {restart_runtime}, " + THEN,
    ),
)
"""Signs of a pod whose sandbox cannot be created. A remedy of the form `setting = value` is for the runtime's
configuration."""

CONTAINER_SIGNS: tuple[Sign, ...] = (
    Sign(
        r"(?:unknown flag|unknown shorthand flag|flag provided but not defined): -*(?P<flag>[\w-]+)",
        cause="unknown flag: --{flag}, which comes from {origin}",
        remedy="remove --{flag} from {source}, " + THEN,
    ),
    Sign(
        r"invalid (?:argument|value) \\*\"(?P<value>[^\"\\]*)\\*\" for (?:flag )?\\*\"?-*(?P<flag>[\w-]+)",
        cause='--{flag} does not accept the value "{value}"; it comes from {origin}',
        remedy="correct --{flag} in {source}, " + THEN,
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
        remedy="stop that process ({look}), " + THEN,
        explain=_look_up_holder,
        is_final=False,
    ),
    Sign(
        r"(?P<path>/var/lib/etcd[^:\s\"\\]*)?[^\n]*no space left on device",
        cause="no space left on device: {free} are free for {folder}",
        remedy="make space: df -h {folder}, " + THEN,
        explain=_look_up_free_space,
    ),
    Sign(
        r"(?:private key does not match public key|tls: failed to find any PEM data in (?:key|certificate) input)",
        cause="a certificate and its key do not match ({line})",
        remedy="see which: kb doctor; move the pair away, " + THEN,
    ),
    Sign(
        r"(?:mismatch(?:ed)? cluster ID|cluster ID mismatch|member has already been bootstrapped|request sent was ignored \(cluster ID mismatch)",
        cause="the data in /var/lib/etcd belong to another cluster ({line})",
        remedy="keep them elsewhere (mv /var/lib/etcd /var/lib/etcd.old), " + THEN,
    ),
    Sign(
        r"(?:the member has been permanently removed from the cluster|data-dir used by this member must be removed)",
        cause="this machine's member was removed from etcd ({line})",
        remedy="take back what the machine was: kb reset --force; to join it again, on a control plane: kb token create --print-join-command "
        "--control-plane",
    ),
    Sign(
        r"tocommit\(\d+\) is out of range \[lastIndex\(\d+\)\]",
        cause="etcd's data here are older than what this member has agreed to, or were wiped: a lost disk, or an old copy of it ({line})",
        remedy="have its member removed, on another control plane: kb etcd remove NAME; then here: kb reset --force, and join again",
    ),
    Sign(
        r"(?P<why>(?:walpb?|snap): (?:crc mismatch|max entry size limit exceeded|file not found|slice bounds out of range)|failed to (?:read WAL|recover v3 backend|open WAL)"
        r"|freepages: failed to get all reachable pages|proto: Record: [^\",]+|proto: wrong wireType = \d+ for field (?:Type|Crc|Data)\b)",
        cause="etcd's data on this machine are damaged, as a power failure or a failing disk leaves them ({why})",
        remedy="with other members: kb etcd remove NAME on another control plane, then here: kb reset --force, and join again; as the only member: "
        "kb restore FILE, with the newest backup",
    ),
    Sign(
        r"(?:open|stat|loading) (?P<path>/etc/kubernetes/[^:\s\"]+)\"?: no such file or directory",
        cause="it is told to read {path}, which is not there; a flag of {origin} names it",
        remedy="put {path} back, or leave the flag out of {source}, " + THEN,
    ),
    Sign(
        r"(?:member count is unequal|unmatched member while checking PeerURLs|couldn't find local name \\*\"(?P<name>[^\"\\]+))",
        cause="etcd's own name or peer address is not among the members it knows ({line})",
        remedy="see --name and --initial-cluster in /etc/kubernetes/manifests/etcd.yaml; they come from etcd.local.extraArgs "
        "and the advertise address",
    ),
    Sign(
        r'"command failed" err="context deadline exceeded"',
        cause="etcd did not answer it in time: it calls {servers}",
        remedy="see whether this machine reaches a working etcd: curl -vk {server}/health",
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
        cause="a certificate comes from another CA than the one it is verified with ({line})",
        remedy="see which: kb doctor",
        is_final=False,
    ),
    Sign(
        r"(?:can't use the IPVS proxier|[Ii][Pp][Vv][Ss][^\n]*(?:not supported|not available|no such file|kernel modules|can't|cannot|failed))",
        cause="this kernel has no IPVS, which mode: ipvs of the KubeProxyConfiguration needs ({line})",
        remedy="load the modules (modprobe ip_vs ip_vs_rr ip_vs_sh), or set mode: iptables (or nftables) in the "
        "KubeProxyConfiguration, " + THEN,
    ),
    Sign(
        r"nf_conntrack_(?:max|tcp|udp)\w*[^\n]*(?:permission denied|read-only file system|no such file)",
        cause="kube-proxy may not set the size of the connection tracking table (conntrack): {line}",
        remedy="leave it alone: conntrack: {{maxPerCore: 0}} in the KubeProxyConfiguration (and set it on the host: "
        "sysctl net.netfilter.nf_conntrack_max), " + THEN,
    ),
    Sign(
        r"(?:iptables|ip6tables|nft|iptables-restore)[^\n]*(?:executable file not found|No chain/target/match|not found in|Extension \w+ |[Pp]ermission denied|Could not fetch rule set|exit status \d+|error loading shared)",
        cause="kube-proxy cannot program its rules: {line}",
        remedy="see that this kernel has the netfilter matches (iptables -t nat -L; modprobe xt_comment xt_conntrack), or set "
        "another mode (iptables | nftables) in the KubeProxyConfiguration, " + THEN,
        is_final=False,
    ),
    Sign(
        r"/etc/coredns/Corefile:(?P<row>\d+) - Error during parsing: (?P<why>.*)",
        cause="its configuration is wrong: line {row} of the Corefile: {why}",
        remedy="correct it: kubectl -n kube-system edit configmap coredns",
    ),
    Sign(
        r"plugin/loop: (?P<loop>Loop \([^)]*\) detected for zone)",
        cause="CoreDNS queries itself: {loop}. The name servers of the node's resolv.conf are loopback addresses (a stub "
        "resolver), and inside a Pod these are the Pod itself",
        remedy="name a file with real name servers: resolvConf in the KubeletConfiguration (systemd-resolved's: "
        "/run/systemd/resolve/resolv.conf), " + THEN,
    ),
    Sign(
        r"(?:proxyconnect tcp|Proxy Authentication Required|proxy: unknown scheme)[^\n]*",
        cause="its requests go through a proxy ({line})",
        remedy="put this node's address, the service CIDR and the pod CIDR into NO_PROXY, " + THEN,
    ),
    _NO_FILES_LEFT,
    Sign(
        r"exec:? [^\n]*(?:no such file or directory|exec format error|permission denied)",
        cause="its program cannot be run: {line}",
        remedy="the image is of another architecture or is damaged: crictl rmi it, correct imageRepository, " + THEN,
    ),
)
"""Signs of a container that exited, or runs and is unhealthy."""


def source_words(component: str) -> dict[str, str]:
    """Where a component's flags come from."""
    if component in CONFIG_OF:
        source = f"{CONFIG_OF[component]}.extraArgs"
        return {"source": source, "origin": f"{source} of the ClusterConfiguration (or from a patch of {component})"}
    source = f"the configuration of {component}"
    return {"source": source, "origin": source}


def match_signs(
    host: Host,
    signs: Sequence[Sign],
    *,
    lines: Sequence[str],
    what: str,
    link: str,
    words: Optional[Mapping[str, str]] = None,
) -> Optional[BrokenLink]:
    """The meaning of the newest line that matches a sign, because a program's last message explains its exit."""
    for line in reversed(lines):
        sign = next((sign for sign in signs if re.search(sign.pattern, line)), None)
        if sign is not None:
            return _fill(host, sign, line=line, what=what, link=link, words=words or {})
    return None


def _fill(host: Host, sign: Sign, *, line: str, what: str, link: str, words: Mapping[str, str]) -> BrokenLink:
    match = re.search(sign.pattern, line)
    groups = {name: value or "" for name, value in (match.groupdict() if match else {}).items()}
    known = {**_service_words(host), **groups, **words, "line": clean_log_line(line)}
    if sign.explain:
        known.update(sign.explain(host, groups))
    cause = sign.cause.format_map(known) if sign.cause else known["line"]
    return BrokenLink(what, cause, sign.remedy.format_map(known), is_final=sign.is_final, link=link)
