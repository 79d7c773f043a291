"""The lab's image registry: Debian's docker-registry, filled from an OCI layout without a single push.

It answers in the lab's network only. Its storage is a folder of files, so a test may take an image away or damage one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from . import images
from .node import read_start_time, wait_until
from .settings import Release
from .shell import sh

if TYPE_CHECKING:
    from .lab import Lab

CONFIG = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {storage}}}
http:
  addr: {address}
"""


def split_name(name: str) -> tuple[str, str]:
    """The repository and the tag that a mirror serves an image name under: the name without its registry's host."""
    repository, _, tag = name.partition("/")[2].rpartition(":")
    return repository, tag


class Registry:
    """Start it, fill it, stop it, as often as wanted."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.folder = lab.folder / "registry"
        self.address = f"{lab.gateway}:5000"
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def _storage(self) -> Path:
        return self.folder / "docker/registry/v2"

    def add_release(self, release: Release) -> list[str]:
        """Offer all images of a release; returns their names."""
        return self.add_layout(images.ensure_layout(release))

    def add_layout(self, layout: Path) -> list[str]:
        """Offer all images of an OCI layout; returns their names."""

        def read(digest: str) -> dict[str, Any]:
            document: dict[str, Any] = json.loads((layout / "blobs/sha256" / digest.partition(":")[2]).read_text())
            return document

        for entry in json.loads((layout / "index.json").read_text())["manifests"]:
            top = read(entry["digest"])
            children = [child["digest"] for child in top.get("manifests", ())]
            manifests = [read(child) for child in children] or [top]
            blobs = [blob["digest"] for manifest in manifests for blob in (manifest["config"], *manifest["layers"])]
            name = entry["annotations"]["io.containerd.image.name"]
            self._add(layout, name, entry["digest"], children=children, blobs=blobs)
        return images.list_names(layout)

    def _add(self, layout: Path, name: str, manifest: str, *, children: list[str], blobs: list[str]) -> None:
        repository, tag = split_name(name)
        for digest in (manifest, *children, *blobs):
            plain = digest.partition(":")[2]
            data = self._storage / "blobs/sha256" / plain[:2] / plain / "data"
            data.parent.mkdir(parents=True, exist_ok=True)
            if not data.exists():
                # A copy and no hard link: a test that damages it must not damage the cache.
                sh(["cp", "--reflink=auto", str(layout / "blobs/sha256" / plain), str(data)])
        top = self._storage / "repositories" / repository
        for digest in blobs:
            self._link(top / "_layers", digest)
        for digest in (manifest, *children):
            self._link(top / "_manifests/revisions", digest)
        self._link(top / "_manifests/tags" / tag / "index", manifest)
        (top / "_manifests/tags" / tag / "current").mkdir(exist_ok=True)
        (top / "_manifests/tags" / tag / "current/link").write_text(manifest)

    @staticmethod
    def _link(folder: Path, digest: str) -> None:
        place = folder / "sha256" / digest.partition(":")[2]
        place.mkdir(parents=True, exist_ok=True)
        (place / "link").write_text(digest)

    def remove_image(self, name: str) -> None:
        """Stop offering one image."""
        repository, tag = split_name(name)
        shutil.rmtree(self._storage / "repositories" / repository / "_manifests/tags" / tag)

    def find_blob(self, digest: str) -> Path:
        """The file behind a digest, for a test that wants to damage it."""
        plain = digest.partition(":")[2]
        return self._storage / "blobs/sha256" / plain[:2] / plain / "data"

    def clear(self) -> None:
        """Offer nothing any more."""
        shutil.rmtree(self.folder / "docker", ignore_errors=True)

    def start(self) -> Registry:
        """Serve, if that is not done yet."""
        if self.is_running():
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yml"
        config.write_text(CONFIG.format(storage=self.folder, address=self.address))
        with (self.folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._lab.enter_argv(), "docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        state = {"pid": self._process.pid, "start": read_start_time(self._process.pid)}
        (self.folder / "running.json").write_text(json.dumps(state))
        probe = ["curl", "--silent", "--fail", f"http://{self.address}/v2/"]
        wait_until(lambda: self._lab.exec(probe, check=False).ok, what="the lab's registry", timeout_s=15)
        return self

    def is_running(self) -> bool:
        """Whether it serves."""
        return self._find_process() is not None

    def _find_process(self) -> Optional[int]:
        try:
            state = json.loads((self.folder / "running.json").read_text())
        except FileNotFoundError:
            return None
        if self._process is not None:
            self._process.poll()
        return int(state["pid"]) if read_start_time(state["pid"]) == state["start"] is not None else None

    def stop(self) -> None:
        """Stop serving; what is stored stays."""
        pid = self._find_process()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=10)
            self._process = None
        (self.folder / "running.json").unlink(missing_ok=True)
