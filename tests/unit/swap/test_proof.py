"""kubeup/swap/proof.py: a pod counts as working only if it is the one that was asked for, and works."""

from __future__ import annotations

import pytest

from kubeup.errors import HostError
from kubeup.machine.http import UNPROVEN, HttpResponse
from kubeup.phases.static_pods_swap import SwapRun
from kubeup.swap import proof
from tests.fake_control_plane import (
    ADMIN_CONF,
    COMPONENTS,
    FORMER,
    MANIFESTS,
    SERVER,
    WANTED,
    ControlPlane,
    make_control_plane,
    manifest,
)
from tests.unit.swap.swap_case import make_swap_run

NAME = "kube-scheduler"


def machine(**fields: object) -> tuple[ControlPlane, SwapRun]:
    host = make_control_plane(**fields)
    return host, make_swap_run(host, {})


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_pod_that_works_is_asked_at_its_own_address(name: str) -> None:
    host, run = machine()
    assert proof.ask(run, name) == ""
    host.containers[[one.name for one in host.containers].index(name)].mood = "unhealthy"
    assert proof.ask(run, name) != ""


def test_an_api_server_without_its_etcd_does_not_work() -> None:
    host, run = machine()
    host.running("etcd")[0].state = "exited"
    assert proof.ask(run, "kube-apiserver") != ""
    assert host.running("kube-apiserver")


PROBED = """    livenessProbe:
      httpGet: {host: 10.0.0.11, path: /livez, port: 6443, scheme: HTTPS}
    readinessProbe:
      httpGet: {host: 10.0.0.11, path: /readyz, port: 6443, scheme: HTTPS}
"""


@pytest.mark.parametrize(
    ("path", "status", "is_told"),
    [("livez", 401, True), ("livez", 403, True), ("livez", 200, False), ("readyz", 401, False)],
)
def test_an_api_server_that_lets_no_kubelet_probe_it_does_not_work(path: str, status: int, is_told: bool) -> None:
    """kb shows a certificate, and is answered all the same."""
    host, run = machine()
    host.files[f"{MANIFESTS}/kube-apiserver.yaml"] = (FORMER["kube-apiserver"] + PROBED).encode()
    get = host.http_get
    host.http_get = lambda url, *, tls=None, **more: (  # type: ignore[method-assign]
        HttpResponse(status, b"no") if tls is UNPROVEN and url.endswith(path) else get(url, tls=tls, **more)
    )
    told = proof.ask(run, "kube-apiserver")
    assert (f"HTTP {status}" in told and "the kubelet will restart it" in told) if is_told else told == ""


@pytest.mark.parametrize(("status", "is_told"), [(403, True), (401, False), (404, False), (200, False)])
def test_an_api_server_that_lets_no_kubelet_work_does_not_work(status: int, is_told: bool) -> None:
    """--authorization-mode without Node: the admin is answered, and every node is lost a minute later. Its own Node a kubelet may read
    all the same, by a right that a pod network gave it."""
    host, run = machine()
    host.files["/etc/kubernetes/kubelet.conf"] = ADMIN_CONF.encode()
    get, lease = host.http_get, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cp1"
    host.http_get = lambda url, *, tls=None, **more: (  # type: ignore[method-assign]
        HttpResponse(status, b"{}") if url == f"https://{SERVER}{lease}" else get(url, tls=tls, **more)
    )
    assert proof.ask(run, "kube-apiserver").startswith("it refuses what this node's kubelet asks" if is_told else "")
    assert bool(proof.ask(run, "kube-apiserver")) is is_told


