"""Lists the runtime's images, pulls missing ones, and explains why a pull fails.

Mirrors cmd/kubeadm/app/images/images.go and the pulls of cmd/kubeadm/app/util/runtime/runtime.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from kubeup.config.types import NodeConfig
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.json_text import as_table
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import images
from kubeup.node.crictl import crictl_argv, ctr_argv, find_unit, install_command, last_words
from kubeup.releases import Release
from kubeup.report import Report
from kubeup.shapes import fit_what_does
from kubeup.trouble import advise

PULL_ATTEMPTS = 5
PULL_TIMEOUT_S = 1800.0
"""Long enough for an image of 100 MB on a slow connection. The runtime itself ends a pull that makes no progress."""
PARALLEL_PULLS = 4


def full_image_name(name: str) -> str:
    """The image name as the runtime stores it: `busybox` -> `docker.io/library/busybox:latest`."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def registry_of(image: str) -> str:
    return full_image_name(image).partition("/")[0]


def list_images(host: Host, socket: str) -> set[str]:
    """The full names (by tag and by digest) of all images in the runtime.

    Raises HostError: no-cri-client, images-unreadable.
    """
    look = crictl_argv(socket, "info")
    if host.which("crictl"):
        answer = host.query(crictl_argv(socket, "images", "-o", "json"), timeout_s=30)
        if answer.ok:
            rows = fit_what_does(as_table(answer.stdout).get("images"), [{"repoTags!": [str], "repoDigests!": [str]}])
            return {name for row in rows for name in (*row["repoTags"], *row["repoDigests"])}
    elif host.which("ctr"):
        look = ctr_argv(socket, "version")
        answer = host.query(ctr_argv(socket, "images", "ls", "-q"), timeout_s=30)
        if answer.ok:
            return set(answer.stdout.split())
    else:
        raise _no_client(host, socket)
    raise HostError(
        f"the images of the runtime at {socket} cannot be listed",
        cause=last_words(answer.stderr),
        remedy=f"see whether it runs: {' '.join(look)}",
        code="images-unreadable",
    )


def _no_client(host: Host, socket: str) -> HostError:
    return HostError(
        f"the runtime at {socket} cannot be asked",
        cause="neither crictl nor ctr is in PATH",
        remedy=f"install crictl: {install_command(host, 'cri-tools')}",
        code="no-cri-client",
    )


class ImagePullError(HostError):
    """An image could not be pulled. kind: not-found | unauthorized | tls | dns | refused | timeout | no-space | limited |
    runtime | other."""

    def __init__(self, image: str, kind: str, *, cause: str, remedy: str) -> None:
        super().__init__(f"cannot pull {image}", cause=cause, remedy=remedy, code="image-pull-failed")
        self.image = image
        self.kind = kind


@frozen
class _PullTrouble:
    """One way in which a pull fails. heals: a retry may help. {registry}, {image}, {restart} and {log} are replaced in the texts."""

    kind: str
    pattern: str
    cause: str
    remedy: str
    heals: bool = False


_OTHER_REGISTRY = "or set imageRepository to a registry that this node reaches"

