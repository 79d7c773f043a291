"""The container runtime: what it is, whether it is ready, which images it has, and its containers' ends.

Owns everything that is said to the CRI. It is spoken to through crictl; where there is none, through containerd's
own ctr; so kb needs no gRPC. Must not write the runtime's configuration, and knows no phase. Mirrors
cmd/kubeadm/app/util/runtime/runtime.go and cmd/kubeadm/app/images/images.go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.config.types import InitConfig
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import CommandResult, Host
from kubeup.node import containerd_config, images
from kubeup.node.containerd_config import Handler, Naming, find_disabled_cri, parse_toml
from kubeup.releases import Release, has_runtime_config_call
from kubeup.report import Report
from kubeup.shapes import fit_what_does

CONTAINERD_CONFIG = containerd_config.CONFIG
CERTS_D = Path("/etc/containerd/certs.d")
"""Where people put a hosts.toml per registry; containerd reads it only where its configuration says so."""
DEFAULT_CNI_BIN_DIRS = ("/opt/cni/bin",)
PULL_ATTEMPTS = 5
PULL_TIMEOUT_S = 1800.0
"""An image of 100 MB on a slow line is no failure; the runtime itself ends a pull that makes no progress."""
PARALLEL_PULLS = 4


# ---- what the runtime is


@frozen
class RuntimeStatus:
    """What is known of the runtime behind a CRI socket. None: it could not be told."""

    socket: str
    name: str = ""
    """containerd | cri-o | ..."""
    version: str = ""
    is_ready: bool = False
    problem: str = ""
    """no-socket | refused | forbidden | timeout | cri-disabled | cri-failed | no-client | not-ready | failed; "" if ready"""
    cause: str = ""
    """Why it is not ready, in words."""
    remedy: str = ""
    has_runtime_config: Optional[bool] = None
    """Whether it answers the call by which a kubelet learns the runtime's cgroup driver."""
    cgroup_driver: Optional[str] = None
    """systemd | cgroupfs"""
    handler: Optional[Handler] = None
    """containerd's handler of a pod that names no runtime class."""
    sandbox_image: Optional[str] = None
    restricts_oom_score: Optional[bool] = None
    registry_config_path: Optional[str] = None
    """The folders that it reads a hosts.toml per registry from, with colons between them; "" for none."""
    cni_bin_dirs: tuple[str, ...] = DEFAULT_CNI_BIN_DIRS
    root_dir: str = ""
    """Where its images lie."""
    restart: str = "systemctl restart containerd"
    """The command by which this machine restarts it."""

    @property
    def label(self) -> str:
        """`containerd 1.6.20`"""
        return f"{self.name} {self.version}".strip() or "the container runtime"


def socket_path(socket: str) -> Path:
    """`unix:///run/x.sock`, `unix:/run/x.sock` and `/run/x.sock` alike."""
    return Path(re.sub(r"^(?i:unix):(//)?(?=/)", "", socket.strip()))


def crictl_argv(socket: str, *words: str) -> list[str]:
    """A crictl command that depends on nothing but the socket: no /etc/crictl.yaml has a say."""
    endpoint = f"unix://{socket_path(socket)}"
    options = ["--config", "/dev/null", "--timeout", "10s"]
    return ["crictl", *options, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, *words]


def ctr_argv(socket: str, *words: str) -> list[str]:
    return ["ctr", "--connect-timeout", "5s", "-a", str(socket_path(socket)), "-n", "k8s.io", *words]


def probe_runtime(host: Host, socket: str) -> RuntimeStatus:
    """Ask the runtime what it is and whether it takes work. Never raises: problem, cause and remedy tell."""
    return replace(_probe(host, socket), restart=services.spoken_of(host).say("restart", unit_of(socket)))


def unit_of(socket: str) -> str:
    """The service that listens on the socket."""
    return "crio" if "crio" in socket_path(socket).name else "containerd"


def _probe(host: Host, socket: str) -> RuntimeStatus:
    if not host.exists(socket_path(socket)):
        return _describe_missing_socket(host, socket)
    if host.which("crictl"):
        return _probe_through_crictl(host, socket)
    if host.which("ctr"):
        return _probe_through_ctr(host, socket)
    return RuntimeStatus(
        socket,
        problem="no-client",
        cause="neither crictl nor ctr is in PATH, so the runtime cannot be asked",
        remedy=f"install crictl: {install_command(host, 'cri-tools')}",
    )


def install_command(host: Host, deb: str, rpm: str = "", *, apk: str = "") -> str:
    """The command by which this node's package manager installs a package."""
    if host.which("apk"):
        return f"apk add {apk or deb}"
    for program, package in (("apt-get", deb), ("dnf", rpm or deb), ("yum", rpm or deb), ("zypper", rpm or deb)):
        if host.which(program):
            return f"{program} install {package}"
    return f"install the package {deb}"


