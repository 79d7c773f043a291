"""The commands token create, list and delete. Mirrors cmd/kubeadm/app/cmd/token.go, including the form of the
output."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubeup.addresses import host_of
from kubeup.commands import launcher
from kubeup.commands.launcher import Launch
from kubeup.config import token_text
from kubeup.errors import ClusterError, HostError, UsageError
from kubeup.lazy_modules import lazily
from kubeup.paths import Paths
from kubeup.secret import Secret

with lazily:
    from kubeup.cluster import api as kubeapi
    from kubeup.cluster import objects, shared_certs, tokens
    from kubeup.config import choose, documents, load_init, load_join, problems, schema, validate
    from kubeup.doctor import node_files
    from kubeup.node import ca_pins, kubeconfig
    from kubeup.phases import join_command, runtime_registries
    from kubeup.phases import upload_certs as upload_certs_phase

if TYPE_CHECKING:
    from kubeup.cli.program import Invocation
    from kubeup.cluster.api import Api
    from kubeup.config.types import BootstrapToken
    from kubeup.machine.host import Host

SYSTEM = "kube-system"
OUTPUT_API = "output.kubeadm.k8s.io/v1alpha3"
_TOKEN_FLAGS = ("description", "groups", "ttl", "usages")


# ---- the API client


def find_kubeconfig(call: Invocation, local: Host) -> Path:
    """--kubeconfig, else $KUBECONFIG or ~/.kube/config if it exists, else admin.conf."""
    if "kubeconfig" in call.flags:
        return Path(call.flags["kubeconfig"]).absolute()
    env = local.environ()
    candidates = [Path(text) for text in env.get("KUBECONFIG", "").split(os.pathsep) if text]
    if not candidates and env.get("HOME"):
        candidates = [Path(env["HOME"]) / ".kube" / "config"]
    return next((path for path in candidates if local.exists(path)), Paths().admin_conf)


def _make_api(launch: Launch) -> tuple[Api, Path]:
    """An API client with the identity from the kubeconfig, and the kubeconfig's path."""
    path = find_kubeconfig(launch.call, launch.local)
    # first of all: without a kubeconfig there is no server to ask
    return kubeapi.Api(launch.target, kubeapi.read_identity(launch.local, path)), path


# ---- create


def create(call: Invocation) -> int:
    """Create a token and print it, or the join command with it."""
    key = Secret(call.flags.get("certificate-key", ""))
    alone = "certificate-key" if key else "control-plane" if call.flags.get("control-plane") else ""
    if alone and not call.flags.get("print-join-command"):
        raise UsageError(
            f"--{alone} is given without --print-join-command",
            cause="it only affects the join command of a control plane",
            remedy="add --print-join-command",
            code="certificate-key-alone",
        )
    launch = Launch(call)
    if alone and not key:
        key = _make_certificate_key(launch.local)
    wanted = read_wanted_tokens(call, launch.local)
    api, path = _make_api(launch)
    now = launch.local.now()
    for token in wanted:
        create_token(api, token, now=now)
    if key and call.program.does_more:
        upload_certs(call, launch.target, api=api, key=key)
    if launch.is_dry:
        for step in getattr(launch.target, "plan", ()):
            call.report.line(f"would request: {step.what}")
    prints_join = bool(call.flags.get("print-join-command"))
    for token in wanted:
        command = _join_command(launch, api, path=path, token=token, key=key) if prints_join else ""
        _print_created(call, token, command=command, now=now)
    return 0


def make_join_line(launch: Launch, *, is_control_plane: bool) -> str:
    """Create a token, upload the shared certificates for a control plane, and return the command with which a machine joins. Raises
    HostError (no-ca-key-here), ClusterError (token-exists)."""
    key = _make_certificate_key(launch.local) if is_control_plane else Secret("")
    call = replace(launch.call, words=[])  # the caller's name a node, and no token
    (token,) = read_wanted_tokens(call, launch.local)
    api, path = _make_api(launch)
    create_token(api, token, now=launch.local.now())
    if key:
        upload_certs(call, launch.target, api=api, key=key)
    return _join_command(launch, api, path=path, token=token, key=key)


def _make_certificate_key(local: Host) -> Secret:
    """A new key, which is useless unless the CA keys are uploaded with it. Raises HostError (no-ca-key-here)."""
    path = node_files.find_paths(local, Paths()).pki / "ca.key"
    if not local.exists(path):
        raise HostError(
            "a control plane's join command can be printed only where the certificates can be uploaded",
            cause=f"there is no {path} on this machine",
            remedy="run the command on a control plane; or give the key of an earlier upload: --certificate-key",
            code="no-ca-key-here",
        )
    return shared_certs.new_certificate_key()


