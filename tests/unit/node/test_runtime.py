from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import containerd_config, containers, crictl, image_pulls, images, runtime
from kubeup.releases import find_release
from kubeup.report import Report
from tests.fake_host import Answer, FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
CRICTL = " ".join(crictl.crictl_argv(SOCKET))
CTR = " ".join(crictl.ctr_argv(SOCKET))
RELEASE = find_release("v1.35.6")

INFO_1_6: dict[str, Any] = {
    "cniconfig": {"PluginDirs": ["/opt/cni/bin"]},
    "config": {
        "containerd": {
            "defaultRuntimeName": "runc",
            "runtimes": {"runc": {"options": {"SystemdCgroup": False}}},
        },
        "containerdRootDir": "/var/lib/containerd",
        "registry": {"configPath": "", "mirrors": None},
        "restrictOOMScoreAdj": False,
        "sandboxImage": "registry.k8s.io/pause:3.6",
    },
    "status": {"conditions": [{"type": "RuntimeReady", "status": True}, {"type": "NetworkReady", "status": False}]},
}
INFO_2_1: dict[str, Any] = {
    "cniconfig": {"PluginDirs": ["/usr/lib/cni", "/opt/cni/bin"]},
    "config": {
        "containerd": {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": True}}}},
        "containerdRootDir": "/var/lib/containerd",
        "restrictOOMScoreAdj": True,
    },
    "status": {"conditions": [{"type": "RuntimeReady", "status": True}]},
}
DUMP_2_1 = """
version = 3
root = '/var/lib/containerd'
disabled_plugins = []

[grpc]
  address = '/run/containerd/containerd.sock'

[plugins]
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'
  [plugins.'io.containerd.cri.v1.runtime']
    restrict_oom_score_adj = false
    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = true
    [plugins.'io.containerd.cri.v1.runtime'.cni]
      bin_dir = ''
      bin_dirs = ['/usr/lib/cni', '/opt/cni/bin']
"""
DUMP_1_6 = """
version = 2
root = "/var/lib/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "registry.k8s.io/pause:3.6"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
UNIMPLEMENTED = (
    'time="t" level=fatal msg="call RuntimeConfig RPC: rpc error: code = Unimplemented desc = unknown method"'
)


def version_text(version: str, name: str = "containerd") -> str:
    return f"Version:  0.1.0\nRuntimeName:  {name}\nRuntimeVersion:  {version}\nRuntimeApiVersion:  v1\n"


def failed(text: str, code: int = 1) -> CommandResult:
    return CommandResult((), code, stderr=text)


def crictl_host(answers: Optional[dict[str, Answer]] = None, **more: Any) -> FakeHost:
    """A node with containerd 1.6 and crictl."""
    all_answers: dict[str, Answer] = {
        f"{CRICTL} info": json.dumps(INFO_1_6),
        f"{CRICTL} version": version_text("1.6.20~ds1"),
        f"{CRICTL} runtime-config": failed(UNIMPLEMENTED),
        f"{CRICTL} images -o json": '{"images": []}',
        **(answers or {}),
    }
    programs = {"crictl", "containerd", *more.pop("programs", ())}
    files = {"/run/containerd/containerd.sock": b"", **more.pop("files", {})}
    return FakeHost(files=files, programs=programs, answers=all_answers, **more)


def fatal(text: str) -> CommandResult:
    escaped = text.replace('"', '\\"')
    return failed(f'E1123 log.go:32] "PullImage failed"\ntime="t" level=fatal msg="pulling image: {escaped}"\n')


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


def test_a_line_in_an_imported_file_counts_too() -> None:
    files = {"/etc/containerd/conf.d/10-x.toml": b'disabled_plugins = ["cri"]', "/etc/containerd/config.toml": b""}
    host = FakeHost(files=files)
    assert containerd_config.find_disabled_cri(host) is None, "a file that nothing imports"
    files["/etc/containerd/config.toml"] = b'imports = [\n  "conf.d/*.toml",  # ours\n]\n'
    assert containerd_config.find_disabled_cri(host) == (
        "/etc/containerd/conf.d/10-x.toml",
        1,
        'disabled_plugins = ["cri"]',
    )


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


# ---- TOML


@pytest.mark.parametrize("text", [DUMP_1_6, DUMP_2_1])
def test_the_small_toml_reader_agrees_with_the_real_one(text: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    assert containerd_config.parse_dumped_toml(text) == tomllib.loads(text)


def test_toml_values() -> None:
    text = """
    # a comment
    a = "x # y \\" z"   # another
    b = 'c:\\d'
    c = [1, -2, 3.5]
    d = [ "x", 'y', ]
    e = true
    f = false
    g = {h = 1, "i j" = [true], k.l = 'm'}
    n = 0.02
    o = []
    "io.containerd.timeout" = "5s"
    [p."q.r".'s']
    t = 1_000
    [p]
    u = {}
    """
    assert containerd_config.parse_dumped_toml(text) == {
        "a": 'x # y " z',
        "b": "c:\\d",
        "c": [1, -2, 3.5],
        "d": ["x", "y"],
        "e": True,
        "f": False,
        "g": {"h": 1, "i j": [True], "k": {"l": "m"}},
        "n": 0.02,
        "o": [],
        "io.containerd.timeout": "5s",
        "p": {"q.r": {"s": {"t": 1000}}, "u": {}},
    }


@pytest.mark.parametrize(
    "text",
    ["a", "a = ", "= 1", "a = [1", "[a", "[[a]]", 'a = """', "a = 1 2", "a = yes", "a = 1\n[a]\nb = 2", "a = {b 1}"],
)
def test_toml_that_cannot_be_read_names_the_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d: "):
        containerd_config.parse_dumped_toml(text)


