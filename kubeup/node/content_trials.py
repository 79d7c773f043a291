"""Tries the content of the files that a component reads: certificates against keys, kubeconfigs, kinds of configuration files.

A file that is missing, or not on the host, is left to file_trials. No message quotes a file. Sources: the components' own loaders,
named at each rule (paths in k8s.io/kubernetes 1.35).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Optional

from kubeup.errors import HostError, shown
from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.node import certificates, kubeconfig, pki, private_keys
from kubeup.node.tried_pod import Trial, TriedPod
from kubeup.trouble import Trouble
from kubeup.yaml_files import YAMLError, load_yaml

CERTIFICATES, CONFIGURATION = "certificates", "configuration files"

_MAX_BYTES = 4 << 20


@frozen
class _Pair:
    """Two flags that name a certificate and its key, and what the certificate is used for: server, client, or "" for a CA."""

    cert: str
    key: str
    usages: tuple[str, ...]


_SERVING = _Pair("tls-cert-file", "tls-private-key-file", ("server",))
_SIGNERS = ("", "-kube-apiserver-client", "-kubelet-client", "-kubelet-serving", "-legacy-unknown")
_PAIRS: Mapping[str, tuple[_Pair, ...]] = {
    "etcd": (
        _Pair("cert-file", "key-file", ("server",)),
        _Pair("client-cert-file", "client-key-file", ("client",)),
        _Pair("peer-cert-file", "peer-key-file", ("server", "client")),
        _Pair("peer-client-cert-file", "peer-client-key-file", ("client",)),
    ),
    "kube-apiserver": (
        _SERVING,
        _Pair("etcd-certfile", "etcd-keyfile", ("client",)),
        _Pair("kubelet-client-certificate", "kubelet-client-key", ("client",)),
        _Pair("proxy-client-cert-file", "proxy-client-key-file", ("client",)),
    ),
    "kube-controller-manager": (
        _SERVING,
        *(_Pair(f"cluster-signing{name}-cert-file", f"cluster-signing{name}-key-file", ()) for name in _SIGNERS),
    ),
    "kube-scheduler": (_SERVING,),
}
_CA_FLAGS = ("ca-file", "cafile", "kubelet-certificate-authority", "cacert")
_PRIVATE_KEY_FLAGS = ("service-account-signing-key-file", "service-account-private-key-file")
_KUBECONFIG_FLAGS = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")


@frozen
class _Files:
    """Reads the files that the container sees. Of what it does not find, file_trials tells."""

    host: Host
    pod: TriedPod

    def read(self, path: str) -> Optional[str]:
        """The text at a path of the container; None if it cannot be read here."""
        place = self.pod.follow(self.host, path)[1] if path.startswith("/") else None
        if place is None or place.host_path is None:
            return None
        found = self.host.stat(self.host.real_path(place.host_path))
        if found is None or found.is_dir or found.size > _MAX_BYTES:
            return None
        try:
            return self.host.read_text(place.host_path)
        except (HostError, UnicodeDecodeError):
            return None


# ---- certificates, keys, kubeconfigs


def try_certificates(host: Host, pod: TriedPod) -> Iterator[Trial]:
    """Whether every certificate fits its key and is valid now, every CA file and key can be read, and every kubeconfig is whole."""
    files = _Files(host, pod)
    troubles = [
        *_find_pair_troubles(files),
        *_find_ca_troubles(files),
        *_find_key_troubles(files),
        *_find_kubeconfig_troubles(files),
    ]
    yield from (Trial(pod.component, CERTIFICATES, trouble) for trouble in troubles)
    if not troubles:
        yield Trial(pod.component, CERTIFICATES)


def _find_pair_troubles(files: _Files) -> Iterator[Trouble]:
    pod = files.pod
    for pair in _PAIRS.get(pod.component, ()):
        cert_path, key_path = pod.flag(pair.cert), pod.flag(pair.key)
        cert, key = files.read(cert_path), files.read(key_path)
        if bool(cert_path) != bool(key_path):
            given, lacking = (pair.cert, pair.key) if cert_path else (pair.key, pair.cert)
            cause, remedy = f"--{given} is given without --{lacking}", f"give --{lacking} too"
        elif cert is None or key is None:
            continue
        else:
            cause = _judge_pair(pair, cert, key=key, files=files)
            remedy = f"put a valid pair there: {shown(cert_path)} and {shown(key_path)}"
            if " is valid only from " in cause:  # rather this machine's clock is behind
                now = f"{files.host.now():%Y-%m-%d %H:%M} UTC"
                remedy = f"set this machine's clock, which says {now}, if it is wrong: timedatectl; otherwise {remedy}"
        if cause:
            yield Trouble(f"{pod.component} cannot use the certificate of --{pair.cert}", cause, remedy)


def _judge_pair(pair: _Pair, cert: str, *, key: str, files: _Files) -> str:
    """Why the pair would fail; "" if it would not."""
    if pair.cert.startswith("cluster-signing"):  # pkg/controller/certificates/signer/ca_provider.go
        try:
            count = len(certificates.parse_certs(cert))
        except ValueError as error:
            return str(error)
        if count != 1:
            return f"it holds {count} certificates, and must hold one"
    usages = pair.usages or ("",)
    if pair.cert == "peer-cert-file" and files.pod.flag("peer-client-cert-auth") != "true":
        usages = ("server",)  # no member asks for it as a client's
    causes = (certificates.describe_pair(cert, key, files.host.now(), usage=one) for one in usages)
    return next((cause for cause in causes if cause), "")


def _find_ca_troubles(files: _Files) -> Iterator[Trouble]:
    for name, path in dict.fromkeys(files.pod.flags):
        text = files.read(path) if name.endswith(_CA_FLAGS) else None
        if text is None:
            continue
        try:
            certificates.parse_certs(text)
        except ValueError as error:
            what = f"{files.pod.component} cannot use the CA of --{name}"
            yield Trouble(what, str(error), f"put a whole copy at {shown(path)}")


def _find_key_troubles(files: _Files) -> Iterator[Trouble]:
    pod = files.pod
    for name in _PRIVATE_KEY_FLAGS:
        text = files.read(pod.flag(name))
        if text is None:
            continue
        try:
            key = private_keys.parse_key(text)
        except ValueError as error:
            what = f"{pod.component} cannot use the key of --{name}"
            yield Trouble(what, str(error), f"put a whole copy at {shown(pod.flag(name))}")
            continue
        publics = [files.read(path) for flag, path in pod.flags if flag == "service-account-key-file"]
        if publics and None not in publics and not any(pki.is_public_half_in(pem or "", key) for pem in publics):
            yield Trouble(
                f"{pod.component} would not accept the tokens that it signs",
                f"no --service-account-key-file holds the public half of {shown(pod.flag(name))}",
                f"write it: openssl pkey -in {shown(pod.flag(name))} -pubout",
            )


def _find_kubeconfig_troubles(files: _Files) -> Iterator[Trouble]:
    paths = dict.fromkeys(path for name, path in files.pod.flags if name in _KUBECONFIG_FLAGS)
    for path in paths:
        text = files.read(path)
        if text is None:
            continue
        what = f"{files.pod.component} cannot use the kubeconfig {shown(path)}"
        try:
            found = kubeconfig.parse_kubeconfig(text, source=path)
        except HostError as error:
            yield Trouble(what, error.cause, error.remedy)
            continue
        cause = _judge_client(found, files, folder=posixpath.dirname(path))
        if cause:
            yield Trouble(what, cause, "put a whole copy there")


def _judge_client(found: kubeconfig.Kubeconfig, files: _Files, *, folder: str) -> str:
    """Why the API server would not accept the client certificate of a kubeconfig; "" if it would, or there is none."""

    def read(path: str) -> str:
        return files.read(posixpath.normpath(posixpath.join(folder, path))) or ""

    cert = read(found.client_cert_file) or found.client_cert_pem
    key = read(found.client_key_file) or found.client_key_pem.reveal()
    if not cert or not key:
        return ""
    cause = certificates.describe_pair(cert, key, files.host.now())
    return f"its client certificate: {cause}" if cause else ""


# ---- kinds of configuration files

_APISERVER = ("apiserver.config.k8s.io", "apiserver.k8s.io")
_KINDS: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "kube-scheduler": {"config": ("KubeSchedulerConfiguration", ("kubescheduler.config.k8s.io",))},
    "kube-controller-manager": {
        "leader-migration-config": ("LeaderMigrationConfiguration", ("controllermanager.config.k8s.io",)),
    },
    "kube-apiserver": {
        "admission-control-config-file": ("AdmissionConfiguration", _APISERVER),
        "audit-policy-file": ("Policy", ("audit.k8s.io",)),
        "authentication-config": ("AuthenticationConfiguration", _APISERVER[:1]),
        "authorization-config": ("AuthorizationConfiguration", _APISERVER[:1]),
        "egress-selector-config-file": ("EgressSelectorConfiguration", _APISERVER[1:]),
        "encryption-provider-config": ("EncryptionConfiguration", _APISERVER[:1]),
        "tracing-config-file": ("TracingConfiguration", _APISERVER[:1]),
    },
}
"""Component -> flag -> kind and the groups that have it (staging/src/k8s.io/apiserver/pkg/apis/*/register.go and the like). The version
is the program's to judge."""


def try_configuration(host: Host, pod: TriedPod) -> Iterator[Trial]:
    """Whether every configuration file is YAML of the kind that its flag wants."""
    files = _Files(host, pod)
    found = []
    for name, (kind, groups) in _KINDS.get(pod.component, {}).items():
        text = files.read(pod.flag(name))
        cause = "" if text is None else _judge_document(text, kind, groups=groups)
        if cause:
            what = f"{pod.component} cannot read the file of --{name}, {shown(pod.flag(name))}"
            remedy = f"correct it: it needs kind: {kind} and an apiVersion of {groups[0]}"
            found.append(Trial(pod.component, CONFIGURATION, Trouble(what, cause, remedy)))
    yield from found
    if not found:
        yield Trial(pod.component, CONFIGURATION)


def _judge_document(text: str, kind: str, *, groups: tuple[str, ...]) -> str:
    try:
        document = load_yaml(text)
    except YAMLError as error:
        return f"it is not YAML ({error})"
    if not isinstance(document, dict):
        return "it holds no mapping of fields to values"
    given, version = document.get("kind"), document.get("apiVersion")
    if (given, version) == ("EncryptionConfig", "v1") and kind == "EncryptionConfiguration":
        return ""  # its name before 1.13, which the API server still reads
    if given != kind:
        return f"its kind is {shown(given)}" if isinstance(given, str) else "it has no kind"
    if not isinstance(version, str) or version.partition("/")[0] not in groups:
        return f"its apiVersion is {shown(version)}" if isinstance(version, str) else "it has no apiVersion"
    if kind == "Policy" and not document.get("rules"):  # apiserver/pkg/audit/policy/reader.go
        return "it has no rules"
    return ""
