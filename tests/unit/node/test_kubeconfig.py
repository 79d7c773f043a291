"""kubeup/node/kubeconfig.py: what the files say, what becomes of the ones that are there, and reading any."""

from __future__ import annotations

import base64
import dataclasses
import datetime
from pathlib import Path
from typing import Any, Optional

import pytest

from kubeup import yaml_files
from kubeup.config.types import NodeConfig
from kubeup.errors import HostError, KbError, UsageError
from kubeup.node import certificates, kubeconfig, pki, private_keys
from kubeup.releases import RELEASES
from kubeup.secret import Secret
from tests.fake_host import FakeHost
from tests.fake_node import KUBECONFIG_PLANS, PATHS, finished_node, make_config, make_context
from tests.plans import do, is_done

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
LOCAL, SHARED = "https://10.77.0.11:6443", "https://api.lan:8443"
ADMIN = Path("/etc/kubernetes/admin.conf")


def read(host: FakeHost, path: Path = ADMIN) -> kubeconfig.Kubeconfig:
    return kubeconfig.read_kubeconfig(host.read_text(path), host=host, path=path)


def edit(host: FakeHost, path: Path = ADMIN) -> Any:
    return yaml_files.load_yaml(host.read_text(path))


def put(host: FakeHost, document: Any, path: Path = ADMIN) -> None:
    host.files[str(path)] = yaml_files.dump_yaml(document).encode()


def ensure(host: FakeHost, name: str = "admin", config: Optional[NodeConfig] = None) -> kubeconfig.Finding:
    return kubeconfig.ensure_kubeconfig(
        host,
        PATHS,
        config=config or make_config(),
        release=RELEASES[35],
        name=name,
        make_key=lambda: private_keys.generate_key("ECDSA-P256"),
    )


def refused(host: FakeHost, name: str = "admin") -> KbError:
    before = dict(host.files)
    with pytest.raises(HostError) as caught:
        ensure(host, name)
    assert (host.files, host.changes) == (before, [])
    assert not kubeconfig.is_kubeconfig_valid(host, PATHS, name=name)
    error: KbError = caught.value
    return error


# ---- servers


@pytest.mark.parametrize(
    ("minor", "gates", "kubelet"),
    [
        (31, {}, SHARED),
        (31, {"ControlPlaneKubeletLocalMode": True}, LOCAL),
        (34, {}, LOCAL),
        (34, {"ControlPlaneKubeletLocalMode": False}, SHARED),
        (36, {}, LOCAL),
    ],
)
def test_servers(minor: int, gates: dict[str, bool], kubelet: str) -> None:
    config = make_config(control_plane_endpoint="api.lan:8443", feature_gates=gates)
    assert {name: kubeconfig.server_url(name, config, release=RELEASES[minor]) for name in kubeconfig.KUBECONFIGS} == {
        "admin": SHARED,
        "super-admin": SHARED,
        "kubelet": kubelet,
        "controller-manager": LOCAL,
        "scheduler": LOCAL,
    }


def test_without_an_endpoint_every_server_is_local() -> None:
    servers = {kubeconfig.server_url(name, make_config(), release=RELEASES[31]) for name in kubeconfig.KUBECONFIGS}
    assert servers == {LOCAL}


@pytest.mark.parametrize(
    ("address", "endpoint", "local", "shared"),
    [
        ("fd00::1", "", "https://[fd00::1]:6443", "https://[fd00::1]:6443"),
        ("fd00::1", "[fd00::9]:8443", "https://[fd00::1]:6443", "https://[fd00::9]:8443"),
        ("10.0.0.1", "api.lan", "https://10.0.0.1:6443", "https://api.lan:6443"),
    ],
)
def test_urls(address: str, endpoint: str, local: str, shared: str) -> None:
    config = make_config(address=address, control_plane_endpoint=endpoint)
    assert (kubeconfig.local_url(config), kubeconfig.control_plane_url(config)) == (local, shared)


# ---- the five files


