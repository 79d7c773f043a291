"""kubeup/upgrade/proxies.py: which proxies a node has, and what is reached without them."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.errors import UsageError
from kubeup.paths import Paths
from kubeup.upgrade.proxies import change, complete, parse_drop_in, render_drop_ins
from tests.unit.golden import golden_config

PROXY = "http://proxy.example.com:3128"


def test_proxies_are_set_and_unset_in_any_case() -> None:
    found = change({"http_proxy": "http://old:1", "GOGC": "1"}, sets=[("https-proxy", PROXY)], unsets=[])
    assert found == {"HTTP_PROXY": "http://old:1", "HTTPS_PROXY": PROXY}
    assert change(found, sets=[], unsets=["HTTP_PROXY"]) == {"HTTPS_PROXY": PROXY}
    # without a proxy there is nothing that NO_PROXY could except
    assert change({**found, "NO_PROXY": "a"}, sets=[], unsets=["http_proxy", "https_proxy"]) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("FTP_PROXY", PROXY), ("HTTP_PROXY", "proxy:3128"), ("HTTP_PROXY", "http://"), ("NO_PROXY", "a b"), ("HTTP_PROXY", 'http://a"b')],
)  # fmt: skip
def test_what_is_no_proxy(name: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        change({}, sets=[(name, value)], unsets=[])
    assert caught.value.code == "bad-setting"
    assert value not in caught.value.what, "it may have a password in it"


def test_services_pods_and_nodes_are_reached_without_it() -> None:
    cluster = golden_config(35).cluster
    found = complete({"HTTP_PROXY": PROXY, "NO_PROXY": "example.org, 10.0.0.0/8"}, cluster, addresses=["10.77.0.11"])
    assert found["NO_PROXY"].split(",") == [
        "example.org", "10.0.0.0/8", "localhost", "127.0.0.1", "::1", ".svc", ".cluster.local", "10.96.0.0/12", "10.244.0.0/16", "10.77.0.11",
    ]  # fmt: skip
    assert complete(found, cluster, addresses=["10.77.0.11"]) == found
    assert complete({}, cluster, addresses=["10.77.0.11"]) == {}


@pytest.mark.parametrize("wanted", [{"HTTP_PROXY": PROXY, "NO_PROXY": "a,b"}, {}])
def test_the_drop_ins_of_both_services(wanted: dict[str, Any]) -> None:
    found = render_drop_ins(Paths(), wanted, socket="unix:///run/containerd/containerd.sock")
    assert [str(path) for path in found] == [
        "/etc/systemd/system/containerd.service.d/20-kb-proxy.conf",
        "/etc/systemd/system/kubelet.service.d/20-kb-proxy.conf",
    ]
    assert all(parse_drop_in(text) == wanted for text in found.values())
    assert "/etc/systemd/system/crio.service.d/20-kb-proxy.conf" in map(
        str, render_drop_ins(Paths(), wanted, socket="unix:///var/run/crio/crio.sock")
    )
