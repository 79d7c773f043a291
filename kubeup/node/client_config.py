"""What client-go rejects in a kubeconfig, in the order of its checks: wrong types, duplicate names, and unusable combinations in one
context.

So a kubeconfig that kb accepts is also accepted by kubectl, kubeadm and the kubelet. This module works only on the parsed document;
the files that it refers to are read by kubeconfig.py. tests/components/test_kubeconfig_forms.py gives the same documents to kubectl.
Mirrors k8s.io/client-go/tools/clientcmd/api/v1/{types,conversion}.go and validation.go.
"""

from __future__ import annotations

import itertools
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from kubeup.pem import BASE64

_DATA = "data"
"""The type of a field that holds base64; line breaks in it are ignored."""
_EXTENSIONS = [{"name": str}]
_PLUGIN = {
    "command": str,
    "args": [str],
    "env": [{"name": str, "value": str}],
    "apiVersion": str,
    "installHint": str,
    "provideClusterInfo": bool,
    "interactiveMode": str,
}
_CLUSTER = {
    "server": str,
    "tls-server-name": str,
    "insecure-skip-tls-verify": bool,
    "certificate-authority": str,
    "certificate-authority-data": _DATA,
    "proxy-url": str,
    "disable-compression": bool,
    "extensions": _EXTENSIONS,
}
_USER = {
    "client-certificate": str,
    "client-certificate-data": _DATA,
    "client-key": str,
    "client-key-data": _DATA,
    "token": str,
    "tokenFile": str,
    "as": str,
    "as-uid": str,
    "as-groups": [str],
    "as-user-extra": {"*": [str]},
    "username": str,
    "password": str,
    "auth-provider": {"name": str, "config": {"*": str}},
    "exec": _PLUGIN,
    "extensions": _EXTENSIONS,
}
_CONTEXT = {"cluster": str, "user": str, "namespace": str, "extensions": _EXTENSIONS}
_CONFIG: Mapping[str, Any] = {
    "kind": str,
    "apiVersion": str,
    "preferences": {"colors": bool, "extensions": _EXTENSIONS},
    "clusters": [{"name": str, "cluster": _CLUSTER}],
    "users": [{"name": str, "user": _USER}],
    "contexts": [{"name": str, "context": _CONTEXT}],
    "current-context": str,
    "extensions": _EXTENSIONS,
}
_KINDS: Mapping[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
    _DATA: "base64",
}
PLUGIN_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def find_fault(document: Any) -> str:
    """Why client-go does not load this document; "" if it does. A missing kind or apiVersion is replaced by the default."""
    if not isinstance(document, dict):
        return f"it is {_KINDS.get(type(document), 'nothing')}, not a mapping"
    fault = next(_find_wrong_types(document, _CONFIG, place=""), "")
    if fault:
        return fault
    for field, wanted in (("kind", "Config"), ("apiVersion", "v1")):
        if (document.get(field) or wanted) != wanted:
            return f"its {field} is {str(document[field])[:60]!r}, not {wanted}"
    return next(_find_doubles(document), "")


def _find_wrong_types(value: Any, wanted: Any, *, place: str) -> Iterator[str]:
    """The fields with a wrong type. null counts as missing, and unknown fields are ignored."""
    if value is None:
        return
    if isinstance(wanted, dict) and isinstance(value, dict):
        for key, item in value.items():
            if key in wanted or "*" in wanted:
                yield from _find_wrong_types(item, wanted.get(key, wanted.get("*")), place=f"{place}.{key}".lstrip("."))
    elif isinstance(wanted, list) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _find_wrong_types(item, wanted[0], place=f"{place}[{number}]")
    elif wanted == _DATA and isinstance(value, str):
        if not BASE64.fullmatch(value.replace("\n", "").replace("\r", "")):
            yield f"its {place} is not base64"
    elif isinstance(wanted, (dict, list)) or wanted == _DATA or not isinstance(value, wanted):
        kind = wanted if isinstance(wanted, (str, type)) else type(wanted)
        hint = ": write it in quotes" if kind is str and not isinstance(value, (dict, list)) else ""
        yield f"its {place} is {_KINDS.get(type(value), 'nothing')}, not {_KINDS[kind]}{hint}"


