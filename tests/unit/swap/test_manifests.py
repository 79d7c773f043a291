"""kubeup/swap/manifests.py: a manifest out of the kubelet's folder, and in again."""

from __future__ import annotations

import pytest

from kubeup.errors import HostError
from kubeup.phases.static_pods_swap import SwapRun
from kubeup.swap import manifests, proof
from kubeup.swap.store import Pod, Swap
from tests.fake_control_plane import (
    FORMER,
    MANIFESTS,
    WANTED,
    Container,
    ControlPlane,
    make_control_plane,
    manifests_of,
)
from tests.unit.swap.swap_case import make_swap_run, said

NAME = "kube-scheduler"
POD = Pod(NAME, FORMER[NAME], WANTED[NAME])
LIVE, FORMER_FILE, NEXT_FILE = f"{NAME}.yaml", f".{NAME}.yaml.kb-former", f".{NAME}.yaml.kb-next"


def machine(**fields: object) -> tuple[ControlPlane, SwapRun]:
    host = make_control_plane(**fields)
    return host, make_swap_run(host, {})


def files_of(host: ControlPlane) -> dict[str, str]:
    return {name: text for name, text in manifests_of(host).items() if NAME in name}


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver", NAME])
def test_a_pod_has_ended_when_it_is_out(name: str) -> None:
    host, run = machine()
    manifests.take_out(run, ["kube-apiserver", name] if name == "etcd" else [name])
    assert not host.running(name) and not [pod for pod, _ in host.ending if pod.name == name]
    assert manifests_of(host)[f".{name}.yaml.kb-former"] == FORMER[name]
    assert f"{name}.yaml" not in manifests_of(host)


def test_an_api_server_does_not_get_its_whole_grace_period() -> None:
    host, run = machine()
    began = host.ticks
    manifests.take_out(run, ["kube-apiserver"])
    assert host.ticks - began < 6


@pytest.mark.parametrize(("is_told", "grace"), [(True, "0"), (False, "1")])
def test_who_was_told_to_end_and_had_its_time_is_killed(is_told: bool, grace: str) -> None:
    """The kubelet tells a pod that it drops; one that was started without the manifest has never heard of it."""
    host, run = machine()
    host.kubelet_runs = is_told
    manifests.take_out(run, ["kube-apiserver"])
    (stop,) = (change for change in host.changes if " stop " in change and "crictl" in change)
    assert f" stop --timeout {grace} " in stop


@pytest.mark.parametrize("late_s", [0.0, 5.0, 20.0])
def test_a_container_is_never_ended_before_the_kubelet_has_dropped_its_pod(late_s: float) -> None:
    """It would be started again."""
    host, run = machine(notices_after_s=late_s)
    manifests.take_out(run, ["kube-apiserver"])
    names = ["out kube-apiserver", "drop kube-apiserver", "end kube-apiserver"]
    assert [event for event in host.events if event in names] == names
    assert "start kube-apiserver" not in host.events


def test_what_comes_next_starts_at_once() -> None:
    """A kubelet looks only after ten seconds at a pod that comes while its predecessor is cleaned up."""
    host, run = machine()
    manifests.take_out(run, [NAME])
    manifests.put_in(run, NAME, text=WANTED[NAME])
    host.sleep(1.5)
    assert host.running(NAME)


def test_a_pod_that_does_not_end() -> None:
    host, run = machine()
    host.files[f"{MANIFESTS}/another-name.yaml"] = FORMER[NAME].encode()  # the same pod from another file
    with pytest.raises(HostError) as caught:
        manifests.take_out(run, [NAME])
    assert caught.value.code == "pod-does-not-end"
    assert "journalctl" in caught.value.remedy


def test_out_twice_is_out() -> None:
    host, run = machine()
    manifests.take_out(run, [NAME])
    made = len(host.changes)
    manifests.take_out(run, [NAME])
    assert len(host.changes) == made


def test_the_former_manifest_is_kept_when_a_new_one_goes_out() -> None:
    host, run = machine()
    manifests.lay_ready(run, Swap((POD,)))
    manifests.take_out(run, [NAME])
    manifests.put_in(run, NAME, text=WANTED[NAME])
    manifests.take_out(run, [NAME])
    assert files_of(host) == {FORMER_FILE: FORMER[NAME]}
    manifests.put_in(run, NAME, text=FORMER[NAME])
    assert files_of(host) == {LIVE: FORMER[NAME]}


def test_in_by_a_rename_if_one_is_laid_ready() -> None:
    host, run = machine()
    manifests.lay_ready(run, Swap((POD,)))
    manifests.take_out(run, [NAME])
    host.cannot_write = lambda path: True
    manifests.put_in(run, NAME, text=WANTED[NAME])
    assert files_of(host) == {LIVE: WANTED[NAME], FORMER_FILE: FORMER[NAME]}


def test_in_from_the_record_if_none_is() -> None:
    host, run = machine()
    manifests.take_out(run, [NAME])
    manifests.put_in(run, NAME, text=WANTED[NAME])
    assert files_of(host)[LIVE] == WANTED[NAME]
    assert host.modes[f"{MANIFESTS}/{LIVE}"] == 0o600


def test_in_twice_is_in() -> None:
    host, run = machine()
    manifests.put_in(run, NAME, text=FORMER[NAME])
    assert host.changes == []


