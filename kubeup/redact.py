"""Redaction: keeps words that are known to be harmless, and replaces everything else by [redacted].

Used for the support bundle and for the plans of dry runs. It does not search for text that looks like a secret. Two
rules work together. The value of a private name (password, token, auth, ...) is removed, whatever it looks like and in
every notation: YAML, JSON, TOML, flags, environments, headers. In all other text a word stays if it consists of parts
that people and programs write openly: letters, numbers, versions, addresses, paths, dates, hashes of public things.
Works line by line in linear time: every pattern is bounded, and a line is cut at MAX_LINE. Reads nothing.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Collection, Iterator
from typing import Optional

MARK = "[redacted]"
MAX_LINE = 16384
"""The number of characters of a line that are examined; a longer line is cut, with a note."""


def redact(text: str, known: Collection[str] = (), *, has_flags: bool = False) -> str:
    """The text without possible secrets. known: identifiers of this machine that look like secrets but are not
    (container IDs). has_flags: whether pairs of `name` and `value` in it are flags of Kubernetes' components (extraArgs), and not variables
    of somebody's containers: such a value is judged like any word."""
    reader, shown, at = _Reader(frozenset(known), has_flags=has_flags), [], 0
    text = _KEY_TAIL.sub(f"{MARK}\n", text)
    for block in _PEM.finditer(text):
        shown += [reader.redact(text[at : block.start()]), _show_block(block)]
        at = block.end()
    return "".join([*shown, reader.redact(text[at:])])


# ---- names


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRIVATE_WORDS = _names(
    "password passwd passwords passphrase pass pwd pw psk secret secrets token tokens credential credentials creds cred "
    "auth authorization authentication bearer cookie cookies session sessionid jwt dsn sas otp totp pin pat netrc htpasswd "
    "userinfo passcode keydata dockerconfigjson dockercfg apikey"
)
_PRIVATE_PARTS = re.compile(
    r"passw|passphrase|secret|token|credential|api_?key|priv(?:ate)?_?key|secret_?key|access_?key|auth_?key|certificate_?key|"
    r"signing_?key|encryption_?key|shared_?key|master_?key|license_?key|account_?key|key_data|connection_?string|cookie"
)
_PUBLIC_ENDINGS = _names(
    "file files path paths dir folder name names ref refs mode modes ttl enabled usage usages plugin plugins version issuer "
    "audience audiences count size timeout period seconds hash hashes url uri class type kind config reviews review kubeconfig "
    "requests request expiration lookup auth-file webhook cache go md"
)
"""A name that ends with one of these tells where a secret is, or something about it: its value is judged like any
word."""
_PUBLIC_NAMES = _names(
    "tokenid token-id allow-token-auth enable-bootstrap-token-auth use-service-account-credentials "
    "automountserviceaccounttoken serviceaccounttoken authenticationrefs"
)
_PUBLIC_FIELDS = _names(
    "name namespace secretname optional defaultmode mode path expirationseconds audience enabled cachettl "
    "cacheauthorizedttl cacheunauthorizedttl clientcafile kind apiversion group groups usages ttl expires description "
    "key operator uid resourceversion creationtimestamp"
)
"""Fields below a private name (`authorization: {mode: Webhook}`) that hold no secret."""
_PUBLIC_VARIABLES = re.compile(
    r"(?:NODE|POD|HOST|CLUSTER|SERVICE|K8S|KUBERNETES|CALICO|CILIUM|FELIX|IP|FLANNELD?|KUBE|GO|ETCD|DATASTORE|CNI|LOG|LC|"
    r"LANG|TZ|PATH|HOME|USER|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|https?_proxy|no_proxy|all_proxy|node|kubernetes)[\w./-]{0,80}"
)
"""Container variables, and keys of tolerations and selectors, whose values may be shown if they look harmless."""
_FLAG = re.compile(r"v|[a-z][a-z0-9]{0,30}(?:-[a-z0-9]{1,30}){1,8}")
_SETTING = re.compile(r"[ \t]{0,9}[\"']?(?:-?\d{1,12}(?:\.\d{1,6})?[a-z%]{0,2}|true|false)[\"']?[ \t}]{0,9}")
"""An argument of a component, in the list of names and values that a ClusterConfiguration has (extraArgs), and a value of it that may be shown."""
_HARMLESS_VALUES = frozenset(("true", "false", "null", "nil", "~", "none", "{}", "[]", '""', "''", "<nil>", MARK))


