"""kb certs rotate-ca cluster: the stages on one control plane and on three, with a worker; the way back, what is refused, and kills."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from typing import Any

import pytest

from kubeup.cluster import amid_rotation, authority_places, reach
from kubeup.cluster.api import Api
from kubeup.machine.local_host import LocalHost
from kubeup.node import certificates, kubeconfig, verify
from kubeup.paths import Paths
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_authority import CONFS, INFO, ROOTS, Authority, acknowledge, make_authority
from tests.fake_control_plane import Gone
from tests.fake_departure import NODES
from tests.fake_rotation import CONFIG, PKI, RECORD, SEALED
from tests.fuzz.node import Ended, call

CLUSTER = ("rotate-ca", "cluster")
MANAGER = "/etc/kubernetes/manifests/kube-controller-manager.yaml"
ROLE = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/kb:rotation"
USER_CONF = "/root/.kube/config"
INIT_FLAGS = ("--apiserver-advertise-address=10.0.0.11", "--kubernetes-version=v1.35.6", "--node-name=cp1")


def run(host: Authority, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(words, make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def kb(host: Authority, *words: str) -> Ended:
    return run(host, "certs", *CLUSTER, *words)


def ok(host: Authority, *words: str) -> Ended:
    ended = kb(host, *words)
    assert ended.status == 0, ended.err
    return ended


def is_over(host: Authority) -> bool:
    return not {RECORD, SEALED, ROLE} & set(host.cluster.objects) and not host.mark_of("cp1") and not host.mark_of("w1")


def told(host: Authority) -> list[set[Any]]:
    """The authorities that the cluster tells: pods, joining nodes, extension API servers."""
    info = kubeconfig.parse_kubeconfig(host.cluster.objects[INFO]["data"]["kubeconfig"], source="it").ca_pem
    texts = [host.cluster.objects[f"{ROOTS}/default"]["data"]["ca.crt"], info]
    texts.append(host.cluster.objects[CONFIG]["data"]["client-ca-file"])
    return [set(certificates.parse_certs(text)) for text in texts]


def chain_leads_to(host: Authority, authority: Any) -> bool:
    return verify.find_fault(host.certs("apiserver.crt"), [authority], usage="server", now=host.now()) is None


def to_use(host: Authority, *others: str) -> Any:
    """Everybody has done the first stage, and cp1 the second; returns the new authority."""
    ok(host)
    acknowledge(host, *others, "w1")
    ok(host)
    return host.certs()[0]


def test_the_first_stage_trusts_both() -> None:
    host = make_authority()
    former = host.certs()[0]
    ended = ok(host)
    assert "on worker w1: kb certs rotate-ca cluster --continue" in ended.out and host.record["stage"] == "trust"
    first, new = host.certs()
    assert first == former and host.signers([former, new]) == {0} and host.trusted() == [{former, new}] * 4
    assert (
        set(certificates.parse_certs(host.root)) == set(certificates.parse_certs(host.kubelet_knows)) == {former, new}
    )
    assert f"--cluster-signing-cert-file={PKI}/ca-signing.crt\n" in host.files[MANAGER].decode()
    assert host.certs("ca-signing.crt") == [former] and "start kube-scheduler" in host.events
    assert (
        host.record["followingCert"].strip() == certificates.cert_to_pem(new).strip() and ROLE in host.cluster.objects
    )
    assert told(host)[1] == {former}, "joining nodes are told once every node trusts it"
    assert not host.violations and "start kube-apiserver" not in host.events


def test_a_new_user_trusts_both_until_it_ends() -> None:
    """As long as another control plane has not been there, its API server has a certificate of the former authority alone."""
    host = make_authority()

    def trusted() -> list[Any]:
        ended = run(host, "kubeconfig", "user", "--client-name=alice")
        assert ended.status == 0, ended.err
        return list(certificates.parse_certs(kubeconfig.parse_kubeconfig(ended.out, source="alice").ca_pem))

    former = host.certs()[0]
    assert trusted() == [former]
    new = to_use(host)
    assert trusted() == [new, former]
    acknowledge(host, "w1")
    ok(host, "--finish")
    assert trusted() == [new]


def test_what_is_renewed_amid_it_trusts_both() -> None:
    host = make_authority()
    to_use(host)
    before = host.trusted()
    former, chain = host.certs()[1], host.certs("apiserver.crt")
    for name in ("admin.conf", "apiserver"):
        ended = run(host, "certs", "renew", name)
        assert ended.status == 0, ended.err
    assert host.trusted() == before and len(before[0]) == 2
    assert chain_leads_to(host, former) and host.certs("apiserver.crt") != chain


def test_a_kubeconfig_that_is_made_again_amid_it_trusts_both() -> None:
    host = make_authority()
    to_use(host)
    before = host.trusted()
    del host.files["/etc/kubernetes/admin.conf"]
    ended = run(host, "init", "phase", "kubeconfig", "admin", *INIT_FLAGS)
    assert ended.status == 0, ended.err
    assert host.trusted() == before and len(before[0]) == 2


def test_the_second_stage_signs_with_the_new_one_and_is_known_by_the_former_one() -> None:
    host = make_authority()
    former, manifest = host.certs()[0], host.files[MANAGER]
    new = to_use(host)
    assert host.record["stage"] == "use" and host.certs() == [new, former] and host.signers([former, new]) == {1}
    assert host.certs("ca-signing.crt") == [new] and told(host) == [{former, new}] * 3
    assert chain_leads_to(host, former) and chain_leads_to(host, new) and len(host.certs("apiserver.crt")) == 2
    assert "on worker w1: " in ok(host, "--continue").out
    acknowledge(host, "w1")
    assert "kb certs rotate-ca cluster --finish" in ok(host, "--continue").out
    ended = ok(host, "--finish")
    assert host.record["stage"] == "drop" and host.certs() == [new] and host.trusted() == [{new}] * 4
    assert host.files[MANAGER] == manifest and f"{PKI}/ca-signing.crt" not in host.files
    assert not chain_leads_to(host, former) and chain_leads_to(host, new) and len(host.certs("apiserver.crt")) == 1
    assert "on worker w1: " in ended.out and "join lines" in ended.err
    acknowledge(host, "w1")
    assert "has ended" in ok(host, "--continue").out
    assert is_over(host) and told(host) == [{new}] * 3 and set(certificates.parse_certs(host.root)) == {new}
    assert not host.violations


def test_three_control_planes() -> None:
    host = make_authority(3)
    former = host.certs()[0]
    ended = ok(host)
    lines = [f"on control plane cp{number}: " in ended.out for number in (2, 3)]
    assert all(lines) and ended.out.index("cp3") < ended.out.index("w1"), "workers come last"
    acknowledge(host, "cp2", "cp3", "w1")
    before = dict(host.read["10.0.0.13:6443"])
    host.read["10.0.0.13:6443"] = {**before, "ca.crt": certificates.cert_to_pem(former)}
    ended = kb(host, "--continue")
    assert "code:   rotation-not-proven\n" in ended.err and "10.0.0.13:6443" in ended.err, "it has only said so"
    host.read["10.0.0.13:6443"] = before
    ok(host, "--continue")
    assert host.record["stage"] == "use"
    acknowledge(host, "cp2", "cp3", "w1")
    ok(host, "--finish")
    acknowledge(host, "cp2", "cp3", "w1")
    ok(host, "--continue")
    assert is_over(host) and not host.violations


def test_a_kubelet_that_is_not_reached_keeps_the_next_stage_off() -> None:
    host = make_authority()
    ok(host)
    acknowledge(host, "w1")
    host.deaf.add("w1")
    ended = kb(host, "--continue")
    assert "does not reach the kubelet of w1" in ended.err and host.record["stage"] == "trust"
    ok(host, "--continue", "--force")
    assert host.record["stage"] == "use"


def test_many_kubelets_are_asked_at_once_and_who_answered_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by who waits: four calls have to be under way at the same time before any of them is answered."""
    host = make_authority()
    known = {path: json.dumps(one) for path, one in host.cluster.objects.items() if path.endswith("/w1")}
    for number in range(2, 32):
        for path, text in known.items():
            one = text.replace("w1", f"w{number}").replace("10.0.0.21", f"10.0.0.{100 + number}")
            host.cluster.objects[path.replace("w1", f"w{number}")] = json.loads(one)
    names = [path.rpartition("/")[2] for path in host.cluster.objects if path.startswith(f"{NODES}/")]
    ok(host)
    acknowledge(host, *(name for name in names if name != "cp1"))
    met, lock, asked, most = threading.Barrier(4), threading.Lock(), [], 0
    at_once = 0

    def find_deaf_kubelet(api: Api, node: str) -> str:
        nonlocal at_once, most
        with lock:
            asked.append(node)
            at_once += 1
            most = max(most, at_once)
        if len(asked) <= 32:
            met.wait(timeout=20)
        with lock:
            at_once -= 1
        return "not yet" if node == "w7" and asked.count("w7") < 3 else ""

    monkeypatch.setattr(authority_places, "find_deaf_kubelet", find_deaf_kubelet)
    ok(host, "--continue")
    assert host.record["stage"] == "use" and 4 <= most <= reach.AT_ONCE
    assert sorted(asked) == sorted([*names, "w7", "w7"]) and len(names) == 32


