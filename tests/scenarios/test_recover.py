"""kb certs recover as a whole, on machines of a scripted network whose certificates have all ended: twice in a row, and killed anywhere."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from kubeup.paths import Paths
from tests.fake_join import BOOTSTRAP_CONF, CURRENT_PEM, Machine, Site, end_of
from tests.fuzz.node import Ended

from .scenario import cut_off, expect_refusal, in_two_processes, keys_of, pin_of, run_join, run_kb, shape_of, tree_of

OTHER_TOKEN = "fedcba.0123456789abcdef"
PODS = ("kube-controller-manager", "kube-scheduler")


@pytest.fixture(scope="module")
def ended(founded: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """cp1 and the worker w1, 400 days later."""
    site = founded.clone(tmp_path_factory.mktemp("ended"))
    assert run_join(site.machine("w1")).status == 0
    site.clock += datetime.timedelta(days=400)
    for machine in site.machines.values():
        machine.lists_containers = True
    return site


@pytest.fixture
def site(ended: Site, tmp_path: Path) -> Site:
    return ended.clone(tmp_path / "site")


def recover(machine: Machine, *more: str) -> Ended:
    return run_kb(machine, "certs", "recover", *more)


def recover_worker(site: Site) -> Ended:
    return recover(site.machine("w1"), f"--token={OTHER_TOKEN}", f"--discovery-token-ca-cert-hash={pin_of(site)}")


def is_ready(machine: Machine) -> bool:
    """Whether its kubelet's certificate is valid, and known to the API server."""
    return end_of(machine.text(CURRENT_PEM)) > machine.now() and not machine.has(BOOTSTRAP_CONF)


def test_a_control_plane_comes_back_from_its_own_files(site: Site) -> None:
    first = site.machine("cp1")
    keys, pods = keys_of(first), dict(first.pods)
    done = recover(first)
    assert done.status == 0 and "node cp1 is Ready" in done.out, done.err + done.out
    assert "restarted: kubelet, kube-controller-manager, kube-scheduler" in done.out
    assert keys_of(first) == keys and is_ready(first)
    assert {name for name in pods if first.pods[name] != pods[name]} == set(PODS)
    before = tree_of(first)
    again = recover(first)
    assert again.status == 0 and "nothing has expired on cp1" in again.out and tree_of(first) == before


def test_a_dry_run_changes_nothing(site: Site) -> None:
    first = site.machine("cp1")
    before = tree_of(first)
    told = json.loads(recover(first, "--dry-run", "-o", "json").out)
    assert tree_of(first) == before and told["dryRun"] and not told["recovered"]
    assert {row["name"] for row in told["expired"]} > {"apiserver", "kubelet-client", "admin.conf", "etcd-peer"}


def test_a_worker_asks_again_and_stays_what_it_is(site: Site) -> None:
    first, worker = site.machine("cp1"), site.machine("w1")
    expect_refusal(recover(worker), "token-needed", 2)
    expect_refusal(recover_worker(site), "server-not-trusted", 5)
    assert recover(first).status == 0
    expect_refusal(recover_worker(site), "token-unknown", 5)
    assert run_kb(first, "token", "create", OTHER_TOKEN).status == 0
    node, before = dict(site.cluster.objects["/api/v1/nodes/w1"]["metadata"]), shape_of(worker)
    done = recover_worker(site)
    assert done.status == 0 and "node w1 is Ready" in done.out, done.err
    assert site.cluster.objects["/api/v1/nodes/w1"]["metadata"]["creationTimestamp"] == node["creationTimestamp"]
    assert is_ready(worker)
    kept = {path: text for path, text in shape_of(worker).items() if "lib/kb" not in path}
    assert kept == {path: text for path, text in before.items() if "lib/kb" not in path}
    again = recover_worker(site)
    assert again.status == 0 and "nothing has expired on w1" in again.out


def test_a_control_plane_killed_anywhere_comes_back(site: Site, tmp_path: Path) -> None:
    first = site.machine("cp1")
    cuts = cut_off(first, lambda: recover(first), tmp_path)
    assert len(cuts) > 30

    def check(cut: tuple[str, Site]) -> None:
        what, other = cut
        machine = other.machine("cp1")
        done = recover(machine)
        assert done.status == 0, f"killed before {what}: {done.err}"
        assert is_ready(machine) and not machine.has(str(Paths.recovery)), what
        assert keys_of(machine) == keys_of(first), what

    in_two_processes(cuts, check)


def test_a_worker_killed_anywhere_comes_back(site: Site, tmp_path: Path) -> None:
    first, worker = site.machine("cp1"), site.machine("w1")
    assert recover(first).status == 0 and run_kb(first, "token", "create", OTHER_TOKEN).status == 0
    cuts = cut_off(worker, lambda: recover_worker(site), tmp_path)

    def check(cut: tuple[str, Site]) -> None:
        what, other = cut
        machine = other.machine("w1")
        done = recover_worker(other)
        assert done.status == 0, f"killed before {what}: {done.err}"
        assert is_ready(machine) and not machine.has(str(Paths.recovery)), what

    in_two_processes(cuts, check)
