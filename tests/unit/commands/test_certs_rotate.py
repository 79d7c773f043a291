"""kb certs rotate-sa and rotate-ca front-proxy: the stages on one control plane and on three, the way back, what is refused, and kills."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
from typing import Any

import pytest

from kubeup.cluster import account_tokens
from kubeup.machine.local_host import LocalHost
from kubeup.node import certificates, private_keys
from kubeup.phases import static_pods_swap
from kubeup.secret import Secret
from tests.fake_control_plane import MANIFESTS, SERVER, Gone
from tests.fake_departure import NODES
from tests.fake_rotation import CONFIG, PKI, RECORD, SEALED, Rotating, make_rotating
from tests.fuzz.node import Ended, call

SA = ("rotate-sa", "--yes")
FRONT = ("rotate-ca", "front-proxy", "--yes")
NEXT = ("cp2", "cp3")
COMPONENT = "kube-apiserver"


def run(host: Rotating, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(words, make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def kb(host: Rotating, *words: str) -> Ended:
    return run(host, "certs", *words)


def ok(host: Rotating, *words: str) -> Ended:
    ended = kb(host, *words)
    assert ended.status == 0, ended.err
    return ended


def kid_of(host: Rotating, name: str = "sa.key") -> str:
    return account_tokens.kid_of_key(private_keys.parse_key(host.text(name)))


def is_over(host: Rotating) -> bool:
    return RECORD not in host.cluster.objects and SEALED not in host.cluster.objects and not host.mark_of("cp1")


# ---- the key of service accounts


def test_one_control_plane_comes_to_the_last_stage_and_then_ends_it() -> None:
    host = make_rotating()
    former, former_key = kid_of(host), host.text("sa.key")
    ended = ok(host, *SA)
    new = kid_of(host)
    assert new != former and host.kids() == [new, former], "the one that signs comes first"
    assert host.read[SERVER]["sa.key"] == host.text("sa.key") == host.manager_key != former_key
    assert "kb certs rotate-sa --finish" in ended.out and host.record["stage"] == "use" and host.record["used"]
    assert host.modes[f"{PKI}/sa.key"] == 0o600 and "BEGIN EC PRIVATE KEY" in host.text("sa.key"), (
        "as encryptionAlgorithm says"
    )
    again = ok(host, *SA)
    assert "restarting" not in again.err and "kb certs rotate-sa --finish" in again.out, "it waits for the word"
    ended = ok(host, *SA, "--finish")
    assert host.kids() == [new] and kid_of(host) == new and is_over(host)
    assert "has ended" in ended.out
    changes = len(host.changes)
    ended = ok(host, *SA, "--continue")
    assert "none is begun" in ended.err and len(host.changes) == changes, "once more than needed begins nothing"
    assert not host.violations and not host.leases


def test_status_tells_of_a_rotation_that_waits() -> None:
    host = make_rotating(3)

    def told() -> str:
        ended = run(host, "status")
        assert ended.status == 0, ended.err
        return ended.out

    assert "rotation" not in told()
    ok(host, *SA)
    assert "which cp2, cp3 have not acknowledged: on cp2 and on cp3: kb certs rotate-sa --continue" in told()
    host.files["/etc/kubernetes/admin.conf"] = b"{"
    assert "rotation" not in told(), "what is damaged hides nothing else"


def test_three_control_planes_go_stage_by_stage() -> None:
    host = make_rotating(3)
    former = kid_of(host)
    ended = ok(host, *SA)
    assert kid_of(host) == former and len(host.kids()) == 2 and host.kids()[0] == former
    assert [f"on control plane {name}: kb certs rotate-sa --continue" in ended.out for name in NEXT] == [True, True]
    assert host.record["stage"] == "trust" and host.manager_key == host.text("sa.key")
    assert "nothing to do" in ok(host, *SA).err, "it has acknowledged, and the others have not"
    assert "nothing to do" in ok(host, *SA, "--continue").err
    host.follow("cp2")
    assert kid_of(host) == former
    host.follow("cp3")
    ok(host, *SA)
    new = kid_of(host)
    assert host.record["stage"] == "use" and new != former and host.kids() == [new, former]
    host.follow(*NEXT)
    ok(host, *SA)
    ended = ok(host, *SA, "--finish")
    assert host.record["stage"] == "drop" and host.kids() == [new] and "on control plane cp2" in ended.out
    host.follow(*NEXT)
    ok(host, *SA)
    assert is_over(host) and not host.mark_of("cp2") and not host.violations


def test_a_stage_does_not_end_where_an_api_server_has_only_said_so() -> None:
    host = make_rotating(3)
    ok(host, *SA)
    before = dict(host.read["10.0.0.13:6443"])
    host.follow(*NEXT)
    host.read["10.0.0.13:6443"] = before
    ended = kb(host, *SA)
    assert "code:   rotation-not-proven\n" in ended.err and "10.0.0.13:6443" in ended.err
    assert host.record["stage"] == "trust"


def test_what_was_uploaded_for_joining_control_planes_goes() -> None:
    path = "/api/v1/namespaces/kube-system/secrets/kubeadm-certs"
    host = make_rotating()
    host.cluster.objects[path] = {"kind": "Secret", "metadata": {"name": "kubeadm-certs"}}
    assert "were uploaded" in ok(host, *SA).err and path not in host.cluster.objects
    host.cluster.objects[path] = {"kind": "Secret", "metadata": {"name": "kubeadm-certs"}}
    assert "were uploaded" not in ok(host, *SA).err and path in host.cluster.objects, "it is of this stage"
    ok(host, *SA, "--finish")
    assert path not in host.cluster.objects


def test_what_is_in_the_cluster_is_sealed() -> None:
    host = make_rotating(3)
    ok(host, *SA)
    stored = json.dumps(host.cluster.objects) + base64.b64decode(host.cluster.objects[SEALED]["data"]["pairs"]).hex()
    assert "PRIVATE" not in stored and b"PRIVATE".hex() not in stored
    host.files[f"{PKI}/ca.key"] = private_keys.key_to_pem(private_keys.generate_key("ECDSA-P256")).reveal().encode()
    host.follow(*NEXT)
    ended = kb(host, *SA)
    assert "code:   rotation-sealed\n" in ended.err


def test_it_is_taken_back_before_anybody_signs_with_the_new_one() -> None:
    host = make_rotating(3)
    former, public = host.text("sa.key"), host.text("sa.pub")
    ok(host, *SA)
    ended = ok(host, *SA, "--undo")
    assert host.record["stage"] == "drop" and host.record["undo"] == "true"
    assert host.text("sa.key") == former and host.text("sa.pub") == public and "on control plane cp2" in ended.out
    assert ok(host, *SA, "--undo").status == 0 and host.record["undo"] == "true", "twice is once"
    host.follow(*NEXT)
    ok(host, *SA)
    assert is_over(host) and host.read[SERVER]["sa.pub"] == public


def test_it_is_taken_back_while_the_new_one_signs() -> None:
    host = make_rotating()
    former = kid_of(host)
    ok(host, *SA)
    new = kid_of(host)
    ok(host, *SA, "--undo")
    assert host.record["stage"] == "use" and host.kids() == [former, new] and kid_of(host) == former, (
        "tokens of both hold"
    )
    ok(host, *SA, "--finish")
    assert host.kids() == [former] and is_over(host)


def test_the_last_stage_cannot_be_taken_back() -> None:
    host = make_rotating(3)
    ok(host, *SA)
    host.follow(*NEXT)
    ok(host, *SA)
    host.follow(*NEXT)
    ok(host, *SA, "--finish")
    ended = kb(host, *SA, "--undo")
    assert "code:   rotation-too-late\n" in ended.err and host.record["stage"] == "drop"


def test_the_last_stage_waits_for_pods_and_secrets() -> None:
    host = make_rotating()
    former = private_keys.parse_key(host.text("sa.key"))
    _add_pod(host, "web-1")
    token = account_tokens.sign_again(Secret("e30.e30.x"), former).reveal()
    host.cluster.objects["/api/v1/secrets/old"] = {
        "kind": "Secret", "metadata": {"name": "old", "namespace": "app"}, "type": "kubernetes.io/service-account-token",
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }  # fmt: skip
    ok(host, *SA)
    ended = kb(host, *SA, "--finish")
    assert (
        "code:   rotation-still-used\n" in ended.err and "pod app/web-1" in ended.err and "Secret app/old" in ended.err
    )
    assert "--restart-workloads" in ended.err and host.record["stage"] == "use"
    host.sleep(3700)
    ended = kb(host, *SA, "--finish")
    assert "web-1" not in ended.err and "Secret app/old" in ended.err and "kubectl" in ended.err, (
        "the kubelet has renewed the pod's token"
    )
    ok(host, *SA, "--finish", "--force")
    assert is_over(host)


def test_workloads_are_restarted() -> None:
    host = make_rotating()
    _add_pod(host, "web-1", owner="DaemonSet")
    path = "/apis/apps/v1/namespaces/app/daemonsets/x"
    host.cluster.objects[path] = {
        "kind": "DaemonSet", "metadata": {"name": "x", "namespace": "app"}, "spec": {"template": {"metadata": {}, "spec": {}}},
    }  # fmt: skip
    ok(host, *SA)

    def roll(change: str) -> None:
        if "daemonsets/x" in change:
            del host.cluster.objects["/api/v1/pods/web-1"]

    host.at_change = roll
    ok(host, *SA, "--finish", "--restart-workloads")
    assert is_over(host) and "web-1" not in host.list_names("Pod")


def test_what_is_asked_in_vain() -> None:
    host = make_rotating()
    assert "code:   no-rotation\n" in kb(host, *SA, "--undo").err
    assert "code:   no-rotation\n" in kb(host, *SA, "--finish").err
    assert "code:   usage\n" in kb(host, *SA, "--finish", "--undo").err
    assert "code:   usage\n" in kb(host, "rotate-ca").err and "code:   usage\n" in kb(host, "rotate-ca", "sa").err
    assert host.changes == [] and host.sent == []
    ok(host, *SA)
    ended = kb(host, *FRONT)
    assert "code:   rotation-elsewhere\n" in ended.err and "kb certs rotate-sa" in ended.err


def test_it_asks_where_the_api_would_be_away() -> None:
    host = make_rotating()
    ended = kb(host, "rotate-sa")
    assert "code:   not-confirmed\n" in ended.err and host.changes == [] and host.sent == []
    assert kb(make_rotating(3), "rotate-sa").status == 0, "others serve meanwhile"


def test_keys_elsewhere_are_refused() -> None:
    host = make_rotating()
    path = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    host.files[path] = host.files[path].replace(b"pki/sa.pub", b"pki/other.pub")
    ended = kb(host, *SA)
    assert "code:   rotated-files-elsewhere\n" in ended.err and "other.pub" in ended.err and host.sent == []


def test_a_dry_run_changes_nothing() -> None:
    host = make_rotating()
    ended = ok(host, *SA, "--dry-run")
    assert host.changes == [] and host.sent == [] and "PRIVATE" not in ended.out + ended.err


def moments_of(*commands: tuple[str, ...]) -> list[int]:
    """The changes after which it is killed: every one of files, cluster and sealing, and some of each restart, which has its own tests."""
    host = make_rotating()
    for words in commands:
        ok(host, *words)
    others = [number for number, change in enumerate(host.changes, 1) if PKI not in change and "/api/v1/" not in change]
    return [
        number for number in range(1, len(host.changes) + 1) if number not in others or others.index(number) % 9 == 4
    ]


def run_until_killed(number: int, *commands: tuple[str, ...]) -> Rotating:
    """The machine after the process was killed, and everything went on without it for a moment."""
    host = make_rotating()
    host.dies_after = number
    with contextlib.suppress(Gone):
        for words in commands:
            ok(host, *words)
    assert host.is_dead, number
    host.revive()
    return host


def test_killed_at_every_change_it_goes_on() -> None:
    way = (SA, (*SA, "--finish"))
    moments = moments_of(*way)
    assert len(moments) >= 15
    for number in moments:
        host = run_until_killed(number, *way)
        if RECORD in host.cluster.objects or len(host.sent) < 12:  # else it was at its end
            ok(host, *SA)
        if RECORD in host.cluster.objects and not is_over(host):
            ok(host, *SA, "--finish")
        ok(host, *SA, "--continue")
        assert is_over(host), (number, "no mark is left by one that was killed at its very end")
        assert host.kids() == [kid_of(host)] and host.manager_key == host.text("sa.key"), number
        assert not host.violations, (number, host.violations)


def test_a_restart_that_was_cut_off_is_ended_before_the_api_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only API server is the one that is out: it was waited for in vain, for a minute."""
    host = make_rotating()
    ok(host, *SA)
    (put_back, *_) = (n for n, change in enumerate(host.changes, 1) if change == f"move {MANIFESTS}/{COMPONENT}.yaml")
    host = run_until_killed(put_back - 1, SA)
    assert not host.serves(COMPONENT)
    began, real, called = host.monotonic(), static_pods_swap.swap_pods, list[float]()

    def swap(ctx: Any) -> Any:
        called.append(host.monotonic())
        return real(ctx)

    monkeypatch.setattr(static_pods_swap, "swap_pods", swap)
    ok(host, *SA)
    assert called[0] - began < 5


