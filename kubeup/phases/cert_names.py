"""The phases of `kb certs add-san`: names and addresses in the API server's certificate, added or taken out, with its key kept.

The names are stored in the cluster's configuration, as apiServer.certSANs, so that a node that joins later has them, and kubeadm's own
renewals keep them. Each control plane issues its own certificate: the same command there finds the names stored, and does that part. With
kubeadm, all of this is done by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Optional

from kubeup.addresses import host_of
from kubeup.engine.items import Issued
from kubeup.engine.plan import Ground, Plan
from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.frozen_values import frozen_by_name
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Tls, Unreachable
from kubeup.phases import certs, served_cert, stored_cluster
from kubeup.trust import Anchors

with lazily:
    from kubeup.cluster import api, objects
    from kubeup.node import cert_specs, certificates, former_certs, kubeconfig, pki

COMMAND = "kb certs add-san"
SYSTEM = "kube-system"
CONFS = ("admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf", "kubelet.conf")
_ANY_LABEL = "kb-probe"
"""What stands for the `*` of a wildcard in a handshake."""


@frozen_by_name
class NamesRun(Run):
    """adds, drops: the names that the certificate is to have, and not to have, in lower case; none is in both.

    changed, before: the names of the last change that began on this node and was not undone, and those of them that were stored before
    it; None if there is none."""

    adds: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    changed: Optional[tuple[str, ...]] = None
    before: Optional[tuple[str, ...]] = None


# ---- preflight


def check_names(ctx: NamesRun) -> Outputs:
    """Check, before anything is changed, that the certificate can be issued here, and that nobody needs a name that is to go.

    Raises UsageError (name-needed), HostError: apiserver-certificate-elsewhere, external-ca-signs, and what pki.read_ca raises.
    """
    _refuse_needed(ctx)
    spec = cert_specs.CERTS["apiserver"]
    ca = pki.read_ca(ctx.host, ctx.paths, name=spec.signer)
    trouble = _find_trouble(ctx, ctx)
    if ca.key is None and trouble:
        raise HostError(
            "the API server's certificate cannot be issued on this node",
            cause=f"{trouble}, and its CA {ca.path} signs elsewhere (there is no key beside it); nothing was changed",
            remedy="have your CA sign a request with these names: put them into apiServer.certSANs of a file, then: "
            "kb certs generate-csr --config FILE --cert-dir /root/csr --kubeconfig-dir /root/csr",
            code="external-ca-signs",
        )
    # in the state from here on, so that an interrupted run can be undone
    return Results(before_cert_sans=ctx.before, changed_cert_sans=ctx.changed)


def _refuse_needed(ctx: NamesRun) -> None:
    needed = find_needed(ctx) if ctx.drops else {}
    kept = cert_specs.apiserver_sans(ctx.config)
    for name in ctx.drops:
        uncovered = [one for one in needed if cert_specs.make_sans((name,)).covers(one) and not kept.covers(one)]
        if name in needed or uncovered:
            one = name if name in needed else uncovered[0]
            raise UsageError(
                f"{name} stays in the API server's certificate",
                cause=needed[one] if one == name else f"it covers {one}: {needed[one]}",
                remedy="leave it out; the names that the certificate has: openssl x509 -noout -ext subjectAltName -in "
                f"{cert_specs.CERTS['apiserver'].cert_path(ctx.paths)}",
                code="name-needed",
            )


def find_needed(ctx: NamesRun) -> Mapping[str, str]:
    """name -> why the API servers are called by it, in words."""
    found: dict[str, str] = {}

    def need(names: Iterable[str], why: str) -> None:
        for name in normalize(names):
            found.setdefault(name, why)

    cluster = ctx.config.cluster
    need(
        [host_of(cluster.control_plane_endpoint)] if cluster.control_plane_endpoint else [],
        "it is the cluster's endpoint",
    )
    need([ctx.config.node.name], "it is the name of this node")
    need([ctx.config.local_api_endpoint.advertise_address], "it is the address of this node")
    own = cert_specs.apiserver_sans(with_names(ctx, ()).config)
    need((*own.dns, *own.ips), "pods call the API server by it")
    need(map(host_of, objects.read_api_servers(ctx.api)), "it is the address of a control plane")
    for name in CONFS:
        path = ctx.paths.kubeconfig(name)
        if ctx.host.exists(path):
            need(_host_in(ctx.host.read_text(path), str(path)), f"{path} calls the API server by it")
    for space, name, key in (("kube-public", "cluster-info", "kubeconfig"), (SYSTEM, "kube-proxy", "kubeconfig.conf")):
        stored = ctx.api.get(api.path_of("ConfigMap", name, namespace=space)) or {}
        text = str((stored.get("data") or {}).get(key, ""))
        need(_host_in(text, f"in ConfigMap {name}"), f"ConfigMap {space}/{name} has clients call the API server by it")
    return found


def _host_in(text: str, source: str) -> list[str]:
    server = str(kubeconfig.parse_kubeconfig(text, source=source).server) if text else ""
    return [host_of(server.partition("://")[2].partition("/")[0])] if server else []


def normalize(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a certificate holds them: lower case, addresses in Go's form, without duplicates."""
    found = (cert_specs.make_sans((name.lower(),)) for name in names)
    return tuple(dict.fromkeys(name for one in found for name in (*one.dns, *one.ips)))


