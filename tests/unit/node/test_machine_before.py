"""kubeup/node/machine_before.py: settings and folders go back to what they were, unless somebody else wants them so."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import machine_before
from tests.fake_host import FakeHost

OWN = Path("/etc/sysctl.d/90-kb.conf")


def set_kernel(host: FakeHost, **values: str) -> None:
    host.files |= {f"/proc/sys/{name.replace('__', '/')}": f"{value}\n".encode() for name, value in values.items()}


def make_host(**values: str) -> FakeHost:
    host = FakeHost()
    set_kernel(host, **values)
    return host


def recall(host: FakeHost) -> dict[str, object]:
    found = machine_before.parse([machine_before.read(host)])
    assert found is not None
    return found


def test_what_is_found_is_kept_as_text_and_read_again() -> None:
    host = make_host(kernel__panic="0", vm__swappiness="60")
    host.files["/var/log/pods/old/0.log"] = b""
    found = recall(host)
    assert found["settings"] == {"kernel.panic": "0"} and found["logs"] == {"/var/log/pods": ["old"]}
    assert "/var/lib/cni" in found["absent"] and "/var/log/pods" not in found["absent"]  # type: ignore[operator]
    assert machine_before.parse([]) is None
    assert machine_before.parse([{"kind": machine_before.KIND, "found": "{"}]) is None


def test_a_setting_that_cannot_be_read_does_not_stop_an_init() -> None:
    """As in a container that may not see some of /proc."""

    class Shy(FakeHost):
        def read_text(self, path: Path) -> str:
            raise HostError(f"cannot read {path}", cause="Permission denied", remedy="look", code="file-unreadable")

    host = Shy()
    set_kernel(host, kernel__panic="0")
    assert recall(host)["settings"] == {}


def test_a_setting_that_still_has_the_kubelets_value_goes_back() -> None:
    host = make_host(kernel__panic="10", vm__overcommit_memory="2", kernel__panic_on_oops="1")
    before = {"kernel.panic": "0", "vm.overcommit_memory": "0", "kernel.panic_on_oops": "1", "mine.own": "1"}
    changed = machine_before.find_changed_settings(host, before, own_file=OWN)
    assert changed == {"kernel.panic": "0"}, "the second is another's by now, the third was so, the fourth is not kb's"
    host.accepts = {"sysctl -w kernel.panic=0"}
    assert machine_before.restore_settings(host, changed, bridges=[]) == []


@pytest.mark.parametrize("line", ["kernel.panic = 10", "kernel/panic=10", "-kernel.panic=10"])
def test_a_setting_that_a_file_of_the_admins_wants_stays(line: str) -> None:
    host = make_host(kernel__panic="10")
    host.files["/etc/sysctl.d/50-mine.conf"] = f"# kernel.panic = 0\n{line}\n".encode()
    assert machine_before.find_changed_settings(host, {"kernel.panic": "0"}, own_file=OWN) == {}
    host.files["/etc/sysctl.d/50-mine.conf"] = b"kernel.panic = 0\n"
    host.files[str(OWN)] = f"{line}\n".encode()
    assert machine_before.find_changed_settings(host, {"kernel.panic": "0"}, own_file=OWN) == {"kernel.panic": "0"}


def test_forwarding_stays_for_a_bridge_that_others_made() -> None:
    host = make_host(net__ipv4__ip_forward="1")
    host.answers["ip -brief link show type bridge"] = "cbr0  UP  aa:bb\ndocker0 DOWN cc:dd\n"
    assert machine_before.list_bridges(host) == ["cbr0", "docker0"] == recall(host)["bridges"]
    changed = machine_before.find_changed_settings(host, {"net.ipv4.ip_forward": "0"}, own_file=OWN)
    (told,) = machine_before.restore_settings(host, changed, bridges=["docker0"])
    assert told == "net.ipv4.ip_forward stays 1, since docker0 may need it" and host.changes == []


def test_a_setting_that_the_kernel_does_not_take_is_told() -> None:
    host = make_host(kernel__panic="10")
    host.answers["sysctl -w kernel.panic=0"] = CommandResult((), 255, stderr="permission denied")
    (told,) = machine_before.restore_settings(host, {"kernel.panic": "0"}, bridges=[])
    assert told == "kernel.panic stays 10: permission denied"


def test_folders_that_were_not_there_go_if_they_are_empty() -> None:
    host = FakeHost(dirs={"/usr/libexec"})
    before = recall(host)
    host.dirs |= {"/usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/var/lib/cni/results", "/usr/lib/modules"}
    host.files["/usr/lib/modules/6.1/modules.dep"] = b""
    gone = machine_before.find_left_folders(host, before)
    assert list(map(str, gone)) == [
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
        "/usr/libexec/kubernetes/kubelet-plugins/volume",
        "/usr/libexec/kubernetes/kubelet-plugins",
        "/usr/libexec/kubernetes",
    ]
    host.files["/var/lib/cni/networks/podman/10.88.0.2"] = b"of another program"
    assert Path("/var/lib/cni") not in machine_before.find_left_folders(host, before)


def test_logs_of_pods_go_and_those_of_before_stay() -> None:
    host = FakeHost(files={"/var/log/pods/old_pod/0.log": b"x"})
    before = recall(host)
    host.files |= {"/var/log/pods/new_pod/a/0.log": b"x", "/var/log/containers/new.log": b"x"}
    machine_before.remove_folders(host, machine_before.find_left_folders(host, before))
    assert list(host.files) == ["/var/log/pods/old_pod/0.log"]
    assert machine_before.find_left_folders(host, before) == []
