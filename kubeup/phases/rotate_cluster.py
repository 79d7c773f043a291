"""What `kb certs rotate-ca cluster` rotates: the authority that API servers, kubelets and all their clients know one another by.

API servers and kubelets read the authorities of their clients again by themselves, and an API server its own certificate
(docs/adr/0017-renewed-certificates.md). Who calls an API server often reads ca.crt once: clients of before Kubernetes 1.36 never again (kk119483),
kubeconfigs embed it. So API servers show the following authority as signed by the former one until the last stage (H38), and controller-manager,
scheduler and kubelet are restarted in each. The controller-manager signs with a file of its own meanwhile: its --cluster-signing-cert-file may
hold one certificate only (H24).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from cryptography import x509

from kubeup import moments, yaml_files
from kubeup.cluster import account_tokens, authority_places, reach, request_header, rotation, tokens
from kubeup.cluster.amid_rotation import AUTHORITIES, SIGNING, SIGNING_FLAG
from kubeup.cluster.api import Api, path_of, read_identity
from kubeup.errors import ClusterError, HostError
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import watch
from kubeup.node.rotated_pairs import DROP, TRUST, USE, cross_sign, is_cross
from kubeup.phases import bootstrap_tokens, rotated_copies, rotated_kubelet, serve_mirror, static_pods_swap
from kubeup.phases import rotation as stages
from kubeup.phases.rotation import RotationRun, Work
from kubeup.trouble import Trouble

with lazily:
    from kubeup.node import cert_specs, certificates, kubeconfig, pki, private_keys, renewal, rotated_pairs
    from kubeup.swap import proof, store

SERVER, MANAGER, SCHEDULER = "kube-apiserver", "kube-controller-manager", "kube-scheduler"
FLAGS = (
    (SERVER, "client-ca-file", "ca.crt"), (SERVER, "tls-cert-file", "apiserver.crt"), (SERVER, "tls-private-key-file", "apiserver.key"),
    (SERVER, "kubelet-client-certificate", "apiserver-kubelet-client.crt"), (MANAGER, "root-ca-file", "ca.crt"),
    (MANAGER, "client-ca-file", "ca.crt"), (MANAGER, "cluster-signing-key-file", "ca.key"),
)  # fmt: skip
READ_S = 90.0
"""How long an API server may take to read its files again: a second as a rule, and it looks once a minute besides."""
PUBLISHED_S = 120.0
"""How long the controller-manager may take to write the authorities into every namespace, and to sign cluster-info: it may have to be elected."""
REACHED_S = 30.0
"""How long an API server may take to reach every kubelet."""
CALLER = "kb-authority-check"
"""Who is said to call. No such user has any rights."""


class ClusterAuthority(stages.Kind):
    word = "cluster"
    title = "the cluster's authority"
    command = "kb certs rotate-ca cluster"
    authority = AUTHORITIES[word]
    stops = (MANAGER, SCHEDULER)
    unused_when = "once every client has the new one: pods are restarted or newer, kubeconfigs issued anew"

    def check(self, ctx: RotationRun) -> None:
        """Raises HostError: rotated-files-elsewhere, ca-expired, kubeconfig-unreadable."""
        stages.check_flags(ctx, FLAGS)
        _check_signing(ctx)
        place = rotated_pairs.place_of(ctx.paths, self.authority)
        if certificates.is_expired(pki.read_certs(ctx.host, place.public)[0], ctx.host.now()):
            raise HostError(
                f"the authority {place.public} has ended",
                cause="no API server can prove itself with what it has signed, so neither nodes nor pods could learn of a new one",
                remedy=f"let the same key have another certificate first: openssl x509 -in {place.public} -signkey {place.key} -days 3650 "
                f"-out /root/ca.crt && mv /root/ca.crt {place.public}; copy it there on every other node, a worker too; then on each: kb certs recover",
                code="ca-expired",
            )
        rotated_kubelet.check(ctx)

    def prepare(self, ctx: RotationRun, work: Work) -> None:
        """The controller-manager gets its own file before ca.crt holds two: with two it would not start again. Raises KbError."""
        if work.stage == DROP:
            return
        signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
        pki.write_keeping_mode(ctx.host, ctx.paths.pki / SIGNING, text=signer.cert_pem, mode=0o644)
        text = plan_manager(ctx, SIGNING)
        if text != ctx.host.read_text(ctx.paths.manifest(MANAGER)):
            ctx.report.note(f"restarting {MANAGER}: it signs with {SIGNING} while ca.crt holds two authorities")
            static_pods_swap.restart(ctx, (MANAGER,), texts={MANAGER: text})

    def take_up(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven), HostError, and what a restart raises."""
        _renew(ctx, work)
        if work.stage != TRUST:
            serve_mirror.follow_authority(ctx)
        ctx.report.note("restarting the kubelet: its certificates and kubeconfig are read at the start alone")
        rotated_kubelet.follow(ctx, _turn(ctx, work))
        ctx.report.note(f"restarting {MANAGER} and {SCHEDULER}: kubeconfigs and ca.crt are read at the start alone")
        texts = {MANAGER: plan_manager(ctx, "ca.crt" if work.stage == DROP else SIGNING)}
        static_pods_swap.restart(ctx, (MANAGER, SCHEDULER), texts=texts)
        if work.stage == DROP:
            ctx.host.remove(ctx.paths.pki / SIGNING)
        ctx.api.become(read_identity(ctx.host, ctx.paths.admin_conf))
        if work.stage == USE:
            rotated_copies.tell_copies(ctx, former=work.former.cert, following=work.following.cert)

        what = "this node's API server does not have the authorities of this stage"
        look = functools.partial(_find_lack, ctx, proof.own_api(ctx), work=work)
        stages.wait_for_stage(ctx, look, what=what, timeout_s=READ_S, component=SERVER)

    def settle(self, ctx: RotationRun, work: Work) -> None:
        """Raises ApiRefused, Unreachable, HostError (kubeconfig-unreadable)."""
        pems = {"former": work.former.cert_pem, "following": work.following.cert_pem}
        authority_places.publish(ctx.api, **pems, stage=work.stage)
        if work.stage == DROP:
            return
        for bundle in authority_places.read_bundles(ctx.api):
            is_ours = bundle.has(work.former.cert) or bundle.has(work.following.cert)
            if is_ours and authority_places.rewrite(ctx.api, bundle, **pems, stage=work.stage):
                ctx.report.note(f"{bundle.title} trusts both authorities")

    def prove(self, ctx: RotationRun, work: Work) -> Sequence[Trouble]:
        found = []
        for server in stages.list_servers(ctx):
            client = ctx.api.with_server(f"https://{server}")
            lack = _find_lack(ctx, client, work=work)
            remedy = f"on that control plane: {self.command} --continue"
            if lack:
                what = f"the API server at {server} does not have the authorities of this stage"
                found.append(Trouble(what, lack, remedy))
            elif not ctx.force:
                found += _wait_for_kubelets(ctx, client)
        return found or [*_wait_until_told(ctx, work)]

    def check_unused(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-still-used)."""
        used = moments.find(work.one.used) or rotation.read_time(ctx.api)
        if ctx.restarts:
            stages.restart_workloads(ctx, lambda: account_tokens.find_older(ctx.api, since=used))
        pods = account_tokens.find_older(ctx.api, since=used)
        lines = [f"pod {one.pod}, which is older than the new authority" for one in pods]
        pair = {"former": work.former.cert, "following": work.following.cert}
        lines += _find_servers_of_former(ctx, work)
        lines += [f"kubeconfig {path}" for path in rotated_copies.find_copies(ctx, **pair)]
        if not work.one.is_undo:
            ctx.report.note(
                "join lines that were printed before the rotation name the former authority: they are of no use from the last stage on; others: "
                "kb token create --print-join-command"
            )
        if not lines:
            return
        remedy = f"restart the pods: {self.command} --finish --restart-workloads; those that nothing makes anew are yours to restart"
        if not pods:
            remedy = f"give each another certificate or kubeconfig (kb kubeconfig user), or remove it; or cut them off: {self.command} --finish --force"
        raise ClusterError(
            f"{len(lines)} pods, servers or kubeconfigs may know the former authority alone",
            cause=f"{lines[0]}; who knows no other is cut off once the former one is dropped",
            remedy=remedy,
            code="rotation-still-used",
            details=lines[1 : stages.MOST_NAMED],
        )

    def end(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven)."""
        key, flag = request_header.CLIENT_KEY, "client-ca-file"
        stages.withdraw_published(ctx, work.former, key=key, flag=flag)
        pems = {"former": work.former.cert_pem, "following": work.following.cert_pem}
        for bundle in authority_places.read_bundles(ctx.api):
            if not bundle.has(work.former.cert):
                continue
            if _is_of(authority_places.read_server(ctx.api, bundle), work.following.cert):
                authority_places.rewrite(ctx.api, bundle, **pems, stage=DROP)
            else:
                ctx.report.warn(
                    f"{bundle.title} still trusts the former authority, since its server is not known to show another one"
                )
        ctx.report.note("certificates of the former authority are refused by every API server")


