"""The items of plans that lie on a node: what each kind of thing is, how it is looked at, told apart, and made. Those that the cluster
holds are in engine/cluster_items.py.

Owns one class a kind, and no knowledge of what Kubernetes wants in them: phases say that. Must not register an undo (the
journal's host, by which items are applied, does it for every change; which lines of a file are kb's it has to be told) and must not ask
whether this is a dry run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
"""What is told of a secret."""


class _NodeItem:
    """What lies on this node."""

    is_of_cluster = False
    is_blind = False
    is_judged = False

    def record(self, fields: Fields) -> Fields:
        return fields


class _PathItem(_NodeItem):
    """What lies at one path, and is called by it."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def differences(self, wanted: Fields, found: Optional[Fields]) -> tuple[Difference, ...]:
        return _compare_fields(self.name, wanted, found=found)


@frozen
class Folder(_PathItem):
    """A folder. Its mode is that of a new one: what another tool made stays as it is."""

    path: Path
    mode: int = 0o755

    places = ()
    """It is registered when it is made: a whole folder is a workplace of kb's then, and the one round it is not."""

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

    A YAML file is the same in whoever's spelling. keeps: out of what lies there (its text) and what is wanted, the text that is
    really wanted: fields that belong to others stay. has_mode: its mode is part of it, and not only that of a new file.
    is_secret: no value of it is shown or kept elsewhere."""

    path: Path
    text: str
    mode: int = 0o644
    has_mode: bool = False
    is_secret: bool = False
    keeps: Optional[Callable[[str, str], str]] = None
    keeps_rights: bool = False
    """Who may read it is its owner's business: an admin.conf that was given to a group stays so."""

    @property
    def places(self) -> tuple[Path, ...]:
        return (self.path,)

    def wanted(self) -> Fields:
        mode = {"mode": f"{self.mode:04o}"} if self.has_mode else {}
        return {"content": self.text, **mode}

    def look(self, run: Ground) -> Optional[Fields]:
        found = _stat(run, self.path)
        if found is None or found.is_dir:
            return None if not run.host.exists(self.path) else {"kind": "folder" if found else "link into nowhere"}
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
        """One document: several are compared to the letter. Kubeconfigs are YAML too; what else ends in .conf is not."""
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
        """Of a secret, and of what is no text, its digest: it says whether it is another one."""
        if "content" not in fields or (not self.is_secret and _is_text(str(fields["content"]))):
            return fields
        text = str(fields["content"]).encode(errors="surrogateescape")
        return {**_without_content(fields), "digest": hashlib.sha256(text).hexdigest()}


@frozen
class Issued(_NodeItem):
    """A certificate, key or kubeconfig: made once, and from then on judged by what it is for. No plan makes a key: `issue` asks the
    pool of keys.

    title: `certificate apiserver`; places: its files; spec: what it is for, the names in it; judge: "" where it serves, or why it
    does not; issue: makes it, or keeps it. It may raise HostError where something would be lost."""

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
        """What does not serve any more is no drift where something else is wanted of it now."""
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
    """A line of kb's in a file of others, known by its mark. edit: the file's text with the line as it is to be; all else in it
    stays. It may raise HostError where others' lines stand against it."""

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
        """Byte for byte: a comment may be in any encoding, lines may end as they like."""
        return run.host.read_bytes(self.path).decode(errors="surrogateescape") if run.host.exists(self.path) else ""

    def _own(self, text: str) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if self.mark in line)


@frozen
class CopiedFile(_PathItem):
    """A file that is the copy of another one: of a program, too large to be held. digest: of `source`, sha256; install: makes the
    copy."""

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
    """A file of another that would be taken for this node's own, moved out of the way and no further. is_due: whether what lies
    there is another's. told: what is said when it is moved."""

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
    """What is to be on this node no more. title: what it is called; find: what of it is there still, in words; take_away: all of it,
    as far as it is there; made_by: the steps of any workflow that made it, whose records go with it."""

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
        return (Difference(self.name, f"{there} is there still"),) if there else ()

    def apply(self, run: Ground) -> Fields:
        self.take_away(run)
        return self.wanted()


@frozen
class Sysctl(_NodeItem):
    """A setting of the running kernel. That it is so after a reboot is a file's matter."""

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
class KernelModule(_NodeItem):
    """A module that the kernel is to load, now and at boot; many machines have it built in, or loaded by others, and some cannot load
    any. module: its name; path, text: the file by which it is loaded at boot; proof: what there is once it is loaded; loss: what
    does not work without it."""

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
        """That it is not there is no difference: a machine that cannot load it goes on without."""
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
    """A systemd unit of kb's own, which reads its files when it starts and does not have to be stopped before they change."""

    name: str

    @property
    def places(self) -> tuple[Path, ...]:
        return (Path("/etc/systemd/system/multi-user.target.wants") / self.name,)

    def is_running(self, run: Ground) -> bool:
        return services.read_state(run.host, self.name) == "active"

    def stop(self, run: Ground) -> None:
        """Not needed."""

    def start(self, run: Ground) -> None:
        services.start_own_unit(run.host, self.name)

    def settle(self, run: Ground) -> None:
        """`start` enables it."""

    def take_back(self, host: Host) -> None:
        """It runs no more, now or at boot."""
        services.stop_own_unit(host, self.name)


# ---- common


def _stat(run: Ground, path: Path) -> Optional[FileStat]:
    """Of what is read and written by this path, through links; None where they lead nowhere."""
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