def _describe_missing_socket(host: Host, socket: str) -> RuntimeStatus:
    path = socket_path(socket)
    unit = unit_of(socket)
    if host.which(unit):
        cause = f"there is no socket {path}: {unit} is installed but does not run"
        manager = services.spoken_of(host)
        remedy = f"{manager.say('enable-now', unit)} (why it ended: {services.say_log(host, unit, lines=20)})"
        last = _last_words_of_unit(host, unit)
        if last:
            cause, remedy = f"{cause}: {last}", f"correct what it names, then: {manager.say('restart', unit)}"
    else:
        package = "cri-o" if unit == "crio" else "containerd"
        cause = f"there is no socket {path}, and no {unit} in PATH"
        remedy = f"{install_command(host, package)}, or name the runtime's socket: --cri-socket"
    return RuntimeStatus(socket, problem="no-socket", cause=cause, remedy=remedy)


def _last_words_of_unit(host: Host, unit: str) -> str:
    """What a runtime that ended with an error said at last; "" where it was stopped."""
    state = host.query(["systemctl", "show", unit, "--property", "Result,InvocationID"], timeout_s=15)
    found = dict(line.partition("=")[::2] for line in state.stdout.splitlines())
    if not state.ok or found.get("Result") in ("success", None) or not found.get("InvocationID"):
        return ""
    own = f"_SYSTEMD_INVOCATION_ID={found['InvocationID']}"
    lines = host.query(["journalctl", own, "-n", "20", "-o", "cat", "--no-pager"], timeout_s=15).stdout.splitlines()
    errors = [line for line in lines if line.startswith(f"{unit}: ") or "level=fatal" in line or "level=error" in line]
    return last_words(errors[-1]) if errors else ""


def _probe_through_crictl(host: Host, socket: str) -> RuntimeStatus:
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(host.query, crictl_argv(socket, *words), timeout_s=30)
            for words in (("info",), ("version",), ("runtime-config",))
        ]
        info, version, driver = (future.result() for future in asked)
    if not info.ok:
        return _describe_failure(host, socket, info)
    found = _named(RuntimeStatus(socket), version.stdout)
    found = _with_info(found, as_table(info.stdout), log=services.say_log(host, unit_of(socket), lines=20))
    found = _with_runtime_config(found, driver)
    if found.name == "containerd" and found.sandbox_image is None:
        # containerd 2 keeps it with the image plug-in, which `info` leaves out
        found = _with_dump(found, read_containerd_config(host, socket))
    return found


def _named(status: RuntimeStatus, text: str) -> RuntimeStatus:
    """From `crictl version`: "RuntimeName:  containerd" and "RuntimeVersion:  1.6.20"."""
    cells = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name, version = cells.get("RuntimeName", "").lower(), cells.get("RuntimeVersion", "")
    return replace(status, name=name, version=version, has_runtime_config=has_runtime_config_call(name, version))


def _with_info(status: RuntimeStatus, info: Mapping[str, Any], *, log: str) -> RuntimeStatus:
    config = as_table(info.get("config"))
    handler = containerd_config.find_default_handler(_as_in_file(config))
    dirs = _texts(as_table(info.get("cniconfig")).get("PluginDirs"))
    found = replace(
        status,
        cgroup_driver=handler.cgroup_driver if handler else None,
        handler=handler,
        sandbox_image=str(config.get("sandboxImage") or "") or None,
        restricts_oom_score=_flag(config.get("restrictOOMScoreAdj")),
        registry_config_path=_text(as_table(config.get("registry")).get("configPath")),
        cni_bin_dirs=dirs or status.cni_bin_dirs,
        root_dir=str(config.get("containerdRootDir") or ""),
    )
    conditions = fit_what_does(as_table(info.get("status")).get("conditions"), [{"type": str}])
    ready = next((item for item in conditions if item.get("type") == "RuntimeReady"), None)
    if ready and ready.get("status"):
        return replace(found, is_ready=True)
    told = f"{(ready or {}).get('reason', '')} {(ready or {}).get('message', '')}".strip()
    return replace(
        found,
        problem="not-ready",
        cause=f"it says of itself that it is not ready: {told or 'no reason given'}",
        remedy=f"see its log: {log}",
    )


def _as_in_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """The handlers in `crictl info` under the names that they have in a file."""
    containerd = as_table(config.get("containerd"))

    def entry(value: Any) -> dict[str, Any]:
        return {"runtime_type": as_table(value).get("runtimeType"), "options": as_table(value).get("options")}

    runtimes = {name: entry(value) for name, value in as_table(containerd.get("runtimes")).items()}
    return {
        "systemd_cgroup": config.get("systemdCgroup"),
        "containerd": {
            "default_runtime_name": containerd.get("defaultRuntimeName"),
            "default_runtime": entry(containerd.get("defaultRuntime")),
            "runtimes": runtimes,
        },
    }


def _flag(value: Any) -> Optional[bool]:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value if item) if isinstance(value, list) else ()


def _with_runtime_config(status: RuntimeStatus, answer: CommandResult) -> RuntimeStatus:
    """From `crictl runtime-config`: the driver, or the runtime's word that it has no such call. A crictl that is too
    old to ask says nothing; the runtime's version has then told."""
    match = re.search(r"cgroup driver:\s*(SYSTEMD|CGROUPFS)", answer.stdout)
    if answer.ok and match:
        return replace(status, has_runtime_config=True, cgroup_driver=match.group(1).lower())
    if "Unimplemented" in answer.stderr:
        return replace(status, has_runtime_config=False)
    return status