_PULL_TROUBLES = (
    _PullTrouble(
        "no-space",
        r"no space left on device|disk quota exceeded",
        "the disk that holds the runtime's images is full",
        "make space there: df -h /var/lib/containerd /var/lib/containers",
    ),
    _PullTrouble(
        "runtime",
        r"validate service connection|validate CRI|dial unix|connect: permission denied|failed to dial",
        "the runtime does not answer",
        "{restart} (why: {log})",
        heals=True,
    ),
    _PullTrouble(
        "tls",
        r"x509:|server gave HTTP response to HTTPS client|tls: |does not look like a TLS handshake",
        "the TLS handshake with {registry} fails",
        "give the runtime the registry's CA, or http:// if it speaks no TLS: /etc/containerd/certs.d/{registry}/hosts.toml",
    ),
    _PullTrouble(
        "dns",
        r"no such host|server misbehaving|name resolution|lookup \S+( on \S+)?: ",
        "the name {registry} does not resolve",
        f"fix the name servers in /etc/resolv.conf, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "refused",
        r"connection refused|connection reset",
        "nothing at {registry} accepts the connection",
        f"see whether the registry runs, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "timeout",
        r"i/o timeout|[Dd]eadline|handshake timeout|no route to host|network is unreachable|did not end within|timed out",
        "{registry} is not reachable from this node",
        f"open the way to it in the firewall, {_OTHER_REGISTRY}",
        heals=True,
    ),
    _PullTrouble(
        "limited",
        r"429|toomanyrequests|Too Many Requests",
        "{registry} limits how much this address may pull",
        "pull with credentials: crictl pull --creds USER:PASSWORD {image}",
        heals=True,
    ),
    _PullTrouble(
        "unauthorized",
        r"40[13]\b|[Uu]nauthorized|authorization failed|denied|no basic auth|may require authorization",
        "{registry} refuses it without (or with these) credentials",
        "pull it with credentials: crictl pull --creds USER:PASSWORD {image}",
    ),
    _PullTrouble(
        "not-found",
        r"not found|404\b|manifest unknown|NAME_UNKNOWN|no match for platform",
        "{registry} has no such image",
        "correct imageRepository or the tag; what is wanted: kb config images list",
    ),
)
_OTHER_TROUBLE = _PullTrouble(
    "other", "", "the runtime gave up", "pull it by hand and read on: crictl pull {image}", heals=True
)


def explain_pull_failure(
    host: Host, image: str, *, text: str, env: Optional[Mapping[str, str]] = None
) -> ImagePullError:
    """The error that explains the runtime's message about a failed pull. It names a mirror that was used instead of the registry.

    `env`: kb's environment. A proxy in it is mentioned, because the runtime pulls, and does not see kb's environment.
    """
    trouble = next((item for item in _PULL_TROUBLES if re.search(item.pattern, text)), _OTHER_TROUBLE)
    registry = registry_of(image)
    unit = find_unit(host)
    manager, log = services.spoken_of(host), services.say_log(host, unit, lines=20)
    restart = manager.say("restart", unit)
    remedy = trouble.remedy.format(registry=registry, image=image, restart=restart, log=log)
    asked = re.search(r'\b(?:Head|Get) \\?"https?://([^/"]+)/', text)
    server = f"{asked.group(1)} (asked for {registry})" if asked and asked.group(1) != registry else registry
    proxy = next((env[name] for name in ("HTTPS_PROXY", "https_proxy") if env and env.get(name)), "")
    if proxy and trouble.kind in ("dns", "refused", "timeout"):
        remedy = (
            "the runtime does not see this shell's HTTPS_PROXY: give it that (and NO_PROXY): "
            f"{manager.say_environment(unit)}HTTPS_PROXY=...; then: {restart}"
        )
    return ImagePullError(image, trouble.kind, cause=f"{trouble.cause.format(registry=server)} ({text})", remedy=remedy)


def pull_image(host: Host, socket: str, *, image: str, timeout_s: float = PULL_TIMEOUT_S) -> None:
    """Pull an image, with one attempt. Raises ImagePullError, or HostError (no-cri-client)."""
    if host.which("crictl"):
        answer = host.run(crictl_argv(socket, "pull", image), timeout_s=timeout_s)
    elif host.which("ctr"):
        hosts = ("--hosts-dir", "/etc/containerd/certs.d") if host.is_dir(Path("/etc/containerd/certs.d")) else ()
        words = ("images", "pull", *hosts, full_image_name(image))
        answer = host.run(ctr_argv(socket, *words), timeout_s=timeout_s)
    else:
        raise _no_client(host, socket)
    if not answer.ok:
        raise explain_pull_failure(host, image, text=last_words(answer.stderr), env=host.environ())


