"""containerd's configuration, mended: what `kb init --fix` does to /etc/containerd/config.toml.

Owns which settings a Kubernetes node needs of containerd (schemas 2 and 3), which of them are wrong in what containerd
would start with, and how the text of a person's file is changed line by line, so that comments and everything else stay.
A change is tried by containerd itself (`containerd config dump`) before it takes the file's name; one that does not do
what it should is not made, and where the restarted containerd does not come back, the old file is put back. Must not
touch another runtime. kubeadm has no like of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from kubeup import runtime
from kubeup.errors import HostError
from kubeup.frozen import frozen
from kubeup.host import Host

CONFIG = runtime.CONTAINERD_CONFIG
CERTS_D = runtime.CERTS_D
RESTART_TIMEOUT_S = 30
_CRI_IDS = ("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")

_OLD_CRI = ("plugins", "io.containerd.grpc.v1.cri")
_RUNTIME = ("plugins", "io.containerd.cri.v1.runtime")
_IMAGES = ("plugins", "io.containerd.cri.v1.images")


@frozen
class Setting:
    """One line of TOML that has to be: in which table, and why."""

    table: tuple[str, ...]
    key: str
    value: str
    """As TOML: `true`, `"text"`."""
    why: str


@frozen
class Wanted:
    """What this node needs of containerd; None leaves a setting alone."""

    sandbox_image: Optional[str] = None
    systemd_cgroup: Optional[bool] = None
    restrict_oom_score_adj: Optional[bool] = None
    registry_config_path: Optional[str] = None
    cni_bin_dir: Optional[str] = None


# ---- what is wrong


def read_schema(text: str) -> int:
    """The version of a configuration's text: 1 where it does not say."""
    match = re.search(r"^\s*version\s*=\s*(\d+)", text, re.MULTILINE)
    return int(match.group(1)) if match else 1


def plan_settings(schema: int, effective: Mapping[str, Any], wanted: Wanted) -> tuple[Setting, ...]:
    """The settings that are not as wanted in `effective` (what `containerd config dump` shows), for a file of `schema`."""
    have = describe_effective(effective)
    old = schema < 3
    cri = _OLD_CRI if old else _RUNTIME
    runc = (*cri, "containerd", "runtimes", "runc")
    found: list[Setting] = []
    if wanted.sandbox_image and have.sandbox_image != wanted.sandbox_image:
        table, key = (_OLD_CRI, "sandbox_image") if old else ((*_IMAGES, "pinned_images"), "sandbox")
        why = f"the sandbox image is {have.sandbox_image or 'not set'}"
        found.append(Setting(table, key, f'"{wanted.sandbox_image}"', why))
    if wanted.systemd_cgroup is not None and have.systemd_cgroup != wanted.systemd_cgroup:
        value = "true" if wanted.systemd_cgroup else "false"
        # a table of runc's in the file takes the place of the built-in one whole, its type included
        found.append(Setting(runc, "runtime_type", '"io.containerd.runc.v2"', "runc's table has to name its type"))
        driver = "systemd" if have.systemd_cgroup else "cgroupfs"
        found.append(Setting((*runc, "options"), "SystemdCgroup", value, f"the cgroup driver is {driver}"))
    if wanted.restrict_oom_score_adj and not have.restrict_oom_score_adj:
        why = "this machine does not let runc lower oom_score_adj"
        found.append(Setting(cri, "restrict_oom_score_adj", "true", why))
    folders = (have.registry_config_path or "").split(":")
    if wanted.registry_config_path and wanted.registry_config_path not in folders and not _has_mirrors(effective):
        table = (*(_OLD_CRI if old else _IMAGES), "registry")
        why = f"{wanted.registry_config_path} is not read for registries"
        value = ":".join(filter(None, (wanted.registry_config_path, *folders)))
        found.append(Setting(table, "config_path", f'"{value}"', why))
    if wanted.cni_bin_dir and wanted.cni_bin_dir not in (have.cni_bin_dir or "").split(":"):
        why = f"CNI plugins are looked for in {have.cni_bin_dir}, and they are in {wanted.cni_bin_dir}"
        if _has_bin_dirs(effective):
            found.append(Setting((*cri, "cni"), "bin_dirs", f'["{wanted.cni_bin_dir}"]', why))
        else:
            found.append(Setting((*cri, "cni"), "bin_dir", f'"{wanted.cni_bin_dir}"', why))
    return tuple(found)


def _cni_of(effective: Mapping[str, Any]) -> dict[str, Any]:
    plugins = runtime.parse_json(effective.get("plugins"))
    own = runtime.parse_json(plugins.get(_RUNTIME[1])) or runtime.parse_json(plugins.get(_OLD_CRI[1]))
    return runtime.parse_json(own.get("cni"))


