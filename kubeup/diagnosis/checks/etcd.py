"""Checks of an external etcd: whether it answers, its version, and the files that authenticate this node to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kubeup.config.types import ExternalEtcd
from kubeup.diagnosis.checks.facts import DOCTOR, ERROR, JOIN_CONTROL_PLANE, Finding, Findings, Node
from kubeup.errors import HostError
from kubeup.json_text import parse_json_object
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.machine.http import HttpResponse, Tls, Unreachable
from kubeup.releases import is_at_least

with lazily:
    from kubeup.cluster import etcd
    from kubeup.node import certificates


ETCD_ATTEMPTS = 3
ETCD_PAUSE_S = 2.0


def check_external_etcd_version(node: Node) -> Findings:
    external = node.config.cluster.external_etcd
    if external is None:
        return
    try:
        tls = etcd.read_external_tls(node.host, external)
    except HostError as error:
        yield Finding("ExternalEtcdVersion", ERROR, str(error), error.remedy)
        return
    floor = node.release.min_external_etcd_tag
    attempts = 1 if node.workflow == DOCTOR else ETCD_ATTEMPTS  # doctor reports the current state
    for endpoint in external.http_endpoints or external.endpoints:
        url = f"{endpoint.rstrip('/')}/version"
        try:
            answer = _ask(node.host, url, tls=tls, attempts=attempts)
        except Unreachable as error:
            if node.workflow != DOCTOR:  # doctor's own etcd check reports this, and the quorum
                yield Finding("ExternalEtcdVersion", ERROR, str(error), error.remedy)
            continue
        version = _etcd_version(answer)
        if answer.status != 200 or not version:
            yield Finding(
                "ExternalEtcdVersion",
                ERROR,
                f"{url} answers with status {answer.status} and no version",
                f"see what answers there: curl -vk {url}",
            )
        elif not is_at_least(version, floor):
            yield Finding(
                "ExternalEtcdVersion",
                ERROR,
                f"etcd at {endpoint} is {version}, the oldest that Kubernetes {node.release.name} works with is "
                f"{floor.partition('-')[0]}",
                f"upgrade etcd to {node.release.etcd_tag.partition('-')[0]}",
            )


def _ask(host: Host, url: str, *, tls: Tls, attempts: int) -> HttpResponse:
    for attempt in range(1, attempts + 1):
        try:
            answer = host.http_get(url, tls=tls, timeout_s=10)
            if answer.status < 500 or attempt == attempts:
                return answer
        except Unreachable:
            if attempt == attempts:
                raise
        host.sleep(ETCD_PAUSE_S)
    raise AssertionError("unreachable")


def _etcd_version(answer: HttpResponse) -> str:
    try:
        return str(parse_json_object(answer.body, "it").get("etcdserver", ""))
    except ValueError:
        return ""


def check_external_etcd_files(node: Node) -> Findings:
    external = node.config.cluster.external_etcd
    is_brought = node.workflow == JOIN_CONTROL_PLANE and bool(node.config.certificate_key)
    if external is None or is_brought:  # the Secret with the shared certificates contains them
        return
    files = {"caFile": external.ca_file, "certFile": external.cert_file, "keyFile": external.key_file}
    missing = {entry: name for entry, name in files.items() if name and not node.host.exists(Path(name))}
    for entry, name in missing.items():
        yield Finding(
            "ExternalEtcdClientCertificates",
            ERROR,
            f"etcd.external.{entry} {name} does not exist",
            f"copy it from the etcd cluster to {name}",
        )
    for entry, fault in () if missing else _find_etcd_faults(node.host, external):
        name = files[entry]
        text = f"etcd.external.{entry} {name} cannot be used: {fault}"
        yield Finding("ExternalEtcdClientCertificates", ERROR, text, f"copy a good one from the etcd cluster to {name}")


def _find_etcd_faults(host: Host, external: ExternalEtcd) -> Iterator[tuple[str, str]]:
    """(entry, what is wrong) for each file with which the API server would not start."""
    try:
        if external.ca_file:
            certificates.parse_certs(host.read_text(Path(external.ca_file)))
    except ValueError as error:
        yield "caFile", str(error)
    if external.cert_file and external.key_file:
        texts = (host.read_text(Path(external.cert_file)), host.read_text(Path(external.key_file)))
        fault = certificates.describe_pair(*texts, host.now())
        if fault:
            yield "certFile", f"with {external.key_file}, {fault}"
