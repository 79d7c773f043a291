"""kb certs add-san as a whole: both control planes get the names, one after the other, and lose them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubeup.node import cert_specs, certificates
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_join import SYSTEM, Machine, Site

from .scenario import changed_by, cut_off, expect_refusal, in_two_processes, run_control_plane_join, run_kb, shape_of

CERT, KEY = "/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/pki/apiserver.key"
NAMES = ("k8s.example.net", "*.k8s.example.net", "192.0.2.7", "2001:db8::7")


@pytest.fixture(scope="module")
def pair(founded: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two control planes."""
    found = founded.clone(tmp_path_factory.mktemp("pair"))
    ended = run_control_plane_join(found.machine("cp2"))
    assert ended.status == 0, ended.err
    return found


@pytest.fixture
def site(pair: Site, tmp_path: Path) -> Site:
    return pair.clone(tmp_path / "site")


def names_of(machine: Machine) -> set[str]:
    found: cert_specs.Sans = certificates.sans_of(certificates.parse_certs(machine.text(CERT))[0])
    return {*found.dns, *found.ips}


def stored(site: Site) -> list[str]:
    text = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"]
    return list(load_yaml(text).get("apiServer", {}).get("certSANs") or [])


def test_every_control_plane_gets_the_names_and_loses_them(site: Site) -> None:
    first, second = site.machine("cp1"), site.machine("cp2")
    before, keys = [names_of(one) for one in (first, second)], [one.text(KEY) for one in (first, second)]
    ended = run_kb(first, "certs", "add-san", *NAMES)
    assert ended.status == 0, ended.err
    assert names_of(first) == before[0] | set(NAMES) and names_of(second) == before[1]
    assert stored(site) == ["k8s.example.net", "*.k8s.example.net", "192.0.2.7", "2001:db8::7"]
    line = "on the control plane at 10.0.0.12:6443: "
    told = next(one.strip() for one in ended.out.splitlines() if line in one)
    assert told.endswith("certs add-san k8s.example.net '*.k8s.example.net' 192.0.2.7 2001:db8::7")
    ended, changed = changed_by(site, lambda: run_kb(second, "certs", "add-san", *NAMES))
    assert ended.status == 0 and changed == 0, ended.err
    assert names_of(second) == before[1] | set(NAMES)
    assert "every API server of the cluster has k8s.example.net" in ended.out
    assert [one.text(KEY) for one in (first, second)] == keys
    again, changed = changed_by(site, lambda: run_kb(first, "certs", "add-san", *NAMES))
    assert again.status == 0 and changed == 0 and "nothing to do" in again.err, again.err
    for machine in (first, second):
        ended = run_kb(machine, "certs", "add-san", "--remove", *NAMES)
        assert ended.status == 0, ended.err
    assert [names_of(one) for one in (first, second)] == before and stored(site) == []
    assert "no API server of the cluster has" in ended.out
    assert [one.text(KEY) for one in (first, second)] == keys


def test_json_has_what_remains(site: Site) -> None:
    ended = run_kb(site.machine("cp1"), "certs", "add-san", "k8s.example.net", "-o", "json")
    found = json.loads(ended.out)
    assert len(found["remaining"]) == 1 and "10.0.0.12:6443" in found["remaining"][0]
    assert [one["name"] for one in found["phases"]] == [
        "preflight",
        "certs/apiserver",
        "upload-config/kubeadm",
        "verify",
    ]


def test_undo_takes_back_the_last_change(site: Site) -> None:
    first = site.machine("cp1")
    expect_refusal(run_kb(first, "certs", "add-san", "--undo"), "nothing-to-undo", 4)
    before = names_of(first)
    assert run_kb(first, "certs", "add-san", "one.test").status == 0
    assert run_kb(first, "certs", "add-san", "two.test").status == 0
    assert run_kb(first, "certs", "add-san", "two.test").status == 0  # which changes nothing
    ended = run_kb(first, "certs", "add-san", "--undo")
    assert ended.status == 0, ended.err
    assert names_of(first) == before | {"one.test"} and stored(site) == ["one.test"]
    expect_refusal(run_kb(first, "certs", "add-san", "--undo"), "nothing-to-undo", 4)
    assert run_kb(first, "certs", "add-san", "--remove", "one.test").status == 0
    assert run_kb(first, "certs", "add-san", "--undo").status == 0
    assert names_of(first) == before | {"one.test"} and stored(site) == ["one.test"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("api.example.org", "it is the cluster's endpoint"),
        ("cp1", "it is the name of this node"),
        ("10.0.0.11", "it is the address of this node"),
        ("10.0.0.12", "it is the address of a control plane"),
        ("kubernetes.default.svc", "pods call the API server by it"),
        ("10.96.0.1", "pods call the API server by it"),
    ],
)
def test_what_is_needed_stays(site: Site, name: str, why: str) -> None:
    first = site.machine("cp1")
    before = shape_of(first)
    ended = run_kb(first, "certs", "add-san", "--remove", "x.test", name)
    expect_refusal(ended, "name-needed", 2)
    assert why in ended.err and shape_of(first) == before and stored(site) == []


