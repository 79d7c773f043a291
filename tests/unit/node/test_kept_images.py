"""kept_images: the former images of a node, pinned in containerd for as long as they may be needed."""

from __future__ import annotations

import json

from kubeup.machine.host import CommandResult
from kubeup.node import kept_images
from tests.fake_host import Answer, FakeHost

SOCKET = "unix:///run/containerd/containerd.sock"
CTR = "ctr --connect-timeout 5s -a /run/containerd/containerd.sock -n k8s.io images"
OLD, SANDBOX = "registry.k8s.io/kube-apiserver:v1.35.6", "registry.k8s.io/pause:3.10"


class Images:
    """ctr's images and their labels."""

    knows_pins = True

    def __init__(self, *names: str) -> None:
        self.labels: dict[str, dict[str, str]] = {name: {} for name in names}

    def host(self, *, programs: tuple[str, ...] = ("ctr",)) -> FakeHost:
        answers: dict[str, Answer] = {f"{CTR} ls": self._list, f"{CTR} label": self._label, "crictl": self._inspect}
        return FakeHost(programs=set(programs), answers=answers)

    def _list(self, argv: tuple[str, ...]) -> CommandResult:
        name, _, value = argv[-1].partition("==")
        label = name[len('labels."') : -1]
        found = [image for image, labels in self.labels.items() if labels.get(label) == value]
        return CommandResult(argv, 0, "\n".join(found) + "\n")

    def _label(self, argv: tuple[str, ...]) -> CommandResult:
        image, *words = argv[argv.index("label") + 1 :]
        if image not in self.labels:
            return CommandResult(argv, 1, "", f'ctr: image "{image}": not found')
        for word in words:
            name, _, value = word.partition("=")
            self.labels[image][name] = value
        return CommandResult(argv, 0)

    def _inspect(self, argv: tuple[str, ...]) -> CommandResult:
        is_pinned = self.knows_pins and argv[-1] in self.pinned()
        return CommandResult(argv, 0, json.dumps({"status": {"pinned": True} if is_pinned else {}}))

    def pinned(self) -> set[str]:
        return {image for image, labels in self.labels.items() if labels.get(kept_images.PINNED[0]) == "pinned"}


def test_what_is_kept_is_released_and_what_others_pinned_stays() -> None:
    images = Images(OLD, SANDBOX)
    images.labels[SANDBOX] = {kept_images.PINNED[0]: "pinned"}
    host = images.host()
    assert kept_images.keep(host, SOCKET, images=[OLD, SANDBOX, OLD]) == ""
    assert images.pinned() == {OLD, SANDBOX}
    assert kept_images.list_kept(host, SOCKET) == (OLD,)
    assert kept_images.keep(host, SOCKET, images=[OLD]) == ""
    kept_images.release(host, SOCKET)
    assert images.pinned() == {SANDBOX}
    assert kept_images.list_kept(host, SOCKET) == ()
    kept_images.release(host, SOCKET)


def test_an_image_is_named_as_the_runtime_names_it() -> None:
    images = Images("docker.io/library/haproxy:3.2")
    assert kept_images.keep(images.host(), SOCKET, images=["haproxy:3.2"]) == ""
    assert images.pinned() == {"docker.io/library/haproxy:3.2"}


def test_a_containerd_that_ignores_the_label_is_named() -> None:
    images = Images(OLD)
    images.knows_pins = False
    assert "too old" in kept_images.keep(images.host(programs=("ctr", "crictl")), SOCKET, images=[OLD])
    images = Images(OLD)
    assert kept_images.keep(images.host(programs=("ctr", "crictl")), SOCKET, images=[OLD]) == ""


def test_what_cannot_be_kept_is_said() -> None:
    images = Images()
    assert "not found" in kept_images.keep(images.host(), SOCKET, images=[OLD])
    assert "no ctr" in kept_images.keep(images.host(programs=()), SOCKET, images=[OLD])
    crio = "unix:///var/run/crio/crio.sock"
    assert "only containerd" in kept_images.keep(images.host(), crio, images=[OLD])
    assert kept_images.list_kept(images.host(), crio) == ()
    kept_images.release(images.host(), crio)