@pytest.mark.parametrize(
    "line",
    [
        "upgrade apply v1.35.7", "upgrade node", "upgrade rollback", "reconfigure apiserver --set v=3", "reconfigure node", "adopt", "init",
        "init phase control-plane/all", "init phase control-plane controller-manager",
    ],
)  # fmt: skip
def test_what_takes_the_manifest_from_a_configuration_waits_for_the_end(line: str) -> None:
    """It would have the controller-manager sign with ca.crt, which holds two."""
    host = make_authority()
    ok(host)
    assert len(host.certs()) == 2
    host.changes.clear()
    for program in ((), ("--as-kubeadm",)):
        if program and not line.startswith(("init", "upgrade apply", "upgrade node")):
            continue
        given = INIT_FLAGS if line.startswith("init") else ()
        ended = run(host, *program, *line.split(), *given)
        assert ended.status and "does not start otherwise" in ended.err, ended.err
        assert " certs rotate-ca cluster --continue" in ended.err and host.changes == []


def test_what_does_not_write_that_manifest_is_not_held_up_nor_anything_after_the_end() -> None:
    host = make_authority()
    to_use(host)
    for command in (
        "certs renew",
        "certs add-san",
        "readdress",
        "backup",
        "restore",
        "node reboot",
        "reset",
        "reconfigure endpoint",
    ):
        amid_rotation.refuse_writer(host, Paths(), command=command)
    amid_rotation.refuse_writer(host, Paths(), command="init phase", words=("upload-certs",))
    before = host.certs("apiserver.crt")
    assert run(host, "certs", "renew", "apiserver").status == 0
    assert host.certs("apiserver.crt")[0] != before[0] and host.certs("apiserver.crt")[1:] == before[1:], (
        "who knows the former one goes on"
    )
    acknowledge(host, "w1")
    ok(host, "--finish")
    assert len(host.certs()) == 1
    amid_rotation.refuse_writer(host, Paths(), command="upgrade apply")