@pytest.mark.parametrize(
    ("name", "user", "organizations"),
    [
        ("admin", "kubernetes-admin", ("kubeadm:cluster-admins",)),
        ("super-admin", "kubernetes-super-admin", ("system:masters",)),
        ("kubelet", "system:node:cp1", ("system:nodes",)),
        ("controller-manager", "system:kube-controller-manager", ()),
        ("scheduler", "system:kube-scheduler", ()),
    ],
)
def test_identities(name: str, user: str, organizations: tuple[str, ...]) -> None:
    host = finished_node()
    found = read(host, Path(f"/etc/kubernetes/{name}.conf"))
    cert = certificates.parse_certs(found.client_cert_pem)[0]
    assert (found.user, found.cluster_name, found.context) == (user, "kubernetes", f"{user}@kubernetes")
    assert found.server == LOCAL
    assert found.ca_pem.encode() == host.files["/etc/kubernetes/pki/ca.crt"]
    assert certificates.subject_of(cert) == certificates.Subject(user, organizations, is_client=True)
    assert certificates.is_signed_by([cert], pki.read_ca(host, PATHS).cert)
    assert private_keys.is_key_of(private_keys.parse_key(found.client_key_pem.reveal()), cert)


def test_a_file_has_the_shape_of_kubernetes_own() -> None:
    text = finished_node().read_text(ADMIN)
    masked = [
        line.split("-data: ")[0] + "-data: X" if "-data: " in line else line for line in text.splitlines(keepends=False)
    ]
    assert masked == [
        "apiVersion: v1",
        "clusters:",
        "- cluster:",
        "    certificate-authority-data: X",
        "    server: https://10.77.0.11:6443",
        "  name: kubernetes",
        "contexts:",
        "- context:",
        "    cluster: kubernetes",
        "    user: kubernetes-admin",
        "  name: kubernetes-admin@kubernetes",
        "current-context: kubernetes-admin@kubernetes",
        "kind: Config",
        "users:",
        "- name: kubernetes-admin",
        "  user:",
        "    client-certificate-data: X",
        "    client-key-data: X",
    ]


def test_a_client_certificate_begins_with_its_ca() -> None:
    host = finished_node()
    del host.files[str(ADMIN)]
    host.clock = NOW + datetime.timedelta(days=100)
    assert ensure(host).action == "issue"
    cert = certificates.parse_certs(read(host).client_cert_pem)[0]
    assert cert.not_valid_before_utc == NOW - datetime.timedelta(minutes=5)
    assert cert.not_valid_after_utc == NOW + datetime.timedelta(days=465)


def test_cluster_name_and_first_ca_certificate_alone() -> None:
    host = finished_node()
    del host.files[str(ADMIN)]
    first = host.files["/etc/kubernetes/pki/ca.crt"]
    host.files["/etc/kubernetes/pki/ca.crt"] = first + host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    ensure(host, config=make_config(cluster_name="prod"))
    found = read(host)
    assert (found.cluster_name, found.context) == ("prod", "kubernetes-admin@prod")
    assert found.ca_pem.encode() == first


# ---- files that are there


def test_a_sound_file_is_kept_whatever_its_server() -> None:
    host = finished_node()
    config = make_config(control_plane_endpoint="api.lan:8443")
    ctx = make_context(host, config)
    assert is_done(KUBECONFIG_PLANS["admin"], ctx)
    do(KUBECONFIG_PLANS["admin"], ctx)
    assert host.changes == []
    assert ctx.report.warnings == [
        f"admin.conf calls {LOCAL}, the configuration says {SHARED}; it was left as it is",
    ]
    do(KUBECONFIG_PLANS["scheduler"], ctx)
    assert len(ctx.report.warnings) == 1