def _has_bin_dirs(effective: Mapping[str, Any]) -> bool:
    """containerd 2.1 knows several folders, and gives the older key up."""
    return "bin_dirs" in _cni_of(effective)


def _has_mirrors(effective: Mapping[str, Any]) -> bool:
    """Whether registries are set up in the older way, beside which containerd refuses a config_path."""
    plugins = runtime.parse_json(effective.get("plugins"))
    owners = (runtime.parse_json(plugins.get(table[1])) for table in (_OLD_CRI, _IMAGES))
    registries = [runtime.parse_json(owner.get("registry")) for owner in owners]
    configs = [
        runtime.parse_json(each) for item in registries for each in runtime.parse_json(item.get("configs")).values()
    ]
    return any(item.get("mirrors") for item in registries) or any(each.get("tls") for each in configs)


def describe_effective(effective: Mapping[str, Any]) -> Wanted:
    """What `containerd config dump` says of the settings that matter, of schema 2 or 3."""
    plugins = runtime.parse_json(effective.get("plugins"))
    old = runtime.parse_json(plugins.get(_OLD_CRI[1]))
    own = runtime.parse_json(plugins.get(_RUNTIME[1])) or old
    images = runtime.parse_json(plugins.get(_IMAGES[1])) or old
    containerd = runtime.parse_json(own.get("containerd"))
    handlers = runtime.parse_json(containerd.get("runtimes"))
    handler = runtime.parse_json(handlers.get(str(containerd.get("default_runtime_name") or "runc")))
    pinned = runtime.parse_json(images.get("pinned_images"))
    cni = _cni_of(effective)
    return Wanted(
        sandbox_image=str(pinned.get("sandbox") or old.get("sandbox_image") or ""),
        systemd_cgroup=bool(runtime.parse_json(handler.get("options")).get("SystemdCgroup")),
        restrict_oom_score_adj=bool(own.get("restrict_oom_score_adj")),
        registry_config_path=str(runtime.parse_json(images.get("registry")).get("config_path") or ""),
        cni_bin_dir=":".join(map(str, cni.get("bin_dirs") or [])) or str(cni.get("bin_dir") or ""),
    )


# ---- the text


def mend_text(text: str, settings: Sequence[Setting], *, schema: int) -> str:
    """The configuration with the CRI plugin enabled and the settings in place; every other line stays as it is."""
    lines = enable_cri(text).splitlines()
    if read_schema("\n".join(lines)) != schema:
        lines = [f"version = {schema}", *(line for line in lines if not re.match(r"\s*version\s*=", line))]
    for setting in settings:
        lines = _put(lines, setting)
    return "\n".join(lines) + "\n"


def enable_cri(text: str) -> str:
    """The text without the CRI plug-ins among disabled_plugins, over however many lines these stand."""
    match = re.search(r"^[ \t]*disabled_plugins[ \t]*=[ \t]*\[(?P<items>[^\]]*)\]", text, re.MULTILINE)
    if not match:
        return text
    kept = re.sub(rf"""["'](?:{"|".join(map(re.escape, _CRI_IDS))})["'][ \t]*,?[ \t]*""", "", match["items"])
    if kept == match["items"]:
        return text
    return text[: match.start("items")] + re.sub(r",\s*$", "", kept) + text[match.end("items") :]


def _put(lines: Sequence[str], setting: Setting) -> list[str]:
    """The lines with the setting in its table: its line changed, or a new one, or a new table at the end."""
    table: Optional[tuple[str, ...]] = ()
    header_at = None
    for at, line in enumerate(lines):
        name = _table_name(line)
        if name is not None:
            table = name
            header_at = at if name == setting.table else header_at
        elif table == setting.table and re.match(rf"\s*{re.escape(setting.key)}\s*=", line):
            indent = line[: len(line) - len(line.lstrip())]
            return [*lines[:at], f"{indent}{setting.key} = {setting.value}", *lines[at + 1 :]]
    if header_at is None:
        header = "[" + ".".join(_quote(part) for part in setting.table) + "]"
        return [*lines, "", header, f"  {setting.key} = {setting.value}"]
    indent = lines[header_at][: len(lines[header_at]) - len(lines[header_at].lstrip())] + "  "
    return [*lines[: header_at + 1], f"{indent}{setting.key} = {setting.value}", *lines[header_at + 1 :]]


def _quote(part: str) -> str:
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'


_PART = r"""\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*"""


def _table_name(line: str) -> Optional[tuple[str, ...]]:
    """The name in `[plugins."a.b".c]`, whichever way it is quoted; None for every other line."""
    match = re.fullmatch(rf"\s*\[({_PART}(?:\.{_PART})*)\]\s*(?:#.*)?", line)
    if not match:
        return None
    return tuple(part.strip().strip("\"'") for part in re.findall(_PART, match.group(1)))


# ---- acting


