"""Fixes containerd's configuration: what `kb init --fix` does to /etc/containerd/config.toml and the files that it imports.

This module knows the settings that a Kubernetes node needs, and finds those that are wrong in the configuration that containerd would
start with. It edits the text of the files line by line, so that comments and everything else stay.

A change is first tested with containerd itself (`containerd config dump`), and not made if it does not have the intended effect. If
containerd does not come back after its restart, the old files are restored. Other runtimes are never touched. kubeadm has no
counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.machine.waiting import becomes_so
from kubeup.node import containerd_config, crictl, runtime
from kubeup.node.containerd_config import Handler, Naming, read_schema, table_name

CONFIG = runtime.CONTAINERD_CONFIG
CERTS_D = runtime.CERTS_D
RESTART_TIMEOUT_S = 30
RESTART_POLL_S = 0.5
_CRI_IDS = containerd_config.CRI_IDS

_OLD_CRI, _RUNTIME, _IMAGES = containerd_config.OLD_CRI, containerd_config.RUNTIME, containerd_config.IMAGES


@frozen
class Setting:
    """A line of TOML that is needed: its table, key and value, and why."""

    table: tuple[str, ...]
    key: str
    value: str
    """In TOML syntax: `true`, `"text"`."""
    why: str


@frozen
class Wanted:
    """The settings of containerd that this node needs; None leaves a setting alone."""

    sandbox_image: Optional[str] = None
    systemd_cgroup: Optional[bool] = None
    restrict_oom_score_adj: Optional[bool] = None
    registry_config_path: Optional[str] = None
    cni_bin_dir: Optional[str] = None


# ---- finding wrong settings


def plan_settings(schema: int, effective: Mapping[str, Any], *, wanted: Wanted) -> tuple[Setting, ...]:
    """The settings that are not as wanted in `effective` (the output of `containerd config dump`), with the names of a file of version
    `schema`."""
    have, naming = describe_effective(effective), Naming(schema)
    cri = as_table(effective.get("plugins")).get(_RUNTIME[1]) or _old_cri(effective)
    handler = containerd_config.find_default_handler(as_table(cri)) or Handler()
    found: list[Setting] = []

    def need(setting: str, value: str, *, why: str) -> None:
        table, key = naming.place(setting, handler)
        found.append(Setting(table, key, value, why))

    if containerd_config.breaks_cri(as_table(cri)):
        need("systemd_cgroup", "false", why="systemd_cgroup = true stops the CRI plugin from loading")
    if wanted.sandbox_image and have.sandbox_image != wanted.sandbox_image:
        why = f"the sandbox image is {have.sandbox_image or 'not set'}"
        need("sandbox_image", f'"{wanted.sandbox_image}"', why=why)
    if wanted.systemd_cgroup is not None and have.systemd_cgroup not in (None, wanted.systemd_cgroup):
        # a handler's table in the file replaces the built-in one entirely, including its type
        need(
            "runtime_type",
            f'"{handler.type or containerd_config.RUNC_TYPE}"',
            why="a handler's table has to name its type",
        )
        driver = "systemd" if have.systemd_cgroup else "cgroupfs"
        need("SystemdCgroup", "true" if wanted.systemd_cgroup else "false", why=f"the cgroup driver is {driver}")
    if wanted.restrict_oom_score_adj and not have.restrict_oom_score_adj:
        need("restrict_oom_score_adj", "true", why="this machine does not let runc lower oom_score_adj")
    folders = (have.registry_config_path or "").split(":")
    if wanted.registry_config_path and wanted.registry_config_path not in folders and not _has_mirrors(effective):
        value = ":".join(filter(None, (wanted.registry_config_path, *folders)))
        need("config_path", f'"{value}"', why=f"{wanted.registry_config_path} is not read for registries")
    if wanted.cni_bin_dir and wanted.cni_bin_dir not in (have.cni_bin_dir or "").split(":"):
        why = f"CNI plugins are looked for in {have.cni_bin_dir}, and they are in {wanted.cni_bin_dir}"
        key, value = "bin_dir", f'"{wanted.cni_bin_dir}"'
        if _has_bin_dirs(effective) and schema > 2:
            key, value = "bin_dirs", f"[{value}]"
        found.append(Setting((*naming.runtime, "cni"), key, value, why))
    return tuple(found)


def _old_cri(effective: Mapping[str, Any]) -> Any:
    return as_table(effective.get("plugins")).get(_OLD_CRI[1])


def _cni_of(effective: Mapping[str, Any]) -> dict[str, Any]:
    plugins = as_table(effective.get("plugins"))
    own = as_table(plugins.get(_RUNTIME[1])) or as_table(plugins.get(_OLD_CRI[1]))
    return as_table(own.get("cni"))


def _has_bin_dirs(effective: Mapping[str, Any]) -> bool:
    """Whether this containerd supports several folders, as 2.1 does, which deprecates the older key."""
    return "bin_dirs" in _cni_of(effective)


def _has_mirrors(effective: Mapping[str, Any]) -> bool:
    """Whether registries are configured in the old way, with which containerd refuses a config_path."""
    plugins = as_table(effective.get("plugins"))
    owners = (as_table(plugins.get(table[1])) for table in (_OLD_CRI, _IMAGES))
    registries = [as_table(owner.get("registry")) for owner in owners]
    configs = [as_table(each) for item in registries for each in as_table(item.get("configs")).values()]
    return any(item.get("mirrors") for item in registries) or any(each.get("tls") for each in configs)


def describe_effective(effective: Mapping[str, Any]) -> Wanted:
    """The current values of these settings in the output of `containerd config dump`, schema 2 or 3."""
    plugins = as_table(effective.get("plugins"))
    old = as_table(plugins.get(_OLD_CRI[1]))
    own = as_table(plugins.get(_RUNTIME[1])) or old
    images = as_table(plugins.get(_IMAGES[1])) or old
    handler = containerd_config.find_default_handler(own)
    driver = handler.cgroup_driver if handler else "cgroupfs"
    pinned = as_table(images.get("pinned_images"))
    cni = _cni_of(effective)
    return Wanted(
        sandbox_image=str(pinned.get("sandbox") or old.get("sandbox_image") or ""),
        systemd_cgroup=driver == "systemd" if driver else None,
        restrict_oom_score_adj=bool(own.get("restrict_oom_score_adj")),
        registry_config_path=str(as_table(images.get("registry")).get("config_path") or ""),
        cni_bin_dir=":".join(map(str, cni.get("bin_dirs") or [])) or str(cni.get("bin_dir") or ""),
    )


# ---- editing the text


def mend_text(text: str, settings: Sequence[Setting], *, version: Optional[int] = None) -> str:
    """The text of a configuration file with the CRI plugin enabled, the settings applied, and the given `version`, if any. All other
    lines stay, including their line ends."""
    mark, text = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    is_dos = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    text = enable_cri(text.replace("\r\n", "\n") if is_dos else text)
    if version is not None and read_schema(text) != version:
        head = containerd_config.head_of(text)
        kept = re.sub(r"^[ \t]*[\"']?version[\"']?[ \t]*=.*\n?", "", head, flags=re.MULTILINE)
        text = f"version = {version}\n{kept}{text[len(head) :]}"
    lines = text.removesuffix("\n").split("\n") if text else []
    for setting in settings:
        lines = _put(lines, setting)
    text = "\n".join(lines) + "\n"
    return mark + (text.replace("\n", "\r\n") if is_dos else text)


def enable_cri(text: str) -> str:
    """The text without the CRI plugins in disabled_plugins, even if that list spans several lines."""
    match = containerd_config.match_list(text, "disabled_plugins")
    if not match:
        return text
    kept = re.sub(rf"""["'](?:{"|".join(map(re.escape, _CRI_IDS))})["'][ \t]*,?[ \t]*""", "", match["items"])
    if kept == match["items"]:
        return text
    return text[: match.start("items")] + re.sub(r",\s*$", "", kept) + text[match.end("items") :]


def _put(lines: Sequence[str], setting: Setting) -> list[str]:
    """Add a setting to the lines: change its line, add one to its table, or add the table at the end."""
    table: Optional[tuple[str, ...]] = ()
    header_at = None
    for at, line in enumerate(lines):
        name = table_name(line)
        if name is not None:
            table = name
            header_at = at if name == setting.table else header_at
        elif line.lstrip().startswith("[["):
            table = None
        elif table == setting.table and re.match(rf"""\s*["']?{re.escape(setting.key)}["']?\s*=""", line):
            indent = line[: len(line) - len(line.lstrip())]
            end = at + 1
            while end < len(lines) and _is_open("\n".join(lines[at:end])):
                end += 1
            return [*lines[:at], f"{indent}{setting.key} = {setting.value}", *lines[end:]]
    if header_at is None:
        header = "[" + ".".join(_quote(part) for part in setting.table) + "]"
        return [*lines, "", header, f"  {setting.key} = {setting.value}"]
    indent = lines[header_at][: len(lines[header_at]) - len(lines[header_at].lstrip())] + "  "
    return [*lines[: header_at + 1], f"{indent}{setting.key} = {setting.value}", *lines[header_at + 1 :]]


def _is_open(text: str) -> bool:
    """Whether a list that begins in `text` continues in the next line."""
    plain = re.sub(r"""\"[^"\n]*"|'[^'\n]*'|#.*""", "", text)
    return plain.count("[") > plain.count("]")


def _quote(part: str) -> str:
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'


# ---- fixing


def fix_runtime(host: Host, socket: str, *, wanted: Wanted, restarts: bool = False) -> tuple[str, ...]:
    """Fix containerd's configuration and restart it; return what was wrong, or (). restarts: restart it even if the files are right,
    because it may still run with older ones.

    Raises HostError: runtime-not-fixable (another runtime, or a configuration that cannot be changed safely),
    runtime-fix-failed (containerd did not come back, and the old configuration was restored).
    """
    status = runtime.probe_runtime(host, socket)
    if "containerd" not in crictl.socket_path(socket).name or not host.which("containerd"):
        raise _not_fixable(f"the runtime at {socket}", "only containerd's configuration can be fixed by kb")
    config = containerd_config.find_config(host)
    before = containerd_config.read_files(host, config)
    naming = _choose_naming(host, config, text=before[config])
    enabled = {path: enable_cri(text) for path, text in before.items()}
    # the version line may change which default handler the file names
    read_as = {**enabled, config: mend_text(enabled[config], (), version=naming.version)}
    effective = _read_effective(host, config, texts=read_as)
    before = containerd_config.keep_loaded(before, effective)
    enabled = {path: enabled[path] for path in before}
    faults = plan_settings(naming.schema, effective, wanted=wanted)
    disabled = containerd_config.find_disabled_cri(host) if enabled != before else None
    told = [f"{disabled[0]} line {disabled[1]} disabled the CRI plugin"] if disabled else []
    told += [item.why for item in faults if item.key != "runtime_type"]
    if not told:
        return _restart_stale(host, socket, status=status, wanted=wanted, restarts=restarts)
    after = _mend_files(before, config, naming=naming, faults=faults)
    _require_mended(host, config, after=after, naming=naming, wanted=wanted)
    _try_files(host, socket, config=config, before=before, after=after)
    return tuple(told)


def _try_files(host: Host, socket: str, *, config: Path, before: Mapping[Path, str], after: Mapping[Path, str]) -> None:
    """Write the changed files and restart containerd. If it fails, restore the old ones and raise HostError (runtime-fix-failed)."""
    changed = [path for path in after if after[path] != before[path]]
    is_new = not host.exists(config)
    for path in changed:
        _write(host, path, text=after[path])
    if _restart(host, socket):
        return
    for path in changed:
        _write(host, path, text=before[path])
    if is_new:
        host.remove(config)
    log = runtime.probe_runtime(host, socket)
    _restart(host, socket)
    raise HostError(
        f"containerd did not start again with the fixed {' and '.join(map(str, changed))}",
        cause=f"{log.cause or 'it is not ready'}; the old configuration was restored",
        remedy=f"see why: {services.say_log(host, 'containerd', lines=30)}",
        code="runtime-fix-failed",
    )


def _write(host: Host, path: Path, *, text: str) -> None:
    host.write_file(path, text, keeps=True)


def _mend_files(
    before: Mapping[Path, str], config: Path, *, naming: Naming, faults: Sequence[Setting]
) -> dict[Path, str]:
    """Put each setting into the file in which it takes effect. Only the first file gets the version."""
    own: dict[Path, list[Setting]] = {path: [] for path in before}
    for fault in faults:
        own[containerd_config.find_owner(before, fault.table, naming=naming)].append(fault)
    after = dict(before)
    for path, text in before.items():
        version = naming.version if path == config else None
        if own[path] or enable_cri(text) != text or (version and own[config]):
            after[path] = mend_text(text, own[path], version=version)
    return after


def _require_mended(host: Host, config: Path, *, after: Mapping[Path, str], naming: Naming, wanted: Wanted) -> None:
    """Check that the new text has the intended effect. Raises HostError (runtime-not-fixable)."""
    try:
        effective = _read_effective(host, config, texts=after)
    except HostError as error:
        told = f"kb's lines do not fit in: a table that they need is written within one line ({error.cause})"
        raise _not_fixable(str(config), told) from error
    left = plan_settings(naming.schema, effective, wanted=wanted)
    if left:
        names = ", ".join(item.key for item in left)
        raise _not_fixable(str(config), f"{names} would not be as it should be: another line or an imported file wins")
    for path, text in after.items():
        if enable_cri(text) != text:
            raise _not_fixable(str(path), "disabled_plugins would still hold the CRI plugin")


def _restart_stale(
    host: Host, socket: str, *, status: runtime.RuntimeStatus, wanted: Wanted, restarts: bool
) -> tuple[str, ...]:
    """Restart containerd if its files are right, but it has not read them yet or does not run."""
    driver = {True: "systemd", False: "cgroupfs", None: status.cgroup_driver}[wanted.systemd_cgroup]
    is_stale = (
        restarts
        or not status.is_ready
        or (
            (status.cgroup_driver or driver) != driver
            or (wanted.sandbox_image and (status.sandbox_image or wanted.sandbox_image) != wanted.sandbox_image)
        )
    )
    if not is_stale:
        return ()
    _restart(host, socket)
    return ("containerd had not read its configuration, or did not run",)


def _choose_naming(host: Host, config: Path, *, text: str) -> Naming:
    naming = containerd_config.find_naming(text, runtime.read_own_schema(host))
    if naming is None:
        raise _not_fixable(
            str(config),
            f"it has no version and the names of version 1 ([plugins.cri]), which this containerd ignores: write "
            f"version = 2 at its top and the tables as [{containerd_config.show_table(_OLD_CRI)}...]",
        )
    return naming


def _read_effective(host: Host, config: Path, *, texts: Mapping[Path, str]) -> dict[str, Any]:
    """The configuration that containerd would start with, given these texts. Raises HostError (runtime-not-fixable)."""
    changed = [path for path, text in texts.items() if path != config and text != _text_of(host, path)]
    trials = {path: path.with_name(f".{path.name}.kb-trial") for path in (config, *changed)}
    main = texts[config]
    imports = containerd_config.match_list(main, "imports")
    if changed and imports:
        # the trial files replace the files themselves
        names = [f'"{trials.get(path, path)}"' for path in texts if path != config]
        main = main[: imports.start("items")] + ", ".join(names) + main[imports.end("items") :]
    try:
        for path, trial in trials.items():
            host.write_file(trial, (main if path == config else texts[path]) or "\n", mode=0o600)
        answer = host.query(["containerd", "--config", str(trials[config]), "config", "dump"], timeout_s=15)
    finally:
        for trial in trials.values():
            host.remove(trial)
    if not answer.ok:
        raise _not_fixable(str(config), f"containerd does not read it: {crictl.last_words(answer.stderr)}")
    try:
        found = containerd_config.parse_toml(answer.stdout)
        files = {str(trial): str(path) for path, trial in trials.items()}
        if isinstance(found.get("imports"), list):
            found["imports"] = [files.get(str(name), str(name)) for name in found["imports"]]
        return found
    except ValueError as error:
        raise _not_fixable(str(config), f"containerd's output for it cannot be parsed ({error})") from error


def _text_of(host: Host, path: Path) -> str:
    return host.read_bytes(path).decode(errors="surrogateescape") if host.exists(path) else ""


def _restart(host: Host, socket: str) -> bool:
    """Restart containerd and wait until it is ready; return whether it is."""
    if services.spoken_of(host) is services.SYSTEMD:
        host.run(["systemctl", "reset-failed", "containerd"], timeout_s=30)
    services.run(host, "restart", unit="containerd", timeout_s=60)
    return becomes_so(
        host, lambda: runtime.probe_runtime(host, socket).is_ready, timeout_s=RESTART_TIMEOUT_S, poll_s=RESTART_POLL_S
    )


def _not_fixable(what: str, cause: str) -> HostError:
    return HostError(
        f"{what} cannot be fixed",
        cause=cause,
        remedy="change it by hand (kb doctor says what is wrong), then run the command again without --fix",
        code="runtime-not-fixable",
    )
