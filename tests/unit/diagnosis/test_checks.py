from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.config.types import (
    DNS,
    APIServer,
    Arg,
    ClusterConfiguration,
    Component,
    ExternalEtcd,
    KbConfiguration,
    LoadBalancer,
    LocalAPIEndpoint,
    LocalEtcd,
    Networking,
    NodeConfig,
    NodeRegistration,
    PodNetwork,
    Volume,
)
from kubeup.diagnosis.checks import etcd as etcd_checks
from kubeup.diagnosis.checks import facts, table
from kubeup.diagnosis.checks import images as images_checks
from kubeup.diagnosis.checks import kernel as kernel_checks
from kubeup.diagnosis.checks import kubelet as kubelet_checks
from kubeup.diagnosis.checks import machine as machine_checks
from kubeup.diagnosis.checks import ports as ports_checks
from kubeup.diagnosis.checks import proxies as proxies_checks
from kubeup.diagnosis.checks import runtime as runtime_checks
from kubeup.errors import UsageError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.releases import find_release
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.fake_node import finished_node
from tests.unit.node.runtime_case import (
    CRICTL,
    IMAGE_REFS,
    INFO_1_6,
    INFO_2_1,
    SOCKET,
    failed,
    fatal,
    image_list,
    pulling,
    version_text,
)

SYSTEMD = """LoadState=loaded
ActiveState=inactive
UnitFileState=enabled

LoadState=not-found
ActiveState=inactive
UnitFileState=

LoadState=loaded
ActiveState=inactive
UnitFileState=disabled
"""
KERNEL_OPTIONS = sorted(
    {name for names in kernel_checks.KERNEL_OPTIONS for name in names}
    | set(kernel_checks.CGROUP_OPTIONS[1])
    | {"CGROUP_BPF"}
)
MOUNTS_V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
MOUNTS_V1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n" + "".join(
    f"cgroup /sys/fs/cgroup/{name} cgroup rw,{name} 0 0\n" for name in (*kernel_checks.CONTROLLERS[1], "systemd")
)
CGROUPS_V1 = "#subsys_name hierarchy num_cgroups enabled\n" + "".join(
    f"{name} 1 2 1\n" for name in (*kernel_checks.CONTROLLERS[1], *kernel_checks.OPTIONAL_CONTROLLERS[1])
)


def kernel_config(*without: str) -> bytes:
    lines = [f"CONFIG_{name}={'m' if name == 'EXT4_FS' else 'y'}" for name in KERNEL_OPTIONS if name not in without]
    return "\n".join([*lines, *(f"# CONFIG_{name} is not set" for name in without)]).encode()


def fit_host(*, v1: bool = False) -> FakeHost:
    """A node with nothing to complain about: containerd 2.1, cgroup version 2 (or 1), systemd, kubelet 1.35."""
    files = {
        "/run/containerd/containerd.sock": b"",
        "/proc/meminfo": b"MemTotal:        4000000 kB\n",
        "/proc/swaps": b"Filename Type Size Used Priority\n",
        "/proc/mounts": (MOUNTS_V1 if v1 else MOUNTS_V2).encode(),
        "/proc/cgroups": CGROUPS_V1.encode(),
        "/proc/self/status": b"CapBnd:\t000001ffffffffff\n",
        "/proc/sys/kernel/ostype": b"Linux\n",
        "/proc/sys/kernel/osrelease": b"6.1.0-9-amd64\n",
        "/proc/sys/net/ipv4/ip_forward": b"1\n",
        "/proc/sys/net/ipv6/conf/default/forwarding": b"1\n",
        "/proc/config.gz": gzip.compress(kernel_config()),
        "/etc/resolv.conf": b"nameserver 10.0.0.2\n",
    }
    if not v1:
        files["/sys/fs/cgroup/cgroup.controllers"] = b"cpuset cpu io memory hugetlb pids\n"
        files["/sys/fs/cgroup/system.slice/cgroup.freeze"] = b"0\n"
    for name in ("bridge", "host-local", "portmap", "loopback"):
        files[f"/opt/cni/bin/{name}"] = b""
    return FakeHost(
        files=files,
        dirs={"/sys/fs/cgroup/memory"} if v1 else set(),
        programs={"crictl", "containerd", "losetup", "mount", "cp", "apt-get"},
        answers={
            f"{CRICTL} info": json.dumps(INFO_2_1),
            f"{CRICTL} version": version_text("2.1.9"),
            f"{CRICTL} runtime-config": "cgroup driver:   SYSTEMD\n",
            f"{CRICTL} images -o json": '{"images": []}',
            **pulling(*IMAGE_REFS),
            "kubelet --version": "Kubernetes v1.35.6\n",
            "systemctl show": SYSTEMD,
        },
        names={"cp1": ["10.0.0.11"]},
    )


def make_node(
    host: FakeHost,
    *,
    version: str = "v1.35.6",
    name: str = "cp1",
    owned: tuple[str, ...] = (),
    kubelet: Optional[Mapping[str, Any]] = None,
    kubelet_args: tuple[Arg, ...] = (),
    network: str = "bridge",
    workflow: str = facts.INIT,
    **cluster: Any,
) -> facts.Node:
    config = NodeConfig(
        ClusterConfiguration(version, **cluster),
        NodeRegistration(name, cri_socket=SOCKET, kubelet_extra_args=kubelet_args),
        LocalAPIEndpoint("10.0.0.11"),
        kubelet=kubelet or {},
        kb=KbConfiguration(PodNetwork(network)),
    )
    return facts.Node(host, config, find_release(version), owned=frozenset(owned), workflow=workflow)


def found(node: facts.Node, check: Callable[[facts.Node], facts.Findings]) -> list[tuple[str, str]]:
    return [(finding.name, finding.level) for finding in check(node)]


def only(node: facts.Node, check: Callable[[facts.Node], facts.Findings]) -> facts.Finding:
    (finding,) = check(node)
    return finding


# ---- the whole


@pytest.mark.parametrize("version", ["v1.31.0", "v1.35.6", "v1.36.3"])
def test_a_fit_node_has_nothing_to_tell(version: str) -> None:
    host = fit_host()
    host.programs |= {"conntrack", "ip", "iptables"}
    host.answers["kubelet --version"] = f"Kubernetes {version}"
    node = make_node(host, version=version)
    assert table.run_batch(node, facts.ROOT) == []
    assert table.run_batch(node, facts.NODE) == []


def test_every_problem_of_a_batch_is_told_at_once() -> None:
    host = fit_host()
    host.cpus = 1
    host.ports = {10250: "nginx (pid 7)"}
    host.files["/proc/meminfo"] = b"MemTotal: 1000000 kB\n"
    node = make_node(host)
    names = [finding.name for finding in table.run_batch(node, facts.NODE)]
    assert names == ["NumCPU", "Mem", "Port-10250"]


def test_the_order_is_kubeadm_s() -> None:
    names = [check.names for check in table.CHECKS if facts.INIT in check.workflows]
    ours = {
        "AdvertiseAddress",
        "AnonymousAuth",
        "HostPath",
        "KubeletFlags",
        "ServiceRoute",
        "KubeletProxy",
        "CgroupDriver",
        "OOMScoreAdj",
        "SandboxImage",
        "RegistryConfig",
        "CNIPlugins",
        "CNIConfig",
        "OwnUnits",
        "CgroupWritable",
        "DiskSpace",
        "Resolver",
        "LoadBalancerPort-*",
    }
    assert [name for name in names if name not in ours] == [
        "IsPrivilegedUser", "NumCPU", "Mem", "KubernetesVersion", "Firewalld", "Port-*", "FileAvailable-*", "HTTPProxy",
        "HTTPProxyCIDR", "CRI", "ContainerRuntimeVersion", "Swap", "FileExisting-*", "SystemVerification", "Hostname",
        "KubeletVersion", "Service-kubelet", "Port-10250", "FileContent-*", "ExternalEtcdVersion", "Port-*",
        "DirAvailable-*", "ExternalEtcdClientCertificates", "ImagePull",
    ]  # fmt: skip


def test_a_look_that_fails_is_a_finding() -> None:
    host = fit_host()
    del host.answers[f"{CRICTL} images -o json"]
    (finding,) = table.run_batch(make_node(host), facts.IMAGES)
    assert (finding.name, finding.level) == ("ImagePull", "error")


def test_ignored_errors_are_warnings_whatever_the_case() -> None:
    findings = [facts.Finding("Port-10250", "error", "t", "r"), facts.Finding("Swap", "error", "t", "r")]
    errors, warnings = table.judge_findings(findings, table.parse_ignored(["pOrT-10250"]))
    assert [finding.name for finding in errors] == ["Swap"]
    assert [str(finding) for finding in warnings] == ["[WARNING Port-10250]: t. Remedy: r"]
    errors, warnings = table.judge_findings(findings, table.parse_ignored(["all"]))
    assert errors == []
    assert [finding.name for finding in warnings] == ["Port-10250", "Swap"]