def test_a_file_of_another_ca_is_refused() -> None:
    host = finished_node()
    document = edit(host)
    other = host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    document["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(other).decode()
    put(host, document)
    error = refused(host)
    assert error.code == "kubeconfig-other-ca"
    assert error.cause == "it trusts another CA (CN=etcd-ca) than /etc/kubernetes/pki/ca.crt"
    assert "mv /etc/kubernetes/admin.conf /root/" in error.remedy


def test_the_first_of_the_files_cas_may_be_any_of_the_nodes() -> None:
    host = finished_node()
    host.files["/etc/kubernetes/pki/ca.crt"] += host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    document = edit(host)
    other = host.files["/etc/kubernetes/pki/etcd/ca.crt"]
    document["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(other).decode()
    put(host, document)
    assert ensure(host).action == "keep"


def test_a_ca_by_path_counts() -> None:
    host = finished_node()
    document = edit(host)
    document["clusters"][0]["cluster"] = {"server": LOCAL, "certificate-authority": "pki/ca.crt"}
    put(host, document)
    assert ensure(host).action == "keep"


def test_a_file_without_ca_is_refused() -> None:
    host = finished_node()
    document = edit(host)
    document["clusters"][0]["cluster"] = {"server": LOCAL, "certificate-authority-data": ""}
    put(host, document)
    error = refused(host)
    assert (error.code, error.cause) == ("kubeconfig-other-ca", "it holds no CA certificate")


def test_the_kubelets_rotated_certificate_is_not_kbs_business() -> None:
    host = finished_node()
    path = Path("/etc/kubernetes/kubelet.conf")
    document = edit(host, path)
    pem = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    document["users"][0]["user"] = {"client-certificate": pem, "client-key": pem}
    put(host, document, path)
    user = read(finished_node(), path)
    host.files[pem] = (user.client_cert_pem + user.client_key_pem.reveal()).encode()
    host.clock = NOW + datetime.timedelta(days=400)
    assert ensure(host, "kubelet").action == "keep"
    found = read(host, path)
    assert (found.client_cert_pem, found.client_key_pem) == (user.client_cert_pem, user.client_key_pem)
    assert "PRIVATE" not in found.client_cert_pem
    assert "CERTIFICATE" not in found.client_key_pem.reveal()


def test_an_expired_client_certificate_is_renewed_in_place() -> None:
    host = finished_node()
    document = edit(host)
    document["contexts"][0]["context"]["namespace"] = "kube-system"
    document["clusters"][0]["cluster"]["server"] = "https://192.0.2.1:6443"
    document["users"].append({"name": "bob", "user": {"token": "t"}})
    put(host, document)
    host.modes[str(ADMIN)] = 0o640
    old = read(host)
    host.clock = NOW + datetime.timedelta(days=365, seconds=1)
    assert not kubeconfig.is_kubeconfig_valid(host, PATHS, name="admin")
    ctx = make_context(host)
    do(KUBECONFIG_PLANS["admin"], ctx)
    assert ctx.report.notes == [
        "the client certificate in /etc/kubernetes/admin.conf expired at 2027-01-01 00:00:00 UTC: "
        "issued again for the same key"
    ]
    assert host.changes == ["write /etc/kubernetes/admin.conf"]
    assert host.modes[str(ADMIN)] == 0o640
    new = read(host)
    cert = certificates.parse_certs(new.client_cert_pem)[0]
    assert cert.not_valid_before_utc == host.clock - datetime.timedelta(minutes=5)
    assert certificates.subject_of(cert).organizations == ("kubeadm:cluster-admins",)
    assert private_keys.is_key_of(private_keys.parse_key(new.client_key_pem.reveal()), cert)
    after = edit(host)
    after["users"][0]["user"]["client-certificate-data"] = document["users"][0]["user"]["client-certificate-data"]
    assert after == document
    assert new.client_key_pem == old.client_key_pem
    assert kubeconfig.is_kubeconfig_valid(host, PATHS, name="admin")


def test_damaged_files_are_refused_without_showing_them() -> None:
    whole = edit(finished_node())
    user = whole["users"][0]["user"]
    etcd_key = finished_node().files["/etc/kubernetes/pki/etcd/ca.key"]
    cases = {
        "": "it is empty",
        "kind: Secret": "its kind is 'Secret', not Config",
        "a: [": "it is not YAML (line 1: expected the node content, but found '<stream end>')",
        yaml_files.dump_yaml({**whole, "current-context": "x"}): (
            "its contexts have no entry 'x', but 'kubernetes-admin@kubernetes'"
        ),
        yaml_files.dump_yaml({**whole, "users": []}): "its users have no entry 'kubernetes-admin'",
        yaml_files.dump_yaml({**whole, "users": "x"}): "its users is a text, not a list",
        yaml_files.dump_yaml({**whole, "clusters": [{"name": "kubernetes", "cluster": {}}]}): (
            "its cluster 'kubernetes' has no server"
        ),
        _with_user(whole, {**user, "client-key-data": "!"}): "its users[0].user.client-key-data is not base64",
        _with_user(whole, {**user, "client-key-data": ""}): (
            "it has a client certificate and no client-key-data or client-key"
        ),
        _with_user(whole, {**user, "client-key-data": base64.b64encode(etcd_key).decode()}): (
            "its client key does not belong to its client certificate"
        ),
    }
    for text, cause in cases.items():
        host = finished_node()
        host.files[str(ADMIN)] = text.encode()
        error = refused(host)
        assert (error.code, error.cause) == ("kubeconfig-unreadable", cause)
        assert user["client-key-data"] not in str(error.as_dict())


def _with_user(document: Any, user: Any) -> str:
    return yaml_files.dump_yaml({**document, "users": [{"name": "kubernetes-admin", "user": user}]})


# ---- external CA


def test_external_ca_uses_the_given_files() -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/ca.key"]
    for name in kubeconfig.KUBECONFIGS:
        assert ensure(host, name).action == "keep"
    host.clock = NOW + datetime.timedelta(days=366)
    assert refused(host).code == "certificate-expired"
    host.clock = NOW
    del host.files[str(ADMIN)]
    error = refused(host)
    assert (error.code, error.what) == ("external-ca-incomplete", "there is no /etc/kubernetes/admin.conf")


# ---- every problem at once


def test_problems_are_found_before_anything_is_changed() -> None:
    assert kubeconfig.find_problems(FakeHost(), PATHS) == []
    host = finished_node()
    assert kubeconfig.find_problems(host, PATHS) == []
    del host.files["/etc/kubernetes/pki/ca.key"], host.files[str(ADMIN)]
    host.files["/etc/kubernetes/scheduler.conf"] = b""
    codes = [error.code for error in kubeconfig.find_problems(host, PATHS)]
    assert codes == ["external-ca-incomplete", "kubeconfig-unreadable"]
    host.files["/etc/kubernetes/pki/ca.crt"] = b""
    assert kubeconfig.find_problems(host, PATHS) == []
    del host.files["/etc/kubernetes/pki/ca.crt"]
    (error,) = kubeconfig.find_problems(host, PATHS)
    assert error.code == "ca-missing"
    assert "/etc/kubernetes/kubelet.conf" in error.cause
    assert host.changes == []


# ---- reading


def test_reads_the_one_cluster_of_cluster_info() -> None:
    text = (
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: \n    server: https://a:6443\n"
        '  name: ""\ncontexts: null\ncurrent-context: ""\nkind: Config\nusers: null\n'
    )
    found = kubeconfig.parse_kubeconfig(text, source="cluster-info")
    assert found == kubeconfig.Kubeconfig(server="https://a:6443")


def test_no_context_and_no_unnamed_cluster_is_no_answer() -> None:
    """As kubectl and kubeadm have it, though there is one cluster alone."""
    document = {
        "clusters": [{"name": "a", "cluster": {"server": "https://a"}}],
        "contexts": [{"name": "c"}, {"name": "d"}],
    }
    with pytest.raises(HostError) as caught:
        kubeconfig.parse_kubeconfig(yaml_files.dump_yaml(document), source="x")
    assert caught.value.cause == "it has no current-context (its contexts: c, d)"


def test_the_current_context_chooses() -> None:
    document = {
        "kind": "Config",
        "current-context": "two",
        "contexts": [
            {"name": "one", "context": {"cluster": "a", "user": "u"}},
            {"name": "two", "context": {"cluster": "b", "user": "v"}},
        ],
        "clusters": [
            {"name": "a", "cluster": {"server": "https://a"}},
            {
                "name": "b",
                "cluster": {"server": "https://b", "tls-server-name": "x", "insecure-skip-tls-verify": True},
            },
        ],
        "users": [{"name": "u", "user": {"token": "tu"}}, {"name": "v", "user": {"tokenFile": "sub/token"}}],
    }
    host = FakeHost(files={"/home/k/config": yaml_files.dump_yaml(document).encode(), "/home/k/sub/token": b"tv\n"})
    found = read(host, Path("/home/k/config"))
    assert (found.server, found.user, found.token) == ("https://b", "v", Secret("tv"))
    assert (found.tls_server_name, found.insecure_skip_tls_verify) == ("x", True)
    assert "tv" not in repr(found)


@pytest.mark.parametrize(
    ("place", "field"),
    [("users", "client-certificate"), ("users", "client-key"), ("clusters", "certificate-authority")],
)
def test_data_and_a_path_at_once_is_refused(place: str, field: str) -> None:
    """No component would start with it: client-go says that the data overrides, and refuses."""
    host = finished_node()
    document = edit(host)
    document[place][0][place[:-1]][field] = "/gone.pem"
    put(host, document)
    error = refused(host)
    assert error.code == "kubeconfig-unreadable" and f"{field}-data" in error.cause


def test_a_named_file_that_is_missing_is_an_error() -> None:
    user = {"name": "u", "user": {"client-certificate": "/gone.pem", "client-key": "/gone.pem"}}
    document = {
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://b"}}],
        "users": [user],
    }
    host = FakeHost(files={"/c": yaml_files.dump_yaml(document).encode()})
    with pytest.raises(HostError) as caught:
        read(host, Path("/c"))
    assert "/gone.pem" in caught.value.what


def test_a_client_certificate_for_servers_alone_is_refused() -> None:
    host = finished_node()
    document, folder = edit(host), "/etc/kubernetes/pki"
    pair = (("client-certificate-data", "apiserver.crt"), ("client-key-data", "apiserver.key"))
    document["users"][0]["user"].update(
        {key: base64.b64encode(host.files[f"{folder}/{file}"]).decode() for key, file in pair}
    )
    put(host, document)
    error = refused(host)
    assert error.code == "kubeconfig-unreadable" and "lacks clientAuth" in error.cause


# ---- kb kubeconfig user


def make_user(host: FakeHost, **kwargs: Any) -> kubeconfig.Kubeconfig:
    config = kwargs.pop("config", None) or make_config()
    text = kubeconfig.make_user_kubeconfig(host, PATHS, config=config, client_name="alice", **kwargs)
    assert host.changes == []
    return kubeconfig.parse_kubeconfig(text, source="stdout")


def test_user_with_certificate() -> None:
    host = finished_node()
    found = make_user(host, orgs=("dev", "ops"), validity_s=3600)
    cert = certificates.parse_certs(found.client_cert_pem)[0]
    assert (found.server, found.context) == (LOCAL, "alice@kubernetes")
    assert certificates.subject_of(cert) == certificates.Subject("alice", ("dev", "ops"), is_client=True)
    assert cert.not_valid_after_utc == NOW + datetime.timedelta(hours=1)
    assert certificates.is_signed_by([cert], pki.read_ca(host, PATHS).cert)
    assert private_keys.is_key_of(private_keys.parse_key(found.client_key_pem.reveal()), cert)


def test_user_validity_comes_from_the_configuration() -> None:
    found = make_user(finished_node(), config=make_config(certificate_validity_period_s=7200))
    assert certificates.parse_certs(found.client_cert_pem)[0].not_valid_after_utc == NOW + datetime.timedelta(hours=2)


@pytest.mark.parametrize("token", [Secret("s3cret"), "s3cret"])
def test_user_with_token_needs_no_ca_key(token: Any) -> None:
    host = finished_node()
    del host.files["/etc/kubernetes/pki/ca.key"]
    found = make_user(host, token=token)
    assert (found.token, found.client_cert_pem, found.client_key_pem) == (Secret("s3cret"), "", Secret(""))
    with pytest.raises(HostError) as caught:
        make_user(host)
    assert caught.value.code == "ca-key-missing"


def test_user_server_must_be_in_the_certificate() -> None:
    host = finished_node()
    for server, url in (
        ("kubernetes.default.svc:8443", "https://kubernetes.default.svc:8443"),
        ("10.96.0.1", "https://10.96.0.1:6443"),
        ("https://cp1:443/", "https://cp1:443"),
    ):
        assert make_user(host, server=server).server == url
    with pytest.raises(UsageError) as caught:
        make_user(host, server="api.example.com:6443")
    error = caught.value
    assert error.code == "server-not-in-certificate"
    assert "/etc/kubernetes/pki/apiserver.crt does not name api.example.com" in error.cause
    assert error.remedy.startswith("add api.example.com to apiServer.certSANs, then: kb init phase certs apiserver")


@pytest.mark.parametrize("server", ["https://", "a/b", "cp1:99999"])
def test_user_server_must_be_a_server(server: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_user(finished_node(), server=server)
    assert caught.value.code == "bad-server"


def test_user_period_must_be_above_zero() -> None:
    with pytest.raises(UsageError) as caught:
        make_user(finished_node(), validity_s=0)
    assert caught.value.code == "bad-validity-period"


def test_user_server_follows_the_endpoint() -> None:
    config = dataclasses.replace(make_config(control_plane_endpoint="api.lan:8443"))
    assert make_user(finished_node(), config=config).server == SHARED
