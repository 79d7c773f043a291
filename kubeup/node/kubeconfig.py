"""Kubeconfig files: the five of a control plane node, those for users, and parsing.

This module contains the table KUBECONFIGS, and the rules for files that already exist. It knows no phase, and does not talk to the
cluster. Mirrors cmd/kubeadm/app/phases/kubeconfig/kubeconfig.go and cmd/kubeadm/app/util/kubeconfig/kubeconfig.go.

Parsing does not import cryptography, which commands that only call the API server do not need.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from kubeup import yaml_files
from kubeup.addresses import host_of, join_host_port, port_of, split_host_port
from kubeup.config.types import NodeConfig
from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.machine.host import Host
from kubeup.node import client_config
from kubeup.paths import Paths
from kubeup.pem import describe_lack, select_certs, select_private_keys
from kubeup.releases import Release
from kubeup.secret import Secret

with lazily:
    from kubeup.node import cert_specs, certificates, pki, private_keys, verify

if TYPE_CHECKING:
    import datetime

    from cryptography import x509

NO_SECRET = Secret("")


# ---- the files of a control plane node


@frozen
class KubeconfigSpec:
    """One kubeconfig file: its user, and the server that it uses."""

    name: str
    """The phase's name."""
    user: str
    """User name and CN; `{node}` is replaced by the node's name."""
    organizations: tuple[str, ...] = ()
    is_local: bool = False
    """Uses the API server of its own node; otherwise the control plane endpoint."""

    @property
    def file(self) -> str:
        return f"{self.name}.conf"


KUBECONFIGS: dict[str, KubeconfigSpec] = {
    spec.name: spec
    for spec in (
        KubeconfigSpec("admin", "kubernetes-admin", ("kubeadm:cluster-admins",)),
        KubeconfigSpec("super-admin", "kubernetes-super-admin", ("system:masters",)),
        KubeconfigSpec("kubelet", "system:node:{node}", ("system:nodes",), is_local=True),
        KubeconfigSpec("controller-manager", "system:kube-controller-manager", is_local=True),
        KubeconfigSpec("scheduler", "system:kube-scheduler", is_local=True),
    )
}
"""By phase name, in the order in which they are created."""


def local_url(config: NodeConfig) -> str:
    """The URL of this node's API server."""
    endpoint = config.local_api_endpoint
    return _url(endpoint.advertise_address, endpoint.bind_port)


def control_plane_url(config: NodeConfig) -> str:
    """The URL of the control plane endpoint; without one, of this node's API server."""
    if not config.cluster.control_plane_endpoint:
        return local_url(config)
    endpoint = config.cluster.control_plane_endpoint
    return _url(host_of(endpoint), port_of(endpoint, config.local_api_endpoint.bind_port))


def server_url(name: str, config: NodeConfig, *, release: Release) -> str:
    """The server of the kubeconfig `name`. With the feature gate ControlPlaneKubeletLocalMode, a control plane's kubelet uses its own
    API server."""
    is_local = KUBECONFIGS[name].is_local
    if name == "kubelet":
        gate = release.control_plane_kubelet_local_mode
        is_local = config.cluster.feature_gates.get("ControlPlaneKubeletLocalMode", gate)
    return local_url(config) if is_local else control_plane_url(config)


def _url(host: str, port: int) -> str:
    return f"https://{join_host_port(host, port)}"


# ---- writing


def render_kubeconfig(
    *,
    server: str,
    ca_pem: str,
    user: str,
    cluster_name: str = "kubernetes",
    client_cert_pem: str = "",
    client_key_pem: Secret = NO_SECRET,
    token: Secret = NO_SECRET,
    context: str = "",
    tls_server_name: str = "",
    proxy_url: str = "",
) -> str:
    """A kubeconfig with one cluster, user and context. The user has a certificate and key, or a token."""
    way = {name: text for name, text in (("proxy-url", proxy_url), ("tls-server-name", tls_server_name)) if text}
    who = {"token": token.reveal()} if token else _render_client(client_cert_pem, client_key_pem)
    context = context or f"{user}@{cluster_name}"
    return yaml_files.dump_yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": cluster_name,
                    "cluster": {"certificate-authority-data": _base64(ca_pem), "server": server, **way},
                }
            ],
            "contexts": [{"name": context, "context": {"cluster": cluster_name, "user": user}}],
            "current-context": context,
            "users": [{"name": user, "user": who}],
        }
    )