def _describe_failure(host: Host, socket: str, answer: CommandResult) -> RuntimeStatus:
    text = last_words(answer.stderr)
    path = socket_path(socket)
    unit = unit_of(socket)
    restart, log = services.spoken_of(host).say("restart", unit), services.say_log(host, unit, lines=20)
    status = RuntimeStatus(socket, name="cri-o" if unit == "crio" else "containerd")
    if "Unimplemented" in text or "unknown service runtime" in text:
        return _describe_missing_cri(host, status)
    for problem, pattern, cause, remedy in (
        ("forbidden", r"permission denied", f"{path} may not be opened by this user", "run kb as root"),
        ("refused", r"connection refused|no such file", f"nothing listens on {path}", restart),
        ("timeout", r"[Dd]eadline|timeout|timed out", f"no answer on {path} in time", restart),
    ):
        if re.search(pattern, text) or (problem == "timeout" and answer.code == 124):
            if problem != "forbidden":
                remedy = f"{remedy} (why: {log})"
            return replace(status, problem=problem, cause=f"{cause}: {text}", remedy=remedy)
    return replace(status, problem="failed", cause=text, remedy=f"see its log: {log}")


def _describe_missing_cri(host: Host, status: RuntimeStatus) -> RuntimeStatus:
    restart = services.spoken_of(host).say("restart", "containerd")
    line = find_disabled_cri(host)
    if line:
        path, number, text = line
        return replace(
            status,
            problem="cri-disabled",
            cause=f"{status.name} runs, its CRI plugin is disabled by {path} line {number}: {text}",
            remedy=f"take cri out of disabled_plugins in {path}, then: {restart}",
        )
    told = _plugin_error(host, status.socket)
    log = services.say_log(host, "containerd", lines=200)
    remedy = f"see why: {log} | grep -i cri; correct it, then: {restart}"
    for pattern, what in _PLUGIN_TROUBLES:
        match = re.search(pattern, told)
        if match:
            config = containerd_config.find_config(host)
            remedy = f"{what.format(*match.groups())} in {config}, then: {restart}"
    return replace(
        status,
        problem="cri-failed",
        cause=f"{status.name} runs, but its CRI plugin is not loaded{told}",
        remedy=remedy,
    )


_PLUGIN_TROUBLES = (
    (
        r"`systemd_cgroup` only works for runtime",
        "take the line systemd_cgroup = true out (SystemdCgroup = true in the options of the default handler does that)",
    ),
    (r"`(no_pivot|runtime_engine|runtime_root)` only works for runtime", "take the line {0} = ... out"),
    (
        r'no corresponding runtime configured .*default_runtime_name = "?([^"\s]+)',
        "name a handler that has a table of its own as default_runtime_name ({0} has none)",
    ),
    (r"`(mirrors|configs\.tls)` cannot be set when `config_path`", "take either {0} or config_path out of registry"),
    (r"`cni\.bin_dir` and `cni\.bin_dirs` cannot be set", "take either bin_dir or bin_dirs out of cni"),
)
"""What containerd says of a CRI plugin that its configuration keeps from loading, and what to do in the file."""


def _plugin_error(host: Host, socket: str) -> str:
    """What containerd says of a CRI plugin that failed to load: ": invalid plugin config: ...", or "."""
    if not host.which("ctr"):
        return ""
    text = host.query(ctr_argv(socket, "plugins", "ls", "-d", "id==cri"), timeout_s=15).stdout
    match = re.search(r"^\s*Message:\s*(.+(?:\n(?!\s*[A-Z]\w+:).+)*)", text, re.MULTILINE)
    return f": {' '.join(match.group(1).split())}" if match else ""


def _probe_through_ctr(host: Host, socket: str) -> RuntimeStatus:
    """containerd without crictl: the plugin list tells whether the CRI is served, the configuration tells the rest."""
    plugins = host.query(ctr_argv(socket, "plugins", "ls"), timeout_s=15)
    if not plugins.ok:
        return _describe_failure(host, socket, plugins)
    status = RuntimeStatus(socket, name="containerd")
    rows = [line.split() for line in plugins.stdout.splitlines()]
    if not any(row[:2] == ["io.containerd.grpc.v1", "cri"] and row[-1] == "ok" for row in rows):
        return _describe_missing_cri(host, status)
    versions = host.query(ctr_argv(socket, "version"), timeout_s=15).stdout.partition("Server:")[2]
    match = re.search(r"Version:\s*(\S+)", versions)
    version = match.group(1).lstrip("v") if match else ""
    known = has_runtime_config_call("containerd", version)
    status = replace(status, version=version, is_ready=True, has_runtime_config=known)
    return _with_dump(status, read_containerd_config(host, socket))


# ---- containerd's configuration


def read_containerd_config(host: Host, socket: str) -> Optional[dict[str, Any]]:
    """The configuration that containerd would start with, imports and defaults filled in; None where it cannot be
    told or belongs to another containerd than the one behind `socket`."""
    path = containerd_config.find_config(host)
    given = ["--config", str(path)] if path != CONTAINERD_CONFIG else []
    answer = host.query(["containerd", *given, "config", "dump"], timeout_s=15)
    if not answer.ok:
        return None
    try:
        config = parse_toml(answer.stdout)
    except ValueError:
        return None
    server = as_table(as_table(config.get("plugins")).get("io.containerd.server.v1.grpc"))  # containerd 2.3
    own = Path(str(as_table(config.get("grpc")).get("address") or server.get("address") or "/"))
    return config if _without_var(own) == _without_var(socket_path(socket)) else None