def test_all_stands_alone() -> None:
    with pytest.raises(UsageError) as caught:
        table.parse_ignored(["ALL", "Swap"])
    assert caught.value.code == "ignore-all-alone"


def test_the_error_of_a_batch() -> None:
    node = make_node(fit_host())
    driver = facts.Finding("CgroupDriver", "error", "cgroupfs", "set x in /etc/containerd/config.toml")
    assert table.make_error(node, [driver]).remedy.endswith("; with --fix kb corrects containerd's settings itself")
    error = table.make_error(node, [facts.Finding("Swap", "error", "swap is on", "swapoff -a")])
    assert error.code == "preflight"
    assert error.status == 3
    assert error.details == ("[ERROR Swap]: swap is on. Remedy: swapoff -a",)
    assert "--ignore-preflight-errors=Swap" in error.remedy


# ---- the machine


def test_root_user() -> None:
    host = fit_host()
    assert found(make_node(host), machine_checks.check_root_user) == []
    host.root_user = False
    assert found(make_node(host), machine_checks.check_root_user) == [("IsPrivilegedUser", "error")]


def test_cpus() -> None:
    host = fit_host()
    host.cpus = 2
    assert found(make_node(host), machine_checks.check_cpus) == []
    host.cpus = 1
    assert only(make_node(host), machine_checks.check_cpus).text == "1 CPU available; a control plane needs 2"


@pytest.mark.parametrize(("kib", "names"), [(1700 * 1024, []), (1700 * 1024 - 1, [("Mem", "error")])])
def test_memory(kib: int, names: list[tuple[str, str]]) -> None:
    host = fit_host()
    host.files["/proc/meminfo"] = f"MemFree: 1 kB\nMemTotal:   {kib} kB\n".encode()
    assert found(make_node(host), machine_checks.check_memory) == names


def test_kubernetes_version() -> None:
    assert found(make_node(fit_host(), version="v1.36.3"), machine_checks.check_kubernetes_version) == []
    assert found(make_node(fit_host(), version="v1.37.0"), machine_checks.check_kubernetes_version) == [
        ("KubernetesVersion", "warning")
    ]


def test_firewall() -> None:
    host = fit_host()
    assert found(make_node(host), machine_checks.check_firewall) == []
    host.answers["systemctl show"] = SYSTEMD.replace(
        "LoadState=not-found\nActiveState=inactive", "LoadState=loaded\nActiveState=active"
    )
    host.answers["firewall-cmd --list-ports"] = "6443/tcp 80/tcp\n"
    finding = only(make_node(host), machine_checks.check_firewall)
    assert (finding.name, finding.level) == ("Firewalld", "warning")
    assert finding.remedy == "firewall-cmd --permanent --add-port=10250/tcp && firewall-cmd --reload"
    host.answers["firewall-cmd --list-ports"] = "6443/tcp 10250/tcp\n"
    assert found(make_node(host), machine_checks.check_firewall) == []


def test_disk_space() -> None:
    host = fit_host()
    host.free = 2**30
    assert found(make_node(host), machine_checks.check_disk_space) == []
    host.free = 2**30 - 1
    findings = list(machine_checks.check_disk_space(make_node(host)))
    assert [finding.text.split(",")[0] for finding in findings] == [
        "1023 MiB are free for /var/lib/etcd",
        "1023 MiB are free for /var/lib/containerd",
    ]


SWAPS = b"Filename Type Size Used Priority\n/dev/sda2 partition 999 0 -2\n/dev/zram0 partition 9 0 100\n"


def test_swap_is_an_error_with_the_whole_remedy() -> None:
    host = fit_host()
    host.files["/proc/swaps"] = SWAPS
    host.files["/etc/fstab"] = (
        b"# x\nUUID=1 / ext4 defaults 0 1\n/dev/sda2 none swap sw 0 0\n#/dev/sdb none swap sw 0 0\n"
    )
    finding = only(make_node(host), machine_checks.check_swap)
    assert (finding.name, finding.level) == ("Swap", "error")
    assert "/dev/sda2, /dev/zram0" in finding.text
    assert "swapoff -a, then comment out line 3 of /etc/fstab" in finding.remedy
    assert "systemd-zram-setup@zram0.service" in finding.remedy


def test_swap_that_the_kubelet_bears() -> None:
    host = fit_host()
    assert found(make_node(host), machine_checks.check_swap) == []
    host.files["/proc/swaps"] = SWAPS
    assert found(make_node(host, kubelet={"failSwapOn": False}), machine_checks.check_swap) == []
    assert found(make_node(host, kubelet_args=(Arg("fail-swap-on", "false"),)), machine_checks.check_swap) == []
    # the flag beats the file, and swapBehavior alone does not make the kubelet start
    args = (Arg("fail-swap-on", "true"),)
    assert found(make_node(host, kubelet={"failSwapOn": False}, kubelet_args=args), machine_checks.check_swap) == [
        ("Swap", "error")
    ]
    assert found(
        make_node(host, kubelet={"memorySwap": {"swapBehavior": "LimitedSwap"}}), machine_checks.check_swap
    ) == [("Swap", "error")]


@pytest.mark.parametrize(
    ("name", "level", "remedy"),
    [
        ("cp1", "", ""),
        ("Node_1", "error", "--node-name node-1"),
        ("localhost", "warning", "give it another name: --node-name cp1"),
        ("unknown", "warning", 'echo "10.0.0.11 unknown" >> /etc/hosts'),
    ],
)
def test_hostname(name: str, level: str, remedy: str) -> None:
    findings = list(machine_checks.check_hostname(make_node(fit_host(), name=name)))
    assert [(finding.level, finding.remedy) for finding in findings] == ([(level, remedy)] if level else [])


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("v1.31.0", ["conntrack", "ip", "iptables", "losetup", "mount", "cp"]),
        ("v1.32.0", ["ip", "iptables", "losetup", "mount", "cp"]),
        ("v1.33.0", ["losetup", "mount", "cp"]),
        ("v1.35.0", ["losetup", "mount", "cp"]),
    ],
)
def test_programs(version: str, names: list[str]) -> None:
    host = fit_host()
    host.programs = {"dnf"}
    findings = list(machine_checks.check_programs(make_node(host, version=version)))
    assert [finding.name for finding in findings] == [f"FileExisting-{name}" for name in names]
    assert findings[-2].remedy == "dnf install util-linux"


def test_forwarding_follows_the_families() -> None:
    host = fit_host()
    host.files["/proc/sys/net/ipv4/ip_forward"] = b"0\n"
    host.files["/proc/sys/net/ipv6/conf/default/forwarding"] = b"0\n"
    mended = dataclasses.replace(make_node(host), mends=frozenset({"install/sysctls"}))
    assert found(mended, machine_checks.check_forwarding) == []  # that phase comes after the checks
    finding = only(make_node(host), machine_checks.check_forwarding)
    assert (finding.name, finding.level) == ("FileContent--proc-sys-net-ipv4-ip_forward", "error")
    assert finding.remedy == "sysctl -w net.ipv4.ip_forward=1"
    host.files["/etc/sysctl.d/99-zz-cis.conf"] = b"# CIS 3.1.1\nnet.ipv4.ip_forward = 0\n"
    hardened = only(make_node(host), machine_checks.check_forwarding)
    assert hardened.remedy.endswith(", and out of /etc/sysctl.d/99-zz-cis.conf, which sets it at every boot")
    del host.files["/etc/sysctl.d/99-zz-cis.conf"]
    dual = make_node(host, networking=Networking("10.96.0.0/12,fd00:1::/112", "10.244.0.0/16,fd00:2::/64"))
    assert [name for name, _ in found(dual, machine_checks.check_forwarding)] == [
        "FileContent--proc-sys-net-ipv4-ip_forward",
        "FileContent--proc-sys-net-ipv6-conf-default-forwarding",
    ]
    del host.files["/proc/sys/net/ipv4/ip_forward"]
    assert "does not exist" in only(make_node(host), machine_checks.check_forwarding).text


# ---- ports, files, folders


def test_a_port_in_use_names_its_process() -> None:
    host = fit_host()
    host.ports = {6443: "haproxy (pid 99)", 10257: "another process", 10259: "kube-scheduler (pid 5)"}
    api, scheduler, manager = ports_checks.check_control_plane_ports(make_node(host))
    assert api.name == "Port-6443"
    assert "port 6443, which kube-apiserver needs, is in use by haproxy (pid 99)" in api.text
    assert "ps -fp 99" in api.remedy
    assert scheduler.name == "Port-10259"
    assert scheduler.remedy.endswith("stop it with the tools of the cluster that it belongs to")
    assert (manager.name, manager.remedy) == ("Port-10257", "find it: ss -ltnp sport = :10257")