def _is_of(cert: Optional[x509.Certificate], authority: x509.Certificate) -> bool:
    return cert is not None and certificates.is_issued_by(cert, authority)


# ---- this control plane


def _check_signing(ctx: RotationRun) -> None:
    """Raises HostError (rotated-files-elsewhere)."""
    path = ctx.paths.manifest(MANAGER)
    pod = yaml_files.load_mapping(ctx.host.read_text(path), str(path)) if ctx.host.exists(path) else {}
    words = next(iter(yaml_files.commands_of_pod(pod)), [])
    found = [word.removeprefix(SIGNING_FLAG) for word in words if word.startswith(SIGNING_FLAG)]
    wanted = str(ctx.paths.pki / "ca.crt")
    if found not in ([wanted], [str(ctx.paths.pki / SIGNING)]):
        raise HostError(
            f"{MANAGER} does not sign with {wanted}",
            cause=f"{SIGNING_FLAG.rstrip('=')} in {path} is {' and '.join(found) or 'not there'}",
            remedy=f"have it say {SIGNING_FLAG}{wanted}, on every control plane: kb reconfigure; what lies elsewhere is replaced there",
            code="rotated-files-elsewhere",
        )


def plan_manager(ctx: RotationRun, name: str) -> str:
    """The controller-manager's manifest, with this file below certificatesDir to sign with."""
    text = ctx.host.read_text(ctx.paths.manifest(MANAGER))
    for other in ("ca.crt", SIGNING):
        text = text.replace(f"{SIGNING_FLAG}{ctx.paths.pki / other}\n", f"{SIGNING_FLAG}{ctx.paths.pki / name}\n")
    return text


