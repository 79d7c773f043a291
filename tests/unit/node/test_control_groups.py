"""kubeup/node/control_groups.py: the groups of pods go, if nothing runs in them."""

from __future__ import annotations

import pytest

from kubeup.node import control_groups
from tests.fake_host import FakeHost


def make_host(*groups: str, procs: str = "") -> FakeHost:
    host = FakeHost(programs={"systemctl"}, dirs={"/run/systemd/system"})
    for group in groups:
        host.files[f"/sys/fs/cgroup/{group}/cgroup.procs"] = procs.encode()
    return host


@pytest.mark.parametrize("name", ["kubepods", "kubepods.slice"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_group_and_those_below_it_go_the_deepest_first(version: int, name: str) -> None:
    hierarchies = ("cpu/", "memory/") if version == 1 else ("",)
    host = make_host(*(f"{top}{name}{below}" for top in hierarchies for below in ("", "/besteffort")))
    if version == 2:
        host.files["/sys/fs/cgroup/cgroup.controllers"] = b"cpu memory\n"
    tops = [f"/sys/fs/cgroup/{top}{name}" for top in hierarchies]
    assert list(map(str, control_groups.find(host))) == tops
    rmdir = " ".join(["rmdir", *(path for top in tops for path in (f"{top}/besteffort", top))])
    host.accepts = {rmdir, "systemctl stop kubepods.slice"}
    control_groups.remove(host)
    stop = ["run systemctl stop kubepods.slice"] if name == "kubepods.slice" else []
    assert host.changes == [*stop, f"run {rmdir}"]


def test_a_group_in_which_something_runs_stays_with_all_others() -> None:
    host = make_host("cpu/kubepods.slice", procs="4711\n")
    (told,) = control_groups.remove(host)
    assert told == "/sys/fs/cgroup/cpu/kubepods.slice stays: processes run in it" and host.changes == []


def test_other_groups_are_none_of_its_business() -> None:
    assert control_groups.find(make_host("cpu/kubelet", "cpu/system.slice", "cpu/mine/kubepods")) == []
