"""kubeup/node/runtime.py: what the runtime is, whether it is ready, and how its settings are named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kubeup.node import image_pulls, runtime
from tests.fake_host import Answer, FakeHost
from tests.unit.node.runtime_case import (
    CRICTL,
    CTR,
    DUMP_1_6,
    DUMP_2_1,
    INFO_2_1,
    SOCKET,
    crictl_host,
    failed,
    version_text,
)

# ---- probe


def test_probe_of_containerd_1_6() -> None:
    status = runtime.probe_runtime(crictl_host(), SOCKET)
    assert status.is_ready
    assert (status.name, status.version, status.label) == ("containerd", "1.6.20~ds1", "containerd 1.6.20~ds1")
    assert status.has_runtime_config is False
    assert status.cgroup_driver == "cgroupfs"
    assert status.sandbox_image == "registry.k8s.io/pause:3.6"
    assert status.registry_config_path == ""
    assert status.restricts_oom_score is False
    assert status.cni_bin_dirs == ("/opt/cni/bin",)
    assert status.root_dir == "/var/lib/containerd"


def test_probe_of_containerd_2_1_takes_the_sandbox_image_from_the_configuration() -> None:
    host = crictl_host(
        {
            f"{CRICTL} info": json.dumps(INFO_2_1),
            f"{CRICTL} version": version_text("2.1.9+unknown"),
            f"{CRICTL} runtime-config": "cgroup driver:   SYSTEMD\n",
            "containerd config dump": DUMP_2_1,
        }
    )
    status = runtime.probe_runtime(host, SOCKET)
    assert status.is_ready
    assert status.has_runtime_config is True
    assert status.cgroup_driver == "systemd"
    assert status.sandbox_image == "registry.k8s.io/pause:3.10"
    assert status.registry_config_path == "/etc/containerd/certs.d:/etc/docker/certs.d"
    # what the running daemon says beats what the file says
    assert status.restricts_oom_score is True
    assert status.cni_bin_dirs == ("/usr/lib/cni", "/opt/cni/bin")


def test_a_runtime_that_is_too_old_for_the_call_is_not_asked() -> None:
    """A process costs 15 ms of CPU time, in every join of a worker."""
    answers: dict[str, Answer] = {f"{CRICTL} runtime-config": "cgroup driver:   SYSTEMD\n"}
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is False
    answers[f"{CRICTL} version"] = version_text("unknown")
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is True


def test_a_crictl_that_cannot_ask_leaves_runtime_config_to_the_version() -> None:
    answers: dict[str, Answer] = {f"{CRICTL} runtime-config": failed("No help topic for 'runtime-config'", 3)}
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is False
    answers[f"{CRICTL} version"] = version_text("v2.0.1")
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is True
    answers[f"{CRICTL} version"] = version_text("1.28.4", "cri-o")
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is True
    answers[f"{CRICTL} version"] = version_text("0.3", "frakti")
    assert runtime.probe_runtime(crictl_host(answers), SOCKET).has_runtime_config is None


def test_the_configuration_of_another_containerd_is_not_believed() -> None:
    host = FakeHost(answers={"containerd config dump": DUMP_2_1})
    assert runtime.read_containerd_config(host, "unix:///run/k3s/containerd/containerd.sock") is None
    found = runtime.read_containerd_config(host, "unix:///var/run/containerd/containerd.sock")
    assert found is not None
    assert found["version"] == 3


def test_a_runtime_that_says_it_is_not_ready() -> None:
    info = {
        "status": {"conditions": [{"type": "RuntimeReady", "status": False, "reason": "Broken", "message": "no runc"}]}
    }
    status = runtime.probe_runtime(crictl_host({f"{CRICTL} info": json.dumps(info)}), SOCKET)
    assert not status.is_ready
    assert status.problem == "not-ready"
    assert "Broken no runc" in status.cause
    assert "journalctl -u containerd" in status.remedy


def test_no_socket_tells_installed_from_absent() -> None:
    stopped = runtime.probe_runtime(FakeHost(programs={"containerd", "crictl"}), SOCKET)
    assert stopped.problem == "no-socket"
    assert "containerd is installed but does not run" in stopped.cause
    assert stopped.remedy.startswith("systemctl enable --now containerd")
    absent = runtime.probe_runtime(FakeHost(programs={"apt-get"}), SOCKET)
    assert "no containerd in PATH" in absent.cause
    assert absent.remedy.startswith("apt-get install containerd")
    crio = runtime.probe_runtime(FakeHost(programs={"dnf"}), "unix:///var/run/crio/crio.sock")
    assert crio.remedy.startswith("dnf install cri-o")


def test_a_runtime_that_has_no_files_left_is_told_its_limit() -> None:
    host = FakeHost(programs={"containerd", "crictl"})
    host.answers["systemctl show containerd --property Result,InvocationID"] = "Result=exit-code\nInvocationID=abc\n"
    host.answers["systemctl show containerd --property LimitNOFILE --value"] = "40\n"
    host.answers["journalctl _SYSTEMD_INVOCATION_ID=abc"] = (
        "containerd: failed to get listener: socket: too many open files\n"
    )
    cause = runtime.probe_runtime(host, SOCKET).cause
    assert cause.endswith("too many open files (its unit has LimitNOFILE=40: systemctl cat containerd)")


def test_no_client_says_how_to_get_crictl() -> None:
    host = FakeHost(files={"/run/containerd/containerd.sock": b""}, programs={"apt-get"})
    status = runtime.probe_runtime(host, SOCKET)
    assert status.problem == "no-client"
    assert "apt-get install cri-tools" in status.remedy


@pytest.mark.parametrize(
    ("text", "code", "problem"),
    [
        ("rpc error: code = Unavailable desc = dial unix /x: connect: connection refused", 1, "refused"),
        ("rpc error: code = Unavailable desc = dial unix /x: connect: permission denied", 1, "forbidden"),
        ("rpc error: code = DeadlineExceeded desc = context deadline exceeded", 1, "timeout"),
        ("crictl: did not end within 30 s", 124, "timeout"),
        ("something new", 1, "failed"),
    ],
)
def test_why_the_runtime_does_not_answer(text: str, code: int, problem: str) -> None:
    status = runtime.probe_runtime(crictl_host({f"{CRICTL} info": failed(text, code)}), SOCKET)
    assert not status.is_ready
    assert status.problem == problem
    assert status.remedy


NO_SERVICE = failed(
    'time="t" level=fatal msg="validate CRI v1 runtime API for endpoint \\"unix:///x\\": rpc error: code = Unimplemented '
    'desc = unknown service runtime.v1.RuntimeService"'
)


@pytest.mark.parametrize(
    ("config", "line", "text"),
    [
        ('version = 2\n\ndisabled_plugins = ["cri"]\n', 3, 'disabled_plugins = ["cri"]'),
        ("disabled_plugins = [\n  'aufs',\n  'io.containerd.grpc.v1.cri',\n]\n", 3, "'io.containerd.grpc.v1.cri',"),
        (
            'disabled_plugins = ["io.containerd.cri.v1.runtime"]',
            1,
            'disabled_plugins = ["io.containerd.cri.v1.runtime"]',
        ),
    ],
)
def test_a_disabled_cri_plugin_is_named_with_its_line(config: str, line: int, text: str) -> None:
    host = crictl_host({f"{CRICTL} info": NO_SERVICE}, files={"/etc/containerd/config.toml": config.encode()})
    status = runtime.probe_runtime(host, SOCKET)
    assert status.problem == "cri-disabled"
    assert f"/etc/containerd/config.toml line {line}: {text}" in status.cause
    assert "disabled_plugins in /etc/containerd/config.toml" in status.remedy


@pytest.mark.parametrize(
    "config", ['# disabled_plugins = ["cri"]', 'disabled_plugins = ["aufs"]\nrequired_plugins = ["cri"]', ""]
)
def test_a_cri_plugin_that_no_line_disables(config: str) -> None:
    host = crictl_host(
        {
            f"{CRICTL} info": NO_SERVICE,
            f"{CTR} plugins ls -d id==cri": "Type: x\nID:  cri\nError:\n      Code:     Unknown\n      Message:  bad snapshotter\n",
        },
        files={"/etc/containerd/config.toml": config.encode()},
        programs={"ctr"},
    )
    status = runtime.probe_runtime(host, SOCKET)
    assert status.problem == "cri-failed"
    assert "bad snapshotter" in status.cause


@pytest.mark.parametrize(
    ("told", "remedy"),
    [
        ("invalid plugin config: `systemd_cgroup` only works for runtime io.containerd.runtime.v1.linux", "take the line systemd_cgroup = true out"),
        ('no corresponding runtime configured in `containerd.runtimes` for `containerd` `default_runtime_name = "nvidia"', "(nvidia has none)"),
        ("invalid plugin config: `mirrors` cannot be set when `config_path` is provided", "take either mirrors or config_path out"),
    ],
)  # fmt: skip
def test_a_setting_that_keeps_the_cri_plugin_from_loading_is_named(told: str, remedy: str) -> None:
    message = f"Type: x\nID:  cri\nError:\n      Code:     Unknown\n      Message:  {told}\n"
    host = crictl_host({f"{CRICTL} info": NO_SERVICE, f"{CTR} plugins ls -d id==cri": message}, programs={"ctr"})
    status = runtime.probe_runtime(host, SOCKET)
    assert told in status.cause
    assert remedy in status.remedy and "/etc/containerd/config.toml" in status.remedy


PLUGINS = "TYPE ID PLATFORMS STATUS\nio.containerd.grpc.v1  cri  linux/amd64  ok  \n"
CTR_VERSION = "Client:\n  Version:  1.6.1\n\nServer:\n  Version:  1.6.20~ds1\n"


def test_ctr_stands_in_for_crictl() -> None:
    host = FakeHost(
        files={"/run/containerd/containerd.sock": b""},
        programs={"ctr"},
        answers={
            f"{CTR} plugins ls": PLUGINS,
            f"{CTR} version": CTR_VERSION,
            "containerd config dump": DUMP_1_6,
            f"{CTR} images ls -q": "registry.k8s.io/pause:3.6\n",
        },
    )
    status = runtime.probe_runtime(host, SOCKET)
    assert status.is_ready
    assert status.version == "1.6.20~ds1"
    assert status.has_runtime_config is False
    assert status.cgroup_driver == "cgroupfs"
    assert status.sandbox_image == "registry.k8s.io/pause:3.6"
    assert status.registry_config_path == "/etc/containerd/certs.d"
    assert status.restricts_oom_score is True
    assert status.cni_bin_dirs == ("/usr/lib/cni",)
    assert image_pulls.list_images(host, SOCKET) == {"registry.k8s.io/pause:3.6"}


def test_ctr_sees_a_cri_plugin_that_is_not_loaded() -> None:
    host = FakeHost(
        files={"/run/containerd/containerd.sock": b""},
        programs={"ctr"},
        answers={f"{CTR} plugins ls": PLUGINS.replace("ok", "error"), f"{CTR} plugins ls -d id==cri": ""},
    )
    assert runtime.probe_runtime(host, SOCKET).problem == "cri-failed"


def test_a_dump_that_cannot_be_read_is_no_dump() -> None:
    host = FakeHost(answers={"containerd config dump": "a = b = c"})
    assert runtime.read_containerd_config(host, SOCKET) is None
    assert runtime.read_containerd_config(FakeHost(), SOCKET) is None


def test_settings_are_named_as_the_schema_has_them() -> None:
    old = runtime.RuntimeStatus(SOCKET, name="containerd", version="1.7.24", has_runtime_config=False)
    new = dataclasses.replace(old, version="2.1.9", has_runtime_config=True)
    other = runtime.RuntimeStatus(SOCKET, name="cri-o", version="1.30.0")
    assert "sandbox_image = x below [plugins.'io.containerd.grpc.v1.cri']" in runtime.describe_setting(
        old, "sandbox_image", value="x"
    )
    assert "sandbox = x below [plugins.'io.containerd.cri.v1.images'.pinned_images]" in runtime.describe_setting(
        new, "sandbox_image", value="x"
    )
    assert "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]" in runtime.describe_setting(
        old, "SystemdCgroup", value="true"
    )
    assert "[plugins.'io.containerd.cri.v1.runtime']" in runtime.describe_setting(
        new, "restrict_oom_score_adj", value="true"
    )
    for status, table in ((old, "grpc.v1.cri'.registry"), (new, "cri.v1.images'.registry")):
        assert f"config_path = x below [plugins.'io.containerd.{table}]" in runtime.describe_setting(
            status, "config_path", value="x"
        )
    assert "configuration of cri-o 1.30.0" in runtime.describe_setting(other, "sandbox_image", value="x")