@functools.lru_cache(maxsize=4096)
def is_private_name(name: str) -> bool:
    """Whether the value of this name (of a field, flag, variable or header) is a secret by its meaning."""
    plain = name.lstrip("-").strip("\"'\\")
    if plain.lower() in _PUBLIC_NAMES or re.match(r"\*|v\d\w{0,10}\.", plain) or plain.isdigit():
        return False
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower().replace("-", "_").replace(".", "_").strip("_")
    parts = words.split("_")
    if parts[-1] in _PUBLIC_ENDINGS and parts[-1] not in _PRIVATE_WORDS:
        return False
    return bool(_PRIVATE_WORDS & set(parts) or _PRIVATE_PARTS.search(words) or _PRIVATE_PARTS.search(plain.lower()))


# ---- words

_UUID = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
_KNOWN_SHAPES = re.compile(
    rf"sha256[:~-][0-9a-f]{{64}}|{_UUID}|KUBE-[A-Z]{{2,10}}-[A-Z0-9]{{16}}|SHA256:[A-Za-z0-9+/]{{43}}"
)
"""Long values that are public by nature: digests, UIDs, kube-proxy's iptables chains, SSH key fingerprints."""
_NUMBER = re.compile(
    r"\d{1,20}[A-Za-zµ%]{0,3}|0x[0-9a-f]{1,16}|[0-9a-f]{11,13}|[0-9a-f]{16}|[IWEF]\d{4}|\d{2}T\d{2}|\d{1,9}Z|\d{8}T\d{6}Z?"
)
"""Numbers with units, points in time, short IDs (of a container, an etcd member, an event)."""
_SUFFIXED = re.compile(r"[a-z0-9]{1,10}|[A-Z0-9]{1,8}|(?:veth|cali|lxc|tap|pod|ens|enp|enx|eth)[0-9a-z]{1,12}")
"""Generated names: a pod's suffix, the end of a link's name, a chain."""
_UNSPOKEN = re.compile(r"[b-df-hj-np-tv-xz]{5}|[B-DF-HJ-NP-TV-XZ]{5}")
"""More consecutive consonants than in natural words."""
_VOWEL = re.compile(r"(?i)[aeiouy]")
_CHUNK = re.compile(r"[A-Z]{2,}s?(?![a-z])|[A-Z]?[a-z]+|[A-Z]|\d+")
_CONTAINER_ID = re.compile(r"([0-9a-f]{32,64})")
_BOOTSTRAP_TOKEN = re.compile(r"(?<![a-z0-9])([a-z0-9]{6})\.[a-z0-9]{16}(?![a-z0-9])")
_VENDOR_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:eyJ[\w-]{6}|gh[pousr]_|github_pat_|glpat-|hv[sbr]\.|xox[abprs]-|AKIA|ASIA|AIza|sk-|npm_|dckr_pat_|dop_v1_|SG\.)\S+"
)
_WORD = re.compile(r"[^\s\"'`,;()\[\]{}<>|\\=]+={0,2}")
_PATH_HEAD = re.compile(
    r"(?:[a-z][a-z0-9+.-]{1,20}:/)?/[A-Za-z0-9_.:\[\]-]{0,64}(?:/|$)|/(?:var|etc|run|usr|proc|sys|opt|home|root|tmp|mnt|dev|lib|srv|boot|data|api|apis)(?:/|$)"
)
_PUBLIC_PEM = frozenset(
    ("CERTIFICATE", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "PUBLIC KEY", "RSA PUBLIC KEY")
)
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----(.*?)(?:(-----END \1-----)|\Z)", re.DOTALL)
_KEY_TAIL = re.compile(
    r"\A(?:[A-Za-z0-9+/=]{0,100}\r?\n){0,500}-----END [A-Z0-9 ]{0,30}(?:PRIVATE KEY|MESSAGE)[A-Z ]{0,10}-----\r?\n?"
)
"""The rest of a private key after the beginning of a file was cut off."""