def test_killed_at_every_change_it_goes_back() -> None:
    for number in moments_of(SA):
        host = run_until_killed(number, SA)
        if RECORD in host.cluster.objects:
            ok(host, *SA, "--undo")
            if not is_over(host):
                ok(host, *SA, "--finish")
        assert host.read[SERVER]["sa.key"] == host.text("sa.key") and host.kids() == [kid_of(host)], number
        assert not host.violations, (number, host.violations)


# ---- the front proxy


def certs_of(host: Rotating, name: str = "front-proxy-ca.crt") -> list[Any]:
    return list(certificates.parse_certs(host.text(name)))


def published(host: Rotating) -> list[Any]:
    return list(certificates.parse_certs(host.cluster.objects[CONFIG]["data"]["requestheader-client-ca-file"]))


def test_the_front_proxy_s_authority_is_rotated_without_a_restart() -> None:
    host = make_rotating(3)
    former = certs_of(host)[0]
    ok(host, *FRONT)
    assert certs_of(host)[0] == former and len(certs_of(host)) == 2
    assert certificates.is_issued_by(certs_of(host, "front-proxy-client.crt")[0], former)
    host.follow(*NEXT)
    ok(host, *FRONT)
    new, kept = certs_of(host)
    assert kept == former and certificates.is_issued_by(certs_of(host, "front-proxy-client.crt")[0], new)
    assert private_keys.is_key_of(private_keys.parse_key(host.text("front-proxy-ca.key")), new)
    assert set(published(host)) == {former, new}
    host.follow(*NEXT)
    ok(host, *FRONT, "--finish")
    host.follow(*NEXT)
    ok(host, *FRONT)
    assert certs_of(host) == [new] and published(host) == [new] and is_over(host)
    assert not host.events, "nothing was restarted"