def render_without_cert(*, server: str, user: str, cluster_name: str, client_key_pem: Secret) -> str:
    """A kubeconfig with the user's key, but still without the user's certificate and the cluster's CA."""
    document = yaml_files.load_yaml(
        render_kubeconfig(server=server, ca_pem="", user=user, cluster_name=cluster_name, client_key_pem=client_key_pem)
    )
    del document["clusters"][0]["cluster"]["certificate-authority-data"]
    del document["users"][0]["user"]["client-certificate-data"]
    return yaml_files.dump_yaml(document)


def _render_client(cert_pem: str, key_pem: Secret) -> dict[str, str]:
    return {"client-certificate-data": _base64(cert_pem), "client-key-data": _base64(key_pem.reveal())}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# ---- parsing


_MAX_BYTES = 1 << 20


@frozen
class Kubeconfig:
    """The current context of a kubeconfig; in one without contexts (cluster-info), the cluster without a name.

    Each PEM text holds only certificates, or only keys. If the kubeconfig refers to another file instead of containing the data,
    parse_kubeconfig stores the path in `*_file`, and read_kubeconfig reads the file.
    """

    server: str
    cluster_name: str = ""
    user: str = ""
    context: str = ""
    ca_pem: str = ""
    client_cert_pem: str = ""
    client_key_pem: Secret = NO_SECRET
    token: Secret = NO_SECRET
    tls_server_name: str = ""
    proxy_url: str = ""
    insecure_skip_tls_verify: bool = False
    plugin: Optional[Mapping[str, Any]] = None
    """The user's `exec`: a credential plugin (credential_plugin.py)."""
    unsupported: tuple[str, ...] = ()
    """Features that client-go supports and kb does not, as written in the file."""
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    token_file: str = ""

    @property
    def has_credentials(self) -> bool:
        return bool(self.token or (self.client_cert_pem and self.client_key_pem))


def parse_kubeconfig(text: str, *, source: str) -> Kubeconfig:
    """The current context of a kubeconfig. `source` names it in errors. Raises HostError (kubeconfig-unreadable) if client-go would
    reject it."""
    document = _load(text, source)
    context_name = document.get("current-context") or ""
    if not context_name and not any(not _text(entry, "name") for entry in _entries(document, "clusters")):
        names = ", ".join(_text(entry, "name") for entry in _entries(document, "contexts"))
        raise _invalid(source, f"it has no current-context{f' (its contexts: {names})' if names else ''}")
    context = _entry(document, "contexts", name=context_name, source=source) if context_name else {}
    cluster_name, user_name = _text(context, "cluster"), _text(context, "user")
    cluster = _entry(document, "clusters", name=cluster_name, source=source)
    user = _entry(document, "users", name=user_name, source=source) if user_name else {}
    if not _text(cluster, "server"):
        raise _invalid(source, f"its cluster {cluster_name!r} has no server")
    fault = client_config.find_misuse(cluster, user)
    if fault:
        raise _invalid(source, fault)
    return Kubeconfig(
        server=_server(cluster),
        cluster_name=cluster_name,
        user=user_name,
        context=context_name,
        ca_pem=_certs(_data(cluster, "certificate-authority-data"), "certificate-authority-data", source=source),
        client_cert_pem=select_certs(_data(user, "client-certificate-data")),
        client_key_pem=Secret(select_private_keys(_data(user, "client-key-data"))),
        token=Secret(_text(user, "token")),
        tls_server_name=_text(cluster, "tls-server-name"),
        proxy_url=_text(cluster, "proxy-url"),
        insecure_skip_tls_verify=cluster.get("insecure-skip-tls-verify") is True,
        plugin=user.get("exec"),
        unsupported=tuple(_find_unsupported(cluster, user)),
        ca_file=_text(cluster, "certificate-authority"),
        client_cert_file=_text(user, "client-certificate"),
        client_key_file=_text(user, "client-key"),
        token_file=_text(user, "tokenFile"),
    )


def _server(cluster: Mapping[str, Any]) -> str:
    """The server's URL. Without a scheme it is https if the cluster has any TLS setting, as in client-go."""
    server = _text(cluster, "server")
    says_tls = any(cluster.get(key) for key in cluster if key.startswith(("certificate-authority", "insecure")))
    return server if "://" in server else f"https://{server}" if says_tls else f"http://{server}"