def fix_runtime(host: Host, socket: str, wanted: Wanted) -> tuple[str, ...]:
    """Make containerd's configuration be as wanted and restart it; returns what was wrong, () where nothing was.

    Raises HostError: runtime-not-fixable (another runtime, a configuration that cannot be changed safely),
    runtime-fix-failed (containerd did not come back: the old configuration is in place again).
    """
    status = runtime.probe_runtime(host, socket)
    if "containerd" not in runtime.socket_path(socket).name or not host.which("containerd"):
        raise _not_fixable(f"the runtime at {socket}", "kb mends the configuration of containerd alone")
    before = host.read_text(CONFIG) if host.exists(CONFIG) else ""
    schema = _choose_schema(host, before)
    effective = _read_effective(host, before)
    faults = plan_settings(schema, effective, wanted)
    disabled = runtime.find_disabled_cri(host)
    if disabled and disabled[0] != str(CONFIG):
        raise _not_fixable(disabled[0], f"line {disabled[1]} disables the CRI plugin, and kb changes {CONFIG} alone")
    told = [f"{CONFIG} line {disabled[1]} disabled the CRI plugin"] if disabled else []
    told += [item.why for item in faults if item.key != "runtime_type"]
    if not told:
        return _restart_stale(host, socket, status, wanted)
    after = mend_text(before, faults, schema=schema)
    left = plan_settings(schema, _read_effective(host, after), wanted)
    if left or enable_cri(after) != after:
        names = ", ".join(item.key for item in left) or "disabled_plugins"
        raise _not_fixable(str(CONFIG), f"{names} would not be as it should be: another line or an imported file wins")
    host.write_file(CONFIG, after, keeps=True)
    if not _restart(host, socket):
        host.write_file(CONFIG, before, keeps=True) if before else host.remove(CONFIG)
        log = runtime.probe_runtime(host, socket)
        _restart(host, socket)
        raise HostError(
            f"containerd did not come back with the mended {CONFIG}",
            cause=f"{log.cause or 'it is not ready'}; the old configuration is in place again",
            remedy="see why: journalctl -u containerd -n 30",
            code="runtime-fix-failed",
        )
    return tuple(told)


def _restart_stale(host: Host, socket: str, status: runtime.RuntimeStatus, wanted: Wanted) -> tuple[str, ...]:
    """The file is right: where containerd has not read it yet, or does not run, a restart is all it takes."""
    driver = {True: "systemd", False: "cgroupfs", None: status.cgroup_driver}[wanted.systemd_cgroup]
    is_stale = not status.is_ready or (
        (status.cgroup_driver or driver) != driver
        or (wanted.sandbox_image and (status.sandbox_image or wanted.sandbox_image) != wanted.sandbox_image)
    )
    if not is_stale:
        return ()
    _restart(host, socket)
    return ("containerd had not read its configuration, or did not run",)


def _choose_schema(host: Host, text: str) -> int:
    """The file's own, or the one that this containerd writes where the file is empty but for disabled_plugins."""
    schema = read_schema(text)
    if schema > 1:
        return schema
    if any(_table_name(line) for line in text.splitlines()):
        raise _not_fixable(
            str(CONFIG), "it has schema 1, which containerd gave up: containerd config migrate rewrites it"
        )
    return read_schema(host.query(["containerd", "config", "default"], timeout_s=15).stdout)


def _read_effective(host: Host, text: str) -> dict[str, Any]:
    """What containerd would start with, given this configuration. Raises HostError (runtime-not-fixable)."""
    trial = CONFIG.with_name(".config.toml.kb-trial")
    host.write_file(trial, enable_cri(text) or "\n", mode=0o600)
    try:
        answer = host.query(["containerd", "--config", str(trial), "config", "dump"], timeout_s=15)
    finally:
        host.remove(trial)
    if not answer.ok:
        raise _not_fixable(str(CONFIG), f"containerd does not read it: {runtime.last_words(answer.stderr)}")
    try:
        return runtime.parse_toml(answer.stdout)
    except ValueError as error:
        raise _not_fixable(str(CONFIG), f"what containerd makes of it cannot be read ({error})") from error


def _restart(host: Host, socket: str) -> bool:
    """Restart containerd and wait until it takes work."""
    host.run(["systemctl", "reset-failed", "containerd"], timeout_s=30)
    host.run(["systemctl", "restart", "containerd"], timeout_s=60)
    deadline = host.monotonic() + RESTART_TIMEOUT_S
    while not runtime.probe_runtime(host, socket).is_ready:
        if host.monotonic() > deadline:
            return False
        host.sleep(0.5)
    return True


def _not_fixable(what: str, cause: str) -> HostError:
    return HostError(
        f"{what} is not mended",
        cause=cause,
        remedy="change it by hand (kb doctor says what is wrong), then run the command again without --fix",
        code="runtime-not-fixable",
    )
