"""Runs on a node: starts kb.pyz in this process, writes down every change that it makes to the machine or to the cluster, and ends
it by SIGKILL right after the one that is asked for: the nth of these words in that phase, or the first one that is not among those that
were known before.

    python3 -I change_killer.py '{"argv": ["kb.pyz", "join", ...], "phase": "join/etcd-join", "change": "save the state", "nth": 2}'
    python3 -I change_killer.py '{"argv": ["kb.pyz", "join", ...], "known": [["join/etcd-join", "save the state"], ...]}'

-I, since a test's own file beside it may have the name of a module of the standard library (token.py: it ran instead). kb has no hook
for this: the methods by which its LocalHost changes things are wrapped when its module has been imported. Which phase is at work is
read from the state that kb saves. CHANGES_LOG gets a line for each change, ["join/etcd-join", "write_file
/etc/..."], and at its end how it ended. Only the standard library, for this is copied to the node.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

PROGRAM = Path(__file__)
CHANGES_LOG = "/root/changes.log"
STATE = "/var/lib/kb/state.json"
VERBS = ("write_file", "write_stream", "move_file", "make_dir", "symlink", "remove", "remove_tree", "copy_attributes", "put_back",
         "run", "http_send")  # fmt: skip
TELLS_WHETHER = ("write_file", "make_dir", "symlink", "remove", "remove_tree", "put_back")
"""These return whether anything changed."""


class Watch:
    """Waits for one change of a phase. known: (phase, change) of all but the one to wait for, in phases that `phase` is found in as a pattern;
    None: the other words name it."""

    def __init__(self, phase: str, change: str, nth: int, known: Optional[Collection[tuple[str, str]]] = None) -> None:
        self.phase, self.change, self.left, self.known = phase, change, nth, known
        self.running = ""
        self.seen: dict[str, Any] = {}
        if os.path.exists(STATE):
            self.seen = json.loads(Path(STATE).read_text())["phases"]
        self.log = Path(CHANGES_LOG).open("w", buffering=1)  # noqa: SIM115 (for as long as the process)

    def made(self, verb: str, words: Sequence[Any]) -> None:
        """After a change."""
        what = re.sub("[0-9a-f]{32,}", "ID", f"{verb} {describe(verb, words)}")
        what = re.sub(r"(/pods/\S+)-[bcdfghjklmnpqrstvwxz2-9]{5}$", r"\1-ID", what)  # a controller makes it anew
        what = re.sub(r"records/\d+", "records/N", what)  # each run that changes something has a generation
        what = re.sub(r"\d{8}T\d{6}(Z(\.\d+)?)?|\d{4}(-\d\d){5}", "TIME", what)
        running = self.running
        if verb == "write_file" and str(words[0]) == STATE:
            running = self._read_state(words[1])
            what = "save the state"
        self.log.write(json.dumps([running or self.running, what]) + "\n")
        phase = running or self.running
        self.running = running
        if self.known is not None:
            is_wanted = not self.phase or re.search(self.phase, phase)
            self.left = 0 if is_wanted and (phase, what) not in self.known else 1
        elif phase == self.phase and what == self.change:
            self.left -= 1
        else:
            return
        if self.left == 0:
            self.log.write(json.dumps(["killed", what]) + "\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def _read_state(self, data: Any) -> str:
        """The phase that is at work by the state that was just saved."""
        phases = json.loads(data)["phases"]
        changed = [name for name, entry in phases.items() if self.seen.get(name) != entry]
        self.seen = phases
        begun = [name for name in changed if phases[name]["status"] == "running"]
        if begun:
            return str(begun[0])
        return "" if self.running and phases.get(self.running, {}).get("status") != "running" else self.running


def describe(verb: str, words: Sequence[Any]) -> str:
    if verb == "run":
        return " ".join(str(word) for word in words[0])
    if verb == "http_send":
        return f"{words[0]} {str(words[1]).partition('?')[0]}"
    return " ".join(str(word) for word in words[: 2 if verb in ("move_file", "symlink") else 1])


class AfterImport(importlib.abc.MetaPathFinder):
    """Lets kb's modules be found as ever, and wraps LocalHost in the one that defines it."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.is_asking = False

    def find_spec(self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None) -> Any:
        if self.is_asking or not name.startswith("kubeup."):
            return None
        self.is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = WrapLoader(spec.loader, self.watch)
        return spec


class WrapLoader(importlib.abc.Loader):
    def __init__(self, inner: Any, watch: Watch) -> None:
        self.inner, self.watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_module(self, spec: Any) -> Any:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.inner
        self.inner.exec_module(module)
        found = vars(module).get("LocalHost")
        if isinstance(found, type) and found.__module__ == module.__name__:
            for verb in VERBS:
                if hasattr(found, verb):
                    setattr(found, verb, wrap(verb, getattr(found, verb), self.watch))


def wrap(verb: str, method: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    def change(host: Any, *words: Any, **more: Any) -> Any:
        result = method(host, *words, **more)
        if result or verb not in TELLS_WHETHER:
            watch.made(verb, words)
        return result

    return change


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    sys.argv = wish["argv"]
    known = {tuple(one) for one in wish["known"]} if "known" in wish else None
    watch = Watch(wish.get("phase", ""), wish.get("change", ""), wish.get("nth", 0), known)
    sys.meta_path.insert(0, AfterImport(watch))
    runpy.run_path(sys.argv[0], run_name="__main__")
