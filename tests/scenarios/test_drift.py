"""kb init on a node where something was changed: who changed it, the configuration or somebody on the node, is told by field,
and what lies in the record is no secret."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kubeup.paths import Paths
from tests.fake_cluster import ClusterHost

from .scenario import FLAGS, run_init

PATHS = Paths()
APISERVER, KUBELET = PATHS.manifest("kube-apiserver"), PATHS.kubelet_config
STATIC_PODS = ("etcd/local", "control-plane/apiserver", "control-plane/controller-manager", "control-plane/scheduler")


class ProxiedHost(ClusterHost):
    """A machine with an environment."""

    variables: Mapping[str, str] = {}

    def environ(self) -> Mapping[str, str]:
        return self.variables


@pytest.fixture
def host(tmp_path: Path) -> ProxiedHost:
    made = ProxiedHost(tmp_path)
    run_init(made)
    return made


def again(host: ClusterHost, **flags: Any) -> tuple[dict[str, str], str]:
    """phase -> status of a second init, and what it said."""
    log = io.StringIO()
    result = run_init(host, flags={**FLAGS, **flags}, log=log)
    return {outcome.name: outcome.status for outcome in result.phases}, log.getvalue()


def edit(host: ClusterHost, path: Path, old: str, new: str) -> None:
    text = host.read_text(path)
    assert old in text
    host.write_file(path, text.replace(old, new), mode=0o600)


def test_a_proxy_of_the_machine_s_is_another_configuration_and_no_drift(host: ProxiedHost) -> None:
    host.variables = {"HTTP_PROXY": "http://10.0.0.1:3128"}
    statuses, said = again(host)
    assert statuses["control-plane/apiserver"] == "done" and "HTTP_PROXY" in host.read_text(APISERVER)
    assert "drift" not in said
    line = next(line for line in said.splitlines() if "control-plane/apiserver: " in line)
    assert (
        f"{APISERVER} spec.containers[kube-apiserver].env[HTTP_PROXY]" in line and "changed since the last run" in line
    )


@pytest.mark.parametrize("flags", [{"apiserver-cert-extra-sans": "x.example"}, {"node-name": "cp1"}, {"soak": "2s"}])
def test_what_the_flags_change_is_never_drift_of_static_pods(host: ProxiedHost, flags: dict[str, Any]) -> None:
    _, said = again(host, **flags)
    assert not [line for line in said.splitlines() if "drift" in line and any(name in line for name in STATIC_PODS)]


def test_what_somebody_edited_is_drift_by_field(host: ProxiedHost) -> None:
    edit(host, APISERVER, "--authorization-mode=Node,RBAC", "--authorization-mode=AlwaysAllow")
    statuses, said = again(host)
    assert (
        f"control-plane/apiserver: drift: {APISERVER}: spec.containers[kube-apiserver].command --authorization-mode is "
        "AlwaysAllow, not Node,RBAC: applying it again"
    ) in said
    assert [name for name, status in statuses.items() if status == "done"] == ["control-plane/apiserver"]
    assert "--authorization-mode=Node,RBAC" in host.read_text(APISERVER)


def test_a_kubelet_whose_file_was_edited_is_started_again_from_what_is_wanted(host: ProxiedHost) -> None:
    edit(host, KUBELET, "rotateCertificates: true", "rotateCertificates: false")
    host.commands.clear()
    _, said = again(host)
    assert f"kubelet-start: drift: {KUBELET}: rotateCertificates is False, not True" in said
    assert "systemctl restart kubelet" in host.commands


def test_without_a_record_neither_is_claimed(host: ProxiedHost) -> None:
    """As on a node of before: what differs is named, and whose doing it is, is not."""
    host.remove_tree(PATHS.records)
    state = json.loads(host.read_text(PATHS.state))
    for entry in state["phases"].values():
        entry["inputs"] = {}
    host.write_file(PATHS.state, json.dumps(state), mode=0o600)
    edit(host, APISERVER, "--authorization-mode=Node,RBAC", "--authorization-mode=AlwaysAllow")
    statuses, said = again(host)
    line = next(line for line in said.splitlines() if "control-plane/apiserver: " in line)
    assert "--authorization-mode is AlwaysAllow, not Node,RBAC" in line
    assert "drift" not in line and "since the last run" not in line
    assert statuses["control-plane/apiserver"] == "done" and host.list_dir(PATHS.records) == ["000001.json"]


def test_the_record_holds_contents_and_no_secret(host: ProxiedHost) -> None:
    (name,) = host.list_dir(PATHS.records)
    text = host.read_text(PATHS.records / name)
    record = json.loads(text)
    assert str(APISERVER) in record["steps"]["init/control-plane/apiserver"]
    assert host.read_text(APISERVER) in record["contents"].values()
    assert "PRIVATE KEY" not in text and "0123456789abcdef" not in text and "client-key-data" not in text
    found = host.stat(PATHS.records / name)
    assert found is not None and found.mode == 0o600


def test_a_run_that_changes_nothing_makes_no_generation(host: ProxiedHost) -> None:
    before = {name: host.read_bytes(PATHS.records / name) for name in host.list_dir(PATHS.records)}
    again(host)
    assert {name: host.read_bytes(PATHS.records / name) for name in host.list_dir(PATHS.records)} == before


def test_a_damaged_record_stops_nobody(host: ProxiedHost) -> None:
    for name in host.list_dir(PATHS.records):
        host.write_file(PATHS.records / name, "{", mode=0o600)
    statuses, said = again(host)
    assert set(statuses.values()) <= {"unchanged", "skipped", "done"} and "drift" not in said
    edit(host, APISERVER, "--authorization-mode=Node,RBAC", "--authorization-mode=AlwaysAllow")
    _, said = again(host)
    # the plan is the same as the one that was done: somebody did it on the node
    assert "control-plane/apiserver: drift: " in said