def test_kb_does_not_stumble_over_its_own_processes() -> None:
    host = fit_host()
    host.ports = {
        6443: "kube-apiserver (pid 1)",
        10257: "kube-controller (pid 2)",
        10250: "kubelet (pid 3)",
        2379: "etcd (pid 4)",
    }
    host.files.update({"/var/lib/etcd/member/x": b""})
    manifests = [
        f"/etc/kubernetes/manifests/{name}.yaml" for name in ("kube-apiserver", "kube-controller-manager", "etcd")
    ]
    host.files.update(dict.fromkeys(manifests, b"x"))
    owned = (*manifests, "/var/lib/kubelet/config.yaml")
    node = make_node(host, owned=owned)
    assert table.run_batch(node, facts.NODE) == []
    strange = [name for name, _ in [(finding.name, 0) for finding in table.run_batch(make_node(host), facts.NODE)]]
    assert strange == [
        "Port-6443", "Port-10257", "FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml",
        "FileAvailable--etc-kubernetes-manifests-kube-controller-manager.yaml",
        "FileAvailable--etc-kubernetes-manifests-etcd.yaml", "Port-10250", "Port-2379", "DirAvailable--var-lib-etcd",
    ]  # fmt: skip


def test_resuming_does_not_excuse_another_s_process() -> None:
    host = fit_host()
    host.ports = {6443: "haproxy (pid 9)"}
    node = make_node(host, owned=("/etc/kubernetes/manifests/kube-apiserver.yaml",))
    assert found(node, ports_checks.check_control_plane_ports) == [("Port-6443", "error")]


def test_ports_are_probed_where_the_release_says() -> None:
    asked: list[tuple[int, str]] = []

    class Recorder(FakeHost):
        def port_holder(self, port: int, address: str = "") -> Optional[str]:
            asked.append((port, address))
            return None

    host = Recorder(**{item.name: getattr(fit_host(), item.name) for item in dataclasses.fields(FakeHost)})
    list(ports_checks.check_control_plane_ports(make_node(host, version="v1.36.0")))
    assert {address for _, address in asked} == {""}
    asked.clear()
    api = APIServer(extra_args=(Arg("bind-address", "10.0.0.12"),))
    list(ports_checks.check_control_plane_ports(make_node(host, version="v1.37.0", api_server=api)))
    assert asked == [(6443, "10.0.0.12"), (10259, "127.0.0.1"), (10257, "127.0.0.1")]


def test_no_etcd_ports_and_folder_with_an_external_etcd() -> None:
    host = fit_host()
    host.ports = {2379: "x (pid 1)"}
    host.files["/var/lib/etcd/a"] = b""
    node = make_node(host, local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))
    assert found(node, ports_checks.check_etcd_ports) == []
    assert found(node, ports_checks.check_etcd_folder) == []


@pytest.mark.parametrize(
    ("extra", "words", "removal"),
    [
        ({"/etc/rancher/k3s/k3s.yaml": b""}, "belongs to k3s", "k3s-uninstall.sh"),
        ({"/var/lib/kubelet/kubeadm-flags.env": b""}, "kubeadm made this node part of a cluster", "kubeadm reset"),
        ({}, "neither kb nor kubeadm created it", "mv /etc/kubernetes/manifests/etcd.yaml /root/"),
    ],
)
def test_a_manifest_of_someone_else_is_told_apart(extra: dict[str, bytes], words: str, removal: str) -> None:
    """And the remedy is one that works: kb reset takes back nothing that kb did not make."""
    host = fit_host()
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b"kind: Pod\n"
    host.files.update(extra)
    finding = only(make_node(host), ports_checks.check_manifests)
    assert finding.name == "FileAvailable--etc-kubernetes-manifests-etcd.yaml"
    assert words in finding.text
    assert removal in finding.remedy


def test_a_port_of_kubeadm_s_cluster_is_freed_by_kubeadm() -> None:
    host = fit_host()
    host.ports = {10259: "kube-scheduler (pid 5)"}
    host.files["/var/lib/kubelet/kubeadm-flags.env"] = b""
    (scheduler,) = ports_checks.check_control_plane_ports(make_node(host))
    assert ": kubeadm reset" in scheduler.remedy


def test_join_looks_for_an_earlier_join() -> None:
    host = fit_host()
    host.files["/etc/kubernetes/kubelet.conf"] = b""
    names = [finding.name for finding in table.run_batch(make_node(host, workflow=facts.JOIN), facts.NODE)]
    assert names == ["FileAvailable--etc-kubernetes-kubelet.conf"]


def test_etcd_folder() -> None:
    host = fit_host()
    host.dirs.add("/var/lib/etcd")
    assert found(make_node(host), ports_checks.check_etcd_folder) == []
    host.files["/var/lib/etcd/member/snap/db"] = b""
    finding = only(make_node(host), ports_checks.check_etcd_folder)
    assert (finding.name, finding.level) == ("DirAvailable--var-lib-etcd", "error")
    assert "the data of an etcd" in finding.text
    assert finding.remedy.endswith("mv /var/lib/etcd /var/lib/etcd.old")
    elsewhere = make_node(host, local_etcd=LocalEtcd(data_dir="/data/etcd"))
    assert found(elsewhere, ports_checks.check_etcd_folder) == []


# ---- proxies


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_used"),
    [
        ("", "10.0.0.11", True),
        ("10.0.0.11", "10.0.0.11", False),
        ("10.0.0.0/8", "10.0.0.11", False),
        ("10.1.0.0/16", "10.0.0.11", True),
        ("10.0.0.11:443", "10.0.0.11", False),
        ("10.0.0.11:6443", "10.0.0.11", True),
        ("*", "example.com", False),
        ("example.com", "api.example.com", False),
        ("example.com", "example.com", False),
        (".example.com", "example.com", True),
        ("*.example.com", "a.example.com", False),
        (" Example.COM ", "example.com", False),
        ("ample.com", "example.com", True),
        ("", "localhost", False),
        ("", "127.0.0.1", False),
        ("", "::1", False),
        ("fd00::/8", "fd00::1", False),
        ("fd00::1", "fd00:0::1", False),
        ("[fd00::1]:443", "[fd00::1]", False),
        ("fd00::2", "fd00::1", True),
    ],
)
def test_proxy_rules_are_go_s(no_proxy: str, host: str, is_used: bool) -> None:
    assert bool(proxies_checks.uses_proxy({"HTTPS_PROXY": "http://p:1", "no_proxy": no_proxy}, host)) is is_used


