"""kb certs renew: what it says, what it leaves to the user, and that the name kubeadm changes nothing."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

import kb
from kubeup.engine.run import Run
from kubeup.machine.local_host import LocalHost
from kubeup.node import certificates, former_certs, private_keys, renewal
from kubeup.paths import Paths
from kubeup.phases import renewed_certs, renewed_kubelet_cert, serve_mirror
from kubeup.phases.restart_pods import Restarted
from tests.cert_forms import make_own_pair
from tests.unit.commands.test_launcher import INIT, Machine

LINES = [f"{row.what} renewed" for row in renewal.ROWS.values()]
END = "Done renewing certificates."


@pytest.fixture
def machine(tmp_path: Path, capsys: Any) -> Machine:
    host = Machine(tmp_path)
    assert run(host, *INIT) == 0
    capsys.readouterr()
    return host


def run(host: LocalHost, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def renew(host: LocalHost, capsys: Any, *words: str) -> list[str]:
    """The lines about certificates on stdout, and what follows them."""
    assert run(host, "certs", "renew", *words) == 0
    lines = str(capsys.readouterr().out).splitlines()
    return [line for line in lines if line and not line.startswith("[renew]")]


def let_restart(monkeypatch: pytest.MonkeyPatch, *, obstacle: str = "") -> None:
    monkeypatch.setattr(renewed_certs, "find_obstacle", lambda ctx, name: obstacle)
    monkeypatch.setattr(
        renewed_certs, "restart_static_pods", lambda ctx, components: [Restarted(name, 1.26) for name in components]
    )


def test_it_says_what_was_restarted(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch)
    lines = renew(machine, capsys, "all")
    assert lines[:-1] == [
        *LINES,
        "kube-controller-manager restarted: it was away for 1.3 s",
        "kube-scheduler restarted: it was away for 1.3 s",
        END,
    ]
    assert lines[-1].startswith("The former files are in /var/lib/kb/former-certs/")
    assert renew(machine, capsys, "apiserver")[:-1] == ["certificate for serving the Kubernetes API renewed"]


def test_what_is_left_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch, obstacle="the kubelet does not run")
    assert run(machine, "certs", "renew", "all") == 0
    told = capsys.readouterr()
    assert f"{END} You must restart the kube-controller-manager and kube-scheduler, so that they use them." in told.out
    assert "kube-scheduler was not restarted: the kubelet does not run" in told.err
    lines = renew(machine, capsys, "scheduler.conf")
    assert f"{END} You must restart the kube-scheduler, so that it uses them." in lines


def test_another_folder_restarts_and_keeps_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    let_restart(monkeypatch)
    other = Path("/root/pki")
    for path in machine.files():
        if Paths().pki in path.parents:
            machine.write_file(other / path.relative_to(Paths().pki), machine.read_bytes(path), mode=0o600)
    lines = renew(machine, capsys, "all", f"--cert-dir={other}")
    assert lines == [
        *LINES,
        f"{END} You must restart the kube-controller-manager and kube-scheduler, so that they use them.",
    ]
    assert not machine.exists(Paths.former_certs)


def test_under_the_name_kubeadm_it_is_kubeadm_s(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("kubeadm restarts and keeps nothing")

    monkeypatch.setattr(renewed_certs, "renew_and_restart", refuse)
    monkeypatch.setattr(former_certs, "keep_former", refuse)
    lines = renew(machine, capsys, "all", "--as-kubeadm")
    asks = (
        " You must restart the kube-apiserver, kube-controller-manager, kube-scheduler and etcd, so that they use them."
    )
    assert lines == [*LINES, END + asks]
    assert renew(machine, capsys, "scheduler.conf", "--as-kubeadm") == [LINES[-2]]


def test_owner_mode_and_links_are_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A certificate elsewhere, to which the usual name is a link, and a kubeconfig that a group may read."""
    let_restart(monkeypatch)
    cert, admin = Paths().pki / "apiserver.crt", Paths().admin_conf
    other = Path("/srv/pki/apiserver.crt")
    machine.write_file(other, machine.read_bytes(cert), mode=0o640)
    machine.symlink(cert, str(other))
    machine.at(admin).chmod(0o640)
    before = machine.read_bytes(other)
    renew(machine, capsys, "all")
    assert machine.read_link(cert) == str(other) and machine.read_bytes(other) != before
    for path in (other, admin):
        found = machine.stat(path)
        assert found is not None and found.mode & 0o777 == 0o640


def test_the_kubelet_s_own_certificate_is_made_again_by_its_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked: list[tuple[Path, int]] = []

    def make_again(ctx: object, path: Path, *, port: int) -> former_certs.Former:
        asked.append((path, port))
        return former_certs.Former(Path("/var/lib/kb/former-certs/x"), ())

    monkeypatch.setattr(renewed_kubelet_cert, "make_again", make_again)
    path = Path("/var/lib/kubelet/pki/kubelet.crt")
    assert run(machine, "certs", "renew", "kubelet-server") == 4 and asked == []
    told = capsys.readouterr().err
    assert "not-the-kubelets-own" in told and f"there is no {path}" in told
    monkeypatch.setattr(renewed_kubelet_cert, "find_obstacle", lambda ctx, path, config: "")
    assert renew(machine, capsys, "kubelet-server")[-1] == "The former files are in /var/lib/kb/former-certs/x"
    assert asked == [(path, 10250)]
    assert run(machine, "certs", "renew", "kubelet-server", "--as-kubeadm") != 0 and len(asked) == 1