def _find_handler(config: Optional[Mapping[str, Any]]) -> Optional[Handler]:
    return containerd_config.find_default_handler(_runtime_plugin(config or {}))


def _parse_own(text: str) -> dict[str, Any]:
    """A file as it stands; {} where it cannot be read."""
    try:
        return parse_toml(text.lstrip("\ufeff"))
    except ValueError:
        return {}


def _runtime_plugin(config: Mapping[str, Any]) -> dict[str, Any]:
    """What starts pods, in a dump of containerd 1 or 2."""
    plugins = as_table(config.get("plugins"))
    return as_table(plugins.get(containerd_config.RUNTIME[1])) or as_table(plugins.get(containerd_config.OLD_CRI[1]))


def _without_var(path: Path) -> str:
    """/var/run is a link to /run."""
    text = str(path)
    return text[len("/var") :] if text.startswith("/var/run/") else text


def _with_dump(status: RuntimeStatus, config: Optional[Mapping[str, Any]]) -> RuntimeStatus:
    """Fill in what is not known yet from containerd's configuration: schema 3 (containerd 2) and 2 (1.x)."""
    if config is None:
        return status
    plugins = as_table(config.get("plugins"))
    old = as_table(plugins.get("io.containerd.grpc.v1.cri"))
    runtime = _runtime_plugin(config)
    images_plugin = as_table(plugins.get("io.containerd.cri.v1.images"))
    pinned = as_table(images_plugin.get("pinned_images"))
    registry = as_table((images_plugin or old).get("registry"))
    handler = containerd_config.find_default_handler(runtime)
    cni = as_table(runtime.get("cni"))
    dirs = _texts(cni.get("bin_dirs")) or _texts([cni.get("bin_dir")])
    is_default = status.cni_bin_dirs == DEFAULT_CNI_BIN_DIRS
    return replace(
        status,
        cgroup_driver=status.cgroup_driver or (handler.cgroup_driver if handler else None),
        handler=status.handler or handler,
        sandbox_image=status.sandbox_image or str(pinned.get("sandbox") or old.get("sandbox_image") or "") or None,
        restricts_oom_score=status.restricts_oom_score
        if status.restricts_oom_score is not None
        else _flag(runtime.get("restrict_oom_score_adj")),
        registry_config_path=status.registry_config_path
        if status.registry_config_path is not None
        else _text(registry.get("config_path")),
        cni_bin_dirs=dirs if dirs and is_default else status.cni_bin_dirs,
        root_dir=status.root_dir or str(config.get("root") or ""),
    )


def read_cgroup_driver(config: Optional[Mapping[str, Any]]) -> Optional[str]:
    """The driver that containerd's configuration names."""
    return _with_dump(RuntimeStatus(""), config).cgroup_driver


def describe_setting(
    status: RuntimeStatus, setting: str, value: str, *, host: Optional[Host] = None, path: Path = CONTAINERD_CONFIG
) -> str:
    """What to do so that the runtime has a setting: sandbox_image | SystemdCgroup | restrict_oom_score_adj |
    config_path (of registries). With `host` its file is looked at: what else it lacks, and which file wins."""
    if status.name != "containerd":
        return f"set {setting} = {value} (or its like) in the configuration of {status.label}, then restart it"
    handler = status.handler or Handler()
    naming: Optional[Naming] = Naming(3 if status.has_runtime_config else 2)
    files: dict[Path, str] = {}
    if host is not None:
        try:
            path = containerd_config.find_config(host)
            files = containerd_config.read_files(host, path)
        except HostError as error:
            return f"make {path} readable ({error.cause}), then run the command again"
        naming = containerd_config.find_naming(files[path], read_own_schema(host, status))
        # what counts is the handler that the next start brings, with the lines that are about to be written
        is_passed_over = naming is not None and naming.version is not None
        dump = read_containerd_config(host, status.socket) or {}
        handler = _find_handler(_parse_own(files[path]) if is_passed_over else dump) or handler
        files = containerd_config.keep_loaded(files, dump)
    if naming is None:
        return (
            f"write {path} in version 2: `version = 2` above its first table, and [plugins.cri...] as "
            f"[{containerd_config.show_table(containerd_config.OLD_CRI)}...]; then: {status.restart}"
        )
    table, key = naming.place(setting, handler)
    where = containerd_config.find_owner(files, table, naming) if files else path
    steps = []
    if naming.version and where == path and host is not None:
        steps.append(f"write version = {naming.version} at the top of {path}")
    if setting == "SystemdCgroup" and host is not None and not containerd_config.names_type(files[where], table[:-1]):
        kind = handler.type or containerd_config.RUNC_TYPE
        steps.append(f'set runtime_type = "{kind}" below [{containerd_config.show_table(table[:-1])}] in {where}')
    steps.append(f"set {key} = {value} below [{containerd_config.show_table(table)}] in {where}")
    return f"{', '.join(steps)}, then: {status.restart}"


