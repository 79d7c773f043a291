"""containerd's configuration is mended line by line; what a person wrote stays; a mend that does not hold is not made."""

from __future__ import annotations

import json
import re
from typing import Any, Optional

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import containerd_config, runtime, runtime_fix
from kubeup.node.containerd_config import Naming
from kubeup.node.runtime_fix import Setting, Wanted
from tests.fake_host import FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
CONFIG = str(runtime_fix.CONFIG)
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
    assert runtime_fix.enable_cri(before) == after
    assert runtime_fix.enable_cri(after) == after


def test_a_line_is_changed_in_its_place() -> None:
    mended = runtime_fix.mend_text(DEBIANS, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], version=2)
    assert mended == DEBIANS.replace('"k8s.gcr.io/pause:3.6" # old', f'"{PAUSE}"')


def test_a_line_is_added_to_its_table() -> None:
    mended = runtime_fix.mend_text(DEBIANS, [Setting(OLD, "restrict_oom_score_adj", "true", "")], version=2)
    assert mended.splitlines()[3:5] == ['  [plugins."io.containerd.grpc.v1.cri"]', "    restrict_oom_score_adj = true"]
    assert containerd_config.parse_dumped_toml(mended)["plugins"][OLD[1]]["restrict_oom_score_adj"] is True


def test_a_table_is_added_at_the_end() -> None:
    table = (*OLD, "containerd", "runtimes", "runc", "options")
    mended = runtime_fix.mend_text(DEBIANS, [Setting(table, "SystemdCgroup", "true", "")], version=2)
    assert mended.startswith(DEBIANS)
    assert mended.endswith(
        '\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n'
    )


def test_both_kinds_of_quotes_name_one_table() -> None:
    text = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = 'x'\n"
    table = ("plugins", "io.containerd.cri.v1.images", "pinned_images")
    mended = runtime_fix.mend_text(text, [Setting(table, "sandbox", f'"{PAUSE}"', "")], version=3)
    assert mended == text.replace("'x'", f'"{PAUSE}"')


def test_a_setting_of_another_table_is_not_touched() -> None:
    text = 'version = 2\n[other]\n  sandbox_image = "mine"\n'
    mended = runtime_fix.mend_text(text, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], version=2)
    assert 'sandbox_image = "mine"' in mended
    assert containerd_config.parse_dumped_toml(mended)["plugins"][OLD[1]]["sandbox_image"] == PAUSE


