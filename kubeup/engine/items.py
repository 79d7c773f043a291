"""Plan items that live on a node: how each kind is inspected, compared and applied. For items that live in the cluster, see
engine/cluster_items.py.

There is one class per kind. What Kubernetes wants in them is known by the phases, not here. Items register no undo, because
they are applied through JournalHost, which does so for every change; it only has to be told which lines of a file are kb's. Items
never ask whether this is a dry run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from kubeup.engine.plan import Difference, Fields, Ground, compare_documents, compare_lines, digest_of
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.machine import services
from kubeup.yaml_files import YAMLError, is_same_yaml, load_yaml

if TYPE_CHECKING:
    from kubeup.machine.host import FileStat, Host

DIFFERS = "its content differs"
"""All that is reported of a changed secret."""


class _NodeItem:
    """An item that lives on this node."""

    is_of_cluster = False
    is_blind = False
    is_judged = False

    def record(self, fields: Fields) -> Fields:
        return fields


class _PathItem(_NodeItem):
    """An item at one path, which is also its name."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return _compare_fields(self.name, wanted, found=found)


@frozen
class Folder(_PathItem):
    """A folder. The mode applies only to a new folder: one that another tool made keeps its own."""

    path: Path
    mode: int = 0o755

    places = ()
    """Empty: make_dir registers the folder itself as a workplace of kb's. Registered ahead of time, its parent would be one."""

    def wanted(self) -> Fields:
        return {"kind": "folder"}

    def look(self, run: Ground) -> Optional[Fields]:
        if run.host.is_dir(self.path):
            return {"kind": "folder"}
        return {"kind": "file"} if run.host.exists(self.path) else None

    def apply(self, run: Ground) -> Fields:
        run.host.make_dir(self.path, mode=self.mode)
        return self.wanted()


@frozen
class File(_PathItem):
    """A file with this text.

    YAML files are compared by value, not by spelling.

    keeps: merges the existing text and the wanted text into the one to write, so that fields of others stay.
    has_mode: the mode is compared too; otherwise it applies only to a new file.
    is_secret: no value of the file is shown, or stored elsewhere."""

    path: Path
    text: str
    mode: int = 0o644
    has_mode: bool = False
    is_secret: bool = False
    keeps: Optional[Callable[[str, str], str]] = None
    keeps_rights: bool = False
    """Leave the existing mode and owner alone: an admin.conf that the admin made readable to a group stays readable."""

    @property
    def places(self) -> tuple[Path, ...]:
        return (self.path,)

    def wanted(self) -> Fields:
        mode = {"mode": f"{self.mode:04o}"} if self.has_mode else {}
        return {"content": self.text, **mode}

    def look(self, run: Ground) -> Optional[Fields]:
        found = _stat(run, self.path)
        if found is None or found.is_dir:
            return None if not run.host.exists(self.path) else {"kind": "folder" if found else "dangling link"}
        text = run.host.read_bytes(self.path).decode(errors="surrogateescape")
        mode = {"mode": f"{found.mode:04o}"} if self.has_mode else {}
        return {"content": text, **mode}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        if found is None or "content" not in found:
            return _compare_fields(self.name, wanted, found=found)
        text, other = str(wanted["content"]), str(found["content"])
        if self.keeps is not None and not self.is_same(text, other):
            text = self.keeps(other, text)
        rest = _compare_fields(self.name, _without_content(wanted), found=_without_content(found))
        if self.is_same(text, other):
            return rest
        if self.is_secret:
            return (Difference(self.name, DIFFERS), *rest)
        return (*self._compare_content(text, other), *rest)

    def is_same(self, text: str, other: str) -> bool:
        return is_same_yaml(text, other) if self._is_yaml else text == other

    @property
    def _is_yaml(self) -> bool:
        """Whether to compare the file as YAML: a single document. Several documents are compared literally. Kubeconfigs are YAML
        too; other .conf files are not."""
        is_kubeconfig = self.path.suffix == ".conf" and self.text.startswith("apiVersion:")
        return (self.path.suffix == ".yaml" or is_kubeconfig) and "\n---" not in self.text

    def _compare_content(self, text: str, other: str) -> tuple[Difference, ...]:
        if self._is_yaml:
            try:
                found = compare_documents(self.name, load_yaml(text), found=load_yaml(other))
            except YAMLError:
                found = ()
            if found:
                return found
        return compare_lines(self.name, text, found=other)

    def apply(self, run: Ground) -> Fields:
        text = self.text
        found = self.look(run) if self.keeps is not None else None
        if self.keeps is not None and found and "content" in found:
            text = self.keeps(str(found["content"]), text)
        run.host.write_file(self.path, text, mode=self.mode, keeps=self.keeps_rights)
        return {**self.wanted(), "content": text}

    def record(self, fields: Fields) -> Fields:
        """For secrets and binary content, only the digest is stored: it is enough to see a change."""
        if "content" not in fields or (not self.is_secret and _is_text(str(fields["content"]))):
            return fields
        text = str(fields["content"]).encode(errors="surrogateescape")
        return {**_without_content(fields), "digest": hashlib.sha256(text).hexdigest()}


