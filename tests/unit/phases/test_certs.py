"""The phases certs/* and kubeconfig/*: thin, so what counts is that each does its own part and looks for it."""

from __future__ import annotations

import io
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubeup.config.types import ExternalEtcd
from kubeup.errors import HostError
from kubeup.machine.local_host import LocalHost
from kubeup.node import cert_specs
from kubeup.phases import certs
from tests.fake_host import FakeHost
from tests.fake_node import CERT_PLANS, KUBECONFIG_PLANS, finished_node, make_config, make_context, make_pki
from tests.plans import do, is_done

EXTERNAL: dict[str, Any] = {"local_etcd": None, "external_etcd": ExternalEtcd(("https://10.0.0.9:2379",))}
BASES = {name: spec.base for name, spec in cert_specs.CERTS.items()}


def output(ctx: Any) -> str:
    stream = ctx.report.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_each_phase_makes_its_own_files_in_order() -> None:
    host = FakeHost()
    ctx = make_context(host)
    for name, plan in CERT_PLANS.items():
        host.changes.clear()
        assert not is_done(plan, ctx), name
        do(plan, ctx)
        base = f"/etc/kubernetes/pki/{BASES.get(name, name)}"
        assert host.changes == [f"write {base}.key", f"write {base}.{'pub' if name == 'sa' else 'crt'}"]
        assert is_done(plan, ctx), name


def test_each_kubeconfig_phase_makes_its_own_file() -> None:
    host = FakeHost()
    ctx = make_pki(host)
    for name, plan in KUBECONFIG_PLANS.items():
        host.changes.clear()
        assert not is_done(plan, ctx), name
        do(plan, ctx)
        assert host.changes == [f"write /etc/kubernetes/{name}.conf"]
        assert host.modes[f"/etc/kubernetes/{name}.conf"] == 0o600
        assert is_done(plan, ctx), name
    assert ctx.report.warnings == []


def test_a_second_run_changes_nothing() -> None:
    host = finished_node()
    ctx = make_context(host)
    for plan in (*CERT_PLANS.values(), *KUBECONFIG_PLANS.values()):
        assert is_done(plan, ctx)
        do(plan, ctx)
    assert host.changes == []
    assert ctx.report.notes == ctx.report.warnings == []
    assert ctx.found.keys is None


def test_a_probe_only_looks() -> None:
    host = FakeHost()
    ctx = make_context(host)
    for plan in (*CERT_PLANS.values(), *KUBECONFIG_PLANS.values()):
        assert is_done(plan, ctx) is False
    assert host.changes == []
    assert ctx.found.keys is None


def test_external_etcd_has_no_etcd_certs() -> None:
    host = FakeHost()
    ctx = make_context(host, make_config(**EXTERNAL))
    for name, plan in CERT_PLANS.items():
        if "etcd" in name:
            do(plan, ctx)
            assert is_done(plan, ctx)
    assert host.changes == []
    assert "etcd is external" in output(ctx)


def test_what_is_issued_again_is_said() -> None:
    host = finished_node()
    ctx = make_context(host, make_config(control_plane_endpoint="api.lan:6443"))
    assert not is_done(certs.plan_apiserver, ctx)
    do(certs.plan_apiserver, ctx)
    assert ctx.report.notes == [
        "/etc/kubernetes/pki/apiserver.crt does not name api.lan: issued again for the same key"
    ]
    assert is_done(certs.plan_apiserver, ctx)


def test_an_error_leaves_the_node_as_it_was() -> None:
    host = finished_node()
    host.files["/etc/kubernetes/pki/etcd/server.crt"] = host.files["/etc/kubernetes/pki/apiserver.crt"]
    ctx = make_context(host)
    assert not is_done(certs.plan_etcd_server, ctx)
    with pytest.raises(HostError) as caught:
        do(certs.plan_etcd_server, ctx)
    assert caught.value.code == "certificate-of-other-ca"
    assert host.changes == []


def test_no_key_is_made_twice_nor_shared() -> None:
    host = FakeHost()
    make_pki(host, make_config(encryption_algorithm="RSA-2048"))
    keys = [content for path, content in host.files.items() if path.endswith(".key")]
    assert len(keys) == len(set(keys)) == 11
    assert all(key.startswith(b"-----BEGIN RSA PRIVATE KEY-----\n") for key in keys)


def test_modes_on_a_real_file_system(tmp_path: Path) -> None:
    ctx = make_pki(LocalHost(tmp_path))
    for plan in KUBECONFIG_PLANS.values():
        do(plan, ctx)
    root = tmp_path / "etc/kubernetes"
    modes = {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert {name for name, mode in modes.items() if mode == 0o755} == {"pki", "pki/etcd"}
    assert {name for name, mode in modes.items() if mode == 0o644} == {f"pki/{base}.crt" for base in BASES.values()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        *(f"pki/{base}.key" for base in BASES.values()),
        *("pki/sa.key", "pki/sa.pub"),
        *(f"{name}.conf" for name in KUBECONFIG_PLANS),
    }
    assert len(modes) == 2 + 10 + 10 + 2 + 5


def test_naming_the_phases_loads_no_cryptography() -> None:
    """kb.py names every phase; `kb version` must not pay for cryptography or YAML."""
    code = (
        "import sys; from kubeup.phases import certs, kubeconfigs; certs.plan_ca, kubeconfigs.plan_admin; "
        "print(sorted({'cryptography', 'yaml', 'kubeup.node.pki'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