def test_a_dump_that_cannot_be_read_is_no_dump() -> None:
    host = FakeHost(answers={"containerd config dump": "a = b = c"})
    assert runtime.read_containerd_config(host, SOCKET) is None
    assert runtime.read_containerd_config(FakeHost(), SOCKET) is None


def test_settings_are_named_as_the_schema_has_them() -> None:
    old = runtime.RuntimeStatus(SOCKET, name="containerd", version="1.7.24", has_runtime_config=False)
    new = dataclasses.replace(old, version="2.1.9", has_runtime_config=True)
    other = runtime.RuntimeStatus(SOCKET, name="cri-o", version="1.30.0")
    assert "sandbox_image = x below [plugins.'io.containerd.grpc.v1.cri']" in runtime.describe_setting(
        old, "sandbox_image", "x"
    )
    assert "sandbox = x below [plugins.'io.containerd.cri.v1.images'.pinned_images]" in runtime.describe_setting(
        new, "sandbox_image", "x"
    )
    assert "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]" in runtime.describe_setting(
        old, "SystemdCgroup", "true"
    )
    assert "[plugins.'io.containerd.cri.v1.runtime']" in runtime.describe_setting(new, "restrict_oom_score_adj", "true")
    for status, table in ((old, "grpc.v1.cri'.registry"), (new, "cri.v1.images'.registry")):
        assert f"config_path = x below [plugins.'io.containerd.{table}]" in runtime.describe_setting(
            status, "config_path", "x"
        )
    assert "configuration of cri-o 1.30.0" in runtime.describe_setting(other, "sandbox_image", "x")


def test_last_words() -> None:
    assert crictl.last_words('a\ntime="t" level=fatal msg="pull \\"x\\": desc = not there"\n') == "not there"
    assert crictl.last_words("one\ntwo\n") == "two"
    assert crictl.last_words("") == "it said nothing"


# ---- images


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("a/b:1", "docker.io/a/b:1"),
        ("localhost/a", "localhost/a:latest"),
        ("r.example:5000/a/b", "r.example:5000/a/b:latest"),
        ("r.example/a@sha256:0", "r.example/a@sha256:0"),
    ],
)
def test_full_image_name(name: str, full: str) -> None:
    assert image_pulls.full_image_name(name) == full


def test_list_images_by_tag_and_digest() -> None:
    rows = {"images": [{"repoTags": ["r/a:1"], "repoDigests": ["r/a@sha256:1"]}, {"repoTags": None}]}
    assert image_pulls.list_images(crictl_host({f"{CRICTL} images -o json": json.dumps(rows)}), SOCKET) == {
        "r/a:1",
        "r/a@sha256:1",
    }


def test_list_images_that_cannot_be_had() -> None:
    with pytest.raises(HostError) as caught:
        image_pulls.list_images(crictl_host({f"{CRICTL} images -o json": failed("boom")}), SOCKET)
    assert (caught.value.code, caught.value.cause) == ("images-unreadable", "boom")
    with pytest.raises(HostError) as caught:
        image_pulls.list_images(FakeHost(), SOCKET)
    assert caught.value.code == "no-cri-client"