@functools.lru_cache(maxsize=65536)
def _is_plain_part(part: str) -> bool:
    """Whether a run of letters and digits is a word, a number or a short suffix, as in Kubernetes names."""
    if _NUMBER.fullmatch(part) or _SUFFIXED.fullmatch(part):
        return True
    if len(part) > 80 or (len(part) >= 15 and _UNSPOKEN.search(part)):
        return False
    chunks = _CHUNK.findall(part)
    letters = [chunk for chunk in chunks if not chunk.isdigit()]
    digits = [chunk for chunk in chunks if chunk.isdigit()]
    if not letters or len(digits) > (1 if len(part) > 12 else 2) or any(len(chunk) > 4 for chunk in digits):
        return False
    # identifiers consist of words and acronyms; random text changes case at every other letter
    words = sum(len(chunk) > 2 and bool(chunk.isupper() or _VOWEL.search(chunk)) for chunk in letters)
    return len(letters) <= 2 or 10 * words >= 6 * len(letters)


def _is_plain(word: str) -> bool:
    return all(_is_plain_part(part) for part in re.split(r"[^A-Za-z0-9µ]+", word) if part)


@functools.lru_cache(maxsize=65536)
def _hide_word(word: str) -> str:
    """One word without white space: unchanged, or without the parts that are not known to be harmless."""
    if len(word) < 5 or _is_plain(word):
        return word
    shapes = [match.span() for match in _KNOWN_SHAPES.finditer(word)]
    if shapes:
        rest = "".join(word[end:start] for (_, end), (start, _) in zip([(0, 0), *shapes], [*shapes, (len(word), 0)]))
        if _is_plain(rest):
            return word
    if is_public_base64(word):
        return word
    if _PATH_HEAD.match(word):
        return re.sub(r"[^/:@]+", lambda part: part[0] if _hide_part(part[0]) else MARK, word)
    return MARK


def _hide_part(part: str) -> bool:
    return bool(_is_plain(part) or _KNOWN_SHAPES.search(part) or is_public_base64(part))


def is_public_base64(word: str) -> bool:
    """Whether this is base64 of certificates only, as in kubeconfigs and webhooks."""
    if not word.startswith("LS0tLS1CRUdJTi"):
        return False
    try:
        plain = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return False
    return not _PEM.sub(lambda block: "" if _is_public_block(block) else block[0], plain).strip()


def _is_public_block(block: re.Match[str]) -> bool:
    return block[1] in _PUBLIC_PEM and re.fullmatch(r"[A-Za-z0-9+/=\s\\>|-]*", block[2]) is not None


def _show_block(block: re.Match[str]) -> str:
    if _is_public_block(block):
        return block[0]
    return f"-----BEGIN {block[1]}----- {MARK} -----END {block[1]}-----"


# ---- lines