def is_own_swap(swap: store.Swap) -> bool:
    """Whether a swap changes nothing but the file that the controller-manager signs with: a rotation goes on with one that was cut off."""
    texts = ((_without_signing(pod.former), _without_signing(pod.wanted)) for pod in swap.pods)
    return all(former == wanted for former, wanted in texts)


def _without_signing(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if SIGNING_FLAG not in line)


def _turn(ctx: RotationRun, work: Work) -> rotated_kubelet.Turn:
    signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
    period_s = ctx.config.cluster.certificate_validity_period_s

    def issue(subject: certificates.Subject, key: private_keys.Key) -> str:
        ca = certificates.Ca(signer.cert, signer.key, ctx.paths.pki / "ca.crt")
        validity = certificates.plan_validity(ctx.host.now(), period_s)
        return certificates.cert_to_pem(certificates.issue_leaf_cert(subject, key, ca=ca, validity=validity))

    return rotated_kubelet.Turn(
        work.stage, work.former.cert_pem, work.following.cert_pem, issue, ClusterAuthority.command
    )


def _renew(ctx: RotationRun, work: Work) -> None:
    """What the stage's authority has to have signed, and whom kubeconfigs trust. Each file is written once. Raises HostError."""
    signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
    cluster = ctx.config.cluster
    for row in (row for row in renewal.ROWS.values() if row.ca == ClusterAuthority.authority):
        leaf = renewal.read_cert(ctx.host, ctx.paths, row=row)
        is_due = leaf is not None and not certificates.is_issued_by(leaf, signer.cert)
        if row.is_kubeconfig:
            _renew_kubeconfig(ctx, work, path=ctx.paths.kubeconfig(row.name), is_due=is_due)
        elif row.name != "apiserver":
            if is_due:
                renewal.renew(ctx.host, ctx.paths, row=row, cluster=cluster)
        else:
            _renew_served(ctx, work, row=row, is_due=is_due)