def read_own_schema(host: Host, status: Optional[RuntimeStatus] = None) -> int:
    """The version in which this containerd writes its configuration: 2 for containerd 1, 3 and more for containerd 2."""
    told = host.query(["containerd", "config", "default"], timeout_s=15)
    if told.ok:
        return containerd_config.read_schema(told.stdout)
    return 3 if status is not None and status.has_runtime_config else 2


def last_words(stderr: str) -> str:
    """What a program said at its end, without log prefixes: crictl's `time=... level=fatal msg="..."`, or a line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        match = re.search(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"', line)
        if match:
            text = match.group(1).replace('\\"', '"').replace("\\\\", "\\")
            return text.rpartition(" desc = ")[2] or text
    return lines[-1] if lines else "it said nothing"


# ---- images


def full_image_name(name: str) -> str:
    """A name as the runtime keeps it: `busybox` -> `docker.io/library/busybox:latest`."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def registry_of(image: str) -> str:
    return full_image_name(image).partition("/")[0]


def list_images(host: Host, socket: str) -> set[str]:
    """The full names (by tag and by digest) of all images that the runtime has.

    Raises HostError: no-cri-client, images-unreadable.
    """
    look = crictl_argv(socket, "info")
    if host.which("crictl"):
        answer = host.query(crictl_argv(socket, "images", "-o", "json"), timeout_s=30)
        if answer.ok:
            rows = fit_what_does(as_table(answer.stdout).get("images"), [{"repoTags!": [str], "repoDigests!": [str]}])
            return {name for row in rows for name in (*row["repoTags"], *row["repoDigests"])}
    elif host.which("ctr"):
        look = ctr_argv(socket, "version")
        answer = host.query(ctr_argv(socket, "images", "ls", "-q"), timeout_s=30)
        if answer.ok:
            return set(answer.stdout.split())
    else:
        raise _no_client(host, socket)
    raise HostError(
        f"the images of the runtime at {socket} cannot be listed",
        cause=last_words(answer.stderr),
        remedy=f"see whether it runs: {' '.join(look)}",
        code="images-unreadable",
    )


def _no_client(host: Host, socket: str) -> HostError:
    return HostError(
        f"the runtime at {socket} cannot be asked",
        cause="neither crictl nor ctr is in PATH",
        remedy=f"install crictl: {install_command(host, 'cri-tools')}",
        code="no-cri-client",
    )


class ImagePullError(HostError):
    """An image did not come. kind: not-found | unauthorized | tls | dns | refused | timeout | no-space | limited |
    runtime | other."""

    def __init__(self, image: str, kind: str, cause: str, remedy: str) -> None:
        super().__init__(f"cannot pull {image}", cause=cause, remedy=remedy, code="image-pull-failed")
        self.image = image
        self.kind = kind


@frozen
class _PullTrouble:
    """One way in which a pull fails. heals: trying again may help. {registry}, {image}, {restart} and {log}
    are filled in."""

    kind: str
    pattern: str
    cause: str
    remedy: str
    heals: bool = False


_OTHER_REGISTRY = "or set imageRepository to a registry that this node reaches"

_PULL_TROUBLES = (
    _PullTrouble(
        "no-space",
        r"no space left on device|disk quota exceeded",
        "the disk that holds the runtime's images is full",
        "make space there: df -h /var/lib/containerd /var/lib/containers",
    ),
    _PullTrouble(
        "runtime",
        r"validate service connection|validate CRI|dial unix|connect: permission denied|failed to dial",
        "the runtime does not answer",
        "{restart} (why: {log})",
        heals=True,
    ),
    _PullTrouble(
        "tls",
        r"x509:|server gave HTTP response to HTTPS client|tls: |does not look like a TLS handshake",
        "the TLS handshake with {registry} fails",
        "give the runtime the registry's CA, or http:// if it speaks no TLS: /etc/containerd/certs.d/{registry}/hosts.toml",
    ),
    _PullTrouble(
        "dns",
        r"no such host|server misbehaving|name resolution|lookup \S+( on \S+)?: ",
        "the name {registry} does not resolve",
        f"mend the name servers in /etc/resolv.conf, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "refused",
        r"connection refused|connection reset",
        "nothing at {registry} accepts the connection",
        f"see whether the registry runs, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "timeout",
        r"i/o timeout|[Dd]eadline|handshake timeout|no route to host|network is unreachable|did not end within|timed out",
        "{registry} is not reachable from this node",
        f"open the way to it in the firewall, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "limited",
        r"429|toomanyrequests|Too Many Requests",
        "{registry} limits how much this address may pull",
        "pull with credentials: crictl pull --creds USER:PASSWORD {image}",
        heals=True,
    ),
    _PullTrouble(
        "unauthorized",
        r"40[13]\b|[Uu]nauthorized|authorization failed|denied|no basic auth|may require authorization",
        "{registry} refuses it without (or with these) credentials",
        "pull it with credentials: crictl pull --creds USER:PASSWORD {image}",
    ),
    _PullTrouble(
        "not-found",
        r"not found|404\b|manifest unknown|NAME_UNKNOWN|no match for platform",
        "{registry} has no such image",
        "correct imageRepository or the tag; what is wanted: kb config images list",
    ),
)
_OTHER_TROUBLE = _PullTrouble(
    "other", "", "the runtime gave up", "pull it by hand and read on: crictl pull {image}", heals=True
)


