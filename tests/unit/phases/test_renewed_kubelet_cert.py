"""The kubelet makes its own serving certificate again, and nobody else's is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.engine.run import Run
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import former_certs, kubelet_cert, torn_pairs
from kubeup.phases import renewed_kubelet_cert
from tests.cert_forms import make_own_pair
from tests.fake_host import KUBELET_STARTS, FakeHost
from tests.fake_node import PATHS, finished_node, make_context

CRT, KEY = kubelet_cert.FOLDER / "kubelet.crt", kubelet_cert.FOLDER / "kubelet.key"


class Kubelet:
    """A kubelet that makes what is missing when it starts."""

    def __init__(self, host: FakeHost, *, makes: bool = True) -> None:
        self.host, self.makes, self.starts = host, makes, 0
        host.programs.add("systemctl")
        host.dirs.add("/run/systemd/system")
        host.accepts = KUBELET_STARTS
        host.answers["systemctl is-active kubelet"] = "active\n"
        host.answers["systemctl restart kubelet"] = self.restart
        self.make()

    def make(self) -> None:
        cert, key = make_own_pair("cp1", now=self.host.now())
        self.host.files[str(CRT)], self.host.files[str(KEY)] = cert.encode(), key.encode()
        self.host.modes.update({str(CRT): 0o640, str(KEY): 0o600})
        self.host.served["127.0.0.1:10250"] = cert

    def restart(self, argv: tuple[str, ...]) -> CommandResult:
        self.starts += 1
        is_there = [str(path) in self.host.files for path in (CRT, KEY)]
        if not any(is_there) and self.makes:
            self.make()
        return CommandResult(argv, 0)


@pytest.fixture
def ctx() -> Run:
    return make_context(finished_node())


def host_of(ctx: Run) -> Any:
    return ctx.host


def test_the_kubelet_makes_it_again(ctx: Run) -> None:
    host = host_of(ctx)
    kubelet = Kubelet(host)
    before = host.read_text(CRT), host.read_text(KEY)
    assert renewed_kubelet_cert.find_obstacle(ctx, CRT, config={}) == ""
    former = renewed_kubelet_cert.make_again(ctx, CRT, port=10250)
    assert kubelet.starts == 1 and host.read_text(CRT) != before[0]
    assert (host.read_text(former.copy_of(CRT)), host.read_text(former.copy_of(KEY))) == before


def test_a_kubelet_that_makes_none_gets_its_former_one_back(ctx: Run) -> None:
    host = host_of(ctx)
    kubelet = Kubelet(host, makes=False)
    before = host.read_text(CRT), host.read_text(KEY)
    with pytest.raises(HostError, match="did not make its serving certificate again") as caught:
        renewed_kubelet_cert.make_again(ctx, CRT, port=10250)
    assert caught.value.code == "kubelet-certificate-not-made" and kubelet.starts == 2
    assert (host.read_text(CRT), host.read_text(KEY)) == before
    assert (host.modes[str(CRT)], host.modes[str(KEY)]) == (0o640, 0o600)


class Killed(BaseException):
    """The process was killed."""


@pytest.mark.parametrize("makes", [True, False])
@pytest.mark.parametrize("changes", range(10))
def test_killed_after_any_change_it_goes_on(
    ctx: Run, monkeypatch: pytest.MonkeyPatch, changes: int, makes: bool
) -> None:
    """A kubelet that finds one half of a pair does not start again."""
    host = host_of(ctx)
    kubelet = Kubelet(host, makes=makes)
    before, left = host.read_text(CRT), [changes]

    def wrap(name: str) -> None:
        real = getattr(FakeHost, name)

        def change(self: FakeHost, path: Any, *args: Any, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            if name == "run" or "kubelet/pki" in str(path):
                left[0] -= 1
            return real(self, path, *args, **more)

        monkeypatch.setattr(FakeHost, name, change)

    with monkeypatch.context():
        for name in ("write_file", "remove", "run"):
            wrap(name)
        try:
            renewed_kubelet_cert.make_again(ctx, CRT, port=10250)
        except (Killed, HostError) as error:
            was_killed = isinstance(error, Killed)
        else:
            was_killed = False
        left[0] = -1
    assert host.exists(KEY) or not host.exists(CRT), "with the certificate there, the pair is whole"
    if host.exists(CRT):
        assert not was_killed or renewed_kubelet_cert.find_obstacle(ctx, CRT, config={}) == ""
        return
    kubelet.makes = True
    host.answers["systemctl is-active kubelet"] = "activating\n"
    assert torn_pairs.was_taken_away(host, ctx.paths, path=CRT)
    assert renewed_kubelet_cert.find_obstacle(ctx, CRT, config={}) == ""
    renewed_kubelet_cert.make_again(ctx, CRT, port=10250)
    assert host.read_text(CRT) != before and host.exists(KEY)
    assert not torn_pairs.was_taken_away(host, ctx.paths, path=CRT)


def test_the_former_pair_comes_back_after_a_run_that_was_cut_off(ctx: Run) -> None:
    host = host_of(ctx)
    kubelet = Kubelet(host)
    before = host.read_text(CRT), host.read_text(KEY)
    former_certs.keep_former(host, ctx.paths, files=[CRT, KEY])
    host.remove(CRT)
    kubelet.makes = False
    with pytest.raises(HostError, match="did not make"):
        renewed_kubelet_cert.make_again(ctx, CRT, port=10250)
    assert (host.read_text(CRT), host.read_text(KEY)) == before
    assert (host.modes[str(CRT)], host.modes[str(KEY)]) == (0o644, 0o600)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"serverTLSBootstrap": True}, "serverTLSBootstrap"),
        ({"tlsCertFile": "/etc/own.crt"}, "tlsCertFile"),
    ],
)
def test_what_the_kubelet_is_told_otherwise(ctx: Run, config: dict[str, Any], said: str) -> None:
    Kubelet(host_of(ctx))
    assert said in renewed_kubelet_cert.find_obstacle(ctx, CRT, config=config)


def test_what_is_not_the_kubelet_s(ctx: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(ctx)
    find = renewed_kubelet_cert.find_obstacle
    assert "there is no" in find(ctx, CRT, config={})
    Kubelet(host)
    host.answers["systemctl is-active kubelet"] = "inactive\n"
    assert "does not run" in find(ctx, CRT, config={})
    host.files[str(CRT)] = host.files[str(PATHS.pki / "apiserver.crt")]
    assert "did not make" in find(ctx, CRT, config={})
    monkeypatch.setattr(FakeHost, "read_link", lambda self, path: "/srv/kubelet.crt" if path == CRT else None)
    assert "is a link" in find(ctx, CRT, config={})
    assert Path(str(CRT)) == CRT and not any(change.startswith("run") for change in host.changes)