def _renew_kubeconfig(ctx: RotationRun, work: Work, *, path: Path, is_due: bool) -> None:
    if not ctx.host.exists(path):
        return
    text = before = ctx.host.read_text(path)
    present = kubeconfig.parse_kubeconfig(text, source=str(path)).ca_pem
    if is_due:
        cluster = ctx.config.cluster
        key = private_keys.generate_key(cert_specs.key_algorithm(cluster))
        seconds = cluster.certificate_validity_period_s
        text = kubeconfig.renew_client(ctx.host, ctx.paths, path=path, seconds=seconds, new_key=key)
    wanted = _turn(ctx, work).render(present)
    text = kubeconfig.with_authorities(text, wanted, source=str(path))
    if text != before:
        pki.write_keeping_mode(ctx.host, path, text=text, mode=0o600)


def _renew_served(ctx: RotationRun, work: Work, *, row: renewal.Row, is_due: bool) -> None:
    """The API server's certificate: with the following authority as the former one has signed it behind it in the stage in which both are
    trusted and the following one signs."""
    path = ctx.paths.pki / "apiserver.crt"
    former, following = work.former.cert, work.following.cert
    crosses = [cross_sign(work.following, former=work.former, now=ctx.host.now())] if work.stage == USE else []
    if is_due:
        renewal.renew(ctx.host, ctx.paths, row=row, cluster=ctx.config.cluster, crosses=crosses)
    chain = pki.read_certs(ctx.host, path)
    kept = [one for one in chain[1:] if not _is_any_cross(one, former, following)]
    has_cross = any(is_cross(one, following=following, former=former) for one in chain[1:])
    if (work.stage == USE and not has_cross) or (work.stage != USE and len(kept) < len(chain) - 1):
        text = "".join(map(certificates.cert_to_pem, (chain[0], *crosses, *kept)))
        pki.write_keeping_mode(ctx.host, path, text=text, mode=0o644)


def _is_any_cross(cert: x509.Certificate, one: x509.Certificate, other: x509.Certificate) -> bool:  # noqa: PLR0917
    return is_cross(cert, following=one, former=other) or is_cross(cert, following=other, former=one)


# ---- what is proven


def _find_lack(ctx: RotationRun, api: Api, *, work: Work) -> str:
    """What of the stage this API server does not have yet, in words: whose clients it accepts, and by whose authority it can be known; "" if it
    has all."""
    place = rotated_pairs.place_of(ctx.paths, ClusterAuthority.authority)

    def find_refusal(pair: rotated_pairs.Pair) -> Optional[str]:
        if certificates.is_expired(pair.cert, ctx.host.now()):
            return None
        return request_header.try_client(api, pair, place=place, name=CALLER)

    try:
        lack = stages.find_pair_lack(work, find_refusal, form="clients of {} authority")
        return lack or _find_unknown(api, work)
    except Unreachable as error:
        return error.cause


