"""Runs on a node: keeps a copy of the ConfigMaps of `default` up to date as client-go's reflector does, and writes it down after each event.

    python3 watcher.py KUBECONFIG COPY

It lists, then watches from where the list was made; a connection that breaks goes on from the last event seen, and only when the API
server says that it does not have that any more (410) is everything listed again. COPY: JSON of {"copy": {name: uid}, "at": the last
resource version, "lists": how many times everything was listed, "back": events that were older than one seen before}. Only the standard
library and kubectl, whose client it is that calls: this is copied to the node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__)
WHERE = "/api/v1/namespaces/default/configmaps"


class Watcher:
    def __init__(self, kubeconfig: str, target: str) -> None:
        self.argv = ["kubectl", "--kubeconfig", kubeconfig, "get", "--raw"]
        self.target = target
        self.copy: dict[str, str] = {}
        self.at, self.lists, self.back = 0, 0, 0

    def list_all(self) -> bool:
        """Whether there was an answer."""
        done = subprocess.run([*self.argv, WHERE], capture_output=True, text=True)
        if done.returncode:
            return False
        found = json.loads(done.stdout)
        self.copy = {item["metadata"]["name"]: item["metadata"]["uid"] for item in found["items"]}
        self.at, self.lists = int(found["metadata"]["resourceVersion"]), self.lists + 1
        self.save()
        return True

    def watch(self) -> bool:
        """Follow the events until they end. Whether one can go on from the last."""
        path = f"{WHERE}?watch=1&allowWatchBookmarks=true&resourceVersion={self.at}"
        with subprocess.Popen([*self.argv, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    process.kill()
                    return bool(event["object"].get("code") != 410)
                self.take(event["type"], event["object"]["metadata"])
            said = process.stderr.read()
        return "Expired" not in said and "too old" not in said

    def take(self, kind: str, metadata: dict[str, Any]) -> None:
        version = int(metadata["resourceVersion"])
        self.back += version < self.at
        self.at = version
        if kind == "DELETED":
            self.copy.pop(metadata["name"], None)
        elif kind != "BOOKMARK":
            self.copy[metadata["name"]] = metadata["uid"]
        self.save()

    def save(self) -> None:
        part = f"{self.target}.part"
        Path(part).write_text(json.dumps({"copy": self.copy, "at": self.at, "lists": self.lists, "back": self.back}))
        os.replace(part, self.target)


def main(words: Sequence[str]) -> None:
    watcher, is_listed = Watcher(*words), False
    while True:
        is_listed = watcher.watch() if is_listed else watcher.list_all()
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