def at(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    """The clock of the machine, so many days after the certificates were made."""
    now = machine.now() + datetime.timedelta(days=days)
    monkeypatch.setattr(machine, "now", lambda: now)


def test_expiring_renews_what_has_less_than_a_fifth_left(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    let_restart(monkeypatch)
    before = {path: machine.read_bytes(path) for path in machine.files()}
    at(machine, monkeypatch, days=290)
    nothing = ["nothing to renew: every certificate has more than a fifth of its life left"]
    assert renew(machine, capsys, "all", "--expiring") == nothing
    assert {path: machine.read_bytes(path) for path in machine.files()} == before
    at(machine, monkeypatch, days=3)
    assert [line for line in renew(machine, capsys, "all", "--expiring") if line in LINES] == LINES
    assert renew(machine, capsys, "all", "--expiring") == nothing
    assert renew(machine, capsys, "apiserver", "--expiring") == nothing


def test_expiring_warns_where_the_authority_is_kept_elsewhere(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    let_restart(monkeypatch)
    machine.remove(Paths().pki / "front-proxy-ca.key")
    before = machine.read_bytes(Paths().pki / "front-proxy-client.crt")
    at(machine, monkeypatch, days=300)
    assert run(machine, "certs", "renew", "all", "--expiring") == 0
    told = capsys.readouterr()
    assert "Detected external front-proxy-ca" in told.out
    assert "front-proxy-client has less than a fifth of its life left, and was not renewed" in told.err
    assert machine.read_bytes(Paths().pki / "front-proxy-client.crt") == before


def test_expiring_believes_no_life_beyond_the_period(machine: Machine) -> None:
    """The certificate of a new kubeconfig begins with its authority, which may be years older."""
    start, now = machine.now() - datetime.timedelta(days=9 * 365), machine.now()
    key = private_keys.generate_key("ECDSA-P256")
    validity = certificates.Validity(start, now + datetime.timedelta(days=365))
    cert = certificates.issue_ca_cert("x", key, validity=validity)
    assert not renewal.is_cert_due(cert, now, period_s=365 * 86400)
    assert renewal.is_cert_due(cert, now + datetime.timedelta(days=293), period_s=365 * 86400)


def test_expiring_has_the_kubelet_make_its_certificate_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    let_restart(monkeypatch)
    made: list[Path] = []
    path = Path("/var/lib/kubelet/pki/kubelet.crt")
    machine.write_file(path, make_own_pair("cp1", now=machine.now())[0])
    monkeypatch.setattr(renewed_kubelet_cert, "find_obstacle", lambda ctx, path, config: "")

    def make_again(ctx: object, path: Path, *, port: int) -> former_certs.Former:
        made.append(path)
        return former_certs.Former(Path("/x"), ())

    monkeypatch.setattr(renewed_kubelet_cert, "make_again", make_again)
    renew(machine, capsys, "all", "--expiring")
    assert made == []
    at(machine, monkeypatch, days=300)
    renew(machine, capsys, "all", "--expiring")
    assert made == [path]


def test_kubeadm_has_no_such_flag(machine: Machine) -> None:
    assert run(machine, "certs", "renew", "all", "--expiring", "--as-kubeadm") != 0


def test_a_torn_pair_is_due(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch)
    key, cert = (Paths().pki / f"apiserver.{kind}" for kind in ("key", "crt"))
    machine.write_file(key, machine.read_text(Paths().pki / "etcd/server.key"))
    assert renew(machine, capsys, "all", "--expiring")[0] == "certificate for serving the Kubernetes API renewed"
    own = private_keys.parse_key(machine.read_text(key))
    assert private_keys.is_key_of(own, certificates.parse_certs(machine.read_text(cert))[0])


# ---- dry run, and for programs


def shown(host: LocalHost, capsys: Any, *words: str) -> dict[str, Any]:
    assert run(host, "certs", "renew", *words, "-o", "json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def contents(machine: Machine) -> dict[Path, bytes]:
    return {path: machine.read_bytes(path) for path in machine.files() if path != Paths.lock}


def test_a_dry_run_renews_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch)
    monkeypatch.setattr(renewed_certs, "restart_static_pods", lambda *args: pytest.fail("it restarts"))
    machine.remove(Paths().pki / "front-proxy-ca.key")
    machine.remove(Paths().kubeconfig("super-admin.conf"))
    before = contents(machine)
    lines = renew(machine, capsys, "all", "--dry-run")
    assert "would renew: certificate for serving the Kubernetes API (/etc/kubernetes/pki/apiserver.crt)" in lines
    assert "Detected external front-proxy-ca, certificate for the front proxy client can't be renewed" in lines
    assert lines[-2:] == ["would restart: kube-controller-manager, kube-scheduler", "nothing was changed"]
    assert renew(machine, capsys, "apiserver", "--dry-run")[-2:] == [
        "would renew: certificate for serving the Kubernetes API (/etc/kubernetes/pki/apiserver.crt)",
        "nothing was changed",
    ]
    found = shown(machine, capsys, "all", "--dry-run")
    assert found["dryRun"] and found["external"] == ["front-proxy-client"] and found["missing"] == ["super-admin.conf"]
    assert found["restarted"] == ["kube-controller-manager", "kube-scheduler"] and "apiserver" in found["renewed"]
    assert found["formerFiles"] is None and contents(machine) == before


def test_a_dry_run_of_what_is_due(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch)
    assert renew(machine, capsys, "all", "--expiring", "--dry-run")[0].startswith("nothing to renew")
    at(machine, monkeypatch, days=300)
    machine.remove(Paths().pki / "front-proxy-ca.key")
    before = contents(machine)
    found = shown(machine, capsys, "all", "--expiring", "--dry-run")
    assert "apiserver" in found["renewed"] and found["external"] == found["left"] == ["front-proxy-client"]
    assert contents(machine) == before


def test_the_kubelet_s_own_in_a_dry_run(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(renewed_kubelet_cert, "find_obstacle", lambda ctx, path, config: "")
    monkeypatch.setattr(renewed_kubelet_cert, "make_again", lambda *args, **more: pytest.fail("it is made"))
    assert renew(machine, capsys, "kubelet-server", "--dry-run") == [
        "would renew: certificate for serving the kubelet's API (/var/lib/kubelet/pki/kubelet.crt)",
        "would restart: kubelet",
        "nothing was changed",
    ]
    found = shown(machine, capsys, "kubelet-server", "--dry-run")
    assert found["renewed"] == ["kubelet-server"] and found["restarted"] == ["kubelet"]


def test_what_was_done_for_programs(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    let_restart(monkeypatch)
    found = shown(machine, capsys, "all")
    assert found["renewed"] == list(renewal.ROWS) and found["restarted"] == [
        "kube-controller-manager",
        "kube-scheduler",
    ]
    assert not found["dryRun"] and found["notRestarted"] == {} and found["left"] == []
    assert machine.is_dir(Path(found["formerFiles"]))
    let_restart(monkeypatch, obstacle="there is no crictl")
    found = shown(machine, capsys, "scheduler.conf")
    assert found["restarted"] == [] and found["notRestarted"] == {"kube-scheduler": "there is no crictl"}
    assert shown(machine, capsys, "all", "--expiring")["renewed"] == []


@pytest.mark.parametrize("words", [("--dry-run",), ("-o", "json")])
def test_kubeadm_has_neither(machine: Machine, words: tuple[str, ...]) -> None:
    assert run(machine, "certs", "renew", "all", *words, "--as-kubeadm") != 0


# ---- the mirror's


@pytest.fixture
def mirror(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A node that serves a mirror; its renewals."""
    machine.write_file(Paths().systemd / serve_mirror.MIRROR_UNIT, "[Service]\n")
    done: list[str] = []

    def renew_it(ctx: Run) -> bool:
        done.append(ctx.config.local_api_endpoint.advertise_address)
        return machine.exists(ctx.paths.pki / "ca.key")

    monkeypatch.setattr(serve_mirror, "renew_certificate", renew_it)
    monkeypatch.setattr(serve_mirror, "find_due", lambda ctx: "")
    let_restart(monkeypatch)
    return done


def test_the_mirror_s_is_renewed_by_its_name_and_with_all(machine: Machine, mirror: list[str], capsys: Any) -> None:
    said = "certificate of this node's mirror renewed: kb-mirror.service was restarted"
    assert renew(machine, capsys, "kb-mirror") == [said] and len(mirror) == 1
    assert said in renew(machine, capsys, "all") and len(mirror) == 2
    assert "would renew: certificate of this node's mirror" in renew(machine, capsys, "kb-mirror", "--dry-run")
    assert said not in renew(machine, capsys, "apiserver") and len(mirror) == 2
    machine.remove(Paths().systemd / serve_mirror.MIRROR_UNIT)
    assert run(machine, "certs", "renew", "kb-mirror") != 0
    assert "code:   no-mirror-here" in capsys.readouterr().err


def test_the_timer_renews_the_mirror_s_once_it_is_due(
    machine: Machine, mirror: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    renew(machine, capsys, "all", "--expiring")
    assert mirror == []
    monkeypatch.setattr(serve_mirror, "find_due", lambda ctx: "it expires in 3 days")
    assert run(machine, "certs", "renew", "all", "--expiring", "-o", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["renewed"], shown["restarted"]) == (["kb-mirror"], ["kb-mirror.service"]) and len(mirror) == 1
    machine.remove(Paths().pki / "ca.key")
    assert run(machine, "certs", "renew", "all", "--expiring", "-o", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["external"], shown["left"]) == (["kb-mirror"], ["kb-mirror"])