def test_it_is_taken_back_before_anybody_uses_it() -> None:
    host = make_authority()
    former, files = host.certs()[0], dict(host.files)
    ok(host)
    ok(host, "--undo")
    assert host.certs() == [former] and host.files[MANAGER] == files[MANAGER] and host.record["stage"] == "drop"
    acknowledge(host, "w1")
    ok(host, "--continue")
    assert is_over(host) and host.trusted() == [{former}] * 4 and told(host) == [{former}] * 3
    assert host.files[f"{PKI}/apiserver.crt"] == files[f"{PKI}/apiserver.crt"]


def test_it_is_taken_back_while_it_is_used() -> None:
    host = make_authority()
    former = host.certs()[0]
    new = to_use(host)
    ok(host, "--undo")
    assert host.record["stage"] == "use" and host.certs() == [former, new] and host.signers([former, new]) == {0}
    assert chain_leads_to(host, former) and chain_leads_to(host, new), "who joined meanwhile goes on"
    acknowledge(host, "w1")
    ok(host, "--finish")
    acknowledge(host, "w1")
    ok(host, "--continue")
    assert is_over(host) and host.certs() == [former] and len(host.certs("apiserver.crt")) == 1
    assert not host.violations


def test_the_last_stage_waits_for_who_knows_the_former_one_alone() -> None:
    host = make_authority()
    host.add_hook()
    former = host.certs()[0]
    cert, key = host.issue(certificates.Subject("jane", is_client=True))
    text = dump_yaml({**load_yaml(host.files["/etc/kubernetes/admin.conf"].decode())})
    user = {
        "client-certificate-data": base64.b64encode(cert.encode()).decode(),
        "client-key-data": base64.b64encode(key.encode()).decode(),
    }
    document = load_yaml(text)
    document["users"][0]["user"] = user
    host.files[USER_CONF] = dump_yaml(document).encode()
    host.add_pod("w1", "web-1", owner="DaemonSet")
    pod = host.cluster.objects.pop("/api/v1/namespaces/app/pods/web-1")
    sources = [{"configMap": {"name": "kube-root-ca.crt"}}]
    pod["spec"]["volumes"] = [{"name": "a", "projected": {"sources": sources}}]
    pod["metadata"]["creationTimestamp"] = "2025-12-31T00:00:00Z"
    host.cluster.objects["/api/v1/pods/web-1"] = pod
    new = to_use(host)
    assert set(host.bundle()) == {former, new}
    acknowledge(host, "w1")
    ended = kb(host, "--finish")
    assert "code:   rotation-still-used\n" in ended.err and host.record["stage"] == "use"
    assert "pod app/web-1" in ended.err and "a.b.c" in ended.err and USER_CONF in ended.err
    del host.cluster.objects["/api/v1/pods/web-1"], host.files[USER_CONF]
    assert "code:   rotation-still-used\n" in kb(host, "--finish").err
    host.sign_hook()
    ok(host, "--finish")
    acknowledge(host, "w1")
    ok(host, "--continue")
    assert host.bundle() == [new] and is_over(host)