def test_a_file_without_a_version_gets_one() -> None:
    mended = runtime_fix.mend_text(DOCKERS, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")], version=2)
    assert mended.startswith("version = 2\n#   Copyright")
    assert containerd_config.parse_dumped_toml(mended)["disabled_plugins"] == []


# ---- acting


def make_host(text: str, *, imported: str = "", comes_back: bool = True) -> FakeHost:
    host = FakeHost(
        programs={"containerd", "crictl", "systemctl"},
        files={"/run/containerd/containerd.sock": b""},
        accepts={"systemctl reset-failed containerd"},
    )
    if text:
        host.files[CONFIG] = text.encode()
    loaded = {"text": text}

    def dump(argv: tuple[str, ...]) -> CommandResult:
        path = argv[2] if argv[1] == "--config" else CONFIG
        own = containerd_config.parse_dumped_toml(host.files[path].decode())
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
    told = runtime_fix.fix_runtime(host, SOCKET, wanted=ALL)
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
    assert runtime_fix.fix_runtime(host, SOCKET, wanted=ALL) == ()
    assert [change for change in host.changes if "kb-trial" not in change] == []
    assert not any("kb-trial" in name for name in host.files)


def test_without_a_file_one_is_written() -> None:
    host = make_host("")
    assert "the cgroup driver is cgroupfs" in runtime_fix.fix_runtime(host, SOCKET, wanted=ALL)
    assert host.files[CONFIG].decode().startswith("version = 2\n")


def test_an_imported_file_that_wins_is_not_fought() -> None:
    host = make_host(DEBIANS, imported="other/pause:1")
    with pytest.raises(HostError) as caught:
        runtime_fix.fix_runtime(host, SOCKET, wanted=ALL)
    assert caught.value.code == "runtime-not-fixable"
    assert "sandbox_image would not be as it should be" in caught.value.cause
    assert host.files[CONFIG].decode() == DEBIANS


def test_a_containerd_that_does_not_come_back_gets_its_old_file() -> None:
    host = make_host(DEBIANS, comes_back=False)
    with pytest.raises(HostError) as caught:
        runtime_fix.fix_runtime(host, SOCKET, wanted=ALL)
    assert caught.value.code == "runtime-fix-failed"
    assert host.files[CONFIG].decode() == DEBIANS
    assert runtime.probe_runtime(host, SOCKET).is_ready


def test_an_imported_file_is_mended_where_it_is() -> None:
    """With containerd 1 its section takes the place of the one in config.toml."""
    main, extra = b'version = 2\nimports = ["conf.d/*.toml"]\n', "/etc/containerd/conf.d/99-nvidia.toml"
    host = make_host(main.decode())
    host.files[extra] = DEBIANS.replace("version = 2\n", "").encode()
    told = list[str]()
    dump = host.answers["containerd --config"]
    assert callable(dump)

    def dump_of_import(argv: tuple[str, ...]) -> CommandResult:
        text = host.files[argv[2]].decode()
        told.append(text)
        (name,) = re.findall(r'imports = \["(\S+)"\]', text)
        return dump((argv[0], argv[1], name if name in host.files else extra, *argv[3:]))

    host.answers["containerd --config"] = dump_of_import
    assert "the sandbox image is k8s.gcr.io/pause:3.6" in runtime_fix.fix_runtime(host, SOCKET, wanted=Wanted(PAUSE))
    assert host.files[CONFIG] == main
    assert f'sandbox_image = "{PAUSE}"' in host.files[extra].decode()
    assert "/etc/containerd/conf.d/.99-nvidia.toml.kb-trial" in told[-1]


def test_another_runtime_is_left_alone() -> None:
    host = make_host(DEBIANS)
    with pytest.raises(HostError) as caught:
        runtime_fix.fix_runtime(host, "unix:///var/run/crio/crio.sock", wanted=ALL)
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
    found = runtime_fix.plan_settings(3, dump, wanted=Wanted(PAUSE, True, True, "/etc/containerd/certs.d"))
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
        return [setting.value for setting in runtime_fix.plan_settings(2, dump, wanted=certs)]

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
    (found,) = runtime_fix.plan_settings(schema, effective, wanted=Wanted(cni_bin_dir="/opt/cni/bin"))
    assert (found.table, found.key, found.value) == (("plugins", plugin, "cni"), key, value)
    assert "/usr/lib/cni" in found.why
    cni[key] = ["/x", "/opt/cni/bin"] if key == "bin_dirs" else "/opt/cni/bin"
    assert runtime_fix.plan_settings(schema, effective, wanted=Wanted(cni_bin_dir="/opt/cni/bin")) == ()


# ---- under which names


@pytest.mark.parametrize(
    ("text", "own", "naming"),
    [
        ("", 2, Naming(2, 2)),
        ("", 3, Naming(3, 3)),
        ("version = 2\n", 3, Naming(2)),
        ("version = 3\n", 3, Naming(3)),
        ("version = 3\n", 4, Naming(3)),
        ("version = 3\n", 2, Naming(2, 2)),
        ("[grpc]\n  address = '/x'\n[debug]\n  version = 3\n", 2, Naming(2, 2)),
        ("[plugins.'io.containerd.grpc.v1.cri']\n", 2, Naming(2, 2)),
        ("version = 1\n[plugins.'io.containerd.grpc.v1.cri']\n", 3, Naming(2, 2)),
        ("[plugins.'io.containerd.cri.v1.runtime']\n", 3, Naming(3, 3)),
        ("[plugins.cri]\n", 2, Naming(1)),
        ("[plugins.cri]\n", 3, None),
        ("disabled_plugins = ['cri']\n", 2, Naming(2, 2)),
        ("disabled_plugins = ['cri', 'aufs']\n", 2, Naming(1)),
        ("disabled_plugins = ['cri', 'aufs']\n", 3, Naming(3)),
    ],
)
def test_names_take_effect_by_the_version_of_file_and_containerd(text: str, own: int, naming: Optional[Naming]) -> None:
    """As `containerd config dump` of 1.6, 1.7, 2.0, 2.1 and 2.3 has it."""
    assert containerd_config.find_naming(text, own) == naming


def test_the_file_that_the_running_containerd_was_given_is_the_one() -> None:
    host = FakeHost(answers={"systemctl show containerd --property MainPID --value": "77\n"})
    assert containerd_config.find_config(host) == containerd_config.CONFIG
    for words in ("-c\0/usr/share/containerd/config.toml", "--config=/usr/share/containerd/config.toml"):
        host.files["/proc/77/cmdline"] = f"/usr/bin/containerd\0--log-level\0info\0{words}\0".encode()
        assert str(containerd_config.find_config(host)) == "/usr/share/containerd/config.toml"


@pytest.mark.parametrize("unit", ["[", "{a=", "[{a="], ids=["lists", "tables", "both"])
def test_deep_toml_is_a_clear_error(unit: str) -> None:
    for read in (containerd_config.parse_toml, containerd_config.parse_dumped_toml):
        with pytest.raises(ValueError, match=r"too deep|line 1|more than"):
            read("a = " + unit * 5000)


def test_other_bytes_and_line_ends_stay() -> None:
    text = "version = 2\r\n# gr\udcfc\udcdfe\r\n[plugins]\r\n"
    mended = runtime_fix.mend_text(text, [Setting(OLD, "sandbox_image", f'"{PAUSE}"', "")])
    assert mended.startswith(text)
    assert mended.replace("\r\n", "").count("\n") == 0
    assert runtime_fix.mend_text("\ufeff[grpc]\n", [], version=2) == "\ufeffversion = 2\n[grpc]\n"


def test_a_list_over_several_lines_is_replaced_whole() -> None:
    text = "version = 3\n[plugins.a.cni]\n  bin_dirs = [ # [both\n    '/a',\n    '/b'\n  ]\n  conf_dir = '/c'\n"
    mended = runtime_fix.mend_text(text, [Setting(("plugins", "a", "cni"), "bin_dirs", '["/x"]', "")])
    assert mended == "version = 3\n[plugins.a.cni]\n  bin_dirs = [\"/x\"]\n  conf_dir = '/c'\n"


# ---- the handler that counts


@pytest.mark.parametrize(
    ("cri", "table", "driver"),
    [
        ({"default_runtime_name": "nvidia", "runtimes": {"nvidia": {"options": {}}}}, "runtimes.nvidia", "cgroupfs"),
        (
            {
                "default_runtime_name": "runc",
                "default_runtime": {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}},
                "runtimes": {"runc": {}},
            },
            "default_runtime",
            "systemd",
        ),
        ({"default_runtime_name": "kata", "runtimes": {"kata": {"runtime_type": "io.containerd.kata.v2"}}}, "runtimes.kata", None),
    ],
)  # fmt: skip
def test_the_cgroup_driver_is_the_default_handlers(cri: dict[str, Any], table: str, driver: Optional[str]) -> None:
    handler = containerd_config.find_default_handler({"containerd": cri})
    assert handler is not None
    assert (handler.table, handler.cgroup_driver) == (("containerd", *table.split(".")), driver)
    dump = {"version": 2, "plugins": {OLD[1]: {"containerd": cri}}}
    places = [".".join(item.table) for item in runtime_fix.plan_settings(2, dump, wanted=Wanted(systemd_cgroup=True))]
    assert all(f"containerd.{table}" in place for place in places) and bool(places) == (driver == "cgroupfs")


def test_a_handler_that_is_not_there_and_an_unfit_systemd_cgroup() -> None:
    assert containerd_config.find_default_handler({"containerd": {"default_runtime_name": "x", "runtimes": {}}}) is None
    runc = {"runtime_type": "io.containerd.runc.v2", "options": {"SystemdCgroup": True}}
    cri = {"systemd_cgroup": True, "containerd": {"default_runtime_name": "runc", "runtimes": {"runc": runc}}}
    (found,) = runtime_fix.plan_settings(2, {"plugins": {OLD[1]: cri}}, wanted=Wanted(systemd_cgroup=True))
    assert (found.table, found.key, found.value) == (OLD, "systemd_cgroup", "false")
    cri["containerd"] = {"runtimes": {"runc": {"runtime_type": "io.containerd.runtime.v1.linux"}}}
    assert runtime_fix.plan_settings(2, {"plugins": {OLD[1]: cri}}, wanted=Wanted(systemd_cgroup=True)) == ()