def test_an_etcd_without_a_quorum_does_not_work() -> None:
    host, run = machine(members={"cp2": True, "cp3": True})
    assert proof.ask(run, "etcd") == ""
    host.members = {"cp2": False, "cp3": False}
    assert proof.ask(run, "etcd") != ""


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_container_of_its_manifest(name: str) -> None:
    host, run = machine()
    one = host.running(name)[0]
    assert proof.judge_container(run, name, text=FORMER[name], container_id=one.id) is None
    other = proof.judge_container(run, name, text=WANTED[name], container_id=one.id)
    assert other is not None and other.cause == "--v=4 differs"
    one.argv = list(reversed(one.argv))
    other = proof.judge_container(run, name, text=FORMER[name], container_id=one.id)
    assert other is not None and other.cause == "their order differs"
    one.argv.reverse()
    one.image = "sha256:other"
    other = proof.judge_container(run, name, text=FORMER[name], container_id=one.id)
    assert other is not None and "does not run the image of its manifest" in other.what


def test_a_container_of_before_is_not_the_new_one() -> None:
    host, run = machine()
    one = host.running(NAME)[0]
    assert proof.wait_until_works(run, NAME, text=FORMER[NAME]) == one.id
    host.kubelet_runs = True
    with pytest.raises(proof.NotProven):
        proof.wait_until_works(run, NAME, text=FORMER[NAME], known={one.id})
    assert [change for change in host.changes if change.startswith("run touch")], "the kubelet was never nudged"


def test_a_container_that_ends_while_it_is_watched() -> None:
    host, run = machine()
    one = host.running(NAME)[0]
    proof.watch_all(run, {NAME: one.id})
    one.stops_at = host.ticks + 4
    with pytest.raises(proof.NotProven) as caught:
        proof.watch_all(run, {NAME: one.id})
    assert f"{NAME} exited" in caught.value.what


@pytest.mark.parametrize(("age_s", "lasts_s"), [(0, 10), (3, 7), (8, 5), (3600, 5), (-30, 10)])
def test_the_watch_ends_when_each_has_run_for_ten_seconds_and_served_for_five(age_s: float, lasts_s: float) -> None:
    """The clock may have been set back since."""
    host, run = machine()
    young, old = host.running(NAME)[0], host.running("etcd")[0]
    young.created_ns = int((host.now().timestamp() - age_s) * 1e9)
    began = host.ticks
    proof.watch_all(run, {NAME: young.id, "etcd": old.id})
    assert lasts_s <= round(host.ticks - began, 3) <= lasts_s + 1.5


def test_where_the_runtime_does_not_say_since_when_it_is_watched_for_all_of_the_time() -> None:
    host, run = machine()
    one, began = host.running(NAME)[0], host.ticks
    one.created_ns = 2
    proof.watch_all(run, {NAME: one.id})
    assert host.ticks - began >= proof.WATCH_S


def test_a_runtime_that_does_not_answer_for_a_moment_is_no_end_of_a_container() -> None:
    host, run = machine()
    one = host.running(NAME)[0]
    host.runtime_answers, host.answers_at = False, host.ticks + 4
    proof.watch_all(run, {NAME: one.id})
    host.runtime_answers, host.answers_at = False, host.ticks + 3
    one.stops_at = host.ticks + 2
    with pytest.raises(proof.NotProven):
        proof.watch_all(run, {NAME: one.id})


@pytest.mark.parametrize("log", ["unknown flag: --no-such", 'invalid argument "x" for "--no-such" flag: not a number'])
def test_a_flag_that_a_new_pod_refuses_is_one_of_its_manifest(log: str) -> None:
    """Where the new binary could not be tried, its exit tells. The flag may come from a file of the user's, whatever the
    ClusterConfiguration says."""
    host, run = machine()
    one = host.running(NAME)[0]
    host.kubelet_runs, one.state = False, "exited"
    host.files[f"/var/log/{one.id}.log"] = f"2026-01-01T00:00:00Z stderr F Error: {log}\n".encode()
    with pytest.raises(proof.NotProven) as caught:
        proof.wait_until_works(run, NAME, text=FORMER[NAME])
    assert "--no-such" in caught.value.cause and "from its manifest" in caught.value.cause
    assert "--no-such" in caught.value.remedy and "its manifest" in caught.value.remedy
    assert "extraArgs" not in f"{caught.value.cause} {caught.value.remedy}"