HEAD = 'failed to pull and unpack image "r.example/a:1": failed to resolve reference "r.example/a:1": '


@pytest.mark.parametrize(
    ("text", "kind", "cause"),
    [
        (HEAD + "r.example/a:1: not found", "not-found", "r.example has no such image"),
        (HEAD + "unexpected status code 404 Not Found", "not-found", "r.example has no such image"),
        (
            HEAD + "pulling from host r.example failed with status code [manifests 1]: 401 Unauthorized",
            "unauthorized",
            "refuses",
        ),
        ("pull access denied, repository does not exist or may require authorization", "unauthorized", "refuses"),
        (HEAD + "dial tcp: lookup r.example on 10.0.0.2:53: no such host", "dns", "does not resolve"),
        (HEAD + "dial tcp: lookup r.example on 10.0.0.2:53: read udp: i/o timeout", "dns", "does not resolve"),
        (HEAD + "dial tcp 10.0.0.1:443: connect: connection refused", "refused", "nothing at r.example"),
        (HEAD + "dial tcp 10.0.0.1:443: i/o timeout", "timeout", "not reachable"),
        (HEAD + "dial tcp 10.0.0.1:443: connect: network is unreachable", "timeout", "not reachable"),
        (HEAD + "tls: failed to verify certificate: x509: certificate signed by unknown authority", "tls", "TLS"),
        (HEAD + "http: server gave HTTP response to HTTPS client", "tls", "TLS"),
        ("failed to extract layer: write /x: no space left on device", "no-space", "full"),
        (HEAD + "429 Too Many Requests - toomanyrequests: rate limit", "limited", "limits"),
        (
            "validate service connection: dial unix /x: connect: connection refused",
            "runtime",
            "runtime does not answer",
        ),
        ("something new", "other", "gave up"),
    ],
)
def test_pull_failures_are_told_apart(text: str, kind: str, cause: str) -> None:
    with pytest.raises(image_pulls.ImagePullError) as caught:
        image_pulls.pull_image(crictl_host(pulling("r.example/a:1", answer=fatal(text))), SOCKET, "r.example/a:1")
    error = caught.value
    assert (error.kind, error.image, error.code) == (kind, "r.example/a:1", "image-pull-failed")
    assert cause in error.cause
    assert text in error.cause
    assert "{" not in error.remedy + error.cause


def test_a_proxy_that_only_this_shell_knows_is_named() -> None:
    env = {"https_proxy": "http://user:secret@proxy:3128"}
    error = image_pulls.explain_pull_failure(FakeHost(), "r/a:1", "dial tcp 1.2.3.4:443: i/o timeout", env=env)
    assert "systemctl edit containerd" in error.remedy
    assert "secret" not in error.remedy
    assert "systemctl edit" not in image_pulls.explain_pull_failure(FakeHost(), "r/a:1", "not found", env=env).remedy


def test_the_mirror_that_was_asked_is_named() -> None:
    asked = (
        'failed to do request: Head "http://10.0.0.9:5000/v2/a/manifests/1?ns=r.example": connect: connection refused'
    )
    cause = image_pulls.explain_pull_failure(FakeHost(), "r.example/a:1", asked).cause
    assert cause.startswith("nothing at 10.0.0.9:5000 (asked for r.example) accepts the connection")
    direct = asked.replace("http://10.0.0.9:5000", "https://r.example")
    assert image_pulls.explain_pull_failure(FakeHost(), "r.example/a:1", direct).cause.startswith(
        "nothing at r.example accepts"
    )


def image_list(*names: str) -> str:
    return json.dumps({"images": [{"repoTags": list(names)}]})


def pulling(*names: str, answer: Answer = "") -> dict[str, Answer]:
    """The answers of a runtime that is asked for these images and no others."""
    return {f"{CRICTL} pull {name}": answer for name in names}


def pulls(host: FakeHost) -> list[str]:
    return [change.rpartition(" ")[2] for change in host.changes if " pull " in change]


def test_ensure_images_pulls_what_is_missing_and_tells() -> None:
    missing = pulling("r.example/b:1", "r.example/c:1")
    host = crictl_host({f"{CRICTL} images -o json": image_list("r.example/a:1"), **missing})
    told: list[str] = []
    result = image_pulls.ensure_images(
        host, SOCKET, ["r.example/a:1", "r.example/b:1", "r.example/c:1"], tell=told.append
    )
    assert result == image_pulls.ImagesResult(("r.example/a:1",), ("r.example/b:1", "r.example/c:1"), ())
    assert pulls(host) == ["r.example/b:1", "r.example/c:1"]
    assert told == ["pulling r.example/b:1 (1 of 2)", "pulling r.example/c:1 (2 of 2)"]


