"""The container runtime: what it is, whether it is ready, and its configuration.

This module only looks: it does not write the runtime's configuration (runtime_fix.py does), and knows no phase. Mirrors
cmd/kubeadm/app/util/runtime/runtime.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import CommandResult, Host
from kubeup.node import containerd_config
from kubeup.node.containerd_config import Handler, Naming, find_disabled_cri, parse_toml
from kubeup.node.crictl import crictl_argv, ctr_argv, install_command, last_words, socket_path, unit_of
from kubeup.releases import has_runtime_config_call
from kubeup.shapes import fit_what_does

CONTAINERD_CONFIG = containerd_config.CONFIG
CONTAINERD_UNIT = Path("/etc/systemd/system/containerd.service")
"""The unit with which kb runs a containerd that it installed; a distribution has its own below /usr/lib."""
CERTS_D = Path("/etc/containerd/certs.d")
"""The usual folder for a hosts.toml per registry. containerd reads it only if its configuration says so."""
DEFAULT_CNI_BIN_DIRS = ("/opt/cni/bin",)


@frozen
class RuntimeStatus:
    """What is known about the runtime behind a CRI socket. None: unknown.

    A problem is described only by its cause and remedy; the caller says what it means for the node."""

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
    """Whether it supports the call with which a kubelet learns the runtime's cgroup driver."""
    cgroup_driver: Optional[str] = None
    """systemd | cgroupfs"""
    handler: Optional[Handler] = None
    """containerd's handler of pods without a runtime class."""
    sandbox_image: Optional[str] = None
    restricts_oom_score: Optional[bool] = None
    registry_config_path: Optional[str] = None
    """The folders from which it reads a hosts.toml per registry, separated by colons; "" for none."""
    cni_bin_dirs: tuple[str, ...] = DEFAULT_CNI_BIN_DIRS
    cni_conf_dir: str = ""
    """The folder of its CNI configurations; "" if it does not say."""
    root_dir: str = ""
    """The folder of its images."""
    restart: str = "systemctl restart containerd"
    """The command that restarts it on this machine."""

    @property
    def label(self) -> str:
        """`containerd 1.6.20`"""
        return f"{self.name} {self.version}".strip() or "the container runtime"


def probe_runtime(host: Host, socket: str) -> RuntimeStatus:
    """Ask the runtime what it is, and whether it is ready. Never raises; see problem, cause and remedy instead."""
    return replace(_probe(host, socket), restart=services.spoken_of(host).say("restart", unit_of(socket)))


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
    """The last error message of a runtime that failed; "" if it was stopped."""
    state = host.query(["systemctl", "show", unit, "--property", "Result,InvocationID"], timeout_s=15)
    found = dict(line.partition("=")[::2] for line in state.stdout.splitlines())
    if not state.ok or found.get("Result") in ("success", None) or not found.get("InvocationID"):
        return ""
    own = f"_SYSTEMD_INVOCATION_ID={found['InvocationID']}"
    lines = host.query(["journalctl", own, "-n", "20", "-o", "cat", "--no-pager"], timeout_s=15).stdout.splitlines()
    errors = [line for line in lines if line.startswith(f"{unit}: ") or "level=fatal" in line or "level=error" in line]
    said = last_words(errors[-1]) if errors else ""
    if _NO_FILES not in said:
        return said
    limit = host.query(["systemctl", "show", unit, "--property", "LimitNOFILE", "--value"], timeout_s=15).stdout.strip()
    return f"{said} (its unit has LimitNOFILE={limit}: systemctl cat {unit})" if limit else said


_NO_FILES = "too many open files"
"""EMFILE in Go's words."""


def _probe_through_crictl(host: Host, socket: str) -> RuntimeStatus:
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(host.query, crictl_argv(socket, *words), timeout_s=30) for words in (("info",), ("version",))
        ]
        info, version = (future.result() for future in asked)
    if not info.ok:
        return _describe_failure(host, socket, answer=info)
    found = _named(RuntimeStatus(socket), version.stdout)
    found = _with_info(found, as_table(info.stdout), log=services.say_log(host, unit_of(socket), lines=20))
    if found.has_runtime_config is not False:  # a runtime of that version is known not to have the call
        found = _with_runtime_config(found, host.query(crictl_argv(socket, "runtime-config"), timeout_s=30))
    if found.name == "containerd" and found.sandbox_image is None:
        # containerd 2 has it in the image plugin, which `info` omits
        found = _with_dump(found, read_containerd_config(host, socket))
    return found


def _named(status: RuntimeStatus, text: str) -> RuntimeStatus:
    """Add name and version from `crictl version`: "RuntimeName:  containerd" and "RuntimeVersion:  1.6.20"."""
    cells = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name, version = cells.get("RuntimeName", "").lower(), cells.get("RuntimeVersion", "")
    return replace(status, name=name, version=version, has_runtime_config=has_runtime_config_call(name, version))