# ---- certs/apiserver


def plan_apiserver_cert(run: NamesRun) -> Plan:
    """This node's serving certificate with the names, and without those that go, for the same key; and wait until it is served.

    Raises when applied: HostError from the files, ClusterError (apiserver-keeps-certificate).
    """
    cert = certs.issued_cert(run, "apiserver")

    def judge(ground: Ground) -> str:
        is_live = run.host.is_live
        return _find_trouble(run, ground) or (
            "" if not is_live or _is_served(run) else "the API server does not show it"
        )

    def issue(ground: Ground) -> None:
        if _find_trouble(run, ground):
            former_certs.keep_former(ground.host, run.paths, files=cert.files)
            pki.reissue_cert(ground.host, run.paths, config=run.config, name="apiserver", drops=run.drops)
        if run.host.is_live:
            told = " and ".join(filter(None, (_say("with", run.adds), _say("without", run.drops))))
            served_cert.wait_until_served(run, partial(_is_served, run), names=told, command=say_command(run))

    spec = {**cert.spec, "without": ", ".join(run.drops)}
    return Plan(Issued(cert.title, cert.files, spec, judge=judge, issue=issue))


def _find_trouble(run: NamesRun, ground: Ground) -> str:
    """Why the certificate on disk has to be issued again, in words; "" if it is as wanted."""
    path = cert_specs.CERTS["apiserver"].cert_path(run.paths)
    reason = certs.reason_of(
        partial(pki.probe_cert, ground.host, run.paths, config=with_names(run, ()).config, name="apiserver")
    )
    if reason:
        return reason
    return _differs(run, certificates.sans_of(pki.read_certs(ground.host, path)[0]), str(path))


def _differs(run: NamesRun, found: cert_specs.Sans, where: str) -> str:  # noqa: PLR0917
    names = {*found.dns, *found.ips}
    missing = [name for name in run.adds if name not in names]
    extra = [name for name in run.drops if name in names]
    told = [_say("lacks", missing), _say("still has", extra)]
    return f"{where} {' and '.join(filter(None, told))}" if missing or extra else ""


def _say(verb: str, names: Sequence[str]) -> str:
    return f"{verb} {', '.join(names)}" if names else ""


def _is_served(run: NamesRun) -> bool:
    found = served_cert.read_served_names(run, served_cert.own_server(run))
    return found is not None and not _differs(run, found, "it")


# ---- upload-config