def test_ensure_images_side_by_side() -> None:
    names = [f"r.example/{index}:1" for index in range(9)]
    host = crictl_host(pulling(*names))
    result = image_pulls.ensure_images(host, SOCKET, names, is_serial=False)
    assert result.pulled == tuple(names)
    assert sorted(pulls(host)) == sorted(names)


def test_policies() -> None:
    host = crictl_host({f"{CRICTL} images -o json": image_list("r.example/a:1"), **pulling("r.example/a:1")})
    assert image_pulls.ensure_images(host, SOCKET, ["r.example/a:1"], policy="Always").pulled == ("r.example/a:1",)
    host.changes.clear()
    assert image_pulls.ensure_images(host, SOCKET, ["r.example/b:1"], policy="Never") == image_pulls.ImagesResult()
    assert host.changes == []


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent"])
def test_a_runtime_that_does_not_answer_is_told_before_any_pull(policy: str) -> None:
    host = crictl_host({f"{CRICTL} images -o json": fatal("dial unix /run/x.sock: connect: no such file or directory")})
    with pytest.raises(HostError) as caught:
        image_pulls.ensure_images(host, SOCKET, ["r.example/a:1"], policy=policy)
    assert caught.value.code == "images-unreadable" and caught.value.remedy.endswith(" info")
    assert pulls(host) == [] and host.ticks == 0


def test_a_pull_that_heals_is_tried_again() -> None:
    ends = [fatal("connection refused"), fatal("connection refused"), CommandResult((), 0)]
    host = crictl_host({f"{CRICTL} pull": lambda argv: ends.pop(0)})
    assert image_pulls.ensure_images(host, SOCKET, ["r.example/a:1"]).pulled == ("r.example/a:1",)
    assert len(pulls(host)) == 3
    assert host.ticks == 1.5


def test_a_pull_that_cannot_heal_is_tried_once() -> None:
    host = crictl_host(pulling("r.example/a:1", answer=fatal("r.example/a:1: not found")))
    result = image_pulls.ensure_images(host, SOCKET, ["r.example/a:1"])
    assert [error.kind for error in result.failed] == ["not-found"]
    assert len(pulls(host)) == 1
    assert host.ticks == 0


def test_an_unreachable_registry_is_given_up_for_its_other_images() -> None:
    def answer(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0) if argv[-1].startswith("good") else fatal("lookup r.example: no such host")

    host = crictl_host({f"{CRICTL} pull": answer})
    result = image_pulls.ensure_images(host, SOCKET, ["r.example/a:1", "r.example/b:1", "good.example/c:1"])
    assert [error.image for error in result.failed] == ["r.example/a:1", "r.example/b:1"]
    assert result.pulled == ("good.example/c:1",)
    assert pulls(host) == ["r.example/a:1"] * 5 + ["r.example/b:1", "good.example/c:1"]


def test_equal_failures_are_one() -> None:
    names = ["r.example/a:1", "r.example/b:1", "s.example/c:1"]
    errors = [image_pulls.explain_pull_failure(FakeHost(), name, "connection refused") for name in names]
    groups = image_pulls.group_failures(
        [*errors, image_pulls.explain_pull_failure(FakeHost(), "r.example/d:1", "not found")]
    )
    assert [group.what for group in groups] == [
        "cannot pull r.example/a:1, r.example/b:1",
        "cannot pull s.example/c:1",
        "cannot pull r.example/d:1",
    ]


def test_pull_through_ctr_uses_the_mirrors_of_the_cri() -> None:
    pull = f"{CTR} images pull --hosts-dir /etc/containerd/certs.d docker.io/library/busybox:1"
    host = FakeHost(programs={"ctr"}, accepts={pull}, dirs={"/etc/containerd/certs.d"})
    image_pulls.pull_image(host, SOCKET, "busybox:1")
    assert host.changes == [f"run {pull}"]


def init_config() -> NodeConfig:
    return NodeConfig(
        ClusterConfiguration("v1.35.6"), NodeRegistration("cp1", cri_socket=SOCKET), LocalAPIEndpoint("10.0.0.1")
    )


IMAGE_REFS = tuple(image.ref for image in images.list_images(init_config().cluster, RELEASE))


