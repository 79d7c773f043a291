"""kb upgrade plan and diff, on a node that kb init made: nothing is changed by looking, and a plan's file is good until something moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.commands import upgrade_outlook
from kubeup.errors import PreflightError, UsageError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from kubeup.paths import Paths
from kubeup.upgrade import available, kept
from tests.unit.commands.test_launcher import INIT, Machine

NOW, NEXT = "v1.35.6", "v1.36.3"
SCHEDULER = Paths().manifest("kube-scheduler")
METRICS = b"process_start_time_seconds 1.7e9\n"


class Running(Machine):
    """A node whose kubelet, API server and etcd say their versions."""

    kubelet, server, member = NOW, NOW, "3.6.6"
    images = ""

    def http_get(self, url: str, **kwargs: Any) -> HttpResponse:
        if url.endswith("/version"):
            return HttpResponse(200, json.dumps({"gitVersion": self.server}).encode())
        if url.endswith(":6443/metrics"):
            return HttpResponse(200, METRICS)
        answer = super().http_get(url, **kwargs)
        if url.endswith("/api/v1/nodes"):
            found = json.loads(answer.body)
            for node in found["items"]:
                status = node.setdefault("status", {})
                status["nodeInfo"] = {"kubeletVersion": self.kubelet, "containerRuntimeVersion": "containerd://2.1.4"}
                status["conditions"] = [{"type": "Ready", "status": "True"}]
            return HttpResponse(answer.status, json.dumps(found).encode())
        return answer

    def http_ask(self, url: str, body: bytes, **kwargs: Any) -> HttpResponse:
        answer = super().http_ask(url, body, **kwargs)
        if not url.endswith("/maintenance/status"):
            return answer
        return HttpResponse(200, json.dumps({**json.loads(answer.body), "version": self.member}).encode())


@pytest.fixture
def machine(tmp_path: Path, capsys: Any) -> Running:
    host = Running(tmp_path)
    assert run(host, *INIT) == 0
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def plan(host: Machine, capsys: Any, *words: str, status: int = 0) -> dict[str, Any]:
    before = {path: host.read_bytes(path) for path in host.files()}
    code = run(host, "upgrade", "plan", *words, "-o", "json")
    out = capsys.readouterr()
    assert code == status, out.out + out.err
    if "--out" not in words:
        assert {path: host.read_bytes(path) for path in host.files()} == before
    found: dict[str, Any] = json.loads(out.out)
    return found


def names(found: dict[str, Any]) -> set[str]:
    return {one["name"] for one in found["objections"] if one["weighs"] != "said"}


def test_a_plan_of_the_next_minor(machine: Running, capsys: Any) -> None:
    found = plan(machine, capsys, NEXT)
    assert (found["kind"], found["from"], found["target"], found["blocks"], found["drains"]) == (
        "UpgradePlan",
        NOW,
        NEXT,
        False,
        True,
    )
    rows = {
        (one["component"], one["node"]): (one["current"], one["target"], one["restarts"]) for one in found["components"]
    }
    assert rows["etcd", "cp1"] == ("3.6.6", "3.6.8", True)
    assert rows["kube-apiserver", "cp1"] == rows["kubelet", "cp1"] == rows["kube-proxy", ""] == (NOW, NEXT, True)
    assert rows["container-runtime", "cp1"] == ("containerd 2.1.4", "containerd 2.1.4", False)
    assert rows["coredns", ""] == ("v1.13.1", "v1.14.2", True)
    assert found["gaps"][0]["seconds"] == 15
    assert found["lines"] == [{"node": "cp1", "command": f"kb upgrade apply {NEXT}"}]
    assert found["differences"] == [] and found["removedApis"] == []


def test_the_lines_say_where_programs_come_from(machine: Running, capsys: Any) -> None:
    found = plan(machine, capsys, NEXT, "--packages", "download")
    assert found["lines"] == [{"node": "cp1", "command": f"kb upgrade apply {NEXT} --packages download"}]


def test_a_kubelet_that_was_fetched_is_asked_itself(machine: Running, capsys: Any) -> None:
    path = str(kept.programs_folder(Paths()) / "kubelet")
    machine.write_file(Path(path), "")
    machine.write_file(Path("/etc/default/kubelet"), 'KUBELET_EXTRA_ARGS="--frobnicate=1"\n')
    real = machine.query

    def query(argv: Any, **kwargs: Any) -> CommandResult:
        if argv[0] != path:
            return real(argv, **kwargs)
        if "--frobnicate=1" in argv:
            return CommandResult(tuple(argv), 1, "", "Error: unknown flag: --frobnicate")
        return CommandResult(tuple(argv), 0, f"Kubernetes {NEXT}\n")

    machine.query = query  # type: ignore[method-assign,assignment]
    assert names(plan(machine, capsys, NEXT, status=3)) == {"kubelet-flag-refused"}


def test_the_text(machine: Running, capsys: Any) -> None:
    assert run(machine, "upgrade", "plan", NEXT) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Kubernetes {NOW} -> {NEXT}\n\nCOMPONENT ")
    assert "Nothing blocks it. Run, in this order:\n\nNODE      COMMAND\ncp1 " in told


def test_certificates_that_are_renewed_and_those_that_are_not(machine: Running, capsys: Any) -> None:
    def read() -> dict[str, str]:
        found = plan(machine, capsys, NEXT)["objections"]
        return {one["name"]: one["what"] for one in found if one["name"].startswith("certificates-")}

    assert read() == {"certificates-renewed": "11 of the certificates of cp1 are renewed"}
    machine.remove(Paths().pki / "front-proxy-ca.key")
    assert read() == {
        "certificates-renewed": "10 of the certificates of cp1 are renewed",
        "certificates-not-renewed": "1 of the certificates of cp1 is not renewed",
    }
    machine.write_file(Paths().pki / "apiserver.crt", "no certificate\n")
    assert "certificate-unreadable" in {one["name"] for one in plan(machine, capsys, NEXT)["objections"]}


def test_a_version_that_cannot_follow(machine: Running, capsys: Any) -> None:
    assert names(plan(machine, capsys, "v1.37.0", status=3)) == {"version-too-high"}
    assert "downgrade" in names(plan(machine, capsys, "v1.34.9", status=3))
    assert run(machine, "upgrade", "plan", "v1.99.0") == 2
    assert "this kb deploys 1.31 to 1.37" in capsys.readouterr().err


def test_without_a_version_the_newest_that_is_here(
    machine: Running, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available, "find_official", lambda *_: [])
    monkeypatch.setattr(available, "find_in_runtime", lambda *_: iter(()))
    assert run(machine, "upgrade", "plan") == 2
    assert "no version newer than v1.35.6 was found" in capsys.readouterr().err
    rows = [available.Found(upgrade_outlook.parse_target(machine, one), "here") for one in ("v1.35.9", NEXT)]
    monkeypatch.setattr(available, "find_in_runtime", lambda *_: iter(rows))
    found = plan(machine, capsys)
    assert (found["target"], found["drains"]) == ("v1.35.9", False)
    assert [one["version"] for one in found["available"]] == ["v1.35.9", NEXT]
    assert run(machine, "upgrade", "plan") == 0
    assert capsys.readouterr().out.startswith("AVAILABLE   FOUND AT\nv1.35.9     here\nv1.36.3     here\n")


# ---- what others changed


def edit(machine: Running) -> None:
    text = machine.read_text(SCHEDULER)
    machine.write_file(SCHEDULER, text.replace("    - kube-scheduler\n", "    - kube-scheduler\n    - --v=3\n"))


def test_a_change_by_hand_wants_a_word(machine: Running, capsys: Any) -> None:
    edit(machine)
    found = plan(machine, capsys, NEXT, status=3)
    assert names(found) == {"hand-edits"}
    assert [(one["manifest"], one["found"], one["isConflict"]) for one in found["differences"]] == [
        ("kube-scheduler", "3", False)
    ]
    assert names(plan(machine, capsys, NEXT, "--hand-edits", "keep")) == set()


def test_diff(machine: Running, capsys: Any) -> None:
    assert run(machine, "upgrade", "diff") == 0
    assert capsys.readouterr().out == f"no static pod of cp1 differs at {NOW}\n"
    edit(machine)
    assert run(machine, "upgrade", "diff", NEXT, "-c", "0") == 0
    out = capsys.readouterr()
    assert f"--- {SCHEDULER}\n+++ new manifest\n" in out.out
    assert f"+    image: registry.k8s.io/kube-scheduler:{NEXT}\n" in out.out
    assert "not of the stored configuration" in out.err and "--v" in out.err
    assert run(machine, "upgrade", "diff", NEXT, "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [one["manifest"] for one in rows] == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
    assert [len(one["edits"]) for one in rows] == [0, 0, 0, 1]


# ---- a plan that is kept


def test_a_plans_file_is_good_until_something_moves(machine: Running, capsys: Any) -> None:
    path = Path("/root/plan.json")
    first = plan(machine, capsys, NEXT, "--out", str(path))
    stat = machine.stat(path)
    assert stat is not None and stat.mode & 0o777 == 0o600
    assert upgrade_outlook.read_plan(machine, path) == (NEXT, first["seen"])
    machine.server = "v1.35.7"
    edit(machine)
    moved = plan(machine, capsys, NEXT, "--hand-edits", "keep")

    class Now:
        seen, target = moved["seen"], NEXT

    with pytest.raises(PreflightError) as caught:
        upgrade_outlook.check_plan(machine, path, outlook=Now())  # type: ignore[arg-type]
    assert caught.value.code == "plan-outdated"
    assert list(caught.value.details) == [
        f"{SCHEDULER} of cp1 has changed",
        "kube-apiserver of cp1 was v1.35.6 and is v1.35.7",
    ]
    Now.seen = {**first["seen"], upgrade_outlook.AUTHORITY: "sha256:another"}
    with pytest.raises(PreflightError) as caught:
        upgrade_outlook.check_plan(machine, path, outlook=Now())  # type: ignore[arg-type]
    assert caught.value.code == "plan-elsewhere"
    Now.seen = first["seen"]
    upgrade_outlook.check_plan(machine, path, outlook=Now())  # type: ignore[arg-type]


def test_an_apply_of_a_plan_that_is_outdated_changes_nothing(machine: Running, capsys: Any) -> None:
    plan(machine, capsys, NEXT, "--out", "/root/plan.json")
    machine.server = "v1.35.7"
    before = {path: machine.read_bytes(path) for path in machine.files()}
    assert run(machine, "upgrade", "apply", "/root/plan.json", "--yes") == 3
    told = capsys.readouterr().err
    assert "the plan in /root/plan.json is outdated" in told
    assert "kube-apiserver of cp1 was v1.35.6 and is v1.35.7" in told
    after = {path: machine.read_bytes(path) for path in machine.files()}
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} <= {Paths().lock}
    assert run(machine, "upgrade", "apply", "/root/none.json", "--yes") == 2
    assert "the version to upgrade to, or the file of a plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("stable-1.36",), "see which one it is: kb upgrade plan stable-1.36"),
        (("1.36",), "see which one it is: kb upgrade plan stable-1.36"),
        (("stable",), "see which one it is: kb upgrade plan stable"),
        (("v1.36.x",), "'v1.36.x' is no version, and no such file is here"),
        ((), "it takes one word"),
        (("v1.36.3", "now"), "it takes one word"),
    ],
)
def test_a_word_that_is_no_version_is_named(machine: Running, capsys: Any, words: tuple[str, ...], told: str) -> None:
    assert run(machine, "upgrade", "apply", *words, "--yes") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a: b\n", '{"kind": "UpgradePlan", "seen": {"a": "b"}, "digest": "sha256:0"}'])
def test_a_file_that_is_no_plan(machine: Running, text: str) -> None:
    machine.write_file(Path("/root/plan.json"), text)
    with pytest.raises(UsageError) as caught:
        upgrade_outlook.read_plan(machine, Path("/root/plan.json"))
    assert caught.value.code == "not-a-plan"


def test_a_worker_is_sent_to_a_control_plane(tmp_path: Path, capsys: Any) -> None:
    assert run(Running(tmp_path), "upgrade", "plan", NEXT) == 4
    assert "not-a-control-plane" in capsys.readouterr().err
