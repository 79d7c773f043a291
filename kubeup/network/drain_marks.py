"""The marks of API servers that are about to stop, as the keepers of the load balancers see them.

A mark is an entry of ConfigMap kube-system/kb-drained-api-servers, which a control plane writes (drain.py) and every node may read. A
keeper watches it, takes the marked server out of its haproxy.cfg (load_balancer.py), and says so in an annotation of its own Node.
This module reads marks, decides which of them count, waits for the next, and answers. It changes no file. kubeadm has no counterpart.

A mark does not last: whoever wrote it may be gone. It counts for LAPSE_S after a keeper first saw its serial, by the keeper's own
monotonic clock. A cluster without the ConfigMap, or whose roles are of an older kb and let no node read it, has no marks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from kubeup.cluster.api import Api, ApiRefused, path_of
from kubeup.errors import KbError
from kubeup.frozen_values import frozen
from kubeup.lazy_modules import lazily
from kubeup.network.keeper import POLL_S, RETRY_S

with lazily:
    from kubeup.node import certificates

NAME = "kb-drained-api-servers"
NAMESPACE = "kube-system"
PATH = path_of("ConfigMap", NAME, namespace=NAMESPACE)
ANNOTATION = "kb/drained-api-servers"
"""On a Node: the marks that its load balancer follows, `10.0.0.11:6443=SERIAL`, separated by commas."""
LAPSE_S = 300.0
GONE = "gone:"
"""Begins the serial of a mark whose server does not come back: a load balancer forgets it as soon as the cluster does not list it."""
FORGOTTEN = "forgotten"
"""What a node says instead of the serial once its load balancer does not have the server any more."""
SLACK_S = 5.0
"""How much longer than it was asked for a watch may be silent. An API server that lives ends it in time."""
EARLY_S = 0.5
"""A watch that ends this much too early has run its time."""
_SELECTED = f"{path_of('ConfigMap', '', namespace=NAMESPACE)}?fieldSelector=metadata.name%3D{NAME}"
_EVENT_BYTES = 1 << 20


# ---- values


def key_of(server: str) -> str:
    """The key of a server's mark in the ConfigMap, which may contain neither colons nor brackets: `10.0.0.11_6443`."""
    return server.replace("[", "").replace("]", "").replace(":", "_")


def render_mark(server: str, serial: str) -> str:
    return f"{server}={serial}"


def parse_marks(texts: Collection[str]) -> dict[str, str]:
    """server -> serial, from texts like `10.0.0.11:6443=SERIAL`; anything else is no mark."""
    found = (text.strip().partition("=") for text in texts)
    return {server: serial for server, _, serial in found if server and serial}


def parse_config_map(found: Optional[Mapping[str, Any]]) -> dict[str, str]:
    """server -> serial, from the ConfigMap."""
    return parse_marks(list(((found or {}).get("data") or {}).values()))


def parse_annotation(node: Mapping[str, Any]) -> dict[str, str]:
    """server -> serial, from the annotation of a Node."""
    text = str((node["metadata"].get("annotations") or {}).get(ANNOTATION) or "")
    return parse_marks(text.split(","))


def render_annotation(drained: Mapping[str, str]) -> str:
    return ",".join(render_mark(server, drained[server]) for server in sorted(drained))


@frozen
class Verdict:
    """The marks that count now, server -> serial; servers whose mark has lapsed; servers that stay in although they are marked,
    since no other is left."""

    drained: Mapping[str, str]
    lapsed: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def say(self) -> list[str]:
        """For the log, in words."""
        lines = [f"{server} is drained" for server in sorted(self.drained)]
        lines += [
            f"{server} is put back: its mark was not renewed for {LAPSE_S / 60:.0f} minutes" for server in self.lapsed
        ]
        return lines + [f"{server} is not drained: no other API server is left" for server in self.last]