def test_pull_images_for_config_images_pull() -> None:
    report = Report(io.StringIO(), verbosity=1)
    host = crictl_host(pulling(*IMAGE_REFS))
    names = image_pulls.pull_images(host, init_config(), RELEASE, report)
    assert names == IMAGE_REFS
    assert pulls(host) == list(names)
    assert isinstance(report.stream, io.StringIO)
    assert "pulling registry.k8s.io/etcd:3.6.6-0 (7 of 7)" in report.stream.getvalue()


def test_pull_images_names_all_that_did_not_come() -> None:
    host = crictl_host(pulling(*IMAGE_REFS, answer=fatal("not found")))
    with pytest.raises(HostError) as caught:
        image_pulls.pull_images(host, init_config(), RELEASE, Report(io.StringIO()))
    assert caught.value.code == "images-not-pulled"
    assert caught.value.what == "7 of 7 images could not be pulled"
    assert len(caught.value.details) == 7


# ---- containers

PS = {
    "containers": [
        {
            "id": "aaa",
            "metadata": {"name": "etcd", "attempt": 2},
            "image": {"image": "sha256:1", "userSpecifiedImage": "r/etcd:1"},
            "state": "CONTAINER_EXITED",
            "createdAt": "1700000000000000001",
            "labels": {"io.kubernetes.pod.name": "etcd-cp1", "io.kubernetes.pod.namespace": "kube-system"},
        },
        {
            "id": "bbb",
            "metadata": {"name": "etcd", "attempt": 3},
            "image": {"image": "sha256:1"},
            "state": "CONTAINER_RUNNING",
            "createdAt": "1700000000000000005",
            "labels": {"io.kubernetes.pod.name": "etcd-cp1", "io.kubernetes.pod.namespace": "kube-system"},
        },
    ]
}
END = {
    "status": {"id": "aaa", "exitCode": 137, "reason": "OOMKilled", "message": "m", "logPath": "/var/log/pods/x/2.log"}
}


def test_list_containers_newest_first_with_how_they_ended() -> None:
    host = crictl_host({f"{CRICTL} ps -a -o json": json.dumps(PS), f"{CRICTL} inspect aaa": json.dumps(END)})
    running, ended = containers.list_containers(host, SOCKET)
    assert (running.id, running.state, running.attempt, running.exit_code) == ("bbb", "running", 3, None)
    assert running.created_ns == 1700000000000000005
    assert ended == containers.ContainerInfo(
        "aaa", "etcd", "exited", 2, 1700000000000000001, "r/etcd:1", "etcd-cp1", "kube-system", 137, "OOMKilled", "m",
        "/var/log/pods/x/2.log",
    )  # fmt: skip


def test_list_containers_by_name_asks_for_that_name_alone() -> None:
    asked: list[tuple[str, ...]] = []

    def answer(argv: tuple[str, ...]) -> CommandResult:
        asked.append(argv)
        return CommandResult(argv, 0, '{"containers": []}')

    assert containers.list_containers(crictl_host({f"{CRICTL} ps": answer}), SOCKET, name="kube-apiserver") == []
    assert asked[0][-2:] == ("--name", r"^kube\-apiserver$")


def test_list_containers_never_raises() -> None:
    assert containers.list_containers(crictl_host({f"{CRICTL} ps": failed("boom")}), SOCKET) == []
    assert containers.list_containers(FakeHost(), SOCKET) == []
    broken = crictl_host({f"{CRICTL} ps": json.dumps(PS), f"{CRICTL} inspect": failed("gone")})
    assert [item.exit_code for item in containers.list_containers(broken, SOCKET)] == [None, None]


def ctr_host() -> FakeHost:
    record = {"Metadata": {"Config": {"metadata": {"attempt": 4}}, "LogPath": "/var/log/pods/x/4.log"}}
    value = base64.b64encode(json.dumps(record).encode()).decode()
    labels = {
        "io.kubernetes.container.name": "etcd",
        "io.kubernetes.pod.name": "etcd-cp1",
        "io.kubernetes.pod.namespace": "kube-system",
    }
    info = {
        "Labels": labels,
        "Image": "r/etcd:1",
        "Extensions": {"io.cri-containerd.container.metadata": {"value": value}},
    }
    return FakeHost(
        programs={"ctr"},
        files={"/var/log/pods/x/4.log": b"2026-01-01T00:00:00Z stderr F last\n"},
        answers={
            f"{CTR} tasks ls": "TASK    PID    STATUS\naaa     42     RUNNING\n",
            f"{CTR} containers ls -q": "aaa\nsandbox\n",
            f"{CTR} containers info aaa": json.dumps(info),
            f"{CTR} containers info sandbox": json.dumps({"Labels": {}}),
        },
    )


