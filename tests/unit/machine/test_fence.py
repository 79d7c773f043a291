"""kubeup/machine/fence.py round a LocalHost: no connection leads out."""

from __future__ import annotations

import pytest

from kubeup.errors import HostError
from kubeup.machine.fence import Fence
from kubeup.machine.http import Tls
from kubeup.machine.local_host import LocalHost


@pytest.mark.parametrize(
    "connect",
    [
        lambda host: host.http_get("https://dl.k8s.io/release/stable.txt"),
        lambda host: host.http_send("POST", "https://dl.k8s.io/"),
        lambda host: host.http_open("https://dl.k8s.io/x").__enter__(),
        lambda host: host.http_upload("https://dl.k8s.io/x", (), size=0),
        lambda host: host.resolve("dl.k8s.io"),
        lambda host: host.udp_exchange("8.8.8.8", 53, payload=b""),
        lambda host: host.served_cert("8.8.8.8", 443),
    ],
)
def test_every_way_out_is_closed(connect: object) -> None:
    host = LocalHost()
    host.fence = Fence(frozenset({"cp1"}))
    with pytest.raises(HostError) as caught:
        connect(host)  # type: ignore[operator]
    assert caught.value.code == "air-gap"
    assert "dl.k8s.io" in caught.value.what or "8.8.8.8" in caught.value.what


def test_without_a_fence_nothing_is_refused() -> None:
    assert LocalHost().resolve("localhost") and Tls()
