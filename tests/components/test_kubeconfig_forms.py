"""kb's reader of kubeconfigs beside kubectl's: both take the same ones, and read the same in them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from kubeup.errors import KbError
from kubeup.machine.local_host import LocalHost
from kubeup.node import kubeconfig
from kubeup.node.credential_plugin import resolve_credentials
from kubeup.node.kubeconfig import Kubeconfig
from kubeup.pem import select_certs
from tests.fake_node import finished_node
from tests.kubeconfig_forms import SERVER, make_forms

pytestmark = pytest.mark.component

_NODE = finished_node().files
CA, CERT, KEY = (
    _NODE[f"/etc/kubernetes/pki/{name}"].decode()
    for name in ("ca.crt", "apiserver-kubelet-client.crt", "apiserver-kubelet-client.key")
)
FORMS = make_forms(CA, CERT, KEY)
FORMS["JSON"] = json.dumps(yaml.safe_load(FORMS["plain"]), indent="\t")
PLUGIN = """\
#!/bin/sh
version=$(echo "$KUBERNETES_EXEC_INFO" | sed 's/.*"apiVersion": *"\\([^"]*\\)".*/\\1/')
echo "{\\"kind\\": \\"ExecCredential\\", \\"apiVersion\\": \\"$version\\", \\"status\\": {\\"token\\": \\"from plugin $1$A\\"}}"
"""
STRICTER = {
    "users null": "kubeadm refuses a context whose user there is not (clientcmd.Validate), kubectl asks for a password",
    "context of no user": "the same",
    "certificate and another's key": "kb finds it where the identity is used (pki.describe_pair)",
    "auth-provider": "client-go's providers are gone but for one; kb names it where the identity is used",
    "auth-provider unknown": "the same",
    "name and password": "the API server takes no passwords since 1.19; named where the identity is used",
    "name alone": "the same",
    "as another": "named where the identity is used",
}


def write_files(folder: Path) -> None:
    for name, text in (("ca.crt", CA), ("c.crt", CERT), ("c.key", KEY), ("token", "from file\n"), ("plugin", PLUGIN)):
        (folder / name).write_text(text)
    (folder / "plugin").chmod(0o755)


def run_kubectl(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    argv = [kubectl, "--kubeconfig", str(path), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def read(path: Path) -> Kubeconfig:
    with path.open(newline="") as file:
        return kubeconfig.read_kubeconfig(file.read(), host=LocalHost(), path=path)


def reads(path: Path) -> tuple[Optional[Kubeconfig], str]:
    try:
        found = read(path)
        return resolve_credentials(LocalHost(), found, place=str(path), folder=path.parent), ""
    except KbError as error:
        return None, str(error)


@pytest.mark.parametrize("name", FORMS)
def test_kb_takes_what_kubectl_takes(name: str, tmp_path: Path) -> None:
    """kubectl either calls the server of the form, on which nobody listens, or asks for a password that the form lacks."""
    write_files(tmp_path)
    path = tmp_path / "config"
    path.write_bytes(FORMS[name].encode())
    said = run_kubectl(path, "get", "--raw", "/version").stderr
    is_taken = "127.0.0.1:1 was refused" in said or said.strip() == "error: EOF"
    found, why = reads(path)
    if name in STRICTER:
        assert found is None or name == "certificate and another's key", name
        return
    assert (found is not None) is is_taken, (why, said)
    if found is not None:
        compare_with_view(found, path)


def compare_with_view(found: Kubeconfig, path: Path) -> None:
    view = json.loads(run_kubectl(path, "config", "view", "--raw", "-o", "json").stdout)
    by_name = {
        section: {entry["name"]: entry[section[:-1]] for entry in view.get(section) or []}
        for section in ("clusters", "users", "contexts")
    }
    context = by_name["contexts"].get(view["current-context"], {})
    cluster, user = by_name["clusters"][context.get("cluster", "")], by_name["users"].get(context.get("user", ""), {})
    assert found.server.endswith(cluster["server"]) and found.context == view["current-context"]
    for field, value in (("tls-server-name", found.tls_server_name), ("proxy-url", found.proxy_url)):
        assert value == cluster.get(field, "")
    assert found.insecure_skip_tls_verify is cluster.get("insecure-skip-tls-verify", False)
    data = {key: base64.b64decode(value).decode() for key, value in cluster.items() if key.endswith("-data")}
    assert found.ca_pem == select_certs(
        data.get("certificate-authority-data", CA if "certificate-authority" in cluster else "")
    )
    has_file = "tokenFile" in user
    if "exec" not in user:
        assert found.token.reveal() == ("from file" if has_file else user.get("token", ""))
    assert bool(found.client_cert_pem) is any(key.startswith("client-certificate") for key in user)


def test_what_stands_in_the_file_is_named_and_no_secret_is() -> None:
    def cause(text: str) -> str:
        with pytest.raises(KbError) as caught:
            kubeconfig.parse_kubeconfig(text, source="/root/x")
        return caught.value.cause

    assert cause(FORMS["token a number"]) == "its users[0].user.token is a number, not a text: write it in quotes"
    assert cause(FORMS["doubled user"]) == "its users hold the name 'u' twice"
    assert cause(FORMS["current-context of nothing"]) == "its contexts have no entry 'x', but 'c'"
    assert cause(FORMS["no current-context"]) == "it has no current-context (its contexts: c)"
    assert cause(FORMS["another apiVersion"]) == "its apiVersion is 'v2', not v1"
    secret = FORMS["plain"].replace("token: t", "token: s3cret, username: [s3cret]")
    assert "s3cret" not in cause(secret) and "username" in cause(secret)


def test_a_plugin_is_asked_as_client_go_asks(tmp_path: Path) -> None:
    write_files(tmp_path)
    path = tmp_path / "config"
    asked = """#!/bin/sh
echo "$KUBERNETES_EXEC_INFO" > asked
printf '%s\\n' "$@" "$A" > args
"""
    (tmp_path / "plugin").write_text(asked.replace("> ", f"> {tmp_path}/") + PLUGIN.partition("\n")[2])
    path.write_text(FORMS["plugin"].replace("interactiveMode", "provideClusterInfo: true, interactiveMode"))
    found, why = reads(path)
    assert found is not None and found.token.reveal() == "from plugin xb", why
    assert (tmp_path / "args").read_text() == "x\nb\n"
    info: dict[str, Any] = json.loads((tmp_path / "asked").read_text())
    assert info == {
        "kind": "ExecCredential",
        "apiVersion": "client.authentication.k8s.io/v1",
        "spec": {
            "interactive": False,
            "cluster": {
                "server": SERVER,
                "certificate-authority-data": base64.b64encode(select_certs(CA).encode()).decode(),
                "config": None,
            },
        },
    }


def test_a_plugin_that_is_not_there_is_named_with_its_hint(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "config").write_text(FORMS["plugin of nothing"])
    assert reads(tmp_path / "config")[1].endswith("there is no such program; get it")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no >&2; exit 3", "it ended with 3: no"),
        ("echo hello", "its answer"),
        ("echo '{}'", "not an ExecCredential"),
        ("echo '[1]'", "its answer"),
        ('echo \'{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1"}\'', "neither a token"),
        (
            'echo \'{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", '
            '"status": {"clientCertificateData": "x"}}\'',
            "neither a token",
        ),
    ],
)
def test_a_plugin_that_gives_nothing_is_named(script: str, words: str, tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "plugin").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "config").write_text(FORMS["plugin"])
    found, why = reads(tmp_path / "config")
    assert found is None and words in why and "./plugin" in why