def _find_unknown(api: Api, work: Work) -> str:
    """Which clients do not know the API server that have to, or know it that must not, in words. Nobody knows the following one alone in the first
    stage."""
    known = {"the former": work.former} if work.stage != DROP else {}
    known.update({"the new": work.following} if work.stage != TRUST else {})
    for name, pair in known.items():
        distrust = authority_places.find_distrust(api, pair.cert_pem)
        if distrust:
            return f"who trusts {name} authority alone does not know it: {distrust}"
    if work.stage == DROP and not authority_places.find_distrust(api, work.former.cert_pem):
        return "who trusts the former authority alone still knows it"
    return ""


def _wait_for_kubelets(ctx: RotationRun, client: Api) -> list[Trouble]:
    """The kubelets that this API server does not reach, after some seconds: one that has just been restarted has closed its connections. Who has
    answered is not asked again."""
    left = {str(node["metadata"]["name"]): "" for node in ctx.api.list(path_of("Node"))}

    def look() -> str:
        answers = dict(zip(left, reach.ask_each([*left], functools.partial(_find_deafness, client))))
        left.clear()
        left.update({name: why for name, why in answers.items() if why})
        return ", ".join(left)

    watch(ctx.host, look, timeout_s=REACHED_S, poll_s=2.0)
    return [
        Trouble(
            f"the API server at {client.server} does not reach the kubelet of {name}",
            why,
            f"see its kubelet: systemctl status kubelet on {name}; if it is gone for good: kb node remove {name}",
        )
        for name, why in left.items()
    ]


def _find_deafness(api: Api, name: str) -> str:
    """Why this API server does not reach the kubelet of a node, in words; "" if it does."""
    try:
        return authority_places.find_deaf_kubelet(api, name)
    except Unreachable as error:
        return error.cause


def _wait_until_told(ctx: RotationRun, work: Work) -> Iterator[Trouble]:
    """Whether the cluster tells its clients what the stage wants."""
    both = (work.former.cert, work.following.cert)
    wanted, unwanted = (both, ()) if work.stage != DROP else (both[1:], both[:1])

    def look() -> str:
        lacks = [*authority_places.find_wrong(ctx.api, wanted=wanted, unwanted=unwanted), *_find_unsigned(ctx)]
        if work.stage != DROP:
            pairs, key = (work.former, work.following), request_header.CLIENT_KEY
            lacks += [
                f"ConfigMap kube-system/{request_header.CONFIG} lacks {pair.id[:16]}"
                for pair in pairs
                if not request_header.is_published(ctx.api, pair, key=key)
            ]
        return f"{lacks[0]}{f', and {len(lacks) - 1} others' if len(lacks) > 1 else ''}" if lacks else ""

    missing, _ = watch(ctx.host, look, timeout_s=PUBLISHED_S, poll_s=1.0)
    if missing:
        remedy = f"see the controller-manager's log: kubectl -n kube-system logs -l component={MANAGER}"
        yield Trouble("the cluster does not tell its clients of this stage's authorities", missing, remedy)


def _find_unsigned(ctx: RotationRun) -> Iterator[str]:
    """The valid tokens of which cluster-info has no signature, in words."""
    data = authority_places.read_signatures(ctx.api)
    text = data.get("kubeconfig", "")
    for token in bootstrap_tokens.valid_tokens(ctx.api, rotation.read_time(ctx.api)) if text else ():
        jws = data.get(tokens.jws_key(token.token_id), "")
        if "signing" in token.usages and not tokens.is_signed(text, jws, token=token.token):
            yield f"ConfigMap kube-public/{authority_places.INFO} is not signed for token {token.token_id}"


# ---- who still needs the former one


def _find_servers_of_former(ctx: RotationRun, work: Work) -> Iterator[str]:
    """The servers behind webhooks and APIs that trust the former authority, and show a certificate of it, or cannot be asked."""
    for bundle in authority_places.read_bundles(ctx.api):
        if bundle.has(work.former.cert):
            cert = authority_places.read_server(ctx.api, bundle)
            if cert is None:
                yield f"{bundle.title}, whose server does not answer"
            elif not certificates.is_issued_by(cert, work.following.cert):
                yield f"{bundle.title}, whose server shows a certificate of another authority"


CLUSTER_AUTHORITY = ClusterAuthority()