def test_a_name_by_which_a_kubeconfig_calls_stays(site: Site) -> None:
    first = site.machine("cp1")
    assert run_kb(first, "certs", "add-san", "lb.test").status == 0
    text = first.text("/etc/kubernetes/admin.conf")
    first.put("/etc/kubernetes/admin.conf", text.replace("api.example.org:6443", "lb.test:6443"), 0o600)
    ended = run_kb(first, "certs", "add-san", "--remove", "lb.test")
    expect_refusal(ended, "name-needed", 2)
    assert "/etc/kubernetes/admin.conf calls the API server by it" in ended.err


def test_a_wildcard_that_covers_such_a_name_stays(site: Site) -> None:
    first = site.machine("cp1")
    assert run_kb(first, "certs", "add-san", "*.lb.test", "*.other.test").status == 0
    text = first.text("/etc/kubernetes/admin.conf")
    first.put("/etc/kubernetes/admin.conf", text.replace("api.example.org:6443", "a.lb.test:6443"), 0o600)
    ended = run_kb(first, "certs", "add-san", "--remove", "*.lb.test")
    expect_refusal(ended, "name-needed", 2)
    assert "it covers a.lb.test: /etc/kubernetes/admin.conf calls" in ended.err
    assert run_kb(first, "certs", "add-san", "--remove", "*.other.test").status == 0
    assert run_kb(first, "certs", "add-san", "a.lb.test").status == 0
    assert run_kb(first, "certs", "add-san", "--remove", "*.lb.test").status == 0  # it has a name of its own now


@pytest.mark.parametrize("word", ["https://x.test", "x.test:6443", "UPPER.test", "*", "a.*.test", "-x", ""])
def test_what_is_no_name_is_refused(site: Site, word: str) -> None:
    ended = run_kb(site.machine("cp1"), "certs", "add-san", "good.test", *([word] if word != "-x" else ["--", word]))
    assert ended.status == 2 and stored(site) == [], ended.err


def test_words_are_needed_and_not_with_undo(site: Site) -> None:
    for words in ((), ("--remove",), ("x.test", "--undo"), ("--undo", "--remove")):
        expect_refusal(run_kb(site.machine("cp1"), "certs", "add-san", *words), "usage", 2)


def test_an_authority_that_is_kept_elsewhere_is_refused_before_anything_changes(site: Site) -> None:
    first = site.machine("cp1")
    first.remove(Path("/etc/kubernetes/pki/ca.key"))
    before = shape_of(first)
    ended = run_kb(first, "certs", "add-san", "x.test")
    expect_refusal(ended, "external-ca-signs", 4)
    assert "certs generate-csr" in ended.err
    assert shape_of(first) == before and stored(site) == []


def test_a_certificate_that_has_the_name_already_is_only_stored(site: Site) -> None:
    """What an authority elsewhere has signed."""
    first = site.machine("cp1")
    assert run_kb(first, "certs", "add-san", "x.test").status == 0
    held = site.cluster.objects[f"{SYSTEM}/configmaps/kubeadm-config"]
    document = load_yaml(held["data"]["ClusterConfiguration"])
    del document["apiServer"]["certSANs"]
    text = dump_yaml(document)
    site.cluster._store(f"{SYSTEM}/configmaps/kubeadm-config", {**held, "data": {"ClusterConfiguration": text}})
    first.remove(Path("/etc/kubernetes/pki/ca.key"))
    cert = first.text(CERT)
    ended = run_kb(first, "certs", "add-san", "x.test")
    assert ended.status == 0 and stored(site) == ["x.test"] and first.text(CERT) == cert, ended.err


def test_a_dry_run_changes_nothing(site: Site) -> None:
    first = site.machine("cp1")
    before, cert = shape_of(first), first.text(CERT)
    ended = run_kb(first, "certs", "add-san", "x.test", "--dry-run")
    assert ended.status == 0 and "apiserver.crt" in ended.out and "nothing was changed" in ended.out, ended.err
    assert shape_of(first) == before and first.text(CERT) == cert and stored(site) == []


def test_a_worker_is_told_where_to_run_it(site: Site) -> None:
    expect_refusal(run_kb(site.machine("w1"), "certs", "add-san", "x.test"), "not-a-control-plane", 4)


def test_killed_before_any_change_it_goes_on_and_back(site: Site, tmp_path: Path) -> None:
    first = site.machine("cp1")
    start = names_of(first)
    cuts = cut_off(first, lambda: run_kb(first, "certs", "add-san", "x.test"), tmp_path / "cuts")
    assert len(cuts) > 5

    def check(cut: tuple[str, Site]) -> None:
        what, found = cut
        other = found.clone(tmp_path / f"other-{id(cut)}", "cp1")
        ended = run_kb(found.machine("cp1"), "certs", "add-san", "x.test")
        assert ended.status == 0, f"killed before {what}: {ended.err}"
        assert names_of(found.machine("cp1")) == start | {"x.test"} and stored(found) == ["x.test"], what
        for words in (("--undo",), ("--remove", "x.test")):
            ended = run_kb(other.machine("cp1"), "certs", "add-san", *words)
            assert ended.status == 0 or "nothing-to-undo" in ended.err, f"killed before {what}: {ended.err}"
        assert names_of(other.machine("cp1")) == start and stored(other) == [], what

    in_two_processes(cuts, check)