def test_containers_through_ctr() -> None:
    (found,) = containers.list_containers(ctr_host(), SOCKET)
    assert (found.id, found.name, found.state, found.attempt) == ("aaa", "etcd", "running", 4)
    assert (found.pod, found.namespace, found.log_path) == ("etcd-cp1", "kube-system", "/var/log/pods/x/4.log")
    assert containers.list_containers(ctr_host(), SOCKET, name="other") == []
    assert containers.container_logs(ctr_host(), SOCKET, "aaa") == ["last"]


def test_container_logs_keep_the_order_and_lose_the_stamp() -> None:
    log = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P two\n2026-01-01T00:00:02Z stdout F \n"
    host = crictl_host({f"{CRICTL} inspect aaa": json.dumps(END)}, files={"/var/log/pods/x/2.log": log})
    assert containers.container_logs(host, SOCKET, "aaa", lines=2) == ["two", ""]


def test_container_logs_from_crictl_where_there_is_no_file() -> None:
    host = crictl_host(
        {f"{CRICTL} inspect": failed("x"), f"{CRICTL} logs --tail 5 aaa": CommandResult((), 0, "a\n", "b\n")}
    )
    assert containers.container_logs(host, SOCKET, "aaa", lines=5) == ["a", "b"]
    assert containers.container_logs(crictl_host(), SOCKET, "aaa") == []
    assert containers.container_logs(FakeHost(), SOCKET, "aaa") == []


def test_socket_path() -> None:
    assert crictl.socket_path("unix:///run/x.sock") == crictl.socket_path("/run/x.sock") == Path("/run/x.sock")


# ---- removing pods


def removing_host(listings: list[Answer], removals: list[Answer]) -> FakeHost:
    def next_of(answers: list[Answer], argv: tuple[str, ...]) -> CommandResult:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        assert isinstance(answer, (str, CommandResult))
        return answer if isinstance(answer, CommandResult) else CommandResult(argv, 0, answer)

    return crictl_host(
        {
            f"{CRICTL} pods -q": lambda argv: next_of(listings, argv),
            f"{CRICTL} rmp": lambda argv: next_of(removals, argv),
            f"{CRICTL} stopp a": "",
            f"{CRICTL} stopp b": "",
            f"{CRICTL} stopp late": "",
        }
    )


def test_a_pod_whose_container_is_starting_is_removed_a_moment_later() -> None:
    starting = fatal("failed to remove container: container is in starting state, can't be removed")
    host = removing_host(["a\nb\n", "a\n", ""], [starting, "", ""])
    assert containers.remove_pods(host, SOCKET) == []
    removed = [change.split()[-1] for change in host.changes if " rmp " in change]
    assert removed == ["a", "b", "a"]


def test_a_pod_that_appears_after_the_first_look_is_removed_too() -> None:
    host = removing_host(["a\n", "late\n", ""], [""])
    assert containers.remove_pods(host, SOCKET) == []
    assert [change.split()[-1] for change in host.changes if " rmp " in change] == ["a", "late"]


def test_a_pod_that_cannot_be_removed_is_told_with_its_reason() -> None:
    host = removing_host(["a\n"], [fatal("device or resource busy")])
    (failure,) = containers.remove_pods(host, SOCKET)
    assert failure.startswith("crictl rmp -f a: ") and "device or resource busy" in failure
    assert host.ticks >= containers.REMOVAL_TIMEOUT_S


def test_a_runtime_that_does_not_answer_is_no_node_without_pods() -> None:
    host = removing_host([fatal("connection refused")], [""])
    (failure,) = containers.remove_pods(host, SOCKET)
    assert "connection refused" in failure
    assert containers.remove_pods(FakeHost(), SOCKET) == []


def test_pods_that_appear_for_ever_end_the_attempts() -> None:
    host = removing_host(["a\n"], [""])

    def stop(argv: tuple[str, ...]) -> CommandResult:
        host.sleep(1)
        return CommandResult(argv, 0)

    host.answers[f"{CRICTL} stopp a"] = stop
    (failure,) = containers.remove_pods(host, SOCKET)
    assert "another kubelet" in failure