def _find_unsupported(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> Iterator[str]:
    proxy = _text(cluster, "proxy-url")
    if proxy and not proxy.startswith("http://"):
        yield f"proxy-url: {proxy.partition('://')[0]}://..."
    if user.get("auth-provider"):
        yield f"auth-provider: {{name: {_text(user['auth-provider'], 'name')}}}"
    if user.get("username") or user.get("password"):
        yield "username, password"
    if user.get("as"):
        yield f"as: {user['as']}"


def read_kubeconfig(text: str, *, host: Host, path: Path) -> Kubeconfig:
    """The current context of `text`, the content of the kubeconfig at `path`, with the content of the files that it refers to. Relative
    paths refer to its folder. Raises HostError (kubeconfig-unreadable, file-unreadable)."""
    found = parse_kubeconfig(text, source=str(path))

    def read(file: str) -> str:
        return host.read_text(_beside(path, file)) if file else ""

    token = found.token
    if found.token_file and (not token or host.exists(_beside(path, found.token_file))):
        token = Secret(read(found.token_file).strip())  # tokenFile is renewed, so it takes precedence over token
    return replace(
        found,
        ca_pem=_certs(read(found.ca_file), found.ca_file, source=str(path)) or found.ca_pem,
        client_cert_pem=select_certs(read(found.client_cert_file)) or found.client_cert_pem,
        client_key_pem=Secret(select_private_keys(read(found.client_key_file))) or found.client_key_pem,
        token=token,
    )


def _beside(path: Path, file: str) -> Path:
    """Resolve `file` relative to the folder of `path`. `..` is resolved lexically, as in Go's filepath.Join."""
    return Path(os.path.normpath(path.parent / file))


def _certs(text: str, place: str, *, source: str) -> str:
    """The CA certificates in `text`. Raises HostError (kubeconfig-unreadable) if the text is not empty and contains none."""
    found = select_certs(text)
    if text and not found:
        raise _invalid(source, f"{place}: {describe_lack(text, 'certificate')}")
    return found


def with_server(text: str, server: str, *, source: str) -> str:
    """The kubeconfig with `server` as the current cluster's server; everything else stays. If nothing changes, the text is returned as
    it is. Raises HostError (kubeconfig-unreadable)."""
    found = parse_kubeconfig(text, source=source)
    if found.server == server:
        return text
    document = _load(text, source)
    _entry(document, "clusters", name=found.cluster_name, source=source)["server"] = server
    return yaml_files.dump_yaml(document)


def with_authorities(text: str, ca_pem: str, *, source: str) -> str:
    """The kubeconfig with these authorities for the current cluster's server; everything else stays. One that names a file for them is returned
    as it is. Raises HostError (kubeconfig-unreadable)."""
    found = parse_kubeconfig(text, source=source)
    if found.ca_file or not found.ca_pem or found.ca_pem == ca_pem:
        return text
    document = _load(text, source)
    cluster = _entry(document, "clusters", name=found.cluster_name, source=source)
    cluster["certificate-authority-data"] = _base64(ca_pem)
    return yaml_files.dump_yaml(document)


def _load(text: str, source: str) -> dict[str, Any]:
    if len(text) > _MAX_BYTES:
        raise _invalid(source, f"it has more than {_MAX_BYTES} bytes")
    try:
        document = yaml_files.load_yaml(text)
    except yaml_files.YAMLError as error:
        raise _invalid(source, f"it is not YAML ({error})") from error
    if document is None:
        raise _invalid(source, "it is empty")
    fault = client_config.find_fault(document)
    if fault:
        raise _invalid(source, fault)
    found: dict[str, Any] = document
    return found


def _entries(document: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    return [entry or {} for entry in document.get(section) or []]


def _entry(document: Mapping[str, Any], section: str, *, name: str, source: str) -> dict[str, Any]:
    """The value of the entry `name`: its `cluster` in `clusters`, and so on."""
    for entry in _entries(document, section):
        if _text(entry, "name") == name:
            return entry.get(section[:-1]) or {}
    names = ", ".join(repr(_text(entry, "name")) for entry in _entries(document, section))
    raise _invalid(source, f"its {section} have no entry {name!r}{f', but {names}' if names else ''}")


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    return value if isinstance(value, str) else ""


def _data(mapping: Mapping[str, Any], key: str) -> str:
    return base64.b64decode(_text(mapping, key)).decode(errors="replace")


def _invalid(source: str, cause: str) -> HostError:
    is_own = Path(source).name in {spec.file for spec in KUBECONFIGS.values()}
    return HostError(
        f"the kubeconfig {source} cannot be used",
        cause=cause,
        remedy=f"put back a good copy, or move it away (mv {source} /root/) and kb makes a new one"
        if is_own
        else f"correct it; what kubectl makes of it: kubectl config view --kubeconfig {source}"
        if source.startswith("/")
        else "correct it",
        code="kubeconfig-unreadable",
    )


# ---- files on the node


def find_missing(host: Host, paths: Paths) -> list[str]:
    """The names of the five files that are missing."""
    return [spec.name for spec in KUBECONFIGS.values() if not host.exists(paths.kubeconfig(spec.file))]


@frozen
class Finding:
    """What has to be done about a kubeconfig file: keep it, issue it, or renew its client certificate."""

    action: str
    """keep | issue | renew"""
    reason: str
    server: str = ""
    """The server in an existing file."""


def probe_kubeconfig(host: Host, paths: Paths, name: str) -> Finding:  # noqa: PLR0917
    """What has to be done about the file of `name`.

    Raises HostError if the existing file cannot be used: kubeconfig-unreadable, kubeconfig-other-ca, key-mismatch,
    certificate-expired, external-ca-incomplete, and the errors of pki.read_ca.
    """
    path = paths.kubeconfig(KUBECONFIGS[name].file)
    ca = pki.read_ca(host, paths)
    if not host.exists(path):
        if ca.key is None:
            raise _external_ca_incomplete(path, ca.path)
        return Finding("issue", "there is none yet")
    found = read_kubeconfig(host.read_text(path), host=host, path=path)
    _check_trust(found, path=path, expected=pki.read_certs(host, ca.path), ca_path=ca.path)
    if not found.client_cert_pem or found.client_cert_file:
        # a token, a plugin, or the kubelet's own certificate, which the kubelet rotates
        return Finding("keep", f"using the existing kubeconfig {path}", found.server)
    cert, expired = _check_client(found, path, now=host.now())
    _check_use(found, path=path, authorities=pki.read_certs(host, ca.path))
    if not expired:
        return Finding("keep", f"using the existing kubeconfig {path}", found.server)
    problem = f"the client certificate in {path} expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M:%S UTC}"
    if ca.key is None:
        raise HostError(
            problem,
            cause=f"the CA {ca.path} signs elsewhere (there is no key beside it), so kb cannot issue it again",
            remedy=f"have your CA issue it again and put the new kubeconfig at {path}",
            code="certificate-expired",
        )
    return Finding("renew", f"{problem}: issued again for the same key", found.server)


def _check_trust(found: Kubeconfig, *, path: Path, expected: tuple[x509.Certificate, ...], ca_path: Path) -> None:
    """Check that the file's first CA certificate is one of the node's."""
    try:
        first = certificates.parse_certs(found.ca_pem)[0]
    except ValueError:
        raise _other_ca(path, ca_path, cause="it holds no CA certificate") from None
    if first not in expected:
        raise _other_ca(path, ca_path, cause=f"it trusts another CA ({first.subject.rfc4514_string()}) than {ca_path}")


def _check_client(found: Kubeconfig, path: Path, *, now: datetime.datetime) -> tuple[x509.Certificate, bool]:
    """The client certificate in a file, and whether it has expired. Raises HostError (kubeconfig-unreadable)."""
    try:
        cert = certificates.parse_certs(found.client_cert_pem)[0]
        key = private_keys.parse_key(found.client_key_pem.reveal())
    except ValueError as error:
        raise _invalid(str(path), f"client certificate or key: {error}") from error
    if not private_keys.is_key_of(key, cert):
        raise _invalid(str(path), "its client key does not belong to its client certificate")
    return cert, certificates.is_expired(cert, now)


def _check_use(found: Kubeconfig, *, path: Path, authorities: tuple[x509.Certificate, ...]) -> None:
    """Raise HostError (kubeconfig-unreadable) if the API server would not accept the client certificate. A certificate from another CA
    is not judged, because the API server may trust that CA (--client-ca-file)."""
    chain = certificates.parse_certs(found.client_cert_pem)
    fault = verify.find_fault(chain, authorities, usage="client")
    if fault is not None and any(
        certificates.is_issued_by(cert, authority) for cert in chain for authority in authorities
    ):
        raise _invalid(str(path), f"the API server would not accept its client certificate: {fault.text}")


def is_kubeconfig_valid(host: Host, paths: Paths, *, name: str) -> bool:
    """Whether nothing has to be done about the file of `name`."""
    try:
        return probe_kubeconfig(host, paths, name).action == "keep"
    except HostError:
        return False


def find_problems(host: Host, paths: Paths) -> list[HostError]:
    """All reasons why the phases kubeconfig/* would fail, found by preflight before anything is changed. Problems of the CA itself are
    reported by pki.find_problems."""
    files = {spec.name: paths.kubeconfig(spec.file) for spec in KUBECONFIGS.values()}
    try:
        pki.check_no_orphans(host, paths, name="ca", orphans=[path for path in files.values() if host.exists(path)])
        if not host.exists(cert_specs.CERTS["ca"].cert_path(paths)):
            return []
    except HostError as error:
        return [error]
    problems = []
    for name in files if pki.is_ca_valid(host, paths, name="ca") else ():
        try:
            probe_kubeconfig(host, paths, name)
        except HostError as error:
            problems.append(error)
    return problems


def ensure_kubeconfig(
    host: Host,
    paths: Paths,
    *,
    config: NodeConfig,
    release: Release,
    name: str,
    make_key: Callable[[], private_keys.Key],
    ca_pem: str = "",
) -> Finding:
    """Keep the file of `name`, create it, or renew its expired certificate; return what was found before. An existing file keeps its
    server, because others may rely on it. ca_pem: what a new one trusts, if that is more than the CA. Raises the same errors as
    probe_kubeconfig."""
    finding = probe_kubeconfig(host, paths, name)
    path = paths.kubeconfig(KUBECONFIGS[name].file)
    if finding.action == "issue":
        text = _issue(
            host, paths, config=config, name=name, key=make_key(), server=server_url(name, config, release=release)
        )
        if ca_pem:
            text = with_authorities(text, ca_pem, source=str(path))
        host.write_file(path, text, mode=0o600)
    elif finding.action == "renew":
        text = renew_client(host, paths, path=path, seconds=config.cluster.certificate_validity_period_s)
        pki.write_keeping_mode(host, path, text=text, mode=0o600)
    return finding


def _issue(host: Host, paths: Paths, *, config: NodeConfig, name: str, key: private_keys.Key, server: str) -> str:
    spec = KUBECONFIGS[name]
    user = spec.user.format(node=config.node.name)
    ca = pki.read_ca(host, paths)
    cert = _issue_client_cert(
        certificates.Subject(user, spec.organizations, is_client=True),
        key,
        ca=ca,
        not_after=certificates.plan_validity(host.now(), config.cluster.certificate_validity_period_s).not_after,
    )
    return render_kubeconfig(
        server=server,
        ca_pem=certificates.cert_to_pem(ca.cert),
        user=user,
        cluster_name=config.cluster.cluster_name,
        client_cert_pem=certificates.cert_to_pem(cert),
        client_key_pem=private_keys.key_to_pem(key),
    )


def _issue_client_cert(
    subject: certificates.Subject, key: private_keys.Key, *, ca: certificates.Ca, not_after: datetime.datetime
) -> x509.Certificate:
    """Issue the certificate of a new kubeconfig. Its validity begins with that of its CA."""
    return certificates.issue_leaf_cert(
        subject, key, ca=ca, validity=certificates.Validity(ca.cert.not_valid_before_utc, not_after)
    )


def renew_client(
    host: Host, paths: Paths, *, path: Path, seconds: int, new_key: Optional[private_keys.Key] = None
) -> str:
    """The text of the file with a new certificate for the same subject and key, or for `new_key`. It trusts the current CA; authorities
    beside it stay, as in the middle of a rotation, when other control planes' API servers still have the former one's certificates.
    Everything else stays too."""
    text = host.read_text(path)
    found = read_kubeconfig(text, host=host, path=path)
    try:
        key = new_key or private_keys.parse_key(found.client_key_pem.reveal())
        old = certificates.parse_certs(found.client_cert_pem)[0]
    except ValueError as error:
        raise _invalid(str(path), f"client certificate or key: {error}") from error
    ca = pki.read_ca(host, paths)
    cert = certificates.issue_leaf_cert(
        certificates.subject_of(old), key, ca=ca, validity=certificates.plan_validity(host.now(), seconds)
    )
    document = _load(text, str(path))
    user = _entry(document, "users", name=found.user, source=str(path))
    user["client-certificate-data"] = _base64(certificates.cert_to_pem(cert))
    if new_key is not None:
        user["client-key-data"] = _base64(private_keys.key_to_pem(new_key).reveal())
    cluster = _entry(document, "clusters", name=found.cluster_name, source=str(path))
    if not found.ca_file and ca.cert not in certificates.parse_shown(found.ca_pem):
        cluster["certificate-authority-data"] = _base64(certificates.cert_to_pem(ca.cert))
    return yaml_files.dump_yaml(document)


def _other_ca(path: Path, ca_path: Path, *, cause: str) -> HostError:
    return HostError(
        f"the kubeconfig {path} does not trust this cluster's CA",
        cause=cause,
        remedy=f"put the CA that it belongs to at {ca_path}, or move it away (mv {path} /root/) and kb makes a new one",
        code="kubeconfig-other-ca",
    )


def _external_ca_incomplete(path: Path, ca_path: Path) -> HostError:
    return HostError(
        f"there is no {path}",
        cause=f"the CA {ca_path} signs elsewhere (there is no key beside it), so kb cannot issue it",
        remedy=f"make its client certificate with your CA and put the kubeconfig at {path}; kb certs generate-csr helps",
        code="external-ca-incomplete",
    )


# ---- kubeconfigs for users


def make_user_kubeconfig(
    host: Host,
    paths: Paths,
    *,
    config: NodeConfig,
    client_name: str,
    orgs: tuple[str, ...] = (),
    token: Union[Secret, str] = NO_SECRET,
    validity_s: Optional[int] = None,
    server: str = "",
) -> str:
    """The kubeconfig of `kb kubeconfig user`, with a new client certificate or with `token`. Writes nothing.

    `server` (HOST:PORT, or a URL) replaces the control plane endpoint; the API server's certificate must contain its name. Raises
    UsageError (server-not-in-certificate, bad-server, bad-validity-period) and HostError.
    """
    _check_validity(validity_s)
    bind_port = config.local_api_endpoint.bind_port
    url = _check_server(host, paths, server=server, default_port=bind_port) if server else control_plane_url(config)
    ca = pki.read_ca(host, paths)
    render_for_user = partial(
        render_kubeconfig,
        server=url,
        ca_pem=certificates.cert_to_pem(ca.cert),
        user=client_name,
        cluster_name=config.cluster.cluster_name,
    )
    if token:
        return render_for_user(token=token if isinstance(token, Secret) else Secret(token))
    if ca.key is None:
        raise HostError(
            f"there is no {ca.path.with_suffix('.key')}",
            cause=f"a client certificate for {client_name!r} must be signed with it",
            remedy="run this where the CA's key is kept, or give the user a token: --token",
            code="ca-key-missing",
        )
    key = private_keys.generate_key(cert_specs.key_algorithm(config.cluster))
    seconds = config.cluster.certificate_validity_period_s if validity_s is None else validity_s
    cert = _issue_client_cert(
        certificates.Subject(client_name, orgs, is_client=True),
        key,
        ca=ca,
        not_after=certificates.plan_validity(host.now(), seconds).not_after,
    )
    return render_for_user(client_cert_pem=certificates.cert_to_pem(cert), client_key_pem=private_keys.key_to_pem(key))


def _check_validity(validity_s: Optional[int]) -> None:
    if validity_s is not None and validity_s <= 0:
        raise UsageError(
            f"--validity-period {validity_s}s",
            cause="such a certificate would already have expired when it is issued",
            remedy="give a period above zero, such as 8760h",
            code="bad-validity-period",
        )


def _check_server(host: Host, paths: Paths, *, server: str, default_port: int) -> str:
    """The URL of `server`. Raises UsageError if it is malformed, or its host is not in the API server's certificate."""
    name, port = split_host_port(server.removeprefix("https://").rstrip("/")) or ("", None)
    if not name or "/" in name or not 0 <= (port or 0) <= 65535:
        raise UsageError(
            f"--server {server!r}",
            cause="a server is HOST:PORT",
            remedy="give a host name or an address, and a port: --server api.example.com:6443",
            code="bad-server",
        )
    path = cert_specs.CERTS["apiserver"].cert_path(paths)
    sans = certificates.sans_of(pki.read_certs(host, path)[0])
    if not sans.covers(name):
        raise UsageError(
            f"--server {server!r}",
            cause=f"the API server's certificate {path} does not name {name}, so every client would refuse it; "
            f"it is signed for {sans}",
            remedy=f"add {name} to apiServer.certSANs, then: kb init phase certs apiserver --config FILE",
            code="server-not-in-certificate",
        )
    return _url(name, port or default_port)
