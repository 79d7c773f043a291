"""kb reconfigure endpoint as a whole: the cluster's nodes get another name for the API servers, one after the other, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.node import cert_specs, certificates
from kubeup.node.kubeconfig import parse_kubeconfig
from kubeup.paths import Paths
from kubeup.yaml_files import load_yaml
from tests.fake_join import CLUSTER_INFO, KUBELET_CONF, SYSTEM, Machine, Site

from .scenario import (
    changed_by,
    cut_off,
    expect_refusal,
    in_two_processes,
    objects_of,
    run_adopt,
    run_join,
    run_kb,
    run_reconfigure,
    shape_of,
    tree_of,
)

OLD, NEW = "api.example.org:6443", "k8s.example.org:6443"
ADMIN_CONF, CERT, KEY = (
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/pki/apiserver.crt",
    "/etc/kubernetes/pki/apiserver.key",
)


@pytest.fixture
def site(founded: Site, tmp_path: Path) -> Site:
    """The first control plane and a worker; the new name leads to the control plane already."""
    found = founded.clone(tmp_path / "site")
    found.names["k8s.example.org"] = "10.0.0.11"
    assert run_join(found.machine("w1")).status == 0
    return found


def server_in(text: str) -> str:
    return parse_kubeconfig(text, source="a test's").server.partition("://")[2]


def servers_of(site: Site) -> dict[str, str]:
    """Who calls what."""
    first, worker, objects = site.machine("cp1"), site.machine("w1"), site.cluster.objects
    config = objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"]
    return {
        "admin.conf": server_in(first.text(ADMIN_CONF)),
        "super-admin.conf": server_in(first.text("/etc/kubernetes/super-admin.conf")),
        "cluster-info": server_in(objects[CLUSTER_INFO]["data"]["kubeconfig"]),
        "kube-proxy": server_in(objects[f"{SYSTEM}/configmaps/kube-proxy"]["data"]["kubeconfig.conf"]),
        "kubeadm-config": next(line for line in config.splitlines() if "controlPlaneEndpoint" in line).split()[1],
        "the worker's kubelet.conf": server_in(worker.text(KUBELET_CONF)),
    }


def names_in_certificate(machine: Machine) -> cert_specs.Sans:
    return certificates.sans_of(certificates.parse_certs(machine.text(CERT))[0])


def test_all_who_call_get_the_new_name_and_the_old_one_again(site: Site) -> None:
    first, worker = site.machine("cp1"), site.machine("w1")
    before, key, objects = servers_of(site), first.text(KEY), objects_of(site)
    assert set(before.values()) == {OLD}
    ended = run_reconfigure(first, NEW)
    assert ended.status == 0, ended.err
    assert "on worker w1: kb reconfigure endpoint" in ended.out
    assert names_in_certificate(first).covers("k8s.example.org") and first.text(KEY) == key
    assert servers_of(site) == {**dict.fromkeys(before, NEW), "the worker's kubelet.conf": OLD}
    ended = run_reconfigure(worker)
    assert ended.status == 0, ended.err
    assert set(servers_of(site).values()) == {NEW}
    for machine in (first, worker):
        tree, made = shape_of(machine), len(machine.changes)
        again, changed = changed_by(site, lambda machine=machine: run_reconfigure(machine, NEW))  # type: ignore[misc]
        assert again.status == 0, again.err
        files = [what for what in machine.changes[made:] if "/lib/kb/" not in what]
        assert (files, changed) == ([], 0), again.err
        assert shape_of(machine) == tree
    for machine in (first, worker):
        ended = run_reconfigure(machine, "--undo")
        assert ended.status == 0, ended.err
    assert servers_of(site) == before
    assert without_restarts(objects_of(site)) == without_restarts(objects)
    expect_refusal(run_reconfigure(first, "--undo"), "nothing-to-undo", 4)


def without_restarts(objects: dict[str, object]) -> str:
    """kube-proxy's pods were restarted, which leaves a mark."""
    found = json.loads(json.dumps(objects))
    proxy = found["/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"]
    proxy["spec"]["template"]["metadata"].pop("annotations", None)
    held = found[f"{SYSTEM}/configmaps/kube-proxy"]["data"]
    held["kubeconfig.conf"] = load_yaml(held["kubeconfig.conf"])  # in whoever's order
    return json.dumps(found, sort_keys=True)


def test_a_node_that_comes_later_is_told_the_new_name(site: Site, tmp_path: Path) -> None:
    assert run_reconfigure(site.machine("cp1"), NEW).status == 0
    fresh = Machine(tmp_path / "w9", site, name="w9", address="10.0.0.29")
    ended = run_join(fresh)
    assert ended.status == 0, ended.err
    assert server_in(fresh.text(KUBELET_CONF)) == NEW