def _find_doubles(document: Mapping[str, Any]) -> Iterator[str]:
    """The names that occur twice in a list of named entries."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _find_doubles(value)
        if key not in ("clusters", "users", "contexts", "extensions") or not isinstance(value, list):
            continue
        entries = [entry or {} for entry in value]
        names = [str(entry.get("name") or "") for entry in entries]
        yield from (f"its {key} hold the name {name!r} twice" for name in names if names.count(name) > 1)
        for entry in entries if key != "extensions" else ():
            yield from _find_doubles(entry)


def find_misuse(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> str:
    """Why no client can be made from this cluster and user; "" if one can."""
    return next(itertools.chain(_judge_cluster(cluster), _judge_user(user)), "")


def _judge_cluster(cluster: Mapping[str, Any]) -> Iterator[str]:
    server, proxy = cluster["server"], cluster.get("proxy-url")
    scheme, colon, _ = server.partition("://")
    if server != server.strip() or (colon and scheme not in ("https", "http")):
        yield f"its server is {server!r}: a URL begins with https:// and has no spaces around it"
    has_ca = bool(cluster.get("certificate-authority-data") or cluster.get("certificate-authority"))
    if cluster.get("certificate-authority-data") and cluster.get("certificate-authority"):
        yield "it names its authority twice: certificate-authority-data and certificate-authority"
    if cluster.get("insecure-skip-tls-verify") and has_ca:
        yield "it names an authority, and says insecure-skip-tls-verify"
    if proxy and urllib.parse.urlsplit(proxy).scheme not in PROXY_SCHEMES:
        yield "its proxy-url does not begin with http://, https:// or socks5://"


def _judge_user(user: Mapping[str, Any]) -> Iterator[str]:
    has_cert = bool(user.get("client-certificate-data") or user.get("client-certificate"))
    for what in ("client-certificate", "client-key") if has_cert else ():
        if user.get(what) and user.get(f"{what}-data"):
            yield f"it names {what} twice: {what}-data and {what}"
    if has_cert and not (user.get("client-key-data") or user.get("client-key")):
        yield "it has a client certificate and no client-key-data or client-key"
    if (user.get("token") or user.get("tokenFile")) and (user.get("username") or user.get("password")):
        yield "it has a token and a password, but only one of them may be given"
    if not user.get("as") and any(user.get(field) for field in ("as-uid", "as-groups", "as-user-extra")):
        yield "it has as-groups, as-uid or as-user-extra without as"
    if not (user.get("token") or "x").isprintable():
        yield "its token holds a line break or another character that cannot be sent"
    if user.get("exec") is not None:
        yield from _judge_plugin(user["exec"], has_provider=user.get("auth-provider") is not None)


def _judge_plugin(plugin: Mapping[str, Any], *, has_provider: bool) -> Iterator[str]:
    version, mode = plugin.get("apiVersion") or "", plugin.get("interactiveMode") or ""
    if has_provider:
        yield "it has exec and auth-provider"
    if not plugin.get("command"):
        yield "its exec has no command"
    if version not in PLUGIN_VERSIONS:
        yield f"its exec has the apiVersion {version!r}: it is one of {', '.join(PLUGIN_VERSIONS)}"
    if any(not (entry or {}).get("name") for entry in plugin.get("env") or ()):
        yield "its exec.env has an entry without a name"
    if mode not in ("Never", "IfAvailable", "Always") and (mode or version == PLUGIN_VERSIONS[0]):
        yield f"its exec has the interactiveMode {mode!r}: it is one of Never, IfAvailable, Always"
