"""containerd's configuration: what kb proposes and what --fix writes is tried by containerd itself (`config dump`).

Each file of the table is tried with the containerd in PATH, and with those that $KB_CONTAINERD_BIN names (a folder of
them, one file for each version).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import containerd_config, runtime, runtime_fix
from kubeup.node.runtime_fix import Wanted
from tests.fake_host import FakeHost

pytestmark = pytest.mark.component

SOCKET = "unix:///run/containerd/containerd.sock"
CONFIG = str(containerd_config.CONFIG)
PAUSE = "registry.example.com/pause:9"
OLD = 'plugins."io.containerd.grpc.v1.cri"'
NEW = "plugins.'io.containerd.cri.v1.runtime'"
NVIDIA = f"""\
[{OLD}]
  [{OLD}.containerd]
    default_runtime_name = "nvidia"
    [{OLD}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [{OLD}.containerd.runtimes.nvidia]
      runtime_type = "io.containerd.runc.v2"
      [{OLD}.containerd.runtimes.nvidia.options]
        BinaryName = "/usr/bin/nvidia-container-runtime"
"""
NVIDIA_NEW = NVIDIA.replace(OLD, NEW)
SHORT = NVIDIA.replace(OLD, "plugins.cri")

FILES: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"config.toml": ""},
    "comments": {"config.toml": "# nothing yet\n"},
    "docker": {"config.toml": '#   Copyright\n\ndisabled_plugins = ["cri"]\n\n#root = "/var/lib/containerd"\n'},
    "docker-debug": {"config.toml": 'disabled_plugins = ["cri"]\n\n[debug]\n  level = "debug"\n'},
    "disabled-others": {"config.toml": 'disabled_plugins = [\n  "aufs", # no module\n  "cri",\n]\n'},
    "disabled-by-the-short-name": {"config.toml": 'version = 2\ndisabled_plugins = ["cri"]\n'},
    "version-2": {"config.toml": f"version = 2\n{NVIDIA}"},
    "no-version": {"config.toml": NVIDIA},
    "version-1-long-names": {"config.toml": f"version = 1\n\n[grpc]\n  gid = 0\n{NVIDIA}"},
    "version-of-another-table": {"config.toml": f"{NVIDIA}[proxy_plugins.x]\n  type = 'snapshot'\n  address = '/x'\n"},
    "version-3": {"config.toml": f"version = 3\n{NVIDIA_NEW}"},
    "short-names": {"config.toml": SHORT},
    "options-alone": {"config.toml": f"version = 2\n[{OLD}.containerd.runtimes.runc.options]\n  Root = '/x'\n"},
    "tabs": {"config.toml": f"version\t=\t2\n{NVIDIA}".replace("  ", "\t")},
    "crlf": {"config.toml": f"version = 2\n{NVIDIA}".replace("\n", "\r\n")},
    "no-version-crlf": {"config.toml": NVIDIA.replace("\n", "\r\n")},
    "bom": {"config.toml": f"\ufeff{NVIDIA}"},
    "older-default": {
        "config.toml": f"version = 2\n[{OLD}.containerd.default_runtime]\n  runtime_type = 'io.containerd.runc.v2'\n"
    },
    "systemd-cgroup": {"config.toml": f"version = 2\n[{OLD}]\n  systemd_cgroup = true\n"},
    "imported": {"config.toml": 'version = 2\nimports = ["conf.d/*.toml"]\n', "conf.d/99-nvidia.toml": NVIDIA},
    "imported-absolute": {
        "config.toml": f'version = 2\nimports = ["/etc/containerd/conf.d/99.toml"]\n[{OLD}]\n  sandbox_image = "x"\n',
        "conf.d/99.toml": NVIDIA,
    },
    "imported-disables": {
        "config.toml": 'version = 2\nimports = ["conf.d/*.toml"]\n',
        "conf.d/10.toml": 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n',
    },
    "imported-new": {"config.toml": 'version = 3\nimports = ["conf.d/*.toml"]\n', "conf.d/99.toml": NVIDIA_NEW},
    "pinned": {
        "config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = 'x'  # ours\n"
    },
    "folders": {"config.toml": f"version = 2\n[{OLD}.cni]\n  bin_dir = '/usr/lib/cni'\n[{OLD}.registry]\n"},
}


DEFAULT = "(what `containerd config default` prints)"
FILES["default"] = {"config.toml": DEFAULT}
ONE_LINE = {
    "dotted": f"version = 2\n{OLD}.sandbox_image = 'x'\n",
    "inline": "version = 2\n[plugins]\n'io.containerd.grpc.v1.cri' = {sandbox_image = 'x'}\n",
}
BROKEN = {
    "cut": "version = 2\n[plugins\n",
    "deep": "version = 2\na = " + "[" * 5000,
    "wrong type": f"version = 2\n[{OLD}]\n  sandbox_image = 1\n",
    "latin-1": "version = 2\n[\udcfc]\n",
}


def programs() -> list[str]:
    own = shutil.which("containerd")
    folder = os.environ.get("KB_CONTAINERD_BIN")
    return ([own] if own else []) + sorted(map(str, Path(folder).iterdir() if folder else ()))


@pytest.fixture(params=programs() or [""], ids=[Path(name).name for name in programs()] or ["none"])
def program(request: pytest.FixtureRequest) -> str:
    if not request.param:
        pytest.skip("no containerd in PATH")
    return str(request.param)


def make_host(tmp_path: Path, program: str, files: dict[str, str]) -> FakeHost:
    """A machine whose files are in a dict and whose `containerd` is the real one, asked over a copy of them."""
    host = FakeHost(
        programs={"containerd", "crictl"},
        files={"/run/containerd/containerd.sock": b""},
        accepts={"systemctl reset-failed containerd", "systemctl restart containerd"},
    )
    for name, text in files.items():
        if text == DEFAULT:
            text = subprocess.run([program, "config", "default"], capture_output=True, text=True, check=True).stdout
        host.files[f"/etc/containerd/{name}"] = text.encode(errors="surrogateescape")

    def containerd(argv: tuple[str, ...]) -> CommandResult:
        shutil.rmtree(tmp_path / "etc", ignore_errors=True)
        for name, data in host.files.items():
            if name.startswith("/etc/containerd/"):
                place = tmp_path / name[1:]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data.replace(b'"/etc/containerd/', f'"{tmp_path}/etc/containerd/'.encode()))
        words = list(argv[1:]) if "--config" in argv else ["--config", CONFIG, *argv[1:]]
        path = tmp_path / words[1][1:]
        words = (
            ["--config", str(path), *words[2:]] if path.exists() and "default" not in words else ["config", words[-1]]
        )
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=30)
        return CommandResult(argv, done.returncode, done.stdout.replace(str(tmp_path), ""), done.stderr)

    ready = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}})
    host.answers.update({"containerd": containerd, "systemctl": "", "crictl": ready})
    return host


def effective(host: FakeHost) -> dict[str, Any]:
    told = runtime.read_containerd_config(host, SOCKET)
    assert told is not None, host.query(["containerd", "config", "dump"]).stderr
    return told


def handler_of(host: FakeHost) -> containerd_config.Handler:
    plugins = effective(host)["plugins"]
    cri = plugins.get(containerd_config.RUNTIME[1]) or plugins[containerd_config.OLD_CRI[1]]
    assert not containerd_config.breaks_cri(cri)
    handler = containerd_config.find_default_handler(cri)
    assert handler is not None
    return handler


WANTED = Wanted(PAUSE, systemd_cgroup=True, registry_config_path="/c", cni_bin_dir="/x/bin")


def is_refused_by_itself(host: FakeHost) -> bool:
    """Whether this containerd does not take such a file at all, but for what --fix knows of."""
    for name in [name for name in host.files if name.startswith("/etc/containerd/")]:
        text = host.files[name].decode(errors="surrogateescape")
        host.files[name] = runtime_fix.enable_cri(text).encode(errors="surrogateescape")
    return CONFIG in host.files and not host.query(["containerd", "config", "dump"]).ok


@pytest.mark.parametrize("name", FILES)
def test_fix_makes_it_what_a_node_needs(tmp_path: Path, program: str, name: str) -> None:
    refused = is_refused_by_itself(make_host(tmp_path, program, FILES[name]))
    host = make_host(tmp_path, program, FILES[name])
    is_old = runtime.read_own_schema(host) < 3
    before = dict(host.files)
    try:
        told = runtime_fix.fix_runtime(host, SOCKET, wanted=WANTED)
    except HostError as error:
        assert error.code == "runtime-not-fixable"
        assert refused or (name == "short-names" and not is_old), error.cause
        assert host.files == before
        return
    is_new = "version = 3" in FILES[name].get("config.toml", "")
    assert told and (not refused or (is_new and is_old))
    assert runtime_fix.plan_settings(2 if is_old else 3, effective(host), wanted=WANTED) == ()
    handler = handler_of(host)
    assert (handler.type, handler.cgroup_driver) == ("io.containerd.runc.v2", "systemd")
    if "nvidia" in "".join(FILES[name].values()) and not (is_new and is_old) and name != "imported":
        assert handler.name == "nvidia"
    assert not any("kb-trial" in path for path in host.files)
    for path, data in before.items():
        kept = [line for line in data.splitlines() if b"nvidia" in line or (b"#" in line and b"ours" not in line)]
        assert [line for line in kept if line not in host.files[path].splitlines()] == []
    assert runtime_fix.fix_runtime(host, SOCKET, wanted=WANTED) == ()


@pytest.mark.parametrize("name", [*ONE_LINE, *BROKEN])
def test_a_file_that_kb_cannot_mend_is_left_as_it_is_and_said_so(tmp_path: Path, program: str, name: str) -> None:
    text = {**ONE_LINE, **BROKEN}[name]
    host = make_host(tmp_path, program, {"config.toml": text})
    before = dict(host.files)
    with pytest.raises(HostError) as caught:
        runtime_fix.fix_runtime(host, SOCKET, wanted=WANTED)
    assert caught.value.code == "runtime-not-fixable"
    assert ("written within one line" if name in ONE_LINE else "containerd does not read it") in caught.value.cause
    assert host.files == before


STEP = re.compile(
    r"(?:write|set) (?P<key>\w+) = (?P<value>\S+)(?: below \[(?P<table>\S+)\])? (?:in|at the top of) (?P<path>\S+?),? "
)


def follow(host: FakeHost, remedy: str) -> None:
    """Do what a remedy says, as a person with an editor would."""
    steps = [match.groupdict() for match in STEP.finditer(remedy)]
    assert steps, remedy
    for step in steps:
        lines = host.files.get(step["path"], b"").decode().lstrip("\ufeff").splitlines()
        if step["table"] is None:
            lines = [f"version = {step['value']}", *(line for line in lines if not line.startswith("version"))]
        else:
            wanted = containerd_config.table_name(f"[{step['table']}]")
            at = next((at for at, line in enumerate(lines) if containerd_config.table_name(line) == wanted), None)
            if at is None:
                lines.append(f"[{step['table']}]")
                at = len(lines) - 1
            end = next((n for n in range(at + 1, len(lines)) if containerd_config.table_name(lines[n])), len(lines))
            body = [line for line in lines[at + 1 : end] if not re.match(rf"\s*{step['key']}\s*=", line)]
            lines = [*lines[: at + 1], f"{step['key']} = {step['value']}", *body, *lines[end:]]
        host.files[step["path"]] = ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize("name", [name for name in FILES if "disable" not in name and "docker" not in name])
def test_what_kb_proposes_does_what_it_should(tmp_path: Path, program: str, name: str) -> None:
    if is_refused_by_itself(make_host(tmp_path, program, FILES[name])):
        pytest.skip("this containerd does not take such a file")
    host = make_host(tmp_path, program, FILES[name])
    for setting, value in (("sandbox_image", f'"{PAUSE}"'), ("SystemdCgroup", "true"), ("config_path", '"/c"')):
        bare = runtime.RuntimeStatus(SOCKET, name="containerd", is_ready=True)
        status = runtime._with_dump(bare, effective(host))
        remedy = runtime.describe_setting(status, setting, value=value, host=host)
        assert remedy.endswith("then: systemctl restart containerd")
        if name == "short-names" and runtime.read_own_schema(host) > 2:
            assert "in version 2" in remedy
            return
        follow(host, remedy)
        if name == "systemd-cgroup":
            host.files[CONFIG] = host.files[CONFIG].replace(b"systemd_cgroup = true", b"")
    status = runtime._with_dump(bare, effective(host))
    assert (status.sandbox_image, status.cgroup_driver, status.registry_config_path) == (PAUSE, "systemd", "/c")
    assert handler_of(host).type == "io.containerd.runc.v2"
