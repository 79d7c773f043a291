"""A renewal restarts what reads a certificate only when it starts, and takes back what cannot be used."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Callable, Optional

import pytest

from kubeup.cluster import api as kubeapi
from kubeup.engine.run import Caller, Run
from kubeup.errors import ClusterError, KbError
from kubeup.machine.http import HttpResponse
from kubeup.node import renewal, unread_certs
from kubeup.phases import renewed_certs
from kubeup.phases.restart_pods import Restarted
from tests.fake_host import FakeHost
from tests.fake_node import PATHS, finished_node, make_context

MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
ALL = tuple(renewal.ROWS.values())
SERVER = "https://10.77.0.11:6443"
VERSION = f"{SERVER}/version"
LEASE = f"{SERVER}/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kb-static-pods"
CONFS = {name: str(PATHS.kubeconfig(name)) for name in ("controller-manager.conf", "scheduler.conf", "admin.conf")}
FAILED = ClusterError("kube-scheduler exited 3 times (code 1)", cause="no such key", remedy="look", code="not-healthy")


@pytest.fixture
def ctx() -> Run:
    host = finished_node()
    host.urls[VERSION] = HttpResponse(200, b"{}")
    api = kubeapi.Api(host, kubeapi.read_identity(host, PATHS.admin_conf, server=SERVER), retry_s=0)
    return dataclasses.replace(make_context(host), caller=Caller.by(api))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The restarts; none has an obstacle, and each succeeds."""
    seen: list[tuple[str, ...]] = []
    script(monkeypatch, seen)
    return seen


def script(
    monkeypatch: pytest.MonkeyPatch,
    seen: list[tuple[str, ...]],
    *,
    errors: tuple[Optional[KbError], ...] = (),
    obstacle: Callable[[str], str] = lambda name: "",
) -> None:
    left = list(errors)

    def restart(ctx: Run, components: tuple[str, ...], **_: Any) -> list[Restarted]:
        seen.append(tuple(components))
        error = left.pop(0) if left else None
        if error:
            raise error
        return [Restarted(name, 1.0) for name in components]

    monkeypatch.setattr(renewed_certs, "restart_static_pods", restart)
    monkeypatch.setattr(renewed_certs, "find_obstacle", lambda ctx, name: obstacle(name))


def host_of(ctx: Run) -> FakeHost:
    assert isinstance(ctx.host, FakeHost)
    return ctx.host


def content(ctx: Run) -> dict[str, bytes]:
    return {name: host_of(ctx).files[path] for name, path in CONFS.items()}


def test_all_restarts_the_two_that_embed_theirs(ctx: Run, calls: list[tuple[str, ...]]) -> None:
    told: list[str] = []
    before = content(ctx)
    done = renewed_certs.renew_and_restart(ctx, ALL, tell=lambda row, outcome: told.append(f"{row.name} {outcome}"))
    assert calls == [(MANAGER, SCHEDULER)] and told == [f"{name} renewed" for name in renewal.ROWS]
    assert [one.component for one in done.restarted] == [MANAGER, SCHEDULER] and done.left == {}
    assert not set(before.values()) & set(content(ctx).values())
    assert host_of(ctx).files[f"{done.former.folder}{CONFS['scheduler.conf']}"] == before["scheduler.conf"]


@pytest.mark.parametrize("name", [name for name in renewal.ROWS if not renewal.ROWS[name].reader])
def test_what_is_read_again_restarts_nothing(ctx: Run, calls: list[tuple[str, ...]], name: str) -> None:
    renewed_certs.renew_and_restart(ctx, (renewal.ROWS[name],))
    assert calls == [()]


def test_only_the_renewed_one_is_restarted(ctx: Run, calls: list[tuple[str, ...]]) -> None:
    renewed_certs.renew_and_restart(ctx, (renewal.ROWS["scheduler.conf"],))
    host_of(ctx).remove(PATHS.kubeconfig("controller-manager.conf"))
    renewed_certs.renew_and_restart(ctx, ALL)
    host_of(ctx).remove(PATHS.pki / "ca.key")
    assert renewed_certs.renew_and_restart(ctx, ALL).outcomes["scheduler.conf"] == "external"
    assert calls == [(SCHEDULER,), (SCHEDULER,), ()]


