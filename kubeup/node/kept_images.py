"""Images that the kubelet must not delete: those that a node may go back to.

The kubelet deletes what no container uses, once the disk is 85 % full or after imageMaximumGCAge, except what the runtime calls pinned.
containerd has a label for that. kb puts a second one beside it, so that it releases only what it has pinned itself. CRI-O pins what is
listed in its configuration alone, and is left as it is.

Sources: Image.pinned of the CRI and pkg/kubelet/images/image_gc_manager.go; containerd, internal/cri/labels/labels.go
"""

from __future__ import annotations

from collections.abc import Iterable

from kubeup.json_text import as_table
from kubeup.machine.host import Host
from kubeup.machine.waiting import becomes_so
from kubeup.node.crictl import crictl_argv, ctr_argv, last_words, split_json, unit_of
from kubeup.node.image_program import runtime_name

PINNED, OURS = ("io.cri-containerd.pinned", "pinned"), ("kb.io/kept", "former")
"""Label and value."""
_TIMEOUT_S = 30.0
_TAKEN_S = 2.0
"""How long containerd may take to notice a label."""


def keep(host: Host, socket: str, *, images: Iterable[str]) -> str:
    """Pin those of these images that nobody pinned yet. Returns why the kubelet may delete them all the same; "" if it will not."""
    why_not = _find_obstacle(host, socket)
    if why_not:
        return why_not
    pinned = _list(host, socket, label=PINNED)
    names = [name for name in dict.fromkeys(map(runtime_name, images)) if name not in pinned]
    for image in names:
        words = (f"{name}={value}" for name, value in (PINNED, OURS))
        answer = host.run(ctr_argv(socket, "images", "label", image, *words), timeout_s=_TIMEOUT_S)
        if not answer.ok:
            why_not = f"ctr could not label {image}: {last_words(answer.stderr)}"
    if names and not why_not and not becomes_so(host, lambda: _is_pinned(host, socket, names[-1]), timeout_s=_TAKEN_S):
        why_not = "this containerd is too old to know pinned images"
    return why_not


def _is_pinned(host: Host, socket: str, image: str) -> bool:  # noqa: PLR0917
    """Whether the runtime tells the kubelet so; True where it cannot be asked."""
    if not host.which("crictl"):
        return True
    answer = host.query(crictl_argv(socket, "inspecti", "-o", "json", image), timeout_s=_TIMEOUT_S)
    return any(bool(as_table(one.get("status")).get("pinned")) for one in split_json(answer.stdout))


def list_kept(host: Host, socket: str) -> tuple[str, ...]:
    """The images that kb has pinned; none where that cannot be asked."""
    return () if _find_obstacle(host, socket) else _list(host, socket, label=OURS)


def release(host: Host, socket: str) -> None:
    """Let the kubelet delete what kb has pinned. An image that cannot be released stays on the disk, and does no other harm."""
    for image in list_kept(host, socket):
        words = (f"{name}=" for name, _ in (PINNED, OURS))
        host.run(ctr_argv(socket, "images", "label", image, *words), timeout_s=_TIMEOUT_S)


def _find_obstacle(host: Host, socket: str) -> str:
    if unit_of(socket) != "containerd":
        return "only containerd can pin an image for kb"
    return "" if host.which("ctr") else "there is no ctr in PATH, which pins images"


def _list(host: Host, socket: str, *, label: tuple[str, str]) -> tuple[str, ...]:
    name, value = label
    answer = host.query(ctr_argv(socket, "images", "ls", "-q", f'labels."{name}"=={value}'), timeout_s=_TIMEOUT_S)
    return tuple(answer.stdout.split()) if answer.ok else ()
