"""Control planes whose keys are rotated, seen from cp1: what each API server has read of its keys, whom it accepts, and what pods hold.

An API server reads sa.key and sa.pub when it starts, and the authorities of the front proxy whenever it is asked. The others do what `follow`
has them do.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from cryptography.hazmat.primitives import serialization

from kubeup.cluster import account_tokens
from kubeup.machine.host import Argv, CommandResult
from kubeup.machine.http import HttpResponse, Unreachable
from kubeup.node import certificates, private_keys
from kubeup.secret import Secret
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_control_plane import MANIFESTS, SERVER, Container, ControlPlane, Pod
from tests.fake_departure import NODES, Departure, address_of, make_departure

PKI = "/etc/kubernetes/pki"
CONFIG = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
RECORD = "/api/v1/namespaces/kube-system/configmaps/kb-rotation"
SEALED = "/api/v1/namespaces/kube-system/secrets/kb-rotation"
CLAIMS = (
    base64.urlsafe_b64encode(json.dumps({"sub": "system:serviceaccount:kube-system:default"}).encode())
    .decode()
    .rstrip("=")
)
FLAGS = {
    "kube-apiserver": (
        f"--service-account-key-file={PKI}/sa.pub",
        f"--service-account-signing-key-file={PKI}/sa.key",
        f"--requestheader-client-ca-file={PKI}/front-proxy-ca.crt",
        f"--proxy-client-cert-file={PKI}/front-proxy-client.crt",
        f"--proxy-client-key-file={PKI}/front-proxy-client.key",
        f"--etcd-cafile={PKI}/etcd/ca.crt",
        f"--etcd-certfile={PKI}/apiserver-etcd-client.crt",
        f"--client-ca-file={PKI}/ca.crt",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt",
    ),
    "etcd": (
        f"--trusted-ca-file={PKI}/etcd/ca.crt",
        f"--peer-trusted-ca-file={PKI}/etcd/ca.crt",
        f"--cert-file={PKI}/etcd/server.crt",
        f"--peer-cert-file={PKI}/etcd/peer.crt",
    ),
    "kube-controller-manager": (
        f"--service-account-private-key-file={PKI}/sa.key",
        f"--root-ca-file={PKI}/ca.crt",
        f"--client-ca-file={PKI}/ca.crt",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
    ),
}
STORED = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.35.6\nencryptionAlgorithm: ECDSA-P256\n"
LEAVES = {
    "ca": ("apiserver", "apiserver-kubelet-client"),
    "front-proxy-ca": ("front-proxy-client",),
    "etcd/ca": ("etcd/server", "etcd/peer", "etcd/healthcheck-client", "apiserver-etcd-client"),
}
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
SHARED = ("sa.key", "sa.pub", "front-proxy-ca.crt", "front-proxy-ca.key", "ca.crt", "apiserver.crt")


@dataclass
class Rotating(Departure):
    """read: API server -> what it has read of the shared files, by their names. manager_key: what the controller-manager has read."""

    read: dict[str, dict[str, str]] = field(default_factory=dict)
    manager_key: str = ""
    etcd_read: dict[int, str] = field(default_factory=dict)
    """Number of a member -> etcd/ca.crt as it has read it."""
    etcd_shows: dict[int, str] = field(default_factory=dict)
    """Number of another member -> its certificate."""

    # ---- what the test sees and does

    def text(self, name: str) -> str:
        return self.files[f"{PKI}/{name}"].decode()

    @property
    def record(self) -> dict[str, str]:
        return dict(self.cluster.objects.get(RECORD, {}).get("data", {}))

    def mark_of(self, node: str) -> str:
        return str(self.cluster.objects[f"{NODES}/{node}"]["metadata"].get("annotations", {}).get("kb.io/rotation", ""))

    def follow(self, *names: str) -> None:
        """These control planes do what cp1 has done, and acknowledge it."""
        one = self.record
        for name in names:
            self.read[f"{address_of(name)}:6443"] = {file: self.text(file) for file in SHARED}
            self.etcd_read[int(name[2:])] = self.text("etcd/ca.crt")
            self.etcd_shows[int(name[2:])] = self.text("etcd/server.crt")
            meta = self.cluster.objects[f"{NODES}/{name}"]["metadata"]
            mark = f"{one['what']} {one['stage']} {one['following'][:16]}"
            meta["annotations"] = {**meta.get("annotations", {}), "kb.io/rotation": mark}

    def kids(self, server: str = SERVER) -> list[str]:
        """Of the keys whose tokens an API server accepts, in the order of its file."""
        found = []
        for block in self.read[server]["sa.pub"].split("-----END PUBLIC KEY-----"):
            if "BEGIN" in block:
                key = serialization.load_pem_public_key(f"{block.strip()}\n-----END PUBLIC KEY-----\n".encode())
                found.append(account_tokens._encode(hashlib.sha256(private_keys.spki(key)).digest()))
        return found

    # ---- the machine

    def _start(self, pod: Pod, *, attempt: int) -> None:
        super()._start(pod, attempt=attempt)
        if f"{PKI}/sa.key" not in self.files:
            return
        if pod.name == "kube-apiserver":
            self.read[SERVER] = {file: self.text(file) for file in SHARED}
        if pod.name == "etcd":
            self.etcd_read[1] = self.text("etcd/ca.crt")
        if pod.name == "kube-controller-manager":
            self.manager_key = self.text("sa.key")

    def _api(self, url: str, path: str) -> HttpResponse:
        if path.rpartition("/")[2] in CONTROLLERS:
            return ControlPlane._api(self, url, path)
        return super()._api(url, path)

    def http_send(self, method: str, url: str, *, body: bytes = b"", **more: Any) -> HttpResponse:
        if "/leases/" in url and url.partition("?")[0].rpartition("/")[2] in CONTROLLERS:
            return self._write_lease(method, url, body=body)
        is_own = url.startswith(f"https://{SERVER}/") and "/leases" not in url
        if is_own and not self.serves("kube-apiserver"):
            raise Unreachable(url, "refused", text="connection refused")
        answer = super().http_send(method, url, body=body, **more)
        if is_own and answer.status < 300:
            self.changes.append(f"{method} {url}")
            self._changed(self.changes[-1])
        return answer

    def http_ask(self, url: str, body: bytes, *, headers: Any = None, tls: Any = None, **more: Any) -> HttpResponse:
        address, _, path = url.partition("://")[2].partition("/")
        if path.startswith("v3/"):
            self._check_etcd_client(url, tls)
        if path.endswith("/pods?dryRun=All"):
            return _json(201, {"kind": "Pod", "metadata": {"name": "trial"}})
        if not path.endswith(("/token", "selfsubjectreviews")):
            return super().http_ask(url, body, headers=headers, tls=tls, **more)
        if address not in self.read or (address == SERVER and not self.serves("kube-apiserver")):
            raise Unreachable(url, "refused", text="connection refused")
        if path.endswith("/token"):
            key = private_keys.parse_key(self.read[address]["sa.key"])
            token = account_tokens.sign_again(Secret(f"e30.{CLAIMS}.x"), key)
            return _json(201, {"status": {"token": token.reveal()}})
        return self._review(address, headers or {}, tls)

    def _check_etcd_client(self, url: str, tls: Any) -> None:
        """A member takes no client whose authority it has not read, and a client no member that it does not know."""
        number, _ = self._at(url)
        leaf = certificates.parse_certs(tls.cert_pem)[0]
        if not any(certificates.is_issued_by(leaf, ca) for ca in certificates.parse_certs(self.etcd_read[number])):
            raise Unreachable(url, "tls", text="tlsv1 alert unknown ca")
        shown = certificates.parse_certs(self._shown_by(number))[0]
        if not any(certificates.is_issued_by(shown, ca) for ca in certificates.parse_certs(tls.ca.pem)):
            raise Unreachable(url, "tls", text="unable to get local issuer certificate")

    def _shown_by(self, number: int) -> str:
        return self.text("etcd/server.crt") if number == 1 else self.etcd_shows[number]

    def run(self, argv: Argv, **more: Any) -> CommandResult:
        words = tuple(str(word) for word in argv)
        if words[0] == "sync":
            return CommandResult(words, 0)
        if words[0] != "cp":
            return super().run(argv, **more)
        source, target = words[-2], f"{words[-1].rstrip('/')}/{words[-2].rpartition('/')[2]}"
        copies = {
            target + name[len(source) :]: data for name, data in self.files.items() if name.startswith(f"{source}/")
        }
        self.files.update(copies)
        self.changes.append(f"run {' '.join(words)}")
        self._changed(self.changes[-1])
        return CommandResult(words, 0)

    def move_file(self, source: Path, path: Path) -> None:
        if str(source) in self.files:
            super().move_file(source, path)
            return
        moved = {name: data for name, data in self.files.items() if name.startswith(f"{source}/")}
        self.files = {name: data for name, data in self.files.items() if name not in moved}
        self.files.update({f"{path}{name[len(str(source)) :]}": data for name, data in moved.items()})
        self.dirs.discard(str(source))
        self.changes.append(f"move {source} {path}")
        self._changed(self.changes[-1])

    def served_cert(self, address: str, port: int, *, timeout_s: float = 3) -> Optional[str]:
        if port == 2379:
            return self._shown_by(int(address.rpartition(".")[2]) - 10)
        return super().served_cert(address, port, timeout_s=timeout_s)

    def _review(self, address: str, headers: Any, tls: Any) -> HttpResponse:
        bearer = str(headers.get("Authorization", "")).partition(" ")[2]
        if bearer and tls.cert_pem is None:
            is_known = account_tokens.kid_of_token(Secret(bearer)) in self.kids(address)
            name = "system:serviceaccount:kube-system:default" if is_known else ""
        else:
            name = headers.get("X-Remote-User", "") if self._speaks_for_others(address, tls.cert_pem) else ""
        if not name:
            return _json(401, {"kind": "Status", "message": "Unauthorized"})
        return _json(201, {"status": {"userInfo": {"username": name}}})

    def _speaks_for_others(self, address: str, cert_pem: Optional[str]) -> bool:
        text = self.text("front-proxy-ca.crt") if address == SERVER else self.read[address]["front-proxy-ca.crt"]
        leaf = certificates.parse_certs(cert_pem or "")[0]
        return any(certificates.is_issued_by(leaf, ca) for ca in certificates.parse_certs(text))

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._publish()

    def _publish(self) -> None:
        """Each API server adds its authorities to what extension API servers are told."""
        found = self.cluster.objects.get(CONFIG)
        if found is None or not self.serves("kube-apiserver"):
            return
        texts = [
            self.text("front-proxy-ca.crt"),
            *(one["front-proxy-ca.crt"] for name, one in self.read.items() if name != SERVER),
        ]
        known = list(certificates.parse_certs(found["data"]["requestheader-client-ca-file"]))
        known += [cert for text in texts for cert in certificates.parse_certs(text)]
        kept = "".join(certificates.cert_to_pem(cert) for cert in dict.fromkeys(known))
        found["data"]["requestheader-client-ca-file"] = kept


def make_rotating(control_planes: int = 1) -> Rotating:
    made = make_departure(control_planes, workers=("w1",))
    host = Rotating()
    host.__dict__.update(made.__dict__)
    for name in ("sa", "front-proxy-ca", "ca", "etcd/ca"):
        key = private_keys.generate_key("ECDSA-P256")
        host.files[f"{PKI}/{name}.key"] = private_keys.key_to_pem(key).reveal().encode()
        if name == "sa":
            host.files[f"{PKI}/sa.pub"] = private_keys.public_key_to_pem(key).encode()
        elif name in LEAVES:
            _add_authority(host, key, name)
    for component, flags in FLAGS.items():
        path = f"{MANIFESTS}/{component}.yaml"
        found = load_yaml(host.files[path].decode())
        found["spec"]["containers"][0]["command"] += flags
        host.files[path] = dump_yaml(found).encode()
        running = host.pods[component]
        running.text = host.files[path].decode()
        assert running.container is not None
        running.container.argv = found["spec"]["containers"][0]["command"]
    host.read[SERVER], host.manager_key = {file: host.text(file) for file in SHARED}, host.text("sa.key")
    host.files["/var/lib/etcd/member/wal/0.wal"] = b"log"
    host.sleep(1.0)
    host.cluster.objects["/api/v1/namespaces/kube-system/configmaps/kubeadm-config"]["data"]["ClusterConfiguration"] = (
        STORED
    )
    for number in range(1, control_planes + 1):
        host.etcd_read[number], host.etcd_shows[number] = host.text("etcd/ca.crt"), host.text("etcd/server.crt")
    for name in host.others:
        host.read[name] = {file: host.text(file) for file in SHARED}
    host.cluster.objects[CONFIG] = {
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "resourceVersion": "1"},
        "data": {"requestheader-client-ca-file": host.text("front-proxy-ca.crt")},
    }
    host.changes.clear()
    host.events.clear()
    host.violations.clear()
    return host


def _add_authority(host: Rotating, key: private_keys.Key, name: str) -> None:
    validity = certificates.plan_validity(host.now(), 86400 * 365)
    cert = certificates.issue_ca_cert(name.replace("/", "-"), key, validity=validity)
    host.files[f"{PKI}/{name}.crt"] = certificates.cert_to_pem(cert).encode()
    ca = certificates.Ca(cert, key, Path("/ca.crt"))
    for leaf in LEAVES[name]:
        own = private_keys.generate_key("ECDSA-P256")
        subject = certificates.Subject(
            leaf.rpartition("/")[2], is_client=True, is_server=leaf.startswith(("etcd/", "apiserver"))
        )
        issued = certificates.issue_leaf_cert(subject, own, ca=ca, validity=validity)
        host.files[f"{PKI}/{leaf}.crt"] = certificates.cert_to_pem(issued).encode()
        host.files[f"{PKI}/{leaf}.key"] = private_keys.key_to_pem(own).reveal().encode()


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode(), {"content-type": "application/json"})


__all__ = ["PKI", "RECORD", "SEALED", "Container", "Rotating", "make_rotating"]