def test_what_an_authority_elsewhere_signed_is_read(
    ctx: Run, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operator has put it there; what reads it only when it starts runs with the former one."""
    host_of(ctx).remove(PATHS.pki / "ca.key")
    row = renewal.ROWS["scheduler.conf"]
    unread = unread_certs.Unread(row, PATHS.kubeconfig("scheduler.conf"), host_of(ctx).now())
    monkeypatch.setattr(unread_certs, "find_unread", lambda host, paths, *, socket, rows: [unread])
    before = content(ctx)
    done = renewed_certs.renew_and_restart(ctx, (row,))
    assert calls == [(SCHEDULER,)] and done.outcomes == {"scheduler.conf": "external"} and content(ctx) == before
    with_lease(ctx, "cp2")
    with pytest.raises(ClusterError, match="control plane cp2 works on its static pods"):
        renewed_certs.renew_and_restart(ctx, (row,))


def test_what_cannot_be_restarted_is_named(ctx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    script(monkeypatch, seen, obstacle=lambda name: "there is no crictl" if name == MANAGER else "")
    done = renewed_certs.renew_and_restart(ctx, ALL)
    assert done.left == {MANAGER: "there is no crictl"} and seen == [(SCHEDULER,)]


def test_what_the_api_server_refuses_is_taken_back_before_anything_stops(
    ctx: Run, calls: list[tuple[str, ...]]
) -> None:
    before = content(ctx)
    host_of(ctx).urls[VERSION] = HttpResponse(401, b"Unauthorized")
    with pytest.raises(
        ClusterError, match="does not accept the renewed certificate of kube-controller-manager"
    ) as caught:
        renewed_certs.renew_and_restart(ctx, ALL)
    after = content(ctx)
    assert caught.value.code == "renewal-taken-back" and calls == []
    assert {name for name in CONFS if after[name] != before[name]} == {"admin.conf"}


def test_an_api_server_that_is_down_keeps_nobody_from_a_renewal(ctx: Run, calls: list[tuple[str, ...]]) -> None:
    del host_of(ctx).urls[VERSION]
    renewed_certs.renew_and_restart(ctx, ALL)
    assert calls == [(MANAGER, SCHEDULER)] and len(ctx.report.warnings) == 2


def test_one_that_does_not_come_back_runs_with_the_former(ctx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = content(ctx), list[tuple[str, ...]]()
    script(monkeypatch, seen, errors=(FAILED,))
    with pytest.raises(ClusterError) as caught:
        renewed_certs.renew_and_restart(ctx, ALL)
    error, after = caught.value, content(ctx)
    assert error.code == "renewal-taken-back" and "no such key" in error.cause and FAILED.what in error.what
    assert error.cause.endswith("kube-scheduler run with them again")
    assert seen == [(MANAGER, SCHEDULER)] * 2
    assert {name for name in CONFS if after[name] != before[name]} == {"admin.conf"}


def test_if_the_former_does_not_help_both_are_said(ctx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    second = ClusterError("kube-scheduler exited 4 times", cause="a full disk", remedy="x", code="not-healthy")
    script(monkeypatch, [], errors=(FAILED, second))
    with pytest.raises(ClusterError) as caught:
        renewed_certs.renew_and_restart(ctx, (renewal.ROWS["scheduler.conf"],))
    assert "did not come back with it either (kube-scheduler exited 4 times: a full disk)" in caught.value.cause


def test_an_expired_certificate_does_not_come_back(ctx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    script(monkeypatch, seen, errors=(FAILED,))
    before = content(ctx)
    host_of(ctx).clock = host_of(ctx).clock.replace(year=2027, month=6)
    with pytest.raises(ClusterError) as caught:
        renewed_certs.renew_and_restart(ctx, ALL)
    assert caught.value is FAILED and len(seen) == 1 and not set(before.values()) & set(content(ctx).values())


def test_the_table_names_two_components() -> None:
    """docs/adr/0017-renewed-certificates.md: everything else reads its files again."""
    assert {row.name: row.reader for row in ALL if row.reader} == {
        "controller-manager.conf": MANAGER,
        "scheduler.conf": SCHEDULER,
    }


# ---- one control plane at a time


def with_lease(ctx: Run, holder: str) -> FakeHost:
    """A cluster whose Lease of the static pods somebody holds; `holder` is "" for nobody."""
    host = host_of(ctx)
    found = {
        "metadata": {"name": "kb-static-pods", "resourceVersion": "1"},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": 600,
            "renewTime": f"{host.clock:%Y-%m-%dT%H:%M:%S.%fZ}",
        },
    }
    host.urls[LEASE] = HttpResponse(200, json.dumps(found).encode())
    host.urls[f"{SERVER}/livez"] = HttpResponse(200, b"ok")
    return host


def test_it_waits_for_another_control_plane_and_gives_up_before_anything_is_written(
    ctx: Run, calls: list[tuple[str, ...]]
) -> None:
    before, host = content(ctx), with_lease(ctx, "cp2")
    began = host.monotonic()
    with pytest.raises(ClusterError, match="control plane cp2 works on its static pods") as caught:
        renewed_certs.renew_and_restart(ctx, ALL)
    assert caught.value.code == "swap-elsewhere" and "kubectl -n kube-system delete lease" in caught.value.remedy
    assert host.monotonic() - began >= renewed_certs.TURN_S
    assert content(ctx) == before and calls == [] and not host.exists(PATHS.former_certs)


def test_what_restarts_nothing_needs_no_turn(ctx: Run, calls: list[tuple[str, ...]]) -> None:
    host = with_lease(ctx, "cp2")
    renewed_certs.renew_and_restart(ctx, (renewal.ROWS["apiserver"],))
    host.remove(PATHS.pki / "ca.key")
    renewed_certs.renew_and_restart(ctx, ALL)
    assert calls == [(), ()]


def test_an_api_that_refuses_hinders_nothing(ctx: Run, calls: list[tuple[str, ...]]) -> None:
    host_of(ctx).urls[LEASE] = HttpResponse(401, b"Unauthorized")
    renewed_certs.renew_and_restart(ctx, ALL)
    assert calls == [(MANAGER, SCHEDULER)]


def test_a_pair_that_was_torn_before_is_usable_before_anything_is_renewed(
    ctx: Run, calls: list[tuple[str, ...]]
) -> None:
    """Another one than what is renewed: its own renewal was cut off."""
    host, (key, cert) = host_of(ctx), renewal.files_of(PATHS, renewal.ROWS["etcd-peer"])
    before = host.files[str(key)]
    renewed_certs.renew_and_restart(ctx, (renewal.ROWS["etcd-peer"],))
    host.files[str(cert)] = host.files[f"{former_folder(host)}{cert}"]
    done = renewed_certs.renew_and_restart(ctx, (renewal.ROWS["apiserver"],))
    assert host.files[str(key)] == before and f"{key} is as it was before" in "".join(ctx.report.notes)
    assert list(done.outcomes) == ["apiserver"]


def former_folder(host: FakeHost) -> str:
    return str(PATHS.former_certs / host.list_dir(PATHS.former_certs)[-1])
