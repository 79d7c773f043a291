"""Control planes and a worker whose cluster's authority is rotated, seen from cp1: who knows whom, who signs, and what the cluster tells clients.

An API server reads ca.crt and apiserver.crt whenever it is asked, the controller-manager what it has when it starts; it does not start on a
file to sign with that holds two certificates. It publishes its authorities, and signs cluster-info, as soon as time passes.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from kubeup.cluster import objects, tokens
from kubeup.config.types import BootstrapToken
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.node import certificates, kubeconfig, pki, private_keys, verify
from kubeup.secret import Secret
from kubeup.yaml_files import commands_of_pod, dump_yaml, flags_of, load_yaml
from tests.fake_control_plane import SERVER, Pod, parse
from tests.fake_departure import ENDPOINT, NODES
from tests.fake_rotation import CONFIG, PKI, Rotating, make_rotating

CONFS = {
    "admin.conf": ("kubernetes-admin", ("kubeadm:cluster-admins",)),
    "controller-manager.conf": ("system:kube-controller-manager", ()),
    "scheduler.conf": ("system:kube-scheduler", ()),
    "kubelet.conf": ("system:node:cp1", ("system:nodes",)),
}
ROOTS, INFO = "/api/v1/configmaps", "/api/v1/namespaces/kube-public/configmaps/cluster-info"
PEM = "/var/lib/kubelet/pki/kubelet-client-current.pem"
TOKEN = Secret("abcdef.0123456789abcdef")
HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
HOOK_PLACE = ("10.0.0.40", 9443)


@dataclass
class Authority(Rotating):
    """root: what the controller-manager has read of ca.crt. kubelet_knows: what the kubelet has read of kubelet.conf's authorities."""

    root: str = ""
    kubelet_knows: str = ""
    deaf: set[str] = field(default_factory=set)
    """Nodes whose kubelet the API servers do not reach."""

    def certs(self, name: str = "ca.crt") -> list[Any]:
        return list(certificates.parse_certs(self.text(name)))

    def conf(self, name: str) -> kubeconfig.Kubeconfig:
        path = Path(f"/etc/kubernetes/{name}")
        return kubeconfig.read_kubeconfig(self.files[str(path)].decode(), host=self, path=path)  # type: ignore[arg-type]

    def signers(self, authorities: Sequence[Any]) -> set[int]:
        """Which of these have signed what this node calls and serves with."""
        leaves = [self.certs(f"{name}.crt")[0] for name in ("apiserver", "apiserver-kubelet-client")]
        leaves += [certificates.parse_certs(self.conf(name).client_cert_pem)[0] for name in CONFS]
        return {n for n, ca in enumerate(authorities) for leaf in leaves if certificates.is_issued_by(leaf, ca)}

    def trusted(self) -> list[set[Any]]:
        """By kubeconfig, in the order of CONFS."""
        return [set(certificates.parse_certs(self.conf(name).ca_pem)) for name in CONFS]

    # ---- the machine

    def _start(self, pod: Pod, *, attempt: int) -> None:
        super()._start(pod, attempt=attempt)
        if pod.name != "kube-controller-manager" or f"{PKI}/apiserver.crt" not in self.files:
            return
        flags = flags_of(next(iter(commands_of_pod(parse(pod.text))), []))
        signing = certificates.parse_certs(self.files[flags["cluster-signing-cert-file"]].decode())
        key = pki.read_key(self, Path(flags["cluster-signing-key-file"]))  # type: ignore[arg-type]
        if len(signing) != 1 or not private_keys.is_key_of(key, signing[0]):
            self._blame("the controller-manager does not start on what it is to sign with")
        self.root = self.files[flags["root-ca-file"]].decode()

    def run(self, argv: Any, **more: Any) -> Any:
        done = super().run(argv, **more)
        if tuple(map(str, argv)) == ("systemctl", "restart", "kubelet"):
            self.kubelet_knows = self.conf("kubelet.conf").ca_pem
        return done

    def symlink(self, path: Path, target: str) -> bool:
        return self.write_file(path, self.files[target])

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if not self.root:
            return
        for path, one in self.cluster.objects.items():
            if "/kube-node-lease/leases/" in path and one["metadata"]["name"] not in self.dead:
                one["spec"]["renewTime"] = f"{self.clock:%Y-%m-%dT%H:%M:%S.000000Z}"
            if path.startswith(f"{ROOTS}/"):
                one["data"]["ca.crt"] = self.root
        data = self.cluster.objects[INFO]["data"]
        data[tokens.jws_key("abcdef")] = tokens.compute_jws(data["kubeconfig"], TOKEN)
        self._publish_clients()

    def _publish_clients(self) -> None:
        """API servers only add."""
        told = self.cluster.objects[CONFIG]["data"]
        texts = [
            told.get("client-ca-file", ""),
            self.text("ca.crt"),
            *(one["ca.crt"] for name, one in self.read.items() if name != SERVER),
        ]
        known = [cert for text in texts if text for cert in certificates.parse_certs(text)]
        told["client-ca-file"] = "".join(map(certificates.cert_to_pem, dict.fromkeys(known)))

    def read_of(self, address: str, name: str) -> str:
        return self.text(name) if address == SERVER else self.read[address][name]

    # ---- the network

    def _review(self, address: str, headers: Any, tls: Any) -> HttpResponse:
        if tls.cert_pem is None or "X-Remote-User" in headers:
            return super()._review(address, headers, tls)
        leaf = certificates.parse_certs(tls.cert_pem)[0]
        known = certificates.parse_certs(self.read_of(address, "ca.crt"))
        if not any(certificates.is_issued_by(leaf, ca) for ca in known):
            return HttpResponse(401, b'{"kind": "Status", "message": "Unauthorized"}')
        name = certificates.subject_of(leaf).common_name
        return HttpResponse(201, f'{{"status": {{"userInfo": {{"username": "{name}"}}}}}}'.encode())

    def http_get(self, url: str, *, tls: Any = None, **more: Any) -> HttpResponse:
        address, _, path = url.partition("://")[2].partition("/")
        if path == "version" and address in self.read:
            chain = certificates.parse_certs(self.read_of(address, "apiserver.crt"))
            fault = verify.find_fault(chain, certificates.parse_certs(tls.ca.pem), usage="server", now=self.now())
            if fault is not None:
                raise Unreachable(url, "tls", text=fault.text)
            return HttpResponse(200, b"{}")
        if path.endswith("/proxy/healthz"):
            return HttpResponse(503, b"refused") if path.split("/")[3] in self.deaf else HttpResponse(200, b"ok")
        return super().http_get(url, tls=tls, **more)

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        if (address, port) == HOOK_PLACE:
            return self.served.get(f"{address}:{port}")
        return super().served_cert(address, port, timeout_s=timeout_s)

    # ---- others

    def add_hook(self) -> None:
        """A webhook whose certificate the authority signed that is on this node now, and that is trusted by it."""
        self.sign_hook()
        bundle = base64.b64encode(certificates.cert_to_pem(self.certs()[0]).encode()).decode()
        client = {"url": "https://{}:{}/".format(*HOOK_PLACE), "caBundle": bundle}
        self.cluster.objects[f"{HOOKS}/hook"] = {
            "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "hook"}, "webhooks": [{"name": "a.b.c", "clientConfig": client}],
        }  # fmt: skip

    def sign_hook(self) -> None:
        self.served["{}:{}".format(*HOOK_PLACE)] = self.issue(certificates.Subject("hook", is_server=True))[0]

    def bundle(self) -> list[Any]:
        data = self.cluster.objects[f"{HOOKS}/hook"]["webhooks"][0]["clientConfig"]["caBundle"]
        return list(certificates.parse_certs(base64.b64decode(data).decode()))

    def issue(self, subject: certificates.Subject) -> tuple[str, str]:
        """A certificate of the authority that lies on this node, and its key."""
        ca = certificates.Ca(self.certs()[0], private_keys.parse_key(self.text("ca.key")), Path("/ca.crt"))
        key = private_keys.generate_key("ECDSA-P256")
        validity = certificates.plan_validity(self.now(), 86400)
        cert = certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity)
        return certificates.cert_to_pem(cert), private_keys.key_to_pem(key).reveal()