def test_the_front_proxy_goes_back() -> None:
    host = make_rotating()
    former = certs_of(host)[0]
    ok(host, *FRONT)
    new = certs_of(host)[0]
    ok(host, *FRONT, "--undo")
    assert certs_of(host) == [former, new] and certificates.is_issued_by(
        certs_of(host, "front-proxy-client.crt")[0], former
    )
    ok(host, *FRONT, "--finish")
    assert certs_of(host) == [former] and published(host) == [former]


def test_an_authority_that_signs_elsewhere_is_refused() -> None:
    host = make_rotating()
    del host.files[f"{PKI}/front-proxy-ca.key"]
    ended = kb(host, *FRONT)
    assert "code:   external-ca-signs\n" in ended.err and host.sent == []


def test_an_aggregated_api_that_does_not_answer_keeps_the_next_stage_off() -> None:
    host = make_rotating()
    host.cluster.objects["/apis/apiregistration.k8s.io/v1/apiservices"] = {
        "kind": "List",
        "items": [
            {"metadata": {"name": "v1.metrics"}, "spec": {"service": {"name": "m"}},
             "status": {"conditions": [{"type": "Available", "status": "False", "message": "x509: unknown authority"}]}}
        ],
    }  # fmt: skip
    ended = kb(host, *FRONT)
    assert (
        "code:   rotation-not-proven\n" in ended.err and "v1.metrics" in ended.err and host.record["stage"] == "trust"
    )
    ok(host, *FRONT, "--force")
    assert host.record["stage"] == "use"