def _with_info(status: RuntimeStatus, info: Mapping[str, Any], *, log: str) -> RuntimeStatus:
    config = as_table(info.get("config"))
    handler = containerd_config.find_default_handler(_as_in_file(config))
    cni = as_table(info.get("cniconfig"))
    dirs, folder = _texts(cni.get("PluginDirs")), _text(cni.get("PluginConfDir")) or ""
    found = replace(
        status,
        cgroup_driver=handler.cgroup_driver if handler else None,
        handler=handler,
        sandbox_image=str(config.get("sandboxImage") or "") or None,
        restricts_oom_score=_flag(config.get("restrictOOMScoreAdj")),
        registry_config_path=_text(as_table(config.get("registry")).get("configPath")),
        cni_bin_dirs=dirs or status.cni_bin_dirs,
        cni_conf_dir=folder if folder.startswith("/") and folder.isprintable() else "",
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
        cause=f"it reports that it is not ready: {told or 'no reason given'}",
        remedy=f"see its log: {log}",
    )


def _as_in_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """The handlers in `crictl info`, with the key names of a configuration file."""
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
    """Add the cgroup driver from `crictl runtime-config`, or that the runtime does not support the call. If crictl is too old for it,
    what the runtime's version implies stays."""
    match = re.search(r"cgroup driver:\s*(SYSTEMD|CGROUPFS)", answer.stdout)
    if answer.ok and match:
        return replace(status, has_runtime_config=True, cgroup_driver=match.group(1).lower())
    if "Unimplemented" in answer.stderr:
        return replace(status, has_runtime_config=False)
    return status


def _describe_failure(host: Host, socket: str, *, answer: CommandResult) -> RuntimeStatus:
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
"""containerd's messages about a CRI plugin that its configuration stops from loading, and how to fix the file."""


def _plugin_error(host: Host, socket: str) -> str:
    """containerd's message about a CRI plugin that failed to load: ": invalid plugin config: ..."; "" if there is none."""
    if not host.which("ctr"):
        return ""
    text = host.query(ctr_argv(socket, "plugins", "ls", "-d", "id==cri"), timeout_s=15).stdout
    match = re.search(r"^\s*Message:\s*(.+(?:\n(?!\s*[A-Z]\w+:).+)*)", text, re.MULTILINE)
    return f": {' '.join(match.group(1).split())}" if match else ""


def _probe_through_ctr(host: Host, socket: str) -> RuntimeStatus:
    """Probe containerd without crictl: whether it serves the CRI is in its plugin list, the rest in its configuration."""
    plugins = host.query(ctr_argv(socket, "plugins", "ls"), timeout_s=15)
    if not plugins.ok:
        return _describe_failure(host, socket, answer=plugins)
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
    """The configuration that containerd would start with, including imports and defaults; None if it is unknown, or belongs to another
    containerd than the one behind `socket`."""
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
    """A parsed file without imports and defaults; {} if it cannot be parsed."""
    try:
        return parse_toml(text.lstrip("\ufeff"))
    except ValueError:
        return {}


def _runtime_plugin(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plugin that starts pods, in a dump of containerd 1 or 2."""
    plugins = as_table(config.get("plugins"))
    return as_table(plugins.get(containerd_config.RUNTIME[1])) or as_table(plugins.get(containerd_config.OLD_CRI[1]))


def _without_var(path: Path) -> str:
    """The path with /run instead of /var/run, which is a link to it."""
    text = str(path)
    return text[len("/var") :] if text.startswith("/var/run/") else text


def _with_dump(status: RuntimeStatus, config: Optional[Mapping[str, Any]]) -> RuntimeStatus:
    """Add what is not known yet from containerd's configuration, schema 3 (containerd 2) or 2 (1.x)."""
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
    """The cgroup driver in containerd's configuration."""
    return _with_dump(RuntimeStatus(""), config).cgroup_driver


def describe_setting(
    status: RuntimeStatus, setting: str, *, value: str, host: Optional[Host] = None, path: Path = CONTAINERD_CONFIG
) -> str:
    """What to do to give the runtime a setting: sandbox_image | SystemdCgroup | restrict_oom_score_adj | config_path (of registries).
    With `host`, its files are read to find out what else is missing, and which file takes precedence."""
    if status.name != "containerd":
        return f"set {setting} = {value} (or the equivalent) in the configuration of {status.label}, then restart it"
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
        # what counts is the handler after the next start, with the lines that are about to be written
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
    where = containerd_config.find_owner(files, table, naming=naming) if files else path
    steps = []
    if naming.version and where == path and host is not None:
        steps.append(f"write version = {naming.version} at the top of {path}")
    if setting == "SystemdCgroup" and host is not None and not containerd_config.names_type(files[where], table[:-1]):
        kind = handler.type or containerd_config.RUNC_TYPE
        steps.append(f'set runtime_type = "{kind}" below [{containerd_config.show_table(table[:-1])}] in {where}')
    steps.append(f"set {key} = {value} below [{containerd_config.show_table(table)}] in {where}")
    return f"{', '.join(steps)}, then: {status.restart}"


def read_own_schema(host: Host, status: Optional[RuntimeStatus] = None) -> int:
    """This containerd's native version of configuration files: 2 for containerd 1, 3 and above for containerd 2."""
    told = host.query(["containerd", "config", "default"], timeout_s=15)
    if told.ok:
        return containerd_config.read_schema(told.stdout)
    return 3 if status is not None and status.has_runtime_config else 2
