"""A Corefile for another version of CoreDNS: what that version lacks is taken out, what it needs by default is added, all else stays.

Owns what changed in CoreDNS' plugins and options, and which plugins its releases contain. The text is edited in place, so comments,
order and spacing of everything else stay as people wrote them. It talks to no cluster. Mirrors what kubeadm takes from
coredns/corefile-migration (1.0.31), which drops comments; the plugins are those of plugin.cfg in CoreDNS 1.11 to 1.14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NoReturn, Optional

from kubeup.errors import ClusterError
from kubeup.frozen_values import frozen
from kubeup.releases import Version, parse_version

REMOVED, IGNORED, DEFAULT = "removed", "ignored", "default"
EDIT = "kubectl -n kube-system edit configmap coredns"

BUILT_IN = frozenset((
    "acl", "any", "auto", "autopath", "azure", "bind", "bufsize", "cache", "cancel", "chaos", "clouddns", "debug",
    "dns64", "dnssec", "dnstap", "erratic", "errors", "etcd", "file", "forward", "geoip", "grpc", "grpc_server",
    "header", "health", "hosts", "https", "https3", "k8s_external", "kubernetes", "loadbalance", "local", "log",
    "loop", "metadata", "minimal", "multisocket", "nomad", "nsid", "on", "pprof", "prometheus", "quic", "ready",
    "reload", "rewrite", "root", "route53", "secondary", "sign", "template", "timeouts", "tls", "trace", "transfer",
    "tsig", "view", "whoami",
))  # fmt: skip
"""The plugins in CoreDNS' own releases. None that 1.11 has was removed up to 1.14."""
_NO_PLUGINS = frozenset({"import"})
"""What stands where a plugin could, and is the parser's own."""


@frozen
class Rule:
    """A change in CoreDNS. status: removed (CoreDNS does not start with it), ignored, or default (missing, it is added).

    option: "" for the plugin itself. since: the version with the change. text: what is added. beside: the plugin that a server block
    has to have for a plugin to be added."""

    plugin: str
    option: str
    status: str
    since: str
    text: str = ""
    beside: str = ""


RULES = (
    Rule("kubernetes", "resyncperiod", REMOVED, "1.7.0"),
    Rule("kubernetes", "upstream", REMOVED, "1.7.0"),
    Rule("kubernetes", "transfer", REMOVED, "1.8.0"),
    Rule("kubernetes", "endpoint", IGNORED, "1.4.0"),  # all but its first argument
    Rule("ready", "", DEFAULT, "1.5.0", text="ready", beside="kubernetes"),
    Rule("health", "lameduck", DEFAULT, "1.6.5", text="lameduck 5s"),
    Rule("forward", "max_concurrent", DEFAULT, "1.7.0", text="max_concurrent 1000"),
)


@frozen
class Migrated:
    """text: the Corefile for the new version. changes: what was changed, in words. unread: files that it imports."""

    text: str
    changes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def migrate(text: str, *, former: str, wanted: str) -> Migrated:
    """`text`, which CoreDNS of the image tag `former` reads, for the one of `wanted` (`v1.13.1`). A tag that is no version counts as
    the oldest one that needs no default added.

    Raises ClusterError: corefile-unreadable, corefile-plugin-unknown, coredns-newer.
    """
    before, after = parse_version(former), parse_version(wanted)
    if before and after and before.key > after.key:
        raise ClusterError(
            f"CoreDNS {former} runs, and it would be replaced by {wanted}",
            cause="there is no way back for a Corefile that the newer one reads",
            remedy=f"keep it: set dns.imageTag to {former} with: kubectl -n kube-system edit configmap kubeadm-config",
            code="coredns-newer",
        )
    servers = parse_corefile(text)
    plugins = [plugin for server in servers for plugin in server.options]
    _refuse_unknown(plugins)
    edits = [edit for server in servers for edit in _migrate_server(text, server, before=before, after=after)]
    unread = [" ".join(one.args) for one in (*servers, *plugins) if one.name == "import"]
    snippets = {server.name[1:-1] for server in servers if server.name.startswith("(")}
    return Migrated(
        _carry_out(text, edits), tuple(edit.told for edit in edits), tuple(x for x in unread if x not in snippets)
    )


def _refuse_unknown(plugins: Sequence[Directive]) -> None:
    unknown = sorted({one.name for one in plugins} - BUILT_IN - _NO_PLUGINS)
    if not unknown:
        return
    raise ClusterError(
        f"the Corefile has the plugin{'s' * (len(unknown) > 1)} {', '.join(unknown)}",
        cause="CoreDNS' own releases do not contain it, so the new CoreDNS may not start",
        remedy=f"take it out: {EDIT}",
        code="corefile-plugin-unknown",
    )


# ---- what changes


@frozen
class _Edit:
    """The text from `start` to `end` is replaced by `text`. told: what it is, in words."""

    start: int
    end: int
    text: str
    told: str


def _migrate_server(
    text: str, server: Directive, *, before: Optional[Version], after: Optional[Version]
) -> Iterator[_Edit]:
    for rule in RULES:
        since = parse_version(rule.since)
        assert since is not None
        if after is not None and after.key < since.key:
            continue
        found = [one for one in server.options if one.name == rule.plugin]
        if rule.status != DEFAULT:
            # whatever ran before: with what was removed long ago, a CoreDNS that runs has ignored the edit, and the new one would not start
            yield from (edit for plugin in found for edit in _take_out(plugin, rule))
        elif before is not None and before.key < since.key:
            yield from _add(text, server, found=found, rule=rule)


