"""The phase upload-certs: shares the control plane's certificates and keys, encrypted, with further control planes.

Mirrors cmd/kubeadm/app/cmd/phases/init/uploadcerts.go.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kubeup.engine.run import Outputs, Results, Run
from kubeup.engine.story import Act
from kubeup.errors import KbError
from kubeup.lazy_modules import lazily
from kubeup.phases.bootstrap_tokens import valid_tokens
from kubeup.secret import Secret

with lazily:
    from kubeup.cluster import api, objects, shared_certs, tokens

if TYPE_CHECKING:
    from kubeup.config.types import BootstrapToken


def upload_certs(ctx: Run) -> Outputs:
    """Share the control plane's certificates and keys, encrypted, for two hours: a token that expires owns the Secret."""
    if not ctx.config.upload_certs:
        ctx.report.detail("certificates are not uploaded: give --upload-certs to let control planes fetch them")
        return None
    key = ctx.config.certificate_key or shared_certs.new_certificate_key()
    files = shared_certs.read_shared_files(ctx.host, ctx.paths, cluster=ctx.config.cluster)
    store_shared_files(ctx.api, files, key=key, now=ctx.host.now())
    return Results(certificate_key=key)


def store_shared_files(client: api.Api, files: Mapping[str, bytes], *, key: Secret, now: datetime.datetime) -> None:
    """Store the files, encrypted, in the Secret kubeadm-certs. A bootstrap token owns it, so it is deleted when the token expires."""
    proxy = shared_certs.make_proxy_token()
    owner = client.create(tokens.render_token_secret(proxy, now))
    secret = shared_certs.render_certs_secret(files, key, token_id=proxy.token_id, token_uid=_uid(owner))
    # replaced as a whole: an apply would keep the previous upload's owner next to the new one
    client.create_or_replace(secret)
    objects.apply_objects(client, objects.load_objects("rbac/kubeadm-certs.yaml"))
    _remove_other_proxies(client, proxy, now=now)


def _remove_other_proxies(client: api.Api, proxy: BootstrapToken, *, now: datetime.datetime) -> None:
    """Delete the tokens of earlier uploads, which may have been interrupted. They own nothing any more."""
    for token in valid_tokens(client, now):
        if token.description == proxy.description and not token.usages and token.token_id != proxy.token_id:
            client.delete(api.path_of("Secret", tokens.secret_name(token.token_id), namespace=objects.SYSTEM))


def certs_are_uploaded(ctx: Run) -> bool:
    """Whether the Secret exists and the configured key, if any, decrypts it. Always true without --upload-certs.

    If kb generated the key and the run was interrupted before it printed the key, nobody knows it, so that upload does not count.
    """
    if not ctx.config.upload_certs:
        return True
    secret = ctx.api.get(api.path_of("Secret", shared_certs.SECRET_NAME, namespace=objects.SYSTEM))
    key = ctx.config.certificate_key
    if secret is None or not key:
        return secret is not None and "show-join-command" not in ctx.selection.unfinished
    try:
        shared_certs.plan_downloads(secret, key, paths=ctx.paths, cluster=ctx.config.cluster)
    except KbError:
        return False
    return True


def _uid(secret: api.Object) -> str:
    return str((secret.get("metadata") or {}).get("uid", ""))


CERTS = Act(do=upload_certs, probe=certs_are_uploaded, spec=lambda run: run.config.upload_certs)
