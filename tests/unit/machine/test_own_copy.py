"""kubeup/machine/own_copy.py: the copy of kb that its units run."""

from __future__ import annotations

from pathlib import Path

from kubeup.machine import own_copy
from tests.fake_host import FakeHost
from tests.fake_node import PATHS


def test_the_unit_runs_the_installed_copy_or_the_checkout() -> None:
    assert own_copy.plan_command(FakeHost(), Path("/root/kb.pyz"), paths=PATHS, python="/usr/bin/python3") == (
        "/usr/bin/python3 -I /usr/local/lib/kb/kb.pyz"
    )
    checkout = Path(own_copy.__file__).parents[2] / "kb.py"
    assert own_copy.plan_command(FakeHost(), None, paths=PATHS, python="py") == f"py {checkout}"
    assert own_copy.find_running_pyz() is None


def test_the_running_pyz_is_installed_once() -> None:
    host = FakeHost(files={"/root/kb.pyz": b"PK..."})
    assert own_copy.ensure_installed_kb(host, PATHS, pyz=Path("/root/kb.pyz")) is True
    assert host.files["/usr/local/lib/kb/kb.pyz"] == b"PK..."
    assert host.modes["/usr/local/lib/kb/kb.pyz"] == 0o755
    assert own_copy.ensure_installed_kb(host, PATHS, pyz=Path("/root/kb.pyz")) is False
    assert own_copy.ensure_installed_kb(host, PATHS, pyz=PATHS.installed_kb) is False
    assert own_copy.ensure_installed_kb(host, PATHS, pyz=None) is False


def test_where_usr_is_read_only_kb_is_installed_in_opt() -> None:
    mounts = b"/dev/sda1 / ext4 rw 0 0\n/dev/sda2 /usr ext4 ro,relatime 0 0\n"
    host = FakeHost(files={"/root/kb.pyz": b"PK...", "/proc/mounts": mounts})
    assert own_copy.ensure_installed_kb(host, PATHS, pyz=Path("/root/kb.pyz")) is True
    assert host.files["/opt/kb/kb.pyz"] == b"PK..."
    assert own_copy.plan_command(host, Path("/root/kb.pyz"), paths=PATHS, python="py") == "py -I /opt/kb/kb.pyz"
    host.files["/proc/mounts"] = mounts + b"/dev/sda3 /usr/local ext4 rw 0 0\n"
    assert (
        own_copy.plan_command(host, Path("/root/kb.pyz"), paths=PATHS, python="py") == "py -I /usr/local/lib/kb/kb.pyz"
    )