def explain_pull_failure(
    host: Host, image: str, text: str, *, env: Optional[Mapping[str, str]] = None
) -> ImagePullError:
    """What the runtime's words on a failed pull mean; a mirror that was asked instead of the registry is named.

    `env`: kb's environment; a proxy that stands there only is named, since the runtime pulls and does not see it.
    """
    trouble = next((item for item in _PULL_TROUBLES if re.search(item.pattern, text)), _OTHER_TROUBLE)
    registry = registry_of(image)
    manager, log = services.spoken_of(host), services.say_log(host, "containerd", lines=20)
    restart = manager.say("restart", "containerd")
    remedy = trouble.remedy.format(registry=registry, image=image, restart=restart, log=log)
    asked = re.search(r'\b(?:Head|Get) \\?"https?://([^/"]+)/', text)
    server = f"{asked.group(1)} (asked for {registry})" if asked and asked.group(1) != registry else registry
    proxy = next((env[name] for name in ("HTTPS_PROXY", "https_proxy") if env and env.get(name)), "")
    if proxy and trouble.kind in ("dns", "refused", "timeout"):
        remedy = (
            "the runtime does not see this shell's HTTPS_PROXY: give it that (and NO_PROXY): "
            f"{manager.say_environment('containerd')}HTTPS_PROXY=...; then: {restart}"
        )
    return ImagePullError(image, trouble.kind, f"{trouble.cause.format(registry=server)} ({text})", remedy)


def pull_image(host: Host, socket: str, image: str, *, timeout_s: float = PULL_TIMEOUT_S) -> None:
    """Pull once. Raises ImagePullError, or HostError (no-cri-client)."""
    if host.which("crictl"):
        answer = host.run(crictl_argv(socket, "pull", image), timeout_s=timeout_s)
    elif host.which("ctr"):
        hosts = ("--hosts-dir", "/etc/containerd/certs.d") if host.is_dir(Path("/etc/containerd/certs.d")) else ()
        words = ("images", "pull", *hosts, full_image_name(image))
        answer = host.run(ctr_argv(socket, *words), timeout_s=timeout_s)
    else:
        raise _no_client(host, socket)
    if not answer.ok:
        raise explain_pull_failure(host, image, last_words(answer.stderr), env=host.environ())


@frozen
class ImagesResult:
    """What became of the images that were asked for."""

    present: tuple[str, ...] = ()
    pulled: tuple[str, ...] = ()
    failed: tuple[ImagePullError, ...] = ()