def read_wanted_tokens(call: Invocation, local: Host) -> list[BootstrapToken]:
    """The tokens from the configuration file, or the one from the flags and the argument. Raises UsageError
    (invalid-config)."""
    if len(call.words) > 1:
        raise UsageError(
            "more than one token was named",
            cause="kb token create makes one at a time",
            remedy="kb token create ID.SECRET",
            code="usage",
        )
    found = problems.Problems(is_lenient=True)
    kind = "InitConfiguration"
    if "config" in call.flags:
        trees = _read_config(call, local, found=found)
    else:
        given: dict[str, Any] = {name: call.flags[name] for name in _TOKEN_FLAGS if name in call.flags}
        if call.words:
            given["token"] = call.words[0]
        if "ttl" in given:
            given["ttl"] = load_init.parse_duration(given["ttl"], "--ttl")
        trees = [given]
        for name in given:
            origin = "TOKEN" if name == "token" else f"--{name}"
            found.origins[f"{kind}:bootstrapTokens[0].{name}"] = (origin, 0)
    made = []
    for tree in trees:
        is_generated = not tree.get("token")
        text = token_text.generate_token().reveal() if is_generated else tree["token"]
        made.append(
            replace(documents.build(schema.BOOTSTRAP_TOKEN, {**tree, "token": text}), is_generated=is_generated)
        )
    validate.check_bootstrap_tokens(found, tuple(made))
    found.raise_if_any()
    for warning in found.warnings:
        call.report.warn(warning)
    return made


def _read_config(call: Invocation, local: Host, *, found: problems.Problems) -> list[dict[str, Any]]:
    mixed = [name for name in (*_TOKEN_FLAGS, "certificate-key") if name in call.flags]
    if mixed or call.words:
        raise UsageError(
            f"can not mix '--config' with arguments [{' '.join(mixed or ['token'])}]",
            cause="with a configuration file, the file says what these say: bootstrapTokens of InitConfiguration",
            remedy=f"move them into {call.flags['config']}, or leave --config out",
            code="mixed-flags",
        )
    given = load_init.read_documents(local, Path(call.flags["config"]), problems=found)
    trees = load_init.take_kinds(given, load_init.INIT_KINDS, problems=found)
    found.raise_if_any()
    return (trees.get("InitConfiguration") or {}).get("bootstrapTokens") or [{}]


def create_token(api: Api, token: BootstrapToken, *, now: datetime.datetime) -> None:
    """Create the token's Secret. Raises ClusterError (token-exists)."""
    try:
        api.create(tokens.render_token_secret(token, now))
    except kubeapi.AlreadyExists as error:
        raise ClusterError(
            f'a token with id "{token.token_id}" already exists',
            cause=f"Secret {SYSTEM}/{tokens.secret_name(token.token_id)} holds it",
            remedy=f"take another id, or delete that one: kb token delete {token.token_id}",
            code="token-exists",
        ) from error


def _join_command(launch: Launch, api: Api, *, path: Path, token: BootstrapToken, key: Secret) -> str:
    """The join command on one line."""
    call = launch.call
    admin = kubeconfig.read_kubeconfig(api.host.read_text(path), host=api.host, path=path)
    pins = list(ca_pins.ca_cert_hashes(admin.ca_pem))
    server = _reachable_server(api) or admin.server.partition("://")[2]
    program = join_command.KB if call.program.does_more else "kubeadm"
    command = join_command.render_join_command(server, token.token.reveal(), pins=pins, program=program)
    command = command.replace("\\\n", "").replace("\t", "") + _say_mirror(launch)
    return f"{command}--control-plane --certificate-key {key.reveal()}" if key else command


def _say_mirror(launch: Launch) -> str:
    """The mirror that this node asks, as flags: a machine that joins may reach no other registry. "" where there is none, where root alone may
    read that, and for kubeadm, which knows no mirror."""
    host = launch.local
    if not launch.call.program.does_more or not host.is_root_user() or not host.exists(Paths().kubelet_config):
        return ""
    patient = node_files.read_patient(host, Paths())
    looks = launcher.make_run(host, patient.config, paths=patient.paths, report=launch.call.report)
    words = runtime_registries.say_mirror(looks)
    return f"{words} {'--air-gapped ' if runtime_registries.is_closed(looks) else ''}" if words else ""


def _reachable_server(api: Api) -> str:
    """If every node runs its own load balancer, the endpoint's name does not resolve on a node that has yet to join.
    Return the address of an API server, this machine's if it has one; "" if the endpoint will do."""
    if not objects.read_load_balancer(api).is_local:
        return ""
    servers = objects.read_api_servers(api)
    own = {str(address) for card in choose.read_interfaces(api.host) or () for address in card.addresses}
    here = [server for server in servers if host_of(server) in own]
    return next(iter((*here, *servers)), "")


def _print_created(call: Invocation, token: BootstrapToken, *, command: str, now: datetime.datetime) -> None:
    if call.output == "text":
        call.print(command or token.token.reveal())
        return
    shown = describe_token(replace(token, expires=tokens.plan_expiration(token, now) or None))
    call.print_value({**shown, "joinCommand": command} if command else shown)


