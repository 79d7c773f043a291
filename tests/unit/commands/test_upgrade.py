"""kubeup/commands/upgrade.py: what an earlier command left half done on this node is waited for, or continued by the command that began it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubeup.cluster.api import Identity
from kubeup.commands import upgrade
from kubeup.errors import HostError
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.paths import Paths
from kubeup.swap import store
from tests.fake_host import FakeHost

CALL = SimpleNamespace(
    command=SimpleNamespace(workflow="upgrade-apply", name="upgrade apply"), words=("v1.36.3",), flags={}
)
URL = "https://10.0.0.11:6443"


def swap_to(tag: str) -> store.Swap:
    return store.Swap((store.Pod("kube-apiserver", "former", f"image: registry.k8s.io/kube-apiserver:{tag}\n"),))


@pytest.mark.parametrize(
    ("version", "tag", "is_own"),
    [
        ("v1.36.3", "v1.36.3", True),
        ("v1.36.3", "v1.36.3@sha256:0123", True),
        ("v1.36.3", "v1.36.30", False),
        ("v1.36.3", "v1.36.3-rc.1", False),
        ("v1.36.3+vendor.1", "v1.36.3_vendor.1", True),
    ],
)
def test_a_swap_is_known_by_the_version_of_its_images(version: str, tag: str, is_own: bool) -> None:
    call: Any = CALL
    assert upgrade._is_of(swap_to(tag), call, key=f"upgrade-apply@{version}") is is_own
    assert not upgrade._is_of(swap_to(tag), call, key=f"upgrade-node@{version}")


def test_a_dry_run_in_the_middle_of_a_swap_says_so() -> None:
    """With a manifest out of its place, a control plane looks like a worker."""
    host = FakeHost()
    store.begin(host, Paths(), swap=swap_to("v1.36.3"))
    begun = SimpleNamespace(phases={"upgrade-apply@v1.36.3/control-plane": SimpleNamespace(status="running")})
    launch: Any = SimpleNamespace(local=host, call=CALL, is_dry=True)
    state: Any = begun
    with pytest.raises(HostError) as caught:
        upgrade._continue_swap(launch, state, version="v1.36.3")
    assert caught.value.code == "swap-cut-off"
    assert caught.value.remedy.endswith("kb upgrade apply v1.36.3")


@pytest.mark.parametrize(
    ("answers", "is_in", "waits"),
    [
        ([HttpResponse(200, b"ok")], True, False),
        (
            [Unreachable(URL, "timeout", text="no answer"), HttpResponse(500, b"etcd"), HttpResponse(200, b"ok")],
            True,
            True,
        ),
        ([Unreachable(URL, "refused", text="no answer")], False, False),
    ],
)
def test_an_api_server_that_another_tool_left_on_its_way_up_is_waited_for(
    answers: list[Any], is_in: bool, waits: bool
) -> None:
    host, left = FakeHost(files={"/m": b""} if is_in else {}), list(answers)

    def answer(endpoint: str, timeout_s: float) -> Any:
        found = left.pop(0)
        if isinstance(found, Unreachable):
            raise found
        assert isinstance(found, HttpResponse)
        return found

    said: list[str] = []
    launch: Any = SimpleNamespace(call=SimpleNamespace(report=SimpleNamespace(waiting=said.append)))
    api: Any = SimpleNamespace(host=host, identity=Identity(URL, Tls()), retry_s=1, probe_health=answer)
    patient = upgrade._await_server(launch, api, manifest=Path("/m"))
    # one that answers may lose its etcd with the next request, which another tool has replaced
    assert patient.retry_s == (upgrade.SERVER_S if is_in else 1)
    assert left == [] and (host.ticks > 0) is waits
    assert len(said) == len(answers) - (1 if is_in else 0)
