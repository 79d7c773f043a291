"""Two nodes, field by field: what one tool left on a machine and in a cluster against what another did.

Owns: reading a node (files with modes, owners and content; every object of the API server), taking out what no two runs
share (times, identities, keys, serials), and listing what remains different by a path such as
`file /etc/kubernetes/admin.conf : .users[0].name`. Certificates and keys are compared by their fields, wherever they lie.
Must not: know which differences are right (test_beside_kubeadm.py does).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from .node import DISK_FOLDERS, Node, wait_until

# What a booted machine writes by itself, the harness, and etcd's data base.
NOT_COMPARED = re.compile(
    r"/(root|tmp|run|proc|sys|dev)(/|$)|/var/(log|tmp|cache|lib/(systemd|containerd|private))(/|$)|/var/lib/etcd/member/"
    r"|/etc/(machine-id|mtab|resolv\.conf|hosts|hostname|\.pwd\.lock|\.updated)$|/var/\.updated$"
    r"|/var/lib/kubelet/(pods|device-plugins|plugins|plugins_registry|pod-resources|checkpoints|usernsalloc)(/|$)"
    r"|/var/lib/kubelet/(cpu|memory|dra|actuated_pods|allocated_pods)[a-z_]*_state$|/var/lib/cni(/|$)"
)
VOLATILE_METADATA = ("uid", "resourceVersion", "managedFields", "creationTimestamp", "selfLink", "generateName")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
SIGNATURE = re.compile(r"eyJ[\w-]+\.\.[\w-]+")
PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\n.*?-----END \1-----\n", re.DOTALL)
ABSENT = "(absent)"
PODS_AFTER_INIT = 7
"""Four of the control plane, two of CoreDNS, one of kube-proxy."""


@dataclass(frozen=True)
class Snapshot:
    """What a tool left: files by path, objects by `Kind namespace/name`, all comparable."""

    files: Mapping[str, Any]
    objects: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """One field that is not equal."""

    where: str
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{self.where}\n      kubeadm: {_shorten(self.expected)}\n      kb:      {_shorten(self.actual)}"


def read_node(node: Node, *, certificate_key: str) -> Snapshot:
    """Everything comparable of a node, once it is up. `certificate_key` opens the Secret kubeadm-certs."""
    wait_settled(node)
    return Snapshot(read_files(node), read_objects(node, certificate_key=certificate_key))


SETTLED_S = 5.0


def wait_settled(node: Node) -> None:
    """Wait until every pod that init leads to is there and Ready, and stays so: a kubelet that was just restarted has old
    news in the cluster. Before, two nodes differ by where they are on the way."""
    since: list[float] = []

    def is_settled() -> bool:
        if not are_ready():
            since.clear()
            return False
        since.append(time.monotonic())
        return since[-1] - since[0] >= SETTLED_S

    def are_ready() -> bool:
        pods = node.get("pods -n kube-system")["items"]
        states = [{c["type"]: c["status"] for c in pod["status"].get("conditions", [])} for pod in pods]
        return len(pods) == PODS_AFTER_INIT and all(state.get("Ready") == "True" for state in states)

    node.wait_node_ready()
    wait_until(is_settled, what=f"{PODS_AFTER_INIT} Ready pods in kube-system", timeout_s=180, every_s=0.5)


def list_differences(expected: Snapshot, actual: Snapshot) -> list[Difference]:
    """Every field in which two nodes differ."""
    found = [*_diff(expected.files, actual.files, "file"), *_diff(expected.objects, actual.objects, "object")]
    return sorted(found, key=lambda difference: difference.where)


# ---------------------------------------------------------------------------------------------------- files


def read_files(node: Node) -> dict[str, Any]:
    """path -> mode, owner and content of all that was written to this node's disk since its base system was made."""
    tops = [("", node.folder / "upper"), *((f"/{place}", node.disk_path(f"/{place}")) for place in DISK_FOLDERS)]
    found: dict[str, Any] = {}
    for prefix, top in tops:
        for folder, names, files in os.walk(top):
            for name in (*names, *files):
                place = Path(folder, name)
                path = _stable_name(f"{prefix}/{place.relative_to(top)}")
                if not NOT_COMPARED.search(path):
                    found[path] = _read_file(place)
    return found


def _stable_name(path: str) -> str:
    return re.sub(r"kubelet-(client|server)-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d\.pem", r"kubelet-\1-DATE.pem", path)