def ensure_images(
    host: Host,
    socket: str,
    names: Sequence[str],
    *,
    policy: str = "IfNotPresent",
    is_serial: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> ImagesResult:
    """Have the images in the runtime. policy as in nodeRegistration.imagePullPolicy: Always | IfNotPresent | Never.

    Five attempts for what may heal, one for what will not; a registry that was not reachable in five gets one attempt
    for each of its other images. Failures are returned, not raised. Raises HostError where the runtime cannot be asked.
    """
    if policy == "Never":
        return ImagesResult()
    have = list_images(host, socket)  # also where all are pulled: a runtime that does not answer is told at once
    present = tuple(image for image in names if policy == "IfNotPresent" and full_image_name(image) in have)
    wanted = [image for image in names if image not in present]
    unreachable: set[str] = set()
    counted = {image: index for index, image in enumerate(wanted, start=1)}

    def fetch(image: str) -> Optional[ImagePullError]:
        tell(f"pulling {image} ({counted[image]} of {len(wanted)})")
        return _pull_patiently(host, socket, image, unreachable)

    if is_serial or len(wanted) < 2:
        ends = [fetch(image) for image in wanted]
    else:
        with ThreadPoolExecutor(PARALLEL_PULLS) as pool:
            ends = list(pool.map(fetch, wanted))
    failed = tuple(end for end in ends if end is not None)
    pulled = tuple(image for image, end in zip(wanted, ends) if end is None)
    return ImagesResult(present, pulled, failed)


def _pull_patiently(host: Host, socket: str, image: str, unreachable: set[str]) -> Optional[ImagePullError]:
    """Pull, and again after a pause where that may help; return the last failure."""
    registry = registry_of(image)
    pause_s = 0.5
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            pull_image(host, socket, image)
            return None
        except ImagePullError as error:
            may_heal = next((item.heals for item in _PULL_TROUBLES if item.kind == error.kind), True)
            if not may_heal or registry in unreachable:
                return error
            if attempt == PULL_ATTEMPTS:
                if error.kind in ("dns", "refused", "timeout"):
                    unreachable.add(registry)
                return error
        host.sleep(pause_s)
        pause_s *= 2
    return None


def group_failures(failed: Iterable[ImagePullError]) -> list[ImagePullError]:
    """One failure for all images of a registry that fail in the same way: seven times the same line helps nobody."""
    groups: dict[tuple[str, str], list[ImagePullError]] = {}
    for error in failed:
        alone = error.image if error.kind in ("not-found", "other") else ""
        groups.setdefault((error.kind, alone or registry_of(error.image)), []).append(error)
    merged = []
    for (kind, _), errors in groups.items():
        first = errors[0]
        names = ", ".join(error.image for error in errors)
        merged.append(first if len(errors) == 1 else ImagePullError(names, kind, first.cause, first.remedy))
    return merged


def pull_images(host: Host, config: InitConfig, release: Release, report: Report) -> tuple[str, ...]:
    """`kb config images pull`: have every image of a control-plane node; return their names.

    Raises HostError (images-not-pulled) that names every image that did not come, and why.
    """
    wanted = images.list_node_images(config, release)
    node = config.node
    result = ensure_images(
        host, node.cri_socket, wanted, policy="Always", is_serial=node.image_pull_serial, tell=report.waiting
    )
    if result.failed:
        groups = group_failures(result.failed)
        raise HostError(
            f"{len(result.failed)} of {len(wanted)} images could not be pulled",
            cause=groups[0].cause,
            remedy=groups[0].remedy,
            code="images-not-pulled",
            details=[f"{group.what}: {group.cause}. Remedy: {group.remedy}" for group in groups],
        )
    return tuple(wanted)


# ---- containers


@frozen
class ContainerInfo:
    """One container, ended ones included."""

    id: str
    name: str
    state: str
    """created | running | exited | unknown"""
    attempt: int = 0
    created_ns: int = 0
    image: str = ""
    pod: str = ""
    namespace: str = ""
    exit_code: Optional[int] = None
    """Known for the newest ended container of each name."""
    reason: str = ""
    """`Error`, `OOMKilled`, `StartError`, ...; likewise."""
    message: str = ""
    log_path: str = ""


def list_containers(host: Host, socket: str, name: str = "") -> list[ContainerInfo]:
    """The runtime's containers, newest first; [] where the runtime cannot be asked. `name`: that one's alone.

    Never raises: it is asked when something is broken already.
    """
    if not host.which("crictl"):
        return _list_through_ctr(host, socket, name)
    words = ("ps", "-a", "-o", "json", *(("--name", f"^{re.escape(name)}$") if name else ()))
    listed = as_table(host.query(crictl_argv(socket, *words), timeout_s=15).stdout).get("containers")
    rows = fit_what_does(listed, [{"metadata": {"attempt": int}}])
    found = sorted((_container_of(row) for row in rows), key=lambda item: -item.created_ns)
    return _with_exits(host, socket, found)


def _container_of(row: Mapping[str, Any]) -> ContainerInfo:
    metadata, labels = as_table(row.get("metadata")), as_table(row.get("labels"))
    return ContainerInfo(
        id=str(row.get("id", "")),
        name=str(metadata.get("name", "")),
        state=str(row.get("state", "")).replace("CONTAINER_", "").lower(),
        attempt=int(metadata.get("attempt") or 0),
        created_ns=_nanoseconds(row.get("createdAt")),
        image=str(
            as_table(row.get("image")).get("userSpecifiedImage") or as_table(row.get("image")).get("image") or ""
        ),
        pod=str(labels.get("io.kubernetes.pod.name", "")),
        namespace=str(labels.get("io.kubernetes.pod.namespace", "")),
    )


def _nanoseconds(value: Any) -> int:
    """A moment as crictl gives it: nanoseconds as text."""
    text = str(value or "0")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _with_exits(host: Host, socket: str, containers: list[ContainerInfo]) -> list[ContainerInfo]:
    newest: dict[tuple[str, str, str], str] = {}
    for item in containers:
        if item.state == "exited":
            newest.setdefault((item.namespace, item.pod, item.name), item.id)
    if not newest:
        return containers
    answer = host.query(crictl_argv(socket, "inspect", *newest.values()), timeout_s=15)
    ends = {
        str(as_table(end.get("status")).get("id")): as_table(end.get("status")) for end in split_json(answer.stdout)
    }
    return [_with_end(item, ends[item.id]) if item.id in ends else item for item in containers]


def _with_end(item: ContainerInfo, end: Mapping[str, Any]) -> ContainerInfo:
    return replace(
        item,
        exit_code=fit_what_does(end.get("exitCode"), int),
        reason=str(end.get("reason") or ""),
        message=str(end.get("message") or ""),
        log_path=str(end.get("logPath") or ""),
    )


def split_json(text: str) -> list[dict[str, Any]]:
    """The JSON objects in `text`: one after the other, or in a list."""
    found: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    at = 0
    while True:
        start = re.compile(r"[\[{]").search(text, at)
        if not start:
            return found
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            return found
        found.extend(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict))