@frozen
class ImagesResult:
    """The result of ensure_images."""

    present: tuple[str, ...] = ()
    pulled: tuple[str, ...] = ()
    failed: tuple[ImagePullError, ...] = ()


def ensure_images(
    host: Host,
    socket: str,
    *,
    names: Sequence[str],
    policy: str = "IfNotPresent",
    is_serial: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> ImagesResult:
    """Ensure that the runtime has the images. policy, as in nodeRegistration.imagePullPolicy: Always | IfNotPresent | Never.

    A pull is tried five times if a retry may help, else once. After a registry was unreachable five times, its other images get one
    attempt each. Failed pulls are returned, not raised. Raises HostError if the runtime cannot be asked.
    """
    if policy == "Never":
        return ImagesResult()
    have = list_images(host, socket)  # even if all are pulled, to report a runtime that does not answer at once
    present = tuple(image for image in names if policy == "IfNotPresent" and full_image_name(image) in have)
    wanted = [image for image in names if image not in present]
    unreachable: set[str] = set()
    counted = {image: index for index, image in enumerate(wanted, start=1)}

    def fetch(image: str) -> Optional[ImagePullError]:
        tell(f"pulling {image} ({counted[image]} of {len(wanted)})")
        return _pull_patiently(host, socket, image=image, unreachable=unreachable)

    if is_serial or len(wanted) < 2:
        ends = [fetch(image) for image in wanted]
    else:
        with ThreadPoolExecutor(PARALLEL_PULLS) as pool:
            ends = list(pool.map(fetch, wanted))
    failed = tuple(end for end in ends if end is not None)
    pulled = tuple(image for image, end in zip(wanted, ends) if end is None)
    return ImagesResult(present, pulled, failed)


def _pull_patiently(host: Host, socket: str, *, image: str, unreachable: set[str]) -> Optional[ImagePullError]:
    """Pull an image, with retries after a pause if they may help; return the last error, or None."""
    registry = registry_of(image)
    pause_s = 0.5
    for attempt in range(1, PULL_ATTEMPTS + 1):
        try:
            pull_image(host, socket, image=image)
            return None
        except ImagePullError as error:
            may_heal = next((item.heals for item in _PULL_TROUBLES if item.kind == error.kind), True)
            if not may_heal or registry in unreachable:
                return error
            if attempt == PULL_ATTEMPTS:
                if error.kind in ("dns", "refused", "timeout"):
                    unreachable.add(registry)
                return error
        host.sleep(pause_s)
        pause_s *= 2
    return None


def group_failures(failed: Iterable[ImagePullError]) -> list[ImagePullError]:
    """Merge the failures of images that fail in the same way with the same registry, instead of repeating one line seven times."""
    groups: dict[tuple[str, str], list[ImagePullError]] = {}
    for error in failed:
        alone = error.image if error.kind in ("not-found", "other") else ""
        groups.setdefault((error.kind, alone or registry_of(error.image)), []).append(error)
    merged = []
    for (kind, _), errors in groups.items():
        first = errors[0]
        names = ", ".join(error.image for error in errors)
        merged.append(
            first if len(errors) == 1 else ImagePullError(names, kind, cause=first.cause, remedy=first.remedy)
        )
    return merged


def pull_images(host: Host, config: NodeConfig, *, release: Release, report: Report) -> tuple[str, ...]:
    """`kb config images pull`: pull every image of a control-plane node; return their names.

    Raises HostError (images-not-pulled), which names every image that could not be pulled, and why.
    """
    wanted = images.list_node_images(config, release)
    node = config.node
    result = ensure_images(
        host, node.cri_socket, names=wanted, policy="Always", is_serial=node.image_pull_serial, tell=report.waiting
    )
    if result.failed:
        groups = group_failures(result.failed)
        raise HostError(
            f"{len(result.failed)} of {len(wanted)} images could not be pulled",
            cause=groups[0].cause,
            remedy=groups[0].remedy,
            code="images-not-pulled",
            details=[advise(group) for group in groups],
        )
    return tuple(wanted)