@dataclass
class Marks:
    """What a keeper knows of the marks."""

    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    """server -> its serial, and when the keeper first saw it, by the host's monotonic clock. In the order of the first marks."""
    version: str = ""
    """The resourceVersion that a watch continues from; "" if none can."""
    answered: Optional[str] = None
    """The annotation on this node; None: not known yet."""

    # ---- look

    def read(self, api: Api) -> None:
        """Read the marks. Those that are known go on to count if the cluster does not answer, which raises KbError, or if this node
        may not read them: an API server that is just starting forbids everything."""
        self.version = ""
        try:
            # resourceVersion=0: the API server answers from its cache, and the watch continues from there
            found = api.get(f"{_SELECTED}&resourceVersion=0") or {}
        except ApiRefused as error:
            if error.http_status != 403:
                raise
            return
        items = found.get("items") or [{}]
        self.note(parse_config_map(items[0]), now=api.host.monotonic())
        self.version = str((found.get("metadata") or {}).get("resourceVersion") or "")

    def note(self, serials: Mapping[str, str], *, now: float) -> None:
        kept = {server: entry for server, entry in self.seen.items() if server in serials}
        for server, serial in sorted(serials.items(), key=lambda entry: entry[1]):
            if kept.get(server, ("", 0))[0] != serial:
                kept[server] = (serial, now)  # a renewed mark keeps its place
        self.seen = kept

    def judge(self, servers: Collection[str], *, now: float) -> Verdict:
        """Which marks count, if these are the cluster's API servers. The earliest do; one server is always left."""
        fresh = {server: serial for server, (serial, at) in self.seen.items() if now - at < LAPSE_S}
        left, last = len(set(servers)), list[str]()
        for server in [server for server in fresh if server in servers]:
            if left > 1:
                left -= 1
            else:
                last.append(server)
        drained = {server: serial for server, serial in fresh.items() if server not in last}
        return Verdict(drained, tuple(server for server in self.seen if server not in fresh), tuple(last))

    def find_gone(self, listed: Collection[str]) -> frozenset[str]:
        """The servers that are marked as gone for good and are not among the cluster's."""
        return frozenset(name for name, (serial, _) in self.seen.items() if serial.startswith(GONE)) - {*listed}

    # ---- change

    def answer(self, api: Api, drained: Mapping[str, str]) -> None:
        """Say on this node's Node which marks its load balancer follows. Asks the cluster only if that changed. Raises KbError."""
        text = render_annotation(drained)
        name = _node_name(api) if text != self.answered else ""
        if not name:
            return
        try:
            api.patch(path_of("Node", name), {"metadata": {"annotations": {ANNOTATION: text or None}}})
        except ApiRefused as error:
            if error.http_status != 404:  # the kubelet has not registered the node yet
                raise
            return
        self.answered = text

    # ---- wait

    def watch(self, connect: Callable[[], Api], *, seconds: float) -> float:
        """Wait until the marks change, `seconds` at most. Returns how many seconds are left to sleep until the next look.

        That is all of them where nothing can be watched, and after a failed round. A watch that broke leaves the rest, but no more than
        RETRY_S: the API server behind it may be the one that is being stopped, and it must neither blind the keeper nor make it spin.
        """
        if not self.version or seconds < POLL_S:
            return seconds
        try:
            api = connect()
            began = api.host.monotonic()
            is_changed = self._sees_change(api, seconds=seconds)
        except KbError:
            return RETRY_S
        left = began + seconds - api.host.monotonic()
        return 0 if is_changed or left < EARLY_S else min(left, RETRY_S)

    def _sees_change(self, api: Api, *, seconds: float) -> bool:
        query = f"&watch=1&resourceVersion={self.version}&timeoutSeconds={seconds:.0f}"
        with api.open(_SELECTED + query, timeout_s=seconds + SLACK_S) as stream:
            first = next(stream.chunks(max_bytes=_EVENT_BYTES), b"") if stream.status == 200 else b""
        return bool(first) and b'"ERROR"' not in first[:64]


def _node_name(api: Api) -> str:
    """The node that this identity belongs to; "" if it is none's, as a bootstrap token."""
    shown = certificates.parse_shown(api.identity.tls.cert_pem or "")
    return certificates.subject_of(shown[0]).common_name.partition("system:node:")[2] if shown else ""
