"""What `kb certs rotate-ca etcd` rotates: the authority that etcd's members, and the API servers as their clients, know one another by.

etcd and the API server read etcd/ca.crt only when they start (docs/adr/0017-renewed-certificates.md), so both are restarted where that file
says something else: in the first stage and in the last. Certificates are read again at the next handshake.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kubeup.addresses import host_of, port_of
from kubeup.cluster import etcd
from kubeup.errors import HostError
from kubeup.lazy_modules import lazily
from kubeup.node.rotated_pairs import USE, Pair
from kubeup.phases import rotation as stages
from kubeup.phases import static_pods_swap
from kubeup.phases.rotation import RotationRun, Work
from kubeup.trouble import Trouble

with lazily:
    from kubeup.node import certificates, pki, private_keys, renewal, rotated_pairs
    from kubeup.swap import proof

ETCD, SERVER = "etcd", "kube-apiserver"
PLACE = Path("/etc/kubernetes/pki/etcd/ca.crt")
"""Of the authority, in the words of an error."""
FLAGS = (
    (ETCD, "trusted-ca-file", "etcd/ca.crt"), (ETCD, "peer-trusted-ca-file", "etcd/ca.crt"), (ETCD, "cert-file", "etcd/server.crt"),
    (ETCD, "peer-cert-file", "etcd/peer.crt"), (SERVER, "etcd-cafile", "etcd/ca.crt"), (SERVER, "etcd-certfile", "apiserver-etcd-client.crt"),
)  # fmt: skip
READ_S = 30.0
"""How long this node's etcd may take to answer as the stage wants it, after its restart."""
TRIAL_CERT_S = 600
"""How long the certificate lives with which a member is called: it is never written anywhere."""


class EtcdAuthority(stages.Kind):
    word = "etcd"
    title = "the authority of etcd"
    command = "kb certs rotate-ca etcd"
    authority = "etcd-ca"
    stops = (ETCD, SERVER)
    unused_when = "when every member is well"

    def check(self, ctx: RotationRun) -> None:
        """Raises HostError: no-local-etcd, rotated-files-elsewhere, ca-expired."""
        if not ctx.host.exists(ctx.paths.manifest(ETCD)):
            raise HostError(
                "this cluster's etcd is external",
                cause=f"there is no {ctx.paths.manifest(ETCD)}, so its authority is not this cluster's",
                remedy="replace it where etcd runs, and give the API servers its new certificate beside the former one first",
                code="no-local-etcd",
            )
        stages.check_flags(ctx, FLAGS)
        place = rotated_pairs.place_of(ctx.paths, self.authority)
        if certificates.is_expired(pki.read_certs(ctx.host, place.public)[0], ctx.host.now()):
            raise HostError(
                f"the authority {place.public} has ended",
                cause="etcd takes no connection with what it has signed, so no other control plane could learn of a new one",
                remedy=f"let the same key have another certificate first, on every control plane: openssl x509 -in {place.public} "
                f"-signkey {place.key} -days 3650 -out /root/ca.crt && mv /root/ca.crt {place.public}; then: kb certs recover",
                code="ca-expired",
            )

    def take_up(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven), HostError, and what a restart raises."""
        signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
        for row in (row for row in renewal.ROWS.values() if row.ca == self.authority):
            leaf = renewal.read_cert(ctx.host, ctx.paths, row=row)
            if leaf is not None and not certificates.is_issued_by(leaf, signer.cert):
                renewal.renew(ctx.host, ctx.paths, row=row, cluster=ctx.config.cluster)
        client = proof.own_etcd(ctx)
        own = client.at(client.endpoints[0])
        if (work.is_changed and work.stage != USE) or _find_lack(own, work):
            ctx.report.note("restarting etcd and the API server: etcd/ca.crt is read at the start alone")
            static_pods_swap.restart(ctx, (ETCD, SERVER))

        what = "this node's etcd does not have the authorities of this stage"
        look = functools.partial(_find_lack, own, work)
        stages.wait_for_stage(ctx, look, what=what, timeout_s=READ_S, component=ETCD)

    def prove(self, ctx: RotationRun, work: Work) -> Sequence[Trouble]:
        client = proof.own_etcd(ctx)
        found = []
        for member in client.list_members(is_sure=False):
            urls = member.client_urls[:1]
            lack = _find_lack(client.at(urls[0]), work) if urls else "it has never started"
            if lack:
                what = f"etcd's member {member.describe()} does not have the authorities of this stage"
                found.append(Trouble(what, lack, f"on that control plane: {self.command} --continue"))
        return found

    def end(self, ctx: RotationRun, work: Work) -> None:
        ctx.report.note("certificates of the former authority are refused by every member of etcd")


def _find_lack(client: etcd.Etcd, work: Work) -> str:
    """What of the stage the member at the client's endpoint does not have yet, in words; "" if it has all."""
    plain = client.read_status(client.endpoints[0])
    if plain.away:
        return plain.away

    def find_refusal(pair: Pair) -> Optional[str]:
        return None if certificates.is_expired(pair.cert, client.host.now()) else _try_pair(client, pair)

    return stages.find_pair_lack(work, find_refusal, form="{} authority") or _find_other_signer(client, work)


def _try_pair(client: etcd.Etcd, pair: Pair) -> str:
    """Why the member refuses a client with a certificate of this authority, in words; "" if it does not."""
    key = private_keys.generate_key("ECDSA-P256")
    ca = certificates.Ca(pair.cert, pair.key, PLACE)
    validity = certificates.plan_validity(client.host.now(), TRIAL_CERT_S)
    cert = certificates.issue_leaf_cert(
        certificates.Subject("kube-etcd-healthcheck-client", is_client=True), key, ca=ca, validity=validity
    )
    tls = dataclasses.replace(client.tls, cert_pem=certificates.cert_to_pem(cert), key_pem=private_keys.key_to_pem(key))
    return etcd.Etcd(client.host, client.endpoints, tls=tls).read_status(client.endpoints[0]).away


def _find_other_signer(client: etcd.Etcd, work: Work) -> str:
    """Whether the member shows a certificate of another authority than the stage's, in words; "" if it does not, or it cannot be seen."""
    place = client.endpoints[0].partition("://")[2].partition("/")[0]
    pem = client.host.served_cert(host_of(place), port_of(place, 2379))
    shown = certificates.parse_shown(pem) if pem else ()
    signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
    if shown and not certificates.is_issued_by(shown[0], signer.cert):
        return "it shows a certificate of the other authority"
    return ""


ETCD_AUTHORITY = EtcdAuthority()