def plan_stored(run: NamesRun) -> Plan:
    """apiServer.certSANs in ConfigMap kubeadm-config. A configuration file of the user's own is the user's to change."""
    return stored_cluster.plan_stored(run, lambda document: with_cert_sans(document, adds=run.adds, drops=run.drops))


def with_cert_sans(document: Mapping[str, Any], *, adds: Sequence[str], drops: Sequence[str]) -> dict[str, Any]:
    """A ClusterConfiguration document with these names in apiServer.certSANs, and without those; the others stay as they are written."""
    server = dict(document.get("apiServer") or {})
    former = [str(name) for name in server.get("certSANs") or ()]
    held = set(normalize(former))
    wanted = [name for name in former if not set(normalize([name])) & set(drops)]
    wanted += [name for name in adds if name not in held]
    if wanted == former:
        return dict(document)
    server["certSANs"] = wanted
    if not wanted:
        del server["certSANs"]
    return {**document, "apiServer": server}


def with_names(run: NamesRun, names: Sequence[str]) -> NamesRun:
    """The run for a cluster with these certSANs."""
    cluster = run.config.cluster
    server = dataclasses.replace(cluster.api_server, cert_sans=tuple(names))
    wanted = dataclasses.replace(cluster, api_server=server)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, cluster=wanted))


# ---- verify


def verify_names(ctx: NamesRun) -> Outputs:
    """Shake hands with this node's API server under each name, as a client does, and list the control planes that are left.

    Raises ClusterError: name-not-served, apiserver-unreachable."""
    own = served_cert.own_server(ctx)
    for name in ctx.adds:
        _shake_hands(ctx, own, name)
    found = served_cert.read_served_names(ctx, own)
    if found is not None and _differs(ctx, found, own):
        raise _not_served(own, cause=_differs(ctx, found, own))
    return Results(remaining=[f"on the control plane at {server}: {say_command(ctx)}" for server in find_lagging(ctx)])


def _shake_hands(ctx: NamesRun, server: str, name: str) -> None:  # noqa: PLR0917
    anchors = Anchors.given(ctx.host.read_text(cert_specs.CERTS["ca"].cert_path(ctx.paths)))
    tls = Tls(anchors, server_name=name.replace("*", _ANY_LABEL))
    try:
        ctx.host.http_get(f"https://{server}/version", tls=tls, headers={"Connection": "close"}, timeout_s=10)
    except Unreachable as error:
        if error.reason == "tls":
            raise _not_served(server, cause=f"a client that calls it {name} is told: {error.cause}") from error
        raise ClusterError(
            f"the API server at {server} does not answer",
            cause=error.cause,
            remedy=f"see what is there: curl -vk https://{server}/version",
            code="apiserver-unreachable",
        ) from error


def _not_served(server: str, *, cause: str) -> ClusterError:
    return ClusterError(
        f"the API server at {server} does not serve the certificate that was issued",
        cause=cause,
        remedy=f"see what it serves: openssl s_client -connect {server} </dev/null | openssl x509 -noout -ext subjectAltName",
        code="name-not-served",
    )


def find_lagging(ctx: NamesRun) -> list[str]:
    """`host:port` of the other API servers that do not answer, or whose certificate is not as wanted."""
    own = served_cert.own_server(ctx)
    others = [server for server in objects.read_api_servers(ctx.api) if server != own]
    found = {server: served_cert.read_served_names(ctx, server) for server in others}
    return [server for server, names in found.items() if names is None or _differs(ctx, names, server)]


def say_command(ctx: NamesRun) -> str:
    """The command that does the same on another control plane."""
    words = [" ".join((COMMAND, *_quote(ctx.adds)))] if ctx.adds else []
    words += [" ".join((COMMAND, "--remove", *_quote(ctx.drops)))] if ctx.drops else []
    return "; ".join(words)


def _quote(names: Sequence[str]) -> list[str]:
    return [f"'{name}'" if "*" in name else name for name in names]


CHECKS = Act(do=check_names, live="node", always=True)
HANDSHAKE = Act(do=verify_names, live="cluster", always=True)