def _read_file(place: Path) -> dict[str, Any]:
    status = place.lstat()
    if stat.S_ISLNK(status.st_mode):
        return {"link": _stable_name(os.readlink(place))}
    if stat.S_ISCHR(status.st_mode):
        return {"removed": True}
    found: dict[str, Any] = {"mode": oct(status.st_mode), "owner": f"{status.st_uid}:{status.st_gid}"}
    if stat.S_ISREG(status.st_mode):
        is_yaml = place.suffix == ".yaml" or (place.suffix == ".conf" and place.parent.name == "kubernetes")
        found["content"] = describe_content(place.read_bytes(), is_yaml=is_yaml)
    return found


def describe_content(content: bytes, *, is_yaml: bool = False) -> Any:
    """PEM by its fields, YAML parsed (with what the parser forgets: key order, the end of the file), the rest as text."""
    if content.startswith(b"-----BEGIN "):
        return describe_pem(content)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"{len(content)} bytes"
    if not is_yaml:
        return text
    documents = [describe_value(document) for document in yaml.safe_load_all(text)]
    layout = re.sub(r"[A-Za-z0-9+/=]{64,}", "BASE64", text)
    return {"documents": documents, "layout": layout}


# ---------------------------------------------------------------------------------------------------- certificates


def describe_pem(content: bytes) -> list[Any]:
    """The PEM blocks of a text in their order."""
    found: list[Any] = [_describe_block(block[0], block[1].decode()) for block in PEM.finditer(content)]
    rest = PEM.sub(b"", content)
    return [*found, {"other text": rest.decode()}] if rest else found


def _describe_block(text: bytes, kind: str) -> dict[str, Any]:
    if kind == "CERTIFICATE":
        return {"block": kind, **describe_certificate(x509.load_pem_x509_certificate(text))}
    if kind == "PUBLIC KEY":
        return {"block": kind, "key": _describe_key(load_pem_public_key(text))}
    if kind == "CERTIFICATE REQUEST":
        request = x509.load_pem_x509_csr(text)
        return {"block": kind, "subject": request.subject.rfc4514_string(), "key": _describe_key(request.public_key())}
    return {"block": kind, "key": _describe_key(load_pem_private_key(text, None).public_key())}


def _describe_key(key: Any) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size} exponent {key.public_numbers().e}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__


def describe_certificate(certificate: x509.Certificate) -> dict[str, Any]:
    """What `openssl x509 -text` shows, without the serial, the key and the moment; the extensions in their order."""
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return {
        "version": certificate.version.name,
        "subject": _describe_name(certificate.subject),
        "issuer": _describe_name(certificate.issuer),
        "signature": certificate.signature_algorithm_oid.dotted_string,
        "key": _describe_key(certificate.public_key()),
        "valid for hours": round(lasts.total_seconds() / 3600, 1),
        "serial fits 8 bytes": certificate.serial_number.bit_length() <= 64,
        "extensions": [_describe_extension(extension) for extension in certificate.extensions],
    }


def _describe_name(name: x509.Name) -> list[str]:
    """The parts of a name with their ASN.1 types; the kubelet writes the moment into the names of its serving certificate."""
    parts = [f"{part.oid.dotted_string}={part.value!s} ({part._type.name})" for rdn in name.rdns for part in rdn]
    return [re.sub(r"@\d{10}\b", "@TIME", part) for part in parts]


def _describe_extension(extension: x509.Extension[Any]) -> str:
    value = extension.value
    if isinstance(value, x509.SubjectKeyIdentifier):
        shown = f"{len(value.digest)} bytes"
    elif isinstance(value, x509.AuthorityKeyIdentifier):
        shown = f"{len(value.key_identifier or b'')} bytes, issuer {value.authority_cert_issuer}"
    else:
        shown = value.public_bytes().hex() + " " + str(value)
    return f"{extension.oid._name}{' critical' if extension.critical else ''}: {shown}"


# ---------------------------------------------------------------------------------------------------- objects