def test_no_proxy_without_a_proxy_for_https() -> None:
    assert proxies_checks.uses_proxy({"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, "10.0.0.11") == ""


def test_proxy_for_the_api_server() -> None:
    host = fit_host()
    assert found(make_node(host), proxies_checks.check_proxy) == []
    host.env = {"https_proxy": "http://user:secret@proxy:3128", "NO_PROXY": "corp.example"}
    finding = only(make_node(host, networking=Networking(pod_subnet="10.244.0.0/16")), proxies_checks.check_proxy)
    assert (finding.name, finding.level) == ("HTTPProxy", "error")
    assert "secret" not in finding.text
    assert finding.remedy == (
        "export NO_PROXY=corp.example,localhost,127.0.0.1,10.0.0.11,10.96.0.0/12,10.244.0.0/16,.svc,.cluster.local"
    )


def test_a_proxy_that_systemd_gives_the_kubelet() -> None:
    host = fit_host()
    assert found(make_node(host), proxies_checks.check_kubelet_proxy) == []
    host.answers["systemctl show-environment"] = "PATH=/bin\nHTTPS_PROXY=http://user:secret@proxy:3128\n"
    finding = only(make_node(host), proxies_checks.check_kubelet_proxy)
    assert (finding.name, finding.level) == ("KubeletProxy", "error")
    assert "the proxy http://proxy:3128" in finding.text
    assert "Environment=NO_PROXY=localhost,127.0.0.1,10.0.0.11," in finding.remedy
    host.answers["systemctl show kubelet --property Environment"] = "A=b NO_PROXY=10.0.0.0/8\n"
    assert found(make_node(host), proxies_checks.check_kubelet_proxy) == []
    host.files["/etc/kubernetes/kubelet.conf"] = (
        b"clusters:\n- cluster:\n    server: https://kb-api.cluster.local:7443\n"
    )
    finding = only(make_node(host), proxies_checks.check_kubelet_proxy)
    assert "which it asks for the API server kb-api.cluster.local: its node does not stay Ready" in finding.text
    for odd in ("https://[", "https://x:y", "https://x:99999"):
        host.files["/etc/kubernetes/kubelet.conf"] = f"clusters:\n- cluster:\n    server: {odd}\n".encode()
        assert found(make_node(host), proxies_checks.check_kubelet_proxy) == [], odd
    host.files["/etc/kubernetes/kubelet.conf"] = (
        b"clusters:\n- cluster:\n    server: https://kb-api.cluster.local:7443\n"
    )
    host.answers["systemctl show kubelet --property Environment"] = "NO_PROXY=.cluster.local\n"
    assert found(make_node(host), proxies_checks.check_kubelet_proxy) == [], "a worker's own address is nothing to it"


def test_the_completed_no_proxy_silences_both_checks() -> None:
    host = fit_host()
    host.env = {"https_proxy": "http://proxy:3128"}
    node = make_node(host, networking=Networking(pod_subnet="10.244.0.0/16,fd00::/64"))
    assert found(node, proxies_checks.check_proxy_cidrs) == [("HTTPProxyCIDR", "warning")] * 3
    host.env["NO_PROXY"] = proxies_checks.complete_no_proxy(host.env, node.config)
    assert found(node, proxies_checks.check_proxy_cidrs) == []
    assert found(node, proxies_checks.check_proxy) == []


def test_a_cidr_that_is_none() -> None:
    node = make_node(fit_host(), networking=Networking(service_subnet="10.96.0.0/99"))
    assert found(node, proxies_checks.check_proxy_cidrs) == [("HTTPProxyCIDR", "error")]


# ---- the runtime


def old_runtime(host: FakeHost, **config: Any) -> FakeHost:
    """containerd 1.6, which says nothing of its cgroup driver."""
    info = {**INFO_1_6, "config": {**INFO_1_6["config"], **config}}
    host.answers[f"{CRICTL} info"] = json.dumps(info)
    host.answers[f"{CRICTL} version"] = version_text("1.6.20")
    host.answers[f"{CRICTL} runtime-config"] = failed("rpc error: code = Unimplemented desc = unknown method")
    return host


def test_runtime() -> None:
    assert found(make_node(fit_host()), runtime_checks.check_runtime) == []
    host = fit_host()
    del host.files["/run/containerd/containerd.sock"]
    finding = only(make_node(host), runtime_checks.check_runtime)
    assert (finding.name, finding.level) == ("CRI", "error")
    assert "systemctl enable --now containerd" in finding.remedy


def test_a_dead_runtime_is_told_once() -> None:
    host = fit_host()
    del host.files["/run/containerd/containerd.sock"]
    assert [finding.name for finding in table.run_batch(make_node(host), facts.NODE)] == ["CRI"]


@pytest.mark.parametrize(
    ("version", "level"), [("v1.34.9", ""), ("v1.35.6", "warning"), ("v1.36.3", "warning"), ("v1.37.0", "error")]
)
def test_runtime_version(version: str, level: str) -> None:
    node = make_node(old_runtime(fit_host()), version=version)
    assert found(node, runtime_checks.check_runtime_version) == ([("ContainerRuntimeVersion", level)] if level else [])
    assert found(make_node(fit_host(), version=version), runtime_checks.check_runtime_version) == []


def test_cgroup_driver_mismatch() -> None:
    node = make_node(old_runtime(fit_host()))
    finding = only(node, runtime_checks.check_cgroup_driver)
    assert (finding.name, finding.level) == ("CgroupDriver", "error")
    assert "cgroup driver cgroupfs, the kubelet systemd" in finding.text
    assert "set SystemdCgroup = true" in finding.remedy
    agreed = make_node(old_runtime(fit_host()), kubelet={"cgroupDriver": "cgroupfs"})
    assert found(agreed, runtime_checks.check_cgroup_driver) == []


def test_cgroup_driver_that_only_the_file_has() -> None:
    host = old_runtime(fit_host())
    host.answers["containerd config dump"] = (
        "[grpc]\naddress = '/run/containerd/containerd.sock'\n"
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n"
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
    )
    assert only(make_node(host), runtime_checks.check_cgroup_driver).remedy.startswith("systemctl restart containerd")


def test_a_runtime_that_tells_its_driver_needs_no_agreement() -> None:
    node = make_node(fit_host(), kubelet={"cgroupDriver": "cgroupfs"})
    assert found(node, runtime_checks.check_cgroup_driver) == []


def test_a_kubelet_on_cgroupfs_with_a_runtime_on_systemd() -> None:
    containerd = {"defaultRuntimeName": "runc", "runtimes": {"runc": {"options": {"SystemdCgroup": True}}}}
    node = make_node(old_runtime(fit_host(), containerd=containerd), kubelet_args=(Arg("cgroup-driver", "cgroupfs"),))
    assert (
        only(node, runtime_checks.check_cgroup_driver).remedy == "set cgroupDriver: systemd in the KubeletConfiguration"
    )


def test_oom_score() -> None:
    host = old_runtime(fit_host())
    assert found(make_node(host), runtime_checks.check_oom_score) == []
    host.files["/proc/self/status"] = b"CapEff:\t000001ffffffffff\nCapBnd:\t000001fffeffffff\n"
    finding = only(make_node(host), runtime_checks.check_oom_score)
    assert (finding.name, finding.level) == ("OOMScoreAdj", "error")
    assert "restrict_oom_score_adj = true" in finding.remedy
    assert found(make_node(old_runtime(host, restrictOOMScoreAdj=True)), runtime_checks.check_oom_score) == []


def test_sandbox_image() -> None:
    node = make_node(old_runtime(fit_host(), sandboxImage="registry.k8s.io/pause:3.10.1"))
    assert found(node, runtime_checks.check_sandbox_image) == []
    finding = only(
        make_node(old_runtime(fit_host()), image_repository="r.example/k"), runtime_checks.check_sandbox_image
    )
    assert (finding.name, finding.level) == ("SandboxImage", "warning")
    assert 'sandbox_image = "r.example/k/pause:3.10.1"' in finding.remedy


def test_no_route_leads_to_services() -> None:
    host = fit_host()
    host.answers["ip -json -4 route show table all"] = json.dumps([{"dst": "10.0.0.0/24", "dev": "ens3"}])
    host.answers["ip -json addr"] = json.dumps([{"ifname": "ens3", "addr_info": [{"local": "10.0.0.11"}]}])
    finding = only(make_node(host, network="none"), machine_checks.check_service_route)
    assert (finding.name, finding.level) == ("ServiceRoute", "warning")
    assert "no route of this machine leads to 10.96.0.0/12" in finding.text
    assert "ip route add 10.96.0.0/12 dev ens3" in finding.remedy
    assert found(make_node(host, network="bridge"), machine_checks.check_service_route) == []  # kb keeps one itself
    host.answers["ip -json -4 route show table all"] = json.dumps([{"dst": "default", "gateway": "10.0.0.1"}])
    assert found(make_node(host, network="none"), machine_checks.check_service_route) == []


def test_a_hosts_toml_that_nothing_reads() -> None:
    host = old_runtime(fit_host())
    assert found(make_node(host), runtime_checks.check_registry_config) == []
    host.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = b""
    finding = only(make_node(host), runtime_checks.check_registry_config)
    assert (finding.name, finding.level) == ("RegistryConfig", "warning")
    assert "hosts.toml for registry.k8s.io" in finding.text and "config_path is not set" in finding.text
    assert 'set config_path = "/etc/containerd/certs.d" below' in finding.remedy
    for told in ("/etc/containerd/certs.d", "/etc/docker/certs.d:/etc/containerd/certs.d"):
        read = old_runtime(fit_host(), registry={"configPath": told})
        read.files["/etc/containerd/certs.d/registry.k8s.io/hosts.toml"] = b""
        assert found(make_node(read), runtime_checks.check_registry_config) == []


def test_cni_plugins() -> None:
    host = fit_host()
    assert found(make_node(host), runtime_checks.check_cni_plugins) == []
    del host.files["/opt/cni/bin/portmap"]
    finding = only(make_node(host), runtime_checks.check_cni_plugins)
    assert (finding.name, finding.level) == ("CNIPlugins", "error")
    assert "portmap" in finding.text
    assert "bridge" not in finding.text.partition(":")[0]
    assert found(make_node(host, network="none"), runtime_checks.check_cni_plugins) == []


def test_another_network_that_is_there_already_is_told_before_the_cluster_is_made() -> None:
    host = fit_host()
    assert found(make_node(host), runtime_checks.check_pod_network) == []
    host.files["/etc/cni/net.d/10-other.conflist"] = b"{}"
    finding = only(make_node(host), runtime_checks.check_pod_network)
    assert (finding.name, finding.level) == ("CNIConfig", "error")
    assert "/etc/cni/net.d/10-other.conflist already exists" in finding.text
    assert found(make_node(host, network="none"), runtime_checks.check_pod_network) == []
    host.files["/etc/systemd/system/kb-routes.service"] = b""  # installed on top of kb's since
    assert found(make_node(host), runtime_checks.check_pod_network) == []


def test_a_manifest_that_is_not_there_is_told_before_the_cluster_is_made() -> None:
    host = fit_host()
    node = make_node(host, network="manifest")
    node = dataclasses.replace(
        node, config=dataclasses.replace(node.config, kb=KbConfiguration(PodNetwork("manifest", "/root/net.yaml")))
    )
    finding = only(node, runtime_checks.check_pod_network)
    assert (finding.name, finding.level) == ("PodNetworkManifest", "error")
    assert "'/root/net.yaml': there is no such file" in finding.text
    host.files["/root/net.yaml"] = b"kind: Pool\n"
    assert "not a Kubernetes object" in only(node, runtime_checks.check_pod_network).text
    host.files["/root/net.yaml"] = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: network}\n"
    assert found(node, runtime_checks.check_pod_network) == []
    del host.files["/root/net.yaml"]
    skipping = dataclasses.replace(node, skipped=frozenset({"pod-network"}))
    assert found(skipping, runtime_checks.check_pod_network) == []


# ---- the kernel


@pytest.mark.parametrize(
    ("release", "version", "level"),
    [
        ("6.18.44-x", "v1.35.6", ""),
        ("10.0.1", "v1.35.6", ""),
        ("5.15.0-91-generic", "v1.35.6", ""),
        ("5.4.0", "v1.33.0", ""),
        ("4.18.0-425.el8", "v1.35.6", "warning"),
        ("5.9.1", "v1.34.0", "warning"),
        ("3.10.0-1160.el7", "v1.33.0", "error"),
    ],
)
def test_kernel_release(release: str, version: str, level: str) -> None:
    host = fit_host()
    host.files["/proc/sys/kernel/osrelease"] = f"{release}\n".encode()
    node = make_node(host, version=version)
    assert found(node, kernel_checks.check_system) == ([("SystemVerification", level)] if level else [])


def test_another_operating_system() -> None:
    host = fit_host()
    host.files["/proc/sys/kernel/ostype"] = b"FreeBSD\n"
    assert "FreeBSD" in only(make_node(host), kernel_checks.check_system).text


@pytest.mark.parametrize("name", ["MEMCG", "CGROUP_BPF", "EXT4_FS", "PID_NS"])
def test_a_kernel_option_that_is_missing(name: str) -> None:
    host = fit_host()
    host.files["/proc/config.gz"] = gzip.compress(kernel_config(name))
    finding = only(make_node(host), kernel_checks.check_system)
    assert (finding.name, finding.level) == ("SystemVerification", "error")
    assert finding.text.endswith(f"lacks CONFIG_{name}")


def test_options_of_the_other_cgroup_version_are_not_wanted() -> None:
    host = fit_host()
    host.files["/proc/config.gz"] = gzip.compress(kernel_config("CGROUP_FREEZER", "CGROUP_DEVICE"))
    assert found(make_node(host), kernel_checks.check_system) == []
    host.files["/proc/config.gz"] = gzip.compress(kernel_config("IP_NF_TARGET_REDIRECT"))
    assert found(make_node(host), kernel_checks.check_system) == []


@pytest.mark.parametrize("pattern", kernel_checks.KERNEL_CONFIGS[1:])
def test_a_kernel_config_elsewhere(pattern: str) -> None:
    host = fit_host()
    del host.files["/proc/config.gz"]
    host.files[pattern.format(release="6.1.0-9-amd64")] = kernel_config()
    assert found(make_node(host), kernel_checks.check_system) == []
    assert host.changes == []


def test_the_kernel_config_comes_with_a_module() -> None:
    host = fit_host()
    data = host.files.pop("/proc/config.gz")

    def load(argv: tuple[str, ...]) -> CommandResult:
        host.files["/proc/config.gz"] = data
        return CommandResult(argv, 0)

    host.answers["modprobe configs"] = load
    assert found(make_node(host), kernel_checks.check_system) == []
    assert host.changes == ["run modprobe configs"]


@pytest.mark.parametrize("data", [None, b"no gzip"])
def test_no_kernel_config(data: Optional[bytes]) -> None:
    host = fit_host()
    del host.files["/proc/config.gz"]
    if data is not None:
        host.files["/proc/config.gz"] = data
    host.accepts = {"modprobe configs"}
    finding = only(make_node(host), kernel_checks.check_system)
    assert (finding.level, "cannot be read" in finding.text) == ("error", True)
    assert "--ignore-preflight-errors=SystemVerification" in finding.remedy
    assert only(make_node(host, workflow=facts.DOCTOR), kernel_checks.check_system).level == "warning"


@pytest.mark.parametrize(
    ("kubelet", "settings", "args", "level"),
    [
        ("v1.35.6", {}, (), "error"),
        ("v1.36.0", {"failCgroupV1": True}, (), "error"),
        ("v1.99.0", {}, (), "error"),
        ("v1.34.9", {}, (), "warning"),
        ("v1.28.0", {}, (), "warning"),
        ("v1.35.6", {"failCgroupV1": False}, (), "warning"),
        ("v1.35.6", {}, (Arg("fail-cgroupv1", "false"),), "warning"),
    ],
)
def test_cgroup_v1(kubelet: str, settings: dict[str, Any], args: tuple[Arg, ...], level: str) -> None:
    host = fit_host(v1=True)
    host.answers["kubelet --version"] = f"Kubernetes {kubelet}"
    node = make_node(host, kubelet=settings, kubelet_args=args)
    assert found(node, kernel_checks.check_system) == [("SystemVerification", level)]


def test_cgroup_v1_without_a_kubelet_goes_by_the_release() -> None:
    host = fit_host(v1=True)
    del host.answers["kubelet --version"]
    assert found(make_node(host), kernel_checks.check_system) == [("SystemVerification", "error")]
    assert found(make_node(host, version="v1.34.0"), kernel_checks.check_system) == [("SystemVerification", "warning")]


def test_controllers() -> None:
    host = fit_host()
    host.files["/sys/fs/cgroup/cgroup.controllers"] = b"cpuset cpu pids\n"
    errors = [finding for finding in kernel_checks.check_system(make_node(host)) if finding.level == "error"]
    assert [finding.text for finding in errors] == ["missing required cgroups: memory"]
    warnings = [finding for finding in kernel_checks.check_system(make_node(host)) if finding.level == "warning"]
    assert [finding.text for finding in warnings] == ["missing optional cgroups: hugetlb io"]
    old = fit_host(v1=True)
    old.files["/proc/cgroups"] = CGROUPS_V1.replace("memory 1 2 1", "memory 0 1 0").encode()
    texts = [finding.text for finding in kernel_checks.check_system(make_node(old, kubelet={"failCgroupV1": False}))]
    assert "missing required cgroups: memory" in texts


def test_no_cgroups_at_all() -> None:
    host = fit_host()
    host.files["/proc/mounts"] = b"proc /proc proc rw 0 0\n"
    assert only(make_node(host), kernel_checks.check_system).text == "no cgroup file system is mounted"


def test_find_cgroups() -> None:
    host = fit_host()
    host.files["/proc/mounts"] = b"x /elsewhere cgroup2 rw 0 0\n"
    assert kernel_checks.find_cgroups(make_node(host)) == (2, "/elsewhere")
    host.files["/proc/mounts"] = b"x /cg/cpu cgroup rw 0 0\n"
    assert kernel_checks.find_cgroups(make_node(host)) == (1, "/cg")
    assert kernel_checks.find_cgroups(make_node(fit_host(v1=True))) == (1, "/sys/fs/cgroup")


def test_the_freezer_is_probed_where_no_cgroup_shows_it() -> None:
    host = fit_host()
    del host.files["/sys/fs/cgroup/system.slice/cgroup.freeze"]
    texts = [finding.text for finding in kernel_checks.check_system(make_node(host))]
    assert texts == ["missing required cgroups: freezer"]
    assert host.changes == ["mkdir /sys/fs/cgroup/freezer-test-kb", "remove /sys/fs/cgroup/freezer-test-kb"]
    host.files["/sys/fs/cgroup/init.scope/cgroup.procs"] = b""
    host.changes.clear()
    assert [finding.text for finding in kernel_checks.check_system(make_node(host))] == texts
    assert host.changes == []
    host.is_live = False
    assert found(make_node(host), kernel_checks.check_system) == []


def test_cgroup_writable() -> None:
    assert found(make_node(fit_host()), kernel_checks.check_cgroup_writable) == []
    host = fit_host(v1=True)
    assert found(make_node(host), kernel_checks.check_cgroup_writable) == []
    host.files["/proc/mounts"] += b"cgroup /sys/fs/cgroup/cpuset cgroup ro,cpuset 0 0\n"
    finding = only(make_node(host), kernel_checks.check_cgroup_writable)
    assert (finding.name, finding.level) == ("CgroupWritable", "error")
    assert finding.text.startswith("/sys/fs/cgroup/cpuset is mounted read-only")
    assert finding.remedy == "mount -o remount,bind,rw /sys/fs/cgroup/cpuset"
    host.files["/proc/mounts"] += b"cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
    assert found(make_node(host), kernel_checks.check_cgroup_writable) == []
    unified = fit_host()
    unified.files["/proc/mounts"] = MOUNTS_V2.replace("rw,", "ro,").encode()
    assert found(make_node(unified), kernel_checks.check_cgroup_writable) == [("CgroupWritable", "error")]


# ---- the kubelet


@pytest.mark.parametrize(
    ("answer", "workflow", "words"),
    [
        ("Kubernetes v1.35.0", "init", ""),
        ("Kubernetes v1.32.0", "init", ""),
        ("Kubernetes v1.31.9", "init", "too old"),
        ("Kubernetes v1.36.0", "init", "newer than the control plane"),
        ("Kubernetes v1.36.0", "join", "newer than the control plane"),
        ("nonsense", "init", "does not print its version"),
        (None, "init", "no kubelet in PATH"),
    ],
)
def test_kubelet_version(answer: Optional[str], workflow: str, words: str) -> None:
    host = fit_host()
    del host.answers["kubelet --version"]
    if answer is not None:
        host.answers["kubelet --version"] = answer
    findings = list(kubelet_checks.check_kubelet_version(make_node(host, workflow=workflow)))
    assert [(finding.name, finding.level, words in finding.text) for finding in findings] == (
        [("KubeletVersion", "error", True)] if words else []
    )


@pytest.mark.parametrize(
    ("load", "enabled", "level", "remedy"),
    [
        ("loaded", "enabled", "", ""),
        ("loaded", "static", "", ""),
        ("loaded", "disabled", "warning", "systemctl enable kubelet.service"),
        ("not-found", "", "error", "install it: apt-get install kubelet"),
        ("masked", "masked", "error", "systemctl unmask kubelet"),
    ],
)
def test_kubelet_unit(load: str, enabled: str, level: str, remedy: str) -> None:
    host = fit_host()
    unit = f"LoadState={load}\nActiveState=inactive\nUnitFileState={enabled}\n\n"
    host.answers["systemctl show"] = unit + SYSTEMD.partition("\n\n")[2]
    findings = [(finding.level, finding.remedy) for finding in kubelet_checks.check_kubelet_unit(make_node(host))]
    assert findings == ([(level, remedy)] if level else [])


@pytest.mark.parametrize(
    ("files", "mends", "expected"),
    [
        (("/etc/init.d/kubelet",), ("kubelet-start",), []),
        (("/etc/init.d/kubelet", "/etc/runlevels/default/kubelet"), (), []),
        (("/etc/init.d/kubelet",), (), [("warning", "rc-update add kubelet default")]),
        ((), ("kubelet-start",), [("error", "install it: apk add kubelet-openrc")]),
    ],
)
def test_the_kubelet_of_openrc(files: tuple[str, ...], mends: tuple[str, ...], expected: list[tuple[str, str]]) -> None:
    host = fit_host()
    del host.answers["systemctl show"]
    host.dirs.discard("/run/systemd/system")
    host.programs = {"openrc", "rc-service", "rc-update", "apk", "kubelet"}
    host.files.update(dict.fromkeys(files, b""))
    node = dataclasses.replace(make_node(host), mends=frozenset(mends))
    assert [(finding.level, finding.remedy) for finding in kubelet_checks.check_kubelet_unit(node)] == expected


@pytest.mark.parametrize(
    ("network", "balancer", "skipped", "expected"),
    [
        ("bridge", "none", (), ["--pod-network none"]),
        ("bridge", "none", ("pod-network",), []),
        ("none", "none", (), []),
        ("none", "local", (), ["--load-balancer none"]),
        ("bridge", "local", (), ["--pod-network none", "--load-balancer none"]),
    ],
)
def test_what_units_of_systemd_do_is_refused_where_openrc_runs(
    network: str, balancer: str, skipped: tuple[str, ...], expected: list[str]
) -> None:
    """Else init fails after the cluster has come up, at a systemctl that is not there."""
    host = fit_host()
    node = make_node(host, network=network)
    config = dataclasses.replace(
        node.config, kb=KbConfiguration(PodNetwork(network), load_balancer=LoadBalancer(balancer))
    )
    node = dataclasses.replace(node, config=config, skipped=frozenset(skipped))
    assert found(node, kubelet_checks.check_own_units) == []
    host.dirs.discard("/run/systemd/system")
    host.programs = {"openrc", "rc-service", "rc-update"}
    findings = list(kubelet_checks.check_own_units(node))
    assert [(finding.name, finding.level) for finding in findings] == [("OwnUnits", "error")] * len(expected)
    assert all(word in finding.remedy for word, finding in zip(expected, findings))


def test_no_systemd() -> None:
    host = fit_host()
    del host.answers["systemctl show"]
    assert found(make_node(host), kubelet_checks.check_kubelet_unit) == [("Service-kubelet", "warning")]


def parsing_kubelet(
    *unknown: str, numbers: tuple[str, ...] = ("max-pods",)
) -> Callable[[tuple[str, ...]], CommandResult]:
    """A kubelet that reads its flags and tells its version, as kubelets do: at the first that it does not take it ends."""

    def run(argv: tuple[str, ...]) -> CommandResult:
        for word in argv[1:]:
            name, _, value = word.lstrip("-").partition("=")
            if name in unknown:
                return CommandResult(
                    argv, 1, stderr=f'E1 "command failed" err="failed to parse kubelet flag: unknown flag: --{name}"'
                )
            if name in numbers and not value.isdigit():
                told = f'invalid argument \\"{value}\\" for \\"--{name}\\" flag: strconv.ParseInt'
                return CommandResult(argv, 1, stderr=f'E1 "command failed" err="failed to parse kubelet flag: {told}"')
        return CommandResult(argv, 0, "Kubernetes v1.35.6\n")

    return run


def test_flags_that_the_installed_kubelet_does_not_take_are_told_at_once_with_where_they_stand() -> None:
    host = fit_host()
    host.answers["kubelet"] = parsing_kubelet("pod-infra-container-image", "node-lables", "container-runtime")
    host.files["/etc/default/kubelet"] = b'# old\nKUBELET_EXTRA_ARGS="--container-runtime=remote --v=2"\n'
    args = (Arg("pod-infra-container-image", "x"), Arg("node-lables", "a=b"), Arg("v", "2"), Arg("max-pods", "many"))
    findings = table.run_batch(make_node(host, kubelet_args=args), facts.NODE)
    assert [(finding.name, finding.level) for finding in findings] == [("KubeletFlags", "error")] * 4
    texts = [str(finding) for finding in findings]
    assert (
        "this kubelet (v1.35.6) has no flag --pod-infra-container-image, which nodeRegistration.kubeletExtraArgs gives"
        in texts[0]
    )
    assert "sandbox_image" in texts[0]
    assert "has no flag --node-lables" in texts[1] and "correct it in nodeRegistration.kubeletExtraArgs" in texts[1]
    assert "does not take --max-pods=many, which nodeRegistration.kubeletExtraArgs gives" in texts[2]
    assert "has no flag --container-runtime, which /etc/default/kubelet gives" in texts[3]


@pytest.mark.parametrize("line", ["KUBELET_EXTRA_ARGS=--node-labels=node-role.kubernetes.io/worker=", "OTHER=--x"])
def test_labels_in_the_kubelet_s_own_file(line: str) -> None:
    host = fit_host()
    host.answers["kubelet"] = parsing_kubelet()
    host.files["/etc/sysconfig/kubelet"] = f"{line}\n".encode()
    texts = [str(finding) for finding in kubelet_checks.check_kubelet_flags(make_node(host))]
    assert len(texts) == ("node-role" in line)
    for text in texts:
        assert "the label node-role.kubernetes.io/worker" in text and "/etc/sysconfig/kubelet" in text


def test_doctor_reads_the_flags_with_which_the_kubelet_will_start_next() -> None:
    host = fit_host()
    host.answers["kubelet"] = parsing_kubelet("cni-bin-dir")
    host.files["/var/lib/kubelet/kubeadm-flags.env"] = b'KUBELET_KUBEADM_ARGS="--cni-bin-dir=/opt/cni/bin"\n'
    (finding,) = kubelet_checks.check_kubelet_flags(make_node(host, workflow=facts.DOCTOR))
    assert "which /var/lib/kubelet/kubeadm-flags.env gives" in finding.text
    assert list(kubelet_checks.check_kubelet_flags(make_node(host))) == []  # init writes the file


RESOLVED = SYSTEMD.replace("UnitFileState=disabled", "UnitFileState=enabled").replace(
    "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\n",
    "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n",
)


def test_resolver_loop() -> None:
    host = fit_host()
    host.files["/etc/resolv.conf"] = b"# stub\nnameserver 127.0.0.53\noptions edns0\n"
    finding = only(make_node(host), kubelet_checks.check_resolver)
    assert (finding.name, finding.level) == ("Resolver", "error")
    assert "/etc/resolv.conf names the loopback address 127.0.0.53" in finding.text
    assert finding.remedy == "put a real name server into /etc/resolv.conf"
    host.files["/run/NetworkManager/no-stub-resolv.conf"] = b"nameserver 10.0.0.2\n"
    assert only(make_node(host), kubelet_checks.check_resolver).remedy.startswith(
        "resolvConf: /run/NetworkManager/no-stub-resolv.conf"
    )


IP_ADDR = json.dumps(
    [
        {"ifname": "lo", "flags": ["UP"], "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "eth0", "flags": ["UP"], "addr_info": [{"local": "10.0.0.77"}, {"local": "fe80::1"}]},
    ]
)


def test_an_advertise_address_of_another_machine() -> None:
    host = fit_host()
    host.answers["ip -json addr"] = IP_ADDR
    node = make_node(host)
    endpoint = LocalAPIEndpoint("10.0.0.99")
    finding = only(
        dataclasses.replace(node, config=dataclasses.replace(node.config, local_api_endpoint=endpoint)),
        machine_checks.check_advertise_address,
    )
    assert (finding.name, finding.level) == ("AdvertiseAddress", "error")
    assert (
        finding.text
        == "this machine does not have the advertise address 10.0.0.99; it has 10.0.0.77 (eth0): etcd could "
        "not listen on it"
    )
    endpoint = LocalAPIEndpoint("10.0.0.77")
    well = dataclasses.replace(node, config=dataclasses.replace(node.config, local_api_endpoint=endpoint))
    assert found(well, machine_checks.check_advertise_address) == []


def test_an_address_that_moves_between_machines_may_be_elsewhere() -> None:
    host = fit_host()
    host.answers["ip -json addr"] = IP_ADDR
    host.files["/proc/sys/net/ipv4/ip_nonlocal_bind"] = b"1\n"
    node = make_node(host)
    moving = dataclasses.replace(node.config, local_api_endpoint=LocalAPIEndpoint("10.0.0.99"))
    assert found(dataclasses.replace(node, config=moving), machine_checks.check_advertise_address) == []


def test_a_disk_without_room_for_etcd_is_an_error() -> None:
    host = fit_host()
    host.free = 100 * 2**20
    by_level = {finding.level: finding.text for finding in machine_checks.check_disk_space(make_node(host))}
    assert by_level["error"] == "100 MiB are free for /var/lib/etcd, 160 MiB is what etcd needs to start"
    assert by_level["warning"] == "100 MiB are free for /var/lib/containerd, 1024 MiB is little already"


def test_a_file_system_of_its_own_for_etcd_is_empty() -> None:
    host = fit_host()
    host.dirs.update(("/var/lib/etcd/lost+found", "/var/lib/etcd/.kb-restored-20261130T002917"))
    assert found(make_node(host), ports_checks.check_etcd_folder) == []


def test_resolver_that_is_well() -> None:
    host = fit_host()
    assert found(make_node(host), kubelet_checks.check_resolver) == []
    host.files["/etc/resolv.conf"] = b"nameserver 127.0.0.53\n"
    assert found(make_node(host, dns=DNS(disabled=True)), kubelet_checks.check_resolver) == []
    assert found(make_node(host, kubelet={"resolvConf": ""}), kubelet_checks.check_resolver) == []
    host.files["/etc/own.conf"] = b"nameserver fe80::1%eth0\n"
    assert found(make_node(host, kubelet={"resolvConf": "/etc/own.conf"}), kubelet_checks.check_resolver) == []
    # where systemd-resolved runs, kb gives the kubelet its list of real servers
    host.answers["systemctl show"] = RESOLVED
    host.files["/run/systemd/resolve/resolv.conf"] = b"nameserver 10.0.0.2\n"
    assert found(make_node(host), kubelet_checks.check_resolver) == []


def test_a_resolver_without_servers() -> None:
    host = fit_host()
    host.files["/etc/resolv.conf"] = b"search x\n"
    assert "contains no name server" in only(make_node(host), kubelet_checks.check_resolver).text


def test_a_kubelet_whose_resolver_is_gone_starts_no_pod() -> None:
    """A link into /run after systemd-resolved was removed: the kubelet reads /etc/resolv.conf if its configuration names none."""
    host = fit_host()
    host.files.pop("/etc/resolv.conf", None)
    assert only(make_node(host), kubelet_checks.check_resolver).level == "warning"  # nothing runs here yet
    host.files["/var/lib/kubelet/config.yaml"] = b"kind: KubeletConfiguration\n"
    finding = only(make_node(host), kubelet_checks.check_resolver)
    assert finding.level == "error" and "it can start no pod" in finding.text


def test_a_link_to_a_resolver_that_is_gone_is_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    host = fit_host()
    host.files.update({"/etc/resolv.conf": b"", "/var/lib/kubelet/config.yaml": b"kind: KubeletConfiguration\n"})
    assert "contains no name server" in only(make_node(host), kubelet_checks.check_resolver).text
    monkeypatch.setattr(host, "real_path", lambda path: Path("/run/systemd/resolve/stub-resolv.conf"))
    finding = only(make_node(host), kubelet_checks.check_resolver)
    assert finding.level == "error" and "it can start no pod" in finding.text


# ---- external etcd


def external_node(host: FakeHost) -> facts.Node:
    etcd = ExternalEtcd(
        ("https://e1:2379", "https://e2:2379/"), ca_file="/e/ca.crt", cert_file="/e/c.crt", key_file="/e/c.key"
    )
    return make_node(host, local_etcd=None, external_etcd=etcd)


def external_host(*versions: str) -> FakeHost:
    host = fit_host()
    made, folder = finished_node().files, "/etc/kubernetes/pki"
    names = {"ca.crt": "etcd/ca.crt", "c.crt": "apiserver-etcd-client.crt", "c.key": "apiserver-etcd-client.key"}
    host.files.update({f"/e/{name}": made[f"{folder}/{base}"] for name, base in names.items()})
    for index, version in enumerate(versions, start=1):
        host.urls[f"https://e{index}:2379/version"] = HttpResponse(200, json.dumps({"etcdserver": version}).encode())
    return host


def test_external_etcd_version() -> None:
    assert found(external_node(external_host("3.6.6", "3.5.24")), etcd_checks.check_external_etcd_version) == []
    finding = only(external_node(external_host("3.5.23", "3.6.0")), etcd_checks.check_external_etcd_version)
    assert (finding.name, finding.level) == ("ExternalEtcdVersion", "error")
    assert "etcd at https://e1:2379 is 3.5.23, the oldest" in finding.text
    assert "3.5.24" in finding.text


def test_external_etcd_that_does_not_answer() -> None:
    host = external_host("3.6.6")
    finding = only(external_node(host), etcd_checks.check_external_etcd_version)
    assert "no answer from https://e2:2379/version" in finding.text
    assert host.ticks == 2 * etcd_checks.ETCD_PAUSE_S
    host = external_host()
    node = dataclasses.replace(external_node(host), workflow=facts.DOCTOR)
    assert not list(etcd_checks.check_external_etcd_version(node)), "doctor's own look at etcd tells it"
    assert host.ticks == 0, "doctor tells what is so now"


def test_external_etcd_that_needs_time() -> None:
    host = external_host("3.6.6", "3.6.6")
    good = host.urls["https://e2:2379/version"]
    ends: list[Optional[HttpResponse]] = [None, HttpResponse(503), good]

    class Slow(FakeHost):
        def http_get(self, url: str, **more: Any) -> HttpResponse:
            if url.startswith("https://e1"):
                return good
            end = ends.pop(0)
            if end is None:
                raise Unreachable(url, "refused", text="x")
            return end

    slow = Slow(**{item.name: getattr(host, item.name) for item in dataclasses.fields(FakeHost)})
    assert found(external_node(slow), etcd_checks.check_external_etcd_version) == []
    assert ends == []


def test_external_etcd_that_is_none() -> None:
    host = external_host("3.6.6")
    host.urls["https://e2:2379/version"] = HttpResponse(404, b"<html>")
    assert "status 404 and no version" in only(external_node(host), etcd_checks.check_external_etcd_version).text


def test_external_etcd_files() -> None:
    host = external_host()
    assert found(external_node(host), etcd_checks.check_external_etcd_files) == []
    del host.files["/e/ca.crt"], host.files["/e/c.key"]
    findings = list(etcd_checks.check_external_etcd_files(external_node(host)))
    assert [finding.name for finding in findings] == ["ExternalEtcdClientCertificates"] * 2
    assert [finding.text.split()[0] for finding in findings] == ["etcd.external.caFile", "etcd.external.keyFile"]
    assert "cannot read /e/c.key" in only(external_node(host), etcd_checks.check_external_etcd_version).text
    joining = dataclasses.replace(external_node(host), workflow=facts.JOIN_CONTROL_PLANE)
    assert len(found(joining, etcd_checks.check_external_etcd_files)) == 2
    config = dataclasses.replace(joining.config, certificate_key=Secret("ab" * 32))
    joining = dataclasses.replace(joining, config=config)
    assert found(joining, etcd_checks.check_external_etcd_files) == [], "the shared certificates bring them"


@pytest.mark.parametrize(
    ("changed", "by", "entry", "words"),
    [
        ("c.key", "apiserver.key", "certFile", "with /e/c.key, the certificate is for another key"),
        ("c.crt", "apiserver.crt", "certFile", "lacks clientAuth"),
        ("c.crt", "apiserver.key", "certFile", "no certificate, but"),
        ("ca.crt", "sa.pub", "caFile", "no certificate, but PUBLIC KEY"),
    ],
)
def test_external_etcd_files_that_no_api_server_starts_with(changed: str, by: str, entry: str, words: str) -> None:
    host = external_host()
    host.files[f"/e/{changed}"] = finished_node().files[f"/etc/kubernetes/pki/{by}"]
    finding = only(external_node(host), etcd_checks.check_external_etcd_files)
    assert (finding.name, finding.level) == ("ExternalEtcdClientCertificates", "error")
    assert finding.text.startswith(f"etcd.external.{entry} /e/") and words in finding.text


# ---- images


def test_images_are_pulled_and_told() -> None:
    told: list[str] = []
    host = fit_host()
    node = dataclasses.replace(make_node(host), tell=told.append)
    assert table.run_batch(node, facts.IMAGES) == []
    assert told[-1] == "pulling registry.k8s.io/etcd:3.6.6-0 (7 of 7)"
    assert len(host.changes) == 7


def test_images_that_do_not_come_are_told_together() -> None:
    host = fit_host()
    host.answers |= pulling(*IMAGE_REFS, answer=fatal("dial tcp: lookup registry.k8s.io: no such host"))
    finding = only(make_node(host), images_checks.check_images)
    assert (finding.name, finding.level) == ("ImagePull", "error")
    assert finding.text.count("registry.k8s.io/kube-") == 4
    assert "does not resolve" in finding.text


def test_the_runtime_s_own_sandbox_image_must_come_too() -> None:
    host = old_runtime(fit_host())

    def answer(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0) if argv[-1].startswith("r.example") else fatal("connection refused")

    host.answers[f"{CRICTL} pull"] = answer
    finding = only(make_node(host, image_repository="r.example/k"), images_checks.check_images)
    assert finding.name == "ImagePull"
    assert "starts every Pod with the image registry.k8s.io/pause:3.6, which cannot be pulled" in finding.text
    assert 'sandbox_image = "r.example/k/pause:3.10.1"' in finding.remedy
    host.answers[f"{CRICTL} images -o json"] = image_list("registry.k8s.io/pause:3.6")
    assert found(make_node(host, image_repository="r.example/k"), images_checks.check_images) == []


@pytest.mark.parametrize(
    ("args", "is_told"),
    [
        ((Arg("anonymous-auth", "false"),), True),
        ((Arg("anonymous-auth", "true"), Arg("anonymous-auth", "False")), True),
        ((Arg("anonymous-auth", "false"), Arg("anonymous-auth", "true")), False),
        ((Arg("anonymous-auth", "false"), Arg("authentication-config", "/etc/a.yaml")), False),
        ((), False),
    ],
)
def test_an_api_server_that_is_closed_to_the_kubelet_s_probes(args: tuple[Arg, ...], is_told: bool) -> None:
    cluster = ClusterConfiguration("v1.35.6", api_server=APIServer(extra_args=args))
    config = NodeConfig(cluster, NodeRegistration("cp1"), LocalAPIEndpoint("10.0.0.11"))
    found = list(machine_checks.check_anonymous_auth(facts.Node(FakeHost(), config, find_release("v1.35.6"))))
    assert bool(found) is is_told
    assert all(note.level == "warning" and "--authentication-config" in note.remedy for note in found)


@pytest.mark.parametrize(
    ("told", "host", "is_used"),
    [
        ("[fd00::10]", "fd00::10", True),
        ("fd00::10", "fd00::10", False),
        ("[fd00::10]:443", "fd00::10", False),
        (" 10.0.0.0/8 , .svc", "10.1.2.3", False),
    ],
)
def test_no_proxy_is_read_as_go_reads_it(told: str, host: str, is_used: bool) -> None:
    assert bool(proxies_checks.uses_proxy({"HTTPS_PROXY": "http://p:1", "NO_PROXY": told}, host)) is is_used


def test_the_line_to_copy_is_one_word_for_a_shell() -> None:
    cluster = ClusterConfiguration("v1.35.6", control_plane_endpoint="[fd00::10]:6443")
    config = NodeConfig(cluster, NodeRegistration("cp1"), LocalAPIEndpoint("fd00::11"))
    line = proxies_checks.complete_no_proxy({"NO_PROXY": "localhost, .example , ,$(reboot),10.0.0.0/8"}, config)
    assert line.startswith("localhost,.example,10.0.0.0/8,") and "fd00::10," in line
    assert not set(" []$();") & set(line)


# ---- hostPaths of the static pods

MOUNTS_RO_USR = MOUNTS_V2 + "/dev/vda3 / ext4 rw,relatime 0 0\n/dev/vda4 /usr ext4 ro,relatime 0 0\n"
FLEX = "/opt/libexec/kubernetes/kubelet-plugins/volume/exec/"


def test_a_read_only_usr_without_the_folder_of_flexvolume_plugins() -> None:
    host = fit_host()
    host.dirs.add("/usr/libexec")
    host.files["/proc/mounts"] = MOUNTS_RO_USR.encode()
    finding = only(make_node(host), machine_checks.check_host_paths)
    assert (finding.name, finding.level) == ("HostPath", "error")
    assert (
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec" in finding.text
        and "/usr is mounted read-only" in finding.text
    )
    assert "controllerManager.extraArgs flex-volume-plugin-dir" in finding.remedy and FLEX in finding.remedy
    assert "volumePluginDir" in finding.remedy
    # what would be right
    own = Component(extra_args=(Arg("flex-volume-plugin-dir", FLEX),))
    assert not found(make_node(host, controller_manager=own), machine_checks.check_host_paths)
    assert not found(make_node(host, version="v1.36.3"), machine_checks.check_host_paths)
    host.dirs.add("/usr/libexec/kubernetes/kubelet-plugins/volume/exec")
    assert not found(make_node(host), machine_checks.check_host_paths)


def test_a_folder_below_a_read_only_mount_that_is_mounted_itself() -> None:
    host = fit_host()
    host.files["/proc/mounts"] = (MOUNTS_RO_USR + "tmpfs /usr/libexec tmpfs rw 0 0\n").encode()
    assert not found(make_node(host), machine_checks.check_host_paths)


@pytest.mark.parametrize(
    ("path", "kind", "level", "words"),
    [
        ("/usr/share/audit", "DirectoryOrCreate", "error", "/usr is mounted read-only"),
        ("/usr/share/audit.log", "FileOrCreate", "error", "/usr is mounted read-only"),
        ("/etc/audit", "DirectoryOrCreate", "", ""),
        ("/etc/audit", "Directory", "warning", "is not there"),
        ("/etc/policy.yaml", "File", "", ""),
        ("/etc/policy.yaml", "Directory", "error", "is no folder"),
        ("/etc/folder", "File", "error", "is a folder"),
        ("/etc/folder", "", "", ""),
    ],
)
def test_the_hostpaths_of_extra_volumes(path: str, kind: str, level: str, words: str) -> None:
    host = fit_host()
    host.dirs |= {"/usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/etc/folder"}
    host.files |= {"/proc/mounts": MOUNTS_RO_USR.encode(), "/etc/policy.yaml": b""}
    own = APIServer(extra_volumes=(Volume("audit", path, path, True, kind),))
    findings = list(machine_checks.check_host_paths(make_node(host, api_server=own)))
    assert [finding.level for finding in findings] == ([level] if level else [])
    for finding in findings:
        assert f"apiServer.extraVolumes audit: {path}" in finding.text and words in finding.text