def test_the_front_proxy_killed_at_every_change() -> None:
    way = (FRONT, (*FRONT, "--finish"))
    for number in moments_of(*way):
        host = run_until_killed(number, *way)
        if RECORD in host.cluster.objects or len(certs_of(host)) == 1:
            ok(host, *FRONT)
        if RECORD in host.cluster.objects and not is_over(host):
            ok(host, *FRONT, "--finish")
        assert RECORD not in host.cluster.objects and len(certs_of(host)) == 1 and published(host) == certs_of(host), (
            number
        )
        assert certificates.is_issued_by(certs_of(host, "front-proxy-client.crt")[0], certs_of(host)[0]), number


# ---- etcd's authority

ETCD = ("rotate-ca", "etcd", "--yes")
OF_ETCD = ("etcd/server", "etcd/peer", "etcd/healthcheck-client", "apiserver-etcd-client")


def signers_of(host: Rotating, authorities: list[Any]) -> set[int]:
    """Which of the authorities have signed the certificates of etcd and its clients."""
    leaves = [certs_of(host, f"{name}.crt")[0] for name in OF_ETCD]
    return {n for n, ca in enumerate(authorities) for leaf in leaves if certificates.is_issued_by(leaf, ca)}


def test_etcd_s_authority_is_rotated_member_by_member() -> None:
    host = make_rotating(3)
    former = certs_of(host, "etcd/ca.crt")[0]
    ok(host, *ETCD)
    assert certs_of(host, "etcd/ca.crt")[0] == former and len(certificates.parse_certs(host.etcd_read[1])) == 2
    assert signers_of(host, [former]) == {0} and "start etcd" in host.events
    host.follow("cp2")
    assert "on control plane cp3: " in ok(host, *ETCD, "--continue").out
    host.follow("cp3")
    host.events.clear()
    ok(host, *ETCD, "--continue")
    new = certs_of(host, "etcd/ca.crt")[0]
    assert certs_of(host, "etcd/ca.crt") == [new, former] and signers_of(host, [former, new]) == {1}
    assert host.events == [], "certificates are read at the next handshake"
    host.follow(*NEXT)
    ok(host, *ETCD, "--continue")
    ok(host, *ETCD, "--finish")
    assert list(certificates.parse_certs(host.etcd_read[1])) == [new] and "start etcd" in host.events
    host.follow(*NEXT)
    ok(host, *ETCD, "--continue")
    assert is_over(host) and not host.violations


