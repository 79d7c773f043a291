"""When certificates end, making them anew, and requests for a CA that is kept elsewhere."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from kubeup.commands import certs as commands_certs
from kubeup.config.types import ClusterConfiguration, ExternalEtcd
from kubeup.errors import HostError, UsageError
from kubeup.node import cert_specs, certificates, kubeconfig, pki, private_keys, renewal, verify
from kubeup.paths import Paths
from kubeup.releases import RELEASES
from tests.fake_host import FakeHost
from tests.fake_node import finished_node, make_ca_unfit, make_config

PATHS = Paths()
CLUSTER = ClusterConfiguration("v1.35.6", encryption_algorithm="ECDSA-P256")
EXTERNAL = ClusterConfiguration("v1.35.6", local_etcd=None, external_etcd=ExternalEtcd(("https://e:2379",)))


@pytest.fixture
def node() -> FakeHost:
    return finished_node()


def read(host: FakeHost, name: str) -> x509.Certificate:
    return pki.read_certs(host, cert_specs.CERTS[name].cert_path(PATHS))[0]


def test_a_renewed_certificate_is_for_the_same_names_and_a_new_key(node: FakeHost) -> None:
    before = read(node, "apiserver")
    node.clock += datetime.timedelta(days=100)
    assert renewal.renew(node, PATHS, row=renewal.ROWS["apiserver"], cluster=CLUSTER) == "renewed"
    after = read(node, "apiserver")
    assert certificates.subject_of(after) == certificates.subject_of(before)
    assert after.not_valid_after_utc == before.not_valid_after_utc + datetime.timedelta(days=100)
    key = pki.read_key(node, cert_specs.CERTS["apiserver"].key_path(PATHS))
    assert private_keys.is_key_of(key, after) and not private_keys.is_key_of(key, before)
    assert certificates.is_signed_by((after,), read(node, "ca"))


@pytest.mark.parametrize("name", ["apiserver", "admin.conf"])
def test_nothing_is_written_where_nobody_would_believe_it(node: FakeHost, name: str) -> None:
    before = dict(make_ca_unfit(node).files)
    with pytest.raises(HostError, match="Kubernetes would not accept") as caught:
        renewal.renew(node, PATHS, row=renewal.ROWS[name], cluster=CLUSTER)
    assert caught.value.code == "ca-unfit" and "keyCertSign" in caught.value.cause
    assert node.files == before


def test_an_authority_that_ends_before_what_is_renewed_is_told(node: FakeHost) -> None:
    assert renewal.find_warnings(node, PATHS, ca="ca", cluster=CLUSTER) == ()
    node.clock += datetime.timedelta(days=9 * 365 + 100)
    (text,) = renewal.find_warnings(node, PATHS, ca="ca", cluster=CLUSTER)
    assert "/etc/kubernetes/pki/ca.crt ends in" in text


def test_a_certificate_that_names_no_purpose_is_renewed_for_every_one(node: FakeHost) -> None:
    """An extended key usage with nothing in it would be good for nobody."""
    ca, key = pki.read_ca(node, PATHS), pki.read_key(node, cert_specs.CERTS["apiserver"].key_path(PATHS))
    old = read(node, "apiserver")
    builder = x509.CertificateBuilder(ca.cert.subject, old.subject, key.public_key(), 7)
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
    assert ca.key is not None
    node.files["/etc/kubernetes/pki/apiserver.crt"] = certificates.cert_to_pem(builder.sign(ca.key, SHA256())).encode()
    renewal.renew(node, PATHS, row=renewal.ROWS["apiserver"], cluster=CLUSTER)
    assert verify.find_fault((read(node, "apiserver"),), (ca.cert,), usage="server") is None


def test_a_renewed_kubeconfig_keeps_all_but_its_certificate_and_key(node: FakeHost) -> None:
    path = PATHS.kubeconfig("admin.conf")
    before = kubeconfig.read_kubeconfig(node.read_text(path), host=node, path=path)
    assert renewal.renew(node, PATHS, row=renewal.ROWS["admin.conf"], cluster=CLUSTER) == "renewed"
    after = kubeconfig.read_kubeconfig(node.read_text(path), host=node, path=path)
    assert (after.server, after.user, after.context, after.ca_pem) == (
        before.server,
        before.user,
        before.context,
        before.ca_pem,
    )
    assert after.client_key_pem != before.client_key_pem
    (cert,) = certificates.parse_certs(after.client_cert_pem)
    assert private_keys.is_key_of(private_keys.parse_key(after.client_key_pem.reveal()), cert)
    assert certificates.subject_of(cert) == certificates.subject_of(certificates.parse_certs(before.client_cert_pem)[0])


def test_what_is_not_there_or_signed_elsewhere_is_left(node: FakeHost) -> None:
    node.remove(PATHS.pki / "ca.key")
    node.remove(PATHS.kubeconfig("super-admin.conf"))
    node.changes.clear()
    assert renewal.renew(node, PATHS, row=renewal.ROWS["apiserver"], cluster=CLUSTER) == "external"
    assert renewal.renew(node, PATHS, row=renewal.ROWS["super-admin.conf"], cluster=CLUSTER) == "missing"
    assert node.changes == []
    assert renewal.read_expiry(node, PATHS, row=renewal.ROWS["apiserver"]).is_external
    assert not renewal.read_expiry(node, PATHS, row=renewal.ROWS["etcd-server"]).is_external


def test_external_etcd_has_no_rows() -> None:
    assert all(row.ca != "etcd-ca" for row in renewal.wanted_rows(EXTERNAL))
    assert renewal.wanted_cas(EXTERNAL) == ("ca", "front-proxy-ca")
    with pytest.raises(UsageError) as caught:
        renewal.find_row("etcd-server", EXTERNAL)
    assert caught.value.code == "unknown-certificate"


def test_requests_have_keys_and_no_certificates() -> None:
    host, config = FakeHost(), make_config()
    paths = Paths(pki=Path("/csr/pki"), kubeconfigs=Path("/csr"))
    names = renewal.write_cert_requests(host, paths, config=config)
    assert len(names) == 7
    request = x509.load_pem_x509_csr(host.files["/csr/pki/apiserver.csr"])
    (sans,) = (item.value for item in request.extensions if isinstance(item.value, x509.SubjectAlternativeName))
    assert set(cert_specs.apiserver_sans(config).dns) == set(sans.get_values_for_type(x509.DNSName))
    assert host.modes["/csr/pki/apiserver.key"] == 0o600 and "/csr/pki/apiserver.crt" not in host.files
    renewal.write_kubeconfig_requests(host, paths, config=config, release=RELEASES[35])
    document = yaml.safe_load(host.files["/csr/kubelet.conf"])
    assert list(document["users"][0]["user"]) == ["client-key-data"]
    assert list(document["clusters"][0]["cluster"]) == ["server"]
    asked = x509.load_pem_x509_csr(host.files["/csr/kubelet.conf.csr"]).subject.rfc4514_string()
    assert "CN=system:node:cp1" in asked and "O=system:nodes" in asked


def test_a_key_is_never_replaced_by_a_request() -> None:
    host = FakeHost(files={"/etc/kubernetes/pki/etcd/peer.key": b"mine"})
    with pytest.raises(HostError) as caught:
        renewal.write_cert_requests(host, PATHS, config=make_config())
    assert caught.value.code == "key-in-the-way" and host.changes == []


# ---- kubeadm's tables


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "<invalid>"), (0, "0s"), (119, "119s"), (300, "5m"), (330, "5m30s"), (7200, "120m"), (4 * 3600 + 60, "4h1m"),
        (30 * 3600, "30h"), (3 * 86400, "3d"), (364 * 86400 + 5, "364d"), (3 * 365 * 86400, "3y"), (3649 * 86400, "9y"),
    ],
)  # fmt: skip
def test_spans_are_told_as_kubectl_does(seconds: int, shown: str) -> None:
    assert commands_certs.describe_span(seconds) == shown


def test_the_tables_are_kubeadm_s() -> None:
    now = datetime.datetime(2026, 11, 26, 1, 18, tzinfo=datetime.timezone.utc)
    ends = now + datetime.timedelta(days=364, hours=23)
    certs = [renewal.Expiry("admin.conf"), renewal.Expiry("apiserver", ends, "ca")]
    text = commands_certs.render_expiries(certs, [renewal.Expiry("ca", ends, is_external=True)], now=now)
    assert text.splitlines() == [
        "CERTIFICATE            EXPIRES                  RESIDUAL TIME   CERTIFICATE AUTHORITY   EXTERNALLY MANAGED",
        "!MISSING! admin.conf                                                                    ",
        "apiserver              Nov 26, 2027 00:18 UTC   364d            ca                      no      ",
        "",
        "CERTIFICATE AUTHORITY   EXPIRES                  RESIDUAL TIME   EXTERNALLY MANAGED",
        "ca                      Nov 26, 2027 00:18 UTC   364d            yes     ",
    ]


def test_what_leads_to_the_authority_s_root_stays_behind_the_certificate(node: FakeHost) -> None:
    """An authority that another one has signed, which clients that know the root alone have to be shown."""
    root_key = private_keys.generate_key("ECDSA-P256")
    validity = certificates.plan_validity(node.now(), 10**8)
    root = certificates.issue_ca_cert("root", root_key, validity=validity)
    ca = pki.read_ca(node, PATHS)
    assert ca.key is not None
    builder = x509.CertificateBuilder(root.subject, ca.cert.subject, ca.cert.public_key(), 7)
    builder = builder.not_valid_before(validity.not_before).not_valid_after(validity.not_after)
    for extension in ca.cert.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    pem = certificates.cert_to_pem(builder.sign(root_key, SHA256()))
    node.files[str(PATHS.pki / "ca.crt")] = pem.encode()
    path = str(PATHS.pki / "apiserver.crt")
    other = certificates.cert_to_pem(read(node, "front-proxy-ca"))
    node.files[path] += f"{pem}{certificates.cert_to_pem(root)}{other}".encode()
    renewal.renew(node, PATHS, row=renewal.ROWS["apiserver"], cluster=CLUSTER)
    after = node.files[path].decode()
    assert after.partition("-----END CERTIFICATE-----\n")[2] == f"{pem}{certificates.cert_to_pem(root)}", (
        "not another's"
    )
    pki.reissue_cert(node, PATHS, config=make_config(), name="apiserver", drops=())
    assert node.files[path].decode().endswith(f"{pem}{certificates.cert_to_pem(root)}")
    node.clock += datetime.timedelta(days=1200)
    assert certificates.chain_to_pem(
        read(node, "apiserver"), following=pki.read_certs(node, Path(path))[1:], now=node.now()
    ) == certificates.cert_to_pem(read(node, "apiserver")), "what has expired leads nowhere"
