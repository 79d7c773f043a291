"""kubeup/diagnosis/kubelet_trouble.py: the kubelet's ends, and what it is refused."""

from __future__ import annotations

import pytest

from kubeup.diagnosis import kubelet_trouble
from kubeup.machine.http import HttpResponse
from tests.fake_node import finished_node
from tests.unit.diagnosis.signs_case import find, make_host, make_openrc_host

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


def test_the_kernel_settings_that_a_kubelet_demands() -> None:
    log = (
        '"Failed to start ContainerManager" err="[invalid kernel flag: vm/overcommit_memory, expected value: 1, actual value: 0, '
        'invalid kernel flag: kernel/panic, expected value: 10, actual value: 0]"'
    )
    host = make_host(active="activating", sub="auto-restart", restarts=1, code=1, kubelet_log=log)
    link = kubelet_trouble.find_kubelet_trouble(host)
    assert link and "protectKernelDefaults" in link.cause
    assert "sysctl -w vm.overcommit_memory=1 kernel.panic=10 " in link.remedy


def test_who_gives_a_kubelet_a_new_identity_depends_on_the_node() -> None:
    """A worker has no CA: kb init phase is refused there."""
    log = "unable to load bootstrap kubeconfig: stat /etc/kubernetes/bootstrap-kubelet.conf: no such file"
    worker = make_host(active="activating", sub="auto-restart", restarts=3, code=1, kubelet_log=log)
    link = kubelet_trouble.find_kubelet_trouble(worker)
    assert link and "kb init" not in link.remedy and "kb token create --print-join-command" in link.remedy
    worker.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
    link = kubelet_trouble.find_kubelet_trouble(worker)
    assert link and link.remedy == "kb init phase kubeconfig kubelet"


def test_a_kubelet_whose_certificate_has_expired_comes_back_by_one_command() -> None:
    log = "unable to load bootstrap kubeconfig: stat /etc/kubernetes/bootstrap-kubelet.conf: no such file"
    host = make_host(active="activating", sub="auto-restart", restarts=3, code=1, kubelet_log=log)
    host.files["/etc/kubernetes/kubelet.conf"] = finished_node().files["/etc/kubernetes/kubelet.conf"]
    host.clock = host.clock.replace(year=2028)
    link = kubelet_trouble.find_kubelet_trouble(host)
    expired = "the kubelet's client certificate /var/lib/kubelet/pki/kubelet-client-current.pem has expired"
    assert link and (link.cause, link.remedy) == (
        expired,
        "on a control plane: kb certs recover, which prints the line for this node",
    )
    host.files["/etc/kubernetes/manifests/kube-apiserver.yaml"] = b""
    link = kubelet_trouble.find_kubelet_trouble(host)
    assert link and (link.cause, link.remedy) == (expired, "kb certs recover")


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
    assert link.what == "the kubelet runs but is not healthy: HTTP 500: pleg failed"
    assert link.cause == "PLEG is not healthy"


@pytest.mark.parametrize(
    ("end", "cause", "remedy"),
    [
        (
            "proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused",
            "its unit sets that proxy",
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
