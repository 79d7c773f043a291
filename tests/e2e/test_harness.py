"""The harness proves itself, with no kb involved: nodes are real enough for kubeadm to make a working cluster of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import pytest

from .lab import cgroups, images
from .lab.config import lab_config, list_ignored_checks
from .lab.lab import Lab
from .lab.node import Node
from .world.podnet import CONFLIST, connect_nodes, render_conflist
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]


def test_node_boots_and_takes_commands_and_files(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node("n1")
    assert node.run("systemctl is-active containerd sshd").stdout.split() == ["active", "active"]
    assert node.run(["hostname"]).stdout.strip() == "n1"
    assert node.exec(["hostname"]).stdout.strip() == "n1"
    assert node.run("exit 3", check=False).code == 3
    assert node.run("echo $A", env={"A": "a 'b'"}).stdout == "a 'b'\n"

    (tmp_path / "file").write_text("text")
    assert node.scp(tmp_path / "file") == "/root/file"
    assert node.read("/root/file") == "text"
    node.write("/etc/new/secret", "s", mode=0o600)
    assert node.run("stat -c %a:%U /etc/new/secret").stdout == "600:root\n"


def test_disk_outlives_a_reboot_and_a_power_loss(make_node: MakeNode) -> None:
    node = make_node("n1")
    first_boot = node.run("systemctl show -P UserspaceTimestampMonotonic").stdout
    node.write("/var/lib/kubelet/a", "1")
    node.run("ip route add 192.0.2.0/24 dev eth0")
    node.reboot()
    assert node.read("/var/lib/kubelet/a") == "1"
    assert "192.0.2" not in node.run("ip route").stdout
    assert node.run("systemctl show -P UserspaceTimestampMonotonic").stdout != first_boot

    node.kill()
    assert node.running is None
    assert node.read("/var/lib/kubelet/a") == "1"
    node.write("/etc/while-off", "2")
    node.start()
    assert node.read("/etc/while-off") == "2"


def test_nodes_reach_each_other_and_not_the_outside(make_node: MakeNode, lab: Lab) -> None:
    one, two = make_node("n1"), make_node("n2")
    assert one.run(f"ping -c 1 -W 2 {two.address}").ok
    assert lab.list_outside() == []
    assert not one.run("curl --silent --max-time 3 http://198.51.100.7:81/", check=False).ok
    assert lab.list_outside() == ["198.51.100.7 . tcp . 81"]

    two.unplug()
    assert not one.run(f"ping -c 1 -W 1 {two.address}", check=False).ok
    two.plug()
    assert one.run(f"ping -c 2 -W 2 {two.address}").ok


def test_image_is_pulled_from_the_registry(make_node: MakeNode, lab: Lab, k8s_version: str) -> None:
    node = make_node("n1", version=k8s_version, images=False)
    pause = f"registry.k8s.io/pause:{node.release.facts.pause}"
    assert not node.run(["crictl", "pull", pause], check=False).ok

    lab.registry.add_release(node.release)
    lab.registry.start()
    node.run(["crictl", "pull", pause])
    assert pause.rpartition(":")[0] in node.run("crictl images").stdout
    lab.registry.stop()
    assert not node.run(["crictl", "pull", f"registry.k8s.io/etcd:{node.release.facts.etcd[0]}"], check=False).ok


@pytest.mark.k8s_versions("1.35", "1.36")
def test_sandbox_runs_with_containerds_default_configuration(make_node: MakeNode, k8s_version: str) -> None:
    """This machine may refuse what containerd's defaults ask of runc; the wrapped runc copes (image.RUNC_WRAPPER)."""
    node = make_node("n1", version=k8s_version, containerd_config="default")
    node.write("/root/pod.json", '{"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "linux": {}}')
    node.write("/etc/cni/net.d/10-bridge.conflist", render_conflist())
    # Its own idea of the pause image is not in the store.
    (default,) = set(re.findall(r"registry.k8s.io/pause:[0-9.]+", node.run("containerd config default").stdout))
    ours = f"registry.k8s.io/pause:{node.release.facts.pause}"
    if default != ours:
        node.run(f"ctr -n k8s.io images tag {ours} {default}")
    assert len(node.run("crictl runp /root/pod.json").stdout.strip()) == 64


def test_kubeadm_makes_a_working_cluster(make_node: MakeNode, k8s_version: str) -> None:
    node = make_node("cp1", version=k8s_version, kubeadm=True)
    node.write(CONFLIST, render_conflist())
    node.write("/root/init.yaml", lab_config(k8s_version, address=node.address))
    ignored = ",".join(list_ignored_checks())
    node.run(f"kubeadm init --config init.yaml --ignore-preflight-errors={ignored}", timeout=400)
    node.wait_node_ready()
    check_cluster_serves(node)


@pytest.mark.k8s_versions("1.35")
def test_kubeadm_joins_a_worker(make_node: MakeNode, k8s_version: str) -> None:
    first = make_node("cp1", version=k8s_version, kubeadm=True)
    worker = make_node("w1", version=k8s_version, kubeadm=True)
    ignored = ",".join(list_ignored_checks())
    first.write("/root/init.yaml", lab_config(k8s_version, address=first.address))
    first.run(f"kubeadm init --config init.yaml --ignore-preflight-errors={ignored}", timeout=400)
    join = first.run("kubeadm token create --print-join-command").stdout.strip()
    worker.run(f"{join} --ignore-preflight-errors={ignored}", timeout=400)
    connect_nodes([first, worker])
    first.wait_node_ready()
    first.wait_node_ready("w1")
    check_cluster_serves(first, server="w1", client="cp1")


@pytest.mark.parametrize("variant", ["1.7", "bare"])
def test_other_runtimes_boot(make_node: MakeNode, variant: str) -> None:
    node = make_node("n1", containerd=variant)
    version = node.run("containerd --version", check=False)
    if variant == "bare":
        assert not version.ok
        assert not node.exists("/opt/cni/bin")
        assert not node.run("command -v runc", check=False).ok
    else:
        assert f" {variant}." in version.stdout
        node.run("crictl version || ctr version")


def test_node_may_reboot_itself(make_node: MakeNode) -> None:
    node = make_node("n1")
    node.write("/root/a", "1")
    node.run("systemctl reboot", check=False)
    node.finish_reboot()
    assert node.read("/root/a") == "1"


def test_leftovers_of_a_killed_run_are_removed(lab: Lab) -> None:
    """A second lab of its own: its nodes are forgotten while they run, as if the process had been killed."""
    name = lab.name[:8] + "left"
    node = Lab(name).create().add_node("n1")
    running = node.running
    assert running is not None
    groups = [Path(group) for group in running.groups]
    assert cgroups.list_processes(groups)

    Lab(name).remove_leftovers()
    assert node.running is None
    assert cgroups.list_processes(groups) == set()
    assert not any(group.exists() for group in groups)
    assert not node.folder.exists()
    assert not list(Path("/run/netns").glob(f"kbe2e-{name}*"))


def test_images_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    image = images.Image(("r/a:1", "r/b:1"), {"bin/x": b"x", "etc/y": b"y"}, {"bin/z": "x"}, entrypoint=("/bin/x",))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        images.write_layout(tmp_path / name, [image])
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()
    assert images.list_names(tmp_path / "one") == ["r/a:1", "r/b:1"]