def read_objects(node: Node, *, certificate_key: str) -> dict[str, Any]:
    """`Kind namespace/name` -> object, of every kind that the API server lists, but events and leases."""
    names = node.kubectl("api-resources --verbs=list -o name").split()
    kinds = [name for name in names if not name.startswith(("events", "leases.", "componentstatuses", "ipaddresses."))]
    items = node.get(f"{','.join(kinds)} -A")["items"]
    items = [item for item in items if not _is_kubelets_request(item)]
    tokens = {item["metadata"]["name"]: _describe_token(item) for item in items if _is_token(item)}
    rename = _make_renamer(tokens)
    found: dict[str, Any] = {}
    for item in items:
        if item["kind"] == "Secret" and item["metadata"]["name"] == "kubeadm-certs":
            item["data"] = _decrypt(item["data"], certificate_key)
        elif item["kind"] == "Secret" and _is_token(item):
            item["data"] = tokens[item["metadata"]["name"]]
        stable = rename(_describe_object(item))
        found.setdefault(_name_object(stable), []).append(stable)
    return {name: items[0] if len(items) == 1 else items for name, items in found.items()}


def _is_kubelets_request(item: Mapping[str, Any]) -> bool:
    """A kubelet asks for a certificate when it is first started, and not when it was restarted (which both tools do)
    before the API server answered: whether it did is chance, on anybody's node."""
    is_of_node = str((item.get("spec") or {}).get("username", "")).startswith("system:node:")
    return item["kind"] == "CertificateSigningRequest" and is_of_node


def _is_token(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "bootstrap.kubernetes.io/token"


def _describe_token(item: Mapping[str, Any]) -> dict[str, str]:
    """A token's fields; its life as hours after it was made, its secret by its form."""
    data = {key: base64.b64decode(value).decode() for key, value in item["data"].items()}
    if "expiration" in data:
        made = _moment(item["metadata"]["creationTimestamp"])
        data["expiration"] = f"{(_moment(data['expiration']) - made).total_seconds() / 3600:.1f} h"
    data["token-id"] = re.sub("[a-z0-9]", "x", data["token-id"])
    data["token-secret"] = re.sub("[a-z0-9]", "x", data["token-secret"])
    return data


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _make_renamer(tokens: Mapping[str, Mapping[str, str]]) -> Callable[[Any], Any]:
    """Replace the ids of tokens, which are random, by what the tokens are for."""
    ids = {name.rpartition("-")[2]: fields.get("description", "")[:9].strip() for name, fields in tokens.items()}
    pattern = re.compile("|".join(ids) or "$^")

    def rename(value: Any) -> Any:
        text = pattern.sub(lambda match: f"TOKEN({ids[match.group()]})", json.dumps(value))
        return json.loads(text)

    return rename


def _decrypt(data: Mapping[str, str], certificate_key: str) -> dict[str, Any]:
    """The Secret kubeadm-certs opened: AES-GCM, the nonce in front."""
    cipher = AESGCM(bytes.fromhex(certificate_key))
    found = {}
    for name, value in data.items():
        sealed = base64.b64decode(value)
        found[name] = describe_pem(cipher.decrypt(sealed[:12], sealed[12:], None))
    return found


def _name_object(item: Mapping[str, Any]) -> str:
    group = item["apiVersion"].rpartition("/")[0]
    kind = f"{item['kind']}{'.' + group if group else ''}"
    meta = item["metadata"]
    return f"{kind} {meta.get('namespace', '-')}/{meta['name']}"


def _describe_object(item: dict[str, Any]) -> dict[str, Any]:
    """An object without what differs from one run to the next; a generated name becomes its beginning."""
    meta = item["metadata"]
    if "generateName" in meta:
        meta["name"] = meta["generateName"] + "*"
    elif item["kind"] in ("ReplicaSet", "ControllerRevision"):
        meta["name"] = meta["name"].rpartition("-")[0] + "-*"
    elif item["kind"] == "CertificateSigningRequest":
        meta["name"] = "csr-*"
    for field in VOLATILE_METADATA:
        meta.pop(field, None)
    for field in ("annotations", "labels"):
        for key in (
            "pod-template-hash",
            "controller-revision-hash",
            "kubernetes.io/config.hash",
            "kubernetes.io/config.mirror",
        ):
            if key in meta.get(field, {}):
                meta[field][key] = "HASH"
    item = describe_value(item)
    STATUS.get(item["kind"], _drop_status)(item)
    return item


def _drop_status(item: dict[str, Any]) -> None:
    item.pop("status", None)


def _keep_conditions(item: dict[str, Any]) -> None:
    conditions = item.get("status", {}).get("conditions", [])
    item["status"] = {c["type"]: c["status"] for c in conditions}


def _describe_node(item: dict[str, Any]) -> None:
    """Of a node its addresses, conditions and daemons' ports: the rest is the machine's, and moves."""
    status = item["status"]
    item["status"] = {
        "conditions": {c["type"]: c["status"] for c in status["conditions"]},
        **{key: status[key] for key in ("addresses", "daemonEndpoints")},
        "nodeInfo": {key: status["nodeInfo"][key] for key in ("kubeletVersion", "containerRuntimeVersion")},
    }


def _describe_pod(item: dict[str, Any]) -> None:
    _keep_conditions(item)
    spec = item["spec"]
    for volume in spec.get("volumes", []):
        volume["name"] = re.sub(r"^kube-api-access-\w+$", "kube-api-access-*", volume["name"])
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            mount["name"] = re.sub(r"^kube-api-access-\w+$", "kube-api-access-*", mount["name"])


def _describe_request(item: dict[str, Any]) -> None:
    """A certificate request: who asked for what, and who agreed."""
    for key in ("authentication.kubernetes.io/credential-id",):
        item["spec"].get("extra", {}).pop(key, None)
    _keep_conditions(item)


def _describe_revision(item: dict[str, Any]) -> None:
    item.get("metadata", {}).get("labels", {}).pop("pod-template-hash", None)


def _describe_replicas(item: dict[str, Any]) -> None:
    _drop_status(item)
    for labels in (item["spec"]["selector"]["matchLabels"], item["spec"]["template"]["metadata"]["labels"]):
        labels.pop("pod-template-hash", None)


def _describe_endpoints(item: dict[str, Any]) -> None:
    """Which ports; the pods' addresses depend on who came first."""
    item.pop("endpoints", None)
    item.pop("subsets", None)
    for field in ("annotations", "generation"):
        item["metadata"].pop(field, None)


STATUS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "Node": _describe_node,
    "Pod": _describe_pod,
    "CertificateSigningRequest": _describe_request,
    "ControllerRevision": _describe_revision,
    "ReplicaSet": _describe_replicas,
    "EndpointSlice": _describe_endpoints,
    "Endpoints": _describe_endpoints,
    "APIService": _keep_conditions,
}


