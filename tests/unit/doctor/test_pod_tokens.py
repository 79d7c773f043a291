"""kubeup/doctor/looks/pod_tokens.py: tokens that the API server does not know any more."""

from __future__ import annotations

from kubeup.machine.http import HttpResponse
from tests.unit.doctor.doctor_case import SERVER, make_host, notes, remedies

LOOK = "pod-tokens"
POD = "/var/lib/kubelet/pods/u1"


def test_tokens_of_another_key() -> None:
    host = make_host()
    assert notes(host, LOOK) == []  # no pod runs here
    host.files[f"{POD}/volumes/kubernetes.io~projected/kube-api-access-x/token"] = b"a.b.c"
    host.files[f"{POD}/containers/kube-proxy/x"] = b""
    assert notes(host, LOOK) == []  # nobody answers: that is another look's
    host.urls[f"{SERVER}/version"] = HttpResponse(401, b"{}")
    ((level, text),) = notes(host, LOOK)
    assert level == "error" and "refuses the service account tokens of this node's pods (kube-proxy)" in text
    assert "sa.key" in remedies(host, LOOK)[0]
    host.urls[f"{SERVER}/version"] = HttpResponse(200, b"{}")
    assert notes(host, LOOK) == []
