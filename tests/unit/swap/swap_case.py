"""Runs of a swap on a control plane that a FakeHost simulates. What needs a program or a second node is replaced here."""

from __future__ import annotations

import io
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from kubeup.cluster import health
from kubeup.cluster.api import Api, Identity
from kubeup.config.types import ClusterConfiguration, LocalAPIEndpoint, NodeConfig, NodeRegistration
from kubeup.engine.run import Caller
from kubeup.errors import HostError, KbError
from kubeup.machine.host import Host
from kubeup.machine.http import Tls
from kubeup.node import etcd_data, pod_trials
from kubeup.node.tried_pod import Trial
from kubeup.paths import Paths
from kubeup.phases import static_pods_swap
from kubeup.phases.static_pods_swap import SwapRun
from kubeup.releases import RELEASES
from kubeup.report import Report
from kubeup.swap import etcd_return, order, store
from tests.fake_control_plane import SERVER, ControlPlane

PATHS = Paths()
CRI = "unix:///run/containerd/containerd.sock"


class Copies:
    """kubeup/node/etcd_data.py on files in a dict: the copy of a stopped member's folder."""

    copy_exists = staticmethod(etcd_data.copy_exists)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails_with: dict[str, KbError] = {}

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails_with:
            raise self.fails_with[call]

    def copy_data(self, host: Any, data: Path) -> Path:
        self._note("copy")
        assert not host.running("etcd"), "the data of a running etcd is copied"
        copy = Path(f"{data}.kb-former")
        assert not self.has_copy(host, data), "a copy exists already"
        for path, content in list(host.files.items()):
            if path.startswith(f"{data}/"):
                host.write_file(Path(f"{copy}{path[len(str(data)) :]}"), content)
        return copy

    def has_copy(self, host: Any, data: Path) -> bool:
        return bool(host.is_dir(Path(f"{data}.kb-former")))

    def restore_data(self, host: Any, data: Path) -> None:
        self._note("restore")
        self.begin_replacement(host, data)
        for path, content in list(host.files.items()):
            if path.startswith(f"{data}.kb-former/"):
                host.write_file(Path(f"{data}{path[len(f'{data}.kb-former') :]}"), content)
        self.end_replacement(host, data)

    def begin_replacement(self, host: Any, data: Path) -> None:
        assert not host.running("etcd"), "the data of a running etcd is replaced"
        host.make_dir(data / ".kb-coming")
        host.remove_tree(data / "member")

    def is_half_replaced(self, host: Any, data: Path) -> bool:
        return bool(host.is_dir(data / ".kb-coming"))

    def end_replacement(self, host: Any, data: Path) -> None:
        host.remove_tree(data / ".kb-coming")

    def remove_copy(self, host: Any, data: Path) -> bool:
        self._note("remove")
        return bool(host.remove_tree(Path(f"{data}.kb-former")))

    def find_copies(self, host: Any, data: Path) -> list[Path]:
        return [Path(f"{data}.kb-former")] if self.has_copy(host, data) else []

    def refuse_empty(self, host: Any, data: Path, *, others: Sequence[str], wal_dir: Optional[Path]) -> None:
        self._note("refuse_empty")
        if not host.is_dir(data / "member"):
            raise HostError("no data", cause="none", remedy="mount them", code="etcd-data-missing")

    def check_room(self, host: Any, data: Path, *, wal_dir: Optional[Path]) -> None:
        self._note("check_room")


class Balancers:
    """kubeup/network/drain.py: who was told what."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.silent: tuple[str, ...] = ()

    def drain(self, api: Api, server: str, *, tell: Callable[[str], None]) -> Any:
        self.calls.append(f"drain {server}")
        return types.SimpleNamespace(silent=self.silent)

    def undrain(self, api: Api, server: str, *, tell: Callable[[str], None]) -> None:
        self.calls.append(f"undrain {server}")


class Stage:
    """The stand-ins of one test."""

    def __init__(self) -> None:
        self.copies, self.balancers = Copies(), Balancers()
        self.trials: dict[str, list[Any]] = {}
        """What the trials of a pod tell, by its name."""
        self.tried: list[str] = []
        self.parts: list[Any] = []
        """What the health gate finds."""
        self.parts_before: list[Any] = []
        """What is found before anything stops."""

    IMAGE = pod_trials.IMAGE

    def try_pod(self, host: Host, *, socket: str, pod: Mapping[str, Any], running: Mapping[str, Any]) -> list[Any]:
        name = str(pod["metadata"]["name"])
        self.tried.append(name)
        return self.trials.get(name, [trial("flags")])


def trial(name: str, trouble: Any = None, *, not_tried: str = "") -> Any:
    return Trial("kube-apiserver", name, trouble, not_tried)


def set_stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Put the stand-ins in the places of the modules for one test."""
    made = Stage()
    for module in (order, etcd_return, static_pods_swap):
        monkeypatch.setattr(module, "etcd_data", made.copies)
    monkeypatch.setattr(static_pods_swap, "drain", made.balancers)
    monkeypatch.setattr(static_pods_swap, "pod_trials", made)
    monkeypatch.setattr(health, "gate", lambda api, client, **more: made.parts, raising=False)
    monkeypatch.setattr(health, "glance", lambda api, client: made.parts_before)
    monkeypatch.setattr(
        health, "find_blockers", lambda parts: [part for part in parts if part.trouble is not None], raising=False
    )
    return made


def make_swap_run(host: ControlPlane, texts: Mapping[str, str], **fields: Any) -> SwapRun:
    """A run of the command's phases; `agree` notes the question."""
    config = NodeConfig(
        cluster=ClusterConfiguration("v1.35.6"),
        node=NodeRegistration("cp1", cri_socket=CRI),
        local_api_endpoint=LocalAPIEndpoint("10.0.0.11"),
    )
    api = Api(host, Identity(f"https://{SERVER}", Tls()), retry_s=0)
    given = {"agree": lambda question: None, **fields}
    return SwapRun(
        host=host,
        paths=PATHS,
        config=config,
        release=RELEASES[35],
        report=Report(io.StringIO(), verbosity=1),
        caller=Caller.by(api),
        texts=tuple(texts.items()),
        **given,
    )


def undo_run(host: ControlPlane, **fields: Any) -> SwapRun:
    """As `--undo` makes it: from the record of the last swap."""
    last = store.load(host, PATHS)
    assert last is not None
    wanted = last if last.status == store.RUNNING else last.reversed()
    texts = {pod.name: pod.wanted for pod in wanted.pods if pod.is_changed}
    return make_swap_run(host, texts, is_undo=True, **fields)


def said(run: SwapRun) -> str:
    stream = run.report.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()
