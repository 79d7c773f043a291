"""Each log line that real nodes wrote when they were broken is understood; the walk names the first broken link."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.diagnosis import chain, container_trouble, kubelet_trouble, log_lines, signs
from kubeup.machine.host import CommandResult, FileStat
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost

SOCKET = "unix:///var/run/containerd/containerd.sock"
UNIT = "LoadState=loaded\nActiveState={active}\nSubState={sub}\nNRestarts={restarts}\nExecMainStatus={code}\n"
READY = json.dumps({"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}})
MOUNTS = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpuset cgroup ro,cpuset 0 0\n"


def make_host(
    *, active: str = "active", sub: str = "running", restarts: int = 0, code: int = 0, kubelet_log: str = ""
) -> FakeHost:
    """A node whose kubelet is in that state, with a runtime that is well and has no containers."""
    host = FakeHost(
        files={"/var/run/containerd/containerd.sock": b"", "/proc/mounts": MOUNTS.encode()},
        programs={"crictl", "systemctl"},
        urls={"http://127.0.0.1:10248/healthz": HttpResponse(200, b"ok")},
        ticks=1000.0,
    )
    since = "ActiveEnterTimestampMonotonic=900000000\nInvocationID=abc\nMainPID=42\n"
    unit = UNIT.format(active=active, sub=sub, restarts=restarts, code=code) + since
    host.answers["systemctl show kubelet -p"] = unit
    host.answers["journalctl"] = kubelet_log
    host.answers["ip -o addr show scope global"] = "2: eth0    inet 10.0.0.11/24 brd 10.0.0.255 scope global eth0\\n"
    run_containers(host)
    return host


def run_containers(host: FakeHost, *rows: dict[str, Any], logs: Optional[dict[str, list[str]]] = None) -> None:
    """Let crictl tell of these containers: {"name", "state", "attempt", "exitCode", "reason"}; logs by name."""
    shown, ends = [], {}
    for number, row in enumerate(rows):
        identity = f"{row['name']}-{number}"
        shown.append(
            {
                "id": identity,
                "metadata": {"name": row["name"], "attempt": row.get("attempt", 0)},
                "state": f"CONTAINER_{row['state'].upper()}",
                "createdAt": str(row.get("created", number + 1)),
            }
        )
        path = f"/var/log/{identity}.log"
        lines = (logs or {}).get(row["name"], [])
        host.files[path] = "".join(f"2026-01-01T00:00:00Z stderr F {line}\n" for line in lines).encode()
        end = {
            "id": identity,
            "exitCode": row.get("exitCode", 1),
            "logPath": path,
            "reason": row.get("reason", "Error"),
        }
        ends[identity] = {"status": end}

    def crictl(argv: tuple[str, ...]) -> CommandResult:
        if "ps" in argv:
            return CommandResult(argv, 0, json.dumps({"containers": shown}))
        if "inspect" in argv:
            return CommandResult(argv, 0, json.dumps([ends[word] for word in argv if word in ends]))
        return CommandResult(argv, 0, READY if "info" in argv else "{}")

    host.answers["crictl"] = crictl


def find(host: FakeHost, *components: str, **unhealthy: str) -> Optional[signs.BrokenLink]:
    seen = {name.replace("_", "-"): text for name, text in unhealthy.items()}
    return chain.find_broken_link(host, SOCKET, components=components, unhealthy=seen)


def make_openrc_host(status: str, code: int, log: str = "") -> FakeHost:
    """The same of a node that OpenRC runs: no program of systemd is there."""
    host = make_host()
    host.programs = {"crictl", "openrc", "rc-service", "rc-update", "apk"}
    host.answers = {"crictl": host.answers["crictl"]}
    host.answers["rc-service kubelet status"] = CommandResult(("rc-service",), code, status)
    if log:
        host.files["/var/log/kubelet/kubelet.log"] = log.encode()
        host.answers["tail -n 300 /var/log/kubelet/kubelet.log"] = log
    return host


# ---- the kubelet


@pytest.mark.parametrize(
    ("status", "code", "what", "remedy"),
    [
        (" * status: stopped", 3, "the kubelet is not running", "rc-service kubelet start, then run the command again"),
        ("", 1, "the kubelet is not running", "install it: apk add kubelet-openrc"),
        (
            " * status: crashed",
            32,
            "the kubelet does not stay up (OpenRC: crashed)",
            "swapoff -a (and out of /etc/fstab), or failSwapOn: false in the KubeletConfiguration, then run the command again",
        ),
    ],
)
def test_a_kubelet_of_openrc(status: str, code: int, what: str, remedy: str) -> None:
    link = kubelet_trouble.find_kubelet_trouble(
        make_openrc_host(status, code, "E0101 running with swap on is not supported")
    )
    assert link and (link.what, link.remedy) == (what, remedy)


def test_a_node_of_openrc_is_told_of_no_systemd() -> None:
    """Whatever is wrong: systemctl and journalctl are not there."""
    assert kubelet_trouble.find_kubelet_trouble(make_openrc_host(" * status: started", 0)) is None
    told = []
    for kind in (signs.KUBELET_SIGNS, signs.SANDBOX_SIGNS, signs.CONTAINER_SIGNS):
        for sign in kind:
            host = make_openrc_host(" * status: crashed", 32)
            host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
            words = dict.fromkeys(re.compile(sign.pattern).groupindex, "x") | {"source": "x", "origin": "x"}
            told.append(
                sign.remedy.format_map(
                    {**signs._service_words(host), **(sign.explain or (lambda *_: {}))(host, words), **words}
                )
            )
    host = make_openrc_host(" * status: crashed", 32)
    del host.files["/var/run/containerd/containerd.sock"]
    host.programs.add("containerd")
    for link in (kubelet_trouble.find_kubelet_trouble(host), chain.find_runtime_trouble(host, SOCKET)):
        assert link
        told.append(link.remedy)
    host = make_openrc_host(" * status: started", 0)
    host.urls.clear()
    link = kubelet_trouble.find_healthz_trouble(host)
    assert link and link.remedy == "see its log: grep kubelet /var/log/messages"
    assert "rc-service containerd restart" in "".join(told)
    assert not [text for text in told if "systemctl" in text or "journalctl" in text]


def test_who_gives_a_kubelet_a_new_identity_depends_on_the_node() -> None:
    """A worker has no CA: kb init phase is refused there."""
    log = "unable to load bootstrap kubeconfig: stat /etc/kubernetes/bootstrap-kubelet.conf: no such file"
    worker = make_host(active="activating", sub="auto-restart", restarts=3, code=1, kubelet_log=log)
    link = kubelet_trouble.find_kubelet_trouble(worker)
    assert link and "kb init" not in link.remedy and "kb token create --print-join-command" in link.remedy
    worker.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
    link = kubelet_trouble.find_kubelet_trouble(worker)
    assert link and link.remedy == "kb init phase kubeconfig kubelet"


def test_a_node_that_is_well_has_no_broken_link() -> None:
    host = make_host()
    run_containers(host, {"name": "etcd", "state": "running"})
    assert find(host, "etcd") is None


KUBELET_ENDS = [
    (
        'E1123 23:26:14.968075     942 run.go:72] "command failed" err="failed to parse kubelet flag: unknown flag: --foo"',
        "unknown flag: --foo, which comes from nodeRegistration.kubeletExtraArgs",
        "remove --foo",
    ),
    (
        'E1123 23:26:14.968075     942 run.go:72] "command failed" err="failed to run Kubelet: running with swap on is not '
        'supported, please disable swap or set --fail-swap-on flag to false"',
        "swap is on, and the kubelet does not start with it",
        "swapoff -a",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to validate kubelet configuration, error: invalid configuration: '
        'option everything specified for enforceNodeAllocatable, path: &TypeMeta{Kind:,APIVersion:,}"',
        "is not valid: invalid configuration: option everything specified for enforceNodeAllocatable",
        "correct it in the KubeletConfiguration",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to load kubelet config file, path: /var/lib/kubelet/config.yaml, '
        'error: failed to decode: strict decoding error: unknown field \\"fooBar\\""',
        'unknown field "fooBar"',
        "correct or remove fooBar",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to run Kubelet: validate service connection: validate CRI v1 '
        'runtime API for endpoint: rpc error: code = Unimplemented desc = unknown service runtime.v1.RuntimeService"',
        "its CRI plugin is disabled or failed to load",
        "disabled_plugins",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to run Kubelet: mkdir /sys/fs/cgroup/cpuset/kubepods.slice: '
        'read-only file system"',
        "/sys/fs/cgroup/cpuset is mounted read-only",
        "mount -o remount,bind,rw /sys/fs/cgroup/cpuset",
    ),
    (
        'E1123 1 server.go:1] "Failed to start" err="listen tcp 127.0.0.1:10248: bind: address already in use"',
        "port 10248 is in use by squatter (pid 77)",
        "ps -fp 77",
    ),
    (
        "\tfailed to validate kubelet flags: unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: "
        "[node-role.kubernetes.io/worker]\n\t--node-labels in the 'kubernetes.io' namespace must begin with an allowed prefix "
        "(kubelet.kubernetes.io, node.kubernetes.io) or be in the specifically allowed set (kubernetes.io/os)\n >",
        "a kubelet may not give its node the label node-role.kubernetes.io/worker",
        "kubectl label node NAME node-role.kubernetes.io/worker=",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to validate kubelet flags: invalid node labels: \'a_\' - name part must '
        'consist of alphanumeric characters"',
        "--node-labels: 'a_' - name part must consist of alphanumeric characters",
        "correct node-labels in nodeRegistration.kubeletExtraArgs",
    ),
    (
        'E1123 1 run.go:72] "command failed" err="failed to parse kubelet flag: unknown flag: --network-plugin"',
        "unknown flag: --network-plugin",
        "/etc/default/kubelet",
    ),
]


@pytest.mark.parametrize(("line", "cause", "remedy"), KUBELET_ENDS)
def test_what_a_kubelet_died_of_is_final_at_its_first_end(line: str, cause: str, remedy: str) -> None:
    host = make_host(active="activating", sub="auto-restart", code=1, kubelet_log=f"I1123 it began\n{line}\n")
    host.ports[10248] = "squatter (pid 77)"
    link = find(host)
    assert link is not None
    assert (link.is_final, link.link) == (True, "kubelet-log")
    assert link.what == "the kubelet does not stay up (restarted 0 times, exit code 1)"
    assert cause in link.cause
    assert remedy in link.remedy


def test_a_kubelet_dies_of_what_it_said_last() -> None:
    """An old containerd has no RuntimeConfig call, which every kubelet complains of and survives."""
    log = (
        'E1123 1 log.go:32] "RuntimeConfig from runtime service failed" err="rpc error: code = Unimplemented desc = unknown '
        'method RuntimeConfig for service runtime.v1.RuntimeService"\n'
        'E1123 1 kubelet.go:1] "Failed to start cAdvisor" err="inotify_init: too many open files"\n'
    )
    link = find(make_host(active="activating", sub="auto-restart", code=1, kubelet_log=log))
    assert link is not None
    assert (link.is_final, "fs.inotify.max_user_instances" in link.remedy) == (False, True)


def test_an_unknown_end_is_final_after_two_restarts() -> None:
    log = 'E1123 1 run.go:72] "command failed" err="something new"\n'
    once = find(make_host(active="activating", sub="auto-restart", code=1, kubelet_log=log))
    assert once is not None and not once.is_final
    assert "something new" in once.cause
    twice = find(make_host(active="activating", sub="auto-restart", restarts=2, code=1, kubelet_log=log))
    assert twice is not None and twice.is_final


def test_restarts_that_a_kubelet_got_over_do_not_count() -> None:
    assert find(make_host(restarts=5)) is None
    young = make_host(restarts=5, kubelet_log="E1123 1 x.go:1] once more")
    young.ticks = 905.0
    link = find(young)
    assert link is not None and link.cause == "E1123 1 x.go:1] once more"


def test_a_masked_or_missing_unit_is_final() -> None:
    host = make_host()
    host.answers["systemctl show kubelet -p"] = "LoadState=masked\nActiveState=inactive\n"
    link = find(host)
    assert link is not None
    assert (link.is_final, link.remedy) == (True, "systemctl unmask kubelet")


def test_a_kubelet_that_runs_and_does_not_answer() -> None:
    host = make_host(kubelet_log="E1123 23:00:00.000000     942 x.go:1] PLEG is not healthy\n")
    host.urls["http://127.0.0.1:10248/healthz"] = HttpResponse(500, b"pleg failed")
    link = find(host)
    assert link is not None
    assert link.link == "kubelet-healthz"
    assert link.what == "the kubelet runs and is not healthy: HTTP 500: pleg failed"
    assert link.cause == "PLEG is not healthy"


@pytest.mark.parametrize(
    ("end", "cause", "remedy"),
    [
        (
            "proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused",
            "its unit names that proxy",
            "NO_PROXY",
        ),
        ("dial tcp 10.0.0.11:6443: i/o timeout", "10.0.0.11:6443: i/o timeout", "journalctl -u kubelet"),
    ],
)
def test_a_kubelet_that_cannot_ask_says_why(end: str, cause: str, remedy: str) -> None:
    asked = f'err="cannot create certificate signing request: Post \\"https://10.0.0.11:6443/apis\\": {end}"'
    log = f'E1123 23:00:00.000000     942 certificate_manager.go:596] "Failed while requesting" {asked}\nE1123 later\n'
    link = kubelet_trouble.find_request_trouble(make_host(kubelet_log=log))
    assert link is not None and not link.is_final
    assert cause in link.cause and remedy in link.remedy
    assert link.cause.startswith("cannot create certificate signing request: Post 'https://10.0.0.11:6443/apis'")
    assert kubelet_trouble.find_request_trouble(make_host(kubelet_log="E1123 another\n")) is None


UNAUTHORIZED = 'E1123 23:00:00.000000     942 kubelet_node_status.go:109] "Unable to register node with API server" err="Unauthorized" node="w1"\n'
FORBIDDEN = UNAUTHORIZED.replace(
    '"Unauthorized"', '"nodes \\"w1\\" is forbidden: node \\"w2\\" is not allowed to modify node \\"w1\\""'
)


def test_a_kubelet_whose_certificate_is_refused() -> None:
    for find_trouble in (kubelet_trouble.find_request_trouble, kubelet_trouble.find_registration_trouble):
        link = find_trouble(make_host(kubelet_log=UNAUTHORIZED))
        assert link is not None and not link.is_final
        assert "the kubelet says Unauthorized" in link.cause
        assert "mv /var/lib/kubelet/pki/kubelet-client-current.pem" in link.remedy
        assert "systemctl restart kubelet" in link.remedy


def test_a_node_that_the_kubelet_may_not_register() -> None:
    link = kubelet_trouble.find_registration_trouble(make_host(kubelet_log=FORBIDDEN))
    assert link is not None and "is not allowed to modify node 'w1'" in link.cause
    assert kubelet_trouble.find_registration_trouble(make_host(kubelet_log="E1123 another\n")) is None


# ---- the runtime


def test_a_stopped_runtime_is_final_and_a_restarting_one_is_not() -> None:
    host = make_host()
    host.programs.add("containerd")
    del host.files["/var/run/containerd/containerd.sock"]
    host.answers["systemctl is-active containerd"] = "inactive\n"
    link = find(host)
    assert link is not None
    assert (link.link, link.is_final) == ("runtime", True)
    assert "containerd is installed but does not run" in link.cause
    host.answers["systemctl is-active containerd"] = "activating\n"
    link = find(host)
    assert link is not None and not link.is_final


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


SANDBOXES = [
    ("runc create failed: can't get final child's PID from pipe: EOF: unknown", "CAP_SYS_RESOURCE", "restrict_oom_score_adj = true"),
    ('expected cgroupsPath to be of format \\\\\\"slice:prefix:name\\\\\\" for systemd cgroups', "cgroup drivers", "SystemdCgroup = true"),
    ("mkdir /sys/fs/cgroup/cpuset/kubepods.slice/x: read-only file system: unknown", "/sys/fs/cgroup/cpuset is mounted read-only",
     "mount -o remount,bind,rw /sys/fs/cgroup/cpuset"),
    ('plugin type=\\\\\\"bridge\\\\\\" failed (add): failed to find plugin \\\\\\"bridge\\\\\\" in path [/opt/cni/bin]',
     'the CNI plugin "bridge" is not in /opt/cni/bin', "containernetworking-plugins"),
    ("write /var/lib/containerd/x: no space left on device", "disk", "df -h /var/lib/containerd"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "remedy"), SANDBOXES)
def test_what_keeps_a_sandbox_from_being_made(text: str, cause: str, remedy: str) -> None:
    link = find(make_host(kubelet_log=sandbox_line(text)), "etcd")
    assert link is not None
    assert (link.what, link.is_final) == ("no sandbox of etcd can be made", True)
    assert cause in link.cause
    assert remedy in link.remedy


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


# ---- containers

ETCD_BIND = (
    '{"level":"error","ts":"2026-01-01T00:00:00Z","caller":"embed/etcd.go:586","msg":"creating peer listener failed","error":'
    '"listen tcp 10.0.0.99:2380: bind: cannot assign requested address","stacktrace":"go.etcd.io/x\\n\\tmain"}'
)
ENDS = [
    ("kube-apiserver", "Error: unknown flag: --foo", "unknown flag: --foo, which comes from apiServer.extraArgs",
     "remove --foo from apiServer.extraArgs"),
    ("kube-scheduler", 'Error: invalid argument "many" for "--v" flag: strconv', '--v does not take the value "many"',
     "correct --v in scheduler.extraArgs"),
    ("etcd", "flag provided but not defined: -foo", "unknown flag: --foo, which comes from etcd.local.extraArgs",
     "remove --foo from etcd.local.extraArgs"),
    ("etcd", ETCD_BIND, "This machine does not have 10.0.0.99; it has 10.0.0.11 (eth0)", "localAPIEndpoint.advertiseAddress"),
    ("etcd", "panic: write /var/lib/etcd/member/snap/db: no space left on device", "100 MiB are free for /var/lib/etcd",
     "df -h /var/lib/etcd"),
    ("etcd", '{"level":"fatal","msg":"x","error":"cluster ID mismatch"}', "belong to another cluster", "mv /var/lib/etcd"),
    ("kube-apiserver", "Error: tls: private key does not match public key", "do not belong together", "kb doctor"),
    ("kube-apiserver", "x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after "
     "2025-01-01T00:00:00Z", "it is 2026-01-01T00:00:00Z here, which is after 2025-01-01T00:00:00Z", "clock"),
    ("kube-proxy", "E0101 1 server.go:1] \"Error running ProxyServer\" err=\"can't use the IPVS proxier: no such file\"",
     "this kernel has no IPVS", "mode: iptables"),
    ("kube-proxy", 'F0101 1 x.go:1] open /proc/sys/net/netfilter/nf_conntrack_max: permission denied',
     "connection tracking table", "maxPerCore: 0"),
    ("coredns", '[FATAL] plugin/loop: Loop (127.0.0.1:35443 -> :53) detected for zone ".", see https://coredns.io/plugins/loop',
     "CoreDNS asks itself: Loop (127.0.0.1:35443 -> :53)", "resolvConf"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "cause", "remedy"), ENDS)
def test_what_a_container_died_of_is_final_at_its_first_end(name: str, line: str, cause: str, remedy: str) -> None:
    host = make_host()
    host.free = 100 * 2**20
    run_containers(host, {"name": name, "state": "exited"}, logs={name: ["I0101 it began", line]})
    link = find(host, name)
    assert link is not None
    assert (link.what, link.is_final, link.link) == (f"{name} exited 1 time (code 1)", True, "container")
    assert cause in link.cause
    assert remedy in link.remedy


class DatedHost(FakeHost):
    """A node whose manifests were written at a moment."""

    written_s = 0.0

    def stat(self, path: Path) -> Optional[FileStat]:
        found = super().stat(path)
        return found and replace(found, mtime=self.written_s)


def test_what_ended_before_its_manifest_was_changed_is_not_held_against_the_new_one() -> None:
    """The kubelet takes a while to end a pod that it starts again and again, and to start the one that takes its place."""
    host = DatedHost(**vars(make_host()))
    host.written_s = host.now().timestamp() - 10
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b""
    log = {"etcd": ["discovery failed: listen tcp 192.0.2.1:2379: bind: cannot assign requested address"]}
    before, after = ((int(host.written_s) + seconds) * 10**9 for seconds in (-10, 5))
    run_containers(host, {"name": "etcd", "state": "exited", "attempt": 1, "created": before}, logs=log)
    assert find(host, "etcd") is None
    ended = {"name": "etcd", "state": "exited", "attempt": 1, "created": before}
    run_containers(host, ended, {"name": "etcd", "state": "running", "attempt": 1, "created": after}, logs={})
    assert find(host, "etcd", etcd="refused") is None
    run_containers(host, {"name": "etcd", "state": "exited", "created": after}, logs=log)
    link = find(host, "etcd")
    assert link is not None and link.is_final and "192.0.2.1" in link.cause


def test_a_kubelet_that_does_not_start_the_pod_of_a_changed_manifest() -> None:
    """As one of 1.35 does, whose pod had crashed and was to wait: it is named before the wait for the control plane is over."""
    host = DatedHost(**vars(make_host()))
    host.written_s = host.now().timestamp() - 40
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b""
    ended = {"name": "etcd", "state": "exited", "attempt": 1, "created": (int(host.written_s) - 10) * 10**9}
    run_containers(
        host, ended, {"name": "kube-apiserver", "state": "exited"}, logs={"kube-apiserver": ["E1126 no etcd"]}
    )
    link = find(host, "etcd", "kube-apiserver")
    assert link is not None and link.is_final
    assert link.what == "the kubelet does not start etcd from its changed manifest"
    assert "40 s ago" in link.cause and "systemctl restart kubelet" in link.remedy


def test_a_container_whose_moment_is_not_known_counts() -> None:
    """ctr tells none: the number of the attempt stands in its place."""
    host = DatedHost(**vars(make_host()))
    host.written_s = host.now().timestamp()
    host.files["/etc/kubernetes/manifests/etcd.yaml"] = b""
    run_containers(host, {"name": "etcd", "state": "exited", "attempt": 2, "created": 2}, logs={"etcd": ["panic: new"]})
    link = find(host, "etcd")
    assert link is not None and link.is_final


def test_an_api_server_without_etcd_names_whom_it_calls() -> None:
    host = make_host()
    manifest = b"- --etcd-servers=https://10.0.0.9:2379,https://10.0.0.8:2379\n"
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = manifest
    lines = [
        "W1126 grpc: addrConn.createTransport failed",
        'E1126 1 run.go:72] "command failed" err="context deadline exceeded"',
    ]
    run_containers(host, {"name": "kube-apiserver", "state": "exited"}, logs={"kube-apiserver": lines})
    link = find(host, "kube-apiserver")
    assert link is not None and not link.is_final, "it may come"
    assert link.cause == "etcd did not answer it in time: it calls https://10.0.0.9:2379, https://10.0.0.8:2379"
    assert "curl -vk https://10.0.0.9:2379/health" in link.remedy


def test_an_unknown_end_is_final_after_the_third() -> None:
    host = make_host()
    run_containers(host, {"name": "etcd", "state": "exited", "attempt": 1}, logs={"etcd": ["panic: something new"]})
    link = find(host, "etcd")
    assert link is not None and not link.is_final
    run_containers(host, {"name": "etcd", "state": "exited", "attempt": 2}, logs={"etcd": ["panic: something new"]})
    link = find(host, "etcd")
    assert link is not None and link.is_final
    assert (link.what, link.cause) == ("etcd exited 3 times (code 1)", "its last word: panic: something new")


def test_a_container_that_runs_again_for_a_moment_hides_nothing() -> None:
    host = make_host()
    rows = [
        {"name": "kube-apiserver", "state": "exited", "attempt": 0, "created": 1},
        {"name": "kube-apiserver", "state": "running", "attempt": 1, "created": 2},
    ]
    run_containers(host, *rows, logs={"kube-apiserver": ["Error: unknown flag: --foo"]})
    link = find(host, "kube-apiserver", kube_apiserver="refused")
    assert link is not None and link.is_final
    assert "--foo" in link.cause
    assert find(host, "kube-apiserver") is None, "one that is healthy is not judged by its past"


def test_a_final_trouble_goes_before_one_that_may_heal() -> None:
    host = make_host()
    rows = [{"name": "etcd", "state": "exited"}, {"name": "kube-apiserver", "state": "exited"}]
    run_containers(host, *rows, logs={"etcd": ["panic: new"], "kube-apiserver": ["Error: unknown flag: --foo"]})
    link = find(host, "etcd", "kube-apiserver")
    assert link is not None
    assert link.what.startswith("kube-apiserver exited")


def test_a_kill_for_want_of_memory_is_said() -> None:
    host = make_host()
    run_containers(host, {"name": "etcd", "state": "exited", "exitCode": 137, "reason": "OOMKilled"})
    link = find(host, "etcd")
    assert link is not None
    assert "killed for want of memory" in link.what


def test_a_port_in_use_names_its_process_and_may_heal() -> None:
    host = make_host()
    host.ports[10259] = "python3 (pid 5)"
    line = "failed to create listener: failed to listen on 127.0.0.1:10259: listen tcp 127.0.0.1:10259: bind: address already in use"
    run_containers(host, {"name": "kube-scheduler", "state": "exited"}, logs={"kube-scheduler": [line]})
    link = find(host, "kube-scheduler")
    assert link is not None
    assert (link.cause, link.is_final) == ("port 10259 is in use by python3 (pid 5)", False)


# ---- log lines


def test_two_looks_at_one_trouble_have_one_key() -> None:
    first = signs.BrokenLink("etcd exited 1 time", "a", "see crictl logs 1", link="container")
    again = signs.BrokenLink("etcd exited 3 time", "b", "see crictl logs 2", link="container")
    other = signs.BrokenLink("kube-apiserver exited 1 time", "a", "see crictl logs 1", link="container")
    assert first.key == again.key != other.key


def test_log_lines_are_cleaned() -> None:
    assert log_lines.clean_log_line("E0101 00:00:00.000000       1 proxier.go:1] Failed") == "Failed"
    assert log_lines.clean_log_line(ETCD_BIND) == (
        "creating peer listener failed: listen tcp 10.0.0.99:2380: bind: cannot assign requested address"
    )
    assert log_lines.clean_log_line("x" * 500) == "x" * 397 + "..."


def test_every_sign_has_a_remedy_that_can_be_filled() -> None:
    """A group that is not there would be a KeyError in the worst moment."""
    words = dict.fromkeys(
        ("line", "source", "origin", "holder", "look", "mount", "folder", "free", "have", "server", "servers"), "x"
    )
    words.update(signs._service_words(FakeHost()))
    words.update(signs._look_up_identity(FakeHost(), {}))
    for sign in (*signs.KUBELET_SIGNS, *signs.SANDBOX_SIGNS, *signs.CONTAINER_SIGNS):
        groups = dict.fromkeys(re.compile(sign.pattern).groupindex, "x")
        assert sign.remedy.format_map({**words, **groups})
        assert sign.cause.format_map({**words, **groups}) or not sign.cause


@pytest.mark.parametrize(
    ("ends", "verb"), [(True, "exited 1 time (code 1)"), (False, "runs and is not healthy (refused)")]
)
def test_last_words_may_come_before_the_runtime_has_seen_the_end(ends: bool, verb: str) -> None:
    host, logs = make_host(), {"kube-apiserver": ["Error: unknown flag: --shout"]}
    run_containers(host, {"name": "kube-apiserver", "state": "running"}, logs=logs)
    slept = host.sleep

    def sleep(seconds: float) -> None:
        slept(seconds)
        if ends:
            run_containers(host, {"name": "kube-apiserver", "state": "exited"}, logs=logs)

    host.sleep = sleep  # type: ignore[method-assign]
    link = find(host, "kube-apiserver", kube_apiserver="refused")
    assert link is not None and link.what == f"kube-apiserver {verb}"
    assert link.cause.startswith("unknown flag: --shout")


# ---- kube-proxy's rules


def test_rules_that_somebody_flushed() -> None:
    host = make_host()
    run_containers(host, {"name": "kube-proxy", "state": "running"})
    host.answers["nft list tables"] = "table ip kb_pods\ntable ip nat\n"
    link = container_trouble.find_lost_rules(host, SOCKET)
    assert link is not None and not link.is_final
    assert link.what == "kube-proxy runs, and its rules are not on this node"
    assert "nft flush ruleset" in link.cause and "crictl stop $(crictl ps -q --name kube-proxy)" in link.remedy


@pytest.mark.parametrize(
    "answers",
    [
        {"nft list tables": "table ip kube-proxy\n"},
        {"nft list tables": "table ip6 kube-proxy\n"},
        {"nft list tables": "table ip nat\n", "iptables -t nat -S KUBE-SERVICES": "-N KUBE-SERVICES\n"},
        {"nft list tables": "", "ip link show dev kube-ipvs0": "7: kube-ipvs0\n"},
        {},
    ],
)
def test_rules_that_are_there_or_cannot_be_told(answers: dict[str, str]) -> None:
    host = make_host()
    run_containers(host, {"name": "kube-proxy", "state": "running"})
    host.answers.update(answers)
    assert container_trouble.find_lost_rules(host, SOCKET) is None


def test_a_kube_proxy_that_has_just_begun_has_no_rules_yet() -> None:
    host = make_host()
    run_containers(
        host, {"name": "kube-proxy", "state": "running", "created": int(host.now().timestamp() * 1e9) - 10**9}
    )
    host.answers["nft list tables"] = ""
    assert container_trouble.find_lost_rules(host, SOCKET) is None


def test_an_error_of_several_lines_is_told_as_one() -> None:
    lines = ['E1129 08:09:41.0       1 proxier.go:1] "Failed to list nftables objects" err=<', "\tno such table", " > family=4", "I1129 next"]  # fmt: skip
    assert log_lines.last_error_line(lines).endswith('"Failed to list nftables objects" err=< no such table > family=4')