def _take_out(plugin: Directive, rule: Rule) -> Iterator[_Edit]:
    for option in plugin.options:
        if option.name != rule.option:
            continue
        what = f"{rule.plugin}: {option.name}"
        if rule.status == REMOVED:
            yield _Edit(option.start, option.end, "", f"{what} was removed in CoreDNS {rule.since}: taken out")
        elif len(option.args) > 1:
            first, last = option.arg_spans[0][1], option.arg_spans[-1][1]
            yield _Edit(first, last, "", f"{what}: CoreDNS has used the first argument alone since {rule.since}")


def _add(text: str, server: Directive, *, found: Sequence[Directive], rule: Rule) -> Iterator[_Edit]:
    told = f"{rule.plugin}: {rule.text} has been the default since CoreDNS {rule.since}: added"
    if not rule.option:
        if not found and any(one.name == rule.beside for one in server.options):
            yield _Edit(server.close, server.close, f"    {rule.text}\n", told)
        return
    for plugin in found:
        if any(option.name == rule.option for option in plugin.options):
            continue
        indent = re.match(r"[ \t]*", text[plugin.start :])
        margin = indent[0] if indent else ""
        if plugin.close < 0:
            yield _Edit(plugin.head_end, plugin.head_end, f" {{\n{margin}    {rule.text}\n{margin}}}", told)
        else:
            is_own_line = text[plugin.close - 1] == "\n"
            added = f"{margin}    {rule.text}\n" if is_own_line else f"\n{margin}    {rule.text}\n{margin}"
            yield _Edit(plugin.close, plugin.close, added, told)


def _carry_out(text: str, edits: Sequence[_Edit]) -> str:
    for edit in sorted(edits, key=lambda one: one.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


# ---- the text


@frozen
class Directive:
    """A server block, a plugin in one, or an option of a plugin. Offsets count characters of the text.

    start, end: its whole lines, with its block. head_end: where its last argument ends. close: where the line with the brace that
    ends its block begins; -1 without a block. options: what its block holds."""

    name: str
    args: tuple[str, ...]
    arg_spans: tuple[tuple[int, int], ...]
    start: int
    head_end: int
    end: int
    close: int = -1
    options: tuple[Directive, ...] = ()


@frozen
class _Token:
    text: str
    start: int
    end: int
    line: int
    is_quoted: bool = False


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|#[^\n]*|[^\s"#][^\s]*', re.DOTALL)


def parse_corefile(text: str) -> tuple[Directive, ...]:
    """The server blocks and snippets (`(name)`) of a Corefile, with their plugins and their options.

    Raises ClusterError (corefile-unreadable). Source: the caddyfile lexer of coredns/caddy, corefile(5)."""
    tokens = list(_read_tokens(text))
    found: list[Directive] = []
    index = 0
    while index < len(tokens):
        made, index = _parse_one(text, tokens, index, depth=0)
        found.append(made)
    return tuple(found)


def _read_tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        if match[0].startswith("#"):
            continue
        is_quoted = match[0].startswith('"')
        value = match[0][1:-1].replace('\\"', '"') if is_quoted else match[0]
        yield _Token(value, match.start(), match.end(), text.count("\n", 0, match.start()) + 1, is_quoted)


def _is_brace(token: _Token, *braces: str) -> bool:
    return token.text in (braces or ("{", "}")) and not token.is_quoted


def _parse_one(text: str, tokens: Sequence[_Token], index: int, *, depth: int) -> tuple[Directive, int]:  # noqa: PLR0917
    """The directive that begins at tokens[index], and the index after it."""
    first = tokens[index]
    if _is_brace(first):
        _refuse(first, "there is a brace where a name belongs")
    stop = index + 1
    # the names of a server block go on over lines, until its brace
    goes_on = depth == 0 and first.text != "import"
    while stop < len(tokens) and not _is_brace(tokens[stop]) and (goes_on or tokens[stop].line == first.line):
        stop += 1
    args, head_end = tokens[index + 1 : stop], tokens[stop - 1].end
    start = _line_start(text, first.start)
    has_block = stop < len(tokens) and _is_brace(tokens[stop], "{")
    if not has_block:
        if goes_on:
            _refuse(first, "the server block has no braces")
        spans = tuple((one.start, one.end) for one in args)
        return Directive(
            first.text, _texts(args), spans, start=start, head_end=head_end, end=_line_end(text, head_end)
        ), stop
    options: list[Directive] = []
    stop += 1
    while stop < len(tokens) and not _is_brace(tokens[stop], "}"):
        made, stop = _parse_one(text, tokens, stop, depth=depth + 1)
        options.append(made)
    if stop == len(tokens):
        _refuse(first, "its block is not closed")
    close = _line_start(text, tokens[stop].start)
    spans = tuple((one.start, one.end) for one in args)
    made = Directive(
        first.text,
        _texts(args),
        spans,
        start=start,
        head_end=head_end,
        end=_line_end(text, tokens[stop].end),
        close=close,
        options=tuple(options),
    )
    return made, stop + 1


def _texts(tokens: Sequence[_Token]) -> tuple[str, ...]:
    return tuple(token.text for token in tokens)


def _line_start(text: str, at: int) -> int:
    """Where the line of `at` begins; `at` itself if something else stands before it on that line."""
    begin = text.rfind("\n", 0, at) + 1
    return begin if not text[begin:at].strip() else at


def _line_end(text: str, at: int) -> int:
    """Where the line of `at` ends, with a comment behind it; `at` itself if something else follows on that line."""
    found = text.find("\n", at)
    end = len(text) if found < 0 else found + 1
    rest = text[at:end].strip()
    return end if not rest or rest.startswith("#") else at


def _refuse(token: _Token, why: str) -> NoReturn:
    raise ClusterError(
        f"line {token.line} of the Corefile in ConfigMap kube-system/coredns cannot be read: {token.text}",
        cause=why,
        remedy=f"correct it: {EDIT}",
        code="corefile-unreadable",
    )
