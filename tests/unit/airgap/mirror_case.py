"""How a mirror is asked in a test, and what its images are called."""

from __future__ import annotations

from kubeup.airgap import (
    mirror_answers,
    oci_layout,
)
from kubeup.airgap.mirror_answers import Answer, Request
from kubeup.airgap.mirror_catalog import Catalog
from kubeup.machine.local_host import LocalHost

HOST = LocalHost()
PAUSE, OTHER, WEB = "registry.k8s.io/pause:3.10.1", "quay.io/pause:1", "docker.io/library/web:1"


def ask(catalog: Catalog, path: str, method: str = "GET", **query: str) -> Answer:
    return mirror_answers.answer_request(Request(method, path, query, {}), catalog, ca_pem="PEM")


def content(answer: Answer) -> bytes:
    return b"".join(oci_layout.read_place(HOST, answer.place)) if answer.place else answer.body