def make_authority(control_planes: int = 1) -> Authority:
    """With one worker, w1."""
    host = Authority()
    host.__dict__.update(make_rotating(control_planes).__dict__)
    host.accepts = {"systemctl daemon-reload"}
    for name, (user, groups) in CONFS.items():
        cert, key = host.issue(certificates.Subject(user, groups, is_client=True))
        text = kubeconfig.render_kubeconfig(
            server=f"https://{SERVER}", ca_pem=host.text("ca.crt"), user=user, cluster_name="kubernetes",
            client_cert_pem=cert, client_key_pem=Secret(key),
        )  # fmt: skip
        if name == "kubelet.conf":
            host.files[PEM] = (cert + key).encode()
            document = load_yaml(text)
            document["users"][0]["user"] = {"client-certificate": PEM, "client-key": PEM}
            text = dump_yaml(document)
        host.files[f"/etc/kubernetes/{name}"] = text.encode()
    for space in ("default", "kube-system"):
        meta = {"name": "kube-root-ca.crt", "namespace": space}
        host.cluster.objects[f"{ROOTS}/{space}"] = {"kind": "ConfigMap", "metadata": meta, "data": {}}
    host.cluster.objects[INFO] = objects.render_cluster_info(f"https://{ENDPOINT}", host.text("ca.crt"))
    secret = tokens.render_token_secret(BootstrapToken(TOKEN, usages=tokens.USAGES, ttl_s=None), host.now())
    host.cluster.objects["/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef"] = secret
    host.root = host.kubelet_knows = host.text("ca.crt")
    host.sleep(1.0)
    host.changes.clear()
    host.sent.clear()
    return host


def acknowledge(host: Authority, *names: str) -> None:
    """These nodes have done the stage; of control planes it is what cp1 has done."""
    planes = [name for name in names if name.startswith("cp")]
    with contextlib.suppress(KeyError):
        host.follow(*planes)
    one = host.record
    for name in names:
        mark = f"{one['what']} {one['stage']} {one['following'][:16]}"
        host.cluster.objects[f"{NODES}/{name}"]["metadata"].setdefault("annotations", {})["kb.io/rotation"] = mark
