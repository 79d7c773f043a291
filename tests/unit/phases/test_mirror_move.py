"""kubeup/phases/mirror_move.py: the bundles come over whole, two mirrors are compared, and a mirror goes away as a whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.airgap import mirror_answers, mirror_catalog
from kubeup.airgap.containerd_hosts import Mirror
from kubeup.cluster.api import Api, Identity
from kubeup.engine.run import Caller
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.machine.local_host import LocalHost
from kubeup.phases import mirror_move, serve_mirror
from kubeup.phases.local_bundle import MIRROR_FOLDER
from kubeup.phases.mirror_move import Bundle, MirrorMoveRun, list_bundles
from tests.fake_node import PATHS, finished_node, make_context
from tests.mirror_bundles import ETCD, HOST, KUBE_35, PAUSE, add_bundle
from tests.plans import do, is_done

FORMER = Mirror("http://10.0.0.11:5000")


class Machine(LocalHost):
    """A machine below a folder that reaches mirrors: URL -> the folder of the bundles that it serves."""

    def __init__(self, root: Path, **mirrors: Path) -> None:
        super().__init__(root)
        self.catalogs = {
            f"http://{name.replace('_', '.')[1:]}:5000": mirror_catalog.build_catalog(
                HOST, mirror_catalog.find_layouts(HOST, folder)
            )
            for name, folder in mirrors.items()
        }
        self.free = 1 << 40
        self.cuts_at: Optional[int] = None

    def free_bytes(self, path: Path) -> int:
        return self.free

    def answer(self, url: str) -> mirror_answers.Answer:
        base = next((one for one in self.catalogs if url.startswith(one)), None)
        if base is None:
            raise Unreachable(url, "refused", text="nobody listens")
        path, _, _ = url[len(base) :].partition("?")
        return mirror_answers.answer_request(mirror_answers.Request("GET", path, {}, {}), self.catalogs[base])

    def http_get(self, url: str, **_: Any) -> HttpResponse:
        found = self.answer(url)
        assert found.place is None
        return HttpResponse(found.status, found.body)

    def http_open(self, url: str, **_: Any) -> Any:
        found = self.answer(url)
        assert found.place is not None
        data = found.place.path.read_bytes()[: self.cuts_at]

        class Stream:
            status, headers = 200, {"content-length": str(len(data))}

            def __enter__(self) -> Stream:
                return self

            def __exit__(self, *_: Any) -> None: ...

            def chunks(self, **_: Any) -> Any:
                yield data

        return Stream()


@pytest.fixture
def former(tmp_path: Path) -> Path:
    folder = tmp_path / "former"
    add_bundle(folder, "kb-35.tar", version="v1.35.6", images={PAUSE: [b"p"], KUBE_35: [b"base", b"35"]}, program=b"35")
    base = mirror_catalog.find_layouts(HOST, folder)[0]
    add_bundle(folder, "delta.tar", version="v1.35.7", images={ETCD: [b"base", b"e"]}, since=base)
    return folder


def make_run(host: LocalHost, **fields: Any) -> MirrorMoveRun:
    return MirrorMoveRun(**make_context(host).values(), former_mirror=FORMER, **fields)


def here(host: LocalHost) -> list[str]:
    folder = host.root / MIRROR_FOLDER.relative_to("/")
    return sorted(one.name for one in folder.iterdir()) if folder.exists() else []


def test_the_bundles_come_over_from_the_former_mirror(tmp_path: Path, former: Path) -> None:
    host = Machine(tmp_path / "node", m10_0_0_11=former)
    offered = list_bundles(host, FORMER)
    assert [one.name for one in offered] == ["delta.tar", "kb-35.tar"]
    ctx = make_run(host, offered=offered)
    assert not mirror_move.are_bundles_here(ctx)
    mirror_move.take_bundles(ctx)
    assert here(host) == ["delta.tar", "kb-35.tar"] and mirror_move.are_bundles_here(ctx)
    for one in offered:
        assert (host.root / f"var/lib/kb/mirror/{one.name}").read_bytes() == (former / one.name).read_bytes()
    host.catalogs.clear()
    mirror_move.take_bundles(ctx)


@pytest.mark.parametrize("cut", [600, 5000])
def test_a_copy_that_breaks_off_is_none_and_the_next_run_goes_on(tmp_path: Path, former: Path, cut: int) -> None:
    host = Machine(tmp_path / "node", m10_0_0_11=former)
    ctx = make_run(host, offered=list_bundles(host, FORMER))
    host.cuts_at = cut
    with pytest.raises(HostError) as caught:
        mirror_move.take_bundles(ctx)
    assert caught.value.code == "bundle-truncated" and here(host) == []
    host.cuts_at = None
    mirror_move.take_bundles(ctx)
    assert mirror_move.are_bundles_here(ctx)


def test_a_disk_without_room_copies_nothing(tmp_path: Path, former: Path) -> None:
    host = Machine(tmp_path / "node", m10_0_0_11=former)
    host.free = 1000
    with pytest.raises(HostError) as caught:
        mirror_move.take_bundles(make_run(host, offered=list_bundles(host, FORMER)))
    assert caught.value.code == "disk-full" and here(host) == []


def test_given_bundles_need_no_former_mirror(tmp_path: Path, former: Path) -> None:
    host = Machine(tmp_path / "node")
    (tmp_path / "node/root").mkdir(parents=True)
    (tmp_path / "node/root/kb-35.tar").write_bytes((former / "kb-35.tar").read_bytes())
    ctx = make_run(host, files=(Path("/root/kb-35.tar"),))
    mirror_move.take_bundles(ctx)
    assert here(host) == ["kb-35.tar"] and mirror_move.are_bundles_here(ctx)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"no such page\n"),
        (200, b"garbage"),
        (200, b'{"bundles": [{"name": "../../etc/passwd.tar", "size": 7}]}'),
        (200, b'{"bundles": [{"name": ".hidden.tar", "size": 7}]}'),
        (200, b'{"bundles": [{"name": "a.tar", "size": -7}]}'),
        (200, b'{"bundles": [7]}'),
    ],
)
def test_what_is_no_list_of_bundles(tmp_path: Path, status: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Machine(tmp_path)
    monkeypatch.setattr(host, "http_get", lambda url, **_: HttpResponse(status, body))
    with pytest.raises(HostError) as caught:
        list_bundles(host, FORMER)
    assert caught.value.code == "mirror-not-movable" and "kb mirror move FILE" in caught.value.remedy


def test_a_former_mirror_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        list_bundles(Machine(tmp_path), FORMER)
    assert caught.value.code == "mirror-not-movable" and "nobody listens" in caught.value.cause


def test_what_the_new_mirror_lacks(tmp_path: Path, former: Path) -> None:
    less = tmp_path / "less"
    add_bundle(less, "kb-35.tar", version="v1.35.6", images={PAUSE: [b"p"]}, program=b"35")
    host, new = Machine(tmp_path / "node", m10_0_0_11=former, m10_0_0_12=less), Mirror("http://10.0.0.12:5000")
    assert mirror_move.find_missing(host, FORMER, new) == [ETCD, KUBE_35]
    assert mirror_move.find_missing(host, new, FORMER) == []


def test_a_mirror_goes_with_all_that_is_its() -> None:
    host = finished_node()
    files = [
        str(PATHS.systemd / serve_mirror.MIRROR_UNIT),
        str(PATHS.pki / "kb-mirror.crt"),
        str(PATHS.pki / "kb-mirror.key"),
    ]
    for path in (*files, f"{MIRROR_FOLDER}/kb.tar"):
        host.files[path] = b"x"
    host.answers[f"systemctl is-active {serve_mirror.MIRROR_UNIT}"] = "active\n"
    host.answer_all = lambda argv: CommandResult(argv, 0)  # type: ignore[attr-defined]
    ctx = make_context(host)
    assert not is_done(mirror_move.plan_no_mirror, ctx)
    host.accepts = {
        f"systemctl {words} {serve_mirror.MIRROR_UNIT}"
        for words in ("disable --now", "stop", "disable", "disable --no-reload")
    }
    host.accepts |= {"systemctl daemon-reload", "systemctl reset-failed"}
    do(mirror_move.plan_no_mirror, ctx)
    assert not [path for path in host.files if path in files or path.startswith(str(MIRROR_FOLDER))]
    assert is_done(mirror_move.plan_no_mirror, ctx)


def test_what_is_left_names_every_other_node_and_the_line_for_further_ones() -> None:
    host = finished_node()
    ctx = make_context(host)
    nodes = [{"metadata": {"name": name}} for name in ("cp1", "cp2", "w1")]
    host.urls["https://10.77.0.11:6443/api/v1/nodes"] = HttpResponse(200, json.dumps({"items": nodes}).encode())
    own = ctx.config.node.name
    ctx = dataclasses.replace(
        ctx, caller=Caller(lambda _: Api(host, Identity("https://10.77.0.11:6443", Tls()), retry_s=0))
    )
    run = MirrorMoveRun(**ctx.values(), former="https://10.77.0.12:5000", offered=(Bundle("a.tar", 1),))
    left = mirror_move.list_remaining(run)
    others = ", ".join(name for name in ("cp1", "cp2", "w1") if name != own)
    assert left[0] == f"on {others}: kb mirror use https://10.77.0.11:5000"
    assert left[1] == "then where https://10.77.0.12:5000 runs: kb mirror stop"
    assert left[2].endswith("(what kb token create --print-join-command prints here)")