def upload_certs(call: Invocation, target: Host, *, api: Api, key: Secret) -> None:
    """Upload the shared certificates and keys again with this key, for two hours; an earlier upload has usually expired
    by now. Anywhere but on a control plane there is nothing to upload, and the key is assumed to be that of the last
    upload."""
    paths = node_files.find_paths(target, Paths())
    if not target.exists(paths.pki / "ca.key"):
        call.report.note(
            "there is no CA key on this machine: the certificates are not uploaded again, only the key is printed"
        )
        return
    text = objects.read_config_key(api, "kubeadm-config", key="ClusterConfiguration")
    found = load_join.parse_stored_cluster(target, text, warnings=[])
    files = shared_certs.read_shared_files(target, Paths(pki=Path(found.certificates_dir)), cluster=found)
    upload_certs_phase.store_shared_files(api, files, key=key, now=target.now())


# ---- list


def list_tokens(call: Invocation) -> int:
    launch = Launch(call)
    api, _ = _make_api(launch)
    found = read_tokens(api)
    if call.output == "text":
        call.print(render_table(found, launch.local.now()) if found else "")
        return 0
    for number, token in enumerate(found):
        if number and call.output == "yaml":
            call.print("---")
        call.print_value(describe_token(token))
    return 0


def read_tokens(api: Api) -> list[BootstrapToken]:
    """The cluster's tokens by id; Secrets that hold no complete token are skipped."""
    listed = api.list(kubeapi.path_of("Secret", "", namespace=SYSTEM), field=f"type={tokens.SECRET_TYPE}")
    parsed = (tokens.parse_token_secret(secret) for secret in listed)
    return sorted((token for token in parsed if token), key=lambda token: token.token_id)


def describe_token(token: BootstrapToken) -> dict[str, Any]:
    """kubeadm's output object BootstrapToken."""
    shown: dict[str, Any] = {
        "apiVersion": OUTPUT_API,
        "kind": "BootstrapToken",
        "token": token.token.reveal(),
        "description": token.description,
        "expires": token.expires,
        "usages": sorted(token.usages),
        "groups": list(token.groups),
    }
    return {key: value for key, value in shown.items() if value}


_DESCRIPTION = 56
"""The width of that column, whatever its content."""
_HEAD = ("TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS")


def render_table(found: list[BootstrapToken], now: datetime.datetime) -> str:
    """kubeadm's table, exact to the space: the header is as wide as the first row; every other row has its own
    width."""
    first, *others = [_row(token, now) for token in found]
    return "\n".join(_align([_HEAD, first]) + [line for row in others for line in _align([row])])


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(10, max(len(row[column]) for row in rows) + 3) for column in range(len(_HEAD) - 1)]
    return ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + row[-1] for row in rows]


def _row(token: BootstrapToken, now: datetime.datetime) -> tuple[str, ...]:
    ttl, expires = "<forever>", "<never>"
    if token.expires:
        expires = token.expires
        ttl = describe_ttl(tokens.expires_at(token), now)
    return (
        token.token.reveal(),
        f"{ttl:<9}",
        expires,
        f"{','.join(sorted(token.usages)) or '<none>':<22}",
        f"{token.description or '<none>':<{_DESCRIPTION}.{_DESCRIPTION}}",
        ",".join(token.groups) or "<none>",
    )


def describe_ttl(expires: datetime.datetime, now: datetime.datetime) -> str:
    """`23h`, `5m`, `40s`, or `<invalid>` for the past: only the largest unit, as kubectl shows ages."""
    seconds = int((expires - now).total_seconds())
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h"), (365 * 86400, 86400, "d")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // (365 * 86400)}y"


# ---- delete


def delete(call: Invocation) -> int:
    if not call.words:
        raise UsageError(
            "no token was named",
            cause="kb token delete deletes the tokens that you name, by id or in full",
            remedy="kb token list shows them; then: kb token delete ID",
            code="no-token",
        )
    ids = [parse_token_id(word) for word in call.words]
    launch = Launch(call)
    api, _ = _make_api(launch)
    for token_id in ids:
        # a dry-run host accepts every change, so check first whether the token exists
        path = kubeapi.path_of("Secret", tokens.secret_name(token_id), namespace=SYSTEM)
        if api.get(path) is None or not api.delete(path):
            raise ClusterError(
                f'there is no bootstrap token "{token_id}"',
                cause=f"the cluster has no Secret {SYSTEM}/{tokens.secret_name(token_id)}: it was deleted, or it expired",
                remedy="list the existing ones: kb token list",
                code="token-missing",
            )
        verb = "would be deleted" if launch.is_dry else "deleted"
        call.print(f'bootstrap token "{token_id}" {verb}')
    return 0


def parse_token_id(word: str) -> str:
    """The id from `id` or `id.secret`. Raises UsageError (bad-token), which does not repeat a possible secret."""
    token_id, _, _ = word.partition(".")
    if token_text.is_token_id(word) or token_text.is_token(word):
        return token_id
    raise UsageError(
        "that is neither a token nor a token's id",
        cause="an id is 6 lower-case letters or digits, a token has 16 more behind a dot; "
        f"this one has {len(word)} characters",
        remedy="see the ids: kb token list",
        code="bad-token",
    )


# ---- generate


def generate(call: Invocation) -> int:
    call.print(token_text.generate_token().reveal())
    return 0
