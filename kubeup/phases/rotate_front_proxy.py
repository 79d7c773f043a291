"""What `kb certs rotate-ca front-proxy` rotates: the authority that API servers and the extension API servers behind them know one another
by.

Everything that uses its files reads them again by itself (docs/adr/0017-renewed-certificates.md), so nothing is restarted. API servers
publish their authorities to extension API servers, each adding its own and removing none, so the former one is removed at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Optional

from kubeup.cluster import request_header
from kubeup.cluster.api import Api
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.machine.waiting import watch
from kubeup.node.rotated_pairs import DROP, Pair
from kubeup.phases import rotation as stages
from kubeup.phases.rotation import RotationRun, Work
from kubeup.trouble import Trouble

with lazily:
    from kubeup.node import certificates, renewal, rotated_pairs
    from kubeup.swap import proof

SERVER = "kube-apiserver"
LEAF = "front-proxy-client"
FLAGS = (
    (SERVER, "requestheader-client-ca-file", "front-proxy-ca.crt"),
    (SERVER, "proxy-client-cert-file", f"{LEAF}.crt"),
    (SERVER, "proxy-client-key-file", f"{LEAF}.key"),
)
READ_S = 90.0
"""How long an API server may take to read its files again: a second as a rule, and it looks once a minute besides."""


class FrontProxy(stages.Kind):
    word = "front-proxy"
    title = "the authority of the front proxy"
    command = "kb certs rotate-ca front-proxy"
    authority = "front-proxy-ca"
    unused_when = "when the aggregated APIs work"

    def check(self, ctx: RotationRun) -> None:
        """Raises HostError (rotated-files-elsewhere)."""
        stages.check_flags(ctx, FLAGS)

    def take_up(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven), HostError."""
        signer = rotated_pairs.holder_of_key(work.stage, former=work.former, following=work.following)
        row = renewal.ROWS[LEAF]
        leaf = renewal.read_cert(ctx.host, ctx.paths, row=row)
        if leaf is None or not certificates.is_issued_by(leaf, signer.cert):
            renewal.renew(ctx.host, ctx.paths, row=row, cluster=ctx.config.cluster)

        what = "this node's API server has not read the files of this stage"
        look = functools.partial(_find_lack, ctx, proof.own_api(ctx), work=work)
        stages.wait_for_stage(ctx, look, what=what, timeout_s=READ_S, component=SERVER)

    def prove(self, ctx: RotationRun, work: Work) -> Sequence[Trouble]:
        found = []
        for server in stages.list_servers(ctx):
            lack = _find_lack(ctx, ctx.api.with_server(f"https://{server}"), work=work)
            if lack:
                remedy = f"on that control plane: {self.command} --continue"
                found.append(Trouble(f"the API server at {server} has not read the files of this stage", lack, remedy))
        missing = "" if work.stage == DROP else _wait_until_published(ctx, work)
        if missing:
            remedy = (
                "see what keeps the API servers from it: kubectl -n kube-system describe configmap "
                + request_header.CONFIG
            )
            found.append(Trouble("extension API servers are not told of both authorities", missing, remedy))
        return found if found or ctx.force else request_header.find_unavailable(ctx.api)

    def end(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven)."""
        stages.withdraw_published(ctx, work.former, key=request_header.KEY, flag="requestheader-client-ca-file")
        ctx.report.note("certificates of the former authority are refused by every API server")


def _wait_until_published(ctx: RotationRun, work: Work) -> str:
    """What is missing, in words; "" if extension API servers are told of both."""

    def look() -> str:
        lacks = [
            pair.id[:16] for pair in (work.former, work.following) if not request_header.is_published(ctx.api, pair)
        ]
        return f"ConfigMap kube-system/{request_header.CONFIG} lacks {' and '.join(lacks)}" if lacks else ""

    return watch(ctx.host, look, timeout_s=stages.PUBLISHED_S, poll_s=0.5)[0]


def _find_lack(ctx: RotationRun, api: Api, *, work: Work) -> str:
    """What of the stage this API server does not have yet, in words; "" if it has all."""
    place = rotated_pairs.place_of(ctx.paths, FRONT_PROXY.authority)

    def find_refusal(pair: Pair) -> Optional[str]:
        is_expired = certificates.is_expired(pair.cert, ctx.host.now())
        return None if is_expired else request_header.find_refusal(api, pair, place=place)

    try:
        return stages.find_pair_lack(work, find_refusal, form="{} authority")
    except Unreachable as error:
        return error.cause


FRONT_PROXY = FrontProxy()