def _list_through_ctr(host: Host, socket: str, name: str) -> list[ContainerInfo]:
    """containerd keeps the CRI's record of a container as an extension of its own record."""
    if not host.which("ctr"):
        return []
    states = {}
    for line in host.query(ctr_argv(socket, "tasks", "ls"), timeout_s=15).stdout.splitlines()[1:]:
        cells = line.split()
        if len(cells) == 3:
            states[cells[0]] = "running" if cells[2] == "RUNNING" else "exited"
    found = []
    for container_id in host.query(ctr_argv(socket, "containers", "ls", "-q"), timeout_s=15).stdout.split():
        record = as_table(host.query(ctr_argv(socket, "containers", "info", container_id), timeout_s=15).stdout)
        labels = as_table(record.get("Labels"))
        own_name = str(labels.get("io.kubernetes.container.name", ""))
        if not own_name or (name and own_name != name):
            continue
        extra = _cri_record(record)
        found.append(
            ContainerInfo(
                id=container_id,
                name=own_name,
                state=states.get(container_id, "exited"),
                attempt=fit_what_does(as_table(as_table(extra.get("Config")).get("metadata")).get("attempt"), int),
                image=str(record.get("Image", "")),
                pod=str(labels.get("io.kubernetes.pod.name", "")),
                namespace=str(labels.get("io.kubernetes.pod.namespace", "")),
                log_path=str(extra.get("LogPath") or ""),
            )
        )
    # without a moment of creation the attempt tells which is newer
    return [replace(item, created_ns=item.attempt) for item in sorted(found, key=lambda item: -item.attempt)]


def _cri_record(record: Mapping[str, Any]) -> dict[str, Any]:
    extension = as_table(as_table(record.get("Extensions")).get("io.cri-containerd.container.metadata"))
    try:
        text = base64.b64decode(str(extension.get("value") or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return {}
    return as_table(as_table(text).get("Metadata"))


_CRI_LOG_LINE = re.compile(r"^\S+ (?:stdout|stderr) [FP] ?(.*)$")


def container_logs(host: Host, socket: str, container_id: str, lines: int = 20) -> list[str]:
    """The last lines that a container wrote; [] where it wrote none or they cannot be had. Never raises."""
    if host.which("crictl"):
        # what a container wrote to stderr crictl writes to its own stderr: read the file, which keeps the order
        answer = host.query(crictl_argv(socket, "inspect", container_id), timeout_s=15)
        status = as_table(next(iter(split_json(answer.stdout)), {}).get("status"))
        path = str(status.get("logPath") or "")
    else:
        path = next((item.log_path for item in _list_through_ctr(host, socket, "") if item.id == container_id), "")
    try:
        text = host.read_text(Path(path)) if path.startswith("/") else ""
    except HostError:
        text = ""
    if not text and host.which("crictl"):
        answer = host.query(crictl_argv(socket, "logs", "--tail", str(lines), container_id), timeout_s=15)
        return (answer.stdout + answer.stderr).splitlines()[-lines:] if answer.ok else []
    return [_text_of(line) for line in text.splitlines()[-lines:]]


def _text_of(line: str) -> str:
    match = _CRI_LOG_LINE.match(line)
    return match.group(1) if match else line


# ---- taking pods away


REMOVAL_TIMEOUT_S = 60
REMOVAL_PAUSE_S = 1.0


def remove_pods(host: Host, socket: str) -> list[str]:
    """Stop and remove every pod of this node; returns what failed, in words. Without crictl through ctr, which
    knows containers alone: their sandboxes are among them.

    What the kubelet asked for at last may still be on its way: a container that is starting cannot be removed yet, and
    a sandbox may appear after the first look. So it is looked and tried again until nothing is left.
    """
    if not host.exists(socket_path(socket)) and not (host.which("containerd") or host.which("crio")):
        return []
    remove = _remove_through_crictl if host.which("crictl") else _remove_through_ctr
    deadline = host.monotonic() + REMOVAL_TIMEOUT_S
    while True:
        is_left, failures = remove(host, socket)
        if not is_left:
            return failures
        if host.monotonic() > deadline:
            return failures or ["new pods appear as fast as they are removed: another kubelet starts them"]
        if failures:
            host.sleep(REMOVAL_PAUSE_S)


def _remove_through_crictl(host: Host, socket: str) -> tuple[bool, list[str]]:
    """One try: whether anything may be left, and what failed."""
    listed = host.query(crictl_argv(socket, "pods", "-q"), timeout_s=15)
    if listed.missing:
        return False, []
    if not listed.ok:
        return True, [f"crictl pods: {last_words(listed.stderr)}"]
    pods, failures, is_deferred = listed.stdout.split(), [], False
    for pod in pods:
        for words in (("stopp", pod), ("rmp", "-f", pod)):
            done = host.run(crictl_argv(socket, *words), timeout_s=120)
        if not done.ok:
            failures.append(f"crictl rmp -f {pod[:13]}: {last_words(done.stderr)}")
        is_deferred = is_deferred or done.deferred
    return bool(pods) and not is_deferred, failures


def _remove_through_ctr(host: Host, socket: str) -> tuple[bool, list[str]]:
    listed = host.query(ctr_argv(socket, "containers", "list", "-q"), timeout_s=15)
    if listed.missing:
        return False, []
    if not listed.ok:
        return True, [f"ctr containers list: {last_words(listed.stderr)}"]
    containers, failures, is_deferred = listed.stdout.split(), [], False
    for container in containers:
        host.run(ctr_argv(socket, "tasks", "kill", "-a", "-s", "SIGKILL", container), timeout_s=30)
        host.run(ctr_argv(socket, "tasks", "rm", "-f", container), timeout_s=30)
        done = host.run(ctr_argv(socket, "containers", "rm", container), timeout_s=30)
        if not done.ok:
            failures.append(f"ctr containers rm {container[:13]}: {last_words(done.stderr)}")
        is_deferred = is_deferred or done.deferred
    return bool(containers) and not is_deferred, failures