def test_killed_before_any_change_it_goes_on(site: Site, tmp_path: Path) -> None:
    first = site.machine("cp1")
    start, old_objects = shape_of(first), objects_of(site)
    cuts = cut_off(first, lambda: run_reconfigure(first, NEW), tmp_path / "cuts")
    wanted, objects = shape_of(first), objects_of(site)
    assert len(cuts) > 15

    def check(cut: tuple[str, Site]) -> None:
        what, found = cut
        other = found.clone(tmp_path / f"other-{id(cut)}", "cp1")
        ended = run_reconfigure(found.machine("cp1"), NEW)
        assert ended.status == 0, f"killed before {what}: {ended.err}"
        assert shape_of(found.machine("cp1")) == wanted, f"killed before {what}"
        assert without_restarts(objects_of(found)) == without_restarts(objects), f"killed before {what}"
        ended = run_reconfigure(other.machine("cp1"), "--undo")
        is_begun = "nothing-to-undo" not in ended.err
        assert ended.status == 0 or not is_begun, f"killed before {what}: {ended.err}"
        assert set(shape_of(other.machine("cp1"))) == set(start), f"killed before {what}"
        assert without_restarts(objects_of(other)) == without_restarts(old_objects), f"killed before {what}"
        servers = servers_of(other)
        assert set(servers.values()) == {OLD}, f"killed before {what}"

    in_two_processes(cuts, check)


def test_what_was_before_is_not_forgotten_where_a_later_run_is_refused(site: Site) -> None:
    """It stops in the very step that keeps what a conversion is taken back to."""
    first = site.machine("cp1")
    before = servers_of(site)
    assert run_reconfigure(first, NEW).status == 0
    expect_refusal(run_reconfigure(first, "nowhere.example.org:6443"), "endpoint-unknown-name", 5)
    ended = run_reconfigure(first, "--undo")
    assert ended.status == 0, ended.err
    assert servers_of(site) == before


def test_a_name_that_leads_elsewhere_changes_nothing(site: Site, founded: Site, tmp_path: Path) -> None:
    first, worker = site.machine("cp1"), site.machine("w1")
    site.names["w1.example.org"] = "10.0.0.21"
    trees, version = [tree_of(machine) for machine in (first, worker)], site.cluster.version
    expect_refusal(run_reconfigure(first, "nowhere.example.org:6443"), "endpoint-unknown-name", 5)
    expect_refusal(run_reconfigure(first, "w1.example.org:6443"), "endpoint-unreachable", 5)
    expect_refusal(run_reconfigure(first, "not a name"), "bad-endpoint", 2)
    expect_refusal(run_reconfigure(worker, NEW), "endpoint-not-stored", 5)
    empty = site.machine("cp2")
    expect_refusal(run_reconfigure(empty, NEW), "not-a-member", 4)
    after = [tree_of(machine) for machine in (first, worker)]
    for old, new in zip(trees, after):
        assert {path: text for path, text in new.items() if "lib/kb" not in path} == {
            path: text for path, text in old.items() if "lib/kb" not in path
        }
    assert site.cluster.version == version
    assert {path for path in tree_of(empty) if not path.startswith("var/lib/kb")} == set(
        tree_of(founded.machine("cp2"))
    )


def test_an_adopted_cluster_of_kubeadm_s_gets_the_name_too(founded_by_kubeadm: Site, tmp_path: Path) -> None:
    site = founded_by_kubeadm.clone(tmp_path / "site")
    site.names["k8s.example.org"] = "10.0.0.11"
    first, second, worker = (site.machine(name) for name in ("cp1", "cp2", "w1"))
    before = {machine.name: tree_of(machine) for machine in (first, second, worker)}
    for machine in (first, second, worker):
        assert run_adopt(machine).status == 0
    adopted = first.text("/var/lib/kb/adopted-init.yaml")
    ended = run_reconfigure(first, NEW)
    assert ended.status == 0, ended.err
    assert "on the control plane at 10.0.0.12:6443: kb reconfigure endpoint" in ended.out
    assert servers_of(site)["admin.conf"] == OLD  # the other API server does not bear the name yet
    assert run_reconfigure(second).status == 0
    ended = run_reconfigure(first)
    assert ended.status == 0, ended.err
    assert run_reconfigure(worker).status == 0
    assert servers_of(site) == dict.fromkeys(servers_of(site), NEW)
    for machine in (first, second):
        assert names_in_certificate(machine).covers("k8s.example.org")
        again = run_kb(machine, "init" if machine is first else "join")
        assert again.status == 0, again.err
        assert servers_of(site) == dict.fromkeys(servers_of(site), NEW), again.err
    assert set(before["w1"]) <= set(tree_of(worker))
    assert json.loads(first.text(str(Paths.state)))["phases"]["init/certs/ca"]["adopted"]
    for machine in (first, second, worker, first):
        ended = run_reconfigure(machine, "--undo")
        assert ended.status == 0 or (machine is first and "nothing-to-undo" in ended.err), ended.err
    assert servers_of(site) == dict.fromkeys(servers_of(site), OLD)
    assert first.text("/var/lib/kb/adopted-init.yaml") == adopted
