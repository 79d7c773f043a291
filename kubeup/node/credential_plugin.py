"""A kubeconfig's `exec`: the credential plugin, run as client-go runs it.

kb runs it once, and uses its credentials for everything that follows; kubectl and the kubelet run it again when they have expired.
Mirrors k8s.io/client-go/plugin/pkg/client/auth/exec/exec.go.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kubeup.errors import HostError, UsageError
from kubeup.json_text import parse_json_object
from kubeup.machine.host import Host
from kubeup.node.kubeconfig import Kubeconfig
from kubeup.pem import select_certs, select_private_keys
from kubeup.secret import Secret

_TIMEOUT_S = 60.0


def resolve_credentials(host: Host, found: Kubeconfig, *, place: str, folder: Path) -> Kubeconfig:
    """`found` with the credentials from its plugin; unchanged if it has none. `folder`: of the kubeconfig, to which a relative command
    refers.

    Raises HostError (credential-plugin-failed), and UsageError (kubeconfig-unsupported) for features that kb does not support.
    """
    if found.unsupported:
        raise UsageError(
            f"{place} says {' and '.join(found.unsupported)}",
            cause="kb does not support that: it knows tokens, client certificates, exec, and proxies at http://",
            remedy="give a kubeconfig with a token or a client certificate; a control plane makes one: kb kubeconfig user "
            "--client-name NAME",
            code="kubeconfig-unsupported",
        )
    if found.plugin is None or found.has_credentials:
        return found
    status = _ask(host, found, plugin=found.plugin, place=place, folder=folder)
    token, cert, key = (_text(status, name) for name in ("token", "clientCertificateData", "clientKeyData"))
    if not token and not (cert and key):
        raise _failed(found.plugin, place, cause="its answer has neither a token nor a client certificate with its key")
    return replace(
        found,
        token=Secret(token),
        client_cert_pem=select_certs(cert),
        client_key_pem=Secret(select_private_keys(key)),
    )


def _ask(host: Host, found: Kubeconfig, *, plugin: Mapping[str, Any], place: str, folder: Path) -> Mapping[str, Any]:
    """The status of the ExecCredential that the plugin prints."""
    command, version = str(plugin["command"]), str(plugin["apiVersion"])
    if plugin.get("interactiveMode") == "Always":
        raise _failed(plugin, place, cause="it needs user input (interactiveMode: Always), which kb cannot give")
    spec: dict[str, Any] = {"interactive": False}
    if plugin.get("provideClusterInfo"):
        spec["cluster"] = _describe_cluster(found)
    asked = {"kind": "ExecCredential", "apiVersion": version, "spec": spec}
    env = {str(entry["name"]): str(entry.get("value") or "") for entry in plugin.get("env") or ()}
    program = str(folder / command) if "/" in command else command
    argv = (program, *map(str, plugin.get("args") or ()))
    done = host.query(argv, timeout_s=_TIMEOUT_S, env={**env, "KUBERNETES_EXEC_INFO": json.dumps(asked)})
    if done.deferred:
        raise _failed(plugin, place, cause="below --root no program is run")
    if not done.ok:
        hint = f"; {plugin['installHint']}" if done.missing and plugin.get("installHint") else ""
        told = " ".join(done.stderr.split())[-300:]
        end = "there is no such program" if done.missing else f"it ended with {done.code}{f': {told}' if told else ''}"
        raise _failed(plugin, place, cause=f"{end}{hint}")
    try:
        answer = parse_json_object(done.stdout.encode(), "its answer")
    except ValueError as error:
        raise _failed(plugin, place, cause=str(error)) from error
    if (answer.get("kind"), answer.get("apiVersion")) != ("ExecCredential", version):
        raise _failed(plugin, place, cause=f"its answer is not an ExecCredential of {version}")
    status = answer.get("status")
    return status if isinstance(status, dict) else {}


def _describe_cluster(found: Kubeconfig) -> dict[str, Any]:
    told = {
        "server": found.server,
        "certificate-authority-data": base64.b64encode(found.ca_pem.encode()).decode(),
        "tls-server-name": found.tls_server_name,
        "insecure-skip-tls-verify": found.insecure_skip_tls_verify,
        "proxy-url": found.proxy_url,
        "config": None,
    }
    return {name: value for name, value in told.items() if value or name in ("server", "config")}


def _text(status: Mapping[str, Any], name: str) -> str:
    value = status.get(name)
    return value if isinstance(value, str) else ""


def _failed(plugin: Mapping[str, Any], place: str, *, cause: str) -> HostError:
    return HostError(
        f"the credential plugin {plugin['command']} of {place} gives no credentials",
        cause=cause,
        remedy="run it by hand, or give a kubeconfig with a token; for a join: --tls-bootstrap-token TOKEN",
        code="credential-plugin-failed",
    )