# ---------------------------------------------------------------------------------------------------- values


def describe_value(value: Any) -> Any:
    """A value with moments and identities taken out, and PEM, base64 of PEM, and YAML in texts opened."""
    if isinstance(value, dict):
        return {key: describe_value(item) for key, item in value.items() if key != "uid"}
    if isinstance(value, list):
        return [describe_value(item) for item in value]
    if isinstance(value, str):
        return _describe_text(value)
    return value


def _describe_text(text: str) -> Any:
    if MOMENT.fullmatch(text):
        return "TIME"
    if SIGNATURE.fullmatch(text):
        return "JWS"
    if text.startswith("-----BEGIN "):
        return describe_pem(text.encode())
    if (decoded := _decode_base64(text)) is not None and decoded.startswith(b"-----BEGIN "):
        return describe_pem(decoded)
    if re.match(r"(apiVersion|kind): ", text):
        return describe_content(text.encode(), is_yaml=True)
    return text


def _decode_base64(text: str) -> Optional[bytes]:
    try:
        return base64.b64decode(text, validate=True) if len(text) > 100 else None
    except (binascii.Error, ValueError):
        return None


def _diff(expected: Any, actual: Any, where: str) -> Iterator[Difference]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        is_top = " " not in where
        for key in sorted({*expected, *actual}, key=str):
            inner = f"{where} {key} :" if is_top else f"{where}.{key}"
            yield from _diff(expected.get(key, ABSENT), actual.get(key, ABSENT), inner)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for index, (one, other) in enumerate(zip(expected, actual)):
            yield from _diff(one, other, f"{where}[{index}]")
    elif isinstance(expected, str) and isinstance(actual, str) and expected.count("\n") > 1:
        yield from _diff_lines(expected, actual, where)
    elif expected != actual:
        yield Difference(where, expected, actual)


def _diff_lines(expected: str, actual: str, where: str) -> Iterator[Difference]:
    if expected == actual:
        return
    ours, theirs = actual.splitlines(), expected.splitlines()
    gone = [line for line in theirs if line not in ours]
    new = [line for line in ours if line not in theirs]
    if not gone and not new:
        first = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
        gone, new = [f"line {first + 1}: {theirs[first : first + 1]}"], [f"{ours[first : first + 1]} (same lines)"]
    yield Difference(where, "\n".join(gone), "\n".join(new))


def _shorten(value: Any, length: int = 700) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= length else text[:length] + f"... ({len(text)} characters)"
