"""containerd's configuration is mended line by line; what a person wrote stays; a mend that does not hold is not made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup import runtime, runtimefix
from kubeup.errors import HostError
from kubeup.host import CommandResult
from kubeup.runtimefix import Setting, Wanted
from tests.fake_host import FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
CONFIG = str(runtimefix.CONFIG)
OLD = "plugins", "io.containerd.grpc.v1.cri"
PAUSE = "registry.k8s.io/pause:3.10.1"

DOCKERS = """\
#   Copyright 2018-2022 Docker Inc.

disabled_plugins = ["cri"]

#root = "/var/lib/containerd"
"""
DEBIANS = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "k8s.gcr.io/pause:3.6" # old
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""


# ---- the text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('disabled_plugins = ["cri"]\n', "disabled_plugins = []\n"),
        ("disabled_plugins = ['io.containerd.grpc.v1.cri']\n", "disabled_plugins = []\n"),
        ('disabled_plugins = ["cri", "aufs"]\n', 'disabled_plugins = ["aufs"]\n'),
        ('disabled_plugins = ["aufs", "cri"]\n', 'disabled_plugins = ["aufs"]\n'),
        ('disabled_plugins = [\n  "aufs",\n  "cri",\n]\n', 'disabled_plugins = [\n  "aufs"]\n'),
        ('disabled_plugins = ["critical"]\n', 'disabled_plugins = ["critical"]\n'),
        ('#disabled_plugins = ["cri"]\n', '#disabled_plugins = ["cri"]\n'),
    ],
)
def test_the_cri_is_enabled_and_nothing_else(before: str, after: str) -> None:
    assert runtimefix.enable_cri(before) == after
    assert runtimefix.enable_cri(after) == after


def test_a_line_is_changed_in_its_place() -> None:
    mended = runtimefix.mend_text(DEBIANS, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], schema=2)
    assert mended == DEBIANS.replace('"k8s.gcr.io/pause:3.6" # old', f'"{PAUSE}"')


def test_a_line_is_added_to_its_table() -> None:
    mended = runtimefix.mend_text(DEBIANS, [Setting(OLD, "restrict_oom_score_adj", "true", "")], schema=2)
    assert mended.splitlines()[3:5] == ['  [plugins."io.containerd.grpc.v1.cri"]', "    restrict_oom_score_adj = true"]
    assert runtime.parse_dumped_toml(mended)["plugins"][OLD[1]]["restrict_oom_score_adj"] is True


def test_a_table_is_added_at_the_end() -> None:
    table = (*OLD, "containerd", "runtimes", "runc", "options")
    mended = runtimefix.mend_text(DEBIANS, [Setting(table, "SystemdCgroup", "true", "")], schema=2)
    assert mended.startswith(DEBIANS)
    assert mended.endswith(
        '\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n'
    )


def test_both_kinds_of_quotes_name_one_table() -> None:
    text = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = 'x'\n"
    table = ("plugins", "io.containerd.cri.v1.images", "pinned_images")
    mended = runtimefix.mend_text(text, [Setting(table, "sandbox", f'"{PAUSE}"', "")], schema=3)
    assert mended == text.replace("'x'", f'"{PAUSE}"')


def test_a_setting_of_another_table_is_not_touched() -> None:
    text = 'version = 2\n[other]\n  sandbox_image = "mine"\n'
    mended = runtimefix.mend_text(text, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], schema=2)
    assert 'sandbox_image = "mine"' in mended
    assert runtime.parse_dumped_toml(mended)["plugins"][OLD[1]]["sandbox_image"] == PAUSE


def test_a_file_without_a_version_gets_one() -> None:
    mended = runtimefix.mend_text(DOCKERS, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], schema=2)
    assert mended.startswith("version = 2\n#   Copyright")
    assert runtime.parse_dumped_toml(mended)["disabled_plugins"] == []


# ---- acting


def make_host(text: str, *, imported: str = "", comes_back: bool = True) -> FakeHost:
    host = FakeHost(programs={"containerd", "crictl", "systemctl"}, files={"/run/containerd/containerd.sock": b""})
    if text:
        host.files[CONFIG] = text.encode()
    loaded = {"text": text}

    def dump(argv: tuple[str, ...]) -> CommandResult:
        path = argv[2] if argv[1] == "--config" else CONFIG
        own = runtime.parse_dumped_toml(host.files[path].decode())
        cri: dict[str, Any] = {
            "sandbox_image": "k8s.gcr.io/pause:3.6",
            "restrict_oom_score_adj": False,
            "registry": {"config_path": ""},
        }
        runc: dict[str, Any] = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": False}}
        given = own.get("plugins", {}).get(OLD[1], {})
        cri.update({key: value for key, value in given.items() if key != "containerd"})
        runc = given.get("containerd", {}).get("runtimes", {}).get("runc", runc)
        if imported:
            cri["sandbox_image"] = imported
        lines = [f'[plugins."{OLD[1]}"]', f'sandbox_image = "{cri["sandbox_image"]}"']
        lines += [f"restrict_oom_score_adj = {str(cri['restrict_oom_score_adj']).lower()}"]
        lines += [f'[plugins."{OLD[1]}".registry]', f'config_path = "{cri["registry"]["config_path"]}"']
        lines += [f'[plugins."{OLD[1]}".containerd]', 'default_runtime_name = "runc"']
        driver = str(runc.get("options", {}).get("SystemdCgroup", False)).lower()
        lines += [f'[plugins."{OLD[1]}".containerd.runtimes.runc.options]', f"SystemdCgroup = {driver}"]
        return CommandResult(argv, 0, "version = 2\n" + "\n".join(lines) + "\n")

    def restart(argv: tuple[str, ...]) -> CommandResult:
        loaded["text"] = host.files.get(CONFIG, b"").decode()
        return CommandResult(argv, 0)

    def info(argv: tuple[str, ...]) -> CommandResult:
        is_bad = not comes_back and loaded["text"] != text
        if is_bad or '"cri"' in loaded["text"]:
            return CommandResult(argv, 1, stderr="rpc error: code = Unimplemented desc = unknown service runtime.v1")
        ready = {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}
        return CommandResult(argv, 0, json.dumps(ready) if "info" in argv else "{}")

    host.answers.update(
        {
            "containerd --config": dump,
            "containerd config dump": dump,
            "containerd config default": "version = 2\n",
            "systemctl restart containerd": restart,
            "crictl": info,
        }
    )
    return host


ALL = Wanted(PAUSE, systemd_cgroup=True, restrict_oom_score_adj=True)


def test_everything_is_mended_at_once_and_a_second_run_changes_nothing() -> None:
    host = make_host(DOCKERS)
    told = runtimefix.fix_runtime(host, SOCKET, ALL)
    assert told == (
        f"{CONFIG} line 3 disabled the CRI plugin",
        "the sandbox image is k8s.gcr.io/pause:3.6",
        "the cgroup driver is cgroupfs",
        "this machine does not let runc lower oom_score_adj",
    )
    text = host.files[CONFIG].decode()
    assert '"cri"' not in text.partition("[plugins")[0]
    assert "Copyright 2018-2022 Docker Inc." in text
    assert "run systemctl restart containerd" in host.changes
    host.changes.clear()
    assert runtimefix.fix_runtime(host, SOCKET, ALL) == ()
    assert [change for change in host.changes if "kb-trial" not in change] == []
    assert not any("kb-trial" in name for name in host.files)


def test_without_a_file_one_is_written() -> None:
    host = make_host("")
    assert "the cgroup driver is cgroupfs" in runtimefix.fix_runtime(host, SOCKET, ALL)
    assert host.files[CONFIG].decode().startswith("version = 2\n")


def test_an_imported_file_that_wins_is_not_fought() -> None:
    host = make_host(DEBIANS, imported="other/pause:1")
    with pytest.raises(HostError) as caught:
        runtimefix.fix_runtime(host, SOCKET, ALL)
    assert caught.value.code == "runtime-not-fixable"
    assert "sandbox_image would not be as it should be" in caught.value.cause
    assert host.files[CONFIG].decode() == DEBIANS


def test_a_containerd_that_does_not_come_back_gets_its_old_file() -> None:
    host = make_host(DEBIANS, comes_back=False)
    with pytest.raises(HostError) as caught:
        runtimefix.fix_runtime(host, SOCKET, ALL)
    assert caught.value.code == "runtime-fix-failed"
    assert host.files[CONFIG].decode() == DEBIANS
    assert runtime.probe_runtime(host, SOCKET).is_ready


def test_schema_1_with_tables_is_left_alone() -> None:
    host = make_host('[plugins.cri]\n  sandbox_image = "x"\n')
    with pytest.raises(HostError) as caught:
        runtimefix.fix_runtime(host, SOCKET, ALL)
    assert "containerd config migrate" in caught.value.cause


def test_another_runtime_is_left_alone() -> None:
    host = make_host(DEBIANS)
    with pytest.raises(HostError) as caught:
        runtimefix.fix_runtime(host, "unix:///var/run/crio/crio.sock", ALL)
    assert caught.value.code == "runtime-not-fixable"


def test_schema_3_has_its_own_tables() -> None:
    dump = {
        "version": 3,
        "plugins": {
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": "x"}, "registry": {"config_path": ""}},
            "io.containerd.cri.v1.runtime": {
                "restrict_oom_score_adj": False,
                "containerd": {
                    "default_runtime_name": "runc",
                    "runtimes": {"runc": {"options": {"SystemdCgroup": False}}},
                },
            },
        },
    }
    found = runtimefix.plan_settings(3, dump, Wanted(PAUSE, True, True, "/etc/containerd/certs.d"))
    assert [(".".join(item.table), item.key, item.value) for item in found] == [
        ("plugins.io.containerd.cri.v1.images.pinned_images", "sandbox", f'"{PAUSE}"'),
        ("plugins.io.containerd.cri.v1.runtime.containerd.runtimes.runc", "runtime_type", '"io.containerd.runc.v2"'),
        ("plugins.io.containerd.cri.v1.runtime.containerd.runtimes.runc.options", "SystemdCgroup", "true"),
        ("plugins.io.containerd.cri.v1.runtime", "restrict_oom_score_adj", "true"),
        ("plugins.io.containerd.cri.v1.images.registry", "config_path", '"/etc/containerd/certs.d"'),
    ]


def test_a_registry_folder_is_added_to_those_that_are_read() -> None:
    certs = Wanted(registry_config_path="/etc/containerd/certs.d")

    def plan(registry: dict[str, object]) -> list[str]:
        dump = {"plugins": {"io.containerd.grpc.v1.cri": {"registry": registry}}}
        return [setting.value for setting in runtimefix.plan_settings(2, dump, certs)]

    assert plan({}) == ['"/etc/containerd/certs.d"']
    assert plan({"config_path": "/etc/docker/certs.d"}) == ['"/etc/containerd/certs.d:/etc/docker/certs.d"']
    assert plan({"config_path": "/etc/docker/certs.d:/etc/containerd/certs.d"}) == []
    # containerd does not start with both
    assert plan({"mirrors": {"docker.io": {"endpoint": ["http://m"]}}}) == []
    assert plan({"configs": {"r.example": {"tls": {"ca_file": "/x"}}}}) == []
    assert plan({"configs": {"r.example": {"auth": {"username": "u"}}}}) == ['"/etc/containerd/certs.d"']


@pytest.mark.parametrize(
    ("schema", "plugin", "cni", "key", "value"),
    [
        (2, "io.containerd.grpc.v1.cri", {"bin_dir": "/usr/lib/cni"}, "bin_dir", '"/opt/cni/bin"'),
        (3, "io.containerd.cri.v1.runtime", {"bin_dir": "/usr/lib/cni"}, "bin_dir", '"/opt/cni/bin"'),
        (3, "io.containerd.cri.v1.runtime", {"bin_dirs": ["/usr/lib/cni"]}, "bin_dirs", '["/opt/cni/bin"]'),
    ],
)
def test_cni_plugins_are_looked_for_where_they_are(
    schema: int, plugin: str, cni: dict[str, Any], key: str, value: str
) -> None:
    """Debian's containerd looks in Debian's folder; kubernetes-cni has the plugins in upstream's."""
    effective = {"version": schema, "plugins": {plugin: {"cni": cni}}}
    (found,) = runtimefix.plan_settings(schema, effective, Wanted(cni_bin_dir="/opt/cni/bin"))
    assert (found.table, found.key, found.value) == (("plugins", plugin, "cni"), key, value)
    assert "/usr/lib/cni" in found.why
    cni[key] = ["/x", "/opt/cni/bin"] if key == "bin_dirs" else "/opt/cni/bin"
    assert runtimefix.plan_settings(schema, effective, Wanted(cni_bin_dir="/opt/cni/bin")) == ()
