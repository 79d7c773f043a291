"""kubeup/cluster/system_rights.py: rights that were lost, and pods that are not let in any more."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from kubeup.cluster import system_rights
from kubeup.cluster.api import Api, Identity
from kubeup.cluster.objects import API_SERVERS
from kubeup.machine.http import HttpResponse, Tls
from tests.fake_host import FakeHost

SERVER = "https://10.0.0.11:6443"
ACCOUNTS = f"{SERVER}/api/v1/namespaces/kube-system/serviceaccounts"
BINDINGS = f"{SERVER}/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


class Reviewing(FakeHost):
    """An API server that allows everything but what these users want; barred: its refusal of every dry run of a pod."""

    def __init__(self, *denied: str, status: int = 201, barred: str = "", refusal: int = 403) -> None:
        super().__init__()
        self.refusal = refusal
        self.denied, self.status, self.barred = denied, status, barred

    def http_ask(self, url: str, body: bytes, **_: Any) -> HttpResponse:  # type: ignore[override]
        sent = json.loads(body)
        if "subjectaccessreviews" in url:
            is_allowed = sent["spec"]["user"] not in self.denied
            return HttpResponse(self.status, json.dumps({"status": {"allowed": is_allowed}}).encode())
        assert url.endswith("/pods?dryRun=All") and sent["spec"]["containers"]
        if self.barred:
            refusal = {"kind": "Status", "reason": "Forbidden", "message": self.barred.format(**sent["metadata"])}
            return HttpResponse(self.refusal, json.dumps(refusal).encode())
        return HttpResponse(201, body)


def answer(host: FakeHost, url: str, value: Optional[object]) -> None:
    host.urls[url] = HttpResponse(200 if value else 404, json.dumps(value or {"reason": "NotFound"}).encode())


ROLES = ("system:kube-scheduler", "system:controller:job-controller", "system:discovery")
RBAC = f"{SERVER}/apis/rbac.authorization.k8s.io/v1"


def find(
    host: FakeHost, *, accounts: bool = True, binding: Optional[object] = None, unbound: tuple[str, ...] = ()
) -> list[str]:
    rows = [{"metadata": {"name": name}} for name in ROLES]
    bound = [row for row in rows if row["metadata"]["name"] not in unbound]
    answer(host, f"{RBAC}/clusterroles?labelSelector=kubernetes.io%2Fbootstrapping%3Drbac-defaults", {"items": rows})
    answer(host, f"{RBAC}/clusterrolebindings", {"items": bound})
    for name, own in (("coredns", "system:coredns"), ("kube-proxy", "kubeadm:node-proxier")):
        answer(host, f"{ACCOUNTS}/{name}", {"metadata": {"name": name}} if accounts else None)
        answer(host, f"{BINDINGS}/{own.replace(':', '%3A')}", binding)
    answer(host, f"{SERVER}{API_SERVERS}", None)
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    return [f"{trouble}. {trouble.remedy}" for trouble in system_rights.find_lost_rights(api, "cp1")]


def test_rights_that_are_there_cannot_be_asked_for_or_are_not_needed() -> None:
    assert find(Reviewing()) == find(Reviewing("system:node:cp1", status=403)) == []
    assert find(Reviewing("system:serviceaccount:kube-system:coredns"), accounts=False) == []


@pytest.mark.parametrize(
    ("account", "without", "binding"),
    [
        ("coredns", "CoreDNS answers for no Service", "system:coredns"),
        ("kube-proxy", "kube-proxy follows no Service", "kubeadm:node-proxier"),
    ],
)
def test_an_account_that_lost_its_binding(account: str, without: str, binding: str) -> None:
    user = f"system:serviceaccount:kube-system:{account}"
    (told,) = find(Reviewing(user))
    assert f"kube-system/{account} may not list endpointslices any more, so {without}" in told
    assert f"ClusterRoleBinding {binding} is gone. kb init phase addon {account}" in told
    (told,) = find(Reviewing(user), binding={"metadata": {"name": binding}})
    assert f"see ClusterRoleBinding {binding} and its role" in told


def test_kubelets_that_nobody_authorizes() -> None:
    (told,) = find(Reviewing("system:node:cp1"))
    assert (
        told.startswith("API server 10.0.0.11:6443 lets no kubelet update its node") and "--authorization-mode" in told
    )


def find_barred(host: FakeHost) -> list[str]:
    template = {"metadata": {"labels": {"k8s-app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    for kind, name in (("daemonsets", "kube-proxy"), ("deployments", "coredns")):
        item = {"metadata": {"name": name}, "spec": {"template": template}}
        answer(host, f"{SERVER}/apis/apps/v1/namespaces/kube-system/{kind}", {"items": [item]})
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    return [str(trouble) for trouble in system_rights.find_barred_pods(api)]


def test_requests_of_kubelets_that_nobody_approves() -> None:
    def ask(host: FakeHost) -> Any:
        return system_rights.find_unapproved(Api(host, Identity(SERVER, Tls()), retry_s=0), "cp1")

    assert ask(Reviewing()) is None and ask(Reviewing("system:node:cp1", status=403)) is None
    told = ask(Reviewing("system:node:cp1"))
    assert "are not approved" in told.what and "kubeadm:node-autoapprove-certificate-rotation" in told.cause


def test_pods_that_are_let_in_or_kept_out_by_what_others_tell_of() -> None:
    assert find_barred(Reviewing()) == find_barred(Reviewing(barred="failed calling webhook w")) == []
    assert find_barred(Reviewing(barred="User x cannot create resource pods")) == []


def test_a_quota_that_keeps_them_all_out() -> None:
    (told,) = find_barred(
        Reviewing(barred='pods "{name}" is forbidden: failed quota: everybody: must specify limits.cpu')
    )
    assert told.startswith("no new pod of DaemonSet kube-proxy and Deployment coredns is let into kube-system")
    assert 'pods "NAME" is forbidden: failed quota: everybody' in told


def test_policies_that_deny_with_a_status_of_their_own() -> None:
    policy = "The pods \"x\" is invalid: : ValidatingAdmissionPolicy 'team' with binding 'team' denied request: pods need a label team"
    (told,) = find_barred(Reviewing(barred=policy, refusal=422))
    assert "ValidatingAdmissionPolicy 'team'" in told
    (told,) = find_barred(Reviewing(barred='admission webhook "w" denied the request: no', refusal=400))
    assert 'admission webhook "w" denied the request' in told
    assert find_barred(Reviewing(barred='admission webhook "w" does not support dry run', refusal=400)) == []


def test_a_limit_that_makes_them_invalid() -> None:
    """A LimitRange puts its own limit into each, which is below what they ask for."""
    why = "Pod is invalid: spec.containers[0].resources.requests: Invalid value: must be less than or equal to cpu limit of 1m"
    (told,) = find_barred(Reviewing(barred=why, refusal=422))
    assert why in told


def test_a_binding_of_the_cluster_s_controllers_that_is_gone() -> None:
    (told,) = find(Reviewing(), unbound=("system:kube-scheduler", "system:discovery"))
    assert told.startswith(
        "kube-scheduler may not do what it has to: there is no ClusterRoleBinding system:kube-scheduler any more. an API server writes it"
    )
    (told,) = find(Reviewing(), unbound=("system:kube-scheduler", "system:controller:job-controller"))
    assert told.startswith("job-controller and kube-scheduler may not do what they have to")


@pytest.mark.parametrize(
    ("server", "is_told"),
    [("https://10.0.0.11:6443", False), ("https://10.0.0.11:7444", True), ("https://lb:6443", False)],
)
def test_a_kube_proxy_that_calls_where_nobody_answers(server: str, is_told: bool) -> None:
    host = Reviewing()
    host.urls["https://lb:6443/livez"] = HttpResponse(200, b"ok")
    config = f"clusters: [{{cluster: {{server: '{server}'}}}}]"
    value = {"metadata": {"name": "kube-proxy"}, "data": {"kubeconfig.conf": config}}
    answer(host, f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kube-proxy", value)
    found = system_rights.find_proxy_astray(Api(host, Identity(SERVER, Tls()), retry_s=0))
    assert bool(found) == is_told
    if found:
        assert str(found).startswith(
            f"kube-proxy is told to call the API at {server} (ConfigMap kube-system/kube-proxy)"
        )


def test_a_kube_proxy_that_was_deleted() -> None:
    host = Reviewing()
    url = f"{SERVER}/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
    answer(host, f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kube-proxy", {"metadata": {"name": "kube-proxy"}})
    answer(host, url, None)
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    (told,) = map(str, system_rights.find_lost_proxy(api))
    assert told.startswith("DaemonSet kube-system/kube-proxy is gone")
    answer(host, url, {"metadata": {"name": "kube-proxy"}})
    assert system_rights.find_lost_proxy(api) == []
    answer(host, f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kube-proxy", None)
    answer(host, url, None)
    assert system_rights.find_lost_proxy(api) == []  # another one has taken its place


def make_proxy(selector: dict[str, str], *, wanted: int = 0, seen: int = 2) -> dict[str, Any]:
    spec = {"template": {"spec": {"nodeSelector": {"kubernetes.io/os": "linux", **selector}}}}
    status = {"desiredNumberScheduled": wanted, "observedGeneration": seen}
    return {"metadata": {"name": "kube-proxy", "generation": 2}, "spec": spec, "status": status}


def test_a_kube_proxy_that_runs_on_no_node() -> None:
    host = Reviewing()
    url = f"{SERVER}/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
    answer(host, f"{SERVER}/api/v1/namespaces/kube-system/configmaps/kube-proxy", {"metadata": {"name": "kube-proxy"}})
    api = Api(host, Identity(SERVER, Tls()), retry_s=0)
    answer(host, url, make_proxy({"example.org/none": "true"}))
    (told,) = system_rights.find_lost_proxy(api)
    assert "runs on no node" in told.what and told.cause == "its nodeSelector asks for example.org/none=true"
    assert "/nodeSelector/example.org~1none" in told.remedy
    for well in (make_proxy({"a": "b"}, wanted=3), make_proxy({"a": "b"}, seen=1), make_proxy({"non-calico": "true"})):
        answer(host, url, well)
        assert system_rights.find_lost_proxy(api) == []