@frozen
class Issued(_NodeItem):
    """A certificate, key or kubeconfig: made once, and from then on judged by whether it serves its purpose.

    No plan makes a key: `issue` takes it from the pool of keys.

    title: its name, `certificate apiserver`; files: where it is stored; spec: its purpose and the names in it.
    judge: returns "" if it is usable, else the reason why not.
    issue: issues it, or keeps a usable one. May raise HostError if something would be lost."""

    title: str
    files: tuple[Path, ...]
    spec: Fields
    judge: Callable[[Ground], str]
    issue: Callable[[Ground], object]

    is_judged = True

    @property
    def name(self) -> str:
        return self.title

    @property
    def places(self) -> tuple[Path, ...]:
        return self.files

    def wanted(self) -> Fields:
        return {**self.spec, "trouble": ""}

    def look(self, run: Ground) -> Optional[Fields]:
        return {**self.spec, "trouble": self.judge(run)}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        """An unusable certificate counts as drift only if its spec is unchanged."""
        trouble = (found or {}).get("trouble")
        others = {name: value for name, value in (found or {}).items() if name != "trouble"}
        rest = {name: value for name, value in wanted.items() if name != "trouble"}
        if trouble:
            return (Difference(self.name, str(trouble)),) if rest == others else ()
        return _compare_fields(self.name, rest, found=others)

    def apply(self, run: Ground) -> Fields:
        self.issue(run)
        return self.wanted()


@frozen
class MarkedLines(_PathItem):
    """kb's lines in a file of others, recognized by a mark.

    edit: takes the file's text and returns it with kb's lines as they should be and everything else untouched. May raise
    HostError if lines of others conflict."""

    path: Path
    mark: str
    edit: Callable[[str], str]

    @property
    def places(self) -> tuple[Path, ...]:
        return ()

    def wanted(self) -> Fields:
        return {"lines": self._own(self.edit(""))}

    def look(self, run: Ground) -> Optional[Fields]:
        text = self._read(run)
        return {"lines": self.wanted()["lines"] if self.edit(text) == text else self._own(text)}

    def apply(self, run: Ground) -> Fields:
        run.promises.mark_lines(self.path, self.mark)
        run.host.write_file(self.path, self.edit(self._read(run)), keeps=True)
        return self.wanted()

    def _read(self, run: Ground) -> str:
        """Read the file byte for byte: comments may be in any encoding, and lines may end in any way."""
        return run.host.read_bytes(self.path).decode(errors="surrogateescape") if run.host.exists(self.path) else ""

    def _own(self, text: str) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if self.mark in line)


@frozen
class CopiedFile(_PathItem):
    """A copy of another file that is too large to keep in memory, such as a program.

    digest: sha256 of the source; install: makes the copy."""

    path: Path
    digest: str
    install: Callable[[Ground], object]

    @property
    def places(self) -> tuple[Path, ...]:
        return (self.path,)

    def wanted(self) -> Fields:
        return {"sha256": self.digest}

    def look(self, run: Ground) -> Optional[Fields]:
        return {"sha256": digest_of(run, self.path)} if _stat(run, self.path) else None

    def apply(self, run: Ground) -> Fields:
        self.install(run)
        return self.wanted()


@frozen
class MovedAside(_PathItem):
    """A file that is not this node's but would be taken for its own, such as a certificate of another cluster. It is moved aside,
    not removed.

    is_due: whether there is such a file at `path`; told: the note that is printed when it is moved."""

    path: Path
    aside: Path
    is_due: Callable[[Ground], bool]
    told: str

    @property
    def places(self) -> tuple[Path, ...]:
        return ()

    def wanted(self) -> Fields:
        return {"kind": "not another's"}

    def look(self, run: Ground) -> Optional[Fields]:
        return {"kind": "another's"} if self.is_due(run) else self.wanted()

    def apply(self, run: Ground) -> Fields:
        if self.is_due(run):
            run.host.move_file(self.path, self.aside)
            run.report.note(self.told)
        return self.wanted()


@frozen
class Gone(_NodeItem):
    """Something that must no longer exist on this node.

    title: its name; find: describes what is still there; take_away: removes all that is still there; made_by: the steps, in any
    workflow, that made it. Their records are dropped with it."""

    title: str
    find: Callable[[Ground], Sequence[str]]
    take_away: Callable[[Ground], object]
    made_by: tuple[str, ...] = ()

    places = ()

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return {"there": ""}

    def look(self, run: Ground) -> Optional[Fields]:
        return {"there": ", ".join(self.find(run))}

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        there = str((found or {}).get("there", ""))
        return (Difference(self.name, f"{there} still exists"),) if there else ()

    def apply(self, run: Ground) -> Fields:
        self.take_away(run)
        return self.wanted()


