"""kb kubeconfig list: who, which groups, until when, by which file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import kb
from kubeup.node import certificates, pki, private_keys
from kubeup.paths import Paths
from tests.cert_forms import make_own_pair
from tests.unit.commands.test_launcher import INIT, Machine

HOME = Path("/home/ann/.kube/config")


@pytest.fixture
def machine(tmp_path: Path, capsys: Any) -> Machine:
    host = Machine(tmp_path)
    assert run(host, *INIT) == 0
    capsys.readouterr()
    return host


def run(host: Machine, *words: str) -> int:
    return kb.main(list(words), make_host=lambda root: host)


def listed(host: Machine, capsys: Any) -> dict[str, list[dict[str, Any]]]:
    """source -> its rows."""
    assert run(host, "kubeconfig", "list", "-o", "json") == 0
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(capsys.readouterr().out):
        rows.setdefault(row["source"], []).append(row)
    return rows


def test_the_files_of_this_node(machine: Machine, capsys: Any) -> None:
    rows = listed(machine, capsys)
    folder = "/etc/kubernetes/"
    assert {path.replace(folder, ""): (row["user"], row["groups"]) for path, (row,) in rows.items()} == {
        "admin.conf": ("kubernetes-admin", ["kubeadm:cluster-admins"]),
        "super-admin.conf": ("kubernetes-super-admin", ["system:masters"]),
        "kubelet.conf": ("system:node:cp1", ["system:nodes"]),
        "controller-manager.conf": ("system:kube-controller-manager", []),
        "scheduler.conf": ("system:kube-scheduler", []),
    }
    (admin,) = rows[f"{folder}admin.conf"]
    assert admin["by"] == "certificate" and admin["expirationDate"] and admin["residualTime"] > 300 * 86400
    assert run(machine, "kubeconfig", "list") == 0
    told = capsys.readouterr()
    assert any(line.split()[:2] == ["system:kube-scheduler", "-"] for line in told.out.splitlines())
    assert "no RBAC rule can take that back" in told.err


def test_users_of_this_cluster_alone(machine: Machine, capsys: Any) -> None:
    """Of a kubeconfig with several users, those whose certificate this cluster's CA signed, and tokens for this cluster."""
    admin = yaml.safe_load(machine.read_text(Paths().admin_conf))
    other = base64.b64encode(make_own_pair("x", now=machine.now())[0].encode()).decode()
    admin["users"] += [
        {"name": "elsewhere", "user": {"client-certificate-data": other}},
        {"name": "bot", "user": {"token": "secret-token"}},
        {"name": "stray", "user": {"token": "secret-token"}},
    ]
    admin["contexts"].append({"name": "bot", "context": {"cluster": "kubernetes", "user": "bot"}})
    machine.write_file(HOME, yaml.safe_dump(admin))
    rows = listed(machine, capsys)[str(HOME)]
    assert [(row["user"], row["by"]) for row in rows] == [("kubernetes-admin", "certificate"), ("bot", "token")]
    assert run(machine, "kubeconfig", "list") == 0
    assert "secret-token" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "a: [", "users: 3", "[]", "users:\n- 3\n- user: {client-certificate-data: '%%'}\n"]
)
def test_what_is_no_kubeconfig(machine: Machine, capsys: Any, text: str) -> None:
    machine.write_file(HOME, text)
    assert str(HOME) not in listed(machine, capsys)


def test_users_who_live_elsewhere_and_files_of_other_names(machine: Machine, capsys: Any) -> None:
    text = machine.read_text(Paths().admin_conf)
    machine.write_file(Path("/etc/passwd"), "bob:x:1001:1001:,:/srv/bob:/bin/sh\n")
    places = ["/srv/bob/.kube/work.yaml", "/home/ann/prod.kubeconfig", "/etc/kubernetes/hook.conf"]
    for place in places:
        machine.write_file(Path(place), text)
    assert set(places) <= set(listed(machine, capsys))


def test_a_huge_file_in_a_home_is_not_read(machine: Machine, capsys: Any) -> None:
    machine.write_file(HOME, machine.read_text(Paths().admin_conf) + "#" * (1 << 20))
    assert str(HOME) not in listed(machine, capsys)


def test_what_the_cluster_has_signed(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    subject = certificates.Subject("ann", ("dev",), is_client=True)
    cert = certificates.issue_leaf_cert(
        subject, private_keys.generate_key("ECDSA-P256"), ca=pki.read_ca(machine, Paths()),
        validity=certificates.plan_validity(machine.now(), 3600),
    )  # fmt: skip
    text = base64.b64encode(certificates.cert_to_pem(cert).encode()).decode()
    approved = {"conditions": [{"type": "Approved"}]}
    requests = [
        {"metadata": {"name": "ann"}, "status": {**approved, "certificate": text}},
        {"metadata": {"name": "bob"}, "status": approved},
    ]
    monkeypatch.setattr("kubeup.cluster.api.Api.list", lambda self, path, field="": requests)
    (row,) = listed(machine, capsys)["certificatesigningrequest ann"]
    assert (row["user"], row["groups"]) == ("ann", ["dev"]) and 0 < row["residualTime"] <= 3600


def test_without_an_api_server(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from tests.unit.commands.test_certs_expiry import refuse

    monkeypatch.setattr("kubeup.cluster.api.Api.list", refuse)
    assert len(listed(machine, capsys)) == 5
    assert run(machine, "kubeconfig", "list") == 0
    assert "signing requests are left out" in capsys.readouterr().err