_NAME = re.compile(
    r"(?:(?<![\w/*.$-])|(?<=[\"']\.))(?:(?P<name>-{0,2}[A-Za-z_][\w.-]{0,100})\\{0,7}[\"']?(?P<sign>[ \t]{0,9}(?:=>|:=|[:=])[ \t]{0,99}|>)"
    r"|(?P<flag>--?[A-Za-z][\w.-]{0,100})[\"']?(?:,?[ \t]{1,99}|,|$))"
)
"""A name, and what separates it from its value: a sign, or white space after a flag."""
_USER_FLAG = re.compile(r"(?<!\S)(-u|--user|--proxy-user|-U)([ =]?)([^\s:\"']{0,200}:[^\s\"']+)")
_SCHEME = re.compile(r"(?i)\b(bearer|basic|digest|negotiate)([ \t]{1,9})([\w.~+/=-]{6,})")
_ADDRESS = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)([^\s\"'`<>\\]+)")
_QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_LONG_QUOTES = ('"""', "'''")
_PUNCTUATION = re.compile(r"[\s\]\[{}(),;-]*")
_BLOCK = re.compile(r"[|>][-+0-9]{0,3}[ \t]*(?:#.*)?")
_FIELD = re.compile(r"(?P<head>[ \t]*(?:- )*[\"']?(?P<name>[\w./-]{1,100})[\"']?[ \t]*[:=](?:[ \t]+|$))(?P<value>.*)")
_OWNER = re.compile(r"\b(?:name|key)\\{0,3}[\"']?[ \t]{0,9}[:=][ \t]{0,9}\\{0,3}[\"']?([\w./-]{1,100})", re.IGNORECASE)
_OWNER_REACH = 2
"""The number of lines before and after a `value:` line in which the name that it belongs to is searched."""


class _Reader:
    """Reads a text line by line: the meaning of a line can depend on the previous ones."""

    def __init__(self, known: frozenset[str], *, has_flags: bool = False) -> None:
        self.known, self.has_flags = known, has_flags
        self.below: Optional[int] = None
        """The indentation of a private name whose value is on the following lines."""
        self.is_value_due = False
        """Whether the previous line ended with a private flag, so that the next one is its value."""
        self.closing = ""
        """The end of a multi-line TOML text that is a private value."""

    def redact(self, text: str) -> str:
        return "\n".join(self._lines(text.split("\n")))

    def _lines(self, lines: list[str]) -> Iterator[str]:
        for number, line in enumerate(lines):
            if len(line) > MAX_LINE:
                line = f"{line[:MAX_LINE].rpartition(' ')[0]} ... (cut by kb, {len(line)} characters)"
            around = lines[max(0, number - _OWNER_REACH) : number + _OWNER_REACH + 1]
            yield self._line(line, around) if line and not line.isspace() else line

    def _line(self, line: str, around: list[str]) -> str:
        indent, content = len(line) - len(line.lstrip()), line.strip()
        if self.closing:
            self.closing = "" if self.closing in line else self.closing
            return MARK
        if self.is_value_due:
            self.is_value_due = False
            if not re.match(r"(?:- )?\"?--?[A-Za-z]", content):
                return line[:indent] + ("- " if content.startswith("- ") else "") + MARK
        if self.below is not None:
            if indent > self.below or (indent == self.below and content.startswith("- ")):
                return self._line_below(line, around)
            self.below = None
        return self._plain_line(line, around)

    def _line_below(self, line: str, around: list[str]) -> str:
        """A line that belongs to the value of a private name: only punctuation and harmless fields stay."""
        field = _FIELD.fullmatch(line)
        if _PUNCTUATION.fullmatch(line):
            return line
        if field is None:
            bullet = re.match(r"\s*(?:- )*", line)
            return (bullet[0] if bullet else "") + MARK
        value = field["value"].strip().rstrip(",")
        if value.lower() in ("", "{", "[", *_HARMLESS_VALUES):
            return line
        if field["name"].lower() in _PUBLIC_FIELDS:
            return self._plain_line(line, around)
        return field["head"] + MARK

    def _plain_line(self, line: str, around: list[str]) -> str:
        line = _ADDRESS.sub(_hide_userinfo, line)
        line = self._hide_named(line, around)
        line = _USER_FLAG.sub(
            lambda found: f"{found[1]}{found[2]}{MARK}" if not _is_id_pair(found[3]) else found[0], line
        )
        line = _SCHEME.sub(
            lambda found: found[0] if found[3].isalpha() and found[3].islower() else f"{found[1]}{found[2]}{MARK}", line
        )
        line = _VENDOR_TOKEN.sub(MARK, line)
        line = _BOOTSTRAP_TOKEN.sub(rf"\1.{MARK}", line)
        return _WORD.sub(lambda found: self._word(found[0]), line)

    def _word(self, word: str) -> str:
        parts = _CONTAINER_ID.split(word) if self.known else [word]
        if len(parts) > 1 and self.known.issuperset(parts[1::2]):
            return "".join(part if at % 2 else _hide_word(part) for at, part in enumerate(parts))
        return _hide_word(word)

    def _hide_named(self, line: str, around: list[str]) -> str:
        """The line without the values of private names, however many it contains."""
        shown: list[str] = []
        at = 0
        while found := _NAME.search(line, at):
            shown.append(line[at : found.end()])
            at = found.end()
            if not self._has_private_value(line, found, around=around):
                continue
            end = _end_of_value(line, found)
            value = line[at:end].strip()
            shown.append(_show_value(line[at:end]))
            if value[:3] in _LONG_QUOTES and value.find(value[:3], 3) < 0:
                self.closing = value[:3]
            elif found["sign"] and ":" in found["sign"] and not line[: found.start()].strip(" \t-\"'"):
                self._expect_value(line, found)  # a YAML field: lines indented deeper belong to it
            if not value or _BLOCK.fullmatch(value) or (_PUNCTUATION.fullmatch(value) and value not in ("[]", "{}")):
                self._expect_value(line, found)
            at = end
        return "".join([*shown, line[at:]])

    def _has_private_value(self, line: str, found: re.Match[str], *, around: list[str]) -> bool:
        name = found["name"] or found["flag"]
        if found["sign"] == ">" and line[found.start() - 1 : found.start()] != "<":
            return False  # not an XML element
        if name.lower() == "value":
            owner = _OWNER.search(line) or next(filter(None, map(_OWNER.search, around)), None)
            if owner is None or is_private_name(owner[1]):
                return True
            is_flag = _FLAG.fullmatch(owner[1])
            is_setting = is_flag and (self.has_flags or _SETTING.fullmatch(line, found.end()))
            return not (is_setting or _PUBLIC_VARIABLES.fullmatch(owner[1]))
        return is_private_name(name)

    def _expect_value(self, line: str, found: re.Match[str]) -> None:
        if found["flag"] or found["name"].startswith("--"):
            self.is_value_due = True
            return
        bare = line.lstrip()
        self.below = len(line) - len(bare) + (1 if bare.startswith("- ") else 0)


def _end_of_value(line: str, found: re.Match[str]) -> int:
    """Where the value after a private name ends."""
    at = found.end()
    quote = re.compile(r"\\{0,7}[\"']").match(line, at)
    if line[at : at + 3] in _LONG_QUOTES:
        closing = line.find(line[at : at + 3], at + 3)
        return closing + 3 if closing >= 0 else len(line)
    if quote:
        quoted = _QUOTED.match(line, at)
        if quoted:
            return quoted.end()
        closing = line.find(quote[0], quote.end())
        return closing + len(quote[0]) if closing >= 0 else len(line)
    if line[at : at + 1] in ("[", "{"):
        closing = line.rfind("]" if line[at] == "[" else "}", at)
        return closing + 1 if closing >= 0 else len(line)
    if found["sign"] == ">":
        closing = line.find("</", at)
        return closing if closing >= 0 else len(line)
    ends = [len(line)]
    if found["flag"] or found["name"].startswith("--"):
        ends += [match.start() for match in (re.compile(r"[\"',\]]|[ \t]+-").search(line, at),) if match]
    elif "=" in found["sign"] or _is_inside_quotes(line, found.start()):
        ends += [match.start() for match in (re.compile(r"[ \t]+[\w.-]{1,60}=|\\?[\"'&]").search(line, at),) if match]
    return min(ends)


def _is_inside_quotes(line: str, at: int) -> bool:
    before = line[max(0, at - 200) : at]
    return before.count('"') % 2 == 1 or before.count("'") % 2 == 1


def _show_value(value: str) -> str:
    """What is shown instead of a private value."""
    bare = value.strip().rstrip(",")
    if bare.lower() in _HARMLESS_VALUES or bare.startswith(MARK) or _PUNCTUATION.fullmatch(bare):
        return value
    if _BLOCK.fullmatch(bare):
        return value
    quote = re.match(r"\\{0,7}[\"']", bare)
    shown = f"{quote[0]}{MARK}{quote[0]}" if quote else MARK
    return shown + ("," if value.rstrip().endswith(",") else "")


def _hide_userinfo(found: re.Match[str]) -> str:
    """Hide `user:password@` in a URL; the `@` in an image's digest is something else."""
    _, sign, rest = found[2].rpartition("@")
    if not sign or rest.startswith("sha256:"):
        return found[0]
    return f"{found[1]}{MARK}@{rest}"


def _is_id_pair(text: str) -> bool:
    """Whether this is `uid:gid`."""
    return re.fullmatch(r"\d{1,10}:\d{1,10}", text) is not None
