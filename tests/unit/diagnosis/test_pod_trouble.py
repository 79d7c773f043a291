"""kubeup/diagnosis/pod_trouble.py: what keeps a pod from starting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Optional

import pytest

from kubeup.diagnosis import chain, pod_trouble
from kubeup.diagnosis.signs import BrokenLink
from kubeup.machine.host import CommandResult
from tests.unit.diagnosis.signs_case import SOCKET, find, make_host

# ---- sandboxes and images

SYNC = (
    'E1123 23:26:14.968484     942 pod_workers.go:1324] "Error syncing pod, skipping" err="failed to \\"{step}\\" for '
    '\\"{name}\\" with {reason}: \\"{text}\\"" pod="kube-system/{pod}" podUID="435e"\n'
)


def sync_line(step: str, name: str, reason: str, text: str, pod: str) -> str:
    return SYNC.format(step=step, name=name, reason=reason, text=text, pod=pod)


def sandbox_line(text: str, pod: str = "etcd-cp1") -> str:
    return sync_line("CreatePodSandbox", f"{pod}_kube-system(435e)", "CreatePodSandboxError", text, pod)


def test_an_unreachable_sandbox_image_is_named_with_the_setting() -> None:
    text = (
        'Failed to create sandbox for pod: rpc error: code = Unknown desc = failed to get sandbox image \\\\\\"10.9.9.9/p:1'
        '\\\\\\": failed to pull image \\\\\\"10.9.9.9/p:1\\\\\\": failed to do request: Head \\\\\\"https://10.9.9.9/v2/p/'
        'manifests/1\\\\\\": dial tcp 10.9.9.9:443: connect: connection refused'
    )
    link = find(make_host(kubelet_log=sandbox_line(text)), "etcd")
    assert link is not None
    assert (link.link, link.is_final) == ("sandbox", False)
    assert link.what == "no sandbox of etcd can be made: the sandbox image 10.9.9.9/p:1 cannot be pulled"
    assert "accepts the connection" in link.cause
    assert "sandbox_image" in link.remedy


def test_a_sandbox_image_that_the_kubelet_has_deleted_is_not_taken_for_a_wrong_setting() -> None:
    """A kubelet that is short of disk space deletes what no pod uses at the moment: of a stopped control plane, every image."""
    text = (
        'failed to get sandbox image \\\\\\"registry.k8s.io/pause:3.10.1\\\\\\": failed to pull image: failed to do request: Head '
        '\\\\\\"https://registry.k8s.io/v2/pause/manifests/3.10.1\\\\\\": dial tcp 10.9.9.9:443: connect: connection refused'
    )
    link = find(make_host(kubelet_log=sandbox_line(text)), "etcd")
    assert link is not None
    assert link.remedy.startswith("see whether the registry runs")
    assert "df -h /var/lib/containerd" in link.remedy and "sandbox_image" not in link.remedy


SANDBOXES = [
    ("runc create failed: can't get final child's PID from pipe: EOF: unknown", "CAP_SYS_RESOURCE", "restrict_oom_score_adj = true"),
    ('expected cgroupsPath to be of format \\\\\\"slice:prefix:name\\\\\\" for systemd cgroups', "cgroup drivers", "SystemdCgroup = true"),
    ("mkdir /sys/fs/cgroup/cpuset/kubepods.slice/x: read-only file system: unknown", "/sys/fs/cgroup/cpuset is mounted read-only",
     "mount -o remount,bind,rw /sys/fs/cgroup/cpuset"),
    ('plugin type=\\\\\\"bridge\\\\\\" failed (add): failed to find plugin \\\\\\"bridge\\\\\\" in path [/opt/cni/bin]',
     'the CNI plugin "bridge" is not in /opt/cni/bin', "containernetworking-plugins"),
    ('plugin type=\\\\\\"bridge\\\\\\" failed (add): fork/exec /opt/cni/bin/bridge: permission denied', "/opt/cni/bin/bridge cannot be executed: permission denied",
     "chmod a+x /opt/cni/bin/bridge"),
    ("fork/exec /opt/cni/bin/bridge: exec format error", "/opt/cni/bin/bridge cannot be executed: exec format error", "file /opt/cni/bin/bridge"),
    ("mkdir /var/log/pods/default_web: no space left on device", "no inode, is left for /var", "df -i /var"),
    ("write /var/lib/containerd/x: no space left on device", "disk", "df -h /var/lib/containerd"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "remedy"), SANDBOXES)
def test_what_keeps_a_sandbox_from_being_made(text: str, cause: str, remedy: str) -> None:
    link = find(make_host(kubelet_log=sandbox_line(text)), "etcd")
    assert link is not None
    assert (link.what, link.is_final) == ("no sandbox of etcd can be made", True)
    assert cause in link.cause
    assert remedy in link.remedy


def test_what_crio_quotes_of_runc_is_named_with_crio_s_log() -> None:
    """Seen with CRI-O 1.35: the line of runc's log is quoted, with its end."""
    text = (
        'container create failed: time=\\\\\\"2026-11-30T02:29:45Z\\\\\\" level=error msg=\\\\\\"runc create failed: unable to start '
        'container process: unable to apply caps: operation not permitted\\\\\\"\\\\n'
    )
    host = make_host(
        kubelet_log=sync_line("StartContainer", "kube-proxy", "CreateContainerError", text, "kube-proxy-jtqvs")
    )
    host.files["/var/run/crio/crio.sock"] = b""
    link = chain.find_broken_link(host, "unix:///var/run/crio/crio.sock", components=("kube-proxy",))
    assert link is not None
    assert link.cause == (
        "runc create failed: unable to start container process: unable to apply caps: operation not permitted"
    )
    assert "journalctl -u crio " in link.remedy