def test_where_a_swap_stands() -> None:
    _, run = machine()
    states = [(manifests.has_come(run, POD), manifests.has_stayed(run, POD))]
    manifests.lay_ready(run, Swap((POD,)))
    states.append((manifests.has_come(run, POD), manifests.has_stayed(run, POD)))
    manifests.take_out(run, [NAME])
    states.append((manifests.has_come(run, POD), manifests.has_stayed(run, POD)))
    manifests.put_in(run, NAME, text=WANTED[NAME])
    states.append((manifests.has_come(run, POD), manifests.has_stayed(run, POD)))
    assert states == [(False, True), (False, True), (False, False), (True, False)]


def test_a_pod_that_is_only_restarted_has_come_when_nothing_waits_any_more() -> None:
    _, run = machine()
    pod = Pod(NAME, FORMER[NAME], FORMER[NAME])
    manifests.lay_ready(run, Swap((pod,)))
    assert not manifests.has_come(run, pod) and manifests.has_stayed(run, pod)
    manifests.take_out(run, [NAME])
    manifests.put_in(run, NAME, text=FORMER[NAME])
    assert manifests.has_come(run, pod) and not manifests.has_stayed(run, pod)


def test_what_waited_beside_the_live_ones_is_cleared_away() -> None:
    host, run = machine()
    host.files.update({f"{MANIFESTS}/{name}": b"x" for name in (FORMER_FILE, NEXT_FILE)})
    manifests.remove_leftovers(run.host, run.paths, names=[NAME])
    assert files_of(host) == {LIVE: FORMER[NAME]}


def test_a_kubelet_that_runs_is_left_alone() -> None:
    host, run = machine()
    assert not manifests.keep_kubelet(run)
    assert host.changes == []
    host.kubelet_runs = False
    assert manifests.keep_kubelet(run)
    assert host.changes == ["run systemctl start kubelet"] and host.kubelet_runs
    assert "starting it" in said(run)


def test_a_pod_of_somebody_else_with_a_container_of_the_same_name_is_left_alone() -> None:
    host, run = machine()
    other = Container("f" * 64, NAME, "uid-2", [], "", 0.0, int(9e18), pod="second-scheduler-6f7c9-x2x4p")
    host.containers.append(other)
    manifests.take_out(run, [NAME])
    assert other.is_running
    assert not host.running(NAME)
    newest = proof.find_newest(run, NAME)
    assert newest is not None and newest.id != other.id


def test_the_last_manifest_that_there_is_stays() -> None:
    """The record of the swap may be lost, or moved away since it was damaged."""
    host, run = machine()
    manifests.lay_ready(run, Swap((POD,)))
    manifests.take_out(run, [NAME])
    manifests.remove_leftovers(host, run.paths)
    assert files_of(host) == {FORMER_FILE: FORMER[NAME]}


def test_a_runtime_that_does_not_answer_has_ended_nothing() -> None:
    host, run = machine(kubelet_answers=False)
    host.runtime_answers = False
    with pytest.raises(HostError) as caught:
        manifests.take_out(run, ["kube-apiserver"])
    assert caught.value.code == "pod-does-not-end"
    assert "the container runtime does not answer" in caught.value.cause


def test_a_kubelet_that_was_started_meanwhile_has_nothing_to_finish() -> None:
    """Without an API server it never cleans up after pods that it does not know: waiting for that would keep the pod away."""
    host, run = machine()
    left: list[str] = []

    def stop(change: str) -> None:
        if change.startswith("move ") and not left:
            left.append(change)
            host.kubelet_runs = False
            host.never_cleans_up = True

    host.at_change = stop
    began = host.ticks
    manifests.take_out(run, [NAME])
    assert not host.running(NAME) and host.kubelet_runs
    assert host.ticks - began < manifests.DROP_S


def test_a_kubelet_that_no_api_server_has_answered_since_its_start_is_started_anew() -> None:
    """As after a power cut in the middle of a swap. It never finishes with the pod, nor starts the next one of that name."""
    host, run = machine(kubelet_answers=False, never_cleans_up=True)
    manifests.take_out(run, [NAME])
    assert "run systemctl restart kubelet" in host.changes and "restarting it" in said(run)
    manifests.put_in(run, NAME, text=WANTED[NAME])
    host.sleep(2)
    assert host.running(NAME)


@pytest.mark.parametrize("names", [[NAME], ["etcd", "kube-apiserver"]])
def test_a_kubelet_that_no_api_server_has_answered_is_stopped_while_its_pods_end(names: list[str]) -> None:
    """As after a power cut in the middle of a swap: it would not end them, so waiting for that costs half a minute, or two on a busy machine."""
    host, run = machine(is_cut_off=True)
    began = host.ticks
    for name in reversed(names):
        manifests.take_out(run, [name])
    assert host.ticks - began < 5 * len(names) and host.kubelet_runs
    for name in names:
        manifests.put_in(run, name, text=WANTED[name])
    host.sleep(2)
    assert all(host.running(name) for name in names)


def test_a_kubelet_that_can_be_asked_is_not_restarted() -> None:
    host, run = machine(never_cleans_up=True)
    with pytest.raises(HostError) as caught:
        manifests.take_out(run, [NAME])
    assert caught.value.code == "pod-does-not-end" and "run systemctl restart kubelet" not in host.changes


def test_a_busy_machine_gets_more_time_to_end_a_pod() -> None:
    host, run = machine(never_cleans_up=True)
    host.files["/proc/loadavg"] = b"90.0 9 9 1/1 1"
    began = host.ticks
    with pytest.raises(HostError) as caught:
        manifests.take_out(run, [NAME])
    assert host.ticks - began > 3 * manifests.GONE_S and "240 s or more" in caught.value.cause