def test_etcd_goes_back() -> None:
    host = make_rotating()
    former = certs_of(host, "etcd/ca.crt")[0]
    ok(host, *ETCD)
    assert signers_of(host, [former]) == set()
    ok(host, *ETCD, "--undo")
    assert signers_of(host, [former]) == {0} and len(certificates.parse_certs(host.etcd_read[1])) == 2
    ok(host, *ETCD, "--finish")
    assert list(certificates.parse_certs(host.etcd_read[1])) == [former] == certs_of(host, "etcd/ca.crt")


def test_a_member_that_has_only_said_so_keeps_the_next_stage_off() -> None:
    host = make_rotating(3)
    ok(host, *ETCD)
    before = host.etcd_read[2]
    host.follow(*NEXT)
    host.etcd_read[2] = before
    ended = kb(host, *ETCD, "--continue")
    assert "code:   rotation-not-proven\n" in ended.err and "cp2" in ended.err and host.record["stage"] == "trust"


def test_etcd_that_is_missing_a_member_is_refused() -> None:
    host = make_rotating(3)
    host.of_etcd[2].is_up = False
    ended = kb(host, *ETCD)
    assert "code:   etcd-stop-unsafe\n" in ended.err and host.sent == [] and host.changes == []


def test_an_external_etcd_is_refused() -> None:
    host = make_rotating()
    del host.files["/etc/kubernetes/manifests/etcd.yaml"]
    ended = kb(host, *ETCD)
    assert "code:   no-local-etcd\n" in ended.err and host.sent == []


def test_an_authority_of_etcd_that_has_ended_is_refused_by_name() -> None:
    host = make_rotating()
    host.clock += datetime.timedelta(days=400)
    ended = kb(host, *ETCD)
    assert (
        "code:   ca-expired\n" in ended.err
        and "kb certs recover" in ended.err
        and host.sent == []
        and host.changes == []
    )


def test_etcd_s_authority_killed_at_every_change() -> None:
    way = (ETCD, (*ETCD, "--finish"))
    for number in moments_of(*way):
        host = run_until_killed(number, *way)
        if RECORD in host.cluster.objects or signers_of(host, certs_of(host, "etcd/ca.crt")[:1]) == {0}:
            ok(host, *ETCD)
        if RECORD in host.cluster.objects and not is_over(host):
            ok(host, *ETCD, "--finish")
        authorities = certs_of(host, "etcd/ca.crt")
        assert RECORD not in host.cluster.objects and len(authorities) == 1 and signers_of(host, authorities) == {0}, (
            number
        )
        assert list(certificates.parse_certs(host.etcd_read[1])) == authorities, number
        assert not host.violations, (number, host.violations)


def _add_pod(host: Rotating, name: str, *, owner: str = "") -> None:
    owners = [{"kind": owner, "name": "x", "controller": True}] if owner else []
    source = {"serviceAccountToken": {"expirationSeconds": 3607}}
    host.cluster.objects[f"/api/v1/pods/{name}"] = {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "app",
            "creationTimestamp": "2025-12-01T00:00:00Z",
            "ownerReferences": owners,
        },
        "spec": {"nodeName": "w1", "volumes": [{"name": "t", "projected": {"sources": [source]}}]},
        "status": {"phase": "Running"},
    }


def test_nodes_are_told_by_their_label() -> None:
    host = make_rotating(3)
    del host.cluster.objects[f"{NODES}/cp3"]["metadata"]["labels"]
    ended = ok(host, *SA)
    assert "on control plane cp2" in ended.out and "cp3" not in ended.out
