"""The phase bootstrap-token: what the next node needs to join. Mirrors cmd/kubeadm/app/cmd/phases/init/bootstraptoken.go."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kubeup.engine.cluster_items import ClusterInfo, Object, TokenSecret
from kubeup.engine.plan import Plan, digest
from kubeup.engine.run import Results, Run
from kubeup.lazy_modules import lazily

with lazily:
    from kubeup.cluster import api, objects, tokens
    from kubeup.node import kubeconfig

if TYPE_CHECKING:
    from kubeup.config.types import BootstrapToken


def plan_bootstrap_tokens(run: Run) -> Plan:
    """The tokens, their RBAC rules, and the ConfigMap cluster-info, with which a joining node finds and verifies the cluster."""
    valid = valid_tokens(run.api, run.host.now())
    made = _take_earlier_tokens(run, valid)
    wanted = zip(run.config.bootstrap_tokens, made)
    return Plan(
        *(_plan_token(run, token, valid=valid, is_generated=asked.is_generated) for asked, token in wanted),
        *(Object(found) for found in objects.load_objects("rbac/bootstrap.yaml")),
        ClusterInfo(_cluster_info(run)),
        *(Object(found) for found in objects.load_objects("rbac/cluster-info.yaml")),
        hands_on=Results(tokens=[token.token for token in made], token_ids=[token.token_id for token in made]),
    )


def _plan_token(run: Run, token: BootstrapToken, *, valid: Sequence[BootstrapToken], is_generated: bool) -> TokenSecret:
    """A token that kb generates differs in every run, so any valid token for authentication satisfies it."""
    if is_generated:
        title, what = "the bootstrap token", {"for": token.description}
        is_there = any("authentication" in other.usages for other in valid)
    else:
        title, what = (
            f"bootstrap token {token.token_id}",
            {"id": token.token_id, "digest": digest(token.token.reveal())},
        )
        is_there = token.token in {other.token for other in valid}
    return TokenSecret(tokens.render_token_secret(token, run.host.now()), title, what, is_there)


def _take_earlier_tokens(run: Run, valid: Sequence[BootstrapToken]) -> list[BootstrapToken]:
    """The configured tokens. In place of a generated one, reuse an equivalent token that an interrupted run left behind."""
    earlier = [] if run.config.kb.only_kubeadm else list(valid)
    made = []
    for wanted in run.config.bootstrap_tokens:
        kind = (wanted.description, set(wanted.usages), set(wanted.groups))
        alike = [token for token in earlier if kind == (token.description, set(token.usages), set(token.groups))]
        if wanted.is_generated and alike:
            earlier.remove(alike[0])
            wanted = replace(wanted, token=alike[0].token, expires=alike[0].expires)
        made.append(wanted)
    return made


def valid_tokens(client: api.Api, now: datetime.datetime) -> list[BootstrapToken]:
    listed = client.list(
        api.path_of("Secret", "", namespace=objects.SYSTEM), field="type=bootstrap.kubernetes.io/token"
    )
    parsed = [tokens.parse_token_secret(secret) for secret in listed]
    return [token for token in parsed if token and not tokens.is_expired(token, now)]


def _cluster_info(ctx: Run) -> api.Object:
    """cluster-info with the server and the CA of the admin.conf on disk: the address that other nodes use."""
    path = ctx.paths.admin_conf
    admin = kubeconfig.read_kubeconfig(ctx.host.read_text(path), host=ctx.host, path=path)
    return objects.render_cluster_info(admin.server, admin.ca_pem)