def test_an_image_that_was_deleted_meanwhile_is_named() -> None:
    host, run = machine()
    host.containers.remove(host.running(NAME)[0])
    host.kubelet_runs = False
    lost = manifest(NAME, image="registry.k8s.io/kube-scheduler:v1.35.9")
    with pytest.raises(proof.NotProven) as caught:
        proof.wait_until_works(run, NAME, text=lost)
    assert caught.value.what == f"registry.k8s.io/kube-scheduler:v1.35.9, which {NAME} needs, is no longer on this node"
    assert "crictl pull registry.k8s.io/kube-scheduler:v1.35.9" in caught.value.remedy


@pytest.mark.parametrize("folder", ["/var/lib/containerd", "/var/lib/containers"])
def test_a_full_disk_of_either_runtime_is_seen(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, run = machine()
    host.dirs.add(folder)
    host.containers.remove(host.running(NAME)[0])
    monkeypatch.setattr(host, "free_bytes", lambda path: 1 << (20 if str(path) == folder else 40))
    host.kubelet_runs = False
    with pytest.raises(proof.NotProven) as caught:
        proof.wait_until_works(run, NAME, text=FORMER[NAME])
    assert caught.value.what == f"{folder} has 1 MiB of free space"


def test_a_container_that_runs_and_does_not_work_in_the_end() -> None:
    host, run = machine()
    one = host.running(NAME)[0]
    one.mood = "unhealthy"
    with pytest.raises(proof.NotProven) as caught:
        proof.watch_all(run, {NAME: one.id})
    assert caught.value.what == f"{NAME} ran on, and does not work"


@pytest.mark.parametrize(
    ("before", "now", "is_only", "leads"),
    [
        ("cp1_old", "cp1_new", True, True),
        ("cp1_old", "cp1_new", False, True),
        ("cp2_x", "cp2_x", False, False),
        ("cp1_old", "cp1_old", False, False),
        ("cp1_old", "cp10_new", False, False),
    ],
)
def test_who_leads(before: str, now: str, is_only: bool, leads: bool) -> None:
    host, run = machine()
    host.kubelet_runs = False
    host.running(NAME)[0].mood = "never leads"
    host.holders[NAME] = now
    host.running(NAME)[0].state = "running"
    (found,) = proof.wait_for_lead(run, {NAME: before}, first={NAME: "earlier"}, is_only=is_only)
    assert (found.name, found.leads, found.holder) == (NAME, leads, now.partition("_")[0])


def test_the_only_one_has_to_lead() -> None:
    host, run = machine()
    began = host.ticks
    with pytest.raises(proof.NotProven) as caught:
        proof.wait_for_lead(run, {NAME: host.holders[NAME]}, first={NAME: "earlier"}, is_only=True)
    assert caught.value.what == f"{NAME} runs, and does not lead"
    assert host.holders[NAME] in caught.value.cause
    assert proof.LEAD_S <= host.ticks - began < proof.LEAD_S + 2


def test_holders_of_those_that_lead_only() -> None:
    host, run = machine()
    assert proof.read_holders(run, COMPONENTS) == host.holders
    assert set(host.holders) == set(proof.LEADERS)
    host.running("kube-apiserver")[0].state = "exited"
    assert proof.read_holders(run, COMPONENTS) == dict.fromkeys(proof.LEADERS, "")


def test_an_api_server_is_asked_without_retries() -> None:
    _, run = machine()
    assert proof.own_api(run).server == f"https://{SERVER}"
    assert proof.own_api(run).retry_s == 0


def test_what_ran_before_is_asked_until_the_runtime_tells() -> None:
    """Taken for a new one, a container of before would count as a failure that replaces etcd's data."""
    host, run = machine()
    host.runtime_answers = False
    host.answers_at = host.ticks + 20
    ids = {one.id for one in host.containers if one.name == NAME}
    assert proof.list_ids(run, [NAME]) == ids
    host.runtime_answers, host.answers_at = False, 1e9
    with pytest.raises(HostError) as caught:
        proof.list_ids(run, [NAME])
    assert caught.value.code == "runtime-silent"
    assert "journalctl -u containerd" in caught.value.remedy