def test_a_webhook_of_the_former_one_is_left_to_its_owner() -> None:
    host = make_authority()
    host.add_hook()
    former = host.certs()[0]
    new = to_use(host)
    acknowledge(host, "w1")
    ok(host, "--finish", "--force")
    acknowledge(host, "w1")
    ended = ok(host, "--continue")
    assert "still trusts the former authority" in ended.err and set(host.bundle()) == {former, new}


def test_what_is_refused() -> None:
    host = make_authority()
    host.files[MANAGER] = host.files[MANAGER].replace(
        b"cluster-signing-cert-file=", b"cluster-signing-kubelet-serving-cert-file="
    )
    assert "code:   rotated-files-elsewhere\n" in kb(host).err and host.sent == []
    host = make_authority()
    del host.files[f"{PKI}/ca.key"]
    assert "code:   external-ca-signs\n" in kb(host).err and host.sent == []
    host = make_authority()
    host.clock = host.certs()[0].not_valid_after_utc.replace(year=2040)
    assert "code:   ca-expired\n" in kb(host).err and host.sent == []


def test_a_dry_run_changes_nothing() -> None:
    host = make_authority()
    ok(host, "--dry-run")
    assert host.changes == [] and host.sent == []


def way(host: Authority) -> None:
    """From the beginning to the end."""
    for words in ((), ("--continue",), ("--finish",), ("--continue",), ("--continue",)):
        if words and RECORD not in host.cluster.objects:
            return
        ok(host, *words)
        if RECORD in host.cluster.objects:
            acknowledge(host, "w1")


def moments() -> list[int]:
    """Some of the changes after which it is killed, of files and of the cluster; a real node is killed after each of them
    (tests/e2e/test_certs_rotate_killed.py), and each restart has its own tests."""
    host = make_authority()
    way(host)
    assert is_over(host)
    found = [n for n, one in enumerate(host.changes, 1) if any(place in one for place in (PKI, "/api", ".conf"))]
    return found[2::7]


def test_killed_it_goes_on() -> None:
    for number in moments():
        host = make_authority()
        host.dies_after = number
        with contextlib.suppress(Gone):
            way(host)
        assert host.is_dead, number
        host.revive()
        former = certificates.parse_certs(host.record["formerCert"])[0] if host.record else None
        for _ in range(3):
            if RECORD in host.cluster.objects or former is None:
                way(host)
                former = former or host.certs()[0]
        assert RECORD not in host.cluster.objects and SEALED not in host.cluster.objects, number
        assert len(host.certs()) == 1 and host.signers(host.certs()) == {0}, number
        assert host.trusted() == [set(host.certs())] * len(CONFS), number
        assert f"{PKI}/ca-signing.crt" not in host.files and not host.violations, (number, host.violations)


def test_killed_while_the_controller_manager_gets_its_own_file() -> None:
    """Its manifest is out then, or in and not yet proven: the same line goes on, and no other command has to."""
    host = make_authority()
    ok(host)
    place = "kube-controller-manager"
    numbers = [n for n, change in enumerate(host.changes, 1) if change.startswith("move") and place in change][:2]
    assert numbers
    for number in numbers:
        host = make_authority()
        host.dies_after = number
        with contextlib.suppress(Gone):
            ok(host)
        assert host.is_dead and len(host.certs()) == 1, (
            "ca.crt has one certificate until the controller-manager has its own"
        )
        host.revive()
        ok(host, "--continue")
        assert len(host.certs()) == 2 and f"{PKI}/ca-signing.crt\n" in host.files[MANAGER].decode()
        assert not host.violations
