"""Pods whose calls client-go makes: `kubectl proxy` of any release, by the pod's own token and ca.crt, and a client on a node that reads and writes through it.

Must not: know kb.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..lab.images import WEB_IMAGE
from ..lab.node import Node, wait_until
from ..lab.settings import Release
from .web import apply

PORT = 8001
_FOLDER = "/opt/client-go"
_CALLS = """
import http.client, json, time
path = "/api/v1/namespaces/default/configmaps/by-NAME"
def call(method, path, body=None):
    connection = http.client.HTTPConnection("ADDRESS", 80, timeout=6)
    kind = "merge-patch+json" if method == "PATCH" else "json"
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/" + kind})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return str(answer.status) if answer.status < 500 else str(answer.status) + " " + text.decode(errors="replace")[:200]
call("POST", path.rpartition("/")[0], {"metadata": {"name": "by-NAME"}})
log, number = open("/root/NAME.log", "w", 1), 0
while True:
    began, number = time.time(), number + 1
    for method, body in (("GET", None), ("PATCH", {"data": {"number": str(number)}})):
        said = []
        for _ in range(2):
            try:
                said.append(call(method, path, body))
            except Exception as error:
                said.append(repr(error))
            if said[-1] == "200":
                break
        log.write(json.dumps([began, round(time.time() - began, 3), method, said]) + chr(10))
    time.sleep(0.1)
"""
"""Tries once again, and writes down what it was told both times."""


def name_of(release: Release) -> str:
    return f"client-go-{release.minor.replace('.', '-')}"


def deploy(node: Node, releases: Sequence[Release]) -> None:
    """A Deployment and a Service for each on this node. A pod that is replaced goes on until the next one is ready and known."""
    node.run(f"mkdir -p {_FOLDER}")
    for release in releases:
        name = name_of(release)
        node.scp(release.binary("kubectl"), f"{_FOLDER}/{name}")
        labels = {"app": name}
        words = ["proxy", f"--port={PORT}", "--address=0.0.0.0", "--accept-hosts=.*", "--append-server-path=false"]
        container: dict[str, Any] = {
            "name": "proxy", "image": WEB_IMAGE, "imagePullPolicy": "IfNotPresent", "command": [f"{_FOLDER}/{name}", *words],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            "volumeMounts": [{"name": "programs", "mountPath": _FOLDER}],
        }  # fmt: skip
        spec = {
            "nodeName": node.name, "tolerations": [{"operator": "Exists"}], "containers": [container], "terminationGracePeriodSeconds": 10,
            "volumes": [{"name": "programs", "hostPath": {"path": _FOLDER}}],
        }  # fmt: skip
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
        deployment = {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": 1, "strategy": rolling, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }  # fmt: skip
        ports = [{"port": 80, "targetPort": PORT}]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": labels, "ports": ports}}  # fmt: skip
        apply(node, deployment, service)
        node.wait_pods_ready("default", f"app={name}")


def start(node: Node, releases: Sequence[Release]) -> None:
    """The clients on the node, which call through the pods."""
    for release in releases:
        name = name_of(release)
        address = node.get(f"service {name} -n default")["spec"]["clusterIP"]
        node.write(f"/root/{name}.py", _CALLS.replace("NAME", name).replace("ADDRESS", address))
        node.run(f"rm -f /root/{name}.log; systemd-run --quiet --collect --unit {name} python3 /root/{name}.py")
        wait_until(partial(_rows, node, name), what=f"calls through {name}", timeout_s=60)


def stop(node: Node, releases: Sequence[Release]) -> None:
    """No call failed after one more try."""
    for release in releases:
        name = name_of(release)
        node.run(f"systemctl stop {name}")
        rows = _rows(node, name)
        failed = [row for row in rows if row[3][-1] != "200"]
        again = [row for row in rows if len(row[3]) > 1]
        longest = max((later[0] - row[0] for row, later in zip(rows, rows[1:])), default=0.0)
        print(
            f"{name}: {len(rows)} calls, {len(again)} tried again, {len(failed)} failed, longest {longest:.2f} s",
            *again[:5],
            flush=True,
        )
        assert rows and not failed, failed[:5]


def _rows(node: Node, name: str) -> list[Any]:
    text = node.read(f"/root/{name}.log") if node.exists(f"/root/{name}.log") else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("]")]
