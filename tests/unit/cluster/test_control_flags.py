"""kubeup/cluster/control_flags.py: flags of control planes that take a part of the cluster away, each in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kubeup.cluster import control_flags
from kubeup.cluster.api import Api, Identity
from kubeup.cluster.objects import API_SERVERS
from kubeup.machine.http import HttpResponse, Tls
from kubeup.trust import Anchors
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"


def make_api(component: str, since: str = "", **flags: str) -> Api:
    """flags: node -> one flag of its component. since: when its pods became Ready."""
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": since}
    host = FakeHost()
    pods: list[dict[str, Any]] = [
        {
            "metadata": {"name": f"{component}-{node}", "labels": {"component": component}},
            "status": {"conditions": [ready]},
            "spec": {
                "nodeName": node,
                "containers": [
                    {"name": component, "command": [component, f"--advertise-address=10.0.0.1{number}", flag]}
                ],
            },
        }
        for number, (node, flag) in enumerate(flags.items(), start=1)
    ]
    url = f"{SERVER}/api/v1/namespaces/kube-system/pods?labelSelector=tier%3Dcontrol-plane"
    host.urls[url] = HttpResponse(200, json.dumps({"items": pods}).encode())
    return Api(host, Identity(SERVER, Tls()), retry_s=0)


def ask(find: Callable[[control_flags.Planes], Any], api: Api) -> Any:
    return find(control_flags.read_planes(api))


@pytest.mark.parametrize(
    ("flag", "lost"),
    [
        ("--controllers=*,bootstrapsigner,tokencleaner", []),
        ("--v=2", []),
        ("--controllers=*,-ttl,-csrsigning", []),
        ("--controllers=*,-endpointslice-controller", ["endpointslice-controller"]),
        ("--controllers=*, -endpointslice", ["endpointslice-controller"]),  # its former name
        ("--controllers=-job,*,job", ["job-controller"]),  # the first word counts
    ],
)
def test_a_controller_that_is_switched_off(flag: str, lost: list[str]) -> None:
    found = ask(control_flags.find_lost_controllers, make_api("kube-controller-manager", cp1=flag, cp2=flag))
    assert [one.what.partition(" without ")[2].partition(":")[0] for one in found] == lost
    assert all(one.what.startswith("cp1 and cp2 run kube-controller-manager") for one in found)


def test_a_list_without_a_star_names_all() -> None:
    found = ask(
        control_flags.find_lost_controllers, make_api("kube-controller-manager", cp1="--controllers=deployment")
    )
    assert len(found) > 10 and "deployment-controller" not in str(found)
    assert all(
        "cp1 runs kube-controller-manager without" in one.what and "while it leads" in one.cause for one in found
    )


KEYS = "--encryption-provider-config=/etc/kubernetes/enc.yaml"


def test_an_api_server_with_other_keys() -> None:
    api = make_api("kube-apiserver", cp1=KEYS, cp2=KEYS, cp3="--v=2")
    host = api.host
    assert isinstance(host, FakeHost)
    refusal = {"kind": "Status", "message": 'unable to transform key "/registry/secrets/default/s2": invalid padding'}
    host.urls["https://10.0.0.11:6443/api/v1/secrets"] = HttpResponse(500, json.dumps(refusal).encode())
    host.urls["https://10.0.0.12:6443/api/v1/secrets"] = HttpResponse(200, b"{}")
    (told,) = ask(control_flags.find_unread_secrets, api)
    assert (
        str(told).startswith("the API server of cp1 cannot read all Secrets: unable to transform key")
        and "such as that of cp2" in told.remedy
    )
    host.urls["https://10.0.0.11:6443/api/v1/secrets"] = HttpResponse(200, b"{}")
    assert ask(control_flags.find_unread_secrets, api) == []
    host.urls["https://10.0.0.11:6443/api/v1/secrets"] = HttpResponse(429, json.dumps(refusal).encode())
    assert len(ask(control_flags.find_unread_secrets, api)) == 1  # its cache cannot be filled after a start
    host.urls["https://10.0.0.11:6443/api/v1/secrets"] = HttpResponse(403, json.dumps(refusal).encode())
    assert ask(control_flags.find_unread_secrets, api) == []  # this identity may not ask


@pytest.mark.parametrize(
    ("flag", "cause"),
    [
        ("--v=2", "EndpointSlice default/kubernetes has 10.0.0.12:6443"),
        ("--endpoint-reconciler-type=none", "--endpoint-reconciler-type=none"),
    ],
)
def test_an_api_server_to_which_pods_are_not_led(flag: str, cause: str) -> None:
    since = "2025-12-31T23:00:00Z"
    api = make_api("kube-apiserver", since=since, cp1=flag, cp2="--v=2")
    host = api.host
    assert isinstance(host, FakeHost)
    slices = {"ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["10.0.0.12"]}]}
    host.urls[f"{SERVER}{API_SERVERS}"] = HttpResponse(200, json.dumps(slices).encode())
    assert ask(control_flags.find_unlisted_servers, api) == []  # its machine is gone, and the cluster has its last word
    host.urls[f"{SERVER}/readyz"] = HttpResponse(200, b"ok")
    assert ask(control_flags.find_unlisted_servers, api) == []  # it has lost its etcd, and does not know it yet
    host.urls[f"{SERVER}/api/v1/namespaces/kube-system"] = HttpResponse(200, b"{}")
    (told,) = ask(control_flags.find_unlisted_servers, api)
    assert (
        told.what
        == "the Service kubernetes, at which pods call the API, does not lead to API server 10.0.0.11:6443 of cp1"
    )
    assert cause in told.cause
    young = make_api("kube-apiserver", since="2025-12-31T23:59:50Z", cp1=flag)
    assert isinstance(young.host, FakeHost)
    young.host.urls.update(
        {f"{SERVER}{API_SERVERS}": HttpResponse(200, b"{}"), f"{SERVER}/readyz": HttpResponse(200, b"ok")}
    )
    assert ask(control_flags.find_unlisted_servers, young) == []


def test_pods_that_are_given_another_authority() -> None:
    api = make_api("kube-controller-manager", cp1="--root-ca-file=/etc/kubernetes/pki/front-proxy-ca.crt")
    own, other = (f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n" for text in ("b3du", "b3RoZXI="))
    api = Api(api.host, Identity(SERVER, Tls(Anchors.given(own))), retry_s=0)
    host = api.host
    assert isinstance(host, FakeHost)
    url = f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt"
    for pem, is_told in ((own, False), (other + own, False), (other, True)):
        value = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": pem}}
        host.urls[url] = HttpResponse(200, json.dumps(value).encode())
        found = ask(control_flags.find_foreign_root, api)
        assert bool(found) == is_told
    assert found and "/etc/kubernetes/pki/front-proxy-ca.crt on cp1" in found.cause


def test_an_api_server_that_turns_most_away() -> None:
    api = make_api(
        "kube-apiserver",
        cp1="--max-requests-inflight=1",
        cp2="--max-requests-inflight=0",
        cp3="--max-requests-inflight=400",
    )
    (told,) = ask(control_flags.find_scarce_servers, api)
    assert told.what == "the API server of cp1 takes only 1 request at a time, and turns others away (429)"


def test_members_of_etcd_of_another_rhythm() -> None:
    assert ask(control_flags.find_uneven_members, make_api("etcd", cp1="--heartbeat-interval=100", cp2="--v=2")) == []
    (told,) = ask(control_flags.find_uneven_members, make_api("etcd", cp1="--heartbeat-interval=5000", cp2="--v=2"))
    assert "different --heartbeat-interval" in told.what and told.cause == "5000 ms on cp1, 100 ms on cp2"


def test_a_control_plane_without_its_label() -> None:
    api = make_api("kube-apiserver", cp1="--v=2", cp2="--v=2")
    assert isinstance(api.host, FakeHost)
    url = f"{SERVER}/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fcontrol-plane"
    api.host.urls[url] = HttpResponse(200, json.dumps({"items": [{"metadata": {"name": "cp1"}}]}).encode())
    (told,) = ask(control_flags.find_unmarked_nodes, api)
    assert told.remedy == "kubectl label node cp2 node-role.kubernetes.io/control-plane="


def test_leader_election_that_is_off_or_keeps_a_place_for_long() -> None:
    off = "--leader-elect=false"
    managers = make_api("kube-controller-manager", cp1=off, cp2=off)
    assert ask(control_flags.find_unled, managers) == ["kube-controller-manager"]
    (told,) = ask(control_flags.find_unelected, managers)
    assert told.what.startswith("kube-controller-manager works on cp1 and cp2 whether")
    schedulers = make_api("kube-scheduler", cp1=off, cp2="--leader-elect-lease-duration=1h0m0s")
    assert ask(control_flags.find_unled, schedulers) == []
    (told,) = ask(control_flags.find_long_leases, schedulers)
    assert "for 3600 s" in told.what and "on cp2" in told.remedy
    alone = make_api("kube-controller-manager", cp1=off)
    assert ask(control_flags.find_unelected, alone) == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (HttpResponse(404, b'{"reason": "NotFound"}'), "it is not there"),
        (
            HttpResponse(200, b'{"metadata": {"name": "kubeadm-config"}, "data": {"ClusterConfiguration": "a: ["}}'),
            "line 1",
        ),
    ],
)
def test_config_maps_that_the_next_join_misses(answer: HttpResponse, why: str) -> None:
    api = make_api("kube-apiserver", cp1="--v=2")
    assert isinstance(api.host, FakeHost)
    url = f"{SERVER}/api/v1/namespaces/kube-system/configmaps"
    well = {"metadata": {"name": "kubelet-config"}, "data": {"kubelet": "kind: KubeletConfiguration"}}
    api.host.urls[f"{url}/kubelet-config"] = HttpResponse(200, json.dumps(well).encode())
    api.host.urls[f"{url}/kubeadm-config"] = answer
    public = f"{SERVER}/api/v1/namespaces/kube-public/configmaps/cluster-info"
    api.host.urls[public] = HttpResponse(404, b'{"reason": "NotFound"}')
    assert control_flags.find_lost_maps(api)[-1].what == "no node can join by a token"
    api.host.urls[public] = HttpResponse(200, b'{"metadata": {"name": "cluster-info"}}')
    (told,) = control_flags.find_lost_maps(api)
    assert told.what.startswith("ConfigMap kube-system/kubeadm-config cannot be read") and why in told.cause
    assert told.remedy.endswith("upload-config kubeadm")


def test_api_servers_of_another_range() -> None:
    flag = "--service-cluster-ip-range={}"

    def find(first: str, second: str, own: str = "10.96.0.1") -> Any:
        api = make_api("kube-apiserver", cp1=flag.format(first), cp2=flag.format(second))
        assert isinstance(api.host, FakeHost)
        service = {"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": own}}
        url = f"{SERVER}/api/v1/namespaces/default/services/kubernetes"
        api.host.urls[url] = HttpResponse(200, json.dumps(service).encode())
        return ask(control_flags.find_foreign_ranges, api)

    assert find("10.96.0.0/12", "fd00::/108,10.96.0.0/12") == find("x", "") == find("10.96.0.0/12", "y", own="") == []
    (told,) = find("10.96.0.0/12", "10.196.0.0/16")
    assert told.what == "the API server of cp2 gives Services addresses of another range than the cluster's"
    assert told.cause == "--service-cluster-ip-range=10.196.0.0/16, and Service default/kubernetes has 10.96.0.1"


def test_a_controller_manager_that_signs_nothing() -> None:
    assert ask(control_flags.find_signerless, make_api("kube-apiserver", cp1="--v=2")) == []
    (told,) = ask(control_flags.find_signerless, make_api("kube-controller-manager", cp1="--v=2", cp2="--v=2"))
    assert told.what.startswith("cp1 and cp2 run kube-controller-manager that signs nothing: no node can join")


def test_api_servers_of_different_ports() -> None:
    assert ask(control_flags.find_uneven_ports, make_api("kube-apiserver", cp1="--secure-port=6443", cp2="--v=2")) == []
    (told,) = ask(control_flags.find_uneven_ports, make_api("kube-apiserver", cp1="--v=2", cp2="--secure-port=6444"))
    assert told.cause == "6443 on cp1, 6444 on cp2"
