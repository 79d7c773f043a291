"""kubeup/diagnosis/container_trouble.py: containers that end, or run and are not well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from kubeup.diagnosis import container_trouble
from kubeup.machine.host import FileStat
from tests.fake_host import FakeHost
from tests.unit.diagnosis.signs_case import ETCD_BIND, SOCKET, find, make_host, run_containers

ENDS = [
    ("kube-apiserver", "Error: unknown flag: --foo", "unknown flag: --foo, which comes from apiServer.extraArgs",
     "remove --foo from apiServer.extraArgs"),
    ("kube-scheduler", 'Error: invalid argument "many" for "--v" flag: strconv', '--v does not accept the value "many"',
     "correct --v in scheduler.extraArgs"),
    ("etcd", "flag provided but not defined: -foo", "unknown flag: --foo, which comes from etcd.local.extraArgs",
     "remove --foo from etcd.local.extraArgs"),
    ("etcd", ETCD_BIND, "This machine does not have 10.0.0.99; it has 10.0.0.11 (eth0)", "localAPIEndpoint.advertiseAddress"),
    ("etcd", "panic: write /var/lib/etcd/member/snap/db: no space left on device", "100 MiB are free for /var/lib/etcd",
     "df -h /var/lib/etcd"),
    ("etcd", '{"level":"fatal","msg":"discovery failed","error":"proto: Record: wiretype end group for non-group"}',
     "damaged, as a power failure or a failing disk leaves them (proto: Record: wiretype end group", "kb restore FILE"),
    ("etcd", '{"level":"fatal","msg":"discovery failed","error":"proto: wrong wireType = 6 for field Crc"}', "are damaged", "kb restore FILE"),
    ("etcd", '{"level":"fatal","msg":"discovery failed","error":"walpb: crc mismatch"}', "are damaged", "kb restore FILE"),
    ("etcd", '{"level":"fatal","msg":"x","error":"cluster ID mismatch"}', "belong to another cluster", "mv /var/lib/etcd"),
    ("etcd", '{"level":"warn","msg":"server error","error":"the member has been permanently removed from the cluster"}',
     "this machine's member was removed from etcd", "kb reset --force"),
    ("etcd", "panic: tocommit(107) is out of range [lastIndex(0)]. Was the raft log corrupted, truncated, or lost?",
     "were wiped: a lost disk", "kb etcd remove NAME"),
    ("kube-apiserver", "Error: tls: private key does not match public key", "do not match", "kb doctor"),
    ("kube-apiserver", "x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after "
     "2025-01-01T00:00:00Z", "it is 2026-01-01T00:00:00Z here, which is after 2025-01-01T00:00:00Z", "clock"),
    ("kube-proxy", "E0101 1 server.go:1] \"Error running ProxyServer\" err=\"can't use the IPVS proxier: no such file\"",
     "this kernel has no IPVS", "mode: iptables"),
    ("kube-proxy", 'F0101 1 x.go:1] open /proc/sys/net/netfilter/nf_conntrack_max: permission denied',
     "connection tracking table", "maxPerCore: 0"),
    ("coredns", '[FATAL] plugin/loop: Loop (127.0.0.1:35443 -> :53) detected for zone ".", see https://coredns.io/plugins/loop',
     "CoreDNS queries itself: Loop (127.0.0.1:35443 -> :53)", "resolvConf"),
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


def test_a_container_of_a_pod_that_was_deleted_is_no_trouble() -> None:
    """A CoreDNS pod that was moved to another node leaves its container behind for a while, with code 0."""
    host = make_host()
    gone = {"name": "coredns", "state": "exited", "exitCode": 0, "sandbox": "a", "is_gone": True, "created": 2}
    run_containers(host, gone)
    assert find(host, "coredns") is None
    run_containers(host, gone, {"name": "coredns", "state": "running", "sandbox": "b", "created": 1})
    assert find(host, "coredns") is None
    crashing = {"name": "coredns", "state": "exited", "sandbox": "b", "created": 1}
    run_containers(host, gone, crashing, logs={"coredns": ["[FATAL] plugin/loop: Loop (127.0.0.1:1 -> :53) detected"]})
    link = find(host, "coredns")
    assert link is not None and link.what == "coredns exited 1 time (code 1)"


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


def test_an_error_of_before_does_not_explain_why_a_component_hangs() -> None:
    """Its log ends with whatever it wrote before: an error about some node, here."""
    host = make_host()
    created = (int(host.now().timestamp()) - 600) * 10**9
    row = {"name": "kube-controller-manager", "state": "running", "created": created}
    logs = {"kube-controller-manager": ['E1126 10:00:00.0 1 node.go:1] "Error processing node work item" node="w1"']}
    run_containers(host, row, logs=logs)
    link = find(host, "kube-controller-manager", kube_controller_manager="HTTP 500: failed")
    assert link is not None and "node work item" in link.cause
    assert find(host, "kube-controller-manager", kube_controller_manager="timeout") is None


def test_a_kill_for_want_of_memory_is_said() -> None:
    host = make_host()
    run_containers(host, {"name": "etcd", "state": "exited", "exitCode": 137, "reason": "OOMKilled"})
    link = find(host, "etcd")
    assert link is not None
    assert "ran out of memory and was killed" in link.what


def test_a_limit_of_its_own_manifest_kills_it() -> None:
    host = make_host()
    run_containers(host, {"name": "kube-scheduler", "state": "exited", "exitCode": 137, "reason": "Error"})
    link = find(host, "kube-scheduler")
    assert link is not None and "memory" not in link.cause, "anybody may kill"
    path = "/etc/kubernetes/manifests/kube-scheduler.yaml"
    pod = "spec:\n  containers:\n  - name: kube-scheduler\n    resources: {limits: {memory: 12Mi}}\n"
    host.files[path] = pod.encode()
    link = find(host, "kube-scheduler")
    told = (
        f"it was killed: it needs more memory than its limit (12Mi: resources.limits.memory in {path}), or did not end"
    )
    assert link is not None and link.cause.startswith(told)
    run_containers(host, {"name": "kube-scheduler", "state": "exited", "exitCode": 137, "reason": "OOMKilled"})
    link = find(host, "kube-scheduler")
    assert link is not None and link.cause.startswith("its limit is too small for it (12Mi")


def test_a_port_in_use_names_its_process_and_may_heal() -> None:
    host = make_host()
    host.ports[10259] = "python3 (pid 5)"
    line = "failed to create listener: failed to listen on 127.0.0.1:10259: listen tcp 127.0.0.1:10259: bind: address already in use"
    run_containers(host, {"name": "kube-scheduler", "state": "exited"}, logs={"kube-scheduler": [line]})
    link = find(host, "kube-scheduler")
    assert link is not None
    assert (link.cause, link.is_final) == ("port 10259 is in use by python3 (pid 5)", False)


@pytest.mark.parametrize(
    ("ends", "verb"), [(True, "exited 1 time (code 1)"), (False, "runs but is not healthy (refused)")]
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
    assert link.what == "kube-proxy runs, but its rules are not on this node"
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
