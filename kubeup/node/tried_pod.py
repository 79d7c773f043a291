"""A static pod as the trials read it: its command line, its mounts, and where a path of the container lies on the host.

The kubelet's and the container's own rules: $(NAME) in a command, the longest mountPath that holds a path, subPath. Pure.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from kubeup.frozen_values import frozen
from kubeup.machine.host import Host
from kubeup.shapes import fit
from kubeup.trouble import Trouble

KNOWN = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
"""The components whose flags kb knows. Of any other static pod only what all pods have is tried."""

_CONTAINER = {
    "name!": str,
    "image!": str,
    "imagePullPolicy!": str,
    "command!": [str],
    "args!": [str],
    "env!": [{"name!": str, "value!": str, "valueFrom": object}],
    "ports!": [{"containerPort": int, "hostPort": int, "protocol!": str}],
    "volumeMounts!": [{"name!": str, "mountPath!": str, "subPath!": str, "subPathExpr!": str}],
}
_SHAPE = {
    "metadata!": {"name!": str},
    "spec!": {
        "hostNetwork": bool,
        "containers!": [_CONTAINER],
        "initContainers!": [_CONTAINER],
        "volumes!": [{"name!": str, "hostPath": {"path!": str, "type!": str}}],
    },
}


@frozen
class Trial:
    """One thing that was tried of a component's new manifest.

    name: manifest | image | flags | feature gates | mounts | files | host ports | certificates | configuration files. Without
    `trouble` and `not_tried`, nothing speaks against it."""

    component: str
    name: str
    trouble: Optional[Trouble] = None
    """Why it would fail."""
    not_tried: str = ""
    """Why it could not be tried, in words: "systemd does not run this machine"."""


@frozen
class Place:
    """Where a path of the container lies. host_path: on the host; None inside the image, or in a volume that is not the host's."""

    host_path: Optional[Path] = None
    volume: str = ""
    """The volume; "" for the image itself."""


@frozen
class TriedPod:
    """A pod of the right shape. `container` is the component's own."""

    component: str
    spec: Mapping[str, Any]
    container: Mapping[str, Any]

    @property
    def is_known(self) -> bool:
        return self.component in KNOWN

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line with $(NAME) replaced, as the kubelet does. Without a command it is the image's, which is unknown: ()."""
        values = {row["name"]: row["value"] for row in self.container["env"] if "valueFrom" not in row}
        command = self.container["command"]
        return tuple(expand(word, values) for word in (*command, *self.container["args"])) if command else ()

    @property
    def open_variables(self) -> tuple[str, ...]:
        """The variables in the command line whose value is known only when the pod runs."""
        later = {row["name"] for row in self.container["env"] if "valueFrom" in row}
        words = " ".join((*self.container["command"], *self.container["args"]))
        return tuple(sorted(later.intersection(re.findall(r"\$\(([^)]+)\)", words))))

    @property
    def flags(self) -> tuple[tuple[str, str], ...]:
        """Every flag of the command line, in order, with its name without dashes. `--flag value` is read like `--flag=value`."""
        words = self.argv[1:]
        found = []
        for word, following in zip(words, (*words[1:], "")):
            name, has_value, value = word.lstrip("-").partition("=")
            if word.startswith("-") and name:
                value = value if has_value or following.startswith("-") else following
                found.append((name.replace("_", "-"), value))
        return tuple(found)

    def flag(self, name: str, default: str = "") -> str:
        """The last value of a flag."""
        return dict(self.flags).get(name, default)

    def containers(self) -> Iterator[Mapping[str, Any]]:
        yield from self.spec["initContainers"]
        yield from self.spec["containers"]

    def locate(self, path: str) -> Place:
        """Where the absolute `path` of the container lies."""
        path = posixpath.normpath(path)
        mounts = [mount for mount in self.container["volumeMounts"] if is_within(path, mount["mountPath"])]
        if not mounts:
            return Place()
        mount = max(mounts, key=lambda one: len(posixpath.normpath(one["mountPath"])))
        host_path = next((v.get("hostPath") for v in self.spec["volumes"] if v["name"] == mount["name"]), None)
        if host_path is None or mount["subPathExpr"]:
            return Place(None, mount["name"])
        rest = posixpath.relpath(path, mount["mountPath"])
        return Place(Path(posixpath.normpath(posixpath.join(host_path["path"], mount["subPath"], rest))), mount["name"])

    def follow(self, host: Host, path: str) -> tuple[str, Place]:
        """The path that the container ends up at, and its place. A link on the host is resolved inside the container, where its
        target may be missing."""
        for _ in range(8):
            place = self.locate(path)
            target = host.read_link(place.host_path) if place.host_path else None
            if target is None:
                break
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return path, place


def is_within(path: str, folder: str) -> bool:
    folder = posixpath.normpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def expand(word: str, values: Mapping[str, str]) -> str:
    """`word` with $(NAME) replaced. An unknown name stays as it is, and $$ is a plain $ (k8s.io/kubernetes/third_party/forked/golang/
    expansion)."""
    return re.sub(r"\$(\$|\(([^)]+)\))", lambda found: "$" if found[1] == "$" else values.get(found[2], found[0]), word)


def read_pod(pod: object) -> TriedPod:
    """The pod of a parsed manifest. Raises ValueError that says what is wrong with its shape."""
    found = fit(pod, _SHAPE, what="the manifest")
    name, spec = found["metadata"]["name"], found["spec"]
    if not name:
        raise ValueError("metadata.name is empty")
    if not spec["containers"]:
        raise ValueError("spec.containers is empty")
    own = next((one for one in spec["containers"] if one["name"] == name), spec["containers"][0])
    return TriedPod(name, spec, own)
