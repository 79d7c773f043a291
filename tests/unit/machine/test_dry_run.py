"""The host whose changes are only planned."""

from __future__ import annotations

import json
from pathlib import Path

from kubeup.cluster.api import Api, Identity
from kubeup.machine.dry_run import DryRunHost
from kubeup.machine.http import Tls
from tests.fake_cluster import ClusterHost, FakeCluster
from tests.fake_host import FakeHost

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "n"}, "data": {"a": "1"}}


def test_later_looks_see_what_was_planned() -> None:
    dry = DryRunHost(FakeHost(files={"/a/old": b"1"}))
    assert dry.write_file(Path("/a/new"), "2", mode=0o600)
    assert not dry.write_file(Path("/a/new"), "2", mode=0o600)
    assert dry.list_dir(Path("/a")) == ["new", "old"]
    assert dry.remove(Path("/a/old")) and not dry.exists(Path("/a/old"))
    stat = dry.stat(Path("/a/new"))
    assert stat and stat.mode == 0o600 and dry.read_text(Path("/a/new")) == "2"
    assert [step.kind for step in dry.plan] == ["write", "remove"]


def test_a_diff_is_shown_and_a_secret_is_not() -> None:
    dry = DryRunHost(FakeHost(files={"/a/x.yaml": b"one\ntwo\n"}))
    dry.write_file(Path("/a/x.yaml"), "one\nthree\n")
    dry.write_file(Path("/a/y.key"), "-----BEGIN RSA PRIVATE KEY-----\nabc\n")
    assert "-two" in dry.plan[0].diff and "+three" in dry.plan[0].diff
    assert dry.plan[1].diff == ""


def test_an_object_that_is_as_wanted_is_not_in_the_plan(tmp_path: Path) -> None:
    cluster = FakeCluster()
    api = Api(ClusterHost(tmp_path, cluster), Identity("https://10.0.0.11:6443", Tls()))
    api.apply({**CONFIG_MAP, "data": {"a": "1", "other": "x"}})
    before = json.dumps(cluster.objects)
    dry = DryRunHost(ClusterHost(tmp_path, cluster))
    planned = Api(dry, api.identity)
    assert not planned.apply(CONFIG_MAP)
    assert dry.plan == []
    assert planned.apply({**CONFIG_MAP, "data": {"a": "2"}})
    assert dry.plan[0].what.endswith("/api/v1/namespaces/n/configmaps/x")
    assert '-  a: "1"' in dry.plan[0].diff and '+  a: "2"' in dry.plan[0].diff and "other" not in dry.plan[0].diff
    assert json.dumps(cluster.objects) == before


def test_a_plan_shows_no_secret_that_stands_near_a_change() -> None:
    before = b'[a]\n  password = "topsecret"\n  x = 1\n[b]\n  Authorization = ["Basic dG9wOnNlY3JldA=="]\n  sandbox_image = "old"\n'
    host = DryRunHost(FakeHost(files={"/etc/containerd/config.toml": before}))
    host.write_file(Path("/etc/containerd/config.toml"), before.replace(b"old", b"new").replace(b"x = 1", b"x = 2"))
    diff = host.plan[-1].diff
    assert '-  sandbox_image = "old"' in diff and '+  sandbox_image = "new"' in diff and "+  x = 2" in diff
    assert "topsecret" not in diff and "dG9wOnNlY3JldA" not in diff


def test_a_command_that_only_looks_waits_for_what_others_do() -> None:
    machine = FakeHost()
    began = machine.ticks
    planning, looking = DryRunHost(machine), DryRunHost(machine, waits=True)
    planning.sleep(5)
    assert machine.ticks == began and planning.monotonic() == began + 5
    looking.sleep(5)
    assert machine.ticks == began + 5 == looking.monotonic()