def test_a_full_disk_of_crio_is_looked_for_where_crio_has_its_data() -> None:
    host = make_host(kubelet_log=sandbox_line("write /var/lib/containers/x: no space left on device"))
    host.programs = (host.programs - {"containerd"}) | {"crio"}
    link = find(host, "etcd")
    assert link is not None
    assert "df -h /var/lib/containers, " in link.remedy


def test_an_image_that_is_nowhere_is_final_and_the_pause_after_it_hides_nothing() -> None:
    image = "registry.k8s.io/kube-scheduler:v1.35.6"
    quoted = f'\\\\\\"{image}\\\\\\"'
    pull = sync_line(
        "StartContainer", "kube-scheduler", "ErrImagePull",
        f"rpc error: code = NotFound desc = failed to pull and unpack image {quoted}: {image}: not found", "kube-scheduler-cp1",
    )  # fmt: skip
    pause = sync_line(
        "StartContainer", "kube-scheduler", "ImagePullBackOff", f"Back-off pulling image {quoted}", "kube-scheduler-cp1"
    )
    link = find(make_host(kubelet_log=pull + pause), "kube-scheduler")
    assert link is not None
    assert (link.link, link.is_final) == ("image", True)
    assert link.what == f"kube-scheduler cannot be started: its image {image} cannot be pulled"
    assert "registry.k8s.io has no such image" in link.cause


def test_an_image_that_is_here_and_is_asked_for_all_the_same() -> None:
    image = "registry.k8s.io/coredns/coredns:v1.13.1"
    quoted = f'\\\\\\"{image}\\\\\\"'
    refused = f"failed to pull and unpack image {quoted}: dial tcp 10.0.0.9:443: connect: connection refused"
    host = make_host(kubelet_log=sync_line("StartContainer", "coredns", "ErrImagePull", refused, "coredns-1"))
    link = find(host, "coredns")
    assert link is not None and "AlwaysPullImages" not in link.cause
    before = host.answers["crictl"]
    assert callable(before)

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        told = json.dumps({"images": [{"repoTags": [image]}]})
        answer: CommandResult = CommandResult(argv, 0, told) if "images" in argv else before(argv)
        return answer

    host.answers["crictl"] = crictl
    link = find(host, "coredns")
    assert link is not None and "the image is on this node" in link.cause and "AlwaysPullImages" in link.cause


def test_what_an_earlier_kubelet_met_is_not_taken_for_the_present() -> None:
    host = make_host()
    log = sandbox_line("cannot write: read-only file system") + "\n"

    def journalctl(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0, "" if "_SYSTEMD_INVOCATION_ID=abc" in argv else log)

    host.answers["journalctl"] = journalctl
    assert find(host, "etcd", etcd="refused") == find(make_host(), "etcd", etcd="refused")


