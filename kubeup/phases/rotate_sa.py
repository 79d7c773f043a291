"""What `kb certs rotate-sa` rotates: the key that signs the tokens of service accounts.

API servers read sa.pub, which may hold several keys, and sa.key only when they start; so does the controller-manager, which signs the
tokens in Secrets. Source: cmd/kube-apiserver/app/options, pkg/kubeapiserver/options/authentication.go, keyutil.PublicKeysFromFile
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator, Sequence

from kubeup import moments
from kubeup.cluster import account_tokens, rotation
from kubeup.cluster.account_tokens import Holder
from kubeup.cluster.api import Api
from kubeup.errors import ClusterError
from kubeup.lazy_modules import lazily
from kubeup.machine.http import Unreachable
from kubeup.node.rotated_pairs import TRUST, USE, Pair
from kubeup.phases import rotation as stages
from kubeup.phases import static_pods_swap
from kubeup.phases.rotation import RotationRun, Work
from kubeup.trouble import Trouble

with lazily:
    from kubeup.swap import proof

SERVER, MANAGER = "kube-apiserver", "kube-controller-manager"
FLAGS = ((SERVER, "service-account-key-file", "sa.pub"), (SERVER, "service-account-signing-key-file", "sa.key"),
         (MANAGER, "service-account-private-key-file", "sa.key"))  # fmt: skip
READ_S = 30.0
"""How long this node's API server may take to answer as the stage wants it, after its restart."""


class ServiceAccounts(stages.Kind):
    word = "sa"
    title = "the key of service accounts"
    command = "kb certs rotate-sa"
    stops = (SERVER, MANAGER)
    unused_when = "once no pod holds a token of the former key, in about an hour"

    def check(self, ctx: RotationRun) -> None:
        """Raises HostError (rotated-files-elsewhere)."""
        stages.check_flags(ctx, FLAGS)

    def take_up(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-not-proven), and what a restart raises."""
        own = proof.own_api(ctx)
        names = [SERVER] if work.is_changed or _find_lack(own, work) else []
        names += [MANAGER] if work.stage == USE else []
        if names:
            ctx.report.note(f"restarting {' and '.join(names)}: keys are read at the start alone")
            static_pods_swap.restart(ctx, names)

        what = "this node's API server does not have the keys of this stage"
        look = functools.partial(_find_lack, own, work)
        stages.wait_for_stage(ctx, look, what=what, timeout_s=READ_S, component=SERVER)

    def prove(self, ctx: RotationRun, work: Work) -> Sequence[Trouble]:
        found = []
        for server in stages.list_servers(ctx):
            lack = _find_lack(ctx.api.with_server(f"https://{server}"), work)
            if lack:
                remedy = f"on that control plane: {self.command} --continue"
                found.append(Trouble(f"the API server at {server} does not have the keys of this stage", lack, remedy))
        return found

    def check_unused(self, ctx: RotationRun, work: Work) -> None:
        """Raises ClusterError (rotation-still-used)."""
        used = moments.find(work.one.used) or rotation.read_time(ctx.api)
        if ctx.restarts:
            stages.restart_workloads(ctx, lambda: _find_holders(ctx, used))
        holders = _find_holders(ctx, used)
        lines = [f"pod {one.pod} until {moments.show(one.until)}" for one in holders]
        kid = account_tokens.kid_of_key(work.former.key)
        lines += [f"Secret {name}, for ever" for name in account_tokens.find_secrets(ctx.api, kid=kid)]
        lines += list(_find_stale(ctx))
        if not lines:
            return
        remedy = f"wait until then: {self.command} --finish; or restart what holds one: {self.command} --finish --restart-workloads"
        if not holders:
            remedy = (
                "give who uses them another token; a Secret gets one when its former one is removed: kubectl -n NAMESPACE patch secret NAME "
                f'--type json -p \'[{{"op":"remove","path":"/data/token"}}]\'; or cut them off: {self.command} --finish --force'
            )
        raise ClusterError(
            f"{len(lines)} pods, Secrets or clients may still use the former key",
            cause=f"{lines[0]}; whoever has no other token is refused once the former key is dropped",
            remedy=remedy,
            code="rotation-still-used",
            details=lines[1 : stages.MOST_NAMED],
        )

    def end(self, ctx: RotationRun, work: Work) -> None:
        ctx.report.note("tokens of the former key are refused by every API server")


# ---- what an API server accepts


def _find_lack(api: Api, work: Work) -> str:
    """What of the stage this API server does not have yet, in words: which key it signs with, which ones it accepts, and that it accepts
    no other. "" if it has all."""
    try:
        token = account_tokens.request_token(api)
        signer = work.former if work.stage == TRUST else work.following
        if account_tokens.kid_of_token(token) != account_tokens.kid_of_key(signer.key):
            return "it signs tokens with another key"

        def find_refusal(pair: Pair) -> str:
            return account_tokens.find_refusal(api, account_tokens.sign_again(token, pair.key))

        return stages.find_pair_lack(work, find_refusal, form="tokens of {} key")
    except Unreachable as error:
        return error.cause
    except ClusterError as error:
        return f"{error}"


# ---- who still needs the former key


def _find_holders(ctx: RotationRun, used: datetime.datetime) -> list[Holder]:
    return account_tokens.find_holders(ctx.api, since=used, now=rotation.read_time(ctx.api))


def _find_stale(ctx: RotationRun) -> Iterator[str]:
    for server in stages.list_servers(ctx):
        count = account_tokens.count_stale(ctx.api.with_server(f"https://{server}"))
        if count:
            yield (
                f"clients of the API server at {server}, which has got {count} calls with tokens that were renewed long before; its audit "
                "log says whose: authentication.k8s.io/stale-token"
            )


SERVICE_ACCOUNTS = ServiceAccounts()