@frozen
class Sysctl(_NodeItem):
    """A setting of the running kernel. Making it survive a reboot is the job of a file in the same plan."""

    key: str
    value: str

    places = ()

    @property
    def name(self) -> str:
        return f"sysctl {self.key}"

    def wanted(self) -> Fields:
        return {"value": self.value}

    def look(self, run: Ground) -> Optional[Fields]:
        path = Path("/proc/sys") / self.key.replace(".", "/")
        return {"value": run.host.read_text(path).strip()} if run.host.exists(path) else None

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return _compare_fields(self.name, wanted, found=found)

    def apply(self, run: Ground) -> Fields:
        if self.look(run) != self.wanted():
            self._set(run)
        return self.wanted()

    def _set(self, run: Ground) -> None:
        setting = f"{self.key}={self.value}"
        done = run.host.run(["sysctl", "-w", setting])
        if not done.ok:
            raise HostError(
                f"{self.key} cannot be set to {self.value}",
                cause=done.stderr.strip() or f"sysctl ended with code {done.code}",
                remedy=f"set it where the kernel allows it (a container's host, for one): sysctl -w {setting}; then run the command again",
                code="sysctl-refused",
            )


@frozen
class Remembered(_NodeItem):
    """What reset needs to know of the machine before kb, beyond the files that kb changes. It is registered once, before anything
    changes, as a compensation.

    title: its name; is_known: whether it is registered, or too late to look; read: what to register."""

    title: str
    is_known: Callable[[Ground], bool]
    read: Callable[[Ground], Mapping[str, str]]

    places = ()

    @property
    def name(self) -> str:
        return self.title

    def wanted(self) -> Fields:
        return {"registered": "yes"}

    def look(self, run: Ground) -> Optional[Fields]:
        return self.wanted() if self.is_known(run) else None

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return _compare_fields(self.name, wanted, found=found)

    def apply(self, run: Ground) -> Fields:
        if not self.is_known(run):
            run.promises.register(self.read(run))
        return self.wanted()


@frozen
class KernelModule(_NodeItem):
    """A kernel module to load, now and at boot. On many machines it is built in or already loaded; some machines cannot load any.

    module: its name; path, text: the file that loads it at boot; proof: the path that exists once it is loaded; loss: what does
    not work without it."""

    module: str
    path: Path
    text: str
    proof: Path
    loss: str

    is_judged = True

    @property
    def name(self) -> str:
        return f"kernel module {self.module}"

    @property
    def places(self) -> tuple[Path, ...]:
        return (self.path,)

    def wanted(self) -> Fields:
        return {"loaded": "as far as this machine can"}

    def look(self, run: Ground) -> Optional[Fields]:
        """A missing module is no difference: a machine that cannot load it goes on without it."""
        return self.wanted()

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return ()

    def apply(self, run: Ground) -> Fields:
        if run.host.exists(self.proof):
            return self.wanted()
        done = run.host.run(["modprobe", self.module])
        if done.ok:
            run.host.write_file(self.path, self.text)
        else:
            run.report.warn(f"the {self.name} cannot be loaded ({done.stderr.strip()}): {self.loss}")
        return self.wanted()


# ---- programs that read items


@frozen
class Unit:
    """A systemd unit of kb's own. It reads its files when it starts, and need not be stopped before they change."""

    name: str
    wanted_by: str = "multi-user.target"
    """The target that starts it at boot."""

    @property
    def places(self) -> tuple[Path, ...]:
        return (Path(f"/etc/systemd/system/{self.wanted_by}.wants") / self.name,)

    def is_running(self, run: Ground) -> bool:
        return services.read_state(run.host, self.name) == "active"

    def stop(self, run: Ground) -> None:
        """Nothing to do: the unit need not be stopped."""

    def start(self, run: Ground) -> None:
        services.start_own_unit(run.host, self.name)

    def settle(self, run: Ground) -> None:
        """Nothing to do: `start` enables the unit."""

    def take_back(self, host: Host) -> None:
        """Stop the unit and disable it."""
        services.stop_own_unit(host, self.name)


# ---- common


def _stat(run: Ground, path: Path) -> Optional[FileStat]:
    """Stat the file that this path resolves to, following links; None if there is none."""
    found = run.host.stat(path)
    if found is not None and found.is_symlink:
        found = run.host.stat(run.host.real_path(path))
    return None if found is None or found.is_symlink else found


def _is_text(content: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in content)


def _without_content(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "content"}


def _compare_fields(item: str, wanted: Fields, *, found: Optional[Fields]) -> tuple[Difference, ...]:
    if found is None:
        return (Difference(item, ""),)
    return tuple(
        Difference(item, name, str(wanted.get(name, "")), str(found.get(name, "")))
        for name in (*wanted, *(name for name in found if name not in wanted))
        if wanted.get(name) != found.get(name) and name != "content"
    )