def test_what_the_pod_of_the_former_manifest_met_is_not_taken_for_this_one_s() -> None:
    """A manifest that is put back is judged by what the kubelet says after that: before, the disk was full."""
    host, log = make_host(), sandbox_line("write /var/lib/containerd/meta.db: no space left on device")
    asked = list[str]()

    def journalctl(argv: tuple[str, ...]) -> CommandResult:
        asked.append(argv[argv.index("--since") + 1])
        return CommandResult(argv, 0, log if float(asked[-1].strip("-s")) > 9 else "")

    host.answers["journalctl"] = journalctl
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b"kind: Pod\n"
    host.mtimes["/etc/kubernetes/manifests/etcd.yaml"] = host.clock.timestamp() - 10
    assert "data is full" in str(find(host, "etcd", etcd="refused"))
    host.mtimes["/etc/kubernetes/manifests/etcd.yaml"] = host.clock.timestamp() - 8.5
    assert "data is full" not in str(find(host, "etcd", etcd="refused"))
    assert "-8.5s" in asked and "-10s" in asked
    host.mtimes["/etc/kubernetes/manifests/etcd.yaml"] = 0.0  # an old file that was moved there
    host.mtimes["/etc/kubernetes/manifests"] = host.clock.timestamp() - 8.5
    assert "data is full" not in str(find(host, "etcd", etcd="refused"))
    host.mtimes["/etc/kubernetes/manifests/etcd.yaml"] = host.clock.timestamp() + 3600  # a clock that was set back
    assert "data is full" in str(find(host, "etcd", etcd="refused"))


def test_a_pod_s_trouble_is_not_taken_for_another_s() -> None:
    host = make_host(kubelet_log=sandbox_line("no space left on device", pod="coredns-7d4-x"))
    assert find(host, "etcd") is None
    link = find(host, "coredns")
    assert link is not None and "df -h" in link.remedy


SET_UP = (
    'E1123 23:26:14.968484     942 nestedpendingoperations.go:348] "Operation for \\"{{volumeName:kubernetes.io/host-path/'
    'ab-{volume} podName:ab nodeName:}}\\" failed. No retries permitted until 2026-11-23 23:26:15 +0000 UTC (durationBeforeRetry '
    '500ms). Error: MountVolume.SetUp failed for volume \\"{volume}\\" (UniqueName: \\"kubernetes.io/host-path/ab-{volume}\\") '
    'pod \\"{pod}\\" (UID: \\"ab\\") : {why}"\n'
)
VOLUMES = [
    (
        "flexvolume-dir",
        "kube-controller-manager",
        "mkdir /usr/libexec/kubernetes: read-only file system",
        "controllerManager.extraArgs flex-volume-plugin-dir",
    ),
    ("audit", "kube-apiserver", "mkdir /usr/audit: read-only file system", "hostPath of apiServer.extraVolumes audit"),
    (
        "policy",
        "kube-apiserver",
        "hostPath type check failed: /etc/policies is not a directory",
        "hostPath of apiServer.extraVolumes policy",
    ),
]


@pytest.mark.parametrize(("volume", "component", "why", "remedy"), VOLUMES)
def test_a_volume_that_cannot_be_set_up(volume: str, component: str, why: str, remedy: str) -> None:
    log = SET_UP.format(volume=volume, pod=f"{component}-cp1", why=why)
    link = find(make_host(kubelet_log=log), component)
    assert link is not None
    assert (link.link, link.is_final) == ("volume", "read-only" in why)
    assert link.what == f"{component} cannot be started: its volume {volume} cannot be set up"
    assert why in link.cause and remedy in link.remedy


# ---- a pod of anybody


def find_sandbox(text: str, *, is_there: bool = True, ready: str = "") -> Optional[BrokenLink]:
    host = make_host(kubelet_log=sandbox_line(text, pod="web-1") + sandbox_line(text, pod="web-2"))
    if is_there:
        host.dirs.add("/var/lib/kubelet/pods/435e")
    query = host.query

    def answer(argv: Sequence[str], **more: Any) -> CommandResult:
        rows = [{"metadata": {"uid": ready}}] if ready else []
        return CommandResult(tuple(argv), 0, json.dumps({"items": rows})) if "pods" in argv else query(argv, **more)

    host.query = answer  # type: ignore[method-assign, assignment]
    return pod_trouble.find_sandbox_trouble(host, SOCKET)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("OCI runtime create failed: unable to retrieve OCI runtime error: exec: runc: executable file not found in $PATH", "runc"),
        ("failed to setup network for sandbox: fork/exec /opt/cni/bin/loopback: permission denied", "permission denied"),
    ],
)  # fmt: skip
def test_a_node_that_makes_no_sandboxes_says_so_of_the_newest_pod(text: str, cause: str) -> None:
    link = find_sandbox(text)
    assert link is not None and link.what == "no sandbox of pod web-2 and of 1 more can be made"
    assert cause in link.cause and link.remedy


def test_pods_that_are_gone_or_have_a_sandbox_since_are_no_trouble() -> None:
    assert find_sandbox("anything", is_there=False) is None
    assert find_sandbox("anything", ready="435e") is None
